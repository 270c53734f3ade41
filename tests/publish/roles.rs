//! Black-box tests of the real `qx-publish`: the roles of a repository over the years, their keys, drafts and teams.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use super::place::{HERE, Place, json_file, key_ids, signers};
use serde_json::{Value, json};

/// Three root keys kept apart, two of which must sign: `safe1`, `safe2`, `safe3`.
fn offline() -> Place {
    let place = Place::with(&["--root-keys", "3"]);
    for number in ["1", "2", "3"] {
        place.take_away(&format!("root-{number}"), &format!("safe{number}"));
    }
    place
}

/// Signs the only draft with the keys of a directory; the signed copy's name.
#[track_caller]
fn sign_draft(place: &Place, keys: &str) -> String {
    let drafts = place.drafts();
    let [draft] = &drafts[..] else {
        panic!("{drafts:?}")
    };
    let out = format!("signed-{keys}");
    let ended = place.run(&["sign", draft, "--keys", keys, "--out", &out]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    out
}

#[track_caller]
fn release(place: &Place, version: &str, components: &[&str], more: &[&str]) -> String {
    let recipe = place.recipe(version, components);
    place.good(&["release", &recipe], more)
}

fn set(ids: Vec<String>) -> BTreeSet<String> {
    ids.into_iter().collect()
}

/// A team that asks for several root keys gets them each in a file of its own, is told to take them away, and publishes
/// without them: one stolen machine then does not own the appliances.
#[test]
fn init_makes_root_keys_that_can_be_kept_apart() {
    let place = Place::empty();
    let out = place.good(
        &["init", "--product", "vdc"],
        &["--root-keys", "3", "--root-threshold", "2"],
    );
    let root = place.signed(1, "root");
    assert_eq!(root["roles"]["root"]["threshold"], 2);
    let ids = set(key_ids(&root, "root"));
    assert_eq!(ids.len(), 3);
    assert_eq!(set(signers(&place.metadata(1, "root"))), ids);
    for number in 1..=3 {
        assert!(
            out.contains(&format!("keys/root-{number}.pem offline")),
            "{out}"
        );
    }
    let keys: BTreeSet<String> = ["timestamp", "snapshot", "targets"]
        .iter()
        .flat_map(|role| key_ids(&root, role))
        .collect();
    assert_eq!(keys.len(), 3, "each role has a key of its own");
    assert!(keys.is_disjoint(&ids));
    // The root's keys are needed for nothing else.
    for number in ["1", "2", "3"] {
        place.take_away(&format!("root-{number}"), "safe");
    }
    release(&place, "1.0.0", &["web"], &[]);
    assert_eq!(place.fresh().releases.len(), 1);
}

/// A number of root keys that cannot meet its threshold is refused before there is a repository: its root could never
/// be changed.
#[test]
fn init_refuses_thresholds_that_cannot_be_met() {
    for (keys, threshold) in [("0", "1"), ("1", "2"), ("2", "0"), ("33", "1")] {
        let place = Place::empty();
        let more = ["--root-keys", keys, "--root-threshold", threshold];
        place.bad(2, &["init", "--product", "vdc"], &more);
        let made = fs::read_dir(place.path("keys")).map_or(0, Iterator::count);
        assert_eq!(made, 0, "{keys} {threshold}");
        assert!(!place.path("repo").exists(), "{keys} {threshold}");
    }
}

/// An interrupted `init` is ended with the key that it made, by the same command; another product, or keys of which it
/// is not known whose they are, are refused: no key is overwritten.
#[test]
fn an_interrupted_init_is_ended_by_the_same_command_only() {
    let place = Place::empty();
    // As a kill after the first key leaves it.
    place.good(&["init", "--product", "vdc"], &[]);
    fs::remove_dir_all(place.path("repo")).unwrap();
    fs::remove_file(place.path("keys/targets.pem")).unwrap();
    let told = place.bad(1, &["init", "--product", "vdc"], &[]);
    assert!(told.contains("no key is overwritten"), "{told}");
    let purpose = format!("vdc 1 1 {}\n", place.path("repo").display());
    fs::write(place.path("keys/init.unfinished"), purpose).unwrap();
    let told = place.bad(1, &["init", "--product", "other"], &[]);
    assert!(told.contains("was interrupted"), "{told}");
    let root = fs::read(place.path("keys/root.pem")).unwrap();
    place.good(&["init", "--product", "vdc"], &[]);
    assert_eq!(root, fs::read(place.path("keys/root.pem")).unwrap());
    assert_eq!(place.fresh().root, 1);
    assert!(!place.path("keys/init.unfinished").exists());
}

/// Metadata live as many days as the publisher set for their role, from when they were issued, and a lifetime that
/// makes no sense is refused: an appliance's patience is the publisher's choice.
#[test]
fn metadata_say_when_they_were_issued_and_live_as_long_as_they_were_told_to() {
    let place = Place::with(&[]);
    release(&place, "1.0.0", &["web"], &[]);
    let days = |version, role: &str| {
        let signed = place.signed(version, role);
        let time =
            |member: &str| humantime::parse_rfc3339(signed[member].as_str().unwrap()).unwrap();
        time("expires")
            .duration_since(time("x-issued"))
            .unwrap()
            .as_secs()
            / 86_400
    };
    for (version, role, expected) in [
        (1, "root", 5 * 365),
        (2, "targets", 365),
        (2, "snapshot", 365),
        (2, "timestamp", 90),
    ] {
        assert_eq!(days(version, role), expected, "{role}");
    }
    for (role, days) in [("timestamp", "10"), ("root", "700")] {
        let ended = place.run(&["expiry", role, days, "--repo", "repo"]);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    }
    place.good(&["rotate", "targets"], &[]);
    assert_eq!(
        (days(2, "root"), days(3, "timestamp"), days(3, "snapshot")),
        (700, 10, 365)
    );
    for (role, days) in [("timestamp", "0"), ("timestamp", "7301"), ("nobody", "10")] {
        let ended = place.run(&["expiry", role, days, "--repo", "repo"]);
        assert_eq!(ended.code, 2, "{role} {days} {}", ended.err);
    }
}

/// Any of the four roles gets a new key without an appliance losing trust, new or old, for the change is signed by both
/// keys; afterwards the old one is neither named nor needed.
#[test]
fn every_top_level_role_can_be_rotated() {
    let place = Place::with(&[]);
    release(&place, "1.0.0", &["web"], &[]);
    place.seen("known").unwrap();
    for (number, role) in ["timestamp", "snapshot", "targets", "root"]
        .iter()
        .enumerate()
    {
        let version = number as u64 + 1;
        let old = set(key_ids(&place.signed(version, "root"), role));
        place.good(&["rotate", role], &[]);
        let root = place.signed(version + 1, "root");
        let new = set(key_ids(&root, role));
        assert!(old.is_disjoint(&new), "{role}");
        for id in &old {
            assert!(
                root["keys"].get(id).is_none(),
                "{role}: the old key is gone"
            );
        }
        // Readers of the old root, and of the new one, at the moment of the change.
        let current = match *role {
            "root" => place.metadata(version + 1, "root"),
            role => {
                let newest = (1..20).rev().find(|n| {
                    place
                        .path(format!("repo/metadata/{n}.{role}.json"))
                        .exists()
                });
                place.metadata(newest.unwrap_or(0), role)
            }
        };
        assert_eq!(
            set(signers(&current)),
            &old | &new,
            "{role}: signed by both"
        );
        assert_eq!(place.fresh().root, version + 1);
        assert_eq!(place.seen("known").unwrap().root, version + 1);
        // The old key is no longer needed.
        let file = place.path(format!("keys/{role}.pem"));
        fs::remove_file(file).unwrap();
        release(&place, &format!("1.{version}.0"), &["web"], &[]);
        assert_eq!(place.seen("known").unwrap().releases.len(), number + 2);
    }
}

/// A publisher adds and removes keys of the root and sets its threshold, one at a time or together; what names no key,
/// several, or changes nothing is refused with the reason.
#[test]
fn keys_come_and_go_as_told() {
    let place = Place::with(&[]);
    let rotate = |more: &[&str]| place.good(&["rotate", "root"], more);
    let first = key_ids(&place.signed(1, "root"), "root");
    // More keys, with a threshold: from one key to two of three.
    rotate(&[
        "--key",
        "new",
        "--key",
        "new",
        "--remove",
        "none",
        "--threshold",
        "2",
    ]);
    let root = place.signed(2, "root");
    let ids = set(key_ids(&root, "root"));
    assert_eq!(
        (ids.len(), &root["roles"]["root"]["threshold"]),
        (3, &json!(2))
    );
    assert!(ids.contains(&first[0]));
    // One goes, by the start of its id.
    rotate(&["--remove", &first[0][..10]]);
    let root = place.signed(3, "root");
    assert_eq!(set(key_ids(&root, "root")), &ids - &set(first.clone()));
    // Only the threshold.
    rotate(&["--threshold", "1"]);
    let root = place.signed(4, "root");
    assert_eq!(
        (
            key_ids(&root, "root").len(),
            &root["roles"]["root"]["threshold"]
        ),
        (2, &json!(1))
    );
    assert_eq!(place.fresh().root, 4);
    for (more, why) in [
        (
            &["--threshold", "3"][..],
            "cannot require 3 signatures of 2 keys",
        ),
        (&["--threshold", "0"], "0 signatures"),
        (&["--threshold", "1"], "already has these keys"),
        (&["--remove", "ffff"], "0 keys of the role root"),
        (&["--remove", ""], "2 keys of the role root"),
    ] {
        let told = place.bad(2, &["rotate", "root"], more);
        assert!(told.contains(why), "{more:?} {told}");
    }
    let told = place.bad(2, &["rotate", "nobody"], &[]);
    assert!(told.contains("no team 'nobody'"), "{told}");
    let told = place.bad(1, &["rotate", "root"], &["--key", "keys/timestamp.pem"]);
    assert!(told.contains("private key"), "{told}");
}

/// A new root whose keys are in different safes waits as a draft that appliances do not see and releases do not wait
/// for, and is published with the last signature needed, once.
#[test]
fn a_root_whose_keys_are_apart_is_signed_in_several_places() {
    let place = offline();
    release(&place, "1.0.0", &["web"], &[]);
    place.seen("known").unwrap();
    let before = place.tree("repo/metadata");
    let out = place.good(&["rotate", "timestamp"], &[]);
    assert!(out.contains("2 more needed, of the keys"), "{out}");
    assert!(out.contains("--add-signature"), "{out}");
    assert_eq!(
        before,
        place.tree("repo/metadata"),
        "readers see nothing of a draft"
    );
    // A release goes on meanwhile.
    release(&place, "1.1.0", &["web"], &[]);

    let one = sign_draft(&place, "safe1");
    let two = sign_draft(&place, "safe2");
    let out = place.good(&["sign"], &["--add-signature", &one]);
    assert!(out.contains("is pending: 1 of 2 signatures"), "{out}");
    assert_eq!(place.fresh().root, 1, "one signature is not enough");
    // The same once more changes nothing.
    let out = place.good(&["sign"], &["--add-signature", &one]);
    assert!(out.contains("is pending: 1 of 2 signatures"), "{out}");
    let out = place.good(&["sign"], &["--add-signature", &two]);
    assert!(out.contains("published root version 2"), "{out}");
    assert_eq!((place.fresh().root, place.fresh().releases.len()), (2, 2));
    assert_eq!(place.seen("known").unwrap().root, 2);
    assert!(place.drafts().is_empty());
    let published = place.metadata(2, "root");
    assert_eq!(
        published.as_object().unwrap().len(),
        2,
        "nothing of the draft but what TUF knows"
    );
    // It cannot be published again.
    let told = place.bad(1, &["sign"], &["--add-signature", &two]);
    assert!(told.contains("no draft is pending"), "{told}");
    release(&place, "1.2.0", &["web"], &[]);
}

/// A root that changes hands is published only when enough of the old and enough of the new keys have signed:
/// appliances would refuse it with fewer.
#[test]
fn a_new_root_takes_the_thresholds_of_the_old_one_and_of_the_new_one() {
    let place = offline();
    for number in ["4", "5"] {
        let file = format!("new{number}/root-{number}.pem");
        crate::common::create_dir(place.path(format!("new{number}"))).unwrap();
        assert_eq!(place.run(&["key", "new", &file]).code, 0);
    }
    // Only the public halves are here.
    place.good(
        &["rotate", "root"],
        &[
            "--key",
            "new4/root-4.pub.pem",
            "--key",
            "new5/root-5.pub.pem",
        ],
    );
    let add = |keys: &str| {
        let signed = sign_draft(&place, keys);
        place.good(&["sign"], &["--add-signature", &signed])
    };
    add("safe1");
    let out = add("safe2");
    assert!(
        out.contains("0 of 2 signatures that version 2 of the root"),
        "{out}"
    );
    assert!(!out.contains("version 1 of the root"), "{out}");
    add("new4");
    assert_eq!(place.fresh().root, 1);
    let out = add("new5");
    assert!(out.contains("published root version 2"), "{out}");
    assert_eq!(place.fresh().root, 2);
}

/// A signature that is wrong, of a key that has no say, or of something else than the draft is refused and the draft
/// stays as it was; the right one is still taken.
#[test]
fn signatures_that_do_not_belong_to_a_draft_are_refused() {
    let place = offline();
    place.good(&["rotate", "timestamp"], &[]);
    let signed = sign_draft(&place, "safe1");
    let good = json_file(&place.path(&signed));
    let refused = |change: &dyn Fn(&mut Value), why: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        place.file("bad", bad.to_string().as_bytes());
        let told = place.bad(1, &["sign"], &["--add-signature", "bad"]);
        assert!(told.contains(why), "{why}: {told}");
    };
    let other = "0".repeat(128);
    refused(
        &|bad| bad["signatures"][0]["sig"] = json!(other),
        "is invalid",
    );
    refused(
        &|bad| bad["signatures"][0]["sig"] = json!("xyz"),
        "is invalid",
    );
    refused(
        &|bad| bad["signatures"][0]["keyid"] = json!("0".repeat(64)),
        "is not accepted for the",
    );
    refused(
        &|bad| bad["signed"]["version"] = json!(3),
        "none of the pending drafts",
    );
    refused(
        &|bad| bad["signed"]["expires"] = json!("2090-01-01T00:00:00Z"),
        "none of the pending drafts",
    );
    refused(
        &|bad| bad["signatures"] = json!({}),
        "no list of signatures",
    );
    refused(&|bad| *bad = json!([]), "not TUF metadata");
    // A key of another role does not sign a root.
    let drafts = place.drafts();
    let ended = place.run(&["sign", &drafts[0], "--keys", "keys", "--out", "x"]);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("keys holds no key"), "{}", ended.err);
    assert!(!place.path("x").exists());
    // The good one is taken still, also without what is a draft's own.
    let mut bare = good.clone();
    bare.as_object_mut().unwrap().remove("draft");
    place.file("bare", bare.to_string().as_bytes());
    place.good(&["sign"], &["--add-signature", "bare"]);
}

