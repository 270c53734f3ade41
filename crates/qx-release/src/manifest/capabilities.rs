//! What a program may do that else only root may: its file capabilities, see capabilities(7).

use std::fmt;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::text;

/// Capabilities that a program has whoever starts it: permitted and effective. As text `cap_net_bind_service`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Capabilities(CapabilitySet);

/// The extended attribute that holds them.
pub const ATTRIBUTE: &str = "security.capability";
/// Its second format (linux/capability.h): a header of flags, then the permitted and inheritable sets' lower and upper halves.
const REVISION_2: u32 = 0x0200_0000;
const EFFECTIVE: u32 = 1;
/// The length of the attribute, in bytes, in this format; the third one, of another user namespace, is longer.
pub const LENGTH: usize = 20;

impl Capabilities {
    /// None.
    pub const NONE: Capabilities = Capabilities(CapabilitySet::empty());

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The attribute's value that gives a file these.
    pub fn attribute(self) -> [u8; LENGTH] {
        let bits = self.0.bits();
        let words = [
            REVISION_2 | EFFECTIVE,
            bits as u32,
            0,
            (bits >> 32) as u32,
            0,
        ];
        let mut bytes = [0; LENGTH];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What the attribute's value gives a file, if it is of this kind.
    pub fn of_attribute(value: &[u8]) -> Option<Capabilities> {
        let value: &[u8; LENGTH] = value.try_into().ok()?;
        let word = |at: usize| {
            let bytes = value[at..].first_chunk().copied();
            u64::from(u32::from_le_bytes(bytes.unwrap_or_default()))
        };
        let capabilities = Capabilities(CapabilitySet::from_bits_retain(word(4) | word(12) << 32));
        (capabilities.attribute() == *value).then_some(capabilities)
    }
}

impl Default for Capabilities {
    fn default() -> Capabilities {
        Capabilities::NONE
    }
}

impl TryFrom<Vec<String>> for Capabilities {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Capabilities, String> {
        let named = |name: &String| {
            let found = name
                .strip_prefix("cap_")
                .filter(|rest| !rest.contains(|c: char| c.is_ascii_uppercase()))
                .and_then(|rest| CapabilitySet::from_name(&rest.to_ascii_uppercase()));
            found.ok_or_else(|| {
                format!(
                    "'{}' is not a capability (such as \"cap_net_bind_service\", see capabilities(7))",
                    text::name(name)
                )
            })
        };
        let sets: Result<CapabilitySet, String> = names.iter().map(named).collect();
        sets.map(Capabilities)
    }
}

impl From<Capabilities> for Vec<String> {
    fn from(capabilities: Capabilities) -> Vec<String> {
        let names = capabilities.0.iter_names();
        names
            .map(|(name, _)| format!("cap_{}", name.to_ascii_lowercase()))
            .collect()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Vec::from(*self).join(",") {
            // One that a later kernel knows.
            names if names.is_empty() && !self.is_none() => write!(f, "{:#x}", self.0.bits()),
            names if names.is_empty() => f.write_str("none"),
            names => f.write_str(&names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(names: &[&str]) -> Result<Capabilities, String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        names.try_into()
    }

    #[test]
    fn names_are_those_of_the_manual() {
        let two = capabilities(&["cap_bpf", "cap_net_bind_service"]).unwrap();
        // In the kernel's order, each once.
        assert_eq!(two.to_string(), "cap_net_bind_service,cap_bpf");
        assert_eq!(
            serde_json::to_string(&two).unwrap(),
            r#"["cap_net_bind_service","cap_bpf"]"#
        );
        assert_eq!(
            capabilities(&["cap_bpf", "cap_bpf", "cap_net_bind_service"]),
            Ok(two)
        );
        assert_eq!(capabilities(&[]).unwrap().to_string(), "none");
        for wrong in [
            "net_raw",
            "CAP_NET_RAW",
            "cap_NET_RAW",
            "cap_all",
            "cap_net_raw=ep",
            "cap_",
            "",
        ] {
            let why = capabilities(&[wrong]).unwrap_err();
            assert!(why.contains("is not a capability"), "{wrong}: {why}");
        }
    }

    #[test]
    fn the_attribute_is_the_kernels() {
        // As setcap(8) writes `cap_net_bind_service,cap_net_raw=ep`, and `cap_bpf=ep`.
        for (names, bytes) in [
            (
                &["cap_net_bind_service", "cap_net_raw"][..],
                *b"\x01\0\0\x02\0\x24\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ),
            (
                &["cap_bpf"],
                *b"\x01\0\0\x02\0\0\0\0\0\0\0\0\x80\0\0\0\0\0\0\0",
            ),
        ] {
            let these = capabilities(names).unwrap();
            assert_eq!(these.attribute(), bytes);
            assert_eq!(Capabilities::of_attribute(&bytes), Some(these));
            // Not effective, inheritable too, an older and a newer format.
            for (at, byte) in [(0, 0), (8, 1), (3, 1), (3, 3)] {
                let mut other = bytes;
                other[at] = byte;
                assert_eq!(Capabilities::of_attribute(&other), None);
            }
            assert_eq!(Capabilities::of_attribute(&bytes[..12]), None);
        }
    }
}
