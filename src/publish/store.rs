//! The repository on the publisher's disk: making one, and adding to it so that readers see all of a publication
//! or nothing of it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::absolute;
use super::keyring::{Keyring, Signer, check_vacant, create_key};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Exit, Result};
use crate::manifest::{Component, Name, RelPath};
use crate::repository::{metadata_path, target_path};
use crate::trust::key::Keys;
use crate::trust::metadata::TargetFile;
use crate::trust::signing::{Scheme, SecretKey, Sign, sign};
use crate::trust::{self, Limits, Role, TrustedSet};

/// What names a repository's product.
const ABOUT: &str = "repository.json";
/// The only format of that file.
const ABOUT_FORMAT: u32 = 1;
/// Where a release is put together before any of it is published.
const STAGING: &str = ".staging";
/// Of the TUF specification.
const SPEC_VERSION: &str = "1.0.31";
/// What readers of a repository need.
const PUBLIC: u32 = 0o644;

const DAY: Duration = Duration::from_secs(86_400);

/// How long new metadata of a role are valid. Appliances are often switched off, or out of reach, for weeks.
fn lifetime(role: Role) -> Duration {
    match role {
        Role::Root => DAY * 5 * 365,
        Role::Timestamp => DAY * 90,
        Role::Snapshot | Role::Targets => DAY * 365,
    }
}

#[derive(Serialize, Deserialize)]
struct About {
    format: u32,
    product: Name,
}

/// Makes four keys and an empty repository for a product; the path of the root that appliances are to trust.
///
/// Nothing is overwritten: the repository's directory must be empty or absent, and no key may be there yet.
pub fn init(repo: &Path, keys: &Path, product: &Name, now: SystemTime) -> Result<PathBuf> {
    if absolute(keys)?.starts_with(absolute(repo)?) {
        return Err(Error::with(
            Exit::Usage,
            format!(
                "the private keys must not lie in the repository, where everybody could read them: {}",
                keys.display()
            ),
        ));
    }
    let occupied = match fs::read_dir(repo) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e).doing(|| format!("reading {}", repo.display())),
    };
    if occupied {
        return Err(Error::new(format!(
            "{} is not empty, and nothing is overwritten",
            repo.display()
        )));
    }
    for file in Role::ALL.map(|role| key_file(keys, role)) {
        check_vacant(&file)?;
    }
    durable::create_dir(keys, 0o700)?;
    durable::create_dir(repo, 0o755)?;
    for dir in ["metadata", "targets"] {
        durable::create_dir(&repo.join(dir), 0o755)?;
    }
    let mut secrets = Vec::new();
    for role in Role::ALL {
        let key = create_key(&key_file(keys, role), Scheme::Ed25519, None)?;
        secrets.push((role, key));
    }
    let listed: Map<String, Value> = secrets
        .iter()
        .map(|(_, key)| (key.id(), key.public()))
        .collect();
    let roles: Map<String, Value> = secrets
        .iter()
        .map(|(role, key)| {
            let keys = json!({"keyids": [key.id()], "threshold": 1});
            (role.as_str().to_owned(), keys)
        })
        .collect();
    let secrets: Vec<&SecretKey> = secrets.iter().map(|(_, key)| key).collect();
    let [root, timestamp, snapshot, targets] = secrets[..] else {
        return Err(Error::new("there are four roles"));
    };
    let new = |role, body| dated(body, role, 1, now);
    let root = signed(
        Role::Root,
        &new(
            Role::Root,
            json!({"consistent_snapshot": true, "keys": listed, "roles": roles}),
        ),
        &[root],
    )?;
    let targets = signed(
        Role::Targets,
        &new(Role::Targets, json!({"targets": {}})),
        &[targets],
    )?;
    let snapshot = signed(
        Role::Snapshot,
        &new(
            Role::Snapshot,
            json!({"meta": {"targets.json": meta(1, &targets)}}),
        ),
        &[snapshot],
    )?;
    let timestamp = signed(
        Role::Timestamp,
        &new(
            Role::Timestamp,
            json!({"meta": {"snapshot.json": meta(1, &snapshot)}}),
        ),
        &[timestamp],
    )?;
    let about = About {
        format: ABOUT_FORMAT,
        product: product.clone(),
    };
    let mut about = serde_json::to_vec(&about).doing(|| "writing the product's name")?;
    about.push(b'\n');
    write(&repo.join(ABOUT), &about)?;
    let place = |role, version| repo.join(metadata_path(role, version));
    write(&place(Role::Root, Some(1)), &root)?;
    write(&place(Role::Targets, Some(1)), &targets)?;
    write(&place(Role::Snapshot, Some(1)), &snapshot)?;
    write(&place(Role::Timestamp, None), &timestamp)?;
    Ok(place(Role::Root, Some(1)))
}

