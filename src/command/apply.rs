//! `check` and `apply`: choose, plan, stage, and hand over to the switch.

use std::fs;
use std::time::Duration;

use qx_release::digest::Digest;
use qx_release::error::{Context, ErrorKind, Exit, Result};
use qx_release::manifest::{Manifest, Name};
use qx_release::{durable, text};

use super::{Appliance, Apply, Resumed, leave_caller, running};
use crate::acquire::plan::{self, Leftover, Plan, PlanContext};
use crate::acquire::select::{Choice, Request};
use crate::acquire::stage::Stage;
use crate::data;
use crate::fetch::Mirrors;
use crate::model::dataplan::DataPlan;
use crate::model::operation::{EarlyFailure, FailedCheck, Operation, OperationKind};
use crate::model::phase::Phase;
use crate::model::record::Record;
use crate::model::slot::{Set, Slot};
use crate::model::source::SourceAddress;
use crate::proof::observe::Census;
use crate::proof::{preflight, prove};
use crate::repository::{Candidate, Repository};
use crate::store::{self, Lock, Verified, sets};
use crate::system::service::Manager;

impl Appliance {
    /// Installs the highest eligible release, and proves it.
    pub fn apply(&mut self, request: &Apply) -> Result<Exit> {
        // Nothing that is installed would be used in this boot.
        if self.factory_boot() {
            return Err(self.told_to_use_the_factory_set("applying an update"));
        }
        let (lock, record) = self.begin("apply")?;
        if !request.dry_run {
            self.tidy_data(&record);
        }
        // What was open is ended, well or badly; then what was asked for now has its turn.
        let (record, ended) = match self.resume(record)? {
            Resumed::Ready(record) => (*record, None),
            Resumed::Ended(exit @ (Exit::BackToPrevious | Exit::BackToFactory)) => {
                let record = self.current_record();
                // Its end could not be recorded: nothing begins before the next command has done that.
                if record.phase().is_under_way() {
                    return Ok(exit);
                }
                (record, Some(exit))
            }
            Resumed::Ended(exit) => return Ok(exit),
        };
        let asked = match request.repair {
            true => self.repair(&lock, request, &record),
            false => self.install(&lock, request, None, &record),
        };
        match (asked, ended) {
            // Services were stopped, whatever came of the rest.
            (Ok(Exit::NothingNewer), Some(exit)) => Ok(exit),
            (Err(e), Some(exit)) if e.kind != ErrorKind::NeedsPerson => {
                self.log.error("end", e.chain());
                Ok(exit)
            }
            (asked, _) => asked,
        }
    }

    /// Installs the release that was lost to damage again: the data is its own.
    fn repair(&mut self, lock: &Lock, request: &Apply, record: &Record) -> Result<Exit> {
        let idle = record.idle_when_ended();
        let Some((lost, version)) = idle
            .lost
            .as_ref()
            .and_then(|l| Some((l, l.version.clone()?)))
        else {
            let what = format!("{} is intact; there is nothing to repair", idle.active);
            self.log.info("repair", what);
            return Ok(Exit::NothingNewer);
        };
        let request = Apply {
            version: Some(version),
            from: request.from.clone(),
            dry_run: request.dry_run,
            retry: true,
            repair: true,
            goal: request.goal,
        };
        self.install(lock, &request, lost.manifest, record)
    }

