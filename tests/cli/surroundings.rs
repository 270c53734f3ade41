//! Who started the updater, and who listens to it: neither decides how an update goes, nor what it is reported to have been.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::common::{Appliance, UPDATE, exe, kill, path, publisher, text, wait_until, walk};

/// A program that leaves behind all that one process can leave another.
fn thoughtless(appliance: &Appliance) -> PathBuf {
    let out = appliance.temp().join("inherited");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/inherited.c");
    let status = Command::new("cc").arg("-o").arg(&out).arg(source).status();
    assert!(status.unwrap().success());
    out
}

/// Whatever was inherited, the update goes as ever, and a migration finds what the documentation says.
#[test]
fn nothing_inherited_decides() {
    let appliance = Appliance::new();
    let seen = appliance.root.join("out/seen");
    let script = format!(
        // The updater's own mask is looked at until it has come back from starting this, during which it blocks everything.
        "exec >{}; cat /proc/self/status; n=0; until grep -q 'SigBlk:.0*$' /proc/$PPID/status || [ $n = 300 ]; do n=$((n + 1)); sleep 0.1; done; echo updater $(grep SigBlk: /proc/$PPID/status); echo works in $(readlink /proc/$PPID/cwd); echo mask $(umask); echo nice $(nice); pwd; env; for d in 3 4 5 9 15 22; do [ -e /proc/self/fd/$d ] && readlink /proc/self/fd/$d; done; :",
        path(&seen)
    );
    appliance.release(&appliance.recipe("1.1.0").migration(&script, 100));
    let lock = appliance.temp().join("cron.lock");
    let mut command = Command::new(thoughtless(&appliance));
    command.env("LD_DEBUG_OUTPUT", "x").env("SECRET", "x");
    command
        .arg(&lock)
        .arg(UPDATE)
        .arg("--root")
        .arg(&appliance.root);
    command.arg("apply");
    appliance.spawn(command).wait().code(0);
    appliance.runs("1.1.0");

    let seen = text(&seen);
    let field = |name: &str| {
        let line = seen.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{seen}"))
            .trim()
            .to_owned()
    };
    // 32 and 33 are the C library's own.
    let ignored = u64::from_str_radix(&field("SigIgn:"), 16).unwrap();
    assert_eq!(ignored & !(3 << 31), 0, "{seen}");
    assert_eq!(field("SigBlk:"), "0000000000000000", "{seen}");
    // Programs are started with an empty mask in any case; the updater must hear signals itself.
    assert_eq!(field("updater SigBlk:"), "0000000000000000", "{seen}");
    // Nor does it keep somebody's directory in use for as long as it works.
    assert_eq!(field("works in "), "/", "{seen}");
    assert_eq!(field("mask "), "0022");
    if rustix::process::getuid().is_root() {
        assert_eq!(field("nice "), "0");
    }
    assert!(!seen.contains("cron.lock"), "{seen}");
    assert!(
        !seen.contains("SECRET") && !seen.contains("LD_DEBUG"),
        "{seen}"
    );
    // Whoever a service runs as can enter its slot and read its files.
    let slot = appliance.data().join(appliance.link());
    assert_eq!(fs::metadata(&slot).unwrap().mode() & 0o755, 0o755);
    assert_eq!(
        fs::metadata(appliance.data().join("slots")).unwrap().mode() & 0o755,
        0o755
    );
    walk(&slot, &mut |file, meta| {
        let needed = if meta.is_dir() { 0o555 } else { 0o444 };
        assert!(
            meta.is_symlink() || meta.mode() & needed == needed,
            "{}",
            file.display()
        );
    });
    // So do the other commands.
    for arguments in [
        &["status"][..],
        &["verify"],
        &["recover"],
        &["confirm"],
        &["log"],
    ] {
        let mut command = Command::new(appliance.temp().join("inherited"));
        command
            .arg(&lock)
            .arg(UPDATE)
            .arg("--root")
            .arg(&appliance.root);
        command.args(arguments);
        let outcome = appliance.spawn(command).wait();
        assert!(
            matches!(outcome.code, 0 | 3),
            "{arguments:?}: {} {}",
            outcome.code,
            outcome.stderr
        );
    }
}

