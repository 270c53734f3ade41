//! Steps 6 to 10: from a verified set to a proved one, or back. Every step writes its intention before the act, so that
//! whoever comes next, after whatever happened, knows what to undo. A step and its undoing stand side by side:
//!
//! | step | done | undone |
//! |---|---|---|
//! | services stop and start | `services::stop_services`, `start_services` | `services::stop_for`, `start_services` |
//! | the data changes | `data::change_data` | `data::take_back` |
//! | the link selects | `CommitPoint::select` of the new set | `CommitPoint::select` of the old one |
//! | the record says so | `begin_switch`, `begin_exchange`, `begin_trial` | `begin_revert`, `data_restored`, `ended` |

mod conclude;
mod data;
pub mod inhibit;
mod services;

use data::{Asked, Tried};
use inhibit::{Inhibitors, Permission};
use qx_release::error::{Error, ErrorKind, Exit, Result};
use qx_release::manifest::{Manifest, Name, Service};

use crate::data::migrate::Failure;

use crate::model::dataplan::DataChange;
use crate::model::moment::Moment;
use crate::model::operation::{Attempt, Cause, CauseKind, Operation};
use crate::model::record::Record;
use crate::model::refusal::RefusalKind;
use crate::model::slot::Set;
use crate::store::{CommitPoint, Store};
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::service::Manager;
use crate::system::space::Reserve;

/// Bytes that are held for the records of the way back.
const WAY_BACK: u64 = 256 * 1024;

/// An operation whose set is complete and verified.
pub struct Switch<'a> {
    host: &'a Host,
    store: &'a Store,
    log: &'a mut Log,
    op: Operation,
    /// Where the way back leads: what ran before, or the factory set if that no longer verifies.
    home: Side,
    to: Side,
    /// Who is asked before services are stopped. Nobody: whatever is in the middle of something is interrupted.
    inhibitors: Option<Inhibitors<'a>>,
    /// Held for the records of the way back until the trial has ended.
    reserve: Option<Reserve>,
}

/// One of the two sets of an operation.
struct Side {
    set: Set,
    /// Unknown for a factory set without one.
    manifest: Option<Manifest>,
}

impl Side {
    fn new(set: Set, store: &Store, log: &mut Log) -> Side {
        // Whoever plans an operation reads both; on the way back a set runs all the same, and nothing is proved of it.
        let manifest = store.manifest(set).unwrap_or_else(|e| {
            log.error("switch", e.chain());
            None
        });
        let manifest = manifest.map(|(manifest, _)| manifest);
        Side { set, manifest }
    }

    fn services(&self) -> &[Service] {
        self.manifest
            .as_ref()
            .map_or(&[], |manifest| &manifest.services)
    }

    fn has(&self, name: &Name) -> bool {
        self.services().iter().any(|s| s.name == *name)
    }
}

/// The side of a set, and the other one.
fn sides<'s>(set: Set, to: &'s Side, home: &'s Side) -> (&'s Side, &'s Side) {
    if set == to.set {
        (to, home)
    } else {
        (home, to)
    }
}

