//! Checks a whole repository by the appliances' own code: what they trust, what they find, and whether it is what was signed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::contents;
use super::current::{Current, DAY, SOON_DAYS, metadata_path};
use super::pack::Tally;
use super::role::ROOT;
use super::targets;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::layout::target_path;
use qx_release::manifest::RelPath;
use qx_release::offer::Offer;
use qx_release::text;
use qx_release::trust::Limits;
use qx_release::trust::clock::Clock;
use qx_release::trust::described::{TargetFile, TargetInfo};
use qx_scratch::Scratch;
use qx_update::fetch::{Options, Proxies, Source};
use qx_update::model::source::SourceAddress;
use qx_update::repository::Repository;

/// What was found. `docs/formats.md` describes the JSON.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// What appliances refuse, a line each.
    pub problems: Vec<String>,
    /// What they will refuse soon.
    pub warnings: Vec<String>,
    /// What they do not look at.
    pub notes: Vec<String>,
    /// How many targets were read whole.
    pub targets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many releases they make.
    pub releases: usize,
}

/// Checks the chain of roots, every role, every target and every release of a repository: a URL, a directory or a bundle. `root`
/// is what appliances have of it; without one, its own first root is believed.
pub fn verify(repository: &str, root: Option<&Path>, now: SystemTime) -> Verification {
    let mut found = Verification::default();
    let address = SourceAddress::from(repository);
    if let Err(error) = found.as_an_appliance(&address, root, now) {
        found.problems.push(error.chain());
    }
    // Of a repository of ours that lies here it is known what does not belong to it.
    if let SourceAddress::Path(path) = &address
        && Path::new(path).join(super::current::ABOUT).exists()
    {
        match Current::load(Path::new(path)) {
            Ok(current) => found.strangers(&current),
            Err(error) => found.problem(error),
        }
    }
    found
}

/// A repository, and a place for what is fetched of it.
struct Audit<'a> {
    repository: Repository,
    source: &'a Source,
    scratch: Scratch,
}

impl Verification {
    fn as_an_appliance(
        &mut self,
        address: &SourceAddress,
        root: Option<&Path>,
        now: SystemTime,
    ) -> Result<()> {
        let options = Options {
            proxies: Proxies::from_environment(|name| std::env::var(name).ok()),
            ..Options::new(Clock::new(now, now))
        };
        let source = &Source::open(address.clone(), &options)?;
        let limits = Limits::default();
        let root = match root {
            Some(file) => fs::read(file).doing(|| format!("reading {}", file.display()))?,
            None => source.required(&metadata_path(ROOT, 1), limits.root_bytes)?,
        };
        let scratch = Scratch::new()?;
        // Nothing was expired at the epoch: one role's expiry must not hide what else is wrong.
        let clock = Clock::new(UNIX_EPOCH, UNIX_EPOCH);
        let store = scratch.directory("trust")?;
        let audit = &Audit {
            repository: Repository::refresh(source, &store, &root, clock, &limits)?,
            source,
            scratch,
        };
        let mut offers = Vec::new();
        audit.repository.audit(source, &mut |role, audited| {
            let audited = match audited {
                Ok(audited) => audited,
                Err(e) => return self.problem(e),
            };
            let (version, text) = (audited.version, text::name(&audited.expires.text));
            if audited.has_expired(now) {
                let line = format!("version {version} of the {role} metadata expired at {text}");
                self.problems.push(line);
            } else if audited.has_expired(now + DAY * SOON_DAYS) {
                let line = format!("version {version} of the {role} metadata expires at {text}");
                self.warnings.push(line);
            }
            let Some(targets) = audited.targets else {
                return;
            };
            targets.each(&mut |name, info| {
                if self.target(audit, role, &name, &info) && info.withdrawn.is_none() {
                    offers.extend(Offer::of(&name));
                }
            });
        });
        for offer in offers {
            match audit.release(&offer) {
                Ok(()) => self.releases += 1,
                Err(error) => self.problem(error),
            }
        }
        Ok(())
    }

    fn problem(&mut self, error: Error) {
        let line = error.chain();
        // The same role is asked for many targets.
        if !self.problems.contains(&line) {
            self.problems.push(line);
        }
    }

