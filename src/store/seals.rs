//! Whether a set is what was signed: its files against its manifest, its manifest against the seal that it got when it was
//! installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::damage::is_damage;
use super::{MANIFEST, STUB, Store, checked, installed, is_absent, read_if_there};
use crate::model::slot::{Installed, Set, Slot, Verdict};
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, Result};
use qx_release::json;
use qx_release::manifest::{self, Component, Kind, Manifest, Name, RelPath};
use qx_release::text;
use qx_release::tree;
use qx_release::trust::Versions;

/// The longest list of the names of a release's files, in bytes.
const MAX_NAMES: u64 = 256 << 20;

/// Binds a slot to the signatures it came with. Kept outside the slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seal {
    /// 1.
    format: u32,
    /// The digest of the release's manifest.
    manifest: Digest,
    /// The versions of the TUF metadata that led to it.
    trust: Versions,
    /// The digest of the list of its files' names; absent in seals of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    names: Option<Digest>,
}

/// Where a seal was damaged, and with it what it said of these; or where nothing was ever signed.
const UNKNOWN: Versions = Versions {
    root: 0,
    timestamp: 0,
    snapshot: 0,
    targets: 0,
};

/// The names of the files in a release's trees, by component.
type Names = BTreeMap<Name, BTreeSet<String>>;

/// Whether exactly this component lies there; if not, one sentence says why.
pub(super) type Look<'a> = dyn Fn(&Component, &Path) -> Result<(), String> + Sync + 'a;

/// A set that was verified, with what its manifest says: who goes on with it does not read that again.
pub struct Verified {
    /// What it is.
    pub installed: Installed,
    /// As it was signed.
    pub manifest: Manifest,
}

impl Store {
    /// Verifies a slot: files against manifest, manifest against seal. Reads all of it.
    pub fn verify(&self, slot: Slot) -> Verdict {
        match self.verified(slot) {
            Ok(Some(verified)) => Verdict::Good(verified.installed),
            Ok(None) => Verdict::Empty,
            Err(why) => Verdict::Damaged(why),
        }
    }

    /// The same, with what the manifest says; `None` if the slot is empty.
    pub(super) fn verified(&self, slot: Slot) -> Result<Option<Verified>, String> {
        twice(&|| self.verified_once(slot)).map_err(|why| text::line(&why))
    }

