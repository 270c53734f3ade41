//! A data set: data that a migration changes, and that is saved and restored as one. The appliance declares it in its
//! configuration; an operation carries what it touches in the record, for its undoing must depend on no configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::fit::Fit;
use qx_release::json;
use qx_release::manifest::{Data, MAX_SECONDS, MAX_SIZE, Manifest, Name};

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
    pub method: Method,
    /// Where it is. `files`: the absolute path of a file (with what SQLite keeps beside it) or of a directory.
    /// `command`: whatever the commands and the migrations understand, such as a database's URL.
    pub place: String,
    /// The services that use it: they are stopped while it is saved, migrated and restored. Absent: all of the
    /// release's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Name>>,
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
    pub drop_copy: Vec<String>,
    /// `command`: the place of the clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_place: Option<String>,
}

/// How a data set is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
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
        match self.method {
            Method::Files => {
                let plain = self
                    .place
                    .strip_prefix('/')
                    .is_some_and(|rest| rest.parse::<qx_release::manifest::RelPath>().is_ok());
                if !plain {
                    return wrong("the place of files must be a plain absolute path");
                }
                if has(&self.save)
                    || has(&self.restore)
                    || has(&self.drop_copy)
                    || self.clone_place.is_some()
                {
                    return wrong(
                        "save, restore, drop_copy and clone_place only apply to `command`",
                    );
                }
            }
            Method::Command => {
                if !has(&self.save) || !has(&self.restore) {
                    return wrong("`command` needs save and restore");
                }
                let parts = [
                    has(&self.clone),
                    has(&self.drop_copy),
                    self.clone_place.is_some(),
                ];
                if parts.contains(&true) && parts.contains(&false) {
                    return wrong("clone, drop_copy and clone_place go together");
                }
            }
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

    /// One of its commands, with the places put in.
    pub fn command(&self, vector: &[String], place: &str, clone: &str) -> Vec<String> {
        let put_in = |argument: &String| argument.replace(PLACE, place).replace(CLONE_PLACE, clone);
        vector.iter().map(put_in).collect()
    }
}

/// What an operation does to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataChange {
    /// Nothing: it fits as it is.
    #[default]
    None,
    /// The new set's migration is run.
    Migrate,
    /// The old set's way down is run.
    Down,
    /// It is set aside, and the new set begins without any.
    Discard,
}

/// What becomes of what was written to the data since the set came that is to be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewerData {
    /// It is kept: where there is no way back with it, there is none.
    Keep,
    /// A person gives it up.
    Discard,
}

/// What an operation does to the data, and what comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPlan {
    /// How the data is changed.
    pub change: DataChange,
    /// The data sets that are changed.
    pub data: Vec<DataSet>,
    /// The schema of each data set afterwards.
    pub schemas: BTreeMap<Name, u64>,
}

impl DataPlan {
    /// To a set whose migration brings the data to its schema. Data that is there already is not touched.
    ///
    /// # Errors
    /// It touches data that this appliance does not declare.
    pub fn forward(
        to: &Manifest,
        schemas: &BTreeMap<Name, u64>,
        declared: &[DataSet],
    ) -> Result<DataPlan, String> {
        let leaves = |data: &Data| (data.name.clone(), data.schema_after);
        let mut after: BTreeMap<Name, u64> = to.data.iter().map(leaves).collect();
        let there = |name: &&Name| {
            schemas
                .get(*name)
                .is_some_and(|now| after.get(*name) == Some(now))
        };
        let Some(migrate) = to.migrate.as_ref().filter(|migrate| {
            migrate.touches.is_empty() || !migrate.touches.iter().all(|name| there(&name))
        }) else {
            // What was recorded counts; a first release tells what it found.
            after.extend(schemas.clone());
            return Ok(DataPlan {
                change: DataChange::None,
                data: Vec::new(),
                schemas: after,
            });
        };
        let untouched = schemas
            .iter()
            .filter(|(name, _)| !migrate.touches.contains(name));
        after.extend(untouched.map(|(name, schema)| (name.clone(), *schema)));
        Ok(DataPlan {
            change: DataChange::Migrate,
            data: find(&migrate.touches, declared)?,
            schemas: after,
        })
    }

