//! What goes well, and what is said about it.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::server::{Answer, Server};
use crate::common::{
    Appliance, Recipe, exe, json_file, kill, path, text, wait_until, write_script,
};

/// With a tree whose download takes a while.
fn large(recipe: Recipe, bytes: usize) -> Recipe {
    let mut noise = 1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (noise >> 56) as u8
    })
    .take(bytes)
    .collect();
    fs::write(recipe.dir.join("www/large"), content).unwrap();
    recipe
}

/// From the factory set to a first release, then to a second one; each step says by its exit code how it went.
#[test]
fn two_updates() {
    let appliance = Appliance::new();
    appliance.runs("1.0.0");
    appliance.update(&["check"]).code(3);
    appliance.update(&["apply"]).code(3);

    appliance.publish_release("1.1.0");
    appliance
        .update(&["check"])
        .code(4)
        .says(&["1.1.0", "1.0.0"]);
    let before = appliance.picture();
    appliance.update(&["apply", "--dry-run"]).code(0).says(&[
        "1.1.0",
        "qx-node",
        "www",
        "node, console",
    ]);
    before.unchanged(&appliance);

    appliance.update(&["apply"]).code(0).says(&["1.1.0"]);
    appliance.runs("1.1.0");
    assert_eq!(appliance.answers(), ["1.1.0", "1.1.0"]);
    appliance.update(&["check"]).code(3);
    appliance.update(&["apply"]).code(3);

    let first = appliance.link();
    appliance.publish_release("1.2.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    assert_ne!(appliance.link(), first);
    // The first release is still there, to fall back to.
    assert_eq!(
        json_file(&appliance.data().join(first).join("release.json"))["version"],
        "1.1.0"
    );
}

/// Services start in their order, and stop in its reverse; each is restarted once.
#[test]
fn services_are_restarted_in_order() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    appliance.told();
    appliance.update(&["apply"]).code(0);
    assert_eq!(
        appliance.told(),
        ["stop console", "stop node", "start node", "start console"]
    );
}

/// A service that a person stopped is not started by an update.
#[test]
fn a_stopped_service_stays_stopped() {
    let appliance = Appliance::new();
    appliance.service("stop", "console");
    let recipe = appliance.recipe("1.1.0").edit(|json| {
        json["health"].as_array_mut().unwrap().pop();
    });
    appliance.release(&recipe);
    appliance.update(&["apply"]).code(0);
    assert_eq!(appliance.pid("console"), None);
    assert_eq!(appliance.answers(), ["1.1.0", ""]);
}

/// Of a release in which one program is new, this one is downloaded, and its service restarted; nothing else is.
#[test]
fn a_partial_update() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let server = Server::start(&appliance.repo);
    appliance.source(&server.url);
    let node = appliance.pid("node");

    let console = appliance
        .recipe("1.1.1")
        .program("node", "1.1.0")
        .www("This is 1.1.0.\n");
    appliance.release(&console);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.1");
    assert_eq!(server.artifacts(), ["qx-console"]);
    assert_eq!(appliance.told(), ["stop console", "start console"]);
    assert_eq!(appliance.answers(), ["1.1.0", "1.1.1"]);
    // The proof looks through to the bytes: the other service goes on with the same program from the other slot.
    assert_eq!(appliance.pid("node"), node);
}

/// A tree that a service uses restarts this service when it changes.
#[test]
fn a_new_tree_restarts_its_users() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let www = appliance
        .recipe("1.1.1")
        .program("node", "1.1.0")
        .program("console", "1.1.0");
    appliance.release(&www);
    appliance.update(&["apply"]).code(0);
    assert_eq!(appliance.told(), ["stop console", "start console"]);
    let page = appliance.data().join("share/www/index.html");
    assert_eq!(text(&page), "This is 1.1.1.\n");
}

/// A component whose bytes the factory set has is copied from there.
#[test]
fn factory_components_are_reused() {
    let appliance = Appliance::new();
    let server = Server::start(&appliance.repo);
    appliance.source(&server.url);
    appliance.release(&appliance.recipe("1.1.0").program("node", "1.0.0"));
    appliance.update(&["apply"]).code(0);
    assert_eq!(server.artifacts(), ["qx-console", "www"]);
    let root = &appliance.root;
    assert_eq!(
        fs::read(root.join("data/bin/qx-node")).unwrap(),
        fs::read(root.join("usr/bin/qx-node")).unwrap()
    );
}

