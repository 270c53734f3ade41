//! Bad input from the repository and on the way from it: each with its one line of error and its exit code, and nothing
//! changed.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::common::hostile::{Archive, bomb};
use crate::common::server::{Answer, Request, Server};
use crate::common::{Appliance, path, text};

/// An appliance that runs 1.1.0, with 1.2.0 published.
fn with_an_update() -> Appliance {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.publish_release("1.2.0");
    appliance
}

/// The same file with one bit of it changed: the last digit or letter of what follows the words.
fn tamper(file: &Path, after: &str) {
    let mut bytes = fs::read(file).unwrap();
    let at = if after.is_empty() {
        bytes.len() / 2
    } else {
        let at = text(file)
            .find(after)
            .unwrap_or_else(|| panic!("{after} in {}", file.display()));
        at + after.len()
    };
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Keys that this appliance does not trust have signed everything.
#[test]
fn another_publishers_keys() {
    let appliance = with_an_update();
    let theirs = Appliance::new();
    theirs.publish_release("1.3.0");
    fs::rename(&theirs.repo, appliance.root.join("srv/theirs")).unwrap();
    appliance.source("/srv/theirs");
    appliance.refuses(&["apply"], 5, &["/srv/theirs", "timestamp"]);
    appliance.source("/srv/repo");
    appliance.update(&["apply"]).code(0);
}

/// One bit of any role's metadata is another: its signature, its content.
#[test]
fn tampered_metadata() {
    for role in ["timestamp", "snapshot", "targets"] {
        for after in ["\"expires\":\"20", "\"sig\":\""] {
            let appliance = with_an_update();
            let file = appliance.signer().metadata_file(role);
            let good = fs::read(&file).unwrap();
            // qx-publish may write it with other white space.
            let after = [after, &after.replace(':', ": ")]
                .into_iter()
                .find(|a| text(&file).contains(*a))
                .unwrap()
                .to_owned();
            tamper(&file, &after);
            appliance.refuses(&["apply"], 5, &["/srv/repo", role]);
            appliance.refuses(&["check"], 5, &["/srv/repo", role]);
            fs::write(&file, good).unwrap();
            appliance.update(&["apply"]).code(0);
        }
    }
}

/// A new root that the present one's keys did not sign.
#[test]
fn a_forged_root() {
    let appliance = with_an_update();
    let theirs = Appliance::new();
    let mut root: Value =
        serde_json::from_slice(&fs::read(theirs.repo.join("metadata/1.root.json")).unwrap())
            .unwrap();
    root["signed"]["version"] = json!(2);
    fs::write(
        appliance.repo.join("metadata/2.root.json"),
        root.to_string(),
    )
    .unwrap();
    appliance.refuses(&["apply"], 5, &["2.root.json"]);
}

/// An artifact and a manifest with one other bit. Neither is a release that was refused: `status` tells of it as of any attempt
/// that failed.
#[test]
fn tampered_targets() {
    let appliance = with_an_update();
    let signer = appliance.signer();
    let manifest = signer.target_file(&signer.manifest_of("1.2.0"));
    let good = fs::read(&manifest).unwrap();
    tamper(&manifest, "1.2.");
    appliance.refuses(&["apply"], 5, &["1.2.0/release.json"]);
    let status = appliance.status();
    assert_eq!(status["failure"]["result"], "refused", "{status:#}");
    let reason = status["failure"]["reason"].as_str().unwrap();
    assert!(reason.contains("1.2.0/release.json"), "{reason}");
    assert_eq!(status["refused"], json!([]));
    fs::write(&manifest, good).unwrap();

    let name = signer
        .targets()
        .into_iter()
        .filter(|n| n.contains("/qx-console-"))
        .collect::<Vec<_>>();
    for name in name {
        tamper(&signer.target_file(&name), "");
    }
    appliance.refuses(&["apply"], 5, &["qx-console", "digest"]);
}

/// Metadata past their time. What runs goes on running.
#[test]
fn expired_metadata() {
    for role in ["timestamp", "snapshot", "targets"] {
        let appliance = with_an_update();
        appliance.signer().edit(role, |signed| {
            signed.insert("expires".into(), json!("2026-01-01T00:00:00Z"));
        });
        appliance.refuses(&["apply"], 5, &[role, "expired", "2026-01-01"]);
        appliance.update(&["verify"]).code(0);
        appliance.update(&["recover"]).code(0);
    }
}

/// Metadata older than what was seen before, validly signed in its time.
#[test]
fn older_metadata() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let old = fs::read(appliance.repo.join("metadata/timestamp.json")).unwrap();
    appliance.install("1.2.0");
    fs::write(appliance.repo.join("metadata/timestamp.json"), old).unwrap();
    appliance.refuses(&["apply"], 5, &["timestamp"]);
    appliance.runs("1.2.0");
}

