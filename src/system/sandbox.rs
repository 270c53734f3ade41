//! What is left to a process that handles what strangers send: to read here, to write there, perhaps to talk to servers.
//! Everything else that root may do is taken from it, for good: by Landlock (files, TCP, signals), by a filter of system calls
//! (programs, other processes, modes and owners by path, mounts, local sockets), and by dropping capabilities.
//!
//! What the kernel does not have is told and not missed: it is the third line, behind the checks and behind safe code.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::system::calls;

/// What the process may go on doing.
#[derive(Debug)]
pub struct Sandbox {
    /// Files, and directories with all that is in them, that it may read.
    pub readable: Vec<PathBuf>,
    /// Directories in which it may do as it likes with files, directories and links.
    pub writable: Vec<PathBuf>,
    /// Whether it may connect to servers.
    pub network: bool,
}

impl Sandbox {
    /// Confines this thread, and what it starts, and says what of that could not be had, a sentence each.
    pub fn enter(&self) -> Vec<String> {
        let mut missing = Vec::new();
        match self.restrict_files() {
            Ok(RulesetStatus::NotEnforced) => {
                missing.push("this kernel has no Landlock".to_owned());
            }
            Ok(_) => {}
            Err(e) => missing.push(format!("Landlock: {e}")),
        }
        if let Err(e) = self.drop_capabilities() {
            missing.push(format!("dropping capabilities: {e}"));
        }
        if let Err(e) = calls::filter(self.network) {
            missing.push(format!("filtering system calls: {e}"));
        }
        missing
    }

    fn restrict_files(&self) -> Result<RulesetStatus, RulesetError> {
        // What a kernel does not know of this it leaves out.
        let newest = ABI::V9;
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = read
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::MakeSym
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir;
        let connections = match self.network {
            true => AccessNet::BindTcp.into(),
            false => AccessNet::from_all(newest),
        };
        let status = Ruleset::default()
            .handle_access(AccessFs::from_all(newest))?
            .handle_access(connections)?
            .scope(Scope::from_all(newest))?
            .create()?
            .add_rules(landlock::path_beneath_rules(&self.readable, read))?
            .add_rules(landlock::path_beneath_rules(&self.writable, write))?
            .restrict_self()?;
        Ok(status.ruleset)
    }

    /// Left are those that root's own files need: directories of other owners on the way, and capabilities that files have.
    fn drop_capabilities(&self) -> rustix::io::Result<()> {
        let mut needed = CapabilitySet::DAC_OVERRIDE;
        if !self.writable.is_empty() {
            needed |= CapabilitySet::SETFCAP;
        }
        let left = rustix::thread::capabilities(None)?.permitted & needed;
        let sets = CapabilitySets {
            effective: left,
            permitted: left,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets)
    }
}

