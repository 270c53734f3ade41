//! The answer for people: lines of a name and a text.

use super::{DataSetState, Elsewhere, Open, ServiceState, Status};
use crate::model::operation::{Attempt, Discarded, EarlyFailure, OperationKind};
use crate::model::refusal::{Refusal, RefusalKind};
use crate::store::{Freshness, Refreshed};
use qx_release::error::Exit;
use qx_release::text;

/// The answer as text.
pub fn for_people(status: &Status) -> String {
    let mut page = Page(String::new());
    page.running(status);
    for service in &status.services {
        page.service(service);
    }
    for process in &status.elsewhere {
        page.elsewhere(process);
    }
    match &status.fallback {
        Some(fallback) => page.add("fallback", fallback.to_string()),
        None => page.add("fallback", "factory set".into()),
    }
    if let Some(open) = &status.operation {
        page.operation(status.phase, open);
    } else if status.phase == "unknown" {
        page.add(
            "phase",
            "unknown: the update state is missing or unreadable".into(),
        );
    }
    match &status.last {
        None => page.add("last", "no update attempted yet".into()),
        Some(last) => page.attempt(last),
    }
    if let Some(failure) = &status.failure {
        page.failure(failure);
    }
    if let Some(refreshed) = &status.refreshed {
        page.trust(refreshed);
    }
    for refusal in &status.refused {
        page.refusal(refusal);
    }
    for set in &status.data {
        page.data_set(set);
    }
    for kept in &status.kept_data {
        page.add("kept", kept.describe(status.keep_data_s));
    }
    for problem in &status.problems {
        page.add("problem", problem.clone());
    }
    for advice in &status.advice {
        page.add("now", advice.clone());
    }
    page.0
}

struct Page(String);

impl Page {
    /// The texts contain what processes and servers said: each is reduced to one line.
    fn add(&mut self, name: &str, text: String) {
        debug_assert!(name.len() < 10, "{name} leaves no space");
        self.0 += &format!("{name:<10}{}\n", text::line(&text));
    }

    fn running(&mut self, status: &Status) {
        let since = status
            .since
            .as_ref()
            .map(|s| format!(", since {s}"))
            .unwrap_or_default();
        match &status.plain {
            Some(plain) => self.add(
                "running",
                format!("the files in {}, a plain directory", plain.display()),
            ),
            None => self.add("running", format!("{}{since}", status.running)),
        }
    }

    fn service(&mut self, service: &ServiceState) {
        let told = match (service.state, service.pid, &service.runs) {
            ("installed", Some(pid), Some(path)) => format!("process {pid} runs {path}"),
            ("done", ..) => "has run to its end".to_owned(),
            (_, Some(pid), Some(path)) => {
                format!(
                    "process {pid} runs {path}, NOT {}",
                    service.installed.display()
                )
            }
            _ => match &service.why {
                Some(why) => format!("NOT RUNNING: {why}"),
                None => "NOT RUNNING".into(),
            },
        };
        self.add("service", format!("{}: {told}", service.name));
    }

    fn data_set(&mut self, set: &DataSetState) {
        let schema = match set.schema {
            Some(schema) => format!("schema {schema}"),
            None => "schema not recorded".to_owned(),
        };
        let size = match set.bytes {
            Some(bytes) => format!(", {bytes} of at most {} bytes", set.limit_bytes),
            None => String::new(),
        };
        self.add("data", format!("{}: {schema}{size}", set.name));
    }

    fn elsewhere(&mut self, process: &Elsewhere) {
        let whose = match (&process.service, process.left) {
            (_, true) => ", left running on purpose".to_owned(),
            (Some(service), _) => format!(", of {service}"),
            (None, false) => String::new(),
        };
        self.add(
            "elsewhere",
            format!(
                "process {} ({}{whose}) still uses {}",
                process.pid, process.runs, process.uses
            ),
        );
    }

    fn operation(&mut self, phase: &str, open: &Open) {
        let boots = match open.boots {
            0 => String::new(),
            n => format!(", boot {n}"),
        };
        self.add(
            "phase",
            format!(
                "{phase}: {} to {}, since {}{boots}",
                verb(open.kind),
                open.to,
                open.started
            ),
        );
    }

    fn attempt(&mut self, last: &Attempt) {
        self.add(
            "last",
            format!("{} from {} to {}", verb(last.kind), last.from, last.to),
        );
        let result = match (last.result, last.unproved.as_slice()) {
            (Exit::Done, [_, ..]) => {
                format!("done, not proved: {} (exit 0)", last.unproved.join("; "))
            }
            _ => result(last.result),
        };
        self.add(
            "",
            format!("began {}, ended {}: {result}", last.started, last.ended),
        );
        if let Some(reason) = &last.reason {
            self.add("reason", reason.clone());
        }
        for line in &last.output {
            self.add("", line.clone());
        }
        if let Some(Discarded { from, to, kept }) = &last.discarded {
            let kept = match kept {
                Some(id) => format!(" as {id}: see `qx-update data list`"),
                None => String::new(),
            };
            self.add(
                "data",
                format!("data written from {from} to {to} was set aside{kept}"),
            );
        }
    }

    fn failure(&mut self, failure: &EarlyFailure) {
        self.add(
            "then",
            format!("{}: attempt {}", failure.at, result(failure.result)),
        );
        self.add("reason", failure.reason.clone());
    }

    fn trust(&mut self, refreshed: &Refreshed) {
        self.add(
            "trust",
            format!("refreshed {} from {}", refreshed.time, refreshed.source),
        );
        if refreshed.freshness == Freshness::NotVerified {
            self.add(
                "",
                format!(
                    "freshness not verified: the system clock {} was implausible; newer releases may have been withheld",
                    refreshed.clock
                ),
            );
        }
    }

    fn refusal(&mut self, refused: &Refusal) {
        let version = refused
            .version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let kind = match refused.kind {
            RefusalKind::Quarantined => "quarantined",
            RefusalKind::Held => "held",
        };
        self.add(
            "refused",
            format!(
                "{version} is {kind} since {}: {}",
                refused.at, refused.reason
            ),
        );
    }
}

fn verb(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Install => "install",
        OperationKind::Rollback => "rollback",
        OperationKind::Factory => "return",
        OperationKind::Image => "image take-over",
        OperationKind::Data => "data restore",
    }
}

fn result(exit: Exit) -> String {
    let text = match exit {
        Exit::Done => "done, proved healthy",
        Exit::BackToPrevious => "FAILED; the previous release runs again",
        Exit::BackToFactory => "FAILED; the factory set runs",
        Exit::NeedsPerson => "FAILED; manual intervention required",
        Exit::NoSpace => "failed: not enough space; nothing changed",
        Exit::Refused => "refused; nothing changed",
        _ => "failed; nothing changed",
    };
    format!("{text} (exit {})", exit.code())
}