/// What a repository offers now, verified as an appliance would, but for expiry: what expired is renewed by
/// the next publication.
pub struct State {
    /// The directory.
    pub dir: PathBuf,
    /// Whose releases these are.
    pub product: Name,
    /// The metadata.
    pub set: TrustedSet,
    roots: Vec<Vec<u8>>,
    timestamp: Vec<u8>,
    snapshot: Vec<u8>,
    targets: Vec<u8>,
}

impl State {
    /// Reads and verifies the metadata of the repository in a directory.
    pub fn load(dir: &Path) -> Result<State> {
        let read = |path: &str| {
            let file = dir.join(path);
            fs::read(&file).doing(|| format!("reading {}", file.display()))
        };
        let verify = |path: &str, result: Result<(), trust::Error>| {
            result.doing(|| format!("verifying {}", dir.join(path).display()))
        };
        let about: About = serde_json::from_slice(&read(ABOUT)?)
            .doing(|| format!("reading {}", dir.join(ABOUT).display()))?;
        if about.format != ABOUT_FORMAT {
            return Err(Error::new(format!(
                "{}: format {} is not known (this version reads {ABOUT_FORMAT})",
                dir.join(ABOUT).display(),
                about.format
            )));
        }
        let path = metadata_path(Role::Root, Some(1));
        let mut roots = vec![read(&path)?];
        // Nothing was expired at the epoch.
        let mut set = TrustedSet::new(&roots[0], UNIX_EPOCH, &Limits::default())
            .doing(|| format!("verifying {}", dir.join(path).display()))?;
        loop {
            let path = metadata_path(Role::Root, Some(set.root().version + 1));
            if !dir.join(&path).exists() {
                break;
            }
            let root = read(&path)?;
            verify(&path, set.update_root(&root))?;
            roots.push(root);
        }
        if !set.root().consistent_snapshot {
            return Err(Error::new(format!(
                "{}: without consistent snapshots, readers would see parts of a publication",
                dir.display()
            )));
        }
        let path = metadata_path(Role::Timestamp, None);
        let timestamp = read(&path)?;
        verify(&path, set.update_timestamp(&timestamp).map(drop))?;
        let path = metadata_path(Role::Snapshot, set.timestamp().map(|t| t.snapshot.version));
        let snapshot = read(&path)?;
        verify(&path, set.update_snapshot(&snapshot, false))?;
        let meta = set.snapshot().and_then(|s| s.meta.get("targets.json"));
        let path = metadata_path(Role::Targets, meta.map(|meta| meta.version));
        let targets = read(&path)?;
        verify(&path, set.update_targets(targets.clone()))?;
        Ok(State {
            dir: dir.to_owned(),
            product: about.product,
            set,
            roots,
            timestamp,
            snapshot,
            targets,
        })
    }

    /// Where a target lies.
    pub fn target_file(&self, name: &RelPath, target: &TargetFile) -> PathBuf {
        self.dir.join(target_path(
            name,
            &target.sha256,
            self.set.root().consistent_snapshot,
        ))
    }

