//! Data that moves with the release: a copy is migrated and exchanged for it, and exchanged back if the release fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{
    Appliance, Mounted, Recipe, UPDATE, exe, path, text, wait_until, write_executable, write_script,
};

/// An appliance that runs 1.1.0, whose data set `db` is a file with what SQLite keeps beside it, at schema 1.
fn with_data() -> Appliance {
    let appliance = Appliance::new();
    appliance.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/data/db/db"}]);
    });
    crate::common::create_dir(appliance.data().join("db")).unwrap();
    put(&appliance, &[("db", "rows"), ("db-wal", "more rows")]);
    let recipe = appliance
        .recipe("1.1.0")
        .edit(|json| json["data"] = adopting(schemas(1, 1)));
    appliance.release(&recipe);
    appliance.update(&["apply"]).code(0);
    appliance
}

/// The first release on appliances that never recorded a schema.
pub(super) fn adopting(mut schemas: Value) -> Value {
    schemas[0]["accepts_unknown"] = json!(true);
    schemas
}

fn schemas(from: u64, to: u64) -> Value {
    json!([{"name": "db", "accepts_from": from, "accepts_to": to, "schema_after": to}])
}

fn place(appliance: &Appliance, name: &str) -> PathBuf {
    appliance.data().join("db").join(name)
}

/// The data set is these files.
fn put(appliance: &Appliance, files: &[(&str, &str)]) {
    for (name, content) in files {
        fs::write(place(appliance, name), content).unwrap();
    }
}

/// What lies where the data set is.
fn found(appliance: &Appliance) -> BTreeMap<String, String> {
    let entries = fs::read_dir(appliance.data().join("db")).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    entries
        .map(|e| name(e.unwrap()))
        .map(|n| (n.clone(), text(&place(appliance, &n))))
        .collect()
}

fn old() -> BTreeMap<String, String> {
    [("db", "rows"), ("db-wal", "more rows")]
        .map(|(n, c)| (n.to_owned(), c.to_owned()))
        .into()
}

/// A release that needs schema 2, and whose migration is this script; `$1` is the database.
fn migrating(appliance: &Appliance, version: &str, script: &str) -> Recipe {
    appliance
        .recipe(version)
        .migration(script, 20)
        .edit(|json| {
            json["data"] = schemas(2, 2);
            json["migrate"] =
                json!({"run": ["migrations/run", "{data:db}"], "timeout_s": 300, "touches": ["db"]});
        })
}

/// Changes everything: the database, what is beside it, and what was not there.
const MIGRATE: &str = "echo migrated >$1; rm -f $1-wal; echo new >$1-journal; echo done >&2";

/// The record's schema of the data.
fn schema(appliance: &Appliance) -> Value {
    let states = ["state.0", "state.1"].map(|name| {
        let text =
            fs::read_to_string(appliance.data().join("update").join(name)).unwrap_or_default();
        serde_json::from_str::<Value>(text.lines().next().unwrap_or("{}")).unwrap()
    });
    let newest = states
        .iter()
        .max_by_key(|s| s["sequence"].as_u64())
        .unwrap();
    newest["record"]["schemas"]["db"].clone()
}

/// Where copies of an operation's data set are.
fn copies(appliance: &Appliance, id: &str) -> PathBuf {
    appliance.data().join("copies").join(format!("{id}-db"))
}

/// What is noted of data that is not live: id and reason.
fn noted(appliance: &Appliance) -> Vec<(String, String)> {
    let notes = fs::read_dir(appliance.data().join("update/data"));
    let notes = notes.into_iter().flatten().flatten();
    let notes = notes.filter(|entry| entry.path().extension().is_some_and(|e| e == "json"));
    let note = |entry: fs::DirEntry| {
        let note: Value = serde_json::from_str(&text(&entry.path())).unwrap();
        let field = |name: &str| note[name].as_str().unwrap().to_owned();
        (field("id"), field("reason"))
    };
    notes.map(note).collect()
}

/// No copy is left but what is kept on purpose, and nothing of what was held.
#[track_caller]
fn tidy(appliance: &Appliance) {
    let noted = noted(appliance);
    assert!(
        noted.iter().all(|(_, reason)| reason != "open"),
        "{noted:?}"
    );
    let mut kept: Vec<PathBuf> = noted.iter().map(|(id, _)| copies(appliance, id)).collect();
    let found = fs::read_dir(appliance.data().join("copies"));
    let found = found.into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    kept.sort();
    found.sort();
    assert_eq!(found, kept, "{}", appliance.tree());
    for copies in found {
        let sides = fs::read_dir(&copies).unwrap().count();
        assert_eq!(sides, 1, "{}", appliance.tree());
    }
    assert!(!appliance.data().join("update/.reserve").exists());
}

/// The data is what it was, and no copy is left.
#[track_caller]
fn untouched(appliance: &Appliance) {
    assert_eq!(found(appliance), old(), "{}", appliance.tree());
    assert_eq!(schema(appliance), 1);
    assert_eq!(noted(appliance), []);
    tidy(appliance);
}

/// An owner's data is migrated once with the release that needs it, and not again by the next one; the migration runs
/// in its slot, in an environment that holds only what is promised to it.
#[test]
fn the_data_moves_with_the_release() {
    let appliance = with_data();
    assert_eq!(schema(&appliance), 1);
    let seen = appliance.temp().join("seen");
    let script = format!(
        "{MIGRATE}; env | grep -v -e ^_= -e ^PWD= -e ^SHLVL= -e ^OLDPWD= | sort >{seen}; pwd >>{seen}",
        seen = path(&seen)
    );
    appliance.release(&migrating(&appliance, "1.2.0", &script));
    let plan = appliance.update(&["apply", "--dry-run"]);
    plan.code(0).says(&["services to restart: node, console"]);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(found(&appliance)["db"], "migrated\n");
    assert_eq!(schema(&appliance), 2);
    tidy(&appliance);
    // A clean environment, in the slot's directory.
    let slot = appliance.data().join(appliance.link());
    let lines = text(&seen);
    let names: Vec<&str> = lines
        .lines()
        .filter_map(|l| Some(l.split_once('=')?.0))
        .collect();
    assert_eq!(
        names,
        [
            "HOME",
            "LANG",
            "PATH",
            "QX_UPDATE_FROM",
            "QX_UPDATE_OPERATION",
            "QX_UPDATE_SLOT",
            "QX_UPDATE_TO"
        ]
    );
    assert_eq!(lines.lines().last(), slot.to_str());
    for line in ["QX_UPDATE_FROM=1.1.0", "QX_UPDATE_TO=1.2.0"] {
        assert!(lines.lines().any(|l| l == line), "{lines}");
    }
    // It is there already: the next release with the same schema migrates nothing.
    appliance.release(&migrating(&appliance, "1.3.0", "exit 1"));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.3.0");
}

