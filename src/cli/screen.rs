//! What a person, or a program, sees of an operation while it goes on.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use qx_release::error::Error;
use qx_release::{json, output, text};

use super::{complain, for_people};
use crate::system::log::{Event, Level, Line};

/// The longest name of what is transferred that is shown, in characters.
const NAME: usize = 64;

/// How progress is shown, if not to people.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Json,
}

impl std::str::FromStr for Progress {
    type Err = String;

    fn from_str(text: &str) -> Result<Progress, String> {
        match text {
            "json" => Ok(Progress::Json),
            _ => Err("must be json".into()),
        }
    }
}

/// What a person sees of an operation.
pub(super) struct Screen {
    json: bool,
    terminal: bool,
    bar: bool,
    drawn: Option<Instant>,
    /// The operation that it is told about.
    pub op: String,
    /// Why something could not be shown.
    pub failed: Option<Error>,
}

impl Screen {
    pub(super) fn new(progress: Option<Progress>) -> Screen {
        Screen {
            json: progress.is_some(),
            terminal: io::stdout().is_terminal(),
            bar: false,
            drawn: None,
            op: String::new(),
            failed: None,
        }
    }

    pub(super) fn show(&mut self, line: &str) {
        match json::parse_str(line) {
            Ok(event) => self.show_event(&event),
            // What it says before it has a log, or in a panic.
            Err(_) => {
                let line = text::line(line);
                let _ = output::write(io::stderr(), format!("{line}\n").as_bytes());
            }
        }
    }

    pub(super) fn show_event(&mut self, event: &Event) {
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
    pub(super) fn end(&mut self) {
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
