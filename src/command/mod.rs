//! The procedure: what happens in which order. The steps themselves are elsewhere; the crate's documentation numbers
//! them.

use crate::repository::Candidate;
use crate::store::sets;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use semver::Version;

use crate::acquire::plan::{self, Plan, PlanContext};
use crate::acquire::select::{self, Choice, Request};
use crate::acquire::stage::Stage;
use crate::data::migrate;
use crate::data::protect;
use crate::fetch::{Headers, Mirrors, Options, Patience, Proxies};
use crate::model::config::{Config, Services};
use crate::model::dataset::DataPlan;
use crate::model::record::Loaded;
use crate::model::record::{
    Attempt, Cause, CauseKind, DataChange, DataState, FailedCheck, Failure, Idle, Operation,
    OperationKind, Phase, Record, Refusal, RefusalKind,
};
use crate::model::slot::{Installed, Set, Slot};
use crate::proof::observe::Census;
use crate::proof::preflight;
use crate::proof::prove;
use crate::recovery::data;
use crate::recovery::link;
use crate::repository::{Repository, Wanted};
use crate::store::{self, Freshness, Lock, Refreshed, Store};
use crate::switch::Switch;
use crate::system::host::{self, Host};
use crate::system::log::Log;
use crate::system::service::Manager;
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, Exit, Result};
use qx_release::manifest::{Manifest, Name};
use qx_release::text;

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
    /// Whether another process at work is waited for.
    pub wait: bool,
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
    /// A URL, a directory or a bundle instead of the configured sources.
    pub from: Option<String>,
    /// Show the plan and change nothing.
    pub dry_run: bool,
    /// Try the named version even if it is quarantined or held.
    pub retry: bool,
    /// Install the release again whose files were damaged, without a migration.
    pub repair: bool,
}

impl Appliance {
    /// Installs the highest eligible release, and proves it.
    pub fn apply(&mut self, request: &Apply) -> Result<Exit> {
        // Nothing that is installed would be used in this boot.
        if self.factory_boot() {
            return Err(self.told_to_use_the_factory_set("applying an update"));
        }
        let (_lock, record) = self.begin("apply")?;
        // What was open is ended, well or badly; then what was asked for now has its turn.
        let (record, ended) = match self.resume(record)? {
            Resumed::Ready(record) => (*record, None),
            Resumed::Ended(exit @ (Exit::BackToPrevious | Exit::BackToFactory)) => {
                (self.current_record(), Some(exit))
            }
            Resumed::Ended(exit) => return Ok(exit),
        };
        let asked = match request.repair {
            true => self.repair(request, &record),
            false => self.install(request, None, &record),
        };
        match (asked, ended) {
            // Services were stopped, whatever came of the rest.
            (Ok(Exit::NothingNewer), Some(exit)) => Ok(exit),
            (Err(e), Some(exit)) if e.exit != Exit::NeedsPerson => Err(e.exiting(exit)),
            (asked, _) => asked,
        }
    }

    /// Installs the release that was lost to damage again: the data is its own.
    fn repair(&mut self, request: &Apply, record: &Record) -> Result<Exit> {
        let idle = record.idle_when_ended();
        let Some((lost, version)) = idle
            .lost
            .as_ref()
            .and_then(|l| Some((l, l.version.clone()?)))
        else {
            let what = format!("{} verifies; there is nothing to repair", idle.active);
            self.log.info("repair", what);
            return Ok(Exit::NothingNewer);
        };
        let request = Apply {
            version: Some(version),
            from: request.from.clone(),
            dry_run: request.dry_run,
            retry: true,
            repair: true,
        };
        self.install(&request, lost.manifest, record)
    }

