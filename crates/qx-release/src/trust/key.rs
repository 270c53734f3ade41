//! Public keys and signatures.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ct_codecs::{Base64, Decoder};
use ed25519_compact::VerifyingState;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use serde_json::Value;

use super::canonical;
use super::limits::Limits;
use crate::digest::{Digest, Hasher};
use crate::json;

/// A public key of a scheme that this version knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Ed25519 (RFC 8032).
    Ed25519([u8; 32]),
    /// ECDSA over NIST P-256 with SHA-256: a point of the curve, uncompressed (SEC 1), so that each key has one form.
    P256([u8; 65]),
}

impl Key {
    /// The key in the text of a TUF key object; `None` for a scheme or an encoding that this version does not know.
    /// Such a key never counts, and never keeps the others from counting.
    pub fn parse(text: &str) -> Option<Key> {
        let [keytype, scheme, keyval] = json::fields(text, ["keytype", "scheme", "keyval"]).ok()?;
        let [public] = json::fields(keyval?, ["public"]).ok()?;
        let string = |text: Option<&'_ str>| json::string(text?).ok().map(Cow::into_owned);
        let public = string(public)?;
        match (&*string(keytype)?, &*string(scheme)?) {
            ("ed25519", "ed25519") => Some(Key::Ed25519(unhex(&public)?.try_into().ok()?)),
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                let point = spki_point(&public)?;
                p256_key(&point).map(|_| Key::P256(point))
            }
            _ => None,
        }
    }

    /// The same from a value.
    pub fn from_value(value: &Value) -> Option<Key> {
        Key::parse(&value.to_string())
    }

    /// Whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Key::Ed25519(public) => ed25519_begin(public, signature).is_some_and(|mut state| {
                state.absorb(message);
                state.verify().is_ok()
            }),
            Key::P256(point) => p256_verifies(point, &Digest::of(message), signature),
        }
    }
}

/// The start of each SubjectPublicKeyInfo (RFC 5480) with an uncompressed point of P-256, which follows.
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The point in a SubjectPublicKeyInfo, PEM.
fn spki_point(pem: &str) -> Option<[u8; 65]> {
    let body = pem
        .trim()
        .strip_prefix("-----BEGIN PUBLIC KEY-----")?
        .strip_suffix("-----END PUBLIC KEY-----")?;
    let der = Base64::decode_to_vec(body, Some(b" \t\r\n")).ok()?;
    der.strip_prefix(&SPKI)?.try_into().ok()
}

fn p256_key(point: &[u8; 65]) -> Option<p256::ecdsa::VerifyingKey> {
    p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()
}

fn p256_verifies(point: &[u8; 65], digest: &Digest, signature: &[u8]) -> bool {
    let signature = p256::ecdsa::Signature::from_der(signature);
    match (p256_key(point), signature) {
        (Some(key), Ok(signature)) => key.verify_prehash(digest.as_bytes(), &signature).is_ok(),
        _ => false,
    }
}

fn ed25519_begin(public: &[u8; 32], signature: &[u8]) -> Option<VerifyingState> {
    let signature = ed25519_compact::Signature::from_slice(signature).ok()?;
    let public = ed25519_compact::PublicKey::new(*public);
    public.verify_incremental(&signature).ok()
}

/// Who speaks for a role, as its delegator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifiers {
    /// The role's keys of known schemes, by declared id.
    pub keys: Keys,
    /// How many of them must sign; at least 1.
    pub threshold: u64,
}

impl Verifiers {
    /// How many distinct public keys have signed the canonical form of a JSON text: one key under two ids counts
    /// once. The form is made once, piece by piece, and never held. The error says why there is none.
    pub fn count(
        &self,
        text: &str,
        signatures: &[Signature],
        limits: &Limits,
    ) -> Result<usize, String> {
        let (mut ed25519, mut p256) = (Vec::new(), Vec::new());
        for signature in signatures {
            match self.keys.get(&signature.keyid) {
                Some(key @ Key::Ed25519(public)) => {
                    let state = ed25519_begin(public, &signature.bytes);
                    ed25519.extend(state.map(|state| (key, state)));
                }
                Some(key @ Key::P256(point)) => p256.push((key, point, &signature.bytes)),
                None => {}
            }
        }
        let mut sha256 = Hasher::default();
        canonical::write(text, limits, &mut |bytes| {
            for (_, state) in &mut ed25519 {
                state.absorb(bytes);
            }
            if !p256.is_empty() {
                sha256.update(bytes);
            }
        })?;
        let digest = sha256.digest();
        let ed25519 = ed25519.iter().filter(|(_, state)| state.verify().is_ok());
        let p256 = p256
            .iter()
            .filter(|(_, point, signature)| p256_verifies(point, &digest, signature));
        let mut valid: Vec<&Key> = Vec::new();
        for key in ed25519
            .map(|(key, _)| *key)
            .chain(p256.map(|(key, ..)| *key))
        {
            // One key under two ids counts once.
            if !valid.contains(&key) {
                valid.push(key);
            }
        }
        Ok(valid.len())
    }
}

