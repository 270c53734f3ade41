//! What lies on disk: measuring an installed component, comparing it with its manifest, copying it.
//!
//! Nothing here follows a symbolic link, and every name is checked before it is used: a component holds
//! regular files, directories, and (a tree) symbolic links that stay inside of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher, TreeDigest, TreeEntry};
use crate::error::{Context, Error, Result};
use crate::manifest::capabilities::{self, Capabilities};
use crate::manifest::{Component, Kind, RelPath};

/// What was found where a component is installed, in the manifest's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// The file's digest, or the tree digest.
    pub digest: Digest,
    /// Permission bits of the file, or of the tree's own directory.
    pub mode: u32,
    /// Of the file.
    pub capabilities: Capabilities,
    /// The sum of the files' lengths, in bytes.
    pub bytes: u64,
    /// How many files, directories and links.
    pub entries: u64,
}

/// Measures what is at `path`, as the page cache has it. Memory: one buffer, and a line for each entry.
///
/// # Errors
/// Names the path: nothing there, another kind of file, a set-user-id, set-group-id or sticky bit, file capabilities
/// that no manifest can have, a name that is not UTF-8 or holds a control character, a link that leaves the tree.
pub fn measure(kind: Kind, path: &Path) -> Result<Measured> {
    Measure::of(kind, path, ReadFrom::Cache, &|_| true)
}

/// Measures what the medium holds at `path`. The files must have been synced before: pages that are not
/// yet written stay in the cache.
pub fn measure_medium(kind: Kind, path: &Path) -> Result<Measured> {
    Measure::of(kind, path, ReadFrom::Medium, &|_| true)
}

/// Whether exactly this component lies at `path`; if not, one sentence says why.
pub fn matches(component: &Component, path: &Path) -> Result<(), String> {
    let found = measure(component.kind, path).map_err(|e| e.chain())?;
    compare(component, path, &found)
}

/// Checks that the component at `path` is unchanged, ignoring entries that are not its own; `names` are its own entries. If
/// not, one sentence says why.
pub fn matches_among(
    component: &Component,
    path: &Path,
    names: &BTreeSet<String>,
) -> Result<(), String> {
    let known = |name: &str| name == "." || names.contains(name);
    let found =
        Measure::of(component.kind, path, ReadFrom::Cache, &known).map_err(|e| e.chain())?;
    compare(component, path, &found)
}

/// Lists the names of all entries below `path`, without its own directory, as [`matches_among`] takes them.
pub fn names(kind: Kind, path: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    walk(kind, path, &|_| true, &mut |name, _| {
        if name != "." {
            names.insert(name.to_owned());
        }
        Ok(())
    })?;
    Ok(names)
}

/// Lists what lies below `path` and has none of these names; a directory among it is listed without its content.
pub fn added(path: &Path, names: &BTreeSet<String>) -> Vec<PathBuf> {
    let added = std::cell::RefCell::new(Vec::new());
    let known = |name: &str| {
        let known = name == "." || names.contains(name);
        if !known {
            added.borrow_mut().push(path.join(name));
        }
        known
    };
    // What cannot be read is found by whoever verifies.
    let _ = walk(Kind::Tree, path, &known, &mut |_, _| Ok(()));
    added.into_inner()
}

/// Whether the medium holds exactly this component at `path`, see [`measure_medium`].
pub fn matches_medium(component: &Component, path: &Path) -> Result<(), String> {
    let found = measure_medium(component.kind, path).map_err(|e| e.chain())?;
    compare(component, path, &found)
}

/// Copies an installed component from `from` to `to`, where nothing may be yet; directories missing above
/// `to` are made. Where the file system can, the copy shares its blocks with the original. Nothing is
/// synced, and what was copied is to be checked like anything else that was written.
pub fn copy(component: &Component, from: &Path, to: &Path) -> Result<()> {
    let copied = |file: &File, size, mode, _: &Path, to: &Path| {
        copy_file(file, size, mode, component.capabilities, to)
    };
    lay(component, from, to, "copying", &copied)
}

