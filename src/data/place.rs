//! Where the files of a data set are.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::exchange::Spot;
use crate::model::dataset::{COMPANIONS, DataSet};
use crate::system::host::Host;
use qx_release::error::{Context, Error, Result};

/// A directory that exists, and the name of the data in it.
pub(super) struct Place {
    pub(super) directory: File,
    /// The path of that directory through its descriptor, which nobody can redirect.
    pub(super) held: PathBuf,
    /// For messages, and for those who run as its owner.
    pub(super) path: PathBuf,
    pub(super) name: OsString,
}

/// The file or directory itself, or what SQLite keeps beside it.
pub(super) struct Part {
    pub(super) suffix: &'static str,
    pub(super) name: OsString,
    pub(super) path: PathBuf,
}

impl Place {
    /// None if not even the directory is there.
    pub(super) fn of(host: &Host, set: &DataSet) -> Result<Option<Place>> {
        let (parent, name) = Place::split(set)?;
        let found = host.directory(parent)?;
        found.map(|found| Place::new(found, name)).transpose()
    }

    /// The directory is made if it is not there.
    pub(super) fn make(host: &Host, set: &DataSet) -> Result<Place> {
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
        Ok(Place {
            held: held(&directory, &path)?,
            directory,
            path: path.join(name),
            name: name.to_owned(),
        })
    }

    /// The parts that exist. One that could be copied but not exchanged is an error.
    pub(super) fn parts(&self) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        for suffix in [""].into_iter().chain(COMPANIONS) {
            let mut name = self.name.clone();
            name.push(suffix);
            let path = self.path.with_file_name(&name);
            let stat = match rustix::fs::statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e).doing(|| format!("examining {}", path.display())),
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
                    "{} is {}: a data set must be a file, or a directory on the file system of its parent",
                    path.display(),
                    describe(kind)
                )));
            }
            parts.push(Part { suffix, name, path });
            // Of a directory there is no more.
            if kind == FileType::Directory {
                break;
            }
        }
        Ok(parts)
    }

    /// The data itself, if it is a directory.
    pub(super) fn own_directory(&self) -> Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            directory => {
                let directory = directory.doing(|| format!("opening {}", self.path.display()))?;
                Ok(Some(directory.into()))
            }
        }
    }

    /// For the exchange.
    pub(super) fn spot(&self) -> Spot<'_> {
        Spot {
            directory: &self.held,
            name: &self.name,
        }
    }
}

/// A directory's path through its descriptor.
pub(super) fn held(directory: &File, path: &Path) -> Result<PathBuf> {
    let held = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let same = |held: &fs::Metadata, own: &fs::Metadata| {
        (held.dev(), held.ino()) == (own.dev(), own.ino())
    };
    let there = match fs::metadata(&held) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        found => found.and_then(|held| Ok(same(&held, &directory.metadata()?))),
    };
    // Without /proc everything would seem not to be there.
    match there.doing(|| format!("opening {}", path.display()))? {
        true => Ok(held),
        false => Err(Error::new(format!(
            "opening {}: /proc is not mounted",
            path.display()
        ))),
    }
}

pub(super) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Socket => "a socket",
        FileType::Fifo => "a fifo",
        _ => "a device",
    }
}
