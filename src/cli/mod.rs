//! The command line of `qx-update`: what people and scripts type and read. The only file of the appliance's side that
//! prints ([`output`]).
//!
//! Commands that change something run in a process of their own, the worker: it may have to outlive whoever asked
//! for the update. This process only follows it, and passes on its exit code.

use crate::store::sets;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use argh::FromArgs;
use semver::Version;

use crate::command::{Appliance, Apply, Back};
use crate::model::config::{self, Config};
use crate::model::dataset::{DataSet, Protect};
use crate::model::record::Loaded;
use crate::model::record::Phase;
use crate::model::slot::{Set, Slot, Verdict};
use crate::recovery::data::DataStage;
use crate::recovery::link;
use crate::status::{self, Status};
use crate::store::{self, Holder, Store};
use crate::system::follower::{Next, Waiting};
use crate::system::host::Host;
use crate::system::log::{self, Event, Level, Line, Log, Place};
use crate::system::process;
use qx_release::error::{Context, Error, Exit, Result};
use qx_release::json;
use qx_release::manifest::Manifest;
use qx_release::output;
use qx_release::surroundings;
use qx_release::text;

/// The longest name of what is transferred that is shown, in characters.
const NAME: usize = 64;

/// Keeps the components of this appliance up to date.
#[derive(FromArgs)]
struct Arguments {
    /// use this directory as the appliance's root
    #[argh(option, arg_name = "dir")]
    root: Option<PathBuf>,
    /// use this configuration instead of /etc/qx-update/config.json
    #[argh(option, arg_name = "file")]
    config: Option<String>,
    /// print the version
    #[argh(switch, short = 'V')]
    version: bool,
    /// run in this process, and write events to standard output
    #[argh(switch, hidden_help)]
    worker: bool,
    #[argh(subcommand)]
    command: Option<Subcommand>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Subcommand {
    Check(CheckArguments),
    Apply(ApplyArguments),
    Status(StatusArguments),
    Confirm(ConfirmArguments),
    Rollback(RollbackArguments),
    Recover(RecoverArguments),
    Verify(VerifyArguments),
    Which(WhichArguments),
    Log(LogArguments),
    Reset(ResetArguments),
}

/// Look for a newer release: exit 4 if there is one, 3 if not, 5 if all are refused.
#[derive(FromArgs)]
#[argh(subcommand, name = "check")]
struct CheckArguments {
    /// a url, a directory or a bundle instead of the configured sources
    #[argh(option, arg_name = "repo")]
    from: Option<String>,
    /// wait until no other process is at work
    #[argh(switch)]
    wait: bool,
    /// with json, one event a line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// Install the newest release, or VERSION: exit 0 only when it runs and is proved healthy.
#[derive(FromArgs)]
#[argh(subcommand, name = "apply")]
struct ApplyArguments {
    /// this version instead of the newest
    #[argh(positional)]
    version: Option<Version>,
    /// a url, a directory or a bundle instead of the configured sources
    #[argh(option, arg_name = "repo")]
    from: Option<String>,
    /// show what would be done, and change nothing
    #[argh(switch)]
    dry_run: bool,
    /// try the named version even if it is quarantined or held
    #[argh(switch)]
    retry: bool,
    /// install again the release whose files were damaged
    #[argh(switch)]
    repair: bool,
    /// wait until no other process is at work
    #[argh(switch)]
    wait: bool,
    /// with json, one event a line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// Say what runs, what was tried last, how that ended, and what to do now.
#[derive(FromArgs)]
#[argh(subcommand, name = "status")]
struct StatusArguments {
    /// for programs (docs/formats.md)
    #[argh(switch)]
    json: bool,
}

/// End an open trial: prove it, or go back. Run at boot, after the runlevel is complete.
#[derive(FromArgs)]
#[argh(subcommand, name = "confirm")]
struct ConfirmArguments {
    /// assert that the release on trial is good, without a proof
    #[argh(switch)]
    force: bool,
    /// wait until no other process is at work
    #[argh(switch)]
    wait: bool,
    /// with json, one event a line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// Go back to the previous release, or to the factory set.
#[derive(FromArgs)]
#[argh(subcommand, name = "rollback")]
struct RollbackArguments {
    /// previous (the default) or factory
    #[argh(
        option,
        arg_name = "set",
        default = "Back::Previous",
        from_str_fn(back)
    )]
    to: Back,
    /// set aside data that the older set does not accept
    #[argh(switch)]
    discard_data: bool,
    /// wait until no other process is at work
    #[argh(switch)]
    wait: bool,
    /// with json, one event a line
    #[argh(option, arg_name = "format")]
    progress: Option<Progress>,
}

/// Bring the priority link in order at boot (files only), or the data (before its users start).
#[derive(FromArgs)]
#[argh(subcommand, name = "recover")]
struct RecoverArguments {
    /// link (the default) or data
    #[argh(option, arg_name = "stage", default = "Stage::Link")]
    stage: Stage,
}

/// Check the files of the installed releases against their manifests and seals.
#[derive(FromArgs)]
#[argh(subcommand, name = "verify")]
struct VerifyArguments {}

/// Print the path that an init script finds for NAME.
#[derive(FromArgs)]
#[argh(subcommand, name = "which")]
struct WhichArguments {
    /// name of a program, such as qx-node
    #[argh(positional)]
    name: qx_release::manifest::Name,
}

/// Show the update log.
#[derive(FromArgs)]
#[argh(subcommand, name = "log")]
struct LogArguments {
    /// the last so many lines (all)
    #[argh(option, short = 'n', arg_name = "lines")]
    lines: Option<usize>,
    /// the lines as they are stored
    #[argh(switch)]
    json: bool,
}

/// Forget quarantined and held releases, a staged release, downloads, and trouble that was dealt with.
#[derive(FromArgs)]
#[argh(subcommand, name = "reset")]
struct ResetArguments {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Json,
}

impl std::str::FromStr for Progress {
    type Err = String;

