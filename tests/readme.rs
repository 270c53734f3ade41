//! The README's quick start, run as it stands there.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// Intent: every `sh` block of the README, in order, in one shell in an empty directory, does what the README says: a real
/// service is updated and proved, the factory set accepts itself, and a bundle is installed. Only the port is another one.
#[test]
fn the_quick_start_works_as_it_is_written() {
    let readme = include_str!("../README.md");
    let blocks: Vec<&str> = readme
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("\n```").map(|(block, _)| block))
        .collect();
    assert!(blocks.len() >= 5, "the quick start has lost its commands");
    // Another program of this machine may have the README's.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let commands = blocks.join("\n");
    assert!(commands.contains(":8080/"), "the check has lost its port");
    let script = format!(
        "set -eux\numask 022\ntrap '[ ! -e appliance/service ] || appliance/service stop my-daemon' EXIT\n{}\n",
        commands.replace("8080", &port)
    );
    let directory = tempfile::tempdir().unwrap();
    // Both programs are there.
    let binaries = Path::new(crate::common::publisher()).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        shell.env_remove(name).env_remove(name.to_uppercase());
    }
    let out = shell
        .arg("-c")
        .arg(&script)
        .current_dir(&directory)
        .env("PATH", path)
        .output()
        .unwrap();
    let (said, errors) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(out.status.success(), "{said}{errors}");
    let mut rest = &*said;
    for words in [
        "\nrunning   1.1.0 (slot a)",
        "/data/slots/a/bin/my-daemon\n",
        "done, proved healthy",
        "data/bin/my-daemon\n",
        "{\"version\": \"1.1.0\"}\n",
        "\nrunning   1.0.0 (factory set)",
        "/usr/bin/my-daemon\n",
        "{\"version\": \"1.0.0\"}\n",
        "wrote stick.bundle",
        "1.1.0 (slot a) runs and is proved healthy\n",
    ] {
        let Some((_, after)) = rest.split_once(words) else {
            panic!("{words:?} is not said, or not there:\n{said}{errors}");
        };
        rest = after;
    }
}
