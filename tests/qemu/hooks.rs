//! The recovery as a hook in an initramfs that a distribution's own tool made: the same boots as with ours.

use std::process::Command;

use crate::boot::{assert_says, assert_told, flip_a_bit};
use crate::built;
use crate::release::Release;
use crate::vm::Appliance;

/// What an initramfs of a distribution leaves to the image: its own does it for the appliance.
const INIT: &str = r#"#!/bin/sh
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
(cd /var && find . -type d -o -type l | cpio -o -H newc) >/tmp/var 2>/dev/null
mount -t tmpfs -o nosuid,nodev tmpfs /var
(cd /var && cpio -i -d -u) </tmp/var 2>/dev/null
mkdir -p /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
exec /sbin/init
"#;

/// Intent: with initramfs-tools' initramfs and the hook in it, an appliance runs its release, leaves a damaged one, and comes up with
/// what its image ships where the data partition is not found.
#[test]
fn initramfs_tools() {
    recovers_with("initramfs-tools");
}

/// Intent: the same with dracut's.
#[test]
fn dracut() {
    recovers_with("dracut");
}

fn recovers_with(tool: &str) {
    make_image();
    let factory = Release::named("factory");
    let mut appliance = Appliance::with_v1(&format!("hook-{tool}"));
    let initramfs = appliance.disk().with_file_name("initramfs");
    let mut build = Command::new(built::top().join("qemu/distribution"));
    built::must_succeed(build.arg(tool).arg(&initramfs));
    let boots = |appliance: &mut Appliance, label: &str| {
        let words = format!(
            "root=/dev/vda rootfstype=squashfs ro init=/sbin/init-with-memory qx.data=LABEL={label}"
        );
        let initramfs = initramfs.to_str().unwrap();
        appliance.set_options(&["--root", "hooks", "--initrd", initramfs, "--append", &words]);
        appliance.boot();
    };
    boots(&mut appliance, "QX-DATA");
    appliance.assert_runs(&Release::named("v1"));

    let file = flip_a_bit(&appliance);
    appliance.power_off();
    boots(&mut appliance, "QX-DATA");
    appliance.assert_runs(&factory);
    assert_told(&appliance, &file);
    appliance.power_off();

    boots(&mut appliance, "ABSENT");
    appliance.assert_runs(&factory);
    assert_says(
        &appliance,
        "no data partition LABEL=ABSENT: the factory set runs",
    );
}

/// The appliance's image, with that in it.
fn make_image() {
    static MADE: std::sync::Once = std::sync::Once::new();
    MADE.call_once(|| {
        let overlay = built::directory("hooks-overlay");
        let init = overlay.join("sbin/init-with-memory");
        built::write_program(&init, INIT);
        built::other_image("hooks", &["--overlay", overlay.to_str().unwrap()]);
    });
}
