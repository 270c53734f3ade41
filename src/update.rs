//! The procedure: what happens in which order. The steps themselves are elsewhere; the crate's documentation numbers
//! them.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use semver::Version;

use crate::config::Config;
use crate::durable;
use crate::error::{Context, Error, Exit, Result};
use crate::fetch::{Options, Source};
use crate::host::Host;
use crate::log::Log;
use crate::manifest::{Component, Kind, Manifest, Name, Service};
use crate::migrate;
use crate::plan::{self, Ground, Origin, Plan};
use crate::process::FileId;
use crate::prove::{self, Claim};
use crate::recover;
use crate::repository::Repository;
use crate::select::{self, Candidate, Choice, Request};
use crate::service::Manager;
use crate::slot::{Installed, Set, Slot};
use crate::state::{
    Attempt, Cause, CauseKind, DataState, Idle, Operation, OperationKind, Phase, Record, Refusal,
    RefusalKind, Trouble, exit_of_return_to,
};
use crate::store::{self, Lock, Store};
use crate::tree;
use crate::unpack;

/// The appliance, as the procedure needs it.
pub struct Appliance {
    /// The machine.
    pub host: Host,
    /// What the appliance decides.
    pub config: Config,
    /// What lies under the data directory.
    pub store: Store,
    /// The update log.
    pub log: Log,
}

/// Where a person wants to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// The set that ran before.
    Previous,
    /// The factory set.
    Factory,
}

/// What `apply` is asked for.
#[derive(Debug, Default)]
pub struct Apply {
    /// This version instead of the highest eligible one.
    pub version: Option<Version>,
    /// A URL or a directory instead of the configured source.
    pub from: Option<String>,
    /// Show the plan and change nothing.
    pub dry_run: bool,
    /// Try the named version even if it is quarantined or held.
    pub retry: bool,
}

impl Appliance {
    /// Installs the highest eligible release, and proves it.
    pub fn apply(&mut self, request: &Apply) -> Result<Exit> {
        let (lock, record) = self.begin("apply")?;
        let record = match self.resume(record)? {
            Resumed::Ready(record) => record,
            Resumed::Failed(exit) => return Ok(exit),
        };
        let result = self.install(request, &record, &lock);
        if let Err(e) = &result
            && !request.dry_run
        {
            self.remember_failure(&record, e);
        }
        result
    }

    /// Whether a release could be installed: [`Exit::Available`], [`Exit::NothingNewer`], or an error.
    pub fn check(&mut self, from: Option<&str>) -> Result<Exit> {
        self.store.prepare()?;
        let _lock = self.store.lock("check")?;
        let record = self.current_record();
        let (repository, source) = self.refresh(from)?;
        let request = Request {
            version: None,
            retry: false,
        };
        match self.select(&repository, &source, &record, &request)? {
            Choice::NothingNewer(running) => {
                self.log
                    .info("select", format!("nothing newer than {running} is offered"));
                Ok(Exit::NothingNewer)
            }
            Choice::Take(candidate) => {
                let manifest = &candidate.manifest;
                self.log.info(
                    "select",
                    format!(
                        "{} {} is available (running: {})",
                        manifest.product,
                        manifest.version,
                        running(&record)
                    ),
                );
                Ok(Exit::Available)
            }
        }
    }

    /// Goes back to the previous release or the factory set because a person says so.
    pub fn rollback(&mut self, back: Back) -> Result<Exit> {
        let (_lock, record) = self.begin("rollback")?;
        let record = match self.resume(record)? {
            Resumed::Ready(record) => record,
            Resumed::Failed(exit) => return Ok(exit),
        };
        let idle = idle_of(&record);
        if idle.active.set == Set::Factory {
            self.log.info(
                "rollback",
                format!(
                    "{} runs already; there is nothing to go back to",
                    idle.active
                ),
            );
            return Ok(Exit::NothingNewer);
        }
        let wanted = match back {
            Back::Previous => idle
                .fallback
                .clone()
                .unwrap_or_else(|| self.store.factory().0),
            Back::Factory => self.store.factory().0,
        };
        let to = recover::choose(&self.store, &wanted, &mut self.log);
        if to != wanted && back == Back::Previous {
            return Err(Error::new(format!(
                "going back to {wanted}: it no longer verifies; `rollback --to factory` goes back to the factory set"
            )));
        }
        let kind = if to.set == Set::Factory {
            OperationKind::Factory
        } else {
            OperationKind::Rollback
        };
        let op = self.operation(kind, idle, to)?;
        self.log.operation(&op.id);
        self.log.info(
            "rollback",
            format!(
                "going back from {} to {}, as a person asked",
                op.from(),
                op.to
            ),
        );
        match self.switch(op, &record)? {
            Exit::Done => Ok(Exit::Done),
            exit => Ok(exit),
        }
    }

