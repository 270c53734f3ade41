//! What `status` tells: what runs, as observed and not as hoped; what was tried last and how it ended; what to do now.

mod advice;
mod render;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::model::boots::Boot;
use crate::model::config::{Config, Services};
use crate::model::dataset::DataSet;
use crate::model::fit::Fit;
use crate::model::id::OperationId;
use crate::model::idle::{Idle, Trouble};
use crate::model::kept::Kept;
use crate::model::operation::{Attempt, EarlyFailure, OperationKind};
use crate::model::phase::{DataState, Phase};
use crate::model::record::{Loaded, Record};
use crate::model::refusal::Refusal;
use crate::model::slot::{Installed, Link, Set, Slot};
use crate::proof::observe::{Census, State};
use crate::store::{self, CommitPoint, Holder, Refreshed, Store};
use crate::system::host::{FACTORY_BOOT, Host};
use crate::system::proc::{FileId, Identity};
use crate::system::service::Manager;
use qx_release::error::Result;
use qx_release::manifest::{Manifest, Name};
use qx_release::text;

pub use render::for_people;

/// How many files that were added to a release are named at most.
const MAX_ADDED: usize = 5;

/// The answer. As JSON it is documented in `docs/formats.md`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// 1.
    pub format: u32,
    /// When this was observed (RFC 3339).
    pub time: String,
    /// The version of qx-update that says so.
    pub qx_update: &'static str,
    /// The appliance's product and channel, if the configuration can be read.
    pub product: Option<Name>,
    /// See `product`.
    pub channel: Option<Name>,
    /// The set that init scripts find.
    pub running: Installed,
    /// The plain directory in the place of `/data/bin` that hides every set: what lies in it runs.
    pub plain: Option<PathBuf>,
    /// Whether this boot was told to use the factory set.
    pub factory_boot: bool,
    /// Whether an operation that was cut short may have left services stopped.
    pub stopped: bool,
    /// Since when it runs (RFC 3339), where the record knows.
    pub since: Option<String>,
    /// What the appliance is in the middle of: `idle`, `staging`, `staged`, `switching`, `trial`, `reverting`, or
    /// `unknown` if there is no readable record.
    pub phase: &'static str,
    /// The open operation.
    pub operation: Option<Open>,
    /// What is used if the running set is damaged.
    pub fallback: Option<Installed>,
    /// The release that was left because its files were damaged, and can be installed again.
    pub lost: Option<Installed>,
    /// The last operation that ended.
    pub last: Option<Attempt>,
    /// An `apply` since then that failed before it had an operation.
    pub failure: Option<EarlyFailure>,
    /// The data sets that the appliance declares.
    pub data: Vec<DataSetState>,
    /// The data that is kept, the oldest first.
    pub kept_data: Vec<Kept>,
    /// Seconds for which data is kept.
    pub keep_data_s: Option<u64>,
    /// The last refresh of trust that succeeded, and whether it could tell what is fresh.
    pub refreshed: Option<Refreshed>,
    /// The running set's services.
    pub services: Vec<ServiceState>,
    /// Processes that still use another set's files.
    pub elsewhere: Vec<Elsewhere>,
    /// Releases that are not tried again by themselves.
    pub refused: Vec<Refusal>,
    /// The last boots, the oldest first: whether each came to its end, and what ended it where that is known.
    pub boots: Vec<Boot>,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// Whether the appliance cannot recover without manual intervention.
    pub needs_person: bool,
    /// The process that holds the lock.
    pub busy: Option<Holder>,
    /// What to do now, a sentence each.
    pub advice: Vec<String>,
}

/// An operation that has not ended.
#[derive(Debug, Serialize)]
pub struct Open {
    /// Its id, as in the log.
    pub id: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// What is to run.
    pub to: Installed,
    /// When it began (RFC 3339).
    pub started: String,
    /// How many further boots its trial has seen.
    pub boots: u32,
}

/// A data set, as it is now.
#[derive(Debug, Serialize)]
pub struct DataSetState {
    /// As releases call it.
    pub name: Name,
    /// Its schema, as recorded.
    pub schema: Option<u64>,
    /// What its files take, in bytes; absent for one that has commands of its own.
    pub bytes: Option<u64>,
    /// The most that it may take.
    pub limit_bytes: u64,
}

