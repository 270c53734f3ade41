//! Data that moves with a release. A copy of it is migrated, and exchanged for the live data by renames; going back is
//! the exchange backwards. Until the exchange the live data is unchanged, and after it the old data is complete.
//!
//! The order, and what each step is for: [`begin`] notes that there are copies; [`copy()`] makes them; the migration changes
//! them ([`migrate`]); [`check`] asks whether they can be used; [`sync`] brings them to the medium; [`exchange()`] makes them
//! live, or takes them back. What is not live afterwards is kept for a while ([`keep_replaced`], [`tidy`]).

mod aside;
mod command;
mod copy;
mod exchange;
mod files;
mod kept;
mod measure;
pub mod migrate;
mod place;
mod rehearse;
mod verbs;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::data::migrate::Failure;
use crate::model::dataplan::DataChange;
use crate::model::dataset::{DataSet, Side};
use crate::model::id::OperationId;
use crate::model::operation::Operation;
use crate::store::Store;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::space::{self, Space};
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Name, placeholder};
use qx_release::text;

pub use aside::Aside;
pub use kept::{
    begin, drop_kept, drop_open, drop_replaced, export, intact, is_in_use, keep_replaced,
    keep_set_aside, leftovers, taken, tidy,
};
pub use rehearse::rehearse;

/// How long the last users of the data may take to end, once their services are stopped.
const WHILE: Duration = Duration::from_secs(5);

/// What is left free in addition to what copies take.
const ROOM: Space = Space {
    bytes: 64 << 20,
    entries: 1024,
};

/// The data sets of an operation, with where their copies are.
fn sets<'a>(
    host: &'a Host,
    store: &'a Store,
    op: &'a Operation,
) -> impl Iterator<Item = Aside<'a>> {
    asides(host, store, &op.data, op.copy().id)
}

fn asides<'a>(
    host: &'a Host,
    store: &'a Store,
    data: &'a [DataSet],
    id: OperationId,
) -> impl Iterator<Item = Aside<'a>> {
    data.iter().map(move |set| Aside {
        host,
        store,
        set,
        id,
    })
}

/// The most that the copies of these data sets, and a migration that rewrites all of them, take in the data directory.
///
/// # Errors
/// [`ErrorKind::NotEligible`] for data that is larger than it may be; [`ErrorKind::NoSpace`] if it does not fit on another
/// file system, where it lies.
pub fn space(host: &Host, store: &Store, data: &[DataSet]) -> Result<Space> {
    let mut sum = Space::default();
    for aside in asides(host, store, data, OperationId::new(0)) {
        let size = aside.size().doing(|| "planning the migration")?;
        let needed = size.with_migration();
        match size.free {
            None => sum = sum.and(needed),
            Some(free) if needed.fits(free) => {}
            Some(free) => {
                return Err(Error::with(
                    ErrorKind::NoSpace,
                    format!(
                        "planning the migration: a copy of {} and its migration need up to {needed} on its file \
                         system, only {free} are free",
                        aside.set.name
                    ),
                ));
            }
        }
    }
    Ok(sum)
}

/// What a data set takes, where that can be seen.
pub fn bytes(host: &Host, store: &Store, set: &DataSet) -> Result<Option<u64>> {
    Aside {
        host,
        store,
        set,
        id: OperationId::new(0),
    }
    .bytes()
}

/// Whether there is room for what an operation does to the data, and its migration can be limited as it is to be.
///
/// # Errors
/// [`ErrorKind::NoSpace`], and as [`space()`].
pub fn room(host: &Host, store: &Store, op: &Operation) -> Result<()> {
    if !matches!(op.change, DataChange::Migrate | DataChange::Down) || op.data.is_empty() {
        return Ok(());
    }
    migrate::confine(op)
        .doing(|| "before anything is stopped")?
        .remove();
    let needed = space(host, store, &op.data)?;
    let free = space::free_space(&store.path("update"))?;
    match needed.fits(free) {
        true => Ok(()),
        false => Err(Error::with(
            ErrorKind::NoSpace,
            format!(
                "before anything is stopped: copies of the data and their migration need up to {needed} in {}, only {free} \
                 are free",
                store.path("").display()
            ),
        )),
    }
}

