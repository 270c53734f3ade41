//! `doctor`: twenty and more appliances of which each is broken in another way, and one that is sound.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use serde_json::{Value, json};

use super::services::{Bystander, edit_svc};
use crate::common::{
    Appliance, Mounted, UPDATE, copy_executable, create_dir, json_file, path, wait_until,
    write_script,
};

/// A sound one, with a release of its own and init scripts that look through the link.
fn sound() -> Appliance {
    let appliance = Appliance::new();
    for service in ["node", "console"] {
        let script = format!(
            "command=/usr/bin/qx-{service}\n[ -x /data/bin/qx-{service} ] && command=/data/bin/qx-{service}\n"
        );
        init_script(&appliance, service, &script);
    }
    copy_executable(UPDATE.as_ref(), &appliance.root.join("usr/bin/qx-update"));
    appliance.install("1.1.0");
    appliance
}

fn init_script(appliance: &Appliance, service: &str, script: &str) {
    let place = appliance.root.join("etc/init.d");
    create_dir(&place).unwrap();
    fs::write(place.join(service), script).unwrap();
}

/// What is not good, as `doctor --json` says it.
fn found(appliance: &Appliance) -> (i32, Vec<Value>) {
    let outcome = appliance.update(&["doctor", "--json"]);
    let diagnosis: Value =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| outcome.fail(&e.to_string()));
    let findings = diagnosis["findings"].as_array().unwrap().iter();
    let bad = findings.filter(|finding| finding["severity"] != "good");
    let bad: Vec<Value> = bad.cloned().collect();
    for finding in &bad {
        assert!(
            finding["remedy"].as_str().is_some_and(|r| !r.is_empty()),
            "{finding:#}"
        );
    }
    (outcome.code, bad)
}

/// Nothing is wrong with a sound appliance, and looking changes nothing.
#[test]
fn a_sound_appliance() {
    let appliance = sound();
    let picture = appliance.picture();
    let (code, bad) = found(&appliance);
    assert_eq!((code, &bad[..]), (0, &[][..]), "{bad:#?}");
    let told = appliance.update(&["doctor"]);
    told.code(0).says(&[
        "init scripts",
        "starts /data/bin/qx-node",
        "1.1.0 (slot a) is complete",
    ]);
    picture.unchanged(&appliance);
    assert_eq!(appliance.told(), [""; 0]);
    // Nor with one that never had a release; but nobody has asked a source yet.
    let (code, bad) = found(&Appliance::new());
    assert_eq!(code, 1);
    assert_eq!(bad.len(), 1, "{bad:#?}");
    assert_eq!(bad[0]["check"], "trust");
}

/// Breaks it; what is mounted for that stays as long as it is kept.
type Break = fn(&Appliance) -> Option<Mounted>;

