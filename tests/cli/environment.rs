//! What may be wrong with the appliance itself: its configuration, its trust root, its data partition, its records.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::server::{Answer, Server};
use crate::common::{Appliance, path, text};

/// A field that is not known, or of the wrong type, or that is missing, is named with its place.
#[test]
fn configuration_fields() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let config = appliance.config();
    let good = text(&config);
    type Edit = fn(&mut Value);
    let cases: [(&[&str], Edit); 11] = [
        (&["chanel"], |c| c["chanel"] = json!("stable")),
        (&["`retry`", "`retries`", "line"], |c| {
            c["limits"]["retry"] = json!(1)
        }),
        (&["`restart`", "line"], |c| {
            c["services"]["restart"] = json!([])
        }),
        (&["`size`", "line"], |c| c["log"] = json!({"size": 1})),
        (&["product"], |c| {
            c.as_object_mut().unwrap().remove("product");
        }),
        (&["sources"], |c| {
            c.as_object_mut().unwrap().remove("sources");
        }),
        (&["stop"], |c| {
            c["services"].as_object_mut().unwrap().remove("stop");
        }),
        (&["format"], |c| c["format"] = json!(2)),
        (&["many", "line"], |c| {
            c["limits"]["retries"] = json!("many")
        }),
        (&["systemd"], |c| {
            c["services"]["manager"] = json!("systemd")
        }),
        (&["sources"], |c| c["sources"] = json!([])),
    ];
    for (words, edit) in cases {
        fs::write(&config, &good).unwrap();
        appliance.edit_config(edit);
        for command in ["apply", "check", "rollback"] {
            appliance.refuses(
                &[command],
                2,
                &[&["etc/qx-update/config.json"], words].concat(),
            );
        }
        // The boot goes on without it.
        appliance.update(&["recover"]).code(0);
    }
    fs::write(&config, "{").unwrap();
    appliance.refuses(&["apply"], 2, &["etc/qx-update/config.json", "line 1"]);
    fs::remove_file(&config).unwrap();
    appliance.refuses(
        &["apply"],
        2,
        &["etc/qx-update/config.json", "it does not exist"],
    );
    // Another file is taken when it is named.
    fs::write(appliance.root.join("etc/other.json"), good).unwrap();
    appliance
        .update(&["--config", "/etc/other.json", "apply"])
        .code(0);
    appliance.runs("1.1.0");
}

/// Without the root of trust, or with something else in its place, nothing is installed.
#[test]
fn trust_root() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let file = appliance.root.join("etc/qx-update/root.json");
    let good = fs::read(&file).unwrap();
    for garbage in [
        "",
        "{}",
        "null",
        "{\"signed\": {}, \"signatures\": []}",
        "\u{0}\u{1}",
    ] {
        fs::write(&file, garbage).unwrap();
        let before = appliance.picture();
        let apply = appliance.update(&["apply"]);
        assert!(
            matches!(apply.code, 2 | 5),
            "{}: {}",
            apply.code,
            apply.stderr
        );
        apply.error_says(&["etc/qx-update/root.json"]);
        before.unchanged(&appliance);
    }
    fs::remove_file(&file).unwrap();
    appliance.refuses(
        &["apply"],
        2,
        &["etc/qx-update/root.json", "it does not exist"],
    );
    fs::write(&file, good).unwrap();
    appliance.update(&["apply"]).code(0);
}

