//! What an operation does to the data, and which schemas result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::dataset::{DataSet, Method};
use crate::model::fit::{Fit, cannot_begin_with, refuses_unknown};
use crate::model::kept::{Kept, KeptCopy};
use qx_release::manifest::{Data, Manifest, Name};

/// What an operation does to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataChange {
    /// Nothing: it fits as it is.
    #[default]
    None,
    /// The new set's migration is run.
    Migrate,
    /// The old set's downgrade is run.
    Down,
    /// Data that was kept becomes live again.
    Kept,
    /// It is set aside, and the new set begins without any.
    Empty,
}

/// What happens to data that was written since the set to be left was installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewerData {
    /// It stays: going back is refused where the older set does not accept it.
    Keep,
    /// It is set aside, as a person requested.
    SetAside,
}

/// What an operation does to the data, and which schemas result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPlan {
    /// How the data is changed.
    pub change: DataChange,
    /// The data sets that are changed.
    pub data: Vec<DataSet>,
    /// The schema of each data set afterwards.
    pub schemas: BTreeMap<Name, u64>,
    /// The data that becomes live again.
    pub kept: Option<KeptCopy>,
}

impl DataPlan {
    /// The data stays as it is.
    pub fn stay(schemas: &BTreeMap<Name, u64>) -> DataPlan {
        DataPlan {
            change: DataChange::None,
            data: Vec::new(),
            schemas: schemas.clone(),
            kept: None,
        }
    }

    /// The plan for going to a set: its migration brings the data to its schema. Data that already has that schema is not
    /// touched.
    ///
    /// # Errors
    /// The migration touches data that this appliance does not declare, or cannot start from its current schema.
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
            return Ok(DataPlan::stay(&after));
        };
        for data in to
            .data
            .iter()
            .filter(|data| migrate.touches.contains(&data.name))
        {
            let now = schemas.get(&data.name);
            if let Some(why) = now.and_then(|now| cannot_begin_with(data, *now)) {
                return Err(why);
            }
        }
        let untouched = schemas
            .iter()
            .filter(|(name, _)| !migrate.touches.contains(name));
        after.extend(untouched.map(|(name, schema)| (name.clone(), *schema)));
        Ok(DataPlan {
            change: DataChange::Migrate,
            data: find(&migrate.touches, declared)?,
            schemas: after,
            kept: None,
        })
    }

    /// The plan for going back to a set from `active` on request: the data stays as it is if the set accepts it; else the
    /// downgrade of `active` is run. Only with [`NewerData::SetAside`], kept data that the set accepts is restored, and
    /// if there is none the set starts without data.
    ///
    /// # Errors
    /// One sentence: why going back is not possible.
    pub fn back(
        active: Option<&Manifest>,
        to: Option<&Manifest>,
        schemas: &BTreeMap<Name, u64>,
        declared: &[DataSet],
        unknown: &[Name],
        kept: &[Kept],
        newer: NewerData,
    ) -> Result<DataPlan, String> {
        let obstacle = |to| Fit::of(to, schemas).obstacle();
        let obstacle = |to| obstacle(to).or_else(|| refuses_unknown(to, unknown));
        let Some((to, why)) = to.and_then(|to| Some((to, obstacle(to)?))) else {
            return Ok(DataPlan::stay(schemas));
        };
        if let Some(active) = active
            && let Some(down) = DataPlan::down(active, schemas, declared)?
            && Fit::of(to, &down.schemas) == Fit::Now
        {
            return Ok(down);
        }
        let unfit = to.data.iter().filter(|data| {
            let range = data.accepts_from..=data.accepts_to;
            match schemas.get(&data.name) {
                Some(schema) => !range.contains(schema),
                None => !data.accepts_unknown && unknown.contains(&data.name),
            }
        });
        let names: Vec<Name> = unfit.map(|data| data.name.clone()).collect();
        // The newest that has all that does not fit, and fits.
        let fits = |kept: &&Kept| {
            let mut after = schemas.clone();
            after.retain(|name, _| !kept.has(name));
            after.extend(kept.schemas.clone());
            names.iter().all(|name| kept.has(name)) && Fit::of(to, &after) == Fit::Now
        };
        if let Some(kept) = kept.iter().rev().find(fits) {
            if newer == NewerData::Keep {
                return Err(format!(
                    "{why}; the data from before {} is kept: `--set-aside-data` restores it and sets aside the data \
                     written from {} until now",
                    kept.until, kept.until
                ));
            }
            return Ok(DataPlan::restore(kept, schemas));
        }
        let data = find(&names, declared)?;
        if let Some(set) = data.iter().find(|set| set.method != Method::Files) {
            return Err(format!(
                "{why}; no earlier data is kept, and {} is a `command` data set, which cannot start empty",
                set.name
            ));
        }
        if newer == NewerData::Keep {
            return Err(format!(
                "{why}; no earlier data is kept: `--set-aside-data` sets the data aside, and the older set starts \
                 without data"
            ));
        }
        let mut after = schemas.clone();
        after.retain(|name, _| !names.contains(name));
        Ok(DataPlan {
            change: DataChange::Empty,
            data,
            schemas: after,
            kept: None,
        })
    }

    /// Data that was kept becomes live again.
    pub fn restore(kept: &Kept, schemas: &BTreeMap<Name, u64>) -> DataPlan {
        let mut after = schemas.clone();
        after.retain(|name, _| !kept.has(name));
        after.extend(kept.schemas.clone());
        DataPlan {
            change: DataChange::Kept,
            data: kept.data.clone(),
            schemas: after,
            kept: Some(kept.copy()),
        }
    }

    /// The plan for a set's downgrade, if it has one.
    fn down(
        active: &Manifest,
        schemas: &BTreeMap<Name, u64>,
        declared: &[DataSet],
    ) -> Result<Option<DataPlan>, String> {
        let Some(migrate) = active.migrate.as_ref().filter(|m| !m.down.is_empty()) else {
            return Ok(None);
        };
        let mut after = schemas.clone();
        for name in &migrate.touches {
            // It leaves what it says, whatever the older set would like.
            let data = active.data.iter().find(|data| data.name == *name);
            match data.and_then(|data| data.schema_down) {
                Some(schema) => after.insert(name.clone(), schema),
                None => after.remove(name),
            };
        }
        Ok(Some(DataPlan {
            change: DataChange::Down,
            data: find(&migrate.touches, declared)?,
            schemas: after,
            kept: None,
        }))
    }
}

