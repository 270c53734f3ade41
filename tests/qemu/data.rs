//! Data that moves with the release: a real database, a service that writes to it all the time, and a real migration tool.

use std::path::Path;

use serde_json::{Value, json};

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// A root image that ships this, and a service that has the inventory's data open and depends on it.
fn image(name: &str, factory: &Path) {
    let overlay = built::directory(&format!("{name}-overlay"));
    let [scripts, level] = ["etc/init.d", "etc/runlevels/default"].map(|dir| overlay.join(dir));
    std::fs::create_dir_all(&scripts).unwrap();
    std::fs::create_dir_all(&level).unwrap();
    let script = "#!/sbin/openrc-run\n\
        command=/bin/sh\ncommand_args=\"-c 'exec sleep 86400 </data/db/inventory.db'\"\n\
        command_background=yes\npidfile=/run/quantix-report.pid\n\
        depend() { need quantix-inventory; }\n";
    let report = scripts.join("quantix-report");
    built::write_program(&report, script);
    std::os::unix::fs::symlink("/etc/init.d/quantix-report", level.join("quantix-report")).unwrap();
    let [factory, overlay] = [factory, &overlay].map(|dir| dir.to_str().unwrap());
    built::other_image(name, &["--factory", factory, "--overlay", overlay]);
}

/// An appliance whose image ships the inventory, its data at schema 1.
fn with_inventory(name: &str, repository: &Repository) -> Appliance {
    image("data", &built::top().join("qemu/releases/data-factory"));
    let mut appliance =
        Appliance::new(name).options(&["--root", "data", "--repo", &repository.url]);
    appliance.boot();
    appliance.wait_for("a row", |a| (rows(a) > 0).then_some(()));
    appliance
}

fn sql(appliance: &Appliance, statement: &str) -> String {
    appliance.ok(&format!(
        "sqlite3 -cmd '.timeout 10000' /data/db/inventory.db \"{statement}\""
    ))
}

fn rows(appliance: &Appliance) -> u64 {
    sql(appliance, "SELECT count(*) FROM reading")
        .parse()
        .unwrap()
}

/// The schema, the rows that only migrations change, and what was migrated; not the rows that the service goes on writing.
fn dump(appliance: &Appliance) -> String {
    let script = "sqlite3 -cmd '.timeout 10000' /data/db/inventory.db .schema '.dump item' '.dump schema_migrations'";
    appliance.ok(script)
}

/// Which release writes, and that no row was lost.
fn writes(appliance: &Appliance, version: &str) {
    appliance.wait_for(&format!("a row of {version}"), |a| {
        let last = sql(a, "SELECT version FROM reading ORDER BY id DESC LIMIT 1");
        (last == version).then_some(())
    });
    let lost = sql(
        appliance,
        "SELECT count(*) FROM reading WHERE earlier <> id - 1",
    );
    assert_eq!(lost, "0", "rows are missing, or there twice");
}

/// Whether these stand in the text, one after the other.
#[track_caller]
fn in_order(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        let Some((_, after)) = rest.split_once(word) else {
            panic!("no '{word}' at its place in {text}");
        };
        rest = after;
    }
}

/// The inventory's check never finds what it asks for.
fn never_healthy(dir: &Path) {
    let path = dir.join("inventory/health.sql");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("1.2.0", "9.9.9")).unwrap();
}

