//! Black-box tests of the real `qx-publish`: what it publishes, what it refuses, and what a reader sees.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use qx_release::digest::{Digest, TreeDigest, TreeEntry};
use qx_release::error::Exit;
use qx_release::manifest::{Kind, Manifest, Name};
use qx_release::offer::Offer;
use qx_release::trust::Limits;
use qx_release::trust::clock::Clock;
use qx_update::fetch::{Options, Source};
use qx_update::repository::{Repository, Wanted};
use serde_json::{Value, json};

use super::work::{Directory, Ended, RELEASE, Work, elf};
use crate::common::temporary;

/// A repository, its keys, and the files of a release.
struct Place(Work);

impl Deref for Place {
    type Target = Work;

    fn deref(&self) -> &Work {
        &self.0
    }
}

impl Place {
    fn new() -> Place {
        Place(Work::in_directory(temporary("qx-publish-")))
    }

    /// With a repository, its keys, and the files of a release.
    fn ready() -> Place {
        let place = Place::new();
        place.sources();
        place.init();
        place
    }

    /// A service's program, a tree with a link, and migrations with a script.
    fn sources(&self) {
        self.file("src/controlplane", elf(62, b"control plane"), 0o755);
        self.file("src/dashboard/index.html", b"<html>", 0o644);
        self.file("src/dashboard/css/a.css", b"a {}", 0o644);
        self.file("src/dashboard/css.txt", b"", 0o600);
        symlink("css/a.css", self.path("src/dashboard/style")).unwrap();
        self.file("src/migrations/migrate", b"#!/bin/sh\n", 0o755);
        for dir in ["src/dashboard", "src/dashboard/css", "src/migrations"] {
            fs::set_permissions(self.path(dir), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// Writes `src/recipe.json`, changed from a good one.
    fn recipe(&self, version: &str, change: impl FnOnce(&mut Value)) {
        let mut recipe = json!({
            "format": 1, "product": "vdc", "version": version, "arch": "x86_64",
            "release_notes": "Better.",
            "components": [
                {"name": "controlplane", "kind": "bin", "install_path": "bin/qx-controlplane", "source": "controlplane"},
                {"name": "dashboard", "kind": "tree", "install_path": "share/vdc/dashboard", "source": "dashboard"},
                {"name": "migrations", "kind": "tree", "install_path": "migrations", "source": "migrations"},
            ],
            "services": [{"name": "quantix-controlplane", "runs": "bin/qx-controlplane", "uses": ["dashboard"]}],
            "data": [{"name": "main", "accepts_from": 1, "accepts_to": 2, "schema_after": 2}],
            "migrate": {"run": ["migrations/migrate", "up", "{data:main}"], "timeout_s": 60, "touches": ["main"]},
            "health": [{"type": "http", "url": "http://127.0.0.1:8080/health", "json": {"pointer": "/version", "equals": version}}],
        });
        change(&mut recipe);
        fs::write(self.path("src/recipe.json"), recipe.to_string()).unwrap();
    }

    /// Runs it, and expects one line of error and nothing changed in the repository.
    #[track_caller]
    fn fails(&self, arguments: &[&str], exit: Exit) -> String {
        self.bad(exit.code().into(), arguments)
    }

    fn release(&self) -> String {
        self.succeeds(RELEASE)
    }

    fn root(&self) -> Vec<u8> {
        fs::read(self.path("repo/metadata/1.root.json")).unwrap()
    }

    /// Reads the repository as an appliance does that has never seen it.
    fn appliance(&self, store: &str) -> Repository {
        let _ = fs::remove_dir_all(self.path(store));
        Repository::refresh(
            &self.directory(),
            &self.path(store),
            &self.root(),
            clock(),
            &Limits::default(),
        )
        .unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    fn directory(&self) -> Directory {
        Directory(self.path("repo"))
    }

    /// All releases: an appliance that there is none for is told of the others.
    fn offers(&self, repository: &Repository) -> Vec<Offer> {
        let nobody: Name = "nobody".parse().unwrap();
        let wanted = Wanted {
            product: &nobody,
            channel: &nobody,
            arch: &nobody,
            version: None,
        };
        let found = repository.releases(&self.directory(), &wanted).unwrap();
        assert!(found.left_out.is_empty(), "{:?}", found.left_out);
        found.offers
    }

    fn manifests(&self) -> Vec<Manifest> {
        let repository = self.appliance("store");
        let offers = self.offers(&repository);
        let read = |offer| {
            repository
                .manifest(&self.directory(), offer)
                .unwrap()
                .unwrap()
                .manifest
        };
        offers.iter().map(read).collect()
    }
}

const FACTORY: &[&str] = &["factory", "src/recipe.json", "--out", "factory.json"];

fn clock() -> Clock {
    Clock::new(SystemTime::now(), SystemTime::now())
}

/// Intent: a script tells wrong usage from failure by exit code 2 or 1, answers are on standard output and errors on
/// standard error, and none of these attempts leaves a file.
#[test]
fn usage_is_told_by_the_exit_code() {
    let place = Place::new();
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["--help"], 0),
        (&["release", "--help"], 0),
        (&[], 2),
        (&["no-such-command"], 2),
        (&["init", "--repo", "r", "--keys", "k"], 2),
        (
            &["init", "--repo", "r", "--keys", "k", "--product", "../x"],
            2,
        ),
        (&["inspect", "--repo"], 2),
        (&["inspect", "--repo", "nowhere"], 1),
    ] {
        let Ended {
            code: got,
            out,
            err,
        } = place.run(arguments);
        assert_eq!(got, code, "{arguments:?} {out}{err}");
        assert_eq!(out.is_empty(), code != 0, "{arguments:?} {out}");
        assert_eq!(err.is_empty(), code == 0, "{arguments:?} {err}");
    }
    assert!(place.tree("").is_empty());
}

/// Intent: a new repository can be served to appliances at once, and its private keys are for their owner's eyes only.
#[test]
fn init_makes_private_keys_and_a_repository_that_appliances_can_read() {
    let place = Place::new();
    let init = [
        "init",
        "--repo",
        "repo",
        "--keys",
        "keys",
        "--product",
        "vdc",
    ];
    let out = place.succeeds(&init);
    assert!(out.contains("repo/metadata/1.root.json"), "{out}");
    let tree = place.tree("");
    for (name, (mode, bytes)) in &tree {
        let expected = match name.as_str() {
            "keys" => 0o700,
            _ if name.ends_with(".pub.pem") => 0o644,
            _ if name.starts_with("keys/") => 0o600,
            "repo" | "repo/metadata" | "repo/targets" => 0o755,
            _ => 0o644,
        };
        assert_eq!(mode & 0o777, expected, "{name}");
        let start: &[u8] = match name.as_str() {
            _ if name.ends_with(".pub.pem") => b"-----BEGIN PUBLIC KEY-----\n",
            _ if name.starts_with("keys/") => b"-----BEGIN PRIVATE KEY-----\n",
            _ => b"",
        };
        assert!(bytes.starts_with(start), "{name}");
    }
    for key in ["root", "timestamp", "snapshot", "targets"] {
        assert!(tree.contains_key(&format!("keys/{key}.pem")), "{key}");
    }
    assert!(place.offers(&place.appliance("store")).is_empty());
    let shown = place.succeeds(&["inspect", "--repo", "repo"]);
    assert!(shown.contains("no releases"), "{shown}");
}

/// Intent: a second `init` destroys neither a repository nor keys, and no private key is put where a server would hand
/// it out: either loss would be for ever.
#[test]
fn init_overwrites_nothing_and_keeps_keys_out_of_the_repository() {
    let place = Place::ready();
    let keys = place.tree("keys");
    let init = |repo, keys, exit| {
        place.fails(
            &["init", "--repo", repo, "--keys", keys, "--product", "vdc"],
            exit,
        )
    };
    assert!(init("repo", "others", Exit::Failed).contains("not empty"));
    assert!(init("other", "keys", Exit::Failed).contains("keys/root.pem"));
    assert!(init("other", "other/keys", Exit::Usage).contains("private keys"));
    assert_eq!(place.tree("keys"), keys);
    assert!(!place.path("other").exists());
}

/// Intent: an appliance reads a manifest that says what the recipe said, with the digests of the very files, and
/// archives that hold just these files below their install path, owned by root and without times.
#[test]
fn a_release_arrives_as_it_was_described() {
    let place = Place::ready();
    place.recipe("1.2.0", |_| {});
    let out = place.release();
    assert!(
        out.contains("vdc/stable/x86_64/1.2.0/release.json"),
        "{out}"
    );
    let [manifest] = &place.manifests()[..] else {
        panic!("{out}")
    };
    assert_eq!(manifest.version.to_string(), "1.2.0");
    assert_eq!(manifest.release_notes, "Better.");
    assert_eq!(manifest.services[0].name.as_str(), "quantix-controlplane");
    assert_eq!(
        manifest.migrate.as_ref().unwrap().run,
        ["migrations/migrate", "up", "{data:main}"]
    );
    let program = elf(62, b"control plane");
    let bin = manifest
        .component(&"controlplane".parse().unwrap())
        .unwrap();
    assert_eq!((bin.kind, bin.entries), (Kind::Bin, 1));
    assert_eq!(
        (bin.sha256, bin.size_bytes),
        (Digest::of(&program), program.len() as u64)
    );
    let mut expected = TreeDigest::default();
    expected.add(".", TreeEntry::Directory(0o755));
    expected.add("css", TreeEntry::Directory(0o755));
    expected.add("css/a.css", TreeEntry::File(0o644, 4, Digest::of(b"a {}")));
    expected.add("css.txt", TreeEntry::File(0o600, 0, Digest::of(b"")));
    expected.add(
        "index.html",
        TreeEntry::File(0o644, 6, Digest::of(b"<html>")),
    );
    expected.add("style", TreeEntry::Link("css/a.css".into()));
    let tree = manifest.component(&"dashboard".parse().unwrap()).unwrap();
    assert_eq!(
        (tree.sha256, tree.size_bytes, tree.entries),
        expected.finish()
    );
    // What appliances measure when the very same files lie on their disk.
    let measured = qx_release::tree::measure(Kind::Tree, &place.path("src/dashboard")).unwrap();
    assert_eq!(measured.digest, tree.sha256);
    // The archive holds what the manifest says, below the install path, owned by nobody in particular.
    let repository = place.appliance("store");
    let name = tree.artifact.as_ref().unwrap();
    let target = repository.target(&place.directory(), name);
    let target = target.unwrap().unwrap();
    let bytes = fs::read(place.path("repo").join(&target.path)).unwrap();
    assert_eq!(
        (bytes.len() as u64, Digest::of(&bytes)),
        (target.length, target.sha256)
    );
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
    let mut names = vec![];
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        let owner = (
            header.uid().unwrap(),
            header.gid().unwrap(),
            header.mtime().unwrap(),
        );
        assert_eq!(owner, (0, 0, 0));
        names.push(entry.path().unwrap().display().to_string());
    }
    let expected = [
        "",
        "/css",
        "/css.txt",
        "/css/a.css",
        "/index.html",
        "/style",
    ];
    assert_eq!(
        names,
        expected.map(|name| format!("share/vdc/dashboard{name}"))
    );
}

/// Intent: whoever builds the same files again, elsewhere and later, gets the same manifest and archives, so that a
/// release can be checked by building it.
#[test]
fn the_same_input_makes_the_same_bytes() {
    let published = |touch: bool| {
        let place = Place::ready();
        if touch {
            // The same files, made in another order, at another time, at another place.
            fs::remove_dir_all(place.path("src")).unwrap();
            crate::common::create_dir(place.path("src/dashboard/css")).unwrap();
            fs::write(place.path("src/dashboard/index.html"), "").unwrap();
            place.sources();
            let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
            for file in ["src/controlplane", "src/dashboard/index.html"] {
                fs::File::options()
                    .write(true)
                    .open(place.path(file))
                    .unwrap()
                    .set_modified(old)
                    .unwrap();
            }
        }
        place.recipe("1.0.0", |_| {});
        let status = place
            .command(RELEASE)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        place.tree("repo/targets")
    };
    let (one, other) = (published(false), published(true));
    assert_eq!(
        one.keys().collect::<Vec<_>>(),
        other.keys().collect::<Vec<_>>()
    );
    assert!(one == other);
    assert_eq!(
        one.values().filter(|(_, bytes)| !bytes.is_empty()).count(),
        4
    );
}

/// Intent: a version that appliances may have installed is never published again with another content; another channel
/// or version is another release.
#[test]
fn a_published_version_never_changes() {
    let place = Place::ready();
    place.recipe("1.0.0", |_| {});
    place.release();
    place.file("src/controlplane", elf(62, b"another"), 0o755);
    let error = place.fails(RELEASE, Exit::Failed);
    assert!(
        error.contains("vdc 1.0.0 for x86_64 is already published on stable"),
        "{error}"
    );
    // On another channel, for another architecture, or as another version it is another release.
    let mut beta = RELEASE.to_vec();
    beta.extend(["--channel", "beta"]);
    place.succeeds(&beta);
    place.recipe("1.0.1", |_| {});
    place.release();
    assert_eq!(place.manifests().len(), 3);
}

/// Intent: a component that is as it was is not stored or downloaded again, and one whose mode alone changed is another
/// artifact: older releases keep theirs.
#[test]
fn what_did_not_change_is_published_once() {
    let place = Place::ready();
    place.recipe("1.0.0", |_| {});
    place.release();
    place.recipe("1.1.0", |_| {});
    let out = place.release();
    assert!(out.contains(", 0 of them new"), "{out}");
    let [old, new] = &place.manifests()[..] else {
        panic!("{out}")
    };
    assert_eq!(old.components, new.components);
    // With another mode the same bytes are another artifact, and the first one stays as it is.
    place.recipe("1.2.0", |r| r["components"][0]["mode"] = json!("0700"));
    place.release();
    let manifests = place.manifests();
    let artifact = |i: usize| manifests[i].components[0].artifact.clone().unwrap();
    assert_eq!(
        manifests[0].components[0].sha256,
        manifests[2].components[0].sha256
    );
    assert_eq!(artifact(0), artifact(1));
    assert_ne!(artifact(0), artifact(2));
    place.succeeds(&["inspect", "--repo", "repo"]);
}

/// Intent: a component that is missing, not executable, of another architecture, or of a kind that no appliance would
/// install is found when the release is made, by name, and the repository stays as it was.
#[test]
fn no_partial_or_unfit_set_is_published() {
    type Change = fn(&Place, &mut Value);
    let cases: &[(&str, &str, Change)] = &[
        ("controlplane", "No such file", |p, _| {
            fs::remove_file(p.path("src/controlplane")).unwrap();
        }),
        ("controlplane", "not executable", |p, _| {
            p.file("src/controlplane", elf(62, b""), 0o644);
        }),
        (
            "controlplane",
            "built for aarch64, but the recipe is for x86_64",
            |p, _| {
                p.file("src/controlplane", elf(183, b""), 0o755);
            },
        ),
        (
            "controlplane",
            "neither an ELF program nor a script",
            |p, _| {
                p.file("src/controlplane", b"", 0o755);
            },
        ),
        ("controlplane", "does not name its interpreter", |p, _| {
            p.file("src/controlplane", b"#!sh\n", 0o755);
        }),
        ("dashboard", "No such file", |_, r| {
            r["services"][0]["runs"] = json!("share/vdc/dashboard/bin/server");
            r["components"][0]["tool"] = json!(true);
        }),
        ("dashboard", "not executable", |p, r| {
            p.file("src/dashboard/server", b"#!/bin/sh\n", 0o644);
            r["services"][0]["runs"] = json!("share/vdc/dashboard/server");
            r["components"][0]["tool"] = json!(true);
        }),
        ("controlplane", "not a regular file", |_, r| {
            r["components"][0]["source"] = json!("dashboard")
        }),
        ("controlplane", "nothing uses it", |_, r| {
            r["services"] = json!([])
        }),
        ("helper", "not marked", |p, r| {
            p.file("src/helper", b"#!/bin/sh\n", 0o755);
            let helper = json!({"name": "helper", "kind": "bin", "install_path": "bin/helper", "source": "helper"});
            r["components"].as_array_mut().unwrap().push(helper);
            r["services"][0]["uses"] = json!(["helper"]);
        }),
        ("dashboard", "No such file", |_, r| {
            r["components"][1]["source"] = json!("nowhere")
        }),
        ("dashboard", "not a directory", |_, r| {
            r["components"][1]["source"] = json!("controlplane")
        }),
        ("dashboard", "outside of the component", |p, _| {
            symlink("../../etc", p.path("src/dashboard/css/out")).unwrap();
        }),
        ("dashboard", "outside of the component", |p, _| {
            symlink("/etc/passwd", p.path("src/dashboard/out")).unwrap();
        }),
        ("dashboard", "setuid", |p, _| {
            p.file("src/dashboard/su", b"", 0o4755);
        }),
        ("dashboard", "neither a file nor", |p, _| {
            let path = p.path("src/dashboard/socket");
            drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        }),
        ("dashboard", "control character", |p, _| {
            p.file("src/dashboard/a\nb", b"", 0o644);
        }),
        ("migrations", "No such file", |_, r| {
            r["migrate"]["run"] = json!(["migrations/other", "{data:main}"])
        }),
        ("migrations", "not executable", |p, _| {
            p.file("src/migrations/migrate", b"#!/bin/sh\n", 0o644);
        }),
        ("migrations", "No such file", |_, r| {
            r["migrate"]["check"] = json!(["migrations/other"])
        }),
        ("migrations", "not executable", |p, r| {
            p.file("src/migrations/down", b"#!/bin/sh\n", 0o644);
            r["data"][0]["schema_down"] = json!(1);
            r["migrate"]["down"] = json!(["migrations/down", "{data:main}"]);
        }),
    ];
    for (component, why, change) in cases {
        let place = Place::ready();
        place.recipe("1.0.0", |_| {});
        place.release();
        place.recipe("1.1.0", |recipe| change(&place, recipe));
        let error = place.fails(RELEASE, Exit::Failed);
        assert!(
            error.contains(&format!("component {component}: ")),
            "{why}: {error}"
        );
        assert!(error.contains(why), "{why}: {error}");
    }
}

/// Intent: a mistake in a recipe, an unknown field or placeholder included, is wrong usage that names the field, and
/// publishes nothing: a misspelt check would otherwise silently check nothing.
#[test]
fn a_wrong_recipe_is_named_with_its_field() {
    let place = Place::ready();
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("unknown field `colour`", |r| r["colour"] = json!(1)),
        ("unknown field `permissions`", |r| {
            r["components"][0]["permissions"] = json!("0755")
        }),
        ("unknown field `services[0].restart`", |r| {
            r["services"][0]["restart"] = json!(true)
        }),
        ("unknown field `health[0].json.is`", |r| {
            r["health"][0]["json"]["is"] = json!(1)
        }),
        ("unknown field `migrate.timeout`", |r| {
            r["migrate"]["timeout"] = json!(1)
        }),
        ("missing field `version`", |r| {
            r.as_object_mut().unwrap().remove("version");
        }),
        ("format 2", |r| r["format"] = json!(2)),
        ("arch: 'pdp11'", |r| r["arch"] = json!("pdp11")),
        ("mode", |r| r["components"][0]["mode"] = json!("4755")),
        ("relative path", |r| {
            r["components"][0]["install_path"] = json!("../bin/x")
        }),
        ("not below bin/", |r| {
            r["components"][0]["install_path"] = json!("etc/x")
        }),
        ("overlap", |r| {
            r["components"][0]["install_path"] = json!("share/vdc/dashboard/x")
        }),
        ("neither a bin component", |r| {
            r["services"][0]["runs"] = json!("bin/other")
        }),
        ("nor inside a tree", |r| {
            r["services"][0]["runs"] = json!("share/vdc/dashboard")
        }),
        ("no component of this release contains bin/other", |r| {
            r["migrate"]["run"] = json!(["bin/other", "{data:main}"])
        }),
        ("{data:main} is missing", |r| {
            r["migrate"]["run"] = json!(["migrations/migrate"])
        }),
        ("migrate.down needs `schema_down`", |r| {
            r["migrate"]["down"] = json!(["migrations/migrate", "{data:main}"])
        }),
        (
            "schema_after is 3, which the release itself does not accept",
            |r| r["data"][0]["schema_after"] = json!(3),
        ),
        ("migrate.touches: other is not in data", |r| {
            r["migrate"]["touches"] = json!(["main", "other"])
        }),
        ("watch.for_s", |r| r["watch"] = json!({"for_s": 90_000})),
        ("unknown field `watch.seconds`", |r| {
            r["watch"] = json!({"seconds": 1})
        }),
        ("is for other", |r| r["product"] = json!("other")),
        ("release_notes: unknown placeholder '{verison}'", |r| {
            r["release_notes"] = json!("This is {verison}.")
        }),
        ("health[0].url: unknown placeholder '{ version }'", |r| {
            r["health"][0]["url"] = json!("http://127.0.0.1/{ version }")
        }),
        ("health[0].json.pointer: unknown placeholder '{x}'", |r| {
            r["health"][0]["json"]["pointer"] = json!("/{x}")
        }),
        (
            "health[0].json.equals: unknown placeholder '{data:main}'",
            |r| r["health"][0]["json"]["equals"] = json!([{"at": "{data:main}"}]),
        ),
        ("health[0].address: unknown placeholder '{Version}'", |r| {
            r["health"][0] = json!({"type": "tcp", "address": "{Version}:80"})
        }),
        ("health[0].run: unknown placeholder '{version_}'", |r| {
            r["health"][0] = json!({"type": "exec", "run": ["migrations/migrate", "{version_}"]})
        }),
        ("http://127.0.0.1:808O/h", |r| {
            r["health"][0] = json!({"type": "http", "url": "http://127.0.0.1:808O/h"})
        }),
        ("'http://h/health check'", |r| {
            r["health"][0] = json!({"type": "http", "url": "http://h/health check"})
        }),
        (
            "unix:/run/app.sock",
            |r| r["health"][0] = json!({"type": "http", "url": "http://unix:/run/app.sock:/h"}),
        ),
        ("'http://…@h/'", |r| {
            r["health"][0] = json!({"type": "http", "url": "http://user:secret@h/"})
        }),
        ("is not an http:// URL", |r| {
            r["health"][0] = json!({"type": "http", "url": "https://h/"})
        }),
        ("'version' is not a JSON pointer", |r| {
            r["health"][0]["json"]["pointer"] = json!("version")
        }),
        ("'/a~2b' is not a JSON pointer", |r| {
            r["health"][0]["json"]["pointer"] = json!("/a~2b")
        }),
        ("'127.0.0.1:99999' is not HOST:PORT", |r| {
            r["health"][0] = json!({"type": "tcp", "address": "127.0.0.1:99999"})
        }),
        ("'127.0.0.1:0' is not HOST:PORT", |r| {
            r["health"][0] = json!({"type": "tcp", "address": "127.0.0.1:0"})
        }),
        ("'127.0.0.1:http' is not HOST:PORT", |r| {
            r["health"][0] = json!({"type": "tcp", "address": "127.0.0.1:http"})
        }),
        ("'[::1]' is not HOST:PORT", |r| {
            r["health"][0] = json!({"type": "tcp", "address": "[::1]"})
        }),
        ("nobody is not a service of this release", |r| {
            r["health"][0] = json!({"type": "service", "service": "nobody"})
        }),
        ("migrate.run: unknown placeholder '{datum:main}'", |r| {
            r["migrate"]["run"] = json!(["migrations/migrate", "{datum:main}"])
        }),
        ("migrate.check: unknown placeholder '{release}'", |r| {
            r["migrate"]["check"] = json!(["migrations/migrate", "{release}"])
        }),
        ("migrate.down: unknown placeholder '{release}'", |r| {
            r["migrate"]["down"] = json!(["migrations/migrate", "{release}"])
        }),
    ];
    for (why, change) in cases {
        place.recipe("1.0.0", change);
        let error = place.fails(RELEASE, Exit::Usage);
        assert!(
            error.contains(why) && error.contains("recipe"),
            "{why}: {error}"
        );
    }
    fs::remove_file(place.path("src/recipe.json")).unwrap();
    assert!(
        place
            .fails(RELEASE, Exit::Usage)
            .contains("src/recipe.json")
    );
}

