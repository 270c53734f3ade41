//! What there is: the releases, the medium, the services; and what must always hold of them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use qx_release::digest::Digest;
use qx_release::manifest::{Manifest, Name};
use qx_release::offer::Offer;
use qx_update::model::choice;
use qx_update::model::dataset::{DataSet, Side};
use qx_update::model::fit::Fit;
use qx_update::model::id::OperationId;
use qx_update::model::kept::Kept;
use qx_update::model::phase::{DataState, Phase};
use qx_update::model::record::{Loaded, Record};
use qx_update::model::refusal::Refusal;
use qx_update::model::slot::{Installed, Link, Set, Slot, Verdict};
use serde_json::json;

/// The only date: nothing depends on it.
pub const NOW: &str = "2026-01-01T00:00:00Z";

pub fn data_name() -> Name {
    "db".parse().unwrap()
}

/// A release; the first is the factory set.
pub struct Release {
    pub manifest: Manifest,
    pub digest: Digest,
}

/// What is published, and on which appliance.
pub struct Scene {
    pub name: &'static str,
    /// The factory set, and the releases 2 and 3.
    pub releases: Vec<Release>,
    pub offers: Vec<Offer>,
    pub declared: Vec<DataSet>,
    /// The release whose proof fails.
    pub bad: Option<usize>,
    /// Whether the old fallback has to be deleted before the next release is staged.
    pub small: bool,
}

impl Scene {
    /// The factory set and two releases that leave the data at these schemas; the last is bad.
    pub fn new(name: &'static str, schemas: [u64; 3], in_place: bool) -> Scene {
        let releases = [1, 2, 3].into_iter().zip(schemas).map(|(number, schema)| {
            let mut text = json!({
                "format": 1, "product": "os", "version": format!("{number}.0.0"), "arch": "x86_64",
                "channel": "stable", "released": NOW,
                "components": [{"name": "node", "kind": "bin", "install_path": "bin/node", "mode": "0755",
                                "sha256": "0".repeat(64), "size_bytes": 1, "entries": 1},
                               {"name": "migrations", "kind": "tree", "install_path": "migrations", "mode": "0755",
                                "sha256": "0".repeat(64), "size_bytes": 1, "entries": 1}],
                "data": [{"name": "db", "accepts_from": schema, "accepts_to": schema, "schema_after": schema}],
            });
            if schema > 1 {
                text["migrate"] = json!({"run": ["migrations/up", "{data:db}"], "timeout_s": 1, "touches": ["db"],
                                         "in_place": in_place});
            }
            let bytes = serde_json::to_vec(&text).unwrap();
            let digest = Digest::of(&bytes);
            let manifest = Manifest::parse(&bytes).unwrap();
            Release { manifest, digest }
        });
        let offer = |number| format!("os/stable/x86_64/{number}.0.0/release.json");
        let offers = [2, 3].map(|number| Offer::of(&offer(number).parse().unwrap()).unwrap());
        let declared = json!({"name": "db", "method": "files", "place": "/data/db"});
        Scene {
            name,
            releases: releases.collect(),
            offers: offers.into(),
            declared: vec![serde_json::from_value(declared).unwrap()],
            bad: Some(2),
            small: false,
        }
    }

    pub fn installed(&self, set: Set, release: usize) -> Installed {
        let release = &self.releases[release];
        Installed {
            set,
            version: Some(release.manifest.version.clone()),
            manifest: Some(release.digest),
        }
    }

    pub fn factory(&self) -> Installed {
        self.installed(Set::Factory, 0)
    }

    pub fn by_digest(&self, digest: Option<Digest>) -> usize {
        let found = |release: &Release| Some(release.digest) == digest;
        self.releases.iter().position(found).unwrap()
    }
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    Empty,
    /// Some of a release.
    Half,
    Whole(usize),
}

/// What lies in a place for data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Data {
    /// Its schema; none of data that is still empty.
    pub schema: Option<u64>,
    /// The operation that made it by a migration.
    pub by: Option<OperationId>,
    /// Whether a copy or a migration of it was cut short.
    pub half: bool,
}

