//! What is kept of data that is not live, and for how long.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::data::asides;
use crate::model::dataplan::DataChange;
use crate::model::dataset::Side;
use crate::model::id::OperationId;
use crate::model::idle::Idle;
use crate::model::kept::{FORMAT, Kept, KeptReason};
use crate::model::moment::Lasted;
use crate::model::operation::{Discarded, Operation};
use crate::model::phase::Phase;
use crate::model::record::Record;
use crate::store::Store;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::process::Nice;
use crate::system::space::{self, Space};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::Name;

/// One part in so many of the file system is to stay free: below that kept data is deleted, the oldest first.
const FREE_PART: u64 = 20;

/// Notes, before there are any, the copies of an operation's data: what is kept of them if it succeeds.
pub fn begin(host: &Host, store: &Store, op: &Operation, record: &Record) -> Result<()> {
    // What was kept already is noted.
    if op.data.is_empty() || op.change == DataChange::Kept {
        return Ok(());
    }
    store.note_kept(&Kept {
        format: FORMAT,
        id: op.id,
        side: Side::Previous,
        number: next_number(store)?,
        reason: KeptReason::Open,
        release: op.from().clone(),
        data: op.data.clone(),
        schemas: of_its_data(op, &record.schemas),
        since: Some(op.before.since.clone()),
        until: host.timestamp(),
        digests: BTreeMap::new(),
        lasted: None,
    })
}

/// The schemas of what an operation changes.
fn of_its_data(op: &Operation, schemas: &BTreeMap<Name, u64>) -> BTreeMap<Name, u64> {
    let mut schemas = schemas.clone();
    schemas.retain(|name, _| op.changes(name));
    schemas
}

fn next_number(store: &Store) -> Result<u64> {
    let all = store.kept_data()?;
    Ok(all.last().map_or(1, |last| last.number.saturating_add(1)))
}

/// The operation has succeeded: the data that was live before is kept.
pub fn keep_replaced(host: &Host, store: &Store, op: &Operation, record: &Record) -> Result<()> {
    if op.data.is_empty() {
        return Ok(());
    }
    let copy = op.copy();
    let all = store.kept_data()?;
    let noted = all.iter().find(|kept| kept.id == copy.id).cloned();
    let until = op.exchanged_at.clone().unwrap_or_else(|| host.timestamp());
    store.note_kept(&Kept {
        format: FORMAT,
        id: copy.id,
        side: copy.side.other(),
        number: next_number(store)?,
        reason: match op.change {
            DataChange::Migrate => KeptReason::Replaced,
            _ => KeptReason::SetAside,
        },
        release: op.from().clone(),
        data: op.data.clone(),
        schemas: of_its_data(op, &record.schemas),
        since: match op.change {
            // Since it had come in the place of what is live again.
            DataChange::Kept => noted.map(|kept| kept.until),
            _ => Some(op.before.since.clone()),
        },
        until,
        // Services may wait for the end of the operation: it is measured after that.
        digests: BTreeMap::new(),
        lasted: Some(Lasted::since(&host.moment())),
    })
}

/// That end is recorded: what is kept is measured, and what an earlier update replaced is deleted. Until then the way back
/// leads to the earlier release, whose own fallback may need it.
pub fn drop_replaced(host: &Host, store: &Store, op: &Operation, log: &mut Log) -> Result<()> {
    let own = op.copy().id;
    for mut kept in store.kept_data()? {
        let replaced = kept.reason == KeptReason::Replaced
            && !op.data.is_empty()
            && kept.data.iter().all(|set| op.changes(&set.name));
        if kept.id == own {
            measure(host, store, &mut kept, log);
            store.note_kept(&kept)?;
        } else if replaced {
            log.info("data", format!("deleting {kept}: newer data is kept"));
            drop_kept(host, store, &kept, log)?;
        }
    }
    Ok(())
}

/// The operation was undone: what was written under it is kept.
pub fn keep_set_aside(host: &Host, store: &Store, op: &Operation) -> Result<Discarded> {
    let (since, until) = (op.exchanged_at.clone(), host.timestamp());
    if op.change == DataChange::Kept {
        // What had been kept lies where it lay, with what was written since.
        let all = store.kept_data()?;
        for kept in all.into_iter().filter(|kept| kept.id == op.copy().id) {
            let digests = BTreeMap::new();
            store.note_kept(&Kept { digests, ..kept })?;
        }
    } else {
        store.note_kept(&Kept {
            format: FORMAT,
            id: op.id,
            side: Side::Next,
            number: next_number(store)?,
            reason: KeptReason::SetAside,
            release: op.to.clone(),
            data: op.data.clone(),
            schemas: of_its_data(op, &op.schemas),
            since: since.clone(),
            until: until.clone(),
            // Services wait: `tidy` measures it.
            digests: BTreeMap::new(),
            lasted: Some(Lasted::since(&host.moment())),
        })?;
    }
    Ok(Discarded {
        from: since.unwrap_or_default(),
        to: until,
        kept: Some(op.copy().id.to_string()),
    })
}

