//! The other of the systems before: its root can be written to, its programs lie at the image's own places, and no initramfs of its own
//! knows of qx-update.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// How often the power goes in the middle of it.
const CUTS: u32 = 10;
const SCRIPT: &str = "etc/init.d/quantix-controlplane";
const BEFORE: &str = r#"#!/sbin/openrc-run
command="/usr/bin/qx-controlplane"
command_args="--watch=forever --serve=0.0.0.0:8080 --servedir=/usr/share/quantix-vdc/dashboard"
command_background=yes
command_user=quantix:quantix
pidfile=/run/$RC_SVCNAME.pid
output_log=/var/log/$RC_SVCNAME.log
error_log=/var/log/$RC_SVCNAME.log
depend() {
	need network
}
"#;
const RULE: &str = "[ -x /data/bin/qx-controlplane ] && command=/data/bin/qx-controlplane";
/// An initramfs that mounts the root, and does nothing else.
const INIT: &str = "#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /lib/modules
ln -s /modules \"/lib/modules/$(uname -r)\"
for module in $(cat /modules/boot) ext4; do modprobe $module; done
mount -t ext4 -o rw /dev/vda /sysroot
mount --move /dev /sysroot/dev
mount --move /proc /sysroot/proc
mount --move /sys /sysroot/sys
mount -t tmpfs -o mode=0755 run /sysroot/run
exec switch_root /sysroot /sbin/init
";

/// Intent: a Quantix-vDC is taken over while its service runs, without a restart; cut by the power at ten places it has not happened or is
/// complete; undone, its init script is as it was; and then it updates, gives up a bad release and goes back to its own programs.
#[test]
fn a_vdc_in_the_field_is_adopted() {
    let repository = Repository::with("vdc-repository", &[]);
    let mut appliance = Appliance::new("vdc");
    let (root, initramfs) = (root_disk(&appliance), initramfs(&appliance));
    appliance.set_options(&[
        "--root",
        &root,
        "--initrd",
        &initramfs,
        "--repo",
        &repository.url,
    ]);
    appliance.boot();
    let began = Instant::now();
    appliance.qx_update("adopt", 0);
    let took = began.elapsed();
    appliance.qx_update("adopt --undo", 0);
    let mut happened = 0;
    for cut in 1..=CUTS {
        assert!(!is_adopted(&appliance));
        let adopting = appliance.spawn("qx-update adopt");
        std::thread::sleep(took * cut / CUTS);
        if cut == CUTS {
            // What is cut is not what would have been refused.
            adopting.exits(0);
        }
        appliance.kill();
        appliance.boot();
        if is_adopted(&appliance) {
            happened += 1;
            appliance.qx_update("adopt --undo", 0);
            assert_eq!(script(&appliance), BEFORE.trim());
        }
    }
    assert!(happened > 0);
    println!("cut {CUTS} times: {happened} times it was complete at the next boot");

    let own = appliance.programs();
    let before = appliance.pid("quantix-controlplane");
    for arguments in ["adopt", "adopt --undo", "adopt"] {
        appliance.qx_update(arguments, 0);
    }
    assert!(is_adopted(&appliance));
    assert_eq!(
        appliance.pid("quantix-controlplane"),
        before,
        "it was restarted"
    );
    assert_eq!(appliance.status()["running"]["version"], "1.0.0");
    appliance.reboot();
    assert_eq!(appliance.programs(), own);

    let next = release("vdc-next", "1.1.0", None);
    repository.publish(&next);
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&next);
    repository.publish(&release("vdc-bad", "1.3.0", Some("#!/bin/sh\nexit 1\n")));
    appliance.qx_update("apply", 8);
    appliance.reboot();
    appliance.assert_runs(&next);
    appliance.qx_update("rollback --to factory", 0);
    assert_eq!(appliance.programs(), own);
}

/// Whether it is adopted: then wholly.
fn is_adopted(appliance: &Appliance) -> bool {
    let adopted = appliance
        .run("[ -e /usr/share/qx-update/factory.json ]")
        .code
        == 0;
    if adopted {
        assert!(script(appliance).contains(RULE), "half of it");
    }
    adopted
}

fn script(appliance: &Appliance) -> String {
    appliance.ok(&format!("cat /{SCRIPT}"))
}

/// A release for it; its control plane is a script, or the next version of the program.
fn release(name: &str, version: &str, program: Option<&str>) -> Release {
    Release::derived(name, "v1", version, |recipe, dir| {
        let mut components = recipe["components"].as_array().unwrap()[..2].to_vec();
        if let Some(script) = program {
            built::write_program(&dir.join("script"), script);
            components[0]["source"] = json!("script");
        }
        components[1] = json!({
            "name": "dashboard", "kind": "tree", "install_path": "share/quantix-vdc/dashboard", "source": "controlplane",
        });
        recipe["components"] = json!(components);
        recipe["services"] = json!([{"name": "quantix-controlplane", "runs": "bin/qx-controlplane", "uses": ["dashboard"]}]);
        recipe["health"] = json!([{
            "type": "http", "url": "http://127.0.0.1:8080/health", "service": "quantix-controlplane",
            "start_period_s": 10, "stable_s": 2,
        }]);
    })
}

/// The test appliance's root as such a system has it, on a disk of its own.
fn root_disk(appliance: &Appliance) -> String {
    let [root, disk] = ["root", "root.img"].map(|name| appliance.disk().with_file_name(name));
    let image = built::top().join("qemu/build/images/appliance.squashfs");
    let mut unpack = Command::new("unsquashfs");
    built::must_succeed(
        unpack
            .args(["-quiet", "-no-progress", "-d"])
            .arg(&root)
            .arg(image),
    );
    let at = |path: &str| root.join(path);
    fs::remove_file(at("usr/share/qx-update/factory.json")).unwrap();
    for service in ["quantix-node", "quantix-console"] {
        fs::remove_file(at("etc/runlevels/default").join(service)).unwrap();
        fs::remove_file(at("etc/init.d").join(service)).unwrap();
    }
    let recover = at("etc/runlevels/boot/qx-update-recover");
    std::os::unix::fs::symlink("/etc/init.d/qx-update-recover", recover).unwrap();
    write(&at(SCRIPT), BEFORE);
    for (path, text) in [("version", "1.0.0\n"), ("update.json", "{}\n")] {
        write(&at("etc/quantix-vdc").join(path), text);
    }
    for path in ["health", "index.html"] {
        write(&at("usr/share/quantix-vdc/dashboard").join(path), "vDC\n");
    }
    let config = at("etc/qx-update/config.json");
    let mut text: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    text.as_object_mut().unwrap().remove("data");
    // As the script that sets the source finds it.
    write(
        &config,
        &text.to_string().replace("\"sources\":", "\"sources\": "),
    );
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-d"]).arg(&root).arg(&disk);
    built::must_succeed(make.arg("400M"));
    fs::remove_dir_all(&root).unwrap();
    disk.to_str().unwrap().to_owned()
}

/// The modules of ours with that init: what the kernel unpacks last is what it runs.
fn initramfs(appliance: &Appliance) -> String {
    let beside = |name: &str| appliance.disk().with_file_name(name);
    built::write_program(&beside("init"), INIT);
    let out = beside("initramfs.cpio");
    fs::copy(built::top().join("qemu/build/initramfs.cpio"), &out).unwrap();
    let mut append = Command::new("sh");
    append.args([
        "-c",
        "cd \"$0\" && echo init | cpio --quiet -o -H newc >>initramfs.cpio",
    ]);
    built::must_succeed(append.arg(out.parent().unwrap()));
    out.to_str().unwrap().to_owned()
}

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}
