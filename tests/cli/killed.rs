//! The updater is killed, front end and worker, without a chance to clean up; or the appliance reboots then. Run again,
//! or booted again, it ends in exactly one complete set, and says which.

use std::fs;
use std::time::Duration;

use crate::common::server::{Answer, Server};
use crate::common::{Appliance, Outcome, Recipe, path, text, wait_until};

/// When the updater is killed: so long after this phase was seen on the disk.
struct Point {
    phase: &'static str,
    after_ms: u64,
}

fn points(phase: &'static str, after_ms: &[u64]) -> Vec<Point> {
    after_ms
        .iter()
        .map(|&after_ms| Point { phase, after_ms })
        .collect()
}

/// What is done next.
#[derive(Clone, Copy)]
enum Next {
    /// The same command again.
    Again,
    /// A boot: the link stage, the services, the proof. Then the same command again.
    Boot,
}

/// Starts an update, and kills it at that point.
fn kill_at(appliance: &Appliance, point: &Point) {
    let mut apply = appliance.start(&["apply"]);
    while appliance.phase() != point.phase && apply.runs() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(point.after_ms));
    appliance.kill_updater();
    apply.wait();
}

/// Powers it off and on again; no person is needed.
fn boot(appliance: &Appliance) {
    let confirm = boots(appliance);
    if !matches!(confirm.code, 0 | 8 | 9) {
        confirm.fail("the proof after the boot");
    }
}

/// Powers it off and on again; how the proof ended.
pub(super) fn boots(appliance: &Appliance) -> Outcome<'_> {
    // A service script that the killed updater had just called would go on in the next boot.
    appliance.power_off();
    for service in crate::common::SERVICES {
        let _ = fs::remove_file(appliance.root.join(format!("run/{service}.pid")));
    }
    let _ = fs::remove_dir_all(appliance.root.join("run/qx-update"));
    appliance.update(&["recover"]).code(0);
    // Exactly one set is selected, it is complete, and that is what status says.
    appliance.update(&["verify"]).code(0);
    let selected = match appliance.link() {
        link if link.is_empty() => "1.0.0".to_owned(),
        link => release_of(appliance, &link),
    };
    let status = appliance.status();
    assert_eq!(
        status["running"]["version"],
        selected,
        "{status:#}\n{}",
        appliance.tree()
    );
    appliance.services("start");
    appliance.update(&["confirm"])
}

