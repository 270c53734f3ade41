//! Who may speak for a role: how many keys it has, how many must sign, and how a root says so.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::envelope::{Authority, texts};
use qx_release::error::{Error, ErrorKind, Result};

/// The most keys that one role is given.
pub(crate) const MAX_KEYS: usize = 32;

/// Refuses a threshold that no set of signatures satisfies, or that every set would.
pub(crate) fn check_threshold(threshold: u64, keys: usize) -> Result<()> {
    if keys > MAX_KEYS {
        return Err(usage(&format!("a role has at most {MAX_KEYS} keys")));
    }
    if threshold == 0 || threshold > keys as u64 {
        return Err(usage(&format!(
            "cannot require {threshold} signatures of {keys} keys"
        )));
    }
    Ok(())
}

/// The ids of an authority's keys.
pub(crate) fn key_ids(authority: &Authority) -> Vec<&String> {
    authority.keys.keys().collect()
}

/// Puts a role's keys into a root, and takes those out that no role has any longer.
pub(crate) fn set_keys(root: &mut Value, role: &str, authority: &Authority) {
    root["roles"][role] = json!({"keyids": key_ids(authority), "threshold": authority.threshold});
    for (id, key) in &authority.keys {
        root["keys"][id] = key.clone();
    }
    let used: BTreeSet<String> = root["roles"]
        .as_object()
        .into_iter()
        .flat_map(|roles| roles.values())
        .flat_map(|role| texts(&role["keyids"]))
        .map(str::to_owned)
        .collect();
    if let Some(keys) = root["keys"].as_object_mut() {
        keys.retain(|id, _| used.contains(id));
    }
}

/// The error for a request that cannot be carried out.
pub(crate) fn usage(why: &str) -> Error {
    Error::with(ErrorKind::Usage, why)
}
