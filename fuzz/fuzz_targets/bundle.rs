//! The index of a bundle.
//!
//! - Every file that it holds has a name that stays inside, and the bytes that another reader of tar archives finds under that
//!   name; it holds no more than that reader finds.
//! - No panic, and the index ends; memory in proportion to the input.
#![no_main]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qx_update::fetch::bundle::Bundle;
use qx_update_fuzz::{bounded, stays_inside};
use rustix::fs::{MemfdFlags, memfd_create};

fuzz_target!(|data: &[u8]| {
    let file = File::from(memfd_create("bundle", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all_at(data, 0).expect("there is memory");
    let open = || Bundle::open(Path::new("bundle"), file, data.len() as u64);
    let Ok(bundle) = bounded(data.len(), open) else {
        return;
    };
    let mut archive = tar::Archive::new(data);
    for entry in archive.entries().expect("it was read") {
        let mut entry = entry.expect("it was read");
        let header = entry.header();
        // That reader knows no long names in archives of the time before tar had a magic number.
        if header.as_gnu().is_none() && header.as_ustar().is_none() {
            return;
        }
        if header.entry_type().is_dir() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name);
        stays_inside(name);
        let mut expected = Vec::new();
        entry.read_to_end(&mut expected).expect("it was read");
        let (mut artifact, length) = bundle.open_file(name).expect("it is open").expect(name);
        let mut bytes = Vec::new();
        artifact.read_to_end(&mut bytes).expect("it is open");
        assert_eq!(length, expected.len() as u64, "{name}");
        assert!(bytes == expected, "{name}");
    }
});
