//! Taking a release back, and removing what only it consists of.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::place::{HERE, Place};

/// 1.0.0, 1.1.0 and 1.2.0: `web` differs in each, `node` is one and the same; and a component of its own.
fn three() -> Place {
    let place = Place::with(&[]);
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        place.file("src/web/index.html", version.as_bytes());
        let recipe = place.recipe(version, &["web", "node"]);
        place.good(&["release", &recipe], &[]);
    }
    place.file("src/alone/index.html", b"for a release to come");
    place.good(&["component", &place.recipe("2.0.0", &["alone"])], &[]);
    place
}

fn releases(place: &Place) -> Vec<String> {
    let seen = place.fresh().releases.into_keys();
    let version = |name: String| name.split('/').nth(3).unwrap().to_owned();
    seen.map(version).collect()
}

fn inspected(place: &Place) -> Value {
    let out = place.succeeds(&["inspect", "--json", "--repo", "repo"]);
    serde_json::from_str(&out).unwrap()
}

fn sound(place: &Place) {
    let said = place.succeeds(&["verify", "--repo", "repo"]);
    assert!(
        said.contains("no problems") && !said.contains("note"),
        "{said}"
    );
}

/// The target files of the repository.
fn targets(place: &Place) -> BTreeSet<String> {
    place.tree("repo/targets").into_keys().collect()
}

/// A release that is taken back is offered to nobody, is shown with its reason, and its version is never used again. It is
/// still there for those who have it.
#[test]
fn a_withdrawn_release_is_offered_to_nobody() {
    let place = three();
    let before = targets(&place);
    let said = place.good(&["withdraw", "1.1.0"], &["--reason", "it loses mail"]);
    assert!(
        said.contains("withdrawn: vdc/stable/x86_64/1.1.0/release.json"),
        "{said}"
    );
    assert_eq!(releases(&place), ["1.0.0", "1.2.0"]);
    assert_eq!(targets(&place), before);
    sound(&place);
    let shown = inspected(&place);
    let line = &shown["withdrawn"][0];
    assert_eq!(line["version"], "1.1.0", "{shown:#}");
    assert_eq!(line["reason"], "it loses mail");
    assert_eq!(line["role"], "targets");
    let shown = place.succeeds(&["inspect", "--repo", "repo"]);
    assert!(shown.contains("it loses mail"), "{shown}");
    let recipe = place.recipe("1.1.0", &["web"]);
    let told = place.bad(1, &["release", &recipe], &[]);
    assert!(told.contains("already published"), "{told}");
    for command in [
        &[
            "withdraw", "1.1.0", "--reason", "again", "--repo", "repo", "--keys", "keys",
        ][..],
        &[
            "bundle",
            "--repo",
            "repo",
            "--version",
            "1.1.0",
            "--out",
            "out",
        ],
    ] {
        let ended = place.run(command);
        assert_eq!(ended.code, 1);
        assert!(ended.err.contains("it loses mail"), "{}", ended.err);
    }
    assert!(!place.path("out").exists());
    // The last one may go, too, and for no reason.
    for version in ["1.0.0", "1.2.0"] {
        place.good(&["withdraw", version], &[]);
    }
    let told = place.bad(1, &["withdraw", "1.0.0"], &[]);
    assert!(told.contains("is withdrawn"), "{told}");
    assert_eq!(releases(&place), [""; 0]);
    place.succeeds(&["inspect", "--repo", "repo"]);
    sound(&place);
}

