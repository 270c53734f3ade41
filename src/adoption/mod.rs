//! Taking over an appliance whose programs lie in plain directories, `/data/bin` and `/data/share`, where another updater puts
//! them: they become the first release, and the fixed links take the directories' place. Nothing is stopped, and nothing is
//! deleted.
//!
//! The release consists of what init scripts find now, component by component of the factory set's manifest: the file in the plain
//! directory, under a second name, else a copy of the factory's. The record is the commit point. Before it names the release,
//! nothing has happened that anybody sees; from then on every boot, and every command, ends what is left to do
//! ([`Store::repair`](crate::store::CommitPoint::repair)).

pub mod legacy;
pub mod vdc;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use semver::{BuildMetadata, Version};

use crate::model::fit::Fit;
use crate::model::idle::Idle;
use crate::model::record::{Loaded, Record};
use crate::model::slot::{Installed, Set, Slot};
use crate::store::{self, CommitPoint, Store};
use crate::system::host::Host;
use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Component, Data, Kind, Manifest, Mode, Probe};
use qx_release::text;
use qx_release::tree;

/// What tells an adopted release from a published one of the same version. It has no precedence.
const BUILD: &str = "adopted";

/// What an adoption would do.
pub struct Survey {
    /// The release that the plain directories become.
    manifest: Manifest,
    /// Where each of its components lies now, and whether that is in a plain directory.
    origins: Vec<(PathBuf, bool)>,
    /// What happens, a sentence each.
    pub plan: Vec<String>,
    /// What a person should know before it happens, a sentence each.
    pub warnings: Vec<String>,
}

impl Survey {
    /// Looks at what is there. `record` is what is recorded so far.
    ///
    /// # Errors
    /// The appliance cannot be adopted as it is: the sentence says what to do first.
    pub fn of(host: &Host, store: &Store, record: &Record) -> Result<Survey> {
        let doing = || "adopting this appliance";
        let (factory, _) = store.manifest(Set::Factory).doing(doing)?.ok_or_else(|| {
            Error::new(
                "adopting this appliance: the image has no manifest of its factory set, which says what its components and \
                 services are: make one with `qx-publish factory`",
            )
        })?;
        let mut survey = Survey {
            manifest: Manifest {
                components: Vec::new(),
                ..factory.clone()
            },
            origins: Vec::new(),
            plan: Vec::new(),
            warnings: Vec::new(),
        };
        for component in &factory.components {
            survey.take(host, store, component).doing(doing)?;
        }
        survey.extra(store, &factory).doing(doing)?;
        survey.name(host, &factory);
        survey.checks_that_fit();
        survey.data_as_it_is(record);
        Ok(survey)
    }

    /// The component as init scripts find it: `[ -x /data/bin/NAME ]`, else the factory's.
    fn take(&mut self, host: &Host, store: &Store, component: &Component) -> Result<()> {
        let plain = store.path(component.install_path.as_str());
        let looked = fs::metadata(&plain).ok();
        let is_used = looked.is_some_and(|meta| match component.kind {
            Kind::Bin => meta.is_file() && meta.permissions().mode() & 0o111 != 0,
            Kind::Tree => meta.is_dir(),
        });
        let path = match is_used {
            true => plain,
            false => store.component(Set::Factory, component)?,
        };
        if is_used {
            only_root_changes(&path)?;
        }
        let measured = tree::measure(component.kind, &path)?;
        let what = match is_used {
            true => format!(
                "{}: {} becomes part of the release",
                component.name,
                path.display()
            ),
            false => format!(
                "{}: nothing is in {}: the factory set's {} becomes part of the release",
                component.name,
                store.path(component.install_path.as_str()).display(),
                path.display()
            ),
        };
        self.plan.push(host.own_paths(&what));
        self.manifest.components.push(Component {
            mode: Mode(measured.mode),
            capabilities: measured.capabilities,
            sha256: measured.digest,
            size_bytes: measured.bytes,
            entries: measured.entries,
            artifact: None,
            factory_path: None,
            ..component.clone()
        });
        self.origins.push((path, is_used));
        Ok(())
    }