    /// Reads a target that a role lists. Says whether appliances find it there.
    fn target(&mut self, audit: &Audit, role: &str, name: &RelPath, info: &TargetInfo) -> bool {
        let found = match audit.repository.find(audit.source, name) {
            Ok(found) => found,
            Err(error) => {
                self.problem(error);
                return false;
            }
        };
        let Some(found) = found else {
            let note = format!(
                "the {role} metadata list {name}, but appliances do not accept it from them"
            );
            self.notes.push(note);
            return false;
        };
        let finder = found.role.as_ref().map_or("targets", |role| role.as_str());
        if finder != role {
            let note = format!(
                "the {role} metadata list {name}, which appliances take from the {finder} metadata"
            );
            self.notes.push(note);
            return false;
        }
        let path = audit.repository.path(name, info);
        if !audit.source.may_have(&path) {
            return false;
        }
        let read = audit.read(&path, info);
        match read.doing(|| format!("reading the target {name}")) {
            Ok(bytes) => {
                self.targets += 1;
                self.bytes += bytes;
            }
            // It may have been removed.
            Err(e) if e.kind == ErrorKind::Unavailable && info.withdrawn.is_some() => {}
            Err(e) => self.problem(e),
        }
        true
    }

    /// Notes files that no metadata refer to. Earlier versions of metadata are left out: clients may still be reading them.
    fn strangers(&mut self, current: &Current) {
        let metadata = contents::metadata(current);
        let mut targets = BTreeSet::new();
        for (role, name) in contents::listed(current) {
            let envelope = current.role(role).ok();
            let file = envelope.and_then(|envelope| targets::target(&envelope.signed, &name));
            targets.extend(file.map(|file| target_path(&name, &file.sha256, true)));
        }
        let known = |path: &str| {
            metadata.contains_key(path) || targets.contains(path) || is_earlier(current, path)
        };
        for dir in ["metadata", "targets"] {
            if let Err(error) = contents::walk(&current.dir, dir, &mut |path| {
                if !known(path) {
                    self.notes.push(format!("no metadata refer to {path}"));
                }
            }) {
                self.problem(error);
            }
        }
    }
}

impl Audit<'_> {
    /// Reads a target whole; its length.
    fn read(&self, path: &str, info: &TargetInfo) -> Result<u64> {
        let TargetFile { length, sha256 } = info
            .file()
            .ok_or_else(|| Error::new("its metadata contain no SHA-256"))?;
        let downloads = self.scratch.directory("downloads")?;
        let source = self.source;
        let mut file = source.artifact(path, length, &sha256, &downloads, &mut |_| ())?;
        let mut hasher = Tally::new(io::sink());
        io::copy(&mut file, &mut hasher).doing(|| path.to_owned())?;
        let _ = fs::remove_file(downloads.join(sha256.to_string()));
        let digest = hasher.hasher.digest();
        match digest == sha256 {
            true => Ok(length),
            false => Err(Error::new(format!(
                "{path}: its digest is {digest} instead of {sha256}"
            ))),
        }
    }

    /// Reads a release's manifest, and looks for its artifacts.
    fn release(&self, offer: &Offer) -> Result<()> {
        let candidate = self.repository.manifest(self.source, offer)?;
        let candidate = candidate.map_err(Error::new)?;
        for component in &candidate.manifest.components {
            let missing = |what: &str| {
                Error::new(format!(
                    "reading {}: the artifact of {} {what}",
                    offer.target, component.name
                ))
            };
            let name = component
                .artifact
                .as_ref()
                .ok_or_else(|| missing("is not named"))?;
            if self.repository.target(self.source, name)?.is_none() {
                return Err(missing("is not published"));
            }
        }
        Ok(())
    }
}

/// Whether these are metadata of a role that the snapshot knows, and older than what it names.
fn is_earlier(current: &Current, path: &str) -> bool {
    let name = path.strip_prefix("metadata/").unwrap_or_default();
    let Some((version, file)) = name.split_once('.') else {
        return false;
    };
    let (Ok(version), Some(role)) = (version.parse::<u64>(), file.strip_suffix(".json")) else {
        return false;
    };
    path == metadata_path(role, version) && version < current.next_version(role)
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, lines) in [
            ("problem", &self.problems),
            ("warning", &self.warnings),
            ("note", &self.notes),
        ] {
            for line in lines {
                writeln!(f, "{kind}: {}", text::line(line))?;
            }
        }
        writeln!(
            f,
            "{} targets with {} bytes, {} releases: {}",
            self.targets,
            self.bytes,
            self.releases,
            match self.problems.len() {
                0 => "no problems".to_owned(),
                1 => "1 problem".to_owned(),
                many => format!("{many} problems"),
            }
        )
    }
}
