//! The command line of `qx-update`: what people and scripts type and read. The only file of the appliance's side that
//! prints ([`output`]).
//!
//! Commands that change something run in a process of their own, the worker: it may have to outlive whoever asked
//! for the update. This process only follows it, and passes on its exit code.

mod answers;
#[cfg(feature = "update")]
mod change;
#[cfg(feature = "update")]
mod follow;
#[cfg(feature = "update")]
mod screen;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::FromArgs;

use qx_release::error::{Error, ErrorKind, Exit, Result};
use qx_release::{output, text};

use crate::model::config::{self, Config};
use crate::model::dataset::{DataSet, Method};
use crate::store::{self, Store};
use crate::system::host::Host;
use crate::system::log::{self, Destination, Level, Line};

/// Keeps the components of this appliance up to date.
#[derive(FromArgs)]
struct Arguments {
    /// use this directory as the appliance's root
    #[argh(option, arg_name = "dir")]
    root: Option<PathBuf>,
    /// use this configuration instead of /etc/qx-update/config.json
    #[argh(option, arg_name = "file")]
    config: Option<String>,
    /// print the version
    #[argh(switch, short = 'V')]
    version: bool,
    /// run in this process and write events to standard output
    #[cfg(feature = "update")]
    #[argh(switch, hidden_help)]
    worker: bool,
    /// fetch for the process at standard input and output
    #[cfg(feature = "update")]
    #[argh(switch, hidden_help)]
    fetcher: bool,
    #[argh(subcommand)]
    command: Option<Subcommand>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Subcommand {
    #[cfg(feature = "update")]
    Check(change::CheckArguments),
    #[cfg(feature = "update")]
    Apply(change::ApplyArguments),
    Status(StatusArguments),
    #[cfg(feature = "update")]
    Confirm(change::ConfirmArguments),
    #[cfg(feature = "update")]
    Rollback(change::RollbackArguments),
    Recover(RecoverArguments),
    Verify(VerifyArguments),
    #[cfg(feature = "update")]
    Doctor(DoctorArguments),
    Which(WhichArguments),
    Log(LogArguments),
    #[cfg(feature = "update")]
    Data(change::DataArguments),
    #[cfg(feature = "update")]
    Adopt(change::AdoptArguments),
    #[cfg(feature = "update")]
    Reset(change::ResetArguments),
}

/// Show what runs, what was tried last, how that ended, and what to do now.
#[derive(FromArgs)]
#[argh(subcommand, name = "status")]
struct StatusArguments {
    /// print JSON (docs/formats.md)
    #[argh(switch)]
    json: bool,
}

/// Repair the priority link at boot (files only), or the data (before the services that use it start).
#[derive(FromArgs)]
#[argh(subcommand, name = "recover")]
struct RecoverArguments {
    /// link (the default) or data
    #[argh(option, arg_name = "stage", default = "Stage::Link")]
    stage: Stage,
}

/// Verify the files of the installed releases against their manifests and seals.
#[derive(FromArgs)]
#[argh(subcommand, name = "verify")]
struct VerifyArguments {}

/// Examine the appliance for what an update, or the way back, would meet: exit 0 if all is good, 1 with warnings, 10 with errors.
#[cfg(feature = "update")]
#[derive(FromArgs)]
#[argh(subcommand, name = "doctor")]
struct DoctorArguments {
    /// print JSON (docs/formats.md)
    #[argh(switch)]
    json: bool,
}

/// Print the path that an init script finds for NAME.
#[derive(FromArgs)]
#[argh(subcommand, name = "which")]
struct WhichArguments {
    /// name of a program, such as qx-node
    #[argh(positional)]
    name: qx_release::manifest::Name,
}

/// Show the update log.
#[derive(FromArgs)]
#[argh(subcommand, name = "log")]
struct LogArguments {
    /// how many of the last lines to show (default: all)
    #[argh(option, short = 'n', arg_name = "lines")]
    lines: Option<usize>,
    /// print the lines as stored (JSON)
    #[argh(switch)]
    json: bool,
}

enum Stage {
    Link,
    #[cfg(feature = "update")]
    Data,
}

impl std::str::FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Stage, String> {
        match text {
            "link" => Ok(Stage::Link),
            #[cfg(feature = "update")]
            "data" => Ok(Stage::Data),
            _ => Err("must be link or data".into()),
        }
    }
}

/// Parses, runs, prints the error if there is one, and tells the exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> = arguments
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let given: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let given = options_first(&given);
    let parsed = match Arguments::from_args(&["qx-update"], &given) {
        Ok(parsed) => parsed,
        Err(early) => {
            return match early.status {
                Ok(()) => exit_code(answer(&early.output)),
                Err(()) => {
                    let text = early.output.trim().replace('\n', " ");
                    complain(&format!(
                        "reading the command line: {text} (see qx-update --help)"
                    ));
                    Exit::Usage.code().into()
                }
            };
        }
    };
    if parsed.version {
        return exit_code(answer(&version()));
    }
    #[cfg(feature = "update")]
    if parsed.fetcher {
        // Whom it would complain to is the update, which may be gone, and tells itself how this ended.
        let ended = crate::acquire::errands::run();
        return ended
            .map_or_else(|e| e.exit(), |()| Exit::Done)
            .code()
            .into();
    }
    match &parsed.command {
        Some(command) => exit_code(dispatch(&parsed, command)),
        None => exit_code(Err(Error::with(
            ErrorKind::Usage,
            "reading the command line: no command given (see qx-update --help)",
        ))),
    }
}

