//! The migration: the release's own program moves the data to its schema, while the services are stopped and the link
//! still selects the old set.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::log::Log;
use crate::manifest::Migrate;
use crate::process;
use crate::slot::Installed;

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
        ("QX_UPDATE_SLOT".to_owned(), slot.display().to_string()),
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
