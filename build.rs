//! Embeds what `--version` prints: the commit and the target. The version is Cargo's.

use std::process::Command;

fn main() {
    // A source archive has no repository.
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12"]);
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=QX_COMMIT={commit}");
    println!(
        "cargo::rustc-env=QX_TARGET={}",
        std::env::var("TARGET").unwrap_or_default()
    );
    // In a work tree of its own the repository's files are elsewhere.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim().to_owned())
}
