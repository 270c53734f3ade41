//! The data sets of an operation: saved before its migration, rehearsed on, restored if it fails. What failed releases
//! wrote is kept aside.

use std::fs;
use std::path::Path;

use crate::dataset::{DataSet, placeholder};
use crate::durable;
use crate::error::{Context, Error, Exit, Result};
use crate::host::Host;
use crate::log::Log;
use crate::manifest::Migrate;
use crate::migrate::{self, Failure, Tool};
use crate::plan;
use crate::process::{Nice, User};
use crate::snapshot::{self, Clone};
use crate::state::{Discarded, Operation};
use crate::store::Store;

/// What is left free, in bytes, when a clone is made beside services that run.
const ROOM: u64 = 64 << 20;

/// The most bytes that the way back of these data sets takes in the data directory: a snapshot, and what is restored from
/// it while the rest is still kept.
///
/// # Errors
/// [`Exit::Refused`] for data that is larger than it may be.
pub fn space(host: &Host, store: &Store, data: &[DataSet]) -> Result<u64> {
    let mut bytes = 0_u64;
    for set in data {
        let size = snapshot::size(host, set, &store.path("update"))
            .doing(|| "planning the data's way back")?;
        if !size.shares {
            bytes = bytes.saturating_add(size.bytes.saturating_mul(2));
        }
    }
    Ok(bytes)
}

/// Saves all data sets under the operation's id: complete and on the medium when it returns.
pub fn save(host: &Host, store: &Store, op: &Operation, log: &mut Log) -> Result<()> {
    // What an earlier operation left is nobody's any more.
    store.drop_snapshot()?;
    let complete = store.snapshot(&op.id);
    let part = complete.with_extension("part");
    durable::create_dir(&part, 0o700)?;
    for set in &op.data {
        log.info("data", format!("saving {}", set.name));
        snapshot::save(host, set, &part.join(set.name.as_str()), log)?;
    }
    durable::rename(&part, &complete)
}

/// Makes all data sets equal to the operation's snapshot, and keeps aside what they held. Done again after a cut it comes
/// to the same end.
pub fn restore(host: &Host, store: &Store, op: &Operation, log: &mut Log) -> Result<Discarded> {
    let snapshot = store.snapshot(&op.id);
    if !snapshot.is_dir() {
        return Err(Error::new(format!(
            "restoring the data: there is no snapshot {}",
            snapshot.display()
        )));
    }
    let kept = match set_aside(host, store, op, log) {
        Ok(()) => true,
        Err(e) => {
            // Going back counts for more than what a failed release wrote.
            log.warning("data", format!("not kept aside: {}", e.chain()));
            false
        }
    };
    for set in &op.data {
        log.info("data", format!("restoring {}", set.name));
        let from = snapshot.join(set.name.as_str());
        match snapshot::restore(host, set, &from, log) {
            Err(e) if e.exit == Exit::NoSpace => {
                log.warning("data", format!("{}: what is kept aside goes", e.chain()));
                durable::remove_tree(&store.path("update/discarded"))?;
                snapshot::restore(host, set, &from, log)?;
            }
            restored => restored?,
        }
    }
    Ok(Discarded {
        from: op.saved_at.clone().unwrap_or_default(),
        to: host.timestamp(),
        kept: if kept { keep(store, op, log)? } else { None },
    })
}

/// Sets all data sets aside: nothing is in their places afterwards, if they are of files.
pub fn set_aside(host: &Host, store: &Store, op: &Operation, log: &mut Log) -> Result<()> {
    let aside = store.path("update/discarded").join(&op.id);
    durable::create_dir(&aside, 0o700)?;
    for set in &op.data {
        snapshot::set_aside(host, set, &aside.join(set.name.as_str()), log)?;
    }
    Ok(())
}

