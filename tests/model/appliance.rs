//! The commands, as the durable steps that they take, in the order of `src/command`, `src/switch` and `src/recovery`. What is
//! decided between two steps is decided by the real functions.

use std::rc::Rc;

use qx_release::error::{Exit, Result as Transition};
use qx_release::manifest::Manifest;
use qx_update::acquire::select::{Choice, Request, SelectionContext, select};
use qx_update::model::choice;
use qx_update::model::dataplan::{DataChange, DataPlan, NewerData};
use qx_update::model::dataset::Side;
use qx_update::model::fit::Fit;
use qx_update::model::id::{BootId, OperationId};
use qx_update::model::idle::{Idle, Trouble};
use qx_update::model::kept::{FORMAT, Kept, KeptReason};
use qx_update::model::moment::Moment;
use qx_update::model::operation::{Cause, CauseKind, EarlyFailure, Operation, OperationKind};
use qx_update::model::phase::{DataState, Phase};
use qx_update::model::record::{Loaded, Record};
use qx_update::model::refusal::{Refusal, RefusalKind};
use qx_update::model::slot::{Installed, Link, Set, Slot};
use qx_update::recovery::decide::{Decision, Observed, decide};
use qx_update::repository::Candidate;

use crate::world::{Content, Data, NOW, Scene, World, data_name, index};

/// What a person does, or the init system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// The power comes, or goes and comes: both stages of recovery, the runlevel, `confirm`.
    Boot,
    Confirm,
    /// The newest release.
    Apply,
    /// This release, by its version.
    ApplyVersion(u64),
    /// This release, even if it was refused.
    Retry(u64),
    StageOnly,
    Previous,
    Factory,
}

pub const BY_PERSONS: [Command; 7] = [
    Command::Apply,
    Command::ApplyVersion(2),
    Command::Retry(3),
    Command::StageOnly,
    Command::Previous,
    Command::Factory,
    Command::Confirm,
];

/// How a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It has no effect.
    Missed,
    /// It has its effect, and is reported as failed all the same.
    Unsure,
}

/// What does not go as usual while a command runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plan {
    /// A step that fails.
    pub fault: Option<(usize, Fault)>,
    /// A command that another person gives before a step: refused, if the lock is held.
    pub other: Option<(usize, Command)>,
}

/// A step failed, and what was to follow it does not happen.
pub struct Failed;
type Done<T = ()> = Result<T, Failed>;

/// How a command ended, as far as that matters to what called it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    WentBack,
    NeedsPerson,
}

/// A command that runs.
pub struct Run<'s> {
    scene: &'s Scene,
    pub world: World,
    plan: Plan,
    /// The steps so far, for people.
    pub trace: Vec<&'static str>,
    /// How many there were.
    pub steps: usize,
    /// What each step left, and after which part of the trace.
    pub left: Vec<(usize, World)>,
    /// The steps before which the lock was free.
    pub unlocked: Vec<usize>,
    /// The property that was violated.
    pub wrong: Option<String>,
}

fn cause(kind: CauseKind) -> Cause {
    Cause::new(kind, "it failed")
}

