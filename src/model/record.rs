//! The record: which phase an appliance is in, and everything that undoing it needs. A value: [`crate::store`] writes it.
//!
//! On disk a record is one line of JSON in an envelope with a format and a sequence number, then one line
//! with the digest of the first. Two copies are kept; the intact one with the higher number counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::id::BootId;
use crate::model::idle::{Idle, Trouble};
use crate::model::moment::Lasted;
use crate::model::operation::{Attempt, Cause, EarlyFailure, Operation};
use crate::model::phase::{DataState, Phase};
use crate::model::slot::Installed;
use qx_release::digest::Digest;
use qx_release::json;
use qx_release::manifest::Name;
use qx_release::text;

/// The only record format there is.
pub const FORMAT: u32 = 1;
/// A copy of a record is at most this long, in bytes. That is enough for what it takes from a manifest and a
/// configuration of 1 MiB each, and for how each of 1000 checks failed.
pub const MAX_BYTES: u64 = 8 << 20;
/// To how many characters the texts for people are cut; the next length is tried if the record would exceed
/// [`MAX_BYTES`].
const TEXTS: [usize; 3] = [text::LINE, 400, 40];

/// The length of the line with the digest, with the line breaks before and after it.
const CHECKSUM: u64 = 66;

/// What is durably known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Members")]
pub struct Record {
    /// The current phase. It changes only by the transitions of [`crate::model::transition`].
    #[serde(flatten)]
    pub(super) phase: Phase,
    /// The last operation that ended, and how.
    pub last: Option<Attempt>,
    /// An `apply` since then that failed before it had an operation: the network, trust, space.
    pub failure: Option<EarlyFailure>,
    /// The schema number of each data set, as the last confirmed release left it.
    pub schemas: BTreeMap<Name, u64>,
    /// An operation that was cut short after it had stopped services: the next command on the running system starts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Box<Operation>>,
}

/// What loading the record found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// Neither copy exists.
    Absent,
    /// Copies exist and none is intact; why.
    Unreadable(String),
    /// The newest intact copy.
    Record(Box<Record>),
}

impl Record {
    /// A record of an appliance on which nothing happened yet.
    pub fn idle(active: Installed, fallback: Option<Installed>, now: &str) -> Record {
        Record::of(Idle::on(active, fallback, now), BTreeMap::new())
    }

    /// A record that knows nothing but what runs, and which schemas its data has.
    pub fn of(idle: Idle, schemas: BTreeMap<Name, u64>) -> Record {
        Record {
            phase: Phase::Idle(idle),
            last: None,
            failure: None,
            schemas,
            stopped: None,
        }
    }

    /// The same with an early failure, or without one.
    pub fn with_failure(&self, failure: Option<EarlyFailure>) -> Record {
        Record {
            failure,
            ..self.clone()
        }
    }

    /// The current phase.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The texts that are for people only, wherever they come from.
    fn texts(&mut self) -> Vec<&mut String> {
        let mut texts: Vec<&mut String> = Vec::new();
        let idle;
        match &mut self.phase {
            Phase::Idle(now) => idle = Some(now),
            Phase::Staging { op }
            | Phase::Staged { op }
            | Phase::Switching { op, .. }
            | Phase::Trial { op, .. } => idle = Some(&mut op.before),
            Phase::Reverting { op, cause, .. } => {
                idle = Some(&mut op.before);
                texts.push(&mut cause.message);
                texts.extend(&mut cause.output);
            }
        }
        texts.extend(
            idle.and_then(|idle| idle.trouble.as_mut())
                .map(|t| &mut t.what),
        );
        if let Some(last) = &mut self.last {
            texts.extend(&mut last.reason);
            texts.extend(&mut last.unproved);
            texts.extend(&mut last.output);
        }
        texts.extend(self.failure.as_mut().map(|failure| &mut failure.reason));
        texts
    }
}

/// The serialized form of a record: all members of all phases. (Deriving it for [`Phase`] would buffer the input first,
/// in three times as much code.)
#[derive(Deserialize)]
struct Members {
    phase: String,
    active: Option<Installed>,
    fallback: Option<Installed>,
    since: Option<String>,
    trouble: Option<Trouble>,
    lost: Option<Installed>,
    op: Option<Operation>,
    data: Option<DataState>,
    boots: Option<u32>,
    boot_id: Option<BootId>,
    lasted: Option<Lasted>,
    cause: Option<Cause>,
    last: Option<Attempt>,
    failure: Option<EarlyFailure>,
    #[serde(default)]
    schemas: BTreeMap<Name, u64>,
    stopped: Option<Box<Operation>>,
}

