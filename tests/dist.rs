//! What a distribution installs: packages that go in and out by the distribution's own tool, and manuals and completions that name each
//! option that there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::{UPDATE, path, publisher, temporary};

/// The programs as a package wants them: small, under their names. The build that only recovers is played by the other one.
fn programs(place: &Path) -> PathBuf {
    let bin = place.join("programs");
    fs::create_dir_all(&bin).unwrap();
    for (name, from) in [
        ("qx-update", UPDATE),
        ("qx-update-initramfs", UPDATE),
        ("qx-publish", publisher()),
    ] {
        succeeds(
            Command::new("strip")
                .arg("-o")
                .arg(bin.join(name))
                .arg(from),
        );
    }
    bin
}

fn succeeds(command: &mut Command) -> String {
    let ended = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.success(),
        "{command:?}: {}: {error}",
        ended.status
    );
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

fn dist(script: &str) -> Command {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("dist")
            .join(script),
    )
}

fn installed(package: &str) -> (TempDir, PathBuf) {
    let place = temporary("qx-dist-");
    let root = place.path().join("root");
    succeeds(
        dist("install")
            .arg(package)
            .arg(programs(place.path()))
            .arg(&root),
    );
    (place, root)
}

/// Every option and command that a program's own --help names, of each of its commands.
fn said(program: &str, below: &[&str]) -> BTreeSet<String> {
    let help = succeeds(Command::new(program).args(below).arg("--help"));
    let mut words = BTreeSet::new();
    let mut section = "";
    for line in help.lines() {
        section = line.strip_suffix(':').unwrap_or(section);
        let Some(word) = line
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '))
        else {
            continue;
        };
        match section {
            "Options" if word.starts_with('-') && !word.starts_with("--help") => {
                // -n, --lines
                let spelt = word.split(' ').take_while(|word| word.starts_with('-'));
                words.extend(spelt.map(|word| word.trim_end_matches(',').to_owned()));
            }
            "Commands" => {
                let name = word.split_whitespace().next().unwrap();
                words.insert(name.to_owned());
                words.extend(said(program, &[below, &[name]].concat()));
            }
            _ => {}
        }
    }
    words
}

fn unzipped(page: &Path) -> String {
    succeeds(Command::new("gzip").arg("-dc").arg(page)).replace("\\-", "-")
}

/// Manuals and completions name each command and each option that the programs have; shells can read them.
#[test]
fn manuals_and_completions_say_what_there_is() {
    for (name, program, section) in [("qx-update", UPDATE, 8), ("qx-publish", publisher(), 1)] {
        let (_place, root) = installed(name);
        let share = root.join("usr/share");
        let bash = share.join("bash-completion/completions").join(name);
        let zsh = share.join("zsh/site-functions").join(format!("_{name}"));
        let fish = share
            .join("fish/vendor_completions.d")
            .join(format!("{name}.fish"));
        let page = unzipped(&share.join(format!("man/man{section}/{name}.{section}.gz")));
        let words = said(program, &[]);
        assert!(words.len() > 20, "{words:?}");
        for word in &words {
            assert!(
                page.contains(word.as_str()),
                "{name}({section}) does not name {word}"
            );
            for file in [&bash, &zsh, &fish] {
                // Fish has them without their dashes.
                let plain = word.trim_start_matches('-');
                assert!(
                    fs::read_to_string(file).unwrap().contains(plain),
                    "{}: {word}",
                    file.display()
                );
            }
        }
        assert!(
            page.contains(&format!(".TH \"{name}\" \"{section}\"")),
            "{page}"
        );
        succeeds(Command::new("bash").arg("-n").arg(&bash));
        succeeds(Command::new("zsh").arg("-n").arg(&zsh));
        succeeds(Command::new("fish").arg("--no-execute").arg(&fish));
    }
}

/// What bash offers is what the command takes at that place.
#[test]
fn bash_completes_what_the_command_takes() {
    let (_place, root) = installed("qx-update");
    let completions = root.join("usr/share/bash-completion/completions/qx-update");
    let offered = |line: &[&str]| {
        let script = format!(
            ". {}; COMP_WORDS=({}); COMP_CWORD={}; _qx_update; echo \"${{COMPREPLY[@]}}\"",
            path(&completions),
            line.iter()
                .map(|word| format!("'{word}'"))
                .collect::<Vec<_>>()
                .join(" "),
            line.len() - 1
        );
        succeeds(Command::new("bash").args(["-c", &script]))
            .trim()
            .to_owned()
    };
    assert_eq!(offered(&["qx-update", "app"]), "apply");
    assert_eq!(offered(&["qx-update", "apply", "--st"]), "--stage-only");
    assert_eq!(
        offered(&["qx-update", "--root", "/srv", "data", "re"]),
        "rehearse restore"
    );
    assert_eq!(
        offered(&["qx-update", "data", "rehearse", "1.2.0", "--r"]),
        "--retry"
    );
    assert_eq!(offered(&["qx-update", "adopt", "--u"]), "--undo");
    // No command begins so.
    assert_eq!(offered(&["qx-update", "apply", "zz"]), "");
}

