//! The asker's side of a command: starts the worker, passes on what it tells, and its exit code.

use std::io::{self, BufRead, BufReader, PipeReader};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use qx_release::error::{Context, Error, ErrorKind, Exit, Result};
use qx_release::json;

use super::complain;
use super::screen::Screen;
use crate::model::record::Loaded;
use crate::store::{self, Holder, Store};
use crate::system::follower::{Next, Waiting};
use crate::system::{log, process};

/// Starts the worker and shows what it tells, until it ends.
pub(super) fn follow(
    store: &Store,
    screen: &mut Screen,
    is_done: &dyn Fn() -> bool,
) -> Result<Exit> {
    let starting = || "starting the worker process";
    let me = std::env::current_exe().doing(|| "finding this program's file")?;
    let (events, to_us) = io::pipe().doing(starting)?;
    // Nobody but the worker writes to this: see `Follower`. What it says in a panic goes the same way, for the terminal
    // may be stopped.
    rustix::fs::fcntl_setfl(&to_us, rustix::fs::OFlags::NONBLOCK).doing(starting)?;
    // First: a worker that nobody hears would go on all the same.
    let received = Received::from(events)?;
    let mut worker = Command::new(me)
        .arg("--worker")
        .args(std::env::args_os().skip(1))
        .stdin(process::null()?)
        .stdout(to_us.try_clone().doing(starting)?)
        .stderr(to_us)
        .spawn()
        .doing(starting)?;
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
            &format!("it ended with {status}"),
            is_done,
        ),
    }
}

/// What the record says about the operation of a worker that could not say it.
fn after_death(
    store: &Store,
    worker: u32,
    seen: &str,
    how: &str,
    is_done: &dyn Fn() -> bool,
) -> Result<Exit> {
    let dead = |kind, what: &str| {
        let text = format!("following the worker process: {how}; {what}");
        Err(Error::with(kind, text))
    };
    // Whoever worked last left its name in the lock.
    let lock = store::read_if_there(&store.path("update/lock"), 4096).ok();
    let holder = lock
        .flatten()
        .and_then(|text| json::parse::<Holder>(&text).ok());
    let worked = holder.is_some_and(|holder| holder.pid == worker);
    let unfinished = "services may be stopped: run `qx-update confirm` to finish the operation";
    let nothing = "no service was stopped; see `qx-update status`";
    let record = match store.load() {
        Loaded::Record(record) => record,
        Loaded::Unreadable(why) if worked => {
            return dead(ErrorKind::NeedsPerson, &format!("{unfinished} ({why})"));
        }
        Loaded::Unreadable(_) | Loaded::Absent => return dead(ErrorKind::Failed, nothing),
    };
    let finished =
        format!("following the worker process: {how} after it had finished the operation");
    match (record.operation(), &record.last) {
        (Some(op), _) => {
            let ours = worked || op.id.to_string() == seen;
            let stopped = !op.ran.is_empty() || record.phase().is_under_way();
            match ours && stopped {
                true => dead(ErrorKind::NeedsPerson, unfinished),
                false => dead(ErrorKind::Failed, nothing),
            }
        }
        (None, Some(last)) if last.id.to_string() == seen => {
            complain(&finished);
            Ok(last.result)
        }
        (None, _) if worked && is_done() => {
            complain(&finished);
            Ok(Exit::Done)
        }
        (None, _) => dead(ErrorKind::Failed, nothing),
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
    fn from(events: PipeReader) -> Result<Received> {
        let shared = Arc::new((Mutex::new(Inbox::default()), Condvar::new()));
        let received = Received(Arc::clone(&shared));
        process::thread(move || {
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
        })?;
        Ok(received)
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
