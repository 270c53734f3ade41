//! What targets metadata say: what is published, whom they delegate to, what each team may publish, and where an appliance
//! finds a target.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::authority::key_ids;
use super::envelope::{Authority, Envelope, texts};
use super::role::TARGETS;
use qx_release::digest::Digest;
use qx_release::error::{Error, Result};
use qx_release::manifest::RelPath;
use qx_release::trust::Limits;
use qx_release::trust::delegation::{RoleName, matches};
use qx_release::trust::described::{self, TargetFile, TargetInfo};
use qx_release::trust::search::{self, Listing};

/// The teams that targets metadata delegate to, in the order of the search.
pub(crate) fn teams(targets: &Value) -> Vec<String> {
    let roles = targets["delegations"]["roles"].as_array();
    let names = roles
        .into_iter()
        .flatten()
        .filter_map(|role| role["name"].as_str());
    names.map(str::to_owned).collect()
}

/// The role that an appliance finds a target in, and what it says, by the very search that appliances use. What teams delegate
/// further is not known here, and found nowhere.
pub(crate) fn search<'a>(
    roles: &'a BTreeMap<String, Envelope>,
    name: &RelPath,
) -> Option<(&'a str, TargetFile)> {
    let targets = roles.get(TARGETS)?;
    let unknown = Envelope::default();
    let found = search::search(targets, name, &Limits::default(), &mut |delegation| {
        Ok(roles.get(delegation.role.as_str()).unwrap_or(&unknown))
    });
    let found = found.ok()??;
    let role = found.role.as_ref().map_or(TARGETS, RoleName::as_str);
    let (role, _) = roles.get_key_value(role)?;
    Some((role, found.target.file()?))
}

impl Listing for Envelope {
    fn target(&self, name: &RelPath) -> Option<TargetInfo> {
        let file = target(&self.signed, name)?;
        Some(TargetInfo {
            withdrawn: withdrawn(&self.signed, name),
            ..TargetInfo::from(file)
        })
    }

    fn delegations(&self) -> Option<Cow<'_, str>> {
        let delegations = &self.signed["delegations"];
        (!delegations.is_null()).then(|| delegations.to_string().into())
    }
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

/// Why targets metadata say that a release was taken back, if they do.
pub(crate) fn withdrawn(signed: &Value, name: &RelPath) -> Option<String> {
    described::withdrawn(&signed["targets"].get(name.as_str())?["custom"])
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

/// Whether a delegation's patterns, or the prefixes of digests that other tools write, match a target.
fn may_publish(named: &Value, name: &RelPath) -> bool {
    let digest = Digest::of(name.as_str().as_bytes()).to_string();
    texts(&named["paths"]).any(|pattern| matches(pattern, name.as_str()))
        || texts(&named["path_hash_prefixes"]).any(|prefix| digest.starts_with(prefix))
}

/// The delegations of targets metadata.
pub(crate) fn roles(targets: &mut Value) -> Result<&mut Vec<Value>> {
    targets["delegations"]["roles"]
        .as_array_mut()
        .ok_or_else(|| {
            Error::new(
                "the targets delegate by hash bins, and this version adds no team beside these",
            )
        })
}

/// Takes out the keys that no team has any longer.
pub(crate) fn forget_unused_keys(targets: &mut Value) {
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
