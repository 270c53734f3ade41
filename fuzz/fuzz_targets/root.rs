//! A root that follows the honest one, and a root that is the first.
//!
//! - What is accepted was signed: by enough keys of the old root *and* of the new one, or of itself where it is the first.
//! - A successor's version is exactly the next.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::trust::clock::Clock;
use qx_release::trust::metadata::{Parse, Root};
use qx_release::trust::{Limits, Role, TrustedSet};
use qx_update_fuzz::{Asked, bounded, now, offer, set_before};

fuzz_target!(|data: &[u8]| {
    let Some(offer) = offer(data) else { return };
    let limits = Limits::default();
    let bytes = &offer.bytes;
    // Most of what comes is no root at all: do not sign and verify the honest one for it.
    if bounded(bytes.len(), || Root::parse(bytes, &limits).is_err()) {
        return;
    }
    let itself = |signed: &serde_json::Value| Asked::by(&signed["keys"], &signed["roles"]["root"]);
    let first = bounded(bytes.len(), || {
        TrustedSet::new(bytes, Clock::new(now(), now()), &limits)
    });
    if let Ok(set) = first {
        let signed = signed(bytes);
        offer.was_signed(&itself(&signed));
        assert_eq!(signed["version"].as_u64(), Some(set.root().version));
    }
    let mut set = set_before(Role::Root);
    if bounded(bytes.len(), || set.update_root(bytes)).is_ok() {
        let signed = offer.was_signed(&Asked::honest());
        offer.was_signed(&itself(&signed));
        assert_eq!(signed["version"].as_u64(), Some(2));
        assert_eq!(set.root().version, 2);
    } else {
        assert_eq!(set.root().version, 1);
    }
});

fn signed(bytes: &[u8]) -> serde_json::Value {
    let mut file: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    file["signed"].take()
}