impl<'s> Run<'s> {
    /// Runs a command on a world to its end.
    pub fn of(scene: &'s Scene, world: &World, command: Command, plan: Plan) -> Run<'s> {
        let mut run = Run {
            scene,
            world: world.clone(),
            plan,
            trace: Vec::new(),
            steps: 0,
            left: Vec::new(),
            unlocked: Vec::new(),
            wrong: None,
        };
        run.command(command);
        run
    }

    fn command(&mut self, command: Command) {
        // That it fails is seen from what it leaves.
        let _ = match command {
            Command::Boot => self.boot(),
            Command::Confirm => self.confirm().map(drop),
            Command::Apply => self.apply(&Request::default(), false).map(drop),
            Command::StageOnly => self.apply(&Request::default(), true).map(drop),
            Command::ApplyVersion(version) => self.apply(&asked(version, false), false).map(drop),
            Command::Retry(version) => self.apply(&asked(version, true), false).map(drop),
            Command::Previous => self.rollback(false).map(drop),
            Command::Factory => self.rollback(true).map(drop),
        };
        self.world.lock = None;
    }

    /// A durable step, the fault that is planned for it, and what must hold afterwards.
    fn step(&mut self, what: &'static str, effect: impl FnOnce(&mut World)) -> Done {
        let number = self.steps;
        self.pause(what);
        if self.wrong.is_some() {
            return Err(Failed);
        }
        let fault = self.plan.fault.filter(|(at, _)| *at == number);
        if fault.is_none_or(|(_, fault)| fault == Fault::Unsure) {
            effect(&mut self.world);
            self.check();
        }
        match fault {
            None => Ok(()),
            Some((_, fault)) => {
                self.trace.push(match fault {
                    Fault::Missed => "  … which fails",
                    Fault::Unsure => "  … which is done, and reported as failed",
                });
                Err(Failed)
            }
        }
    }

    /// A point at which another command may run in between, if the lock is free.
    fn pause(&mut self, what: &'static str) {
        let number = self.steps;
        self.steps += 1;
        if self.world.lock.is_none() {
            self.unlocked.push(number);
            if let Some((_, other)) = self.plan.other.take_if(|(at, _)| *at == number) {
                self.trace.push("  (another command runs meanwhile)");
                self.command(other);
                self.trace.push("  (and has ended)");
            }
        }
        self.trace.push(what);
    }

    fn check(&mut self) {
        if self.wrong.is_none() {
            self.wrong = self.world.wrong(self.scene);
            self.left.push((self.trace.len(), self.world.clone()));
        }
    }

    /// No transition is out of turn.
    fn real<T>(&mut self, made: Transition<T>) -> Done<T> {
        made.map_err(|e| {
            self.wrong
                .get_or_insert(format!("no error of its own: {}", e.chain()));
            Failed
        })
    }

    fn lock(&mut self, who: &'static str) -> Done {
        self.pause("takes the lock");
        match self.world.lock {
            None => {
                self.world.lock = Some(who);
                Ok(())
            }
            Some(_) => Err(Failed),
        }
    }

    fn record(&self) -> Record {
        match self.world.record() {
            Some(record) => record.clone(),
            None => Record::idle(self.scene.factory(), None, NOW),
        }
    }

    fn save(&mut self, record: &Record) -> Done {
        let what = match record.phase() {
            Phase::Idle(_) => "records idle",
            Phase::Staging { .. } => "records staging",
            Phase::Staged { .. } => "records staged",
            Phase::Switching { data, .. } => match data {
                DataState::Exchanged => "records switching, exchanged",
                _ => "records switching",
            },
            Phase::Trial { .. } => "records trial",
            Phase::Reverting { data, .. } => match data {
                DataState::Restored => "records reverting, restored",
                _ => "records reverting",
            },
        };
        let given_up = match record.phase() {
            Phase::Reverting { op, cause, .. } if op.kind == OperationKind::Install => {
                let says = matches!(
                    cause.kind,
                    CauseKind::Release | CauseKind::Boots | CauseKind::Person
                );
                says.then(|| self.scene.by_digest(op.to.manifest))
            }
            _ => None,
        };
        let loaded = Rc::new(Loaded::Record(Box::new(record.clone())));
        self.step(what, |world| {
            world.loaded = loaded;
            world.failed.extend(given_up);
        })
    }

    fn select(&mut self, set: Set) -> Done {
        self.step("moves the link", |world| {
            world.link = match set.slot() {
                None => Link::Absent,
                Some(slot) => Link::To(slot),
            };
        })
    }

    fn refuse(&mut self, release: &Installed, kind: RefusalKind) -> Done {
        let refusal = Refusal {
            manifest: release.manifest.unwrap(),
            version: release.version.clone(),
            kind,
            reason: String::new(),
            at: NOW.into(),
        };
        self.step("refuses the release", |world| {
            world.refusals.retain(|r| r.manifest != refusal.manifest);
            world.refusals.push(Rc::new(refusal));
        })
    }

    fn manifest(&self, set: Set) -> Option<&'s Manifest> {
        match self.world.content(set) {
            Content::Whole(release) => Some(&self.scene.releases[release].manifest),
            Content::Empty | Content::Half => None,
        }
    }

    // Services: as init scripts start them, from what the link selects.

    /// What runs something else is restarted.
    fn start(&mut self) {
        let shown = self.world.shown();
        if self.world.up.is_some() && !self.runs(shown) {
            let _ = self.stop();
        }
        if self.world.up.is_none()
            && let Content::Whole(release) = self.world.content(shown)
        {
            self.world.up = Some(release);
            self.trace.push("services start");
            self.check();
        }
    }

