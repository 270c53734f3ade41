//! What a run of tests counted, for `docs/evidence.md`: a file each in `target/counted`, which `tests/evidence` makes tables of.

use std::fmt::Display;
use std::fs;
use std::path::Path;

/// Notes that a command counted this, today. `of` says in which table and row it goes: `TABLE/ROW`.
pub fn counted(of: &str, count: impl Display) {
    println!("COUNTED {of}: {count}");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/counted");
    let name = of.replace(|c: char| !c.is_ascii_alphanumeric() && c != '/', "-");
    let file = directory.join(name);
    // What is counted is no part of what is tried: where it cannot be noted, the test goes on.
    let _ = fs::create_dir_all(file.parent().unwrap_or(&directory))
        .and_then(|()| fs::write(file, format!("{of}\t{count}\n")));
}
