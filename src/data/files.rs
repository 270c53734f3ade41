//! A data set of files: a directory, or a file with what SQLite keeps beside it. Its copies lie in a directory of ours on the
//! same file system, so that they are exchanged by renames: in the data directory, or else beside the data.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::aside::{Aside, STEP, Size};
use super::copy::{Copying, Survey, look};
use super::exchange::{self, Step};
use super::measure;
use super::place::{Place, held};
use crate::model::dataset::Side;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::proc::Use;
use crate::system::process::User;
use crate::system::space::{self, Space};
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, Result};

/// SQLite recreates it when the database is first opened, and readers write to it.
const SHARED_MEMORY: &str = "-shm";
/// How many attempts a copy of files in use gets, the first survey included, and how long the files must be unchanged.
const TRIES: u32 = 6;
const QUIET: Duration = Duration::from_secs(1);

/// The directory in which both sides of one data set of an operation are.
struct Sides {
    directory: File,
    /// Through its descriptor.
    held: PathBuf,
    /// Its path through a directory that nobody, or only root, can replace.
    entry: PathBuf,
    /// For messages, and for programs that run as another user.
    path: PathBuf,
}

impl Sides {
    /// None if there is none. `place` must live as long.
    fn find(aside: &Aside, place: Option<&Place>) -> Result<Option<Sides>> {
        let path = in_store(aside);
        if let Some(sides) = Sides::at(path.clone(), path)? {
            return Ok(Some(sides));
        }
        match place {
            Some(place) => Sides::beside(aside, place),
            None => Ok(None),
        }
    }

    fn beside(aside: &Aside, place: &Place) -> Result<Option<Sides>> {
        let name = beside(aside);
        Sides::at(place.held.join(&name), place.path.with_file_name(name))
    }

    /// Finds it, or creates it where it can be exchanged with the live data.
    fn make(aside: &Aside, place: &Place) -> Result<Sides> {
        if let Some(sides) = Sides::find(aside, Some(place))? {
            return Ok(sides);
        }
        let copies = aside.store.path("copies");
        // Others go through it, and do not look around.
        durable::create_dir(&copies, 0o711)?;
        let in_store = in_store(aside);
        let made = match same_mount(aside.host, &place.directory, &open(&copies)?)? {
            true => {
                durable::create_dir(&in_store, 0o700)?;
                Sides::at(in_store.clone(), in_store)?
            }
            false => {
                durable::create_dir(&place.held.join(beside(aside)), 0o700)?;
                Sides::beside(aside, place)?
            }
        };
        made.ok_or_else(|| Error::new("the directory for copies was removed"))
    }

    fn at(entry: PathBuf, path: PathBuf) -> Result<Option<Sides>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let doing = || format!("opening {}", path.display());
        let directory: File = match rustix::fs::open(&entry, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            directory => directory.doing(doing)?.into(),
        };
        let owner = directory.metadata().doing(doing)?.uid();
        // Whoever owns the data may write to the directory around it.
        if owner != rustix::process::geteuid().as_raw() {
            return Err(Error::new(format!(
                "{}: it belongs to user {owner}, so its content is not trusted",
                doing()
            )));
        }
        Ok(Some(Sides {
            held: held(&directory, &path)?,
            directory,
            entry,
            path,
        }))
    }

    /// Creates an empty side, for root alone.
    fn begin(&self, side: Side) -> Result<File> {
        durable::remove_any(&self.held.join(side.name()))?;
        let doing = || format!("creating {}", self.path.join(side.name()).display());
        rustix::fs::mkdirat(&self.directory, side.name(), Mode::RWXU).doing(doing)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&self.directory, side.name(), flags, Mode::empty());
        Ok(made.doing(doing)?.into())
    }
}

fn in_store(aside: &Aside) -> PathBuf {
    let name = format!("{}-{}", aside.id, aside.set.name);
    aside.store.path("copies").join(name)
}

/// Its name beside the data, where it cannot be in the store.
fn beside(aside: &Aside) -> String {
    format!(".qx-update-{}-{}", aside.id, aside.set.name)
}

fn open(directory: &Path) -> Result<File> {
    File::open(directory).doing(|| format!("opening {}", directory.display()))
}

