//! An appliance in a temporary directory: a root with a factory set, services that are real processes, and a repository
//! that `qx-publish` made. The programs are driven as an operator drives them; what they did is read from outside.

#![allow(dead_code)] // Each test binary uses its part of this.

pub mod hostile;
pub mod proxy;
pub mod server;
pub mod signer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub const UPDATE: &str = env!("CARGO_BIN_EXE_qx-update");

/// What the services are called; the service NAME is the program `bin/qx-NAME`.
pub const SERVICES: [&str; 2] = ["node", "console"];

/// Guards against a test that hangs; no behaviour is measured with it.
const HANG: Duration = Duration::from_secs(600);

/// A pause that always has the same order of magnitude as what is waited for here.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Waits until it holds; fails with `what` if it never does.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < HANG, "never: {what}");
        pause();
    }
}

/// A file system over a directory of the appliance; taken away when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn over(place: &Path, arguments: &[&str]) -> Mounted {
        let mount = Command::new("mount").args(arguments).arg(place).output();
        let mount = mount.unwrap();
        assert!(mount.status.success(), "{mount:?}");
        Mounted(place.to_owned())
    }

    /// A data partition of 64 MB, in the place of the one that was there.
    pub fn small(appliance: &Appliance) -> Mounted {
        Mounted::partition(appliance, &["ext4", "-m", "0"], 64 << 20)
    }

    /// A data partition of so many bytes, made by mkfs with these options, in the place of the one that was there.
    pub fn partition(appliance: &Appliance, made: &[&str], bytes: u64) -> Mounted {
        appliance.services("stop");
        let image = appliance.temp().join("image");
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let mkfs = Command::new(format!("mkfs.{}", made[0]))
            .arg("-q")
            .args(&made[1..])
            .arg(&image)
            .output();
        let mkfs = mkfs.unwrap();
        assert!(mkfs.status.success(), "{mkfs:?}");
        let mounted = Mounted::over(&appliance.data(), &["-o", "loop", path(&image)]);
        fs::set_permissions(appliance.data(), fs::Permissions::from_mode(0o755)).unwrap();
        appliance.update(&["recover"]).code(0);
        appliance.services("start");
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A directory as an operator has it, whatever the umask is: nobody else can write into it. Those above it are made, too.
pub fn create_dir(path: impl AsRef<Path>) -> std::io::Result<()> {
    let path = path.as_ref();
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), create_dir)?;
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// One of them that is gone when it is dropped.
pub fn temporary(prefix: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// The appliance, the repository it updates from, and the publisher's keys.
pub struct Appliance {
    temp: TempDir,
    pub root: PathBuf,
    pub repo: PathBuf,
    pub keys: PathBuf,
    recipes: AtomicUsize,
    commands: AtomicUsize,
}

impl Appliance {
    /// With factory set 1.0.0 in place, its services running, and an empty repository as its source.
    #[track_caller]
    pub fn new() -> Appliance {
        Appliance::with_factory("ok")
    }

    /// The same; the factory's programs behave so.
    #[track_caller]
    pub fn with_factory(behaviour: &str) -> Appliance {
        let temp = temporary("qx-");
        let root = temp.path().join("root");
        let appliance = Appliance {
            repo: root.join("srv/repo"),
            keys: temp.path().join("keys"),
            root,
            temp,
            recipes: AtomicUsize::new(0),
            commands: AtomicUsize::new(0),
        };
        for dir in [
            "etc/qx-update",
            "usr/share/qx-update",
            "usr/bin",
            "data",
            "run",
            "out",
            "ports",
            "srv",
        ] {
            create_dir(appliance.root.join(dir)).unwrap();
        }
        // Whatever the umask is.
        fs::set_permissions(appliance.data(), fs::Permissions::from_mode(0o755)).unwrap();
        for service in SERVICES {
            fs::write(
                appliance.root.join("ports").join(service),
                free_port().to_string(),
            )
            .unwrap();
        }
        let svc = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/svc");
        copy_executable(Path::new(svc), &appliance.root.join("svc"));
        let (repo, keys) = (path(&appliance.repo), path(&appliance.keys));
        appliance
            .publish(&[
                "init",
                "--repo",
                repo,
                "--keys",
                keys,
                "--product",
                "quantix-os",
            ])
            .code(0);
        appliance.trust_the_repository();
        appliance.configure();

        let factory = appliance.recipe("1.0.0");
        appliance.factory(
            &factory
                .behaviour("node", behaviour)
                .behaviour("console", behaviour),
        );
        appliance.services("start");
        wait_until("the factory's programs run", || {
            appliance.processes().len() >= SERVICES.len()
        });
        // As each boot does.
        appliance.update(&["recover"]).code(0);
        appliance
    }

    /// Makes what the recipe describes the factory set of the image.
    #[track_caller]
    pub fn factory(&self, recipe: &Recipe) {
        recipe.write();
        for component in recipe.json["components"].as_array().unwrap() {
            let from = recipe.dir.join(component["source"].as_str().unwrap());
            let to = self
                .root
                .join("usr")
                .join(component["install_path"].as_str().unwrap());
            copy_all(&from, &to);
        }
        let out = self.root.join("usr/share/qx-update/factory.json");
        let _ = fs::remove_file(&out);
        self.publish(&["factory", path(&recipe.file()), "--out", path(&out)])
            .code(0);
    }

    fn trust_the_repository(&self) {
        fs::copy(
            self.repo.join("metadata/1.root.json"),
            self.root.join("etc/qx-update/root.json"),
        )
        .unwrap();
    }

    fn configure(&self) {
        let svc = self.root.join("svc");
        let svc = path(&svc);
        let config = json!({
            "format": 1,
            "product": "quantix-os",
            "channel": "stable",
            "sources": ["/srv/repo"],
            "services": {
                "manager": "commands",
                "pidfile": "/run/{name}.pid",
                "start": [svc, "start", "{name}"],
                "stop": [svc, "stop", "{name}"],
                "status": [svc, "status", "{name}"],
            },
            // A trial may last ten years: each boot here has the uptime of this machine, which makes no trial old.
            "limits": {"connect_timeout_s": 5, "stall_timeout_s": 30, "retries": 2, "service_timeout_s": 120,
                       "trial_max_age_s": 315_360_000},
        });
        fs::write(
            self.config(),
            serde_json::to_string_pretty(&config).unwrap(),
        )
        .unwrap();
    }

    /// Edits the configuration that is there.
    pub fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let mut config = json_file(&self.config());
        edit(&mut config);
        fs::write(
            self.config(),
            serde_json::to_string_pretty(&config).unwrap(),
        )
        .unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("etc/qx-update/config.json")
    }

    /// Takes releases from there.
    pub fn source(&self, source: &str) {
        self.sources(&[source]);
    }

    /// Takes releases from these mirrors.
    pub fn sources(&self, sources: &[&str]) {
        self.edit_config(|config| config["sources"] = json!(sources));
    }

    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub fn temp(&self) -> &Path {
        self.temp.path()
    }

    /// Runs `svc VERB` for every service, as the boot and the shutdown do.
    #[track_caller]
    pub fn services(&self, verb: &str) {
        for service in SERVICES {
            self.service(verb, service);
        }
        // The shell that starts a program becomes it a moment later.
        wait_until("the services are what they are", || {
            let exes = SERVICES.iter().filter_map(|s| exe(self.pid(s)?));
            exes.into_iter().all(|exe| exe.starts_with(&self.root))
        });
    }

    #[track_caller]
    pub fn service(&self, verb: &str, name: &str) {
        let status = Command::new(self.root.join("svc"))
            .args([verb, name])
            .status()
            .unwrap();
        assert!(
            status.success(),
            "svc {verb} {name}: {status}\n{}",
            self.tree()
        );
    }

    pub fn port(&self, service: &str) -> u16 {
        text(&self.root.join("ports").join(service))
            .parse()
            .unwrap()
    }

    /// The process of a service, if it runs.
    pub fn pid(&self, service: &str) -> Option<u32> {
        let pid = fs::read_to_string(self.root.join("run").join(format!("{service}.pid"))).ok()?;
        let pid = pid.trim().parse().ok()?;
        exe(pid).map(|_| pid)
    }

    /// A service's process is killed, and gone: until then its manager would find it running and start none.
    pub fn kill_service(&self, service: &str) {
        if let Some(pid) = self.pid(service) {
            kill(pid, rustix::process::Signal::KILL);
            wait_until("the service is gone", || self.pid(service) != Some(pid));
        }
    }

    /// What the processes of this appliance's services run: process id and file.
    pub fn processes(&self) -> BTreeMap<u32, PathBuf> {
        let programs = [self.root.join("data"), self.root.join("usr/bin")];
        processes(|exe| programs.iter().any(|p| exe.starts_with(p)))
    }

    /// The versions that the services' programs say on their ports; "" from one that does not answer.
    pub fn answers(&self) -> Vec<String> {
        SERVICES
            .iter()
            .map(|s| answer(self.port(s)).unwrap_or_default())
            .collect()
    }

    /// What the log of the service manager says it was told since this was asked last.
    pub fn told(&self) -> Vec<String> {
        let log = self.root.join("out/svc.log");
        let told = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        told.lines()
            .filter(|l| !l.starts_with("status"))
            .map(str::to_owned)
            .collect()
    }

    /// A recipe for a complete release, whose programs are of that version.
    pub fn recipe(&self, version: &str) -> Recipe {
        let number = self.recipes.fetch_add(1, Ordering::Relaxed);
        let dir = self.temp.path().join(format!("recipe-{number}"));
        create_dir(dir.join("www")).unwrap();
        fs::write(dir.join("www/index.html"), format!("This is {version}.\n")).unwrap();
        let mut json = json!({
            "format": 1,
            "product": "quantix-os",
            "version": version,
            "arch": std::env::consts::ARCH,
            "release_notes": format!("What is new in {version}"),
            "components": [
                {"name": "qx-node", "kind": "bin", "install_path": "bin/qx-node", "source": "qx-node"},
                {"name": "qx-console", "kind": "bin", "install_path": "bin/qx-console", "source": "qx-console"},
                {"name": "www", "kind": "tree", "install_path": "share/www", "source": "www"},
            ],
            "services": [
                {"name": "node", "runs": "bin/qx-node", "order": 10},
                {"name": "console", "runs": "bin/qx-console", "uses": ["www"], "order": 20},
            ],
        });
        json["health"] = SERVICES
            .iter()
            .map(|s| http_check(self.port(s), version))
            .collect();
        let mut recipe = Recipe {
            dir,
            json,
            programs: BTreeMap::new(),
        };
        for service in SERVICES {
            recipe
                .programs
                .insert(service.to_owned(), (version.to_owned(), "ok".to_owned()));
        }
        recipe
    }

    /// Publishes a healthy release.
    #[track_caller]
    pub fn publish_release(&self, version: &str) {
        self.release(&self.recipe(version));
    }

    /// Publishes what the recipe makes.
    #[track_caller]
    pub fn release(&self, recipe: &Recipe) {
        self.try_release(recipe, &[]).code(0);
    }

    #[track_caller]
    pub fn try_release(&self, recipe: &Recipe, more: &[&str]) -> Outcome<'_> {
        recipe.write();
        let file = recipe.file();
        let mut arguments = vec![
            "release",
            path(&file),
            "--repo",
            path(&self.repo),
            "--keys",
            path(&self.keys),
        ];
        arguments.extend(more);
        self.publish(&arguments)
    }

    /// Runs qx-publish to its end.
    #[track_caller]
    pub fn publish(&self, arguments: &[&str]) -> Outcome<'_> {
        let mut command = Command::new(publisher());
        command.args(arguments);
        self.spawn(command).wait()
    }

    /// Runs qx-update to its end.
    #[track_caller]
    pub fn update(&self, arguments: &[&str]) -> Outcome<'_> {
        self.start(arguments).wait()
    }

    /// Starts qx-update.
    #[track_caller]
    pub fn start(&self, arguments: &[&str]) -> Running<'_> {
        self.start_with(&[], arguments)
    }

    /// Starts qx-update with these variables in its environment, and no other that names a proxy.
    #[track_caller]
    pub fn start_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Running<'_> {
        let mut command = Command::new(UPDATE);
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command.envs(variables.iter().copied());
        command.arg("--root").arg(&self.root).args(arguments);
        self.spawn(command)
    }

    /// Starts a command whose output goes to files: a worker that outlives it holds no pipe open.
    #[track_caller]
    pub fn spawn(&self, mut command: Command) -> Running<'_> {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let out = self.temp.path().join(format!("{number}.stdout"));
        let err = self.temp.path().join(format!("{number}.stderr"));
        command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap());
        let line = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
        Running {
            appliance: self,
            line,
            child,
            out,
            err,
        }
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let outcome = self.update(&["status", "--json"]);
        outcome.code(0);
        serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|e| outcome.fail(&format!("status is not JSON: {e}")))
    }

    /// The phase that is on the disk; "" if no record is.
    pub fn phase(&self) -> String {
        let copies = ["state.0", "state.1"].into_iter().filter_map(|name| {
            let file = fs::read_to_string(self.data().join("update").join(name)).ok()?;
            let record: Value = serde_json::from_str(file.lines().next()?).ok()?;
            Some((
                record["sequence"].as_u64()?,
                record["record"]["phase"].as_str()?.to_owned(),
            ))
        });
        copies.max().map(|(_, phase)| phase).unwrap_or_default()
    }

    /// Publishes a healthy release, and installs it.
    #[track_caller]
    pub fn install(&self, version: &str) {
        self.publish_release(version);
        self.update(&["apply"]).code(0);
        self.runs(version);
        self.told();
    }

    /// Runs qx-update, which refuses: so, in one line of error with these words, and with nothing changed.
    #[track_caller]
    pub fn refuses(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let before = self.picture();
        self.update(arguments).refused(code, words);
        before.unchanged(self);
    }

    /// Signs what qx-publish would not.
    pub fn signer(&self) -> signer::Signer {
        signer::Signer::new(&self.repo, &self.keys)
    }

    /// The link's target, `slots/a` or `slots/b`; "" without one.
    pub fn link(&self) -> String {
        fs::read_link(self.data().join("current"))
            .map(|to| path(&to).to_owned())
            .unwrap_or_default()
    }

    /// The kernel's name for this boot, as this root sees it, from here on.
    pub fn boot_id(&self, number: u32) {
        let dir = self.root.join("proc/sys/kernel/random");
        create_dir(&dir).unwrap();
        let id = format!("00000000-0000-4000-8000-{number:012}\n");
        fs::write(dir.join("boot_id"), id).unwrap();
    }

    /// Everything that the appliance runs from: each file, directory and link of the data partition but the updater's own
    /// records, and each process of a service. Two that are equal: nothing changed.
    pub fn picture(&self) -> Picture {
        let mut files = BTreeMap::new();
        walk(&self.data(), &mut |path, meta| {
            let name = path.strip_prefix(self.data()).unwrap().to_owned();
            if name.starts_with("update") {
                return;
            }
            let content = if meta.is_symlink() {
                fs::read_link(path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if meta.is_file() {
                fs::read(path).unwrap()
            } else {
                Vec::new()
            };
            files.insert(name, (meta.mode(), content));
        });
        // An empty place for slots is the same as none.
        if files.keys().filter(|f| f.starts_with("slots")).count() == 1 {
            files.remove(Path::new("slots"));
        }
        let mut processes = self.processes();
        processes.retain(|pid, _| SERVICES.iter().any(|s| self.pid(s) == Some(*pid)));
        Picture { files, processes }
    }

    /// Fails unless exactly this set is in place and runs: the link, and every service's process with the very bytes that
    /// are installed. (A service that was not restarted goes on with the same program from where it was before.)
    #[track_caller]
    pub fn runs(&self, version: &str) {
        let bin = if self.link().is_empty() {
            let factory = json_file(&self.root.join("usr/share/qx-update/factory.json"));
            assert_eq!(
                factory["version"],
                version,
                "there is no link\n{}",
                self.tree()
            );
            self.root.join("usr/bin")
        } else {
            let slot = self.data().join(self.link());
            let release = json_file(&slot.join("release.json"));
            assert_eq!(
                release["version"],
                version,
                "the link is to another release\n{}",
                self.tree()
            );
            slot.join("bin")
        };
        for service in SERVICES {
            let pid = self.pid(service);
            let pid = pid.unwrap_or_else(|| panic!("{service} does not run\n{}", self.tree()));
            let installed = fs::read(bin.join(format!("qx-{service}"))).unwrap();
            let runs = fs::read(format!("/proc/{pid}/exe")).unwrap();
            assert!(
                runs == installed,
                "{service} runs another file\n{}",
                self.tree()
            );
        }
        let all: BTreeSet<_> = self.processes().into_values().collect();
        assert_eq!(
            all.len(),
            SERVICES.len(),
            "something else runs: {all:?}\n{}",
            self.tree()
        );
    }

    /// The directory tree, the processes, and the update log, for a test that failed.
    pub fn tree(&self) -> String {
        let mut lines = vec![format!("--- {}", self.root.display())];
        walk(&self.root, &mut |path, meta| {
            let name = path.strip_prefix(&self.root).unwrap().display();
            let target = match fs::read_link(path) {
                Ok(to) => format!(" -> {}", to.display()),
                Err(_) => String::new(),
            };
            lines.push(format!(
                "{:6o} {:8} {name}{target}",
                meta.mode(),
                meta.len()
            ));
        });
        lines.push("--- processes".to_owned());
        lines.extend(
            self.processes()
                .iter()
                .map(|(pid, exe)| format!("{pid} {}", exe.display())),
        );
        for file in [
            "data/update/log/update.log",
            "out/svc.log",
            "out/node.log",
            "out/console.log",
        ] {
            if let Ok(log) = fs::read(self.root.join(file)) {
                let log = String::from_utf8_lossy(&log);
                let lines_of: Vec<_> = log.lines().collect();
                lines.push(format!("--- {file}"));
                let from = lines_of.len().saturating_sub(60);
                lines.extend(lines_of[from..].iter().map(|l| (*l).to_owned()));
            }
        }
        lines.join("\n")
    }

    /// Ends every process of the updater for this root at once, as a crash of the machine's memory would: front end and
    /// worker; nobody gets a chance to clean up.
    pub fn kill_updater(&self) {
        loop {
            let updaters = self.updaters();
            if updaters.is_empty() {
                return;
            }
            for pid in updaters {
                kill(pid, rustix::process::Signal::KILL);
            }
            pause();
        }
    }

    /// Ends everything that runs on this appliance, also what the updater or a service script was in the middle of.
    pub fn power_off(&self) {
        let ours = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(path(&self.root))
        };
        wait_until("nothing runs", || {
            let all = processes(|_| true).into_iter();
            let left: Vec<u32> = all
                .filter(|(pid, exe)| exe.starts_with(&self.root) || ours(pid))
                .map(|(pid, _)| pid)
                .collect();
            for pid in &left {
                kill(*pid, rustix::process::Signal::KILL);
            }
            left.is_empty()
        });
    }

    /// The processes of the updater for this root.
    pub fn updaters(&self) -> Vec<u32> {
        let root = path(&self.root);
        processes(|exe| exe == Path::new(UPDATE))
            .into_keys()
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.split(|b| *b == 0).any(|word| word == root.as_bytes())
            })
            .collect()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.power_off();
        if std::thread::panicking() && std::env::var_os("QX_TEST_KEEP").is_some() {
            self.temp.disable_cleanup(true);
            eprintln!("kept: {}", self.temp.path().display());
        }
    }
}