    fn from_str(text: &str) -> Result<Progress, String> {
        match text {
            "json" => Ok(Progress::Json),
            _ => Err("the only format is json".into()),
        }
    }
}

enum Stage {
    Link,
    Data,
}

impl std::str::FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Stage, String> {
        match text {
            "link" => Ok(Stage::Link),
            "data" => Ok(Stage::Data),
            _ => Err("it is link or data".into()),
        }
    }
}

fn back(text: &str) -> Result<Back, String> {
    match text {
        "previous" => Ok(Back::Previous),
        "factory" => Ok(Back::Factory),
        _ => Err("it is previous or factory".into()),
    }
}

/// Parses, runs, prints the error if there is one, and tells the exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> = arguments
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let given: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let given = options_first(&given);
    let parsed = match Arguments::from_args(&["qx-update"], &given) {
        Ok(parsed) => parsed,
        Err(early) => {
            return match early.status {
                Ok(()) => told(answer(&early.output)),
                Err(()) => {
                    let text = early.output.trim().replace('\n', " ");
                    complain(&format!(
                        "reading the command line: {text} (see qx-update --help)"
                    ));
                    Exit::Usage.code().into()
                }
            };
        }
    };
    if parsed.version {
        return told(answer(&version()));
    }
    match &parsed.command {
        Some(command) => told(dispatch(&parsed, command, &given)),
        None => told(Err(Error::with(
            Exit::Usage,
            "reading the command line: a command is missing (see qx-update --help)",
        ))),
    }
}

/// The exit code, after an error's one line.
fn told(outcome: Result<Exit>) -> ExitCode {
    match outcome {
        Ok(exit) => exit.code().into(),
        Err(e) => {
            let denied = e.io_kind() == Some(io::ErrorKind::PermissionDenied);
            let hint = match denied && !rustix::process::geteuid().is_root() {
                true => ": run as root",
                false => "",
            };
            complain(&format!("{}{hint}", e.chain()));
            e.exit.code().into()
        }
    }
}

