//! PostgreSQL as a data set, with the commands of docs/postgresql.md, against a real cluster on a Unix socket.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::data::{adopting, kill_in_trial};
use crate::common::{Appliance, Recipe, path, text, wait_until};

/// A cluster of its own, whose unprivileged role `app` owns the database `inventory`, in which there are two rows.
struct Cluster {
    directory: tempfile::TempDir,
    server: Child,
}

impl Cluster {
    fn new() -> Cluster {
        let directory = tempfile::Builder::new()
            .prefix("qx-pg-")
            .tempdir_in("/tmp")
            .unwrap();
        let (uid, gid) = nobody();
        chown(directory.path(), Some(uid), Some(gid)).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = as_nobody(&programs().join(arguments[0]), directory.path());
            command.args(&arguments[1..]);
            command
        };
        let files = directory.path().join("files");
        let made = run(&[
            "initdb",
            "--auth=trust",
            "--username=admin",
            "--no-sync",
            "--pgdata",
        ])
        .arg(&files)
        .output()
        .unwrap();
        assert!(made.status.success(), "{made:?}");
        let server = run(&["postgres", "-D", path(&files), "-k", path(directory.path())])
            .args(["-c", "listen_addresses="])
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let cluster = Cluster { directory, server };
        wait_until("the cluster answers", || {
            cluster.ask("admin", "postgres", "SELECT 1").is_ok()
        });
        cluster.sql("admin", "postgres", "CREATE ROLE app LOGIN CREATEDB");
        cluster.sql("app", "postgres", "CREATE DATABASE inventory");
        let made = "CREATE TABLE parts (name text); INSERT INTO parts VALUES ('bolt'), ('nut');
                    GRANT CONNECT ON DATABASE inventory TO admin;
                    ALTER DATABASE inventory SET search_path TO \"$user\", public, extra;
                    ALTER DATABASE inventory SET work_mem TO '5MB';";
        cluster.sql("app", "inventory", made);
        cluster
    }

    /// The URL of a database.
    fn url(&self, database: &str) -> String {
        format!(
            "postgres://app@/{database}?host={}",
            path(self.directory.path())
        )
    }

    /// Runs SQL; what it printed, or why not.
    fn ask(&self, role: &str, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = Command::new("psql");
        psql.args([
            "--no-psqlrc",
            "-qtA",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            role,
            "-d",
            database,
        ])
        .args(["-h", path(self.directory.path()), "-c", sql]);
        let output = psql.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(said(&output.stdout)),
            false => Err(said(&output.stderr)),
        }
    }

    #[track_caller]
    fn sql(&self, role: &str, database: &str, sql: &str) -> String {
        self.ask(role, database, sql).unwrap()
    }

    /// The names of all databases but the server's own.
    fn databases(&self) -> Vec<String> {
        let sql = "SELECT datname FROM pg_database WHERE datname <> 'postgres' AND NOT datistemplate ORDER BY 1";
        let names = self.sql("admin", "postgres", sql);
        names.lines().map(str::to_owned).collect()
    }

    fn rows(&self) -> String {
        let rows = self.sql("app", "inventory", "SELECT * FROM parts ORDER BY name");
        rows.replace('\n', " ")
    }

    /// Somebody who is connected, and stays so.
    fn client(&self, database: &str) -> Child {
        let client = Command::new("psql")
            .arg(self.url(database))
            .args(["-c", "SELECT pg_sleep(1000)"])
            .env("PGAPPNAME", "reports")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let sql = format!(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'reports' AND state = 'active' AND datname = '{database}'"
        );
        wait_until("the client is connected", || {
            self.sql("admin", "postgres", &sql) == "1"
        });
        client
    }
}

