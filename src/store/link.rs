//! The links that init scripts look through.

use std::fs;
use std::io;
use std::path::Path;

use super::Store;
use crate::model::slot::{Link, Set, Slot};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};

/// The commit point: one atomic step selects the active set. Higher layers need no more of it, so another system could
/// keep it in the variables of a boot loader, for example.
pub trait CommitPoint {
    /// What it selects.
    fn selected(&self) -> Link;
    /// Selects a set, in one step that is done or not done.
    fn select(&self, set: Set) -> Result<()>;
    /// Repairs the fixed links that lead to it, for the set that it is to select.
    fn repair(&self, set: Set) -> Result<()>;
    /// Hides the selected slot for this boot, where the link cannot be changed.
    fn hide(&self, slot: Slot) -> Result<()>;
}

/// The fixed links, and where they lead.
pub(super) const FIXED: [(&str, &str); 2] = [("bin", "current/bin"), ("share", "current/share")];

/// The priority link, `current`, with `bin` and `share` that look through it. It is hidden by an empty file system mounted
/// over the slot.
impl CommitPoint for Store {
    fn selected(&self) -> Link {
        match fs::read_link(self.path("current")) {
            Ok(target) => match target.to_str() {
                Some("slots/a") => Link::To(Slot::A),
                Some("slots/b") => Link::To(Slot::B),
                _ => Link::Foreign(target.display().to_string()),
            },
            // Where the data partition should be may be nothing, or a file.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Link::Absent
            }
            Err(e) => Link::Foreign(e.to_string()),
        }
    }

    fn select(&self, set: Set) -> Result<()> {
        let current = self.path("current");
        match set.slot() {
            Some(slot) => durable::link(&current, &format!("slots/{slot}")),
            None => durable::remove(&current),
        }
    }

    fn repair(&self, set: Set) -> Result<()> {
        for (name, target) in FIXED {
            let path = self.path(name);
            match fs::symlink_metadata(&path) {
                // Its files are those of a release, which is to run: the adoption goes on.
                Ok(meta) if meta.is_dir() && set != Set::Factory && self.is_prepared(name) => {
                    durable::exchange(&path, &self.adopted(name))?;
                }
                Ok(meta) if !meta.is_symlink() => {
                    return Err(Error::with(
                        ErrorKind::NeedsPerson,
                        format!(
                            "using {}: it is not a link to {target} and hides every release: take it over as the first \
                             release (`qx-update adopt`), or move it away",
                            path.display()
                        ),
                    ));
                }
                Ok(_) if fs::read_link(&path).is_ok_and(|to| to == Path::new(target)) => {}
                _ => durable::link(&path, target)?,
            }
        }
        Ok(())
    }

    fn hide(&self, slot: Slot) -> Result<()> {
        let path = self.slot(slot);
        rustix::mount::mount(
            c"qx-update-hidden",
            &path,
            c"tmpfs",
            rustix::mount::MountFlags::RDONLY | rustix::mount::MountFlags::NODEV,
            Some(c"size=4k,mode=755"),
        )
        .doing(|| format!("hiding {} for this boot", path.display()))
    }
}
