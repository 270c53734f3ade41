//! An answer of a web server: its head, and its body by length, in chunks, or to the end of the connection. Every length has a
//! limit.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::time::Instant;

use super::socket::{Stream, own_address};
use qx_release::url::Url;

/// The status line and the headers of an answer are at most this long, in bytes.
const HEAD_LIMIT: u64 = 64 * 1024;
const MAX_HEADERS: usize = 256;

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
        own_address(self.reader.as_mut()?.get_mut().socket().tcp())
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
    if !first && !is_empty(&read_line(reader, &mut limit)?) {
        return Err(invalid("a chunk is longer than its declared length"));
    }
    let mut line = read_line(reader, &mut limit)?;
    // Some end their lines with a mere newline.
    line.truncate(line.trim_ascii_end().len());
    line.extend_from_slice(b"\r\n");
    let size = match httparse::parse_chunk_size(&line) {
        Ok(httparse::Status::Complete((_, size))) => size,
        _ => return Err(invalid("a chunk has no valid length")),
    };
    if size == 0 {
        while !is_empty(&read_line(reader, &mut limit)?) {}
    }
    Ok(size)
}

/// The status line and the headers of an answer.
pub(super) struct Head {
    pub status: u16,
    pub length: Option<u64>,
    pub range: Option<String>,
    pub location: Option<String>,
    /// Whether the body is said to be compressed with gzip; many say so of what is a gzip file.
    pub gzip: bool,
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

fn read_one_head(reader: &mut dyn BufRead, limit: &mut u64) -> io::Result<Head> {
    let mut bytes = Vec::new();
    loop {
        let line = read_line(reader, limit)?;
        bytes.extend_from_slice(&line);
        if is_empty(&line) {
            break;
        }
    }
    let mut headers = vec![httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    // What servers and the boxes in front of them do wrong, and what says nothing about the file.
    let mut lenient = httparse::ParserConfig::default();
    lenient
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    let parsed = lenient.parse_response(&mut answer, &bytes);
    let status = match (parsed, answer.code) {
        (Ok(httparse::Status::Complete(_)), Some(status)) => status,
        (Err(httparse::Error::TooManyHeaders), _) => {
            return Err(invalid("the answer has too many headers"));
        }
        _ => return Err(invalid("the answer is not HTTP/1")),
    };
    let mut head = Head {
        status,
        length: None,
        range: None,
        location: None,
        gzip: false,
        framing: Framing::Close,
        keep: answer.version == Some(1),
    };
    for header in answer.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        head.note(&header.name.to_ascii_lowercase(), value.trim())?;
    }
    head.framing = match (head.framing, head.length) {
        (chunked @ Framing::Chunked { .. }, length) => {
            // The chunks count; whoever says both is not asked for more over this connection (RFC 9112, 6.3).
            head.keep &= length.is_none();
            head.length = None;
            chunked
        }
        (_, Some(length)) => Framing::Length(length),
        (_, None) => Framing::Close,
    };
    Ok(head)
}

impl Head {
    /// Takes a header into account; its name is in lower case.
    fn note(&mut self, name: &str, value: &str) -> io::Result<()> {
        let mut words = value.split(',').map(str::trim);
        match name {
            "content-length" => {
                for word in words {
                    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
                    match word.parse() {
                        Ok(length) if digits && self.length.is_none_or(|l| l == length) => {
                            self.length = Some(length);
                        }
                        _ => return Err(invalid("Content-Length is invalid or ambiguous")),
                    }
                }
            }
            "transfer-encoding" => {
                for word in words.filter(|word| !word.eq_ignore_ascii_case("identity")) {
                    let again = matches!(self.framing, Framing::Chunked { .. });
                    if !word.eq_ignore_ascii_case("chunked") || again {
                        return Err(invalid("unsupported Transfer-Encoding"));
                    }
                    self.framing = Framing::Chunked {
                        left: 0,
                        first: true,
                    };
                }
            }
            "content-encoding" => {
                let gzip = ["gzip", "x-gzip"];
                self.gzip |= words.any(|word| gzip.contains(&word.to_ascii_lowercase().as_str()));
            }
            "content-range" => self.range = Some(value.to_owned()),
            "location" => self.location = Some(value.to_owned()),
            "connection" => self.keep &= !words.any(|word| word.eq_ignore_ascii_case("close")),
            _ => {}
        }
        Ok(())
    }
}

/// What a `Content-Range` says: the first byte, the last one, and how many there are, if it tells (RFC 9110, 14.4).
pub(super) fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

fn is_empty(line: &[u8]) -> bool {
    matches!(line, b"\r\n" | b"\n")
}

/// A line with its end.
fn read_line(reader: &mut dyn BufRead, limit: &mut u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let n = reader.take(*limit).read_until(b'\n', &mut line)? as u64;
    *limit -= n;
    if line.last() == Some(&b'\n') {
        return Ok(line);
    }
    Err(match *limit {
        0 => invalid(format!(
            "the answer's head is longer than {HEAD_LIMIT} bytes"
        )),
        _ => io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed within the answer's head",
        ),
    })
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
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1,\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
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

    /// What servers do that says nothing about the file: each body has 5 bytes.
    #[test]
    fn odd_heads_are_understood() {
        let length = Framing::Length(5);
        let chunked = Framing::Chunked {
            left: 0,
            first: true,
        };
        for (headers, framing, keep) in [
            ("Content-Length: 5", length, true),
            ("Content-Length: 5\r\nContent-Length: 5", length, true),
            ("Content-Length: 5, 5", length, true),
            ("content-length:5\r\nContent-Encoding: gzip", length, true),
            ("Content-Length: 5\r\nContent-Encoding:", length, true),
            (
                "Content-Length: 5\r\nTransfer-Encoding: identity",
                length,
                true,
            ),
            (
                "Content-Length: 7\r\nTransfer-Encoding: Chunked",
                chunked,
                false,
            ),
            ("Transfer-Encoding: identity, chunked", chunked, true),
            ("X-Folded: a\r\n  b\r\nContent-Length: 5", length, true),
            ("no colon\r\nContent-Length: 5", length, true),
            ("X-Name : x\r\nContent-Length: 5", length, true),
            ("X-Name: \u{e9}\r\nContent-Length: 5", length, true),
            (
                "Connection: Keep-Alive, Close\r\nContent-Length: 5",
                length,
                false,
            ),
            ("Server: x", Framing::Close, true),
        ] {
            for head in [
                format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n"),
                format!("HTTP/1.1  200\r\n{headers}\r\n\r\n"),
                format!("HTTP/1.1 200 OK\n{}\n\n", headers.replace('\r', "")),
            ] {
                let found =
                    read_head(&mut head.as_bytes()).unwrap_or_else(|e| panic!("{head}: {e}"));
                assert_eq!(found.status, 200, "{head}");
                assert!(found.framing == framing, "{head}");
                assert_eq!(found.keep, keep, "{head}");
            }
        }
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
