//! The watch over a release after it was confirmed: what is known of it, and what makes a crash loop.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::id::BootId;
use crate::model::moment::Lasted;
use crate::model::record::Record;
use qx_release::digest::Digest;
use qx_release::manifest::Name;

/// The only format of the note.
pub const FORMAT: u32 = 1;
/// A process that ends sooner, in seconds, has crashed and was not restarted by somebody.
const SHORT: u64 = 60;
/// So many crashes are a loop, and so is a service that is down at so many looks in a row.
const LOOP: u32 = 3;

/// That a release is watched; kept until the time is over, or another operation begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// [`FORMAT`].
    pub format: u32,
    /// The release, by the digest of its manifest.
    pub manifest: Digest,
    /// Seconds for which it is watched.
    pub for_s: u64,
    /// Whether a crash loop undoes the update.
    pub undo: bool,
    /// For how long it has been watched.
    pub lasted: Lasted,
    /// The boot in which it was confirmed.
    pub boot_id: BootId,
    /// The processes that were proved in that boot, by their services: id and start time. Another boot starts others.
    pub processes: BTreeMap<Name, (u32, u64)>,
    /// The crash loop that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Watched {
    /// Whether it is what runs, and nothing is open.
    pub fn is_about(&self, record: &Record) -> bool {
        let active = record.idle_when_ended().active;
        record.operation().is_none() && active.manifest == Some(self.manifest)
    }
}

/// What was seen of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It runs, as this process: id and start time.
    Runs((u32, u64)),
    /// It is to run, and does not.
    Down,
    /// Somebody stopped it.
    Stopped,
}

/// What was seen of all services so far.
#[derive(Debug, Default)]
pub struct Crashes(BTreeMap<Name, Service>);

#[derive(Debug, Default)]
struct Service {
    /// The process, and since when it has been seen.
    process: Option<((u32, u64), u64)>,
    crashes: u32,
    down: u32,
}

impl Crashes {
    /// Takes a look at a service into account, at this second of the watch. Says that it is in a crash loop, if it is.
    pub fn see(&mut self, name: &Name, look: Look, now_s: u64) -> Option<String> {
        let service = self.0.entry(name.clone()).or_default();
        match look {
            Look::Stopped => *service = Service::default(),
            Look::Down => service.down += 1,
            Look::Runs(process) => {
                service.down = 0;
                match service.process.replace((process, now_s)) {
                    Some((before, since)) if before == process => {
                        service.process = Some((process, since));
                    }
                    Some((_, since)) if now_s.saturating_sub(since) < SHORT => service.crashes += 1,
                    _ => {}
                }
            }
        }
        if service.crashes >= LOOP {
            let crashes = service.crashes;
            return Some(format!(
                "service {name} is in a crash loop: it was started again {crashes} times"
            ));
        }
        (service.down >= LOOP)
            .then(|| format!("service {name} is in a crash loop: it does not stay up"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Look::{Down, Runs, Stopped};

    fn seen(looks: &[(u64, Look)]) -> Option<String> {
        let name: Name = "node".parse().unwrap();
        let mut crashes = Crashes::default();
        let mut looks = looks.iter();
        looks.find_map(|(now_s, look)| crashes.see(&name, *look, *now_s))
    }

    #[test]
    fn a_crash_loop_is_one_and_a_restart_is_none() {
        let runs = |pid| Runs((pid, u64::from(pid)));
        for quiet in [
            &[(0, runs(1)), (5, runs(1)), (900, runs(1))][..],
            // Somebody restarts it now and then, or stops it.
            &[
                (0, runs(1)),
                (100, runs(2)),
                (200, runs(3)),
                (300, runs(4)),
                (400, runs(5)),
            ],
            &[
                (0, runs(1)),
                (5, Stopped),
                (10, Stopped),
                (15, Stopped),
                (20, Stopped),
            ],
            &[
                (0, runs(1)),
                (5, Down),
                (10, Down),
                (15, runs(2)),
                (20, Down),
                (25, Down),
                (30, runs(2)),
            ],
            &[
                (0, runs(1)),
                (5, runs(2)),
                (10, runs(3)),
                (15, Stopped),
                (20, runs(4)),
                (25, runs(5)),
            ],
        ] {
            assert_eq!(seen(quiet), None, "{quiet:?}");
        }
        for (looks, words) in [
            (
                &[
                    (300, runs(1)),
                    (305, runs(2)),
                    (310, runs(3)),
                    (315, runs(4)),
                ][..],
                "started again 3 times",
            ),
            // The same id, given again.
            (
                &[
                    (0, Runs((7, 1))),
                    (5, Runs((7, 2))),
                    (10, Runs((7, 3))),
                    (15, Runs((7, 4))),
                ],
                "started again 3 times",
            ),
            (
                &[(0, runs(1)), (5, Down), (10, Down), (15, Down)],
                "does not stay up",
            ),
        ] {
            let told = seen(looks).unwrap_or_default();
            assert!(told.contains(words), "{looks:?}: {told}");
        }
    }
}
