//! A flipped bit, in any file that an appliance keeps: it is found, named, and survived, and nothing goes on as if it were not there.
//!
//! `QX_ROT=N` tries N bytes of each file, instead of 20; `QX_ROT=all` every byte.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::data::adopting;
use crate::common::{Appliance, Recipe, copy_all, create_dir, json_file, path, walk};

/// What lies at a place: mode and content of files, target of links.
type Content = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// An appliance that has been through everything that leaves a file: two releases, one in each slot, the second of which migrated
/// data; a release that failed, and one that is watched; a team's metadata, and a second root. Its services are stopped.
struct Scene {
    appliance: Appliance,
    /// What was published, by version.
    published: BTreeMap<&'static str, Content>,
    /// The live data, and the data that was live before.
    live: Content,
    kept: Content,
    /// The data partition as it was then.
    before: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let appliance = Appliance::new();
        appliance.edit_config(|config| {
            config["data"] = json!([{"name": "db", "method": "files", "place": "/data/db/db"}]);
        });
        create_dir(appliance.data().join("db")).unwrap();
        fs::write(appliance.data().join("db/db"), "rows\n").unwrap();
        fs::write(appliance.data().join("db/db-wal"), "more rows\n").unwrap();
        let (repo, keys) = (path(&appliance.repo), path(&appliance.keys));
        let here = ["--repo", repo, "--keys", keys];
        let publish = |arguments: &[&str]| {
            appliance.publish(&[arguments, &here].concat()).code(0);
        };
        publish(&["rotate", "root"]);
        publish(&[
            "delegate",
            "team",
            "--key",
            "new",
            "--paths",
            "quantix-os/stable/*/*/release.json",
        ]);

        let mut published = BTreeMap::new();
        let mut release =
            |version: &'static str, accepts: Value, edit: &dyn Fn(Recipe) -> Recipe| {
                let recipe = edit(appliance.recipe(version)).edit(|json| {
                    json["data"] = accepts;
                    json["watch"] = json!({"for_s": 600});
                });
                fs::write(recipe.dir.join("www/empty"), "").unwrap();
                symlink("index.html", recipe.dir.join("www/link")).unwrap();
                appliance.release(&recipe);
                published.insert(version, sources(&recipe));
            };
        let db = |from: u64, to: u64, after: u64| json!([{"name": "db", "accepts_from": from, "accepts_to": to, "schema_after": after}]);
        release("1.1.0", adopting(db(1, 2, 1)), &|recipe| recipe);
        appliance.update(&["apply"]).code(0);
        release("1.1.1", db(1, 2, 1), &|recipe| {
            recipe.behaviour("node", "crash")
        });
        appliance.update(&["apply"]).code(8);
        release("1.2.0", db(2, 2, 2), &|recipe| {
            recipe
                .migration("echo migrated >$1; rm -f $1-wal", 20)
                .edit(|json| {
                    json["migrate"] = json!({"run": ["migrations/run", "{data:db}"], "timeout_s": 300,
                        "touches": ["db"]});
                })
        });
        appliance.update(&["apply"]).code(0);
        appliance.runs("1.2.0");
        appliance.services("stop");
        let before = appliance.temp().join("before");
        copy_all(&appliance.data(), &before);
        let scene = Scene {
            live: content(&appliance.data().join("db")),
            kept: scene_kept(&appliance),
            appliance,
            published,
            before,
        };
        assert_eq!(scene.kept.len(), 2, "{:?}", scene.kept);
        scene.whole();
        scene.appliance.update(&["verify"]).code(0);
        scene
    }

    /// Every file that a flipped bit may hit: what the appliance runs from, what it remembers, and what it trusts. The log is for
    /// people, the lock is the kernel's.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for below in ["slots", "update", "copies"] {
            walk(&self.appliance.data().join(below), &mut |file, meta| {
                let name = file.strip_prefix(self.appliance.data()).unwrap();
                let other = ["update/log", "update/lock", "update/downloads"];
                if meta.is_file() && meta.len() > 0 && !other.iter().any(|o| name.starts_with(o)) {
                    files.push(name.to_owned());
                }
            });
        }
        files
    }

    fn flip(&self, name: &Path, at: u64) {
        let file = self.appliance.data().join(name);
        let file = fs::OpenOptions::new().read(true).write(true).open(file);
        let (file, mut byte) = (file.unwrap(), [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (at % 8))], at).unwrap();
    }

    /// The data partition as it was.
    fn restore(&self) {
        copy_all(&self.before, &self.appliance.data());
    }

    /// What init scripts find is one set, as it was published; the live data is that of the release, whole. Says which set.
    fn whole(&self) -> &str {
        let data = self.appliance.data();
        assert_eq!(content(&data.join("db")), self.live);
        assert_eq!(
            fs::read_link(data.join("bin")).unwrap(),
            Path::new("current/bin")
        );
        let link = self.appliance.link();
        if link.is_empty() {
            return "1.0.0";
        }
        let slot = data.join(link);
        let version = json_file(&slot.join("release.json"))["version"].clone();
        let published = self.published.iter().find(|(known, _)| version == **known);
        let (version, published) = published.unwrap();
        let mut found = content(&slot);
        found.remove(Path::new("release.json"));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            published.keys().collect::<Vec<_>>()
        );
        assert!(found == *published, "{version} is not what was published");
        version
    }
}