/// A version that is named is taken instead of the newest; one that is not offered, or not newer, is not.
#[test]
fn a_named_version() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    appliance.publish_release("1.2.0");
    appliance.refuses(&["apply", "7.0.0"], 5, &["7.0.0"]);
    appliance.update(&["apply", "1.1.0"]).code(0);
    appliance.runs("1.1.0");
    appliance.update(&["apply", "1.1.0"]).code(3);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    appliance.refuses(&["apply", "1.1.0"], 5, &["1.1.0", "1.2.0"]);
    appliance.update(&["apply", "one"]).refused(2, &["one"]);
}

/// The programs' form of status has every field of its schema, and says what is so.
#[test]
fn status_says_what_runs() {
    let appliance = Appliance::new();
    let status = appliance.status();
    assert_eq!(status["format"], 1);
    assert_eq!(status["product"], "quantix-os");
    assert_eq!(status["channel"], "stable");
    assert_eq!(status["running"]["set"], "factory");
    assert_eq!(status["running"]["version"], "1.0.0");
    assert_eq!(status["phase"], "idle");
    for field in ["last", "operation", "busy"] {
        assert_eq!(status[field], Value::Null, "{field}");
    }
    for list in ["refused", "problems"] {
        assert_eq!(status[list], json!([]), "{list}");
    }
    assert_eq!(status["needs_person"], false);
    assert!(
        status["since"].is_string() && status["time"].is_string() && status["advice"].is_array()
    );

    appliance.install("1.1.0");
    let status = appliance.status();
    assert_eq!(status["running"]["set"], "a");
    assert_eq!(status["running"]["version"], "1.1.0");
    assert_eq!(status["fallback"]["set"], "factory");
    assert_eq!(status["last"]["kind"], "install");
    assert_eq!(status["last"]["result"], "done");
    assert_eq!(status["last"]["from"]["version"], "1.0.0");
    assert_eq!(status["last"]["to"]["version"], "1.1.0");
    let bin = appliance.data().join("slots/a/bin");
    for (service, seen) in ["node", "console"]
        .iter()
        .zip(status["services"].as_array().unwrap())
    {
        let installed = bin.join(format!("qx-{service}"));
        assert_eq!(seen["name"], *service);
        assert_eq!(seen["installed"], path(&installed));
        assert_eq!(seen["runs"], path(&installed));
        assert_eq!(seen["pid"], appliance.pid(service).unwrap());
        assert_eq!(seen["state"], "installed");
    }
    appliance.update(&["status"]).code(0).says(&[
        "1.1.0",
        "slot a",
        "node",
        "console",
        "nothing to do",
    ]);
}