    /// Ends an open trial: proves it, or goes back. `force` asserts what would have been proved.
    pub fn confirm(&mut self, force: bool) -> Result<Exit> {
        let services = self.config.services.clone();
        let host = self.host.clone();
        Manager::new(&services, &host, Duration::ZERO).wait_for_runlevel(&mut self.log);
        let (_lock, record) = self.begin("confirm")?;
        if let (true, Phase::Trial { op, .. }) = (force, &record.phase) {
            self.log.operation(&op.id);
            self.log.warning(
                "confirm",
                format!("{} is confirmed by a person, without a proof", op.to),
            );
            return self.confirmed(op, &record);
        }
        let detach = record.operation().is_some();
        if detach {
            leave_caller(&mut self.log);
        }
        match self.resume(record)? {
            Resumed::Failed(exit) => Ok(exit),
            Resumed::Ready(record) => match &idle_of(&record).trouble {
                Some(trouble) => {
                    self.log.warning("confirm", trouble.what.clone());
                    Ok(if trouble.needs_person {
                        Exit::NeedsPerson
                    } else {
                        Exit::Done
                    })
                }
                None => {
                    self.log.info(
                        "confirm",
                        format!("{} runs; nothing is on trial", idle_of(&record).active),
                    );
                    Ok(Exit::Done)
                }
            },
        }
    }

    /// Forgets what a person has dealt with: quarantine, held releases, trouble, a staged release, downloads. What runs
    /// is not touched.
    pub fn reset(&mut self) -> Result<Exit> {
        let (_lock, record) = self.begin("reset")?;
        if matches!(record.phase, Phase::Trial { .. } | Phase::Reverting { .. }) {
            return Err(Error::with(
                Exit::NeedsPerson,
                format!(
                    "resetting: a {} is open; `qx-update confirm` ends it",
                    record.phase.name()
                ),
            ));
        }
        let mut idle = idle_of(&record);
        idle.trouble = None;
        self.store.save(&record.with(Phase::Idle(idle)))?;
        durable::remove(&self.store.path("update/quarantine"))?;
        durable::remove_tree(&self.store.path("update/downloads"))?;
        self.store.drop_leftovers()?;
        self.log.info(
            "reset",
            "quarantine, held releases, staged release and downloads are forgotten",
        );
        Ok(Exit::Done)
    }

    /// Step 1: the lock, then what earlier boots and operations left.
    fn begin(&mut self, command: &str) -> Result<(Lock, Record)> {
        self.store.prepare()?;
        let lock = self.store.lock(command)?;
        let outcome = recover::link_stage(&self.host, &self.store, &mut self.log)?;
        if !outcome.durable {
            return Err(Error::new(format!(
                "starting {command}: {}",
                outcome.problems.join("; ")
            )));
        }
        Ok((lock, outcome.record))
    }

    /// Ends what an earlier process left open: a trial is proved, a way back is gone to its end, services that were
    /// stopped are started.
    fn resume(&mut self, record: Record) -> Result<Resumed> {
        match record.phase.clone() {
            Phase::Idle(_) | Phase::Staging { .. } | Phase::Switching { .. } => {
                Ok(Resumed::Ready(record))
            }
            Phase::Staged { op } => {
                self.log.operation(&op.id);
                self.start_services(&op, op.from().set);
                Ok(Resumed::Ready(record))
            }
            Phase::Trial { op, .. } => {
                self.log.operation(&op.id);
                self.log
                    .info("prove", format!("the trial of {} is taken up again", op.to));
                let exit = self.conclude_trial(&op, &record)?;
                if exit != Exit::Done {
                    return Ok(Resumed::Failed(exit));
                }
                Ok(Resumed::Ready(self.current_record()))
            }
            Phase::Reverting { op, data, cause } => {
                self.log.operation(&op.id);
                self.log.info(
                    "revert",
                    format!("the return from {} is taken up again", op.to),
                );
                Ok(Resumed::Failed(
                    self.conclude_revert(&op, data, &cause, &record)?,
                ))
            }
        }
    }

