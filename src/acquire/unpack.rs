//! From an artifact to an installed component, as a stream: limit, hash, inflate, untar, write.
//!
//! An archive is hostile until its digest is known, and that is known last. So every entry is checked
//! before anything is made of it: what it is, where it goes, how much of it there is. Whatever is not
//! plainly a file, a directory or a link inside of the component's own place is refused.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use rustix::fs::{Advice, CWD, Mode, OFlags};
use rustix::io::Errno;
use tar::EntryType;

use qx_release::digest::{Digest, Hasher};
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Component, Kind, RelPath};
use qx_release::tree;

const BUFFER: usize = 128 * 1024;
/// A header that carries a long name or other attributes of the next entry is at most this long, in bytes.
const EXTENSION_LIMIT: u64 = 4096;
/// What an archive may hold beside the files' bytes: for each entry its header, padding, and extensions.
const OVERHEAD_PER_ENTRY: u64 = 16 * 1024;
/// What an archive may end with: archivers fill up their last record.
const OVERHEAD: u64 = 64 * 1024;

/// Unpacks a component's artifact (`.tar.gz`, exactly `length` bytes with this digest) into the slot
/// `staging`. Memory does not depend on its size. `progress` is told how much of the artifact is read.
///
/// Nothing is synced, and it is not checked that what was installed has the manifest's digest: that is
/// for [`tree::matches_medium`], when it is synced. After an error `staging` holds a part.
///
/// # Errors
/// [`ErrorKind::Publisher`] if the artifact is not what it should be, one sentence that names component and
/// entry; [`ErrorKind::NoSpace`]; else it could not be read or written.
pub fn unpack(
    component: &Component,
    artifact: impl Read,
    length: u64,
    sha256: &Digest,
    staging: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let artifact = Counted {
        // One more shows that there is more.
        inner: artifact.take(length.saturating_add(1)),
        hasher: Hasher::default(),
        progress,
    };
    let mut artifact = BufReader::with_capacity(BUFFER, artifact);
    let mut unpacked = Unpacker::new(component, staging)?.run(&mut artifact);
    if unpacked
        .as_ref()
        .err()
        .is_some_and(|e| e.kind != ErrorKind::Publisher)
    {
        return unpacked;
    }
    let name = &component.name;
    let rest = io::copy(&mut artifact, &mut io::sink())
        .doing(|| format!("reading the artifact of {name}"))?;
    if rest > 0 && unpacked.is_ok() {
        unpacked = Err(refused(name, "there is data after the compressed archive"));
    }
    // If the digest is wrong then that is why, whatever was odd inside.
    let hasher = &artifact.get_ref().hasher;
    if hasher.bytes() > length {
        return Err(refused(
            name,
            format!("the artifact is longer than {length} bytes"),
        ));
    }
    if hasher.bytes() < length {
        let bytes = hasher.bytes();
        return Err(refused(
            name,
            format!("the artifact ends after {bytes} of {length} bytes"),
        ));
    }
    if hasher.digest() != *sha256 {
        let found = hasher.digest();
        return Err(refused(
            name,
            format!("the artifact's digest is {found} instead of {sha256}"),
        ));
    }
    unpacked
}

/// Hashes what is read of the artifact.
struct Counted<'a, R> {
    inner: io::Take<R>,
    hasher: Hasher,
    progress: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(n) => {
                    self.hasher.update(&into[..n]);
                    (self.progress)(self.hasher.bytes());
                    return Ok(n);
                }
            }
        }
    }
}

/// What a gzip file decompresses to: its members one after the other (RFC 1952, section 2.2), and nothing for the zeros that
/// tapes and block devices leave behind them.
struct Members<R> {
    /// None once the last one has ended.
    current: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.current {
            let n = decoder.read(into)?;
            if n > 0 || into.is_empty() {
                return Ok(n);
            }
            let Some(mut rest) = self.current.take().map(GzDecoder::into_inner) else {
                break;
            };
            match rest.fill_buf()?.first() {
                // Another member begins as the first did.
                Some(0x1f) => self.current = Some(GzDecoder::new(rest)),
                _ => zeros_only(&mut rest)?,
            }
        }
        Ok(0)
    }
}

