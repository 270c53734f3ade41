//! What is noted beside the record: how fresh the trust is, what this boot found, and which release is watched; and that the one that
//! runs was withdrawn.

use serde::{Deserialize, Serialize};

use super::{MAX_LIST, MAX_REASON, Store, checked};
use crate::model::boots::{self, Boots};
use crate::model::id::BootId;
use crate::model::slot::{Set, Slot};
use crate::model::watch::{self, Watched};
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, Result};
use qx_release::text;
use qx_release::trust::Versions;

/// How many problems of a boot are kept.
const MAX_PROBLEMS: usize = 100;

/// The note of a refresh is at most this long, in bytes.
const MAX_REFRESHED: u64 = 1 << 16;

const REFRESHED: &str = "update/refreshed";
const WITHDRAWN: &str = "update/withdrawn.json";
const WATCHED: &str = "update/watched.json";
const BOOTS: &str = "update/boots.json";
const BOOT_NOTE: &str = "/run/qx-update/boot.json";
/// What `initramfs/qx-recover` says, which has no more than a shell: a line each, after the boot's id.
const BOOT_FAILED: &str = "/run/qx-update/boot-failed";

/// What the link stage found in this boot; kept in `/run`, so that it is told even if `/data` cannot be written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootNote {
    /// Which boot.
    pub boot_id: BootId,
    /// When (RFC 3339).
    pub time: String,
    /// The version of qx-update that did it; unknown of one that did not say so.
    #[serde(default)]
    pub by: Option<String>,
    /// What was to be used.
    pub show: Set,
    /// The slot that is hidden until the next boot, because the links could not be changed.
    #[serde(default)]
    pub hidden: Option<Slot>,
    /// What a person should know.
    pub problems: Vec<String>,
}

/// The last refresh of trust that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    /// The time that was assumed (RFC 3339).
    pub time: String,
    /// The source.
    pub source: String,
    /// Whether expiry was checked against the current time, or only against the latest trusted time.
    pub freshness: Freshness,
    /// What the system's clock said (RFC 3339).
    pub clock: String,
    /// The versions that are trusted since.
    pub trust: Versions,
}

/// That a release was withdrawn, by the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawnNote {
    /// The release.
    pub manifest: Digest,
    /// A sentence without its end: who did what, and why.
    pub what: String,
}

/// Whether the metadata are known to be current, so that nothing newer was withheld.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// The clock was trusted.
    Verified,
    /// The clock was implausible: before the latest trusted time, or too far in the future.
    NotVerified,
}

impl Store {
    /// Notes a refresh of trust, for `status`.
    pub fn write_refreshed(&self, refreshed: &Refreshed) -> Result<()> {
        let refreshed = &Refreshed {
            source: text::clean(&refreshed.source, MAX_REASON),
            ..refreshed.clone()
        };
        checked::write(&self.path(REFRESHED), refreshed)
    }

    /// The last refresh of trust, if any is known.
    pub fn refreshed(&self) -> Result<Option<Refreshed>> {
        checked::read(&self.path(REFRESHED), MAX_REFRESHED)
    }

    /// Notes that the release that runs was withdrawn, or that it was not.
    pub fn write_withdrawn(&self, note: Option<&WithdrawnNote>) -> Result<()> {
        let path = self.path(WITHDRAWN);
        match note {
            Some(note) => checked::write(&path, note),
            None => durable::remove(&path),
        }
    }

    /// The note that a release was withdrawn.
    pub fn withdrawn(&self) -> Result<Option<WithdrawnNote>> {
        checked::read(&self.path(WITHDRAWN), MAX_LIST)
    }

    /// Notes that a release is watched.
    pub fn watch(&self, watched: &Watched) -> Result<()> {
        checked::write(&self.path(WATCHED), watched)
    }

    /// The release that is watched, if one is.
    pub fn watched(&self) -> Result<Option<Watched>> {
        let watched: Option<Watched> = checked::read(&self.path(WATCHED), MAX_LIST)?;
        Ok(watched.filter(|watched| watched.format == watch::FORMAT))
    }

    /// None is watched any more.
    pub fn forget_watched(&self) -> Result<()> {
        durable::remove(&self.path(WATCHED))
    }

    /// How the last boots went. A damaged note tells nothing.
    pub fn boots(&self) -> Boots {
        let boots = self.noted_boots().ok().flatten();
        boots.unwrap_or_default()
    }

    fn noted_boots(&self) -> Result<Option<Boots>> {
        let boots: Option<Boots> = checked::read(&self.path(BOOTS), MAX_LIST)?;
        Ok(boots.filter(|boots| boots.format == boots::FORMAT))
    }

    /// Notes how the last boots went.
    pub fn write_boots(&self, boots: &Boots) -> Result<()> {
        checked::write(&self.path(BOOTS), boots)
    }

    /// This boot has come to its end: its runlevel is complete.
    pub fn complete_boot(&self) -> Result<()> {
        let mut boots = self.boots();
        let now = self.host.boot_id()?;
        match boots.boots.last_mut() {
            Some(boot) if boot.boot_id == now && !boot.complete => boot.complete = true,
            _ => return Ok(()),
        }
        self.write_boots(&boots)
    }

    /// The notes that cannot be read, and why. No set depends on one of them, and each is written anew when there is news.
    pub(super) fn unreadable_notes(&self) -> Vec<(&'static str, Error)> {
        let refreshed = (REFRESHED, self.refreshed().err());
        let withdrawn = (WITHDRAWN, self.withdrawn().err());
        let watched = (WATCHED, self.watched().err());
        let boots = (BOOTS, self.noted_boots().err());
        let notes = [refreshed, withdrawn, watched, boots].into_iter();
        notes.filter_map(|(path, why)| Some((path, why?))).collect()
    }

    /// Leaves a note about this boot in `/run`.
    pub fn write_boot_note(&self, note: &BootNote) -> Result<()> {
        let path = self.host.path(BOOT_NOTE)?;
        let directory = path.parent().unwrap_or(&path);
        durable::create_dir(directory, 0o755)?;
        let problems = note.problems.iter().take(MAX_PROBLEMS);
        let note = &BootNote {
            problems: problems
                .map(|problem| text::clean(problem, MAX_REASON))
                .collect(),
            ..note.clone()
        };
        let text = serde_json::to_vec(note).doing(|| format!("writing {}", path.display()))?;
        durable::write_with_mode(&path, &text, 0o644)
    }

    /// The note about this boot, if the link stage has left one.
    pub fn boot_note(&self) -> Result<Option<BootNote>> {
        let path = self.host.path(BOOT_NOTE)?;
        let Some(note) = checked::read::<BootNote>(&path, MAX_LIST)? else {
            return Ok(None);
        };
        Ok((note.boot_id == self.host.boot_id()?).then_some(note))
    }

    /// Why this boot could not be put right before it began: a sentence each.
    pub fn boot_failures(&self) -> Result<Vec<String>> {
        let path = self.host.path(BOOT_FAILED)?;
        let Some(bytes) = super::read_if_there(&path, MAX_LIST)? else {
            return Ok(Vec::new());
        };
        let boot = self.host.boot_id()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines
            .filter(|(id, _)| BootId::from(*id) == boot)
            .map(|(_, why)| text::clean(why, MAX_REASON))
            .take(MAX_PROBLEMS)
            .collect())
    }
}
