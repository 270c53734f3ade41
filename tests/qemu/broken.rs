//! Releases that are not good, one kind each: the appliance goes back by itself and says why.

use serde_json::{Value, json};

use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// Intent: a release that crashes at its start ends in the previous one, is quarantined with its reason, and is not
/// tried again.
#[test]
fn a_crash_at_start_ends_in_the_previous_release() {
    let (v1, crash) = (Release::named("v1"), Release::named("crash"));
    let repository = Repository::with_v1("crash-repository", &[&crash]);
    let mut appliance = Appliance::with_v1("crash").options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.assert_runs(&v1);
    let log_before = appliance.log();
    appliance.qx_update("apply", 8);
    appliance.assert_runs(&v1);
    assert_went_back(
        &appliance,
        &crash,
        "back_to_previous",
        &["quantix-controlplane"],
    );
    let refused = appliance.qx_update("apply", 5);
    assert!(refused.contains(&crash.version), "{refused}");
    assert!(refused.contains("quantix-controlplane"), "{refused}");
    let for_people = appliance.qx_update("status", 0);
    assert!(for_people.contains("quantix-controlplane"), "{for_people}");
    // The log goes on over the fall: nothing of it is lost.
    let log = appliance.log();
    assert!(log.starts_with(&log_before), "{log}");
    assert!(log.contains("giving up"), "{log}");
    // So it is after the next boot.
    appliance.reboot();
    appliance.assert_runs(&v1);
    appliance.qx_update("apply", 5);
    assert!(appliance.log().starts_with(&log_before));
}

/// Intent: where the first update ever fails there is no previous release, and the factory set runs again. The
/// repository is a directory on a disk.
#[test]
fn a_first_update_that_fails_ends_in_the_factory_set() {
    let (factory, crash) = (Release::named("factory"), Release::named("crash"));
    let repository = Repository::with_v1("first-repository", &[&crash]);
    let directory = repository.dir.display().to_string();
    let mut appliance = Appliance::new("first").options(&["--repo", &directory]);
    appliance.boot();
    appliance.qx_update("apply", 9);
    appliance.assert_runs(&factory);
    let status = assert_went_back(
        &appliance,
        &crash,
        "back_to_factory",
        &["quantix-controlplane"],
    );
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    // The older release that is offered as well is a way on.
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&Release::named("v1"));
}

/// Intent: a control plane that answers 500, one that never listens, and one that dies when it had been healthy for
/// some seconds are each found, and each named for what it did.
#[test]
fn a_service_that_is_not_healthy_is_found() {
    let v1 = Release::named("v1");
    let (error500, deaf, dies) = (
        Release::named("error500"),
        Release::named("deaf"),
        Release::named("dies"),
    );
    let repository = Repository::with_v1("unhealthy-repository", &[&error500, &deaf, &dies]);
    let mut appliance = Appliance::with_v1("unhealthy").options(&["--repo", &repository.url]);
    appliance.boot();
    for (release, reasons) in [
        (&error500, ["http://127.0.0.1:8080/health.json", "500"]),
        (&deaf, ["http://127.0.0.1:8080/health.json", "refused"]),
        (&dies, ["quantix-controlplane", "died"]),
    ] {
        appliance.qx_update(&format!("apply {}", release.version), 8);
        appliance.assert_runs(&v1);
        assert_went_back(&appliance, release, "back_to_previous", &reasons);
    }
    let refused = appliance.qx_update("apply", 5);
    for release in [&error500, &deaf, &dies] {
        assert!(refused.contains(&release.version), "{refused}");
    }
}

/// Intent: a component that is installed under a name which no service runs is caught, and the message names the file
/// that runs and the one that should.
#[test]
fn a_component_that_no_service_runs_is_caught() {
    let (v1, wrong_name) = (Release::named("v1"), Release::named("wrong-name"));
    let repository = Repository::with_v1("wrong-name-repository", &[&wrong_name]);
    let mut appliance = Appliance::with_v1("wrong-name").options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.qx_update("apply", 8);
    appliance.assert_runs(&v1);
    let paths = [
        "slots/b/bin/qx-controlplane",
        "slots/b/bin/qx-control-plane",
    ];
    assert_went_back(&appliance, &wrong_name, "back_to_previous", &paths);
}

