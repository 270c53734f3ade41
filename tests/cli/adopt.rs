//! An appliance in the field, whose programs another updater put into plain directories, is taken over and given back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use crate::common::{
    Appliance, Mounted, Picture, copy_all, copy_executable, create_dir, json_file, path, text,
    wait_until,
};

/// Without anything of qx-update on its data partition: the node is 1.0.5 in plain directories, the console the factory's 1.0.0.
fn in_the_field() -> Appliance {
    let appliance = Appliance::new();
    appliance.services("stop");
    let data = appliance.data();
    for entry in fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    let recipe = appliance
        .recipe("1.0.5")
        .www("These are the pages of 1.0.5.\n");
    recipe.write();
    create_dir(data.join("bin")).unwrap();
    create_dir(data.join("share")).unwrap();
    copy_executable(&recipe.dir.join("qx-node"), &data.join("bin/qx-node"));
    copy_all(&recipe.dir.join("www"), &data.join("share/www"));
    create_dir(data.join("versions")).unwrap();
    fs::write(data.join("versions/qx-node.version"), "v1.0.5\n").unwrap();
    fs::write(data.join("versions/www.version"), "1.0.4\n").unwrap();
    appliance.services("start");
    wait_until("both answer", || appliance.answers() == ["1.0.5", "1.0.0"]);
    appliance.told();
    appliance
}

/// What an init script starts, and the pages that a service finds: their contents, and the inode of the program.
fn found(appliance: &Appliance) -> (Vec<u8>, u64, String) {
    let node = appliance.data().join("bin/qx-node");
    let inode = fs::metadata(&node).unwrap().ino();
    (
        fs::read(&node).unwrap(),
        inode,
        text(&appliance.data().join("share/www/index.html")),
    )
}

/// Plain directories become the first release: nothing is stopped, each init script finds the same file as before, and from then on
/// it is a release like any other, to update from and to go back to.
#[test]
fn plain_directories_become_the_first_release() {
    let appliance = in_the_field();
    let (before, picture, processes) = (
        found(&appliance),
        appliance.picture(),
        appliance.processes(),
    );
    // A boot changes nothing, and says what to do.
    appliance.update(&["recover"]).code(0);
    appliance.update(&["status"]).says(&["qx-update adopt"]);

    let planned = appliance.update(&["adopt", "--dry-run"]);
    planned
        .code(0)
        .says(&["data/bin/qx-node", "usr/bin/qx-console", "1.0.5+adopted"]);
    picture.unchanged(&appliance);

    appliance.update(&["adopt"]).code(0).says(&[
        "1.0.5+adopted",
        "service node runs",
        "service console runs",
    ]);
    assert_eq!(found(&appliance), before);
    assert_eq!(
        appliance.processes().into_keys().collect::<Vec<_>>(),
        processes.into_keys().collect::<Vec<_>>()
    );
    assert_eq!(appliance.told(), Vec::<String>::new());
    assert!(
        fs::symlink_metadata(appliance.data().join("bin"))
            .unwrap()
            .is_symlink()
    );
    assert!(
        fs::symlink_metadata(appliance.data().join("share"))
            .unwrap()
            .is_symlink()
    );
    let status = appliance.status();
    assert_eq!(status["running"]["version"], "1.0.5+adopted");
    assert_eq!(status["fallback"]["version"], "1.0.0");
    assert_eq!(status["problems"], json!([]), "{status:#}");
    for service in status["services"].as_array().unwrap() {
        assert_eq!(service["state"], "installed", "{status:#}");
    }
    appliance.update(&["verify"]).code(0);
    appliance.update(&["adopt"]).code(3);

    // Its health is what the way back is measured by.
    appliance.release(&appliance.recipe("1.1.0").behaviour("node", "error500"));
    appliance.update(&["apply"]).code(8);
    wait_until("both answer", || appliance.answers() == ["1.0.5", "1.0.0"]);
    appliance.install("1.2.0");
    appliance.update(&["rollback"]).code(0);
    wait_until("both answer", || appliance.answers() == ["1.0.5", "1.0.0"]);
    appliance.install("1.3.0");
    // Its slot was given away, so what was kept of it is gone.
    appliance.publish_release("1.4.0");
    appliance.update(&["apply"]).code(0);
    appliance.install("1.5.0");
    assert!(
        !appliance.data().join("adopted").exists(),
        "{}",
        appliance.tree()
    );
}

