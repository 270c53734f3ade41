//! Top-level targets that the snapshot announces at version 2, and every name in them looked up.
//!
//! - What is accepted was signed as the root asks, has the announced version and has not expired.
//! - Every name that can be looked up is there in what was signed, with that length; it stays inside its directory.
//! - What is listed and could be placed is found by looking it up.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::manifest::RelPath;
use qx_release::trust::metadata::Targets;
use qx_release::trust::{Limits, Role};
use qx_update_fuzz::{Asked, bounded, now, offer, set_before, stays_inside, verifiers};

fuzz_target!(|data: &[u8]| {
    let Some(offer) = offer(data) else { return };
    let bytes = &offer.bytes;
    let read = || {
        Targets::verified(
            bytes.clone(),
            &verifiers(),
            &String::new,
            &Limits::default(),
        )
    };
    let Ok(targets) = bounded(bytes.len(), read) else {
        return;
    };
    let signed = offer.was_signed(&Asked::honest());
    assert_eq!(targets.bytes(), bytes);
    let mut listed = 0;
    targets.each(&mut |name, info| {
        listed += 1;
        stays_inside(name.as_str());
        assert_eq!(
            signed["targets"][name.as_str()]["length"].as_u64(),
            Some(info.length)
        );
        if listed <= 16 {
            assert_eq!(targets.target(&name), Some(info), "{name}");
        }
    });
    let names = signed["targets"].as_object().unwrap().keys();
    assert_eq!(
        names.filter(|name| name.parse::<RelPath>().is_ok()).count(),
        listed
    );
    let mut set = set_before(Role::Targets);
    if bounded(bytes.len(), || set.update_targets(bytes.clone())).is_ok() {
        let trusted = set.targets().unwrap();
        assert_eq!((trusted.version, signed["version"].as_u64()), (2, Some(2)));
        assert!(trusted.expires.at > now());
    }
});
