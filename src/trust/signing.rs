//! The other side of [`super::key`]: private keys, and making signed metadata.

use ed25519_compact::{KeyPair, Seed};
use serde_json::{Value, json};

use super::canonical::canonical;
use super::key::hex;
use crate::digest::Digest;

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

    /// The public half as a TUF key object.
    pub fn public(&self) -> Value {
        json!({
            "keytype": "ed25519",
            "scheme": "ed25519",
            "keyval": {"public": hex(&*self.0.pk)},
        })
    }

    /// The key's id: the digest of its public half's canonical form, as TUF's specification recommends.
    pub fn id(&self) -> String {
        // Text has a canonical form always.
        let form = canonical(&self.public()).unwrap_or_default();
        Digest::of(&form).to_string()
    }

    fn sign(&self, message: &[u8]) -> String {
        hex(&*self.0.sk.sign(message, None))
    }
}

/// Metadata: the value and a signature of each key. The error says what in the value cannot be signed.
pub fn sign(signed: &Value, keys: &[&SecretKey]) -> Result<Vec<u8>, String> {
    let message = canonical(signed)?;
    let signatures: Vec<Value> = keys
        .iter()
        .map(|key| json!({"keyid": key.id(), "sig": key.sign(&message)}))
        .collect();
    let mut bytes = serde_json::to_vec_pretty(&json!({"signatures": signatures, "signed": signed}))
        .map_err(|e| e.to_string())?;
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
