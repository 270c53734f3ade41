//! An appliance without services, whose data partition can be any disk; its publisher; and what is in each of its sets, as the
//! publisher's sources have it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::disk::run;

/// A file, directory or link as it is to be installed: its permission bits, and its bytes or where it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    File(u32, Vec<u8>),
    Directory(u32),
    Link(PathBuf),
}

/// What lies in a directory, by relative paths.
pub type Tree = BTreeMap<String, Entry>;

pub struct Appliance {
    directory: TempDir,
    /// What each version is, its manifest excepted.
    pub releases: BTreeMap<String, Tree>,
}

/// How a release differs from others.
#[derive(Clone, Copy, Default)]
pub struct Release {
    /// The schema that its migration leaves, and that alone it accepts then. 0: it uses no data.
    pub schema: u64,
    /// Its health check fails.
    pub sick: bool,
    /// It brings the updater.
    pub itself: bool,
}

impl Appliance {
    pub fn new() -> Appliance {
        Appliance::at(tempfile::tempdir().unwrap())
    }

    /// Where nothing has to be waited for.
    pub fn in_memory() -> Appliance {
        Appliance::at(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn at(directory: TempDir) -> Appliance {
        let appliance = Appliance {
            directory,
            releases: BTreeMap::new(),
        };
        let root = appliance.root();
        for place in [
            "data",
            "etc/qx-update",
            "usr",
            "srv",
            "run",
            "proc/sys/kernel/random",
        ] {
            fs::create_dir_all(root.join(place)).unwrap();
        }
        appliance.publish(&[
            "init",
            "--repo",
            "root/srv/repo",
            "--keys",
            "keys",
            "--product",
            "app",
        ]);
        fs::copy(
            root.join("srv/repo/metadata/1.root.json"),
            root.join("etc/qx-update/root.json"),
        )
        .unwrap();
        appliance.configure(|_| {});
        appliance.boot(0);
        appliance
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    /// Writes the configuration, changed from one with a data set.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) {
        let mut config = json!({
            "format": 1, "product": "app", "channel": "stable", "sources": ["/srv/repo"],
            // There is none, but health is checked.
            "services": {"manager": "commands", "start": ["/bin/true"], "stop": ["/bin/true"], "status": ["/bin/true"]},
            "data": [{"name": "db", "method": "files", "place": "/data/db", "limit_bytes": 1 << 20}],
            // Ten years: each boot here has the uptime of this machine, which makes no trial old.
            "limits": {"trial_max_age_s": 315_360_000},
        });
        change(&mut config);
        let file = self.root().join("etc/qx-update/config.json");
        fs::write(file, config.to_string()).unwrap();
    }

    /// Another boot begins.
    pub fn boot(&self, number: usize) {
        let id = format!("00000000-0000-4000-8000-{number:012}\n");
        fs::write(self.root().join("proc/sys/kernel/random/boot_id"), id).unwrap();
        let _ = fs::remove_dir_all(self.root().join("run/qx-update"));
    }

    /// Publishes a release.
    pub fn release(&mut self, version: &str, release: Release) {
        let sources = self.directory.path().join(version);
        // It hangs as long as it is told to: where it runs is the slot.
        let hang = format!(
            "[ ! -e ../../../hang-{version} ] || {{ touch ../../../hangs; exec sleep 1000; }}"
        );
        let healthy = format!("{hang}\nexit {}", i32::from(release.sick));
        // Two files stay the same in every release, one is larger than a page.
        let files = [
            ("bin/app", 0o755, format!("#!/bin/sh\necho {version}\n")),
            ("bin/healthy", 0o755, format!("#!/bin/sh\n{healthy}\n")),
            ("share/ui/index.html", 0o644, format!("<p>{version}</p>").repeat(1000)),
            ("share/ui/css/style.css", 0o640, "p {}".to_owned()),
            ("share/ui/js/app.js", 0o644, format!("// {version}")),
            // Nothing of it is synced.
            ("migrations/run", 0o755, "#!/bin/sh\nset -e\necho schema $1 >$2/rows.new\nmv $2/rows.new $2/rows\nseq 2000 >$2/index\n".to_owned()),
        ];
        let mut tree = Tree::new();
        for (path, mode, content) in files {
            let file = sources.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            tree.insert(path.to_owned(), Entry::File(mode, content.into()));
        }
        if release.itself {
            // What follows the last section is nobody's: each release has another one.
            let program = [&fs::read(program()).unwrap(), version.as_bytes()].concat();
            let file = sources.join("bin/qx-update");
            fs::write(&file, &program).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            tree.insert("bin/qx-update".into(), Entry::File(0o755, program));
        }
        std::os::unix::fs::symlink("css/style.css", sources.join("share/ui/style")).unwrap();
        tree.insert("share/ui/style".into(), Entry::Link("css/style.css".into()));
        for directory in [
            "bin",
            "share",
            "share/ui",
            "share/ui/css",
            "share/ui/js",
            "migrations",
        ] {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(sources.join(directory), mode).unwrap();
            tree.insert(directory.into(), Entry::Directory(0o755));
        }
        let mut recipe = json!({
            "format": 1, "product": "app", "version": version, "arch": std::env::consts::ARCH,
            "components": [
                {"name": "app", "kind": "bin", "install_path": "bin/app", "source": "bin/app", "tool": true},
                {"name": "healthy", "kind": "bin", "install_path": "bin/healthy", "source": "bin/healthy"},
                {"name": "ui", "kind": "tree", "install_path": "share/ui", "source": "share/ui"},
                {"name": "migrations", "kind": "tree", "install_path": "migrations", "source": "migrations"},
            ],
            "health": [{"type": "exec", "run": ["bin/healthy"], "interval_s": 1, "retries": 1, "start_period_s": 0,
                "stable_s": 0, "required": true}],
        });
        if release.itself {
            let component = json!({"name": "qx-update", "kind": "bin", "install_path": "bin/qx-update",
                "source": "bin/qx-update", "tool": true});
            recipe["components"].as_array_mut().unwrap().push(component);
        }
        if release.schema > 0 {
            let schema = release.schema;
            recipe["data"] = json!([{"name": "db", "accepts_from": schema, "accepts_to": schema,
                "schema_after": schema, "accepts_unknown": true}]);
            recipe["migrate"] = json!({"run": ["migrations/run", schema.to_string(), "{data:db}"], "timeout_s": 60,
                "touches": ["db"]});
        }
        fs::write(sources.join("recipe.json"), recipe.to_string()).unwrap();
        let recipe = format!("{version}/recipe.json");
        self.publish(&[
            "release",
            &recipe,
            "--repo",
            "root/srv/repo",
            "--keys",
            "keys",
        ]);
        self.releases.insert(version.to_owned(), tree);
    }

    /// What the updater before left: the release's programs and pages in plain directories, and the same ones as the factory set.
    pub fn in_plain_directories(&mut self, version: &str) {
        self.release(version, Release::default());
        let sources = self.directory.path().join(version);
        fs::create_dir_all(self.root().join("usr/share/qx-update")).unwrap();
        self.publish(&[
            "factory",
            &format!("{version}/recipe.json"),
            "--out",
            "root/usr/share/qx-update/factory.json",
        ]);
        for (part, below) in [
            ("bin", self.root().join("usr")),
            ("share/ui", self.root().join("usr/share")),
            ("migrations", self.root().join("usr")),
            ("bin", self.data()),
            ("share", self.data()),
        ] {
            run(Command::new("cp")
                .arg("-a")
                .arg(sources.join(part))
                .arg(below));
        }
        let tree = self.releases[version].clone();
        self.releases.insert(format!("{version}+adopted"), tree);
    }

    /// Data as it was before the first release: nobody recorded its schema.
    pub fn first_data(&self) {
        let db = self.data().join("db");
        fs::create_dir(&db).unwrap();
        fs::write(db.join("rows"), "schema 1\n").unwrap();
        for (path, mode) in [(db.join("rows"), 0o644), (db, 0o755)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    /// Another one that is the same, for another disk. It publishes nothing.
    pub fn copy(&self) -> Appliance {
        let beside = self.directory.path().parent().unwrap();
        let directory = tempfile::tempdir_in(beside).unwrap();
        let mut cp = Command::new("cp");
        run(cp.arg("-a").arg(self.root()).arg(directory.path()));
        Appliance {
            directory,
            releases: self.releases.clone(),
        }
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.update(&["status", "--json"]).said).unwrap()
    }

    /// The update to a version hangs in its trial, and its updater is gone.
    pub fn kill_in_the_trial(&self, version: &str) {
        let hang = self.root().join(format!("hang-{version}"));
        let hangs = self.root().join("hangs");
        fs::write(&hang, "").unwrap();
        let mut apply = self
            .command(&["apply"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..1200 {
            if hangs.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(hangs.exists(), "it is never on trial");
        // With it the updater, its worker and what that runs are gone: see `command`.
        apply.kill().unwrap();
        apply.wait().unwrap();
        for file in [hang, hangs] {
            fs::remove_file(file).unwrap();
        }
        assert_eq!(self.status()["phase"], "trial");
    }

    fn publish(&self, arguments: &[&str]) {
        let mut command = Command::new(publisher());
        run(command.args(arguments).current_dir(self.directory.path()));
    }

    /// Runs a command to its end.
    pub fn update(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments), arguments)
    }

    /// Both stages of recovery, as a boot runs them.
    pub fn recovers(&self) -> Result<(), String> {
        for stage in ["link", "data"] {
            self.update(&["recover", "--stage", stage]).expect(&[0])?;
        }
        Ok(())
    }

    /// The same with these variables, by the program that was built for tests: the one that ships takes no library.
    pub fn update_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let mut command = alone();
        command.arg("env");
        command.args(
            variables
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        command.arg(env!("CARGO_BIN_EXE_qx-update"));
        Ended::of(self.on_its_root(command, arguments), arguments)
    }

    /// The same by the updater that a release brought.
    pub fn update_by_itself(&self, arguments: &[&str]) -> Ended {
        let program = self.data().join("bin/qx-update");
        Ended::of(self.command_of(program.into(), arguments), arguments)
    }

    /// The same under strace.
    pub fn traced(&self, options: &[&str], arguments: &[&str]) -> Command {
        let mut command = alone();
        let strace = crate::calls::strace(options);
        command.arg(strace.get_program()).args(strace.get_args());
        command.arg(program());
        self.on_its_root(command, arguments)
    }

    /// A file that is no part of the appliance.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Appliance {
    /// A command that is not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(program(), arguments)
    }

    fn command_of(&self, program: OsString, arguments: &[&str]) -> Command {
        let mut command = alone();
        command.arg(program);
        self.on_its_root(command, arguments)
    }

    fn on_its_root(&self, mut command: Command, arguments: &[&str]) -> Command {
        command.arg("--root").arg(self.root()).args(arguments);
        command
    }
}

/// What follows is alone with its processes and control groups: other copies of the appliance are in the middle of the very same
/// operation.
fn alone() -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
    ]);
    command.arg("mount -t tmpfs none /sys/fs/cgroup 2>/dev/null; exec \"$0\" \"$@\"");
    command
}

