//! Where releases come from: mirrors that fail in turn, proxies, servers that want a token, bundles, and servers that are
//! slow on purpose.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::common::hostile::Archive;
use crate::common::proxy::Proxy;
use crate::common::server::{Answer, Server};
use crate::common::{Appliance, copy_all, text, walk};

const DEAD: &str = "http://127.0.0.1:9";

/// The messages of the update log's lines of a level, since this was asked last.
fn logged(appliance: &Appliance, level: &str) -> Vec<String> {
    let log = appliance.data().join("update/log/update.log");
    let lines = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    let lines = lines
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    lines
        .filter(|line| line["level"] == level)
        .map(|line| line["message"].as_str().unwrap().to_owned())
        .collect()
}

/// Fails unless there is one such line for each of these, in order, that contains it.
#[track_caller]
fn warned(appliance: &Appliance, expected: &[&str]) {
    let lines = logged(appliance, "warning");
    let as_expected = lines.len() == expected.len()
        && lines
            .iter()
            .zip(expected)
            .all(|(line, word)| line.contains(word));
    assert!(as_expected, "{lines:#?}, expected {expected:?}");
}

/// A copy of the repository as it is now.
fn copy(appliance: &Appliance, name: &str) -> PathBuf {
    let to = appliance.root.join("srv").join(name);
    copy_all(&appliance.repo, &to);
    to
}

/// A bundle of the repository as it is now, where the appliance finds it as `/srv/NAME`.
fn bundle(appliance: &Appliance, name: &str) -> PathBuf {
    let to = appliance.root.join("srv").join(name);
    tar(&to, &appliance.repo, &["metadata", "targets"]);
    to
}

fn tar(to: &Path, dir: &Path, names: &[&str]) {
    let mut command = Command::new("tar");
    command.arg("cf").arg(to).arg("-C").arg(dir).args(names);
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// A mirror that cannot be reached, and one in trouble, cost a warning each; what comes after the refresh does not ask them
/// again. All of them: one line that names each.
#[test]
fn the_next_mirror_is_asked_when_one_fails() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let trouble = Server::answering(&appliance.repo, |_| Answer::Status(503));
    let good = Server::start(&appliance.repo);
    appliance.sources(&[DEAD, "/srv/not-there", &trouble.url, &good.url]);
    logged(&appliance, "warning");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    warned(&appliance, &[DEAD, "/srv/not-there", "answered 503"]);
    // The first file, with two more tries; nothing after that.
    assert_eq!(trouble.asked().len(), 3);
    assert_eq!(good.artifacts().len(), 3);

    appliance.publish_release("1.2.0");
    appliance.sources(&[DEAD, &trouble.url]);
    appliance.refuses(
        &["apply"],
        1,
        &[DEAD, "refused", &trouble.url, "answered 503"],
    );
    // --from is the only source, then.
    good.asked();
    appliance.sources(&[&good.url]);
    appliance.refuses(&["apply", "--from", DEAD], 1, &[DEAD]);
    assert_eq!(good.asked(), []);
}

/// A mirror that is stale, expired, another publisher's or forged is passed over. If none is left that is refused, whatever
/// else is unreachable.
#[test]
fn a_mirror_that_is_not_to_be_trusted_is_passed_over() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    copy(&appliance, "stale");
    appliance.install("1.2.0");
    appliance.publish_release("1.3.0");
    copy(&appliance, "forged");
    flip_a_bit(&appliance.root.join("srv/forged/metadata/timestamp.json"));
    let theirs = Appliance::new();
    fs::rename(&theirs.repo, appliance.root.join("srv/theirs")).unwrap();

    let bad = ["/srv/stale", "/srv/theirs", "/srv/forged"];
    appliance.sources(&bad);
    appliance.refuses(&["apply"], 5, &["srv/stale", "srv/theirs", "srv/forged"]);
    appliance.sources(&["/srv/stale", DEAD]);
    appliance.refuses(&["apply"], 5, &["srv/stale", DEAD]);
    logged(&appliance, "warning");
    appliance.sources(&[&bad[..], &["/srv/repo"]].concat());
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.3.0");
    warned(&appliance, &bad);
}

