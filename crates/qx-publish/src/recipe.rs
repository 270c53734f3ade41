//! The recipe: what a release is made from. `docs/formats.md` describes every field.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use semver::Version;
use serde::Deserialize;
use serde_json::Value;

use super::carried::{self, Named};
use super::checks::Checks;
use super::elf::{self, Program};
use super::versions;
use qx_release::digest::Digest;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{
    self, Capabilities, Check, Component, Data, Kind, Manifest, Migrate, Mode, Name, Probe,
    RelPath, Service, Watch,
};
use qx_release::script::{self, Script};

/// The only recipe format there is.
const FORMAT: u32 = 1;

/// A recipe, its sources resolved.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    format: u32,
    product: Name,
    version: Version,
    arch: Name,
    min_version: Option<Version>,
    #[serde(default)]
    release_notes: String,
    /// What is packed.
    pub components: Vec<Source>,
    #[serde(default)]
    removed: Vec<RelPath>,
    #[serde(default)]
    services: Vec<Service>,
    #[serde(default)]
    data: Vec<Data>,
    migrate: Option<Migrate>,
    #[serde(default)]
    health: Vec<Check>,
    #[serde(default)]
    watch: Watch,
    /// What is to be tried before it is published.
    #[serde(default)]
    pub checks: Checks,
    /// Where it was read.
    #[serde(skip)]
    pub path: PathBuf,
}

/// A component and where its files are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// Unique in the release.
    pub name: Name,
    /// One executable, or a directory.
    pub kind: Kind,
    /// Relative to the slot.
    pub install_path: RelPath,
    /// The file or directory to pack; after [`Recipe::read`], no longer relative to the recipe.
    pub source: PathBuf,
    /// Of the file, or of the tree's own directory.
    #[serde(default = "executable")]
    pub mode: Mode,
    /// What a program is to have of root's.
    #[serde(default)]
    pub capabilities: Capabilities,
    #[serde(default)]
    tool: bool,
    /// Where the image has it, if not at `/usr/INSTALL_PATH`.
    pub factory_path: Option<String>,
}

fn executable() -> Mode {
    Mode(0o755)
}

impl Recipe {
    /// Reads a recipe. Every error names the recipe and the field, and is [`ErrorKind::Usage`].
    pub(crate) fn read(path: &Path) -> Result<Recipe> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(manifest::MAX_BYTES + 1).read_to_end(&mut bytes))
            .doing(|| format!("reading the recipe {}", path.display()))
            .map_err(|e| e.of(ErrorKind::Usage))?;
        let mut recipe = Recipe::parse(&bytes).map_err(|why| wrong(path, why))?;
        let base = path.parent().unwrap_or(Path::new("."));
        for source in &mut recipe.components {
            source.source = base.join(&source.source);
        }
        recipe.checks.resolve(base);
        path.clone_into(&mut recipe.path);
        Ok(recipe)
    }

    /// The same of its bytes; what it names is as it stands there.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Recipe, String> {
        if bytes.len() as u64 > manifest::MAX_BYTES {
            return Err(format!("it is longer than {} bytes", manifest::MAX_BYTES));
        }
        let mut recipe: Recipe = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if recipe.format != FORMAT {
            return Err(format!(
                "format {} is not known (this version reads {FORMAT})",
                recipe.format
            ));
        }
        if !elf::known(recipe.arch.as_str()) {
            return Err(format!("arch: '{}' is not supported", recipe.arch));
        }
        // The manifest's own types ignore what they do not know, for a later version may; in a recipe it is a slip of
        // the pen, and a misspelt time-out that is silently the default would be found out on an appliance.
        let given: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let known = [
            ("services", serde_json::to_value(&recipe.services)),
            ("data", serde_json::to_value(&recipe.data)),
            ("migrate", serde_json::to_value(&recipe.migrate)),
            ("health", serde_json::to_value(&recipe.health)),
            ("watch", serde_json::to_value(&recipe.watch)),
        ];
        for (field, known) in known {
            let known = known.map_err(|e| e.to_string())?;
            if let Some(given) = given.get(field)
                && let Some(place) = unknown_field(given, &known)
            {
                return Err(format!("unknown field `{field}{place}`"));
            }
        }
        recipe.fill_in()?;
        Ok(recipe)
    }

    /// Puts the version in where `{version}` stands for it: manifests hold none of these.
    fn fill_in(&mut self) -> Result<(), String> {
        let version = self.version.to_string();
        let fill = |field: &str, text: &mut String| versions::fill(field, text, &version, false);
        fill("release_notes", &mut self.release_notes)?;
        for (number, check) in self.health.iter_mut().enumerate() {
            let field = |name: &str| format!("health[{number}].{name}");
            for (name, text) in check.probe.texts() {
                fill(&field(name), text)?;
            }
            if let Probe::Http {
                json: Some(json), ..
            } = &mut check.probe
            {
                versions::fill_value(&field("json.equals"), &mut json.equals, &version)?;
            }
        }
        if let Some(migrate) = &mut self.migrate {
            for (field, vector) in [
                ("migrate.run", &mut migrate.run),
                ("migrate.check", &mut migrate.check),
                ("migrate.down", &mut migrate.down),
            ] {
                for text in vector {
                    versions::fill(field, text, &version, true)?;
                }
            }
        }
        Ok(())
    }

    /// The manifest of what the recipe describes, checked. Its digests and sizes are those of nothing: the caller puts
    /// in the right ones as it packs.
    pub(crate) fn manifest(&self, channel: &Name, released: SystemTime) -> Result<Manifest> {
        let component = |source: &Source| Component {
            name: source.name.clone(),
            kind: source.kind,
            install_path: source.install_path.clone(),
            mode: source.mode,
            capabilities: source.capabilities,
            sha256: Digest::of(b""),
            size_bytes: 0,
            entries: 0,
            artifact: None,
            factory_path: source.factory_path.clone(),
        };
        let mut manifest = Manifest {
            format: manifest::FORMAT,
            product: self.product.clone(),
            version: self.version.clone(),
            arch: self.arch.clone(),
            channel: channel.clone(),
            released: humantime::format_rfc3339_seconds(released).to_string(),
            min_version: self.min_version.clone(),
            release_notes: self.release_notes.clone(),
            components: self.components.iter().map(component).collect(),
            removed: self.removed.clone(),
            services: self.services.clone(),
            data: self.data.clone(),
            migrate: self.migrate.clone(),
            health: self.health.clone(),
            watch: self.watch.clone(),
        };
        manifest.check().map_err(|why| wrong(&self.path, why))?;
        if let Some(why) = versions::contradiction(&manifest) {
            return Err(wrong(&self.path, why));
        }
        for component in &mut manifest.components {
            component.factory_path = None;
        }
        Ok(manifest)
    }

    /// Whether every component is there and fit: what a glance at each program can tell, before anything is packed.
    pub(crate) fn check_sources(&self) -> Result<()> {
        for source in &self.components {
            match source.kind {
                Kind::Bin => self.check_bin(source)?,
                Kind::Tree if source.source.is_dir() => {}
                Kind::Tree => {
                    fs::metadata(&source.source).doing(|| source.doing())?;
                    return Err(source.unfit("it is not a directory"));
                }
            }
        }
        for program in self.programs() {
            let Ok(path) = program.parse::<RelPath>() else {
                continue;
            };
            for source in self.components.iter().filter(|s| s.kind == Kind::Tree) {
                if let Some(rest) = path.below(&source.install_path) {
                    source.program(&source.source.join(rest), &self.arch)?;
                }
            }
        }
        Ok(())
    }

    fn check_bin(&self, source: &Source) -> Result<()> {
        let file = source.program(&source.source, &self.arch)?;
        let path = &source.install_path;
        let leaves = |service: &Service| service.leaves.iter().any(|p| p.in_set() == Some(path));
        let runs = self.programs().any(|p| p == path.as_str()) || self.services.iter().any(leaves);
        let uses = self.services.iter().any(|s| s.uses.contains(&source.name));
        if !(runs || uses || source.tool) {
            return Err(source.unfit(
                "nothing uses it: no service runs or uses it, and no migration or health check runs it (mark a program for \
                 people or scripts with \"tool\": true)",
            ));
        }
        if file == Program::Script && !source.capabilities.is_none() {
            return Err(source.unfit(
                "it is a script, so it cannot have capabilities: its process runs the interpreter, not this file",
            ));
        }
        if file == Program::Script && !(runs || source.tool) {
            return Err(source.unfit("it is a script, but is not marked \"tool\": true"));
        }
        Ok(())
    }

    /// The programs that the release runs: its services', and the first argument of what else it calls.
    fn programs(&self) -> impl Iterator<Item = &str> {
        let checks = self.health.iter().filter_map(|check| match &check.probe {
            Probe::Exec { run } => Some(run),
            _ => None,
        });
        let migrations = self.migrate.iter().flat_map(Migrate::vectors);
        let vectors = migrations.map(|(_, vector)| vector).chain(checks);
        let run = self.services.iter().map(|service| service.runs.as_str());
        run.chain(vectors.filter_map(|run| run.first().map(String::as_str)))
    }
}

