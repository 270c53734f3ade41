//! The decision of the link stage of recovery, as a pure function from the state on disk to the desired state.
//! `docs/recovery.md` has the same rows in the same order.

use std::collections::BTreeMap;

use crate::model::boots::MAX_CRASHES;
use crate::model::choice;
use crate::model::fit::Fit;
use crate::model::idle::{Idle, Trouble};
use crate::model::moment::Moment;
use crate::model::operation::{Cause, CauseKind, Operation, OperationKind};
use crate::model::phase::{DataState, Phase};
use crate::model::record::{Loaded, Record};
use crate::model::slot::{Installed, Link, Set, Slot, Verdict};
use qx_release::error::Result;
use qx_release::manifest::Name;

/// A release is held after its switch was interrupted this often.
pub const MAX_ATTEMPTS: u32 = 3;

/// Everything the decision depends on.
pub struct Observed<'a> {
    /// The record.
    pub loaded: &'a Loaded,
    /// The priority link.
    pub link: &'a Link,
    /// Whether a slot directory exists.
    pub slots: bool,
    /// Verifies a slot; asked only for the slots that matter, since it reads all of it.
    pub verify: &'a dyn Fn(Slot) -> Verdict,
    /// What the image ships.
    pub factory: &'a Installed,
    /// Whether a set can run on data with these schemas.
    pub fit: &'a dyn Fn(Set, &BTreeMap<Name, u64>) -> Fit,
    /// The schemas that a set leaves the data with.
    pub leaves: &'a dyn Fn(Set) -> BTreeMap<Name, u64>,
    /// Whether this boot was told to use the factory set (`qx.factory`).
    pub factory_boot: bool,
    /// Which boot this is, and how long it has lasted.
    pub moment: &'a Moment,
    /// What ended the last boots with a release, if each crashed before it was complete ([`crate::model::boots`]).
    pub crashes: &'a dyn Fn(&Installed) -> Vec<String>,
    /// Whether the record can be written.
    pub writable: bool,
    /// Whether data may be in the middle of an exchange.
    pub open_data: bool,
    /// The date (RFC 3339), for display only: no decision depends on it.
    pub now: &'a str,
}

/// The desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The record to be written, if it differs.
    pub record: Record,
    /// What the priority link must select, once the record is written.
    pub show: Set,
    /// Whether directories that were being staged are to be deleted.
    pub drop_leftovers: bool,
    /// The release that is to be held, and why.
    pub hold: Option<(Installed, String)>,
    /// What happened, one sentence each, for the log.
    pub notes: Vec<String>,
}

/// The link stage's decision. It never chooses a set that does not verify, and always chooses one.
pub fn decide(observed: &Observed) -> Decision {
    match observed.loaded {
        Loaded::Record(record) => decide_phase(observed, record).unwrap_or_else(|e| {
            rebuild(
                observed,
                &format!("the update state is invalid: {}", e.chain()),
            )
        }),
        Loaded::Absent if *observed.link == Link::Absent && !observed.slots => Decision {
            record: Record::of(
                Idle::on(observed.factory.clone(), None, observed.now),
                (observed.leaves)(Set::Factory),
            ),
            show: Set::Factory,
            drop_leftovers: false,
            hold: None,
            notes: Vec::new(),
        },
        Loaded::Absent => rebuild(observed, "the update state is missing"),
        Loaded::Unreadable(why) => {
            rebuild(observed, &format!("the update state is unreadable ({why})"))
        }
    }
}

fn decide_phase(observed: &Observed, record: &Record) -> Result<Decision> {
    if observed.factory_boot && record.phase().is_under_way() {
        return Ok(as_told(record));
    }
    match record.phase() {
        Phase::Idle(idle) => settle(observed, record, idle, None),
        Phase::Staging { op } => {
            let told = record.came_to_nothing(op, "staging was interrupted", observed.now);
            let mut before = op.before.clone();
            // Its slot may have been given to the release already.
            let alternate = Set::from(op.before.active.set.alternate());
            before.fallback = before
                .fallback
                .filter(|fallback| fallback.set != alternate || verify(observed, fallback).is_ok());
            let mut decision = settle(observed, &told, &before, None)?;
            decision.drop_leftovers = true;
            decision
                .notes
                .insert(0, format!("staging {} was interrupted", op.to));
            Ok(decision)
        }
        Phase::Staged { op } => settle(observed, record, &op.back(), Some(op)),
        Phase::Switching { op, .. }
            if observed.link.selects(op.to.set) && op.from().set != op.to.set =>
        {
            // The power went between the flip and the next record.
            decide_phase(
                observed,
                &record.begin_trial(op.clone(), observed.now, None)?,
            )
        }
        Phase::Switching {
            op,
            data: DataState::Untouched,
        } => cut_short(observed, record, op),
        Phase::Switching { op, .. } => {
            let what = format!("the switch to {} was interrupted", op.to);
            let cause = Cause::new(CauseKind::Power, what);
            Ok(revert(
                observed,
                &record.begin_revert(op.clone(), cause)?,
                op,
            ))
        }
        Phase::Trial { .. } => another_boot(observed, record),
        Phase::Reverting { op, .. } => Ok(revert(observed, record, op)),
    }
}

/// The factory set is used in this boot, because a person said so: what is under way stays as it is.
fn as_told(record: &Record) -> Decision {
    let to = record.operation().map(|op| op.to.to_string());
    let note = format!(
        "this boot uses the factory set as requested; {} stays {}",
        to.unwrap_or_default(),
        record.phase().name()
    );
    Decision {
        record: record.clone(),
        show: Set::Factory,
        drop_leftovers: false,
        hold: None,
        notes: vec![note],
    }
}