/// Each fault is found, by its check, with its severity and words that name it.
#[test]
fn broken_appliances() {
    let broken: [(&str, i32, &str, &[&str], Break); 24] = [
        (
            "no configuration",
            10,
            "configuration",
            &["config.json", "does not exist"],
            |a| {
                fs::remove_file(a.config()).unwrap();
                None
            },
        ),
        (
            "a field that nobody knows",
            10,
            "configuration",
            &["chanel"],
            |a| {
                a.edit_config(|c| c["chanel"] = json!("beta"));
                None
            },
        ),
        (
            "no data partition",
            10,
            "data partition",
            &["is the data partition mounted?"],
            |a| {
                a.services("stop");
                fs::rename(a.data(), a.temp().join("away")).unwrap();
                None
            },
        ),
        (
            "mounted read-only",
            10,
            "data partition",
            &["Read-only"],
            |a| {
                Some(Mounted::over(
                    &a.data(),
                    &["-o", "bind,ro", path(&a.data())],
                ))
            },
        ),
        ("mounted noexec", 10, "data partition", &["noexec"], |a| {
            Some(Mounted::over(
                &a.data(),
                &["-o", "bind,noexec", path(&a.data())],
            ))
        }),
        (
            "open to others",
            10,
            "data partition",
            &["chmod go-w"],
            |a| {
                fs::set_permissions(a.data(), fs::Permissions::from_mode(0o777)).unwrap();
                None
            },
        ),
        (
            "a link in the place of the slots",
            10,
            "data directory",
            &["slots", "symbolic link"],
            |a| {
                fs::rename(a.data().join("slots"), a.root.join("slots")).unwrap();
                symlink("../slots", a.data().join("slots")).unwrap();
                None
            },
        ),
        (
            "a plain directory",
            10,
            "state",
            &["plain directory"],
            |a| {
                fs::remove_file(a.data().join("bin")).unwrap();
                create_dir(a.data().join("bin")).unwrap();
                None
            },
        ),
        (
            "a record that cannot be read",
            10,
            "state",
            &["update state"],
            |a| {
                for copy in ["state.0", "state.1"] {
                    fs::write(a.data().join("update").join(copy), "garbage").unwrap();
                }
                None
            },
        ),
        (
            "another link",
            1,
            "state",
            &["the record names slot a"],
            |a| {
                fs::remove_file(a.data().join("current")).unwrap();
                None
            },
        ),
        (
            "a damaged program",
            10,
            "files",
            &["slot a", "qx-console"],
            |a| {
                a.services("stop");
                fs::write(a.data().join("slots/a/bin/qx-console"), "garbage").unwrap();
                None
            },
        ),
        (
            "a damaged fallback",
            1,
            "files",
            &["slot a is damaged"],
            |a| {
                a.install("1.2.0");
                fs::write(a.data().join("slots/a/share/www/index.html"), "garbage").unwrap();
                None
            },
        ),
        (
            "a damaged factory set",
            10,
            "files",
            &["factory set is damaged"],
            |a| {
                fs::write(a.root.join("usr/share/www/index.html"), "garbage").unwrap();
                None
            },
        ),
        (
            "no factory manifest",
            10,
            "files",
            &["no manifest of its factory set"],
            |a| {
                fs::remove_file(a.root.join("usr/share/qx-update/factory.json")).unwrap();
                None
            },
        ),
        (
            "no recovery in this boot",
            10,
            "recovery",
            &["did not run"],
            |a| {
                fs::remove_dir_all(a.root.join("run/qx-update")).unwrap();
                None
            },
        ),
        (
            "a service that does not run",
            1,
            "services",
            &["node"],
            |a| {
                a.service("stop", "node");
                None
            },
        ),
        (
            "an init script that no update reaches",
            10,
            "init scripts",
            &["even if /data/bin/qx-node exists"],
            |a| {
                init_script(a, "node", "command=/usr/bin/qx-node\n");
                None
            },
        ),
        (
            "an init script that runs another name",
            10,
            "init scripts",
            &["quantix-node"],
            |a| {
                let script = "command=/usr/bin/quantix-node\n[ -x /data/bin/quantix-node ] && command=/data/bin/quantix-node\n";
                init_script(a, "node", script);
                None
            },
        ),
        (
            "a program under a name that nobody runs",
            1,
            "names",
            &["quantix-console", "bin/qx-console"],
            |a| {
                write_script(&a.root.join("usr/bin/quantix-console"), "exit 0");
                None
            },
        ),
        (
            "no trust root",
            10,
            "trust",
            &["root.json", "does not exist"],
            |a| {
                fs::remove_file(a.root.join("etc/qx-update/root.json")).unwrap();
                None
            },
        ),
        (
            "a trust root that is none",
            10,
            "trust",
            &["root.json"],
            |a| {
                fs::write(a.root.join("etc/qx-update/root.json"), "{}").unwrap();
                None
            },
        ),
        (
            "a user that nobody has",
            10,
            "users",
            &["migration_user"],
            |a| {
                a.edit_config(|c| c["migration_user"] = json!("nobody-has-this-name"));
                None
            },
        ),
        (
            "a program of the image that knows no such record",
            10,
            "factory program",
            &["takes the phase for unknown"],
            |a| {
                write_script(
                    &a.root.join("usr/bin/qx-update"),
                    "echo '{\"phase\": \"unknown\"}'",
                );
                None
            },
        ),
        (
            "a program of the image that crashes",
            10,
            "factory program",
            &["usr/bin/qx-update"],
            |a| {
                write_script(&a.root.join("usr/bin/qx-update"), "kill -SEGV $$");
                None
            },
        ),
    ];
    for (what, code, check, words, spoil) in broken {
        let appliance = sound();
        let mounted = spoil(&appliance);
        let (ended, bad) = found(&appliance);
        let is_it = |finding: &&Value| {
            finding["check"] == check
                && words
                    .iter()
                    .all(|word| finding["what"].as_str().unwrap().contains(word))
        };
        assert!(bad.iter().any(|f| is_it(&f)), "{what}: {bad:#?}");
        assert_eq!(ended, code, "{what}: {bad:#?}");
        appliance.update(&["doctor"]).code(code).says(&[check]);
        drop(mounted);
    }
}