/// What one mirror proved before it failed is known when the next one is asked: an older state is a rollback there.
#[test]
fn what_one_mirror_proved_binds_the_next() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    copy(&appliance, "old");
    appliance.publish_release("1.2.0");
    // The newest timestamp, and nothing that it tells of.
    let half = copy(&appliance, "half");
    fs::remove_file(
        half.join("metadata").join(
            appliance
                .signer()
                .metadata_file("snapshot")
                .file_name()
                .unwrap(),
        ),
    )
    .unwrap();
    // On its own the old state is the newest there is.
    appliance.update(&["check", "--from", "/srv/old"]).code(3);
    appliance.sources(&["/srv/half", "/srv/old"]);
    appliance.refuses(
        &["apply"],
        5,
        &["srv/half", "snapshot", "srv/old", "timestamp"],
    );
    appliance.update(&["apply", "--from", "/srv/repo"]).code(0);
}

/// Each file is fetched from the others if the mirror that refreshed does not have it, or has something else; a download
/// that it began is gone on with.
#[test]
fn files_come_from_the_other_mirrors() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let signer = appliance.signer();
    let good = Server::start(&appliance.repo);
    let tampered = copy(&appliance, "tampered");
    let inside = |file: PathBuf| tampered.join(file.strip_prefix(&appliance.repo).unwrap());
    flip_a_bit(&inside(signer.target_file(&signer.manifest_of("1.1.0"))));
    flip_a_bit(&inside(signer.target_file(&signer.artifact_of("www"))));
    let begun = AtomicBool::new(false);
    let bad = Server::answering(&tampered, move |request| {
        if request.path.contains(".qx-console-") {
            return Answer::Status(404);
        }
        match request.path.contains(".qx-node-") {
            true if begun.swap(true, Ordering::Relaxed) => Answer::Status(404),
            true => Answer::Cut(1000),
            false => Answer::Well,
        }
    });
    appliance.sources(&[&bad.url, &good.url]);
    logged(&appliance, "warning");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    warned(
        &appliance,
        &["release.json", "qx-node", "qx-console", "www"],
    );
    let node = |server: &Server| -> Vec<Option<usize>> {
        let asked = server.asked().into_iter();
        asked
            .filter(|r| r.path.contains(".qx-node-"))
            .map(|r| r.from)
            .collect()
    };
    assert_eq!(node(&bad), [None, Some(1000)]);
    assert_eq!(node(&good), [Some(1000)]);

    // In a directory, too: it is looked at before it is unpacked.
    appliance.publish_release("1.2.0");
    let signer = appliance.signer();
    let names = signer.targets();
    copy(&appliance, "tampered");
    for name in names.iter().filter(|name| name.contains("/artifacts/")) {
        flip_a_bit(&inside(signer.target_file(name)));
    }
    appliance.sources(&["/srv/tampered", "/srv/repo"]);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");
    warned(&appliance, &["digest", "digest", "digest"]);

    // Nobody has it.
    appliance.publish_release("1.3.0");
    let none = Server::answering(&appliance.repo, |request| match request.is_artifact() {
        true => Answer::Status(503),
        false => Answer::Well,
    });
    let dead = Server::answering(&appliance.repo, |_| Answer::Status(503));
    appliance.sources(&[&dead.url, &none.url]);
    appliance.refuses(&["apply"], 1, &[".tar.gz", &none.url, &dead.url]);
    // Three tries before it counted as dead, one after.
    assert_eq!(dead.asked().len(), 4);
    // Whoever may answer is asked before it.
    appliance.sources(&[&dead.url, &none.url, &good.url]);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.3.0");
    assert_eq!(dead.asked().len(), 3);
}

