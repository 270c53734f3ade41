//! What the appliance decides: `/etc/qx-update/config.json`. What a release decides is in its manifest.
//!
//! An unknown or a missing field is an error that names the field and its place.

use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::dataset::{DataSet, Method};
use crate::model::source::SourceAddress;
use qx_release::json;
use qx_release::manifest::{MAX_SECONDS, MAX_SIZE, Name};
use qx_release::text;
use qx_release::trust;

/// The only configuration format there is.
pub const FORMAT: u32 = 1;
/// Where the configuration is, unless `--config` says otherwise.
pub const PATH: &str = "/etc/qx-update/config.json";
/// Where the writable partition is, unless the configuration says otherwise.
pub const DATA_DIR: &str = "/data";

/// Where the factory set's manifest is, unless the configuration says otherwise.
pub const FACTORY: &str = "/usr/share/qx-update/factory.json";
/// The longest age that may be allowed, in seconds (100 years).
const MAX_AGE: u64 = 3_153_600_000;
/// An upper bound for counts, beyond any sensible value.
const MANY: u64 = 1_000_000;

/// Entries of the data directory that belong to qx-update or lead to its files.
const OURS: [&str; 7] = [
    "update", "slots", "copies", "adopted", "current", "bin", "share",
];
/// Paths that belong to the image or to the kernel, and the configuration that decides updates.
const IMAGES: [&str; 9] = [
    "usr",
    "bin",
    "sbin",
    "lib",
    "boot",
    "proc",
    "sys",
    "dev",
    "etc/qx-update",
];

/// The appliance's configuration. `docs/formats.md` describes every field.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// [`FORMAT`].
    pub format: u32,
    /// Only releases of this product are installed.
    pub product: Name,
    /// Only releases of this channel are installed.
    pub channel: Name,
    /// Where releases come from: `https://` or `http://` URLs, or absolute paths of directories or bundles. They are tried in
    /// this order.
    pub sources: Vec<SourceAddress>,
    /// The TUF root that everything is trusted from, absolute.
    #[serde(default = "trust_root")]
    pub trust_root: String,
    /// PEM file with the certificate authorities for `https://`. Absent: the system's bundle.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// File with extra headers for requests to `sources`, absolute.
    #[serde(default)]
    pub headers_file: Option<String>,
    /// The proxy for requests. Absent: as the environment says.
    #[serde(default)]
    pub proxy: Option<Proxy>,
    /// The writable partition, absolute.
    #[serde(default = "data_dir")]
    pub data_dir: String,
    /// The factory set's manifest, absolute.
    #[serde(default = "factory_manifest")]
    pub factory_manifest: String,
    /// The update log.
    #[serde(default)]
    pub log: Log,
    /// How services are controlled.
    #[serde(default)]
    pub services: Services,
    /// The data that releases may migrate.
    #[serde(default)]
    pub data: Vec<DataSet>,
    /// The user that releases' migrations run as. Absent: root.
    #[serde(default)]
    pub migration_user: Option<String>,
    /// Who may say that services must not be interrupted now.
    #[serde(default)]
    pub inhibit: Inhibit,
    /// Files in which programs of the appliance look for the version that runs, absolute; `{component}` stands for each component.
    #[serde(default)]
    pub version_files: Vec<String>,
    /// The watchdog device that `confirm` kicks while a trial is open, absolute. Absent: none.
    #[serde(default)]
    pub watchdog: Option<String>,
    /// What this machine is called, and signs with.
    #[serde(default)]
    pub machine: Machine,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
}

/// What this machine is called, and signs with, in the receipts that it leaves on media.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Its name. Absent: `/etc/machine-id`, else the host name.
    pub name: Option<Name>,
    /// File with an Ed25519 private key in PEM (PKCS#8), absolute. Absent: receipts are not signed.
    pub key_file: Option<String>,
}

/// Who may say that services must not be interrupted now.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inhibit {
    /// A file that applications lock (flock(2)) as long as they must not be interrupted, absolute.
    pub lock: Option<String>,
    /// Argument vector. Exit 0: nothing is in the way.
    pub command: Vec<String>,
}

