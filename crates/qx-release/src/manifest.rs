//! The release manifest, `release.json`: what a release consists of, how its services are proved and
//! their health is checked. Parsed once, at the edge, into types that cannot hold a hostile string.
//! `docs/formats.md` describes every field.

use std::collections::BTreeSet;
use std::fmt;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json;
use crate::text;

/// The only manifest format there is.
pub const FORMAT: u32 = 1;
/// A manifest is at most this long, in bytes.
pub const MAX_BYTES: u64 = 1024 * 1024;
/// A release has at most this many components, services, checks, and removed paths, each.
pub const MAX_ITEMS: usize = 1000;
/// How many failed tries in a row a health check may allow.
pub const MAX_RETRIES: u32 = 1000;
/// A component has at most this many files, directories and links: each is a line in memory while it is measured.
pub const MAX_ENTRIES: u64 = 50_000;
/// The longest time-out or interval a manifest may ask for, in seconds (a day).
pub const MAX_SECONDS: u64 = 86_400;
/// No release and no data set is larger than this, in bytes: sums of such numbers do not overflow.
pub const MAX_SIZE: u64 = 1 << 50;
/// The longest version, in bytes: it is a segment of the manifest's name.
const MAX_VERSION: usize = 255;

/// A name: 1 to 64 of `A-Z a-z 0-9 . _ + -`, the first of them a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Name, String> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
        if (1..=64).contains(&text.len())
            && text.bytes().all(good)
            && text.as_bytes()[0].is_ascii_alphanumeric()
        {
            Ok(Name(text))
        } else {
            Err(format!(
                "'{}' is not a name (1 to 64 letters, digits, '.', '_', '+', '-', a letter or digit first)",
                shortened(&text)
            ))
        }
    }
}

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        Name::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path relative to a slot, a repository or a tree: at most 1024 bytes of UTF-8, every segment 1 to 255
/// bytes and neither `.` nor `..`; not absolute, no NUL or other control character, no backslash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

impl RelPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The rest of this path below `other`: `None` if it is not below, `Some("")` if they are equal.
    pub fn below<'a>(&'a self, other: &RelPath) -> Option<&'a str> {
        let rest = self.0.strip_prefix(&other.0)?;
        if rest.is_empty() {
            Some("")
        } else {
            rest.strip_prefix('/')
        }
    }
}

impl TryFrom<String> for RelPath {
    type Error = String;

    fn try_from(text: String) -> Result<RelPath, String> {
        let segment = |s: &str| (1..=255).contains(&s.len()) && s != "." && s != "..";
        if text.len() <= 1024
            && text.split('/').all(segment)
            && !text.contains(|c: char| c.is_control() || c == '\\')
        {
            Ok(RelPath(text))
        } else {
            Err(format!(
                "'{}' is not a relative path (no '..', no leading '/', no control character)",
                shortened(&text)
            ))
        }
    }
}

impl std::str::FromStr for RelPath {
    type Err = String;

    fn from_str(text: &str) -> Result<RelPath, String> {
        RelPath::try_from(text.to_owned())
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> String {
        path.0
    }
}

impl AsRef<std::path::Path> for RelPath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A program: its path in the release's set, or the absolute path of one of the image's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProgramPath {
    path: RelPath,
    absolute: bool,
}

impl ProgramPath {
    /// In a set; `None` if it is the image's.
    pub fn in_set(&self) -> Option<&RelPath> {
        (!self.absolute).then_some(&self.path)
    }
}

impl TryFrom<String> for ProgramPath {
    type Error = String;

    fn try_from(text: String) -> Result<ProgramPath, String> {
        let rest = text.strip_prefix('/');
        let path = rest.unwrap_or(&text).parse()?;
        let absolute = rest.is_some();
        Ok(ProgramPath { path, absolute })
    }
}

impl From<ProgramPath> for String {
    fn from(program: ProgramPath) -> String {
        program.to_string()
    }
}

impl fmt::Display for ProgramPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = if self.absolute { "/" } else { "" };
        write!(f, "{root}{}", self.path)
    }
}