impl<'a> Switch<'a> {
    /// The operation, with the manifests of its two sets.
    pub fn new(host: &'a Host, store: &'a Store, log: &'a mut Log, op: Operation) -> Switch<'a> {
        log.operation(op.id);
        Switch {
            home: Side::new(op.from().set, store, log),
            to: Side::new(op.to.set, store, log),
            host,
            store,
            log,
            op,
            inhibitors: None,
            reserve: None,
        }
    }

    /// Asks these before it stops services.
    pub fn inhibited_by(self, inhibitors: Option<Inhibitors<'a>>) -> Switch<'a> {
        Switch { inhibitors, ..self }
    }

    fn permission(&mut self, doing: &str) -> Result<Option<Permission>> {
        let asked = self.inhibitors.map(|inhibitors| {
            inhibitors.permission(&format!("{doing} {}", self.op.to), self.host, self.log)
        });
        asked.transpose()
    }

    /// Goes over to the new set and proves it, or comes back.
    pub fn run(mut self, record: &Record) -> Result<Exit> {
        self.has_room()?;
        match self.rehearse(Asked::ByRelease, record) {
            Ok(Tried::Succeeded) => {}
            // Most releases migrate nothing.
            Ok(Tried::NotNeeded(why)) => {
                if self.op.change == DataChange::Migrate {
                    self.log
                        .info("rehearsal", format!("skipping the rehearsal: {why}"));
                }
            }
            Ok(Tried::NotPossible(why)) => {
                self.log
                    .warning("rehearsal", format!("skipping the rehearsal: {why}"));
            }
            Err(failure) => return self.reject("rehearsal", failure, record),
        }
        let permission = self.permission("switching to")?;
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        self.concern_services(&manager, record);
        // What the way back has to write fits, whatever fills the disk meanwhile.
        self.reserve = Some(Reserve::new(&self.store.path("update"), WAY_BACK)?);
        let mut reached = record.begin_switch(self.op.clone())?;
        self.store.save(&reached)?;
        let gone_over = self.go_over(&manager, &mut reached);
        // Services that take the lock when they start are about to be started.
        drop(permission);
        match gone_over {
            Ok(()) => self.conclude_trial(&reached),
            Err(cause) => self.revert(cause, &reached),
        }
    }

    /// Only step 6, because a person asks for it: the release stays staged.
    pub fn rehearse_only(mut self, record: &Record) -> Result<Exit> {
        self.has_room()?;
        let tried = match self.rehearse(Asked::ByPerson, record) {
            Ok(tried) => tried,
            Err(failure) => return self.reject("rehearsal", failure, record),
        };
        self.drop_copies();
        let doing = format!("rehearsing the migration of {}", self.op.to);
        match tried {
            Tried::Succeeded => {}
            Tried::NotNeeded(why) => self.log.info("rehearsal", format!("{doing}: {why}")),
            Tried::NotPossible(why) => {
                return Err(Error::with(
                    ErrorKind::NotEligible,
                    format!("{doing}: {why}"),
                ));
            }
        }
        Ok(Exit::Done)
    }

    /// The release failed before anything was stopped.
    pub fn reject(mut self, step: &str, failure: Failure, record: &Record) -> Result<Exit> {
        // What the appliance lacks says nothing about the release.
        if failure.kind != CauseKind::Release {
            return Err(failure.error);
        }
        let message = failure.error.chain();
        self.log
            .error(step, format!("{} is rejected: {message}", self.op.to));
        let now = self.host.timestamp();
        self.refuse(&self.op.to, RefusalKind::Quarantined, &message, &now)?;
        let ended = Attempt {
            output: failure.output,
            ..self.op.attempt(Exit::Failed, Some(message), &now)
        };
        self.store.save(&record.ended(self.op.back(), ended)?)?;
        self.drop_copies();
        Ok(Exit::Failed)
    }

    /// Steps 7 and 8. `reached` is the record as far as it came.
    fn go_over(&mut self, manager: &Manager, reached: &mut Record) -> Result<(), Cause> {
        self.stop_services(manager)
            .map_err(|e| Cause::new(CauseKind::Appliance, e.chain()))?;
        self.move_over(reached)
    }

    /// The data and the link, with the services down.
    fn move_over(&mut self, reached: &mut Record) -> Result<(), Cause> {
        // Asked for while there is nothing to undo.
        let appliance = |e: Error| Cause::new(CauseKind::Appliance, e.chain());
        let boot_id = self.host.boot_id().map_err(appliance)?;
        self.change_data(reached)?;
        self.select(self.op.to.set).map_err(appliance)?;
        self.log.info(
            "switch",
            format!("the priority link selects {}", self.op.to),
        );
        let (since, now) = (self.host.timestamp(), self.host.moment());
        let now = Moment { boot_id, ..now };
        let begun = reached.begin_trial(self.op.clone(), &since, Some(&now));
        let trial = begun.map_err(appliance)?;
        self.store.save(&trial).map_err(appliance)?;
        *reached = trial;
        Ok(())
    }

    /// The link leads to a set, and what is started from now on is known to come from there. (An adoption changes the link, too, and
    /// nothing of what runs; recovery does before anything runs.)
    fn select(&mut self, set: Set) -> Result<()> {
        let before = self.store.selected();
        self.store.select(set)?;
        if self.store.selected() != before
            && let Err(e) = self.store.note_selection(&before)
        {
            self.log.warning("switch", e.chain());
        }
        Ok(())
    }

    /// Steps 7 and 8 at boot: nothing that uses the data has been started, and services are left to the runlevel. Returns
    /// the record, in `Trial`, or in `Reverting` with the data as it was.
    pub fn at_boot(mut self, record: &Record) -> Result<Record> {
        let what = match self.op.change {
            DataChange::Migrate => "takes over and migrates the data",
            _ => "takes over",
        };
        self.log.info("data", format!("{} {what}", self.op.to));
        self.has_room()?;
        // Started by the runlevel, from whichever set the link selects by then: who proves them, or goes back, restarts them.
        self.concern_changed();
        let mut reached = record.begin_switch(self.op.clone())?;
        self.store.save(&reached)?;
        let Err(cause) = self.move_over(&mut reached) else {
            return Ok(reached);
        };
        self.log.error(
            "revert",
            format!("giving up {}: {}", self.op.to, cause.message),
        );
        let reverting = reached.begin_revert(self.op.clone(), cause.clone())?;
        self.store.save(&reverting)?;
        let restored = self.take_back(&reverting)?;
        self.select(self.op.from().set)?;
        Ok(restored)
    }
}
