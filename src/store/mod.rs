//! What lies under the data directory: the record, the lock, the links, the slots and their seals, the releases that
//! are not tried again. Every change is durable when a function returns.

pub mod sets;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, StatVfsMountFlags};
use serde::{Deserialize, Serialize};

use crate::model::record::Loaded;
use crate::model::record::{self, Record};
use crate::model::refusal::Refusal;
use crate::model::slot::{Installed, Link, Set, Slot, Verdict};
use crate::system::host::Host;
use crate::system::proc::Use;
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::json;
use qx_release::manifest::{self, Component, Kind, Manifest, Name, ProgramPath, RelPath};
use qx_release::text;
use qx_release::tree;
use qx_release::trust::Versions;

/// What a path that a release removed holds: executable, so that init scripts do not take the factory's, and
/// nothing that starts.
pub const STUB: &[u8] = b"#!/bin/false\n";
/// How long a lock is waited for whose holder is ending, or not known: the kernel takes a killed process apart in its own
/// time, and whoever took the lock just now has not written its name yet.
const SETTLED: Duration = Duration::from_secs(10);
/// How often it is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How many releases are remembered as not to be tried.
const MAX_REFUSALS: usize = 200;
/// A list that is kept here is at most this long, in bytes.
const MAX_LIST: u64 = 1 << 20;
/// So much of each text in a list is kept, in characters: all of them fit into it.
const MAX_REASON: usize = 1000;
/// How many problems of a boot are kept.
const MAX_PROBLEMS: usize = 100;
const MANIFEST: &str = "release.json";
/// The longest list of the names of a release's files, in bytes.
const MAX_NAMES: u64 = 256 << 20;
const BOOT_NOTE: &str = "/run/qx-update/boot.json";

/// The appliance's data directory and factory set.
pub struct Store {
    host: Host,
    data: PathBuf,
    factory: PathBuf,
    sequence: Cell<u64>,
}

/// Held while an operation runs; the kernel drops it with the process.
pub struct Lock {
    _file: File,
}

/// Who holds the lock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// What it does.
    pub command: String,
    /// Since when (RFC 3339).
    pub since: String,
}

/// Binds a slot to the signatures it came with. Kept outside the slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seal {
    /// 1.
    pub format: u32,
    /// The digest of the release's manifest.
    pub manifest: Digest,
    /// The versions of the TUF metadata that led to it.
    pub trust: Versions,
}

/// What the link stage found in this boot; kept in `/run`, so that it is told even if `/data` cannot be written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootNote {
    /// Which boot.
    pub boot_id: String,
    /// When (RFC 3339).
    pub time: String,
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
    /// What the time was taken to be (RFC 3339).
    pub time: String,
    /// The source.
    pub source: String,
    /// Whether expiry was measured against the time, or only against one that had passed.
    pub freshness: Freshness,
    /// What the system's clock said (RFC 3339).
    pub clock: String,
    /// The versions that are trusted since.
    pub trust: Versions,
}

/// Whether it is known that nothing newer was withheld for longer than metadata are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// The clock was believed.
    Verified,
    /// The clock was wrong: before what is known to have passed, or beyond any appliance's life.
    NotVerified,
}

#[derive(Serialize, Deserialize)]
struct Refusals {
    format: u32,
    refusals: Vec<Refusal>,
}

impl Holder {
    /// In words; `works`: it is not ending.
    fn describe(&self, works: bool) -> String {
        let ending = match works {
            true => "",
            false => ", which has ended or is ending,",
        };
        format!(
            "process {} ({}, since {}){ending}",
            self.pid, self.command, self.since
        )
    }
}

impl Store {
    /// The store in a data directory (`/data`), with the factory set's manifest (absolute paths of the appliance).
    ///
    /// # Errors
    /// A link is where only directories and files of its own may be: what is written there would go elsewhere.
    pub fn new(host: &Host, data_dir: &str, factory: &str) -> Result<Store> {
        let store = Store {
            data: host.path(data_dir)?,
            factory: host.path(factory)?,
            host: host.clone(),
            sequence: Cell::new(0),
        };
        // Components, and data that is kept, may have links of their own: they lie deeper.
        for (below, depth) in [("slots", 3), ("update", 4), ("rehearsal", 1)] {
            no_links(&store.path(below), depth)?;
        }
        Ok(store)
    }

    /// A path below the data directory.
    pub fn path(&self, below: &str) -> PathBuf {
        self.data.join(below)
    }

