//! Embeds what `--version` prints: the commit and the target. The version is Cargo's.

use std::process::Command;

fn main() {
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok())
        .map(|text| text.trim().to_owned())
        // A source archive has no repository.
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=QX_COMMIT={commit}");
    println!(
        "cargo::rustc-env=QX_TARGET={}",
        std::env::var("TARGET").unwrap_or_default()
    );
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/index");
}
