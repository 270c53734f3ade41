//! The migration: the release's own program moves the data to its schema, while the services are stopped and the link
//! still selects the old set.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::error::{Error, Result};
use crate::log::Log;
use crate::manifest::Migrate;
use crate::process;
use crate::slot::Installed;

/// Names the new release's directory in the environment of a migration, and of all that it starts.
const SLOT: &str = "QX_UPDATE_SLOT";

/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Runs the migration of the release in `slot`. Every line of its output goes to the log.
///
/// Its environment is that of [`process::run`] and `QX_UPDATE_FROM`, `QX_UPDATE_TO` (versions), `QX_UPDATE_SLOT` (the
/// new release's directory, also its working directory).
pub fn run(
    migrate: &Migrate,
    slot: &Path,
    from: &Installed,
    to: &Installed,
    log: &mut Log,
) -> Result<()> {
    let mut vector = migrate.run.clone();
    if let Some(program) = vector.first_mut() {
        *program = slot.join(&*program).display().to_string();
    }
    let version = |set: &Installed| {
        set.version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    let environment = [
        ("QX_UPDATE_FROM".to_owned(), version(from)),
        ("QX_UPDATE_TO".to_owned(), version(to)),
        (SLOT.to_owned(), slot.display().to_string()),
    ];
    log.info("migrate", format!("running {}", vector.join(" ")));
    let timeout = Duration::from_secs(migrate.timeout_s);
    let ended = process::run(&vector, slot, &environment, timeout, &mut |stream, line| {
        log.info_with(
            "migrate",
            line,
            serde_json::json!({ "stream": stream.name() }),
        );
    })?;
    if ended.ok() {
        log.info("migrate", "the migration succeeded");
        return Ok(());
    }
    Err(Error::new(format!(
        "the migration {} {}",
        migrate.run.join(" "),
        ended.describe()
    )))
}

/// Ends what is left of a migration to the release in `slot` whose updater was killed: it would go on changing the data
/// under the old set, or beside the next migration. Its processes are known by their environment.
pub fn end_orphans(slot: &Path, log: &mut Log) -> Result<()> {
    let mark = format!("{SLOT}={}", slot.display());
    let deadline = Instant::now() + GONE;
    loop {
        let orphans = process::marked(&mark);
        if orphans.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(format!(
                "ending the migration that an earlier updater left running: processes {orphans:?} stay"
            )));
        }
        for pid in orphans {
            log.warning(
                "migrate",
                format!("killing process {pid}, left by a migration whose updater was killed"),
            );
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                // Gone already is fine.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
