//! What cannot be read is not taken for absent, and what may not be read is said so; `status`, `verify`, `which` and `confirm`
//! say what is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::common::{Appliance, UPDATE, copy_executable, json_file, text};

/// A factory manifest that cannot be read: nothing is installed beside it, for nobody knows which paths a release must have, and
/// data is not put under a set that may not accept it. Everything says which file.
#[test]
fn an_unreadable_factory_manifest_is_no_absent_one() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let manifest = appliance.root.join("usr/share/qx-update/factory.json");
    let whole = text(&manifest);
    fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    appliance.refuses(&["apply"], 1, &["factory.json"]);
    appliance.refuses(&["check"], 1, &["factory.json"]);
    appliance.refuses(&["rollback", "--to", "factory"], 1, &["factory.json"]);
    appliance.update(&["recover"]).code(0);
    appliance.runs("1.1.0");
    assert!(
        appliance.status()["problems"]
            .to_string()
            .contains("factory.json")
    );
    appliance.update(&["verify"]).code(10).says(&["damaged"]);
    appliance
        .update(&["which", "nobody"])
        .refused(1, &["factory.json"]);
    // Absent, it says nothing: that is an image without one.
    fs::remove_file(&manifest).unwrap();
    appliance
        .update(&["verify"])
        .code(0)
        .says(&["factory set: not verifiable"]);
    appliance.update(&["check"]).code(4);
}

/// On the factory set, whose manifest cannot be read for now: the record goes on to know it.
#[test]
fn an_unreadable_factory_set_stays_the_one_that_is_known() {
    let appliance = Appliance::new();
    let manifest = appliance.root.join("usr/share/qx-update/factory.json");
    let whole = text(&manifest);
    let before = appliance.status()["running"].clone();
    fs::write(&manifest, "{").unwrap();
    appliance.update(&["recover"]).code(0);
    fs::write(&manifest, whole).unwrap();
    assert_eq!(appliance.status()["running"], before);
    // As at the next boot: the notes of this one go.
    appliance.update(&["recover"]).code(0);
    assert_eq!(appliance.status()["problems"], json!([]));
    // Without a record nothing is recorded of what nobody could read.
    for copy in ["state.0", "state.1"] {
        let _ = fs::remove_file(appliance.data().join("update").join(copy));
    }
    fs::write(&manifest, "{").unwrap();
    appliance.update(&["recover"]).code(0);
    assert_eq!(appliance.phase(), "");
}

/// As a user without the rights: that is said, with exit 1, and nothing else.
#[test]
fn who_may_not_read_is_told_so() {
    let appliance = Appliance::new();
    // As an image's files are, whatever umask the tests are run with. The updater's own are as it makes them.
    let mut readable = Command::new("find");
    readable.arg(appliance.temp());
    readable.args(["-path", "*/data/update", "-prune", "-o"]);
    readable.args(["!", "-type", "l", "-exec", "chmod", "go+rX", "{}", "+"]);
    assert!(readable.status().unwrap().success());
    appliance.install("1.1.0");
    // Where that user may read it.
    let program = appliance.temp().join("qx-update");
    copy_executable(Path::new(UPDATE), &program);
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(&appliance.root).args(arguments);
        command.uid(65534).gid(65534);
        appliance.spawn(command).wait()
    };
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["log"],
        &["verify"],
    ] {
        let outcome = as_nobody(arguments);
        outcome.refused(1, &["/data/update", "run as root"]);
        assert_eq!(outcome.stdout, "", "{arguments:?}");
    }
    for command in ["apply", "check", "confirm", "reset", "rollback"] {
        let outcome = as_nobody(&[command]);
        assert!(
            outcome.code == 1 || outcome.code == 10,
            "{command}: {}",
            outcome.code
        );
        outcome.error_says(&["run as root"]);
    }
    // What everybody may read, everybody is told.
    as_nobody(&["which", "qx-node"]).code(0);
    // What nobody but root may run, an init script of that user does not find.
    let bin = appliance.data().join(appliance.link()).join("bin/qx-node");
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o700)).unwrap();
    as_nobody(&["which", "qx-node"]).code(0).says(&["usr/bin"]);
    appliance
        .update(&["which", "qx-node"])
        .code(0)
        .says(&["data/bin"]);
}

/// A file that was laid into a release's tree does not condemn it; `status` names it. One that was changed, or taken away, does.
#[test]
fn what_is_added_to_a_tree_does_not_condemn_it() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let www = appliance.data().join(appliance.link()).join("share/www");
    crate::common::create_dir(www.join("__pycache__")).unwrap();
    fs::write(www.join("__pycache__/x.pyc"), "compiled").unwrap();
    symlink("/etc/passwd", www.join("odd")).unwrap();
    appliance.update(&["recover"]).code(0);
    appliance.update(&["verify"]).code(0);
    appliance.runs("1.1.0");
    appliance.update(&["status"]).says(&[
        "__pycache__ does not belong to the release",
        "odd does not belong to the release",
    ]);
    // The next release comes without it.
    appliance.install("1.2.0");
    assert_eq!(appliance.status()["problems"], json!([]));
    let www = appliance.data().join(appliance.link()).join("share/www");
    fs::write(www.join("more.html"), "added").unwrap();
    fs::write(www.join("index.html"), "changed").unwrap();
    appliance.update(&["verify"]).code(10).says(&["damaged"]);
    fs::remove_file(www.join("index.html")).unwrap();
    appliance.update(&["verify"]).code(10).says(&["damaged"]);
    appliance.update(&["recover"]).code(0);
    assert_eq!(appliance.status()["running"]["version"], "1.1.0");
}