fn scene_kept(appliance: &Appliance) -> Content {
    let copies = fs::read_dir(appliance.data().join("copies")).unwrap();
    let mut copies = copies.map(|entry| entry.unwrap().path().join("previous"));
    content(&copies.next().unwrap())
}

/// The components of a recipe, at their places in a slot.
fn sources(recipe: &Recipe) -> Content {
    let mut all = Content::new();
    for component in recipe.json["components"].as_array().unwrap() {
        let field = |name: &str| Path::new(component[name].as_str().unwrap());
        let from = recipe.dir.join(field("source"));
        if from.is_file() {
            all.insert(field("install_path").to_owned(), entry(&from));
        }
        for (name, entry) in content(&from) {
            all.insert(field("install_path").join(name), entry);
        }
    }
    all
}

fn content(directory: &Path) -> Content {
    let mut all = Content::new();
    walk(directory, &mut |file, meta| {
        if !meta.is_dir() {
            all.insert(
                file.strip_prefix(directory).unwrap().to_owned(),
                entry(file),
            );
        }
    });
    all
}

fn entry(file: &Path) -> (u32, Vec<u8>) {
    match fs::read_link(file) {
        Ok(target) => (0, path(&target).into()),
        Err(_) => (fs::metadata(file).unwrap().mode(), fs::read(file).unwrap()),
    }
}

/// The first byte, the last, and some between; all of a short file.
fn offsets(length: u64, some: u64) -> Vec<u64> {
    if length <= some {
        return (0..length).collect();
    }
    (0..some).map(|n| n * (length - 1) / (some - 1)).collect()
}

/// Whether a change says the same: a digit of a signature in capitals, in metadata whose signature is read before it is compared.
fn says_the_same(file: &Path, at: u64) -> bool {
    let bytes = fs::read(file).unwrap();
    let byte = bytes[usize::try_from(at).unwrap()];
    byte.is_ascii_uppercase()
        && (byte as char).is_ascii_hexdigit()
        && file.to_str().unwrap().contains("/trust/")
}

/// The words one of which has to stand where a damaged file is named: its own name, or that of the component that it belongs to.
fn names(file: &Path) -> Vec<String> {
    let text = path(file).to_owned();
    let mut parts = file.iter().map(|part| part.to_str().unwrap());
    match (parts.next(), parts.next()) {
        (Some("slots"), Some(slot)) => {
            let within = file.strip_prefix(Path::new("slots").join(slot)).unwrap();
            let tree = within.parent().unwrap();
            let tree = Path::new("slots").join(slot).join(tree);
            vec![text, path(&tree).to_owned()]
        }
        (Some("copies"), Some(copies)) => vec![path(&Path::new("copies").join(copies)).to_owned()],
        _ => vec![text],
    }
}