/// Whoever signs a draft is shown what it would change, and nothing that a forger wrote into it can look like a line of
/// its own or drive the terminal: a signature is given knowingly.
#[test]
fn who_signs_a_draft_sees_what_it_is() {
    let place = offline();
    place.good(&["rotate", "timestamp"], &[]);
    let draft = place.drafts().remove(0);
    let old = key_ids(&place.signed(1, "root"), "timestamp").remove(0);
    let shown = |more: &[&str]| {
        let arguments = [
            &["sign", &draft, "--keys", "safe1", "--out", "signed"],
            more,
        ]
        .concat();
        place.run(&arguments).out
    };
    let alone = shown(&[]);
    for part in [
        "root metadata, version 2",
        "valid until",
        "root: 2 of 3 keys must sign",
        "timestamp: 1 of 1",
        "1 of 2",
    ] {
        assert!(alone.contains(part), "{part}: {alone}");
    }
    // A draft may come from anybody: nothing in it makes a line, or the terminal do anything.
    let mut forged = json_file(&place.path(&draft));
    forged["signed"]["expires"] = json!("soon\n  root: 1 of 1\u{1b}[2J");
    forged["draft"]["asks"][0]["by"] = json!("me\u{1b}[2J\nnext");
    place.file("forged", forged.to_string().as_bytes());
    let told = place
        .run(&["sign", "forged", "--keys", "safe1", "--out", "out"])
        .out;
    assert!(told.contains("soon\\n  root: 1 of 1\\u{1b}"), "{told}");
    assert!(
        !told.contains('\u{1b}') && !told.contains("\nnext\n"),
        "{told}"
    );
    let beside = shown(&["--repo", "repo"]);
    assert!(
        beside.contains(&format!("{}  REMOVED", &old[..12])),
        "{beside}"
    );
    assert_eq!(beside.matches("NEW").count(), 1, "{beside}");
}

