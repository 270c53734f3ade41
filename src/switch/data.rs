//! The step that changes the data, and its undoing: a copy is exchanged for the live data, and exchanged back.

use super::{Side, Switch};
use crate::data;
use crate::data::migrate::{self, Failure, MigrationRunner};
use crate::model::dataplan::DataChange;
use crate::model::dataset;
use crate::model::operation::{Cause, CauseKind, Operation};
use crate::model::phase::DataState;
use crate::model::record::Record;
use crate::store::Store;
use crate::system::host::Host;
use qx_release::error::{Context, Error, Result};
use qx_release::manifest::Migrate;

/// Who asks for a rehearsal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    ByRelease,
    ByPerson,
}

/// What came of a rehearsal that did not fail.
pub(super) enum Tried {
    Succeeded,
    NotNeeded(&'static str),
    NotPossible(String),
}

impl Switch<'_> {
    /// Step 6: the migration is tried on a copy of the data, while the old services run; if the release asks for it, or a
    /// person does.
    pub(super) fn rehearse(&mut self, asked: Asked, record: &Record) -> Result<Tried, Failure> {
        if self.op.change != DataChange::Migrate {
            return Ok(Tried::NotNeeded("the data needs no migration"));
        }
        if self.op.data.is_empty() {
            return Ok(Tried::NotNeeded(
                "the release does not declare the data that it migrates",
            ));
        }
        let (runner, migrate) = runner(self.host, self.store, &self.op, &self.to)?;
        if asked == Asked::ByRelease && !migrate.rehearse {
            return Ok(Tried::NotNeeded("the release does not request it"));
        }
        data::begin(self.host, self.store, &self.op, record)?;
        Ok(match data::rehearse(runner, migrate, self.log)? {
            None => {
                let what = "the migration succeeded on a copy of the data";
                self.log.info("rehearsal", what);
                Tried::Succeeded
            }
            Some(why) => Tried::NotPossible(why),
        })
    }

    /// Before anything is stopped: whether there is room for what follows.
    pub(super) fn has_room(&self) -> Result<()> {
        data::room(self.host, self.store, &self.op)
    }

    /// Deletes the copies for an operation that changed nothing; what cannot be deleted is left to the next operation.
    pub(super) fn drop_copies(&mut self) {
        let dropped = data::drop_open(self.host, self.store, self.op.id, self.log);
        if let Err(e) = dropped {
            self.log.warning("data", e.chain());
        }
    }

    /// Step 7: what is to become the live data is made ready; that is recorded; and only then is it exchanged.
    pub(super) fn change_data(&mut self, reached: &mut Record) -> Result<(), Cause> {
        let appliance = |e: Error| Cause::new(CauseKind::Appliance, e.chain());
        if self.op.data.is_empty() {
            // What it changes is declared nowhere: it is not undone.
            return match self.op.change {
                DataChange::Migrate | DataChange::Down => self.migrate(None),
                DataChange::None | DataChange::Kept | DataChange::Empty => Ok(()),
            };
        }
        data::begin(self.host, self.store, &self.op, reached).map_err(appliance)?;
        self.released().map_err(appliance)?;
        if self.in_place() {
            return self.migrate_in_place(reached);
        }
        let found = self.make_ready()?;
        self.released().map_err(appliance)?;
        data::unchanged(self.host, self.store, &self.op, &found).map_err(appliance)?;
        self.begin_exchange(reached).map_err(appliance)?;
        let from = self.op.copy().side;
        data::exchange(self.host, self.store, &self.op, from, self.log).map_err(appliance)
    }

    fn released(&self) -> Result<()> {
        data::released(self.host, self.store, &self.op).doing(|| "changing the data")
    }

    /// Prepares what is to become the live data, complete and on the medium. Returns fingerprints of the live data.
    fn make_ready(&mut self) -> Result<Vec<u64>, Cause> {
        let appliance = |e: Error| Cause::new(CauseKind::Appliance, e.chain());
        let next = dataset::Side::Next;
        match self.op.change {
            DataChange::None | DataChange::Kept => Ok(Vec::new()),
            DataChange::Empty => {
                data::begin_empty(self.host, self.store, &self.op).map_err(appliance)?;
                Ok(Vec::new())
            }
            DataChange::Migrate | DataChange::Down => {
                let copied = data::copy(self.host, self.store, &self.op, next, self.log);
                let found = copied.map_err(appliance)?;
                data::open_to_others(self.host, self.store, &self.op, true).map_err(appliance)?;
                self.migrate(Some(next))?;
                data::open_to_others(self.host, self.store, &self.op, false).map_err(appliance)?;
                data::sync(self.host, self.store, &self.op).map_err(appliance)?;
                Ok(found)
            }
        }
    }

