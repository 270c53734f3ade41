//! Signs what qx-publish would not: edits a repository's metadata and signs the result with the publisher's own keys,
//! so that everything an appliance sees is validly signed but for what the test is about. The same for an attacker, who has
//! some of the keys.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ed25519_compact::KeyPair;
use serde_json::{Map, Value, json};
use sha2::Digest as _;

use super::{json_file, text};

pub struct Signer {
    pub repo: PathBuf,
    /// Where a new key goes.
    dir: PathBuf,
    /// By the names of their files, without the ending.
    keys: BTreeMap<String, KeyPair>,
}

impl Signer {
    pub fn new(repo: &Path, keys: &Path) -> Signer {
        let files = fs::read_dir(keys).unwrap().flatten().map(|e| e.path());
        let found = files
            .filter_map(|file| {
                let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
                Some((name, KeyPair::from_pem(&text(&file)).ok()?))
            })
            .collect();
        Signer {
            repo: repo.to_owned(),
            dir: keys.to_owned(),
            keys: found,
        }
    }

    /// For an attacker, who has these of the keys and no others.
    pub fn only(mut self, names: &[&str]) -> Signer {
        self.dir.clone_from(&self.repo);
        self.keys.retain(|name, _| names.contains(&name.as_str()));
        assert_eq!(self.keys.len(), names.len(), "stolen: {names:?}");
        self
    }

    /// A key more, which the repository does not know yet. As a file too, so that `qx-publish` has it.
    pub fn new_key(&mut self, name: &str) {
        let key = KeyPair::generate();
        fs::write(self.dir.join(format!("{name}.pem")), key.to_pem()).unwrap();
        self.keys.insert(name.to_owned(), key);
    }

    /// The public half of a key as metadata list it, and its id.
    pub fn public(&self, name: &str) -> (String, Value) {
        let public = json!({
            "keytype": "ed25519",
            "scheme": "ed25519",
            "keyval": {"public": hex(self.key(name).pk.as_slice())},
        });
        (sha256(public.to_string().as_bytes()), public)
    }

    /// Signs with these keys, whoever they belong to; each signature is under its key's own id.
    pub fn seal(&self, signed: &Value, by: &[&str]) -> Value {
        let signatures: Vec<Value> = by
            .iter()
            .map(|name| json!({"keyid": self.public(name).0, "sig": self.signature(signed, name)}))
            .collect();
        json!({"signatures": signatures, "signed": signed})
    }

    /// The signature by this key, in hexadecimal digits.
    pub fn signature(&self, signed: &Value, by: &str) -> String {
        // Canonical for what is used here: sorted keys, no spaces, no character that is escaped in two ways.
        hex(self.key(by).sk.sign(signed.to_string(), None).as_slice())
    }

    /// Writes a file of metadata.
    pub fn put(&self, file: &str, envelope: &Value) {
        fs::write(self.repo.join("metadata").join(file), envelope.to_string()).unwrap();
    }

    /// The next root, with this change and by these keys; its version.
    pub fn next_root(&self, by: &[&str], edit: impl FnOnce(&mut Value)) -> u64 {
        let mut root = Value::Object(self.signed("root"));
        let version = root["version"].as_u64().unwrap() + 1;
        root["version"] = json!(version);
        edit(&mut root);
        self.put(&format!("{version}.root.json"), &self.seal(&root, by));
        version
    }

    /// In root metadata, gives a role these keys and no others.
    pub fn entrust(&self, root: &mut Value, role: &str, names: &[&str], threshold: u64) {
        let mut ids = Vec::new();
        for name in names {
            let (id, public) = self.public(name);
            root["keys"][&id] = public;
            ids.push(id);
        }
        root["roles"][role] = json!({"keyids": ids, "threshold": threshold});
    }

    fn key(&self, name: &str) -> &KeyPair {
        let key = self.keys.get(name);
        key.unwrap_or_else(|| panic!("there is no key {name}"))
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

    /// What the newest metadata of a role say.
    pub fn signed(&self, role: &str) -> Map<String, Value> {
        json_file(&self.metadata_file(role))["signed"]
            .as_object()
            .unwrap()
            .clone()
    }

    /// The keys that are listed where a role gets its own, and the ids of its own.
    fn keys_of(&self, role: &str) -> (Value, Value) {
        let root = self.signed("root");
        if let Some(named) = root["roles"].get(role) {
            return (root["keys"].clone(), named["keyids"].clone());
        }
        let delegations = &self.signed("targets")["delegations"];
        let named = delegations["roles"].as_array().unwrap();
        let named = named.iter().find(|r| r["name"] == role);
        let named = named.unwrap_or_else(|| panic!("nobody delegates to {role}"));
        (delegations["keys"].clone(), named["keyids"].clone())
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
            "root" | "timestamp" => return,
            "snapshot" => "timestamp",
            _ => "snapshot",
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
        let (keys, ids) = self.keys_of(role);
        let mut signatures = Vec::new();
        for id in ids.as_array().unwrap() {
            let public = keys[id.as_str().unwrap()]["keyval"]["public"]
                .as_str()
                .unwrap();
            let key = self
                .keys
                .values()
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