/// A draft that an intruder laid into the repository is not signed by the commands of daily work, which hold the keys
/// for it; the release that meets it names it and stops.
#[test]
fn a_draft_of_somebody_else_is_never_signed_unseen() {
    let place = offline();
    place.good(&["rotate", "timestamp"], &[]);
    // Whoever may write to the repository puts a draft there that the keys at hand could sign.
    let draft = place.drafts().remove(0);
    let mut forged = json_file(&place.path(&draft));
    forged["draft"]["role"] = json!("targets");
    forged["signed"] = place.signed(1, "targets");
    forged["signed"]["version"] = json!(2);
    forged["signed"]["targets"]["vdc/evil"] =
        json!({"length": 1, "hashes": {"sha256": "0".repeat(64)}});
    place.file("repo/.drafts/2.targets.json", forged.to_string().as_bytes());
    place.good(&["sign"], &[]);
    place.good(&["refresh"], &[]);
    let recipe = place.recipe("1.0.0", &["web"]);
    let told = place.bad(1, &["release", &recipe], &[]);
    assert!(told.contains("2.targets.json"), "{told}");
    assert_eq!(
        place.signed(1, "snapshot")["meta"]["targets.json"]["version"],
        1
    );
    assert!(!place.path("repo/metadata/2.targets.json").exists());
    assert!(signers(&json_file(&place.path("repo/.drafts/2.targets.json"))).is_empty());
}

