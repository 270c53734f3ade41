//! The installed sets, as something to go to.

use std::collections::BTreeMap;

use qx_release::manifest::Name;

use super::Store;
use crate::model::fit::Fit;
use crate::model::slot::{Installed, Set, Verdict};
use crate::system::log::Log;

/// The set to return to: what ran before, if it verifies and fits data with these schemas, else the factory set.
pub fn choose(
    store: &Store,
    from: &Installed,
    schemas: &BTreeMap<Name, u64>,
    log: &mut Log,
) -> Installed {
    if from.set != Set::Factory && verifies(store, from, log) {
        match fit(store, from.set, schemas).obstacle() {
            None => return from.clone(),
            Some(why) => log.warning("recover", format!("{from} cannot be returned to: {why}")),
        }
    }
    store.factory().0
}

/// Whether a slot still holds what it was recorded to hold.
pub fn verifies(store: &Store, installed: &Installed, log: &mut Log) -> bool {
    let verdict = installed.set.slot().map(|slot| store.verify(slot));
    match verdict {
        Some(Verdict::Good(found)) if found.manifest == installed.manifest => true,
        Some(other) => {
            let what = format!("{installed} cannot be used: {}", describe(&other));
            log.warning("recover", what);
            false
        }
        None => false,
    }
}

/// Whether a set can run on data with these schemas; one without a manifest says nothing against it. A manifest that cannot be
/// read may say anything.
pub fn fit(store: &Store, set: Set, schemas: &BTreeMap<Name, u64>) -> Fit {
    match store.manifest(set) {
        Ok(Some((manifest, _))) => Fit::of(&manifest, schemas),
        Ok(None) => Fit::Now,
        Err(_) if schemas.is_empty() => Fit::Now,
        Err(e) => Fit::Never(format!("which data it accepts is not known: {}", e.chain())),
    }
}

/// A verdict in words.
pub fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Good(installed) => format!("good, {installed}"),
        Verdict::Empty => "empty".into(),
        Verdict::Damaged(why) => format!("damaged: {why}"),
    }
}
