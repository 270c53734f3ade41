//! What the documents say, against the code: every field of every file, every variable, every option.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::publisher;

const FORMATS: &str = include_str!("../docs/formats.md");
const README: &str = include_str!("../README.md");

/// Where the fields of a source file are described: headings of `docs/formats.md`.
const SECTIONS: [(&str, &[&str]); 34] = [
    ("src/model/config.rs", &["`config.json`: the appliance"]),
    (
        "crates/qx-release/src/trust/limits.rs",
        &["`config.json`: the appliance"],
    ),
    ("src/model/source.rs", &["`config.json`: the appliance"]),
    ("src/command/receipt.rs", &["Receipts"]),
    ("src/model/dataset.rs", &["Data sets"]),
    (
        "crates/qx-release/src/manifest.rs",
        &["`release.json`: the manifest"],
    ),
    (
        "crates/qx-publish/src/recipe.rs",
        &[
            "Recipe: what a release is made from",
            "`release.json`: the manifest",
        ],
    ),
    (
        "crates/qx-publish/src/checks.rs",
        &["Checks before publication"],
    ),
    ("crates/qx-publish/src/current.rs", &["Repository"]),
    ("crates/qx-publish/src/inspect.rs", &["`qx-publish`"]),
    ("crates/qx-publish/src/verify.rs", &["`qx-publish`"]),
    ("crates/qx-publish/src/external.rs", &["Keys"]),
    ("src/adoption/legacy.rs", &["Files of other updaters"]),
    ("src/model/slot.rs", &[RECORD]),
    ("src/model/idle.rs", &[RECORD]),
    ("src/model/record.rs", &[RECORD]),
    ("src/model/refusal.rs", &[RECORD]),
    ("src/model/kept.rs", &[RECORD]),
    ("src/model/phase.rs", &[RECORD]),
    ("src/model/operation.rs", &[RECORD]),
    ("src/model/moment.rs", &[RECORD]),
    ("src/model/watch.rs", &[RECORD]),
    ("src/model/boots.rs", &[RECORD]),
    ("src/model/dataplan.rs", &[RECORD]),
    ("src/store/seals.rs", &[RECORD]),
    ("src/store/lock.rs", &["`status --json`"]),
    ("src/store/refusals.rs", &[RECORD]),
    ("src/store/notes.rs", &[RECORD]),
    ("src/store/selection.rs", &[RECORD]),
    ("crates/qx-release/src/trust/versions.rs", &[RECORD]),
    ("src/status/mod.rs", &["`status --json`"]),
    ("src/doctor/mod.rs", &["`doctor --json`"]),
    ("src/proof/updater.rs", &["`status --json`"]),
    ("src/system/log.rs", &["The update log"]),
];
const RECORD: &str = "The record: `update/state.0`, `update/state.1`";

/// What an update and its fetcher say to each other: two processes of one program, and no file.
const SAID: [&str; 7] = [
    "src/fetch/protocol.rs",
    "src/fetch/mod.rs",
    "src/fetch/port.rs",
    "src/fetch/proxy.rs",
    "crates/qx-release/src/error.rs",
    "crates/qx-release/src/trust/clock.rs",
    "crates/qx-release/src/url.rs",
];

/// Intent: a field that is added to a file and described nowhere is a failing test; so is a file with fields that this test
/// does not know.
#[test]
fn every_field_is_described() {
    let mut missing = Vec::new();
    for file in sources() {
        let name = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
        let fields = fields(&read(&file));
        if fields.is_empty() || SAID.iter().any(|said| Path::new(said) == name) {
            continue;
        }
        let place = SECTIONS
            .iter()
            .find(|(source, _)| Path::new(source) == name);
        let Some((_, sections)) = place else {
            missing.push(format!("{}: in no section", name.display()));
            continue;
        };
        let words: BTreeSet<&str> = sections
            .iter()
            .flat_map(|heading| code_words(heading))
            .collect();
        for field in fields
            .iter()
            .filter(|field| !words.contains(field.as_str()))
        {
            missing.push(format!("{}: `{field}`", name.display()));
        }
    }
    assert!(
        missing.is_empty(),
        "not in docs/formats.md:\n{}",
        missing.join("\n")
    );
}

/// The Rust files whose types are read or written.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories: Vec<PathBuf> = ["src", "crates/qx-release/src", "crates/qx-publish/src"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    files
}

/// A file without its tests.
fn read(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.to_owned()
}

