//! What tells one operation from another, and one boot from another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The random id of an operation. It is part of file names, so a record with anything else in its place is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OperationId(u64);

impl OperationId {
    /// The operation with this number.
    pub fn new(number: u64) -> OperationId {
        OperationId(number)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for OperationId {
    type Err = String;

    fn from_str(text: &str) -> Result<OperationId, String> {
        let digits =
            text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(number) if digits => Ok(OperationId(number)),
            _ => Err(format!(
                "'{}' is not an operation id (16 hexadecimal digits)",
                qx_release::text::name(text)
            )),
        }
    }
}

impl TryFrom<String> for OperationId {
    type Error = String;

    fn try_from(text: String) -> Result<OperationId, String> {
        text.parse()
    }
}

impl From<OperationId> for String {
    fn from(id: OperationId) -> String {
        id.to_string()
    }
}

/// A boot, by the kernel's boot id; the default is an unknown one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(String);

impl From<&str> for BootId {
    fn from(name: &str) -> BootId {
        BootId(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_operation_is_no_path() {
        let id: OperationId = "00ff00000000abcd".parse().unwrap();
        assert_eq!(id.to_string(), "00ff00000000abcd");
        for bad in [
            "",
            "1",
            "../../../../../..",
            "00FF00000000ABCD",
            "+0ff00000000abcd",
            "00ff00000000abcde",
        ] {
            assert!(bad.parse::<OperationId>().is_err(), "{bad}");
        }
    }
}
