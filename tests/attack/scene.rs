//! An appliance under attack.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::server::Server;
use crate::common::signer::Signer;
use crate::common::{Appliance, copy_all, path, walk};

/// An appliance that runs 1.1.0 and has seen 1.2.0; 1.3.0 was published since then. The versions of the timestamp, the
/// snapshot and the targets are 2, 3 and 4.
pub struct Scene {
    pub appliance: Appliance,
    /// The repository when 1.1.0 was the newest.
    pub first: PathBuf,
    /// The repository when 1.2.0 was, which the appliance saw last.
    pub seen: PathBuf,
    /// The version of the release that the honest repository offers.
    pub newest: &'static str,
    trust: Trust,
}

/// What an appliance keeps of what it trusts: file by file.
pub type Trust = BTreeMap<String, Vec<u8>>;

impl Scene {
    pub fn new() -> Scene {
        Scene::prepared(|_| ())
    }

    /// The same; before it is used, this is done with the repository.
    pub fn prepared(prepare: impl FnOnce(&mut Signer)) -> Scene {
        let appliance = Appliance::new();
        let mut signer = appliance.signer();
        prepare(&mut signer);
        let server = Server::start(&appliance.repo);
        appliance.source(&server.url);
        appliance.install("1.1.0");
        let (first, seen) = (
            appliance.temp().join("first"),
            appliance.temp().join("seen"),
        );
        copy_all(&appliance.repo, &first);
        appliance.publish_release("1.2.0");
        appliance.update(&["check"]).code(4).says(&["1.2.0"]);
        copy_all(&appliance.repo, &seen);
        appliance.publish_release("1.3.0");
        let mut scene = Scene {
            appliance,
            first,
            seen,
            newest: "1.3.0",
            trust: Trust::new(),
        };
        scene.trust = scene.trust();
        scene
    }

    /// The publisher.
    pub fn publisher(&self) -> Signer {
        self.appliance.signer()
    }

    /// An attacker with these of the publisher's keys, who answers with a copy of the present repository.
    pub fn attacker(&self, stolen: &[&str]) -> Signer {
        self.attacker_with(&self.appliance.repo, stolen)
    }

    /// The same, with a copy of an older one.
    pub fn attacker_with(&self, repository: &Path, stolen: &[&str]) -> Signer {
        let evil = self.appliance.temp().join("evil");
        copy_all(repository, &evil);
        Signer::new(&evil, &self.appliance.keys).only(stolen)
    }

    /// The file names are relative, those of delegated roles begin with `delegated/`.
    pub fn trust(&self) -> Trust {
        let dir = self.appliance.data().join("update/trust");
        let mut trust = Trust::new();
        walk(&dir, &mut |file, meta| {
            if meta.is_file() {
                let name = path(file.strip_prefix(&dir).unwrap()).to_owned();
                trust.insert(name, fs::read(file).unwrap());
            }
        });
        trust
    }

    /// From now on, [`Scene::rewind`] goes back to this.
    pub fn remember(&mut self) {
        self.trust = self.trust();
    }

    /// The appliance trusts again what it did when 1.2.0 was the newest.
    pub fn rewind(&self) {
        let dir = self.appliance.data().join("update/trust");
        fs::remove_dir_all(&dir).unwrap();
        for (name, bytes) in &self.trust {
            let file = dir.join(name);
            crate::common::create_dir(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
    }

    /// An update from there is refused, in one line with these words; no service was told
    /// anything, nothing that is installed has changed, and of the trust only these files: they are as served now.
    #[track_caller]
    pub fn refuses(&self, repository: &Path, code: i32, words: &[&str], kept: &[&str]) {
        let server = Server::start(repository);
        self.refuses_from(&server, repository, code, words, kept);
    }

    /// The same, of a server for this directory.
    #[track_caller]
    pub fn refuses_from(
        &self,
        server: &Server,
        repository: &Path,
        code: i32,
        words: &[&str],
        kept: &[&str],
    ) {
        self.appliance.source(&server.url);
        let mut expected = self.trust();
        for served in kept {
            let bytes = fs::read(repository.join("metadata").join(served)).unwrap();
            // A root is kept under its number, the newest of another role under the role's name.
            let name = match served.split_once('.') {
                Some((number, rest)) if number.parse::<u64>().is_ok() && rest != "root.json" => {
                    rest
                }
                _ => served,
            };
            expected.insert(name.to_owned(), bytes);
        }
        self.appliance.refuses(&["apply"], code, words);
        assert_eq!(self.appliance.told(), [""; 0], "the services were told so");
        let now = self.trust();
        let names = |trust: &Trust| trust.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&now), names(&expected), "the files that are trusted");
        for (name, bytes) in &now {
            assert!(
                *bytes == expected[name],
                "{name}: trusted is {}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    /// What `check` finds in a repository: its exit code, and what it says.
    #[track_caller]
    pub fn finds(&self, repository: &Path, code: i32, words: &[&str]) {
        let server = Server::start(repository);
        self.appliance.source(&server.url);
        self.appliance.update(&["check"]).code(code).says(words);
    }

    /// The honest repository is trusted, and what the appliance keeps is what it serves.
    #[track_caller]
    pub fn trusts_the_publisher(&self) {
        self.finds(&self.appliance.repo, 4, &[self.newest]);
        let publisher = self.publisher();
        let trust = self.trust();
        for role in ["timestamp", "snapshot", "targets"] {
            let served = fs::read(publisher.metadata_file(role)).unwrap();
            assert!(trust[&format!("{role}.json")] == served, "{role}");
        }
    }

    /// It ends well: the newest release of the honest repository is installed and runs.
    #[track_caller]
    pub fn ends_well(&self) {
        self.trusts_the_publisher();
        self.appliance.update(&["apply"]).code(0);
        self.appliance.runs(self.newest);
    }
}
