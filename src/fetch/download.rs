//! A file of known length and digest, downloaded however often the connection breaks.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::client::{Client, Response};
use super::url::Url;
use super::{Fault, Patience, Retries, options, wrong_length};
use qx_release::digest::{Digest, Hasher};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::text;

/// What is downloaded, and how.
pub(super) struct Download<'a> {
    /// The client.
    pub client: &'a Client,
    /// Where it is.
    pub url: Url,
    /// Bytes.
    pub length: u64,
    /// Their digest.
    pub sha256: &'a Digest,
    /// The time limits.
    pub patience: &'a Patience,
    /// How often it is tried.
    pub retries: Retries<'a>,
    /// Is called with the number of bytes so far.
    pub progress: &'a mut dyn FnMut(u64),
}

/// A download's beginning: the file, and the digest of what is in it.
struct Part {
    path: PathBuf,
    file: File,
    hasher: Hasher,
}

impl Part {
    fn open(path: PathBuf) -> Result<Part> {
        let file = options(false)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .doing(|| format!("opening {}", path.display()))?;
        let mut hasher = Hasher::default();
        hash(&file, &mut hasher).doing(|| format!("reading {}", path.display()))?;
        Ok(Part { path, file, hasher })
    }

    fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    fn restart(&mut self) -> Result<()> {
        self.hasher = Hasher::default();
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .doing(|| format!("emptying {}", self.path.display()))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .doing(|| format!("writing {}", self.path.display()))?;
        self.hasher.update(bytes);
        Ok(())
    }
}

impl Download<'_> {
    /// Downloads it to the file `complete`, by way of a `.part` beside it.
    pub(super) fn run(&mut self, complete: &Path) -> Result<File> {
        if let Some(file) = self.already_there(complete)? {
            (self.progress)(self.length);
            return Ok(file);
        }
        let mut part = Part::open(complete.with_extension("part"))?;
        if part.bytes() > self.length {
            part.restart()?;
        }
        let mut inherited = part.bytes() > 0;
        loop {
            self.fill(&mut part)?;
            if part.hasher.digest() == *self.sha256 {
                break;
            }
            if !inherited {
                durable::remove(&part.path)?;
                return Err(Error::with(
                    ErrorKind::Untrusted,
                    format!(
                        "fetching {}: the download was tampered with: its digest is {} instead of {}",
                        self.url,
                        part.hasher.digest(),
                        self.sha256
                    ),
                ));
            }
            // What an earlier process left may have been damaged by a power cut: that is not the server's
            // fault, nor anybody's attack.
            part.restart()?;
            inherited = false;
        }
        durable::sync_file(&part.file, &part.path)?;
        durable::rename(&part.path, complete)?;
        part.file
            .rewind()
            .doing(|| format!("reading {}", complete.display()))?;
        Ok(part.file)
    }

    fn already_there(&self, complete: &Path) -> Result<Option<File>> {
        let mut file = match options(false).open(complete) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).doing(|| format!("opening {}", complete.display())),
        };
        let mut hasher = Hasher::default();
        hash(&file, &mut hasher)
            .and_then(|()| file.rewind())
            .doing(|| format!("reading {}", complete.display()))?;
        if hasher.bytes() == self.length && hasher.digest() == *self.sha256 {
            return Ok(Some(file));
        }
        durable::remove(complete)?;
        Ok(None)
    }

    /// Fetches until the part is as long as it must be.
    fn fill(&mut self, part: &mut Part) -> Result<()> {
        // Only what goes beyond all that was there before counts as progress, and only if it came fast enough: a server that
        // makes us start again and again, or says a few bytes each time, does not keep us for ever.
        let mut furthest = part.bytes();
        let mut since = Instant::now();
        (self.progress)(part.bytes());
        while part.bytes() < self.length {
            let fault = match self.transfer(part) {
                Ok(()) => continue,
                Err(fault) => fault,
            };
            let gained = part.bytes().saturating_sub(furthest);
            if gained > 0 && !self.is_too_slow(gained, since.elapsed()) {
                furthest = part.bytes();
                since = Instant::now();
                self.retries.begin_anew();
            }
            self.retries.pause(fault)?;
        }
        Ok(())
    }

    fn is_too_slow(&self, bytes: u64, time: Duration) -> bool {
        u128::from(bytes) * 1000 < u128::from(self.patience.slowest) * time.as_millis()
    }

    /// One request.
    fn transfer(&mut self, part: &mut Part) -> Result<(), Fault> {
        let have = part.bytes();
        let fault = |error| Fault::of(&self.url, error);
        let mut response = self.client.get(&self.url, have, None).map_err(fault)?;
        match response.status {
            200 => {
                part.restart()?;
                if let Some(length) = response.length.filter(|length| *length != self.length) {
                    return Err(wrong_length(&self.url, length, self.length).into());
                }
            }
            206 => self.check_range(&response, have)?,
            // The file that the part is of was longer.
            416 if have > 0 => {
                part.restart()?;
                return Err(Fault::Transient(Error::new(format!(
                    "fetching {}: the server has no data from byte {have} on",
                    self.url
                ))));
            }
            status => return Err(Fault::status(&self.url, status)),
        }
        let mut buffer = vec![0; 128 * 1024];
        let mut window = (Instant::now(), part.bytes());
        loop {
            let n = match response.body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(fault(e)),
            };
            if n as u64 > self.length - part.bytes() {
                // Its digest would be right if only more was appended, but such a server is not to be asked
                // again.
                let why = format!(
                    "fetching {}: it is longer than {} bytes",
                    self.url, self.length
                );
                return Err(Error::with(ErrorKind::Untrusted, why).into());
            }
            part.append(&buffer[..n])?;
            (self.progress)(part.bytes());
            let (since, before) = window;
            if since.elapsed() >= self.patience.stall_timeout {
                if self.is_too_slow(part.bytes() - before, since.elapsed()) {
                    let slowest = self.patience.slowest;
                    let why = format!("it was slower than {slowest} bytes per second");
                    return Err(fault(io::Error::new(io::ErrorKind::TimedOut, why)));
                }
                window = (Instant::now(), part.bytes());
            }
        }
        if part.bytes() < self.length {
            let left = self.length - part.bytes();
            let why = format!("the server closed the connection {left} bytes early");
            return Err(fault(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
        }
        Ok(())
    }

    fn check_range(&self, response: &Response, have: u64) -> Result<(), Fault> {
        let given = response.range.as_deref().unwrap_or("");
        let parsed = || {
            let (range, total) = given.strip_prefix("bytes ")?.split_once('/')?;
            let (first, last) = range.split_once('-')?;
            let total = match total {
                "*" => self.length,
                total => total.parse().ok()?,
            };
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total))
        };
        match parsed() {
            Some((first, last, total))
                if have > 0 && first == have && last < self.length && total == self.length =>
            {
                Ok(())
            }
            _ => Err(Error::with(
                ErrorKind::Untrusted,
                format!(
                    "fetching {}: the server returned the range '{}' instead of bytes {have} to the end of {}",
                    self.url,
                    text::name(given),
                    self.length
                ),
            )
            .into()),
        }
    }
}

fn hash(file: &File, hasher: &mut Hasher) -> io::Result<()> {
    io::copy(&mut BufReader::with_capacity(128 * 1024, file), hasher).map(drop)
}
