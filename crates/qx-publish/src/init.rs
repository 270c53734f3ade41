//! Making a repository: its keys, then the repository aside, then one rename.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use serde_json::{Map, Value, json};

use super::absolute;
use super::authority::check_threshold;
use super::current::{About, PUBLIC, metadata_file};
use super::envelope::{Authority, Dates, Envelope, meta};
use super::keyring::{Keyring, PublicKey, check_vacant};
use super::newkeys;
use super::role::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::Name;

/// What lies beside the keys while `init` is at work: they belong to no repository yet.
const UNFINISHED: &str = "init.unfinished";

/// What `init` made.
pub struct Made {
    /// The root that appliances are to trust.
    pub root: PathBuf,
    /// The files of the root's keys: to be taken away, each to another place.
    pub root_keys: Vec<PathBuf>,
    /// How many of them must sign.
    pub threshold: u64,
}

/// Makes keys and an empty repository for a product. `root_keys` keys speak for the root, `threshold` of which must sign
/// (none given: more than half).
///
/// Nothing is overwritten: the repository's directory must be empty or absent, and no key may be there yet, unless
/// they are those of an `init` that was interrupted, which this one ends.
pub fn init(
    repo: &Path,
    keys: &Path,
    product: &Name,
    root_keys: usize,
    threshold: Option<u64>,
    now: SystemTime,
) -> Result<Made> {
    let (repo_path, keys_path) = (absolute(repo)?, absolute(keys)?);
    if keys_path.starts_with(&repo_path) {
        return Err(Error::with(
            ErrorKind::Usage,
            format!(
                "the private keys must not be inside the repository, where clients could read them: {}",
                keys.display()
            ),
        ));
    }
    let threshold = threshold.unwrap_or(root_keys as u64 / 2 + 1);
    check_threshold(threshold, root_keys)?;
    durable::create_dir(keys, 0o700)?;
    let _lock = lock(keys)?;
    let unfinished = keys.join(UNFINISHED);
    let purpose = format!(
        "{product} {root_keys} {threshold} {}\n",
        repo_path.display()
    );
    let resumed = is_resumed(&unfinished, &purpose)?;
    let made = |repo: &Path| Made {
        root: metadata_file(repo, ROOT, 1),
        root_keys: root_files(keys, root_keys),
        threshold,
    };
    let occupied = is_occupied(repo)?;
    if occupied && !resumed {
        return Err(Error::new(format!(
            "{} is not empty; nothing is overwritten",
            repo.display()
        )));
    }
    let files = key_files(keys, root_keys);
    if !resumed {
        for file in files.iter().flat_map(|(_, files)| files) {
            check_vacant(file)?;
        }
    }
    durable::write(&unfinished, purpose.as_bytes())?;
    if occupied {
        // It was interrupted after the last step but one.
        super::current::Current::load(repo)?;
        durable::remove(&unfinished)?;
        return Ok(made(repo));
    }
    for file in files.iter().flat_map(|(_, files)| files) {
        newkeys::make(file)?;
    }
    let keyring = Keyring::open(keys, None)?;
    let aside = aside(&repo_path);
    if let Some(parent) = repo_path.parent() {
        durable::create_dir(parent, 0o755)?;
    }
    durable::remove_any(&aside)?;
    // It must be new: in a directory of others, not theirs.
    let new = fs::DirBuilder::new().mode(0o755).create(&aside);
    new.doing(|| format!("creating the directory {}", aside.display()))?;
    build(&aside, product, &files, threshold, &keyring, now)?;
    durable::rename(&aside, &repo_path)?;
    durable::remove(&unfinished)?;
    Ok(made(repo))
}

/// Keeps others from making keys in this directory until it is dropped.
fn lock(keys: &Path) -> Result<File> {
    let lock = File::open(keys).doing(|| format!("opening {}", keys.display()))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::with(
            ErrorKind::Busy,
            format!(
                "another qx-publish is creating keys in {}; retry when it has finished",
                keys.display()
            ),
        ));
    }
    Ok(lock)
}

/// Whether an `init` for the same purpose was interrupted.
fn is_resumed(unfinished: &Path, purpose: &str) -> Result<bool> {
    match fs::read_to_string(unfinished) {
        Ok(before) if before == purpose => Ok(true),
        Ok(before) => Err(Error::new(format!(
            "{}: init for {} was interrupted; run it again with the same arguments, or remove this file and the keys next to it",
            unfinished.display(),
            before.trim_end()
        ))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).doing(|| format!("reading {}", unfinished.display())),
    }
}

fn is_occupied(repo: &Path) -> Result<bool> {
    match fs::read_dir(repo) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).doing(|| format!("reading {}", repo.display())),
    }
}

/// The files of each role's keys.
fn key_files(keys: &Path, root_keys: usize) -> Vec<(&'static str, Vec<PathBuf>)> {
    let mut files = vec![(ROOT, root_files(keys, root_keys))];
    for role in [TIMESTAMP, SNAPSHOT, TARGETS] {
        files.push((role, vec![keys.join(format!("{role}.pem"))]));
    }
    files
}

fn root_files(keys: &Path, count: usize) -> Vec<PathBuf> {
    match count {
        1 => vec![keys.join("root.pem")],
        _ => (1..=count)
            .map(|n| keys.join(format!("root-{n}.pem")))
            .collect(),
    }
}

fn build(
    dir: &Path,
    product: &Name,
    files: &[(&str, Vec<PathBuf>)],
    threshold: u64,
    keyring: &Keyring,
    now: SystemTime,
) -> Result<()> {
    for part in ["metadata", "targets"] {
        durable::create_dir(&dir.join(part), 0o755)?;
    }
    let about = About::new(product.clone());
    about.write(dir)?;
    let mut keys = Map::new();
    let mut roles = Map::new();
    for (role, files) in files {
        let mut ids = Vec::new();
        for file in files {
            let key = PublicKey::read(file)?;
            ids.push(key.id.clone());
            keys.insert(key.id, key.key);
        }
        let threshold = if *role == ROOT { threshold } else { 1 };
        roles.insert(
            (*role).to_owned(),
            json!({"keyids": ids, "threshold": threshold}),
        );
    }
    let root = json!({"consistent_snapshot": true, "keys": keys, "roles": roles});
    let publish = |role: &str, body: Value| -> Result<Vec<u8>> {
        let dates = Dates {
            now,
            lifetime: about.lifetime(role),
        };
        let mut envelope = Envelope::new(body, role, 1, &dates);
        envelope.sign(&Authority::of_root(&root, role), keyring)?;
        let bytes = envelope.bytes()?;
        durable::write_with_mode(&metadata_file(dir, role, 1), &bytes, PUBLIC)?;
        Ok(bytes)
    };
    publish(ROOT, root.clone())?;
    let targets = publish(TARGETS, json!({"targets": {}}))?;
    let snapshot = publish(
        SNAPSHOT,
        json!({"meta": {"targets.json": meta(1, &targets)}}),
    )?;
    publish(
        TIMESTAMP,
        json!({"meta": {"snapshot.json": meta(1, &snapshot)}}),
    )?;
    durable::sync_file_system(dir)
}

fn aside(repo: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(repo.file_name().unwrap_or_default());
    name.push(durable::TEMPORARY);
    repo.with_file_name(name)
}