/// Ends this process with the one that started it. False: that one is gone already.
pub fn live_with(parent: u32) -> rustix::io::Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    Ok(now == Some(parent))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::process::Command;

    use rustix::fs::{AtFlags, CWD, FileType, Mode, Timestamps, XattrFlags};
    use rustix::mount::MountFlags;
    use rustix::process::{Pid, PidfdFlags};

    use super::*;

    /// A directory with what is readable, writable, and neither.
    struct Scene {
        directory: tempfile::TempDir,
        child: std::process::Child,
    }

    impl Scene {
        fn new() -> Scene {
            let directory = tempfile::tempdir().unwrap();
            let at = directory.path();
            for name in ["readable", "writable", "other"] {
                fs::create_dir(at.join(name)).unwrap();
                fs::write(at.join(name).join("file"), name).unwrap();
                fs::create_dir(at.join(name).join("empty")).unwrap();
            }
            std::os::unix::fs::symlink("../other/file", at.join("writable/link")).unwrap();
            std::os::unix::fs::symlink("../other", at.join("writable/way")).unwrap();
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            Scene { directory, child }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.directory.path().join(path)
        }

        fn sandbox(&self, network: bool) -> Sandbox {
            Sandbox {
                readable: vec![self.at("readable"), self.at("is not there")],
                writable: vec![self.at("writable")],
                network,
            }
        }

        /// Everything below it but what is writable: names, kinds, modes and contents.
        fn rest(&self) -> Vec<String> {
            let mut found = Vec::new();
            for name in ["", "readable", "other"] {
                for entry in fs::read_dir(self.at(name)).unwrap() {
                    let path = entry.unwrap().path();
                    let stat = fs::symlink_metadata(&path).unwrap();
                    let text = fs::read(&path).unwrap_or_default();
                    let (mode, time) = (stat.permissions().mode(), stat.modified().unwrap());
                    found.push(format!("{} {mode:o} {time:?} {text:?}", path.display()));
                }
            }
            found.sort();
            found
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }

    /// On a thread of its own: nobody gets out of a sandbox again.
    fn within<T: Send>(sandbox: &Sandbox, act: impl FnOnce() -> T + Send) -> T {
        let confined = || {
            assert_eq!(sandbox.enter(), Vec::<String>::new());
            act()
        };
        std::thread::scope(|scope| scope.spawn(confined).join().unwrap())
    }

    type Tried = (&'static str, io::Result<()>);

    fn refused(tried: Vec<Tried>) {
        for (what, result) in tried {
            let kind = result.map_err(|e| e.kind());
            assert_eq!(kind, Err(io::ErrorKind::PermissionDenied), "{what}");
        }
    }

    fn files(scene: &Scene) -> Vec<Tried> {
        let at = |path: &str| scene.at(path);
        let open = |path: &str| File::options().write(true).open(at(path)).map(drop);
        let no_times = Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
        };
        let root = Some(rustix::process::Uid::ROOT);
        let mode = fs::Permissions::from_mode(0o777);
        let fifo = |path: &str| {
            let made = rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::RWXU, 0);
            made.map_err(io::Error::from)
        };
        vec![
            ("reads a file", fs::read(at("other/file")).map(drop)),
            ("reads a directory", fs::read_dir(at("other")).map(drop)),
            ("reads a secret", fs::read("/etc/shadow").map(drop)),
            ("reads memory", fs::read("/proc/1/environ").map(drop)),
            (
                "reads through a link",
                fs::read(at("writable/link")).map(drop),
            ),
            ("writes", open("other/file")),
            ("writes what it may read", open("readable/file")),
            ("writes through a link", open("writable/link")),
            ("writes through a directory", open("writable/way/file")),
            ("writes to a device", fs::write("/dev/null", "x")),
            ("truncates", rustix_truncate(&at("other/file"))),
            ("creates", File::create(at("other/new")).map(drop)),
            (
                "creates above",
                File::create(at("writable/../new")).map(drop),
            ),
            ("makes a directory", fs::create_dir(at("other/new"))),
            (
                "makes a link",
                std::os::unix::fs::symlink("x", at("other/new")),
            ),
            ("removes", fs::remove_file(at("other/file"))),
            (
                "removes what it may read",
                fs::remove_file(at("readable/file")),
            ),
            ("removes a directory", fs::remove_dir(at("other/empty"))),
            ("makes a pipe outside", fifo("other/new")),
            ("makes a pipe inside", fifo("writable/new")),
            (
                "changes a mode",
                fs::set_permissions(at("other/file"), mode),
            ),
            (
                "changes an owner",
                std::os::unix::fs::chown(at("other/file"), root.map(|u| u.as_raw()), None),
            ),
            (
                "changes an attribute",
                rustix::fs::setxattr(at("other/file"), "user.x", b"x", XattrFlags::empty())
                    .map_err(io::Error::from),
            ),
            (
                "changes times",
                rustix::fs::utimensat(CWD, at("other/file"), &no_times, AtFlags::empty())
                    .map_err(io::Error::from),
            ),
        ]
    }

    fn rustix_truncate(path: &Path) -> io::Result<()> {
        File::options()
            .write(true)
            .truncate(true)
            .open(path)
            .map(drop)
    }

    fn processes(scene: &Scene) -> Vec<Tried> {
        let other = Pid::from_child(&scene.child);
        let sys = |result: rustix::io::Result<()>| result.map_err(io::Error::from);
        vec![
            (
                "runs a program",
                Command::new("/bin/true").status().map(drop),
            ),
            (
                "runs what it wrote",
                Command::new(scene.at("writable/file")).status().map(drop),
            ),
            (
                "kills",
                sys(rustix::process::kill_process(other, Signal::KILL)),
            ),
            (
                "opens a process",
                sys(rustix::process::pidfd_open(other, PidfdFlags::empty()).map(drop)),
            ),
            (
                "changes a priority",
                sys(rustix::process::setpriority_process(Some(other), 5)),
            ),
        ]
    }

    fn machine(scene: &Scene, before: CapabilitySet) -> Vec<Tried> {
        let sys = |result: rustix::io::Result<()>| result.map_err(io::Error::from);
        let (place, flags) = (scene.at("writable/empty"), MountFlags::empty());
        let all = CapabilitySets {
            effective: before,
            permitted: before,
            inheritable: CapabilitySet::empty(),
        };
        let host = rustix::system::uname().nodename().to_bytes().to_vec();
        vec![
            (
                "mounts",
                sys(rustix::mount::mount("x", &place, "tmpfs", flags, None)),
            ),
            ("changes its root", sys(rustix::process::chroot(&place))),
            ("names the host", sys(rustix::system::sethostname(&host))),
            (
                "regains capabilities",
                sys(rustix::thread::set_capabilities(None, all)),
            ),
        ]
    }

    /// Intent: of all that a hijacked fetcher could try, nothing succeeds, and nothing outside has changed.
    #[test]
    fn each_forbidden_thing_is_refused() {
        if !rustix::process::geteuid().is_root() {
            println!("not tried: some of it only root may do at all");
            return;
        }
        let scene = Scene::new();
        let socket = scene.at("other/socket");
        let _local = UnixListener::bind(&socket).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let before = scene.rest();
        let capabilities = rustix::thread::capabilities(None).unwrap().permitted;
        for network in [false, true] {
            within(&scene.sandbox(network), || {
                refused(files(&scene));
                refused(processes(&scene));
                refused(machine(&scene, capabilities));
                refused(vec![
                    (
                        "talks to a neighbour",
                        UnixStream::connect(&socket).map(drop),
                    ),
                    ("listens", TcpListener::bind("127.0.0.1:0").map(drop)),
                ]);
                // What crosses the border is refused by whichever rule comes first.
                for (from, to) in [
                    ("writable/file", "other/new"),
                    ("other/file", "writable/new"),
                ] {
                    let (from, to) = (scene.at(from), scene.at(to));
                    assert!(fs::rename(&from, &to).is_err(), "moves {}", from.display());
                    assert!(
                        fs::hard_link(&from, &to).is_err(),
                        "links {}",
                        from.display()
                    );
                }
                if !network {
                    refused(vec![
                        ("connects", TcpStream::connect(address).map(drop)),
                        ("sends", UdpSocket::bind("127.0.0.1:0").map(drop)),
                    ]);
                }
            });
        }
        assert_eq!(scene.rest(), before);
    }

    /// Intent: what it is there for it can still do.
    #[test]
    fn its_work_is_allowed() {
        let scene = Scene::new();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        within(&scene.sandbox(true), || {
            assert_eq!(fs::read(scene.at("readable/file")).unwrap(), b"readable");
            let work = |name: &str| scene.at("writable").join(name);
            fs::create_dir(work("made")).unwrap();
            let file = File::create(work("made/file")).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o755))
                .unwrap();
            file.sync_all().unwrap();
            fs::rename(work("made/file"), work("made/program")).unwrap();
            std::os::unix::fs::symlink("program", work("made/link")).unwrap();
            let directory = File::open(work("made")).unwrap();
            directory
                .set_permissions(fs::Permissions::from_mode(0o500))
                .unwrap();
            directory.sync_all().unwrap();
            File::options()
                .write(true)
                .truncate(true)
                .open(work("file"))
                .unwrap();
            fs::remove_file(work("file")).unwrap();
            TcpStream::connect(address).unwrap();
            UdpSocket::bind("127.0.0.1:0").unwrap();
        });
        let mode = |path: &str| fs::metadata(scene.at(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("writable/made/program"), 0o755);
        assert_eq!(mode("writable/made"), 0o500);
    }
}
