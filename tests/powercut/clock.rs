//! A clock that is set between any two readings of it, by decades, forward and back: it decides nothing.
//!
//! `QX_CALLS`, `QX_POWERCUT_SEED` and `QX_CALLS_ONLY` as for failing calls.

use std::fmt;
use std::path::PathBuf;

use crate::appliance::{Appliance, Entry, tree};
use crate::operations::{SINGLE, Single};
use crate::tries::{is_tried, try_some};

/// How far it is set: the days, and what dates begin with then. Into the past of every key; to where 32 bits end; to where the
/// metadata have expired, for all that the clock tells.
const STEPS: [i64; 3] = [-15_000, 30_000, 1_000];

struct Step {
    /// After how many readings, in each process.
    readings: usize,
    days: i64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clock {} {}", self.readings, self.days)
    }
}

/// Intent: nothing that is decided depends on the date; only metadata that have expired, for all that is known, are refused.
#[test]
fn a_step_of_the_clock_changes_no_decision() {
    let mut violations = Vec::new();
    for single in &SINGLE {
        if is_tried(single.name, "clock") {
            let original = single.prepared();
            let last = readings(single, &original);
            let steps: Vec<Step> = (0..last)
                .flat_map(|readings| STEPS.map(|days| Step { readings, days }))
                .collect();
            violations.extend(try_some("clock-steps", single.name, &steps, |step| {
                survives(single, step, &original.copy())
            }));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// How many readings there are: a step after the last one leaves no date behind.
fn readings(single: &Single, original: &Appliance) -> usize {
    const NONE_LEFT: usize = 5;
    let mut without = 0;
    for readings in 0..1000 {
        let appliance = original.copy();
        let days = STEPS[0];
        stepped(&appliance, single, &Step { readings, days });
        without = match left_a_date(&appliance) {
            true => 0,
            false => without + 1,
        };
        if without == NONE_LEFT {
            return readings + 1 - NONE_LEFT;
        }
    }
    panic!("{} reads the clock more than a thousand times", single.name)
}

/// Whether anything that was written has a date before there was anything.
fn left_a_date(appliance: &Appliance) -> bool {
    let dates = [b"\"1984-", b"\"1985-"];
    let tree = tree(&appliance.data().join("update")).unwrap();
    tree.values().any(|entry| {
        matches!(entry, Entry::File(_, bytes) if bytes.windows(6).any(|w| dates.iter().any(|d| w == *d)))
    })
}

fn stepped(appliance: &Appliance, single: &Single, step: &Step) -> crate::appliance::Ended {
    let library = libfaketime();
    let (days, readings) = (format!("{:+}d", step.days), step.readings.to_string());
    let mut variables = vec![
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME", &*days),
        // What waits, waits as long as ever.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    if step.readings > 0 {
        variables.push(("FAKETIME_START_AFTER_NUMCALLS", &readings));
    }
    appliance.update_with(&variables, single.arguments)
}

fn libfaketime() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = found.map(|dir| dir.path().join("faketime/libfaketime.so.1"));
    found
        .find(|path| path.exists())
        .expect("libfaketime (Debian: faketime) is not installed")
}

fn survives(single: &Single, step: &Step, appliance: &Appliance) -> Result<(), String> {
    let operation = single.operation();
    let ended = stepped(appliance, single, step);
    let expired = step.days == 1_000 && ended.code == Some(5);
    if expired {
        if !ended.error.contains("expired") {
            return Err(format!("it was refused: {}", ended.error));
        }
    } else {
        let ended = ended.expect(&[single.code])?;
        if ended.error.contains("panicked") {
            return Err(ended.error);
        }
        appliance.sound(&[single.done])?;
    }
    appliance.boot(2);
    appliance.recovers()?;
    appliance.update(&["confirm"]).expect(&[0, 3, 8, 9])?;
    appliance.sound(operation.allowed)?;
    (operation.again)(appliance)?;
    appliance.sound(operation.finally)?;
    appliance.tidy()
}
