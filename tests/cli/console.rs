//! What a person at the console asks for by a word on the kernel command line, which `initramfs/qx-recover` carries out before any
//! service starts: `rollback --at-boot`, `apply --at-boot`. No service is stopped or started; the boot's `confirm` proves it.
//! And what the boot itself learns of those before it.

use std::fs;

use serde_json::json;

use crate::common::{Appliance, wait_until};

/// The machine was switched off, and is at the place in its boot where the recovery is done.
fn before_the_services(appliance: &Appliance, boot: u32) {
    appliance.power_off();
    appliance.told();
    appliance.boot_id(boot);
    appliance.update(&["recover"]).code(0);
}

/// The rest of the boot.
fn runlevel(appliance: &Appliance) {
    let told = appliance.told();
    assert!(told.is_empty(), "a service was called at boot: {told:?}");
    appliance.update(&["recover", "--stage", "data"]).code(0);
    appliance.services("start");
    appliance.told();
}

/// A confirmed release is left for the one before it. The word may stay in the boot loader: it goes back once.
#[test]
fn the_console_goes_back_from_a_confirmed_release() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.install("1.2.0");
    before_the_services(&appliance, 2);
    appliance.update(&["rollback", "--at-boot"]).code(0);
    assert_eq!(appliance.phase(), "trial");
    runlevel(&appliance);
    appliance.update(&["confirm"]).code(0);
    appliance.runs("1.1.0");
    let refused = &appliance.status()["refused"][0];
    assert_eq!(
        (&refused["version"], &refused["kind"]),
        (&json!("1.2.0"), &json!("held"))
    );
    for boot in [3, 4] {
        before_the_services(&appliance, boot);
        appliance
            .update(&["rollback", "--at-boot"])
            .code(3)
            .says(&["1.1.0", "an earlier boot went back"]);
        runlevel(&appliance);
        appliance.update(&["confirm"]).code(0);
        appliance.runs("1.1.0");
    }
}

/// The same boot may be cut short before `confirm`, and the word is there again.
#[test]
fn the_console_goes_back_once_however_often_it_boots() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.install("1.2.0");
    for boot in [2, 3] {
        before_the_services(&appliance, boot);
        let code = if boot == 2 { 0 } else { 3 };
        appliance.update(&["rollback", "--at-boot"]).code(code);
        assert_eq!(appliance.phase(), "trial");
    }
    runlevel(&appliance);
    appliance.update(&["confirm"]).code(0);
    appliance.runs("1.1.0");
}

/// A release on trial that does not come up is given up, and held: a person said so.
#[test]
fn the_console_ends_a_trial() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.release(&appliance.recipe("1.2.0").edit(|json| {
        json["health"][0]["start_period_s"] = json!(3000);
        json["health"][0]["stable_s"] = json!(3000);
    }));
    let _applying = appliance.start(&["apply"]);
    wait_until("the trial", || appliance.phase() == "trial");
    appliance.kill_updater();
    before_the_services(&appliance, 2);
    // Not in the middle of a trial.
    appliance
        .update(&["apply", "--at-boot"])
        .refused(10, &["trial", "1.2.0", "qx.rollback"]);
    appliance.update(&["rollback", "--at-boot"]).code(0);
    assert_eq!(appliance.phase(), "reverting");
    before_the_services(&appliance, 3);
    appliance.update(&["rollback", "--at-boot"]).code(3);
    runlevel(&appliance);
    appliance.update(&["confirm"]).code(8);
    appliance.runs("1.1.0");
    let refused = &appliance.status()["refused"][0];
    assert_eq!(
        (&refused["version"], &refused["kind"]),
        (&json!("1.2.0"), &json!("held"))
    );
}

