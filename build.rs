//! Embeds what `--version` prints, the commit and the target (the version is Cargo's), and the time before which it
//! cannot be: the commit's.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    // A source archive has no repository.
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12"]);
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=QX_COMMIT={commit}");
    println!(
        "cargo::rustc-env=QX_TARGET={}",
        std::env::var("TARGET").unwrap_or_default()
    );
    // Never later than the build, and the same for everybody who builds this commit.
    let built = std::env::var("SOURCE_DATE_EPOCH").ok();
    let built = built.or_else(|| git(&["log", "-1", "--format=%ct"]));
    let built = built.and_then(|seconds| seconds.parse::<u32>().ok());
    let built = built.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs() as u32)
    });
    println!("cargo::rustc-env=QX_BUILT={built}");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // In a work tree of its own the repository's files are elsewhere.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim().to_owned())
}
