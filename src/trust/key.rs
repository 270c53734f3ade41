//! Public keys and signatures.

use std::collections::BTreeMap;

use serde_json::Value;

/// The most keys that root metadata may list.
pub const MAX_KEYS: usize = 1000;

/// A public key of a scheme that this version knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Ed25519 (RFC 8032).
    Ed25519([u8; 32]),
}

impl Key {
    /// The key in a TUF key object; `None` for a scheme or an encoding that this version does not know. Such a
    /// key never counts, and never keeps the others from counting.
    pub fn from_value(value: &Value) -> Option<Key> {
        let text = |name: &str| value.get(name)?.as_str();
        match (text("keytype")?, text("scheme")?) {
            ("ed25519", "ed25519") => {
                let public = value.get("keyval")?.get("public")?.as_str()?;
                Some(Key::Ed25519(unhex(public)?.try_into().ok()?))
            }
            _ => None,
        }
    }

    /// Whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Key::Ed25519(public) => ed25519_compact::Signature::from_slice(signature)
                .and_then(|signature| {
                    ed25519_compact::PublicKey::new(*public).verify(message, &signature)
                })
                .is_ok(),
        }
    }
}

/// The keys of a root, by the id that it declares for each. Ids are names here: they are looked up, never
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
    fn unknown_keys_are_none() {
        let good = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        for value in [
            json!({"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "x"}}),
            json!({"keytype": "ed25519", "scheme": "ed448", "keyval": {"public": good}}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "12"}}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "zz"}}),
            json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": 1}}),
            json!({"scheme": "ed25519"}),
            json!(7),
        ] {
            assert_eq!(Key::from_value(&value), None, "{value}");
        }
    }

    #[test]
    fn hexadecimal_digits_round_trip() {
        assert_eq!(hex(&unhex("00ffA5").unwrap()), "00ffa5");
        for bad in ["0", "0g", "+1", "é"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