/// A service that does not run, or runs another file than the installed one, is seen as that.
#[test]
fn status_says_what_is_observed() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let service = |status: &Value, number: usize| status["services"][number].clone();

    appliance.service("stop", "node");
    let status = appliance.status();
    assert_eq!(service(&status, 0)["pid"], Value::Null);
    assert_ne!(service(&status, 0)["state"], "installed");
    assert_eq!(service(&status, 1)["state"], "installed");
    appliance
        .update(&["status"])
        .code(0)
        .says(&["node: NOT RUNNING"]);

    // Somebody starts the factory's copy by hand.
    appliance.service("stop", "console");
    let factory = appliance.root.join("usr/bin/qx-console");
    let mut child = std::process::Command::new(&factory)
        .arg(appliance.port("console").to_string())
        .spawn()
        .unwrap();
    fs::write(
        appliance.root.join("run/console.pid"),
        child.id().to_string(),
    )
    .unwrap();
    wait_until("the factory's console runs", || {
        appliance.processes().contains_key(&child.id())
    });
    let status = appliance.status();
    assert_eq!(service(&status, 1)["pid"], child.id());
    assert_eq!(service(&status, 1)["runs"], path(&factory));
    assert_ne!(service(&status, 1)["state"], "installed");
    appliance
        .update(&["status"])
        .code(0)
        .says(&[path(&factory), "data/slots/a/bin/qx-console"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Status needs neither the lock nor a write; it tells of an operation under way.
#[test]
fn status_during_an_update() {
    let appliance = Appliance::new();
    // On trial until it is let go.
    let go = appliance.temp().join("go");
    let recipe = appliance.recipe("1.1.0").edit(|json| {
        json["components"].as_array_mut().unwrap().push(json!(
            {"name": "probe", "kind": "bin", "install_path": "bin/probe", "source": "probe"}
        ));
        json["health"].as_array_mut().unwrap().push(json!(
            {"type": "exec", "run": ["bin/probe"], "interval_s": 1, "start_period_s": 600}
        ));
    });
    write_script(&recipe.dir.join("probe"), &format!("[ -e {} ]", path(&go)));
    appliance.release(&recipe);
    let apply = appliance.start(&["apply"]);
    wait_until("a trial", || appliance.phase() == "trial");
    let status = appliance.status();
    assert_eq!(status["phase"], "trial");
    assert_eq!(status["operation"]["kind"], "install");
    assert_eq!(status["operation"]["to"]["version"], "1.1.0");
    assert!(status["busy"].is_object(), "{status:#}");
    fs::write(&go, "").unwrap();
    apply.wait().code(0);
    assert_eq!(appliance.status()["operation"], Value::Null);
}

/// Which of a program's two files an init script finds.
#[test]
fn which_file_is_started() {
    let appliance = Appliance::new();
    let found = |name: &str| {
        appliance
            .update(&["which", name])
            .code(0)
            .stdout
            .trim()
            .to_owned()
    };
    assert_eq!(
        found("qx-node"),
        path(&appliance.root.join("usr/bin/qx-node"))
    );
    appliance.install("1.1.0");
    assert_eq!(
        found("qx-node"),
        path(&appliance.root.join("data/bin/qx-node"))
    );
    appliance
        .update(&["which", "qx-nothing"])
        .refused(1, &["qx-nothing"]);
    appliance
        .update(&["which", "../../etc/passwd"])
        .refused(2, &["../../etc/passwd"]);
}

/// Verify reads every installed file, and names what does not match.
#[test]
fn verify_names_what_is_damaged() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance
        .update(&["verify"])
        .code(0)
        .says(&["slot a", "1.1.0", "factory"]);
    let program = appliance.data().join("slots/a/share/www/index.html");
    fs::write(&program, "This is 1.1.1.\n").unwrap();
    let damaged = appliance.update(&["verify"]);
    damaged.code(10);
    let said = damaged.stdout.clone() + &damaged.stderr;
    if !said.contains("www") {
        damaged.fail("it does not name the component");
    }
}

/// The log has every step, for people and for programs.
#[test]
fn the_log_tells_it_all() {
    let appliance = Appliance::new();
    appliance
        .edit_config(|config| config["log"] = json!({"path": "/var/log/quantix-vdc/update.log"}));
    appliance.install("1.1.0");
    let log = appliance.root.join("var/log/quantix-vdc/update.log");
    let lines: Vec<Value> = text(&log)
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let steps: Vec<_> = lines.iter().map(|l| l["step"].as_str().unwrap()).collect();
    for step in [
        "trust", "select", "plan", "fetch", "stage", "services", "switch", "prove", "health",
    ] {
        assert!(steps.contains(&step), "{step} of {steps:?}");
    }
    let manifest = lines
        .iter()
        .find(|l| l["release_notes"].is_string())
        .expect("the manifest's details");
    assert_eq!(manifest["release_notes"], "What is new in 1.1.0");
    assert_eq!(manifest["version"], "1.1.0");

    let shown = appliance.update(&["log"]);
    shown
        .code(0)
        .says(&["1.1.0 (slot a) runs and is proved healthy"]);
    assert_eq!(shown.stdout.lines().count(), lines.len());
    let last = appliance.update(&["log", "-n", "1"]);
    assert_eq!(last.code(0).stdout.lines().count(), 1);
    let stored = appliance.update(&["log", "--json"]);
    assert_eq!(stored.code(0).stdout, text(&log));
}

/// A log that cannot be written does not stop an update.
#[test]
fn a_log_that_cannot_be_written() {
    let appliance = Appliance::new();
    fs::write(appliance.root.join("var"), "not a directory").unwrap();
    appliance.edit_config(|config| config["log"] = json!({"path": "/var/log/update.log"}));
    appliance.publish_release("1.1.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
}

/// The log is rotated by size, and so many old ones are kept.
#[test]
fn the_log_is_rotated() {
    let appliance = Appliance::new();
    appliance.edit_config(|config| config["log"] = json!({"max_bytes": 4096, "keep": 2}));
    for _ in 0..40 {
        appliance.update(&["apply"]).code(3);
    }
    let logs = fs::read_dir(appliance.data().join("update/log"))
        .unwrap()
        .flatten();
    let sizes: Vec<_> = logs
        .map(|e| (e.path(), e.metadata().unwrap().len()))
        .collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    // The line with which the size was reached is in it.
    assert!(
        sizes.iter().all(|(_, size)| *size < 4096 + 1024),
        "{sizes:?}"
    );
}

/// A person goes back to the previous release; the one that was left is held until a person asks for it.
#[test]
fn rollback_to_the_previous_release() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.install("1.2.0");
    appliance.update(&["rollback"]).code(0).says(&["1.1.0"]);
    appliance.runs("1.1.0");
    let status = appliance.status();
    assert_eq!(status["refused"][0]["version"], "1.2.0");
    assert_eq!(status["refused"][0]["kind"], "held");

    appliance.update(&["check"]).code(5);
    appliance.refuses(&["apply"], 5, &["1.2.0", "held", "--retry"]);
    appliance.refuses(&["apply", "1.2.0"], 5, &["1.2.0", "held", "--retry"]);
    appliance
        .update(&["apply", "--retry"])
        .refused(2, &["--retry"]);
    appliance.update(&["apply", "1.2.0", "--retry"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(appliance.status()["refused"], json!([]));
}

/// A person goes back to the factory set, and from there to a release again after a reset.
#[test]
fn rollback_to_the_factory_set() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.install("1.2.0");
    appliance
        .update(&["rollback", "--to", "nowhere"])
        .refused(2, &["nowhere"]);
    appliance.update(&["rollback", "--to", "factory"]).code(0);
    appliance.runs("1.0.0");
    assert_eq!(appliance.link(), "");
    appliance.update(&["rollback", "--to", "factory"]).code(3);

    appliance.update(&["reset"]).code(0);
    assert_eq!(appliance.status()["refused"], json!([]));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// With nothing to recover or to confirm, recovery does nothing, however often.
#[test]
fn recovery_is_idempotent() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let before = appliance.picture();
    for _ in 0..3 {
        appliance.update(&["recover"]).code(0);
        appliance.update(&["recover", "--stage", "link"]).code(0);
        before.unchanged(&appliance);
    }
    appliance.update(&["confirm"]).code(0);
    before.unchanged(&appliance);
    // Without its configuration too: recovery needs none.
    fs::remove_file(appliance.config()).unwrap();
    appliance.update(&["recover"]).code(0);
    before.unchanged(&appliance);
}

/// The link that somebody removed, or turned, is put right by recovery.
#[test]
fn recovery_repairs_the_links() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let before = appliance.picture();
    let data = appliance.data();
    for link in ["current", "bin", "share"] {
        fs::remove_file(data.join(link)).unwrap();
        appliance.update(&["recover"]).code(0);
        before.unchanged(&appliance);
    }
    for to in ["slots/b", "/etc", "slots/../../etc"] {
        fs::remove_file(data.join("current")).unwrap();
        std::os::unix::fs::symlink(to, data.join("current")).unwrap();
        appliance.update(&["recover"]).code(0);
        before.unchanged(&appliance);
    }
}

/// A release over HTTP, and one over HTTPS with a certificate authority of one's own.
#[test]
fn over_http_and_https() {
    let appliance = Appliance::new();
    let server = Server::start(&appliance.repo);
    appliance.source(&server.url);
    appliance.install("1.1.0");
    assert_eq!(server.artifacts(), ["qx-console", "qx-node", "www"]);

    let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = authority.signing_key.serialize_der();
    let server = Server::tls(&appliance.repo, authority.cert.der().to_vec(), key);
    appliance.source(&server.url);
    appliance.publish_release("1.2.0");
    // Nobody that this appliance knows vouches for it.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(appliance.root.join("etc/ca.pem"), other.cert.pem()).unwrap();
    appliance.edit_config(|config| config["ca_file"] = json!("/etc/ca.pem"));
    appliance.refuses(&["apply"], 1, &["https://localhost", "certificate"]);
    fs::write(appliance.root.join("etc/ca.pem"), authority.cert.pem()).unwrap();
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    fs::write(appliance.root.join("etc/ca.pem"), "no certificate").unwrap();
    appliance.refuses(&["apply"], 1, &["etc/ca.pem"]);
}

/// `--from` takes a repository of the moment, by its directory too.
#[test]
fn from_another_repository() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    fs::rename(&appliance.repo, appliance.root.join("srv/usb")).unwrap();
    appliance.refuses(&["apply"], 1, &["/srv/repo"]);
    appliance.update(&["check", "--from", "/srv/usb"]).code(4);
    appliance.update(&["apply", "--from", "/srv/usb"]).code(0);
    appliance.runs("1.1.0");
}

