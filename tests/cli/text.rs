//! Text that others have a part in: what servers, processes, file names and data sets say. It stays short, stays one line,
//! forges nothing, tells no secret, and nothing is written that cannot be read back.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command};

use serde_json::{Value, json};

use crate::common::server::{Answer, Server};
use crate::common::{Appliance, Outcome, copy_executable, json_file, path, text};

const SECRET: &str = "S3CRET";

/// Neither output has a line that a text of others began, nor what a terminal would obey.
#[track_caller]
fn plain(outcome: &Outcome<'_>) {
    for text in [&outcome.stdout, &outcome.stderr] {
        let odd = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}');
        if text.contains(odd)
            || text
                .lines()
                .any(|line| line.contains("forged") && !escaped(line))
        {
            outcome.fail("it shows what it was told as it is");
        }
        if let Some(line) = text.lines().find(|line| line.len() > 20_000) {
            outcome.fail(&format!("a line of {} bytes", line.len()));
        }
    }
}

/// A line that only quotes what is forged.
fn escaped(line: &str) -> bool {
    line.contains("\\nforged")
}

/// Both copies of the record, those that are there.
fn copies(appliance: &Appliance) -> Vec<Value> {
    let copies = ["state.0", "state.1"].map(|name| appliance.data().join("update").join(name));
    let there = copies.iter().filter(|path| path.exists());
    let read = there.map(|path| serde_json::from_str(text(path).lines().next().unwrap()).unwrap());
    read.collect()
}

/// What is told of an appliance, wherever.
#[track_caller]
fn tells_no_secret(appliance: &Appliance, outcomes: &[&Outcome<'_>]) {
    let shown = [
        &["status"][..],
        &["status", "--json"],
        &["log"],
        &["log", "--json"],
    ];
    let shown: Vec<_> = shown
        .iter()
        .map(|arguments| appliance.update(arguments))
        .collect();
    for outcome in outcomes.iter().copied().chain(&shown) {
        if outcome.stdout.contains(SECRET) || outcome.stderr.contains(SECRET) {
            outcome.fail("it tells a secret");
        }
    }
    let log = text(&appliance.data().join("update/log/update.log"));
    assert!(!log.contains(SECRET), "{log}");
}

/// A health check answers a megabyte where a version should be: the release is refused, and the record can be read.
#[test]
fn a_long_health_value() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let health = appliance.temp().join("health");
    crate::common::create_dir(&health).unwrap();
    let value = format!("\u{1b}]0;\u{202e}\nforged{}", "字".repeat(300_000));
    fs::write(
        health.join("version"),
        json!({"version": value}).to_string(),
    )
    .unwrap();
    let server = Server::start(&health);
    let recipe = appliance.recipe("1.2.0").quick_to_fail().edit(|json| {
        let check = &mut json["health"][0];
        check["url"] = json!(format!("{}/version", server.url));
        check["answered_by"] = json!("anybody");
        check["required"] = json!(true);
        check["start_period_s"] = json!(1);
    });
    appliance.release(&recipe);
    let apply = appliance.update(&["apply"]);
    apply.code(8);
    plain(&apply);
    plain(appliance.update(&["status"]).code(0));
    plain(appliance.update(&["log"]).code(0));
    let status = appliance.status();
    assert_eq!(status["last"]["to"]["version"], "1.2.0");
    let reason = status["last"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("/version") && reason.len() < 2000,
        "{reason}"
    );
    assert_eq!(status["refused"][0]["version"], "1.2.0");
    assert_eq!(copies(&appliance).len(), 2);
    appliance.publish_release("1.3.0");
    appliance.update(&["apply"]).code(0);
}

/// Mirrors redirect to where nobody can go, at length: no key is needed for that.
#[test]
fn long_redirects() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let to = format!(
        "ftp://user:{SECRET}@host/\u{9b}{}?{SECRET}",
        "x".repeat(40_000)
    );
    let redirecting = || {
        let to = to.clone();
        Server::answering(&appliance.repo, move |_| Answer::Redirect(to.clone()))
    };
    let servers = [redirecting(), redirecting(), redirecting()];
    let with_secret = format!("http://user:{SECRET}@127.0.0.1/repo");
    appliance.sources(&servers.each_ref().map(|server| server.url.as_str()));
    let apply = appliance.update(&["apply"]);
    apply.refused(1, &[&servers[0].url, &servers[2].url, "ftp://…@host/"]);
    plain(&apply);
    let other = appliance.update(&["apply", "--from", &with_secret]);
    other.refused(2, &["http://…@127.0.0.1/repo"]);
    tells_no_secret(&appliance, &[&apply, &other]);
    let failure = &appliance.status()["failure"]["reason"];
    assert!(failure.as_str().unwrap().len() < 20_000, "{failure}");
    assert!(!copies(&appliance).is_empty());
}