/// `--root` and `--config` may stand behind the command, too.
fn options_first<'a>(given: &[&'a str]) -> Vec<&'a str> {
    let mut first = Vec::new();
    let mut rest = Vec::new();
    let mut given = given.iter().copied();
    while let Some(argument) = given.next() {
        match argument {
            "--root" | "--config" => {
                first.push(argument);
                first.extend(given.next());
            }
            // The parser knows the long one only.
            "-h" => rest.push("--help"),
            _ => rest.push(argument),
        }
    }
    first.extend(rest);
    first
}

fn version() -> String {
    format!(
        "qx-update {} ({}, {})\n",
        env!("CARGO_PKG_VERSION"),
        env!("QX_COMMIT"),
        env!("QX_TARGET")
    )
}

fn dispatch(arguments: &Arguments, command: &Subcommand, given: &[&str]) -> Result<Exit> {
    let host = Host::new(arguments.root.as_deref().unwrap_or(Path::new("/")))?;
    let config = arguments.config.as_deref();
    let (progress, wait) = match command {
        Subcommand::Status(a) => return status(&host, config, a.json),
        Subcommand::Recover(RecoverArguments { stage: Stage::Link }) => {
            return recover_link(&host, config);
        }
        Subcommand::Recover(RecoverArguments { stage: Stage::Data }) => {
            return recover_data(&host, config);
        }
        Subcommand::Verify(_) => return verify(&host, config),
        Subcommand::Which(a) => return which(&host, config, a.name.as_str()),
        Subcommand::Log(a) => return show_log(&host, config, a),
        Subcommand::Apply(a) if a.retry && a.version.is_none() => {
            return Err(Error::with(
                Exit::Usage,
                "reading the command line: --retry needs a VERSION",
            ));
        }
        Subcommand::Check(a) => (a.progress, a.wait),
        Subcommand::Apply(a) => (a.progress, a.wait),
        Subcommand::Confirm(a) => (a.progress, a.wait),
        Subcommand::Rollback(a) => (a.progress, a.wait),
        Subcommand::Reset(_) => (None, false),
    };
    if arguments.worker {
        let mut appliance = open(&host, config, wait)?;
        return match work(&mut appliance, command) {
            Err(e) => {
                appliance.log.error("end", e.chain());
                Ok(e.exit)
            }
            done => done,
        };
    }
    // What is wrong with the configuration is said before anything is started.
    let config = read_config(&host, config)?;
    let store = Store::new(&host, &config.data_dir, &config.factory)?;
    store.may_read()?;
    let mut screen = Screen::new(progress);
    let exit = follow(given, &store, &mut screen)?;
    let is_answer = match command {
        Subcommand::Apply(a) => a.dry_run,
        command => matches!(command, Subcommand::Check(_)),
    };
    match screen.failed {
        Some(e) if is_answer => Err(e),
        _ => Ok(exit),
    }
}

/// The worker's side of a command.
fn work(appliance: &mut Appliance, command: &Subcommand) -> Result<Exit> {
    surroundings::leave_directory();
    // It may be restarting whoever holds its terminal; SIGPIPE is ignored by Rust's runtime already.
    signal_hook::flag::register(
        signal_hook::consts::SIGHUP,
        Arc::new(AtomicBool::new(false)),
    )
    .doing(|| "ignoring SIGHUP")?;
    match command {
        Subcommand::Check(a) => appliance.check(a.from.as_deref()),
        Subcommand::Apply(a) => appliance.apply(&Apply {
            version: a.version.clone(),
            from: a.from.clone(),
            dry_run: a.dry_run,
            retry: a.retry,
            repair: a.repair,
        }),
        Subcommand::Confirm(a) => appliance.confirm(a.force),
        Subcommand::Rollback(a) => appliance.rollback(a.to, a.discard_data),
        Subcommand::Reset(_) => appliance.reset(),
        Subcommand::Status(_)
        | Subcommand::Recover(_)
        | Subcommand::Verify(_)
        | Subcommand::Which(_)
        | Subcommand::Log(_) => Err(Error::new("running the command: it has no worker")),
    }
}