    /// Whether a release could be installed: [`Exit::Available`], [`Exit::NothingNewer`], or an error.
    pub fn check(&mut self, from: Option<&SourceAddress>) -> Result<Exit> {
        if self.factory_boot() {
            return Err(self.told_to_use_the_factory_set("looking for an update"));
        }
        self.store.prepare()?;
        let lock = self.lock("check")?;
        let record = self.current_record();
        let (repository, mirrors) = self.refresh(&lock, from)?;
        let request = Request {
            version: None,
            retry: false,
            only: None,
        };
        let found = self.releases(&repository, &mirrors, &request)?;
        let record = self.heed_withdrawals(&found, &record)?;
        match self.select(&repository, &mirrors, found, &record, &request)? {
            Choice::NothingNewer(running) => {
                self.log
                    .info("select", format!("nothing newer than {running} is offered"));
                Ok(Exit::NothingNewer)
            }
            Choice::Take(candidate) => {
                let manifest = &candidate.manifest;
                self.able(running(&record).set, manifest)?;
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

    /// Steps 2 to 10 of an install.
    /// `only` this release, by the digest of its manifest.
    fn install(
        &mut self,
        lock: &Lock,
        request: &Apply,
        only: Option<Digest>,
        record: &Record,
    ) -> Result<Exit> {
        let refreshed = self.refresh(lock, request.from.as_ref());
        // What lies staged was verified when it was staged. Whether it is switched to depends on no source, and on no
        // expiry since.
        if let (Err(e), Phase::Staged { op }) = (&refreshed, record.phase())
            && request.from.is_none()
            && (request.version.as_ref())
                .is_none_or(|version| op.to.version.as_ref() == Some(version))
        {
            self.log.warning("trust", e.chain());
            if let Some(staged) = sets::verified(&self.store, &op.to, &mut self.log) {
                return self.switch_to_staged(op.clone(), &staged, request, record);
            }
        }
        let (repository, mirrors) = self.remember(refreshed, request, record)?;
        let wanted = Request {
            version: request.version.clone(),
            retry: request.retry,
            only,
        };
        let found = self.releases(&repository, &mirrors, &wanted);
        let found = self.remember(found, request, record)?;
        let record = &match request.dry_run {
            true => record.clone(),
            false => self.heed_withdrawals(&found, record)?,
        };
        let selected = match self.select(&repository, &mirrors, found, record, &wanted) {
            // A refusal is no failed attempt: its reason stands in the list of refused releases.
            Err(e) if e.kind == ErrorKind::NotEligible => return Err(e),
            other => self.remember(other, request, record)?,
        };
        let candidate = match selected {
            Choice::NothingNewer(running) => {
                if record.failure.is_some() && !request.dry_run {
                    self.store.save(&record.with_failure(None))?;
                }
                self.log
                    .info("select", format!("nothing newer than {running} is offered"));
                return Ok(Exit::NothingNewer);
            }
            Choice::Take(candidate) => candidate,
        };
        self.log_candidate(&candidate);
        // A release that lies staged, and is still what the repository offers, is not staged again.
        if let Phase::Staged { op } = record.phase()
            && op.to.manifest == Some(candidate.digest)
            && let Some(staged) = sets::verified(&self.store, &op.to, &mut self.log)
        {
            // Nobody is left that fetches while services are switched.
            mirrors.rest();
            return self.switch_to_staged(op.clone(), &staged, request, record);
        }
        self.install_candidate(&candidate, &repository, &mirrors, request, record)
    }

    /// Steps 3 to 10 of an install.
    fn install_candidate(
        &mut self,
        candidate: &Candidate,
        repository: &Repository,
        mirrors: &Mirrors,
        request: &Apply,
        record: &Record,
    ) -> Result<Exit> {
        let idle = record.idle_when_ended();
        let able = self.able(idle.active.set, &candidate.manifest);
        let running = self.remember(able, request, record)?;
        let data = self.data_plan(&candidate.manifest, request.repair, record)?;
        let planned = self.plan(
            candidate,
            &data,
            record,
            running.as_ref(),
            repository,
            mirrors,
        );
        let plan = self.remember(planned, request, record)?;
        for line in plan.describe() {
            self.log.info("plan", line);
        }
        // Before anything is touched: what an update spoils must not count as spoilt before.
        let failed_before = self.baseline(idle.active.set, running.as_ref());
        if request.dry_run {
            return Ok(Exit::Done);
        }
        let to = store::installed(
            idle.active.set.alternate().into(),
            &candidate.manifest,
            candidate.digest,
        );
        let op = Operation {
            failed_before,
            medium: mirrors.medium(),
            ..self
                .operation(OperationKind::Install, idle, to)?
                .with_data_plan(data)
        };
        self.log.operation(op.id);
        for leftover in &plan.drops {
            self.log
                .warning("plan", format!("deleting {leftover} to make room"));
            match leftover {
                Leftover::Download(path) => durable::remove_any(path)?,
                Leftover::Data(kept, _) => {
                    data::drop_kept(&self.host, &self.store, kept, &mut self.log)?;
                }
            }
        }
        let (op, restarted) = match plan.needs_the_fallbacks_space {
            true => self.vacate(op, record)?,
            false => (op, false),
        };
        let (op, staged) = Stage {
            host: &self.host,
            store: &self.store,
            log: &mut self.log,
            candidate,
            plan: &plan,
            repository,
            mirrors,
            restarted,
        }
        .run(op, record)?;
        self.reach(request.goal, op, &staged)
    }

    /// The slot has to go before the new release comes: what still runs from there is restarted from the active set first. Says
    /// whether anything was.
    fn vacate(&mut self, op: Operation, record: &Record) -> Result<(Operation, bool)> {
        let place = self.store.slot(op.from().set.alternate());
        let users = self.store.users(&[place]);
        if users.is_empty() {
            return Ok((op, false));
        }
        leave_caller(&mut self.log);
        Ok((self.switch_of(op).vacate(&users, record)?, true))
    }

    fn switch_to_staged(
        &mut self,
        op: Operation,
        staged: &Verified,
        request: &Apply,
        record: &Record,
    ) -> Result<Exit> {
        self.log.operation(op.id);
        self.log
            .info("stage", format!("{} is staged and verified already", op.to));
        let running = self.able(op.from().set, &staged.manifest)?;
        // What was well when it was staged is not excused now.
        let mut failed_before = self.baseline(op.from().set, running.as_ref());
        failed_before.retain(|failed| op.failed_before.contains(failed));
        if request.dry_run {
            return Ok(Exit::Done);
        }
        let op = Operation {
            failed_before,
            ..op
        };
        // The configuration of now counts, and the data as it is now.
        let data = self.data_plan(&staged.manifest, request.repair, record)?;
        let op = op.under_config(&self.config).with_data_plan(data);
        self.reach(request.goal, op, record)
    }

    /// Tries the health checks of the set that runs: what the next one is measured against.
    pub(super) fn baseline(&mut self, set: Set, manifest: Option<&Manifest>) -> Vec<FailedCheck> {
        let Some(manifest) = manifest.filter(|_| !self.at_boot) else {
            return Vec::new();
        };
        let timeout = self.config.service_timeout();
        let manager = Manager::new(&self.config.services, &self.host, timeout);
        prove::baseline(set, manifest, &self.store, &manager, &mut self.log)
    }

    /// Whether this appliance can do what an update to this release takes; and the manifest of the set that runs, which all
    /// that follows needs.
    fn able(&self, active: Set, release: &Manifest) -> Result<Option<Manifest>> {
        let running = self.manifest_of(active)?;
        let (host, config, store) = (&self.host, &self.config, &self.store);
        preflight::check(host, config, store, running.as_ref(), release)
            .doing(|| "before anything is stopped")?;
        Ok(running)
    }

    /// A set's manifest; `None` for a factory set without one.
    pub(super) fn manifest_of(&self, set: Set) -> Result<Option<Manifest>> {
        Ok(self.store.manifest(set)?.map(|(manifest, _)| manifest))
    }

    /// Step 3.
    fn plan(
        &mut self,
        candidate: &Candidate,
        data: &DataPlan,
        record: &Record,
        running: Option<&Manifest>,
        repository: &Repository,
        mirrors: &Mirrors,
    ) -> Result<Plan> {
        let idle = record.idle_when_ended();
        let alternate = idle.active.set.alternate();
        let outdated = self.outdated(running, alternate)?;
        let restarts =
            |name: &Name| outdated.contains(name) || data.data.iter().any(|set| set.used_by(name));
        let leftovers = self.leftovers(record, candidate, repository, mirrors)?;
        let mut sets: Vec<(Set, Manifest)> = Vec::new();
        sets.extend(running.map(|manifest| (idle.active.set, manifest.clone())));
        for set in [Set::from(alternate), Set::Factory] {
            // Nothing is reused from a set whose manifest cannot be read.
            if set != idle.active.set
                && let Ok(Some(manifest)) = self.manifest_of(set)
            {
                sets.push((set, manifest));
            }
        }
        let context = PlanContext {
            sets: &sets,
            downloads: self.store.downloads(),
            active: idle.active.set,
            copies_artifacts: mirrors.copies_artifacts(),
            release_bytes: self.config.limits.release_bytes,
            slots: self.store.path("slots"),
            alternate: self.store.slot(alternate),
            restarts: &restarts,
            leftovers: &leftovers,
            data: data::space(&self.host, &self.store, &data.data)?,
        };
        plan::plan(&candidate.manifest, &context, repository, mirrors)
    }

    /// The services whose processes still use what the slot holds, or held, that the next release goes to. Others that do are
    /// told of: what they use is kept until they end.
    fn outdated(&mut self, running: Option<&Manifest>, alternate: Slot) -> Result<Vec<Name>> {
        let mut places = self.store.kept();
        places.push(self.store.slot(alternate));
        let users = self.store.users(&places);
        let manager = Manager::new(&self.config.services, &self.host, Duration::ZERO);
        let manifests: Vec<&Manifest> = running.into_iter().collect();
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let census = Census::take(&manifests, &[], &self.store, &manager);
        let mut outdated = Vec::new();
        for user in users {
            let runs = self.host.proc().executable_name(user.process.pid);
            let (pid, path) = (user.process.pid, text::path(&user.path));
            match census.owner(pid) {
                Some(name) if !manager.controls() || outdated.contains(name) => {}
                Some(name) => outdated.push(name.clone()),
                None => self.log.warning(
                    "plan",
                    format!(
                        "process {pid} ({runs}) still uses {path}, which is kept until it ends"
                    ),
                ),
            }
        }
        Ok(outdated)
    }

    /// What nobody needs any more, the first to go first: what was fetched of other releases, then data that is kept aside.
    fn leftovers(
        &self,
        record: &Record,
        candidate: &Candidate,
        repository: &Repository,
        mirrors: &Mirrors,
    ) -> Result<Vec<Leftover>> {
        let mut wanted = Vec::new();
        for component in &candidate.manifest.components {
            let artifact = plan::artifact(component, repository, mirrors)?.1;
            wanted.push(artifact.sha256.to_string());
        }
        let directory = self.store.downloads();
        let reading = || format!("reading {}", directory.display());
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(&directory).doing(reading)? {
            let path = entry.doing(reading)?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            if !wanted.contains(&name.into_owned()) {
                leftovers.push(Leftover::Download(path));
            }
        }
        for kept in data::leftovers(&self.store, record)? {
            let taken = data::taken(&self.host, &self.store, &kept);
            leftovers.push(Leftover::Data(Box::new(kept), taken));
        }
        Ok(leftovers)
    }

    fn log_candidate(&mut self, candidate: &Candidate) {
        let manifest = &candidate.manifest;
        let details = serde_json::json!({
            "product": manifest.product,
            "version": manifest.version,
            "channel": manifest.channel,
            "arch": manifest.arch,
            "released": manifest.released,
            "release_notes": manifest.release_notes.chars().take(text::LINE).collect::<String>(),
            "manifest": candidate.digest,
            "components": manifest.components.iter().map(|c| serde_json::json!({
                "name": c.name, "install_path": c.install_path, "sha256": c.sha256, "size_bytes": c.size_bytes,
            })).collect::<Vec<_>>(),
        });
        self.log.info_with(
            "select",
            format!("selected {} {}", manifest.product, manifest.version),
            details,
        );
    }

    /// So that `status` tells of an attempt that failed before it had an operation.
    fn remember<T>(&mut self, result: Result<T>, request: &Apply, record: &Record) -> Result<T> {
        if let (Err(e), false) = (&result, request.dry_run) {
            let failure = EarlyFailure {
                at: self.host.timestamp(),
                result: e.exit(),
                reason: e.chain(),
            };
            if let Err(e) = self.store.save(&record.with_failure(Some(failure))) {
                self.log.warning("apply", e.chain());
            }
        }
        result
    }
}
