//! Checks a whole repository as its clients would, file by file.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::contents::{self, Checked};
use super::current::{Current, DAY, SOON_DAYS, metadata_path};
use super::targets;
use qx_release::error::Context;
use qx_release::layout::target_path;
use qx_release::text;

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

/// Checks the chain of roots, every role, every target and every release of a repository.
pub fn verify(repo: &Path, now: SystemTime) -> Verification {
    let mut found = Verification::default();
    // Without metadata to go by there is nothing to compare the files with. Nothing was expired at the epoch.
    let current = Current::load(repo)
        .and_then(|current| contents::check_as_client(&current, UNIX_EPOCH).map(|()| current));
    match current {
        Ok(current) => {
            found.expiry(&current, now);
            found.targets(&current);
            found.releases(&current);
            found.strangers(&current);
        }
        Err(error) => found.problems.push(error.chain()),
    }
    found
}

impl Verification {
    fn expiry(&mut self, current: &Current, now: SystemTime) {
        for (role, envelope) in current.all() {
            let (version, text) = (envelope.version(), envelope.expires_text());
            if envelope.expires() <= now {
                let line = format!("version {version} of the {role} metadata expired at {text}");
                self.problems.push(line);
            } else if envelope.expires() <= now + DAY * SOON_DAYS {
                let line = format!("version {version} of the {role} metadata expires at {text}");
                self.warnings.push(line);
            }
        }
    }

    fn targets(&mut self, current: &Current) {
        for (role, name) in contents::listed(current) {
            match current.search(&name) {
                // Its file may be gone.
                Some((found, file))
                    if found == role
                        && contents::is_withdrawn(current, role, &name)
                        && !current.target_file(&name, &file).exists() => {}
                Some((found, file)) if found == role => {
                    let read = Checked::open(current, &name, file)
                        .and_then(|mut file| io::copy(&mut file, &mut io::sink()));
                    self.targets += 1;
                    match read.doing(|| format!("reading the target {name}")) {
                        Ok(bytes) => self.bytes += bytes,
                        Err(error) => self.problems.push(error.chain()),
                    }
                }
                Some((found, _)) => self.notes.push(format!(
                    "the {role} metadata list {name}, which appliances take from the {found} metadata"
                )),
                None => self.notes.push(format!(
                    "the {role} metadata list {name}, but appliances do not accept it from them"
                )),
            }
        }
    }

    fn releases(&mut self, current: &Current) {
        for offer in contents::offers(current) {
            match contents::release(current, &offer) {
                Ok(_) => self.releases += 1,
                Err(error) => self.problems.push(error.chain()),
            }
        }
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
                self.problems.push(error.chain());
            }
        }
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