    fn stop(&mut self) -> Done {
        match self.world.up {
            None => Ok(()),
            Some(_) => self.step("stops services", |world| world.up = None),
        }
    }

    /// Whether services run what they are to run.
    fn runs(&self, set: Set) -> bool {
        let up = self.world.up.map(Content::Whole);
        up.is_some_and(|up| self.world.content(set) == up)
    }

    fn prove(&mut self, set: Set) -> Done {
        self.step("proves", |_| {})?;
        let bad = self.scene.bad.map(Content::Whole);
        match self.runs(set) && bad != Some(self.world.content(set)) {
            true => Ok(()),
            false => Err(Failed),
        }
    }

    // Recovery.

    fn moment(&self) -> Moment {
        Moment {
            boot_id: BootId::from(&*format!("boot-{}", self.world.boots)),
            uptime_s: 60,
        }
    }

    fn decide(&self, writable: bool) -> Decision {
        let (world, scene) = (&self.world, self.scene);
        decide(&Observed {
            loaded: &world.loaded,
            link: &world.link,
            slots: world.slots.iter().any(|slot| *slot != Content::Empty),
            verify: &|slot| world.verdict(scene, slot),
            factory: &scene.factory(),
            fit: &|set, schemas| world.fit(scene, set, schemas),
            leaves: &|set| match world.content(set) {
                Content::Whole(release) => {
                    let data = scene.releases[release].manifest.data.iter();
                    data.map(|data| (data.name.clone(), data.schema_after))
                        .collect()
                }
                Content::Empty | Content::Half => Default::default(),
            },
            factory_boot: false,
            moment: &self.moment(),
            crashes: &|_| Vec::new(),
            writable,
            open_data: self.has_open_data(),
            now: NOW,
        })
    }

    fn has_open_data(&self) -> bool {
        let mut notes = self.world.notes.iter();
        notes.any(|note| note.reason == KeptReason::Open)
    }

    /// `src/recovery/link.rs`. Returns the record, and the operation that may have left services stopped; or fails if nothing
    /// can build on it.
    fn link_stage(&mut self) -> Done<(Record, Option<Operation>)> {
        if self.world.hidden.is_some() {
            return Err(Failed);
        }
        let mut obstacle = Ok(());
        let mut decision = self.decide(true);
        let invalid = |note: &String| note.contains("invalid") || note.contains("a bug in");
        if let Some(note) = decision.notes.iter().find(|note| invalid(note)) {
            self.wrong
                .get_or_insert(format!("no error of its own: {note}"));
        }
        let before = self.world.record().cloned();
        if before.as_ref() != Some(&decision.record) {
            let held = match &decision.hold {
                Some((release, _)) => self.refuse(release, RefusalKind::Held),
                None => Ok(()),
            };
            let saved = held.and_then(|()| self.save(&decision.record));
            let lasted = |before: &Record| before.only_lasted_until(&decision.record);
            if saved.is_err() && !before.as_ref().is_some_and(lasted) {
                obstacle = Err(Failed);
                decision = self.decide(false);
            }
        }
        if !self.world.link.selects(decision.show)
            && let Err(failed) = self.select(decision.show)
        {
            obstacle = Err(failed);
            if let Link::To(slot) = self.world.link {
                self.world.hidden = Some(slot);
                self.trace.push("hides the slot");
                self.check();
            }
        }
        if decision.drop_leftovers {
            // That they stay is told, and nothing else.
            let _ = self.drop_leftovers();
        }
        obstacle?;
        let back = matches!(decision.record.phase(), Phase::Reverting { .. });
        let left = decision.record.stopped.as_deref().cloned();
        let interrupted =
            match before.as_ref().map(Record::phase) {
                Some(
                    Phase::Staging { op } | Phase::Staged { op } | Phase::Switching { op, .. },
                ) if !back && !op.ran.is_empty() => Some(op.clone()),
                _ => left,
            };
        Ok((decision.record, interrupted))
    }

    fn drop_leftovers(&mut self) -> Done {
        match self.world.next == [Content::Empty; 2] {
            true => Ok(()),
            false => self.step("deletes leftovers", |w| w.next = [Content::Empty; 2]),
        }
    }

    fn boot(&mut self) -> Done {
        self.world = self.world.cut();
        self.world.on = true;
        self.world.boots += 1;
        self.lock("recover")?;
        let _ = self.link_stage();
        self.world.lock = None;
        self.lock("recover --stage data")?;
        let ready = self.data_stage();
        self.world.lock = None;
        if ready.is_ok() {
            self.start();
        }
        self.confirm().map(drop)
    }