/// Intent: one recipe serves every version: `{version}` is filled in wherever it may stand, and no manifest holds one.
#[test]
fn the_version_stands_where_the_recipe_leaves_room_for_it() {
    let place = Place::ready();
    let recipe = |version: &str| {
        place.recipe(version, |r| {
            // What is the default may be spelt out.
            r["data"][0]["accepts_unknown"] = json!(false);
            r["release_notes"] = json!("{version}, or { 1, 2 } {} {2,3} {version");
            r["data"][0]["schema_down"] = json!(1);
            r["migrate"] = json!({
                "run": ["migrations/migrate", "--to={version}", "{data:main}", "awk '{print $1}'"],
                "check": ["migrations/migrate", "{version}"],
                "down": ["migrations/migrate", "{version}{version}"],
                "timeout_s": 60, "touches": ["main"], "in_place": false,
            });
            r["health"] = json!([
                {"type": "http", "url": "http://127.0.0.1/{version}/health", "json": {"pointer": "/of/{version}", "equals": "v{version}"}},
                {"type": "http", "url": "http://127.0.0.1/", "json": {"pointer": "", "equals": {"version": "{version}", "{version}": [1, "{version}"]}}},
                {"type": "tcp", "address": "v{version}.local:80"},
                {"type": "exec", "run": ["migrations/migrate", "{version}"]},
            ]);
        });
    };
    recipe("1.0.0");
    place.succeeds(&["factory", "src/recipe.json", "--out", "factory.json"]);
    let factory = fs::read(place.path("factory.json")).unwrap();
    recipe("1.1.0-rc.1");
    place.release();
    let release = serde_json::to_vec(&place.manifests()[0]).unwrap();
    for (version, manifest) in [("1.0.0", factory), ("1.1.0-rc.1", release)] {
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert!(!manifest["health"].to_string().contains("{version}"));
        assert!(!manifest["migrate"].to_string().contains("{version}"));
        assert_eq!(
            manifest["release_notes"],
            format!("{version}, or {{ 1, 2 }} {{}} {{2,3}} {{version")
        );
        let migrate = &manifest["migrate"];
        assert_eq!(migrate["run"][1], format!("--to={version}"));
        assert_eq!(migrate["run"][2], "{data:main}");
        assert_eq!(migrate["run"][3], "awk '{print $1}'");
        assert_eq!(migrate["check"][1], version);
        assert_eq!(migrate["down"][1], format!("{version}{version}"));
        let health = &manifest["health"];
        let url = format!("http://127.0.0.1/{version}/health");
        assert_eq!(health[0]["url"], url);
        assert_eq!(health[0]["json"]["pointer"], format!("/of/{version}"));
        assert_eq!(health[0]["json"]["equals"], format!("v{version}"));
        let equals = &health[1]["json"]["equals"];
        assert_eq!(equals["version"], version);
        assert_eq!(equals[version], json!([1, version]));
        assert_eq!(health[2]["address"], format!("v{version}.local:80"));
        assert_eq!(health[3]["run"][1], version);
    }
}

