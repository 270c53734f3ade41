//! The part of HTTP/1.1 that static files need: GET, ranges, redirects, proxies, and a connection that is used again for
//! the next file. Every length has a limit and every wait a time-out; bodies are streamed.
//!
//! Errors of kind [`io::ErrorKind::InvalidData`] are final: the same request would end in the same way.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::headers::Headers;
use super::proxy::{Proxies, Proxy};
#[cfg(feature = "https")]
use super::tls;
use qx_release::text;
use qx_release::trust::clock::Clock;

/// The status line and the headers of an answer are at most this long, in bytes.
const HEAD_LIMIT: u64 = 64 * 1024;
const MAX_REDIRECTS: usize = 5;
/// A connection without a request for so long is not used again: the server, or something between, may have forgotten it.
const MAX_IDLE: Duration = Duration::from_secs(5);

/// An `http://` or `https://` URL without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    https: bool,
    /// As in the URL: an IPv6 address is in brackets.
    host: String,
    port: u16,
    /// Path and query; begins with a slash.
    path: String,
}

impl Url {
    /// Reads an absolute URL. The error is one sentence.
    pub fn parse(given: &str) -> Result<Url, String> {
        let bad = |why| Err(format!("'{}' {why}", text::url(given)));
        let (https, rest) = match given.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            _ => return bad("is no http:// or https:// URL"),
        };
        // Whatever is not printable would end up in the request's head.
        if given.len() > 8192 || !given.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("is no URL: it is too long, or not all of it is printable ASCII");
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let address = |b: u8| b.is_ascii_hexdigit() || b":.".contains(&b);
        let good = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(host) => host.bytes().all(address),
            None => !host.is_empty() && host.bytes().all(name),
        };
        let port = match port {
            None => Some(if https { 443 } else { 80 }),
            Some(port) => port.parse().ok(),
        };
        let (true, Some(port)) = (good, port) else {
            return bad("is no URL of a HOST or HOST:PORT");
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Url {
            https,
            host: host.to_owned(),
            port,
            path: format!("{slash}{path}"),
        })
    }

    /// The URL of a path below this one; the path's bytes are percent-encoded as necessary. What is so already, as
    /// role names are, stays as it is.
    pub fn join(&self, path: &str) -> Url {
        let mut joined = self.path.trim_end_matches('/').to_owned();
        joined.push('/');
        let bytes = path.as_bytes();
        let encoded = |at: usize| {
            let digits = bytes.get(at + 1..at + 3);
            digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        };
        for (at, &byte) in bytes.iter().enumerate() {
            if byte.is_ascii_alphanumeric()
                || b"-._~/".contains(&byte)
                || byte == b'%' && encoded(at)
            {
                joined.push(byte.into());
            } else {
                joined.push_str(&format!("%{byte:02X}"));
            }
        }
        Url {
            path: joined,
            ..self.clone()
        }
    }

    /// Whether the URL has a query, below which there is nothing.
    pub fn has_query(&self) -> bool {
        self.path.contains('?')
    }

    /// Whether TLS is needed.
    pub fn is_https(&self) -> bool {
        self.https
    }

    fn redirected(&self, location: &str) -> Result<Url, String> {
        let scheme = if self.https { "https" } else { "http" };
        let absolute = if location.contains("://") {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{}{location}", self.authority())
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{scheme}://{}{directory}/{location}", self.authority())
        };
        let url = Url::parse(&absolute)?;
        if self.https && !url.https {
            return Err(format!("'{url}' would leave https"));
        }
        Ok(url)
    }

    /// Whether the same server is asked in the same way.
    fn same_origin(&self, other: &Url) -> bool {
        (self.https, self.port) == (other.https, other.port)
            && self.host.eq_ignore_ascii_case(&other.host)
    }

    fn authority(&self) -> String {
        match (self.https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// All of it, for a proxy.
    fn whole(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// For the resolver: without an IPv6 address's brackets.
    pub fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl fmt::Display for Url {
    /// For people: without its query, which may be what gives a right to it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::url(&self.whole()))
    }
}

/// How requests are made.
pub(super) struct Client {
    /// Until a connection must stand.
    pub connect_timeout: Duration,
    /// Without a byte, after which a transfer is broken off; the answer's head must be whole in that time.
    pub stall_timeout: Duration,
    /// Each request for itself: no redirect is followed, and no connection is kept.
    pub once: bool,
    /// For `https`; absent where that is not asked for.
    #[cfg_attr(not(feature = "https"), expect(dead_code))]
    pub tls: Option<Tls>,
    /// What does not go directly to the server.
    pub proxies: Proxies,
    /// Extra headers, and the only server that gets them.
    pub headers: Option<(Url, Headers)>,
    /// A connection that waits for its next request.
    pub idle: RefCell<Option<Idle>>,
}

/// A connection without a request.
pub(super) struct Idle {
    url: Url,
    reader: BufReader<Stream>,
    since: Instant,
}

/// Whom TLS trusts, and when.
#[cfg_attr(not(feature = "https"), expect(dead_code))]
pub(super) struct Tls {
    /// PEM file with the certificate authorities, if not the system's.
    pub ca_file: Option<PathBuf>,
    /// What certificates are valid at.
    pub clock: Clock,
}

/// An answer, its body not yet read.
pub(super) struct Response<'a> {
    /// The status code.
    pub status: u16,
    /// What `Content-Length` says.
    pub length: Option<u64>,
    /// What `Content-Range` says.
    pub range: Option<String>,
    /// The body. A body that is cut short is an error, as is one that stalls.
    pub body: Body<'a>,
}

impl Client {
    /// Asks for a file, from byte `from` on if that is not 0. All of it, the body included, must be over at `until`; name
    /// resolution alone takes as long as the system's resolver lets it.
    pub(super) fn get(
        &self,
        url: &Url,
        from: u64,
        until: Option<Instant>,
    ) -> io::Result<Response<'_>> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (head, body) = self.get_once(&url, from, until)?;
            if self.once || !matches!(head.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(Response {
                    status: head.status,
                    length: head.length,
                    range: head.range,
                    body,
                });
            }
            let Some(location) = &head.location else {
                return Err(invalid("a redirect to nowhere"));
            };
            url = url
                .redirected(location)
                .map_err(|why| invalid(format!("a redirect that is not followed: {why}")))?;
        }
        Err(invalid(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn get_once(
        &self,
        url: &Url,
        from: u64,
        until: Option<Instant>,
    ) -> io::Result<(Head, Body<'_>)> {
        let proxy = self.proxies.of(url);
        let request = self.request(url, from, proxy);
        if let Some(reader) = self.waiting(url) {
            match self.exchange(reader, url, &request, until) {
                // The server closed it just when it was to be used again.
                Err(e) if is_gone(&e) => {}
                answered => return answered,
            }
        }
        let stream = self.open(url, proxy, until)?;
        let reader = BufReader::with_capacity(64 * 1024, stream);
        self.exchange(reader, url, &request, until)
    }

    fn request(&self, url: &Url, from: u64, proxy: Option<&Proxy>) -> String {
        // What goes through TLS is between us and the server.
        let proxy = proxy.filter(|_| !url.https);
        let target = match proxy {
            Some(_) => url.whole(),
            None => url.path.clone(),
        };
        // An encoded body would have another length and another digest.
        let mut request = format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nUser-Agent: qx-update/{}\r\nAccept: */*\r\n\
             Accept-Encoding: identity\r\n",
            url.authority(),
            env!("CARGO_PKG_VERSION"),
        );
        if from > 0 {
            request.push_str(&format!("Range: bytes={from}-\r\n"));
        }
        if self.once {
            request.push_str("Connection: close\r\n");
        }
        if let Some(proxy) = proxy {
            request.push_str(&proxy.authorization);
        }
        // Never to whom a redirect leads.
        if let Some((base, headers)) = &self.headers
            && base.same_origin(url)
        {
            request.push_str(headers.lines());
        }
        request.push_str("\r\n");
        request
    }

    /// The connection that waits, if it is to the right server and nothing has come since: not its end, and nothing that
    /// could be taken for an answer.
    fn waiting(&self, url: &Url) -> Option<BufReader<Stream>> {
        let mut idle = self.idle.take()?;
        if !idle.url.same_origin(url) || idle.since.elapsed() > MAX_IDLE {
            return None;
        }
        let tcp = &idle.reader.get_mut().socket().tcp;
        tcp.set_nonblocking(true).ok()?;
        let quiet = tcp
            .peek(&mut [0])
            .is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        tcp.set_nonblocking(false).ok()?;
        quiet.then_some(idle.reader)
    }

    fn exchange(
        &self,
        mut reader: BufReader<Stream>,
        url: &Url,
        request: &str,
        until: Option<Instant>,
    ) -> io::Result<(Head, Body<'_>)> {
        let stream = reader.get_mut();
        stream.socket().until = self.head_by(until);
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        let head = read_head(&mut reader)?;
        // From here on a transfer may take hours, if only it does not stall.
        reader.get_mut().socket().until = until;
        let body = Body {
            client: self,
            url: url.clone(),
            reader: Some(reader),
            framing: head.framing,
            keep: head.keep && !self.once,
        };
        Ok((head, body))
    }

    fn head_by(&self, until: Option<Instant>) -> Option<Instant> {
        let head = Instant::now() + self.stall_timeout;
        Some(until.map_or(head, |until| head.min(until)))
    }

    /// A new connection to where the URL leads, through the proxy if there is one.
    fn open(&self, url: &Url, proxy: Option<&Proxy>, until: Option<Instant>) -> io::Result<Stream> {
        let socket = match proxy {
            None => self.connect(url, until)?,
            Some(proxy) => self
                .connect(&proxy.url, until)
                .and_then(|socket| match url.https {
                    true => tunnel(socket, url, proxy),
                    false => Ok(socket),
                })
                .map_err(|e| {
                    io::Error::new(e.kind(), format!("through the proxy {}: {e}", proxy.url))
                })?,
        };
        match url.https {
            true => self.secure(socket, url),
            false => Ok(Stream::Plain(socket)),
        }
    }

    fn connect(&self, url: &Url, until: Option<Instant>) -> io::Result<Socket> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (url.bare_host(), url.port).to_socket_addrs()? {
            let patience = remaining(until, self.connect_timeout)?;
            match TcpStream::connect_timeout(&address, patience) {
                Ok(tcp) => {
                    return Ok(Socket {
                        tcp,
                        stall: self.stall_timeout,
                        until: self.head_by(until),
                    });
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    #[cfg(feature = "https")]
    fn secure(&self, socket: Socket, url: &Url) -> io::Result<Stream> {
        let Some(tls) = &self.tls else {
            return Err(invalid("https is not asked for here"));
        };
        let name = url.bare_host().to_owned();
        let name = rustls::pki_types::ServerName::try_from(name).map_err(invalid)?;
        let config = tls::config(tls.ca_file.as_deref(), tls.clock).map_err(invalid)?;
        let tls = rustls::ClientConnection::new(config.into(), name).map_err(invalid)?;
        Ok(Stream::Tls(Box::new(rustls::StreamOwned::new(tls, socket))))
    }

    #[cfg(not(feature = "https"))]
    fn secure(&self, _: Socket, _: &Url) -> io::Result<Stream> {
        Err(invalid(
            "this build has no TLS, and cannot fetch from https",
        ))
    }
}

/// Has the proxy connect to where the URL leads.
fn tunnel(mut socket: Socket, url: &Url, proxy: &Proxy) -> io::Result<Socket> {
    let (host, port) = (&url.host, url.port);
    let request = format!(
        "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{}\r\n",
        proxy.authorization
    );
    socket.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(socket);
    let head = read_head(&mut reader)?;
    match head.status {
        // In TLS it is the client who speaks first.
        200..=299 if reader.buffer().is_empty() => Ok(reader.into_inner()),
        200..=299 => Err(invalid("something came before anything was asked")),
        status @ (408 | 425 | 429 | 500..) => {
            Err(io::Error::other(format!("it answered {status}")))
        }
        status => Err(invalid(format!("it answered {status}"))),
    }
}

/// Whether a connection ended without an answer.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

/// An answer's body. When it has been read to its end the connection may serve the next request.
pub(super) struct Body<'a> {
    client: &'a Client,
    url: Url,
    reader: Option<BufReader<Stream>>,
    framing: Framing,
    keep: bool,
}

impl Body<'_> {
    /// The address that answered, if it is this machine's own.
    pub(super) fn own_address(&mut self) -> Option<SocketAddr> {
        own_address(&self.reader.as_mut()?.get_mut().socket().tcp)
    }
}

/// The address that a connection leads to, if it leads to this machine itself, by whatever name that was called.
pub fn own_address(connection: &TcpStream) -> Option<SocketAddr> {
    let (peer, local) = (connection.peer_addr().ok()?, connection.local_addr().ok()?);
    (peer.ip().to_canonical().is_loopback() || peer.ip() == local.ip()).then_some(peer)
}

impl Drop for Body<'_> {
    fn drop(&mut self) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        // The page that comes with an error is not waited for, but may be here.
        if let Framing::Length(left) = self.framing
            && left == reader.buffer().len() as u64
        {
            reader.consume(left as usize);
            self.framing = Framing::Done;
        }
        if self.keep && self.framing == Framing::Done && reader.buffer().is_empty() {
            self.client.idle.replace(Some(Idle {
                url: self.url.clone(),
                reader,
                since: Instant::now(),
            }));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// So many bytes are left of the chunk.
    Chunked { left: u64, first: bool },
    /// Until the server closes the connection.
    Close,
    /// Nothing is left.
    Done,
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(reader) = &mut self.reader else {
            return Ok(0);
        };
        if let Framing::Chunked { left: 0, first } = self.framing {
            let left = next_chunk(reader, first)?;
            self.framing = match left {
                0 => Framing::Done,
                _ => Framing::Chunked { left, first: false },
            };
        }
        let left = match &mut self.framing {
            Framing::Length(0) | Framing::Done => return Ok(0),
            Framing::Close => return reader.read(into),
            Framing::Length(left) | Framing::Chunked { left, .. } => left,
        };
        let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let n = reader.read(&mut into[..most])?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the connection was closed {left} bytes too early"),
            ));
        }
        *left -= n as u64;
        Ok(n)
    }
}

/// The length of the next chunk; 0 after the last one.
fn next_chunk(reader: &mut dyn BufRead, first: bool) -> io::Result<u64> {
    let mut limit = HEAD_LIMIT;
    if !first && !read_line(reader, &mut limit)?.is_empty() {
        return Err(invalid("a chunk that is longer than it says"));
    }
    let line = read_line(reader, &mut limit)?;
    let size = line.split(';').next().unwrap_or_default().trim();
    let digits = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
    let size = match u64::from_str_radix(size, 16) {
        Ok(size) if digits => size,
        _ => return Err(invalid("a chunk without a length")),
    };
    if size == 0 {
        while !read_line(reader, &mut limit)?.is_empty() {}
    }
    Ok(size)
}

/// The status line and the headers of an answer.
struct Head {
    status: u16,
    length: Option<u64>,
    range: Option<String>,
    location: Option<String>,
    framing: Framing,
    /// Whether the connection stays open after the body.
    keep: bool,
}

fn read_head(reader: &mut dyn BufRead) -> io::Result<Head> {
    let mut limit = HEAD_LIMIT;
    let mut head = loop {
        let head = read_one_head(reader, &mut limit)?;
        // 1xx announces an answer that is still to come.
        if head.status >= 200 {
            break head;
        }
    };
    if matches!(head.status, 204 | 304) {
        head.framing = Framing::Done;
    }
    Ok(head)
}

/// The number in a status line.
fn status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?
        .get(2..5)
        .filter(|status| status.bytes().all(|b| b.is_ascii_digit()))?
        .parse()
        .ok()
}

fn read_one_head(reader: &mut dyn BufRead, limit: &mut u64) -> io::Result<Head> {
    let line = read_line(reader, limit)?;
    let status = status(&line).ok_or_else(|| invalid("the answer is not HTTP/1"))?;
    let mut head = Head {
        status,
        length: None,
        range: None,
        location: None,
        framing: Framing::Close,
        keep: line.starts_with("HTTP/1.1 "),
    };
    let mut chunked = false;
    loop {
        let line = read_line(reader, limit)?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            return Err(invalid("a header without a colon"));
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                match value.parse() {
                    Ok(length) if digits && head.length.is_none_or(|l| l == length) => {
                        head.length = Some(length);
                    }
                    _ => return Err(invalid("Content-Length is no number, or two")),
                }
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") && !chunked => {
                chunked = true;
            }
            "transfer-encoding" => return Err(invalid("an unknown Transfer-Encoding")),
            "content-encoding" if !value.eq_ignore_ascii_case("identity") => {
                return Err(invalid("the body is encoded, which was not asked for"));
            }
            "content-range" => head.range = Some(value.to_owned()),
            "location" => head.location = Some(value.to_owned()),
            "connection" => {
                let close = |word: &str| word.trim().eq_ignore_ascii_case("close");
                head.keep &= !value.split(',').any(close);
            }
            _ => {}
        }
    }
    head.framing = match (chunked, head.length) {
        (true, Some(_)) => return Err(invalid("both chunks and a Content-Length")),
        (true, None) => Framing::Chunked {
            left: 0,
            first: true,
        },
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Close,
    };
    Ok(head)
}

/// A line without its end; what is not UTF-8 in it is replaced.
fn read_line(reader: &mut dyn BufRead, limit: &mut u64) -> io::Result<String> {
    let mut line = Vec::new();
    let n = reader.take(*limit).read_until(b'\n', &mut line)? as u64;
    *limit -= n;
    if line.pop() != Some(b'\n') {
        return Err(match *limit {
            0 => invalid(format!(
                "the answer's head is longer than {HEAD_LIMIT} bytes"
            )),
            _ => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection was closed within the answer's head",
            ),
        });
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

enum Stream {
    Plain(Socket),
    #[cfg(feature = "https")]
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, Socket>>),
}

impl Stream {
    fn socket(&mut self) -> &mut Socket {
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
struct Socket {
    tcp: TcpStream,
    stall: Duration,
    until: Option<Instant>,
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

fn remaining(until: Option<Instant>, most: Duration) -> io::Result<Duration> {
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

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        for (text, expected) in [
            ("http://h", "http://h/"),
            ("HTTP://h:80/a", "http://h/a"),
            ("https://h:443?q", "https://h/?q"),
            ("http://[::1]:8080/x#y", "http://[::1]:8080/x"),
            ("http://[::1]", "http://[::1]/"),
        ] {
            assert_eq!(Url::parse(text).unwrap().whole(), expected);
        }
        let shown = Url::parse("https://h/x?token=S3CRET").unwrap().to_string();
        assert_eq!(shown, "https://h/x?…");
        for bad in [
            "h",
            "ftp://h",
            "http://",
            "http://user@h/",
            "http://h:x/",
            "http://h:65536/",
            "http://h/a b",
            "http://h/a\r\nX: y",
            "http://[::1",
            "http://é/",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_encoded() {
        let url = Url::parse("http://h/repo/").unwrap();
        assert_eq!(
            url.join("a/1.é+%2F %2G%ü%?#.json%2").to_string(),
            "http://h/repo/a/1.%C3%A9%2B%2F%20%252G%25%C3%BC%25%3F%23.json%252"
        );
    }

    #[test]
    fn redirects_are_resolved_and_never_leave_https() {
        let url = Url::parse("https://h:8443/a/b?q").unwrap();
        for (location, expected) in [
            ("https://other/x", Some("https://other/x")),
            ("//other/x", Some("https://other/x")),
            ("/x", Some("https://h:8443/x")),
            ("x", Some("https://h:8443/a/x")),
            ("http://h/x", None),
            ("file:///etc/passwd", None),
        ] {
            let url = url.redirected(location).ok().map(|u| u.to_string());
            assert_eq!(url.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn heads_that_mislead_are_refused() {
        for head in [
            "HTTP/2 200\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        ] {
            let error = read_head(&mut head.as_bytes()).err().expect(head);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{head}");
        }
        let endless = io::repeat(b'x').take(10 * HEAD_LIMIT);
        let error = read_head(&mut BufReader::new(endless)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let early = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(read_head(&mut early.as_bytes()).unwrap().status, 200);
    }

    #[test]
    fn chunks_are_joined_and_bad_ones_refused() {
        let all = |text: &str| {
            let mut reader = text.as_bytes();
            let mut out = Vec::new();
            let mut first = true;
            loop {
                match next_chunk(&mut reader, first)? {
                    0 => return Ok::<_, io::Error>(out),
                    n => (&mut reader).take(n).read_to_end(&mut out)?,
                };
                first = false;
            }
        };
        assert_eq!(
            all("3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n")
                .unwrap()
                .len(),
            13
        );
        for bad in [
            "",
            "x\r\n",
            "-1\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nab",
            "3\r\nabc\r\n0\r\n",
        ] {
            assert!(all(bad).is_err(), "{bad:?}");
        }
    }
}
