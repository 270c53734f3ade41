//! Data that is kept aside: what it is, whose, and for how long.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::dataset::{DataSet, Side};
use crate::model::id::OperationId;
use crate::model::moment::{Lasted, Moment};
use crate::model::slot::Installed;
use qx_release::digest::Digest;
use qx_release::manifest::Name;

/// The only format of a note of what is kept.
pub const FORMAT: u32 = 1;

/// Where kept data is: of which operation, and on which side of its exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCopy {
    /// The operation.
    pub id: OperationId,
    /// The side.
    pub side: Side,
}

/// Data that is kept aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// [`FORMAT`].
    pub format: u32,
    /// Of which operation it is.
    pub id: OperationId,
    /// On which side of its exchange it lies.
    pub side: Side,
    /// Increases with each note, since dates may be wrong.
    pub number: u64,
    /// How it came to be kept.
    pub reason: KeptReason,
    /// The release that used it last.
    pub release: Installed,
    /// The data sets.
    pub data: Vec<DataSet>,
    /// The schema of each, where it is known.
    pub schemas: BTreeMap<Name, u64>,
    /// From when on it was the live data, for people; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Until when.
    pub until: String,
    /// The digest of each data set's files, as they were set aside; absent until they were measured, and for data that is not
    /// files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<Name, Digest>,
    /// For how long it has been kept. Absent until the first boot that sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasted: Option<Lasted>,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kept data {} (of {}, until {})",
            self.id, self.release, self.until
        )
    }
}

impl Kept {
    /// Where it is.
    pub fn copy(&self) -> KeptCopy {
        KeptCopy {
            id: self.id,
            side: self.side,
        }
    }

    /// It has been kept until now.
    pub fn age(&mut self, now: &Moment) {
        self.lasted = Some(match &self.lasted {
            Some(lasted) => lasted.until(now),
            None => Lasted::since(now),
        });
    }

    /// One line for people: what it is, whose, from when, why it is kept, and for how long yet if it is for `keep_s`.
    pub fn describe(&self, keep_s: Option<u64>) -> String {
        let set = |set: &DataSet| match self.schemas.get(&set.name) {
            Some(schema) => format!("{} at schema {schema}", set.name),
            None => format!("{} at an unknown schema", set.name),
        };
        let sets: Vec<String> = self.data.iter().map(set).collect();
        let why = match self.reason {
            KeptReason::Open => "belongs to the open operation",
            KeptReason::Unexplained => {
                "the update state was lost during the exchange: `data restore` makes it live, `data drop` keeps the \
                 live data"
            }
            KeptReason::Replaced => "was live before an update",
            KeptReason::SetAside => "was set aside by a rollback or a restore",
        };
        let since = match &self.since {
            Some(since) => format!("from {since} "),
            None => String::new(),
        };
        format!(
            "{}  {}: used by {} {since}until {}; {why}{}",
            self.id,
            sets.join(", "),
            self.release,
            self.until,
            self.remaining(keep_s)
        )
    }

    fn remaining(&self, keep_s: Option<u64>) -> String {
        let goes = matches!(self.reason, KeptReason::Replaced | KeptReason::SetAside);
        let Some(keep_s) = keep_s.filter(|_| goes) else {
            return String::new();
        };
        let lasted = self.lasted.as_ref().map_or(0, |lasted| lasted.seconds);
        let hours = keep_s.saturating_sub(lasted) / 3600;
        format!(
            "; kept for another {} days {} hours, unless its space is needed",
            hours / 24,
            hours % 24
        )
    }

    /// Whether it has data of this set.
    pub fn has(&self, name: &Name) -> bool {
        self.data.iter().any(|set| set.name == *name)
    }
}

/// How data came to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptReason {
    /// An operation is open, or was cut short, that has copies of it.
    Open,
    /// The same, but the update state was lost meanwhile: only a person can say which data is the right one.
    Unexplained,
    /// It was the live data until a release came that needed another schema.
    Replaced,
    /// It is live data that a rollback or a restore set aside.
    SetAside,
}
