//! `--root` is a wall, and root follows no link that another user can plant.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::common::{Appliance, UPDATE, copy_all, path, text, walk, write_script};

/// A directory beside the root, in which nothing may ever change.
fn outside(appliance: &Appliance) -> PathBuf {
    let outside = appliance.temp().join("outside");
    crate::common::create_dir(outside.join("bin")).unwrap();
    write_script(&outside.join("bin/qx-node"), "exit 0");
    fs::write(outside.join("file"), "outside").unwrap();
    outside
}

/// What lies there, with owners, modes and content.
fn seen(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    walk(dir, &mut |path, meta| {
        let content = fs::read(path).unwrap_or_default();
        let what = format!("{} {:o} {content:?}", meta.uid(), meta.mode());
        seen.insert(path.to_owned(), what);
    });
    seen
}

/// The data partition is mounted elsewhere, as in some images.
fn move_data(appliance: &Appliance) {
    crate::common::create_dir(appliance.root.join("mnt")).unwrap();
    fs::rename(appliance.data(), appliance.root.join("mnt/data")).unwrap();
    // The services' own script goes through it, too.
    symlink("mnt/data", appliance.data()).unwrap();
    // What a root that is taken for the data directory would lose.
    crate::common::create_dir(appliance.root.join("bin")).unwrap();
    fs::write(appliance.root.join("bin/sh"), "shell").unwrap();
}

#[track_caller]
fn root_is_whole(appliance: &Appliance) {
    assert_eq!(text(&appliance.root.join("bin/sh")), "shell");
    for name in ["slots", "update", "current", "share"] {
        let path = appliance.root.join(name);
        assert!(fs::symlink_metadata(&path).is_err(), "{}", path.display());
    }
}

/// A kernel, or a filter, without openat2 leads nowhere else.
#[test]
fn without_openat2() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    move_data(&appliance);
    let confined = appliance.temp().join("confined");
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/common/without_openat2.c"
    );
    let cc = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&confined)
        .arg(source)
        .status();
    assert!(cc.expect("cc, which links Rust programs too").success());
    for (arguments, words) in [
        (&["recover"][..], "factory"),
        (&["apply"], "proved"),
        (&["status"], "1.1.0"),
        (&["which", "qx-node"], "/root/mnt/data/bin/qx-node"),
    ] {
        let mut command = Command::new(&confined);
        command
            .arg(UPDATE)
            .arg("--root")
            .arg(&appliance.root)
            .args(arguments);
        appliance.spawn(command).wait().code(0).says(&[words]);
        root_is_whole(&appliance);
    }
    assert!(
        appliance
            .root
            .join("mnt/data/slots/a/release.json")
            .exists()
    );
}

/// Nor does an initramfs that has not mounted /proc.
#[test]
fn without_proc() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    move_data(&appliance);
    let current = appliance.root.join("mnt/data/current");
    fs::remove_file(&current).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        // Whoever may not mount may in a name space of their own.
        if !rustix::process::getuid().is_root() {
            command.arg("--map-root-user");
        }
        let script = "mount -t tmpfs none /proc && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script, "sh", UPDATE, "--root"]);
        command.arg(&appliance.root).args(arguments);
        appliance.spawn(command).wait()
    };
    run(&["recover"]).code(0).says(&["slot a"]);
    assert_eq!(fs::read_link(&current).unwrap(), Path::new("slots/a"));
    run(&["verify"]).code(0).says(&["slot a, in use: good"]);
    let node = path(&appliance.root.join("mnt/data/bin/qx-node")).to_owned();
    run(&["which", "qx-node"]).code(0).says(&[&node]);
    // What has to look at processes says so.
    let before = appliance.picture();
    run(&["apply"]).code(1);
    before.unchanged(&appliance);
    root_is_whole(&appliance);
}

