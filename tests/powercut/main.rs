//! Power cuts and failing calls, enumerated.
//!
//! Power cuts: whole operations are recorded, write by write, on a real file system; then the disk is made as a cut
//! could have left it, at every write and with every kind of loss, and the appliance boots from it.
//!
//! A disk keeps what was flushed. Of what was written since, any part may be there: whole writes in any combination, and of a
//! write any part of its sectors.
//!
//! `QX_POWERCUT_STATES` (25; `all`) says how many states of each operation and file system are tried, chosen by
//! `QX_POWERCUT_SEED`, which is printed; `QX_POWERCUT_OPERATION=NAME` tries that one alone. `QX_POWERCUT_ONLY=OPERATION/FILE-SYSTEM/NUMBER` tries one again, and
//! says which writes are there; `QX_POWERCUT_IMAGE=FILE` keeps its disk.

mod appliance;
mod calls;
mod check;
mod clock;
#[path = "../counted.rs"]
mod counted;
mod cut;
mod disk;
mod lies;
mod operations;
mod outcome;
mod reader;
mod tries;

use counted::counted;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use appliance::Appliance;
use check::differs;
use cut::{Recording, State};
use disk::{Content, Disk, FileSystem};
use operations::{OPERATIONS, Operation};
use outcome::Outcomes;

const EXT4: FileSystem = FileSystem {
    name: "ext4",
    kind: "ext4",
    bytes: 64 << 20,
    mkfs: &[
        "mkfs.ext4",
        "-q",
        "-F",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
    ],
    options: "rw",
};

const WRITEBACK: FileSystem = FileSystem {
    name: "ext4-writeback",
    options: "rw,data=writeback",
    ..EXT4
};

const XFS: FileSystem = FileSystem {
    name: "xfs",
    kind: "xfs",
    bytes: 320 << 20,
    mkfs: &["mkfs.xfs", "-q", "-f", "-K"],
    // Several copies of it are mounted at once.
    options: "rw,nouuid",
};

/// Intent: wherever the power goes during any operation, with any loss that a disk may have then, the next boot finds one complete
/// set and its data, says so, comes to the same end twice, and the operation succeeds when it is tried again.
#[test]
fn no_cut_leaves_anything_but_one_complete_set_on_ext4() {
    every_operation(&EXT4);
}

/// Intent: the same where the file system writes data whenever it likes.
#[test]
fn no_cut_leaves_anything_but_one_complete_set_on_ext4_with_writeback() {
    every_operation(&WRITEBACK);
}

/// Intent: the same on XFS.
#[test]
fn no_cut_leaves_anything_but_one_complete_set_on_xfs() {
    every_operation(&XFS);
}

/// Intent: a command that is added changes something, and is cut, or changes nothing, and is listed as that.
#[test]
fn every_command_is_cut_or_changes_nothing() {
    const CHANGE_NOTHING: [&str; 5] = ["status", "verify", "doctor", "which", "log"];
    let covered: HashSet<&str> = OPERATIONS
        .iter()
        .flat_map(|op| op.commands)
        .copied()
        .collect();
    for command in operations::commands() {
        let known = covered.contains(&*command) || CHANGE_NOTHING.contains(&&*command);
        assert!(
            known,
            "no operation of tests/powercut/operations.rs covers `{command}`"
        );
    }
}

