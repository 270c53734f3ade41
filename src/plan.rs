//! The plan of an install: what is fetched and what is reused, which services stop, how much space it takes at worst.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::digest::Digest;
use crate::error::{Context, Error, Exit, Result};
use crate::manifest::{Component, Kind, Manifest, Mode, Name, RelPath, Service};
use crate::repository::{Fetch, Repository, Target};
use crate::slot::Set;

/// Room for directories, the manifest, the seal and the records, in bytes.
const MARGIN: u64 = 1 << 20;
/// A file takes up to one block more than its length; with its inode this is a safe measure.
const PER_ENTRY: u64 = 8192;

/// Where a component comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The same bytes are installed already.
    Reuse {
        /// In this set.
        set: Set,
        /// As this component.
        component: Component,
    },
    /// From the repository.
    Fetch {
        /// Bytes of its artifact.
        length: u64,
        /// Bytes of it that an earlier attempt left.
        there: u64,
    },
}

/// What the plan depends on.
pub struct Ground<'a> {
    /// The installed sets with a manifest, the preferred one first.
    pub sets: &'a [(Set, Manifest)],
    /// What runs.
    pub active: Set,
    /// Whether artifacts are copied to the data directory before they are unpacked.
    pub copies_artifacts: bool,
    /// Where they are copied to.
    pub downloads: PathBuf,
    /// The largest release allowed, in bytes.
    pub release_bytes: u64,
    /// The directory of the slots.
    pub slots: PathBuf,
    /// The slot that the release goes to.
    pub alternate: PathBuf,
    /// Whether a service is restarted even if its files stay the same: it uses data that is changed, or runs from a slot that is
    /// given to the release.
    pub restarts: &'a dyn Fn(&Name) -> bool,
    /// Leftovers of earlier operations that nobody needs, the oldest first: they go before there is no space.
    pub leftovers: &'a [PathBuf],
    /// The most bytes that saving, rehearsing and restoring the data takes beside the slots.
    pub data_bytes: u64,
}

/// What will be done.
#[derive(Debug)]
pub struct Plan {
    /// For each component, in the manifest's order.
    pub origins: Vec<Origin>,
    /// The names of the services that will be stopped.
    pub services: Vec<String>,
    /// The most bytes that staging takes.
    pub bytes: u64,
    /// The most inodes that staging takes.
    pub entries: u64,
    /// Leftovers that have to go first.
    pub drops: Vec<PathBuf>,
    /// Whether the old content of the alternate slot has to go first.
    pub needs_the_fallbacks_space: bool,
    data_bytes: u64,
    names: Vec<String>,
    copies_artifacts: bool,
}