fn zeros_only(rest: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = rest.fill_buf()?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(io::Error::other(
                "there is data after the compressed archive",
            ));
        }
        match bytes.len() {
            0 => return Ok(()),
            n => rest.consume(n),
        }
    }
}

/// Stops a bomb, whatever it is made of.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::other(
                    "it decompresses to more data than the manifest declares",
                ));
            }
        }
        Ok(n)
    }
}

/// What extension headers say of the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// What is to be made of an entry that was checked.
struct Item {
    path: RelPath,
    /// The permission bits alone.
    mode: u32,
    /// What a link leads to.
    target: Vec<u8>,
}

struct Unpacker<'a> {
    component: &'a Component,
    staging: &'a Path,
    root: OwnedFd,
    /// The directory that the last entry went to: mostly the next one goes there too.
    directory: Option<(String, OwnedFd)>,
    /// Directories that their owner could put nothing into; they get their bits at the end.
    closed: Vec<(PathBuf, u32)>,
    entries: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn new(component: &'a Component, staging: &'a Path) -> Result<Unpacker<'a>> {
        tree::make_parents(&staging.join(&component.install_path))?;
        let root = open_directory(CWD, staging)
            .doing(|| format!("opening the directory {}", staging.display()))?;
        Ok(Unpacker {
            component,
            staging,
            root,
            directory: None,
            closed: Vec::new(),
            entries: 0,
            bytes: 0,
            buffer: vec![0; BUFFER],
        })
    }

    fn run(mut self, artifact: &mut impl BufRead) -> Result<()> {
        let component = self.component;
        let overhead = component
            .entries
            .saturating_mul(OVERHEAD_PER_ENTRY)
            .saturating_add(OVERHEAD);
        let mut archive = tar::Archive::new(Bounded {
            inner: Members {
                current: Some(GzDecoder::new(artifact)),
            },
            left: component.size_bytes.saturating_add(overhead),
        });
        let unreadable = |error: io::Error| archive_error(component, error);
        let mut extensions = Extensions::default();
        // Raw: left to itself the reader would take long names of any length into memory.
        for entry in archive.entries().map_err(unreadable)?.raw(true) {
            let mut entry = entry.map_err(unreadable)?;
            match entry.header().entry_type() {
                EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader => {
                    self.extend(&mut extensions, &mut entry)?;
                }
                // For all entries: git notes its commit.
                EntryType::XGlobalHeader => {
                    self.extend(&mut Extensions::default(), &mut entry)?;
                }
                kind => self.entry(kind, std::mem::take(&mut extensions), &mut entry)?,
            }
        }
        // What follows the archive inside of the compressed stream counts too, and the stream's own
        // checksum is checked at its end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(unreadable)?;
        for (what, found, said) in [
            ("entries", self.entries, component.entries),
            ("bytes of files", self.bytes, component.size_bytes),
        ] {
            if found != said {
                let why = format!("it contains {found} {what} instead of {said}");
                return Err(refused(&component.name, why));
            }
        }
        for (path, mode) in self.closed.iter().rev() {
            File::open(path)
                .and_then(|directory| directory.set_permissions(fs::Permissions::from_mode(*mode)))
                .doing(|| format!("setting the mode of {}", path.display()))?;
        }
        Ok(())
    }

    fn extend(&self, known: &mut Extensions, entry: &mut tar::Entry<impl Read>) -> Result<()> {
        let component = self.component;
        let refuse = |why: &str| refused(&component.name, why);
        if entry.size() > EXTENSION_LIMIT {
            return Err(refuse("a name or an attribute in the archive is too long"));
        }
        let mut data = Vec::new();
        entry
            .read_to_end(&mut data)
            .map_err(|e| archive_error(component, e))?;
        let mut set = |is_path: bool, value: &[u8]| {
            let place = if is_path {
                &mut known.path
            } else {
                &mut known.link
            };
            match place.replace(value.to_owned()) {
                None => Ok(()),
                Some(_) => Err(refuse("an entry of the archive has two names")),
            }
        };
        let kind = entry.header().entry_type();
        if kind != EntryType::XHeader {
            let name = data.strip_suffix(b"\0").unwrap_or(&data);
            return set(kind == EntryType::GNULongName, name);
        }
        for pair in tar::PaxExtensions::new(&data) {
            let pair = pair.map_err(|e| archive_error(component, e))?;
            match pair.key_bytes() {
                b"path" => set(true, pair.value_bytes())?,
                b"linkpath" => set(false, pair.value_bytes())?,
                // These change how much there is of an entry, or what it may do.
                key if key == b"size"
                    || key.starts_with(b"GNU.sparse.")
                    || key == b"SCHILY.xattr.security.capability" =>
                {
                    let key = shown(key);
                    let why =
                        format!("the archive has an attribute '{key}', which is not supported");
                    return Err(refuse(&why));
                }
                // Owners, times and whatever else programs note do not count.
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: EntryType,
        extensions: Extensions,
        entry: &mut tar::Entry<impl Read>,
    ) -> Result<()> {
        let Extensions { path, link } = extensions;
        let raw = path.unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let component = self.component;
        let refuse = |why: &str| {
            let why = format!("entry '{}' {why}", shown(&raw));
            refused(&component.name, why)
        };
        let checked = self.check(kind, &raw, link, entry);
        let Some(Item { path, mode, target }) = checked.map_err(|why| refuse(&why))? else {
            return Ok(());
        };
        let full = self.staging.join(&path);
        let (directory, full_up) = match self.directory_of(&path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => {
                return Err(refuse(
                    "needs more directories than the manifest has entries",
                ));
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(refuse("passes through something that is not a directory"));
            }
            Err(e) => {
                return Err(e).doing(|| format!("opening the directory of {}", full.display()));
            }
        };
        let file_name = path.file_name();
        // Nothing that is there is ever opened or replaced.
        let made = match kind {
            // It can only be one that is there.
            EntryType::Directory if full_up => Err(Errno::EXIST),
            _ if full_up => return Err(refuse(&exceeds(component.entries))),
            EntryType::Directory => {
                make_directory(directory, file_name, mode | 0o700).map(|()| None)
            }
            EntryType::Symlink => {
                rustix::fs::symlinkat(&target[..], directory, file_name).map(|()| None)
            }
            _ => create_file(directory, file_name).map(Some),
        };
        let file = match made {
            Ok(file) => file,
            // It was needed for what came before it, or comes twice: it is counted, and this is its mode.
            Err(Errno::EXIST) if kind == EntryType::Directory => {
                return self.again(&path, mode).map_err(|e| match e {
                    Errno::NOTDIR | Errno::LOOP => refuse("already exists"),
                    Errno::NOENT => refuse(&exceeds(component.entries)),
                    e => failed(e, &full),
                });
            }
            Err(Errno::EXIST) => return Err(refuse("already exists")),
            Err(e) => return Err(failed(e, &full)),
        };
        if kind == EntryType::Directory {
            self.close_later(&full, mode);
        }
        self.entries += 1;
        match file {
            Some(file) => self.fill(entry, file, mode, &full),
            None => Ok(()),
        }
    }

    fn fill(
        &mut self,
        entry: &mut tar::Entry<impl Read>,
        mut file: File,
        mode: u32,
        path: &Path,
    ) -> Result<()> {
        let size = entry.size();
        self.bytes += size;
        self.write(entry, size, &mut file, path)?;
        // The kernel begins to write it to the medium, where it is read again as soon as all of the component is there.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        file.set_permissions(fs::Permissions::from_mode(mode))
            .doing(|| format!("setting the mode of {}", path.display()))?;
        tree::set_capabilities(&file, self.component.capabilities)
            .doing(|| format!("setting the file capabilities of {}", path.display()))
    }

    /// A directory that is there already.
    fn again(&mut self, path: &RelPath, mode: u32) -> rustix::io::Result<()> {
        let directory = open_directory(self.directory_of(path)?.0, Path::new(path.file_name()))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode | 0o700))?;
        let full = self.staging.join(path);
        self.closed.retain(|(closed, _)| *closed != full);
        self.close_later(&full, mode);
        Ok(())
    }

    fn close_later(&mut self, directory: &Path, mode: u32) {
        if mode & 0o700 != 0o700 {
            self.closed.push((directory.to_owned(), mode));
        }
    }

    /// Checks what the archive says of an entry: all that can be known before anything is made of it. None: there is nothing to
    /// make of it. The error goes on after the entry's name.
    fn check(
        &self,
        kind: EntryType,
        name: &[u8],
        link: Option<Vec<u8>>,
        entry: &tar::Entry<impl Read>,
    ) -> Result<Option<Item>, String> {
        let component = self.component;
        let mut name = std::str::from_utf8(name).map_err(|_| "is not UTF-8")?;
        // What `tar -c .` puts in front of every name.
        while let Some(rest) = name.strip_prefix("./") {
            name = rest;
        }
        if kind == EntryType::Directory {
            name = name.strip_suffix('/').unwrap_or(name);
            // The archive's own root, and directories above the component's place, are there.
            if matches!(name, "" | ".") || is_above(name, &component.install_path) {
                return Ok(None);
            }
        }
        let path: RelPath = name
            .parse()
            .map_err(|why: String| format!("is refused: {why}"))?;
        let place = &component.install_path;
        let relative = path
            .below(place)
            .ok_or_else(|| format!("is outside {place}"))?;
        check_kind(kind, relative, component)?;
        let header = entry.header();
        // The bits above are the file's type, which some archivers repeat here.
        let mode = header.mode().map_err(|_| "has no mode")? & 0o7777;
        if mode > 0o777 {
            return Err(format!(
                "has a set-user-id, set-group-id or sticky bit (mode {mode:o})"
            ));
        }
        let Component {
            entries,
            size_bytes: most,
            ..
        } = component;
        // Whether a directory is new turns out when it is made.
        if kind != EntryType::Directory && self.entries == *entries {
            return Err(exceeds(*entries));
        }
        if kind == EntryType::Regular && entry.size() > most - self.bytes {
            return Err(format!("exceeds the manifest's {most} bytes"));
        }
        let target = match kind {
            EntryType::Symlink => {
                let target = link.or_else(|| header.link_name_bytes().map(|t| t.into_owned()));
                link_inside(relative, target.unwrap_or_default())?
            }
            _ => Vec::new(),
        };
        Ok(Some(Item { path, mode, target }))
    }

    fn write(
        &mut self,
        entry: &mut impl Read,
        size: u64,
        file: &mut File,
        path: &Path,
    ) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let n = entry
                .read(&mut self.buffer)
                .map_err(|e| archive_error(self.component, e))?;
            if n == 0 {
                let why = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it ends in the middle of a file",
                );
                return Err(archive_error(self.component, why));
            }
            file.write_all(&self.buffer[..n])
                .doing(|| format!("writing {}", path.display()))?;
            left -= n as u64;
        }
        Ok(())
    }

    /// The directory that an entry goes to, reached without following a link. Archives need not name directories: one that is
    /// missing is made, and counts as an entry. Also: whether there are as many entries now as may be.
    fn directory_of(&mut self, path: &RelPath) -> rustix::io::Result<(&OwnedFd, bool)> {
        let (parent, _) = path.as_str().rsplit_once('/').unwrap_or_default();
        let directory = match self.directory.take() {
            Some((known, directory)) if known == parent => directory,
            _ => {
                let mut directory = self.root.try_clone().map_err(|_| Errno::MFILE)?;
                for segment in parent.split('/').filter(|s| !s.is_empty()) {
                    directory = match open_directory(&directory, Path::new(segment)) {
                        Err(Errno::NOENT) if self.entries < self.component.entries => {
                            make_directory(&directory, segment, 0o755)?;
                            self.entries += 1;
                            open_directory(&directory, Path::new(segment))?
                        }
                        opened => opened?,
                    };
                }
                directory
            }
        };
        let full_up = self.entries == self.component.entries;
        let known = self.directory.insert((parent.to_owned(), directory));
        Ok((&known.1, full_up))
    }
}