/// What a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One executable file.
    Bin,
    /// A directory with everything below it.
    Tree,
}

/// One named piece of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Unique in the release.
    pub name: Name,
    /// One executable, or a directory.
    pub kind: Kind,
    /// Where it goes, relative to the slot: below `bin/`, `share/` or `migrations`.
    pub install_path: RelPath,
    /// Permission bits of a `bin` (octal text, such as "0755") or of the tree's own directory.
    pub mode: Mode,
    /// Of what is installed: the file's SHA-256, or the tree digest.
    pub sha256: Digest,
    /// Of what is installed: the sum of the files' lengths in bytes.
    pub size_bytes: u64,
    /// Of what is installed: how many files, directories and links; 1 for a `bin`.
    pub entries: u64,
    /// The TUF target it comes in. Absent in the factory set's manifest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<RelPath>,
    /// Factory set only: the absolute path of the factory copy, where it is not `/usr/INSTALL_PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory_path: Option<String>,
}

/// Permission bits, 0 to 0o777; as JSON octal text such as "0755".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub u32);

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Mode, String> {
        let digits =
            (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if digits && mode <= 0o777 => Ok(Mode(mode)),
            _ => Err(format!(
                "'{}' is not a mode (octal, 000 to 0777; no setuid, setgid or sticky bit)",
                shortened(&text)
            )),
        }
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> String {
        format!("{:04o}", mode.0)
    }
}

/// A service that the release brings the files of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// As the appliance's service manager knows it.
    pub name: Name,
    /// The `install_path` of the `bin` component that its process must be seen to run.
    pub runs: RelPath,
    /// Names of further components whose change restarts it.
    #[serde(default)]
    pub uses: Vec<Name>,
    /// Services are started in ascending, stopped in descending order. Equal: as listed.
    #[serde(default)]
    pub order: i32,
    /// Programs whose processes outlive it on purpose (virtual machines, sessions): they go on running the old files, are not
    /// killed, and say nothing against a release.
    #[serde(default)]
    pub leaves: Vec<ProgramPath>,
}

/// A data set that the release's programs use, with the schemas they accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// As the appliance's configuration calls it.
    pub name: Name,
    /// The lowest schema number that these programs work with.
    pub accepts_from: u64,
    /// The highest schema number that these programs work with.
    pub accepts_to: u64,
    /// The schema number after the migration.
    pub schema_after: u64,
}

/// What stands for the place of a data set, or of its clone, in a release's argument vectors.
pub fn placeholder(name: &Name) -> String {
    format!("{{data:{name}}}")
}

/// How the release moves the data to its schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    /// Argument vector; the first is a path inside the slot. Never a shell string. `{data:NAME}` stands for the place of
    /// a data set, or of its clone.
    pub run: Vec<String>,
    /// Seconds until its whole process group is killed; of `check` and `down` likewise.
    pub timeout_s: u64,
    /// The data sets that it changes.
    #[serde(default)]
    pub touches: Vec<Name>,
    /// Whether it is tried on a clone of the data first, while the old services run.
    #[serde(default)]
    pub rehearse: bool,
    /// Argument vector like `run`, which exits 0 if this release can use the data; asked after a rehearsal. Empty: nothing
    /// is asked.
    #[serde(default)]
    pub check: Vec<String>,
    /// Argument vector like `run`, which takes the data back to the schema of the release before. Empty: going back needs
    /// the snapshot.
    #[serde(default)]
    pub down: Vec<String>,
}

