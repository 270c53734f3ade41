//! A place to try things in, and how programs are run there. Both sides of an update try init scripts in it ([`init_script`]); who
//! makes a release also migrations.

#![warn(unreachable_pub)]

pub mod init_script;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use qx_release::error::{Context, Error, Result};
use qx_release::text;

const PAUSE: Duration = Duration::from_millis(10);

/// A directory that is gone in the end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one.
    pub fn new() -> Result<Scratch> {
        // The name must be nobody else's, and need not be a secret: a directory that is there is not taken.
        let mut number = 0_u32;
        loop {
            let name = format!("qx-scratch-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match rustix::fs::mkdir(&path, rustix::fs::Mode::RWXU) {
                Err(rustix::io::Errno::EXIST) => number += 1,
                made => {
                    made.doing(|| format!("creating {}", path.display()))?;
                    return Ok(Scratch(path));
                }
            }
        }
    }

    /// The path of a name in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a directory in it, and those above.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name.trim_start_matches('/'));
        fs::create_dir_all(&path).doing(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    /// Runs a program in a process group of its own, in a clean environment but for what the command has, with nothing to read.
    ///
    /// # Errors
    /// It exits other than 0, or not in time; with the last line that it wrote.
    pub fn run(&self, command: &mut Command, timeout: Duration) -> Result<()> {
        let log = self.path("output");
        let doing = || format!("writing {}", log.display());
        let out = File::create(&log).doing(doing)?;
        let err = out.try_clone().doing(doing)?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        command.process_group(0);
        let program = Path::new(command.get_program()).to_owned();
        let running = || format!("running {}", program.display());
        let mut child = command.spawn().doing(running)?;
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = child.try_wait().doing(running)? {
                break Some(status);
            }
            if Instant::now() >= deadline {
                break None;
            }
            std::thread::sleep(PAUSE);
        };
        // What it has left behind, too. Ended already is fine.
        if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let how = match status {
            Some(status) if status.success() => return Ok(()),
            Some(status) => format!("it ended with {status}"),
            None => {
                let _ = child.wait();
                format!("it did not end within {} s", timeout.as_secs())
            }
        };
        let output = fs::read(&log).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let last = output.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.map_or(String::new(), |line| format!(": {}", text::line(line)));
        Err(Error::new(format!("{}: {how}{last}", running())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody can do anything about it here.
        let _ = fs::remove_dir_all(&self.0);
    }
}