/// Requests go through the proxy that the environment or the configuration names, and those of health checks never.
#[test]
fn through_a_proxy() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let server = Server::start(&appliance.repo);
    let host = server.url.strip_prefix("http://").unwrap();
    appliance.source(&server.url);
    let proxy = Proxy::start();
    let url = format!("http://{}", proxy.address);
    appliance
        .start_with(&[("http_proxy", &url)], &["apply"])
        .wait()
        .code(0);
    appliance.runs("1.1.0");
    let asked = proxy.asked();
    let form = format!("GET http://{host}/");
    assert!(
        asked.len() > 5 && asked.iter().all(|head| head.starts_with(&form)),
        "{asked:#?}"
    );

    for variables in [
        &[("http_proxy", url.as_str()), ("no_proxy", "127.0.0.1")][..],
        &[("HTTP_PROXY", &url)],
        &[("https_proxy", &url)],
    ] {
        appliance.start_with(variables, &["check"]).wait().code(3);
        assert_eq!(proxy.asked(), [""; 0], "{variables:?}");
    }
    // The configuration's word is the last one.
    appliance.edit_config(|config| config["proxy"] = json!({}));
    appliance
        .start_with(&[("http_proxy", &url)], &["check"])
        .wait()
        .code(3);
    assert_eq!(proxy.asked(), [""; 0]);
    appliance.edit_config(|config| config["proxy"] = json!({"url": url}));
    appliance.update(&["check"]).code(3);
    assert!(!proxy.asked().is_empty());
    appliance
        .edit_config(|config| config["proxy"] = json!({"url": url, "no_proxy": ["127.0.0.1"]}));
    appliance.update(&["check"]).code(3);
    assert_eq!(proxy.asked(), [""; 0]);

    // One that is not there is named; one that cannot be one is wrong configuration.
    appliance.edit_config(|config| config["proxy"] = json!({"url": DEAD}));
    appliance.refuses(&["apply"], 1, &[&server.url, "proxy", DEAD]);
    appliance.edit_config(|config| config["proxy"] = json!({"url": "socks5://me:pass@h"}));
    appliance.refuses(&["apply"], 2, &["proxy.url"]);
    appliance.edit_config(|config| config["proxy"] = json!("http://me:secret@h"));
    let refused = appliance.update(&["check"]);
    refused.code(2);
    assert!(refused.stderr.contains("proxy") && !refused.stderr.contains("secret"));
    // A disk needs none.
    appliance.edit_config(|config| config["proxy"] = json!({"url": "socks5://h"}));
    appliance.update(&["check", "--from", "/srv/repo"]).code(3);
}

/// TLS is between the appliance and the server, and the proxy's password is the proxy's.
#[test]
fn through_a_proxy_that_wants_a_password_to_a_server_that_wants_a_token() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = authority.signing_key.serialize_der();
    let server = Server::tls(&appliance.repo, authority.cert.der().to_vec(), key);
    fs::write(appliance.root.join("etc/ca.pem"), authority.cert.pem()).unwrap();
    token(&appliance, "X-Token: tok3n");
    appliance.source(&server.url);
    let proxy = Proxy::demanding("Proxy-Authorization: Basic bWU6cDpzQHM=");
    appliance.edit_config(|config| {
        config["ca_file"] = json!("/etc/ca.pem");
        config["headers_file"] = json!("/etc/token");
        config["proxy"] = json!({"url": format!("http://me:wrong@{}", proxy.address)});
    });
    let refused = appliance.update(&["apply"]);
    refused.refused(1, &[&server.url, &proxy.address, "407"]);
    assert!(!refused.stderr.contains("wrong"), "{}", refused.stderr);
    proxy.asked();
    appliance.edit_config(|config| {
        config["proxy"]["url"] = json!(format!("http://me:p%3As%40s@{}", proxy.address));
    });
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    let host = server.url.strip_prefix("https://").unwrap();
    for head in proxy.asked() {
        assert!(
            head.starts_with(&format!("CONNECT {host} HTTP/1.1\r\n")),
            "{head}"
        );
        assert!(!head.contains("tok3n"), "{head}");
    }
    for request in server.asked() {
        let has = |word: &str| request.headers.iter().any(|h| h.contains(word));
        assert!(has("X-Token: tok3n"), "{request:?}");
        assert!(!has("Proxy-Authorization"), "{request:?}");
    }
    for secret in ["tok3n", "p:s@s", "p%3As%40s", "bWU6cDpzQHM=", "wrong"] {
        nowhere(&appliance, secret);
    }
}

fn token(appliance: &Appliance, lines: &str) -> PathBuf {
    let file = appliance.root.join("etc/token");
    fs::write(&file, lines).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    file
}

/// Nothing that the updater wrote has it: its records, its log, what it prints.
#[track_caller]
fn nowhere(appliance: &Appliance, secret: &str) {
    walk(&appliance.data().join("update"), &mut |file, meta| {
        assert!(
            !meta.is_file() || !text(file).contains(secret),
            "{secret} in {}",
            file.display()
        );
    });
    for arguments in [&["status"][..], &["status", "--json"], &["log"], &["check"]] {
        let said = appliance.update(arguments);
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(!all.contains(secret), "{secret} in {arguments:?}: {all}");
    }
}

