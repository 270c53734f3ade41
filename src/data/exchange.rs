//! The exchange: the data that lies aside becomes live, and the live data goes aside. It consists of renames; interrupted
//! between any two of them, it is completed by the same exchange and undone by the opposite one.
//!
//! Each data set of an operation has a directory for its copies, whose content tells how far the exchange is:
//!
//! | found | live |
//! |---|---|
//! | `next` | the old data |
//! | `next`, `previous.filling` | the rest of the old data |
//! | `next`, `previous` | nothing |
//! | `next.emptying`, `previous` | a part of the new data |
//! | `previous` | the new data |
//!
//! On the way back it is the same with `next` and `previous` swapped.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::model::dataset::{COMPANIONS, Side};
use qx_release::durable::{self, is_directory, is_there};
use qx_release::error::{Error, Result};

/// Live data is being moved here.
const FILLING: &str = "filling";
/// What is here is being moved to the live place.
const EMPTYING: &str = "emptying";
/// What was found at the live place when nothing should have been there.
const STRAY: &str = "stray";

/// Where live data is: a directory, and the name of the data in it.
pub(super) struct Spot<'a> {
    pub(super) directory: &'a Path,
    pub(super) name: &'a OsStr,
}

/// What an exchange is made of.
pub(super) enum Step<'a> {
    Make(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
}

impl Step<'_> {
    /// Carries it out, durably.
    pub(super) fn carry_out(self) -> Result<()> {
        match self {
            Step::Make(directory) => durable::create_dir(directory, 0o700),
            Step::Rename(from, to) => durable::rename(from, to),
            Step::Remove(directory) => durable::remove_empty(directory),
        }
    }
}

/// Makes the data on the side `from` of `aside` live; what was live is on the other side afterwards. Unexpected files at
/// the live place are moved out of the way; returns where to.
///
/// # Errors
/// There is no data to make live, and no sign that it is live already.
pub(super) fn exchange(
    live: &Spot,
    aside: &Path,
    from: Side,
    step: &mut dyn FnMut(Step) -> Result<()>,
) -> Result<Option<PathBuf>> {
    let to = from.other();
    let at = |side: Side| aside.join(side.name());
    let part = |side: Side, state: &str| aside.join(format!("{}.{state}", side.name()));
    let mut stray = None;
    // The opposite exchange was cut while it emptied that side.
    let emptying = part(to, EMPTYING);
    if is_directory(&emptying)? {
        move_all(live.name, live.directory, &emptying, step)?;
        step(Step::Rename(&emptying, &at(to)))?;
    }
    // Or while it filled this one: the old data was never all there.
    let filling = part(from, FILLING);
    if is_directory(&filling)? {
        move_all(live.name, &filling, live.directory, step)?;
        step(Step::Remove(&filling))?;
        return Ok(None);
    }
    let emptying = part(from, EMPTYING);
    if is_directory(&at(from))? {
        if !is_directory(&at(to))? {
            let filling = part(to, FILLING);
            if !is_directory(&filling)? {
                step(Step::Make(&filling))?;
            }
            move_all(live.name, live.directory, &filling, step)?;
            step(Step::Rename(&filling, &at(to)))?;
        }
        stray = put_stray_away(live, aside, &at(to), step)?;
        step(Step::Rename(&at(from), &emptying))?;
    }
    if is_directory(&emptying)? {
        move_all(live.name, &emptying, live.directory, step)?;
        step(Step::Remove(&emptying))?;
        return Ok(stray);
    }
    match is_directory(&at(to))? {
        true => Ok(stray),
        false => Err(Error::new(format!(
            "the {} data is missing from {}",
            from.name(),
            durable::shown(aside)
        ))),
    }
}

/// Moves the data set `name` from one directory to another.
fn move_all(
    name: &OsStr,
    from: &Path,
    to: &Path,
    step: &mut dyn FnMut(Step) -> Result<()>,
) -> Result<()> {
    // A directory has no companions: what is called so beside it is somebody else's.
    if is_directory(&to.join(name))? {
        return Ok(());
    }
    for name in parts(name, from)? {
        step(Step::Rename(&from.join(&name), &to.join(&name)))?;
    }
    Ok(())
}

