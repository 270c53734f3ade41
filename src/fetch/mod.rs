//! Sources of bytes: a web server, a directory, a bundle; and a list of them, [`Mirrors`].
//!
//! Nothing that comes from a source is trusted; lengths are limited here, digests and signatures are
//! checked by whoever asked (and, for a download that is kept, here).

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::model::config::Limits;
use crate::model::source::SourceAddress;
use qx_release::digest::{Digest, Hasher};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::RelPath;
use qx_release::trust::clock::Clock;

mod answer;
pub mod bundle;
mod client;
mod download;
mod fetcher;
mod headers;
mod mirrors;
pub mod port;
pub mod protocol;
mod proxy;
mod socket;
#[cfg(feature = "https")]
mod tls;

use bundle::Bundle;
use client::{Client, Tls};
use download::{Download, Form};
pub use fetcher::ARGUMENT as FETCHER;
pub use headers::Headers;
pub use mirrors::{Fetched, Mirrors};
use port::Target;
pub use proxy::Proxies;
use qx_release::url::Url;
use socket::Pace;
pub use socket::own_address;

/// The first pause before a broken transfer is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What compressed data begins with (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// How a source is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// PEM file with the certificate authorities for `https://`. Absent: the system's bundle.
    pub ca_file: Option<PathBuf>,
    /// The time at which certificates must be valid.
    pub clock: Clock,
    /// Which requests go through a proxy.
    pub proxies: Proxies,
    /// Extra headers for the source's own server.
    pub headers: Headers,
    /// The time limits.
    pub patience: Patience,
}

impl Options {
    /// Directly, without anything extra, with the system's certificate authorities and the configuration's defaults.
    pub fn new(clock: Clock) -> Options {
        Options {
            ca_file: None,
            clock,
            proxies: Proxies::default(),
            headers: Headers::default(),
            patience: Patience::from(&Limits::default()),
        }
    }
}

/// How patiently a web server is asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Patience {
    /// Time limit for connecting.
    pub connect_timeout: Duration,
    /// A transfer is aborted after this long without a byte.
    pub stall_timeout: Duration,
    /// Time limit for a whole small file, all tries included.
    pub small_timeout: Duration,
    /// The lowest rate of a transfer in bytes per second, over each `stall_timeout` that was spent waiting. There is no total
    /// limit for an artifact.
    pub slowest: u64,
    /// The highest rate of a transfer in bytes per second.
    pub fastest: Option<u64>,
    /// How often in a row a broken transfer is tried again without getting any further.
    pub retries: u32,
}

impl From<&Limits> for Patience {
    fn from(limits: &Limits) -> Patience {
        Patience {
            connect_timeout: Duration::from_secs(limits.connect_timeout_s),
            stall_timeout: Duration::from_secs(limits.stall_timeout_s),
            small_timeout: Duration::from_secs(limits.metadata_timeout_s),
            slowest: limits.min_bytes_per_s,
            fastest: limits.max_bytes_per_s,
            retries: limits.retries,
        }
    }
}

/// Where a repository's files come from.
pub struct Source {
    origin: Origin,
    patience: Patience,
    /// It did not answer after all tries; from then on each file is tried once.
    given_up: Cell<bool>,
}

enum Origin {
    Directory(PathBuf),
    Bundle(Bundle),
    Web(Url, Box<Client>),
}

/// The bytes of an artifact, wherever they lie.
pub struct Artifact {
    file: File,
    at: u64,
    left: u64,
}

impl Artifact {
    fn new(file: File, at: u64, length: u64) -> Artifact {
        Artifact {
            file,
            at,
            left: length,
        }
    }
}

impl Read for Artifact {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut into[..most], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

impl Origin {
    fn web(url: &str, options: &Options) -> Result<Origin> {
        let usage = |why| Error::with(ErrorKind::Usage, why);
        let url = Url::parse(url).map_err(usage)?;
        if url.has_query() {
            let why = format!("'{url}' has a query, so no path can be appended to it");
            return Err(Error::with(ErrorKind::Usage, why));
        }
        if url.is_https() && !cfg!(feature = "https") {
            let why = format!("opening {url}: this build has no TLS support and cannot use https");
            return Err(Error::with(ErrorKind::Usage, why));
        }
        options.proxies.of(&url).map_err(usage)?;
        let client = Client {
            connect_timeout: options.patience.connect_timeout,
            pace: Pace::new(
                options.patience.stall_timeout,
                options.patience.slowest,
                options.patience.fastest,
            ),
            once: false,
            tls: Some(Tls {
                ca_file: options.ca_file.clone(),
                clock: options.clock,
            }),
            proxies: options.proxies.clone(),
            headers: Some((url.clone(), options.headers.clone())),
            idle: None.into(),
        };
        Ok(Origin::Web(url, Box::new(client)))
    }

