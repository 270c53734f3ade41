//! The proof: the services run the files of this set, nothing runs another's, the health checks pass, and it stays
//! so for as long as the release asks.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::model::operation::FailedCheck;
use crate::model::slot::Set;
use crate::proof::health::{self, Fault};
use crate::proof::observe::{Census, Seen, State};
use crate::store::Store;
use crate::system::log::Log;
use crate::system::proc::{FileId, Identity};
use crate::system::service::Manager;
use qx_release::manifest::{AnsweredBy, Check, Manifest, Name, Service};
use qx_release::text;

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long a process may take to appear, if no check's start period says more. An init script passes through a shell
/// and a supervisor first.
const APPEAR: Duration = Duration::from_secs(10);
/// How much of the kind of a check's failure is kept, in characters.
const MAX_HOW: usize = 300;
/// How long a set without health checks must keep its processes.
const STABLE: Duration = Duration::from_secs(5);

/// What is to be proved.
pub struct Expectation<'a> {
    /// The set that is to run.
    pub set: Set,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// The manifest of the set that ran before, or was to: what it runs must be gone.
    pub other: Option<&'a Manifest>,
    /// The services that must run its files.
    pub services: Vec<&'a Service>,
    /// Files that must not be running any more, and what they belong to.
    pub old: Vec<(FileId, PathBuf)>,
    /// Whether this is the set that ran before: a check that failed then may fail again.
    pub way_back: bool,
    /// The services that did not run before the switch.
    pub idle: &'a [Name],
    /// The checks that failed before the switch already.
    pub failed_before: &'a [FailedCheck],
}

impl Expectation<'_> {
    fn census<'c>(&self, store: &'c Store, manager: &'c Manager<'c>) -> Census<'c> {
        let manifests: Vec<&Manifest> = [self.manifest].into_iter().chain(self.other).collect();
        Census::take(&manifests, &[], store, manager)
    }
}

/// A service that was seen to run the installed file.
struct Proved<'a> {
    name: Name,
    /// None of a service that has run to its end.
    process: Option<Identity>,
    /// When it was seen.
    census: Rc<Census<'a>>,
}

/// Proves the expectation, or says in one sentence why it does not hold. Returns what the proof does not cover: what was not
/// checked, did not run before, or fails as it did before the switch.
pub fn prove(
    expected: &Expectation,
    store: &Store,
    manager: &Manager,
    log: &mut Log,
) -> Result<Vec<String>, String> {
    if !manager.may_look() {
        let what = "services are not checked: the root directory is not the running system's";
        log.info("prove", what);
        return Ok(vec![what.to_owned()]);
    }
    let proved = if manager.controls() {
        run_the_files(expected, store, manager, log)?
    } else {
        Vec::new()
    };
    let mut remarks: Vec<String> = expected
        .idle
        .iter()
        .map(|name| {
            format!("service {name} was not running before and stays stopped; it is not verified")
        })
        .collect();
    remarks.extend(stay_healthy(expected, store, manager, &proved, log)?);
    Ok(remarks)
}

/// Tries every check of a set, each until it passes or has failed by its own rule: what the next set is measured against.
/// Returns the checks that failed, and how.
pub fn baseline(
    set: Set,
    manifest: &Manifest,
    store: &Store,
    manager: &Manager,
    log: &mut Log,
) -> Vec<FailedCheck> {
    if !manager.may_look() {
        return Vec::new();
    }
    let expected = Expectation {
        set,
        manifest,
        other: None,
        services: manifest.services.iter().collect(),
        old: Vec::new(),
        way_back: false,
        idle: &[],
        failed_before: &[],
    };
    let mut failed = Vec::new();
    let mut open: Vec<(&Check, u32)> = manifest.health.iter().map(|check| (check, 0)).collect();
    while !open.is_empty() {
        // All of them together: what fails waits only once.
        let longest = open.iter().map(|(check, _)| check.interval_s).max();
        open.retain_mut(|(check, failures)| {
            let Err(fault) = try_check(check, &expected, store, manager) else {
                log.info(
                    "baseline",
                    format!("before the switch {} passes", check.probe),
                );
                return false;
            };
            *failures += 1;
            if *failures <= check.retries {
                return true;
            }
            let what = format!("before the switch {} fails: {}", check.probe, fault.why);
            log.warning("baseline", what);
            failed.push(FailedCheck {
                check: (*check).clone(),
                how: text::clean(&fault.how, MAX_HOW),
            });
            false
        });
        if !open.is_empty() {
            std::thread::sleep(Duration::from_secs(longest.unwrap_or(1)));
        }
    }
    failed
}

