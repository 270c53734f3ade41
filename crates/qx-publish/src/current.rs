//! What a repository has published, as its publisher sees it: every role's metadata with its signatures.
//!
//! Verified like an appliance does, but for two things that the next publication mends: what has expired, and what the
//! previous root's keys have signed and the current one's have not (a rotation without the old key, interrupted).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::envelope::{Authority, Envelope};
use super::role::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP, kind, top_level};
use super::targets;
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::layout::{self, target_path};
use qx_release::manifest::{Name, RelPath};
use qx_release::text;
use qx_release::trust::clock::Clock;
use qx_release::trust::described::TargetFile;
use qx_release::trust::{Limits, TrustedSet};

/// What names a repository's product, and says how long its metadata are valid.
pub(crate) const ABOUT: &str = "repository.json";
/// The only format of that file.
const ABOUT_FORMAT: u32 = 1;
/// What readers of a repository need.
pub(crate) const PUBLIC: u32 = 0o644;

/// A day.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// How many days ahead the expiry of metadata is warned of.
pub(crate) const SOON_DAYS: u32 = 60;
/// The longest life that metadata can be given, in days: twenty years.
const MAX_DAYS: u32 = 20 * 365;

/// `repository.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct About {
    format: u32,
    /// Whose releases these are.
    pub product: Name,
    /// How long new metadata of a role are valid, where it is not the default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    expiry_days: BTreeMap<String, u32>,
}

impl About {
    /// With the default lifetimes.
    pub fn new(product: Name) -> About {
        About {
            format: ABOUT_FORMAT,
            product,
            expiry_days: BTreeMap::new(),
        }
    }

    /// Reads it from a repository's directory.
    pub fn read(dir: &Path) -> Result<About> {
        let file = dir.join(ABOUT);
        let doing = || format!("reading {}", file.display());
        let about: About = serde_json::from_slice(&fs::read(&file).doing(doing)?).doing(doing)?;
        if about.format != ABOUT_FORMAT {
            return Err(Error::new(format!(
                "{}: format {} is not known (this version reads {ABOUT_FORMAT})",
                file.display(),
                about.format
            )));
        }
        Ok(about)
    }

    /// Puts it into a repository's directory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec(self).doing(|| "writing the product's name")?;
        bytes.push(b'\n');
        durable::write_with_mode(&dir.join(ABOUT), &bytes, PUBLIC)
    }

    /// How long new metadata of a role are valid; teams have the targets' time if they have none of their own.
    /// Appliances are often switched off, or out of reach, for weeks.
    pub fn lifetime(&self, role: &str) -> Duration {
        let own = |role: &str| self.expiry_days.get(role).copied();
        let days = match role {
            ROOT => own(role).unwrap_or(5 * 365),
            TIMESTAMP => own(role).unwrap_or(90),
            SNAPSHOT | TARGETS => own(role).unwrap_or(365),
            _ => own(role).or(own(TARGETS)).unwrap_or(365),
        };
        DAY * days
    }

    /// Sets it.
    pub fn set_lifetime(&mut self, role: &str, days: u32) -> Result<()> {
        if !(1..=MAX_DAYS).contains(&days) {
            return Err(Error::with(
                ErrorKind::Usage,
                format!("metadata must be valid for 1 to {MAX_DAYS} days, not {days}"),
            ));
        }
        self.expiry_days.insert(role.to_owned(), days);
        Ok(())
    }
}

/// What is published now.
pub struct Current {
    /// The repository's directory.
    pub dir: PathBuf,
    /// Its product and settings.
    pub about: About,
    /// Every root from the first to the current one, as they were published.
    pub roots: Vec<Envelope>,
    /// The timestamp, the snapshot, the targets, and each team that the targets delegate to.
    pub roles: BTreeMap<String, Envelope>,
}

impl Current {
    /// Reads and verifies the metadata of the repository in a directory.
    pub fn load(dir: &Path) -> Result<Current> {
        let about = About::read(dir)?;
        let mut current = Current {
            dir: dir.to_owned(),
            about,
            roots: Vec::new(),
            roles: BTreeMap::new(),
        };
        current.load_roots()?;
        if current.root()["consistent_snapshot"] != true {
            return Err(Error::new(format!(
                "{}: consistent snapshots are required, or clients could see a partial publication",
                dir.display()
            )));
        }
        current.load_role(TIMESTAMP, None)?;
        let meta = current.role(TIMESTAMP)?.signed["meta"]["snapshot.json"].clone();
        current.load_role(SNAPSHOT, Some(meta))?;
        current.load_role(TARGETS, Some(current.listed(TARGETS)?))?;
        for team in targets::teams(&current.role(TARGETS)?.signed) {
            current.load_role(&team, Some(current.listed(&team)?))?;
        }
        Ok(current)
    }

    fn load_roots(&mut self) -> Result<()> {
        let mut set: Option<TrustedSet> = None;
        loop {
            let file = metadata_file(&self.dir, ROOT, self.roots.len() as u64 + 1);
            if set.is_some() && !file.exists() {
                return Ok(());
            }
            let bytes = fs::read(&file).doing(|| format!("reading {}", file.display()))?;
            let verifying = || format!("verifying {}", file.display());
            match &mut set {
                // Nothing was expired at the epoch.
                None => {
                    set = Some(
                        TrustedSet::new(
                            &bytes,
                            Clock::new(UNIX_EPOCH, UNIX_EPOCH),
                            &Limits::default(),
                        )
                        .doing(verifying)?,
                    )
                }
                Some(set) => set.update_root(&bytes).doing(verifying)?,
            }
            self.roots.push(parse(&file, &bytes)?);
        }
    }

