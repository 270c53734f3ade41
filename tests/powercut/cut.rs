//! From a recording to the states that a power cut may leave.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::{Content, Event, SECTOR};

/// How many random losses are tried for each epoch.
const RANDOM: usize = 24;

/// What happened between two flushes: what was on the disk before, and what was written.
struct Epoch {
    before: Content,
    writes: Vec<(u64, Vec<u8>)>,
}

/// An operation, as its disk saw it.
pub struct Recording {
    epochs: Vec<Epoch>,
}

/// Which writes of an epoch are on the disk, each of them as far as these sectors.
type Part = Vec<(usize, Range<usize>)>;

/// One way in which a cut may end an epoch: these of its writes are there, each of them as far as these sectors.
#[derive(Debug, Clone)]
pub struct State {
    pub number: usize,
    epoch: usize,
    kind: &'static str,
    there: Part,
}

impl State {
    /// Whether a write is there in part.
    pub fn is_torn(&self) -> bool {
        self.kind.contains("torn") || self.kind.contains("sectors")
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "epoch {}, {} ({} writes there)",
            self.epoch,
            self.kind,
            self.there.len()
        )
    }
}

/// The states of a recording.
pub struct States {
    /// How many were thought of.
    pub all: usize,
    /// Those that differ.
    pub distinct: Vec<State>,
}

impl Recording {
    pub fn new(before: Content, events: Vec<Event>) -> Recording {
        let mut content = before;
        let mut epochs = Vec::new();
        let mut open = Epoch {
            before: content.clone(),
            writes: Vec::new(),
        };
        for event in events {
            match event {
                Event::Write { offset, data } => {
                    content.write(offset, &data);
                    open.writes.push((offset, data));
                }
                Event::Flush if open.writes.is_empty() => {}
                Event::Flush => epochs.push(std::mem::replace(
                    &mut open,
                    Epoch {
                        before: content.clone(),
                        writes: Vec::new(),
                    },
                )),
            }
        }
        epochs.push(open);
        Recording { epochs }
    }

    pub fn writes(&self) -> usize {
        self.epochs.iter().map(|epoch| epoch.writes.len()).sum()
    }

    /// A state, write by write.
    pub fn describe(&self, state: &State) -> String {
        let epoch = &self.epochs[state.epoch];
        let mut text = format!("{state}\n");
        for (number, (offset, data)) in epoch.writes.iter().enumerate() {
            let there = state.there.iter().find(|(write, _)| *write == number);
            let sectors = data.len().div_ceil(SECTOR);
            let what = match there {
                None => "lost".to_owned(),
                Some((_, part)) if part.len() == sectors => "there".to_owned(),
                Some((_, part)) => format!("sectors {part:?} of it there"),
            };
            text += &format!("  {sectors} sectors at {:#x}: {what}\n", offset);
        }
        text
    }

    pub fn epochs(&self) -> usize {
        self.epochs.len()
    }

    pub fn content(&self, state: &State) -> Content {
        let epoch = &self.epochs[state.epoch];
        let mut content = epoch.before.clone();
        for (write, sectors) in &state.there {
            let (offset, data) = &epoch.writes[*write];
            let (from, to) = (
                sectors.start * SECTOR,
                (sectors.end * SECTOR).min(data.len()),
            );
            content.write(offset + from as u64, &data[from..to]);
        }
        content
    }

    /// Every kind of loss in every epoch.
    pub fn states(&self, seed: u64) -> States {
        let mut random = Random(seed);
        let mut states = States {
            all: 0,
            distinct: Vec::new(),
        };
        let mut seen = HashSet::new();
        for number in 0..self.epochs.len() {
            let touched = self.touched(number);
            let mut known: HashSet<u128> = HashSet::new();
            for (kind, there) in self.losses(number, &mut random) {
                states.all += 1;
                let state = State {
                    number: states.distinct.len(),
                    epoch: number,
                    kind,
                    there,
                };
                let content = self.content(&state);
                // The same as another of this epoch, or, where nothing of it is there, as the end of the one before.
                if known.insert(content.fingerprint(&touched))
                    && (!state.there.is_empty() || seen.insert(number))
                {
                    states.distinct.push(state);
                }
            }
        }
        states
    }

    fn touched(&self, epoch: usize) -> Vec<u64> {
        let writes = self.epochs[epoch].writes.iter();
        let mut blocks: Vec<u64> = writes
            .flat_map(|(offset, data)| Content::touched(*offset, data.len()))
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    fn losses(&self, epoch: usize, random: &mut Random) -> Vec<(&'static str, Part)> {
        let writes = &self.epochs[epoch].writes;
        let sectors = |write: usize| writes[write].1.len().div_ceil(SECTOR);
        let whole = |write: usize| (write, 0..sectors(write));
        let all = 0..writes.len();
        let mut losses = Vec::new();
        for end in 0..=writes.len() {
            losses.push(("later writes lost", (0..end).map(whole).collect()));
        }
        for lost in all.clone() {
            let there = all.clone().filter(|write| *write != lost).map(whole);
            losses.push(("one write lost", there.collect()));
            losses.push(("all but one write lost", vec![whole(lost)]));
        }
        for torn in all.clone().filter(|write| sectors(*write) > 1) {
            let length = sectors(torn);
            for part in [0..1, 0..length / 2, 0..length - 1, length / 2..length] {
                let before = (0..torn).map(whole).chain([(torn, part.clone())]);
                losses.push(("a write torn", before.collect()));
                let others = all.clone().map(|write| match write == torn {
                    true => (torn, part.clone()),
                    false => whole(write),
                });
                losses.push(("a write torn, all others there", others.collect()));
            }
        }
        if writes.len() > 2 {
            for _ in 0..RANDOM {
                let there = all.clone().filter(|_| random.below(2) == 0);
                losses.push(("random writes lost", there.map(whole).collect()));
                let torn = all.clone().filter_map(|write| match random.below(3) {
                    0 => None,
                    1 => Some(whole(write)),
                    _ => {
                        let start = random.below(sectors(write));
                        Some((
                            write,
                            start..start + 1 + random.below(sectors(write) - start),
                        ))
                    }
                });
                losses.push(("random sectors lost", torn.collect()));
            }
        }
        losses
    }
}

/// Some of the states, by the seed, in their order.
pub fn sample(states: &[State], most: usize, seed: u64) -> Vec<&State> {
    let mut chosen: Vec<&State> = states.iter().collect();
    shuffle(&mut chosen, seed);
    chosen.truncate(most);
    chosen.sort_by_key(|state| state.number);
    chosen
}

/// In another order, the same for the same seed.
pub fn shuffle<T>(things: &mut [T], seed: u64) {
    let mut random = Random(seed);
    for at in 0..things.len() {
        let other = at + random.below(things.len() - at);
        things.swap(at, other);
    }
}

/// `QX_POWERCUT_SEED`, or another one each day.
pub fn seed() -> u64 {
    let given = std::env::var("QX_POWERCUT_SEED");
    given.map_or_else(
        |_| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs()
                / 86_400
        },
        |seed| seed.parse().expect("QX_POWERCUT_SEED is a number"),
    )
}

/// xorshift64*: the same numbers for the same seed, on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        let mut x = self.0.wrapping_mul(2).wrapping_add(1);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % most.max(1)
    }
}
