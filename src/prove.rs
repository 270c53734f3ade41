//! The proof: the services run the files of this set, nothing runs another's, the health checks pass, and it stays
//! so for as long as the release asks.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::health;
use crate::log::Log;
use crate::manifest::{Check, Manifest, Name, RelPath, Service};
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
    /// The checks that failed before the switch already: what each asks.
    pub failed_before: &'a [String],
}

/// Proves the claim, or says in one sentence why it does not hold. Returns what a person should know all the same: checks
/// that fail as they did before the switch.
pub fn prove(
    claim: &Claim,
    store: &Store,
    manager: &Manager,
    log: &mut Log,
) -> Result<Vec<String>, String> {
    if !manager.may_look() {
        log.info("prove", "the services of another root are not looked at");
        return Ok(Vec::new());
    }
    let proved = if manager.controls() {
        run_the_files(claim, store, manager, log)?
    } else {
        Vec::new()
    };
    stay_healthy(claim, store, manager, &proved, log)
}

/// Tries every check of a set once: what the next set is measured against. Returns what the checks that failed ask.
pub fn baseline(
    set: Set,
    manifest: &Manifest,
    store: &Store,
    manager: &Manager,
    log: &mut Log,
) -> Vec<String> {
    let mut failed = Vec::new();
    if !manager.may_look() {
        return failed;
    }
    for check in &manifest.health {
        match try_check(check, set, manifest, store, manager) {
            Ok(()) => log.info(
                "baseline",
                format!("before the switch {} passes", check.probe),
            ),
            Err(why) => {
                log.warning(
                    "baseline",
                    format!("before the switch {} fails: {why}", check.probe),
                );
                failed.push(check.probe.to_string());
            }
        }
    }
    failed
}

/// Step one: each service's process executes the file that was installed. Returns the processes.
fn run_the_files(
    claim: &Claim,
    store: &Store,
    manager: &Manager,
    log: &mut Log,
) -> Result<Vec<(Name, u32)>, String> {
    let slowest = claim
        .manifest
        .health
        .iter()
        .map(|c| c.start_period_s)
        .max()
        .unwrap_or(0);
    let deadline = Instant::now() + APPEAR.max(Duration::from_secs(slowest));
    let mut proved = Vec::new();
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
                    proved.push((service.name.clone(), pid));
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
    let installed = store
        .component(claim.set, component)
        .map_err(|e| e.chain())?;
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
        let seen = family.get(1).copied().unwrap_or(pid);
        format!(
            "service {} runs {} (process {seen}), not the installed {}",
            service.name,
            process::executable_name(seen),
            installed.display()
        )
    })
}

