//! Attackers who have the network and online keys: what each key does not allow, and what it does.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::scene::Scene;
use crate::common::server::Server;
use crate::common::signer::{Signer, sha256};

/// Signs a timestamp of that version for a snapshot of that version: the attacker's file, where it has one.
fn timestamp(attacker: &Signer, version: u64, snapshot: u64) {
    let mut signed = Value::Object(attacker.signed("timestamp"));
    signed["version"] = json!(version);
    signed["expires"] = json!("2099-01-01T00:00:00Z");
    signed["meta"]["snapshot.json"] = meta(attacker, snapshot, "snapshot");
    attacker.put("timestamp.json", &attacker.seal(&signed, &["timestamp"]));
}

/// Signs a snapshot of that version, and a timestamp for it.
fn snapshot(attacker: &Signer, version: u64, edit: impl FnOnce(&mut Value)) {
    let mut signed = Value::Object(attacker.signed("snapshot"));
    signed["version"] = json!(version);
    edit(&mut signed);
    let file = format!("{version}.snapshot.json");
    attacker.put(&file, &attacker.seal(&signed, &["snapshot"]));
    timestamp(attacker, version, version);
}

fn meta(attacker: &Signer, version: u64, role: &str) -> Value {
    let file = attacker
        .repo
        .join(format!("metadata/{version}.{role}.json"));
    match fs::read(file) {
        Ok(bytes) => json!({
            "version": version, "length": bytes.len(), "hashes": {"sha256": sha256(&bytes)},
        }),
        Err(_) => json!({"version": version}),
    }
}

/// The publisher's answer to a stolen key: the next root gives the role another.
fn rotate(publisher: &mut Signer, role: &str) {
    let key = format!("{role}-2");
    publisher.new_key(&key);
    publisher.next_root(&["root"], |root| publisher.entrust(root, role, &[&key], 1));
    publisher.edit(role, |_| ());
}

/// The timestamp's key does not lead back to older snapshots, nor to snapshots that nobody signed.
#[test]
fn the_timestamp_key_and_other_snapshots() {
    let scene = Scene::new();
    let attacker = scene.attacker(&["timestamp"]);
    timestamp(&attacker, 9, 2);
    scene.refuses(
        &attacker.repo,
        5,
        &[
            "metadata/timestamp.json",
            "version 2 of the snapshot metadata is older than version 3",
        ],
        &[],
    );
    scene.trusts_the_publisher();
    for (what, signed_by) in [("nobody", &[][..]), ("the wrong key", &["timestamp"])] {
        scene.rewind();
        let attacker = scene.attacker(&["timestamp"]);
        let mut signed = Value::Object(attacker.signed("snapshot"));
        signed["version"] = json!(5);
        signed["meta"] = json!({});
        attacker.put("5.snapshot.json", &attacker.seal(&signed, signed_by));
        timestamp(&attacker, 5, 5);
        eprintln!("{what}");
        let file = "metadata/5.snapshot.json";
        scene.refuses(
            &attacker.repo,
            5,
            &[file, "signed by 0 of the 1 keys"],
            &["timestamp.json"],
        );
    }
    // The timestamp was validly signed, and promised a snapshot that the publisher has not made: until there is one, and a
    // newer timestamp, nothing is trusted. This is what the key allows.
    scene.refuses(
        &scene.appliance.repo,
        5,
        &["metadata/timestamp.json", "older"],
        &[],
    );
    let publisher = scene.publisher();
    publisher.edit("snapshot", |_| ());
    publisher.edit("timestamp", |_| ());
    scene.ends_well();
}

/// What the timestamp's key allows by itself: to hold an appliance at the newest snapshot that it saw, until that snapshot
/// expires. The publisher's next timestamp but one ends it, too.
#[test]
fn the_timestamp_key_freezes_until_the_snapshot_expires() {
    let scene = Scene::new();
    let attacker = scene.attacker_with(&scene.seen, &["timestamp"]);
    timestamp(&attacker, 4, 3);
    scene.finds(&attacker.repo, 4, &["1.2.0"]);
    // The publisher's has the same version: the first is kept.
    scene.finds(&scene.appliance.repo, 4, &["1.2.0"]);
    let publisher = scene.publisher();
    publisher.edit("timestamp", |_| ());
    scene.trusts_the_publisher();

    publisher.edit("snapshot", |signed| {
        signed.insert("expires".into(), json!("2026-01-01T00:00:00Z"));
    });
    let attacker = scene.attacker(&["timestamp"]);
    timestamp(&attacker, 7, 5);
    scene.refuses(
        &attacker.repo,
        5,
        &["metadata/5.snapshot.json", "expired at 2026-01-01"],
        &["timestamp.json"],
    );
    publisher.edit("snapshot", |signed| {
        signed.insert("expires".into(), json!("2099-01-01T00:00:00Z"));
    });
    publisher.edit("timestamp", |_| ());
    scene.ends_well();
}

