//! The plan of an install: what is fetched and what is reused, which services stop, how much space it takes at worst.

use crate::model::changes::changed_services;
use crate::system::space::{self, Space};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::fetch::port::{Fetch, Target};
use crate::model::kept::Kept;
use crate::model::slot::Set;
use crate::repository::Repository;
use qx_release::error::{Error, ErrorKind, Result};
use qx_release::manifest::{Component, Manifest, Name};

/// Room for directories, the manifest, the seal and the records.
const MARGIN: Space = Space {
    bytes: 1 << 20,
    entries: 16,
};
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
pub struct PlanContext<'a> {
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
    pub leftovers: &'a [Leftover],
    /// The most that a copy of the data and its migration take beside the slots.
    pub data: Space,
}

/// Something that nobody needs any more.
#[derive(Debug, Clone)]
pub enum Leftover {
    /// A file that was fetched.
    Download(PathBuf),
    /// Data that is kept, and what it takes.
    Data(Box<Kept>, Space),
}

impl Leftover {
    fn takes(&self) -> Space {
        match self {
            Leftover::Download(path) => space::used(path),
            Leftover::Data(_, takes) => *takes,
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Download(path) => path.display().fmt(f),
            Leftover::Data(kept, _) => kept.fmt(f),
        }
    }
}

/// What will be done.
#[derive(Debug)]
pub struct Plan {
    /// For each component, in the manifest's order.
    pub origins: Vec<Origin>,
    /// The names of the services that will be stopped.
    pub services: Vec<String>,
    /// The most that staging and the data take.
    pub needs: Space,
    /// Leftovers that have to go first.
    pub drops: Vec<Leftover>,
    /// Whether the old content of the alternate slot has to go first.
    pub needs_the_fallbacks_space: bool,
    data: Space,
    names: Vec<String>,
    copies_artifacts: bool,
}

/// Makes the plan.
///
/// # Errors
/// [`ErrorKind::NoSpace`] if it does not fit; [`ErrorKind::Publisher`] if the release is larger than allowed, or names an
/// artifact that the repository does not offer.
pub fn plan(
    manifest: &Manifest,
    context: &PlanContext,
    repository: &Repository,
    source: &dyn Fetch,
) -> Result<Plan> {
    check_size(manifest, context.release_bytes)?;
    let mut origins = Vec::new();
    for component in &manifest.components {
        origins.push(match installed_already(component, context.sets) {
            Some(origin) => origin,
            None => fetched(component, context, repository, source)?,
        });
    }
    let active = context
        .sets
        .iter()
        .find(|(set, _)| *set == context.active)
        .map(|(_, manifest)| manifest);
    let mut plan = Plan {
        services: changed_services(active, Some(manifest), context.restarts)
            .iter()
            .map(|s| s.name.to_string())
            .collect(),
        names: manifest
            .components
            .iter()
            .map(|c| c.name.to_string())
            .collect(),
        origins,
        needs: Space::default(),
        drops: Vec::new(),
        needs_the_fallbacks_space: false,
        data: context.data,
        copies_artifacts: context.copies_artifacts,
    };
    plan.add_up(manifest);
    let mut free = space::free_space(&context.slots)?;
    plan.drop_leftovers(context.leftovers, &mut free);
    if plan.needs.fits(free) {
        return Ok(plan);
    }
    // Without what the alternate slot holds: nothing can be reused from there then.
    let old = space::used(&context.alternate);
    plan.needs_the_fallbacks_space = true;
    for (component, origin) in manifest.components.iter().zip(&mut plan.origins) {
        if matches!(origin, Origin::Reuse { set, .. } if *set == Set::from(context.active.alternate()))
        {
            *origin = fetched(component, context, repository, source)?;
        }
    }
    plan.add_up(manifest);
    if plan.needs.fits(free.and(old)) {
        return Ok(plan);
    }
    Err(plan.no_space(manifest, &context.slots, free))
}

