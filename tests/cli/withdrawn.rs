//! Releases that their publisher takes back: those who have them keep them, and no other installs them.

use std::fs;
use std::process::Command;

use crate::common::{Appliance, path};

#[track_caller]
fn withdraw(appliance: &Appliance, version: &str) {
    let (repo, keys) = (path(&appliance.repo), path(&appliance.keys));
    let why = "it loses mail";
    appliance
        .publish(&[
            "withdraw", version, "--reason", why, "--repo", repo, "--keys", keys,
        ])
        .code(0);
}

/// Keeps the repository as it is now in `srv/NAME`.
fn keep(appliance: &Appliance, name: &str) {
    let to = appliance.root.join("srv").join(name);
    let status = Command::new("cp")
        .arg("-a")
        .arg(&appliance.repo)
        .arg(to)
        .status();
    assert!(status.unwrap().success());
}

/// An appliance that has it goes on with it, is told, and takes the next; another one never installs it, and says why.
#[test]
fn who_has_it_keeps_it_and_no_other_takes_it() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    withdraw(&appliance, "1.2.0");
    for command in ["check", "apply"] {
        let before = appliance.picture();
        appliance
            .update(&[command])
            .code(3)
            .says(&["1.2.0 is left out", "it loses mail"]);
        before.unchanged(&appliance);
    }
    appliance.refuses(
        &["apply", "1.2.0"],
        5,
        &["1.2.0", "withdrawn", "it loses mail"],
    );
    appliance.runs("1.1.0");

    let has = Appliance::new();
    has.install("1.1.0");
    has.install("1.2.0");
    withdraw(&has, "1.2.0");
    has.update(&["apply"]).code(3);
    has.runs("1.2.0");
    let status = has.update(&["status"]);
    status.says(&["1.2.0 (slot b) runs", "withdrawn", "it loses mail"]);
    // What it installed is repaired as ever.
    let node = has.data().join(has.link()).join("bin/qx-node");
    has.services("stop");
    fs::remove_file(node).unwrap();
    has.update(&["recover"]).code(0);
    has.services("start");
    has.update(&["apply", "--repair"]).code(0);
    has.runs("1.2.0");
    has.publish_release("1.3.0");
    has.update(&["apply"]).code(0);
    has.runs("1.3.0");
    let status = has.update(&["status"]);
    assert!(!status.stdout.contains("withdrawn"), "{}", status.stdout);
}

/// A mirror that goes on offering it is refused by whoever has seen that it was taken back.
#[test]
fn no_mirror_hides_a_withdrawal() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    keep(&appliance, "before");
    withdraw(&appliance, "1.2.0");
    appliance.update(&["check"]).code(3);
    appliance.sources(&["/srv/before"]);
    appliance.refuses(&["apply"], 5, &["srv/before"]);
    appliance.runs("1.1.0");
    // Nor one that has lost its manifest, or an artifact.
    appliance.sources(&["/srv/repo"]);
    let targets = appliance.repo.join("targets/quantix-os");
    fs::remove_dir_all(targets.join("stable")).unwrap();
    appliance.update(&["apply"]).code(3);
}

/// What lies staged is not switched to once it is known that it was taken back, with or without a source.
#[test]
fn what_is_staged_is_given_up() {
    for command in ["apply", "check"] {
        let appliance = Appliance::new();
        appliance.install("1.1.0");
        appliance.publish_release("1.2.0");
        appliance.update(&["apply", "--stage-only"]).code(0);
        assert_eq!(appliance.phase(), "staged");
        withdraw(&appliance, "1.2.0");
        // Without a source it is not known.
        appliance.update(&["apply", "--dry-run"]).code(3);
        assert_eq!(appliance.phase(), "staged");
        appliance.update(&[command]).code(3);
        assert_eq!(appliance.phase(), "idle", "{command}");
        appliance.sources(&["/srv/nothing"]);
        appliance.update(&["apply"]).code(1);
        appliance.runs("1.1.0");
        let status = appliance.status();
        let reason = status["last"]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("withdrawn"), "{status:#}");
        // The slot is free for the next.
        appliance.sources(&["/srv/repo"]);
        appliance.install("1.3.0");
        appliance.update(&["rollback"]).code(0);
        appliance.runs("1.1.0");
    }
}