/// The current schemas: what the `schema` command of a data set prints, or what is recorded where there is none or it
/// fails.
pub fn schemas(
    host: &Host,
    store: &Store,
    declared: &[DataSet],
    recorded: &BTreeMap<Name, u64>,
    log: &mut Log,
) -> BTreeMap<Name, u64> {
    let mut schemas = recorded.clone();
    for aside in asides(host, store, declared, OperationId::new(0)) {
        let asked = aside.live_place().and_then(|place| aside.schema(&place));
        let name = &aside.set.name;
        match asked {
            Ok(None) => {}
            Ok(Some(schema)) => {
                let recorded = schemas.insert(name.clone(), schema);
                if let Some(recorded) = recorded.filter(|recorded| *recorded != schema) {
                    let what =
                        format!("the schema of {name} is {schema}, not {recorded} as recorded");
                    log.warning("data", what);
                }
            }
            Err(e) => log.warning("data", format!("using the recorded schema: {}", e.chain())),
        }
    }
    schemas
}

/// The data sets that are there, and whose schema nobody knows.
pub fn unknown(
    host: &Host,
    store: &Store,
    declared: &[DataSet],
    schemas: &BTreeMap<Name, u64>,
) -> Result<Vec<Name>> {
    let mut unknown = Vec::new();
    for aside in asides(host, store, declared, OperationId::new(0)) {
        let name = &aside.set.name;
        if !schemas.contains_key(name) && aside.is_there()? {
            unknown.push(name.clone());
        }
    }
    Ok(unknown)
}

/// Copies all data sets of an operation to a side.
pub fn copy(
    host: &Host,
    store: &Store,
    op: &Operation,
    side: Side,
    log: &mut Log,
) -> Result<Vec<u64>> {
    sets(host, store, op)
        .map(|aside| aside.copy(side, log))
        .collect()
}

/// Fails if a process still uses the live data: it would go on writing to what is set aside. Processes that a stopped
/// service leaves behind get a while to end.
pub fn released(host: &Host, store: &Store, op: &Operation) -> Result<()> {
    let deadline = Instant::now() + WHILE;
    loop {
        let mut users = Vec::new();
        for aside in sets(host, store, op) {
            users.extend(aside.users()?);
        }
        let Some(user) = users.first() else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            let pid = user.process.pid;
            return Err(Error::new(format!(
                "process {pid} ({}) still uses {}, and belongs to none of the stopped services: end it, or \
                 name its service in data[].services",
                host.proc().executable_name(pid),
                text::path(&user.path)
            )));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether the live data is what it was when it was copied: nobody may have written to it since.
pub fn unchanged(host: &Host, store: &Store, op: &Operation, found: &[u64]) -> Result<()> {
    let mut all = sets(host, store, op).zip(found);
    all.try_for_each(|(aside, found)| aside.unchanged(*found))
}

/// Whether a migration ran out of disk space though it took no more than was planned.
pub fn starved(host: &Host, store: &Store, op: &Operation) -> Result<bool> {
    for aside in sets(host, store, op) {
        if aside.starved()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Prepares to start without data: nothing becomes the live data.
pub fn begin_empty(host: &Host, store: &Store, op: &Operation) -> Result<()> {
    sets(host, store, op).try_for_each(|aside| aside.begin_empty())
}

/// The place of a copy, or of the live data.
fn place_of(aside: &Aside, copy: Option<Side>) -> Result<String> {
    match copy {
        Some(side) => aside.place_of_copy(side),
        None => aside.live_place(),
    }
}

/// The places at which a migration finds the data, by what stands for them in its arguments.
pub fn places(
    host: &Host,
    store: &Store,
    op: &Operation,
    copy: Option<Side>,
) -> Result<Vec<(String, String)>> {
    let pair = |aside: Aside| Ok((placeholder(&aside.set.name), place_of(&aside, copy)?));
    sets(host, store, op).map(pair).collect()
}

/// Lets other users reach the copies, to migrate them; or no longer.
pub fn open_to_others(host: &Host, store: &Store, op: &Operation, open: bool) -> Result<()> {
    sets(host, store, op).try_for_each(|aside| aside.open_to_others(open))
}

/// Runs the data sets' own checks on copies, or on the live data.
pub fn check(
    host: &Host,
    store: &Store,
    op: &Operation,
    copy: Option<Side>,
    log: &mut Log,
) -> Result<(), Failure> {
    sets(host, store, op).try_for_each(|aside| aside.check(&place_of(&aside, copy)?, log))
}

/// Syncs the data and its copies to the medium.
pub fn sync(host: &Host, store: &Store, op: &Operation) -> Result<()> {
    sets(host, store, op).try_for_each(|aside| aside.sync())
}

/// Makes the data on a side live, durably. Done again after an interruption, it has the same result.
pub fn exchange(
    host: &Host,
    store: &Store,
    op: &Operation,
    from: Side,
    log: &mut Log,
) -> Result<()> {
    sets(host, store, op).try_for_each(|aside| aside.exchange(from, log))
}
