//! Copies files and directories with everything that they have: owners, modes, times, extended attributes (access control
//! lists and capabilities are such), hard links among them, holes, symbolic links, fifos and sockets. `cp -a` and
//! `rsync -aHAXS` are the measure. No link is ever followed.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::place::describe;
use crate::system::space::Space;
use qx_release::error::{Context, Result};

/// The longest value of an extended attribute that the kernel knows, and the longest list of their names.
const MAX_ATTRIBUTE: usize = 65_536;

/// What was found in the data.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Survey {
    /// The files' content.
    pub(super) bytes: u64,
    /// What a copy takes on a disk, at the most.
    pub(super) copy: Space,
    /// A fingerprint: it changes whenever a file is written, added or removed.
    pub(super) print: u64,
}

/// Surveys the entry `name` of a directory, and all below it. `path` is for messages.
///
/// # Errors
/// Something is there that no copy can be made of: a device, another file system.
pub(super) fn look(survey: &mut Survey, from: &File, name: &OsStr, path: &Path) -> Result<()> {
    let doing = || format!("examining {}", path.display());
    let Some(directory) = look_at_one(survey, from, name).doing(doing)? else {
        return Ok(());
    };
    for entry in entries(&directory).doing(doing)? {
        let name = entry.doing(doing)?;
        let name = OsStr::from_bytes(name.as_bytes());
        look(survey, &directory, name, &path.join(name))?;
    }
    Ok(())
}

/// Surveys one entry; a directory is opened.
fn look_at_one(survey: &mut Survey, from: &File, name: &OsStr) -> io::Result<Option<File>> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = copied(from, &stat)?;
    survey.count(&stat, kind);
    match kind {
        FileType::Directory => open(from, name, kind).map(|(directory, _)| Some(directory)),
        _ => Ok(None),
    }
}

/// What kind of entry it is, if it can be copied.
fn copied(directory: &File, stat: &Stat) -> io::Result<FileType> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile
        | FileType::Directory
        | FileType::Symlink
        | FileType::Socket
        | FileType::Fifo => {}
        _ => return Err(io::Error::other(format!("it is {}", describe(kind)))),
    }
    match directory.metadata()?.dev() == stat.st_dev {
        true => Ok(kind),
        false => Err(io::Error::other("it is on another file system")),
    }
}

impl Survey {
    fn count(&mut self, stat: &Stat, kind: FileType) {
        const BLOCK: u64 = 4096;
        let bytes = match kind {
            FileType::RegularFile => stat.st_size.cast_unsigned(),
            _ => 0,
        };
        self.bytes += bytes;
        // An inode and an entry of a directory take something, too.
        self.copy.bytes += bytes.div_ceil(BLOCK) * BLOCK + BLOCK;
        self.copy.entries += 1;
        let modified = (stat.st_mtime, stat.st_mtime_nsec as i64);
        let changed = (stat.st_ctime, stat.st_ctime_nsec.cast_signed());
        let mut hasher = DefaultHasher::new();
        (stat.st_ino, stat.st_size, modified, changed).hash(&mut hasher);
        // A sum: the order of a directory's entries does not count.
        self.print = self.print.wrapping_add(hasher.finish());
    }
}

/// One copy of some entries of a directory, in a directory that only root may enter until it is finished.
pub(super) struct Copying<'a> {
    /// The directory into which the entries are copied.
    into: &'a File,
    /// Files with several names that were copied already, by inode, with their paths below `into`. Removed at the last
    /// name.
    linked: HashMap<u64, Linked>,
    attribute: Vec<u8>,
    /// Told of each file's bytes as they are copied.
    progress: &'a mut dyn FnMut(u64),
}

struct Linked {
    path: PathBuf,
    names_left: u64,
}

