//! Which services a switch concerns, and how they are stopped and started.

use std::path::PathBuf;
use std::time::Duration;

use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Manifest, Name, Service};
use qx_release::text;

use super::{Side, Switch, sides};
use crate::model::changes;
use crate::model::operation::Operation;
use crate::model::record::Record;
use crate::model::slot::Set;
use crate::proof::observe::{Census, State};
use crate::store::sets;
use crate::system::proc::{FileId, Identity, Use};
use crate::system::service::Manager;

/// When services are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Always,
    IfWrong,
}

impl<'a> Switch<'a> {
    /// Which services the switch restarts, which of them run, and which do not and stay so.
    pub(super) fn concern_services(&mut self, manager: &Manager, record: &Record) {
        self.concern_changed();
        self.add_mismatched(self.to.set, manager);
        if !manager.controls() {
            return;
        }
        let names: Vec<Name> = self.op.services.iter().map(|s| s.name.clone()).collect();
        let mut ran = manager.started(&names);
        ran.extend(self.other_users(manager, &ran));
        // What only the new set has is to be started. What an attempt that was cut short has stopped ran before; and what was
        // held had no chance to run.
        let held = sets::fit(self.store, self.home.set, &record.schemas).obstacle();
        let new = |name: &Name| {
            self.home.manifest.is_some()
                && !self.home.has(name)
                && self.is_gone(name, &self.home, &self.to)
        };
        let wanted = names.iter().filter(|name| held.is_some() || new(name));
        let wanted: Vec<Name> = self.op.ran.iter().chain(wanted).cloned().collect();
        for name in wanted {
            if !ran.contains(&name) {
                ran.push(name);
            }
        }
        let all = self.home.services().iter().chain(self.to.services());
        let mut idle: Vec<Name> = all
            .map(|service| service.name.clone())
            .filter(|name| !ran.contains(name))
            .collect();
        idle.sort();
        idle.dedup();
        let started = manager.started(&idle);
        idle.retain(|name| !started.contains(name));
        for name in &idle {
            let what = format!("{name} is not running and stays stopped; it is not verified");
            self.log.warning("services", what);
        }
        self.op.ran = ran;
        self.op.idle = idle;
    }

    /// The services whose files or data are changed.
    pub(super) fn concern_changed(&mut self) {
        let uses_data = |name: &Name| self.op.uses_data(name);
        self.op.services = changes::changed_services(
            self.home.manifest.as_ref(),
            self.to.manifest.as_ref(),
            &uses_data,
        );
    }

    /// Restarts the services of the active set that still use the slot which the new release needs, before the slot is
    /// overwritten. The files that they should run are in place already. Returns the operation, its services as before.
    pub fn vacate(mut self, users: &[Use], record: &Record) -> Result<Operation> {
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let census = self.census(&manager);
        let mut names: Vec<Name> = Vec::new();
        for Use { process, path } in users {
            match census.owner(process.pid).filter(|_| manager.controls()) {
                Some(name) if names.contains(name) => {}
                Some(name) => names.push(name.clone()),
                None => {
                    let what = format!(
                        "planning {}: process {} ({}) still uses {}, whose space is needed: end it, or free space",
                        self.op.to,
                        process.pid,
                        census.name(process.pid),
                        text::path(path)
                    );
                    return Err(Error::with(ErrorKind::NoSpace, what));
                }
            }
        }
        let permission = self.permission("vacating the slot for")?;
        let services = self.home.services().iter();
        let services = services.filter(|s| names.contains(&s.name));
        self.op.services = services.cloned().collect();
        self.op.ran = manager.started(&names);
        // Whoever comes next starts what was stopped.
        self.store.save(&record.begin_staging(self.op.clone())?)?;
        let stopped = self.stop_services(&manager);
        drop(permission);
        self.start_services(self.home.set);
        let proved = self.prove(self.home.set).map_err(Error::new);
        stopped
            .and(proved)
            .map_err(|e| e.of(ErrorKind::NeedsPerson))
            .doing(|| format!("vacating the slot for {}", self.op.to))?;
        self.op.ran = Vec::new();
        Ok(self.op)
    }

