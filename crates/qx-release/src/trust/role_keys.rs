//! Who speaks for a role: some keys, and how many of them must sign.

use std::collections::BTreeSet;

use super::key::{Key, Keys, Verifiers};
use super::limits::Limits;
use crate::json;

/// The keys that speak for a role, and how many of them it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    /// Declared key ids.
    pub keyids: BTreeSet<String>,
    /// At least 1.
    pub threshold: u64,
}

impl RoleKeys {
    /// Selects these keys from a delegator's keys.
    pub fn verifiers(&self, keys: &Keys) -> Verifiers {
        let known = self.keyids.iter().filter_map(|id| keys.get_key_value(id));
        Verifiers {
            keys: known.map(|(id, key)| (id.clone(), key.clone())).collect(),
            threshold: self.threshold,
        }
    }

    /// The members `keyids` and `threshold` of an object.
    pub(super) fn parse(text: &str, limits: &Limits) -> Result<RoleKeys, String> {
        let [keyids, threshold] = json::fields(text, ["keyids", "threshold"])?;
        let listed = json::there(keyids, "keyids")?;
        let threshold = json::integer(threshold, "threshold")?;
        if threshold == 0 {
            return Err("a threshold of 0 would let anybody sign".into());
        }
        let mut keyids = BTreeSet::new();
        json::items(listed, &mut |id| {
            at_most(keyids.len(), limits.keys, "key ids")?;
            if !keyids.insert(json::string(id)?.into_owned()) {
                return Err("duplicate key id".into());
            }
            Ok(())
        })?;
        Ok(RoleKeys { keyids, threshold })
    }
}

/// The keys of known schemes in a `keys` object.
pub(super) fn parse_keys(text: &str, limits: &Limits) -> Result<Keys, String> {
    let mut keys = Keys::new();
    let mut listed = 0;
    json::members(text, &mut |id, key| {
        at_most(listed, limits.keys, "keys")?;
        listed += 1;
        keys.extend(Key::parse(key).map(|key| (id.into_owned(), key)));
        Ok(())
    })?;
    Ok(keys)
}

/// Fails if one more would exceed the limit.
pub(super) fn at_most(there: usize, limit: usize, what: &str) -> Result<(), String> {
    if there >= limit {
        return Err(format!("more than {limit} {what}"));
    }
    Ok(())
}
