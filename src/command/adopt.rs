//! `adopt`: an appliance whose programs another updater put into plain directories is taken over, or given back.

use qx_release::error::{Error, ErrorKind, Exit, Result};

use super::{Appliance, running};
use crate::adoption::vdc::{self, Vdc};
use crate::adoption::{self, Survey};
use crate::model::record::{Loaded, Record};
use crate::model::slot::Set;
use crate::proof::observe::{Census, State};
use crate::recovery::link;
use crate::store::CommitPoint;
use crate::system::service::Manager;

/// What `adopt` is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    /// To show what would be done.
    Plan,
    /// To take the appliance over.
    TakeOver,
    /// To give it back as it was.
    Undo,
}

impl Appliance {
    /// Makes the plain directories the first release, or a release plain directories again.
    pub fn adopt(&mut self, asked: Adopt) -> Result<Exit> {
        self.store.prepare()?;
        let _lock = self.lock("adopt")?;
        let record = match self.store.load() {
            Loaded::Record(record) => *record,
            Loaded::Absent => Record::idle(self.store.factory().0, None, &self.host.timestamp()),
            Loaded::Unreadable(why) => {
                let what =
                    format!("adopting this appliance: the update state is unreadable: {why}");
                return Err(Error::with(ErrorKind::NeedsPerson, what));
            }
        };
        if let Some(op) = record.operation() {
            return Err(Error::new(format!(
                "adopting this appliance: the {} of {} is under way: end it first (`qx-update confirm`)",
                record.phase().name(),
                op.to
            )));
        }
        match asked {
            Adopt::Undo => self.give_back(&record),
            Adopt::Plan | Adopt::TakeOver => self.take_over(record, asked),
        }
    }

    fn take_over(&mut self, mut record: Record, asked: Adopt) -> Result<Exit> {
        let active = running(&record);
        let plain = self.store.plain()?;
        if active.set != Set::Factory {
            // The record says so already: what is left to do is done.
            return self.end_adoption(&record, plain.is_empty());
        }
        let prepared = self.describe_vdc(asked)?;
        if plain.is_empty() || (prepared && asked == Adopt::Plan) {
            if prepared {
                return Ok(Exit::Done);
            }
            let what = "nothing to adopt: neither bin nor share in the data directory is a plain directory";
            self.log.info("adopt", what);
            return Ok(Exit::NothingNewer);
        }
        if self.factory_boot() {
            return Err(self.told_to_use_the_factory_set("adopting this appliance"));
        }
        let (host, store) = (&self.host, &self.store);
        record.schemas = crate::data::schemas(
            host,
            store,
            &self.config.data,
            &record.schemas,
            &mut self.log,
        );
        let survey = Survey::of(host, store, &record)?;
        survey
            .plan
            .iter()
            .for_each(|what| self.log.info("adopt", what.clone()));
        survey
            .warnings
            .iter()
            .for_each(|what| self.log.warning("adopt", what.clone()));
        if asked == Adopt::Plan {
            return Ok(Exit::Done);
        }
        // So that what is interrupted has not happened.
        self.store.save(&record)?;
        let adopted = survey.carry_out(&self.store, &record, &self.host.timestamp())?;
        self.bring_in_order(running(&adopted).set)?;
        self.tell_adopted(&adopted);
        Ok(Exit::Done)
    }

    /// The part of it that a Quantix-vDC needs first; whether there was any.
    fn describe_vdc(&mut self, asked: Adopt) -> Result<bool> {
        let now = self.host.timestamp();
        let Some(vdc) = Vdc::survey(&self.host, &self.store, &self.config, &now)? else {
            return Ok(false);
        };
        for what in &vdc.plan {
            self.log.info("adopt", what.clone());
        }
        if asked == Adopt::TakeOver {
            vdc.carry_out(&self.store)?;
            let what = "the factory set is described, and its services look for a release first; nothing was stopped";
            self.log.info("adopt", what);
        }
        Ok(true)
    }

