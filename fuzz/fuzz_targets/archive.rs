//! A component's archive, unpacked into a slot.
//!
//! - Nothing is made or changed outside of the component's own place, and what lies beside it stays.
//! - What is accepted is exactly what the manifest counts: entries, bytes; no device, no hard link, no link that leads out, no
//!   set-user-id bit.
//! - What is refused has made no more than that either.
//! - No panic; memory does not depend on what the archive says of itself.
#![no_main]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use qx_release::digest::Digest;
use qx_release::error::ErrorKind;
use qx_release::manifest::Component;
use qx_update::acquire::unpack;
use qx_update_fuzz::{bounded, one_line, scratch};
use serde_json::json;

/// What an artifact unpacked to so far.
#[derive(Default)]
struct Made {
    entries: u64,
    bytes: u64,
}

fn look(path: &Path, top: &Path, made: &mut Made) {
    let meta = fs::symlink_metadata(path).expect("it is there");
    made.entries += 1;
    assert!(
        meta.permissions().mode() & 0o7000 == 0,
        "{}",
        path.display()
    );
    if meta.is_symlink() {
        let target = fs::read_link(path).expect("a link");
        assert!(target.is_relative(), "{}", target.display());
        let real = fs::canonicalize(path);
        assert!(real.is_ok_and(|real| real.starts_with(top)) || fs::metadata(path).is_err());
    } else if meta.is_dir() {
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(path, mode).expect("it is ours");
        for entry in fs::read_dir(path).expect("a directory") {
            look(&entry.expect("an entry").path(), top, made);
        }
    } else {
        assert!(meta.is_file() && meta.nlink() == 1, "{}", path.display());
        made.bytes += meta.len();
    }
}

fuzz_target!(|data: &[u8]| {
    let [kind, entries, size, tar @ ..] = data else {
        return;
    };
    let (kind, place) = match kind % 2 {
        0 => ("bin", "bin/app"),
        _ => ("tree", "share/web"),
    };
    // A real archive of three files takes a few hundred bytes; what it may say is bounded all the same.
    let component: Component = serde_json::from_value(json!({
        "name": "app", "kind": kind, "install_path": place, "mode": "0755", "sha256": Digest::of(b""),
        "entries": entries, "size_bytes": u64::from(*size) * 8,
    }))
    .expect("a component");
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(tar).expect("memory");
    let artifact = encoder.finish().expect("memory");
    let slot = scratch().join("outer/slot");
    let outer = scratch().join("outer");
    let _ = fs::remove_dir_all(&outer);
    fs::create_dir_all(slot.join("bin")).expect("there is memory");
    fs::write(slot.join("bin/other"), "other").expect("there is memory");
    fs::write(outer.join("neighbour"), "neighbour").expect("there is memory");
    let (length, digest) = (artifact.len() as u64, Digest::of(&artifact));
    // Two buffers of a fixed size, and a window.
    let unpacked = bounded(artifact.len() + (16 << 10), || {
        unpack::unpack(
            &component,
            &artifact[..],
            length,
            &digest,
            &slot,
            &mut |_| {},
        )
    });
    let mut made = Made::default();
    if fs::symlink_metadata(slot.join(place)).is_ok() {
        look(&slot.join(place), &slot.join(place), &mut made);
    }
    assert!(made.entries <= component.entries && made.bytes <= component.size_bytes);
    match unpacked {
        Ok(()) => {
            assert_eq!(
                (made.entries, made.bytes),
                (component.entries, component.size_bytes)
            );
        }
        Err(e) => {
            assert_eq!(e.kind, ErrorKind::Publisher, "{}", e.chain());
            one_line(&e.chain());
        }
    }
    // Beside the component is what was there before, and directories on the way to it.
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&outer), ["neighbour", "slot"]);
    assert_eq!(
        fs::read(outer.join("neighbour")).expect("it is there"),
        b"neighbour"
    );
    assert_eq!(
        fs::read(slot.join("bin/other")).expect("it is there"),
        b"other"
    );
    let mut beside: Vec<_> = names(&slot);
    beside.retain(|name| name != "bin" && name != "share");
    assert!(beside.is_empty(), "{beside:?}");
    for (directory, own) in [("bin", "app"), ("share", "web")] {
        if slot.join(directory).exists() {
            let mut beside = names(&slot.join(directory));
            beside.retain(|name| name != own && name != "other");
            assert!(beside.is_empty(), "{beside:?}");
        }
    }
});
