//! The notes of data that is kept aside: `update/data/ID.json`, one for each operation whose data it is.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{MAX_LIST, Store, read_if_there};
use crate::model::id::OperationId;
use crate::model::kept::{FORMAT, Kept};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::json;

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
            let Some(bytes) = read_if_there(&path, MAX_LIST)? else {
                continue;
            };
            let wrong = |why: String| {
                Error::with(
                    ErrorKind::NeedsPerson,
                    format!("reading {}: {why}", path.display()),
                )
            };
            let kept: Kept = json::parse(&bytes).map_err(wrong)?;
            if kept.format != FORMAT {
                return Err(wrong(format!("format {} is unknown", kept.format)));
            }
            all.push(kept);
        }
        all.sort_by_key(|kept| kept.number);
        Ok(all)
    }

    /// Notes what is kept, in the place of what was noted of the same operation.
    pub fn note_kept(&self, kept: &Kept) -> Result<()> {
        let path = self.kept_note(kept.id);
        durable::create_dir(&self.path("update/data"), 0o700)?;
        let text = serde_json::to_vec(kept).doing(|| format!("writing {}", path.display()))?;
        durable::write(&path, &text)
    }

    /// Nothing is kept of this operation any more.
    pub fn forget_kept(&self, id: OperationId) -> Result<()> {
        let path = self.kept_note(id);
        match path.exists() {
            true => durable::remove(&path),
            false => Ok(()),
        }
    }
}