    /// Where a path below the data directory leads that may go through links.
    pub fn followed(&self, below: &str) -> Result<PathBuf> {
        let path = self.path(below);
        match path
            .strip_prefix(self.host.root())
            .ok()
            .and_then(Path::to_str)
        {
            Some(path) => self.host.path(&format!("/{path}")),
            None => Err(Error::new(format!(
                "looking for {}: it is not below the root directory",
                path.display()
            ))),
        }
    }

    /// The directory of a slot.
    pub fn slot(&self, slot: Slot) -> PathBuf {
        self.data.join("slots").join(slot.name())
    }

    /// The directory in which a slot's next content is staged.
    pub fn next(&self, slot: Slot) -> PathBuf {
        self.data.join("slots").join(format!("{slot}.next"))
    }

    /// Where a set's component is installed.
    pub fn component(&self, set: Set, component: &Component) -> Result<PathBuf> {
        match (set.slot(), &component.factory_path) {
            (Some(slot), _) => Ok(self.slot(slot).join(&component.install_path)),
            (None, Some(path)) => self.host.path(path),
            (None, None) => self.host.path(&format!("/usr/{}", component.install_path)),
        }
    }

    /// Everywhere that a component is or was installed, whichever set has it.
    pub fn places(&self, component: &Component) -> Vec<PathBuf> {
        let sets = [Set::Factory, Set::A, Set::B].into_iter();
        let kept = self.kept().into_iter();
        sets.filter_map(|set| self.component(set, component).ok())
            .chain(kept.map(|directory| directory.join(&component.install_path)))
            .collect()
    }

    /// Whether a file that is executed is this program.
    pub fn is_program(&self, executed: &Path, program: &ProgramPath) -> bool {
        let is = |path: String| self.host.path(&path).is_ok_and(|path| path == executed);
        let Some(path) = program.in_set() else {
            return is(program.to_string());
        };
        let slots = self.path("slots");
        let slots = fs::canonicalize(&slots).unwrap_or(slots);
        (executed.starts_with(slots) && executed.ends_with(path)) || is(format!("/usr/{path}"))
    }

    /// The directory in which a set's programs are run.
    pub fn directory(&self, set: Set) -> PathBuf {
        set.slot()
            .map_or_else(|| self.host.root().to_owned(), |slot| self.slot(slot))
    }

    /// Where a set has a program that its manifest names by its path in the set.
    pub fn program(&self, set: Set, manifest: &Manifest, program: &str) -> Option<PathBuf> {
        let path: RelPath = program.parse().ok()?;
        manifest.components.iter().find_map(|component| {
            let below = path.below(&component.install_path)?;
            let installed = self.component(set, component).ok()?;
            Some(match below {
                "" => installed,
                _ => installed.join(below),
            })
        })
    }

