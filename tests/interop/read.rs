//! Repositories that `qx-publish` made, read by python-tuf.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::server::Server;
use crate::common::signer::sha256;
use crate::common::{Appliance, path};
use crate::python;

/// Refreshes a trust store of python-tuf's client and downloads every target; the versions that it trusts then. `root`:
/// where trust starts, none to go on from the store.
#[track_caller]
fn client(appliance: &Appliance, store: &str, root: Option<&str>) -> Value {
    let signer = appliance.signer();
    let names = signer.targets();
    let server = Server::start(&appliance.repo);
    let store = appliance.temp().join(store);
    let root = root.map(|name| appliance.repo.join("metadata").join(name));
    let mut arguments = vec![
        path(&store),
        root.as_deref().map_or("-", path),
        &*server.url,
    ];
    arguments.extend(names.iter().map(String::as_str));
    let said: Value = serde_json::from_str(&python("client.py", &arguments)).unwrap();
    assert!(!names.is_empty());
    for name in &names {
        assert_eq!(
            said["targets"][name],
            sha256(&signer.target(name)),
            "{name}"
        );
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
    let first = client(&appliance, "store", Some("1.root.json"));
    appliance.publish_release("1.2.0");
    let second = client(&appliance, "store", None);
    assert_eq!(second, client(&appliance, "new", Some("1.root.json")));
    for role in ["timestamp", "snapshot", "targets"] {
        assert!(second[role].as_u64() > first[role].as_u64(), "{role}");
    }
}

/// What was signed are the bytes that the reference implementations sign.
#[test]
fn the_metadata_are_canonical() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let files = metadata(&appliance);
    let said = python(
        "canonical.py",
        &files.iter().map(|f| path(f)).collect::<Vec<_>>(),
    );
    assert_eq!(said.lines().count(), files.len(), "{said}");
}
