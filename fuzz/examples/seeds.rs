//! Writes the seeds of the fuzz targets: `cargo run --example seeds`, in this folder. They are kept in the repository.

use std::fs;
use std::path::Path;

use qx_publish::pem;
use qx_release::trust::signing::Sign;
use qx_release::trust::{Role, canonical};
use qx_update::model::config::Config;
use qx_update::model::record::{self, Record};
use qx_update::model::slot::Installed;
use qx_update_fuzz::{
    ALIAS, DAMAGED, HONEST, OTHER, SIGN, delegations, honest, honest_file, key, key_objects,
    speakers,
};
use serde_json::{Value, json};

fn main() {
    files();
    archives();
    for role in Role::ALL {
        seed(role.as_str(), "received", &honest_file(role, 2));
        let text = honest(role, 2).to_string();
        for (name, slots) in [
            ("signed", HONEST),
            ("p256", [SIGN, SIGN | 4, 0, 0]),
            ("alias", [SIGN, SIGN | ALIAS, 0, 0]),
            ("outsiders", [SIGN, SIGN | 2, SIGN | 3, 0]),
            ("damaged", [SIGN, DAMAGED | 1, OTHER | 4, 0]),
        ] {
            seed(role.as_str(), name, &frame(slots, &text));
        }
    }
    let mut rotated = honest(Role::Root, 2);
    rotated["roles"]["root"] = json!({"keyids": ["k0", "k2"], "threshold": 2});
    seed(
        "root",
        "rotated",
        &frame([SIGN, SIGN | 1, SIGN | 2, 0], &rotated.to_string()),
    );

    let targets = |names: &[&str], delegations: Option<Value>| {
        let mut signed = honest(Role::Targets, 2);
        signed["targets"] = names
            .iter()
            .map(|name| (name.to_string(), json!({"length": 1, "hashes": {}})))
            .collect();
        signed["delegations"] = delegations.unwrap_or_default();
        if signed["delegations"].is_null() {
            signed.as_object_mut().unwrap().remove("delegations");
        }
        signed.to_string()
    };
    let mut bins = speakers();
    bins["bit_length"] = json!(1);
    bins["name_prefix"] = json!("bin");
    let bins = json!({"keys": key_objects(), "succinct_roles": bins});
    let mut prefixes = delegations("hashed", &[], true);
    prefixes["roles"][0]
        .as_object_mut()
        .unwrap()
        .remove("paths");
    prefixes["roles"][0]["path_hash_prefixes"] = json!(["", "c1"]);
    let nested = [
        targets(&["x"], Some(delegations("team", &["team/*", "*/b"], false))),
        "team\n".to_owned() + &targets(&["team/y"], Some(delegations("inner", &["*/[a-z]"], true))),
        "inner\n".to_owned()
            + &targets(
                &["team/x", "a/b"],
                Some(delegations("team", &["*/*"], false)),
            ),
    ];
    seed("delegated", "nested", &frame(HONEST, &nested.join("\x1e")));
    for (name, delegations, role) in [("bins", bins, "bin-0"), ("prefixes", prefixes, "hashed")] {
        let parts = [
            targets(&[], Some(delegations)),
            format!("{role}\n{}", targets(&["a/b", "team/x"], None)),
        ];
        seed("delegated", name, &frame(HONEST, &parts.join("\x1e")));
    }

    seed(
        "canonical",
        "metadata",
        honest(Role::Timestamp, 1).to_string().as_bytes(),
    );
    seed(
        "canonical",
        "texts",
        r#" { "b" : [ 1 , -2 , true, null ], "a\"\\\u0062\u00e9\ud83d\ude00\n" : {"":[]} } "#
            .as_bytes(),
    );
    seed(
        "canonical",
        "numbers",
        b"[-0,18446744073709551615,-9223372036854775808,1.0]",
    );

    seed(
        "canonical",
        "order",
        "{\"\u{1f600}\":1,\"\u{ff61}\":2,\"Z\":3,\"a\":4}".as_bytes(),
    );

    for (name, number) in [("ed25519", 0), ("p256", 4)] {
        let public = key(number).public();
        seed("key", name, public.to_string().as_bytes());
        seed(
            "key",
            &format!("{name}-public"),
            pem::write_public(&public).unwrap().as_bytes(),
        );
        seed(
            "key",
            &format!("{name}-private"),
            pem::write_private(key(number), None).unwrap().as_bytes(),
        );
        let mut signature = vec![u8::try_from(number).unwrap()];
        signature.extend(key(number).sign(b"message").unwrap());
        seed("signature", name, &signature);
    }

    for (name, text) in [
        ("path", "app/1.0/release.json"),
        ("up", "a/../b"),
        ("role", "team/ \u{e9}"),
        ("pattern", "a/[!b-d]?*\na/xyz"),
    ] {
        seed("name", name, text.as_bytes());
    }
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let component = |name: &str, kind: &str, path: &str| {
        json!({"name": name, "kind": kind, "install_path": path, "mode": "0755", "sha256": digest, "size_bytes": 3, "entries": 1,
            "artifact": format!("app/{name}")})
    };
    let manifest = json!({
        "format": 1, "product": "p", "version": "1.2.3", "arch": "x86_64", "channel": "stable", "released": "2026-01-01T00:00:00Z",
        "components": [component("app", "bin", "bin/app"), component("web", "tree", "share/web"), component("mig", "tree", "migrations")],
        "removed": ["bin/old"],
        "services": [{"name": "app", "runs": "bin/app", "uses": ["web"], "order": 1}],
        "data": [{"name": "db", "accepts_from": 1, "accepts_to": 2, "schema_after": 2}],
        "migrate": {"run": ["migrations/up", "--now"], "timeout_s": 60, "touches": ["db"]},
        "health": [{"type": "http", "url": "http://127.0.0.1/", "json": {"pointer": "/version", "equals": "1"}},
            {"type": "tcp", "address": "127.0.0.1:80"}, {"type": "exec", "run": ["bin/app", "check"]}, {"type": "service", "service": "app"}],
    });
    seed("manifest", "whole", manifest.to_string().as_bytes());
    seed(
        "manifest",
        "canonical",
        &canonical::canonical(&manifest).unwrap(),
    );

    for (name, path) in [
        ("short", "metadata/1.root.json".to_owned()),
        ("long", format!("targets/{}", "x/".repeat(60) + "y")),
    ] {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in [(path.as_str(), &b"bytes"[..]), ("./other", b"")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, bytes).unwrap();
        }
        if name == "long" {
            archive
                .append_pax_extensions([("path", &b"pax/name"[..])])
                .unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_path("ustar").unwrap();
            header.set_size(1);
            header.set_cksum();
            archive.append(&header, &b"u"[..]).unwrap();
        }
        seed("bundle", name, &archive.into_inner().unwrap());
    }
}

