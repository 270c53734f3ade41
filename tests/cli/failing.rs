//! Releases that are validly signed, and no good: each is undone, and not tried again.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::common::{Appliance, Recipe, json_file, path, text, wait_until, write_script};

/// Applies the release, which fails with these words; afterwards what ran before runs again, the release is in
/// quarantine, and all of this is told.
#[track_caller]
fn falls_back(appliance: &Appliance, recipe: &Recipe, words: &[&str]) {
    let before = appliance.status();
    let from = before["running"]["version"].as_str().unwrap();
    let (code, result) = match before["running"]["set"].as_str() {
        Some("factory") => (9, "back_to_factory"),
        _ => (8, "back_to_previous"),
    };
    let version = recipe.json["version"].as_str().unwrap();
    appliance.release(recipe);
    let apply = appliance.update(&["apply"]);
    apply.refused(code, words);
    appliance.runs(from);
    let answers = appliance.answers();
    assert!(
        !answers.iter().any(|a| a == version || a.is_empty()),
        "{answers:?}"
    );
    quarantined(appliance, version, result, words);
}

/// It is in quarantine for these reasons, and is not tried again by itself.
#[track_caller]
fn quarantined(appliance: &Appliance, version: &str, result: &str, words: &[&str]) {
    let status = appliance.status();
    assert_eq!(status["last"]["result"], result, "{status:#}");
    assert_eq!(status["phase"], "idle");
    let refused = status["refused"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["version"] == version);
    let refused = refused.unwrap_or_else(|| panic!("{version} is not refused: {status:#}"));
    assert_eq!(refused["kind"], "quarantined");
    let shown = appliance.update(&["status"]);
    for word in words {
        for said in [&refused["reason"], &status["last"]["reason"]] {
            assert!(
                said.as_str().is_some_and(|r| r.contains(word)),
                "{word}: {status:#}"
            );
        }
        shown.says(&[word]);
    }
    appliance.refuses(&["apply"], 5, &[version, "quarantined", "--retry"]);
    appliance.refuses(&["apply", version], 5, &[version, "quarantined"]);
    appliance.update(&["check"]).code(5);
}

/// A program that ends at once: back to the factory set after a first update, to the previous release after a second.
/// The next release is taken by its version, compared with the one that runs: a hotfix may be below the one that failed.
#[test]
fn crash_at_start_and_a_hotfix_below() {
    let appliance = Appliance::new();
    falls_back(
        &appliance,
        &appliance.recipe("2.0.0").behaviour("node", "crash"),
        &["node", "data/slots/a/bin/qx-node"],
    );
    appliance.install("1.1.0");
    falls_back(
        &appliance,
        &appliance.recipe("2.1.0").behaviour("console", "crash"),
        &["console", "qx-console"],
    );
    appliance.runs("1.1.0");
    appliance.publish_release("1.1.1");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.1");
    // A person may insist, and is told the same again.
    appliance
        .update(&["apply", "2.1.0", "--retry"])
        .refused(8, &["console"]);
    appliance.runs("1.1.1");
}

/// A program that runs, and never listens.
#[test]
fn never_listens() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let port = appliance.port("console").to_string();
    falls_back(
        &appliance,
        &appliance.recipe("1.2.0").behaviour("console", "deaf"),
        &["http://127.0.0.1", &port],
    );
}

/// A program that answers 500.
#[test]
fn answers_500() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    falls_back(
        &appliance,
        &appliance.recipe("1.2.0").behaviour("node", "error500"),
        &["500"],
    );
}

/// A program that is healthy, and ends 4 s later.
#[test]
fn dies_after_it_was_healthy() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let recipe = appliance
        .recipe("1.2.0")
        .behaviour("node", "dies")
        .edit(|json| {
            for check in json["health"].as_array_mut().unwrap() {
                check["stable_s"] = json!(8);
            }
        });
    falls_back(&appliance, &recipe, &["node"]);
}