fn there<T>(phase: &str, name: &str, member: Option<T>) -> Result<T, String> {
    member.ok_or_else(|| format!("phase {phase}: {name} is missing"))
}

impl TryFrom<Members> for Record {
    type Error = String;

    fn try_from(members: Members) -> Result<Record, String> {
        let Members {
            phase,
            active,
            fallback,
            since,
            trouble,
            lost,
            op,
            data,
            boots,
            boot_id,
            lasted,
            cause,
            last,
            failure,
            schemas,
            stopped,
        } = members;
        let op = op.map(Operation::within_limits);
        let op = || there(&phase, "op", op);
        let data = || there(&phase, "data", data);
        let since = || there(&phase, "since", since);
        let phase = match &*phase {
            "idle" => Phase::Idle(Idle {
                active: there(&phase, "active", active)?,
                fallback,
                since: since()?,
                trouble,
                lost,
            }),
            "staging" => Phase::Staging { op: op()? },
            "staged" => Phase::Staged { op: op()? },
            "switching" => Phase::Switching {
                op: op()?,
                data: data()?,
            },
            "trial" => Phase::Trial {
                op: op()?,
                data: data()?,
                boots: there(&phase, "boots", boots)?,
                boot_id: there(&phase, "boot_id", boot_id)?,
                since: since()?,
                lasted,
            },
            "reverting" => Phase::Reverting {
                op: op()?,
                data: data()?,
                cause: there(&phase, "cause", cause)?,
            },
            other => return Err(format!("unknown phase '{}'", text::name(other))),
        };
        Ok(Record {
            phase,
            last,
            failure,
            schemas,
            stopped,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    format: u32,
    sequence: u64,
    record: Record,
}

/// Encodes one copy of the record. Its texts for people are sanitized, and cut as far as needed to keep within
/// [`MAX_BYTES`].
///
/// # Errors
/// It is too long even so.
pub fn encode(record: &Record, sequence: u64) -> Result<Vec<u8>, String> {
    let mut envelope = Envelope {
        format: FORMAT,
        sequence,
        record: record.clone(),
    };
    let mut text = String::new();
    for most in TEXTS {
        for text in envelope.record.texts() {
            *text = text::clean(text, most);
        }
        text = serde_json::to_string(&envelope).map_err(|e| e.to_string())?;
        if text.len() as u64 + CHECKSUM <= MAX_BYTES {
            break;
        }
    }
    if text.len() as u64 + CHECKSUM > MAX_BYTES {
        return Err(format!("it would be longer than {MAX_BYTES} bytes"));
    }
    let digest = Digest::of(text.as_bytes());
    text.push_str(&format!("\n{digest}\n"));
    Ok(text.into_bytes())
}

/// Decodes one copy of the record: its sequence number, and itself. An unknown format is an error.
pub fn decode(bytes: &[u8]) -> Result<(u64, Record), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let (line, rest) = text
        .split_once('\n')
        .ok_or("its checksum line is missing")?;
    if rest != format!("{}\n", Digest::of(line.as_bytes())) {
        return Err("its checksum does not match".into());
    }
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = json::parse_str(line)?;
    if format != FORMAT {
        return Err(format!(
            "format {format} is not known (this version reads {FORMAT})"
        ));
    }
    let envelope: Envelope = json::parse_str(line)?;
    Ok((envelope.sequence, envelope.record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Services;
    use crate::model::operation::{CauseKind, FailedCheck, OperationKind};
    use crate::model::slot::Set;
    use qx_release::error::Exit;
    use qx_release::manifest::{MAX_SECONDS, Service};

    #[test]
    fn a_record_survives_encoding_and_any_damage_is_seen() {
        let record = Record::idle(Installed::unknown_factory(), None, "2026-01-01T00:00:00Z");
        let bytes = encode(&record, 7).unwrap();
        assert_eq!(decode(&bytes).unwrap(), (7, record));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "bit flipped in byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn records_that_shipped_stay_readable() {
        for golden in [
            &include_bytes!("../../tests/golden/state-1-trial.json")[..],
            include_bytes!("../../tests/golden/state-1-trial-data.json"),
            include_bytes!("../../tests/golden/state-1-trial-method.json"),
            include_bytes!("../../tests/golden/state-1-trial-exchange.json"),
        ] {
            let (sequence, record) = decode(golden).unwrap();
            assert_eq!(sequence, 12);
            assert_eq!(record.phase.name(), "trial");
            assert_eq!(record.operation().unwrap().to.set, Set::B);
            let again = encode(&record, 12).unwrap();
            assert_eq!(decode(&again).unwrap().1, record);
        }
    }

    /// An operation as large as manifest and configuration can make it, with texts that nobody has looked at.
    fn large() -> Record {
        let name: Name = "a".repeat(64).parse().unwrap();
        let service = |number: usize| Service {
            name: format!("s{number}").parse().unwrap(),
            runs: format!("bin/{}", "x".repeat(200)).parse().unwrap(),
            uses: vec![name.clone(); 5],
            oneshot: false,
            order: i32::MIN,
            leaves: Vec::new(),
        };
        let check = |number: usize| {
            FailedCheck {
            check: json::parse_str(&format!(
                r#"{{"type":"http","url":"http://h/{number}/{}","json":{{"pointer":"/{}","equals":"{}"}}}}"#,
                "u".repeat(300),
                "p".repeat(100),
                "e".repeat(100)
            ))
            .unwrap(),
            how: "字".repeat(300),
        }
        };
        let now = "2026-01-01T00:00:00Z";
        let installed = Installed::unknown_factory();
        let mut op = Operation::new(
            crate::model::id::OperationId::new(0x0123_4567_89ab_cdef),
            OperationKind::Install,
            Idle::on(installed.clone(), None, now),
            installed,
            now,
        );
        op.services = (0..1000).map(service).collect();
        op.ran = op.services.iter().map(|s| s.name.clone()).collect();
        op.failed_before = (0..1000).map(check).collect();
        op.manager = Services::Commands {
            start: vec!["x".repeat(1 << 20)],
            stop: vec!["x".into()],
            status: vec!["x".into()],
            pidfile: None,
        };
        let hostile = "\u{1b}]0;\u{202e}\n字".repeat(1 << 18);
        op.before.trouble = Some(Trouble {
            what: hostile.clone(),
            needs_person: true,
        });
        let mut last = op.attempt(Exit::Failed, Some(hostile.clone()), now);
        last.unproved = vec!["\u{1b}]0;\u{202e}\n字".repeat(1 << 10); 1000];
        last.output = vec![hostile.clone(); 10];
        let cause = Cause {
            output: vec![hostile.clone(); 10],
            ..Cause::new(CauseKind::Release, hostile.clone())
        };
        let data = DataState::Untouched;
        Record {
            phase: Phase::Reverting { op, data, cause },
            last: Some(last),
            failure: Some(EarlyFailure {
                at: now.into(),
                result: Exit::Failed,
                reason: hostile,
            }),
            schemas: BTreeMap::new(),
            stopped: None,
        }
    }

    #[test]
    fn whatever_is_written_can_be_read_again() {
        let record = large();
        let bytes = encode(&record, 3).unwrap();
        assert!(bytes.len() as u64 <= MAX_BYTES, "{}", bytes.len());
        let (_, mut read) = decode(&bytes).unwrap();
        assert_eq!(read.operation().unwrap().services.len(), 1000);
        assert_eq!(read.operation().unwrap().failed_before.len(), 1000);
        for text in read.texts() {
            assert!(text.starts_with("\\u{1b}]0;\\u{202e}"), "{text}");
            assert!(!text.contains(char::is_control));
        }
        assert_eq!(encode(&read, 3).unwrap(), bytes, "it stays as it is");
        let mut huge = record;
        if let Phase::Reverting { op, .. } = &mut huge.phase {
            op.started = "x".repeat(MAX_BYTES as usize);
        }
        assert!(encode(&huge, 3).unwrap_err().contains("longer"));
    }

    #[test]
    fn no_number_of_an_earlier_version_is_too_large_to_wait_for() {
        let mut record = large();
        if let Phase::Reverting { op, .. } = &mut record.phase {
            op.service_timeout_s = u64::MAX;
            op.data = vec![
                json::parse_str(&format!(
                    r#"{{"name":"db","method":"files","place":"/data/db","timeout_s":{}}}"#,
                    u64::MAX
                ))
                .unwrap(),
            ];
        }
        let (_, read) = decode(&encode(&record, 1).unwrap()).unwrap();
        let op = read.operation().unwrap();
        assert_eq!(op.service_timeout_s, MAX_SECONDS);
        assert_eq!(op.data[0].timeout_s, MAX_SECONDS);
    }

    #[test]
    fn an_unknown_format_is_an_error() {
        let record = Record::idle(Installed::unknown_factory(), None, "2026-01-01T00:00:00Z");
        let text = String::from_utf8(encode(&record, 1).unwrap()).unwrap();
        let line = text
            .lines()
            .next()
            .unwrap()
            .replace("\"format\":1", "\"format\":2");
        let digest = Digest::of(line.as_bytes());
        let error = decode(format!("{line}\n{digest}\n").as_bytes()).unwrap_err();
        assert!(error.contains("format 2"), "{error}");
    }
}
