//! One data set in one operation, and how its own commands are run.

use std::time::Duration;

use super::migrate::{self, Failure, OPERATION};
use crate::model::config::MigrationLimits;
use crate::model::dataset::{DataSet, with_places};
use crate::model::id::OperationId;
use crate::store::Store;
use crate::system::group::Group;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::process::{Ended, Program, User};
use crate::system::space::{self, Space};
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::text;

/// The step in the log.
pub(super) const STEP: &str = "data";

/// One data set in one operation.
#[derive(Clone, Copy)]
pub struct Aside<'a> {
    /// The machine.
    pub host: &'a Host,
    /// Where most copies lie.
    pub store: &'a Store,
    /// Which.
    pub set: &'a DataSet,
    /// The operation.
    pub id: OperationId,
}

/// The space that a data set takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// The most that a copy takes on a disk, if it shares nothing with the original.
    pub copy: Space,
    /// Whether a copy shares the blocks of the original, and so takes next to nothing until one of them is changed.
    pub shares: bool,
    /// What is free where copies lie, if that is not the data directory's file system.
    pub free: Option<Space>,
}

impl Size {
    /// What a copy takes, and a migration that rewrites all of it, file by file.
    pub fn with_migration(&self) -> Space {
        let Space { bytes, entries } = self.copy;
        let bytes = match self.shares {
            true => bytes,
            false => bytes.saturating_mul(2),
        };
        Space { bytes, entries }
    }
}

impl Aside<'_> {
    /// Runs the data set's own check on the data at a place.
    pub fn check(&self, place: &str, log: &mut Log) -> Result<(), Failure> {
        if self.set.check.is_empty() {
            return Ok(());
        }
        let doing = || format!("checking the data set {}", self.set.name);
        let places = [place, "", ""];
        let said = &mut |line| log.info(STEP, line);
        // That it cannot be asked says nothing against the release.
        let ended = self.program(&self.set.check, places, said).doing(doing)?;
        succeeded(&self.set.check, places, &ended)
            .doing(doing)
            .map_err(Failure::of_release)
    }

    /// Runs one of the data set's commands; its output goes to the log. The places are those of `{place}`, `{copy}`,
    /// `{kept}`.
    pub(super) fn run(&self, vector: &[String], places: [&str; 3], log: &mut Log) -> Result<()> {
        let ended = self.program(vector, places, &mut |line| log.info(STEP, line))?;
        succeeded(vector, places, &ended)
    }

    /// The same; each line of its output, without the places, goes to `on_line`.
    fn program(
        &self,
        vector: &[String],
        places: [&str; 3],
        on_line: &mut dyn FnMut(String),
    ) -> Result<Ended> {
        let user = self.set.user.as_deref();
        let user = user.map(|name| User::find(self.host, name)).transpose()?;
        let given = with_places(vector, places[0], places[1], places[2]);
        // So that whoever comes next knows what is left of it, and ends it.
        let environment = [(OPERATION.to_owned(), self.id.to_string())];
        let name = migrate::commands_group(self.id);
        let group = Group::make(&name, &MigrationLimits::default())?;
        let ended = Program {
            user: user.as_ref(),
            environment: &environment,
            group: Some(&group),
            ..Program::new(&given, Duration::from_secs(self.set.timeout_s))
        }
        .run(&mut |_, line| on_line(hidden(line, places)));
        group.remove();
        ended
    }

    /// Reads the schema of the data at a place; `None` if the data set has no command for it.
    pub fn schema(&self, place: &str) -> Result<Option<u64>> {
        if self.set.schema.is_empty() {
            return Ok(None);
        }
        let mut last = String::new();
        let places = [place, "", ""];
        let ended = self.program(&self.set.schema, places, &mut |line| last = line)?;
        let schema = succeeded(&self.set.schema, places, &ended).and_then(|()| {
            last.trim().parse().map_err(|_| {
                Error::new(format!(
                    "{} printed '{}' instead of a number",
                    text::command(&self.set.schema),
                    text::line(&last)
                ))
            })
        });
        schema
            .map(Some)
            .doing(|| format!("reading the schema of the data set {}", self.set.name))
    }

    /// What is free where copies lie.
    pub(super) fn free(&self, size: &Size) -> Result<Space> {
        match size.free {
            Some(free) => Ok(free),
            None => space::free_space(&self.store.path("update")),
        }
    }

    /// Fails if the data exceeds its `limit_bytes`.
    pub(super) fn within(&self, bytes: u64) -> Result<()> {
        match bytes <= self.set.limit_bytes {
            true => Ok(()),
            false => Err(Error::with(
                ErrorKind::NotEligible,
                format!(
                    "the data set {} is larger than its limit_bytes, {}",
                    self.set.name, self.set.limit_bytes
                ),
            )),
        }
    }
}

/// The error shows the command without the places, which may contain a password.
fn succeeded(vector: &[String], places: [&str; 3], ended: &Ended) -> Result<()> {
    match ended.ok() {
        true => Ok(()),
        false => Err(Error::new(format!(
            "{} {}",
            text::command(vector),
            hidden(&ended.describe(), places)
        ))),
    }
}

/// A line of a command's output, with the places hidden.
fn hidden(line: &str, places: [&str; 3]) -> String {
    let places = places.into_iter().filter(|place| !place.is_empty());
    places.fold(line.to_owned(), |line, place| text::hiding(&line, place))
}
