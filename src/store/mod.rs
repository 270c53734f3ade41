//! What lies under the data directory: the record, the lock, the links, the slots and their seals, the releases that
//! are not tried again. Every change is durable when a function returns.

mod adopted;
mod checked;
mod damage;
mod kept;
mod link;
mod lock;
mod notes;
mod refusals;
mod seals;
mod selection;
pub mod sets;

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::model::kept::{Kept, KeptReason};
use crate::model::record::{self, Loaded, Record};
use crate::model::slot::{Installed, Set, Slot};
use crate::system::host::Host;
use crate::system::proc::Use;
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{self, Component, Manifest, ProgramPath, RelPath};
use qx_release::text;

pub use link::CommitPoint;
pub use lock::{Holder, Lock};
pub use notes::{BootNote, Freshness, Refreshed, WithdrawnNote};
pub use seals::{Verified, largest};
pub use selection::Selection;

/// The content of a path that a release removed: executable, so that init scripts do not use the factory's file, but it
/// starts nothing.
pub const STUB: &[u8] = b"#!/bin/false\n";
/// A list that is kept here is at most this long, in bytes.
const MAX_LIST: u64 = 1 << 20;
/// How much of each text in a list is kept, in characters, so that the list stays within its limit.
const MAX_REASON: usize = 1000;
const MANIFEST: &str = "release.json";

/// The appliance's data directory and factory set.
pub struct Store {
    host: Host,
    data: PathBuf,
    factory: PathBuf,
    sequence: Cell<u64>,
    /// What became of the link, once this process has changed it.
    changes: RefCell<Option<selection::Changes>>,
}

impl Store {
    /// The store in a data directory (`/data`), with the factory set's manifest (absolute paths of the appliance).
    ///
    /// # Errors
    /// A symbolic link is in the place of one of the store's own directories or files.
    pub fn new(host: &Host, data_dir: &str, factory: &str) -> Result<Store> {
        let store = Store {
            data: host.path(data_dir)?,
            factory: host.path(factory)?,
            host: host.clone(),
            sequence: Cell::new(0),
            changes: RefCell::new(None),
        };
        // Components, and data that is kept, may have links of their own: they lie deeper.
        for (below, depth) in [("slots", 3), ("update", 4), ("copies", 1)] {
            no_links(&store.path(below), depth)?;
        }
        Ok(store)
    }

    /// A path below the data directory.
    pub fn path(&self, below: &str) -> PathBuf {
        self.data.join(below)
    }

    /// Where artifacts are downloaded to.
    pub fn downloads(&self) -> PathBuf {
        self.path("update/downloads")
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
        match set.slot() {
            Some(slot) => Ok(self.slot(slot).join(&component.install_path)),
            None => self.host.path(&component.in_image()),
        }
    }

    /// Everywhere that a program of a component is or was installed, whichever set has it.
    pub fn places(&self, component: &Component, program: &RelPath) -> Vec<PathBuf> {
        let sets = [Set::Factory, Set::A, Set::B].into_iter();
        let kept = self.kept().into_iter();
        sets.filter_map(|set| self.component(set, component).ok())
            .chain(kept.map(|directory| directory.join(&component.install_path)))
            .map(|installed| inside(installed, component, program))
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

    /// The directory in which a set's programs are run: below it are its components, unless an image has one elsewhere.
    pub fn directory(&self, set: Set) -> PathBuf {
        set.slot()
            .map_or_else(|| self.host.root().join("usr"), |slot| self.slot(slot))
    }

    /// Where a set has a program that its manifest names by its path in the set.
    pub fn program(&self, set: Set, manifest: &Manifest, program: &str) -> Option<PathBuf> {
        let path: RelPath = program.parse().ok()?;
        let component = manifest.holding(&path)?;
        let installed = self.component(set, component).ok()?;
        Some(inside(installed, component, &path))
    }

    /// Makes the directories and checks that nobody else can write to them.
    pub fn prepare(&self) -> Result<()> {
        self.there()?;
        durable::create_dir(&self.path("slots"), 0o755)?;
        for below in ["update", "update/seals", "update/trust", "update/downloads"] {
            durable::create_dir(&self.path(below), 0o700)?;
        }
        self.ours()
    }

    /// Checks the same, and makes nothing.
    pub fn examine(&self) -> Result<()> {
        self.there()?;
        self.ours()
    }

    /// It is there, and can be written to.
    fn there(&self) -> Result<()> {
        if is_absent(&self.data) {
            return Err(Error::new(format!(
                "using {}: it does not exist: is the data partition mounted?",
                self.data.display()
            )));
        }
        let using = || format!("using {}", self.data.display());
        let stat = rustix::fs::statvfs(&self.data).doing(using)?;
        if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(rustix::io::Errno::ROFS).doing(using);
        }
        Ok(())
    }

