//! The only file that syncs and renames. When one of these functions returns, its effect is on the medium:
//! a file is put in place by writing a temporary one beside it, syncing that, renaming it, and syncing the
//! directory. None of them leaves a half-written file under its final name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::error::{Context, Result};

/// What temporary files end in; a leftover may be deleted at any time.
pub const TEMPORARY: &str = ".tmp~";

/// Puts a file in place, or replaces it, with mode 0600.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with_mode(path, bytes, 0o600)
}

/// Puts a file in place, or replaces it, with these permission bits.
pub fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = temporary(path);
    let put = || -> io::Result<()> {
        let mut file = create(&temporary, mode)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_directory(parent(path))
    };
    put()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .doing(|| format!("writing {}", shown(path)))
}

/// Creates a file, replacing whatever has its name: anybody who can write to the directory may have put a link, a pipe
/// or a directory there, and nothing may be written through that.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    remove_any(path).map_err(io::Error::other)?;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}

/// Points a symbolic link at `target`, whether it was there before or not.
pub fn link(path: &Path, target: &str) -> Result<()> {
    let temporary = temporary(path);
    let put = || -> io::Result<()> {
        remove_any(&temporary).map_err(io::Error::other)?;
        std::os::unix::fs::symlink(target, &temporary)?;
        // The link's inode must be on the medium before its new name is.
        sync_directory(parent(path))?;
        fs::rename(&temporary, path)?;
        sync_directory(parent(path))
    };
    put()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .doing(|| format!("linking {} to {target}", shown(path)))
}

/// A path for people: what is reached through a descriptor of this process is named by where it is.
pub fn shown(path: &Path) -> String {
    let mut parts = path.components();
    // The root, `proc`, `self`, `fd`, and the number.
    let held: PathBuf = parts.by_ref().take(5).collect();
    let real = match held.starts_with("/proc/self/fd") {
        true => fs::read_link(&held).map(|real| real.join(parts.as_path())),
        false => Ok(path.to_owned()),
    };
    let real = real.unwrap_or_else(|_| path.to_owned());
    real.components().collect::<PathBuf>().display().to_string()
}

/// Whether something is there, whatever it is. What cannot be looked at is not absent: that is an error.
pub fn is_there(path: &Path) -> Result<bool> {
    look(path).map(|found| found.is_some())
}

/// Whether a directory is there; likewise.
pub fn is_directory(path: &Path) -> Result<bool> {
    look(path).map(|found| found.is_some_and(|found| found.is_dir()))
}

fn look(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e).doing(|| format!("looking at {}", shown(path))),
    }
}

/// Removes a file or a link, if it exists.
pub fn remove(path: &Path) -> Result<()> {
    remove_if_there(path)
        .and_then(|()| sync_directory(parent(path)))
        .doing(|| format!("removing {}", shown(path)))
}

/// Removes a directory and everything below it, if it exists.
pub fn remove_tree(path: &Path) -> Result<()> {
    let gone = match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other,
    };
    gone.and_then(|()| sync_directory(parent(path)))
        .doing(|| format!("removing {}", shown(path)))
}

/// Removes an empty directory.
pub fn remove_empty(path: &Path) -> Result<()> {
    fs::remove_dir(path)
        .and_then(|()| sync_directory(parent(path)))
        .doing(|| format!("removing the directory {}", shown(path)))
}

/// Creates a directory and its missing parents with these permission bits; an existing directory is fine.
pub fn create_dir(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if !parent(path).is_dir() {
        create_dir(parent(path), mode)?;
    }
    fs::DirBuilder::new()
        // Somebody else having been quicker is fine.
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| sync_directory(parent(path)))
        .doing(|| format!("creating the directory {}", shown(path)))
}

/// Renames, replacing a file that is there.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let moved = || -> io::Result<()> {
        fs::rename(from, to)?;
        sync_directories(to, from)
    };
    moved().doing(|| format!("renaming {} to {}", shown(from), shown(to)))
}

/// Exchanges two files, links or directories, in one step.
pub fn exchange(one: &Path, other: &Path) -> Result<()> {
    let exchanged = || -> io::Result<()> {
        rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?;
        sync_directories(one, other)
    };
    exchanged().doing(|| format!("exchanging {} and {}", shown(one), shown(other)))
}

