//! Room on a file system: what is free, what is taken, and what is held for later.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use qx_release::durable;
use qx_release::error::{Context, Result};

/// Room for files, as a file system counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Bytes.
    pub bytes: u64,
    /// Files, directories and links: each takes an inode.
    pub entries: u64,
}

impl Space {
    /// With more of it.
    #[must_use]
    pub fn and(self, more: Space) -> Space {
        Space {
            bytes: self.bytes.saturating_add(more.bytes),
            entries: self.entries.saturating_add(more.entries),
        }
    }

    /// One part of so many.
    #[must_use]
    pub fn part(self, of: u64) -> Space {
        Space {
            bytes: self.bytes / of,
            entries: self.entries / of,
        }
    }

    /// Whether what is free is enough for it.
    pub fn fits(self, free: Space) -> bool {
        self.bytes <= free.bytes && self.entries <= free.entries
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes and {} files", self.bytes, self.entries)
    }
}

/// What is free.
pub fn free_space(path: &Path) -> Result<Space> {
    free_and_total(path).map(|(free, _)| free)
}

/// What is free, and how much there is at all.
pub fn free_and_total(path: &Path) -> Result<(Space, Space)> {
    let stat = rustix::fs::statvfs(path)
        .doing(|| format!("asking for the free space of {}", durable::shown(path)))?;
    // Some file systems make inodes as they go, and tell none.
    let entries = |count: u64| match stat.f_files {
        0 => u64::MAX,
        _ => count,
    };
    let space = |blocks: u64, count: u64| Space {
        bytes: blocks.saturating_mul(stat.f_frsize),
        entries: entries(count),
    };
    Ok((
        space(stat.f_bavail, stat.f_favail),
        space(stat.f_blocks, stat.f_files),
    ))
}

/// What is taken at a path and below it, as far as it can be seen.
pub fn used(path: &Path) -> Space {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Space::default();
    };
    let mut sum = Space {
        bytes: meta.blocks() * 512,
        entries: 1,
    };
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            sum = sum.and(used(&entry.path()));
        }
    }
    sum
}

/// Space that is held for what is still to be written, so that nobody else takes it meanwhile. Dropping it gives back
/// what is left.
pub struct Reserve {
    file: File,
    directory: PathBuf,
    left: u64,
}

impl Reserve {
    /// Takes `bytes` in a directory.
    pub fn new(directory: &Path, bytes: u64) -> Result<Reserve> {
        let path = directory.join(".reserve");
        let doing = || format!("reserving {bytes} bytes in {}", directory.display());
        // One that a killed process left.
        let _ = fs::remove_file(&path);
        let file = File::create_new(&path).doing(doing)?;
        // Without a name it is gone with whoever holds it, whatever becomes of them.
        fs::remove_file(&path).doing(doing)?;
        let reserve = Reserve {
            file,
            directory: directory.to_owned(),
            left: bytes,
        };
        match rustix::fs::fallocate(&reserve.file, FallocateFlags::empty(), 0, bytes) {
            // A file system without the call cannot promise anything.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(reserve),
            Err(e) => Err(io::Error::from(e)).doing(doing),
        }
    }

    /// Gives so many bytes to what is written next.
    pub fn release(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.saturating_sub(bytes);
        let doing = || format!("releasing reserved space in {}", self.directory.display());
        let length = self.file.metadata().doing(doing)?.len();
        if length > self.left {
            self.file.set_len(self.left).doing(doing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_holds_space_until_it_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::new(directory.path(), 100_000).unwrap();
        reserve.release(40_000).unwrap();
        assert!(reserve.file.metadata().unwrap().len() <= 60_000);
        // Nothing is left of it, whatever happens.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