/// A trial sees another boot, or the same one again.
fn another_boot(observed: &Observed, record: &Record) -> Result<Decision> {
    let counted = record.trial_goes_on(observed.moment)?;
    let Phase::Trial { op, boots, .. } = counted.phase() else {
        return decide_phase(observed, record);
    };
    let decision = |record: Record, show: Set, note: String| Decision {
        record,
        show,
        drop_leftovers: false,
        hold: None,
        notes: vec![note],
    };
    Ok(match trial_fault(observed, op, *boots) {
        None => {
            let (show, note) = (op.to.set, format!("{} is on trial, boot {boots}", op.to));
            decision(counted, show, note)
        }
        // What has been written since is lost only if a person says so.
        Some(cause) if record.is_stale_trial(observed.moment) => {
            let show = match verify(observed, &op.to) {
                Ok(()) => op.to.set,
                Err(_) => Set::Factory,
            };
            let note = format!(
                "{}; its trial is too old to restore the data automatically",
                cause.message
            );
            decision(counted, show, note)
        }
        Some(cause) => revert(observed, &record.begin_revert(op.clone(), cause)?, op),
    })
}

/// Why a trial must not go on, if it must not.
fn trial_fault(observed: &Observed, op: &Operation, boots: u32) -> Option<Cause> {
    let damage = |message| Some(Cause::new(CauseKind::Appliance, message));
    if !observed.link.selects(op.to.set) {
        return damage(format!("the priority link no longer selects {}", op.to));
    }
    if let Err(why) = verify(observed, &op.to) {
        return damage(format!("{} no longer verifies: {why}", op.to));
    }
    let impatient = |message| Some(Cause::new(CauseKind::Boots, message));
    if boots > op.trial_boots {
        let crashes = (observed.crashes)(&op.to);
        let why = match crashes.is_empty() {
            true => String::new(),
            false => format!(": {}", crashes.join("; ")),
        };
        return impatient(format!(
            "{} was not proved healthy in {} boots{why}",
            op.to, op.trial_boots
        ));
    }
    if !observed.writable {
        return impatient(format!(
            "cannot count trial boots of {}: the update state cannot be written",
            op.to
        ));
    }
    None
}

fn decision(record: Result<Record>, show: Set, notes: Vec<String>) -> Result<Decision> {
    let record = record?;
    Ok(Decision {
        drop_leftovers: matches!(record.phase(), Phase::Idle(_)),
        record,
        show,
        hold: None,
        notes,
    })
}

/// The rows of `Idle`, also for phases that end there. `staged` is kept if the set that it was planned on stays.
fn settle(
    observed: &Observed,
    record: &Record,
    idle: &Idle,
    staged: Option<&Operation>,
) -> Result<Decision> {
    let fit = |set| (observed.fit)(set, &record.schemas);
    let stay = || match staged {
        Some(op) => record.staged_again(op.clone()),
        None => record.settled(idle.clone()),
    };
    let factory = |trouble: Option<Trouble>| {
        record.settled(Idle {
            trouble,
            ..Idle::on(observed.factory.clone(), None, observed.now)
        })
    };
    if observed.factory_boot && idle.active.set != Set::Factory {
        let note = format!(
            "this boot uses the factory set as requested; {} is kept",
            idle.active
        );
        return decision(stay(), Set::Factory, vec![note]);
    }
    if idle.active.set == Set::Factory {
        if idle.active == *observed.factory {
            return decision(stay(), Set::Factory, Vec::new());
        }
        // Another image; what was staged on the old one's ground is planned anew.
        let note = format!("the image now ships {}", observed.factory);
        // What it only has to migrate the data stage migrates.
        let never = match fit(Set::Factory) {
            Fit::Never(why) => Some(why),
            Fit::Now | Fit::Migrated(_) => None,
        };
        let trouble = never.map(|why| unfit(&note, observed.factory, &why));
        return decision(factory(trouble), Set::Factory, vec![note]);
    }
    let mut notes = Vec::new();
    if observed.factory.newer_than(&idle.active) {
        let what = format!(
            "the image ships {}, newer than {}",
            observed.factory, idle.active
        );
        let Some(why) = fit(Set::Factory).obstacle() else {
            return decision(factory(None), Set::Factory, vec![what]);
        };
        notes.push(format!("{what}, which stays in use for now: {why}"));
    }
    let (next, what, held) = match leave(observed, record, idle) {
        Ok(left) => left,
        Err(stays) => {
            notes.extend(stays);
            return decision(stay(), idle.active.set, notes);
        }
    };
    let show = next.active.set;
    Ok(Decision {
        hold: held.map(|release| (release, what.clone())),
        ..decision(record.settled(next), show, vec![what])?
    })
}

/// What runs instead of a set that must not run on, and why, with the release that is held for it. An error: it stays in use, and what
/// there is to say of that.
fn leave(
    observed: &Observed,
    record: &Record,
    idle: &Idle,
) -> Result<(Idle, String, Option<Installed>), Option<String>> {
    if let Err(why) = verify(observed, &idle.active) {
        let (next, what) = fall_back(observed, record, idle, &why);
        return Ok((next, what, None));
    }
    match leave_crashing(observed, record, idle) {
        Ok(Some((next, what))) => Ok((next, what, Some(idle.active.clone()))),
        stays => Err(stays.err()),
    }
}

/// What runs instead of a release with which boot after boot crashes, and why; an error is why it stays in use all the same.
fn leave_crashing(
    observed: &Observed,
    record: &Record,
    idle: &Idle,
) -> Result<Option<(Idle, String)>, String> {
    let crashes = (observed.crashes)(&idle.active);
    if crashes.len() < MAX_CRASHES {
        return Ok(None);
    }
    let what = format!(
        "the last {} boots with {} crashed before they were complete ({})",
        crashes.len(),
        idle.active,
        crashes.join("; ")
    );
    if !observed.writable {
        return Err(format!(
            "{what}; it stays in use: the update state cannot be written"
        ));
    }
    let chosen = choose(observed, idle.fallback.as_ref(), &record.schemas);
    if let Some(why) = (observed.fit)(chosen.set, &record.schemas).obstacle() {
        return Err(format!("{what}; it stays in use: {why}"));
    }
    let trouble = Trouble {
        what: format!("{what}; {chosen} runs instead"),
        needs_person: false,
    };
    let what = trouble.what.clone();
    Ok(Some((in_trouble(observed, chosen, trouble), what)))
}