/// Intent: no set is made whose checks can only pass for another version, be it newer or older: nobody could go to it.
#[test]
fn a_set_that_could_never_accept_itself_is_not_made() {
    let place = Place::ready();
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("1.1.0", |r| {
            r["health"][0]["json"]["equals"] = json!("1.1.0")
        }),
        ("0.9.0", |r| {
            r["health"][0]["json"]["equals"] = json!("0.9.0")
        }),
        ("1.0.0-rc.1", |r| {
            r["health"][0]["json"]["equals"] = json!("1.0.0-rc.1")
        }),
        (
            "v1.1.0",
            |r| {
                r["health"][0]["json"] = json!({"pointer": "/build/appVersion", "equals": "v1.1.0"})
            },
        ),
        (
            "/is/Version",
            |r| {
                r["health"][0]["json"] =
                    json!({"pointer": "/is", "equals": {"ok": true, "Version": "1.1.0"}})
            },
        ),
        ("health[1].json (http http://127.0.0.1:81/)", |r| {
            r["health"] = json!([
                {"type": "tcp", "address": "127.0.0.1:80"},
                {"type": "http", "url": "http://127.0.0.1:81/", "json": {"pointer": "/version", "equals": "1.1.0"}},
            ])
        }),
    ];
    for (named, change) in cases {
        place.recipe("1.0.0", change);
        for command in [RELEASE, FACTORY] {
            let error = place.fails(command, Exit::Usage);
            for word in [named, "1.0.0; use {version}", "health["] {
                assert!(error.contains(word), "{word}: {error}");
            }
        }
        assert!(!place.path("factory.json").exists());
    }
}