    fn verified_once(&self, slot: Slot) -> Result<Option<Verified>, String> {
        let directory = self.slot(slot);
        // What cannot be looked at is not empty.
        match fs::symlink_metadata(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("examining {}: {e}", directory.display())),
            Ok(_) => {}
        }
        let bytes = read_if_there(&directory.join(MANIFEST), manifest::MAX_BYTES)
            .map_err(|e| e.chain())?
            .ok_or("it has no manifest")?;
        let digest = Digest::of(&bytes);
        // It is the name of the seal that says which manifest was signed: see `damaged_seals` for what is in it.
        if is_absent(&self.seal_path(digest)) {
            let manifest = directory.join(MANIFEST);
            return Err(format!("{} has no seal ({digest})", manifest.display()));
        }
        let manifest = Manifest::parse(&bytes)?;
        let sealed = self.names_path(digest);
        verify_files(&manifest, &directory, &|component, path| {
            tree::matches(component, path).or_else(|why| {
                // Something that was laid beside its files is not a change of them.
                let names = sealed_names(&sealed, component);
                let among = |names| tree::matches_among(component, path, &names);
                names.map_or(Err(why), among)
            })
        })?;
        Ok(Some(Verified {
            installed: installed(slot.into(), &manifest, digest),
            manifest,
        }))
    }

    /// Verifies the factory set's files against its manifest, if it has one. Reads all of it.
    pub fn verify_factory(&self) -> Result<Option<Installed>, String> {
        twice(&|| {
            let manifest = self.manifest(Set::Factory).map_err(|e| e.chain())?;
            let Some((manifest, digest)) = manifest else {
                return Ok(None);
            };
            let host = &self.host;
            side_by_side(&manifest.components, &|component| {
                let path = host.path(&component.in_image());
                tree::matches(component, &path.map_err(|e| e.chain())?)
            })?;
            Ok(Some(installed(Set::Factory, &manifest, digest)))
        })
    }

    /// Verifies a set that was staged and synced: of each component, what the medium holds.
    pub fn verify_staged(&self, slot: Slot, manifest: &Manifest, on_medium: &Look) -> Result<()> {
        verify_files(manifest, &self.next(slot), on_medium).map_err(|why| {
            Error::new(format!(
                "verifying {} on disk: {why}",
                self.next(slot).display()
            ))
        })
    }

    /// Writes the seal of a release that lies complete and verified in a slot's next content, and the names of its files.
    pub fn seal(
        &self,
        slot: Slot,
        manifest: &Manifest,
        digest: Digest,
        trust: Versions,
    ) -> Result<()> {
        let mut names = Names::new();
        for component in manifest.components.iter().filter(|c| c.kind == Kind::Tree) {
            let place = self.next(slot).join(&component.install_path);
            names.insert(component.name.clone(), tree::names(component.kind, &place)?);
        }
        self.write_seal(digest, trust, &names)
    }

    /// Seals a release that no signature led to: what lay here already when qx-update took over.
    pub fn seal_adopted(&self, slot: Slot, manifest: &Manifest, digest: Digest) -> Result<()> {
        self.seal(slot, manifest, digest, UNKNOWN)
    }

    fn write_seal(&self, manifest: Digest, trust: Versions, names: &Names) -> Result<()> {
        let names = serde_json::to_vec(names).doing(|| "writing the names of a release's files")?;
        durable::write(&self.names_path(manifest), &names)?;
        let seal = Seal {
            format: 1,
            manifest,
            trust,
            names: Some(Digest::of(&names)),
        };
        checked::write(&self.seal_path(manifest), &seal)
    }

    /// What is damaged of the seals of the releases in both slots, a sentence each. A release runs on without it: its files are
    /// measured against its manifest, and the manifest against the name of the seal.
    pub(super) fn damaged_seals(&self) -> Vec<String> {
        let sealed = self.sealed().into_iter();
        sealed
            .filter_map(|(_, _, digest)| self.intact_seal(digest).err())
            .map(|e| e.chain())
            .collect()
    }

    /// Writes damaged seals anew, of releases that are intact.
    pub(super) fn mend_seals(&self) -> Result<()> {
        for (slot, manifest, digest) in self.sealed() {
            let damaged = self.intact_seal(digest).is_err_and(|e| is_damage(&e));
            if !damaged || !matches!(self.verify(slot), Verdict::Good(_)) {
                continue;
            }
            let trust = self.seal_of(digest).map_or(UNKNOWN, |seal| seal.trust);
            let mut names = Names::new();
            for tree in manifest.components.iter().filter(|c| c.kind == Kind::Tree) {
                let place = self.slot(slot).join(&tree.install_path);
                // Where something was laid beside its files, it was the list that told them apart.
                let own = match (
                    tree::matches(tree, &place),
                    sealed_names(&self.names_path(digest), tree),
                ) {
                    (Err(_), Some(own)) => own,
                    _ => tree::names(tree.kind, &place)?,
                };
                names.insert(tree.name.clone(), own);
            }
            self.write_seal(digest, trust, &names)?;
        }
        Ok(())
    }

    /// The slots whose manifest can be read and has a seal.
    fn sealed(&self) -> Vec<(Slot, Manifest, Digest)> {
        let read = |slot: Slot| {
            let (manifest, digest) = self.manifest(slot.into()).ok()??;
            Some((slot, manifest, digest)).filter(|_| !is_absent(&self.seal_path(digest)))
        };
        Slot::BOTH.into_iter().filter_map(read).collect()
    }

    /// Whether a seal and its list of names are as they were written.
    fn intact_seal(&self, manifest: Digest) -> Result<()> {
        let Some(sealed) = self.seal_of(manifest)?.names else {
            return Ok(());
        };
        let path = self.names_path(manifest);
        let names = read_if_there(&path, MAX_NAMES)?;
        match names.is_some_and(|names| Digest::of(&names) == sealed) {
            true => Ok(()),
            false => Err(Error::new(format!(
                "reading {}: it is not the list that was sealed",
                path.display()
            ))),
        }
    }

    /// What was laid into the trees of a release since it was installed.
    pub fn added(&self, slot: Slot, manifest: &Manifest, digest: Digest) -> Vec<PathBuf> {
        let trees = manifest.components.iter().filter(|c| c.kind == Kind::Tree);
        trees
            .filter_map(|tree| {
                let names = sealed_names(&self.names_path(digest), tree)?;
                Some(tree::added(
                    &self.slot(slot).join(&tree.install_path),
                    &names,
                ))
            })
            .flatten()
            .collect()
    }

    /// Drops the seals of releases that are in no slot.
    pub fn prune_seals(&self) -> Result<()> {
        let mut kept = Vec::new();
        for slot in Slot::BOTH {
            if !durable::is_there(&self.slot(slot))? {
                continue;
            }
            // One that cannot be read now may be read later, and needs its seal then.
            if let Some((_, digest)) = self.manifest(slot.into())? {
                kept.push(self.seal_path(digest));
                kept.push(self.names_path(digest));
            }
        }
        let directory = self.path("update/seals");
        let entries =
            fs::read_dir(&directory).doing(|| format!("reading {}", directory.display()))?;
        for entry in entries {
            let path = entry
                .doing(|| format!("reading {}", directory.display()))?
                .path();
            if !kept.contains(&path) {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }

    fn names_path(&self, manifest: Digest) -> PathBuf {
        self.path("update/seals").join(format!("{manifest}.names"))
    }

    fn seal_path(&self, manifest: Digest) -> PathBuf {
        self.path("update/seals").join(format!("{manifest}.json"))
    }

    /// The seal of a release.
    fn seal_of(&self, manifest: Digest) -> Result<Seal> {
        let path = self.seal_path(manifest);
        let seal = checked::read::<Seal>(&path, 64 * 1024)?;
        let own = |seal: &Seal| seal.format == 1 && seal.manifest == manifest;
        seal.filter(own).ok_or_else(|| {
            let path = path.display();
            Error::new(format!("reading {path}: it is no seal of its release"))
        })
    }
}

/// The names of a tree's entries, of a release that was sealed here. They decide nothing by themselves: with them left alone,
/// the digest must be the signed one.
fn sealed_names(sealed: &Path, component: &Component) -> Option<BTreeSet<String>> {
    let bytes = read_if_there(sealed, MAX_NAMES).ok()??;
    let mut names: Names = json::parse(&bytes).ok()?;
    names.remove(&component.name)
}

/// Looks again at what was not good: a set is not given up for a moment without memory or open files, nor for one bad read.
fn twice<T>(verify: &dyn Fn() -> Result<T, String>) -> Result<T, String> {
    verify().or_else(|_| verify())
}

/// Looks at these components on all cores. What is wrong is said of the one that was found first.
fn side_by_side(
    components: &[Component],
    look: &(dyn Fn(&Component) -> Result<(), String> + Sync),
) -> Result<(), String> {
    let left: Mutex<Vec<&Component>> = Mutex::new(components.iter().collect());
    let wrong = Mutex::new(None);
    let work = || {
        loop {
            // In a line of its own: the others go on taking meanwhile.
            let taken = largest(&mut locked(&left), |component| component.size_bytes);
            let Some(component) = taken else {
                return;
            };
            if let Err(why) = look(component) {
                locked(&wrong).get_or_insert(why);
            }
        }
    };
    let cores = rustix::thread::sched_getaffinity(None).map_or(1, |cores| cores.count() as usize);
    thread::scope(|threads| {
        for _ in 1..cores.min(components.len()) {
            // Where there can be no other thread, it takes longer.
            let _ = thread::Builder::new().spawn_scoped(threads, work);
        }
        work();
    });
    wrong
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(()), Err)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the largest, of several the first: what comes last is to be small, for then there is nothing beside it.
pub fn largest<T>(of: &mut Vec<T>, size: impl Fn(&T) -> u64) -> Option<T> {
    let at = (0..of.len()).rev().max_by_key(|at| size(&of[*at]))?;
    Some(of.remove(at))
}

fn verify_files(manifest: &Manifest, directory: &Path, matches: &Look) -> Result<(), String> {
    side_by_side(&manifest.components, &|component| {
        no_links_above(directory, &component.install_path)?;
        matches(component, &directory.join(&component.install_path))
    })?;
    for path in &manifest.removed {
        no_links_above(directory, path)?;
        let stub = directory.join(path);
        let found = fs::read(&stub).map_err(|e| format!("{}: {e}", stub.display()))?;
        let executable = fs::metadata(&stub).is_ok_and(|meta| meta.mode() & 0o111 != 0);
        if found != STUB || !executable {
            return Err(format!(
                "{} is not the stub of a removed component",
                stub.display()
            ));
        }
    }
    // A file more in bin would be started by the init script of its name.
    let bin = directory.join("bin");
    let expected = |name: &str| {
        let path: Result<RelPath, _> = format!("bin/{name}").parse();
        path.is_ok_and(|path| {
            let installed = manifest.components.iter().map(|c| &c.install_path);
            installed
                .chain(&manifest.removed)
                .any(|p| p.below(&path).is_some())
        })
    };
    if let Ok(entries) = fs::read_dir(&bin) {
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !name.to_str().is_some_and(expected) {
                return Err(format!(
                    "{} belongs to no component",
                    entry.path().display()
                ));
            }
        }
    }
    Ok(())
}

/// Whether a path in a slot is really there, and not reached through a link.
fn no_links_above(directory: &Path, path: &RelPath) -> Result<(), String> {
    let parents = Path::new(path.as_str()).ancestors().skip(1);
    for parent in parents.filter(|parent| !parent.as_os_str().is_empty()) {
        let parent = directory.join(parent);
        if fs::symlink_metadata(&parent).is_ok_and(|meta| meta.is_symlink()) {
            return Err(format!("{} is a symbolic link", parent.display()));
        }
    }
    Ok(())
}