    /// `src/recovery/data.rs`: fails if what uses the data must not be started.
    fn data_stage(&mut self) -> Done {
        let Some(mut record) = self.world.record().cloned() else {
            return Ok(());
        };
        if let Phase::Reverting { op, .. } = record.phase() {
            record = self.take_back(&mut op.clone(), &record)?;
        }
        let fits = |set| self.world.fit(self.scene, set, record.schemas_now()) == Fit::Now;
        let held = match record.phase() {
            Phase::Switching { .. } => true,
            Phase::Reverting { data, .. } if *data == DataState::Exchanged => true,
            Phase::Idle(Idle {
                trouble: Some(trouble),
                ..
            }) if trouble.needs_person && self.has_open_data() => true,
            _ => !fits(self.world.shown()),
        };
        match held {
            true => Err(Failed),
            false => Ok(()),
        }
    }

    // Commands.

    fn begin(&mut self, who: &'static str) -> Done<Record> {
        self.lock(who)?;
        let (mut record, interrupted) = self.link_stage()?;
        if interrupted.is_some_and(|op| !op.ran.is_empty()) {
            self.start();
        }
        if record.stopped.take().is_some() {
            self.save(&record)?;
        }
        Ok(record)
    }

    fn confirm(&mut self) -> Done<End> {
        self.pause("looks whether anything is open");
        if let Some(record) = self.world.record()
            && let Phase::Idle(Idle { trouble: None, .. }) = record.phase()
            && record.stopped.is_none()
            && self.world.notes.is_empty()
        {
            return Ok(End::Done);
        }
        let record = self.begin("confirm")?;
        self.tidy(&record);
        self.resume(record).map(|(end, _)| end)
    }

    /// Ends what was left open.
    fn resume(&mut self, record: Record) -> Done<(End, Record)> {
        let end = match record.phase().clone() {
            Phase::Reverting { op, cause, .. } => self.conclude_revert(op, &cause, &record)?,
            Phase::Trial { op, .. } => {
                if !self.runs(op.to.set) {
                    let _ = self.stop();
                }
                self.conclude_trial(op, &record)?
            }
            _ => return Ok((End::Done, record)),
        };
        Ok((end, self.record()))
    }

    fn apply(&mut self, request: &Request, stage_only: bool) -> Done<End> {
        let record = self.begin("apply")?;
        self.tidy(&record);
        let (end, record) = self.resume(record)?;
        if end == End::NeedsPerson || record.phase().is_under_way() {
            return Ok(end);
        }
        let idle = record.idle_when_ended();
        let Some(release) = self.choose(request, &record, &idle) else {
            return Ok(end);
        };
        if request.retry {
            self.world.failed.remove(&release);
        }
        if self.world.failed.contains(&release) {
            let what = format!("no failed release again: {release} is chosen");
            self.wrong.get_or_insert(what);
        }
        let scene = self.scene;
        let manifest = &scene.releases[release].manifest;
        let plan = DataPlan::forward(manifest, &record.schemas, &scene.declared);
        let Ok(plan) = plan else {
            return Err(Failed);
        };
        let digest = Some(scene.releases[release].digest);
        if let Phase::Staged { op } = record.phase()
            && op.to.manifest == digest
            && self.world.verifies(scene, &op.to)
        {
            let op = op.clone().with_data_plan(plan);
            return match stage_only {
                true => Ok(End::Done),
                false => self.switch(op, &record),
            };
        }
        let to = scene.installed(idle.active.set.alternate().into(), release);
        let op = self
            .operation(OperationKind::Install, idle, to)
            .with_data_plan(plan);
        let (op, staged) = self.stage(op, &record, release)?;
        match stage_only {
            true => Ok(End::Done),
            false => self.switch(op, &staged),
        }
    }