/// A release is installed before anything runs, on an empty data partition as well, and proved once the services do. One that is not
/// healthy goes back, though no health check could be tried before it.
#[test]
fn the_console_installs_a_release() {
    for (sick, installed) in [(false, false), (false, true), (true, false), (true, true)] {
        let appliance = Appliance::new();
        let before = match installed {
            true => {
                appliance.install("1.1.0");
                "1.1.0"
            }
            false => "1.0.0",
        };
        appliance.release(&appliance.recipe("1.2.0").behaviour(
            "node",
            match sick {
                true => "error500",
                false => "ok",
            },
        ));
        if !installed {
            appliance.power_off();
            for entry in fs::read_dir(appliance.data()).unwrap() {
                let path = entry.unwrap().path();
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
        before_the_services(&appliance, 2);
        let at_boot = ["apply", "--at-boot", "--from", "/srv/repo"];
        appliance.update(&at_boot).code(0).says(&["on trial"]);
        assert_eq!(appliance.phase(), "trial");
        runlevel(&appliance);
        let (code, runs) = match (sick, installed) {
            (false, _) => (0, "1.2.0"),
            (true, true) => (8, before),
            (true, false) => (9, before),
        };
        appliance.update(&["confirm"]).code(code);
        appliance.runs(runs);
        // A word that stays in the boot loader installs it once.
        before_the_services(&appliance, 3);
        appliance.update(&at_boot).code(if sick { 5 } else { 3 });
        runlevel(&appliance);
        appliance.update(&["confirm"]).code(0);
        appliance.runs(runs);
    }
}

/// The kernel's last words, or a watchdog's, as the next boot finds them.
fn crashed(appliance: &Appliance, by: &str, number: u32) {
    let (file, text) = match by {
        "panic" => (
            format!("sys/fs/pstore/dmesg-ramoops-{number}"),
            "Panic#1 Part1\n<0>[    7.1] Kernel panic - not syncing: Fatal exception\n<4>[    7.2] CPU: 0",
        ),
        // It was survived.
        "oops" => (
            format!("sys/fs/pstore/dmesg-ramoops-{number}"),
            "Oops#1 Part1\n<4>[    7.1] BUG: unable to handle page fault",
        ),
        _ => ("sys/class/watchdog/watchdog0/bootstatus".to_owned(), "32\n"),
    };
    let file = appliance.root.join(file);
    crate::common::create_dir(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// A confirmed release with which three boots in a row crash before they are complete is left, and held; `status` says what ended them.
/// That the power went, or that something else was survived, is no crash.
#[test]
fn crashes_of_a_confirmed_release_are_told_from_power_cuts() {
    for (by, left) in [
        ("panic", true),
        ("watchdog", true),
        ("power", false),
        ("oops", false),
    ] {
        let appliance = Appliance::new();
        appliance.install("1.1.0");
        appliance.install("1.2.0");
        appliance.boot_id(2);
        appliance.update(&["recover"]).code(0);
        appliance.update(&["confirm"]).code(0);
        assert_eq!(appliance.status()["problems"], json!([]), "{by}");
        for boot in 3..=6 {
            before_the_services(&appliance, boot);
            assert_eq!(
                appliance.link(),
                if boot == 6 && left {
                    "slots/a"
                } else {
                    "slots/b"
                },
                "{by} {boot}"
            );
            if by != "power" && boot < 6 {
                crashed(&appliance, by, boot);
            }
        }
        runlevel(&appliance);
        let problems = appliance.status()["problems"].to_string();
        let expected = match by {
            "panic" => "Kernel panic - not syncing: Fatal exception",
            "watchdog" => "the watchdog watchdog0 reset the machine",
            _ => "no cause is known",
        };
        assert!(
            problems.contains(expected) && problems.contains("the last 3 boots"),
            "{by}: {problems}"
        );
        appliance.update(&["confirm"]).code(0);
        appliance.runs(if left { "1.1.0" } else { "1.2.0" });
        let status = appliance.status();
        assert_eq!(
            status["boots"].as_array().unwrap().last().unwrap()["complete"],
            true
        );
        let held = &status["refused"][0];
        match left {
            true => assert_eq!(
                (&held["version"], &held["kind"]),
                (&json!("1.2.0"), &json!("held"))
            ),
            false => assert!(held.is_null(), "{status:#}"),
        }
        // The next boot has nothing to tell.
        before_the_services(&appliance, 7);
        let problems = appliance.status()["problems"].to_string();
        assert!(!problems.contains("did not come to"), "{problems}");
    }
}

/// A trial that crashes says so in the reason of its end.
#[test]
fn a_trial_that_panics_boot_after_boot() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.release(&appliance.recipe("1.2.0"));
    appliance.power_off();
    appliance.update(&["apply", "--at-boot"]).code(0);
    for boot in 2..=5 {
        before_the_services(&appliance, boot);
        crashed(&appliance, "panic", boot);
    }
    assert_eq!(appliance.phase(), "reverting");
    runlevel(&appliance);
    appliance.update(&["confirm"]).code(8);
    appliance.runs("1.1.0");
    let reason = appliance.status()["last"]["reason"].to_string();
    assert!(
        reason.contains("3 boots")
            && reason.contains("Kernel panic - not syncing: Fatal exception"),
        "{reason}"
    );
}

/// Where `confirm` is to kick a watchdog it does so in a trial only, and disarms it in the end.
#[test]
fn the_watchdog_is_kicked_by_confirm_in_a_trial() {
    let appliance = Appliance::new();
    appliance.edit_config(|config| config["watchdog"] = json!("/dev/watchdog"));
    let device = appliance.root.join("dev/watchdog");
    crate::common::create_dir(device.parent().unwrap()).unwrap();
    fs::write(&device, "").unwrap();
    appliance.install("1.1.0");
    appliance.update(&["confirm"]).code(0);
    assert_eq!(fs::read(&device).unwrap(), b"");
    appliance.release(&appliance.recipe("1.2.0"));
    appliance.power_off();
    appliance.update(&["apply", "--at-boot"]).code(0);
    appliance.services("start");
    appliance.update(&["confirm"]).code(0);
    let kicks = fs::read(&device).unwrap();
    assert!(
        kicks.starts_with(b"\0") && kicks.ends_with(b"V"),
        "{kicks:?}"
    );
    appliance.runs("1.2.0");
}
