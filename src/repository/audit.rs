//! All of a repository, for its publisher: every role that anything is delegated to, whether an appliance would ever ask it or
//! not.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::Repository;
use crate::fetch::port::Fetch;
use qx_release::error::Result;
use qx_release::trust::Role;
use qx_release::trust::metadata::{Expires, Targets};
use qx_release::trust::search;

/// What a role's metadata say of themselves, and, if they are targets metadata, what they list.
pub struct Audited<'a> {
    /// Which version.
    pub version: u64,
    /// Until when they are valid.
    pub expires: &'a Expires,
    /// The targets.
    pub targets: Option<&'a Targets>,
}

impl Audited<'_> {
    /// Whether they are not valid any more at that time.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.expires.at <= now
    }
}

impl Repository {
    /// Shows every role to `visit`, those at the top first: the metadata as they were verified, or why they are not good.
    pub fn audit(&self, source: &dyn Fetch, visit: &mut dyn FnMut(&str, Result<Audited>)) {
        let root = self.set.root();
        let mut top = |role: Role, version, expires| {
            let targets = self.set.targets().filter(|_| role == Role::Targets);
            let audited = Audited {
                version,
                expires,
                targets,
            };
            visit(role.as_str(), Ok(audited));
        };
        top(Role::Root, root.version, &root.expires);
        if let Some(timestamp) = self.set.timestamp() {
            top(Role::Timestamp, timestamp.version, &timestamp.expires);
        }
        if let Some(snapshot) = self.set.snapshot() {
            top(Role::Snapshot, snapshot.version, &snapshot.expires);
        }
        let Some(targets) = self.set.targets() else {
            return;
        };
        top(Role::Targets, targets.version, &targets.expires);
        let limits = self.set.limits();
        let mut next = search::every(targets, Role::Targets.as_str(), limits);
        next.reverse();
        let mut seen = BTreeSet::new();
        while let Some(delegation) = next.pop() {
            // Somebody else may delegate to the same role with other keys.
            if !seen.insert((delegation.role.clone(), delegation.delegator.clone())) {
                continue;
            }
            let role = delegation.role.as_str();
            match self.load(source, &delegation) {
                Ok(loaded) => {
                    let mut further = search::every(&loaded, role, limits);
                    further.reverse();
                    next.extend(further);
                    let audited = Audited {
                        version: loaded.version,
                        expires: &loaded.expires,
                        targets: Some(&loaded),
                    };
                    visit(role, Ok(audited));
                }
                Err(e) => visit(role, Err(e)),
            }
        }
    }
}