/// What the appliance runs from, and what runs.
#[derive(PartialEq, Eq)]
pub struct Picture {
    pub files: BTreeMap<PathBuf, (u32, Vec<u8>)>,
    processes: BTreeMap<u32, PathBuf>,
}

impl Picture {
    /// Fails unless the appliance still looks like this.
    #[track_caller]
    pub fn unchanged(&self, appliance: &Appliance) {
        let now = appliance.picture();
        if *self == now {
            return;
        }
        let mut changes = Vec::new();
        for name in self
            .files
            .keys()
            .chain(now.files.keys())
            .collect::<BTreeSet<_>>()
        {
            match (self.files.get(name), now.files.get(name)) {
                (Some(before), Some(after)) if before == after => (),
                (Some(_), Some(_)) => changes.push(format!("changed: {}", name.display())),
                (Some(_), None) => changes.push(format!("gone: {}", name.display())),
                _ => changes.push(format!("new: {}", name.display())),
            }
        }
        if self.processes != now.processes {
            changes.push(format!(
                "processes: {:?}, were {:?}",
                now.processes, self.processes
            ));
        }
        panic!(
            "something changed:\n{}\n{}",
            changes.join("\n"),
            appliance.tree()
        );
    }
}

/// A command that was started.
pub struct Running<'a> {
    appliance: &'a Appliance,
    line: String,
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl<'a> Running<'a> {
    /// What it did when it has ended.
    #[track_caller]
    pub fn wait(mut self) -> Outcome<'a> {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > HANG {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let tree = self.appliance.tree();
                panic!(
                    "hangs: {}\n{}{}{tree}",
                    self.line,
                    text(&self.out),
                    text(&self.err)
                );
            }
            pause();
        };
        Outcome {
            appliance: self.appliance,
            line: self.line,
            code: status
                .code()
                .unwrap_or_else(|| -status.signal().unwrap_or_default()),
            stdout: text(&self.out),
            stderr: text(&self.err),
        }
    }

    /// What it has written to standard output until now.
    pub fn said(&self) -> String {
        text(&self.out)
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// What a command did.
pub struct Outcome<'a> {
    appliance: &'a Appliance,
    pub line: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome<'_> {
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        if self.code != code {
            self.fail(&format!("exit {}, not {code}", self.code));
        }
        self
    }

    /// Exits so, with one line of error that contains all these words.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) -> &Self {
        self.code(code);
        self.error_says(words)
    }

    /// Exactly one line of error, that contains all these words.
    #[track_caller]
    pub fn error_says(&self, words: &[&str]) -> &Self {
        let lines: Vec<_> = self
            .stderr
            .lines()
            .filter(|l| l.starts_with("qx-update: "))
            .collect();
        if lines.len() != 1 || self.stderr.lines().last() != lines.first().copied() {
            self.fail("not one line of error at the end");
        }
        for word in words {
            if !lines[0].contains(word) {
                self.fail(&format!("the error does not say {word:?}"));
            }
        }
        self
    }

    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Self {
        for word in words {
            if !self.stdout.contains(word) {
                self.fail(&format!("it does not say {word:?}"));
            }
        }
        self
    }

    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        panic!(
            "{why}\n--- {}\nexit {}\n{}{}{}",
            self.line,
            self.code,
            self.stdout,
            self.stderr,
            self.appliance.tree()
        )
    }
}

