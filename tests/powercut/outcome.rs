//! What an operation left on its disk, less what differs whenever it is run: two outcomes that are equal need one check.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use crate::appliance::{Appliance, Entry, tree};

/// The outcomes that were checked.
#[derive(Default)]
pub struct Outcomes(Mutex<HashSet<u64>>);

impl Outcomes {
    /// Whether none was like this one before. What is `told` of an operation is part of its outcome.
    pub fn is_new(&self, appliance: &Appliance, told: impl Hash) -> Result<bool, String> {
        let mut hasher = DefaultHasher::new();
        told.hash(&mut hasher);
        for (name, entry) in tree(&appliance.data())? {
            // What happened is logged, and the lock names its process.
            let passing = ["update/log/", "update/lock"];
            let passing = passing.iter().any(|part| name.starts_with(part));
            steady(name.as_bytes()).hash(&mut hasher);
            match entry {
                Entry::File(mode, _) if passing => mode.hash(&mut hasher),
                Entry::File(mode, bytes) if name.starts_with("update/") => {
                    (mode, steady(&bytes)).hash(&mut hasher);
                }
                Entry::File(mode, bytes) => (mode, bytes).hash(&mut hasher),
                Entry::Directory(mode) => mode.hash(&mut hasher),
                Entry::Link(to) => steady(to.as_os_str().as_encoded_bytes()).hash(&mut hasher),
            }
        }
        Ok(self.0.lock().unwrap().insert(hasher.finish()))
    }
}

/// Without dates, the random ids of operations, uptimes, and the checksum in a last line of its own.
fn steady(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    let is_hex = |c: char| c.is_ascii_hexdigit() && !c.is_ascii_uppercase();
    if lines.len() > 1
        && lines
            .last()
            .is_some_and(|l| l.len() == 64 && l.chars().all(is_hex))
    {
        lines.pop();
    }
    let mut steady = String::new();
    // Words: runs of letters and digits, and of what dates and numbers have between them.
    for word in lines
        .join("\n")
        .split_inclusive(|c: char| !c.is_ascii_alphanumeric() && !"-:".contains(c))
    {
        let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_date = bare.len() >= 19 && bare.ends_with('Z') && bare.contains('T');
        let is_id = bare.len() >= 16
            && bare
                .rsplit('-')
                .next()
                .is_some_and(|last| last.len() == 16 && last.chars().all(is_hex));
        let is_time = ["\"uptime_s\"", "\"seconds\""]
            .iter()
            .any(|key| steady.ends_with(key));
        match is_date || is_id || is_time {
            true => steady.push_str(&word[bare.len()..]),
            false => steady.push_str(word),
        }
    }
    steady.into_bytes()
}

/// Intent: what is checked once is the same but for what differs from run to run.
#[test]
fn what_differs_each_time_is_no_part_of_an_outcome() {
    let one = b"{\"id\":\"0123456789abcdef\",\"since\":\"2026-02-02T00:00:00Z\",\"uptime_s\":12,\"boots\":1,\"seconds\":0}\n\
        4f86f76901089d66aa5a59358dbd21cfcb3d348e0df258e684142ecbd182df7b\n";
    let other = b"{\"id\":\"fedcba9876543210\",\"since\":\"2027-02-02T00:00:00Z\",\"uptime_s\":9,\"boots\":1,\"seconds\":3}\n\
        5f86f76901089d66aa5a59358dbd21cfcb3d348e0df258e684142ecbd182df7b\n";
    assert_eq!(steady(one), steady(other));
    for (from, to) in [("\"boots\":1", "\"boots\":2"), ("}", "")] {
        let text = String::from_utf8_lossy(one).replace(from, to);
        assert_ne!(steady(one), steady(text.as_bytes()), "{to}");
    }
}
