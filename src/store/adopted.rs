//! What was in the place of the fixed links before the appliance was adopted: `/data/adopted`.
//!
//! Before the adoption it holds the links, ready to change places with the directories; after it the directories, which can change
//! places with the links again. The record decides which of both is to be.

use std::fs;
use std::path::{Path, PathBuf};

use super::link::FIXED;
use super::{MANIFEST, Store, read_manifest};
use crate::model::slot::{Installed, Slot};
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::Result;

impl Store {
    /// Where what was in the place of a fixed link is kept, or the link that is to take its place.
    pub fn adopted(&self, name: &str) -> PathBuf {
        self.path("adopted").join(name)
    }

    /// The plain directories in the place of fixed links.
    pub fn plain(&self) -> Vec<&'static str> {
        let fixed = FIXED.into_iter().map(|(name, _)| name);
        fixed
            .filter(|name| is_directory(&self.path(name)))
            .collect()
    }

    /// The directories that were in the place of fixed links.
    pub fn kept_plain(&self) -> Vec<&'static str> {
        let fixed = FIXED.into_iter().map(|(name, _)| name);
        fixed
            .filter(|name| is_directory(&self.adopted(name)))
            .collect()
    }

    /// The manifest of the release that they became.
    pub fn adopted_release(&self) -> Result<Option<Digest>> {
        let found = read_manifest(&self.adopted(MANIFEST))?;
        Ok(found.map(|(_, digest)| digest))
    }

    /// Lays the links ready that are to take the place of the plain directories. Nothing follows from it before the record names
    /// the release with this manifest.
    pub fn prepare_links(&self, manifest: &[u8]) -> Result<()> {
        durable::create_dir(&self.path("adopted"), 0o755)?;
        durable::write(&self.adopted(MANIFEST), manifest)?;
        let plain = self.plain();
        let of_plain = FIXED.into_iter().filter(|(name, _)| plain.contains(name));
        of_plain
            .into_iter()
            .try_for_each(|(name, target)| durable::link(&self.adopted(name), target))
    }

    /// Puts the plain directories back into their places. Their links lie ready again.
    pub fn restore_plain(&self) -> Result<()> {
        self.kept_plain()
            .into_iter()
            .try_for_each(|name| durable::exchange(&self.adopted(name), &self.path(name)))
    }

    /// Removes what is left of an adoption that did not happen, or was undone: links that lead nowhere.
    pub fn drop_prepared(&self) -> Result<()> {
        let plain = self.plain();
        for (name, _) in FIXED {
            if !plain.contains(&name) {
                durable::remove(&self.path(name))?;
            }
        }
        durable::remove_any(&self.path("adopted"))
    }

    /// Deletes the plain directories once no slot holds their release any more, and no process uses them.
    pub(super) fn drop_adopted(&self) -> Result<()> {
        let Some(release) = self.adopted_release()? else {
            return Ok(());
        };
        for slot in Slot::BOTH {
            let there = durable::is_there(&self.slot(slot))?;
            if there
                && self
                    .manifest(slot.into())?
                    .is_some_and(|(_, d)| d == release)
            {
                return Ok(());
            }
        }
        match self.plain().is_empty() && !self.in_use(&self.path("adopted")) {
            true => durable::remove_any(&self.path("adopted")),
            false => Ok(()),
        }
    }

    /// Whether a link lies ready to take the place of the plain directory of this name.
    pub(super) fn is_prepared(&self, name: &str) -> bool {
        let target = FIXED.iter().find(|(fixed, _)| *fixed == name);
        target.is_some_and(|(_, target)| {
            fs::read_link(self.adopted(name)).is_ok_and(|to| to == Path::new(target))
        })
    }

    /// Whether this is the release that the plain directories became.
    pub fn is_adopted(&self, installed: &Installed) -> Result<bool> {
        Ok(self.adopted_release()?.is_some() && self.adopted_release()? == installed.manifest)
    }
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}