    /// What lies in the plain directories besides: nobody finds it there afterwards.
    fn extra(&mut self, store: &Store, factory: &Manifest) -> Result<()> {
        for name in store.plain()? {
            let directory = store.path(name);
            let reading = || format!("reading {}", directory.display());
            for entry in fs::read_dir(&directory).doing(reading)? {
                let path = entry.doing(reading)?.path();
                let below = path
                    .strip_prefix(store.path(""))
                    .unwrap_or(&path)
                    .to_owned();
                let is_ours = |component: &Component| {
                    Path::new(component.install_path.as_str()).starts_with(&below)
                };
                if factory.components.iter().any(is_ours) {
                    continue;
                }
                if let Some(user) = store.users(std::slice::from_ref(&path)).first() {
                    return Err(Error::new(format!(
                        "{} belongs to no component of the factory set, and process {} uses it: stop that, or add it to the \
                         factory set's manifest",
                        text::path(&path),
                        user.process.pid
                    )));
                }
                self.warnings.push(format!(
                    "{} belongs to no component of the factory set: it stays in {}, where no init script looks{}",
                    text::path(&path),
                    store.adopted(name).display(),
                    misnamed(&path, store, factory).map_or(String::new(), |why| format!("; {why}"))
                ));
            }
        }
        Ok(())
    }

    /// The version that the other updater recorded, else the factory set's.
    fn name(&mut self, host: &Host, factory: &Manifest) {
        let components: Vec<_> = factory.components.iter().map(|c| &c.name).collect();
        let (version, from) = match legacy::version(host, &components) {
            Some((version, file)) => (version, file),
            None => (factory.version.clone(), "the factory set".to_owned()),
        };
        let build = match version.build.as_str() {
            "" => BUILD.to_owned(),
            build => format!("{build}.{BUILD}"),
        };
        self.manifest.version = Version {
            // The name of what was a version is one.
            build: BuildMetadata::new(&build).unwrap_or_default(),
            ..version
        };
        self.plan.push(format!(
            "it is called {}, the version of {from}",
            self.manifest.version
        ));
        if factory
            .version
            .cmp_precedence(&self.manifest.version)
            .is_gt()
        {
            self.warnings.push(format!(
                "the factory set is newer ({}): the next boot uses it instead",
                factory.version
            ));
        }
    }

    /// What the factory set's programs answer, such as a version, is not what others answer: that they answer is asked for.
    fn checks_that_fit(&mut self) {
        for check in &mut self.manifest.health {
            let Probe::Http { url, json, .. } = &mut check.probe else {
                continue;
            };
            if json.take().is_some() {
                self.plan.push(format!(
                    "what {} answers is not compared with what the factory set's programs answer",
                    text::url(url)
                ));
            }
        }
    }

    /// Whatever the factory set accepts: these programs run on the data as it is now.
    fn data_as_it_is(&mut self, record: &Record) {
        if Fit::of(&self.manifest, record.schemas_now()) == Fit::Now {
            return;
        }
        let schemas = record.schemas_now();
        let widened = |data: &Data| {
            let now = schemas.get(&data.name).copied().unwrap_or(data.accepts_to);
            Data {
                accepts_from: data.accepts_from.min(now),
                accepts_to: data.accepts_to.max(now),
                schema_after: data.schema_after.max(now),
                ..data.clone()
            }
        };
        self.manifest.data = self.manifest.data.iter().map(widened).collect();
    }

    /// Records it: from here on the plain directories are a release, and only the links are left to be changed. The record is
    /// returned.
    pub fn carry_out(&self, store: &Store, record: &Record, now: &str) -> Result<Record> {
        let slot = free_slot(record);
        let bytes = serde_json::to_vec_pretty(&self.manifest)
            .doing(|| "writing the manifest of the release")?;
        let digest = Digest::of(&bytes);
        self.stage(store, slot, &bytes)?;
        store.seal_adopted(slot, &self.manifest, digest)?;
        store.give(slot)?;
        store.note_adopted(&bytes)?;
        store.prepare_links()?;
        let active = store::installed(slot.into(), &self.manifest, digest);
        let factory = store.factory().0;
        let adopted = Record::of(
            Idle::on(active, Some(factory), now),
            record.schemas_now().clone(),
        );
        store.save(&adopted)?;
        Ok(adopted)
    }

