//! The state machine: the transitions between the phases. A record's phase changes only here; a transition that the
//! current phase does not allow is an error. Every transition changes memory only.

use std::collections::BTreeMap;

use crate::model::id::BootId;
use crate::model::idle::Idle;
use crate::model::moment::{Lasted, Moment};
use crate::model::operation::{Attempt, Cause, Operation, OperationKind};
use crate::model::phase::{DataState, Phase};
use crate::model::record::Record;
use qx_release::error::{Error, Exit, Result};
use qx_release::manifest::Name;

/// What the phase of a record tells.
impl Record {
    /// The schema of each data set as it lies there now, whichever set is to run.
    pub fn schemas_now(&self) -> &BTreeMap<Name, u64> {
        match &self.phase {
            Phase::Trial { op, .. } => &op.schemas,
            _ => &self.schemas,
        }
    }

    /// Whether a trial that changed data has lasted too long for the data to be restored automatically.
    pub fn is_stale_trial(&self, now: &Moment) -> bool {
        match &self.phase {
            Phase::Trial {
                op,
                data: DataState::Exchanged,
                lasted: Some(lasted),
                ..
            } => lasted.until(now).seconds > op.trial_max_age_s,
            _ => false,
        }
    }

    /// What runs, if nothing more happens to an open operation.
    pub fn idle_when_ended(&self) -> Idle {
        match &self.phase {
            Phase::Idle(idle) => idle.clone(),
            Phase::Staging { op } => op.before.clone(),
            Phase::Staged { op } | Phase::Switching { op, .. } | Phase::Reverting { op, .. } => {
                op.back()
            }
            Phase::Trial { op, .. } => Idle {
                active: op.to.clone(),
                fallback: Some(op.from().clone()),
                ..op.back()
            },
        }
    }

    /// The operation that is open, if any.
    pub fn operation(&self) -> Option<&Operation> {
        match &self.phase {
            Phase::Idle(_) => None,
            Phase::Staging { op }
            | Phase::Staged { op }
            | Phase::Switching { op, .. }
            | Phase::Trial { op, .. }
            | Phase::Reverting { op, .. } => Some(op),
        }
    }

    /// Whether another record differs from this one in nothing but how long a trial has lasted.
    pub fn only_lasted_until(&self, other: &Record) -> bool {
        let without = |record: &Record| {
            let mut record = record.clone();
            if let Phase::Trial { lasted, .. } = &mut record.phase {
                *lasted = None;
            }
            record
        };
        without(self) == without(other)
    }

    /// How far the change of the data is.
    pub fn data(&self) -> DataState {
        match self.phase {
            Phase::Switching { data, .. }
            | Phase::Trial { data, .. }
            | Phase::Reverting { data, .. } => data,
            Phase::Idle(_) | Phase::Staging { .. } | Phase::Staged { .. } => DataState::Untouched,
        }
    }
}

/// The transitions, in the order of an update.
impl Record {
    /// A release is about to be written into the alternate slot. What was staged before is given up with it.
    pub fn begin_staging(&self, op: Operation) -> Result<Record> {
        match &self.phase {
            Phase::Idle(_) | Phase::Staging { .. } | Phase::Staged { .. } => {
                Ok(self.with(Phase::Staging { op }))
            }
            _ => Err(self.out_of_turn("staging begins", &op)),
        }
    }

    /// The release lies complete and verified in the alternate slot.
    pub fn staged(&self, op: Operation) -> Result<Record> {
        match &self.phase {
            Phase::Staging { op: open } if open.id == op.id => Ok(self.with(Phase::Staged { op })),
            _ => Err(self.out_of_turn("a release is staged", &op)),
        }
    }

