//! A repository in one file: an uncompressed tar archive whose files are those of the repository, by their paths.
//!
//! Nothing in it is trusted; it is read like any other source. Its entries are looked through once; after that files are
//! read where they lie.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::Artifact;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::RelPath;
use qx_release::text;

/// A bundle has at most this many entries.
const MAX_ENTRIES: usize = 10_000;
/// The names of its files have at most this many bytes altogether: they are kept in memory.
const MAX_NAMES: usize = 1 << 20;
/// A header that carries a long name is at most this long, in bytes.
const MAX_EXTENSION: u64 = 4096;
const BLOCK: u64 = 512;
/// What most programs fill an archive's end to.
const RECORD: u64 = 20 * BLOCK;

/// A bundle and where its files lie in it.
pub struct Bundle {
    path: PathBuf,
    file: File,
    files: BTreeMap<String, Extent>,
}

#[derive(Clone, Copy)]
struct Extent {
    at: u64,
    length: u64,
}

impl Bundle {
    /// Looks through the archive.
    ///
    /// # Errors
    /// [`ErrorKind::Untrusted`] if it is no uncompressed tar archive to its end, or holds anything but directories and regular
    /// files, each with a name of its own that stays inside.
    pub fn open(path: &Path, file: File, length: u64) -> Result<Bundle> {
        let mut bundle = Bundle {
            path: path.to_owned(),
            file: file
                .try_clone()
                .doing(|| format!("reading the bundle {}", path.display()))?,
            files: BTreeMap::new(),
        };
        bundle.files = bundle.index(file, length)?;
        // What is missing from its end may be all that it was for.
        if !bundle.files.keys().any(|name| is_release(name)) {
            return Err(bundle.refused("it contains no release: it is incomplete"));
        }
        Ok(bundle)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it holds a file of that path.
    pub fn holds(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// A file of it, and how long it is.
    pub fn open_file(&self, path: &str) -> Result<Option<(Artifact, u64)>> {
        let Some(Extent { at, length }) = self.files.get(path).copied() else {
            return Ok(None);
        };
        let file = self
            .file
            .try_clone()
            .doing(|| format!("reading {path} in {}", self.path.display()))?;
        Ok(Some((Artifact::new(file, at, length), length)))
    }

    /// Where each file lies in the archive.
    fn index(&self, file: File, length: u64) -> Result<BTreeMap<String, Extent>> {
        let refused = |why: &str| self.refused(why);
        let unreadable = |e| self.unreadable(e);
        let mut archive = tar::Archive::new(file);
        let mut files: BTreeMap<String, Extent> = BTreeMap::new();
        let (mut end, mut entries, mut names) = (0, 0, 0);
        let mut long_name = None;
        let mut extended = false;
        // Raw: left to itself the reader would take long names of any length into memory.
        for entry in archive.entries_with_seek().map_err(unreadable)?.raw(true) {
            let mut entry = entry.map_err(unreadable)?;
            let (at, size) = (entry.raw_file_position(), entry.size());
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(refused(&format!("it has more than {MAX_ENTRIES} entries")));
            }
            end = at
                .checked_add(size)
                .filter(|end| *end <= length)
                .ok_or_else(|| refused("it is truncated"))?
                .next_multiple_of(BLOCK);
            let kind = entry.header().entry_type();
            extended = matches!(kind, EntryType::GNULongName | EntryType::XHeader);
            if extended {
                if long_name.is_some() {
                    return Err(refused("one of its entries has two names"));
                }
                long_name = self.long_name(&mut entry)?;
                continue;
            }
            let name = match long_name.take() {
                Some(name) => name,
                None => entry.path_bytes().into_owned(),
            };
            let name = String::from_utf8_lossy(&name);
            let refuse = |why: &str| refused(&format!("its entry '{}' {why}", text::name(&name)));
            match kind {
                EntryType::Regular => {}
                EntryType::Directory => continue,
                _ => return Err(refuse("is neither a regular file nor a directory")),
            }
            let name: RelPath = name
                .strip_prefix("./")
                .unwrap_or(&name)
                .parse()
                .map_err(|why: String| refuse(&format!("is refused: {why}")))?;
            names += name.as_str().len();
            if names > MAX_NAMES {
                return Err(refused(&format!(
                    "its file names have more than {MAX_NAMES} bytes in total"
                )));
            }
            let place = Extent { at, length: size };
            if files.insert(name.into(), place).is_some() {
                return Err(refuse("is a duplicate"));
            }
        }
        if extended {
            return Err(refused("the entry for its last long name is missing"));
        }
        self.check_end(end, length)?;
        Ok(files)
    }

    /// The name that this header carries for the entry after it, if it carries one.
    fn long_name(&self, header: &mut tar::Entry<impl Read>) -> Result<Option<Vec<u8>>> {
        if header.size() > MAX_EXTENSION {
            return Err(self.refused("a name or an attribute in it is too long"));
        }
        let mut data = Vec::new();
        header
            .read_to_end(&mut data)
            .map_err(|e| self.unreadable(e))?;
        match header.header().entry_type() {
            EntryType::XHeader => pax_path(&data).map_err(|why| self.refused(&why)),
            _ => Ok(Some(data.strip_suffix(b"\0").unwrap_or(&data).to_owned())),
        }
    }

    /// The reader takes the file's end for the archive's, and zeros that a bad stick or a broken copy left for its end mark: an
    /// archive has an end of its own, which is two blocks of zeros or fills a last record of them, and nothing else.
    fn check_end(&self, end: u64, length: u64) -> Result<()> {
        let rest = length.saturating_sub(end);
        let fills_a_record = length.next_multiple_of(RECORD) == length && rest <= RECORD + BLOCK;
        if rest > 2 * BLOCK && !fills_a_record {
            return Err(self.refused("it is damaged: something follows its last file"));
        }
        // A file that became shorter meanwhile ends within.
        let mut last = vec![1; usize::try_from(rest.max(BLOCK)).unwrap_or(usize::MAX)];
        match self.file.read_exact_at(&mut last, end) {
            Ok(()) if last.iter().all(|byte| *byte == 0) => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(self.unreadable(e)),
            _ => Err(self.refused("it is truncated")),
        }
    }

    fn refused(&self, why: &str) -> Error {
        let why = format!("reading the bundle {}: {why}", self.path.display());
        Error::with(ErrorKind::Untrusted, why)
    }

    fn unreadable(&self, e: io::Error) -> Error {
        match e.raw_os_error() {
            Some(_) => {
                let doing = || format!("reading the bundle {}", self.path.display());
                let Err(error) = Err::<Infallible, _>(e).doing(doing);
                error
            }
            None => self.refused(&format!(
                "it is not an uncompressed tar archive, or it is damaged: {e}"
            )),
        }
    }
}

/// Whether a file of that path is a release's manifest; with consistent snapshots its digest is in front of its name.
fn is_release(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with("targets/") && (name == "release.json" || name.ends_with(".release.json"))
}

/// The name that an extended header gives to the entry after it. What would change how much there is of it is refused; times,
/// owners and the like do not count.
fn pax_path(data: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut path = None;
    for pair in tar::PaxExtensions::new(data) {
        let pair = pair.map_err(|e| format!("an attribute in it is damaged: {e}"))?;
        match pair.key_bytes() {
            b"path" => path = Some(pair.value_bytes().to_owned()),
            key if key == b"size" || key.starts_with(b"GNU.sparse") => {
                return Err("it contains a sparse file or a file larger than 8 GiB".into());
            }
            _ => {}
        }
    }
    Ok(path)
}
