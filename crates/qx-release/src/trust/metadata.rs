//! The four kinds of metadata: parsed, not yet trusted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::SystemTime;

use super::described::{MetaFile, TargetInfo};
use super::key::{Keys, Signature, Verifiers, unhex};
use super::limits::Limits;
use super::role_keys::{RoleKeys, at_most, parse_keys};
use super::{Error, Role, delegation};
use crate::json;
use crate::json::there;
use crate::manifest::RelPath;

/// A value and the signatures over it. Nothing in it is trusted before [`Signed::verify`].
#[derive(Debug, Clone)]
pub struct Signed<'a, T> {
    /// What was signed.
    pub value: T,
    role: Role,
    text: &'a str,
    signatures: Vec<Signature>,
    limits: Limits,
}

/// Root metadata.
#[derive(Debug, Clone)]
pub struct Root {
    /// Starts at 1.
    pub version: u64,
    /// When it must no longer be trusted.
    pub expires: Expires,
    /// When it was signed (`x-issued`, an addition to TUF), if given and not later than its expiry.
    pub issued: Option<SystemTime>,
    /// Whether files carry their version or digest in their name.
    pub consistent_snapshot: bool,
    /// All keys of known schemes.
    pub keys: Keys,
    /// Who speaks for each role, in the order of [`Role::ALL`].
    roles: [RoleKeys; 4],
}

/// Timestamp metadata.
#[derive(Debug, Clone)]
pub struct Timestamp {
    /// Starts at 1.
    pub version: u64,
    /// When it must no longer be trusted.
    pub expires: Expires,
    /// When it was signed (`x-issued`, an addition to TUF), if given and not later than its expiry.
    pub issued: Option<SystemTime>,
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

/// Targets metadata, of the top-level role or of a delegated one, verified. They are kept as they were received and
/// read anew for each question: tens of thousands of targets take no more memory than their text.
#[derive(Debug)]
pub struct Targets {
    /// Starts at 1.
    pub version: u64,
    /// When it must no longer be trusted.
    pub expires: Expires,
    text: String,
    targets: Range<usize>,
    delegations: Option<Range<usize>>,
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
    /// Its version.
    fn version(&self) -> u64;
    /// When it expires.
    fn expires(&self) -> &Expires;
}

/// Metadata that are read as a whole. Not so targets: see [`Targets::verified`].
pub trait Parse: Metadata {
    /// Reads the fields of the `signed` object, whose type and specification are checked already.
    fn from_fields(
        fields: &Fields,
        version: u64,
        expires: Expires,
        limits: &Limits,
    ) -> Result<Self, String>;

    /// Reads metadata of this role. What it returns is not trusted yet.
    fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Signed<'a, Self>, Error> {
        parse(bytes, limits).map_err(|why| malformed(Self::ROLE, why))
    }
}

/// The texts of the members of a `signed` object that some role gives a meaning.
pub struct Fields<'a> {
    kind: Option<&'a str>,
    spec_version: Option<&'a str>,
    version: Option<&'a str>,
    expires: Option<&'a str>,
    issued: Option<&'a str>,
    consistent_snapshot: Option<&'a str>,
    keys: Option<&'a str>,
    roles: Option<&'a str>,
    meta: Option<&'a str>,
    targets: Option<&'a str>,
    delegations: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(signed: &'a str) -> Result<Fields<'a>, String> {
        let names = [
            "_type",
            "spec_version",
            "version",
            "expires",
            "x-issued",
            "consistent_snapshot",
            "keys",
            "roles",
            "meta",
            "targets",
            "delegations",
        ];
        let [
            kind,
            spec_version,
            version,
            expires,
            issued,
            consistent_snapshot,
            keys,
            roles,
            meta,
            targets,
            delegations,
        ] = json::fields(signed, names)?;
        Ok(Fields {
            kind,
            spec_version,
            version,
            expires,
            issued,
            consistent_snapshot,
            keys,
            roles,
            meta,
            targets,
            delegations,
        })
    }
}

impl<T> Signed<'_, T> {
    /// Checks that enough of the keys that speak for the role have signed the value; `by` is who names them.
    pub fn verify(&self, verifiers: &Verifiers, by: &dyn Fn() -> String) -> Result<(), Error> {
        let valid = verifiers
            .count(self.text, &self.signatures, &self.limits)
            .map_err(|why| malformed(self.role, why))?;
        if (valid as u64) < verifiers.threshold {
            return Err(Error::Signatures {
                role: self.role,
                by: by(),
                valid,
                threshold: verifiers.threshold,
            });
        }
        Ok(())
    }
}

impl Root {
    /// Who speaks for a role.
    pub fn verifiers(&self, role: Role) -> Verifiers {
        self.roles[role as usize].verifiers(&self.keys)
    }
}

