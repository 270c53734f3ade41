//! Keys in PEM, as openssl reads and writes them: PKCS#8 for private keys, SubjectPublicKeyInfo for public ones.

use ed25519_compact::{KeyPair, Seed};
use p256::pkcs8::EncodePrivateKey;
use pkcs8::der::Decode;
use pkcs8::der::asn1::{BitStringRef, OctetStringRef};
use pkcs8::spki::{AlgorithmIdentifierRef, AssociatedAlgorithmIdentifier};
use pkcs8::{
    Document, EncryptedPrivateKeyInfoRef, LineEnding, ObjectIdentifier, PrivateKeyInfoRef,
    SecretDocument, SubjectPublicKeyInfoRef,
};
use serde_json::Value;

use qx_release::trust::signing::{SecretKey, ed25519_public, p256_public};

const PRIVATE: &str = "PRIVATE KEY";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";

/// RFC 8410.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// RFC 8017.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// RFC 5480; the parameters name the curve.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// What the PEM file of a private key holds.
pub enum Private {
    /// A key.
    Plain(SecretKey),
    /// A key that a passphrase opens.
    Encrypted(Encrypted),
}

/// A private key that a passphrase opens.
pub struct Encrypted(SecretDocument);

/// Reads a private key. The error says what it is instead.
pub fn private(pem: &str) -> Result<Private, String> {
    let (label, document) =
        SecretDocument::from_pem(first_block(pem)).map_err(|e| no_pem(pem, &e))?;
    match label {
        PRIVATE => decode(&document).map(Private::Plain),
        ENCRYPTED => Ok(Private::Encrypted(Encrypted(document))),
        PUBLIC => Err("it is a public key; a private key is needed".into()),
        _ => Err(foreign(label)),
    }
}

impl Encrypted {
    /// The key; `None` if it is not this passphrase that opens it.
    pub fn open(&self, passphrase: &[u8]) -> Result<Option<SecretKey>, String> {
        let info = EncryptedPrivateKeyInfoRef::try_from(self.0.as_bytes())
            .map_err(|e| format!("it is not an encrypted PKCS#8 key: {e}"))?;
        match info
            .encryption_algorithm
            .decrypt(passphrase, info.encrypted_data.as_bytes())
        {
            // Bytes decrypted with a wrong passphrase have the right padding once in 256 times.
            Ok(bytes) => match SecretDocument::try_from(bytes) {
                Ok(document) => decode(&document).map(Some),
                Err(_) => Ok(None),
            },
            Err(pkcs8::pkcs5::Error::DecryptFailed) => Ok(None),
            Err(error) => Err(format!(
                "its encryption is not supported (supported: PBES2 with scrypt or PBKDF2, and AES): {error}"
            )),
        }
    }
}

/// Writes a private key, encrypted if there is a passphrase: with AES-256-CBC, by scrypt with a cost that openssl's
/// default limits allow.
pub fn write_private(key: &SecretKey, passphrase: Option<&[u8]>) -> Result<String, String> {
    let document = match key {
        SecretKey::Ed25519(pair) => {
            // RFC 8410: an octet string in the octet string.
            let mut seed = vec![4, 32];
            seed.extend_from_slice(&*pair.sk.seed());
            let algorithm = AlgorithmIdentifierRef {
                oid: ED25519,
                parameters: None,
            };
            OctetStringRef::new(&seed)
                .map_err(pkcs8::Error::from)
                .and_then(|seed| PrivateKeyInfoRef::new(algorithm, seed).to_pkcs8_der())
        }
        SecretKey::P256(key) => key.to_pkcs8_der(),
    };
    let pem = document.and_then(|document| match passphrase {
        None => Ok(document.to_pem(PRIVATE, LineEnding::LF)?),
        Some(passphrase) => PrivateKeyInfoRef::try_from(document.as_bytes())?
            .encrypt(passphrase)
            .and_then(|document| Ok(document.to_pem(ENCRYPTED, LineEnding::LF)?)),
    });
    pem.map(|pem| pem.to_string()).map_err(|e| e.to_string())
}

/// Reads a public key as a TUF key object. The error says what it is instead.
pub fn public(pem: &str) -> Result<Value, String> {
    let (label, document) = Document::from_pem(first_block(pem)).map_err(|e| no_pem(pem, &e))?;
    match label {
        PUBLIC => {}
        PRIVATE | ENCRYPTED => return Err("it is a private key; a public key is needed".into()),
        _ => return Err(foreign(label)),
    }
    let info = SubjectPublicKeyInfoRef::from_der(document.as_bytes())
        .map_err(|e| format!("it is not a public key: {e}"))?;
    if info.algorithm.oid == ED25519 {
        let bytes = info
            .subject_public_key
            .as_bytes()
            .and_then(|b| <&[u8; 32]>::try_from(b).ok());
        let bytes = bytes.ok_or("its Ed25519 key does not have 32 bytes")?;
        return Ok(ed25519_public(bytes));
    }
    known(&info.algorithm)?;
    p256::PublicKey::try_from(info)
        .map(|key| p256_public(&key))
        .map_err(|e| format!("it is not a key on the curve P-256: {e}"))
}

