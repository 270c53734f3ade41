//! `qx-update`: parse, run, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    qx_update::cli::run(std::env::args_os())
}