    fn at(path: PathBuf) -> Result<Origin> {
        let name = path.file_name().and_then(|name| name.to_str());
        let hint = match name.and_then(|name| name.rsplit_once(':')) {
            Some((_, port)) if port.parse::<u16>().is_ok() => {
                " (the address of a server begins with http:// or https://)"
            }
            _ => "",
        };
        let doing = || format!("opening the source {}{hint}", path.display());
        let there = fs::metadata(&path).doing(doing)?;
        if there.is_dir() {
            Ok(Origin::Directory(path))
        } else if there.is_file() {
            let file = File::open(&path).doing(doing)?;
            Ok(Origin::Bundle(Bundle::open(&path, file, there.len())?))
        } else {
            let why = format!("{}: it is neither a directory nor a bundle", doing());
            Err(Error::new(why))
        }
    }
}

impl Source {
    /// Takes `http://…`, `https://…`, the path of a directory, or that of a bundle. Nothing is connected to yet.
    pub fn open(address: impl Into<SourceAddress>, options: &Options) -> Result<Source> {
        let origin = match address.into() {
            SourceAddress::Url(url) => Origin::web(&url, options)?,
            SourceAddress::Path(path) => Origin::at(path.into())?,
            // Mounted by whoever has the right to ([`Mirrors`]).
            medium @ SourceAddress::Medium(_) => {
                return Err(Error::new(format!(
                    "opening the source {medium}: it is not mounted"
                )));
            }
        };
        Ok(Source {
            origin,
            patience: options.patience,
            given_up: Cell::new(false),
        })
    }

    /// Whether it did not answer after all tries; from then on each file is tried once.
    pub fn has_given_up(&self) -> bool {
        self.given_up.get()
    }

    /// What [`Source::has_given_up`] said of it before.
    pub fn set_given_up(&self, given_up: bool) {
        self.given_up.set(given_up);
    }

    /// Reads an artifact of it to its end, and compares the digest.
    pub fn check(&self, artifact: &mut Artifact, target: &Target) -> Result<()> {
        let name = || self.name_of(&target.path);
        let mut hasher = Hasher::default();
        io::copy(artifact, &mut hasher).doing(|| format!("reading {}", name()))?;
        match hasher.digest() {
            found if found == target.sha256 => Ok(()),
            found => {
                let sha256 = target.sha256;
                let why = format!(
                    "reading {}: its digest is {found} instead of {sha256}",
                    name()
                );
                Err(Error::with(ErrorKind::Untrusted, why))
            }
        }
    }

    /// Whether it can have a file of that path: a bundle may hold less than its metadata tell of.
    pub fn may_have(&self, path: &str) -> bool {
        match &self.origin {
            Origin::Bundle(bundle) => bundle.holds(path),
            Origin::Directory(_) | Origin::Web(..) => true,
        }
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
        if let Origin::Web(base, client) = &self.origin {
            let url = base.join(path);
            let until = Instant::now() + self.patience.small_timeout;
            let mut retries = self.retries(Some(until));
            loop {
                match small_over_http(client, &url, limit, until) {
                    Ok(found) => return Ok(found),
                    Err(fault) => retries.pause(fault)?,
                }
            }
        }
        let Some((file, length)) = self.open_file(path)? else {
            return Ok(Err(self.missing(path)));
        };
        let name = self.name_of(path);
        if length > limit {
            return Err(too_long(&name, limit));
        }
        let bytes = read_limited(file, limit).doing(|| format!("reading {name}"))?;
        match bytes {
            Some(bytes) if bytes.len() as u64 == length => Ok(Ok(bytes)),
            _ => Err(Error::new(format!(
                "reading {name}: it was truncated while it was being read"
            ))),
        }
    }

