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

/// A connection on which no wait is longer than `stall`, nor goes beyond `until`.
pub(super) struct Socket {
    pub tcp: TcpStream,
    pub stall: Duration,
    pub until: Option<Instant>,
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let patience = remaining(self.until, self.stall)?;
        self.tcp.set_read_timeout(Some(patience))?;
        self.tcp.read(into).map_err(timed_out)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let patience = remaining(self.until, self.stall)?;
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