/// A release after data-v2, to schema 3, by three migrations of which the second fails when half of it is done.
fn failing(name: &str, version: &str, rehearse: bool) -> Release {
    Release::derived(name, "data-v2", version, |recipe, dir| {
        let sql = dir.join("migrations");
        for (file, up) in [
            (
                "20260301000000_one.sql",
                "ALTER TABLE item ADD COLUMN one TEXT;",
            ),
            (
                "20260301000001_two.sql",
                "DELETE FROM item; INSERT INTO nowhere VALUES (1);",
            ),
            (
                "20260301000002_three.sql",
                "ALTER TABLE item ADD COLUMN three TEXT;",
            ),
        ] {
            let text = format!("-- migrate:up transaction:false\n{up}\n\n-- migrate:down\n");
            std::fs::write(sql.join(file), text).unwrap();
        }
        as_version(dir, version);
        recipe["data"][0] = json!({"name": "inventory", "accepts_from": 3, "accepts_to": 3, "schema_after": 3, "schema_down": 2});
        recipe["migrate"]["rehearse"] = json!(rehearse);
    })
}

/// The feed writes this version, and the check asks for it.
fn as_version(dir: &Path, version: &str) {
    for file in ["inventory/write.sql", "inventory/health.sql"] {
        let path = dir.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("1.2.0", version)).unwrap();
    }
}

/// Intent: a migration adds the column that the new service needs, and no row is lost; one that fails half way leaves schema
/// and rows as they were, the old service healthy, and its words in `status`; one that fails in the rehearsal stops nothing.
#[test]
fn a_database_moves_with_its_release_and_comes_back() {
    let v2 = Release::named("data-v2");
    let broken = failing("data-sqlerror", "1.3.0", false);
    let rehearsed = failing("data-rehearsal", "1.4.0", true);
    let repository = Repository::with("data-repository", &[&v2]);
    let appliance = with_inventory("data", &repository);
    writes(&appliance, "1.0.0");
    let before = rows(&appliance);
    let said = appliance.qx_update("apply", 0);
    assert!(said.contains("succeeded on a copy"), "{said}");
    in_order(
        &said,
        &[
            "stopping quantix-report",
            "stopping quantix-inventory",
            "copying inventory",
            "starting quantix-inventory",
            "starting quantix-report",
        ],
    );
    writes(&appliance, "1.2.0");
    assert!(rows(&appliance) > before);
    sql(&appliance, "SELECT site FROM reading LIMIT 1");

    let (schema, count) = (dump(&appliance), rows(&appliance));
    repository.publish(&broken);
    appliance.qx_update("apply", 8);
    assert_eq!(dump(&appliance), schema);
    writes(&appliance, "1.2.0");
    assert!(rows(&appliance) > count);
    let status = appliance.status();
    let output = status["last"]["output"].to_string();
    assert!(output.contains("nowhere"), "{status:#}");
    assert_eq!(
        status["last"]["discarded"],
        Value::Null,
        "only a copy was migrated"
    );
    assert!(appliance.qx_update("status", 0).contains("nowhere"));

    let pid = appliance.pid("quantix-inventory");
    repository.publish(&rehearsed);
    appliance.qx_update("apply", 1);
    assert_eq!(
        appliance.pid("quantix-inventory"),
        pid,
        "no service was stopped"
    );
    assert_eq!(dump(&appliance), schema);
    // What the release that runs has replaced, and nothing else.
    assert_eq!(appliance.ok("ls /data/copies/*"), "previous");
}