impl Cluster {
    /// The server does not see by itself that a client has gone which waits for it.
    fn leave(&self, mut client: Child) {
        client.kill().unwrap();
        client.wait().unwrap();
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'reports'";
        wait_until("the client is gone", || {
            self.sql("admin", "postgres", sql) == "0"
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGINT: at once, whoever is connected.
        let pid = rustix::process::Pid::from_raw(self.server.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.server.wait();
    }
}

/// Where the server's programs are: of the newest version that is installed.
fn programs() -> PathBuf {
    let versions =
        fs::read_dir("/usr/lib/postgresql").expect("./tests/all cli installs postgresql");
    let mut versions: Vec<PathBuf> = versions.map(|v| v.unwrap().path().join("bin")).collect();
    versions.retain(|bin| bin.join("postgres").exists());
    versions.sort();
    versions.pop().unwrap()
}

fn nobody() -> (u32, u32) {
    let passwd = text(Path::new("/etc/passwd"));
    let line = passwd.lines().find(|l| l.starts_with("nobody:")).unwrap();
    let field = |number| line.split(':').nth(number).unwrap().parse().unwrap();
    (field(2), field(3))
}

fn as_nobody(program: &Path, directory: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let (uid, gid) = nobody();
    let mut command = Command::new(program);
    command.uid(uid).gid(gid).current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.env_remove("LC_ALL").env("LANG", "C");
    command
}

/// The commands that the documentation gives.
fn commands() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/qx-postgres")
}

/// An appliance that runs 1.1.0, whose data set is the cluster's database, at schema 1, copied by one of the two ways.
fn with_database(cluster: &Cluster, copy: &str) -> Appliance {
    let appliance = Appliance::new();
    let commands = commands();
    let vector = |verb: &str, places: &[&str]| json!([&[path(&commands), verb], places].concat());
    appliance.edit_config(|config| {
        config["data"] = json!([{
            "name": "inventory", "method": "command", "place": cluster.url("inventory"),
            "copy_place": cluster.url("inventory_{id}"),
            "copy": vector(copy, &["{place}", "{copy}"]),
            "copy_in_use": vector("copy-dump", &["{place}", "{copy}"]),
            "exchange": vector("exchange", &["{place}", "{copy}", "{kept}"]),
            "drop": vector("drop", &["{copy}"]),
        }]);
    });
    let recipe = appliance
        .recipe("1.1.0")
        .edit(|json| json["data"] = adopting(schemas(1)));
    appliance.release(&recipe);
    appliance.update(&["apply"]).code(0);
    appliance
}

fn schemas(schema: u64) -> Value {
    json!([{"name": "inventory", "accepts_from": schema, "accepts_to": schema, "schema_after": schema}])
}

/// A release that needs schema 2, whose migration is this SQL, each line a transaction of its own.
fn migrating(appliance: &Appliance, version: &str, sql: &str) -> Recipe {
    let script = format!("psql -q -v ON_ERROR_STOP=1 -d \"$1\" <<'SQL'\n{sql}\nSQL\n");
    appliance
        .recipe(version)
        .migration(&script, 60)
        .edit(|json| {
            json["data"] = schemas(2);
            json["migrate"] = json!({"run": ["migrations/run", "{data:inventory}"], "timeout_s": 300, "touches": ["inventory"]});
        })
}

const MIGRATE: &str =
    "ALTER TABLE parts ADD COLUMN stock int DEFAULT 7;\nDELETE FROM parts WHERE name = 'nut';";

/// Both ways to copy: a migration's rows are right, what a release wrote that fails is kept and gone from the live data, a person
/// goes back, and what is dropped is gone. The properties of the database itself stay what they were.
#[test]
fn a_database_moves_with_the_release() {
    let cluster = Cluster::new();
    for copy in ["copy", "copy-dump"] {
        let appliance = with_database(&cluster, copy);
        // Fails half way, outside of any transaction: nothing stays behind.
        let half = "INSERT INTO parts VALUES ('half');\nALTER TABLE no_such ADD x int;";
        appliance.release(&migrating(&appliance, "1.2.0", half));
        appliance
            .update(&["apply"])
            .refused(8, &["migrate", "no_such"]);
        assert_eq!(cluster.rows(), "bolt nut");
        assert_eq!(cluster.databases(), ["inventory"]);
        // The same in a rehearsal, beside a client that is connected and stays so.
        let client = cluster.client("inventory");
        let rehearsed = migrating(&appliance, "1.2.1", half)
            .edit(|json| json["migrate"]["rehearse"] = json!(true));
        appliance.release(&rehearsed);
        appliance
            .update(&["apply"])
            .refused(1, &["rehearsal", "no_such"]);
        assert_eq!(cluster.databases(), ["inventory"]);
        cluster.leave(client);
        // Migrates, and then fails its proof.
        let wrong = migrating(&appliance, "1.2.2", MIGRATE).behaviour("node", "error500");
        appliance.release(&wrong);
        appliance.update(&["apply"]).refused(8, &["answered 500"]);
        assert_eq!(cluster.rows(), "bolt nut");
        // Gone in the trial, and undone at boot.
        let killed = migrating(&appliance, "1.2.3", MIGRATE).behaviour("node", "error500");
        appliance.release(&killed);
        kill_in_trial(&appliance);
        assert_eq!(cluster.rows(), "bolt|7");
        appliance.update(&["confirm"]).code(8);
        assert_eq!(cluster.rows(), "bolt nut");
        // And one that is good.
        appliance.release(&migrating(&appliance, "1.2.4", MIGRATE));
        appliance.update(&["apply"]).code(0);
        assert_eq!(cluster.rows(), "bolt|7");
        let properties = "SELECT current_setting('search_path') || current_setting('work_mem')
                          || has_database_privilege('admin', 'inventory', 'CONNECT')";
        let properties = cluster.sql("app", "inventory", properties);
        assert_eq!(properties, "\"$user\", public, extra5MBtrue");
        // A person goes back, and what was written meanwhile is kept.
        cluster.sql("app", "inventory", "INSERT INTO parts VALUES ('screw')");
        appliance
            .update(&["rollback"])
            .refused(10, &["--set-aside-data"]);
        appliance.update(&["rollback", "--set-aside-data"]).code(0);
        appliance.runs("1.1.0");
        assert_eq!(cluster.rows(), "bolt nut");
        let list = appliance.update(&["data", "list"]).stdout.clone();
        let ids: Vec<&str> = list
            .split_whitespace()
            .filter(|w| w.len() == 16 && w.bytes().all(|b| b.is_ascii_hexdigit()))
            .collect();
        assert!(!ids.is_empty(), "{list}");
        assert!(cluster.databases().len() > 1);
        for id in ids {
            appliance.update(&["data", "drop", id]).code(0);
        }
        assert_eq!(cluster.databases(), ["inventory"]);
        assert_eq!(cluster.rows(), "bolt nut");
    }
}

/// A client that stays connected though the services are stopped is named, and the release is not to blame; one that comes while
/// the databases are exchanged is sent away and keeps nothing from going on, or back.
#[test]
fn a_client_that_stays_connected_is_named() {
    let cluster = Cluster::new();
    let appliance = with_database(&cluster, "copy");
    appliance.release(&migrating(&appliance, "1.2.0", MIGRATE));
    let mut client = cluster.client("inventory");
    appliance.update(&["apply"]).refused(
        8,
        &["copying", "inventory is still in use by reports (user app"],
    );
    assert!(client.try_wait().unwrap().is_none());
    appliance.runs("1.1.0");
    assert_eq!(cluster.databases(), ["inventory"]);
    assert_eq!(appliance.status()["refused"], json!([]));
    cluster.leave(client);
    // Who comes when it is exchanged, on either side, is sent away: a way back must not depend on whoever is connected. What was
    // cut is done again, and what was done stays so.
    let commands = commands();
    let run = |arguments: &[&str]| {
        let output = Command::new(&commands).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let [live, next, previous] =
        ["inventory", "inventory_next", "inventory_previous"].map(|name| cluster.url(name));
    run(&["copy", &live, &next]);
    cluster.sql("app", "inventory_next", "DELETE FROM parts");
    let clients = [
        cluster.client("inventory"),
        cluster.client("inventory_next"),
    ];
    for _ in 0..2 {
        run(&["exchange", &live, &next, &previous]);
        assert_eq!(cluster.rows(), "");
        assert_eq!(cluster.databases(), ["inventory", "inventory_previous"]);
    }
    for mut client in clients {
        assert!(!client.wait().unwrap().success());
    }
    for _ in 0..2 {
        run(&["exchange", &live, &previous, &next]);
        assert_eq!(cluster.rows(), "bolt nut");
    }
    for _ in 0..2 {
        run(&["drop", &next]);
        assert_eq!(cluster.databases(), ["inventory"]);
    }
}
