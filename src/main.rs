//! `qx-update`: parse, run, exit.

#![warn(unreachable_pub)]

use std::process::ExitCode;

fn main() -> ExitCode {
    qx_release::surroundings::settle();
    qx_release::surroundings::ordinary_priority();
    qx_update::cli::run(std::env::args_os())
}
