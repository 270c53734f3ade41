//! Releases on a stick: found by its label, mounted only while it is read, and the outcome goes back on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Appliance, Mounted, json_file, path, text, wait_until};

/// A stick that is plugged in. Nobody else here has one of its label.
struct Stick {
    label: String,
    image: PathBuf,
    device: String,
}

impl Stick {
    fn new(appliance: &Appliance) -> Stick {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let label = format!("QX{}-{number}", std::process::id());
        let image = appliance.temp().join(format!("stick-{number}.img"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        ran(Command::new("mkfs.ext4")
            .args(["-q", "-L", &label])
            .arg(&image));
        let mut stick = Stick {
            label,
            image,
            device: String::new(),
        };
        stick.plug_in();
        stick
    }

    fn plug_in(&mut self) {
        // Two that look for a free device at once may find the same.
        wait_until("a free loop device", || {
            let mut losetup = Command::new("losetup");
            let output = losetup
                .args(["--find", "--show"])
                .arg(&self.image)
                .output()
                .unwrap();
            self.device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            output.status.success()
        });
    }

    fn pull_out(&mut self) {
        ran(Command::new("losetup").args(["-d", &self.device]));
        // Whoever still looks at it keeps it for a moment.
        let name = Path::new(&self.device).file_name().unwrap();
        let file = Path::new("/sys/block").join(name).join("loop/backing_file");
        wait_until("the stick is out", || !file.exists());
    }

    /// As a source.
    fn address(&self) -> String {
        format!("LABEL={}", self.label)
    }

    /// Does this with it mounted somewhere else, by its owner.
    fn mounted<T>(&self, appliance: &Appliance, act: impl FnOnce(&Path) -> T) -> T {
        let place = appliance.temp().join(format!("mnt-{}", self.label));
        crate::common::create_dir(&place).unwrap();
        let _mounted = Mounted::over(&place, &[&self.device]);
        act(&place)
    }

    /// Nothing of it is mounted any more.
    #[track_caller]
    fn is_free(&self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut found = mounts
            .lines()
            .filter(|l| l.starts_with(&format!("{} ", self.device)));
        assert_eq!(found.next(), None);
    }

    /// The receipts on it, oldest first.
    fn receipts(&self, appliance: &Appliance) -> Vec<(String, Value)> {
        self.mounted(appliance, |place| {
            let entries = fs::read_dir(place.join("receipts"));
            let entries = entries.into_iter().flatten().flatten().map(|e| e.path());
            let mut found: Vec<(String, Value)> = entries
                .filter(|path| path.extension().is_some_and(|e| e == "json"))
                .map(|file| (path(&file).to_owned(), json_file(&file)))
                .collect();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            found
        })
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The repository as it is now, as a bundle.
fn bundle(appliance: &Appliance, version: &str, to: &Path) {
    let out = path(to);
    appliance
        .publish(&[
            "bundle",
            "--repo",
            path(&appliance.repo),
            "--version",
            version,
            "--out",
            out,
        ])
        .code(0);
}

/// A stick that is configured is offered by `check` and installed by `apply`, its only bundle found by itself; the outcome is on it
/// afterwards, signed, and it can be pulled out.
#[test]
fn a_bundle_on_a_stick_is_offered_and_installed() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let stick = Stick::new(&appliance);
    let key = appliance.root.join("etc/machine.pem");
    ran(Command::new("openssl")
        .args(["genpkey", "-algorithm", "ed25519", "-out"])
        .arg(&key));
    appliance.edit_config(|config| {
        config["sources"] = json!([stick.address()]);
        config["machine"] = json!({"name": "node-7", "key_file": "/etc/machine.pem"});
    });
    stick.mounted(&appliance, |place| {
        bundle(&appliance, "1.1.0", &place.join("v.tar"))
    });
    appliance.update(&["check"]).code(4).says(&["1.1.0"]);
    stick.is_free();
    assert_eq!(stick.receipts(&appliance), [], "nobody asked for anything");
    appliance
        .update(&["apply"])
        .code(0)
        .says(&["receipt", "node-7-"]);
    appliance.runs("1.1.0");
    stick.is_free();
    let receipts = stick.receipts(&appliance);
    let [(_, receipt)] = &receipts[..] else {
        panic!("{receipts:?}");
    };
    assert_eq!(receipt["machine"], "node-7");
    assert_eq!(receipt["result"], "done");
    assert_eq!(receipt["status"]["running"]["version"], "1.1.0");
    assert_eq!(receipt["status"]["last"]["result"], "done");
    stick.mounted(&appliance, |place| {
        let name = text_of_one(&place.join("receipts"), "json");
        let public = appliance.temp().join("machine.pub");
        ran(Command::new("openssl")
            .args(["pkey", "-pubout", "-in"])
            .arg(&key)
            .arg("-out")
            .arg(&public));
        let mut verify = Command::new("openssl");
        verify
            .args(["pkeyutl", "-verify", "-pubin", "-rawin", "-inkey"])
            .arg(&public);
        verify
            .arg("-in")
            .arg(&name)
            .arg("-sigfile")
            .arg(format!("{name}.sig"));
        ran(&mut verify);
    });
    // Whoever has it plugged in all the time is not told each time that there is nothing new; who names it is.
    appliance.update(&["apply"]).code(3);
    assert_eq!(stick.receipts(&appliance), receipts);
    wait_until("another second", || {
        appliance
            .update(&["apply", "--from", &stick.address()])
            .code(3);
        stick.receipts(&appliance).len() == 2
    });
}

fn text_of_one(directory: &Path, extension: &str) -> String {
    let mut entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    let found = entries.find(|path| path.extension().is_some_and(|e| e == extension));
    path(&found.unwrap()).to_owned()
}

/// What a technician brings back says how it ended, where it ended badly, too; and that a key is wrong costs the receipt alone.
#[test]
fn the_receipt_says_how_it_ended() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.release(&appliance.recipe("1.2.0").behaviour("node", "error500"));
    let stick = Stick::new(&appliance);
    stick.mounted(&appliance, |place| {
        bundle(&appliance, "1.2.0", &place.join("v.bundle"))
    });
    let address = stick.address();
    appliance.update(&["apply", "--from", &address]).code(8);
    appliance.runs("1.1.0");
    let receipt = stick.receipts(&appliance).pop().unwrap().1;
    assert_eq!(receipt["result"], "back_to_previous");
    assert_eq!(receipt["status"]["running"]["version"], "1.1.0");
    assert!(
        receipt["status"]["last"]["reason"].is_string(),
        "{receipt:#}"
    );
    assert_eq!(receipt["status"]["refused"][0]["version"], "1.2.0");
    appliance.edit_config(|config| config["machine"] = json!({"key_file": "/etc/passwd"}));
    fs::write(appliance.root.join("etc/passwd"), "no key").unwrap();
    appliance
        .update(&["apply", "--from", &address])
        .code(5)
        .says(&["receipt", "/etc/passwd", "no Ed25519 private key"]);
    stick.is_free();
}

/// Before the services start, the release is installed only; `confirm` proves it, and says so on the stick.
#[test]
fn the_receipt_of_a_boot_comes_with_its_proof() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let stick = Stick::new(&appliance);
    stick.mounted(&appliance, |place| {
        crate::common::copy_all(&appliance.repo, &place.join("below/repository"));
    });
    appliance.power_off();
    let address = format!("{}:/below/repository", stick.address());
    appliance
        .update(&["apply", "--at-boot", "--from", &address])
        .code(0);
    let last = || stick.receipts(&appliance).pop().unwrap().1;
    assert_eq!(last()["status"]["phase"], "trial");
    appliance.services("start");
    appliance.update(&["confirm"]).code(0);
    assert_eq!(last()["status"]["phase"], "idle");
    assert_eq!(last()["status"]["last"]["result"], "done");
    stick.is_free();
}

/// One that is not plugged in is no trouble while others answer; else it is named. So is what lies on it, where that is not clear.
#[test]
fn a_stick_that_says_nothing() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    appliance.sources(&["LABEL=QXNONE", "/srv/repo"]);
    appliance.update(&["check"]).code(4);
    appliance.refuses(
        &["check", "--from", "LABEL=QXNONE"],
        1,
        &["LABEL=QXNONE", "none of that name is plugged in"],
    );
    appliance.refuses(
        &["apply", "--from", "LABEL=QXNONE:/x.tar"],
        1,
        &["LABEL=QXNONE", "plugged in"],
    );
    let stick = Stick::new(&appliance);
    let address = stick.address();
    appliance.refuses(
        &["check", "--from", &address],
        1,
        &[&address, "no repository", "NAME.tar"],
    );
    stick.mounted(&appliance, |place| {
        bundle(&appliance, "1.1.0", &place.join("b.tar"));
        fs::copy(place.join("b.tar"), place.join("A.TAR")).unwrap();
    });
    appliance.refuses(
        &["check", "--from", &address],
        1,
        &["there are 2", &format!("{address}:/A.TAR")],
    );
    appliance
        .update(&["check", "--from", &format!("{address}:/b.tar")])
        .code(4);
    // Nothing beside the medium.
    appliance.refuses(
        &["check", "--from", &format!("{address}:/../../../srv/repo")],
        1,
        &["srv/repo"],
    );
    stick.is_free();
    for wrong in ["LABEL=", "label=X", "LABEL"] {
        appliance.edit_config(|config| config["sources"] = json!([wrong]));
        appliance
            .update(&["check"])
            .refused(2, &["sources", "LABEL=NAME"]);
    }
}