/// An older release is refused, by its name too. One of another channel is none for this appliance: it has nothing
/// newer, asked by its name it is refused, and what follows only that channel takes it.
#[test]
fn older_releases_and_other_channels() {
    let appliance = Appliance::new();
    appliance.publish_release("1.0.5");
    appliance.install("1.1.0");
    appliance.update(&["apply"]).code(3);
    appliance.refuses(&["apply", "1.0.5"], 5, &["1.0.5", "1.1.0"]);
    appliance
        .try_release(&appliance.recipe("1.2.0"), &["--channel", "beta"])
        .code(0);
    appliance.update(&["check"]).code(3);
    appliance.update(&["apply"]).code(3);
    appliance.refuses(&["apply", "1.2.0"], 5, &["1.2.0", "beta", "stable"]);
    appliance.edit_config(|config| config["channel"] = json!("beta"));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// A repository that has nothing at all for this appliance's channel is the wrong one.
#[test]
fn a_repository_of_another_channel_only() {
    let appliance = with_an_update();
    appliance.edit_config(|config| config["channel"] = json!("edge"));
    appliance.refuses(&["apply"], 5, &["1.2.0", "channel stable", "edge"]);
    appliance.runs("1.1.0");
}

/// A manifest that says it is for another product, architecture or channel than the name it is published under, or is
/// of another version.
#[test]
fn a_manifest_for_something_else() {
    for (field, value) in [
        ("product", "quantix-vdc"),
        ("arch", "aarch64"),
        ("channel", "beta"),
        ("version", "9.0.0"),
    ] {
        let appliance = with_an_update();
        appliance
            .signer()
            .edit_manifest("1.2.0", |manifest| manifest[field] = json!(value));
        appliance.refuses(&["apply"], 5, &["1.2.0", field, value]);
    }
}

/// A repository of another product.
#[test]
fn releases_of_others() {
    let appliance = with_an_update();
    appliance.edit_config(|config| config["product"] = json!("quantix-vdc"));
    appliance.refuses(&["apply"], 5, &["1.2.0", "quantix-os", "quantix-vdc"]);
    appliance.runs("1.1.0");
}

/// `min_version` is met by way of a stepping stone.
#[test]
fn min_version() {
    let appliance = Appliance::new();
    appliance.release(
        &appliance
            .recipe("1.5.0")
            .edit(|json| json["min_version"] = json!("1.2.0")),
    );
    appliance.refuses(&["apply"], 5, &["1.5.0", "1.2.0", "1.0.0"]);
    appliance.publish_release("1.2.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.5.0");
}

/// A release that lacks what the factory set has a priority path for would run a part of the factory set.
#[test]
fn a_partial_set() {
    let appliance = with_an_update();
    appliance.signer().edit_manifest("1.2.0", |manifest| {
        manifest["components"].as_array_mut().unwrap().remove(0);
        manifest["services"].as_array_mut().unwrap().remove(0);
        manifest["health"].as_array_mut().unwrap().remove(0);
    });
    appliance.refuses(&["apply"], 5, &["1.2.0", "bin/qx-node"]);
}

/// Manifests that no publisher makes: unknown formats, paths that leave the slot, lists and nesting without end.
#[test]
fn hostile_manifests() {
    let appliance = with_an_update();
    let signer = appliance.signer();
    let name = signer.manifest_of("1.2.0");
    let good = signer.target(&name);
    type Edit = fn(&mut Value);
    let edits: [(&str, &[&str], Edit); 10] = [
        ("an unknown format", &["format", "2"], |m| {
            m["format"] = json!(2)
        }),
        ("a path upwards", &[".."], |m| {
            m["components"][0]["install_path"] = json!("bin/../../x")
        }),
        ("an absolute path", &["/etc/passwd"], |m| {
            m["components"][0]["install_path"] = json!("/etc/passwd")
        }),
        ("a path elsewhere", &["etc/passwd"], |m| {
            m["components"][0]["install_path"] = json!("etc/passwd")
        }),
        ("a control character", &["name"], |m| {
            m["components"][0]["name"] = json!("qx\u{1b}[2J")
        }),
        ("setuid", &["4755"], |m| {
            m["components"][0]["mode"] = json!("4755")
        }),
        ("the same twice", &["qx-node"], |m| {
            m["components"][1] = m["components"][0].clone()
        }),
        ("an empty digest", &["SHA-256"], |m| {
            m["components"][0]["sha256"] = json!("")
        }),
        ("a shell string", &["rm -rf"], |m| {
            m["migrate"] = json!({"run": "rm -rf /", "timeout_s": 1})
        }),
        ("a missing field", &["components"], |m| {
            m.as_object_mut().unwrap().remove("components");
        }),
    ];
    for (what, words, edit) in edits {
        signer.replace_target(&name, &good);
        signer.edit_manifest("1.2.0", edit);
        eprintln!("{what}");
        appliance.refuses(&["apply"], 5, &[&["1.2.0"], words].concat());
    }
    let component = json!({"name": "x", "kind": "bin"}).to_string();
    let many = format!(
        "{{\"format\":1,\"components\":[{}0]}}",
        format!("{component},").repeat(1_000_000)
    );
    let deep = format!(
        "{{\"format\":1,\"components\":{}{}}}",
        "[".repeat(1_000_000),
        "]".repeat(1_000_000)
    );
    let deep_but_short = format!(
        "{{\"format\":1,\"x\":{}{}}}",
        "[".repeat(300_000),
        "]".repeat(300_000)
    );
    let thousands = {
        let mut manifest: Map<String, Value> = serde_json::from_slice(&good).unwrap();
        manifest["health"] = json!(vec![json!({"type": "service", "service": "node"}); 1001]);
        serde_json::to_string(&manifest).unwrap()
    };
    for hostile in [
        many,
        deep,
        deep_but_short,
        thousands,
        "{".into(),
        String::new(),
        "null".into(),
    ] {
        signer.replace_target(&name, hostile.as_bytes());
        eprintln!("{} bytes", hostile.len());
        appliance.refuses(&["apply"], 5, &["1.2.0"]);
    }
    // Fields that are not known yet are no error.
    signer.replace_target(&name, &good);
    signer.edit_manifest("1.2.0", |manifest| {
        manifest["from_the_future"] = json!({"a": [1, 2]})
    });
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// Archives that are validly signed and would write elsewhere, or more, or something else than the manifest says.
#[test]
fn hostile_archives() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    // The tree is small, and one artifact of this name exists: the good one is replaced by each hostile one in turn.
    let release = appliance.recipe("1.2.0");
    fs::write(release.dir.join("www/more.html"), "more").unwrap();
    appliance.release(&release);
    let signer = appliance.signer();
    let manifest: Value =
        serde_json::from_slice(&signer.target(&signer.manifest_of("1.2.0"))).unwrap();
    let artifact = manifest["components"][2]["artifact"]
        .as_str()
        .unwrap()
        .to_owned();
    let good = signer.target(&artifact);
    let outside = appliance.root.join("outside");
    let outside = path(&outside);
    let index = b"This is 1.2.0.\n";
    let www = || {
        Archive::new()
            .dir("share/www/")
            .file("share/www/index.html", 0o644, index)
    };
    let archives: Vec<(&str, Vec<u8>)> = vec![
        (
            "..",
            www()
                .file("share/www/../../../../outside", 0o644, b"x")
                .gzip(),
        ),
        (
            ".. at the start",
            www().file("../../../outside", 0o644, b"x").gzip(),
        ),
        ("an absolute path", www().file(outside, 0o644, b"x").gzip()),
        (
            "another component's file",
            www().file("bin/qx-node", 0o755, b"x").gzip(),
        ),
        (
            "a name that begins the same",
            www().file("share/wwwx", 0o644, b"x").gzip(),
        ),
        (
            "a link upwards",
            www()
                .symlink("share/www/link", "../../../../outside")
                .gzip(),
        ),
        (
            "an absolute link",
            www().symlink("share/www/link", outside).gzip(),
        ),
        (
            "a file through a link",
            www()
                .symlink("share/www/l", "..")
                .file("share/www/l/x", 0o644, b"x")
                .gzip(),
        ),
        (
            "a hard link",
            www()
                .entry(
                    "share/www/more.html",
                    b'1',
                    0o644,
                    "share/www/index.html",
                    b"",
                )
                .gzip(),
        ),
        (
            "a hard link outside",
            www()
                .entry("share/www/more.html", b'1', 0o644, "/etc/passwd", b"")
                .gzip(),
        ),
        (
            "a character device",
            www().entry("share/www/null", b'3', 0o666, "", b"").gzip(),
        ),
        (
            "a block device",
            www().entry("share/www/disk", b'4', 0o666, "", b"").gzip(),
        ),
        (
            "a pipe",
            www().entry("share/www/pipe", b'6', 0o666, "", b"").gzip(),
        ),
        (
            "setuid",
            www().file("share/www/more.html", 0o4755, b"more").gzip(),
        ),
        (
            "setgid",
            www().file("share/www/more.html", 0o2755, b"more").gzip(),
        ),
        (
            "the same name twice",
            www().file("share/www/index.html", 0o644, index).gzip(),
        ),
        (
            "another content",
            www().file("share/www/more.html", 0o644, b"MORE").gzip(),
        ),
        (
            "other modes, as `git archive` has them",
            www().file("share/www/more.html", 0o664, b"more").gzip(),
        ),
        ("a file less", www().gzip()),
        (
            "a file more",
            www()
                .file("share/www/more.html", 0o644, b"more")
                .file("share/www/x", 0o644, b"")
                .gzip(),
        ),
        ("a bomb", bomb("share/www/more.html", 300)),
        ("a bomb elsewhere", bomb("outside", 300)),
        ("no archive", b"not even gzip".to_vec()),
        ("half an archive", good[..good.len() / 2].to_vec()),
        ("nothing", Vec::new()),
    ];
    for (what, archive) in archives {
        eprintln!("{what}");
        signer.replace_target(&artifact, &archive);
        let before = appliance.picture();
        appliance.update(&["apply"]).refused(5, &["www"]);
        before.unchanged(&appliance);
        assert!(
            !appliance.root.join("outside").exists(),
            "{what}: written outside"
        );
        assert!(
            appliance
                .data()
                .join("update/downloads")
                .read_dir()
                .unwrap()
                .count()
                < 4,
            "{what}: leftovers"
        );
    }
    signer.replace_target(&artifact, &good);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

/// A server that does so with the artifacts is refused with these words; afterwards it is well again, and the update
/// goes through.
#[track_caller]
fn broken_transfer(
    code: i32,
    rule: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    words: &[&str],
) {
    let appliance = with_an_update();
    let server = Server::answering(&appliance.repo, rule);
    appliance.source(&server.url);
    appliance.edit_config(|config| config["limits"]["stall_timeout_s"] = json!(5));
    appliance.refuses(&["apply"], code, &[&[server.url.as_str()], words].concat());
    appliance.edit_config(|config| config["limits"]["stall_timeout_s"] = json!(30));
    let server = Server::start(&appliance.repo);
    appliance.source(&server.url);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
}

fn artifacts(answer: Answer) -> impl Fn(&Request) -> Answer {
    move |request| match request.is_artifact() {
        true => answer.clone(),
        false => Answer::Well,
    }
}

/// Half an artifact with a length that fits is refused as not what was signed, nothing changes, and the update goes
/// through when the server is well again.
#[test]
fn a_truncated_download() {
    broken_transfer(5, artifacts(Answer::Truncated), &[".tar.gz"]);
}

/// An artifact that never ends is refused, nothing of it stays in the slots, and the update goes through when the
/// server is well again: no server can fill an appliance.
#[test]
fn an_endless_download() {
    broken_transfer(5, artifacts(Answer::Endless), &[".tar.gz"]);
}

/// A server that stops in the middle is given up as timed out, what runs is untouched, and the update goes through
/// later: an appliance does not wait for ever.
#[test]
fn a_server_that_stalls() {
    broken_transfer(1, artifacts(Answer::Stall), &[".tar.gz", "timed out"]);
}

/// A length that is not the signed one is refused as that, nothing changes, and the update goes through when the server
/// is well again.
#[test]
fn a_server_that_lies_about_the_length() {
    broken_transfer(5, artifacts(Answer::Short(100)), &[".tar.gz"]);
}

/// A server that cuts every transfer before its first byte ends in a failure and not in endless tries; nothing changes,
/// and the update goes through later.
#[test]
fn a_server_that_always_cuts() {
    broken_transfer(1, artifacts(Answer::Cut(0)), &[".tar.gz"]);
}

/// A server that redirects every file to itself is given up with one error that says so; nothing changes, and the
/// update goes through later.
#[test]
fn a_server_that_redirects_for_ever() {
    broken_transfer(
        1,
        |request| Answer::Redirect(request.path.clone()),
        &["redirect"],
    );
}

/// A person whose mirror lacks an artifact of the release reads which file, and that the answer was 404; nothing
/// changes, and the update goes through when it is there.
#[test]
fn a_server_that_has_it_no_more() {
    broken_transfer(1, artifacts(Answer::Status(404)), &["404", ".tar.gz"]);
}

/// A server that answers nothing but 503 is a failure that names it, not a refusal of the release; nothing changes, and
/// the update goes through later.
#[test]
fn a_server_in_trouble() {
    broken_transfer(1, |_| Answer::Status(503), &["503"]);
}

/// Metadata without end are refused at their limit, before anything in them is believed; nothing changes, and the
/// update goes through when the server is well again.
#[test]
fn endless_metadata() {
    broken_transfer(
        5,
        |request| match request.path.ends_with("timestamp.json") {
            true => Answer::Endless,
            false => Answer::Well,
        },
        &["timestamp.json"],
    );
}

/// Nobody is there at all.
#[test]
fn no_server() {
    let appliance = with_an_update();
    appliance.source("http://127.0.0.1:9");
    appliance.refuses(&["apply"], 1, &["http://127.0.0.1:9"]);
    appliance.refuses(&["check"], 1, &["http://127.0.0.1:9"]);
}
