//! A medium that a person plugs in: found by what its file system is called, and mounted only while it is used.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::system::host::Host;
use crate::system::process::{Program, Stream};
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::text;

/// Where media are mounted.
const PLACE: &str = "/run/qx-update/media";
/// What sticks and discs are formatted with, in the order in which it is tried.
const TYPES: [&CStr; 4] = [c"vfat", c"exfat", c"ext4", c"iso9660"];
/// How files are called that may be a bundle.
const BUNDLES: [&str; 2] = ["tar", "bundle"];
/// How long a medium is looked for.
const FIND: Duration = Duration::from_secs(30);
/// How long it is waited for one that somebody else has, and how often it is tried.
const BUSY: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

/// A medium, mounted while this lives.
#[derive(Debug)]
pub struct Medium {
    device: String,
    place: PathBuf,
}

impl Medium {
    /// Finds it by `LABEL=…` or another word of findfs(8), and mounts it read-only.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if none of that name is plugged in.
    pub fn open(host: &Host, device: &str) -> Result<Medium> {
        Medium::mount(host, device, MountFlags::RDONLY)
    }

    /// The same, to write on it; see [`Medium::close`].
    pub fn open_to_write(host: &Host, device: &str) -> Result<Medium> {
        Medium::mount(host, device, MountFlags::empty())
    }

    fn mount(host: &Host, device: &str, how: MountFlags) -> Result<Medium> {
        let found = find(device)?;
        let place = host.path(PLACE)?.join(file_name(device));
        let doing = || format!("mounting {device} ({})", text::path(&found));
        fs::create_dir_all(&place).doing(doing)?;
        let medium = Medium {
            device: device.to_owned(),
            place,
        };
        // What a process that was killed has left.
        while rustix::mount::unmount(&medium.place, UnmountFlags::DETACH).is_ok() {}
        let flags = how | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let until = Instant::now() + BUSY;
        loop {
            match try_mount(&found, &medium.place, flags) {
                Ok(()) => return Ok(medium),
                // Whoever looks what was plugged in, or is about to unmount it.
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                    std::thread::sleep(AGAIN);
                }
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    let why = "somebody else has it mounted, or works on it: unmount it first";
                    return Err(Error::with(
                        ErrorKind::Unavailable,
                        format!("{}: {why}", doing()),
                    ));
                }
                Err(e) => {
                    return Err(e)
                        .doing(doing)
                        .map_err(|e| e.of(ErrorKind::Unavailable));
                }
            }
        }
    }

    /// Where it is mounted.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// What lies on it at a path: a repository or a bundle. At `/` that is the medium itself, if it is a repository, or the only
    /// bundle there.
    pub fn source(&self, path: &str) -> Result<PathBuf> {
        let inside = Path::new(path).components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let mut named = self.place.clone();
        named.extend(inside);
        if named != self.place || self.place.join("metadata").is_dir() {
            return Ok(named);
        }
        let device = &self.device;
        let doing = || format!("looking for a bundle on {device}");
        let mut bundles = Vec::new();
        for entry in fs::read_dir(&self.place).doing(doing)? {
            let path = entry.doing(doing)?.path();
            let extension = path.extension().map(|e| e.to_ascii_lowercase());
            if extension.is_some_and(|e| BUNDLES.iter().any(|bundle| e == *bundle))
                && path.is_file()
            {
                bundles.push(path);
            }
        }
        bundles.sort();
        let why = match &bundles[..] {
            [one] => return Ok(one.clone()),
            [] => {
                "there is no repository (metadata/), and no file NAME.tar or NAME.bundle".to_owned()
            }
            [first, ..] => {
                let first = first.file_name().unwrap_or_default();
                format!(
                    "there are {}; name one, such as {device}:/{}",
                    bundles.len(),
                    text::name(&first.to_string_lossy())
                )
            }
        };
        Err(Error::with(
            ErrorKind::Unavailable,
            format!("{}: {why}", doing()),
        ))
    }

    /// Ends it: what was written has reached it.
    pub fn close(self) -> Result<()> {
        rustix::mount::unmount(&self.place, UnmountFlags::empty())
            .doing(|| format!("unmounting {}", self.device))
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.place, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.place);
    }
}

/// Mounts it as whatever it is.
fn try_mount(device: &Path, place: &Path, flags: MountFlags) -> io::Result<()> {
    let mut why = io::Error::other("no file system that is known");
    for kind in TYPES {
        match rustix::mount::mount(device, place, kind, flags, None::<&CStr>) {
            Ok(()) => return Ok(()),
            // Another kind, or one that this kernel does not have.
            Err(Errno::INVAL | Errno::NODEV) => {}
            Err(e) => why = e.into(),
        }
    }
    Err(why)
}

/// The device that has a file system of that name.
fn find(device: &str) -> Result<PathBuf> {
    let vector = ["findfs".to_owned(), device.to_owned()];
    let doing = || format!("looking for the medium {device}");
    let mut found = None;
    // What it remembers of an earlier look may be wrong by now.
    let environment = [("BLKID_FILE".to_owned(), "/dev/null".to_owned())];
    let program = Program {
        environment: &environment,
        ..Program::new(&vector, FIND)
    };
    let ended = program
        .run(&mut |stream, line| {
            if stream == Stream::Out {
                found = Some(line.to_owned());
            }
        })
        .doing(doing)?;
    match found.filter(|_| ended.ok()) {
        Some(path) => Ok(path.into()),
        None => Err(Error::with(
            ErrorKind::Unavailable,
            format!("{}: none of that name is plugged in", doing()),
        )),
    }
}

/// A name for a directory.
fn file_name(device: &str) -> String {
    let plain = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' => c,
        _ => '_',
    };
    device.chars().map(plain).collect()
}