    /// `src/acquire/select.rs`.
    fn choose(&self, request: &Request, record: &Record, idle: &Idle) -> Option<usize> {
        let scene = self.scene;
        let refusals: Vec<Refusal> = self.world.refusals.iter().map(|r| (**r).clone()).collect();
        let factory = &scene.releases[0].manifest;
        let context = SelectionContext {
            product: &factory.product,
            channel: &factory.channel,
            arch: &factory.arch,
            running: &idle.active,
            schemas: &record.schemas,
            unknown: &[],
            refusals: &refusals,
            factory: Some(factory),
            declared: &scene.declared,
            withdrawn: &[],
        };
        let chosen = select(&context, request, &scene.offers, &mut |offer| {
            let mut releases = scene.releases.iter();
            let found = releases.find(|release| release.manifest.version == offer.version);
            Ok(found
                .map(|release| Candidate {
                    manifest: release.manifest.clone(),
                    bytes: Vec::new(),
                    digest: release.digest,
                })
                .ok_or_else(String::new))
        });
        match chosen {
            Ok(Choice::Take(candidate)) => Some(scene.by_digest(Some(candidate.digest))),
            Ok(Choice::NothingNewer(_)) | Err(_) => None,
        }
    }

    fn operation(&mut self, kind: OperationKind, before: Idle, to: Installed) -> Operation {
        self.world.operations += 1;
        let id = OperationId::new(self.world.operations);
        Operation::new(id, kind, before, to, NOW)
    }

    /// `src/acquire/stage.rs`.
    fn stage(
        &mut self,
        mut op: Operation,
        record: &Record,
        release: usize,
    ) -> Done<(Operation, Record)> {
        if self.scene.small {
            op.before.fallback = None;
        }
        let slot = op.to.set.slot().unwrap();
        let begun = record.begin_staging(op.clone());
        let staging = self.real(begun)?;
        self.save(&staging)?;
        if self.fill(slot, release).is_err() {
            let attempt = op.attempt(Exit::Failed, None, NOW);
            let _ = self.drop_leftovers().and_then(|()| {
                let ended = staging.ended(op.before.clone(), attempt);
                let ended = self.real(ended)?;
                self.save(&ended)
            });
            return Err(Failed);
        }
        let staged = self.real(staging.staged(op.clone()))?;
        self.save(&staged)?;
        self.drop_leftovers()?;
        Ok((op, staged))
    }

    fn fill(&mut self, slot: Slot, release: usize) -> Done {
        let at = slot as usize;
        self.drop_leftovers()?;
        if self.scene.small && self.world.slots[at] != Content::Empty {
            self.step("begins to delete the old fallback", |world| {
                world.slots[at] = Content::Half;
            })?;
            self.step("deletes the old fallback", |world| {
                world.slots[at] = Content::Empty;
            })?;
        }
        self.step("begins to stage", |world| world.next[at] = Content::Half)?;
        self.step("stages", |world| world.next[at] = Content::Whole(release))?;
        self.step("exchanges the slot", |world| {
            std::mem::swap(&mut world.next[at], &mut world.slots[at]);
        })
    }

    fn rollback(&mut self, to_factory: bool) -> Done<End> {
        let record = self.begin("rollback")?;
        let record = match record.phase().clone() {
            Phase::Trial { op, .. } => {
                let from = op.from().set;
                let ended = self.revert(op, cause(CauseKind::Person), &record)?;
                if ended == End::NeedsPerson || !to_factory || from == Set::Factory {
                    return Ok(ended);
                }
                let record = self.record();
                if record.phase().is_under_way() {
                    return Ok(ended);
                }
                record
            }
            _ => match self.resume(record)? {
                (End::Done, record) => record,
                (end, _) => return Ok(end),
            },
        };
        let idle = record.idle_when_ended();
        if idle.active.set == Set::Factory {
            return Ok(End::Done);
        }
        let previous = idle.fallback.clone();
        let previous = previous.filter(|f| !to_factory && f.set != Set::Factory);
        let to = previous.unwrap_or_else(|| self.scene.factory());
        if !self.world.verifies(self.scene, &to) {
            return Err(Failed);
        }
        let notes = self.world.notes.iter();
        let free = |note: &&Rc<Kept>| !in_use(note, &record) && note.reason != KeptReason::Open;
        let kept: Vec<Kept> = notes.filter(free).map(|note| (**note).clone()).collect();
        let plan = DataPlan::back(
            self.manifest(idle.active.set),
            self.manifest(to.set),
            &record.schemas,
            &self.scene.declared,
            &[],
            &kept,
            NewerData::SetAside,
        );
        let Ok(plan) = plan else {
            return Err(Failed);
        };
        let kind = match to.set {
            Set::Factory => OperationKind::Factory,
            Set::A | Set::B => OperationKind::Rollback,
        };
        let op = self.operation(kind, idle, to).with_data_plan(plan);
        self.switch(op, &record)
    }