    /// Nobody else can write to what is there.
    fn ours(&self) -> Result<()> {
        let me = rustix::process::geteuid().as_raw();
        let places = [self.data.clone(), self.path("slots"), self.path("update")];
        for path in places.into_iter().filter(|path| !is_absent(path)) {
            let meta = fs::metadata(&path).doing(|| format!("examining {}", path.display()))?;
            if meta.uid() != me || meta.mode() & 0o022 != 0 {
                return Err(Error::with(
                    ErrorKind::NeedsPerson,
                    format!(
                        "using {}: it is owned by user {} with mode {:04o}; it must be owned by root and not writable by \
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

    /// Removes what was being written when a power cut or a kill came. To be called by whoever has the lock, or is alone at boot.
    pub fn sweep(&self) -> Result<()> {
        for link in ["current", "bin", "share"] {
            durable::remove_temporary(&self.path(link))?;
        }
        sweep(&self.path("slots"), 1)?;
        sweep(&self.path("update"), u32::MAX)
    }

    /// Loads the newest intact copy of the record.
    pub fn load(&self) -> Loaded {
        let mut newest: Option<(u64, Record)> = None;
        let mut faults = Vec::new();
        for read in self.read_copies() {
            match read {
                Ok(Some((sequence, record))) => {
                    if newest.as_ref().is_none_or(|(s, _)| sequence > *s) {
                        newest = Some((sequence, record));
                    }
                }
                Ok(None) => {}
                Err(why) => faults.push(why),
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

    /// Both copies of the record, with their numbers; `None` where there is none.
    fn read_copies(&self) -> [Result<Option<(u64, Record)>, String>; 2] {
        self.copies().map(|path| {
            let bytes = read_if_there(&path, record::MAX_BYTES).map_err(|e| e.chain())?;
            let decoded = bytes.map(|bytes| record::decode(&bytes)).transpose();
            // It may quote what it does not know.
            decoded.map_err(|why| text::line(&format!("{}: {why}", path.display())))
        })
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

    /// Whether a slot directory exists; one that cannot be looked at does.
    pub fn has_slots(&self) -> bool {
        Slot::BOTH.iter().any(|slot| !is_absent(&self.slot(*slot)))
    }

    /// Whether the data of an operation may be in the middle of an exchange; where nobody can tell it may.
    pub fn has_open_data(&self) -> bool {
        let open = |kept: &Kept| matches!(kept.reason, KeptReason::Open | KeptReason::Unexplained);
        self.kept_data().map_or(true, |all| all.iter().any(open))
    }

    /// Fails if this user may not read the state: what cannot be read must not be taken for absent.
    pub fn may_read(&self) -> Result<()> {
        let place = self.path("update");
        match fs::read_dir(&place) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(e).doing(|| format!("reading {}", place.display()))
            }
            _ => Ok(()),
        }
    }

    /// Gives a slot what was staged for it. What it held before takes the place of that.
    pub fn give(&self, slot: Slot) -> Result<()> {
        let (next, place) = (self.next(slot), self.slot(slot));
        match durable::is_there(&place)? {
            true => durable::exchange(&next, &place)?,
            false => durable::rename(&next, &place)?,
        }
        // Where it cannot be noted, this process knows.
        let _ = self.note_content(slot);
        Ok(())
    }

    /// Deletes what an operation was staging, and what slots held before. What a process still uses is kept beside the slots
    /// until it has ended: files do not go away under whom an update leaves alone.
    pub fn drop_leftovers(&self) -> Result<()> {
        for slot in Slot::BOTH {
            let next = self.next(slot);
            if durable::is_there(&next)? && self.in_use(&next) {
                let mut number = 1;
                while durable::is_there(&self.kept_path(slot, number))? {
                    number += 1;
                }
                durable::rename(&next, &self.kept_path(slot, number))?;
            } else {
                durable::remove_tree(&next)?;
            }
        }
        let unused = self.kept().into_iter().filter(|kept| !self.in_use(kept));
        unused
            .into_iter()
            .try_for_each(|kept| durable::remove_tree(&kept))?;
        self.drop_adopted()
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
        let place = self.downloads();
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
                users.extend(self.scripts(&real));
                users
            }
        }
    }

    /// The processes that run a script in these directories: nothing else of it need be open.
    fn scripts(&self, directories: &[PathBuf]) -> Vec<Use> {
        let (proc, selection) = (self.host.proc(), self.selection());
        let inside = |path: &Path| directories.iter().any(|dir| path.starts_with(dir));
        let scripts = proc.identities().into_iter().filter_map(|process| {
            let led = |path: &Path| selection.led(path, process);
            let path = proc.script(process, &led, &inside)?;
            Some(Use { process, path })
        });
        scripts.collect()
    }

    fn in_use(&self, directory: &Path) -> bool {
        !self.users(&[directory.to_owned()]).is_empty()
    }

    /// Deletes what a process that was killed was working with.
    pub fn drop_scratch(&self) -> Result<()> {
        let reserve = self.path("update/.reserve");
        match durable::is_there(&reserve)? {
            true => durable::remove(&reserve),
            false => Ok(()),
        }
    }

    /// A set's manifest, and its digest. For the factory set `None`, if the image has no manifest.
    pub fn manifest(&self, set: Set) -> Result<Option<(Manifest, Digest)>> {
        match set.slot() {
            Some(slot) => {
                read_manifest(&self.slot(slot).join(MANIFEST)).and_then(|found| match found {
                    Some(found) => Ok(Some(found)),
                    None => Err(Error::new(format!(
                        "reading the manifest of slot {slot}: it does not exist"
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
}

/// Where a program of a component is that is installed there.
fn inside(installed: PathBuf, component: &Component, program: &RelPath) -> PathBuf {
    match program.below(&component.install_path) {
        None | Some("") => installed,
        Some(rest) => installed.join(rest),
    }
}

/// Whether the path certainly does not exist.
pub fn is_absent(path: &Path) -> bool {
    durable::is_there(path).is_ok_and(|there| !there)
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

/// Removes everything with a temporary name in a directory, and in so many levels below it.
fn sweep(directory: &Path, depth: u32) -> Result<()> {
    // What cannot be looked at cannot be used either, which says why.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_temporary(&path) {
            durable::remove_any(&path)?;
        } else if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sweep(&path, depth - 1)?;
        }
    }
    Ok(())
}

fn is_temporary(path: &Path) -> bool {
    path.to_string_lossy().ends_with(durable::TEMPORARY)
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
                "using {}: it is a symbolic link, so qx-update's files would be stored elsewhere; replace it with a \
                 directory or a mount point (data_dir itself may be a link)",
                path.display()
            ),
        ));
    }
    if meta.is_dir()
        && let Ok(mut entries) = fs::read_dir(path)
    {
        return entries.try_for_each(|entry| match entry {
            // Nobody uses what an interrupted write has left: see `sweep`.
            Ok(entry) if !is_temporary(&entry.path()) => no_links(&entry.path(), below),
            Ok(_) | Err(_) => Ok(()),
        });
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

/// A whole small file; `None` if there is none. More than `limit` bytes is an error. What cannot be read is tried once more: much
/// depends on these files, and one bad read is not the end of a disk.
pub fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    read_once(path, limit).or_else(|_| read_once(path, limit))
}

fn read_once(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
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