/// What cannot be meant changes nothing.
#[test]
fn a_withdrawal_names_a_release_and_a_reason() {
    let place = three();
    for (exit, arguments, words) in [
        (
            1,
            &["withdraw", "1.3.0", "--reason", "x"][..],
            "no release 1.3.0",
        ),
        (
            1,
            &["withdraw", "1.1.0", "--reason", "x", "--channel", "beta"],
            "beta",
        ),
        (
            1,
            &["withdraw", "1.1.0", "--reason", "x", "--arch", "aarch64"],
            "aarch64",
        ),
        (2, &["withdraw", "1.1.0", "--reason", " "], "--reason"),
        (2, &["withdraw", "1.1.0", "--reason", "a\nb"], "--reason"),
        (
            2,
            &["withdraw", "1.1.0", "--reason", &"x".repeat(501)],
            "--reason",
        ),
    ] {
        let told = place.bad(exit, arguments, &[]);
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
    assert_eq!(releases(&place).len(), 3);
}

/// On one channel of two, it stays on the other.
#[test]
fn a_withdrawal_may_be_for_one_channel() {
    let place = three();
    let recipe = place.recipe("1.2.0", &["web", "node"]);
    place.good(&["release", &recipe], &["--channel", "web"]);
    place.good(
        &["withdraw", "1.2.0"],
        &["--reason", "not for all", "--channel", "stable"],
    );
    assert_eq!(releases(&place), ["1.0.0", "1.1.0", "1.2.0"]);
    let channel = |shown: &Value| shown["withdrawn"][0]["channel"].clone();
    assert_eq!(channel(&inspected(&place)), "stable");
}

/// The key that signs for it is elsewhere: nothing is withdrawn until it has signed, and whoever signs sees what.
#[test]
fn a_withdrawal_is_signed_like_a_release() {
    let place = three();
    place.take_away("targets", "safe");
    let said = place.good(&["withdraw", "1.1.0"], &["--reason", "it loses mail"]);
    assert!(
        said.contains("to be withdrawn") && said.contains("is pending"),
        "{said}"
    );
    assert_eq!(releases(&place).len(), 3);
    let [draft] = &place.drafts()[..] else {
        panic!("{:?}", place.drafts())
    };
    let signed = [
        "sign", draft, "--keys", "safe", "--repo", "repo", "--out", "signed",
    ];
    let said = place.succeeds(&signed);
    assert!(
        said.contains("1.1.0/release.json") && said.contains("WITHDRAWN: it loses mail"),
        "{said}"
    );
    place.good(&["sign"], &["--add-signature", "signed"]);
    assert_eq!(releases(&place), ["1.0.0", "1.2.0"]);
}

/// `prune` removes what only withdrawn releases consist of, and what nobody named; whatever a release, a draft or a release to
/// come needs stays. A dry run says the same, and removes nothing.
#[test]
fn only_what_nobody_needs_is_pruned() {
    let place = three();
    let all = targets(&place);
    let prune = |more: &[&str]| place.good(&["prune"], more);
    assert!(prune(&[]).contains("removed 0 files"));
    assert_eq!(targets(&place), all);
    place.good(&["withdraw", "1.1.0"], &["--reason", "it loses mail"]);
    place.file("repo/targets/vdc/artifacts/left.tar.gz", b"by whom?");
    let with_left = place.tree("repo");
    let said = prune(&["--dry-run"]);
    assert_eq!(place.tree("repo"), with_left);
    for word in [
        "would remove 3 files",
        "left.tar.gz",
        "1.1.0/",
        "artifacts/web-",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(
        !said.contains("node-") && !said.contains("alone-"),
        "{said}"
    );
    let really = prune(&[]);
    assert!(really.contains("removed 3 files"), "{really}");
    let left = targets(&place);
    let gone: Vec<&String> = all.difference(&left).collect();
    assert_eq!(gone.len(), 2, "{gone:?}");
    assert!(gone.iter().any(|name| name.contains("1.1.0")), "{gone:?}");
    assert!(gone.iter().any(|name| name.contains("web-")), "{gone:?}");
    assert!(left.iter().any(|name| name.contains("alone-")), "{left:?}");
    assert!(!place.path("repo/targets/vdc/stable/x86_64/1.1.0").exists());
    sound(&place);
    assert_eq!(releases(&place), ["1.0.0", "1.2.0"]);
    assert_eq!(inspected(&place)["withdrawn"][0]["version"], "1.1.0");
    assert!(prune(&[]).contains("removed 0 files"));
    // The same content again is a new artifact, under a name that was in use.
    place.file("src/web/index.html", b"1.1.0");
    place.good(&["release", &place.recipe("1.3.0", &["web", "alone"])], &[]);
    assert_eq!(releases(&place), ["1.0.0", "1.2.0", "1.3.0"]);
    sound(&place);
}

/// Where the key is elsewhere nothing is removed that is listed still, nor what a draft is about to list.
#[test]
fn what_drafts_name_is_not_pruned() {
    let place = three();
    place.good(&["withdraw", "1.1.0"], &["--reason", "it loses mail"]);
    place.take_away("targets", "safe");
    let all = targets(&place);
    let said = place.good(&["prune"], &[]);
    assert!(
        said.contains("will not be listed") && said.contains("removed 0 files"),
        "{said}"
    );
    assert_eq!(targets(&place), all);
    let draft = place.drafts().remove(0);
    place.succeeds(&["sign", &draft, "--keys", "safe", "--out", "signed"]);
    place.good(&["sign"], &["--add-signature", "signed"]);
    let said = place.succeeds(&["verify", "--repo", "repo"]);
    assert!(said.contains("no problems"), "{said}");
    let said = place.good(&["prune"], &[]);
    assert!(said.contains("removed 2 files"), "{said}");
    // A release that waits.
    place.file("src/web/index.html", b"1.3.0");
    let said = place.good(&["release", &place.recipe("1.3.0", &["web"])], &[]);
    assert!(said.contains("packed"), "{said}");
    let all = targets(&place);
    place.good(&["prune"], &[]);
    assert_eq!(targets(&place), all);
    let draft = place.drafts().remove(0);
    place.succeeds(&["sign", &draft, "--keys", "safe", "--out", "signed"]);
    place.good(&["sign"], &["--add-signature", "signed"]);
    assert_eq!(releases(&place), ["1.0.0", "1.2.0", "1.3.0"]);
    sound(&place);
}

/// A release that cannot be read might need anything: nothing is removed then.
#[test]
fn nothing_is_pruned_on_a_guess() {
    let place = three();
    place.good(&["withdraw", "1.1.0"], &["--reason", "it loses mail"]);
    let all = targets(&place);
    let manifest = all.iter().find(|name| name.contains("1.2.0")).unwrap();
    let bytes = fs::read(place.path(manifest)).unwrap();
    fs::write(place.path(manifest), &bytes[..bytes.len() - 1]).unwrap();
    let ended = place.run(&[&["prune"], &HERE[..]].concat());
    assert_eq!(ended.code, 1, "{}", ended.out);
    assert!(ended.err.contains("1.2.0/release.json"), "{}", ended.err);
    assert_eq!(targets(&place), all);
}