/// Makes the plan.
///
/// # Errors
/// [`Exit::NoSpace`] if it does not fit; [`Exit::Refused`] if the release is larger than allowed, or names an artifact
/// that the repository does not offer.
pub fn plan(
    manifest: &Manifest,
    ground: &Ground,
    repository: &Repository,
    source: &dyn Fetch,
) -> Result<Plan> {
    let size = manifest.size_bytes();
    if size > ground.release_bytes {
        return Err(Error::with(
            Exit::Refused,
            format!(
                "planning {}: it takes {size} bytes, and limits.release_bytes allows {}",
                manifest.version, ground.release_bytes
            ),
        ));
    }
    let mut origins = Vec::new();
    for component in &manifest.components {
        origins.push(match installed_already(component, ground.sets) {
            Some(origin) => origin,
            None => fetched(component, ground, repository, source)?,
        });
    }
    let active = ground
        .sets
        .iter()
        .find(|(set, _)| *set == ground.active)
        .map(|(_, manifest)| manifest);
    let mut plan = Plan {
        services: changed_services(active, Some(manifest), ground.restarts)
            .iter()
            .map(|s| s.name.to_string())
            .collect(),
        names: manifest
            .components
            .iter()
            .map(|c| c.name.to_string())
            .collect(),
        origins,
        bytes: 0,
        entries: 0,
        drops: Vec::new(),
        needs_the_fallbacks_space: false,
        data_bytes: ground.data_bytes,
        copies_artifacts: ground.copies_artifacts,
    };
    plan.add_up(manifest);
    let (mut free, mut inodes) = free_space(&ground.slots)?;
    let mut leftovers = ground.leftovers.iter();
    while plan.bytes > free || plan.entries > inodes {
        let Some(oldest) = leftovers.next() else {
            break;
        };
        let (bytes, entries) = used(oldest);
        free = free.saturating_add(bytes);
        inodes = inodes.saturating_add(entries);
        plan.drops.push(oldest.clone());
    }
    if plan.bytes <= free && plan.entries <= inodes {
        return Ok(plan);
    }
    // Without what the alternate slot holds: nothing can be reused from there then.
    let (old_bytes, old_entries) = used(&ground.alternate);
    plan.needs_the_fallbacks_space = true;
    for (component, origin) in manifest.components.iter().zip(&mut plan.origins) {
        if matches!(origin, Origin::Reuse { set, .. } if *set == Set::from(ground.active.alternate()))
        {
            *origin = fetched(component, ground, repository, source)?;
        }
    }
    plan.add_up(manifest);
    if plan.bytes <= free.saturating_add(old_bytes)
        && plan.entries <= inodes.saturating_add(old_entries)
    {
        return Ok(plan);
    }
    Err(Error::with(
        Exit::NoSpace,
        format!(
            "planning {}: it takes up to {} bytes{} and {} files in {}, and {free} bytes and {inodes} files are free",
            manifest.version,
            plan.bytes,
            plan.of_data(),
            plan.entries,
            ground.slots.display()
        ),
    ))
}

fn fetched(
    component: &Component,
    ground: &Ground,
    repository: &Repository,
    source: &dyn Fetch,
) -> Result<Origin> {
    let target = artifact(component, repository, source)?.1;
    let left =
        |name: String| fs::metadata(ground.downloads.join(name)).map_or(0, |meta| meta.len());
    let there = left(target.sha256.to_string()).max(left(format!("{}.part", target.sha256)));
    Ok(Origin::Fetch {
        length: target.length,
        there: there.min(target.length),
    })
}

/// Free bytes and inodes.
pub fn free_space(path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)
        .doing(|| format!("asking for the free space of {}", path.display()))?;
    // Some file systems make inodes as they go, and tell none.
    let inodes = if stat.f_files == 0 {
        u64::MAX
    } else {
        stat.f_favail
    };
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), inodes))
}

impl Plan {
    /// The most bytes that staging this component takes.
    pub fn share_of(&self, component: &Component, origin: &Origin) -> u64 {
        let artifact = match origin {
            Origin::Fetch { length, there } if self.copies_artifacts => length - there,
            _ => 0,
        };
        component
            .size_bytes
            .saturating_add(component.entries.saturating_mul(PER_ENTRY))
            .saturating_add(artifact)
    }

    /// For people, a line each.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, origin) in self.names.iter().zip(&self.origins) {
            lines.push(match origin {
                Origin::Reuse { set, .. } => format!("{name}: reuse from {set}"),
                Origin::Fetch { length, there: 0 } => format!("{name}: fetch {length} bytes"),
                Origin::Fetch { length, there } => {
                    format!("{name}: fetch {length} bytes, {there} of them are there")
                }
            });
        }
        lines.push(match self.services.as_slice() {
            [] => "no service is restarted".into(),
            services => format!("services to restart: {}", services.join(", ")),
        });
        lines.extend(
            self.drops
                .iter()
                .map(|path| format!("for its space, {} is deleted", path.display())),
        );
        lines.push(format!(
            "space: at most {} bytes{} and {} files",
            self.bytes,
            self.of_data(),
            self.entries
        ));
        lines
    }

    fn of_data(&self) -> String {
        match self.data_bytes {
            0 => String::new(),
            bytes => format!(", {bytes} of them for the data's way back,"),
        }
    }

    fn add_up(&mut self, manifest: &Manifest) {
        self.bytes = MARGIN.saturating_add(self.data_bytes);
        self.entries = 16;
        for (component, origin) in manifest.components.iter().zip(&self.origins) {
            self.bytes = self.bytes.saturating_add(self.share_of(component, origin));
            self.entries = self
                .entries
                .saturating_add(component.entries)
                .saturating_add(4);
        }
    }
}