/// What runs under the file's own name elsewhere: usually the answer to why nothing runs the installed one.
fn namesake(path: &RelPath) -> String {
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
    /// Tries in a row that failed and count.
    failures: u32,
    passing_since: Option<Instant>,
    passed_once: bool,
    why: String,
    /// Why it is not watched any more, though it failed.
    excused: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(check: &'a Check, now: Instant) -> Watch<'a> {
        Watch {
            check,
            due: now,
            failures: 0,
            passing_since: None,
            passed_once: false,
            why: String::new(),
            excused: None,
        }
    }

    /// The check has failed. That is no regression if it did so before the switch already, unless the release is held to it.
    fn end(&mut self, why: String, failed_before: &[String]) -> Result<(), String> {
        if self.check.required || !failed_before.contains(&self.check.probe.to_string()) {
            return Err(why);
        }
        self.excused = Some(format!("{why}, as it did before the switch"));
        Ok(())
    }

    /// Takes the result of one try, `since_start` after the services were started. `Err`: the check has failed.
    fn take(
        &mut self,
        result: Result<(), String>,
        since_start: Duration,
        log: &mut Log,
    ) -> Result<(), String> {
        let probe = &self.check.probe;
        match result {
            Ok(()) => {
                if self.passing_since.is_none() {
                    log.info("health", format!("{probe} passes"));
                    self.passing_since = Some(Instant::now());
                }
                self.failures = 0;
                self.passed_once = true;
                self.why.clear();
                Ok(())
            }
            Err(why) => {
                if self.why != why {
                    log.info("health", format!("{probe} fails: {why}"));
                    self.why = why;
                }
                // The time that it must stay healthy begins anew.
                self.passing_since = None;
                // Having passed once, it is no longer starting.
                let starting = since_start < Duration::from_secs(self.check.start_period_s)
                    && !self.passed_once;
                self.failures += u32::from(!starting);
                if self.failures > self.check.retries {
                    return Err(format!("the health check {probe} failed: {}", self.why));
                }
                Ok(())
            }
        }
    }

    fn calm(&self) -> bool {
        self.passing_since
            .is_some_and(|since| since.elapsed() >= Duration::from_secs(self.check.stable_s))
    }

    /// The longest that a check which comes to an end can take: every try slow and failed but the last that is allowed.
    fn patience(&self) -> Duration {
        let c = self.check;
        let tries = u64::from(c.retries) + 2;
        Duration::from_secs(c.start_period_s + tries * (c.interval_s + c.timeout_s) + c.stable_s)
    }
}

/// Step two: every check passes within its patience, and goes on passing; no proved process is replaced meanwhile.
fn stay_healthy(
    claim: &Claim,
    store: &Store,
    manager: &Manager,
    proved: &[(Name, u32)],
    log: &mut Log,
) -> Result<Vec<String>, String> {
    let start = Instant::now();
    let mut remarks = Vec::new();
    let mut watches: Vec<Watch> = claim
        .manifest
        .health
        .iter()
        .map(|check| Watch::new(check, start))
        .collect();
    // Checks that take turns in failing never fail for good, and never are calm together.
    let patience = watches.iter().map(Watch::patience).sum::<Duration>() + STABLE;
    loop {
        for (name, pid) in proved {
            still_runs(name, *pid, claim, store, manager, start)?;
        }
        for watch in &mut watches {
            if Instant::now() < watch.due {
                continue;
            }
            watch.due = Instant::now() + Duration::from_secs(watch.check.interval_s);
            let result = try_check(watch.check, claim.set, claim.manifest, store, manager)
                .and_then(|()| own_listener(watch.check, claim, proved));
            if let Err(why) = watch.take(result, start.elapsed(), log) {
                watch.end(why, claim.failed_before)?;
            }
        }
        if start.elapsed() > patience
            && let Some(watch) = watches.iter_mut().find(|watch| !watch.calm())
        {
            let why = format!(
                "the health check {} did not pass for {} s at a stretch in {} s: {}",
                watch.check.probe,
                watch.check.stable_s,
                patience.as_secs(),
                watch.why
            );
            watch.end(why, claim.failed_before)?;
        }
        watches.retain_mut(|watch| match watch.excused.take() {
            None => true,
            Some(remark) => {
                log.warning("health", remark.clone());
                remarks.push(remark);
                false
            }
        });
        let long_enough = !watches.is_empty() || proved.is_empty() || start.elapsed() >= STABLE;
        if watches.iter().all(Watch::calm) && long_enough {
            log.info(
                "health",
                format!("healthy after {} s", start.elapsed().as_secs()),
            );
            return Ok(remarks);
        }
        std::thread::sleep(TICK);
    }
}

/// One try of a check, its program found where the set has it.
fn try_check(
    check: &Check,
    set: Set,
    manifest: &Manifest,
    store: &Store,
    manager: &Manager,
) -> Result<(), String> {
    let find = |program: &str| store.program(set, manifest, program);
    let directory = store.directory(set);
    health::try_once(check, &find, &directory, manager)
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
fn own_listener(check: &Check, claim: &Claim, proved: &[(Name, u32)]) -> Result<(), String> {
    let Some(port) = health::loopback_port(&check.probe) else {
        return Ok(());
    };
    if proved.is_empty() {
        return Ok(());
    }
    let owners = process::listeners(port);
    let ours = |pid: &u32| {
        proved.iter().any(|(_, p)| p == pid)
            || proved
                .iter()
                .any(|(_, p)| process::family(*p).contains(pid))
            || digest_of(*pid).is_some_and(|digest| unchanged(digest, claim))
    };
    match owners.iter().find(|pid| !ours(pid)) {
        Some(pid) => Err(format!(
            "port {port} is held by process {pid} ({}), which is no service of this release",
            process::executable_name(*pid)
        )),
        None => Ok(()),
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

/// Whether the process of a service, if it has one, runs these bytes already: as the file itself, or as one like it.
pub fn runs_the_bytes(
    service: &Service,
    set: Set,
    manifest: &Manifest,
    store: &Store,
    manager: &Manager,
) -> bool {
    let claim = Claim {
        set,
        manifest,
        services: Vec::new(),
        old: Vec::new(),
        failed_before: &[],
    };
    manager.pid(&service.name).is_none() || process_of(service, &claim, store, manager).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Place;
    use crate::manifest::Probe;

    fn log() -> Log {
        Log::new(
            Place {
                path: "/dev/null".into(),
                max_bytes: u64::MAX,
                keep: 0,
            },
            false,
        )
    }

    fn check(retries: u32) -> Check {
        let probe = Probe::Tcp {
            address: "127.0.0.1:1".into(),
        };
        Check {
            probe,
            interval_s: 1,
            timeout_s: 1,
            retries,
            start_period_s: 10,
            stable_s: 0,
            required: false,
        }
    }

    /// A store and a host of its own below a temporary directory, with one bin component in slot a.
    fn world() -> (tempfile::TempDir, crate::host::Host, Store, Manifest) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("data/slots/a/bin")).unwrap();
        let host = crate::host::Host::new(directory.path()).unwrap();
        let store = Store::new(&host, "/data", "/factory.json").unwrap();
        let text = serde_json::json!({
            "format": 1, "product": "os", "version": "1.0.0", "arch": "x86_64", "channel": "stable", "released": "",
            "components": [{"name": "node", "kind": "bin", "install_path": "bin/node", "mode": "0755",
                            "sha256": Digest::of(b"node"), "size_bytes": 1, "entries": 1}],
            "services": [{"name": "node", "runs": "bin/node"}],
        });
        let manifest = Manifest::parse(&serde_json::to_vec(&text).unwrap()).unwrap();
        (directory, host, store, manifest)
    }

    /// A process that runs a copy of `sleep` at `path`, ended when dropped.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn at(path: &std::path::Path) -> Sleeper {
            std::fs::copy("/bin/sleep", path).unwrap();
            let child = std::process::Command::new(path)
                .arg("1000")
                .spawn()
                .unwrap();
            let file = FileId::of(path).unwrap();
            while !process::running(file).contains(&child.id()) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Sleeper(child)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn an_old_process_spoils_the_proof() {
        let (directory, host, store, manifest) = world();
        let _new = Sleeper::at(&store.slot(crate::slot::Slot::A).join("bin/node"));
        let how = crate::config::Services::Commands {
            start: vec!["true".into()],
            stop: vec!["true".into()],
            status: vec!["true".into()],
            pidfile: None,
        };
        let manager = Manager::new(&how, &host, Duration::from_secs(60));
        let old_path = directory.path().join("old");
        let old = Sleeper::at(&old_path);
        let claim = Claim {
            set: Set::A,
            manifest: &manifest,
            services: manifest.services.iter().collect(),
            old: vec![(FileId::of(&old_path).unwrap(), old_path.clone())],
            failed_before: &[],
        };
        let why = run_the_files(&claim, &store, &manager, &mut log()).unwrap_err();
        assert!(
            why.contains("still runs the old") && why.contains("/old"),
            "{why}"
        );
        drop(old);
        let proved = run_the_files(&claim, &store, &manager, &mut log()).unwrap();
        assert_eq!(proved.len(), 1);
    }

    #[test]
    fn a_port_that_another_process_holds_proves_nothing() {
        let (_directory, _, store, manifest) = world();
        let node = Sleeper::at(&store.slot(crate::slot::Slot::A).join("bin/node"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut check = check(0);
        check.probe = Probe::Tcp {
            address: listener.local_addr().unwrap().to_string(),
        };
        let services = manifest.services.iter().collect();
        let claim = Claim {
            set: Set::A,
            manifest: &manifest,
            services,
            old: Vec::new(),
            failed_before: &[],
        };
        let name = manifest.services[0].name.clone();
        // This test holds the port, not the service.
        let why = own_listener(&check, &claim, &[(name.clone(), node.0.id())]).unwrap_err();
        assert!(why.contains("which is no service of this release"), "{why}");
        own_listener(&check, &claim, &[(name, std::process::id())]).unwrap();
    }

    /// Feeds tries: 'p' passes, 'f' fails; the time since the start in seconds is that of the first.
    fn feed(watch: &mut Watch, since_start: u64, tries: &str) -> bool {
        let since_start = Duration::from_secs(since_start);
        tries.chars().all(|try_| {
            let result = if try_ == 'p' {
                Ok(())
            } else {
                Err("refused".to_owned())
            };
            watch.take(result, since_start, &mut log()).is_ok()
        })
    }

    #[test]
    fn failures_count_after_the_start_period_and_after_the_first_pass() {
        for (retries, since_start, tries, goes_on) in [
            (2, 0, "ffffffff", true),
            (2, 11, "ff", true),
            (2, 11, "fff", false),
            (2, 11, "ffpff", true),
            (2, 0, "pff", true),
            (2, 0, "pfff", false),
            (0, 11, "f", false),
        ] {
            let check = check(retries);
            let mut watch = Watch::new(&check, Instant::now());
            assert_eq!(
                feed(&mut watch, since_start, tries),
                goes_on,
                "{retries} {since_start} {tries}"
            );
        }
    }

    #[test]
    fn a_failure_begins_the_time_of_health_anew() {
        let check = check(3);
        let mut watch = Watch::new(&check, Instant::now());
        assert!(feed(&mut watch, 0, "p") && watch.calm());
        assert!(
            feed(&mut watch, 0, "f") && !watch.calm(),
            "a check that just failed is not calm"
        );
        assert!(feed(&mut watch, 0, "p") && watch.calm());
    }
}