/// Syncs the directories of both.
fn sync_directories(one: &Path, other: &Path) -> io::Result<()> {
    sync_directory(parent(one))?;
    match parent(one) == parent(other) {
        true => Ok(()),
        false => sync_directory(parent(other)),
    }
}

/// Removes a file, a link, or a directory and everything below it, if it exists.
pub fn remove_any(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => remove_tree(path),
        // Something that cannot be looked at cannot be removed, which says why.
        _ => remove(path),
    }
}

/// Checks that a directory's file system supports what everything here relies on: symbolic links, and the exchange of two
/// directories in one step. Leaves nothing behind.
pub fn try_links_and_exchanges(directory: &Path) -> Result<()> {
    let [one, other] = ["one", "other"].map(|name| temporary(&directory.join(name)));
    let tidy = || remove_any(&one).and_then(|()| remove_any(&other));
    tidy()?;
    let tried = || -> io::Result<()> {
        std::os::unix::fs::symlink("nowhere", &one)?;
        fs::create_dir(&other)?;
        rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE)?;
        Ok(())
    };
    let tried = tried().doing(|| {
        format!(
            "testing symbolic links and atomic exchange in {}, which the data partition must support (ext4 and XFS do, vfat does not)",
            shown(directory)
        )
    });
    tried.and(tidy())
}

/// Syncs a file's content.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    file.sync_all().doing(|| format!("syncing {}", shown(path)))
}

/// Syncs a file, or a directory.
pub fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Syncs the whole file system that holds `path`.
pub fn sync_file_system(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| rustix::fs::syncfs(&dir).map_err(io::Error::from))
        .doing(|| format!("syncing the file system of {}", shown(path)))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes what an interrupted write of this path has left, if anything.
pub fn remove_temporary(path: &Path) -> Result<()> {
    let temporary = temporary(path);
    match fs::symlink_metadata(&temporary) {
        Err(_) => Ok(()),
        Ok(_) => remove_any(&temporary),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(TEMPORARY);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_named_by_where_it_is() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let held = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        assert_eq!(shown(&held), dir.path().display().to_string());
        let below = dir.path().join("previous/db");
        assert_eq!(
            shown(&held.join("previous/db")),
            below.display().to_string()
        );
        for path in [
            "/data/db",
            "/proc/self/fd",
            "/proc/self/fd/99999/x",
            "relative/x",
        ] {
            assert_eq!(shown(Path::new(path)), path);
        }
        let error = rename(&held.join("one"), &held.join("other")).unwrap_err();
        assert!(!error.chain().contains("/proc/"), "{}", error.chain());
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        for (name, there, directory) in [
            (".", true, true),
            ("file", true, false),
            ("link", true, false),
            ("none", false, false),
            ("none/below", false, false),
            ("file/below", false, false),
        ] {
            assert_eq!(is_there(&at(name)).unwrap(), there, "{name}");
            assert_eq!(is_directory(&at(name)).unwrap(), directory, "{name}");
        }
        for look in [is_there, is_directory] {
            let error = look(&at("loop/below")).unwrap_err().chain();
            assert!(error.contains("loop/below"), "{error}");
        }
    }

    #[test]
    fn what_is_planted_at_a_temporary_name_goes() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        let out = dir.path().join("out");
        let planted = temporary(&out);
        type Plant = fn(&Path, &Path);
        let plants: [Plant; 5] = [
            |victim, planted| std::os::unix::fs::symlink(victim, planted).unwrap(),
            |victim, planted| fs::hard_link(victim, planted).unwrap(),
            |_, planted| {
                let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
                rustix::fs::mknodat(CWD, planted, kind, mode, 0).unwrap();
            },
            |_, planted| fs::create_dir_all(planted.join("x")).unwrap(),
            |_, planted| fs::write(planted, "left").unwrap(),
        ];
        for plant in plants {
            fs::write(&victim, "victim").unwrap();
            plant(&victim, &planted);
            write(&out, b"written").unwrap();
            assert_eq!(fs::read(&out).unwrap(), b"written");
            plant(&victim, &planted);
            link(&out, "target").unwrap();
            assert_eq!(fs::read_link(&out).unwrap(), Path::new("target"));
            assert_eq!(fs::read(&victim).unwrap(), b"victim");
            assert!(fs::symlink_metadata(&planted).is_err());
        }
    }
}