    /// Back to a set from `active`, as a person asked: the data stays as it is if the set accepts it; else the way down of
    /// `active` is taken; else, only if the person said so, what does not fit is set aside.
    ///
    /// # Errors
    /// One sentence: why there is no way.
    pub fn back(
        active: Option<&Manifest>,
        to: Option<&Manifest>,
        schemas: &BTreeMap<Name, u64>,
        declared: &[DataSet],
        newer: NewerData,
    ) -> Result<DataPlan, String> {
        let stay = DataPlan {
            change: DataChange::None,
            data: Vec::new(),
            schemas: schemas.clone(),
        };
        let Some((to, why)) = to.and_then(|to| Some((to, Fit::of(to, schemas).obstacle()?))) else {
            return Ok(stay);
        };
        if let Some(migrate) = active.and_then(|active| active.migrate.as_ref())
            && !migrate.down.is_empty()
        {
            let mut down = stay.clone();
            for name in &migrate.touches {
                match to.data.iter().find(|data| data.name == *name) {
                    Some(data) => down.schemas.insert(name.clone(), data.schema_after),
                    None => down.schemas.remove(name),
                };
            }
            if Fit::of(to, &down.schemas) == Fit::Now {
                return Ok(DataPlan {
                    change: DataChange::Down,
                    data: find(&migrate.touches, declared)?,
                    ..down
                });
            }
        }
        let unfit = to.data.iter().filter(|data| {
            let range = data.accepts_from..=data.accepts_to;
            schemas
                .get(&data.name)
                .is_some_and(|schema| !range.contains(schema))
        });
        let names: Vec<Name> = unfit.map(|data| data.name.clone()).collect();
        let data = find(&names, declared)?;
        if let Some(set) = data.iter().find(|set| set.method == Method::Command) {
            return Err(format!(
                "{why}; the snapshot from before is gone, and {} is protected by commands, so it cannot start empty",
                set.name
            ));
        }
        if newer == NewerData::Keep {
            return Err(format!(
                "{why}; the snapshot from before is gone: `--discard-data` sets the data aside, and the older set starts \
                 without any"
            ));
        }
        let mut after = stay.schemas;
        after.retain(|name, _| !names.contains(name));
        Ok(DataPlan {
            change: DataChange::Discard,
            data,
            schemas: after,
        })
    }
}

