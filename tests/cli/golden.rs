//! Files as an earlier version wrote them, in `tests/golden`: an appliance with its configuration, manifests, record, seals and
//! list of refused releases; what `status --json` said of it; a bundle. None of them is ever written again: what a version
//! left on an appliance, the next one reads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{UPDATE, path, temporary};

/// An appliance that an earlier version left, in a directory of its own.
struct Golden {
    _temp: TempDir,
    root: PathBuf,
}

impl Golden {
    fn new() -> Golden {
        let temp = temporary("golden-");
        let root = temp.path().to_owned();
        let mut tar = Command::new("tar");
        tar.args(["-xpzf", &golden("appliance-1.tar.gz"), "-C", path(&root)]);
        assert!(tar.status().unwrap().success());
        Golden { _temp: temp, root }
    }

    /// Runs the updater of today on it, or another build of it.
    fn update(&self, arguments: &[&str]) -> Output {
        let program = std::env::var("QX_TEST_PROGRAM").unwrap_or_else(|_| UPDATE.to_owned());
        let mut command = Command::new(program);
        command.args(["--root", path(&self.root)]);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }
}

fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Whether all that was said is said still; more may be said.
fn still_says(before: &Value, now: &Value, at: &str) {
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => {
            for (name, value) in before {
                let at = format!("{at}/{name}");
                still_says(
                    value,
                    now.get(name).unwrap_or_else(|| panic!("{at} is gone")),
                    &at,
                );
            }
        }
        (Value::Array(before), Value::Array(now)) if before.len() == now.len() => {
            for (before, now) in before.iter().zip(now) {
                still_says(before, now, &format!("{at}/…"));
            }
        }
        _ => assert_eq!(before, now, "{at}"),
    }
}

/// All of it is read: the record and the seals verify, and `status --json` says what it said, in the same words for
/// programs. What it says to people may be said better.
#[test]
fn an_appliance_that_an_earlier_version_left_is_read() {
    let appliance = Golden::new();
    let verified = appliance.update(&["verify"]);
    let verified = String::from_utf8(verified.stdout).unwrap();
    for line in [
        "slot a: good, 1.3.0",
        "slot b, in use: good, 1.2.0",
        "factory set: good, 1.0.0",
    ] {
        assert!(verified.contains(line), "{verified}");
    }
    let status: Value =
        serde_json::from_slice(&appliance.update(&["status", "--json"]).stdout).unwrap();
    let before = fs::read(golden("status-1.json")).unwrap();
    let mut before: Value = serde_json::from_slice(&before).unwrap();
    before.as_object_mut().unwrap().remove("advice");
    still_says(&before, &status, "");
}

/// A boot finds nothing to mend, and what ran runs.
#[test]
fn a_boot_takes_over_what_an_earlier_version_left() {
    let appliance = Golden::new();
    appliance.update(&["recover"]);
    let current = fs::read_link(appliance.root.join("data/current")).unwrap();
    assert_eq!(current, Path::new("slots/b"));
    let status: Value =
        serde_json::from_slice(&appliance.update(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["problems"], serde_json::json!([]), "{status:#}");
}

/// A bundle that an earlier version wrote is installed, on the image that it was made for.
#[test]
fn a_bundle_that_an_earlier_version_wrote_is_installed() {
    let appliance = Golden::new();
    fs::remove_dir_all(appliance.root.join("data")).unwrap();
    crate::common::create_dir(appliance.root.join("data/db")).unwrap();
    fs::copy(golden("bundle-1.bundle"), appliance.root.join("srv/bundle")).unwrap();
    appliance.update(&["apply", "--from", "/srv/bundle"]);
    let status: Value =
        serde_json::from_slice(&appliance.update(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["running"]["version"], "1.2.0", "{status:#}");
}