/// Restored means equal, what was not there included; what the failed release wrote is kept, and all of it is told.
#[track_caller]
fn restored(appliance: &Appliance, kept: &[(&str, &str)]) {
    assert_eq!(found(appliance), old(), "{}", appliance.tree());
    assert_eq!(schema(appliance), 1);
    tidy(appliance);
    let last = &appliance.status()["last"];
    let id = last["discarded"]["kept"].as_str().unwrap();
    let aside = copies(appliance, id).join("next");
    for (name, content) in kept {
        assert_eq!(text(&aside.join(name)), *content);
    }
    let (from, to) = (&last["discarded"]["from"], &last["discarded"]["to"]);
    assert!(from.as_str().unwrap() <= to.as_str().unwrap(), "{last:#}");
    appliance
        .update(&["status"])
        .says(&["data written from", id]);
}

/// A migration that fails half way costs the owner nothing: the data was not touched, the old release runs, and what the
/// migration said is kept for whoever mends it.
#[test]
fn a_failed_migration_leaves_the_data_as_it_was() {
    let appliance = with_data();
    let noise = "head -c 20000 /dev/urandom; head -c 100000 /dev/zero | tr '\\0' x; echo; echo the second of three fails >&2";
    let script = format!("{MIGRATE}; {noise}; exit 3");
    appliance.release(&migrating(&appliance, "1.2.0", &script));
    appliance
        .update(&["apply"])
        .refused(8, &["migrate", "exited 3", "the second of three fails"]);
    appliance.runs("1.1.0");
    untouched(&appliance);
    let output = appliance.status()["last"]["output"].clone();
    let lines = output.as_array().unwrap();
    assert!(
        lines
            .iter()
            .any(|l| l == "stderr: the second of three fails"),
        "{output:#}"
    );
    assert!(lines.len() <= 10, "{output:#}");
    appliance
        .update(&["status"])
        .says(&["stderr: the second of three fails"]);
    appliance.refuses(&["apply"], 5, &["1.2.0", "quarantined"]);
}

/// A migration that does not end in its time is given up, the data is what it was and the old release runs: an
/// appliance does not stand still for ever.
#[test]
fn a_migration_that_hangs_is_undone() {
    let appliance = with_data();
    let child = appliance.root.join("out/child");
    let recipe = migrating(
        &appliance,
        "1.2.0",
        &format!(
            "{MIGRATE}; setsid sleep 1000 & echo $! >{}; sleep 1000",
            path(&child)
        ),
    )
    .edit(|json| json["migrate"]["timeout_s"] = json!(10));
    appliance.release(&recipe);
    appliance
        .update(&["apply"])
        .refused(8, &["did not end in time"]);
    appliance.runs("1.1.0");
    untouched(&appliance);
    // Nor does what it had started in a session of its own.
    let child = text(&child).trim().parse().unwrap();
    assert_eq!(exe(child), None);
}

/// Whatever way a migration's child goes out of, and whichever of the three starts it: it does not write to the data of the set
/// that runs in the end.
#[test]
fn what_a_migration_leaves_behind_is_ended() {
    let appliance = with_data();
    let left = appliance.root.join("out/left");
    let operations = appliance.root.join("out/operations");
    // Not what another test sleeps for.
    let seconds = format!("7{:07}", std::process::id());
    let ways = [
        "(setsid sleep N &)",
        "setsid nohup sleep N &",
        // Only a control group knows these.
        "setsid env -i /bin/sleep N &",
        "env -i setsid -f /bin/sleep N",
    ];
    let known = if has_control_groups() { 4 } else { 2 };
    let all = ways[..known].join("\n").replace('N', &seconds);
    let script = format!(
        "echo $QX_UPDATE_OPERATION >>{}; ({all}) >/dev/null 2>&1; sleep 0.5; grep -lzxs '[7]{}' /proc/[0-9]*/cmdline >{}",
        path(&operations),
        &seconds[1..],
        path(&left)
    );
    let ended = |what: &str| {
        let files = text(&left);
        let pid = |file: &str| file.split('/').nth(2).unwrap().parse().unwrap();
        let pids: Vec<u32> = files.lines().map(pid).collect();
        assert_eq!(pids.len(), known, "{what}: {files}");
        let alive: Vec<&u32> = pids.iter().filter(|pid| exe(**pid).is_some()).collect();
        assert!(alive.is_empty(), "{what}: {alive:?} of {pids:?}");
    };
    appliance.release(&migrating(
        &appliance,
        "1.2.0",
        &format!("{script}; exit 1"),
    ));
    appliance.update(&["apply"]).refused(8, &["exited 1"]);
    ended("a migration that failed");
    untouched(&appliance);
    let rehearsed = migrating(&appliance, "1.2.1", &format!("{script}; exit 1"))
        .edit(|json| json["migrate"]["rehearse"] = json!(true));
    appliance.release(&rehearsed);
    appliance.update(&["apply"]).refused(1, &["rehearsal"]);
    ended("a rehearsal");
    untouched(&appliance);
    appliance.release(&migrating(
        &appliance,
        "1.2.2",
        &format!("{script}; {MIGRATE}"),
    ));
    appliance.update(&["apply"]).code(0);
    ended("a migration that succeeded");
    // Those of other tests come and go.
    let operations = text(&operations);
    assert_eq!(operations.lines().count(), 3);
    for operation in operations.lines() {
        for hierarchy in ["", "unified", "openrc", "memory", "pids"] {
            let hierarchy = Path::new("/sys/fs/cgroup").join(hierarchy);
            for kind in ["", "data-"] {
                let group = hierarchy.join(format!("qx-update-{kind}{operation}"));
                assert!(!group.exists(), "{} is left", group.display());
            }
        }
    }
}

/// Whether this machine has control groups, and lets us make one.
fn has_control_groups() -> bool {
    ["", "unified", "openrc"].iter().any(|hierarchy| {
        let hierarchy = PathBuf::from("/sys/fs/cgroup").join(hierarchy);
        let group = || {
            let group = tempfile::Builder::new()
                .prefix("qx-test-")
                .tempdir_in(&hierarchy);
            group.map(tempfile::TempDir::keep)
        };
        hierarchy.join("cgroup.procs").exists()
            && group().is_ok_and(|group| fs::remove_dir(group).is_ok())
    })
}

/// A migration that takes more than the appliance gives it fails, and is the only one that does; where no limit can be set, no
/// service is stopped for one that would have none.
#[test]
fn a_migration_keeps_within_its_limits() {
    let appliance = with_data();
    appliance.edit_config(|config| config["limits"]["migration"] = json!({"tasks": 8}));
    let many = "for n in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait";
    appliance.release(&migrating(&appliance, "1.2.0", many));
    let before = appliance.processes();
    let ended = appliance.update(&["apply"]);
    match ended.stderr.contains("limiting the pids") {
        // Nothing was stopped.
        true => {
            ended.refused(1, &["before anything is stopped"]);
            assert_eq!(appliance.processes(), before);
        }
        false => drop(ended.refused(8, &["migrate", "fork"])),
    }
    appliance.runs("1.1.0");
    untouched(&appliance);
    appliance.edit_config(|config| config["limits"]["migration"]["tasks"] = json!(50));
    appliance.release(&migrating(&appliance, "1.2.1", MIGRATE));
    if has_control_groups() {
        appliance.update(&["apply"]).code(0);
    }
}