impl Metadata for Root {
    const ROLE: Role = Role::Root;

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

impl Parse for Root {
    fn from_fields(
        fields: &Fields,
        version: u64,
        expires: Expires,
        limits: &Limits,
    ) -> Result<Root, String> {
        let keys = parse_keys(there(fields.keys, "keys")?, limits)
            .map_err(|why| format!("keys: {why}"))?;
        let named = json::fields(there(fields.roles, "roles")?, Role::ALL.map(Role::as_str))
            .map_err(|why| format!("roles: {why}"))?;
        let role = |role: Role| {
            let keys = there(named[role as usize], role.as_str());
            keys.and_then(|keys| {
                RoleKeys::parse(keys, limits).map_err(|why| format!("{role}: {why}"))
            })
            .map_err(|why| format!("roles: {why}"))
        };
        let [root, timestamp, snapshot, targets] = Role::ALL.map(role);
        let consistent = json::boolean(fields.consistent_snapshot, "consistent_snapshot")?;
        Ok(Root {
            version,
            issued: issued(fields, &expires),
            expires,
            consistent_snapshot: consistent.unwrap_or(false),
            keys,
            roles: [root?, timestamp?, snapshot?, targets?],
        })
    }
}

/// When it was signed; a malformed value counts as absent.
fn issued(fields: &Fields, expires: &Expires) -> Option<SystemTime> {
    let text = json::string(fields.issued?).ok()?;
    let issued = humantime::parse_rfc3339(&text).ok()?;
    (issued <= expires.at).then_some(issued)
}

impl Metadata for Timestamp {
    const ROLE: Role = Role::Timestamp;

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

impl Parse for Timestamp {
    fn from_fields(
        fields: &Fields,
        version: u64,
        expires: Expires,
        _: &Limits,
    ) -> Result<Timestamp, String> {
        let snapshot = meta(fields)?
            .get("snapshot.json")
            .cloned()
            .ok_or("meta: snapshot.json is missing")?;
        Ok(Timestamp {
            version,
            issued: issued(fields, &expires),
            expires,
            snapshot,
        })
    }
}

impl Metadata for Snapshot {
    const ROLE: Role = Role::Snapshot;

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

impl Parse for Snapshot {
    fn from_fields(
        fields: &Fields,
        version: u64,
        expires: Expires,
        _: &Limits,
    ) -> Result<Snapshot, String> {
        Ok(Snapshot {
            version,
            expires,
            meta: meta(fields)?,
        })
    }
}

fn meta(fields: &Fields) -> Result<BTreeMap<String, MetaFile>, String> {
    let mut meta = BTreeMap::new();
    json::members(there(fields.meta, "meta")?, &mut |file, value| {
        let said = MetaFile::parse(value)
            .map_err(|why| format!("meta: {}: {why}", file.escape_debug()))?;
        meta.insert(file.into_owned(), said);
        Ok(())
    })?;
    Ok(meta)
}

impl Metadata for Targets {
    const ROLE: Role = Role::Targets;

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> &Expires {
        &self.expires
    }
}

/// Where things are in the text of targets metadata.
struct Outline<'a> {
    version: u64,
    expires: Expires,
    targets: &'a str,
    delegations: Option<&'a str>,
}

impl Targets {
    /// Reads metadata that the keys of `verifiers` have signed, as `by` asks; what every target and every delegation
    /// in them says is checked now.
    pub fn verified(
        bytes: Vec<u8>,
        verifiers: &Verifiers,
        by: &dyn Fn() -> String,
        limits: &Limits,
    ) -> Result<Targets, Error> {
        let malformed = |why| malformed(Role::Targets, why);
        let text = String::from_utf8(bytes).map_err(|e| malformed(e.to_string()))?;
        let signed = envelope(&text, Role::Targets, limits, outline).map_err(malformed)?;
        signed.verify(verifiers, by)?;
        let Outline {
            version,
            expires,
            targets,
            delegations,
        } = signed.value;
        json::members(targets, &mut |name, value| {
            TargetInfo::parse(value)
                .map(drop)
                .map_err(|why| format!("targets: {}: {why}", name.escape_debug()))
        })
        .and_then(|()| delegations.map_or(Ok(()), |text| delegation::check(text, limits)))
        .map_err(malformed)?;
        let place = |part: &str| {
            let start = part.as_ptr() as usize - text.as_ptr() as usize;
            start..start + part.len()
        };
        let (targets, delegations) = (place(targets), delegations.map(place));
        Ok(Targets {
            version,
            expires,
            targets,
            delegations,
            text,
        })
    }

