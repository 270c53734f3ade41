//! Packing a component: the artifact, and the measure of what will be installed, in one pass over the files.
//!
//! Deterministic: the same names, modes and bytes make the same artifact, whoever packs them, when and where.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

use super::carried::{self, Named};
use super::recipe::Source;
use qx_release::digest::{Digest, Hasher, TreeDigest, TreeEntry};
use qx_release::durable;
use qx_release::error::{Context, Error, Result};
use qx_release::manifest::{Kind, RelPath};
use qx_release::text;
use qx_release::tree;
use qx_release::trust::described::TargetFile;

/// What will be installed, in the manifest's terms.
pub(crate) struct Packed {
    /// The file's digest, or the tree digest.
    pub digest: Digest,
    /// The sum of the files' lengths.
    pub bytes: u64,
    /// The number of files, directories and links.
    pub entries: u64,
}

/// A packed component.
pub(crate) struct Artifact {
    /// What is in it.
    pub packed: Packed,
    /// The archive itself.
    pub target: TargetFile,
}

/// Packs a component into a file, durably.
pub(crate) fn artifact(source: &Source, file: &Path) -> Result<Artifact> {
    let writing = || format!("writing {}", file.display());
    let out = File::create_new(file).doing(writing)?;
    // The whole header is given, for its defaults tell the time and the system.
    let gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Tally::new(BufWriter::new(out)), Compression::new(6));
    let (packed, gzip) = pack(source, gzip)?;
    let Tally { out, hasher } = gzip.finish().doing(writing)?;
    let out = out.into_inner().map_err(io::IntoInnerError::into_error);
    let out = out.doing(writing)?;
    out.set_permissions(fs::Permissions::from_mode(0o644))
        .doing(writing)?;
    durable::sync_file(&out, file)?;
    let target = TargetFile {
        length: hasher.bytes(),
        sha256: hasher.digest(),
    };
    Ok(Artifact { packed, target })
}

/// Measures a component by the same rules, without an artifact.
pub(crate) fn measure(source: &Source) -> Result<Packed> {
    Ok(pack(source, io::sink())?.0)
}

/// Packs a component into a file as it is, to be unpacked at once.
pub(crate) fn plain(source: &Source, file: &Path) -> Result<()> {
    let writing = || format!("writing {}", file.display());
    let out = BufWriter::new(File::create(file).doing(writing)?);
    let (_, mut out) = pack(source, out)?;
    out.flush().doing(writing)
}

fn pack<W: Write>(source: &Source, out: W) -> Result<(Packed, W)> {
    let mut archive = tar::Builder::new(out);
    let packed = match source.kind {
        Kind::Bin => {
            let path = &source.source;
            carried::bin(path, Named::ToInstall(source.capabilities))
                .map_err(|why| source.unfit(&why))?;
            let (digest, bytes) = append_file(
                &mut archive,
                path,
                source.install_path.as_str(),
                source.mode.0,
            )
            .doing(|| source.doing())?;
            Packed {
                digest,
                bytes,
                entries: 1,
            }
        }
        Kind::Tree => pack_tree(source, &mut archive)?,
    };
    let out = archive
        .into_inner()
        .doing(|| format!("component {}: ending its archive", source.name))?;
    Ok((packed, out))
}

fn pack_tree<W: Write>(source: &Source, archive: &mut tar::Builder<W>) -> Result<Packed> {
    let mut found = BTreeMap::new();
    carried::entry(&source.source).map_err(|why| source.unfit(&why))?;
    find(&source.source, "", &mut found).doing(|| format!("component {}", source.name))?;
    let mut digest = TreeDigest::default();
    append(
        archive,
        EntryType::Directory,
        source.install_path.as_str(),
        source.mode.0,
        None,
    )
    .doing(|| source.doing())?;
    digest.add(".", TreeEntry::Directory(source.mode.0));
    for (path, Found { metadata, link }) in found {
        let file = source.source.join(&path);
        let doing = || format!("component {}: {}", source.name, file.display());
        let name = format!("{}/{path}", source.install_path);
        // The whole path, too, must be one that can be installed.
        name.parse::<RelPath>()
            .map_err(|why| Error::new(format!("{}: {why}", doing())))?;
        let mode = metadata.permissions().mode() & 0o7777;
        let entry = if let Some(target) = link {
            append(archive, EntryType::Symlink, &name, 0o777, Some(&target)).doing(doing)?;
            TreeEntry::Link(target)
        } else if metadata.is_dir() {
            append(archive, EntryType::Directory, &name, mode, None).doing(doing)?;
            TreeEntry::Directory(mode)
        } else {
            let (digest, bytes) = append_file(archive, &file, &name, mode).doing(doing)?;
            TreeEntry::File(mode, bytes, digest)
        };
        digest.add(&path, entry);
    }
    let (digest, bytes, entries) = digest.finish();
    Ok(Packed {
        digest,
        bytes,
        entries,
    })
}