/// The same with the very files of `from` under a second name, on the same file system: whoever runs one of them runs the other.
pub fn link(component: &Component, from: &Path, to: &Path) -> Result<()> {
    let linked = |_: &File, _, _, from: &Path, to: &Path| fs::hard_link(from, to);
    lay(component, from, to, "linking", &linked)
}

/// How a file is laid to another place: the file, its length and mode, where it is, and where it goes.
type LayFile<'a> = dyn Fn(&File, u64, u32, &Path, &Path) -> io::Result<()> + 'a;

fn lay(component: &Component, from: &Path, to: &Path, how: &str, file: &LayFile) -> Result<()> {
    make_parents(to)?;
    let mut bytes = component.size_bytes;
    let mut entries = component.entries;
    // A directory's bits come last: without its owner's write bit nothing could be put into it.
    let mut directories = Vec::new();
    walk(component.kind, from, &|_| true, &mut |path, found| {
        let target = below(to, path);
        let doing = || format!("{how} {} to {}", from.display(), target.display());
        let size = match &found {
            Found::File { size, .. } => *size,
            _ => 0,
        };
        match (entries.checked_sub(1), bytes.checked_sub(size)) {
            (Some(entries_left), Some(bytes_left)) => (entries, bytes) = (entries_left, bytes_left),
            _ => {
                return Err(Error::new(format!(
                    "{}: larger than the manifest states for {}",
                    doing(),
                    component.name
                )));
            }
        }
        match found {
            Found::Directory { mode } => {
                let made = fs::DirBuilder::new().mode(0o700).create(&target);
                directories.push((target.clone(), mode));
                made
            }
            Found::File {
                file: it,
                mode,
                size,
                ..
            } => file(&it, size, mode, &below(from, path), &target),
            Found::Link { target: to } => std::os::unix::fs::symlink(to, &target),
        }
        .doing(doing)
    })?;
    for (path, mode) in directories.into_iter().rev() {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .doing(|| format!("setting the mode of {}", path.display()))?;
    }
    Ok(())
}

/// Makes the directories that are missing above `path`, mode 0755 whatever the process's umask is.
pub fn make_parents(path: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else {
        return Ok(());
    };
    if parent.is_dir() {
        return Ok(());
    }
    make_parents(parent)?;
    fs::create_dir(parent)
        .and_then(|()| File::open(parent)?.set_permissions(fs::Permissions::from_mode(0o755)))
        .doing(|| format!("creating the directory {}", parent.display()))
}

/// Whether a symbolic link at `path` (relative to its tree) stays inside the tree, however the links that
/// it leads through are laid: `..` may only stand first, where it starts from a real directory, and not
/// lead above the tree. (`a/../..` is refused although it looks harmless: `a` may be a link to `.`.)
pub fn link_stays_inside(path: &str, target: &str) -> bool {
    let depth = path.matches('/').count();
    let segments: Vec<&str> = target
        .split('/')
        .filter(|segment| !matches!(*segment, "" | "."))
        .collect();
    let ups = segments.iter().take_while(|s| **s == "..").count();
    !target.is_empty()
        && !target.starts_with('/')
        && target.len() <= 1024
        && !target.contains(char::is_control)
        && ups <= depth
        && !segments[ups..].contains(&"..")
}

/// One thing met on a walk.
enum Found {
    Directory {
        mode: u32,
    },
    File {
        file: File,
        mode: u32,
        capabilities: Capabilities,
        size: u64,
    },
    Link {
        target: String,
    },
}

type Visit<'a> = dyn FnMut(&str, Found) -> Result<()> + 'a;
/// Which names a walk visits; it skips all others.
type Known<'a> = dyn Fn(&str) -> bool + 'a;

/// Visits a component's entries, each directory before what it holds. Paths are relative to the tree; its
/// own directory, and a `bin`, is `.`.
fn walk(kind: Kind, path: &Path, known: &Known, visit: &mut Visit) -> Result<()> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .doing(|| format!("examining {}", path.display()))?;
    match (kind, FileType::from_raw_mode(stat.st_mode)) {
        (Kind::Bin, FileType::RegularFile) => visit(".", open_file(CWD, path, path)?),
        (Kind::Tree, FileType::Directory) => {
            let (dir, stat) = open(CWD, path, OFlags::DIRECTORY, path)?;
            let mode = permissions(&stat, path)?;
            visit(".", Found::Directory { mode })?;
            walk_directory(path, "", &dir, known, visit)
        }
        (Kind::Bin, _) => Err(odd(path, "it is not a regular file")),
        (Kind::Tree, _) => Err(odd(path, "it is not a directory")),
    }
}

