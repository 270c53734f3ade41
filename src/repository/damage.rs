//! Which of the kept metadata are damaged. A refresh takes such a copy for absent and fetches it again; until then nothing tells of
//! it but this.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use super::{DELEGATED, kept};
use qx_release::trust::clock::Clock;
use qx_release::trust::metadata::Targets;
use qx_release::trust::{Error, Limits, Role, SnapshotCopy, TrustedSet, search};

/// The kept metadata that do not verify, a sentence each; `root` is the shipped one, `known` the version of the root that
/// verified them last. Those that only expired, or that others have overtaken, are not damaged.
pub fn damaged(store: &Path, root: &[u8], known: u64, limits: &Limits) -> Vec<String> {
    // So early that nothing has expired.
    let clock = Clock::new(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
    // The shipped root is for a refresh to judge.
    let Ok(mut set) = TrustedSet::new(root, clock, limits) else {
        return Vec::new();
    };
    let told = |file: &str, why: &Error| format!("reading {}: {why}", store.join(file).display());
    while set.root().version < known {
        let file = format!("{}.root.json", set.root().version + 1);
        let taken = kept(store, &file).map(|bytes| set.update_root(&bytes));
        match taken {
            Some(Ok(())) => {}
            // What follows it cannot be verified without it.
            Some(Err(why)) => return vec![told(&file, &why)],
            None => return Vec::new(),
        }
    }
    // Another image has a root of its own: what an older one verified is fetched again.
    if set.root().version != known {
        return Vec::new();
    }
    let mut damaged = Vec::new();
    let mut judge = |file: &str, taken: Result<(), Error>| {
        if let Err(why @ (Error::Malformed { .. } | Error::Signatures { .. })) = taken {
            damaged.push(told(file, &why));
        }
    };
    if let Some(bytes) = kept(store, "timestamp.json") {
        judge("timestamp.json", set.update_timestamp(&bytes).map(drop));
    }
    if let Some(bytes) = kept(store, "snapshot.json") {
        let taken = set.update_snapshot(&bytes, SnapshotCopy::Stored);
        judge("snapshot.json", taken);
    }
    let root = set.root();
    let by = || format!("root {}", root.version);
    let verifiers = root.verifiers(Role::Targets);
    let Some(bytes) = kept(store, "targets.json") else {
        return damaged;
    };
    let targets = match Targets::verified(bytes, &verifiers, &by, limits) {
        Ok(targets) => targets,
        Err(why) => {
            judge("targets.json", Err(why));
            return damaged;
        }
    };
    let mut next = search::every(&targets, Role::Targets.as_str(), limits);
    let mut seen = BTreeSet::new();
    while let Some(delegation) = next.pop() {
        let role = &delegation.role;
        if !seen.insert(role.clone()) {
            continue;
        }
        let file = format!("{DELEGATED}/{}.json", role.encoded());
        let by = || format!("the delegation by {}", delegation.delegator.escape_debug());
        let Some(bytes) = kept(store, &file) else {
            continue;
        };
        match Targets::verified(bytes, &delegation.verifiers, &by, limits) {
            Ok(targets) => next.extend(search::every(&targets, role.as_str(), limits)),
            Err(why) => judge(&file, Err(why)),
        }
    }
    damaged
}
