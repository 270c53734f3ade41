//! A directory to work in, with the real `qx-publish` at work there. What is worked on is each test file's own: [`super::desk`],
//! [`super::place`], and a release in `release`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use qx_release::error::{Context, Result};
use qx_update::fetch::port::Fetch;
use tempfile::TempDir;

use crate::common::{create_dir, publisher};

/// How a release is made of `src/recipe.json`.
pub const RELEASE: &[&str] = &[
    "release",
    "src/recipe.json",
    "--repo",
    "repo",
    "--keys",
    "keys",
];

/// The directory, gone with its files when it is dropped.
pub struct Work {
    directory: TempDir,
    /// What `SOURCE_DATE_EPOCH` is, if a release is to be the same bytes when it is made again.
    pub epoch: Option<&'static str>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

impl Work {
    pub fn in_directory(directory: TempDir) -> Work {
        Work {
            directory,
            epoch: None,
        }
    }

    /// Makes the repository `repo` of the product `vdc`, and its keys in `keys`; what was said.
    pub fn init(&self) -> String {
        let product = ["--product", "vdc"];
        let here = ["init", "--repo", "repo", "--keys", "keys"];
        self.succeeds(&[&here[..], &product].concat())
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of exactly this mode, whatever was there.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.path(name);
        create_dir(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(publisher());
        command.args(arguments).current_dir(self.directory.path());
        command.env_remove("QX_PUBLISH_PASSPHRASE");
        match self.epoch {
            Some(epoch) => command.env("SOURCE_DATE_EPOCH", epoch),
            None => command.env_remove("SOURCE_DATE_EPOCH"),
        };
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs it to success, with nothing on the standard error: what was said.
    #[track_caller]
    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let Ended { code, out, err } = self.run(arguments);
        // What lies there is looked at in a failure only: another publisher may be at work.
        if (code, &*err) != (0, "") {
            panic!("{arguments:?}: exit {code}\n{out}{err}{:#?}", self.names());
        }
        out
    }

    /// The command fails with this exit code and one line, which is given back, and changes nothing below `unchanged`.
    #[track_caller]
    pub fn refused(&self, command: &str, ended: &Ended, before: &Tree, unchanged: &str, exit: i32) {
        let Ended { code, out, err } = ended;
        let told = format!("{command}: exit {code}\n{out}{err}{:#?}", self.names());
        assert_eq!((*code, out.as_str()), (exit, ""), "{told}");
        assert_eq!(err.lines().count(), 1, "{told}");
        assert!(err.starts_with("qx-publish: "), "{told}");
        assert!(
            *before == self.tree(unchanged),
            "files have changed: {told}"
        );
    }

    /// Runs it to failure: one line, and nothing changed in the repository.
    #[track_caller]
    pub fn bad(&self, exit: i32, arguments: &[&str]) -> String {
        let before = self.tree("repo");
        let ended = self.run(arguments);
        self.refused(&format!("{arguments:?}"), &ended, &before, "repo", exit);
        ended.err
    }

    /// Everything below a directory: its mode and bytes by its path.
    pub fn tree(&self, name: &str) -> Tree {
        let mut found = BTreeMap::new();
        let mut left = vec![self.path(name)];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    left.push(path.clone());
                }
                let bytes = match metadata.is_file() {
                    true => fs::read(&path).unwrap(),
                    false => Vec::new(),
                };
                let name = path.strip_prefix(self.directory.path()).unwrap();
                let mode = metadata.permissions().mode();
                found.insert(name.display().to_string(), (mode, bytes));
            }
        }
        found
    }

    /// Every file below a directory, and its bytes.
    pub fn files(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let regular = |mode: u32| mode & 0o170_000 == 0o100_000;
        let all = self.tree(name).into_iter();
        all.filter(|(_, (mode, _))| regular(*mode))
            .map(|(name, (_, bytes))| (name, bytes))
            .collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.files("").into_keys().collect()
    }
}

/// What lies below a directory: mode and bytes by path.
pub type Tree = BTreeMap<String, (u32, Vec<u8>)>;

/// A repository's directory as a source.
pub struct Directory(pub PathBuf);

impl Fetch for Directory {
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match fs::read(self.0.join(path)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => {
                let bytes = read.doing(|| format!("reading {path}"))?;
                assert!(bytes.len() as u64 <= limit, "{path}");
                Ok(Some(bytes))
            }
        }
    }
}

/// A program's header, for a machine by its ELF number (62: x86_64, 183: aarch64), and something to tell it by.
pub fn elf(machine: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    bytes.extend(machine.to_le_bytes());
    bytes.extend(body);
    bytes
}