/// What an adoption did is undone exactly, as long as its release runs: every file and directory is where it was, and nothing is
/// stopped.
#[test]
fn an_adoption_is_undone() {
    let appliance = in_the_field();
    fs::write(appliance.data().join("bin/notes.txt"), "somebody's\n").unwrap();
    let (picture, processes) = (appliance.picture(), appliance.processes());
    appliance.update(&["adopt", "--undo"]).code(3);
    picture.unchanged(&appliance);
    appliance
        .update(&["adopt"])
        .code(0)
        .says(&["data/bin/notes.txt"]);
    assert!(!appliance.data().join("bin/notes.txt").exists());
    appliance.update(&["adopt", "--undo"]).code(0);
    picture.unchanged(&appliance);
    appliance.update(&["recover"]).code(0);
    picture.unchanged(&appliance);

    // Again, and with a release on top.
    appliance.update(&["adopt"]).code(0);
    appliance.install("1.2.0");
    appliance
        .update(&["adopt", "--undo"])
        .refused(1, &["1.2.0", "qx-update rollback"]);
    appliance.runs("1.2.0");
    appliance.update(&["rollback"]).code(0);
    appliance.update(&["adopt", "--undo"]).code(0);
    // What runs from the slot keeps it, until it ends.
    let others = |picture: Picture| {
        let files = picture.files.into_iter();
        files
            .filter(|(path, _)| !path.starts_with("slots"))
            .collect::<Vec<_>>()
    };
    assert!(
        others(appliance.picture()) == others(picture),
        "{}",
        appliance.tree()
    );
    assert!(processes.len() == 2 && appliance.answers() == ["1.0.5", "1.0.0"]);
}

/// The calls that a step may make; strace counts each of them for itself.
const STEPS: [&str; 9] = [
    "rename",
    "renameat",
    "renameat2",
    "symlink",
    "symlinkat",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
];

/// A command that ends, with all its processes, at the so manieth of these calls.
type Step = (&'static str, usize);

/// Whether it got so far.
fn cut(appliance: &Appliance, arguments: &[&str], (call, number): Step) -> bool {
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null"]);
    command.args(["-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:signal=KILL:when={number}")]);
    command.args([crate::common::UPDATE, "--root", path(&appliance.root)]);
    command.args(arguments);
    let code = appliance.spawn(command).wait().code;
    appliance.kill_updater();
    code != 0
}

/// All steps of a command on such an appliance.
fn steps(of: impl Fn() -> Appliance, arguments: &[&str]) -> Vec<Step> {
    let appliance = of();
    let log = appliance.temp().join("steps");
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-qq", "-o", path(&log)]);
    command.args(["-e", &format!("trace={}", STEPS.join(","))]);
    command.args([crate::common::UPDATE, "--root", path(&appliance.root)]);
    command.args(arguments);
    appliance.spawn(command).wait().code(0);
    let traced = text(&log);
    let times = |call: &str| traced.matches(&format!(" {call}(")).count();
    STEPS
        .iter()
        .flat_map(|call| (1..=times(call)).map(move |number| (*call, number)))
        .collect()
}

