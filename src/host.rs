//! The machine: where paths are, what time it is, which boot this is. With a root other than `/` every path
//! resolves inside it, symbolic links included.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Context, Error, Exit, Result};
use crate::trust::clock::Clock;

/// The machine as seen below a root directory.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The machine below `root`.
    pub fn new(root: &Path) -> Result<Host> {
        let root = fs::canonicalize(root)
            .doing(|| format!("using the root directory {}", root.display()))
            .map_err(|e| e.exiting(Exit::Usage))?;
        Ok(Host { root })
    }

    /// Whether this is the running system itself, whose services and processes are ours to look at.
    pub fn is_running_system(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where an absolute path of the appliance is. Links are followed inside the root, as far as the path exists;
    /// the rest is appended as it is.
    pub fn path(&self, path: &str) -> PathBuf {
        let wanted = Path::new(path);
        if self.is_running_system() {
            return wanted.to_owned();
        }
        let mut existing = wanted;
        loop {
            if let Ok(found) = self.resolve(existing) {
                return match wanted.strip_prefix(existing) {
                    Ok(rest) if !rest.as_os_str().is_empty() => found.join(rest),
                    _ => found,
                };
            }
            match existing.parent() {
                Some(parent) => existing = parent,
                None => return self.root.clone(),
            }
        }
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let root = File::open(&self.root)?;
        let found = rustix::fs::openat2(
            &root,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?;
        fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
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
    pub fn boot_id(&self) -> Result<String> {
        self.kernel_file("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
    }

    /// Whether the kernel's command line has this word.
    pub fn kernel_argument(&self, word: &str) -> bool {
        self.kernel_file("/proc/cmdline")
            .is_ok_and(|line| line.split_whitespace().any(|w| w == word))
    }

    /// In an initramfs the new root has no `/proc` yet: there is only one kernel, so its own will do.
    fn kernel_file(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path(path))
            .or_else(|_| fs::read_to_string(path))
            .doing(|| format!("reading {path}"))
    }

    /// A random operation id, 16 hexadecimal digits.
    pub fn random_id(&self) -> Result<String> {
        let mut bytes = [0; 8];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .doing(|| "getting random bytes")?;
        if got != bytes.len() {
            return Err(Error::new("getting random bytes: too few"));
        }
        Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
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
        assert_eq!(host.path("/data"), root.join("mnt/data"));
        assert_eq!(host.path("/data/x/y"), root.join("mnt/data/x/y"));
        assert_eq!(
            host.path("/../../etc/none"),
            root.join("etc/none").components().collect::<PathBuf>()
        );
        assert_eq!(
            Host::new(Path::new("/")).unwrap().path("/data"),
            Path::new("/data")
        );
        fs::remove_dir_all(root).unwrap();
    }
}