/// A team that lost a key replaces it on its word, and appliances new and old go on. Without that word the loss of a
/// timestamp or snapshot key is an error that says the way out.
#[test]
fn an_old_key_that_is_lost_is_not_waited_for() {
    for role in ["timestamp", "snapshot", "targets"] {
        let place = Place::with(&[]);
        release(&place, "1.0.0", &["web"], &[]);
        place.seen("known").unwrap();
        place.take_away(role, "lost");
        if role != "targets" {
            let told = place.bad(1, &["rotate", role], &[]);
            assert!(told.contains("--without-old-key"), "{told}");
        }
        place.good(&["rotate", role], &["--without-old-key"]);
        assert_eq!(
            (place.fresh().root, place.fresh().releases.len()),
            (2, 1),
            "{role}"
        );
        assert_eq!(place.seen("known").unwrap().root, 2, "{role}");
        release(&place, "1.1.0", &["web"], &[]);
        assert_eq!(place.seen("known").unwrap().releases.len(), 2, "{role}");
    }
}

/// An appliance that a thief of the timestamp and snapshot keys brought to enormous versions takes the honest, lower
/// ones again after both keys were rotated: no theft locks it out for ever.
#[test]
fn a_stolen_timestamp_key_that_ran_ahead_is_recovered_from() {
    let place = Place::with(&[]);
    release(&place, "1.0.0", &["web"], &[]);
    // The thief publishes versions that no honest publication would ever pass, on a mirror that the appliance reads.
    let mirror = place.copy();
    for (role, version) in [("snapshot", 1_u64 << 40), ("timestamp", 1 << 40)] {
        let name = if role == "timestamp" {
            "timestamp.json".into()
        } else {
            "2.snapshot.json".to_owned()
        };
        let mut forged = json_file(&mirror.path(format!("repo/metadata/{name}")));
        forged["signed"]["version"] = json!(version);
        forged["signed"]["meta"]["snapshot.json"] = match role {
            "timestamp" => json!({"version": 1u64 << 40}),
            _ => Value::Null,
        };
        if role == "snapshot" {
            forged["signed"]["meta"]
                .as_object_mut()
                .unwrap()
                .remove("snapshot.json");
        }
        resign(&mirror, role, &mut forged);
        let name = if role == "timestamp" {
            name
        } else {
            format!("{version}.snapshot.json")
        };
        mirror.file(
            &format!("repo/metadata/{name}"),
            forged.to_string().as_bytes(),
        );
    }
    mirror.seen("known").unwrap();
    let known = |place: &Place| {
        let from = mirror.path("known");
        let _ = fs::remove_dir_all(place.path("known"));
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(place.path("known"))
            .status();
        assert!(status.unwrap().success());
        place.seen("known")
    };
    assert!(known(&place).is_err(), "the appliance is stuck");
    place.good(&["rotate", "timestamp"], &[]);
    place.good(&["rotate", "snapshot"], &[]);
    assert_eq!(known(&place).unwrap().root, 3);
}

/// Signs metadata anew with the key `keys/ROLE.pem`.
fn resign(place: &Place, role: &str, metadata: &mut Value) {
    let pem = fs::read_to_string(place.path(format!("keys/{role}.pem"))).unwrap();
    let key = ed25519_compact::KeyPair::from_pem(&pem).unwrap();
    let message = qx_release::trust::canonical::canonical(&metadata["signed"]).unwrap();
    let signature = key.sk.sign(message, None);
    let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    metadata["signatures"][0]["sig"] = json!(hex);
}

