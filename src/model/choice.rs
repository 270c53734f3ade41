//! Which set to go to: one rule, for a boot and for the way back on the running system.

use super::fit::Fit;
use super::slot::{Installed, Set, Slot, Verdict};

/// Whether a set still matches its record. The factory set lies on an immutable medium and is the last resort, so it is
/// not verified here.
///
/// # Errors
/// What is wrong with it.
pub fn verify(set: &Installed, verdict: &dyn Fn(Slot) -> Verdict) -> Result<(), String> {
    let Some(slot) = set.set.slot() else {
        return Ok(());
    };
    match verdict(slot) {
        Verdict::Good(found) if found.manifest == set.manifest => Ok(()),
        Verdict::Good(found) => Err(format!("it contains {found}")),
        Verdict::Empty => Err("the slot is empty".into()),
        Verdict::Damaged(why) => Err(why),
    }
}

/// Chooses `first` if it verifies and fits the data, else the factory set, with the reason. If the factory set does not
/// fit the data either, it is chosen all the same, and services that use the data stay stopped.
pub fn choose(
    first: Option<&Installed>,
    factory: &Installed,
    verdict: &dyn Fn(Slot) -> Verdict,
    fit: &dyn Fn(Set) -> Fit,
) -> (Installed, Option<String>) {
    let Some(first) = first.filter(|first| first.set != Set::Factory) else {
        return (factory.clone(), None);
    };
    let obstacle = match verify(first, verdict) {
        Ok(()) => fit(first.set).obstacle(),
        Err(why) => Some(why),
    };
    match obstacle {
        None => (first.clone(), None),
        Some(why) => (factory.clone(), Some(why)),
    }
}
