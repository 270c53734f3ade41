//! The release manifest, `release.json`: what a release consists of, how its services are proved and
//! their health is checked. Parsed once, at the edge, into types that cannot hold a hostile string.
//! `docs/formats.md` describes every field.

pub mod capabilities;
mod names;
mod rules;

use std::fmt;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json;
use crate::text;

pub use capabilities::Capabilities;
pub use names::{Mode, Name, ProgramPath, RelPath};

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
    /// File capabilities of a `bin`, such as `["cap_net_bind_service"]`: what it may do although no root starts it.
    #[serde(default, skip_serializing_if = "Capabilities::is_none")]
    pub capabilities: Capabilities,
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

impl Component {
    /// The absolute path of the factory copy.
    pub fn in_image(&self) -> String {
        let usual = || format!("/usr/{}", self.install_path);
        self.factory_path.clone().unwrap_or_else(usual)
    }

    /// Whether what is installed is the same, wherever that is.
    pub fn is_same(&self, other: &Component) -> bool {
        self.kind == other.kind
            && self.sha256 == other.sha256
            && self.size_bytes == other.size_bytes
            && self.entries == other.entries
            && self.mode == other.mode
            && self.capabilities == other.capabilities
    }
}

/// A service that the release brings the files of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// As the appliance's service manager knows it.
    pub name: Name,
    /// The program that its process must be seen to run: the `install_path` of a `bin` component, or a path inside a `tree`
    /// component. A script is run by the interpreter that its first line names.
    pub runs: RelPath,
    /// It does its work when it is started and ends: that it did is the service manager's word, for there is no process to see.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneshot: bool,
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
    /// The lowest schema number that the migration can begin with. Absent: it can begin with any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrates_from: Option<u64>,
    /// Whether these programs, or their migration, take data whose schema nobody knows: the first release on appliances that
    /// never recorded any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepts_unknown: bool,
    /// The schema number after `migrate.down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_down: Option<u64>,
}

/// What stands for the place of a data set, or of its copy, in a release's argument vectors.
pub fn placeholder(name: &Name) -> String {
    format!("{{data:{name}}}")
}

/// How the release moves the data to its schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    /// Argument vector; the first is a path inside the slot. Never a shell string. `{data:NAME}` stands for the place of
    /// the copy of a data set that it is to migrate.
    pub run: Vec<String>,
    /// Seconds until its whole process group is killed; of `check` and `down` likewise.
    pub timeout_s: u64,
    /// The data sets that it changes.
    #[serde(default)]
    pub touches: Vec<Name>,
    /// Whether it is tried on a copy of the data first, while the old services run.
    #[serde(default)]
    pub rehearse: bool,
    /// Whether it must be run on the live data itself: then the copy is what is kept for the way back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
    /// Argument vector like `run`, which exits 0 if this release can use the data; asked after each migration, before the
    /// data is used. Empty: nothing is asked.
    #[serde(default)]
    pub check: Vec<String>,
    /// Argument vector like `run`, which takes the data back to the schemas that `schema_down` names. Empty: going back
    /// needs the data from before.
    #[serde(default)]
    pub down: Vec<String>,
}

impl Migrate {
    /// Its argument vectors, each with its field. Only the first is always there.
    pub fn vectors(&self) -> [(&'static str, &Vec<String>); 3] {
        [
            ("migrate.run", &self.run),
            ("migrate.check", &self.check),
            ("migrate.down", &self.down),
        ]
    }
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

/// How the services are watched once the release was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// Seconds; 0: not at all.
    pub for_s: u64,
    /// Whether a crash loop in that time undoes the update. Else it is only reported.
    pub undo: bool,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            for_s: 900,
            undo: false,
        }
    }
}

impl Watch {
    fn is_default(&self) -> bool {
        *self == Watch::default()
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
    /// For how long its services are watched after that.
    #[serde(default, skip_serializing_if = "Watch::is_default")]
    pub watch: Watch,
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

    /// The component that is installed at this path, or a tree that has it inside.
    pub fn holding(&self, path: &RelPath) -> Option<&Component> {
        let holds = |c: &&Component| path.below(&c.install_path).is_some();
        self.components.iter().find(holds)
    }

    /// Where the program of a service is in the image, by an absolute path.
    pub fn in_image(&self, service: &Service) -> String {
        let held = self.holding(&service.runs);
        match held.and_then(|held| Some((held, service.runs.below(&held.install_path)?))) {
            Some((held, "")) => held.in_image(),
            Some((held, rest)) => format!("{}/{rest}", held.in_image()),
            None => format!("/usr/{}", service.runs),
        }
    }

    /// The sum of all components' installed bytes.
    pub fn size_bytes(&self) -> u64 {
        self.components
            .iter()
            .fold(0, |sum, c| sum.saturating_add(c.size_bytes))
    }
}
