//! The record: which phase an appliance is in, and everything that undoing it needs. A value: every
//! transition here changes memory only; [`crate::store`] writes it.
//!
//! On disk a record is one line of JSON in an envelope with a format and a sequence number, then one line
//! with the digest of the first. Two copies are kept; the intact one with the higher number counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::config::{Config, Limits, Services};
use crate::model::dataset::{DataPlan, DataSet};
use crate::model::slot::{Installed, Set};
use qx_release::digest::Digest;
use qx_release::error::Exit;
use qx_release::json;
use qx_release::manifest::{Check, MAX_SECONDS, Name, Service};
use qx_release::text;

/// The only record format there is.
pub const FORMAT: u32 = 1;
/// A copy of a record is at most this long, in bytes. It holds up to a whole manifest and a whole configuration, of 1 MiB each
/// but for what they leave out, and how each of 1000 checks failed.
pub const MAX_BYTES: u64 = 8 << 20;
/// How long, in characters, the texts for people in it may be; less, if it would become longer than it may be.
const TEXTS: [usize; 3] = [text::LINE, 400, 40];

/// How long the line with the digest is, with both ends.
const CHECKSUM: u64 = 66;

/// What is durably known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Members")]
pub struct Record {
    /// What the appliance is in the middle of.
    #[serde(flatten)]
    pub phase: Phase,
    /// The last operation that ended, and how.
    pub last: Option<Attempt>,
    /// An `apply` since then that failed before it had an operation: the network, trust, space.
    pub failure: Option<EarlyFailure>,
    /// The schema number of each data set, as the last confirmed release left it.
    pub schemas: BTreeMap<Name, u64>,
    /// An operation that was cut short after it had stopped services: whoever comes next on the running system starts them.
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

/// The phases. Their order in an update is the order here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum Phase {
    /// Nothing is going on.
    Idle(Idle),
    /// A release is being written into `NAME.next`.
    Staging {
        /// The operation.
        op: Operation,
    },
    /// A release lies complete and verified in the alternate slot.
    Staged {
        /// The operation.
        op: Operation,
    },
    /// Services are being stopped, data saved and migrated; the link may have moved.
    Switching {
        /// The operation.
        op: Operation,
        /// How far the data's protection is.
        data: DataState,
    },
    /// The link has moved; the release is to be proved.
    Trial {
        /// The operation.
        op: Operation,
        /// How far the data's protection is.
        data: DataState,
        /// How many further boots this trial has seen.
        boots: u32,
        /// The boot that was counted last.
        boot_id: String,
        /// When it began (RFC 3339), for people.
        since: String,
        /// How long it has lasted. Absent in what earlier versions wrote.
        #[serde(skip_serializing_if = "Option::is_none")]
        lasted: Option<Lasted>,
    },
    /// The way back.
    Reverting {
        /// The operation.
        op: Operation,
        /// How far the data's protection is.
        data: DataState,
        /// Why.
        cause: Cause,
    },
}

/// A moment, by a clock that nobody sets: how long a boot has lasted then, suspended time included. What the date is says
/// nothing of how much time has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Which boot.
    pub boot_id: String,
    /// Seconds since it began.
    pub uptime_s: u64,
}

/// How long something has gone on, as far as boots were seen to last: of one whose end nobody saw, and of the time between
/// boots, nobody knows more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lasted {
    /// Seconds.
    pub seconds: u64,
    /// Until when that is.
    pub until: Moment,
}

impl Lasted {
    /// It begins.
    pub fn since(now: &Moment) -> Lasted {
        Lasted {
            seconds: 0,
            until: now.clone(),
        }
    }

    /// It goes on.
    pub fn until(&self, now: &Moment) -> Lasted {
        // Another boot has seen nothing but this.
        let more = match now.boot_id == self.until.boot_id {
            true => now.uptime_s.saturating_sub(self.until.uptime_s),
            false => now.uptime_s,
        };
        Lasted {
            seconds: self.seconds.saturating_add(more),
            until: now.clone(),
        }
    }
}

/// Nothing is going on: what runs, and what it would fall back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// What runs.
    pub active: Installed,
    /// What is chosen if the active set is damaged; before the factory set, which is always there.
    pub fallback: Option<Installed>,
    /// Since when it runs (RFC 3339).
    pub since: String,
    /// What a person should know or do.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// The release that ran here until its files were damaged: what `apply --repair` fetches again.
    #[serde(default)]
    pub lost: Option<Installed>,
}

/// Something that a person should know, or do something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// One sentence.
    pub what: String,
    /// Whether the appliance can not help itself.
    pub needs_person: bool,
}

