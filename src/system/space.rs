//! Room on a file system: what is free, what is taken, and what is held for later.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use qx_release::error::{Context, Result};

/// Free bytes and inodes.
pub fn free_space(path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)
        .doing(|| format!("asking for the free space of {}", path.display()))?;
    // Some file systems make inodes as they go, and tell none.
    let inodes = if stat.f_files == 0 {
        u64::MAX
    } else {
        stat.f_favail
    };
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), inodes))
}

/// Free bytes, and how many there are at all.
pub fn free_and_total(path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)
        .doing(|| format!("asking for the free space of {}", path.display()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

/// Bytes and inodes taken below a directory, as far as they can be seen.
pub fn used(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else {
        return (0, 0);
    };
    let mut sum = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let (bytes, entries) = used(&entry.path());
            sum = (sum.0 + bytes, sum.1 + entries);
        }
    }
    sum
}

/// Space that is held for what is still to be written, so that nobody else takes it meanwhile. Dropping it gives back
/// what is left.
pub struct Reserve {
    file: File,
    path: PathBuf,
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
        let reserve = Reserve {
            file,
            path,
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
        let doing = || format!("releasing reserved space in {}", self.path.display());
        let length = self.file.metadata().doing(doing)?.len();
        if length > self.left {
            self.file.set_len(self.left).doing(doing)?;
        }
        Ok(())
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // It lies in a directory that is deleted or swept when this fails.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_holds_space_until_it_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::new(directory.path(), 100_000).unwrap();
        let path = directory.path().join(".reserve");
        reserve.release(40_000).unwrap();
        assert!(fs::metadata(&path).unwrap().len() <= 60_000);
        drop(reserve);
        assert!(!path.exists());
    }
}
