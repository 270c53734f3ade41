//! The appliance's own faults are found before a service is stopped, told alike by `check`, `apply --dry-run` and `apply`, and
//! never held against the release. What was interrupted is ended, and then what was asked for has its turn.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Appliance, Mounted, UPDATE, copy_executable, path, wait_until};

/// All three say so, no service was told anything, and the release is not refused.
#[track_caller]
pub fn told_before_anything_stops(appliance: &Appliance, code: i32, words: &[&str]) {
    let before = appliance.answers();
    appliance.told();
    for command in [&["check"][..], &["apply", "--dry-run"], &["apply"]] {
        appliance.update(command).refused(code, words);
    }
    assert_eq!(appliance.told(), [""; 0]);
    assert_eq!(appliance.answers(), before);
    assert_eq!(appliance.status()["refused"], json!([]));
}

/// Mounted noexec, as hardening guides ask for.
#[test]
fn a_data_partition_without_exec() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let noexec = Mounted::over(
        &appliance.data(),
        &["-t", "tmpfs", "-o", "noexec,mode=755", "none"],
    );
    told_before_anything_stops(&appliance, 1, &["data/slots", "noexec"]);
    drop(noexec);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
}

/// On the running system: nothing is installed into memory, which a data partition that was not mounted would be.
#[test]
fn a_data_partition_in_memory() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    appliance.edit_config(|config| config["services"] = json!({"manager": "none"}));
    copy_executable(Path::new(UPDATE), &appliance.root.join("qx-update"));
    // The appliance's root as the root of all, with what a program takes to run.
    let script = "for place in lib lib64 proc dev; do
            [ -d /$place ] && mkdir -p \"$0/$place\" && mount --rbind \"$(realpath /$place)\" \"$0/$place\"
        done
        mount -t tmpfs -o mode=755 none \"$0/data\" && exec chroot \"$0\" /qx-update \"$@\"";
    for arguments in [&["check"][..], &["apply", "--dry-run"], &["apply"]] {
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "sh", "-c", script]);
        unshare.arg(&appliance.root).args(arguments);
        let outcome = appliance.spawn(unshare).wait();
        outcome.refused(1, &["/data/slots", "tmpfs", "a reboot would lose it"]);
    }
}

/// A file system that has no links (vfat), or cannot exchange two directories.
#[test]
fn a_data_partition_without_links() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    for fault in [
        "inject=renameat2:error=EINVAL",
        "inject=symlink,symlinkat:error=EPERM",
    ] {
        appliance.told();
        for arguments in [&["check"][..], &["apply", "--dry-run"], &["apply"]] {
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-e", fault, "-o", "/dev/null", UPDATE]);
            command.arg("--root").arg(&appliance.root).args(arguments);
            let outcome = appliance.spawn(command).wait();
            assert!(outcome.code == 1 || outcome.code == 10, "{}", outcome.code);
            outcome.error_says(&["/data"]);
        }
        assert_eq!(appliance.told(), [""; 0]);
        assert_eq!(appliance.answers(), ["1.0.0", "1.0.0"]);
        assert_eq!(appliance.status()["refused"], json!([]));
    }
}

/// No data partition at all: nothing is made where it should be mounted.
#[test]
fn a_data_partition_that_is_not_there() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    fs::rename(appliance.data(), appliance.temp().join("away")).unwrap();
    told_before_anything_stops(&appliance, 1, &["/data", "is the data partition mounted?"]);
    appliance.update(&["recover"]).code(0);
    assert!(!appliance.data().exists());
}

/// No /dev/null: no program can be started, which says nothing of any.
#[test]
fn no_dev_null() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    appliance.told();
    for device in ["rm /dev/null", "rm /dev/null && touch /dev/null"] {
        for command in ["check", "apply"] {
            let mut unshare = Command::new("unshare");
            let script = format!(
                "mount -t tmpfs none /dev && touch /dev/null && {device} && exec \"$0\" --root \"$1\" {command}"
            );
            unshare.args(["-m", "sh", "-c", &script, UPDATE]);
            unshare.arg(&appliance.root);
            let outcome = appliance.spawn(unshare).wait();
            outcome.refused(1, &["/dev/null"]);
        }
    }
    assert_eq!(appliance.told(), [""; 0]);
    assert_eq!(appliance.answers(), ["1.0.0", "1.0.0"]);
    assert_eq!(appliance.status()["refused"], json!([]));
}

