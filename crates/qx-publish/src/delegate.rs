//! Teams: letting one publish, and taking that right away.

use std::fs;

use serde_json::{Value, json};

use super::authority::{check_threshold, usage};
use super::change::{Change, Done};
use super::envelope::delegation;
use super::keyring::Keyring;
use super::newkeys::{NEW, NewKeys};
use super::role::{TARGETS, check_team_name};
use super::targets::{forget_unused_keys, list_target, roles, search};
use qx_release::error::{Context, Error, Result};
use qx_release::manifest::{Manifest, RelPath};
use qx_release::offer::Offer;
use qx_release::text;

/// The properties of a team.
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
    mut change: Change,
    team: &Team,
    new: &mut NewKeys,
    keys: &dyn Fn() -> Result<Keyring>,
) -> Result<Done> {
    check_team_name(team.name)?;
    if team.paths.is_empty() {
        return Err(usage(
            "--paths is required: the patterns of the targets that the team may publish",
        ));
    }
    for pattern in team.paths {
        check_pattern(pattern)?;
    }
    let mut targets = change.body(TARGETS);
    if targets["delegations"].is_null() {
        targets["delegations"] = json!({"keys": {}, "roles": []});
    }
    if delegation(&targets, team.name).is_some() {
        if !team.keys.is_empty() || team.threshold.is_some() {
            return Err(usage(&format!(
                "the team {} already exists; change its keys with `qx-publish rotate {}`",
                team.name, team.name
            )));
        }
        for role in roles(&mut targets)? {
            if role["name"] == team.name {
                role["paths"] = json!(team.paths);
                role["terminating"] = json!(team.terminating);
            }
        }
        keep_artifacts(&change, &mut targets)?;
    } else {
        let wanted = match team.keys {
            [] => vec![NEW.to_owned()],
            given => given.to_vec(),
        };
        let threshold = team.threshold.unwrap_or(1);
        // Before a key is made that nobody would ask for. Two that are the same count once.
        check_threshold(threshold, wanted.len())?;
        let listed = new.take(&change.current, team.name, &wanted)?;
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
        change.propose(team.name, json!({"targets": {}}))?;
    }
    change.propose(TARGETS, targets)?;
    change.commit(&keys()?)
}

/// Takes a team's right to publish away. Its releases are no longer found; the artifacts that the releases of others
/// name are from now on published by the targets role.
pub fn remove(mut change: Change, team: &str, keys: &Keyring) -> Result<Done> {
    let mut targets = change.body(TARGETS);
    change.current.authority(team)?;
    roles(&mut targets)?.retain(|role| role["name"] != team);
    forget_unused_keys(&mut targets);
    keep_artifacts(&change, &mut targets)?;
    change.propose(TARGETS, targets)?;
    change.commit(keys)
}

/// Lists the artifacts that the remaining releases name, and that would no longer be found. A manifest says which digest
/// an appliance must find in them, so that nothing is trusted here that was not before.
fn keep_artifacts(change: &Change, targets: &mut Value) -> Result<()> {
    let mut after = change.current.roles.clone();
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
        let file = change.current.target_file(name, &release);
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
                && let Some((_, target)) = change.current.search(artifact)
            {
                list_target(targets, artifact, &target);
            }
        }
    }
    Ok(())
}

fn check_pattern(pattern: &str) -> Result<()> {
    let wrong = |why: &str| usage(&format!("the pattern '{}' {why}", text::name(pattern)));
    pattern
        .parse::<RelPath>()
        .map_err(|why| wrong(&format!("matches no target: {why}")))?;
    if pattern.contains(['[', ']']) {
        return Err(wrong(
            "contains a bracket, which TUF clients interpret differently",
        ));
    }
    Ok(())
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