/// Whether data that a migration touches was saved, or restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataState {
    /// Nothing was saved: nothing is to be restored.
    Untouched,
    /// A complete snapshot under this operation's id exists.
    Saved,
    /// The snapshot was restored: never restore again.
    Restored,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// Installs a release.
    Install,
    /// A person goes back to the previous release.
    Rollback,
    /// A person goes back to the factory set.
    Factory,
    /// A newer image's factory set takes over, and migrates the data.
    Image,
}

/// One install or rollback, with all that its undoing needs: recovery depends on no configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Random, 16 hexadecimal digits.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// When it began (RFC 3339).
    pub started: String,
    /// What ran before, and what that would have fallen back to.
    pub before: Idle,
    /// What is to run.
    pub to: Installed,
    /// How often its switch was cut short.
    #[serde(default)]
    pub attempts: u32,
    /// The services whose files change.
    #[serde(default)]
    pub services: Vec<Service>,
    /// The services that ran when the switch began and were to be stopped, dependents included, in the
    /// order of starting.
    #[serde(default)]
    pub ran: Vec<Name>,
    /// How services are controlled.
    pub manager: Services,
    /// Seconds a service may take to start or stop.
    pub service_timeout_s: u64,
    /// How many boots its trial may take.
    pub trial_boots: u32,
    /// Seconds after which its trial's data is not restored unasked.
    pub trial_max_age_s: u64,
    /// The data sets that it changes, and how each is saved and restored.
    #[serde(default)]
    pub data: Vec<DataSet>,
    /// How it changes them.
    #[serde(default)]
    pub change: DataChange,
    /// The schema of each data set once it has succeeded.
    #[serde(default)]
    pub schemas: BTreeMap<Name, u64>,
    /// The user that the migration runs as. Absent: root.
    #[serde(default)]
    pub migration_user: Option<String>,
    /// When the data sets were saved (RFC 3339).
    #[serde(default)]
    pub saved_at: Option<String>,
    /// The data that was set aside on the way back.
    #[serde(default)]
    pub discarded: Option<Discarded>,
    /// The health checks that failed before the switch, and how: they do not condemn the release by failing just so again.
    #[serde(default)]
    pub failed_before: Vec<FailedCheck>,
    /// The services that did not run before the switch: they stay so, and nothing is proved of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub idle: Vec<Name>,
    /// The most bytes of discarded data that are kept.
    #[serde(default)]
    pub discarded_bytes: u64,
}

/// What an operation does to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataChange {
    /// Nothing: it fits as it is.
    #[default]
    None,
    /// The new set's migration is run.
    Migrate,
    /// The old set's way down is run.
    Down,
    /// It is set aside, and the new set begins without any.
    Discard,
}

/// Data that was written after a snapshot, and is not in use any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// From when on it was written (RFC 3339): the snapshot's time.
    pub from: String,
    /// Until when (RFC 3339).
    pub to: String,
    /// Where it is kept; nothing if it was more than may be kept.
    #[serde(default)]
    pub kept: Option<String>,
}

impl Operation {
    /// An operation as it begins: no service is known yet, and no data changes.
    pub fn new(
        id: String,
        kind: OperationKind,
        before: Idle,
        to: Installed,
        now: &str,
    ) -> Operation {
        let limits = Limits::default();
        Operation {
            id,
            kind,
            started: now.to_owned(),
            before,
            to,
            attempts: 0,
            services: Vec::new(),
            ran: Vec::new(),
            manager: Services::None {},
            service_timeout_s: limits.service_timeout_s,
            trial_boots: limits.trial_boots,
            trial_max_age_s: limits.trial_max_age_s,
            data: Vec::new(),
            change: DataChange::None,
            schemas: BTreeMap::new(),
            migration_user: None,
            saved_at: None,
            discarded: None,
            failed_before: Vec::new(),
            idle: Vec::new(),
            discarded_bytes: limits.discarded_bytes,
        }
    }

    /// Under this configuration.
    pub fn under_config(self, config: &Config) -> Operation {
        let limits = &config.limits;
        Operation {
            manager: config.services.clone(),
            service_timeout_s: limits.service_timeout_s,
            trial_boots: limits.trial_boots,
            trial_max_age_s: limits.trial_max_age_s,
            migration_user: config.migration_user.clone(),
            discarded_bytes: limits.discarded_bytes,
            ..self
        }
    }

    /// With this done to the data.
    pub fn with_data_plan(self, to: DataPlan) -> Operation {
        Operation {
            change: to.change,
            data: to.data,
            schemas: to.schemas,
            ..self
        }
    }

