//! Teams: whom the targets delegate to, what each may publish, and where an appliance finds a target.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::change::{Done, Store};
use super::current::TARGETS;
use super::draft::check_team_name;
use super::envelope::{Authority, Envelope, delegation, texts};
use super::keyring::Keyring;
use super::newkeys::{NEW, NewKeys};
use super::roles::{check_threshold, key_ids, usage};
use qx_release::digest::Digest;
use qx_release::error::{Context, Error, Result};
use qx_release::manifest::{Manifest, RelPath};
use qx_release::offer::Offer;
use qx_release::text;
use qx_release::trust::delegation::matches;
use qx_release::trust::metadata::TargetFile;

/// What a team is to be.
pub struct Team<'a> {
    /// Its name.
    pub name: &'a str,
    /// Patterns of the targets that it may publish.
    pub paths: &'a [String],
    /// Its keys; none: one is made.
    pub keys: &'a [String],
    /// How many of them must sign; none: one.
    pub threshold: Option<u64>,
    /// What matches its patterns is looked for nowhere else.
    pub terminating: bool,
}

/// Lets a team publish what matches its patterns, or gives a team other patterns.
pub fn delegate(
    mut store: Store,
    team: &Team,
    new: &mut NewKeys,
    keys: &dyn Fn() -> Result<Keyring>,
) -> Result<Done> {
    check_team_name(team.name)?;
    if team.paths.is_empty() {
        return Err(usage(
            "a team needs --paths: patterns of what it may publish",
        ));
    }
    for pattern in team.paths {
        check_pattern(pattern)?;
    }
    let mut targets = store.body(TARGETS);
    if targets["delegations"].is_null() {
        targets["delegations"] = json!({"keys": {}, "roles": []});
    }
    if delegation(&targets, team.name).is_some() {
        if !team.keys.is_empty() || team.threshold.is_some() {
            return Err(usage(&format!(
                "the team {} already exists; qx-publish rotate {} changes its keys",
                team.name, team.name
            )));
        }
        for role in roles(&mut targets)? {
            if role["name"] == team.name {
                role["paths"] = json!(team.paths);
                role["terminating"] = json!(team.terminating);
            }
        }
        keep_artifacts(&store, &mut targets)?;
    } else {
        let wanted = match team.keys {
            [] => vec![NEW.to_owned()],
            given => given.to_vec(),
        };
        let threshold = team.threshold.unwrap_or(1);
        // Before a key is made that nobody would ask for. Two that are the same count once.
        check_threshold(threshold, wanted.len())?;
        let listed = new.take(&store.current, team.name, &wanted)?;
        check_threshold(threshold, listed.len())?;
        let ids: Vec<&String> = listed.keys().collect();
        let role = json!({
            "name": team.name,
            "keyids": ids,
            "threshold": threshold,
            "paths": team.paths,
            "terminating": team.terminating,
        });
        roles(&mut targets)?.push(role);
        for (id, key) in listed {
            targets["delegations"]["keys"][id] = key;
        }
        store.propose(team.name, json!({"targets": {}}))?;
    }
    store.propose(TARGETS, targets)?;
    store.commit(&keys()?)
}

/// Takes a team's right to publish away. Its releases are no longer found; the artifacts that the releases of others
/// name are from now on published by the targets role.
pub fn remove(mut store: Store, team: &str, keys: &Keyring) -> Result<Done> {
    let mut targets = store.body(TARGETS);
    store.current.authority(team)?;
    roles(&mut targets)?.retain(|role| role["name"] != team);
    forget_unused_keys(&mut targets);
    keep_artifacts(&store, &mut targets)?;
    store.propose(TARGETS, targets)?;
    store.commit(keys)
}

/// Lists the artifacts that the remaining releases name, and that would no longer be found. A manifest says which digest
/// an appliance must find in them, so that nothing is trusted here that was not before.
fn keep_artifacts(store: &Store, targets: &mut Value) -> Result<()> {
    let mut after = store.current.roles.clone();
    if let Some(envelope) = after.get_mut(TARGETS) {
        envelope.signed = targets.clone();
    }
    let names = after
        .values()
        .flat_map(|e| e.signed["targets"].as_object().into_iter().flatten());
    let names: Vec<RelPath> = names.filter_map(|(name, _)| name.parse().ok()).collect();
    for name in names.iter().filter(|name| Offer::of(name).is_some()) {
        let Some((_, release)) = search(&after, name) else {
            continue;
        };
        let file = store.current.target_file(name, &release);
        let doing = || format!("reading {}", file.display());
        let bytes = fs::read(&file).doing(doing)?;
        release.check(name.as_str(), &bytes).doing(doing)?;
        let manifest =
            Manifest::parse(&bytes).map_err(|why| Error::new(format!("{}: {why}", doing())))?;
        for artifact in manifest
            .components
            .iter()
            .filter_map(|c| c.artifact.as_ref())
        {
            if search(&after, artifact).is_none()
                && let Some((_, target)) = store.current.search(artifact)
            {
                list_target(targets, artifact, &target);
            }
        }
    }
    Ok(())
}

