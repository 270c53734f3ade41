//! Delegated roles: attackers who have the network, or the key of a team.

use std::fs;

use serde_json::{Map, Value, json};

use super::scene::Scene;
use crate::common::path;
use crate::common::server::{Answer, Server};
use crate::common::signer::{Signer, sha256};

const ARCH: &str = std::env::consts::ARCH;

/// A team publishes the stable releases of late. The appliance has seen its second metadata, with 1.4.0; the third offer
/// 1.5.0. The timestamp and the snapshot are at version 7 then.
fn with_a_team() -> Scene {
    let mut scene = Scene::new();
    delegate(
        &scene,
        "team",
        &[
            "quantix-os/stable/*/*/release.json",
            "quantix-os/artifacts/*",
        ],
    );
    release(&scene, "1.4.0");
    scene.finds(&scene.appliance.repo, 4, &["1.4.0"]);
    scene.remember();
    release(&scene, "1.5.0");
    scene.newest = "1.5.0";
    scene
}

fn delegate(scene: &Scene, team: &str, patterns: &[&str]) {
    let (repo, keys) = (&scene.appliance.repo, &scene.appliance.keys);
    let mut command = vec!["delegate", team, "--key", "new"];
    command.extend(["--repo", path(repo), "--keys", path(keys)]);
    for pattern in patterns {
        command.extend(["--paths", pattern]);
    }
    scene.appliance.publish(&command).code(0);
}

fn release(scene: &Scene, version: &str) {
    let recipe = scene.appliance.recipe(version);
    let team = ["--as", "team"];
    scene.appliance.try_release(&recipe, &team).code(0);
}

/// The file of a key whose name begins so.
fn key_of(scene: &Scene, team: &str) -> String {
    let files = fs::read_dir(&scene.appliance.keys).unwrap();
    let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut found = names.filter(|n| n.starts_with(&format!("{team}-")) && !n.contains(".pub."));
    found
        .next()
        .unwrap()
        .strip_suffix(".pem")
        .unwrap()
        .to_owned()
}

/// Whoever spoils a team's metadata on their way does not have an older release installed, of the team or of others.
#[test]
fn spoilt_on_the_way() {
    let scene = with_a_team();
    let honest = scene.appliance.repo.join("metadata/3.team.json");
    let older = fs::read(honest.with_file_name("2.team.json")).unwrap();
    let others = fs::read(honest.with_file_name("5.targets.json")).unwrap();
    let mut changed = fs::read(&honest).unwrap();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let kept = &["timestamp.json", "7.snapshot.json"];
    for (what, bytes) in [
        ("older", older),
        ("others", others),
        ("changed", changed),
        ("none", Vec::new()),
    ] {
        scene.rewind();
        let evil = scene.attacker(&[]);
        fs::write(evil.repo.join("metadata/3.team.json"), bytes).unwrap();
        eprintln!("{what}");
        scene.refuses(&evil.repo, 1, &["metadata/3.team.json"], kept);
        scene.trusts_the_publisher();
    }
    for answer in [Answer::Endless, Answer::Status(404), Answer::Status(500)] {
        scene.rewind();
        let evil = scene.attacker(&[]);
        let bad = answer.clone();
        let server = Server::answering(&evil.repo, move |request| {
            match request.path.ends_with("3.team.json") {
                true => bad.clone(),
                false => Answer::Well,
            }
        });
        eprintln!("{answer:?}");
        scene.refuses_from(&server, &evil.repo, 1, &["metadata/3.team.json"], kept);
        scene.trusts_the_publisher();
    }
    scene.ends_well();
}

/// A team's key alone replaces nothing: the snapshot tells the digest of what the team published.
#[test]
fn the_teams_key_alone() {
    let scene = with_a_team();
    let key = key_of(&scene, "team");
    let attacker = scene.attacker(&[&key]);
    let mut signed = Value::Object(attacker.signed("team"));
    for version in [3, 9] {
        signed["version"] = json!(version);
        signed["targets"] = json!({});
        attacker.put("3.team.json", &attacker.seal(&signed, &[&key]));
        scene.rewind();
        scene.refuses(
            &attacker.repo,
            1,
            &["metadata/3.team.json", "not what was signed"],
            &["timestamp.json", "7.snapshot.json"],
        );
        scene.trusts_the_publisher();
    }
    scene.ends_well();
}