/// A health check: what is asked, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CheckFields")]
pub struct Check {
    /// What is asked.
    #[serde(flatten)]
    pub probe: Probe,
    /// Seconds between two tries.
    pub interval_s: u64,
    /// Seconds one try may take.
    pub timeout_s: u64,
    /// How many tries in a row may fail after the start period before the check has failed.
    pub retries: u32,
    /// Seconds after the start in which failures do not count.
    pub start_period_s: u64,
    /// Seconds for which the check must go on passing, its service not once restarted.
    pub stable_s: u64,
    /// Whether the release is held to it even if it failed before the update, too.
    #[serde(default)]
    pub required: bool,
    /// The service that it is a check of. Absent: of the release as a whole. (A probe of type `service` names its own.)
    #[serde(rename = "service", skip_serializing_if = "Option::is_none")]
    pub of: Option<Name>,
    /// Who may answer on this machine's own ports.
    pub answered_by: AnsweredBy,
}

impl Check {
    /// The service that it is a check of, if it is one's alone.
    pub fn service(&self) -> Option<&Name> {
        match &self.probe {
            Probe::Service { service } => Some(service),
            _ => self.of.as_ref(),
        }
    }
}

/// Who may answer a health check on this machine's own ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnsweredBy {
    /// A process of one of the release's services: the answer is part of the proof.
    #[default]
    Services,
    /// Anybody, such as a reverse proxy of the image: the answer tells of health, and proves nothing.
    Anybody,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Probe {
    /// GET over plain HTTP.
    Http {
        /// `http://HOST[:PORT]/PATH`.
        url: String,
        /// The status that means healthy.
        status: u16,
        /// A field of the JSON body that must have a value.
        #[serde(skip_serializing_if = "Option::is_none")]
        json: Option<JsonField>,
    },
    /// A TCP connection can be opened.
    Tcp {
        /// `HOST:PORT`.
        address: String,
    },
    /// A program exits 0.
    Exec {
        /// Argument vector; the first is a path inside the slot. Never a shell string.
        run: Vec<String>,
    },
    /// The service manager says that the service runs.
    Service {
        /// As the service manager knows it.
        service: Name,
    },
}