impl<'a> Copying<'a> {
    pub(super) fn new(into: &'a File, progress: &'a mut dyn FnMut(u64)) -> Copying<'a> {
        Copying {
            into,
            linked: HashMap::new(),
            attribute: vec![0; MAX_ATTRIBUTE],
            progress,
        }
    }

    /// Copies the entry `name` of a directory, with all below it. `path` is for messages.
    pub(super) fn entry(&mut self, from: &File, name: &OsStr, path: &Path) -> Result<()> {
        let into = self.into.try_clone().doing(|| "copying")?;
        self.below(from, name, &into, Path::new(name), path)
    }

    /// Gives the target directory the owner, the mode and all other attributes of another one.
    pub(super) fn like(&mut self, other: &File, path: &Path) -> Result<()> {
        let doing = || format!("copying the attributes of {}", path.display());
        let stat = rustix::fs::fstat(other).doing(doing)?;
        let into = self.into;
        self.finish(other, into, &stat).doing(doing)
    }

    /// `own` is the copy's path below the directory that is copied into.
    fn below(
        &mut self,
        from: &File,
        name: &OsStr,
        to: &File,
        own: &Path,
        path: &Path,
    ) -> Result<()> {
        let doing = || format!("copying {}", path.display());
        let Some((from, to, stat)) = self.one(from, name, to, own).doing(doing)? else {
            return Ok(());
        };
        for entry in entries(&from).doing(doing)? {
            let name = entry.doing(doing)?;
            let name = OsStr::from_bytes(name.as_bytes());
            self.below(&from, name, &to, &own.join(name), &path.join(name))?;
        }
        // Its time changes with each entry, and its mode may forbid them.
        self.finish(&from, &to, &stat).doing(doing)
    }

    /// One entry; a directory that was entered, and its copy, still to be finished.
    fn one(
        &mut self,
        from: &File,
        name: &OsStr,
        to: &File,
        own: &Path,
    ) -> io::Result<Option<(File, File, Stat)>> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = copied(from, &stat)?;
        if kind != FileType::Directory && stat.st_nlink > 1 && self.link(&stat, own)? {
            return Ok(None);
        }
        match kind {
            FileType::Directory => {
                let (from, stat) = open(from, name, kind)?;
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let to = rustix::fs::openat(to, name, flags, Mode::empty())?;
                return Ok(Some((from, to.into(), stat)));
            }
            FileType::RegularFile => {
                let (from, stat) = open(from, name, kind)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let to = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?.into();
                self.content(&from, &to, &stat)?;
                self.finish(&from, &to, &stat)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&*target, to, name)?;
                self.finish_closed(from, to, name, &stat, kind)?;
            }
            _ => {
                rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, 0)?;
                self.finish_closed(from, to, name, &stat, kind)?;
            }
        }
        Ok(None)
    }

    /// Whether this is another name of a file that was copied already; then the copy is linked.
    fn link(&mut self, stat: &Stat, own: &Path) -> io::Result<bool> {
        let Some(linked) = self.linked.get_mut(&stat.st_ino) else {
            // The kernel's type for it is narrower on some processors.
            #[allow(clippy::useless_conversion)]
            let names = u64::from(stat.st_nlink);
            let linked = Linked {
                path: own.to_owned(),
                names_left: names - 1,
            };
            self.linked.insert(stat.st_ino, linked);
            return Ok(false);
        };
        rustix::fs::linkat(self.into, &linked.path, self.into, own, AtFlags::empty())?;
        linked.names_left -= 1;
        if linked.names_left == 0 {
            self.linked.remove(&stat.st_ino);
        }
        Ok(true)
    }

    /// Copies the content: by sharing blocks if the file system can, else keeping the holes.
    fn content(&mut self, from: &File, to: &File, stat: &Stat) -> io::Result<()> {
        let size = stat.st_size.cast_unsigned();
        if rustix::fs::ioctl_ficlone(to, from).is_err() {
            copy_data(from, to, size)?;
        }
        (self.progress)(size);
        match to.metadata()?.len() == size {
            true => Ok(()),
            false => Err(io::Error::other("the original changed while being read")),
        }
    }

    /// Copies the other attributes of a file or directory. The owner comes before the mode and the extended attributes,
    /// since changing it clears mode bits and capabilities; the times come last.
    fn finish(&mut self, from: &File, to: &File, stat: &Stat) -> io::Result<()> {
        rustix::fs::fchown(
            to,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        )?;
        rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
        let mut names = Vec::new();
        let length = match rustix::fs::flistxattr(from, &mut self.attribute[..]) {
            Err(Errno::NOTSUP) => 0,
            length => length?,
        };
        names.extend_from_slice(&self.attribute[..length]);
        for name in attribute_names(&names) {
            let length = match rustix::fs::fgetxattr(from, name, &mut self.attribute[..]) {
                // Some are named and may not be read, or are made up by the kernel.
                Err(Errno::NODATA | Errno::NOTSUP) => continue,
                length => length?,
            };
            rustix::fs::fsetxattr(to, name, &self.attribute[..length], XattrFlags::empty())?;
        }
        rustix::fs::futimens(to, &times(stat))?;
        Ok(())
    }

    /// The same for what cannot be opened.
    fn finish_closed(
        &mut self,
        from: &File,
        to: &File,
        name: &OsStr,
        stat: &Stat,
        kind: FileType,
    ) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy: OwnedFd = rustix::fs::openat(to, name, flags, Mode::empty())?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(&copy, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        if kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
        let path = |directory: &File| {
            let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            path.extend_from_slice(name.as_bytes());
            path
        };
        let (original, own) = (path(from), path(to));
        let length = match rustix::fs::llistxattr(&*original, &mut self.attribute[..]) {
            Err(Errno::NOTSUP) => 0,
            length => length?,
        };
        let names = self.attribute[..length].to_vec();
        for name in attribute_names(&names) {
            let length = match rustix::fs::lgetxattr(&*original, name, &mut self.attribute[..]) {
                Err(Errno::NODATA | Errno::NOTSUP) => continue,
                length => length?,
            };
            rustix::fs::lsetxattr(&*own, name, &self.attribute[..length], XattrFlags::empty())?;
        }
        // Kernels before 5.8 cannot; then it has the time at which it was made.
        let _ = rustix::fs::utimensat(&copy, "", &times(stat), AtFlags::EMPTY_PATH);
        Ok(())
    }
}

/// A list of names, each with a zero byte at its end.
fn attribute_names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
}

/// Opens an entry that must still be of that kind: whoever may write here may have replaced it.
fn open(from: &File, name: &OsStr, kind: FileType) -> io::Result<(File, Stat)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
    let stat = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(stat.st_mode) == kind {
        true => Ok((file, stat)),
        false => Err(io::Error::other("it was replaced in the meantime")),
    }
}

/// The names in a directory, as they come: there may be many.
fn entries(directory: &File) -> io::Result<impl Iterator<Item = io::Result<CString>>> {
    let entries = Dir::read_from(directory)?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
        Ok(entry) => Some(Ok(entry.file_name().to_owned())),
        Err(e) => Some(Err(e.into())),
    }))
}

/// Copies the data of a file and keeps its holes.
fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let hole = match rustix::fs::seek(from, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(size),
            Err(Errno::INVAL) => size,
            Err(e) => return Err(e.into()),
        };
        at = data;
        while at < hole {
            let most = usize::try_from(hole - at)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let read = match from.read_at(&mut buffer[..most], at) {
                Ok(0) => return Err(io::Error::other("the original changed while being read")),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            to.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
    }
    to.set_len(size)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as i64,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as i64,
        },
    }
}
