//! For tests: a repository in memory whose every field can be set wrong before it is signed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Role;
use super::signing::{SecretKey, Sign, sign};
use crate::digest::Digest;

/// The time that the tests take for the present.
pub const NOW: u64 = 1_800_000_000;

/// A time, in seconds from the tests' present.
pub fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW.saturating_add_signed(seconds))
}

/// The key that a number stands for.
pub fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

/// What one role's metadata will say, and who signs them.
#[derive(Clone)]
pub struct Draft {
    pub version: u64,
    pub expires: SystemTime,
    pub signers: Vec<u8>,
}

/// A repository: drafts of all four roles, and the targets.
#[derive(Clone)]
pub struct Forge {
    pub root: Draft,
    pub timestamp: Draft,
    pub snapshot: Draft,
    pub targets: Draft,
    /// Key numbers and threshold of each role, as the root will say.
    pub roles: BTreeMap<Role, (Vec<u8>, u64)>,
    pub consistent: bool,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Whether the timestamp and the snapshot give lengths and digests.
    pub hashes: bool,
}

impl Forge {
    pub fn new() -> Forge {
        let draft = |key| Draft {
            version: 1,
            expires: at(1000),
            signers: vec![key],
        };
        Forge {
            root: draft(1),
            timestamp: draft(2),
            snapshot: draft(3),
            targets: draft(4),
            roles: [
                (Role::Root, (vec![1], 1)),
                (Role::Timestamp, (vec![2], 1)),
                (Role::Snapshot, (vec![3], 1)),
                (Role::Targets, (vec![4], 1)),
            ]
            .into(),
            consistent: true,
            files: BTreeMap::new(),
            hashes: true,
        }
    }

    pub fn draft(&mut self, role: Role) -> &mut Draft {
        match role {
            Role::Root => &mut self.root,
            Role::Timestamp => &mut self.timestamp,
            Role::Snapshot => &mut self.snapshot,
            Role::Targets => &mut self.targets,
        }
    }

    /// One version more of targets, snapshot and timestamp, as after a publication.
    pub fn publish(&mut self) {
        for role in [Role::Timestamp, Role::Snapshot, Role::Targets] {
            self.draft(role).version += 1;
        }
    }

    pub fn signed(&self, role: Role) -> Value {
        match role {
            Role::Root => self.signed_root(),
            Role::Timestamp => self.common(
                role,
                &self.timestamp,
                json!({"meta": {"snapshot.json": self.meta(Role::Snapshot)}}),
            ),
            Role::Snapshot => self.common(
                role,
                &self.snapshot,
                json!({"meta": {"targets.json": self.meta(Role::Targets)}}),
            ),
            Role::Targets => {
                let targets: BTreeMap<_, _> = self
                    .files
                    .iter()
                    .map(|(name, bytes)| (name, self.info(bytes)))
                    .collect();
                self.common(role, &self.targets, json!({"targets": targets}))
            }
        }
    }

    pub fn bytes(&self, role: Role) -> Vec<u8> {
        let draft = match role {
            Role::Root => &self.root,
            Role::Timestamp => &self.timestamp,
            Role::Snapshot => &self.snapshot,
            Role::Targets => &self.targets,
        };
        self.sign(&self.signed(role), &draft.signers)
    }

    pub fn sign(&self, signed: &Value, signers: &[u8]) -> Vec<u8> {
        let keys: Vec<SecretKey> = signers.iter().map(|&n| key(n)).collect();
        sign(signed, &keys.iter().collect::<Vec<_>>()).unwrap()
    }

    fn signed_root(&self) -> Value {
        let numbers = self.roles.values().flat_map(|(numbers, _)| numbers);
        let keys: BTreeMap<_, _> = numbers.map(|&n| (key(n).id(), key(n).public())).collect();
        let roles: BTreeMap<_, _> = self
            .roles
            .iter()
            .map(|(role, (numbers, threshold))| {
                let ids: Vec<_> = numbers.iter().map(|&n| key(n).id()).collect();
                (
                    role.as_str(),
                    json!({"keyids": ids, "threshold": threshold}),
                )
            })
            .collect();
        self.common(
            Role::Root,
            &self.root,
            json!({"keys": keys, "roles": roles, "consistent_snapshot": self.consistent}),
        )
    }

    fn common(&self, role: Role, draft: &Draft, mut signed: Value) -> Value {
        signed["_type"] = json!(role.as_str());
        signed["spec_version"] = json!("1.0.31");
        signed["version"] = json!(draft.version);
        signed["expires"] = json!(humantime::format_rfc3339_seconds(draft.expires).to_string());
        signed
    }

    fn meta(&self, role: Role) -> Value {
        let bytes = self.bytes(role);
        let mut meta = if self.hashes {
            self.info(&bytes)
        } else {
            json!({})
        };
        meta["version"] = match role {
            Role::Snapshot => json!(self.snapshot.version),
            _ => json!(self.targets.version),
        };
        meta
    }

    fn info(&self, bytes: &[u8]) -> Value {
        json!({"length": bytes.len(), "hashes": {"sha256": Digest::of(bytes)}})
    }
}
