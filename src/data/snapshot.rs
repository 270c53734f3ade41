//! Snapshots of data sets: what the appliance's data was before a migration, kept until the release is proved; and
//! clones, on which a migration is rehearsed.
//!
//! A snapshot is a directory with `index.json`, which says whose it is, what there was and how much, and the data: `data`
//! with `data-wal` and so on, a directory `data`, or what a command wrote. The index is written last: a snapshot without
//! one is no snapshot. Modes, owners, times and symbolic links are kept; extended attributes are not, hard links become
//! files of their own, and holes in files are filled where blocks cannot be shared.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::fs::{Gid, Uid};
use serde_json::json;

use crate::model::dataset::{COMPANIONS, DataSet, Method};
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::process::{Ended, Program, User};
use qx_release::digest::{Digest, Hasher};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::json;
use qx_release::text;
use qx_release::tree;

/// What the log calls this.
const STEP: &str = "data";
/// Says what belongs to a snapshot.
const INDEX: &str = "index.json";
/// What the data is called in a snapshot.
const DATA: &str = "data";
/// What is built beside a place ends in this; a leftover may be deleted at any time.
const RESTORING: &str = ".qx-restore~";
/// What is set aside, until all of it is there.
const PART: &str = ".part";
/// SQLite makes it anew for whoever opens the database first, and readers write to it.
const SHARED_MEMORY: &str = "-shm";
/// How often a clone of files is tried, the first look included, and how long nobody may have written to them.
const TRIES: u32 = 6;
const QUIET: Duration = Duration::from_secs(1);

/// What a data set takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The most bytes that a copy takes on a disk.
    pub bytes: u64,
    /// Whether a copy shares the blocks of the original, and so takes next to nothing until one of them is changed.
    pub shares: bool,
}

/// Where a clone is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataClone {
    /// Its place, as the migration is to be told.
    At(String),
    /// There is none, and why not.
    Skipped(String),
}

/// What a copy of the data takes, in a directory `near` that exists. For a `command` set that is its limit. What could
/// not be saved is an error already.
pub fn size(host: &Host, set: &DataSet, near: &Path) -> Result<Size> {
    if set.method == Method::Command {
        return Ok(Size {
            bytes: set.limit_bytes,
            shares: false,
        });
    }
    let Some(place) = Place::of(host, set)? else {
        return Ok(Size {
            bytes: 0,
            shares: false,
        });
    };
    let mut all = Walk::default();
    for part in place.parts()? {
        all.entry(&place.directory, &part.name, None, &part.path)?;
    }
    all.within(set)?;
    Ok(Size {
        bytes: all.blocks,
        shares: shares(&place.directory, near).unwrap_or(false),
    })
}

/// Saves the data in a directory `to` that is made here. More than the set's limit is an error that leaves part of it.
pub fn save(host: &Host, set: &DataSet, to: &Path, log: &mut Log) -> Result<()> {
    let doing = || format!("saving the data set {} to {}", set.name, to.display());
    if fs::symlink_metadata(to).is_ok() {
        return Err(Error::new(format!(
            "{}: something already exists there",
            doing()
        )));
    }
    log.info(STEP, format!("saving the data set {}", set.name));
    durable::create_dir(to, 0o700)?;
    let index = match set.method {
        Method::Files => save_files(host, set, to, log),
        Method::Command => save_stream(host, set, to, log),
    };
    let index = index.doing(doing)?;
    // Also syncs the directory.
    durable::write(&to.join(INDEX), index.text(set).as_bytes())
}

/// Makes the data equal to a snapshot; what was not there then is not there afterwards. The snapshot stays. A cut
/// anywhere leaves something that doing it again makes right. At last the set's own check must pass.
pub fn restore(host: &Host, set: &DataSet, from: &Path, log: &mut Log) -> Result<()> {
    let doing = || {
        format!(
            "restoring the data set {} from {}",
            set.name,
            from.display()
        )
    };
    let index = Index::read(set, from).doing(doing)?;
    log.info(STEP, format!("restoring the data set {}", set.name));
    let restored = match set.method {
        Method::Files => restore_files(host, set, &index, from, log),
        Method::Command => restore_stream(host, set, &index, from, log),
    };
    restored.doing(doing)?;
    if !set.check.is_empty() {
        let ended = command(host, set, "checking", &set.check, None, log)?;
        check_ended(set, "checking", &set.check, &ended)?;
    }
    Ok(())
}

/// Moves the data as it is now into a directory `to`, that is there only when all of it is; then there is nothing to do.
/// What was begun is finished. The files keep their names; of a `command` set it is a snapshot, and the data stays.
pub fn set_aside(host: &Host, set: &DataSet, to: &Path, log: &mut Log) -> Result<()> {
    if fs::symlink_metadata(to).is_ok() {
        return Ok(());
    }
    let mut part = to.as_os_str().to_owned();
    part.push(PART);
    let part = PathBuf::from(part);
    match set.method {
        Method::Command => {
            durable::remove_tree(&part)?;
            save(host, set, &part, log)?;
        }
        Method::Files => {
            log.info(STEP, format!("setting the data set {} aside", set.name));
            durable::create_dir(&part, 0o700)?;
            if let Some(place) = Place::of(host, set)? {
                move_files(&place, &part, log)
                    .doing(|| format!("setting the data set {} aside", set.name))?;
            }
        }
    }
    durable::rename(&part, to)
}

/// Copies the data while it is in use, for a rehearsal: files into a directory `to` that is made here, where `owner`, or
/// whoever owns the original's directory, may make more. What is there is removed first. Nothing is synced.
pub fn clone(
    host: &Host,
    set: &DataSet,
    to: &Path,
    owner: Option<&User>,
    log: &mut Log,
) -> Result<DataClone> {
    log.info(STEP, format!("cloning the data set {}", set.name));
    match set.method {
        Method::Command => {
            let Some(clone) = &set.clone_place else {
                return Ok(DataClone::Skipped(
                    "the appliance defines no way to clone it".into(),
                ));
            };
            drop_clone(host, set, log)?;
            let ended = command(host, set, "cloning", &set.clone, Some(clone), log)?;
            check_ended(set, "cloning", &set.clone, &ended)?;
            Ok(DataClone::At(clone.clone()))
        }
        Method::Files => clone_files(host, set, to, owner, log)
            .doing(|| format!("cloning the data set {} to {}", set.name, to.display())),
    }
}

/// Removes the clone of a `command` set; nothing there is fine. Those of files go with the directory they are in.
pub fn drop_clone(host: &Host, set: &DataSet, log: &mut Log) -> Result<()> {
    let Some(clone) = &set.clone_place else {
        return Ok(());
    };
    let doing = "removing the clone of";
    let ended = command(host, set, doing, &set.drop_copy, Some(clone), log)?;
    check_ended(set, doing, &set.drop_copy, &ended)
}

/// What a snapshot holds.
#[derive(Debug, PartialEq, Eq)]
struct Index {
    kind: Kind,
    /// What its names end in after [`DATA`]; nothing was there if there are none.
    parts: Vec<String>,
    bytes: u64,
    entries: u64,
    /// Of what a command wrote.
    digest: Option<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Files,
    Directory,
    Stream,
}

impl Kind {
    const ALL: [(Kind, &str); 3] = [
        (Kind::Files, "files"),
        (Kind::Directory, "directory"),
        (Kind::Stream, "stream"),
    ];
}

