//! `confirm`: what was left open is ended. `reset`: what a person has dealt with is forgotten.

use qx_release::durable;
use qx_release::error::{Error, ErrorKind, Exit, Result};

use super::{Appliance, Confirmation, Resumed, running, wait_for_runlevel};
use crate::model::idle::Idle;
use crate::model::phase::Phase;
use crate::model::record::{Loaded, Record};
use crate::model::slot::Set;
use crate::system::host;
use crate::system::watchdog::Watchdog;

impl Appliance {
    /// Ends an open trial: proves it, or goes back, unless a person accepts it.
    pub fn confirm(&mut self, by: Confirmation) -> Result<Exit> {
        let _watchdog = self.watchdog();
        // Without the lock: others may work until then.
        wait_for_runlevel(&self.config.services, &self.host, &mut self.log);
        self.complete_boot("confirm");
        if self.factory_boot()
            && let Loaded::Record(record) = self.store.load()
            && running(&record).set != Set::Factory
        {
            let what = format!(
                "this boot uses the factory set as requested ({}); {} is kept and not confirmed",
                host::FACTORY_BOOT,
                running(&record)
            );
            self.log.info("confirm", what);
            return Ok(Exit::Done);
        }
        // At most boots there is nothing to do: no lock, so that nobody who starts working then is told to come again.
        if let Loaded::Record(record) = self.store.load()
            && let Phase::Idle(Idle {
                active,
                trouble: None,
                ..
            }) = record.phase()
            && record.stopped.is_none()
            && self.image_operation(&record)?.is_none()
            && self.store.kept_data()?.is_empty()
        {
            self.log
                .info("confirm", format!("{active} runs; nothing is on trial"));
            return Ok(Exit::Done);
        }
        let (_lock, record) = self.begin("confirm")?;
        self.tidy_data(&record);
        if let (Confirmation::ByPerson, Phase::Trial { op, .. }) = (by, record.phase()) {
            self.log.operation(op.id);
            self.log.warning(
                "confirm",
                format!("{} is confirmed manually, without proof", op.to),
            );
            return self.switch_of(op.clone()).confirmed(&record, &[]);
        }
        match self.resume(record)? {
            Resumed::Ended(exit) => Ok(exit),
            // Where no data stage runs at boot.
            Resumed::Ready(record) => match self.image_operation(&record)? {
                Some(op) => self.switch(op, &record),
                None => Ok(self.tell_what_runs(&record)),
            },
        }
    }

    /// The watchdog that was armed for an open trial, kicked from here on.
    fn watchdog(&mut self) -> Option<Watchdog> {
        let device = self.config.watchdog.clone()?;
        let record = match self.store.load() {
            Loaded::Record(record) => record,
            Loaded::Absent | Loaded::Unreadable(_) => return None,
        };
        if !record.phase().is_under_way() {
            return None;
        }
        let kicked = self
            .host
            .path(&device)
            .and_then(|path| Watchdog::kick(&path));
        kicked
            .inspect_err(|e| self.log.warning("confirm", e.chain()))
            .ok()
    }

    /// The end of a `confirm` that found nothing open.
    fn tell_what_runs(&mut self, record: &Record) -> Exit {
        let idle = record.idle_when_ended();
        match idle.trouble {
            Some(trouble) => {
                self.log.warning("confirm", trouble.what);
                match trouble.needs_person {
                    true => Exit::NeedsPerson,
                    false => Exit::Done,
                }
            }
            None => {
                let what = format!("{} runs; nothing is on trial", idle.active);
                self.log.info("confirm", what);
                Exit::Done
            }
        }
    }

    /// Forgets what a person has dealt with: quarantine, held releases, trouble, a staged release, downloads. What runs
    /// is not touched.
    pub fn reset(&mut self) -> Result<Exit> {
        let (_lock, record) = self.begin("reset")?;
        if matches!(
            record.phase(),
            Phase::Trial { .. } | Phase::Reverting { .. }
        ) {
            return Err(Error::with(
                ErrorKind::NeedsPerson,
                format!(
                    "resetting: a {} is in progress; finish it with `qx-update confirm`",
                    record.phase().name()
                ),
            ));
        }
        let mut idle = record.idle_when_ended();
        idle.trouble = None;
        self.store.save(&record.settled(idle)?)?;
        durable::remove(&self.store.path("update/quarantine"))?;
        self.store.drop_downloads()?;
        self.store.drop_leftovers()?;
        self.log.info(
            "reset",
            "cleared quarantine, held releases, staged release and downloads",
        );
        Ok(Exit::Done)
    }
}