    // `src/switch`.

    fn switch(&mut self, mut op: Operation, record: &Record) -> Done<End> {
        if self.world.up.is_some() && op.ran.is_empty() {
            op.ran.push("node".parse().unwrap());
        }
        let mut reached = self.real(record.begin_switch(op.clone()))?;
        self.save(&reached)?;
        match self.go_over(&mut op, &mut reached) {
            Ok(()) => self.conclude_trial(op, &reached),
            Err(kind) => self.revert(op, cause(kind), &reached),
        }
    }

    fn go_over(&mut self, op: &mut Operation, reached: &mut Record) -> Result<(), CauseKind> {
        let appliance = |_: Failed| CauseKind::Appliance;
        self.stop().map_err(appliance)?;
        self.change_data(op, reached)?;
        self.select(op.to.set).map_err(appliance)?;
        let begun = reached.begin_trial(op.clone(), NOW, Some(&self.moment()));
        let trial = self.real(begun).map_err(appliance)?;
        self.save(&trial).map_err(appliance)?;
        *reached = trial;
        Ok(())
    }

    fn change_data(&mut self, op: &mut Operation, reached: &mut Record) -> Result<(), CauseKind> {
        let appliance = |_: Failed| CauseKind::Appliance;
        if op.data.is_empty() {
            return Ok(());
        }
        let id = op.id;
        if op.change != DataChange::Kept {
            let schemas = reached.schemas.clone();
            let release = op.from().clone();
            self.note_kept(op, id, Side::Previous, KeptReason::Open, release, schemas)
                .map_err(appliance)?;
        }
        let to = self.manifest(op.to.set).and_then(|m| m.migrate.as_ref());
        let in_place = to.is_some_and(|migrate| migrate.in_place);
        let made = match op.change {
            DataChange::Migrate if in_place => {
                self.copy(id, Side::Previous).map_err(appliance)?;
                self.begin_exchange(op, reached).map_err(appliance)?;
                return self.migrate(op, None);
            }
            DataChange::Migrate => self
                .copy(id, Side::Next)
                .map_err(appliance)
                .and_then(|()| self.migrate(op, Some(Side::Next))),
            DataChange::Empty => self
                .step("prepares empty data", |world| {
                    world.copies(id)[index(Side::Next)] = Some(Data {
                        schema: None,
                        by: None,
                        half: false,
                    });
                })
                .map_err(appliance),
            DataChange::None | DataChange::Kept | DataChange::Down => Ok(()),
        };
        made?;
        self.begin_exchange(op, reached).map_err(appliance)?;
        let copy = op.copy();
        self.exchange(copy.id, copy.side).map_err(appliance)
    }

    fn begin_exchange(&mut self, op: &mut Operation, reached: &mut Record) -> Done {
        op.exchanged_at = Some(NOW.into());
        let exchanging = self.real(reached.begin_exchange(op.clone()))?;
        self.save(&exchanging)?;
        *reached = exchanging;
        Ok(())
    }

    fn copy(&mut self, id: OperationId, side: Side) -> Done {
        let place = |half| {
            move |world: &mut World| {
                let copy = world.live.clone().map(|data| Data { half, ..data });
                world.copies(id)[index(side)] = copy;
            }
        };
        self.step("begins to copy the data", place(true))?;
        self.step("copies the data", place(false))
    }

    fn migrate(&mut self, op: &Operation, copy: Option<Side>) -> Result<(), CauseKind> {
        let release = |_: Failed| CauseKind::Release;
        let (id, schema) = (op.id, op.schemas.get(&data_name()).copied());
        let change = move |half: bool| {
            move |world: &mut World| {
                let place = match copy {
                    Some(side) => &mut world.copies(id)[index(side)],
                    None => &mut world.live,
                };
                *place = Some(Data {
                    schema,
                    by: Some(id),
                    half,
                });
            }
        };
        self.step("begins to migrate", change(true))
            .map_err(release)?;
        self.step("migrates", change(false)).map_err(release)
    }

    /// `src/data/exchange.rs`, each data set in two renames.
    fn exchange(&mut self, id: OperationId, from: Side) -> Done {
        let (from, to) = (index(from), index(from.other()));
        let sides = self.world.copies(id).clone();
        if sides[from].is_none() {
            return match sides[to] {
                Some(_) => Ok(()),
                None => Err(Failed),
            };
        }
        if sides[to].is_none() {
            self.step("moves the live data aside", |world| {
                let live = world.live.take();
                world.copies(id)[to] = live;
            })?;
        }
        self.step("makes other data live", |world| {
            let next = world.copies(id)[from].take();
            world.live = next;
        })
    }