/// A service, as its process shows it.
#[derive(Debug, Serialize)]
pub struct ServiceState {
    /// As the service manager knows it.
    pub name: Name,
    /// `installed`: its process runs the installed file; `done`: it has run to its end, as it should; `other`: another file;
    /// `stopped`: no process.
    pub state: &'static str,
    /// Its process.
    pub pid: Option<u32>,
    /// The file that the process runs.
    pub runs: Option<String>,
    /// The file that it should run.
    pub installed: PathBuf,
    /// What is wrong, in one sentence; absent with `installed` and `done`.
    pub why: Option<String>,
}

/// A process that uses files of another set than the one that runs.
#[derive(Debug, Serialize)]
pub struct Elsewhere {
    /// Its id.
    pub pid: u32,
    /// The file that it executes.
    pub runs: String,
    /// What it uses.
    pub uses: String,
    /// The service whose process it is, if it is one's.
    pub service: Option<Name>,
    /// Whether its release declares that it outlives its service.
    pub left: bool,
}

impl Status {
    /// Looks. Takes no lock and writes nothing.
    pub fn observe(host: &Host, store: &Store, config: &Result<Config>) -> Status {
        let loaded = store.load();
        let record = match &loaded {
            Loaded::Record(record) => Some(&**record),
            Loaded::Absent | Loaded::Unreadable(_) => None,
        };
        let found = found(store);
        let factory_boot = host.kernel_argument(FACTORY_BOOT);
        let trouble = record.and_then(trouble);
        let held = record.and_then(|record| held(record, &found, host));
        let mut problems = problems(&loaded, store, config);
        let kept_data = or_problem(kept_data(host, store), &mut problems);
        let data = config.as_ref().map_or(&[][..], |config| &config.data);
        let data = data_sets(data, record, host, store, &mut problems);
        problems.extend(found.problems(store));
        problems.extend(record.and_then(|r| other_set(r, &found, factory_boot, store)));
        problems.extend(trouble.map(|t| t.what.clone()));
        let (services, elsewhere) = look_at_services(&found, host, store, config);
        let mut news = or_problem(watched(record, &services, host, store), &mut problems);
        news.extend(or_problem(withdrawn(&found.set, store), &mut problems));
        problems.extend(news);
        problems.extend(held.clone());
        let boots = store.boots();
        problems.extend(boots.problem(&host.moment().boot_id));
        let refused = or_problem(refused(store, &found.set), &mut problems);
        let refreshed = or_problem(store.refreshed(), &mut problems);
        let mut said = BTreeSet::new();
        problems.retain(|problem| said.insert(problem.clone()));
        let mut status = Status {
            format: 1,
            qx_update: env!("CARGO_PKG_VERSION"),
            time: host.timestamp(),
            product: config.as_ref().ok().map(|c| c.product.clone()),
            channel: config.as_ref().ok().map(|c| c.channel.clone()),
            since: record.and_then(|r| since(r, found.set.set)),
            running: found.set,
            plain: found.plain,
            factory_boot,
            stopped: record.is_some_and(|record| record.stopped.is_some()),
            phase: record.map_or("unknown", |r| r.phase().name()),
            operation: record.and_then(open),
            fallback: record.and_then(fallback).filter(|set| is_there(set, store)),
            lost: record.and_then(lost),
            last: record.and_then(|r| r.last.clone()),
            failure: record.and_then(|r| r.failure.clone()),
            data,
            kept_data,
            keep_data_s: config.as_ref().ok().map(|c| c.limits.keep_data_s),
            refreshed,
            services,
            elsewhere,
            refused,
            needs_person: trouble.is_some_and(|t| t.needs_person) || held.is_some(),
            busy: store.holder(),
            boots: boots.boots,
            problems,
            advice: Vec::new(),
        };
        status.advice = advice::advice(&status);
        status
    }
}

/// What was read, or nothing and a problem.
fn or_problem<T: Default>(read: Result<T>, problems: &mut Vec<String>) -> T {
    read.unwrap_or_else(|e| {
        problems.push(e.chain());
        T::default()
    })
}