/// Cut off at any of its steps it has not happened or goes on by itself at the next boot, before anything is started.
#[test]
fn an_adoption_that_is_cut_short_has_not_happened_or_is_completed() {
    let reference = in_the_field();
    reference.update(&["adopt"]).code(0);
    let all = steps(in_the_field, &["adopt"]);
    assert!(all.len() > 20, "{all:?}");
    let mut outcomes = std::collections::BTreeSet::new();
    for number in all.into_iter().step_by(3) {
        let appliance = in_the_field();
        let before = found(&appliance);
        // Which of its processes makes a call differs from run to run.
        cut(&appliance, &["adopt"], number);
        assert_eq!(
            found(&appliance),
            before,
            "call {number:?}\n{}",
            appliance.tree()
        );
        // The power goes, too.
        let _ = fs::remove_dir_all(appliance.root.join("run/qx-update"));
        appliance.update(&["recover"]).code(0);
        assert_eq!(
            found(&appliance),
            before,
            "call {number:?}\n{}",
            appliance.tree()
        );
        let is_adopted = fs::symlink_metadata(appliance.data().join("bin"))
            .unwrap()
            .is_symlink();
        let share = fs::symlink_metadata(appliance.data().join("share"))
            .unwrap()
            .is_symlink();
        assert_eq!(is_adopted, share, "call {number:?}\n{}", appliance.tree());
        assert_eq!(
            appliance.status()["running"]["set"] != "factory",
            is_adopted,
            "call {number:?}\n{}",
            appliance.tree()
        );
        outcomes.insert(is_adopted);
        appliance
            .update(&["adopt"])
            .code(if is_adopted { 3 } else { 0 });
        assert_eq!(found(&appliance), before, "call {number:?}");
        assert_eq!(appliance.status()["problems"], json!([]), "call {number:?}");
        appliance.update(&["adopt", "--undo"]).code(0);
        assert_eq!(found(&appliance), before, "call {number:?}");
    }
    assert_eq!(outcomes.len(), 2, "both ends were seen: {outcomes:?}");
}

/// What belongs to no component is told, with the fault that the updaters before had: a program that was installed under a name that
/// no service runs. Where a process uses it, nothing is done.
#[test]
fn what_belongs_to_no_component_is_told() {
    let appliance = in_the_field();
    let bin = appliance.data().join("bin");
    copy_executable(&bin.join("qx-node"), &bin.join("quantix-node"));
    let adopt = appliance.update(&["adopt", "--dry-run"]);
    adopt.code(0).says(&[
        "quantix-node belongs to no component",
        "services run bin/qx-node",
        "is the newer one",
    ]);

    copy_executable(std::path::Path::new("/bin/sleep"), &bin.join("helper"));
    let mut helper = std::process::Command::new(bin.join("helper"))
        .arg("1000")
        .spawn()
        .unwrap();
    wait_until("it runs", || {
        crate::common::exe(helper.id()).is_some_and(|exe| exe.ends_with("helper"))
    });
    let picture = appliance.picture();
    appliance
        .update(&["adopt"])
        .refused(1, &["helper", &helper.id().to_string()]);
    picture.unchanged(&appliance);
    helper.kill().unwrap();
    helper.wait().unwrap();
    appliance.update(&["adopt"]).code(0);
    assert!(appliance.data().join("adopted/bin/quantix-node").exists());
}

/// What cannot become a release is said before anything is touched, with the file and what to do.
#[test]
fn what_cannot_be_adopted_is_left_alone() {
    type Spoil = fn(&Appliance);
    let spoiled: [(Spoil, &[&str]); 4] = [
        (
            |a| {
                drop(
                    std::process::Command::new("chmod")
                        .args(["o+w", path(&a.data().join("bin/qx-node"))])
                        .status(),
                )
            },
            &["bin/qx-node", "chmod go-w"],
        ),
        (
            |a| std::os::unix::fs::symlink("/etc/passwd", a.data().join("share/www/leak")).unwrap(),
            &["share/www/leak"],
        ),
        (
            |a| fs::remove_file(a.root.join("usr/share/qx-update/factory.json")).unwrap(),
            &["factory"],
        ),
        (
            |a| {
                drop(
                    std::process::Command::new("chmod")
                        .args(["u+s", path(&a.data().join("bin/qx-node"))])
                        .status(),
                )
            },
            &["bin/qx-node"],
        ),
    ];
    for (spoil, words) in spoiled {
        let appliance = in_the_field();
        spoil(&appliance);
        let picture = appliance.picture();
        appliance.update(&["adopt"]).refused(1, words);
        picture.unchanged(&appliance);
        appliance.update(&["status"]).code(0);
    }
}

