//! Taking releases back, and removing what nobody is offered any more.
//!
//! A release that is withdrawn stays listed, with the reason: whoever has it can be told, and its version is never given to
//! anything else. What it alone consists of is not listed any longer once [`prune`] has run, and then its files go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::change::{Change, Done};
use super::contents::{self, Wanted, walk};
use super::current::Current;
use super::keyring::Keyring;
use super::targets;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::layout::target_path;
use qx_release::manifest::{Manifest, RelPath};
use qx_release::offer::Offer;
use qx_release::trust::described::WITHDRAWN;

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// Takes back the releases that are wanted; which those are.
pub fn withdraw(
    repo: &Path,
    wanted: &Wanted,
    reason: Option<&str>,
    keys: &Keyring,
    now: SystemTime,
) -> Result<(Vec<Offer>, Done)> {
    let good = |reason: &str| {
        let length = reason.chars().count();
        !reason.trim().is_empty() && length <= MAX_REASON && !reason.contains(char::is_control)
    };
    if !reason.is_none_or(good) {
        return Err(Error::with(
            ErrorKind::Usage,
            format!(
                "--reason: it must be one line of 1 to {MAX_REASON} characters, for those who run the release"
            ),
        ));
    }
    let mut change = Change::open(repo, now)?;
    let offers = contents::wanted(&change.current, wanted)?;
    let mut bodies = BTreeMap::new();
    for offer in &offers {
        let name = offer.target.as_str();
        for_role(&change, &mut bodies, &offer.target, &mut |targets| {
            targets[name]["custom"][WITHDRAWN] = json!(reason.unwrap_or_default());
        });
    }
    for (role, body) in bodies {
        change.propose(&role, body)?;
    }
    Ok((offers, change.commit(keys)?))
}

/// Changes what the role says that appliances find a target in.
fn for_role(
    change: &Change,
    bodies: &mut BTreeMap<String, Value>,
    name: &RelPath,
    edit: &mut dyn FnMut(&mut Map<String, Value>),
) {
    let Some((role, _)) = change.current.search(name) else {
        return;
    };
    let body = bodies.entry(role.to_owned());
    let body = body.or_insert_with(|| change.body(role));
    if let Some(targets) = body["targets"].as_object_mut() {
        edit(targets);
    }
}

/// What [`prune`] removed, or would remove.
pub struct Pruned {
    /// Artifacts that are not listed any longer.
    pub unlisted: Vec<RelPath>,
    /// Files, by their paths in the repository.
    pub files: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
    /// What was published for it.
    pub done: Done,
}

/// Removes what only withdrawn releases consist of from the metadata, and then every file below `targets` that neither
/// metadata nor a draft name. Components that were published for a release to come stay. `keys`: none, to change nothing.
///
/// # Errors
/// If a release cannot be read: what it consists of is not known then.
pub fn prune(repo: &Path, keys: Option<&Keyring>, now: SystemTime) -> Result<Pruned> {
    let mut change = Change::open(repo, now)?;
    let unlisted = abandoned(&change.current)?;
    let Some(keys) = keys else {
        let (files, bytes) = unnamed(&change, &unlisted)?;
        return Ok(Pruned {
            unlisted: unlisted.into_iter().collect(),
            files,
            bytes,
            done: Done::default(),
        });
    };
    let mut bodies = BTreeMap::new();
    for name in &unlisted {
        for_role(&change, &mut bodies, name, &mut |targets| {
            targets.remove(name.as_str());
        });
    }
    let mut done = Done::default();
    if !bodies.is_empty() {
        for (role, body) in bodies {
            change.propose(&role, body)?;
        }
        done = change.commit(keys)?;
        change = Change::open(repo, now)?;
    }
    // What a draft is still to take away is named until then.
    let (files, bytes) = unnamed(&change, &BTreeSet::new())?;
    for path in &files {
        let file = repo.join(path);
        durable::remove(&file)?;
        for directory in file.ancestors().skip(1) {
            // As far up as they are empty.
            if directory == repo.join("targets") || fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
    Ok(Pruned {
        unlisted: unlisted.into_iter().collect(),
        files,
        bytes,
        done,
    })
}

/// The listed artifacts of withdrawn releases that no other release names.
fn abandoned(current: &Current) -> Result<BTreeSet<RelPath>> {
    let mut abandoned = BTreeSet::new();
    for (offer, file) in contents::withdrawn_files(current) {
        // Gone already, or never was a manifest.
        let manifest = fs::read(&file).ok();
        let manifest = manifest.and_then(|bytes| Manifest::parse(&bytes).ok());
        let components = manifest.into_iter().flat_map(|m| m.components);
        let artifacts = components.filter_map(|component| component.artifact);
        let product = format!("{}/", offer.product);
        abandoned.extend(
            artifacts.filter(|name| {
                name.as_str().starts_with(&product) && current.search(name).is_some()
            }),
        );
    }
    if !abandoned.is_empty() {
        for offer in contents::offers(current) {
            for name in contents::release(current, &offer)?.artifacts.keys() {
                abandoned.remove(name);
            }
        }
    }
    Ok(abandoned)
}

/// The files below `targets` that nothing names but `without`, and how large they are. A withdrawn release's manifest is
/// needed as long as artifacts are listed that may be its alone.
fn unnamed(change: &Change, without: &BTreeSet<RelPath>) -> Result<(Vec<String>, u64)> {
    let current = &change.current;
    let pending = abandoned(current)?;
    let mut named = BTreeSet::new();
    let mut name = |body: &Value| {
        for target in body["targets"].as_object().into_iter().flat_map(Map::keys) {
            let Ok(target) = target.parse::<RelPath>() else {
                continue;
            };
            let over = targets::withdrawn(body, &target).is_some() && pending.is_subset(without);
            if let Some(file) = targets::target(body, &target)
                && !over
                && !without.contains(&target)
            {
                named.insert(target_path(&target, &file.sha256, true));
            }
        }
    };
    for (_, envelope) in current.all() {
        name(&envelope.signed);
    }
    for draft in change.drafts.values() {
        name(&draft.envelope.signed);
    }
    let (mut files, mut bytes) = (Vec::new(), 0);
    let mut unread = None;
    walk(&current.dir, "targets", &mut |path| {
        if !named.contains(path) {
            match fs::symlink_metadata(current.dir.join(path)) {
                Ok(metadata) => bytes += metadata.len(),
                Err(e) => unread = Some((path.to_owned(), e)),
            }
            files.push(path.to_owned());
        }
    })?;
    match unread {
        Some((path, e)) => Err(e).doing(|| format!("examining {path}")),
        None => Ok((files, bytes)),
    }
}
