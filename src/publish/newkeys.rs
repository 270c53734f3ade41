//! Keys that come to a role: public ones that were made elsewhere, and new ones made here.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::current::{Current, TARGETS};
use super::keyring::Signer;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::trust::canonical::canonical;
use crate::trust::key::hex;
use crate::trust::signing::{SecretKey, Sign};

/// What asks for a key to be made.
pub const NEW: &str = "new";

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

    /// A key with the role's name that this repository has never listed: what an interrupted command has made is used,
    /// else one is made.
    fn next(&mut self, current: &Current, role: &str) -> Result<(String, Value)> {
        for number in 1.. {
            let name = match number {
                1 => format!("{role}.pem"),
                _ => format!("{role}-{number}.pem"),
            };
            let file = self.dir.join(name);
            if self.made.contains(&file) {
                continue;
            }
            if !file.exists() {
                make(&file)?;
            }
            let signer = Signer::read(&file)?;
            let id = signer.id();
            if !ever_listed(current, &id) {
                self.made.push(file);
                return Ok((id, signer.public()));
            }
        }
        Err(Error::new(format!(
            "{}: no name is left for a key",
            self.dir.display()
        )))
    }
}

/// Makes a key and writes it, for nobody else to read. Nothing is overwritten.
pub fn make(file: &Path) -> Result<SecretKey> {
    if fs::symlink_metadata(file).is_ok() {
        return Err(Error::new(format!(
            "{} is there already, and no key is overwritten",
            file.display()
        )));
    }
    let key = SecretKey::generate();
    durable::write(file, key.to_pem().as_bytes())?;
    Ok(key)
}

fn public(file: &Path) -> Result<(String, Value)> {
    let doing = || format!("reading the public key {}", file.display());
    let pem = fs::read_to_string(file).doing(doing)?;
    let key = ed25519_compact::PublicKey::from_pem(&pem)
        .map_err(|why| Error::new(format!("{}: it is no public key in PEM: {why}", doing())))?;
    let key = json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": hex(&*key)}});
    let id = canonical(&key).map_err(Error::new)?;
    Ok((Digest::of(&id).to_string(), key))
}

fn ever_listed(current: &Current, id: &str) -> bool {
    let targets = current
        .role(TARGETS)
        .ok()
        .map(|e| &e.signed["delegations"]["keys"]);
    let roots = current.roots.iter().map(|root| &root.signed["keys"]);
    roots.chain(targets).any(|keys| keys.get(id).is_some())
}
