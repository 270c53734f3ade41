//! Services whose process is not simply the installed file: scripts, of which the kernel knows the interpreter; programs inside of
//! trees; and those that do their work when they are started, and end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::services::{Bystander, edit_svc, service};
use crate::common::{Appliance, Recipe, create_dir, wait_until, write_executable, write_program};

/// A script that is started and stays, by its first line: what it is in, and what it says.
const SCRIPTS: [&str; 5] = [
    "#!/bin/sh\n# VERSION\nwhile :; do sleep 1; done\n",
    "#!/bin/sh -eu\n# VERSION\nwhile :; do sleep 1; done\n",
    "#!/usr/bin/env python3\n# VERSION\nimport time\nwhile True: time.sleep(1)\n",
    "#!/usr/bin/env -S python3 -u\n# VERSION\nimport time\nwhile True: time.sleep(1)\n",
    "#! /bin/busybox ash\n# VERSION\nwhile :; do /bin/busybox sleep 1; done\n",
];

/// The console is this script.
fn scripted(appliance: &Appliance, version: &str, script: &str) -> Recipe {
    let recipe = appliance.recipe(version).without_program("console");
    let recipe = recipe.edit(|json| {
        json["health"].as_array_mut().unwrap().remove(1);
    });
    let script = script.replace("VERSION", version);
    write_executable(&recipe.dir.join("qx-console"), script);
    recipe
}

/// An appliance whose image has such a console, and runs it.
fn appliance(script: &str) -> Appliance {
    let appliance = Appliance::new();
    appliance.services("stop");
    appliance.factory(&scripted(&appliance, "1.0.0", script));
    for service in ["node", "console"] {
        appliance.service("start", service);
    }
    appliance.update(&["recover"]).code(0);
    appliance
}

/// `status` says that the console runs the script in this directory. (The shell that starts it becomes it a moment later.)
fn runs(appliance: &Appliance, place: &Path) {
    let script = json!(place.join("bin/qx-console"));
    wait_until(&format!("{script} runs"), || {
        let status = appliance.status();
        let console = service(&status, "console");
        console["state"] == "installed" && console["runs"] == script
    });
}

#[track_caller]
fn not_made(appliance: &Appliance, recipe: &Recipe, code: i32, why: &str) {
    let refused = appliance.try_release(recipe, &[]);
    refused.code(code);
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
}

fn slot(appliance: &Appliance, name: &str) -> PathBuf {
    appliance.data().join("slots").join(name)
}

/// Intent: a script is proved like any program, whatever its first line makes of it, and through every change: a release, another
/// one, the way back, the image's own.
#[test]
fn a_script_is_proved_by_the_interpreter_that_it_names() {
    let appliance = appliance(SCRIPTS[0]);
    runs(&appliance, &appliance.root.join("usr"));
    for (at, script) in SCRIPTS.iter().enumerate() {
        let version = format!("1.{}.0", at + 1);
        appliance.release(&scripted(&appliance, &version, script));
        appliance.update(&["apply"]).code(0).says(&["proved"]);
        runs(&appliance, &slot(&appliance, ["a", "b"][at % 2]));
    }
    appliance.update(&["rollback"]).code(0);
    runs(&appliance, &slot(&appliance, "b"));
    appliance.update(&["rollback", "--to", "factory"]).code(0);
    runs(&appliance, &appliance.root.join("usr"));
}

/// Intent: a process that was started by the same path before the link was changed runs the old script. Here the service manager
/// finds one running, and takes it for the service.
#[test]
fn an_old_script_is_not_taken_for_the_new_one() {
    let appliance = appliance(SCRIPTS[0]);
    appliance.release(&scripted(&appliance, "1.1.0", SCRIPTS[0]));
    appliance.update(&["apply"]).code(0);
    edit_svc(
        &appliance,
        "case $1 in\nstart)\n",
        "case $1 in\nstart)\n[ \"$2\" = console ] && mv \"$root/out/old.pid\" \"$pidfile\" 2>/dev/null && exit 0\n",
    );
    let mut old = Command::new(appliance.data().join("bin/qx-console"));
    let mut old = Bystander::start(old.env("STARTED_IN", &appliance.root));
    let id = old.id().to_string();
    fs::write(appliance.root.join("out/old.pid"), &id).unwrap();
    appliance.release(&scripted(&appliance, "1.2.0", SCRIPTS[0]));
    appliance.update(&["apply"]).code(0).says(&["proved"]);
    assert!(old.has_ended(), "it was the service for a moment");
    runs(&appliance, &slot(&appliance, "b"));
}

