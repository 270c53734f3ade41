//! The phases that an appliance goes through. Which follows which is in [`crate::model::transition`].

use serde::{Deserialize, Serialize};

use crate::model::id::BootId;
use crate::model::idle::Idle;
use crate::model::moment::Lasted;
use crate::model::operation::{Cause, Operation};

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
        /// How far the change of the data is.
        data: DataState,
    },
    /// The link has moved; the release is to be proved.
    Trial {
        /// The operation.
        op: Operation,
        /// How far the change of the data is.
        data: DataState,
        /// How many further boots this trial has seen.
        boots: u32,
        /// The boot that was counted last.
        boot_id: BootId,
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
        /// How far the change of the data is.
        data: DataState,
        /// Why.
        cause: Cause,
    },
}

/// How far an operation's change of the data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataState {
    /// The live data is what it was; of copies there may be some.
    Untouched,
    /// It may have been exchanged: going back means to exchange it back, however far that came.
    Exchanged,
    /// It was exchanged back, which must not be done again.
    Restored,
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
