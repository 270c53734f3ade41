//! The rooms of `src/lib.rs` and what each may use: arrows point down, and what is pure stays pure.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up. A room uses those before it, and itself.
const ROOMS: [&str; 15] = [
    "model",
    "system",
    "store",
    "fetch",
    "repository",
    "data",
    "proof",
    "acquire",
    "switch",
    "recovery",
    "adoption",
    "status",
    "doctor",
    "command",
    "cli",
];

/// What a value knows nothing of: files, sockets, the clock, the environment, other processes.
const WORLD: [&str; 7] = [
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "SystemTime::now",
    "Instant::now",
    "rustix::",
];

/// All Rust below a directory, as it is.
fn files(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// The same without comments, and what of it is no test.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let without_tests = |(path, text): (PathBuf, String)| {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: Vec<&str> = code
            .lines()
            .filter(|l| !l.trim().starts_with("//"))
            .collect();
        (path, code.join("\n"))
    };
    files(directory).into_iter().map(without_tests).collect()
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Intent: no room uses one above it, and every room is in the list.
#[test]
fn no_room_uses_one_above_it() {
    let listed: BTreeSet<String> = ROOMS.iter().map(|room| (*room).to_owned()).collect();
    let there: BTreeSet<String> = fs::read_dir(top().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, listed, "a room is a directory of src");
    let mut wrong = Vec::new();
    for (height, room) in ROOMS.iter().enumerate() {
        for (path, code) in sources(&top().join("src").join(room)) {
            for used in code.split("crate::").skip(1) {
                let end = used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let used = &used[..end.unwrap_or(used.len())];
                match ROOMS.iter().position(|room| *room == used) {
                    Some(other) if other <= height => {}
                    _ => wrong.push(format!("{} uses {used}", path.display())),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The module of a file, from the root of its package; the root itself is no module.
fn module(package: &Path, file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(package).unwrap().with_extension("");
    let parts = relative
        .iter()
        .map(|part| part.to_str().unwrap().to_owned());
    parts
        .filter(|part| !["mod", "lib", "main"].contains(&part.as_str()))
        .collect()
}

/// What is named after `crate::` and `super::` in a module's code: paths from the root of its package, names of items included.
fn named(module: &[String], code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (start, from) in [
        ("crate::", &[][..]),
        ("super::", &module[..module.len() - 1]),
    ] {
        for used in code.split(start).skip(1) {
            let path = used
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
                .next()
                .unwrap();
            let group = used[path.len()..].strip_prefix('{').unwrap_or_default();
            let group = group.split('}').next().unwrap();
            for item in group.split(',') {
                let item = item.split_whitespace().next().unwrap_or_default();
                let whole = format!("{path}::{item}");
                let parts = whole.split("::").filter(|part| !part.is_empty());
                found.push(
                    from.iter()
                        .cloned()
                        .chain(parts.map(str::to_owned))
                        .collect(),
                );
            }
        }
    }
    found
}

/// Intent: of two files one can be read without the other; no chain of imports leads back to where it began. A module and those
/// in its directory are one thing, seen from outside.
#[test]
fn no_two_files_use_each_other() {
    for package in ["src", "crates/qx-release/src", "crates/qx-publish/src"] {
        let package = top().join(package);
        let sources: Vec<(Vec<String>, String)> = sources(&package)
            .into_iter()
            .map(|(path, code)| (module(&package, &path), code))
            .filter(|(module, _)| !module.is_empty())
            .collect();
        let at = |path: &[String]| {
            let of = |length| sources.iter().position(|(m, _)| *m == path[..length]);
            (1..=path.len()).rev().find_map(of)
        };
        let mut uses: Vec<BTreeSet<usize>> = Vec::new();
        for (module, code) in &sources {
            let used = named(module, code).into_iter().filter_map(|path| at(&path));
            uses.push(
                used.filter(|used| {
                    let used = &sources[*used].0;
                    !used.starts_with(module) && !module.starts_with(used)
                })
                .collect(),
            );
        }
        for first in 0..sources.len() {
            // Everything that is reached from it.
            let mut reached = BTreeSet::new();
            let mut next: Vec<usize> = uses[first].iter().copied().collect();
            while let Some(file) = next.pop() {
                if reached.insert(file) {
                    next.extend(&uses[file]);
                }
            }
            let circle = reached.iter().map(|file| sources[*file].0.join("::"));
            assert!(
                !reached.contains(&first),
                "{} uses itself by way of some of {:?}",
                sources[first].0.join("::"),
                circle.collect::<Vec<_>>()
            );
        }
    }
}

/// Intent: `model`, and the decisions of a boot, are functions of their arguments.
#[test]
fn what_is_pure_touches_nothing() {
    let mut pure = sources(&top().join("src/model"));
    let decide = top().join("src/recovery/decide.rs");
    pure.extend(
        sources(&top().join("src/recovery"))
            .into_iter()
            .filter(|(path, _)| *path == decide),
    );
    assert!(pure.len() > 5);
    for (path, code) in pure {
        for touched in WORLD {
            assert!(!code.contains(touched), "{} uses {touched}", path.display());
        }
    }
}

/// Intent: what both sides agree on knows neither of them, nor the environment; the publisher knows of the appliance only how it
/// reads a repository, to verify one.
#[test]
fn the_agreement_knows_neither_side() {
    for (path, code) in sources(&top().join("crates/qx-release/src")) {
        for other in ["qx_update", "qx_publish", "std::env", "SystemTime::now"] {
            assert!(!code.contains(other), "{} uses {other}", path.display());
        }
    }
    for (path, code) in sources(&top().join("crates/qx-publish/src")) {
        let allowed: &[&str] = match path.ends_with("verify.rs") {
            true => &["fetch::", "model::source::", "repository::"],
            false => &[],
        };
        for used in code.split("qx_update::").skip(1) {
            let good = allowed.iter().any(|room| used.starts_with(room));
            assert!(good, "{} uses qx_update::{used:.20}", path.display());
        }
    }
    for (path, code) in sources(&top().join("src")) {
        assert!(!code.contains("qx_publish"), "{}", path.display());
    }
}

/// Intent: whoever sees a test fail reads directly above it what should hold, and for whom, and need not guess it from
/// the code.
#[test]
fn every_test_says_its_intent() {
    let (mut tests, mut silent) = (0, Vec::new());
    for (path, text) in files(&top().join("tests")) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        // A line that is the attribute and nothing else: no string of this file is.
        for at in (0..lines.len()).filter(|at| lines[*at] == "#[test]") {
            tests += 1;
            let mut above = lines[..at].iter().rev();
            let above = above.find(|line| !line.starts_with("#["));
            let said = above.and_then(|line| line.strip_prefix("///"));
            if said.is_none_or(|words| words.trim().is_empty()) {
                let mut below = lines[at..].iter();
                let name = below.find_map(|line| line.split_once("fn ")?.1.split('(').next());
                silent.push(format!("{}: {}", path.display(), name.unwrap_or("?")));
            }
        }
    }
    assert!(tests > 300, "only {tests} tests were found");
    assert!(silent.is_empty(), "no intent above: {silent:#?}");
}