/// Idle on this set, with the factory set behind it, and something that a person should know.
fn in_trouble(observed: &Observed, active: Installed, trouble: Trouble) -> Idle {
    let fallback = (active.set != Set::Factory).then(|| observed.factory.clone());
    Idle {
        trouble: Some(trouble),
        ..Idle::on(active, fallback, observed.now)
    }
}

/// What runs instead of a set that is damaged, and why.
fn fall_back(observed: &Observed, record: &Record, idle: &Idle, why: &str) -> (Idle, String) {
    let what = format!("{} is damaged: {why}", idle.active);
    let chosen = choose(observed, idle.fallback.as_ref(), &record.schemas);
    let trouble = match (observed.fit)(chosen.set, &record.schemas).obstacle() {
        None => Trouble {
            what: format!("{what}; {chosen} runs instead"),
            needs_person: false,
        },
        Some(why) => unfit(&what, &chosen, &why),
    };
    let what = trouble.what.clone();
    let next = Idle {
        lost: Some(idle.active.clone()),
        ..in_trouble(observed, chosen, trouble)
    };
    (next, what)
}

/// A switch that ended before the data was touched and before the link moved.
fn cut_short(observed: &Observed, record: &Record, op: &Operation) -> Result<Decision> {
    let op = Operation {
        attempts: op.attempts + 1,
        ..op.clone()
    };
    let what = format!(
        "the switch to {} was interrupted {} times",
        op.to, op.attempts
    );
    let install = op.kind == OperationKind::Install;
    let held = install && op.attempts >= MAX_ATTEMPTS;
    let staged = (install && !held).then_some(&op);
    let told = match staged {
        Some(_) => record.clone(),
        None => record.came_to_nothing(&op, "the switch was interrupted", observed.now),
    };
    let mut decision = settle(observed, &told, &op.back(), staged)?;
    decision.notes.insert(0, what.clone());
    decision.hold = held.then(|| (op.to.clone(), what));
    Ok(decision)
}

fn revert(observed: &Observed, reverting: &Record, op: &Operation) -> Decision {
    let chosen = choose(observed, Some(op.from()), &reverting.schemas);
    let mut notes = Vec::new();
    if let Phase::Reverting { cause, .. } = reverting.phase() {
        notes.push(format!("going back to {chosen}: {}", cause.message));
    }
    Decision {
        record: reverting.clone(),
        show: chosen.set,
        drop_leftovers: false,
        hold: None,
        notes,
    }
}

/// Without a record: the set that the link selects, if it verifies, else the factory set.
fn rebuild(observed: &Observed, what: &str) -> Decision {
    let linked = match observed.link {
        Link::To(slot) => match (observed.verify)(*slot) {
            Verdict::Good(installed) => Ok(installed),
            Verdict::Empty => Err(format!("slot {slot} is empty")),
            Verdict::Damaged(why) => Err(format!("slot {slot} is damaged: {why}")),
        },
        Link::Absent => Err("no release is selected".to_owned()),
        Link::Foreign(target) => Err(format!("the priority link points to {target}")),
    };
    let (active, what, needs_person) = match linked {
        Ok(active) if !observed.open_data => {
            let what = format!("{what}; rebuilt from what is installed: {active}");
            (active, what, false)
        }
        Ok(active) => {
            let what = format!(
                "{what}, and the origin of existing copies of data is unknown; {active} runs"
            );
            (active, what, true)
        }
        Err(why) => {
            let what = format!("{what}, and {why}; the factory set runs");
            (observed.factory.clone(), what, true)
        }
    };
    let trouble = Trouble {
        what: what.clone(),
        needs_person,
    };
    let idle = in_trouble(observed, active, trouble);
    let schemas = match observed.open_data {
        true => BTreeMap::new(),
        false => (observed.leaves)(idle.active.set),
    };
    let record = Record::of(idle.clone(), schemas);
    // From here on it is an ordinary record: a newer image and an override count.
    let settled = settle(observed, &record, &idle, None);
    let mut decision = settled.unwrap_or_else(|e| Decision {
        record,
        show: idle.active.set,
        drop_leftovers: false,
        hold: None,
        notes: vec![e.chain()],
    });
    decision.drop_leftovers = false;
    decision.notes.insert(0, what);
    decision
}

fn choose(
    observed: &Observed,
    first: Option<&Installed>,
    schemas: &BTreeMap<Name, u64>,
) -> Installed {
    let fit = |set| (observed.fit)(set, schemas);
    choice::choose(first, observed.factory, observed.verify, &fit).0
}

/// No set fits the data.
fn unfit(what: &str, chosen: &Installed, why: &str) -> Trouble {
    Trouble {
        what: format!(
            "{what}; {chosen} runs, but services that use the data stay stopped: {why}. Run `qx-update apply --repair`, \
             or apply a release that accepts the data"
        ),
        needs_person: true,
    }
}