fn exceeds(entries: u64) -> String {
    format!("exceeds the manifest's {entries} entries")
}

fn failed(error: Errno, path: &Path) -> Error {
    let Err(error) =
        Err::<std::convert::Infallible, _>(error).doing(|| format!("creating {}", path.display()));
    error
}

/// Whether a place is below a directory of this name.
fn is_above(directory: &str, place: &RelPath) -> bool {
    place
        .as_str()
        .strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Whether an entry of this kind may be at this place below the component's own.
fn check_kind(kind: EntryType, relative: &str, component: &Component) -> Result<(), String> {
    let why = match (kind, component.kind) {
        (EntryType::Regular, Kind::Bin) if !relative.is_empty() => {
            return Err(format!(
                "is below {}, which is a bin",
                component.install_path
            ));
        }
        (EntryType::Regular, Kind::Tree) if relative.is_empty() => {
            "is a file, but the component is a tree"
        }
        (EntryType::Regular, _) | (EntryType::Directory | EntryType::Symlink, Kind::Tree) => {
            return Ok(());
        }
        (EntryType::Directory | EntryType::Symlink, Kind::Bin) => {
            "is not a file, but the component is a bin"
        }
        (EntryType::Link, _) => "is a hard link",
        (EntryType::Char | EntryType::Block | EntryType::Fifo, _) => "is a device or a pipe",
        (EntryType::GNUSparse, _) => "is a sparse file",
        (other, _) => {
            let kind = shown(&[other.as_byte()]);
            return Err(format!("has an unknown type ('{kind}')"));
        }
    };
    Err(why.into())
}

/// What the link at `relative` leads to, if that is inside of the component.
fn link_inside(relative: &str, target: Vec<u8>) -> Result<Vec<u8>, String> {
    let inside =
        std::str::from_utf8(&target).is_ok_and(|target| tree::link_stays_inside(relative, target));
    if inside && !relative.is_empty() {
        return Ok(target);
    }
    Err(format!(
        "is a link to '{}', outside the component",
        shown(&target)
    ))
}

fn open_directory(at: impl std::os::fd::AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

// Modes are set after the making, for the process's umask would take bits away.
fn make_directory(at: &OwnedFd, name: &str, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(at, name, Mode::RWXU)?;
    rustix::fs::fchmod(
        open_directory(at, Path::new(name))?,
        Mode::from_raw_mode(mode),
    )
}

fn create_file(at: &OwnedFd, name: &str) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(fd.into())
}

/// What comes from the system (a disk that cannot be read) is no fault of the archive.
fn archive_error(component: &Component, error: io::Error) -> Error {
    let ours = error.raw_os_error().is_some();
    let name = &component.name;
    let result: Result<std::convert::Infallible> =
        Err(error).doing(|| format!("unpacking {name}: reading the archive"));
    let Err(error) = result;
    if ours {
        error
    } else {
        error.of(ErrorKind::Publisher)
    }
}

fn refused(name: &impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
    Error::with(ErrorKind::Publisher, format!("unpacking {name}: {why}"))
}

/// For messages: hostile text is escaped and cut.
fn shown(text: &[u8]) -> String {
    let cut = &text[..text.len().min(120)];
    cut.escape_ascii().to_string()
}