/// A transfer that is cut goes on where it was cut.
#[test]
fn a_cut_download_resumes() {
    let appliance = Appliance::new();
    appliance.release(&large(appliance.recipe("1.1.0"), 200_000));
    let server = Server::answering(&appliance.repo, |request| {
        match request.is_artifact() && request.path.contains("www-") && request.from.is_none() {
            true => Answer::Cut(100_000),
            false => Answer::Well,
        }
    });
    appliance.source(&server.url);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    let www: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|r| r.path.contains("www-"))
        .collect();
    assert_eq!(www.len(), 2, "{www:?}");
    assert!(www[1].from.is_some_and(|from| from > 0), "{www:?}");
}

/// What an updater that was killed had downloaded is not downloaded again.
#[test]
fn a_killed_download_resumes() {
    let appliance = Appliance::new();
    appliance.release(&large(appliance.recipe("1.1.0"), 1_000_000));
    let server = Server::answering(&appliance.repo, |request| {
        match request.path.contains("www-") && request.from.is_none() {
            true => Answer::Slow(8192),
            false => Answer::Well,
        }
    });
    appliance.source(&server.url);
    let before = appliance.picture();
    let apply = appliance.start(&["apply"]);
    wait_until("the download has begun", || {
        let downloads = fs::read_dir(appliance.data().join("update/downloads"));
        downloads.is_ok_and(|d| {
            d.flatten()
                .any(|e| e.metadata().is_ok_and(|m| m.len() > 300_000))
        })
    });
    appliance.kill_updater();
    apply.wait();
    server.asked();
    appliance.update(&["recover"]).code(0);
    before.unchanged(&appliance);

    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    let asked = server.asked();
    let www: Vec<_> = asked.iter().filter(|r| r.path.contains("www-")).collect();
    assert!(www[0].from.is_some_and(|from| from > 250_000), "{www:?}");
}