    fn conclude_trial(&mut self, op: Operation, record: &Record) -> Done<End> {
        self.start();
        match self.prove(op.to.set) {
            Ok(()) => self.confirmed(&op, record),
            Err(Failed) => self.revert(op, cause(CauseKind::Release), record),
        }
    }

    fn confirmed(&mut self, op: &Operation, record: &Record) -> Done<End> {
        let fallback = (op.to.set != Set::Factory).then(|| op.from().clone());
        let idle = Idle::on(op.to.clone(), fallback, NOW);
        let ended = record.ended(idle, op.attempt(Exit::Done, None, NOW));
        let mut done = self.real(ended)?;
        done.schemas.retain(|name, _| !op.changes(name));
        done.schemas.extend(op.schemas.clone());
        // A damaged list is no reason to give up a set that is healthy.
        let _ = match op.kind {
            OperationKind::Install => {
                let manifest = op.to.manifest.unwrap();
                match self.world.refusals.iter().any(|r| r.manifest == manifest) {
                    true => self.step("forgets a refusal", |world| {
                        world.refusals.retain(|r| r.manifest != manifest);
                    }),
                    false => Ok(()),
                }
            }
            _ => self.refuse(op.from(), RefusalKind::Held),
        };
        let kept = self.keep_replaced(op, record);
        if kept.and_then(|()| self.save(&done)).is_err() {
            return Ok(End::NeedsPerson);
        }
        self.drop_replaced(op);
        let _ = self.drop_leftovers();
        Ok(End::Done)
    }

    /// `src/data/kept.rs`.
    fn keep_replaced(&mut self, op: &Operation, record: &Record) -> Done {
        if op.data.is_empty() {
            return Ok(());
        }
        let copy = op.copy();
        let reason = match op.change {
            DataChange::Migrate => KeptReason::Replaced,
            _ => KeptReason::SetAside,
        };
        let (release, schemas) = (op.from().clone(), record.schemas.clone());
        let side = copy.side.other();
        self.note_kept(op, copy.id, side, reason, release, schemas)
    }

    fn drop_replaced(&mut self, op: &Operation) {
        let own = op.copy().id;
        for note in self.world.notes.clone() {
            let replaced = note.reason == KeptReason::Replaced && note.id != own;
            if replaced && !op.data.is_empty() && self.drop_kept(note.id).is_err() {
                return;
            }
        }
    }

    fn note_kept(
        &mut self,
        op: &Operation,
        id: OperationId,
        side: Side,
        reason: KeptReason,
        release: Installed,
        schemas: std::collections::BTreeMap<qx_release::manifest::Name, u64>,
    ) -> Done {
        let number = self.world.notes.last().map_or(1, |last| last.number + 1);
        let note = Kept {
            format: FORMAT,
            id,
            side,
            number,
            reason,
            release,
            data: op.data.clone(),
            schemas,
            since: None,
            until: NOW.into(),
            digests: std::collections::BTreeMap::new(),
            lasted: None,
        };
        self.step("notes the kept data", |world| {
            world.notes.retain(|note| note.id != id);
            world.notes.push(Rc::new(note));
        })
    }

    fn drop_kept(&mut self, id: OperationId) -> Done {
        self.step("deletes kept data", |world| {
            world.aside.retain(|(of, _)| *of != id);
        })?;
        self.step("forgets kept data", |world| {
            world.notes.retain(|note| note.id != id);
        })
    }

    /// The copies of an operation that changed nothing.
    fn drop_copies(&mut self, id: OperationId) -> Done {
        let open = |note: &Rc<Kept>| note.id == id && note.reason == KeptReason::Open;
        match self.world.notes.iter().any(open) {
            true => self.drop_kept(id),
            false => Ok(()),
        }
    }

    /// `src/data/kept.rs`.
    fn tidy(&mut self, record: &Record) {
        if let Phase::Idle(Idle {
            trouble: Some(trouble),
            ..
        }) = record.phase()
            && trouble.needs_person
        {
            return;
        }
        for note in self.world.notes.clone() {
            if !in_use(&note, record) && self.drop_copies(note.id).is_err() {
                return;
            }
        }
    }

