//! The link stage of recovery: looks, lets [`crate::recovery::decide`] decide, and carries it out. Files only; it runs no
//! command, starts no service, and may run any number of times. `docs/recovery.md` has the table.

use crate::model::record::Loaded;
use crate::store::sets;
use crate::system::host::FACTORY_BOOT;
use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::model::record::{Idle, Operation, Phase, Record, Refusal, RefusalKind};
use crate::model::slot::{Installed, Link, Set, Slot, Verdict};
use crate::recovery::decide::{self, Decision, Observed};
use crate::store::{BootNote, Store};
use crate::system::host::Host;
use crate::system::log::Log;
use qx_release::error::{Error, Exit, Result};
use qx_release::manifest::Name;

/// What the link stage left behind.
pub struct Outcome {
    /// The record as it stands, whether it could be written or not.
    pub record: Record,
    /// The set that init scripts find.
    pub show: Set,
    /// What a person should know.
    pub problems: Vec<String>,
    /// Why no operation can build on this: the record could not be written, the links do not select what was chosen.
    pub obstacle: Option<Error>,
    /// The operation whose services may have been left stopped.
    pub interrupted: Option<Operation>,
}

/// Brings the priority link and the record in order. The caller holds the lock, or nothing can be written.
///
/// # Errors
/// Only if the boot must not go on with `/data` in place: a set that must not be used could not be hidden.
pub fn link_stage(host: &Host, store: &Store, log: &mut Log) -> Result<Outcome> {
    let mut problems = Vec::new();
    let mut obstacle = None;
    let mut told = |e: Error, problems: &mut Vec<String>| {
        problems.push(e.chain());
        obstacle.get_or_insert(e);
    };
    let mut writable = true;
    if let Err(e) = store.prepare() {
        told(e, &mut problems);
        writable = false;
    }
    let (mut factory, fault) = store.factory();
    let loaded = store.load();
    if let Some(fault) = fault {
        match &loaded {
            // It is the one that the record knows, for all that can be told.
            Loaded::Record(record) => factory = recorded_factory(record).unwrap_or(factory),
            // What it leaves the data at must not be recorded as nothing.
            Loaded::Absent | Loaded::Unreadable(_) => writable = false,
        }
        problems.push(fault);
    }
    let link = store.link();
    let hidden = match store.boot_note() {
        Ok(note) => note.and_then(|note| note.hidden),
        Err(e) => {
            told(e, &mut problems);
            None
        }
    };
    let seen = RefCell::new(BTreeMap::new());
    let verify = |slot: Slot| -> Verdict {
        seen.borrow_mut()
            .entry(slot)
            .or_insert_with(|| match store.verify(slot) {
                Verdict::Damaged(why) => Verdict::Damaged(host.own_paths(&why)),
                verdict => verdict,
            })
            .clone()
    };
    let fit = |set: Set, schemas: &BTreeMap<Name, u64>| sets::fit(store, set, schemas);
    let leaves = |set: Set| leaves(store, set);
    let moment = host.moment();
    let now = host.timestamp();
    let decide = |writable: bool| {
        decide::decide(&Observed {
            loaded: &loaded,
            link: &link,
            slots: store.has_slots(),
            verify: &verify,
            factory: &factory,
            fit: &fit,
            leaves: &leaves,
            factory_boot: host.kernel_argument(FACTORY_BOOT),
            moment: &moment,
            writable,
            snapshot: store.has_snapshot(),
            now: &now,
        })
    };
    if let (Some(slot), Loaded::Record(record)) = (hidden, &loaded) {
        // What is hidden looks damaged: nothing is concluded from it until the next boot.
        let what = format!(
            "slot {slot} is hidden until the next boot, because the links could not be changed"
        );
        told(Error::with(Exit::NeedsPerson, what), &mut problems);
        return Ok(Outcome {
            record: (**record).clone(),
            show: Set::Factory,
            problems,
            obstacle,
            interrupted: None,
        });
    }
    let mut decision = decide(writable);
    let known = matches!(&loaded, Loaded::Record(record) if **record == decision.record);
    if !known && writable {
        // The record first: wherever the power goes, the next boot decides the same.
        let saved = hold(&decision, store, &now).and_then(|()| store.save(&decision.record));
        match (saved, &loaded) {
            (Ok(()), _) => {}
            // Nothing else depends on it, least of all a proof that goes on.
            (Err(e), Loaded::Record(record)) if only_lasted(record, &decision.record) => {
                log.warning("recover", e.chain());
            }
            (Err(e), _) => {
                told(e, &mut problems);
                decision = decide(false);
            }
        }
    }
    for note in &decision.notes {
        log.warning("recover", note.clone());
    }
    let mut hidden = None;
    for e in show(&decision, &link, store, log, &mut hidden)? {
        told(e, &mut problems);
    }
    if let Some(slot) = hidden {
        problems.push(format!(
            "slot {slot} is hidden for this boot: the factory set runs"
        ));
    }
    if writable && let Err(e) = drop_leftovers(&decision, store) {
        problems.push(e.chain());
    }
    if let Phase::Idle(idle) = &decision.record.phase {
        problems.extend(idle.trouble.iter().map(|t| t.what.clone()));
    }
    let mut problems: Vec<String> = problems.iter().map(|p| host.own_paths(p)).collect();
    problems.dedup();
    for problem in &problems {
        log.warning("recover", problem.clone());
    }
    let show = if hidden.is_some() {
        Set::Factory
    } else {
        decision.show
    };
    let note = BootNote {
        boot_id: moment.boot_id,
        time: now,
        show,
        hidden,
        problems: problems.clone(),
    };
    if let Err(e) = store.write_boot_note(&note) {
        log.warning("recover", e.chain());
    }
    let left = decision.record.stopped.as_deref().cloned();
    let interrupted = match loaded {
        Loaded::Record(record)
            if matches!(record.phase, Phase::Staging { .. } | Phase::Staged { .. } | Phase::Switching { .. })
                // On the way back the data comes first.
                && !matches!(decision.record.phase, Phase::Reverting { .. }) =>
        {
            record
                .operation()
                .filter(|op| !op.ran.is_empty())
                .cloned()
                .or(left)
        }
        _ => left,
    };
    Ok(Outcome {
        record: decision.record,
        show,
        problems,
        obstacle,
        interrupted,
    })
}