fn verify(observed: &Observed, expected: &Installed) -> Result<(), String> {
    choice::verify(expected, observed.verify)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{BootId, OperationId};
    use crate::model::moment::Lasted;
    use qx_release::digest::Digest;

    const NOW: &str = "2026-02-02T00:00:00Z";
    const BOOT: &str = "this-boot";
    /// What a clock says that was never set, one that was, and one that is mad.
    const DATES: [&str; 4] = [
        "1970-01-01T00:00:30Z",
        "2026-02-02T00:00:00Z",
        "2099-12-31T23:59:59Z",
        "no date",
    ];

    fn moment(boot_id: &str, uptime_s: u64) -> Moment {
        Moment {
            boot_id: boot_id.into(),
            uptime_s,
        }
    }

    fn installed(set: Set, version: &str) -> Installed {
        Installed {
            set,
            version: Some(version.parse().unwrap()),
            manifest: Some(Digest::of(version.as_bytes())),
        }
    }

    fn factory() -> Installed {
        installed(Set::Factory, "1.0.0")
    }

    fn idle(active: Installed) -> Idle {
        Idle {
            fallback: (active.set != Set::Factory).then(factory),
            active,
            since: "2026-01-01T00:00:00Z".into(),
            trouble: None,
            lost: None,
        }
    }

    /// An install of 1.2.0 into slot b while 1.1.0 runs from slot a.
    fn operation() -> Operation {
        Operation::new(
            OperationId::new(0x0123_4567_89ab_cdef),
            OperationKind::Install,
            idle(installed(Set::A, "1.1.0")),
            installed(Set::B, "1.2.0"),
            "2026-02-01T00:00:00Z",
        )
    }

    fn trial(boots: u32, boot_id: impl Into<BootId>) -> Phase {
        Phase::Trial {
            op: operation(),
            data: DataState::Untouched,
            boots,
            boot_id: boot_id.into(),
            since: NOW.into(),
            lasted: None,
        }
    }

    fn reverting(data: DataState, kind: CauseKind) -> Phase {
        Phase::Reverting {
            op: operation(),
            data,
            cause: Cause::new(kind, "it crashed"),
        }
    }

    fn phases() -> Vec<Phase> {
        let op = operation;
        let mut phases = vec![
            Phase::Idle(idle(factory())),
            Phase::Idle(idle(installed(Set::A, "1.1.0"))),
            Phase::Idle(Idle {
                fallback: Some(installed(Set::A, "1.1.0")),
                ..idle(installed(Set::B, "1.2.0"))
            }),
            Phase::Staging { op: op() },
            Phase::Staged { op: op() },
        ];
        for data in [
            DataState::Untouched,
            DataState::Exchanged,
            DataState::Restored,
        ] {
            for attempts in [0, MAX_ATTEMPTS - 1] {
                phases.push(Phase::Switching {
                    op: Operation { attempts, ..op() },
                    data,
                });
            }
            phases.push(reverting(data, CauseKind::Release));
            phases.push(reverting(data, CauseKind::Power));
        }
        for boots in [0, 2, 3] {
            phases.extend([trial(boots, BOOT), trial(boots, "an earlier boot")]);
        }
        phases
    }

    fn verdicts(set: Set, version: &str) -> [Verdict; 3] {
        [
            Verdict::Good(installed(set, version)),
            Verdict::Empty,
            Verdict::Damaged("bin/qx-node differs".into()),
        ]
    }

    struct Case {
        loaded: Loaded,
        link: Link,
        a: Verdict,
        b: Verdict,
        factory: Installed,
        factory_boot: bool,
        writable: bool,
        snapshot: bool,
        /// The highest schema that the factory set accepts, and what it is to any other.
        accepts: u64,
        unfit: Fit,
        leaves: BTreeMap<Name, u64>,
        moment: Moment,
        /// How often the last boots crashed with the release in slot b.
        crashes: usize,
        now: &'static str,
    }

    fn inventory() -> Name {
        "inventory".parse().unwrap()
    }

    impl Case {
        fn new(phase: Phase, link: Link) -> Case {
            let mut record = Record::idle(factory(), None, NOW);
            record = record.in_phase(phase);
            Case {
                loaded: Loaded::Record(Box::new(record)),
                link,
                a: Verdict::Good(installed(Set::A, "1.1.0")),
                b: Verdict::Good(installed(Set::B, "1.2.0")),
                factory: factory(),
                factory_boot: false,
                writable: true,
                snapshot: false,
                accepts: 1,
                unfit: Fit::Never("it accepts schema 1".into()),
                leaves: BTreeMap::new(),
                moment: moment(BOOT, 60),
                crashes: 0,
                now: NOW,
            }
        }

        fn decide(&self) -> Decision {
            decide(&Observed {
                loaded: &self.loaded,
                link: &self.link,
                slots: [&self.a, &self.b].iter().any(|v| **v != Verdict::Empty),
                verify: &|slot| match slot {
                    Slot::A => self.a.clone(),
                    Slot::B => self.b.clone(),
                },
                factory: &self.factory,
                fit: &|set, schemas| match (set, schemas.get(&inventory())) {
                    (Set::Factory, Some(schema)) if *schema > self.accepts => self.unfit.clone(),
                    (Set::B, Some(1)) => Fit::Migrated("it accepts schema 2".into()),
                    _ => Fit::Now,
                },
                leaves: &|_| self.leaves.clone(),
                factory_boot: self.factory_boot,
                moment: &self.moment,
                crashes: &|active| match active.set {
                    Set::B => vec!["kernel panic".to_owned(); self.crashes],
                    _ => Vec::new(),
                },
                writable: self.writable,
                open_data: self.snapshot,
                now: self.now,
            })
        }
    }

    fn links() -> [Link; 4] {
        [
            Link::Absent,
            Link::To(Slot::A),
            Link::To(Slot::B),
            Link::Foreign("/elsewhere".into()),
        ]
    }

    /// Every (record, link, verdicts, factory, override, writable, snapshot): what holds for all of them.
    #[test]
    fn every_combination_ends_in_one_set_that_verifies_and_stays_there() {
        let mut count = 0;
        let mut loaded: Vec<Loaded> = phases()
            .into_iter()
            .map(|phase| Case::new(phase, Link::Absent).loaded)
            .collect();
        loaded.push(Loaded::Absent);
        loaded.push(Loaded::Unreadable("its checksum does not match".into()));
        for loaded in loaded {
            for link in links() {
                for a in verdicts(Set::A, "1.1.0") {
                    for b in verdicts(Set::B, "1.2.0") {
                        for bits in 0..16 {
                            let case = Case {
                                loaded: loaded.clone(),
                                link: link.clone(),
                                a: a.clone(),
                                b: b.clone(),
                                factory: match bits & 1 {
                                    0 => factory(),
                                    _ => installed(Set::Factory, "2.0.0"),
                                },
                                factory_boot: bits & 2 != 0,
                                writable: bits & 4 != 0,
                                snapshot: bits & 8 != 0,
                                ..Case::new(trial(0, BOOT), Link::Absent)
                            };
                            check_invariants(&case);
                            count += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(count, (phases().len() + 2) * 4 * 3 * 3 * 16);
    }

    fn check_invariants(case: &Case) {
        let decision = case.decide();
        let context = || {
            format!(
                "{:?} link {:?} a {:?} b {:?} factory {:?} override {} writable {}\n→ {decision:?}",
                case.loaded,
                case.link,
                case.a,
                case.b,
                case.factory,
                case.factory_boot,
                case.writable
            )
        };
        // P1: what is shown verifies.
        match decision.show {
            Set::A => assert!(matches!(case.a, Verdict::Good(_)), "{}", context()),
            Set::B => assert!(matches!(case.b, Verdict::Good(_)), "{}", context()),
            Set::Factory => {}
        }
        // P4: in Idle the record says what is shown, but for an override.
        if let Phase::Idle(idle) = decision.record.phase()
            && !case.factory_boot
        {
            assert_eq!(idle.active.set, decision.show, "{}", context());
        }
        // A new release is shown only on trial, or after it was confirmed.
        if decision.show == Set::B
            && let Loaded::Record(record) = &case.loaded
            && record.operation().is_some()
        {
            assert!(
                matches!(decision.record.phase(), Phase::Trial { .. }),
                "{}",
                context()
            );
            assert!(case.link.selects(Set::B), "{}", context());
        }
        // P5: deciding again on the result changes nothing.
        let again = Case {
            loaded: Loaded::Record(Box::new(decision.record.clone())),
            link: match decision.show.slot() {
                None => Link::Absent,
                Some(slot) => Link::To(slot),
            },
            a: case.a.clone(),
            b: case.b.clone(),
            factory: case.factory.clone(),
            unfit: case.unfit.clone(),
            leaves: case.leaves.clone(),
            moment: case.moment.clone(),
            ..*case
        };
        let second = again.decide();
        assert_eq!(second.record, decision.record, "not stable: {}", context());
        assert_eq!(second.show, decision.show, "not stable: {}", context());
        assert_eq!(second.hold, None, "held twice: {}", context());
    }

    /// The rows of the table in `docs/recovery.md`, one line each.
    #[test]
    fn the_rows() {
        let a = || Link::To(Slot::A);
        let b = || Link::To(Slot::B);
        let idle_a = || Phase::Idle(idle(installed(Set::A, "1.1.0")));
        let switching = |data, attempts| Phase::Switching {
            op: Operation {
                attempts,
                ..operation()
            },
            data,
        };
        use DataState::*;
        let rows: [(&str, Phase, Link, &str, Set); 13] = [
            ("idle, active verifies", idle_a(), a(), "idle", Set::A),
            (
                "idle, the link is gone",
                idle_a(),
                Link::Absent,
                "idle",
                Set::A,
            ),
            ("idle, the link is wrong", idle_a(), b(), "idle", Set::A),
            (
                "staging",
                Phase::Staging { op: operation() },
                a(),
                "idle",
                Set::A,
            ),
            (
                "staged",
                Phase::Staged { op: operation() },
                a(),
                "staged",
                Set::A,
            ),
            (
                "switching, before the flip",
                switching(Untouched, 0),
                a(),
                "staged",
                Set::A,
            ),
            (
                "switching, the third time",
                switching(Untouched, 2),
                a(),
                "idle",
                Set::A,
            ),
            (
                "switching, data saved",
                switching(Exchanged, 0),
                a(),
                "reverting",
                Set::A,
            ),
            (
                "switching, after the flip",
                switching(Untouched, 0),
                b(),
                "trial",
                Set::B,
            ),
            ("trial", trial(1, "an earlier boot"), b(), "trial", Set::B),
            (
                "trial, one boot too many",
                trial(3, "an earlier boot"),
                b(),
                "reverting",
                Set::A,
            ),
            (
                "trial, the link moved",
                trial(0, BOOT),
                a(),
                "reverting",
                Set::A,
            ),
            (
                "reverting",
                reverting(Restored, CauseKind::Release),
                b(),
                "reverting",
                Set::A,
            ),
        ];
        for (row, phase, link, expected, show) in rows {
            let decision = Case::new(phase, link).decide();
            assert_eq!(decision.record.phase().name(), expected, "{row}");
            assert_eq!(decision.show, show, "{row}");
        }
    }

    /// The power went after the release came into the slot of the fallback, and before that was recorded.
    #[test]
    fn a_fallback_that_gave_its_slot_up_is_none() {
        for (there, kept) in [("1.0.5", true), ("1.2.0", false)] {
            let old = installed(Set::B, "1.0.5");
            let before = Idle {
                fallback: Some(old.clone()),
                ..idle(installed(Set::A, "1.1.0"))
            };
            let op = Operation {
                before,
                ..operation()
            };
            let case = Case {
                b: Verdict::Good(installed(Set::B, there)),
                ..Case::new(Phase::Staging { op }, Link::To(Slot::A))
            };
            let Phase::Idle(idle) = case.decide().record.phase().clone() else {
                panic!("nothing is going on");
            };
            assert_eq!(idle.fallback, kept.then_some(old));
        }
    }

    #[test]
    fn a_boot_is_counted_once() {
        for (boot_id, counted) in [("an earlier boot", 2), (BOOT, 1)] {
            let decision = Case::new(trial(1, boot_id), Link::To(Slot::B)).decide();
            let Phase::Trial { boots, boot_id, .. } = decision.record.phase() else {
                panic!("no trial");
            };
            assert_eq!((*boots, boot_id), (counted, &BOOT.into()));
        }
    }

    #[test]
    fn a_trial_that_cannot_be_counted_is_over() {
        let mut case = Case::new(trial(0, "an earlier boot"), Link::To(Slot::B));
        case.writable = false;
        let decision = case.decide();
        assert_eq!(
            (decision.record.phase().name(), decision.show),
            ("reverting", Set::A)
        );
    }

    #[test]
    fn a_release_cut_short_three_times_is_held() {
        for (attempts, held) in [(0, false), (1, false), (2, true)] {
            let op = Operation {
                attempts,
                ..operation()
            };
            let phase = Phase::Switching {
                op,
                data: DataState::Untouched,
            };
            let decision = Case::new(phase, Link::To(Slot::A)).decide();
            assert_eq!(decision.hold.is_some(), held, "after {attempts}");
        }
    }

    #[test]
    fn a_damaged_active_slot_is_left_for_the_fallback_then_the_factory_set() {
        let phase = || {
            Phase::Idle(Idle {
                fallback: Some(installed(Set::A, "1.1.0")),
                ..idle(installed(Set::B, "1.2.0"))
            })
        };
        let mut case = Case::new(phase(), Link::To(Slot::B));
        case.b = Verdict::Damaged("bin/qx-node differs".into());
        let decision = case.decide();
        assert_eq!(decision.show, Set::A);
        assert!(
            decision.notes[0].contains("bin/qx-node differs"),
            "{:?}",
            decision.notes
        );
        case.a = Verdict::Empty;
        assert_eq!(case.decide().show, Set::Factory);
        // Intact, but another release than the record says.
        case.b = Verdict::Good(installed(Set::B, "9.9.9"));
        assert_eq!(case.decide().show, Set::Factory);
    }

    /// A confirmed release with which three boots in a row crashed is left for what fits the data, and held; else it stays.
    #[test]
    fn a_confirmed_release_that_crashes_boot_after_boot_is_left() {
        let phase = || {
            Phase::Idle(Idle {
                fallback: Some(installed(Set::A, "1.1.0")),
                ..idle(installed(Set::B, "1.2.0"))
            })
        };
        for (crashes, writable, schema, shown) in [
            (2, true, 0, Set::B),
            (3, true, 0, Set::A),
            (5, true, 0, Set::A),
            // What cannot be recorded would be decided anew at each boot.
            (3, false, 0, Set::B),
            // Slot a takes any schema here, the factory set none above 1.
            (3, true, 2, Set::A),
        ] {
            let mut case = at_schema(phase(), schema, Link::To(Slot::B));
            (case.crashes, case.writable) = (crashes, writable);
            let decision = case.decide();
            assert_eq!(decision.show, shown, "{crashes} {writable} {schema}");
            assert_eq!(decision.hold.is_some(), shown == Set::A, "{decision:?}");
            if shown == Set::A {
                let Phase::Idle(idle) = decision.record.phase() else {
                    panic!("not idle");
                };
                assert!(!idle.trouble.as_ref().unwrap().needs_person);
                assert_eq!(idle.lost, None, "nothing is to be repaired");
            } else if crashes >= 3 {
                assert!(
                    decision.notes[0].contains("it stays in use"),
                    "{decision:?}"
                );
            }
            // With nothing but a set that does not take the data.
            case.a = Verdict::Empty;
            let alone = case.decide().show;
            let left = shown == Set::A && schema < 2;
            assert_eq!(alone, if left { Set::Factory } else { Set::B });
        }
    }

    /// What ended the boots of a trial is told with it.
    #[test]
    fn a_trial_that_crashed_says_so() {
        let mut case = Case::new(trial(3, "an earlier boot"), Link::To(Slot::B));
        case.crashes = 2;
        let decision = case.decide();
        let Phase::Reverting { cause, .. } = decision.record.phase() else {
            panic!("no way back");
        };
        assert!(
            cause
                .message
                .ends_with("3 boots: kernel panic; kernel panic"),
            "{}",
            cause.message
        );
    }

    #[test]
    fn a_newer_image_is_not_shadowed_and_an_override_changes_no_record() {
        let phase = Phase::Idle(idle(installed(Set::A, "1.1.0")));
        let mut case = Case::new(phase.clone(), Link::To(Slot::A));
        case.factory_boot = true;
        let decision = case.decide();
        assert_eq!(
            (decision.show, decision.record.phase()),
            (Set::Factory, &phase)
        );
        case.factory_boot = false;
        case.factory = installed(Set::Factory, "1.1.1");
        let decision = case.decide();
        assert_eq!(decision.show, Set::Factory);
        let Phase::Idle(idle) = decision.record.phase() else {
            panic!("not idle");
        };
        assert_eq!(idle.active, installed(Set::Factory, "1.1.1"));
    }

    #[test]
    fn a_lost_record_is_rebuilt_from_what_the_link_selects() {
        for (link, a, snapshot, show, person) in [
            (Link::To(Slot::A), true, false, Set::A, false),
            (Link::To(Slot::A), true, true, Set::A, true),
            (Link::To(Slot::A), false, false, Set::Factory, true),
            (Link::Absent, true, false, Set::Factory, true),
            (Link::Foreign("x".into()), true, false, Set::Factory, true),
        ] {
            let mut case = Case::new(trial(0, BOOT), link.clone());
            case.loaded = Loaded::Unreadable("its checksum does not match".into());
            case.snapshot = snapshot;
            if !a {
                case.a = Verdict::Damaged("bin/qx-node differs".into());
            }
            let decision = case.decide();
            assert_eq!(decision.show, show, "{link:?}");
            let Phase::Idle(idle) = decision.record.phase() else {
                panic!("not idle");
            };
            let trouble = idle.trouble.as_ref().unwrap();
            assert_eq!(trouble.needs_person, person, "{}", trouble.what);
        }
    }

    #[test]
    fn nothing_at_all_is_the_factory_set() {
        let mut case = Case::new(trial(0, BOOT), Link::Absent);
        case.loaded = Loaded::Absent;
        (case.a, case.b) = (Verdict::Empty, Verdict::Empty);
        let decision = case.decide();
        assert_eq!(decision.show, Set::Factory);
        assert_eq!(decision.record, Record::idle(factory(), None, NOW));
    }

    /// A record whose data is at this schema; the factory set accepts schema 1, the release in slot b schema 2.
    fn at_schema(phase: Phase, schema: u64, link: Link) -> Case {
        let mut case = Case::new(phase, link);
        if let Loaded::Record(record) = &mut case.loaded {
            record.schemas.insert(inventory(), schema);
        }
        case
    }

    #[test]
    fn a_newer_image_waits_for_what_its_data_needs() {
        let phase = || Phase::Idle(idle(installed(Set::A, "1.1.0")));
        for (unfit, schema, show) in [
            (Fit::Never("no".into()), 1, Set::Factory),
            (Fit::Never("no".into()), 2, Set::A),
            (Fit::Migrated("first".into()), 2, Set::A),
        ] {
            let mut case = at_schema(phase(), schema, Link::To(Slot::A));
            case.factory = installed(Set::Factory, "3.0.0");
            case.unfit = unfit;
            let decision = case.decide();
            assert_eq!(decision.show, show, "schema {schema}: {decision:?}");
            assert_eq!(decision.notes.len(), 1, "{:?}", decision.notes);
        }
    }

    #[test]
    fn where_no_set_fits_the_data_a_person_is_asked_for() {
        let active = installed(Set::B, "1.2.0");
        for (schema, fallback_fits) in [(1, true), (2, false)] {
            let phase = Phase::Idle(idle(active.clone()));
            let mut case = at_schema(phase, schema, Link::To(Slot::B));
            case.b = Verdict::Damaged("bin/qx-node differs".into());
            let decision = case.decide();
            assert_eq!(decision.show, Set::Factory);
            let Phase::Idle(idle) = decision.record.phase() else {
                panic!("not idle");
            };
            assert_eq!(idle.lost.as_ref(), Some(&active), "to be repaired");
            assert_eq!(idle.trouble.as_ref().unwrap().needs_person, !fallback_fits);
        }
    }

    #[test]
    fn the_way_back_leads_to_a_set_that_fits_the_saved_data() {
        let mut op = operation();
        op.before = idle(installed(Set::B, "1.2.0"));
        op.to = installed(Set::A, "1.1.0");
        // Slot b needs schema 2, the factory set takes 1.
        for (schema, show) in [(2, Set::B), (1, Set::Factory)] {
            let phase = Phase::Reverting {
                op: op.clone(),
                data: DataState::Exchanged,
                cause: Cause::new(CauseKind::Release, "it crashed"),
            };
            let decision = at_schema(phase, schema, Link::To(Slot::A)).decide();
            assert_eq!(decision.show, show, "schema {schema}");
            assert_eq!(decision.record.phase().name(), "reverting");
        }
    }

    /// A trial as it stood at its last record, which saw its data saved.
    fn lasted(boots: u32, seconds: u64, until: Moment, since: &str) -> Phase {
        let mut trial = trial(boots, until.boot_id.clone());
        if let Phase::Trial {
            data,
            since: s,
            lasted,
            ..
        } = &mut trial
        {
            *data = DataState::Exchanged;
            *s = since.to_owned();
            *lasted = Some(Lasted { seconds, until });
        }
        trial
    }

    /// What was written in weeks is lost only if a person says so. Weeks are what boots were seen to last: dates, any at any
    /// point, change nothing.
    #[test]
    fn an_old_trial_is_not_undone_unasked_whatever_the_date() {
        const DAY: u64 = 86_400;
        // How long it has lasted, until when in which boot, which moment it is now, and whether it is too old.
        let rows = [
            (0, moment(BOOT, 100), moment(BOOT, 100), false),
            (0, moment(BOOT, 100), moment(BOOT, 100 + DAY), false),
            (0, moment(BOOT, 100), moment(BOOT, 101 + DAY), true),
            (DAY - 5, moment(BOOT, 10), moment(BOOT, 20), true),
            // A boot that was long before: how it ended nobody saw, and this one has hardly begun.
            (0, moment("before", 90 * DAY), moment(BOOT, 30), false),
            (DAY - 20, moment("before", 90 * DAY), moment(BOOT, 30), true),
            (DAY + 1, moment("before", 5), moment(BOOT, 0), true),
            (0, moment("before", 100), moment(BOOT, DAY + 1), true),
        ];
        for (seconds, until, now, old) in rows {
            for since in DATES {
                for date in DATES {
                    let context = format!("{seconds} {until:?} {now:?} {since} {date}");
                    let phase = lasted(4, seconds, until.clone(), since);
                    let mut case = Case::new(phase, Link::To(Slot::B));
                    (case.moment, case.now) = (now.clone(), date);
                    let decision = case.decide();
                    let (phase, show) = match old {
                        true => ("trial", Set::B),
                        false => ("reverting", Set::A),
                    };
                    assert_eq!(decision.record.phase().name(), phase, "{context}");
                    assert_eq!(decision.show, show, "{context}");
                    case.b = Verdict::Empty;
                    let decision = case.decide();
                    assert_eq!(decision.record.phase().name(), phase, "{context}");
                    assert_ne!(decision.show, Set::B, "it does not verify: {context}");
                    // Once too old it stays so: at the next boot nobody has seen anything yet.
                    case.loaded = Loaded::Record(Box::new(decision.record));
                    case.moment = moment("the next boot", 0);
                    assert_eq!(case.decide().record.phase().name(), phase, "{context}");
                }
            }
        }
    }

    /// Only what a migration left is kept for a person: nothing is lost by leaving a trial without data.
    #[test]
    fn an_old_trial_without_data_is_undone() {
        let mut trial = lasted(4, 1 << 40, moment(BOOT, 5), NOW);
        if let Phase::Trial { data, .. } = &mut trial {
            *data = DataState::Untouched;
        }
        let decision = Case::new(trial, Link::To(Slot::B)).decide();
        assert_eq!(decision.record.phase().name(), "reverting");
    }

    /// Every phase comes to the same end whatever the date, before and now.
    #[test]
    fn no_date_changes_a_decision() {
        let mut all = phases();
        all.push(lasted(1, 10, moment(BOOT, 5), NOW));
        all.push(lasted(3, 10, moment("an earlier boot", 5), NOW));
        for phase in all {
            for link in links() {
                let mut ends = Vec::new();
                for before in DATES {
                    for now in DATES {
                        let text = serde_json::to_string(&phase).unwrap();
                        let mut members: serde_json::Map<_, _> =
                            serde_json::from_str(&text).unwrap();
                        date(&mut members, before);
                        let members = serde_json::Value::Object(members);
                        let record: Record = serde_json::from_value(members).unwrap();
                        let mut case = Case::new(record.phase().clone(), link.clone());
                        case.now = now;
                        let decision = case.decide();
                        let lasted = match decision.record.phase() {
                            Phase::Trial { lasted, boots, .. } => Some((lasted.clone(), *boots)),
                            _ => None,
                        };
                        let hold = decision.hold;
                        let name = decision.record.phase().name();
                        ends.push((name, lasted, decision.show, hold, decision.notes));
                    }
                }
                assert!(
                    ends.iter().all(|end| *end == ends[0]),
                    "{phase:?} {link:?}: {ends:?}"
                );
            }
        }
    }

    /// Puts this date in the place of every date.
    fn date(members: &mut serde_json::Map<String, serde_json::Value>, date: &str) {
        for (name, value) in members {
            match value {
                serde_json::Value::Object(inner) => self::date(inner, date),
                serde_json::Value::String(text)
                    if ["since", "started", "exchanged_at"].contains(&name.as_str()) =>
                {
                    *text = date.to_owned();
                }
                _ => {}
            }
        }
    }

    /// What a boot was seen to last is added up from record to record; an old record begins to count when it is seen.
    #[test]
    fn a_trial_lasts_as_long_as_its_boots_were_seen_to() {
        let mut case = Case::new(trial(0, "one"), Link::To(Slot::B));
        let mut counted = Vec::new();
        for (boot_id, uptime_s) in [
            ("one", 500),
            ("one", 700),
            ("two", 30),
            ("two", 20),
            ("three", 9),
        ] {
            case.moment = moment(boot_id, uptime_s);
            let record = case.decide().record;
            let Phase::Trial {
                lasted: Some(lasted),
                ..
            } = record.phase()
            else {
                panic!("{record:?}");
            };
            counted.push(lasted.seconds);
            case.loaded = Loaded::Record(Box::new(record));
        }
        assert_eq!(counted, [0, 200, 230, 230, 239]);
    }

    /// An image's factory set that migrates what the factory set before it left: the link says nothing of how far it came.
    #[test]
    fn a_migration_in_place_is_no_trial_before_the_record_says_so() {
        let mut op = operation();
        op.kind = OperationKind::Image;
        op.before = idle(factory());
        op.to = factory();
        for (data, phase) in [
            (DataState::Untouched, "idle"),
            (DataState::Exchanged, "reverting"),
        ] {
            let op = op.clone();
            let decision = Case::new(Phase::Switching { op, data }, Link::Absent).decide();
            assert_eq!(decision.record.phase().name(), phase, "{data:?}");
        }
    }

    #[test]
    fn a_first_record_tells_the_schemas_of_what_is_there() {
        let leaves: BTreeMap<Name, u64> = [(inventory(), 7)].into();
        for (loaded, snapshot, known) in [
            (Loaded::Absent, false, true),
            (Loaded::Unreadable("torn".into()), false, true),
            (Loaded::Unreadable("torn".into()), true, false),
        ] {
            let mut case = Case::new(trial(0, BOOT), Link::To(Slot::A));
            case.accepts = 7;
            (case.loaded, case.snapshot, case.leaves) = (loaded, snapshot, leaves.clone());
            let schemas = case.decide().record.schemas;
            assert_eq!(schemas == leaves, known, "{schemas:?}");
            assert_eq!(schemas.is_empty(), !known, "{schemas:?}");
        }
    }

    /// Keeps `tests/golden` honest: what it holds is what this code writes, and what was written before is read as the same.
    #[test]
    fn the_golden_trial_is_this_trial() {
        let mut phase = trial(1, "an earlier boot");
        if let Phase::Trial { op, data, .. } = &mut phase {
            *data = DataState::Exchanged;
            op.exchanged_at = Some(NOW.into());
            op.change = crate::model::dataplan::DataChange::Migrate;
            op.schemas = [("inventory".parse().unwrap(), 2)].into();
            let set = r#"{"name":"inventory","method":"files","place":"/data/inventory.db"}"#;
            op.data.push(serde_json::from_str(set).unwrap());
        }
        let record = Record::idle(factory(), None, NOW).in_phase(phase);
        for former in [
            &include_bytes!("../../tests/golden/state-1-trial-data.json")[..],
            include_bytes!("../../tests/golden/state-1-trial-method.json"),
        ] {
            let read = crate::model::record::decode(former).unwrap();
            assert_eq!(read, (12, record.clone()));
        }
        let golden = include_str!("../../tests/golden/state-1-trial-exchange.json");
        let written =
            String::from_utf8(crate::model::record::encode(&record, 12).unwrap()).unwrap();
        assert_eq!(written, golden);
    }
}