/// What a release is made from; `json` may be edited.
pub struct Recipe {
    pub dir: PathBuf,
    pub json: Value,
    programs: BTreeMap<String, (String, String)>,
}

impl Recipe {
    /// The service's program behaves so (see service.c), and its checks fail quickly.
    pub fn behaviour(mut self, service: &str, behaviour: &str) -> Recipe {
        self.programs.get_mut(service).unwrap().1 = behaviour.to_owned();
        if behaviour == "ok" {
            return self;
        }
        self.quick_to_fail()
    }

    /// For a release that is to fail its checks, whatever the machine is busy with.
    pub fn quick_to_fail(self) -> Recipe {
        self.edit(|json| {
            for check in json["health"].as_array_mut().unwrap() {
                check["timeout_s"] = json!(5);
                check["retries"] = json!(1);
                check["start_period_s"] = json!(10);
            }
        })
    }

    /// The service's program is of that version, not of the release's.
    pub fn program(mut self, service: &str, version: &str) -> Recipe {
        self.programs.get_mut(service).unwrap().0 = version.to_owned();
        let number = SERVICES.iter().position(|s| *s == service).unwrap();
        self.json["health"][number]["json"]["equals"] = json!(version);
        self.json["health"][number]["service"] = json!(service);
        self
    }