/// The headers of the file go to the configured servers, not to whom these redirect, nor to what a person names.
#[test]
fn extra_headers_go_to_the_sources_only() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let has_token =
        |headers: &[String]| headers.iter().any(|h| h == "Authorization: Bearer s3cret");
    let elsewhere = Server::start(&appliance.repo);
    let other = elsewhere.url.clone();
    let server = Server::answering(&appliance.repo, move |request| {
        match (has_token(&request.headers), request.is_artifact()) {
            (false, _) => Answer::Status(401),
            (true, true) => Answer::Redirect(format!("{other}{}", request.path)),
            (true, false) => Answer::Well,
        }
    });
    appliance.source(&server.url);
    let file = token(
        &appliance,
        "# for the fleet\n\nAuthorization: Bearer s3cret\r\nX-A: b\n",
    );
    appliance.refuses(&["apply"], 1, &[&server.url, "answered 401"]);
    appliance.edit_config(|config| config["headers_file"] = json!("/etc/token"));
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
    let redirected = elsewhere.asked();
    assert_eq!(redirected.len(), 3);
    for request in redirected {
        assert!(!has_token(&request.headers), "{request:?}");
    }
    appliance
        .update(&["check", "--from", &elsewhere.url])
        .code(3);
    assert!(elsewhere.asked().iter().all(|r| !has_token(&r.headers)));
    appliance.update(&["check", "--from", &server.url]).code(3);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    appliance.refuses(&["apply"], 2, &["etc/token", "0644"]);
    token(&appliance, "X-A: b\ns3cret\n");
    appliance.refuses(&["apply"], 2, &["etc/token", "line 2"]);
    token(&appliance, &"X-A: b\n".repeat(3000));
    appliance.refuses(&["apply"], 2, &["etc/token", "16384 bytes"]);
    fs::remove_file(&file).unwrap();
    appliance.refuses(&["apply"], 2, &["etc/token"]);
    appliance.update(&["check", "--from", "/srv/repo"]).code(3);
    nowhere(&appliance, "s3cret");
}

/// Object stores answer 403 for what is not there; where a file must be there the line says so.
#[test]
fn a_wrong_token_is_told_from_a_missing_file() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    for status in [401, 403] {
        let server = Server::answering(&appliance.repo, move |_| Answer::Status(status));
        appliance.source(&server.url);
        appliance.refuses(&["apply"], 1, &[&server.url, &format!("answered {status}")]);
    }
    // For a root that is not there, and only for it, this is an answer like 404.
    let server = Server::answering(&appliance.repo, |request| {
        match request.path.ends_with("2.root.json") {
            true => Answer::Status(403),
            false => Answer::Well,
        }
    });
    appliance.source(&server.url);
    appliance.update(&["check"]).code(4);
}

/// One file with all that the appliance needs does as well as a server, and nothing of it is copied first.
#[test]
fn a_bundle_is_a_source() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    bundle(&appliance, "one.tar");
    appliance.source(DEAD);
    appliance
        .update(&["check", "--from", "/srv/one.tar"])
        .code(4);
    appliance
        .update(&["apply", "--from", "/srv/one.tar"])
        .code(0);
    appliance.runs("1.1.0");
    appliance
        .update(&["check", "--from", "/srv/one.tar"])
        .code(3);
    let downloads = appliance.data().join("update/downloads");
    let copied = fs::read_dir(downloads).map_or(0, Iterator::count);
    assert_eq!(copied, 0, "a bundle is read in place\n{}", appliance.tree());

    // As a mirror; from another tar, with names in another form, and from the repository's own directory.
    appliance.publish_release("1.2.0");
    let other = appliance.root.join("srv/two.tar");
    let mut command = Command::new("tar");
    command
        .arg("cf")
        .arg(&other)
        .arg("--format=posix")
        .arg("-C")
        .arg(&appliance.repo)
        .arg(".");
    assert!(command.status().unwrap().success());
    appliance.sources(&[DEAD, "/srv/two.tar"]);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.2.0");

    // Metadata tell of more than this one holds: only what it holds is offered.
    appliance.publish_release("1.3.0");
    let signer = appliance.signer();
    let newest = copy(&appliance, "pruned");
    appliance.publish_release("1.4.0");
    fs::remove_dir_all(newest.join("metadata")).unwrap();
    copy_all(&appliance.repo.join("metadata"), &newest.join("metadata"));
    assert!(!signer.manifest_of("1.4.0").is_empty());
    tar(
        &appliance.root.join("srv/pruned.tar"),
        &newest,
        &["metadata", "targets"],
    );
    appliance.refuses(
        &["apply", "1.4.0", "--from", "/srv/pruned.tar"],
        5,
        &["1.4.0", "not offer"],
    );
    appliance
        .update(&["apply", "--from", "/srv/pruned.tar"])
        .code(0);
    appliance.runs("1.3.0");
    appliance
        .update(&["check", "--from", "/srv/pruned.tar"])
        .code(3);
    appliance.refuses(
        &["apply", "--from", "/srv/pruned"],
        1,
        &["1.4.0", "no such file"],
    );
}

