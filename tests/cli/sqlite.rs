//! A real SQLite database as a data set: in WAL mode, with a writer at work, on file systems that copy and that share blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::data::adopting;
use crate::common::{Appliance, Mounted, Recipe, path, text, wait_until, write_executable};

/// Inserts a row again and again, each in a transaction of its own.
const WRITER: &str = "import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30)
db.execute('PRAGMA journal_mode=WAL')
db.execute('CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, text TEXT)')
while True:
    db.execute('INSERT INTO rows (text) VALUES (?)', ('x' * 200,))
    db.commit()
    time.sleep(0.005)
";

/// What is asked of the database at `place`, through a connection of its own.
fn ask(place: &Path, sql: &str) -> String {
    let program = "import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30)
print(' '.join(str(c) for row in db.execute(sys.argv[2]) for c in row))";
    let output = Command::new("python3")
        .args(["-c", program, path(place), sql])
        .output()
        .unwrap();
    assert!(output.status.success(), "{sql}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn count(place: &Path) -> u64 {
    ask(place, "SELECT count(*) FROM rows").parse().unwrap()
}

/// An appliance whose service `writer` writes to the database, at schema 1; and where that is.
fn with_writer(file_system: Option<&[&str]>) -> (Appliance, Option<Mounted>, PathBuf) {
    let appliance = Appliance::new();
    let copy = "import sqlite3, sys
sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))";
    appliance.edit_config(|config| {
        config["data"] = json!([{
            "name": "db", "method": "files", "place": "/data/db/db", "services": ["node", "writer"],
            "copy_in_use": ["python3", "-c", copy, "{place}", "{copy}"],
        }]);
    });
    let mounted = file_system.map(|made| Mounted::partition(&appliance, made, 400 << 20));
    crate::common::create_dir(appliance.data().join("db")).unwrap();
    let place = appliance.data().join("db/db");
    let writer = appliance.root.join("writer.py");
    fs::write(&writer, WRITER).unwrap();
    let svc = appliance.root.join("svc");
    let script = text(&svc).replace(
        "case $1 in\n",
        &format!(
            "case $1:$2 in\n\
             start:writer) running && exit 0; STARTED_IN=$root setsid python3 {} {} </dev/null >/dev/null 2>&1 & echo $! >\"$pidfile\"; exit 0 ;;\n\
             esac\ncase $1 in\n",
            path(&writer),
            path(&place)
        ),
    );
    write_executable(&svc, script);
    appliance.service("start", "writer");
    wait_until("rows are written", || place.exists() && count(&place) > 20);
    let recipe = appliance.recipe("1.1.0");
    appliance.release(&recipe.edit(|json| json["data"] = adopting(schemas(1))));
    appliance.update(&["apply"]).code(0);
    (appliance, mounted, place)
}

fn schemas(schema: u64) -> Value {
    json!([{"name": "db", "accepts_from": schema, "accepts_to": schema, "schema_after": schema}])
}

/// A release at schema 2 whose migration is this Python, in which `db` is the database; rehearsed first.
fn migrating(appliance: &Appliance, version: &str, python: &str) -> Recipe {
    let script = format!(
        "exec python3 - \"$1\" <<'END'\nimport sqlite3, sys\ndb = sqlite3.connect(sys.argv[1], isolation_level=None)\n{python}\nEND"
    );
    appliance
        .recipe(version)
        .migration(&script, 60)
        .edit(|json| {
            json["data"] = schemas(2);
            json["migrate"] = json!({"run": ["migrations/run", "{data:db}"], "timeout_s": 300, "touches": ["db"],
                                     "rehearse": true});
        })
}

/// A column is added while a service writes: the rehearsal works on a consistent copy beside it, the migration on one of all
/// that was committed before it stopped; it writes on to the new schema, and a person gets back what was there, row by row.
#[test]
fn a_column_is_added_under_a_writer() {
    for file_system in [None, Some(&["ext4", "-m", "0"][..]), Some(&["xfs"])] {
        let (appliance, mounted, place) = with_writer(file_system);
        let add = "db.execute('ALTER TABLE rows ADD COLUMN stock INTEGER DEFAULT 7')\n\
                   db.execute('CREATE TABLE seen AS SELECT count(*) AS rows FROM rows')";
        appliance.release(&migrating(&appliance, "1.2.0", add));
        let before = count(&place);
        appliance
            .update(&["apply"])
            .code(0)
            .says(&["the migration succeeded on a copy of the data"]);
        // Nothing that was committed before the writer stopped is missing.
        let seen: u64 = ask(&place, "SELECT rows FROM seen").parse().unwrap();
        assert!(seen >= before, "{file_system:?}: {seen} of {before}");
        assert_eq!(
            ask(
                &place,
                "SELECT min(stock), max(stock) FROM rows WHERE id <= 20"
            ),
            "7 7"
        );
        let now = count(&place);
        wait_until("it writes on", || count(&place) > now);
        assert_eq!(ask(&place, "PRAGMA integrity_check"), "ok");
        let largest = "SELECT max(id) - count(*) FROM rows";
        assert_eq!(ask(&place, largest), "0", "no row is missing");
        appliance.update(&["rollback", "--set-aside-data"]).code(0);
        assert_eq!(ask(&place, "PRAGMA integrity_check"), "ok");
        assert_eq!(
            ask(
                &place,
                "SELECT count(*) FROM sqlite_master WHERE name = 'seen'"
            ),
            "0"
        );
        assert!(count(&place) >= seen, "{file_system:?}");
        wait_until("it writes on", || count(&place) > seen);
        assert_eq!(ask(&place, largest), "0", "no row is missing");
        appliance.service("stop", "writer");
        appliance.services("stop");
        drop(mounted);
    }
}

/// A tool that marks the database as dirty before it begins, and works on none that is: a failed migration leaves the live one
/// clean, and the release that mends it needs nobody's help.
#[test]
fn a_dirty_flag_does_not_stay() {
    let (appliance, _, place) = with_writer(None);
    // As golang-migrate does.
    let tool = |statement: &str| {
        format!(
            "db.execute('CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER, dirty INTEGER)')\n\
             row = db.execute('SELECT version, dirty FROM schema_migrations').fetchone() or (1, 0)\n\
             if row[1]: sys.exit('Dirty database version %d. Fix and force version.' % row[0])\n\
             db.execute('DELETE FROM schema_migrations')\n\
             db.execute('INSERT INTO schema_migrations VALUES (2, 1)')\n\
             db.execute('ALTER TABLE rows ADD COLUMN stock INTEGER')\n\
             db.execute('{statement}')\n\
             db.execute('UPDATE schema_migrations SET dirty = 0')"
        )
    };
    let failing = migrating(
        &appliance,
        "1.2.0",
        &tool("ALTER TABLE no_such ADD COLUMN x"),
    );
    appliance.release(&failing.edit(|json| json["migrate"]["rehearse"] = json!(false)));
    appliance
        .update(&["apply"])
        .refused(8, &["no such table: no_such"]);
    assert_eq!(
        ask(
            &place,
            "SELECT count(*) FROM sqlite_master WHERE name = 'schema_migrations'"
        ),
        "0"
    );
    appliance.release(&migrating(
        &appliance,
        "1.2.1",
        &tool("UPDATE rows SET stock = 1"),
    ));
    appliance.update(&["apply"]).code(0);
    assert_eq!(
        ask(&place, "SELECT version, dirty FROM schema_migrations"),
        "2 0"
    );
    assert_eq!(ask(&place, "PRAGMA integrity_check"), "ok");
    appliance.service("stop", "writer");
}
