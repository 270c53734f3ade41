//! The link stage of recovery: looks, lets [`crate::recovery::decide`] decide, and carries it out. Files only; it runs no
//! command, starts no service, and may run any number of times. `docs/recovery.md` has the table.

use crate::model::record::Loaded;
use crate::store::sets;
use crate::system::host::FACTORY_BOOT;
use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::model::boots::{Boot, Boots};
use crate::model::kept::{Kept, KeptReason};
use crate::model::operation::Operation;
use crate::model::phase::Phase;
use crate::model::record::Record;
use crate::model::refusal::{Refusal, RefusalKind};
use crate::model::slot::{Installed, Link, Set, Slot, Verdict};
use crate::recovery::decide::{self, Decision, Observed};
use crate::store::{BootNote, CommitPoint, Store};
use crate::system::crash;
use crate::system::host::Host;
use crate::system::log::Log;
use qx_release::error::{Error, ErrorKind, Result};
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
    let stage = LinkStage {
        host,
        store,
        log,
        now: host.timestamp(),
        problems: Vec::new(),
        obstacle: None,
        writable: true,
    };
    stage.run()
}

/// The stage, and the problems it has found so far.
struct LinkStage<'a> {
    host: &'a Host,
    store: &'a Store,
    log: &'a mut Log,
    now: String,
    problems: Vec<String>,
    obstacle: Option<Error>,
    /// Whether the record can be written.
    writable: bool,
}

/// What is found on the medium.
struct Found {
    loaded: Loaded,
    factory: Installed,
    link: Link,
    /// What is damaged of the updater's own files.
    damaged: Vec<String>,
    /// The slots that were verified: each is read once.
    verified: RefCell<BTreeMap<Slot, Verdict>>,
}