    /// Whether a service is stopped because of the data.
    pub fn uses_data(&self, service: &Name) -> bool {
        let all = self.change == DataChange::Migrate && self.data.is_empty();
        all || self.data.iter().any(|set| set.used_by(service))
    }

    /// What ran before.
    pub fn from(&self) -> &Installed {
        &self.before.active
    }
}

/// A health check that failed before a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// All of it.
    pub check: Check,
    /// In which way it failed.
    pub how: String,
}

/// Why an operation is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// What kind of thing went wrong.
    pub kind: CauseKind,
    /// One sentence.
    pub message: String,
    /// The last lines of the migration's output, if it was the migration.
    #[serde(default)]
    pub output: Vec<String>,
}

/// What kind of thing went wrong; decides whether the release is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CauseKind {
    /// The power, or the kernel: says nothing about the release.
    Power,
    /// Too many boots in the trial: a person may have been impatient. Held.
    Boots,
    /// A person said so. Held.
    Person,
    /// The release itself: its migration, its proof, its health. Quarantined.
    Release,
    /// The appliance: a slot that no longer verifies, a service that cannot be stopped. Says nothing about
    /// the release.
    Appliance,
}

/// An operation that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Of the operation.
    pub id: String,
    /// What it did.
    pub kind: OperationKind,
    /// What ran before.
    pub from: Installed,
    /// What was to run.
    pub to: Installed,
    /// When it began (RFC 3339).
    pub started: String,
    /// When it ended (RFC 3339).
    pub ended: String,
    /// How it ended, as the exit code said.
    pub result: Exit,
    /// Why, where it did not end well.
    #[serde(default)]
    pub reason: Option<String>,
    /// What keeps an end that is good from being proved, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unproved: Vec<String>,
    /// The last lines of the migration's output, where it failed.
    #[serde(default)]
    pub output: Vec<String>,
    /// The data that was given up.
    #[serde(default)]
    pub discarded: Option<Discarded>,
}

/// An attempt that failed before anything was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyFailure {
    /// When (RFC 3339).
    pub at: String,
    /// As what, as the exit code said.
    pub result: Exit,
    /// Why.
    pub reason: String,
}

impl Cause {
    /// A cause that has no output of a migration.
    pub fn new(kind: CauseKind, message: impl Into<String>) -> Cause {
        Cause {
            kind,
            message: message.into(),
            output: Vec::new(),
        }
    }
}

impl Idle {
    /// A set that runs from now on without trouble.
    pub fn on(active: Installed, fallback: Option<Installed>, now: &str) -> Idle {
        Idle {
            active,
            fallback,
            since: now.to_owned(),
            trouble: None,
            lost: None,
        }
    }
}

impl Record {
    /// A record of an appliance on which nothing happened yet.
    pub fn idle(active: Installed, fallback: Option<Installed>, now: &str) -> Record {
        Record {
            phase: Phase::Idle(Idle::on(active, fallback, now)),
            last: None,
            failure: None,
            schemas: BTreeMap::new(),
            stopped: None,
        }
    }

    /// The schema of each data set as it lies there now, whichever set is to run.
    pub fn schemas_now(&self) -> &BTreeMap<Name, u64> {
        match &self.phase {
            Phase::Trial { op, .. } => &op.schemas,
            _ => &self.schemas,
        }
    }

    /// Whether a trial changed data, and has lasted longer than its data may be restored unasked.
    pub fn is_stale_trial(&self, now: &Moment) -> bool {
        match &self.phase {
            Phase::Trial {
                op,
                data: DataState::Saved,
                lasted: Some(lasted),
                ..
            } => lasted.until(now).seconds > op.trial_max_age_s,
            _ => false,
        }
    }

    /// What runs, if nothing more happens to an open operation.
    pub fn idle_when_ended(&self) -> Idle {
        match &self.phase {
            Phase::Idle(idle) => idle.clone(),
            Phase::Staging { op } => op.before.clone(),
            Phase::Staged { op } | Phase::Switching { op, .. } | Phase::Reverting { op, .. } => {
                op.back()
            }
            Phase::Trial { op, .. } => Idle {
                active: op.to.clone(),
                fallback: Some(op.from().clone()),
                ..op.back()
            },
        }
    }

    /// The operation that is open, if any.
    pub fn operation(&self) -> Option<&Operation> {
        match &self.phase {
            Phase::Idle(_) => None,
            Phase::Staging { op }
            | Phase::Staged { op }
            | Phase::Switching { op, .. }
            | Phase::Trial { op, .. }
            | Phase::Reverting { op, .. } => Some(op),
        }
    }

