//! Sources of bytes: a web server or a directory.
//!
//! Nothing that comes from a source is trusted; lengths are limited here, digests and signatures are
//! checked by whoever asked (and, for a download that is kept, here).

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::digest::{Digest, Hasher};
use crate::durable;
use crate::error::{Context, Error, Exit, Result};
use crate::manifest::RelPath;
use crate::trust::clock::Clock;

mod http;
#[cfg(feature = "https")]
mod tls;

use http::{Client, Response, Tls, Url};

/// The first pause before a broken transfer is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How patiently a source is asked.
#[derive(Debug, Clone)]
pub struct Options {
    /// PEM file with the certificate authorities for `https://`. Absent: the system's bundle.
    pub ca_file: Option<PathBuf>,
    /// What certificates are valid at.
    pub clock: Clock,
    /// Until a connection must stand.
    pub connect_timeout: Duration,
    /// Without a byte, after which a transfer is broken off. A transfer that goes on may take for ever.
    pub stall_timeout: Duration,
    /// How often in a row a broken transfer is tried again without getting any further.
    pub retries: u32,
}

/// Where a repository's files come from.
pub struct Source {
    place: Place,
    retries: u32,
}

enum Place {
    Directory(PathBuf),
    Web(Url, Client),
}

impl Source {
    /// Takes `http://…`, `https://…` or the path of a directory. Nothing is connected to yet.
    pub fn open(spec: &str, options: &Options) -> Result<Source> {
        let place = if spec.contains("://") {
            let url = Url::parse(spec).map_err(|why| Error::with(Exit::Usage, why))?;
            if url.has_query() {
                let why = format!("'{url}' has a query: no file can be named below it");
                return Err(Error::with(Exit::Usage, why));
            }
            if url.is_https() && !cfg!(feature = "https") {
                let why = format!("opening {url}: this build has no TLS, and cannot use https");
                return Err(Error::with(Exit::Usage, why));
            }
            let client = Client {
                connect_timeout: options.connect_timeout,
                stall_timeout: options.stall_timeout,
                deadline: None,
                follow: true,
                tls: Some(Tls {
                    ca_file: options.ca_file.clone(),
                    clock: options.clock,
                }),
            };
            Place::Web(url, client)
        } else {
            let directory = PathBuf::from(spec);
            let there = fs::metadata(&directory).doing(|| format!("opening the source {spec}"))?;
            if !there.is_dir() {
                let why = format!("opening the source {spec}: it is no directory");
                return Err(Error::new(why));
            }
            Place::Directory(directory)
        };
        Ok(Source {
            place,
            retries: options.retries,
        })
    }

    /// Whether [`Source::artifact`] copies what it gets to the downloads: a directory's files are read in place.
    pub fn copies_artifacts(&self) -> bool {
        matches!(self.place, Place::Web(..))
    }