/// Intent: what may be right is published: a service's own version without a word, and what looks wrong with one line for
/// each place.
#[test]
fn another_version_that_may_be_right_is_a_warning() {
    let place = Place::ready();
    type Change = fn(&mut Value);
    let cases: &[(&[&str], Change)] = &[
        (&[], |r| {
            r["health"][0]["json"]["equals"] = json!("v1.0.0+7")
        }),
        (&[], |r| r["health"][0]["json"]["equals"] = json!("1.1")),
        (&[], |r| r["health"][0]["json"]["equals"] = json!(2)),
        (&[], |r| {
            r["health"][0]["json"]["equals"] = json!("2.15.1");
            r["health"][0]["service"] = json!("quantix-controlplane");
        }),
        (&[], |r| {
            r["release_notes"] = json!("Mends what 0.9.0 broke.");
            r["health"][0]["url"] = json!("http://127.0.0.1:8080/1.0.0/since/0.9.0");
        }),
        (&["health[1].json", "2.15.1"], |r| {
            let other = json!({"type": "http", "url": "http://127.0.0.1:81/", "json": {"pointer": "/version", "equals": "2.15.1"}});
            r["health"].as_array_mut().unwrap().push(other);
        }),
        (
            &["health[0].json", "1.1.0"],
            |r| {
                r["health"][0]["json"] =
                    json!({"pointer": "/is", "equals": "controlplane-1.1.0 runs"})
            },
        ),
        (&["health[0].url", "1.1.0"], |r| {
            r["health"][0]["url"] = json!("http://127.0.0.1:8080/v1.1.0/health")
        }),
        (
            &["health[0].run", "1.1.0"],
            |r| {
                r["health"][0] =
                    json!({"type": "exec", "run": ["migrations/migrate", "--expect=1.1.0\nx"]})
            },
        ),
    ];
    for (number, (words, change)) in cases.iter().enumerate() {
        place.recipe("1.0.0", change);
        let channel = format!("c{number}");
        let release = [RELEASE, &["--channel", &channel]].concat();
        for command in [&release[..], FACTORY] {
            let Ended { code, out, err } = place.run(command);
            assert_eq!(code, 0, "{out}{err}");
            assert_eq!(err.lines().count(), usize::from(!words.is_empty()), "{err}");
            for word in *words {
                assert!(
                    err.starts_with("qx-publish: warning: ") && err.contains(word),
                    "{word}: {err}"
                );
            }
        }
    }
}

