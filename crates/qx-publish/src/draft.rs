//! Drafts: metadata that wait for signatures. A draft is public data, a file that goes to the machines where the keys
//! are; beside what a TUF file holds it says whose signatures it asks for, so that `sign` needs no repository.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::current::{Current, PUBLIC};
use super::envelope::{Authority, Envelope, pretty, short};
use super::keyring::Keyring;
use super::role::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP, check_team_name, kind, top_level};
use super::targets;
use qx_release::durable;
use qx_release::error::{Context, Error, Result};
use qx_release::text;
use qx_release::trust::described;

/// Where they lie in a repository; readers see no name that starts with a dot.
const DIRECTORY: &str = ".drafts";

/// The longest draft that is read, in bytes: more than any client reads.
const MAX_BYTES: u64 = 64 << 20;

/// Metadata that wait for signatures.
#[derive(Clone)]
pub struct Draft {
    /// Whose metadata they are.
    pub role: String,
    /// What is to be published, with the signatures so far.
    pub envelope: Envelope,
    /// Everyone of these must be satisfied.
    pub asks: Vec<Authority>,
}

impl Draft {
    /// Reads one.
    pub fn read(file: &Path) -> Result<Draft> {
        let doing = || format!("reading the draft {}", file.display());
        let length = fs::metadata(file).doing(doing)?.len();
        if length > MAX_BYTES {
            return Err(Error::new(format!(
                "{}: not a draft ({length} bytes)",
                doing()
            )));
        }
        let bytes = fs::read(file).doing(doing)?;
        let parse = || {
            let envelope = Envelope::parse(&bytes)?;
            let value: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
            let draft = &value["draft"];
            let role = draft["role"]
                .as_str()
                .ok_or("it is not a draft (draft.role is missing)")?;
            if !top_level(role) {
                check_team_name(role).map_err(|e| e.to_string())?;
            }
            if envelope.signed["_type"] != kind(role) {
                return Err(format!("its _type is not {}", kind(role)));
            }
            let asks = draft["asks"].as_array().into_iter().flatten();
            let asks = asks.map(|asked| {
                Some(Authority {
                    by: asked["by"].as_str()?.to_owned(),
                    keys: asked["keys"].as_object()?.clone(),
                    threshold: asked["threshold"].as_u64()?,
                })
            });
            let asks: Option<Vec<_>> = asks.collect();
            Ok(Draft {
                role: role.to_owned(),
                envelope,
                asks: asks.ok_or("draft.asks is missing or malformed")?,
            })
        };
        parse().map_err(|why: String| Error::new(format!("{}: {why}", doing())))
    }

    /// Its file in a repository.
    pub fn file(&self, repo: &Path) -> PathBuf {
        let name = format!("{}.{}.json", self.envelope.version(), self.role);
        repo.join(DIRECTORY).join(name)
    }

    /// Writes it.
    pub fn write(&self, file: &Path) -> Result<()> {
        let asks: Vec<Value> = self
            .asks
            .iter()
            .map(|a| json!({"by": a.by, "keys": a.keys, "threshold": a.threshold}))
            .collect();
        let mut value = self.envelope.value();
        value["draft"] = json!({"role": self.role, "asks": asks});
        durable::write_with_mode(file, &pretty(&value)?, PUBLIC)
    }

    /// What is missing, one line for each authority that is not satisfied.
    pub fn missing(&self) -> Result<Vec<String>> {
        let missing = self.asks.iter().map(|a| a.missing(&self.envelope));
        Ok(missing
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// Signs it with every key of the keyring that it asks for; the keys' ids.
    pub fn sign(&mut self, keys: &Keyring) -> Result<Vec<String>> {
        let mut added = Vec::new();
        for authority in &self.asks {
            for id in self.envelope.sign(authority, keys)? {
                if !added.contains(&id) {
                    added.push(id);
                }
            }
        }
        Ok(added)
    }

    /// Takes the signatures of a copy of it that was signed elsewhere; the keys' ids of those that are new.
    pub fn collect(&mut self, other: &Envelope) -> Result<Vec<String>> {
        let mut added = Vec::new();
        for (id, signature) in &other.signatures {
            let asked: Vec<&Authority> = self
                .asks
                .iter()
                .filter(|a| a.keys.contains_key(id))
                .collect();
            if asked.is_empty() {
                return Err(Error::new(format!(
                    "key {} is not accepted for the {} metadata",
                    short(id),
                    self.role
                )));
            }
            for authority in asked {
                let alone = Authority {
                    by: authority.by.clone(),
                    keys: Map::from_iter([(id.clone(), authority.keys[id].clone())]),
                    threshold: 1,
                };
                if !other.verifies(&alone) {
                    return Err(Error::new(format!(
                        "the signature of key {} is invalid",
                        short(id)
                    )));
                }
            }
            if self
                .envelope
                .signatures
                .insert(id.clone(), signature.clone())
                .as_ref()
                != Some(signature)
            {
                added.push(id.clone());
            }
        }
        Ok(added)
    }

    /// Describes what a signature on it approves, for people. `published`: what is published now, if that is known.
    pub fn describe(&self, published: Option<&Current>) -> String {
        let signed = &self.envelope.signed;
        let mut text = format!(
            "{} metadata, version {}, issued {}, valid until {}\n",
            self.role,
            self.envelope.version(),
            text::name(signed["x-issued"].as_str().unwrap_or("at an unknown time")),
            text::name(self.envelope.expires_text())
        );
        let old = published
            .and_then(|current| current.role(&self.role).ok())
            .map(|e| &e.signed);
        match self.role.as_str() {
            ROOT => {
                let before = old.cloned().unwrap_or_default();
                for role in [ROOT, TIMESTAMP, SNAPSHOT, TARGETS] {
                    let now = Authority::of_root(signed, role);
                    let then = old.map(|_| Authority::of_root(&before, role));
                    describe_keys(&mut text, role, &now, then.as_ref());
                }
            }
            _ => {
                describe_targets(&mut text, signed, old);
                for team in targets::teams(signed) {
                    let then = old.and_then(|old| Authority::of_team(old, &team));
                    if let Some(now) = Authority::of_team(signed, &team) {
                        let then = old.map(|_| {
                            then.unwrap_or(Authority {
                                keys: Map::new(),
                                ..now.clone()
                            })
                        });
                        describe_keys(
                            &mut text,
                            &format!("team {}", text::name(&team)),
                            &now,
                            then.as_ref(),
                        );
                    }
                    let paths = &super::envelope::delegation(signed, &team)
                        .map_or(Value::Null, |d| d["paths"].clone());
                    let _ = writeln!(text, "    may publish {}", text::line(&paths.to_string()));
                }
            }
        }
        text
    }
}

fn describe_keys(text: &mut String, role: &str, now: &Authority, then: Option<&Authority>) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "  {role}: {} of {} keys must sign",
        now.threshold,
        now.keys.len()
    );
    for id in now.keys.keys() {
        let new = then.is_some_and(|then| !then.keys.contains_key(id));
        let _ = writeln!(text, "    {} {}", short(id), if new { " NEW" } else { "" });
    }
    for id in then.into_iter().flat_map(|then| then.keys.keys()) {
        if !now.keys.contains_key(id) {
            let _ = writeln!(text, "    {}  REMOVED", short(id));
        }
    }
}

