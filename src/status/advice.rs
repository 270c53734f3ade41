//! What to do now, a sentence each.

use super::Status;
use crate::model::kept::{Kept, KeptReason};
use crate::model::operation::{Attempt, EarlyFailure};
use crate::model::refusal::Refusal;
use crate::store::Freshness;
use crate::system::host::FACTORY_BOOT;
use qx_release::error::Exit;

/// What to do now; never empty.
pub(super) fn advice(status: &Status) -> Vec<String> {
    if let Some(holder) = &status.busy {
        return vec![format!(
            "wait for process {} ({}), running since {}; `qx-update log` shows its progress",
            holder.pid, holder.command, holder.since
        )];
    }
    let mut advice = about_what_is_open(status);
    let unexplained = |kept: &&Kept| kept.reason == KeptReason::Unexplained;
    if let Some(kept) = status.kept_data.iter().find(unexplained) {
        advice.push(format!(
            "cannot determine which data is correct: inspect the kept data with `qx-update data export {id} FILE`, then \
             activate it with `qx-update data restore {id}`, or keep the live data with `qx-update data drop {id}`",
            id = kept.id
        ));
    }
    if status.needs_person {
        advice.push(
            "manual intervention required: fix the problem above, then run `qx-update reset`"
                .into(),
        );
    }
    if status.lost.is_some() {
        advice.push(
            "a damaged release was taken out of use: reinstall it with `qx-update apply --repair`"
                .into(),
        );
    }
    advice.extend(about_services(status));
    advice.extend(status.failure.as_ref().map(after_failure));
    let last = status.last.as_ref();
    advice.extend(last.and_then(|last| after_attempt(last, &status.refused)));
    if (status.refreshed.as_ref()).is_some_and(|r| r.freshness == Freshness::NotVerified) {
        advice.push("set the clock, then run `qx-update check`: updates still work, but stale metadata cannot be \
         detected".into());
    }
    if advice.is_empty() {
        let usual = if status.problems.is_empty() {
            "nothing to do"
        } else {
            "see the problem above"
        };
        advice.push(usual.into());
    }
    advice
}

/// How to end an interrupted operation, and a boot into the factory set.
fn about_what_is_open(status: &Status) -> Vec<String> {
    let mut advice = Vec::new();
    match status.phase {
        // In such a boot nothing is concluded.
        _ if status.factory_boot => {}
        "trial" | "reverting" | "switching" | "staging" => advice.push(format!(
            "an operation was interrupted while {}: `qx-update confirm` resumes it (so does the next boot)",
            status.phase
        )),
        "staged" => advice.push("a release is staged: `qx-update apply` switches to it".into()),
        _ => {}
    }
    if status.stopped {
        advice.push(
            "an operation was interrupted after it stopped services: `qx-update confirm` starts them"
                .into(),
        );
    }
    if status.factory_boot {
        advice.push(format!(
            "boot without {FACTORY_BOOT} to use the release again, or run `qx-update rollback --to factory` to stay on the \
             factory set"
        ));
    }
    advice
}

/// Services that are not running first, then those that run another file.
fn about_services(status: &Status) -> Vec<String> {
    let in_state = |state| status.services.iter().filter(move |s| s.state == state);
    let stopped = in_state("stopped").map(|service| {
        format!(
            "service {} is not running: start it and check its log",
            service.name
        )
    });
    let other = in_state("other").map(|service| {
        format!(
            "service {} runs {}, not {}: restart it and check the path in its init script",
            service.name,
            service.runs.as_deref().unwrap_or("nothing"),
            service.installed.display()
        )
    });
    stopped.chain(other).collect()
}

fn after_failure(failure: &EarlyFailure) -> String {
    match failure.result {
        Exit::NoSpace => "free space in the data directory, then run `qx-update apply`".into(),
        Exit::NeedsPerson | Exit::BackToPrevious | Exit::BackToFactory => {
            "fix the cause of the failed attempt, then run `qx-update confirm`".into()
        }
        _ => "the failed attempt changed nothing: fix its cause, then run `qx-update apply`".into(),
    }
}

fn after_attempt(last: &Attempt, refused: &[Refusal]) -> Option<String> {
    let refused = refused.iter().any(|r| Some(r.manifest) == last.to.manifest);
    let failed = matches!(
        last.result,
        Exit::BackToPrevious | Exit::BackToFactory | Exit::NeedsPerson
    );
    match &last.to.version {
        Some(version) if failed && refused => Some(format!(
            "{version} is not retried automatically: publish a release with a higher version, or, if the cause was elsewhere, \
             run `qx-update apply {version} --retry`"
        )),
        _ if failed => {
            Some("the release was not at fault: the next `qx-update apply` tries again".into())
        }
        _ if matches!(last.result, Exit::Failed | Exit::Refused | Exit::NoSpace) => Some(
            "nothing was changed: fix what the last attempt names, then run `qx-update apply`"
                .into(),
        ),
        _ => None,
    }
}
