//! The proof: the services run the files of this set, nothing runs another's, the health checks pass, and it stays
//! so for as long as the release asks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::health;
use crate::log::Log;
use crate::manifest::{Check, Manifest, Name, Service};
use crate::process::{self, FileId};
use crate::service::Manager;
use crate::slot::Set;
use crate::store::Store;

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long a process may take to appear, if no check's start period says more. An init script passes through a shell
/// and a supervisor first.
const APPEAR: Duration = Duration::from_secs(10);
/// How long a set without health checks must keep its processes.
const STABLE: Duration = Duration::from_secs(5);

/// What is to be proved.
pub struct Claim<'a> {
    /// The set that is to run.
    pub set: Set,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// The services that must run its files.
    pub services: Vec<&'a Service>,
    /// Files that must not be running any more, and what they belong to.
    pub old: Vec<(FileId, PathBuf)>,
}

/// Proves the claim, or says in one sentence why it does not hold.
pub fn prove(claim: &Claim, store: &Store, manager: &Manager, log: &mut Log) -> Result<(), String> {
    if !manager.may_look() {
        log.info("prove", "the services of another root are not looked at");
        return Ok(());
    }
    let proved = if manager.controls() {
        run_the_files(claim, store, manager, log)?
    } else {
        BTreeMap::new()
    };
    stay_healthy(claim, store, manager, &proved, log)
}

/// Tries every check of a set once, and logs how that went: what the next set is measured against.
pub fn baseline(set: Set, manifest: &Manifest, store: &Store, manager: &Manager, log: &mut Log) {
    if !manager.may_look() {
        return;
    }
    for check in &manifest.health {
        match health::try_once(check, &directory(set, store), manager) {
            Ok(()) => log.info(
                "baseline",
                format!("before the switch {} passes", check.probe),
            ),
            Err(why) => log.warning(
                "baseline",
                format!("before the switch {} fails: {why}", check.probe),
            ),
        }
    }
}

/// Step one: each service's process executes the file that was installed. Returns the processes.
fn run_the_files(
    claim: &Claim,
    store: &Store,
    manager: &Manager,
    log: &mut Log,
) -> Result<BTreeMap<Name, u32>, String> {
    let slowest = claim
        .manifest
        .health
        .iter()
        .map(|c| c.start_period_s)
        .max()
        .unwrap_or(0);
    let deadline = Instant::now() + APPEAR.max(Duration::from_secs(slowest));
    let mut proved = BTreeMap::new();
    for service in &claim.services {
        loop {
            match process_of(service, claim, store, manager) {
                Ok(pid) => {
                    log.info(
                        "prove",
                        format!(
                            "{} runs {} (process {pid})",
                            service.name,
                            process::executable_name(pid)
                        ),
                    );
                    proved.insert(service.name.clone(), pid);
                    break;
                }
                Err(why) if Instant::now() >= deadline => return Err(why),
                Err(_) => std::thread::sleep(TICK),
            }
        }
    }
    while let Some((pid, path)) = old_process(claim) {
        if Instant::now() >= deadline {
            return Err(format!(
                "process {pid} still runs the old {}",
                path.display()
            ));
        }
        std::thread::sleep(TICK);
    }
    Ok(proved)
}

/// The process of a service that executes the installed file: the one in its pidfile or a child of it; without a
/// pidfile any. Same inode, or the same bytes (an unchanged file may be installed twice).
fn process_of(
    service: &Service,
    claim: &Claim,
    store: &Store,
    manager: &Manager,
) -> Result<u32, String> {
    let Some(component) = claim.manifest.at(&service.runs) else {
        return Err(format!(
            "{} runs {}, which is not installed",
            service.name, service.runs
        ));
    };
    let installed = store.component(claim.set, component);
    let wanted = FileId::of(&installed).map_err(|e| format!("{}: {e}", installed.display()))?;
    let Some(pid) = manager.pid(&service.name) else {
        return match process::running(wanted).first() {
            Some(pid) => Ok(*pid),
            None => Err(format!(
                "service {}: no process runs the installed {}{}{}",
                service.name,
                installed.display(),
                namesake(&service.runs),
                manager
                    .runs(&service.name)
                    .err()
                    .map(|why| format!("; {why}"))
                    .unwrap_or_default()
            )),
        };
    };
    let same = |pid: &u32| {
        let exe = process::executable(*pid);
        FileId::of(&exe).is_ok_and(|id| id == wanted) || digest_of(*pid) == Some(component.sha256)
    };
    let family = process::family(pid);
    family.iter().copied().find(same).ok_or_else(|| {
        // A supervisor's child is the service; a lone process is itself.
        let seen = family.iter().rfind(|p| **p != pid).copied().unwrap_or(pid);
        format!(
            "service {} runs {} (process {seen}), not the installed {}",
            service.name,
            process::executable_name(seen),
            installed.display()
        )
    })
}

/// What runs under the file's own name elsewhere: usually the answer to why nothing runs the installed one.
fn namesake(path: &crate::manifest::RelPath) -> String {
    let found = process::all().into_iter().find_map(|pid| {
        let name = process::executable_name(pid);
        let same = PathBuf::from(&name)
            .file_name()
            .is_some_and(|n| n == path.file_name());
        same.then(|| format!("; process {pid} runs {name}"))
    });
    found.unwrap_or_default()
}

