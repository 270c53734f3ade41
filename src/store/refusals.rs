//! The releases that are not tried again by themselves.

use serde::{Deserialize, Serialize};

use super::{MAX_LIST, MAX_REASON, Store, checked};
use crate::model::refusal::Refusal;
use qx_release::digest::Digest;
use qx_release::error::{Error, Result};
use qx_release::text;

/// How many releases are remembered as not to be tried.
const MAX_REFUSALS: usize = 200;

#[derive(Serialize, Deserialize)]
struct Refusals {
    format: u32,
    refusals: Vec<Refusal>,
}

impl Store {
    /// The releases that are not tried again by themselves.
    pub fn refusals(&self) -> Result<Vec<Refusal>> {
        let path = self.path("update/quarantine");
        let blocked = |e: Error| {
            Error::new(format!(
                "{}; updates are blocked until `qx-update reset` clears the list",
                e.chain()
            ))
        };
        let list = checked::read::<Refusals>(&path, MAX_LIST).map_err(blocked)?;
        let Some(list) = list else {
            return Ok(Vec::new());
        };
        if list.format != 1 {
            return Err(Error::new(format!(
                "reading {}: format {} is unknown",
                path.display(),
                list.format
            )));
        }
        Ok(list.refusals)
    }

    /// Adds a release to those that are not tried again, or renews its reason.
    pub fn refuse(&self, refusal: Refusal) -> Result<()> {
        // An unreadable list is begun anew: the newest entry matters most.
        let mut refusals = self.refusals().unwrap_or_default();
        refusals.retain(|r| r.manifest != refusal.manifest);
        refusals.push(refusal);
        if refusals.len() > MAX_REFUSALS {
            refusals.remove(0);
        }
        self.write_refusals(refusals)
    }

    /// Takes a release off the list: it was confirmed after all.
    pub fn forget_refusal(&self, manifest: Digest) -> Result<()> {
        let mut refusals = self.refusals()?;
        let before = refusals.len();
        refusals.retain(|r| r.manifest != manifest);
        if refusals.len() == before {
            return Ok(());
        }
        self.write_refusals(refusals)
    }

    fn write_refusals(&self, mut refusals: Vec<Refusal>) -> Result<()> {
        let path = self.path("update/quarantine");
        for refusal in &mut refusals {
            refusal.reason = text::clean(&refusal.reason, MAX_REASON);
        }
        let list = Refusals {
            format: 1,
            refusals,
        };
        checked::write(&path, &list)
    }
}
