//! Signers outside of this process: a key in a KMS, an HSM or a smart card, asked through a command.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::pem;
use qx_release::error::{Context, Error, Result};
use qx_release::json;
use qx_release::manifest::MAX_SECONDS;
use qx_release::trust::signing::Scheme;

/// The only format of the file.
const FORMAT: u32 = 1;
/// The longest answer, in bytes: no signature is half as long.
const MAX_ANSWER: u64 = 1024;
/// How long a person may look for the card and its PIN.
const TIMEOUT_S: u64 = 120;
const PAUSE: Duration = Duration::from_millis(10);

/// A command that signs.
pub(crate) struct External {
    file: PathBuf,
    command: Vec<String>,
    timeout_s: u64,
}

/// `NAME.signer.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: u32,
    scheme: String,
    public_key: String,
    command: Vec<String>,
    timeout_s: Option<u64>,
}

impl External {
    /// Reads the description of a signer; its public key too, as a TUF key object.
    pub(crate) fn read(file: &Path) -> Result<(External, Value)> {
        let doing = || format!("reading the signer {}", file.display());
        let wrong = |why: String| Error::new(format!("{}: {why}", doing()));
        let raw: Raw = serde_json::from_slice(&fs::read(file).doing(doing)?).doing(doing)?;
        if raw.format != FORMAT {
            return Err(wrong(format!(
                "format {} is not known (this version reads {FORMAT})",
                raw.format
            )));
        }
        let scheme: Scheme = raw
            .scheme
            .parse()
            .map_err(|e| wrong(format!("scheme: {e}")))?;
        if raw.command.first().is_none_or(String::is_empty) {
            return Err(wrong("command: it is empty".into()));
        }
        let timeout_s = raw.timeout_s.unwrap_or(TIMEOUT_S);
        json::in_range("timeout_s", timeout_s, 1..=MAX_SECONDS).map_err(wrong)?;
        let text = if raw.public_key.trim_start().starts_with("-----BEGIN") {
            raw.public_key
        } else {
            let path = file.with_file_name(raw.public_key);
            fs::read_to_string(&path)
                .doing(|| format!("{}: public_key: reading {}", doing(), path.display()))?
        };
        let public = pem::public(&text).map_err(|e| wrong(format!("public_key: {e}")))?;
        if public["scheme"] != scheme.as_str() {
            return Err(wrong(format!(
                "scheme: {scheme} does not match the public key, whose scheme is {}",
                public["scheme"]
            )));
        }
        let external = External {
            file: file.to_owned(),
            command: raw.command,
            timeout_s,
        };
        Ok((external, public))
    }

    /// Has the command sign a message: its answer, not checked. It runs in the directory of its description, with this
    /// process's environment, terminal and standard error: it may ask a person for a PIN.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let doing = || format!("asking the signer {}", self.file.display());
        let failed = |why: String| Error::new(format!("{}: {why}", doing()));
        let mut child = self.start().doing(doing)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("it has no input or output".into()));
        };
        let fed = feed(stdin, message.to_owned());
        let answers = fed.and_then(|()| answer(stdout)).doing(doing)?;
        let deadline = Instant::now() + Duration::from_secs(self.timeout_s);
        let mut answer = None;
        let why = loop {
            if answer.is_some() {
                thread::sleep(PAUSE);
            } else {
                match answers.recv_timeout(PAUSE) {
                    Ok(Ok(bytes)) if bytes.len() as u64 > MAX_ANSWER => {
                        break format!("it answered with more than {MAX_ANSWER} bytes");
                    }
                    Ok(bytes) => answer = Some(bytes.doing(doing)?),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        break "reading its answer failed".into();
                    }
                }
            }
            match (child.try_wait().doing(doing)?, &mut answer) {
                (Some(status), _) if !status.success() => {
                    break format!("it ended with {status}");
                }
                (Some(_), Some(bytes)) => return Ok(std::mem::take(bytes)),
                _ => {}
            }
            if Instant::now() >= deadline {
                break format!("it did not answer within {} s", self.timeout_s);
            }
        };
        // Ended already is fine.
        let _ = child.kill();
        let _ = child.wait();
        Err(failed(why))
    }

    fn start(&self) -> std::io::Result<Child> {
        let directory = match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // A program beside the description is meant by a path, and looked for in PATH by a mere name.
        let program = &self.command[0];
        let program = match program.contains('/') {
            true => std::path::absolute(directory.join(program))?,
            false => program.into(),
        };
        Command::new(program)
            .args(&self.command[1..])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    }
}

/// Writes the message to the command, which need not read it.
fn feed(mut stdin: ChildStdin, message: Vec<u8>) -> std::io::Result<()> {
    let write = move || drop(stdin.write_all(&message));
    thread::Builder::new().spawn(write).map(drop)
}

/// Reads the answer until it is complete or too long, in a thread of its own: it may never be either.
fn answer(stdout: ChildStdout) -> std::io::Result<mpsc::Receiver<std::io::Result<Vec<u8>>>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.take(MAX_ANSWER + 1).read_to_end(&mut bytes);
        sender.send(read.map(|_| bytes))
    })?;
    Ok(receiver)
}
