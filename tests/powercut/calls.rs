//! System calls that fail, and kills, one at each call of an operation: whatever the kernel answers, the appliance comes up with one
//! complete set and its data, and says what went wrong.
//!
//! `QX_CALLS` (20; `all`) says how many of each operation are tried, chosen by `QX_POWERCUT_SEED`.
//! `QX_CALLS_ONLY='OPERATION CALL NUMBER FAULT'` tries one again.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::appliance::{Appliance, Ended};
use crate::cut::{seed, shuffle};
use crate::operations::{OPERATIONS, Operation};

/// What is cut, by the names of [`OPERATIONS`], and the command that it is.
const TRACED: [(&str, &[&str]); 6] = [
    ("first-update", &["apply"]),
    ("update", &["apply"]),
    ("migration", &["apply"]),
    ("failed-migration", &["apply"]),
    ("rollback", &["rollback"]),
    ("recovery", &["recover", "--stage", "link"]),
];

/// The calls that fail, and how each can: what a disk, a full disk, a limit and a signal do.
const FAULTS: [(&str, &str); 15] = [
    (
        "EIO",
        "openat read pread64 write pwrite64 fsync fdatasync syncfs rename renameat renameat2 mkdir mkdirat unlink unlinkat rmdir \
             symlink symlinkat getdents64 fchmod fchmodat readlink readlinkat statx newfstatat ftruncate copy_file_range sendfile \
             fchown lseek",
    ),
    (
        "ENOSPC",
        "openat write pwrite64 fsync fdatasync syncfs rename renameat renameat2 mkdir mkdirat symlink symlinkat fallocate \
                copy_file_range fsetxattr",
    ),
    (
        "EROFS",
        "openat rename renameat renameat2 mkdir mkdirat unlink unlinkat rmdir symlink symlinkat fchmod fchmodat",
    ),
    (
        "EACCES",
        "openat rename renameat renameat2 mkdir mkdirat unlink unlinkat execve statx newfstatat readlink",
    ),
    ("EMFILE", "openat pipe pipe2 dup fcntl socketpair"),
    ("ENFILE", "openat pipe2"),
    (
        "ENOMEM",
        "mmap mprotect brk clone clone3 fork vfork execve openat",
    ),
    ("EAGAIN", "clone clone3 fork vfork"),
    (
        "EINTR",
        "read write openat fsync wait4 waitid poll ppoll flock futex nanosleep clock_nanosleep pselect6",
    ),
    ("EDQUOT", "write mkdir mkdirat symlinkat"),
    (
        "ENOSYS",
        "renameat2 copy_file_range statx openat2 close_range setsid ioprio_set getrandom",
    ),
    (
        "EPERM",
        "fchown chown fchmod fsetxattr setsid kill prctl setpriority",
    ),
    ("ENOENT", "openat statx newfstatat execve readlink"),
    ("ETXTBSY", "execve"),
    (
        "KILL",
        "openat write fsync syncfs rename renameat renameat2 mkdir mkdirat unlink unlinkat symlink symlinkat wait4 clone clone3 \
              vfork execve close fchmod flock",
    ),
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    call: String,
    number: usize,
    kind: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.call, self.number, self.kind)
    }
}

impl Fault {
    fn injection(&self) -> String {
        let (call, number) = (&self.call, self.number);
        match self.kind {
            "KILL" => format!("inject={call}:signal=KILL:when={number}"),
            error => format!("inject={call}:error={error}:when={number}"),
        }
    }
}