/// Intent: a migration that fails ends the update before the link moves: the old services run as before, and what it
/// said on stderr is in the log.
#[test]
fn a_failed_migration_leaves_the_link_alone() {
    let (v1, migration) = (Release::named("v1"), Release::named("migration"));
    let repository = Repository::with_v1("migration-repository", &[&migration]);
    let mut appliance = Appliance::with_v1("migration").options(&["--repo", &repository.url]);
    appliance.boot();
    let link = "stat -c '%N %i' /data/current";
    let before = appliance.ok(link);
    appliance.qx_update("apply", 8);
    assert_eq!(appliance.ok(link), before, "the link has been touched");
    appliance.assert_runs(&v1);
    let said = "schema 7: column state exists already";
    assert_went_back(
        &appliance,
        &migration,
        "back_to_previous",
        &["migrations/migrate", said],
    );
    let log = appliance.qx_update("log --json", 0);
    let on_stderr = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .any(|line| line["stream"] == "stderr" && line["message"] == said);
    assert!(on_stderr, "{log}");
}

/// Intent: an old process that keeps the port while the new one crashes again and again is not taken for health, even
/// where it answers exactly what the new one should.
#[test]
fn an_old_process_on_the_port_is_not_health() {
    let v1 = Release::named("v1");
    // The new node agent is the very program of v1, so the old one's answer has the right version; its settings are
    // what makes it end at once.
    let masked = Release::derived("masked", "loop", "1.4.0", |recipe, _| {
        let v1: Value = serde_json::from_slice(&std::fs::read(&v1.recipe).unwrap()).unwrap();
        let of = |recipe: &Value| {
            let components = recipe["components"].as_array().unwrap().clone();
            components
                .iter()
                .position(|c| c["name"] == "qx-node")
                .unwrap()
        };
        let (ours, theirs) = (of(recipe), of(&v1));
        let program = v1["components"][theirs]["source"].as_str().unwrap();
        let program = crate::built::top().join("qemu/releases/v1").join(program);
        recipe["components"][ours]["source"] = json!(program);
        recipe["health"][0] = v1["health"][0].clone();
    });
    let repository = Repository::with_v1("masked-repository", &[&masked]);
    let mut appliance = Appliance::with_v1("masked").options(&["--repo", &repository.url]);
    appliance.boot();
    // An init script that leaves something behind: the first stop ends the service, and a copy of the old program takes
    // over its port; the next stop ends that.
    appliance.ok(r#"cp /data/bin/qx-node /tmp/old-node
        cp /data/share/qx-node/nats.conf /tmp/old-node.conf
        cat >>/etc/init.d/quantix-node <<'END'

stop_post() {
	if [ -e /tmp/old-node.pid ]; then
		kill "$(cat /tmp/old-node.pid)"
		rm /tmp/old-node.pid
		return 0
	fi
	setsid /tmp/old-node --config /tmp/old-node.conf </dev/null >/tmp/old-node.log 2>&1 &
	echo $! >/tmp/old-node.pid
	until wget -q -O /dev/null http://127.0.0.1:8222/varz; do sleep 0.1; done
}
END"#);
    appliance.qx_update("apply", 8);
    let log = appliance.log();
    assert!(
        !appliance.ok("cat /tmp/old-node.log").is_empty(),
        "the old process never ran"
    );
    appliance.assert_runs(&v1);
    assert_went_back(&appliance, &masked, "back_to_previous", &["quantix-node"]);
    assert!(!log.contains("1.4.0 runs and is proved healthy"), "{log}");
}

/// The release is not what runs, it is quarantined, and `status` says how the attempt ended and why, in these words.
fn assert_went_back(
    appliance: &Appliance,
    release: &Release,
    result: &str,
    reasons: &[&str],
) -> Value {
    let status = appliance.status();
    assert_eq!(status["phase"], "idle", "{status:#}");
    assert_eq!(status["needs_person"], false, "{status:#}");
    let last = &status["last"];
    assert_eq!(last["to"]["version"], release.version, "{status:#}");
    assert_eq!(last["result"], result, "{status:#}");
    let refused = status["refused"].as_array().unwrap();
    let refusal = refused.iter().find(|r| r["version"] == release.version);
    let refusal = refusal.unwrap_or_else(|| panic!("it is not quarantined: {status:#}"));
    assert_eq!(refusal["kind"], "quarantined", "{status:#}");
    for reason in reasons {
        for told in [&last["reason"], &refusal["reason"]] {
            assert!(
                told.as_str().unwrap().contains(reason),
                "no '{reason}' in {told}"
            );
        }
    }
    status
}
