//! What adds the recovery to an initramfs: `initramfs/build`, and the hooks for the distributions' own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("initramfs")
        .join(path)
}

/// A kernel's directory with these modules: each a path, and what it depends on.
fn kernel(below: &Path, modules: &[(&str, &str)]) {
    fs::create_dir_all(below).unwrap();
    let built_in = "kernel/fs/squashfs/squash-fs.ko\nkernel/fs/ext4/ext4.ko\n";
    fs::write(below.join("modules.builtin"), built_in).unwrap();
    for (path, depends) in modules {
        let file = below.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let plain = file.with_extension("plain");
        fs::write(&plain, format!("module\0depends={depends}\0name={path}\0")).unwrap();
        let packer = match path.rsplit('.').next().unwrap() {
            "gz" => "gzip -c",
            "xz" => "xz -c",
            "zst" => "zstd -cq",
            _ => "cat",
        };
        let packed = format!("{packer} <\"$0\" >\"$1\" && rm \"$0\"");
        let done = Command::new("sh")
            .args(["-c", &packed])
            .args([&plain, &file])
            .status();
        assert!(done.unwrap().success(), "{path}");
    }
}

/// Runs it with relative paths, as its documentation does.
fn build(directory: &Path, more: &[&str]) -> Output {
    let busybox = Command::new("sh")
        .args(["-c", "command -v busybox"])
        .output()
        .unwrap();
    let busybox = String::from_utf8(busybox.stdout).unwrap();
    let mut build = Command::new(source("build"));
    build
        .current_dir(directory)
        .args(["--kernel", "kernel", "--busybox", busybox.trim()]);
    build
        .args(["--qx-update", busybox.trim(), "--out", "out.cpio"])
        .args(more);
    build.output().unwrap()
}

fn contents(directory: &Path) -> PathBuf {
    let into = directory.join("contents");
    fs::create_dir_all(&into).unwrap();
    let script = "cd \"$0\" && busybox cpio -idm <../out.cpio 2>/dev/null";
    let done = Command::new("sh").args(["-c", script]).arg(&into).status();
    assert!(done.unwrap().success());
    into
}

/// Modules are found however they are compressed and spelled, with all that they depend on, in an order in which they load.
#[test]
fn modules_come_with_what_they_depend_on() {
    let scratch = tempfile::tempdir().unwrap();
    let modules = [
        ("kernel/a/virtio_net.ko.xz", "net-failover,virtio"),
        ("kernel/b/net_failover.ko.zst", "failover"),
        ("kernel/b/failover.ko.gz", "virtio"),
        ("kernel/c/virtio.ko", ""),
        ("kernel/fs/xfs.ko.gz", "libcrc32c"),
        ("kernel/fs/libcrc32c.ko", ""),
    ];
    kernel(&scratch.path().join("kernel"), &modules);
    let built = build(scratch.path(), &["--modules", "squash_fs virtio-net"]);
    assert!(built.status.success(), "{built:?}");
    let into = contents(scratch.path());
    let boot = fs::read_to_string(into.join("modules/boot")).unwrap();
    assert_eq!(boot, "virtio-net\n", "what is built in is not loaded");
    // What is to be loaded first stands last.
    let dependencies = fs::read_to_string(into.join("modules/modules.dep")).unwrap();
    let expected = "virtio_net.ko: net_failover.ko failover.ko virtio.ko\nxfs.ko: libcrc32c.ko\n";
    assert_eq!(dependencies, expected);
    for (path, _) in modules {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        let name = format!("{}.ko", name.split(".ko").next().unwrap());
        let module = fs::read(into.join("modules").join(&name)).unwrap();
        assert!(module.starts_with(b"module"), "{name} is not unpacked");
    }
    assert!(into.join("etc/qx-update/boot.conf").exists());
    // Nothing is left but what was asked for.
    let left = fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(left, 3, "kernel, out.cpio, contents");
}

/// What is missing is named, and no initramfs is left that lacks it.
#[test]
fn a_module_that_is_missing_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    kernel(
        &scratch.path().join("kernel"),
        &[("kernel/a/nvme.ko", "nvme_core")],
    );
    for (asked, named) in [("nvme", "nvme_core"), ("virtio_blk", "virtio_blk")] {
        let built = build(scratch.path(), &["--modules", asked]);
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(!built.status.success() && said.contains(named), "{built:?}");
        assert!(!scratch.path().join("out.cpio").exists());
    }
    let built = build(
        scratch.path(),
        &["--modules", "squash_fs", "--out", "absent/out.cpio"],
    );
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(
        !built.status.success() && said.contains("no directory 'absent'"),
        "{said}"
    );
}