/// A release that crashes after its migration takes nothing of the owner's data with it, at a second try as at the
/// first, and no copy of another operation is ever put in the data's place.
#[test]
fn a_release_that_fails_its_proof_gives_the_data_back() {
    let appliance = with_data();
    let recipe = migrating(&appliance, "1.2.0", MIGRATE).behaviour("node", "crash");
    appliance.release(&recipe);
    appliance.update(&["apply"]).refused(8, &["node"]);
    appliance.runs("1.1.0");
    restored(&appliance, &[("db", "migrated\n")]);
    // Tried again by name it meets its own copies only, whatever an older operation left.
    let foreign = copies(&appliance, "0123456789abcdef");
    for side in ["next", "previous"] {
        crate::common::create_dir(foreign.join(side)).unwrap();
        fs::write(foreign.join(side).join("db"), "foreign").unwrap();
    }
    put(&appliance, &[("db", "rows"), ("db-wal", "more rows")]);
    appliance
        .update(&["apply", "1.2.0", "--retry"])
        .refused(8, &["node"]);
    fs::remove_dir_all(&foreign).unwrap();
    restored(&appliance, &[("db", "migrated\n")]);
}

/// A migration that fails on a copy, in its check, or by the space that it takes, rejects the release without touching
/// the data; where it or its check fails, no service is stopped either.
#[test]
fn a_failed_rehearsal_stops_nothing() {
    let appliance = with_data();
    for (version, script, check) in [
        (
            "1.2.0",
            "echo half >$1; echo no such column >&2; exit 1",
            None,
        ),
        ("1.2.1", MIGRATE, Some("grep -q other $1")),
    ] {
        let recipe = migrating(&appliance, version, script);
        if let Some(check) = check {
            write_script(&recipe.dir.join("migrations/check"), check);
        }
        appliance.release(&recipe.edit(|json| {
            json["migrate"]["rehearse"] = json!(true);
            if check.is_some() {
                json["migrate"]["check"] = json!(["migrations/check", "{data:db}"]);
            }
        }));
        // Nobody has written for a while: it can be copied.
        let before = appliance.processes();
        appliance.told();
        appliance
            .update(&["apply"])
            .refused(1, &["rejected", "rehearsal"]);
        assert_eq!(appliance.processes(), before, "no service was stopped");
        assert_eq!(appliance.told(), Vec::<String>::new());
        assert_eq!(found(&appliance), old());
        tidy(&appliance);
        let last = &appliance.status()["last"];
        assert_eq!(last["result"], "failed");
        appliance.refuses(&["apply"], 5, &[version, "quarantined"]);
    }
    // One that grows beyond what the data may take is ended, beside services that need the space.
    let recipe = migrating(
        &appliance,
        "1.2.2",
        "while head -c 1000000 /dev/zero >>$1; do sleep 0.01; done",
    );
    appliance.edit_config(|config| config["data"][0]["limit_bytes"] = json!(20_000_000));
    appliance.release(&recipe.edit(|json| json["migrate"]["rehearse"] = json!(true)));
    appliance
        .update(&["apply"])
        .refused(1, &["rejected", "exceeds its space limit"]);
    assert_eq!(found(&appliance), old());
    tidy(&appliance);
    let log = text(&appliance.data().join("update/log/update.log"));
    assert!(log.contains("no such column"), "{log}");
}

/// A rehearsal leaves neither a copy nor a change of the data, and knows that it is one; the migration then runs once more,
/// at full speed: services wait for it.
#[test]
fn a_rehearsal_that_succeeds_leaves_no_trace() {
    let appliance = with_data();
    let runs = appliance.temp().join("runs");
    let script = format!(
        "echo ${{QX_UPDATE_REHEARSAL:-real}} $(nice) >>{}; {MIGRATE}",
        path(&runs)
    );
    let recipe = migrating(&appliance, "1.2.0", &script);
    appliance.release(&recipe.edit(|json| json["migrate"]["rehearse"] = json!(true)));
    appliance
        .update(&["apply"])
        .code(0)
        .says(&["succeeded on a copy"]);
    appliance.runs("1.2.0");
    assert_eq!(text(&runs), "1 19\nreal 0\n");
    assert_eq!(found(&appliance)["db"], "migrated\n");
    tidy(&appliance);
}

/// A release whose data is larger than its limit, or is not declared here, is refused when it is planned: no service is
/// stopped and the data is as it was.
#[test]
fn data_that_does_not_fit_is_refused_before_anything_is_fetched() {
    let appliance = with_data();
    appliance.edit_config(|config| config["data"][0]["limit_bytes"] = json!(5));
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    let before = appliance.processes();
    appliance
        .update(&["apply"])
        .refused(5, &["planning", "db", "limit_bytes"]);
    appliance.edit_config(|config| config["data"] = json!([]));
    appliance
        .update(&["apply"])
        .refused(5, &["1.2.0", "db", "does not declare"]);
    assert_eq!(appliance.processes(), before);
    assert_eq!(found(&appliance), old());
}

/// A person can go back across a migration by its own way down; without one to the data from before, which is kept, and only
/// if the person says so: what is written since is set aside, and told.
#[test]
fn a_person_goes_back() {
    let appliance = with_data();
    let down = "echo rows >$1; rm -f $1-journal";
    let recipe = migrating(&appliance, "1.2.0", MIGRATE);
    write_script(&recipe.dir.join("migrations/down"), down);
    let downward = json!(["migrations/down", "{data:db}"]);
    appliance.release(&recipe.edit(|json| {
        json["migrate"]["down"] = downward.clone();
        json["data"][0]["schema_down"] = json!(1);
    }));
    appliance.update(&["apply"]).code(0);
    appliance.update(&["rollback"]).code(0);
    appliance.runs("1.1.0");
    assert_eq!(found(&appliance)["db"], "rows\n", "its own way down");
    assert_eq!(schema(&appliance), 1);
    // Without a way down what was written since is only given up if a person says so.
    appliance.release(&migrating(&appliance, "1.3.0", MIGRATE));
    appliance.update(&["apply"]).code(0);
    put(&appliance, &[("db", "a day's work")]);
    let before = appliance.processes();
    appliance.update(&["rollback"]).refused(
        10,
        &[
            "schema of db is 2",
            "--set-aside-data",
            "the data written from",
        ],
    );
    assert_eq!(appliance.processes(), before);
    appliance
        .update(&["rollback", "--set-aside-data"])
        .code(0)
        .says(&["setting aside the data"]);
    appliance.runs("1.1.0");
    assert_eq!(found(&appliance)["db"], "rows\n");
    assert_eq!(schema(&appliance), 1);
    tidy(&appliance);
    let aside: Vec<String> = noted(&appliance)
        .into_iter()
        .filter(|(id, _)| copies(&appliance, id).join("next/db").exists())
        .map(|(id, reason)| reason + &text(&copies(&appliance, &id).join("next/db")))
        .collect();
    assert_eq!(aside, ["set-asidea day's work"]);
}