// The depth of the recursion, and the number of open directories, are bounded by the length of a `RelPath`.
fn walk_directory(
    root: &Path,
    base: &str,
    dir: &OwnedFd,
    known: &Known,
    visit: &mut Visit,
) -> Result<()> {
    for name in
        entries(dir).doing(|| format!("reading the directory {}", below(root, base).display()))?
    {
        let here = below(root, base).join(&name);
        let text = name.to_string_lossy();
        let relative = match base {
            "" => text.into_owned(),
            base => format!("{base}/{text}"),
        };
        // Before anything is said of it: whatever it is, it is nobody's.
        if !known(&relative) {
            continue;
        }
        if name.to_str().is_none() {
            return Err(odd(&here, "its name is not UTF-8"));
        }
        let relative: RelPath = relative.parse().map_err(|why: String| odd(&here, why))?;
        let relative = relative.as_str();
        let name = Path::new(&name);
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .doing(|| format!("examining {}", here.display()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => visit(relative, open_without_capabilities(dir, name, &here)?)?,
            FileType::Directory => {
                let (dir, stat) = open(dir, name, OFlags::DIRECTORY, &here)?;
                let mode = permissions(&stat, &here)?;
                visit(relative, Found::Directory { mode })?;
                walk_directory(root, relative, &dir, known, visit)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())
                    .doing(|| format!("reading the link {}", here.display()))?;
                let target = target
                    .into_string()
                    .map_err(|_| odd(&here, "its target is not UTF-8"))?;
                if !link_stays_inside(relative, &target) {
                    return Err(odd(
                        &here,
                        format!("it points to '{}', outside its tree", target.escape_debug()),
                    ));
                }
                visit(relative, Found::Link { target })?;
            }
            _ => {
                return Err(odd(
                    &here,
                    "it is neither a file nor a directory nor a symbolic link",
                ));
            }
        }
    }
    Ok(())
}

fn entries(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

fn open_file(dir: impl AsFd, name: &Path, path: &Path) -> Result<Found> {
    // Should a pipe have come to lie there since, opening must not wait for its other end.
    let (fd, stat) = open(dir, name, OFlags::NONBLOCK, path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(odd(path, "it is not a regular file"));
    }
    Ok(Found::File {
        mode: permissions(&stat, path)?,
        capabilities: capabilities_of(&fd).map_err(|why| odd(path, why))?,
        size: stat.st_size.unsigned_abs(),
        file: fd.into(),
    })
}

/// The same for a file in a tree.
fn open_without_capabilities(dir: impl AsFd, name: &Path, path: &Path) -> Result<Found> {
    match open_file(dir, name, path)? {
        Found::File { capabilities, .. } if !capabilities.is_none() => Err(odd(
            path,
            format!("it has file capabilities ({capabilities}), which only a bin may have"),
        )),
        found => Ok(found),
    }
}

/// The capabilities that a file has. The error goes on after the file's name.
pub fn capabilities_of(file: impl AsFd) -> Result<Capabilities, String> {
    // One byte more: what is longer is another format.
    let mut value = [0; capabilities::LENGTH + 1];
    match rustix::fs::fgetxattr(file, capabilities::ATTRIBUTE, &mut value[..]) {
        Ok(length) => Capabilities::of_attribute(&value[..length]).ok_or(()),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(Capabilities::NONE),
        Err(Errno::RANGE) => Err(()),
        Err(e) => return Err(format!("its file capabilities cannot be read: {e}")),
    }
    .map_err(|()| "its file capabilities are not just permitted and effective ones".into())
}

/// Gives a file its capabilities; to be done last, for writing to it and giving it away take them off.
pub fn set_capabilities(file: impl AsFd, capabilities: Capabilities) -> io::Result<()> {
    if capabilities.is_none() {
        return Ok(());
    }
    let value = capabilities.attribute();
    rustix::fs::fsetxattr(file, capabilities::ATTRIBUTE, &value, XattrFlags::empty())?;
    Ok(())
}

fn open(dir: impl AsFd, name: &Path, flags: OFlags, path: &Path) -> Result<(OwnedFd, Stat)> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
        .and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)))
        .doing(|| format!("opening {}", path.display()))
}