impl Index {
    fn text(&self, set: &DataSet) -> String {
        let kind = Kind::ALL.iter().find(|(kind, _)| *kind == self.kind);
        json!({
            "format": 1,
            "data": set.name.as_str(),
            "place": set.place,
            "kind": kind.map(|(_, name)| name),
            "parts": self.parts,
            "bytes": self.bytes,
            "entries": self.entries,
            "sha256": self.digest.map(|d| d.to_string()),
        })
        .to_string()
    }

    /// Of the snapshot of this set, whose data is looked through.
    fn read(set: &DataSet, from: &Path) -> Result<Index> {
        let path = from.join(INDEX);
        let text = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
        let wrong = |why: String| Error::new(format!("{}: {why}", path.display()));
        let index = Index::parse(set, &text).map_err(wrong)?;
        let snapshot = File::open(from).doing(|| format!("opening {}", from.display()))?;
        let mut found = Walk::default();
        for name in index.names() {
            found.entry(&snapshot, &name, None, &from.join(&name))?;
        }
        let are = (found.bytes, found.entries);
        if are != (index.bytes, index.entries) {
            return Err(wrong(format!(
                "the snapshot has {} entries of {} bytes, and should have {} of {}",
                found.entries, found.bytes, index.entries, index.bytes
            )));
        }
        Ok(index)
    }

    fn parse(set: &DataSet, text: &str) -> Result<Index, String> {
        let names = [
            "format", "data", "place", "kind", "parts", "bytes", "entries", "sha256",
        ];
        let [format, data, place, kind, parts, bytes, entries, sha256] = json::fields(text, names)?;
        if json::integer(format, "format")? != 1 {
            return Err("the format of the snapshot is unknown".into());
        }
        for (field, name, is) in [
            (data, "data", set.name.as_str()),
            (place, "place", &set.place),
        ] {
            let field = json::string(json::there(field, name)?)?;
            if field != is {
                let (field, is) = match name {
                    "place" => (text::place(&field), text::place(is)),
                    _ => (text::line(&field), is.to_owned()),
                };
                return Err(format!("the snapshot is of {name} {field}, not of {is}"));
            }
        }
        let kind = json::string(json::there(kind, "kind")?)?;
        let kind = Kind::ALL.iter().find(|(_, name)| *name == kind);
        let kind = kind.ok_or("its type is unknown")?.0;
        let mut found = Vec::new();
        json::items(json::there(parts, "parts")?, &mut |part| {
            let part = json::string(part)?.into_owned();
            if !part.is_empty() && !COMPANIONS.contains(&part.as_str()) {
                return Err("one of its parts is unknown".into());
            }
            found.push(part);
            Ok(())
        })?;
        let digest = match sha256 {
            Some(text) => Some(json::string(text)?.parse()?),
            None => None,
        };
        let stream = set.method == Method::Command;
        if (kind == Kind::Stream) != stream || digest.is_some() != stream {
            return Err("the snapshot was taken with another method".into());
        }
        Ok(Index {
            kind,
            parts: found,
            bytes: json::integer(bytes, "bytes")?,
            entries: json::integer(entries, "entries")?,
            digest,
        })
    }

    /// Of its parts, in the snapshot.
    fn names(&self) -> impl Iterator<Item = OsString> {
        self.parts.iter().map(|part| with(OsStr::new(DATA), part))
    }
}

/// The place of a data set as commands and migrations are to be told.
///
/// # Errors
/// Files that are reached through a link that somebody else could have laid.
pub fn place(host: &Host, set: &DataSet) -> Result<String> {
    if set.method == Method::Command {
        return Ok(set.place.clone());
    }
    let path = match Place::of(host, set)? {
        Some(place) => place.path,
        None => host.path(&set.place)?,
    };
    Ok(path.display().to_string())
}

/// Where the files of a data set are: a directory that exists, and a name in it.
struct Place {
    directory: File,
    /// The way to that directory that nobody can turn aside: through its descriptor.
    held: PathBuf,
    /// For messages, and for those who run as its owner.
    path: PathBuf,
    name: OsString,
}

/// The file or directory itself, or what SQLite keeps beside it.
struct Part {
    suffix: &'static str,
    name: OsString,
    path: PathBuf,
    stat: Stat,
}

impl Place {
    /// None if not even the directory is there.
    fn of(host: &Host, set: &DataSet) -> Result<Option<Place>> {
        let (parent, name) = Place::split(set)?;
        let found = host.directory(parent)?;
        found.map(|found| Place::new(found, name)).transpose()
    }

    /// The directory is made if it is not there.
    fn make(host: &Host, set: &DataSet) -> Result<Place> {
        let (parent, name) = Place::split(set)?;
        Place::new(host.make_directory(parent)?, name)
    }

    fn split(set: &DataSet) -> Result<(&Path, &OsStr)> {
        let path = Path::new(&set.place);
        path.parent()
            .zip(path.file_name())
            .ok_or_else(|| Error::new(format!("{} cannot be a data set", path.display())))
    }

    fn new((directory, path): (File, PathBuf), name: &OsStr) -> Result<Place> {
        let held = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let same = |held: &fs::Metadata, own: &fs::Metadata| {
            (held.dev(), held.ino()) == (own.dev(), own.ino())
        };
        let there = fs::metadata(&held).and_then(|held| Ok(same(&held, &directory.metadata()?)));
        // Without /proc everything would seem not to be there.
        if !there.is_ok_and(|same| same) {
            let what = format!("opening {}: /proc is not mounted", path.display());
            return Err(Error::new(what));
        }
        Ok(Place {
            directory,
            held,
            path: path.join(name),
            name: name.to_owned(),
        })
    }

    /// What is there. Of something that could be copied but not be put back it is an error.
    fn parts(&self) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        for suffix in [""].into_iter().chain(COMPANIONS) {
            // Of a directory there is no more.
            if parts.first().is_some_and(|part| part.is_dir()) {
                break;
            }
            let name = with(&self.name, suffix);
            let path = self.path.with_file_name(&name);
            let stat = match rustix::fs::statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(e) => return Err(e).doing(|| format!("looking at {}", path.display())),
            };
            let part = Part {
                suffix,
                name,
                path,
                stat,
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let wrong = match kind {
                FileType::RegularFile => false,
                FileType::Directory => {
                    let parent = self.directory.metadata();
                    !suffix.is_empty() || parent.map_or(0, |m| m.dev()) != stat.st_dev
                }
                _ => true,
            };
            if wrong {
                return Err(Error::new(format!(
                    "{} is {}: a data set is a file, or a directory on the file system of the one above",
                    part.path.display(),
                    describe(kind)
                )));
            }
            parts.push(part);
        }
        Ok(parts)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.held.join(with(&self.name, suffix))
    }
}

impl Part {
    fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }
}

