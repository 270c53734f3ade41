//! The kernel gone, and the updater gone, in each phase of an update: what the next boot, or the next command, makes of it.

use std::process::Command;

use serde_json::{Value, json};

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// Intent: the kernel goes while a release is being staged: v1 runs, and the next `apply` succeeds.
#[test]
fn the_kernel_goes_while_staging() {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1("cut-staging-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("cut-staging").options(&["--repo", &repository.url]);
    appliance.boot();
    let _cut = appliance.spawn("qx-update apply");
    wait_phase(&appliance, "staging");
    appliance.kill();
    assert_eq!(phase_on_disk(&appliance), "staging");
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["phase"], "idle", "{status:#}");
    appliance.assert_runs(&v1);
    appliance.ok("! ls -d /data/slots/*.next");
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
}

/// Intent: the kernel goes while the services are down and the migration runs: v1 runs again, and the next `apply`
/// succeeds.
#[test]
fn the_kernel_goes_in_the_migration() {
    let v1 = Release::named("v1");
    let slow = Release::derived("slow-migration", "migration", "1.4.0", |recipe, dir| {
        let script =
            "#!/bin/sh\n[ -e /data/seen/it ] && exit 0\ntouch /data/seen/it\nsync\nsleep 86400\n";
        std::fs::write(dir.join("migrations/migrate"), script).unwrap();
        recipe["migrate"]["timeout_s"] = json!(86400);
        recipe["health"][1]["json"]["equals"] = json!("1.3.6");
    });
    let repository = Repository::with_v1("cut-migration-repository", &[&slow]);
    let mut appliance = Appliance::with_v1("cut-migration").options(&["--repo", &repository.url]);
    appliance.boot();
    // A migration is not run as root.
    appliance.ok("mkdir /data/seen && chown quantix /data/seen");
    let _cut = appliance.spawn("qx-update apply");
    appliance.wait_for("the migration", |a| {
        (a.run("[ -e /data/seen/it ]").code == 0).then_some(())
    });
    assert_eq!(appliance.phase(), "switching");
    let status = appliance.status();
    assert_eq!(status["running"]["version"], v1.version, "{status:#}");
    for service in status["services"].as_array().unwrap() {
        assert_eq!(service["state"], "stopped", "{status:#}");
    }
    appliance.kill();
    assert_eq!(phase_on_disk(&appliance), "switching");
    appliance.boot();
    appliance.settled();
    appliance.assert_runs(&v1);
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&slow);
}

/// Intent: the kernel goes in the trial: the next boot takes it up again, and proves it.
#[test]
fn the_kernel_goes_in_the_trial() {
    let v2 = Release::named("v2");
    let repository = Repository::with_v1("cut-trial-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("cut-trial").options(&["--repo", &repository.url]);
    appliance.boot();
    let _cut = appliance.spawn("qx-update apply");
    wait_phase(&appliance, "trial");
    appliance.kill();
    assert_eq!(phase_on_disk(&appliance), "trial");
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["last"]["result"], "done", "{status:#}");
    assert_eq!(status["refused"], json!([]), "{status:#}");
    appliance.assert_runs(&v2);
    appliance.qx_update("apply", 3);
}

/// Intent: the kernel goes on the way back from a release that crashed: the next boot goes back to the end of it, and
/// the quarantine says why.
#[test]
fn the_kernel_goes_on_the_way_back() {
    let (v1, crash) = (Release::named("v1"), Release::named("crash"));
    let repository = Repository::with_v1("cut-reverting-repository", &[&crash]);
    let mut appliance = Appliance::with_v1("cut-reverting").options(&["--repo", &repository.url]);
    appliance.boot();
    let _cut = appliance.spawn("qx-update apply");
    wait_phase(&appliance, "reverting");
    appliance.kill();
    assert_eq!(phase_on_disk(&appliance), "reverting");
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["last"]["result"], "back_to_previous", "{status:#}");
    appliance.assert_runs(&v1);
    let refused = appliance.qx_update("apply", 5);
    assert!(refused.contains("quantix-controlplane"), "{refused}");
}

/// Intent: an updater that is killed in a trial is taken up again by the next `apply`.
#[test]
fn an_updater_killed_in_the_trial_is_resumed_by_apply() {
    resumed_by("apply", 3);
}

/// Intent: the same by `confirm`.
#[test]
fn an_updater_killed_in_the_trial_is_resumed_by_confirm() {
    resumed_by("confirm", 0);
}

fn resumed_by(command: &str, code: i32) {
    let v2 = Release::named("v2");
    let name = format!("killed-{command}");
    let repository = Repository::with_v1(&format!("{name}-repository"), &[&v2]);
    let mut appliance = Appliance::with_v1(&name).options(&["--repo", &repository.url]);
    appliance.boot();
    let killed = appliance.spawn("qx-update apply");
    wait_phase(&appliance, "trial");
    let worker = &appliance.status()["busy"]["pid"];
    assert!(worker.is_u64(), "nobody is at work");
    appliance.ok(&format!("kill -KILL {worker}"));
    // Services were stopped: somebody has to look, or to end what was begun.
    let said = killed.exits(10);
    assert!(said.contains("qx-update confirm"), "{said}");
    let status = appliance.status();
    assert_eq!(status["phase"], "trial", "{status:#}");
    assert_eq!(status["busy"], Value::Null, "{status:#}");
    appliance.qx_update(command, code);
    let status = appliance.settled();
    assert_eq!(status["phase"], "idle", "{status:#}");
    assert_eq!(status["last"]["result"], "done", "{status:#}");
    appliance.assert_runs(&v2);
}

fn wait_phase(appliance: &Appliance, phase: &str) {
    appliance.wait_for(&format!("the phase {phase}"), |a| {
        (a.phase() == phase).then_some(())
    });
}

/// What the disk of a dead appliance says, once its journal is replayed: in a copy, for the appliance is to do that itself.
fn phase_on_disk(appliance: &Appliance) -> String {
    let disk = appliance.disk();
    let copy = disk.with_extension("copy");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(&copy).output();
        let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    built::must_succeed(
        Command::new("cp")
            .arg("--sparse=always")
            .args([&disk, &copy]),
    );
    run("e2fsck", &["-p", "-E", "journal_only"]);
    let newest = ["state.0", "state.1"]
        .iter()
        .filter_map(|name| {
            let text = run("debugfs", &["-R", &format!("cat /update/{name}")]);
            let record: Value = serde_json::from_str(text.lines().next()?).ok()?;
            Some((record["sequence"].as_u64()?, record))
        })
        .max_by_key(|(sequence, _)| *sequence);
    std::fs::remove_file(&copy).unwrap();
    newest
        .and_then(|(_, record)| Some(record["record"]["phase"].as_str()?.to_owned()))
        .unwrap_or_default()
}