/// A link that leads to nothing leads to nothing inside the root.
#[test]
fn dangling_links_stay_inside() {
    let appliance = Appliance::new();
    // A service would look for its program outside.
    let recipe = appliance.recipe("1.1.0").edit(|json| {
        json["services"] = json!([]);
        for program in 0..2 {
            json["components"][program]["tool"] = json!(true);
        }
        json["health"] = json!([]);
    });
    appliance.release(&recipe);
    let away = appliance.temp().join("away");
    let inside = |path: &Path| appliance.root.join(path.strip_prefix("/").unwrap());
    fs::remove_dir_all(appliance.data()).unwrap();
    symlink(away.join("data"), appliance.data()).unwrap();
    symlink(away.join("log"), appliance.root.join("var")).unwrap();
    fs::remove_dir_all(appliance.root.join("run/qx-update")).unwrap();
    symlink(away.join("run"), appliance.root.join("run/qx-update")).unwrap();
    let config = appliance.root.join("etc/qx-update");
    copy_all(&config, &inside(&away.join("config")));
    fs::remove_dir_all(&config).unwrap();
    symlink(away.join("config"), &config).unwrap();
    let file = inside(&away.join("config/config.json"));
    let with_log = text(&file).replacen('{', "{\"log\": {\"path\": \"/var/x/update.log\"},", 1);
    fs::write(file, with_log).unwrap();

    appliance.update(&["recover"]).code(0);
    // Where nothing is, no data partition is mounted.
    appliance
        .update(&["apply"])
        .refused(1, &["is the data partition mounted?"]);
    assert!(!away.exists(), "{}", appliance.tree());
    crate::common::create_dir(inside(&away.join("data"))).unwrap();
    appliance.update(&["recover"]).code(0);
    appliance.update(&["apply"]).code(0);
    appliance.update(&["status"]).code(0).says(&["1.1.0"]);
    assert!(!away.exists(), "{}", appliance.tree());
    for found in [
        "data/slots/a/release.json",
        "log/x/update.log",
        "run/boot.json",
    ] {
        assert!(
            inside(&away.join(found)).exists(),
            "{found}\n{}",
            appliance.tree()
        );
    }
}

/// What cannot be followed is an error that names the root and the path, for every command.
#[test]
fn links_that_lead_nowhere() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    fs::rename(appliance.data(), appliance.root.join("aside")).unwrap();
    symlink("/data", appliance.data()).unwrap();
    let before = seen(&appliance.root.join("aside"));
    for command in [
        &["recover"][..],
        &["apply"],
        &["status"],
        &["verify"],
        &["which", "qx-node"],
    ] {
        let words = ["/data", path(&appliance.root), "symbolic links"];
        appliance.update(command).refused(1, &words);
    }
    assert_eq!(seen(&appliance.root.join("aside")), before);
}

/// The updater's own directories are directories: nothing below them is elsewhere, nor written elsewhere.
#[test]
fn links_among_its_own() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let outside = outside(&appliance);
    let before = seen(&outside);
    for own in [
        "slots",
        "slots/a",
        "slots/b",
        "slots/b.next",
        "slots/a/bin",
        "slots/a/share",
        "slots/a/release.json",
        "update",
        "update/trust",
        "update/downloads",
        "update/seals",
        "update/log",
        "update/lock",
        "update/log/update.log",
        "update/data",
        "update/state.0",
        "copies",
    ] {
        let own = appliance.data().join(own);
        let aside = appliance.temp().join("aside");
        let there = fs::rename(&own, &aside).is_ok();
        let file = there && aside.is_file();
        symlink(
            if file {
                outside.join("file")
            } else {
                outside.clone()
            },
            &own,
        )
        .unwrap();
        for command in [
            &["recover"][..],
            &["apply"],
            &["status"],
            &["verify"],
            &["which", "qx-node"],
            &["reset"],
        ] {
            appliance.update(command).refused(
                10,
                &[path(&own), "symbolic link", "replace it with a directory"],
            );
        }
        assert_eq!(seen(&outside), before, "{}", own.display());
        fs::remove_file(&own).unwrap();
        if there {
            fs::rename(&aside, &own).unwrap();
        }
    }
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// What a plain directory in the place of a link has in it is looked for inside the root, too.
#[test]
fn which_stays_inside() {
    let appliance = Appliance::new();
    let outside = outside(&appliance);
    let bin = appliance.data().join("bin");
    fs::remove_file(&bin).unwrap();
    crate::common::create_dir(&bin).unwrap();
    symlink(outside.join("bin/qx-node"), bin.join("qx-node")).unwrap();
    let factory = path(&appliance.root.join("usr/bin/qx-node")).to_owned();
    let which = appliance.update(&["which", "qx-node"]);
    assert_eq!(which.code(0).stdout.trim(), factory);
    fs::remove_file(bin.join("qx-node")).unwrap();
    symlink("/usr/bin/qx-node", bin.join("qx-node")).unwrap();
    let which = appliance.update(&["which", "qx-node"]);
    assert_eq!(which.code(0).stdout.trim(), path(&bin.join("qx-node")));
}

