//! A data set: data that a migration changes, and that is saved and restored as one. The appliance declares it in its
//! configuration; an operation carries what it touches in the record, for its undoing must depend on no configuration.

use serde::{Deserialize, Serialize};

use crate::manifest::Name;

/// What SQLite keeps beside a database: a data set of one file consists of them, too.
pub const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Stands for the place of a data set in its own commands.
const PLACE: &str = "{place}";
/// Stands for the place of a clone in a data set's own commands.
const CLONE_PLACE: &str = "{clone}";

/// A data set, and how it is protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    /// As releases call it.
    pub name: Name,
    /// How it is saved and restored.
    pub protect: Protect,
    /// Where it is. `files`: the absolute path of a file (with what SQLite keeps beside it) or of a directory.
    /// `command`: whatever the commands and the migrations understand, such as a database's URL.
    pub place: String,
    /// The services that use it: they are stopped while it is saved, migrated and restored. Absent: all of the
    /// release's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<Name>>,
    /// The most bytes that it, its snapshot or its clone may take.
    #[serde(default = "limit_bytes")]
    pub limit_bytes: u64,
    /// Seconds that each of its commands may take.
    #[serde(default = "timeout_s")]
    pub timeout_s: u64,
    /// The user that its commands run as. Absent: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `command`: writes the data, complete, to its standard output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub save: Vec<String>,
    /// `command`: reads on its standard input what `save` wrote, and makes the data equal to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore: Vec<String>,
    /// Exits 0 if the data can be used; run after a restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub check: Vec<String>,
    /// Copies the data, while it is in use, to `{clone}`. Without it `files` are copied, if nobody writes to them
    /// meanwhile, and a `command` data set is not rehearsed on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clone: Vec<String>,
    /// `command`: removes the clone; nothing there is fine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<String>,
    /// `command`: the place of the clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_place: Option<String>,
}

/// How a data set is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protect {
    /// Its files are copied.
    Files,
    /// Its own commands do it.
    Command,
}

impl DataSet {
    /// The rules that hold between fields. The error is one sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("data: {}: {what}", self.name));
        let has = |vector: &Vec<String>| !vector.is_empty();
        match self.protect {
            Protect::Files => {
                let plain = self
                    .place
                    .strip_prefix('/')
                    .is_some_and(|rest| rest.parse::<crate::manifest::RelPath>().is_ok());
                if !plain {
                    return wrong("the place of files is a plain absolute path");
                }
                if has(&self.save)
                    || has(&self.restore)
                    || has(&self.drop)
                    || self.clone_place.is_some()
                {
                    return wrong("save, restore, drop and clone_place are for `command`");
                }
            }
            Protect::Command => {
                if !has(&self.save) || !has(&self.restore) {
                    return wrong("`command` needs save and restore");
                }
                let parts = [
                    has(&self.clone),
                    has(&self.drop),
                    self.clone_place.is_some(),
                ];
                if parts.contains(&true) && parts.contains(&false) {
                    return wrong("clone, drop and clone_place go together");
                }
            }
        }
        if self.limit_bytes == 0 || self.timeout_s == 0 {
            return wrong("limit_bytes and timeout_s are at least 1");
        }
        Ok(())
    }

    /// Whether a service uses it.
    pub fn used_by(&self, service: &Name) -> bool {
        self.users
            .as_ref()
            .is_none_or(|users| users.contains(service))
    }

    /// One of its commands, with the places put in.
    pub fn command(&self, vector: &[String], place: &str, clone: &str) -> Vec<String> {
        let put_in = |argument: &String| argument.replace(PLACE, place).replace(CLONE_PLACE, clone);
        vector.iter().map(put_in).collect()
    }
}

/// What stands for the place of a data set, or of its clone, in a release's argument vectors.
pub fn placeholder(name: &Name) -> String {
    format!("{{data:{name}}}")
}

fn limit_bytes() -> u64 {
    1 << 30
}

fn timeout_s() -> u64 {
    600
}