/// Users that nobody has.
#[test]
fn users_that_are_not_there() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    fs::write(appliance.root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    appliance.edit_config(|config| config["migration_user"] = json!("mallory"));
    told_before_anything_stops(&appliance, 2, &["migration_user", "mallory"]);
    appliance.edit_config(|config| {
        config.as_object_mut().unwrap().remove("migration_user");
        config["data"] =
            json!([{"name": "db", "method": "files", "place": "/srv/db", "user": "trent"}]);
    });
    told_before_anything_stops(&appliance, 2, &["data[].user", "trent"]);
}

/// Commands of the service manager that cannot be run, and a pidfile that nobody writes: services would be taken for stopped.
#[test]
fn a_service_manager_that_is_not_there() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let good = fs::read(appliance.config()).unwrap();
    for field in ["start", "stop", "status"] {
        appliance.edit_config(|config| config["services"][field][0] = json!("/nowhere/svc"));
        let words = [&format!("services.{field}"), "/nowhere/svc"];
        told_before_anything_stops(&appliance, 2, &words);
        fs::write(appliance.config(), &good).unwrap();
    }
    appliance.edit_config(|config| config["services"]["pidfile"] = json!("/run/{name}.id"));
    told_before_anything_stops(&appliance, 2, &["services.pidfile", "run/node.id"]);
    fs::write(appliance.config(), &good).unwrap();
    appliance.update(&["apply"]).code(0);
}

/// Commands of a data set that cannot be run: with the services down, its data could neither be copied nor brought back.
#[test]
fn commands_of_data_that_are_not_there() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let plain = appliance.root.join("srv/dump");
    crate::common::create_dir(plain.parent().unwrap()).unwrap();
    fs::write(&plain, "not to be run").unwrap();
    for field in ["copy", "exchange", "drop", "check", "schema", "copy_in_use"] {
        for program in ["/nowhere/dump", "qx-nowhere", path(&plain)] {
            appliance.edit_config(|config| {
                config["data"] = json!([{
                    "name": "db", "method": "command", "place": "app", "copy_place": "app_{id}",
                    "copy": ["true"], "exchange": ["true"], "drop": ["true"], "check": ["true"], "schema": ["true"],
                    "copy_in_use": ["true"],
                }]);
                config["data"][0][field][0] = json!(program);
            });
            let words = [
                &format!("the data db: {field}"),
                program,
                "is not an executable program",
            ];
            told_before_anything_stops(&appliance, 2, &words);
        }
    }
}

/// Data in more directories within each other than files may be open.
#[test]
fn data_that_is_too_deep() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    appliance.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/srv/db"}]);
    });
    let mut deep = appliance.root.join("srv/db");
    for _ in 0..200 {
        deep.push("d");
    }
    crate::common::create_dir(&deep).unwrap();
    let limited = |hard: &str| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={hard}"));
        command
            .arg(UPDATE)
            .arg("--root")
            .arg(&appliance.root)
            .arg("apply");
        appliance.spawn(command).wait()
    };
    limited("128:128").refused(1, &["needs 603 open files", "RLIMIT_NOFILE"]);
    // What it is entitled to, it takes.
    limited("128:1024").code(0);
}

