//! Whatever data is made of, it has the same few verbs: copy, exchange, remove.

use std::fs::File;

use super::aside::{Aside, STEP, Size};
use super::{command, files};
use crate::model::dataset::{Method, Side};
use crate::system::log::Log;
use crate::system::proc::Use;
use crate::system::space::Space;
use qx_release::digest::Digest;
use qx_release::error::{Context, Error, Result};
use qx_release::text;

impl Aside<'_> {
    /// What a copy takes.
    ///
    /// # Errors
    /// [`qx_release::error::ErrorKind::NotEligible`] for data that is larger than it may be; what cannot be copied.
    pub fn size(&self) -> Result<Size> {
        match &self.set.method {
            Method::Files => files::size(self),
            // What its server keeps is not ours to measure.
            Method::Command(_) => Ok(Size {
                copy: Space {
                    bytes: self.set.limit_bytes,
                    entries: 0,
                },
                ..Size::default()
            }),
        }
        .doing(|| format!("measuring the data set {}", self.set.name))
    }

    /// Copies the live data to a side. It is an error if the data is written to meanwhile. Returns a fingerprint for
    /// [`Aside::unchanged`].
    pub fn copy(&self, side: Side, log: &mut Log) -> Result<u64> {
        log.info(STEP, format!("copying {}", self.set.name));
        match &self.set.method {
            Method::Files => files::copy(self, side, log),
            Method::Command(commands) => command::copy(self, commands, side, log).map(|()| 0),
        }
        .doing(|| format!("copying the data set {}", self.set.name))
    }

    /// Whether there is any data; of what has commands of its own it is taken for granted.
    pub fn is_there(&self) -> Result<bool> {
        match &self.set.method {
            Method::Files => files::is_there(self),
            Method::Command(_) => Ok(true),
        }
        .doing(|| format!("examining the data set {}", self.set.name))
    }

    /// What the live data takes, by what its limit counts.
    pub fn bytes(&self) -> Result<Option<u64>> {
        match &self.set.method {
            Method::Files => files::bytes(self).map(Some),
            Method::Command(_) => Ok(None),
        }
        .doing(|| format!("measuring the data set {}", self.set.name))
    }

    /// The processes that use the live data, as far as that can be seen.
    pub fn users(&self) -> Result<Vec<Use>> {
        match &self.set.method {
            Method::Files => files::users(self),
            // Its server answers for those.
            Method::Command(_) => Ok(Vec::new()),
        }
        .doing(|| format!("finding the users of the data set {}", self.set.name))
    }

    /// Whether the live data is what it was when it was copied, as far as that can be told.
    pub fn unchanged(&self, found: u64) -> Result<()> {
        match &self.set.method {
            Method::Files => files::unchanged(self, found),
            Method::Command(_) => Ok(()),
        }
        .doing(|| format!("exchanging the data set {}", self.set.name))
    }

    /// Whether a copy ran out of disk space though it took no more than was planned.
    pub fn starved(&self) -> Result<bool> {
        match &self.set.method {
            Method::Files => files::starved(self),
            Method::Command(_) => Ok(false),
        }
    }

    /// Copies the data to a side while it is in use. Returns why there is no copy, if there is none.
    pub fn copy_in_use(&self, side: Side, log: &mut Log) -> Result<Option<String>> {
        log.info(
            STEP,
            format!("copying {} while it is in use", self.set.name),
        );
        match &self.set.method {
            Method::Files => files::copy_in_use(self, side, log),
            Method::Command(commands) => command::copy_in_use(self, commands, side, log),
        }
        .doing(|| format!("copying the data set {}", self.set.name))
    }

    /// Prepares to start without data: nothing becomes the live data.
    ///
    /// # Errors
    /// The data is not files: only its own commands could create it empty.
    pub fn begin_empty(&self) -> Result<()> {
        match &self.set.method {
            Method::Files => files::begin_empty(self),
            Method::Command(_) => Err(Error::new("a `command` data set cannot start empty")),
        }
        .doing(|| format!("setting the data set {} aside", self.set.name))
    }

    /// Lets other users reach a side, to migrate it; or no longer.
    pub fn open_to_others(&self, open: bool) -> Result<()> {
        match &self.set.method {
            Method::Files => files::open_to_others(self, open),
            Method::Command(_) => Ok(()),
        }
    }

    /// Makes the data on a side live, durably; what was live is on the other side afterwards. It can be repeated, or
    /// reversed, after an interruption.
    pub fn exchange(&self, from: Side, log: &mut Log) -> Result<()> {
        match &self.set.method {
            Method::Files => files::exchange(self, from, log),
            Method::Command(commands) => command::exchange(self, commands, from, log),
        }
        .doing(|| format!("exchanging the data set {}", self.set.name))
    }

    /// Appends the files of a side to an archive, below the name of the data set.
    ///
    /// # Errors
    /// The data is not files.
    pub fn export(&self, side: Side, archive: &mut tar::Builder<File>) -> Result<()> {
        match &self.set.method {
            Method::Files => files::export(self, side, archive),
            Method::Command(_) => Err(Error::new(format!(
                "a `command` data set has no files to export: its data is at {}",
                text::place(&self.place_of_copy(side)?)
            ))),
        }
        .doing(|| format!("exporting the data set {}", self.set.name))
    }

    /// The digest of the files of a side; `None` if the data is not files.
    pub fn digest(&self, side: Side) -> Result<Option<Digest>> {
        match &self.set.method {
            Method::Files => files::digest(self, side).map(Some),
            // What its server keeps is not ours to read.
            Method::Command(_) => Ok(None),
        }
        .doing(|| format!("reading what is kept of the data set {}", self.set.name))
    }

    /// Removes both sides; nothing there is fine.
    pub fn remove(&self, log: &mut Log) -> Result<()> {
        match &self.set.method {
            Method::Files => files::remove(self),
            Method::Command(commands) => command::remove(self, commands, log),
        }
        .doing(|| format!("removing the copies of the data set {}", self.set.name))
    }

    /// The place of a copy, as commands and migrations are to be told.
    pub fn place_of_copy(&self, side: Side) -> Result<String> {
        match &self.set.method {
            Method::Files => files::place_of_copy(self, side),
            Method::Command(commands) => Ok(commands.copy(self.id, side)),
        }
    }

    /// The place of the live data, as commands and migrations are to be told.
    ///
    /// # Errors
    /// The files are reached through a link that another user could have created.
    pub fn live_place(&self) -> Result<String> {
        match &self.set.method {
            Method::Files => files::live_place(self),
            Method::Command(_) => Ok(self.set.place.clone()),
        }
    }

    /// Syncs what is written to a copy.
    pub fn sync(&self) -> Result<()> {
        match &self.set.method {
            Method::Files => files::sync(self),
            // What its commands wrote is theirs to sync.
            Method::Command(_) => Ok(()),
        }
    }

    /// What both sides take, as far as it can be seen.
    pub(super) fn used(&self) -> Space {
        match &self.set.method {
            Method::Files => files::used(self),
            Method::Command(_) => Space::default(),
        }
    }
}
