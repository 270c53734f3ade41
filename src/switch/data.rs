//! The step that changes the data, and its undoing: what has been saved before is restored, by the same record.

use super::{Side, Switch, WAY_BACK};
use crate::data::migrate::{self, Failure, MigrationRunner};
use crate::data::protect;
use crate::model::dataset::DataChange;
use crate::model::operation::{Cause, CauseKind, Operation};
use crate::model::phase::DataState;
use crate::model::record::Record;
use crate::store::Store;
use crate::system::host::Host;
use crate::system::space::Reserve;
use qx_release::error::{Error, Result};
use qx_release::manifest::Migrate;

impl Switch<'_> {
    /// Step 6: the migration is tried on a clone of the data, while the old services run.
    pub(super) fn rehearse(&mut self) -> Result<(), Failure> {
        if self.op.change != DataChange::Migrate || self.op.data.is_empty() {
            return Ok(());
        }
        let (tool, migrate) = tool(self.host, self.store, &self.op, &self.to)?;
        if !migrate.rehearse {
            self.log.info(
                "rehearsal",
                "the release does not ask for a rehearsal of its migration",
            );
            return Ok(());
        }
        let skipped = protect::rehearse(tool, migrate, self.log)?;
        match skipped {
            Some(why) => self
                .log
                .warning("rehearsal", format!("no rehearsal: {why}")),
            None => self.log.info(
                "rehearsal",
                "the migration succeeded on a clone of the data",
            ),
        }
        Ok(())
    }

    /// Step 7: saves the data, records that, and only then changes it.
    pub(super) fn change_data(&mut self, reached: &mut Record) -> Result<(), Cause> {
        let appliance = |e: Error| Cause::new(CauseKind::Appliance, e.chain());
        if !self.op.data.is_empty() {
            protect::save(self.host, self.store, &self.op, self.log).map_err(appliance)?;
            let space = protect::space(self.host, self.store, &self.op.data).map_err(appliance)?;
            // The snapshot is the half of it that is written.
            self.reserve = None;
            let bytes = WAY_BACK.saturating_add(space / 2);
            let reserve = Reserve::new(&self.store.path("update"), bytes).map_err(appliance)?;
            self.reserve = Some(reserve);
            self.op.saved_at = Some(self.host.timestamp());
            let saved = reached.data_saved(self.op.clone()).map_err(appliance)?;
            self.store.save(&saved).map_err(appliance)?;
            *reached = saved;
        }
        let release = |failure: Failure| Cause {
            output: failure.output,
            ..Cause::new(CauseKind::Release, failure.error.chain())
        };
        let side = match self.op.change {
            DataChange::Migrate => &self.to,
            DataChange::Down => &self.home,
            DataChange::None => return Ok(()),
            DataChange::Discard => {
                let aside = protect::set_aside(self.host, self.store, &self.op, self.log);
                return aside.map_err(appliance);
            }
        };
        let tool = tool(self.host, self.store, &self.op, side).map_err(Failure::from);
        let migrated = tool.and_then(|(tool, migrate)| {
            let vector = match self.op.change {
                DataChange::Down => &migrate.down,
                _ => &migrate.run,
            };
            tool.run("migrate", vector, None, self.log)
        });
        // Whatever outlived it would go on changing the data.
        let ended =
            migrate::end_orphans(self.op.id, self.host.proc(), self.log).map_err(Failure::from);
        migrated.and(ended).map_err(release)
    }

    /// What has been saved is restored, durably, before anything else: the record that it returns says so. The data's users
    /// are down.
    pub fn restore(&mut self, record: &Record) -> Result<Record> {
        if record.data() != DataState::Saved {
            return Ok(record.clone());
        }
        self.reserve = None;
        migrate::end_orphans(self.op.id, self.host.proc(), self.log)?;
        let discarded = protect::restore(self.host, self.store, &self.op, self.log)?;
        let what = format!(
            "the data is what it was before the migration; what was written from {} to {} is {}",
            discarded.from,
            discarded.to,
            match &discarded.kept {
                Some(place) => format!("kept in {place}"),
                None => "not kept".to_owned(),
            }
        );
        self.log.warning("data", what);
        self.op.discarded = Some(discarded);
        let restored = record.data_restored(self.op.clone())?;
        self.store.save(&restored)?;
        Ok(restored)
    }
}

/// How a side's programs are run on the data itself, and what it says of its migration.
fn tool<'t>(
    host: &'t Host,
    store: &'t Store,
    op: &'t Operation,
    side: &'t Side,
) -> Result<(MigrationRunner<'t>, &'t Migrate)> {
    let manifest = side.manifest.as_ref();
    let migrates = manifest.and_then(|manifest| Some((manifest, manifest.migrate.as_ref()?)));
    let (manifest, migrate) = migrates.ok_or_else(|| {
        Error::new(format!(
            "migrating: the manifest of {} defines no migration",
            side.set
        ))
    })?;
    let tool = MigrationRunner {
        host,
        store,
        op,
        set: side.set,
        manifest,
        places: protect::places(host, &op.data)?,
        timeout_s: migrate.timeout_s,
    };
    Ok((tool, migrate))
}
