//! What lies beside the bytes of a source: carried if the recipe names it, refused if not, never dropped.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use serde_json::{Value, json};

use super::desk::{Desk, RELEASE};
use super::work::Ended;
use crate::common::publisher;

const CAPABILITY: &str = "security.capability";
/// `cap_net_raw=ep`, and `cap_net_raw=i`, as setcap(8) writes them.
const NET_RAW: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const INHERITABLE: &[u8] = b"\0\0\0\x02\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\0\0";

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// An access control list (linux/posix_acl_xattr.h): user 1000 may read.
fn acl(path: &Path) {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, may, id) in [
        (1_u16, 7_u16, u32::MAX),
        (2, 4, 1000),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 5, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(may.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    attribute(path, "system.posix_acl_access", &value);
}

/// The recipe and sources of a version, as they come out of a build; there is a directory in the tree.
fn sources(desk: &Desk, version: &str) {
    let _ = fs::remove_dir_all(desk.path("src"));
    desk.recipe(version, "x86_64");
    desk.write("src/www/css/a.css", "a {}");
}

fn edit(desk: &Desk, change: impl FnOnce(&mut Value)) {
    let mut recipe: Value = serde_json::from_str(&desk.text("src/recipe.json")).unwrap();
    change(&mut recipe);
    desk.write("src/recipe.json", recipe.to_string());
}

/// Names what the program of the recipe is to have of root's.
fn capabilities(desk: &Desk, version: &str, names: Value) {
    sources(desk, version);
    edit(desk, |recipe| {
        recipe["components"][0]["capabilities"] = names
    });
}

/// Intent: what an artifact cannot carry is refused with a line that names the file, wherever it is met.
#[test]
fn nothing_is_dropped_silently() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 10] = [
        ("setuid", |path| chmod(path, 0o4755)),
        ("setgid", |path| chmod(path, 0o2755)),
        ("sticky", |path| chmod(path, 0o1755)),
        ("1000:0", |path| chown(path, Some(1000), None).unwrap()),
        ("0:1000", |path| chown(path, None, Some(1000)).unwrap()),
        ("user.note", |path| attribute(path, "user.note", b"")),
        ("trusted.note", |path| attribute(path, "trusted.note", b"x")),
        ("access control list", acl),
        ("file capabilities", |path| {
            attribute(path, CAPABILITY, NET_RAW)
        }),
        ("file capabilities", |path| {
            attribute(path, CAPABILITY, INHERITABLE)
        }),
    ];
    let desk = Desk::ready();
    for (component, file) in [
        ("daemon", "src/daemon"),
        ("www", "src/www"),
        ("www", "src/www/css"),
        ("www", "src/www/css/a.css"),
    ] {
        let path = desk.path(file);
        for (what, change) in changes {
            sources(&desk, "1.0.0");
            // The kernel knows no capabilities of directories.
            if path.is_dir() && what == "file capabilities" {
                continue;
            }
            change(&path);
            let named = [
                &*format!("component {component}: "),
                &*format!("{file}: "),
                what,
            ];
            desk.fails(RELEASE, &named);
        }
    }
    sources(&desk, "1.0.0");
    symlink("css", desk.path("src/www/link")).unwrap();
    lchown(desk.path("src/www/link"), Some(1000), None).unwrap();
    desk.fails(RELEASE, &["www/link", "1000:0"]);
    // Their own, where somebody has become root by sudo.
    let by_sudo = |user: &str| {
        let mut release = desk.command(RELEASE);
        release.env("SUDO_UID", user).env("SUDO_GID", user);
        release
    };
    desk.command_fails(&mut by_sudo("1001"), 1, &["www/link", "1000:0"]);
    let ended = Ended::from(by_sudo("1000").output().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.err);
}

