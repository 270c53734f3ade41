//! The procedure: what happens in which order. The steps themselves are elsewhere; the crate's documentation numbers
//! them.

mod adopt;
mod apply;
mod back;
mod confirm;
mod data;
mod receipt;
mod source;
mod watch;

use std::fs;
use std::path::Path;
use std::time::Duration;

use semver::Version;

use qx_release::error::{Context, Error, ErrorKind, Exit, Result};
use qx_release::manifest::{Manifest, Name};

use crate::data::migrate::{self, Failure};
use crate::model::config::{Config, Services};
use crate::model::dataplan::DataPlan;
use crate::model::idle::Idle;
use crate::model::operation::{Operation, OperationKind, return_to};
use crate::model::phase::Phase;
use crate::model::record::{Loaded, Record};
use crate::model::slot::Installed;
use crate::model::source::SourceAddress;
use crate::proof::{preflight, updater};
use crate::recovery::data as data_stage;
use crate::recovery::link;
use crate::store::{Lock, Store};
use crate::switch::Switch;
use crate::switch::inhibit::Inhibitors;
use crate::system::host::{self, Host};
use crate::system::log::Log;
use crate::system::service::Manager;

pub use adopt::Adopt;
pub use receipt::CameOn;

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
    /// Whether another process at work, and applications that must not be interrupted, are waited for.
    pub wait: bool,
    /// Whether applications are interrupted without being asked.
    pub force: bool,
    /// Whether the services are still to be started: then none is stopped or started, and the boot's `confirm` proves what was
    /// changed.
    pub at_boot: bool,
    /// The medium that a release came on, once there is one: a receipt goes there.
    pub medium: Option<CameOn>,
}

/// Where a person wants to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// The set that ran before.
    Previous,
    /// The factory set.
    Factory,
}

/// What confirms a release on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// That it is proved.
    ByProof,
    /// That a person says so, whatever a proof would say.
    ByPerson,
}

/// How far an install goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Goal {
    /// The release lies staged, and nothing has been stopped.
    Staged,
    /// Its migration was tried on a copy of the data besides.
    Rehearsed,
    /// It runs, and is proved.
    #[default]
    Proved,
}

/// What `apply` is asked for.
#[derive(Debug, Default)]
pub struct Apply {
    /// This version instead of the highest eligible one.
    pub version: Option<Version>,
    /// A URL, a directory or a bundle instead of the configured sources.
    pub from: Option<SourceAddress>,
    /// Show the plan and change nothing.
    pub dry_run: bool,
    /// Try the named version even if it is quarantined or held.
    pub retry: bool,
    /// Install the release again whose files were damaged, without a migration.
    pub repair: bool,
    /// How far it goes.
    pub goal: Goal,
}

impl Appliance {
    fn factory_boot(&self) -> bool {
        self.host.kernel_argument(host::FACTORY_BOOT)
    }