    /// An artifact. From a directory or a bundle it is read where it lies, and its digest is not checked here. From the web
    /// it is downloaded to `downloads/SHA256`, resuming what an earlier try left in `downloads/SHA256.part`, and is on
    /// the medium, with the right digest, before it has that name.
    ///
    /// `progress` is told how many of the `length` bytes there are.
    ///
    /// # Errors
    /// [`ErrorKind::Untrusted`] if it is not of that length and digest.
    pub fn artifact(
        &self,
        path: &str,
        length: u64,
        sha256: &Digest,
        downloads: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Artifact> {
        if let Origin::Web(base, client) = &self.origin {
            durable::create_dir(downloads, 0o700)?;
            let mut download = Download {
                client,
                url: base.join(path),
                length,
                sha256,
                patience: &self.patience,
                retries: self.retries(None),
                form: Form::Plain,
                progress,
            };
            let file = download.run(&downloads.join(sha256.to_string()))?;
            return Ok(Artifact::new(file, 0, length));
        }
        let Some((file, found)) = self.open_file(path)? else {
            return Err(self.missing(path));
        };
        if found != length {
            return Err(wrong_length(&self.name_of(path), found, length));
        }
        progress(length);
        Ok(file)
    }

    /// A file that can be read where it lies, and its length.
    fn open_file(&self, path: &str) -> Result<Option<(Artifact, u64)>> {
        match &self.origin {
            Origin::Directory(directory) => {
                let opened = open_if_there(&inside(directory, path)?)?;
                Ok(opened.map(|(file, length)| (Artifact::new(file, 0, length), length)))
            }
            Origin::Bundle(bundle) => bundle.open_file(path),
            Origin::Web(..) => Ok(None),
        }
    }

    /// A file of it, for an error.
    fn name_of(&self, path: &str) -> String {
        match &self.origin {
            Origin::Directory(directory) => directory.join(path).display().to_string(),
            Origin::Bundle(bundle) => format!("{path} in {}", bundle.path().display()),
            Origin::Web(base, _) => base.join(path).to_string(),
        }
    }

    fn missing(&self, path: &str) -> Error {
        let name = self.name_of(path);
        let why = format!("opening {name}: there is no such file");
        Error::with(ErrorKind::Unavailable, why)
    }

    fn retries(&self, until: Option<Instant>) -> Retries<'_> {
        let most = if self.given_up.get() {
            0
        } else {
            self.patience.retries
        };
        Retries {
            most,
            failed: 0,
            until,
            given_up: &self.given_up,
        }
    }
}

/// What has to be readable for asking web servers: authorities, and what names are looked up with.
pub fn read_for_the_web(options: &Options) -> Vec<PathBuf> {
    #[cfg(feature = "https")]
    let authorities = tls::CA_FILES.map(PathBuf::from);
    #[cfg(not(feature = "https"))]
    let authorities = [];
    let names = fetcher::NAMES.into_iter().chain(fetcher::NAMES_OF_GLIBC);
    options
        .ca_file
        .iter()
        .cloned()
        .chain(authorities)
        .chain(names.map(PathBuf::from))
        .collect()
}

/// An answer to a health check.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// Where it came from, if that is this machine itself.
    pub own_address: Option<SocketAddr>,
}

/// One GET over plain HTTP for a health check; the body has at most `limit` bytes. No redirect is followed, no proxy is
/// used, nothing is tried again, and `timeout` is for all of it.
pub fn get(url: &str, timeout: Duration, limit: u64) -> Result<Answer> {
    let parsed = Url::parse(url).map_err(Error::new)?;
    if parsed.is_https() {
        return Err(Error::new(format!(
            "asking {parsed}: it is not an http:// URL"
        )));
    }
    let client = Client {
        connect_timeout: timeout,
        pace: Pace::new(timeout, 0, None),
        once: true,
        tls: None,
        proxies: Proxies::default(),
        headers: None,
        idle: None.into(),
    };
    let ask = || -> io::Result<_> {
        let mut response = client.get(&parsed, 0, Some(Instant::now() + timeout))?;
        let own_address = response.body.own_address();
        let body = read_limited(response.body, limit)?;
        Ok((response.status, body, own_address))
    };
    match ask().doing(|| format!("asking {parsed}"))? {
        (status, Some(body), own_address) => Ok(Answer {
            status,
            body,
            own_address,
        }),
        (_, None, _) => Err(too_long(&parsed, limit)),
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
        let error = with_advice(error);
        let Err(error) = Err::<Infallible, _>(error).doing(|| format!("fetching {url}"));
        let error = error.of(ErrorKind::Unavailable);
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

struct Retries<'a> {
    most: u32,
    failed: u32,
    /// When no further try makes sense.
    until: Option<Instant>,
    given_up: &'a Cell<bool>,
}

impl Retries<'_> {
    /// Returns when it is time for the next try, or with the error if there is none.
    fn pause(&mut self, fault: Fault) -> Result<()> {
        let error = match fault {
            Fault::Permanent(error) => return Err(error),
            Fault::Transient(error) => error,
        };
        let pause = FIRST_PAUSE
            .saturating_mul(2u32.saturating_pow(self.failed))
            .min(LONGEST_PAUSE);
        let too_late = self
            .until
            .is_some_and(|until| Instant::now() + pause >= until);
        if self.failed >= self.most || too_late {
            self.given_up.set(true);
            return Err(error);
        }
        std::thread::sleep(some_of(pause));
        self.failed += 1;
        Ok(())
    }

    /// The last try got somewhere.
    fn begin_anew(&mut self) {
        self.failed = 0;
    }
}