/// A package for Alpine is tar archives one behind the other, each compressed (abuild's format): what belongs to it, and what is in it. No
/// `apk` is here to be had; that it installs is not seen.
fn packages_for_alpine(built: &[PathBuf]) {
    let listed = |file: &Path| -> BTreeSet<String> {
        let names = succeeds(Command::new("tar").arg("-tzf").arg(file));
        let names = names.lines().map(|name| name.trim_start_matches("./"));
        let files = names.filter(|name| !name.is_empty() && !name.ends_with('/'));
        files.map(str::to_owned).collect()
    };
    let mut all = BTreeSet::new();
    let mut packages = BTreeSet::new();
    for file in built
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "apk"))
    {
        let mut about = Command::new("tar");
        let about = succeeds(about.arg("-xzOf").arg(file).arg(".PKGINFO"));
        let field = |name: &str| {
            let mut lines = about.lines().filter_map(|line| line.split_once(" = "));
            lines
                .find(|(field, _)| *field == name)
                .map(|(_, value)| value.to_owned())
        };
        let name = field("pkgname").unwrap();
        let whole = name.split('-').take(2).collect::<Vec<_>>().join("-");
        assert_eq!(
            field("depend"),
            (name != whole).then_some(whole.clone()),
            "{about}"
        );
        let mut inside = listed(file);
        assert!(inside.remove(".PKGINFO"), "{inside:?}");
        assert!(!inside.is_empty(), "{name}");
        if whole == "qx-update" {
            let before = all.len();
            all.extend(inside.iter().cloned());
            assert_eq!(
                all.len(),
                before + inside.len(),
                "{name} has what another one has"
            );
        }
        packages.insert(name);
    }
    let parts = [
        "bash-completion",
        "doc",
        "fish-completion",
        "mkinitfs",
        "openrc",
        "zsh-completion",
    ];
    for part in parts {
        assert!(
            packages.contains(&format!("qx-update-{part}")),
            "{packages:?}"
        );
    }
    assert!(
        packages.contains("qx-update") && packages.contains("qx-publish"),
        "{packages:?}"
    );
    let tarball = built
        .iter()
        .find(|f| f.extension().is_some_and(|e| e == "gz"))
        .unwrap();
    assert_eq!(all, listed(tarball));
}

/// The packages are installed, used, removed and purged by dpkg; what a person wrote into a configuration stays until the last. The same
/// sources make the same files.
#[test]
fn packages_go_in_and_out() {
    let place = temporary("qx-dist-");
    let bin = programs(place.path());
    let out = place.path().join("out");
    let files = || {
        // Else that of the last commit.
        let mut build = dist("build");
        succeeds(
            build
                .env("SOURCE_DATE_EPOCH", "1790000000")
                .arg(&bin)
                .arg(&out),
        );
        let mut files: Vec<PathBuf> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    };
    let sums = |files: &[PathBuf]| succeeds(Command::new("sha256sum").args(files));
    let first = files();
    let once = sums(&first);
    assert_eq!(once, sums(&files()));
    packages_for_alpine(&first);

    let root = place.path().join("system");
    for directory in [
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "var/lib/dpkg/triggers",
        "bin",
    ] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for file in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(file), "").unwrap();
    }
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new("dpkg");
        command
            .arg(format!("--root={}", path(&root)))
            .args(["--force-script-chrootless", "--log=/dev/null"]);
        succeeds(command.args(arguments))
    };
    let packages: Vec<&str> = first
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "deb"))
        .map(|f| path(f))
        .collect();
    assert_eq!(packages.len(), 2);
    dpkg(&[&["--install"], &packages[..]].concat());
    for (program, start) in [("qx-update", "qx-update 0"), ("qx-publish", "qx-publish 0")] {
        let version = succeeds(Command::new(root.join("usr/bin").join(program)).arg("--version"));
        assert!(version.starts_with(start), "{version}");
    }
    for service in ["recover", "data", "confirm", "watch"] {
        let script = root.join(format!("etc/init.d/qx-update-{service}"));
        assert!(
            fs::read_to_string(&script)
                .unwrap()
                .starts_with("#!/sbin/openrc-run\n")
        );
        succeeds(Command::new("sh").arg("-n").arg(&script));
    }
    for part in [
        "usr/lib/qx-update/qx-recover",
        "usr/lib/qx-update/qx-update-initramfs",
        "usr/share/initramfs-tools/hooks/qx-update",
    ] {
        assert!(root.join(part).exists(), "{part}");
    }
    let conf = root.join("etc/qx-update/boot.conf");
    fs::write(&conf, "DATA=LABEL=mine\n").unwrap();
    dpkg(&["--remove", "qx-update"]);
    assert!(!root.join("usr/bin/qx-update").exists());
    assert_eq!(fs::read_to_string(&conf).unwrap(), "DATA=LABEL=mine\n");
    dpkg(&["--purge", "qx-update", "qx-publish"]);
    assert!(!root.join("etc/qx-update").exists());
    assert!(!root.join("usr/bin/qx-publish").exists());
}
