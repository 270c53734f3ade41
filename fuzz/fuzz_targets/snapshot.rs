//! A snapshot for an appliance that has version 1 of it, while the timestamp announces version 2.
//!
//! - What is accepted was signed as the root asks, and is the version that the timestamp announces.
//! - It lists every file that the old one did, at no lower version; it has not expired.
//! - The same bytes as the appliance's own copy: signed, and accepted only if they are not out of date.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::trust::metadata::{Parse, Snapshot};
use qx_release::trust::{Limits, Role, SnapshotCopy};
use qx_update_fuzz::{Asked, bounded, now, offer, set_before};

fuzz_target!(|data: &[u8]| {
    let Some(offer) = offer(data) else { return };
    let bytes = &offer.bytes;
    if bounded(bytes.len(), || {
        Snapshot::parse(bytes, &Limits::default()).is_err()
    }) {
        return;
    }
    for copy in [SnapshotCopy::Announced, SnapshotCopy::Stored] {
        let mut set = set_before(Role::Snapshot);
        let old = set.snapshot().unwrap().meta.clone();
        if bounded(bytes.len(), || set.update_snapshot(bytes, copy)).is_err() {
            continue;
        }
        let signed = offer.was_signed(&Asked::honest());
        let trusted = set.snapshot().unwrap();
        assert_eq!(trusted.version, 2);
        assert_eq!(signed["version"].as_u64(), Some(2));
        assert!(trusted.expires.at > now());
        for (file, old) in &old {
            assert!(trusted.meta[file].version >= old.version, "{file}");
            assert_eq!(
                signed["meta"][file]["version"].as_u64(),
                Some(trusted.meta[file].version)
            );
        }
    }
});
