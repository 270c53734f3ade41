//! Changing a repository so that readers see all of a change or nothing of it.
//!
//! A [`Store`] collects what is new: target files, and new versions of the root, the targets and teams. [`Store::commit`]
//! finds out which of them have the signatures that they need and fit together, publishes these, and leaves the others
//! as drafts.
//!
//! The order in which files come under their final names makes the change whole for readers at every moment:
//! targets' files and versioned metadata first, to which nothing refers yet; then the timestamp, by one rename; then the
//! root. Where a role's keys change, its metadata are signed by the old and the new keys before the root that takes the
//! old ones away appears, and so verify under both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::current::{
    Current, DAY, PUBLIC, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, kind, metadata_file,
};
use super::delegate;
use super::draft::{self, Draft};
use super::envelope::{Authority, Dates, Envelope, meta};
use super::keyring::Keyring;
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Component, Name, RelPath};
use qx_release::trust::clock::Clock;
use qx_release::trust::metadata::TargetFile;
use qx_release::trust::{Limits, SnapshotCopy, TrustedSet};

/// Where a change is put together before any of it is published.
const STAGING: &str = ".staging";

/// A repository that this process alone publishes to.
pub struct Store {
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

impl Store {
    /// Opens the repository in a directory for publishing; [`ErrorKind::Busy`] if another process has done so.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Store> {
        let locked = dir.join("metadata");
        let lock = File::open(&locked).doing(|| format!("opening {}", locked.display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::with(
                    ErrorKind::Busy,
                    format!(
                        "another qx-publish is publishing to {}; run this again when it has ended",
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
        Ok(Store {
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

    /// The directory to put new files together in; it goes when the store is dropped.
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
                    "a draft of the {role} metadata waits for signatures, and says something else; collect them or remove {}",
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
            [] => format!("no draft waits in {}", self.current.dir.display()),
            _ => format!("it is none of the drafts that wait: {}", waiting.join(", ")),
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

    /// The root that is proposed, or the current one.
    fn new_root(&self) -> &Value {
        let proposed = self.proposals.get(ROOT).map(|draft| &draft.envelope.signed);
        proposed.unwrap_or(self.current.root())
    }

    /// A root that takes keys of the targets away leaves targets that nobody trusts, unless the new keys sign them
    /// first.
    fn sign_targets_again(&mut self) -> Result<()> {
        let new = Authority::of_root(self.new_root(), TARGETS);
        let current = self.current.role(TARGETS)?;
        if !self.proposals.contains_key(TARGETS) && !current.verifies(&new) {
            self.propose(TARGETS, current.signed.clone())?;
        }
        Ok(())
    }

    fn complete_asks(&mut self) -> Result<()> {
        let roles: Vec<String> = self.proposals.keys().cloned().collect();
        for role in roles {
            let asks = self.asks(&role)?;
            if let Some(proposal) = self.proposals.get_mut(&role) {
                proposal.asks = asks;
            }
        }
        Ok(())
    }

    /// Whose signatures a proposal needs.
    fn asks(&self, role: &str) -> Result<Vec<Authority>> {
        let (old, new) = match role {
            ROOT | TARGETS | SNAPSHOT | TIMESTAMP => (
                Authority::of_root(self.current.root(), role),
                Authority::of_root(self.new_root(), role),
            ),
            team => {
                let targets = match self.proposals.get(TARGETS) {
                    Some(draft) => &draft.envelope.signed,
                    None => &self.current.role(TARGETS)?.signed,
                };
                let Some(authority) = Authority::of_team(targets, team) else {
                    return Err(Error::new(format!(
                        "a draft waits of the team {team}, which the targets do not know: remove {}",
                        self.proposals[role].file(&self.current.dir).display()
                    )));
                };
                return Ok(vec![authority]);
            }
        };
        if old.same(&new) {
            return Ok(vec![new]);
        }
        // The new root must not do without what the old one asks for; all others can, if the key is lost.
        if role != ROOT && self.without_old_key {
            return Ok(vec![new]);
        }
        Ok(vec![old, new])
    }

    /// The first proposal that cannot be published with the others, and why.
    fn obstacle(&self, ready: &BTreeMap<String, Draft>) -> Result<Option<(String, String)>> {
        for (role, draft) in ready {
            let missing = draft.missing()?;
            if !missing.is_empty() {
                return Ok(Some((role.clone(), missing.join("; "))));
            }
        }
        let targets = match ready.get(TARGETS) {
            Some(draft) => &draft.envelope,
            None => self.current.role(TARGETS)?,
        };
        let teams = delegate::teams(&targets.signed);
        let mut other = ready
            .keys()
            .filter(|role| ![ROOT, TARGETS].contains(&role.as_str()));
        if let Some(team) = other.find(|role| !teams.contains(role)) {
            return Ok(Some((
                team.clone(),
                "the targets that delegate to it wait too".into(),
            )));
        }
        for team in teams {
            let metadata = match ready.get(&team) {
                Some(draft) => Some(&draft.envelope),
                None => self.current.roles.get(&team),
            };
            let trusted = Authority::of_team(&targets.signed, &team)
                .is_some_and(|authority| metadata.is_some_and(|m| m.verifies(&authority)));
            if !trusted {
                let cause = if ready.contains_key(TARGETS) {
                    TARGETS
                } else {
                    &team
                };
                let why = format!(
                    "the metadata of the team {team}, signed by its new keys, and what names these belong together"
                );
                return Ok(Some((cause.into(), why)));
            }
        }
        // The targets that a waiting root asks to be signed anew may be published before it, not after it.
        if ready.contains_key(ROOT) {
            if !targets.verifies(&Authority::of_root(self.new_root(), TARGETS)) {
                let why = "the targets, signed by their new keys, come first";
                return Ok(Some((ROOT.into(), why.into())));
            }
        } else if self.without_old_key
            && let Some(draft) = ready.get(TARGETS)
            && !draft.envelope.verifies(&self.current.authority(TARGETS)?)
        {
            return Ok(Some((
                TARGETS.into(),
                "the root that names their keys waits too".into(),
            )));
        }
        Ok(None)
    }

    /// Which of snapshot and timestamp have to be signed anew, in this order.
    fn online_roles(&self, ready: &BTreeMap<String, Draft>) -> Result<Vec<&'static str>> {
        let stale = |role| -> Result<bool> {
            let current = self.current.role(role)?;
            let asks = match ready.get(ROOT) {
                Some(root) => Authority::of_root(&root.envelope.signed, role),
                None => self.current.authority(role)?,
            };
            Ok(self.renew.contains(role) || !current.verifies(&asks))
        };
        let snapshot = ready.keys().any(|role| role != ROOT) || stale(SNAPSHOT)?;
        let timestamp = snapshot || stale(TIMESTAMP)?;
        let roles = [(snapshot, SNAPSHOT), (timestamp, TIMESTAMP)];
        Ok(roles
            .into_iter()
            .filter_map(|(due, role)| due.then_some(role))
            .collect())
    }

    fn online_asks(&self, ready: &BTreeMap<String, Draft>, role: &str) -> Vec<Authority> {
        let old = Authority::of_root(self.current.root(), role);
        match ready.get(ROOT) {
            None => vec![old],
            Some(root) => {
                let new = Authority::of_root(&root.envelope.signed, role);
                if self.without_old_key {
                    vec![new]
                } else {
                    vec![old, new]
                }
            }
        }
    }

    /// Signs the snapshot and the timestamp, as far as they have to be.
    fn online(
        &self,
        ready: &BTreeMap<String, Draft>,
        keys: &Keyring,
    ) -> Result<BTreeMap<&'static str, Envelope>> {
        let mut new = BTreeMap::new();
        for role in self.online_roles(ready)? {
            let mut body = self.body(role);
            if role == SNAPSHOT {
                for (role, draft) in ready.iter().filter(|(role, _)| *role != ROOT) {
                    let file = format!("{role}.json");
                    body["meta"][file] = meta(draft.envelope.version(), &draft.envelope.bytes()?);
                }
            } else if let Some(snapshot) = new.get(SNAPSHOT) {
                let snapshot: &Envelope = snapshot;
                body["meta"]["snapshot.json"] = meta(snapshot.version(), &snapshot.bytes()?);
            }
            let mut envelope = self.next(role, body);
            for authority in self.online_asks(ready, role) {
                envelope.sign(&authority, keys)?;
                if let Some(missing) = authority.missing(&envelope)? {
                    let lost = match ready.contains_key(ROOT) {
                        true => "; if the old one is gone for good, add --without-old-key",
                        false => "",
                    };
                    return Err(keys.missing(&format!(
                        "key of the {role} role, which signs this publication: {missing}{lost}"
                    )));
                }
            }
            new.insert(role, envelope);
        }
        Ok(new)
    }

    /// Whether appliances would take what is about to be published: one that has seen the new root, and one that has
    /// not.
    fn accepts(
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

    fn place_targets(&mut self) -> Result<()> {
        for (name, target, file) in std::mem::take(&mut self.added) {
            let place = self.current.target_file(&name, &target);
            if let Some(parent) = place.parent() {
                durable::create_dir(parent, 0o755)?;
            }
            durable::rename(&file, &place)?;
        }
        Ok(())
    }

    fn place_metadata(
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

impl Drop for Store {
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
