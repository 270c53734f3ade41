//! The repository on the publisher's disk, as a reader sees it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::current::About;
use crate::error::{Context, Error, Result};
use crate::manifest::{Name, RelPath};
use crate::repository::{metadata_path, target_path};
use crate::trust::clock::Clock;
use crate::trust::key::Keys;
use crate::trust::metadata::TargetFile;
use crate::trust::{self, Limits, Role, TrustedSet};

/// What a repository offers now, verified as an appliance would, but for expiry: what expired is renewed by
/// the next publication.
pub struct State {
    /// The directory.
    pub dir: PathBuf,
    /// Whose releases these are.
    pub product: Name,
    /// The metadata.
    pub set: TrustedSet,
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
        let about = About::read(dir)?;
        let path = metadata_path(Role::Root, Some(1));
        let root = read(&path)?;
        // Nothing was expired at the epoch.
        let mut set = TrustedSet::new(
            &root,
            Clock::new(UNIX_EPOCH, UNIX_EPOCH),
            &Limits::default(),
        )
        .doing(|| format!("verifying {}", dir.join(path).display()))?;
        loop {
            let path = metadata_path(Role::Root, Some(set.root().version + 1));
            if !dir.join(&path).exists() {
                break;
            }
            let root = read(&path)?;
            verify(&path, set.update_root(&root))?;
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
}

/// How many of a role's keys this version could verify.
pub fn usable(keys: &Keys, ids: impl IntoIterator<Item = impl AsRef<str>>) -> usize {
    ids.into_iter()
        .filter(|id| keys.contains_key(id.as_ref()))
        .count()
}
