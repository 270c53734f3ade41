//! A connection, plain or with TLS, on which nobody waits for ever.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub(super) enum Stream {
    Plain(Socket),
    #[cfg(feature = "https")]
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, Socket>>),
}

impl Stream {
    pub(super) fn socket(&mut self) -> &mut Socket {
        match self {
            Stream::Plain(socket) => socket,
            #[cfg(feature = "https")]
            Stream::Tls(tls) => &mut tls.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(into),
            #[cfg(feature = "https")]
            Stream::Tls(tls) => tls.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            #[cfg(feature = "https")]
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            #[cfg(feature = "https")]
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

/// A connection on which no wait is longer than `stall`, nor goes beyond `until`, and that is fast enough: whatever the bytes
/// are for, a server that sends a few of them now and then does not keep us.
pub(super) struct Socket {
    tcp: TcpStream,
    pace: Pace,
    /// When all of it must be over.
    until: Option<Instant>,
}

/// How slow a transfer may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// The longest wait for a byte.
    pub stall: Duration,
    /// The lowest rate, in bytes per second, over each `stall` that was spent waiting.
    pub slowest: u64,
    /// The highest rate, in bytes per second: no more is taken from the network, whose control of congestion slows the server down.
    pub fastest: Option<u64>,
    /// Since the rate was looked at last: the time that was spent waiting, and what came.
    waited: Duration,
    came: u64,
    /// Since when these bytes were taken, of which there must not be too many.
    taken: Option<(Instant, u64)>,
}

/// What was not taken in this time is not made up for.
const WINDOW: Duration = Duration::from_secs(1);

impl Pace {
    pub(super) fn new(stall: Duration, slowest: u64, fastest: Option<u64>) -> Pace {
        Pace {
            stall,
            slowest,
            fastest,
            waited: Duration::ZERO,
            came: 0,
            taken: None,
        }
    }

    /// How long the last was waited for is forgotten; how much was taken is not.
    fn again(&mut self) {
        (self.waited, self.came) = (Duration::ZERO, 0);
    }

    /// How much may be taken at once: so little that nobody waits for long afterwards.
    fn most(&self, bytes: usize) -> usize {
        let most = self.fastest.map_or(usize::MAX, |rate| {
            usize::try_from(rate / 4).unwrap_or(usize::MAX).max(1)
        });
        bytes.min(most)
    }

    /// Returns when so many more bytes are not too many.
    fn hold(&mut self, came: usize) {
        let Some(rate) = self.fastest else {
            return;
        };
        let now = Instant::now();
        let (since, bytes) = self.taken.unwrap_or((now, 0));
        let bytes = bytes + came as u64;
        let due = since + Duration::from_millis(bytes.saturating_mul(1000) / rate.max(1));
        std::thread::sleep(due.saturating_duration_since(now));
        let idle = now.saturating_duration_since(due) > WINDOW;
        self.taken = (!idle).then_some((since, bytes));
    }

    /// Whether so many bytes after such a wait are fast enough.
    fn keeps(&mut self, waited: Duration, came: usize) -> bool {
        self.waited += waited;
        self.came += came as u64;
        if self.waited < self.stall {
            return true;
        }
        let fast = !is_slower(self.came, self.waited, self.slowest);
        self.again();
        fast
    }
}

/// Whether so many bytes in that time are less than so many per second.
pub(super) fn is_slower(bytes: u64, time: Duration, rate: u64) -> bool {
    u128::from(bytes) * 1000 < u128::from(rate) * time.as_millis()
}

impl Socket {
    pub(super) fn new(tcp: TcpStream, pace: Pace, until: Option<Instant>) -> Socket {
        Socket { tcp, pace, until }
    }

    /// What comes next is to be over at this time; how long the last was waited for is forgotten.
    pub(super) fn next(&mut self, until: Option<Instant>) {
        self.until = until;
        self.pace.again();
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let patience = remaining(self.until, self.pace.stall)?;
        self.tcp.set_read_timeout(Some(patience))?;
        let most = self.pace.most(into.len());
        let begun = Instant::now();
        let n = self.tcp.read(&mut into[..most]).map_err(timed_out)?;
        // The end of the connection is none of slowness.
        match n == 0 || self.pace.keeps(begun.elapsed(), n) {
            true => {
                self.pace.hold(n);
                Ok(n)
            }
            false => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it was slower than {} bytes per second", self.pace.slowest),
            )),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let patience = remaining(self.until, self.pace.stall)?;
        self.tcp.set_write_timeout(Some(patience))?;
        self.tcp.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

pub(super) fn remaining(until: Option<Instant>, most: Duration) -> io::Result<Duration> {
    match until.map(|until| until.saturating_duration_since(Instant::now())) {
        Some(left) if left.is_zero() => Err(timed_out(io::ErrorKind::WouldBlock.into())),
        Some(left) => Ok(left.min(most)),
        None => Ok(most),
    }
}

/// A time-out on a socket is reported as "would block", which says nothing to a reader.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "timed out"),
        _ => error,
    }
}

/// The address that a connection leads to, if it leads to this machine itself, by whatever name that was called.
pub fn own_address(connection: &TcpStream) -> Option<SocketAddr> {
    let (peer, local) = (connection.peer_addr().ok()?, connection.local_addr().ok()?);
    (peer.ip().to_canonical().is_loopback() || peer.ip() == local.ip()).then_some(peer)
}
