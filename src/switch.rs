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
use crate::plan::{self, Reserve};
use crate::process::FileId;
use crate::prove::{self, Claim};
use crate::recover;
use crate::service::Manager;
use crate::slot::{Installed, Set};
use crate::state::{
    Cause, CauseKind, DataState, Idle, Operation, OperationKind, Phase, Record, Refusal,
    RefusalKind, Trouble, exit_of_return_to,
};
use crate::store::Store;

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
}

/// One of the two sets of an operation.
struct Side {
    set: Set,
    /// Unknown of a factory set without one.
    manifest: Option<Manifest>,
}

impl Side {
    fn new(set: Set, store: &Store) -> Side {
        let manifest = store
            .manifest(set)
            .ok()
            .flatten()
            .map(|(manifest, _)| manifest);
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
        log.operation(&op.id);
        Switch {
            home: Side::new(op.from().set, store),
            to: Side::new(op.to.set, store),
            host,
            store,
            log,
            op,
        }
    }

    /// Goes over to the new set and proves it, or comes back.
    pub fn run(mut self, record: &Record) -> Result<Exit> {
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        self.op.services =
            plan::changed_services(self.home.manifest.as_ref(), self.to.manifest.as_ref());
        self.add_mismatched(self.to.set, &manager);
        let names: Vec<Name> = self.op.services.iter().map(|s| s.name.clone()).collect();
        let mut ran = manager.started(&names);
        // An attempt that was cut short may have left them stopped; what only the new set has is to be started.
        let stopped = self.op.ran.clone();
        let new = names
            .iter()
            .filter(|name| self.home.manifest.is_some() && !self.home.has(name))
            .cloned();
        for name in stopped.into_iter().chain(new) {
            if !ran.contains(&name) && manager.controls() {
                ran.push(name);
            }
        }
        if ran.is_empty() && manager.controls() && !names.is_empty() {
            // With nothing running there would be nothing to prove.
            self.log.warning(
                "services",
                "none of the services that change runs: all of them will be started",
            );
            ran = names.clone();
        }
        for name in names
            .iter()
            .filter(|name| !ran.contains(name) && manager.controls())
        {
            self.log.warning(
                "services",
                format!("{name} does not run: it stays so, and nothing is proved of it"),
            );
        }
        self.op.ran = ran;
        if let Some(manifest) = &self.home.manifest {
            prove::baseline(self.home.set, manifest, self.store, &manager, self.log);
        }
        // What the way back has to write fits, whatever fills the disk meanwhile.
        let reserve = Reserve::new(&self.store.path("update"), WAY_BACK)?;
        let data = DataState::Untouched;
        let switching = record.with(Phase::Switching {
            op: self.op.clone(),
            data,
        });
        self.store.save(&switching)?;
        let switched = self.go_over(&manager, &switching);
        drop(reserve);
        match switched {
            Ok(trial) => self.conclude_trial(&trial),
            Err((kind, e)) => self.revert(Cause::new(kind, e.chain()), &switching),
        }
    }

    /// Adds the services of a set whose processes run something else, though the two sets agree on them: what runs
    /// counts, not what should (a boot with the factory set, a set that was left because of damage).
    fn add_mismatched(&mut self, set: Set, manager: &Manager) {
        let (side, _) = sides(set, &self.to, &self.home);
        let Some(manifest) = side.manifest.as_ref().filter(|_| manager.controls()) else {
            return;
        };
        let known = |service: &&Service| self.op.services.iter().any(|s| s.name == service.name);
        let mismatched: Vec<Service> = manifest
            .services
            .iter()
            .filter(|service| !known(service))
            .filter(|service| !prove::runs_the_bytes(service, set, manifest, self.store, manager))
            .cloned()
            .collect();
        self.op.services.extend(mismatched);
        self.op.services.sort_by_key(|s| s.order);
    }

