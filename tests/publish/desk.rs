//! A publisher's desk: recipes, keys and a repository in a directory, and the real `qx-publish` beside them.

use std::fs;
use std::io::Write;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use super::work::{Ended, Work, elf};
use crate::common::{temporary, write_script};

pub use super::work::RELEASE;

pub struct Desk(Work);

impl Deref for Desk {
    type Target = Work;

    fn deref(&self) -> &Work {
        &self.0
    }
}

impl Desk {
    pub fn new() -> Desk {
        Desk(Work::in_directory(temporary("desk-")))
    }

    /// With a repository `repo` for the product `vdc`, and its keys in `keys`.
    pub fn ready() -> Desk {
        let desk = Desk::new();
        desk.init();
        desk
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        self.file(name, bytes, 0o644)
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
        let machine = if arch == "aarch64" { 183 } else { 62 };
        let daemon = elf(machine, format!("daemon {version}").as_bytes());
        self.file("src/daemon", daemon, 0o755);
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

    /// Runs it to failure: exit code 1, one line that has all of `words`, and no file changed.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str], words: &[&str]) {
        self.command_fails(&mut self.command(arguments), 1, words);
    }

    /// The same for a command that was prepared, and any exit code.
    #[track_caller]
    pub fn command_fails(&self, command: &mut Command, code: i32, words: &[&str]) {
        let before = self.tree("");
        let ended = Ended::from(without_terminal(command));
        self.refused(&format!("{command:?}"), &ended, &before, "", code);
        for word in words {
            assert!(
                ended.err.contains(word),
                "'{word}' is missing in: {}",
                ended.err
            );
        }
    }

    /// Runs another program to success: its standard output.
    pub fn runs(&self, program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(self.path(""))
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
}

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