fn release_of(appliance: &Appliance, link: &str) -> String {
    let release = appliance.data().join(link).join("release.json");
    crate::common::json_file(&release)["version"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// A release that is good is what runs in the end, wherever its installation was cut.
fn converges(points: &[Point], next: Next) {
    let appliance = Appliance::new();
    let server = Server::answering(&appliance.repo, |request| match request.is_artifact() {
        true => Answer::Slow(1024),
        false => Answer::Well,
    });
    appliance.source(&server.url);
    for (number, point) in points.iter().enumerate() {
        let version = format!("1.{}.0", number + 1);
        eprintln!("{version}: {} ms after {}", point.after_ms, point.phase);
        appliance.publish_release(&version);
        kill_at(&appliance, point);
        if let Next::Boot = next {
            boot(&appliance);
        }
        let again = appliance.update(&["apply"]);
        if !matches!(again.code, 0 | 3) {
            again.fail("neither done nor nothing to do");
        }
        appliance.runs(&version);
        assert_eq!(appliance.answers(), [version.as_str(), version.as_str()]);
        let status = appliance.status();
        assert_eq!(status["phase"], "idle", "{status:#}");
        assert_eq!(status["running"]["version"], version.as_str());
        assert_eq!(status["needs_person"], false);
        appliance.update(&["verify"]).code(0);
        appliance.update(&["apply"]).code(3);
        let slots = fs::read_dir(appliance.data().join("slots"))
            .unwrap()
            .flatten();
        let names: Vec<_> = slots
            .map(|e| e.file_name().into_string().unwrap())
            .collect();
        assert!(
            names.iter().all(|n| n == "a" || n == "b"),
            "leftovers: {names:?}"
        );
    }
}

/// An updater that is killed while it fetches and unpacks needs nobody: the same command installs the release and
/// leaves no litter in the slots, for power may go at any time.
#[test]
fn while_it_stages() {
    converges(&points("staging", &[0, 3, 30, 150, 300]), Next::Again);
}

/// An appliance that reboots while a release is fetched and unpacked comes up with one complete set and says which, and
/// the same command still installs the release.
#[test]
fn while_it_stages_and_a_boot() {
    converges(&points("staging", &[0, 10, 100, 250]), Next::Boot);
}

/// An updater that is killed just before, or while, it moves services to the new release leaves nothing that the same
/// command does not mend: both services end on the new one.
#[test]
fn while_it_switches() {
    converges(&points("staged", &[0, 10]), Next::Again);
    converges(&points("switching", &[0, 5, 15, 40, 80]), Next::Again);
}

/// An appliance that loses power before or during the switch boots into one complete set, old or new, says which, and
/// ends on the new release.
#[test]
fn while_it_switches_and_a_boot() {
    converges(&points("staged", &[0]), Next::Boot);
    converges(&points("switching", &[0, 10, 30, 60]), Next::Boot);
}

/// An updater that is killed while it watches the new release does not condemn it: the same command ends the trial, and
/// a good release is what runs.
#[test]
fn in_a_trial() {
    converges(&points("trial", &[0, 10, 50, 200, 700]), Next::Again);
}

/// An appliance that reboots in a trial still has one complete set, says which, and a good release is not lost by it.
#[test]
fn in_a_trial_and_a_boot() {
    converges(&points("trial", &[0, 20, 100, 700]), Next::Boot);
}

/// A release that crashes is undone in the end, wherever its undoing was cut.
fn undone(points: &[Point], next: Next) {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    for (number, point) in points.iter().enumerate() {
        let version = format!("2.{number}.0");
        eprintln!("{version}: {} ms after {}", point.after_ms, point.phase);
        let recipe: Recipe = appliance.recipe(&version).behaviour("console", "crash");
        appliance.release(&recipe);
        kill_at(&appliance, point);
        if let Next::Boot = next {
            boot(&appliance);
        }
        let again = appliance.update(&["apply"]);
        if !matches!(again.code, 5 | 8) {
            again.fail("neither refused nor undone");
        }
        appliance.runs("1.1.0");
        assert_eq!(appliance.answers(), ["1.1.0", "1.1.0"]);
        let status = appliance.status();
        assert_eq!(status["phase"], "idle", "{status:#}");
        assert_eq!(status["running"]["version"], "1.1.0");
        let refused = status["refused"].as_array().unwrap();
        assert!(
            refused.iter().any(|r| r["version"] == version.as_str()),
            "{status:#}"
        );
        appliance.update(&["apply"]).code(5);
    }
}

/// An updater that is killed while it undoes a release that crashes leaves nothing that the same command does not mend:
/// the old release runs in the end and the bad one is refused for good.
#[test]
fn while_it_reverts() {
    undone(&points("reverting", &[0, 20, 100]), Next::Again);
}

/// An appliance that loses power while a bad release is undone boots into one complete set and ends on the old release,
/// with the bad one refused for good.
#[test]
fn while_it_reverts_and_a_boot() {
    undone(&points("reverting", &[0, 40]), Next::Boot);
}

/// An appliance that reboots while a bad release is on trial does not keep it because nobody was there to see it fail:
/// it ends on the old one, and refuses the bad one for good.
#[test]
fn a_bad_trial_and_a_boot() {
    undone(&points("trial", &[0, 500]), Next::Boot);
}

/// `confirm` alone ends the trial of an updater that was killed.
#[test]
fn confirm_ends_a_killed_trial() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    kill_at(
        &appliance,
        &Point {
            phase: "trial",
            after_ms: 100,
        },
    );
    assert_eq!(appliance.status()["phase"], "trial");
    appliance
        .update(&["status"])
        .code(0)
        .says(&["1.1.0", "confirm"]);
    appliance.update(&["confirm"]).code(0);
    appliance.runs("1.1.0");
    assert_eq!(appliance.status()["last"]["result"], "done");
}

/// A trial that never ends well is given up after so many boots, with nobody's help; so is none before.
#[test]
fn a_trial_that_hangs_at_every_boot() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    kill_at(
        &appliance,
        &Point {
            phase: "trial",
            after_ms: 0,
        },
    );
    appliance.services("stop");
    let new = appliance.link();
    let mut boots = 0;
    while appliance.link() == new {
        boots += 1;
        assert!(boots < 10, "never given up\n{}", appliance.tree());
        appliance.boot_id(boots);
        appliance.update(&["recover"]).code(0);
        // The same boot again is not counted.
        let link = appliance.link();
        appliance.update(&["recover"]).code(0);
        assert_eq!(appliance.link(), link);
    }
    assert_eq!(boots, 4, "three boots may try");
    appliance.services("start");
    appliance.update(&["confirm"]);
    appliance.runs("1.1.0");
    let status = appliance.status();
    assert_eq!(status["refused"][0]["version"], "1.2.0", "{status:#}");
    appliance.update(&["apply"]).code(5);
}

/// A migration outlives no updater: it never runs twice at once.
#[test]
fn a_killed_migration_does_not_run_twice_at_once() {
    let appliance = Appliance::new();
    let log = appliance.temp().join("migrations");
    let script = format!(
        "echo begun >>{log}; sleep 2; echo ended >>{log}",
        log = path(&log)
    );
    appliance.release(&appliance.recipe("1.1.0").migration(&script, 30));
    let mut apply = appliance.start(&["apply"]);
    wait_until("the migration runs", || log.exists() || !apply.runs());
    appliance.kill_updater();
    apply.wait();
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    let lines = text(&log);
    let overlap = lines
        .lines()
        .collect::<Vec<_>>()
        .windows(2)
        .any(|w| w == ["begun", "begun"]);
    let killed = lines.lines().filter(|l| *l == "ended").count() == 1;
    assert!(!overlap || killed, "{lines}");
}
