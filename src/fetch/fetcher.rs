//! A source that is asked by a process of its own, the fetcher. It handles what strangers send, and is confined for that
//! ([`crate::system::sandbox`]); nothing that it says is believed any more than a source is.

use std::fs;
use std::io::{BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::protocol::{self, Order, Reply, Request};
use super::{Options, too_long};
use crate::fetch::port::Target;
use crate::model::source::SourceAddress;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::Component;

/// What this program is started with to be a fetcher.
pub const ARGUMENT: &str = "--fetcher";
/// What names of servers are looked up with. Whoever changes these replaces them by others, which a fetcher that runs already
/// may not read.
pub(super) const NAMES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// The same for the GNU library.
pub(super) const NAMES_OF_GLIBC: [&str; 3] =
    ["/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"];
/// A process that has closed its end of a pipe is gone after so long.
const ENDS: Duration = Duration::from_secs(2);

/// Asks one source.
pub(super) struct Fetcher {
    address: SourceAddress,
    options: Options,
    writable: Vec<PathBuf>,
    /// Whoever does what this process is at holds the lock: also a fetcher that for a moment lives on alone.
    lock: Rc<OwnedFd>,
    process: Option<Process>,
    /// It did not answer after all tries, or cannot be opened.
    pub tired: bool,
    /// What the sandbox lacks here, from when the first process of this fetcher was started.
    pub unconfined: Vec<String>,
}

/// The process, and how it is talked to.
struct Process {
    child: Child,
    /// None once it is to end.
    talk: Option<Talk>,
    names: Vec<Option<(u64, u64)>>,
}

struct Talk {
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Fetcher {
    pub(super) fn new(address: SourceAddress, options: Options, lock: Rc<OwnedFd>) -> Fetcher {
        Fetcher {
            address,
            options,
            writable: Vec::new(),
            lock,
            process: None,
            tired: false,
            unconfined: Vec::new(),
        }
    }

    /// Where its source lies, now that it is mounted.
    pub(super) fn lies_at(&mut self, place: PathBuf) {
        self.address = SourceAddress::Path(place.display().to_string());
    }

    /// From now on it may write in these directories, which are there.
    pub(super) fn let_write(&mut self, directories: Vec<PathBuf>) {
        self.end();
        self.writable = directories;
    }

    /// Ends the process; the next request starts another one.
    pub(super) fn end(&mut self) {
        self.process = None;
    }

    /// Opens the source, if it is not open yet.
    pub(super) fn open(&mut self) -> Result<()> {
        if self.process.is_none() {
            let opened = self.start();
            self.tired |= opened.is_err();
            self.process = Some(opened?);
        }
        Ok(())
    }

    pub(super) fn may_have(&mut self, path: &str) -> Result<bool> {
        match self.fetch(&Request::MayHave(path.to_owned()), &mut |_| {})? {
            Reply::MayHave(may) => Ok(may),
            other => Err(self.odd(&other)),
        }
    }

    /// A whole file of at most `limit` bytes, or `None` if there is none of that name; that is an error if it is `required`.
    pub(super) fn small(
        &mut self,
        path: &str,
        limit: u64,
        required: bool,
    ) -> Result<Option<Vec<u8>>> {
        let request = Request::Small {
            path: path.to_owned(),
            limit,
            required,
        };
        match self.fetch(&request, &mut |_| {})? {
            Reply::Nothing if !required => Ok(None),
            Reply::Bytes(length) if length > limit => Err(too_long(&path, limit)),
            Reply::Bytes(length) => {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
                let read = self
                    .talk()
                    .is_some_and(|talk| talk.replies.read_exact(&mut bytes).is_ok());
                match read {
                    true => Ok(Some(bytes)),
                    false => Err(self.gone()),
                }
            }
            other => Err(self.odd(&other)),
        }
    }

    /// Gets an artifact, and keeps it for [`Fetcher::unpack`].
    pub(super) fn artifact(
        &mut self,
        target: &Target,
        downloads: &Path,
        check: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let request = Request::Artifact {
            target: target.clone(),
            downloads: downloads.to_owned(),
            check,
        };
        match self.fetch(&request, progress)? {
            Reply::Done => Ok(()),
            other => Err(self.odd(&other)),
        }
    }

    /// Unpacks the artifact that was got last.
    pub(super) fn unpack(&mut self, component: &Component, staging: &Path) -> Result<()> {
        let request = Request::Unpack {
            component: Box::new(component.clone()),
            staging: staging.to_owned(),
        };
        match self.ask(&request, &mut |_| {})? {
            Reply::Done => Ok(()),
            other => Err(self.odd(&other)),
        }
    }

    /// Asks for what the source has. A fetcher that looks names up in files that have been replaced is replaced, too.
    fn fetch(&mut self, request: &Request, progress: &mut dyn FnMut(u64)) -> Result<Reply> {
        let stale = |process: &Option<Process>| process.as_ref().is_some_and(Process::is_stale);
        if stale(&self.process) {
            self.end();
        }
        match self.ask(request, progress) {
            Err(e) if e.kind == ErrorKind::Unavailable && stale(&self.process) => {
                self.end();
                self.tired = false;
                self.ask(request, progress)
            }
            answered => answered,
        }
    }

    fn ask(&mut self, request: &Request, progress: &mut dyn FnMut(u64)) -> Result<Reply> {
        self.open()?;
        let Some(talk) = self.talk() else {
            return Err(self.gone());
        };
        if protocol::send(&mut talk.requests, request).is_err() {
            return Err(self.gone());
        }
        loop {
            match protocol::receive(&mut talk.replies) {
                Ok(Some(Reply::Progress(done))) => progress(done),
                Ok(Some(Reply::Failed { why, given_up })) => {
                    self.tired |= given_up;
                    return Err(why.into());
                }
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) | Err(_) => return Err(self.gone()),
            }
        }
    }

    fn talk(&mut self) -> Option<&mut Talk> {
        self.process.as_mut()?.talk.as_mut()
    }

    fn start(&mut self) -> Result<Process> {
        let doing = || "starting the process that fetches";
        // It inherits this one, and nothing else.
        let lock = rustix::io::dup(&self.lock).doing(doing)?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("qx-update")
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What is typed at a terminal is for us.
            .process_group(0)
            .spawn()
            .doing(doing)?;
        drop(lock);
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(doing()));
        };
        let mut process = Process {
            child,
            talk: None,
            names: names(),
        };
        let mut talk = Talk {
            requests,
            replies: BufReader::new(replies),
        };
        let order = Order {
            source: self.address.clone(),
            options: self.options.clone(),
            given_up: self.tired,
            writable: self.writable.clone(),
            parent: std::process::id(),
        };
        let sent = protocol::send(&mut talk.requests, &order);
        match sent.and_then(|()| protocol::receive(&mut talk.replies)) {
            Ok(Some(Reply::Ready(unconfined))) => {
                self.unconfined = unconfined;
                process.talk = Some(talk);
                Ok(process)
            }
            Ok(Some(Reply::Failed { why, .. })) => Err(why.into()),
            _ => Err(process.ended(&self.address)),
        }
    }

    /// It does not answer any more.
    fn gone(&mut self) -> Error {
        match self.process.take() {
            Some(mut process) => process.ended(&self.address),
            None => Error::new(format!(
                "fetching from {}: there is no fetcher",
                self.address
            )),
        }
    }

    /// It says what was not asked.
    fn odd(&mut self, reply: &Reply) -> Error {
        self.end();
        Error::new(format!(
            "fetching from {}: the process that fetches said {reply:?}",
            self.address
        ))
    }
}

impl Process {
    /// Whether files that it looks names up in are no longer those that it may read.
    fn is_stale(&self) -> bool {
        self.names != names()
    }

    /// How it ended; if it has not yet, it does now.
    fn ended(&mut self, address: &SourceAddress) -> Error {
        let doing = || format!("fetching from {address}: the process that fetches");
        // Killed only if it still runs: how it ended by itself is what counts.
        let until = Instant::now() + ENDS;
        let ended = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                ended => break ended,
            }
        };
        match ended {
            Ok(Some(status)) => Error::new(format!("{} ended with {status}", doing())),
            Ok(None) => Error::new(format!("{} does not answer", doing())),
            Err(e) => Error::new(format!("{}: {e}", doing())),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // With nobody to talk to it ends by itself, too.
        self.talk = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Which files names are looked up in now.
fn names() -> Vec<Option<(u64, u64)>> {
    let which = |path: &str| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    NAMES.into_iter().map(which).collect()
}
