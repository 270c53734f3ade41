//! What a person at the console, or with a stick, asks for before anything of the system runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// A stick with this label, on which the bundles of a repository lie, each as `VERSION.tar`.
fn stick(
    appliance: &Appliance,
    kind: &str,
    label: &str,
    repository: &Repository,
    bundles: &[&Release],
) -> PathBuf {
    let image = appliance.disk().with_file_name(format!("{label}.img"));
    std::fs::File::create(&image)
        .unwrap()
        .set_len(256 << 20)
        .unwrap();
    match kind {
        "vfat" => built::must_succeed(Command::new("mkfs.vfat").args(["-n", label]).arg(&image)),
        _ => built::must_succeed(Command::new("mkfs.exfat").args(["-L", label]).arg(&image)),
    }
    for release in bundles {
        let bundle = appliance
            .disk()
            .with_file_name(format!("{}.tar", release.version));
        repository.bundle(&release.version, &bundle);
        let mut copy = Command::new("mcopy");
        built::must_succeed(copy.arg("-i").arg(&image).arg(&bundle).arg("::"));
        std::fs::remove_file(bundle).unwrap();
    }
    image
}

/// The receipts on a vfat stick, oldest first.
fn receipts(image: &Path) -> Vec<Value> {
    let into = image.with_extension("receipts");
    let _ = std::fs::remove_dir_all(&into);
    std::fs::create_dir(&into).unwrap();
    let mut copy = Command::new("mcopy");
    built::must_succeed(
        copy.arg("-i")
            .arg(image)
            .arg("::receipts/*.json")
            .arg(&into),
    );
    let files = std::fs::read_dir(&into).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let read = |file: &PathBuf| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    files.iter().map(read).collect()
}

/// Intent: `qx.rollback` on the kernel command line goes back from a confirmed release before any service starts, and once only,
/// however long it stays there. `qx.factory` is for the boot that has it.
#[test]
fn the_console_goes_back() {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1("rollback-repository", &[&v2]);
    let source = ["--repo", &repository.url];
    let mut appliance = Appliance::with_v1("console-rollback").options(&source);
    appliance.boot();
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
    appliance.power_off();
    appliance.set_options(&[&source[..], &["--append", "qx.rollback"]].concat());
    for _ in 0..2 {
        appliance.boot();
        appliance.assert_runs(&v1);
        let status = appliance.settled();
        assert_eq!(status["last"]["kind"], "rollback", "{status:#}");
        assert_eq!(status["last"]["result"], "done", "{status:#}");
        assert_eq!(status["refused"][0]["kind"], "held", "{status:#}");
        appliance.power_off();
    }
    // For one boot, and nothing is deleted.
    appliance.set_options(&[&source[..], &["--append", "qx.factory"]].concat());
    appliance.boot();
    appliance.assert_runs(&Release::named("factory"));
    appliance.power_off();
    appliance.set_options(&source);
    appliance.boot();
    appliance.assert_runs(&v1);
}

/// Intent: `qx.apply=` installs a bundle from a stick before userland, with `/data` empty; the services start from it, `confirm` proves it,
/// and the receipt on the stick says so. The running system takes the next one from an exFAT stick.
#[test]
fn the_console_installs_from_a_stick() {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1("stick-repository", &[&v2]);
    let mut appliance = Appliance::new("console-stick");
    let fat = stick(&appliance, "vfat", "QX-STICK", &repository, &[&v1, &v2]);
    let exfat = stick(&appliance, "exfat", "QX-LARGE", &repository, &[]);
    let sticks = [
        "--stick",
        fat.to_str().unwrap(),
        "--stick",
        exfat.to_str().unwrap(),
    ];
    let word = format!("qx.apply=LABEL=QX-STICK:/{}.tar", v1.version);
    appliance.set_options(&[&sticks[..], &["--append", &word]].concat());
    appliance.boot();
    appliance.assert_runs(&v1);
    let status = appliance.settled();
    assert_eq!(status["last"]["kind"], "install", "{status:#}");
    assert_eq!(status["last"]["from"]["set"], "factory", "{status:#}");
    // Twice on the kernel's own account: in the initramfs, and by `confirm`.
    appliance.ok("! grep -q media /proc/mounts");

    let large = format!("LABEL=QX-LARGE:/below/{}.tar", v2.version);
    appliance.ok(&format!(
        "mkdir /tmp/a /tmp/b && mount -t vfat -o ro /dev/vdc /tmp/a && mount -t exfat /dev/vdd /tmp/b && mkdir /tmp/b/below \
         && cp /tmp/a/{}.tar /tmp/b/below && umount /tmp/a && umount /tmp/b",
        v2.version
    ));
    appliance.qx_update(&format!("apply --from {large}"), 0);
    appliance.assert_runs(&v2);
    let found = appliance
        .ok("mount -t exfat -o ro /dev/vdd /tmp/b && cat /tmp/b/receipts/*.json && umount /tmp/b");
    assert!(found.contains(&v2.version), "{found}");
    appliance.power_off();
    let receipts = receipts(&fat);
    let phases: Vec<&Value> = receipts.iter().map(|r| &r["status"]["phase"]).collect();
    assert_eq!(phases, ["trial", "idle"], "{receipts:#?}");
    let last = &receipts[1]["status"];
    assert_eq!(last["running"]["version"], v1.version, "{last:#}");
    assert_eq!(last["last"]["result"], "done", "{last:#}");
}
