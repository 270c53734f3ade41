//! Steps 4 and 5: from a plan to a complete, verified and sealed release in the alternate slot. The set that runs is
//! never touched; the old content of the slot is given up only when the new one is verified.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::acquire::plan::{self, Origin, Plan};
use crate::fetch::Mirrors;
use crate::model::operation::{Operation, return_to};
use crate::model::record::Record;
use crate::model::slot::Slot;
use crate::repository::Candidate;
use crate::repository::Repository;
use crate::store::{self, Store};
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::space::Reserve;
use crate::system::verity;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Component, Kind};
use qx_release::tree;

/// Where a release comes from and goes to.
pub struct Stage<'a> {
    /// The machine.
    pub host: &'a Host,
    /// Where it goes.
    pub store: &'a Store,
    /// The update log.
    pub log: &'a mut Log,
    /// What it is.
    pub candidate: &'a Candidate,
    /// What is fetched and what is reused.
    pub plan: &'a Plan,
    /// Where it is described.
    pub repository: &'a Repository,
    /// Where it is fetched from.
    pub mirrors: &'a Mirrors,
    /// Whether services were restarted for it already: what fails is told as after any other stop.
    pub restarted: bool,
}

impl Stage<'_> {
    /// Stages the release for `op`. Returns the record, in `Staged`; after an error it is back in `Idle`, durably.
    pub fn run(mut self, mut op: Operation, record: &Record) -> Result<(Operation, Record)> {
        let slot = op.from().set.alternate();
        if self.plan.needs_the_fallbacks_space {
            // P6: from here on the record says that the factory set is the fallback; then the old one may go.
            op.before.fallback = None;
        }
        let staging = record.begin_staging(op.clone())?;
        self.store.save(&staging)?;
        let filled = self.fill(slot);
        self.mirrors.rest();
        if let Err(e) = filled {
            let e = match self.restarted {
                true => e.of(return_to(op.from().set)),
                false => e,
            };
            self.undo(&op, &staging, &e);
            return Err(e);
        }
        let staged = staging.staged(op.clone())?;
        self.store.save(&staged)?;
        // What the slot held before.
        self.store.drop_leftovers()?;
        let version = &self.candidate.manifest.version;
        self.log.info(
            "stage",
            format!("{version} is staged and verified in slot {slot}"),
        );
        Ok((op, staged))
    }

    fn undo(&mut self, op: &Operation, record: &Record, error: &Error) {
        let now = self.host.timestamp();
        let ended = op.attempt(error.exit(), Some(error.chain()), &now);
        let undone = self
            .store
            .drop_leftovers()
            .and_then(|()| record.ended(op.before.clone(), ended))
            .and_then(|ended| self.store.save(&ended));
        if let Err(e) = undone {
            // The next operation or boot does it again.
            self.log.error("stage", e.chain());
        }
    }

    fn fill(&mut self, slot: Slot) -> Result<()> {
        let next = self.store.next(slot);
        self.store.drop_leftovers()?;
        if self.plan.needs_the_fallbacks_space {
            let what = format!(
                "deleting the release in slot {slot} to make room; the factory set is now the fallback"
            );
            self.log.warning("stage", what);
            durable::remove_tree(&self.store.slot(slot))?;
        }
        durable::create_dir(&next, 0o755)?;
        self.mirrors
            .let_write(&[self.store.downloads(), next.clone()]);
        let candidate = self.candidate;
        let manifest = &candidate.manifest;
        let mut reserve = Reserve::new(&next, self.plan.needs.bytes)?;
        let looked = looking(&next, |lies_there| {
            self.place(&next, &mut reserve, lies_there)
        })?;
        for path in &manifest.removed {
            write_stub(&next.join(path))?;
        }
        // The margin is left for the manifest, and for what follows.
        drop(reserve);
        let path = store::manifest_path(&next);
        fs::write(&path, &self.candidate.bytes).doing(|| format!("writing {}", path.display()))?;
        durable::sync_file_system(&next)?;
        self.log.info("stage", "verifying the staged files on disk");
        let verified = self
            .store
            .verify_staged(slot, manifest, &|component, place| {
                let seen = looked.iter().find(|(seen, _)| seen.name == component.name);
                match seen {
                    Some((_, found)) => found.clone(),
                    None => tree::matches_medium(component, place),
                }
            });
        if let Err(e) = verified {
            return Err(self.blame(e, &next));
        }
        self.protect(&next);
        let versions = self.repository.versions();
        self.store
            .seal(slot, manifest, self.candidate.digest, versions)?;
        self.store.give(slot)
    }

    /// Puts the components into their places, and tells of each that lies there.
    fn place<'c>(
        &mut self,
        next: &Path,
        reserve: &mut Reserve,
        lies_there: &mut dyn FnMut(&'c Component),
    ) -> Result<()>
    where
        Self: 'c,
    {
        let (candidate, plan) = (self.candidate, self.plan);
        let components = candidate.manifest.components.iter();
        let mut parts: Vec<_> = components.zip(&plan.origins).collect();
        while let Some((component, origin)) = store::largest(&mut parts, |(c, _)| c.size_bytes) {
            reserve.release(plan.share_of(component, origin))?;
            if !self.reuse(component, origin, next)? {
                self.fetch(component, next)?;
            }
            lies_there(component);
        }
        Ok(())
    }

    /// From here on the kernel checks whatever is read of the release, where it can. Where it cannot, damage shows when the
    /// release is verified, at each boot.
    fn protect(&mut self, next: &Path) {
        match verity::protect(next) {
            Ok(0) => {}
            Ok(files) => {
                let what = format!("fs-verity protects {files} files");
                self.log.info("stage", what);
            }
            Err(e) => self.log.warning("stage", e.chain()),
        }
    }

    /// Whose fault it is that what was staged is not what the manifest describes: unpacked again, and looked at before it has been
    /// on the medium, it is the archive's if it differs still.
    fn blame(&mut self, found: Error, next: &Path) -> Error {
        let components = &self.candidate.manifest.components;
        for (component, origin) in components.iter().zip(&self.plan.origins) {
            let place = next.join(&component.install_path);
            if matches!(origin, Origin::Reuse { .. }) || tree::matches(component, &place).is_ok() {
                continue;
            }
            let again = durable::remove_any(&place).and_then(|()| self.fetch(component, next));
            if again.is_ok()
                && let Err(why) = tree::matches(component, &place)
            {
                let what = format!(
                    "unpacking {}: its archive is not what its manifest describes: {why}",
                    component.name
                );
                return Error::with(ErrorKind::Publisher, what);
            }
        }
        found
    }

    /// Whether the component could be taken from a set that has it.
    fn reuse(&mut self, component: &Component, origin: &Origin, next: &Path) -> Result<bool> {
        let Origin::Reuse {
            set,
            component: old,
        } = origin
        else {
            return Ok(false);
        };
        let place = next.join(&component.install_path);
        let reused = self
            .store
            .component(*set, old)
            .and_then(|from| tree::copy(component, &from, &place))
            .map_err(|e| e.chain())
            .and_then(|()| tree::matches(component, &place));
        let Err(why) = reused else {
            self.log
                .info("stage", format!("{} is reused from {set}", component.name));
            return Ok(true);
        };
        let what = format!(
            "cannot reuse {} from {set}, fetching it instead: {why}",
            component.name
        );
        self.log.warning("stage", what);
        match component.kind {
            Kind::Bin => durable::remove(&place)?,
            Kind::Tree => durable::remove_tree(&place)?,
        }
        Ok(false)
    }

    fn fetch(&mut self, component: &Component, next: &Path) -> Result<()> {
        let (name, target) = plan::artifact(component, self.repository, self.mirrors)?;
        let total = target.length;
        let what = component.name.to_string();
        let downloads = self.store.downloads();
        let log = &mut *self.log;
        log.info("fetch", format!("fetching {name} ({total} bytes)"));
        let fetched = self.mirrors.artifact(&target, &downloads, &mut |done| {
            log.progress(&what, done, total);
        });
        for warning in self.mirrors.take_warnings() {
            log.warning("fetch", warning);
        }
        fetched?.unpack(component, next)
    }
}

