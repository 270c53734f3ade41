//! Clocks that are wrong: nothing is blocked by one for ever, and what has surely expired stays refused.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::common::{Appliance, Outcome, Recipe, Running, path, text, wait_until};

/// Runs qx-update under another clock, which runs on from that time.
#[track_caller]
fn at<'a>(appliance: &'a Appliance, time: &str, arguments: &[&str]) -> Outcome<'a> {
    start_at(appliance, time, arguments).wait()
}

fn start_at<'a>(appliance: &'a Appliance, time: &str, arguments: &[&str]) -> Running<'a> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qx-update"));
    command.arg("--root").arg(&appliance.root).args(arguments);
    // Not the `faketime` command, which waits for the services that are started, too.
    command
        .env("LD_PRELOAD", libfaketime())
        .env("FAKETIME", format!("@{time}"))
        // Time-outs are as long as ever.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    appliance.spawn(command)
}

fn libfaketime() -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = found.map(|dir| dir.path().join("faketime/libfaketime.so.1"));
    found
        .find(|path| path.exists())
        .expect("libfaketime (Debian: faketime) is not installed")
}

fn days_from_now(days: i64) -> String {
    let seconds = Duration::from_secs(days.unsigned_abs() * 86_400);
    let now = SystemTime::now();
    let then = if days < 0 {
        now - seconds
    } else {
        now + seconds
    };
    humantime::format_rfc3339_seconds(then).to_string()
}

/// As faketime wants it.
fn clock(rfc3339: &str) -> String {
    rfc3339.replace('T', " ").replace('Z', "")
}

fn freshness(appliance: &Appliance) -> String {
    let status = appliance.status();
    status["refreshed"]["freshness"]
        .as_str()
        .unwrap_or_else(|| panic!("{status:#}"))
        .to_owned()
}

const NO_BATTERY: &str = "1970-01-01 00:02:00";
const OVERFLOWN: &str = "2106-02-07 06:28:00";

/// A clock that was never set, and one that overflowed, install updates, and status says what that means.
#[test]
fn without_a_clock_updates_go_on() {
    let appliance = Appliance::new();
    for (version, time) in [("1.1.0", NO_BATTERY), ("1.2.0", OVERFLOWN)] {
        appliance.publish_release(version);
        let applied = at(&appliance, time, &["apply"]);
        applied
            .code(0)
            .says(&["freshness not verified", &time[..10]]);
        appliance.runs(version);
        assert_eq!(freshness(&appliance), "not_verified");
        let status = appliance.status();
        assert_eq!(status["last"]["result"], "done", "{status:#}");
        assert_eq!(status["problems"], json!([]), "it is no error: {status:#}");
        appliance
            .update(&["status"])
            .says(&["freshness not verified", "set the clock"]);
        at(&appliance, time, &["apply"]).code(3);
    }
    appliance.update(&["check"]).code(3);
    assert_eq!(freshness(&appliance), "verified");
}

/// A clock that steps back between two updates.
#[test]
fn a_clock_that_steps_back() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    at(&appliance, "2020-05-05 05:05:05", &["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// What had expired when the program was built is refused under any clock.
#[test]
fn what_has_expired_stays_refused() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    appliance.signer().edit("timestamp", |signed| {
        signed["expires"] = json!("2026-01-01T00:00:00Z");
    });
    for time in [NO_BATTERY, "2025-12-31 00:00:00", OVERFLOWN] {
        at(&appliance, time, &["apply"]).refused(5, &["timestamp", "expired", "2026-01-01"]);
        appliance.runs("1.1.0");
    }
}

/// A freeze is no longer than from one update to the next: what was signed lately tells what time has passed.
#[test]
fn what_was_signed_lately_raises_the_floor() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.signer().edit("timestamp", |signed| {
        signed["x-issued"] = json!(days_from_now(400));
        signed["expires"] = json!(days_from_now(490));
    });
    let then = clock(&days_from_now(401));
    appliance.signer().edit("snapshot", |signed| {
        signed["expires"] = json!(days_from_now(450));
    });
    appliance.signer().edit("targets", |signed| {
        signed["expires"] = json!(days_from_now(450));
    });
    // The edits renewed the timestamp, and dated it as the publisher's clock is: what counts is said again.
    appliance.signer().edit("timestamp", |signed| {
        signed["x-issued"] = json!(days_from_now(400));
        signed["expires"] = json!(days_from_now(490));
    });
    at(&appliance, &then, &["check"]).code(3);
    assert_eq!(freshness(&appliance), "verified");
    appliance.publish_release("1.2.0");
    appliance.signer().edit("timestamp", |signed| {
        signed["x-issued"] = json!(days_from_now(10));
        signed["expires"] = json!(days_from_now(390));
    });
    for time in [NO_BATTERY, OVERFLOWN] {
        at(&appliance, time, &["apply"]).refused(5, &["timestamp", "expired"]);
    }
    appliance.runs("1.1.0");
}

/// A clock that is ahead, and could be right, refuses what would have expired; the line names the clock. Set right, it
/// leaves no trace.
#[test]
fn a_clock_that_is_ahead_leaves_no_trace() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let ahead = days_from_now(800);
    at(&appliance, &clock(&ahead), &["apply"]).refused(5, &["timestamp", "expired", &ahead[..10]]);
    appliance.runs("1.1.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(freshness(&appliance), "verified");
}