fn describe_targets(text: &mut String, signed: &Value, old: Option<&Value>) {
    let empty = Map::new();
    let now = signed["targets"].as_object().unwrap_or(&empty);
    let _ = writeln!(text, "  {} targets", now.len());
    let Some(old) = old else {
        for (name, target) in now
            .iter()
            .filter(|(name, _)| name.ends_with("/release.json"))
        {
            let _ = writeln!(
                text,
                "    {} {}",
                text::name(name),
                text::name(&target["hashes"]["sha256"].to_string())
            );
        }
        return;
    };
    let then = old["targets"].as_object().unwrap_or(&empty);
    for (name, target) in now {
        match then.get(name) {
            Some(before) if before == target => {}
            before => {
                let withdrawn = described::withdrawn(&target["custom"]).map(|why| text::name(&why));
                let word = match (before, withdrawn) {
                    (_, Some(reason)) if reason.is_empty() => "WITHDRAWN",
                    (_, Some(reason)) => &format!("WITHDRAWN: {reason}"),
                    (Some(_), None) => "CHANGED",
                    (None, None) => "NEW",
                };
                let digest = text::name(&target["hashes"]["sha256"].to_string());
                let _ = writeln!(text, "    {} {digest}  {word}", text::name(name));
            }
        }
    }
    for name in then.keys().filter(|name| !now.contains_key(*name)) {
        let _ = writeln!(text, "    {}  REMOVED", text::name(name));
    }
}

/// The drafts that wait in a repository, by role. Those that a publication has overtaken are removed.
pub(crate) fn waiting(current: &Current) -> Result<BTreeMap<String, Draft>> {
    let dir = current.dir.join(DIRECTORY);
    let doing = || format!("reading {}", dir.display());
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.doing(doing)?,
    };
    for entry in entries {
        let file = entry.doing(doing)?.path();
        if file.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let draft = Draft::read(&file)?;
        if draft.envelope.version() < current.next_version(&draft.role) {
            durable::remove(&file)?;
        } else {
            found.insert(draft.role.clone(), draft);
        }
    }
    Ok(found)
}

/// Makes the drafts' directory in a repository.
pub(crate) fn make_directory(repo: &Path) -> Result<()> {
    durable::create_dir(&repo.join(DIRECTORY), 0o755)
}

/// What `sign` did.
pub struct Signed {
    /// What was signed, for people.
    pub description: String,
    /// The ids of the keys that signed now.
    pub keys: Vec<String>,
    /// What is still missing.
    pub missing: Vec<String>,
}

/// Signs a draft with every key at hand that it asks for, wherever the repository is.
pub fn sign(file: &Path, keys: &Keyring, repo: Option<&Path>, out: &Path) -> Result<Signed> {
    let mut draft = Draft::read(file)?;
    let published = repo.map(Current::load).transpose()?;
    let added = draft.sign(keys)?;
    if added.is_empty() {
        let missing = draft.missing()?;
        return Err(keys.missing(&format!(
            "key that could add a signature to {} ({})",
            file.display(),
            if missing.is_empty() {
                "it has all required signatures".to_owned()
            } else {
                missing.join("; ")
            }
        )));
    }
    draft.write(out)?;
    Ok(Signed {
        description: draft.describe(published.as_ref()),
        keys: added,
        missing: draft.missing()?,
    })
}