    /// A migration that must run on the live data: the copy is kept, and exchanged for it on the way back.
    fn migrate_in_place(&mut self, reached: &mut Record) -> Result<(), Cause> {
        let appliance = |e: Error| Cause::new(CauseKind::Appliance, e.chain());
        let previous = dataset::Side::Previous;
        data::copy(self.host, self.store, &self.op, previous, self.log).map_err(appliance)?;
        data::sync(self.host, self.store, &self.op).map_err(appliance)?;
        self.begin_exchange(reached).map_err(appliance)?;
        self.migrate(None)?;
        data::sync(self.host, self.store, &self.op).map_err(appliance)
    }

    /// From here on going back means to exchange the data back.
    fn begin_exchange(&mut self, reached: &mut Record) -> Result<()> {
        self.op.exchanged_at = Some(self.host.timestamp());
        let exchanging = reached.begin_exchange(self.op.clone())?;
        self.store.save(&exchanging)?;
        *reached = exchanging;
        Ok(())
    }

    /// The side whose program changes the data.
    fn migrates(&self) -> &Side {
        match self.op.change {
            DataChange::Down => &self.home,
            _ => &self.to,
        }
    }

    fn in_place(&self) -> bool {
        let migrates = matches!(self.op.change, DataChange::Migrate | DataChange::Down);
        let manifest = self.migrates().manifest.as_ref();
        let migrate = manifest.and_then(|manifest| manifest.migrate.as_ref());
        migrates && migrate.is_some_and(|migrate| migrate.in_place)
    }

    /// Runs the migration on the copies on a side, or on the live data, and checks whether the result is usable.
    fn migrate(&mut self, copy: Option<dataset::Side>) -> Result<(), Cause> {
        let migrated = self.run_migration(copy);
        // Whatever outlived it would go on changing the data.
        let ended = migrate::end_orphans(self.op.id, self.host.proc(), self.log);
        let failed = match (migrated, ended) {
            (Ok(()), Ok(())) => return Ok(()),
            (Err(failure), _) => failure,
            (Ok(()), Err(e)) => Failure::of_release(e),
        };
        // One that took no more than it was given, and met a full disk, is not to blame.
        let starved = data::starved(self.host, self.store, &self.op).unwrap_or(false);
        let kind = match starved {
            true => CauseKind::Appliance,
            false => failed.kind,
        };
        Err(Cause {
            kind,
            ..failed.into()
        })
    }

    fn run_migration(&mut self, copy: Option<dataset::Side>) -> Result<(), Failure> {
        let side = match self.op.change {
            DataChange::Down => &self.home,
            _ => &self.to,
        };
        let (mut runner, migrate) = runner(self.host, self.store, &self.op, side)?;
        runner.places = data::places(self.host, self.store, &self.op, copy)?;
        let (vector, check): (_, &[String]) = match self.op.change {
            DataChange::Down => (&migrate.down, &[]),
            _ => (&migrate.run, &migrate.check),
        };
        runner.run("migrate", vector, None, self.log)?;
        data::check(self.host, self.store, &self.op, copy, self.log)?;
        match check.is_empty() {
            true => Ok(()),
            false => runner.run("migrate", check, None, self.log),
        }
    }

    /// Exchanges the data back, durably and before anything else, and records that. The services that use the data are
    /// stopped.
    pub fn take_back(&mut self, record: &Record) -> Result<Record> {
        if record.data() != DataState::Exchanged {
            return Ok(record.clone());
        }
        self.reserve = None;
        let doing = || "restoring the data";
        migrate::end_orphans(self.op.id, self.host.proc(), self.log)?;
        data::released(self.host, self.store, &self.op).doing(doing)?;
        let from = self.op.copy().side.other();
        data::exchange(self.host, self.store, &self.op, from, self.log).doing(doing)?;
        let aside = data::keep_set_aside(self.host, self.store, &self.op)?;
        let what = format!(
            "the data is restored; data written from {} to {} is kept (see `qx-update data list`)",
            aside.from, aside.to
        );
        self.log.warning("data", what);
        self.op.discarded = Some(aside);
        let restored = record.data_restored(self.op.clone())?;
        self.store.save(&restored)?;
        Ok(restored)
    }
}

/// The runner for a side's programs, and the side's migration.
fn runner<'t>(
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
    let runner = MigrationRunner {
        host,
        store,
        op,
        set: side.set,
        manifest,
        places: Vec::new(),
        timeout_s: migrate.timeout_s,
        rehearsal: false,
    };
    Ok((runner, migrate))
}
