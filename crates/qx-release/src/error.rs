//! What callers act on: an error is a kind, one line that says what was being done to what, and the cause. Code decides by
//! the kind; scripts see the outcome that is made of it.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::text;

/// The outcome of a command as scripts see it. The discriminant is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// Done. For `apply`: running and proved healthy.
    Done = 0,
    /// Failed; no service was stopped, nothing changed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Nothing newer than what runs.
    NothingNewer = 3,
    /// `check`: an update is available.
    Available = 4,
    /// Newer releases exist and all are refused.
    Refused = 5,
    /// A live process holds the lock.
    Busy = 6,
    /// Not enough space.
    NoSpace = 7,
    /// Services were stopped; the previous release runs again.
    BackToPrevious = 8,
    /// Services were stopped; the factory set runs.
    BackToFactory = 9,
    /// A person is needed; `status` says what for.
    NeedsPerson = 10,
}

impl Exit {
    /// The process's exit code, 0 to 10.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The outcome for an exit code, if a command of ours returns it.
    pub fn known(code: i32) -> Option<Exit> {
        use Exit::*;
        [
            Done,
            Failed,
            Usage,
            NothingNewer,
            Available,
            Refused,
            Busy,
            NoSpace,
            BackToPrevious,
            BackToFactory,
            NeedsPerson,
        ]
        .into_iter()
        .find(|exit| i32::from(exit.code()) == code)
    }
}

/// What kind of failure it is: whose fault, and so who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Something failed here: a file, a program, a service.
    Failed,
    /// A source cannot be reached, or does not have what was asked for.
    Unavailable,
    /// What a source has is not what was signed, or not to be trusted.
    Untrusted,
    /// The signed content itself is wrong: the fault of its publisher.
    Publisher,
    /// A release that this appliance must not or does not want to install.
    NotEligible,
    /// Wrong usage or configuration.
    Usage,
    /// A live process holds the lock.
    Busy,
    /// Not enough space.
    NoSpace,
    /// It failed after services were stopped; the previous release runs again.
    BackToPrevious,
    /// It failed after services were stopped; the factory set runs.
    BackToFactory,
    /// A person is needed; `status` says what for.
    NeedsPerson,
}

/// The one place where kinds become exit codes.
impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Exit {
        match kind {
            ErrorKind::Failed | ErrorKind::Unavailable => Exit::Failed,
            ErrorKind::Untrusted | ErrorKind::Publisher | ErrorKind::NotEligible => Exit::Refused,
            ErrorKind::Usage => Exit::Usage,
            ErrorKind::Busy => Exit::Busy,
            ErrorKind::NoSpace => Exit::NoSpace,
            ErrorKind::BackToPrevious => Exit::BackToPrevious,
            ErrorKind::BackToFactory => Exit::BackToFactory,
            ErrorKind::NeedsPerson => Exit::NeedsPerson,
        }
    }
}

/// A failed act. `Display` prints what was being done; [`Error::chain`] adds the causes, on one line.
#[derive(Debug)]
pub struct Error {
    /// What the caller decides by.
    pub kind: ErrorKind,
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An ordinary failure without a cause: `what` says what was being done, to what, and why it failed.
    pub fn new(what: impl Into<String>) -> Error {
        Error::with(ErrorKind::Failed, what)
    }

    /// A failure of a given kind.
    pub fn with(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error {
            kind,
            what: what.into(),
            source: None,
        }
    }

    /// The same error seen as another kind.
    pub fn of(mut self, kind: ErrorKind) -> Error {
        self.kind = kind;
        self
    }

    /// The outcome of a command that ends with it.
    pub fn exit(&self) -> Exit {
        self.kind.into()
    }

    /// What kind of failure of the system is at its root, if it is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        let io = |cause: &(dyn std::error::Error + 'static)| {
            let error = cause.downcast_ref::<io::Error>();
            error.map(io::Error::kind)
        };
        self.causes().find_map(io)
    }

    /// The system's own number for what is at its root, if there is one.
    fn errno(&self) -> Option<Errno> {
        let errno = |cause: &(dyn std::error::Error + 'static)| {
            let io = cause.downcast_ref::<io::Error>();
            let io = io.and_then(Errno::from_io_error);
            io.or_else(|| cause.downcast_ref::<Errno>().copied())
        };
        self.causes().find_map(errno)
    }

    /// The causes, outermost first.
    fn causes(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        let first = std::error::Error::source(self);
        std::iter::successors(first, |cause| cause.source())
    }

    /// Whether the system lacked what anybody would have needed: memory, processes, open files, space.
    pub fn is_lack(&self) -> bool {
        const LACKS: [Errno; 6] = [
            Errno::NOMEM,
            Errno::AGAIN,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOSPC,
            Errno::DQUOT,
        ];
        self.errno().is_some_and(|errno| LACKS.contains(&errno))
    }

    /// The whole chain of causes in one line, outermost first.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        for cause in self.causes() {
            line.push_str(": ");
            line.push_str(&cause.to_string());
        }
        // One error is one line, whatever a cause (a server's text, say) contains.
        text::line(&line)
    }
}

