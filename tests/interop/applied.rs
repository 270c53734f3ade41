//! Repositories that python-tuf made, with releases that were packed by what `docs/formats.md` says: the real `qx-update`
//! installs from them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::server::Server;
use crate::common::{Appliance, path};
use crate::python;

/// Installs from the repository that this case of `publish.py` makes.
#[track_caller]
fn applied(case: &str) {
    let appliance = Appliance::new();
    let repository = appliance.root.join("srv/python");
    let recipe = appliance.recipe("1.1.0");
    recipe.write();
    python(
        "publish.py",
        &[path(&recipe.file()), path(&repository), case],
    );
    fs::copy(
        repository.join("metadata/1.root.json"),
        appliance.root.join("etc/qx-update/root.json"),
    )
    .unwrap();
    let server = Server::start(&repository);
    appliance.source(&server.url);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    // What was kept of it is trusted again.
    appliance.update(&["check"]).code(3);
    // Whoever runs the repository finds out the same, where it lies and as it is served.
    // Two of the targets that are none of ours could be placed, and are not there.
    let (code, found) = match case {
        "other_targets" => (1, "1 releases: 2 problems"),
        _ => (0, "1 releases: no problems"),
    };
    for place in [path(&repository), &server.url] {
        let verified = appliance.publish(&["verify", "--repo", place]);
        verified.code(code).says(&[found]);
    }
    let artifact = artifact(&repository.join("targets"));
    fs::write(&artifact, "damaged").unwrap();
    appliance
        .publish(&["verify", "--repo", path(&repository)])
        .code(1)
        .says(&["problem: reading the target", ".tar.gz"]);
}

/// An artifact, wherever it lies.
fn artifact(directory: &Path) -> PathBuf {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "gz") {
                return path;
            }
        }
    }
    panic!("there is no artifact");
}

/// A test for each case, of its name.
macro_rules! cases {
    ($($case:ident)*) => {$(
        /// An appliance installs from a repository of this kind that python-tuf made, not our publisher, and trusts
        /// again what it kept of it: the format is TUF's and not our own reading of it.
        #[test]
        fn $case() {
            applied(stringify!($case));
        }
    )*};
}

cases! {
    plain
    without_consistent_snapshot
    without_hashes_of_metadata
    high_versions
    ed25519_thresholds
    rotated
    rsa_among_the_keys
    unknown_schemes
    unknown_fields
    the_first_specification
    a_later_specification
    key_ids_that_are_no_digests
    other_digests_too
    ecdsa
    ecdsa_spelt_by_its_curve
    thresholds
    delegated
    delegated_within_delegated
    hash_prefixes
    succinct_bins
    other_targets
}