/// Step one: each service's process executes the file that was installed. Returns the processes.
fn run_the_files<'c>(
    expected: &Expectation,
    store: &'c Store,
    manager: &'c Manager<'c>,
    log: &mut Log,
) -> Result<Vec<Proved<'c>>, String> {
    let slowest = expected
        .manifest
        .health
        .iter()
        .map(|c| c.start_period_s)
        .max()
        .unwrap_or(0);
    let deadline = Instant::now() + APPEAR.max(Duration::from_secs(slowest));
    let mut proved: Vec<Proved> = Vec::new();
    loop {
        let census = Rc::new(expected.census(store, manager));
        let mut missing = None;
        for service in &expected.services {
            if proved.iter().any(|p| p.name == service.name) {
                continue;
            }
            match census.look(service, expected.set, expected.manifest) {
                Seen {
                    process,
                    state: State::Installed | State::Done,
                    ..
                } => {
                    let what = match process.map(|process| process.pid) {
                        Some(pid) => format!("runs {} (process {pid})", census.name(pid)),
                        None => "has run to its end, says the service manager".to_owned(),
                    };
                    log.info("prove", format!("{} {what}", service.name));
                    proved.push(Proved {
                        name: service.name.clone(),
                        process,
                        census: census.clone(),
                    });
                }
                seen if missing.is_none() => missing = Some((&service.name, seen)),
                _ => {}
            }
        }
        let old = old_process(expected, &census);
        if missing.is_none() && old.is_none() {
            return Ok(proved);
        }
        if Instant::now() >= deadline {
            return Err(overdue(missing, old, manager));
        }
        std::thread::sleep(TICK);
    }
}

/// Why step one was not done in time: a service that does not run its file, else an old process.
fn overdue(
    missing: Option<(&Name, Seen)>,
    old: Option<(u32, PathBuf)>,
    manager: &Manager,
) -> String {
    match (missing, old) {
        (Some((name, seen)), _) => {
            let said = match seen.state {
                State::Stopped => manager.runs(name).err(),
                _ => None,
            };
            let why = seen.why.unwrap_or_default();
            said.map_or(why.clone(), |said| format!("{why}; {said}"))
        }
        (None, Some((pid, path))) => format!("process {pid} still runs the old {}", path.display()),
        (None, None) => String::new(),
    }
}

/// A process of the services in question that still executes an old file.
fn old_process(expected: &Expectation, census: &Census) -> Option<(u32, PathBuf)> {
    let concerned = |name: &Name| expected.services.iter().any(|s| s.name == *name);
    expected.old.iter().find_map(|(file, path)| {
        let process = census
            .executing(*file)
            .into_iter()
            .find(|process| census.owner(process.pid).is_some_and(concerned))?;
        Some((process.pid, path.clone()))
    })
}

