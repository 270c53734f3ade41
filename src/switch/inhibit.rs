//! Applications that must not be interrupted: they hold a lock, or a command of the appliance says so. Asked before services
//! are stopped for a switch that somebody wants; the way back from a release that fails does not wait for anybody.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::model::config::Inhibit;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::process::Program;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::text;

/// How often it is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the command may take.
const ANSWER: Duration = Duration::from_secs(60);

/// Who may inhibit a switch, and what is done then.
#[derive(Clone, Copy)]
pub struct Inhibitors<'a> {
    /// What the appliance's configuration says.
    pub by: &'a Inhibit,
    /// Whether it is waited until nobody does any more.
    pub wait: bool,
}

/// That services may be stopped. As long as it lives nobody else gets the lock.
pub struct Permission {
    _lock: Option<File>,
}

impl Inhibitors<'_> {
    /// Asks everybody. [`ErrorKind::Busy`] if somebody must not be interrupted; but with `wait` that is told once, and waited
    /// for as long as whoever asked for the switch is there.
    pub fn permission(&self, doing: &str, host: &Host, log: &mut Log) -> Result<Permission> {
        let asker = rustix::process::getppid();
        let mut told = String::new();
        loop {
            let inhibited = match self.ask(host)? {
                Ok(permission) => return Ok(permission),
                Err(why) => why,
            };
            if !self.wait || rustix::process::getppid() != asker {
                let what = format!(
                    "{doing}: {inhibited} (`--wait` waits for that, `--force` does not ask)"
                );
                return Err(Error::with(ErrorKind::Busy, what));
            }
            if told != inhibited {
                log.info("inhibit", format!("{doing} waits: {inhibited}"));
                told = inhibited;
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// The permission, or who must not be interrupted.
    fn ask(&self, host: &Host) -> Result<Result<Permission, String>> {
        let lock = match &self.by.lock {
            Some(path) => match lock(host, path)? {
                Ok(lock) => lock,
                Err(who) => return Ok(Err(who)),
            },
            None => None,
        };
        let vector = &self.by.command;
        if !vector.is_empty() {
            let asking = || format!("asking inhibit.command ({})", text::command(vector));
            let ended = Program::new(vector, ANSWER)
                .run(&mut |_, _| ())
                .doing(asking)?;
            if !ended.ok() {
                return Ok(Err(format!(
                    "{} {}",
                    text::command(vector),
                    ended.describe()
                )));
            }
        }
        Ok(Ok(Permission { _lock: lock }))
    }
}

/// Who holds the lock, if anybody can be seen to. It is not tried: whoever wants it at this moment would be refused.
pub fn holder(by: &Inhibit, host: &Host) -> Option<String> {
    let file = host.path(by.lock.as_ref()?).ok()?;
    let opened = open(&file).ok()?;
    let pid = host.proc().lock_holder(&opened)?;
    Some(held(host, Some(pid), &file))
}

/// A pipe's other end is not waited for.
fn open(file: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(file)
}

fn held(host: &Host, pid: Option<u32>, file: &Path) -> String {
    let who = match pid {
        Some(pid) => format!("process {pid} ({})", host.proc().executable_name(pid)),
        None => "another process".to_owned(),
    };
    format!("{who} holds the lock {}", file.display())
}

/// Takes the lock; nothing if there is no such file, so that nobody holds it. Else who holds it.
fn lock(host: &Host, path: &str) -> Result<Result<Option<File>, String>> {
    let file = host.path(path)?;
    let locking = || format!("locking inhibit.lock {}", file.display());
    let opened = match open(&file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        opened => opened.doing(locking)?,
    };
    match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Ok(Some(opened))),
        Err(Errno::WOULDBLOCK) => {
            let holder = host.proc().lock_holder(&opened);
            Ok(Err(held(host, holder, &file)))
        }
        Err(e) => Err(e).doing(locking),
    }
}
