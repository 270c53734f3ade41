//! What `status` tells: what runs, as observed and not as hoped; what was tried last and how it ended; what to do now.

use crate::system::host::FACTORY_BOOT;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::model::config::{Config, Services};
use crate::model::fit::Fit;
use crate::model::record::Loaded;
use crate::model::record::{
    Attempt, DataState, Discarded, Failure, Idle, OperationKind, Phase, Record, Refusal,
    RefusalKind,
};
use crate::model::slot::{Installed, Link, Set, Slot};
use crate::proof::observe::{Census, State};
use crate::store::{self, Freshness, Holder, Refreshed, Store};
use crate::system::host::Host;
use crate::system::proc::{FileId, Identity};
use crate::system::service::Manager;
use qx_release::error::{Exit, Result};
use qx_release::manifest::{Manifest, Name};
use qx_release::text;

/// So many files that were added to a release are named.
const MAX_ADDED: usize = 5;

/// The answer. As JSON it is documented in `docs/formats.md`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// 1.
    pub format: u32,
    /// When this was observed (RFC 3339).
    pub time: String,
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
    pub failure: Option<Failure>,
    /// The last refresh of trust that succeeded, and whether it could tell what is fresh.
    pub refreshed: Option<Refreshed>,
    /// The running set's services.
    pub services: Vec<ServiceState>,
    /// Processes that still use another set's files.
    pub elsewhere: Vec<Elsewhere>,
    /// Releases that are not tried again by themselves.
    pub refused: Vec<Refusal>,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// Whether the appliance cannot help itself.
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
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// What is to run.
    pub to: Installed,
    /// When it began (RFC 3339).
    pub started: String,
    /// How many further boots its trial has seen.
    pub boots: u32,
}

/// A service, as its process shows it.
#[derive(Debug, Serialize)]
pub struct ServiceState {
    /// As the service manager knows it.
    pub name: Name,
    /// `installed`: its process runs the installed file; `other`: another file; `stopped`: no process.
    pub state: &'static str,
    /// Its process.
    pub pid: Option<u32>,
    /// The file that the process runs.
    pub runs: Option<String>,
    /// The file that it should run.
    pub installed: PathBuf,
    /// What is wrong, in one sentence; absent with `installed`.
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
        let Found {
            set: running,
            manifest,
            plain,
            fault,
        } = found(store);
        let mut problems = problems(&loaded, store, config);
        problems.extend(fault);
        if let Some(plain) = &plain {
            problems.push(format!(
                "{} is a plain directory: init scripts take what lies in it, and no release; move it away",
                plain.display()
            ));
        }
        if let (Some(slot), Some(manifest), Some(digest)) =
            (running.set.slot(), &manifest, running.manifest)
        {
            let added = store.added(slot, manifest, digest);
            problems.extend(added.iter().take(MAX_ADDED).map(|path| {
                let path = text::path(path);
                format!("{path} is not the release's: it was added, is not checked, and goes with the next update")
            }));
            if let Some(more) = added.len().checked_sub(MAX_ADDED + 1) {
                problems.push(format!("{} more were added", more + 1));
            }
        }
        let recorded = record.map(recorded);
        let factory_boot = host.kernel_argument(FACTORY_BOOT);
        if let Some(kept) = record.filter(|_| factory_boot).map(Record::idle_when_ended)
            && kept.active.set != Set::Factory
        {
            problems.push(format!(
                "this boot was told to use the factory set, by {} on the kernel's command line; {} is kept",
                FACTORY_BOOT,
                kept.active
            ));
        } else if let Some((set, _)) = &recorded
            && *set != running.set
            && plain.is_none()
            && store.holder().is_none()
        {
            problems.push(format!(
                "the record names {set}, but the active set is: {}",
                running.set
            ));
        }
        let trouble = match record.map(|r| &r.phase) {
            Some(Phase::Idle(Idle {
                trouble: Some(trouble),
                ..
            })) => Some(trouble),
            _ => None,
        };
        problems.extend(trouble.map(|t| t.what.clone()));
        let held = record.and_then(|record| held(record, &running, manifest.as_ref(), host));
        problems.extend(held.clone());
        let mut refused = store.refusals().unwrap_or_else(|e| {
            problems.push(format!(
                "{}; nothing is tried until `qx-update reset` begins a new list",
                e.chain()
            ));
            Vec::new()
        });
        // The newest first; what is older than what runs is offered to nobody.
        refused.reverse();
        refused.retain(|refusal| match (&refusal.version, &running.version) {
            (Some(refused), Some(running)) => refused.cmp_precedence(running).is_ge(),
            _ => true,
        });
        let refreshed = store.refreshed().unwrap_or_else(|e| {
            problems.push(e.chain());
            None
        });
        let mut said = BTreeSet::new();
        problems.retain(|problem| said.insert(problem.clone()));
        let default = Services::default();
        let how = config.as_ref().map_or(&default, |c| &c.services);
        let manager = Manager::new(how, host, Duration::from_secs(5));
        let (services, elsewhere) = match &manifest {
            Some(manifest) if manager.controls() => {
                look_at_services(&running, manifest, store, &manager)
            }
            _ => (Vec::new(), Vec::new()),
        };
        let mut status = Status {
            format: 1,
            time: host.timestamp(),
            product: config.as_ref().ok().map(|c| c.product.clone()),
            channel: config.as_ref().ok().map(|c| c.channel.clone()),
            since: recorded.and_then(|(set, since)| (set == running.set).then_some(since)),
            running,
            plain,
            factory_boot,
            stopped: record.is_some_and(|record| record.stopped.is_some()),
            phase: record.map_or("unknown", |r| r.phase.name()),
            operation: record.and_then(open),
            fallback: record.and_then(fallback).filter(|set| is_there(set, store)),
            lost: record.and_then(|r| match &r.phase {
                Phase::Idle(idle) => idle.lost.clone(),
                _ => None,
            }),
            last: record.and_then(|r| r.last.clone()),
            failure: record.and_then(|r| r.failure.clone()),
            refreshed,
            services,
            elsewhere,
            refused,
            needs_person: trouble.is_some_and(|t| t.needs_person) || held.is_some(),
            busy: store.holder(),
            problems,
            advice: Vec::new(),
        };
        status.advice = advice(&status);
        status
    }
}