    fn revert(&mut self, op: Operation, cause: Cause, record: &Record) -> Done<End> {
        let begun = record.begin_revert(op.clone(), cause.clone());
        let reverting = self.real(begun)?;
        if self.save(&reverting).is_err() && record.data() == DataState::Exchanged {
            return self.leave_to_a_person(&reverting);
        }
        self.conclude_revert(op, &cause, &reverting)
    }

    fn leave_to_a_person(&mut self, record: &Record) -> Done<End> {
        let failure = EarlyFailure {
            at: NOW.into(),
            result: Exit::NeedsPerson,
            reason: String::new(),
        };
        let _ = self.save(&record.with_failure(Some(failure)));
        Ok(End::NeedsPerson)
    }

    fn conclude_revert(&mut self, mut op: Operation, cause: &Cause, record: &Record) -> Done<End> {
        let (world, scene) = (&self.world, self.scene);
        let verdict = |slot| world.verdict(scene, slot);
        let fit = |set| world.fit(scene, set, &record.schemas);
        let chosen = choice::choose(Some(op.from()), &scene.factory(), &verdict, &fit).0;
        let selected = world.link.selects(chosen.set);
        let saved = record.data() == DataState::Exchanged;
        let stopped = match selected && !saved && (world.up.is_none() || self.runs(chosen.set)) {
            true => Ok(()),
            false => self.stop(),
        };
        let restored = match stopped {
            Err(failed) if saved => Err(failed),
            _ => self.take_back(&mut op, record),
        };
        if !selected && self.select(chosen.set).is_err() {
            if saved {
                return self.leave_to_a_person(record);
            }
            self.start();
            return Ok(End::NeedsPerson);
        }
        let Ok(record) = restored else {
            return self.leave_to_a_person(record);
        };
        let fits = self.world.fit(scene, chosen.set, &record.schemas) == Fit::Now;
        let healthy = match fits {
            true => {
                self.start();
                self.prove(chosen.set)
            }
            false => Err(Failed),
        };
        self.end_revert(&op, &chosen, healthy.is_ok(), cause, &record)
    }

    fn take_back(&mut self, op: &mut Operation, record: &Record) -> Done<Record> {
        if record.data() != DataState::Exchanged {
            return Ok(record.clone());
        }
        let copy = op.copy();
        self.exchange(copy.id, copy.side.other())?;
        if op.change != DataChange::Kept {
            let (id, to, schemas) = (op.id, op.to.clone(), op.schemas.clone());
            self.note_kept(op, id, Side::Next, KeptReason::SetAside, to, schemas)?;
        }
        let restored = self.real(record.data_restored(op.clone()))?;
        self.save(&restored)?;
        Ok(restored)
    }

    fn end_revert(
        &mut self,
        op: &Operation,
        chosen: &Installed,
        healthy: bool,
        cause: &Cause,
        record: &Record,
    ) -> Done<End> {
        let listed = match (op.kind, cause.kind) {
            (OperationKind::Install, CauseKind::Release) => Some(RefusalKind::Quarantined),
            (OperationKind::Install, CauseKind::Boots | CauseKind::Person) => {
                Some(RefusalKind::Held)
            }
            _ => None,
        };
        let refused = listed.map_or(Ok(()), |kind| self.refuse(&op.to, kind));
        let trouble = (!healthy).then(|| Trouble {
            what: String::new(),
            needs_person: true,
        });
        let (exit, end) = match healthy {
            true => (Exit::BackToPrevious, End::WentBack),
            false => (Exit::NeedsPerson, End::NeedsPerson),
        };
        let idle = Idle {
            trouble,
            ..match chosen == op.from() {
                true => op.back(),
                false => Idle::on(chosen.clone(), None, NOW),
            }
        };
        let recorded = refused.and_then(|()| {
            let ended = record.ended(idle, op.attempt(exit, None, NOW));
            let ended = self.real(ended)?;
            self.save(&ended)
        });
        if recorded.is_ok() {
            let _ = self.drop_copies(op.id);
        }
        Ok(end)
    }
}

fn asked(version: u64, retry: bool) -> Request {
    Request {
        version: Some(semver::Version::new(version, 0, 0)),
        retry,
        only: None,
    }
}

fn in_use(note: &Kept, record: &Record) -> bool {
    let of = |op: &Operation| [op.id, op.copy().id].contains(&note.id);
    record.phase().is_under_way() && record.operation().is_some_and(of)
}