/// The named fields of all types that serde derives something for, as they are written in a file.
fn fields(source: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let (mut derived, mut inside, mut attributes) = (false, None, String::new());
    for line in source.lines() {
        let indent = line.len() - line.trim_start().len();
        let text = line.trim();
        if text.starts_with("#[derive(") {
            derived = text.contains("Serialize") || text.contains("Deserialize");
        } else if text.starts_with("#[serde(try_from = \"String\"") {
            // A text.
            derived = false;
        } else if text.contains("struct ") || text.contains("enum ") {
            // One without named fields has nothing to describe.
            inside = (derived && text.ends_with('{')).then_some(indent);
            derived = false;
        } else if text == "}" && inside == Some(indent) {
            inside = None;
        } else if inside.is_some() {
            if text.starts_with("#[serde") {
                attributes += text;
                continue;
            }
            let declared = text
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ");
            if let Some((name, _)) = declared.split_once(": ")
                && !text.starts_with("//")
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            {
                let renamed = attributes.split("rename = \"").nth(1);
                let name = renamed.map_or(name, |rest| rest.split('"').next().unwrap());
                if !attributes.contains("serde(skip)") && !attributes.contains("flatten") {
                    fields.insert(name.to_owned());
                }
            }
            if !text.starts_with("//") {
                attributes.clear();
            }
        }
    }
    fields
}

/// The words of everything that stands as code below a heading, those of deeper headings included.
fn code_words(heading: &str) -> Vec<&'static str> {
    let mut words = Vec::new();
    let mut depth = None;
    for paragraph in FORMATS.split("\n\n") {
        let hashes = paragraph.chars().take_while(|c| *c == '#').count();
        if hashes > 0 {
            let title = paragraph[hashes..].lines().next().unwrap().trim();
            depth = match depth {
                Some(depth) if hashes > depth => Some(depth),
                _ => (title == heading).then_some(hashes),
            };
        }
        if depth.is_some() {
            let block = paragraph.starts_with("```");
            let spans = paragraph.split('`').enumerate();
            let code = spans.filter(|(number, _)| block || number % 2 == 1);
            let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            words.extend(code.flat_map(|(_, span)| span.split(word)));
        }
    }
    assert!(
        !words.is_empty(),
        "docs/formats.md has no heading '{heading}'"
    );
    words
}

/// Intent: a variable that programs find, or that changes what we do, is described.
#[test]
fn every_variable_is_described() {
    let mut found = BTreeSet::new();
    for file in sources() {
        let text = read(&file);
        for prefix in ["\"QX_UPDATE_", "\"QX_PUBLISH_"] {
            for rest in text.split(prefix).skip(1) {
                let name: String = rest
                    .chars()
                    .take_while(|c| c.is_ascii_uppercase() || *c == '_')
                    .collect();
                found.insert(format!("{}{name}", &prefix[1..]));
            }
        }
    }
    assert!(found.len() > 3, "{found:?}");
    let missing: Vec<_> = found
        .iter()
        .filter(|name| !FORMATS.contains(*name))
        .collect();
    assert!(missing.is_empty(), "not in docs/formats.md: {missing:?}");
}

/// Intent: a command or an option that is added and described nowhere is a failing test: those of qx-update belong into the
/// README, those of qx-publish into `docs/formats.md`.
#[test]
fn every_option_is_described() {
    for (program, document, name) in [
        (env!("CARGO_BIN_EXE_qx-update"), README, "README.md"),
        (publisher(), FORMATS, "docs/formats.md"),
    ] {
        let mut seen = 0;
        let mut missing = BTreeSet::new();
        for command in commands(program, &[]) {
            let mut vectors = vec![vec![command.clone()]];
            vectors.extend(
                commands(program, &[&command])
                    .into_iter()
                    .map(|deeper| vec![command.clone(), deeper]),
            );
            for vector in vectors {
                let words: Vec<&str> = vector.iter().map(String::as_str).collect();
                let called = words.join(" ");
                if !document.contains(&format!("`{called}"))
                    && !document.contains(&format!(" {called}"))
                {
                    missing.insert(called.clone());
                }
                let described = described(document, &called);
                for option in options(&help(program, &words)) {
                    seen += 1;
                    if !described.contains(&option) {
                        missing.insert(format!("{called} {option}"));
                    }
                }
            }
        }
        assert!(seen > 10, "{program}: {seen}");
        assert!(missing.is_empty(), "not in {name}: {missing:#?}");
    }
}

/// What a document says of a command: the rows that begin with it, and all that is no row.
fn described(document: &str, command: &str) -> String {
    let of = |line: &&str| !line.starts_with('|') || line.contains(&format!("`{command}"));
    document.lines().filter(of).collect::<Vec<_>>().join("\n")
}

fn help(program: &str, command: &[&str]) -> String {
    let output = Command::new(program)
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The commands below one, by its help.
fn commands(program: &str, command: &[&str]) -> Vec<String> {
    let help = help(program, command);
    let Some((_, list)) = help.split_once("\nCommands:\n") else {
        return Vec::new();
    };
    let lines = list.lines().take_while(|line| !line.trim().is_empty());
    lines
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

/// The options that a help text lists.
fn options(help: &str) -> Vec<String> {
    let lines = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"));
    let names = lines.filter_map(|line| line.split([' ', ',']).next());
    names
        .filter(|name| !matches!(*name, "help" | "version" | ""))
        .map(|name| format!("--{name}"))
        .collect()
}