/// Intent: a release is refused if the keys given are another repository's, or if one of them cannot be read, and the
/// file or directory is named: appliances would trust nothing of it.
#[test]
fn only_the_repositorys_own_keys_publish() {
    let place = Place::ready();
    place.recipe("1.0.0", |_| {});
    place.succeeds(&[
        "init",
        "--repo",
        "repo2",
        "--keys",
        "keys2",
        "--product",
        "vdc",
    ]);
    let mut release = RELEASE.to_vec();
    release[5] = "keys2";
    let error = place.fails(&release, Exit::Failed);
    assert!(
        error.contains("keys2 holds no key of the targets role"),
        "{error}"
    );
    fs::write(place.path("keys/snapshot.pem"), "no key").unwrap();
    let error = place.fails(RELEASE, Exit::Failed);
    assert!(error.contains("keys/snapshot.pem"), "{error}");
}

/// Intent: a publisher who releases onto metadata that somebody changed is refused with the file's name: signing anew
/// would make the forgery genuine.
#[test]
fn nothing_is_signed_on_top_of_what_was_tampered_with() {
    let place = Place::ready();
    place.recipe("1.0.0", |_| {});
    for file in [
        "1.root.json",
        "1.targets.json",
        "1.snapshot.json",
        "timestamp.json",
    ] {
        let path = place.path("repo/metadata").join(file);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, good.replace("\"version\":1", "\"version\":2")).unwrap();
        let error = place.fails(RELEASE, Exit::Failed);
        assert!(error.contains(file), "{error}");
        fs::write(&path, good).unwrap();
    }
    place.release();
}

