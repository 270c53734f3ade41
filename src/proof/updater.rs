//! A release may bring another qx-update. Before it is switched to, that one must read what this one has written, and the image's own,
//! which recovers, must read what it writes: both are asked in a scratch directory, by commands that every version has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qx_release::error::{Context, Error, Result};
use qx_release::{json, text};
use qx_scratch::Scratch;
use serde::Deserialize;

use crate::model::config::{self, Config};
use crate::model::slot::Set;
use crate::store::{Store, read_if_there};
use crate::system::host::Host;

/// Where a release has its qx-update, if it brings one.
const PROGRAM: &str = "bin/qx-update";
/// The image's own, which every boot recovers with.
pub const FACTORY: &str = "/usr/bin/qx-update";
/// How long it may think about a record without slots.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A status is at most this long, in bytes.
const MAX_STATUS: u64 = 1 << 24;

/// What another qx-update says of a root (`status --json`).
#[derive(Debug, Deserialize)]
pub struct Told {
    /// Its version, if it says so.
    pub qx_update: Option<String>,
    /// The phase.
    pub phase: String,
    product: Option<String>,
    #[serde(default)]
    problems: Vec<String>,
}

/// Whether the qx-update of a set that is about to be switched to, if it brings one, can take over, and be taken over from.
///
/// # Errors
/// It cannot. That is the release's fault.
pub fn check(host: &Host, config: &Config, store: &Store, to: Set) -> Result<()> {
    let new = store.directory(to).join(PROGRAM);
    if !new.is_file() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let root = appliance(&scratch, host, config, store)?;
    let reads = |program: &Path| status_by(program, &root, TIMEOUT);
    let told = reads(&new).doing(|| "trying the qx-update of the release")?;
    // Whoever names another file each time has none here.
    if told.product.is_none() && root.join("etc/qx-update/config.json").is_file() {
        return Err(refused(&new, "the configuration", &told));
    }
    if told.phase == "unknown" {
        return Err(refused(
            &new,
            "the record of the version that runs now",
            &told,
        ));
    }
    // Its slots are not there: it goes over to the factory set, and has to write that.
    run(&scratch, &new, &root, &["recover"], TIMEOUT)
        .doing(|| "trying the qx-update of the release")?;
    let written = reads(&new).doing(|| "trying the qx-update of the release")?;
    let factory = host.path(FACTORY)?;
    if !factory.is_file() {
        return Ok(());
    }
    let read = reads(&factory).doing(|| "trying the image's qx-update")?;
    match read.phase != "unknown" && read.phase == written.phase {
        true => Ok(()),
        false => Err(refused(
            &factory,
            "what the release's qx-update writes",
            &read,
        )),
    }
}

/// A root with nothing in it but what this appliance's qx-update reads first.
fn appliance(scratch: &Scratch, host: &Host, config: &Config, store: &Store) -> Result<PathBuf> {
    let root = scratch.directory("root")?;
    let data = scratch.directory(&format!(
        "root/{}/update",
        config.data_dir.trim_start_matches('/')
    ))?;
    let copies = ["state.0", "state.1"];
    let copies = copies.map(|name| (store.path(&format!("update/{name}")), data.join(name)));
    let place = scratch.directory("root/etc/qx-update")?;
    let config = (host.path(config::PATH)?, place.join("config.json"));
    for (from, to) in copies.into_iter().chain([config]) {
        if from.is_file() {
            fs::copy(&from, &to).doing(|| format!("copying {}", text::path(&from)))?;
        }
    }
    Ok(root)
}

/// What a qx-update says of a root.
pub fn status_by(program: &Path, root: &Path, timeout: Duration) -> Result<Told> {
    let scratch = Scratch::new()?;
    run(&scratch, program, root, &["status", "--json"], timeout)?;
    let said = read_if_there(&scratch.path("output"), MAX_STATUS)?.unwrap_or_default();
    json::parse(&said).map_err(|why| Error::new(format!("running {}: {why}", text::path(program))))
}

fn run(
    scratch: &Scratch,
    program: &Path,
    root: &Path,
    arguments: &[&str],
    timeout: Duration,
) -> Result<()> {
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(arguments).env_clear();
    scratch.run(&mut command, timeout)
}

fn refused(program: &Path, what: &str, told: &Told) -> Error {
    let problem = told.problems.first();
    let why = problem.map_or(String::new(), |why| format!(": {}", text::line(why)));
    Error::new(format!("{} cannot read {what}{why}", text::path(program)))
}
