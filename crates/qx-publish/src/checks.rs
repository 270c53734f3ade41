//! The part of a recipe that says what is to be tried before its release is published.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use qx_release::manifest::Name;

/// What a recipe says in `checks`. Paths are relative to the recipe, until it was read.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Checks {
    /// How the name of every program begins.
    pub prefix: Option<String>,
    /// Files that hold the release's version.
    pub versions: Vec<VersionFile>,
    /// The services' init scripts.
    pub init_scripts: Vec<InitScript>,
    /// The numbered migrations, and the data to try them on.
    pub migrations: Option<Migrations>,
}

/// A file that holds the version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VersionFile {
    /// Which.
    pub file: PathBuf,
    /// Its line, with `{version}` for the version. Absent: what is usual in a file of that name.
    pub line: Option<String>,
}

/// An init script, and the service that it starts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InitScript {
    /// The service.
    pub service: Name,
    /// The script.
    pub file: PathBuf,
}

/// The numbered migrations.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Migrations {
    /// In a component: files whose names begin with their number.
    pub directory: PathBuf,
    /// What each data set is made of, to be migrated from nothing.
    #[serde(default)]
    pub data: BTreeMap<Name, Made>,
}

/// What a data set is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Made {
    /// One file, with what SQLite keeps beside it.
    File,
    /// A directory.
    Directory,
}

impl Checks {
    /// Makes the paths absolute, or relative to where the recipe was.
    pub(crate) fn resolve(&mut self, base: &Path) {
        let versions = self.versions.iter_mut().map(|version| &mut version.file);
        let scripts = self.init_scripts.iter_mut().map(|script| &mut script.file);
        let migrations = self.migrations.iter_mut().map(|m| &mut m.directory);
        for path in versions.chain(scripts).chain(migrations) {
            *path = base.join(&*path);
        }
    }
}
