//! The release manifest.
//!
//! - What is accepted is the same manifest when it is written and read again.
//! - Every place where something is installed, run or removed is below the slot, and no two of them overlap.
//! - Counts and times keep their limits.
//! - No panic; memory in proportion to the input.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use qx_release::manifest::{MAX_ENTRIES, MAX_ITEMS, MAX_SECONDS, Manifest, Probe};
use qx_update_fuzz::{bounded, stays_inside};

fuzz_target!(|data: &[u8]| {
    let Ok(manifest) = bounded(data.len(), || Manifest::parse(data)) else {
        return;
    };
    let text = serde_json::to_vec(&manifest).expect("it was read");
    assert_eq!(Manifest::parse(&text).as_ref(), Ok(&manifest));
    let installed = manifest
        .components
        .iter()
        .map(|component| &component.install_path);
    let mut places = BTreeSet::new();
    for path in installed.chain(&manifest.removed) {
        stays_inside(path.as_str());
        assert!(places.insert(path.as_str()), "{path} is there twice");
    }
    for path in &places {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        assert!(
            !parents.into_iter().any(|parent| places.contains(parent)),
            "{path}"
        );
    }
    for component in &manifest.components {
        let path = component.install_path.as_str();
        let known = ["bin/", "share/", "migrations/"]
            .iter()
            .any(|top| path.starts_with(top));
        assert!(known || path == "migrations", "{path}");
        assert!(component.mode.0 <= 0o777 && component.entries <= MAX_ENTRIES);
        if let Some(artifact) = &component.artifact {
            stays_inside(artifact.as_str());
        }
    }
    for service in &manifest.services {
        assert!(places.contains(service.runs.as_str()), "{}", service.runs);
    }
    let runs = manifest
        .health
        .iter()
        .filter_map(|check| match &check.probe {
            Probe::Exec { run } => Some(run),
            _ => None,
        });
    for run in runs.chain(manifest.migrate.iter().map(|migrate| &migrate.run)) {
        stays_inside(&run[0]);
        assert!(
            places.iter().any(|place| run[0].starts_with(place)),
            "{run:?}"
        );
    }
    assert!(manifest.components.len() <= MAX_ITEMS && manifest.health.len() <= MAX_ITEMS);
    assert!(
        manifest
            .health
            .iter()
            .all(|check| check.stable_s <= MAX_SECONDS && check.timeout_s > 0)
    );
});
