//! An operation: one install or way back, with all that undoing it needs; and the report of how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::config::{Config, Limits, MigrationLimits, Services};
use crate::model::dataplan::{DataChange, DataPlan};
use crate::model::dataset::{DataSet, Side};
use crate::model::id::OperationId;
use crate::model::idle::Idle;
use crate::model::kept::KeptCopy;
use crate::model::slot::{Installed, Set};
use qx_release::error::{ErrorKind, Exit};
use qx_release::manifest::{Check, MAX_SECONDS, Name, Service};

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
    /// A person makes data that was kept live again, for the set that runs.
    Data,
}

impl OperationKind {
    /// Whether it goes back to an older set.
    pub fn goes_back(self) -> bool {
        matches!(self, OperationKind::Rollback | OperationKind::Factory)
    }
}

/// One install or rollback, with all that its undoing needs: recovery depends on no configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Which.
    pub id: OperationId,
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
    /// Seconds after which its trial's data is not restored automatically.
    pub trial_max_age_s: u64,
    /// The data sets that it changes, and how each is copied and exchanged.
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
    /// What the migration may take.
    #[serde(default, skip_serializing_if = "MigrationLimits::is_empty")]
    pub migration_limits: MigrationLimits,
    /// The kept data that becomes live again. Absent: the copy that this operation makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptCopy>,
    /// When the data was exchanged (RFC 3339).
    #[serde(default)]
    pub exchanged_at: Option<String>,
    /// The data that was set aside on the way back.
    #[serde(default)]
    pub discarded: Option<Discarded>,
    /// The health checks that failed before the switch, and how: failing in the same way again does not condemn the
    /// release.
    #[serde(default)]
    pub failed_before: Vec<FailedCheck>,
    /// The services that did not run before the switch: they stay stopped and are not verified.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub idle: Vec<Name>,
    /// The crash loop that it ends by going back, if it was not a person who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
    /// The medium that its release came on (`LABEL=…`): the receipt goes there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub medium: Option<String>,
}

/// Data written under a release that was left again; it is no longer in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// From when on it was written (RFC 3339).
    pub from: String,
    /// Until when (RFC 3339).
    pub to: String,
    /// The id under which it is kept (see `qx-update data list`), while it is.
    #[serde(default)]
    pub kept: Option<String>,
}

impl Operation {
    /// An operation as it begins: no service is known yet, and no data changes.
    pub fn new(
        id: OperationId,
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
            migration_limits: MigrationLimits::default(),
            kept: None,
            exchanged_at: None,
            discarded: None,
            failed_before: Vec::new(),
            idle: Vec::new(),
            undoes: None,
            medium: None,
        }
    }

    /// The operation with the settings of this configuration.
    pub fn under_config(self, config: &Config) -> Operation {
        let limits = &config.limits;
        Operation {
            manager: config.services.clone(),
            service_timeout_s: limits.service_timeout_s,
            trial_boots: limits.trial_boots,
            trial_max_age_s: limits.trial_max_age_s,
            migration_user: config.migration_user.clone(),
            migration_limits: limits.migration.clone(),
            ..self
        }
    }

    /// The operation with this plan for the data.
    pub fn with_data_plan(self, to: DataPlan) -> Operation {
        Operation {
            change: to.change,
            data: to.data,
            schemas: to.schemas,
            kept: to.kept,
            ..self
        }
    }

    /// Where the data lies that becomes live: of which operation, and on which side.
    pub fn copy(&self) -> KeptCopy {
        self.kept.unwrap_or(KeptCopy {
            id: self.id,
            side: Side::Next,
        })
    }

    /// Whether a service is stopped because of the data.
    pub fn uses_data(&self, service: &Name) -> bool {
        let all = self.change == DataChange::Migrate && self.data.is_empty();
        all || self.data.iter().any(|set| set.used_by(service))
    }

    /// Whether it changes a data set.
    pub fn changes(&self, data: &Name) -> bool {
        self.data.iter().any(|set| set.name == *data)
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

/// An operation that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Of the operation.
    pub id: OperationId,
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
    /// What a successful end left unproved, a sentence each.
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
    /// How it ended, as the exit code said.
    pub result: Exit,
    /// Why.
    pub reason: String,
}

impl Operation {
    /// The report of this operation's end.
    pub fn attempt(&self, result: Exit, reason: Option<String>, now: &str) -> Attempt {
        Attempt {
            id: self.id,
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

impl Operation {
    /// Caps the timeouts: earlier versions accepted any number.
    pub(super) fn within_limits(mut self) -> Operation {
        self.service_timeout_s = self.service_timeout_s.min(MAX_SECONDS);
        for set in &mut self.data {
            set.timeout_s = set.timeout_s.min(MAX_SECONDS);
        }
        self
    }
}

/// How an operation that was undone ended, by what runs now.
pub fn return_to(set: Set) -> ErrorKind {
    match set {
        Set::Factory => ErrorKind::BackToFactory,
        Set::A | Set::B => ErrorKind::BackToPrevious,
    }
}
