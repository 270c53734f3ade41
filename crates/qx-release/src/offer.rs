//! A release as described by the name of its manifest's target: product, channel, architecture and version.

use semver::Version;

use crate::manifest::{Name, RelPath};

/// A release that the repository offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The product it is for.
    pub product: Name,
    /// The channel it is published on.
    pub channel: Name,
    /// The architecture it is for.
    pub arch: Name,
    /// Its version.
    pub version: Version,
    /// The target that holds its manifest.
    pub target: RelPath,
}

impl Offer {
    /// The release whose manifest has this target name: `PRODUCT/CHANNEL/ARCH/VERSION/release.json`.
    pub fn of(target: &RelPath) -> Option<Offer> {
        let mut segments = target.as_str().split('/');
        let mut name = || segments.next()?.parse::<Name>().ok();
        let (product, channel, arch) = (name()?, name()?, name()?);
        let version = Version::parse(segments.next()?).ok()?;
        if segments.next()? != "release.json" || segments.next().is_some() {
            return None;
        }
        Some(Offer {
            product,
            channel,
            arch,
            version,
            target: target.clone(),
        })
    }
}
