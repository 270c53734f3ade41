//! The README's quick start, run as it stands there.

use std::path::Path;
use std::process::Command;

/// Every `sh` block of the README, in order, in one shell in an empty directory.
#[test]
fn the_quick_start_works_as_it_is_written() {
    let readme = include_str!("../README.md");
    let blocks: Vec<&str> = readme
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("\n```").map(|(block, _)| block))
        .collect();
    assert!(blocks.len() >= 5, "the quick start has lost its commands");
    let script = format!("set -eux\n{}\n", blocks.join("\n"));
    let directory = tempfile::tempdir().unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_qx-update")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let out = Command::new("sh")
        .arg("-c")
        .arg(&script)
        .current_dir(&directory)
        .env("PATH", path)
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(out.status.success(), "{text}");
    assert!(
        text.contains("data/bin/my-daemon"),
        "the update was not what `which` found:\n{text}"
    );
    assert!(text.contains("running   1.1.0 (slot a)"), "{text}");
}