/// Intent: the kernel goes in the rehearsal: the release lies staged, the data is untouched, and the next `apply` goes on from
/// there. It goes while a copy is half migrated: the data is untouched, and so it is after the next boot. It goes in the trial
/// of the next try: the release is proved on the data that it migrated.
#[test]
fn the_kernel_goes_while_the_data_is_migrated() {
    let slow = Release::derived("data-slow", "data-v2", "1.5.0", |recipe, dir| {
        let script = "#!/bin/sh\nhere=$(dirname \"$0\")\n\
            \"$here/../quantix-migrate\" --url \"sqlite:$1\" --migrations-dir \"$here\" --no-dump-schema up || exit\n\
            case $QX_UPDATE_REHEARSAL in 1)\n[ -e /data/db/rehearsed ] && exit\ntouch /data/db/rehearsed\nsync\nsleep 86400;; esac\n\
            [ -e /data/db/seen ] && exit\ntouch /data/db/seen\nsync\nsleep 86400\n";
        let path = dir.join("migrations/slow");
        std::fs::write(&path, script).unwrap();
        built::must_succeed(std::process::Command::new("chmod").arg("755").arg(&path));
        as_version(dir, "1.5.0");
        // The script runs it.
        recipe["components"][4]["tool"] = json!(true);
        recipe["migrate"]["run"] = json!(["migrations/sql/slow", "{data:inventory}"]);
        recipe["migrate"]["timeout_s"] = json!(86400);
    });
    let repository = Repository::with("data-cut-repository", &[&slow]);
    let mut appliance = with_inventory("data-cut", &repository);
    let schema = dump(&appliance);
    let _cut = appliance.spawn("qx-update apply");
    appliance.wait_for("the rehearsal", |a| {
        (a.run("[ -e /data/db/rehearsed ]").code == 0).then_some(())
    });
    assert_eq!(appliance.phase(), "staged");
    appliance.kill();
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["phase"], "staged", "{status:#}");
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    assert_eq!(dump(&appliance), schema);
    writes(&appliance, "1.0.0");

    let _cut = appliance.spawn("qx-update apply");
    appliance.wait_for("the migration", |a| {
        (a.run("[ -e /data/db/seen ]").code == 0).then_some(())
    });
    assert_eq!(dump(&appliance), schema);
    appliance.kill();
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    assert_eq!(status["refused"], json!([]), "the power says nothing of it");
    assert_eq!(dump(&appliance), schema);
    writes(&appliance, "1.0.0");

    let _cut = appliance.spawn("qx-update apply");
    appliance.wait_for("the trial", |a| (a.phase() == "trial").then_some(()));
    appliance.kill();
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["running"]["version"], "1.5.0", "{status:#}");
    writes(&appliance, "1.5.0");
    assert_ne!(dump(&appliance), schema);
    assert_eq!(appliance.ok("ls /data/copies/*"), "previous");
}

/// Runs a command of qx-update, and resets the machine as soon as the log has a line like this one. Then it boots.
fn cut_at(appliance: &mut Appliance, command: &str, marker: &str) {
    let log = "/data/update/log/update.log";
    // It sleeps between its looks: a single emulated processor does all of it.
    let script = format!(
        "touch {log}; from=$(wc -l <{log}); (qx-update {command} >/dev/null 2>&1 &)\n\
         until tail -n +$((from + 1)) {log} | grep -q '{marker}'; do sleep 0.2; done\n\
         echo b >/proc/sysrq-trigger; sleep 86400"
    );
    let _cut = appliance.spawn(&script);
    appliance.wait_gone();
    appliance.boot();
}

