//! Services of every kind under OpenRC: a script under supervise-daemon, one under start-stop-daemon, a program that goes into the
//! background by itself, one inside of a tree, and one that does its work and ends.

use std::fs;

use serde_json::{Value, json};

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// Each service, what kind it is of, the program that it runs, and what its init script has besides the template. (The appliance has no
/// start-stop-daemon that waits for what goes into the background by itself.)
const KINDS: [(&str, &str, &str, &str); 5] = [
    ("supervised", "supervised", "bin/qx-supervised", ""),
    ("background", "background", "bin/qx-background", ""),
    (
        "forking",
        "forking",
        "bin/syslogd",
        "start() { service_set_value pidfile /var/run/syslogd.pid; \"$command\" -O /var/log/kinds; }\n\
         stop() { kill \"$(cat /var/run/syslogd.pid)\"; }\n",
    ),
    ("inside", "supervised", "share/qx-app/bin/server", ""),
    ("setup", "oneshot", "bin/qx-setup", ""),
];

/// A release with such services besides those that it is made from.
fn release(from: &str, version: &str, supervised: &str) -> Release {
    let name = format!("kinds-{version}");
    Release::derived(&name, from, version, |recipe, dir| {
        let stays = "while :; do sleep 1; done\n";
        for (file, script) in [
            ("qx-supervised", supervised),
            ("qx-background", stays),
            ("app/bin/server", stays),
            ("qx-setup", "echo \"$0\" >/run/setup\n"),
        ] {
            let script = format!("#!/bin/sh\n# {version}\n{script}");
            built::write_program(&dir.join(file), script);
        }
        // The applet goes by its name; another version is another file.
        let busybox = built::top().join("qemu/build/debian/root/bin/busybox");
        let mut busybox = fs::read(busybox).unwrap();
        busybox.extend(version.bytes());
        built::write_program(&dir.join("syslogd"), busybox);
        let components = recipe["components"].as_array_mut().unwrap();
        for (name, path, source) in [
            ("qx-supervised", "bin/qx-supervised", "qx-supervised"),
            ("qx-background", "bin/qx-background", "qx-background"),
            ("syslogd", "bin/syslogd", "syslogd"),
            ("qx-setup", "bin/qx-setup", "qx-setup"),
        ] {
            components
                .push(json!({"name": name, "kind": "bin", "install_path": path, "source": source}));
        }
        components.push(
            json!({"name": "app", "kind": "tree", "install_path": "share/qx-app", "source": "app"}),
        );
        let services = recipe["services"].as_array_mut().unwrap();
        for (name, _, runs, _) in KINDS {
            services
                .push(json!({"name": name, "runs": runs, "oneshot": name == "setup", "order": 40}));
        }
    })
}

/// Every service does what it should from this directory, as `status` and the processes themselves say.
fn runs_from(appliance: &Appliance, place: &str) {
    let status = appliance.status();
    let services = status["services"].as_array().unwrap();
    for (name, _, runs, _) in KINDS {
        let service = services.iter().find(|s| s["name"] == name);
        let service = service.unwrap_or_else(|| panic!("{name}: {status:#}"));
        let path = format!("{place}/{runs}");
        if name == "setup" {
            assert_eq!(service["state"], "done", "{service:#}");
            let through = path
                .replace("/data/slots/a", "/data")
                .replace("/data/slots/b", "/data");
            assert_eq!(appliance.ok("cat /run/setup").trim(), through);
            continue;
        }
        assert_eq!(service["state"], "installed", "{service:#}");
        assert_eq!(service["runs"], json!(path), "{service:#}");
        let seen = match name {
            "forking" => appliance.ok(&format!("readlink /proc/{}/exe", service["pid"])),
            // An interpreter that has this script: what is in it is the same by either path.
            _ => {
                let words =
                    appliance.ok(&format!("tr '\\0' '\\n' </proc/{}/cmdline", service["pid"]));
                let script = words.lines().nth(1).unwrap().to_owned();
                appliance.ok(&format!("cmp {script} {path}"));
                path.clone()
            }
        };
        assert_eq!(seen.trim(), path);
    }
    assert_eq!(status["needs_person"], Value::Bool(false), "{status:#}");
}

/// Intent: each kind of service is updated and proved, goes back when one of them crashes, and is told truly.
#[test]
fn services_of_every_kind() {
    let factory = release("factory", "1.0.0", "while :; do sleep 1; done\n");
    let overlay = built::directory("kinds-overlay");
    let level = overlay.join("etc/runlevels/default");
    fs::create_dir_all(&level).unwrap();
    let template = built::top().join("dist/openrc-service");
    let template = fs::read_to_string(template).unwrap();
    for (name, kind, runs, rest) in KINDS {
        let script = template
            .replace("program=bin/my-daemon", &format!("program={runs}"))
            .replace("kind=supervised", &format!("kind={kind}"));
        let script = script + rest;
        built::write_program(&overlay.join("etc/init.d").join(name), script);
    }
    let directory = factory.recipe.parent().unwrap().to_str().unwrap();
    let options = [
        "--factory",
        directory,
        "--overlay",
        overlay.to_str().unwrap(),
    ];
    built::other_image("kinds", &options);

    let good = release("v1", "1.1.0", "while :; do sleep 1; done\n");
    let repository = Repository::with("kinds-repository", &[&good]);
    let mut appliance =
        Appliance::new("kinds").options(&["--root", "kinds", "--repo", &repository.url]);
    appliance.boot();
    runs_from(&appliance, "/usr");
    appliance.qx_update("apply", 0);
    runs_from(&appliance, "/data/slots/a");

    repository.publish(&release("v1", "1.2.0", "exit 1\n"));
    appliance.qx_update("apply", 8);
    runs_from(&appliance, "/data/slots/a");
    let status = appliance.status();
    let reason = status["last"]["reason"].as_str().unwrap();
    assert!(reason.contains("service supervised"), "{reason}");

    repository.publish(&release("v1", "1.3.0", "while sleep 1; do :; done\n"));
    appliance.qx_update("apply", 0);
    runs_from(&appliance, "/data/slots/b");
    // After a boot there is nothing that began before the link was changed.
    appliance.reboot();
    runs_from(&appliance, "/data/slots/b");
    appliance.qx_update("rollback", 0);
    runs_from(&appliance, "/data/slots/a");
}
