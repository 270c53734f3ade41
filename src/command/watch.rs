//! `confirm --watch`: an eye is kept on the services of a release for a while after it was confirmed.

use std::time::Duration;

use qx_release::error::{ErrorKind, Exit, Result};
use qx_release::manifest::Name;

use super::{Appliance, Back};
use crate::model::dataplan::NewerData;
use crate::model::record::{Loaded, Record};
use crate::model::watch::{Crashes, Look, Watched};
use crate::proof::observe::{Census, State};
use crate::system::service::Manager;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is noted for how long a release has been watched, in seconds.
const NOTE: u64 = 60;

impl Appliance {
    /// Watches this release and those that are confirmed later, however its confirmation `ended`; does not end by itself.
    pub fn watch(&mut self, ended: Result<Exit>) -> Result<Exit> {
        if let Err(e) = ended {
            self.log.error("confirm", e.chain());
        }
        let mut crashes = Crashes::default();
        let mut told = None;
        loop {
            let looked = self.look_once(&mut crashes).err().map(|e| e.chain());
            if let Some(why) = looked.clone().filter(|_| looked != told) {
                self.log.warning("watch", why);
            }
            told = looked;
            std::thread::sleep(LOOK);
        }
    }

    fn look_once(&mut self, crashes: &mut Crashes) -> Result<()> {
        let watched = self.store.watched()?.filter(|w| w.problem.is_none());
        let record = match self.store.load() {
            Loaded::Record(record) => Some(*record),
            Loaded::Absent | Loaded::Unreadable(_) => None,
        };
        let (Some(mut watched), Some(record)) = (watched, record) else {
            *crashes = Crashes::default();
            return Ok(());
        };
        // What an operation stops and starts is its own business.
        if !watched.is_about(&record) || self.store.holder().is_some() {
            *crashes = Crashes::default();
            return Ok(());
        }
        let noted = watched.lasted.clone();
        watched.lasted = noted.until(&self.host.moment());
        if watched.lasted.seconds > watched.for_s {
            let active = &record.idle_when_ended().active;
            let what = format!(
                "{active} was watched for {} s: no crash loop",
                watched.for_s
            );
            self.log.info("watch", what);
            return self.store.forget_watched();
        }
        let boot = noted.until.boot_id != watched.lasted.until.boot_id;
        if boot || watched.lasted.seconds >= noted.seconds + NOTE {
            self.store.watch(&watched)?;
        }
        match self.crash_loop(&watched, &record, crashes)? {
            Some((service, problem)) => self.report(watched, service, problem),
            None => Ok(()),
        }
    }

    /// The first crash loop among the services of the set that runs.
    fn crash_loop(
        &self,
        watched: &Watched,
        record: &Record,
        crashes: &mut Crashes,
    ) -> Result<Option<(Name, String)>> {
        let active = record.idle_when_ended().active.set;
        let manager = Manager::new(
            &self.config.services,
            &self.host,
            self.config.service_timeout(),
        );
        let Some(manifest) = self.manifest_of(active)? else {
            return Ok(None);
        };
        let census = Census::take(&[&manifest], &[], &self.store, &manager);
        let services = manifest.services.iter();
        for service in services.filter(|s| watched.processes.contains_key(&s.name)) {
            let seen = census.look(service, active, &manifest);
            let look = match (seen.state, seen.process) {
                (State::Installed | State::Other, Some(process)) => Look::Runs(process.key()),
                _ if manager
                    .started(std::slice::from_ref(&service.name))
                    .is_empty() =>
                {
                    Look::Stopped
                }
                _ => Look::Down,
            };
            let problem = crashes.see(&service.name, look, watched.lasted.seconds);
            if let Some(problem) = problem {
                return Ok(Some((service.name.clone(), problem)));
            }
        }
        Ok(None)
    }

    fn report(&mut self, watched: Watched, service: Name, problem: String) -> Result<()> {
        let begun = watched
            .undo
            .then(|| self.begin("confirm --watch"))
            .transpose();
        // Whoever works on it may mend it; if not, the loop goes on and is seen again.
        if begun.as_ref().is_err_and(|e| e.kind == ErrorKind::Busy) {
            return begun.map(drop);
        }
        self.log.error("watch", problem.clone());
        let watched = Watched {
            problem: Some(problem.clone()),
            ..watched
        };
        self.store.watch(&watched)?;
        let Some((_lock, record)) = begun? else {
            return Ok(());
        };
        if !watched.is_about(&record) {
            return Ok(());
        }
        let idle = record.idle_when_ended();
        let newer = NewerData::SetAside;
        let undoes = Some((problem, service));
        self.go_back(idle, Back::Previous, newer, undoes, &record)
            .map(drop)
    }
}