/// The keys of a delegator, by the id that it declares for each. Ids are names here: they are looked up, never
/// recomputed, for repositories exist whose ids were computed in another way.
pub type Keys = BTreeMap<String, Key>;

/// A signature as metadata carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The declared id of the key.
    pub keyid: String,
    /// Empty where it could not be decoded: it does not count then.
    pub bytes: Vec<u8>,
}

/// Bytes from hexadecimal digits of either case.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Signatures over `{"é":[1,"\""]}`, made with securesystemslib.
    const KNOWN: [(&str, &str, &str, &str); 3] = [
        (
            "ed25519",
            "ed25519",
            "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
            "320b48b5e1d320633e9c35a2fda59230d683f378411e2470dfc446d86a2325d31a04c67a0c41ed490a8b9bcb61e5156b0620423585c566fc4ca15cb853460901",
        ),
        (
            "ecdsa",
            "ecdsa-sha2-nistp256",
            "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEPtsBvC71PAWNVyAUIpABUtmZ4gtD\nREFPnX9DSuBqgZgwEgwMtDVmSBTdAN/2EbrAemlBH79Ej38GbtvrQ74D9Q==\n-----END PUBLIC KEY-----\n",
            "30440220711b7a7ff9ee54ec8f3f749ffb130950fcadc2507db185f9b27f6a52156ac654022066a4e30e1631ec587d1373f0c030302b4baf9decb4fd2e1b01169248e3107a8f",
        ),
        (
            "ecdsa-sha2-nistp256",
            "ecdsa-sha2-nistp256",
            "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEPtsBvC71PAWNVyAUIpABUtmZ4gtD\nREFPnX9DSuBqgZgwEgwMtDVmSBTdAN/2EbrAemlBH79Ej38GbtvrQ74D9Q==\n-----END PUBLIC KEY-----\n",
            "304402205c58b01afec36efdce599028642dcaabfabe35e43d9f33e5c0df0aa946f82328022064c3ea18d693a2673130ef7c4b90f141fa5fe0403a892dfe94b393a8957cb599",
        ),
    ];

    fn counted(key: Value, text: &str, signature: &str) -> usize {
        let keys = Key::from_value(&key).into_iter();
        let verifiers = Verifiers {
            keys: keys.map(|key| ("id".to_owned(), key)).collect(),
            threshold: 1,
        };
        let signature = Signature {
            keyid: "id".into(),
            bytes: unhex(signature).unwrap_or_default(),
        };
        let limits = Limits::default();
        verifiers.count(text, &[signature], &limits).unwrap()
    }

    #[test]
    fn a_known_answer_of_rfc_8032() {
        // Test 2 of section 7.1.
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        let key = Key::from_value(
            &json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}}),
        )
        .unwrap();
        let signature = unhex(signature).unwrap();
        assert!(key.verifies(&[0x72], &signature));
        assert!(!key.verifies(&[0x73], &signature));
        assert!(!key.verifies(&[0x72], &signature[1..]));
        assert!(!key.verifies(&[0x72], &[]));
    }

    #[test]
    fn known_answers_of_securesystemslib() {
        let text = "{\"é\":[1,\"\\\"\"]}";
        for (keytype, scheme, public, signature) in KNOWN {
            let key = json!({"keytype": keytype, "scheme": scheme, "keyval": {"public": public}});
            assert_eq!(counted(key.clone(), text, signature), 1, "{keytype}");
            assert_eq!(counted(key.clone(), "{\"é\":[2,\"\\\"\"]}", signature), 0);
            for bad in [&signature[2..], &signature[..signature.len() - 2], "", "zz"] {
                assert_eq!(counted(key.clone(), text, bad), 0, "{keytype} {bad}");
            }
        }
    }

    #[test]
    fn unknown_keys_are_none() {
        let good = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        let p256 = KNOWN[1].2;
        // The right form, and yet no point of the curve.
        let off = p256.replace("74D9Q", "74D9g");
        for value in [
            json!({"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "x"}}),
            json!({"keytype": "ed25519", "scheme": "ed448", "keyval": {"public": good}}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "12"}}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "zz"}}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": 1}}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": p256}}),
            json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp384", "keyval": {"public": p256}}),
            json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": off}}),
            json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": good}}),
            json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": &p256[..80]}}),
            json!({"scheme": "ed25519"}),
            json!(7),
        ] {
            assert_eq!(Key::from_value(&value), None, "{value}");
        }
        let whole = json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": good}});
        assert!(Key::parse(&format!("{whole} ")).is_some());
        assert_eq!(Key::parse(&format!("{whole}}}")), None);
    }

    #[test]
    fn hexadecimal_digits_round_trip() {
        assert_eq!(hex(&unhex("00ffA5").unwrap()), "00ffa5");
        for bad in ["0", "0g", "+1", "é"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
