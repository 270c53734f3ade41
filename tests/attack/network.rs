//! Attackers who have the network, and no key.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::scene::Scene;
use crate::common::json_file;
use crate::common::server::{Answer, Server};

/// Serves this metadata file in place of that one.
fn swap(evil: &Path, file: &str, by: &Path) {
    fs::copy(by, evil.join("metadata").join(file)).unwrap();
}

/// Rollback: everything, or one file, as it was before, where the rest is new.
#[test]
fn rollback_and_mix_and_match() {
    let scene = Scene::new();
    scene.refuses(
        &scene.first,
        5,
        &[
            "metadata/timestamp.json",
            "version 2",
            "older than version 3",
        ],
        &[],
    );
    scene.trusts_the_publisher();
    scene.refuses(
        &scene.seen,
        5,
        &[
            "metadata/timestamp.json",
            "version 3",
            "older than version 4",
        ],
        &[],
    );
    let old = |file: &str| scene.seen.join("metadata").join(file);
    // Of three publications; what was verified on the way is kept.
    let timestamp = &["timestamp.json"][..];
    let both = &["timestamp.json", "4.snapshot.json"][..];
    for (file, by, kept) in [
        ("4.snapshot.json", "3.snapshot.json", timestamp),
        ("4.snapshot.json", "2.snapshot.json", timestamp),
        ("4.targets.json", "3.targets.json", both),
        ("4.targets.json", "2.targets.json", both),
        // A file of another role is none of this one.
        ("4.snapshot.json", "3.targets.json", timestamp),
        ("timestamp.json", "3.snapshot.json", &[]),
        ("timestamp.json", "1.root.json", &[]),
    ] {
        scene.rewind();
        let evil = scene.attacker(&[]);
        swap(&evil.repo, file, &old(by));
        eprintln!("{by} as {file}");
        scene.refuses(&evil.repo, 5, &[&format!("metadata/{file}")], kept);
        scene.trusts_the_publisher();
    }
    // An old timestamp with all that is new behind it.
    scene.rewind();
    let evil = scene.attacker(&[]);
    swap(
        &evil.repo,
        "timestamp.json",
        &scene.first.join("metadata/timestamp.json"),
    );
    scene.refuses(&evil.repo, 5, &["metadata/timestamp.json", "older"], &[]);
    // A timestamp that differs in nothing but its version.
    let evil = scene.attacker(&[]);
    scene.publisher().edit("timestamp", |_| ());
    scene.trusts_the_publisher();
    scene.refuses(
        &evil.repo,
        5,
        &["version 4 of the timestamp metadata is older than version 5"],
        &[],
    );
    scene.ends_well();
}

/// Freeze: what was the newest once is served on. That is seen when it has expired, and not before; what expired never
/// replaces what is trusted.
#[test]
fn freeze() {
    for role in ["timestamp", "snapshot", "targets"] {
        let scene = Scene::new();
        // The present state, served on.
        let before = scene.trust();
        scene.finds(&scene.seen, 4, &["1.2.0"]);
        assert!(scene.trust() == before);
        // The publisher signed a state that has expired since then. Who missed it is offered it now.
        scene.publisher().edit(role, |signed| {
            signed.insert("expires".into(), json!("2026-01-01T00:00:00Z"));
        });
        let evil = scene.attacker(&[]);
        let publisher = scene.publisher();
        let file = evil.metadata_file(role);
        let kept = match role {
            "timestamp" => vec![],
            "snapshot" => vec!["timestamp.json".to_owned()],
            _ => {
                let snapshot = evil.metadata_file("snapshot");
                let snapshot = snapshot.file_name().unwrap().to_str().unwrap();
                vec!["timestamp.json".to_owned(), snapshot.to_owned()]
            }
        };
        let kept: Vec<_> = kept.iter().map(String::as_str).collect();
        let file = format!("metadata/{}", file.file_name().unwrap().to_str().unwrap());
        scene.refuses(&evil.repo, 5, &[&file, "expired at 2026-01-01"], &kept);
        publisher.edit(role, |signed| {
            signed.insert("expires".into(), json!("2099-01-01T00:00:00Z"));
        });
        scene.ends_well();
    }
}