fn save_files(host: &Host, set: &DataSet, to: &Path, log: &mut Log) -> Result<Index> {
    let parts = match Place::of(host, set)? {
        None => Vec::new(),
        Some(place) => {
            let parts = place.parts()?;
            let mut all = Walk::default();
            for part in &parts {
                all.entry(&place.directory, &part.name, None, &part.path)?;
            }
            // Before anything is written.
            all.within(set)?;
            let into = open(to)?;
            for part in &parts {
                let copy = with(OsStr::new(DATA), part.suffix);
                Walk::synced(log).entry(
                    &place.directory,
                    &part.name,
                    Some((&into, &copy)),
                    &part.path,
                )?;
            }
            parts
        }
    };
    // Of what was copied, not of what was found: that is what must be there at the restore.
    let into = open(to)?;
    let mut copied = Walk::default();
    for part in &parts {
        let name = with(OsStr::new(DATA), part.suffix);
        copied.entry(&into, &name, None, &to.join(&name))?;
    }
    copied.within(set)?;
    Ok(Index {
        kind: match parts.first().is_some_and(|part| part.is_dir()) {
            true => Kind::Directory,
            false => Kind::Files,
        },
        parts: parts.iter().map(|part| part.suffix.to_owned()).collect(),
        bytes: copied.bytes,
        entries: copied.entries,
        digest: None,
    })
}

/// First everything is copied beside the place: what can fail fails while nothing has changed. Then SQLite's companions
/// of what is there now go, before the database does: it must never be opened with a log or a journal that is not its
/// own, and nobody looks at a database that is going to be replaced. The database comes next and its own companions
/// last, for a log without its database is taken for rubbish and deleted. A cut between leaves a snapshot that is
/// restored again, before any user of the data is started.
fn restore_files(
    host: &Host,
    set: &DataSet,
    index: &Index,
    from: &Path,
    log: &mut Log,
) -> Result<()> {
    let snapshot = open(from)?;
    let place = match index.parts.is_empty() {
        true => match Place::of(host, set)? {
            Some(place) => place,
            None => return Ok(()),
        },
        false => Place::make(host, set)?,
    };
    let copies = || {
        index.parts.iter().map(|part| {
            let copy = place.beside(&format!("{part}{RESTORING}"));
            (place.beside(part), copy)
        })
    };
    for suffix in [""].into_iter().chain(COMPANIONS) {
        durable::remove_any(&place.beside(&format!("{suffix}{RESTORING}")))?;
    }
    for ((_, copy), name) in copies().zip(index.names()) {
        let to = copy.file_name().unwrap_or_default();
        let path = from.join(&name);
        Walk::synced(log).entry(&snapshot, &name, Some((&place.directory, to)), &path)?;
    }
    if index.kind == Kind::Files {
        for suffix in COMPANIONS {
            durable::remove_any(&place.beside(suffix))?;
        }
    }
    if index.parts.first().is_none_or(|part| !part.is_empty()) {
        durable::remove_any(&place.beside(""))?;
    }
    for (part, copy) in copies() {
        durable::replace(&copy, &part)?;
    }
    Ok(())
}

/// A name that is in `part` already was moved there, whole, before a cut: what is still at the place is then the rest of
/// it, half removed, and no data.
fn move_files(place: &Place, part: &Path, log: &mut Log) -> Result<()> {
    let into = open(part)?;
    for suffix in [""].into_iter().chain(COMPANIONS) {
        let from = place.beside(suffix);
        let Ok(meta) = fs::symlink_metadata(&from) else {
            continue;
        };
        // A directory has no companions: what is called so beside it is somebody else's.
        let name = with(&place.name, suffix);
        let to = part.join(&name);
        if fs::symlink_metadata(&to).is_err() && !durable::move_within(&from, &to)? {
            let copy = with(&name, durable::TEMPORARY);
            durable::remove_any(&part.join(&copy))?;
            Walk::synced(log).entry(&place.directory, &name, Some((&into, &copy)), &from)?;
            durable::rename(&part.join(&copy), &to)?;
        }
        durable::remove_any(&from)?;
        if meta.is_dir() {
            break;
        }
    }
    Ok(())
}

fn clone_files(
    host: &Host,
    set: &DataSet,
    to: &Path,
    owner: Option<&User>,
    log: &mut Log,
) -> Result<DataClone> {
    let clone = to.join(Place::split(set)?.1);
    let at = DataClone::At(clone.display().to_string());
    if !set.clone.is_empty() {
        let user = run_as(host, set)?;
        // It makes the clone; then the clone is the migration's.
        prepare(host, set, to, user.as_ref().or(owner))?;
        let ended = command(host, set, "cloning", &set.clone, clone.to_str(), log)?;
        check_ended(set, "cloning", &set.clone, &ended)?;
        let mut made = Walk {
            give_to: owner,
            ..Walk::default()
        };
        let name = to.file_name().unwrap_or_default();
        made.entry(&open(&parent(to))?, name, None, to)?;
        made.within(set)?;
        return Ok(at);
    }
    let mut last = None;
    for _ in 0..TRIES {
        if last.is_some() {
            std::thread::sleep(QUIET);
        }
        prepare(host, set, to, owner)?;
        let Some(place) = Place::of(host, set)? else {
            return Ok(at);
        };
        let before = look(&place)?;
        before.within(set)?;
        // When a file was written to last says nothing: that may have been under another clock.
        let quiet = last.replace(before.print) == Some(before.print);
        if !quiet {
            continue;
        }
        let copied = copy_clone(&place, to, owner, log);
        // What changes may also vanish while it is copied.
        if look(&place).is_ok_and(|after| after.print == before.print) {
            return copied.map(|()| at);
        }
    }
    durable::remove_tree(to)?;
    Ok(DataClone::Skipped(format!(
        "{} is being written to",
        place(host, set)?
    )))
}

/// Makes the directory of a clone.
fn prepare(host: &Host, set: &DataSet, to: &Path, owner: Option<&User>) -> Result<()> {
    durable::remove_tree(to)?;
    // Others go through it, and do not look around.
    durable::create_dir(to, 0o711)?;
    let like = match Place::of(host, set)? {
        Some(place) => Some(place.directory.metadata().doing(|| "looking at it")?),
        None => None,
    };
    let (uid, gid) = match (owner, &like) {
        (Some(user), _) => (user.uid, user.gid),
        (None, Some(like)) => (like.uid(), like.gid()),
        (None, None) => return Ok(()),
    };
    let mode = like.map_or(0o700, |like| like.mode()) & 0o777 | 0o700;
    let made = open(to)?;
    let give = || {
        rustix::fs::fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))
    };
    give().doing(|| format!("changing the owner of {} to user {uid}", to.display()))
}

fn copy_clone(place: &Place, to: &Path, owner: Option<&User>, log: &mut Log) -> Result<()> {
    let into = open(to)?;
    for part in place.parts()? {
        if part.suffix != SHARED_MEMORY {
            let mut copy = Walk {
                give_to: owner,
                log: Some(log),
                ..Walk::default()
            };
            copy.entry(
                &place.directory,
                &part.name,
                Some((&into, &part.name)),
                &part.path,
            )?;
        }
    }
    Ok(())
}

fn look(place: &Place) -> Result<Walk<'static>> {
    let mut all = Walk::default();
    for part in place.parts()? {
        if part.suffix != SHARED_MEMORY {
            all.entry(&place.directory, &part.name, None, &part.path)?;
        }
    }
    Ok(all)
}

fn save_stream(host: &Host, set: &DataSet, to: &Path, log: &mut Log) -> Result<Index> {
    let path = to.join(DATA);
    let doing = || format!("writing {}", path.display());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .doing(doing)?;
    let mut hasher = Hasher::default();
    let user = run_as(host, set)?;
    let vector = set.command(&set.save, &set.place, "");
    let program = program(set, &vector, user.as_ref(), None);
    let mut take = |bytes: &[u8]| {
        hasher.update(bytes);
        within(set, hasher.bytes())?;
        file.write_all(bytes).doing(doing)
    };
    let ended = program.pipe(&mut take, &mut |_, line| log.info(STEP, hidden(set, line)))?;
    check_ended(set, "saving", &set.save, &ended)?;
    durable::sync_file(&file, &path)?;
    Ok(Index {
        kind: Kind::Stream,
        parts: vec![String::new()],
        bytes: hasher.bytes(),
        entries: 1,
        digest: Some(hasher.digest()),
    })
}

