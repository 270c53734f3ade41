//! What is not tried again by itself.

use serde::{Deserialize, Serialize};

use qx_release::digest::Digest;

/// A release that is not to be tried again by itself, by the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The digest of the release's manifest.
    pub manifest: Digest,
    /// Its version, for people.
    pub version: Option<semver::Version>,
    /// Whether it failed here, or a person or the boot limit left it.
    pub kind: RefusalKind,
    /// Why.
    pub reason: String,
    /// When (RFC 3339).
    pub at: String,
}

/// Why a release is not tried again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusalKind {
    /// It failed on this appliance.
    Quarantined,
    /// A person rolled it back, or its trial saw too many boots.
    Held,
}