/// A killed updater's trial is ended by the next `apply`, which then goes on with its own work; whichever way that trial ends.
#[test]
fn what_was_open_is_ended_and_then_what_was_asked_for_is_done() {
    for healthy in [true, false] {
        let appliance = Appliance::new();
        appliance.install("1.1.0");
        let recipe = appliance.recipe("1.2.0");
        let recipe = match healthy {
            true => recipe,
            false => recipe.behaviour("node", "error500"),
        };
        appliance.release(&recipe.edit(|json| {
            for check in json["health"].as_array_mut().unwrap() {
                check["stable_s"] = json!(3);
                // The healthy one may take its time on a busy machine.
                check["start_period_s"] = json!(if healthy { 60 } else { 3 });
            }
        }));
        let apply = appliance.start(&["apply"]);
        wait_until("the trial", || appliance.phase() == "trial");
        appliance.kill_updater();
        apply.wait();
        appliance.publish_release("1.3.0");
        appliance.update(&["apply"]).code(0);
        appliance.runs("1.3.0");
        let refused = appliance.status()["refused"].clone();
        assert_eq!(refused, json!([]), "older than what runs");
    }
}

/// So many MB that do not compress.
fn noise(megabytes: u32, seed: u32) -> Vec<u8> {
    let at = |n: u32| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8;
    (0..megabytes << 20).map(at).collect()
}

/// Data that failed releases wrote is kept aside, on a small disk until its space is needed: the oldest goes, before there is no
/// space.
#[test]
fn leftovers_go_before_there_is_no_space() {
    let appliance = Appliance::new();
    let small = Mounted::small(&appliance);
    let notes = appliance.data().join("update/data");
    crate::common::create_dir(&notes).unwrap();
    let ids = ["ffffffffffffffff", "aaaaaaaaaaaaaaaa"];
    let copies = ids.map(|id| appliance.data().join("copies").join(format!("{id}-db")));
    for (number, id) in ids.iter().enumerate() {
        crate::common::create_dir(copies[number].join("next")).unwrap();
        fs::write(copies[number].join("next/db"), vec![7; 20 << 20]).unwrap();
        let note = json!({
            "format": 1, "id": id, "side": "next", "number": number, "reason": "set-aside",
            "release": {"set": "b", "version": "1.0.1", "manifest": null},
            "data": [{"name": "db", "method": "files", "place": "/data/db/db"}],
            "schemas": {"db": 2}, "until": "2026-01-01T00:00:00Z",
        });
        fs::write(notes.join(format!("{id}.json")), note.to_string()).unwrap();
    }
    let recipe = appliance.recipe("1.1.0");
    fs::write(recipe.dir.join("www/large"), noise(24, 0)).unwrap();
    appliance.release(&recipe);
    appliance
        .update(&["apply", "--dry-run"])
        .code(0)
        .says(&["deleting kept data ffffffffffffffff (of 1.0.1 (slot b), until 2026-01-01T00:00:00Z) to make room"]);
    assert!(copies.iter().all(|copy| copy.exists()));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    assert!(!copies[0].exists() && copies[1].exists());
    // With its copy.
    assert_eq!(fs::read_dir(&notes).unwrap().count(), 2);
    let status: Value = appliance.status();
    assert_eq!(status["failure"], Value::Null);
    appliance.services("stop");
    drop(small);
}

/// On a disk too small for three sets the old slot has to go first: what still runs from there is restarted before.
#[test]
fn what_runs_from_a_slot_that_has_to_go_is_restarted_first() {
    let appliance = Appliance::new();
    let small = Mounted::small(&appliance);
    for number in 1..=4_u32 {
        let version = format!("1.{number}.0");
        let recipe = appliance
            .recipe(&version)
            .program("console", "1.1.0")
            .edit(|json| json["services"][1]["uses"] = json!([]));
        fs::write(recipe.dir.join("www/large"), noise(20, number)).unwrap();
        appliance.release(&recipe);
        let apply = appliance.update(&["apply"]);
        apply.code(0).says(&["is proved healthy"]);
        if number > 2 {
            apply.says(&["deleting the release in slot"]);
        }
        appliance.runs(&version);
        assert_eq!(appliance.answers(), [version.as_str(), "1.1.0"]);
        for process in appliance.processes().values() {
            assert!(
                !path(process).contains("(deleted)"),
                "{version}: {process:?}"
            );
        }
    }
    appliance.services("stop");
    drop(small);
}