    /// Whether a release could be installed: [`Exit::Available`], [`Exit::NothingNewer`], or an error.
    pub fn check(&mut self, from: Option<&str>) -> Result<Exit> {
        if self.factory_boot() {
            return Err(self.told_to_use_the_factory_set("looking for an update"));
        }
        self.store.prepare()?;
        let _lock = self.lock("check")?;
        let record = self.current_record();
        let (repository, mirrors) = self.refresh(from)?;
        let request = Request {
            version: None,
            retry: false,
            only: None,
        };
        match self.select(&repository, &mirrors, &record, &request)? {
            Choice::NothingNewer(running) => {
                self.log
                    .info("select", format!("nothing newer than {running} is offered"));
                Ok(Exit::NothingNewer)
            }
            Choice::Take(candidate) => {
                self.preflight(running(&record).set)?;
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
    pub fn rollback(&mut self, back: Back, discard_data: bool) -> Result<Exit> {
        let (_lock, record) = self.begin("rollback")?;
        if self.factory_boot() {
            return match back {
                Back::Factory => self.abandon(&record),
                Back::Previous => Err(self.told_to_use_the_factory_set("rolling back")),
            };
        }
        let record = match &record.phase {
            Phase::Trial { .. } => match self.end_trial(&record, back, discard_data)? {
                Resumed::Ready(record) => *record,
                Resumed::Ended(exit) => return Ok(exit),
            },
            _ => match self.resume(record)? {
                Resumed::Ready(record) => *record,
                Resumed::Ended(exit) => return Ok(exit),
            },
        };
        let idle = record.idle_when_ended();
        if idle.active.set == Set::Factory {
            let what = format!(
                "{} runs already; there is nothing to go back to",
                idle.active
            );
            self.log.info("rollback", what);
            return Ok(Exit::NothingNewer);
        }
        let factory = self.store.factory().0;
        let to = match idle
            .fallback
            .clone()
            .filter(|f| back == Back::Previous && f.set != Set::Factory)
        {
            Some(previous) => {
                if !sets::verifies(&self.store, &previous, &mut self.log) {
                    return Err(Error::new(format!(
                        "going back to {previous}: it no longer verifies; `rollback --to factory` goes back to the \
                         factory set"
                    )));
                }
                previous
            }
            None => factory,
        };
        let manifest = |set| {
            let found = self.store.manifest(set);
            let found = found.doing(|| format!("going back to {to}"))?;
            Ok::<_, Error>(found.map(|(manifest, _)| manifest))
        };
        let (active, target) = (manifest(idle.active.set)?, manifest(to.set)?);
        let data = DataPlan::back(
            active.as_ref(),
            target.as_ref(),
            &record.schemas,
            &self.config.data,
            discard_data,
        )
        .map_err(|why| Error::with(Exit::NeedsPerson, format!("going back to {to}: {why}")))?;
        for set in data
            .data
            .iter()
            .filter(|_| data.change == DataChange::Discard)
        {
            self.log.warning(
                "rollback",
                format!(
                    "the data of {} is set aside, all that was written until now",
                    set.name
                ),
            );
        }
        let kind = if to.set == Set::Factory {
            OperationKind::Factory
        } else {
            OperationKind::Rollback
        };
        let op = Operation {
            failed_before: self.baseline(idle.active.set)?,
            ..self.operation(kind, idle, to)?.with_data_plan(data)
        };
        self.log.operation(&op.id);
        self.log.info(
            "rollback",
            format!(
                "going back from {} to {}, as a person asked",
                op.from(),
                op.to
            ),
        );
        self.switch(op, &record)
    }

    /// A person ends an open trial: the data is restored, as after a failed proof.
    fn end_trial(&mut self, record: &Record, back: Back, discard_data: bool) -> Result<Resumed> {
        let Phase::Trial { op, data, .. } = &record.phase else {
            return Ok(Resumed::Ready(Box::new(record.clone())));
        };
        let saved_at = op.saved_at.as_deref().unwrap_or(&op.started);
        if *data == DataState::Saved {
            let lost = format!(
                "what was written to the data since {saved_at}, when {} came, is set aside",
                op.to
            );
            if record.is_stale_trial(&self.host.moment()) && !discard_data {
                let what = format!(
                    "going back to {}: {lost}: that takes `--discard-data`",
                    op.from()
                );
                return Err(Error::with(Exit::NeedsPerson, what));
            }
            self.log.warning("rollback", lost);
        }
        leave_caller(&mut self.log);
        wait_for_runlevel(&op.manager, &self.host, &mut self.log);
        let from = op.from().set;
        let cause = Cause::new(CauseKind::Person, "a person rolled it back");
        let exit = self.switch_of(op.clone()).revert(cause, record)?;
        Ok(match exit {
            // What was asked for.
            Exit::BackToPrevious | Exit::BackToFactory
                if back == Back::Previous || from == Set::Factory =>
            {
                Resumed::Ended(Exit::Done)
            }
            Exit::BackToPrevious => Resumed::Ready(Box::new(self.current_record())),
            Exit::BackToFactory => Resumed::Ended(Exit::Done),
            exit => Resumed::Ended(exit),
        })
    }

    /// The boot was told to use the factory set, and a person wants to keep it: what is open is given up, without a
    /// proof of what does not run.
    fn abandon(&mut self, record: &Record) -> Result<Exit> {
        let now = self.host.timestamp();
        let left = record
            .operation()
            .map_or_else(|| running(record), |op| op.to.clone());
        let idle = Idle::on(self.store.factory().0, None, &now);
        if left.set != Set::Factory
            && let Some(manifest) = left.manifest
        {
            let reason = "a person went back to the factory set".to_owned();
            let kind = RefusalKind::Held;
            let version = left.version.clone();
            self.store.refuse(Refusal {
                manifest,
                version,
                kind,
                reason,
                at: now.clone(),
            })?;
        }
        let attempt = match record.operation() {
            Some(op) => op.attempt(
                Exit::BackToFactory,
                Some("a person gave it up".into()),
                &now,
            ),
            None => Attempt {
                unproved: vec![
                    "this boot used the factory set already, and nothing was restarted".into(),
                ],
                ..self
                    .operation(
                        OperationKind::Factory,
                        record.idle_when_ended(),
                        idle.active.clone(),
                    )?
                    .attempt(Exit::Done, None, &now)
            },
        };
        let ended = record.ended(idle, attempt);
        self.store.save(&ended)?;
        self.log.info(
            "rollback",
            format!("{left} is given up; the factory set stays"),
        );
        Ok(Exit::Done)
    }

    fn factory_boot(&self) -> bool {
        self.host.kernel_argument(host::FACTORY_BOOT)
    }

    fn told_to_use_the_factory_set(&self, doing: &str) -> Error {
        let what = format!(
            "{doing}: this boot was told to use the factory set ({}): boot without it, or go on with the factory set by \
             `qx-update rollback --to factory`",
            host::FACTORY_BOOT
        );
        Error::with(Exit::NeedsPerson, what)
    }

    /// Ends an open trial: proves it, or goes back. `force` asserts what would have been proved.
    pub fn confirm(&mut self, force: bool) -> Result<Exit> {
        // Without the lock: others may work until then.
        wait_for_runlevel(&self.config.services, &self.host, &mut self.log);
        if self.factory_boot()
            && let Loaded::Record(record) = self.store.load()
            && running(&record).set != Set::Factory
        {
            let what = format!(
                "this boot uses the factory set as it was told to ({}); {} is kept, and nothing is concluded",
                host::FACTORY_BOOT,
                running(&record)
            );
            self.log.info("confirm", what);
            return Ok(Exit::Done);
        }
        // At most boots there is nothing to do: no lock, so that nobody who starts working then is told to come again.
        if let Loaded::Record(record) = self.store.load()
            && let Phase::Idle(Idle {
                active,
                trouble: None,
                ..
            }) = &record.phase
            && record.stopped.is_none()
            && self.image_operation(&record)?.is_none()
        {
            self.log
                .info("confirm", format!("{active} runs; nothing is on trial"));
            return Ok(Exit::Done);
        }
        let (_lock, record) = self.begin("confirm")?;
        if let (true, Phase::Trial { op, .. }) = (force, &record.phase) {
            self.log.operation(&op.id);
            self.log.warning(
                "confirm",
                format!("{} is confirmed by a person, without a proof", op.to),
            );
            return self.switch_of(op.clone()).confirmed(&record, &[]);
        }
        match self.resume(record)? {
            Resumed::Ended(exit) => Ok(exit),
            Resumed::Ready(record) if self.image_operation(&record)?.is_some() => {
                // Where no data stage runs at boot.
                match self.image_operation(&record)? {
                    Some(op) => self.switch(op, &record),
                    None => Ok(Exit::Done),
                }
            }
            Resumed::Ready(record) => match &record.idle_when_ended().trouble {
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
                        format!(
                            "{} runs; nothing is on trial",
                            record.idle_when_ended().active
                        ),
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
        let mut idle = record.idle_when_ended();
        idle.trouble = None;
        self.store.save(&record.with(Phase::Idle(idle)))?;
        durable::remove(&self.store.path("update/quarantine"))?;
        self.store.drop_downloads()?;
        self.store.drop_leftovers()?;
        self.log.info(
            "reset",
            "quarantine, held releases, staged release and downloads are forgotten",
        );
        Ok(Exit::Done)
    }

    fn lock(&mut self, command: &str) -> Result<Lock> {
        let log = &mut self.log;
        let mut tell = |who| log.info("lock", who);
        self.store.lock(command, self.wait.then_some(&mut tell))
    }

    /// Step 1: the lock, then what earlier boots and operations left.
    fn begin(&mut self, command: &str) -> Result<(Lock, Record)> {
        self.store.prepare()?;
        let lock = self.lock(command)?;
        if let Loaded::Record(record) = self.store.load()
            && let Some(op) = record.operation()
        {
            migrate::end_orphans(&op.id, self.host.proc(), &mut self.log)?;
        }
        let outcome = link::link_stage(&self.host, &self.store, &mut self.log)?;
        if let Some(e) = outcome.obstacle {
            return Err(e).doing(|| format!("starting {command}"));
        }
        if let Some(op) = outcome.interrupted.filter(|op| !op.ran.is_empty()) {
            self.log.info(
                "services",
                "an earlier operation may have left services stopped",
            );
            leave_caller(&mut self.log);
            wait_for_runlevel(&op.manager, &self.host, &mut self.log);
            self.switch_of(op).start_services(outcome.show);
        }
        let mut record = outcome.record;
        if record.stopped.take().is_some() {
            self.store.save(&record)?;
        }
        Ok((lock, record))
    }

    /// Ends what an earlier process left open: a trial is proved, a way back is gone to its end.
    fn resume(&mut self, record: Record) -> Result<Resumed> {
        let (Phase::Trial { op, .. } | Phase::Reverting { op, .. }) = record.phase.clone() else {
            return Ok(Resumed::Ready(Box::new(record)));
        };
        leave_caller(&mut self.log);
        wait_for_runlevel(&op.manager, &self.host, &mut self.log);
        self.log.info(
            "resume",
            format!("the {} of {} is taken up again", record.phase.name(), op.to),
        );
        let going = self.switch_of(op);
        let exit = match &record.phase {
            Phase::Reverting { cause, .. } => {
                return going.conclude_revert(cause, &record).map(Resumed::Ended);
            }
            _ => going.resume_trial(&record)?,
        };
        Ok(match exit {
            Exit::Done => Resumed::Ready(Box::new(self.current_record())),
            exit => Resumed::Ended(exit),
        })
    }

    /// Steps 2 to 10 of an install.
    /// `only` this release, by the digest of its manifest.
    fn install(&mut self, request: &Apply, only: Option<Digest>, record: &Record) -> Result<Exit> {
        let refreshed = self.refresh(request.from.as_deref());
        // What lies staged was verified when it was staged. Whether it is switched to depends on no source, and on no
        // expiry since.
        if let (Err(e), Phase::Staged { op }) = (&refreshed, &record.phase)
            && request.from.is_none()
            && (request.version.as_ref())
                .is_none_or(|version| op.to.version.as_ref() == Some(version))
        {
            self.log.warning("trust", e.chain());
            if sets::verifies(&self.store, &op.to, &mut self.log) {
                return self.switch_to_staged(op.clone(), request, record);
            }
        }
        let (repository, mirrors) = self.remember(refreshed, request, record)?;
        let wanted = Request {
            version: request.version.clone(),
            retry: request.retry,
            only,
        };
        let selected = match self.select(&repository, &mirrors, record, &wanted) {
            // A refusal is no failed attempt: its reason stands in the list of refused releases.
            Err(e) if e.exit == Exit::Refused => return Err(e),
            other => self.remember(other, request, record)?,
        };
        let candidate = match selected {
            Choice::NothingNewer(running) => {
                if record.failure.is_some() && !request.dry_run {
                    self.store.save(&Record {
                        failure: None,
                        ..record.clone()
                    })?;
                }
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
            && sets::verifies(&self.store, &op.to, &mut self.log)
        {
            return self.switch_to_staged(op.clone(), request, record);
        }
        let idle = record.idle_when_ended();
        let able = self.preflight(idle.active.set);
        self.remember(able, request, record)?;
        let data = self.data_plan(&candidate.manifest, request.repair, record)?;
        let planned = self.plan(&candidate, &data, &idle, &repository, &mirrors);
        let plan = self.remember(planned, request, record)?;
        for line in plan.describe() {
            self.log.info("plan", line);
        }
        // Before anything is touched: what an update spoils must not count as spoilt before.
        let failed_before = self.baseline(idle.active.set)?;
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
            ..self
                .operation(OperationKind::Install, idle, to)?
                .with_data_plan(data)
        };
        self.log.operation(&op.id);
        for leftover in &plan.drops {
            self.log.warning(
                "plan",
                format!("{} is deleted for its space", leftover.display()),
            );
            durable::remove_any(leftover)?;
        }
        let (op, restarted) = match plan.needs_the_fallbacks_space {
            true => self.vacate(op, record)?,
            false => (op, false),
        };
        let (op, staged) = Stage {
            host: &self.host,
            store: &self.store,
            log: &mut self.log,
            candidate: &candidate,
            plan: &plan,
            repository: &repository,
            mirrors: &mirrors,
            restarted,
        }
        .run(op, record)?;
        self.switch(op, &staged)
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
        request: &Apply,
        record: &Record,
    ) -> Result<Exit> {
        self.log.operation(&op.id);
        self.log
            .info("stage", format!("{} is staged and verified already", op.to));
        self.preflight(op.from().set)?;
        // What was well when it was staged is not excused now.
        let mut failed_before = self.baseline(op.from().set)?;
        failed_before.retain(|failed| op.failed_before.contains(failed));
        if request.dry_run {
            return Ok(Exit::Done);
        }
        let op = Operation {
            failed_before,
            ..op
        };
        // The configuration of now counts, and the data as it is now.
        let op = match self.store.manifest(op.to.set)? {
            Some((manifest, _)) => {
                let data = self.data_plan(&manifest, request.repair, record)?;
                op.under_config(&self.config).with_data_plan(data)
            }
            None => op,
        };
        self.switch(op, record)
    }

    /// Whether this appliance can do what an update takes.
    fn preflight(&self, active: Set) -> Result<()> {
        let running = self.store.manifest(active)?.map(|(manifest, _)| manifest);
        preflight::check(&self.host, &self.config, &self.store, running.as_ref())
            .doing(|| "before anything is stopped")
    }

    /// Tries the health checks of the set that runs: what the next one is measured against.
    fn baseline(&mut self, set: Set) -> Result<Vec<FailedCheck>> {
        let Some((manifest, _)) = self.store.manifest(set)? else {
            return Ok(Vec::new());
        };
        let timeout = self.config.service_timeout();
        let manager = Manager::new(&self.config.services, &self.host, timeout);
        Ok(prove::baseline(
            set,
            &manifest,
            &self.store,
            &manager,
            &mut self.log,
        ))
    }

    /// What a release's migration does to the data of this appliance.
    fn data_plan(&self, manifest: &Manifest, repair: bool, record: &Record) -> Result<DataPlan> {
        let refused = |why| {
            let what = format!("planning {}: {why}", manifest.version);
            Error::with(Exit::Refused, what)
        };
        if repair {
            return Ok(DataPlan {
                change: DataChange::None,
                data: Vec::new(),
                schemas: record.schemas.clone(),
            });
        }
        DataPlan::forward(manifest, &record.schemas, &self.config.data).map_err(refused)
    }

    /// The operation by which a newer image's factory set takes over, if that takes a migration.
    fn image_operation(&self, record: &Record) -> Result<Option<Operation>> {
        match &record.phase {
            Phase::Idle(idle) if !self.factory_boot() => {
                data::image_operation(&self.config, &self.host, &self.store, record, idle)
            }
            _ => Ok(None),
        }
    }

    /// Steps 6 to 10, detached from the caller's session and control group.
    fn switch(&mut self, op: Operation, record: &Record) -> Result<Exit> {
        leave_caller(&mut self.log);
        self.switch_of(op).run(record)
    }

    fn switch_of(&mut self, op: Operation) -> Switch<'_> {
        Switch::new(&self.host, &self.store, &mut self.log, op)
    }

    /// Step 2, first half: trust.
    fn refresh(&mut self, from: Option<&str>) -> Result<(Repository, Mirrors)> {
        let root_path = self.host.path(&self.config.trust_root)?;
        let root = store::read_if_there(&root_path, 1 << 20)?.ok_or_else(|| {
            Error::with(
                Exit::Usage,
                format!(
                    "reading the trust root {}: there is none",
                    root_path.display()
                ),
            )
        })?;
        let places = match from {
            Some(from) => vec![from.to_owned()],
            None => self.config.sources.clone(),
        };
        let options = self.options(&places)?;
        let places = places.into_iter().map(|place| match is_url(&place) {
            true => Ok(place),
            false => Ok(self.host.path(&place)?.display().to_string()),
        });
        let places = places.collect::<Result<Vec<_>>>()?;
        let mirrors = Mirrors::new(places, &options)?;
        let (store, clock) = (self.store.path("update/trust"), options.clock);
        let limits = &self.config.limits.trust;
        let refreshed =
            mirrors.refresh(|mirrors| Repository::refresh(mirrors, &store, &root, clock, limits));
        self.warn("trust", &mirrors);
        let repository = match refreshed {
            // The source has no part in it.
            Err(e) if e.exit == Exit::Usage => {
                Err(e).doing(|| format!("starting from {}", root_path.display()))
            }
            refreshed => refreshed,
        }?;
        let v = repository.versions();
        self.log.info(
            "trust",
            format!(
                "{} is trusted: root {}, timestamp {}, snapshot {}, targets {}",
                mirrors.name(),
                v.root,
                v.timestamp,
                v.snapshot,
                v.targets
            ),
        );
        let clock = repository.clock();
        let freshness = if clock.is_believed() {
            Freshness::Verified
        } else {
            self.log.warning(
                "trust",
                format!(
                    "freshness not verified: system clock {} is implausible; using {} (latest trusted time)",
                    host::timestamp(clock.system()),
                    host::timestamp(clock.now())
                ),
            );
            Freshness::NotVerified
        };
        let noted = self.store.write_refreshed(&Refreshed {
            time: host::timestamp(clock.now()),
            source: mirrors.name(),
            freshness,
            clock: host::timestamp(clock.system()),
            trust: v,
        });
        if let Err(e) = noted {
            self.log.warning("trust", e.chain());
        }
        Ok((repository, mirrors))
    }

    /// How these places are asked.
    fn options(&self, places: &[String]) -> Result<Options> {
        let config = &self.config;
        let web = places.iter().any(|place| is_url(place));
        let proxies = match &config.proxy {
            _ if !web => Proxies::default(),
            Some(proxy) => Proxies::configured(proxy.url.as_deref(), &proxy.no_proxy)?,
            None => Proxies::from_environment(|name| std::env::var(name).ok())?,
        };
        // For the configured sources only: what a person names is not necessarily entitled to them.
        let entitled = |place: &String| is_url(place) && config.sources.contains(place);
        let headers = match &config.headers_file {
            Some(file) if places.iter().any(entitled) => Headers::read(&self.host.path(file)?)?,
            _ => Headers::default(),
        };
        Ok(Options {
            ca_file: config
                .ca_file
                .as_deref()
                .map(|path| self.host.path(path))
                .transpose()?,
            clock: self.host.clock(),
            proxies,
            headers,
            patience: Patience::from(&config.limits),
        })
    }

    fn warn(&mut self, step: &str, mirrors: &Mirrors) {
        for warning in mirrors.take_warnings() {
            self.log.warning(step, warning);
        }
    }

    /// Step 2, second half: which release.
    fn select(
        &mut self,
        repository: &Repository,
        mirrors: &Mirrors,
        record: &Record,
        request: &Request,
    ) -> Result<Choice> {
        let refusals = self.store.refusals()?;
        // Which paths a release must have is not known without it.
        let factory = self.store.manifest(Set::Factory)?;
        let active = running(record);
        let ground = select::SelectionContext {
            product: &self.config.product,
            channel: &self.config.channel,
            arch: &machine()?,
            running: &active,
            schemas: &record.schemas,
            refusals: &refusals,
            factory: factory.as_ref().map(|(manifest, _)| manifest),
            declared: &self.config.data,
        };
        let wanted = Wanted {
            product: ground.product,
            channel: ground.channel,
            arch: ground.arch,
            version: request.version.as_ref(),
        };
        let mut left_out = Vec::new();
        let choice = repository.releases(mirrors, &wanted).and_then(|found| {
            left_out = found.left_out;
            select::select(&ground, request, &found.offers, &mut |offer| {
                repository.manifest(mirrors, offer)
            })
        });
        for why in left_out {
            self.log.warning("select", why);
        }
        self.warn("select", mirrors);
        choice
    }

    /// Step 3.
    fn plan(
        &mut self,
        candidate: &Candidate,
        data: &DataPlan,
        idle: &Idle,
        repository: &Repository,
        mirrors: &Mirrors,
    ) -> Result<Plan> {
        let alternate = idle.active.set.alternate();
        let outdated = self.outdated(idle.active.set, alternate)?;
        let restarts =
            |name: &Name| outdated.contains(name) || data.data.iter().any(|set| set.used_by(name));
        let leftovers = self.leftovers(candidate, repository, mirrors)?;
        let mut sets = Vec::new();
        for set in [idle.active.set, Set::from(alternate), Set::Factory] {
            match self.store.manifest(set) {
                Ok(Some((manifest, _))) => sets.push((set, manifest)),
                Ok(None) => {}
                // Which services its files are of is not known without it. Nothing is reused from others.
                Err(e) if set == idle.active.set => return Err(e),
                Err(_) => {}
            }
        }
        let ground = PlanContext {
            sets: &sets,
            downloads: self.store.path("update/downloads"),
            active: idle.active.set,
            copies_artifacts: mirrors.copies_artifacts(),
            release_bytes: self.config.limits.release_bytes,
            slots: self.store.path("slots"),
            alternate: self.store.slot(alternate),
            restarts: &restarts,
            leftovers: &leftovers,
            data_bytes: protect::space(&self.host, &self.store, &data.data)?,
        };
        plan::plan(&candidate.manifest, &ground, repository, mirrors)
    }

    /// The services whose processes still use what the slot holds, or held, that the next release goes to. Others that do are
    /// told of: what they use is kept until they end.
    fn outdated(&mut self, active: Set, alternate: Slot) -> Result<Vec<Name>> {
        let mut places = self.store.kept();
        places.push(self.store.slot(alternate));
        let users = self.store.users(&places);
        let manager = Manager::new(&self.config.services, &self.host, Duration::ZERO);
        let manifest = self.store.manifest(active)?;
        let manifest = manifest.as_ref().map(|(manifest, _)| manifest);
        let manifests: Vec<&Manifest> = manifest.into_iter().collect();
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
        candidate: &Candidate,
        repository: &Repository,
        mirrors: &Mirrors,
    ) -> Result<Vec<PathBuf>> {
        let mut wanted = Vec::new();
        for component in &candidate.manifest.components {
            let artifact = plan::artifact(component, repository, mirrors)?.1;
            wanted.push(artifact.sha256.to_string());
        }
        let directory = self.store.path("update/downloads");
        let reading = || format!("reading {}", directory.display());
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(&directory).doing(reading)? {
            let path = entry.doing(reading)?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            if !wanted.contains(&name.into_owned()) {
                leftovers.push(path);
            }
        }
        leftovers.extend(protect::leftovers(&self.store)?);
        Ok(leftovers)
    }

    /// A new operation.
    fn operation(&mut self, kind: OperationKind, before: Idle, to: Installed) -> Result<Operation> {
        let now = self.host.timestamp();
        let op = Operation::new(self.host.random_id()?, kind, before, to, &now);
        Ok(op.under_config(&self.config))
    }

    /// So that `status` tells of an attempt that failed before it had an operation.
    fn remember<T>(&mut self, result: Result<T>, request: &Apply, record: &Record) -> Result<T> {
        if let (Err(e), false) = (&result, request.dry_run) {
            let failure = Failure {
                at: self.host.timestamp(),
                result: e.exit,
                reason: e.chain(),
            };
            let told = Record {
                failure: Some(failure),
                ..record.clone()
            };
            if let Err(e) = self.store.save(&told) {
                self.log.warning("apply", e.chain());
            }
        }
        result
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
            format!("taking {} {}", manifest.product, manifest.version),
            details,
        );
    }

    fn current_record(&mut self) -> Record {
        match self.store.load() {
            Loaded::Record(record) => *record,
            _ => Record::idle(self.store.factory().0, None, &self.host.timestamp()),
        }
    }
}

enum Resumed {
    /// Nothing is open any more.
    Ready(Box<Record>),
    /// What was open ended badly.
    Ended(Exit),
}

fn running(record: &Record) -> Installed {
    record.idle_when_ended().active
}

fn wait_for_runlevel(how: &Services, host: &Host, log: &mut Log) {
    Manager::new(how, host, Duration::ZERO).wait_for_runlevel(log);
}

fn is_url(place: &str) -> bool {
    place.contains("://")
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
    // The leader of a process group may not make a session, and need not: no signal to its caller's group reaches it.
    // (Asking for the session first would not do: where its leader lives outside this PID namespace it has no number.)
    if let Err(e) = rustix::process::setsid()
        && e != rustix::io::Errno::PERM
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