/// The updater survives the one that started it, which may be a service that it restarts.
#[test]
fn the_caller_dies() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let mut apply = appliance.start(&["apply"]);
    wait_until("the switch has begun", || {
        matches!(appliance.phase().as_str(), "switching" | "trial")
    });
    kill(apply.child.id(), Signal::KILL);
    apply.child.wait().unwrap();
    wait_until("the worker has ended", || appliance.updaters().is_empty());
    appliance.runs("1.1.0");
    let status = appliance.status();
    assert_eq!(status["phase"], "idle");
    assert_eq!(status["last"]["result"], "done");
}

/// A second operation does not wait, and says who is at work.
#[test]
fn two_at_once() {
    let appliance = Appliance::new();
    // At work until it is let go.
    let temp = appliance.temp();
    let (begun, go) = (temp.join("begun"), temp.join("go"));
    let script = format!(
        "touch {}; until [ -e {} ]; do sleep 0.1; done",
        path(&begun),
        path(&go)
    );
    appliance.release(&appliance.recipe("1.1.0").migration(&script, 600));
    let first = appliance.start(&["apply"]);
    wait_until("the first is at work", || begun.exists());
    for command in [&["apply"][..], &["rollback"], &["reset"], &["confirm"]] {
        let second = appliance.update(command);
        second.code(6);
        let pids = appliance.updaters();
        if !pids
            .iter()
            .any(|pid| second.stderr.contains(&pid.to_string()))
        {
            second.fail(&format!("it names none of the processes {pids:?}"));
        }
        second.error_says(&[]);
    }
    appliance.update(&["status"]).code(0);
    fs::write(&go, "").unwrap();
    first.wait().code(0);
    appliance.runs("1.1.0");
}

/// Holds the lock of an appliance, and says in it that this process does.
fn hold_lock(appliance: &Appliance, pid: u32) -> File {
    let lock = appliance.data().join("update/lock");
    let note = json!({"pid": pid, "command": "apply", "since": "2026-01-01T00:00:00Z"});
    let file = File::options().write(true).open(&lock).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    fs::write(&lock, note.to_string()).unwrap();
    file
}