/// The health check asks for another version than the programs are of.
#[test]
fn answers_with_another_version() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let recipe = appliance.recipe("1.2.0").edit(|json| {
        json["health"][0]["json"]["equals"] = json!("1.2.0-rc1");
    });
    let recipe = recipe.quick_to_fail();
    falls_back(&appliance, &recipe, &["/version", "1.2.0"]);
}

/// Checks of the other kinds, passing first and then failing.
#[test]
fn tcp_exec_and_service_checks() {
    let appliance = Appliance::new();
    let quick = |mut check: Value| {
        for (field, value) in [
            ("interval_s", 1),
            ("timeout_s", 5),
            ("retries", 1),
            ("start_period_s", 10),
            ("stable_s", 1),
        ] {
            check[field] = json!(value);
        }
        check
    };
    let port = appliance.port("node");
    let with = |version: &str, script: &str, address: String| {
        let recipe = appliance.recipe(version).edit(|json| {
            json["components"].as_array_mut().unwrap().push(json!(
                {"name": "probe", "kind": "tree", "install_path": "share/probe", "source": "probe"}
            ));
            json["health"] = json!([
                quick(json!({"type": "exec", "run": ["share/probe/healthy", "really"]})),
                quick(json!({"type": "service", "service": "console"})),
                quick(json!({"type": "tcp", "address": address})),
            ]);
        });
        crate::common::create_dir(recipe.dir.join("probe")).unwrap();
        write_script(&recipe.dir.join("probe/healthy"), script);
        recipe
    };
    appliance.release(&with(
        "1.1.0",
        r#"[ "$1" = really ]"#,
        format!("127.0.0.1:{port}"),
    ));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    falls_back(
        &appliance,
        &with("1.2.0", "exit 7", format!("127.0.0.1:{port}")),
        &["share/probe/healthy"],
    );
    falls_back(
        &appliance,
        &with("1.3.0", "sleep 100", format!("127.0.0.1:{port}")),
        &["share/probe/healthy"],
    );
    // Nobody listens on port 9 (discard) here.
    falls_back(
        &appliance,
        &with("1.4.0", "exit 0", "127.0.0.1:9".into()),
        &["127.0.0.1:9"],
    );
}

/// A component under a name that no init script starts: everything is healthy, and the old program runs. The proof
/// sees that, and names both files.
#[test]
fn installed_under_a_name_that_nobody_runs() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let recipe = appliance.recipe("1.2.0").program("node", "1.1.0").edit(|json| {
        json["components"].as_array_mut().unwrap().push(json!(
            {"name": "qx-node-new", "kind": "bin", "install_path": "bin/qx-node-new", "source": "qx-node-new"}
        ));
        json["services"][0]["runs"] = json!("bin/qx-node-new");
        json["services"][0]["uses"] = json!(["qx-node"]);
    });
    let recipe = recipe.quick_to_fail();
    crate::common::write_program(&recipe.dir.join("qx-node-new"), "node", "1.2.0", "ok");
    falls_back(
        &appliance,
        &recipe,
        &["data/slots/b/bin/qx-node-new", "bin/qx-node "],
    );
}

/// An old process that outlives its service and keeps the port is not taken for the new one's health.
#[test]
fn an_old_process_keeps_the_port() {
    let appliance = Appliance::with_factory("orphan");
    wait_until("the orphans run", || appliance.processes().len() == 4);
    appliance.release(
        &appliance
            .recipe("1.1.0")
            .behaviour("node", "crash")
            .behaviour("console", "crash")
            .edit(|json| {
                for check in json["health"].as_array_mut().unwrap() {
                    check.as_object_mut().unwrap().remove("json");
                }
            }),
    );
    let apply = appliance.update(&["apply"]);
    if apply.code == 0 {
        apply.fail("a release that crashes was taken for healthy");
    }
    // Whatever it came to, it is said as it is.
    assert_eq!(appliance.link(), "");
    let status = appliance.status();
    assert_eq!(status["running"]["set"], "factory");
    assert_ne!(status["last"]["result"], "done");
}

