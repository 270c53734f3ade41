//! The machine: where paths are, what time it is, which boot this is. With a root other than `/` every path
//! resolves inside it, symbolic links included.
//!
//! Paths are followed here, one name after the other, from descriptor to descriptor: that takes neither openat2(2),
//! which older kernels and filters do not have, nor a mounted `/proc`, and it knows where a link leads that leads to
//! nothing yet.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::model::id::{BootId, OperationId};
use crate::model::moment::Moment;
use crate::system::proc::Proc;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::trust::clock::Clock;

/// As many links as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// The kernel argument that makes a boot use the factory set.
pub const FACTORY_BOOT: &str = "qx.factory";
/// The kernel argument by which `initramfs/qx-recover` goes back to the previous set.
pub const ROLLBACK_BOOT: &str = "qx.rollback";

/// The machine as seen below a root directory.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    proc: Proc,
}

impl Host {
    /// The machine below `root`.
    pub fn new(root: &Path) -> Result<Host> {
        let root = fs::canonicalize(root)
            .doing(|| format!("using the root directory {}", root.display()))
            .map_err(|e| e.of(ErrorKind::Usage))?;
        Ok(Host {
            root,
            proc: Proc::default(),
        })
    }

    /// A text whose paths are the appliance's own: what is kept is read where the root is mounted elsewhere.
    pub fn own_paths(&self, text: &str) -> String {
        match self.is_running_system() {
            true => text.to_owned(),
            false => text.replace(&format!("{}/", self.root.display()), "/"),
        }
    }

    /// The processes of this machine.
    pub fn proc(&self) -> &Proc {
        &self.proc
    }

    /// Whether this is the running system itself, whose services and processes are ours to look at.
    pub fn is_running_system(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an absolute path of the appliance is. Links are followed inside the root; what does not exist is where it
    /// would be created, inside the root, too.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        match self.is_running_system() {
            true => Ok(path.into()),
            false => self.real_path(path),
        }
    }

    /// Where it really is, on the running system as well.
    pub fn real_path(&self, path: &str) -> Result<PathBuf> {
        let found = self.follow(Path::new(path), Links::All);
        found.map(|found| found.path()).doing(|| {
            format!(
                "looking for {path} inside the root directory {}",
                self.root.display()
            )
        })
    }

    /// The directory of the appliance at an absolute path, for root to work in, and where it really is; `None` if there
    /// is none. No link is followed that others could have laid, nor can one be laid afterwards: it is open.
    pub fn directory(&self, path: &Path) -> Result<Option<(File, PathBuf)>> {
        let open = || {
            let found = self.follow(path, Links::Ours)?;
            match found.rest.is_empty() {
                true => Ok(Some((found.open()?, found.path()))),
                false => Ok(None),
            }
        };
        self.opening(path, open)
    }

    /// The same; the directories that are missing are made, for everybody to look into.
    pub fn make_directory(&self, path: &Path) -> Result<(File, PathBuf)> {
        let make = || {
            let mut found = self.follow(path, Links::Ours)?;
            for name in std::mem::take(&mut found.rest) {
                let mode = Mode::from_raw_mode(0o755);
                let above = found.open()?;
                rustix::fs::mkdirat(&above, &name, mode)?;
                durable::sync(&above)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&above, &name, flags, Mode::empty())?;
                found.entered.push((made.into(), name));
            }
            Ok((found.open()?, found.path()))
        };
        self.opening(path, make)
    }

    fn opening<T>(&self, path: &Path, open: impl FnOnce() -> io::Result<T>) -> Result<T> {
        open().doing(|| match self.is_running_system() {
            true => format!("opening the directory {}", path.display()),
            false => format!(
                "opening the directory {} inside the root directory {}",
                path.display(),
                self.root.display()
            ),
        })
    }

    /// Follows a path as far as there are directories.
    fn follow(&self, path: &Path, links: Links) -> io::Result<Found> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags | OFlags::DIRECTORY, Mode::empty())?;
        let mut found = Found {
            root: self.root.clone(),
            entered: vec![(root.into(), OsString::new())],
            rest: Vec::new(),
        };
        let mut followed = 0;
        // The next one is the last.
        let mut names = names_backwards(path);
        while let Some(name) = names.pop() {
            if name == ".." {
                // Above the root is the root.
                if found.rest.pop().is_none() && found.entered.len() > 1 {
                    found.entered.pop();
                }
                continue;
            }
            if !found.rest.is_empty() {
                found.rest.push(name);
                continue;
            }
            let here = found.here()?;
            let next = match rustix::fs::openat(here, &name, flags, Mode::empty()) {
                Ok(next) => File::from(next),
                Err(rustix::io::Errno::NOENT) => {
                    found.rest.push(name);
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let stat = rustix::fs::fstat(&next)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    followed += 1;
                    if followed > MAX_LINKS {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    if let (Links::Ours, Some(who)) =
                        (links, who_lays(&rustix::fs::fstat(here)?, &stat))
                    {
                        return Err(io::Error::other(format!(
                            "{} is a symbolic link that {who} could have made; replace it with a directory, or with a link \
                             owned by root in a directory that only root can write to",
                            found.path().join(&name).display()
                        )));
                    }
                    let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        found.entered.truncate(1);
                    }
                    names.extend(names_backwards(&target));
                }
                FileType::Directory => found.entered.push((next, name)),
                // Nothing can be below it, as whoever tries will find.
                _ => found.rest.push(name),
            }
        }
        Ok(found)
    }

    /// The system's clock.
    pub fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// The system's clock, and when this program was built: the time is not before that.
    pub fn clock(&self) -> Clock {
        let built: u32 = env!("QX_BUILT").parse().unwrap_or_default();
        Clock::new(self.now(), UNIX_EPOCH + Duration::from_secs(built.into()))
    }

    /// The system's clock as RFC 3339 in UTC, whole seconds.
    pub fn timestamp(&self) -> String {
        timestamp(self.now())
    }

    /// Identifies this boot.
    pub fn boot_id(&self) -> Result<BootId> {
        self.kernel_file("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().into())
    }

    /// Which boot this is, and how long it has lasted by the one clock that nobody sets, suspended time included. A boot
    /// that has no id is one without a name.
    pub fn moment(&self) -> Moment {
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Moment {
            boot_id: self.boot_id().unwrap_or_default(),
            uptime_s: uptime.tv_sec.cast_unsigned(),
        }
    }

    /// Whether the kernel's command line has this word.
    pub fn kernel_argument(&self, word: &str) -> bool {
        self.kernel_file("/proc/cmdline")
            .is_ok_and(|line| line.split_whitespace().any(|w| w == word))
    }

    /// In an initramfs the new root has no `/proc` yet: there is only one kernel, so its own will do.
    fn kernel_file(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path(path)?)
            .or_else(|_| fs::read_to_string(path))
            .doing(|| format!("reading {path}"))
    }

    /// The id of a new operation.
    pub fn random_id(&self) -> Result<OperationId> {
        let mut bytes = [0; 8];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .doing(|| "getting random bytes")?;
        if got != bytes.len() {
            return Err(Error::new("getting random bytes: too few"));
        }
        Ok(OperationId::new(u64::from_be_bytes(bytes)))
    }
}