    /// Lays the release into the slot's next content, and verifies what the medium has of it.
    fn stage(&self, store: &Store, slot: Slot, bytes: &[u8]) -> Result<()> {
        let next = store.next(slot);
        durable::remove_any(&next)?;
        durable::create_dir(&next, 0o755)?;
        for (component, (path, is_plain)) in self.manifest.components.iter().zip(&self.origins) {
            let place = next.join(&component.install_path);
            match is_plain {
                // The very file that runs.
                true => tree::link(component, path, &place)?,
                false => tree::copy(component, path, &place)?,
            }
        }
        let path = store::manifest_path(&next);
        fs::write(&path, bytes).doing(|| format!("writing {}", path.display()))?;
        durable::sync_file_system(&next)?;
        store.verify_staged(slot, &self.manifest, &tree::matches_medium)
    }
}

/// Puts the plain directories back that became the release which runs, and records it. What is left of the release is to be
/// removed: [`clean`].
///
/// # Errors
/// Another release runs. Or it was not recorded: then the link stage of recovery puts the links back.
pub fn undo(store: &Store, idle: &Idle, record: &Record, now: &str) -> Result<()> {
    if !store.is_adopted(&idle.active)? {
        return Err(Error::new(format!(
            "undoing the adoption: {} runs, which is not the adopted release: go back to that first (`qx-update rollback`)",
            idle.active
        )));
    }
    store.restore_plain()?;
    store.save(&Record::of(
        Idle::on(store.factory().0, None, now),
        record.schemas_now().clone(),
    ))
}

/// Whether an appliance is adopted, or its adoption undone, for all that can be seen.
pub fn is_done(store: &Store, undone: bool) -> bool {
    let (Loaded::Record(record), Ok(plain)) = (store.load(), store.plain()) else {
        return false;
    };
    let active = record.idle_when_ended().active;
    match undone {
        true => active.set == Set::Factory && !plain.is_empty(),
        false => plain.is_empty() && store.is_adopted(&active).unwrap_or_default(),
    }
}

/// Removes what an adoption has left that did not happen, or was undone.
pub fn clean(store: &Store, slot: Option<Slot>) -> Result<()> {
    store.select(Set::Factory)?;
    store.drop_prepared()?;
    if let Some(slot) = slot
        && durable::is_there(&store.slot(slot))?
    {
        // Where a process uses it, it is kept until that has ended.
        durable::remove_any(&store.next(slot))?;
        durable::rename(&store.slot(slot), &store.next(slot))?;
    }
    store.drop_leftovers()?;
    store.prune_seals()
}

/// A slot that the record does not know.
fn free_slot(record: &Record) -> Slot {
    let idle = record.idle_when_ended();
    match idle.fallback {
        Some(Installed { set: Set::A, .. }) => Slot::B,
        _ => Slot::A,
    }
}

/// What others could change was not put there by an updater alone.
fn only_root_changes(path: &Path) -> Result<()> {
    let meta = fs::metadata(path).doing(|| format!("examining {}", path.display()))?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() == me && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Error::with(
        ErrorKind::Failed,
        format!(
            "{} is owned by user {} with mode {:04o}: a release must be owned by root and not writable by others (chown root, \
             chmod go-w)",
            text::path(path),
            meta.uid(),
            meta.mode() & 0o7777
        ),
    ))
}

/// Why a program that is no component's may be one that was installed under another name: one that differs from a component's only
/// in its first part.
pub fn misnamed(path: &Path, store: &Store, factory: &Manifest) -> Option<String> {
    fn kind(name: &str) -> Option<&str> {
        name.split_once('-').map(|(_, kind)| kind)
    }
    let name = |path: &Path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned)
    };
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let found = name(path)?;
    let is_like = |component: &&Component| {
        let meant = name(Path::new(component.install_path.as_str()));
        component.kind == Kind::Bin
            && meant.is_some_and(|meant| {
                meant != found && kind(&meant).is_some() && kind(&meant) == kind(&found)
            })
    };
    let component = factory.components.iter().find(is_like)?;
    let used = [
        Some(store.path(component.install_path.as_str())),
        store.component(Set::Factory, component).ok(),
    ];
    let used = used.into_iter().flatten().find(|path| path.is_file());
    let newer: Option<(SystemTime, SystemTime)> =
        modified(path).zip(used.as_deref().and_then(modified));
    Some(format!(
        "services run {}, and this was installed under a name that no service runs{}",
        component.install_path,
        match newer {
            Some((its, used)) if its > used => ", although it is the newer one of the two",
            _ => "",
        }
    ))
}
