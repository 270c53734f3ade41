//! The reference implementation of The Update Framework, python-tuf, against this one: its client reads what `qx-publish`
//! published, and `qx-update` installs what was published with it. `./tests/all interop` runs them; the environment with
//! the Python packages is `target/interop-venv`.

mod applied;
#[path = "../common/mod.rs"]
mod common;
mod read;

use std::path::Path;
use std::process::Command;

/// Runs one of the scripts beside this file, to a good end; what it printed.
#[track_caller]
fn python(script: &str, arguments: &[&str]) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("target/interop-venv/bin/python");
    let mut command = Command::new(&python);
    command
        .arg(here.join("tests/interop").join(script))
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}; ./tests/all interop makes it", python.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
