//! The publisher's private keys: every `*.pem` in a directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::trust::key::Key;
use crate::trust::signing::{SecretKey, Sign};

/// The private keys in a directory.
pub struct Keyring {
    dir: PathBuf,
    signers: Vec<Signer>,
    /// What else lies there under the name of a key, and why it is none: for the message when one is missing.
    unusable: Vec<String>,
}

/// What can sign with one private key.
pub struct Signer {
    key: Key,
    secret: SecretKey,
}

impl Keyring {
    /// Looks what keys are in a directory. A file that is no key is no error before a key is missing.
    pub fn open(dir: &Path) -> Result<Keyring> {
        let doing = || format!("reading the keys in {}", dir.display());
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).doing(doing)? {
            files.push(entry.doing(doing)?.path());
        }
        files.sort();
        let mut keyring = Keyring {
            dir: dir.to_owned(),
            signers: Vec::new(),
            unusable: Vec::new(),
        };
        for file in files {
            if file.extension().is_some_and(|end| end == "pem") {
                match Signer::read(&file) {
                    Ok(signer) => keyring.signers.push(signer),
                    Err(error) => keyring.unusable.push(error.chain()),
                }
            }
        }
        Ok(keyring)
    }

    /// Who signs with the private half of a key.
    pub fn signer_for(&self, key: &Key) -> Option<&Signer> {
        self.signers.iter().find(|signer| signer.key == *key)
    }

    /// The error for a key that is needed and not there; `what` names it: "key of the targets role".
    pub fn missing(&self, what: &str) -> Error {
        let mut message = format!("{} holds no {what}", self.dir.display());
        for why in &self.unusable {
            message.push_str("; ");
            message.push_str(why);
        }
        Error::new(message)
    }
}

impl Signer {
    /// Reads a key.
    pub(super) fn read(file: &Path) -> Result<Signer> {
        let doing = || format!("reading the key {}", file.display());
        let pem = fs::read_to_string(file).doing(doing)?;
        let wrong = |why: String| Error::new(format!("{}: {why}", doing()));
        let secret = SecretKey::from_pem(&pem).map_err(wrong)?;
        let key = Key::from_value(&secret.public())
            .ok_or_else(|| wrong("it is of no scheme that this version knows".into()))?;
        Ok(Signer { key, secret })
    }
}

impl Sign for Signer {
    fn public(&self) -> Value {
        self.secret.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.secret.sign(message)
    }
}
