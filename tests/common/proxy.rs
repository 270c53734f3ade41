//! An HTTP proxy that remembers what it was asked.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub struct Proxy {
    /// `HOST:PORT`.
    pub address: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Serves everybody.
    pub fn start() -> Proxy {
        Proxy::demanding("")
    }

    /// Serves those whose request has this line, and answers 407 to others.
    pub fn demanding(line: &'static str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = heads.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let log = log.clone();
                std::thread::spawn(move || {
                    // Either side may hang up at any time.
                    let _ = serve(client, line, &log);
                });
            }
        });
        Proxy { address, heads }
    }

    /// The heads of the requests since this was called last.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap())
    }
}

fn serve(mut client: TcpStream, line: &str, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    log.lock().unwrap().push(head.clone());
    if !line.is_empty() && !head.lines().any(|l| l == line) {
        return client.write_all(b"HTTP/1.1 407 Who?\r\nContent-Length: 0\r\n\r\n");
    }
    let (first, headers) = head.split_once("\r\n").unwrap();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut server = if method == "CONNECT" {
        let server = TcpStream::connect(target)?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        server
    } else {
        let rest = target.strip_prefix("http://").expect("an absolute form");
        let (host, path) = rest.split_at(rest.find('/').unwrap());
        let mut server = TcpStream::connect(host)?;
        write!(server, "{method} {path} HTTP/1.1\r\n{headers}")?;
        server
    };
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)
}