/// Intent: who inhibits updates is named, without a try for the lock; so is an initramfs of another version than the image's; and
/// services of one program that cannot be told from each other.
#[test]
fn who_holds_it_and_what_cannot_be_told() {
    let appliance = sound();
    let lock = appliance.root.join("run/busy");
    fs::write(&lock, "").unwrap();
    appliance.edit_config(|config| config["inhibit"] = json!({"lock": "/run/busy"}));
    assert_eq!(found(&appliance).1, [Value::Null; 0]);
    let mut holder = Command::new("flock");
    let holder = Bystander::start(holder.arg("--no-fork").arg(&lock).args(["sleep", "1000"]));
    let told = |check: &str, words: &[&str]| {
        let (_, bad) = found(&appliance);
        bad.iter().any(|finding| {
            let what = finding["what"].as_str().unwrap();
            finding["check"] == check && words.iter().all(|word| what.contains(word))
        })
    };
    let one = |check: &str, words: &[&str]| {
        wait_until("it is found", || told(check, words));
    };
    one("inhibit", &[&holder.id().to_string(), "sleep", "run/busy"]);
    drop(holder);
    wait_until("nobody holds it", || found(&appliance).0 == 0);

    let note = appliance.root.join("run/qx-update/boot.json");
    let mut old = json_file(&note);
    let good = old.clone();
    old["by"] = json!("0.0.1");
    old.as_object_mut().unwrap().remove("sha256");
    fs::write(&note, old.to_string()).unwrap();
    one("recovery", &["qx-update 0.0.1", "the image has"]);
    fs::write(&note, good.to_string()).unwrap();

    // Both run the node's program, and neither has a pidfile.
    edit_svc(&appliance, "bin/qx-$2", "bin/qx-node");
    appliance.edit_config(|config| {
        config["services"]
            .as_object_mut()
            .unwrap()
            .remove("pidfile");
    });
    let recipe = appliance.recipe("1.2.0").edit(|json| {
        json["components"][1]["tool"] = json!(true);
        json["services"][1]["runs"] = json!("bin/qx-node");
    });
    appliance.release(&recipe);
    appliance.update(&["apply"]).code(0);
    // Started without the mark that the updater gives.
    appliance.services("stop");
    appliance.services("start");
    one("services", &["node and console", "one program"]);
}

/// Too little room for another release, and a date that cannot be, are told before an update meets them.
#[test]
fn what_is_to_come() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let small = Mounted::small(&appliance);
    appliance.install("1.2.0");
    assert_eq!(found(&appliance).0, 0, "{:#?}", found(&appliance));
    // All but a few blocks.
    let fill = "dd if=/dev/zero of=\"$0/full\" bs=4k 2>/dev/null; sync; df -k \"$0\"";
    let filled = Command::new("sh")
        .args(["-c", fill])
        .arg(appliance.data())
        .output();
    let filled = String::from_utf8(filled.unwrap().stdout).unwrap();
    let (code, bad) = found(&appliance);
    let said = appliance.update(&["doctor"]).stdout;
    assert_eq!(code, 1, "{filled}{said}");
    assert!(bad.iter().any(|f| f["check"] == "space"), "{bad:#?}");
    drop(small);
}
