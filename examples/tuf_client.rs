//! A client for any TUF repository, over the same rules that an appliance applies: the command line that the
//! conformance suite of The Update Framework asks for.
//!
//! ```text
//! tuf_client --metadata-dir D init ROOT
//! tuf_client --metadata-dir D --metadata-url U refresh
//! tuf_client --metadata-dir D --metadata-url U --target-name T… --target-base-url B --target-dir X download
//! ```
//!
//! The root that is trusted from the start and what was verified since are kept in `D/.trust`, as on an appliance; after
//! each command `D` itself shows the latest metadata of each role, `ROLE.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::RelPath;
use qx_release::trust::Limits;
use qx_release::trust::clock::Clock;
use qx_update::fetch::port::Fetch;
use qx_update::fetch::{Options, Source};
use qx_update::repository::Repository;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tuf_client: {}", e.chain());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut options: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix("--") {
            Some(option) => {
                let value = arguments.next();
                let value = value.ok_or_else(|| usage(&format!("--{option} needs a value")))?;
                options.entry(option.to_owned()).or_default().push(value);
            }
            None => words.push(argument),
        }
    }
    let option = |name: &str| {
        let values = options.get(name).and_then(|values| values.last());
        values.ok_or_else(|| usage(&format!("--{name} is missing")))
    };
    let metadata = PathBuf::from(option("metadata-dir")?);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["init", root] => {
            let root = fs::read(root).doing(|| format!("reading {root}"))?;
            durable::create_dir(&trust(&metadata), 0o700)?;
            durable::write(&anchor(&metadata), &root)?;
            durable::write(&metadata.join("root.json"), &root)
        }
        ["refresh"] => {
            let servers = Servers::open(option("metadata-url")?, None)?;
            refresh(&servers, &metadata).map(drop)
        }
        ["download"] => {
            let targets = option("target-base-url")?;
            let servers = Servers::open(option("metadata-url")?, Some(targets))?;
            let directory = PathBuf::from(option("target-dir")?);
            let repository = refresh(&servers, &metadata)?;
            option("target-name")?;
            let mut names = options["target-name"].iter();
            let downloaded = names.try_for_each(|name| {
                download(&repository, &servers, name, &directory)
                    .doing(|| format!("downloading {}", name.escape_debug()))
            });
            show(&metadata)?;
            downloaded
        }
        _ => Err(usage("init ROOT, refresh or download is expected")),
    }
}

fn refresh(servers: &Servers, metadata: &Path) -> Result<Repository> {
    let anchor = anchor(metadata);
    let root = fs::read(&anchor).doing(|| format!("reading {}", anchor.display()))?;
    let (trust, limits) = (trust(metadata), Limits::default());
    let refreshed = Repository::refresh(servers, &trust, &root, clock(), &limits);
    show(metadata)?;
    refreshed
}

fn download(
    repository: &Repository,
    servers: &Servers,
    name: &str,
    directory: &Path,
) -> Result<()> {
    // A name that leaves the directory is none.
    let name: RelPath = name.parse().map_err(Error::new)?;
    let found = repository.find(servers, &name)?;
    let target = found
        .ok_or_else(|| Error::new("there is no such target"))?
        .target;
    let place = directory.join(&name);
    if fs::read(&place).is_ok_and(|bytes| target.check(name.as_str(), &bytes).is_ok()) {
        return Ok(());
    }
    let path = repository.path(&name, &target);
    let mut good = Vec::new();
    servers.required(&path, target.length, &mut |bytes| {
        target.check(&path, &bytes).doing(|| "verifying it")?;
        good = bytes;
        Ok(())
    })?;
    durable::create_dir(place.parent().unwrap_or(directory), 0o755)?;
    durable::write(&place, &good)
}

/// Shows what is trusted under the names that others expect: `root.json` is the latest root.
fn show(metadata: &Path) -> Result<()> {
    let trust = trust(metadata);
    let mut newest = 0;
    for directory in [trust.clone(), trust.join("delegated")] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".json") {
                continue;
            }
            let root = name
                .strip_suffix(".root.json")
                .and_then(|n| n.parse::<u64>().ok());
            let shown = match root {
                Some(version) if version < newest => continue,
                Some(version) => {
                    newest = version;
                    "root.json"
                }
                None => &name,
            };
            let bytes = fs::read(entry.path()).doing(|| format!("reading {name}"))?;
            durable::write(&metadata.join(shown), &bytes)?;
        }
    }
    Ok(())
}

/// The computer's, which is taken for right.
fn clock() -> Clock {
    let now = SystemTime::now();
    Clock::new(now, now)
}

fn trust(metadata: &Path) -> PathBuf {
    metadata.join(".trust")
}

fn anchor(metadata: &Path) -> PathBuf {
    metadata.join(".trusted-root")
}

/// Metadata and targets may lie on different servers.
struct Servers {
    metadata: Source,
    targets: Option<Source>,
}

impl Servers {
    fn open(metadata: &str, targets: Option<&String>) -> Result<Servers> {
        let options = Options::new(clock());
        let open = |url: &str| Source::open(url, &options);
        Ok(Servers {
            metadata: open(metadata)?,
            targets: targets.map(|url| open(url)).transpose()?,
        })
    }
}

impl Fetch for Servers {
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match (
            path.strip_prefix("metadata/"),
            path.strip_prefix("targets/"),
            &self.targets,
        ) {
            (Some(file), _, _) => self.metadata.small(file, limit),
            (_, Some(file), Some(targets)) => targets.small(file, limit),
            _ => Err(usage(&format!("nobody has {path}"))),
        }
    }
}

fn usage(why: &str) -> Error {
    Error::with(ErrorKind::Usage, why)
}