    /// What an appliance that knows this state would say of new metadata.
    fn accepts(&self, new: &Metadata, now: SystemTime) -> Result<(), trust::Error> {
        let mut set = TrustedSet::new(&self.roots[0], now, &Limits::default())?;
        for root in &self.roots[1..] {
            set.update_root(root)?;
        }
        // The old timestamp may have expired; it still tells what would be a rollback.
        let _ = set.update_timestamp(&self.timestamp);
        set.update_timestamp(&new.timestamp)?;
        set.update_snapshot(&new.snapshot, false)?;
        set.update_targets(new.targets.clone())
    }
}

/// New metadata, signed.
struct Metadata {
    timestamp: Vec<u8>,
    snapshot: Vec<u8>,
    snapshot_version: u64,
    targets: Vec<u8>,
    targets_version: u64,
}

/// A repository that this process alone publishes to.
pub struct Store {
    state: State,
    now: SystemTime,
    staging: PathBuf,
    added: Vec<(RelPath, TargetFile, PathBuf)>,
    // Released when it is closed, however this process ends.
    _lock: File,
}

impl Store {
    /// Opens the repository in a directory for publishing; [`Exit::Busy`] if another process has done so.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Store> {
        let locked = dir.join("metadata");
        let lock = File::open(&locked).doing(|| format!("opening {}", locked.display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::with(
                    Exit::Busy,
                    format!("another qx-publish is publishing to {}", dir.display()),
                ));
            }
            result => result.doing(|| format!("locking {}", locked.display()))?,
        }
        // What a publisher left that was interrupted.
        let staging = dir.join(STAGING);
        durable::remove_tree(&staging)?;
        Ok(Store {
            state: State::load(dir)?,
            now,
            staging,
            added: Vec::new(),
            _lock: lock,
        })
    }

    /// Whose releases these are.
    pub fn product(&self) -> &Name {
        &self.state.product
    }

    /// A target that is published already.
    pub fn published(&self, name: &RelPath) -> Option<TargetFile> {
        self.state.set.target(name)
    }

    /// The directory to put new targets together in; it goes when the store is dropped.
    pub fn stage(&self) -> Result<PathBuf> {
        durable::create_dir(&self.staging, 0o700)?;
        Ok(self.staging.clone())
    }

    /// The target name for an artifact, and whether it is new. A component that did not change is published once.
    /// The same content may have to be packed anew, though (at another path, with another mode): it then gets a
    /// number, for what is published never changes.
    pub fn artifact_name(
        &self,
        product: &Name,
        component: &Component,
        artifact: &TargetFile,
    ) -> Result<(RelPath, bool)> {
        let stem = format!(
            "{product}/artifacts/{}-{}",
            component.name, component.sha256
        );
        for number in 1.. {
            let name = match number {
                1 => format!("{stem}.tar.gz"),
                _ => format!("{stem}.{number}.tar.gz"),
            };
            let name: RelPath = name.parse().map_err(Error::new)?;
            match self.published(&name) {
                Some(published) if published == *artifact => return Ok((name, false)),
                Some(_) => {}
                None => return Ok((name, true)),
            }
        }
        Err(Error::new(format!("{stem}: no name is left")))
    }

    /// Adds a staged file to what will be published.
    pub fn add(&mut self, name: RelPath, target: TargetFile, file: PathBuf) {
        self.added.push((name, target, file));
    }

    /// Publishes what was added: the files first, then the metadata, and the timestamp last.
    pub fn publish(mut self, keys: &Keyring) -> Result<()> {
        let new = self.sign(keys)?;
        self.state
            .accepts(&new, self.now)
            .doing(|| "checking what would be published as an appliance would")?;
        let dir = self.state.dir.clone();
        for (name, target, file) in std::mem::take(&mut self.added) {
            let place = self.state.target_file(&name, &target);
            if let Some(parent) = place.parent() {
                durable::create_dir(parent, 0o755)?;
            }
            durable::rename(&file, &place)?;
        }
        let place = |role, version| dir.join(metadata_path(role, version));
        write(
            &place(Role::Targets, Some(new.targets_version)),
            &new.targets,
        )?;
        write(
            &place(Role::Snapshot, Some(new.snapshot_version)),
            &new.snapshot,
        )?;
        // Directories made on the way included: what the timestamp leads to must be there after a power cut.
        durable::sync_file_system(&dir)?;
        write(&place(Role::Timestamp, None), &new.timestamp)
    }

    fn sign(&self, keys: &Keyring) -> Result<Metadata> {
        let next = |bytes: &[u8], role| -> Result<(Value, u64)> {
            let mut envelope: Value =
                serde_json::from_slice(bytes).doing(|| format!("reading the {role} metadata"))?;
            let version = envelope["signed"]["version"].as_u64().unwrap_or_default() + 1;
            Ok((
                dated(envelope["signed"].take(), role, version, self.now),
                version,
            ))
        };
        let (mut targets, targets_version) = next(&self.state.targets, Role::Targets)?;
        for (name, target, _) in &self.added {
            targets["targets"][name.as_str()] =
                json!({"length": target.length, "hashes": {"sha256": target.sha256}});
        }
        let targets = signed(Role::Targets, &targets, &self.signers(keys, Role::Targets)?)?;
        let (mut snapshot, snapshot_version) = next(&self.state.snapshot, Role::Snapshot)?;
        snapshot["meta"]["targets.json"] = meta(targets_version, &targets);
        let snapshot = signed(
            Role::Snapshot,
            &snapshot,
            &self.signers(keys, Role::Snapshot)?,
        )?;
        let (mut timestamp, _) = next(&self.state.timestamp, Role::Timestamp)?;
        timestamp["meta"]["snapshot.json"] = meta(snapshot_version, &snapshot);
        let timestamp = signed(
            Role::Timestamp,
            &timestamp,
            &self.signers(keys, Role::Timestamp)?,
        )?;
        Ok(Metadata {
            timestamp,
            snapshot,
            snapshot_version,
            targets,
            targets_version,
        })
    }

    /// Those of a role's keys whose private half is there, at least as many as must sign.
    fn signers<'k>(&self, keys: &'k Keyring, role: Role) -> Result<Vec<&'k Signer>> {
        let root = self.state.set.root();
        let named = &root.roles[role.as_str()];
        let public = named.keyids.iter().filter_map(|id| root.keys.get(id));
        let signers: Vec<_> = public.filter_map(|key| keys.signer_for(key)).collect();
        if (signers.len() as u64) < named.threshold {
            return Err(keys.missing(&format!("key of the {role} role")));
        }
        Ok(signers)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The next publisher removes it if this fails.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

