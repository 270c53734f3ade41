//! What a repository offers, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::contents::{self, Release, Withdrawn};
use super::current::{Current, DAY, SOON_DAYS};
use super::envelope::{Envelope, delegation, short, texts};
use super::role::{TARGETS, top_level};
use qx_release::digest::Digest;
use qx_release::error::Result;
use qx_release::manifest::Kind;
use qx_release::text;

/// What a repository offers. `docs/formats.md` describes the JSON.
#[derive(Debug, Serialize)]
pub struct Inspection {
    product: String,
    roles: Vec<RoleLine>,
    channels: Vec<Channel>,
    releases: Vec<ReleaseLine>,
    withdrawn: Vec<WithdrawnLine>,
}

#[derive(Debug, Serialize)]
struct WithdrawnLine {
    channel: String,
    arch: String,
    version: String,
    role: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct RoleLine {
    role: String,
    version: u64,
    expires: String,
    expired: bool,
    days_left: i64,
    threshold: u64,
    keys: Vec<KeyLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delegated: Option<Delegated>,
}

#[derive(Debug, Serialize)]
struct KeyLine {
    id: String,
    scheme: String,
}

#[derive(Debug, Serialize)]
struct Delegated {
    by: &'static str,
    paths: Vec<String>,
    terminating: bool,
}

#[derive(Debug, Serialize)]
struct Channel {
    channel: String,
    arch: String,
    releases: usize,
    latest: String,
}

#[derive(Debug, Serialize)]
struct ReleaseLine {
    channel: String,
    arch: String,
    version: String,
    released: String,
    role: String,
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
    let current = Current::load(repo)?;
    let roles = current
        .all()
        .map(|(role, envelope)| role_line(&current, role, envelope, now))
        .collect::<Result<_>>()?;
    let mut releases = Vec::new();
    // Sorted by version within a channel and an architecture: the last is the latest.
    let mut channels: BTreeMap<(String, String), Channel> = BTreeMap::new();
    for offer in contents::offers(&current) {
        let release = release_line(&contents::release(&current, &offer)?);
        let (channel, arch) = (release.channel.clone(), release.arch.clone());
        let line = channels
            .entry((channel.clone(), arch.clone()))
            .or_insert(Channel {
                channel,
                arch,
                releases: 0,
                latest: String::new(),
            });
        line.releases += 1;
        line.latest.clone_from(&release.version);
        releases.push(release);
    }
    Ok(Inspection {
        product: current.about.product.to_string(),
        roles,
        channels: channels.into_values().collect(),
        releases,
        withdrawn: contents::withdrawn(&current)
            .into_iter()
            .map(withdrawn_line)
            .collect(),
    })
}

fn withdrawn_line(withdrawn: Withdrawn) -> WithdrawnLine {
    let Withdrawn {
        offer,
        role,
        reason,
    } = withdrawn;
    WithdrawnLine {
        channel: offer.channel.to_string(),
        arch: offer.arch.to_string(),
        version: offer.version.to_string(),
        role,
        reason,
    }
}

fn role_line(
    current: &Current,
    role: &str,
    envelope: &Envelope,
    now: SystemTime,
) -> Result<RoleLine> {
    let authority = current.authority(role)?;
    let keys = authority.keys.iter().map(|(id, key)| KeyLine {
        id: id.clone(),
        scheme: key["scheme"].as_str().unwrap_or_default().to_owned(),
    });
    let days = |time: std::time::Duration| (time.as_secs() / DAY.as_secs()) as i64;
    let days_left = match envelope.expires().duration_since(now) {
        Ok(left) => days(left),
        Err(over) => -days(over.duration()),
    };
    let delegated = if top_level(role) {
        None
    } else {
        delegation(&current.role(TARGETS)?.signed, role).map(|said| Delegated {
            by: TARGETS,
            paths: texts(&said["paths"]).map(str::to_owned).collect(),
            terminating: said["terminating"] == true,
        })
    };
    Ok(RoleLine {
        role: role.to_owned(),
        version: envelope.version(),
        expires: envelope.expires_text().to_owned(),
        expired: envelope.expires() <= now,
        days_left,
        threshold: authority.threshold,
        keys: keys.collect(),
        delegated,
    })
}

fn release_line(release: &Release) -> ReleaseLine {
    let manifest = &release.manifest;
    let components = manifest.components.iter().filter_map(|component| {
        let artifact = component.artifact.as_ref()?;
        Some(ComponentLine {
            name: component.name.to_string(),
            kind: component.kind,
            install_path: component.install_path.to_string(),
            size_bytes: component.size_bytes,
            artifact_bytes: release.artifacts.get(artifact)?.length,
            artifact: artifact.to_string(),
        })
    });
    let components: Vec<ComponentLine> = components.collect();
    ReleaseLine {
        channel: release.offer.channel.to_string(),
        arch: release.offer.arch.to_string(),
        version: release.offer.version.to_string(),
        released: manifest.released.clone(),
        role: release.role.clone(),
        sha256: release.file.sha256,
        download_bytes: components.iter().map(|c| c.artifact_bytes).sum(),
        size_bytes: manifest.size_bytes(),
        components,
    }
}

impl RoleLine {
    /// How long it is valid still.
    fn state(&self) -> String {
        match self.days_left {
            _ if self.expired => "EXPIRED".into(),
            days if days < SOON_DAYS.into() => format!("in {days} days, soon"),
            days => format!("in {days} days"),
        }
    }