/// What the targets for files of the appliance and of the publisher start from, and for what servers and `/proc` say.
fn files() {
    let config = json!({
        "format": 1, "product": "p", "channel": "stable", "sources": ["https://updates.test/p", "/media/usb/p.bundle"],
        "services": {"manager": "openrc"}, "limits": {"retries": 2},
        "data": [{"name": "db", "method": "files", "place": "/data/db", "schema": ["/usr/bin/db-version"]}],
        "proxy": {"url": "http://proxy.test:3128", "no_proxy": ["10.0.0.0/8"]}, "headers_file": "/etc/qx-update/headers",
    });
    seed("config", "whole", config.to_string().as_bytes());
    let recipe = json!({
        "format": 1, "product": "p", "version": "1.2.3", "arch": "x86_64",
        "components": [{"name": "app", "kind": "bin", "install_path": "bin/app", "source": "app", "capabilities": ["cap_net_raw"]}],
        "services": [{"name": "app", "runs": "bin/app", "order": 1}],
        "health": [{"type": "tcp", "address": "127.0.0.1:80"}],
    });
    seed("recipe", "whole", recipe.to_string().as_bytes());
    Config::parse(config.to_string().as_bytes()).unwrap();
    qx_publish::check_recipe(recipe.to_string().as_bytes()).unwrap();
    let record = Record::idle(Installed::unknown_factory(), None, "2026-01-01T00:00:00Z");
    let record = record::encode(&record, 7).unwrap();
    let line = record.split(|byte| *byte == b'\n').next().unwrap();
    seed("record", "whole", &[&[0], &record[..]].concat());
    seed("record", "line", &[&[1], line].concat());
    seed(
        "headers",
        "whole",
        b"# secrets\nAuthorization: Bearer a:b\r\nX-Fleet: north\n",
    );
    let answers: [(&str, &str); 6] = [
        (
            "length",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes",
        ),
        (
            "chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nbytes\r\n0\r\nT: t\r\n\r\n",
        ),
        (
            "range",
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/5\r\n\r\ntes",
        ),
        (
            "redirect",
            "HTTP/1.1 302 Found\r\nLocation: /a/../b?c#d\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "early",
            "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\n",
        ),
        (
            "gzip",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\u{1f}",
        ),
    ];
    for (name, answer) in answers {
        for first in 0..3u8 {
            let name = format!("{name}-{first}");
            seed("http", &name, &[&[first], answer.as_bytes()].concat());
        }
    }
    for (name, text) in [
        (
            "stat",
            "1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 5 1000 100 18446744073709551615 1 1\n",
        ),
        (
            "status",
            "Name:\tinit\nState:\tS (sleeping)\nSigPnd:\t0000000000000100\nPPid:\t0\n",
        ),
        ("environ", "PATH=/bin\0QX_UPDATE_SERVICE=node\0"),
        ("cgroup", "0::/openrc.node\n1:name=openrc:/node\n"),
        (
            "mountinfo",
            "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
        ),
        (
            "maps",
            "00400000-00452000 r-xp 00000000 08:02 173521 /data/slots/a/bin/app (deleted)\n",
        ),
        (
            "tcp",
            "  sl  local_address rem_address   st\n   0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1234 1\n",
        ),
        ("locks", "1: FLOCK  ADVISORY  WRITE 712 08:01:46 0 EOF\n"),
    ] {
        seed("proc", name, text.as_bytes());
    }
}

