//! Slots and sets: where a complete set of components can be.

use std::fmt;
use std::ops::Not;

use semver::Version;
use serde::{Deserialize, Serialize};

use qx_release::digest::Digest;

/// One of the two directories that hold an installed release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `slots/a`
    A,
    /// `slots/b`
    B,
}

impl Slot {
    /// Both of them.
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    /// The directory's name below `slots/`.
    pub fn name(self) -> &'static str {
        match self {
            Slot::A => "a",
            Slot::B => "b",
        }
    }
}

impl Not for Slot {
    type Output = Slot;

    /// The other slot.
    fn not(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A complete set of components: the factory set, or the release in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Set {
    /// What the image shipped. The priority link is absent.
    Factory,
    /// The release in slot a.
    A,
    /// The release in slot b.
    B,
}

impl Set {
    /// The slot that holds it; none for the factory set.
    pub fn slot(self) -> Option<Slot> {
        match self {
            Set::Factory => None,
            Set::A => Some(Slot::A),
            Set::B => Some(Slot::B),
        }
    }

    /// The slot that the next release goes to: never the one in use.
    pub fn alternate(self) -> Slot {
        self.slot().map_or(Slot::A, Slot::not)
    }
}

impl From<Slot> for Set {
    fn from(slot: Slot) -> Set {
        match slot {
            Slot::A => Set::A,
            Slot::B => Set::B,
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot() {
            None => f.write_str("factory set"),
            Some(slot) => write!(f, "slot {slot}"),
        }
    }
}

/// A set and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Where it is.
    pub set: Set,
    /// Its version; unknown for a factory set without a manifest.
    pub version: Option<Version>,
    /// The digest of its manifest; unknown for a factory set without one.
    pub manifest: Option<Digest>,
}

impl Installed {
    /// A factory set of which nothing is known but that the image has it.
    pub fn unknown_factory() -> Installed {
        Installed::unknown(Set::Factory)
    }

    /// A set of which nothing is known but where it is.
    pub fn unknown(set: Set) -> Installed {
        Installed {
            set,
            version: None,
            manifest: None,
        }
    }

    /// Whether this is a later version than `other`. A set of unknown version is older than any known.
    pub fn newer_than(&self, other: &Installed) -> bool {
        match (&self.version, &other.version) {
            (Some(mine), Some(theirs)) => mine.cmp_precedence(theirs).is_gt(),
            (mine, None) => mine.is_some(),
            (None, Some(_)) => false,
        }
    }
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{version} ({})", self.set),
            None => write!(f, "{} of unknown version", self.set),
        }
    }
}

/// Where the priority link points, as seen on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// There is none: the factory set.
    Absent,
    /// It points to a slot.
    To(Slot),
    /// Something that qx-update never makes.
    Foreign(String),
}

impl Link {
    /// Whether it selects this set.
    pub fn selects(&self, set: Set) -> bool {
        match self {
            Link::Absent => set == Set::Factory,
            Link::To(slot) => set == Set::from(*slot),
            Link::Foreign(_) => false,
        }
    }
}

/// What verifying a slot found: its files against its manifest, its manifest against its seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Complete and as it was signed.
    Good(Installed),
    /// Nothing is in it.
    Empty,
    /// Why it must not be run.
    Damaged(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alternate_slot_is_never_the_one_in_use() {
        assert_eq!(Set::Factory.alternate(), Slot::A);
        for slot in Slot::BOTH {
            assert_eq!(Set::from(slot).alternate(), !slot);
            assert_ne!(!slot, slot);
            assert!(Link::To(slot).selects(slot.into()));
            assert!(!Link::To(slot).selects(Set::Factory));
            assert!(!Link::To(slot).selects((!slot).into()));
        }
        assert!(Link::Absent.selects(Set::Factory));
        assert!(!Link::Foreign("x".into()).selects(Set::Factory));
    }

    #[test]
    fn newer_goes_by_semantic_precedence() {
        let at = |v: Option<&str>| Installed {
            set: Set::Factory,
            version: v.map(|v| v.parse().unwrap()),
            manifest: None,
        };
        for (new, old, expected) in [
            (Some("1.0.1"), Some("1.0.0"), true),
            (Some("1.0.0"), Some("1.0.0"), false),
            (Some("1.0.0"), Some("1.0.0-rc.1"), true),
            (Some("1.0.0-rc.10"), Some("1.0.0-rc.9"), true),
            // Build metadata has no precedence.
            (Some("1.0.0+2"), Some("1.0.0+1"), false),
            (Some("1.0.0"), None, true),
            (None, Some("1.0.0"), false),
            (None, None, false),
        ] {
            assert_eq!(at(new).newer_than(&at(old)), expected, "{new:?} {old:?}");
        }
    }
}
