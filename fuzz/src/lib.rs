//! What the fuzz targets share: fixed keys, an honest repository, a frame in which the fuzzer chooses who signs what, and
//! the oracles, which know on their own what was signed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use peak_alloc::PeakAlloc;
use qx_publish::pem::{self, Private};
use qx_release::trust::clock::Clock;
use qx_release::trust::key::{Key, Keys, Verifiers, hex, unhex};
use qx_release::trust::signing::{SecretKey, Sign};
use qx_release::trust::{Limits, Role, SnapshotCopy, TrustedSet, canonical};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A parser may take so many times its input's length, and [`MEMORY_BASE`] on top.
const MEMORY_FACTOR: usize = 64;
/// In bytes: tables of a fixed size, and error messages.
const MEMORY_BASE: usize = 128 * 1024;

/// Runs a parser on an input of so many bytes, and panics if it took more memory at once than is in proportion.
pub fn bounded<T>(length: usize, parse: impl FnOnce() -> T) -> T {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = parse();
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let bound = MEMORY_FACTOR * length + MEMORY_BASE;
    assert!(
        taken <= bound,
        "{taken} bytes of memory for an input of {length}, and {bound} are allowed"
    );
    result
}

/// A directory in memory for files that a parser reads or makes; gone with this process, if that is not killed.
pub fn scratch() -> &'static Path {
    static SCRATCH: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let place = tempfile::Builder::new()
            .prefix("qx-fuzz-")
            .tempdir_in("/dev/shm");
        place.expect("/dev/shm can be written to")
    });
    SCRATCH.path()
}

/// Whether an error can be shown to a person as it is.
pub fn one_line(text: &str) {
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "{text:?}");
    assert!(!text.is_empty());
}

/// The fuzzer's keys, by number. [`SPEAK`] says which of them speak for a role.
static KEYS: LazyLock<Vec<SecretKey>> = LazyLock::new(|| {
    const P256: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg6zi2USI1dBhaGEw6
xjNOhtAxHz5ebvl7QzPCfJdu2YWhRANCAATnigShLzwRciiyFVKnU0LCxGypkqEx
h4/bTwdFcHZOPhOPacktrhJztJlYEvGvdAghqrC81j+m6QD13Aw44keV
-----END PRIVATE KEY-----
";
    let mut keys: Vec<SecretKey> = (0..4).map(|n| SecretKey::from_seed([n + 1; 32])).collect();
    match pem::private(P256) {
        Ok(Private::Plain(key)) => keys.push(key),
        _ => unreachable!("a constant"),
    }
    keys
});

/// The numbers of the keys that speak for each role of the honest repository; the others are known to it and speak for none.
pub const SPEAK: [usize; 3] = [0, 1, 4];
/// How many of them it takes.
pub const THRESHOLD: u64 = 2;

/// The key of that number.
pub fn key(number: usize) -> &'static SecretKey {
    &KEYS[number % KEYS.len()]
}

/// The ids under which the honest repository knows a key: each has an alias.
pub fn ids(number: usize) -> [String; 2] {
    let number = number % KEYS.len();
    [format!("k{number}"), format!("a{number}")]
}

/// All keys under all of their ids, as TUF key objects.
pub fn key_objects() -> Value {
    let all = (0..KEYS.len()).flat_map(|n| ids(n).map(|id| (id, key(n).public())));
    Value::Object(all.collect())
}

/// What a role of the honest repository asks for.
pub fn speakers() -> Value {
    let ids: Vec<String> = SPEAK.into_iter().flat_map(ids).collect();
    json!({"keyids": ids, "threshold": THRESHOLD})
}

/// The same for those who verify.
pub fn verifiers() -> Verifiers {
    let mut keys = Keys::new();
    for number in SPEAK {
        for id in ids(number) {
            keys.extend(Key::from_value(&key(number).public()).map(|key| (id, key)));
        }
    }
    Verifiers {
        keys,
        threshold: THRESHOLD,
    }
}

