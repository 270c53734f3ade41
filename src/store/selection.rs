//! Where the priority link led when a process began. A program that is executed the kernel knows by itself; of a script it knows
//! no more than the path by which it was started, and that may lead elsewhere by now.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Store, checked};
use crate::model::id::BootId;
use crate::model::slot::{Link, Slot};
use crate::store::CommitPoint;
use crate::system::proc::{Identity, Tick};
use qx_release::durable;
use qx_release::error::Result;

/// In `/run`: it says something about processes of this boot.
const SELECTED: &str = "/run/qx-update/selected.json";
/// The note is at most this long, in bytes.
const MAX_NOTE: u64 = 1 << 16;
/// Where images have programs, and nobody else has anything.
const IMAGE: [&str; 4] = ["usr", "bin", "sbin", "opt"];
/// So many changes of one boot are remembered.
const MAX_CHANGES: usize = 100;

/// What became of the link in a boot, while services could run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Changes {
    boot_id: BootId,
    /// In their order.
    changes: Vec<Change>,
}

/// The link was changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Change {
    /// When that was done.
    at: Tick,
    /// The slot that it led to before; none, too, once that has other content.
    before: Option<Slot>,
}

/// Where the link leads, and led.
pub struct Selection {
    slots: PathBuf,
    /// The data directory by each of its names.
    data: Vec<PathBuf>,
    /// [`IMAGE`], on this machine.
    image: Vec<PathBuf>,
    now: Option<Slot>,
    changes: Vec<Change>,
}

impl Selection {
    /// Where a path led when a process began: without links, if it is one of the appliance's own programs. The file systems of others
    /// are not touched: a path is an argument that anybody may have given, and what lies there may never answer. `None`: nowhere.
    pub fn led(&self, path: &Path, process: Identity) -> Option<PathBuf> {
        if path.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let place = match self
            .data
            .iter()
            .find_map(|data| path.strip_prefix(data).ok())
        {
            Some(below) => self.in_data(below, process)?,
            None if self.image.iter().any(|image| path.starts_with(image)) => path.to_owned(),
            None => return Some(path.to_owned()),
        };
        let directory = fs::canonicalize(place.parent()?).ok()?;
        Some(directory.join(place.file_name()?))
    }

    /// The same, of a path below the data directory.
    fn in_data(&self, below: &Path, process: Identity) -> Option<PathBuf> {
        let through = ["bin", "share"].iter().any(|link| below.starts_with(link));
        let rest = match through {
            true => Ok(below),
            false => below.strip_prefix("current"),
        };
        match (rest, self.at(process)) {
            (Ok(rest), Some(slot)) => Some(self.slots.join(slot.name()).join(rest)),
            // What stands there instead of the links.
            (Ok(_), None) if self.changes.is_empty() => Some(self.data[0].join(below)),
            (Ok(_), None) => None,
            (Err(_), _) => {
                let ours = below.starts_with("slots");
                ours.then(|| self.data[0].join(below))
            }
        }
    }

    /// The slot that was selected when a process began.
    fn at(&self, process: Identity) -> Option<Slot> {
        let mut changes = self.changes.iter();
        match changes.find(|change| !process.began_after(change.at)) {
            Some(change) => change.before,
            None => self.now,
        }
    }
}

fn slot_of(link: &Link) -> Option<Slot> {
    match link {
        Link::To(slot) => Some(*slot),
        Link::Absent | Link::Foreign(_) => None,
    }
}

impl Store {
    /// Where the link leads, and led.
    pub fn selection(&self) -> Selection {
        let real = fs::canonicalize(&self.data).ok();
        Selection {
            slots: self.path("slots"),
            data: [self.data.clone()].into_iter().chain(real).collect(),
            image: IMAGE.map(|place| self.host.root().join(place)).to_vec(),
            now: slot_of(&self.selected()),
            changes: self.changes().changes,
        }
    }

    /// As this process knows them, else as they are noted.
    fn changes(&self) -> Changes {
        let boot_id = self.host.boot_id().ok();
        let noted = || {
            let path = self.host.path(SELECTED).ok()?;
            let note: Changes = checked::read(&path, MAX_NOTE).ok()??;
            (Some(&note.boot_id) == boot_id.as_ref()).then_some(note)
        };
        let known = self.changes.borrow().clone().or_else(noted);
        known.unwrap_or_else(|| Changes {
            boot_id: boot_id.unwrap_or_else(|| BootId::from("")),
            changes: Vec::new(),
        })
    }