    /// Steps 2 to 10 of an install.
    fn install(&mut self, request: &Apply, record: &Record, _lock: &Lock) -> Result<Exit> {
        let (repository, source) = self.refresh(request.from.as_deref())?;
        let wanted = Request {
            version: request.version.clone(),
            retry: request.retry,
        };
        let candidate = match self.select(&repository, &source, record, &wanted)? {
            Choice::NothingNewer(running) => {
                self.log
                    .info("select", format!("nothing newer than {running} is offered"));
                return Ok(Exit::NothingNewer);
            }
            Choice::Take(candidate) => candidate,
        };
        self.log_candidate(&candidate);
        // A release that lies staged, and is still what the repository offers, is not staged again.
        if let Phase::Staged { op } = &record.phase
            && op.to.manifest == Some(candidate.digest)
            && recover::choose(&self.store, &op.to, &mut self.log) == op.to
        {
            self.log.operation(&op.id);
            self.log
                .info("stage", format!("{} is staged and verified already", op.to));
            if request.dry_run {
                return Ok(Exit::Done);
            }
            let op = op.clone();
            return self.switch(op, record);
        }
        let idle = idle_of(record);
        let plan = self.plan(&candidate, &idle, &repository, &source)?;
        for line in plan.describe() {
            self.log.info("plan", line);
        }
        if request.dry_run {
            return Ok(Exit::Done);
        }
        let to = store::installed(
            idle.active.set.alternate().into(),
            &candidate.manifest,
            candidate.digest,
        );
        let op = self.operation(OperationKind::Install, idle, to)?;
        self.log.operation(&op.id);
        let staged = self.stage(op, record, &candidate, &plan, &repository, &source)?;
        let op = match &staged.phase {
            Phase::Staged { op } => op.clone(),
            _ => return Err(Error::new("staging: the release did not become staged")),
        };
        self.switch(op, &staged)
    }

    /// Step 2, first half: trust.
    fn refresh(&mut self, from: Option<&str>) -> Result<(Repository, Source)> {
        let root_path = self.host.path(&self.config.trust_root);
        let root = store::read_if_there(&root_path, 1 << 20)?.ok_or_else(|| {
            Error::with(
                Exit::Usage,
                format!(
                    "reading the trust root {}: there is none",
                    root_path.display()
                ),
            )
        })?;
        let limits = &self.config.limits;
        let options = Options {
            ca_file: self
                .config
                .ca_file
                .as_deref()
                .map(|path| self.host.path(path)),
            connect_timeout: Duration::from_secs(limits.connect_timeout_s),
            stall_timeout: Duration::from_secs(limits.stall_timeout_s),
            retries: limits.retries,
        };
        let spec = from.unwrap_or(&self.config.sources[0]);
        let source = if spec.contains("://") {
            Source::open(spec, &options)?
        } else {
            Source::open(&self.host.path(spec).display().to_string(), &options)?
        };
        let doing = || format!("refreshing trust from {spec}");
        let repository = Repository::refresh(
            &source,
            &self.store.path("update/trust"),
            &root,
            self.host.now(),
        )
        .doing(doing)?;
        let v = repository.versions();
        self.log.info(
            "trust",
            format!(
                "{spec} is trusted: root {}, timestamp {}, snapshot {}, targets {}",
                v.root, v.timestamp, v.snapshot, v.targets
            ),
        );
        Ok((repository, source))
    }