/// A TUF key object's key in PEM.
pub fn write_public(key: &Value) -> Result<String, String> {
    let public = key["keyval"]["public"].as_str().unwrap_or_default();
    if key["keytype"] != "ed25519" {
        return Ok(public.to_owned());
    }
    let bytes = qx_release::trust::key::unhex(public).unwrap_or_default();
    let algorithm = AlgorithmIdentifierRef {
        oid: ED25519,
        parameters: None,
    };
    let pem = BitStringRef::from_bytes(&bytes)
        .and_then(|subject_public_key| {
            Document::encode_msg(&SubjectPublicKeyInfoRef {
                algorithm,
                subject_public_key,
            })
        })
        .and_then(|document| document.to_pem(PUBLIC, LineEnding::LF));
    pem.map_err(|e| e.to_string())
}

fn decode(document: &SecretDocument) -> Result<SecretKey, String> {
    let info = PrivateKeyInfoRef::try_from(document.as_bytes())
        .map_err(|e| format!("it is not a PKCS#8 key: {e}"))?;
    if info.algorithm.oid == ED25519 {
        let seed = <&OctetStringRef>::from_der(info.private_key.as_bytes())
            .ok()
            .and_then(|seed| Seed::from_slice(seed.as_bytes()).ok())
            .ok_or("its Ed25519 key does not have 32 bytes")?;
        return Ok(SecretKey::Ed25519(KeyPair::from_seed(seed)));
    }
    known(&info.algorithm)?;
    p256::SecretKey::try_from(info)
        .map(SecretKey::P256)
        .map_err(|e| format!("it is not a key on the curve P-256: {e}"))
}

/// Refuses all algorithms but that of P-256.
fn known(algorithm: &AlgorithmIdentifierRef) -> Result<(), String> {
    let p256 = p256::SecretKey::ALGORITHM_IDENTIFIER;
    let curve = algorithm.parameters_oid().ok();
    if algorithm.oid == EC && curve == p256.parameters {
        return Ok(());
    }
    let what = match algorithm.oid {
        RSA => "an RSA key".to_owned(),
        EC => "a key on another curve than P-256".to_owned(),
        oid => format!("a key of the algorithm {oid}"),
    };
    Err(format!(
        "it is {what}; only ed25519 and ecdsa-sha2-nistp256 are supported"
    ))
}

/// Up to the end of the first block, as openssl reads it: version 0.1 wrote the public key behind the private one.
fn first_block(pem: &str) -> &str {
    let end = pem.find("-----END ").and_then(|at| {
        let line = pem[at..].find('\n')?;
        Some(at + line + 1)
    });
    end.map_or(pem, |end| &pem[..end])
}

fn no_pem(pem: &str, why: &impl std::fmt::Display) -> String {
    // `openssl ecparam` puts the curve in front of the key, in a block of its own.
    if pem
        .trim_start()
        .starts_with("-----BEGIN EC PARAMETERS-----")
    {
        return foreign("EC PARAMETERS");
    }
    if !pem.contains("-----BEGIN ") {
        return "it is not a key in PEM".into();
    }
    format!("it is not a key in PEM: {why}")
}

fn foreign(label: &str) -> String {
    match label {
        "EC PRIVATE KEY" | "EC PARAMETERS" | "RSA PRIVATE KEY" => format!(
            "it is in an older format, {label}; `openssl pkcs8 -topk8 -nocrypt` makes PKCS#8 of it"
        ),
        _ => format!("it is not a key: the PEM says {label}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_version_0_1_is_read() {
        let pem = "\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAXhA4CxZjuK3bt2a8xL+0SrOcqP9+vUpUvF/vBL2wg3
-----END PRIVATE KEY-----
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAUT2HwXKOWE2ZcJw4ReF8fJakCmtHUGulxJ+Sew2CX7E=
-----END PUBLIC KEY-----
";
        assert!(matches!(
            private(pem),
            Ok(Private::Plain(SecretKey::Ed25519(_)))
        ));
        let (_, behind) = pem.split_at(pem.find("-----BEGIN PUBLIC").unwrap());
        assert!(public(behind).is_ok());
        assert!(private(&pem.replace("END PRIVATE", "END OTHER")).is_err());
    }
}
