//! A small static web server for a repository: GET and HEAD, single ranges, one request a connection. For
//! testing; any other server will do as well.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use qx_release::error::{Context, Result};

/// Connections served at once; more are turned away.
const MAX_CONNECTIONS: usize = 64;
/// The longest request that is read, in bytes.
const MAX_REQUEST: u64 = 16 * 1024;
/// How long a client may keep a connection waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the files below a directory on a listener; never returns but with an error.
pub fn serve(dir: &Path, listener: &TcpListener) -> Result<()> {
    let open = dir
        .canonicalize()
        .doing(|| format!("opening {}", dir.display()))?;
    let root = Arc::new(open);
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or a client that has gone already.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let root = Arc::clone(&root);
        let slot = Slot(Arc::clone(&busy));
        let full = slot.0.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS;
        if full {
            let _ = turn_away(stream);
            continue;
        }
        // Without memory for another thread the client is left alone, and the others go on.
        let _ = std::thread::Builder::new().spawn(move || {
            // One that goes away in the middle is its own affair.
            let _ = answer(&root, stream);
            drop(slot);
        });
    }
}

/// One connection's place; free again whatever becomes of its thread.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn turn_away(stream: TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    head(&stream, "503 Service Unavailable", 0, "")
}

fn answer(root: &PathBuf, stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Some(request) = Request::read(&stream)? else {
        return head(&stream, "400 Bad Request", 0, "");
    };
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return head(&stream, "405 Method Not Allowed", 0, "Allow: GET, HEAD\r\n");
    }
    let Some((mut file, length)) = request.path.as_deref().and_then(|path| open(root, path)) else {
        return head(&stream, "404 Not Found", 0, "");
    };
    let (first, end) = match request.range.as_deref().and_then(|r| range(r, length)) {
        None => {
            head(&stream, "200 OK", length, "")?;
            (0, length)
        }
        Some(None) => {
            let total = format!("Content-Range: bytes */{length}\r\n");
            return head(&stream, "416 Range Not Satisfiable", 0, &total);
        }
        Some(Some((first, end))) => {
            let place = format!("Content-Range: bytes {first}-{}/{length}\r\n", end - 1);
            head(&stream, "206 Partial Content", end - first, &place)?;
            (first, end)
        }
    };
    if request.method == "GET" {
        file.seek(SeekFrom::Start(first))?;
        io::copy(&mut file.take(end - first), &mut &stream)?;
    }
    Ok(())
}

struct Request {
    method: String,
    /// Decoded; `None` if it could name nothing here.
    path: Option<String>,
    range: Option<String>,
}

impl Request {
    fn read(stream: &TcpStream) -> io::Result<Option<Request>> {
        let mut lines = BufReader::new(stream.take(MAX_REQUEST)).lines();
        let Some(first) = lines.next().transpose()? else {
            return Ok(None);
        };
        let mut words = first.split(' ');
        let (Some(method), Some(target), Some(version)) =
            (words.next(), words.next(), words.next())
        else {
            return Ok(None);
        };
        if !version.starts_with("HTTP/1.") {
            return Ok(None);
        }
        let (mut range, mut conditional) = (None, false);
        loop {
            let Some(line) = lines.next().transpose()? else {
                return Ok(None);
            };
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else {
                return Ok(None);
            };
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.trim().to_owned()),
                "if-range" => conditional = true,
                _ => {}
            }
        }
        Ok(Some(Request {
            method: method.to_owned(),
            path: decode(target.split('?').next().unwrap_or(target)),
            // There is no validator here that could match.
            range: range.filter(|_| !conditional),
        }))
    }
}

fn head(mut stream: &TcpStream, status: &str, length: u64, more: &str) -> io::Result<()> {
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nAccept-Ranges: bytes\r\n{more}Connection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes())
}

/// Opens a regular file below the root. The kernel keeps the way there below it, links included.
fn open(root: &PathBuf, path: &str) -> Option<(File, u64)> {
    let hidden = |segment: &str| segment.is_empty() || segment.starts_with('.');
    let relative = path.strip_prefix('/')?;
    // What is hidden is the publisher's, not the readers'.
    if relative.split('/').any(hidden) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let dir = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file: File = rustix::fs::openat2(dir, relative, flags, Mode::empty(), resolve)
        .ok()?
        .into();
    let metadata = file.metadata().ok()?;
    metadata.is_file().then_some((file, metadata.len()))
}

/// What a `Range` header asks of a file: `None` if it is to be ignored, `Some(None)` if it cannot be satisfied,
/// else the first byte and the one after the last.
fn range(header: &str, length: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let count = number(last)?.min(length);
        return Some((count > 0).then(|| (length - count, length)));
    }
    let first = number(first)?;
    let end = match last {
        "" => length,
        _ => {
            let last = number(last)?;
            if last < first {
                return None;
            }
            last.saturating_add(1).min(length)
        }
    };
    Some((first < length).then_some((first, end)))
}

fn decode(target: &str) -> Option<String> {
    let mut bytes = target.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                qx_release::trust::key::unhex(digits)?.pop()?
            }
            _ => byte,
        });
    }
    String::from_utf8(out)
        .ok()
        .filter(|path| !path.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        for (header, expected) in [
            ("bytes=0-", Some(Some((0, 10)))),
            ("bytes=0-0", Some(Some((0, 1)))),
            ("bytes=3-5", Some(Some((3, 6)))),
            ("bytes=9-99", Some(Some((9, 10)))),
            ("bytes=9-99999999999999999999", Some(Some((9, 10)))),
            ("bytes=10-", Some(None)),
            ("bytes=-4", Some(Some((6, 10)))),
            ("bytes=-40", Some(Some((0, 10)))),
            ("bytes=-0", Some(None)),
            // Malformed, or several: the whole is sent.
            ("bytes=5-3", None),
            ("bytes=0-1,3-4", None),
            ("bytes=-", None),
            ("bytes=+1-", None),
            ("bytes=x-", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(range(header, 10), expected, "{header}");
        }
        assert_eq!(range("bytes=0-", 0), Some(None));
    }

    #[test]
    fn targets_are_decoded() {
        assert_eq!(decode("/a%20b").as_deref(), Some("/a b"));
        for bad in ["/%", "/%2", "/%zz", "/%00", "/%ff", "/%é"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
