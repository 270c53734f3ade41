//! The watchdog that resets a machine whose trial does not come to its end: armed at boot by `initramfs/qx-recover`, kicked by
//! `confirm` alone. <https://docs.kernel.org/watchdog/watchdog-api.html>

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use qx_release::error::{Context, Result};
use qx_release::text;

/// How often it is kicked. No device's time is shorter than some seconds.
const KICK: Duration = Duration::from_secs(3);
/// The "magic close": without it, closing the device leaves it armed.
const DISARM: &[u8] = b"V";

/// A watchdog that is kicked while this lives, and disarmed in the end.
#[derive(Debug)]
pub struct Watchdog {
    /// Dropped to end it.
    end: Option<Sender<()>>,
    kicks: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Takes it over, armed or not.
    ///
    /// # Errors
    /// It is not there, or somebody else has it.
    pub fn kick(device: &Path) -> Result<Watchdog> {
        let doing = || format!("kicking the watchdog {}", text::path(device));
        let mut file = OpenOptions::new().write(true).open(device).doing(doing)?;
        file.write_all(&[0]).doing(doing)?;
        let (end, ended) = mpsc::channel::<()>();
        let kicks = std::thread::Builder::new().spawn(move || {
            while ended.recv_timeout(KICK) == Err(RecvTimeoutError::Timeout) {
                kick(&mut file, &[0]);
            }
            kick(&mut file, DISARM);
        });
        Ok(Watchdog {
            end: Some(end),
            kicks: Some(kicks.doing(doing)?),
        })
    }
}

/// One that is missed is made up for by the next.
fn kick(file: &mut File, with: &[u8]) {
    let _ = file.write_all(with);
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.end = None;
        let _ = self.kicks.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kicked at once, and disarmed in the end.
    #[test]
    fn it_is_disarmed_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        File::create(&device).unwrap();
        let watchdog = Watchdog::kick(&device).unwrap();
        drop(watchdog);
        assert_eq!(std::fs::read(&device).unwrap(), b"\0V");
        assert!(Watchdog::kick(&dir.path().join("none")).is_err());
    }
}