    /// Steps 7 and 8. The error says whose fault it is.
    fn go_over(
        &mut self,
        manager: &Manager,
        switching: &Record,
    ) -> Result<Record, (CauseKind, Error)> {
        let appliance = |e: Error| (CauseKind::Appliance, e);
        let boot_id = self.host.boot_id().map_err(appliance)?;
        self.stop_services(manager).map_err(appliance)?;
        let migration = self.to.manifest.as_ref().and_then(|m| m.migrate.as_ref());
        if let (OperationKind::Install, Some(migration), Some(slot)) =
            (self.op.kind, migration, self.op.to.set.slot())
        {
            let slot = self.store.slot(slot);
            migrate::run(migration, &slot, self.op.from(), &self.op.to, self.log)
                .map_err(|e| (CauseKind::Release, e))?;
        }
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
            Err(message) => self.revert(Cause::new(CauseKind::Release, message), record),
        }
    }

    /// The trial ended well.
    pub fn confirmed(self, record: &Record) -> Result<Exit> {
        let op = &self.op;
        let now = self.host.timestamp();
        let fallback = (op.to.set != Set::Factory).then(|| op.from().clone());
        let idle = Idle::on(op.to.clone(), fallback, &now);
        let mut done = record.ended(idle, op.attempt(Exit::Done, None, &now));
        let listed = match op.kind {
            OperationKind::Install => {
                // Going back moves no data.
                let data = self.to.manifest.iter().flat_map(|manifest| &manifest.data);
                done.schemas
                    .extend(data.map(|data| (data.name.clone(), data.leaves)));
                op.to
                    .manifest
                    .map_or(Ok(()), |digest| self.store.pardon(digest))
            }
            OperationKind::Rollback | OperationKind::Factory => self.refuse(
                op.from(),
                RefusalKind::Held,
                "a person rolled it back",
                &now,
            ),
            OperationKind::Image => Ok(()),
        };
        if let Err(e) = listed {
            // A damaged list is no reason to give up a set that is healthy.
            self.log.error("done", e.chain());
        }
        // Without the record the trial is still open, and the next `confirm` ends it.
        self.store
            .save(&done)
            .map_err(|e| e.exiting(Exit::NeedsPerson))?;
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
        if chosen.set != self.home.set {
            self.home = Side::new(chosen.set, self.store);
        }
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        self.add_mismatched(self.home.set, &manager);
        let concerned: Vec<Name> = self.op.services.iter().map(|s| s.name.clone()).collect();
        for name in manager.started(&concerned) {
            if !self.op.ran.contains(&name) {
                self.op.ran.push(name);
            }
        }
        let selected = self.store.link().selects(chosen.set);
        // After a boot the services were started from the chosen set already.
        let wrong = |service: &&Service| match &self.home.manifest {
            Some(manifest) => {
                !prove::runs_the_bytes(service, self.home.set, manifest, self.store, &manager)
            }
            None => true,
        };
        if (!selected
            || self
                .op
                .services
                .iter()
                .filter(|s| self.home.has(&s.name))
                .any(|s| wrong(&s)))
            && let Err(e) = self.stop_services(&manager)
        {
            self.log.error("revert", e.chain());
        }
        if !selected && let Err(e) = self.store.set_link(chosen.set) {
            // Better the services of a set that is not proved than none.
            self.log.error("revert", e.chain());
            self.start_services(self.op.to.set);
            return Err(e.exiting(Exit::NeedsPerson));
        }
        if !selected {
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
            Idle {
                trouble,
                ..self.op.back()
            }
        } else {
            Idle {
                trouble,
                ..Idle::on(chosen.clone(), None, &now)
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
        for name in self.op.ran.iter().rev() {
            let sides = [&self.home, &self.to];
            let programs: Vec<FileId> = sides
                .into_iter()
                .flat_map(|side| self.programs(side))
                .filter(|(service, ..)| service == name)
                .map(|(_, file, _)| file)
                .collect();
            manager.stop(name, &programs, self.log)?;
        }
        Ok(())
    }

    /// Starts the services that ran, as far as this set has them. One that does not start is found by the proof.
    pub fn start_services(&mut self, set: Set) {
        let (mine, other) = sides(set, &self.to, &self.home);
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        for name in &self.op.ran {
            let gone = mine.manifest.is_some() && other.has(name) && !mine.has(name);
            if gone || manager.runs(name).is_ok() {
                continue;
            }
            if let Err(e) = manager.start(name, self.log) {
                self.log.warning("services", e.chain());
            }
        }
    }

    /// Proves that the services of the operation run the files of `set`, and are healthy; and that those which were
    /// restarted along with them run.
    fn prove(&mut self, set: Set) -> Result<(), String> {
        let (mine, other) = sides(set, &self.to, &self.home);
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        if let Some(manifest) = &mine.manifest {
            let services = manifest
                .services
                .iter()
                .filter(|s| self.concerns(&s.name))
                .collect();
            let old = self
                .programs(other)
                .into_iter()
                .map(|(_, file, path)| (file, path))
                .collect();
            let claim = Claim {
                set,
                manifest,
                services,
                old,
            };
            prove::prove(&claim, self.store, &manager, self.log)?;
        } else {
            self.log.warning(
                "prove",
                format!("{set} has no manifest: nothing can be proved of its files"),
            );
        }
        let along = self
            .op
            .ran
            .iter()
            .filter(|name| manager.controls() && (mine.has(name) || !other.has(name)));
        for name in along {
            manager
                .runs(name)
                .map_err(|why| format!("service {name} does not run: {why}"))?;
        }
        Ok(())
    }

    /// Whether a service is restarted because of its files.
    fn concerns(&self, name: &Name) -> bool {
        self.op.ran.contains(name) && self.op.services.iter().any(|s| s.name == *name)
    }

    /// The programs that the operation's services run from a set: whose, and the file. A program that another service
    /// goes on running is none of them.
    fn programs(&self, side: &Side) -> Vec<(Name, FileId, PathBuf)> {
        let Some(manifest) = &side.manifest else {
            return Vec::new();
        };
        let (concerned, others): (Vec<&Service>, Vec<&Service>) = manifest
            .services
            .iter()
            .partition(|s| self.concerns(&s.name));
        let own = concerned
            .into_iter()
            .filter(|s| !others.iter().any(|other| other.runs == s.runs));
        own.filter_map(|service| {
            let path = self.store.component(side.set, manifest.at(&service.runs)?);
            Some((service.name.clone(), FileId::of(&path).ok()?, path))
        })
        .collect()
    }
}