/// Metadata and targets without end.
#[test]
fn endless_data() {
    unfit_to_transfer(&Answer::Endless, 5);
}

/// Metadata and targets that come so slowly that they might as well not: a byte a second never stalls.
#[test]
fn slow_data() {
    unfit_to_transfer(&Answer::Drip, 1);
}

/// Each file of the repository in turn is answered so.
#[track_caller]
fn unfit_to_transfer(answer: &Answer, code: i32) {
    let scene = Scene::new();
    // What is served well has to come in that time, on a busy machine, too.
    let seconds = match answer {
        Answer::Drip => 10,
        _ => 60,
    };
    scene.appliance.edit_config(|config| {
        config["limits"]["metadata_timeout_s"] = json!(seconds);
        config["limits"]["stall_timeout_s"] = json!(seconds);
        config["limits"]["retries"] = json!(1);
    });
    let manifest = scene.publisher().manifest_of("1.3.0");
    let manifest = scene.publisher().target_file(&manifest);
    let manifest = manifest.file_name().unwrap().to_str().unwrap().to_owned();
    let timestamp = &["timestamp.json"][..];
    let both = &["timestamp.json", "4.snapshot.json"][..];
    let all = &["timestamp.json", "4.snapshot.json", "4.targets.json"][..];
    for (file, kept) in [
        ("2.root.json", &[][..]),
        ("timestamp.json", &[]),
        ("4.snapshot.json", timestamp),
        ("4.targets.json", both),
        (&manifest, all),
        (".tar.gz", all),
    ] {
        scene.rewind();
        let evil = scene.attacker(&[]);
        fs::write(
            evil.repo.join("metadata/2.root.json"),
            format!("{{{}}}", " ".repeat(99)),
        )
        .unwrap();
        let (ending, answer) = (file.to_owned(), answer.clone());
        let server = Server::answering(&evil.repo, move |request| {
            if request.path.ends_with(&ending) {
                answer.clone()
            } else if request.path.ends_with("2.root.json") {
                Answer::Status(404)
            } else {
                Answer::Well
            }
        });
        eprintln!("{file}");
        scene.refuses_from(&server, &evil.repo, code, &[&server.url, file], kept);
        scene.trusts_the_publisher();
    }
    scene.ends_well();
}

/// Files that are not there any more: what hangs on them is not found, and what was verified before them is kept.
#[test]
fn withheld_files() {
    let scene = Scene::new();
    for (file, kept) in [
        ("timestamp.json", &[][..]),
        ("4.snapshot.json", &["timestamp.json"]),
        ("4.targets.json", &["timestamp.json", "4.snapshot.json"]),
    ] {
        scene.rewind();
        let evil = scene.attacker(&[]);
        fs::remove_file(evil.repo.join("metadata").join(file)).unwrap();
        scene.refuses(&evil.repo, 1, &[&format!("metadata/{file}")], kept);
        scene.trusts_the_publisher();
    }
    scene.ends_well();
}