impl Probe {
    /// The texts in which a recipe may leave room for its version, each under the name of its field. (Values are looked
    /// through apart: they need not be texts.)
    pub fn texts(&mut self) -> Vec<(&'static str, &mut String)> {
        match self {
            Probe::Http { url, json, .. } => {
                let pointer = json
                    .as_mut()
                    .map(|json| ("json.pointer", &mut json.pointer));
                [("url", url)].into_iter().chain(pointer).collect()
            }
            Probe::Tcp { address } => vec![("address", address)],
            Probe::Exec { run } => run.iter_mut().map(|text| ("run", text)).collect(),
            Probe::Service { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for Probe {
    /// As messages call it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Http { url, .. } => write!(f, "http {}", text::url(url)),
            Probe::Tcp { address } => write!(f, "tcp {}", text::clean(address, text::VALUE)),
            Probe::Exec { run } => write!(f, "exec {}", text::command(run)),
            Probe::Service { service } => write!(f, "service {service}"),
        }
    }
}

/// A check as it is written: the fields of all kinds, and the defaults.
#[derive(Deserialize)]
struct CheckFields {
    #[serde(rename = "type")]
    kind: String,
    url: Option<String>,
    status: Option<u16>,
    json: Option<JsonField>,
    address: Option<String>,
    run: Option<Vec<String>>,
    service: Option<Name>,
    interval_s: Option<u64>,
    timeout_s: Option<u64>,
    retries: Option<u32>,
    start_period_s: Option<u64>,
    stable_s: Option<u64>,
    required: Option<bool>,
    answered_by: Option<AnsweredBy>,
}

impl TryFrom<CheckFields> for Check {
    type Error = String;

    fn try_from(fields: CheckFields) -> Result<Check, String> {
        fn there<T>(kind: &str, name: &str, field: Option<T>) -> Result<T, String> {
            field.ok_or_else(|| format!("health: a check of type {kind} needs `{name}`"))
        }
        let kind = &*fields.kind;
        let of = fields.service.clone().filter(|_| kind != "service");
        let probe = match kind {
            "http" => Probe::Http {
                url: there(kind, "url", fields.url)?,
                status: fields.status.unwrap_or(200),
                json: fields.json,
            },
            "tcp" => Probe::Tcp {
                address: there(kind, "address", fields.address)?,
            },
            "exec" => Probe::Exec {
                run: there(kind, "run", fields.run)?,
            },
            "service" => Probe::Service {
                service: there(kind, "service", fields.service)?,
            },
            other => {
                return Err(format!(
                    "health: type '{}' is not http, tcp, exec or service",
                    text::name(other)
                ));
            }
        };
        Ok(Check {
            probe,
            interval_s: fields.interval_s.unwrap_or(1),
            timeout_s: fields.timeout_s.unwrap_or(5),
            retries: fields.retries.unwrap_or(3),
            start_period_s: fields.start_period_s.unwrap_or(10),
            stable_s: fields.stable_s.unwrap_or(10),
            required: fields.required.unwrap_or_default(),
            of,
            answered_by: fields.answered_by.unwrap_or_default(),
        })
    }
}

/// A field of a JSON document and the value it must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonField {
    /// JSON pointer (RFC 6901), such as `/version`.
    pub pointer: String,
    /// The value it must be equal to.
    pub equals: serde_json::Value,
}

/// A release: one version of a product, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The product it is for.
    pub product: Name,
    /// Semantic version.
    pub version: Version,
    /// The architecture as the kernel names it: `x86_64`, `aarch64`, …
    pub arch: Name,
    /// The channel it is published on.
    pub channel: Name,
    /// When it was made (RFC 3339).
    pub released: String,
    /// Only appliances that run this version or a newer one may install it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<Version>,
    /// For people.
    #[serde(default)]
    pub release_notes: String,
    /// All of its pieces.
    pub components: Vec<Component>,
    /// `install_path`s that the factory set has and this release has not: nothing is to run there.
    #[serde(default)]
    pub removed: Vec<RelPath>,
    /// The services that run its files.
    #[serde(default)]
    pub services: Vec<Service>,
    /// The data its programs use.
    #[serde(default)]
    pub data: Vec<Data>,
    /// How it moves the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrate: Option<Migrate>,
    /// What must hold after the update.
    #[serde(default)]
    pub health: Vec<Check>,
}