impl LinkStage<'_> {
    fn run(mut self) -> Result<Outcome> {
        // Where nothing can be removed, nothing of it is in the way.
        if let Err(e) = self.store.sweep() {
            self.log.warning("recover", e.chain());
        }
        let found = self.look();
        let hidden = self.hidden_before();
        if let (Some(slot), Loaded::Record(record)) = (hidden, &found.loaded) {
            // What is hidden looks damaged: nothing is concluded from it until the next boot.
            let what = format!(
                "slot {slot} is hidden until the next boot, because the links could not be changed"
            );
            self.tell(Error::with(ErrorKind::NeedsPerson, what));
            let record = (**record).clone();
            return Ok(self.outcome(record, Set::Factory, None));
        }
        if !matches!(found.loaded, Loaded::Record(_)) {
            self.leave_data_unexplained();
        }
        let mut boots = self.store.boots();
        let another = self.end_of_the_boot_before(&mut boots);
        let decision = self.decide_durably(&found, &boots);
        if another {
            self.begin_boot(boots, &decision);
        }
        for note in &decision.notes {
            self.log.warning("recover", note.clone());
        }
        self.mend(&found.damaged, &decision.record);
        let mut hidden = None;
        for e in show(&decision, &found.link, self.store, self.log, &mut hidden)? {
            self.tell(e);
        }
        if let Some(slot) = hidden {
            self.problems.push(format!(
                "slot {slot} is hidden for this boot: the factory set runs"
            ));
        }
        if self.writable
            && let Err(e) = drop_leftovers(&decision, self.store)
        {
            self.problems.push(e.chain());
        }
        let show = match hidden {
            Some(_) => Set::Factory,
            None => decision.show,
        };
        self.note(&decision, show, hidden);
        let interrupted = interrupted(found.loaded, &decision.record);
        Ok(self.outcome(decision.record, show, interrupted))
    }

    /// Notes a problem that keeps operations from starting.
    fn tell(&mut self, e: Error) {
        self.problems.push(e.chain());
        self.obstacle.get_or_insert(e);
    }

    fn outcome(self, record: Record, show: Set, interrupted: Option<Operation>) -> Outcome {
        Outcome {
            record,
            show,
            problems: self.problems,
            obstacle: self.obstacle,
            interrupted,
        }
    }

    fn look(&mut self) -> Found {
        if let Err(e) = self.store.prepare() {
            self.tell(e);
            self.writable = false;
        }
        let (mut factory, fault) = self.store.factory();
        let loaded = self.store.load();
        if let Some(fault) = fault {
            match &loaded {
                // It is the one that the record knows, for all that can be told.
                Loaded::Record(record) => factory = recorded_factory(record).unwrap_or(factory),
                // What it leaves the data at must not be recorded as nothing.
                Loaded::Absent | Loaded::Unreadable(_) => self.writable = false,
            }
            self.problems.push(fault);
        }
        Found {
            damaged: self.store.damaged(),
            loaded,
            factory,
            link: self.store.selected(),
            verified: RefCell::default(),
        }
    }

    /// The record is lost, so the origin of the data that an operation left is unknown: it is marked for a person to decide.
    fn leave_data_unexplained(&mut self) {
        let noted = self.store.kept_data().and_then(|all| {
            let open = all
                .into_iter()
                .filter(|kept| kept.reason == KeptReason::Open);
            open.into_iter().try_for_each(|kept| {
                let reason = KeptReason::Unexplained;
                self.store.note_kept(&Kept { reason, ..kept })
            })
        });
        if let Err(e) = noted {
            self.tell(e);
        }
    }

    /// The slot that this boot's first run had to hide.
    fn hidden_before(&mut self) -> Option<Slot> {
        match self.store.boot_note() {
            Ok(note) => note?.hidden,
            Err(e) => {
                self.tell(e);
                None
            }
        }
    }

    /// Finds out how the boot before ended, once a boot. Says whether this is another one than the last that was noted.
    fn end_of_the_boot_before(&self, boots: &mut Boots) -> bool {
        if !boots.is_new(&self.host.moment().boot_id) {
            return false;
        }
        let crash = crash::of_the_boot_before(self.host, &mut boots.dumps);
        if let Some(before) = boots.boots.last_mut() {
            before.crash = crash;
        }
        true
    }

    fn begin_boot(&mut self, mut boots: Boots, decision: &Decision) {
        let active = decision.record.idle_when_ended().active;
        boots.begin(Boot {
            boot_id: self.host.moment().boot_id,
            time: self.now.clone(),
            manifest: active.manifest.filter(|_| active.set == decision.show),
            complete: false,
            crash: None,
        });
        if self.writable
            && let Err(e) = self.store.write_boots(&boots)
        {
            self.log.warning("recover", e.chain());
        }
    }

    /// `writable`: whether what is decided can be recorded.
    fn decide(&self, found: &Found, boots: &Boots, writable: bool) -> Decision {
        let (host, store) = (self.host, self.store);
        let verify = |slot: Slot| -> Verdict {
            let look = || match store.verify(slot) {
                Verdict::Damaged(why) => Verdict::Damaged(host.own_paths(&why)),
                verdict => verdict,
            };
            let mut verified = found.verified.borrow_mut();
            verified.entry(slot).or_insert_with(look).clone()
        };
        decide::decide(&Observed {
            loaded: &found.loaded,
            link: &found.link,
            slots: store.has_slots(),
            verify: &verify,
            factory: &found.factory,
            fit: &|set, schemas| sets::fit(store, set, schemas),
            leaves: &|set| leaves(store, set),
            factory_boot: host.kernel_argument(FACTORY_BOOT),
            moment: &host.moment(),
            crashes: &|active| boots.crashes(&host.moment().boot_id, active.manifest),
            writable,
            open_data: store.has_open_data(),
            now: &self.now,
        })
    }

    /// The record first: wherever the power goes, the next boot decides the same.
    fn decide_durably(&mut self, found: &Found, boots: &Boots) -> Decision {
        let decision = self.decide(found, boots, self.writable);
        let known = matches!(&found.loaded, Loaded::Record(record) if **record == decision.record);
        if known || !self.writable {
            return decision;
        }
        let held = hold(&decision, self.store, &self.now);
        let saved = held.and_then(|()| self.store.save(&decision.record));
        match (saved, &found.loaded) {
            (Ok(()), _) => decision,
            // Nothing else depends on it, least of all a proof that goes on.
            (Err(e), Loaded::Record(record)) if record.only_lasted_until(&decision.record) => {
                self.log.warning("recover", e.chain());
                decision
            }
            (Err(e), _) => {
                self.tell(e);
                // What is left to be deleted is deleted all the same.
                self.decide(found, boots, false)
            }
        }
    }

    /// Tells what is damaged of the updater's own files, and mends it.
    fn mend(&mut self, damaged: &[String], record: &Record) {
        if damaged.is_empty() {
            return;
        }
        if self.writable
            && let Err(e) = self.store.mend(record)
        {
            self.problems.push(e.chain());
        }
        let left = self.store.damaged();
        self.problems
            .extend(damaged.iter().map(|what| match left.contains(what) {
                true => what.clone(),
                false => format!("{what}; it was mended"),
            }));
    }

    /// Notes the result of this boot for `status` and in the log.
    fn note(&mut self, decision: &Decision, show: Set, hidden: Option<Slot>) {
        if let Phase::Idle(idle) = decision.record.phase() {
            let trouble = idle.trouble.iter().map(|t| t.what.clone());
            self.problems.extend(trouble);
        }
        self.problems = self
            .problems
            .iter()
            .map(|p| self.host.own_paths(p))
            .collect();
        self.problems.dedup();
        for problem in &self.problems {
            self.log.warning("recover", problem.clone());
        }
        let note = BootNote {
            boot_id: self.host.moment().boot_id,
            time: self.now.clone(),
            by: Some(env!("CARGO_PKG_VERSION").to_owned()),
            show,
            hidden,
            problems: self.problems.clone(),
        };
        if let Err(e) = self.store.write_boot_note(&note) {
            self.log.warning("recover", e.chain());
        }
    }
}