/// Whether something can be renamed from one directory to the other: both are on one mount.
fn same_mount(host: &Host, one: &File, other: &File) -> Result<bool> {
    match [one, other].map(|directory| host.proc().mount_id(directory)) {
        [Some(one), Some(other)] => Ok(one == other),
        _ => Err(Error::new(
            "determining the mount of a directory: /proc/self/fdinfo does not tell it",
        )),
    }
}

pub(super) fn size(aside: &Aside) -> Result<Size> {
    let Some(place) = Place::of(aside.host, aside.set)? else {
        return Ok(Size::default());
    };
    let found = survey(&place, ALL)?;
    aside.within(found.bytes)?;
    if let Some(directory) = place.own_directory()?
        && !same_mount(aside.host, &place.directory, &directory)?
    {
        return Err(Error::new(format!(
            "{} is a mount point and cannot be renamed: use a directory below it as the place of the data set",
            place.path.display()
        )));
    }
    let update = aside.store.path("update");
    let in_store = same_mount(aside.host, &place.directory, &open(&update)?)?;
    let near = match in_store {
        true => &update,
        false => &place.held,
    };
    Ok(Size {
        copy: found.copy,
        shares: shares(near).unwrap_or(false),
        free: match in_store {
            true => None,
            false => Some(space::free_space(&place.held)?),
        },
    })
}

/// Which parts of the data are included, by the suffix of their names.
type Wanted = fn(&str) -> bool;
const ALL: Wanted = |_| true;
/// Without what readers change.
const IN_USE: Wanted = |suffix| suffix != SHARED_MEMORY;

fn survey(place: &Place, wanted: Wanted) -> Result<Survey> {
    let mut survey = Survey::default();
    for part in place.parts()? {
        if wanted(part.suffix) {
            look(&mut survey, &place.directory, &part.name, &part.path)?;
        }
    }
    Ok(survey)
}

pub(super) fn copy(aside: &Aside, side: Side, log: &mut Log) -> Result<u64> {
    let place = Place::make(aside.host, aside.set)?;
    let sides = Sides::make(aside, &place)?;
    let before = survey(&place, ALL)?;
    aside.within(before.bytes)?;
    fill(&place, &sides, side, (ALL, before.bytes), log)?;
    unchanged(aside, before.print)?;
    Ok(before.print)
}

pub(super) fn is_there(aside: &Aside) -> Result<bool> {
    match Place::of(aside.host, aside.set)? {
        Some(place) => Ok(!place.parts()?.is_empty()),
        None => Ok(false),
    }
}

pub(super) fn bytes(aside: &Aside) -> Result<u64> {
    match Place::of(aside.host, aside.set)? {
        Some(place) => Ok(survey(&place, ALL)?.bytes),
        None => Ok(0),
    }
}

/// The processes that use it, at its place or where it is mounted besides.
pub(super) fn users(aside: &Aside) -> Result<Vec<Use>> {
    let Some(place) = Place::of(aside.host, aside.set)? else {
        return Ok(Vec::new());
    };
    let parts = place.parts()?.into_iter().map(|part| part.path);
    Ok(aside.store.users(&parts.collect::<Vec<_>>()))
}

pub(super) fn unchanged(aside: &Aside, found: u64) -> Result<()> {
    let Some(place) = Place::of(aside.host, aside.set)? else {
        return Ok(());
    };
    match survey(&place, ALL)?.print == found {
        true => Ok(()),
        false => Err(Error::new(format!(
            "{} was written to while its services were stopped: another process uses it",
            place.path.display()
        ))),
    }
}

pub(super) fn starved(aside: &Aside) -> Result<bool> {
    const LITTLE: Space = Space {
        bytes: 1 << 20,
        entries: 16,
    };
    let size = size(aside)?;
    let free = aside.free(&size)?;
    // Its own directories are counted, too.
    let planned = size.with_migration().and(Space { bytes: 0, ..LITTLE });
    Ok(!LITTLE.fits(free) && used(aside).fits(planned))
}