/// The names of a data set in a directory.
fn parts(name: &OsStr, directory: &Path) -> Result<Vec<OsString>> {
    let mut candidates = vec![name.to_owned()];
    if !is_directory(&directory.join(name))? {
        candidates.extend(COMPANIONS.iter().map(|suffix| {
            let mut companion = name.to_owned();
            companion.push(suffix);
            companion
        }));
    }
    let mut parts = Vec::new();
    for part in candidates {
        if is_there(&directory.join(&part))? {
            parts.push(part);
        }
    }
    Ok(parts)
}

/// Moves unexpected files at the live place out of the way: both sides are complete, so they belong to neither. Files
/// that only lay beside a directory stay.
fn put_stray_away(
    live: &Spot,
    aside: &Path,
    was_live: &Path,
    step: &mut dyn FnMut(Step) -> Result<()>,
) -> Result<Option<PathBuf>> {
    let mut parts = parts(live.name, live.directory)?;
    if is_directory(&was_live.join(live.name))? {
        parts.retain(|part| part == live.name);
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let place = |number| aside.join(format!("{STRAY}.{number}"));
    let mut number = 1;
    while is_there(&place(number))? {
        number += 1;
    }
    let place = place(number);
    step(Step::Make(&place))?;
    for name in parts {
        step(Step::Rename(
            &live.directory.join(&name),
            &place.join(&name),
        ))?;
    }
    Ok(Some(place))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;
    use qx_release::error::Context;

    type Files = &'static [(&'static str, &'static str)];

    /// What data may be: a file, with which companions, a directory, or nothing.
    const STATES: [Files; 7] = [
        &[],
        &[("db", "plain")],
        &[("db", "open"), ("db-wal", "log"), ("db-shm", "index")],
        &[("db", "half"), ("db-journal", "undo")],
        &[("db-wal", "without a database")],
        &[("db/one", "1"), ("db/sub/two", "22")],
        &[("db/one", "other"), ("db/three", "3")],
    ];

    struct Scene {
        root: tempfile::TempDir,
    }

    impl Scene {
        fn new(old: Files, new: Files) -> Scene {
            let scene = Scene {
                root: tempfile::tempdir().unwrap(),
            };
            for (directory, files) in [("live", old), ("aside/next", new)] {
                fs::create_dir_all(scene.at(directory)).unwrap();
                for (name, content) in files {
                    let path = scene.at(directory).join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, content).unwrap();
                }
            }
            scene
        }

        fn at(&self, below: &str) -> PathBuf {
            self.root.path().join(below)
        }

        /// Goes on for so many steps; whether that was enough.
        fn exchange(&self, from: Side, steps: usize) -> bool {
            let left = Cell::new(steps);
            let live = self.at("live");
            let spot = Spot {
                directory: &live,
                name: OsStr::new("db"),
            };
            exchange(&spot, &self.at("aside"), from, &mut |step| {
                match left.get() {
                    0 => Err(Error::new("the power goes")),
                    more => {
                        left.set(more - 1);
                        // As `carry_out` does, without waiting for the medium.
                        let done = match step {
                            Step::Make(directory) => fs::create_dir(directory),
                            Step::Rename(from, to) => fs::rename(from, to),
                            Step::Remove(directory) => fs::remove_dir(directory),
                        };
                        done.doing(|| "stepping")
                    }
                }
            })
            .is_ok()
        }

        #[track_caller]
        fn is(&self, directory: &str, files: Files, what: &str) {
            let mut found = Vec::new();
            list(&self.at(directory), "", &mut found);
            found.sort();
            let mut expected: Vec<(String, String)> = files
                .iter()
                .map(|(name, content)| (name.to_string(), content.to_string()))
                .collect();
            expected.sort();
            assert_eq!(found, expected, "{directory}: {what}");
        }
    }

    fn list(directory: &Path, under: &str, all: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let name = format!("{under}{}", entry.file_name().display());
            match entry.path().is_dir() {
                true => list(&entry.path(), &format!("{name}/"), all),
                false => all.push((name, fs::read_to_string(entry.path()).unwrap())),
            }
        }
    }

    const FOR_EVER: usize = usize::MAX;

    /// Every pair of states, cut after any number of steps, twice, on the way there and on the way back: it ends with all of
    /// one and nothing of the other, and nothing is lost. Done again it changes nothing.
    #[test]
    fn an_exchange_that_is_cut_goes_on_or_back() {
        for old in STATES {
            for new in STATES {
                for first in 0.. {
                    let mut there = false;
                    for second in [0, 1, 3, 6] {
                        let what = format!("{old:?} for {new:?}, cut after {first} and {second}");
                        // On to its end.
                        let scene = Scene::new(old, new);
                        there = scene.exchange(Side::Next, first);
                        scene.exchange(Side::Next, second);
                        assert!(scene.exchange(Side::Next, FOR_EVER), "{what}");
                        scene.is("live", new, &what);
                        scene.is("aside/previous", old, &what);
                        // And back, cut as well.
                        scene.exchange(Side::Previous, first);
                        scene.exchange(Side::Previous, second);
                        assert!(scene.exchange(Side::Previous, FOR_EVER), "{what}");
                        scene.is("live", old, &what);
                        scene.is("aside/next", new, &what);
                        // There and back at once.
                        let scene = Scene::new(old, new);
                        scene.exchange(Side::Next, first);
                        scene.exchange(Side::Previous, second);
                        assert!(scene.exchange(Side::Previous, FOR_EVER), "{what}");
                        scene.is("live", old, &what);
                        scene.is("aside/next", new, &what);
                        // And once more in the other direction.
                        let scene = Scene::new(old, new);
                        scene.exchange(Side::Next, first);
                        scene.exchange(Side::Previous, second);
                        assert!(scene.exchange(Side::Next, FOR_EVER), "{what}");
                        scene.is("live", new, &what);
                        scene.is("aside/previous", old, &what);
                    }
                    if there {
                        break;
                    }
                }
            }
        }
    }

    /// What somebody has put at the live place between two cuts is neither lost nor taken for the data.
    #[test]
    fn what_a_stranger_leaves_at_the_live_place_is_put_away() {
        let scene = Scene::new(&[("db", "old")], &[("db", "new"), ("db-wal", "new")]);
        // Made, moved, renamed: nothing is live.
        assert!(!scene.exchange(Side::Next, 3));
        scene.is("live", &[], "");
        fs::write(scene.at("live/db"), "stray").unwrap();
        fs::write(scene.at("live/db-journal"), "stray").unwrap();
        assert!(scene.exchange(Side::Next, FOR_EVER));
        scene.is("live", &[("db", "new"), ("db-wal", "new")], "");
        scene.is("aside/previous", &[("db", "old")], "");
        scene.is(
            "aside/stray.1",
            &[("db", "stray"), ("db-journal", "stray")],
            "",
        );
    }

    /// Where nothing lies aside there is nothing to exchange, and the live data stays.
    #[test]
    fn what_is_missing_is_no_data() {
        for from in [Side::Next, Side::Previous] {
            let scene = Scene::new(&[("db", "old")], &[]);
            fs::remove_dir(scene.at("aside/next")).unwrap();
            assert!(!scene.exchange(from, FOR_EVER));
            scene.is("live", &[("db", "old")], "");
        }
    }

    /// A neighbour of a directory that is called like a companion of a file stays where it is, wherever it is cut.
    #[test]
    fn a_neighbour_of_a_directory_is_nobodys() {
        for steps in 0..8 {
            let scene = Scene::new(&[("db/one", "1")], &[("db/two", "2")]);
            fs::write(scene.at("live/db-wal"), "neighbour").unwrap();
            scene.exchange(Side::Next, steps);
            assert!(scene.exchange(Side::Next, FOR_EVER));
            scene.is("live", &[("db/two", "2"), ("db-wal", "neighbour")], "");
            scene.is("aside/previous", &[("db/one", "1")], "");
        }
    }
}
