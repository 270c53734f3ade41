//! Applications that must not be interrupted: they hold a lock, or a command of the appliance says so.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::{Value, json};

use crate::common::{Appliance, path, text, wait_until, write_script};

/// With two releases, the second of which is to come, and a lock.
fn appliance() -> Appliance {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    fs::write(lock(&appliance), "").unwrap();
    appliance.edit_config(|config| config["inhibit"] = json!({"lock": "/run/app.lock"}));
    appliance.told();
    appliance
}

fn lock(appliance: &Appliance) -> PathBuf {
    appliance.root.join("run/app.lock")
}

/// An application in the middle of something, until it is dropped.
struct Application(Child);

impl Application {
    fn busy(appliance: &Appliance) -> Application {
        let child = Command::new("flock")
            .arg("--no-fork")
            .arg(lock(appliance))
            .args(["sleep", "1000"])
            .spawn()
            .unwrap();
        let application = Application(child);
        wait_until("it holds the lock", || !is_free(appliance));
        application
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn is_free(appliance: &Appliance) -> bool {
    let mut flock = Command::new("flock");
    flock.arg("-n").arg(lock(appliance)).arg("true");
    flock.status().unwrap().success()
}

/// Nothing is stopped while an application holds the lock; what was staged is switched to when it does not any more.
#[test]
fn an_application_is_not_interrupted() {
    let appliance = appliance();
    let application = Application::busy(&appliance);
    let busy = |application: &Application, arguments: &[&str]| {
        let holder = format!("process {}", application.0.id());
        let outcome = appliance.update(arguments);
        outcome.refused(6, &[&holder, "sleep", "run/app.lock", "--wait", "--force"]);
        assert_eq!(appliance.told(), [""; 0], "nothing is stopped");
    };
    busy(&application, &["apply"]);
    assert_eq!(appliance.phase(), "staged");
    busy(&application, &["apply"]);
    busy(&application, &["rollback"]);
    // What stops nothing asks nobody.
    appliance.update(&["check"]).code(4);
    appliance.update(&["apply", "--dry-run"]).code(0);
    appliance.update(&["apply", "--stage-only"]).code(0);
    appliance.runs("1.1.0");
    drop(application);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    appliance.told();
    let application = Application::busy(&appliance);
    busy(&application, &["rollback"]);
    appliance.update(&["rollback", "--force"]).code(0);
    appliance.runs("1.1.0");
    appliance
        .update(&["apply", "1.2.0", "--retry", "--force"])
        .code(0);
    appliance.runs("1.2.0");
    drop(application);
}

/// `--wait` waits for it, and says for whom.
#[test]
fn an_application_is_waited_for() {
    let appliance = appliance();
    let application = Application::busy(&appliance);
    let apply = appliance.start(&["apply", "--wait"]);
    wait_until("it waits", || apply.said().contains("holds the lock"));
    assert_eq!(appliance.told(), [""; 0], "nothing is stopped");
    drop(application);
    apply.wait().code(0);
    appliance.runs("1.2.0");
}

/// From the moment at which it was asked nobody begins anything until the services have stopped; when they start the lock is
/// free again, for they may take it.
#[test]
fn nothing_begins_before_the_services_have_stopped() {
    let appliance = appliance();
    let seen = appliance.temp().join("seen");
    let lock = lock(&appliance);
    appliance.edit_config(|config| {
        for verb in ["stop", "start"] {
            let vector = config["services"][verb].as_array().unwrap();
            let words: Vec<&str> = vector.iter().map(|word| word.as_str().unwrap()).collect();
            let script = appliance.temp().join(verb);
            let (lock, seen) = (path(&lock), path(&seen));
            let words = words.join(" ").replace("{name}", "$1");
            write_script(
                &script,
                &format!("flock -n {lock} true && echo {verb} free >>{seen} || echo {verb} held >>{seen}\n{words}"),
            );
            config["services"][verb] = json!([script, "{name}"]);
        }
    });
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(
        text(&seen),
        "stop held\nstop held\nstart free\nstart free\n"
    );
    assert!(is_free(&appliance));
}

/// A command of the appliance says whether it may be interrupted, and why not.
#[test]
fn a_command_says_whether_it_may_be_interrupted() {
    let appliance = appliance();
    let script = appliance.temp().join("may-update");
    let set = |vector: Value| {
        appliance.edit_config(|config| config["inhibit"] = json!({"command": vector}));
    };
    set(json!([script, "now"]));
    appliance
        .update(&["check"])
        .refused(2, &["inhibit.command", "may-update"]);
    write_script(
        &script,
        "[ \"$1\" = now ] && echo a backup is being written >&2; exit 1",
    );
    appliance
        .update(&["apply"])
        .refused(6, &["may-update", "exited 1", "a backup is being written"]);
    assert_eq!(appliance.told(), [""; 0]);
    // One that cannot be asked is no permission.
    write_script(&script, "kill -9 $$");
    appliance
        .update(&["apply"])
        .refused(6, &["may-update", "signal 9"]);
    let apply = appliance.start(&["apply", "--wait"]);
    wait_until("it waits", || apply.said().contains("signal 9"));
    write_script(&script, "exit 0");
    apply.wait().code(0);
    appliance.runs("1.2.0");
}

/// Without the file nobody holds the lock, and none is made: its owner is not known.
#[test]
fn a_lock_that_is_not_there_is_free() {
    let appliance = appliance();
    fs::remove_file(lock(&appliance)).unwrap();
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    assert!(!lock(&appliance).exists());
    appliance.edit_config(|config| config["inhibit"] = json!({"lock": "app.lock"}));
    appliance.update(&["check"]).refused(2, &["inhibit.lock"]);
    appliance.edit_config(|config| config["inhibit"] = json!({"file": "/run/app.lock"}));
    appliance
        .update(&["check"])
        .refused(2, &["inhibit", "file"]);
}
