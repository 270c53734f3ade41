//! A reader that reads no further, after any number of bytes: the operation ends as ever.
//!
//! `QX_CALLS`, `QX_POWERCUT_SEED` and `QX_CALLS_ONLY` as for failing calls.

use std::fmt;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::appliance::Appliance;
use crate::operations::{SINGLE, Single};
use crate::tries::{is_tried, try_some};

/// What a pipe holds.
const PIPE: usize = 65_536;

/// After how many bytes nothing is read any more.
struct Stalled(usize);

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reader {}", self.0)
    }
}

/// Intent: nobody who watches an operation can hold it up, and whoever reads on later is told how it ended.
#[test]
fn a_reader_that_reads_no_further_holds_up_nothing() {
    let mut violations = Vec::new();
    // What recovery says goes to the console, which takes everything.
    for single in SINGLE.iter().filter(|single| single.name != "recovery") {
        if is_tried(single.name, "reader") {
            let original = single.prepared();
            let ended = original.copy().update(single.arguments);
            let says = ended.said.len() + ended.error.len();
            let stalled: Vec<Stalled> = (0..says).map(Stalled).collect();
            violations.extend(try_some("readers", single.name, &stalled, |stalled| {
                survives(single, stalled, &original.copy())
            }));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

fn survives(single: &Single, stalled: &Stalled, appliance: &Appliance) -> Result<(), String> {
    let (mut reader, writer) = with_room_for(stalled.0);
    // An adoption is no attempt at anything: it is told by what runs.
    let ends = |status: &Value| ["last", "running", "plain"].map(|field| status[field].clone());
    let before = ends(&appliance.status());
    let mut command = appliance.command(single.arguments);
    command.stderr(writer.try_clone().unwrap()).stdout(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let status = appliance.status();
        if status["phase"] == "idle" && ends(&status) != before {
            break;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("it waits for its reader: {status}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    let code = child.wait().unwrap().code();
    if code != Some(single.code) || said.contains("panicked") {
        return Err(format!("it ended with {code:?}: {said}"));
    }
    appliance.sound(&[single.done])?;
    appliance.tidy()
}

/// A pipe that takes so many bytes more.
fn with_room_for(bytes: usize) -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let full = PIPE.saturating_sub(bytes);
    writer.write_all(&vec![b'\n'; full]).unwrap();
    (reader, writer)
}
