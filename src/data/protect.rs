//! The data sets of an operation: saved before its migration, rehearsed on, restored if it fails. What failed releases
//! wrote is kept aside.

use crate::system::space;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::data::migrate::{self, Failure, MigrationRunner};
use crate::data::snapshot::{self, DataClone};
use crate::model::dataset::DataSet;
use crate::model::operation::{Discarded, Operation};
use crate::store::Store;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::process::{Nice, User};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::Migrate;
use qx_release::manifest::placeholder;

/// What is left free, in bytes, when a clone is made beside services that run.
const ROOM: u64 = 64 << 20;

/// The most bytes that the way back of these data sets takes in the data directory: a snapshot, and what is restored from
/// it while the rest is still kept.
///
/// # Errors
/// [`ErrorKind::NotEligible`] for data that is larger than it may be.
pub fn space(host: &Host, store: &Store, data: &[DataSet]) -> Result<u64> {
    let mut bytes = 0_u64;
    for set in data {
        let size = snapshot::size(host, set, &store.path("update"))
            .doing(|| "planning how to restore the data")?;
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
    let complete = store.snapshot(op.id);
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
    let snapshot = store.snapshot(op.id);
    if !snapshot.is_dir() {
        return Err(Error::new(format!(
            "restoring the data: snapshot {} is missing",
            snapshot.display()
        )));
    }
    let kept = match set_aside(host, store, op, log) {
        Ok(()) => true,
        Err(e) => {
            // Going back counts for more than what a failed release wrote.
            log.warning("data", format!("not set aside: {}", e.chain()));
            false
        }
    };
    for set in &op.data {
        log.info("data", format!("restoring {}", set.name));
        let from = snapshot.join(set.name.as_str());
        match snapshot::restore(host, set, &from, log) {
            Err(e) if e.kind == ErrorKind::NoSpace => {
                log.warning(
                    "data",
                    format!("{}: deleting the data that was set aside", e.chain()),
                );
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
    let aside = aside(store, op)?;
    durable::create_dir(&aside, 0o700)?;
    for set in &op.data {
        snapshot::set_aside(host, set, &aside.join(set.name.as_str()), log)?;
    }
    Ok(())
}

/// What is kept aside of data that failed releases wrote, the oldest first.
pub fn leftovers(store: &Store) -> Result<Vec<PathBuf>> {
    let all = discarded(store)?;
    Ok(all.into_iter().map(|(_, path)| path).collect())
}

/// What is kept aside, the oldest first: `NUMBER-OPERATION`. The number orders them, since dates may be wrong; earlier
/// versions gave none.
fn discarded(store: &Store) -> Result<Vec<(u64, PathBuf)>> {
    let directory = store.path("update/discarded");
    let reading = || format!("reading {}", directory.display());
    let entries = match fs::read_dir(&directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(reading)?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.doing(reading)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split_once('-'));
        let number = number.and_then(|(number, _)| number.parse().ok());
        all.push((number.unwrap_or(0), entry.path()));
    }
    all.sort();
    Ok(all)
}

/// Where what this operation sets aside is, or will be: the number is the next.
fn aside(store: &Store, op: &Operation) -> Result<PathBuf> {
    let all = discarded(store)?;
    let next = all.last().map_or(1, |(number, _)| number.saturating_add(1));
    let id = op.id.to_string();
    let own = all.into_iter().map(|(_, path)| path).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.rsplit('-').next() == Some(&id)
    });
    let new = || {
        store
            .path("update/discarded")
            .join(format!("{next}-{}", op.id))
    };
    Ok(own.unwrap_or_else(new))
}

/// Where what this operation set aside is kept, if it may be: the oldest goes first.
pub fn keep(store: &Store, op: &Operation, log: &mut Log) -> Result<Option<String>> {
    let mut all = discarded(store)?;
    let own = aside(store, op)?;
    // This one last, though it may have been begun by an earlier version.
    all.sort_by_key(|(_, path)| *path == own);
    let mut bytes: u64 = all.iter().map(|(_, path)| space::used(path).0).sum();
    for (_, path) in all {
        if bytes <= op.discarded_bytes {
            break;
        }
        bytes = bytes.saturating_sub(space::used(&path).0);
        log.warning(
            "data",
            format!(
                "deleting {}: limits.discarded_bytes allows {} bytes of data set aside",
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
    mut tool: MigrationRunner,
    migrate: &Migrate,
    log: &mut Log,
) -> Result<Option<String>, Failure> {
    let MigrationRunner {
        host, store, op, ..
    } = tool;
    let _low = Nice::new();
    let directory = store.path("rehearsal").join(op.id.to_string());
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
            let within = || space::used(&directory).0 <= limit;
            tool.run("rehearsal", &migrate.run, Some(&within), log)
                .and_then(|()| match migrate.check.is_empty() {
                    true => Ok(()),
                    false => tool.run("rehearsal", &migrate.check, Some(&within), log),
                })
                .map(|()| None)
        }
    };
    let ended = migrate::end_orphans(op.id, tool.host.proc(), log);
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
        let free = space::free_space(directory)?.0;
        if !size.shares && size.bytes.saturating_add(ROOM) > free {
            return Ok(Err(format!(
                "a clone of {} takes up to {} bytes, and {free} are free",
                set.name, size.bytes
            )));
        }
        match snapshot::clone(host, set, &directory.join(set.name.as_str()), user, log)? {
            DataClone::At(place) => places.push((placeholder(&set.name), place)),
            DataClone::Skipped(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(places))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::model::idle::Idle;
    use crate::model::operation::OperationKind;
    use crate::model::slot::Installed;

    fn operation(id: &str, discarded_bytes: u64) -> Operation {
        let factory = Installed::unknown_factory;
        let before = Idle::on(factory(), None, "");
        let kind = OperationKind::Install;
        let mut op = Operation::new(id.parse().unwrap(), kind, before, factory(), "");
        op.discarded_bytes = discarded_bytes;
        op
    }

    /// What was set aside last is kept longest, whatever the clock said when it was.
    #[test]
    fn the_oldest_goes_first_whatever_the_date_was() {
        const ID: [&str; 4] = [
            "00ff000000000000",
            "ffff000000000000",
            "aaaa000000000000",
            "0000000000000000",
        ];
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path()).unwrap();
        let store = Store::new(&host, "/data", "/factory").unwrap();
        let place = crate::system::log::Destination {
            below: "/".into(),
            path: root.path().join("log"),
            max_bytes: 1 << 20,
            keep: 1,
        };
        let mut log = Log::new(place, false);
        // As an earlier version named it.
        fs::create_dir_all(store.path("update/discarded").join(ID[0])).unwrap();
        let mut places = Vec::new();
        for (id, years) in ID.into_iter().zip([136, 0, 80, 56]) {
            let op = operation(id, 1 << 20);
            set_aside(&host, &store, &op, &mut log).unwrap();
            let path = aside(&store, &op).unwrap();
            fs::write(path.join("data"), [1; 40_000]).unwrap();
            let date = UNIX_EPOCH + Duration::from_secs(years * 31_557_600);
            fs::File::open(&path).unwrap().set_modified(date).unwrap();
            // Done again after a cut it is the same.
            set_aside(&host, &store, &op, &mut log).unwrap();
            assert_eq!(aside(&store, &op).unwrap(), path);
            places.push(path);
        }
        let last = ID.len() - 1;
        for gone in 0..last {
            let used: u64 = places.iter().map(|path| space::used(path).0).sum();
            let op = operation(ID[last], used - 1);
            let kept = keep(&store, &op, &mut log).unwrap();
            assert_eq!(kept, Some(places[last].display().to_string()));
            for (number, path) in places.iter().enumerate() {
                assert_eq!(path.exists(), number > gone, "{}", path.display());
            }
        }
        // Larger than all that may be kept, or gone for want of space.
        for _ in 0..2 {
            let kept = keep(&store, &operation(ID[last], 0), &mut log).unwrap();
            assert_eq!(kept, None);
            let _ = fs::remove_dir_all(store.path("update/discarded"));
        }
    }
}
