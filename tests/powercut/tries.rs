//! Many tries of one operation, several at a time.

use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::counted::counted;
use crate::cut::{seed, shuffle};

/// How many of each are tried: `QX_CALLS` (15; `all`).
fn most() -> usize {
    match std::env::var("QX_CALLS").as_deref() {
        Err(_) => 15,
        Ok("all") => usize::MAX,
        Ok(number) => number.parse().expect("QX_CALLS is a number or `all`"),
    }
}

/// The one that is tried, of all: `QX_CALLS_ONLY`.
fn only() -> Option<String> {
    std::env::var("QX_CALLS_ONLY").ok()
}

/// Whether anything of an operation is tried in which this goes wrong: `QX_CALLS_ONLY`, `QX_POWERCUT_OPERATION`.
pub fn is_tried(operation: &str, what: &str) -> bool {
    let named = std::env::var("QX_POWERCUT_OPERATION");
    named.map_or(true, |named| named == operation)
        && only().is_none_or(|only| only.starts_with(&format!("{operation} {what}")))
}

/// Tries some of these cases of an operation, chosen by the seed. `table` is where they are counted.
pub fn try_some<C: Display + Sync>(
    table: &str,
    operation: &str,
    cases: &[C],
    survives: impl Fn(&C) -> Result<(), String> + Sync,
) -> Vec<String> {
    let seed = seed();
    let mut chosen: Vec<&C> = cases.iter().collect();
    match only() {
        Some(only) => chosen.retain(|case| only == format!("{operation} {case}")),
        None => shuffle(&mut chosen, seed),
    }
    chosen.truncate(most());
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let violations = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        // One waits for the kernel while the others work.
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get() + 1) {
            scope.spawn(|| {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = survives(case) {
                        let line = format!("{operation} {case}, seed {seed}: {why}");
                        eprintln!("VIOLATION {line}");
                        violations.lock().unwrap().push(line);
                    }
                }
            });
        }
    });
    let violations = violations.into_inner().unwrap();
    let (all, tried, wrong) = (cases.len(), chosen.len(), violations.len());
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "TRIED {table} {operation}: {tried} of {all} in {seconds:.0} s ({:.1}/s), seed {seed}: {wrong} violations",
        tried as f64 / seconds
    );
    let what = format!("{table}/{operation}");
    counted(
        &what,
        format!("{all} in all, {tried} tried, {wrong} violations"),
    );
    violations
}