    fn keys(&self) -> String {
        let keys = self
            .keys
            .iter()
            .map(|key| format!("{} {}", key.scheme, short(&key.id)));
        keys.collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "product  {}", text::name(&self.product))?;
        self.print_roles(f)?;
        self.print_teams(f)?;
        if self.releases.is_empty() {
            writeln!(f, "\nno releases")?;
        }
        self.print_channels(f)?;
        self.print_releases(f)?;
        self.print_withdrawn(f)
    }
}

impl Inspection {
    fn print_roles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles = self.roles.iter().map(|role| {
            [
                role.role.clone(),
                role.version.to_string(),
                role.expires.clone(),
                role.state(),
                format!("{} of {}", role.threshold, role.keys.len()),
                role.keys(),
            ]
        });
        let heads = ["role", "version", "expires", "", "threshold", "keys"];
        table(f, heads, roles)
    }

    fn print_teams(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let teams = self.roles.iter().filter_map(|role| {
            let delegated = role.delegated.as_ref()?;
            let ends = if delegated.terminating {
                "ends the search"
            } else {
                ""
            };
            Some([
                role.role.clone(),
                delegated.by.to_owned(),
                delegated.paths.join(", "),
                ends.to_owned(),
            ])
        });
        table(f, ["team", "delegated by", "may publish", ""], teams)
    }

    fn print_channels(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = self.channels.iter().map(|line| {
            [
                line.channel.clone(),
                line.arch.clone(),
                line.releases.to_string(),
                line.latest.clone(),
            ]
        });
        table(f, ["channel", "arch", "releases", "latest"], channels)
    }

    fn print_releases(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let releases = self.releases.iter().map(|release| {
            [
                release.channel.clone(),
                release.arch.clone(),
                release.version.clone(),
                release.released.clone(),
                release.size_bytes.to_string(),
                release.download_bytes.to_string(),
                release.components.len().to_string(),
                release.role.clone(),
            ]
        });
        let heads = [
            "channel",
            "arch",
            "version",
            "released",
            "installed",
            "download",
            "components",
            "signed by",
        ];
        table(f, heads, releases)
    }

    fn print_withdrawn(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let withdrawn = self.withdrawn.iter().map(|line| {
            [
                line.channel.clone(),
                line.arch.clone(),
                line.version.clone(),
                line.reason.clone(),
                line.role.clone(),
            ]
        });
        let heads = ["channel", "arch", "withdrawn", "reason", "signed by"];
        table(f, heads, withdrawn)
    }
}

/// Prints rows under their heads, numbers to the right; nothing if there are no rows.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    heads: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let mut rows: Vec<[String; N]> = rows.map(|row| row.map(|text| text::name(&text))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let number = |text: &String| text.bytes().all(|byte| byte.is_ascii_digit());
    let right: Vec<bool> = (0..N)
        .map(|i| rows.iter().all(|row| number(&row[i])))
        .collect();
    rows.insert(0, heads.map(str::to_owned));
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|i| width(i).unwrap_or(0)).collect();
    writeln!(f)?;
    for row in &rows {
        let mut line = String::new();
        for (i, text) in row.iter().enumerate() {
            let width = widths[i];
            line += &match right[i] {
                true => format!("{text:>width$}"),
                false => format!("{text:<width$}"),
            };
            line += "  ";
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