fn check_size(manifest: &Manifest, release_bytes: u64) -> Result<()> {
    let size = manifest.size_bytes();
    if size <= release_bytes {
        return Ok(());
    }
    Err(Error::with(
        ErrorKind::Publisher,
        format!(
            "planning {}: it needs {size} bytes, but limits.release_bytes is {release_bytes}",
            manifest.version
        ),
    ))
}

fn fetched(
    component: &Component,
    context: &PlanContext,
    repository: &Repository,
    source: &dyn Fetch,
) -> Result<Origin> {
    let target = artifact(component, repository, source)?.1;
    let left =
        |name: String| fs::metadata(context.downloads.join(name)).map_or(0, |meta| meta.len());
    let there = left(target.sha256.to_string()).max(left(format!("{}.part", target.sha256)));
    Ok(Origin::Fetch {
        length: target.length,
        there: there.min(target.length),
    })
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

    /// The plan as text, one line each.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, origin) in self.names.iter().zip(&self.origins) {
            lines.push(match origin {
                Origin::Reuse { set, .. } => format!("{name}: reuse from {set}"),
                Origin::Fetch { length, there: 0 } => format!("{name}: fetch {length} bytes"),
                Origin::Fetch { length, there } => {
                    format!("{name}: fetch {length} bytes, {there} of them already here")
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
                .map(|leftover| format!("deleting {leftover} to make room")),
        );
        lines.push(format!("space: at most {}{}", self.needs, self.of_data()));
        lines
    }

    fn of_data(&self) -> String {
        match self.data == Space::default() {
            true => String::new(),
            false => format!(" ({} of them to migrate a copy of the data)", self.data),
        }
    }

    fn no_space(&self, manifest: &Manifest, slots: &Path, free: Space) -> Error {
        Error::with(
            ErrorKind::NoSpace,
            format!(
                "planning {}: it needs up to {}{} in {}, but only {free} are free",
                manifest.version,
                self.needs,
                self.of_data(),
                slots.display()
            ),
        )
    }

    /// Chooses leftovers to go until it fits, or there are no more; `free` is what is free then.
    fn drop_leftovers(&mut self, leftovers: &[Leftover], free: &mut Space) {
        for oldest in leftovers {
            if self.needs.fits(*free) {
                return;
            }
            *free = free.and(oldest.takes());
            self.drops.push(oldest.clone());
        }
    }

    fn add_up(&mut self, manifest: &Manifest) {
        self.needs = MARGIN.and(self.data);
        for (component, origin) in manifest.components.iter().zip(&self.origins) {
            self.needs = self.needs.and(Space {
                bytes: self.share_of(component, origin),
                entries: component.entries.saturating_add(4),
            });
        }
    }
}

/// The TUF target that a component comes in: its name, and where it is.
pub fn artifact(
    component: &Component,
    repository: &Repository,
    source: &dyn Fetch,
) -> Result<(String, Target)> {
    let refused = |why: &str| {
        Error::with(
            ErrorKind::Publisher,
            format!("planning {}: {why}", component.name),
        )
    };
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
        let same = |c: &&Component| c.is_same(wanted);
        let component = manifest.components.iter().find(same)?.clone();
        Some(Origin::Reuse {
            set: *set,
            component,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A release of two programs with this content.
    fn manifest(node: &str, console: &str) -> Manifest {
        let component = |name: &str, content: &str| {
            json!({"name": name, "kind": "bin", "install_path": format!("bin/{name}"), "mode": "0755",
                   "sha256": qx_release::digest::Digest::of(content.as_bytes()), "size_bytes": 1, "entries": 1})
        };
        let text = json!({
            "format": 1, "product": "os", "version": "1.0.0", "arch": "x86_64", "channel": "stable", "released": "",
            "components": [component("node", node), component("console", console)],
        });
        Manifest::parse(&serde_json::to_vec(&text).unwrap()).unwrap()
    }

    #[test]
    fn the_same_bytes_are_reused_whatever_their_name() {
        let old = manifest("1", "1");
        let new = manifest("2", "1");
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
}
