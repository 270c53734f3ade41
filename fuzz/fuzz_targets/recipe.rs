//! What a release is made from.
//!
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_update_fuzz::bounded;

fuzz_target!(|data: &[u8]| {
    let _ = bounded(data.len(), || qx_publish::check_recipe(data));
});