/// The program that ships, if `QX_TEST_PROGRAM` names it; else the one that was built for tests.
fn program() -> OsString {
    let named = std::env::var_os("QX_TEST_PROGRAM");
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_qx-update").into())
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    what: String,
    pub code: Option<i32>,
    pub said: String,
    pub error: String,
}

impl Ended {
    pub fn of(mut command: Command, arguments: &[&str]) -> Ended {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            what: arguments.join(" "),
            code: status.code(),
            said: text(&stdout),
            error: text(&stderr),
        }
    }

    /// It must have ended like this.
    pub fn expect(self, codes: &[i32]) -> Result<Ended, String> {
        match self.code.is_some_and(|code| codes.contains(&code)) {
            true => Ok(self),
            false => Err(format!(
                "`{}` ended with {:?}, not {codes:?}: {}{}",
                self.what, self.code, self.said, self.error
            )),
        }
    }
}

fn publisher() -> PathBuf {
    let tested = Path::new(env!("CARGO_BIN_EXE_qx-update"));
    let publisher = tested.with_file_name("qx-publish");
    assert!(publisher.exists(), "cargo build --package qx-publish");
    publisher
}

/// What lies below a directory now; the error names what cannot be read.
pub fn tree(directory: &Path) -> Result<Tree, String> {
    let mut found = Tree::new();
    let mut open = vec![directory.to_owned()];
    while let Some(place) = open.pop() {
        let unreadable = |path: &Path, e: io::Error| format!("{}: {e}", path.display());
        for entry in fs::read_dir(&place).map_err(|e| unreadable(&place, e))? {
            let path = entry.map_err(|e| unreadable(&place, e))?.path();
            let meta = fs::symlink_metadata(&path).map_err(|e| unreadable(&path, e))?;
            let mode = meta.permissions().mode() & 0o7777;
            let entry = if meta.is_symlink() {
                Entry::Link(fs::read_link(&path).map_err(|e| unreadable(&path, e))?)
            } else if meta.is_dir() {
                open.push(path.clone());
                Entry::Directory(mode)
            } else {
                Entry::File(mode, fs::read(&path).map_err(|e| unreadable(&path, e))?)
            };
            let name = path.strip_prefix(directory).map_err(|e| e.to_string())?;
            found.insert(name.display().to_string(), entry);
        }
    }
    Ok(found)
}
