//! Steps 6 to 10: from a verified set to a proved one, or back. Every step writes its intention before the act, so that
//! whoever comes next, after whatever happened, knows what to undo.

use crate::model::changes;
use crate::store::sets;
use crate::system::space::Reserve;
use std::path::PathBuf;
use std::time::Duration;

use crate::data::migrate::{self, Failure, MigrationRunner};
use crate::data::protect;
use crate::model::record::{
    Attempt, Cause, CauseKind, DataChange, DataState, Failure as Failed, Idle, Lasted, Operation,
    OperationKind, Phase, Record, Refusal, RefusalKind, Trouble, exit_of_return_to,
};
use crate::model::slot::{Installed, Set};
use crate::proof::observe::{Census, State};
use crate::proof::prove::{self, Expectation};
use crate::store::Store;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::proc::{FileId, Identity, Use};
use crate::system::service::Manager;
use qx_release::error::{Context, Error, Exit, Result};
use qx_release::manifest::{Manifest, Migrate, Name, Service};
use qx_release::text;

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
    /// Held for the way back of the data until the trial has ended.
    reserve: Option<Reserve>,
}

/// One of the two sets of an operation.
struct Side {
    set: Set,
    /// Unknown of a factory set without one.
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

/// How far the data's protection is in this record.
fn data_state(record: &Record) -> DataState {
    match record.phase {
        Phase::Switching { data, .. }
        | Phase::Trial { data, .. }
        | Phase::Reverting { data, .. } => data,
        Phase::Idle(_) | Phase::Staging { .. } | Phase::Staged { .. } => DataState::Untouched,
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
            home: Side::new(op.from().set, store, log),
            to: Side::new(op.to.set, store, log),
            host,
            store,
            log,
            op,
            reserve: None,
        }
    }

    /// Goes over to the new set and proves it, or comes back.
    pub fn run(mut self, record: &Record) -> Result<Exit> {
        if let Err(failure) = self.rehearse() {
            return self.reject(&failure, record);
        }
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        self.concern_services(&manager, record);
        // What the way back has to write fits, whatever fills the disk meanwhile.
        self.reserve = Some(Reserve::new(&self.store.path("update"), WAY_BACK)?);
        let mut reached = record.with(Phase::Switching {
            op: self.op.clone(),
            data: DataState::Untouched,
        });
        self.store.save(&reached)?;
        match self.go_over(&manager, &mut reached) {
            Ok(()) => self.conclude_trial(&reached),
            Err(cause) => self.revert(cause, &reached),
        }
    }

    /// Step 6: the migration is tried on a clone of the data, while the old services run.
    fn rehearse(&mut self) -> Result<(), Failure> {
        if self.op.change != DataChange::Migrate || self.op.data.is_empty() {
            return Ok(());
        }
        let (tool, migrate) = tool(self.host, self.store, &self.op, &self.to)?;
        if !migrate.rehearse {
            self.log.info(
                "rehearsal",
                "the release asks for no rehearsal of its migration",
            );
            return Ok(());
        }
        let skipped = protect::rehearse(tool, migrate, self.log)?;
        match skipped {
            Some(why) => self
                .log
                .warning("rehearsal", format!("there is no rehearsal: {why}")),
            None => self.log.info(
                "rehearsal",
                "the migration succeeded on a clone of the data",
            ),
        }
        Ok(())
    }

    /// The release failed before anything was stopped.
    fn reject(self, failure: &Failure, record: &Record) -> Result<Exit> {
        let message = failure.error.chain();
        self.log.error(
            "rehearsal",
            format!("{} is rejected: {message}", self.op.to),
        );
        let now = self.host.timestamp();
        self.refuse(&self.op.to, RefusalKind::Quarantined, &message, &now)?;
        let ended = Attempt {
            output: failure.output.clone(),
            ..self.op.attempt(Exit::Failed, Some(message), &now)
        };
        self.store.save(&record.ended(self.op.back(), ended))?;
        Ok(Exit::Failed)
    }

