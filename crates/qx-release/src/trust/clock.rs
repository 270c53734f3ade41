//! What time it is, on a machine whose clock may be wrong or missing.
//!
//! The rule: time is never before the *floor*, which is the day this program was built or, if later, the latest signing time
//! (`x-issued`) in verified metadata. A system clock at or after the floor is trusted. A clock before it is wrong, and so is
//! one further ahead than any appliance lives: the floor is used instead, and *freshness is not verified*: metadata that
//! expired before the floor are refused as usual, but newer metadata may have been withheld since then without being
//! noticed. Only signed data moves the floor, so a clock that was wrong once leaves no trace.

use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);
/// Clocks of publishers and appliances differ: a clock that is behind the floor by at most this is still trusted.
const SKEW: Duration = DAY;
/// A clock that is further ahead of the build than this is not trusted: no appliance is older, and the times with which
/// boards without a battery start (2099, 2106, …) are beyond it.
const LIFE: Duration = Duration::from_secs(25 * 365 * 86_400);

/// The system's clock, and what is known without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Clock {
    system: SystemTime,
    floor: SystemTime,
    last: SystemTime,
}

impl Clock {
    /// `system` is what the clock says, `built` when this program was made.
    pub fn new(system: SystemTime, built: SystemTime) -> Clock {
        Clock {
            system,
            floor: built,
            last: built + LIFE,
        }
    }

    /// Raises the floor: verified metadata were signed at that time, if they say when.
    pub fn not_before(&mut self, issued: Option<SystemTime>) {
        self.floor = issued.map_or(self.floor, |issued| issued.max(self.floor));
    }

    /// What expiry is measured against.
    pub fn now(&self) -> SystemTime {
        if self.system > self.last {
            self.floor
        } else {
            self.system.max(self.floor)
        }
    }

    /// What the system's clock says, right or wrong.
    pub fn system(&self) -> SystemTime {
        self.system
    }

    /// Whether the system clock is trusted, so that [`Clock::now`] is the current time and not only a time in the past.
    pub fn is_believed(&self) -> bool {
        self.system + SKEW >= self.floor && self.system <= self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn day(day: u64) -> SystemTime {
        UNIX_EPOCH + DAY * u32::try_from(day).unwrap()
    }

    #[test]
    fn the_clock_is_believed_between_the_floor_and_the_end_of_all_appliances() {
        const BUILT: u64 = 20_000;
        const ISSUED: u64 = 20_100;
        for (system, issued, now, believed) in [
            // No battery: the epoch, or the day some other program was built.
            (0, None, BUILT, false),
            (19_000, None, BUILT, false),
            (0, Some(ISSUED), ISSUED, false),
            (20_050, Some(ISSUED), ISSUED, false),
            // What was signed before the build says nothing new.
            (0, Some(15_000), BUILT, false),
            // Skew: the later of both is the time.
            (ISSUED - 1, Some(ISSUED), ISSUED, true),
            (ISSUED - 2, Some(ISSUED), ISSUED, false),
            // A clock that is set.
            (BUILT, None, BUILT, true),
            (ISSUED, Some(ISSUED), ISSUED, true),
            (20_200, Some(ISSUED), 20_200, true),
            (BUILT + 25 * 365, Some(ISSUED), BUILT + 25 * 365, true),
            // 2106, and a clock that overflowed.
            (BUILT + 25 * 365 + 1, Some(ISSUED), ISSUED, false),
            (49_710, None, BUILT, false),
        ] {
            let mut clock = Clock::new(day(system), day(BUILT));
            clock.not_before(issued.map(day));
            assert_eq!(
                (clock.now(), clock.is_believed()),
                (day(now), believed),
                "{system} {issued:?}"
            );
        }
    }
}