/// A data partition that others may write to could be made to hold anything.
#[test]
fn a_data_directory_of_somebody_else() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let data = appliance.data();
    for dir in [data.clone(), data.join("slots"), data.join("update")] {
        let mode = fs::metadata(&dir).unwrap().mode();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let apply = appliance.update(&["apply"]);
        apply.error_says(&[path(&dir)]);
        assert!(matches!(apply.code, 1 | 2 | 10), "{}", apply.code);
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        if rustix::process::getuid().is_root() {
            std::os::unix::fs::chown(&dir, Some(12345), None).unwrap();
            let apply = appliance.update(&["apply"]);
            apply.error_says(&[path(&dir)]);
            assert!(matches!(apply.code, 1 | 2 | 10), "{}", apply.code);
            std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
        }
    }
    appliance.runs("1.1.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// A plain directory where the fixed link belongs is somebody's, and is not removed.
#[test]
fn a_plain_bin_directory() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let bin = appliance.data().join("bin");
    fs::remove_file(&bin).unwrap();
    crate::common::create_dir(&bin).unwrap();
    fs::write(bin.join("qx-node"), "theirs").unwrap();
    appliance.update(&["recover"]).code(0);
    let before = appliance.picture();
    let apply = appliance.update(&["apply"]);
    apply.error_says(&[path(&bin)]);
    assert!(matches!(apply.code, 1 | 10), "{}", apply.code);
    before.unchanged(&appliance);
    let status = appliance.status();
    assert!(
        status["problems"].to_string().contains(path(&bin)),
        "{status:#}"
    );

    fs::remove_dir_all(&bin).unwrap();
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
}

/// What was being written when a cut came is in nobody's way, and gone after the next boot: a link among the slots, records, notes.
#[test]
fn what_a_cut_left_half_written() {
    for first in [&["recover", "--stage", "link"][..], &["apply"], &["check"]] {
        let appliance = Appliance::new();
        appliance.install("1.1.0");
        appliance.publish_release("1.2.0");
        let data = appliance.data();
        let links = [
            "current.tmp~",
            "bin.tmp~",
            "slots/one.tmp~",
            "slots/other.tmp~",
        ];
        let files = [
            "update/state.1.tmp~",
            "update/watched.json.tmp~",
            "update/seals/x.tmp~",
        ];
        for link in links {
            symlink("slots/b", data.join(link)).unwrap();
        }
        for file in files {
            fs::write(data.join(file), "half").unwrap();
        }
        // Of somebody else.
        fs::write(data.join("mine.tmp~"), "").unwrap();
        let code = appliance.update(first).code;
        assert!([0, 4].contains(&code), "{first:?}: {code}");
        appliance.update(&["recover", "--stage", "link"]).code(0);
        for gone in links.iter().chain(&files) {
            let left = fs::symlink_metadata(data.join(gone)).is_ok();
            assert!(!left, "{first:?}: {gone}");
        }
        assert!(data.join("mine.tmp~").exists());
        appliance.update(&["status"]).code(0);
    }
}

/// The records that were lost or damaged are made anew from what lies in the slots; `status` says so meanwhile.
#[test]
fn damaged_records() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("gone", |file| fs::remove_file(file).unwrap()),
        ("empty", |file| fs::write(file, "").unwrap()),
        ("truncated", |file| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("garbage", |file| fs::write(file, [0xff; 4096]).unwrap()),
    ];
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let mut version = 1;
    for (what, damage) in damages {
        let copies = ["state.0", "state.1"].map(|name| appliance.data().join("update").join(name));
        for chosen in [&copies[..1], &copies[1..], &copies[..]] {
            eprintln!("{what}: {chosen:?}");
            let files = appliance.picture();
            for file in chosen.iter().filter(|file| file.exists()) {
                damage(file);
            }
            let running = format!("1.{version}.0");
            let status = appliance.status();
            assert_eq!(status["running"]["version"], running, "{status:#}");
            if chosen.len() == 2 {
                assert_ne!(status["problems"], json!([]), "{status:#}");
            }
            appliance.update(&["recover"]).code(0);
            files.unchanged(&appliance);
            assert_eq!(appliance.status()["running"]["version"], running);
        }
        version += 1;
        appliance.install(&format!("1.{version}.0"));
    }
}

/// A record of a format that a later version writes is not guessed at.
#[test]
fn records_of_the_future() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let before = appliance.picture();
    for name in ["state.0", "state.1"] {
        let file = appliance.data().join("update").join(name);
        let lines = text(&file).replacen("\"format\":1", "\"format\":2", 1);
        fs::write(&file, lines).unwrap();
    }
    appliance.update(&["recover"]).code(0);
    before.unchanged(&appliance);
    appliance.install("1.2.0");
}

