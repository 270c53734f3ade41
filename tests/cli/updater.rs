//! Releases that bring another qx-update: one that could not take over, or whose record the image's own could not read, is refused
//! before anything is stopped.

use std::fs;

use serde_json::json;

use crate::common::{Appliance, Recipe, UPDATE, copy_executable, write_executable};

/// A release whose qx-update is this program.
fn bringing(appliance: &Appliance, version: &str, program: &[u8]) -> Recipe {
    let recipe = appliance.recipe(version);
    write_executable(&recipe.dir.join("qx-update"), program);
    recipe.edit(|json| {
        json["components"].as_array_mut().unwrap().push(json!(
            {"name": "qx-update", "kind": "bin", "install_path": "bin/qx-update", "source": "qx-update", "tool": true}
        ));
    })
}

fn with_own() -> Appliance {
    let appliance = Appliance::new();
    copy_executable(UPDATE.as_ref(), &appliance.root.join("usr/bin/qx-update"));
    appliance.install("1.1.0");
    appliance.told();
    appliance
}

/// A script that is the real one but for one command.
fn but(command: &str, does: &str) -> Vec<u8> {
    format!("#!/bin/sh\ncase \"$*\" in *{command}*) {does} ;; esac\nexec {UPDATE} \"$@\"\n")
        .into_bytes()
}

/// One that crashes, does not run on this machine, knows neither the record nor the configuration, or writes a record that the image's own
/// does not read: refused, quarantined, and no service was stopped. The next release comes.
#[test]
fn an_updater_that_cannot_take_over_is_refused() {
    let appliance = with_own();
    let record = "for state in $2/data/update/state.*";
    let newer = format!(
        "{UPDATE} \"$@\"; {record}; do sed -i 's/\"format\":1/\"format\":2/' $state; done; exit 0"
    );
    // For this kind of machine, as its header says, which no kernel will start.
    let mut unknown = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
    unknown.resize(100, b'?');
    let cases: [(Vec<u8>, &str); 6] = [
        (b"#!/bin/sh\nkill -SEGV $$\n".to_vec(), "SIGSEGV"),
        (
            b"#!/bin/sh\necho 'no such option' >&2; exit 2\n".to_vec(),
            "no such option",
        ),
        (unknown, "qx-update"),
        (
            but(
                "status",
                "echo '{\"product\": \"demo\", \"phase\": \"unknown\", \"problems\": [\"format 1 is not known\"]}'; exit 0",
            ),
            "format 1 is not known",
        ),
        (
            but(
                "status",
                "echo '{\"product\": null, \"phase\": \"staged\", \"problems\": [\"unknown field inhibit\"]}'; exit 0",
            ),
            "unknown field inhibit",
        ),
        (
            but("recover", &newer),
            "cannot read what the release's qx-update writes",
        ),
    ];
    for (number, (program, why)) in cases.into_iter().enumerate() {
        let version = format!("1.2.{number}");
        let recipe = bringing(&appliance, &version, &program);
        appliance.try_release(&recipe, &["--no-check"]).code(0);
        let before = appliance.processes();
        appliance
            .update(&["apply"])
            .refused(1, &[&version, "rejected", why]);
        assert_eq!(appliance.processes(), before, "{why}");
        assert!(appliance.told().is_empty(), "{why}: a service was stopped");
        appliance.runs("1.1.0");
        let status = appliance.status();
        assert_eq!(status["phase"], "idle", "{why}");
        let refused = status["refused"].as_array().unwrap();
        assert!(
            refused
                .iter()
                .any(|r| r["version"] == *version && r["kind"] == "quarantined"),
            "{status:#}"
        );
    }
    let good = bringing(&appliance, "1.3.0", &fs::read(UPDATE).unwrap());
    appliance.release(&good);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.3.0");
}

/// One that hangs is given up, too.
#[test]
fn an_updater_that_hangs_is_refused() {
    let appliance = with_own();
    let recipe = bringing(&appliance, "1.2.0", b"#!/bin/sh\nsleep 86400\n");
    appliance.release(&recipe);
    appliance
        .update(&["apply"])
        .refused(1, &["rejected", "did not end within"]);
    appliance.runs("1.1.0");
    assert!(appliance.told().is_empty());
}
