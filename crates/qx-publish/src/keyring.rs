//! The publisher's keys: private ones in PEM (`*.pem`) and signers outside of this process (`*.signer.json`), in one
//! directory. A private key's public half lies beside it (`*.pub.pem`), so that nobody is asked for the passphrase of a
//! key that is not needed.

use std::cell::OnceCell;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;

use super::external::External;
use super::passphrase::Passphrase;
use super::pem::{self, Encrypted, Private};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::trust::key::Key;
use qx_release::trust::signing::{Scheme, SecretKey, Sign, key_id};

const PRIVATE: &str = ".pem";
const PUBLIC: &str = ".pub.pem";
/// What the description of a signer outside of this process is called.
pub(crate) const EXTERNAL: &str = ".signer.json";

/// The keys in a directory that something can be signed with.
pub struct Keyring {
    dir: PathBuf,
    signers: Vec<Signer>,
    unusable: Vec<String>,
}

/// What signs with one key.
pub struct Signer {
    file: PathBuf,
    public: Value,
    key: Key,
    how: How,
}

enum How {
    Secret(SecretKey),
    Encrypted {
        encrypted: Encrypted,
        passphrase: Rc<Passphrase>,
        opened: OnceCell<SecretKey>,
    },
    External(External),
}

impl Keyring {
    /// Finds the keys in a directory. A file that is not a key is no error; a passphrase is asked for only when
    /// its key has to sign. `passphrase_file` has it in its first line.
    pub fn open(dir: &Path, passphrase_file: Option<&Path>) -> Result<Keyring> {
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
        let passphrase = Rc::new(Passphrase::new(passphrase_file));
        for file in files {
            let signer = if named(&file, EXTERNAL) {
                Signer::external(&file)
            } else if named(&file, PRIVATE) && !named(&file, PUBLIC) {
                Signer::private(&file, &passphrase)
            } else {
                continue;
            };
            match signer {
                Ok(signer) => keyring.signers.push(signer),
                Err(error) => keyring.unusable.push(error.chain()),
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

    /// The key files that cannot be used, and why: one line each.
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }
}

impl Signer {
    fn private(file: &Path, passphrase: &Rc<Passphrase>) -> Result<Signer> {
        match read_private(file)? {
            Private::Plain(secret) => Signer::new(file, secret.public(), How::Secret(secret)),
            Private::Encrypted(encrypted) => {
                let public = read_public(file)?;
                let how = How::Encrypted {
                    encrypted,
                    passphrase: Rc::clone(passphrase),
                    opened: OnceCell::new(),
                };
                Signer::new(file, public, how)
            }
        }
    }

    fn external(file: &Path) -> Result<Signer> {
        let (external, public) = External::read(file)?;
        Signer::new(file, public, How::External(external))
    }

    fn new(file: &Path, public: Value, how: How) -> Result<Signer> {
        let key = Key::from_value(&public).ok_or_else(|| {
            Error::new(format!(
                "reading the key {}: its signature scheme is not supported",
                file.display()
            ))
        })?;
        Ok(Signer {
            file: file.to_owned(),
            public,
            key,
            how,
        })
    }
}

impl Sign for Signer {
    fn public(&self) -> Value {
        self.public.clone()
    }

    /// The signature is verified before it is used: another card may be in the reader, and the public half
    /// beside an encrypted key may be another's.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let signature = match &self.how {
            How::Secret(secret) => secret.sign(message),
            How::External(external) => external.sign(message),
            How::Encrypted {
                encrypted,
                passphrase,
                opened,
            } => match opened.get() {
                Some(secret) => secret.sign(message),
                None => {
                    let secret = passphrase.open(&self.file, |text| encrypted.open(text))?;
                    opened.get_or_init(|| secret).sign(message)
                }
            },
        }?;
        if !self.key.verifies(message, &signature) {
            return Err(Error::new(format!(
                "signing with {}: the result is not a signature of its public key {}",
                self.file.display(),
                self.id()
            )));
        }
        Ok(signature)
    }
}

/// A public key. It prints as its id, its scheme, its PEM, and the TUF key object in one line.
#[derive(Debug)]
pub struct PublicKey {
    /// What root metadata call it.
    pub id: String,
    /// In PEM, SubjectPublicKeyInfo.
    pub pem: String,
    /// The TUF key object.
    pub key: Value,
}

