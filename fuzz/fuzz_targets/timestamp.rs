//! A timestamp for an appliance that has an honest one.
//!
//! - What is accepted was signed as the root asks.
//! - Neither its version nor the snapshot's that it announces is below what was trusted; it has not expired.
//! - What is refused leaves the set as it was; but an expired one, if signed, is remembered.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::trust::metadata::{Parse, Timestamp};
use qx_release::trust::{Error, Limits, Role};
use qx_update_fuzz::{Asked, bounded, now, offer, set_before};

fuzz_target!(|data: &[u8]| {
    let Some(offer) = offer(data) else { return };
    let bytes = &offer.bytes;
    if bounded(bytes.len(), || {
        Timestamp::parse(bytes, &Limits::default()).is_err()
    }) {
        return;
    }
    let mut set = set_before(Role::Timestamp);
    let result = bounded(bytes.len(), || set.update_timestamp(bytes));
    let trusted = set.timestamp().unwrap();
    match result {
        Ok(new) => {
            let signed = offer.was_signed(&Asked::honest());
            if new {
                assert_eq!(signed["version"].as_u64(), Some(trusted.version));
                let announced = &signed["meta"]["snapshot.json"]["version"];
                assert_eq!(announced.as_u64(), Some(trusted.snapshot.version));
            }
            assert_eq!(new, trusted.version > 1);
            assert!(trusted.version >= 1 && trusted.snapshot.version >= 1);
            assert!(trusted.expires.at > now());
        }
        Err(Error::Expired { .. }) => drop(offer.was_signed(&Asked::honest())),
        Err(_) => assert_eq!((trusted.version, trusted.snapshot.version), (1, 1)),
    }
});