    /// Which services the switch restarts, which of them run, and which do not and stay so.
    fn concern_services(&mut self, manager: &Manager, record: &Record) {
        let uses_data = |name: &Name| self.op.uses_data(name);
        self.op.services = changes::changed_services(
            self.home.manifest.as_ref(),
            self.to.manifest.as_ref(),
            &uses_data,
        );
        self.add_mismatched(self.to.set, manager);
        if !manager.controls() {
            return;
        }
        let names: Vec<Name> = self.op.services.iter().map(|s| s.name.clone()).collect();
        let mut ran = manager.started(&names);
        ran.extend(self.other_users(manager, &ran));
        // What only the new set has is to be started. What an attempt that was cut short has stopped ran before; and what was
        // held had no chance to run.
        let held = sets::fit(self.store, self.home.set, &record.schemas).obstacle();
        let new = |name: &Name| {
            self.home.manifest.is_some()
                && !self.home.has(name)
                && self.is_gone(name, &self.home, &self.to)
        };
        let wanted = names.iter().filter(|name| held.is_some() || new(name));
        let wanted: Vec<Name> = self.op.ran.iter().chain(wanted).cloned().collect();
        for name in wanted {
            if !ran.contains(&name) {
                ran.push(name);
            }
        }
        let all = self.home.services().iter().chain(self.to.services());
        let mut idle: Vec<Name> = all
            .map(|service| service.name.clone())
            .filter(|name| !ran.contains(name))
            .collect();
        idle.sort();
        idle.dedup();
        let started = manager.started(&idle);
        idle.retain(|name| !started.contains(name));
        for name in &idle {
            let what = format!("{name} does not run: it stays so, and nothing is proved of it");
            self.log.warning("services", what);
        }
        self.op.ran = ran;
        self.op.idle = idle;
    }

    /// Restarts the services of the active set that still use the slot which the new release needs, before that goes. What they
    /// must run is in place already. Returns the operation, its services as before.
    pub fn vacate(mut self, users: &[Use], record: &Record) -> Result<Operation> {
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let census = self.census(&manager);
        let mut names: Vec<Name> = Vec::new();
        for Use { process, path } in users {
            match census.owner(process.pid).filter(|_| manager.controls()) {
                Some(name) if names.contains(name) => {}
                Some(name) => names.push(name.clone()),
                None => {
                    let what = format!(
                        "planning {}: its space is needed, and process {} ({}) still uses {}: end it, or make room",
                        self.op.to,
                        process.pid,
                        self.host.proc().executable_name(process.pid),
                        text::path(path)
                    );
                    return Err(Error::with(Exit::NoSpace, what));
                }
            }
        }
        let services = self.home.services().iter();
        let services = services.filter(|s| names.contains(&s.name));
        self.op.services = services.cloned().collect();
        self.op.ran = manager.started(&names);
        // Whoever comes next starts what was stopped.
        let staging = Phase::Staging {
            op: self.op.clone(),
        };
        self.store.save(&record.with(staging))?;
        let stopped = self.stop_services(&manager);
        self.start_services(self.home.set);
        let proved = self.prove(self.home.set).map_err(Error::new);
        stopped
            .and(proved)
            .map_err(|e| e.exiting(Exit::NeedsPerson))
            .doing(|| format!("giving up the slot of {} for its space", self.op.to))?;
        self.op.ran = Vec::new();
        Ok(self.op)
    }

    /// Services that use the data, are in neither set, and run.
    fn other_users(&self, manager: &Manager, known: &[Name]) -> Vec<Name> {
        let named = self
            .op
            .data
            .iter()
            .flat_map(|set| set.services.iter().flatten());
        let mut others: Vec<Name> = named
            .filter(|name| !self.home.has(name) && !self.to.has(name) && !known.contains(name))
            .cloned()
            .collect();
        others.sort();
        others.dedup();
        let mut ran = manager.started(&others);
        ran.retain(|name| !known.contains(name));
        ran
    }