/// Intent: a publisher that meets another one at work exits as busy and changes nothing, while readers go on; otherwise
/// one would publish over the other.
#[test]
fn two_publishers_do_not_run_at_once() {
    let place = Place::ready();
    place.recipe("1.0.0", |_| {});
    let held = fs::File::open(place.path("repo/metadata")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockShared).unwrap();
    let error = place.fails(RELEASE, Exit::Busy);
    assert!(error.contains("another qx-publish"), "{error}");
    // Readers are not kept out.
    place.succeeds(&["inspect", "--repo", "repo"]);
    // Not by closing it: a child of another test may have it open until it executes something else.
    rustix::fs::flock(&held, rustix::fs::FlockOperation::Unlock).unwrap();
    place.release();
}

/// Intent: what a publisher left half done is seen by no appliance, and the next release goes through and clears the
/// staging directory.
#[test]
fn what_an_interrupted_publisher_left_is_in_nobodys_way() {
    let place = Place::ready();
    place.recipe("1.0.0", |_| {});
    place.file("repo/.staging/controlplane.tar.gz", b"half", 0o600);
    place.file("repo/metadata/2.targets.json", b"left", 0o644);
    place.file("repo/metadata/2.snapshot.json.tmp~", b"left", 0o644);
    assert!(place.offers(&place.appliance("store")).is_empty());
    place.release();
    assert_eq!(place.manifests().len(), 1);
    assert!(!place.path("repo/.staging").exists());
}

