//! The installed sets, as something to go to.

use std::collections::BTreeMap;

use qx_release::manifest::Name;

use super::Store;
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

/// Whether a slot still holds what it was recorded to hold.
pub fn verifies(store: &Store, installed: &Installed, log: &mut Log) -> bool {
    let verified = choice::verify(installed, &|slot| store.verify(slot));
    if let Err(why) = &verified {
        log.warning("recover", format!("cannot use {installed}: {why}"));
    }
    verified.is_ok()
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