    /// Services are about to be stopped: for what is staged, or for what was there before.
    pub fn begin_switch(&self, op: Operation) -> Result<Record> {
        match &self.phase {
            Phase::Idle(_) if op.kind != OperationKind::Install => {}
            Phase::Staged { op: open } if open.id == op.id => {}
            // A way back gives up what was staged.
            Phase::Staged { .. } if op.kind != OperationKind::Install => {}
            _ => return Err(self.out_of_turn("a switch begins", &op)),
        }
        let data = DataState::Untouched;
        Ok(self.with(Phase::Switching { op, data }))
    }

    /// The data is about to be exchanged for what lies ready, complete and on the medium.
    pub fn begin_exchange(&self, op: Operation) -> Result<Record> {
        match &self.phase {
            Phase::Switching {
                op: open,
                data: DataState::Untouched,
            } if open.id == op.id => {
                let data = DataState::Exchanged;
                Ok(self.with(Phase::Switching { op, data }))
            }
            _ => Err(self.out_of_turn("the data is exchanged", &op)),
        }
    }

    /// The link has moved: the trial begins, in the boot of that moment; at boot it has not been counted yet.
    pub fn begin_trial(&self, op: Operation, since: &str, now: Option<&Moment>) -> Result<Record> {
        match &self.phase {
            Phase::Switching { op: open, data } if open.id == op.id => {
                Ok(self.with(Phase::Trial {
                    op,
                    data: *data,
                    boots: 0,
                    boot_id: now.map_or_else(BootId::default, |now| now.boot_id.clone()),
                    since: since.to_owned(),
                    lasted: now.map(Lasted::since),
                }))
            }
            _ => Err(self.out_of_turn("a trial begins", &op)),
        }
    }

    /// The trial sees another boot, or the same one again, and has lasted until now.
    pub fn trial_goes_on(&self, now: &Moment) -> Result<Record> {
        let mut record = self.clone();
        let Phase::Trial {
            boots,
            boot_id,
            lasted,
            ..
        } = &mut record.phase
        else {
            return Err(self.out_of_phase("a trial goes on"));
        };
        *boots += u32::from(*boot_id != now.boot_id);
        boot_id.clone_from(&now.boot_id);
        *lasted = Some(match lasted {
            Some(lasted) => lasted.until(now),
            // Nobody has said yet when it began.
            None => Lasted::since(now),
        });
        Ok(record)
    }

    /// The operation is given up: from here on there is only the way back.
    pub fn begin_revert(&self, op: Operation, cause: Cause) -> Result<Record> {
        match &self.phase {
            Phase::Switching { op: open, data } | Phase::Trial { op: open, data, .. }
                if open.id == op.id =>
            {
                let data = *data;
                Ok(self.with(Phase::Reverting { op, data, cause }))
            }
            _ => Err(self.out_of_turn("the way back begins", &op)),
        }
    }

    /// What was exchanged is exchanged back. It is never done twice.
    pub fn data_restored(&self, op: Operation) -> Result<Record> {
        match &self.phase {
            Phase::Reverting {
                op: open,
                data: DataState::Exchanged,
                cause,
            } if open.id == op.id => Ok(self.with(Phase::Reverting {
                op,
                data: DataState::Restored,
                cause: cause.clone(),
            })),
            _ => Err(self.out_of_turn("the data is restored", &op)),
        }
    }

    /// A switch was cut short before anything but services had changed: the release is still staged.
    pub fn staged_again(&self, op: Operation) -> Result<Record> {
        match &self.phase {
            Phase::Staged { op: open }
            | Phase::Switching {
                op: open,
                data: DataState::Untouched,
            } if open.id == op.id => Ok(self.with(Phase::Staged { op })),
            _ => Err(self.out_of_turn("a release is still staged", &op)),
        }
    }

    /// Back to idle: the open operation, if any, has changed neither the data nor the link.
    pub fn settled(&self, idle: Idle) -> Result<Record> {
        match &self.phase {
            Phase::Idle(_)
            | Phase::Staging { .. }
            | Phase::Staged { .. }
            | Phase::Switching {
                data: DataState::Untouched,
                ..
            } => Ok(self.with(Phase::Idle(idle))),
            _ => Err(self.out_of_phase("nothing is going on")),
        }
    }

