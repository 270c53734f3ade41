//! What must hold after a power cut. Nothing of the product has a part in it: it compares what lies on the disk with the sources of
//! the releases.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::appliance::{Appliance, Entry, Tree, tree};

/// Stands for the version of what lies in plain directories in the place of the links.
pub const PLAIN: &str = "in plain directories";

/// A version and the schema of the data that belongs to it. No version: the factory set, that is, nothing below `/data`.
pub type Allowed = (Option<&'static str>, u64);

impl Appliance {
    /// Exactly one complete set is selected, its data is whole and its own, and `status` says so. Which it is.
    pub fn sound(&self, allowed: &[Allowed]) -> Result<Allowed, String> {
        let version = self.selected()?;
        let schema = self.schema()?;
        let found = allowed
            .iter()
            .find(|(v, s)| *v == version.as_deref() && *s == schema);
        let found = *found.ok_or_else(|| {
            format!("{version:?} runs with data of schema {schema}; allowed: {allowed:?}")
        })?;
        let status = self.update(&["status", "--json"]).expect(&[0])?;
        let status: Value =
            serde_json::from_str(&status.said).map_err(|e| format!("status --json: {e}"))?;
        let told = match status["plain"].is_null() {
            true => status["running"]["version"].as_str(),
            false => Some(PLAIN),
        };
        if told != version.as_deref() {
            return Err(format!(
                "status says that {told:?} runs, and {version:?} does"
            ));
        }
        // What it would fall back to is there.
        let fallback = &status["fallback"];
        if let Some(slot) = fallback["set"].as_str().filter(|set| *set != "factory") {
            let version = fallback["version"].as_str().unwrap_or_default();
            let there = self.complete(&Path::new("slots").join(slot))?;
            if there != version {
                return Err(format!(
                    "status says that it falls back to {version}, but slot {slot} has {there}"
                ));
            }
        }
        match status["needs_person"] == false {
            true => Ok(found),
            false => Err(format!("status asks for a person: {}", status["problems"])),
        }
    }

    /// The version that the priority link selects, complete to the last byte.
    fn selected(&self) -> Result<Option<String>, String> {
        let data = self.data();
        if data.join("bin").is_dir() && !data.join("bin").is_symlink() {
            return self.plain().map(|()| Some(PLAIN.into()));
        }
        for (link, target) in [("bin", "current/bin"), ("share", "current/share")] {
            match fs::read_link(data.join(link)) {
                Ok(to) if to.as_os_str() == target => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => return Err(format!("data/{link} is {other:?}")),
            }
        }
        let slot = match fs::read_link(data.join("current")) {
            Ok(slot) => slot,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("data/current: {e}")),
        };
        if !["slots/a", "slots/b"]
            .iter()
            .any(|name| slot.as_os_str() == *name)
        {
            return Err(format!("data/current leads to {}", slot.display()));
        }
        self.complete(&slot).map(Some)
    }

    /// What lies in the plain directories is what was adopted, complete to the last byte.
    fn plain(&self) -> Result<(), String> {
        let is_plain = |name: &String| {
            let top = name.split('/').next().unwrap_or_default();
            ["bin", "share"].contains(&top)
        };
        let only = |tree: Tree| {
            tree.into_iter()
                .filter(|(name, _)| is_plain(name))
                .collect()
        };
        let expected = self.releases.iter().find(|(v, _)| v.ends_with("+adopted"));
        let (_, expected) = expected.ok_or("nothing was ever in plain directories")?;
        let found: Tree = only(tree(&self.data())?);
        match differs(&only(expected.clone()), &found) {
            None => Ok(()),
            Some(what) => Err(format!("the plain directories: {what}")),
        }
    }

    /// The version that lies in a slot, complete to the last byte.
    fn complete(&self, slot: &Path) -> Result<String, String> {
        let mut found = tree(&self.data().join(slot))?;
        let Some(Entry::File(_, manifest)) = found.remove("release.json") else {
            return Err(format!("{} has no manifest", slot.display()));
        };
        let manifest: Value = serde_json::from_slice(&manifest)
            .map_err(|e| format!("{}/release.json: {e}", slot.display()))?;
        let version = manifest["version"].as_str().unwrap_or_default().to_owned();
        let expected = self.releases.get(&version);
        let expected = expected.ok_or_else(|| format!("there is no release {version}"))?;
        match differs(expected, &found) {
            None => Ok(version),
            Some(what) => Err(format!("{} is not {version}: {what}", slot.display())),
        }
    }

    /// The schema of the live data, which is whole.
    fn schema(&self) -> Result<u64, String> {
        let mut found = tree(&self.data().join("db"))?;
        let rows = found.remove("rows");
        let Some(Entry::File(0o644, rows)) = &rows else {
            return Err(format!("data/db/rows is {rows:?}"));
        };
        let text = String::from_utf8_lossy(rows);
        let schema = text
            .strip_prefix("schema ")
            .and_then(|s| s.trim_end().parse().ok());
        let schema = schema.ok_or_else(|| format!("data/db/rows is '{}'", text.escape_debug()))?;
        let mut expected = Tree::new();
        // What was there before the first release has none.
        if schema > 1 || found.contains_key("index") {
            let index: String = (1..=2000).map(|n| format!("{n}\n")).collect();
            expected.insert("index".into(), Entry::File(0o644, index.into()));
        }
        match differs(&expected, &found) {
            None => Ok(schema),
            Some(what) => Err(format!("data/db of schema {schema}: {what}")),
        }
    }

    /// Nothing lies about that nobody needs, once all is done.
    pub fn tidy(&self) -> Result<(), String> {
        const TOP: [&str; 9] = [
            "bin",
            "share",
            "current",
            "slots",
            "update",
            "db",
            "lost+found",
            "copies",
            "adopted",
        ];
        for (name, entry) in tree(&self.data())? {
            let mut parts = name.split('/');
            let top = parts.next().unwrap_or_default();
            let good = match (top, parts.next()) {
                ("slots", Some(slot)) => ["a", "b"].contains(&slot),
                // Data that is kept lies in places of its own, and is listed.
                ("copies", _) => matches!(entry, Entry::Directory(_)) || self.keeps_data(),
                _ => TOP.contains(&top) || (top.contains(".qx-") && self.keeps_data()),
            };
            if !good || name.ends_with(".tmp~") {
                return Err(format!("data/{name} lies about"));
            }
        }
        Ok(())
    }

    fn keeps_data(&self) -> bool {
        let listed = self.update(&["data", "list"]);
        listed.said.lines().any(|line| line.contains("db"))
    }

    /// What must not change any more once the appliance has come up.
    pub fn picture(&self) -> Result<Tree, String> {
        let mut found = tree(&self.data())?;
        let record = record(&found);
        // What happened is logged; who holds the lock is noted in it; and the record has two copies.
        found.retain(|name, _| {
            let changes = ["update/log", "update/lock", "update/state."];
            !changes.iter().any(|part| name.starts_with(part))
        });
        found.insert(
            "the record".into(),
            Entry::File(0, record.to_string().into()),
        );
        Ok(found)
    }
}