/// One check on its way: first until it passes, then for as long as it must go on.
struct Watch<'a> {
    check: &'a Check,
    /// The service that it asks did not run before and is not started: it is not waited for.
    idle: bool,
    due: Instant,
    /// Tries in a row that failed and count.
    failures: u32,
    passing_since: Option<Instant>,
    passed_once: bool,
    /// Why and in which way it failed last.
    why: String,
    how: String,
    /// Why it is not watched any more, though it failed.
    excused: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(check: &'a Check, idle: bool, now: Instant) -> Watch<'a> {
        Watch {
            check,
            idle,
            due: now,
            failures: 0,
            passing_since: None,
            passed_once: false,
            why: String::new(),
            how: String::new(),
            excused: None,
        }
    }

    /// The check has failed. That is no regression if it failed in just this way before the switch already, unless the release
    /// is held to it; and it is nobody's fault where the service that it asks did not run before.
    fn end(&mut self, why: String, expected: &Expectation) -> Result<(), String> {
        let Some(remark) = excuse(self.check, &self.how, expected) else {
            return Err(why);
        };
        self.excused = Some(format!("{why}, {remark}"));
        Ok(())
    }

    /// Takes the result of one try, `since_start` after the services were started. `Err`: the check has failed.
    fn take(
        &mut self,
        result: Result<(), Fault>,
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
            Err(Fault { how, why }) => {
                if self.why != why {
                    log.info("health", format!("{probe} fails: {why}"));
                    self.why = why;
                }
                self.how = how;
                // The time that it must stay healthy begins anew.
                self.passing_since = None;
                // Having passed once, it is no longer starting.
                let starting = since_start < Duration::from_secs(self.check.start_period_s)
                    && !self.passed_once;
                self.failures += u32::from(!starting);
                if self.idle || self.failures > self.check.retries {
                    return Err(format!("the health check {probe} failed: {}", self.why));
                }
                Ok(())
            }
        }
    }

    fn is_stable(&self) -> bool {
        self.passing_since
            .is_some_and(|since| since.elapsed() >= Duration::from_secs(self.check.stable_s))
    }

    /// The longest time that a check may take: every try but the last permitted one is slow and fails.
    fn patience(&self) -> Duration {
        let c = self.check;
        let tries = u64::from(c.retries) + 2;
        Duration::from_secs(c.start_period_s + tries * (c.interval_s + c.timeout_s) + c.stable_s)
    }

    /// The error of a check that never failed too often in a row, but did not become stable within `patience`.
    fn too_late(&self, patience: Duration) -> String {
        format!(
            "the health check {} did not pass for {} s in a row within {} s: {}",
            self.check.probe,
            self.check.stable_s,
            patience.as_secs(),
            self.why
        )
    }
}

/// Whether a check asks a service that did not run before and is not started: the one that it names, else each that there is.
fn asks_idle(check: &Check, expected: &Expectation) -> bool {
    let idle = |name: &Name| expected.idle.contains(name);
    match check.service() {
        Some(name) => idle(name),
        None => {
            !expected.idle.is_empty() && expected.manifest.services.iter().all(|s| idle(&s.name))
        }
    }
}

/// Why a check that failed does not count, if it does not.
fn excuse(check: &Check, how: &str, expected: &Expectation) -> Option<String> {
    let how = text::clean(how, MAX_HOW);
    if asks_idle(check, expected) {
        return Some("but what it checks was not running before the switch either".into());
    }
    let before = expected
        .failed_before
        .iter()
        .filter(|before| before.how == how);
    // Nobody listened there before either, and some service did not run: it will have been that one.
    let silent = |before: &FailedCheck| {
        let endpoint = health::endpoint(&check.probe);
        endpoint.is_some() && health::endpoint(&before.check.probe) == endpoint
    };
    if check.of.is_none()
        && how == health::REFUSED
        && !expected.idle.is_empty()
        && before.clone().any(silent)
    {
        return Some("but what it checks was not running before the switch either".into());
    }
    let same = before.into_iter().any(|before| before.check == *check);
    let held = check.required && !expected.way_back;
    (same && !held).then(|| "as it did before the switch".into())
}