    /// Services that use the data, are in neither set, and run.
    fn other_users(&self, manager: &Manager, known: &[Name]) -> Vec<Name> {
        let named = self
            .op
            .data
            .iter()
            .flat_map(|set| set.services.iter().flatten());
        let mut others: Vec<Name> = named
            .filter(|name| !self.home.has(name) && !self.to.has(name) && !known.contains(name))
            .cloned()
            .collect();
        others.sort();
        others.dedup();
        let mut ran = manager.started(&others);
        ran.retain(|name| !known.contains(name));
        ran
    }

    /// Adds the services of a set whose processes run something else, though the two sets agree on them (a boot with the
    /// factory set, a set that was left because of damage); and those that still use what a slot held before: what runs counts,
    /// not what should.
    fn add_mismatched(&mut self, set: Set, manager: &Manager) {
        let (side, _) = sides(set, &self.to, &self.home);
        let Some(manifest) = side.manifest.as_ref().filter(|_| manager.controls()) else {
            return;
        };
        let census = self.census(manager);
        let users = self.store.users(&self.store.kept());
        let outdated = |service: &Service| {
            let own = census.own(&service.name).unwrap_or_default();
            let uses = |process: &Identity| users.iter().any(|u| u.process == *process);
            census.look(service, set, manifest).state == State::Other || own.iter().any(uses)
        };
        let known = |service: &&Service| self.op.services.iter().any(|s| s.name == service.name);
        let more: Vec<Service> = manifest
            .services
            .iter()
            .filter(|service| !known(service) && outdated(service))
            .cloned()
            .collect();
        self.op.services.extend(more);
        self.op.services.sort_by_key(|s| s.order);
    }

    /// The running processes of the services of both sets, and of the others that are stopped.
    pub(super) fn census<'c>(&self, manager: &'c Manager<'c>) -> Census<'c>
    where
        'a: 'c,
    {
        let sides = [&self.to, &self.home];
        let manifests: Vec<&Manifest> = sides
            .into_iter()
            .filter_map(|s| s.manifest.as_ref())
            .collect();
        Census::take(&manifests, &self.op.ran, self.store, manager)
    }

    /// Stops the services; with [`Stop::IfWrong`] only if one of them runs other files than this set's: after a boot they
    /// may have been started from the right set already.
    pub(super) fn stop_for(&mut self, set: Set, when: Stop, manager: &Manager) -> Result<()> {
        self.add_mismatched(set, manager);
        let concerned: Vec<Name> = self.op.services.iter().map(|s| s.name.clone()).collect();
        let mut ran = manager.started(&concerned);
        ran.extend(self.other_users(manager, &ran));
        for name in ran {
            if !self.op.ran.contains(&name) {
                self.op.ran.push(name);
            }
        }
        let (side, _) = sides(set, &self.to, &self.home);
        let census = self.census(manager);
        let wrong = |service: &&Service| match &side.manifest {
            Some(manifest) => census.look(service, set, manifest).state == State::Other,
            None => true,
        };
        let services = self.op.services.iter();
        if when == Stop::Always || services.filter(|s| side.has(&s.name)).any(|s| wrong(&s)) {
            self.stop_services(manager)?;
        }
        Ok(())
    }

