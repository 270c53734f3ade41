//! The four kinds of metadata: parsed, not yet trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::canonical::canonical;
use super::key::{Key, Keys, MAX_KEYS, Signature, unhex};
use super::{Error, Role};
use crate::digest::Digest;
use crate::manifest::RelPath;

/// A value and the signatures over it. Nothing in it is trusted before [`Signed::verify`].
#[derive(Debug, Clone)]
pub struct Signed<T> {
    /// What was signed.
    pub value: T,
    message: Vec<u8>,
    signatures: Vec<Signature>,
}

/// The keys that speak for a role, and how many of them it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    /// Declared key ids.
    pub keyids: BTreeSet<String>,
    /// At least 1.
    pub threshold: u64,
}

/// Root metadata.
#[derive(Debug, Clone)]
pub struct Root {
    /// Starts at 1.
    pub version: u64,
    /// When it must no longer be trusted.
    pub expires: Expires,
    /// Whether files carry their version or digest in their name.
    pub consistent_snapshot: bool,
    /// All keys of known schemes.
    pub keys: Keys,
    /// Who speaks for each role.
    pub roles: BTreeMap<&'static str, RoleKeys>,
}

/// Timestamp metadata.
#[derive(Debug, Clone)]
pub struct Timestamp {
    /// Starts at 1.
    pub version: u64,
    /// When it must no longer be trusted.
    pub expires: Expires,
    /// The latest snapshot.
    pub snapshot: MetaFile,
}

/// Snapshot metadata.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Starts at 1.
    pub version: u64,
    /// When it must no longer be trusted.
    pub expires: Expires,
    /// The targets metadata that belong together, by file name.
    pub meta: BTreeMap<String, MetaFile>,
}

/// Targets metadata.
#[derive(Debug, Clone)]
pub struct Targets {
    /// Starts at 1.
    pub version: u64,
    /// When it must no longer be trusted.
    pub expires: Expires,
    /// What is published. Targets that this version could not check (no SHA-256) or could not place (a name that
    /// is no relative path) are left out.
    pub targets: BTreeMap<RelPath, TargetFile>,
}

/// What metadata say about other metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaFile {
    /// The version it must have.
    pub version: u64,
    /// The length in bytes, where given.
    pub length: Option<u64>,
    /// The digest, where given.
    pub sha256: Option<Digest>,
}

/// What targets metadata say about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetFile {
    /// Bytes.
    pub length: u64,
    /// The digest of its bytes.
    pub sha256: Digest,
}

/// A point in time, and how the metadata spelt it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expires {
    /// The time.
    pub at: SystemTime,
    /// RFC 3339.
    pub text: String,
}

/// Metadata of one role.
pub trait Metadata: Sized {
    /// Which.
    const ROLE: Role;
    /// Reads the `signed` object, whose `_type` and `spec_version` are checked already.
    fn from_signed(signed: &Value, version: u64, expires: Expires) -> Result<Self, String>;
    /// Its version.
    fn version(&self) -> u64;
    /// When it expires.
    fn expires(&self) -> &Expires;

    /// Reads metadata of this role. What it returns is not trusted yet.
    fn parse(bytes: &[u8]) -> Result<Signed<Self>, Error> {
        parse(bytes).map_err(|why| Error::Malformed {
            role: Self::ROLE,
            why,
        })
    }
}

impl<T: Metadata> Signed<T> {
    /// Checks that enough keys which `root` names for this role have signed the value.
    ///
    /// The threshold is counted over distinct public keys: one key under two ids counts once.
    pub fn verify(&self, root: &Root) -> Result<(), Error> {
        let role = &root.roles[T::ROLE.as_str()];
        let mut valid: BTreeSet<&Key> = BTreeSet::new();
        for signature in &self.signatures {
            if role.keyids.contains(&signature.keyid)
                && let Some(key) = root.keys.get(&signature.keyid)
                && key.verifies(&self.message, &signature.bytes)
            {
                valid.insert(key);
            }
        }
        if (valid.len() as u64) < role.threshold {
            return Err(Error::Signatures {
                role: T::ROLE,
                root: root.version,
                valid: valid.len(),
                threshold: role.threshold,
            });
        }
        Ok(())
    }
}

