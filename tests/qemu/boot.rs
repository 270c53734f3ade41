//! What a boot makes of a slot, an image or a data partition that is not what it was.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::built;
use crate::disk::{Disk, Fault};
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// Intent: one flipped bit in the active slot is found at boot: the fallback runs, and when that has one too, the
/// factory set does. `status` names the file each time.
#[test]
fn a_flipped_bit_is_left_behind() {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1("flipped-bit-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("flipped-bit").options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);

    let file = flip_a_bit(&appliance);
    appliance.reboot();
    appliance.assert_runs(&v1);
    assert_told(&appliance, &file);

    let file = flip_a_bit(&appliance);
    appliance.reboot();
    appliance.assert_runs(&Release::named("factory"));
    assert_told(&appliance, &file);
    // And it is mended by the next update.
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
}

/// Intent: where the data partition has fs-verity, nothing can change a release, and what the medium damaged cannot be read, whoever
/// reads it; the fallback runs, and the next update mends it.
#[test]
fn what_the_medium_damaged_cannot_be_read() {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1("verity-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("verity").options(&["--repo", &repository.url]);
    let disk = appliance.disk();
    built::must_succeed(Command::new("tune2fs").args(["-O", "verity"]).arg(&disk));
    appliance.boot();
    let said = appliance.qx_update("apply", 0);
    assert!(said.contains("fs-verity protects"), "{said}");
    appliance.assert_runs(&v2);
    let file = format!("{}/bin/qx-console", appliance.ok("readlink /data/current"));
    appliance.ok(&format!("cat /data/{file} >/dev/null"));
    let written = appliance.run(&format!(
        "rc-service quantix-console stop; echo x >>/data/{file}"
    ));
    assert_ne!(written.code, 0, "{written:#?}");
    appliance.power_off();

    damage(&appliance, &file);
    appliance.boot();
    appliance.assert_runs(&v1);
    assert_told(&appliance, &file);
    let read = appliance.run(&format!("cat /data/{file} >/dev/null"));
    assert!(read.err.contains("Input/output error"), "{read:#?}");
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
}

/// Flips a bit of a file where it lies on the disk of an appliance that is off.
fn damage(appliance: &Appliance, file: &str) {
    let disk = appliance.disk();
    let at = block_of(&disk, file).start;
    let disk = File::options().read(true).write(true).open(disk).unwrap();
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at).unwrap();
    disk.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Where a block of a file lies on a disk.
fn block_of(disk: &Path, file: &str) -> Range<u64> {
    const BLOCK: u64 = 4096;
    let mut debugfs = Command::new("debugfs");
    let blocks = debugfs.args(["-R", &format!("blocks /{file}")]).arg(disk);
    let blocks = String::from_utf8(blocks.output().unwrap().stdout).unwrap();
    let block: u64 = blocks.split_whitespace().nth(900).unwrap().parse().unwrap();
    block * BLOCK..(block + 1) * BLOCK
}

/// Intent: an image that is newer than the slot is not shadowed by it.
#[test]
fn a_newer_image_is_not_shadowed() {
    let v2 = Release::named("v2");
    let factory = built::top().join("qemu/releases/v2");
    built::other_image("newer", &["--factory", factory.to_str().unwrap()]);
    let repository = Repository::with_v1("newer-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("newer");
    appliance.set_options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.assert_runs(&Release::named("v1"));
    appliance.power_off();
    appliance.set_options(&["--repo", &repository.url, "--root", "newer"]);
    appliance.boot();
    let status = appliance.settled();
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    appliance.assert_runs(&v2);
    appliance.qx_update("apply", 3);
}

/// Intent: without a data partition the factory set runs, and `status` says what is missing.
#[test]
fn no_data_partition() {
    let mut appliance = Appliance::new("no-data").options(&["--no-data"]);
    appliance.boot();
    appliance.assert_runs(&Release::named("factory"));
    let status = appliance.status();
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    assert!(!problems(&status).is_empty(), "{status:#}");
}

/// Intent: where the boot cannot find the data partition, or its recovery fails, is killed or hangs, the factory set runs, and the
/// reason is on the console and in `status`; the next boot has the release again. `qx.rescue` gives a shell before userland.
#[test]
fn a_boot_that_cannot_be_put_right_says_why() {
    let v1 = Release::named("v1");
    let mut appliance = Appliance::with_v1("boot-failed");
    let absent = "no data partition LABEL=ABSENT: the factory set runs";
    appliance.set_options(&["--append", "qx.data=LABEL=ABSENT qx.rescue"]);
    appliance.power_on();
    appliance.wait_console("qx.rescue: this is a shell");
    let console = appliance.console_text();
    assert!(console.contains(absent), "{console}");
    assert!(console.contains("(factory set)"), "{console}");
    // Nobody is there to end it.
    assert!(!console.contains("OpenRC"), "{console}");
    appliance.kill();

    appliance.set_options(&["--append", "qx.data=LABEL=ABSENT"]);
    appliance.boot();
    appliance.assert_runs(&Release::named("factory"));
    assert_says(&appliance, absent);
    appliance.power_off();

    for (name, program, why) in [
        ("fails", "exit 3", "the recovery failed (status 3)"),
        ("killed", "kill -9 $$", "the recovery failed (status 137)"),
        (
            "hangs",
            "while :; do :; done",
            "the recovery took longer than 3 seconds",
        ),
    ] {
        let initramfs = initramfs_with(&appliance, name, program);
        appliance.set_options(&["--initrd", &initramfs]);
        appliance.boot();
        appliance.assert_runs(&Release::named("factory"));
        assert_says(&appliance, why);
        let console = appliance.console_text();
        assert!(console.contains(why), "{name}: {console}");
        appliance.ok("test -d /run/data-aside/slots && ! test -e /data/bin");
        appliance.power_off();
    }
    appliance.set_options(&[]);
    appliance.boot();
    appliance.assert_runs(&v1);
    let status = appliance.status();
    assert_eq!(problems(&status), "", "{status:#}");
}

/// Here no record can be read, which would say that all is settled.
pub fn assert_says(appliance: &Appliance, why: &str) {
    let status = appliance.status();
    assert!(problems(&status).contains(why), "{status:#}");
    let for_people = appliance.run("qx-update status");
    assert!(for_people.out.contains(why), "{for_people:#?}");
}

/// An initramfs whose recovery is a script.
fn initramfs_with(appliance: &Appliance, name: &str, script: &str) -> String {
    let program = appliance.disk().with_file_name(format!("{name}.sh"));
    built::write_program(&program, format!("#!/bin/sh\n{script}\n"));
    initramfs_of(
        appliance,
        name,
        program.to_str().unwrap(),
        "RECOVER_TIMEOUT_S=3\n",
    )
}

/// An initramfs with this program, and this boot.conf.
fn initramfs_of(appliance: &Appliance, name: &str, program: &str, text: &str) -> String {
    let beside = |end: &str| appliance.disk().with_file_name(format!("{name}{end}"));
    let (conf, out) = (beside(".conf"), beside(".cpio"));
    std::fs::write(&conf, text).unwrap();
    let mut build = Command::new("sh");
    build.args([
        "-c",
        "exec initramfs/build --kernel qemu/build/debian/kernel/lib/modules/* \
         --busybox qemu/build/debian/root/bin/busybox --qx-update \"$0\" --conf \"$1\" --out \"$2\"",
    ]);
    built::must_succeed(build.arg(program).args([&conf, &out]));
    out.to_str().unwrap().to_owned()
}

/// Intent: a dying disk, which takes nothing any more, or answers with errors, or not at all, stops no boot and hides no release that
/// can still be read; the reason is on the console and in `status`. One that is well again takes the next update.
#[test]
fn a_dying_disk() {
    const MIB: u64 = 1 << 20;
    const FILE: &str = "slots/a/bin/qx-console";
    let [factory, v1, v2] = ["factory", "v1", "v2"].map(Release::named);
    let repository = Repository::with_v1("dying-disk-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("dying-disk");
    let whole = 0..std::fs::metadata(appliance.disk()).unwrap().len();
    let block = block_of(&appliance.disk(), FILE);
    let disk = Disk::serve(&appliance.disk());
    let built = built::program("qx-update-initramfs");
    let limits = "MOUNT_TIMEOUT_S=10\nRECOVER_TIMEOUT_S=20\n";
    let hasty = initramfs_of(&appliance, "hasty", built.to_str().unwrap(), limits);
    let cases = [
        (Fault::WritesFail, "", "ead-only", &v1),
        (
            Fault::ReadsFail(whole.clone()),
            "",
            "cannot mount the data partition /dev/vdb",
            &factory,
        ),
        (
            // The kernel itself looks at both ends for partitions, before anything else begins.
            Fault::ReadsHang(MIB..whole.end - MIB),
            &*hasty,
            "the data partition /dev/vdb was not mounted within 10 seconds",
            &factory,
        ),
        (
            Fault::ReadsHang(block.clone()),
            &*hasty,
            "the recovery took longer than 20 seconds",
            &factory,
        ),
        (Fault::ReadsFail(block), "", FILE, &factory),
    ];
    let options = ["--repo", &repository.url, "--data", &disk.url];
    for (fault, initramfs, why, runs) in cases {
        eprintln!("dying-disk: {fault:?}");
        disk.has(fault);
        appliance.set_options(&options);
        if !initramfs.is_empty() {
            appliance.set_options(&[&options[..], &["--initrd", initramfs]].concat());
        }
        appliance.boot();
        appliance.assert_runs(runs);
        assert_says(&appliance, why);
        // It may not be able to end by itself.
        appliance.kill();
    }
    disk.has(Fault::None);
    appliance.set_options(&options);
    appliance.boot();
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
}

/// Intent: a data partition that cannot be written keeps a release that verifies; one that was damaged is hidden, and
/// the factory set runs. `status` says so, and nothing can be installed.
#[test]
fn a_read_only_data_partition() {
    let mut appliance = Appliance::with_v1("read-only");
    appliance.set_options(&["--ro-data"]);
    appliance.boot();
    appliance.assert_runs(&Release::named("v1"));
    let status = appliance.status();
    assert!(problems(&status).contains("ead-only"), "{status:#}");
    appliance.qx_update("apply", 1);
    appliance.kill();

    appliance.set_options(&[]);
    appliance.boot();
    let file = flip_a_bit(&appliance);
    appliance.power_off();
    appliance.set_options(&["--ro-data"]);
    appliance.boot();
    appliance.assert_runs(&Release::named("factory"));
    let status = appliance.status();
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    assert!(problems(&status).contains("ead-only"), "{status:#}");
    assert!(problems(&status).contains(&file), "{status:#}");
}

/// Intent: a full data partition stops no boot: empty but for what fills it, the factory set runs; with a release, that
/// does. An update says that there is no space, and changes nothing.
#[test]
fn a_full_data_partition() {
    let v2 = Release::named("v2");
    let repository = Repository::with_v1("full-repository", &[&v2]);
    let fill =
        "dd if=/dev/zero of=/data/filler bs=1M; dd if=/dev/zero of=/data/filler2 bs=512; sync";

    let mut appliance = Appliance::with_v1("full").options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.run(fill);
    appliance.reboot();
    appliance.assert_runs(&Release::named("v1"));
    appliance.qx_update("apply", 7);
    appliance.assert_runs(&Release::named("v1"));
    appliance.ok("rm /data/filler /data/filler2");
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
    drop(appliance);

    let mut appliance = Appliance::new("full-empty");
    // The first boot with this partition already finds it full.
    appliance.set_options(&["--repo", &repository.url, "--append", "qx.data=none"]);
    appliance.boot();
    appliance.ok("mount -t ext4 /dev/vdb /data");
    appliance.run(fill);
    appliance.power_off();
    appliance.set_options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.assert_runs(&Release::named("factory"));
    let status = appliance.status();
    assert!(problems(&status).contains("space"), "{status:#}");
    appliance.qx_update("apply", 7);
    appliance.assert_runs(&Release::named("factory"));
}

/// Intent: with an unreadable state a slot that verifies goes on running; one that does not, does not. `status` says
/// both.
#[test]
fn an_unreadable_state() {
    let mut appliance = Appliance::with_v1("unreadable");
    appliance.boot();
    let spoil = "for f in /data/update/state.*; do echo nonsense >$f; done; sync";
    appliance.ok(spoil);
    appliance.reboot();
    appliance.assert_runs(&Release::named("v1"));
    let status = appliance.settled();
    assert!(problems(&status).contains("unreadable"), "{status:#}");

    appliance.ok(spoil);
    flip_a_bit(&appliance);
    appliance.reboot();
    appliance.assert_runs(&Release::named("factory"));
    let status = appliance.settled();
    assert_eq!(status["running"]["set"], "factory", "{status:#}");
    assert!(problems(&status).contains("unreadable"), "{status:#}");
    assert_eq!(status["needs_person"], true, "{status:#}");
    appliance.qx_update("reset", 0);
    let status = appliance.status();
    assert_eq!(status["needs_person"], false, "{status:#}");
}

/// Flips one bit in the middle of a program of the active slot, and says in which file.
pub fn flip_a_bit(appliance: &Appliance) -> String {
    let slot = appliance.ok("readlink /data/current");
    let file = format!("{slot}/bin/qx-console");
    // A running file cannot be opened for writing.
    appliance.ok(&format!(
        r#"rc-service quantix-console stop >/dev/null 2>&1
        at=4000000
        byte=$(dd if=/data/{file} bs=1 skip=$at count=1 2>/dev/null | od -An -tu1)
        printf "\\$(printf %o $((byte ^ 1)))" | dd of=/data/{file} bs=1 seek=$at conv=notrunc 2>/dev/null
        sync"#
    ));
    file
}

/// `status` names the damaged file.
pub fn assert_told(appliance: &Appliance, file: &str) {
    let status = appliance.settled();
    assert!(problems(&status).contains(file), "{status:#}");
    let for_people = appliance.qx_update("status", 0);
    assert!(for_people.contains(file), "{for_people}");
}

fn problems(status: &Value) -> String {
    let problems = status["problems"].as_array().unwrap();
    let lines: Vec<&str> = problems.iter().filter_map(Value::as_str).collect();
    lines.join("\n")
}
