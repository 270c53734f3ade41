//! The other side of [`super::key`]: private keys, and making signed metadata.

use std::fmt;
use std::str::FromStr;

use ed25519_compact::{KeyPair, Seed};
use p256::ecdsa::signature::Signer as _;
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde_json::{Value, json};

use super::canonical::canonical;
use super::key::hex;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};

/// The signature schemes that this version can sign with, and verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// RFC 8032.
    Ed25519,
    /// ECDSA on the curve P-256 with SHA-256.
    EcdsaP256,
}

impl Scheme {
    /// As TUF metadata spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Ed25519 => "ed25519",
            Scheme::EcdsaP256 => "ecdsa-sha2-nistp256",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Scheme, String> {
        [Scheme::Ed25519, Scheme::EcdsaP256]
            .into_iter()
            .find(|scheme| scheme.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "'{}' is not a supported signature scheme (ed25519 or ecdsa-sha2-nistp256)",
                    text.escape_debug()
                )
            })
    }
}

/// A private key.
pub enum SecretKey {
    /// Ed25519.
    Ed25519(KeyPair),
    /// ECDSA on the curve P-256.
    P256(p256::SecretKey),
}

impl SecretKey {
    /// A new key from the system's randomness.
    pub fn generate(scheme: Scheme) -> SecretKey {
        match scheme {
            Scheme::Ed25519 => SecretKey::Ed25519(KeyPair::generate()),
            Scheme::EcdsaP256 => SecretKey::P256(p256::SecretKey::generate()),
        }
    }

    /// The Ed25519 key that a seed of 32 bytes stands for.
    pub fn from_seed(seed: [u8; 32]) -> SecretKey {
        SecretKey::Ed25519(KeyPair::from_seed(Seed::new(seed)))
    }
}

impl Sign for SecretKey {
    fn public(&self) -> Value {
        match self {
            SecretKey::Ed25519(pair) => ed25519_public(&pair.pk),
            SecretKey::P256(key) => p256_public(&key.public_key()),
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        Ok(match self {
            SecretKey::Ed25519(pair) => pair.sk.sign(message, None).to_vec(),
            SecretKey::P256(key) => {
                // Deterministic, by RFC 6979.
                let signature: p256::ecdsa::DerSignature =
                    p256::ecdsa::SigningKey::from(key).sign(message);
                signature.as_bytes().to_vec()
            }
        })
    }
}

/// The TUF key object of an Ed25519 key.
pub fn ed25519_public(public: &[u8; 32]) -> Value {
    let scheme = Scheme::Ed25519.as_str();
    json!({"keytype": "ed25519", "scheme": scheme, "keyval": {"public": hex(public)}})
}

/// The TUF key object of a key on the curve P-256.
pub fn p256_public(public: &p256::PublicKey) -> Value {
    // A point that is one has an encoding always.
    let pem = public.to_public_key_pem(LineEnding::LF).unwrap_or_default();
    let scheme = Scheme::EcdsaP256.as_str();
    json!({"keytype": "ecdsa", "scheme": scheme, "keyval": {"public": pem}})
}

/// The id of a public key: the digest of its canonical form, as TUF's specification recommends.
pub fn key_id(public: &Value) -> String {
    // Text has a canonical form always.
    Digest::of(&canonical(public).unwrap_or_default()).to_string()
}

/// What makes signatures with one key.
pub trait Sign {
    /// The public half as a TUF key object.
    fn public(&self) -> Value;

    /// The key's id.
    fn id(&self) -> String {
        key_id(&self.public())
    }

    /// The key's signature of a message.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>>;
}

/// Metadata: the value and a signature of each signer. The error says what in the value cannot be signed, or
/// who did not sign it.
pub fn sign(signed: &Value, signers: &[&impl Sign]) -> Result<Vec<u8>> {
    let message = canonical(signed).map_err(Error::new)?;
    let mut signatures = Vec::new();
    for signer in signers {
        signatures.push(json!({"keyid": signer.id(), "sig": hex(&signer.sign(&message)?)}));
    }
    // Compact: appliances hold the text in memory.
    let mut bytes = serde_json::to_vec(&json!({"signatures": signatures, "signed": signed}))
        .doing(|| "writing the JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}