/// Without a configuration of its own, that of the updater before says what it says; version files are kept written for the programs
/// that read them, whatever runs.
#[test]
fn the_updater_before_is_read_and_its_version_files_kept() {
    let yaml = |server: &str| {
        format!(
            "node:\n  id: n1\nupdates:\n  server_url: \"{server}\"\n  channel: stable\n  check_interval: 1h\n"
        )
    };
    let vdc = |server: &str| {
        json!({"server_url": server, "channel": "stable", "check_interval": "1h", "auto_check": true}).to_string()
    };
    for (file, text_of, versions, of) in [
        (
            "etc/limiquantix/node.yaml",
            &yaml as &dyn Fn(&str) -> String,
            "data/versions/qx-node.version",
            "quantix-os",
        ),
        (
            "etc/quantix-vdc/update.json",
            &vdc,
            "var/lib/quantix-vdc/version",
            "quantix-vdc",
        ),
    ] {
        let appliance = in_the_field();
        let config = appliance.config();
        fs::remove_file(&config).unwrap();
        appliance
            .update(&["adopt"])
            .refused(2, &[path(&config), "does not exist"]);
        let place = appliance.root.join(file);
        create_dir(place.parent().unwrap()).unwrap();
        fs::write(&place, text_of("https://updates.example.com/q")).unwrap();
        appliance
            .update(&["adopt", "--dry-run"])
            .code(0)
            .says(&[file]);
        assert!(!config.exists());
        appliance.update(&["adopt"]).code(0).says(&[file]);
        let written = json_file(&config);
        assert_eq!(written["product"], of);
        assert_eq!(written["sources"], json!(["https://updates.example.com/q"]));
        assert_eq!(text(&appliance.root.join(versions)), "1.0.5+adopted\n");
        assert_eq!(text(&place), text_of("https://updates.example.com/q"));
    }
    // Whatever changes what runs writes them.
    let appliance = in_the_field();
    appliance.edit_config(|config| {
        config["version_files"] = json!(["/data/versions/{component}.version", "/run/version"])
    });
    let versions = |appliance: &Appliance| {
        [
            text(&appliance.data().join("versions/qx-console.version")),
            text(&appliance.root.join("run/version")),
        ]
    };
    appliance.update(&["adopt"]).code(0);
    assert_eq!(versions(&appliance), ["1.0.5+adopted\n", "1.0.5+adopted\n"]);
    appliance.install("1.2.0");
    assert_eq!(versions(&appliance), ["1.2.0\n", "1.2.0\n"]);
    appliance.release(&appliance.recipe("1.3.0").behaviour("node", "error500"));
    appliance.update(&["apply"]).code(8);
    assert_eq!(versions(&appliance), ["1.2.0\n", "1.2.0\n"]);
    appliance.update(&["rollback", "--to", "factory"]).code(0);
    assert_eq!(versions(&appliance), ["1.0.0\n", "1.0.0\n"]);
}

const VDC_SCRIPT: &str = "etc/init.d/quantix-controlplane";
const VDC_BEFORE: &str = "#!/sbin/openrc-run\ncommand=\"/usr/bin/qx-controlplane\"\ncommand_background=yes\npidfile=/run/q.pid\n";

/// A Quantix-vDC in the field.
fn vdc() -> Appliance {
    let appliance = Appliance::new();
    appliance.services("stop");
    let usr = appliance.root.join("usr");
    fs::remove_dir_all(&usr).unwrap();
    let recipe = appliance.recipe("2.0.0");
    recipe.write();
    create_dir(usr.join("bin")).unwrap();
    create_dir(usr.join("share/quantix-vdc/dashboard")).unwrap();
    copy_executable(
        &recipe.dir.join("qx-node"),
        &usr.join("bin/qx-controlplane"),
    );
    copy_executable(
        &recipe.dir.join("qx-node"),
        &usr.join("bin/quantix-controlplane"),
    );
    fs::write(
        usr.join("share/quantix-vdc/dashboard/index.html"),
        "the dashboard",
    )
    .unwrap();
    let etc = appliance.root.join("etc");
    create_dir(etc.join("quantix-vdc")).unwrap();
    create_dir(etc.join("init.d")).unwrap();
    fs::write(etc.join("quantix-vdc/version"), "2.0.0\n").unwrap();
    fs::write(appliance.root.join(VDC_SCRIPT), VDC_BEFORE).unwrap();
    appliance.edit_config(|config| config["services"] = json!({"manager": "none"}));
    appliance
}