/// A migration that fails: nothing is switched, the old programs run, and what it said is in the log, stream by stream.
#[test]
fn a_failing_migration() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let slot = appliance.link();
    let recipe = appliance.recipe("1.2.0").migration(
        "echo moving the furniture; echo the piano is stuck >&2; readlink \"$(dirname \"$0\")/../../../current\"; exit 3",
        300,
    );
    falls_back(&appliance, &recipe, &["migration", "3"]);
    assert_eq!(appliance.link(), slot);
    let log = appliance.data().join("update/log/update.log");
    let lines: Vec<Value> = text(&log)
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let said = |message: &str, stream: &str| {
        let mut migration = lines.iter().filter(|l| l["step"] == "migrate");
        let line = migration.find(|l| l["message"].as_str().is_some_and(|m| m.contains(message)));
        let line =
            line.unwrap_or_else(|| panic!("{message} is not in the log\n{}", appliance.tree()));
        assert_eq!(line["stream"], stream, "{line}");
    };
    said("moving the furniture", "stdout");
    said("the piano is stuck", "stderr");
    // While it ran, the link was to the old release.
    said(&slot, "stdout");
}

/// A migration that succeeds runs once, while nobody uses the data, before the switch.
#[test]
fn a_migration_that_succeeds() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let seen = appliance.temp().join("seen");
    let script = format!(
        "data=$(cd \"$(dirname \"$0\")/../../..\" && pwd); readlink \"$data/current\" >>{seen}; \
         ls \"$data/../run\" | grep pid >>{seen}; :",
        seen = path(&seen)
    );
    appliance.release(&appliance.recipe("1.2.0").migration(&script, 300));
    let before = appliance.link();
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(
        text(&seen).lines().collect::<Vec<_>>(),
        [before],
        "{}",
        appliance.tree()
    );
}

/// A migration that hangs is ended with all its processes.
#[test]
fn a_migration_that_hangs() {
    let appliance = Appliance::new();
    let pids = appliance.temp().join("pids");
    let script = format!("sleep 1000 & echo $! $$ >{}; sleep 1000", path(&pids));
    falls_back(
        &appliance,
        &appliance.recipe("1.1.0").migration(&script, 10),
        &["migration", "migrations/run", "time"],
    );
    for pid in text(&pids).split_whitespace() {
        let pid = pid.parse().unwrap();
        assert_eq!(crate::common::exe(pid), None, "process {pid} is left");
    }
}

/// A release fails, and what ran before does not get healthy either: a person is asked for, and told why.
#[test]
fn nothing_is_healthy() {
    let appliance = Appliance::new();
    appliance.release(&appliance.recipe("1.1.0").quick_to_fail());
    appliance.update(&["apply"]).code(0);
    appliance.release(&appliance.recipe("1.2.0").behaviour("node", "crash"));
    let apply = appliance.start(&["apply"]);
    // Something else takes the port while nobody has it.
    let mut listener = None;
    wait_until("the port is free", || {
        listener = TcpListener::bind(("127.0.0.1", appliance.port("node"))).ok();
        listener.is_some()
    });
    let apply = apply.wait();
    apply.code(10);
    let last = apply.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("qx-update: 1.1.0") && last.contains("node"),
        "{last}"
    );
    let status = appliance.status();
    assert_eq!(status["needs_person"], true, "{status:#}");
    assert_eq!(status["running"]["version"], "1.1.0");
    assert_eq!(
        json_file(&appliance.data().join(appliance.link()).join("release.json"))["version"],
        "1.1.0"
    );
    appliance.update(&["status"]).code(0).says(&["node"]);
    appliance.update(&["recover"]).code(0);

    // The person mends it, and says so.
    drop(listener);
    appliance.service("start", "node");
    appliance.update(&["reset"]).code(0);
    appliance.runs("1.1.0");
    assert_eq!(appliance.status()["needs_person"], false);
}

/// A service whose stop fails: its process is not left to run beside the new one.
#[test]
fn a_service_that_does_not_stop() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    appliance.edit_config(|config| {
        config["services"]["stop"] = json!(["/bin/false", "{name}"]);
    });
    appliance
        .update(&["apply"])
        .code(0)
        .says(&["/bin/false console", "killing process"]);
    appliance.runs("1.2.0");
}
