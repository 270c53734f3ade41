//! A repository, its keys and the sources of a small release in a directory of their own; the real `qx-publish` at
//! work on them, and a client that reads what it made.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use qx_release::digest::Digest;
use qx_release::error::Result;
use qx_release::manifest::Name;
use qx_release::trust::Limits;
use qx_release::trust::clock::Clock;
use qx_update::fetch::port::Fetch;
use qx_update::repository::{Repository, Wanted};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::work::{Directory, Work};

/// Where most commands find the repository and the keys.
pub const HERE: [&str; 4] = ["--repo", "repo", "--keys", "keys"];

pub struct Place(Work);

impl Deref for Place {
    type Target = Work;

    fn deref(&self) -> &Work {
        &self.0
    }
}

/// In memory where that can be had: what a killed process leaves does not depend on the disk, and waiting for hundreds of
/// syncs is all that would take time.
fn directory() -> TempDir {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("qx-publish-");
    let builder = builder.permissions(fs::Permissions::from_mode(0o755));
    let made = builder.tempdir_in("/dev/shm");
    made.or_else(|_| builder.tempdir()).unwrap()
}

impl Place {
    fn in_memory() -> Place {
        let mut work = Work::in_directory(directory());
        work.epoch = Some("1800000000");
        Place(work)
    }

    /// With the sources of a release only.
    pub fn empty() -> Place {
        let place = Place::in_memory();
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
        let place = Place::in_memory();
        let status = Command::new("cp")
            .args(["-a", "--"])
            .arg(self.path("."))
            .arg(place.path(""))
            .status();
        assert!(status.unwrap().success());
        place
    }

    pub fn file(&self, name: &str, bytes: &[u8]) {
        self.0.file(name, bytes, 0o644);
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
            self.path(format!("keys/{key}.pem")),
            self.path(format!("{to}/{key}.pem")),
        )
        .unwrap();
        let _ = fs::remove_file(self.path(format!("keys/{key}.pub.pem")));
    }

    /// Runs a command on this repository that must succeed without a word on standard error.
    #[track_caller]
    pub fn good(&self, arguments: &[&str], more: &[&str]) -> String {
        self.succeeds(&[arguments, &HERE[..], more].concat())
    }

    /// Runs a command on this repository that must fail with one line, and change nothing in the repository.
    #[track_caller]
    pub fn bad(&self, exit: i32, arguments: &[&str], more: &[&str]) -> String {
        self.0.bad(exit, &[arguments, &HERE[..], more].concat())
    }

    /// Every file below a directory, and its bytes.
    pub fn tree(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        self.files(name)
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