/// The factory set as a record knows it.
fn recorded_factory(record: &Record) -> Option<Installed> {
    let idle = match &record.phase {
        Phase::Idle(idle) => idle,
        _ => &record.operation()?.before,
    };
    let known = [Some(&idle.active), idle.fallback.as_ref()];
    let factory = known
        .into_iter()
        .flatten()
        .find(|set| set.set == Set::Factory);
    factory.cloned()
}

/// The schemas that a set leaves the data with.
fn leaves(store: &Store, set: Set) -> BTreeMap<Name, u64> {
    // Where it cannot be read nothing is written: that it leaves nothing is never recorded.
    let manifest = store.manifest(set).ok().flatten();
    let data = manifest.into_iter().flat_map(|(manifest, _)| manifest.data);
    data.map(|data| (data.name, data.schema_after)).collect()
}

/// Whether all that there is to write is how long a trial has lasted.
fn only_lasted(old: &Record, new: &Record) -> bool {
    let without = |record: &Record| {
        let mut record = record.clone();
        if let Phase::Trial { lasted, .. } = &mut record.phase {
            *lasted = None;
        }
        record
    };
    without(old) == without(new)
}

/// What no phase needs any more.
fn drop_leftovers(decision: &Decision, store: &Store) -> Result<()> {
    store.drop_scratch()?;
    if !decision.drop_leftovers {
        return Ok(());
    }
    let kept = matches!(&decision.record.phase, Phase::Idle(Idle { trouble: Some(t), .. }) if t.needs_person);
    // A person may still want saved data that no record explains.
    if !kept {
        store.drop_snapshot()?;
    }
    store.drop_leftovers()
}

fn hold(decision: &Decision, store: &Store, now: &str) -> Result<()> {
    let Some((op, reason)) = &decision.hold else {
        return Ok(());
    };
    let Some(manifest) = op.to.manifest else {
        return Ok(());
    };
    store.refuse(Refusal {
        manifest,
        version: op.to.version.clone(),
        kind: RefusalKind::Held,
        reason: reason.clone(),
        at: now.to_owned(),
    })
}

/// Makes init scripts find the chosen set: through the links, or, where they cannot be changed, by hiding the slot that
/// they select. Returns what failed.
fn show(
    decision: &Decision,
    link: &Link,
    store: &Store,
    log: &mut Log,
    hidden: &mut Option<Slot>,
) -> Result<Vec<Error>> {
    let fixed = store.repair_fixed_links();
    let selected = link.selects(decision.show);
    let moved = if selected {
        Ok(())
    } else {
        store.set_link(decision.show)
    };
    if moved.is_ok() && !selected {
        log.info(
            "recover",
            format!("the priority link selects {} now", decision.show),
        );
    }
    // A plain directory in the place of a fixed link hides every release by itself.
    let plain = matches!(&fixed, Err(e) if e.exit == Exit::NeedsPerson);
    let failed: Vec<Error> = [fixed, moved].into_iter().filter_map(Result::err).collect();
    if failed.is_empty() || (plain && failed.len() == 1) {
        return Ok(failed);
    }
    // With the links as they are, init scripts may find what was not chosen, or half of it.
    match store.link() {
        Link::To(slot) => {
            store.hide(slot)?;
            *hidden = Some(slot);
            Ok(failed)
        }
        Link::Absent => Ok(failed),
        Link::Foreign(target) => Err(Error::new(format!(
            "using {}: it points to {target}, and cannot be changed",
            store.path("current").display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::{Lasted, Moment};

    /// A record that differs in anything else, the count of boots above all, must be written before a trial goes on.
    #[test]
    fn only_how_long_a_trial_has_lasted_may_stay_unwritten() {
        let golden = include_bytes!("../../tests/golden/state-1-trial-data.json");
        let old = crate::model::record::decode(golden).unwrap().1;
        let mut later = old.clone();
        let Phase::Trial { lasted, .. } = &mut later.phase else {
            panic!("no trial");
        };
        *lasted = Some(Lasted::since(&Moment {
            boot_id: "one".into(),
            uptime_s: 5,
        }));
        assert!(old != later && only_lasted(&old, &later));
        let mut counted = later.clone();
        if let Phase::Trial { boots, .. } = &mut counted.phase {
            *boots += 1;
        }
        assert!(!only_lasted(&later, &counted));
        assert!(!only_lasted(&old, &counted));
    }
}