/// Alpine's init has one line more: the recovery, right before each switch to the root, whatever that is called.
#[test]
fn the_recovery_is_added_to_the_init_of_alpine() {
    let scratch = tempfile::tempdir().unwrap();
    let init = scratch.path().join("initramfs-init");
    let derive = "init=$0; . \"$1\"; trap - EXIT; cat \"$init\"; rm \"$init\"";
    let conf = source("mkinitfs/mkinitfs.conf");
    for (switch, root) in [
        (
            "exec switch_root $switch_root_opts $sysroot $chart_init \"$KOPT_init\" $KOPT_init_args",
            "/sysroot",
        ),
        ("exec switch_root /newroot /sbin/init", "/newroot"),
    ] {
        for options in ["", "-c /dev/ttyS0"] {
            let text = format!(
                "sysroot=/sysroot KOPT_init=/sbin/init switch_root_opts='{options}'\nif true; then\n\tsync\n\t{switch}\nfi\n"
            );
            fs::write(&init, text).unwrap();
            let derived = Command::new("sh")
                .args(["-c", derive])
                .args([&init, &conf])
                .output()
                .unwrap();
            assert!(derived.status.success(), "{derived:?}");
            // The programs of the initramfs say what they are called with.
            let script = String::from_utf8(derived.stdout).unwrap();
            let script = script.replace("/usr/lib/qx-update/qx-recover", "echo recover");
            let script = script.replace("exec switch_root", "echo switch_root");
            let ran = Command::new("sh").args(["-c", &script]).output().unwrap();
            let said = String::from_utf8(ran.stdout).unwrap();
            let lines: Vec<&str> = said.lines().collect();
            assert_eq!(lines[0], format!("recover {root}"), "{script}");
            assert!(
                lines[1].starts_with("switch_root ") && lines.len() == 2,
                "{said}"
            );
        }
    }
    // One that has no such place is not used as if it had.
    fs::write(&init, "echo nothing\n").unwrap();
    let derived = Command::new("sh")
        .args(["-c", derive])
        .args([&init, &conf])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&derived.stderr);
    assert!(
        !derived.status.success() && said.contains("switch_root"),
        "{derived:?}"
    );
}

/// Runs qx-recover on a root of its own, with these words on the kernel command line. What the programs of that root were called with is
/// told, and after it what the boot leaves for `status`; `ends` are lines of a shell that exits as they do, such as `rollback*) exit 1 ;;`.
fn recovers(words: &str, ends: &str) -> (Vec<String>, String) {
    const SCENE: &str = r#"
        set -eu
        mount -t tmpfs tmpfs "$0"
        cd "$0"
        mkdir upper work root
        mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
        mount --rbind /dev root/dev
        mount --rbind /proc root/proc
        echo "quiet $WORDS panic=1" >cmdline
        mount --bind cmdline root/proc/cmdline
        mount -t tmpfs tmpfs root/run
        mkdir -p root/usr/lib/qx-update
        for program in bin/qx-update lib/qx-update/qx-update-initramfs; do
            printf '#!/bin/sh\necho "$*" >>/called\ncase $* in %s esac\n' "$ENDS" >root/usr/$program
            chmod 755 root/usr/$program
        done
        cp "$RECOVER" root/usr/lib/qx-update/qx-recover
        # What a person types.
        mkfifo typed
        mount --bind typed root/dev/console
        case $WORDS in *qx.rescue*) echo 'echo a shell >>/called; exit' >typed & ;; esac
        chroot root /bin/sh /usr/lib/qx-update/qx-recover / >&2
        cat root/called
        echo ==
        cat root/run/qx-update/boot-failed 2>/dev/null || :
    "#;
    let scratch = tempfile::tempdir().unwrap();
    let ran = Command::new("unshare")
        .args(["--mount", "sh", "-c", SCENE])
        .arg(scratch.path())
        .env("WORDS", words)
        .env("ENDS", ends)
        .env("RECOVER", source("qx-recover"))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{words}: {ran:?}");
    let said = String::from_utf8(ran.stdout).unwrap();
    let (called, told) = said.split_once("==\n").unwrap();
    let called = called.lines().map(str::to_owned).collect();
    (called, told.to_owned())
}

/// Words on the kernel command line are carried out in the order in which they stand, each whatever came of the one before it, after the
/// recovery and not without it; what went wrong is left for `status`. A word that is none of them does nothing, and is told.
#[test]
fn words_are_carried_out_in_turn() {
    const LINK: &str = "--root / recover --stage link";
    const GONE_BACK: &str = "rollback --at-boot";
    let applied = |source: &str| format!("apply --from {source} --at-boot");
    for (words, ends, expected, told) in [
        ("", "", vec![], ""),
        ("qx.factory", "", vec![], ""),
        (
            "qx.rollback qx.apply=/a",
            "",
            vec![GONE_BACK.to_owned(), applied("/a")],
            "",
        ),
        (
            "qx.apply=/a qx.apply=/b qx.rollback=set-aside-data",
            "",
            vec![
                applied("/a"),
                applied("/b"),
                "rollback --set-aside-data --at-boot".to_owned(),
            ],
            "",
        ),
        // A shell for a person who is there, before and after other words.
        (
            "qx.rollback qx.rescue qx.apply=/a",
            "",
            vec![
                GONE_BACK.to_owned(),
                "--root / status".to_owned(),
                "a shell".to_owned(),
                applied("/a"),
            ],
            "",
        ),
        (
            "qx.rollback qx.apply=/a",
            "rollback*) exit 10 ;;",
            vec![GONE_BACK.to_owned(), applied("/a")],
            "qx.rollback: qx-update rollback ended with status 10",
        ),
        // Nothing to do is nothing to tell.
        (
            "qx.rollback",
            "rollback*) exit 3 ;;",
            vec![GONE_BACK.to_owned()],
            "",
        ),
        // No pattern, whatever it looks like.
        ("qx.apply=/*", "", vec![applied("/*")], ""),
        // Without a recovery nothing is built on it.
        (
            "qx.apply=/a qx.rollback",
            "*link*) exit 1 ;;",
            vec![],
            "qx.rollback: not done",
        ),
        (
            "qx.rollbak qx.rollbacks",
            "",
            vec![],
            "qx.rollbacks: not done",
        ),
        ("qx.apply=", "", vec![], "qx.apply=: not done"),
    ] {
        let (called, boot_failed) = recovers(words, ends);
        assert_eq!(called[0], LINK, "{words}");
        assert_eq!(called[1..], expected, "{words}");
        assert_eq!(
            boot_failed.is_empty(),
            told.is_empty(),
            "{words}: {boot_failed}"
        );
        assert!(boot_failed.contains(told), "{words}: {boot_failed}");
    }
}
