//! What a flipped bit does to the updater's own files: it is found whichever of them it hits, and named; and what it hit is
//! written anew, or deleted where nothing but `status` depends on it.

use super::Store;
use crate::model::record::Record;
use qx_release::durable;
use qx_release::error::{Error, Result};

impl Store {
    /// What is damaged among the record, the notes, the seals and the list of refusals, a sentence each. The files of the
    /// releases are for [`Store::verify`].
    pub fn damaged(&self) -> Vec<String> {
        let mut damaged: Vec<String> = self.damaged_copies().collect();
        let notes = self.unreadable_notes().into_iter();
        damaged.extend(notes.map(|(_, why)| why.chain()));
        damaged.extend(self.refusals().err().map(|e| e.chain()));
        damaged.extend(self.unreadable_kept());
        damaged.extend(self.damaged_seals());
        damaged
    }

    fn damaged_copies(&self) -> impl Iterator<Item = String> {
        self.read_copies().into_iter().filter_map(Result::err)
    }

    /// Mends what is damaged, if that loses nothing that anything depends on; `record` is the one that counts. The list of
    /// refusals is left to a person: what failed here before is in no other place.
    pub fn mend(&self, record: &Record) -> Result<()> {
        // It is written over the older copy, and what is damaged counts as older than all.
        if self.damaged_copies().next().is_some() {
            self.save(record)?;
        }
        for (note, why) in self.unreadable_notes() {
            if is_damage(&why) {
                durable::remove(&self.path(note))?;
            }
        }
        if !self.unreadable_kept().is_empty() {
            for kept in self.kept_data()? {
                self.note_kept(&kept)?;
            }
        }
        self.mend_seals()
    }
}

/// Whether a file was read, and is not what was written. What cannot be read now may be in order.
pub(super) fn is_damage(why: &Error) -> bool {
    why.io_kind().is_none()
}