    /// The tree's content.
    /// The service's program is not one that is made for it.
    pub fn without_program(mut self, service: &str) -> Recipe {
        self.programs.remove(service);
        self
    }

    pub fn www(self, content: &str) -> Recipe {
        fs::write(self.dir.join("www/index.html"), content).unwrap();
        self
    }

    pub fn edit(mut self, edit: impl FnOnce(&mut Value)) -> Recipe {
        edit(&mut self.json);
        self
    }

    /// With a migration: a shell script beside the programs, in a component of its own.
    pub fn migration(self, script: &str, timeout_s: u32) -> Recipe {
        create_dir(self.dir.join("migrations")).unwrap();
        write_script(&self.dir.join("migrations/run"), script);
        self.edit(|json| {
            json["components"].as_array_mut().unwrap().push(json!(
                {"name": "migrations", "kind": "tree", "install_path": "migrations", "source": "migrations"}
            ));
            json["migrate"] = json!({"run": ["migrations/run"], "timeout_s": timeout_s});
        })
    }

    pub fn file(&self) -> PathBuf {
        self.dir.join("recipe.json")
    }

    pub fn write(&self) {
        for (service, (version, behaviour)) in &self.programs {
            write_program(
                &self.dir.join(format!("qx-{service}")),
                service,
                version,
                behaviour,
            );
        }
        // As they are built, whatever the umask is.
        let chmod = Command::new("chmod")
            .args(["-R", "u=rwX,go=rX"])
            .arg(&self.dir)
            .status();
        assert!(chmod.unwrap().success());
        fs::write(
            self.file(),
            serde_json::to_string_pretty(&self.json).unwrap(),
        )
        .unwrap();
    }
}