/// `verify` finds it, whichever byte of whichever file, and names the file, or the tree that it belongs to.
#[test]
fn verify_finds_and_names_it() {
    let scene = Scene::new();
    let some = match std::env::var("QX_ROT").as_deref() {
        Err(_) => 20,
        Ok("all") => u64::MAX,
        Ok(number) => number.parse().expect("QX_ROT is a number or `all`"),
    };
    let (mut flips, mut missed) = (0, Vec::new());
    for name in scene.files() {
        let file = scene.appliance.data().join(&name);
        let length = fs::metadata(&file).unwrap().len();
        for at in offsets(length, some) {
            scene.flip(&name, at);
            flips += 1;
            let verify = scene.appliance.update(&["verify"]);
            let named = |line: &str| {
                line.contains("damaged: ") && names(&name).iter().any(|n| line.contains(n))
            };
            let found = verify.code == 10 && verify.stdout.lines().any(named);
            if !found && !says_the_same(&file, at) {
                missed.push(format!(
                    "{} at {at}: exit {}\n{}",
                    name.display(),
                    verify.code,
                    verify.stdout
                ));
            }
            scene.flip(&name, at);
        }
    }
    let files = scene.files().len();
    crate::counted::counted(
        "rot/a bit flipped",
        format!("{flips} in {files} files, {} not named", missed.len()),
    );
    scene.appliance.update(&["verify"]).code(0);
    assert!(
        missed.is_empty(),
        "{} of {flips}:\n{}",
        missed.len(),
        missed.join("\n")
    );
}