/// The snapshot's key alone replaces no snapshot: the timestamp tells its digest. Nor does the targets' key alone.
#[test]
fn the_snapshot_key_or_the_targets_key_alone() {
    let scene = Scene::new();
    for (role, kept) in [
        ("snapshot", &["timestamp.json"][..]),
        ("targets", &["timestamp.json", "4.snapshot.json"]),
    ] {
        type Edit = fn(&mut Value);
        let edits: [Edit; 3] = [
            |_| (),
            |signed| {
                for field in ["meta", "targets"] {
                    if signed[field].is_object() {
                        signed[field] = json!({});
                    }
                }
            },
            |signed| signed["version"] = json!(9),
        ];
        for edit in edits {
            scene.rewind();
            let attacker = scene.attacker(&[role]);
            let mut signed = Value::Object(attacker.signed(role));
            signed["expires"] = json!("2098-01-01T00:00:00Z");
            edit(&mut signed);
            let file = format!("4.{role}.json");
            let honest = fs::read(scene.appliance.repo.join("metadata").join(&file)).unwrap();
            attacker.put(&file, &attacker.seal(&signed, &[role]));
            // Of the same length, where that is possible: then the digest alone can tell.
            let forged = attacker.repo.join("metadata").join(&file);
            let text = fs::read_to_string(&forged).unwrap();
            fs::write(&forged, format!("{text:0$}", honest.len())).unwrap();
            let file = format!("metadata/{file}");
            scene.refuses(&attacker.repo, 5, &[&file, "not what was signed"], kept);
            scene.trusts_the_publisher();
        }
    }
    scene.ends_well();
}

/// The keys of the timestamp and of the snapshot, which often lie on one machine: targets are not led back, not dropped, and
/// not replaced by others.
#[test]
fn the_timestamp_and_the_snapshot_key() {
    let scene = Scene::new();
    let stolen = &["timestamp", "snapshot"];
    let attacker = scene.attacker(stolen);
    let older = meta(&attacker, 2, "targets");
    snapshot(&attacker, 9, |signed| {
        signed["meta"]["targets.json"] = older
    });
    scene.refuses(
        &attacker.repo,
        5,
        &[
            "metadata/9.snapshot.json",
            "version 2 of targets.json, older than version 3",
        ],
        &["timestamp.json"],
    );

    scene.rewind();
    let attacker = scene.attacker(stolen);
    snapshot(&attacker, 9, |signed| signed["meta"] = json!({}));
    scene.refuses(
        &attacker.repo,
        5,
        &["metadata/9.snapshot.json", "do not list targets.json"],
        &["timestamp.json"],
    );

    scene.rewind();
    let attacker = scene.attacker(stolen);
    let mut targets = Value::Object(attacker.signed("targets"));
    targets["version"] = json!(9);
    attacker.put("9.targets.json", &attacker.seal(&targets, stolen));
    let own = meta(&attacker, 9, "targets");
    snapshot(&attacker, 9, |signed| signed["meta"]["targets.json"] = own);
    scene.refuses(
        &attacker.repo,
        5,
        &["metadata/9.targets.json", "signed by 0 of the 1 keys"],
        &["timestamp.json", "9.snapshot.json"],
    );

    // All of that is over when both keys are others.
    let mut publisher = scene.publisher();
    rotate(&mut publisher, "snapshot");
    rotate(&mut publisher, "timestamp");
    scene.ends_well();
}