    /// Records how the operation ended. That is not allowed while data is still to be exchanged back.
    pub fn ended(&self, idle: Idle, attempt: Attempt) -> Result<Record> {
        match &self.phase {
            Phase::Staging { op }
            | Phase::Staged { op }
            | Phase::Trial { op, .. }
            | Phase::Reverting {
                op,
                data: DataState::Untouched | DataState::Restored,
                ..
            } if op.id == attempt.id => Ok(self.abandoned(idle, attempt)),
            // What needs no staging may be given up before it is recorded.
            Phase::Idle(_) if attempt.kind != OperationKind::Install => {
                Ok(self.abandoned(idle, attempt))
            }
            _ => Err(self.out_of_phase("an operation ends")),
        }
    }

    /// Notes that the open operation failed, for `status`; its phase ends with the next transition. The services that it
    /// stopped stay recorded.
    pub fn came_to_nothing(&self, op: &Operation, why: &str, now: &str) -> Record {
        Record {
            last: Some(op.attempt(Exit::Failed, Some(why.to_owned()), now)),
            failure: None,
            stopped: match op.ran.is_empty() {
                true => self.stopped.clone(),
                false => Some(Box::new(op.clone())),
            },
            ..self.clone()
        }
    }

    /// A person abandons the open operation, if any, and stays with another set.
    pub fn abandoned(&self, idle: Idle, attempt: Attempt) -> Record {
        Record {
            phase: Phase::Idle(idle),
            last: Some(attempt),
            failure: None,
            schemas: self.schemas.clone(),
            stopped: None,
        }
    }

    /// Whatever it was in before.
    #[cfg(test)]
    pub fn in_phase(&self, phase: Phase) -> Record {
        self.with(phase)
    }

    fn with(&self, phase: Phase) -> Record {
        Record {
            phase,
            ..self.clone()
        }
    }

    fn out_of_turn(&self, what: &str, op: &Operation) -> Error {
        self.out_of_phase(&format!("{what} (operation {})", op.id))
    }