/// The exit code, after an error's one line.
fn exit_code(outcome: Result<Exit>) -> ExitCode {
    match outcome {
        Ok(exit) => exit.code().into(),
        Err(e) => {
            let denied = e.io_kind() == Some(io::ErrorKind::PermissionDenied);
            let hint = match denied && !rustix::process::geteuid().is_root() {
                true => ": run as root",
                false => "",
            };
            complain(&format!("{}{hint}", e.chain()));
            e.exit().code().into()
        }
    }
}

/// `--root` and `--config` may stand behind the command, too.
fn options_first<'a>(given: &[&'a str]) -> Vec<&'a str> {
    let mut first = Vec::new();
    let mut rest = Vec::new();
    let mut given = given.iter().copied();
    while let Some(argument) = given.next() {
        match argument {
            "--root" | "--config" => {
                first.push(argument);
                first.extend(given.next());
            }
            // The parser knows the long one only.
            "-h" => rest.push("--help"),
            _ => rest.push(argument),
        }
    }
    first.extend(rest);
    first
}

fn version() -> String {
    format!(
        "qx-update {} ({}, {})\n",
        env!("CARGO_PKG_VERSION"),
        env!("QX_COMMIT"),
        env!("QX_TARGET")
    )
}

fn dispatch(arguments: &Arguments, command: &Subcommand) -> Result<Exit> {
    let host = Host::new(arguments.root.as_deref().unwrap_or(Path::new("/")))?;
    let config = arguments.config.as_deref();
    match command {
        Subcommand::Status(a) => answers::status(&host, config, a.json),
        Subcommand::Verify(_) => answers::verify(&host, config),
        #[cfg(feature = "update")]
        Subcommand::Doctor(a) => answers::doctor(&host, config, a.json),
        Subcommand::Which(a) => answers::which(&host, config, a.name.as_str()),
        Subcommand::Log(a) => answers::log(&host, config, a),
        Subcommand::Recover(a) => match a.stage {
            Stage::Link => answers::recover_link(&host, config),
            #[cfg(feature = "update")]
            Stage::Data => change::recover_data(&host, config),
        },
        #[cfg(feature = "update")]
        Subcommand::Data(change::DataArguments {
            command: change::DataCommand::List(_),
        }) => answers::kept_data(&host, config),
        #[cfg(feature = "update")]
        command if arguments.worker => change::work(&host, config, command),
        #[cfg(feature = "update")]
        command => change::ask(&host, config, command),
    }
}

fn for_people(line: &Line) -> String {
    let mark = match line.level {
        Level::Info => "",
        Level::Warning => "warning: ",
        Level::Error => "error: ",
    };
    text::line(&format!(
        "{} {:<8} {mark}{}",
        line.time, line.step, line.message
    ))
}

fn complain(text: &str) {
    output::complain("qx-update", text);
}

/// For commands whose answer is what they print.
fn answer(text: &str) -> Result<Exit> {
    output::answer(text).map(|()| Exit::Done)
}

fn read_config(host: &Host, path: Option<&str>) -> Result<Config> {
    let path = host
        .path(path.unwrap_or(config::PATH))
        .map_err(|e| e.of(ErrorKind::Usage))?;
    let usage = |why: String| {
        Error::with(
            ErrorKind::Usage,
            format!("reading the configuration {}: {why}", path.display()),
        )
    };
    let bytes = store::read_if_there(&path, 1 << 20)
        .map_err(|e| e.of(ErrorKind::Usage))?
        .ok_or_else(|| usage("it does not exist".into()))?;
    let config = Config::parse(&bytes).map_err(usage)?;
    // A place may lead to another by a link. Where that cannot be followed, whoever opens it says why.
    let real = |path: &str| Some(host.real_path(path).ok()?.to_str()?.to_owned());
    let data_dir = real(&config.data_dir).unwrap_or_else(|| config.data_dir.clone());
    let files = |set: &&DataSet| set.method == Method::Files;
    for set in config.data.iter().filter(files) {
        if let Some(place) = real(&set.place)
            && let Some(own) = config::own_place(host.root(), &data_dir, &place)
        {
            return Err(usage(format!(
                "data: {}: the place {} resolves to {}: data must not overlap {}",
                set.name,
                text::name(&set.place),
                text::name(&place),
                text::path(&own)
            )));
        }
    }
    if let Some(path) = &config.log.path
        && let Some(place) = real(path)
        && let Some(own) = config::own_log(&data_dir, &place)
    {
        return Err(usage(format!(
            "log.path: {} resolves to {}: the log must not be in {}",
            text::name(path),
            text::name(&place),
            text::path(&own)
        )));
    }
    Ok(config)
}

/// For commands that must work without a configuration: what it says, else the defaults.
fn open_store(host: &Host, path: Option<&str>) -> Result<(Store, Destination, Result<Config>)> {
    let config = read_config(host, path);
    let (store, place) = match &config {
        Ok(config) => {
            let store = Store::new(host, &config.data_dir, &config.factory_manifest)?;
            let place = place(host, config, &store)?;
            (store, place)
        }
        Err(_) => {
            let store = Store::new(host, config::DATA_DIR, config::FACTORY)?;
            let place = Destination {
                path: store.path("update/log/update.log"),
                below: store.path(""),
                max_bytes: log::MAX_BYTES,
                keep: log::KEEP,
            };
            (store, place)
        }
    };
    Ok((store, place, config))
}

fn place(host: &Host, config: &Config, store: &Store) -> Result<Destination> {
    let (path, below) = match &config.log.path {
        Some(path) => (host.path(path)?, host.root().to_owned()),
        None => (store.path("update/log/update.log"), store.path("")),
    };
    Ok(Destination {
        path,
        below,
        max_bytes: config.log.max_bytes.unwrap_or(log::MAX_BYTES),
        keep: config.log.keep.unwrap_or(log::KEEP),
    })
}
