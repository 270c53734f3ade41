//! Keys that come to a role: public ones that were made elsewhere, and new ones made here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::current::Current;
use super::keyring::{EXTERNAL, PublicKey, create_key, public_file};
use super::pem;
use super::role::{ROOT, TARGETS, top_level};
use qx_release::durable;
use qx_release::error::{Context, Error, Result};
use qx_release::trust::signing::{Scheme, key_id};

/// What asks for a key to be made.
pub(crate) const NEW: &str = "new";

/// Where new keys are put.
pub struct NewKeys {
    dir: PathBuf,
    /// The files of the keys that were made.
    pub made: Vec<PathBuf>,
}

impl NewKeys {
    /// New keys will be put into this directory.
    pub fn new(dir: &Path) -> NewKeys {
        NewKeys {
            dir: dir.to_owned(),
            made: Vec::new(),
        }
    }

    /// The key objects, by id, for a list of files of public keys and of `new`.
    pub fn take(
        &mut self,
        current: &Current,
        role: &str,
        wanted: &[String],
    ) -> Result<Map<String, Value>> {
        let mut keys = Map::new();
        for wanted in wanted {
            let (id, key) = match wanted.as_str() {
                NEW => self.next(current, role)?,
                file => public(Path::new(file))?,
            };
            keys.insert(id, key);
        }
        Ok(keys)
    }

    /// A key that is named after the metadata that will be the first to list it: so that what an interrupted command has
    /// made is found, and used.
    fn next(&mut self, current: &Current, role: &str) -> Result<(String, Value)> {
        let version = current.next_version(if top_level(role) { ROOT } else { TARGETS });
        let name = |number: usize| match number {
            1 => format!("{role}-v{version}.pem"),
            _ => format!("{role}-v{version}-{number}.pem"),
        };
        let file = self.dir.join(name(self.made.len() + 1));
        make(&file)?;
        let key = PublicKey::read(&file)?;
        self.made.push(file);
        Ok((key.id, key.key))
    }
}

/// Makes a key, unless an interrupted command has done so.
pub(crate) fn make(file: &Path) -> Result<()> {
    match fs::symlink_metadata(file) {
        Ok(meta) => ours(file, &meta),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Its public half is written first.
            durable::remove(&public_file(file))?;
            create_key(file, Scheme::Ed25519, None).map(drop)
        }
        Err(e) => Err(e).doing(|| format!("examining {}", file.display())),
    }
}

/// Whether a key that is there can be one that an interrupted command made: whoever may write to the directory could
/// have put one of theirs there.
fn ours(file: &Path, meta: &fs::Metadata) -> Result<()> {
    let me = rustix::process::geteuid().as_raw();
    if meta.is_file() && [me, 0].contains(&meta.uid()) {
        return Ok(());
    }
    Err(Error::new(format!(
        "making the key {}: user {} has put something else there",
        file.display(),
        meta.uid()
    )))
}

fn public(file: &Path) -> Result<(String, Value)> {
    if file.to_string_lossy().ends_with(EXTERNAL) {
        let key = PublicKey::read(file)?;
        return Ok((key.id, key.key));
    }
    let doing = || format!("reading the public key {}", file.display());
    let text = fs::read_to_string(file).doing(doing)?;
    let key = pem::public(&text).map_err(|why| Error::new(format!("{}: {why}", doing())))?;
    Ok((key_id(&key), key))
}
