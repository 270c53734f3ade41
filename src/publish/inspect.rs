//! What a repository offers, for people and for programs.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::store::{State, usable};
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::manifest::{Kind, Manifest};
use crate::select::Offer;
use crate::trust::Role;
use crate::trust::metadata::Expires;

/// What a repository offers. `docs/formats.md` describes the JSON.
#[derive(Debug, Serialize)]
pub struct Inspection {
    product: String,
    roles: Vec<RoleLine>,
    releases: Vec<Release>,
}

#[derive(Debug, Serialize)]
struct RoleLine {
    role: &'static str,
    version: u64,
    expires: String,
    expired: bool,
    keys: usize,
    threshold: u64,
}

#[derive(Debug, Serialize)]
struct Release {
    channel: String,
    arch: String,
    version: String,
    released: String,
    sha256: Digest,
    download_bytes: u64,
    size_bytes: u64,
    components: Vec<ComponentLine>,
}

#[derive(Debug, Serialize)]
struct ComponentLine {
    name: String,
    kind: Kind,
    install_path: String,
    size_bytes: u64,
    artifact_bytes: u64,
    artifact: String,
}

/// Reads what the repository in a directory offers, metadata and manifests verified.
pub fn inspect(repo: &Path, now: SystemTime) -> Result<Inspection> {
    let state = State::load(repo)?;
    let missing = || Error::new(format!("{}: metadata are missing", repo.display()));
    let set = &state.set;
    let (Some(timestamp), Some(snapshot), Some(targets)) =
        (set.timestamp(), set.snapshot(), set.targets())
    else {
        return Err(missing());
    };
    let line = |role: Role, version, expires: &Expires| {
        let keys = &set.root().roles[role.as_str()];
        RoleLine {
            role: role.as_str(),
            version,
            expires: expires.text.clone(),
            expired: expires.at <= now,
            keys: usable(&set.root().keys, &keys.keyids),
            threshold: keys.threshold,
        }
    };
    let roles = vec![
        line(Role::Root, set.root().version, &set.root().expires),
        line(Role::Timestamp, timestamp.version, &timestamp.expires),
        line(Role::Snapshot, snapshot.version, &snapshot.expires),
        line(Role::Targets, targets.version, &targets.expires),
    ];
    let mut offers: Vec<Offer> = Vec::new();
    targets.each(&mut |name, _| offers.extend(Offer::of(&name)));
    offers
        .sort_by(|a, b| (&a.channel, &a.arch, &a.version).cmp(&(&b.channel, &b.arch, &b.version)));
    let releases = offers
        .iter()
        .map(|offer| release(&state, offer))
        .collect::<Result<_>>()?;
    Ok(Inspection {
        product: state.product.to_string(),
        roles,
        releases,
    })
}

fn release(state: &State, offer: &Offer) -> Result<Release> {
    let name = &offer.target;
    let doing = || format!("reading {name}");
    let target = state
        .set
        .target(name)
        .ok_or_else(|| Error::new(format!("{}: it is not published", doing())))?;
    let bytes = fs::read(state.target_file(name, &target)).doing(doing)?;
    target.check(name.as_str(), &bytes).doing(doing)?;
    let manifest =
        Manifest::parse(&bytes).map_err(|why| Error::new(format!("{}: {why}", doing())))?;
    let components: Vec<ComponentLine> = manifest
        .components
        .iter()
        .map(|component| {
            let artifact = component.artifact.as_ref();
            let target = artifact.and_then(|name| state.set.target(name));
            let (Some(artifact), Some(target)) = (artifact, target) else {
                return Err(Error::new(format!(
                    "{}: the artifact of {} is not published",
                    doing(),
                    component.name
                )));
            };
            Ok(ComponentLine {
                name: component.name.to_string(),
                kind: component.kind,
                install_path: component.install_path.to_string(),
                size_bytes: component.size_bytes,
                artifact_bytes: target.length,
                artifact: artifact.to_string(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(Release {
        channel: offer.channel.to_string(),
        arch: offer.arch.to_string(),
        version: offer.version.to_string(),
        released: manifest.released.clone(),
        sha256: target.sha256,
        download_bytes: components.iter().map(|c| c.artifact_bytes).sum(),
        size_bytes: manifest.size_bytes(),
        components,
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "product  {}", self.product)?;
        writeln!(
            f,
            "\n{:<10} {:>7}  {:<20}  keys",
            "role", "version", "expires"
        )?;
        for role in &self.roles {
            let expired = if role.expired { "  EXPIRED" } else { "" };
            writeln!(
                f,
                "{:<10} {:>7}  {:<20}  {} of {}{expired}",
                role.role, role.version, role.expires, role.threshold, role.keys
            )?;
        }
        if self.releases.is_empty() {
            return writeln!(f, "\nno releases");
        }
        for release in &self.releases {
            writeln!(
                f,
                "\n{} {} for {}, released {}: {} bytes to install, {} to download",
                release.channel,
                release.version,
                release.arch,
                release.released,
                release.size_bytes,
                release.download_bytes
            )?;
            for component in &release.components {
                writeln!(
                    f,
                    "  {:<24} {:<32} {:>12} {:>12}",
                    component.name,
                    component.install_path,
                    component.size_bytes,
                    component.artifact_bytes
                )?;
            }
        }
        Ok(())
    }
}