    /// Notes that the link led there until now: what is started afterwards can be told from what ran before. This process knows
    /// it even if an error says that others will not.
    pub fn note_selection(&self, before: &Link) -> Result<()> {
        let mut all = self.changes();
        let at = Tick::now();
        let before = slot_of(before);
        all.changes.push(Change { at, before });
        if all.changes.len() > MAX_CHANGES {
            all.changes.remove(0);
            all.changes[0].before = None;
        }
        at.end();
        self.note_changes(all)
    }

    /// Notes that a slot has other content than what processes were started from.
    pub(super) fn note_content(&self, slot: Slot) -> Result<()> {
        let mut all = self.changes();
        let concerned = all
            .changes
            .iter_mut()
            .filter(|change| change.before == Some(slot));
        let concerned = concerned.map(|change| change.before = None).count();
        match concerned {
            0 => Ok(()),
            _ => self.note_changes(all),
        }
    }

    fn note_changes(&self, all: Changes) -> Result<()> {
        self.changes.replace(Some(all.clone()));
        let path = self.host.path(SELECTED)?;
        durable::create_dir(path.parent().unwrap_or(&path), 0o755)?;
        checked::write(&path, &all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::slot::Set;
    use crate::system::host::Host;
    use std::process::{Child, Command};

    /// A process that begins now; ended when dropped.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Sleeper {
            Sleeper(Command::new("sleep").arg("1000").spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    /// Intent: a path means what it meant when it was followed, through any number of changes, and nothing once that is gone; also
    /// to a process that has only read about them.
    #[test]
    fn a_path_leads_where_it_led() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for place in ["data/slots/a/bin", "data/slots/b/bin", "run"] {
            fs::create_dir_all(root.join(place)).unwrap();
        }
        let host = Host::new(root).unwrap();
        let store = || Store::new(&host, "/data", "/factory.json").unwrap();
        let data = fs::canonicalize(root).unwrap().join("data");
        let mine = store();
        let select = |set: Set| {
            let before = mine.selected();
            mine.select(set).unwrap();
            mine.note_selection(&before).unwrap();
        };
        mine.select(Set::A).unwrap();
        let mut begun = vec![Sleeper::start()];
        for set in [Set::B, Set::A, Set::Factory, Set::B] {
            select(set);
            begun.push(Sleeper::start());
        }
        let led = |store: &Store, through: &str| {
            let led = begun.iter().map(|process| {
                let process = host.proc().identity(process.0.id()).unwrap();
                let led = store.selection().led(&data.join(through), process)?;
                led.strip_prefix(data.join("slots"))
                    .ok()?
                    .to_str()
                    .map(str::to_owned)
            });
            led.collect::<Vec<_>>()
        };
        let some = |path: &str| Some(path.to_owned());
        for through in ["bin/x", "current/bin/x"] {
            for store in [&mine, &store()] {
                let expected = ["a/bin/x", "b/bin/x", "a/bin/x"].map(some);
                assert_eq!(led(store, through)[..3], expected);
                assert_eq!(led(store, through)[3..], [None, some("b/bin/x")]);
            }
        }
        let own = led(&mine, "slots/a/bin/x");
        assert!(own.iter().all(|path| *path == some("a/bin/x")), "{own:?}");
        // What is in slot a from now on is not what was started from there.
        fs::create_dir_all(mine.next(Slot::A).join("bin")).unwrap();
        mine.give(Slot::A).unwrap();
        let expected = [None, some("b/bin/x"), None, None, some("b/bin/x")];
        assert_eq!(led(&store(), "bin/x"), expected);

        // Others' places are not looked at, and what leaves a place is none of ours.
        let process = host.proc().identity(begun[1].0.id()).unwrap();
        let led = |path: &Path| mine.selection().led(path, process);
        let strange = Path::new("/nowhere/at/all");
        assert_eq!(led(strange).as_deref(), Some(strange));
        for path in ["home/x", "bin/../../x", "current/../../x"] {
            assert_eq!(led(&data.join(path)), None, "{path}");
        }
    }
}