    /// Step 2, second half: which release.
    fn select(
        &mut self,
        repository: &Repository,
        source: &Source,
        record: &Record,
        request: &Request,
    ) -> Result<Choice> {
        let refusals = self.store.refusals()?;
        let factory = self.store.manifest(Set::Factory).ok().flatten();
        let active = running(record);
        let ground = select::Ground {
            product: &self.config.product,
            channel: &self.config.channel,
            arch: &machine()?,
            running: &active,
            schemas: &record.schemas,
            refusals: &refusals,
            factory: factory.as_ref().map(|(manifest, _)| manifest),
        };
        select::select(&ground, request, &repository.releases(), &mut |offer| {
            repository.manifest(source, offer)
        })
    }

    /// Step 3.
    fn plan(
        &mut self,
        candidate: &Candidate,
        idle: &Idle,
        repository: &Repository,
        source: &Source,
    ) -> Result<Plan> {
        let mut sets = Vec::new();
        for set in [
            idle.active.set,
            Set::from(idle.active.set.alternate()),
            Set::Factory,
        ] {
            if let Ok(Some((manifest, _))) = self.store.manifest(set) {
                sets.push((set, manifest));
            }
        }
        let ground = Ground {
            sets: &sets,
            active: idle.active.set,
            copies_artifacts: source.copies_artifacts(),
            release_bytes: self.config.limits.release_bytes,
            slots: self.store.path("slots"),
            alternate: self.store.slot(idle.active.set.alternate()),
        };
        plan::plan(&candidate.manifest, &ground, repository)
    }

    /// Steps 4 and 5: from the plan to a verified release in the alternate slot.
    fn stage(
        &mut self,
        op: Operation,
        record: &Record,
        candidate: &Candidate,
        plan: &Plan,
        repository: &Repository,
        source: &Source,
    ) -> Result<Record> {
        let slot = op.from().set.alternate();
        let mut op = op;
        if plan.needs_the_fallbacks_space {
            // P6: from here on the record says that the factory set is the fallback; then the old one may go.
            op.before.fallback = None;
        }
        let staging = record.with(Phase::Staging { op: op.clone() });
        self.store.save(&staging)?;
        let result = self.stage_into(slot, candidate, plan, repository, source);
        if let Err(e) = result {
            let dropped = self.store.drop_leftovers().and_then(|()| {
                let ended = op.attempt(e.exit, Some(e.chain()), &self.host.timestamp());
                self.store.save(&record.ended(op.before.clone(), ended))
            });
            if let Err(e) = dropped {
                self.log.error("stage", e.chain());
            }
            return Err(e);
        }
        let staged = record.with(Phase::Staged { op });
        self.store.save(&staged)?;
        self.store.drop_leftovers()?;
        self.log.info(
            "stage",
            format!(
                "{} is staged and verified in slot {slot}",
                candidate.manifest.version
            ),
        );
        Ok(staged)
    }