/// Intent: an appliance that reads for the first time, at any moment while releases are published, sees only releases
/// whose manifest and artifacts are all there, and never fewer than before.
#[test]
fn a_reader_never_sees_a_part_of_a_publication() {
    let place = Place::ready();
    let done = AtomicBool::new(false);
    /// Lets the reader end, also when the publisher fails.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let publishing = Done(&done);
        let reader = scope.spawn(|| {
            let (mut rounds, mut seen) = (0, 0);
            loop {
                let last = done.load(Ordering::SeqCst);
                let repository = place.appliance("reader");
                let offers = place.offers(&repository);
                assert!(offers.len() >= seen);
                seen = offers.len();
                for offer in &offers {
                    let manifest = repository
                        .manifest(&place.directory(), offer)
                        .unwrap()
                        .unwrap()
                        .manifest;
                    for component in &manifest.components {
                        let name = component.artifact.as_ref().unwrap();
                        let target = repository.target(&place.directory(), name);
                        let target = target.unwrap().unwrap();
                        let bytes = fs::read(place.path("repo").join(target.path)).unwrap();
                        assert_eq!(Digest::of(&bytes), target.sha256);
                    }
                }
                rounds += 1;
                if last {
                    return (rounds, seen);
                }
            }
        });
        for version in 0..8 {
            place.file("src/controlplane", elf(62, &[version; 5000]), 0o755);
            place.recipe(&format!("1.{version}.0"), |_| {});
            place.release();
        }
        drop(publishing);
        let (rounds, seen) = reader.join().unwrap();
        assert_eq!(seen, 8);
        assert!(rounds > 1);
    });
}

/// Intent: a repository that nobody tended until appliances refused it is shown as expired to the publisher, and is
/// readable again after the next release.
#[test]
fn an_expired_repository_is_renewed_by_a_release() {
    let place = Place::new();
    place.sources();
    let year = Duration::from_secs(365 * 86_400);
    let past = SystemTime::now() - 2 * year;
    qx_publish::init(
        &place.path("repo"),
        &place.path("keys"),
        &"vdc".parse().unwrap(),
        1,
        None,
        past,
    )
    .unwrap();
    let refresh = || {
        let store = place.path("store");
        Repository::refresh(
            &place.directory(),
            &store,
            &place.root(),
            clock(),
            &Limits::default(),
        )
    };
    let error = refresh().err().unwrap();
    assert_eq!(error.exit(), Exit::Refused, "{}", error.chain());
    assert!(error.chain().contains("expired"), "{}", error.chain());
    let Ended {
        code,
        out: shown,
        err: warned,
    } = place.run(&["inspect", "--repo", "repo"]);
    assert_eq!(code, 0, "{warned}");
    assert_eq!(shown.matches("EXPIRED").count(), 3, "{shown}");
    assert_eq!(warned.lines().count(), 3, "{warned}");
    place.recipe("1.0.0", |_| {});
    place.release();
    assert_eq!(place.offers(&refresh().unwrap()).len(), 1);
    assert!(
        !place
            .succeeds(&["inspect", "--repo", "repo"])
            .contains("EXPIRED")
    );
}

/// Intent: a person or a script sees each role's version and all releases, ordered as versions and not as text, with
/// their components' sizes.
#[test]
fn inspect_shows_roles_and_releases() {
    let place = Place::ready();
    for version in ["1.10.0", "1.9.0"] {
        place.recipe(version, |_| {});
        place.release();
    }
    let shown: Value =
        serde_json::from_str(&place.succeeds(&["inspect", "--repo", "repo", "--json"])).unwrap();
    assert_eq!(shown["product"], "vdc");
    let roles: Vec<_> = shown["roles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["role"].as_str().unwrap(), r["version"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        roles,
        [
            ("root", 1),
            ("timestamp", 3),
            ("snapshot", 3),
            ("targets", 3)
        ]
    );
    let [old, new] = &shown["releases"].as_array().unwrap()[..] else {
        panic!("{shown}")
    };
    assert_eq!(
        (&old["version"], &new["version"]),
        (&json!("1.9.0"), &json!("1.10.0"))
    );
    assert_eq!(old["channel"], "stable");
    assert_eq!(old["components"].as_array().unwrap().len(), 3);
    assert_eq!(
        old["components"][0]["size_bytes"],
        elf(62, b"control plane").len()
    );
    let text = place.succeeds(&["inspect", "--repo", "repo"]);
    for word in ["vdc", "1.9.0", "1.10.0", "stable", "timestamp"] {
        assert!(text.contains(word), "{text}");
    }
}

/// Intent: an image build gets a factory manifest with the digests of the files that it has at hand, and none at all if
/// a file is missing: the appliance would otherwise find its own factory set damaged.
#[test]
fn a_factory_set_is_measured_where_the_build_has_it() {
    let place = Place::new();
    place.sources();
    place.recipe("1.0.0", |r| {
        r["components"][0]["factory_path"] = json!("/usr/local/bin/qx-controlplane");
    });
    let factory = ["factory", "src/recipe.json", "--out", "factory.json"];
    place.succeeds(&factory);
    let manifest = Manifest::parse(&fs::read(place.path("factory.json")).unwrap()).unwrap();
    assert_eq!(manifest.channel.as_str(), "factory");
    assert!(manifest.components.iter().all(|c| c.artifact.is_none()));
    let bin = &manifest.components[0];
    assert_eq!(
        bin.factory_path.as_deref(),
        Some("/usr/local/bin/qx-controlplane")
    );
    assert_eq!(bin.sha256, Digest::of(&elf(62, b"control plane")));
    let measured = qx_release::tree::measure(Kind::Tree, &place.path("src/dashboard")).unwrap();
    assert_eq!(manifest.components[1].sha256, measured.digest);
    fs::remove_file(place.path("src/controlplane")).unwrap();
    fs::remove_file(place.path("factory.json")).unwrap();
    let error = place.fails(&factory, Exit::Failed);
    assert!(error.contains("component controlplane"), "{error}");
    assert!(!place.path("factory.json").exists());
}

/// A running `qx-publish serve`, ended with the test.
struct Server(Child, String);

