//! A publisher's desk in a temporary directory: recipes, keys and a repository, and the real `qx-publish` beside them.

#![allow(dead_code)] // Each test binary uses its part of this.

use crate::common::{publisher, write_script};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;

/// Gone with its files when it is dropped.
pub struct Desk(tempfile::TempDir);

impl Desk {
    pub fn new() -> Desk {
        Desk(crate::common::temporary("desk-"))
    }

    /// With a repository `repo` for the product `vdc`, and its keys in `keys`.
    pub fn ready() -> Desk {
        let desk = Desk::new();
        desk.succeeds(&[
            "init",
            "--repo",
            "repo",
            "--keys",
            "keys",
            "--product",
            "vdc",
        ]);
        desk
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        crate::common::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes a shell script that can be run.
    pub fn script(&self, name: &str, body: &str) {
        write_script(&self.path(name), body);
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Writes the recipe of a release of one service, one tool and one tree.
    pub fn recipe(&self, version: &str, arch: &str) {
        let daemon = self.write(
            "src/daemon",
            elf(arch, format!("daemon {version}").as_bytes()),
        );
        fs::set_permissions(daemon, fs::Permissions::from_mode(0o755)).unwrap();
        self.write("src/www/index.html", format!("<p>{version}</p>"));
        self.write("src/www/same.txt", "the same in each version");
        let recipe = json!({
            "format": 1, "product": "vdc", "version": version, "arch": arch,
            "components": [
                {"name": "daemon", "kind": "bin", "install_path": "bin/qx-daemon", "source": "daemon"},
                {"name": "www", "kind": "tree", "install_path": "share/vdc/www", "source": "www"},
            ],
            "services": [{"name": "daemon", "runs": "bin/qx-daemon", "uses": ["www"]}],
        });
        self.write("src/recipe.json", recipe.to_string());
    }

    /// Publishes such a release.
    pub fn release(&self, version: &str) -> String {
        self.recipe(version, "x86_64");
        self.succeeds(RELEASE)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(publisher());
        command.args(arguments).current_dir(self.0.path());
        command.env_remove("SOURCE_DATE_EPOCH");
        command.env_remove("QX_PUBLISH_PASSPHRASE");
        command
    }

    /// Runs it to success, with nothing on the standard error.
    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let (out, err) = texts(&output);
        if !output.status.success() || !err.is_empty() {
            self.panic(&format!("{arguments:?}: {}\n{out}{err}", output.status));
        }
        out
    }

    /// Runs it to failure: exit code 1, one line that has all of `words`, and nothing changed but for what those lines say.
    pub fn fails(&self, arguments: &[&str], words: &[&str]) {
        self.command_fails(&mut self.command(arguments), 1, words);
    }

    /// The same for a command that was prepared, and any exit code.
    pub fn command_fails(&self, command: &mut Command, code: i32, words: &[&str]) {
        let before = self.files();
        let output = without_terminal(command);
        let (out, err) = texts(&output);
        let told = format!("{command:?}: {}\n{out}{err}", output.status);
        let line = err.lines().collect::<Vec<_>>();
        let one = matches!(line[..], [line] if line.starts_with("qx-publish: "));
        if output.status.code() != Some(code) || !out.is_empty() || !one {
            self.panic(&told);
        }
        for word in words {
            if !err.contains(word) {
                self.panic(&format!("'{word}' is missing in:\n{told}"));
            }
        }
        if self.files() != before {
            self.panic(&format!("files have changed:\n{told}"));
        }
    }

    /// Runs another program to success: its standard output.
    pub fn runs(&self, program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let (_, err) = texts(&output);
        assert!(output.status.success(), "{program} {arguments:?}: {err}");
        output.stdout
    }

    /// Every file below a directory of the desk.
    pub fn files_in(&self, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.path(name)];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    let bytes = fs::read(&path).unwrap();
                    let path = path.strip_prefix(self.0.path()).unwrap();
                    found.insert(path.to_owned(), bytes);
                }
            }
        }
        found
    }

    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.files_in("")
    }

    fn panic(&self, why: &str) -> ! {
        panic!("{why}\n{:#?}", self.files().keys());
    }
}

pub const RELEASE: &[&str] = &[
    "release",
    "src/recipe.json",
    "--repo",
    "repo",
    "--keys",
    "keys",
];

/// Runs it in a session of its own: the terminal of whoever runs the tests is not asked.
pub fn without_terminal(command: &mut Command) -> Output {
    let mut session = Command::new("setsid");
    session
        .arg("--wait")
        .arg(command.get_program())
        .args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        session.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => session.env(name, value),
            None => session.env_remove(name),
        };
    }
    session.stdin(Stdio::null()).output().unwrap()
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A program's header, and something to tell it by.
fn elf(arch: &str, body: &[u8]) -> Vec<u8> {
    let machine: u16 = if arch == "aarch64" { 183 } else { 62 };
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    bytes.extend(machine.to_le_bytes());
    bytes.extend(body);
    bytes
}
