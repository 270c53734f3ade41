//! One at a time: the lock of an operation, and who holds it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::Store;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::json;

/// How long a lock is waited for whose holder is ending, or not known: the kernel takes a killed process apart in its own
/// time, and whoever took the lock just now has not written its name yet.
const SETTLED: Duration = Duration::from_secs(10);

/// How often it is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Held while an operation runs; the kernel drops it with the process.
pub struct Lock {
    file: File,
}

impl Lock {
    /// The lock for a process that works for this one: it is held until both are gone.
    pub fn share(&self) -> Result<OwnedFd> {
        let shared = self.file.try_clone().doing(|| "sharing the lock")?;
        Ok(shared.into())
    }
}

/// Who holds the lock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// What it does.
    pub command: String,
    /// Since when (RFC 3339).
    pub since: String,
}

impl Holder {
    /// In words; `works`: it is not ending.
    fn describe(&self, works: bool) -> String {
        let ending = match works {
            true => "",
            false => ", which has ended or is ending,",
        };
        format!(
            "process {} ({}, since {}){ending}",
            self.pid, self.command, self.since
        )
    }
}

impl Store {
    /// Takes the lock for this process. [`ErrorKind::Busy`] if another works; but with `wait` it is told who that is, and
    /// then waited for as long as it works and whoever asked for this is there.
    pub fn lock(&self, command: &str, wait: Option<&mut dyn FnMut(String)>) -> Result<Lock> {
        let path = self.path("update/lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .doing(|| format!("opening the lock {}", path.display()))?;
        let settled = Instant::now() + SETTLED;
        let asker = rustix::process::getppid();
        let mut wait = wait;
        let mut announced = false;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(e) => return Err(e).doing(|| format!("locking {}", path.display())),
            }
            // `status` takes a shared lock for an instant, to see whether anybody works; that is nobody at work.
            let holder = self.holder();
            let works = holder
                .as_ref()
                .is_some_and(|h| !self.host.proc().ending(h.pid));
            if works || Instant::now() >= settled {
                let who =
                    holder.map_or_else(|| "another process".to_owned(), |h| h.describe(works));
                let Some(tell) = &mut wait else {
                    let what = format!(
                        "starting {command}: {who} holds the lock {}",
                        path.display()
                    );
                    return Err(Error::with(ErrorKind::Busy, what));
                };
                if !std::mem::replace(&mut announced, true) {
                    tell(format!("{command} waits for {who} to release the lock"));
                }
                if rustix::process::getppid() != asker {
                    let what = format!("starting {command}: the calling process has ended");
                    return Err(Error::with(ErrorKind::Busy, what));
                }
            }
            std::thread::sleep(AGAIN);
        }
        let holder = Holder {
            pid: std::process::id(),
            command: command.to_owned(),
            since: self.host.timestamp(),
        };
        // For messages only; what counts is the kernel's lock.
        let mut note = || -> io::Result<()> {
            file.rewind()?;
            file.set_len(0)?;
            file.write_all(&serde_json::to_vec(&holder)?)
        };
        let _ = note();
        Ok(Lock { file })
    }

    /// Who holds the lock, if a live process does.
    pub fn holder(&self) -> Option<Holder> {
        let path = self.path("update/lock");
        let mut file = File::open(path).ok()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            _ => return None,
        }
        let mut text = String::new();
        // It may not have written its name yet.
        for _ in 0..20 {
            text.clear();
            file.rewind().ok()?;
            file.read_to_string(&mut text).ok()?;
            if let Ok(holder) = json::parse_str(&text) {
                return Some(holder);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}