    /// Makes the directories and checks that nobody else can write to them.
    pub fn prepare(&self) -> Result<()> {
        if is_absent(&self.data) {
            return Err(Error::new(format!(
                "using {}: there is none: is the data partition mounted?",
                self.data.display()
            )));
        }
        let using = || format!("using {}", self.data.display());
        let stat = rustix::fs::statvfs(&self.data).doing(using)?;
        if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(rustix::io::Errno::ROFS).doing(using);
        }
        durable::create_dir(&self.path("slots"), 0o755)?;
        for below in ["update", "update/seals", "update/trust", "update/downloads"] {
            durable::create_dir(&self.path(below), 0o700)?;
        }
        let me = rustix::process::geteuid().as_raw();
        for path in [self.data.clone(), self.path("slots"), self.path("update")] {
            let meta = fs::metadata(&path).doing(|| format!("looking at {}", path.display()))?;
            if meta.uid() != me || meta.mode() & 0o022 != 0 {
                return Err(Error::with(
                    ErrorKind::NeedsPerson,
                    format!(
                        "using {}: it belongs to user {} with mode {:04o}; it must be root's, and not writable for \
                         others (chown root, chmod go-w)",
                        path.display(),
                        meta.uid(),
                        meta.mode() & 0o7777
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Takes the lock for this process. [`ErrorKind::Busy`] if another works; but with `wait` it is told who that is, and then
    /// waited for as long as it works and whoever asked for this is there.
    pub fn lock(&self, command: &str, wait: Option<&mut dyn FnMut(String)>) -> Result<Lock> {
        let path = self.path("update/lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .doing(|| format!("opening the lock {}", path.display()))?;
        let settled = Instant::now() + SETTLED;
        let asker = rustix::process::getppid();
        let mut wait = wait;
        let mut told = false;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(e) => return Err(e).doing(|| format!("locking {}", path.display())),
            }
            // `status` takes a shared lock for an instant, to see whether anybody works; that is nobody at work.
            let holder = self.holder();
            let works = holder
                .as_ref()
                .is_some_and(|h| !self.host.proc().ending(h.pid));
            if works || Instant::now() >= settled {
                let who =
                    holder.map_or_else(|| "another process".to_owned(), |h| h.describe(works));
                let Some(tell) = &mut wait else {
                    let what = format!(
                        "starting {command}: {who} holds the lock {}",
                        path.display()
                    );
                    return Err(Error::with(ErrorKind::Busy, what));
                };
                if !std::mem::replace(&mut told, true) {
                    tell(format!("{command} waits for {who} to release the lock"));
                }
                if rustix::process::getppid() != asker {
                    let what = format!("starting {command}: whoever asked for it is gone");
                    return Err(Error::with(ErrorKind::Busy, what));
                }
            }
            std::thread::sleep(AGAIN);
        }
        let holder = Holder {
            pid: std::process::id(),
            command: command.to_owned(),
            since: self.host.timestamp(),
        };
        // For messages only; what counts is the kernel's lock.
        let mut note = || -> io::Result<()> {
            file.rewind()?;
            file.set_len(0)?;
            file.write_all(&serde_json::to_vec(&holder)?)
        };
        let _ = note();
        Ok(Lock { _file: file })
    }

    /// Who holds the lock, if a live process does.
    pub fn holder(&self) -> Option<Holder> {
        let path = self.path("update/lock");
        let mut file = File::open(path).ok()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            _ => return None,
        }
        let mut text = String::new();
        // It may not have written its name yet.
        for _ in 0..20 {
            text.clear();
            file.rewind().ok()?;
            file.read_to_string(&mut text).ok()?;
            if let Ok(holder) = json::parse_str(&text) {
                return Some(holder);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Loads the newest intact copy of the record.
    pub fn load(&self) -> Loaded {
        let mut newest: Option<(u64, Record)> = None;
        let mut faults = Vec::new();
        for path in self.copies() {
            match read_if_there(&path, record::MAX_BYTES) {
                Ok(None) => {}
                Ok(Some(bytes)) => match record::decode(&bytes) {
                    Ok((sequence, record)) => {
                        if newest.as_ref().is_none_or(|(s, _)| sequence > *s) {
                            newest = Some((sequence, record));
                        }
                    }
                    Err(why) => faults.push(format!("{}: {why}", path.display())),
                },
                Err(e) => faults.push(e.chain()),
            }
        }
        match newest {
            Some((sequence, record)) => {
                self.sequence.set(sequence);
                Loaded::Record(Box::new(record))
            }
            None if faults.is_empty() => Loaded::Absent,
            None => Loaded::Unreadable(faults.join("; ")),
        }
    }

    /// Writes the record over the older copy.
    pub fn save(&self, record: &Record) -> Result<()> {
        let sequence = self.sequence.get() + 1;
        let path = &self.copies()[(sequence % 2) as usize];
        let bytes = record::encode(record, sequence)
            .map_err(|why| Error::new(format!("writing {}: {why}", path.display())))?;
        durable::write(path, &bytes)?;
        self.sequence.set(sequence);
        Ok(())
    }

    fn copies(&self) -> [PathBuf; 2] {
        [self.path("update/state.0"), self.path("update/state.1")]
    }

    /// Where the priority link points.
    pub fn link(&self) -> Link {
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

    /// Points the priority link at a set: the one commit point.
    pub fn set_link(&self, set: Set) -> Result<()> {
        let current = self.path("current");
        match set.slot() {
            Some(slot) => durable::link(&current, &format!("slots/{slot}")),
            None => durable::remove(&current),
        }
    }

    /// Puts the fixed links in order: `bin` and `share` look through the priority link.
    pub fn repair_fixed_links(&self) -> Result<()> {
        for (name, target) in [("bin", "current/bin"), ("share", "current/share")] {
            let path = self.path(name);
            match fs::symlink_metadata(&path) {
                Ok(meta) if !meta.is_symlink() => {
                    return Err(Error::with(
                        ErrorKind::NeedsPerson,
                        format!(
                            "using {}: it is no link to {target}; move it away, it hides every release",
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

    /// Whether a slot directory exists; one that cannot be looked at does.
    pub fn has_slots(&self) -> bool {
        Slot::BOTH.iter().any(|slot| !is_absent(&self.slot(*slot)))
    }

    /// Whether there is saved data; a place that cannot be looked into may have some.
    pub fn has_snapshot(&self) -> bool {
        let place = self.path("update/snapshot");
        match fs::read_dir(&place) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => !is_absent(&place),
        }
    }

    /// Whoever asks must be allowed to read what the answer comes from: what may not be read is not absent.
    pub fn may_read(&self) -> Result<()> {
        let place = self.path("update");
        match fs::read_dir(&place) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(e).doing(|| format!("reading {}", place.display()))
            }
            _ => Ok(()),
        }
    }

    /// Deletes what an operation was staging, and what slots held before. What a process still uses is kept beside the slots
    /// until it has ended: files do not go away under whom an update leaves alone.
    pub fn drop_leftovers(&self) -> Result<()> {
        for slot in Slot::BOTH {
            let next = self.next(slot);
            if next.exists() && self.in_use(&next) {
                let free = |number: &u32| !self.kept_path(slot, *number).exists();
                let number = (1..).find(free).unwrap_or_default();
                durable::rename(&next, &self.kept_path(slot, number))?;
            } else {
                durable::remove_tree(&next)?;
            }
        }
        let unused = self.kept().into_iter().filter(|kept| !self.in_use(kept));
        unused
            .into_iter()
            .try_for_each(|kept| durable::remove_tree(&kept))
    }

    fn kept_path(&self, slot: Slot, number: u32) -> PathBuf {
        self.path("slots").join(format!("{slot}.kept-{number}"))
    }

    /// What slots held before, and processes still use.
    pub fn kept(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("slots")).into_iter().flatten();
        let kept = entries.flatten().filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.contains(".kept-"))
        });
        kept.map(|entry| entry.path()).collect()
    }

    /// Deletes what was downloaded.
    pub fn drop_downloads(&self) -> Result<()> {
        let place = self.path("update/downloads");
        durable::remove_tree(&place)?;
        durable::create_dir(&place, 0o700)
    }

    /// The processes that use something in these directories.
    pub fn users(&self, directories: &[PathBuf]) -> Vec<Use> {
        // As the kernel tells paths: without links.
        let real = directories.iter().filter_map(|d| fs::canonicalize(d).ok());
        let real: Vec<PathBuf> = real.collect();
        match real.is_empty() {
            true => Vec::new(),
            false => {
                let proc = self.host.proc();
                let mut users = proc.users(&real);
                users.extend(proc.mounted(&real));
                users
            }
        }
    }

    fn in_use(&self, directory: &Path) -> bool {
        !self.users(&[directory.to_owned()]).is_empty()
    }

    /// Where an operation's snapshot of the data is.
    pub fn snapshot(&self, op: &str) -> PathBuf {
        self.path("update/snapshot").join(op)
    }

    /// Deletes every snapshot: what they would be restored for has ended.
    pub fn drop_snapshot(&self) -> Result<()> {
        durable::remove_tree(&self.path("update/snapshot"))
    }

    /// Deletes the clones of a rehearsal.
    pub fn drop_rehearsal(&self) -> Result<()> {
        durable::remove_tree(&self.path("rehearsal"))
    }

    /// Deletes what a process that was killed was working with.
    pub fn drop_scratch(&self) -> Result<()> {
        let reserve = self.path("update/.reserve");
        if reserve.exists() {
            durable::remove(&reserve)?;
        }
        self.drop_rehearsal()
    }

    /// A set's manifest, and its digest. For the factory set `None`, if the image has no manifest.
    pub fn manifest(&self, set: Set) -> Result<Option<(Manifest, Digest)>> {
        match set.slot() {
            Some(slot) => {
                read_manifest(&self.slot(slot).join(MANIFEST)).and_then(|found| match found {
                    Some(found) => Ok(Some(found)),
                    None => Err(Error::new(format!(
                        "reading the manifest of slot {slot}: there is none"
                    ))),
                })
            }
            None => read_manifest(&self.factory),
        }
    }

    /// The factory set. A manifest that cannot be read makes it one of unknown version, and is reported.
    pub fn factory(&self) -> (Installed, Option<String>) {
        match self.manifest(Set::Factory) {
            Ok(Some((manifest, digest))) => (installed(Set::Factory, &manifest, digest), None),
            Ok(None) => (Installed::unknown_factory(), None),
            Err(e) => (Installed::unknown_factory(), Some(e.chain())),
        }
    }

    /// Verifies a slot: files against manifest, manifest against seal. Reads all of it.
    pub fn verify(&self, slot: Slot) -> Verdict {
        let directory = self.slot(slot);
        if !directory.exists() {
            return Verdict::Empty;
        }
        let check = || -> Result<Installed, String> {
            let bytes = read_if_there(&directory.join(MANIFEST), manifest::MAX_BYTES)
                .map_err(|e| e.chain())?
                .ok_or("it has no manifest")?;
            let digest = Digest::of(&bytes);
            self.seal_of(digest)?;
            let manifest = Manifest::parse(&bytes)?;
            verify_files(&manifest, &directory, &|component, path| {
                tree::matches(component, path).or_else(|why| {
                    // Something that was laid beside its files is not a change of them.
                    let names = self.names(digest, component);
                    let among = |names| tree::matches_among(component, path, &names);
                    names.map_or(Err(why), among)
                })
            })?;
            Ok(installed(slot.into(), &manifest, digest))
        };
        match check() {
            Ok(installed) => Verdict::Good(installed),
            Err(why) => Verdict::Damaged(text::line(&why)),
        }
    }

    /// Verifies the factory set's files against its manifest, if it has one. Reads all of it.
    pub fn verify_factory(&self) -> Result<Option<Installed>, String> {
        let Some((manifest, digest)) = self.manifest(Set::Factory).map_err(|e| e.chain())? else {
            return Ok(None);
        };
        for component in &manifest.components {
            let path = self.component(Set::Factory, component);
            tree::matches(component, &path.map_err(|e| e.chain())?)?;
        }
        Ok(Some(installed(Set::Factory, &manifest, digest)))
    }

    /// Verifies what the medium holds of a set that was staged and synced.
    pub fn verify_staged(&self, slot: Slot, manifest: &Manifest) -> Result<()> {
        verify_files(manifest, &self.next(slot), &tree::matches_medium).map_err(|why| {
            Error::new(format!(
                "verifying {} as it lies on the medium: {why}",
                self.next(slot).display()
            ))
        })
    }

    /// Writes the seal of a release that lies complete and verified in a slot's next content, and the names of its files.
    pub fn seal(
        &self,
        slot: Slot,
        manifest: &Manifest,
        digest: Digest,
        trust: Versions,
    ) -> Result<()> {
        let mut names = BTreeMap::new();
        for component in manifest.components.iter().filter(|c| c.kind == Kind::Tree) {
            let place = self.next(slot).join(&component.install_path);
            names.insert(component.name.clone(), tree::names(component.kind, &place)?);
        }
        let names =
            serde_json::to_vec(&names).doing(|| "writing the names of a release's files")?;
        durable::write(&self.names_path(digest), &names)?;
        let seal = Seal {
            format: 1,
            manifest: digest,
            trust,
        };
        let text = serde_json::to_vec(&seal).doing(|| "writing a seal")?;
        durable::write(&self.seal_path(digest), &text)
    }

    /// The names of a tree's entries, of a release that was sealed here. They decide nothing by themselves: with them left alone,
    /// the digest must be the signed one.
    fn names(&self, release: Digest, component: &Component) -> Option<BTreeSet<String>> {
        let bytes = read_if_there(&self.names_path(release), MAX_NAMES).ok()??;
        let mut names: BTreeMap<Name, BTreeSet<String>> = json::parse(&bytes).ok()?;
        names.remove(&component.name)
    }

    /// What was laid into the trees of a release since it was installed.
    pub fn added(&self, slot: Slot, manifest: &Manifest, digest: Digest) -> Vec<PathBuf> {
        let trees = manifest.components.iter().filter(|c| c.kind == Kind::Tree);
        trees
            .filter_map(|tree| {
                let names = self.names(digest, tree)?;
                Some(tree::added(
                    &self.slot(slot).join(&tree.install_path),
                    &names,
                ))
            })
            .flatten()
            .collect()
    }

    /// Drops the seals of releases that are in no slot.
    pub fn prune_seals(&self) -> Result<()> {
        let mut kept = Vec::new();
        for slot in Slot::BOTH
            .into_iter()
            .filter(|slot| self.slot(*slot).exists())
        {
            // One that cannot be read now may be read later, and needs its seal then.
            if let Some((_, digest)) = self.manifest(slot.into())? {
                kept.push(self.seal_path(digest));
                kept.push(self.names_path(digest));
            }
        }
        let directory = self.path("update/seals");
        let entries =
            fs::read_dir(&directory).doing(|| format!("reading {}", directory.display()))?;
        for entry in entries {
            let path = entry
                .doing(|| format!("reading {}", directory.display()))?
                .path();
            if !kept.contains(&path) {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }

    fn names_path(&self, manifest: Digest) -> PathBuf {
        self.path("update/seals").join(format!("{manifest}.names"))
    }

    fn seal_path(&self, manifest: Digest) -> PathBuf {
        self.path("update/seals").join(format!("{manifest}.json"))
    }

    /// The seal of a release.
    fn seal_of(&self, manifest: Digest) -> Result<Seal, String> {
        let bytes = read_if_there(&self.seal_path(manifest), 64 * 1024)
            .map_err(|e| e.chain())?
            .ok_or_else(|| format!("its manifest {manifest} has no seal"))?;
        let seal: Seal = json::parse(&bytes).map_err(|e| format!("its seal: {e}"))?;
        if seal.format != 1 || seal.manifest != manifest {
            return Err("its seal is another release's".into());
        }
        Ok(seal)
    }

    /// The releases that are not tried again by themselves.
    pub fn refusals(&self) -> Result<Vec<Refusal>> {
        let path = self.path("update/quarantine");
        let Some(bytes) = read_if_there(&path, MAX_LIST)? else {
            return Ok(Vec::new());
        };
        let list: Refusals = json::parse(&bytes)
            .map_err(|why| Error::new(format!("reading {}: {why}", path.display())))?;
        if list.format != 1 {
            return Err(Error::new(format!(
                "reading {}: format {} is not known",
                path.display(),
                list.format
            )));
        }
        Ok(list.refusals)
    }

    /// Adds a release to those that are not tried again, or renews its reason.
    pub fn refuse(&self, refusal: Refusal) -> Result<()> {
        // An unreadable list is begun anew: the newest entry matters most.
        let mut refusals = self.refusals().unwrap_or_default();
        refusals.retain(|r| r.manifest != refusal.manifest);
        refusals.push(refusal);
        if refusals.len() > MAX_REFUSALS {
            refusals.remove(0);
        }
        self.write_refusals(refusals)
    }

    /// Takes a release off the list: it was confirmed after all.
    pub fn forget_refusal(&self, manifest: Digest) -> Result<()> {
        let mut refusals = self.refusals()?;
        let before = refusals.len();
        refusals.retain(|r| r.manifest != manifest);
        if refusals.len() == before {
            return Ok(());
        }
        self.write_refusals(refusals)
    }

    fn write_refusals(&self, mut refusals: Vec<Refusal>) -> Result<()> {
        let path = self.path("update/quarantine");
        for refusal in &mut refusals {
            refusal.reason = text::clean(&refusal.reason, MAX_REASON);
        }
        let text = serde_json::to_vec_pretty(&Refusals {
            format: 1,
            refusals,
        })
        .doing(|| format!("writing {}", path.display()))?;
        durable::write(&path, &text)
    }

    /// Notes a refresh of trust, for `status`.
    pub fn write_refreshed(&self, refreshed: &Refreshed) -> Result<()> {
        let path = self.path("update/refreshed");
        let refreshed = &Refreshed {
            source: text::clean(&refreshed.source, MAX_REASON),
            ..refreshed.clone()
        };
        let text = serde_json::to_vec(refreshed).doing(|| format!("writing {}", path.display()))?;
        durable::write(&path, &text)
    }

    /// The last refresh of trust, if any is known.
    pub fn refreshed(&self) -> Result<Option<Refreshed>> {
        let path = self.path("update/refreshed");
        let Some(bytes) = read_if_there(&path, 1 << 16)? else {
            return Ok(None);
        };
        let refreshed = json::parse(&bytes);
        refreshed
            .map(Some)
            .map_err(|why| Error::new(format!("reading {}: {why}", path.display())))
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
        let Some(bytes) = read_if_there(&path, MAX_LIST)? else {
            return Ok(None);
        };
        let note: BootNote = json::parse(&bytes)
            .map_err(|why| Error::new(format!("reading {}: {why}", path.display())))?;
        Ok((note.boot_id == self.host.boot_id()?).then_some(note))
    }

    /// The link cannot be changed: mounts an empty file system over the slot that it selects, for this boot.
    pub fn hide(&self, slot: Slot) -> Result<()> {
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

/// Whether nothing is there for certain.
pub fn is_absent(path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    found.is_err_and(|e| {
        matches!(
            e.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    })
}

/// The bytes of a set's manifest as they are installed.
pub fn manifest_path(slot_directory: &Path) -> PathBuf {
    slot_directory.join(MANIFEST)
}

/// A set as its manifest describes it.
pub fn installed(set: Set, manifest: &Manifest, digest: Digest) -> Installed {
    Installed {
        set,
        version: Some(manifest.version.clone()),
        manifest: Some(digest),
    }
}

/// Whether there is no link at `path`, nor in so many levels of directories from there.
fn no_links(path: &Path, depth: u32) -> Result<()> {
    // What cannot be looked at cannot be used either, which says why.
    let Some(below) = depth.checked_sub(1) else {
        return Ok(());
    };
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if meta.is_symlink() {
        return Err(Error::with(
            ErrorKind::NeedsPerson,
            format!(
                "using {}: it is a symbolic link, and what qx-update keeps there would be elsewhere; put a directory \
                 in its place, or mount the other place on one (data_dir itself may be a link)",
                path.display()
            ),
        ));
    }
    if meta.is_dir()
        && let Ok(mut entries) = fs::read_dir(path)
    {
        return entries.try_for_each(|entry| match entry {
            Ok(entry) => no_links(&entry.path(), below),
            Err(_) => Ok(()),
        });
    }
    Ok(())
}

fn verify_files(
    manifest: &Manifest,
    directory: &Path,
    matches: &dyn Fn(&Component, &Path) -> Result<(), String>,
) -> Result<(), String> {
    for component in &manifest.components {
        no_links_above(directory, &component.install_path)?;
        matches(component, &directory.join(&component.install_path))?;
    }
    for path in &manifest.removed {
        no_links_above(directory, path)?;
        let stub = directory.join(path);
        let found = fs::read(&stub).map_err(|e| format!("{}: {e}", stub.display()))?;
        let executable = fs::metadata(&stub).is_ok_and(|meta| meta.mode() & 0o111 != 0);
        if found != STUB || !executable {
            return Err(format!(
                "{} is not the stub of a removed component",
                stub.display()
            ));
        }
    }
    // A file more in bin would be started by the init script of its name.
    let bin = directory.join("bin");
    let expected = |name: &str| {
        let path: Result<RelPath, _> = format!("bin/{name}").parse();
        path.is_ok_and(|path| {
            let installed = manifest.components.iter().map(|c| &c.install_path);
            installed
                .chain(&manifest.removed)
                .any(|p| p.below(&path).is_some())
        })
    };
    if let Ok(entries) = fs::read_dir(&bin) {
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !name.to_str().is_some_and(expected) {
                return Err(format!(
                    "{} belongs to no component",
                    entry.path().display()
                ));
            }
        }
    }
    Ok(())
}

/// Whether a path in a slot is really there, and not reached through a link.
fn no_links_above(directory: &Path, path: &RelPath) -> Result<(), String> {
    let parents = Path::new(path.as_str()).ancestors().skip(1);
    for parent in parents.filter(|parent| !parent.as_os_str().is_empty()) {
        let parent = directory.join(parent);
        if fs::symlink_metadata(&parent).is_ok_and(|meta| meta.is_symlink()) {
            return Err(format!("{} is a symbolic link", parent.display()));
        }
    }
    Ok(())
}

fn read_manifest(path: &Path) -> Result<Option<(Manifest, Digest)>> {
    let Some(bytes) = read_if_there(path, manifest::MAX_BYTES)? else {
        return Ok(None);
    };
    let manifest = Manifest::parse(&bytes)
        .map_err(|why| Error::new(format!("reading {}: {why}", path.display())))?;
    Ok(Some((manifest, Digest::of(&bytes))))
}

/// A whole small file; `None` if there is none. More than `limit` bytes is an error.
pub fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e).doing(|| format!("opening {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .doing(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(format!(
            "reading {}: it is longer than {limit} bytes",
            path.display()
        )));
    }
    Ok(Some(bytes))
}
