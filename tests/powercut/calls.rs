//! System calls that fail, and kills, one at each call of an operation: whatever the kernel answers, the appliance comes up with one
//! complete set and its data, and says what went wrong.
//!
//! `QX_CALLS` (15; `all`) says how many of each operation are tried, chosen by `QX_POWERCUT_SEED`.
//! `QX_CALLS_ONLY='OPERATION CALL NUMBER FAULT'` tries one again.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::appliance::{Appliance, Ended};
use crate::check::Allowed;
use crate::operations::{SINGLE, Single};
use crate::outcome::Outcomes;
use crate::tries::{is_tried, try_some};

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
    // Not futex: waking never fails so, and a wake that is lost is nobody's to mend.
    (
        "EINTR",
        "read write openat fsync wait4 waitid poll ppoll flock nanosleep clock_nanosleep pselect6",
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
    for single in &SINGLE {
        if is_tried(single.name, "") {
            let original = single.prepared();
            let faults = faults(&count(&original.copy(), single.arguments));
            let outcomes = Outcomes::default();
            violations.extend(try_some("failing-calls", single.name, &faults, |fault| {
                survives(single, fault, &original.copy(), &outcomes)
            }));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
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
    single: &Single,
    fault: &Fault,
    appliance: &Appliance,
    outcomes: &Outcomes,
) -> Result<(), String> {
    let operation = single.operation();
    // Only what is traced can be made to fail.
    let (trace, injection) = (format!("trace={}", fault.call), fault.injection());
    let log = appliance.beside("trace");
    let options = [
        "-y",
        "-e",
        &trace,
        "-e",
        &injection,
        "-o",
        log.to_str().unwrap(),
    ];
    let ended = Ended::of(
        appliance.traced(&options, single.arguments),
        single.arguments,
    );
    ends_well(fault, &ended)?;
    if fault.kind != "KILL" && ended.code != Some(single.code) {
        names_its_object(fault, &ended, &log)?;
    }
    let mut allowed = operation.allowed.to_vec();
    if fault.kind == "EIO" {
        // What cannot be read is damaged, and a damaged set is left for the one that the image has.
        allowed.push((None, 1));
    }
    if !outcomes.is_new(appliance, (ended.code, &allowed))? {
        return Ok(());
    }
    says_what_is(single, fault, &ended, appliance, &allowed)?;
    appliance.boot(2);
    appliance.recovers()?;
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

/// It ended by itself, and said why.
fn ends_well(fault: &Fault, ended: &Ended) -> Result<(), String> {
    // 128 and more: it was killed, as it was to be.
    match ended.code {
        Some(0..=10) => {}
        Some(128..) | None if fault.kind == "KILL" => {}
        // The loader itself, or the program's first lines, had no memory.
        Some(127 | 134..=139) | None if ["ENOMEM", "EACCES", "EIO"].contains(&fault.kind) => {}
        // A program that is not the one that ships has a loader, which takes no interruption.
        Some(127) if ended.error.contains("loading shared libraries") => {}
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
    Ok(())
}

/// Where a call with a file of the appliance failed, and the command with it, the file is named, or the directory that it is in.
fn names_its_object(fault: &Fault, ended: &Ended, log: &Path) -> Result<(), String> {
    // The files of programs and their libraries are the programs' own matter, and so is what is only looked at.
    let disk = ["EIO", "ENOSPC", "EROFS", "EDQUOT"].contains(&fault.kind);
    if !disk || ended.code.is_none_or(|code| code > 10) {
        return Ok(());
    }
    let log = fs::read_to_string(log).unwrap_or_default();
    let injected = || log.lines().filter(|line| line.contains("(INJECTED)"));
    // A call fails in each process: what could not be written may be what names the file.
    if injected().any(|line| line.contains(" write(1<") || line.contains(" write(2<")) {
        return Ok(());
    }
    for line in injected() {
        let objects: Vec<&str> = line
            .split(['"', '<', '>'])
            .filter_map(|part| part.split_once("/root/data/").map(|(_, path)| path))
            .collect();
        let said = format!("{}{}", ended.said, ended.error);
        let named = objects.iter().any(|path| {
            let mut parts = path.trim_end_matches('~').rsplit('/');
            let name = parts.next().unwrap_or_default().trim_end_matches(".tmp");
            let above = parts.next().unwrap_or_default();
            [name, above]
                .iter()
                .any(|part| !part.is_empty() && said.contains(part))
        });
        if !objects.is_empty() && !named {
            return Err(format!(
                "it ended with {:?} and does not name {objects:?}: {said}",
                ended.code
            ));
        }
    }
    Ok(())
}

/// The exit code says what is: done is done, and what is done is not called failed.
fn says_what_is(
    single: &Single,
    fault: &Fault,
    ended: &Ended,
    appliance: &Appliance,
    allowed: &[Allowed],
) -> Result<(), String> {
    let Some(code) = ended.code.filter(|code| *code <= 10) else {
        return Ok(());
    };
    if fault.kind == "KILL" || single.name == "recovery" {
        return Ok(());
    }
    if code == single.code {
        let done = appliance.sound(&[single.done]);
        return done
            .map(drop)
            .map_err(|why| format!("it ended with {code}, and {why}: {}", ended.error));
    }
    // It may be that this is not known either: then it is no end, and the next command goes on.
    let status = appliance.status();
    let concluded = status["phase"] == "idle" && status["needs_person"] == false;
    if concluded && single.code == 0 && appliance.sound(allowed) == Ok(single.done) {
        let said = &ended.error;
        return Err(format!("it ended with {code}, and all is done: {said}"));
    }
    Ok(())
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

/// A program under strace, which follows everything that it starts.
pub fn strace(options: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120", "strace", "-f", "-qq"]);
    command.args(options);
    command
}