/// Gives a team other keys.
pub(crate) fn set_keys(targets: &mut Value, team: &str, authority: &Authority) -> Result<()> {
    for role in roles(targets)? {
        if role["name"] == team {
            role["keyids"] = json!(key_ids(authority));
            role["threshold"] = json!(authority.threshold);
        }
    }
    for (id, key) in &authority.keys {
        targets["delegations"]["keys"][id] = key.clone();
    }
    forget_unused_keys(targets);
    Ok(())
}

/// The teams that targets metadata delegate to, in the order of the search.
pub(crate) fn teams(targets: &Value) -> Vec<String> {
    let roles = targets["delegations"]["roles"].as_array();
    let names = roles
        .into_iter()
        .flatten()
        .filter_map(|role| role["name"].as_str());
    names.map(str::to_owned).collect()
}

/// The role that an appliance finds a target in, and what it says: the targets first, then each team whose patterns
/// match, in order, and none after one that is terminating.
pub(crate) fn search<'a>(
    roles: &'a BTreeMap<String, Envelope>,
    name: &RelPath,
) -> Option<(&'a str, TargetFile)> {
    let (top, targets) = roles.get_key_value(TARGETS)?;
    if let Some(found) = target(&targets.signed, name) {
        return Some((top, found));
    }
    let listed = targets.signed["delegations"]["roles"].as_array();
    for named in listed
        .into_iter()
        .flatten()
        .filter(|named| may_publish(named, name))
    {
        let team = named["name"]
            .as_str()
            .and_then(|team| roles.get_key_value(team));
        if let Some((team, metadata)) = team
            && let Some(found) = target(&metadata.signed, name)
        {
            return Some((team, found));
        }
        if named["terminating"] == true {
            return None;
        }
    }
    None
}

/// Refuses a target that a team may not publish, or that an appliance would not find in its metadata.
pub(crate) fn check_target(
    roles: &BTreeMap<String, Envelope>,
    team: &str,
    name: &RelPath,
) -> Result<()> {
    let Some(targets) = roles.get(TARGETS) else {
        return Ok(());
    };
    let listed = targets.signed["delegations"]["roles"].as_array();
    for named in listed.into_iter().flatten() {
        let matches = may_publish(named, name);
        if named["name"] == team {
            if !matches {
                return Err(Error::new(format!(
                    "the team {team} may not publish {name}: its patterns are {}",
                    named["paths"]
                )));
            }
            return Ok(());
        }
        if matches && named["terminating"] == true {
            return Err(Error::new(format!(
                "appliances would not find {name} in what the team {team} publishes: the team {} comes first, and its \
                 patterns {} end the search",
                named["name"], named["paths"]
            )));
        }
    }
    Ok(())
}

/// Says what is published as a target.
pub(crate) fn list_target(body: &mut Value, name: &RelPath, file: &TargetFile) {
    body["targets"][name.as_str()] =
        json!({"length": file.length, "hashes": {"sha256": file.sha256}});
}

/// What targets metadata say about a target.
pub(crate) fn target(signed: &Value, name: &RelPath) -> Option<TargetFile> {
    let target = signed["targets"].get(name.as_str())?;
    Some(TargetFile {
        length: target["length"].as_u64()?,
        sha256: target["hashes"]["sha256"].as_str()?.parse().ok()?,
    })
}

/// Whether a delegation's patterns, or the prefixes of digests that other tools write, match a target.
fn may_publish(named: &Value, name: &RelPath) -> bool {
    let digest = Digest::of(name.as_str().as_bytes()).to_string();
    texts(&named["paths"]).any(|pattern| matches(pattern, name.as_str()))
        || texts(&named["path_hash_prefixes"]).any(|prefix| digest.starts_with(prefix))
}

fn check_pattern(pattern: &str) -> Result<()> {
    let wrong = |why: &str| usage(&format!("the pattern '{}' {why}", text::name(pattern)));
    pattern
        .parse::<RelPath>()
        .map_err(|why| wrong(&format!("matches no target: {why}")))?;
    if pattern.contains(['[', ']']) {
        return Err(wrong("has a bracket, which TUF clients do not agree about"));
    }
    Ok(())
}

fn roles(targets: &mut Value) -> Result<&mut Vec<Value>> {
    targets["delegations"]["roles"]
        .as_array_mut()
        .ok_or_else(|| {
            Error::new(
                "the targets delegate by hash bins, and this version adds no team beside these",
            )
        })
}

fn forget_unused_keys(targets: &mut Value) {
    let teams = teams(targets);
    let used: Vec<String> = teams
        .iter()
        .filter_map(|team| Authority::of_team(targets, team))
        .flat_map(|authority| authority.keys.into_iter().map(|(id, _)| id))
        .collect();
    if let Some(keys) = targets["delegations"]["keys"].as_object_mut() {
        keys.retain(|id, _| used.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_leave_the_directory_are_refused() {
        for pattern in ["", "/a", "../a", "a/../b", "a//b", "a/", "a/[bc]", "a\n"] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
        for pattern in ["*", "vdc/artifacts/web-*.tar.gz", "a/?/b"] {
            check_pattern(pattern).unwrap();
        }
    }
}