impl Manifest {
    /// Reads and checks a manifest. The error is one sentence that names the field.
    ///
    /// Unknown fields are ignored; an unknown `format` is refused before anything else is looked at.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("it is longer than {MAX_BYTES} bytes"));
        }
        let Format { format } = json::parse(bytes)?;
        if format != FORMAT {
            return Err(format!(
                "format {format} is not known (this version reads {FORMAT})"
            ));
        }
        let manifest: Manifest = json::parse(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The component with this name.
    pub fn component(&self, name: &Name) -> Option<&Component> {
        self.components.iter().find(|c| c.name == *name)
    }

    /// The component installed at this path.
    pub fn at(&self, path: &RelPath) -> Option<&Component> {
        self.components.iter().find(|c| c.install_path == *path)
    }

    /// The sum of all components' installed bytes.
    pub fn size_bytes(&self) -> u64 {
        self.components
            .iter()
            .fold(0, |sum, c| sum.saturating_add(c.size_bytes))
    }

    /// The rules that hold between fields.
    pub fn check(&self) -> Result<(), String> {
        for (what, count) in [
            ("components", self.components.len()),
            ("removed", self.removed.len()),
            ("services", self.services.len()),
            ("data", self.data.len()),
            ("health", self.health.len()),
        ] {
            if count > MAX_ITEMS {
                return Err(format!("{what}: {count} items are more than {MAX_ITEMS}"));
            }
        }
        if self.version.to_string().len() > MAX_VERSION {
            return Err(format!("version: it is longer than {MAX_VERSION} bytes"));
        }
        if self.components.is_empty() {
            return Err("components: a release has at least one".into());
        }
        let mut names = BTreeSet::new();
        for component in &self.components {
            component.check()?;
            if !names.insert(&component.name) {
                return Err(format!("components: duplicate '{}'", component.name));
            }
        }
        self.check_paths()?;
        for service in &self.services {
            self.check_service(service)?;
        }
        unique("services", self.services.iter().map(|s| &s.name))?;
        unique("data", self.data.iter().map(|d| &d.name))?;
        for data in &self.data {
            if data.accepts_from > data.accepts_to {
                return Err(format!("data: {} accepts no schema", data.name));
            }
        }
        if let Some(migrate) = &self.migrate {
            self.check_migration(migrate)?;
            seconds("migrate.timeout_s", migrate.timeout_s)?;
            if migrate.timeout_s == 0 {
                return Err("migrate.timeout_s: it must be at least 1".into());
            }
        }
        self.health
            .iter()
            .try_for_each(|check| self.check_health(check))
    }

    fn check_service(&self, service: &Service) -> Result<(), String> {
        let wrong = |what: String| Err(format!("services: {} {what}", service.name));
        let bin = self.at(&service.runs).filter(|c| c.kind == Kind::Bin);
        if bin.is_none() {
            return wrong(format!(
                "runs {}, which is not a bin component of this release",
                service.runs
            ));
        }
        if let Some(name) = service.uses.iter().find(|n| self.component(n).is_none()) {
            return wrong(format!(
                "uses {name}, which is not a component of this release"
            ));
        }
        if service.uses.len() > MAX_ITEMS {
            return wrong(format!("uses more than {MAX_ITEMS} components"));
        }
        if service.leaves.len() > MAX_ITEMS {
            return wrong(format!("leaves more than {MAX_ITEMS} programs"));
        }
        Ok(())
    }

    /// No path may lie on or below another component's: who owns a file must be plain.
    fn check_paths(&self) -> Result<(), String> {
        let installed = self.components.iter().map(|c| &c.install_path);
        let mut paths: Vec<&RelPath> = installed.chain(&self.removed).collect();
        // By segment, so that everything below a path follows it at once.
        paths.sort_by(|a, b| a.as_str().split('/').cmp(b.as_str().split('/')));
        for pair in paths.windows(2) {
            if pair[1].below(pair[0]).is_some() {
                return Err(format!("components: {} and {} overlap", pair[0], pair[1]));
            }
        }
        Ok(())
    }

    fn check_vector(&self, what: &str, vector: &[String]) -> Result<(), String> {
        let Some(program) = vector.first() else {
            return Err(format!("{what}: the argument vector is empty"));
        };
        let path: RelPath = program.parse().map_err(|e| format!("{what}: {e}"))?;
        if !self
            .components
            .iter()
            .any(|c| path.below(&c.install_path).is_some())
        {
            return Err(format!("{what}: {path} is in no component of this release"));
        }
        if vector.len() > MAX_ITEMS || vector.iter().any(|arg| arg.contains('\0')) {
            return Err(format!("{what}: too many arguments, or a NUL in one"));
        }
        Ok(())
    }

    fn check_migration(&self, migrate: &Migrate) -> Result<(), String> {
        for (what, vector) in [
            ("migrate.run", &migrate.run),
            ("migrate.check", &migrate.check),
            ("migrate.down", &migrate.down),
        ] {
            if what == "migrate.run" || !vector.is_empty() {
                self.check_vector(what, vector)?;
            }
            for argument in vector {
                if let Some(name) = unknown_place(argument, &migrate.touches) {
                    return Err(format!(
                        "{what}: it does not touch the data set of {{data:{name}}}"
                    ));
                }
            }
        }
        for name in &migrate.touches {
            if !self.data.iter().any(|data| data.name == *name) {
                return Err(format!("migrate.touches: {name} is not in data"));
            }
            let place = placeholder(name);
            if migrate.rehearse && !migrate.run.iter().any(|argument| argument.contains(&place)) {
                return Err(format!(
                    "migrate.rehearse: run has no {place}: it could not be pointed at a clone"
                ));
            }
        }
        Ok(())
    }

    fn check_health(&self, check: &Check) -> Result<(), String> {
        for (what, value) in [
            ("interval_s", check.interval_s),
            ("timeout_s", check.timeout_s),
            ("start_period_s", check.start_period_s),
            ("stable_s", check.stable_s),
        ] {
            seconds(&format!("health.{what}"), value)?;
        }
        if check.retries > MAX_RETRIES {
            return Err(format!(
                "health.retries: {} are more than {MAX_RETRIES}",
                check.retries
            ));
        }
        if check.interval_s == 0 || check.timeout_s == 0 {
            return Err("health: interval_s and timeout_s are at least 1".into());
        }
        if let Some(service) = &check.of
            && !self.services.iter().any(|s| s.name == *service)
        {
            return Err(format!(
                "health: {service} is not a service of this release"
            ));
        }
        match &check.probe {
            Probe::Http { url, .. } if !url.starts_with("http://") => Err(format!(
                "health: '{}' is not an http:// URL",
                shortened(&text::url(url))
            )),
            Probe::Http { status, .. } => {
                json::in_range("health.status", (*status).into(), 100..=599)
            }
            Probe::Tcp { address } if !address.contains(':') => {
                Err(format!("health: '{}' is not HOST:PORT", shortened(address)))
            }
            Probe::Exec { run } => self.check_vector("health.run", run),
            _ => Ok(()),
        }
    }
}

