//! `qx-publish check`: what can be tried before a release goes out, and that `release` does not go out without it.

use std::path::Path;

use serde_json::{Value, json};

use super::desk::{Desk, RELEASE};
use crate::common::text;

const CHECK: &[&str] = &["check", "src/recipe.json", "--repo", "repo"];

/// A desk whose recipe has these checks, with an init script that looks through the priority link.
fn desk(version: &str, edit: impl FnOnce(&mut Value)) -> Desk {
    let desk = Desk::ready();
    desk.write(
        "src/init",
        "command=/usr/bin/qx-daemon\n[ -x /data/bin/qx-daemon ] && command=/data/bin/qx-daemon\n",
    );
    recipe(&desk, version, edit);
    desk
}

fn recipe(desk: &Desk, version: &str, edit: impl FnOnce(&mut Value)) {
    desk.recipe(version, std::env::consts::ARCH);
    desk.write("src/VERSION", format!("{version}\n"));
    let mut recipe: Value = serde_json::from_str(&desk.text("src/recipe.json")).unwrap();
    recipe["checks"] = json!({
        "prefix": "qx-",
        "versions": [{"file": "VERSION"}],
        "init_scripts": [{"service": "daemon", "file": "init"}],
    });
    edit(&mut recipe);
    desk.write("src/recipe.json", recipe.to_string());
}

/// With migrations: a script that keeps count of those that were run.
fn migrating(recipe: &mut Value, schema: u64) {
    recipe["components"].as_array_mut().unwrap().push(
        json!({"name": "migrations", "kind": "tree", "install_path": "migrations", "source": "migrations"}),
    );
    recipe["data"] = json!([{"name": "db", "accepts_from": schema, "accepts_to": schema, "schema_after": schema}]);
    recipe["migrate"] = json!({
        "run": ["migrations/up", "{data:db}"], "check": ["migrations/check", "{data:db}"],
        "timeout_s": 60, "touches": ["db"],
    });
    recipe["checks"]["migrations"] = json!({"directory": "migrations/sql", "data": {"db": "file"}});
}

/// As tools do: runs what is newer than what was run.
const UP: &str = "touch $1; for file in migrations/sql/*.sql; do grep -qx $file $1 && continue; . ./$file; echo $file >>$1; done";

/// A release whose names, versions and scripts agree is tried and published; one that a person would find out about on the
/// appliance is told with file, line and value, and is not published unless a person insists.
#[test]
fn what_disagrees_is_told_and_not_published() {
    let desk = desk("1.0.0", |_| {});
    let passed = desk.succeeds(CHECK);
    for words in [
        "passed: names: every program's name begins with qx-",
        "VERSION:1: 1.0.0",
        "starts /data/bin/qx-daemon, else /usr/bin/qx-daemon",
    ] {
        assert!(passed.contains(words), "{words}: {passed}");
    }
    desk.succeeds(RELEASE);
    desk.write("src/Makefile", "NAME := x\nVERSION := 1.0.0\n");
    desk.write("src/web/package.json", "{\n  \"version\": \"0.9.9\"\n}\n");
    recipe(&desk, "1.1.0", |recipe| {
        recipe["checks"]["versions"] = json!([
            {"file": "Makefile", "line": "VERSION := {version}"},
            {"file": "web/package.json"},
            {"file": "VERSION"},
        ]);
    });
    let ended = desk.run(CHECK);
    assert_eq!(ended.code, 1, "{ended:?}");
    let told = ended.out;
    for words in [
        "problem: src/Makefile:2: the version is 1.0.0, but the recipe's is 1.1.0",
        "problem: src/web/package.json:2: the version is 0.9.9, but the recipe's is 1.1.0",
        "passed: versions: src/VERSION:1: 1.1.0",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    desk.fails(
        RELEASE,
        &[
            "src/Makefile:2",
            "and 1 more",
            "nothing was published",
            "--no-check",
        ],
    );
    let insists = [RELEASE, &["--no-check"]].concat();
    desk.succeeds(&insists);
}

/// The fault that let a whole product's updates have no effect: the service runs another name than the one installed.
#[test]
fn an_init_script_that_starts_something_else() {
    let desk = desk("1.0.0", |_| {});
    for (script, words) in [
        (
            "command=/usr/bin/quantix-daemon\n[ -x /data/bin/quantix-daemon ] && command=/data/bin/quantix-daemon\n",
            "it must start /data/bin/qx-daemon, but it starts /usr/bin/quantix-daemon",
        ),
        ("command=/usr/bin/qx-daemon\n", "no update would ever run"),
        (
            "# [ -x /data/bin/qx-daemon ]\nstart() {\n\tstart-stop-daemon --start --exec /usr/bin/qx-daemon\n}\n",
            "no update would ever run",
        ),
    ] {
        desk.write("src/init", script);
        desk.fails(RELEASE, &["src/init of service daemon", words]);
    }
    recipe(&desk, "1.0.0", |recipe| {
        recipe["checks"]["init_scripts"][0]["service"] = json!("deamon");
    });
    let told = desk.bad(2, RELEASE);
    assert!(
        told.contains("checks.init_scripts: deamon is not a service"),
        "{told}"
    );
}

/// Intent: the template that is installed for an appliance's services follows the rule, whatever kind of service it is made for.
#[test]
fn the_template_for_services() {
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/openrc-service");
    let template = text(&template);
    for kind in ["supervised", "background", "forking", "oneshot"] {
        let desk = desk("1.0.0", |_| {});
        let script = template
            .replace("program=bin/my-daemon", "program=bin/qx-daemon")
            .replace("kind=supervised", &format!("kind={kind}"));
        desk.write("src/init", &script);
        desk.succeeds(CHECK);
        // The image's own, whatever is installed.
        desk.write("src/init", script.replace("command=/data/$program", ":"));
        desk.fails(
            RELEASE,
            &["/data/bin/qx-daemon", "no update would ever run"],
        );
    }
}

/// The scripts that the demonstration's appliance has are right by this measure.
#[test]
fn the_demonstrations_own_init_scripts() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu/root/etc/init.d");
    let desk = desk("1.0.0", |_| {});
    for (script, program) in [
        ("quantix-node", "qx-node"),
        ("quantix-controlplane", "qx-controlplane"),
        ("quantix-console", "qx-console"),
    ] {
        recipe(&desk, "1.0.0", |recipe| {
            recipe["components"][0]["install_path"] = json!(format!("bin/{program}"));
            recipe["services"][0]["runs"] = json!(format!("bin/{program}"));
            recipe["checks"]["init_scripts"][0]["file"] = json!(scripts.join(script));
        });
        let passed = desk.succeeds(CHECK);
        let words = format!("starts /data/bin/{program}, else /usr/bin/{program}");
        assert!(passed.contains(&words), "{passed}");
    }
}

