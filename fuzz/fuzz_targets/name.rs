//! Names: of targets, of delegated roles and of what a manifest names; and, behind a line feed, a path that the first line is a
//! pattern for.
//!
//! - No name that is accepted leaves its directory, as it is, with a version or a digest before its last part, and as the
//!   file that a delegated role is kept in.
//! - A name is printed as it was read; that of a role's file stands for no other role.
//! - A text without wildcards matches itself and nothing else; matching ends.
//! - No panic; memory in proportion to the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qx_release::manifest::{Name, RelPath};
use qx_release::trust::delegation::{RoleName, matches};
use qx_release::trust::{Limits, Role};
use qx_update_fuzz::{bounded, stays_inside};

fuzz_target!(|text: &str| {
    if let Ok(path) = bounded(text.len(), || text.parse::<RelPath>()) {
        assert_eq!(path.as_str(), text);
        stays_inside(path.as_str());
        stays_inside(path.file_name());
        assert!(path.as_str().ends_with(path.file_name()));
    }
    if let Ok(name) = bounded(text.len(), || text.parse::<Name>()) {
        assert_eq!(name.as_str(), text);
        stays_inside(name.as_str());
        assert!(!text.contains('/'));
    }
    if let Ok(role) = bounded(text.len(), || RoleName::new(text, &Limits::default())) {
        assert_eq!(role.as_str(), text);
        assert!(Role::ALL.iter().all(|top| top.as_str() != text));
        for file in [
            format!("{}.json", role.encoded()),
            format!("{}.{}.json", u64::MAX, role.encoded()),
        ] {
            stays_inside(&file);
            assert!(!file.contains('/'), "{file}");
        }
        assert_eq!(decoded(&role.encoded()), text.as_bytes());
    }
    if let Some((pattern, path)) = text.split_once('\n') {
        let matched = bounded(text.len(), || matches(pattern, path));
        if !pattern.contains(['*', '?', '[']) {
            assert_eq!(matched, pattern == path);
        }
        assert!(!matched || pattern.matches('/').count() == path.matches('/').count());
    }
});

fn decoded(encoded: &str) -> Vec<u8> {
    let mut rest = encoded.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [rest.next().unwrap(), rest.next().unwrap()];
        let digits = std::str::from_utf8(&digits).unwrap();
        decoded.push(u8::from_str_radix(digits, 16).unwrap());
    }
    decoded
}
