//! Moves what is ready to its final names.

use std::collections::BTreeMap;
use std::fs;
use std::time::UNIX_EPOCH;

use super::{Change, write};
use crate::current::metadata_file;
use crate::draft::Draft;
use crate::envelope::Envelope;
use crate::role::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use qx_release::durable;
use qx_release::error::{Context, Result};
use qx_release::trust::clock::Clock;
use qx_release::trust::{Limits, SnapshotCopy, TrustedSet};

impl Change {
    /// Whether appliances would take what is about to be published: one that has seen the new root, and one that has
    /// not.
    pub(super) fn accepts(
        &self,
        ready: &BTreeMap<String, Draft>,
        new: &BTreeMap<&'static str, Envelope>,
    ) -> Result<()> {
        let doing = || "checking what would be published as an appliance would";
        let bytes = |role: &str| -> Result<Vec<u8>> {
            let proposed = ready
                .get(role)
                .map(|draft| &draft.envelope)
                .or(new.get(role));
            match proposed {
                Some(envelope) => envelope.bytes(),
                None => {
                    let file =
                        metadata_file(&self.current.dir, role, self.current.role(role)?.version());
                    fs::read(&file).doing(|| format!("reading {}", file.display()))
                }
            }
        };
        if ready.is_empty() && new.is_empty() {
            return Ok(());
        }
        let root = ready.get(ROOT);
        for seen in [false, true] {
            if !seen && root.is_some() && self.without_old_key {
                continue;
            }
            let first = metadata_file(&self.current.dir, ROOT, 1);
            let first = fs::read(&first).doing(|| format!("reading {}", first.display()))?;
            // Nothing was expired at the epoch: what has expired and is not renewed now must not keep the rest from
            // being renewed.
            let clock = Clock::new(UNIX_EPOCH, UNIX_EPOCH);
            let mut set = TrustedSet::new(&first, clock, &Limits::default()).doing(doing)?;
            for later in &self.current.roots[1..] {
                set.update_root(&later.bytes()?).doing(doing)?;
            }
            if seen && let Some(root) = root {
                set.update_root(&root.envelope.bytes()?).doing(doing)?;
            }
            let before = metadata_file(&self.current.dir, TIMESTAMP, 0);
            if let Ok(before) = fs::read(before) {
                // One that only the previous root's keys have signed is refused; any other tells what is a rollback.
                let _ = set.update_timestamp(&before);
            }
            set.update_timestamp(&bytes(TIMESTAMP)?).doing(doing)?;
            set.update_snapshot(&bytes(SNAPSHOT)?, SnapshotCopy::Announced)
                .doing(doing)?;
            set.update_targets(bytes(TARGETS)?).doing(doing)?;
        }
        Ok(())
    }

    pub(super) fn place_targets(&mut self) -> Result<()> {
        for (name, target, file) in std::mem::take(&mut self.added) {
            let place = self.current.target_file(&name, &target);
            if let Some(parent) = place.parent() {
                durable::create_dir(parent, 0o755)?;
            }
            durable::rename(&file, &place)?;
        }
        Ok(())
    }

    pub(super) fn place_metadata(
        &self,
        ready: &BTreeMap<String, Draft>,
        new: &BTreeMap<&'static str, Envelope>,
    ) -> Result<()> {
        let dir = &self.current.dir;
        let place = |role: &str, envelope: &Envelope| {
            let file = metadata_file(dir, role, envelope.version());
            write(&file, &envelope.bytes()?)
        };
        for (role, draft) in ready.iter().filter(|(role, _)| *role != ROOT) {
            place(role, &draft.envelope)?;
        }
        if let Some(snapshot) = new.get(SNAPSHOT) {
            place(SNAPSHOT, snapshot)?;
        }
        // Directories made on the way included: what the timestamp leads to must be there after a power cut.
        durable::sync_file_system(dir)?;
        let root = ready.get(ROOT).map(|draft| &draft.envelope);
        let timestamp = new.get(TIMESTAMP);
        if self.without_old_key
            && let (Some(root), Some(timestamp)) = (root, timestamp)
        {
            // Neither is trusted without the other: nothing but one rename may lie between them. The root is first,
            // for what is wrong between them is then mended by the next `refresh`.
            let staging = self.stage()?;
            let files = [(ROOT, root), (TIMESTAMP, timestamp)].map(|(role, envelope)| {
                let file = metadata_file(dir, role, envelope.version());
                (staging.join(format!("{role}.json")), file, envelope)
            });
            for (staged, _, envelope) in &files {
                write(staged, &envelope.bytes()?)?;
            }
            return files
                .iter()
                .try_for_each(|(staged, file, _)| durable::rename(staged, file));
        }
        if let Some(timestamp) = timestamp {
            place(TIMESTAMP, timestamp)?;
        }
        if let Some(root) = root {
            place(ROOT, root)?;
        }
        Ok(())
    }
}