/// Fast-forward: versions that the publisher will never reach. The next root, with another key, undoes them.
#[test]
fn fast_forward() {
    for version in [1 << 53, u64::MAX] {
        // With the timestamp's key: of the timestamp, and of the snapshot that it promises.
        let scene = Scene::new();
        let attacker = scene.attacker(&["timestamp"]);
        timestamp(&attacker, version, version);
        let file = format!("metadata/{version}.snapshot.json");
        scene.refuses(&attacker.repo, 1, &[&file], &["timestamp.json"]);
        let honest = scene.appliance.repo.clone();
        let older = format!("older than version {version}");
        let refused = &["metadata/timestamp.json", &*older];
        scene.refuses(&honest, 5, refused, &[]);
        rotate(&mut scene.publisher(), "timestamp");
        scene.ends_well();

        // With the snapshot's too: of the targets. It takes new keys for both.
        let scene = Scene::new();
        let attacker = scene.attacker(&["timestamp", "snapshot"]);
        snapshot(&attacker, version, |signed| {
            signed["meta"]["targets.json"] = json!({"version": version});
        });
        let file = format!("metadata/{version}.targets.json");
        let kept = format!("{version}.snapshot.json");
        let kept = &["timestamp.json", &*kept];
        scene.refuses(&attacker.repo, 1, &[&file], kept);
        let mut publisher = scene.publisher();
        rotate(&mut publisher, "timestamp");
        let honest: &Path = &scene.appliance.repo;
        let file = "metadata/4.snapshot.json";
        let root = "2.root.json";
        scene.refuses(honest, 5, &[file, &older], &[root, "timestamp.json"]);
        rotate(&mut publisher, "snapshot");
        scene.ends_well();
    }
    // Beyond what is a number here, nothing is believed at all.
    let scene = Scene::new();
    let attacker = scene.attacker(&["timestamp"]);
    let file = attacker.repo.join("metadata/timestamp.json");
    // By hand, for it is no number for this test either.
    timestamp(&attacker, u64::MAX, 4);
    let text = fs::read_to_string(&file).unwrap();
    let more = text.replace("18446744073709551615", "18446744073709551616");
    assert!(more != text, "{text}");
    fs::write(&file, more).unwrap();
    scene.refuses(&attacker.repo, 5, &["metadata/timestamp.json"], &[]);
    scene.ends_well();
}

/// The timestamp's key dates the present ahead, so that all that the publisher signed seems to have expired. Another key for
/// the timestamp takes that back.
#[test]
fn the_timestamp_key_dates_ahead() {
    let scene = Scene::new();
    let attacker = scene.attacker(&["timestamp"]);
    let mut signed = Value::Object(attacker.signed("timestamp"));
    signed["version"] = json!(5);
    signed["x-issued"] = json!("2098-01-01T00:00:00Z");
    signed["expires"] = json!("2099-01-01T00:00:00Z");
    attacker.put("timestamp.json", &attacker.seal(&signed, &["timestamp"]));
    let server = Server::start(&attacker.repo);
    scene.appliance.source(&server.url);
    // The date counts from the next refresh on.
    scene.appliance.update(&["check"]).code(4);
    scene.appliance.refuses(&["apply"], 5, &["expired"]);
    rotate(&mut scene.publisher(), "timestamp");
    scene.ends_well();
}

/// One of two keys that both must sign: its signature twice, under another name, with a key that is none of the role's.
#[test]
fn one_key_for_two() {
    let scene = Scene::prepared(|publisher| {
        publisher.new_key("timestamp-2");
        publisher.next_root(&["root"], |root| {
            publisher.entrust(root, "timestamp", &["timestamp", "timestamp-2"], 2);
            // Under a second name, for no role.
            root["keys"]["alias"] = publisher.public("timestamp").1;
        });
        publisher.edit("timestamp", |_| ());
    });
    let attacker = scene.attacker(&["timestamp", "snapshot"]);
    let mut signed = Value::Object(attacker.signed("timestamp"));
    signed["version"] = json!(9);
    let by = |id: &str, key: &str| json!({"keyid": id, "sig": attacker.signature(&signed, key)});
    let (id, other) = (
        attacker.public("timestamp").0,
        scene.publisher().public("timestamp-2").0,
    );
    let first = by(&id, "timestamp");
    let one = "signed by 1 of the 2 keys";
    for (signatures, word) in [
        (json!([first]), one),
        (json!([first, first]), "duplicate"),
        (json!([first, by("alias", "timestamp")]), one),
        (json!([first, by(&other, "timestamp")]), one),
        (
            json!([first, by(&attacker.public("snapshot").0, "snapshot")]),
            one,
        ),
    ] {
        let envelope = json!({"signatures": signatures, "signed": signed});
        attacker.put("timestamp.json", &envelope);
        scene.refuses(&attacker.repo, 5, &["metadata/timestamp.json", word], &[]);
        scene.trusts_the_publisher();
        scene.rewind();
    }
    scene.ends_well();
}
