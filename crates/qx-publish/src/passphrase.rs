//! The passphrase of private keys: from a file, from the environment, or typed by a person.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use qx_release::error::{Context, Error, ErrorKind, Result};

/// The environment variable.
const VARIABLE: &str = "QX_PUBLISH_PASSPHRASE";
/// The longest passphrase, in bytes.
const MAX: usize = 1024;

/// Where passphrases come from, in this order: the first line of a file, the environment variable
/// `QX_PUBLISH_PASSPHRASE`, the terminal. One that has opened a key is tried with the next key before anything is asked.
pub struct Passphrase {
    file: Option<PathBuf>,
    last: RefCell<Option<Vec<u8>>>,
}

impl Passphrase {
    /// With a file to read it from, or without.
    pub fn new(file: Option<&Path>) -> Passphrase {
        Passphrase {
            file: file.map(Path::to_owned),
            last: RefCell::new(None),
        }
    }

    /// Opens a key with its passphrase. `open` says `None` for one that is wrong.
    pub fn open<T>(
        &self,
        key: &Path,
        open: impl Fn(&[u8]) -> Result<Option<T>, String>,
    ) -> Result<T> {
        let failed = |why: String| Error::new(format!("opening the key {}: {why}", key.display()));
        if let Some(last) = &*self.last.borrow()
            && let Some(opened) = open(last).map_err(failed)?
        {
            return Ok(opened);
        }
        let (passphrase, whence) = match self.given()? {
            Some(given) => given,
            None => {
                let typed = ask(&format!("passphrase of {}: ", key.display()))?;
                (typed, "that was typed".to_owned())
            }
        };
        let opened = open(&passphrase).map_err(failed)?;
        let opened = opened.ok_or_else(|| failed(format!("the passphrase {whence} is wrong")))?;
        self.last.replace(Some(passphrase));
        Ok(opened)
    }

    /// The passphrase for a new key; a person types it twice.
    pub fn choose(&self, key: &Path) -> Result<Vec<u8>> {
        if let Some(last) = &*self.last.borrow() {
            return Ok(last.clone());
        }
        let passphrase = match self.given()? {
            Some((given, _)) => given,
            None => {
                let typed = ask(&format!("new passphrase for {}: ", key.display()))?;
                if typed.is_empty() {
                    return Err(Error::new("an empty passphrase protects nothing"));
                }
                if ask("repeat the passphrase: ")? != typed {
                    return Err(Error::new("the two passphrases differ"));
                }
                typed
            }
        };
        self.last.replace(Some(passphrase.clone()));
        Ok(passphrase)
    }

    /// The passphrase from the file or the environment, and where it is from.
    fn given(&self) -> Result<Option<(Vec<u8>, String)>> {
        let (bytes, whence) = match (&self.file, std::env::var_os(VARIABLE)) {
            (Some(file), _) => {
                let bytes = fs::read(file)
                    .doing(|| format!("reading the passphrase file {}", file.display()))?;
                (bytes, format!("in {}", file.display()))
            }
            (None, Some(value)) => (OsString::into_vec(value), format!("in {VARIABLE}")),
            (None, None) => return Ok(None),
        };
        let line = bytes
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.len() > MAX {
            return Err(Error::with(
                ErrorKind::Usage,
                format!("the passphrase {whence} must have 1 to {MAX} bytes"),
            ));
        }
        Ok(Some((line.to_owned(), whence)))
    }
}

/// Asks at the terminal, without echo.
fn ask(prompt: &str) -> Result<Vec<u8>> {
    let terminal = "/dev/tty";
    let mut tty = File::options()
        .read(true)
        .write(true)
        .open(terminal)
        .doing(|| {
            format!(
                "a passphrase is needed (--passphrase-file, {VARIABLE}, or a terminal to ask at); opening {terminal}"
            )
        })?;
    let doing = || format!("asking for the passphrase at {terminal}");
    let quiet = Quiet::new(tty.try_clone().doing(doing)?)?;
    tty.write_all(prompt.as_bytes()).doing(doing)?;
    let typed = line(&mut tty);
    drop(quiet);
    let _ = tty.write_all(b"\n");
    typed
}

/// One line of a terminal that edits none, echoes nothing and sends no signals: an interruption must not leave it so.
fn line(tty: &mut File) -> Result<Vec<u8>> {
    let interrupted = || Error::new("asking for the passphrase: interrupted");
    let mut typed = Vec::new();
    loop {
        let mut byte = [0];
        if tty.read(&mut byte).doing(|| "reading the passphrase")? == 0 {
            return Err(interrupted());
        }
        match byte[0] {
            b'\r' | b'\n' => return Ok(typed),
            // Control-C, -D, -\ and -Z.
            0x03 | 0x04 | 0x1c | 0x1a => return Err(interrupted()),
            // Backspace takes a character, Control-U the line.
            0x08 | 0x7f => while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            0x15 => typed.clear(),
            _ if typed.len() == MAX => {
                return Err(Error::new(format!(
                    "the passphrase is longer than {MAX} bytes"
                )));
            }
            byte => typed.push(byte),
        }
    }
}

/// A terminal that shows nothing, until this is dropped.
struct Quiet {
    tty: File,
    before: Termios,
}

impl Quiet {
    fn new(tty: File) -> Result<Quiet> {
        let doing = || "switching the terminal's echo off";
        let before = rustix::termios::tcgetattr(&tty).doing(doing)?;
        let mut modes = before.clone();
        modes.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        modes.special_codes[SpecialCodeIndex::VMIN] = 1;
        modes.special_codes[SpecialCodeIndex::VTIME] = 0;
        rustix::termios::tcsetattr(&tty, OptionalActions::Flush, &modes).doing(doing)?;
        Ok(Quiet { tty, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // There is nobody left to tell if this fails.
        let _ = rustix::termios::tcsetattr(&self.tty, OptionalActions::Flush, &self.before);
    }
}