/// An appliance whose data set is below directories that a service's user may change, at schema 1.
fn with_shared_data() -> (Appliance, PathBuf, PathBuf) {
    let appliance = Appliance::new();
    appliance.edit_config(|config| {
        config["data"] = json!([{"name": "db", "method": "files", "place": "/data/app/state/db"}]);
    });
    let app = appliance.data().join("app");
    crate::common::create_dir(app.join("state")).unwrap();
    fs::write(app.join("state/db"), "rows").unwrap();
    match rustix::process::getuid().is_root() {
        true => std::os::unix::fs::chown(&app, Some(12345), None).unwrap(),
        false => fs::set_permissions(&app, fs::Permissions::from_mode(0o777)).unwrap(),
    }
    let secret = appliance.root.join("etc/secret.d");
    crate::common::create_dir(&secret).unwrap();
    fs::write(secret.join("db"), "root only").unwrap();
    fs::set_permissions(secret.join("db"), fs::Permissions::from_mode(0o600)).unwrap();
    let recipe = appliance.recipe("1.1.0").edit(|json| {
        json["data"] = super::data::adopting(
            json!([{"name": "db", "accepts_from": 1, "accepts_to": 1, "schema_after": 1}]),
        );
    });
    appliance.release(&recipe);
    appliance.update(&["apply"]).code(0);
    (appliance, app, secret)
}

fn migrate(appliance: &Appliance, version: &str, script: &str) {
    let recipe = appliance
        .recipe(version)
        .migration(script, 20)
        .edit(|json| {
            json["data"] =
                json!([{"name": "db", "accepts_from": 2, "accepts_to": 2, "schema_after": 2}]);
            json["migrate"] =
                json!({"run": ["migrations/run", "{data:db}"], "timeout_s": 20, "touches": ["db"]});
        });
    appliance.release(&recipe);
}

/// A parent of the data that its user has made a link of is not gone through, neither forth nor back.
#[test]
fn a_planted_parent_of_the_data() {
    let (appliance, app, secret) = with_shared_data();
    let before = seen(&secret);
    // Its user turns the live place aside while a copy is migrated.
    let swap = format!(
        "cd {} && mv state state.old && ln -s {} state; echo migrated >$1",
        path(&app),
        path(&secret)
    );
    migrate(&appliance, "1.2.0", &swap);
    let apply = appliance.update(&["apply"]);
    apply.says(&["symbolic link", "could have made"]);
    assert_eq!(seen(&secret), before, "{}", appliance.tree());
    appliance.runs("1.1.0");
    let right = || {
        fs::remove_file(app.join("state")).unwrap();
        fs::rename(app.join("state.old"), app.join("state")).unwrap();
    };
    right();
    assert_eq!(text(&app.join("state/db")), "rows", "{}", appliance.tree());

    migrate(&appliance, "1.3.0", "echo migrated >$1");
    fs::rename(app.join("state"), app.join("state.old")).unwrap();
    symlink("/etc/secret.d", app.join("state")).unwrap();
    appliance.refuses(
        &["apply"],
        1,
        &["app/state", "symbolic link", "could have made"],
    );
    assert_eq!(seen(&secret), before, "{}", appliance.tree());
    right();
    appliance.update(&["apply"]).code(0);
    assert_eq!(text(&app.join("state/db")), "migrated\n");
}

/// Links that only root could lay are the appliance's own layout.
#[test]
fn links_of_roots_own_lead_to_the_data() {
    let (appliance, app, _) = with_shared_data();
    crate::common::create_dir(appliance.root.join("srv/state")).unwrap();
    fs::rename(app.join("state/db"), appliance.root.join("srv/state/db")).unwrap();
    fs::remove_dir_all(&app).unwrap();
    crate::common::create_dir(&app).unwrap();
    fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/srv/state", app.join("state")).unwrap();
    migrate(&appliance, "1.2.0", "echo migrated >$1");
    appliance.update(&["apply"]).code(0);
    assert_eq!(text(&appliance.root.join("srv/state/db")), "migrated\n");
}