/// The copies of an operation's data, `next` and `previous`.
pub type Sides = [Option<Data>; 2];

pub fn index(side: Side) -> usize {
    usize::from(side == Side::Previous)
}

/// All there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    pub loaded: Rc<Loaded>,
    pub link: Link,
    pub slots: [Content; 2],
    pub next: [Content; 2],
    pub live: Option<Data>,
    pub aside: Vec<(OperationId, Sides)>,
    pub notes: Vec<Rc<Kept>>,
    pub refusals: Vec<Rc<Refusal>>,
    /// The rest is gone with the power.
    pub on: bool,
    pub boots: u32,
    pub hidden: Option<Slot>,
    /// The release whose files the services run, if they run.
    pub up: Option<usize>,
    /// Who has the lock.
    pub lock: Option<&'static str>,
    /// How many operations there have been.
    pub operations: u64,
    /// The releases that were given up for what they are, and that nobody has asked for again since.
    pub failed: BTreeSet<usize>,
}

impl Hash for World {
    /// By what differs most; equality tells the rest.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.slots, self.next, &self.live, self.on, self.boots).hash(state);
        (self.up, self.lock, self.operations, self.hidden).hash(state);
        (&self.aside, self.notes.len(), self.refusals.len()).hash(state);
        if let Loaded::Record(record) = &*self.loaded {
            record.phase().name().hash(state);
            (record.data() as u8).hash(state);
            record
                .operation()
                .map(|op| (op.id, op.attempts))
                .hash(state);
            record.idle_when_ended().active.set.hash(state);
        }
    }
}

impl World {
    /// A new appliance before its first boot.
    pub fn new() -> World {
        World {
            loaded: Rc::new(Loaded::Absent),
            link: Link::Absent,
            slots: [Content::Empty; 2],
            next: [Content::Empty; 2],
            live: Some(Data {
                schema: Some(1),
                by: None,
                half: false,
            }),
            aside: Vec::new(),
            notes: Vec::new(),
            refusals: Vec::new(),
            on: false,
            boots: 0,
            hidden: None,
            up: None,
            lock: None,
            operations: 0,
            failed: BTreeSet::new(),
        }
    }

    /// What a kill of the process leaves.
    pub fn killed(&self) -> World {
        World {
            lock: None,
            ..self.clone()
        }
    }

    /// What a power cut leaves.
    pub fn cut(&self) -> World {
        World {
            on: false,
            hidden: None,
            up: None,
            ..self.killed()
        }
    }

    /// Which boot it is matters to a trial alone, which counts them.
    pub fn forget_boots(&mut self) {
        let trial = |record: &Record| matches!(record.phase(), Phase::Trial { .. });
        if !self.record().is_some_and(trial) {
            self.boots = 0;
        }
    }

    /// What is on the medium, and nothing else.
    pub fn medium(&self) -> World {
        World {
            boots: 0,
            ..self.cut()
        }
    }

    pub fn record(&self) -> Option<&Record> {
        match &*self.loaded {
            Loaded::Record(record) => Some(record),
            Loaded::Absent | Loaded::Unreadable(_) => None,
        }
    }

    /// What verifying a slot finds.
    pub fn verdict(&self, scene: &Scene, slot: Slot) -> Verdict {
        if self.hidden == Some(slot) {
            return Verdict::Empty;
        }
        match self.slots[slot as usize] {
            Content::Empty => Verdict::Empty,
            Content::Half => Verdict::Damaged("it is not complete".into()),
            Content::Whole(release) => Verdict::Good(scene.installed(slot.into(), release)),
        }
    }

    pub fn verifies(&self, scene: &Scene, set: &Installed) -> bool {
        choice::verify(set, &|slot| self.verdict(scene, slot)).is_ok()
    }

