//! Signatures: a byte for the key, and what a source says is its signature of a fixed message.
//!
//! - What is accepted is the signature that the key made (both schemes sign deterministically): no other encoding of it, and
//!   no other key's.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::trust::key::Key;
use qx_release::trust::signing::Sign;
use qx_update_fuzz::{bounded, key};

fuzz_target!(|data: &[u8]| {
    let Some((number, signature)) = data.split_first() else {
        return;
    };
    let secret = key(usize::from(*number));
    let public = Key::from_value(&secret.public()).unwrap();
    if bounded(signature.len(), || public.verifies(b"message", signature)) {
        assert_eq!(signature, secret.sign(b"message").unwrap());
    }
});
