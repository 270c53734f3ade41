//! fs-verity: the kernel keeps a hash tree of a file that is complete, and checks against it whatever is read from then on. Damage is an
//! error where it would have been read, in whichever program; it does not run.

use std::fs::{self, File};
use std::path::Path;

use composefs_ioctls::fsverity::{EnableVerityError, fs_ioc_enable_verity};

use qx_release::error::{Context, Result};

/// The algorithm: SHA-256, by the kernel's number (fsverity.rst).
const SHA256: u8 = 1;
/// The size of a block, which every file system that can do it can do.
const BLOCK: u32 = 4096;

/// Has the kernel check the regular files below a directory. Their content can never be changed again. Returns how many there are;
/// none, if the kernel or the file system cannot do it.
pub fn protect(directory: &Path) -> Result<usize> {
    let mut protected = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(place) = open.pop() {
        let reading = || format!("reading {}", place.display());
        for entry in fs::read_dir(&place).doing(reading)? {
            let entry = entry.doing(reading)?;
            let (path, kind) = (entry.path(), entry.file_type().doing(reading)?);
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() {
                let doing = || format!("enabling fs-verity for {}", path.display());
                let file = File::open(&path).doing(doing)?;
                match fs_ioc_enable_verity(&file, SHA256, BLOCK) {
                    Ok(()) | Err(EnableVerityError::AlreadyEnabled) => protected += 1,
                    Err(EnableVerityError::FilesystemNotSupported) => return Ok(protected),
                    Err(e) => return Err(std::io::Error::other(e)).doing(doing),
                }
            }
        }
    }
    Ok(protected)
}