/// Copies the wanted parts, `total` bytes, and gives their directory the attributes of the one that contains the data:
/// whoever may create files there may create them here.
fn fill(
    place: &Place,
    sides: &Sides,
    side: Side,
    (wanted, total): (Wanted, u64),
    log: &mut Log,
) -> Result<()> {
    let into = sides.begin(side)?;
    let mut done = 0_u64;
    let mut progress = |bytes: u64| {
        done = done.saturating_add(bytes);
        log.progress(STEP, done, total);
    };
    let mut copying = Copying::new(&into, &mut progress);
    for part in place.parts()? {
        if wanted(part.suffix) {
            copying.entry(&place.directory, &part.name, &part.path)?;
        }
    }
    copying.like(&place.directory, &place.path)
}

pub(super) fn copy_in_use(aside: &Aside, side: Side, log: &mut Log) -> Result<Option<String>> {
    let place = Place::make(aside.host, aside.set)?;
    let sides = Sides::make(aside, &place)?;
    if !aside.set.copy_in_use.is_empty() {
        return copy_by_command(aside, &place, &sides, side, log).map(|()| None);
    }
    let mut last = None;
    for _ in 0..TRIES {
        if last.is_some() {
            std::thread::sleep(QUIET);
        }
        let before = survey(&place, IN_USE)?;
        aside.within(before.bytes)?;
        // When a file was written to last says nothing: that may have been under another clock.
        let quiet = last.replace(before.print) == Some(before.print);
        if !quiet {
            continue;
        }
        let copied = fill(&place, &sides, side, (IN_USE, before.bytes), log);
        // What changes may also vanish while it is copied.
        if survey(&place, IN_USE).is_ok_and(|after| after == before) {
            return copied.map(|()| None);
        }
    }
    Ok(Some(format!(
        "{} is being written to",
        place.path.display()
    )))
}

/// The data set's own command makes the copy.
fn copy_by_command(
    aside: &Aside,
    place: &Place,
    sides: &Sides,
    side: Side,
    log: &mut Log,
) -> Result<()> {
    let into = sides.begin(side)?;
    let mut nothing = |_| {};
    Copying::new(&into, &mut nothing).like(&place.directory, &place.path)?;
    if let Some(name) = &aside.set.user {
        let user = User::find(aside.host, name)?;
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(user.uid),
            rustix::fs::Gid::from_raw(user.gid),
        );
        rustix::fs::fchown(&into, Some(uid), Some(gid))
            .doing(|| format!("changing the owner of {}", sides.path.display()))?;
    }
    open_to_others(aside, true)?;
    let places = [aside.live_place()?, aside.place_of_copy(side)?];
    let places = [&*places[0], &*places[1], ""];
    aside.run(&aside.set.copy_in_use, places, log)?;
    let mut made = Survey::default();
    look(
        &mut made,
        &sides.directory,
        OsStr::new(side.name()),
        &sides.path,
    )?;
    aside.within(made.bytes)
}

pub(super) fn begin_empty(aside: &Aside) -> Result<()> {
    let place = Place::make(aside.host, aside.set)?;
    place.parts()?;
    Sides::make(aside, &place)?.begin(Side::Next).map(drop)
}

pub(super) fn open_to_others(aside: &Aside, open: bool) -> Result<()> {
    let place = Place::of(aside.host, aside.set)?;
    let Some(sides) = Sides::find(aside, place.as_ref())? else {
        return Ok(());
    };
    let mode = match open {
        true => 0o711,
        false => 0o700,
    };
    rustix::fs::fchmod(&sides.directory, Mode::from_raw_mode(mode))
        .doing(|| format!("changing the mode of {}", sides.path.display()))
}

pub(super) fn exchange(aside: &Aside, from: Side, log: &mut Log) -> Result<()> {
    let place = Place::make(aside.host, aside.set)?;
    let sides = Sides::find(aside, Some(&place))?.ok_or_else(|| {
        let place = in_store(aside);
        Error::new(format!("there are no copies in {}", place.display()))
    })?;
    let mut step = |step: Step| step.carry_out();
    let stray = exchange::exchange(&place.spot(), &sides.held, from, &mut step)?;
    if let Some(stray) = stray {
        let name = stray.file_name().unwrap_or_default();
        let what = format!(
            "unexpected files appeared at {} during the exchange; moved to {}",
            place.path.display(),
            sides.path.join(name).display()
        );
        log.warning(STEP, what);
    }
    Ok(())
}