impl Source {
    /// For messages: which component, which file.
    pub(crate) fn doing(&self) -> String {
        format!("component {}: {}", self.name, self.source.display())
    }

    /// What the program at a path of this component is, if it can run on `arch`.
    fn program(&self, path: &Path, arch: &Name) -> Result<Program> {
        let doing = || format!("component {}: {}", self.name, path.display());
        let metadata = fs::metadata(path).doing(doing)?;
        let unfit = |why: &str| Error::new(format!("{}: {why}", doing()));
        if !metadata.is_file() {
            return Err(unfit("it is not a regular file"));
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            return Err(unfit("it is not executable"));
        }
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(script::HEAD as u64).read_to_end(&mut head))
            .doing(doing)?;
        let program = elf::program(&head, arch.as_str()).map_err(|why| unfit(&why))?;
        if program == Program::Script && Script::parse(&head).is_none() {
            return Err(unfit(
                "it is a script, but its first line does not name its interpreter by an absolute path, in 255 characters",
            ));
        }
        Ok(program)
    }

    /// Whether a program has its capabilities already, as one of an image must.
    pub(crate) fn check_image(&self) -> Result<()> {
        match self.kind {
            Kind::Bin => carried::bin(&self.source, Named::InTheImage(self.capabilities))
                .map_err(|why| self.unfit(&why)),
            Kind::Tree => Ok(()),
        }
    }

    pub(crate) fn unfit(&self, why: &str) -> Error {
        Error::new(format!("{}: {why}", self.doing()))
    }
}

/// The place of the first field that the value has and its parsed form has not.
fn unknown_field(given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            given
                .iter()
                .find_map(|(name, value)| match known.get(name) {
                    // An optional field that is spelt out as null, or one that is left out where it is false.
                    None if value.is_null() || *value == Value::Bool(false) => None,
                    None => Some(format!(".{}", name.escape_debug())),
                    Some(known) => Some(format!(".{name}{}", unknown_field(value, known)?)),
                })
        }
        (Value::Array(given), Value::Array(known)) => given
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(i, (given, known))| Some(format!("[{i}]{}", unknown_field(given, known)?))),
        _ => None,
    }
}

fn wrong(path: &Path, why: String) -> Error {
    let what = format!("reading the recipe {}: {why}", path.display());
    Error::with(ErrorKind::Usage, what)
}