/// The TUF target that a component comes in: its name, and where it is.
pub fn artifact(
    component: &Component,
    repository: &Repository,
    source: &dyn Fetch,
) -> Result<(String, Target)> {
    let refused =
        |why: &str| Error::with(Exit::Refused, format!("planning {}: {why}", component.name));
    let name = component
        .artifact
        .as_ref()
        .ok_or_else(|| refused("its manifest names no artifact"))?;
    let target = repository
        .target(source, name)?
        .ok_or_else(|| refused(&format!("the repository does not offer {name}")))?;
    Ok((name.to_string(), target))
}

fn installed_already(wanted: &Component, sets: &[(Set, Manifest)]) -> Option<Origin> {
    sets.iter().find_map(|(set, manifest)| {
        let same = |c: &&Component| {
            (c.kind, c.sha256, c.size_bytes, c.entries, c.mode)
                == (
                    wanted.kind,
                    wanted.sha256,
                    wanted.size_bytes,
                    wanted.entries,
                    wanted.mode,
                )
        };
        let component = manifest.components.iter().find(same)?.clone();
        Some(Origin::Reuse {
            set: *set,
            component,
        })
    })
}

/// The services whose files differ between two sets, and those that are restarted anyway, in order of starting; those that
/// only the old set has included. Without a manifest to compare with: all.
pub fn changed_services(
    old: Option<&Manifest>,
    new: Option<&Manifest>,
    restarts: &dyn Fn(&Name) -> bool,
) -> Vec<Service> {
    let (Some(old), Some(new)) = (old, new) else {
        let mut all: Vec<Service> = old.or(new).map(|m| m.services.clone()).unwrap_or_default();
        all.sort_by_key(|s| s.order);
        return all;
    };
    fn content(component: Option<&Component>) -> Option<(Kind, Digest, Mode, &RelPath)> {
        component.map(|c| (c.kind, c.sha256, c.mode, &c.install_path))
    }
    let unchanged = |service: &Service| {
        let before = |s: &&Service| s.name == service.name && s.runs == service.runs;
        !restarts(&service.name)
            && old.services.iter().any(|s| before(&s))
            && content(old.at(&service.runs)) == content(new.at(&service.runs))
            && service
                .uses
                .iter()
                .all(|name| content(old.component(name)) == content(new.component(name)))
    };
    let mut changed: Vec<Service> = new
        .services
        .iter()
        .filter(|s| !unchanged(s))
        .cloned()
        .collect();
    let gone = |s: &&Service| !new.services.iter().any(|n| n.name == s.name);
    changed.extend(old.services.iter().filter(gone).cloned());
    changed.sort_by_key(|s| s.order);
    changed
}

/// Bytes and inodes taken below a directory, as far as they can be seen.
pub fn used(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else {
        return (0, 0);
    };
    let mut sum = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let (bytes, entries) = used(&entry.path());
            sum = (sum.0 + bytes, sum.1 + entries);
        }
    }
    sum
}

/// Space that is held for what is still to be written, so that nobody else takes it meanwhile. Dropping it gives back
/// what is left.
pub struct Reserve {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Reserve {
    /// Takes `bytes` in a directory.
    pub fn new(directory: &Path, bytes: u64) -> Result<Reserve> {
        let path = directory.join(".reserve");
        let doing = || format!("reserving {bytes} bytes in {}", directory.display());
        // One that a killed process left.
        let _ = fs::remove_file(&path);
        let file = File::create_new(&path).doing(doing)?;
        let reserve = Reserve {
            file,
            path,
            left: bytes,
        };
        match rustix::fs::fallocate(&reserve.file, FallocateFlags::empty(), 0, bytes) {
            // A file system without the call cannot promise anything.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(reserve),
            Err(e) => Err(io::Error::from(e)).doing(doing),
        }
    }