    /// The bytes as they were received.
    pub fn bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// A target that is listed here; delegations do not count.
    pub fn target(&self, name: &RelPath) -> Option<TargetInfo> {
        let mut found = None;
        self.walk(&mut |listed, info| {
            if listed != name.as_str() {
                return ControlFlow::Continue(());
            }
            found = TargetInfo::parse(info).ok();
            ControlFlow::Break(())
        });
        found
    }

    /// Gives every target that is listed here to `visit`, except those whose names are not valid paths.
    pub fn each(&self, visit: &mut dyn FnMut(RelPath, TargetInfo)) {
        self.walk(&mut |name, info| {
            if let (Ok(name), Ok(info)) = (name.parse(), TargetInfo::parse(info)) {
                visit(name, info);
            }
            ControlFlow::Continue(())
        });
    }

    /// The text of the delegations.
    pub(super) fn delegations(&self) -> Option<&str> {
        self.delegations.clone().map(|range| &self.text[range])
    }

    fn walk(&self, visit: &mut dyn FnMut(&str, &str) -> ControlFlow<()>) {
        // It was walked before, so that there is nothing to go wrong but what `visit` breaks off.
        let _ = json::members(
            &self.text[self.targets.clone()],
            &mut |name, info| match visit(&name, info) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(String::new()),
            },
        );
    }
}

fn outline<'a>(fields: &Fields<'a>, version: u64, expires: Expires) -> Result<Outline<'a>, String> {
    Ok(Outline {
        version,
        expires,
        targets: there(fields.targets, "targets")?,
        delegations: fields.delegations,
    })
}

fn parse<'a, T: Parse>(bytes: &'a [u8], limits: &Limits) -> Result<Signed<'a, T>, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    envelope(text, T::ROLE, limits, |fields, version, expires| {
        T::from_fields(fields, version, expires, limits)
    })
}

/// Reads the envelope of metadata and what all roles have in common, and lets `read` read the rest.
fn envelope<'a, T>(
    text: &'a str,
    role: Role,
    limits: &Limits,
    read: impl FnOnce(&Fields<'a>, u64, Expires) -> Result<T, String>,
) -> Result<Signed<'a, T>, String> {
    if text.len() as u64 > role.max_bytes(limits) {
        return Err(format!(
            "it is longer than {} bytes",
            role.max_bytes(limits)
        ));
    }
    let [signatures, signed] = json::fields(json::value(text)?, ["signatures", "signed"])?;
    let signatures = parse_signatures(there(signatures, "signatures")?, limits)
        .map_err(|why| format!("signatures: {why}"))?;
    let signed = there(signed, "signed")?;
    let fields = Fields::of(signed)?;
    let kind = string(fields.kind, "_type")?;
    if kind != role.as_str() {
        return Err(format!("its _type is '{}'", kind.escape_debug()));
    }
    let spec = string(fields.spec_version, "spec_version")?;
    let numeric = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = spec.split('.').collect();
    if parts[0] != "1" || !(2..=3).contains(&parts.len()) || !parts.iter().all(|p| numeric(p)) {
        return Err(format!(
            "spec_version '{}' is not supported (only 1.x is)",
            spec.escape_debug()
        ));
    }
    let version = match there(fields.version, "version")?.parse() {
        Ok(version) if version > 0 => version,
        _ => return Err("version must be a positive integer".into()),
    };
    let expires = string(fields.expires, "expires")?;
    let expires = Expires {
        at: humantime::parse_rfc3339(&expires).map_err(|e| format!("expires: {e}"))?,
        text: expires.into_owned(),
    };
    Ok(Signed {
        value: read(&fields, version, expires)?,
        role,
        text: signed,
        signatures,
        limits: *limits,
    })
}

fn parse_signatures(text: &str, limits: &Limits) -> Result<Vec<Signature>, String> {
    let mut signatures: Vec<Signature> = Vec::new();
    json::items(text, &mut |item| {
        at_most(signatures.len(), limits.signatures, "entries")?;
        let [keyid, sig] = json::fields(item, ["keyid", "sig"])?;
        let keyid = string(keyid, "keyid")?;
        // One a key bounds the work that hostile metadata can ask for.
        if signatures.iter().any(|other| other.keyid == keyid) {
            return Err(format!("duplicate key id '{}'", keyid.escape_debug()));
        }
        let digits = sig.and_then(|sig| json::string(sig).ok());
        let bytes = digits.and_then(|digits| unhex(&digits));
        signatures.push(Signature {
            keyid: keyid.into_owned(),
            bytes: bytes.unwrap_or_default(),
        });
        Ok(())
    })?;
    Ok(signatures)
}

fn string<'a>(value: Option<&'a str>, name: &str) -> Result<Cow<'a, str>, String> {
    json::string(there(value, name)?).map_err(|why| format!("{name}: {why}"))
}

fn malformed(role: Role, why: String) -> Error {
    Error::Malformed { role, why }
}
