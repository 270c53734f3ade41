//! Small files of JSON that end with their own checksum: a bit that flips in one of them is found when it is read.
//!
//! The checksum is the object's last member, so that the file stays JSON, and readers that do not know it can read it.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::read_if_there;
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, Result};
use qx_release::json;

/// The last member: of everything before it.
const MEMBER: &str = r#","sha256":""#;
const END: &str = r#""}"#;
/// The length of a digest in hexadecimal.
const DIGEST: usize = 64;

/// Writes an object with its checksum.
pub(super) fn write(path: &Path, object: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(object).doing(|| format!("writing {}", path.display()))?;
    durable::write(path, &with_checksum(text))
}

/// Reads it; `None` if there is no such file. One without a checksum, of an earlier version, is taken as it is.
pub(super) fn read<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<Option<T>> {
    let Some(bytes) = read_if_there(path, limit)? else {
        return Ok(None);
    };
    match intact(&bytes).and_then(|()| json::parse(&bytes)) {
        Ok(object) => Ok(Some(object)),
        Err(why) => Err(Error::new(format!("reading {}: {why}", path.display()))),
    }
}

fn with_checksum(mut text: Vec<u8>) -> Vec<u8> {
    // The end of the object comes after it.
    text.pop();
    let checksum = Digest::of(&text);
    text.extend(format!("{MEMBER}{checksum}{END}").bytes());
    text
}

/// Whether the checksum is right, or there is none: one that has lost its name, or its value, is neither.
fn intact(bytes: &[u8]) -> Result<(), String> {
    let before = bytes.len().checked_sub(MEMBER.len() + DIGEST + END.len());
    let Some((text, checksum)) = before.map(|at| bytes.split_at(at)) else {
        return Ok(());
    };
    let (name, value) = checksum.split_at(MEMBER.len());
    let named = name == MEMBER.as_bytes();
    let matches = value.starts_with(Digest::of(text).to_string().as_bytes());
    match named == matches {
        true => Ok(()),
        false => Err("its checksum does not match".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_flipped_bit_is_found() {
        let object = json!({"format": 1, "text": "a \"text\"", "list": [1, {"b": null}]});
        let text = with_checksum(serde_json::to_vec(&object).unwrap());
        let sound = |text: &[u8]| intact(text).and_then(|()| json::parse::<Value>(text));
        let read = sound(&text).unwrap();
        assert_eq!(read["list"], object["list"]);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone();
                damaged[at] ^= 1 << bit;
                assert!(sound(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn one_without_a_checksum_is_read() {
        for text in ["{}", r#"{"format":1}"#] {
            assert!(intact(text.as_bytes()).is_ok());
        }
        let long = json!({"reason": "x".repeat(200)}).to_string();
        assert!(intact(long.as_bytes()).is_ok());
    }
}
