//! Repositories that `qx-publish` made, read by python-tuf.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::common::server::Server;
use crate::common::{Appliance, path};
use crate::python;

/// Refreshes a trust store of python-tuf's client, and downloads every target of these roles; the versions that it trusts
/// then. `root`: where trust starts, none to go on from the store.
#[track_caller]
fn client(appliance: &Appliance, store: &str, root: Option<&str>, roles: &[&str]) -> Value {
    let signer = appliance.signer();
    let mut targets = Map::new();
    for role in roles {
        let listed = signer.signed(role)["targets"].as_object().unwrap().clone();
        assert!(!listed.is_empty(), "{role}");
        targets.extend(listed);
    }
    let server = Server::start(&appliance.repo);
    let store = appliance.temp().join(store);
    let root = root.map(|name| appliance.repo.join("metadata").join(name));
    let mut arguments = vec![
        path(&store),
        root.as_deref().map_or("-", path),
        &*server.url,
    ];
    arguments.extend(targets.keys().map(String::as_str));
    let said: Value = serde_json::from_str(&python("client.py", &arguments)).unwrap();
    for (name, target) in &targets {
        assert_eq!(said["targets"][name], target["hashes"]["sha256"], "{name}");
    }
    said["versions"].clone()
}

/// The metadata files of a repository, roots first, in an order in which each comes after those that vouch for it.
fn metadata(appliance: &Appliance) -> Vec<PathBuf> {
    let files = fs::read_dir(appliance.repo.join("metadata")).unwrap();
    let mut files: Vec<_> = files.map(|f| f.unwrap().path()).collect();
    files.retain(|f| path(f).ends_with(".json"));
    files.sort_by_key(|file| {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let rank = ["root", "timestamp", "snapshot", "targets"]
            .iter()
            .position(|role| name.contains(&format!("{role}.json")));
        (rank.unwrap_or(4), name)
    });
    files
}

/// What was published is found and downloaded, by a new client and by one that knows an older state.
#[test]
fn the_client_downloads_what_was_published() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let first = client(&appliance, "store", Some("1.root.json"), &["targets"]);
    appliance.publish_release("1.2.0");
    let second = client(&appliance, "store", None, &["targets"]);
    let new = client(&appliance, "new", Some("1.root.json"), &["targets"]);
    assert_eq!(second, new);
    for role in ["timestamp", "snapshot", "targets"] {
        assert!(second[role].as_u64() > first[role].as_u64(), "{role}");
    }
    canonical(&appliance);
}

/// Two of three keys for the root, which were all replaced twice; other keys for every role, one of them on P-256; teams that
/// sign what they may, one with a key on P-256.
#[test]
fn the_client_follows_the_roots_and_the_delegations() {
    let mut appliance = Appliance::new();
    appliance.repo = appliance.temp().join("repo");
    appliance.keys = appliance.temp().join("more-keys");
    let (repo, keys) = (appliance.repo.clone(), appliance.keys.clone());
    let run = |words: &[&str]| {
        let place = ["--repo", path(&repo), "--keys", path(&keys)];
        appliance.publish(&[words, &place].concat()).code(0);
    };
    let p256 = |name: &str| {
        let file = keys.join(format!("{name}.pem"));
        let new = ["key", "new", "--scheme", "ecdsa-sha2-nistp256", path(&file)];
        appliance.publish(&new).code(0);
        keys.join(format!("{name}.pub.pem"))
    };
    let init = "init --product quantix-os --root-keys 3 --root-threshold 2";
    run(&init.split(' ').collect::<Vec<_>>());
    let web = p256("web");
    let team = ["delegate", "web", "--key", path(&web)];
    let paths = ["--paths", "quantix-os/artifacts/*"];
    run(&[&team[..], &paths].concat());
    appliance.publish_release("1.1.0");
    let first = client(&appliance, "store", Some("1.root.json"), &["targets"]);

    run(&["rotate", "root"]);
    run(&["rotate", "timestamp", "--key", path(&p256("clock"))]);
    run(&["rotate", "root"]);
    for role in ["snapshot", "targets"] {
        run(&["rotate", role]);
    }
    let team = ["delegate", "stable", "--key", "new", "--terminating"];
    let paths = [
        "--paths",
        "quantix-os/stable/*/*/release.json",
        "--paths",
        "quantix-os/artifacts/*",
    ];
    run(&[&team[..], &paths].concat());
    let release = appliance.recipe("1.2.0");
    release.write();
    run(&["component", path(&release.file()), "--as", "web"]);
    run(&["release", path(&release.file()), "--as", "stable"]);

    let roles = &["targets", "web", "stable"];
    let second = client(&appliance, "store", None, roles);
    assert_eq!(
        second,
        client(&appliance, "new", Some("1.root.json"), roles)
    );
    assert!(second["root"].as_u64() >= first["root"].as_u64().map(|n| n + 2));
    canonical(&appliance);
}

/// What was signed are the bytes that the reference implementations sign.
#[track_caller]
fn canonical(appliance: &Appliance) {
    let files = metadata(appliance);
    let arguments: Vec<_> = files.iter().map(|f| path(f)).collect();
    let said = python("canonical.py", &arguments);
    assert_eq!(said.lines().count(), files.len(), "{said}");
}
