//! The rehearsal: the migration is tried on a copy of the data while everything runs, with the code that runs it later.

use super::migrate::{self, Failure, MigrationRunner};
use super::{ROOM, open_to_others, places, sets};
use crate::model::dataset::Side;
use crate::system::log::Log;
use crate::system::process::Nice;
use qx_release::error::Result;
use qx_release::manifest::Migrate;

/// Tries the migration. `Ok(Some(why))`: it was not tried.
pub fn rehearse(
    mut runner: MigrationRunner,
    migrate: &Migrate,
    log: &mut Log,
) -> Result<Option<String>, Failure> {
    let MigrationRunner {
        host, store, op, ..
    } = runner;
    let _low = Nice::new();
    let result = match copies(&runner, log) {
        Err(e) => Ok(Some(e.chain())),
        Ok(Some(why)) => Ok(Some(why)),
        Ok(None) => {
            runner.rehearsal = true;
            places(host, store, op, Some(Side::Next))
                .map_err(Failure::from)
                .and_then(|places| {
                    runner.places = places;
                    migrated(&runner, migrate, log)
                })
                .map(|()| None)
        }
    };
    let ended = migrate::end_orphans(op.id, host.proc(), log);
    let dropped = sets(host, store, op).try_for_each(|aside| aside.remove(log));
    for result in [ended, dropped] {
        if let Err(e) = result {
            log.warning("rehearsal", e.chain());
        }
    }
    result
}

/// Runs the migration and the checks on the copies, within the limits of the data sets.
fn migrated(runner: &MigrationRunner, migrate: &Migrate, log: &mut Log) -> Result<(), Failure> {
    let limits = runner.op.data.iter().map(|set| set.limit_bytes);
    let limit = limits.fold(0, u64::saturating_add);
    let (host, store, op) = (runner.host, runner.store, runner.op);
    let used = || {
        sets(host, store, op)
            .map(|aside| aside.used().bytes)
            .sum::<u64>()
    };
    let within = || used() <= limit;
    runner.run("rehearsal", &migrate.run, Some(&within), log)?;
    super::check(host, store, op, Some(Side::Next), log)?;
    match migrate.check.is_empty() {
        true => Ok(()),
        false => runner.run("rehearsal", &migrate.check, Some(&within), log),
    }
}

/// Copies of the data, or why there are none.
fn copies(runner: &MigrationRunner, log: &mut Log) -> Result<Option<String>> {
    let MigrationRunner {
        host, store, op, ..
    } = runner;
    for aside in sets(host, store, op) {
        let size = aside.size()?;
        let free = aside.free(&size)?;
        // Beside services that need the disk, too.
        let needed = size.with_migration();
        if !needed.and(ROOM).fits(free) {
            return Ok(Some(format!(
                "a copy of {} and its migration need up to {needed}, only {free} are free",
                aside.set.name
            )));
        }
        if let Some(why) = aside.copy_in_use(Side::Next, log)? {
            return Ok(Some(why));
        }
    }
    open_to_others(host, store, op, true)?;
    Ok(None)
}
