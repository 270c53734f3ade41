//! The installed sets, as candidates to switch to.

use std::cell::RefCell;
use std::collections::BTreeMap;

use qx_release::manifest::Name;

use super::{Store, Verified};
use crate::model::choice;
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
    let factory = store.factory().0;
    let verdict = |slot| store.verify(slot);
    let (chosen, why) = choice::choose(Some(from), &factory, &verdict, &|set| {
        fit(store, set, schemas)
    });
    if let Some(why) = why {
        log.warning("recover", format!("cannot return to {from}: {why}"));
    }
    chosen
}

/// What a slot holds, if it still is what it was recorded to hold.
pub fn verified(store: &Store, installed: &Installed, log: &mut Log) -> Option<Verified> {
    let found = RefCell::new(None);
    let verdict = |slot| match store.verified(slot) {
        Ok(Some(verified)) => {
            let verdict = Verdict::Good(verified.installed.clone());
            found.replace(Some(verified));
            verdict
        }
        Ok(None) => Verdict::Empty,
        Err(why) => Verdict::Damaged(why),
    };
    if let Err(why) = choice::verify(installed, &verdict) {
        log.warning("recover", format!("cannot use {installed}: {why}"));
        return None;
    }
    found.into_inner()
}

/// Whether a set can run on data with these schemas; one without a manifest says nothing against it. A manifest that cannot be
/// read may say anything.
pub fn fit(store: &Store, set: Set, schemas: &BTreeMap<Name, u64>) -> Fit {
    match store.manifest(set) {
        Ok(Some((manifest, _))) => Fit::of(&manifest, schemas),
        Ok(None) => Fit::Now,
        Err(_) if schemas.is_empty() => Fit::Now,
        Err(e) => Fit::Never(format!("cannot tell which data it accepts: {}", e.chain())),
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
