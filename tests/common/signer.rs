//! Signs what qx-publish would not: edits a repository's metadata and signs the result with the publisher's own keys,
//! so that everything an appliance sees is validly signed but for what the test is about.

use std::fs;
use std::path::{Path, PathBuf};

use ed25519_compact::KeyPair;
use serde_json::{Map, Value, json};
use sha2::Digest as _;

use super::{json_file, text};

pub struct Signer {
    repo: PathBuf,
    keys: Vec<KeyPair>,
}

impl Signer {
    pub fn new(repo: &Path, keys: &Path) -> Signer {
        let files = fs::read_dir(keys).unwrap().flatten().map(|e| e.path());
        let keys = files
            .filter_map(|f| KeyPair::from_pem(&text(&f)).ok())
            .collect();
        Signer {
            repo: repo.to_owned(),
            keys,
        }
    }

    /// Edits what a role says, and signs it and all that depends on it, each with a new version.
    pub fn edit(&self, role: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let mut signed = self.signed(role);
        edit(&mut signed);
        self.publish(role, signed);
    }

    /// Replaces a target by these bytes, validly signed under the same name.
    pub fn replace_target(&self, name: &str, bytes: &[u8]) {
        let hash = sha256(bytes);
        let (dir, file) = name.rsplit_once('/').unwrap();
        fs::write(
            self.repo
                .join("targets")
                .join(dir)
                .join(format!("{hash}.{file}")),
            bytes,
        )
        .unwrap();
        self.edit("targets", |signed| {
            let target = &mut signed["targets"][name];
            assert!(target.is_object(), "no target {name}");
            target["length"] = json!(bytes.len());
            target["hashes"] = json!({"sha256": hash});
        });
    }

    /// The names of the targets.
    pub fn targets(&self) -> Vec<String> {
        let signed = self.signed("targets");
        signed["targets"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    }

    /// The bytes of a target.
    pub fn target(&self, name: &str) -> Vec<u8> {
        fs::read(self.target_file(name)).unwrap()
    }

    /// The file of a target.
    pub fn target_file(&self, name: &str) -> PathBuf {
        let signed = self.signed("targets");
        let hash = signed["targets"][name]["hashes"]["sha256"]
            .as_str()
            .unwrap();
        let (dir, file) = name.rsplit_once('/').unwrap();
        self.repo
            .join("targets")
            .join(dir)
            .join(format!("{hash}.{file}"))
    }

    /// The artifact of a component in the release that was published last.
    pub fn artifact_of(&self, component: &str) -> String {
        let prefix = format!("/artifacts/{component}-");
        let mut names = self.targets();
        names.retain(|name| name.contains(&prefix));
        assert_eq!(names.len(), 1, "one artifact of {component}: {names:?}");
        names.remove(0)
    }

    /// The manifest of a release.
    pub fn manifest_of(&self, version: &str) -> String {
        let suffix = format!("/{version}/release.json");
        let mut names = self.targets();
        names.retain(|name| name.ends_with(&suffix));
        names.remove(0)
    }

    /// Edits a release's manifest, and signs it.
    pub fn edit_manifest(&self, version: &str, edit: impl FnOnce(&mut Value)) {
        let name = self.manifest_of(version);
        let mut manifest = serde_json::from_slice(&self.target(&name)).unwrap();
        edit(&mut manifest);
        self.replace_target(&name, &serde_json::to_vec(&manifest).unwrap());
    }

    /// The file with the newest metadata of a role.
    pub fn metadata_file(&self, role: &str) -> PathBuf {
        let metadata = self.repo.join("metadata");
        if role == "timestamp" {
            return metadata.join("timestamp.json");
        }
        let version = fs::read_dir(&metadata)
            .unwrap()
            .flatten()
            .filter_map(|e| {
                let name = e.file_name().into_string().ok()?;
                name.strip_suffix(&format!(".{role}.json"))?
                    .parse::<u64>()
                    .ok()
            })
            .max()
            .unwrap();
        metadata.join(format!("{version}.{role}.json"))
    }

    fn signed(&self, role: &str) -> Map<String, Value> {
        json_file(&self.metadata_file(role))["signed"]
            .as_object()
            .unwrap()
            .clone()
    }

    fn publish(&self, role: &str, mut signed: Map<String, Value>) {
        let version = signed["version"].as_u64().unwrap() + 1;
        signed.insert("version".into(), json!(version));
        let file = match role {
            "timestamp" => "timestamp.json".to_owned(),
            _ => format!("{version}.{role}.json"),
        };
        let bytes = self.sign(role, signed);
        fs::write(self.repo.join("metadata").join(file), &bytes).unwrap();
        let above = match role {
            "targets" => "snapshot",
            "snapshot" => "timestamp",
            _ => return,
        };
        self.edit(above, |signed| {
            let meta = &mut signed["meta"][format!("{role}.json")];
            meta["version"] = json!(version);
            let meta = meta.as_object_mut().unwrap();
            if meta.contains_key("length") {
                meta.insert("length".into(), json!(bytes.len()));
            }
            if meta.contains_key("hashes") {
                meta.insert("hashes".into(), json!({"sha256": sha256(&bytes)}));
            }
        });
    }

    fn sign(&self, role: &str, signed: Map<String, Value>) -> Vec<u8> {
        let root = self.signed("root");
        let mut signatures = Vec::new();
        for id in root["roles"][role]["keyids"].as_array().unwrap() {
            let public = root["keys"][id.as_str().unwrap()]["keyval"]["public"]
                .as_str()
                .unwrap();
            let key = self
                .keys
                .iter()
                .find(|key| hex(key.pk.as_slice()) == public);
            let key = key.unwrap_or_else(|| panic!("no private key for {role}"));
            // Canonical for what is used here: sorted keys, no spaces, no character that is escaped in two ways.
            let bytes = serde_json::to_vec(&signed).unwrap();
            let signature = key.sk.sign(bytes, None);
            signatures.push(json!({"keyid": id, "sig": hex(signature.as_slice())}));
        }
        serde_json::to_vec(&json!({"signatures": signatures, "signed": signed})).unwrap()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