pub(super) fn remove(aside: &Aside) -> Result<()> {
    let place = Place::of(aside.host, aside.set)?;
    // There may be two: made in one place, and again in the other after the mounts had changed.
    while let Some(sides) = Sides::find(aside, place.as_ref())? {
        durable::remove_tree(&sides.entry)?;
    }
    Ok(())
}

pub(super) fn export(aside: &Aside, side: Side, archive: &mut tar::Builder<File>) -> Result<()> {
    let place = Place::of(aside.host, aside.set)?;
    let sides = Sides::find(aside, place.as_ref())?;
    let sides = sides.ok_or_else(|| Error::new("its copies are missing"))?;
    let from = sides.held.join(side.name());
    archive
        .append_dir_all(aside.set.name.as_str(), &from)
        .doing(|| format!("reading {}", sides.path.join(side.name()).display()))
}

/// What a side holds.
pub(super) fn digest(aside: &Aside, side: Side) -> Result<Digest> {
    let place = Place::of(aside.host, aside.set)?;
    let sides = Sides::find(aside, place.as_ref())?;
    let sides = sides.ok_or_else(|| Error::new("its copies are missing"))?;
    measure::digest(&sides.held.join(side.name()))
}

pub(super) fn sync(aside: &Aside) -> Result<()> {
    let place = Place::of(aside.host, aside.set)?;
    match Sides::find(aside, place.as_ref())? {
        Some(sides) => durable::sync_file_system(&sides.held),
        None => Ok(()),
    }
}

pub(super) fn used(aside: &Aside) -> Space {
    let place = Place::of(aside.host, aside.set).unwrap_or_default();
    let sides = Sides::find(aside, place.as_ref()).unwrap_or_default();
    sides.map_or(Space::default(), |sides| space::used(&sides.held.join(".")))
}

pub(super) fn place_of_copy(aside: &Aside, side: Side) -> Result<String> {
    let place = Place::of(aside.host, aside.set)?;
    let sides = Sides::find(aside, place.as_ref())?;
    let (Some(sides), Some(place)) = (&sides, &place) else {
        return Err(Error::new(format!(
            "the copy of the data set {} is missing",
            aside.set.name
        )));
    };
    // A place is text, and so are the data directory and the names in it.
    Ok(sides
        .path
        .join(side.name())
        .join(&place.name)
        .display()
        .to_string())
}

pub(super) fn live_place(aside: &Aside) -> Result<String> {
    let path = match Place::of(aside.host, aside.set)? {
        Some(place) => place.path,
        None => aside.host.path(&aside.set.place)?,
    };
    Ok(path.display().to_string())
}

