//! A release may bring another qx-update. Before it is switched to, that one must read what this one has written, and the image's own,
//! which recovers, must read what it writes: both are asked in a scratch directory, by commands that every version has.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use qx_release::error::{Context, Error, Result};
use qx_release::text;
use qx_scratch::Scratch;
use serde_json::Value;

use crate::model::config::{self, Config};
use crate::model::slot::Set;
use crate::store::Store;
use crate::system::host::Host;

/// Where a release has its qx-update, if it brings one.
const PROGRAM: &str = "bin/qx-update";
/// The image's own, which every boot recovers with.
const FACTORY: &str = "/usr/bin/qx-update";
/// How long it may think about a record without slots.
const TIMEOUT: Duration = Duration::from_secs(30);

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
    let reads = |program: &Path| status(&scratch, program, &root);
    let told = reads(&new).doing(|| "trying the qx-update of the release")?;
    // Whoever names another file each time has none here.
    if told["product"].is_null() && root.join("etc/qx-update/config.json").is_file() {
        return Err(refused(&new, "the configuration", &told));
    }
    if told["phase"] == "unknown" {
        return Err(refused(
            &new,
            "the record of the version that runs now",
            &told,
        ));
    }
    // Its slots are not there: it goes over to the factory set, and has to write that.
    run(&scratch, &new, &root, &["recover"]).doing(|| "trying the qx-update of the release")?;
    let written = reads(&new).doing(|| "trying the qx-update of the release")?;
    let factory = host.path(FACTORY)?;
    if !factory.is_file() {
        return Ok(());
    }
    let read = reads(&factory).doing(|| "trying the image's qx-update")?;
    match read["phase"] != "unknown" && read["phase"] == written["phase"] {
        true => Ok(()),
        false => Err(refused(
            &factory,
            "what the release's qx-update writes",
            &read,
        )),
    }
}

/// A root with nothing in it but what this appliance's qx-update reads first.
fn appliance(
    scratch: &Scratch,
    host: &Host,
    config: &Config,
    store: &Store,
) -> Result<std::path::PathBuf> {
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

/// What a qx-update says of that root.
fn status(scratch: &Scratch, program: &Path, root: &Path) -> Result<Value> {
    let said = run(scratch, program, root, &["status", "--json"])?;
    serde_json::from_slice(&said).doing(|| format!("reading the status by {}", text::path(program)))
}

fn run(scratch: &Scratch, program: &Path, root: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(arguments).env_clear();
    scratch.run(&mut command, TIMEOUT)?;
    let output = scratch.path("output");
    fs::read(&output).doing(|| format!("reading {}", text::path(&output)))
}

fn refused(program: &Path, what: &str, status: &Value) -> Error {
    let problem = status["problems"][0].as_str();
    let why = problem.map_or(String::new(), |why| format!(": {}", text::line(why)));
    Error::new(format!("{} cannot read {what}{why}", text::path(program)))
}