    /// Adds the services of a set whose processes run something else, though the two sets agree on them (a boot with the
    /// factory set, a set that was left because of damage); and those that still use what a slot held before: what runs counts,
    /// not what should.
    fn add_mismatched(&mut self, set: Set, manager: &Manager) {
        let (side, _) = sides(set, &self.to, &self.home);
        let Some(manifest) = side.manifest.as_ref().filter(|_| manager.controls()) else {
            return;
        };
        let census = self.census(manager);
        let users = self.store.users(&self.store.kept());
        let outdated = |service: &Service| {
            let own = census.own(&service.name).unwrap_or_default();
            let uses = |process: &Identity| users.iter().any(|u| u.process == *process);
            census.look(service, set, manifest).state == State::Other || own.iter().any(uses)
        };
        let known = |service: &&Service| self.op.services.iter().any(|s| s.name == service.name);
        let more: Vec<Service> = manifest
            .services
            .iter()
            .filter(|service| !known(service) && outdated(service))
            .cloned()
            .collect();
        self.op.services.extend(more);
        self.op.services.sort_by_key(|s| s.order);
    }

    /// Who runs, of both sets and of those that are stopped besides.
    fn census<'c>(&self, manager: &'c Manager<'c>) -> Census<'c>
    where
        'a: 'c,
    {
        let sides = [&self.to, &self.home];
        let manifests: Vec<&Manifest> = sides
            .into_iter()
            .filter_map(|s| s.manifest.as_ref())
            .collect();
        Census::take(&manifests, &self.op.ran, self.store, manager)
    }

    /// Steps 7 and 8. `reached` is the record as far as it came.
    fn go_over(&mut self, manager: &Manager, reached: &mut Record) -> Result<(), Cause> {
        self.stop_services(manager)
            .map_err(|e| Cause::new(CauseKind::Appliance, e.chain()))?;
        self.move_over(reached)
    }

    /// The data and the link, with the services down.
    fn move_over(&mut self, reached: &mut Record) -> Result<(), Cause> {
        let appliance = |e: Error| Cause::new(CauseKind::Appliance, e.chain());
        let boot_id = self.host.boot_id().map_err(appliance)?;
        self.change_data(reached)?;
        self.store.set_link(self.op.to.set).map_err(appliance)?;
        self.log.info(
            "switch",
            format!("the priority link selects {}", self.op.to),
        );
        let trial = reached.with(Phase::Trial {
            op: self.op.clone(),
            data: data_state(reached),
            boots: 0,
            boot_id,
            since: self.host.timestamp(),
            lasted: Some(Lasted::since(&self.host.moment())),
        });
        self.store.save(&trial).map_err(appliance)?;
        *reached = trial;
        Ok(())
    }

    /// Step 7: saves the data, records that, and only then changes it.
    fn change_data(&mut self, reached: &mut Record) -> Result<(), Cause> {
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
            let saved = reached.with(Phase::Switching {
                op: self.op.clone(),
                data: DataState::Saved,
            });
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
            migrate::end_orphans(&self.op.id, self.host.proc(), self.log).map_err(Failure::from);
        migrated.and(ended).map_err(release)
    }

    /// Steps 7 and 8 at boot: nothing that uses the data has been started, and services are left to the runlevel. Returns
    /// the record, in `Trial`, or in `Reverting` with the data restored.
    pub fn at_boot(mut self, record: &Record) -> Result<Record> {
        let what = format!("{} takes over, and migrates the data", self.op.to);
        self.log.info("data", what);
        let mut reached = record.with(Phase::Switching {
            op: self.op.clone(),
            data: DataState::Untouched,
        });
        self.store.save(&reached)?;
        let Err(cause) = self.move_over(&mut reached) else {
            return Ok(reached);
        };
        self.log.error(
            "revert",
            format!("{} is given up: {}", self.op.to, cause.message),
        );
        let reverting = record.with(Phase::Reverting {
            op: self.op.clone(),
            data: data_state(&reached),
            cause: cause.clone(),
        });
        self.store.save(&reverting)?;
        let restored = self.restore(&cause, &reverting)?;
        self.store.set_link(self.op.from().set)?;
        Ok(restored)
    }

