//! A repository, its keys and the sources of a small release in a directory of their own; the real `qx-publish` at
//! work on them, and a client that reads what it made.

#![allow(dead_code)] // Each test binary uses its part of this.

use crate::common::publisher;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use qx_release::digest::Digest;
use qx_release::error::{Context, Result};
use qx_release::manifest::Name;
use qx_release::trust::Limits;
use qx_release::trust::clock::Clock;
use qx_update::fetch::port::Fetch;
use qx_update::repository::{Repository, Wanted};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where most commands find the repository and the keys.
pub const HERE: [&str; 4] = ["--repo", "repo", "--keys", "keys"];

pub struct Place(pub TempDir);

/// In memory where that can be had: what a killed process leaves does not depend on the disk, and waiting for hundreds of
/// syncs is all that would take time.
fn directory() -> TempDir {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("qx-publish-");
    let builder = builder.permissions(fs::Permissions::from_mode(0o755));
    let made = builder.tempdir_in("/dev/shm");
    made.or_else(|_| builder.tempdir()).unwrap()
}

/// How a command ended.
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Place {
    /// With the sources of a release only.
    pub fn empty() -> Place {
        let place = Place(directory());
        place.file("src/web/index.html", b"one");
        place.file("src/node/index.html", b"node");
        place
    }

    /// With a repository of the product `vdc`; `more` goes to `init`.
    pub fn with(more: &[&str]) -> Place {
        let place = Place::empty();
        place.good(&["init", "--product", "vdc"], more);
        place
    }

    /// A copy of all files.
    pub fn copy(&self) -> Place {
        let place = Place(directory());
        let status = Command::new("cp")
            .args(["-a", "--"])
            .arg(self.0.path().join("."))
            .arg(place.0.path())
            .status();
        assert!(status.unwrap().success());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        let dir = path.parent().unwrap();
        crate::common::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// Writes `src/VERSION.json`, a recipe of these components, and returns its path.
    pub fn recipe(&self, version: &str, components: &[&str]) -> String {
        let components: Vec<Value> = components
            .iter()
            .map(|name| {
                json!({"name": name, "kind": "tree", "install_path": format!("share/{name}"), "source": name})
            })
            .collect();
        let recipe = json!({
            "format": 1, "product": "vdc", "version": version, "arch": "x86_64", "components": components,
        });
        let name = format!("src/{version}.json");
        self.file(&name, recipe.to_string().as_bytes());
        name
    }

    /// Moves a key out of `keys` into a directory of its own.
    pub fn take_away(&self, key: &str, to: &str) {
        crate::common::create_dir(self.path(to)).unwrap();
        fs::rename(
            self.path(&format!("keys/{key}.pem")),
            self.path(&format!("{to}/{key}.pem")),
        )
        .unwrap();
        let _ = fs::remove_file(self.path(&format!("keys/{key}.pub.pem")));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(publisher());
        command.args(arguments).current_dir(self.0.path());
        // The same release is the same bytes when it is made again.
        command.env("SOURCE_DATE_EPOCH", "1800000000");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments).output().unwrap())
    }

    /// Runs a command on this repository that must succeed without a word on standard error.
    #[track_caller]
    pub fn good(&self, arguments: &[&str], more: &[&str]) -> String {
        let arguments = [arguments, &HERE[..], more].concat();
        let Ended { code, out, err } = self.run(&arguments);
        assert_eq!(
            (code, err.as_str()),
            (0, ""),
            "{arguments:?}\n{out}{err}{:#?}",
            self.names()
        );
        out
    }

    /// Runs a command on this repository that must fail with one line, and change nothing in the repository.
    #[track_caller]
    pub fn bad(&self, exit: i32, arguments: &[&str], more: &[&str]) -> String {
        let before = self.tree("repo");
        let arguments = [arguments, &HERE[..], more].concat();
        let Ended { code, out, err } = self.run(&arguments);
        assert_eq!(
            (code, out.as_str()),
            (exit, ""),
            "{arguments:?}\n{out}{err}"
        );
        assert_eq!(err.lines().count(), 1, "{arguments:?}\n{err}");
        assert!(
            before == self.tree("repo"),
            "{arguments:?}\n{err}{:#?}",
            self.names()
        );
        err
    }

    /// Every file below a directory, and its bytes.
    pub fn tree(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.path(name)];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    let name = path.strip_prefix(self.0.path()).unwrap();
                    found.insert(name.display().to_string(), fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    pub fn names(&self) -> Vec<String> {
        self.tree("").into_keys().collect()
    }

    /// The drafts that wait.
    pub fn drafts(&self) -> Vec<String> {
        self.tree("repo/.drafts").into_keys().collect()
    }

    /// What a role's metadata of this version say.
    #[track_caller]
    pub fn signed(&self, version: u64, role: &str) -> Value {
        self.metadata(version, role)["signed"].clone()
    }

    #[track_caller]
    pub fn metadata(&self, version: u64, role: &str) -> Value {
        let name = match role {
            "timestamp" => "timestamp.json".to_owned(),
            _ => format!("{version}.{role}.json"),
        };
        let bytes = fs::read(self.path("repo/metadata").join(&name));
        serde_json::from_slice(&bytes.unwrap_or_else(|e| panic!("{name}: {e}"))).unwrap()
    }

    /// What a client sees that keeps what it trusts in `store`.
    pub fn seen(&self, store: &str) -> Result<Seen> {
        let root = fs::read(self.path("repo/metadata/1.root.json")).unwrap();
        let source = Directory(self.path("repo"));
        let now = SystemTime::now();
        let (clock, limits) = (Clock::new(now, now), Limits::default());
        let repository = Repository::refresh(&source, &self.path(store), &root, clock, &limits)?;
        let mut releases = BTreeMap::new();
        for channel in ["stable", "web"] {
            let name = |text: &str| text.parse::<Name>().unwrap();
            let (product, channel, arch) = (name("vdc"), name(channel), name("x86_64"));
            let wanted = Wanted {
                product: &product,
                channel: &channel,
                arch: &arch,
                version: None,
            };
            let found = repository.releases(&source, &wanted)?;
            assert!(found.left_out.is_empty(), "{:?}", found.left_out);
            for offer in found.offers.iter().filter(|offer| offer.channel == channel) {
                let manifest = repository.manifest(&source, offer)?.unwrap().manifest;
                for component in &manifest.components {
                    let name = component.artifact.as_ref().unwrap();
                    let target = repository.target(&source, name)?;
                    let target = target.unwrap_or_else(|| panic!("{name}"));
                    let bytes = source.small(&target.path, target.length)?.unwrap();
                    assert_eq!(Digest::of(&bytes), target.sha256, "{name}");
                }
                releases.insert(offer.target.to_string(), manifest.size_bytes());
            }
        }
        Ok(Seen {
            root: repository.versions().root,
            releases,
        })
    }

    /// What a client sees that never saw it before.
    #[track_caller]
    pub fn fresh(&self) -> Seen {
        let _ = fs::remove_dir_all(self.path("fresh"));
        let seen = self.seen("fresh");
        seen.unwrap_or_else(|e| panic!("{}\n{:#?}", e.chain(), self.names()))
    }
}

/// What a client sees of a repository: the version of the root, and the bytes that each release installs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub root: u64,
    pub releases: BTreeMap<String, u64>,
}

/// The repository's directory as a source.
struct Directory(PathBuf);

impl Fetch for Directory {
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match fs::read(self.0.join(path)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => {
                let bytes = read.doing(|| format!("reading {path}"))?;
                assert!(bytes.len() as u64 <= limit, "{path}");
                Ok(Some(bytes))
            }
        }
    }
}

pub fn ended(output: Output) -> Ended {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// The ids of the keys that signed.
pub fn signers(metadata: &Value) -> Vec<String> {
    let signatures = metadata["signatures"].as_array().unwrap();
    signatures
        .iter()
        .map(|s| s["keyid"].as_str().unwrap().to_owned())
        .collect()
}

/// The ids of the keys that a root names for a role.
pub fn key_ids(root: &Value, role: &str) -> Vec<String> {
    let ids = root["roles"][role]["keyids"].as_array().unwrap();
    ids.iter()
        .map(|id| id.as_str().unwrap().to_owned())
        .collect()
}

pub fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