/// `recover` leaves one whole set, with the data that belongs to it; it and `status` say what is damaged, unless it is what nothing
/// runs from.
#[test]
fn a_boot_survives_it() {
    let scene = Scene::new();
    let mut wrong = Vec::new();
    for name in scene.files() {
        let length = fs::metadata(scene.appliance.data().join(&name))
            .unwrap()
            .len();
        for at in offsets(length, 3) {
            scene.flip(&name, at);
            let recover = scene.appliance.update(&["recover"]);
            let status = scene.appliance.status();
            let runs = scene.whole();
            let active = name.starts_with(scene.before_link());
            let expected = if active { "1.1.0" } else { "1.2.0" };
            // What nothing runs from is not read at a boot.
            let read = active || (name.starts_with("update") && !name.starts_with("update/trust"));
            let said = |text: &str| names(&name).iter().any(|n| text.contains(n));
            let problems = status["problems"].to_string();
            let ok = recover.code == 0
                && runs == expected
                && status["running"]["version"] == runs
                && status["needs_person"] == false
                && (!read || (said(&recover.stderr) && said(&problems)))
                && (!active || status["advice"].to_string().contains("apply --repair"));
            if !ok {
                wrong.push(format!(
                    "{} at {at}: exit {}, runs {runs}\n{}{}\n{problems}\n{}",
                    name.display(),
                    recover.code,
                    recover.stdout,
                    recover.stderr,
                    status["advice"]
                ));
            }
            scene.restore();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What has to be done about it is little: `apply --repair` for a release that was in use, a person for what only a person can know,
/// nothing else but the next update. All is well then.
#[test]
fn the_next_update_finds_all_well() {
    let scene = Scene::new();
    let appliance = &scene.appliance;
    appliance.release(&appliance.recipe("1.3.0").edit(|json| {
        json["data"] =
            json!([{"name": "db", "accepts_from": 1, "accepts_to": 2, "schema_after": 2}]);
    }));
    let (active, mut tried) = (scene.before_link(), Vec::new());
    for name in scene.files() {
        let active = name.starts_with(&active);
        // Of each kind one; of the release that is in use, each file.
        let kind = match name.extension() {
            _ if active => name.clone(),
            _ if name.starts_with("slots") => "slots".into(),
            Some(extension) if !name.starts_with("update/trust") => extension.into(),
            _ => name.clone(),
        };
        if tried.contains(&kind) {
            continue;
        }
        tried.push(kind);
        eprintln!("{}", name.display());
        let length = fs::metadata(appliance.data().join(&name)).unwrap().len();
        scene.flip(&name, length / 2);
        appliance.update(&["recover"]).code(0);
        appliance.services("start");
        if name.ends_with("update/quarantine") {
            appliance
                .update(&["apply"])
                .refused(1, &["update/quarantine", "qx-update reset"]);
            appliance.update(&["reset"]).code(0);
        }
        if name.starts_with("copies") {
            let id = name
                .iter()
                .nth(1)
                .unwrap()
                .to_str()
                .unwrap()
                .split('-')
                .next()
                .unwrap();
            let damaged = [id, "is not as it was set aside", "data export", "data drop"];
            appliance
                .update(&["data", "restore", id])
                .refused(10, &damaged);
            appliance
                .update(&["rollback", "--to", "previous", "--set-aside-data"])
                .code(0);
            appliance.update(&["data", "drop", id]).code(0);
        } else if name.starts_with("update/trust") {
            appliance.update(&["check"]).code(4);
        } else if active {
            appliance.update(&["apply", "--repair"]).code(0);
            assert_eq!(scene.whole(), "1.2.0");
        } else {
            appliance.update(&["apply"]).code(0);
            assert_eq!(appliance.status()["running"]["version"], "1.3.0");
        }
        appliance.update(&["verify"]).code(0);
        appliance.services("stop");
        scene.restore();
    }
}

/// What is no content: mode and owner of an installed file, mode of a directory, target of a link, and of those that init scripts look
/// through.
#[test]
fn attributes_and_links() {
    let scene = Scene::new();
    let (appliance, data) = (&scene.appliance, scene.appliance.data());
    let slot = data.join(scene.before_link());
    let found = |what: &str, name: &str| {
        let verify = appliance.update(&["verify"]);
        verify.code(10).says(&[name]);
        eprintln!(
            "{what}: {}",
            verify
                .stdout
                .lines()
                .find(|l| l.contains("damaged"))
                .unwrap()
        );
    };
    for name in [
        "bin/qx-node",
        "share/www/index.html",
        "share/www",
        "migrations/run",
    ] {
        let file = slot.join(name);
        let mode = fs::metadata(&file).unwrap().mode() & 0o7777;
        for bit in 0..12 {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode ^ (1 << bit))).unwrap();
            found(&format!("mode bit {bit}"), name.rsplit_once('/').unwrap().0);
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let link = slot.join("share/www/link");
    let target = path(&fs::read_link(&link).unwrap()).to_owned();
    for at in 0..target.len() {
        let mut other = target.clone().into_bytes();
        other[at] ^= 1;
        fs::remove_file(&link).unwrap();
        symlink(String::from_utf8(other).unwrap(), &link).unwrap();
        found("link", "share/www");
    }
    scene.restore();
    for (name, target) in [
        ("current", "slots/"),
        ("bin", "current/bin"),
        ("share", "current/share"),
    ] {
        let link = data.join(name);
        let target = match name {
            "current" => path(&scene.before_link()).to_owned(),
            _ => target.to_owned(),
        };
        for at in 0..target.len() {
            let mut other = target.clone().into_bytes();
            other[at] ^= 1;
            fs::remove_file(&link).unwrap();
            symlink(String::from_utf8(other).unwrap(), &link).unwrap();
            appliance.update(&["recover"]).code(0);
            assert_eq!(scene.whole(), "1.2.0", "{name}");
            assert_eq!(path(&fs::read_link(&link).unwrap()), target);
        }
    }
}

impl Scene {
    /// The slot that was in use.
    fn before_link(&self) -> PathBuf {
        fs::read_link(self.before.join("current")).unwrap()
    }
}