/// Intent: the kernel goes at each arrow of the order in which data moves, forth and back: whatever runs afterwards has the data
/// that is its own, whole, and goes on writing; what had not begun is begun again, and no row is lost.
#[test]
fn the_kernel_goes_at_each_arrow() {
    // With a way down the data would not have to be exchanged back; and only the copy that is live in the end is of interest.
    let forward = Release::derived("data-forward", "data-v2", "1.2.0", |recipe, _| {
        let migrate = recipe["migrate"].as_object_mut().unwrap();
        migrate.remove("down");
        migrate.remove("rehearse");
        recipe["data"][0]
            .as_object_mut()
            .unwrap()
            .remove("schema_down");
    });
    let wrong = Release::derived("data-wrong", "data-v2", "1.6.0", |recipe, dir| {
        never_healthy(dir);
        let more = "-- migrate:up\nALTER TABLE item ADD COLUMN more TEXT;\n\n-- migrate:down\n";
        std::fs::write(dir.join("migrations/20260401000000_more.sql"), more).unwrap();
        let migrate = recipe["migrate"].as_object_mut().unwrap();
        migrate.remove("down");
        migrate.remove("rehearse");
        recipe["data"][0] =
            json!({"name": "inventory", "accepts_from": 3, "accepts_to": 3, "schema_after": 3});
    });
    let repository = Repository::with("data-arrows-repository", &[&forward]);
    let mut appliance = with_inventory("data-arrows", &repository);
    let schema = dump(&appliance);
    appliance.power_off();
    appliance.set_options(&["--root", "data", "--repo", &repository.url, "--no-reboot"]);
    appliance.boot();
    // What is done before the exchange is done again. (In the migration itself, and in the trial: the test above.)
    for marker in [
        "copying inventory\"",
        "\"migrate\",\"message\":\".*succeeded",
    ] {
        cut_at(&mut appliance, "apply 1.2.0 --retry", marker);
        let status = appliance.settled();
        assert_eq!(status["needs_person"], json!(false), "{marker}: {status:#}");
        // It may have come as far as the exchange meanwhile, and is proved then.
        let migrated = status["running"]["version"] == "1.2.0";
        assert_eq!(dump(&appliance) != schema, migrated, "{marker}: {status:#}");
        writes(&appliance, if migrated { "1.2.0" } else { "1.0.0" });
    }
    if appliance.status()["running"]["version"] != "1.2.0" {
        appliance.qx_update("apply 1.2.0 --retry", 0);
    }
    let schema = dump(&appliance);
    repository.publish(&wrong);
    for marker in [
        "giving up 1.6.0",
        "the data is restored",
        "\"revert\",\"message\":\"the priority link selects",
    ] {
        cut_at(&mut appliance, "apply 1.6.0 --retry", marker);
        let status = appliance.settled();
        assert_eq!(
            status["running"]["version"], "1.2.0",
            "{marker}: {status:#}"
        );
        assert_eq!(status["needs_person"], json!(false), "{marker}: {status:#}");
        assert_eq!(dump(&appliance), schema, "{marker}");
        writes(&appliance, "1.2.0");
    }
}

/// Intent: an image whose factory set migrates the data at boot is proved like any release. A sick one goes back to the release
/// that ran before, on its own data, with the data's services and those that depend on them stopped meanwhile; a good one runs on
/// what it migrated.
#[test]
fn an_image_migrates_the_data() {
    let v1 = Release::named("data-v1");
    let sick = Release::derived("data-sick-image", "data-v2", "1.2.0", |_, dir| {
        never_healthy(dir);
    });
    let good = Release::derived("data-good-image", "data-v2", "1.3.0", |_, dir| {
        as_version(dir, "1.3.0");
    });
    for (name, release) in [("data-sick", &sick), ("data-good", &good)] {
        image(name, release.recipe.parent().unwrap());
    }
    let repository = Repository::with("data-image-repository", &[&v1]);
    let mut appliance = with_inventory("data-image", &repository);
    appliance.qx_update("apply", 0);
    writes(&appliance, "1.1.0");
    let (schema, count) = (dump(&appliance), rows(&appliance));
    appliance.power_off();

    appliance.set_options(&["--root", "data-sick", "--repo", &repository.url]);
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["running"]["version"], "1.1.0", "{status:#}");
    assert_eq!(status["refused"][0]["version"], "1.2.0", "{status:#}");
    assert_eq!(dump(&appliance), schema);
    assert!(rows(&appliance) >= count);
    writes(&appliance, "1.1.0");
    in_order(
        &appliance.log(),
        &[
            "giving up 1.2.0",
            "stopping quantix-report",
            "stopping quantix-inventory",
            "the data is restored",
            "starting quantix-inventory",
            "starting quantix-report",
        ],
    );
    appliance.power_off();

    appliance.set_options(&["--root", "data-good", "--repo", &repository.url]);
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    assert_eq!(status["running"]["version"], "1.3.0", "{status:#}");
    assert_ne!(dump(&appliance), schema);
    writes(&appliance, "1.3.0");
}
