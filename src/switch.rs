//! Steps 6 to 10: from a verified set to a proved one, or back. Every step writes its intention before the act, so that
//! whoever comes next, after whatever happened, knows what to undo.

use std::path::PathBuf;
use std::time::Duration;

use crate::durable;
use crate::error::{Error, Exit, Result};
use crate::host::Host;
use crate::log::Log;
use crate::manifest::{Manifest, Name, Service};
use crate::migrate;
use crate::plan;
use crate::process::{self, FileId};
use crate::prove::{self, Claim};
use crate::recover;
use crate::service::Manager;
use crate::slot::{Installed, Set};
use crate::state::{
    Cause, CauseKind, DataState, Idle, Operation, OperationKind, Phase, Record, Refusal,
    RefusalKind, Trouble, exit_of_return_to,
};
use crate::store::Store;

/// An operation whose set is complete and verified.
pub struct Switch<'a> {
    host: &'a Host,
    store: &'a Store,
    log: &'a mut Log,
    op: Operation,
    from: Option<Manifest>,
    to: Option<Manifest>,
}

impl<'a> Switch<'a> {
    /// The operation, with the manifests of the two sets as far as they have one.
    pub fn new(host: &'a Host, store: &'a Store, log: &'a mut Log, op: Operation) -> Switch<'a> {
        let manifest = |set: Set| {
            store
                .manifest(set)
                .ok()
                .flatten()
                .map(|(manifest, _)| manifest)
        };
        log.operation(&op.id);
        Switch {
            from: manifest(op.from().set),
            to: manifest(op.to.set),
            host,
            store,
            log,
            op,
        }
    }

    /// Goes over to the new set and proves it, or comes back.
    pub fn run(mut self, record: &Record) -> Result<Exit> {
        self.op.services = plan::changed_services(self.from.as_ref(), self.to.as_ref());
        let names: Vec<Name> = self.op.services.iter().map(|s| s.name.clone()).collect();
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        self.op.ran = manager.started(&names);
        if let Some(manifest) = &self.from {
            prove::baseline(self.op.from().set, manifest, self.store, &manager, self.log);
        }
        let data = DataState::Untouched;
        let switching = record.with(Phase::Switching {
            op: self.op.clone(),
            data,
        });
        self.store.save(&switching)?;
        match self.go_over(&manager, &switching) {
            Ok(trial) => self.conclude_trial(&trial),
            Err((kind, e)) => self.revert(
                Cause {
                    kind,
                    message: e.chain(),
                },
                &switching,
            ),
        }
    }

    /// Steps 7 and 8. The error says whose fault it is.
    fn go_over(
        &mut self,
        manager: &Manager,
        switching: &Record,
    ) -> Result<Record, (CauseKind, Error)> {
        let appliance = |e: Error| (CauseKind::Appliance, e);
        self.stop_services(manager).map_err(appliance)?;
        let migration = self.to.as_ref().and_then(|m| m.migrate.as_ref());
        if let (OperationKind::Install, Some(migration), Some(slot)) =
            (self.op.kind, migration, self.op.to.set.slot())
        {
            let slot = self.store.slot(slot);
            migrate::run(migration, &slot, self.op.from(), &self.op.to, self.log)
                .map_err(|e| (CauseKind::Release, e))?;
        }
        let boot_id = self.host.boot_id().map_err(appliance)?;
        self.store.set_link(self.op.to.set).map_err(appliance)?;
        self.log.info(
            "switch",
            format!("the priority link selects {}", self.op.to),
        );
        let trial = switching.with(Phase::Trial {
            op: self.op.clone(),
            data: DataState::Untouched,
            boots: 0,
            boot_id,
            since: self.host.timestamp(),
        });
        self.store.save(&trial).map_err(appliance)?;
        Ok(trial)
    }

    /// Steps 9 and 10: the proof, and what follows from it. `record` is in `Trial`.
    pub fn conclude_trial(mut self, record: &Record) -> Result<Exit> {
        self.start_services(self.op.to.set);
        match self.prove(self.op.to.set) {
            Ok(()) => self.confirmed(record),
            Err(message) => self.revert(
                Cause {
                    kind: CauseKind::Release,
                    message,
                },
                record,
            ),
        }
    }

    /// The trial ended well.
    pub fn confirmed(self, record: &Record) -> Result<Exit> {
        let op = &self.op;
        let now = self.host.timestamp();
        let idle = Idle {
            active: op.to.clone(),
            fallback: (op.to.set != Set::Factory).then(|| op.from().clone()),
            since: now.clone(),
            trouble: None,
        };
        let mut done = record.ended(idle, op.attempt(Exit::Done, None, &now));
        if let Some(manifest) = &self.to {
            let left = manifest
                .data
                .iter()
                .map(|data| (data.name.clone(), data.leaves));
            done.schemas.extend(left);
        }
        match op.kind {
            OperationKind::Install => {
                if let Some(digest) = op.to.manifest {
                    self.store.pardon(digest)?;
                }
            }
            OperationKind::Rollback | OperationKind::Factory => {
                self.refuse(
                    op.from(),
                    RefusalKind::Held,
                    "a person rolled it back",
                    &now,
                )?;
            }
        }
        self.store.save(&done)?;
        self.log
            .info("done", format!("{} runs and is proved healthy", op.to));
        let downloads = self.store.path("update/downloads");
        let tidied = durable::remove_tree(&downloads).and_then(|()| self.store.prune_seals());
        if let Err(e) = tidied {
            self.log.warning("done", e.chain());
        }
        Ok(Exit::Done)
    }

    /// Step 10, the other way: the intention first, then back.
    fn revert(self, cause: Cause, record: &Record) -> Result<Exit> {
        self.log.error(
            "revert",
            format!("{} is given up: {}", self.op.to, cause.message),
        );
        let data = DataState::Untouched;
        let reverting = record.with(Phase::Reverting {
            op: self.op.clone(),
            data,
            cause: cause.clone(),
        });
        if let Err(e) = self.store.save(&reverting) {
            // With the link moved back under the older record, the next boot comes to the same end.
            self.log.error("revert", e.chain());
        }
        self.conclude_revert(&cause, &reverting)
    }

    /// The way back to its end. Its beginning is durable; from here on what fails is told, and the way is gone on:
    /// services are down.
    pub fn conclude_revert(mut self, cause: &Cause, record: &Record) -> Result<Exit> {
        let chosen = recover::choose(self.store, self.op.from(), self.log);
        let selected = self.store.link().selects(chosen.set);
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        // After a boot the services were started from the chosen set already.
        let left = |(file, _): &(FileId, PathBuf)| !process::running(*file).is_empty();
        if (!selected || self.files_of(self.op.to.set).iter().any(left))
            && let Err(e) = self.stop_services(&manager)
        {
            self.log.error("revert", e.chain());
        }
        if !selected {
            self.store
                .set_link(chosen.set)
                .map_err(|e| e.exiting(Exit::NeedsPerson))?;
            self.log
                .info("revert", format!("the priority link selects {chosen}"));
        }
        self.start_services(chosen.set);
        let healthy = self.prove(chosen.set);
        let now = self.host.timestamp();
        let refused = match (self.op.kind, cause.kind) {
            (OperationKind::Install, CauseKind::Release) => {
                self.refuse(&self.op.to, RefusalKind::Quarantined, &cause.message, &now)
            }
            (OperationKind::Install, CauseKind::Boots) => {
                self.refuse(&self.op.to, RefusalKind::Held, &cause.message, &now)
            }
            _ => Ok(()),
        };
        let (exit, trouble) = match healthy {
            Ok(()) => (exit_of_return_to(chosen.set), None),
            Err(why) => {
                let what = format!(
                    "{chosen} runs again after {} failed, and is not healthy: {why}",
                    self.op.to
                );
                self.log.error("revert", what.clone());
                (
                    Exit::NeedsPerson,
                    Some(Trouble {
                        what,
                        needs_person: true,
                    }),
                )
            }
        };
        let idle = if chosen == *self.op.from() {
            self.op.back(trouble)
        } else {
            Idle {
                active: chosen.clone(),
                fallback: None,
                since: now.clone(),
                trouble,
            }
        };
        let ended = self.op.attempt(exit, Some(cause.message.clone()), &now);
        if let Err(e) = refused.and_then(|()| self.store.save(&record.ended(idle, ended))) {
            // The set runs all the same; the next boot or `confirm` comes to the same end.
            self.log.error("revert", e.chain());
        }
        self.log.info("revert", format!("{chosen} runs again"));
        Ok(exit)
    }

    fn refuse(
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

    fn manager<'m>(&self, how: &'m crate::config::Services) -> Manager<'m>
    where
        'a: 'm,
    {
        Manager::new(
            how,
            self.host,
            Duration::from_secs(self.op.service_timeout_s),
        )
    }

    fn stop_services(&mut self, manager: &Manager) -> Result<()> {
        self.op
            .ran
            .iter()
            .rev()
            .try_for_each(|name| manager.stop(name, self.log))
    }

    /// Starts the services that ran, as far as this set has them. One that does not start is found by the proof.
    pub fn start_services(&mut self, set: Set) {
        let (mine, theirs) = if set == self.op.to.set {
            (&self.to, &self.from)
        } else {
            (&self.from, &self.to)
        };
        let has =
            |manifest: &Manifest, name: &Name| manifest.services.iter().any(|s| s.name == *name);
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        for name in &self.op.ran {
            let gone = matches!((mine, theirs), (Some(mine), Some(theirs)) if has(theirs, name) && !has(mine, name));
            if gone || manager.runs(name).is_ok() {
                continue;
            }
            if let Err(e) = manager.start(name, self.log) {
                self.log.warning("services", e.chain());
            }
        }
    }

    /// Proves that the services of the operation run the files of `set`, and are healthy.
    fn prove(&mut self, set: Set) -> Result<(), String> {
        let (mine, other) = if set == self.op.to.set {
            (&self.to, self.op.from().set)
        } else {
            (&self.from, self.op.to.set)
        };
        let fresh;
        let manifest = match mine {
            Some(manifest) if set == self.op.to.set || set == self.op.from().set => Some(manifest),
            // Neither of the two: the factory set, because what ran before no longer verifies.
            _ => {
                fresh = self
                    .store
                    .manifest(set)
                    .ok()
                    .flatten()
                    .map(|(manifest, _)| manifest);
                fresh.as_ref()
            }
        };
        let Some(manifest) = manifest else {
            self.log.warning(
                "prove",
                format!("{set} has no manifest: nothing can be proved of it"),
            );
            return Ok(());
        };
        let services: Vec<&Service> = manifest
            .services
            .iter()
            .filter(|s| self.concerns(&s.name))
            .collect();
        let claim = Claim {
            set,
            manifest,
            services,
            old: self.files_of(other),
        };
        let how = self.op.manager.clone();
        let manager = Manager::new(
            &how,
            self.host,
            Duration::from_secs(self.op.service_timeout_s),
        );
        prove::prove(&claim, self.store, &manager, self.log)
    }

    /// Whether a service was stopped, because its files change.
    fn concerns(&self, name: &Name) -> bool {
        self.op.ran.contains(name) && self.op.services.iter().any(|s| s.name == *name)
    }

    /// The programs that the operation's services run from one of its two sets.
    fn files_of(&self, set: Set) -> Vec<(FileId, PathBuf)> {
        let manifest = if set == self.op.to.set {
            &self.to
        } else {
            &self.from
        };
        let Some(manifest) = manifest else {
            return Vec::new();
        };
        let concerned = manifest.services.iter().filter(|s| self.concerns(&s.name));
        concerned
            .filter_map(|service| {
                let path = self.store.component(set, manifest.at(&service.runs)?);
                Some((FileId::of(&path).ok()?, path))
            })
            .collect()
    }
}
