//! How much the metadata of a repository may ask of an appliance.

use serde::Deserialize;

/// Limits of metadata, each with a default. All of them apply before a signature is checked, because whoever controls the
/// network can send anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest root metadata, in bytes. 512 kB.
    pub root_bytes: u64,
    /// The longest timestamp metadata, in bytes. 16 KiB.
    pub timestamp_bytes: u64,
    /// The longest snapshot metadata, in bytes. 2 MB.
    pub snapshot_bytes: u64,
    /// The longest targets metadata, those of a delegated role included, in bytes. 16 MB.
    pub targets_bytes: u64,
    /// How many new roots one refresh follows. 256.
    pub root_rotations: u64,
    /// The most keys that a root or a delegator may list. 1000.
    pub keys: usize,
    /// The most signatures over one file. 100.
    pub signatures: usize,
    /// The most roles that one role may delegate to. 1000.
    pub delegations: usize,
    /// The most delegated roles that are asked for one target, or walked for releases. 32.
    pub delegated_roles: usize,
    /// The longest name of a delegated role, in bytes. 76, and no more: percent-encoded, between the longest version and
    /// `.json`, it must fit into the name of a file.
    pub role_name_bytes: usize,
    /// The most members of a JSON object together with those of the objects around it: one of targets metadata has
    /// as many as there are targets. 100 000, each of which takes 40 bytes of memory.
    pub json_members: usize,
    /// How deep values may be nested. 32.
    pub json_depth: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            root_bytes: 512_000,
            timestamp_bytes: 16_384,
            snapshot_bytes: 2_000_000,
            targets_bytes: 16_000_000,
            root_rotations: 256,
            keys: 1000,
            signatures: 100,
            delegations: 1000,
            delegated_roles: 32,
            role_name_bytes: 76,
            json_members: 100_000,
            json_depth: 32,
        }
    }
}
