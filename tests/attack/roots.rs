//! Roots that lead away from the publisher, and roots that are withheld.

use std::fs;

use serde_json::{Value, json};

use super::scene::Scene;
use crate::common::signer::Signer;

/// The root is signed by two keys, both of which it takes.
fn two_root_keys() -> Scene {
    Scene::prepared(|publisher| {
        publisher.new_key("root-2");
        publisher.next_root(&["root", "root-2"], |root| {
            publisher.entrust(root, "root", &["root", "root-2"], 2);
        });
    })
}

/// One of two root keys, alone, with its signature twice, under other names, and with a key of the attacker's own.
#[test]
fn one_of_two_root_keys() {
    for stolen in ["root", "root-2"] {
        let scene = two_root_keys();
        let mut attacker = scene.attacker(&[stolen]);
        attacker.new_key("own");
        let mut root = Value::Object(attacker.signed("root"));
        root["version"] = json!(3);
        for role in ["root", "timestamp", "snapshot", "targets"] {
            attacker.entrust(&mut root, role, &["own"], 1);
        }
        let (id, public) = attacker.public(stolen);
        root["keys"]["alias"] = public;
        let by = |id: &str, key: &str| json!({"keyid": id, "sig": attacker.signature(&root, key)});
        let own = attacker.public("own").0;
        let first = by(&id, stolen);
        let one = "signed by 1 of the 2 keys that version 2 of the root requires";
        for (what, signatures, word) in [
            ("alone", json!([first]), one),
            ("and their own", json!([first, by(&own, "own")]), one),
            ("twice", json!([first, first]), "duplicate"),
            (
                "under another name",
                json!([first, by("alias", stolen), by(&own, "own")]),
                one,
            ),
        ] {
            let envelope = json!({"signatures": signatures, "signed": root});
            attacker.put("3.root.json", &envelope);
            eprintln!("{stolen} {what}");
            scene.refuses(&attacker.repo, 5, &["metadata/3.root.json", word], &[]);
            scene.trusts_the_publisher();
            scene.rewind();
        }
        scene.ends_well();
    }
}

/// Even with the root's key: a next root that only the old or only the new key signed, of another version than the next,
/// without a role, or with one that anybody fills.
#[test]
fn a_root_that_leads_nowhere() {
    let scene = Scene::prepared(|publisher| {
        publisher.next_root(&["root"], |_| ());
    });
    type Edit = fn(&Signer, &mut Value);
    let hand_over: Edit = |attacker, root| attacker.entrust(root, "root", &["own"], 1);
    let attacks: [(&str, &[&str], &str, Edit); 9] = [
        (
            "by the old key only",
            &["root"],
            "signed by 0 of the 1 keys that version 3",
            hand_over,
        ),
        (
            "by the new key only",
            &["own"],
            "signed by 0 of the 1 keys that version 2",
            hand_over,
        ),
        ("a version left out", &["root"], "version 4", |_, root| {
            root["version"] = json!(4)
        }),
        ("the same version", &["root"], "version 2", |_, root| {
            root["version"] = json!(2)
        }),
        ("an older version", &["root"], "version 1", |_, root| {
            root["version"] = json!(1)
        }),
        (
            "the last version of all",
            &["root"],
            "version 18446744073709551615",
            |_, root| root["version"] = json!(u64::MAX),
        ),
        (
            "without a role",
            &["root"],
            "timestamp is missing",
            |_, root| {
                root["roles"].as_object_mut().unwrap().remove("timestamp");
            },
        ),
        (
            "a role that nobody signs",
            &["root"],
            "threshold of 0",
            |_, root| {
                root["roles"]["targets"] = json!({"keyids": [], "threshold": 0});
            },
        ),
        (
            "more signatures than keys",
            &["root", "own"],
            "signed by 1 of the 3 keys",
            |attacker, root| attacker.entrust(root, "root", &["own"], 3),
        ),
    ];
    for (what, by, word, edit) in attacks {
        let mut attacker = scene.attacker(&["root"]);
        attacker.new_key("own");
        let mut root = Value::Object(attacker.signed("root"));
        root["version"] = json!(3);
        edit(&attacker, &mut root);
        attacker.put("3.root.json", &attacker.seal(&root, by));
        eprintln!("{what}");
        scene.refuses(&attacker.repo, 5, &["metadata/3.root.json", word], &[]);
        scene.trusts_the_publisher();
        scene.rewind();
    }
    scene.ends_well();
}

/// The keys of a root that was replaced say nothing any more.
#[test]
fn the_keys_of_an_old_root() {
    let scene = Scene::prepared(|publisher| {
        publisher.new_key("root-2");
        publisher.next_root(&["root", "root-2"], |root| {
            publisher.entrust(root, "root", &["root-2"], 1);
        });
    });
    let mut attacker = scene.attacker(&["root"]);
    attacker.new_key("own");
    attacker.next_root(&["root", "own"], |root| {
        attacker.entrust(root, "root", &["own"], 1);
    });
    scene.refuses(
        &attacker.repo,
        5,
        &["metadata/3.root.json", "signed by 0 of the 1 keys"],
        &[],
    );
    // Nor can they replace the root that was followed: it is not even asked for again.
    let attacker = scene.attacker(&["root"]);
    fs::remove_file(attacker.repo.join("metadata/2.root.json")).unwrap();
    attacker.next_root(&["root"], |_| ());
    scene.finds(&attacker.repo, 4, &["1.3.0"]);
    let root = scene.trust()["2.root.json"].clone();
    assert!(root == fs::read(scene.appliance.repo.join("metadata/2.root.json")).unwrap());
    scene.ends_well();
}

/// The root that takes a stolen key away is withheld. What the new key signs is refused then, and what the old key did
/// shows nothing new; once the new root was seen, the old key is worth nothing.
#[test]
fn a_root_is_withheld() {
    let scene = Scene::new();
    let mut publisher = scene.publisher();
    publisher.new_key("timestamp-2");
    publisher.next_root(&["root"], |root| {
        publisher.entrust(root, "timestamp", &["timestamp-2"], 1);
    });
    publisher.edit("timestamp", |_| ());
    let attacker = scene.attacker(&["timestamp"]);
    fs::remove_file(attacker.repo.join("metadata/2.root.json")).unwrap();
    let refused = &["metadata/timestamp.json", "signed by 0 of the 1 keys"];
    scene.refuses(&attacker.repo, 5, refused, &[]);
    scene.trusts_the_publisher();
    let mut timestamp = Value::Object(attacker.signed("timestamp"));
    timestamp["version"] = json!(9);
    attacker.put("timestamp.json", &attacker.seal(&timestamp, &["timestamp"]));
    scene.refuses(&attacker.repo, 5, refused, &[]);
    scene.ends_well();
}

/// A root that expired leads to its successor; without it, nothing that it vouches for is trusted.
#[test]
fn the_successor_of_an_expired_root_is_withheld() {
    let scene = Scene::new();
    let publisher = scene.publisher();
    publisher.next_root(&["root"], |root| {
        root["expires"] = json!("2026-01-01T00:00:00Z");
    });
    publisher.next_root(&["root"], |root| {
        root["expires"] = json!("2099-01-01T00:00:00Z");
    });
    let attacker = scene.attacker(&[]);
    fs::remove_file(attacker.repo.join("metadata/3.root.json")).unwrap();
    scene.refuses(
        &attacker.repo,
        5,
        &["root", "expired at 2026-01-01"],
        &["2.root.json"],
    );
    scene.ends_well();
}