    /// A trial that a boot or another process left: its services may run from where they did before.
    pub fn resume_trial(mut self, record: &Record) -> Result<Exit> {
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        if let Err(e) = self.stop_if_wrong(self.op.to.set, false, &manager) {
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
                Exit::NeedsPerson,
                format!(
                    "{} is not proved healthy: {message}; its trial is too old for its data to be restored unasked: \
                     `qx-update rollback --discard-data` goes back, `qx-update confirm --force` stays",
                    self.op.to
                ),
            )),
            Err(message) => self.revert(Cause::new(CauseKind::Release, message), record),
        }
    }

    /// The trial ended well.
    /// `remarks` is what a person should know all the same.
    pub fn confirmed(self, record: &Record, remarks: &[String]) -> Result<Exit> {
        let op = &self.op;
        let now = self.host.timestamp();
        let fallback = (op.to.set != Set::Factory).then(|| op.from().clone());
        let idle = Idle::on(op.to.clone(), fallback, &now);
        let ended = Attempt {
            unproved: remarks.to_vec(),
            ..op.attempt(Exit::Done, None, &now)
        };
        let mut done = record.ended(idle, ended);
        done.schemas.extend(op.schemas.clone());
        if op.change == DataChange::Discard {
            done.schemas.retain(|name, _| op.schemas.contains_key(name));
        }
        let listed = match op.kind {
            OperationKind::Install | OperationKind::Image => op
                .to
                .manifest
                .map_or(Ok(()), |digest| self.store.forget_refusal(digest)),
            OperationKind::Rollback | OperationKind::Factory => self.refuse(
                op.from(),
                RefusalKind::Held,
                "a person rolled it back",
                &now,
            ),
        };
        if let Err(e) = listed {
            // A damaged list is no reason to give up a set that is healthy.
            self.log.error("done", e.chain());
        }
        // Without the record the trial is still open, and the next `confirm` ends it.
        self.store
            .save(&done)
            .map_err(|e| e.exiting(Exit::NeedsPerson))?;
        let what = match remarks {
            [] => format!("{} runs and is proved healthy", op.to),
            remarks => format!("{} is in place; not proved: {}", op.to, remarks.join("; ")),
        };
        self.log.info("done", what);
        let tidied = self
            .store
            .drop_snapshot()
            .and_then(|()| self.store.drop_downloads())
            .and_then(|()| self.store.drop_leftovers())
            .and_then(|()| self.store.prune_seals());
        if let Err(e) = tidied {
            self.log.warning("done", e.chain());
        }
        Ok(Exit::Done)
    }

    /// Step 10, the other way: the intention first, then back.
    pub fn revert(mut self, cause: Cause, record: &Record) -> Result<Exit> {
        let what = format!("{} is given up: {}", self.op.to, cause.message);
        self.log.error("revert", what);
        let data = data_state(record);
        let reverting = record.with(Phase::Reverting {
            op: self.op.clone(),
            data,
            cause: cause.clone(),
        });
        if let Err(e) = self.store.save(&reverting) {
            if data == DataState::Saved {
                // Restored under the older record, the data would meet the new set at the next boot.
                return Err(self.leave_to_a_person(e, record));
            }
            // With the link moved back under the older record, the next boot comes to the same end.
            self.log.error("revert", e.chain());
        }
        self.conclude_revert(&cause, &reverting)
    }

    /// What has been saved is restored, durably, before anything else: the record that it returns says so. The data's users
    /// are down.
    pub fn restore(&mut self, cause: &Cause, record: &Record) -> Result<Record> {
        if data_state(record) != DataState::Saved {
            return Ok(record.clone());
        }
        self.reserve = None;
        migrate::end_orphans(&self.op.id, self.host.proc(), self.log)?;
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
        let restored = record.with(Phase::Reverting {
            op: self.op.clone(),
            data: DataState::Restored,
            cause: cause.clone(),
        });
        self.store.save(&restored)?;
        Ok(restored)
    }

    /// The way back cannot be gone to its end: what uses the data stays down, and the rest runs.
    fn leave_to_a_person(&mut self, error: Error, record: &Record) -> Error {
        self.log.error("revert", error.chain());
        self.op
            .ran
            .retain(|name| !self.op.data.iter().any(|set| set.used_by(name)));
        self.start_services(self.home.set);
        let error = Error::with(
            Exit::NeedsPerson,
            format!(
                "going back to {}: services that use the data stay stopped: {}. Fix this, then run `qx-update confirm`",
                self.op.from(),
                error.chain()
            ),
        );
        let failed = Record {
            failure: Some(Failed {
                at: self.host.timestamp(),
                result: error.exit,
                reason: error.chain(),
            }),
            ..record.clone()
        };
        if let Err(e) = self.store.save(&failed) {
            self.log.error("revert", e.chain());
        }
        error
    }

    /// Services are stopped if one of them runs other bytes than this set's: after a boot they may have been started from
    /// the right one already.
    fn stop_if_wrong(&mut self, set: Set, anyway: bool, manager: &Manager) -> Result<()> {
        self.add_mismatched(set, manager);
        let concerned: Vec<Name> = self.op.services.iter().map(|s| s.name.clone()).collect();
        let mut ran = manager.started(&concerned);
        ran.extend(self.other_users(manager, &ran));
        for name in ran {
            if !self.op.ran.contains(&name) {
                self.op.ran.push(name);
            }
        }
        let (side, _) = sides(set, &self.to, &self.home);
        let census = self.census(manager);
        let wrong = |service: &&Service| match &side.manifest {
            Some(manifest) => census.look(service, set, manifest).state == State::Other,
            None => true,
        };
        let services = self.op.services.iter();
        if anyway || services.filter(|s| side.has(&s.name)).any(|s| wrong(&s)) {
            self.stop_services(manager)?;
        }
        Ok(())
    }

    /// The way back to its end. Its beginning is durable; from here on what fails is told, and the way is gone on:
    /// services are down.
    pub fn conclude_revert(mut self, cause: &Cause, record: &Record) -> Result<Exit> {
        let chosen = sets::choose(self.store, self.op.from(), &record.schemas, self.log);
        if chosen.set != self.home.set {
            self.home = Side::new(chosen.set, self.store, self.log);
        }
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let selected = self.store.link().selects(chosen.set);
        let saved = data_state(record) == DataState::Saved;
        let stopped = self.stop_if_wrong(chosen.set, !selected || saved, &manager);
        if let Err(e) = &stopped {
            self.log.error("revert", e.chain());
        }
        // Data is not restored under those who use it.
        let restored = match stopped {
            Err(e) if saved => Err(e),
            _ => self.restore(cause, record),
        };
        if !selected && let Err(e) = self.store.set_link(chosen.set) {
            // Better the services of a set that is not proved than none; but none on data that is not theirs.
            self.log.error("revert", e.chain());
            if saved {
                return Err(self.leave_to_a_person(e, record));
            }
            self.start_services(self.op.to.set);
            return Err(e.exiting(Exit::NeedsPerson));
        }
        if !selected {
            self.log
                .info("revert", format!("the priority link selects {chosen}"));
        }
        let record = match restored {
            Ok(record) => record,
            Err(e) => return Err(self.leave_to_a_person(e, record)),
        };
        let unfit = sets::fit(self.store, chosen.set, &record.schemas).obstacle();
        let healthy = match &unfit {
            None => {
                self.start_services(chosen.set);
                self.prove(chosen.set).map(drop)
            }
            Some(why) => {
                let ran = std::mem::take(&mut self.op.ran);
                let free = ran.into_iter().filter(|name| !self.op.uses_data(name));
                self.op.ran = free.collect();
                self.start_services(chosen.set);
                Err(format!("services that use the data stay stopped: {why}"))
            }
        };
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
        let ended = Attempt {
            output: cause.output.clone(),
            ..self.op.attempt(exit, Some(cause.message.clone()), &now)
        };
        let told = refused
            .and_then(|()| self.store.save(&record.ended(idle, ended)))
            .and_then(|()| self.store.drop_snapshot());
        if let Err(e) = told {
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

    fn manager<'m>(&self, how: &'m crate::model::config::Services) -> Manager<'m>
    where
        'a: 'm,
    {
        Manager::new(
            how,
            self.host,
            Duration::from_secs(self.op.service_timeout_s),
        )
    }

    /// Stops the services that ran, and looks whether they have stopped: of their own processes none remains. What is no
    /// release's is not ours to kill.
    fn stop_services(&mut self, manager: &Manager) -> Result<()> {
        let census = self.census(manager);
        let ours = |name: &Name| self.to.has(name) || self.home.has(name);
        for name in self.op.ran.iter().rev() {
            let own = census.own(name).filter(|_| ours(name));
            let told = manager.stop(name, own.clone().unwrap_or_default(), self.log)?;
            if !told && own.is_none() && self.op.uses_data(name) {
                return Err(Error::new(format!(
                    "stopping services: {name} uses the data, its stop command failed, and it may still run"
                )));
            }
        }
        // Something may have started one of them again meanwhile. It is ended once more; that is all that can be done.
        for again in [true, false] {
            let census = self.census(manager);
            let mut left = Vec::new();
            for name in &self.op.ran {
                let own = census.own(name).unwrap_or_default();
                let Some(process) = own.first() else {
                    continue;
                };
                let (pid, runs) = (process.pid, self.host.proc().executable_name(process.pid));
                let what = format!(
                    "stopping services: {name} still runs, or runs again: process {pid} ({runs})"
                );
                match (ours(name), again) {
                    (true, true) => left.extend(own),
                    (false, _) if !self.op.uses_data(name) => {}
                    _ => return Err(Error::new(what)),
                }
            }
            if left.is_empty() {
                break;
            }
            manager.end(left, self.log)?;
        }
        Ok(())
    }

    /// Starts the services that ran, as far as this set has them. Whether one runs already is told by its processes, where they
    /// can be known: a service manager may be wrong. One that does not start is found by the proof.
    pub fn start_services(&mut self, set: Set) {
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let (mine, other) = sides(set, &self.to, &self.home);
        let programs = self.programs(other);
        let old = |own: &[Identity]| {
            let file = |process: &Identity| self.host.proc().file(process.pid);
            own.iter()
                .filter_map(file)
                .any(|file| programs.iter().any(|(_, old, _)| *old == file))
        };
        for name in &self.op.ran {
            if self.is_gone(name, mine, other) {
                continue;
            }
            let runs = match self.census(&manager).own(name) {
                Some(own) if old(&own) => {
                    // The switch had stopped it: somebody has started the old program again.
                    if let Err(e) = manager.stop(name, own, self.log) {
                        self.log.warning("services", e.chain());
                    }
                    false
                }
                Some(own) => !own.is_empty(),
                None => manager.runs(name).is_ok(),
            };
            if runs {
                continue;
            }
            if let Err(e) = manager.start(name, self.log) {
                self.log.warning("services", e.chain());
            }
        }
    }

    /// Proves that the services of the operation run the files of `set`, and are healthy; and that those which were
    /// restarted along with them run.
    fn prove(&mut self, set: Set) -> Result<Vec<String>, String> {
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
            let old = self
                .programs(other)
                .into_iter()
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
                let what = format!("{set} names no service and no health check");
                self.log.warning("prove", what.clone());
                remarks.push(what);
            }
        } else {
            let what = format!("{set} has no manifest: nothing can be proved of its files");
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
                .map_err(|why| format!("service {name} does not run: {why}"))?;
        }
        Ok(remarks)
    }

    /// Whether a service of the other set has nothing to run in this one. It is enough that there is a program: an image's
    /// manifest need not list what its init scripts start.
    fn is_gone(&self, name: &Name, mine: &Side, other: &Side) -> bool {
        let theirs = other.services().iter().find(|s| s.name == *name);
        let (Some(service), Some(manifest)) = (theirs, &mine.manifest) else {
            return false;
        };
        if mine.has(name) {
            return false;
        }
        let of_other = other.manifest.as_ref().and_then(|m| m.at(&service.runs));
        let places = [manifest.at(&service.runs), of_other].into_iter().flatten();
        let in_image = |component| self.store.component(Set::Factory, component);
        let there = places
            .filter_map(|c| in_image(c).ok())
            .any(|path| path.exists());
        manifest.removed.contains(&service.runs) || !there
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
            let component = manifest.at(&service.runs)?;
            let path = self.store.component(side.set, component).ok()?;
            Some((service.name.clone(), FileId::of(&path).ok()?, path))
        })
        .collect()
    }
}