/// Trust metadata and downloads that were damaged on the appliance are fetched anew.
#[test]
fn damaged_caches() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let mut version = 1;
    for name in ["timestamp.json", "snapshot.json", "targets.json"] {
        for garbage in ["", "{}", "null", "\u{1}"] {
            fs::write(appliance.data().join("update/trust").join(name), garbage).unwrap();
            let apply = appliance.update(&["apply"]);
            apply.code(3);
        }
        version += 1;
        fs::write(appliance.data().join("update/trust").join(name), "garbage").unwrap();
        appliance.install(&format!("1.{version}.0"));
    }
    // What failed here before is not known any more: nothing is tried until a person says so.
    fs::write(appliance.data().join("update/quarantine"), "garbage").unwrap();
    appliance.publish_release("1.9.0");
    appliance.refuses(&["apply"], 1, &["update/quarantine"]);
    appliance
        .update(&["status"])
        .code(0)
        .says(&["update/quarantine"]);
    appliance.update(&["reset"]).code(0);
    appliance.install("1.9.1");
    fs::remove_dir_all(appliance.data().join("update/trust")).unwrap();
    crate::common::create_dir(appliance.data().join("update/downloads")).unwrap();
    fs::write(appliance.data().join("update/downloads/garbage"), "garbage").unwrap();
    appliance.update(&["recover"]).code(0);
    appliance.install("1.9.2");
}

/// A slot whose files changed does not verify, and is left: at the boot, for the fallback.
#[test]
fn a_damaged_slot_is_left_behind() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.install("1.2.0");
    appliance.services("stop");
    let program = appliance.data().join(appliance.link()).join("bin/qx-node");
    let mut bytes = fs::read(&program).unwrap();
    bytes[100] ^= 1;
    fs::write(&program, bytes).unwrap();
    appliance.update(&["recover"]).code(0);
    appliance.services("start");
    appliance.runs("1.1.0");
    let status = appliance.status();
    assert_eq!(status["running"]["version"], "1.1.0");
    assert!(status.to_string().contains("1.2.0"), "{status:#}");
    // Both slots damaged: the factory set.
    appliance.services("stop");
    fs::write(
        appliance.data().join(appliance.link()).join("release.json"),
        "{}",
    )
    .unwrap();
    appliance.update(&["recover"]).code(0);
    appliance.services("start");
    assert_eq!(appliance.link(), "");
    appliance.runs("1.0.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// A slot that agrees with itself and has no seal: somebody put it together, and no signature led to it.
#[test]
fn a_slot_without_its_seal_is_left_behind() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.services("stop");
    let manifest = appliance.data().join(appliance.link()).join("release.json");
    let text = fs::read_to_string(&manifest).unwrap();
    // The same files under another manifest: their digests are right.
    fs::write(&manifest, text.replace("\"1.1.0\"", "\"9.1.0\"")).unwrap();
    appliance.update(&["recover"]).code(0);
    assert_eq!(appliance.link(), "");
    let status = appliance.status();
    assert!(status.to_string().contains("has no seal"), "{status:#}");
    appliance.services("start");
    appliance.runs("1.0.0");
}

/// A data partition that is not there, or is a file: the factory set is used, and the boot goes on.
#[test]
fn no_data_partition() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    fs::remove_dir_all(appliance.data()).unwrap();
    for _ in 0..2 {
        appliance.update(&["recover"]).code(0);
        let status = appliance.update(&["status"]);
        status.code(0).says(&["1.0.0", "factory"]);
        let _ = fs::remove_dir_all(appliance.data());
        let _ = fs::remove_file(appliance.data());
        fs::write(appliance.data(), "a file").unwrap();
    }
    let apply = appliance.update(&["apply"]);
    assert_eq!(apply.code, 1, "{}", apply.stderr);
    apply.error_says(&[path(&appliance.data())]);
    appliance.runs("1.0.0");
}