struct Found {
    metadata: Metadata,
    link: Option<String>,
}

/// Everything below a directory, by its path relative to the tree. What could not be installed is an error.
fn find(root: &Path, base: &str, found: &mut BTreeMap<String, Found>) -> Result<()> {
    let dir = root.join(base);
    let reading = || format!("reading {}", dir.display());
    for entry in fs::read_dir(&dir).doing(reading)? {
        let file = entry.doing(reading)?.path();
        let odd = |why: &str| Error::new(format!("{}: {why}", file.display()));
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| odd("its name is not UTF-8"))?;
        let path = match base {
            "" => name.to_owned(),
            _ => format!("{base}/{name}"),
        };
        path.parse::<RelPath>().map_err(|why| odd(&why))?;
        let metadata = fs::symlink_metadata(&file).doing(|| file.display().to_string())?;
        let kind = metadata.file_type();
        let link = if kind.is_symlink() {
            Some(link_target(&file, &path)?)
        } else if !(kind.is_dir() || kind.is_file()) {
            return Err(odd(
                "it is neither a file nor a directory nor a symbolic link",
            ));
        } else {
            None
        };
        carried::entry(&file).map_err(|why| odd(&why))?;
        if kind.is_dir() {
            find(root, &path, found)?;
        }
        found.insert(path, Found { metadata, link });
    }
    Ok(())
}

fn link_target(file: &PathBuf, path: &str) -> Result<String> {
    let odd = |why: String| Error::new(format!("{}: {why}", file.display()));
    let target = fs::read_link(file).doing(|| file.display().to_string())?;
    let target = target
        .into_os_string()
        .into_string()
        .map_err(|_| odd("its target is not UTF-8".into()))?;
    if !tree::link_stays_inside(path, &target) {
        return Err(odd(format!(
            "it points to '{}', outside of the component",
            text::name(&target)
        )));
    }
    Ok(target)
}

/// Appends a file; its digest and length as they were packed.
fn append_file<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    name: &str,
    mode: u32,
) -> io::Result<(Digest, u64)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    // One byte more would be seen, one less too: the header already says how many there are.
    let mut reader = Tally::new(file.take(size));
    let mut header = header(EntryType::Regular, mode);
    header.set_size(size);
    archive.append_data(&mut header, name, &mut reader)?;
    let Tally { out, hasher } = reader;
    if hasher.bytes() != size || out.into_inner().read(&mut [0])? != 0 {
        return Err(io::Error::other("it changed while being read"));
    }
    Ok((hasher.digest(), size))
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    kind: EntryType,
    name: &str,
    mode: u32,
    link: Option<&str>,
) -> io::Result<()> {
    let mut header = header(kind, mode);
    header.set_size(0);
    match link {
        // The longer ones take a header of their own, which is `append_link`'s; it would tidy up the shorter ones
        // (`a//b`), and the digest is of the target as it is.
        Some(target) if target.len() > 100 => {
            return archive.append_link(&mut header, name, target);
        }
        Some(target) => header.set_link_name_literal(target)?,
        None => {}
    }
    archive.append_data(&mut header, name, io::empty())
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Counts and hashes what passes through.
pub(crate) struct Tally<T> {
    out: T,
    /// What has passed so far.
    pub hasher: Hasher,
}

impl<T> Tally<T> {
    /// Around it.
    pub(crate) fn new(out: T) -> Tally<T> {
        let hasher = Hasher::default();
        Tally { out, hasher }
    }
}

impl<W: Write> Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<R: Read> Read for Tally<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.out.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