fn every_operation(file_system: &FileSystem) {
    let violations: Vec<String> = OPERATIONS
        .iter()
        .filter(|operation| {
            let named = variable("QX_POWERCUT_OPERATION");
            named.is_none_or(|named| named == operation.name)
        })
        .filter(|operation| {
            only().is_none_or(|(op, fs, _)| (&*op, &*fs) == (operation.name, file_system.name))
        })
        .flat_map(|operation| cut_everywhere(operation, file_system))
        .collect();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// Records an operation and tries what cuts may leave of it: what was wrong then.
fn cut_everywhere(operation: &Operation, file_system: &FileSystem) -> Vec<String> {
    let mut original = Appliance::new();
    let recording = record(operation, file_system, &mut original);
    let seed = cut::seed();
    let states = recording.states(seed);
    let (all, distinct) = (states.all, states.distinct.len());
    let chosen: Vec<&State> = match only() {
        Some((_, _, number)) => states.distinct.iter().skip(number).take(1).collect(),
        None => cut::sample(&states.distinct, most(), seed),
    };
    if only().is_some() {
        chosen
            .iter()
            .for_each(|state| eprintln!("{}", recording.describe(state)));
    }
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let (violations, unmountable) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let outcomes = Outcomes::default();
    std::thread::scope(|scope| {
        // One waits for the kernel while the other works.
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get() + 1) {
            scope.spawn(|| {
                let appliance = original.copy();
                let disk = Disk::new(file_system.bytes);
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(state) = chosen.get(at) else {
                        return;
                    };
                    let content = recording.content(state);
                    let outcome = comes_up(
                        operation,
                        file_system,
                        (&appliance, &disk, &outcomes),
                        content,
                    );
                    // No file system survives every torn block of its own.
                    if state.is_torn() && outcome.as_ref().is_err_and(|why| why == UNMOUNTABLE) {
                        unmountable.fetch_add(1, Ordering::Relaxed);
                    } else if let Err(why) = outcome {
                        let (op, fs) = (operation.name, file_system.name);
                        let line =
                            format!("{op}/{fs}/{}, seed {seed}: {state}: {why}", state.number);
                        eprintln!("VIOLATION {line}");
                        violations.lock().unwrap().push(line);
                    }
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "POWERCUT {} {}: {} writes in {} epochs; {all} states, {distinct} distinct, {} tried in {seconds:.0} s ({:.1}/s), seed {seed}: {} not mountable, {} violations",
        operation.name,
        file_system.name,
        recording.writes(),
        recording.epochs(),
        chosen.len(),
        chosen.len() as f64 / seconds,
        unmountable.load(Ordering::Relaxed),
        violations.lock().unwrap().len()
    );
    let what = format!("power-cuts/{} on {}", operation.name, file_system.name);
    let (tried, wrong) = (chosen.len(), violations.lock().unwrap().len());
    counted(
        &what,
        format!("{distinct} states, {tried} tried, {wrong} violations"),
    );
    violations.into_inner().unwrap()
}

fn record(operation: &Operation, file_system: &FileSystem, appliance: &mut Appliance) -> Recording {
    let disk = Disk::new(file_system.bytes);
    let device = disk.attach();
    device.format(file_system);
    let mounted = device.mount(&appliance.data(), file_system);
    appliance.first_data();
    (operation.prepare)(appliance);
    drop(mounted);
    let before = disk.content();
    // Mounting writes, too.
    disk.record();
    let mounted = device.mount(&appliance.data(), file_system);
    appliance.boot(1);
    (operation.run)(appliance);
    let events = disk.recorded();
    drop(mounted);
    Recording::new(before, events)
}

/// The file system itself does not come up.
const UNMOUNTABLE: &str = "it cannot be mounted";

/// Boots from a disk, and does what comes next.
fn comes_up(
    operation: &Operation,
    file_system: &FileSystem,
    (appliance, disk, outcomes): (&Appliance, &Disk, &Outcomes),
    content: Content,
) -> Result<(), String> {
    if let Some(file) = variable("QX_POWERCUT_IMAGE") {
        disk.set(content.clone());
        disk.save(Path::new(&file));
    }
    disk.set(content);
    let device = disk.attach();
    let Some(mounted) = device.try_mount(&appliance.data(), file_system) else {
        return Err(UNMOUNTABLE.to_owned());
    };
    // The first one is recorded, and the second.
    appliance.boot(2);
    let outcome = (|| {
        appliance.recovers()?;
        // What comes of it does not depend on how it came about.
        if !outcomes.is_new(appliance, ())? {
            return Ok(());
        }
        appliance.sound(operation.allowed)?;
        let picture = appliance.picture()?;
        appliance.recovers()?;
        if let Some(what) = differs(&picture, &appliance.picture()?) {
            return Err(format!("a second recovery changed something: {what}"));
        }
        // Once the runlevel is complete.
        appliance.update(&["confirm"]).expect(&[0, 3, 8, 9])?;
        appliance.sound(operation.allowed)?;
        (operation.again)(appliance)?;
        appliance.sound(operation.finally)?;
        appliance.tidy()
    })();
    drop(mounted);
    outcome
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn most() -> usize {
    match variable("QX_POWERCUT_STATES").as_deref() {
        None => 25,
        Some("all") => usize::MAX,
        Some(number) => number
            .parse()
            .expect("QX_POWERCUT_STATES is a number or `all`"),
    }
}

/// One state: its operation, its file system and its number.
fn only() -> Option<(String, String, usize)> {
    let text = variable("QX_POWERCUT_ONLY")?;
    let mut parts = text.split('/');
    let mut part = || {
        parts
            .next()
            .expect("QX_POWERCUT_ONLY is OPERATION/FILE-SYSTEM/NUMBER")
            .to_owned()
    };
    Some((part(), part(), part().parse().expect("a number")))
}
