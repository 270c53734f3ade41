//! Commands that change something. They run in a process of their own, the worker, which outlives whoever asked for it if it has
//! to; this process only follows it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use argh::FromArgs;
use semver::Version;

use qx_release::error::{Context, Error, ErrorKind, Exit, Result};
use qx_release::{durable, surroundings, tree};

use super::follow::follow;
use super::screen::{Progress, Screen};
use super::{Subcommand, open_store, place, read_config};
use crate::adoption::{self, legacy};
use crate::command::{Adopt, Appliance, Apply, Back, Confirmation, Goal};
use crate::model::config::{self, Config};
use crate::model::dataplan::NewerData;
use crate::model::id::OperationId;
use crate::model::source::SourceAddress;
use crate::recovery::data::DataStage;
use crate::store::Store;
use crate::system::host::Host;
use crate::system::log::Log;

/// Look for a newer release: exit 4 if there is one, 3 if not, 5 if all are refused.
#[derive(FromArgs)]
#[argh(subcommand, name = "check")]
pub(super) struct CheckArguments {
    /// use this url, directory or bundle instead of the configured sources
    #[argh(option, arg_name = "repo")]
    from: Option<String>,
    /// wait for another qx-update process to finish
    #[argh(switch)]
    wait: bool,
    /// json: print one event per line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// Install the newest release, or VERSION: exit 0 only when it runs and is proved healthy.
#[derive(FromArgs)]
#[argh(subcommand, name = "apply")]
pub(super) struct ApplyArguments {
    /// install this version instead of the newest
    #[argh(positional)]
    version: Option<Version>,
    /// use this url, directory or bundle instead of the configured sources
    #[argh(option, arg_name = "repo")]
    from: Option<String>,
    /// show what would be done without changing anything
    #[argh(switch)]
    dry_run: bool,
    /// try the named version even if it is quarantined or held
    #[argh(switch)]
    retry: bool,
    /// reinstall the release whose files are damaged
    #[argh(switch)]
    repair: bool,
    /// download and stage the release only; a later apply switches to it
    #[argh(switch)]
    stage_only: bool,
    /// before the services start: stop and start none; `confirm` proves the release afterwards
    #[argh(switch)]
    at_boot: bool,
    /// do not ask whether services may be interrupted (`inhibit`)
    #[argh(switch)]
    force: bool,
    /// wait for another qx-update process to finish, and until services may be interrupted
    #[argh(switch)]
    wait: bool,
    /// json: print one event per line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// End an open trial: prove it, or go back. Run at boot, after the runlevel is complete.
#[derive(FromArgs)]
#[argh(subcommand, name = "confirm")]
pub(super) struct ConfirmArguments {
    /// accept the release on trial without verifying it
    #[argh(switch)]
    force: bool,
    /// go on and watch confirmed releases for crash loops; does not end
    #[argh(switch)]
    watch: bool,
    /// wait for another qx-update process to finish
    #[argh(switch)]
    wait: bool,
    /// json: print one event per line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// Go back to the previous release, or to the factory set.
#[derive(FromArgs)]
#[argh(subcommand, name = "rollback")]
pub(super) struct RollbackArguments {
    /// previous (the default) or factory
    #[argh(
        option,
        arg_name = "set",
        default = "Back::Previous",
        from_str_fn(back)
    )]
    to: Back,
    /// set aside data that the older set does not accept, and restore the data kept from before
    #[argh(switch)]
    set_aside_data: bool,
    /// before the services start: stop and start none; `confirm` proves the set afterwards
    #[argh(switch)]
    at_boot: bool,
    /// do not ask whether services may be interrupted (`inhibit`)
    #[argh(switch)]
    force: bool,
    /// wait for another qx-update process to finish, and until services may be interrupted
    #[argh(switch)]
    wait: bool,
    /// json: print one event per line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// Take over an appliance whose programs lie in plain directories: they become the first release, and nothing is stopped.
#[derive(FromArgs)]
#[argh(subcommand, name = "adopt")]
pub(super) struct AdoptArguments {
    /// show what would be done without changing anything
    #[argh(switch)]
    dry_run: bool,
    /// put the plain directories back
    #[argh(switch)]
    undo: bool,
    /// wait for another qx-update process to finish
    #[argh(switch)]
    wait: bool,
}

/// Clear quarantined and held releases, a staged release, downloads and resolved problems.
#[derive(FromArgs)]
#[argh(subcommand, name = "reset")]
pub(super) struct ResetArguments {}

/// List, restore, export or delete kept data; rehearse a migration.
#[derive(FromArgs)]
#[argh(subcommand, name = "data")]
pub(super) struct DataArguments {
    #[argh(subcommand)]
    pub(super) command: DataCommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
pub(super) enum DataCommand {
    List(ListArguments),
    Rehearse(RehearseArguments),
    Restore(RestoreArguments),
    Export(ExportArguments),
    Drop(DropArguments),
}

/// List kept data, oldest first.
#[derive(FromArgs)]
#[argh(subcommand, name = "list")]
pub(super) struct ListArguments {}

/// Stage VERSION and try its migration on a copy of the data, while the services run.
#[derive(FromArgs)]
#[argh(subcommand, name = "rehearse")]
pub(super) struct RehearseArguments {
    /// the release whose migration is tried
    #[argh(positional)]
    version: Version,
    /// use this url, directory or bundle instead of the configured sources
    #[argh(option, arg_name = "repo")]
    from: Option<String>,
    /// try the release even if it is quarantined or held
    #[argh(switch)]
    retry: bool,
    /// wait for another qx-update process to finish
    #[argh(switch)]
    wait: bool,
}

/// Restore kept data for the running set; the live data is kept in its place.
#[derive(FromArgs)]
#[argh(subcommand, name = "restore")]
pub(super) struct RestoreArguments {
    /// the id shown by `data list`
    #[argh(positional)]
    id: OperationId,
    /// do not ask whether services may be interrupted (`inhibit`)
    #[argh(switch)]
    force: bool,
    /// wait for another qx-update process to finish, and until services may be interrupted
    #[argh(switch)]
    wait: bool,
}

/// Write kept data to a new tar archive.
#[derive(FromArgs)]
#[argh(subcommand, name = "export")]
pub(super) struct ExportArguments {
    /// the id shown by `data list`
    #[argh(positional)]
    id: OperationId,
    /// the archive to create; it must not exist yet
    #[argh(positional)]
    file: PathBuf,
}

/// Delete kept data.
#[derive(FromArgs)]
#[argh(subcommand, name = "drop")]
pub(super) struct DropArguments {
    /// the id shown by `data list`
    #[argh(positional)]
    id: OperationId,
}

fn back(text: &str) -> Result<Back, String> {
    match text {
        "previous" => Ok(Back::Previous),
        "factory" => Ok(Back::Factory),
        _ => Err("must be previous or factory".into()),
    }
}

/// The asker's side: what is wrong with the command line or the configuration is said before anything is started.
pub(super) fn ask(host: &Host, config: Option<&str>, command: &Subcommand) -> Result<Exit> {
    if let Subcommand::Apply(a) = command
        && a.retry
        && a.version.is_none()
    {
        return Err(Error::with(
            ErrorKind::Usage,
            "reading the command line: --retry needs a VERSION",
        ));
    }
    let (config, _) = config_for(host, config, command)?;
    let store = Store::new(host, &config.data_dir, &config.factory_manifest)?;
    store.may_read()?;
    let mut screen = Screen::new(settings(command).progress);
    // What is no operation is told by what it has changed.
    let is_done = || match command {
        Subcommand::Adopt(a) => !a.dry_run && adoption::is_done(&store, a.undo),
        _ => false,
    };
    let exit = follow(&store, &mut screen, &is_done)?;
    match screen.failed {
        Some(e) if only_looks(command) => Err(e),
        _ => Ok(exit),
    }
}

/// Whether a command changes nothing, and is asked for its answer.
fn only_looks(command: &Subcommand) -> bool {
    match command {
        Subcommand::Apply(a) => a.dry_run,
        Subcommand::Adopt(a) => a.dry_run,
        command => matches!(command, Subcommand::Check(_)),
    }
}

/// The configuration. An appliance that is to be adopted may have that of the updater before instead: with the text that it comes to,
/// and the file that says so.
fn config_for(
    host: &Host,
    path: Option<&str>,
    command: &Subcommand,
) -> Result<(Config, Option<(String, &'static str)>)> {
    if matches!(command, Subcommand::Adopt(_))
        && path.is_none()
        && !durable::is_there(&host.path(config::PATH)?)?
        && let Some((said, from)) = legacy::config(host)?
    {
        let text = format!("{said:#}\n");
        let config = Config::parse(text.as_bytes()).map_err(|why| {
            let what = format!("using the configuration of the updater before, {from}: {why}");
            Error::with(ErrorKind::Usage, what)
        })?;
        return Ok((config, Some((text, from))));
    }
    Ok((read_config(host, path)?, None))
}

/// What is asked for, whatever the command is.
#[derive(Default)]
struct Settings {
    progress: Option<Progress>,
    wait: bool,
    force: bool,
    at_boot: bool,
}

fn settings(command: &Subcommand) -> Settings {
    let at_boot = match command {
        Subcommand::Apply(a) => a.at_boot,
        Subcommand::Rollback(a) => a.at_boot,
        _ => false,
    };
    let (progress, wait, force) = match command {
        Subcommand::Check(a) => (a.progress, a.wait, false),
        Subcommand::Apply(a) => (a.progress, a.wait, a.force),
        Subcommand::Confirm(a) => (a.progress, a.wait, false),
        Subcommand::Rollback(a) => (a.progress, a.wait, a.force),
        Subcommand::Adopt(a) => (None, a.wait, false),
        Subcommand::Data(a) => match &a.command {
            DataCommand::Restore(a) => (None, a.wait, a.force),
            DataCommand::Rehearse(a) => (None, a.wait, false),
            _ => return Settings::default(),
        },
        _ => return Settings::default(),
    };
    Settings {
        progress,
        wait,
        force,
        at_boot,
    }
}

/// The worker's side.
pub(super) fn work(host: &Host, config: Option<&str>, command: &Subcommand) -> Result<Exit> {
    let (config, derived) = config_for(host, config, command)?;
    let mut appliance = open(host, config, &settings(command))?;
    if let Some((text, from)) = derived {
        keep_config(&mut appliance, &text, from, command)?;
    }
    let ended = carry_out(&mut appliance, command).or_else(|e| {
        appliance.log.error("end", e.chain());
        Ok(e.exit())
    });
    if !only_looks(command) {
        appliance.write_version_files();
        if let Ok(exit) = ended {
            appliance.leave_receipt(exit);
        }
    }
    ended
}

fn carry_out(appliance: &mut Appliance, command: &Subcommand) -> Result<Exit> {
    let here = std::env::current_dir().unwrap_or_default();
    surroundings::leave_directory();
    // It may be restarting whoever holds its terminal; SIGPIPE is ignored by Rust's runtime already.
    signal_hook::flag::register(
        signal_hook::consts::SIGHUP,
        Arc::new(AtomicBool::new(false)),
    )
    .doing(|| "ignoring SIGHUP")?;
    match command {
        Subcommand::Check(a) => {
            appliance.check(a.from.as_deref().map(SourceAddress::from).as_ref())
        }
        Subcommand::Apply(a) => appliance.apply(&Apply {
            version: a.version.clone(),
            from: a.from.as_deref().map(SourceAddress::from),
            dry_run: a.dry_run,
            retry: a.retry,
            repair: a.repair,
            goal: match a.stage_only {
                true => Goal::Staged,
                false => Goal::Proved,
            },
        }),
        Subcommand::Confirm(a) => {
            let ended = appliance.confirm(match a.force {
                true => Confirmation::ByPerson,
                false => Confirmation::ByProof,
            });
            match a.watch {
                true => appliance.watch(ended),
                false => ended,
            }
        }
        Subcommand::Rollback(a) => {
            let newer = match a.set_aside_data {
                true => NewerData::SetAside,
                false => NewerData::Keep,
            };
            appliance.rollback(a.to, newer)
        }
        Subcommand::Adopt(a) => appliance.adopt(match a {
            AdoptArguments { undo: true, .. } => Adopt::Undo,
            AdoptArguments { dry_run: true, .. } => Adopt::Plan,
            _ => Adopt::TakeOver,
        }),
        Subcommand::Reset(_) => appliance.reset(),
        Subcommand::Data(a) => data(appliance, &here, &a.command),
        Subcommand::Status(_)
        | Subcommand::Recover(_)
        | Subcommand::Verify(_)
        | Subcommand::Doctor(_)
        | Subcommand::Which(_)
        | Subcommand::Log(_) => Err(Error::new(
            "running the command: it does not use a worker process",
        )),
    }
}

fn data(appliance: &mut Appliance, here: &Path, command: &DataCommand) -> Result<Exit> {
    match command {
        DataCommand::Rehearse(a) => appliance.apply(&Apply {
            version: Some(a.version.clone()),
            from: a.from.as_deref().map(SourceAddress::from),
            retry: a.retry,
            goal: Goal::Rehearsed,
            ..Apply::default()
        }),
        DataCommand::Restore(a) => appliance.restore_data(a.id),
        DataCommand::Drop(a) => appliance.drop_data(a.id),
        DataCommand::Export(a) => appliance.export_data(a.id, &here.join(&a.file)),
        DataCommand::List(_) => Err(Error::new(
            "running the command: it does not use a worker process",
        )),
    }
}

/// Writes the configuration that follows from that of the updater before.
fn keep_config(
    appliance: &mut Appliance,
    text: &str,
    from: &str,
    command: &Subcommand,
) -> Result<()> {
    let what = format!("{} follows from {from}", config::PATH);
    appliance.log.info("adopt", what);
    if only_looks(command) {
        return Ok(());
    }
    let place = appliance.host.path(config::PATH)?;
    tree::make_parents(&place)?;
    durable::write_with_mode(&place, text.as_bytes(), 0o644)
}

fn open(host: &Host, config: Config, settings: &Settings) -> Result<Appliance> {
    let store = Store::new(host, &config.data_dir, &config.factory_manifest)?;
    let log = Log::new(place(host, &config, &store)?, true);
    Ok(Appliance {
        host: host.clone(),
        config,
        store,
        log,
        wait: settings.wait,
        force: settings.force,
        at_boot: settings.at_boot,
        medium: None,
    })
}

pub(super) fn recover_data(host: &Host, config: Option<&str>) -> Result<Exit> {
    surroundings::leave_directory();
    let (store, place, read) = open_store(host, config)?;
    let mut log = Log::new(place, false);
    if let Err(e) = &read {
        log.warning("recover", format!("using default settings: {}", e.chain()));
    }
    let stage = DataStage {
        host,
        store: &store,
        log: &mut log,
        config: read.as_ref().ok(),
    };
    stage.run().inspect_err(|e| log.error("recover", e.chain()))
}
