//! Boots that crash: the kernel's last words survive a restart in memory, and the next boot reads them.

use std::process::Command;
use std::time::Duration;

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// A part of memory that nobody else uses, and that a restart leaves alone.
const MEMORY: &str =
    "memmap=1M$0x10000000 ramoops.mem_address=0x10000000 ramoops.mem_size=0x100000";

/// An image in which the kernel panics in each boot with slot b, while the data partition says so.
fn image_that_panics() {
    let overlay = built::directory("panics-overlay");
    let [scripts, level] = ["etc/init.d", "etc/runlevels/boot"].map(|dir| overlay.join(dir));
    for dir in [&scripts, &level] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let script = "#!/sbin/openrc-run\nstart() {\n\t[ -e /data/panics ] && [ \"$(readlink /data/current)\" = slots/b ] \
                  && echo c >/proc/sysrq-trigger\n\treturn 0\n}\n";
    let file = scripts.join("panics");
    built::write_program(&file, script);
    std::os::unix::fs::symlink("/etc/init.d/panics", level.join("panics")).unwrap();
    built::other_image("panics", &["--overlay", overlay.to_str().unwrap()]);
}

/// An initramfs with these modules besides, and this in its `boot.conf`.
fn initramfs(name: &str, modules: &str, conf: &str) -> String {
    let place = built::directory(name);
    let (with, out) = (place.join("boot.conf"), place.join("initramfs.cpio"));
    std::fs::write(&with, conf).unwrap();
    let mut build = Command::new("sh");
    build.args([
        "-c",
        "exec initramfs/build --kernel qemu/build/debian/kernel/lib/modules/* \
         --busybox qemu/build/debian/root/bin/busybox --qx-update \"$0\" --conf \"$1\" --out \"$2\" \
         --modules \"virtio_pci virtio_blk squashfs overlay virtio_net $3\"",
    ]);
    build.arg(built::program("qx-update-initramfs"));
    built::must_succeed(build.args([&with, &out]).arg(modules));
    out.to_str().unwrap().to_owned()
}

/// Intent: a confirmed release with which the kernel panics in three boots is left by the fourth, with nobody there, and `status` has the
/// kernel's own words. Three power cuts while somebody waits are no such thing.
#[test]
fn a_confirmed_release_that_panics_is_left() {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1("panics-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("panics");
    image_that_panics();
    let initrd = initramfs("panics-initramfs", "ramoops", "");
    appliance.set_options(&[
        "--repo",
        &repository.url,
        "--root",
        "panics",
        "--initrd",
        &initrd,
        "--append",
        MEMORY,
    ]);
    appliance.boot();
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
    appliance.power_off();
    for _ in 0..3 {
        appliance.cut_the_boot(Duration::from_secs(6));
    }
    appliance.boot();
    appliance.assert_runs(&v2);
    let status = appliance.status();
    assert_eq!(status["refused"][0], serde_json::Value::Null, "{status:#}");
    appliance.ok("touch /data/panics && sync");
    appliance.power_off();

    // Three panics, and the boot that comes up.
    appliance.boot();
    appliance.assert_runs(&v1);
    let status = appliance.settled();
    let problems = status["problems"].to_string();
    assert!(
        problems.contains("Kernel panic - not syncing: sysrq triggered crash"),
        "{problems}"
    );
    assert_eq!(status["refused"][0]["version"], v2.version, "{status:#}");
    assert_eq!(status["refused"][0]["kind"], "held", "{status:#}");
    let boots = status["boots"].as_array().unwrap();
    let panics = boots
        .iter()
        .filter(|boot| boot["crash"]["kind"] == "panic")
        .count();
    assert_eq!(panics, 3, "{status:#}");
}

/// Intent: with a watchdog that `confirm` alone kicks, a trial that hangs every boot ends by itself in the previous release: nobody
/// switches the machine off and on. A trial that is proved, and a release that is confirmed, are not reset.
#[test]
fn a_watchdog_ends_the_boots_that_hang() {
    let (v1, hang) = (Release::named("v1"), Release::named("hang"));
    let repository = Repository::with_v1("watchdog-repository", &[&hang]);
    let mut appliance = Appliance::with_v1("watchdog");
    let overlay = built::directory("watchdog-overlay");
    let etc = overlay.join("etc/qx-update");
    std::fs::create_dir_all(&etc).unwrap();
    let config = built::top().join("qemu/root/etc/qx-update/config.json");
    let config = std::fs::read_to_string(config).unwrap();
    let watched = config.replacen('{', "{\n  \"watchdog\": \"/dev/watchdog\",", 1);
    std::fs::write(etc.join("config.json"), watched).unwrap();
    built::other_image("watched", &["--overlay", overlay.to_str().unwrap()]);
    let initrd = initramfs("watchdog-initramfs", "softdog", "WATCHDOG=/dev/watchdog\n");
    // Only the boots that hang are armed, so it may be short.
    let append = "softdog.soft_margin=20";
    appliance.set_options(&[
        "--repo",
        &repository.url,
        "--root",
        "watched",
        "--initrd",
        &initrd,
        "--append",
        append,
    ]);
    appliance.boot();
    let _cut = appliance.spawn("qx-update apply");
    appliance.wait_for("the trial", |a| (a.phase() == "trial").then_some(()));
    appliance.kill();
    // Nobody touches it from here on.
    appliance.boot();
    let console = appliance.console_text();
    assert_eq!(
        console.matches("/dev/watchdog is armed").count(),
        3,
        "{console}"
    );
    let status = appliance.settled();
    appliance.assert_runs(&v1);
    assert_eq!(status["last"]["result"], "back_to_previous", "{status:#}");
    let reason = status["refused"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("3 boots"), "{reason}");
    appliance.qx_update("apply", 5);
}
