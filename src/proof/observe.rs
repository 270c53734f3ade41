//! What runs: which processes are a service's own, and which file they execute. The proof, `status`, and whoever stops
//! services ask the same.

use std::path::{Path, PathBuf};

use crate::model::slot::Set;
use crate::store::{Selection, Store};
use crate::system::proc::{FileId, Identity, Process};
use crate::system::service::{Main, Manager};
use qx_release::digest::Digest;
use qx_release::manifest::{Manifest, Name, ProgramPath, Service};
use qx_release::text;

/// What OpenRC's supervisor is called. It starts what ends again, for ever.
const SUPERVISOR: &str = "supervise-daemon";

/// A snapshot of all processes, and the services they belong to.
pub struct Census<'a> {
    store: &'a Store,
    manager: &'a Manager<'a>,
    selection: Selection,
    processes: Vec<Process>,
    services: Vec<Whose>,
}

/// A service's processes.
struct Whose {
    name: Name,
    /// The files that it executes in one of the sets, and where they lie.
    programs: Vec<FileId>,
    places: Vec<PathBuf>,
    /// The process that it is, then those that came from it.
    own: Vec<u32>,
    /// Processes that outlive it, as its release declares.
    left: Vec<u32>,
    /// The process that its pidfile names although it executes none of its programs.
    foreign: Option<u32>,
    /// Whether something says which processes are its own; otherwise they are known by what they execute.
    known: bool,
}

/// A service of a set, as its processes show it.
#[derive(Debug)]
pub struct Seen {
    /// Whether it does what it should.
    pub state: State,
    /// The process that tells so.
    pub process: Option<Identity>,
    /// One sentence, unless it does what it should.
    pub why: Option<String>,
}

impl Seen {
    fn stopped(why: String) -> Seen {
        Seen {
            state: State::Stopped,
            process: None,
            why: Some(why),
        }
    }
}

/// What a service is seen to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The installed file, or one with its bytes.
    Installed,
    /// Nothing any more: it has done its work, says the service manager.
    Done,
    /// Another file.
    Other,
    /// Nothing.
    Stopped,
}

