//! What a publisher hands out and looks over: bundles, `verify` and `inspect`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use super::desk::{Desk, RELEASE, texts};
use crate::common::server::Server;
use serde_json::{Value, json};

/// A repository with two releases of the targets role and one of a team.
fn repository() -> Desk {
    let desk = Desk::ready();
    desk.release("1.0.0");
    desk.succeeds(&[
        "delegate",
        "edge",
        "--repo",
        "repo",
        "--keys",
        "keys",
        "--paths",
        "vdc/edge/*/*/*",
        "--paths",
        "vdc/artifacts/*",
    ]);
    desk.release("1.1.0");
    desk.recipe("2.0.0", "aarch64");
    desk.succeeds(&[RELEASE, &["--channel", "edge", "--as", "edge"]].concat());
    desk.recipe("2.0.0", "x86_64");
    desk.succeeds(&[RELEASE, &["--channel", "edge", "--as", "edge"]].concat());
    desk
}

fn bundle(desk: &Desk, version: &str, more: &[&str], out: &str) -> BTreeMap<String, Vec<u8>> {
    let arguments = [
        "bundle",
        "--repo",
        "repo",
        "--version",
        version,
        "--out",
        out,
    ];
    desk.succeeds(&[&arguments, more].concat());
    let mut archive = tar::Archive::new(fs::File::open(desk.path(out)).unwrap());
    let mut entries = BTreeMap::new();
    let mut targets = false;
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let header = entry.header();
        assert_eq!(
            (header.mtime().unwrap(), header.mode().unwrap()),
            (0, 0o644),
            "{name}"
        );
        assert!(header.entry_type().is_file(), "{name}");
        // Metadata come first: whoever reads it as a stream knows what is to come.
        targets |= name.starts_with("targets/");
        assert_eq!(targets, name.starts_with("targets/"), "{name}");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        assert!(
            entries.insert(name.clone(), bytes).is_none(),
            "{name} is there twice"
        );
    }
    entries
}

/// An appliance without a network finds in a bundle every root since the first, the current metadata of each role and
/// all artifacts of the release, byte for byte the repository's. The same state makes the same bundle.
#[test]
fn a_bundle_holds_a_release_and_all_metadata() {
    let desk = repository();
    let repo = desk.files("repo");
    let entries = bundle(&desk, "1.0.0", &[], "b.tar");
    for (name, bytes) in &entries {
        assert_eq!(repo[&format!("repo/{name}")], *bytes, "{name}");
    }
    let names = |start: &str| {
        entries
            .keys()
            .filter(|name| name.starts_with(start))
            .count()
    };
    // Of each role the current version, and every root.
    let metadata: Vec<_> = entries
        .keys()
        .filter(|name| name.starts_with("metadata/"))
        .collect();
    assert_eq!(metadata.len(), 5, "{metadata:?}");
    assert!(
        metadata.contains(&&"metadata/1.root.json".to_owned()),
        "{metadata:?}"
    );
    assert!(
        metadata.iter().any(|name| name.ends_with(".edge.json")),
        "{metadata:?}"
    );
    // The manifest and two artifacts of that release.
    assert_eq!(names("targets/"), 3, "{:?}", entries.keys());
    assert_eq!(names("targets/vdc/stable/x86_64/1.0.0/"), 1);
    // The same state, the same bytes; a root more, another bundle.
    bundle(&desk, "1.0.0", &[], "again.tar");
    assert!(fs::read(desk.path("b.tar")).unwrap() == fs::read(desk.path("again.tar")).unwrap());
    desk.succeeds(&["rotate", "timestamp", "--repo", "repo", "--keys", "keys"]);
    let entries = bundle(&desk, "1.0.0", &[], "later.tar");
    for name in ["metadata/1.root.json", "metadata/2.root.json"] {
        assert!(entries.contains_key(name), "{:?}", entries.keys());
    }
}

