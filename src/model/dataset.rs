//! A data set: data that a migration changes, and that is copied and exchanged as one. The appliance declares it in its
//! configuration; the record of an operation carries the data sets that it touches, since undoing it must not depend on
//! the configuration.

use serde::{Deserialize, Serialize};

use crate::model::id::OperationId;
use qx_release::json;
use qx_release::manifest::{MAX_SECONDS, MAX_SIZE, Name};

/// What SQLite keeps beside a database: a data set of one file consists of them, too.
pub const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Stands for the place of a data set in its own commands.
const PLACE: &str = "{place}";
/// Stands for the place of a copy.
const COPY: &str = "{copy}";
/// Stands for the place to which an exchange moves what was live.
const KEPT: &str = "{kept}";
/// Stands for what distinguishes copies, in the `copy_place` of a `command` data set.
const ID: &str = "{id}";

/// A data set, and how it is copied and exchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct DataSet {
    /// As releases call it.
    pub name: Name,
    /// Where it is. `files`: the absolute path of a file (with what SQLite keeps beside it) or of a directory.
    /// `command`: whatever the commands and the migrations understand, such as a database's URL.
    pub place: String,
    /// What it is made of.
    pub method: Method,
    /// The services that use it: they are stopped while it is copied, migrated and exchanged. Absent: all of the
    /// release's.
    pub services: Option<Vec<Name>>,
    /// The most bytes that it, or one of its copies, may take.
    pub limit_bytes: u64,
    /// Seconds that each of its commands may take.
    pub timeout_s: u64,
    /// The user that its commands run as. Absent: root.
    pub user: Option<String>,
    /// Copies the data to `{copy}` while it is in use, for a rehearsal. Without it `files` are copied if nobody writes to
    /// them meanwhile, and a `command` data set is copied as always, if it can be.
    pub copy_in_use: Vec<String>,
    /// Exits 0 if the data at `{place}` is usable; run on a migrated copy before it becomes the live data.
    pub check: Vec<String>,
    /// Prints the schema of the data at `{place}`. Absent: what was recorded counts.
    pub schema: Vec<String>,
}

/// What a data set is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Files, which are copied and renamed.
    Files,
    /// Anything that is copied and exchanged by commands of its own.
    Command(Commands),
}

/// How a data set other than files is copied and exchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands {
    /// The place of its copies, with `{id}` for what tells them apart.
    pub copy_place: String,
    /// Copies what is at `{place}` to `{copy}`, where nothing is, durably. Nobody uses the data meanwhile.
    pub copy: Vec<String>,
    /// Durably moves what is at `{place}` to `{kept}`, and what is at `{copy}` to `{place}`. An interrupted exchange is
    /// completed; if nothing is at `{copy}`, it is done already.
    pub exchange: Vec<String>,
    /// Removes what is at `{copy}`; nothing there is fine.
    pub drop: Vec<String>,
}

/// The serialized form of a data set. (Reading an enum with fields would buffer the input first, in three times as much
/// code.)
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: Name,
    method: String,
    place: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    services: Option<Vec<Name>>,
    #[serde(default = "limit_bytes")]
    limit_bytes: u64,
    #[serde(default = "timeout_s")]
    timeout_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copy_place: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    copy: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exchange: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    drop: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    copy_in_use: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    check: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    schema: Vec<String>,
}

impl From<DataSet> for Fields {
    fn from(set: DataSet) -> Fields {
        let (method, commands) = match set.method {
            Method::Files => ("files", None),
            Method::Command(commands) => ("command", Some(commands)),
        };
        let (copy_place, [copy, exchange, drop]) = match commands {
            None => (None, Default::default()),
            Some(all) => (Some(all.copy_place), [all.copy, all.exchange, all.drop]),
        };
        Fields {
            name: set.name,
            method: method.to_owned(),
            place: set.place,
            services: set.services,
            limit_bytes: set.limit_bytes,
            timeout_s: set.timeout_s,
            user: set.user,
            copy_place,
            copy,
            exchange,
            drop,
            copy_in_use: set.copy_in_use,
            check: set.check,
            schema: set.schema,
        }
    }
}

impl TryFrom<Fields> for DataSet {
    type Error = String;

    fn try_from(fields: Fields) -> Result<DataSet, String> {
        let wrong = |what: &str| Err(format!("data: {}: {what}", fields.name));
        let vectors = [&fields.copy, &fields.exchange, &fields.drop];
        let method = match (&*fields.method, fields.copy_place) {
            ("files", copy_place) => {
                if copy_place.is_some() || vectors.iter().any(|vector| !vector.is_empty()) {
                    return wrong("copy_place, copy, exchange and drop only apply to `command`");
                }
                Method::Files
            }
            ("command", Some(copy_place)) if vectors.iter().all(|vector| !vector.is_empty()) => {
                if !copy_place.contains(ID) {
                    return wrong(
                        "copy_place must contain {id}, so that each copy has a place of its own",
                    );
                }
                Method::Command(Commands {
                    copy_place,
                    copy: fields.copy,
                    exchange: fields.exchange,
                    drop: fields.drop,
                })
            }
            ("command", _) => {
                return wrong("`command` needs copy_place, copy, exchange and drop");
            }
            _ => return wrong("method must be `files` or `command`"),
        };
        Ok(DataSet {
            name: fields.name,
            place: fields.place,
            method,
            services: fields.services,
            limit_bytes: fields.limit_bytes,
            timeout_s: fields.timeout_s,
            user: fields.user,
            copy_in_use: fields.copy_in_use,
            check: fields.check,
            schema: fields.schema,
        })
    }
}

