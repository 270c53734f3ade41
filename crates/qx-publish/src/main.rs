//! `qx-publish`: makes the releases that `qx-update` installs.

#![warn(unreachable_pub)]

mod arguments;
mod commands;

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use argh::FromArgs as _;
use arguments::{Arguments, Command};
use qx_release::error::{Exit, Result};
use qx_release::output;

fn main() -> ExitCode {
    qx_release::surroundings::settle();
    let arguments: Option<Vec<String>> =
        std::env::args_os().map(|a| a.into_string().ok()).collect();
    let Some(arguments) = arguments else {
        return wrong_usage("an argument is not UTF-8");
    };
    // The parser knows the long one only.
    let known = |argument| if argument == "-h" { "--help" } else { argument };
    let arguments = arguments.iter().skip(1).map(String::as_str).map(known);
    let arguments: Vec<&str> = arguments.collect();
    let arguments = match Arguments::from_args(&["qx-publish"], &arguments) {
        Ok(arguments) => arguments,
        Err(exit) if exit.status.is_ok() => return print(&exit.output),
        Err(exit) => return wrong_usage(exit.output.trim_end()),
    };
    if arguments.version {
        return print(&format!(
            "qx-publish {} ({} {})\n",
            env!("CARGO_PKG_VERSION"),
            env!("QX_COMMIT"),
            env!("QX_TARGET")
        ));
    }
    let Some(command) = arguments.command else {
        return wrong_usage("a command is missing; see qx-publish --help");
    };
    match run(command) {
        Ok((output, exit)) if print(&output) == ExitCode::SUCCESS => ExitCode::from(exit.code()),
        Ok(_) => ExitCode::from(Exit::Failed.code()),
        Err(error) => {
            complain(&error.chain());
            ExitCode::from(error.exit().code())
        }
    }
}

/// Carries a command out: what to print, and the exit code.
fn run(command: Command) -> Result<(String, Exit)> {
    let now = SystemTime::now();
    let repo = command.repository().map(Path::to_owned);
    let output = match command {
        Command::Init(init) => commands::init(&init, now)?,
        Command::Key(key) => commands::key(key.command)?,
        Command::Check(check) => return commands::check(&check, now),
        Command::Release(release) => commands::release(release, now)?,
        Command::Component(component) => commands::component(&component, now)?,
        Command::Withdraw(withdraw) => commands::withdraw(&withdraw, now)?,
        Command::Prune(prune) => commands::prune(&prune, now)?,
        Command::Sign(sign) => commands::sign(sign, now)?,
        Command::Rotate(rotate) => commands::rotate(&rotate, now)?,
        Command::Refresh(refresh) => return commands::refresh(&refresh, now),
        Command::Expiry(expiry) => commands::expiry(&expiry, now)?,
        Command::Delegate(team) if team.remove => commands::remove_team(&team, now)?,
        Command::Delegate(team) => commands::delegate(&team, now)?,
        Command::Factory(factory) => commands::factory(&factory, now)?,
        Command::Bundle(bundle) => commands::bundle(&bundle, now)?,
        Command::Inspect(inspect) => commands::inspect(&inspect, now)?,
        Command::Verify(verify) => return commands::verify(&verify, now),
        Command::Serve(serve) => commands::serve(&serve)?,
    };
    // After the command, which may have renewed what would have been warned of.
    for line in repo.map_or(Ok(Vec::new()), |repo| qx_publish::warnings(&repo, now))? {
        complain(&format!("warning: {line}"));
    }
    Ok((output, Exit::Done))
}

/// Prints, and says so if that failed: a full disk behind a redirection is no success.
fn print(text: &str) -> ExitCode {
    match output::answer(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.chain());
            ExitCode::from(error.exit().code())
        }
    }
}

fn complain(text: &str) {
    output::complain("qx-publish", text);
}

fn wrong_usage(text: &str) -> ExitCode {
    complain(text);
    ExitCode::from(Exit::Usage.code())
}