/// Migrations are run on nothing, and on what each published release makes; what is published is not edited, removed or
/// passed over.
#[test]
fn migrations_are_tried_on_what_is_out_there() {
    let desk = desk("1.0.0", |_| {});
    desk.write("src/migrations/sql/001_a.sql", "echo a >>$1");
    desk.script("src/migrations/up", UP);
    desk.script("src/migrations/check", "grep -q 001_a $1");
    recipe(&desk, "1.0.0", |recipe| migrating(recipe, 1));
    let passed = desk.succeeds(CHECK);
    assert!(
        passed.contains("running the migration on no data: schema db 1"),
        "{passed}"
    );
    desk.succeeds(RELEASE);
    desk.write(
        "src/migrations/sql/002_b.sql",
        "grep -q a $1 && echo b >>$1",
    );
    recipe(&desk, "1.1.0", |recipe| migrating(recipe, 2));
    let passed = desk.succeeds(CHECK);
    for words in [
        "those of 1.0.0 are unchanged",
        "running the migration on the data of 1.0.0 (schema db 1): schema db 2",
    ] {
        assert!(passed.contains(words), "{words}: {passed}");
    }
    desk.succeeds(RELEASE);
    // Works on what 1.1.0 leaves and on nothing, and not on what 1.0.0 leaves: it is still out there.
    recipe(&desk, "1.2.0", |recipe| migrating(recipe, 3));
    desk.script(
        "src/migrations/up",
        &format!(
            "[ \"$(cat $1 2>/dev/null | wc -l)\" != 2 ] || {{ echo no such column; exit 3; }}; {UP}"
        ),
    );
    desk.write("src/migrations/sql/003_c.sql", "echo c >>$1");
    desk.fails(RELEASE, &["on the data of 1.0.0", "no such column"]);
    // Unless nobody who runs it may take this one.
    recipe(&desk, "1.2.0", |recipe| {
        migrating(recipe, 3);
        recipe["min_version"] = json!("1.1.0");
    });
    desk.succeeds(CHECK);
    for (name, content, words) in [
        ("001_a.sql", "echo other >>$1", "001_a.sql was changed"),
        (
            "000_z.sql",
            "true",
            "000_z.sql is new, but 002 is published already",
        ),
        (
            "005_e.sql",
            "true",
            "there is no migration between 003_c.sql and 005_e.sql",
        ),
        (
            "003_d.sql",
            "true",
            "003_c.sql and 003_d.sql have the same number",
        ),
        (
            "004_d.sql",
            "exit 4",
            "running the migration on no data: migrations/up {data:db}: running",
        ),
    ] {
        let file = format!("src/migrations/sql/{name}");
        let before = desk.path(&file).exists().then(|| desk.text(&file));
        desk.write(&file, content);
        desk.fails(RELEASE, &[words]);
        match before {
            Some(before) => drop(desk.write(&file, before)),
            None => std::fs::remove_file(desk.path(&file)).unwrap(),
        }
    }
    std::fs::remove_file(desk.path("src/migrations/sql/002_b.sql")).unwrap();
    let told = desk.run(CHECK).out;
    assert!(told.contains("002_b.sql was removed"), "{told}");
    desk.fails(RELEASE, &["nothing was published"]);
}

/// What cannot be tried on this machine is told, and holds nothing up.
#[test]
fn what_cannot_be_tried_here_is_told() {
    let desk = desk("1.0.0", |_| {});
    desk.write("src/migrations/sql/001_a.sql", "");
    desk.script("src/migrations/up", "exit 9");
    desk.script("src/migrations/check", "exit 9");
    recipe(&desk, "1.0.0", |recipe| {
        migrating(recipe, 1);
        recipe["checks"]["migrations"]["data"] = json!({});
    });
    let told = desk.succeeds(CHECK);
    assert!(
        told.contains("skipped: running the migration: checks.migrations.data does not say"),
        "{told}"
    );
    recipe(&desk, "1.0.0", |recipe| {
        migrating(recipe, 1);
        recipe["checks"]["migrations"]["directory"] = json!("www");
        recipe["components"].as_array_mut().unwrap().remove(1);
        recipe["services"][0]["uses"] = json!([]);
    });
    let told = desk.bad(2, RELEASE);
    assert!(told.contains("www is in no component"), "{told}");
}