/// The publisher's program. Cargo builds the programs of the tests' own package; this one is built by whoever asks first.
pub fn publisher() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let profile = Path::new(UPDATE).parent().unwrap();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args([
            "build",
            "--quiet",
            "--package",
            "qx-publish",
            "--target-dir",
        ]);
        cargo.arg(profile.parent().unwrap());
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo says of this package to its tests: build scripts look at some of it, and half of all that there is to build
        // would be built anew, now and again in the next build outside of the tests.
        let of_ours = |name: &String| {
            let parts = ["PKG_", "MANIFEST_", "CRATE_", "BIN_", "PRIMARY_"];
            let part = name.strip_prefix("CARGO_").unwrap_or_default();
            name == "OUT_DIR" || parts.iter().any(|of_ours| part.starts_with(of_ours))
        };
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in names.filter(of_ours) {
            cargo.env_remove(name);
        }
        cargo.args(profile.ends_with("release").then_some("--release"));
        assert!(cargo.status().unwrap().success(), "{cargo:?}");
        path(&profile.join("qx-publish")).to_owned()
    })
}

/// An HTTP check that is quick to pass, and patient with a busy machine.
pub fn http_check(port: u16, version: &str) -> Value {
    json!({
        "type": "http",
        "url": format!("http://127.0.0.1:{port}/health"),
        "json": {"pointer": "/version", "equals": version},
        "interval_s": 1, "timeout_s": 20, "retries": 2, "start_period_s": 60, "stable_s": 1,
    })
}

