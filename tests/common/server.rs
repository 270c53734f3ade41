//! A web server for a directory, which remembers what it was asked and misbehaves on request.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One request: its path, the first byte of its range, and its headers as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    pub from: Option<usize>,
    pub headers: Vec<String>,
}

impl Request {
    pub fn is_artifact(&self) -> bool {
        self.path.ends_with(".tar.gz")
    }
}

/// How a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// As it should be.
    Well,
    /// So many bytes of the body, then the connection is closed.
    Cut(usize),
    /// The first half of the body, and nothing more while the connection lives.
    Stall,
    /// The first half of the body is all there is; the length says so too.
    Truncated,
    /// The length says less than is sent, by so much.
    Short(usize),
    /// The body, and after it zeros without end.
    Endless,
    /// To this path, or URL.
    Redirect(String),
    /// Only this status.
    Status(u16),
    /// So many bytes every 20 ms.
    Slow(usize),
    /// A byte a second.
    Drip,
}

pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// How a request is answered, chosen anew for each.
type Rule = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// What a connection becomes before it is read: itself, or itself within TLS.
type Wrap = Box<dyn Fn(TcpStream) -> Box<dyn Connection> + Send + Sync>;

pub trait Connection: Read + Write {}
impl<T: Read + Write> Connection for T {}

impl Server {
    /// Serves the directory, well.
    pub fn start(dir: &Path) -> Server {
        Server::answering(dir, |_| Answer::Well)
    }

    /// Serves it by that rule.
    pub fn answering(
        dir: &Path,
        rule: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Server {
        Server::run(
            dir,
            "http",
            Box::new(rule),
            Box::new(|stream| Box::new(stream)),
        )
    }

    /// Serves it over TLS, for the name `localhost`; the certificate and its key are DER.
    pub fn tls(dir: &Path, certificate: Vec<u8>, key: Vec<u8>) -> Server {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate)],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
        )
        .unwrap();
        let config = Arc::new(config);
        let wrap = move |stream| -> Box<dyn Connection> {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            Box::new(rustls::StreamOwned::new(connection, stream))
        };
        Server::run(dir, "https", Box::new(|_| Answer::Well), Box::new(wrap))
    }

    fn run(dir: &Path, scheme: &str, rule: Rule, wrap: Wrap) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = if scheme == "https" {
            "localhost"
        } else {
            "127.0.0.1"
        };
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, dir) = (requests.clone(), dir.to_owned());
        let (rule, wrap) = (Arc::new(rule), Arc::new(wrap));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, dir) = (log.clone(), dir.clone());
                let (rule, wrap) = (rule.clone(), wrap.clone());
                std::thread::spawn(move || {
                    let mut connection = wrap(stream);
                    if let Some(request) = read_request(&mut connection) {
                        log.lock().unwrap().push(request.clone());
                        let answer = rule(&request);
                        // The client may hang up at any time.
                        let _ = respond(&mut connection, &dir, &request, &answer);
                        let _ = connection.flush();
                    }
                });
            }
        });
        Server {
            url: format!("{scheme}://{host}:{port}"),
            requests,
        }
    }

    /// What was asked since this was called last.
    pub fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// The artifacts that were asked for since the last call, by component.
    pub fn artifacts(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .asked()
            .into_iter()
            .filter(Request::is_artifact)
            .map(|request| component_of(&request.path))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Of `…/HASH.NAME-SHA256.tar.gz`, the name.
fn component_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap();
    let file = file.split_once('.').map_or(file, |(_, name)| name);
    file.rsplit_once('-')
        .map_or(file, |(name, _)| name)
        .to_owned()
}

fn read_request(connection: &mut dyn Connection) -> Option<Request> {
    let mut lines = BufReader::new(connection).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut from = None;
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.split('-').next()?.parse().ok();
        }
        headers.push(line);
    }
    Some(Request {
        path,
        from,
        headers,
    })
}

fn respond(
    to: &mut dyn Connection,
    dir: &Path,
    request: &Request,
    answer: &Answer,
) -> std::io::Result<()> {
    match answer {
        Answer::Redirect(path) => {
            return write!(
                to,
                "HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        Answer::Status(code) => {
            return write!(
                to,
                "HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        _ => (),
    }
    let file: PathBuf = dir.join(request.path.trim_start_matches('/').replace("%2B", "+"));
    let Ok(mut body) = fs::read(file) else {
        return write!(
            to,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    if *answer == Answer::Truncated {
        body.truncate(body.len() / 2);
    }
    let whole = body.len();
    let from = request.from.unwrap_or(0);
    if from > whole || (request.from.is_some() && from == whole) {
        return write!(
            to,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{whole}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
    }
    let body = &body[from..];
    if request.from.is_some() {
        write!(
            to,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{whole}\r\n",
            whole - 1
        )?;
    } else {
        write!(to, "HTTP/1.1 200 OK\r\n")?;
    }
    let length = match answer {
        Answer::Short(less) => Some(body.len().saturating_sub(*less)),
        Answer::Endless => None,
        _ => Some(body.len()),
    };
    if let Some(length) = length {
        write!(to, "Content-Length: {length}\r\n")?;
    }
    write!(to, "Connection: close\r\n\r\n")?;
    match answer {
        Answer::Cut(after) => to.write_all(&body[..body.len().min(*after)]),
        Answer::Stall => {
            to.write_all(&body[..body.len() / 2])?;
            to.flush()?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Answer::Endless => {
            to.write_all(body)?;
            loop {
                to.write_all(&[0; 65_536])?;
            }
        }
        Answer::Drip => {
            for byte in body {
                to.write_all(&[*byte])?;
                to.flush()?;
                std::thread::sleep(Duration::from_secs(1));
            }
            Ok(())
        }
        Answer::Slow(bytes) => {
            for part in body.chunks(*bytes) {
                to.write_all(part)?;
                to.flush()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        _ => to.write_all(body),
    }
}