/// What init scripts find.
struct Found {
    set: Installed,
    manifest: Option<Manifest>,
    /// A plain directory in the place of a fixed link: its files run, and no set's.
    plain: Option<PathBuf>,
    /// What could not be read.
    fault: Option<String>,
}

impl Found {
    /// What is wrong with it, a sentence each.
    fn problems(&self, store: &Store) -> Vec<String> {
        let mut problems: Vec<String> = self.fault.iter().cloned().collect();
        if let Some(plain) = &self.plain {
            problems.push(format!(
                "{} is a plain directory: init scripts use its files instead of any release; take it over as the first release \
                 (`qx-update adopt`), or move it away",
                plain.display()
            ));
        }
        if let (Some(slot), Some(manifest), Some(digest)) =
            (self.set.set.slot(), &self.manifest, self.set.manifest)
        {
            let added = store.added(slot, manifest, digest);
            problems.extend(added.iter().take(MAX_ADDED).map(|path| {
                let path = text::path(path);
                format!("{path} does not belong to the release: it was added later, is not verified, and the next update \
                 removes it")
            }));
            if let Some(more) = added.len().checked_sub(MAX_ADDED + 1) {
                problems.push(format!(
                    "{} more files do not belong to the release",
                    more + 1
                ));
            }
        }
        problems
    }
}

/// The set that init scripts find, and its manifest.
fn found(store: &Store) -> Found {
    let bin = store.path("bin");
    let plain = fs::symlink_metadata(&bin).is_ok_and(|meta| meta.is_dir());
    // The fixed link counts as much as the priority link; a slot may be hidden for this boot.
    let reachable = |slot: Slot| {
        let seen = store.followed("bin").ok();
        let seen = seen.and_then(|path| FileId::of(&path).ok());
        let directory = store.slot(slot);
        match FileId::of(&directory.join("bin")).ok() {
            Some(there) => seen == Some(there),
            // A release of pages alone has none; where its manifest is gone too, another file system lies over the slot.
            None => !store::is_absent(&store::manifest_path(&directory)),
        }
    };
    let set = match store.selected() {
        Link::To(slot) if !plain && reachable(slot) => Set::from(slot),
        _ => Set::Factory,
    };
    let (manifest, fault) = match store.manifest(set) {
        Ok(manifest) => (manifest, None),
        Err(e) => (None, Some(e.chain())),
    };
    Found {
        set: match &manifest {
            Some((manifest, digest)) => store::installed(set, manifest, *digest),
            None => Installed::unknown(set),
        },
        manifest: manifest.map(|(manifest, _)| manifest),
        plain: plain.then_some(bin),
        fault,
    }
}

/// What has become of the services since the running release was confirmed, as long as it is watched.
fn watched(
    record: Option<&Record>,
    services: &[ServiceState],
    host: &Host,
    store: &Store,
) -> Result<Vec<String>> {
    let Some((watched, record)) = store.watched()?.zip(record) else {
        return Ok(Vec::new());
    };
    if !watched.is_about(record) {
        return Ok(Vec::new());
    }
    let active = record.idle_when_ended().active;
    let now = host.moment();
    let over = watched.lasted.until(&now).seconds > watched.for_s;
    if let Some(problem) = watched.problem {
        return Ok(vec![format!("{problem}, after {active} was confirmed")]);
    }
    if over || watched.boot_id != now.boot_id {
        return Ok(Vec::new());
    }
    let proc = host.proc();
    // One that is down is told as that.
    let runs = |name: &Name| services.iter().any(|s| s.name == *name && s.pid.is_some());
    let again = watched.processes.iter().filter(|(name, process)| {
        runs(name) && proc.identity(process.0).map(Identity::key) != Some(**process)
    });
    let line = |(name, _)| {
        format!("service {name} was started again after {active} was confirmed: check its log")
    };
    Ok(again.map(line).collect())
}

/// The data that is kept, and for how long it has been.
fn kept_data(host: &Host, store: &Store) -> Result<Vec<Kept>> {
    let (mut kept, now) = (store.kept_data()?, host.moment());
    kept.iter_mut().for_each(|kept| kept.age(&now));
    Ok(kept)
}