    fn stage_into(
        &mut self,
        slot: Slot,
        candidate: &Candidate,
        plan: &Plan,
        repository: &Repository,
        source: &Source,
    ) -> Result<()> {
        let next = self.store.next(slot);
        self.store.drop_leftovers()?;
        if plan.needs_the_fallbacks_space {
            self.log.warning(
                "plan",
                format!("slot {slot} is given up for its space; the factory set is the fallback"),
            );
            durable::remove_tree(&self.store.slot(slot))?;
        }
        durable::create_dir(&next, 0o755)?;
        let downloads = self.store.path("update/downloads");
        let mut reserve = plan::Reserve::new(&next, plan.bytes)?;
        for (component, origin) in candidate.manifest.components.iter().zip(&plan.origins) {
            reserve.release(plan.share_of(component, origin))?;
            self.stage_component(component, origin, &next, &downloads, repository, source)?;
        }
        drop(reserve);
        for path in &candidate.manifest.removed {
            let stub = next.join(path);
            if let Some(parent) = stub.parent() {
                fs::create_dir_all(parent).doing(|| format!("creating {}", parent.display()))?;
            }
            fs::write(&stub, store::STUB)
                .and_then(|()| fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)))
                .doing(|| format!("writing {}", stub.display()))?;
        }
        let manifest_path = store::manifest_path(&next);
        fs::write(&manifest_path, &candidate.bytes)
            .doing(|| format!("writing {}", manifest_path.display()))?;
        durable::sync_file_system(&next)?;
        self.log.info("stage", "verifying what lies on the medium");
        self.store.verify_staged(slot, &candidate.manifest)?;
        self.store.seal(candidate.digest, repository.versions())?;
        let place = self.store.slot(slot);
        if place.exists() {
            durable::exchange(&next, &place)
        } else {
            durable::rename(&next, &place)
        }
    }

    fn stage_component(
        &mut self,
        component: &Component,
        origin: &Origin,
        next: &Path,
        downloads: &Path,
        repository: &Repository,
        source: &Source,
    ) -> Result<()> {
        let place = next.join(&component.install_path);
        if let Origin::Reuse {
            set,
            component: old,
        } = origin
        {
            let from = self.store.component(*set, old);
            let reused = tree::copy(component, &from, &place)
                .map_err(|e| e.chain())
                .and_then(|()| tree::matches(component, &place));
            match reused {
                Ok(()) => {
                    self.log.info(
                        "stage",
                        format!("{} is reused from the {set}", component.name),
                    );
                    return Ok(());
                }
                Err(why) => {
                    self.log.warning(
                        "stage",
                        format!("{} cannot be reused from the {set}: {why}", component.name),
                    );
                    match component.kind {
                        Kind::Bin => durable::remove(&place)?,
                        Kind::Tree => durable::remove_tree(&place)?,
                    }
                }
            }
        }
        let (name, target) = plan::artifact(component, repository)?;
        let total = target.length;
        let what = component.name.to_string();
        let log = &mut self.log;
        log.info("fetch", format!("fetching {name} ({total} bytes)"));
        let artifact: File = source.artifact(
            &target.path,
            target.length,
            &target.sha256,
            downloads,
            &mut |done| {
                log.progress(&what, done, total);
            },
        )?;
        unpack::unpack(
            component,
            artifact,
            target.length,
            &target.sha256,
            next,
            &mut |_| {},
        )
    }

    /// A new operation.
    fn operation(&mut self, kind: OperationKind, before: Idle, to: Installed) -> Result<Operation> {
        let config = &self.config;
        Ok(Operation {
            id: self.host.random_id()?,
            kind,
            started: self.host.timestamp(),
            before,
            to,
            attempts: 0,
            services: Vec::new(),
            ran: Vec::new(),
            manager: config.services.clone(),
            service_timeout_s: config.limits.service_timeout_s,
            trial_boots: config.limits.trial_boots,
            trial_max_age_s: config.limits.trial_max_age_s,
        })
    }

    /// Steps 6 to 10: from a verified set to a proved one, or back.
    fn switch(&mut self, mut op: Operation, record: &Record) -> Result<Exit> {
        leave_caller(&mut self.log);
        let old = self.manifest_of(op.from().set);
        let new = self.manifest_of(op.to.set);
        let host = self.host.clone();
        let how = op.manager.clone();
        let manager = Manager::new(&how, &host, Duration::from_secs(op.service_timeout_s));
        op.services = plan::changed_services(old.as_ref(), new.as_ref());
        let names: Vec<Name> = op.services.iter().map(|s| s.name.clone()).collect();
        op.ran = manager.started(&names);
        if let Some(manifest) = &old {
            prove::baseline(
                op.from().set,
                manifest,
                &self.store,
                &manager,
                &mut self.log,
            );
        }
        let data = DataState::Untouched;
        let switching = record.with(Phase::Switching {
            op: op.clone(),
            data,
        });
        self.store.save(&switching)?;
        let switched = self.go_over(&op, new.as_ref(), &manager, &switching);
        match switched {
            Ok(trial) => self.conclude_trial(&op, &trial),
            Err((kind, e)) => self.revert(
                &op,
                data,
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
        op: &Operation,
        new: Option<&Manifest>,
        manager: &Manager,
        switching: &Record,
    ) -> Result<Record, (CauseKind, Error)> {
        let appliance = |e: Error| (CauseKind::Appliance, e);
        for name in op.ran.iter().rev() {
            manager.stop(name, &mut self.log).map_err(appliance)?;
        }
        if let (Some(migration), Some(slot)) =
            (new.and_then(|m| m.migrate.as_ref()), op.to.set.slot())
            && op.kind == OperationKind::Install
        {
            migrate::run(
                migration,
                &self.store.slot(slot),
                op.from(),
                &op.to,
                &mut self.log,
            )
            .map_err(|e| (CauseKind::Release, e))?;
        }
        let boot_id = self.host.boot_id().map_err(appliance)?;
        self.store.set_link(op.to.set).map_err(appliance)?;
        self.log
            .info("switch", format!("the priority link selects {}", op.to));
        let trial = switching.with(Phase::Trial {
            op: op.clone(),
            data: DataState::Untouched,
            boots: 0,
            boot_id,
            since: self.host.timestamp(),
        });
        self.store.save(&trial).map_err(appliance)?;
        self.start_services(op, op.to.set);
        Ok(trial)
    }

    /// Starts the services that ran, as far as this set has them. One that does not start is found by the proof.
    fn start_services(&mut self, op: &Operation, set: Set) {
        let how = op.manager.clone();
        let host = self.host.clone();
        let manager = Manager::new(&how, &host, Duration::from_secs(op.service_timeout_s));
        let other = if set == op.to.set {
            op.from().set
        } else {
            op.to.set
        };
        let has = |manifest: &Option<Manifest>, name: &Name| {
            manifest
                .as_ref()
                .is_some_and(|m| m.services.iter().any(|s| s.name == *name))
        };
        let (mine, theirs) = (self.manifest_of(set), self.manifest_of(other));
        for name in &op.ran {
            let gone = mine.is_some() && has(&theirs, name) && !has(&mine, name);
            if gone || manager.runs(name).is_ok() {
                continue;
            }
            if let Err(e) = manager.start(name, &mut self.log) {
                self.log.warning("services", e.chain());
            }
        }
    }

    /// Steps 9 and 10: the proof, and what follows from it.
    fn conclude_trial(&mut self, op: &Operation, record: &Record) -> Result<Exit> {
        self.start_services(op, op.to.set);
        match self.prove(op, op.to.set, op.from().set) {
            Ok(()) => self.confirmed(op, record),
            Err(why) => {
                let cause = Cause {
                    kind: CauseKind::Release,
                    message: why,
                };
                self.revert(op, DataState::Untouched, cause, record)
            }
        }
    }

    /// Proves that the services of an operation run the files of `set`, and are healthy.
    fn prove(&mut self, op: &Operation, set: Set, other: Set) -> Result<(), String> {
        let Some(manifest) = self.manifest_of(set) else {
            self.log.warning(
                "prove",
                format!("the {set} has no manifest: nothing can be proved of it"),
            );
            return Ok(());
        };
        let how = op.manager.clone();
        let host = self.host.clone();
        let manager = Manager::new(&how, &host, Duration::from_secs(op.service_timeout_s));
        let ran = |service: &&Service| op.ran.contains(&service.name);
        let changed = |service: &&Service| op.services.iter().any(|s| s.name == service.name);
        let services: Vec<&Service> = manifest
            .services
            .iter()
            .filter(changed)
            .filter(ran)
            .collect();
        let old = self.files_of(other, &op.services, &op.ran);
        let claim = Claim {
            set,
            manifest: &manifest,
            services,
            old,
        };
        prove::prove(&claim, &self.store, &manager, &mut self.log)
    }

    /// The programs that these services run from a set.
    fn files_of(&self, set: Set, services: &[Service], ran: &[Name]) -> Vec<(FileId, PathBuf)> {
        let Some(manifest) = self.manifest_of(set) else {
            return Vec::new();
        };
        manifest
            .services
            .iter()
            .filter(|s| {
                ran.contains(&s.name) && services.iter().any(|changed| changed.name == s.name)
            })
            .filter_map(|s| {
                let path = self.store.component(set, manifest.at(&s.runs)?);
                Some((FileId::of(&path).ok()?, path))
            })
            .collect()
    }

    /// The trial ended well.
    fn confirmed(&mut self, op: &Operation, record: &Record) -> Result<Exit> {
        let now = self.host.timestamp();
        let idle = Idle {
            active: op.to.clone(),
            fallback: (op.to.set != Set::Factory).then(|| op.from().clone()),
            since: now.clone(),
            trouble: None,
        };
        let mut done = record.ended(idle, op.attempt(Exit::Done, None, &now));
        if let Some(manifest) = self.manifest_of(op.to.set) {
            done.schemas.extend(
                manifest
                    .data
                    .iter()
                    .map(|data| (data.name.clone(), data.leaves)),
            );
        }
        match (op.kind, op.from().manifest, op.to.manifest) {
            (OperationKind::Install, _, Some(digest)) => self.store.pardon(digest)?,
            (OperationKind::Rollback | OperationKind::Factory, Some(manifest), _) => {
                self.store.refuse(Refusal {
                    manifest,
                    version: op.from().version.clone(),
                    kind: RefusalKind::Held,
                    reason: "a person rolled it back".into(),
                    at: now,
                })?
            }
            _ => {}
        }
        self.store.save(&done)?;
        self.log
            .info("done", format!("{} runs and is proved healthy", op.to));
        let tidied = durable::remove_tree(&self.store.path("update/downloads"))
            .and_then(|()| self.store.prune_seals());
        if let Err(e) = tidied {
            self.log.warning("done", e.chain());
        }
        Ok(Exit::Done)
    }

    /// Step 10, the other way: durable intention, then back.
    fn revert(
        &mut self,
        op: &Operation,
        data: DataState,
        cause: Cause,
        record: &Record,
    ) -> Result<Exit> {
        self.log.error(
            "revert",
            format!("{} is given up: {}", op.to, cause.message),
        );
        let reverting = record.with(Phase::Reverting {
            op: op.clone(),
            data,
            cause: cause.clone(),
        });
        if let Err(e) = self.store.save(&reverting) {
            // The link decides: moved back under the older record, the next boot comes to the same end.
            self.log.error("revert", e.chain());
        }
        self.conclude_revert(op, data, &cause, &reverting)
    }

    /// The way back to its end. Its beginning is durable.
    fn conclude_revert(
        &mut self,
        op: &Operation,
        _data: DataState,
        cause: &Cause,
        record: &Record,
    ) -> Result<Exit> {
        let chosen = recover::choose(&self.store, op.from(), &mut self.log);
        let how = op.manager.clone();
        let host = self.host.clone();
        let manager = Manager::new(&how, &host, Duration::from_secs(op.service_timeout_s));
        // After a boot the services were started from the chosen set already.
        let link = self.store.link();
        let booted_back = link.selects(chosen.set)
            && self
                .files_of(op.to.set, &op.services, &op.ran)
                .iter()
                .all(|(file, _)| crate::process::running(*file).is_empty());
        if !booted_back {
            for name in op.ran.iter().rev() {
                if let Err(e) = manager.stop(name, &mut self.log) {
                    self.log.warning("services", e.chain());
                }
            }
        }
        if !link.selects(chosen.set) {
            self.store
                .set_link(chosen.set)
                .map_err(|e| e.exiting(Exit::NeedsPerson))?;
            self.log
                .info("revert", format!("the priority link selects {chosen}"));
        }
        self.start_services(op, chosen.set);
        let healthy = self.prove(op, chosen.set, op.to.set);
        let now = self.host.timestamp();
        if let Err(e) = self.refuse(op, cause, &now) {
            self.log.error("revert", e.chain());
        }
        let (exit, trouble) = match healthy {
            Ok(()) => (exit_of_return_to(chosen.set), None),
            Err(why) => {
                let what = format!(
                    "{chosen} runs again after {} failed, and is not healthy: {why}",
                    op.to
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
        let idle = if chosen == *op.from() {
            op.back(trouble)
        } else {
            Idle {
                active: chosen.clone(),
                fallback: None,
                since: now.clone(),
                trouble,
            }
        };
        let ended = op.attempt(exit, Some(cause.message.clone()), &now);
        if let Err(e) = self.store.save(&record.ended(idle, ended)) {
            // It runs all the same; the next boot or `confirm` comes to the same end.
            self.log.error("revert", e.chain());
        }
        self.log.info("revert", format!("{chosen} runs again"));
        Ok(exit)
    }

    /// Whether a failed release is tried again is a matter of the cause.
    fn refuse(&mut self, op: &Operation, cause: &Cause, now: &str) -> Result<()> {
        let kind = match cause.kind {
            CauseKind::Release => RefusalKind::Quarantined,
            CauseKind::Boots => RefusalKind::Held,
            CauseKind::Power | CauseKind::Appliance => return Ok(()),
        };
        let (OperationKind::Install, Some(manifest)) = (op.kind, op.to.manifest) else {
            return Ok(());
        };
        self.store.refuse(Refusal {
            manifest,
            version: op.to.version.clone(),
            kind,
            reason: cause.message.clone(),
            at: now.to_owned(),
        })
    }

    /// So that `status` tells of an attempt that ended before it staged anything.
    fn remember_failure(&mut self, record: &Record, error: &Error) {
        if matches!(error.exit, Exit::Usage | Exit::Busy) {
            return;
        }
        let current = self.current_record();
        // Staging has told of itself; anything further is not a failure before the switch.
        if current.phase != record.phase || current.last != record.last {
            return;
        }
        let now = self.host.timestamp();
        let attempt = Attempt {
            id: String::new(),
            kind: OperationKind::Install,
            from: running(record),
            to: None,
            started: now.clone(),
            ended: now,
            result: error.exit,
            reason: Some(error.chain()),
        };
        let told = Record {
            last: Some(attempt),
            ..current
        };
        if let Err(e) = self.store.save(&told) {
            self.log.warning("apply", e.chain());
        }
    }

    fn log_candidate(&mut self, candidate: &Candidate) {
        let manifest = &candidate.manifest;
        let details = serde_json::json!({
            "product": manifest.product,
            "version": manifest.version,
            "channel": manifest.channel,
            "arch": manifest.arch,
            "released": manifest.released,
            "release_notes": manifest.release_notes,
            "manifest": candidate.digest,
            "components": manifest.components.iter().map(|c| serde_json::json!({
                "name": c.name, "install_path": c.install_path, "sha256": c.sha256, "size_bytes": c.size_bytes,
            })).collect::<Vec<_>>(),
        });
        self.log.info_with(
            "select",
            format!("taking {} {}", manifest.product, manifest.version),
            details,
        );
    }

    fn manifest_of(&self, set: Set) -> Option<Manifest> {
        self.store
            .manifest(set)
            .ok()
            .flatten()
            .map(|(manifest, _)| manifest)
    }

    fn current_record(&mut self) -> Record {
        match self.store.load() {
            crate::decision::Loaded::Record(record) => record,
            _ => Record::idle(self.store.factory().0, None, &self.host.timestamp()),
        }
    }
}

enum Resumed {
    /// Nothing is open any more.
    Ready(Record),
    /// What was open ended badly.
    Failed(Exit),
}

/// What runs, if nothing more happens to an open operation.
fn idle_of(record: &Record) -> Idle {
    match &record.phase {
        Phase::Idle(idle) => idle.clone(),
        Phase::Staging { op } => op.before.clone(),
        Phase::Staged { op } | Phase::Switching { op, .. } | Phase::Reverting { op, .. } => {
            op.back(None)
        }
        Phase::Trial { op, .. } => Idle {
            active: op.to.clone(),
            fallback: Some(op.from().clone()),
            ..op.back(None)
        },
    }
}

fn running(record: &Record) -> Installed {
    idle_of(record).active
}

/// The machine's architecture as the kernel names it.
fn machine() -> Result<Name> {
    let uname = rustix::system::uname();
    let machine = uname.machine().to_string_lossy();
    machine
        .parse()
        .map_err(|why| Error::new(format!("asking the kernel for its architecture: {why}")))
}

/// Step 7: what asked for this operation may be what is restarted. This process leaves its session and its control
/// group; it may have left them before.
fn leave_caller(log: &mut Log) {
    if rustix::process::getsid(None).ok() != Some(rustix::process::getpid())
        && let Err(e) = rustix::process::setsid()
    {
        log.warning("switch", format!("leaving the caller's session: {e}"));
    }
    let pid = std::process::id().to_string();
    for group in [
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/unified/cgroup.procs",
        "/sys/fs/cgroup/openrc/cgroup.procs",
    ] {
        let path = Path::new(group);
        if path.exists()
            && let Err(e) = fs::write(path, &pid)
        {
            log.warning(
                "switch",
                format!("leaving the caller's control group through {group}: {e}"),
            );
        }
    }
}