/// Writes a small file among the staged ones.
pub fn staged(file: &Path, bytes: &[u8]) -> Result<TargetFile> {
    write(file, bytes)?;
    Ok(TargetFile {
        length: bytes.len() as u64,
        sha256: Digest::of(bytes),
    })
}

/// How many of a role's keys this version could verify.
pub fn usable(keys: &Keys, ids: impl IntoIterator<Item = impl AsRef<str>>) -> usize {
    ids.into_iter()
        .filter(|id| keys.contains_key(id.as_ref()))
        .count()
}

fn dated(mut body: Value, role: Role, version: u64, now: SystemTime) -> Value {
    let expires = humantime::format_rfc3339_seconds(now + lifetime(role));
    body["_type"] = json!(role.as_str());
    body["spec_version"] = json!(SPEC_VERSION);
    body["version"] = json!(version);
    body["expires"] = json!(expires.to_string());
    body
}

fn meta(version: u64, bytes: &[u8]) -> Value {
    json!({
        "version": version,
        "length": bytes.len(),
        "hashes": {"sha256": Digest::of(bytes)},
    })
}

fn signed(role: Role, value: &Value, signers: &[&impl Sign]) -> Result<Vec<u8>> {
    sign(value, signers).doing(|| format!("signing the {role} metadata"))
}

fn key_file(keys: &Path, role: Role) -> PathBuf {
    keys.join(format!("{role}.pem"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::write_with_mode(path, bytes, PUBLIC)
}
