//! The link stage of recovery: looks, lets [`crate::decision`] decide, and carries it out. Files only; it runs no
//! command, starts no service, and may run any number of times. `docs/recovery.md` has the table.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::decision::{self, Decision, Loaded, Observed};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::log::Log;
use crate::slot::{Installed, Link, Set, Slot, Verdict};
use crate::state::{Phase, Record, Refusal, RefusalKind};
use crate::store::{BootNote, Store};

/// What the link stage left behind.
pub struct Outcome {
    /// The record as it stands, whether it could be written or not.
    pub record: Record,
    /// The set that init scripts will find.
    pub show: Set,
    /// What a person should know.
    pub problems: Vec<String>,
    /// Whether the record is on the medium.
    pub durable: bool,
}

/// Brings the priority link and the record in order. The caller holds the lock, or nothing can be written.
///
/// # Errors
/// Only if the boot must not go on with `/data` in place: a set that must not be used could not be hidden.
pub fn link_stage(host: &Host, store: &Store, log: &mut Log) -> Result<Outcome> {
    let mut problems = Vec::new();
    let writable = match store.prepare() {
        Ok(()) => true,
        Err(e) => {
            problems.push(e.chain());
            false
        }
    };
    let (factory, fault) = store.factory();
    problems.extend(fault);
    let loaded = store.load();
    let link = store.link();
    let seen = RefCell::new(BTreeMap::new());
    let verify = |slot: Slot| -> Verdict {
        seen.borrow_mut()
            .entry(slot)
            .or_insert_with(|| store.verify(slot))
            .clone()
    };
    let boot_id = host.boot_id().unwrap_or_default();
    let now = host.timestamp();
    let decide = |writable: bool| {
        decision::decide(&Observed {
            loaded: &loaded,
            link: &link,
            slots: store.has_slots(),
            verify: &verify,
            factory: &factory,
            factory_boot: host.kernel_argument("qx.factory"),
            boot_id: &boot_id,
            writable,
            snapshot: has_entries(store, "update/snapshot"),
            now: &now,
        })
    };
    let mut decision = decide(writable);
    let mut durable = writable;
    let known = matches!(&loaded, Loaded::Record(record) if **record == decision.record);
    if !known && writable {
        // The record first: wherever the power goes, the next boot decides the same.
        let saved = hold(&decision, store, &now).and_then(|()| store.save(&decision.record));
        if let Err(e) = saved {
            problems.push(e.chain());
            decision = decide(false);
            durable = false;
        }
    }
    for note in &decision.notes {
        log.warning("recover", note.clone());
    }
    show(&decision, &link, store, log, &mut problems)?;
    if decision.drop_leftovers
        && writable
        && let Err(e) = store.drop_leftovers()
    {
        problems.push(e.chain());
    }
    if let Phase::Idle(idle) = &decision.record.phase {
        problems.extend(idle.trouble.iter().map(|t| t.what.clone()));
    }
    problems.dedup();
    for problem in &problems {
        log.warning("recover", problem.clone());
    }
    let note = BootNote {
        boot_id,
        time: now,
        show: decision.show,
        problems: problems.clone(),
    };
    if let Err(e) = store.write_boot_note(&note) {
        log.warning("recover", e.chain());
    }
    Ok(Outcome {
        record: decision.record,
        show: decision.show,
        problems,
        durable,
    })
}

/// The set to return to: what ran before, if it verifies, else the factory set.
pub fn choose(store: &Store, from: &Installed, log: &mut Log) -> Installed {
    let factory = || store.factory().0;
    let Some(slot) = from.set.slot() else {
        return factory();
    };
    match store.verify(slot) {
        Verdict::Good(found) if found.manifest == from.manifest => from.clone(),
        other => {
            log.warning(
                "recover",
                format!("{from} cannot be returned to: {}", describe(&other)),
            );
            factory()
        }
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
/// they select.
fn show(
    decision: &Decision,
    link: &Link,
    store: &Store,
    log: &mut Log,
    problems: &mut Vec<String>,
) -> Result<()> {
    let fixed = store.repair_fixed_links();
    let moved = if link.selects(decision.show) {
        Ok(())
    } else {
        store.set_link(decision.show)
    };
    if let (Ok(()), false) = (&moved, link.selects(decision.show)) {
        log.info(
            "recover",
            format!("the priority link selects the {} now", decision.show),
        );
    }
    let failed: Vec<Error> = [fixed, moved].into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        return Ok(());
    }
    problems.extend(failed.iter().map(Error::chain));
    // With the links as they are, init scripts may find what was not chosen, or half of it.
    match store.link() {
        Link::To(slot) => {
            store.hide(slot)?;
            problems.push(format!(
                "slot {slot} is hidden for this boot: the factory set runs"
            ));
            Ok(())
        }
        Link::Absent => Ok(()),
        Link::Foreign(target) => Err(Error::new(format!(
            "using {}: it points to {target}, and cannot be changed",
            store.path("current").display()
        ))),
    }
}

fn has_entries(store: &Store, directory: &str) -> bool {
    std::fs::read_dir(store.path(directory)).is_ok_and(|mut entries| entries.next().is_some())
}
