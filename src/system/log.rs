//! The update log: JSON lines, rotated by size. The same lines, and the progress of transfers between them, go to
//! whoever follows the operation. Losing the log never stops an update or a recovery.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::id::OperationId;
use crate::system::follower::Follower;
use crate::system::host::timestamp;
use qx_release::durable;
use qx_release::text;

/// Bytes after which the log is rotated, unless the configuration says otherwise.
pub const MAX_BYTES: u64 = 1 << 20;
/// How many rotated files are kept, unless the configuration says otherwise.
pub const KEEP: u32 = 3;

/// One line of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// RFC 3339, UTC.
    pub time: String,
    /// `info`, `warning` or `error`.
    pub level: Level,
    /// The operation, once it has an id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// Which step of the procedure this is.
    pub step: String,
    /// The message.
    pub message: String,
    /// Structured details.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A step.
    Info,
    /// Something to look at.
    Warning,
    /// What failed.
    Error,
}

/// What a follower of an operation is sent, one JSON object a line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A line of the log.
    Log(Line),
    /// How far a transfer is.
    Progress {
        /// What is transferred.
        what: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// Where to log.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The current file.
    pub path: PathBuf,
    /// What must be there already.
    pub below: PathBuf,
    /// Bytes after which it is rotated.
    pub max_bytes: u64,
    /// How many rotated files are kept.
    pub keep: u32,
}

/// Writes the update log.
pub struct Log {
    place: Destination,
    op: String,
    follower: Option<Follower>,
    complained: bool,
}

impl Log {
    /// Logs to this place, and to standard output as [`Event`]s if somebody follows.
    pub fn new(place: Destination, followed: bool) -> Log {
        Log {
            place,
            op: String::new(),
            follower: followed.then(|| Follower::new(|number| text_of(&dropped(number)))),
            complained: false,
        }
    }

    /// From now on lines carry this operation's id.
    pub fn operation(&mut self, id: OperationId) {
        self.op = id.to_string();
    }

    /// A step of the procedure.
    pub fn info(&mut self, step: &str, message: impl Into<String>) {
        self.write(Level::Info, step, message.into(), Map::new());
    }

    /// A step of the procedure, with details for programs. `details` is a JSON object.
    pub fn info_with(&mut self, step: &str, message: impl Into<String>, details: Value) {
        let details = match details {
            Value::Object(map) => map,
            other => Map::from_iter([("details".to_owned(), other)]),
        };
        self.write(Level::Info, step, message.into(), details);
    }

    /// Something to look at.
    pub fn warning(&mut self, step: &str, message: impl Into<String>) {
        self.write(Level::Warning, step, message.into(), Map::new());
    }

    /// What failed.
    pub fn error(&mut self, step: &str, message: impl Into<String>) {
        self.write(Level::Error, step, message.into(), Map::new());
    }

    /// How far a transfer is; for followers only, and those that are behind can do without.
    pub fn progress(&mut self, what: &str, done: u64, total: u64) {
        if let Some(follower) = &mut self.follower
            && follower.is_up_to_date()
        {
            follower.send(text_of(&Event::Progress {
                what: what.to_owned(),
                done,
                total,
            }));
        }
    }

    fn write(&mut self, level: Level, step: &str, message: String, details: Map<String, Value>) {
        let line = Line {
            time: timestamp(std::time::SystemTime::now()),
            level,
            op: self.op.clone(),
            step: step.to_owned(),
            message: text::line(&message),
            details,
        };
        if let Err(e) = self.append(&line)
            && !self.complained
        {
            self.complained = true;
            self.send(&Event::Log(Line {
                level: Level::Warning,
                step: "log".into(),
                message: format!("writing the log {}: {e}", self.place.path.display()),
                ..line.clone()
            }));
        }
        self.send(&Event::Log(line));
    }

    fn append(&self, line: &Line) -> io::Result<()> {
        let path = &self.place.path;
        if let Some(parent) = path.parent() {
            // Where a file system should be mounted nothing is made.
            fs::metadata(&self.place.below)?;
            fs::create_dir_all(parent)?;
        }
        if fs::metadata(path).is_ok_and(|m| m.len() >= self.place.max_bytes) {
            rotate(path, self.place.keep).map_err(io::Error::other)?;
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            // Whoever may write to the log's directory must not choose what root writes to, nor keep it waiting.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(path)?;
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // One write: lines of two processes do not mix.
        file.write_all(&text)
    }

    fn send(&mut self, event: &Event) {
        if let Some(follower) = &mut self.follower {
            follower.send(text_of(event));
        }
    }
}

/// Says that a follower missed some.
pub fn dropped(number: u64) -> Event {
    Event::Log(Line {
        time: timestamp(std::time::SystemTime::now()),
        level: Level::Warning,
        op: String::new(),
        step: "log".into(),
        message: format!(
            "{number} events were not shown: the output was too slow; `qx-update log` has them"
        ),
        details: Map::new(),
    })
}

/// An event as it is sent. Nothing in it can fail to be written; if something did, nothing would be sent.
fn text_of(event: &Event) -> Vec<u8> {
    serde_json::to_vec(event).map_or_else(
        |_| Vec::new(),
        |mut text| {
            text.push(b'\n');
            text
        },
    )
}

/// `update.log` → `update.log.1` → `update.log.2` → …
fn rotate(path: &Path, keep: u32) -> qx_release::error::Result<()> {
    if keep == 0 {
        return durable::remove(path);
    }
    for number in (1..keep).rev() {
        let from = numbered(path, number);
        if from.exists() {
            durable::rename(&from, &numbered(path, number + 1))?;
        }
    }
    durable::rename(path, &numbered(path, 1))
}

/// The files that a log may have, oldest first.
pub fn files(place: &Destination) -> Vec<PathBuf> {
    let rotated = (1..=place.keep).rev().map(|n| numbered(&place.path, n));
    rotated.chain([place.path.clone()]).collect()
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rotates_by_size_and_keeps_so_many() {
        let dir = std::env::temp_dir().join(format!("qx-log-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let place = Destination {
            path: dir.join("var/log/update.log"),
            below: dir.clone(),
            max_bytes: 300,
            keep: 2,
        };
        let mut log = Log::new(place.clone(), false);
        log.operation(OperationId::new(0x0123_4567_89ab_cdef));
        for number in 0..20 {
            log.info("fetch", format!("line {number}"));
        }
        let mut files = files(&place);
        assert_eq!(files.len(), 3);
        assert!(!numbered(&place.path, 3).exists());
        files.retain(|file| file.exists());
        assert_eq!(files.len(), 3);
        let lines: Vec<Line> = files
            .iter()
            .flat_map(|f| {
                fs::read_to_string(f)
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect();
        assert!(lines.len() < 20, "the oldest are gone");
        assert_eq!(lines.last().unwrap().message, "line 19");
        assert!(lines.windows(2).all(|pair| pair[0].time <= pair[1].time));
        fs::remove_dir_all(dir).unwrap();
    }
}
