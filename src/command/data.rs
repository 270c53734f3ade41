//! `data`: what is kept of data that is not live, and how a person gets it back, or rid of it.

use std::path::Path;

use qx_release::error::{Context, Error, ErrorKind, Exit, Result};

use super::{Appliance, Resumed};
use crate::data;
use crate::model::dataplan::DataPlan;
use crate::model::fit::Fit;
use crate::model::id::OperationId;
use crate::model::kept::{Kept, KeptReason};
use crate::model::operation::{Operation, OperationKind};
use crate::model::record::Record;

impl Appliance {
    /// Makes kept data live again, for the set that runs; what was live is kept.
    pub fn restore_data(&mut self, id: OperationId) -> Result<Exit> {
        let (_lock, record) = self.begin("data restore")?;
        let record = match self.resume(record)? {
            Resumed::Ready(record) => *record,
            Resumed::Ended(exit) => return Ok(exit),
        };
        let kept = self.kept(id, &record)?;
        data::intact(&self.host, &self.store, &kept).doing(|| "restoring kept data")?;
        let idle = record.idle_when_ended();
        let plan = DataPlan::restore(&kept, &record.schemas);
        let running = self.manifest_of(idle.active.set)?;
        // Of data whose schema nobody knows a person says that it is the right one.
        if let Some(manifest) = &running
            && let Some(why) = Fit::of(manifest, &plan.schemas).obstacle()
        {
            let what = format!("restoring {kept}: {} cannot run on it: {why}", idle.active);
            return Err(Error::with(ErrorKind::NeedsPerson, what));
        }
        let to = idle.active.clone();
        let op = Operation {
            failed_before: self.baseline(to.set, running.as_ref()),
            ..self
                .operation(OperationKind::Data, idle, to)?
                .with_data_plan(plan)
        };
        self.log.operation(op.id);
        let what = format!("restoring {kept}; the live data is kept in its place");
        self.log.warning("data", what);
        self.switch(op, &record)
    }

    /// Deletes kept data.
    pub fn drop_data(&mut self, id: OperationId) -> Result<Exit> {
        let (_lock, record) = self.begin("data drop")?;
        let kept = self.kept(id, &record)?;
        data::drop_kept(&self.host, &self.store, &kept, &mut self.log)?;
        self.log.info("data", format!("{kept} is deleted"));
        Ok(Exit::Done)
    }

    /// Writes the files of kept data to a new tar archive.
    pub fn export_data(&mut self, id: OperationId, file: &Path) -> Result<Exit> {
        self.store.prepare()?;
        let _lock = self.lock("data export")?;
        let record = self.current_record();
        let kept = self.kept(id, &record)?;
        data::export(&self.host, &self.store, &kept, file)?;
        self.log
            .info("data", format!("{kept} is written to {}", file.display()));
        Ok(Exit::Done)
    }

    /// What is kept under an id, if it is nobody's any more.
    fn kept(&self, id: OperationId, record: &Record) -> Result<Kept> {
        let all = self.store.kept_data()?;
        let Some(kept) = all.into_iter().find(|kept| kept.id == id) else {
            return Err(Error::with(
                ErrorKind::Usage,
                format!(
                    "looking for kept data {id}: it does not exist (see `qx-update data list`)"
                ),
            ));
        };
        match data::is_in_use(&kept, record) || kept.reason == KeptReason::Open {
            false => Ok(kept),
            true => Err(Error::with(
                ErrorKind::NeedsPerson,
                format!(
                    "using {kept}: an open operation needs it; finish it with `qx-update confirm`"
                ),
            )),
        }
    }
}