/// The operation whose services may have been left stopped.
fn interrupted(loaded: Loaded, now: &Record) -> Option<Operation> {
    let left = now.stopped.as_deref().cloned();
    let Loaded::Record(before) = loaded else {
        return left;
    };
    // On the way back the data comes first.
    let back = matches!(now.phase(), Phase::Reverting { .. });
    match before.phase() {
        Phase::Staging { op } | Phase::Staged { op } | Phase::Switching { op, .. }
            if !back && !op.ran.is_empty() =>
        {
            Some(op.clone())
        }
        _ => left,
    }
}

/// The factory set as a record knows it.
fn recorded_factory(record: &Record) -> Option<Installed> {
    let idle = match record.phase() {
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

/// Deletes what no phase needs any more.
fn drop_leftovers(decision: &Decision, store: &Store) -> Result<()> {
    store.drop_scratch()?;
    if !decision.drop_leftovers {
        return Ok(());
    }
    store.drop_leftovers()
}

fn hold(decision: &Decision, store: &Store, now: &str) -> Result<()> {
    let Some((release, reason)) = &decision.hold else {
        return Ok(());
    };
    let Some(manifest) = release.manifest else {
        return Ok(());
    };
    store.refuse(Refusal {
        manifest,
        version: release.version.clone(),
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
    let fixed = store.repair(decision.show);
    let selected = link.selects(decision.show);
    let moved = if selected {
        Ok(())
    } else {
        store.select(decision.show)
    };
    if moved.is_ok() && !selected {
        log.info(
            "recover",
            format!("the priority link now selects {}", decision.show),
        );
    }
    // A plain directory in the place of a fixed link hides every release by itself.
    let plain = matches!(&fixed, Err(e) if e.kind == ErrorKind::NeedsPerson);
    let failed: Vec<Error> = [fixed, moved].into_iter().filter_map(Result::err).collect();
    if failed.is_empty() || (plain && failed.len() == 1) {
        return Ok(failed);
    }
    // With the links as they are, init scripts may find what was not chosen, or half of it.
    match store.selected() {
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