/// Where what this operation set aside is kept, if it may be: the oldest goes first.
pub fn keep(store: &Store, op: &Operation, log: &mut Log) -> Result<Option<String>> {
    let directory = store.path("update/discarded");
    let reading = || format!("reading {}", directory.display());
    let mut all = Vec::new();
    for entry in fs::read_dir(&directory).doing(reading)? {
        let entry = entry.doing(reading)?;
        let changed = entry.metadata().and_then(|meta| meta.modified());
        all.push((changed.doing(reading)?, entry.path()));
    }
    all.sort();
    let own = directory.join(&op.id);
    // This one last, whatever the clock said meanwhile.
    all.sort_by_key(|(_, path)| *path == own);
    let mut bytes: u64 = all.iter().map(|(_, path)| plan::used(path).0).sum();
    for (_, path) in all {
        if bytes <= op.discarded_bytes {
            break;
        }
        bytes = bytes.saturating_sub(plan::used(&path).0);
        log.warning(
            "data",
            format!(
                "{} goes: limits.discarded_bytes allows {} bytes of data that is kept aside",
                path.display(),
                op.discarded_bytes
            ),
        );
        durable::remove_tree(&path)?;
    }
    Ok(own.exists().then(|| own.display().to_string()))
}

/// What the places of the data sets stand for in a release's argument vectors.
pub fn places(host: &Host, data: &[DataSet]) -> Result<Vec<(String, String)>> {
    let pair = |set: &DataSet| Ok((placeholder(&set.name), snapshot::place(host, set)?));
    data.iter().map(pair).collect()
}

/// Tries the migration on clones of the data while the services go on. `Ok(Some(why))`: it was not tried.
pub fn rehearse(
    mut tool: Tool,
    migrate: &Migrate,
    log: &mut Log,
) -> Result<Option<String>, Failure> {
    let Tool {
        host, store, op, ..
    } = tool;
    let _low = Nice::new();
    let directory = store.path("rehearsal").join(&op.id);
    let user = op.migration_user.as_deref();
    let result = user
        .map(|name| User::find(host, name))
        .transpose()
        .and_then(|user| clones(host, op, user.as_ref(), &directory, log));
    let rehearsed = match result {
        Err(e) => Ok(Some(e.chain())),
        Ok(Err(why)) => Ok(Some(why)),
        Ok(Ok(places)) => {
            tool.places = places;
            let limit = op
                .data
                .iter()
                .map(|set| set.limit_bytes)
                .fold(0, u64::saturating_add);
            let within = || plan::used(&directory).0 <= limit;
            tool.run("rehearsal", &migrate.run, Some(&within), log)
                .and_then(|()| match migrate.check.is_empty() {
                    true => Ok(()),
                    false => tool.run("rehearsal", &migrate.check, Some(&within), log),
                })
                .map(|()| None)
        }
    };
    let ended = migrate::end_orphans(&op.id, tool.host.proc(), log);
    let dropped = op
        .data
        .iter()
        .try_for_each(|set| snapshot::drop_clone(host, set, log));
    for result in [ended, dropped, store.drop_rehearsal()] {
        if let Err(e) = result {
            log.warning("rehearsal", e.chain());
        }
    }
    rehearsed
}

/// The places of the clones, or why there are none.
fn clones(
    host: &Host,
    op: &Operation,
    user: Option<&User>,
    directory: &Path,
    log: &mut Log,
) -> Result<Result<Vec<(String, String)>, String>> {
    // Whoever migrates must get in; what is inside is made for that user.
    durable::create_dir(directory, 0o711)?;
    let mut places = Vec::new();
    for set in &op.data {
        let size = snapshot::size(host, set, directory)?;
        let free = plan::free_space(directory)?.0;
        if !size.shares && size.bytes.saturating_add(ROOM) > free {
            return Ok(Err(format!(
                "a clone of {} takes up to {} bytes, and {free} are free",
                set.name, size.bytes
            )));
        }
        match snapshot::clone(host, set, &directory.join(set.name.as_str()), user, log)? {
            Clone::At(place) => places.push((placeholder(&set.name), place)),
            Clone::Skipped(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(places))
}