/// The updater is killed while it migrates: nothing has happened to the data, the release lies staged, and the next `apply`
/// goes on with it.
#[test]
fn a_killed_migration_was_none() {
    let appliance = with_data();
    let begun = appliance.temp().join("begun");
    let script = format!(
        "{MIGRATE}; [ -e {begun} ] && exit; touch {begun}; sleep 1000",
        begun = path(&begun)
    );
    appliance.release(&migrating(&appliance, "1.2.0", &script));
    let mut apply = appliance.start(&["apply"]);
    wait_until("the migration runs", || begun.exists() || !apply.runs());
    appliance.kill_updater();
    drop(apply);
    assert_eq!(found(&appliance), old());
    appliance.update(&["recover", "--stage", "link"]).code(0);
    assert_eq!(appliance.phase(), "staged");
    appliance.update(&["recover", "--stage", "data"]).code(0);
    appliance.services("start");
    put(&appliance, &[("db", "rows of the old release")]);
    appliance.update(&["confirm"]).code(0);
    assert_eq!(found(&appliance)["db"], "rows of the old release");
    appliance.runs("1.1.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(found(&appliance)["db"], "migrated\n");
    tidy(&appliance);
}

/// The updater is killed in the trial of a release that is sick: what it exchanged is exchanged back, once.
#[test]
fn a_killed_trial_gives_the_data_back() {
    let appliance = with_data();
    let recipe = migrating(&appliance, "1.2.0", MIGRATE).behaviour("node", "error500");
    appliance.release(&recipe);
    kill_in_trial(&appliance);
    assert_eq!(found(&appliance)["db"], "migrated\n");
    appliance.update(&["confirm"]).code(8);
    appliance.runs("1.1.0");
    restored(&appliance, &[("db", "migrated\n")]);
    put(&appliance, &[("db", "rows of the old release")]);
    appliance.update(&["recover", "--stage", "data"]).code(0);
    appliance.update(&["confirm"]).code(0);
    assert_eq!(
        found(&appliance)["db"],
        "rows of the old release",
        "nothing is taken back twice"
    );
}

/// A migration that insists on the live place gets it; what was there before is kept, and comes back if it fails.
#[test]
fn a_migration_in_place() {
    let appliance = with_data();
    let live = place(&appliance, "db");
    let script = format!("[ $1 = {} ] || exit 9; {MIGRATE}", path(&live));
    let in_place = |recipe: Recipe| recipe.edit(|json| json["migrate"]["in_place"] = json!(true));
    appliance.release(&in_place(migrating(
        &appliance,
        "1.2.0",
        &format!("{script}; exit 3"),
    )));
    appliance.update(&["apply"]).refused(8, &["exited 3"]);
    restored(&appliance, &[("db", "migrated\n"), ("db-journal", "new\n")]);
    appliance.release(&in_place(migrating(&appliance, "1.3.0", &script)));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.3.0");
    assert_eq!(found(&appliance)["db"], "migrated\n");
    tidy(&appliance);
    appliance.update(&["rollback", "--set-aside-data"]).code(0);
    assert_eq!(found(&appliance), old());
    assert_eq!(schema(&appliance), 1);
}

/// A person uses the factory set in a boot while a release is on trial, and stays on it: its data comes with it.
#[test]
fn the_rescue_rescues_the_data() {
    let appliance = with_data();
    appliance.factory(
        &appliance
            .recipe("1.0.0")
            .edit(|json| json["data"] = schemas(1, 1)),
    );
    let recipe = migrating(&appliance, "1.2.0", MIGRATE).behaviour("node", "error500");
    appliance.release(&recipe);
    kill_in_trial(&appliance);
    appliance.services("stop");
    let cmdline = appliance.root.join("proc/cmdline");
    crate::common::create_dir(cmdline.parent().unwrap()).unwrap();
    fs::write(&cmdline, "quiet qx.factory\n").unwrap();
    appliance.update(&["recover", "--stage", "link"]).code(0);
    // The factory set does not accept what the release has made of the data: who uses it is held until then.
    appliance
        .update(&["recover", "--stage", "data"])
        .refused(10, &["schema of db is 2"]);
    appliance.update(&["rollback", "--to", "factory"]).code(0);
    assert_eq!(found(&appliance), old(), "{}", appliance.tree());
    assert_eq!(schema(&appliance), 1);
    tidy(&appliance);
    appliance.update(&["recover", "--stage", "data"]).code(0);
    appliance.services("start");
    let status = appliance.status();
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    assert_eq!(status["needs_person"], false, "{status:#}");
}

/// The update state is lost in a trial: nobody but a person knows which data is the right one. Its users are held, and a
/// person can have the data from before.
#[test]
fn a_lost_record_loses_no_data() {
    let appliance = with_data();
    let recipe = migrating(&appliance, "1.2.0", MIGRATE).behaviour("node", "error500");
    appliance.release(&recipe);
    kill_in_trial(&appliance);
    for state in ["state.0", "state.1"] {
        fs::write(appliance.data().join("update").join(state), "damaged").unwrap();
    }
    appliance.update(&["recover", "--stage", "link"]).code(0);
    appliance
        .update(&["recover", "--stage", "data"])
        .refused(10, &["copies of data"]);
    appliance.update(&["confirm"]).code(10);
    let noted = noted(&appliance);
    let [(id, reason)] = &noted[..] else {
        panic!("{noted:?}");
    };
    assert_eq!(reason, "unexplained");
    let status = appliance.update(&["status"]);
    status.says(&[&format!("data restore {id}"), &format!("data drop {id}")]);
    // A person has the data from before: under the release that was on trial, whose schema it does not have, it is not used.
    appliance
        .update(&["data", "restore", id])
        .refused(10, &["schema"]);
    // What else could run is not known any more, but the factory set.
    appliance.update(&["rollback"]).code(0);
    assert_eq!(appliance.status()["running"]["set"], "factory");
    appliance.update(&["data", "restore", id]).code(0);
    assert_eq!(found(&appliance), old());
    assert_eq!(schema(&appliance), 1);
    appliance.update(&["recover", "--stage", "data"]).code(0);
    let status = appliance.status();
    assert_eq!(status["needs_person"], false, "{status:#}");
    tidy(&appliance);
}

/// What is kept is listed, can be written to a file, made live again and deleted; another id is none, and what an operation
/// needs is not touched.
#[test]
fn a_person_sees_to_what_is_kept() {
    let appliance = with_data();
    let list = || appliance.update(&["data", "list"]).code(0).stdout.clone();
    assert_eq!(list(), "no data is kept\n");
    let recipe = migrating(&appliance, "1.2.0", MIGRATE).edit(|json| {
        json["data"] =
            json!([{"name": "db", "accepts_from": 1, "accepts_to": 2, "schema_after": 2}]);
    });
    appliance.release(&recipe);
    appliance.update(&["apply"]).code(0);
    let [(id, _)] = &noted(&appliance)[..] else {
        panic!("{}", list());
    };
    for words in [id, "db at schema 1", "1.1.0", "was live before an update"] {
        assert!(list().contains(words), "{}", list());
    }
    appliance.update(&["status"]).says(&["kept", id]);
    let file = appliance.temp().join("kept.tar");
    let export = ["data", "export", id, path(&file)];
    appliance.update(&export).code(0);
    let tar = Command::new("tar")
        .args(["-xOf", path(&file), "db/db"])
        .output();
    assert_eq!(tar.unwrap().stdout, b"rows");
    appliance
        .update(&export)
        .refused(1, &[path(&file), "exists"]);
    put(&appliance, &[("db", "a day's work")]);
    appliance.update(&["data", "restore", id]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(found(&appliance), old());
    assert_eq!(schema(&appliance), 1);
    assert_eq!(appliance.status()["fallback"]["version"], "1.1.0");
    assert!(list().contains("was set aside"), "{}", list());
    // And back again.
    appliance.update(&["data", "restore", id]).code(0);
    assert_eq!(found(&appliance)["db"], "a day's work");
    for wrong in ["0123456789abcdef", "zz"] {
        appliance
            .update(&["data", "drop", wrong])
            .refused(2, &[wrong]);
    }
    appliance.update(&["data", "drop", id]).code(0);
    assert_eq!(list(), "no data is kept\n");
    tidy(&appliance);
}

/// Something that is no service writes to the data while a copy is migrated: what it wrote would be lost, so nothing is
/// exchanged; the release is not to blame.
#[test]
fn what_writes_meanwhile_is_noticed() {
    let appliance = with_data();
    let live = place(&appliance, "db");
    let script = format!("{MIGRATE}; echo more >>{}", path(&live));
    appliance.release(&migrating(&appliance, "1.2.0", &script));
    appliance.update(&["apply"]).refused(
        8,
        &[
            "was written to while its services were stopped",
            "another process uses it",
        ],
    );
    appliance.runs("1.1.0");
    assert_eq!(found(&appliance)["db"], "rowsmore\n");
    assert_eq!(schema(&appliance), 1);
    assert_eq!(appliance.status()["refused"], json!([]));
    tidy(&appliance);
}

/// Who has the data open without writing to it would go on with what is set aside, and what it writes then would be lost: so
/// would somebody who sees it at another place. Nothing is exchanged, and the release is not to blame.
#[test]
fn who_still_uses_the_data_is_told() {
    let appliance = with_data();
    let live = place(&appliance, "db");
    let wal = place(&appliance, "db-wal");
    let uses = [
        format!("exec sleep 1000 <{}", path(&live)),
        format!("exec sleep 1000 >>{}", path(&wal)),
        format!("exec tail -f {}", path(&live)),
        format!(
            "exec unshare -m sh -c 'touch {to} && mount --bind {from} {to} && exec sleep 1000'",
            from = path(&live),
            to = path(&appliance.root.join("out/elsewhere"))
        ),
    ];
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    for script in uses {
        let mut user = Command::new("sh");
        let mut user = user.args(["-c", &script]).spawn().unwrap();
        let named = format!("process {} (", user.id());
        // It has begun.
        let runs = |name: &str| exe(user.id()).is_some_and(|exe| exe.ends_with(name));
        wait_until("it uses the data", || runs("sleep") || runs("tail"));
        appliance
            .update(&["apply"])
            .refused(8, &[&named, "still uses"]);
        assert!(
            user.try_wait().unwrap().is_none(),
            "it was killed: {script}"
        );
        user.kill().unwrap();
        user.wait().unwrap();
        appliance.runs("1.1.0");
        assert_eq!(found(&appliance), old(), "{script}");
        assert_eq!(appliance.status()["refused"], json!([]));
        tidy(&appliance);
    }
    // Who ends soon is waited for.
    let script = format!("exec sleep 3 <{}", path(&live));
    let mut user = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    appliance.update(&["apply"]).code(0);
    user.wait().unwrap();
    assert_eq!(found(&appliance)["db"], "migrated\n");
}

/// On the way back, too: who has opened the new data meanwhile would go on with what is set aside. A person is told who that is,
/// and the way back is completed once they are gone.
#[test]
fn nothing_is_restored_under_its_users() {
    let appliance = with_data();
    let recipe = migrating(&appliance, "1.2.0", MIGRATE).behaviour("node", "error500");
    appliance.release(&recipe);
    let apply = appliance.start(&["apply"]);
    wait_until("the trial", || appliance.phase() == "trial");
    let live = place(&appliance, "db");
    let mut user = Command::new("sh");
    let script = format!("exec sleep 1000 <{}", path(&live));
    let mut user = user.args(["-c", &script]).spawn().unwrap();
    let named = format!("process {} (", user.id());
    let apply = apply.wait();
    apply.code(10);
    for words in [&named, "restoring the data", "`qx-update confirm`"] {
        assert!(apply.stderr.contains(words), "{}", apply.stderr);
    }
    assert!(user.try_wait().unwrap().is_none(), "it was killed");
    assert_eq!(found(&appliance)["db"], "migrated\n");
    appliance
        .update(&["status"])
        .says(&["stay stopped", &named]);
    user.kill().unwrap();
    user.wait().unwrap();
    appliance.update(&["confirm"]).code(8);
    appliance.runs("1.1.0");
    restored(&appliance, &[("db", "migrated\n")]);
}

/// A newer image migrates the data at boot; what the runlevel starts before that runs from the set that is left, and is restarted.
/// A sick image goes back to the release that ran before, with its services stopped while the data is exchanged; a good one stays.
#[test]
fn an_image_is_proved_and_goes_back() {
    for sick in [true, false] {
        let appliance = with_data();
        appliance.services("stop");
        // Its arguments may be relative, as those of a release.
        let script = format!("[ -x migrations/run ] || exit 9; {MIGRATE}");
        let image = migrating(&appliance, "1.2.0", &script);
        appliance.factory(&match sick {
            true => image.behaviour("node", "error500"),
            false => image,
        });
        appliance.update(&["recover", "--stage", "link"]).code(0);
        // It does not use the data, and so does not wait for it.
        appliance.service("start", "console");
        appliance.update(&["recover", "--stage", "data"]).code(0);
        assert_eq!(found(&appliance)["db"], "migrated\n");
        assert_eq!(appliance.phase(), "trial");
        appliance.service("start", "node");
        appliance.told();
        let confirm = appliance.update(&["confirm"]);
        let told = appliance.told();
        if !sick {
            confirm.code(0);
            appliance.runs("1.2.0");
            assert_eq!(found(&appliance)["db"], "migrated\n");
            continue;
        }
        confirm.code(8);
        appliance.runs("1.1.0");
        restored(&appliance, &[("db", "migrated\n")]);
        assert_eq!(appliance.status()["refused"][0]["version"], "1.2.0");
        let stopped = told.iter().rposition(|line| line == "stop node");
        let started = told.iter().rposition(|line| line == "start node");
        assert!(stopped.is_some() && stopped < started, "{told:?}");
    }
}

/// A person at the console installs a release that migrates, before the services start, and goes back from it: what the new release wrote is
/// set aside only if that is said.
#[test]
fn a_release_migrates_before_the_services_start() {
    let appliance = with_data();
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    appliance.power_off();
    appliance.told();
    appliance.update(&["apply", "--at-boot"]).code(0);
    assert_eq!(found(&appliance)["db"], "migrated\n");
    assert!(appliance.told().is_empty());
    appliance.services("start");
    appliance.update(&["confirm"]).code(0);
    appliance.runs("1.2.0");
    put(&appliance, &[("db", "written since")]);

    appliance.power_off();
    appliance
        .update(&["rollback", "--at-boot"])
        .refused(10, &["going back to"]);
    assert_eq!(found(&appliance)["db"], "written since");
    appliance
        .update(&["rollback", "--at-boot", "--set-aside-data"])
        .code(0);
    assert_eq!(found(&appliance), old());
    appliance.services("start");
    appliance.update(&["confirm"]).code(0);
    appliance.runs("1.1.0");
    assert_eq!(schema(&appliance), 1);
    let kept = noted(&appliance);
    assert!(!kept.is_empty(), "what was written since is gone");

    // One whose migration fails is not switched to, and the data is as it was.
    let broken = migrating(
        &appliance,
        "1.3.0",
        "echo half >$1; echo no more >&2; exit 1",
    );
    appliance.release(&broken);
    appliance.power_off();
    appliance.update(&["apply", "--at-boot"]).code(8);
    assert_eq!(found(&appliance), old());
    appliance.services("start");
    appliance.update(&["confirm"]).code(8);
    appliance.runs("1.1.0");
    assert_eq!(appliance.status()["refused"][0]["version"], "1.3.0");
}

/// Data that is there, and whose schema nobody has recorded, is for a release that says it takes any; where there is none yet any
/// release will do.
#[test]
fn data_of_an_unknown_schema() {
    let appliance = Appliance::new();
    appliance.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/data/db/db"}]);
    });
    crate::common::create_dir(appliance.data().join("db")).unwrap();
    let plain = |version: &str| {
        let recipe = appliance.recipe(version);
        recipe.edit(|json| json["data"] = schemas(1, 1))
    };
    appliance.release(&plain("1.1.0"));
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    put(&appliance, &[("db", "of whom?")]);
    for version in ["1.1.0", "1.2.0"] {
        appliance.refuses(
            &["apply", version],
            5,
            &[version, "the schema of db is unknown"],
        );
    }
    appliance
        .update(&["check"])
        .refused(5, &["the schema of db is unknown"]);
    assert_eq!(found(&appliance)["db"], "of whom?");
    appliance.edit_config(|config| config["data"][0]["schema"] = json!(["echo", "1"]));
    appliance.update(&["apply", "1.1.0", "--dry-run"]).code(0);
    appliance.edit_config(|config| config["data"][0]["schema"] = json!([]));
    appliance.release(&plain("1.1.1").edit(|json| json["data"] = adopting(schemas(1, 1))));
    appliance.update(&["apply", "1.1.1"]).code(0);
    assert_eq!(schema(&appliance), 1);
    let fresh = Appliance::new();
    fresh.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/data/db/db"}]);
    });
    let recipe = fresh.recipe("1.1.0");
    fresh.release(&recipe.edit(|json| json["data"] = schemas(1, 1)));
    fresh.update(&["apply"]).code(0);
}