    /// The phase does not allow the transition: a bug in this program. Nothing is written.
    fn out_of_phase(&self, what: &str) -> Error {
        let open = self
            .operation()
            .map(|op| format!(" of operation {}", op.id));
        Error::new(format!(
            "recording that {what}: the record is in phase {}{}; this is a bug in qx-update, please report it",
            self.phase.name(),
            open.unwrap_or_default()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::operation::CauseKind;
    use crate::model::slot::{Installed, Set};

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn idle() -> Idle {
        Idle::on(Installed::unknown_factory(), None, NOW)
    }

    fn operation(id: u64, kind: OperationKind) -> Operation {
        let to = Installed {
            set: Set::A,
            ..Installed::unknown_factory()
        };
        Operation::new(
            crate::model::id::OperationId::new(id),
            kind,
            idle(),
            to,
            NOW,
        )
    }

    fn now() -> Moment {
        Moment {
            boot_id: "this-boot".into(),
            uptime_s: 5,
        }
    }

    fn cause() -> Cause {
        Cause::new(CauseKind::Power, "the power went")
    }

    /// Every phase that there is, with the data in every state that it can be in, and what it is called in the table.
    fn records() -> Vec<(String, Record)> {
        let op = || operation(1, OperationKind::Install);
        let mut phases = vec![
            ("idle", Phase::Idle(idle())),
            ("staging", Phase::Staging { op: op() }),
            ("staged", Phase::Staged { op: op() }),
        ];
        for data in [
            DataState::Untouched,
            DataState::Exchanged,
            DataState::Restored,
        ] {
            let (op, cause) = (op(), cause());
            if data != DataState::Restored {
                phases.push((
                    "switching",
                    Phase::Switching {
                        op: op.clone(),
                        data,
                    },
                ));
                let trial = Phase::Trial {
                    op: op.clone(),
                    data,
                    boots: 0,
                    boot_id: BootId::default(),
                    since: NOW.into(),
                    lasted: None,
                };
                phases.push(("trial", trial));
            }
            phases.push(("reverting", Phase::Reverting { op, data, cause }));
        }
        let record = Record::of(idle(), BTreeMap::new());
        let named = |(name, phase): (&str, Phase)| {
            let record = record.in_phase(phase);
            (format!("{name} {:?}", record.data()).to_lowercase(), record)
        };
        phases.into_iter().map(named).collect()
    }

    type Transition = fn(&Record, Operation) -> Result<Record>;

    const TRANSITIONS: [(&str, Transition); 11] = [
        ("begin_staging", |record, op| record.begin_staging(op)),
        ("staged", |record, op| record.staged(op)),
        ("begin_switch", |record, op| record.begin_switch(op)),
        ("begin_exchange", |record, op| record.begin_exchange(op)),
        ("begin_trial", |record, op| {
            record.begin_trial(op, NOW, Some(&now()))
        }),
        ("trial_goes_on", |record, _| record.trial_goes_on(&now())),
        ("begin_revert", |record, op| {
            record.begin_revert(op, cause())
        }),
        ("data_restored", |record, op| record.data_restored(op)),
        ("staged_again", |record, op| record.staged_again(op)),
        ("settled", |record, _| record.settled(idle())),
        ("ended", |record, op| {
            record.ended(idle(), op.attempt(Exit::Done, None, NOW))
        }),
    ];

    /// Which phase a transition leads to from where; from anywhere else it is an error, and nothing is changed.
    const TABLE: [(&str, &str, &str); 26] = [
        ("begin_staging", "idle untouched", "staging untouched"),
        ("begin_staging", "staging untouched", "staging untouched"),
        ("begin_staging", "staged untouched", "staging untouched"),
        ("staged", "staging untouched", "staged untouched"),
        ("begin_switch", "staged untouched", "switching untouched"),
        (
            "begin_exchange",
            "switching untouched",
            "switching exchanged",
        ),
        ("begin_trial", "switching untouched", "trial untouched"),
        ("begin_trial", "switching exchanged", "trial exchanged"),
        ("trial_goes_on", "trial untouched", "trial untouched"),
        ("trial_goes_on", "trial exchanged", "trial exchanged"),
        ("begin_revert", "switching untouched", "reverting untouched"),
        ("begin_revert", "switching exchanged", "reverting exchanged"),
        ("begin_revert", "trial untouched", "reverting untouched"),
        ("begin_revert", "trial exchanged", "reverting exchanged"),
        ("data_restored", "reverting exchanged", "reverting restored"),
        ("staged_again", "staged untouched", "staged untouched"),
        ("staged_again", "switching untouched", "staged untouched"),
        ("settled", "idle untouched", "idle untouched"),
        ("settled", "staging untouched", "idle untouched"),
        ("settled", "staged untouched", "idle untouched"),
        ("settled", "switching untouched", "idle untouched"),
        ("ended", "staging untouched", "idle untouched"),
        ("ended", "staged untouched", "idle untouched"),
        ("ended", "trial untouched", "idle untouched"),
        ("ended", "trial exchanged", "idle untouched"),
        ("ended", "reverting untouched", "idle untouched"),
    ];

    /// Intent: whatever the code asks for in whichever phase, only what the table allows is recorded.
    #[test]
    fn every_transition_from_every_phase() {
        let allowed = |how: &str, from: &str| {
            // What was restored ends as what had not to be.
            let from = match (how, from) {
                ("ended", "reverting restored") => "reverting untouched",
                _ => from,
            };
            let row = TABLE.iter().find(|row| (row.0, row.1) == (how, from));
            row.map(|row| row.2)
        };
        for (from, record) in records() {
            for (how, transition) in TRANSITIONS {
                let context = format!("{how} from {from}");
                let became = transition(&record, operation(1, OperationKind::Install));
                match (became, allowed(how, &from)) {
                    (Ok(record), Some(to)) => {
                        let name = format!("{} {:?}", record.phase().name(), record.data());
                        assert_eq!(name.to_lowercase(), to, "{context}");
                    }
                    (Err(e), None) => {
                        assert!(e.chain().contains(record.phase().name()), "{context}: {e}");
                        assert!(e.chain().contains("a bug in qx-update"), "{context}: {e}");
                    }
                    (became, to) => panic!("{context}: {became:?}, not {to:?}"),
                }
            }
        }
    }

    /// Intent: what belongs to one operation is never recorded of another one.
    #[test]
    fn an_operation_takes_no_other_ones_place() {
        for (from, record) in records() {
            for (how, transition) in TRANSITIONS {
                let other = operation(2, OperationKind::Install);
                let of_none = ["begin_staging", "trial_goes_on", "settled"].contains(&how);
                assert!(
                    of_none || transition(&record, other).is_err(),
                    "{how} from {from}"
                );
            }
        }
    }

    /// Intent: a way back needs no staging, and what is staged does not hinder it.
    #[test]
    fn a_way_back_begins_without_staging() {
        for kind in [
            OperationKind::Rollback,
            OperationKind::Factory,
            OperationKind::Image,
        ] {
            for (from, record) in records() {
                let op = operation(2, kind);
                let free = ["idle untouched", "staged untouched"].contains(&&*from);
                assert_eq!(record.begin_switch(op.clone()).is_ok(), free, "{from}");
                let ended = record.ended(idle(), op.attempt(Exit::Failed, None, NOW));
                assert_eq!(ended.is_ok(), from == "idle untouched", "{from}");
            }
        }
    }

    /// Intent: a trial counts each boot once, and knows how long it has lasted.
    #[test]
    fn a_trial_counts_boots() {
        let switching = Record::of(idle(), BTreeMap::new()).in_phase(Phase::Switching {
            op: operation(1, OperationKind::Install),
            data: DataState::Untouched,
        });
        let begin = |now: Option<&Moment>| {
            let op = operation(1, OperationKind::Install);
            switching.begin_trial(op, NOW, now).unwrap()
        };
        for (begun, counts) in [(begin(Some(&now())), [0, 0, 1]), (begin(None), [1, 1, 2])] {
            let mut record = begun;
            let next = Moment {
                boot_id: "next".into(),
                ..now()
            };
            for (moment, count) in [now(), now(), next].iter().zip(counts) {
                record = record.trial_goes_on(moment).unwrap();
                let Phase::Trial { boots, lasted, .. } = record.phase() else {
                    panic!("no trial");
                };
                assert_eq!(*boots, count);
                assert_eq!(lasted.as_ref().unwrap().until, *moment);
            }
        }
    }

    /// A record that differs in anything else, the count of boots above all, must be written before a trial goes on.
    #[test]
    fn only_how_long_a_trial_has_lasted_may_stay_unwritten() {
        let golden = include_bytes!("../../tests/golden/state-1-trial-data.json");
        let old = crate::model::record::decode(golden).unwrap().1;
        let edited = |record: &Record, edit: fn(&mut u32, &mut Option<Lasted>)| {
            let mut record = record.clone();
            let Phase::Trial { boots, lasted, .. } = &mut record.phase else {
                panic!("no trial");
            };
            edit(boots, lasted);
            record
        };
        let later = edited(&old, |_, lasted| *lasted = Some(Lasted::since(&now())));
        assert!(old != later && old.only_lasted_until(&later));
        let counted = edited(&later, |boots, _| *boots += 1);
        assert!(!later.only_lasted_until(&counted));
        assert!(!old.only_lasted_until(&counted));
    }
}
