//! Changing a repository so that readers see all of a change or nothing of it.
//!
//! A [`Change`] collects what is new: target files, and new versions of the root, the targets and teams. [`Change::commit`]
//! finds out which of them have the signatures that they need and fit together, publishes these, and leaves the others
//! as drafts.
//!
//! The order in which files come under their final names makes the change whole for readers at every moment:
//! targets' files and versioned metadata first, to which nothing refers yet; then the timestamp, by one rename; then the
//! root. Where a role's keys change, its metadata are signed by the old and the new keys before the root that takes the
//! old ones away appears, and so verify under both.

mod asks;
mod publish;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::current::{Current, DAY, PUBLIC};
use super::draft::{self, Draft};
use super::envelope::{Dates, Envelope};
use super::keyring::Keyring;
use super::role::{TIMESTAMP, kind};
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Component, Name, RelPath};
use qx_release::trust::described::TargetFile;

/// Where a change is put together before any of it is published.
const STAGING: &str = ".staging";

/// A change of a repository that this process alone publishes to.
pub struct Change {
    /// What is published now.
    pub current: Current,
    /// The drafts that wait, by role.
    pub drafts: BTreeMap<String, Draft>,
    /// The old key of a role whose keys change is lost: its signature is not waited for.
    pub without_old_key: bool,
    now: SystemTime,
    staging: PathBuf,
    added: Vec<(RelPath, TargetFile, PathBuf)>,
    proposals: BTreeMap<String, Draft>,
    // The proposals that this process made, and therefore signs.
    own: BTreeSet<String>,
    renew: BTreeSet<&'static str>,
    // Released when it is closed, however this process ends.
    _lock: File,
}

/// What a command did to a repository.
#[derive(Debug, Default)]
pub struct Done {
    /// The metadata that were published, for people.
    pub published: Vec<String>,
    /// The drafts that wait now, and what for.
    pub waiting: Vec<Waiting>,
}

/// A draft that waits.
#[derive(Debug)]
pub struct Waiting {
    /// The role.
    pub role: String,
    /// The file.
    pub file: PathBuf,
    /// What is missing.
    pub why: String,
}