/// Intent: what an update did not change goes on, is known, and is restarted before its file is overwritten.
#[test]
fn an_unchanged_script_runs_on_until_its_slot_is_needed() {
    let appliance = appliance(SCRIPTS[0]);
    let release = |version: &str| {
        let same = SCRIPTS[0].replace("VERSION", "the same");
        appliance.release(&scripted(&appliance, version, &same).www("the same"));
    };
    release("1.1.0");
    appliance.update(&["apply"]).code(0);
    let first = appliance.pid("console");
    release("1.2.0");
    appliance.update(&["apply"]).code(0);
    assert_eq!(appliance.pid("console"), first, "nothing of it has changed");
    runs(&appliance, &slot(&appliance, "a"));
    release("1.3.0");
    appliance.update(&["apply"]).code(0);
    assert_ne!(appliance.pid("console"), first, "its file is overwritten");
    appliance.update(&["verify"]).code(0);
}

/// Intent: somebody's own process that runs an old script is shown by `status`.
#[test]
fn somebody_runs_an_old_script() {
    let appliance = appliance(SCRIPTS[2]);
    appliance.release(&scripted(&appliance, "1.1.0", SCRIPTS[2]));
    appliance.update(&["apply"]).code(0);
    let script = appliance.data().join("bin/qx-console");
    // Who ran the tests may have another Python.
    let somebody = Bystander::start(Command::new(script).env("PATH", "/usr/bin:/bin"));
    let id = somebody.id();
    let python = || fs::read_to_string(format!("/proc/{id}/comm")).unwrap();
    wait_until("it has begun", || python().starts_with("python"));
    assert_eq!(appliance.status()["elsewhere"], json!([]));
    appliance.release(&scripted(&appliance, "1.2.0", SCRIPTS[2]));
    appliance.update(&["apply"]).code(0);
    let status = appliance.status();
    let elsewhere = status["elsewhere"].as_array().unwrap();
    assert_eq!(elsewhere.len(), 1, "{elsewhere:#?}");
    assert_eq!(elsewhere[0]["pid"], id);
    let file = slot(&appliance, "a").join("bin/qx-console");
    assert_eq!(elsewhere[0]["uses"], json!(file));
}

/// Intent: other programs may have a script's path among their arguments, and are not the service.
#[test]
fn an_argument_is_no_script() {
    let appliance = appliance(SCRIPTS[0]);
    let script = appliance.root.join("usr/bin/qx-console");
    let shell = |words: &[&str]| Bystander::start(Command::new("/bin/sh").args(words).arg(&script));
    let others = [
        shell(&["-c", "while :; do sleep 1; done", "sh"]),
        Bystander::start(Command::new("tail").arg("-f").arg(&script)),
    ];
    // Without a pidfile a service is known by what it runs.
    appliance.edit_config(|config| {
        config["services"]
            .as_object_mut()
            .unwrap()
            .remove("pidfile");
    });
    appliance.service("stop", "console");
    let status = appliance.status();
    assert_eq!(
        service(&status, "console")["state"],
        "stopped",
        "{status:#}"
    );
    appliance.service("start", "console");
    runs(&appliance, &appliance.root.join("usr"));
    drop(others);
}

/// Intent: an interpreter that the image does not have is found before anything is stopped, and is not the release's fault; one
/// that the first line does not name is found when the release is made.
#[test]
fn an_interpreter_that_is_not_there() {
    let appliance = appliance(SCRIPTS[0]);
    let before = appliance.pid("console");
    for (version, line, missing) in [
        (
            "1.1.0",
            "#!/usr/bin/no-such-thing",
            "/usr/bin/no-such-thing",
        ),
        ("1.2.0", "#!/usr/bin/env no-such-thing", "no-such-thing"),
    ] {
        appliance.release(&scripted(&appliance, version, &format!("{line}\n")));
        let words = ["console", "bin/qx-console", missing, "does not have"];
        appliance.update(&["apply"]).refused(1, &words);
        assert_eq!(appliance.pid("console"), before);
        assert_eq!(appliance.status()["refused"], json!([]));
    }
    for line in ["#!sh\n", "#!/usr/bin/env\n", "#!\n"] {
        let recipe = scripted(&appliance, "1.3.0", line);
        not_made(
            &appliance,
            &recipe,
            1,
            "its first line does not name its interpreter",
        );
    }
}

/// The console is a program inside of a tree.
fn inside(appliance: &Appliance, version: &str, program: &str, beside: &str) -> Recipe {
    let recipe = appliance.recipe(version).without_program("console");
    let recipe = recipe.edit(|json| {
        json["components"][1] =
            json!({"name": "app", "kind": "tree", "install_path": "share/app", "source": "app"});
        json["services"][1] = json!({"name": "console", "runs": "share/app/bin/qx-console"});
        json["health"].as_array_mut().unwrap().remove(1);
    });
    create_dir(recipe.dir.join("app/bin")).unwrap();
    fs::write(recipe.dir.join("app/beside"), beside).unwrap();
    let place = recipe.dir.join("app/bin/qx-console");
    match program.starts_with("#!") {
        true => write_executable(&place, program),
        false => write_program(&place, "console", program, "ok"),
    }
    recipe
}