/// A repository that was made under a narrow umask can be served; the keys stay as narrow as ever.
#[test]
fn a_repository_is_readable_whatever_was_inherited() {
    let appliance = Appliance::new();
    let (repo, keys) = (appliance.temp().join("r2"), appliance.temp().join("k2"));
    let mut command = Command::new(thoughtless(&appliance));
    command
        .arg(appliance.temp().join("cron.lock"))
        .arg(publisher());
    command.args([
        "init",
        "--repo",
        path(&repo),
        "--keys",
        path(&keys),
        "--product",
        "x",
    ]);
    appliance.spawn(command).wait().code(0);
    walk(&repo, &mut |file, meta| {
        let needed = if meta.is_dir() { 0o555 } else { 0o444 };
        assert!(meta.mode() & needed == needed, "{}", file.display());
    });
    walk(&keys, &mut |file, meta| {
        let is_private = !path(file).ends_with(".pub.pem");
        assert!(
            !is_private || meta.mode() & 0o077 == 0,
            "{}",
            file.display()
        );
    });
}

/// Starts an update whose migration waits until the file `go` is there, and goes on when it waits.
fn until_it_migrates(appliance: &Appliance) -> crate::common::Running<'_> {
    let (waits, go) = (
        appliance.root.join("out/waits"),
        appliance.root.join("out/go"),
    );
    let script = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.1; done",
        path(&waits),
        path(&go)
    );
    appliance.release(&appliance.recipe("1.1.0").migration(&script, 1000));
    let apply = appliance.start(&["apply"]);
    wait_until("it migrates", || {
        waits.exists() && appliance.phase() == "switching"
    });
    apply
}

/// What the front end has started; what that is starting in its turn looks the same for a moment.
fn worker(appliance: &Appliance, front_end: u32) -> u32 {
    let mut all = appliance.updaters();
    let parent = format!("PPid:\t{front_end}\n");
    all.retain(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| status.contains(&parent))
    });
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}

/// A worker that was killed after it stopped a service cannot say so; the record can.
#[test]
fn a_killed_worker_is_reported_as_the_record_has_it() {
    for signal in [Signal::KILL, Signal::ABORT] {
        let appliance = Appliance::new();
        let apply = until_it_migrates(&appliance);
        kill(worker(&appliance, apply.child.id()), signal);
        let apply = apply.wait();
        apply.code(10).error_says(&["qx-update confirm"]);
        fs::write(appliance.root.join("out/go"), "").unwrap();
        let confirm = appliance.update(&["confirm"]);
        assert!(matches!(confirm.code, 0 | 8 | 9), "{}", confirm.code);
        appliance.update(&["apply"]).code(0);
        appliance.runs("1.1.0");
    }
}

/// One that was killed before is a failure that changed nothing.
#[test]
fn a_worker_that_was_killed_early_changed_nothing() {
    use crate::common::server::{Answer, Server};
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let server = Server::answering(&appliance.repo, |request| match request.is_artifact() {
        true => Answer::Slow(1),
        false => Answer::Well,
    });
    appliance.source(&server.url);
    let apply = appliance.start(&["apply"]);
    wait_until("it stages", || appliance.phase() == "staging");
    kill(worker(&appliance, apply.child.id()), Signal::KILL);
    apply.wait().code(1).error_says(&["no service was stopped"]);
    appliance.runs("1.0.0");
}

/// Prints a great deal: more than anybody keeps for a reader that does not read.
const TALKS: &str = "i=0; while [ $i -lt 6000 ]; do i=$((i+1)); echo \"row $i ------------------------------------------------\"; done; :";

/// Nobody reads what `apply` prints: the update ends all the same, the log has all of it, and whoever reads at last is
/// told how it ended and that something is missing.
#[test]
fn a_reader_that_stalls_holds_up_nothing() {
    let appliance = Appliance::new();
    appliance.edit_config(|c| c["log"] = serde_json::json!({"max_bytes": 10_000_000}));
    appliance.release(&appliance.recipe("1.1.0").migration(TALKS, 1000));
    for format in [&[][..], &["--progress", "json"]] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(UPDATE);
        command
            .arg("--root")
            .arg(&appliance.root)
            .arg("apply")
            .args(format);
        command
            .stdin(Stdio::null())
            .stderr(writer.try_clone().unwrap())
            .stdout(writer);
        let mut apply = command.spawn().unwrap();
        drop(command);
        wait_until("the update is over", || {
            !appliance.link().is_empty()
                && appliance.phase() == "idle"
                && appliance.updaters() == [apply.id()]
        });
        assert!(
            apply.try_wait().unwrap().is_none(),
            "it waits for its reader"
        );
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(apply.wait().unwrap().code(), Some(0), "{all}");
        assert!(all.contains("events were not shown"), "{all}");
        assert!(all.lines().last().unwrap().contains("healthy"), "{all}");
        if !format.is_empty() {
            for line in all.lines() {
                serde_json::from_str::<serde_json::Value>(line).unwrap();
            }
        }
        let log = text(&appliance.data().join("update/log/update.log"));
        for number in [1, 3000, 6000] {
            assert!(
                log.contains(&format!("row {number} ---")),
                "row {number} is not in the log"
            );
        }
        appliance.update(&["rollback", "--to", "factory"]).code(0);
        appliance.update(&["reset"]).code(0);
    }
}