/// What is staged was verified then: neither a clock nor a source that is gone keeps it from being switched to.
#[test]
fn what_is_staged_does_not_expire() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let begun = appliance.temp().join("begun");
    let script = format!("[ -e {0} ] || {{ touch {0}; sleep 30; }}", path(&begun));
    appliance.release(&appliance.recipe("1.2.0").migration(&script, 60));
    let mut apply = appliance.start(&["apply"]);
    wait_until("the migration runs", || begun.exists() || !apply.runs());
    appliance.kill_updater();
    apply.wait();
    appliance.source("http://127.0.0.1:9");
    appliance.edit_config(|config| config["limits"] = json!({"retries": 0}));
    let ahead = clock(&days_from_now(800));
    // What is asked for by name is not what is staged.
    at(&appliance, &ahead, &["apply", "1.3.0"]).code(1);
    appliance.runs("1.1.0");
    at(&appliance, &ahead, &["apply"]).code(0);
    appliance.runs("1.2.0");
}

const TODAY: &str = "2026-11-11 11:11:11";

/// An appliance that runs 1.1.0, whose data is a file.
fn with_data() -> Appliance {
    let appliance = Appliance::new();
    appliance.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/data/db/db"}]);
    });
    crate::common::create_dir(appliance.data().join("db")).unwrap();
    fs::write(appliance.data().join("db/db"), "rows").unwrap();
    let recipe = appliance.recipe("1.1.0").edit(|json| {
        json["data"] = super::data::adopting(
            json!([{"name": "db", "accepts_from": 1, "accepts_to": 1, "schema_after": 1}]),
        );
    });
    appliance.release(&recipe);
    appliance.update(&["apply"]).code(0);
    appliance
}

/// A release that changes the data.
fn migrating(appliance: &Appliance, version: &str) -> Recipe {
    let recipe = appliance.recipe(version).migration("echo new >$1", 60);
    recipe.edit(|json| {
        json["data"] =
            json!([{"name": "db", "accepts_from": 2, "accepts_to": 2, "schema_after": 2}]);
        json["migrate"] =
            json!({"run": ["migrations/run", "{data:db}"], "timeout_s": 300, "touches": ["db"]});
    })
}

fn data(appliance: &Appliance) -> String {
    text(&appliance.data().join("db/db"))
}

/// Installs a release, and kills the updater in its trial.
fn kill_in_trial(appliance: &Appliance, time: &str) {
    let mut apply = start_at(appliance, time, &["apply"]);
    wait_until("the trial", || {
        appliance.phase() == "trial" || !apply.runs()
    });
    appliance.kill_updater();
    apply.wait();
    assert_eq!(appliance.phase(), "trial", "{}", appliance.tree());
}

/// From here on it is another boot, as this root sees it; its link stage runs.
fn boot(appliance: &Appliance, number: u32, time: &str) {
    appliance.boot_id(number);
    at(appliance, time, &["recover", "--stage", "link"]).code(0);
}

/// A clock that is set forward or back by decades while a release is on trial, between boots or not, makes no trial old:
/// a release that is sick is undone with its data, a healthy one stays.
#[test]
fn a_clock_that_jumps_in_a_trial_changes_no_decision() {
    let appliance = with_data();
    let jumps = [
        (NO_BATTERY, None, TODAY),
        (OVERFLOWN, None, NO_BATTERY),
        (TODAY, Some(OVERFLOWN), NO_BATTERY),
        (NO_BATTERY, Some(NO_BATTERY), OVERFLOWN),
    ];
    for (number, (begun, booted, ended)) in (0..).zip(jumps) {
        let version = format!("1.2.{number}");
        eprintln!("{version}: {begun}, {booted:?}, {ended}");
        appliance.release(&migrating(&appliance, &version).behaviour("node", "error500"));
        kill_in_trial(&appliance, begun);
        assert_eq!(data(&appliance), "new\n");
        if let Some(time) = booted {
            boot(&appliance, number, time);
        }
        let status = at(&appliance, ended, &["status"]);
        assert!(!status.stdout.contains("too old"), "{}", status.stdout);
        at(&appliance, ended, &["confirm"]).refused(8, &[&version]);
        appliance.runs("1.1.0");
        assert_eq!(data(&appliance), "rows");
        assert_eq!(appliance.status()["needs_person"], false);
    }
    appliance.release(&migrating(&appliance, "1.3.0"));
    kill_in_trial(&appliance, OVERFLOWN);
    boot(&appliance, 9, NO_BATTERY);
    at(&appliance, TODAY, &["confirm"]).code(0);
    appliance.runs("1.3.0");
    assert_eq!(data(&appliance), "new\n");
}

/// A trial that is too old by the time that it was seen to last stays so under every clock, at the next boot, too.
#[test]
fn no_clock_makes_an_old_trial_young() {
    let appliance = with_data();
    appliance.edit_config(|config| config["limits"] = json!({"trial_max_age_s": 1}));
    appliance.release(&migrating(&appliance, "1.2.0").behaviour("node", "error500"));
    kill_in_trial(&appliance, TODAY);
    wait_until("the trial is old", || {
        appliance.status()["needs_person"] == true
    });
    for (number, time) in (0..).zip([NO_BATTERY, TODAY, OVERFLOWN]) {
        at(&appliance, time, &["status"]).says(&["too old"]);
        at(&appliance, time, &["rollback"]).refused(10, &["--set-aside-data"]);
        assert_eq!(data(&appliance), "new\n");
        boot(&appliance, number, time);
        assert_eq!(appliance.phase(), "trial");
    }
    at(&appliance, NO_BATTERY, &["confirm"]).refused(10, &["too old"]);
    assert_eq!(data(&appliance), "new\n");
    at(&appliance, NO_BATTERY, &["rollback", "--set-aside-data"]).code(0);
    appliance.runs("1.1.0");
    assert_eq!(data(&appliance), "rows");
}
