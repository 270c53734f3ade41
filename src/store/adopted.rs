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
use qx_release::error::{Error, Result};

impl Store {
    /// Where what was in the place of a fixed link is kept, or the link that is to take its place.
    pub fn adopted(&self, name: &str) -> PathBuf {
        self.path("adopted").join(name)
    }

    /// The plain directories in the place of fixed links.
    pub fn plain(&self) -> Result<Vec<&'static str>> {
        directories(&|name| self.path(name))
    }

    /// The directories that were in the place of fixed links.
    pub fn kept_plain(&self) -> Result<Vec<&'static str>> {
        directories(&|name| self.adopted(name))
    }

    /// The manifest of the release that they became.
    pub fn adopted_release(&self) -> Result<Option<Digest>> {
        let found = read_manifest(&self.adopted(MANIFEST))?;
        Ok(found.map(|(_, digest)| digest))
    }

    /// Notes which release the plain directories become.
    pub fn note_adopted(&self, manifest: &[u8]) -> Result<()> {
        durable::create_dir(&self.path("adopted"), 0o755)?;
        durable::write(&self.adopted(MANIFEST), manifest)
    }

    /// Lays the links ready that are to take the place of the plain directories. Nothing follows from it before the record names
    /// their release.
    pub fn prepare_links(&self) -> Result<()> {
        let plain = self.plain()?;
        for (name, target) in FIXED {
            if plain.contains(&name) {
                durable::link(&self.adopted(name), target)?;
            }
        }
        // One bad look would leave half of it plain.
        match self
            .plain()?
            .into_iter()
            .find(|name| !self.is_prepared(name))
        {
            None => Ok(()),
            Some(left) => Err(Error::new(format!(
                "preparing {}: there is no link that could take its place",
                self.path(left).display()
            ))),
        }
    }

    /// Puts the plain directories back into their places. Their links lie ready again.
    pub fn restore_plain(&self) -> Result<()> {
        for name in self.kept_plain()? {
            durable::exchange(&self.adopted(name), &self.path(name))?;
        }
        // One bad look is not the end of a directory.
        match self.kept_plain()?.first() {
            None => Ok(()),
            Some(left) => Err(Error::new(format!(
                "restoring {}: it still is in {}",
                self.path(left).display(),
                self.adopted(left).display()
            ))),
        }
    }

    /// Removes what is left of an adoption that did not happen, or was undone: links that lead nowhere. No directory is deleted.
    pub fn drop_prepared(&self) -> Result<()> {
        let plain = self.plain()?;
        for (name, _) in FIXED {
            if !plain.contains(&name) {
                durable::remove(&self.path(name))?;
            }
        }
        self.forget_adopted(&durable::remove)
    }

    /// Removes what an adoption has left, each by these means. What others keep there stays.
    fn forget_adopted(&self, remove: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
        let adopted = self.path("adopted");
        if !durable::is_directory(&adopted)? {
            return Ok(());
        }
        for name in FIXED.map(|(name, _)| name).into_iter().chain([MANIFEST]) {
            remove(&self.adopted(name))?;
        }
        let is_empty = fs::read_dir(&adopted).is_ok_and(|mut entries| entries.next().is_none());
        match is_empty {
            true => durable::remove_empty(&adopted),
            false => Ok(()),
        }
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
        match self.plain()?.is_empty() && !self.in_use(&self.path("adopted")) {
            true => self.forget_adopted(&durable::remove_any),
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

/// The names of the fixed links at whose place a directory lies. What cannot be looked at is not absent.
fn directories(place: &dyn Fn(&str) -> PathBuf) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for (name, _) in FIXED {
        if durable::is_directory(&place(name))? {
            found.push(name);
        }
    }
    Ok(found)
}
