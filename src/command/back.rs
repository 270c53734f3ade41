//! `rollback`: the previous set or the factory set, because a person says so.

use qx_release::error::{Context, Error, ErrorKind, Exit, Result};
use qx_release::manifest::Name;

use super::{Appliance, Back, Resumed, leave_caller, running, wait_for_runlevel};
use crate::data;
use crate::model::dataplan::{DataChange, DataPlan, NewerData};
use crate::model::idle::Idle;
use crate::model::operation::{Attempt, Cause, CauseKind, Operation, OperationKind};
use crate::model::phase::{DataState, Phase};
use crate::model::record::Record;
use crate::model::refusal::{Refusal, RefusalKind};
use crate::model::slot::{Installed, Set};
use crate::recovery::link;
use crate::store::sets;

/// Whether the last that happened was a way back to what runs. A kernel argument that stays in the boot loader goes back once, not at
/// every boot.
fn is_back(record: &Record) -> bool {
    let active = running(record);
    match (record.phase(), &record.last) {
        (Phase::Reverting { .. }, _) => true,
        (Phase::Trial { op, .. }, _) => op.kind.goes_back(),
        (_, Some(last)) => match last.result {
            Exit::Done => last.kind.goes_back() && last.to == active,
            Exit::BackToPrevious | Exit::BackToFactory => last.from == active,
            _ => false,
        },
        (_, None) => false,
    }
}

impl Appliance {
    /// Goes back to the previous release or the factory set because a person says so.
    pub fn rollback(&mut self, back: Back, newer: NewerData) -> Result<Exit> {
        let (_lock, record) = self.begin("rollback")?;
        if self.factory_boot() {
            return match back {
                Back::Factory => self.abandon(&record),
                Back::Previous => Err(self.told_to_use_the_factory_set("rolling back")),
            };
        }
        if self.at_boot && is_back(&record) {
            let what = format!("{} runs since an earlier boot went back", running(&record));
            self.log.info("rollback", what);
            return Ok(Exit::NothingNewer);
        }
        let resumed = match record.phase() {
            Phase::Trial { .. } => self.end_trial(&record, back, newer)?,
            _ => self.resume(record)?,
        };
        let record = match resumed {
            Resumed::Ready(record) => *record,
            Resumed::Ended(exit) => return Ok(exit),
        };
        let idle = record.idle_when_ended();
        if idle.active.set == Set::Factory {
            let what = format!(
                "{} runs already; there is nothing to go back to",
                idle.active
            );
            self.log.info("rollback", what);
            return Ok(Exit::NothingNewer);
        }
        self.go_back(idle, back, newer, None, &record)
    }

    /// Goes back from what runs; `undoes` is why, if it is no person who asks for it, and the service that does not stay up: it is
    /// meant to run, whatever it does at this instant.
    pub(super) fn go_back(
        &mut self,
        idle: Idle,
        back: Back,
        newer: NewerData,
        undoes: Option<(String, Name)>,
        record: &Record,
    ) -> Result<Exit> {
        let to = self.set_behind(&idle, back)?;
        let data = self.data_plan_back(&idle, &to, record, newer)?;
        let kind = match to.set {
            Set::Factory => OperationKind::Factory,
            Set::A | Set::B => OperationKind::Rollback,
        };
        let running = self.manifest_of(idle.active.set)?;
        let (undoes, ran) = undoes.unzip();
        let op = Operation {
            failed_before: self.baseline(idle.active.set, running.as_ref()),
            undoes,
            ran: ran.into_iter().collect(),
            ..self.operation(kind, idle, to)?.with_data_plan(data)
        };
        self.log.operation(op.id);
        let why = match &op.undoes {
            Some(why) => format!(": {why}"),
            None => " as requested".to_owned(),
        };
        let what = format!("going back from {} to {}{why}", op.from(), op.to);
        self.log.info("rollback", what);
        self.switch(op, record)
    }

    /// What a person wants to go back to.
    fn set_behind(&mut self, idle: &Idle, back: Back) -> Result<Installed> {
        let previous = idle
            .fallback
            .clone()
            .filter(|f| back == Back::Previous && f.set != Set::Factory);
        let Some(previous) = previous else {
            return Ok(self.store.factory().0);
        };
        if sets::verified(&self.store, &previous, &mut self.log).is_none() {
            return Err(Error::new(format!(
                "going back to {previous}: it no longer verifies; to use the factory set, run `qx-update rollback --to \
                 factory`"
            )));
        }
        Ok(previous)
    }

