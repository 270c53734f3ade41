//! A file of known length and digest, downloaded however often the connection breaks.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::answer::content_range;
use super::client::{Client, Response};
use super::socket::is_slower;
use super::{Fault, GZIP, Patience, Retries, options, wrong_length};
use flate2::read::MultiGzDecoder;
use qx_release::digest::{Digest, Hasher};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::text;
use qx_release::url::Url;

/// After so many whole files with another digest the server is not asked again.
const MAX_DOUBTS: u32 = 2;
/// How far into an answer is looked at most to see what it is.
const LOOK: u64 = 64 * 1024;

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
    /// How it is asked for.
    pub form: Form,
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

    /// Drops what is behind so many bytes.
    fn shorten(&mut self, to: u64) -> Result<()> {
        let mut hasher = Hasher::default();
        self.file
            .set_len(to)
            .and_then(|()| self.file.rewind())
            .and_then(|()| hash(&self.file, &mut hasher))
            .doing(|| format!("shortening {}", self.path.display()))?;
        self.hasher = hasher;
        Ok(())
    }

    /// Whether these bytes are in it from there on.
    fn has(&self, at: u64, bytes: &[u8]) -> Result<bool> {
        let mut here = vec![0; bytes.len()];
        self.file
            .read_exact_at(&mut here, at)
            .doing(|| format!("reading {}", self.path.display()))?;
        Ok(here == bytes)
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
        for doubts in 0.. {
            let answers = self.fill(&mut part)?;
            if part.hasher.digest() == *self.sha256 {
                break;
            }
            let labelled = answers.gzip && self.form != Form::Compressed;
            if answers.one && !labelled || doubts == MAX_DOUBTS {
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
            // What an earlier process left may have been damaged by a power cut, and pieces may be of different files: that is
            // nobody's attack. And what is said to be compressed may really be.
            if answers.one {
                self.form = Form::Compressed;
            }
            part.restart()?;
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
    fn fill(&mut self, part: &mut Part) -> Result<Answers> {
        let mut answers = Answers {
            one: part.bytes() == 0,
            gzip: false,
        };
        // Only what goes beyond all that was there before counts as progress, and only if it came fast enough: a server that
        // makes us start again and again, or says a few bytes each time, does not keep us for ever.
        let mut furthest = part.bytes();
        let mut since = Instant::now();
        (self.progress)(part.bytes());
        while part.bytes() < self.length {
            let (form, had) = (self.form, part.bytes());
            let fault = match self.transfer(part, &mut answers) {
                Ok(()) => continue,
                // To ask in another way, of which there are few, is no further try: who has none would never get the file.
                Err(Fault::Transient(_)) if self.form != form && part.bytes() == had => continue,
                Err(fault) => fault,
            };
            let gained = part.bytes().saturating_sub(furthest);
            if gained > 0 && !is_slower(gained, since.elapsed(), self.patience.slowest) {
                furthest = part.bytes();
                since = Instant::now();
                self.retries.begin_anew();
            }
            self.retries.pause(fault)?;
        }
        Ok(answers)
    }

    /// One request. An answer that cannot be the file costs nothing of what is there.
    fn transfer(&mut self, part: &mut Part, answers: &mut Answers) -> Result<(), Fault> {
        let from = match self.form {
            Form::Plain => part.bytes(),
            Form::Whole | Form::Compressed => 0,
        };
        let response = self
            .client
            .get(&self.url, from, None)
            .map_err(|e| Fault::of(&self.url, e))?;
        // Of what comes, so many bytes are here already.
        let mut known = part.bytes();
        match response.status {
            200 | 203 => {
                let other = response.length.filter(|length| *length != self.length);
                match other {
                    Some(_) if response.gzip => self.form = Form::Compressed,
                    Some(length) => {
                        return Err(wrong_length(&self.url, length, self.length).into());
                    }
                    None => {}
                }
            }
            206 => match self.start_of(&response).filter(|first| *first <= known) {
                Some(first) => known -= first,
                None => return Err(self.wrong_range(&response, from)),
            },
            416 if from > 0 => {
                self.form = self.form.whole();
                return Err(Fault::Transient(Error::new(format!(
                    "fetching {}: the server has no data from byte {from} on",
                    self.url
                ))));
            }
            status => return Err(Fault::status(&self.url, status)),
        }
        let before = part.bytes();
        answers.one &= before == 0;
        let gzip = response.gzip;
        answers.gzip |= gzip;
        let as_long = response.length == Some(self.length);
        let unclear = gzip && !as_long && self.form != Form::Compressed;
        let body = self.look(unclear, response.status, response.body)?;
        let appended = match self.form {
            Form::Compressed if gzip => self.append(part, MultiGzDecoder::new(body), known),
            _ => self.append(part, body, known),
        };
        if matches!(appended, Ok(Came::Other)) {
            // Of the right length it is the file, and what is here was damaged; else it is a login page, or the like.
            if as_long {
                part.restart()?;
            }
            let why = format!(
                "fetching {}: it differs from what was fetched before",
                self.url
            );
            return Err(Fault::Transient(Error::new(why)));
        }
        self.judge(appended, part, before, gzip, answers)
    }

    /// Sees by its beginning whether what is said to be compressed really was: only what is of the file may be kept, or all that
    /// comes later differs from it, in this try and in the next updates. Returns all of the body.
    fn look<R: Read>(
        &mut self,
        unclear: bool,
        status: u16,
        body: R,
    ) -> Result<impl Read + use<R>, Fault> {
        let mut tee = Tee {
            seen: Vec::new(),
            failed: None,
            body,
        };
        let mut first = [0; 2];
        if unclear {
            let mut beginning = (&mut tee).take(LOOK);
            // A file that is gzip itself still is when that of the way is removed.
            let read = match status != 206 && self.url.path.ends_with(".gz") {
                true => MultiGzDecoder::new(beginning).read_exact(&mut first),
                false => beginning.read_exact(&mut first),
            };
            if let Some(error) = tee.failed {
                return Err(Fault::of(&self.url, error));
            }
            match status {
                _ if read.is_err() || first != GZIP => {}
                // Some compress the bytes of a range each time.
                206 => {
                    self.form = self.form.whole();
                    let why = format!("fetching {}: a part of it came compressed", self.url);
                    return Err(Fault::Transient(Error::new(why)));
                }
                _ => self.form = Form::Compressed,
            }
        }
        Ok(Cursor::new(tee.seen).chain(tee.body))
    }

    /// What to make of an answer that began behind the first `before` bytes.
    fn judge(
        &mut self,
        appended: Result<Came, Fault>,
        part: &mut Part,
        before: u64,
        gzip: bool,
        answers: &mut Answers,
    ) -> Result<(), Fault> {
        let why = match appended {
            Ok(_) if part.bytes() == self.length => return Ok(()),
            Ok(_) => {
                let left = self.length - part.bytes();
                let why = format!("the server closed the connection {left} bytes early");
                let early = io::Error::new(io::ErrorKind::UnexpectedEof, why);
                Fault::of(&self.url, early)
            }
            Err(Fault::Permanent(why)) if why.kind == ErrorKind::Untrusted => Fault::Permanent(why),
            Err(fault) => return Err(fault),
        };
        Err(match why {
            // It came in good order, and is not the file as it is.
            Fault::Transient(why) | Fault::Permanent(why)
                if gzip && self.form != Form::Compressed =>
            {
                part.shorten(before)?;
                self.form = Form::Compressed;
                Fault::Transient(why)
            }
            // Pieces may be of different files.
            Fault::Permanent(why) if !answers.one => {
                part.restart()?;
                answers.one = true;
                Fault::Transient(why)
            }
            why => why,
        })
    }

    /// Appends what comes after the `known` bytes, if those are what is here.
    fn append(
        &mut self,
        part: &mut Part,
        mut body: impl Read,
        mut known: u64,
    ) -> Result<Came, Fault> {
        let fault = |error| Fault::of(&self.url, error);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(fault(e)),
            };
            let (old, new) = buffer[..n].split_at(known.min(n as u64) as usize);
            if !part.has(part.bytes() - known, old)? {
                return Ok(Came::Other);
            }
            known -= old.len() as u64;
            if new.len() as u64 > self.length - part.bytes() {
                // Its digest would be right if only more was appended, but such a server is not to be asked
                // again.
                let why = format!(
                    "fetching {}: it is longer than {} bytes",
                    self.url, self.length
                );
                return Err(Error::with(ErrorKind::Untrusted, why).into());
            }
            part.append(new)?;
            (self.progress)(part.bytes());
        }
        Ok(Came::Whole)
    }

    /// Where the range begins that came, if it is one of this file.
    fn start_of(&self, response: &Response) -> Option<u64> {
        let (first, last, total) = content_range(response.range.as_deref()?)?;
        let total = total.unwrap_or(self.length);
        (total == self.length && first <= last && last < total).then_some(first)
    }

    /// The server may do better without ranges.
    fn wrong_range(&mut self, response: &Response, from: u64) -> Fault {
        self.form = self.form.whole();
        let given = response.range.as_deref().unwrap_or("");
        Fault::Transient(Error::with(
            ErrorKind::Untrusted,
            format!(
                "fetching {}: the server returned the range '{}' instead of bytes {from} to the end of {}",
                self.url,
                text::name(given),
                self.length
            ),
        ))
    }
}

/// How the file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// From the byte on that is missing.
    Plain,
    /// All of it each time: the server gets ranges wrong.
    Whole,
    /// All of it, and decompressed here: the server compresses it on the way.
    Compressed,
}

impl Form {
    /// Without ranges.
    fn whole(self) -> Form {
        match self {
            Form::Plain => Form::Whole,
            form => form,
        }
    }
}

/// Keeps what is read.
struct Tee<R> {
    seen: Vec<u8>,
    failed: Option<io::Error>,
    body: R,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.body.read(into) {
            Ok(n) => {
                self.seen.extend_from_slice(&into[..n]);
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let kind = e.kind();
                self.failed = Some(e);
                Err(kind.into())
            }
        }
    }
}

/// What came.
enum Came {
    /// All of an answer, of whatever length.
    Whole,
    /// Something else than what is here.
    Other,
}

/// Where the bytes of a download come from.
struct Answers {
    /// All from one answer.
    one: bool,
    /// Some are said to be compressed.
    gzip: bool,
}

fn hash(file: &File, hasher: &mut Hasher) -> io::Result<()> {
    io::copy(&mut BufReader::with_capacity(128 * 1024, file), hasher).map(drop)
}
