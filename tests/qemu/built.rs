//! What all tests share, made once for each run: the static programs, the image, a disk on which `v1` was installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// The project's directory.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that `./build-static` made.
pub fn program(name: &str) -> PathBuf {
    programs();
    top().join("target/static").join(name)
}

/// An empty directory for a test of this name. It stays until the next run.
pub fn directory(name: &str) -> PathBuf {
    let dir = top().join("target/qemu-tests").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// The appliance's image, with this tree's own qx-update in it.
pub fn image() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| make_image(&[]));
}

/// A root image by another name, for `--root`; `options` are those of `qemu/image`.
pub fn other_image(name: &str, options: &[&str]) {
    image();
    make_image(&[&["--name", name], options].concat());
}

/// A disk on which `v1` was installed and proved, over the factory set. To be copied.
pub fn v1_disk() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let repository = Repository::with_v1("v1-disk-repository", &[]);
        let mut appliance = Appliance::new("v1-disk");
        appliance.set_options(&["--repo", &repository.url]);
        appliance.boot();
        appliance.qx_update("apply", 0);
        appliance.assert_runs(&Release::named("v1"));
        appliance.power_off();
        let disk = directory("v1-disk-image").join("data.img");
        fs::rename(appliance.disk(), &disk).unwrap();
        disk
    };
    MADE.get_or_init(make).clone()
}

/// Writes a file that can be run, and the directories above it.
pub fn write_program(file: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn programs() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| must_succeed(&mut Command::new(top().join("build-static"))));
}

fn make_image(options: &[&str]) {
    programs();
    must_succeed(Command::new(top().join("qemu/image")).args(options));
}

/// Runs a command without what cargo tells its tests by the environment: the builds it may start are not theirs.
pub fn must_succeed(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let of_cargo = name.starts_with("CARGO_") && !matches!(name.as_str(), "CARGO_HOME");
        if of_cargo || name == "RUSTUP_TOOLCHAIN" || name == "LD_LIBRARY_PATH" {
            command.env_remove(name);
        }
    }
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