/// Other bytes in place of a target: changed, longer, shorter, none; another component's artifact, an older release's
/// manifest.
#[test]
fn wrong_targets() {
    let scene = Scene::new();
    let publisher = scene.publisher();
    let manifest = |version: &str| publisher.target_file(&publisher.manifest_of(version));
    let present: Value = json_file(&manifest("1.3.0"));
    let older: Value = json_file(&manifest("1.2.0"));
    let artifact = |manifest: &Value, number: usize| {
        publisher.target_file(manifest["components"][number]["artifact"].as_str().unwrap())
    };
    let node = artifact(&present, 0);
    let bytes = |file: &Path| fs::read(file).unwrap();
    let flipped = |file: &Path| {
        let mut bytes = bytes(file);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    let longer = |file: &Path| [bytes(file), vec![0]].concat();
    let shorter = |file: &Path| bytes(file)[1..].to_vec();
    let release = manifest("1.3.0");
    let attacks = [
        ("a changed artifact", &node, flipped(&node), "qx-node"),
        ("a longer artifact", &node, longer(&node), "qx-node"),
        ("a shorter artifact", &node, shorter(&node), "qx-node"),
        ("an empty artifact", &node, Vec::new(), "qx-node"),
        (
            "another component's artifact",
            &node,
            bytes(&artifact(&present, 1)),
            "qx-node",
        ),
        (
            "an older release's artifact",
            &node,
            bytes(&artifact(&older, 0)),
            "qx-node",
        ),
        (
            "a changed manifest",
            &release,
            flipped(&release),
            "1.3.0/release.json",
        ),
        (
            "a longer manifest",
            &release,
            longer(&release),
            "1.3.0/release.json",
        ),
        (
            "an older release's manifest",
            &release,
            bytes(&manifest("1.2.0")),
            "1.3.0/release.json",
        ),
    ];
    let all = &["timestamp.json", "4.snapshot.json", "4.targets.json"];
    for (what, file, content, word) in attacks {
        scene.rewind();
        let evil = scene.attacker(&[]);
        let place = file.strip_prefix(&scene.appliance.repo).unwrap();
        fs::write(evil.repo.join(place), content).unwrap();
        eprintln!("{what}");
        scene.refuses(&evil.repo, 5, &[word], all);
        scene.trusts_the_publisher();
    }
    scene.ends_well();
}

/// What is not signed by the keys of its role: not at all, by a key of their own under the right name, by a scheme that is
/// not known, by another role's signature.
#[test]
fn signatures_of_strangers() {
    let scene = Scene::prepared(|publisher| {
        // A key of the future, in every role beside the present one.
        publisher.next_root(&["root"], |root| {
            root["keys"]["future"] = json!({
                "keytype": "ml-dsa", "scheme": "ml-dsa-65", "keyval": {"public": "00"},
            });
            for role in ["root", "timestamp", "snapshot", "targets"] {
                let ids = &mut root["roles"][role]["keyids"];
                ids.as_array_mut().unwrap().push(json!("future"));
            }
        });
    });
    let id = scene.publisher().public("timestamp").0;
    let mut stranger = scene.attacker(&[]);
    stranger.new_key("stranger");
    let mut signed = Value::Object(stranger.signed("timestamp"));
    signed["version"] = json!(9);
    let by_stranger = stranger.signature(&signed, "stranger");
    let honest = json_file(&scene.appliance.repo.join("metadata/timestamp.json"))["signatures"][0]
        ["sig"]
        .clone();
    for (what, signatures) in [
        ("none", json!([])),
        ("their own", json!([{"keyid": id, "sig": by_stranger}])),
        (
            "their own, under a name of their own",
            json!([{"keyid": "x", "sig": by_stranger}]),
        ),
        (
            "a scheme of the future",
            json!([{"keyid": "future", "sig": by_stranger}]),
        ),
        ("no hexadecimal digits", json!([{"keyid": id, "sig": "zz"}])),
        ("empty", json!([{"keyid": id, "sig": ""}])),
        ("of other metadata", json!([{"keyid": id, "sig": honest}])),
    ] {
        for role in ["root", "timestamp"] {
            let mut signed = Value::Object(stranger.signed(role));
            signed["version"] = match role {
                "root" => json!(3),
                _ => json!(9),
            };
            if role == "root" {
                stranger.entrust(&mut signed, "root", &["stranger"], 1);
            }
            let file = match role {
                "root" => "3.root.json",
                _ => "timestamp.json",
            };
            let good = fs::read(stranger.repo.join("metadata").join(file)).ok();
            stranger.put(file, &json!({"signatures": signatures, "signed": signed}));
            eprintln!("{what}: {role}");
            scene.refuses(
                &stranger.repo,
                5,
                &[&format!("metadata/{file}"), "signed by 0 of the 1 keys"],
                &[],
            );
            let file = stranger.repo.join("metadata").join(file);
            match good {
                Some(good) => fs::write(file, good).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
        }
    }
    scene.ends_well();
}