impl Change {
    /// Opens the repository in a directory for publishing; [`ErrorKind::Busy`] if another process has done so.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Change> {
        let locked = dir.join("metadata");
        let lock = File::open(&locked).doing(|| format!("opening {}", locked.display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::with(
                    ErrorKind::Busy,
                    format!(
                        "another qx-publish is publishing to {}; retry when it has finished",
                        dir.display()
                    ),
                ));
            }
            result => result.doing(|| format!("locking {}", locked.display()))?,
        }
        // What a publisher left that was interrupted.
        let staging = dir.join(STAGING);
        durable::remove_tree(&staging)?;
        let current = Current::load(dir)?;
        let drafts = draft::waiting(&current)?;
        Ok(Change {
            current,
            drafts,
            without_old_key: false,
            now,
            staging,
            added: Vec::new(),
            proposals: BTreeMap::new(),
            own: BTreeSet::new(),
            renew: BTreeSet::new(),
            _lock: lock,
        })
    }

    /// The directory to put new files together in; it goes when the change is dropped.
    pub fn stage(&self) -> Result<PathBuf> {
        durable::create_dir(&self.staging, 0o700)?;
        Ok(self.staging.clone())
    }

    /// The target name for an artifact, and whether it is new. A component that did not change is published once.
    /// The same content may have to be packed anew, though (at another path, with another mode): it then gets a
    /// number, for what is published never changes.
    pub fn artifact_name(
        &self,
        product: &Name,
        component: &Component,
        artifact: &TargetFile,
    ) -> Result<(RelPath, bool)> {
        let stem = format!(
            "{product}/artifacts/{}-{}",
            component.name, component.sha256
        );
        for number in 1.. {
            let name = match number {
                1 => format!("{stem}.tar.gz"),
                _ => format!("{stem}.{number}.tar.gz"),
            };
            let name: RelPath = name.parse().map_err(Error::new)?;
            match self.current.search(&name) {
                Some((_, published)) if published == *artifact => return Ok((name, false)),
                Some(_) => {}
                None => return Ok((name, true)),
            }
        }
        Err(Error::new(format!("{stem}: no name is left")))
    }

    /// Adds a staged file to what will be published.
    pub fn add(&mut self, name: RelPath, target: TargetFile, file: PathBuf) {
        self.added.push((name, target, file));
    }

    /// What a role says now: the root, the targets or a team. A new team says nothing yet.
    pub fn body(&self, role: &str) -> Value {
        match self.current.role(role) {
            Ok(envelope) => envelope.signed.clone(),
            Err(_) => json!({"targets": {}}),
        }
    }

    /// Proposes a new version of the root, the targets or a team.
    ///
    /// # Errors
    /// A draft of the same role waits that says something else. One that says the same is kept, with its signatures.
    pub fn propose(&mut self, role: &str, body: Value) -> Result<()> {
        let envelope = self.next(role, body);
        let mut proposal = Draft {
            role: role.to_owned(),
            envelope,
            asks: Vec::new(),
        };
        if let Some(waiting) = self.drafts.get(role) {
            let content = |envelope: &Envelope| {
                let mut body = envelope.signed.clone();
                for member in ["version", "expires", "x-issued", "spec_version", "_type"] {
                    body[member] = Value::Null;
                }
                body
            };
            let said = content(&waiting.envelope);
            let fresh = waiting.envelope.version() == proposal.envelope.version()
                && waiting.envelope.expires() <= proposal.envelope.expires() + DAY;
            if said == content(&proposal.envelope) && fresh {
                proposal.envelope = waiting.envelope.clone();
            } else if self.current.role(role).ok().map(content) != Some(said) {
                // One that says what is published already is only a renewal, and no loss.
                return Err(Error::new(format!(
                    "a different draft of the {role} metadata is waiting for signatures; publish it with `qx-publish sign` or remove {}",
                    waiting.file(&self.current.dir).display()
                )));
            }
        }
        self.proposals.insert(role.to_owned(), proposal);
        self.own.insert(role.to_owned());
        Ok(())
    }

    /// Has the snapshot or the timestamp signed again, though nothing else asks for it.
    pub fn renew(&mut self, role: &'static str) {
        self.renew.insert(role);
    }

    /// Takes up the drafts that wait, as they are. They are not signed here: that takes somebody who looks at them.
    pub fn take_up_drafts(&mut self) -> Result<()> {
        self.proposals = std::mem::take(&mut self.drafts);
        self.complete_asks()
    }

    /// Adds the signatures of a draft that was signed elsewhere; the ids of the keys whose signatures are new.
    pub fn add_signatures(&mut self, signed: &Envelope) -> Result<Vec<String>> {
        let message = signed.message()?;
        for draft in self.proposals.values_mut() {
            if draft.envelope.message()? == message {
                return draft.collect(signed);
            }
        }
        let waiting: Vec<String> = self
            .proposals
            .values()
            .map(|draft| draft.file(&self.current.dir).display().to_string())
            .collect();
        Err(Error::new(match &waiting[..] {
            [] => format!("no draft is pending in {}", self.current.dir.display()),
            _ => format!(
                "it matches none of the pending drafts: {}",
                waiting.join(", ")
            ),
        }))
    }

    /// Publishes what has the signatures that it needs, and leaves the rest as drafts.
    pub fn commit(mut self, keys: &Keyring) -> Result<Done> {
        self.sign_targets_again()?;
        self.complete_asks()?;
        for (role, proposal) in &mut self.proposals {
            if self.own.contains(role) {
                proposal.sign(keys)?;
            }
        }
        self.check_keys(keys)?;
        let mut ready = self.proposals.clone();
        let mut waiting = Vec::new();
        while let Some((role, why)) = self.obstacle(&ready)? {
            let draft = ready.remove(&role).ok_or_else(|| Error::new(why.clone()))?;
            waiting.push((draft, why));
        }
        let new = self.online(&ready, keys)?;
        self.accepts(&ready, &new)?;
        let done = Done {
            published: ready
                .values()
                .map(|draft| (draft.role.as_str(), &draft.envelope))
                .chain(new.iter().map(|(role, envelope)| (*role, envelope)))
                .map(|(role, e)| {
                    format!(
                        "{role} version {}, valid until {}",
                        e.version(),
                        e.expires_text()
                    )
                })
                .collect(),
            waiting: waiting
                .iter()
                .map(|(draft, why)| Waiting {
                    role: draft.role.clone(),
                    file: draft.file(&self.current.dir),
                    why: why.clone(),
                })
                .collect(),
        };
        // What a draft lists is there before the draft is: it may be signed and published by another process.
        self.place_targets()?;
        for (draft, _) in &waiting {
            draft::make_directory(&self.current.dir)?;
            draft.write(&draft.file(&self.current.dir))?;
        }
        self.place_metadata(&ready, &new)?;
        for draft in ready.values() {
            let file = draft.file(&self.current.dir);
            if file.exists() {
                durable::remove(&file)?;
            }
        }
        Ok(done)
    }

    /// With a directory of other keys nothing could ever be published; better to say so than to leave drafts.
    fn check_keys(&self, keys: &Keyring) -> Result<()> {
        let known = |role| {
            self.current
                .authority(role)
                .is_ok_and(|a| a.at_hand(keys) > 0)
        };
        if self.current.all().any(|(role, _)| known(role)) {
            return Ok(());
        }
        let role = self
            .proposals
            .keys()
            .next()
            .map_or(TIMESTAMP, String::as_str);
        Err(keys.missing(&format!(
            "key of the {role} role, nor any other key of {}",
            self.current.dir.display()
        )))
    }

    /// The next version of a role's metadata.
    fn next(&self, role: &str, body: Value) -> Envelope {
        let dates = Dates {
            now: self.now,
            lifetime: self.current.about.lifetime(role),
        };
        Envelope::new(body, kind(role), self.current.next_version(role), &dates)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        // The next publisher removes it if this fails.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

/// Writes a small file among the staged ones.
pub(crate) fn staged(file: &Path, bytes: &[u8]) -> Result<TargetFile> {
    write(file, bytes)?;
    Ok(TargetFile {
        length: bytes.len() as u64,
        sha256: Digest::of(bytes),
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::write_with_mode(path, bytes, PUBLIC)
}