/// At least half of it: all the appliances that a server left without an answer do not come back at once.
fn some_of(pause: Duration) -> Duration {
    // Its keys are random, and others each time.
    let random = RandomState::new().hash_one(()) as u8;
    pause / 2 + pause / 512 * u32::from(random)
}

/// With what to do about it, where a library only says what is the matter.
fn with_advice(error: io::Error) -> io::Error {
    #[cfg(feature = "https")]
    if let Some(advice) = tls::advice(&error) {
        return io::Error::new(error.kind(), format!("{error} ({advice})"));
    }
    error
}

fn answered(url: &Url, status: u16) -> Error {
    let mut why = format!("fetching {url}: the server answered {status}");
    match status {
        401 | 403 => why.push_str(" (access denied or no such file)"),
        407 => why.push_str(" (proxy authentication required)"),
        _ => {}
    }
    Error::with(ErrorKind::Unavailable, why)
}

/// The inner error says that there is no such file.
fn small_over_http(
    client: &Client,
    url: &Url,
    limit: u64,
    until: Instant,
) -> Result<Result<Vec<u8>>, Fault> {
    let response = client
        .get(url, 0, Some(until))
        .map_err(|e| Fault::of(url, e))?;
    match response.status {
        200 | 203 => {}
        // The whole of it, in the words of who always thinks of ranges.
        206 if is_all(response.range.as_deref()) => {}
        status @ (403 | 404) => return Ok(Err(answered(url, status))),
        status => return Err(Fault::status(url, status)),
    }
    if response.length.is_some_and(|length| length > limit) {
        return Err(too_long(url, limit).into());
    }
    let labelled = response.gzip;
    let body = read_limited(response.body, limit).map_err(|e| Fault::of(url, e))?;
    let body = match body {
        // No file of a repository's metadata begins like this.
        Some(bytes) if labelled && bytes.starts_with(&GZIP) => {
            let decoded = MultiGzDecoder::new(&bytes[..]);
            read_limited(decoded, limit).map_err(|e| Fault::of(url, e))?
        }
        body => body,
    };
    match body {
        Some(bytes) => Ok(Ok(bytes)),
        None => Err(too_long(url, limit).into()),
    }
}

/// Whether a `Content-Range` is that of a whole file.
fn is_all(range: Option<&str>) -> bool {
    let Some((first, last, Some(total))) = range.and_then(answer::content_range) else {
        return false;
    };
    first == 0 && last.checked_add(1) == Some(total)
}

/// `None` if there is more than `limit`.
fn read_limited(mut reader: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // Not `read_to_end`: it may write zeros to all the room that it makes, which is up to twice what is read.
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Some(bytes)),
            Ok(n) if (bytes.len() + n) as u64 > limit => return Ok(None),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
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
        let why = format!("opening {}: it is not a regular file", path.display());
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

fn too_long(what: &dyn std::fmt::Display, limit: u64) -> Error {
    let why = format!("fetching {what}: it is longer than {limit} bytes");
    Error::with(ErrorKind::Untrusted, why)
}

fn wrong_length(what: &dyn std::fmt::Display, found: u64, length: u64) -> Error {
    let why = format!("fetching {what}: it is {found} bytes long instead of {length}");
    Error::with(ErrorKind::Untrusted, why)
}

#[cfg(all(test, not(feature = "https")))]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// Intent: the error says that this is why, instead of a network's error, or of a source that is read without protection.
    #[test]
    fn pauses_differ() {
        let pause = Duration::from_secs(8);
        let pauses: Vec<Duration> = (0..20).map(|_| some_of(pause)).collect();
        assert!(
            pauses.iter().all(|p| (pause / 2..=pause).contains(p)),
            "{pauses:?}"
        );
        assert!(pauses.iter().any(|p| *p != pauses[0]), "{pauses:?}");
    }

    #[test]
    fn without_tls_an_https_source_is_one_error() {
        let options = Options::new(Clock::new(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH));
        let error = Source::open("https://localhost/", &options).err().unwrap();
        assert!(error.chain().contains("has no TLS"), "{}", error.chain());
    }
}
