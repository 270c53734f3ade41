//! How a switch ends: the trial is proved and confirmed, or the way back is completed.

use qx_release::error::{Error, ErrorKind, Exit, Result};
use qx_release::manifest::Service;

use super::services::Stop;
use super::{Side, Switch, sides};
use crate::data;
use crate::model::idle::{Idle, Trouble};
use crate::model::moment::Lasted;
use crate::model::operation::{Attempt, Cause, CauseKind, EarlyFailure, OperationKind, return_to};
use crate::model::phase::{DataState, Phase};
use crate::model::record::Record;
use crate::model::refusal::{Refusal, RefusalKind};
use crate::model::slot::{Installed, Set};
use crate::model::watch::{self, Watched};
use crate::proof::prove::{self, Expectation};
use crate::store::{CommitPoint, sets};

impl Switch<'_> {
    /// Resumes a trial that a boot or another process left open: its services may still run the old files.
    pub fn resume_trial(mut self, record: &Record) -> Result<Exit> {
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        if let Err(e) = self.stop_for(self.op.to.set, Stop::IfWrong, &manager) {
            self.log.error("switch", e.chain());
        }
        self.conclude_trial(record)
    }

    /// Steps 9 and 10: the proof, and what follows from it. `record` is in `Trial`.
    pub fn conclude_trial(mut self, record: &Record) -> Result<Exit> {
        self.start_services(self.op.to.set);
        match self.prove(self.op.to.set) {
            Ok(remarks) => self.confirmed(record, &remarks),
            Err(message) if record.is_stale_trial(&self.host.moment()) => Err(Error::with(
                ErrorKind::NeedsPerson,
                format!(
                    "{} is not proved healthy: {message}; its trial is too old to restore the data automatically: \
                     `qx-update rollback --set-aside-data` goes back, `qx-update confirm --force` stays",
                    self.op.to
                ),
            )),
            Err(message) => self.revert(Cause::new(CauseKind::Release, message), record),
        }
    }

    /// The trial succeeded. `remarks` is what a person should know nevertheless.
    pub fn confirmed(self, record: &Record, remarks: &[String]) -> Result<Exit> {
        let op = &self.op;
        let now = self.host.timestamp();
        let idle = match op.kind {
            OperationKind::Data => Idle {
                trouble: None,
                ..op.back()
            },
            _ => {
                let fallback = (op.to.set != Set::Factory).then(|| op.from().clone());
                Idle::on(op.to.clone(), fallback, &now)
            }
        };
        let ended = Attempt {
            unproved: remarks.to_vec(),
            ..op.attempt(Exit::Done, op.undoes.clone(), &now)
        };
        let mut done = record.ended(idle, ended)?;
        // What is known of data that was changed is what the operation says, and nothing else.
        done.schemas.retain(|name, _| !op.changes(name));
        done.schemas.extend(op.schemas.clone());
        let listed = match op.kind {
            OperationKind::Install | OperationKind::Image => op
                .to
                .manifest
                .map_or(Ok(()), |digest| self.store.forget_refusal(digest)),
            OperationKind::Data => Ok(()),
            OperationKind::Rollback | OperationKind::Factory => match &op.undoes {
                Some(why) => self.refuse(op.from(), RefusalKind::Quarantined, why, &now),
                None => self.refuse(op.from(), RefusalKind::Held, "rolled back manually", &now),
            },
        };
        if let Err(e) = listed {
            // A damaged list is no reason to give up a set that is healthy.
            self.log.error("done", e.chain());
        }
        // Without the note what was replaced would be deleted as a copy of an operation that has ended; without the record the
        // trial is still open. Either way the next `confirm` ends it.
        data::keep_replaced(self.host, self.store, op, record)
            .and_then(|()| self.store.save(&done))
            .map_err(|e| e.of(ErrorKind::NeedsPerson))?;
        if let Err(e) = self.begin_watch() {
            self.log.warning("done", e.chain());
        }
        // What cannot be deleted goes when its time has passed.
        if let Err(e) = data::drop_replaced(self.host, self.store, &self.op, self.log) {
            self.log.warning("data", e.chain());
        }
        let op = &self.op;
        let what = match remarks {
            [] => format!("{} runs and is proved healthy", op.to),
            remarks => format!("{} is in place; not proved: {}", op.to, remarks.join("; ")),
        };
        self.log.info("done", what);
        let tidied = self
            .store
            .drop_downloads()
            .and_then(|()| self.store.drop_leftovers())
            .and_then(|()| self.store.prune_seals());
        if let Err(e) = tidied {
            self.log.warning("done", e.chain());
        }
        Ok(Exit::Done)
    }

    /// A release that was installed is watched from here on; whatever was watched before is not.
    fn begin_watch(&self) -> Result<()> {
        let installed = match (self.op.kind, &self.to.manifest, self.op.to.manifest) {
            (OperationKind::Install, Some(manifest), Some(digest)) => Some((manifest, digest)),
            _ => None,
        };
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let Some((manifest, digest)) =
            installed.filter(|(manifest, _)| manifest.watch.for_s > 0 && manager.controls())
        else {
            return self.store.forget_watched();
        };
        let census = self.census(&manager);
        let process = |service: &Service| {
            let seen = census.look(service, self.op.to.set, manifest);
            Some((service.name.clone(), seen.process?.key()))
        };
        let now = self.host.moment();
        self.store.watch(&Watched {
            format: watch::FORMAT,
            manifest: digest,
            for_s: manifest.watch.for_s,
            undo: manifest.watch.undo,
            lasted: Lasted::since(&now),
            boot_id: now.boot_id,
            processes: manifest.services.iter().filter_map(process).collect(),
            problem: None,
        })
    }

    /// Step 10 after a failure: records the intention first, then goes back.
    pub fn revert(mut self, cause: Cause, record: &Record) -> Result<Exit> {
        let what = format!("giving up {}: {}", self.op.to, cause.message);
        self.log.error("revert", what);
        // It is for these records that it was held.
        self.reserve = None;
        let data = record.data();
        let reverting = record.begin_revert(self.op.clone(), cause.clone())?;
        if let Err(e) = self.store.save(&reverting) {
            if data == DataState::Exchanged {
                // Restored under the older record, the data would meet the new set at the next boot. What failed may have
                // reached the medium all the same: what is noted now must not take it back.
                return Err(self.leave_to_a_person(e, &reverting));
            }
            // With the link moved back under the older record, the next boot comes to the same end.
            self.log.error("revert", e.chain());
        }
        self.conclude_revert(&cause, &reverting)
    }

    /// A person abandons the operation in a boot that uses the factory set: the data is restored, and the link stays. The
    /// services that used the data are started again if the factory set accepts it.
    pub fn give_up(mut self, record: &Record) -> Result<Record> {
        let reverting = match record.phase() {
            Phase::Reverting { .. } => record.clone(),
            _ => {
                let cause = Cause::new(CauseKind::Person, "abandoned manually");
                record.begin_revert(self.op.clone(), cause)?
            }
        };
        self.store.save(&reverting)?;
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        self.stop_for(Set::Factory, Stop::Always, &manager)?;
        let restored = self.take_back(&reverting)?;
        if let Err(why) = self.run_again(Set::Factory, &restored) {
            self.log.warning("rollback", why);
        }
        Ok(restored)
    }

    /// The way back cannot be completed: services that use the data stay stopped, and the others run.
    fn leave_to_a_person(&mut self, error: Error, record: &Record) -> Error {
        self.log.error("revert", error.chain());
        self.op
            .ran
            .retain(|name| !self.op.data.iter().any(|set| set.used_by(name)));
        self.start_services(self.home.set);
        let error = Error::with(
            ErrorKind::NeedsPerson,
            format!(
                "going back to {}: services that use the data stay stopped: {}. Fix this, then run `qx-update confirm`",
                self.op.from(),
                error.chain()
            ),
        );
        let failure = EarlyFailure {
            at: self.host.timestamp(),
            result: error.exit(),
            reason: error.chain(),
        };
        if let Err(e) = self.store.save(&record.with_failure(Some(failure))) {
            self.log.error("revert", e.chain());
        }
        error
    }

    /// Completes the way back, whose beginning is durable. From here on failures are reported and the way back goes on,
    /// since services are stopped.
    pub fn conclude_revert(mut self, cause: &Cause, record: &Record) -> Result<Exit> {
        let chosen = sets::choose(self.store, self.op.from(), &record.schemas, self.log);
        if chosen.set != self.home.set {
            self.home = Side::new(chosen.set, self.store, self.log);
        }
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let selected = self.store.selected().selects(chosen.set);
        let saved = record.data() == DataState::Exchanged;
        let when = match selected && !saved {
            true => Stop::IfWrong,
            false => Stop::Always,
        };
        let stopped = self.stop_for(chosen.set, when, &manager);
        if let Err(e) = &stopped {
            self.log.error("revert", e.chain());
        }
        // Data is not restored under those who use it.
        let restored = match stopped {
            Err(e) if saved => Err(e),
            _ => self.take_back(record),
        };
        if !selected && let Err(e) = self.select(chosen.set) {
            // Better the services of a set that is not proved than none; but none on data that is not theirs.
            self.log.error("revert", e.chain());
            if saved {
                return Err(self.leave_to_a_person(e, record));
            }
            self.start_services(self.op.to.set);
            return Err(e.of(ErrorKind::NeedsPerson));
        }
        if !selected {
            self.log
                .info("revert", format!("the priority link selects {chosen}"));
        }
        let record = match restored {
            Ok(record) => record,
            Err(e) => return Err(self.leave_to_a_person(e, record)),
        };
        let healthy = self.run_again(chosen.set, &record);
        self.end_revert(&chosen, healthy, cause, &record)
    }

    /// Starts what may run on the data as it is, and proves it.
    fn run_again(&mut self, set: Set, record: &Record) -> Result<(), String> {
        match sets::fit(self.store, set, &record.schemas).obstacle() {
            None => {
                self.start_services(set);
                self.prove(set).map(drop)
            }
            Some(why) => {
                let ran = std::mem::take(&mut self.op.ran);
                let free = ran.into_iter().filter(|name| !self.op.uses_data(name));
                self.op.ran = free.collect();
                self.start_services(set);
                Err(format!("services that use the data stay stopped: {why}"))
            }
        }
    }

    /// Records how the way back ended.
    fn end_revert(
        &mut self,
        chosen: &Installed,
        healthy: Result<(), String>,
        cause: &Cause,
        record: &Record,
    ) -> Result<Exit> {
        let now = self.host.timestamp();
        let listed = match (self.op.kind, cause.kind) {
            (OperationKind::Install | OperationKind::Image, CauseKind::Release) => {
                Some(RefusalKind::Quarantined)
            }
            (OperationKind::Install, CauseKind::Boots | CauseKind::Person) => {
                Some(RefusalKind::Held)
            }
            _ => None,
        };
        let refused = listed.map_or(Ok(()), |kind| {
            self.refuse(&self.op.to, kind, &cause.message, &now)
        });
        let trouble = healthy.err().map(|why| Trouble {
            what: format!(
                "{chosen} runs again after {} failed, but is not healthy: {why}",
                self.op.to
            ),
            needs_person: true,
        });
        if let Some(trouble) = &trouble {
            self.log.error("revert", trouble.what.clone());
        }
        let exit = match &trouble {
            None => return_to(chosen.set).into(),
            Some(_) => Exit::NeedsPerson,
        };
        let idle = Idle {
            trouble,
            ..match chosen == self.op.from() {
                true => self.op.back(),
                false => Idle::on(chosen.clone(), None, &now),
            }
        };
        let ended = Attempt {
            output: cause.output.clone(),
            ..self.op.attempt(exit, Some(cause.message.clone()), &now)
        };
        let recorded = refused
            .and_then(|()| record.ended(idle, ended))
            .and_then(|ended| self.store.save(&ended));
        match recorded {
            Ok(()) => self.drop_copies(),
            // The set runs all the same; the next boot or `confirm` comes to the same end.
            Err(e) => self.log.error("revert", e.chain()),
        }
        self.log.info("revert", format!("{chosen} runs again"));
        Ok(exit)
    }

    pub(super) fn refuse(
        &self,
        release: &Installed,
        kind: RefusalKind,
        reason: &str,
        now: &str,
    ) -> Result<()> {
        let Some(manifest) = release.manifest else {
            return Ok(());
        };
        self.store.refuse(Refusal {
            manifest,
            version: release.version.clone(),
            kind,
            reason: reason.to_owned(),
            at: now.to_owned(),
        })
    }

    /// Proves that the services of the operation run the files of `set`, and are healthy; and that those which were
    /// restarted along with them run.
    pub(super) fn prove(&mut self, set: Set) -> Result<Vec<String>, String> {
        let (mine, other) = sides(set, &self.to, &self.home);
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let mut remarks = Vec::new();
        if let Some(manifest) = &mine.manifest {
            let services = manifest
                .services
                .iter()
                .filter(|s| self.concerns(&s.name))
                .collect();
            // Where only the data changes what ran before is what is to run.
            let old = self.programs(other).into_iter();
            let old = old
                .filter(|_| other.set != set)
                .map(|(_, file, path)| (file, path))
                .collect();
            let expected = Expectation {
                set,
                manifest,
                other: other.manifest.as_ref(),
                services,
                old,
                idle: &self.op.idle,
                failed_before: &self.op.failed_before,
                way_back: set == self.home.set,
            };
            remarks = prove::prove(&expected, self.store, &manager, self.log)?;
            if manifest.services.is_empty() && manifest.health.is_empty() {
                let what = format!("{set} defines no service and no health check");
                self.log.warning("prove", what.clone());
                remarks.push(what);
            }
        } else {
            let what = format!("{set} has no manifest: its files cannot be verified");
            self.log.warning("prove", what.clone());
            remarks.push(what);
        }
        let along = self
            .op
            .ran
            .iter()
            .filter(|name| manager.controls() && !self.is_gone(name, mine, other));
        for name in along {
            manager
                .runs(name)
                .map_err(|why| format!("service {name} is not running: {why}"))?;
        }
        Ok(remarks)
    }
}