    /// An adoption that was interrupted after it was recorded.
    fn end_adoption(&mut self, record: &Record, is_over: bool) -> Result<Exit> {
        let active = running(record);
        if is_over {
            self.log
                .info("adopt", format!("nothing to adopt: {active} runs"));
            return Ok(Exit::NothingNewer);
        }
        if !self.store.is_adopted(&active)? {
            return Err(Error::new(format!(
                "adopting this appliance: {active} is installed, but hidden by a plain directory in the place of a link: move that \
                 away"
            )));
        }
        self.store.prepare_links()?;
        self.bring_in_order(active.set)?;
        self.tell_adopted(record);
        Ok(Exit::Done)
    }

    /// The links change places with the directories, as a boot does it. It is recorded, so it is tried twice; nothing is hidden
    /// meanwhile from whoever runs.
    fn bring_in_order(&mut self, set: Set) -> Result<()> {
        let change = || {
            // First, so that at no time the other links lead nowhere.
            self.store.select(set)?;
            self.store.repair(set)
        };
        change().or_else(|_| change())?;
        // What the boot found in the way is not any more.
        let _ = link::link_stage(&self.host, &self.store, &mut self.log);
        Ok(())
    }

    fn give_back(&mut self, record: &Record) -> Result<Exit> {
        let idle = record.idle_when_ended();
        if idle.active.set == Set::Factory {
            if vdc::undo(&self.host, &self.store, &self.config)? {
                self.log.info(
                    "adopt",
                    "the adoption is undone: the init scripts are as they were",
                );
                return Ok(Exit::Done);
            }
            if self.store.kept_plain()?.is_empty() {
                adoption::clean(&self.store, None)?;
                self.log
                    .info("adopt", "nothing to undo: this appliance is not adopted");
                return Ok(Exit::NothingNewer);
            }
            return Err(Error::new(
                "undoing the adoption: the factory set runs, not the adopted release: what was in the plain directories lies in \
                 the directory `adopted`",
            ));
        }
        let slot = idle.active.set.slot();
        let undone = adoption::undo(&self.store, &idle, record, &self.host.timestamp());
        if let Err(e) = undone {
            // What a write came to is what can be read.
            if running(&self.current_record()).set != Set::Factory {
                self.bring_in_order(idle.active.set)?;
                return Err(e);
            }
            self.log.warning("adopt", e.chain());
        }
        // It is undone, whatever is left of it.
        let cleaned = vdc::undo(&self.host, &self.store, &self.config);
        if let Err(e) = cleaned.and_then(|_| adoption::clean(&self.store, slot)) {
            self.log.warning("adopt", e.chain());
        }
        let what = "the adoption is undone: the plain directories are in their places, and nothing was stopped";
        self.log.info("adopt", what);
        Ok(Exit::Done)
    }

    /// Which of the services run the adopted files: none was restarted, so all that did before.
    fn tell_adopted(&mut self, record: &Record) {
        let active = running(record);
        self.log.info(
            "adopt",
            format!("{active} is adopted; `qx-update adopt --undo` gives it back"),
        );
        let Ok(Some((manifest, _))) = self.store.manifest(active.set) else {
            return;
        };
        let manager = Manager::new(
            &self.config.services,
            &self.host,
            self.config.service_timeout(),
        );
        if !manager.controls() {
            return;
        }
        let census = Census::take(&[&manifest], &[], &self.store, &manager);
        for service in &manifest.services {
            let seen = census.look(service, active.set, &manifest);
            match (seen.state, seen.process, seen.why) {
                (State::Installed, Some(process), _) => {
                    let what = format!(
                        "service {} runs {} of it (process {})",
                        service.name, service.runs, process.pid
                    );
                    self.log.info("adopt", what);
                }
                (_, _, Some(why)) => self.log.warning("adopt", why),
                _ => {}
            }
        }
    }

    /// Writes the version of what runs where the configuration says that programs look for it.
    pub fn write_version_files(&mut self) {
        let Loaded::Record(record) = self.store.load() else {
            return;
        };
        if self.config.version_files.is_empty() || record.operation().is_some() {
            return;
        }
        let active = running(&record);
        let Ok(Some((manifest, _))) = self.store.manifest(active.set) else {
            return;
        };
        let components: Vec<_> = manifest.components.iter().map(|c| c.name.clone()).collect();
        let files = &self.config.version_files;
        let written =
            adoption::legacy::write_versions(&self.host, files, &manifest.version, &components);
        if let Err(e) = written {
            self.log.warning("version", e.chain());
        }
    }
}
