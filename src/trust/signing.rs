//! The other side of [`super::key`]: private keys, and making signed metadata.

use ed25519_compact::{KeyPair, Seed};
use serde_json::{Value, json};

use super::canonical::canonical;
use super::key::hex;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};

/// A private key.
pub struct SecretKey(KeyPair);

impl SecretKey {
    /// A new key from the system's randomness.
    pub fn generate() -> SecretKey {
        SecretKey(KeyPair::generate())
    }

    /// The key that a seed of 32 bytes stands for.
    pub fn from_seed(seed: [u8; 32]) -> SecretKey {
        SecretKey(KeyPair::from_seed(Seed::new(seed)))
    }

    /// Reads a PKCS#8 key in PEM.
    pub fn from_pem(pem: &str) -> Result<SecretKey, String> {
        KeyPair::from_pem(pem)
            .map(SecretKey)
            .map_err(|e| format!("it is no Ed25519 private key (PKCS#8, PEM): {e}"))
    }

    /// As PKCS#8 in PEM.
    pub fn to_pem(&self) -> String {
        self.0.to_pem()
    }
}

impl Sign for SecretKey {
    fn public(&self) -> Value {
        json!({
            "keytype": "ed25519",
            "scheme": "ed25519",
            "keyval": {"public": hex(&*self.0.pk)},
        })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        Ok(self.0.sk.sign(message, None).to_vec())
    }
}

/// What makes signatures with one key.
pub trait Sign {
    /// The public half as a TUF key object.
    fn public(&self) -> Value;

    /// The key's id: the digest of its public half's canonical form, as TUF's specification recommends.
    fn id(&self) -> String {
        // Text has a canonical form always.
        let form = canonical(&self.public()).unwrap_or_default();
        Digest::of(&form).to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_survives_pem() {
        let key = SecretKey::from_seed([7; 32]);
        let again = SecretKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.id(), again.id());
        assert!(SecretKey::from_pem("-----BEGIN PRIVATE KEY-----\n").is_err());
    }
}