/// Intent: no call that fails and no kill, at whichever call of an operation, leaves anything but one complete set and its data; the
/// updater neither panics nor hangs, what it says has a cause, and the operation succeeds when it is tried again.
#[test]
fn no_failing_call_leaves_anything_but_one_complete_set() {
    let mut violations = Vec::new();
    for (name, arguments) in TRACED {
        let operation = OPERATIONS.iter().find(|op| op.name == name).unwrap();
        if only().is_none_or(|only| only.starts_with(&format!("{name} "))) {
            violations.extend(fail_everywhere(operation, arguments));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

fn fail_everywhere(operation: &Operation, arguments: &[&str]) -> Vec<String> {
    let mut original = Appliance::in_memory();
    original.first_data();
    (operation.prepare)(&mut original);
    let counted = count(&original.copy(), arguments);
    let all = faults(&counted);
    let seed = seed();
    let mut chosen: Vec<&Fault> = all.iter().collect();
    match only() {
        Some(only) => chosen.retain(|fault| only == format!("{} {fault}", operation.name)),
        None => shuffle(&mut chosen, seed),
    }
    chosen.truncate(most());
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let violations = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get() + 1) {
            scope.spawn(|| {
                while let Some(fault) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let appliance = original.copy();
                    let Err(why) = survives(operation, arguments, fault, &appliance) else {
                        continue;
                    };
                    let line = format!("{} {fault}, seed {seed}: {why}", operation.name);
                    eprintln!("VIOLATION {line}");
                    violations.lock().unwrap().push(line);
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "CALLS {}: {} calls of {} kinds, {} faults, {} tried in {seconds:.0} s ({:.1}/s), seed {seed}: {} violations",
        operation.name,
        counted.values().sum::<usize>(),
        counted.len(),
        all.len(),
        chosen.len(),
        chosen.len() as f64 / seconds,
        violations.lock().unwrap().len()
    );
    let (faults, tried) = (all.len(), chosen.len());
    let wrong = violations.lock().unwrap().len();
    crate::counted::counted(
        &format!("failing-calls/{}", operation.name),
        format!("{faults} faults, {tried} tried, {wrong} violations"),
    );
    violations.into_inner().unwrap()
}

/// How often each call is made by the process that makes it most.
fn count(appliance: &Appliance, arguments: &[&str]) -> BTreeMap<String, usize> {
    let log = appliance.beside("trace");
    let mut command = appliance.traced(&["-o", log.to_str().unwrap()], arguments);
    command.output().expect("strace is not installed");
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        if call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            *counts.entry((pid.to_owned(), call.to_owned())).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in counts {
        let entry = most.entry(call).or_default();
        *entry = count.max(*entry);
    }
    most
}

fn faults(counted: &BTreeMap<String, usize>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (kind, calls) in FAULTS {
        for call in calls.split_whitespace() {
            let count = counted.get(call).copied().unwrap_or_default();
            faults.extend((1..=count).map(|number| Fault {
                call: call.to_owned(),
                number,
                kind,
            }));
        }
    }
    faults
}

fn survives(
    operation: &Operation,
    arguments: &[&str],
    fault: &Fault,
    appliance: &Appliance,
) -> Result<(), String> {
    // Only what is traced can be made to fail.
    let (trace, injection) = (format!("trace={}", fault.call), fault.injection());
    let options = ["-e", &trace, "-e", &injection, "-o", "/dev/null"];
    let ended = Ended::of(appliance.traced(&options, arguments), arguments);
    // 128 and more: it was killed, as it was to be.
    match ended.code {
        Some(0..=10) => {}
        Some(128..) | None if fault.kind == "KILL" => {}
        // The loader itself, or the program's first lines, had no memory.
        Some(127 | 134..=139) | None if ["ENOMEM", "EACCES", "EIO"].contains(&fault.kind) => {}
        _ => return Err(format!("it ended with {:?}: {}", ended.code, ended.error)),
    }
    // The standard library's first steps, before there is a program.
    let before_main = ended.error.contains("/std/src/sys/");
    if ended.error.contains("panicked") && !before_main {
        return Err(format!("it panicked: {}", ended.error));
    }
    // Where writing fails, in each process, it may be the line itself that could not be written.
    let failed = ended
        .code
        .is_some_and(|code| [1, 2, 5, 6, 7].contains(&code));
    if failed && fault.call != "write" && ended.error.trim().is_empty() {
        return Err(format!("it ended with {:?} and said nothing", ended.code));
    }
    appliance.boot(2);
    appliance
        .update(&["recover", "--stage", "link"])
        .expect(&[0])?;
    appliance
        .update(&["recover", "--stage", "data"])
        .expect(&[0])?;
    let mut allowed = operation.allowed.to_vec();
    if fault.kind == "EIO" {
        // What cannot be read is damaged, and a damaged set is left for the one that the image has.
        allowed.push((None, 1));
    }
    appliance.sound(&allowed)?;
    appliance.update(&["confirm"]).expect(&[0, 3, 8, 9])?;
    appliance.sound(&allowed)?;
    // What failed for the appliance's own reasons says nothing against a release; what its own checks met may.
    let again = (operation.again)(appliance);
    match again {
        Err(why) if !blamed(appliance) => return Err(why),
        Err(_) => return Ok(()),
        Ok(()) => {}
    }
    appliance.sound(operation.finally)?;
    appliance.tidy()
}

/// Whether the release was refused because its own program failed: its migration and its checks are programs, and fail as others do.
fn blamed(appliance: &Appliance) -> bool {
    let status = appliance.status();
    let refused = status["refused"].as_array().map_or(&[][..], Vec::as_slice);
    refused.iter().any(|refusal| {
        let reason = refusal["reason"].as_str().unwrap_or_default();
        reason.contains("migrations/run") || reason.contains("bin/healthy")
    })
}

fn most() -> usize {
    match std::env::var("QX_CALLS").as_deref() {
        Err(_) => 20,
        Ok("all") => usize::MAX,
        Ok(number) => number.parse().expect("QX_CALLS is a number or `all`"),
    }
}

fn only() -> Option<String> {
    std::env::var("QX_CALLS_ONLY").ok()
}

/// A program under strace, which follows everything that it starts.
pub fn strace(options: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120", "strace", "-f", "-qq"]);
    command.args(options);
    command
}