    /// What happens to the data on the way back.
    fn data_plan_back(
        &mut self,
        idle: &Idle,
        to: &Installed,
        record: &Record,
        newer: NewerData,
    ) -> Result<DataPlan> {
        let manifest = |set| {
            self.manifest_of(set)
                .doing(|| format!("going back to {to}"))
        };
        let (active, target) = (manifest(idle.active.set)?, manifest(to.set)?);
        let leftovers = data::leftovers(&self.store, record)?;
        let plan = DataPlan::back(
            active.as_ref(),
            target.as_ref(),
            &record.schemas,
            &self.config.data,
            &self.unknown_data(record)?,
            &leftovers,
            newer,
        )
        .map_err(|why| Error::with(ErrorKind::NeedsPerson, format!("going back to {to}: {why}")))?;
        let again = leftovers.iter().find(|kept| plan.kept == Some(kept.copy()));
        if let Some(kept) = again {
            data::intact(&self.host, &self.store, kept).doing(|| format!("going back to {to}"))?;
        }
        let aside = matches!(plan.change, DataChange::Kept | DataChange::Empty);
        for set in plan.data.iter().filter(|_| aside) {
            self.log.warning(
                "rollback",
                format!(
                    "setting aside the data of {}, with everything written until now",
                    set.name
                ),
            );
        }
        Ok(plan)
    }

    /// A person ends an open trial: the data is restored, as after a failed proof.
    fn end_trial(&mut self, record: &Record, back: Back, newer: NewerData) -> Result<Resumed> {
        let Phase::Trial { op, data, .. } = record.phase() else {
            return Ok(Resumed::Ready(Box::new(record.clone())));
        };
        let exchanged_at = op.exchanged_at.as_deref().unwrap_or(&op.started);
        if *data == DataState::Exchanged {
            let lost = format!(
                "setting aside the data written since {exchanged_at}, when {} was installed",
                op.to
            );
            if record.is_stale_trial(&self.host.moment()) && newer == NewerData::Keep {
                let what = format!(
                    "going back to {}: {lost}: this requires `--set-aside-data`",
                    op.from()
                );
                return Err(Error::with(ErrorKind::NeedsPerson, what));
            }
            self.log.warning("rollback", lost);
        }
        let cause = Cause::new(CauseKind::Person, "rolled back manually");
        if self.at_boot {
            // The link stage chooses what runs, the data stage restores the data, and `confirm` proves it.
            self.store.save(&record.begin_revert(op.clone(), cause)?)?;
            link::link_stage(&self.host, &self.store, &mut self.log)?;
            return Ok(Resumed::Ended(Exit::Done));
        }
        leave_caller(&mut self.log);
        wait_for_runlevel(&op.manager, &self.host, &mut self.log);
        let from = op.from().set;
        let exit = self.switch_of(op.clone()).revert(cause, record)?;
        Ok(match exit {
            // What was asked for.
            Exit::BackToPrevious | Exit::BackToFactory
                if back == Back::Previous || from == Set::Factory =>
            {
                Resumed::Ended(Exit::Done)
            }
            Exit::BackToPrevious => match self.current_record() {
                // Its end could not be recorded: nothing begins before the next command has done that.
                record if record.phase().is_under_way() => Resumed::Ended(exit),
                record => Resumed::Ready(Box::new(record)),
            },
            Exit::BackToFactory => Resumed::Ended(Exit::Done),
            exit => Resumed::Ended(exit),
        })
    }

    /// The boot was told to use the factory set, and a person wants to keep it: what is open is given up, without a
    /// proof of what does not run.
    fn abandon(&mut self, record: &Record) -> Result<Exit> {
        let now = self.host.timestamp();
        let left = record
            .operation()
            .map_or_else(|| running(record), |op| op.to.clone());
        // Data that was exchanged for the release that is left goes back first, while nobody uses it.
        let record = &match record.operation() {
            Some(op) if record.data() == DataState::Exchanged => {
                leave_caller(&mut self.log);
                self.switch_of(op.clone()).give_up(record)?
            }
            _ => record.clone(),
        };
        let idle = Idle::on(self.store.factory().0, None, &now);
        if left.set != Set::Factory
            && let Some(manifest) = left.manifest
        {
            let reason = "returned to the factory set manually".to_owned();
            let kind = RefusalKind::Held;
            let version = left.version.clone();
            self.store.refuse(Refusal {
                manifest,
                version,
                kind,
                reason,
                at: now.clone(),
            })?;
        }
        let attempt = match record.operation() {
            Some(op) => op.attempt(Exit::BackToFactory, Some("abandoned manually".into()), &now),
            None => Attempt {
                unproved: vec![
                    "this boot already used the factory set, so no service was restarted".into(),
                ],
                ..self
                    .operation(
                        OperationKind::Factory,
                        record.idle_when_ended(),
                        idle.active.clone(),
                    )?
                    .attempt(Exit::Done, None, &now)
            },
        };
        let ended = record.abandoned(idle, attempt);
        self.store.save(&ended)?;
        self.log.info(
            "rollback",
            format!("abandoned {left}; staying on the factory set"),
        );
        Ok(Exit::Done)
    }
}