/// A cron job's `refresh` renews what expires within the time it was given and nothing else, and says what is due next:
/// it can run daily without filling the repository.
#[test]
fn refresh_renews_what_is_due_and_says_when_to_come_again() {
    let place = Place::with(&[]);
    let before = place.tree("repo");
    let out = place.good(&["refresh"], &[]);
    assert!(
        out.contains("nothing was renewed") && out.contains("(timestamp)"),
        "{out}"
    );
    assert_eq!(before, place.tree("repo"), "nothing due, nothing changed");
    // 90 days are within 100.
    let out = place.good(&["refresh"], &["--within", "100"]);
    assert!(out.contains("published timestamp version 2"), "{out}");
    assert!(!out.contains("snapshot"), "{out}");
    let out = place.good(&["refresh"], &["--within", "400"]);
    assert!(
        out.contains("published targets version 2") && !out.contains("root"),
        "{out}"
    );
    let out = place.good(&["refresh"], &["--within", "4000"]);
    assert!(out.contains("published root version 2"), "{out}");
    assert_eq!(place.fresh().root, 2);
}

/// A renewal that needs keys which are not there is a draft and exit 10, so that a cron job calls a person; running
/// again keeps the signatures, and other work is not held up.
#[test]
fn refresh_exits_10_for_what_it_cannot_renew() {
    let place = offline();
    let refresh = |within| place.run(&[&["refresh"][..], &HERE, &["--within", within]].concat());
    let ended = refresh("4000");
    assert_eq!(ended.code, 10, "{}{}", ended.out, ended.err);
    assert!(
        ended.err.contains("the root metadata are valid until"),
        "{}",
        ended.err
    );
    assert_eq!(place.drafts(), ["repo/.drafts/2.root.json"]);
    // Again: the draft is there already, and what was signed in the meantime is kept.
    let signed = sign_draft(&place, "safe1");
    place.good(&["sign"], &["--add-signature", &signed]);
    let draft = fs::read(place.path("repo/.drafts/2.root.json")).unwrap();
    assert_eq!(refresh("4000").code, 10);
    assert_eq!(
        draft,
        fs::read(place.path("repo/.drafts/2.root.json")).unwrap()
    );
    let signed = sign_draft(&place, "safe3");
    place.good(&["sign"], &["--add-signature", &signed]);
    assert_eq!(place.fresh().root, 2);
    // A renewal that waits is in nobody's way.
    assert_eq!(refresh("4000").code, 10);
    place.good(&["rotate", "snapshot"], &[]);
    // An online key that is away.
    place.take_away("timestamp", "away");
    let before = place.tree("repo/metadata");
    let ended = refresh("100");
    assert_eq!(ended.code, 10, "{}", ended.err);
    assert!(ended.err.contains("timestamp"), "{}", ended.err);
    assert_eq!(before, place.tree("repo/metadata"));
}

/// A publisher is warned by one line of `inspect` or `release` of a role that expires soon, and not of a short-lived
/// one that is still young: appliances refuse what has expired.
#[test]
fn what_expires_soon_is_warned_of() {
    let place = Place::with(&[]);
    for (role, days) in [("timestamp", "61"), ("snapshot", "90"), ("root", "59")] {
        place.run(&["expiry", role, days, "--repo", "repo"]);
    }
    place.good(&["rotate", "targets"], &["--key", "new"]);
    let warned = |arguments: &[&str]| place.run(arguments).err;
    // 59 of 59 days are left of the root; that is more than two thirds.
    assert_eq!(warned(&["inspect", "--repo", "repo"]), "");
    place.run(&["expiry", "root", "365", "--repo", "repo"]);
    let told = warned(&["inspect", "--repo", "repo"]);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.contains("the root metadata expire at") && told.contains("refresh"),
        "{told}"
    );
    // A release renews all but the root; refresh says itself what it leaves open.
    let recipe = place.recipe("1.0.0", &["web"]);
    let told = warned(&[&["release", &recipe][..], &HERE].concat());
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(place.run(&[&["refresh"][..], &HERE].concat()).code, 0);
}

/// A release that takes two people is packed and waits, unseen by appliances, until the second has signed; meanwhile
/// the same release can be made again, and another one cannot be put in its place.
#[test]
fn targets_with_a_threshold_are_signed_in_several_places() {
    let place = Place::with(&[]);
    place.good(
        &["rotate", "targets"],
        &["--key", "new", "--key", "new", "--threshold", "2"],
    );
    place.take_away("targets-v2", "safe");
    let recipe = place.recipe("1.0.0", &["web"]);
    let out = place.good(&["release", &recipe], &[]);
    assert!(
        out.contains("packed") && out.contains("1 of 2 signatures"),
        "{out}"
    );
    assert!(place.fresh().releases.is_empty());
    // Made again it is the same draft.
    place.good(&["release", &recipe], &[]);
    let told = place.bad(1, &["release", &place.recipe("2.0.0", &["node"])], &[]);
    assert!(told.contains("is waiting for signatures"), "{told}");
    let signed = sign_draft(&place, "safe");
    let out = place.good(&["sign"], &["--add-signature", &signed]);
    assert!(out.contains("published targets version 3"), "{out}");
    assert_eq!(place.fresh().releases.len(), 1);
}