/// Archives of one program, of a tree with a link, and of what must be refused.
fn archives() {
    type Entry<'a> = (tar::EntryType, &'a str, &'a str);
    use tar::EntryType as Is;
    let cases: [(&str, u8, u8, &[Entry]); 5] = [
        ("bin", 0, 1, &[(Is::Regular, "bin/app", "12345678")]),
        (
            "tree",
            1,
            4,
            &[
                (Is::Directory, "share/web/", ""),
                (Is::Directory, "share/web/a/", ""),
                (Is::Regular, "share/web/a/b", "12345678"),
                (Is::Symlink, "share/web/c", "a/b"),
            ],
        ),
        (
            "link",
            1,
            3,
            &[
                (Is::Symlink, "share/web/a", ".."),
                (Is::Regular, "share/web/a/x", "12345678"),
            ],
        ),
        (
            "hard",
            1,
            3,
            &[
                (Is::Regular, "share/web/a", "12345678"),
                (Is::Link, "share/web/b", "share/web/a"),
            ],
        ),
        (
            "device",
            1,
            2,
            &[
                (Is::Char, "share/web/null", ""),
                (Is::Fifo, "share/web/pipe", ""),
            ],
        ),
    ];
    for (name, kind, entries, content) in cases {
        let mut archive = tar::Builder::new(Vec::new());
        for (kind, path, text) in content {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            match kind {
                Is::Regular => {
                    header.set_size(text.len() as u64);
                    archive
                        .append_data(&mut header, path, text.as_bytes())
                        .unwrap();
                }
                Is::Symlink | Is::Link => archive.append_link(&mut header, path, text).unwrap(),
                _ => archive.append_data(&mut header, path, &b""[..]).unwrap(),
            }
        }
        let tar = archive.into_inner().unwrap();
        seed("archive", name, &[&[kind, entries, 1], &tar[..]].concat());
    }
}

fn frame(slots: [u8; 4], text: &str) -> Vec<u8> {
    [&slots, text.as_bytes()].concat()
}

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(format!("seed-{name}")), bytes).unwrap();
}
