//! Canonical JSON.
//!
//! - It is what a naive writer makes of the parsed value; the value can be had back from it.
//! - Canonical of canonical is itself (where it is JSON: control characters stand for themselves in it).
//! - The piecewise writer and the one for values agree.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::trust::{Limits, canonical};
use qx_update_fuzz::{bounded, naive_canonical, naive_value};
use serde_json::Value;

fuzz_target!(|text: &str| {
    let Ok(form) = bounded(text.len(), || canonical_of(text)) else {
        return;
    };
    let value: Value = serde_json::from_str(text).expect("what has a canonical form is JSON");
    assert_eq!(form.as_bytes(), naive_canonical(&value));
    let back = naive_value(&form).expect("it stands for a value");
    assert_eq!(naive_canonical(&back), form.as_bytes());
    // To that parser -0 is a float, and has no canonical form.
    if let Ok(of_value) = canonical::canonical(&value) {
        assert_eq!(of_value, form.as_bytes());
        assert_eq!(back, value);
    }
    if !form.contains(|c: char| c.is_ascii_control()) {
        assert_eq!(canonical_of(&form).as_ref(), Ok(&form));
    }
});

fn canonical_of(text: &str) -> Result<String, String> {
    let mut out = Vec::new();
    canonical::write(text, &Limits::default(), &mut |bytes| {
        out.extend_from_slice(bytes)
    })?;
    Ok(String::from_utf8(out).expect("text stays text"))
}