/// The time that the targets take for the present.
pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// The honest metadata of a role that the appliance has, and (`2`) those that are next.
pub fn honest(role: Role, version: u64) -> Value {
    let info = |version| json!({"version": version});
    let mut signed = match role {
        Role::Root => json!({
            "consistent_snapshot": true,
            "keys": key_objects(),
            "roles": {"root": speakers(), "timestamp": speakers(), "snapshot": speakers(), "targets": speakers()},
        }),
        Role::Timestamp => json!({"meta": {"snapshot.json": info(version)}}),
        Role::Snapshot => {
            json!({"meta": {"targets.json": info(version), "team.json": info(version)}})
        }
        Role::Targets => json!({
            "targets": {
                "app/release.json": {"length": 3, "hashes": {"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}},
                "../up": {"length": 0, "hashes": {}},
            },
            "delegations": delegations("team", &["team/*", "a/?"], false),
        }),
    };
    signed["_type"] = json!(role.as_str());
    signed["spec_version"] = json!("1.0.31");
    signed["version"] = json!(version);
    signed["expires"] = json!("2030-01-01T00:00:00Z");
    signed
}

/// A delegation to one role.
pub fn delegations(name: &str, paths: &[&str], terminating: bool) -> Value {
    let mut role = speakers();
    role["name"] = json!(name);
    role["paths"] = json!(paths);
    role["terminating"] = json!(terminating);
    json!({"keys": key_objects(), "roles": [role]})
}

/// The honest metadata of a role, signed by keys 0 and 1.
pub fn honest_file(role: Role, version: u64) -> Vec<u8> {
    let text = honest(role, version).to_string();
    Frame {
        slots: HONEST,
        text: &text,
    }
    .offer()
    .bytes
}

/// A trusted set that has the honest root, and the first versions of the rest as far as `role` comes after them; what
/// announces `role` is of version 2.
pub fn set_before(role: Role) -> TrustedSet {
    static FILES: LazyLock<BTreeMap<(Role, u64), Vec<u8>>> = LazyLock::new(|| {
        let all = Role::ALL
            .into_iter()
            .flat_map(|role| [(role, 1), (role, 2)]);
        all.map(|(role, version)| ((role, version), honest_file(role, version)))
            .collect()
    });
    let file = |role, version| FILES[&(role, version)].as_slice();
    let clock = Clock::new(now(), now());
    let mut set = TrustedSet::new(file(Role::Root, 1), clock, &Limits::default()).unwrap();
    if role == Role::Timestamp {
        set.update_timestamp(file(Role::Timestamp, 1)).unwrap();
    }
    if role == Role::Snapshot {
        set.update_timestamp(file(Role::Timestamp, 1)).unwrap();
        set.update_snapshot(file(Role::Snapshot, 1), SnapshotCopy::Stored)
            .unwrap();
        set.update_timestamp(file(Role::Timestamp, 2)).unwrap();
    }
    if role == Role::Targets {
        set.update_timestamp(file(Role::Timestamp, 2)).unwrap();
        set.update_snapshot(file(Role::Snapshot, 2), SnapshotCopy::Announced)
            .unwrap();
    }
    set
}

/// What the fuzzer's bytes mean. Those that begin with `{` are a file as it is received, signatures and all. Others have
/// four bytes first, each of which makes a signature, and then the text that is signed.
pub fn offer(data: &[u8]) -> Option<Offer> {
    let made_before = || {
        static MADE: LazyLock<Vec<Made>> = LazyLock::new(|| {
            let versions = Role::ALL
                .into_iter()
                .flat_map(|role| [(role, 1), (role, 2)]);
            let offers = versions.map(|(role, version)| {
                let text = honest(role, version).to_string();
                Frame {
                    slots: HONEST,
                    text: &text,
                }
                .offer()
            });
            offers.flat_map(|offer| offer.made).collect()
        });
        MADE.clone()
    };
    if data.first() == Some(&b'{') {
        let (bytes, made) = (data.to_owned(), made_before());
        return Some(Offer { bytes, made });
    }
    Frame::read(data).map(|frame| frame.offer())
}

/// Signed by keys 0 and 1.
pub const HONEST: [u8; 4] = [SIGN, SIGN | 1, 0, 0];
/// In a byte of a frame's head: the key of the number in the lowest three bits signs.
pub const SIGN: u8 = 1 << 3;
/// It signs something else.
pub const OTHER: u8 = 2 << 3;
/// It signs, and the signature is damaged.
pub const DAMAGED: u8 = 3 << 3;
/// The signature is under the key's alias.
pub const ALIAS: u8 = 1 << 5;

/// A text, and who is to sign it.
pub struct Frame<'a> {
    /// One byte makes one signature.
    pub slots: [u8; 4],
    /// What becomes `signed`.
    pub text: &'a str,
}

/// A signature that one of the keys made.
#[derive(Clone)]
struct Made {
    key: usize,
    message: Vec<u8>,
    signature: Vec<u8>,
}

/// Metadata as a source offers them, and what the keys have really signed.
pub struct Offer {
    /// The file.
    pub bytes: Vec<u8>,
    made: Vec<Made>,
}

impl Frame<'_> {
    /// Reads what the fuzzer made: `None` if it is no frame.
    pub fn read(data: &[u8]) -> Option<Frame<'_>> {
        let (slots, text) = data.split_first_chunk::<4>()?;
        let (slots, text) = (*slots, std::str::from_utf8(text).ok()?);
        Some(Frame { slots, text })
    }

    /// Lets the keys sign. They sign what has a canonical form, and nothing else.
    pub fn offer(&self) -> Offer {
        let mut message = Vec::new();
        let limits = Limits::default();
        let fit = canonical::write(self.text, &limits, &mut |bytes| {
            message.extend_from_slice(bytes)
        })
        .is_ok();
        let mut made = Vec::new();
        let mut signatures = Vec::new();
        for slot in self.slots {
            let number = usize::from(slot & 7) % KEYS.len();
            let kind = slot & DAMAGED;
            if kind == 0 {
                continue;
            }
            let [id, alias] = ids(number);
            let id = if slot & ALIAS == 0 { id } else { alias };
            let mut signature = match fit {
                true if kind == OTHER => key(number).sign(b"{\"other\":1}").unwrap(),
                true => key(number).sign(&message).unwrap(),
                false => vec![slot; 64],
            };
            if kind == DAMAGED {
                let last = signature.len() - 1 - usize::from(slot >> 6);
                signature[last] ^= 1;
            }
            if kind == SIGN && fit {
                made.push(Made {
                    key: number,
                    message: message.clone(),
                    signature: signature.clone(),
                });
            }
            signatures.push(json!({"keyid": id, "sig": hex(&signature)}).to_string());
        }
        let (signatures, text) = (signatures.join(","), self.text);
        let bytes = format!("{{\"signatures\":[{signatures}],\"signed\":{text}}}").into_bytes();
        Offer { bytes, made }
    }
}

