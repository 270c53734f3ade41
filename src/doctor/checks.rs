//! The checks, in the order in which they build on each other.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use super::{Examined, Findings};
use crate::adoption;
use crate::data;
use crate::model::config::Config;
use crate::model::slot::{Set, Slot, Verdict};
use crate::proof::observe::Census;
use crate::proof::updater::Told;
use crate::proof::{preflight, updater};
use crate::repository::expiry;
use crate::store::{BootNote, read_if_there};
use crate::switch::inhibit;
use crate::system::service::Manager;
use crate::system::space::{self, Space};
use qx_release::error::{Error, Result};
use qx_release::manifest::{Component, Kind, Manifest, Name, Service};
use qx_release::text;
use qx_scratch::init_script;

/// How long before its end something is told.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// A program that only answers takes no longer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What a file takes besides its bytes, at most.
const PER_ENTRY: u64 = 8192;

impl Examined<'_> {
    pub(super) fn examine(&self, findings: &mut Findings) {
        self.configuration(findings);
        self.data_partition(findings);
        self.sets(findings);
        self.state(findings);
        self.recovery(findings);
        self.inhibitors(findings);
        self.services(findings);
        self.processes(findings);
        self.init_scripts(findings);
        self.names(findings);
        self.trust(findings);
        self.room(findings);
        self.factory_program(findings);
    }

    fn configuration(&self, findings: &mut Findings) {
        match self.config {
            Ok(config) => findings.good(
                "configuration",
                format!("product {}, channel {}", config.product, config.channel),
            ),
            Err(e) => findings.failed(
                "configuration",
                e,
                "correct it: docs/formats.md describes each field",
            ),
        }
    }

    /// What an update would meet before it stops anything.
    fn data_partition(&self, findings: &mut Findings) {
        if let Err(e) = self.store.examine() {
            return findings.failed("data partition", &e, "updates are refused until then");
        }
        let (Ok(config), Some(manifest)) =
            (self.config, self.running.as_ref().or(self.factory.as_ref()))
        else {
            return;
        };
        for (check, found) in preflight::all(
            self.host,
            config,
            self.store,
            self.running.as_ref(),
            manifest,
        ) {
            match found {
                Ok(()) => findings.good(check, "as it should be"),
                Err(e) => findings.failed(check, &e, "updates are refused until then"),
            }
        }
    }

    /// Every file of every set.
    fn sets(&self, findings: &mut Findings) {
        for slot in Slot::BOTH {
            let runs = self.status.running.set == slot.into();
            match self.store.verify(slot) {
                Verdict::Good(installed) => {
                    findings.good("files", format!("{installed} is complete"))
                }
                Verdict::Empty => {}
                Verdict::Damaged(why) if runs => findings.error(
                    "files",
                    format!("slot {slot}, which runs, is damaged: {why}"),
                    "reinstall it with `qx-update apply --repair`",
                ),
                Verdict::Damaged(why) => findings.warning(
                    "files",
                    format!("slot {slot} is damaged: {why}"),
                    "it is not used; the next update replaces it",
                ),
            }
        }
        match self.store.verify_factory() {
            Ok(Some(factory)) => findings.good("files", format!("{factory} is complete")),
            Ok(None) => findings.error(
                "files",
                "the image has no manifest of its factory set: nothing says what a release must have",
                "make one with `qx-publish factory`",
            ),
            Err(why) => findings.error(
                "files",
                format!("the factory set is damaged: {why}"),
                "write the image again: nothing is left to fall back to",
            ),
        }
    }

    /// What `status` says.
    fn state(&self, findings: &mut Findings) {
        let status = &self.status;
        let remedy = status.advice.join("; ");
        for problem in &status.problems {
            match status.needs_person || status.plain.is_some() || status.phase == "unknown" {
                true => findings.error("state", problem, &remedy),
                false => findings.warning("state", problem, &remedy),
            }
        }
        if let Some(holder) = &status.busy {
            let what = format!(
                "process {} ({}) holds the lock since {}",
                holder.pid, holder.command, holder.since
            );
            findings.warning(
                "state",
                what,
                "wait for it; `qx-update log` shows its progress",
            );
        }
        if status.operation.is_some() || status.stopped {
            let what = format!("an operation is open ({})", status.phase);
            findings.warning("state", what, &remedy);
        }
        if status.problems.is_empty() && status.operation.is_none() {
            findings.good("state", format!("{} runs", status.running));
        }
    }

    /// It can be told whose process is whose.
    fn processes(&self, findings: &mut Findings) {
        let (Ok(config), Some(manifest)) = (self.config, &self.running) else {
            return;
        };
        let manager = Manager::new(&config.services, self.host, config.service_timeout());
        if !manager.controls() {
            return;
        }
        let census = Census::take(&[manifest], &[], self.store, &manager);
        let alike: Vec<&str> = census.alike().into_iter().map(Name::as_str).collect();
        if !alike.is_empty() {
            findings.warning(
                "services",
                format!("{} run one program, and nothing tells whose process is whose", alike.join(" and ")),
                "give each a pidfile in its init script, or a control group (rc_cgroup_mode in rc.conf)",
            );
        }
    }

    /// Nobody is in the middle of something.
    fn inhibitors(&self, findings: &mut Findings) {
        let Ok(config) = self.config else {
            return;
        };
        match inhibit::holder(&config.inhibit, self.host) {
            Some(who) => findings.warning(
                "inhibit",
                format!("{who}: an update is refused until it lets go"),
                "see whether it is stuck; `qx-update apply --wait` waits for it, `--force` does not ask",
            ),
            None => findings.good("inhibit", "no lock is held"),
        }
    }

    /// The boot is put right before anything is started from it.
    fn recovery(&self, findings: &mut Findings) {
        match self.store.boot_note() {
            Ok(Some(note)) => findings.good("recovery", format!("`recover` ran in this boot, at {}", note.time)),
            Ok(None) => findings.error(
                "recovery",
                "`recover` did not run in this boot: a power cut during an update would not be put right before services start",
                "add the initramfs hook (initramfs/README.md), or the service qx-update-recover to the boot runlevel",
            ),
            // It is told as a state.
            Err(_) => {}
        }
    }

    fn services(&self, findings: &mut Findings) {
        for service in &self.status.services {
            let name = &service.name;
            match (service.state, &service.why) {
                ("installed", _) => findings.good("services", format!("{name} runs {}", service.installed.display())),
                ("done", _) => findings.good("services", format!("{name} has run to its end")),
                (_, why) => findings.warning(
                    "services",
                    why.clone().unwrap_or_else(|| format!("service {name} does not run")),
                    format!("start it, or see which file its init script starts (`qx-update which`, service {name})"),
                ),
            }
        }
        for process in self.status.elsewhere.iter().filter(|process| !process.left) {
            findings.warning(
                "services",
                format!(
                    "process {} ({}) still uses {}",
                    process.pid, process.runs, process.uses
                ),
                "restart it: it runs what is not installed any more",
            );
        }
    }

    /// Whether each init script starts what a release installs.
    fn init_scripts(&self, findings: &mut Findings) {
        let Some(factory) = &self.factory else {
            return;
        };
        let script = |service: &Service| {
            let path = self
                .host
                .path(&format!("/etc/init.d/{}", service.name))
                .ok()?;
            path.is_file().then_some(path)
        };
        for service in &factory.services {
            let Some(script) = script(service) else {
                continue;
            };
            let copy = factory.in_image(service);
            match init_script::check(&script, service, &copy) {
                Ok(passed) => findings.good("init scripts", passed),
                Err(e) => findings.failed(
                    "init scripts",
                    &e,
                    &format!(
                        "[ -x /data/{} ] && command=/data/{}",
                        service.runs, service.runs
                    ),
                ),
            }
        }
    }

    /// Programs that were installed under a name that no service runs.
    fn names(&self, findings: &mut Findings) {
        let Some(factory) = &self.factory else {
            return;
        };
        let programs = factory.components.iter().filter(|c| c.kind == Kind::Bin);
        let places = programs.filter_map(|component| {
            let path = self.store.component(Set::Factory, component).ok()?;
            Some(path.parent()?.to_owned())
        });
        let places: BTreeSet<_> = places.collect();
        for place in places {
            for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
                let path = entry.path();
                let is_ours = |component: &Component| {
                    self.store
                        .component(Set::Factory, component)
                        .is_ok_and(|ours| ours == path)
                };
                if factory.components.iter().any(is_ours) {
                    continue;
                }
                if let Some(why) = adoption::misnamed(&path, self.store, factory) {
                    findings.warning(
                        "names",
                        format!("{}: {why}", path.display()),
                        "remove it, or publish it under the name that services run",
                    );
                }
            }
        }
    }

    /// Whether what is published can be trusted tomorrow.
    fn trust(&self, findings: &mut Findings) {
        let Ok(config) = self.config else {
            return;
        };
        let clock = self.host.clock();
        if !clock.is_believed() {
            findings.warning(
                "clock",
                format!("the clock says {}, which cannot be", self.host.timestamp()),
                "set it: updates still work, but stale metadata cannot be detected",
            );
        }
        let remedy = format!("put the root of your repository into {}", config.trust_root);
        let expiries = match self.expiries(config) {
            Ok(expiries) => expiries,
            Err(e) => return findings.failed("trust", &e, &remedy),
        };
        let now = clock.now();
        for (file, expires) in expiries {
            let left = expires.at.duration_since(now);
            let renew = "the publisher must renew it (`qx-publish refresh`, `qx-publish rotate root`); then run `qx-update check`";
            match left {
                Err(_) => findings.warning(
                    "trust",
                    format!("{file} has expired on {}", expires.text),
                    renew,
                ),
                Ok(left) if left < SOON && file.ends_with("root.json") => {
                    findings.warning(
                        "trust",
                        format!("{file} expires on {}", expires.text),
                        renew,
                    );
                }
                Ok(_) => findings.good("trust", format!("{file} is valid until {}", expires.text)),
            }
        }
        match &self.status.refreshed {
            Some(refreshed) => findings.good(
                "trust",
                format!("refreshed {} from {}", refreshed.time, refreshed.source),
            ),
            None => findings.warning(
                "trust",
                "no source was ever asked successfully",
                "run `qx-update check`",
            ),
        }
    }

    fn expiries(&self, config: &Config) -> Result<Vec<(String, expiry::Expires)>> {
        let path = self.host.path(&config.trust_root)?;
        let root = read_if_there(&path, config.limits.trust.root_bytes)?
            .ok_or_else(|| Error::new(format!("reading {}: it does not exist", path.display())))?;
        let known = self
            .status
            .refreshed
            .as_ref()
            .map_or(0, |refreshed| refreshed.trust.root);
        expiry::expiries(
            &self.store.path("update/trust"),
            &root,
            known,
            &config.limits.trust,
        )
        .map_err(|why| Error::new(format!("reading {}: {why}", path.display())))
    }

    /// Room for a release as large as the one that runs, and for the copies of the data.
    fn room(&self, findings: &mut Findings) {
        let (Ok(config), Some(manifest)) =
            (self.config, self.running.as_ref().or(self.factory.as_ref()))
        else {
            return;
        };
        let remedy = "free space in the data directory (`qx-update data list` shows kept data)";
        let found = data::space(self.host, self.store, &config.data)
            .and_then(|data| Ok((data, space::free_space(&self.store.path(""))?)));
        let (data, free) = match found {
            Ok(found) => found,
            Err(e) => return findings.warning("space", e.chain(), remedy),
        };
        let needed = size(manifest).and(data);
        let what = format!("an update as large as what runs takes {needed}, and {free} are free");
        match needed.fits(free) {
            true => findings.good("space", what),
            false => findings.warning("space", what, remedy),
        }
    }

    /// The image's own copy recovers, whichever release runs: it must understand the record.
    fn factory_program(&self, findings: &mut Findings) {
        let path = match self.host.path(updater::FACTORY) {
            Ok(path) if path.is_file() => path,
            _ if !self.host.is_running_system() => return,
            _ => {
                return findings.error(
                    "factory program",
                    format!(
                        "there is no {} in the image: nothing recovers if a release breaks qx-update",
                        updater::FACTORY
                    ),
                    "put it into the image",
                );
            }
        };
        let told = updater::status_by(&path, self.host.root(), TIMEOUT);
        if let (
            Ok(Told {
                qx_update: Some(mine),
                ..
            }),
            Ok(Some(BootNote { by: Some(by), .. })),
        ) = (&told, self.store.boot_note())
            && *mine != by
        {
            findings.warning(
                "recovery",
                format!(
                    "`recover` in this boot was that of qx-update {}, and the image has {}",
                    text::name(&by),
                    text::name(mine)
                ),
                "build the initramfs anew (initramfs/README.md)",
            );
        }
        match told.map(|told| told.phase) {
            Ok(phase) if phase == self.status.phase => {
                findings.good(
                    "factory program",
                    format!("{} reads the record", path.display()),
                );
            }
            Ok(phase) => findings.error(
                "factory program",
                format!(
                    "{} takes the phase for {phase}, and it is {}",
                    path.display(),
                    self.status.phase
                ),
                "install a newer image: its qx-update is older than the record",
            ),
            Err(e) => findings.failed(
                "factory program",
                &e,
                "install an image whose qx-update works",
            ),
        }
    }
}

fn size(manifest: &Manifest) -> Space {
    let entries = manifest
        .components
        .iter()
        .fold(0_u64, |sum, c| sum.saturating_add(c.entries));
    Space {
        bytes: manifest
            .size_bytes()
            .saturating_add(entries.saturating_mul(PER_ENTRY)),
        entries,
    }
}
