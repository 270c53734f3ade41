//! How long something has lasted, by the clock of each boot.

use serde::{Deserialize, Serialize};

use crate::model::id::BootId;

/// A moment by the time since boot, suspended time included: a clock that nobody can set. The date does not tell how much
/// time has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Which boot.
    pub boot_id: BootId,
    /// Seconds since it began.
    pub uptime_s: u64,
}

/// How long something has lasted, as far as it was observed: the time between boots and the unobserved end of a boot are
/// unknown and not counted.
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
