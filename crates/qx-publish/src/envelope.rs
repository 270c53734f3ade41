//! Metadata as the publisher handles them: a value, the signatures over it, and whose signatures it takes.
//!
//! Values stay JSON, so that whatever another tool put into them is signed again as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::keyring::Keyring;
use qx_release::digest::Digest;
use qx_release::error::{Context, Error, Result};
use qx_release::text;
use qx_release::trust::canonical::canonical;
use qx_release::trust::key::{Key, hex, unhex};
use qx_release::trust::signing::Sign;

/// Of the TUF specification.
const SPEC_VERSION: &str = "1.0.31";

/// A value and the signatures over it.
#[derive(Clone, Default)]
pub struct Envelope {
    /// What is signed.
    pub signed: Value,
    /// Hexadecimal, by key id. Not checked.
    pub signatures: BTreeMap<String, String>,
}

/// The keys that speak for a role, and how many of them it takes.
#[derive(Clone)]
pub struct Authority {
    /// Who says so, for people: "version 2 of the root".
    pub by: String,
    /// TUF key objects, by id.
    pub keys: Map<String, Value>,
    /// At least 1.
    pub threshold: u64,
}

/// What a new version of metadata says beside its content.
pub struct Dates {
    /// When it is signed.
    pub now: SystemTime,
    /// For how long it is valid.
    pub lifetime: Duration,
}

impl Envelope {
    /// Unsigned metadata: the body with type, version, the time it is signed and the time it expires.
    pub fn new(mut body: Value, kind: &str, version: u64, dates: &Dates) -> Envelope {
        let text = |time| json!(humantime::format_rfc3339_seconds(time).to_string());
        body["_type"] = json!(kind);
        body["spec_version"] = json!(SPEC_VERSION);
        body["version"] = json!(version);
        body["x-issued"] = text(dates.now);
        body["expires"] = text(dates.now + dates.lifetime);
        Envelope {
            signed: body,
            signatures: BTreeMap::new(),
        }
    }

