//! The digest of files that are set aside: what `verify`, and whoever makes them live again, compares them with.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use qx_release::digest::{Digest, Hasher};
use qx_release::durable;
use qx_release::error::{Context, Result};

/// The digest of what is at `path`: names, owners, modes, content. Memory: the names of the directories above each file.
pub(super) fn digest(path: &Path) -> Result<Digest> {
    let mut hasher = Hasher::default();
    add(&mut hasher, path)?;
    Ok(hasher.digest())
}

fn add(hasher: &mut Hasher, path: &Path) -> Result<()> {
    let doing = || format!("reading {}", durable::shown(path));
    let meta = fs::symlink_metadata(path).doing(doing)?;
    let line = format!("{:o} {} {}\n", meta.mode(), meta.uid(), meta.gid());
    hasher.update(line.as_bytes());
    if meta.is_symlink() {
        let target = fs::read_link(path).doing(doing)?;
        hasher.update(Digest::of(target.as_os_str().as_bytes()).as_bytes());
    } else if meta.is_file() {
        hasher.update(content(path).doing(doing)?.as_bytes());
    } else if meta.is_dir() {
        let entries: io::Result<Vec<_>> = fs::read_dir(path).doing(doing)?.collect();
        let mut names: Vec<_> = entries
            .doing(doing)?
            .iter()
            .map(|e| e.file_name())
            .collect();
        names.sort();
        let count = (names.len() as u64).to_be_bytes();
        hasher.update(&count);
        for name in names {
            hasher.update(Digest::of(name.as_bytes()).as_bytes());
            add(hasher, &path.join(name))?;
        }
    }
    Ok(())
}

fn content(path: &Path) -> io::Result<Digest> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    Ok(Digest::of_reader(file)?.0)
}