    pub(super) fn manager<'m>(&self, how: &'m crate::model::config::Services) -> Manager<'m>
    where
        'a: 'm,
    {
        Manager::new(
            how,
            self.host,
            Duration::from_secs(self.op.service_timeout_s),
        )
    }

    /// Stops the services that ran, and verifies that none of their processes remains. Processes of services that belong
    /// to no release are not killed.
    pub(super) fn stop_services(&mut self, manager: &Manager) -> Result<()> {
        let census = self.census(manager);
        let ours = |name: &Name| self.to.has(name) || self.home.has(name);
        for name in self.op.ran.iter().rev() {
            let own = census.own(name).filter(|_| ours(name));
            let stopped = manager.stop(name, own.clone().unwrap_or_default(), self.log)?;
            if !stopped && own.is_none() && self.op.uses_data(name) {
                return Err(Error::new(format!(
                    "stopping services: the stop command of {name} failed; it may still run and use the data"
                )));
            }
        }
        // Something may have started one of them again meanwhile. It is ended once more; that is all that can be done.
        for again in [true, false] {
            let census = self.census(manager);
            let mut left = Vec::new();
            for name in &self.op.ran {
                let own = census.own(name).unwrap_or_default();
                let Some(process) = own.first() else {
                    continue;
                };
                let (pid, runs) = (process.pid, census.name(process.pid));
                let what = format!(
                    "stopping services: {name} is still running, or was restarted: process {pid} ({runs})"
                );
                match (ours(name), again) {
                    (true, true) => left.extend(own),
                    (false, _) if !self.op.uses_data(name) => {}
                    _ => return Err(Error::new(what)),
                }
            }
            if left.is_empty() {
                break;
            }
            manager.end(left, self.log)?;
        }
        Ok(())
    }

    /// Starts the services that ran, as far as this set has them. Whether one runs already is told by its processes, where they
    /// can be known: a service manager may be wrong. One that does not start is found by the proof.
    pub fn start_services(&mut self, set: Set) {
        let how = self.op.manager.clone();
        let manager = self.manager(&how);
        let (mine, other) = sides(set, &self.to, &self.home);
        let mut programs = self.programs(other);
        if other.set == set {
            programs.clear();
        }
        let old = |census: &Census, own: &[Identity]| {
            own.iter()
                .filter_map(|process| census.file(process.pid))
                .any(|file| programs.iter().any(|(_, old, _)| *old == file))
        };
        // Twice: a manager starts nothing where it finds the old program, which somebody may have started at that instant.
        for again in [false, true] {
            for name in &self.op.ran {
                if self.is_gone(name, mine, other) {
                    continue;
                }
                let census = self.census(&manager);
                let own = census.own(name);
                let is_old = own.as_deref().is_some_and(|own| old(&census, own));
                if let Some(own) = own.clone().filter(|_| is_old)
                    && let Err(e) = manager.stop(name, own, self.log)
                {
                    self.log.warning("services", e.chain());
                }
                let runs = match own {
                    _ if again => !is_old,
                    Some(own) => !is_old && !own.is_empty(),
                    None => manager.runs(name).is_ok(),
                };
                if !runs && let Err(e) = manager.start(name, self.log) {
                    self.log.warning("services", e.chain());
                }
            }
        }
    }

    /// Whether a service of the other set has nothing to run in this one. It is enough that there is a program: an image's
    /// manifest need not list what its init scripts start.
    pub(super) fn is_gone(&self, name: &Name, mine: &Side, other: &Side) -> bool {
        let theirs = other.services().iter().find(|s| s.name == *name);
        let (Some(service), Some(manifest)) = (theirs, &mine.manifest) else {
            return false;
        };
        if mine.has(name) {
            return false;
        }
        let program = service.runs.as_str();
        let in_image = |manifest| self.store.program(Set::Factory, manifest, program);
        let there = [Some(manifest), other.manifest.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(in_image)
            .any(|path| path.exists());
        let mut removed = manifest.removed.iter();
        removed.any(|path| service.runs.below(path).is_some()) || !there
    }

    /// Whether a service is restarted because of its files.
    pub(super) fn concerns(&self, name: &Name) -> bool {
        self.op.ran.contains(name) && self.op.services.iter().any(|s| s.name == *name)
    }

    /// The programs that the operation's services run from a set: whose, and the file. A program that another service
    /// goes on running is none of them.
    pub(super) fn programs(&self, side: &Side) -> Vec<(Name, FileId, PathBuf)> {
        let Some(manifest) = &side.manifest else {
            return Vec::new();
        };
        let (concerned, others): (Vec<&Service>, Vec<&Service>) = manifest
            .services
            .iter()
            .partition(|s| self.concerns(&s.name));
        let own = concerned
            .into_iter()
            .filter(|s| !others.iter().any(|other| other.runs == s.runs));
        own.filter_map(|service| {
            let program = service.runs.as_str();
            let path = self.store.program(side.set, manifest, program)?;
            Some((service.name.clone(), FileId::of(&path).ok()?, path))
        })
        .collect()
    }
}
