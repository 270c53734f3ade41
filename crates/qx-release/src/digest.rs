//! SHA-256 digests, and the digest of a directory tree.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::text;

/// A SHA-256 digest; written as 64 lower-case hexadecimal digits.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of everything that a reader yields, and how many bytes that was. Constant memory.
    pub fn of_reader(mut reader: impl Read) -> io::Result<(Digest, u64)> {
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok((hasher.digest(), hasher.bytes())),
                Ok(n) => hasher.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        let bad = || {
            format!(
                "'{}' is not a SHA-256 digest (64 hexadecimal digits)",
                text::name(text)
            )
        };
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Digest(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Digest, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// Computes a digest piece by piece, and counts.
#[derive(Default, Clone)]
pub struct Hasher {
    inner: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.inner.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many bytes were added so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest of what was added so far.
    pub fn digest(&self) -> Digest {
        Digest(self.inner.clone().finalize().into())
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One entry of a tree, relative to the tree's own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeEntry {
    /// A directory (mode bits 0o777).
    Directory(u32),
    /// A file: mode bits, length in bytes, digest.
    File(u32, u64, Digest),
    /// A symbolic link and its target.
    Link(String),
}

/// The digest of a directory tree: of one line an entry, sorted by path bytes, the tree's own directory
/// (path `.`) included. `docs/formats.md` gives the lines. Owner and times do not count.
#[derive(Default)]
pub struct TreeDigest(std::collections::BTreeMap<String, TreeEntry>);

impl TreeDigest {
    /// Adds an entry; `false` if the path was there before.
    pub fn add(&mut self, path: &str, entry: TreeEntry) -> bool {
        self.0.insert(path.to_owned(), entry).is_none()
    }

    /// Digest, sum of the files' bytes, and number of entries.
    pub fn finish(&self) -> (Digest, u64, u64) {
        let mut hasher = Hasher::default();
        let mut bytes = 0;
        for (path, entry) in &self.0 {
            let line = match entry {
                TreeEntry::Directory(mode) => format!("d {mode:o} {path}\n"),
                TreeEntry::File(mode, size, digest) => {
                    bytes += size;
                    format!("f {mode:o} {size} {digest} {path}\n")
                }
                TreeEntry::Link(target) => format!("l {target}\t{path}\n"),
            };
            hasher.update(line.as_bytes());
        }
        (hasher.digest(), bytes, self.0.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digest() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Digest::of_reader(&b""[..]).unwrap(), (Digest::of(b""), 0));
    }

    #[test]
    fn malformed_digests_are_refused() {
        for bad in ["", "12", &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tree_digest_does_not_depend_on_the_order_of_entries() {
        let entries = [
            (".", TreeEntry::Directory(0o755)),
            ("a", TreeEntry::File(0o644, 3, Digest::of(b"abc"))),
            ("b", TreeEntry::Link("a".into())),
        ];
        let mut forward = TreeDigest::default();
        let mut backward = TreeDigest::default();
        for (path, entry) in &entries {
            assert!(forward.add(path, entry.clone()));
        }
        for (path, entry) in entries.iter().rev() {
            assert!(backward.add(path, entry.clone()));
        }
        assert_eq!(forward.finish(), backward.finish());
        assert_eq!(forward.finish().1, 3);
        assert!(!forward.add("a", TreeEntry::Directory(0o755)));
    }
}
