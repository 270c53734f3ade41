//! Whose signatures a change needs, and which of what has them can be published without the rest.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Change;
use crate::draft::Draft;
use crate::envelope::{Authority, Envelope, meta};
use crate::keyring::Keyring;
use crate::role::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use crate::targets;
use qx_release::error::{Error, Result};

impl Change {
    /// The root that is proposed, or the current one.
    pub(super) fn new_root(&self) -> &Value {
        let proposed = self.proposals.get(ROOT).map(|draft| &draft.envelope.signed);
        proposed.unwrap_or(self.current.root())
    }

    /// A root that takes keys of the targets away leaves targets that nobody trusts, unless the new keys sign them
    /// first.
    pub(super) fn sign_targets_again(&mut self) -> Result<()> {
        let new = Authority::of_root(self.new_root(), TARGETS);
        let current = self.current.role(TARGETS)?;
        if !self.proposals.contains_key(TARGETS) && !current.verifies(&new) {
            self.propose(TARGETS, current.signed.clone())?;
        }
        Ok(())
    }

    pub(super) fn complete_asks(&mut self) -> Result<()> {
        let roles: Vec<String> = self.proposals.keys().cloned().collect();
        for role in roles {
            let asks = self.asks(&role)?;
            if let Some(proposal) = self.proposals.get_mut(&role) {
                proposal.asks = asks;
            }
        }
        Ok(())
    }

    /// Whose signatures a proposal needs.
    pub(super) fn asks(&self, role: &str) -> Result<Vec<Authority>> {
        let (old, new) = match role {
            ROOT | TARGETS | SNAPSHOT | TIMESTAMP => (
                Authority::of_root(self.current.root(), role),
                Authority::of_root(self.new_root(), role),
            ),
            team => {
                let targets = match self.proposals.get(TARGETS) {
                    Some(draft) => &draft.envelope.signed,
                    None => &self.current.role(TARGETS)?.signed,
                };
                let Some(authority) = Authority::of_team(targets, team) else {
                    return Err(Error::new(format!(
                        "a draft of the team {team} is pending, but the targets do not delegate to that team; remove {}",
                        self.proposals[role].file(&self.current.dir).display()
                    )));
                };
                return Ok(vec![authority]);
            }
        };
        if old.same(&new) {
            return Ok(vec![new]);
        }
        // The new root must not do without what the old one asks for; all others can, if the key is lost.
        if role != ROOT && self.without_old_key {
            return Ok(vec![new]);
        }
        Ok(vec![old, new])
    }

    /// The first proposal that cannot be published with the others, and why.
    pub(super) fn obstacle(
        &self,
        ready: &BTreeMap<String, Draft>,
    ) -> Result<Option<(String, String)>> {
        for (role, draft) in ready {
            let missing = draft.missing()?;
            if !missing.is_empty() {
                return Ok(Some((role.clone(), missing.join("; "))));
            }
        }
        let targets = match ready.get(TARGETS) {
            Some(draft) => &draft.envelope,
            None => self.current.role(TARGETS)?,
        };
        let teams = targets::teams(&targets.signed);
        let mut other = ready
            .keys()
            .filter(|role| ![ROOT, TARGETS].contains(&role.as_str()));
        if let Some(team) = other.find(|role| !teams.contains(role)) {
            return Ok(Some((
                team.clone(),
                "the targets that delegate to it are pending too".into(),
            )));
        }
        for team in teams {
            let metadata = match ready.get(&team) {
                Some(draft) => Some(&draft.envelope),
                None => self.current.roles.get(&team),
            };
            let trusted = Authority::of_team(&targets.signed, &team)
                .is_some_and(|authority| metadata.is_some_and(|m| m.verifies(&authority)));
            if !trusted {
                let cause = if ready.contains_key(TARGETS) {
                    TARGETS
                } else {
                    &team
                };
                let why = format!(
                    "the metadata of the team {team}, signed by its new keys, must be published together with the targets that name \
                     these keys"
                );
                return Ok(Some((cause.into(), why)));
            }
        }
        // The targets that a waiting root asks to be signed anew may be published before it, not after it.
        if ready.contains_key(ROOT) {
            if !targets.verifies(&Authority::of_root(self.new_root(), TARGETS)) {
                let why = "the targets, signed by their new keys, must be published first";
                return Ok(Some((ROOT.into(), why.into())));
            }
        } else if self.without_old_key
            && let Some(draft) = ready.get(TARGETS)
            && !draft.envelope.verifies(&self.current.authority(TARGETS)?)
        {
            return Ok(Some((
                TARGETS.into(),
                "the root that names their keys is pending too".into(),
            )));
        }
        Ok(None)
    }

    /// Which of snapshot and timestamp have to be signed anew, in this order.
    pub(super) fn online_roles(
        &self,
        ready: &BTreeMap<String, Draft>,
    ) -> Result<Vec<&'static str>> {
        let stale = |role| -> Result<bool> {
            let current = self.current.role(role)?;
            let asks = match ready.get(ROOT) {
                Some(root) => Authority::of_root(&root.envelope.signed, role),
                None => self.current.authority(role)?,
            };
            Ok(self.renew.contains(role) || !current.verifies(&asks))
        };
        let snapshot = ready.keys().any(|role| role != ROOT) || stale(SNAPSHOT)?;
        let timestamp = snapshot || stale(TIMESTAMP)?;
        let roles = [(snapshot, SNAPSHOT), (timestamp, TIMESTAMP)];
        Ok(roles
            .into_iter()
            .filter_map(|(due, role)| due.then_some(role))
            .collect())
    }

    pub(super) fn online_asks(
        &self,
        ready: &BTreeMap<String, Draft>,
        role: &str,
    ) -> Vec<Authority> {
        let old = Authority::of_root(self.current.root(), role);
        match ready.get(ROOT) {
            None => vec![old],
            Some(root) => {
                let new = Authority::of_root(&root.envelope.signed, role);
                if self.without_old_key {
                    vec![new]
                } else {
                    vec![old, new]
                }
            }
        }
    }

    /// Signs the snapshot and the timestamp, as far as they have to be.
    pub(super) fn online(
        &self,
        ready: &BTreeMap<String, Draft>,
        keys: &Keyring,
    ) -> Result<BTreeMap<&'static str, Envelope>> {
        let mut new = BTreeMap::new();
        for role in self.online_roles(ready)? {
            let mut body = self.body(role);
            if role == SNAPSHOT {
                for (role, draft) in ready.iter().filter(|(role, _)| *role != ROOT) {
                    let file = format!("{role}.json");
                    body["meta"][file] = meta(draft.envelope.version(), &draft.envelope.bytes()?);
                }
            } else if let Some(snapshot) = new.get(SNAPSHOT) {
                let snapshot: &Envelope = snapshot;
                body["meta"]["snapshot.json"] = meta(snapshot.version(), &snapshot.bytes()?);
            }
            let mut envelope = self.next(role, body);
            for authority in self.online_asks(ready, role) {
                envelope.sign(&authority, keys)?;
                if let Some(missing) = authority.missing(&envelope)? {
                    let lost = match ready.contains_key(ROOT) {
                        true => "; if the old key is permanently lost, add --without-old-key",
                        false => "",
                    };
                    return Err(keys.missing(&format!(
                        "key of the {role} role, which signs this publication: {missing}{lost}"
                    )));
                }
            }
            new.insert(role, envelope);
        }
        Ok(new)
    }
}