/// A renewal, rotation or delegation with keys that are not the repository's fails and leaves no byte of it changed:
/// the wrong directory on the command line costs nothing.
#[test]
fn keys_that_are_not_the_repositorys_change_nothing() {
    let place = Place::with(&[]);
    place.run(&["key", "new", "others/targets.pem"]);
    crate::common::create_dir(place.path("others")).unwrap();
    place.run(&["key", "new", "others/targets.pem"]);
    for arguments in [
        &["refresh", "--within", "4000"][..],
        &["rotate", "root"],
        &["delegate", "a", "--paths", "b"],
    ] {
        let before = place.tree("repo");
        let ended = place.run(&[arguments, &["--repo", "repo", "--keys", "others"]].concat());
        assert_ne!(ended.code, 0, "{arguments:?}");
        assert_eq!(before, place.tree("repo"), "{arguments:?}");
    }
}

fn with_team() -> Place {
    let place = Place::with(&[]);
    place.good(
        &["delegate", "webbers"],
        &[
            "--paths",
            "vdc/artifacts/web-*",
            "--paths",
            "vdc/web/*/*/release.json",
        ],
    );
    place
}

/// A team with the name of a role or a path, or patterns that leave the repository or mean nothing, is refused as wrong
/// usage: such a name would be a file of another role.
#[test]
fn teams_and_patterns_that_are_none_are_refused() {
    let place = Place::with(&[]);
    for team in [
        "root",
        "timestamp",
        "snapshot",
        "targets",
        "Targets",
        "1.root",
        "../x",
        "a/b",
        "",
        ".x",
        "a+b",
        "a b",
    ] {
        place.bad(2, &["delegate", team], &["--paths", "vdc/*"]);
    }
    for pattern in ["", "/vdc/*", "../*", "vdc/../*", "vdc//x", "vdc/[a]"] {
        place.bad(2, &["delegate", "team"], &["--paths", pattern]);
    }
    place.bad(2, &["delegate", "team"], &[]);
    place.bad(2, &["delegate", "team", "--remove"], &[]);
    for threshold in ["0", "2"] {
        place.bad(
            2,
            &["delegate", "team"],
            &["--paths", "vdc/*", "--threshold", threshold],
        );
    }
    place.good(&["delegate", "team"], &["--paths", "vdc/*"]);
    place.bad(
        2,
        &["delegate", "team"],
        &["--paths", "vdc/*", "--key", "new"],
    );
}

/// A team is told that what it would publish lies behind another team's paths, where appliances end their search,
/// instead of publishing what none of them finds.
#[test]
fn a_team_behind_a_terminating_one_publishes_nothing_that_is_not_found() {
    let place = Place::with(&[]);
    place.good(
        &["delegate", "first"],
        &["--paths", "vdc/artifacts/web-*", "--terminating"],
    );
    place.good(&["delegate", "second"], &["--paths", "vdc/artifacts/*"]);
    let told = place.bad(
        1,
        &["component", &place.recipe("1.0.0", &["web"])],
        &["--as", "second"],
    );
    assert!(
        told.contains("first") && told.contains("end the search"),
        "{told}"
    );
    place.good(
        &["component", &place.recipe("1.0.0", &["node"])],
        &["--as", "second"],
    );
}