impl<'a> Census<'a> {
    /// Looks at every process. The services are those of these manifests, and the ones that are named besides.
    pub fn take(
        manifests: &[&Manifest],
        besides: &[Name],
        store: &'a Store,
        manager: &'a Manager<'a>,
    ) -> Census<'a> {
        let mut census = Census {
            store,
            manager,
            selection: store.selection(),
            processes: manager.host().proc().processes(),
            services: Vec::new(),
        };
        let services = manifests.iter().flat_map(|manifest| &manifest.services);
        let mut leaves: Vec<Vec<&ProgramPath>> = Vec::new();
        for service in services {
            let known = census.services.iter().position(|w| w.name == service.name);
            let at = known.unwrap_or_else(|| {
                leaves.push(Vec::new());
                census.add(service.name.clone())
            });
            let whose = &mut census.services[at];
            whose.places.extend(places(service, manifests, store));
            let files = whose.places.iter().filter_map(|path| FileId::of(path).ok());
            whose.programs = files.collect();
            leaves[at].extend(&service.leaves);
        }
        for name in besides {
            if !census.services.iter().any(|w| w.name == *name) {
                leaves.push(Vec::new());
                census.add(name.clone());
            }
        }
        census.recognise_scripts(&leaves);
        census.assign(&leaves);
        census
    }

    /// A process that runs a script of a set executes its interpreter; what it runs is the script.
    fn recognise_scripts(&mut self, leaves: &[Vec<&ProgramPath>]) {
        for at in 0..self.processes.len() {
            let process = self.processes[at].identity;
            let left = |path: &Path| {
                let mut leaves = leaves.iter().flatten();
                leaves.any(|program| self.store.is_program(path, program))
            };
            let ours = |path: &Path| {
                let runs = |whose: &Whose| whose.places.iter().any(|place| place == path);
                self.services.iter().any(runs) || left(path)
            };
            let Some(path) = self.script(process, &ours) else {
                continue;
            };
            let process = &mut self.processes[at];
            process.file = FileId::of(&path).ok();
            process.path = Some(path);
            process.is_script = true;
        }
    }

    fn script(&self, process: Identity, among: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
        let led = |path: &Path| self.selection.led(path, process);
        (self.manager.host().proc()).script(process, &led, among)
    }

    /// What a process runs, for people.
    pub fn name(&self, pid: u32) -> String {
        match self.process(pid).and_then(Process::script) {
            Some(script) => text::path(script),
            None => self.manager.host().proc().executable_name(pid),
        }
    }

    /// The file that a process runs.
    pub fn file(&self, pid: u32) -> Option<FileId> {
        self.process(pid)?.file
    }

    /// Whether a process still is what it was here: the same one, which runs the same file.
    pub fn goes_on(&self, process: Identity) -> bool {
        let proc = self.manager.host().proc();
        let Some(was) = self.process(process.pid) else {
            return false;
        };
        let runs = match was.script() {
            Some(script) => self.script(process, &|found| found == script).is_some(),
            None => proc.file(process.pid) == was.file,
        };
        runs && proc.lives(process)
    }

    fn add(&mut self, name: Name) -> usize {
        self.services.push(Whose {
            name,
            programs: Vec::new(),
            places: Vec::new(),
            own: Vec::new(),
            left: Vec::new(),
            foreign: None,
            known: false,
        });
        self.services.len() - 1
    }

    /// Assigns each process to its service: by pidfile, control group and mark; failing these by what it executes, but never
    /// a process of another service.
    fn assign(&mut self, leaves: &[Vec<&ProgramPath>]) {
        let mains: Vec<Main> = self
            .services
            .iter()
            .map(|whose| self.manager.main(&whose.name))
            .collect();
        let is_main = |pid: u32| mains.contains(&Main::Process(pid));
        for (at, leaves) in leaves.iter().enumerate().filter(|(_, l)| !l.is_empty()) {
            let left = self.processes.iter().map(Process::pid);
            let left: Vec<u32> = left
                .filter(|pid| !is_main(*pid) && self.is_one_of(*pid, leaves))
                .collect();
            // What they started is no more the service's than they are.
            self.services[at].left = self.families(&left, &[], &is_main);
        }
        for (at, main) in mains.iter().enumerate() {
            let whose = &self.services[at];
            let others = |pid: u32| {
                (is_main(pid) && *main != Main::Process(pid)) || self.is_anothers(pid, whose)
            };
            let family = |root: u32| self.families(&[root], &whose.left, &others);
            let mut own: Vec<u32> = Vec::new();
            let mut foreign = None;
            if let Main::Process(pid) = main {
                let family = family(*pid);
                match self.is_recognised(*pid, &family, whose) {
                    true => own.extend(family),
                    false => foreign = Some(*pid),
                }
            }
            for process in &self.processes {
                let pid = process.pid();
                if own.contains(&pid)
                    || whose.left.contains(&pid)
                    || !self.manager.started_for(&whose.name, process)
                {
                    continue;
                }
                // What it was started for it may only say itself, and hand on to others.
                let family = family(pid);
                if self.is_recognised(pid, &family, whose) {
                    own.extend(
                        family
                            .into_iter()
                            .filter(|pid| !own.contains(pid))
                            .collect::<Vec<_>>(),
                    );
                }
            }
            let whose = &mut self.services[at];
            whose.known = *main != Main::Unknown || !own.is_empty();
            whose.own = own;
            whose.foreign = foreign;
        }
        self.assign_by_program();
    }

    /// Whether a process is what it is said to be: ids are given again, and pidfiles outlive who wrote them. It, or one that
    /// came from it, executes a program of the service; or it supervises the service, or is in its control group.
    fn is_recognised(&self, root: u32, family: &[u32], whose: &Whose) -> bool {
        let Some(process) = self.process(root) else {
            return false;
        };
        // Of what no release has nothing more is known.
        whose.programs.is_empty()
            || family.iter().any(|pid| self.executes(*pid, whose))
            || self.manager.is_in_group(&whose.name, process)
            || self.supervises(root, &whose.name)
    }

    fn executes(&self, pid: u32, whose: &Whose) -> bool {
        let Some(process) = self.process(pid) else {
            return false;
        };
        let file = process.file.as_ref();
        file.is_some_and(|file| whose.programs.contains(file))
            // One that was replaced where it lay.
            || process.path.as_ref().is_some_and(|path| whose.places.contains(path))
    }

    fn process(&self, pid: u32) -> Option<&Process> {
        self.processes.iter().find(|process| process.pid() == pid)
    }

    /// Whether a process executes what only other services do.
    fn is_anothers(&self, pid: u32, whose: &Whose) -> bool {
        !self.executes(pid, whose)
            && self
                .services
                .iter()
                .any(|other| other.name != whose.name && self.executes(pid, other))
    }

    fn supervises(&self, pid: u32, name: &Name) -> bool {
        let path = self.process(pid).and_then(|process| process.path.as_ref());
        path.is_some_and(|path| path.file_name() == Some(SUPERVISOR.as_ref()))
            && (self.manager.host().proc()).has_argument(pid, name.as_str())
    }

    /// Services whose processes nothing else identifies. Those that share a program get one of its processes each, oldest
    /// first, if the service manager says that they run: which process is whose is unknown, but there must be enough.
    fn assign_by_program(&mut self) {
        let taken: Vec<u32> = self
            .services
            .iter()
            .flat_map(|whose| whose.own.iter().chain(&whose.left).copied())
            .collect();
        for at in 0..self.services.len() {
            let whose = &self.services[at];
            if whose.known || whose.programs.is_empty() {
                continue;
            }
            let mut running: Vec<&Process> = self
                .processes
                .iter()
                .filter(|p| self.executes(p.pid(), whose))
                .filter(|p| !taken.contains(&p.pid()))
                .collect();
            running.sort_by_key(|p| p.identity);
            // What another of them started is no service for itself.
            let roots: Vec<u32> = running
                .iter()
                .filter(|p| !running.iter().any(|other| other.pid() == p.parent))
                .map(|p| p.pid())
                .collect();
            let alike = |other: &&Whose| {
                !other.known && other.programs.iter().any(|f| whose.programs.contains(f))
            };
            let mut alike: Vec<&Whose> = self.services.iter().filter(alike).collect();
            if alike.len() > 1 && roots.len() < alike.len() {
                alike.retain(|w| self.manager.runs(&w.name).is_ok());
            }
            let mine: Vec<u32> = match alike.iter().position(|w| w.name == whose.name) {
                // The last one also has what is left over.
                Some(place) if place + 1 == alike.len() => {
                    roots.get(place..).unwrap_or_default().to_vec()
                }
                Some(place) => roots.get(place).copied().into_iter().collect(),
                None => Vec::new(),
            };
            // What it started may be another service, and is that one's then.
            let others = |pid: u32| taken.contains(&pid) || self.is_anothers(pid, whose);
            let own = self.families(&mine, &whose.left, &others);
            self.services[at].own = own;
        }
    }

    /// These processes and what descends from them, but not what outlives them, nor what `others` are.
    fn families(&self, roots: &[u32], left: &[u32], others: &dyn Fn(u32) -> bool) -> Vec<u32> {
        let mut family: Vec<u32> = Vec::new();
        let mut open: Vec<u32> = roots.iter().rev().copied().collect();
        while let Some(pid) = open.pop() {
            if family.contains(&pid) || left.contains(&pid) || others(pid) {
                continue;
            }
            family.push(pid);
            let children = self.processes.iter().filter(|p| p.parent == pid);
            open.extend(children.map(Process::pid));
        }
        family
    }

    fn is_one_of(&self, pid: u32, programs: &[&ProgramPath]) -> bool {
        let path = self.process(pid).and_then(|process| process.path.as_ref());
        path.is_some_and(|path| {
            let mut programs = programs.iter();
            programs.any(|program| self.store.is_program(path, program))
        })
    }

    fn whose(&self, name: &Name) -> Option<&Whose> {
        self.services.iter().find(|whose| whose.name == *name)
    }

    /// A service's own processes. `None`: nothing tells which they would be.
    pub fn own(&self, name: &Name) -> Option<Vec<Identity>> {
        let whose = self.whose(name)?;
        let tells = whose.known || !whose.programs.is_empty();
        tells.then(|| self.identities(&whose.own))
    }

    /// Services of one program of which nothing tells whose process is whose.
    pub fn alike(&self) -> Vec<&Name> {
        let unknown = |whose: &&Whose| !whose.known && !whose.own.is_empty();
        let shares = |whose: &&Whose| {
            let others = self
                .services
                .iter()
                .filter(|other| other.name != whose.name);
            let mut programs = others.flat_map(|other| &other.programs);
            programs.any(|program| whose.programs.contains(program))
        };
        let alike = self.services.iter().filter(unknown).filter(shares);
        alike.map(|whose| &whose.name).collect()
    }

    /// The service whose own process this is.
    pub fn owner(&self, pid: u32) -> Option<&Name> {
        let whose = self.services.iter().find(|whose| whose.own.contains(&pid));
        whose.map(|whose| &whose.name)
    }

    /// Whether a release declares that this process outlives its service.
    pub fn is_left(&self, pid: u32) -> bool {
        self.services.iter().any(|whose| whose.left.contains(&pid))
    }

    fn identities(&self, pids: &[u32]) -> Vec<Identity> {
        let known = pids.iter().filter_map(|pid| self.process(*pid));
        known.map(|process| process.identity).collect()
    }

    /// What a service of a set is seen to run.
    pub fn look(&self, service: &Service, set: Set, manifest: &Manifest) -> Seen {
        if service.oneshot {
            return self.has_run(&service.name);
        }
        let Some(installed) = self.store.program(set, manifest, service.runs.as_str()) else {
            return Seen::stopped(format!(
                "service {} runs {}, which is not installed",
                service.name, service.runs
            ));
        };
        let own = self.own(&service.name).unwrap_or_default();
        let wanted = FileId::of(&installed).ok();
        let exact = |p: &&Identity| wanted.is_some() && self.file(p.pid) == wanted;
        // An unchanged file may be installed twice. Of a program inside of a tree the manifest has no digest.
        let same = || {
            let digest = match manifest.at(&service.runs) {
                Some(component) => component.sha256,
                None => digest_of(&installed)?,
            };
            own.iter().find(|p| self.digest(p.pid) == Some(digest))
        };
        match own.iter().find(exact).or_else(same) {
            Some(process) => Seen {
                state: State::Installed,
                process: Some(*process),
                why: None,
            },
            None => self.runs_instead(&service.name, &own, &installed),
        }
    }

    /// A service that does its work when it is started: there is no process to look at.
    fn has_run(&self, name: &Name) -> Seen {
        match self.manager.runs(name) {
            Ok(()) => Seen {
                state: State::Done,
                process: None,
                why: None,
            },
            Err(_) => Seen::stopped(format!(
                "service {name} has not run to its end: it was not started, or failed"
            )),
        }
    }

    /// What a service runs that does not run what is installed.
    fn runs_instead(&self, name: &Name, own: &[Identity], installed: &Path) -> Seen {
        let supervisor = |p: &&Identity| self.supervises(p.pid, name);
        // A supervisor's child is the service; a lone process is itself.
        let foreign = self.whose(name).and_then(|whose| whose.foreign);
        let foreign = foreign.and_then(|pid| self.manager.host().proc().identity(pid));
        let process = own.iter().find(|p| !supervisor(p)).or(foreign.as_ref());
        match (process, own.first()) {
            (Some(process), _) => Seen {
                state: State::Other,
                process: Some(*process),
                why: Some(format!(
                    "service {name} runs {} (process {}), not the installed {}",
                    self.name(process.pid),
                    process.pid,
                    installed.display()
                )),
            },
            (None, Some(supervisor)) => Seen::stopped(format!(
                "service {name}: its program exits whenever it is started: {SUPERVISOR} (process {}) has no running child",
                supervisor.pid
            )),
            (None, None) => Seen::stopped(format!(
                "service {name}: no process runs the installed {}{}",
                installed.display(),
                self.namesake(installed)
            )),
        }
    }

    /// The digest of the file that a process runs, if it still runs that.
    fn digest(&self, pid: u32) -> Option<Digest> {
        let process = self.process(pid)?;
        let digest = match process.script() {
            Some(script) => digest_of(script),
            None => digest_of(&self.manager.host().proc().executable(pid)),
        };
        digest.filter(|_| self.goes_on(process.identity))
    }

    /// A process that runs a file of the same name elsewhere: usually the reason why nothing runs the installed one.
    fn namesake(&self, path: &Path) -> String {
        let found = self.processes.iter().find_map(|process| {
            let runs = process.path.as_ref()?;
            let same = runs.file_name() == path.file_name()
                && runs.starts_with(self.manager.host().root());
            (same && self.owner(process.pid()).is_none()).then(|| {
                let name = self.name(process.pid());
                format!("; process {} runs {name}", process.pid())
            })
        });
        found.unwrap_or_default()
    }

    /// A process that executes a service's program and belongs to no service: that service, if its pidfile is wrong.
    pub fn unclaimed(&self, name: &Name) -> Option<Identity> {
        let whose = self.whose(name)?;
        let unclaimed = |p: &&Process| {
            self.executes(p.pid(), whose) && self.owner(p.pid()).is_none() && !self.is_left(p.pid())
        };
        self.processes.iter().find(unclaimed).map(|p| p.identity)
    }

    /// The processes that execute a file.
    pub fn executing(&self, file: FileId) -> Vec<Identity> {
        let all = self.processes.iter().filter(|p| p.file == Some(file));
        all.map(|p| p.identity).collect()
    }

    /// Whether a process may answer for a set: it is one of a service's, and not of one that only another set has.
    pub fn answers(&self, pid: u32, manifest: &Manifest) -> bool {
        let of = |name: &Name| manifest.services.iter().any(|s| s.name == *name);
        self.owner(pid).is_some_and(of)
    }
}

/// Where the program of a service lies in one set or another, as the kernel calls it: without links.
fn places(service: &Service, manifests: &[&Manifest], store: &Store) -> Vec<PathBuf> {
    let components = manifests.iter().filter_map(|m| m.holding(&service.runs));
    let places = components.flat_map(|component| store.places(component, &service.runs));
    let mut places: Vec<PathBuf> = places
        .filter_map(|path| {
            let directory = std::fs::canonicalize(path.parent()?).ok()?;
            Some(directory.join(path.file_name()?))
        })
        .collect();
    places.sort();
    places.dedup();
    places
}

fn digest_of(path: &Path) -> Option<Digest> {
    let file = std::fs::File::open(path).ok()?;
    Some(Digest::of_reader(file).ok()?.0)
}