fn restore_stream(
    host: &Host,
    set: &DataSet,
    index: &Index,
    from: &Path,
    log: &mut Log,
) -> Result<()> {
    let path = from.join(DATA);
    let doing = || format!("reading {}", path.display());
    let mut file = File::open(&path).doing(doing)?;
    let (digest, _) = Digest::of_reader(&file).doing(doing)?;
    if index.digest != Some(digest) {
        return Err(Error::new(format!("{} was damaged", path.display())));
    }
    file.rewind().doing(doing)?;
    let user = run_as(host, set)?;
    let vector = set.command(&set.restore, &set.place, "");
    let ended = program(set, &vector, user.as_ref(), Some(&file))
        .run(&mut |_, line| log.info(STEP, hidden(set, line)))?;
    check_ended(set, "restoring", &set.restore, &ended)
}

/// Runs one of a set's commands; its output goes to the log.
fn command(
    host: &Host,
    set: &DataSet,
    doing: &str,
    vector: &[String],
    clone: Option<&str>,
    log: &mut Log,
) -> Result<Ended> {
    let place = place(host, set)?;
    let user = run_as(host, set)?;
    let vector = set.command(vector, &place, clone.unwrap_or_default());
    program(set, &vector, user.as_ref(), None)
        .run(&mut |_, line| log.info(STEP, hidden(set, line)))
        .doing(|| format!("{doing} the data set {}", set.name))
}

fn program<'a>(
    set: &DataSet,
    vector: &'a [String],
    user: Option<&'a User>,
    input: Option<&'a File>,
) -> Program<'a> {
    Program {
        user,
        input,
        ..Program::new(vector, Duration::from_secs(set.timeout_s))
    }
}

fn run_as(host: &Host, set: &DataSet) -> Result<Option<User>> {
    set.user
        .as_ref()
        .map(|name| User::find(host, name))
        .transpose()
}

/// What a command says, without the places that it was told.
fn hidden(set: &DataSet, line: &str) -> String {
    let line = text::hiding(line, &set.place);
    text::hiding(&line, set.clone_place.as_deref().unwrap_or_default())
}

/// The places are not put in: there may be a password in one.
fn check_ended(set: &DataSet, doing: &str, vector: &[String], ended: &Ended) -> Result<()> {
    if ended.ok() {
        return Ok(());
    }
    Err(Error::new(format!(
        "{doing} the data set {}: {} {}",
        set.name,
        text::command(vector),
        hidden(set, &ended.describe())
    )))
}

fn within(set: &DataSet, bytes: u64) -> Result<()> {
    if bytes <= set.limit_bytes {
        return Ok(());
    }
    Err(Error::with(
        ErrorKind::NotEligible,
        format!(
            "the data set {} is larger than its limit_bytes, {}",
            set.name, set.limit_bytes
        ),
    ))
}

/// Goes through files and directories, never through a link, and copies them if it is told where to.
#[derive(Default)]
struct Walk<'a> {
    /// Who is to own what was gone through, or its copy. Absent: a copy has its original's owner.
    give_to: Option<&'a User>,
    /// Whether copies are synced.
    sync: bool,
    /// Where it is said what is not copied.
    log: Option<&'a mut Log>,
    /// The files' content.
    bytes: u64,
    /// What they take on a disk, at the most.
    blocks: u64,
    /// How many files, directories and links.
    entries: u64,
    /// Changes with every file that is written to, comes or goes.
    print: u64,
}

/// A directory that was entered, and its copy.
type Entered = Option<(File, Option<File>, Stat)>;

impl<'a> Walk<'a> {
    fn synced(log: &'a mut Log) -> Walk<'a> {
        Walk {
            sync: true,
            log: Some(log),
            ..Walk::default()
        }
    }

    /// The entry `name` of a directory, with all below it; its copy is an entry of another that is not there yet. `path`
    /// is for messages.
    fn entry(
        &mut self,
        from: &File,
        name: &OsStr,
        to: Option<(&File, &OsStr)>,
        path: &Path,
    ) -> Result<()> {
        let doing = || match to {
            Some(_) => format!("copying {}", path.display()),
            None => format!("looking at {}", path.display()),
        };
        let Some((from, to, stat)) = self.one(from, name, to, path).doing(doing)? else {
            return Ok(());
        };
        let names = names(&from).doing(doing)?;
        for name in names {
            let path = path.join(&name);
            self.entry(
                &from,
                &name,
                to.as_ref().map(|to| (to, name.as_ref())),
                &path,
            )?;
        }
        match to {
            // Its time changes with each entry.
            Some(to) => self.finish(&to, &stat).doing(doing),
            None => Ok(()),
        }
    }

    /// One entry, without those below.
    fn one(
        &mut self,
        from: &File,
        name: &OsStr,
        to: Option<(&File, &OsStr)>,
        path: &Path,
    ) -> io::Result<Entered> {
        let mut stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Socket | FileType::Fifo => {
                if let (Some(log), Some(_)) = (&mut self.log, to) {
                    let what = format!("leaving out {}, {}", path.display(), describe(kind));
                    log.warning(STEP, what);
                }
                return Ok(None);
            }
            FileType::RegularFile | FileType::Directory | FileType::Symlink => {}
            _ => return Err(io::Error::other(format!("it is {}", describe(kind)))),
        }
        if from.metadata()?.dev() != stat.st_dev {
            return Err(io::Error::other("it is on another file system"));
        }
        self.count(&stat, kind);
        if let (Some(user), None) = (self.give_to, to) {
            give(from, name, kind, user.uid, user.gid)?;
        }
        if kind == FileType::Symlink {
            if let Some((to, copy)) = to {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&*target, to, copy)?;
                let (uid, gid) = self.owner(&stat);
                let copy = give(to, copy, kind, uid, gid)?;
                // Kernels before 5.8 cannot; then it has the time at which it was made.
                let _ = rustix::fs::utimensat(&copy, "", &times(&stat), AtFlags::EMPTY_PATH);
            }
            return Ok(None);
        }
        if kind == FileType::RegularFile && to.is_none() {
            return Ok(None);
        }
        // Whoever may write here may have put something else in its place since.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
        stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != kind {
            return Err(io::Error::other("it was replaced in the meantime"));
        }
        if let (Some(user), Some(_), FileType::RegularFile) = (self.give_to, to, kind) {
            own_name(&stat, user.uid)?;
        }
        let Some((to, copy)) = to else {
            return Ok(Some((file, None, stat)));
        };
        if kind == FileType::Directory {
            rustix::fs::mkdirat(to, copy, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let copy = rustix::fs::openat(to, copy, flags, Mode::empty())?;
            return Ok(Some((file, Some(copy.into()), stat)));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let copy = rustix::fs::openat(to, copy, flags, Mode::RUSR | Mode::WUSR)?.into();
        tree::copy_content(&file, &copy, stat.st_size.cast_unsigned())?;
        self.finish(&copy, &stat)?;
        Ok(None)
    }

    fn count(&mut self, stat: &Stat, kind: FileType) {
        const BLOCK: u64 = 4096;
        let bytes = match kind {
            FileType::RegularFile => stat.st_size.cast_unsigned(),
            _ => 0,
        };
        self.bytes += bytes;
        // An inode and an entry of a directory take something, too.
        self.blocks += bytes.div_ceil(BLOCK) * BLOCK + BLOCK;
        self.entries += 1;
        let modified = (stat.st_mtime, stat.st_mtime_nsec.cast_signed());
        let changed = (stat.st_ctime, stat.st_ctime_nsec.cast_signed());
        let mut hasher = DefaultHasher::new();
        (stat.st_ino, stat.st_size, modified, changed).hash(&mut hasher);
        // A sum: the order of a directory's entries does not count.
        self.print = self.print.wrapping_add(hasher.finish());
    }

    fn owner(&self, stat: &Stat) -> (u32, u32) {
        self.give_to
            .map_or((stat.st_uid, stat.st_gid), |user| (user.uid, user.gid))
    }

    /// The owner before the mode, which a change of the owner takes bits from; the times before the sync.
    fn finish(&self, copy: &File, stat: &Stat) -> io::Result<()> {
        let (uid, gid) = self.owner(stat);
        rustix::fs::fchown(copy, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode))?;
        rustix::fs::futimens(copy, &times(stat))?;
        match self.sync {
            true => durable::sync(copy),
            false => Ok(()),
        }
    }