/// The proxy for requests.
#[derive(Clone, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct Proxy {
    /// `http://[USER:PASSWORD@]HOST[:PORT]`. Absent: no proxy, whatever the environment says.
    pub url: Option<String>,
    /// Hosts (with their subdomains) that are contacted directly; `*` for all.
    pub no_proxy: Vec<String>,
}

/// An error names the field and never shows its value, which may contain a password.
impl TryFrom<serde_json::Value> for Proxy {
    type Error = &'static str;

    fn try_from(value: serde_json::Value) -> Result<Proxy, &'static str> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            url: Option<String>,
            #[serde(default)]
            no_proxy: Vec<String>,
        }
        let Fields { url, no_proxy } = serde_json::from_value(value).map_err(
            |_| "proxy: must be an object with `url`, a string, and `no_proxy`, a list of strings",
        )?;
        Ok(Proxy { url, no_proxy })
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

/// The update log.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Absolute path. Absent: `DATA_DIR/update/log/update.log`.
    pub path: Option<String>,
    /// Bytes after which it is rotated. Absent: 1 MiB.
    pub max_bytes: Option<u64>,
    /// How many rotated files are kept. Absent: 3.
    pub keep: Option<u32>,
}

/// How services are controlled.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(try_from = "ServicesFields", tag = "manager", rename_all = "lowercase")]
pub enum Services {
    /// OpenRC, through `rc-service`.
    OpenRc {
        /// Where a service's pid is; `{name}` stands for the service. Default: what OpenRC recorded, else
        /// `/run/{name}.pid`.
        pidfile: Option<String>,
    },
    /// Argument vectors, in which `{name}` stands for the service.
    Commands {
        /// Starts the service, and returns when it is started.
        start: Vec<String>,
        /// Stops the service, and returns when it is stopped. Exit 0 if it did not run.
        stop: Vec<String>,
        /// Exit 0: the service runs.
        status: Vec<String>,
        /// Where a service's pid is. Absent: found by the file that it executes.
        pidfile: Option<String>,
    },
    /// There are no services to control: the link is switched, and only health checks tell good from bad.
    None {},
}

/// The fields of all managers. Deriving this for the enum would take much more code, and its errors would not locate a
/// wrong field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicesFields {
    manager: String,
    pidfile: Option<String>,
    start: Option<Vec<String>>,
    stop: Option<Vec<String>>,
    status: Option<Vec<String>>,
}

impl TryFrom<ServicesFields> for Services {
    type Error = String;

    fn try_from(fields: ServicesFields) -> Result<Services, String> {
        let manager = &*fields.manager;
        let has = [
            ("start", fields.start.is_some()),
            ("stop", fields.stop.is_some()),
            ("status", fields.status.is_some()),
            ("pidfile", fields.pidfile.is_some()),
        ];
        let takes: &[&str] = match manager {
            "openrc" => &["pidfile"],
            "commands" => &["start", "stop", "status", "pidfile"],
            "none" => &[],
            _ => {
                return Err(format!(
                    "services.manager: '{}' is not openrc, commands or none",
                    text::name(manager)
                ));
            }
        };
        if let Some((field, _)) = has
            .iter()
            .find(|(field, has)| *has && !takes.contains(field))
        {
            return Err(format!(
                "services: `{field}` does not apply to the manager {manager}"
            ));
        }
        let vector = |field, vector: Option<Vec<String>>| {
            vector.ok_or_else(|| format!("services: the manager commands requires `{field}`"))
        };
        Ok(match manager {
            "openrc" => Services::OpenRc {
                pidfile: fields.pidfile,
            },
            "none" => Services::None {},
            _ => Services::Commands {
                start: vector("start", fields.start)?,
                stop: vector("stop", fields.stop)?,
                status: vector("status", fields.status)?,
                pidfile: fields.pidfile,
            },
        })
    }
}

impl Services {
    fn check(&self) -> Result<(), String> {
        if let Services::Commands {
            start,
            stop,
            status,
            ..
        } = self
        {
            for (field, vector) in [("start", start), ("stop", stop), ("status", status)] {
                if vector.is_empty() {
                    return Err(format!("services.{field}: the argument vector is empty"));
                }
            }
        }
        Ok(())
    }
}

impl Default for Services {
    fn default() -> Services {
        Services::OpenRc { pidfile: None }
    }
}