    fn load_role(&mut self, role: &str, meta: Option<Value>) -> Result<()> {
        let version = meta
            .as_ref()
            .map_or(0, |m| m["version"].as_u64().unwrap_or_default());
        let file = metadata_file(&self.dir, role, version);
        let bytes = fs::read(&file).doing(|| format!("reading {}", file.display()))?;
        let envelope = parse(&file, &bytes)?;
        let wrong = |why: String| Error::new(format!("verifying {}: {why}", file.display()));
        let kind = kind(role);
        if envelope.signed["_type"] != kind {
            return Err(wrong(format!("its _type is not {kind}")));
        }
        if let Some(meta) = meta {
            let digest = &meta["hashes"]["sha256"];
            if envelope.version() != version
                || !meta["length"].is_null() && meta["length"] != bytes.len()
                || !digest.is_null() && *digest != Digest::of(&bytes).to_string()
            {
                return Err(wrong("it is not what was signed".into()));
            }
        }
        let authority = self.authority(role)?;
        let previous = self.roots.iter().rev().nth(1);
        let before = previous
            .filter(|_| kind == role)
            .is_some_and(|root| envelope.verifies(&Authority::of_root(&root.signed, role)));
        if !before && let Some(missing) = authority.missing(&envelope)? {
            return Err(wrong(missing));
        }
        self.roles.insert(role.to_owned(), envelope);
        Ok(())
    }

    /// What the current root says.
    pub fn root(&self) -> &Value {
        // There always is one after `load`.
        self.roots.last().map_or(&Value::Null, |root| &root.signed)
    }

    /// A role's metadata.
    pub fn role(&self, role: &str) -> Result<&Envelope> {
        let found = match role {
            ROOT => self.roots.last(),
            _ => self.roles.get(role),
        };
        found.ok_or_else(|| {
            Error::with(
                ErrorKind::Usage,
                format!("{} has no role '{}'", self.dir.display(), text::name(role)),
            )
        })
    }

    /// Whose signatures a role takes now.
    pub fn authority(&self, role: &str) -> Result<Authority> {
        if top_level(role) {
            return Ok(Authority::of_root(self.root(), role));
        }
        let targets = self.role(TARGETS)?;
        Authority::of_team(&targets.signed, role).ok_or_else(|| {
            Error::with(
                ErrorKind::Usage,
                format!("{} has no team '{}'", self.dir.display(), text::name(role)),
            )
        })
    }

    /// What the snapshot says about targets metadata.
    fn listed(&self, role: &str) -> Result<Value> {
        let snapshot = &self.role(SNAPSHOT)?.signed;
        let meta = &snapshot["meta"][format!("{role}.json")];
        if meta.is_null() {
            return Err(Error::new(format!(
                "{}: the snapshot does not list {role}.json",
                self.dir.display()
            )));
        }
        Ok(meta.clone())
    }

    /// The version that a role's next metadata have. A team that comes back continues its version numbers, because a
    /// snapshot forgets none.
    pub fn next_version(&self, role: &str) -> u64 {
        let published = match self.role(role) {
            Ok(envelope) => envelope.version(),
            Err(_) => self
                .listed(role)
                .map_or(0, |meta| meta["version"].as_u64().unwrap_or(0)),
        };
        published + 1
    }

    /// The role that an appliance finds a target in, and what it says; by the ordinary search.
    pub fn search(&self, name: &RelPath) -> Option<(&str, TargetFile)> {
        targets::search(&self.roles, name)
    }

    /// Where a target lies.
    pub fn target_file(&self, name: &RelPath, target: &TargetFile) -> PathBuf {
        self.dir.join(target_path(name, &target.sha256, true))
    }

    /// Every role and its metadata, the root first.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Envelope)> {
        let root = self.roots.last().map(|root| (ROOT, root));
        let order = |role: &str| {
            [TIMESTAMP, SNAPSHOT, TARGETS]
                .iter()
                .position(|r| *r == role)
        };
        let mut rest: Vec<(&str, &Envelope)> = self
            .roles
            .iter()
            .map(|(role, e)| (role.as_str(), e))
            .collect();
        rest.sort_by_key(|(role, _)| (order(role).unwrap_or(usize::MAX), *role));
        root.into_iter().chain(rest)
    }

    /// A line for each role that expires within 60 days (or within the last two thirds of a shorter life), and the
    /// command that renews it.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let line = |(role, envelope): (&str, &Envelope)| {
            let ahead = (DAY * SOON_DAYS).min(self.about.lifetime(role) * 2 / 3);
            let left = envelope.expires().duration_since(now).unwrap_or_default();
            let dir = self.dir.display();
            (left < ahead).then(|| {
                format!(
                    "the {role} metadata {} at {}; to renew them, run `qx-publish refresh --repo {dir} --keys DIR`{}",
                    if left.is_zero() { "expired" } else { "expire" },
                    envelope.expires_text(),
                    if role == ROOT { ", early enough to fetch the root keys" } else { "" },
                )
            })
        };
        self.all().filter_map(line).collect()
    }
}

/// Where a role's metadata lie in its repository. The timestamp's name has no version, and a team's needs no encoding.
pub(crate) fn metadata_path(role: &str, version: u64) -> String {
    layout::metadata_path(role, (role != TIMESTAMP).then_some(version))
}

/// Where that is on this machine.
pub(crate) fn metadata_file(dir: &Path, role: &str, version: u64) -> PathBuf {
    dir.join(metadata_path(role, version))
}

/// Reads an envelope; the error names the file.
pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Envelope> {
    Envelope::parse(bytes).map_err(|why| Error::new(format!("reading {}: {why}", file.display())))
}