/// The keys of the timestamp and of the snapshot lead no team's metadata back, and drop none.
#[test]
fn a_team_is_led_back_or_dropped() {
    let scene = with_a_team();
    let stolen = &["timestamp", "snapshot"];
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 2] = [
        (
            |meta| {
                meta.as_object_mut().unwrap().remove("team.json");
            },
            "do not list team.json",
        ),
        (
            |meta| meta["team.json"] = json!({"version": 1}),
            "version 1 of team.json, older than version 2",
        ),
    ];
    for (edit, word) in edits {
        scene.rewind();
        let attacker = scene.attacker(stolen);
        attacker.edit("snapshot", |signed| edit(&mut signed["meta"]));
        let words = &["metadata/8.snapshot.json", word];
        scene.refuses(&attacker.repo, 5, words, &["timestamp.json"]);
    }
    // The publisher's next timestamp but one is newer than theirs.
    let publisher = scene.publisher();
    publisher.edit("snapshot", |_| ());
    publisher.edit("timestamp", |_| ());
    scene.ends_well();
}

/// Puts a release into what a role publishes, as everybody would sign it who has the right to: with these artifacts, under
/// that name.
fn smuggle(signer: &Signer, role: &str, name: &str, like: &str) {
    let listed = signer.signed("team")["targets"].clone();
    let (_, target) = listed
        .as_object()
        .unwrap()
        .iter()
        .find(|(n, _)| n.contains(like))
        .unwrap();
    let target = target.clone();
    // Where readers look for it.
    let digest = target["hashes"]["sha256"].as_str().unwrap();
    let at = |name: &str| {
        let (dir, file) = name.rsplit_once('/').unwrap();
        let dir = signer.repo.join("targets").join(dir);
        crate::common::create_dir(&dir).unwrap();
        dir.join(format!("{digest}.{file}"))
    };
    let (from, _) = listed
        .as_object()
        .unwrap()
        .iter()
        .find(|(_, t)| **t == target)
        .unwrap();
    if at(from) != at(name) {
        fs::copy(at(from), at(name)).unwrap();
    }
    signer.edit(role, |signed| signed["targets"][name] = target);
}

/// What a team publishes beyond its patterns is not offered: under another channel's name, by a role that it delegates to
/// with wider patterns than its own, under the name of a role that is none of its.
#[test]
fn beyond_its_patterns() {
    let scene = with_a_team();
    let publisher = scene.publisher();
    let beta = format!("quantix-os/beta/{ARCH}/9.9.9/release.json");
    smuggle(&publisher, "team", &beta, "1.5.0/release.json");
    let server = Server::start(&scene.appliance.repo);
    scene.appliance.source(&server.url);
    let follow = |channel: &str| {
        scene
            .appliance
            .edit_config(|config| config["channel"] = json!(channel));
    };
    let offers_nothing = || {
        follow("beta");
        let before = scene.appliance.picture();
        let outcome = scene.appliance.update(&["apply"]);
        assert!(matches!(outcome.code, 3 | 5), "{}", outcome.code);
        assert!(!outcome.stdout.contains("taking"), "{}", outcome.stdout);
        before.unchanged(&scene.appliance);
        follow("stable");
        scene.appliance.update(&["check"]).code(4).says(&["1.5.0"]);
    };
    offers_nothing();

    // A friend of the team, whom the team lets publish everything.
    let key = key_of(&scene, "team");
    let (id, public) = publisher.public(&key);
    publisher.edit("team", |signed| {
        signed.insert(
            "delegations".into(),
            json!({"keys": {&id: public}, "roles": [{
                "name": "friend", "keyids": [&id], "threshold": 1, "terminating": false,
                "paths": ["quantix-os/*/*/*/release.json", "*/*/*"],
            }]}),
        );
    });
    let mut friend = Map::new();
    for field in ["spec_version", "expires"] {
        friend.insert(field.into(), publisher.signed("team")[field].clone());
    }
    friend.insert("_type".into(), json!("targets"));
    friend.insert("version".into(), json!(1));
    let target = publisher.signed("team")["targets"][&beta].clone();
    friend.insert("targets".into(), json!({&beta: target}));
    let envelope = publisher.seal(&Value::Object(friend), &[&key]);
    publisher.put("1.friend.json", &envelope);
    publisher.edit("team", |signed| {
        signed["targets"].as_object_mut().unwrap().remove(&beta);
    });
    publisher.edit("snapshot", |signed| {
        let bytes = envelope.to_string();
        signed["meta"]["friend.json"] = json!({
            "version": 1, "length": bytes.len(), "hashes": {"sha256": sha256(bytes.as_bytes())},
        });
    });
    offers_nothing();

    // The friend takes the name of a role that speaks for all.
    for name in ["targets", "root", "team"] {
        publisher.edit("team", |signed| {
            signed["delegations"]["roles"][0]["name"] = json!(name);
        });
        follow("beta");
        let before = scene.appliance.picture();
        let outcome = scene.appliance.update(&["apply"]);
        assert!(matches!(outcome.code, 1 | 3 | 5), "{}", outcome.code);
        before.unchanged(&scene.appliance);
        follow("stable");
    }
    publisher.edit("team", |signed| {
        signed.remove("delegations");
    });
    scene.ends_well();
}