/// An executable file that plays a service.
pub fn write_program(to: &Path, name: &str, version: &str, behaviour: &str) {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("service");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/service.c");
        let status = Command::new("cc")
            .args(["-O1", "-s", "-o"])
            .arg(&out)
            .arg(source)
            .status();
        assert!(status.expect("cc, which links Rust programs too").success());
        fs::read(out).unwrap()
    });
    let mut bytes = program.clone();
    bytes.extend(
        format!(
            "{:128}",
            format!("name {name} version {version} behaviour {behaviour}")
        )
        .bytes(),
    );
    write_executable(to, bytes);
}

pub fn write_script(to: &Path, script: &str) {
    write_executable(to, format!("#!/bin/sh\n{script}\n"));
}

/// Writes a file that is executed afterwards. Another process does it: a child that another test starts meanwhile would
/// hold a descriptor of ours open until it executes its program, and who executes the file then is told that it is busy.
pub fn write_executable(to: &Path, content: impl AsRef<[u8]>) {
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(content.as_ref()).unwrap();
    copy_executable(source.path(), to);
}

/// The same, of what is in a file.
pub fn copy_executable(from: &Path, to: &Path) {
    let mut install = Command::new("install");
    install.args(["-m", "755"]).args([from, to]);
    assert!(install.status().unwrap().success(), "{install:?}");
}

