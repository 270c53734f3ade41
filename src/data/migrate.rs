//! The migration: the release's own program moves a copy of the data to its schema, while the services are stopped, or, in
//! a rehearsal, while they run.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::model::id::OperationId;
use crate::model::operation::{Cause, CauseKind, Operation};
use crate::model::slot::{Installed, Set};
use crate::store::Store;
use crate::system::group::Group;
use crate::system::host::Host;
use crate::system::log::Log;
use crate::system::proc::Proc;
use crate::system::process::{Program, User};
use qx_release::error::{Error, Result};
use qx_release::manifest::Manifest;
use qx_release::text;

/// Names the operation in the environment of a migration, and of all that it starts.
pub(super) const OPERATION: &str = "QX_UPDATE_OPERATION";
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// How many last lines of each of a migration's outputs are kept for `status`: what fails says so on one of them, however
/// much it wrote to the other.
const LAST_LINES: usize = 5;
/// How much of each of these lines, in characters.
const LINE: usize = 200;

/// How a set's programs are run on data.
pub struct MigrationRunner<'a> {
    /// The machine.
    pub host: &'a Host,
    /// What is installed.
    pub store: &'a Store,
    /// What it is run for.
    pub op: &'a Operation,
    /// Whose program it is.
    pub set: Set,
    /// That set's manifest.
    pub manifest: &'a Manifest,
    /// What `{data:NAME}` stands for.
    pub places: Vec<(String, String)>,
    /// Seconds until the whole process group is killed.
    pub timeout_s: u64,
    /// Whether it is a rehearsal.
    pub rehearsal: bool,
}

/// A migration that failed.
pub struct Failure {
    /// What happened.
    pub error: Error,
    /// Whose fault it is.
    pub kind: CauseKind,
    /// Its last lines of output, each with its stream.
    pub output: Vec<String>,
}

impl Failure {
    /// The release's fault.
    pub fn of_release(error: Error) -> Failure {
        // Without memory or open files no release's program could have been run.
        let kind = match error.is_lack() {
            true => CauseKind::Appliance,
            false => CauseKind::Release,
        };
        Failure {
            kind,
            ..Failure::from(error)
        }
    }
}

/// What fails around a migration is the appliance's fault.
impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure {
            error,
            kind: CauseKind::Appliance,
            output: Vec::new(),
        }
    }
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Cause {
        Cause {
            output: failure.output,
            ..Cause::new(failure.kind, failure.error.chain())
        }
    }
}

impl MigrationRunner<'_> {
    /// Runs a program of the set. Every line of its output goes to the log. `within` is checked regularly: whether it
    /// keeps within its space.
    ///
    /// Its environment is that of [`Program`] and `QX_UPDATE_FROM`, `QX_UPDATE_TO` (versions), `QX_UPDATE_SLOT` (the
    /// set's directory, also its working directory), `QX_UPDATE_OPERATION`; in a rehearsal `QX_UPDATE_REHEARSAL=1`.
    pub fn run(
        &self,
        step: &str,
        vector: &[String],
        within: Option<&dyn Fn() -> bool>,
        log: &mut Log,
    ) -> Result<(), Failure> {
        let given = self.given(vector).map_err(Failure::of_release)?;
        let directory = self.store.directory(self.set);
        let environment = self.environment(&directory);
        let user = self.op.migration_user.as_deref();
        let user = user.map(|name| User::find(self.host, name)).transpose()?;
        // The places are not put in, nor shown where they come out: there may be a password in one.
        let hidden = |line: &str| {
            let places = self.places.iter();
            places.fold(line.to_owned(), |line, (_, place)| {
                text::hiding(&line, place)
            })
        };
        let group = confine(self.op)?;
        log.info(step, format!("running {}", text::command(vector)));
        let mut output = Vec::new();
        let ended = Program {
            directory: &directory,
            environment: &environment,
            user: user.as_ref(),
            within,
            group: Some(&group),
            ..Program::new(&given, Duration::from_secs(self.timeout_s))
        }
        .run(&mut |stream, line| {
            let line = hidden(line);
            keep(&mut output, stream.name(), &text::clean(&line, LINE));
            log.info_with(step, line, serde_json::json!({ "stream": stream.name() }));
        })
        .map_err(Failure::of_release)?;
        group.remove();
        if ended.ok() {
            log.info(step, format!("{} succeeded", text::command(vector)));
            return Ok(());
        }
        let ended = hidden(&ended.describe());
        let what = format!("{step}: {} {ended}", text::command(vector));
        Err(Failure {
            error: Error::new(what),
            kind: CauseKind::Release,
            output,
        })
    }
}