/// The declarations of these data sets.
fn find(names: &[Name], declared: &[DataSet]) -> Result<Vec<DataSet>, String> {
    let one = |name: &Name| {
        let set = declared.iter().find(|set| set.name == *name);
        set.cloned().ok_or_else(|| {
            format!("its migration changes the data set {name}, which this appliance's configuration does not declare in `data`")
        })
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dataset::Side;
    use crate::model::id::OperationId;
    use crate::model::kept::KeptReason;
    use crate::model::slot::Installed;
    use serde_json::json;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn set(method: &str) -> DataSet {
        let mut text = json!({"name": "db", "method": method, "place": "/data/db"});
        if method == "command" {
            text["copy_place"] = json!("db_{id}");
            for vector in ["copy", "exchange", "drop"] {
                text[vector] = json!([vector]);
            }
        }
        serde_json::from_value(text).unwrap()
    }

    /// A release that accepts the schemas from `from` to `after` and migrates to the last, and can go down
    /// to one or not at all.
    fn release(from: u64, after: u64, down: Option<u64>) -> Manifest {
        let text = json!({
            "format": 1, "product": "os", "version": "1.0.0", "arch": "x86_64", "channel": "stable", "released": "",
            "components": [{"name": "migrations", "kind": "tree", "install_path": "migrations", "mode": "0755",
                            "sha256": "0".repeat(64), "size_bytes": 1, "entries": 1}],
            "data": [{"name": "db", "accepts_from": from, "accepts_to": after, "schema_after": after, "schema_down": down}],
            "migrate": {"run": ["migrations/up", "{data:db}"], "timeout_s": 1, "touches": ["db"],
                        "down": if down.is_some() { vec!["migrations/down"] } else { vec![] }},
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
            let to = DataPlan::forward(&release(1, 2, None), &schemas, &declared).unwrap();
            assert_eq!(to.change, change, "{schemas:?}");
            assert_eq!(to.data.len(), usize::from(change == DataChange::Migrate));
            assert_eq!(to.schemas, at(2));
        }
        let error = DataPlan::forward(&release(1, 2, None), &at(1), &[]).unwrap_err();
        assert!(error.contains("does not declare"), "{error}");
        let mut plain = release(1, 2, None);
        plain.migrate = None;
        let to = DataPlan::forward(&plain, &at(1), &[]).unwrap();
        assert_eq!(
            (to.change, to.schemas),
            (DataChange::None, at(1)),
            "nothing moved it"
        );
    }

    fn kept(schema: u64) -> Kept {
        Kept {
            format: crate::model::kept::FORMAT,
            id: OperationId::new(schema),
            side: Side::Previous,
            number: schema,
            reason: KeptReason::Replaced,
            release: Installed::unknown_factory(),
            data: vec![set("files")],
            schemas: at(schema),
            since: None,
            until: format!("the day of {schema}"),
            digests: BTreeMap::new(),
            lasted: None,
        }
    }

    #[test]
    fn the_way_back_takes_what_there_is() {
        use DataChange::{Down, Empty, None as Stays};
        let old = release(1, 1, None);
        let keep = NewerData::Keep;
        let aside = NewerData::SetAside;
        for (schema, down, newer, method, change) in [
            (1, None, keep, "files", Ok(Stays)),
            (2, Some(1), keep, "files", Ok(Down)),
            (2, Some(1), aside, "files", Ok(Down)),
            // What it leaves is what it says, not what the older set would like.
            (2, Some(9), keep, "files", Err("--set-aside-data")),
            (2, None, aside, "files", Ok(Empty)),
            (2, None, keep, "files", Err("starts without data")),
            (2, None, aside, "command", Err("cannot start empty")),
        ] {
            let active = release(1, 2, down);
            let declared = [set(method)];
            let to = Some(&old);
            // Data that was kept and does not fit either makes no difference.
            for kept in [vec![], vec![kept(7)]] {
                let way =
                    DataPlan::back(Some(&active), to, &at(schema), &declared, &[], &kept, newer);
                match (way, change) {
                    (Ok(way), Ok(change)) => {
                        assert_eq!(way.change, change);
                        let after = match change {
                            Empty => BTreeMap::new(),
                            _ => at(1),
                        };
                        assert_eq!((way.schemas, way.kept), (after, None));
                    }
                    (Err(why), Err(words)) => assert!(why.contains(words), "{why}"),
                    (way, _) => panic!("{schema} {down:?} {newer:?} {method}: {way:?}"),
                }
            }
        }
    }

    /// An older set is not put on data that nobody knows the schema of, unless it says that it takes any.
    #[test]
    fn unknown_data_is_for_those_that_take_it() {
        let (active, mut old) = (release(1, 2, None), release(1, 1, None));
        let (declared, unknown) = ([set("files")], [name("db")]);
        let back = |old: &Manifest, newer| {
            let (active, schemas) = (Some(&active), BTreeMap::new());
            DataPlan::back(active, Some(old), &schemas, &declared, &unknown, &[], newer)
        };
        let why = back(&old, NewerData::Keep).unwrap_err();
        assert!(why.contains("the schema of db is unknown"), "{why}");
        let way = back(&old, NewerData::SetAside).unwrap();
        assert_eq!(way.change, DataChange::Empty);
        old.data[0].accepts_unknown = true;
        assert_eq!(
            back(&old, NewerData::Keep).unwrap().change,
            DataChange::None
        );
    }

    /// Of what is kept the newest that fits becomes live again, if a person says so, and what would be lost is told.
    #[test]
    fn what_is_kept_comes_back() {
        let (active, old) = (release(1, 2, None), release(1, 1, None));
        let mut all = [kept(1), kept(7), kept(1)];
        all[2].id = OperationId::new(33);
        all[2].until = "yesterday".into();
        let back = |newer| {
            let declared = [set("files")];
            DataPlan::back(
                Some(&active),
                Some(&old),
                &at(2),
                &declared,
                &[],
                &all,
                newer,
            )
        };
        let why = back(NewerData::Keep).unwrap_err();
        for words in ["--set-aside-data", "from yesterday until now"] {
            assert!(why.contains(words), "{why}");
        }
        let way = back(NewerData::SetAside).unwrap();
        assert_eq!(
            (way.change, way.kept),
            (DataChange::Kept, Some(all[2].copy()))
        );
        assert_eq!(way.schemas, at(1));
    }
}