/// Older than what was seen, another publisher's, for another product, tampered with: as from a server.
#[test]
fn a_bundle_is_verified_like_a_server() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    bundle(&appliance, "old.tar");
    appliance.install("1.2.0");
    appliance.refuses(
        &["apply", "--from", "/srv/old.tar"],
        5,
        &["old.tar", "timestamp"],
    );
    appliance.refuses(
        &["check", "--from", "/srv/old.tar"],
        5,
        &["old.tar", "timestamp"],
    );
    appliance.runs("1.2.0");

    let theirs = Appliance::new();
    theirs.publish_release("1.3.0");
    let foreign = bundle(&theirs, "theirs.tar");
    fs::rename(foreign, appliance.root.join("srv/theirs.tar")).unwrap();
    appliance.refuses(
        &["apply", "--from", "/srv/theirs.tar"],
        5,
        &["theirs.tar", "timestamp"],
    );

    appliance.publish_release("1.3.0");
    let good = bundle(&appliance, "good.tar");
    appliance.edit_config(|config| config["product"] = json!("another"));
    appliance.refuses(
        &["apply", "--from", "/srv/good.tar"],
        5,
        &["product quantix-os"],
    );
    appliance.edit_config(|config| config["product"] = json!("quantix-os"));

    let signer = appliance.signer();
    let names = signer.targets();
    let www = names.iter().filter(|n| n.contains("/artifacts/www-"));
    for name in www {
        flip_a_bit(&signer.target_file(name));
    }
    bundle(&appliance, "tampered.tar");
    appliance.refuses(
        &["apply", "--from", "/srv/tampered.tar"],
        5,
        &["www", "digest"],
    );

    // Cut anywhere: within a file, between two entries, before its end mark.
    let whole = fs::read(&good).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    for length in [
        0,
        100,
        512,
        whole.len() / 2,
        end / 512 * 512,
        end.next_multiple_of(512),
    ] {
        fs::write(appliance.root.join("srv/cut.tar"), &whole[..length]).unwrap();
        appliance.refuses(&["apply", "--from", "/srv/cut.tar"], 5, &["cut.tar"]);
    }
    // A stick that lost what was written last: zeros from anywhere on, between two entries or within one.
    let step = end / 40;
    for from in (0..end)
        .step_by(step)
        .chain((0..end).rev().step_by(512).take(20))
    {
        let mut zeroed = whole.clone();
        zeroed[from..].fill(0);
        fs::write(appliance.root.join("srv/cut.tar"), &zeroed).unwrap();
        appliance.refuses(&["apply", "--from", "/srv/cut.tar"], 5, &[]);
    }
    for more in [&b"x"[..], &[0; 512], &[0; 20_000]] {
        let longer = [&whole, more].concat();
        fs::write(appliance.root.join("srv/cut.tar"), longer).unwrap();
        appliance.refuses(&["apply", "--from", "/srv/cut.tar"], 5, &["damaged"]);
    }
    appliance
        .update(&["apply", "--from", "/srv/good.tar"])
        .code(0);
    appliance.runs("1.3.0");
}