    /// A whole file of at most `limit` bytes, or `None` if there is none of that name (404, or the 403 that
    /// object stores say instead to those who may not list).
    pub fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.find(path, limit)?.ok())
    }

    /// A whole file of at most `limit` bytes that must be there. The error tells a server's 404 from its 403.
    pub fn required(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        self.find(path, limit)?
    }

    /// The inner error says that there is no such file.
    fn find(&self, path: &str, limit: u64) -> Result<Result<Vec<u8>>> {
        match &self.place {
            Place::Directory(directory) => {
                let path = inside(directory, path)?;
                let Some((file, length)) = open_if_there(&path)? else {
                    return Ok(Err(missing(&path)));
                };
                if length > limit {
                    return Err(too_long(&path.display(), limit));
                }
                read_limited(file, limit)
                    .doing(|| format!("reading {}", path.display()))?
                    .ok_or_else(|| too_long(&path.display(), limit))
                    .map(Ok)
            }
            Place::Web(base, client) => {
                let url = base.join(path);
                let mut retries = Retries::new(self.retries);
                loop {
                    match small_over_http(client, &url, limit) {
                        Ok(found) => return Ok(found),
                        Err(fault) => retries.pause(fault)?,
                    }
                }
            }
        }
    }

    /// An artifact, opened at its start. From a directory it is the file itself, whose digest is not
    /// checked here. From the web it is downloaded to `downloads/SHA256`, resuming what an earlier try left
    /// in `downloads/SHA256.part`, and is on the medium, with the right digest, before it has that name.
    ///
    /// `progress` is told how many of the `length` bytes there are.
    ///
    /// # Errors
    /// [`Exit::Refused`] if it is not of that length and digest.
    pub fn artifact(
        &self,
        path: &str,
        length: u64,
        sha256: &Digest,
        downloads: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<File> {
        match &self.place {
            Place::Directory(directory) => {
                let path = inside(directory, path)?;
                let Some((file, found)) = open_if_there(&path)? else {
                    return Err(missing(&path));
                };
                if found != length {
                    return Err(wrong_length(&path.display(), found, length));
                }
                progress(length);
                Ok(file)
            }
            Place::Web(base, client) => {
                durable::create_dir(downloads, 0o700)?;
                let mut download = Download {
                    client,
                    url: base.join(path),
                    length,
                    sha256,
                    retries: self.retries,
                    progress,
                };
                download.run(&downloads.join(sha256.to_string()))
            }
        }
    }
}

/// One GET over plain HTTP for a health check: status and body, of at most `limit` bytes. No redirect is
/// followed, nothing is tried again, and `timeout` is for all of it.
pub fn get(url: &str, timeout: Duration, limit: u64) -> Result<(u16, Vec<u8>)> {
    let parsed = Url::parse(url).map_err(Error::new)?;
    if parsed.is_https() {
        return Err(Error::new(format!("asking {url}: it is no http:// URL")));
    }
    let client = Client {
        connect_timeout: timeout,
        stall_timeout: timeout,
        deadline: Some(Instant::now() + timeout),
        follow: false,
        tls: None,
    };
    let ask = || -> io::Result<_> {
        let response = client.get(&parsed, 0)?;
        Ok((response.status, read_limited(response.body, limit)?))
    };
    match ask().doing(|| format!("asking {url}"))? {
        (status, Some(body)) => Ok((status, body)),
        (_, None) => Err(too_long(&url, limit)),
    }
}

/// A failed try.
enum Fault {
    /// Another one may end better.
    Transient(Error),
    Permanent(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Permanent(error)
    }
}

impl Fault {
    fn of(url: &Url, error: io::Error) -> Fault {
        let last = error.kind() == io::ErrorKind::InvalidData;
        let Err(error) = Err::<Infallible, _>(error).doing(|| format!("fetching {url}"));
        if last {
            Fault::Permanent(error)
        } else {
            Fault::Transient(error)
        }
    }

    fn status(url: &Url, status: u16) -> Fault {
        match status {
            408 | 425 | 429 | 500.. => Fault::Transient(answered(url, status)),
            _ => Fault::Permanent(answered(url, status)),
        }
    }
}

struct Retries {
    most: u32,
    failed: u32,
}

impl Retries {
    fn new(most: u32) -> Retries {
        Retries { most, failed: 0 }
    }

    /// Returns when it is time for the next try, or with the error if there is none.
    fn pause(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Permanent(error) => Err(error),
            Fault::Transient(error) if self.failed >= self.most => Err(error),
            Fault::Transient(_) => {
                let pause = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(self.failed));
                std::thread::sleep(pause.min(LONGEST_PAUSE));
                self.failed += 1;
                Ok(())
            }
        }
    }
}

fn answered(url: &Url, status: u16) -> Error {
    let mut why = format!("fetching {url}: the server answered {status}");
    if matches!(status, 401 | 403) {
        why.push_str(" (no right to it, or no such file)");
    }
    Error::new(why)
}