/// A Quantix-vDC, whose programs lie at the image's own places: they become the factory set, its services look for a release first, and
/// an update and the way back work from there. Undone, every file is as it was.
#[test]
fn a_vdc_becomes_the_factory_set() {
    let appliance = vdc();
    let factory = appliance.root.join("usr/share/qx-update/factory.json");
    let script = appliance.root.join(VDC_SCRIPT);
    appliance.update(&["adopt", "--dry-run"]).code(0).says(&[
        "/usr/bin/qx-controlplane",
        "init.d/quantix-controlplane looks for",
    ]);
    assert!(!factory.exists());
    assert_eq!(text(&script), VDC_BEFORE);

    // A script that nobody here can change is left alone, with all the rest.
    fs::write(&script, "start() { /usr/bin/qx-controlplane & }\n").unwrap();
    appliance.update(&["adopt"]).refused(
        1,
        &[
            "init.d/quantix-controlplane",
            "[ -x /data/bin/qx-controlplane ]",
        ],
    );
    assert!(!factory.exists());
    fs::write(&script, VDC_BEFORE).unwrap();

    appliance.update(&["adopt"]).code(0);
    appliance.update(&["adopt"]).code(3);
    assert!(
        text(&script)
            .contains("[ -x /data/bin/qx-controlplane ] && command=/data/bin/qx-controlplane\n")
    );
    let manifest = json_file(&factory);
    assert_eq!(manifest["version"], "2.0.0");
    assert_eq!(manifest["services"][0]["uses"], json!(["dashboard"]));
    appliance
        .update(&["verify"])
        .code(0)
        .says(&["factory set: good, 2.0.0"]);
    let doctor = appliance.update(&["doctor"]);
    doctor.says(&[
        "init.d/quantix-controlplane starts /data/bin/qx-controlplane",
        "quantix-controlplane: services run bin/qx-controlplane",
    ]);

    appliance.update(&["adopt", "--undo"]).code(0);
    assert_eq!(text(&script), VDC_BEFORE);
    assert!(
        !factory.exists() && !appliance.data().join("adopted").exists(),
        "{}",
        appliance.tree()
    );
    appliance.update(&["adopt", "--undo"]).code(3);
}

/// Ended in the middle, it is not adopted, or is with all that belongs to it; the same for its undoing. Both can be done then.
#[test]
fn a_vdc_is_adopted_wholly_or_not_at_all() {
    let appliance = vdc();
    let factory = appliance.root.join("usr/share/qx-update/factory.json");
    let script = appliance.root.join(VDC_SCRIPT);
    let read_only = |place: &Path| Mounted::over(place, &["-o", "bind,ro", path(place)]);

    let scripts = read_only(script.parent().unwrap());
    let refused = appliance.update(&["adopt"]);
    refused.refused(1, &["init.d/quantix-controlplane", "Read-only"]);
    assert!(
        !factory.exists(),
        "adopted, and its service looks nowhere else"
    );
    drop(scripts);
    appliance.update(&["adopt"]).code(0);
    assert!(factory.exists());

    let image = read_only(factory.parent().unwrap());
    appliance
        .update(&["adopt", "--undo"])
        .refused(1, &["factory.json", "Read-only"]);
    assert!(text(&script).contains("[ -x /data/bin/qx-controlplane ] &&"));
    drop(image);
    appliance.update(&["adopt", "--undo"]).code(0);
    assert_eq!(text(&script), VDC_BEFORE);
    assert!(!factory.exists(), "{}", appliance.tree());
}