    fn within(&self, set: &DataSet) -> Result<()> {
        within(set, self.bytes)
    }
}

fn names(directory: &File) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Gives what is still of that kind to a user.
fn give(directory: &File, name: &OsStr, kind: FileType, uid: u32, gid: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&entry)?;
    if FileType::from_raw_mode(stat.st_mode) != kind {
        return Err(io::Error::other("it was replaced in the meantime"));
    }
    if kind != FileType::Directory {
        own_name(&stat, uid)?;
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(&entry, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    Ok(entry)
}

/// Whoever may write to the directory may have laid a hard link there, to a file that is none of the data.
fn own_name(stat: &Stat, uid: u32) -> io::Result<()> {
    if stat.st_nlink > 1 && stat.st_uid != uid {
        return Err(io::Error::other(format!(
            "it has another name (a hard link), and belongs to user {}: its owner is not changed to user {uid}",
            stat.st_uid
        )));
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec.cast_signed(),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.cast_signed(),
        },
    }
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Socket => "a socket",
        FileType::Fifo => "a fifo",
        _ => "a device",
    }
}

/// Tried: what a file system can do depends on how it was made.
fn shares(directory: &File, near: &Path) -> io::Result<bool> {
    if directory.metadata()?.dev() != fs::metadata(near)?.dev() {
        return Ok(false);
    }
    let paths =
        ["shares-from", "shares"].map(|name| near.join(format!("{name}{}", durable::TEMPORARY)));
    let create = |path: &PathBuf| {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(path)
    };
    let tried = || {
        let mut original = create(&paths[0])?;
        original.write_all(b"shared")?;
        let copy = create(&paths[1])?;
        Ok(rustix::fs::ioctl_ficlone(&copy, &original).is_ok())
    };
    let shares = tried();
    for path in &paths {
        // The next try takes it over.
        let _ = fs::remove_file(path);
    }
    shares
}