/// Which links are followed.
#[derive(Clone, Copy)]
enum Links {
    /// All: they stay inside the root.
    All,
    /// Those that nobody else could have laid.
    Ours,
}

/// How far a path could be followed.
struct Found {
    root: PathBuf,
    /// The directories, from the root down, and their names.
    entered: Vec<(File, OsString)>,
    /// The names that are no directories, or are not there.
    rest: Vec<OsString>,
}

impl Found {
    fn path(&self) -> PathBuf {
        let below = self.entered.iter().skip(1).map(|(_, name)| name);
        let mut path = self.root.clone();
        path.extend(below.chain(&self.rest));
        path
    }

    fn here(&self) -> io::Result<&File> {
        let here = self.entered.last().map(|(directory, _)| directory);
        here.ok_or_else(|| rustix::io::Errno::NOENT.into())
    }

    /// The last of the directories, to be read.
    fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.here()?, ".", flags, Mode::empty())?.into())
    }
}

fn names_backwards(path: &Path) -> Vec<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    let names = path.components().rev().filter_map(name);
    names.map(ToOwned::to_owned).collect()
}

/// Who, besides root and us, could have put a link into a directory.
fn who_lays(directory: &Stat, link: &Stat) -> Option<String> {
    let me = rustix::process::geteuid().as_raw();
    let other = |uid: u32| uid != 0 && uid != me;
    let open = directory.st_mode & 0o022 != 0;
    // Where it is set, nobody can rename what is another's.
    let sticky = directory.st_mode & 0o1000 != 0;
    match (directory.st_uid, link.st_uid) {
        (uid, _) | (_, uid) if other(uid) => Some(format!("user {uid}")),
        _ if open && !sticky => Some("others".into()),
        _ => None,
    }
}

/// A time as RFC 3339 in UTC, whole seconds.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_the_root() {
        let root = std::env::temp_dir().join(format!("qx-host-{}", std::process::id()));
        fs::create_dir_all(root.join("mnt/data")).unwrap();
        let _ = fs::remove_file(root.join("data"));
        std::os::unix::fs::symlink("/mnt/data", root.join("data")).unwrap();
        let host = Host::new(&root).unwrap();
        let root = fs::canonicalize(&root).unwrap();
        assert_eq!(host.path("/data").unwrap(), root.join("mnt/data"));
        assert_eq!(host.path("/data/x/y").unwrap(), root.join("mnt/data/x/y"));
        assert_eq!(host.path("/../../etc/none").unwrap(), root.join("etc/none"));
        assert_eq!(
            Host::new(Path::new("/")).unwrap().path("/data").unwrap(),
            Path::new("/data")
        );
        fs::remove_dir_all(root).unwrap();
    }
    #[test]
    fn what_is_not_there_would_be_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let host = Host::new(&root).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        for (link, target) in [
            ("dangling", "/nowhere/else"),
            ("up", "../../../../usr/bin"),
            ("a/relative", "b/none"),
            ("twice", "dangling/more"),
            ("slash", "/"),
            ("loop", "/loop"),
            ("other", "/loop/x"),
        ] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        for (path, found) in [
            ("/dangling", "nowhere/else"),
            ("/dangling/x/../y", "nowhere/else/y"),
            ("/up", "usr/bin"),
            ("/a/relative/x", "a/b/none/x"),
            ("/twice", "nowhere/else/more"),
            ("/slash/slash/a/b/../../..", ""),
            ("/file/x", "file/x"),
            ("relative/path", "relative/path"),
        ] {
            assert_eq!(host.path(path).unwrap(), root.join(found), "{path}");
        }
        for path in ["/loop", "/loop/x", "/other"] {
            let error = host.path(path).unwrap_err().chain();
            assert!(
                error.contains(path) && error.contains(root.to_str().unwrap()),
                "{error}"
            );
        }
    }
}