    /// Reads metadata of any role. Nothing in it is verified.
    pub fn parse(bytes: &[u8]) -> Result<Envelope, String> {
        let mut members: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|e| format!("it is not TUF metadata: {e}"))?;
        let signed = members.remove("signed").unwrap_or_default();
        if signed["_type"].as_str().is_none() || signed["version"].as_u64().is_none() {
            return Err("it is not TUF metadata".into());
        }
        let listed = members.get("signatures").and_then(Value::as_array);
        let listed = listed.ok_or("it is not TUF metadata: no list of signatures")?;
        let mut signatures = BTreeMap::new();
        for item in listed {
            let (Some(id), Some(signature)) = (item["keyid"].as_str(), item["sig"].as_str()) else {
                return Err("a signature has no keyid or no sig".into());
            };
            if signatures.insert(id.into(), signature.into()).is_some() {
                return Err(format!("duplicate signature of key {}", short(id)));
            }
        }
        Ok(Envelope { signed, signatures })
    }

    /// From 1; what a file says that is not verified.
    pub fn version(&self) -> u64 {
        self.signed["version"].as_u64().unwrap_or_default()
    }

    /// As it is spelt: RFC 3339.
    pub fn expires_text(&self) -> &str {
        self.signed["expires"].as_str().unwrap_or_default()
    }

    /// When it expires; a malformed time counts as expired.
    pub fn expires(&self) -> SystemTime {
        humantime::parse_rfc3339(self.expires_text()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// What a signature is over.
    pub fn message(&self) -> Result<Vec<u8>> {
        canonical(&self.signed).map_err(Error::new)
    }

    /// The ids of an authority's keys whose signatures are good. One key under two ids counts once.
    pub fn signers(&self, authority: &Authority) -> Result<BTreeSet<String>> {
        let message = self.message()?;
        let mut seen = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (id, key) in authority.usable() {
            if let Some(signature) = self.signatures.get(&id).and_then(|text| unhex(text))
                && key.verifies(&message, &signature)
                && seen.insert(key)
            {
                ids.insert(id);
            }
        }
        Ok(ids)
    }

    /// Whether enough of an authority's keys have signed.
    pub fn verifies(&self, authority: &Authority) -> bool {
        self.signers(authority)
            .is_ok_and(|ids| ids.len() as u64 >= authority.threshold)
    }

    /// Signs with every key of the authority whose private half is at hand and whose good signature is not there
    /// yet; the ids of those that signed now.
    pub fn sign(&mut self, authority: &Authority, keys: &Keyring) -> Result<Vec<String>> {
        let there = self.signers(authority)?;
        let message = self.message()?;
        let mut added = Vec::new();
        for (id, key) in authority.usable() {
            if !there.contains(&id)
                && let Some(signer) = keys.signer_for(&key)
            {
                let signature = signer
                    .sign(&message)
                    .doing(|| format!("signing with the key {}", short(&id)))?;
                self.signatures.insert(id.clone(), hex(&signature));
                added.push(id);
            }
        }
        Ok(added)
    }

    /// As JSON: what the metadata directory holds.
    pub fn value(&self) -> Value {
        let signatures: Vec<Value> = self
            .signatures
            .iter()
            .map(|(id, signature)| json!({"keyid": id, "sig": signature}))
            .collect();
        json!({"signatures": signatures, "signed": self.signed})
    }

    /// As a file.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        // Compact: appliances hold the text in memory.
        let mut bytes = serde_json::to_vec(&self.value()).doing(|| "writing JSON")?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl Authority {
    /// The keys and threshold that a root names for a top-level role.
    pub fn of_root(root: &Value, role: &str) -> Authority {
        let by = format!("version {} of the root", root["version"]);
        Authority::new(by, &root["keys"], &root["roles"][role])
    }

    /// The keys and threshold that targets metadata name for a team; `None` if they do not delegate to it.
    pub fn of_team(targets: &Value, team: &str) -> Option<Authority> {
        let by = format!("version {} of the targets", targets["version"]);
        let keys = &targets["delegations"]["keys"];
        delegation(targets, team).map(|named| Authority::new(by, keys, named))
    }

    fn new(by: String, keys: &Value, named: &Value) -> Authority {
        let keys = texts(&named["keyids"])
            .map(|id| (id.to_owned(), keys[id].clone()))
            .collect();
        // One that is missing or odd must not let anybody sign.
        let threshold = named["threshold"].as_u64().filter(|&n| n > 0);
        Authority {
            by,
            keys,
            threshold: threshold.unwrap_or(u64::MAX),
        }
    }

    /// Those of its keys that this version can check.
    pub fn usable(&self) -> impl Iterator<Item = (String, Key)> {
        self.keys
            .iter()
            .filter_map(|(id, key)| Some((id.clone(), Key::from_value(key)?)))
    }

    /// Whether two ask for the same.
    pub fn same(&self, other: &Authority) -> bool {
        self.threshold == other.threshold && self.keys == other.keys
    }

    /// How many of its keys are at hand.
    pub fn at_hand(&self, keys: &Keyring) -> u64 {
        let keys: BTreeSet<Key> = self
            .usable()
            .map(|(_, key)| key)
            .filter(|key| keys.signer_for(key).is_some())
            .collect();
        keys.len() as u64
    }

    /// What is missing before it is satisfied, for people; `None` if nothing is.
    pub fn missing(&self, envelope: &Envelope) -> Result<Option<String>> {
        let signed = envelope.signers(self)?;
        let count = signed.len() as u64;
        if count >= self.threshold {
            return Ok(None);
        }
        let open: Vec<String> = self
            .keys
            .keys()
            .filter(|id| !signed.contains(*id))
            .map(|id| short(id))
            .collect();
        Ok(Some(format!(
            "{} of {} signatures that {} requires; {} more needed, of the keys {}",
            count,
            self.threshold,
            text::name(&self.by),
            self.threshold - count,
            open.join(", ")
        )))
    }
}

/// What targets metadata say about a team they delegate to.
pub(crate) fn delegation<'a>(targets: &'a Value, team: &str) -> Option<&'a Value> {
    let mut roles = targets["delegations"]["roles"]
        .as_array()
        .into_iter()
        .flatten();
    roles.find(|role| role["name"] == team)
}

/// The texts in a list; where there is no list, none.
pub(crate) fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// The start of a key's id: enough to tell it by, and nothing that a terminal would obey.
pub(crate) fn short(id: &str) -> String {
    text::name(&id.chars().take(12).collect::<String>())
}

/// What metadata say about other metadata.
pub(crate) fn meta(version: u64, bytes: &[u8]) -> Value {
    json!({
        "version": version,
        "length": bytes.len(),
        "hashes": {"sha256": Digest::of(bytes)},
    })
}

/// JSON as files have it: for people too, ended by a newline.
pub(crate) fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).doing(|| "writing JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}