fn open(directory: &Path) -> Result<File> {
    File::open(directory).doing(|| format!("opening {}", directory.display()))
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

fn with(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A root directory with data in `/srv`, and where snapshots go.
    struct Machine {
        root: tempfile::TempDir,
        host: Host,
        log: Log,
    }

    impl Machine {
        fn new() -> Machine {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("srv")).unwrap();
            let place = crate::system::log::Destination {
                path: root.path().join("log"),
                below: root.path().to_owned(),
                max_bytes: 1 << 20,
                keep: 1,
            };
            Machine {
                host: Host::new(root.path()).unwrap(),
                log: Log::new(place, false),
                root,
            }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        /// Everything in `/srv`.
        fn data(&self) -> BTreeMap<String, String> {
            let mut all = BTreeMap::new();
            list(&self.at("srv"), "", &mut all);
            all
        }

        /// Puts these files in `/srv`, and nothing else.
        fn put(&self, files: &[(&str, &str)]) {
            fs::remove_dir_all(self.at("srv")).unwrap();
            fs::create_dir(self.at("srv")).unwrap();
            for (name, content) in files {
                let path = self.at("srv").join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }

        fn save(&mut self, set: &DataSet) -> Result<()> {
            let to = self.at("snapshot");
            let _ = fs::remove_dir_all(&to);
            save(&self.host, set, &to, &mut self.log)
        }

        fn restore(&mut self, set: &DataSet) -> Result<()> {
            let from = self.at("snapshot");
            restore(&self.host, set, &from, &mut self.log)
        }

        fn clone(&mut self, set: &DataSet, owner: Option<&User>) -> Result<DataClone> {
            let to = self.at("rehearsal/clone");
            super::clone(&self.host, set, &to, owner, &mut self.log)
        }

        fn logged(&self) -> String {
            fs::read_to_string(self.at("log")).unwrap_or_default()
        }
    }

    /// Mode, owner, time and content of all below a directory.
    fn list(dir: &Path, under: &str, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata().unwrap());
            let name = format!("{under}{}", entry.file_name().display());
            let content = match meta.file_type() {
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                kind if kind.is_file() => fs::read_to_string(&path).unwrap(),
                _ => String::new(),
            };
            let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
            let time = (meta.mtime(), meta.mtime_nsec());
            all.insert(
                name.clone(),
                format!("{mode:o} {uid}:{gid} {time:?} {content}"),
            );
            if meta.is_dir() {
                list(&path, &format!("{name}/"), all);
            }
        }
    }

    fn set(json: serde_json::Value) -> DataSet {
        let mut all = json!({"name": "inventory", "method": "files", "place": "/srv/db"});
        let members = json.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(members);
        let set: DataSet = serde_json::from_value(all).unwrap();
        set.check().unwrap();
        set
    }

    fn script(name: &str, text: &str) -> (String, serde_json::Value) {
        (name.to_owned(), json!(["sh", "-c", text]))
    }

    /// Whose data is the file `/srv/db` of the machine, by way of commands.
    fn commands(machine: &Machine, more: &[(String, serde_json::Value)]) -> DataSet {
        let place = machine.at("srv/db").display().to_string();
        let mut all = json!({"method": "command", "place": place,
            "save": ["sh", "-c", "echo saving >&2; cat \"$0\"", "{place}"],
            "restore": ["sh", "-c", "cat >\"$0\"", "{place}"]});
        all.as_object_mut().unwrap().extend(more.iter().cloned());
        set(all)
    }

    type Files = &'static [(&'static str, &'static str)];

    /// What a data set may be before and after a migration: file or directory, with which companions, or nothing.
    const STATES: [Files; 9] = [
        &[],
        &[("db", "plain")],
        &[("db", "open"), ("db-wal", "log"), ("db-shm", "index")],
        &[("db", "half"), ("db-journal", "undo")],
        &[("db-wal", "stray")],
        &[("db/one", "1"), ("db/sub/two", "22")],
        &[("db/one", "other"), ("db/three", "3")],
        &[
            ("db", "other"),
            ("db-wal", "other"),
            ("db-journal", "other"),
        ],
        &[("db", ""), ("neighbour", "")],
    ];

    #[test]
    fn whatever_there_was_comes_back_whatever_there_is() {
        for before in STATES {
            for after in STATES {
                let mut machine = Machine::new();
                let set = set(json!({}));
                machine.put(before);
                let mut data = machine.data();
                machine.save(&set).unwrap();
                assert_eq!(machine.data(), data, "saving changes nothing");
                machine.put(after);
                // A neighbour is nobody's.
                data.remove("neighbour");
                // Twice: doing it again does no harm, and the snapshot is still there.
                for _ in 0..2 {
                    machine.restore(&set).unwrap();
                    let mut restored = machine.data();
                    restored.remove("neighbour");
                    // What was called like a companion of a directory is somebody else's.
                    if before.iter().any(|(name, _)| name.starts_with("db/")) {
                        restored.retain(|name, _| !name.starts_with("db-"));
                    }
                    assert_eq!(restored, data, "{before:?} after {after:?}");
                }
                assert_eq!(
                    machine.at("srv/neighbour").exists(),
                    after.contains(&("neighbour", "")),
                    "{before:?} after {after:?}"
                );
            }
        }
    }

    #[test]
    fn a_place_whose_directory_is_missing_is_absent() {
        let mut machine = Machine::new();
        let set = set(json!({"place": "/srv/a/b/db"}));
        machine.save(&set).unwrap();
        machine.restore(&set).unwrap();
        assert!(!machine.at("srv/a").exists());
        machine.put(&[("a/b/db", "new"), ("a/b/db-wal", "new")]);
        machine.restore(&set).unwrap();
        assert_eq!(fs::read_dir(machine.at("srv/a/b")).unwrap().count(), 0);
        // And the other way round.
        machine.put(&[("a/b/db", "old")]);
        machine.save(&set).unwrap();
        machine.put(&[]);
        machine.restore(&set).unwrap();
        assert!(machine.data()["a/b/db"].ends_with("old"));
    }

    #[test]
    fn a_directory_keeps_what_its_entries_are() {
        let mut machine = Machine::new();
        let set = set(json!({}));
        machine.put(&[
            ("db/file", "x"),
            ("db/closed/deep/file", "y"),
            ("outside", "z"),
        ]);
        let at = |path: &str| machine.at("srv").join(path);
        symlink("file", at("db/link")).unwrap();
        symlink("../outside", at("db/out")).unwrap();
        symlink("/nowhere", at("db/dangling")).unwrap();
        fs::hard_link(at("db/file"), at("db/hard")).unwrap();
        let mode = |path: &str, mode| {
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        let sparse = File::create(at("db/sparse")).unwrap();
        sparse.set_len(100_000).unwrap();
        if rustix::process::getuid().is_root() {
            std::os::unix::fs::chown(at("db/file"), Some(1234), Some(4321)).unwrap();
            std::os::unix::fs::lchown(at("db/link"), Some(1234), None).unwrap();
        }
        mode("db/file", 0o6751);
        mode("db/closed/deep", 0o500);
        mode("db/closed", 0o1770);
        mode("db", 0o750);
        let fifo = rustix::fs::Mode::RWXU;
        rustix::fs::mknodat(rustix::fs::CWD, at("db/fifo"), FileType::Fifo, fifo, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("db/socket")).unwrap();
        for path in ["db/file", "db/closed/deep", "db"] {
            let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123);
            File::open(at(path)).unwrap().set_modified(old).unwrap();
        }
        let mut data = machine.data();
        machine.save(&set).unwrap();
        for name in ["fifo", "socket"] {
            data.remove(&format!("db/{name}")).unwrap();
            let warning = format!("srv/db/{name}, a {name}");
            assert!(machine.logged().contains(&warning), "{}", machine.logged());
        }
        fs::write(machine.at("srv/outside"), "changed").unwrap();
        machine.put(&[("db/file", "new"), ("outside", "z")]);
        machine.restore(&set).unwrap();
        let mut restored = machine.data();
        restored.remove("outside");
        data.remove("outside");
        assert_eq!(restored, data);
        assert!(!machine.at("srv").join(format!("db{RESTORING}")).exists());
    }

    #[test]
    fn what_cannot_be_put_back_is_not_saved() {
        let mut machine = Machine::new();
        let set = set(json!({}));
        let place = machine.at("srv/db");
        let near = machine.root.path().to_owned();
        let refused = |machine: &mut Machine, words: &str| {
            let early = size(&machine.host, &set, &near).unwrap_err().chain();
            let late = machine.save(&set).unwrap_err().chain();
            for error in [early, late] {
                assert!(error.contains(words), "{error}");
            }
            assert!(!machine.at("snapshot").join(INDEX).exists());
        };
        fs::create_dir(place.with_file_name("db-wal")).unwrap();
        refused(&mut machine, "srv/db-wal is a directory");
        machine.put(&[("real", "")]);
        // In another root a link leads to its target; companions would be beside that.
        symlink("real", place.with_file_name("db-journal")).unwrap();
        refused(&mut machine, "srv/db-journal is a symbolic link");
        if rustix::process::getuid().is_root() {
            machine.put(&[("db/file", "")]);
            let mode = rustix::fs::Mode::RWXU;
            let null = rustix::fs::makedev(1, 3);
            let path = place.join("null");
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, mode, null)
                .unwrap();
            refused(&mut machine, "srv/db/null: it is a device");
        }
    }

    #[test]
    fn more_than_the_limit_is_refused_before_it_is_written() {
        let mut machine = Machine::new();
        let set = set(json!({"limit_bytes": 10}));
        let near = machine.root.path().to_owned();
        machine.put(&[("db", "123456"), ("db-wal", "1234")]);
        machine.save(&set).unwrap();
        size(&machine.host, &set, &near).unwrap();
        for files in [
            [("db", "123456"), ("db-wal", "12345")],
            [("db/a", "123456"), ("db/b", "12345")],
        ] {
            machine.put(&files);
            let early = size(&machine.host, &set, &near).unwrap_err().chain();
            let late = machine.save(&set).unwrap_err().chain();
            let clone = machine.clone(&set, None).unwrap_err().chain();
            for error in [early, late, clone] {
                let words = "the data set inventory is larger than its limit_bytes, 10";
                assert!(error.contains(words), "{error}");
            }
            assert!(!machine.at("snapshot/data").exists());
        }
    }

    #[test]
    fn the_size_is_what_a_copy_takes_at_the_most() {
        let machine = Machine::new();
        let near = machine.root.path().to_owned();
        let set = set(json!({}));
        let size = || size(&machine.host, &set, &near).unwrap().bytes;
        assert_eq!(size(), 0);
        machine.put(&[("db", "1")]);
        assert_eq!(size(), 8192);
        File::create(machine.at("srv/db-wal"))
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        assert_eq!(size(), 8192 + (1 << 20) + 4096, "holes count");
        let left = fs::read_dir(&near).unwrap().flatten();
        assert!(
            left.into_iter()
                .all(|e| !e.file_name().display().to_string().contains("tmp~"))
        );
        let commands = commands(&machine, &[]);
        let taken = super::size(&machine.host, &commands, &near).unwrap();
        assert_eq!((taken.bytes, taken.shares), (1 << 30, false));
    }

    /// A change of a snapshot, and what is said then.
    type Damage = (&'static str, fn(&Path), &'static str);

    #[test]
    fn a_snapshot_that_is_not_whole_is_never_restored() {
        let index = |dir: &Path, from: &str, to: &str| {
            let text = fs::read_to_string(dir.join(INDEX)).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(dir.join(INDEX), text.replace(from, to)).unwrap();
        };
        // A function that can be named in a table.
        fn edit(dir: &Path, from: &str, to: &str) {
            let text = fs::read_to_string(dir.join(INDEX)).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(dir.join(INDEX), text.replace(from, to)).unwrap();
        }
        let _ = index;
        let table: [Damage; 11] = [
            (
                "files",
                |dir| fs::remove_file(dir.join(INDEX)).unwrap(),
                "index.json: No such",
            ),
            (
                "files",
                |dir| fs::write(dir.join(INDEX), "{\"format\":").unwrap(),
                "EOF",
            ),
            (
                "files",
                |dir| fs::write(dir.join(INDEX), "\0\0").unwrap(),
                "index.json",
            ),
            (
                "files",
                |dir| edit(dir, "\"format\":1", "\"format\":2"),
                "unknown",
            ),
            (
                "files",
                |dir| edit(dir, "inventory", "stock"),
                "is of data stock, not of inventory",
            ),
            (
                "files",
                |dir| edit(dir, "/srv/db", "/srv/other"),
                "is of place /srv/other",
            ),
            (
                "files",
                |dir| edit(dir, "\"-wal\"", "\"-wal/../../x\""),
                "one of its parts",
            ),
            (
                "files",
                |dir| edit(dir, "\"files\"", "\"stream\""),
                "with another method",
            ),
            (
                "files",
                |dir| fs::write(dir.join("data"), "ol").unwrap(),
                "2 entries of 5 bytes",
            ),
            (
                "files",
                |dir| fs::remove_file(dir.join("data-wal")).unwrap(),
                "data-wal: No such",
            ),
            (
                "directory",
                |dir| fs::remove_file(dir.join("data/empty")).unwrap(),
                "2 entries of 3",
            ),
        ];
        for (kind, damage, words) in table {
            let mut machine = Machine::new();
            let set = set(json!({}));
            match kind {
                "files" => machine.put(&[("db", "old"), ("db-wal", "log")]),
                _ => machine.put(&[("db/file", "old"), ("db/empty", "")]),
            }
            machine.save(&set).unwrap();
            machine.put(&[("db", "new")]);
            let data = machine.data();
            damage(&machine.at("snapshot"));
            let error = machine.restore(&set).unwrap_err().chain();
            assert!(error.contains(words), "{words}: {error}");
            assert_eq!(machine.data(), data, "{words}: nothing was touched");
        }
    }

    #[test]
    fn nothing_is_saved_over_something() {
        let mut machine = Machine::new();
        let to = machine.at("taken");
        fs::create_dir(&to).unwrap();
        let error = save(&machine.host, &set(json!({})), &to, &mut machine.log);
        assert!(
            error
                .unwrap_err()
                .chain()
                .contains("something already exists there")
        );
    }

    #[test]
    fn what_a_cut_left_beside_the_place_is_in_nobodys_way() {
        for files in [STATES[2], STATES[5]] {
            let mut machine = Machine::new();
            let set = set(json!({}));
            machine.put(files);
            let data = machine.data();
            machine.save(&set).unwrap();
            for left in [STATES[2], STATES[5], STATES[7]] {
                for (name, content) in left {
                    let mut name = (*name).to_owned();
                    let end = name.find('/').unwrap_or(name.len());
                    name.insert_str(end, RESTORING);
                    let path = machine.at("srv").join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, content).unwrap();
                }
                machine.restore(&set).unwrap();
                assert_eq!(machine.data(), data);
            }
        }
    }

    #[test]
    fn the_check_has_the_last_word() {
        let mut machine = Machine::new();
        let set = set(
            json!({"check": ["sh", "-c", "echo looked at \"$0\"; grep -q old \"$0\" || { echo corrupt >&2; exit 4; }", "{place}"]}),
        );
        machine.put(&[("db", "old")]);
        machine.save(&set).unwrap();
        machine.restore(&set).unwrap();
        assert!(
            machine.logged().contains("looked at "),
            "{}",
            machine.logged()
        );
        machine.put(&[("db", "odd")]);
        machine.save(&set).unwrap();
        let error = machine.restore(&set).unwrap_err().chain();
        assert!(
            error.starts_with("checking the data set inventory: sh -c"),
            "{error}"
        );
        assert!(error.ends_with("exited 4: corrupt"), "{error}");
    }

    #[test]
    fn data_is_set_aside_once_whatever_was_done_before_a_cut() {
        for files in [STATES[2], STATES[5], STATES[0]] {
            let mut machine = Machine::new();
            let set = set(json!({}));
            machine.put(files);
            let data = machine.data();
            let to = machine.at("discarded/op/inventory");
            set_aside(&machine.host, &set, &to, &mut machine.log).unwrap();
            assert_eq!(machine.data(), BTreeMap::new());
            let mut aside = BTreeMap::new();
            list(&to, "", &mut aside);
            assert_eq!(aside, data);
            // It is complete: what is at the place now was restored.
            machine.put(&[("db", "restored")]);
            set_aside(&machine.host, &set, &to, &mut machine.log).unwrap();
            assert_eq!(machine.data().len(), 1);
            let mut again = BTreeMap::new();
            list(&to, "", &mut again);
            assert_eq!(again, data);
        }
        // Cut after the database was moved, and when a directory that was copied was being removed.
        for (moved, left) in [(STATES[1], "db-wal"), (STATES[5], "db/one")] {
            let mut machine = Machine::new();
            let set = set(json!({}));
            machine.put(moved);
            let mut data = machine.data();
            let to = machine.at("discarded/inventory");
            let part = machine.at("discarded/inventory.part");
            fs::create_dir_all(&part).unwrap();
            fs::rename(machine.at("srv/db"), part.join("db")).unwrap();
            machine.put(&[(left, "left")]);
            if left == "db-wal" {
                data.extend(machine.data());
            }
            set_aside(&machine.host, &set, &to, &mut machine.log).unwrap();
            let mut aside = BTreeMap::new();
            list(&to, "", &mut aside);
            assert_eq!(aside, data);
            assert_eq!(machine.data(), BTreeMap::new());
        }
    }

    #[test]
    fn commands_save_and_restore() {
        let mut machine = Machine::new();
        let set = commands(&machine, &[]);
        machine.put(&[("db", "old\0\u{fffd}\n")]);
        machine.save(&set).unwrap();
        assert!(
            machine.logged().contains("\"saving\""),
            "{}",
            machine.logged()
        );
        for _ in 0..2 {
            fs::write(machine.at("srv/db"), "new and longer").unwrap();
            machine.restore(&set).unwrap();
            assert!(machine.data()["db"].ends_with(" old\0\u{fffd}\n"));
        }
        let to = machine.at("discarded");
        fs::create_dir(machine.at("discarded.part")).unwrap();
        set_aside(&machine.host, &set, &to, &mut machine.log).unwrap();
        assert!(to.join(INDEX).exists() && machine.at("srv/db").exists());
    }

    #[test]
    fn commands_that_fail_are_failures() {
        let start = std::time::Instant::now();
        for (more, during, words) in [
            (
                script("save", "echo part; echo broken >&2; exit 3"),
                "save",
                "exited 3: broken",
            ),
            (
                script("save", "yes; sleep 1000"),
                "save",
                "inventory is larger than its limit_bytes, 100",
            ),
            (script("save", "sleep 1000"), "save", "did not end in time"),
            (
                script("save", "echo part; sleep 1000 &"),
                "save",
                "did not end in time",
            ),
            (
                script("restore", "echo broken >&2; exit 3"),
                "restore",
                "exited 3: broken",
            ),
            (
                script("restore", "sleep 1000"),
                "restore",
                "did not end in time",
            ),
        ] {
            let mut machine = Machine::new();
            machine.put(&[("db", "old")]);
            let more = [
                more,
                ("timeout_s".into(), json!(1)),
                ("limit_bytes".into(), json!(100)),
            ];
            let set = commands(&machine, &more);
            let saved = machine.save(&set);
            let failed = match during {
                "save" => {
                    assert!(!machine.at("snapshot").join(INDEX).exists(), "{words}");
                    saved
                }
                _ => saved.and_then(|()| machine.restore(&set)),
            };
            let error = failed.unwrap_err().chain();
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(start.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn a_damaged_stream_never_reaches_the_command() {
        for damage in ["OLD", "ol", "older", ""] {
            let mut machine = Machine::new();
            let set = commands(&machine, &[]);
            machine.put(&[("db", "old")]);
            machine.save(&set).unwrap();
            machine.put(&[("db", "new")]);
            fs::write(machine.at("snapshot/data"), damage).unwrap();
            let error = machine.restore(&set).unwrap_err().chain();
            let words = if damage == "OLD" {
                "data was damaged"
            } else {
                "1 entries of"
            };
            assert!(error.contains(words), "{error}");
            assert!(machine.data()["db"].ends_with(" new"));
        }
    }

    #[test]
    fn a_clone_is_the_migrations_own() {
        let mut machine = Machine::new();
        let set = set(json!({}));
        machine.put(STATES[2]);
        fs::set_permissions(machine.at("srv"), fs::Permissions::from_mode(0o555)).unwrap();
        let owner = User {
            uid: 1234,
            gid: 4321,
            home: "/".into(),
        };
        let owner = rustix::process::getuid().is_root().then_some(&owner);
        let clone = machine.clone(&set, owner).unwrap();
        let DataClone::At(at) = clone else {
            panic!("{clone:?}")
        };
        fs::set_permissions(machine.at("srv"), fs::Permissions::from_mode(0o755)).unwrap();
        let dir = machine.at("rehearsal/clone");
        assert_eq!(Path::new(&at), fs::canonicalize(&dir).unwrap().join("db"));
        let meta = fs::metadata(&dir).unwrap();
        assert_eq!(
            meta.mode() & 0o777,
            0o755,
            "of the original's, and its owner may write"
        );
        let mut clone = BTreeMap::new();
        list(&dir, "", &mut clone);
        assert_eq!(
            clone.keys().collect::<Vec<_>>(),
            ["db", "db-wal"],
            "no shared memory"
        );
        for (name, is) in clone {
            let content = is.rsplit(' ').next().unwrap();
            assert!(
                STATES[2].contains(&(name.as_str(), content)),
                "{name}: {is}"
            );
            if let Some(owner) = owner {
                assert!(
                    is.contains(&format!(" {}:{} ", owner.uid, owner.gid)),
                    "{is}"
                );
                assert_eq!((meta.uid(), meta.gid()), (owner.uid, owner.gid));
            }
        }
        machine.put(&[]);
        let empty = machine.clone(&set, None).unwrap();
        assert_eq!(empty, DataClone::At(at), "the last one is replaced");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn what_is_written_to_is_not_cloned() {
        // Shared memory does not count.
        for (name, skipped) in [("db-wal", true), ("db-shm", false)] {
            let mut machine = Machine::new();
            let set = set(json!({}));
            machine.put(&[("db", "x")]);
            let stop = AtomicBool::new(false);
            let path = machine.at("srv").join(name);
            let clone = std::thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 0_u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        fs::write(&path, number.to_string()).unwrap();
                        std::thread::sleep(Duration::from_millis(2));
                    }
                });
                std::thread::sleep(QUIET * 2);
                let clone = machine.clone(&set, None);
                stop.store(true, Ordering::Relaxed);
                clone.unwrap()
            });
            match skipped {
                true => {
                    let DataClone::Skipped(why) = clone else {
                        panic!("{name}: {clone:?}")
                    };
                    assert!(why.ends_with("srv/db is being written to"), "{why}");
                    assert!(!machine.at("rehearsal/clone").exists());
                }
                false => assert!(matches!(clone, DataClone::At(_)), "{name}: {clone:?}"),
            }
        }
    }

    #[test]
    fn a_clock_that_was_wrong_stops_no_clone() {
        let mut machine = Machine::new();
        machine.put(&[("db", "x")]);
        let future = std::time::SystemTime::now() + Duration::from_secs(1_000_000);
        let file = File::options()
            .write(true)
            .open(machine.at("srv/db"))
            .unwrap();
        file.set_modified(future).unwrap();
        let clone = machine.clone(&set(json!({})), None).unwrap();
        assert!(matches!(clone, DataClone::At(_)), "{clone:?}");
    }

    /// How long nobody has written is seen, not read from dates, which a clock that was set makes long ago.
    #[test]
    fn dates_make_nothing_quiet() {
        let mut machine = Machine::new();
        machine.put(&[("db", "x")]);
        std::thread::sleep(QUIET * 2);
        let begun = std::time::Instant::now();
        let clone = machine.clone(&set(json!({})), None).unwrap();
        assert!(matches!(clone, DataClone::At(_)), "{clone:?}");
        assert!(begun.elapsed() >= QUIET);
    }

    #[test]
    fn the_appliances_own_commands_clone() {
        let mut machine = Machine::new();
        machine.put(&[("db", "old")]);
        let own = set(
            json!({"clone": ["sh", "-c", "cp \"$0\" \"$1\"; echo '{{x}}' >>\"$1\"", "{place}", "{clone}"]}),
        );
        let DataClone::At(at) = machine.clone(&own, None).unwrap() else {
            panic!()
        };
        assert_eq!(fs::read_to_string(at).unwrap(), "old{{x}}\n");
        let failing = set(json!({"clone": ["sh", "-c", "exit 3"]}));
        let error = machine.clone(&failing, None).unwrap_err().chain();
        assert!(error.ends_with("sh -c exit 3 exited 3"), "{error}");

        let without = commands(&machine, &[]);
        let skipped = machine.clone(&without, None).unwrap();
        let why = "the appliance defines no way to clone it";
        assert_eq!(skipped, DataClone::Skipped(why.into()));
        drop_clone(&machine.host, &without, &mut machine.log).unwrap();
        let place = machine.at("srv/copy").display().to_string();
        let with = commands(
            &machine,
            &[
                ("clone".into(), json!(["cp", "-n", "{place}", "{clone}"])),
                ("drop_copy".into(), json!(["rm", "-f", "{clone}"])),
                ("clone_place".into(), json!(place)),
            ],
        );
        for content in ["one", "two"] {
            fs::write(machine.at("srv/db"), content).unwrap();
            let clone = machine.clone(&with, None).unwrap();
            assert_eq!(clone, DataClone::At(place.clone()));
            assert_eq!(
                fs::read_to_string(&place).unwrap(),
                content,
                "dropped before"
            );
        }
        drop_clone(&machine.host, &with, &mut machine.log).unwrap();
        assert!(!Path::new(&place).exists());
    }
}