/// A copy is given to whoever migrates, and with it no file of root's that has a name in it.
#[test]
fn a_hard_link_in_a_copy() {
    let (appliance, _, secret) = with_shared_data();
    let me = rustix::process::getuid().as_raw();
    // Only root can give anything to others.
    let uid = if me == 0 { 12345 } else { me };
    let passwd = format!("app:x:{uid}:{uid}::/:/bin/sh\n");
    fs::write(appliance.root.join("etc/passwd"), passwd).unwrap();
    let link = format!("ln {} {{copy}}", path(&secret.join("db")));
    appliance.edit_config(|config| {
        config["migration_user"] = json!("app");
        config["data"][0]["copy_in_use"] = json!(["sh", "-c", link]);
    });
    migrate(&appliance, "1.2.0", "echo migrated >$1");
    let before = seen(&secret);
    let recipe = appliance.recipe("1.3.0").migration("test -r $1", 20).edit(|json| {
        json["data"] = json!([{"name": "db", "accepts_from": 2, "accepts_to": 2, "schema_after": 2}]);
        json["migrate"] = json!({"run": ["migrations/run", "{data:db}"], "timeout_s": 20, "touches": ["db"], "rehearse": true});
    });
    appliance.release(&recipe);
    appliance.update(&["apply"]);
    assert_eq!(seen(&secret), before, "{}", appliance.tree());
}

/// Whatever lies where a temporary file is to be, nothing is written through it, and nothing waits for it.
#[test]
fn planted_temporary_names() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let recipe = appliance.recipe("1.1.0");
    recipe.write();
    let (dir, outside) = (appliance.temp().join("shared"), outside(&appliance));
    crate::common::create_dir(&dir).unwrap();
    let before = seen(&outside);
    let repo = path(&appliance.repo).to_owned();
    let (factory, bundle, key) = (
        dir.join("factory.json"),
        dir.join("x.bundle"),
        dir.join("k.pem"),
    );
    let recipe = recipe.file();
    let commands: [(&Path, &[&str]); 3] = [
        (
            &factory,
            &["factory", path(&recipe), "--out", path(&factory)],
        ),
        (
            &bundle,
            &[
                "bundle",
                "--version",
                "1.1.0",
                "--repo",
                &repo,
                "--out",
                path(&bundle),
            ],
        ),
        (&key, &["key", "new", path(&key)]),
    ];
    type Plant = fn(&Path, &Path);
    let plants: [Plant; 3] = [
        |planted, outside| symlink(outside.join("file"), planted).unwrap(),
        |planted, _| {
            assert!(
                Command::new("mkfifo")
                    .arg(planted)
                    .status()
                    .unwrap()
                    .success()
            )
        },
        |planted, _| crate::common::create_dir(planted.join("x")).unwrap(),
    ];
    for plant in plants {
        for (out, arguments) in commands {
            let planted = PathBuf::from(format!("{}.tmp~", out.display()));
            plant(&planted, &outside);
            appliance.publish(arguments).code(0);
            assert!(fs::symlink_metadata(out).unwrap().is_file());
            assert!(
                fs::symlink_metadata(&planted).is_err(),
                "{}",
                planted.display()
            );
            fs::remove_file(out).unwrap();
            let _ = fs::remove_file(out.with_extension("pub.pem"));
        }
    }
    assert_eq!(seen(&outside), before);
}

/// Where others may write, a key could be theirs by the time it is used.
#[test]
fn keys_where_others_may_write() {
    let appliance = Appliance::new();
    let dir = appliance.temp().join("shared");
    crate::common::create_dir(&dir).unwrap();
    let mode = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    let key = dir.join("k.pem");
    let repo = appliance.temp().join("repo");
    let init = [
        "init",
        "--repo",
        path(&repo),
        "--keys",
        path(&dir),
        "--product",
        "os",
    ];
    for arguments in [&["key", "new", path(&key)][..], &init] {
        mode(0o777);
        let refused = appliance.publish(arguments);
        refused.code(1);
        assert!(
            refused.stderr.contains("other users could replace the key"),
            "{}",
            refused.stderr
        );
        assert!(!repo.exists());
        mode(0o700);
        appliance.publish(arguments).code(0);
    }
    // What looks like an interrupted command's key, and is somebody else's.
    let planted = dir.join("snapshot-v2.pem");
    symlink(dir.join("snapshot.pem"), &planted).unwrap();
    let (repo, dir) = (path(&repo), path(&dir));
    let rotate = [
        "rotate", "snapshot", "--key", "new", "--repo", repo, "--keys", dir,
    ];
    let refused = appliance.publish(&rotate);
    assert_ne!(refused.code, 0, "{}", refused.stdout);
    assert!(
        refused.stderr.contains("snapshot-v2.pem"),
        "{}",
        refused.stderr
    );
}

/// The log is no way to have root write elsewhere, nor to keep it waiting.
#[test]
fn a_planted_log() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.edit_config(|config| config["log"] = json!({"path": "/logs/update.log"}));
    let log = appliance.root.join("logs/update.log");
    crate::common::create_dir(log.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    appliance.update(&["recover"]).code(0);
    appliance.publish_release("1.2.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}