/// The newest record, without how long a trial has lasted.
fn record(found: &Tree) -> Value {
    let copies = ["update/state.0", "update/state.1"].map(|name| match found.get(name) {
        Some(Entry::File(_, bytes)) => {
            let text = String::from_utf8_lossy(bytes);
            let line = text.lines().next().unwrap_or_default().to_owned();
            serde_json::from_str(&line).unwrap_or(Value::Null)
        }
        _ => Value::Null,
    });
    let newest = copies
        .into_iter()
        .max_by_key(|copy| copy["sequence"].as_u64());
    let mut record = newest.unwrap_or_default()["record"].take();
    if let Some(trial) = record.as_object_mut() {
        trial.remove("lasted");
    }
    record
}

/// The first difference between two trees.
pub fn differs(expected: &Tree, found: &Tree) -> Option<String> {
    let names = expected.keys().chain(found.keys());
    let mut different = names.filter(|name| expected.get(*name) != found.get(*name));
    different.next().map(|name| {
        let say = |entry: Option<&Entry>| match entry {
            None => "missing".to_owned(),
            Some(Entry::File(mode, bytes)) if bytes.len() < 4096 => {
                format!("a file, {mode:o}, '{}'", bytes.escape_ascii())
            }
            Some(Entry::File(mode, bytes)) => format!("a file, {mode:o}, {} bytes", bytes.len()),
            Some(other) => format!("{other:?}"),
        };
        format!(
            "{name} is {}, not {}",
            say(found.get(name)),
            say(expected.get(name))
        )
    })
}
