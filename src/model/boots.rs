//! How the last boots went: whether they came to their end, and what the kernel left of one that did not.

use serde::{Deserialize, Serialize};

use crate::model::id::BootId;
use qx_release::digest::Digest;

/// The only format of the note.
pub const FORMAT: u32 = 1;
/// So many boots are kept.
const KEEP: usize = 8;
/// So many crashes in a row, each before its boot was complete, are a crash loop.
pub const MAX_CRASHES: usize = 3;

/// The last boots, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boots {
    /// [`FORMAT`].
    pub format: u32,
    /// Each, the last one being this one.
    pub boots: Vec<Boot>,
    /// The crash dumps that have been read: what else lies there is new.
    pub dumps: Vec<String>,
}

/// A boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Which.
    pub boot_id: BootId,
    /// When its recovery ran (RFC 3339), for people.
    pub time: String,
    /// The release that ran, by the digest of its manifest; none for a factory set without one.
    pub manifest: Option<Digest>,
    /// Whether its runlevel was complete: `confirm` ran.
    pub complete: bool,
    /// How it ended, where the next one found that out. A power cut, a reset and an orderly end leave nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
}

/// What ended a boot, other than a person or the power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// Who noticed.
    pub kind: CrashKind,
    /// One sentence.
    pub what: String,
}

/// Who noticed that a boot had to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CrashKind {
    /// The kernel, which left its last words in persistent storage (pstore).
    Panic,
    /// A watchdog device that nobody had kicked in time.
    Watchdog,
}

impl Default for Boots {
    fn default() -> Boots {
        Boots {
            format: FORMAT,
            boots: Vec::new(),
            dumps: Vec::new(),
        }
    }
}

impl Boots {
    /// Whether another boot than the last one that is noted.
    pub fn is_new(&self, boot: &BootId) -> bool {
        self.boots.last().is_none_or(|last| last.boot_id != *boot)
    }

    /// Another boot; the oldest is forgotten.
    pub fn begin(&mut self, boot: Boot) {
        self.boots.push(boot);
        let over = self.boots.len().saturating_sub(KEEP);
        self.boots.drain(..over);
    }

    /// The boots before this one that did not come to their end, up to the last that did, the latest first.
    fn incomplete<'a>(&'a self, now: &'a BootId) -> impl Iterator<Item = &'a Boot> {
        let before = self
            .boots
            .iter()
            .rev()
            .filter(move |boot| boot.boot_id != *now);
        before.take_while(|boot| !boot.complete)
    }

    /// What ended the last boots with this release, the latest first: only crashes, with nothing else in between. That somebody
    /// waited, and then the power went, is none.
    pub fn crashes(&self, now: &BootId, manifest: Option<Digest>) -> Vec<String> {
        let boots = self.incomplete(now);
        let of_it = boots.take_while(|boot| boot.manifest == manifest);
        of_it
            .map_while(|boot| boot.crash.as_ref())
            .map(|crash| crash.what.clone())
            .collect()
    }

    /// What a person should know of the boots before this one. Nothing where no boot was ever seen to be complete: nobody runs
    /// `confirm` there.
    pub fn problem(&self, now: &BootId) -> Option<String> {
        if !self.boots.iter().any(|boot| boot.complete) {
            return None;
        }
        let ends: Vec<String> = self
            .incomplete(now)
            .map(|boot| match &boot.crash {
                Some(crash) => crash.what.clone(),
                None => "no cause is known: the power, a reset, or it hung".to_owned(),
            })
            .collect();
        match &ends[..] {
            [] => None,
            [end] => Some(format!("the last boot did not come to its end ({end})")),
            ends => Some(format!(
                "the last {} boots did not come to their end ({})",
                ends.len(),
                ends.join("; ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(number: u32, complete: bool, crash: Option<&str>) -> Boot {
        Boot {
            boot_id: format!("boot-{number}").as_str().into(),
            time: String::new(),
            manifest: Some(Digest::of(b"release")),
            complete,
            crash: crash.map(|what| Crash {
                kind: CrashKind::Panic,
                what: what.to_owned(),
            }),
        }
    }

    fn boots(all: &[(bool, Option<&str>)]) -> Boots {
        let mut boots = Boots::default();
        for (number, (complete, crash)) in all.iter().enumerate() {
            boots.begin(boot(number as u32, *complete, *crash));
        }
        boots
    }

    /// Crashes count only while nothing else comes between: a complete boot, the power, another release.
    #[test]
    fn crashes_in_a_row() {
        let release = Some(Digest::of(b"release"));
        let panic = (false, Some("panic"));
        let power = (false, None);
        let good = (true, None);
        // One that was complete, and crashed a week later.
        let late = (true, Some("panic"));
        let rows = [
            (vec![], 0),
            (vec![panic], 1),
            (vec![good, panic, panic, panic], 3),
            (vec![panic, panic, power, panic], 1),
            (vec![panic, panic, panic, power], 0),
            (vec![panic, panic, good], 0),
            (vec![panic, late, panic, panic], 2),
            (vec![late], 0),
        ];
        for (all, crashes) in rows {
            let now = "now".into();
            let boots = boots(&all);
            assert_eq!(boots.crashes(&now, release).len(), crashes, "{all:?}");
            assert_eq!(boots.crashes(&now, None).len(), 0, "{all:?}");
        }
        // This boot itself has not ended.
        let now = "boot-1".into();
        assert_eq!(boots(&[panic, power]).crashes(&now, release).len(), 1);
    }

    /// Where no boot was complete, nobody looks.
    #[test]
    fn what_a_person_is_told() {
        let now = "now".into();
        assert_eq!(boots(&[(false, None), (false, None)]).problem(&now), None);
        assert_eq!(boots(&[(false, None), (true, None)]).problem(&now), None);
        let told = boots(&[
            (true, None),
            (false, None),
            (false, Some("kernel panic: x")),
        ]);
        let told = told.problem(&now).unwrap();
        assert!(
            told.contains("the last 2 boots") && told.contains("kernel panic: x; no cause"),
            "{told}"
        );
    }

    /// No more are kept than are looked at.
    #[test]
    fn the_oldest_are_forgotten() {
        let mut all = Boots::default();
        for number in 0..100 {
            all.begin(boot(number, true, None));
        }
        assert_eq!(all.boots.len(), KEEP);
        assert!(all.is_new(&"boot-98".into()) && !all.is_new(&"boot-99".into()));
    }
}
