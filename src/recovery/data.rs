//! The data stage of recovery, run at boot after the link stage and before the services that use the data. It completes an
//! interrupted restore, lets a newer image's factory set migrate the data, and keeps services stopped whose data the active
//! set does not accept. It calls no service manager, because a runlevel is being started.

use crate::data;
use crate::model::config::Config;
use crate::model::dataplan::DataPlan;
use crate::model::fit::Fit;
use crate::model::idle::Idle;
use crate::model::operation::{Operation, OperationKind};
use crate::model::phase::{DataState, Phase};
use crate::model::record::Loaded;
use crate::model::record::Record;
use crate::model::slot::{Link, Set};
use crate::store::sets;
use crate::store::{CommitPoint, Store};
use crate::switch::Switch;
use crate::system::host::Host;
use crate::system::log::Log;
use qx_release::error::{Error, ErrorKind, Exit, Result};

/// What the data stage works with.
pub struct DataStage<'a> {
    /// The machine.
    pub host: &'a Host,
    /// What lies under the data directory.
    pub store: &'a Store,
    /// The update log.
    pub log: &'a mut Log,
    /// What the appliance decides. What is restored does not depend on it.
    pub config: Option<&'a Config>,
}

impl DataStage<'_> {
    /// Brings the data in order.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsPerson`]: what uses the data must not be started.
    pub fn run(mut self) -> Result<Exit> {
        let held = |why: String| {
            Error::with(
                ErrorKind::NeedsPerson,
                format!("keeping services that use the data stopped: {why}"),
            )
        };
        let _lock = match self.store.lock("recover --stage data", None) {
            Ok(lock) => Some(lock),
            // Who works is starting the data's users, or will; what the record says is what counts.
            Err(e) if e.kind == ErrorKind::Busy => None,
            Err(e) => return Err(held(e.chain())),
        };
        let mut record = match self.store.load() {
            Loaded::Record(record) => *record,
            Loaded::Absent => return Ok(Exit::Done),
            Loaded::Unreadable(why) => {
                return Err(held(format!("the update state is unreadable: {why}")));
            }
        };
        if _lock.is_some() {
            record = self.bring_in_order(record).map_err(|e| held(e.chain()))?;
        }
        if let (None, Some(config)) = (record.operation(), self.config) {
            let declared = &config.data;
            record.schemas =
                data::schemas(self.host, self.store, declared, &record.schemas, self.log);
        }
        self.judge(&record).map_err(held)?;
        Ok(Exit::Done)
    }

    fn bring_in_order(&mut self, record: Record) -> Result<Record> {
        match record.phase() {
            Phase::Reverting { op, .. } => {
                Switch::new(self.host, self.store, self.log, op.clone()).take_back(&record)
            }
            Phase::Idle(idle) => {
                let Some(config) = self.config else {
                    return Ok(record);
                };
                match image_operation(config, self.host, self.store, &record, idle)? {
                    Some(op) => Switch::new(self.host, self.store, self.log, op).at_boot(&record),
                    None => Ok(record),
                }
            }
            _ => Ok(record),
        }
    }

    /// Whether the set that init scripts find may be started on the data as it is.
    fn judge(&self, record: &Record) -> Result<(), String> {
        let note = self.store.boot_note().map_err(|e| e.chain())?;
        let shown = match (note.and_then(|note| note.hidden), self.store.selected()) {
            (None, Link::To(slot)) => Set::from(slot),
            _ => Set::Factory,
        };
        match record.phase() {
            Phase::Switching { .. } => {
                Err("a switch was interrupted, and the link stage has not run".into())
            }
            Phase::Reverting {
                op,
                data: DataState::Exchanged,
                ..
            } => Err(format!(
                "the data from before {} has not been restored",
                op.to
            )),
            Phase::Idle(Idle {
                trouble: Some(trouble),
                ..
            }) if trouble.needs_person && self.store.has_open_data() => Err(trouble.what.clone()),
            _ => match sets::fit(self.store, shown, record.schemas_now()).obstacle() {
                Some(why) => Err(format!("the {shown} cannot run on it: {why}")),
                None => Ok(()),
            },
        }
    }
}

/// The operation by which the factory set of a newer image takes over, if that takes a migration and none has failed.
pub fn image_operation(
    config: &Config,
    host: &Host,
    store: &Store,
    record: &Record,
    idle: &Idle,
) -> Result<Option<Operation>> {
    let factory = store.factory().0;
    let takes_over = idle.active.set == Set::Factory || factory.newer_than(&idle.active);
    if !takes_over || record.schemas.is_empty() {
        return Ok(None);
    }
    let Some((manifest, digest)) = store.manifest(Set::Factory)? else {
        return Ok(None);
    };
    if !matches!(Fit::of(&manifest, &record.schemas), Fit::Migrated(_)) {
        return Ok(None);
    }
    let refusals = store.refusals()?;
    if refusals.iter().any(|refusal| refusal.manifest == digest) {
        return Ok(None);
    }
    let to = DataPlan::forward(&manifest, &record.schemas, &config.data)
        .map_err(|why| Error::new(format!("migrating to {factory}: {why}")))?;
    let id = host.random_id()?;
    let op = Operation::new(
        id,
        OperationKind::Image,
        idle.clone(),
        factory,
        &host.timestamp(),
    );
    Ok(Some(op.under_config(config).with_data_plan(to)))
}