/// An error on its way from one process to another. It arrives with the same line, kind and root.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Told {
    kind: ErrorKind,
    line: String,
    errno: Option<i32>,
}

impl From<&Error> for Told {
    fn from(error: &Error) -> Told {
        Told {
            kind: error.kind,
            line: error.chain(),
            errno: error.errno().map(Errno::raw_os_error),
        }
    }
}

impl From<Told> for Error {
    fn from(told: Told) -> Error {
        let root = told.errno.map(io::Error::from_raw_os_error);
        let before = |root: &io::Error| {
            let before = told.line.strip_suffix(&root.to_string())?;
            before.strip_suffix(": ").map(str::to_owned)
        };
        match root.and_then(|root| Some((before(&root)?, root))) {
            Some((what, root)) => Error {
                kind: told.kind,
                what,
                source: Some(Box::new(root)),
            },
            None => Error::with(told.kind, text::line(&told.line)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// Says what was being done when a cause turned up. The kind comes from the cause: a full disk is
/// [`ErrorKind::NoSpace`] wherever it is met, and an [`Error`] keeps its own.
pub trait Context<T> {
    /// Wraps the cause in an error that says `what` was being done, to which file or URL.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error {
            kind: kind_of(&cause),
            what: what().into(),
            source: Some(Box::new(cause)),
        })
    }
}

fn kind_of(cause: &(dyn std::error::Error + 'static)) -> ErrorKind {
    let mut next = Some(cause);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.kind;
        }
        let full = |io: &io::Error| {
            matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if full(io) {
                return ErrorKind::NoSpace;
            }
            // `io::Error::source` skips the error that it wraps.
            if let Some(inner) = io.get_ref() {
                return kind_of(inner);
            }
        }
        if let Some(errno) = error.downcast_ref::<rustix::io::Errno>()
            && full(&io::Error::from(*errno))
        {
            return ErrorKind::NoSpace;
        }
        next = error.source();
    }
    ErrorKind::Failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_space_at_any_depth() {
        let full = || io::Error::from(rustix::io::Errno::NOSPC);
        let wrapped = Err::<(), _>(io::Error::other(full()))
            .doing(|| "writing /data/x")
            .unwrap_err();
        assert_eq!(wrapped.kind, ErrorKind::NoSpace);
        let twice = Err::<(), _>(wrapped).doing(|| "staging").unwrap_err();
        assert_eq!(twice.kind, ErrorKind::NoSpace);
        assert!(
            twice.chain().starts_with("staging: writing /data/x: "),
            "{}",
            twice.chain()
        );
    }

    #[test]
    fn the_chain_is_one_line() {
        let error = Err::<(), _>(io::Error::other("two\nlines"))
            .doing(|| "reading x")
            .unwrap_err();
        assert_eq!(error.chain(), "reading x: two\\nlines");
    }

    #[test]
    fn what_the_system_lacks_is_told_from_what_is_wrong() {
        let of = |errno: Errno| {
            let inner: Result<()> = Err(io::Error::from(errno)).doing(|| "inside");
            inner.doing(|| "outside").unwrap_err().is_lack()
        };
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::AGAIN,
            Errno::NOSPC,
        ] {
            assert!(of(errno), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::IO, Errno::TXTBSY] {
            assert!(!of(errno), "{errno}");
        }
        let errno: Result<()> = Err(Errno::MFILE).doing(|| "opening it");
        assert!(errno.unwrap_err().is_lack());
        assert!(!Error::new("too many open files").is_lack());
    }

    #[test]
    fn an_error_arrives_as_it_was_sent() {
        let lack: Result<()> = Err(Errno::MFILE).doing(|| "opening x");
        let full: Result<()> = Err(io::Error::from(Errno::NOSPC)).doing(|| "writing y");
        let plain = Error::with(ErrorKind::Publisher, "unpacking z: it is\nodd");
        let other: Result<()> = Err(io::Error::other("closed early")).doing(|| "fetching u");
        for sent in [
            lack.unwrap_err(),
            full.doing(|| "staging").unwrap_err(),
            plain,
            other.unwrap_err().of(ErrorKind::Unavailable),
        ] {
            let bytes = serde_json::to_vec(&Told::from(&sent)).unwrap();
            let got = Error::from(serde_json::from_slice::<Told>(&bytes).unwrap());
            assert_eq!(got.chain(), sent.chain());
            assert_eq!(got.kind, sent.kind);
            assert_eq!(got.is_lack(), sent.is_lack());
            assert_eq!(got.errno(), sent.errno());
        }
        let hostile = r#"{"kind":"failed","line":"a\nb","errno":null}"#;
        let got = Error::from(serde_json::from_str::<Told>(hostile).unwrap());
        assert_eq!(got.chain(), "a\\nb", "one line, whatever was sent");
    }

    #[test]
    fn exit_codes_round_trip() {
        for code in 0..=10 {
            assert_eq!(i32::from(Exit::known(code).unwrap().code()), code);
        }
        assert_eq!(Exit::known(101), None);
    }
}