/// That the running release was withdrawn, if that is known.
fn withdrawn(running: &Installed, store: &Store) -> Result<Option<String>> {
    let note = store.withdrawn()?;
    let note = note.filter(|note| running.manifest == Some(note.manifest));
    Ok(note.map(|note| note.what))
}

/// The data sets as they are. What cannot be measured is a problem now, before an update meets it.
fn data_sets(
    declared: &[DataSet],
    record: Option<&Record>,
    host: &Host,
    store: &Store,
    problems: &mut Vec<String>,
) -> Vec<DataSetState> {
    let state = |set: &DataSet| DataSetState {
        name: set.name.clone(),
        schema: record.and_then(|record| record.schemas_now().get(&set.name).copied()),
        bytes: or_problem(bytes(set, host, store), problems),
        limit_bytes: set.limit_bytes,
    };
    declared.iter().map(state).collect()
}

#[cfg(feature = "update")]
fn bytes(set: &DataSet, host: &Host, store: &Store) -> Result<Option<u64>> {
    crate::data::bytes(host, store, set)
}

/// What recovers only has no means to measure it.
#[cfg(not(feature = "update"))]
fn bytes(_: &DataSet, _: &Host, _: &Store) -> Result<Option<u64>> {
    Ok(None)
}

fn problems(loaded: &Loaded, store: &Store, config: &Result<Config>) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(e) = config {
        problems.push(e.chain());
    }
    let failures = or_problem(store.boot_failures(), &mut problems);
    problems.extend(failures);
    let note = or_problem(store.boot_note(), &mut problems);
    problems.extend(note.into_iter().flat_map(|note| note.problems));
    match loaded {
        Loaded::Unreadable(why) => problems.push(format!("the update state is unreadable: {why}")),
        Loaded::Absent if !store.path("update").exists() => {
            problems.push(format!(
                "{} does not exist: is the data partition mounted?",
                store.path("update").display()
            ));
        }
        Loaded::Absent if store.has_slots() => problems.push(
            "the update state is missing, though releases are installed: the next command or boot rebuilds it".into(),
        ),
        _ => {}
    }
    problems.extend(store.damaged());
    problems.extend(store.factory().1);
    problems
}

/// A problem if the active set is not the recorded one and nothing explains why.
fn other_set(record: &Record, found: &Found, factory_boot: bool, store: &Store) -> Option<String> {
    let kept = record.idle_when_ended().active;
    if factory_boot && kept.set != Set::Factory {
        return Some(format!(
            "this boot uses the factory set because {FACTORY_BOOT} is on the kernel command line; {kept} stays installed"
        ));
    }
    let (set, _) = recorded(record);
    if set == found.set.set || found.plain.is_some() || store.holder().is_some() {
        return None;
    }
    Some(format!(
        "the record names {set}, but the active set is: {}",
        found.set.set
    ))
}

fn trouble(record: &Record) -> Option<&Trouble> {
    match record.phase() {
        Phase::Idle(Idle { trouble, .. }) => trouble.as_ref(),
        _ => None,
    }
}

/// Why the services that use the data stay stopped until somebody intervenes, if they do.
fn held(record: &Record, found: &Found, host: &Host) -> Option<String> {
    if let Phase::Reverting {
        op,
        data: DataState::Exchanged,
        ..
    } = record.phase()
    {
        return Some(format!(
            "the data from before {} has not been restored yet",
            op.to
        ));
    }
    if record.is_stale_trial(&host.moment()) {
        return Some(
            "the trial is too old to restore the data automatically: `qx-update confirm` proves the release, \
             `qx-update confirm --force` keeps it, `qx-update rollback --set-aside-data` goes back"
                .into(),
        );
    }
    let why = Fit::of(found.manifest.as_ref()?, record.schemas_now()).obstacle()?;
    Some(format!(
        "services that use the data stay stopped: {} cannot run on it: {why}. Run `qx-update apply --repair`, or apply a \
         release that accepts the data",
        found.set
    ))
}