/// Files that are no bundle, or one that nobody should have made.
#[test]
fn hostile_bundles() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let file = || Archive::new().file("metadata/timestamp.json", 0o644, b"{}");
    let long = |n: usize| "n".repeat(n);
    let deep = format!("targets/{}", [long(200).as_str(); 4].join("/"));
    let many = (0..10_001).fold(Archive::new(), |a, n| a.dir(&format!("targets/{n}/")));
    let names = (0..1300).fold(Archive::new(), |a, n| {
        let name = format!("{deep}/{n}\0");
        a.entry("././@LongLink", b'L', 0o644, "", name.as_bytes())
            .file("targets/x", 0o644, b"")
    });
    let mut endless = file().file("targets/x", 0o644, b"").tar();
    // The size of the second entry, in binary.
    endless[1024 + 124..1024 + 136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &[0x7f; 8]].concat());
    let sum = endless[1024..1024 + 148]
        .iter()
        .chain(&endless[1024 + 156..1024 + 512]);
    let sum: u32 = sum.map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
    endless[1024 + 148..1024 + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (endless, "truncated"),
        (b"not even tar".to_vec(), "tar archive"),
        (vec![b'x'; 4096], "tar archive"),
        (file().gzip(), "uncompressed"),
        (
            file().symlink("targets/x", "/etc/passwd").tar(),
            "'targets/x' is neither",
        ),
        (
            file()
                .entry("targets/x", b'1', 0o644, "metadata/timestamp.json", b"")
                .tar(),
            "'targets/x' is neither",
        ),
        (
            file().entry("targets/x", b'3', 0o644, "", b"").tar(),
            "is neither",
        ),
        (
            file().entry("targets/x", b'6', 0o644, "", b"").tar(),
            "is neither",
        ),
        (
            file().file("metadata/timestamp.json", 0o644, b"").tar(),
            "is a duplicate",
        ),
        (
            file().file("./metadata/timestamp.json", 0o644, b"").tar(),
            "is a duplicate",
        ),
        (
            file().file("targets/../../x", 0o644, b"").tar(),
            "'targets/../../x' is refused",
        ),
        (
            file().file("/etc/passwd", 0o644, b"").tar(),
            "'/etc/passwd' is refused",
        ),
        (
            file().file("targets/a\nb", 0o644, b"").tar(),
            "'targets/a\\nb' is refused",
        ),
        (many.tar(), "more than 10000 entries"),
        (names.tar(), "more than 1048576 bytes"),
        (
            file()
                .entry("././@LongLink", b'L', 0o644, "", &[b'n'; 5000])
                .tar(),
            "too long",
        ),
        (
            file()
                .entry("x", b'x', 0o644, "", b"12 size=99\n")
                .file("targets/x", 0o644, b"")
                .tar(),
            "damaged",
        ),
        (
            file()
                .entry("x", b'x', 0o644, "", b"11 size=99\n")
                .file("targets/x", 0o644, b"")
                .tar(),
            "8 GiB",
        ),
        (
            file().entry("x", b'x', 0o644, "", b"10 path=x\n").tar(),
            "is missing",
        ),
    ];
    let place = appliance.root.join("srv/bad.tar");
    for (bytes, why) in cases {
        fs::write(&place, bytes).unwrap();
        eprintln!("{why}");
        appliance.refuses(&["check", "--from", "/srv/bad.tar"], 5, &["bad.tar", why]);
    }
    // As one mirror of several it is passed over.
    appliance.sources(&["/srv/bad.tar", "/srv/repo"]);
    appliance.update(&["check"]).code(4);
}

/// A server that lives and hardly says anything keeps neither a refresh nor a download.
#[test]
fn a_slow_server_is_given_up() {
    let appliance = Appliance::new();
    appliance.publish_release("1.1.0");
    let slow = Server::answering(&appliance.repo, |request| {
        match request.path.ends_with("timestamp.json") {
            true => Answer::Drip,
            false => Answer::Well,
        }
    });
    let slow_artifacts =
        Server::answering(&appliance.repo, |request| match request.is_artifact() {
            true => Answer::Slow(1),
            false => Answer::Well,
        });
    let steady = Server::answering(&appliance.repo, |_| Answer::Slow(200));
    appliance.edit_config(|config| {
        config["limits"]["metadata_timeout_s"] = json!(10);
        config["limits"]["stall_timeout_s"] = json!(5);
        config["limits"]["min_bytes_per_s"] = json!(5000);
    });
    appliance.source(&slow.url);
    appliance.refuses(&["apply"], 1, &["timestamp.json", "timed out"]);
    appliance.source(&slow_artifacts.url);
    appliance.refuses(
        &["apply"],
        1,
        &[".tar.gz", "slower than 5000 bytes per second"],
    );
    // Two more tries, each of which got a little further.
    let asked = slow_artifacts.asked();
    assert_eq!(asked.iter().filter(|r| r.is_artifact()).count(), 3);
    // Slow, and fast enough.
    appliance.edit_config(|config| {
        config["limits"]["metadata_timeout_s"] = json!(60);
        config["limits"]["stall_timeout_s"] = json!(30);
        config["limits"]["min_bytes_per_s"] = json!(100);
    });
    appliance.source(&steady.url);
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
}