/// Nor is an artifact that a team lists and may not publish, though its release may name it.
#[test]
fn an_artifact_beyond_its_patterns() {
    let scene = with_a_team();
    let publisher = scene.publisher();
    let patterns = publisher.signed("targets")["delegations"]["roles"][0]["paths"].clone();
    let set = |paths: Value| {
        publisher.edit("targets", |signed| {
            signed["delegations"]["roles"][0]["paths"] = paths;
        });
    };
    set(json!(["quantix-os/stable/*/*/release.json"]));
    let server = Server::start(&scene.appliance.repo);
    scene.appliance.source(&server.url);
    scene
        .appliance
        .refuses(&["apply"], 5, &["quantix-os/artifacts/qx-node-"]);
    set(patterns);
    scene.ends_well();
}

/// What a role that is asked first says of a target stands, whatever one says that is asked later: the artifact of another
/// team, the release of the targets role itself.
#[test]
fn another_teams_targets() {
    let scene = with_a_team();
    delegate(
        &scene,
        "later",
        &[
            "quantix-os/stable/*/*/release.json",
            "quantix-os/artifacts/*",
        ],
    );
    let publisher = scene.publisher();
    let targets = publisher.signed("team")["targets"].clone();
    let lie = json!({"length": 1, "hashes": {"sha256": sha256(b"x")}});
    publisher.edit("later", |signed| {
        for name in targets.as_object().unwrap().keys() {
            signed["targets"][name] = lie.clone();
        }
        for version in ["1.1.0", "1.3.0"] {
            let name = format!("quantix-os/stable/{ARCH}/{version}/release.json");
            signed["targets"][name] = lie.clone();
        }
    });
    scene.ends_well();
}

/// A team whose right was taken away offers nothing any more, though the appliance has kept what it published.
#[test]
fn a_team_that_was_dismissed() {
    let mut scene = with_a_team();
    scene.finds(&scene.appliance.repo, 4, &["1.5.0"]);
    assert!(scene.trust().contains_key("delegated/team.json"));
    let (repo, keys) = (&scene.appliance.repo, &scene.appliance.keys);
    let place = ["--repo", path(repo), "--keys", path(keys)];
    let command = [&["delegate", "team", "--remove"], &place[..]].concat();
    scene.appliance.publish(&command).code(0);
    scene.newest = "1.3.0";
    scene.ends_well();
}

/// The key of a team was replaced: what the old one signs counts no more, not even what the appliance has kept.
#[test]
fn the_old_key_of_a_team() {
    let mut scene = with_a_team();
    scene.finds(&scene.appliance.repo, 4, &["1.5.0"]);
    let mut publisher = scene.publisher();
    publisher.new_key("new-team");
    let (id, public) = publisher.public("new-team");
    publisher.edit("targets", |signed| {
        let delegations = &mut signed["delegations"];
        delegations["keys"] = json!({&id: public});
        delegations["roles"][0]["keyids"] = json!([id]);
    });
    // The team has not signed yet with its new key: it is passed over, and the others' newest is offered.
    scene.finds(&scene.appliance.repo, 4, &["1.3.0"]);
    publisher.edit("team", |_| ());
    scene.newest = "1.5.0";
    scene.ends_well();
}