impl Server {
    fn start(place: &Place) -> Server {
        let mut child = place
            .command(&["serve", "--repo", "repo", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let address = line
            .trim_end()
            .strip_prefix("listening on http://")
            .unwrap();
        Server(child, address.to_owned())
    }

    /// Status line, headers and body.
    fn ask(&self, request: &str) -> (String, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.1).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = vec![];
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let (status, headers) = head.split_once("\r\n").unwrap();
        (
            status.to_owned(),
            format!("{headers}\r\n"),
            bytes[end + 4..].to_vec(),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Intent: an appliance can resume a download from `qx-publish serve`, and nobody gets a hidden file or one outside of
/// the repository by any spelling of a path or by a link.
#[test]
fn the_server_serves_ranges_and_nothing_outside() {
    let place = Place::ready();
    place.file("repo/x/f", b"0123456789", 0o644);
    place.file("repo/x/a b+c", b"space", 0o644);
    place.file("secret", b"secret", 0o644);
    place.file("repo/.hidden", b"hidden", 0o644);
    symlink("../../secret", place.path("repo/x/out")).unwrap();
    symlink("f", place.path("repo/x/in")).unwrap();
    let server = Server::start(&place);
    let get = |path: &str, headers: &str| {
        server.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"))
    };
    let (status, headers, body) = get("/x/f", "");
    assert_eq!(
        (status.as_str(), &body[..]),
        ("HTTP/1.1 200 OK", &b"0123456789"[..])
    );
    assert!(headers.contains("Content-Length: 10\r\n"), "{headers}");
    for (range, status, place, expected) in [
        (
            "bytes=3-",
            "206",
            "Content-Range: bytes 3-9/10\r\n",
            "3456789",
        ),
        ("bytes=3-5", "206", "Content-Range: bytes 3-5/10\r\n", "345"),
        ("bytes=-2", "206", "Content-Range: bytes 8-9/10\r\n", "89"),
        (
            "bytes=0-99",
            "206",
            "Content-Range: bytes 0-9/10\r\n",
            "0123456789",
        ),
        ("bytes=10-", "416", "Content-Range: bytes */10\r\n", ""),
        (
            "bytes=1-2,4-5",
            "200",
            "Content-Length: 10\r\n",
            "0123456789",
        ),
        ("nonsense", "200", "Content-Length: 10\r\n", "0123456789"),
    ] {
        let (line, headers, body) = get("/x/f", &format!("RANGE: {range}\r\n"));
        assert_eq!(line.split(' ').nth(1), Some(status), "{range}");
        assert!(headers.contains(place), "{range}: {headers}");
        assert!(
            headers.contains(&format!("Content-Length: {}\r\n", expected.len())),
            "{headers}"
        );
        assert_eq!(body, expected.as_bytes(), "{range}");
    }
    let (status, headers, body) = server.ask("HEAD /x/f HTTP/1.1\r\n\r\n");
    assert_eq!((status.as_str(), body.len()), ("HTTP/1.1 200 OK", 0));
    assert!(headers.contains("Content-Length: 10\r\n"), "{headers}");
    assert_eq!(get("/x/a%20b+c?query", "").2, b"space");
    assert_eq!(get("/x/in", "").2, b"0123456789");
    for path in [
        "/nowhere",
        "/",
        "/x",
        "/x/",
        "/../secret",
        "/x/../../secret",
        "/%2e%2e/secret",
        "/x/%2E%2E/%2e%2e/secret",
        "//secret",
        "/x/out",
        "/.hidden",
        "/.staging",
        "x/f",
        "*",
        "/x/f%00",
        "/%zz",
        "/repository.json/x",
    ] {
        assert_eq!(get(path, "").0, "HTTP/1.1 404 Not Found", "{path}");
    }
    assert_eq!(
        server.ask("POST /x/f HTTP/1.1\r\n\r\n").0,
        "HTTP/1.1 405 Method Not Allowed"
    );
    assert_eq!(server.ask("nonsense\r\n\r\n").0, "HTTP/1.1 400 Bad Request");
    // An appliance's first requests, over the network.
    assert_eq!(get("/metadata/1.root.json", "").2, place.root());
    assert_eq!(get("/metadata/2.root.json", "").0, "HTTP/1.1 404 Not Found");
}

/// Intent: one repository serves an appliance by HTTP and from a directory alike, and what is unpacked from either is
/// what the manifest promises.
#[test]
fn what_was_published_arrives_over_the_network_and_from_a_directory() {
    let place = Place::ready();
    place.recipe("1.0.0", |_| {});
    place.release();
    let server = Server::start(&place);
    let options = Options::new(clock());
    let web = format!("http://{}", server.1);
    for (number, spec) in [web.as_str(), place.path("repo").to_str().unwrap()]
        .iter()
        .enumerate()
    {
        let source = Source::open(*spec, &options).unwrap();
        let work = place.path(format!("appliance{number}"));
        crate::common::create_dir(&work).unwrap();
        let now = clock();
        let (trust, limits) = (work.join("trust"), Limits::default());
        let repository = Repository::refresh(&source, &trust, &place.root(), now, &limits);
        let repository = repository.unwrap();
        let manifest = repository
            .manifest(&source, &place.offers(&repository)[0])
            .unwrap()
            .unwrap()
            .manifest;
        for component in &manifest.components {
            let name = component.artifact.as_ref().unwrap();
            let target = repository.target(&source, name).unwrap().unwrap();
            let downloads = work.join("downloads");
            let (length, sha256) = (target.length, &target.sha256);
            let file = source
                .artifact(&target.path, length, sha256, &downloads, &mut |_| {})
                .unwrap();
            let staging = work.join("slot");
            qx_update::acquire::unpack::unpack(
                component,
                file,
                length,
                sha256,
                &staging,
                &mut |_| {},
            )
            .unwrap_or_else(|e| panic!("{}", e.chain()));
            qx_release::tree::matches(component, &staging.join(&component.install_path)).unwrap();
        }
    }
}

/// Intent: a person whose server cannot have its address is told which one, with a failure, instead of waiting for
/// appliances that never come.
#[test]
fn the_server_says_when_it_cannot_listen() {
    let place = Place::ready();
    let server = Server::start(&place);
    let error = place.fails(
        &["serve", "--repo", "repo", "--listen", &server.1],
        Exit::Failed,
    );
    assert!(error.contains(&server.1), "{error}");
}