/// Intent: a stick that somebody else has mounted to write on it is waited for a moment, for it is often about to be let go; who keeps
/// it is told to unmount it.
#[test]
fn a_stick_that_somebody_else_has() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let stick = Stick::new(&appliance);
    let address = stick.address();
    let checking = stick.mounted(&appliance, |place| {
        bundle(&appliance, "1.2.0", &place.join("v.tar"));
        let words = [&address[..], "somebody else has it", "unmount it"];
        appliance
            .update(&["check", "--from", &address])
            .refused(1, &words);
        let checking = appliance.start(&["check", "--from", &address]);
        std::thread::sleep(Duration::from_secs(2));
        checking
    });
    checking.wait().code(4);
    appliance.update(&["apply", "--from", &address]).code(0);
    stick.is_free();
}

/// Pulled out, or failing, at any time: nothing is lost, and the next try takes it.
#[test]
fn a_stick_that_is_pulled_out() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    let mut stick = Stick::new(&appliance);
    stick.mounted(&appliance, |place| {
        bundle(&appliance, "1.2.0", &place.join("v.tar"))
    });
    // What the medium gives after a while is not what was written.
    let whole = fs::read(&stick.image).unwrap();
    let bundle = whole.windows(5).position(|w| w == b"ustar").unwrap();
    stick.pull_out();
    fs::OpenOptions::new()
        .write(true)
        .open(&stick.image)
        .unwrap()
        .set_len(bundle as u64 + (64 << 10))
        .unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&stick.image)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    stick.plug_in();
    let address = stick.address();
    let before = appliance.picture();
    let outcome = appliance.update(&["apply", "--from", &address]);
    assert!(
        outcome.code != 0 && outcome.code != 8,
        "exit {}",
        outcome.code
    );
    before.unchanged(&appliance);
    stick.is_free();
    stick.pull_out();
    fs::write(&stick.image, whole).unwrap();
    appliance.refuses(&["apply", "--from", &address], 1, &[&address]);
    before.unchanged(&appliance);
    stick.plug_in();
    // A process that is killed leaves it mounted; the next one takes it from there.
    let place = appliance
        .root
        .join("run/qx-update/media")
        .join(format!("LABEL_{}", stick.label));
    crate::common::create_dir(&place).unwrap();
    ran(Command::new("mount")
        .args(["-o", "ro", &stick.device])
        .arg(&place));
    appliance.update(&["apply", "--from", &address]).code(0);
    appliance.runs("1.2.0");
    stick.is_free();
    assert!(
        text(Path::new("/proc/mounts"))
            .lines()
            .all(|l| !l.contains(&stick.label))
    );
}
