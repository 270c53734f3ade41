//! Releases that bring another qx-update: one that works takes over; one that does not is refused before anything is stopped; and
//! whatever it does later, the image's own recovers.

use std::fs;

use serde_json::json;

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// v1's programs, and this as qx-update.
fn with_updater(version: &str, program: &[u8]) -> Release {
    let name = format!("updater-{version}");
    Release::derived(&name, "v1", version, |recipe, dir| {
        let file = dir.join("qx-update");
        built::write_program(&file, program);
        let component = json!({"name": "qx-update", "kind": "bin", "install_path": "bin/qx-update",
                               "source": "qx-update", "tool": true});
        recipe["components"].as_array_mut().unwrap().push(component);
    })
}

/// Intent: an appliance updates its updater, and no qx-update of a release can keep it from coming back.
#[test]
fn a_release_brings_another_updater() {
    let own = fs::read(built::program("qx-update")).unwrap();
    let busybox = built::top().join("qemu/build/debian/root/bin/busybox");
    let busybox = fs::read(busybox).unwrap();
    // Another file of the same program.
    let newer = [&own[..], b"newer"].concat();
    let good = with_updater("1.1.0", &newer);
    let repository = Repository::with("updater-repository", &[&good]);
    let mut appliance = Appliance::new("updater").options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&good);
    // The new one reads what the image's own has written, and the reverse.
    appliance.ok("cmp /data/bin/qx-update /data/slots/a/bin/qx-update && ! cmp -s /data/bin/qx-update /usr/bin/qx-update");
    let by_new = "/data/bin/qx-update status --json | grep -q '\"phase\": \"idle\"'";
    appliance.ok(by_new);

    // One of another system, which ends at once; and one for which the record says nothing.
    let unknown = b"#!/bin/sh\necho '{\"phase\": \"unknown\", \"product\": \"quantix-os\"}'\n";
    for (version, program, why) in [
        ("1.2.0", &busybox[..], "trying the qx-update of the release"),
        ("1.3.0", &unknown[..], "cannot read the record"),
    ] {
        repository.publish(&with_updater(version, program));
        let before = appliance.programs();
        let pid = appliance.pid("quantix-node");
        appliance.qx_update("apply", 1);
        assert_eq!(appliance.programs(), before);
        assert_eq!(appliance.pid("quantix-node"), pid, "nothing was stopped");
        let status = appliance.status();
        let reason = status["last"]["reason"].as_str().unwrap();
        assert!(reason.contains(why), "{reason}");
        assert_eq!(status["running"]["version"], "1.1.0", "{status:#}");
    }

    // It does what it should while it is tried, and crashes whenever it is needed.
    let traitor = b"#!/bin/sh\ncase \" $* \" in *\" --root \"*) exec /usr/bin/qx-update \"$@\" ;; esac\nkill -SEGV $$\n";
    let sick = with_updater("1.4.0", traitor);
    repository.publish(&sick);
    appliance.ok("/data/bin/qx-update apply");
    appliance.assert_runs(&sick);
    appliance.ok("! /data/bin/qx-update status >/dev/null 2>&1");
    // The power goes, the boot is put right by the initramfs, and the image's own goes back.
    appliance.kill();
    appliance.boot();
    appliance.assert_runs(&sick);
    assert_eq!(appliance.settled()["phase"], "idle");
    appliance.qx_update("rollback", 0);
    appliance.assert_runs(&good);
    appliance.ok(by_new);
}