/// Step two: every check passes within its patience, and goes on passing; every proved process stays the same, and goes on
/// executing the same file.
fn stay_healthy(
    expected: &Expectation,
    store: &Store,
    manager: &Manager,
    proved: &[Proved],
    log: &mut Log,
) -> Result<Vec<String>, String> {
    let start = Instant::now();
    let mut remarks = Vec::new();
    let mut watches: Vec<Watch> = expected
        .manifest
        .health
        .iter()
        .map(|check| Watch::new(check, asks_idle(check, expected), start))
        .collect();
    // Checks that take turns in failing never fail for good, and never are calm together.
    let patience = watches.iter().map(Watch::patience).sum::<Duration>() + STABLE;
    loop {
        for one in proved {
            still_runs(one, expected, store, manager, start)?;
        }
        for watch in &mut watches {
            if Instant::now() < watch.due {
                continue;
            }
            watch.due = Instant::now() + Duration::from_secs(watch.check.interval_s);
            let result = try_check(watch.check, expected, store, manager);
            if let Err(why) = watch.take(result, start.elapsed(), log) {
                watch.end(why, expected)?;
            }
        }
        if start.elapsed() > patience
            && let Some(watch) = watches.iter_mut().find(|watch| !watch.is_stable())
        {
            watch.end(watch.too_late(patience), expected)?;
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
        if watches.iter().all(Watch::is_stable) && long_enough {
            log.info(
                "health",
                format!("healthy after {} s", start.elapsed().as_secs()),
            );
            return Ok(remarks);
        }
        std::thread::sleep(TICK);
    }
}

/// One try of a check, its program found where the set has it. The one rule by which the baseline, the proof and the way
/// back measure: what asks this machine itself must be answered by a service of the set, for an old process or a stranger on
/// the port says nothing of it.
fn try_check(
    check: &Check,
    expected: &Expectation,
    store: &Store,
    manager: &Manager,
) -> Result<(), Fault> {
    let find = |program: &str| store.program(expected.set, expected.manifest, program);
    let directory = store.directory(expected.set);
    let address = health::try_once(check, &find, &directory, manager)?;
    let (Some(address), AnsweredBy::Services) = (address, check.answered_by) else {
        return Ok(());
    };
    if !manager.controls() || expected.manifest.services.is_empty() {
        return Ok(());
    }
    let proc = manager.host().proc();
    let owners = proc.listeners(address);
    if owners.is_empty() {
        return Err(Fault::alike(
            "nobody listens",
            format!(
                "port {} answers, but no process on this machine is listening there",
                address.port()
            ),
        ));
    }
    let ours = expected.census(store, manager);
    let stranger = owners
        .iter()
        .find(|pid| !ours.answers(**pid, expected.manifest));
    match stranger {
        None => Ok(()),
        Some(pid) => Err(Fault::alike(
            "a stranger answers",
            format!(
                "port {} is held by process {pid} ({}), which is not a service of this release",
                address.port(),
                proc.executable_name(*pid)
            ),
        )),
    }
}

fn still_runs(
    proved: &Proved,
    expected: &Expectation,
    store: &Store,
    manager: &Manager,
    start: Instant,
) -> Result<(), String> {
    let Proved {
        name,
        process,
        census,
    } = proved;
    let Some(process) = process.filter(|process| !census.goes_on(*process)) else {
        return Ok(());
    };
    let (pid, after) = (process.pid, start.elapsed().as_secs());
    let proc = manager.host().proc();
    if proc.lives(process) {
        return Err(format!(
            "service {name} became another program {after} s into its trial: process {pid} now runs {}",
            proc.executable_name(pid)
        ));
    }
    let census = expected.census(store, manager);
    let service = expected.services.iter().find(|s| s.name == *name);
    let again = service.map(|s| census.look(s, expected.set, expected.manifest));
    Err(match again.and_then(|seen| seen.process) {
        Some(new) => format!(
            "service {name} crashed and was started again {after} s into its trial (process {pid}, then {})",
            new.pid
        ),
        None => format!("service {name} died {after} s into its trial (process {pid})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::log::Destination;
    use qx_release::digest::Digest;
    use qx_release::manifest::Probe;

    fn log() -> Log {
        Log::new(
            Destination {
                path: "/dev/null".into(),
                below: "/".into(),
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
            of: None,
            answered_by: AnsweredBy::Services,
        }
    }

    /// A store and a host of its own below a temporary directory, with one bin component in slot a.
    fn world() -> (
        tempfile::TempDir,
        crate::system::host::Host,
        Store,
        Manifest,
    ) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("data/slots/a/bin")).unwrap();
        let host = crate::system::host::Host::new(directory.path()).unwrap();
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

    /// A process that runs a copy of `sleep` at `path`, in a session of its own as daemons do; ended when dropped.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn at(path: &std::path::Path) -> Sleeper {
            std::fs::copy("/bin/sleep", path).unwrap();
            let child = std::process::Command::new("setsid")
                .arg(path)
                .arg("1000")
                .spawn()
                .unwrap();
            let file = FileId::of(path).ok();
            while crate::system::proc::Proc::default().file(child.id()) != file {
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

    fn commands(pidfile: Option<&str>) -> crate::model::config::Services {
        crate::model::config::Services::Commands {
            start: vec!["true".into()],
            stop: vec!["true".into()],
            status: vec!["true".into()],
            pidfile: pidfile.map(str::to_owned),
        }
    }

    fn expected(manifest: &Manifest, old: Vec<(FileId, PathBuf)>) -> Expectation<'_> {
        Expectation {
            set: Set::A,
            manifest,
            other: None,
            services: manifest.services.iter().collect(),
            old,
            way_back: false,
            idle: &[],
            failed_before: &[],
        }
    }

    #[test]
    fn an_old_process_spoils_the_proof() {
        let (directory, host, store, manifest) = world();
        let _new = Sleeper::at(&store.slot(crate::model::slot::Slot::A).join("bin/node"));
        let how = commands(None);
        let manager = Manager::new(&how, &host, Duration::from_secs(60));
        std::fs::create_dir_all(directory.path().join("usr/bin")).unwrap();
        let old_path = directory.path().join("usr/bin/node");
        let old = Sleeper::at(&old_path);
        let expected = expected(
            &manifest,
            vec![(FileId::of(&old_path).unwrap(), old_path.clone())],
        );
        let why = run_the_files(&expected, &store, &manager, &mut log());
        let why = why.map(drop).unwrap_err();
        assert!(
            why.contains("still runs the old") && why.contains("usr/bin/node"),
            "{why}"
        );
        drop(old);
        let proved = run_the_files(&expected, &store, &manager, &mut log()).unwrap();
        assert_eq!(proved.len(), 1);
    }

    /// A service that executes one program after the other: what is seen of it is of one moment.
    #[test]
    fn a_process_is_not_taken_for_what_it_executes_later() {
        let (directory, host, store, mut manifest) = world();
        let installed = store.slot(crate::model::slot::Slot::A).join("bin/node");
        std::fs::copy("/bin/sleep", &installed).unwrap();
        manifest.components[0].sha256 = Digest::of(&std::fs::read(&installed).unwrap());
        for place in ["usr/bin", "run"] {
            std::fs::create_dir_all(directory.path().join(place)).unwrap();
        }
        let first = directory.path().join("usr/bin/node");
        std::fs::copy("/bin/sh", &first).unwrap();
        let mut child = std::process::Command::new(&first)
            .args(["-c", "read line; exec \"$0\" 1000"])
            .arg(&installed)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfile = directory.path().join("run/node.pid");
        std::fs::write(pidfile, child.id().to_string()).unwrap();
        let how = commands(Some("/run/{name}.pid"));
        let manager = Manager::new(&how, &host, Duration::from_secs(60));
        let pid = child.id();
        let executes = |path: &std::path::Path| {
            let file = FileId::of(path).ok();
            while crate::system::proc::Proc::default().file(pid) != file {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        executes(&first);
        let expected = expected(&manifest, Vec::new());
        let before = expected.census(&store, &manager);
        drop(child.stdin.take());
        executes(&installed);
        let look = |census: &Census| census.look(&manifest.services[0], Set::A, &manifest);
        let seen = look(&before);
        assert_ne!(seen.state, State::Installed, "{seen:?}");
        let after = expected.census(&store, &manager);
        let seen = look(&after);
        assert_eq!(seen.state, State::Installed, "{seen:?}");
        assert!(after.goes_on(seen.process.unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_port_that_another_process_holds_proves_nothing() {
        let (directory, host, store, manifest) = world();
        let _node = Sleeper::at(&store.slot(crate::model::slot::Slot::A).join("bin/node"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let expected = expected(&manifest, Vec::new());
        let mut check = check(0);
        // This test holds the port, not the service; by whatever name this machine is called.
        let how = commands(None);
        let manager = Manager::new(&how, &host, Duration::from_secs(60));
        for host in ["127.0.0.1", "0.0.0.0", "127.1", "localhost"] {
            check.probe = Probe::Tcp {
                address: format!("{host}:{port}"),
            };
            check.answered_by = AnsweredBy::Services;
            let why = try_check(&check, &expected, &store, &manager)
                .unwrap_err()
                .why;
            assert!(
                why.contains("which is not a service of this release"),
                "{why}"
            );
            // Declared, it counts as health.
            check.answered_by = AnsweredBy::Anybody;
            try_check(&check, &expected, &store, &manager).unwrap();
        }
        check.answered_by = AnsweredBy::Services;
        // Now it is the service.
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let pidfile = directory.path().join("run/node.pid");
        std::fs::write(pidfile, std::process::id().to_string()).unwrap();
        let how = commands(Some("/run/{name}.pid"));
        let manager = Manager::new(&how, &host, Duration::from_secs(60));
        try_check(&check, &expected, &store, &manager).unwrap();
    }

    #[test]
    fn an_excuse_covers_what_was_measured_and_nothing_else() {
        let (_directory, _, _, manifest) = world();
        let asks = |what: &str| Check {
            probe: Probe::Http {
                url: "http://127.0.0.1:1/h".into(),
                status: 200,
                json: Some(qx_release::manifest::JsonField {
                    pointer: what.into(),
                    equals: "ok".into(),
                }),
            },
            ..check(0)
        };
        let before = [FailedCheck {
            check: asks("/printer"),
            how: "no /printer".into(),
        }];
        let node = [manifest.services[0].name.clone()];
        let expected = |idle| Expectation {
            failed_before: &before,
            idle,
            ..expected(&manifest, Vec::new())
        };
        let required = Check {
            required: true,
            ..asks("/printer")
        };
        let other_patience = Check {
            retries: 1,
            ..asks("/printer")
        };
        for (check, how, excused, why) in [
            (asks("/printer"), "no /printer", true, "the same"),
            (asks("/version"), "no /printer", false, "another field"),
            (asks("/printer"), "answered 500", false, "another failure"),
            (other_patience, "no /printer", false, "other retries"),
            (required, "no /printer", false, "required"),
        ] {
            let found = excuse(&check, how, &expected(&[]));
            assert_eq!(found.is_some(), excused, "{why}: {found:?}");
        }
        // Whatever fails of what did not run before is nobody's fault.
        assert!(excuse(&asks("/version"), "refused", &expected(&node)).is_some());
        let of_another = Check {
            of: Some("other".parse().unwrap()),
            ..asks("/version")
        };
        assert!(excuse(&of_another, "refused", &expected(&node)).is_none());
    }

    /// Feeds tries: 'p' passes, 'f' fails; the time since the start in seconds is that of the first.
    fn feed(watch: &mut Watch, since_start: u64, tries: &str) -> bool {
        let since_start = Duration::from_secs(since_start);
        tries.chars().all(|try_| {
            let result = if try_ == 'p' {
                Ok(())
            } else {
                Err(Fault::new("refused"))
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
            let mut watch = Watch::new(&check, false, Instant::now());
            assert_eq!(
                feed(&mut watch, since_start, tries),
                goes_on,
                "{retries} {since_start} {tries}"
            );
        }
    }

    #[test]
    fn what_is_not_started_is_not_waited_for() {
        let check = check(3);
        for (idle, tries, goes_on) in [(false, "f", true), (true, "f", false), (true, "pp", true)] {
            let mut watch = Watch::new(&check, idle, Instant::now());
            assert_eq!(feed(&mut watch, 0, tries), goes_on, "{idle} {tries}");
        }
    }

    #[test]
    fn a_failure_begins_the_time_of_health_anew() {
        let check = check(3);
        let mut watch = Watch::new(&check, false, Instant::now());
        assert!(feed(&mut watch, 0, "p") && watch.is_stable());
        assert!(
            feed(&mut watch, 0, "f") && !watch.is_stable(),
            "a check that just failed is not calm"
        );
        assert!(feed(&mut watch, 0, "p") && watch.is_stable());
    }
}