/// The place of a data set is a URL with a password, which its commands and a migration repeat; a health check's URL has a
/// token in its query.
#[test]
fn places_and_urls_with_secrets() {
    let appliance = Appliance::new();
    appliance.edit_config(|config| {
        config["data"] = json!([{
            "name": "db", "method": "command", "place": format!("postgres://app:{SECRET}@db/app"),
            "copy_place": format!("postgres://app:{SECRET}@db/app_{{id}}"),
            "copy": ["sh", "-c", "echo from {place} to {copy} >&2"],
            "exchange": ["sh", "-c", "echo {copy} is {place}, which is {kept}"],
            "drop": ["sh", "-c", "echo no {copy}"],
        }]);
    });
    let schemas = |number: u64| json!([{"name": "db", "accepts_from": number, "accepts_to": number, "schema_after": number}]);
    let first = appliance.recipe("1.1.0").edit(|json| {
        json["data"] = super::data::adopting(schemas(1));
        let url = json["health"][0]["url"].as_str().unwrap().to_owned();
        json["health"][0]["url"] = json!(format!("{url}?token={SECRET}"));
    });
    appliance.release(&first);
    let good = appliance.update(&["apply"]);
    good.code(0);
    let second = appliance
        .recipe("1.2.0")
        .migration("echo \"cannot open $1\" >&2; exit 1", 20)
        .edit(|json| {
            json["data"] = schemas(2);
            json["migrate"] =
                json!({"run": ["migrations/run", "{data:db}"], "timeout_s": 300, "touches": ["db"]});
        });
    appliance.release(&second);
    let plan = appliance.update(&["apply", "--dry-run"]);
    let apply = appliance.update(&["apply"]);
    apply.code(8);
    tells_no_secret(&appliance, &[&good, &plan, &apply]);
    let output = appliance.status()["last"]["output"].to_string();
    assert!(
        output.contains("cannot open postgres://…@db/app_"),
        "{output}"
    );
    let log = appliance.update(&["log"]);
    log.says(&[
        "running migrations/run {data:db}",
        "from postgres://…@db/app to postgres://…@db/app_",
    ]);

    let broken = appliance
        .recipe("1.3.0")
        .edit(|json| {
            json["data"] = schemas(1);
            let check = &mut json["health"][0];
            check["url"] = json!(format!("http://127.0.0.1:1/?token={SECRET}"));
            check["required"] = json!(true);
            check["answered_by"] = json!("anybody");
        })
        .quick_to_fail();
    appliance.release(&broken);
    let apply = appliance.update(&["apply"]);
    apply.code(8).error_says(&["http://127.0.0.1:1/?…"]);
    tells_no_secret(&appliance, &[&apply]);
}

/// A process that is ended with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files, processes, and lines of the log are called what a line of `status` or `verify` would be.
#[test]
fn names_forge_no_line() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let kept = appliance.data().join("slots/a.kept-1/bin");
    crate::common::create_dir(&kept).unwrap();
    let name = "x\nforged   good\u{1b}[2J\u{9b}2J\u{202e}";
    copy_executable(Path::new("/bin/sleep"), &kept.join(name));
    let child = Command::new(kept.join(name)).arg("1000").spawn().unwrap();
    let process = Running(child);
    let status = appliance.update(&["status"]);
    status
        .code(0)
        .says(&["elsewhere", "\\nforged   good\\u{1b}"]);
    plain(&status);
    drop(process);

    fs::write(
        appliance
            .data()
            .join(appliance.link())
            .join("bin")
            .join(name),
        "",
    )
    .unwrap();
    let verify = appliance.update(&["verify"]);
    verify.code(10).says(&["\\nforged   good"]);
    plain(&verify);
    plain(&appliance.update(&["recover"]));
    plain(&appliance.update(&["status"]));

    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(appliance.data().join("update/log/update.log"))
        .unwrap();
    let line =
        json!({"time": "2026-01-01T00:00:00Z", "level": "info", "step": "fetch", "message": name});
    writeln!(log, "{line}\ncut off {}", name.replace('\n', "\r")).unwrap();
    let shown = appliance.update(&["log"]);
    shown.code(0).says(&["fetch    x\\nforged", "cut off x\\r"]);
    assert!(!shown.stdout.contains(['\u{1b}', '\u{9b}', '\r']));

    fs::write(appliance.repo.join("targets").join(name), "").unwrap();
    let published = appliance.publish(&["verify", "--repo", path(&appliance.repo)]);
    published
        .code(0)
        .says(&["no metadata refer to targets/x\\nforged"]);
    plain(&published);
}

/// A place or a log that leads by a link to what is no place for it, and numbers beyond all bounds.
#[test]
fn a_configuration_that_cannot_be_meant() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let good = json_file(&appliance.config());
    for (link, to) in [("slots", "/data/slots"), ("all", "/"), ("usr", "../usr")] {
        std::os::unix::fs::symlink(to, appliance.data().join(format!("to-{link}"))).unwrap();
    }
    let data = |place: &str| json!([{"name": "db", "method": "files", "place": place}]);
    for (field, value, words) in [
        ("data", data("/data/update"), ["data: db", "/data/update"]),
        ("data", data("/data/to-slots/x"), ["data: db", "data/slots"]),
        ("data", data("/data/to-all/data"), ["data: db", "/data"]),
        ("data", data("/data/to-usr"), ["data: db", "/usr"]),
        (
            "log",
            json!({"path": "/data/to-slots/log"}),
            ["log.path", "data/slots"],
        ),
        (
            "log",
            json!({"keep": 4_294_967_295_u64}),
            ["log.keep: 4294967295", "0 to 1000"],
        ),
        (
            "log",
            json!({"keep": u64::MAX}),
            ["keep", "18446744073709551615"],
        ),
        (
            "limits",
            json!({"stall_timeout_s": u64::MAX}),
            ["limits.stall_timeout_s: 18446744073709551615", "1 to 86400"],
        ),
    ] {
        appliance.edit_config(|config| {
            config.clone_from(&good);
            config[field] = value;
        });
        appliance.refuses(&["apply"], 2, &words);
        appliance.update(&["status"]).code(0).says(&words);
    }
}
