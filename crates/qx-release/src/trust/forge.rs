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
    /// Its version.
    pub version: u64,
    /// When it expires.
    pub expires: SystemTime,
    /// Whose keys sign it.
    pub signers: Vec<u8>,
}

/// A repository: drafts of all four roles, and the targets.
#[derive(Clone)]
pub struct Forge {
    /// The root.
    pub root: Draft,
    /// The timestamp.
    pub timestamp: Draft,
    /// The snapshot.
    pub snapshot: Draft,
    /// The targets.
    pub targets: Draft,
    /// Key numbers and threshold of each role, as the root will say.
    pub roles: BTreeMap<Role, (Vec<u8>, u64)>,
    /// Whether names carry versions and digests.
    pub consistent: bool,
    /// What is published, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Whether the timestamp and the snapshot give lengths and digests.
    pub hashes: bool,
    /// Whom the targets delegate to, in order.
    pub teams: Vec<Team>,
}

/// A delegated role.
#[derive(Clone)]
pub struct Team {
    /// Its role.
    pub name: &'static str,
    /// Its metadata.
    pub draft: Draft,
    /// The key that the delegation names.
    pub key: u8,
    /// What it may publish.
    pub patterns: Vec<&'static str>,
    /// Whether the search ends with it.
    pub terminating: bool,
    /// What is published, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Whom it delegates to, in order.
    pub teams: Vec<Team>,
}

impl Team {
    /// A team that may publish what matches the patterns.
    pub fn new(name: &'static str, key: u8, patterns: &[&'static str]) -> Team {
        Team {
            name,
            draft: Draft {
                version: 1,
                expires: at(1000),
                signers: vec![key],
            },
            key,
            patterns: patterns.to_vec(),
            terminating: false,
            files: BTreeMap::new(),
            teams: Vec::new(),
        }
    }
}

impl Forge {
    /// A repository that publishes nothing yet.
    pub fn empty() -> Forge {
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
            teams: Vec::new(),
        }
    }
    /// The metadata of a role.
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

    /// What a role's keys sign.
    pub fn signed(&self, role: Role) -> Value {
        match role {
            Role::Root => self.signed_root(),
            Role::Timestamp => self.common(
                role,
                &self.timestamp,
                json!({"meta": {"snapshot.json": self.meta(Role::Snapshot)}}),
            ),
            Role::Snapshot => {
                let mut meta = json!({"targets.json": self.meta(Role::Targets)});
                for team in &self.teams {
                    meta[format!("{}.json", team.name)] =
                        self.meta_of(team.draft.version, &self.team_bytes(team));
                }
                self.common(role, &self.snapshot, json!({"meta": meta}))
            }
            Role::Targets => {
                let mut body = json!({"targets": self.infos(&self.files)});
                if !self.teams.is_empty() {
                    body["delegations"] = delegations(&self.teams);
                }
                self.common(role, &self.targets, body)
            }
        }
    }

    /// A role's metadata, signed.
    pub fn bytes(&self, role: Role) -> Vec<u8> {
        let draft = match role {
            Role::Root => &self.root,
            Role::Timestamp => &self.timestamp,
            Role::Snapshot => &self.snapshot,
            Role::Targets => &self.targets,
        };
        self.sign(&self.signed(role), &draft.signers)
    }

    /// Signed by these keys.
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

    /// A team's metadata, signed.
    pub fn team_bytes(&self, team: &Team) -> Vec<u8> {
        let mut body = json!({"targets": self.infos(&team.files)});
        if !team.teams.is_empty() {
            body["delegations"] = delegations(&team.teams);
        }
        let signed = self.common(Role::Targets, &team.draft, body);
        self.sign(&signed, &team.draft.signers)
    }

    fn infos(&self, files: &BTreeMap<String, Vec<u8>>) -> Value {
        let infos = files
            .iter()
            .map(|(name, bytes)| (name.clone(), self.info(bytes)));
        Value::Object(infos.collect())
    }

    fn meta(&self, role: Role) -> Value {
        let version = match role {
            Role::Snapshot => self.snapshot.version,
            _ => self.targets.version,
        };
        self.meta_of(version, &self.bytes(role))
    }

    fn meta_of(&self, version: u64, bytes: &[u8]) -> Value {
        let mut meta = if self.hashes {
            self.info(bytes)
        } else {
            json!({})
        };
        meta["version"] = json!(version);
        meta
    }

    fn info(&self, bytes: &[u8]) -> Value {
        json!({"length": bytes.len(), "hashes": {"sha256": Digest::of(bytes)}})
    }
}

fn delegations(teams: &[Team]) -> Value {
    let keys = teams.iter().map(|team| key(team.key));
    let keys: BTreeMap<_, _> = keys.map(|key| (key.id(), key.public())).collect();
    let role = |team: &Team| {
        json!({"name": team.name, "keyids": [key(team.key).id()], "threshold": 1,
               "terminating": team.terminating, "paths": team.patterns})
    };
    let roles: Vec<_> = teams.iter().map(role).collect();
    json!({"keys": keys, "roles": roles})
}