impl MetaFile {
    /// Checks length and digest, where they are given.
    pub fn check(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        check(file, bytes, self.length, self.sha256)
    }
}

impl TargetFile {
    /// Checks length and digest.
    pub fn check(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        check(file, bytes, Some(self.length), Some(self.sha256))
    }
}

fn check(
    file: &str,
    bytes: &[u8],
    length: Option<u64>,
    sha256: Option<Digest>,
) -> Result<(), Error> {
    let tampered = |why| Error::Tampered {
        file: file.to_owned(),
        why,
    };
    if let Some(length) = length
        && bytes.len() as u64 != length
    {
        return Err(tampered(format!(
            "it has {} bytes instead of {length}",
            bytes.len()
        )));
    }
    if let Some(expected) = sha256
        && Digest::of(bytes) != expected
    {
        return Err(tampered(format!(
            "its digest is {} instead of {expected}",
            Digest::of(bytes)
        )));
    }
    Ok(())
}

impl Metadata for Root {
    const ROLE: Role = Role::Root;

    fn from_signed(signed: &Value, version: u64, expires: Expires) -> Result<Root, String> {
        let listed = object(signed, "keys")?;
        if listed.len() > MAX_KEYS {
            return Err(format!("keys: {} are more than {MAX_KEYS}", listed.len()));
        }
        let keys = listed
            .iter()
            .filter_map(|(id, value)| Some((id.clone(), Key::from_value(value)?)))
            .collect();
        let named = object(signed, "roles")?;
        let mut roles = BTreeMap::new();
        for role in Role::ALL {
            let value = named
                .get(role.as_str())
                .ok_or_else(|| format!("roles: {role} is missing"))?;
            let keys = RoleKeys::from_value(value).map_err(|e| format!("roles: {role}: {e}"))?;
            roles.insert(role.as_str(), keys);
        }
        let consistent_snapshot = match signed.get("consistent_snapshot") {
            None => false,
            Some(Value::Bool(on)) => *on,
            Some(_) => return Err("consistent_snapshot: not true or false".into()),
        };
        Ok(Root {
            version,
            expires,
            consistent_snapshot,
            keys,
            roles,
        })
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

impl RoleKeys {
    fn from_value(value: &Value) -> Result<RoleKeys, String> {
        #[derive(Deserialize)]
        struct Raw {
            keyids: Vec<String>,
            threshold: u64,
        }
        let raw = Raw::deserialize(value).map_err(|e| e.to_string())?;
        if raw.threshold == 0 {
            return Err("a threshold of 0 would let anybody sign".into());
        }
        let keyids: BTreeSet<String> = raw.keyids.iter().cloned().collect();
        if keyids.len() != raw.keyids.len() {
            return Err("a key id is there twice".into());
        }
        Ok(RoleKeys {
            keyids,
            threshold: raw.threshold,
        })
    }
}

impl Metadata for Timestamp {
    const ROLE: Role = Role::Timestamp;

    fn from_signed(signed: &Value, version: u64, expires: Expires) -> Result<Timestamp, String> {
        let snapshot = object(signed, "meta")?
            .get("snapshot.json")
            .ok_or("meta: snapshot.json is missing")?;
        Ok(Timestamp {
            version,
            expires,
            snapshot: MetaFile::from_value("snapshot.json", snapshot)?,
        })
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

impl Metadata for Snapshot {
    const ROLE: Role = Role::Snapshot;

    fn from_signed(signed: &Value, version: u64, expires: Expires) -> Result<Snapshot, String> {
        let meta = object(signed, "meta")?
            .iter()
            .map(|(file, value)| Ok((file.clone(), MetaFile::from_value(file, value)?)))
            .collect::<Result<_, String>>()?;
        Ok(Snapshot {
            version,
            expires,
            meta,
        })
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

impl MetaFile {
    fn from_value(file: &str, value: &Value) -> Result<MetaFile, String> {
        #[derive(Deserialize)]
        struct Raw {
            version: u64,
            length: Option<u64>,
            hashes: Option<BTreeMap<String, String>>,
        }
        let raw = Raw::deserialize(value).map_err(|e| format!("meta: {file}: {e}"))?;
        if raw.version == 0 {
            return Err(format!("meta: {file}: versions start at 1"));
        }
        let sha256 = raw
            .hashes
            .map(|hashes| {
                // Digests that are all of unknown kinds would otherwise pass as no digest at all.
                let sha256 = hashes.get("sha256").ok_or("no sha256 in the hashes")?;
                sha256.parse::<Digest>()
            })
            .transpose()
            .map_err(|e| format!("meta: {file}: {e}"))?;
        Ok(MetaFile {
            version: raw.version,
            length: raw.length,
            sha256,
        })
    }
}

impl Metadata for Targets {
    const ROLE: Role = Role::Targets;

    fn from_signed(signed: &Value, version: u64, expires: Expires) -> Result<Targets, String> {
        #[derive(Deserialize)]
        struct Raw {
            length: u64,
            hashes: BTreeMap<String, String>,
        }
        let mut targets = BTreeMap::new();
        for (name, value) in object(signed, "targets")? {
            let raw = Raw::deserialize(value)
                .map_err(|e| format!("targets: {}: {e}", name.escape_debug()))?;
            if let Ok(path) = name.parse::<RelPath>()
                && let Some(Ok(sha256)) = raw.hashes.get("sha256").map(|text| text.parse())
            {
                let length = raw.length;
                targets.insert(path, TargetFile { length, sha256 });
            }
        }
        Ok(Targets {
            version,
            expires,
            targets,
        })
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

fn parse<T: Metadata>(bytes: &[u8]) -> Result<Signed<T>, String> {
    if bytes.len() as u64 > T::ROLE.max_bytes() {
        return Err(format!("it is longer than {} bytes", T::ROLE.max_bytes()));
    }
    let mut envelope: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let signatures = signatures(envelope.get("signatures").ok_or("signatures are missing")?)?;
    let signed = envelope.remove("signed").ok_or("signed is missing")?;
    let kind = text(&signed, "_type")?;
    if kind != T::ROLE.as_str() {
        return Err(format!("its _type is '{}'", kind.escape_debug()));
    }
    let spec = text(&signed, "spec_version")?;
    let numeric = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = spec.split('.').collect();
    if parts[0] != "1" || !(2..=3).contains(&parts.len()) || !parts.iter().all(|p| numeric(p)) {
        return Err(format!("spec_version '{}' is not 1.*", spec.escape_debug()));
    }
    let version = match signed.get("version").and_then(Value::as_u64) {
        Some(version) if version > 0 => version,
        _ => return Err("version is not an integer from 1".into()),
    };
    let expires = text(&signed, "expires")?;
    let expires = Expires {
        at: humantime::parse_rfc3339(expires).map_err(|e| format!("expires: {e}"))?,
        text: expires.to_owned(),
    };
    Ok(Signed {
        value: T::from_signed(&signed, version, expires)?,
        message: canonical(&signed)?,
        signatures,
    })
}

fn signatures(value: &Value) -> Result<Vec<Signature>, String> {
    let mut seen = BTreeSet::new();
    let mut signatures = Vec::new();
    for item in value.as_array().ok_or("signatures are not a list")? {
        let keyid = text(item, "keyid").map_err(|e| format!("signatures: {e}"))?;
        // One a key bounds the work that hostile metadata can ask for.
        if !seen.insert(keyid) {
            return Err(format!(
                "signatures: key id '{}' is there twice",
                keyid.escape_debug()
            ));
        }
        let bytes = item.get("sig").and_then(Value::as_str).and_then(unhex);
        signatures.push(Signature {
            keyid: keyid.to_owned(),
            bytes: bytes.unwrap_or_default(),
        });
    }
    Ok(signatures)
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, String> {
    value
        .get(name)
        .and_then(Value::as_str)
        .ok_or_else(|| format!("{name} is missing or no text"))
}

fn object<'a>(value: &'a Value, name: &str) -> Result<&'a Map<String, Value>, String> {
    value
        .get(name)
        .and_then(Value::as_object)
        .ok_or_else(|| format!("{name} is missing or no object"))
}