fn digest_of(pid: u32) -> Option<Digest> {
    let file = std::fs::File::open(process::executable(pid)).ok()?;
    Some(Digest::of_reader(file).ok()?.0)
}

fn old_process(claim: &Claim) -> Option<(u32, PathBuf)> {
    claim.old.iter().find_map(|(file, path)| {
        let me = std::process::id();
        let pid = process::running(*file).into_iter().find(|pid| *pid != me)?;
        Some((pid, path.clone()))
    })
}

/// One check on its way: first until it passes, then for as long as it must go on.
struct Watch<'a> {
    check: &'a Check,
    due: Instant,
    failures: u32,
    passing_since: Option<Instant>,
    why: String,
}

/// Step two: every check passes within its patience, and goes on passing; no proved process is replaced meanwhile.
fn stay_healthy(
    claim: &Claim,
    store: &Store,
    manager: &Manager,
    proved: &BTreeMap<Name, u32>,
    log: &mut Log,
) -> Result<(), String> {
    let start = Instant::now();
    let directory = directory(claim.set, store);
    let checks = &claim.manifest.health;
    let mut watches: Vec<Watch> = checks
        .iter()
        .map(|check| Watch {
            check,
            due: start,
            failures: 0,
            passing_since: None,
            why: String::new(),
        })
        .collect();
    loop {
        for (name, pid) in proved {
            still_runs(name, *pid, claim, store, manager, start)?;
        }
        for watch in &mut watches {
            let now = Instant::now();
            if now < watch.due {
                continue;
            }
            watch.due = now + Duration::from_secs(watch.check.interval_s);
            let result = health::try_once(watch.check, &directory, manager)
                .and_then(|()| own_listener(watch.check, claim, proved));
            match result {
                Ok(()) => {
                    watch.failures = 0;
                    if watch.passing_since.is_none() {
                        watch.passing_since = Some(Instant::now());
                        log.info("health", format!("{} passes", watch.check.probe));
                    }
                }
                Err(why) => {
                    let starting =
                        start.elapsed() < Duration::from_secs(watch.check.start_period_s);
                    if watch.why != why {
                        log.info("health", format!("{} fails: {why}", watch.check.probe));
                        watch.why = why;
                    }
                    // Having passed once, it is no longer starting.
                    if !starting || watch.passing_since.is_some() {
                        watch.failures += 1;
                    }
                    if watch.failures > watch.check.retries {
                        return Err(format!(
                            "the health check {} failed: {}",
                            watch.check.probe, watch.why
                        ));
                    }
                }
            }
        }
        let calm = |w: &Watch| {
            let stable = Duration::from_secs(w.check.stable_s);
            w.failures == 0
                && w.passing_since
                    .is_some_and(|since| since.elapsed() >= stable)
        };
        let unwatched = !watches.is_empty() || proved.is_empty() || start.elapsed() >= STABLE;
        if watches.iter().all(calm) && unwatched {
            log.info(
                "health",
                format!("healthy for {} s", start.elapsed().as_secs()),
            );
            return Ok(());
        }
        std::thread::sleep(TICK);
    }
}

fn still_runs(
    name: &Name,
    pid: u32,
    claim: &Claim,
    store: &Store,
    manager: &Manager,
    start: Instant,
) -> Result<(), String> {
    if process::alive(pid) {
        return Ok(());
    }
    let after = start.elapsed().as_secs();
    let service = claim.services.iter().find(|s| s.name == *name);
    let restarted = service.and_then(|s| process_of(s, claim, store, manager).ok());
    Err(match restarted {
        Some(new) => format!(
            "service {name} crashed and was started again {after} s into its trial (process {pid}, then {new})"
        ),
        None => format!("service {name} died {after} s into its trial (process {pid})"),
    })
}

/// A check of this machine's own port must be answered by a service of this set: an old process that kept the port
/// says nothing about the new one.
fn own_listener(check: &Check, claim: &Claim, proved: &BTreeMap<Name, u32>) -> Result<(), String> {
    let Some(port) = health::loopback_port(&check.probe) else {
        return Ok(());
    };
    if proved.is_empty() {
        return Ok(());
    }
    let owners = process::listeners(port);
    let ours = |pid: &u32| {
        proved.values().any(|p| p == pid)
            || proved.values().any(|p| process::family(*p).contains(pid))
            || digest_of(*pid).is_some_and(|digest| unchanged(digest, claim))
    };
    match owners.iter().next() {
        Some(pid) if !owners.iter().any(ours) => Err(format!(
            "port {port} is held by process {pid} ({}), which is no service of this release",
            process::executable_name(*pid)
        )),
        _ => Ok(()),
    }
}

/// Whether this is the program of a service that was not restarted: it goes on running from where it was
/// installed before.
fn unchanged(digest: Digest, claim: &Claim) -> bool {
    let restarted = |service: &Service| claim.services.iter().any(|s| s.name == service.name);
    let others = claim.manifest.services.iter().filter(|s| !restarted(s));
    others
        .filter_map(|s| claim.manifest.at(&s.runs))
        .any(|component| component.sha256 == digest)
}

fn directory(set: Set, store: &Store) -> PathBuf {
    set.slot()
        .map_or_else(|| PathBuf::from("/"), |slot| store.slot(slot))
}