    /// What a set's manifest says of data with these schemas.
    pub fn fit(&self, scene: &Scene, set: Set, schemas: &BTreeMap<Name, u64>) -> Fit {
        match self.content(set) {
            Content::Whole(release) => Fit::of(&scene.releases[release].manifest, schemas),
            _ if schemas.is_empty() => Fit::Now,
            _ => Fit::Never("its manifest cannot be read".into()),
        }
    }

    pub fn content(&self, set: Set) -> Content {
        match set.slot() {
            None => Content::Whole(0),
            Some(slot) if self.hidden == Some(slot) => Content::Empty,
            Some(slot) => self.slots[slot as usize],
        }
    }

    /// What init scripts find.
    pub fn shown(&self) -> Set {
        match self.link {
            Link::To(slot) if self.hidden != Some(slot) => slot.into(),
            _ => Set::Factory,
        }
    }

    pub fn copies(&mut self, id: OperationId) -> &mut Sides {
        let found = self.aside.iter().position(|(of, _)| *of == id);
        let at = found.unwrap_or_else(|| {
            self.aside.push((id, [None, None]));
            self.aside.len() - 1
        });
        &mut self.aside[at].1
    }

    /// What must hold in every state, whatever has been cut short; the first that does not.
    pub fn wrong(&self, scene: &Scene) -> Option<String> {
        if let Content::Empty | Content::Half = self.content(self.shown()) {
            return Some(format!(
                "one complete set: the link selects {:?}",
                self.link
            ));
        }
        self.wrong_data(scene).or_else(|| self.lost_data(scene))
    }

    /// Services run on data that is theirs.
    fn wrong_data(&self, scene: &Scene) -> Option<String> {
        let wrong = |what: String| Some(format!("matching data: {what}"));
        let release = self.up?;
        let Some(live) = &self.live else {
            return wrong("services run without data".into());
        };
        if live.half {
            return wrong("services run on half of the data".into());
        }
        if !accepts(scene, release, live) {
            return wrong(format!("{release} runs on schema {:?}", live.schema));
        }
        let record = self.record()?;
        let last = record.last.as_ref()?;
        let undone = last.result != qx_release::error::Exit::Done;
        if record.operation().is_none() && undone && live.by == Some(last.id) {
            return wrong(format!(
                "{release} runs on what the undone {} wrote",
                last.to
            ));
        }
        let known = record.schemas_now().get(&data_name()).copied();
        match matches!(record.phase(), Phase::Idle(_)) && known != live.schema {
            true => wrong(format!("recorded is {known:?}, live is {:?}", live.schema)),
            false => None,
        }
    }

    /// The data of each set that can still be gone back to is there, and noted.
    fn lost_data(&self, scene: &Scene) -> Option<String> {
        let record = self.record()?;
        let idle = record.idle_when_ended();
        let back = match record.phase() {
            Phase::Switching { op, .. } | Phase::Trial { op, .. } => Some(op.from().clone()),
            Phase::Reverting { op, data, .. } => {
                let there = *data != DataState::Restored;
                there.then(|| op.from().clone())
            }
            Phase::Idle(_) | Phase::Staging { .. } | Phase::Staged { .. } => idle.fallback,
        };
        let back = back.filter(|set| self.verifies(scene, set))?;
        let release = scene.by_digest(back.manifest);
        let fits = |data: &Option<Data>| {
            let usable = |data: &Data| !data.half && accepts(scene, release, data);
            data.as_ref().is_some_and(usable)
        };
        let kept = self.aside.iter().any(|(id, sides)| {
            let noted = self.notes.iter().any(|note| note.id == *id);
            noted && sides.iter().any(fits)
        });
        match kept || fits(&self.live) {
            true => None,
            false => Some(format!("kept data: that of {back} is lost")),
        }
    }
}

fn accepts(scene: &Scene, release: usize, data: &Data) -> bool {
    let schemas = data.schema.map(|schema| (data_name(), schema));
    let manifest = &scene.releases[release].manifest;
    Fit::of(manifest, &schemas.into_iter().collect()) == Fit::Now
}