/// Notes what the files that are kept are like. Where they cannot be read they are kept all the same.
fn measure(host: &Host, store: &Store, kept: &mut Kept, log: &mut Log) {
    // The services have the disk to themselves as far as they want it.
    let _nice = Nice::new();
    for aside in asides(host, store, &kept.data, kept.id) {
        match aside.digest(kept.side) {
            Ok(digest) => {
                kept.digests
                    .extend(digest.map(|digest| (aside.set.name.clone(), digest)));
            }
            Err(e) => log.warning("data", e.chain()),
        }
    }
}

/// Whether kept data is as it was set aside, as far as that is known.
///
/// # Errors
/// [`ErrorKind::NeedsPerson`]: only a person can say what is left of it.
pub fn intact(host: &Host, store: &Store, kept: &Kept) -> Result<()> {
    let damaged = |why: String| {
        let id = kept.id;
        let what = format!(
            "{why}; `qx-update data export {id} FILE` writes what is left of it, `qx-update data drop {id}` deletes it"
        );
        Error::with(ErrorKind::NeedsPerson, what)
    };
    for aside in asides(host, store, &kept.data, kept.id) {
        let Some(noted) = kept.digests.get(&aside.set.name) else {
            continue;
        };
        let found = aside.digest(kept.side).map_err(|e| damaged(e.chain()))?;
        if found != Some(*noted) {
            let place = aside.place_of_copy(kept.side)?;
            let what = format!("reading {kept}: {place} is not as it was set aside");
            return Err(damaged(what));
        }
    }
    Ok(())
}

/// Deletes data that is kept.
pub fn drop_kept(host: &Host, store: &Store, kept: &Kept, log: &mut Log) -> Result<()> {
    asides(host, store, &kept.data, kept.id).try_for_each(|aside| aside.remove(log))?;
    store.forget_kept(kept.id)
}

/// The kept data that may be deleted where space is short, the oldest first.
pub fn leftovers(store: &Store, record: &Record) -> Result<Vec<Kept>> {
    let mut all = store.kept_data()?;
    all.retain(|kept| {
        !is_in_use(kept, record)
            && matches!(kept.reason, KeptReason::Replaced | KeptReason::SetAside)
    });
    Ok(all)
}

/// Whether the open operation needs it. One that only lies staged copies the data again when its switch begins.
pub fn is_in_use(kept: &Kept, record: &Record) -> bool {
    let of = |op: &Operation| [op.id, op.copy().id].contains(&kept.id);
    record.phase().is_under_way() && record.operation().is_some_and(of)
}

/// Deletes what a failed operation left, data kept for longer than `keep_s`, and, if the disk is nearly full, the oldest
/// kept data.
pub fn tidy(host: &Host, store: &Store, record: &Record, keep_s: u64, log: &mut Log) -> Result<()> {
    // Whoever lost the record does not know what is whose.
    if let Phase::Idle(Idle {
        trouble: Some(trouble),
        ..
    }) = record.phase()
        && trouble.needs_person
    {
        return Ok(());
    }
    let now = host.moment();
    for mut kept in store.kept_data()? {
        if is_in_use(&kept, record) {
            continue;
        }
        kept.age(&now);
        let lasted = kept.lasted.as_ref().map_or(0, |lasted| lasted.seconds);
        let why = match kept.reason {
            KeptReason::Unexplained => continue,
            KeptReason::Open => "its operation has ended",
            _ if lasted > keep_s => "limits.keep_data_s has passed",
            _ => {
                if kept.digests.is_empty() {
                    measure(host, store, &mut kept, log);
                }
                store.note_kept(&kept)?;
                continue;
            }
        };
        log.info("data", format!("deleting {}: {why}", kept));
        drop_kept(host, store, &kept, log)?;
    }
    for kept in leftovers(store, record)? {
        let (free, total) = space::free_and_total(&store.path("update"))?;
        if total.part(FREE_PART).fits(free) {
            break;
        }
        let what = format!("deleting {}: the disk is nearly full", kept);
        log.warning("data", what);
        drop_kept(host, store, &kept, log)?;
    }
    Ok(())
}

/// Deletes the copies of an operation that was undone before it had exchanged anything.
pub fn drop_open(host: &Host, store: &Store, id: OperationId, log: &mut Log) -> Result<()> {
    let all = store.kept_data()?;
    let mut open = all
        .iter()
        .filter(|kept| kept.id == id && kept.reason == KeptReason::Open);
    open.try_for_each(|kept| drop_kept(host, store, kept, log))
}

/// Writes the files of kept data to a new tar archive.
///
/// # Errors
/// Some of it is not files: only its own commands can read it.
pub fn export(host: &Host, store: &Store, kept: &Kept, file: &Path) -> Result<()> {
    let doing = || format!("writing {}", file.display());
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .doing(doing)?;
    let mut archive = tar::Builder::new(made);
    archive.follow_symlinks(false);
    let written = || {
        for aside in asides(host, store, &kept.data, kept.id) {
            aside.export(kept.side, &mut archive)?;
        }
        let made = archive.into_inner().doing(doing)?;
        durable::sync_file(&made, file)
    };
    written().inspect_err(|_| drop(fs::remove_file(file)))
}

/// What kept data takes in the data directory's file system, as far as it can be seen.
pub fn taken(host: &Host, store: &Store, kept: &Kept) -> Space {
    let each = asides(host, store, &kept.data, kept.id).map(|aside| aside.used());
    each.fold(Space::default(), Space::and)
}