/// A person stages a release ahead, or tries its migration, while the old one runs: nothing is stopped and no copy stays behind;
/// the switch comes later, and takes what lies staged.
#[test]
fn a_person_rehearses_and_stages_ahead() {
    let appliance = with_data();
    let unchanged = |before: &std::collections::BTreeMap<u32, PathBuf>| {
        assert_eq!(appliance.processes(), *before);
        assert_eq!(found(&appliance), old());
        tidy(&appliance);
    };
    let before = appliance.processes();
    appliance.release(&appliance.recipe("1.1.1"));
    let status = appliance.update(&["data", "rehearse", "1.1.1"]);
    status.code(0).says(&["the data needs no migration"]);
    unchanged(&before);
    // The release does not ask for it; a person does.
    let failing = "echo half >$1; echo no such column >&2; exit 1";
    appliance.release(&migrating(&appliance, "1.2.0", failing));
    appliance
        .update(&["data", "rehearse", "1.2.0"])
        .refused(1, &["rejected", "rehearsal"]);
    unchanged(&before);
    appliance
        .update(&["status"])
        .says(&["1.2.0 is quarantined", "no such column"]);
    let good = format!("[ \"$QX_UPDATE_REHEARSAL\" ] && echo rehearsed; {MIGRATE}");
    appliance.release(&migrating(&appliance, "1.3.0", &good));
    appliance
        .update(&["data", "rehearse", "1.3.0"])
        .code(0)
        .says(&["rehearsed", "the migration succeeded on a copy"]);
    unchanged(&before);
    assert_eq!(appliance.phase(), "staged");
    appliance.update(&["status"]).says(&[
        "`qx-update apply` switches to it",
        "db: schema 1, 13 of at most",
    ]);
    // Again, by what lies there already.
    appliance
        .update(&["data", "rehearse", "1.3.0"])
        .code(0)
        .says(&[
            "is staged and verified already",
            "the migration succeeded on a copy",
        ]);
    appliance
        .update(&["apply", "--stage-only"])
        .code(0)
        .says(&["1.3.0 (slot b) is staged"]);
    unchanged(&before);
    appliance.update(&["apply"]).code(0);
    assert_eq!(found(&appliance)["db"], "migrated\n");
    appliance.runs("1.3.0");
    appliance.update(&["status"]).says(&[
        "db: schema 2, 13 of at most 1073741824 bytes",
        "kept for another ",
        "unless its space is needed",
    ]);
    let data = &appliance.status()["data"][0];
    assert_eq!(data["name"], "db");
    assert_eq!(data["bytes"], 13);
}