impl Offer {
    /// Panics unless enough distinct keys that `asked` knows by the ids under which they signed have signed what was accepted.
    /// Returns it.
    pub fn was_signed(&self, asked: &Asked) -> Value {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            signatures: &'a RawValue,
            signed: Value,
        }
        #[derive(Deserialize)]
        struct Signature {
            keyid: String,
            sig: Value,
        }
        let envelope: Envelope = serde_json::from_slice(&self.bytes).expect("it was accepted");
        let signatures: Vec<Signature> =
            serde_json::from_str(envelope.signatures.get()).expect("it was accepted");
        let message = naive_canonical(&envelope.signed);
        let mut signers = BTreeSet::new();
        for Signature { keyid, sig } in &signatures {
            let bytes = sig.as_str().and_then(unhex);
            let made = self.made.iter().find(|made| {
                bytes.as_ref() == Some(&made.signature)
                    && made.message == message
                    && asked.keys.get(keyid) == Some(&made.key)
            });
            signers.extend(made.map(|made| made.key));
        }
        assert!(
            signers.len() as u64 >= asked.threshold,
            "accepted, and signed by {signers:?} only: {}",
            String::from_utf8_lossy(&self.bytes)
        );
        envelope.signed
    }
}

/// Who must have signed: the numbers of keys by id, and how many of them.
pub struct Asked {
    keys: BTreeMap<String, usize>,
    threshold: u64,
}

impl Asked {
    /// What the honest root asks for, of every role.
    pub fn honest() -> Asked {
        Asked::by(&key_objects(), &speakers())
    }

    /// What an object with `keyids` and `threshold` asks for, given `keys`.
    pub fn by(keys: &Value, role: &Value) -> Asked {
        let number = |id: &Value| {
            let listed = Key::from_value(&keys[id.as_str()?])?;
            (0..KEYS.len()).find(|&n| Key::from_value(&key(n).public()).as_ref() == Some(&listed))
        };
        let ids = role["keyids"].as_array().expect("it was accepted");
        let keys = ids
            .iter()
            .filter_map(|id| Some((id.as_str()?.to_owned(), number(id)?)));
        let threshold = role["threshold"].as_u64().expect("it was accepted");
        assert!(threshold > 0);
        Asked {
            keys: keys.collect(),
            threshold,
        }
    }
}

/// The canonical form, made from a tree in the plainest way.
pub fn naive_canonical(value: &Value) -> Vec<u8> {
    fn text(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }
    fn write(value: &Value) -> String {
        match value {
            Value::Null => "null".into(),
            Value::Bool(bool) => bool.to_string(),
            // What `-0` is to that parser.
            Value::Number(number) if number.as_f64() == Some(0.0) => "0".into(),
            Value::Number(number) => number.to_string(),
            Value::String(string) => text(string),
            Value::Array(items) => format!(
                "[{}]",
                items.iter().map(write).collect::<Vec<_>>().join(",")
            ),
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by(|(one, _), (other, _)| one.chars().cmp(other.chars()));
                let members = members
                    .into_iter()
                    .map(|(name, value)| format!("{}:{}", text(name), write(value)));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }
        }
    }
    write(value).into_bytes()
}

/// The value that a canonical form stands for. It is no JSON where a text has control characters, which stand for themselves.
pub fn naive_value(canonical: &str) -> Result<Value, serde_json::Error> {
    let escaped = canonical.chars().map(|c| match c {
        c if c.is_ascii_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    serde_json::from_str(&escaped.collect::<String>())
}

/// Panics if a path leads out of the directory that it is taken from, or is no plain path at all.
pub fn stays_inside(path: &str) {
    use std::path::{Component, Path};
    let plain = |part: Component| matches!(part, Component::Normal(name) if name.len() <= 255);
    assert!(
        !path.is_empty() && Path::new(path).components().all(plain),
        "{path:?}"
    );
    assert!(
        !path.split('/').any(|part| matches!(part, "" | "." | "..")),
        "{path:?}"
    );
    assert!(!path.contains(|c: char| c.is_control()), "{path:?}");
}
