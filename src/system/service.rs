//! Services: OpenRC, or argument vectors from the configuration.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::model::config::Services;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::proc::{self, Identity, Process};
use crate::system::process::{self, Program};
use qx_release::error::{Error, Result};
use qx_release::manifest::Name;
use qx_release::text;

/// How long a runlevel may take before it is not waited for any more.
const RUNLEVEL: Duration = Duration::from_secs(600);

/// What a pidfile tells of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Main {
    /// This process is it.
    Process(u32),
    /// None is: its pidfile is missing where the configuration says it must be, or is an old one.
    Nobody,
    /// There is no pidfile to go by.
    Unknown,
}

/// Controls services.
pub struct Manager<'a> {
    how: &'a Services,
    host: &'a Host,
    timeout: Duration,
}

impl<'a> Manager<'a> {
    /// A start or a stop may take `timeout`.
    pub fn new(how: &'a Services, host: &'a Host, timeout: Duration) -> Manager<'a> {
        Manager { how, host, timeout }
    }

    /// The machine that they run on.
    pub fn host(&self) -> &Host {
        self.host
    }

    /// Whether there are services to control. Those of the host are left alone when working on another root, unless
    /// the configuration inside names commands.
    pub fn controls(&self) -> bool {
        match self.how {
            Services::OpenRc { .. } => self.host.is_running_system(),
            Services::Commands { .. } => true,
            Services::None {} => false,
        }
    }

    /// Whether processes and ports of this machine are the appliance's own.
    pub fn may_look(&self) -> bool {
        self.host.is_running_system() || self.controls()
    }

    /// Of these services, in order of starting, those that are to run now; then those that depend on one of them and
    /// run. A service that crashed counts: it is meant to run.
    pub fn started(&self, names: &[Name]) -> Vec<Name> {
        if !self.controls() {
            return Vec::new();
        }
        let mut started: Vec<Name> = names
            .iter()
            .filter(|n| self.is_started(n))
            .cloned()
            .collect();
        if let Services::OpenRc { .. } = self.how {
            let tree = fs::read("/run/openrc/deptree").unwrap_or_default();
            for name in dependents(&String::from_utf8_lossy(&tree), &started) {
                if self.is_started(&name) {
                    started.push(name);
                }
            }
        }
        started
    }

    /// Whether a service is meant to run: one that crashed is.
    fn is_started(&self, name: &Name) -> bool {
        match self.how {
            Services::OpenRc { .. } => {
                fs::symlink_metadata(format!("/run/openrc/started/{name}")).is_ok()
            }
            _ => self.runs(name).is_ok(),
        }
    }

    /// Whether the service manager says that a service runs; if not, what it says.
    pub fn runs(&self, name: &Name) -> Result<(), String> {
        let vector = match self.how {
            Services::OpenRc { .. } => openrc(name, "status"),
            Services::Commands { status, .. } => with_name(status, name),
            Services::None {} => return Err("there is no service manager".into()),
        };
        match Program::new(&vector, self.timeout).run(&mut |_, _| {}) {
            Ok(ended) if ended.ok() => Ok(()),
            Ok(ended) => Err(format!("its status command {}", ended.describe())),
            Err(e) => Err(e.chain()),
        }
    }

    /// Starts a service. What it starts carries its name in the environment, unless the service manager takes that away.
    pub fn start(&self, name: &Name, log: &mut Log) -> Result<()> {
        log.info("services", format!("starting {name}"));
        let vector = match self.how {
            Services::OpenRc { .. } => {
                // OpenRC would not start again what crashed after it had started it.
                if self.is_started(name) {
                    Program::new(&openrc(name, "zap"), self.timeout).run_silently()?;
                }
                openrc(name, "start")
            }
            Services::Commands { start, .. } => with_name(start, name),
            Services::None {} => return Ok(()),
        };
        let mark = [(proc::SERVICE.to_owned(), self.mark(name))];
        let start = Program {
            environment: &mark,
            ..Program::new(&vector, self.timeout)
        };
        // Nobody reads what it writes: it lives on, and a pipe of ours would not.
        let ended = start.run_silently()?;
        check_ended("starting", name, &vector, &ended)
    }

    /// The mark of a service of this appliance, distinct from those below another root on the same machine.
    fn mark(&self, name: &Name) -> String {
        format!("{name} {}", self.host.root().display())
    }

    /// Whether a process says that it was started for this service.
    pub fn started_for(&self, name: &Name, process: &Process) -> bool {
        let is = |value: &Option<Vec<u8>>, name: &str| value.as_deref() == Some(name.as_bytes());
        is(&process.mark, &self.mark(name)) || self.is_in_group(name, process)
    }

    /// Whether a process is in the control group that OpenRC made for this service.
    pub fn is_in_group(&self, name: &Name, process: &Process) -> bool {
        let group = || self.host.proc().group(process.pid());
        self.host.is_running_system() && group().as_deref() == Some(name.as_str().as_bytes())
    }

    /// Stops a service; afterwards none of its `own` processes lives. Says whether its stop command succeeded.
    pub fn stop(&self, name: &Name, own: Vec<Identity>, log: &mut Log) -> Result<bool> {
        let vector = match self.how {
            Services::OpenRc { .. } => openrc(name, "stop"),
            Services::Commands { stop, .. } => with_name(stop, name),
            Services::None {} => return Ok(true),
        };
        log.info("services", format!("stopping {name}"));
        let ended = Program::new(&vector, self.timeout).run(&mut |_, _| {})?;
        let stopped = check_ended("stopping", name, &vector, &ended);
        if let Err(e) = &stopped {
            log.warning("services", e.chain());
        }
        self.end(own, log)?;
        // OpenRC keeps a crashed service that it could not stop as started, and would not start it again.
        if stopped.is_err() && matches!(self.how, Services::OpenRc { .. }) {
            Program::new(&openrc(name, "zap"), self.timeout).run_silently()?;
        }
        Ok(stopped.is_ok())
    }

    /// The process that a service is, by its pidfile.
    pub fn main(&self, name: &Name) -> Main {
        let mut found = Main::Unknown;
        for path in self.pidfiles(name) {
            let Ok(bytes) = fs::read(&path) else {
                continue;
            };
            // One that was written is one to go by.
            found = Main::Nobody;
            let text = String::from_utf8_lossy(&bytes);
            let pid = text.trim().parse().ok();
            // The first process is nobody's service.
            let alive = |pid: &u32| *pid > 1 && self.host.proc().identity(*pid).is_some();
            if let Some(pid) = pid.filter(alive) {
                return Main::Process(pid);
            }
        }
        match self.pidfile() {
            Some(_) => Main::Nobody,
            None => found,
        }
    }

    /// Where the configuration says that pidfiles are.
    fn pidfile(&self) -> Option<&str> {
        match self.how {
            Services::OpenRc { pidfile } | Services::Commands { pidfile, .. } => pidfile.as_deref(),
            Services::None {} => None,
        }
    }

    /// Where the pidfile of a service should be, for people.
    pub fn pidfile_of(&self, name: &Name) -> String {
        let paths = self.pidfiles(name);
        paths
            .first()
            .map_or_else(String::new, |path| path.display().to_string())
    }

    fn pidfiles(&self, name: &Name) -> Vec<PathBuf> {
        if let Some(template) = self.pidfile() {
            let path = self.host.path(&template.replace("{name}", name.as_str()));
            return path.into_iter().collect();
        }
        let Services::OpenRc { .. } = self.how else {
            return Vec::new();
        };
        let usual = [
            format!("/run/{name}.pid"),
            format!("/run/supervise-{name}.pid"),
        ];
        let recorded = openrc_pidfiles(name).into_iter();
        recorded.chain(usual).map(PathBuf::from).collect()
    }

    /// Ends these processes: they are given some time, then killed. Whoever asked for the update is spared.
    pub fn end(&self, mut processes: Vec<Identity>, log: &mut Log) -> Result<()> {
        let proc = self.host.proc();
        let callers = proc.ancestors();
        processes.retain(|process| !callers.contains(&process.pid));
        let left = || processes.iter().copied().filter(|p| proc.lives(*p));
        let wait = |time: Duration| {
            let until = Instant::now() + time;
            while left().next().is_some() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        wait(self.timeout.min(Duration::from_secs(10)));
        for process in left() {
            let what = format!(
                "killing process {} ({}), which outlived its service",
                process.pid,
                proc.executable_name(process.pid)
            );
            log.warning("services", what);
            proc.kill(process);
        }
        wait(self.timeout);
        match left().next() {
            None => Ok(()),
            Some(process) => Err(Error::new(format!(
                "stopping services: process {} cannot be killed",
                process.pid
            ))),
        }
    }

    /// Waits until OpenRC is not in the middle of a runlevel: calling it from inside one would wait for ever.
    pub fn wait_for_runlevel(&self, log: &mut Log) {
        if !matches!(self.how, Services::OpenRc { .. }) || !self.controls() {
            return;
        }
        let busy = || fs::metadata("/run/openrc/rc.starting").is_ok();
        if busy() {
            log.info("services", "waiting for the runlevel to be complete");
        }
        // Bounded: whoever asked may be what the runlevel waits for.
        let until = Instant::now() + RUNLEVEL;
        while busy() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn openrc(name: &Name, verb: &str) -> Vec<String> {
    vec!["rc-service".into(), name.to_string(), verb.into()]
}

fn with_name(vector: &[String], name: &Name) -> Vec<String> {
    vector
        .iter()
        .map(|arg| arg.replace("{name}", name.as_str()))
        .collect()
}

/// What OpenRC wrote down when it started the service: an option `pidfile`, and lines `pidfile=/run/x.pid` for each daemon.
fn openrc_pidfiles(name: &Name) -> Vec<String> {
    let read = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let option = read(format!("/run/openrc/options/{name}/pidfile").into());
    let mut found: Vec<String> = vec![option.trim().to_owned()];
    for entry in fs::read_dir(format!("/run/openrc/daemons/{name}"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let text = read(entry.path());
        found.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix("pidfile="))
                .map(str::to_owned),
        );
    }
    found.retain(|path| !path.is_empty());
    found
}

fn check_ended(doing: &str, name: &Name, vector: &[String], ended: &process::Ended) -> Result<()> {
    if ended.ok() {
        return Ok(());
    }
    Err(Error::new(format!(
        "{doing} {name}: {} {}",
        text::command(vector),
        ended.describe()
    )))
}

/// Every service that needs one of these, directly or not, from OpenRC's dependency cache: lines
/// `depinfo_3_service='x'` and `depinfo_3_needsme_0='y'`.
fn dependents(deptree: &str, names: &[Name]) -> Vec<Name> {
    let mut needs: Vec<(String, String)> = Vec::new();
    let mut service = String::new();
    for line in deptree.lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let value = value.trim_matches('\'');
        let mut parts = key.split('_').skip(2);
        match parts.next() {
            Some("service") => service = value.to_owned(),
            Some("needsme") => needs.push((service.clone(), value.to_owned())),
            _ => {}
        }
    }
    let mut found: Vec<Name> = Vec::new();
    let mut open: Vec<String> = names.iter().map(Name::to_string).collect();
    while let Some(needed) = open.pop() {
        for (_, dependent) in needs.iter().filter(|(of, _)| *of == needed) {
            if let Ok(name) = dependent.parse::<Name>()
                && !names.contains(&name)
                && !found.contains(&name)
            {
                open.push(dependent.clone());
                found.push(name);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependents_are_found_through_others() {
        let tree = "depinfo_0_service='db'\ndepinfo_0_needsme_0='node'\ndepinfo_0_needsme_1='web'\n\
                    depinfo_0_iafter_0='net'\ndepinfo_1_service='node'\ndepinfo_1_needsme_0='console'\n\
                    depinfo_2_service='net'\ndepinfo_2_needsme_0='other'\n";
        let name = |s: &str| s.parse::<Name>().unwrap();
        let mut found = dependents(tree, &[name("db")]);
        found.sort();
        assert_eq!(found, ["console", "node", "web"].map(name));
        assert_eq!(dependents(tree, &[name("console")]), []);
        assert_eq!(dependents("", &[name("db")]), []);
    }

    #[test]
    fn the_host_is_left_alone_with_another_root() {
        let other = Host::new(&std::env::temp_dir()).unwrap();
        let vector = || vec!["true".to_owned()];
        let commands = Services::Commands {
            start: vector(),
            stop: vector(),
            status: vector(),
            pidfile: None,
        };
        let openrc = Services::default();
        let timeout = Duration::from_secs(1);
        assert!(!Manager::new(&openrc, &other, timeout).controls());
        assert!(!Manager::new(&openrc, &other, timeout).may_look());
        assert!(Manager::new(&commands, &other, timeout).controls());
        assert!(Manager::new(&commands, &other, timeout).may_look());
    }
}
