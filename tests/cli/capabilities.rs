//! Programs that may do something without being root: their file capabilities are set, verified and kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::XattrFlags;
use serde_json::json;

use super::preflight::told_before_anything_stops;
use crate::common::{Appliance, Mounted, Recipe, copy_executable};

const CAPABILITY: &str = "security.capability";

/// A release with `cat` as a tool of its own, which has these capabilities.
fn release(appliance: &Appliance, version: &str, names: &[&str]) -> Recipe {
    let recipe = appliance.recipe(version);
    copy_executable(Path::new("/bin/cat"), &recipe.dir.join("cat"));
    recipe.edit(|json| {
        let components = json["components"].as_array_mut().unwrap();
        components.push(json!({"name": "cat", "kind": "bin", "install_path": "bin/cat", "source": "cat", "tool": true,
            "capabilities": names}));
        json["services"][0]["uses"] = json!(["cat"]);
    })
}

fn cat(appliance: &Appliance) -> PathBuf {
    appliance.data().join("current/bin/cat")
}

/// The effective capabilities of a process that an ordinary user starts from it, as /proc shows them.
fn effective(appliance: &Appliance) -> u64 {
    // All may pass the directories above.
    let program = fs::canonicalize(cat(appliance)).unwrap();
    for directory in program.ancestors().skip(1) {
        if directory.starts_with(appliance.temp()) {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let output = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups"])
        .arg(&program)
        .arg("/proc/self/status")
        .output()
        .unwrap();
    let status = String::from_utf8(output.stdout).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let line = line.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    u64::from_str_radix(line.trim(), 16).unwrap()
}

const NET_BIND_SERVICE: u64 = 1 << 10;

/// A program has what its release names, in the next release, too, which copies it; a release that names none takes them off.
#[test]
fn a_program_has_what_its_release_names() {
    let appliance = Appliance::new();
    for (version, names, bits, says) in [
        (
            "1.1.0",
            &["cap_net_bind_service"][..],
            NET_BIND_SERVICE,
            "fetching",
        ),
        (
            "1.2.0",
            &["cap_net_bind_service"],
            NET_BIND_SERVICE,
            "cat is reused from slot a",
        ),
        (
            "1.3.0",
            &["cap_net_raw", "cap_net_bind_service"],
            NET_BIND_SERVICE | 1 << 13,
            "fetching",
        ),
        ("1.4.0", &[], 0, "fetching"),
    ] {
        appliance.release(&release(&appliance, version, names));
        appliance.update(&["apply"]).code(0).says(&[says]);
        appliance.runs(version);
        assert_eq!(effective(&appliance), bits, "{version}");
        appliance.update(&["verify"]).code(0);
    }
}

/// What was taken off, or put on, is damage like a changed byte: named by `verify`, and not run at the next boot.
#[test]
fn capabilities_that_changed_are_damage() {
    type Change = fn(&Path);
    const RAW: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    fn put(path: PathBuf) {
        rustix::fs::setxattr(path, CAPABILITY, RAW, XattrFlags::empty()).unwrap();
    }
    let changes: [(Change, &str, &str); 4] = [
        (
            |slot| rustix::fs::removexattr(slot.join("bin/cat"), CAPABILITY).unwrap(),
            "bin/cat",
            "none instead of cap_net_bind_service",
        ),
        (
            |slot| put(slot.join("bin/cat")),
            "bin/cat",
            "cap_net_raw instead of cap_net_bind_service",
        ),
        (
            |slot| put(slot.join("bin/qx-node")),
            "bin/qx-node",
            "cap_net_raw instead of none",
        ),
        (
            |slot| put(slot.join("share/www/index.html")),
            "share/www/index.html",
            "cap_net_raw",
        ),
    ];
    let appliance = Appliance::new();
    for (number, (change, file, why)) in changes.into_iter().enumerate() {
        let version = format!("1.1.{number}");
        appliance.release(&release(&appliance, &version, &["cap_net_bind_service"]));
        appliance.update(&["apply"]).code(0);
        let slot = fs::canonicalize(appliance.data().join("current")).unwrap();
        change(&slot);
        appliance
            .update(&["verify"])
            .code(10)
            .says(&["damaged", file, why]);
        appliance.services("stop");
        appliance.update(&["recover"]).code(0);
        assert_ne!(appliance.data().join(appliance.link()), slot);
        appliance.services("start");
        appliance.update(&["recover", "--stage", "data"]);
        appliance.update(&["status"]).says(&[file, "capabilities"]);
    }
}

/// Where the kernel ignores capabilities, no service is stopped for a release that needs them; others are installed.
#[test]
fn a_data_partition_without_suid() {
    let appliance = Appliance::new();
    let nosuid = Mounted::over(
        &appliance.data(),
        &["-t", "tmpfs", "-o", "nosuid,mode=755", "none"],
    );
    appliance.release(&release(&appliance, "1.1.0", &["cap_net_bind_service"]));
    told_before_anything_stops(
        &appliance,
        1,
        &["data/slots", "nosuid", "cat", "cap_net_bind_service"],
    );
    appliance.release(&release(&appliance, "1.2.0", &[]));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    drop(nosuid);
}