/// The front end is stopped (Ctrl-Z): the worker ends all the same, and what was recorded is the answer, even if the
/// worker is killed before it could give it.
#[test]
fn a_front_end_that_is_stopped_holds_up_nothing() {
    let appliance = Appliance::new();
    appliance.edit_config(|c| c["log"] = serde_json::json!({"max_bytes": 10_000_000}));
    let waits = appliance.root.join("out/waits");
    let go = appliance.root.join("out/go");
    let script = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.1; done; {TALKS}",
        path(&waits),
        path(&go)
    );
    appliance.release(&appliance.recipe("1.1.0").migration(&script, 1000));
    let apply = appliance.start(&["apply"]);
    wait_until("it migrates", || {
        waits.exists() && appliance.phase() == "switching"
    });
    let front_end = apply.child.id();
    let worker = worker(&appliance, front_end);
    kill(front_end, Signal::STOP);
    fs::write(&go, "").unwrap();
    wait_until("the update is over", || appliance.phase() == "idle");
    kill(worker, Signal::KILL);
    wait_until("the worker is gone", || exe(worker).is_none());
    appliance.runs("1.1.0");
    kill(front_end, Signal::CONT);
    let apply = apply.wait();
    apply.code(0);
    // A line is never cut.
    assert!(!apply.stderr.contains("{\"event"), "{}", apply.stderr);
}

/// What is asked for and could not be printed was not given; a reader that has seen enough has got what it wanted.
#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let closed = || {
        let (_, writer) = std::io::pipe().unwrap();
        writer
    };
    let root = path(&appliance.root);
    let repo = path(&appliance.repo);
    let update: [(&[&str], i32); 8] = [
        (&["status"], 0),
        (&["status", "--json"], 0),
        (&["log"], 0),
        (&["which", "qx-node"], 0),
        (&["verify"], 0),
        (&["check"], 4),
        (&["check", "--progress", "json"], 4),
        (&["apply", "--dry-run"], 0),
    ];
    let publish: [(&[&str], i32); 3] = [
        (&["inspect", "--json", "--repo", repo], 0),
        (&["verify", "--repo", repo], 0),
        (&["--help"], 0),
    ];
    let update =
        update.map(|(arguments, code)| (UPDATE, [&["--root", root], arguments].concat(), code));
    let publish = publish.map(|(arguments, code)| (publisher(), arguments.to_vec(), code));
    for (program, arguments, code) in update.into_iter().chain(publish) {
        let run = |out: Stdio, err: Stdio| {
            let mut command = Command::new(program);
            let status = command.args(&arguments).stdout(out).stderr(err).status();
            status.unwrap().code()
        };
        assert_eq!(
            run(full().into(), full().into()),
            Some(1),
            "{arguments:?}: full"
        );
        assert_eq!(
            run(closed().into(), Stdio::inherit()),
            Some(code),
            "{arguments:?}: closed"
        );
    }
    // What was done is done, whether or not it could be told.
    let status = Command::new(UPDATE)
        .args(["--root", root, "apply"])
        .stdout(full())
        .stderr(full())
        .status();
    assert_eq!(status.unwrap().code(), Some(0));
    appliance.runs("1.2.0");
    // A command that fails does not fail worse.
    let status = Command::new(publisher())
        .args(["inspect", "--repo", "/none"])
        .stderr(full())
        .status();
    assert_eq!(status.unwrap().code(), Some(1));
}

/// A terminal that somebody else made non-blocking gets all of a long answer, in its own time.
#[test]
fn a_full_pipe_that_does_not_block_gets_all_of_an_answer() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let log = appliance.data().join("update/log/update.log");
    let line = text(&log).lines().next().unwrap().to_owned();
    fs::write(&log, format!("{line}\n").repeat(5000)).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut command = Command::new(UPDATE);
    command
        .arg("--root")
        .arg(&appliance.root)
        .args(["log", "--json"])
        .stdout(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(all.lines().count(), 5000);
}