/// Limits, each with a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest release, installed, in bytes. 8 GiB.
    pub release_bytes: u64,
    /// Seconds to establish a connection. 15.
    pub connect_timeout_s: u64,
    /// Seconds without data after which a transfer is aborted. 30.
    pub stall_timeout_s: u64,
    /// Seconds to fetch one metadata file or manifest, retries included. 300.
    pub metadata_timeout_s: u64,
    /// The minimum transfer rate of an artifact in bytes per second, measured over each `stall_timeout_s`. 100.
    pub min_bytes_per_s: u64,
    /// The maximum rate of a transfer in bytes per second. None.
    pub max_bytes_per_s: Option<u64>,
    /// How often a failed transfer is retried, with increasing delays. 5.
    pub retries: u32,
    /// Seconds a service may take to start or to stop. 60.
    pub service_timeout_s: u64,
    /// How many boots a trial may take. 3.
    pub trial_boots: u32,
    /// Seconds after which a trial is too old for its data to be restored automatically. A day.
    pub trial_max_age_s: u64,
    /// Seconds for which data is kept that an update replaced, or a failed release wrote. 7 days.
    pub keep_data_s: u64,
    /// The limits of a migration. None.
    pub migration: MigrationLimits,
    /// The limits for a repository's metadata.
    pub trust: trust::Limits,
}

/// The limits of a migration with all processes that it starts, enforced by its control group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationLimits {
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

impl MigrationLimits {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == MigrationLimits::default()
    }

    fn ranges(&self) -> [Ranged; 2] {
        let memory = self.memory_bytes.unwrap_or(1 << 20);
        [
            ("memory_bytes", memory, 1 << 20..=MAX_SIZE),
            ("tasks", self.tasks.unwrap_or(1), 1..=MANY),
        ]
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            release_bytes: 8 << 30,
            connect_timeout_s: 15,
            stall_timeout_s: 30,
            metadata_timeout_s: 300,
            min_bytes_per_s: 100,
            max_bytes_per_s: None,
            retries: 5,
            service_timeout_s: 60,
            trial_boots: 3,
            trial_max_age_s: 86_400,
            keep_data_s: 7 * 86_400,
            migration: MigrationLimits::default(),
            trust: trust::Limits::default(),
        }
    }
}

