//! The file with extra headers for a source.
//!
//! - Every line that is accepted is one header, in ASCII, with its end: nothing can be smuggled into a request.
//! - The error quotes nothing of the file, which holds secrets, and is one line.
//! - No panic; memory in proportion to the input.
#![no_main]

use std::os::unix::fs::PermissionsExt;

use libfuzzer_sys::fuzz_target;
use qx_update::fetch::Headers;
use qx_update_fuzz::{bounded, one_line, scratch};

fuzz_target!(|data: &[u8]| {
    let path = scratch().join("headers");
    std::fs::write(&path, data).expect("there is memory");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    match bounded(data.len(), || Headers::read(&path)) {
        Ok(headers) => {
            let lines = headers.lines();
            assert!(lines.is_empty() || lines.ends_with("\r\n"), "{lines:?}");
            for line in lines.split_terminator("\r\n") {
                let (name, value) = line.split_once(": ").expect("a header");
                assert!(
                    !name.is_empty() && !name.contains(char::is_whitespace),
                    "{line:?}"
                );
                assert!(
                    value.bytes().all(|b| (b' '..=b'~').contains(&b)),
                    "{line:?}"
                );
            }
        }
        Err(e) => one_line(&e.chain()),
    }
});