/// Starts the worker and shows what it tells, until it ends.
fn follow(given: &[&str], store: &Store, screen: &mut Screen) -> Result<Exit> {
    let starting = || "starting the worker process";
    let me = std::env::current_exe().doing(|| "finding this program's file")?;
    let (events, to_us) = io::pipe().doing(starting)?;
    // Nobody but the worker writes to this: see `Follower`. What it says in a panic goes the same way, for the terminal
    // may be stopped.
    rustix::fs::fcntl_setfl(&to_us, rustix::fs::OFlags::NONBLOCK).doing(starting)?;
    let mut worker = Command::new(me)
        .arg("--worker")
        .args(given)
        .stdin(process::null()?)
        .stdout(to_us.try_clone().doing(starting)?)
        .stderr(to_us)
        .spawn()
        .doing(starting)?;
    let received = Received::from(events);
    while let Some(next) = received.next() {
        match next {
            Next::Line(line) => screen.show(&String::from_utf8_lossy(&line)),
            Next::Dropped(number) => screen.show_event(&log::dropped(number)),
        }
    }
    screen.end();
    let status = worker.wait().doing(|| "waiting for the worker process")?;
    match status.code().and_then(Exit::known) {
        Some(exit) => Ok(exit),
        None => after_death(
            store,
            worker.id(),
            &screen.op,
            &format!("it ended by {status}"),
        ),
    }
}

/// What the record says about the operation of a worker that could not say it.
fn after_death(store: &Store, worker: u32, seen: &str, how: &str) -> Result<Exit> {
    let dead = |exit, what: &str| {
        let text = format!("following the worker process: {how}; {what}");
        Err(Error::with(exit, text))
    };
    // Whoever worked last left its name in the lock.
    let lock = store::read_if_there(&store.path("update/lock"), 4096).ok();
    let holder = lock
        .flatten()
        .and_then(|text| json::parse::<Holder>(&text).ok());
    let worked = holder.is_some_and(|holder| holder.pid == worker);
    let unfinished = "services may be stopped: run `qx-update confirm`, which ends what was begun";
    let nothing = "no service was stopped; `qx-update status` tells where it got to";
    let record = match store.load() {
        Loaded::Record(record) => record,
        Loaded::Unreadable(why) if worked => {
            return dead(Exit::NeedsPerson, &format!("{unfinished} ({why})"));
        }
        Loaded::Unreadable(_) | Loaded::Absent => return dead(Exit::Failed, nothing),
    };
    match (record.operation(), &record.last) {
        (Some(op), _) => {
            let ours = worked || op.id == seen;
            let stopped = !op.ran.is_empty()
                || matches!(
                    record.phase,
                    Phase::Switching { .. } | Phase::Trial { .. } | Phase::Reverting { .. }
                );
            match ours && stopped {
                true => dead(Exit::NeedsPerson, unfinished),
                false => dead(Exit::Failed, nothing),
            }
        }
        (None, Some(last)) if last.id == seen => {
            complain(&format!(
                "following the worker process: {how}; it was done then"
            ));
            Ok(last.result)
        }
        (None, _) => dead(Exit::Failed, nothing),
    }
}

/// What the worker tells, read as it comes, also while our own output is not taken.
struct Received(Arc<(Mutex<Inbox>, Condvar)>);

#[derive(Default)]
struct Inbox {
    waiting: Waiting,
    ended: bool,
}

impl Received {
    fn from(events: PipeReader) -> Received {
        let shared = Arc::new((Mutex::new(Inbox::default()), Condvar::new()));
        let received = Received(Arc::clone(&shared));
        std::thread::spawn(move || {
            let (inbox, come) = &*shared;
            let locked = || inbox.lock().unwrap_or_else(PoisonError::into_inner);
            for line in BufReader::new(events)
                .split(b'\n')
                .map_while(io::Result::ok)
            {
                locked().waiting.push(line);
                come.notify_one();
            }
            locked().ended = true;
            come.notify_one();
        });
        received
    }