    /// The same record in another phase. Does not write to the disk.
    pub fn with(&self, phase: Phase) -> Record {
        Record {
            phase,
            ..self.clone()
        }
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

    /// The operation ended: back to idle, with how it ended. Does not write to the disk.
    pub fn ended(&self, idle: Idle, attempt: Attempt) -> Record {
        Record {
            phase: Phase::Idle(idle),
            last: Some(attempt),
            failure: None,
            schemas: self.schemas.clone(),
            stopped: None,
        }
    }
}

impl Phase {
    /// Whether services may be down, or the link moved.
    pub fn is_under_way(&self) -> bool {
        matches!(
            self,
            Phase::Switching { .. } | Phase::Trial { .. } | Phase::Reverting { .. }
        )
    }

    /// As `status` and the record call it.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Idle(_) => "idle",
            Phase::Staging { .. } => "staging",
            Phase::Staged { .. } => "staged",
            Phase::Switching { .. } => "switching",
            Phase::Trial { .. } => "trial",
            Phase::Reverting { .. } => "reverting",
        }
    }
}

impl Operation {
    /// The report of this operation's end.
    pub fn attempt(&self, result: Exit, reason: Option<String>, now: &str) -> Attempt {
        Attempt {
            id: self.id.clone(),
            kind: self.kind,
            from: self.from().clone(),
            to: self.to.clone(),
            started: self.started.clone(),
            ended: now.to_owned(),
            result,
            reason,
            unproved: Vec::new(),
            output: Vec::new(),
            discarded: self.discarded.clone(),
        }
    }

    /// Idle on what ran before, its fallback as far as this operation has left it: a slot that the operation gave to the
    /// new release no longer holds the old fallback.
    pub fn back(&self) -> Idle {
        let overwritten = |fallback: &Installed| {
            self.kind == OperationKind::Install && fallback.set == self.to.set
        };
        Idle {
            fallback: self.before.fallback.clone().filter(|f| !overwritten(f)),
            ..self.before.clone()
        }
    }
}

/// A release that is not to be tried again by itself, by the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The digest of the release's manifest.
    pub manifest: Digest,
    /// Its version, for people.
    pub version: Option<semver::Version>,
    /// Whether it failed here, or a person or the boot limit left it.
    pub kind: RefusalKind,
    /// Why.
    pub reason: String,
    /// When (RFC 3339).
    pub at: String,
}

/// Why a release is not tried again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusalKind {
    /// It failed on this appliance.
    Quarantined,
    /// A person rolled it back, or its trial saw too many boots.
    Held,
}

/// The exit code of an operation that was undone, by what runs now.
pub fn exit_of_return_to(set: Set) -> Exit {
    match set {
        Set::Factory => Exit::BackToFactory,
        Set::A | Set::B => Exit::BackToPrevious,
    }
}

/// A record as it is written: all members of all phases. (Derived for [`Phase`], reading would first make a tree of
/// what it reads, in three times as much code.)
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
    boot_id: Option<String>,
    lasted: Option<Lasted>,
    cause: Option<Cause>,
    last: Option<Attempt>,
    failure: Option<EarlyFailure>,
    #[serde(default)]
    schemas: BTreeMap<Name, u64>,
    stopped: Option<Box<Operation>>,
}

impl Operation {
    /// An earlier version took any number. A wait of that long cannot be told from one that is longer.
    fn within_limits(mut self) -> Operation {
        self.service_timeout_s = self.service_timeout_s.min(MAX_SECONDS);
        for set in &mut self.data {
            set.timeout_s = set.timeout_s.min(MAX_SECONDS);
        }
        self
    }
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
            other => return Err(format!("phase '{}' is not known", text::name(other))),
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

/// Encodes one copy of the record. Its texts for people are clean, and as short as it takes to be read again.
///
/// # Errors
/// It is too long without them.
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
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
    let (line, rest) = text.split_once('\n').ok_or("it has no checksum line")?;
    if rest.trim_end() != Digest::of(line.as_bytes()).to_string() {
        return Err("its checksum does not fit".into());
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

    #[test]
    fn a_record_survives_encoding_and_any_damage_is_seen() {
        let record = Record::idle(Installed::unknown_factory(), None, "2026-01-01T00:00:00Z");
        let bytes = encode(&record, 7).unwrap();
        assert_eq!(decode(&bytes).unwrap(), (7, record));
        for at in 0..bytes.len() - 1 {
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
            "0123456789abcdef".into(),
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
            op.id = "x".repeat(MAX_BYTES as usize);
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