/// What the migration wrote is on the medium before it becomes the live data, whatever the migration syncs itself.
#[test]
fn what_is_migrated_is_on_the_medium_first() {
    let appliance = with_data();
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    let calls = appliance.temp().join("calls");
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=execve,syncfs,rename,renameat,renameat2"]);
    command.args([
        "-o",
        path(&calls),
        UPDATE,
        "--root",
        path(&appliance.root),
        "apply",
    ]);
    // It goes on with the services that it has seen started.
    let mut strace = appliance.spawn(command);
    wait_until("the update", || {
        !strace.runs() || appliance.status()["last"]["to"]["version"] == "1.2.0"
    });
    drop(strace);
    let calls = text(&calls);
    let place = |words: &[&str]| {
        let mut lines = calls.lines();
        lines
            .position(|line| words.iter().all(|word| line.contains(word)))
            .unwrap_or_else(|| panic!("no {words:?} in\n{calls}"))
    };
    let migrated = place(&["execve", "migrations/run"]);
    let exchanged = place(&["rename", "/next\"", "/next.emptying\""]);
    let mut between = calls.lines().skip(migrated).take(exchanged - migrated);
    let synced = |line: &str| line.contains("syncfs") && line.ends_with("= 0");
    assert!(migrated < exchanged && between.any(synced), "{calls}");
}