/// The version that is answered on a port.
pub fn answer(port: u16) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    Some(body["version"].as_str()?.to_owned())
}

/// The file that a process runs; none if it has ended.
pub fn exe(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

pub fn kill(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

pub fn text(file: &Path) -> String {
    let bytes = fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn json_file(file: &Path) -> Value {
    serde_json::from_str(&text(file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn copy_all(from: &Path, to: &Path) {
    create_dir(to.parent().unwrap()).unwrap();
    // A directory that is there is replaced; so is a program that runs.
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp")
        .args(["-a", "--remove-destination"])
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Calls it for each file below a directory, in order; links are not followed.
pub fn walk(dir: &Path, each: &mut impl FnMut(&Path, &fs::Metadata)) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        each(&path, &meta);
        if meta.is_dir() {
            walk(&path, each);
        }
    }
}

/// The processes whose program is chosen.
pub fn processes(chosen: impl Fn(&Path) -> bool) -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, exe(pid)?)))
        .filter(|(_, exe)| chosen(exe))
        .collect()
}

/// A port that no other test gets, of this run or of one beside it. Below those that the kernel gives to clients.
pub fn free_port() -> u16 {
    const EACH: u16 = 1000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static RANGE: OnceLock<(u16, fs::File)> = OnceLock::new();
    let (range, _) = RANGE.get_or_init(|| {
        let free = (0..20).find_map(|range| {
            let file = std::env::temp_dir().join(format!("qx-test-ports-{range}"));
            let file = fs::File::create(file).unwrap();
            let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            rustix::fs::flock(&file, exclusive)
                .ok()
                .map(|()| (range, file))
        });
        free.expect("fewer than 20 test runs at once")
    });
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < EACH, "no port is left");
        let port = 10_000 + range * EACH + number;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