/// A bundle serves appliances of all architectures of a version, so that one stick is enough, and only those that were
/// named if space is short.
#[test]
fn a_bundle_holds_every_architecture_unless_it_is_told_which() {
    let desk = repository();
    let arches = |entries: BTreeMap<String, Vec<u8>>| -> Vec<String> {
        let names = entries
            .into_keys()
            .filter(|name| name.ends_with("release.json"));
        names
            .map(|name| name.split('/').nth(3).unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        arches(bundle(&desk, "2.0.0", &[], "both.tar")),
        ["aarch64", "x86_64"]
    );
    let one = bundle(
        &desk,
        "2.0.0",
        &["--arch", "aarch64", "--channel", "edge"],
        "one.tar",
    );
    assert_eq!(arches(one), ["aarch64"]);
}

/// A publisher who asks for a release that is not there, or whose artifact is damaged, is told so and gets no bundle;
/// nor is a file overwritten. The fault is found at the desk and not at the appliance.
#[test]
fn a_bundle_that_would_be_refused_is_not_made() {
    let desk = repository();
    let bundle = |version| {
        [
            "bundle",
            "--repo",
            "repo",
            "--version",
            version,
            "--out",
            "b.tar",
        ]
    };
    desk.fails(&bundle("3.0.0"), &["no release 3.0.0"]);
    let arguments = [
        &bundle("1.0.0")[..],
        &["--channel", "edge", "--arch", "riscv64"],
    ]
    .concat();
    desk.fails(
        &arguments,
        &["no release 1.0.0 on the channel edge for riscv64"],
    );
    desk.write("b.tar", "mine");
    desk.fails(&bundle("1.0.0"), &["b.tar", "nothing is overwritten"]);
    fs::remove_file(desk.path("b.tar")).unwrap();
    let artifact = file(&desk, "/artifacts/", "daemon-");
    let good = fs::read(desk.path(&artifact)).unwrap();
    let mut spoilt = good.clone();
    spoilt[20] ^= 1;
    for (bytes, words) in [
        (spoilt, "its digest is"),
        (good[1..].to_vec(), "bytes instead of"),
        ([&good[..], b"x"].concat(), "longer than the"),
    ] {
        desk.write(&artifact, bytes);
        for version in ["1.0.0", "1.1.0", "2.0.0"] {
            if artifact_of(&desk, version).contains(&artifact) {
                desk.fails(&bundle(version), &["adding vdc/artifacts/daemon", words]);
            }
        }
    }
    fs::remove_file(desk.path(&artifact)).unwrap();
    desk.write(&artifact, &good);
    desk.succeeds(&bundle("1.0.0"));
    fs::remove_file(desk.path("b.tar")).unwrap();
    desk.fails(
        &[&bundle("1.0.0")[..6], &["nowhere/b.tar"]].concat(),
        &["nowhere/b.tar"],
    );
}

/// A repository that is sound verifies with one line and without problems, warnings or notes: a check that cries wolf
/// is not looked at.
#[test]
fn a_whole_repository_verifies() {
    let desk = repository();
    desk.succeeds(&["rotate", "root", "--repo", "repo", "--keys", "keys"]);
    let text = desk.succeeds(&["verify", "--repo", "repo"]);
    assert!(
        text.ends_with("4 releases: no problems\n") && text.lines().count() == 1,
        "{text}"
    );
    let report: Value =
        serde_json::from_str(&desk.succeeds(&["verify", "--repo", "repo", "--json"])).unwrap();
    for list in ["problems", "warnings", "notes"] {
        assert_eq!(report[list], json!([]), "{report}");
    }
    assert_eq!(report["releases"], 4);
    // Of four releases, manifests and programs differ, and the trees of the same version do not.
    assert_eq!(report["targets"], 11);
}

/// A publisher learns from `verify` of every file of metadata or of a release that is changed, cut or gone, by its
/// name, with exit 1; a damaged artifact does not hide the others.
#[test]
fn whatever_is_damaged_is_a_problem_of_its_own() {
    let desk = repository();
    let artifact = file(&desk, "/artifacts/", "www-");
    let manifest = file(&desk, "/1.1.0/", "release.json");
    for (name, words) in [
        (artifact.as_str(), "reading the target vdc/artifacts/www-"),
        (manifest.as_str(), "vdc/stable/x86_64/1.1.0/release.json"),
        ("repo/metadata/1.root.json", "1.root.json"),
        ("repo/metadata/timestamp.json", "timestamp.json"),
        (&current(&desk, "snapshot"), "snapshot.json"),
        (&current(&desk, "targets"), "targets.json"),
        (&current(&desk, "edge"), "edge.json"),
    ] {
        let good = fs::read(desk.path(name)).unwrap();
        let mut spoilt = good.clone();
        let middle = spoilt.len() / 2;
        spoilt[middle] ^= 1;
        for bytes in [Some(spoilt), Some(good[..good.len() - 9].to_vec()), None] {
            fs::remove_file(desk.path(name)).unwrap();
            if let Some(bytes) = &bytes {
                desk.write(name, bytes);
            }
            let report = problems(&desk);
            assert!(
                report.iter().any(|line| line.contains(words)),
                "{name}: {report:#?}"
            );
            if name.contains("/targets/") {
                // And the rest is looked at all the same.
                assert!(report.len() <= 2, "{report:#?}");
            }
            desk.write(name, &good);
        }
    }
    assert_eq!(problems(&desk), [""; 0]);
    // Two at once are two.
    desk.write(&artifact, "");
    desk.write(&file(&desk, "/artifacts/", "daemon-"), "");
    assert_eq!(problems(&desk).len(), 2);
}

/// What mirrors and sticks hold is verified like a directory, from the root that appliances have; a mirror's fault is named with
/// its address.
#[test]
fn a_mirror_and_a_bundle_are_verified() {
    let desk = repository();
    bundle(&desk, "1.1.0", &[], "stick.bundle");
    let said = desk.succeeds(&["verify", "--repo", "stick.bundle"]);
    assert!(said.contains("1 releases: no problems"), "{said}");
    let server = Server::start(&desk.path("repo"));
    let root = ["--root", "repo/metadata/1.root.json"];
    let verify = ["verify", "--repo", &server.url];
    let said = desk.succeeds(&[&verify[..], &root].concat());
    assert!(said.contains("4 releases: no problems"), "{said}");
    let artifact = file(&desk, "/artifacts/", "www-");
    let good = fs::read(desk.path(&artifact)).unwrap();
    for bytes in [&good[..good.len() - 1], b"damaged"] {
        desk.write(&artifact, bytes);
        let ended = desk.run(&verify);
        assert_eq!(ended.code, 1, "{}", ended.out);
        let [problem] = &ended
            .out
            .lines()
            .filter(|l| l.contains("problem: "))
            .collect::<Vec<_>>()[..]
        else {
            panic!("{}", ended.out)
        };
        assert!(
            problem.contains("vdc/artifacts/www-") && problem.contains(&server.url),
            "{problem}"
        );
    }
    desk.write(&artifact, good);
    // Another publisher's root, a server that is not there, something else.
    let theirs = Desk::ready();
    fs::copy(
        theirs.path("repo/metadata/1.root.json"),
        desk.path("theirs.json"),
    )
    .unwrap();
    for (arguments, words) in [
        (
            [&verify[..], &["--root", "theirs.json"]].concat(),
            "signed by 0 of the 1 keys",
        ),
        (
            vec!["verify", "--repo", "http://127.0.0.1:9/none"],
            "127.0.0.1:9",
        ),
        (vec!["verify", "--repo", "nowhere"], "nowhere"),
        (
            vec!["verify", "--repo", "src/recipe.json"],
            "src/recipe.json",
        ),
    ] {
        let ended = desk.run(&arguments);
        assert_eq!(ended.code, 1, "{}", ended.out);
        assert!(
            ended.out.contains(words),
            "{words}: {}{}",
            ended.out,
            ended.err
        );
    }
}

/// A publisher is warned by `verify` of metadata that expire soon, while it is no problem yet: appliances refuse a
/// repository that has expired.
#[test]
fn what_expires_is_told_in_time() {
    let desk = repository();
    let (problems, warnings) = expiry(&desk);
    assert_eq!((problems.len(), warnings.len()), (0, 0));
    desk.succeeds(&["expiry", "timestamp", "30", "--repo", "repo"]);
    desk.succeeds(&[
        "refresh", "--repo", "repo", "--keys", "keys", "--within", "3650",
    ]);
    let (problems, warnings) = expiry(&desk);
    assert_eq!(problems, [""; 0]);
    let [warning] = &warnings[..] else {
        panic!("{warnings:#?}")
    };
    assert!(
        warning.contains("timestamp metadata expires at"),
        "{warning}"
    );
}

/// Files that no metadata name are listed by `verify` as notes, and are not called damage: no appliance reads them, and
/// only a person knows whether they may go.
#[test]
fn what_nobody_names_is_a_note() {
    let desk = repository();
    desk.write("repo/targets/vdc/README", "hello");
    desk.write("repo/metadata/99.targets.json", "{}");
    desk.write("repo/metadata/1.stranger.json", "{}");
    let report: Value =
        serde_json::from_str(&desk.succeeds(&["verify", "--repo", "repo", "--json"])).unwrap();
    let names = [
        "no metadata refer to metadata/1.stranger.json",
        "no metadata refer to metadata/99.targets.json",
        "no metadata refer to targets/vdc/README",
    ];
    assert_eq!(report["notes"], json!(names));
}

/// A person sees with `inspect` each role's keys, threshold and days left, what a team may publish, and which releases
/// are there: so a rotation or renewal is planned without reading metadata.
#[test]
fn inspect_tells_who_signs_what_and_for_how_long() {
    let desk = repository();
    let shown: Value =
        serde_json::from_str(&desk.succeeds(&["inspect", "--repo", "repo", "--json"])).unwrap();
    let roles = shown["roles"].as_array().unwrap();
    let names: Vec<_> = roles
        .iter()
        .map(|role| role["role"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["root", "timestamp", "snapshot", "targets", "edge"]);
    assert_eq!(roles[1]["days_left"], 89);
    assert_eq!(roles[1]["threshold"], 1);
    assert_eq!(roles[1]["keys"][0]["scheme"], "ed25519");
    let shown_key = desk.succeeds(&["key", "show", "keys/timestamp.pem"]);
    assert!(shown_key.contains(roles[1]["keys"][0]["id"].as_str().unwrap()));
    assert_eq!(
        roles[4]["delegated"],
        json!({"by": "targets", "paths": ["vdc/edge/*/*/*", "vdc/artifacts/*"], "terminating": false})
    );
    assert_eq!(
        shown["channels"],
        json!([
            {"channel": "edge", "arch": "aarch64", "releases": 1, "latest": "2.0.0"},
            {"channel": "edge", "arch": "x86_64", "releases": 1, "latest": "2.0.0"},
            {"channel": "stable", "arch": "x86_64", "releases": 2, "latest": "1.1.0"},
        ])
    );
    let signers: Vec<_> = shown["releases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["role"])
        .collect();
    assert_eq!(signers, ["edge", "edge", "targets", "targets"]);
    let text = desk.succeeds(&["inspect", "--repo", "repo"]);
    let line = text
        .lines()
        .find(|line| line.starts_with("timestamp"))
        .unwrap();
    for word in ["in 89 days", "1 of 1", "ed25519"] {
        assert!(line.contains(word), "{text}");
    }
    assert!(text.contains("vdc/edge/*/*/*, vdc/artifacts/*"), "{text}");
    // Columns stand under their heads.
    let columns: Vec<_> = text.lines().filter_map(|line| line.find("20")).collect();
    assert!(columns.len() > 5, "{text}");
}

/// The problems of a repository that has some: exit code 1, and JSON all the same.
fn problems(desk: &Desk) -> Vec<String> {
    let output = desk
        .command(&["verify", "--repo", "repo", "--json"])
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    let problems = strings(&report["problems"]);
    assert_eq!(
        output.status.code(),
        Some(i32::from(!problems.is_empty())),
        "{out}{err}"
    );
    problems
}

fn expiry(desk: &Desk) -> (Vec<String>, Vec<String>) {
    let output = desk
        .command(&["verify", "--repo", "repo", "--json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (strings(&report["problems"]), strings(&report["warnings"]))
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().unwrap();
    items
        .iter()
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

/// The file below `targets` whose path has both.
fn file(desk: &Desk, part: &str, name: &str) -> String {
    let files = desk.files("repo/targets");
    let mut names = files.into_keys();
    names
        .find(|file| file.contains(part) && file.contains(name))
        .unwrap()
}

/// The artifacts of a release, by their files.
fn artifact_of(desk: &Desk, version: &str) -> Vec<String> {
    let manifests = desk.files("repo/targets");
    let manifests = manifests
        .iter()
        .filter(|(file, _)| file.contains(&format!("/{version}/")));
    let mut found = Vec::new();
    for (_, bytes) in manifests {
        let manifest: Value = serde_json::from_slice(bytes).unwrap();
        for component in manifest["components"].as_array().unwrap() {
            let name = component["artifact"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap();
            found.push(file(desk, "/artifacts/", name));
        }
    }
    found
}

/// The file of a role's newest metadata.
fn current(desk: &Desk, role: &str) -> String {
    let files = desk.files("repo/metadata");
    let end = format!(".{role}.json");
    let versions = files.keys().filter_map(|file| {
        let name = file.rsplit('/').next()?;
        name.strip_suffix(&end)?.parse::<u64>().ok()
    });
    format!("repo/metadata/{}{end}", versions.max().unwrap())
}