impl Component {
    fn check(&self) -> Result<(), String> {
        if self.entries > MAX_ENTRIES {
            return Err(format!(
                "components: {}: {} entries are more than {MAX_ENTRIES}",
                self.name, self.entries
            ));
        }
        let field = format!("components: {}: size_bytes", self.name);
        json::in_range(&field, self.size_bytes, 0..=MAX_SIZE)?;
        let path = self.install_path.as_str();
        let placed = match self.kind {
            Kind::Bin => path.contains('/'),
            Kind::Tree => path.contains('/') || path == "migrations",
        };
        let known = ["bin/", "share/", "migrations/"]
            .iter()
            .any(|top| path.starts_with(top));
        if !placed || !(known || path == "migrations") {
            return Err(format!(
                "components: {} goes to {path}, which is not below bin/, share/ or migrations",
                self.name
            ));
        }
        if self.kind == Kind::Bin && self.mode.0 & 0o100 == 0 {
            return Err(format!(
                "components: {} is a bin, but its mode is not executable",
                self.name
            ));
        }
        if let Some(path) = &self.factory_path {
            let good = path.strip_prefix('/').map(|rest| rest.parse::<RelPath>());
            if !matches!(good, Some(Ok(_))) {
                return Err(format!(
                    "components: {}: factory_path '{}' is not a plain absolute path",
                    self.name,
                    shortened(path)
                ));
            }
        }
        Ok(())
    }
}

/// The name in the first `{data:NAME}` that is none of these.
fn unknown_place<'a>(argument: &'a str, names: &[Name]) -> Option<&'a str> {
    let places = argument.split("{data:").skip(1);
    let named = places.map(|rest| rest.split('}').next().unwrap_or(rest));
    named
        .into_iter()
        .find(|name| !names.iter().any(|known| known.as_str() == *name))
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a Name>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{what}: duplicate '{name}'"));
        }
    }
    Ok(())
}

fn seconds(what: &str, value: u64) -> Result<(), String> {
    if value > MAX_SECONDS {
        return Err(format!(
            "{what}: {value} seconds are more than {MAX_SECONDS}"
        ));
    }
    Ok(())
}

/// For messages: hostile text is escaped and cut.
fn shortened(text: &str) -> String {
    text::clean(text, 80)
}
