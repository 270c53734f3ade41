//! `qx-update`: parse, run, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    qx_update::surroundings::settle();
    qx_update::surroundings::ordinary_priority();
    qx_update::cli::run(std::env::args_os())
}