/// Data that can be asked for its schema is believed, whatever was recorded: a person has changed it by hand.
#[test]
fn the_data_itself_says_its_schema() {
    let appliance = with_data();
    // Its lines are counted.
    appliance.edit_config(|config| {
        config["data"][0]["schema"] = json!(["grep", "-c", "", "{place}"]);
    });
    put(&appliance, &[("db", "one\ntwo\n")]);
    appliance
        .update(&["recover", "--stage", "data"])
        .refused(10, &["schema of db is 2"]);
    let recipe = appliance.recipe("1.2.0");
    appliance.release(&recipe.edit(|json| json["data"] = schemas(1, 1)));
    appliance
        .update(&["apply"])
        .refused(5, &["the schema of db is 2 (supported: 1 to 1)"]);
    appliance.release(&migrating(&appliance, "1.3.0", "exit 1"));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.3.0");
    assert_eq!(schema(&appliance), 2);
    // One that cannot be asked is at what was recorded.
    fs::remove_file(place(&appliance, "db")).unwrap();
    appliance
        .update(&["apply"])
        .code(3)
        .says(&["using the recorded schema"]);
}

/// What is kept goes when it was kept for long enough, and not before.
#[test]
fn what_is_kept_goes_in_time() {
    let appliance = with_data();
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    appliance.update(&["apply"]).code(0);
    let list = || appliance.update(&["data", "list"]).code(0).stdout.clone();
    appliance.update(&["confirm"]).code(0);
    assert!(list().contains("was live before"), "{}", list());
    appliance.edit_config(|config| config["limits"]["keep_data_s"] = json!(0));
    wait_until("it has been kept for more than nothing", || {
        appliance.update(&["confirm"]).code(0);
        list() == "no data is kept\n"
    });
    tidy(&appliance);
    assert_eq!(found(&appliance)["db"], "migrated\n");
}

/// A disk that is full when a copy is migrated: if it was the migration that filled it the release is to blame, else it is
/// not. The data is not touched, and the old release runs.
#[test]
fn a_disk_that_is_full() {
    for (own, script) in [
        (true, "head -c 100000000 /dev/zero >>$1"),
        (
            false,
            "head -c 100000000 /dev/zero >filler; echo more >>$1 && head -c 9000000 /dev/zero >>$1",
        ),
    ] {
        let appliance = Appliance::new();
        appliance.edit_config(|config| {
            config["data"] = json!([{"name": "db", "method": "files", "place": "/data/db/db"}]);
        });
        let small = Mounted::small(&appliance);
        crate::common::create_dir(appliance.data().join("db")).unwrap();
        put(&appliance, &[("db", "rows"), ("db-wal", "more rows")]);
        let recipe = appliance.recipe("1.1.0");
        appliance.release(&recipe.edit(|json| json["data"] = adopting(schemas(1, 1))));
        appliance.update(&["apply"]).code(0);
        let filler = appliance.data().join("filler");
        let script = script.replace("filler", path(&filler));
        appliance.release(&migrating(&appliance, "1.2.0", &script));
        appliance.update(&["apply"]).refused(8, &["exited 1"]);
        appliance.runs("1.1.0");
        untouched(&appliance);
        let refused = appliance.status()["refused"].to_string();
        assert_eq!(refused.contains("quarantined"), own, "{refused}");
        let _ = fs::remove_file(&filler);
        appliance.services("stop");
        drop(small);
    }
}

/// Many files take inodes, whatever they hold: what is kept goes for them, as for bytes, and where there are too few nothing is
/// stopped.
#[test]
fn a_disk_whose_inodes_run_out() {
    let appliance = Appliance::new();
    let few = Mounted::partition(&appliance, &["ext4", "-m", "0", "-N", "2000"], 64 << 20);
    appliance.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/data/db"}]);
    });
    let fill = |files: std::ops::Range<u32>| {
        for number in files {
            fs::write(place(&appliance, &number.to_string()), "row").unwrap();
        }
    };
    crate::common::create_dir(appliance.data().join("db")).unwrap();
    fill(0..800);
    let recipe = appliance.recipe("1.1.0");
    appliance.release(&recipe.edit(|json| json["data"] = adopting(schemas(1, 1))));
    appliance.update(&["apply"]).code(0);
    let script = "echo migrated >$1/0";
    appliance.release(&migrating(&appliance, "1.2.0", script));
    appliance.update(&["apply"]).code(0);
    assert_eq!(noted(&appliance).len(), 1);
    let next = |version: &str, schema: u64| {
        migrating(&appliance, version, script).edit(|json| json["data"] = schemas(schema, schema))
    };
    appliance.release(&next("1.3.0", 3));
    let apply = appliance.update(&["apply"]);
    apply.code(0).says(&["deleting kept data", "to make room"]);
    assert_eq!(noted(&appliance).len(), 1);
    fill(800..1050);
    appliance.release(&next("1.4.0", 4));
    let before = appliance.processes();
    appliance
        .update(&["apply"])
        .refused(7, &["to migrate a copy of the data", "files are free"]);
    assert_eq!(appliance.processes(), before);
    appliance.runs("1.3.0");
    appliance.services("stop");
    drop(few);
}