    /// Gives so many bytes to what is written next.
    pub fn release(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.saturating_sub(bytes);
        let doing = || format!("releasing reserved space in {}", self.path.display());
        let length = self.file.metadata().doing(doing)?.len();
        if length > self.left {
            self.file.set_len(self.left).doing(doing)?;
        }
        Ok(())
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // It lies in a directory that is deleted or swept when this fails.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(node: &str, ui: &str, console: &str, services: &[&str]) -> Manifest {
        let component = |name: &str, kind: &str, path: &str, content: &str| {
            json!({"name": name, "kind": kind, "install_path": path, "mode": "0755",
                   "sha256": crate::digest::Digest::of(content.as_bytes()), "size_bytes": 1, "entries": 1})
        };
        let all = [
            json!({"name": "node", "runs": "bin/node", "uses": ["ui"], "order": 2}),
            json!({"name": "console", "runs": "bin/console", "order": 1}),
        ];
        let services: Vec<_> = all
            .into_iter()
            .filter(|s| services.contains(&s["name"].as_str().unwrap()))
            .collect();
        let text = json!({
            "format": 1, "product": "os", "version": "1.0.0", "arch": "x86_64", "channel": "stable", "released": "",
            "components": [component("node", "bin", "bin/node", node), component("ui", "tree", "share/ui", ui),
                           component("console", "bin", "bin/console", console)],
            "services": services,
        });
        Manifest::parse(&serde_json::to_vec(&text).unwrap()).unwrap()
    }

    fn changed(old: Option<&Manifest>, new: Option<&Manifest>) -> Vec<String> {
        changed_services(old, new, &|_| false)
            .iter()
            .map(|s| s.name.to_string())
            .collect()
    }

    #[test]
    fn only_services_whose_components_changed_are_restarted() {
        let both = ["node", "console"];
        let old = manifest("1", "1", "1", &both);
        for (new, expected) in [
            (manifest("1", "1", "1", &both), vec![]),
            (manifest("2", "1", "1", &both), vec!["node"]),
            (manifest("1", "2", "1", &both), vec!["node"]),
            (manifest("1", "1", "2", &both), vec!["console"]),
            (manifest("2", "1", "2", &both), vec!["console", "node"]),
            (manifest("1", "1", "1", &["node"]), vec!["console"]),
        ] {
            assert_eq!(changed(Some(&old), Some(&new)), expected);
        }
        assert_eq!(changed(None, Some(&old)), ["console", "node"]);
        assert_eq!(changed(Some(&old), None), ["console", "node"]);
        let same = manifest("1", "1", "1", &both);
        let console = |name: &Name| name.as_str() == "console";
        let using = changed_services(Some(&old), Some(&same), &console);
        assert_eq!(using.len(), 1, "it uses data that is changed: {using:?}");
    }

    #[test]
    fn the_same_bytes_are_reused_whatever_their_name() {
        let old = manifest("1", "1", "1", &[]);
        let new = manifest("2", "1", "1", &[]);
        let sets = [(Set::A, old)];
        assert_eq!(
            installed_already(&new.components[0], &sets),
            None,
            "node changed"
        );
        assert!(matches!(
            installed_already(&new.components[1], &sets),
            Some(Origin::Reuse { set: Set::A, .. })
        ));
    }

    #[test]
    fn a_reserve_holds_space_until_it_is_given() {
        let directory = std::env::temp_dir().join(format!("qx-reserve-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut reserve = Reserve::new(&directory, 100_000).unwrap();
        let path = directory.join(".reserve");
        reserve.release(40_000).unwrap();
        assert!(fs::metadata(&path).unwrap().len() <= 60_000);
        drop(reserve);
        assert!(!path.exists());
        fs::remove_dir_all(directory).unwrap();
    }
}