fn permissions(stat: &Stat, path: &Path) -> Result<u32> {
    match stat.st_mode & 0o7777 {
        mode @ 0..=0o777 => Ok(mode),
        mode => Err(odd(
            path,
            format!("its mode {mode:o} has a set-user-id, set-group-id or sticky bit"),
        )),
    }
}

fn odd(path: &Path, why: impl Display) -> Error {
    Error::new(format!("measuring {}: {why}", path.display()))
}

fn below(root: &Path, relative: &str) -> PathBuf {
    match relative {
        "" | "." => root.to_owned(),
        _ => root.join(relative),
    }
}

/// What is read: the pages that the kernel has, or the medium.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadFrom {
    Cache,
    Medium,
}

struct Measure {
    from: ReadFrom,
    tree: TreeDigest,
    own: Option<TreeEntry>,
    capabilities: Capabilities,
    buffer: Vec<u8>,
}

impl Measure {
    fn of(kind: Kind, path: &Path, from: ReadFrom, known: &Known) -> Result<Measured> {
        let mut measure = Measure {
            from,
            tree: TreeDigest::default(),
            own: None,
            capabilities: Capabilities::NONE,
            buffer: vec![0; 128 * 1024],
        };
        walk(kind, path, known, &mut |relative, found| {
            measure
                .entry(relative, found)
                .doing(|| format!("reading {}", below(path, relative).display()))
        })?;
        let (tree, bytes, entries) = measure.tree.finish();
        let (mode, digest) = match measure.own {
            Some(TreeEntry::File(mode, _, digest)) => (mode, digest),
            Some(TreeEntry::Directory(mode)) => (mode, tree),
            Some(TreeEntry::Link(_)) | None => return Err(odd(path, "it is empty")),
        };
        Ok(Measured {
            digest,
            mode,
            capabilities: measure.capabilities,
            bytes,
            entries,
        })
    }

    fn entry(&mut self, path: &str, found: Found) -> io::Result<()> {
        let entry = match found {
            Found::Directory { mode } => TreeEntry::Directory(mode),
            Found::File {
                file,
                mode,
                capabilities,
                ..
            } => {
                // Of a bin: the files of a tree have none.
                self.capabilities = capabilities;
                let (digest, size) = self.file(file)?;
                TreeEntry::File(mode, size, digest)
            }
            Found::Link { target } => TreeEntry::Link(target),
        };
        if path == "." {
            self.own = Some(entry.clone());
        }
        self.tree.add(path, entry);
        Ok(())
    }

