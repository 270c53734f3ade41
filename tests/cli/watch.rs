//! After a release was confirmed: a crash loop that comes later is told, and undone if the release asks for it.

use std::fs;

use serde_json::json;

use crate::common::{Appliance, Recipe, exe, json_file, text, wait_until};

fn watched(appliance: &Appliance, version: &str, undo: bool) -> Recipe {
    appliance
        .recipe(version)
        .edit(|json| json["watch"] = json!({"for_s": 600, "undo": undo}))
}

/// Plays the supervisor of a program that ends soon after each start, until `told` holds.
fn crash(appliance: &Appliance, told: impl Fn() -> bool) {
    let slot = appliance.data().join(appliance.link());
    wait_until("the crash loop is noticed", || {
        if !told() {
            // Not one that the way back has started.
            let runs = appliance.pid("node").and_then(exe);
            if runs.is_some_and(|exe| exe.starts_with(&slot)) {
                appliance.kill_service("node");
            }
            // While an updater works on it the service is its business.
            if appliance.phase() == "idle" {
                appliance.service("start", "node");
            }
            std::thread::sleep(std::time::Duration::from_secs(4));
        }
        told()
    });
}

/// A service that was proved and crashes again and again afterwards is reported, by `status` too; nothing is changed if the
/// release does not ask for that.
#[test]
fn a_crash_loop_after_confirmation_is_reported() {
    let appliance = Appliance::new();
    appliance.release(&watched(&appliance, "1.1.0", false));
    appliance.update(&["apply"]).code(0);
    let status = appliance.update(&["status"]);
    assert!(!status.stdout.contains("problem"), "{}", status.stdout);
    // Without anybody who watches, one restart is told; that it is down is told once.
    appliance.kill_service("node");
    let status = appliance.update(&["status"]);
    status.says(&["node: NOT RUNNING"]);
    assert!(
        !status.stdout.contains("started again"),
        "{}",
        status.stdout
    );
    appliance.service("start", "node");
    appliance
        .update(&["status"])
        .says(&["service node was started again after 1.1.0 (slot a) was confirmed"]);
    let mut watch = appliance.start(&["confirm", "--watch"]);
    let problem = || {
        appliance
            .update(&["status"])
            .stdout
            .contains("node is in a crash loop")
    };
    crash(&appliance, problem);
    assert!(watch.runs(), "it goes on");
    appliance.runs("1.1.0");
    appliance.update(&["status"]).says(&[
        "node is in a crash loop: it was started again",
        "after 1.1.0 (slot a) was confirmed",
    ]);
    // The next release begins anew.
    appliance.kill_updater();
    drop(watch);
    appliance.service("start", "node");
    appliance.release(&watched(&appliance, "1.2.0", false));
    appliance.update(&["apply"]).code(0);
    let status = appliance.update(&["status"]);
    assert!(!status.stdout.contains("crash loop"), "{}", status.stdout);
}

/// A boot starts every service: that is no restart that would have to be told, whether somebody watches or not.
#[test]
fn a_boot_starts_every_service() {
    let appliance = Appliance::new();
    appliance.release(&watched(&appliance, "1.1.0", true));
    appliance.update(&["apply"]).code(0);
    // Longer than this machine, whose uptime the new boot has, has been running.
    let note = appliance.data().join("update/watched.json");
    // As an earlier version wrote it: without a checksum.
    let mut longer = json_file(&note);
    longer["for_s"] = json!(6_000_000_000_u64);
    longer.as_object_mut().unwrap().remove("sha256");
    fs::write(&note, longer.to_string()).unwrap();
    appliance.services("stop");
    appliance.boot_id(1);
    appliance.update(&["recover"]).code(0);
    appliance.services("start");
    for watches in [false, true] {
        let watch = watches.then(|| appliance.start(&["confirm", "--watch"]));
        if watches {
            let this_boot = "00000000-0000-4000-8000-000000000001";
            wait_until("this boot is watched", || {
                text(&note).matches(this_boot).count() == 1
            });
        }
        let status = appliance.update(&["status"]);
        assert_eq!(
            appliance.status()["problems"],
            json!([]),
            "{}",
            status.stdout
        );
        if watches {
            appliance.kill_updater();
        }
        drop(watch);
    }
}

/// A release that asks for it is undone, quarantined with the reason, and the previous one runs.
#[test]
fn a_crash_loop_is_undone_if_the_release_asks_for_it() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.release(&watched(&appliance, "1.2.0", true));
    appliance.update(&["apply"]).code(0);
    let watch = appliance.start(&["confirm", "--watch"]);
    crash(&appliance, || {
        appliance.status()["last"]["kind"] == "rollback" && appliance.phase() == "idle"
    });
    appliance.kill_updater();
    drop(watch);
    appliance.runs("1.1.0");
    let status = appliance.status();
    assert_eq!(status["last"]["result"], "done", "{status:#}");
    assert_eq!(status["refused"][0]["version"], "1.2.0");
    assert_eq!(status["refused"][0]["kind"], "quarantined");
    appliance
        .update(&["status"])
        .says(&["node is in a crash loop"]);
    appliance.refuses(&["apply"], 5, &["1.2.0", "quarantined", "crash loop"]);
}

/// A service in a crash loop is down most of the time, also when it is undone: it was not stopped by anybody, and runs afterwards.
#[test]
fn a_crash_loop_is_undone_while_the_service_is_down() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.release(&watched(&appliance, "1.2.0", true));
    appliance.update(&["apply"]).code(0);
    let watch = appliance.start(&["confirm", "--watch"]);
    let log = appliance.data().join("update/log/update.log");
    let noticed = || text(&log).contains("is in a crash loop");
    let crashes = std::time::Duration::from_secs(6);
    let mut last = std::time::Instant::now();
    wait_until("the crash loop is noticed", || {
        if last.elapsed() > crashes {
            appliance.kill_service("node");
            appliance.service("start", "node");
            last = std::time::Instant::now();
        }
        noticed()
    });
    // Before it is looked at again for the way back: the checks come first, and take their time.
    appliance.kill_service("node");
    wait_until("the update is undone", || {
        appliance.status()["last"]["kind"] == "rollback" && appliance.phase() == "idle"
    });
    appliance.kill_updater();
    drop(watch);
    appliance.runs("1.1.0");
}

/// What a person stops or restarts now and then is no crash loop, and a watch that is over says nothing.
#[test]
fn a_person_at_work_is_no_crash_loop() {
    let appliance = Appliance::new();
    appliance.release(
        &watched(&appliance, "1.1.0", true).edit(|json| json["watch"]["for_s"] = json!(12)),
    );
    appliance.update(&["apply"]).code(0);
    let watch = appliance.start(&["confirm", "--watch"]);
    appliance.service("stop", "node");
    let note = appliance.data().join("update/watched.json");
    wait_until("the watch is over", || !note.exists());
    // What it said may still be on its way.
    wait_until("it says so", || {
        watch.said().contains("watched for 12 s: no crash loop")
    });
    appliance.kill_updater();
    appliance.service("start", "node");
    wait_until("node runs again", || {
        appliance.answers().iter().all(|version| version == "1.1.0")
    });
    appliance.runs("1.1.0");
    let status = appliance.update(&["status"]);
    assert!(!status.stdout.contains("problem"), "{}", status.stdout);
}
