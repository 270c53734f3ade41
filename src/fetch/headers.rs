//! Extra headers for requests to a source, tokens mostly. They are read from a file of their own, and shown to nobody.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::json;

/// The file is at most this long, in bytes.
const MAX_BYTES: u64 = 16 * 1024;
/// Headers that every request has already.
const OURS: [&str; 10] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "proxy-authorization",
    "range",
    "te",
    "transfer-encoding",
    "user-agent",
];

/// Headers, as they stand in a request.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Headers(String);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Headers(not shown)")
    }
}

impl Headers {
    /// The lines of a request's head, each with its end.
    pub fn lines(&self) -> &str {
        &self.0
    }

    /// Reads a file of `Name: value` lines; empty lines and those that begin with `#` do not count.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if others than its owner and group have any right to it, if it is longer than 16 KiB, or if a line
    /// is no header, or one that a request has already. Lines are named by their number.
    pub fn read(path: &Path) -> Result<Headers> {
        let doing = || format!("reading the headers in {}", path.display());
        let refused = |why: String| Error::with(ErrorKind::Usage, format!("{}: {why}", doing()));
        let usage = |e: Error| e.of(ErrorKind::Usage);
        let file = File::open(path).doing(doing).map_err(usage)?;
        let metadata = file.metadata().doing(doing).map_err(usage)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if !metadata.is_file() {
            return Err(refused("it is not a regular file".into()));
        }
        if mode & 0o007 != 0 {
            return Err(refused(format!(
                "its mode is {mode:04o}: others can read the secrets in it (fix it with chmod o=)"
            )));
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut text)
            .doing(doing)
            .map_err(usage)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(refused(format!("it is longer than {MAX_BYTES} bytes")));
        }
        parse(&text).map_err(refused)
    }
}

/// The error is one sentence that quotes nothing of the line.
fn parse(text: &[u8]) -> Result<Headers, String> {
    let mut lines = String::new();
    let text = json::without_mark(text);
    for (number, line) in text.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let bad = |why: &str| Err(format!("line {} {why}", number + 1));
        let Ok(line) = std::str::from_utf8(line) else {
            return bad("is not ASCII");
        };
        let Some((name, value)) = line.split_once(':') else {
            return bad("has no colon");
        };
        let value = value.trim();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return bad("has no valid header name before the colon");
        }
        if !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return bad("contains a character that is not allowed in a header");
        }
        if OURS.contains(&name.to_ascii_lowercase().as_str()) {
            return bad("sets a header that qx-update sets itself");
        }
        lines.push_str(&format!("{name}: {value}\r\n"));
    }
    Ok(Headers(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_headers() {
        let text = b"# a comment\n\nAuthorization:  Bearer a:b \r\nX-Fleet: north, 7\n";
        assert_eq!(
            parse(text).unwrap().lines(),
            "Authorization: Bearer a:b\r\nX-Fleet: north, 7\r\n"
        );
        assert_eq!(parse(b"").unwrap().lines(), "");
        let marked = parse("\u{feff}A: b".as_bytes()).unwrap();
        assert_eq!(marked.lines(), "A: b\r\n");
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_only() {
        for bad in [
            "secret",
            ": secret",
            "a b: secret",
            "X: secr\u{e9}t",
            "X: secret\rY: secret",
            "X: secret\0",
            "host: secret",
            "Range: secret",
            "Proxy-Authorization: secret",
        ] {
            let error = parse(format!("A: b\n\n{bad}\n").as_bytes()).expect_err(bad);
            assert!(error.starts_with("line 3 "), "{error}");
            assert!(!error.contains("secr"), "{error}");
        }
        let shown = format!("{:?}", parse(b"A: secret").unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }
}