/// A team whose key is not here is delegated to when it has signed its first metadata, and not before: appliances could
/// not read a repository that names metadata which are not there.
#[test]
fn a_team_with_keys_elsewhere_signs_first() {
    let place = Place::with(&[]);
    crate::common::create_dir(place.path("theirs")).unwrap();
    assert_eq!(place.run(&["key", "new", "theirs/team.pem"]).code, 0);
    place.file(
        "team.pub",
        &fs::read(place.path("theirs/team.pub.pem")).unwrap(),
    );
    let out = place.good(
        &["delegate", "team"],
        &["--paths", "vdc/artifacts/*", "--key", "team.pub"],
    );
    assert!(out.contains("is pending"), "{out}");
    // Nobody delegates to metadata that are not there.
    assert!(place.signed(1, "targets")["delegations"].is_null());
    assert!(!place.path("repo/metadata/2.targets.json").exists());
    let ended = place.run(&["sign", "repo/.drafts/1.team.json", "--keys", "theirs"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let out = place.good(&["sign"], &[]);
    assert!(
        out.contains("published targets version 2") && out.contains("published team version 1"),
        "{out}"
    );
    place.fresh();
    // A component that the team signs elsewhere.
    let out = place.good(
        &["component", &place.recipe("1.0.0", &["web"])],
        &["--as", "team"],
    );
    assert!(out.contains("packed"), "{out}");
    let signed = sign_draft(&place, "theirs");
    place.good(&["sign"], &["--add-signature", &signed]);
    assert_eq!(
        place.signed(2, "team")["targets"]
            .as_object()
            .unwrap()
            .len(),
        1
    );
}

/// A team whose key was stolen gets another one, what it published is signed anew with it and the old key is no longer
/// named, without any use of the old key; then it publishes as before.
#[test]
fn a_teams_keys_are_rotated_with_what_they_sign() {
    let place = with_team();
    place.good(
        &["component", &place.recipe("1.0.0", &["web"])],
        &["--as", "webbers"],
    );
    let old = place.signed(2, "targets")["delegations"]["roles"][0]["keyids"].clone();
    place.take_away("webbers-v2", "stolen");
    place.good(&["rotate", "webbers"], &[]);
    let targets = place.signed(3, "targets");
    let new = targets["delegations"]["roles"][0]["keyids"].clone();
    assert_ne!(old, new);
    assert_eq!(targets["delegations"]["keys"].as_object().unwrap().len(), 1);
    let team = place.metadata(3, "webbers");
    assert_eq!(json!(signers(&team)), new);
    assert_eq!(team["signed"]["targets"].as_object().unwrap().len(), 1);
    place.file("src/web/index.html", b"two");
    place.good(
        &["component", &place.recipe("1.0.1", &["web"])],
        &["--as", "webbers"],
    );
}

/// Every command that would change a repository exits as busy while another is at work, and of several releases at once
/// each is published whole or refused as busy: none is lost.
#[test]
fn two_publishers_at_once_do_not_mix() {
    let place = with_team();
    // A publisher at work, stopped while it holds the lock: its key is a signer that waits for us.
    let lock = std::fs::File::open(place.path("repo/metadata")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let recipe = place.recipe("1.0.0", &["web"]);
    for arguments in [
        &["release", &recipe][..],
        &["component", &recipe, "--as", "webbers"],
        &["rotate", "root"],
        &["refresh", "--within", "4000"],
        &["delegate", "other", "--paths", "vdc/*"],
        &["delegate", "webbers", "--remove"],
        &["sign"],
    ] {
        let told = place.bad(6, arguments, &[]);
        assert!(
            told.contains("retry when it has finished"),
            "{arguments:?} {told}"
        );
    }
    let ended = place.run(&["expiry", "root", "10", "--repo", "repo"]);
    assert_eq!(ended.code, 6, "{}", ended.err);
    // Not by closing it: a child of another test may have it open until it executes something else.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    // Many real ones: each publishes or says that another does, and all that was published is there.
    let children: Vec<_> = (0..6)
        .map(|number| {
            let recipe = place.recipe(&format!("2.{number}.0"), &["web"]);
            let arguments = [&["release", &recipe][..], &HERE].concat();
            let mut command = place.command(&arguments);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let mut published = 0;
    for child in children {
        let ended = super::work::Ended::from(child.wait_with_output().unwrap());
        assert!([0, 6].contains(&ended.code), "{} {}", ended.code, ended.err);
        published += usize::from(ended.code == 0);
    }
    assert!(published > 0);
    assert_eq!(place.fresh().releases.len(), published);
}

/// A repository that version 0.1 made takes releases and more root keys without a conversion, and appliances see them
/// all.
#[test]
fn a_repository_of_the_first_layout_goes_on() {
    // Four keys, one each, metadata without x-issued, repository.json without lifetimes: as version 0.1 made it.
    let place = Place::with(&[]);
    place.file(
        "repo/repository.json",
        b"{\"format\":1,\"product\":\"vdc\"}\n",
    );
    for (role, file) in [("root", "1.root.json"), ("timestamp", "timestamp.json")] {
        fs::remove_file(place.path(format!("keys/{role}.pub.pem"))).unwrap();
        let file = format!("repo/metadata/{file}");
        let mut metadata = json_file(&place.path(&file));
        metadata["signed"]
            .as_object_mut()
            .unwrap()
            .remove("x-issued");
        resign(&place, role, &mut metadata);
        place.file(&file, metadata.to_string().as_bytes());
    }
    release(&place, "1.0.0", &["web"], &[]);
    place.good(
        &["rotate", "root"],
        &[
            "--key",
            "new",
            "--key",
            "new",
            "--remove",
            "none",
            "--threshold",
            "2",
        ],
    );
    release(&place, "1.1.0", &["web"], &[]);
    assert_eq!((place.fresh().root, place.fresh().releases.len()), (2, 2));
}

/// A release uses a team's component without signing for it again, and stays whole when the team goes. A team that
/// comes back goes on in its versions, so that appliances which saw it before accept it.
#[test]
fn a_release_names_what_a_team_has_published() {
    let place = with_team();
    let recipe = place.recipe("1.0.0", &["web"]);
    let out = place.good(&["component", &recipe], &["--as", "webbers"]);
    assert!(out.contains("vdc/artifacts/web-"), "{out}");
    // Again: there is nothing new.
    let before = place.tree("repo");
    place.good(&["component", &recipe], &["--as", "webbers"]);
    assert_eq!(before, place.tree("repo"));
    let out = release(&place, "1.1.0", &["web", "node"], &[]);
    assert!(out.contains("2 components"), "{out}");
    let targets = place.signed(3, "targets");
    let names: Vec<&String> = targets["targets"].as_object().unwrap().keys().collect();
    assert_eq!(
        names.len(),
        2,
        "the manifest and the other component: {names:?}"
    );
    assert!(names.iter().all(|name| !name.contains("web-")), "{names:?}");
    assert_eq!(place.fresh().releases.len(), 1);

    // The team goes; the release stays whole.
    place.good(&["delegate", "webbers", "--remove"], &[]);
    let targets = place.signed(4, "targets");
    assert_eq!(targets["delegations"], json!({"keys": {}, "roles": []}));
    assert_eq!(targets["targets"].as_object().unwrap().len(), 3);
    assert_eq!(place.fresh().releases.len(), 1);
    // What a snapshot has listed it lists for ever, and a team that comes back goes on from there.
    let listed =
        |version| place.signed(version, "snapshot")["meta"]["webbers.json"]["version"].clone();
    assert_eq!(listed(5), 2);
    place.seen("known").unwrap();
    place.good(
        &["delegate", "webbers"],
        &["--paths", "vdc/artifacts/web-*"],
    );
    assert_eq!(listed(6), 3);
    place.seen("known").unwrap();
}

/// A team that publishes outside of its paths is refused with the name and the paths, and what it may publish is signed
/// by its key alone: appliances would not look at the rest.
#[test]
fn a_team_publishes_what_it_may_and_nothing_else() {
    let place = with_team();
    let recipe = place.recipe("1.0.0", &["web"]);
    let told = place.bad(1, &["release", &recipe], &["--as", "webbers"]);
    assert!(
        told.contains("vdc/stable/x86_64/1.0.0/release.json") && told.contains("vdc/web/*"),
        "{told}"
    );
    let foreign = place.recipe("1.0.1", &["node"]);
    let told = place.bad(1, &["component", &foreign], &["--as", "webbers"]);
    assert!(told.contains("vdc/artifacts/node-"), "{told}");
    let told = place.bad(2, &["release", &recipe], &["--as", "nobody"]);
    assert!(told.contains("no team 'nobody'"), "{told}");

    place.good(
        &["release", &recipe],
        &["--as", "webbers", "--channel", "web"],
    );
    let team = place.metadata(2, "webbers");
    assert_eq!(team["signed"]["targets"].as_object().unwrap().len(), 2);
    let named = &place.signed(2, "targets")["delegations"]["roles"][0];
    assert_eq!(json!(signers(&team)), named["keyids"]);
    assert_eq!(place.fresh().releases.len(), 1);
    let told = place.bad(
        1,
        &["release", &recipe],
        &["--as", "webbers", "--channel", "web"],
    );
    assert!(told.contains("already published on web"), "{told}");
}

/// Root and targets that expired together are renewed by people in different places, neither waiting for the other, and
/// appliances read the repository again when both have signed.
#[test]
fn what_has_expired_is_renewed_whoever_is_late() {
    let place = Place::empty();
    let past = SystemTime::now() - Duration::from_secs(6 * 365 * 86_400);
    let (repo, keys) = (place.path("repo"), place.path("keys"));
    qx_publish::init(&repo, &keys, &"vdc".parse().unwrap(), 1, None, past).unwrap();
    place.take_away("root", "safe");
    place.take_away("targets", "office");
    // Two drafts, and neither waits for the other.
    let refresh = [&["refresh"][..], &HERE].concat();
    assert_eq!(place.run(&refresh).code, 10);
    assert_eq!(place.drafts().len(), 2);
    for (draft, keys) in [("2.root", "safe"), ("2.targets", "office")] {
        assert!(place.seen("known").is_err());
        let draft = format!("repo/.drafts/{draft}.json");
        assert_eq!(place.run(&["sign", &draft, "--keys", keys]).code, 0);
        // Only the one that was not signed yet is warned of.
        let ended = place.run(&[&["sign"][..], &HERE].concat());
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    assert_eq!(place.seen("known").unwrap().root, 2);
    assert_eq!(place.run(&refresh).code, 0);
}

/// A lost timestamp key is replaced also where the root is signed elsewhere; whoever adds the signatures must say again
/// that the old key is gone, and then appliances new and old go on.
#[test]
fn a_lost_key_is_not_waited_for_where_the_root_is_signed_elsewhere() {
    let place = offline();
    place.seen("known").unwrap();
    place.take_away("timestamp", "lost");
    place.good(&["rotate", "timestamp"], &["--without-old-key"]);
    let one = sign_draft(&place, "safe1");
    let two = sign_draft(&place, "safe2");
    let both = ["--add-signature", &one, "--add-signature", &two];
    let told = place.bad(1, &["sign"], &both);
    assert!(told.contains("--without-old-key"), "{told}");
    place.good(&["sign"], &[&both[..], &["--without-old-key"]].concat());
    assert_eq!(
        (place.fresh().root, place.seen("known").unwrap().root),
        (2, 2)
    );
}

/// A reader of `docs/publishing.md` can type its commands in their order: each does what it should, or is at least
/// understood where it needs what only the reader has.
#[test]
fn the_commands_of_the_document_are_commands() {
    let place = Place::empty();
    place.file("src/dashboard/index.html", b"<html>");
    let recipe = place.recipe("1.0.0", &["dashboard"]);
    let recipe = json_file(&place.path(&recipe)).to_string();
    place.file(
        "dashboard.json",
        recipe
            .replace("\"source\":\"", "\"source\":\"src/")
            .as_bytes(),
    );
    let document =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/publishing.md")).unwrap();
    let mut run = Vec::new();
    for block in document.split("```").skip(1).step_by(2) {
        for line in block.lines() {
            let Some((_, command)) = line.split_once("qx-publish ") else {
                continue;
            };
            let command = command.split('#').next().unwrap();
            let arguments = words(command);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let ended = place.run(&arguments);
            // The drafts, the releases, the cron job's directories and the stick are not here, and the key is there already: these
            // commands are understood, and fail.
            let elsewhere = ["sign", "key", "bundle", "withdraw"].contains(&arguments[0])
                || command.contains("/srv/");
            assert_eq!(
                ended.code,
                i32::from(elsewhere),
                "{line}\n{}{}",
                ended.out,
                ended.err
            );
            run.push(arguments[0].to_owned());
            if arguments[0] == "init" {
                // The team's key, which signs at once where it is at hand.
                assert_eq!(place.run(&["key", "new", "keys/web.pem"]).code, 0);
                fs::copy(place.path("keys/web.pub.pem"), place.path("web.pub.pem")).unwrap();
            }
        }
    }
    assert_eq!(
        run,
        [
            "init",
            "sign",
            "sign",
            "refresh",
            "rotate",
            "delegate",
            "component",
            "key",
            "bundle",
            "withdraw",
            "prune"
        ]
    );
}

/// The words of a shell command; only single quotes are special in these.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('\'').enumerate();
    let words = parts.flat_map(|(number, part)| match number % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}
