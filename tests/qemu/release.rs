//! Releases as their recipes tell of them, and repositories that offer them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use qx_release::digest::Digest;
use serde_json::{Value, json};

use crate::built;

/// A release: its recipe, and what it looks like when it runs.
#[derive(Debug, Clone)]
pub struct Release {
    /// Its recipe's file.
    pub recipe: PathBuf,
    /// Its version.
    pub version: String,
    /// Each service and the mark of the program that it runs ([`MARK`]), sorted.
    pub programs: Vec<(String, String)>,
    /// The URLs of its health checks and the version that each answers with.
    pub answers: Vec<(String, String)>,
}

/// A repository, served on the host's loopback until it is dropped.
pub struct Repository {
    /// Its directory.
    pub dir: PathBuf,
    /// Where the appliance finds it.
    pub url: String,
    server: Child,
}

/// What tells the file `$file` from any other program here: the digest of its length, beginning and end. All of it would be half of
/// what the appliance's processor does in a test; that nothing in between is damaged is for `qx-update verify` to say.
pub const MARK: &str = r#"{ stat -L -c %s "$file"; head -c 262144 "$file"; tail -c 262144 "$file"; } 2>/dev/null | sha256sum"#;

/// The same of its bytes.
fn mark(bytes: &[u8]) -> String {
    let length = format!("{}\n", bytes.len()).into_bytes();
    let part = bytes.len().min(262_144);
    let marked = [&length, &bytes[..part], &bytes[bytes.len() - part..]].concat();
    Digest::of_reader(&marked[..]).unwrap().0.to_string()
}

impl Release {
    /// A release of `qemu/releases/`.
    pub fn named(name: &str) -> Release {
        Release::read(&releases().join(name).join("recipe.json"))
    }

    /// A further release, made from one of `qemu/releases/`: `change` may do what it likes with the recipe and with the
    /// directory that its relative sources are in.
    pub fn derived(
        name: &str,
        from: &str,
        version: &str,
        change: impl FnOnce(&mut Value, &Path),
    ) -> Release {
        built::image();
        let dir = built::directory(&format!("release-{name}"));
        let source = releases().join(from);
        built::must_succeed(Command::new("cp").arg("-r").arg(source.join(".")).arg(&dir));
        let mut recipe = read_json(&source.join("recipe.json"));
        recipe["version"] = json!(version);
        for component in recipe["components"].as_array_mut().unwrap() {
            let path = component["source"].as_str().unwrap();
            if path.starts_with("..") {
                component["source"] = json!(source.join(path));
            }
        }
        change(&mut recipe, &dir);
        let file = dir.join("recipe.json");
        fs::write(&file, serde_json::to_vec_pretty(&recipe).unwrap()).unwrap();
        Release::read(&file)
    }

    fn read(file: &Path) -> Release {
        // The programs come with the image.
        built::image();
        let recipe = read_json(file);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        // What lies inside of a tree is told by its path only.
        let digest = |install_path: &Value| {
            let components = list(&recipe["components"]);
            let component = components
                .iter()
                .find(|c| c["install_path"] == *install_path)?;
            let source = file.parent().unwrap().join(text(&component["source"]));
            let bytes = fs::read(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
            Some(mark(&bytes))
        };
        let mut programs: Vec<(String, String)> = list(&recipe["services"])
            .iter()
            .filter_map(|service| Some((text(&service["name"]), digest(&service["runs"])?)))
            .collect();
        programs.sort();
        let answers = list(&recipe["health"])
            .iter()
            .filter(|check| check["type"] == "http" && check["json"].is_object())
            .map(|check| (text(&check["url"]), text(&check["json"]["equals"])))
            .collect();
        Release {
            version: text(&recipe["version"]),
            recipe: file.to_owned(),
            programs,
            answers,
        }
    }
}

impl Repository {
    /// A repository that offers `v1` and these.
    pub fn with_v1(name: &str, releases: &[&Release]) -> Repository {
        static V1: OnceLock<PathBuf> = OnceLock::new();
        let with_v1 = V1.get_or_init(|| {
            built::image();
            let dir = built::directory("repository-v1");
            copy(&built::top().join("qemu/build/repo"), &dir);
            publish(&dir, &Release::named("v1"));
            dir
        });
        Repository::serve(name, with_v1, releases)
    }

    /// A repository that offers these.
    pub fn with(name: &str, releases: &[&Release]) -> Repository {
        built::image();
        Repository::serve(name, &built::top().join("qemu/build/repo"), releases)
    }

    fn serve(name: &str, from: &Path, releases: &[&Release]) -> Repository {
        let dir = built::directory(name);
        copy(from, &dir);
        for release in releases {
            publish(&dir, release);
        }
        let mut server = Command::new(built::program("qx-publish"))
            .args(["serve", "--listen", "127.0.0.1:0", "--repo"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        let port = said.trim().rsplit(':').next().unwrap_or_default();
        assert!(
            port.parse::<u16>().is_ok(),
            "qx-publish serve says '{said}'"
        );
        // The host's loopback, as QEMU's user network shows it.
        let url = format!("http://10.0.2.2:{port}");
        Repository { dir, url, server }
    }

    /// A bundle with a release, as a stick carries it.
    pub fn bundle(&self, version: &str, to: &Path) {
        let mut bundle = Command::new(built::program("qx-publish"));
        bundle.args(["bundle", "--version", version, "--repo"]);
        built::must_succeed(bundle.arg(&self.dir).arg("--out").arg(to));
    }

    /// One more release, from now on.
    pub fn publish(&self, release: &Release) {
        publish(&self.dir, release);
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn releases() -> PathBuf {
    built::top().join("qemu/releases")
}

fn publish(repository: &Path, release: &Release) {
    built::must_succeed(
        Command::new(built::program("qx-publish"))
            .arg("release")
            .arg(&release.recipe)
            .arg("--repo")
            .arg(repository)
            .arg("--keys")
            .arg(built::top().join("qemu/build/keys")),
    );
}

fn copy(from: &Path, to: &Path) {
    built::must_succeed(Command::new("cp").arg("-r").arg(from.join(".")).arg(to));
}

fn read_json(file: &Path) -> Value {
    let bytes = fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}
