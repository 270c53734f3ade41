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
    let mut found = Found {
        store,
        damaged: Vec::new(),
    };
    // The shipped root is for a refresh to judge.
    if let Ok(mut set) = TrustedSet::new(root, clock, limits) {
        found.roots(&mut set, known);
        // Another image has a root of its own: what an older one verified is fetched again.
        if set.root().version == known {
            found.top(&mut set);
            found.targets(&set, limits);
        }
    }
    found.damaged
}

struct Found<'a> {
    store: &'a Path,
    damaged: Vec<String>,
}

impl Found<'_> {
    fn judge(&mut self, file: &str, taken: Result<(), Error>) {
        if let Err(why @ (Error::Malformed { .. } | Error::Signatures { .. })) = taken {
            self.tell(file, &why);
        }
    }

    fn tell(&mut self, file: &str, why: &Error) {
        let path = self.store.join(file);
        self.damaged
            .push(format!("reading {}: {why}", path.display()));
    }

    /// The roots up to the known one; what follows a damaged one cannot be verified without it.
    fn roots(&mut self, set: &mut TrustedSet, known: u64) {
        while set.root().version < known {
            let file = format!("{}.root.json", set.root().version + 1);
            let Some(bytes) = kept(self.store, &file) else {
                return;
            };
            if let Err(why) = set.update_root(&bytes) {
                return self.tell(&file, &why);
            }
        }
    }

    fn top(&mut self, set: &mut TrustedSet) {
        if let Some(bytes) = kept(self.store, "timestamp.json") {
            let taken = set.update_timestamp(&bytes).map(drop);
            self.judge("timestamp.json", taken);
        }
        if let Some(bytes) = kept(self.store, "snapshot.json") {
            let taken = set.update_snapshot(&bytes, SnapshotCopy::Stored);
            self.judge("snapshot.json", taken);
        }
    }

    /// The targets, and those of the roles that they lead to.
    fn targets(&mut self, set: &TrustedSet, limits: &Limits) {
        let root = set.root();
        let by = || format!("root {}", root.version);
        let verifiers = root.verifiers(Role::Targets);
        let Some(bytes) = kept(self.store, "targets.json") else {
            return;
        };
        let targets = match Targets::verified(bytes, &verifiers, &by, limits) {
            Ok(targets) => targets,
            Err(why) => return self.judge("targets.json", Err(why)),
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
            let Some(bytes) = kept(self.store, &file) else {
                continue;
            };
            match Targets::verified(bytes, &delegation.verifiers, &by, limits) {
                Ok(targets) => next.extend(search::every(&targets, role.as_str(), limits)),
                Err(why) => self.judge(&file, Err(why)),
            }
        }
    }
}