    /// Waits for what comes next.
    fn next(&self) -> Option<Next> {
        let (inbox, come) = &*self.0;
        let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match inbox.waiting.pop() {
                None if !inbox.ended => {
                    inbox = come.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                }
                next => return next,
            }
        }
    }
}

/// What a person sees of an operation.
struct Screen {
    json: bool,
    terminal: bool,
    bar: bool,
    drawn: Option<Instant>,
    /// The operation that it is told about.
    op: String,
    /// Why something could not be shown.
    failed: Option<Error>,
}

impl Screen {
    fn new(progress: Option<Progress>) -> Screen {
        Screen {
            json: progress.is_some(),
            terminal: io::stdout().is_terminal(),
            bar: false,
            drawn: None,
            op: String::new(),
            failed: None,
        }
    }

    fn show(&mut self, line: &str) {
        match json::parse_str(line) {
            Ok(event) => self.show_event(&event),
            // What it says before it has a log, or in a panic.
            Err(_) => {
                let line = text::line(line);
                let _ = output::write(io::stderr(), format!("{line}\n").as_bytes());
            }
        }
    }

    fn show_event(&mut self, event: &Event) {
        if let Event::Log(Line { op, .. }) = event
            && !op.is_empty()
        {
            self.op.clone_from(op);
        }
        if self.json {
            match serde_json::to_string(event) {
                Ok(text) => return self.print(&format!("{text}\n")),
                Err(e) => return complain(&format!("printing an event: {e}")),
            }
        }
        match event {
            Event::Log(line) => {
                self.end();
                if line.level == Level::Error {
                    complain(&line.message);
                } else {
                    self.print(&format!("{}\n", for_people(line)));
                }
            }
            Event::Progress { what, done, total } => self.draw(what, *done, *total),
        }
    }

    fn print(&mut self, text: &str) {
        if let Err(e) = output::answer(text) {
            self.failed.get_or_insert(e);
        }
    }

    fn draw(&mut self, what: &str, done: u64, total: u64) {
        let recent = self
            .drawn
            .is_some_and(|at| at.elapsed() < Duration::from_millis(100));
        if !self.terminal || (recent && done < total) {
            return;
        }
        self.drawn = Some(Instant::now());
        let width = 30;
        let full = (done.min(total) * width)
            .checked_div(total)
            .unwrap_or(width) as usize;
        let bar = format!("{}{}", "#".repeat(full), "-".repeat(width as usize - full));
        self.print(&format!(
            "\r  {} [{bar}] {} of {}\x1b[K",
            text::clean(what, NAME),
            size(done),
            size(total)
        ));
        self.bar = true;
    }