/// Data on a file system of its own: its copies lie beside it, and are exchanged there.
#[test]
fn data_that_is_on_another_file_system() {
    let appliance = Appliance::new();
    appliance.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/srv/own/db"}]);
    });
    let own = appliance.root.join("srv/own");
    crate::common::create_dir(&own).unwrap();
    let mounted = Mounted::over(&own, &["-t", "tmpfs", "-o", "size=16m,mode=755", "none"]);
    fs::write(own.join("db"), "rows").unwrap();
    let recipe = appliance.recipe("1.1.0");
    appliance.release(&recipe.edit(|json| json["data"] = adopting(schemas(1, 1))));
    appliance.update(&["apply"]).code(0);
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    appliance.update(&["apply"]).code(0);
    assert_eq!(text(&own.join("db")), "migrated\n");
    let beside = |id: &str| own.join(format!(".qx-update-{id}-db"));
    let [(id, _)] = &noted(&appliance)[..] else {
        panic!("{}", appliance.tree());
    };
    assert_eq!(text(&beside(id).join("previous/db")), "rows");
    appliance.update(&["rollback", "--set-aside-data"]).code(0);
    assert_eq!(text(&own.join("db")), "rows");
    appliance.update(&["data", "drop", id]).code(0);
    assert!(!beside(id).exists());
    // It is its own room that counts.
    fs::write(own.join("large"), vec![7; 10 << 20]).unwrap();
    fs::write(own.join("db"), vec![7; 4 << 20]).unwrap();
    appliance.release(&migrating(&appliance, "1.3.0", MIGRATE));
    let before = appliance.processes();
    appliance
        .update(&["apply"])
        .refused(7, &["copy of db", "are free"]);
    assert_eq!(appliance.processes(), before);
    drop(mounted);
}

/// A release whose migration cannot begin with the data as it is waits for the one between them, which is taken first.
#[test]
fn a_stepping_stone_is_taken() {
    let appliance = with_data();
    let step = |version: &str, schema: u64, script: &str| {
        let recipe = migrating(&appliance, version, script);
        recipe.edit(|json| {
            json["data"] = schemas(schema, schema);
            json["data"][0]["migrates_from"] = json!(schema - 1);
        })
    };
    appliance.release(&step("1.2.0", 2, "echo two >>$1"));
    appliance.release(&step("1.3.0", 3, "echo three >>$1"));
    appliance
        .update(&["apply", "1.3.0"])
        .refused(5, &["the schema of db is 1", "requires at least 2"]);
    for (version, number) in [("1.2.0", 2), ("1.3.0", 3)] {
        appliance.update(&["apply"]).code(0);
        appliance.runs(version);
        assert_eq!(schema(&appliance), number);
    }
    assert_eq!(found(&appliance)["db"], "rowstwo\nthree\n");
}

/// Applies what is offered, and kills the updater in its trial.
#[track_caller]
pub(super) fn kill_in_trial(appliance: &Appliance) {
    let mut apply = appliance.start(&["apply"]);
    wait_until("the trial", || {
        appliance.phase() == "trial" || !apply.runs()
    });
    appliance.kill_updater();
    drop(apply);
    assert_eq!(appliance.phase(), "trial");
}

/// A slot that is damaged, and a factory set that does not accept what the lost release left: its users are held, and the
/// repair brings the release back without a migration.
#[test]
fn a_set_that_does_not_accept_the_data_is_not_started_on_it() {
    let appliance = with_data();
    appliance.factory(
        &appliance
            .recipe("1.0.0")
            .edit(|json| json["data"] = schemas(1, 1)),
    );
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    appliance.update(&["apply"]).code(0);
    appliance.services("stop");
    for slot in ["a", "b"] {
        fs::write(
            appliance
                .data()
                .join("slots")
                .join(slot)
                .join("bin/qx-node"),
            "damaged",
        )
        .unwrap();
    }
    appliance.update(&["recover", "--stage", "link"]).code(0);
    appliance
        .update(&["recover", "--stage", "data"])
        .refused(10, &["factory set", "schema of db is 2"]);
    let status = appliance.status();
    assert_eq!(status["running"]["set"], "factory");
    assert_eq!(status["needs_person"], true);
    assert_eq!(status["lost"]["version"], "1.2.0");
    appliance.update(&["status"]).says(&["apply --repair"]);
    put(&appliance, &[("db", "rows of 1.2.0")]);
    appliance.update(&["apply", "--repair"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(
        found(&appliance)["db"],
        "rows of 1.2.0",
        "without a migration"
    );
    appliance.update(&["recover", "--stage", "data"]).code(0);
    appliance.update(&["apply", "--repair"]).code(3);
}

/// A check that failed before the update says nothing against the release, unless the release wants to be held to it.
#[test]
fn only_a_regression_condemns() {
    let appliance = with_data();
    let silent = json!({"type": "tcp", "address": "127.0.0.1:1", "interval_s": 1, "timeout_s": 1, "retries": 0,
                        "start_period_s": 0, "stable_s": 0});
    let with = |version: &str, required: bool| {
        let mut check = silent.clone();
        check["required"] = json!(required);
        let recipe = appliance.recipe(version);
        recipe.edit(|json| json["health"].as_array_mut().unwrap().push(check))
    };
    appliance.release(&with("1.2.0", false));
    appliance.update(&["apply"]).refused(8, &["127.0.0.1:1"]);
    // Now what runs has the check, and fails it.
    let factory = with("1.0.0", false);
    appliance.update(&["rollback", "--to", "factory"]).code(0);
    appliance.services("stop");
    appliance.factory(&factory);
    appliance.services("start");
    appliance.update(&["recover"]).code(0);
    appliance.release(&with("1.3.0", false));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.3.0");
    let unproved = appliance.status()["last"]["unproved"].to_string();
    assert!(
        unproved.contains("as it did before the switch"),
        "{unproved}"
    );
    let status = appliance.update(&["status"]);
    status.says(&["done, not proved: ", "127.0.0.1:1"]);
    assert!(!status.stdout.contains("proved healthy"));
    appliance.release(&with("1.4.0", true));
    appliance.update(&["apply"]).refused(8, &["127.0.0.1:1"]);
    appliance.runs("1.3.0");
}

/// A user of the data that is no release's service, and whose stop fails: its data is not touched, and nobody kills it.
#[test]
fn a_user_of_the_data_that_does_not_stop() {
    let appliance = with_data();
    appliance.edit_config(|config| {
        config["data"][0]["services"] = json!(["node", "console", "report"]);
    });
    let mut report = Command::new("sleep");
    let report = report.arg("1000").env("STARTED_IN", &appliance.root);
    let mut report = report.spawn().unwrap();
    let pidfile = appliance.root.join("run/report.pid");
    fs::write(&pidfile, report.id().to_string()).unwrap();
    let svc = appliance.root.join("svc");
    let script = text(&svc).replace(
        "case $1 in\n",
        "case $1:$2 in\nstop:report) exit 1 ;;\nstart:report) exit 0 ;;\nesac\ncase $1 in\n",
    );
    write_executable(&svc, script);
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    appliance
        .update(&["apply"])
        .refused(8, &["report failed", "may still run and use the data"]);
    assert_eq!(found(&appliance), old());
    appliance.runs("1.1.0");
    assert!(report.try_wait().unwrap().is_none(), "it was killed");
    report.kill().unwrap();
    report.wait().unwrap();
}
