//! The part of HTTP/1.1 that static files need: GET, ranges, redirects, proxies, and a connection that is used again for
//! the next file. Every length has a limit and every wait a time-out; bodies are streamed.
//!
//! Errors of kind [`io::ErrorKind::InvalidData`] are final: the same request would end in the same way.

use std::cell::RefCell;
use std::io::{self, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::answer::{Body, Head, Idle, invalid, read_head};
use super::headers::Headers;
use super::proxy::{Proxies, Proxy};
use super::socket::{Pace, Socket, Stream, remaining};
#[cfg(feature = "https")]
use super::tls;
use qx_release::trust::clock::Clock;
use qx_release::url::Url;

const MAX_REDIRECTS: usize = 5;
/// A connection that was idle for this long is not reused: the server, or something in between, may have dropped it.
const MAX_IDLE: Duration = Duration::from_secs(5);

/// How requests are made.
pub(super) struct Client {
    /// Time limit for connecting.
    pub connect_timeout: Duration,
    /// How slow a transfer may be; the whole response head must arrive within its `stall`.
    pub pace: Pace,
    /// Each request for itself: no redirect is followed, and no connection is kept.
    pub once: bool,
    /// For `https`; absent where that is not asked for.
    #[cfg_attr(not(feature = "https"), expect(dead_code))]
    pub tls: Option<Tls>,
    /// Which requests go through a proxy.
    pub proxies: Proxies,
    /// Extra headers, and the only server that gets them.
    pub headers: Option<(Url, Headers)>,
    /// A connection that waits for its next request.
    pub idle: RefCell<Option<Idle>>,
}

/// Which authorities TLS trusts, and at what time.
#[cfg_attr(not(feature = "https"), expect(dead_code))]
pub(super) struct Tls {
    /// PEM file with the certificate authorities, if not the system's.
    pub ca_file: Option<PathBuf>,
    /// The time at which certificates must be valid.
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
    /// Whether `Content-Encoding` says that the body is compressed with gzip. It may just be a gzip file.
    pub gzip: bool,
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
                    gzip: head.gzip,
                    body,
                });
            }
            let Some(location) = &head.location else {
                return Err(invalid("a redirect has no Location"));
            };
            url = url
                .redirected(location)
                .map_err(|why| invalid(format!("refusing a redirect: {why}")))?;
        }
        Err(invalid(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn get_once(
        &self,
        url: &Url,
        from: u64,
        until: Option<Instant>,
    ) -> io::Result<(Head, Body<'_>)> {
        let proxy = self.proxies.of(url).map_err(invalid)?;
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
        let tcp = idle.reader.get_mut().socket().tcp();
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
        stream.socket().next(self.head_by(until));
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        let head = read_head(&mut reader)?;
        // From here on a transfer may take hours, if only it does not stall.
        reader.get_mut().socket().next(until);
        let body = Body {
            idle: &self.idle,
            url: url.clone(),
            reader: Some(reader),
            framing: head.framing,
            keep: head.keep && !self.once,
        };
        Ok((head, body))
    }

    fn head_by(&self, until: Option<Instant>) -> Option<Instant> {
        let head = Instant::now() + self.pace.stall;
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
        let host = url.bare_host();
        let addresses = (host, url.port).to_socket_addrs().map_err(|e| {
            let what = format!("cannot resolve {host}: {e} (check the name, and /etc/resolv.conf)");
            io::Error::new(e.kind(), what)
        })?;
        for address in addresses {
            let patience = remaining(until, self.connect_timeout)?;
            match TcpStream::connect_timeout(&address, patience) {
                Ok(tcp) => {
                    return Ok(Socket::new(tcp, self.pace, self.head_by(until)));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    #[cfg(feature = "https")]
    fn secure(&self, socket: Socket, url: &Url) -> io::Result<Stream> {
        let Some(tls) = &self.tls else {
            return Err(invalid("https is not supported here"));
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
            "this build has no TLS support and cannot fetch https URLs",
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
        200..=299 => Err(invalid("it sent data before the TLS handshake")),
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