    fn told_to_use_the_factory_set(&self, doing: &str) -> Error {
        let what = format!(
            "{doing}: this boot uses the factory set ({}): boot without it, or run `qx-update rollback --to factory` to stay \
             on the factory set",
            host::FACTORY_BOOT
        );
        Error::with(ErrorKind::NeedsPerson, what)
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
            migrate::end_orphans(op.id, self.host.proc(), &mut self.log)?;
        }
        let outcome = link::link_stage(&self.host, &self.store, &mut self.log)?;
        // Whoever runs a command has come so far.
        if !self.at_boot {
            self.complete_boot(command);
        }
        if let Some(e) = outcome.obstacle {
            return Err(e).doing(|| format!("starting {command}"));
        }
        // At boot the runlevel starts them.
        let interrupted = outcome.interrupted.filter(|_| !self.at_boot);
        if let Some(op) = interrupted.filter(|op| !op.ran.is_empty()) {
            self.log.info(
                "services",
                "an earlier operation may have left services stopped",
            );
            leave_caller(&mut self.log);
            wait_for_runlevel(&op.manager, &self.host, &mut self.log);
            self.switch_of(op).start_services(outcome.show);
        }
        let mut record = outcome.record;
        if !self.at_boot && record.stopped.take().is_some() {
            self.store.save(&record)?;
        }
        // In the middle of an operation its data may be in two places.
        if record.operation().is_none() {
            let declared = &self.config.data;
            let (host, store, log) = (&self.host, &self.store, &mut self.log);
            record.schemas = crate::data::schemas(host, store, declared, &record.schemas, log);
        }
        Ok((lock, record))
    }

    /// This boot has come to its end. That it cannot be noted is no reason to do nothing.
    fn complete_boot(&mut self, command: &str) {
        if let Err(e) = self.store.complete_boot() {
            self.log.warning(command, e.chain());
        }
    }

    /// Deletes data that was kept long enough, or that the disk needs.
    fn tidy_data(&mut self, record: &Record) {
        let keep_s = self.config.limits.keep_data_s;
        let tidied = crate::data::tidy(&self.host, &self.store, record, keep_s, &mut self.log);
        if let Err(e) = tidied {
            self.log.warning("data", e.chain());
        }
    }

    /// Ends what an earlier process left open: a trial is proved, a way back is gone to its end.
    fn resume(&mut self, record: Record) -> Result<Resumed> {
        let (Phase::Trial { op, .. } | Phase::Reverting { op, .. }) = record.phase().clone() else {
            return Ok(Resumed::Ready(Box::new(record)));
        };
        if self.at_boot {
            let what = format!(
                "the {} of {} is in progress, and ends once the services run; boot with {} to give it up",
                record.phase().name(),
                op.to,
                host::ROLLBACK_BOOT
            );
            return Err(Error::with(ErrorKind::NeedsPerson, what));
        }
        leave_caller(&mut self.log);
        wait_for_runlevel(&op.manager, &self.host, &mut self.log);
        self.log.info(
            "resume",
            format!("resuming the {} of {}", record.phase().name(), op.to),
        );
        let came_on = |device| CameOn {
            device,
            named: true,
        };
        self.medium = op.medium.clone().map(came_on).or(self.medium.take());
        let switch = self.switch_of(op);
        let exit = match record.phase() {
            Phase::Reverting { cause, .. } => {
                return switch.conclude_revert(cause, &record).map(Resumed::Ended);
            }
            _ => switch.resume_trial(&record)?,
        };
        Ok(match exit {
            Exit::Done => Resumed::Ready(Box::new(self.current_record())),
            exit => Resumed::Ended(exit),
        })
    }

    /// The data sets that are there, and whose schema nobody knows.
    fn unknown_data(&self, record: &Record) -> Result<Vec<Name>> {
        crate::data::unknown(&self.host, &self.store, &self.config.data, &record.schemas)
    }

    /// What a release's migration does to the data of this appliance.
    fn data_plan(&self, manifest: &Manifest, repair: bool, record: &Record) -> Result<DataPlan> {
        let refused = |why| {
            let what = format!("planning {}: {why}", manifest.version);
            Error::with(ErrorKind::NotEligible, what)
        };
        if repair {
            return Ok(DataPlan::stay(&record.schemas));
        }
        DataPlan::forward(manifest, &record.schemas, &self.config.data).map_err(refused)
    }

    /// The operation by which a newer image's factory set takes over, if that takes a migration.
    fn image_operation(&self, record: &Record) -> Result<Option<Operation>> {
        match record.phase() {
            Phase::Idle(idle) if !self.factory_boot() => {
                data_stage::image_operation(&self.config, &self.host, &self.store, record, idle)
            }
            _ => Ok(None),
        }
    }

    /// What is left of an install once its release lies staged.
    fn reach(&mut self, goal: Goal, op: Operation, staged: &Record) -> Result<Exit> {
        match goal {
            Goal::Staged => {
                let what = format!("{} is staged; `qx-update apply` switches to it", op.to);
                self.log.info("stage", what);
                Ok(Exit::Done)
            }
            Goal::Rehearsed => self.switch_of(op).rehearse_only(staged),
            Goal::Proved => self.switch(op, staged),
        }
    }

    /// Steps 6 to 10, detached from the caller's session and control group; at boot only 7 and 8.
    fn switch(&mut self, op: Operation, record: &Record) -> Result<Exit> {
        if op.kind == OperationKind::Install
            && let Err(e) = updater::check(&self.host, &self.config, &self.store, op.to.set)
        {
            return self
                .switch_of(op)
                .reject("stage", Failure::of_release(e), record);
        }
        let manager = Manager::new(
            &self.config.services,
            &self.host,
            self.config.service_timeout(),
        );
        if manager.controls()
            && let Some((manifest, _)) = self.store.manifest(op.to.set)?
        {
            preflight::interpreters(&self.store, op.to.set, &manifest)?;
        }
        if self.at_boot {
            let (from, to) = (op.from().set, op.to.clone());
            let reached = self.switch_of(op).at_boot(record)?;
            return Ok(match reached.phase() {
                Phase::Trial { .. } => {
                    let what =
                        format!("{to} is on trial: `confirm` proves it once the services run");
                    self.log.info("switch", what);
                    Exit::Done
                }
                _ => return_to(from).into(),
            });
        }
        leave_caller(&mut self.log);
        self.switch_of(op).run(record)
    }

    fn switch_of(&mut self, op: Operation) -> Switch<'_> {
        let inhibitors = Inhibitors {
            by: &self.config.inhibit,
            wait: self.wait,
        };
        Switch::new(&self.host, &self.store, &mut self.log, op)
            .inhibited_by((!self.force).then_some(inhibitors))
    }

    /// A new operation.
    fn operation(&mut self, kind: OperationKind, before: Idle, to: Installed) -> Result<Operation> {
        let now = self.host.timestamp();
        let op = Operation::new(self.host.random_id()?, kind, before, to, &now);
        Ok(op.under_config(&self.config))
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
