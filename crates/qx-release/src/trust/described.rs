//! What metadata say about a file, and whether bytes are that file.

use ed25519_compact::sha512;

use serde_json::Value;

use super::Error;
use super::key::{hex, unhex};
use crate::digest::Digest;
use crate::json;
use crate::text;

/// The member of a target's `custom` that says why its publisher has taken it back.
pub const WITHDRAWN: &str = "withdrawn";
/// How much of the reason is kept, in characters.
const MAX_REASON: usize = 500;

/// What metadata say about other metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaFile {
    /// The version it must have.
    pub version: u64,
    /// The length in bytes, where given.
    pub length: Option<u64>,
    /// The digests, where given.
    pub hashes: Option<Box<Hashes>>,
}

/// A target's length and SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetFile {
    /// Bytes.
    pub length: u64,
    /// The digest of its bytes.
    pub sha256: Digest,
}

/// What targets metadata say about a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetInfo {
    /// Bytes.
    pub length: u64,
    /// The digests of its bytes.
    pub hashes: Hashes,
    /// Why its publisher has taken it back, if so: its `custom.withdrawn`.
    pub withdrawn: Option<String>,
}

/// Digests of the supported kinds. If there is none, every check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashes {
    /// SHA-256.
    pub sha256: Option<Digest>,
    /// SHA-512.
    pub sha512: Option<[u8; 64]>,
}

impl MetaFile {
    /// Checks length and digest, where they are given.
    pub fn check(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        check_length(file, bytes, self.length)?;
        match &self.hashes {
            Some(hashes) => hashes.check(file, bytes),
            None => Ok(()),
        }
    }

    pub(super) fn parse(text: &str) -> Result<MetaFile, String> {
        let [version, length, hashes] = json::fields(text, ["version", "length", "hashes"])?;
        let version = json::integer(version, "version")?;
        if version == 0 {
            return Err("version must be at least 1".into());
        }
        let length = length.map(|_| json::integer(length, "length"));
        let hashes = hashes.map(Hashes::parse).transpose()?;
        // Digests that are all of unknown kinds would otherwise pass as no digest at all.
        if hashes.is_some_and(|hashes| hashes.is_empty()) {
            return Err("hashes contain neither sha256 nor sha512".into());
        }
        Ok(MetaFile {
            version,
            length: length.transpose()?,
            hashes: hashes.map(Box::new),
        })
    }
}

impl TargetFile {
    /// Checks length and digest.
    pub fn check(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        TargetInfo::from(*self).check(file, bytes)
    }
}

impl From<TargetFile> for TargetInfo {
    fn from(file: TargetFile) -> TargetInfo {
        TargetInfo {
            length: file.length,
            hashes: Hashes {
                sha256: Some(file.sha256),
                sha512: None,
            },
            withdrawn: None,
        }
    }
}

/// Why a target was taken back, by its `custom`. Whatever else is in there is somebody else's.
pub fn withdrawn(custom: &Value) -> Option<String> {
    match custom.get(WITHDRAWN)? {
        Value::Null | Value::Bool(false) => None,
        Value::String(reason) => Some(text::clean(reason, MAX_REASON)),
        _ => Some(String::new()),
    }
}

impl TargetInfo {
    /// Checks length and digests; fails if there is no digest of a supported kind.
    pub fn check(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        check_length(file, bytes, Some(self.length))?;
        self.hashes.check(file, bytes)
    }

    /// With its SHA-256, if it has one.
    pub fn file(&self) -> Option<TargetFile> {
        self.hashes.sha256.map(|sha256| TargetFile {
            length: self.length,
            sha256,
        })
    }

    pub(super) fn parse(text: &str) -> Result<TargetInfo, String> {
        let [length, hashes, custom] = json::fields(text, ["length", "hashes", "custom"])?;
        Ok(TargetInfo {
            length: json::integer(length, "length")?,
            hashes: Hashes::parse(json::there(hashes, "hashes")?)?,
            withdrawn: custom.and_then(|custom| withdrawn(&serde_json::from_str(custom).ok()?)),
        })
    }
}

impl Hashes {
    /// Whether none is of a known kind.
    pub fn is_empty(&self) -> bool {
        self.sha256.is_none() && self.sha512.is_none()
    }

    /// The one that a file's name carries with consistent snapshots: SHA-256, where there is one.
    pub fn name(&self) -> Option<String> {
        let sha256 = self.sha256.map(|digest| digest.to_string());
        sha256.or_else(|| self.sha512.map(|digest| hex(&digest)))
    }

    fn check(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        let tampered = |why| Error::Tampered {
            file: file.to_owned(),
            why,
        };
        if self.is_empty() {
            return Err(tampered(
                "the metadata give no digest of a supported kind".into(),
            ));
        }
        if let Some(expected) = self.sha256
            && Digest::of(bytes) != expected
        {
            let digest = Digest::of(bytes);
            return Err(tampered(format!(
                "its digest is {digest} instead of {expected}"
            )));
        }
        if let Some(expected) = self.sha512 {
            let digest = sha512::Hash::hash(bytes);
            if digest != expected {
                let (digest, expected) = (hex(&digest), hex(&expected));
                return Err(tampered(format!(
                    "its digest is {digest} instead of {expected}"
                )));
            }
        }
        Ok(())
    }

    fn parse(text: &str) -> Result<Hashes, String> {
        let [sha256, sha512] = json::fields(text, ["sha256", "sha512"])?;
        let sha256 = sha256.map(|text| json::string(text)?.parse());
        let sha512 = sha512.map(|text| {
            let bytes = unhex(&json::string(text)?).and_then(|bytes| bytes.try_into().ok());
            bytes.ok_or("sha512: not 128 hexadecimal digits".to_owned())
        });
        Ok(Hashes {
            sha256: sha256.transpose()?,
            sha512: sha512.transpose()?,
        })
    }
}

fn check_length(file: &str, bytes: &[u8], length: Option<u64>) -> Result<(), Error> {
    match length {
        Some(length) if bytes.len() as u64 != length => Err(Error::Tampered {
            file: file.to_owned(),
            why: format!("it has {} bytes instead of {length}", bytes.len()),
        }),
        _ => Ok(()),
    }
}