impl DataSet {
    /// The rules that hold between fields. The error is one sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let plain = || {
            let rest = self.place.strip_prefix('/');
            rest.is_some_and(|rest| rest.parse::<qx_release::manifest::RelPath>().is_ok())
        };
        if self.method == Method::Files && !plain() {
            return Err(format!(
                "data: {}: the place of files must be a plain absolute path",
                self.name
            ));
        }
        for (field, value, most) in [
            ("limit_bytes", self.limit_bytes, MAX_SIZE),
            ("timeout_s", self.timeout_s, MAX_SECONDS),
        ] {
            json::in_range(&format!("data: {}: {field}", self.name), value, 1..=most)?;
        }
        Ok(())
    }

    /// Whether a service uses it.
    pub fn used_by(&self, service: &Name) -> bool {
        self.services
            .as_ref()
            .is_none_or(|services| services.contains(service))
    }
}

impl Commands {
    /// The place of one copy.
    pub fn copy(&self, id: OperationId, side: Side) -> String {
        self.copy_place
            .replace(ID, &format!("{id}_{}", side.name()))
    }
}

/// One of a data set's commands, with the places put in.
pub fn with_places(vector: &[String], place: &str, copy: &str, kept: &str) -> Vec<String> {
    let put_in = |argument: &String| {
        let argument = argument.replace(PLACE, place);
        argument.replace(COPY, copy).replace(KEPT, kept)
    };
    vector.iter().map(put_in).collect()
}

/// On which side of an exchange data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The data that is to become live, or was live until the operation was undone.
    Next,
    /// What was the live data before.
    Previous,
}

impl Side {
    /// The side to which the live data goes when this one becomes live.
    pub fn other(self) -> Side {
        match self {
            Side::Next => Side::Previous,
            Side::Previous => Side::Next,
        }
    }

    /// As directories are called.
    pub fn name(self) -> &'static str {
        match self {
            Side::Next => "next",
            Side::Previous => "previous",
        }
    }
}

fn limit_bytes() -> u64 {
    1 << 30
}

fn timeout_s() -> u64 {
    600
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files() -> serde_json::Value {
        json!({"name": "db", "method": "files", "place": "/data/db"})
    }

    fn command() -> serde_json::Value {
        json!({"name": "db", "method": "command", "place": "app", "copy_place": "app_{id}",
               "copy": ["copy"], "exchange": ["exchange"], "drop": ["drop"]})
    }

    #[test]
    fn a_data_set_must_make_sense() {
        let checked = |text: serde_json::Value| {
            let set = serde_json::from_value::<DataSet>(text).map_err(|e| e.to_string())?;
            set.check()?;
            // What is written is what was read.
            let again = serde_json::to_value(&set).unwrap();
            assert_eq!(serde_json::from_value::<DataSet>(again).unwrap(), set);
            Ok(())
        };
        checked(files()).unwrap();
        checked(command()).unwrap();
        for (good, field, value, words) in [
            (files(), "place", json!("data/db"), "absolute path"),
            (files(), "place", json!("/data/../etc"), "absolute path"),
            (files(), "copy", json!(["x"]), "to `command`"),
            (files(), "copy_place", json!("x"), "to `command`"),
            (files(), "method", json!("command"), "needs copy_place"),
            (files(), "method", json!("magic"), "`files` or `command`"),
            (
                files(),
                "limit_bytes",
                json!(0),
                "limit_bytes: 0 is out of range (1 to",
            ),
            (files(), "limit_bytes", json!(u64::MAX), "limit_bytes"),
            (
                files(),
                "timeout_s",
                json!(0),
                "timeout_s: 0 is out of range (1 to 86400)",
            ),
            (files(), "timeout_s", json!(u64::MAX), "(1 to 86400)"),
            (files(), "save", json!(["x"]), "unknown field `save`"),
            (command(), "exchange", json!([]), "needs copy_place"),
            (
                command(),
                "copy_place",
                json!("app_copy"),
                "must contain {id}",
            ),
        ] {
            let mut text = good.clone();
            text[field] = value;
            let error: String = checked(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn places_are_put_in() {
        let vector = ["x", "a={place}", "{copy}:{kept}"].map(str::to_owned);
        assert_eq!(
            with_places(&vector, "/p", "/c", "/k"),
            ["x", "a=/p", "/c:/k"]
        );
        let set: DataSet = serde_json::from_value(command()).unwrap();
        let Method::Command(commands) = set.method else {
            panic!("a command");
        };
        let id = OperationId::new(0xab);
        assert_eq!(commands.copy(id, Side::Next), "app_00000000000000ab_next");
    }
}