    /// Ends an unfinished line.
    fn end(&mut self) {
        if std::mem::take(&mut self.bar) {
            self.print("\n");
        }
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=99_999 => format!("{bytes} B"),
        100_000..=999_999 => format!("{} kB", bytes / 1000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}

fn for_people(line: &Line) -> String {
    let mark = match line.level {
        Level::Info => "",
        Level::Warning => "warning: ",
        Level::Error => "error: ",
    };
    text::line(&format!(
        "{} {:<8} {mark}{}",
        line.time, line.step, line.message
    ))
}

fn complain(text: &str) {
    output::complain("qx-update", text);
}

/// For commands whose answer is what they print.
fn answer(text: &str) -> Result<Exit> {
    output::answer(text).map(|()| Exit::Done)
}

fn read_config(host: &Host, path: Option<&str>) -> Result<Config> {
    let path = host
        .path(path.unwrap_or(config::PATH))
        .map_err(|e| e.exiting(Exit::Usage))?;
    let usage = |why: String| {
        Error::with(
            Exit::Usage,
            format!("reading the configuration {}: {why}", path.display()),
        )
    };
    let bytes = store::read_if_there(&path, 1 << 20)
        .map_err(|e| e.exiting(Exit::Usage))?
        .ok_or_else(|| usage("there is none".into()))?;
    let config = Config::parse(&bytes).map_err(usage)?;
    // A place may lead to another by a link. Where that cannot be followed, whoever opens it says why.
    let real = |path: &str| Some(host.real_path(path).ok()?.to_str()?.to_owned());
    let data_dir = real(&config.data_dir).unwrap_or_else(|| config.data_dir.clone());
    let files = |set: &&DataSet| set.protect == Protect::Files;
    for set in config.data.iter().filter(files) {
        if let Some(place) = real(&set.place)
            && let Some(own) = config::own_place(host.root(), &data_dir, &place)
        {
            return Err(usage(format!(
                "data: {}: the place {} leads to {}: {} is no place for data",
                set.name,
                text::name(&set.place),
                text::name(&place),
                text::path(&own)
            )));
        }
    }
    if let Some(path) = &config.log.path
        && let Some(place) = real(path)
        && let Some(own) = config::own_log(&data_dir, &place)
    {
        return Err(usage(format!(
            "log.path: {} leads to {}: {} is no place for a log",
            text::name(path),
            text::name(&place),
            text::path(&own)
        )));
    }
    Ok(config)
}

fn open(host: &Host, path: Option<&str>, wait: bool) -> Result<Appliance> {
    let config = read_config(host, path)?;
    let store = Store::new(host, &config.data_dir, &config.factory)?;
    let log = Log::new(place(host, &config, &store)?, true);
    Ok(Appliance {
        host: host.clone(),
        config,
        store,
        log,
        wait,
    })
}

/// For commands that must work without a configuration: what it says, else the defaults.
fn open_store(host: &Host, path: Option<&str>) -> Result<(Store, Place, Result<Config>)> {
    let config = read_config(host, path);
    let (store, place) = match &config {
        Ok(config) => {
            let store = Store::new(host, &config.data_dir, &config.factory)?;
            let place = place(host, config, &store)?;
            (store, place)
        }
        Err(_) => {
            let store = Store::new(host, config::DATA_DIR, config::FACTORY)?;
            let place = Place {
                path: store.path("update/log/update.log"),
                below: store.path(""),
                max_bytes: log::MAX_BYTES,
                keep: log::KEEP,
            };
            (store, place)
        }
    };
    Ok((store, place, config))
}

fn place(host: &Host, config: &Config, store: &Store) -> Result<Place> {
    let (path, below) = match &config.log.path {
        Some(path) => (host.path(path)?, host.root().to_owned()),
        None => (store.path("update/log/update.log"), store.path("")),
    };
    Ok(Place {
        path,
        below,
        max_bytes: config.log.max_bytes.unwrap_or(log::MAX_BYTES),
        keep: config.log.keep.unwrap_or(log::KEEP),
    })
}

fn recover_link(host: &Host, config: Option<&str>) -> Result<Exit> {
    let (store, place, read) = open_store(host, config)?;
    let mut log = Log::new(place, false);
    if let Err(e) = read {
        log.warning("recover", format!("going on with defaults: {}", e.chain()));
    }
    // Without a lock file nothing can be written, and nobody else can either.
    if let Err(e) = store.prepare() {
        log.warning("recover", e.chain());
    }
    let lock = match store.lock("recover", None) {
        Err(e) if e.exit == Exit::Busy => return Err(e),
        other => other,
    };
    let outcome = link::link_stage(host, &store, &mut log)?;
    drop(lock);
    for problem in &outcome.problems {
        complain(problem);
    }
    // Files are in order whether or not anybody hears of it.
    let _ = output::answer(&format!("qx-update: init scripts find: {}\n", outcome.show));
    Ok(Exit::Done)
}

fn recover_data(host: &Host, config: Option<&str>) -> Result<Exit> {
    surroundings::leave_directory();
    let (store, place, read) = open_store(host, config)?;
    let mut log = Log::new(place, false);
    if let Err(e) = &read {
        log.warning("recover", format!("going on with defaults: {}", e.chain()));
    }
    let stage = DataStage {
        host,
        store: &store,
        log: &mut log,
        config: read.as_ref().ok(),
    };
    stage.run().inspect_err(|e| log.error("recover", e.chain()))
}

fn status(host: &Host, config: Option<&str>, json: bool) -> Result<Exit> {
    let (store, _, config) = open_store(host, config)?;
    store.may_read()?;
    let status = Status::observe(host, &store, &config);
    if json {
        let text = serde_json::to_string_pretty(&status).doing(|| "printing the status")?;
        answer(&format!("{text}\n"))
    } else {
        answer(&status::for_people(&status))
    }
}

fn verify(host: &Host, config: Option<&str>) -> Result<Exit> {
    let (store, _, _) = open_store(host, config)?;
    store.may_read()?;
    let link = store.link();
    let mut bad = false;
    for slot in Slot::BOTH {
        let verdict = store.verify(slot);
        bad |= matches!(verdict, Verdict::Damaged(_));
        let mark = if link.selects(slot.into()) {
            ", in use"
        } else {
            ""
        };
        answer(&format!(
            "slot {slot}{mark}: {}\n",
            text::line(&sets::describe(&verdict))
        ))?;
    }
    let factory = match store.verify_factory() {
        Ok(Some(factory)) => format!("good, {factory}"),
        Ok(None) => "not known: the image has no manifest to compare it with".to_owned(),
        Err(why) => {
            bad = true;
            format!("damaged: {}", text::line(&why))
        }
    };
    answer(&format!("factory set: {factory}\n"))?;
    Ok(if bad { Exit::NeedsPerson } else { Exit::Done })
}

/// What `[ -x /data/bin/NAME ]` decides, and the factory's file otherwise.
fn which(host: &Host, config: Option<&str>, name: &str) -> Result<Exit> {
    let (store, _, _) = open_store(host, config)?;
    // A link there may lead elsewhere in the root; it is looked for as the init script finds it, and named as there.
    if executable(&store.followed(&format!("bin/{name}"))?)? {
        return answer(&format!(
            "{}
",
            store.path("bin").join(name).display()
        ));
    }
    let listed = |manifest: &Manifest| {
        let component = manifest
            .components
            .iter()
            .find(|c| c.install_path.as_str() == format!("bin/{name}"));
        component.map(|c| store.component(Set::Factory, c))
    };
    let path = store
        .manifest(Set::Factory)?
        .and_then(|(manifest, _)| listed(&manifest))
        .unwrap_or_else(|| host.path(&format!("/usr/bin/{name}")))?;
    if !executable(&path)? {
        return Err(Error::new(format!(
            "looking for {name}: neither a release nor the factory set has it"
        )));
    }
    answer(&format!("{}\n", path.display()))
}

/// As `[ -x PATH ]` asks: a file that may be run by whoever asks, where it lies.
fn executable(path: &Path) -> Result<bool> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    use rustix::io::Errno;
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(path.is_file()),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        // It is there, and not to be run; or nobody may say whether it is there.
        Err(Errno::ACCESS) if path.try_exists().is_ok_and(|there| there) => Ok(false),
        Err(e) => Err(e).doing(|| format!("looking at {}", path.display())),
    }
}

fn show_log(host: &Host, config: Option<&str>, arguments: &LogArguments) -> Result<Exit> {
    let (_, place, _) = open_store(host, config)?;
    let mut lines = Vec::new();
    for file in log::files(&place) {
        let text = match std::fs::read(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            text => text.doing(|| format!("reading {}", file.display()))?,
        };
        lines.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    }
    let first = lines
        .len()
        .saturating_sub(arguments.lines.unwrap_or(usize::MAX));
    let mut shown = String::new();
    for line in &lines[first..] {
        // A line that was cut by a power loss is shown as it is.
        let text = match json::parse_str::<Line>(line) {
            Ok(parsed) if !arguments.json => for_people(&parsed),
            Ok(_) => line.clone(),
            Err(_) => text::line(line),
        };
        shown.push_str(&text);
        shown.push('\n');
    }
    answer(&shown)
}