impl MigrationRunner<'_> {
    /// The argument vector with the path of the program, and the places put in.
    fn given(&self, vector: &[String]) -> Result<Vec<String>> {
        let Some((program, arguments)) = vector.split_first() else {
            return Err(Error::new("running a migration: its command is empty"));
        };
        let program = self
            .store
            .program(self.set, self.manifest, program)
            .ok_or_else(|| Error::new(format!("running {program}: no component contains it")))?;
        let mut given = vec![program.display().to_string()];
        for argument in arguments {
            let mut argument = argument.clone();
            for (placeholder, place) in &self.places {
                argument = argument.replace(placeholder, place);
            }
            given.push(argument);
        }
        Ok(given)
    }

    fn environment(&self, directory: &Path) -> Vec<(String, String)> {
        let version = |set: &Installed| {
            let version = set.version.as_ref().map(ToString::to_string);
            version.unwrap_or_default()
        };
        let mut environment = vec![
            ("QX_UPDATE_FROM".to_owned(), version(self.op.from())),
            ("QX_UPDATE_TO".to_owned(), version(&self.op.to)),
            ("QX_UPDATE_SLOT".to_owned(), directory.display().to_string()),
            (OPERATION.to_owned(), self.op.id.to_string()),
        ];
        if self.rehearsal {
            environment.push(("QX_UPDATE_REHEARSAL".to_owned(), "1".to_owned()));
        }
        environment
    }
}

/// Keeps the last lines of each stream, in the order in which they came.
fn keep(output: &mut Vec<String>, stream: &str, line: &str) {
    let same = |kept: &String| kept.starts_with(stream);
    if output.iter().filter(|kept| same(kept)).count() == LAST_LINES
        && let Some(oldest) = output.iter().position(same)
    {
        output.remove(oldest);
    }
    output.push(format!("{stream}: {line}"));
}

/// Makes the control group that an operation's migration is to run in.
pub(super) fn confine(op: &Operation) -> Result<Group> {
    Group::make(&group(op.id), &op.migration_limits)
}

/// The control group of an operation's migration.
fn group(operation: OperationId) -> String {
    format!("qx-update-{operation}")
}

/// The control group of the data sets' own commands, to which no limit applies.
pub(super) fn commands_group(operation: OperationId) -> String {
    format!("qx-update-data-{operation}")
}

/// Ends the remaining processes of an operation's migration whose updater was killed, or that outlived its process group:
/// they would go on changing the data under the old set, or alongside the next migration. They are found by their control
/// group; where there is none, by their environment.
pub fn end_orphans(operation: OperationId, proc: &Proc, log: &mut Log) -> Result<()> {
    let mark = format!("{OPERATION}={operation}");
    let groups = [group(operation), commands_group(operation)].map(|name| Group::named(&name));
    let deadline = Instant::now() + GONE;
    loop {
        let mut orphans = proc.marked(&mark);
        let members = groups.iter().flat_map(Group::members);
        for member in members.filter_map(|pid| proc.identity(pid)) {
            if !orphans.contains(&member) {
                orphans.push(member);
            }
        }
        if orphans.is_empty() {
            groups.iter().for_each(Group::remove);
            return Ok(());
        }
        if Instant::now() >= deadline {
            let stay: Vec<String> = orphans.iter().map(|p| p.pid.to_string()).collect();
            return Err(Error::new(format!(
                "ending the remaining processes of a migration: cannot kill {}",
                stay.join(", ")
            )));
        }
        for orphan in orphans {
            log.warning(
                "migrate",
                format!("killing process {}, left behind by a migration", orphan.pid),
            );
            proc.kill(orphan);
        }
        // Those that were born meanwhile, too.
        groups.iter().for_each(Group::kill);
        std::thread::sleep(Duration::from_millis(20));
    }
}