/// Why what uses the data waits for a person, if it does.
fn held(
    record: &Record,
    running: &Installed,
    manifest: Option<&Manifest>,
    host: &Host,
) -> Option<String> {
    if let Phase::Reverting {
        op,
        data: DataState::Saved,
        ..
    } = &record.phase
    {
        return Some(format!("the data of before {} is not restored yet", op.to));
    }
    if record.is_stale_trial(&host.moment()) {
        return Some(
            "the trial is too old for its data to be restored unasked: `qx-update confirm` proves the release, \
             `qx-update confirm --force` keeps it, `qx-update rollback --discard-data` goes back"
                .into(),
        );
    }
    let why = Fit::of(manifest?, record.schemas_now()).obstacle()?;
    Some(format!(
        "services that use the data stay stopped: {running} is to run, and {why}: `qx-update apply --repair`, or a release that \
         accepts the data, ends that"
    ))
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
    let set = match store.link() {
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

fn problems(loaded: &Loaded, store: &Store, config: &Result<Config>) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(e) = config {
        problems.push(e.chain());
    }
    match store.boot_note() {
        Ok(note) => problems.extend(note.into_iter().flat_map(|note| note.problems)),
        Err(e) => problems.push(e.chain()),
    }
    match loaded {
        Loaded::Unreadable(why) => problems.push(format!("the update state is unreadable: {why}")),
        Loaded::Absent if !store.path("update").exists() => {
            problems.push(format!(
                "{} is not there: is the data partition mounted?",
                store.path("update").display()
            ));
        }
        Loaded::Absent if store.has_slots() => problems.push(
            "the update state is missing, though releases are installed: the next command or boot makes it anew".into(),
        ),
        _ => {}
    }
    problems.extend(store.factory().1);
    problems
}

/// What the record says is running, and since when.
fn recorded(record: &Record) -> (Set, String) {
    match &record.phase {
        Phase::Idle(idle) => (idle.active.set, idle.since.clone()),
        Phase::Trial { op, since, .. } => (op.to.set, since.clone()),
        Phase::Staging { op }
        | Phase::Staged { op }
        | Phase::Switching { op, .. }
        | Phase::Reverting { op, .. } => (op.from().set, op.before.since.clone()),
    }
}

fn open(record: &Record) -> Option<Open> {
    let op = record.operation()?;
    let boots = match record.phase {
        Phase::Trial { boots, .. } => boots,
        _ => 0,
    };
    Some(Open {
        id: op.id.clone(),
        kind: op.kind,
        to: op.to.clone(),
        started: op.started.clone(),
        boots,
    })
}

fn fallback(record: &Record) -> Option<Installed> {
    match &record.phase {
        Phase::Idle(idle) => idle.fallback.clone(),
        Phase::Trial { op, .. } => Some(op.from().clone()),
        _ => record.operation().and_then(|op| op.back().fallback),
    }
}

/// Whether a set still is what the record calls it, by its manifest. One that cannot be read may be.
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
    running: &Installed,
    manifest: &Manifest,
    store: &Store,
    manager: &Manager,
) -> (Vec<ServiceState>, Vec<Elsewhere>) {
    let census = Census::take(&[manifest], &[], store, manager);
    let proc = manager.host().proc();
    let name = |process: Identity| proc.executable_name(process.pid);
    let services = manifest.services.iter().filter_map(|service| {
        let component = manifest.at(&service.runs)?;
        let seen = census.look(service, running.set, manifest);
        Some(ServiceState {
            name: service.name.clone(),
            state: match seen.state {
                State::Installed => "installed",
                State::Other => "other",
                State::Stopped => "stopped",
            },
            pid: seen.process.map(|process| process.pid),
            runs: seen.process.map(name),
            installed: store
                .component(running.set, component)
                .unwrap_or_else(|_| component.install_path.as_str().into()),
            why: seen.why,
        })
    });
    let slots = Slot::BOTH
        .into_iter()
        .filter(|slot| running.set != Set::from(*slot));
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

fn advice(status: &Status) -> Vec<String> {
    let mut advice = Vec::new();
    if let Some(holder) = &status.busy {
        advice.push(format!(
            "wait: process {} ({}) is at work since {}; `qx-update log` shows how far it is",
            holder.pid, holder.command, holder.since
        ));
        return advice;
    }
    match status.phase {
        // In such a boot nothing is concluded.
        _ if status.factory_boot => {}
        "trial" | "reverting" | "switching" | "staging" => advice.push(format!(
            "an operation was interrupted while {}: `qx-update confirm` takes it up again (so does the next boot)",
            status.phase
        )),
        "staged" => advice.push("a release is staged: `qx-update apply` switches to it".into()),
        _ => {}
    }
    if status.stopped {
        advice.push(
            "an operation was cut short after it had stopped services: `qx-update confirm` starts them"
                .into(),
        );
    }
    if status.factory_boot {
        advice.push(format!(
            "boot without {} to go on with the release, or `qx-update rollback --to factory` to stay with the factory set",
            FACTORY_BOOT
        ));
    }
    if status.needs_person {
        advice.push(
            "a person is needed: see the problem above; when it is dealt with, `qx-update reset`"
                .into(),
        );
    }
    if status.lost.is_some() {
        advice.push(
            "a damaged release was left: `qx-update apply --repair` installs it again".into(),
        );
    }
    for service in status.services.iter().filter(|s| s.state == "stopped") {
        advice.push(format!(
            "{} has no process: start it, and look at its own log",
            service.name
        ));
    }
    for service in status.services.iter().filter(|s| s.state == "other") {
        advice.push(format!(
            "{} runs {}, not {}: restart it, and look at which path its init script takes",
            service.name,
            service.runs.as_deref().unwrap_or("nothing"),
            service.installed.display()
        ));
    }
    if let Some(failure) = &status.failure {
        advice.push(match failure.result {
            Exit::NoSpace => "make room in the data directory, then `qx-update apply`".into(),
            Exit::NeedsPerson | Exit::BackToPrevious | Exit::BackToFactory => {
                "mend what the failed attempt names, then `qx-update confirm`".into()
            }
            _ => "mend what the failed attempt names, then `qx-update apply`: nothing was changed by it".into(),
        });
    }
    if let Some(last) = &status.last {
        let refused = status
            .refused
            .iter()
            .any(|r| Some(r.manifest) == last.to.manifest);
        let failed = matches!(
            last.result,
            Exit::BackToPrevious | Exit::BackToFactory | Exit::NeedsPerson
        );
        match &last.to.version {
            Some(version) if failed && refused => advice.push(format!(
                "{version} is not tried again by itself: publish a release with a higher version, or, if the cause lay \
                 elsewhere, `qx-update apply {version} --retry`"
            )),
            _ if failed => advice.push("it was not the release's fault: the next `qx-update apply` tries again".into()),
            _ if matches!(last.result, Exit::Failed | Exit::Refused | Exit::NoSpace) => {
                advice.push("nothing was changed: mend what the last attempt names, then `qx-update apply`".into());
            }
            _ => {}
        }
    }
    if (status.refreshed.as_ref()).is_some_and(|r| r.freshness == Freshness::NotVerified) {
        advice.push("set the clock, then `qx-update check`: updates go on without, but only a clock tells what is stale".into());
    }
    if advice.is_empty() {
        let calm = if status.problems.is_empty() {
            "nothing to do"
        } else {
            "see what is named above"
        };
        advice.push(calm.into());
    }
    advice
}

/// The answer as text.
pub fn for_people(status: &Status) -> String {
    let mut lines = Vec::new();
    // Processes and servers have a part in the texts: each stays one line.
    let mut add = |name: &str, text: String| lines.push(format!("{name:<10}{}", text::line(&text)));
    let since = status
        .since
        .as_ref()
        .map(|s| format!(", since {s}"))
        .unwrap_or_default();
    match &status.plain {
        Some(plain) => add(
            "running",
            format!("what lies in {}, a plain directory", plain.display()),
        ),
        None => add("running", format!("{}{since}", status.running)),
    }
    for service in &status.services {
        let told = match (service.state, service.pid, &service.runs) {
            ("installed", Some(pid), Some(path)) => format!("process {pid} runs {path}"),
            (_, Some(pid), Some(path)) => {
                format!(
                    "process {pid} runs {path}, NOT {}",
                    service.installed.display()
                )
            }
            _ => match &service.why {
                Some(why) => format!("NOT RUNNING: {why}"),
                None => "NOT RUNNING".into(),
            },
        };
        add("service", format!("{}: {told}", service.name));
    }
    for process in &status.elsewhere {
        let whose = match (&process.service, process.left) {
            (_, true) => ", left behind on purpose".to_owned(),
            (Some(service), _) => format!(", of {service}"),
            (None, false) => String::new(),
        };
        add(
            "elsewhere",
            format!(
                "process {} ({}{whose}) still uses {}",
                process.pid, process.runs, process.uses
            ),
        );
    }
    match &status.fallback {
        Some(fallback) => add("fallback", fallback.to_string()),
        None => add("fallback", "factory set".into()),
    }
    if let Some(open) = &status.operation {
        let boots = match open.boots {
            0 => String::new(),
            n => format!(", boot {n}"),
        };
        add(
            "phase",
            format!(
                "{}: {} to {}, since {}{boots}",
                status.phase,
                verb(open.kind),
                open.to,
                open.started
            ),
        );
    } else if status.phase == "unknown" {
        add("phase", "unknown: there is no readable record".into());
    }
    match &status.last {
        None => add("last", "nothing was tried yet".into()),
        Some(last) => {
            add(
                "last",
                format!("{} from {} to {}", verb(last.kind), last.from, last.to),
            );
            add(
                "",
                format!(
                    "began {}, ended {}: {}",
                    last.started,
                    last.ended,
                    match (last.result, last.unproved.as_slice()) {
                        (Exit::Done, [_, ..]) =>
                            format!("done, not proved: {} (exit 0)", last.unproved.join("; ")),
                        _ => result(last.result),
                    }
                ),
            );
            if let Some(reason) = &last.reason {
                add("reason", reason.clone());
            }
            for line in &last.output {
                add("", line.clone());
            }
            if let Some(Discarded { from, to, kept }) = &last.discarded {
                let kept = match kept {
                    Some(place) => format!("it is kept in {place}"),
                    None => "it is not kept".into(),
                };
                add(
                    "data",
                    format!("what was written from {from} to {to} was dropped; {kept}"),
                );
            }
        }
    }
    if let Some(failure) = &status.failure {
        add(
            "since then",
            format!("{}: an attempt {}", failure.at, result(failure.result)),
        );
        add("reason", failure.reason.clone());
    }
    if let Some(refreshed) = &status.refreshed {
        add(
            "trust",
            format!("refreshed {} from {}", refreshed.time, refreshed.source),
        );
        if refreshed.freshness == Freshness::NotVerified {
            add(
                "",
                format!(
                    "freshness not verified: the clock said {}, which cannot be; newer releases may have been withheld",
                    refreshed.clock
                ),
            );
        }
    }
    for refused in &status.refused {
        let version = refused
            .version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let kind = match refused.kind {
            RefusalKind::Quarantined => "quarantined",
            RefusalKind::Held => "held",
        };
        add(
            "refused",
            format!(
                "{version} is {kind} since {}: {}",
                refused.at, refused.reason
            ),
        );
    }
    for problem in &status.problems {
        add("problem", problem.clone());
    }
    for advice in &status.advice {
        add("now", advice.clone());
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn verb(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Install => "install",
        OperationKind::Rollback => "rollback",
        OperationKind::Factory => "return",
        OperationKind::Image => "take-over by the image,",
    }
}

fn result(exit: Exit) -> String {
    let text = match exit {
        Exit::Done => "done, proved healthy",
        Exit::BackToPrevious => "FAILED; the previous release runs again",
        Exit::BackToFactory => "FAILED; the factory set runs",
        Exit::NeedsPerson => "FAILED, and needs a person",
        Exit::NoSpace => "failed for lack of space; nothing changed",
        Exit::Refused => "refused; nothing changed",
        _ => "failed; nothing changed",
    };
    format!("{text} (exit {})", exit.code())
}