/// Whether copies share blocks. It is tested, since it depends on how the file system was created.
fn shares(near: &Path) -> io::Result<bool> {
    let paths = ["shares-from", "shares"]
        .map(|name| near.join(format!(".qx-update-{name}{}", durable::TEMPORARY)));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    use super::*;
    use crate::model::dataset::DataSet;
    use crate::model::id::OperationId;
    use crate::store::Store;
    use qx_release::error::ErrorKind;
    use rustix::fs::{FileType, XattrFlags};
    use serde_json::json;

    /// An appliance with data in `/srv`.
    struct Scene {
        root: tempfile::TempDir,
        host: Host,
        store: Store,
        set: DataSet,
        log: Log,
    }

    impl Scene {
        fn new(more: serde_json::Value) -> Scene {
            let root = tempfile::tempdir().unwrap();
            for directory in ["srv", "data/update"] {
                fs::create_dir_all(root.path().join(directory)).unwrap();
            }
            let host = Host::new(root.path()).unwrap();
            let place = crate::system::log::Destination {
                path: root.path().join("log"),
                below: root.path().to_owned(),
                max_bytes: 1 << 20,
                keep: 1,
            };
            let mut set = json!({"name": "inventory", "method": "files", "place": "/srv/db"});
            let more = more.as_object().unwrap().clone();
            set.as_object_mut().unwrap().extend(more);
            Scene {
                store: Store::new(&host, "/data", "/factory").unwrap(),
                set: serde_json::from_value(set).unwrap(),
                log: Log::new(place, false),
                host,
                root,
            }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        /// Puts these files in `/srv`, and nothing else.
        fn put(&self, files: &[(&str, &str)]) {
            let _ = fs::remove_dir_all(self.at("srv"));
            fs::create_dir(self.at("srv")).unwrap();
            for (name, content) in files {
                let path = self.at("srv").join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }

        fn try_with<T>(&mut self, work: impl FnOnce(&Aside, &mut Log) -> Result<T>) -> Result<T> {
            let aside = Aside {
                host: &self.host,
                store: &self.store,
                set: &self.set,
                id: OperationId::new(7),
            };
            work(&aside, &mut self.log)
        }

        #[track_caller]
        fn with<T>(&mut self, work: impl FnOnce(&Aside, &mut Log) -> Result<T>) -> T {
            self.try_with(work).map_err(|e| e.chain()).unwrap()
        }

        fn copied(&self) -> PathBuf {
            self.at("data/copies/0000000000000007-inventory/next")
        }
    }

    /// All that can be told of what is below a directory: kind, mode, owner, time, names, blocks, attributes, content.
    fn list(dir: &Path) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut inodes = Vec::new();
        list_below(dir, "", &mut all, &mut inodes);
        all
    }

    fn list_below(
        dir: &Path,
        under: &str,
        all: &mut BTreeMap<String, String>,
        inodes: &mut Vec<u64>,
    ) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata().unwrap());
            let name = format!("{under}{}", entry.file_name().display());
            let kind = meta.file_type();
            let content = match kind {
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                kind if kind.is_file() => {
                    fs::read(&path).unwrap().len().to_string() + &digest(&path)
                }
                kind if kind.is_fifo() => "fifo".into(),
                kind if kind.is_socket() => "socket".into(),
                _ => String::new(),
            };
            if !inodes.contains(&meta.ino()) {
                inodes.push(meta.ino());
            }
            // Files with one inode have one number.
            let number = inodes.iter().position(|ino| *ino == meta.ino());
            let time = (meta.mtime(), meta.mtime_nsec());
            let holes = kind.is_file() && meta.blocks() * 512 < meta.len();
            all.insert(
                name.clone(),
                format!(
                    "{:o} {}:{} {time:?} links {} file {number:?} holes {holes} {} {content}",
                    meta.mode(),
                    meta.uid(),
                    meta.gid(),
                    meta.nlink(),
                    attributes(&path)
                ),
            );
            if meta.is_dir() {
                list_below(&path, &format!("{name}/"), all, inodes);
            }
        }
    }

    fn digest(path: &Path) -> String {
        qx_release::digest::Digest::of(&fs::read(path).unwrap()).to_string()
    }

    fn attributes(path: &Path) -> String {
        let mut buffer = vec![0; 65_536];
        let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap_or(0);
        let mut all: Vec<String> = buffer[..length]
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = vec![0; 65_536];
                let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
                format!("{}={:?}", String::from_utf8_lossy(name), &value[..length])
            })
            .collect();
        all.sort();
        all.join(",")
    }

    /// A directory with everything that files can have.
    fn put_everything(scene: &Scene) {
        scene.put(&[
            ("db/file", "x"),
            ("db/closed/deep/file", "y"),
            ("outside", "z"),
        ]);
        let at = |path: &str| scene.at("srv").join(path);
        symlink("file", at("db/link")).unwrap();
        symlink("../outside", at("db/out")).unwrap();
        symlink("/nowhere", at("db/dangling")).unwrap();
        fs::hard_link(at("db/file"), at("db/hard")).unwrap();
        fs::hard_link(at("db/file"), at("db/closed/deep/hard")).unwrap();
        let sparse = File::create(at("db/sparse")).unwrap();
        sparse.set_len(10_000_000).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 5_000_000).unwrap();
        if rustix::process::getuid().is_root() {
            std::os::unix::fs::chown(at("db/file"), Some(1234), Some(4321)).unwrap();
            std::os::unix::fs::lchown(at("db/link"), Some(1234), None).unwrap();
            // The capability to bind to low ports, as `setcap` writes it; and a default access control list for user 1234.
            let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let set = |path: PathBuf, name: &str, value: &[u8]| {
                rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
            };
            set(
                at("db/closed/deep/file"),
                "security.capability",
                &capability,
            );
            let entry = |tag: u16, bits: u16, id: u32| {
                [
                    &tag.to_le_bytes()[..],
                    &bits.to_le_bytes(),
                    &id.to_le_bytes(),
                ]
                .concat()
            };
            let nobody = u32::MAX;
            let list = [
                2_u32.to_le_bytes().to_vec(),
                entry(1, 7, nobody),
                entry(2, 6, 1234),
                entry(4, 5, nobody),
                entry(16, 7, nobody),
                entry(32, 0, nobody),
            ]
            .concat();
            set(at("db/closed"), "system.posix_acl_default", &list);
            set(at("db/file"), "system.posix_acl_access", &list);
        }
        rustix::fs::setxattr(at("db/sparse"), "user.note", b"kept", XattrFlags::empty()).unwrap();
        let mode = |path: &str, mode| {
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("db/sparse", 0o6751);
        let fifo = rustix::fs::Mode::RWXU;
        rustix::fs::mknodat(rustix::fs::CWD, at("db/fifo"), FileType::Fifo, fifo, 0).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("db/socket")).unwrap());
        mode("db/closed/deep", 0o500);
        mode("db/closed", 0o1770);
        mode("db", 0o750);
        for path in ["db/file", "db/closed/deep", "db"] {
            let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123);
            File::open(at(path)).unwrap().set_modified(old).unwrap();
        }
    }

    /// A copy has everything that the original has, as `cp -a` makes it; it takes the original's place, and gives it back.
    #[test]
    fn a_copy_has_everything() {
        let mut scene = Scene::new(json!({}));
        put_everything(&scene);
        let data = list(&scene.at("srv/db"));
        scene.with(|aside, log| aside.copy(Side::Next, log));
        assert_eq!(list(&scene.at("srv/db")), data, "copying changes nothing");
        let copy = scene.copied();
        assert_eq!(list(&copy.join("db")), data);
        let by_cp = scene.at("by-cp");
        let cp = std::process::Command::new("cp")
            .arg("-a")
            .args([scene.at("srv/db"), by_cp.clone()])
            .status();
        assert!(cp.unwrap().success());
        assert_eq!(list(&by_cp), data, "the measure itself");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&copy), mode(&scene.at("srv")), "as around the data");
        assert_eq!(mode(copy.parent().unwrap()), 0o700, "for root alone");
        fs::write(copy.join("db/file"), "migrated").unwrap();
        scene.with(|aside, log| aside.exchange(Side::Next, log));
        assert_eq!(
            fs::read_to_string(scene.at("srv/db/file")).unwrap(),
            "migrated"
        );
        assert_eq!(
            fs::read_to_string(scene.at("srv/db/hard")).unwrap(),
            "migrated"
        );
        scene.with(|aside, log| aside.exchange(Side::Previous, log));
        assert_eq!(list(&scene.at("srv/db")), data);
        scene.with(|aside, log| aside.remove(log));
        assert_eq!(fs::read_dir(scene.at("data/copies")).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_exchanged_is_not_copied() {
        let mut scene = Scene::new(json!({}));
        let place = scene.at("srv/db");
        let refused = |scene: &mut Scene, words: &str| {
            let early = scene.try_with(|aside, _| aside.size()).unwrap_err();
            let late = scene.try_with(|aside, log| aside.copy(Side::Next, log));
            for error in [early, late.unwrap_err()] {
                let error = error.chain();
                assert!(error.contains(words), "{error}");
            }
            assert!(!scene.copied().exists());
        };
        fs::create_dir(place.with_file_name("db-wal")).unwrap();
        refused(&mut scene, "srv/db-wal is a directory");
        scene.put(&[("real", "")]);
        symlink("real", place.with_file_name("db-journal")).unwrap();
        refused(&mut scene, "srv/db-journal is a symbolic link");
        scene.put(&[("real", "")]);
        symlink("real", &place).unwrap();
        refused(&mut scene, "srv/db is a symbolic link");
        if rustix::process::getuid().is_root() {
            scene.put(&[("db/file", "")]);
            let mode = rustix::fs::Mode::RWXU;
            let null = rustix::fs::makedev(1, 3);
            let kind = FileType::CharacterDevice;
            rustix::fs::mknodat(rustix::fs::CWD, place.join("null"), kind, mode, null).unwrap();
            refused(&mut scene, "srv/db/null: it is a device");
        }
    }

    #[test]
    fn more_than_the_limit_is_refused_before_it_is_written() {
        let mut scene = Scene::new(json!({"limit_bytes": 10}));
        scene.put(&[("db", "123456"), ("db-wal", "1234")]);
        scene.with(|aside, log| aside.copy(Side::Next, log));
        scene.with(|aside, _| aside.size());
        scene.with(|aside, log| aside.remove(log));
        for files in [
            [("db", "123456"), ("db-wal", "12345")],
            [("db/a", "123456"), ("db/b", "12345")],
        ] {
            scene.put(&files);
            let early = scene.try_with(|aside, _| aside.size()).unwrap_err();
            let late = scene.try_with(|aside, log| aside.copy(Side::Next, log));
            let in_use = scene.try_with(|aside, log| aside.copy_in_use(Side::Next, log));
            for error in [early, late.unwrap_err(), in_use.unwrap_err()] {
                assert_eq!(error.kind, ErrorKind::NotEligible);
                let words = "the data set inventory is larger than its limit_bytes, 10";
                assert!(error.chain().contains(words), "{}", error.chain());
            }
            assert!(!scene.copied().exists());
        }
    }

    #[test]
    fn the_size_is_what_a_copy_takes_at_the_most() {
        let mut scene = Scene::new(json!({}));
        let size = scene.with(|aside, _| aside.size());
        assert_eq!(size.copy, Space::default());
        scene.put(&[("db", "1")]);
        let one = Space {
            bytes: 8192,
            entries: 1,
        };
        assert_eq!(scene.with(|aside, _| aside.size()).copy, one);
        let wal = File::create(scene.at("srv/db-wal")).unwrap();
        wal.set_len(1 << 20).unwrap();
        let size = scene.with(|aside, _| aside.size());
        let Space { bytes, entries } = size.copy;
        assert_eq!(bytes, 8192 + (1 << 20) + 4096, "holes count");
        let twice = if size.shares { 1 } else { 2 };
        assert_eq!(size.with_migration().bytes, twice * bytes);
        assert_eq!((entries, size.with_migration().entries), (2, 2));
        assert_eq!(fs::read_dir(scene.at("data/update")).unwrap().count(), 0);
    }

    /// What writes to the data while it is copied for a rehearsal makes that impossible, and is no error.
    #[test]
    fn files_in_use_are_copied_when_nobody_writes() {
        let mut scene = Scene::new(json!({}));
        scene.put(&[("db", "rows"), ("db-wal", "log"), ("db-shm", "index")]);
        let why = scene.with(|aside, log| aside.copy_in_use(Side::Next, log));
        assert_eq!(why, None);
        let names: Vec<String> = list(&scene.copied()).into_keys().collect();
        assert_eq!(names, ["db", "db-wal"]);
        let writes = std::sync::atomic::AtomicBool::new(true);
        let path = scene.at("srv/db");
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let mut number = 0_u64;
                while writes.load(std::sync::atomic::Ordering::Relaxed) {
                    number += 1;
                    fs::write(&path, number.to_string()).unwrap();
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            let why = scene.with(|aside, log| aside.copy_in_use(Side::Next, log));
            writes.store(false, std::sync::atomic::Ordering::Relaxed);
            assert!(why.unwrap().contains("is being written to"));
        });
    }

    /// Something that was not made here is in the place of the copies: nothing of it becomes live.
    #[test]
    fn what_somebody_else_has_laid_out_is_not_used() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let mut scene = Scene::new(json!({}));
        scene.put(&[("db", "rows")]);
        let planted = scene.at("srv/.qx-update-0000000000000007-inventory");
        fs::create_dir_all(planted.join("next")).unwrap();
        fs::write(planted.join("next/db"), "planted").unwrap();
        std::os::unix::fs::chown(&planted, Some(1234), None).unwrap();
        let error = scene.try_with(|aside, log| aside.exchange(Side::Next, log));
        let error = error.unwrap_err().chain();
        assert!(error.contains("belongs to user 1234"), "{error}");
        fs::remove_dir_all(&planted).unwrap();
        symlink("/etc", &planted).unwrap();
        let error = scene.try_with(|aside, log| aside.exchange(Side::Next, log));
        assert!(error.is_err());
        assert_eq!(fs::read_to_string(scene.at("srv/db")).unwrap(), "rows");
    }
}
