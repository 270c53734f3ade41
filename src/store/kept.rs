//! The notes of data that is kept aside: `update/data/ID.json`, one for each operation whose data it is. Nothing else says where
//! that data belongs, so there is a copy of each, `ID.copy`, for when the note itself is damaged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{MAX_LIST, Store, checked};
use crate::model::id::OperationId;
use crate::model::kept::{FORMAT, Kept};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};

impl Store {
    fn kept_note(&self, id: OperationId) -> PathBuf {
        self.path("update/data").join(format!("{id}.json"))
    }

    /// What is kept aside, the oldest first.
    ///
    /// # Errors
    /// A note cannot be read: it may name data that must not be deleted.
    pub fn kept_data(&self) -> Result<Vec<Kept>> {
        let directory = self.path("update/data");
        let reading = || format!("reading {}", directory.display());
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing(reading)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.doing(reading)?.path();
            // What a cut has left of one is none.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let kept = read(&path).or_else(|e| read(&copy(&path))?.ok_or(e).map(Some));
            all.extend(kept?);
        }
        all.sort_by_key(|kept| kept.number);
        Ok(all)
    }

    /// Notes what is kept, in the place of what was noted of the same operation.
    pub fn note_kept(&self, kept: &Kept) -> Result<()> {
        let path = self.kept_note(kept.id);
        durable::create_dir(&self.path("update/data"), 0o700)?;
        checked::write(&path, kept)?;
        checked::write(&copy(&path), kept)
    }

    /// The notes, and copies of notes, that cannot be read, and why.
    pub(super) fn unreadable_kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("update/data"));
        let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
        let mut paths: Vec<PathBuf> = paths
            .filter(|path| path.extension().is_some_and(|e| e == "json" || e == "copy"))
            .collect();
        paths.sort();
        let unreadable = paths.iter().filter_map(|path| read(path).err());
        unreadable.map(|e| e.chain()).collect()
    }

    /// Nothing is kept of this operation any more.
    pub fn forget_kept(&self, id: OperationId) -> Result<()> {
        let path = self.kept_note(id);
        for path in [copy(&path), path] {
            if durable::is_there(&path)? {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// The copy of a note.
fn copy(note: &Path) -> PathBuf {
    note.with_extension("copy")
}

fn read(path: &Path) -> Result<Option<Kept>> {
    let kept = checked::read::<Kept>(path, MAX_LIST);
    match kept.map_err(|e| e.of(ErrorKind::NeedsPerson))? {
        Some(kept) if kept.format != FORMAT => Err(Error::with(
            ErrorKind::NeedsPerson,
            format!(
                "reading {}: format {} is unknown",
                path.display(),
                kept.format
            ),
        )),
        kept => Ok(kept),
    }
}