/// The refusals that still matter, newest first: releases older than the running one are not offered anyway.
fn refused(store: &Store, running: &Installed) -> Result<Vec<Refusal>> {
    let mut refused = store.refusals()?;
    refused.reverse();
    refused.retain(|refusal| match (&refusal.version, &running.version) {
        (Some(refused), Some(running)) => refused.cmp_precedence(running).is_ge(),
        _ => true,
    });
    Ok(refused)
}

/// What the record says is running, and since when.
fn recorded(record: &Record) -> (Set, String) {
    match record.phase() {
        Phase::Idle(idle) => (idle.active.set, idle.since.clone()),
        Phase::Trial { op, since, .. } => (op.to.set, since.clone()),
        Phase::Staging { op }
        | Phase::Staged { op }
        | Phase::Switching { op, .. }
        | Phase::Reverting { op, .. } => (op.from().set, op.before.since.clone()),
    }
}

/// Since when this set runs, if it is the one that the record names.
fn since(record: &Record, running: Set) -> Option<String> {
    let (set, since) = recorded(record);
    (set == running).then_some(since)
}

fn open(record: &Record) -> Option<Open> {
    let op = record.operation()?;
    let boots = match *record.phase() {
        Phase::Trial { boots, .. } => boots,
        _ => 0,
    };
    Some(Open {
        id: op.id,
        kind: op.kind,
        to: op.to.clone(),
        started: op.started.clone(),
        boots,
    })
}

fn fallback(record: &Record) -> Option<Installed> {
    match record.phase() {
        Phase::Idle(idle) => idle.fallback.clone(),
        Phase::Trial { op, .. } => Some(op.from().clone()),
        _ => record.operation().and_then(|op| op.back().fallback),
    }
}

fn lost(record: &Record) -> Option<Installed> {
    match record.phase() {
        Phase::Idle(idle) => idle.lost.clone(),
        _ => None,
    }
}

/// Whether a set still is the recorded one, by its manifest. If that cannot be read, it is assumed to be.
fn is_there(installed: &Installed, store: &Store) -> bool {
    match store.manifest(installed.set) {
        Ok(found) => {
            installed.set == Set::Factory || found.map(|(_, digest)| digest) == installed.manifest
        }
        Err(_) => installed
            .set
            .slot()
            .is_none_or(|slot| store.slot(slot).exists()),
    }
}

/// The running set's services, and every process that runs from another set's files or from what a slot held before.
fn look_at_services(
    found: &Found,
    host: &Host,
    store: &Store,
    config: &Result<Config>,
) -> (Vec<ServiceState>, Vec<Elsewhere>) {
    let default = Services::default();
    let how = config.as_ref().map_or(&default, |c| &c.services);
    let manager = Manager::new(how, host, Duration::from_secs(5));
    let Some(manifest) = found.manifest.as_ref().filter(|_| manager.controls()) else {
        return (Vec::new(), Vec::new());
    };
    let running = found.set.set;
    let census = Census::take(&[manifest], &[], store, &manager);
    let name = |process: Identity| census.name(process.pid);
    let services = manifest.services.iter().filter_map(|service| {
        let installed = store.program(running, manifest, service.runs.as_str())?;
        let seen = census.look(service, running, manifest);
        Some(ServiceState {
            name: service.name.clone(),
            state: match seen.state {
                State::Installed => "installed",
                State::Done => "done",
                State::Other => "other",
                State::Stopped => "stopped",
            },
            pid: seen.process.map(|process| process.pid),
            runs: seen.process.map(name),
            installed,
            why: seen.why,
        })
    });
    let slots = Slot::BOTH
        .into_iter()
        .filter(|slot| running != Set::from(*slot));
    let places = slots.map(|slot| store.slot(slot)).chain(store.kept());
    let users = store.users(&places.collect::<Vec<_>>());
    let elsewhere = users.into_iter().map(|user| Elsewhere {
        pid: user.process.pid,
        runs: name(user.process),
        uses: text::path(&user.path),
        service: census.owner(user.process.pid).cloned(),
        left: census.is_left(user.process.pid),
    });
    (services.collect(), elsewhere.collect())
}