/// A small data partition, mounted for as long as this lives.
struct Small(PathBuf);

impl Small {
    /// None for a user who may not mount.
    fn mount(appliance: &Appliance, options: &str) -> Option<Small> {
        if !rustix::process::getuid().is_root() {
            eprintln!("only root can mount: left out");
            return None;
        }
        let data = appliance.data();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "qx-test"])
            .arg(&data)
            .status()
            .unwrap();
        assert!(status.success(), "mount -o {options}: {status}");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Small(data))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Too little space, in bytes and in files: said before anything is written.
#[test]
fn no_space_before_the_start() {
    for (options, word) in [("size=1m", "bytes"), ("size=100m,nr_inodes=40", "files")] {
        let appliance = Appliance::new();
        let recipe = appliance.recipe("1.1.0");
        fs::write(recipe.dir.join("www/large"), vec![b'x'; 2 << 20]).unwrap();
        for number in 0..30 {
            fs::write(recipe.dir.join(format!("www/{number}")), "x").unwrap();
        }
        appliance.release(&recipe);
        let Some(_small) = Small::mount(&appliance, options) else {
            return;
        };
        appliance.update(&["recover"]).code(0);
        let server = Server::start(&appliance.repo);
        appliance.source(&server.url);
        appliance.refuses(&["apply"], 7, &["data", word]);
        assert_eq!(server.artifacts(), Vec::<String>::new());
        appliance.refuses(&["apply", "--dry-run"], 7, &["data"]);
        appliance.update(&["status"]).code(0).says(&["1.0.0"]);
        appliance.runs("1.0.0");
    }
}

/// Somebody else fills the disk in the middle of the download.
#[test]
fn no_space_in_the_middle() {
    let appliance = Appliance::new();
    let recipe = appliance.recipe("1.1.0");
    fs::write(recipe.dir.join("www/large"), vec![b'x'; 8 << 20]).unwrap();
    appliance.release(&recipe);
    let Some(_small) = Small::mount(&appliance, "size=32m") else {
        return;
    };
    appliance.update(&["recover"]).code(0);
    let filler = appliance.data().join("filler");
    let fills = filler.clone();
    let server = Server::answering(&appliance.repo, move |request| {
        if request.path.contains("www-") {
            // As much as there is.
            let mut file = fs::File::create(&fills).unwrap();
            while std::io::Write::write_all(&mut file, &[1; 65_536]).is_ok() {}
        }
        Answer::Well
    });
    appliance.source(&server.url);
    let apply = appliance.update(&["apply"]);
    if apply.code == 0 {
        // What was reserved before the first byte could not be taken away.
        appliance.runs("1.1.0");
        return;
    }
    apply.refused(7, &["data"]);
    appliance.runs("1.0.0");
    appliance.update(&["status"]).code(0).says(&["1.0.0"]);
    appliance.update(&["recover"]).code(0);
    fs::remove_file(filler).unwrap();
    let server = Server::start(&appliance.repo);
    appliance.source(&server.url);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
}

/// A data partition that cannot be written to keeps running what it has.
#[test]
fn a_read_only_data_partition() {
    let appliance = Appliance::new();
    let Some(_small) = Small::mount(&appliance, "size=32m") else {
        return;
    };
    appliance.update(&["recover"]).code(0);
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let remount = |how: &str| {
        let data = appliance.data();
        let status = Command::new("mount")
            .args(["-o", how])
            .arg(&data)
            .status()
            .unwrap();
        assert!(status.success(), "mount -o {how}: {status}");
    };
    remount("remount,ro");
    appliance.update(&["recover"]).code(0);
    appliance.runs("1.1.0");
    let status = appliance.status();
    assert_eq!(status["running"]["version"], "1.1.0");
    assert!(
        status["problems"].to_string().contains("Read-only"),
        "{status:#}"
    );
    appliance.refuses(&["apply"], 1, &["data"]);
    remount("remount,rw");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}