/// A plain directory in the place of `/data/bin`: what lies in it runs, and `status` says so.
#[test]
fn a_plain_bin_is_what_runs() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let bin = appliance.data().join("bin");
    fs::remove_file(&bin).unwrap();
    crate::common::create_dir(&bin).unwrap();
    let status = appliance.update(&["status"]);
    status.says(&["running   the files in", "data/bin, a plain directory"]);
    assert!(!status.stdout.contains("running   1."), "{}", status.stdout);
    let plain = appliance.status()["plain"].clone();
    assert!(plain.as_str().unwrap().ends_with("data/bin"), "{plain}");
}

/// A boot that was told to use the factory set: `confirm` does not say that the release runs, `status` names the kernel's word
/// and the way out, and staying with the factory set is what was done last.
#[test]
fn a_boot_with_the_factory_set_says_so() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.services("stop");
    crate::common::create_dir(appliance.root.join("proc")).unwrap();
    fs::write(appliance.root.join("proc/cmdline"), "quiet qx.factory\n").unwrap();
    appliance.update(&["recover"]).code(0);
    appliance.services("start");
    let confirm = appliance.update(&["confirm"]);
    confirm
        .code(0)
        .says(&["qx.factory", "1.1.0 (slot a) is kept"]);
    assert!(!confirm.stdout.contains("1.1.0 (slot a) runs"));
    let status = appliance.update(&["status"]);
    status.says(&[
        "running   1.0.0 (factory set)",
        "qx.factory is on the kernel command line",
        "rollback --to factory",
    ]);
    assert!(
        !status.stdout.contains("nothing to do"),
        "{}",
        status.stdout
    );
    appliance
        .update(&["apply"])
        .refused(10, &["qx.factory", "rollback --to factory"]);
    appliance.update(&["rollback", "--to", "factory"]).code(0);
    let last = appliance.status()["last"].clone();
    assert_eq!(last["kind"], "factory", "{last:#}");
    assert_eq!(last["from"]["version"], "1.1.0");
    assert_eq!(last["to"]["set"], "factory");
    let status = appliance.update(&["status"]);
    status.says(&["done, not proved: this boot already used the factory set"]);
    // It stays, whatever the next boot is told.
    fs::remove_file(appliance.root.join("proc/cmdline")).unwrap();
    appliance.update(&["recover"]).code(0);
    assert_eq!(appliance.status()["running"]["set"], "factory");
    appliance.update(&["apply"]).refused(5, &["1.1.0", "held"]);
}

/// A slot over which an empty file system lies, as the link stage hides one that it cannot unlink: the factory set runs.
#[test]
fn a_slot_that_is_hidden_does_not_run() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let slot = appliance.data().join(appliance.link());
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4k,mode=755,ro", "none"])
        .arg(&slot)
        .status();
    assert!(mount.unwrap().success());
    let running = appliance.status()["running"].clone();
    assert!(
        Command::new("umount")
            .arg("-l")
            .arg(&slot)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(running["set"], "factory", "{running:#}");
    assert_eq!(running["version"], "1.0.0");
    assert_eq!(appliance.status()["running"]["version"], "1.1.0");
}

/// What the link stage notes names paths as the appliance does, wherever its root was mounted then.
#[test]
fn notes_of_the_boot_name_the_appliances_own_paths() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let www = appliance.data().join(appliance.link()).join("share/www");
    fs::write(www.join("index.html"), "changed").unwrap();
    appliance.update(&["recover"]).code(0);
    let note = text(&appliance.root.join("run/qx-update/boot.json"));
    assert!(note.contains("/data/slots/"), "{note}");
    let root = appliance.root.to_str().unwrap();
    assert!(!note.contains(root), "{note}");
    let problems = appliance.status()["problems"].to_string();
    assert!(!problems.contains(root), "{problems}");
}

/// Refusals: the newest first, and none of what is older than what runs.
#[test]
fn refusals_are_listed_newest_first() {
    let appliance = Appliance::new();
    for version in ["1.1.0", "1.3.0", "1.4.0"] {
        appliance.release(&appliance.recipe(version).behaviour("node", "crash"));
        appliance.update(&["apply"]).code(9);
    }
    let refused = || {
        let status = appliance.status();
        let refused = status["refused"].as_array().unwrap().iter();
        refused
            .map(|r| r["version"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(refused(), ["1.4.0", "1.3.0", "1.1.0"]);
    appliance.publish_release("1.2.0");
    appliance.update(&["apply", "1.2.0"]).code(0);
    assert_eq!(refused(), ["1.4.0", "1.3.0"]);
}

/// Help and version, however they are asked for; and both are listed.
#[test]
fn help_and_version() {
    let appliance = Appliance::new();
    for arguments in [
        &["-h"][..],
        &["--help"],
        &["apply", "-h"],
        &["status", "--help"],
    ] {
        appliance.update(arguments).code(0).says(&["Usage"]);
    }
    for arguments in [&["--version"][..], &["-V"]] {
        appliance.update(arguments).code(0).says(&["qx-update 0."]);
    }
    appliance.update(&["--help"]).says(&["--version"]);
    let factory = appliance.root.join("usr/share/qx-update/factory.json");
    assert_eq!(json_file(Path::new(&factory))["version"], "1.0.0");
}