impl PublicKey {
    /// What a TUF key object says.
    pub fn of(key: Value) -> Result<PublicKey> {
        Ok(PublicKey {
            id: key_id(&key),
            pem: pem::write_public(&key).map_err(Error::new)?,
            key,
        })
    }

    /// Reads the public half of a key: from its own file (`NAME.pub.pem`), a private key's (`NAME.pem`, which may be encrypted
    /// if the former lies beside it) or the description of a signer (`NAME.signer.json`).
    pub fn read(file: &Path) -> Result<PublicKey> {
        let key = if named(file, EXTERNAL) {
            External::read(file)?.1
        } else if named(file, PUBLIC) {
            read_public(file)?
        } else {
            match read_private(file)? {
                Private::Plain(secret) => secret.public(),
                Private::Encrypted(_) => read_public(file)?,
            }
        };
        PublicKey::of(key)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.key["scheme"].as_str().unwrap_or_default();
        writeln!(f, "id      {}\nscheme  {scheme}", self.id)?;
        writeln!(f, "{}\n{}", self.pem.trim_end(), self.key)
    }
}

/// Makes a key: FILE, which must be named `*.pem`, and its public half beside it. Neither is overwritten.
pub fn create_key(
    file: &Path,
    scheme: Scheme,
    passphrase: Option<&Passphrase>,
) -> Result<SecretKey> {
    if !named(file, PRIVATE) || named(file, PUBLIC) {
        return Err(Error::with(
            ErrorKind::Usage,
            format!(
                "{}: the name of a private key must end in {PRIVATE}",
                file.display()
            ),
        ));
    }
    check_vacant(file)?;
    check_directory(file)?;
    let passphrase = passphrase
        .map(|passphrase| passphrase.choose(file))
        .transpose()?;
    let secret = SecretKey::generate(scheme);
    let failed = |why| Error::new(format!("making the key {}: {why}", file.display()));
    let public = pem::write_public(&secret.public()).map_err(failed)?;
    let private = pem::write_private(&secret, passphrase.as_deref()).map_err(failed)?;
    // An encrypted key is of use with its public half only.
    durable::write_with_mode(&public_file(file), public.as_bytes(), 0o644)?;
    durable::write(file, private.as_bytes())?;
    Ok(secret)
}

/// Refuses a directory in which somebody else could put a key of theirs in the place of one that was made.
fn check_directory(file: &Path) -> Result<()> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let meta = fs::metadata(directory).doing(|| format!("examining {}", directory.display()))?;
    let me = rustix::process::geteuid().as_raw();
    // In a sticky directory nobody replaces what is another's.
    let open = meta.mode() & 0o002 != 0 && meta.mode() & 0o1000 == 0;
    if open || ![me, 0].contains(&meta.uid()) {
        return Err(Error::new(format!(
            "making the key {}: the directory belongs to user {} and has mode {:04o}, so other users could replace \
             the key",
            file.display(),
            meta.uid(),
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Refuses a name for a new key under which there is one, or half of one.
pub(crate) fn check_vacant(file: &Path) -> Result<()> {
    for file in [file, &public_file(file)] {
        if fs::symlink_metadata(file).is_ok() {
            return Err(Error::new(format!(
                "{} already exists; no key is overwritten",
                file.display()
            )));
        }
    }
    Ok(())
}

fn read_private(file: &Path) -> Result<Private> {
    let doing = || format!("reading the key {}", file.display());
    let text = fs::read_to_string(file).doing(doing)?;
    pem::private(&text).map_err(|why| Error::new(format!("{}: {why}", doing())))
}

/// The public half of a key, from the file for it.
fn read_public(file: &Path) -> Result<Value> {
    let public = public_file(file);
    let text = match fs::read_to_string(&public) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(format!(
                "reading the key {0}: it is encrypted and its public half is missing; create it with `openssl pkey -in {0} \
                 -pubout -out {1}`",
                file.display(),
                public.display()
            )));
        }
        read => read.doing(|| format!("reading the key {}", public.display()))?,
    };
    pem::public(&text)
        .map_err(|why| Error::new(format!("reading the key {}: {why}", public.display())))
}

/// `NAME.pub.pem` for both that and `NAME.pem`.
pub(crate) fn public_file(file: &Path) -> PathBuf {
    match named(file, PUBLIC) {
        true => file.to_owned(),
        false => file.with_extension("pub.pem"),
    }
}

fn named(file: &Path, end: &str) -> bool {
    file.as_os_str()
        .as_encoded_bytes()
        .ends_with(end.as_bytes())
}
