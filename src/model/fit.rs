//! Whether a set can run on the data as it is.

use std::collections::BTreeMap;

use qx_release::manifest::{Data, Manifest, Migrate, Name};

/// Whether a set can run on data with certain schemas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// As the data is. Data of unknown schema counts as fitting.
    Now,
    /// Only after its own migration; with the reason.
    Migrated(String),
    /// Not at all; with the reason.
    Never(String),
}

/// Why a release's migration cannot begin with data at this schema, if so.
pub fn cannot_begin_with(data: &Data, schema: u64) -> Option<String> {
    let from = data.migrates_from.filter(|from| schema < *from)?;
    Some(format!(
        "the schema of {} is {schema}, but the migration requires at least {from}: install an intermediate release first",
        data.name
    ))
}

/// Why a set is not put on data that is there and whose schema nobody knows, if so.
pub fn refuses_unknown(manifest: &Manifest, unknown: &[Name]) -> Option<String> {
    let mut refused = manifest.data.iter();
    let refused = refused.find(|data| !data.accepts_unknown && unknown.contains(&data.name))?;
    Some(format!(
        "the schema of {name} is unknown, and the release does not declare `accepts_unknown`: declare {name} in the factory \
         set's manifest, or configure data[].schema to ask for it",
        name = refused.name
    ))
}

impl Fit {
    /// Whether a set can run on data with these schemas.
    pub fn of(manifest: &Manifest, schemas: &BTreeMap<Name, u64>) -> Fit {
        let mut fit = Fit::Now;
        for data in &manifest.data {
            let Some(schema) = schemas.get(&data.name) else {
                continue;
            };
            if (data.accepts_from..=data.accepts_to).contains(schema) {
                continue;
            }
            let why = format!(
                "the schema of {} is {schema} (supported: {} to {})",
                data.name, data.accepts_from, data.accepts_to
            );
            let touches = |migrate: &Migrate| migrate.touches.contains(&data.name);
            if *schema > data.schema_after || !manifest.migrate.as_ref().is_some_and(touches) {
                return Fit::Never(why);
            }
            if let Some(why) = cannot_begin_with(data, *schema) {
                return Fit::Never(why);
            }
            fit = Fit::Migrated(why);
        }
        fit
    }

    /// Why the set must not be started on the data as it is, if so.
    pub fn obstacle(self) -> Option<String> {
        match self {
            Fit::Now => None,
            Fit::Migrated(why) | Fit::Never(why) => Some(why),
        }
    }
}
