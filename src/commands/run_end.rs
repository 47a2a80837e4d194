//! The end of a run: its exit status, its report, its metrics and the result that other clients see derive from it.
//! It must not know how the run came to that end.

use crate::core::run_stats::Outcome;
use crate::output::exit::{Exit, Failure};
use crate::sys::process::ExitStatus;

/// The end of a run.
#[derive(Clone, Debug)]
pub(crate) struct RunEnd {
    pub(crate) outcome: Outcome,
    pub(crate) exit: Exit,
    /// Why the run did not complete.
    pub(crate) reason: Option<String>,
}

impl RunEnd {
    /// The reason of a run that ended because its caller was gone.
    pub(crate) const UNWANTED: &str = "the lock was no longer wanted";

    pub(crate) fn new(outcome: Outcome, exit: Exit, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            exit,
            reason: Some(reason.into()),
        }
    }

    /// The command ended with this status, under the lock.
    pub(crate) fn completed(status: ExitStatus) -> Self {
        Self {
            outcome: Outcome::Completed,
            exit: status.into(),
            reason: None,
        }
    }

    /// The lock is lost; `before` is the end of the command until now. The first reason counts.
    pub(crate) fn lost(before: Option<Self>, cause: &str) -> Self {
        match before {
            Some(end) if end.exit == Exit::Lost => end,
            before => {
                let reason = before.and_then(|end| end.reason);
                let reason = reason.unwrap_or_else(|| cause.to_owned());
                Self::new(Outcome::Lost, Exit::Lost, reason)
            }
        }
    }

    /// The end of a run that may have failed.
    pub(crate) fn of(ended: &Result<Self, Failure>) -> Self {
        match ended {
            Ok(end) => end.clone(),
            Err(Failure { exit, error, .. }) => {
                let outcome = match exit {
                    Exit::NotExecutable | Exit::NotFound => Outcome::NotStarted,
                    Exit::Lost => Outcome::Lost,
                    _ => Outcome::Failed,
                };
                Self::new(outcome, *exit, format!("{error:#}"))
            }
        }
    }

    /// The result of the command, for other clients and the log.
    pub(crate) fn result(&self) -> String {
        match self.exit {
            Exit::Command(code) => format!("exit {code}"),
            Exit::Signalled(signal) => format!("signal {signal}"),
            Exit::Lost => "asked to stop".to_owned(),
            _ => self.reason.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn parts(end: RunEnd) -> (Outcome, Exit, Option<String>) {
        (end.outcome, end.exit, end.reason)
    }

    #[test]
    fn a_loss_counts_after_any_end_and_the_first_reason_stays() {
        let lost = |before| parts(RunEnd::lost(before, "gone"));
        let reason = |text: &str| Some(text.to_owned());
        let completed = RunEnd::completed(ExitStatus::Exited(0));
        let gone = (Outcome::Lost, Exit::Lost, reason("gone"));
        assert_eq!(lost(None), gone);
        assert_eq!(lost(Some(completed)), gone);
        let asked = RunEnd::new(Outcome::Asked, Exit::Lost, "asked");
        assert_eq!(lost(Some(asked.clone())), parts(asked));
        let limit = RunEnd::new(Outcome::MaxHold, Exit::TimedOut, "stopped");
        let stopped = (Outcome::Lost, Exit::Lost, reason("stopped"));
        assert_eq!(lost(Some(limit)), stopped);
    }

    #[test]
    fn a_failed_run_ends_with_the_error_as_its_reason() {
        for (exit, outcome) in [
            (Exit::Failed, Outcome::Failed),
            (Exit::NotFound, Outcome::NotStarted),
            (Exit::NotExecutable, Outcome::NotStarted),
            (Exit::Lost, Outcome::Lost),
        ] {
            let error = anyhow!("x").context("y");
            let ended = Err(Failure {
                exit,
                error,
                hint: None,
            });
            let reason = Some("y: x".to_owned());
            assert_eq!(parts(RunEnd::of(&ended)), (outcome, exit, reason));
        }
    }
}