/// The declarations of these data sets.
fn find(names: &[Name], declared: &[DataSet]) -> Result<Vec<DataSet>, String> {
    let one = |name: &Name| {
        let set = declared.iter().find(|set| set.name == *name);
        set.cloned().ok_or_else(|| {
            format!("it migrates the data set {name}, which this appliance's configuration does not declare in `data`")
        })
    };
    names.iter().map(one).collect()
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

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn set(method: &str) -> DataSet {
        let mut text = json!({"name": "db", "method": method, "place": "/data/db"});
        if method == "command" {
            text["save"] = json!(["save"]);
            text["restore"] = json!(["restore"]);
        }
        serde_json::from_value(text).unwrap()
    }

    /// A release that accepts the schemas from `from` to `after` and migrates to the last, and can go down or not.
    fn release(from: u64, after: u64, down: bool) -> Manifest {
        let text = json!({
            "format": 1, "product": "os", "version": "1.0.0", "arch": "x86_64", "channel": "stable", "released": "",
            "components": [{"name": "migrations", "kind": "tree", "install_path": "migrations", "mode": "0755",
                            "sha256": "0".repeat(64), "size_bytes": 1, "entries": 1}],
            "data": [{"name": "db", "accepts_from": from, "accepts_to": after, "schema_after": after}],
            "migrate": {"run": ["migrations/up"], "timeout_s": 1, "touches": ["db"],
                        "down": if down { vec!["migrations/down"] } else { vec![] }},
        });
        Manifest::parse(&serde_json::to_vec(&text).unwrap()).unwrap()
    }

    fn at(schema: u64) -> BTreeMap<Name, u64> {
        [(name("db"), schema)].into()
    }

    #[test]
    fn a_migration_is_run_unless_the_data_is_known_to_be_there() {
        let declared = [set("files")];
        for (schemas, change) in [
            (BTreeMap::new(), DataChange::Migrate),
            (at(1), DataChange::Migrate),
            (at(2), DataChange::None),
        ] {
            let to = DataPlan::forward(&release(1, 2, false), &schemas, &declared).unwrap();
            assert_eq!(to.change, change, "{schemas:?}");
            assert_eq!(to.data.len(), usize::from(change == DataChange::Migrate));
            assert_eq!(to.schemas, at(2));
        }
        let error = DataPlan::forward(&release(1, 2, false), &at(1), &[]).unwrap_err();
        assert!(error.contains("does not declare"), "{error}");
        let mut plain = release(1, 2, false);
        plain.migrate = None;
        let to = DataPlan::forward(&plain, &at(1), &[]).unwrap();
        assert_eq!(
            (to.change, to.schemas),
            (DataChange::None, at(1)),
            "nothing moved it"
        );
    }

    #[test]
    fn the_way_back_takes_what_there_is() {
        let old = release(1, 1, false);
        for (schema, down, discard, method, change) in [
            (1, false, false, "files", Ok(DataChange::None)),
            (2, true, false, "files", Ok(DataChange::Down)),
            (2, true, true, "files", Ok(DataChange::Down)),
            (2, false, true, "files", Ok(DataChange::Discard)),
            (2, false, false, "files", Err("--discard-data")),
            (2, false, true, "command", Err("cannot start empty")),
        ] {
            let active = release(1, 2, down);
            let way = DataPlan::back(
                Some(&active),
                Some(&old),
                &at(schema),
                &[set(method)],
                match discard {
                    true => NewerData::Discard,
                    false => NewerData::Keep,
                },
            );
            match (way, change) {
                (Ok(way), Ok(change)) => {
                    assert_eq!(way.change, change);
                    let after = if change == DataChange::Discard {
                        BTreeMap::new()
                    } else {
                        at(1)
                    };
                    assert_eq!(way.schemas, after);
                }
                (Err(why), Err(words)) => assert!(why.contains(words), "{why}"),
                (way, _) => panic!("{schema} {down} {discard} {method}: {way:?}"),
            }
        }
    }

    #[test]
    fn a_data_set_must_make_sense() {
        let good = json!({"name": "db", "method": "files", "place": "/data/db"});
        let wrong = |field: &str, value: serde_json::Value| {
            let mut text = good.clone();
            text[field] = value;
            serde_json::from_value::<DataSet>(text)
                .unwrap()
                .check()
                .unwrap_err()
        };
        assert!(
            serde_json::from_value::<DataSet>(good.clone())
                .unwrap()
                .check()
                .is_ok()
        );
        for (field, value, words) in [
            ("place", json!("data/db"), "absolute path"),
            ("place", json!("/data/../etc"), "absolute path"),
            ("save", json!(["x"]), "to `command`"),
            ("method", json!("command"), "needs save and restore"),
            ("limit_bytes", json!(0), "limit_bytes: 0 is not from 1 to"),
            ("limit_bytes", json!(u64::MAX), "limit_bytes"),
            ("timeout_s", json!(0), "timeout_s: 0 is not from 1 to 86400"),
            ("timeout_s", json!(u64::MAX), "from 1 to 86400"),
        ] {
            let error = wrong(field, value);
            assert!(error.contains(words), "{error}");
        }
        let set = set("files");
        let vector = ["x", "a={place}", "{clone}"].map(str::to_owned);
        assert_eq!(set.command(&vector, "/p", "/c"), ["x", "a=/p", "/c"]);
    }
}