impl Config {
    /// How long a service may take to start or to stop.
    pub fn service_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.service_timeout_s)
    }

    /// Reads and checks a configuration. The error is one sentence that names field, line and column.
    pub fn parse(bytes: &[u8]) -> Result<Config, String> {
        let config: Config = json::parse(bytes)?;
        if config.format != FORMAT {
            return Err(format!(
                "format {} is not known (this version reads {FORMAT})",
                config.format
            ));
        }
        if config.sources.is_empty() {
            return Err("sources: at least one is required".into());
        }
        config.check_paths()?;
        config.check_sources()?;
        config.services.check()?;
        config.check_data()?;
        let log = config.log.path.iter().map(|path| ("log.path", path));
        let versions = config
            .version_files
            .iter()
            .map(|path| ("version_files", path));
        for (field, path) in log.chain(versions) {
            if let Some(own) = own_log(&config.data_dir, path) {
                let (path, own) = (text::name(path), text::path(&own));
                return Err(format!("{field}: {path} must not be in {own}"));
            }
        }
        config.check_numbers()?;
        Ok(config)
    }

    fn check_paths(&self) -> Result<(), String> {
        let log = self.log.path.as_deref().map(|p| ("log.path", p));
        let ca = self.ca_file.as_deref().map(|p| ("ca_file", p));
        let headers = self.headers_file.as_deref().map(|p| ("headers_file", p));
        let key = self.machine.key_file.as_deref();
        let key = key.map(|p| ("machine.key_file", p));
        let watchdog = self.watchdog.as_deref().map(|p| ("watchdog", p));
        let paths = [
            ("trust_root", self.trust_root.as_str()),
            ("data_dir", &self.data_dir),
            ("factory_manifest", &self.factory_manifest),
        ];
        let lock = self.inhibit.lock.as_deref().map(|p| ("inhibit.lock", p));
        let versions = self.version_files.iter().map(|p| ("version_files", &**p));
        let optional = log
            .into_iter()
            .chain(ca)
            .chain(headers)
            .chain(key)
            .chain(watchdog)
            .chain(lock)
            .chain(versions);
        for (field, path) in paths.into_iter().chain(optional) {
            if !path.starts_with('/') {
                let path = text::name(path);
                return Err(format!("{field}: '{path}' is not an absolute path"));
            }
        }
        Ok(())
    }

    fn check_sources(&self) -> Result<(), String> {
        for source in &self.sources {
            let good = match source {
                SourceAddress::Url(url) => {
                    url.starts_with("https://") || url.starts_with("http://")
                }
                SourceAddress::Path(path) => path.starts_with('/'),
                SourceAddress::Medium(medium) => !medium.device.ends_with('='),
            };
            if !good {
                return Err(format!(
                    "sources: '{source}' is neither an http(s):// URL nor an absolute path, nor a medium (LABEL=NAME:/PATH)"
                ));
            }
        }
        Ok(())
    }

    fn check_data(&self) -> Result<(), String> {
        for (number, set) in self.data.iter().enumerate() {
            set.check()?;
            if self.data[..number]
                .iter()
                .any(|other| other.name == set.name)
            {
                return Err(format!("data: duplicate '{}'", set.name));
            }
        }
        for set in self.data.iter().filter(|set| set.method == Method::Files) {
            if let Some(own) = own_place(Path::new("/"), &self.data_dir, &set.place) {
                return Err(format!(
                    "data: {}: the place {} must not overlap {}",
                    set.name,
                    text::place(&set.place),
                    text::path(&own)
                ));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), String> {
        let log = [
            ("max_bytes", self.log.max_bytes.unwrap_or(1), 1..=1 << 40),
            ("keep", self.log.keep.unwrap_or(0).into(), 0..=1000),
        ];
        in_ranges("log", log)?;
        in_ranges("limits", self.limits.ranges())?;
        in_ranges("limits.migration", self.limits.migration.ranges())?;
        in_ranges("limits.trust", trust_ranges(&self.limits.trust))
    }
}

/// The name of a number, its value and its allowed range.
type Ranged = (&'static str, u64, RangeInclusive<u64>);

impl Limits {
    fn ranges(&self) -> [Ranged; 11] {
        const SECONDS: RangeInclusive<u64> = 1..=MAX_SECONDS;
        let fastest = self.max_bytes_per_s.unwrap_or(1 << 40);
        [
            ("release_bytes", self.release_bytes, 1..=MAX_SIZE),
            ("connect_timeout_s", self.connect_timeout_s, SECONDS),
            ("stall_timeout_s", self.stall_timeout_s, SECONDS),
            ("metadata_timeout_s", self.metadata_timeout_s, SECONDS),
            ("min_bytes_per_s", self.min_bytes_per_s, 0..=1 << 40),
            ("max_bytes_per_s", fastest, 1024..=1 << 40),
            ("retries", self.retries.into(), 0..=1000),
            ("service_timeout_s", self.service_timeout_s, SECONDS),
            ("trial_boots", self.trial_boots.into(), 1..=MANY),
            ("trial_max_age_s", self.trial_max_age_s, 0..=MAX_AGE),
            ("keep_data_s", self.keep_data_s, 0..=MAX_AGE),
        ]
    }
}

fn trust_ranges(trust: &trust::Limits) -> [Ranged; 12] {
    const BYTES: RangeInclusive<u64> = 1..=1 << 30;
    let size = |count: usize| count as u64;
    [
        ("root_bytes", trust.root_bytes, BYTES),
        ("timestamp_bytes", trust.timestamp_bytes, BYTES),
        ("snapshot_bytes", trust.snapshot_bytes, BYTES),
        ("targets_bytes", trust.targets_bytes, BYTES),
        ("root_rotations", trust.root_rotations, 0..=MANY),
        ("keys", size(trust.keys), 1..=MANY),
        ("signatures", size(trust.signatures), 1..=MANY),
        ("delegations", size(trust.delegations), 0..=MANY),
        ("delegated_roles", size(trust.delegated_roles), 0..=MANY),
        ("role_name_bytes", size(trust.role_name_bytes), 1..=76),
        ("json_members", size(trust.json_members), 1..=100 * MANY),
        ("json_depth", size(trust.json_depth), 1..=128),
    ]
}

fn in_ranges<const N: usize>(section: &str, numbers: [Ranged; N]) -> Result<(), String> {
    for (field, value, range) in numbers {
        json::in_range(&format!("{section}.{field}"), value, range)?;
    }
    Ok(())
}

/// The path that must not hold data and that `place` overlaps (one contains the other), if any. `root` precedes the
/// image's paths, and the other two if they are resolved paths.
pub fn own_place(root: &Path, data_dir: &str, place: &str) -> Option<PathBuf> {
    let (data_dir, place) = (plain(data_dir), plain(place));
    if data_dir.starts_with(&place) {
        return Some(data_dir);
    }
    let ours = OURS.iter().map(|below| data_dir.join(below));
    let images = IMAGES
        .iter()
        .map(|path| plain(&format!("{}/{path}", root.display())));
    ours.chain(images)
        .find(|own| own.starts_with(&place) || place.starts_with(own))
}

/// The directory that must not hold the log, if `path` lies in one.
pub fn own_log(data_dir: &str, path: &str) -> Option<PathBuf> {
    let (data_dir, path) = (plain(data_dir), plain(path));
    let logs = data_dir.join("update/log");
    let mut ours = OURS.iter().map(|below| data_dir.join(below));
    ours.find(|own| path.starts_with(own) && (!path.starts_with(&logs) || path == logs))
}

/// An absolute path without `.`, `..` and repeated slashes.
fn plain(path: &str) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    plain
}

fn trust_root() -> String {
    "/etc/qx-update/root.json".into()
}

fn data_dir() -> String {
    DATA_DIR.into()
}

fn factory_manifest() -> String {
    FACTORY.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MINIMAL: &str = r#"{"format":1,"product":"quantix-vdc","channel":"stable","sources":["https://updates.example/vdc"]}"#;

    #[test]
    fn the_minimal_configuration_has_safe_defaults() {
        let config = Config::parse(MINIMAL.as_bytes()).unwrap();
        assert_eq!(config.data_dir, "/data");
        assert_eq!(config.services, Services::OpenRc { pidfile: None });
        assert_eq!(config.limits.trial_boots, 3);
    }

    #[test]
    fn a_wrong_field_is_named_with_its_place() {
        let unknown = MINIMAL.replace("\"format\"", "\"colour\":1,\n\"format\"");
        let missing = MINIMAL.replace("\"channel\":\"stable\",", "");
        for (text, words) in [
            (
                unknown.as_str(),
                ["unknown field `colour`", "line 1 column"],
            ),
            (
                missing.as_str(),
                ["missing field `channel`", "line 1 column"],
            ),
        ] {
            let error = Config::parse(text.as_bytes()).unwrap_err();
            assert!(words.iter().all(|w| error.contains(w)), "{error}");
        }
        for (good, bad, word) in [
            ("\"format\":1", "\"format\":2", "format 2"),
            ("https://updates.example/vdc", "ftp://x", "sources"),
            ("[\"https://updates.example/vdc\"]", "[]", "sources"),
            (
                "\"format\":1",
                "\"format\":1,\"data_dir\":\"data\"",
                "data_dir",
            ),
            (
                "\"format\":1",
                "\"format\":1,\"headers_file\":\"token\"",
                "headers_file",
            ),
            (
                "\"format\":1",
                "\"format\":1,\"proxy\":\"http://p\"",
                "proxy",
            ),
            (
                "\"format\":1",
                "\"format\":1,\"limits\":{\"trial_boots\":0}",
                "trial_boots",
            ),
            (
                "\"format\":1",
                "\"format\":1,\"services\":{\"manager\":\"commands\",\"start\":[],\"stop\":[\"x\"],\"status\":[\"x\"]}",
                "services.start",
            ),
        ] {
            let error = Config::parse(MINIMAL.replace(good, bad).as_bytes()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    /// The minimal configuration with a value at a place in it.
    fn with(pointer: &str, value: serde_json::Value) -> Result<Config, String> {
        let mut config: serde_json::Value = serde_json::from_str(MINIMAL).unwrap();
        let mut at = &mut config;
        for name in pointer.split('.') {
            at = &mut at[name];
        }
        *at = value;
        Config::parse(config.to_string().as_bytes())
    }

    #[test]
    fn every_number_has_a_range_that_an_error_tells() {
        let limits = [
            "release_bytes",
            "connect_timeout_s",
            "stall_timeout_s",
            "metadata_timeout_s",
            "min_bytes_per_s",
            "max_bytes_per_s",
            "retries",
            "service_timeout_s",
            "trial_boots",
            "trial_max_age_s",
            "keep_data_s",
            "migration.memory_bytes",
            "migration.tasks",
            "trust.root_bytes",
            "trust.timestamp_bytes",
            "trust.snapshot_bytes",
            "trust.targets_bytes",
            "trust.root_rotations",
            "trust.keys",
            "trust.signatures",
            "trust.delegations",
            "trust.delegated_roles",
            "trust.role_name_bytes",
            "trust.json_members",
            "trust.json_depth",
        ];
        let fields = limits.map(|name| format!("limits.{name}"));
        for field in fields
            .iter()
            .map(String::as_str)
            .chain(["log.keep", "log.max_bytes"])
        {
            // The highest that the field's own type takes: none may be left without a bound.
            let highest = [u64::MAX, u32::MAX.into()].map(|value| with(field, value.into()));
            let ranged = highest.iter().filter_map(|read| read.as_ref().err());
            let told =
                |error: &&String| error.starts_with(field) && error.contains("is out of range");
            assert!(ranged.filter(told).count() > 0, "{field}: {highest:?}");
            for wrong in [json!(-1), json!(1.5), json!("many"), json!(u64::MAX)] {
                let error = with(field, wrong).unwrap_err();
                let name = field.rsplit('.').next().unwrap();
                assert!(error.contains(name), "{field}: {error}");
            }
        }
        assert!(with("log.keep", json!(1000)).is_ok());
        for (field, value) in [
            ("limits.service_timeout_s", 0),
            ("limits.trial_boots", 0),
            ("log.keep", 1001),
            ("limits.stall_timeout_s", 86_401),
        ] {
            let error = with(field, json!(value)).unwrap_err();
            assert!(
                error.contains(&format!("{field}: {value} is out of range")),
                "{error}"
            );
        }
    }

    #[test]
    fn data_lies_where_nothing_else_does() {
        let data = |place: &str| json!([{"name": "db", "method": "files", "place": place}]);
        for place in [
            "/data/update",
            "/data/update/state.0",
            "/data/slots",
            "/data/slots/a/share/db",
            "/data/current/share",
            "/data/bin",
            "/data/copies/x",
            "/data",
            "/usr",
            "/usr/share/db",
            "/etc",
            "/etc/qx-update",
            "/proc/sys",
            "/sys",
            "/dev/shm/db",
            "/",
            "//usr",
            "/usr/",
            "/var/../usr",
            "/data//update",
            "/data/db/../slots",
        ] {
            let error = with("data", data(place)).unwrap_err();
            assert!(error.contains("data: db: the place"), "{place}: {error}");
        }
        for place in [
            "/data/db",
            "/data/slots-of-time",
            "/var/lib/db",
            "/data/binaries",
            "/usrx",
        ] {
            assert!(with("data", data(place)).is_ok(), "{place}");
        }
        for data_dir in ["/mnt/x/", "//mnt/./x", "/mnt/y/../x"] {
            let mut config: serde_json::Value = serde_json::from_str(MINIMAL).unwrap();
            config["data_dir"] = json!(data_dir);
            for place in ["/mnt", "/mnt/x", "/mnt/x/update/trust"] {
                config["data"] = data(place);
                let error = Config::parse(config.to_string().as_bytes()).unwrap_err();
                assert!(error.contains("the place"), "{data_dir} {place}: {error}");
            }
        }
    }

    #[test]
    fn the_log_lies_where_nothing_else_does() {
        for path in [
            "/data/slots/a/log",
            "/data//slots/x",
            "/data/update/state.0",
            "/data/x/../update/lock",
            "/data/update/log",
        ] {
            let error = with("log.path", json!(path)).unwrap_err();
            assert!(error.contains("log.path"), "{path}: {error}");
        }
        for path in [
            "/data/update/log/other.log",
            "/var/log/update.log",
            "/data/log",
        ] {
            assert!(with("log.path", json!(path)).is_ok(), "{path}");
        }
    }
}