    fn file(&mut self, mut file: File) -> io::Result<(Digest, u64)> {
        if self.from == ReadFrom::Medium {
            // What was just written is still in the page cache, and would be read back from there even if
            // the medium had kept something else.
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        let mut hasher = Hasher::default();
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok((hasher.digest(), hasher.bytes())),
                Ok(n) => hasher.update(&self.buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn compare(component: &Component, path: &Path, found: &Measured) -> Result<(), String> {
    let differs = |what: &str, is: &dyn Display, should: &dyn Display| {
        let (path, name) = (path.display(), &component.name);
        Err(format!(
            "{path} does not match {name} in the manifest: its {what} is {is} instead of {should}"
        ))
    };
    if found.bytes != component.size_bytes {
        return differs("size", &found.bytes, &component.size_bytes);
    }
    if found.entries != component.entries {
        return differs("number of entries", &found.entries, &component.entries);
    }
    if found.mode != component.mode.0 {
        return differs(
            "mode",
            &format_args!("{:04o}", found.mode),
            &format_args!("{:04o}", component.mode.0),
        );
    }
    if found.capabilities != component.capabilities {
        return differs("capabilities", &found.capabilities, &component.capabilities);
    }
    if found.digest != component.sha256 {
        return differs("digest", &found.digest, &component.sha256);
    }
    Ok(())
}

fn copy_file(
    from: &File,
    size: u64,
    mode: u32,
    capabilities: Capabilities,
    to: &Path,
) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    copy_content(from, &file, size)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    set_capabilities(&file, capabilities)
}

/// Fills an empty file with the `size` bytes of another, in the same blocks if the file system can.
fn copy_content(from: &File, mut to: &File, size: u64) -> io::Result<()> {
    // Whatever the reason why blocks cannot be shared, copying them is always right.
    let copied = match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => to.metadata()?.len(),
        Err(_) => io::copy(&mut from.take(size), &mut to)?,
    };
    if copied != size {
        return Err(io::Error::other("the original changed while being read"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(dir: &Path) -> PathBuf {
        let tree = dir.join("tree");
        fs::create_dir_all(tree.join("d/empty")).unwrap();
        fs::write(tree.join("d/file"), "content").unwrap();
        fs::write(tree.join("d-file"), "").unwrap();
        symlink("d/file", tree.join("link")).unwrap();
        for (path, mode) in [
            ("", 0o755),
            ("d", 0o700),
            ("d/empty", 0o555),
            ("d/file", 0o640),
            ("d-file", 0o600),
        ] {
            chmod(&tree.join(path), mode);
        }
        tree
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn component(kind: Kind, path: &Path) -> Component {
        let found = measure(kind, path).unwrap();
        Component {
            name: "thing".parse().unwrap(),
            kind,
            install_path: "share/thing".parse().unwrap(),
            mode: crate::manifest::Mode(found.mode),
            capabilities: found.capabilities,
            sha256: found.digest,
            size_bytes: found.bytes,
            entries: found.entries,
            artifact: None,
            factory_path: None,
        }
    }

    #[test]
    fn a_tree_is_measured_as_the_format_says() {
        let dir = tempfile::tempdir().unwrap();
        let tree = tree(dir.path());
        let (content, empty) = (Digest::of(b"content"), Digest::of(b""));
        let lines = format!(
            "d 755 .\nd 700 d\nf 600 0 {empty} d-file\nd 555 d/empty\nf 640 7 {content} d/file\n\
             l d/file\tlink\n"
        );
        let expected = Measured {
            digest: Digest::of(lines.as_bytes()),
            mode: 0o755,
            capabilities: Capabilities::NONE,
            bytes: 7,
            entries: 6,
        };
        assert_eq!(measure(Kind::Tree, &tree).unwrap(), expected);
        assert_eq!(measure_medium(Kind::Tree, &tree).unwrap(), expected);
    }

    #[test]
    fn a_bin_is_measured_as_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::write(&bin, "program").unwrap();
        chmod(&bin, 0o755);
        let expected = Measured {
            digest: Digest::of(b"program"),
            mode: 0o755,
            capabilities: Capabilities::NONE,
            bytes: 7,
            entries: 1,
        };
        assert_eq!(measure(Kind::Bin, &bin).unwrap(), expected);
        assert_eq!(measure_medium(Kind::Bin, &bin).unwrap(), expected);
    }

    #[test]
    fn oddities_are_errors_that_name_the_path() {
        type Make = fn(&Path);
        let cases: [(Make, &str); 7] = [
            (
                |t| drop(std::os::unix::net::UnixListener::bind(t.join("odd")).unwrap()),
                "neither",
            ),
            (
                |t| symlink("/etc", t.join("odd")).unwrap(),
                "outside its tree",
            ),
            (
                |t| symlink("../odd", t.join("odd")).unwrap(),
                "outside its tree",
            ),
            (
                |t| {
                    fs::write(t.join("odd"), "").unwrap();
                    chmod(&t.join("odd"), 0o4755);
                },
                "set-user-id",
            ),
            (
                |t| {
                    fs::create_dir(t.join("odd")).unwrap();
                    chmod(&t.join("odd"), 0o1777);
                },
                "sticky",
            ),
            (
                |t| fs::write(t.join("odd\n"), "").unwrap(),
                "control character",
            ),
            (
                |t| fs::write(t.join(OsString::from_vec(b"odd\xff".to_vec())), "").unwrap(),
                "UTF-8",
            ),
        ];
        for (make, why) in cases {
            let dir = tempfile::tempdir().unwrap();
            let tree = tree(dir.path());
            make(&tree);
            let error = measure(Kind::Tree, &tree).unwrap_err().chain();
            assert!(
                error.contains("/tree/odd") && error.contains(why),
                "{error}"
            );
        }
    }

    #[test]
    fn a_link_is_no_component() {
        let dir = tempfile::tempdir().unwrap();
        let tree = tree(dir.path());
        let link = dir.path().join("link");
        for (kind, target, why) in [
            (Kind::Tree, tree.clone(), "not a directory"),
            (Kind::Bin, tree.join("d/file"), "not a regular file"),
        ] {
            symlink(target, &link).unwrap();
            let error = measure(kind, &link).unwrap_err().chain();
            assert!(error.contains(why), "{error}");
            fs::remove_file(&link).unwrap();
        }
        assert!(measure(Kind::Bin, &link).is_err());
    }

    #[test]
    fn whatever_differs_from_the_manifest_is_named() {
        type Change = fn(&Path);
        let changes: [(Change, &str); 6] = [
            (
                |t| fs::write(t.join("d/file"), "contenT").unwrap(),
                "digest",
            ),
            (
                |t| fs::write(t.join("d/file"), "more content").unwrap(),
                "size",
            ),
            (
                |t| fs::write(t.join("more"), "").unwrap(),
                "number of entries",
            ),
            (|t| chmod(t, 0o700), "mode"),
            (|t| chmod(&t.join("d"), 0o755), "digest"),
            (
                |t| fs::rename(t.join("link"), t.join("Link")).unwrap(),
                "digest",
            ),
        ];
        for (change, what) in changes {
            let dir = tempfile::tempdir().unwrap();
            let tree = tree(dir.path());
            let component = component(Kind::Tree, &tree);
            matches(&component, &tree).unwrap();
            matches_medium(&component, &tree).unwrap();
            change(&tree);
            let why = matches(&component, &tree).unwrap_err();
            assert!(why.contains(&format!("its {what} is")), "{why}");
        }
    }

    #[test]
    fn a_copy_is_the_same_component() {
        let dir = tempfile::tempdir().unwrap();
        let tree = tree(dir.path());
        for (kind, from) in [(Kind::Tree, tree.clone()), (Kind::Bin, tree.join("d/file"))] {
            let component = component(kind, &from);
            let to = dir.path().join(format!("{kind:?}/share/copy"));
            copy(&component, &from, &to).unwrap();
            matches(&component, &to).unwrap();
            let again = copy(&component, &from, &to).unwrap_err().chain();
            assert!(again.contains("File exists"), "{again}");
        }
    }

    #[test]
    fn a_copy_never_grows_beyond_the_manifest() {
        for grow in [(|c| c.size_bytes -= 1) as fn(&mut Component), |c| {
            c.entries -= 1
        }] {
            let dir = tempfile::tempdir().unwrap();
            let tree = tree(dir.path());
            let mut component = component(Kind::Tree, &tree);
            grow(&mut component);
            let error = copy(&component, &tree, &dir.path().join("copy")).unwrap_err();
            assert!(
                error.chain().contains("larger than the manifest"),
                "{error}"
            );
        }
    }

    #[test]
    fn links_may_not_leave_their_tree() {
        for (path, target, inside) in [
            ("l", "x", true),
            ("l", "x/y", true),
            ("l", "./x", true),
            ("l", ".", true),
            ("d/l", "..", true),
            ("d/l", "../x", true),
            ("d/e/l", "../../x", true),
            ("l", "..", false),
            ("l", "../x", false),
            ("d/l", "../../x", false),
            ("d/l", "./../../x", false),
            ("d/l", "/etc/passwd", false),
            ("d/l", "", false),
            // `s` may be a link to the tree's own directory.
            ("d/l", "s/../x", false),
            ("d/l", "../s/..", false),
            ("d/l", "x\ty", false),
        ] {
            assert_eq!(
                link_stays_inside(path, target),
                inside,
                "{path} -> {target}"
            );
        }
    }
}