/// Intent: the capabilities that a recipe names are the release's, whether the build has set them or not; others, and
/// components that cannot have any, are refused.
#[test]
fn capabilities_are_named_in_the_recipe() {
    let desk = Desk::ready();
    capabilities(&desk, "1.0.0", json!(["cap_net_bind_service", "cap_bpf"]));
    desk.succeeds(RELEASE);
    capabilities(&desk, "1.1.0", json!(["cap_net_raw"]));
    attribute(&desk.path("src/daemon"), CAPABILITY, NET_RAW);
    desk.succeeds(RELEASE);
    capabilities(&desk, "1.2.0", json!(["cap_net_bind_service"]));
    attribute(&desk.path("src/daemon"), CAPABILITY, NET_RAW);
    desk.fails(
        RELEASE,
        &["src/daemon", "cap_net_raw", "cap_net_bind_service"],
    );
    for (names, why) in [
        (json!(["net_raw"]), "'net_raw' is not a capability"),
        (json!("cap_net_raw"), "invalid type"),
    ] {
        capabilities(&desk, "1.2.0", names);
        desk.command_fails(&mut desk.command(RELEASE), 2, &[why]);
    }
    sources(&desk, "1.2.0");
    edit(&desk, |recipe| {
        recipe["components"][1]["capabilities"] = json!(["cap_net_raw"])
    });
    desk.command_fails(&mut desk.command(RELEASE), 2, &["www", "kind bin"]);
    capabilities(&desk, "1.2.0", json!(["cap_net_raw"]));
    desk.script("src/daemon", "exit 0");
    edit(&desk, |recipe| {
        recipe["components"][0]["tool"] = json!(true);
        recipe["services"] = json!([]);
    });
    desk.fails(RELEASE, &["src/daemon", "it is a script"]);
}

/// Intent: what a web server is to hand out is readable for everybody, and keys for their owner alone, whatever umask the publisher
/// has.
#[test]
fn what_is_public_is_readable_under_every_umask() {
    const COMMANDS: [&[&str]; 5] = [
        &[
            "init",
            "--repo",
            "repo",
            "--keys",
            "keys",
            "--product",
            "vdc",
        ],
        RELEASE,
        &[
            "bundle",
            "--repo",
            "repo",
            "--version",
            "1.0.0",
            "--out",
            "out.bundle",
        ],
        &["factory", "src/recipe.json", "--out", "factory.json"],
        &[
            "refresh", "--repo", "repo", "--keys", "keys", "--within", "3650",
        ],
    ];
    for umask in ["077", "000", "777"] {
        let desk = Desk::new();
        sources(&desk, "1.0.0");
        for arguments in COMMANDS {
            let mut shell = Command::new("sh");
            let script = format!("umask {umask}; exec \"$0\" \"$@\"");
            shell.args(["-c", &script, publisher()]).args(arguments);
            shell.current_dir(desk.path(""));
            let ended = Ended::from(shell.output().unwrap());
            assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        }
        for name in ["repo", "keys", "out.bundle", "factory.json"] {
            let mut paths = vec![desk.path(name)];
            while let Some(path) = paths.pop() {
                let meta = fs::metadata(&path).unwrap();
                let private = path.extension().is_some_and(|end| end == "pem")
                    && !path.display().to_string().ends_with(".pub.pem");
                let expected = match (meta.is_dir(), private) {
                    (true, _) if name == "keys" => 0o700,
                    (true, _) => 0o755,
                    (false, true) => 0o600,
                    (false, false) => 0o644,
                };
                let mode = meta.permissions().mode() & 0o7777;
                assert_eq!(
                    mode,
                    expected,
                    "umask {umask}: {}: {mode:o}",
                    path.display()
                );
                if meta.is_dir() {
                    paths.extend(
                        fs::read_dir(&path)
                            .unwrap()
                            .map(|entry| entry.unwrap().path()),
                    );
                }
            }
        }
    }
}

/// Intent: the manifest of a factory set says what the image's files have; what they lack is told when it is made.
#[test]
fn a_factory_set_has_its_capabilities() {
    const FACTORY: &[&str] = &["factory", "src/recipe.json", "--out", "factory.json"];
    let desk = Desk::ready();
    capabilities(&desk, "1.0.0", json!(["cap_net_raw"]));
    desk.fails(FACTORY, &["src/daemon", "cap_net_raw"]);
    attribute(&desk.path("src/daemon"), CAPABILITY, NET_RAW);
    desk.succeeds(FACTORY);
    sources(&desk, "1.0.0");
    attribute(&desk.path("src/daemon"), CAPABILITY, NET_RAW);
    desk.fails(FACTORY, &["src/daemon", "cap_net_raw"]);
}