/// Intent: a service may run a program inside of a tree, and any change of the tree restarts it.
#[test]
fn a_program_inside_of_a_tree() {
    let appliance = Appliance::new();
    appliance.services("stop");
    edit_svc(
        &appliance,
        "program=$root/data/bin/qx-$2\n\t[ -x \"$program\" ] || program=$root/usr/bin/qx-$2\n",
        "place=bin\n\t[ \"$2\" = console ] && place=share/app/bin\n\tprogram=$root/data/$place/qx-$2\n\
         \t[ -x \"$program\" ] || program=$root/usr/$place/qx-$2\n",
    );
    appliance.factory(&inside(&appliance, "1.0.0", "1.0.0", ""));
    appliance.services("start");
    appliance.update(&["recover"]).code(0);
    let script = SCRIPTS[0];
    for (version, program, beside) in [
        ("1.1.0", "1.1.0", ""),
        ("1.2.0", "1.1.0", "other data"),
        ("1.3.0", script, "other data"),
        ("1.4.0", script, ""),
    ] {
        let before = appliance.pid("console");
        appliance.release(&inside(&appliance, version, program, beside));
        appliance.update(&["apply"]).code(0).says(&["proved"]);
        assert_ne!(appliance.pid("console"), before, "{version}");
        let status = appliance.status();
        let console = service(&status, "console");
        assert_eq!(console["state"], "installed", "{console:#}");
        let program = slot(&appliance, &appliance.link()[6..]).join("share/app/bin/qx-console");
        assert_eq!(console["runs"], json!(program));
    }
    let absent = inside(&appliance, "1.5.0", script, "").edit(|json| {
        json["services"][1]["runs"] = json!("share/app/bin/qx-other");
    });
    not_made(&appliance, &absent, 1, "app/bin/qx-other: No such file");
    let tree = inside(&appliance, "1.5.0", script, "").edit(|json| {
        json["services"][1]["runs"] = json!("share/app");
    });
    not_made(&appliance, &tree, 2, "runs share/app, which is neither");
}

/// With a service that does its work when it is started.
fn with_setup(appliance: &Appliance, version: &str, script: &str) -> Recipe {
    let recipe = appliance.recipe(version).edit(|json| {
        let components = json["components"].as_array_mut().unwrap();
        components.push(json!(
            {"name": "qx-setup", "kind": "bin", "install_path": "bin/qx-setup", "source": "qx-setup"}
        ));
        let services = json["services"].as_array_mut().unwrap();
        services.push(json!({"name": "setup", "runs": "bin/qx-setup", "oneshot": true}));
    });
    let script = format!("#!/bin/sh\n{}", script.replace("VERSION", version));
    write_executable(&recipe.dir.join("qx-setup"), script);
    recipe
}

/// Intent: a service that ends when its work is done is started again when its files change; that it did not fail is what counts.
#[test]
fn one_that_runs_to_its_end() {
    const WORKS: &str = "echo VERSION >>\"${0%/data/*}/out/done\"\n";
    let appliance = Appliance::new();
    appliance.services("stop");
    edit_svc(
        &appliance,
        "case $1 in\nstart)\n",
        "case $1.$2 in\nstart.setup)\n\t[ -e \"$root/out/setup\" ] && exit 0\n\tprogram=$root/data/bin/qx-$2\n\
         \t[ -x \"$program\" ] || program=$root/usr/bin/qx-$2\n\t\"$program\" && : >\"$root/out/setup\"; exit $? ;;\n\
         stop.setup) rm \"$root/out/setup\"; exit 0 ;;\nstatus.setup) [ -e \"$root/out/setup\" ]; exit $? ;;\nesac\n\
         case $1 in\nstart)\n",
    );
    let of_image = with_setup(&appliance, "1.0.0", "exit 0\n");
    appliance.factory(&of_image);
    appliance.services("start");
    appliance.service("start", "setup");
    appliance.update(&["recover"]).code(0);
    let done = || fs::read_to_string(appliance.root.join("out/done")).unwrap_or_default();
    let state = || {
        let status = appliance.status();
        let state = &service(&status, "setup")["state"];
        state.as_str().unwrap().to_owned()
    };
    appliance.release(&with_setup(&appliance, "1.1.0", WORKS));
    appliance.update(&["apply"]).code(0).says(&["proved"]);
    assert_eq!(done(), "1.1.0\n");
    assert_eq!(state(), "done");
    appliance
        .update(&["status"])
        .code(0)
        .says(&["setup", "has run to its end"]);
    let failing = with_setup(&appliance, "1.2.0", "echo broken; exit 1\n").quick_to_fail();
    appliance.release(&failing);
    appliance
        .update(&["apply"])
        .code(8)
        .error_says(&["setup", "it was not started, or failed"]);
    assert_eq!(
        done(),
        "1.1.0\n1.1.0\n",
        "the old one has done its work again"
    );
    assert_eq!(state(), "done");
    // Nobody has started it since the machine has.
    appliance.service("stop", "setup");
    assert_eq!(state(), "stopped");
}