/// What was found on the medium, of each component that was looked at.
type Looked<'c> = Vec<(&'c Component, Result<(), String>)>;

/// Does `place`, and meanwhile looks at what the medium holds of the components that `place` says lie there. Of one that was not
/// looked at, nothing is said.
fn looking<'c>(
    next: &Path,
    place: impl FnOnce(&mut dyn FnMut(&'c Component)) -> Result<()>,
) -> Result<Looked<'c>> {
    let line = Line::default();
    let look = || {
        let mut looked = Looked::new();
        while let Some(components) = line.come() {
            // One sync is for all that lie there by now.
            let synced = durable::sync_file_system(next).map_err(|e| e.chain());
            for component in components {
                let place = next.join(&component.install_path);
                let found = synced.clone();
                let found = found.and_then(|()| tree::matches_medium(component, &place));
                looked.push((component, found));
            }
        }
        looked
    };
    thread::scope(|threads| {
        // Where there can be no other thread, all is looked at in the end.
        let looks = thread::Builder::new().spawn_scoped(threads, look);
        let placed = place(&mut |component| line.tell(Some(component)));
        line.tell(None);
        let looked = looks.map(|looks| looks.join().unwrap_or_default());
        placed.map(|()| looked.unwrap_or_default())
    })
}

/// What lies there and was not looked at yet; and whether no more comes.
#[derive(Default)]
struct Line<'c> {
    waiting: Mutex<(Vec<&'c Component>, bool)>,
    more: Condvar,
}

impl<'c> Line<'c> {
    fn tell(&self, component: Option<&'c Component>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.0.extend(component);
        waiting.1 = component.is_none();
        self.more.notify_one();
    }

    /// Returns when there are some; none will be any more.
    fn come(&self) -> Option<Vec<&'c Component>> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = self
            .more
            .wait_while(waiting, |(components, ended)| {
                components.is_empty() && !*ended
            })
            .unwrap_or_else(PoisonError::into_inner);
        let components = std::mem::take(&mut waiting.0);
        (!components.is_empty()).then_some(components)
    }
}

fn write_stub(path: &Path) -> Result<()> {
    let put = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, store::STUB)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    };
    put().doing(|| format!("writing {}", path.display()))
}
