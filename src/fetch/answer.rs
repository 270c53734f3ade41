//! An answer of a web server: its head, and its body by length, in chunks, or to the end of the connection. Every length has a
//! limit.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::time::Instant;

use super::socket::{Stream, own_address};
use super::url::Url;

/// The status line and the headers of an answer are at most this long, in bytes.
const HEAD_LIMIT: u64 = 64 * 1024;

/// A connection without a request.
pub(super) struct Idle {
    pub url: Url,
    pub reader: BufReader<Stream>,
    pub since: Instant,
}

/// An answer's body. When it has been read to its end the connection may serve the next request.
pub(super) struct Body<'a> {
    pub idle: &'a RefCell<Option<Idle>>,
    pub url: Url,
    pub reader: Option<BufReader<Stream>>,
    pub framing: Framing,
    pub keep: bool,
}

impl Body<'_> {
    /// The address that answered, if it is this machine's own.
    pub(super) fn own_address(&mut self) -> Option<SocketAddr> {
        own_address(&self.reader.as_mut()?.get_mut().socket().tcp)
    }
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
            self.idle.replace(Some(Idle {
                url: self.url.clone(),
                reader,
                since: Instant::now(),
            }));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
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
                format!("the connection was closed {left} bytes early"),
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
        return Err(invalid("a chunk is longer than its declared length"));
    }
    let line = read_line(reader, &mut limit)?;
    let size = line.split(';').next().unwrap_or_default().trim();
    let digits = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
    let size = match u64::from_str_radix(size, 16) {
        Ok(size) if digits => size,
        _ => return Err(invalid("a chunk has no valid length")),
    };
    if size == 0 {
        while !read_line(reader, &mut limit)?.is_empty() {}
    }
    Ok(size)
}

/// The status line and the headers of an answer.
pub(super) struct Head {
    pub status: u16,
    pub length: Option<u64>,
    pub range: Option<String>,
    pub location: Option<String>,
    pub framing: Framing,
    /// Whether the connection stays open after the body.
    pub keep: bool,
}

pub(super) fn read_head(reader: &mut dyn BufRead) -> io::Result<Head> {
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
            return Err(invalid("a header has no colon"));
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                match value.parse() {
                    Ok(length) if digits && head.length.is_none_or(|l| l == length) => {
                        head.length = Some(length);
                    }
                    _ => return Err(invalid("Content-Length is invalid or ambiguous")),
                }
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") && !chunked => {
                chunked = true;
            }
            "transfer-encoding" => return Err(invalid("unsupported Transfer-Encoding")),
            "content-encoding" if !value.eq_ignore_ascii_case("identity") => {
                return Err(invalid("unsupported Content-Encoding"));
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
        (true, Some(_)) => {
            return Err(invalid("both chunked Transfer-Encoding and Content-Length"));
        }
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

pub(super) fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

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