/// The inner error says that there is no such file.
fn small_over_http(client: &Client, url: &Url, limit: u64) -> Result<Result<Vec<u8>>, Fault> {
    let response = client.get(url, 0).map_err(|e| Fault::of(url, e))?;
    match response.status {
        200 => {}
        status @ (403 | 404) => return Ok(Err(answered(url, status))),
        status => return Err(Fault::status(url, status)),
    }
    if response.length.is_some_and(|length| length > limit) {
        return Err(too_long(url, limit).into());
    }
    match read_limited(response.body, limit).map_err(|e| Fault::of(url, e))? {
        Some(bytes) => Ok(Ok(bytes)),
        None => Err(too_long(url, limit).into()),
    }
}

struct Download<'a> {
    client: &'a Client,
    url: Url,
    length: u64,
    sha256: &'a Digest,
    retries: u32,
    progress: &'a mut dyn FnMut(u64),
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
    fn run(&mut self, complete: &Path) -> Result<File> {
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
                    Exit::Refused,
                    format!(
                        "fetching {}: what came was tampered with: its digest is {} instead of {}",
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
        let mut retries = Retries::new(self.retries);
        // Only what goes beyond all that was there before counts as progress: a server that makes us start
        // again and again does not keep us for ever.
        let mut furthest = part.bytes();
        (self.progress)(part.bytes());
        while part.bytes() < self.length {
            let fault = match self.transfer(part) {
                Ok(()) => continue,
                Err(fault) => fault,
            };
            if part.bytes() > furthest {
                furthest = part.bytes();
                retries = Retries::new(self.retries);
            }
            retries.pause(fault)?;
        }
        Ok(())
    }

    /// One request.
    fn transfer(&mut self, part: &mut Part) -> Result<(), Fault> {
        let have = part.bytes();
        let fault = |error| Fault::of(&self.url, error);
        let mut response = self.client.get(&self.url, have).map_err(fault)?;
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
                    "fetching {}: the server has nothing from byte {have} on",
                    self.url
                ))));
            }
            status => return Err(Fault::status(&self.url, status)),
        }
        let mut buffer = vec![0; 128 * 1024];
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
                return Err(Error::with(Exit::Refused, why).into());
            }
            part.append(&buffer[..n])?;
            (self.progress)(part.bytes());
        }
        if part.bytes() < self.length {
            let left = self.length - part.bytes();
            let why = format!("the server ended it {left} bytes too early");
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
                Exit::Refused,
                format!(
                    "fetching {}: the server answered with the range '{}' where bytes {have} to the end \
                     of {} were asked for",
                    self.url,
                    given.escape_debug(),
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

/// `None` if there is more than `limit`.
fn read_limited(reader: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

fn inside(directory: &Path, path: &str) -> Result<PathBuf> {
    let path: RelPath = path.parse().map_err(|why: String| {
        Error::new(format!("looking into {}: {why}", directory.display()))
    })?;
    Ok(directory.join(path))
}

/// A regular file and its length.
fn open_if_there(path: &Path) -> Result<Option<(File, u64)>> {
    // Opening a pipe must not wait for its other end. Links are followed: a repository on a disk may be
    // laid out with them, and what they lead to is checked like all the rest.
    let file = match options(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).doing(|| format!("opening {}", path.display())),
    };
    let metadata = file
        .metadata()
        .doing(|| format!("opening {}", path.display()))?;
    if !metadata.is_file() {
        let why = format!("opening {}: it is no regular file", path.display());
        return Err(Error::new(why));
    }
    Ok(Some((file, metadata.len())))
}

fn options(follow: bool) -> fs::OpenOptions {
    let flags = match follow {
        true => OFlags::NONBLOCK,
        false => OFlags::NONBLOCK | OFlags::NOFOLLOW,
    };
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(flags.bits() as i32);
    options
}

fn missing(path: &Path) -> Error {
    Error::new(format!("opening {}: there is no such file", path.display()))
}

fn too_long(what: &dyn std::fmt::Display, limit: u64) -> Error {
    let why = format!("fetching {what}: it is longer than {limit} bytes");
    Error::with(Exit::Refused, why)
}

fn wrong_length(what: &dyn std::fmt::Display, found: u64, length: u64) -> Error {
    let why = format!("fetching {what}: it is {found} bytes long instead of {length}");
    Error::with(Exit::Refused, why)
}