/// A lock that a process still holds that has ended, or is ending, is no other operation: it is free in a moment.
#[test]
fn a_lock_whose_holder_is_ending() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let mut ended = Command::new("true").spawn().unwrap();
    let zombie = ended.id();
    wait_until("it has ended", || exe(zombie).is_none());
    let gone = {
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        gone.id()
    };
    for pid in [zombie, gone] {
        let held = hold_lock(&appliance, pid);
        let check = appliance.start(&["check"]);
        let lock = appliance.data().join("update/lock");
        wait_until("it has come to the lock", || {
            let opened = |pid: &u32| {
                let files = fs::read_dir(format!("/proc/{pid}/fd"))
                    .into_iter()
                    .flatten();
                files
                    .flatten()
                    .any(|f| fs::read_link(f.path()).is_ok_and(|to| to == lock))
            };
            appliance.updaters().iter().any(opened) || exe(check.child.id()).is_none()
        });
        // Were it not to wait, it would be over now.
        std::thread::sleep(Duration::from_millis(500));
        drop(held);
        check.wait().code(3);
    }
    ended.wait().unwrap();
}

/// Asked to wait, it says once for whom, and does so until the lock is free, or whoever asked is gone.
#[test]
fn waiting_for_another() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    for command in [
        &["check", "--wait"][..],
        &["apply", "--wait"],
        &["rollback", "--wait"],
    ] {
        let held = hold_lock(&appliance, std::process::id());
        let mut waiting = appliance.start(command);
        let who = format!("waits for process {} (apply, ", std::process::id());
        wait_until("it says for whom it waits", || {
            waiting.said().contains(&who) || !waiting.runs()
        });
        assert!(waiting.runs(), "{}", waiting.said());
        drop(held);
        let outcome = waiting.wait();
        outcome.code(if command[0] == "rollback" { 0 } else { 3 });
        assert_eq!(outcome.stdout.matches(&who).count(), 1);
    }
    appliance.runs("1.0.0");

    let held = hold_lock(&appliance, std::process::id());
    let before = appliance.picture();
    // SIGINT does the same, unless whoever runs the tests has it ignored.
    for signal in [Signal::TERM, Signal::KILL] {
        let mut waiting = appliance.start(&["apply", "1.1.0", "--retry", "--wait"]);
        wait_until("it waits", || {
            waiting.said().contains("waits for") || !waiting.runs()
        });
        kill(waiting.child.id(), signal);
        waiting.wait().code(-signal.as_raw());
        wait_until("its worker ends, too", || appliance.updaters().is_empty());
    }
    drop(held);
    before.unchanged(&appliance);
}

/// The running programs are replaced while they run, and never opened for writing.
#[test]
fn nothing_that_runs_is_written_to() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(appliance.root.join(name)).unwrap().ino()
    };
    let (factory, first) = (inode("usr/bin/qx-node"), inode("data/slots/a/bin/qx-node"));
    appliance.install("1.2.0");
    assert_eq!(inode("usr/bin/qx-node"), factory);
    assert_eq!(inode("data/slots/a/bin/qx-node"), first);
    appliance.install("1.3.0");
    assert_ne!(inode("data/slots/a/bin/qx-node"), first);
}

/// Progress for programs: one event a line.
#[test]
fn progress_as_json() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let apply = appliance.update(&["apply", "--progress", "json"]);
    apply.code(0);
    let events: Vec<Value> = apply
        .stdout
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let ended = events
        .iter()
        .find(|e| e["event"] == "progress" && e["what"] == "www")
        .unwrap();
    assert_eq!(ended["done"], ended["total"]);
    assert!(
        events
            .iter()
            .any(|e| e["event"] == "log" && e["step"] == "done")
    );
    appliance
        .update(&["apply", "--progress", "xml"])
        .refused(2, &["xml"]);
}

/// A new image brings a newer factory set than the slot's: it is not shadowed.
#[test]
fn a_newer_image_is_not_shadowed() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.services("stop");
    appliance.factory(&appliance.recipe("1.5.0"));
    appliance.update(&["recover"]).code(0);
    appliance.services("start");
    wait_until("the factory set answers", || {
        appliance.answers() == ["1.5.0", "1.5.0"]
    });
    assert_eq!(appliance.link(), "");
    assert_eq!(appliance.status()["running"]["version"], "1.5.0");
    appliance.publish_release("1.4.0");
    appliance.update(&["apply"]).code(3);
}

/// Wrong usage is one line and exit 2; help and version are no errors.
#[test]
fn usage() {
    let appliance = Appliance::new();
    for wrong in [
        &["frobnicate"][..],
        &[],
        &["apply", "--fast"],
        &["recover", "--stage", "third"],
    ] {
        appliance.update(wrong).refused(2, &[]);
    }
    appliance.update(&["--help"]).code(0);
    let mut version = std::process::Command::new(crate::common::UPDATE);
    version.arg("--version");
    appliance
        .spawn(version)
        .wait()
        .code(0)
        .says(&[env!("CARGO_PKG_VERSION")]);
}
