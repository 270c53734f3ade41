//! The rules of The Update Framework (TUF, specification 1.0.x), as an appliance applies them. Bytes in,
//! trusted values or an error out: nothing here reads a file, a socket or a clock.
//!
//! [`TrustedSet`] holds what is trusted so far and takes metadata in the order of the client workflow: the
//! chain of roots, then the timestamp, the snapshot and the targets. Whatever it accepts may be persisted;
//! whatever it refuses must be forgotten.
//!
//! Two traps that clients fell into: signatures are over the *canonical form of the parsed value*, so that fields
//! unknown to this version stay signed; and what is stored are the bytes received, never a re-serialised value.

#[cfg(feature = "verify")]
pub mod canonical;
pub mod clock;
#[cfg(feature = "verify")]
pub mod delegation;
#[cfg(feature = "verify")]
pub mod described;
#[cfg(feature = "verify")]
pub mod key;
mod limits;
#[cfg(feature = "verify")]
pub mod metadata;
#[cfg(feature = "verify")]
pub mod role_keys;
#[cfg(feature = "verify")]
pub mod search;
#[cfg(feature = "signing")]
pub mod signing;
#[cfg(feature = "verify")]
mod trusted_set;
mod versions;

#[cfg(feature = "forge")]
pub mod forge;
#[cfg(all(test, feature = "verify"))]
mod properties;

use std::fmt;

pub use limits::Limits;
#[cfg(feature = "verify")]
pub use trusted_set::{SnapshotCopy, TrustedSet};
pub use versions::Versions;

/// The four top-level roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Says which keys speak for each role.
    Root,
    /// Says which snapshot is the latest, often and for a short time.
    Timestamp,
    /// Says which targets metadata belong together.
    Snapshot,
    /// Says what is published: names, lengths and digests.
    Targets,
}

impl Role {
    /// All of them, in the order in which they are trusted.
    pub const ALL: [Role; 4] = [Role::Root, Role::Timestamp, Role::Snapshot, Role::Targets];

    /// As metadata and file names spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Root => "root",
            Role::Timestamp => "timestamp",
            Role::Snapshot => "snapshot",
            Role::Targets => "targets",
        }
    }

    /// The longest metadata of this role that are accepted, in bytes.
    pub fn max_bytes(self, limits: &Limits) -> u64 {
        match self {
            Role::Root => limits.root_bytes,
            Role::Timestamp => limits.timestamp_bytes,
            Role::Snapshot => limits.snapshot_bytes,
            Role::Targets => limits.targets_bytes,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why metadata or a target is not trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It is not metadata of this role at all.
    Malformed {
        /// The role.
        role: Role,
        /// What is wrong with it.
        why: String,
    },
    /// Too few of the role's keys have signed it.
    Signatures {
        /// The role.
        role: Role,
        /// Who names the keys.
        by: String,
        /// How many distinct keys have signed.
        valid: usize,
        /// How many are needed.
        threshold: u64,
    },
    /// It is older than what was trusted before, or not the version that was announced.
    Version {
        /// The role.
        role: Role,
        /// The version that was offered.
        offered: u64,
        /// What it must be.
        rule: VersionRule,
    },
    /// The snapshot lists metadata that are older than those that were listed before.
    ListsOlder {
        /// The metadata file that is listed.
        file: String,
        /// Its version in the snapshot that was offered.
        offered: u64,
        /// Its version in the snapshot that was trusted before.
        trusted: u64,
    },
    /// Its time is over.
    Expired {
        /// The role.
        role: Role,
        /// Its version.
        version: u64,
        /// When it expired (RFC 3339).
        expires: String,
        /// What the time is taken to be (RFC 3339).
        now: String,
    },
    /// The snapshot does not list what it must, or no longer lists what it did.
    Missing {
        /// The role that should list it.
        role: Role,
        /// The metadata file that is missing in it.
        file: String,
    },
    /// Length or digest differ from what signed metadata say.
    Tampered {
        /// The file.
        file: String,
        /// What differs.
        why: String,
    },
}

/// The version that metadata must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionRule {
    /// Not below what was trusted before.
    AtLeast(u64),
    /// Exactly the one that follows, or that other metadata announced.
    Exactly(u64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Malformed { role, why } => {
                write!(f, "the {role} metadata cannot be read: {why}")
            }
            Error::Signatures {
                role,
                by,
                valid,
                threshold,
            } => write!(
                f,
                "the {role} metadata are signed by {valid} of the {threshold} keys that {by} requires"
            ),
            Error::Version {
                role,
                offered,
                rule: VersionRule::AtLeast(trusted),
            } => write!(
                f,
                "version {offered} of the {role} metadata is older than version {trusted}, which is already trusted"
            ),
            Error::Version {
                role,
                offered,
                rule: VersionRule::Exactly(expected),
            } => write!(
                f,
                "version {offered} of the {role} metadata was offered instead of version {expected}"
            ),
            Error::ListsOlder {
                file,
                offered,
                trusted,
            } => write!(
                f,
                "the snapshot metadata list version {offered} of {file}, older than version {trusted}, which is already trusted"
            ),
            Error::Expired {
                role,
                version,
                expires,
                now,
            } => write!(
                f,
                "version {version} of the {role} metadata expired at {expires} (time now: {now})"
            ),
            Error::Missing { role, file } => {
                write!(f, "the {role} metadata do not list {file}")
            }
            Error::Tampered { file, why } => write!(f, "{file} is not what was signed: {why}"),
        }
    }
}

impl std::error::Error for Error {}
