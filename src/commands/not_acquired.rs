//! Why a command does not run though nothing went wrong: somebody else has the lock, or there is to be no run now.
//! It must not know how that was found out.

use tracing::{info, warn};

use super::progress::describe_holder;
use crate::cli::lock;
use crate::core::holder::{Holder, StopKind};
use crate::core::name::LockName;
use crate::core::request::WaitPolicy;
use crate::core::text::{format_duration, printable, seconds};
use crate::lock::backend::{AcquireOutcome, Acquired};
use crate::output::events;
use crate::output::exit::Exit;

/// What is told of it.
pub(super) struct NotAcquired {
    event: &'static str,
    pub(super) line: String,
    left_seconds: Option<f64>,
    by: Option<String>,
}

impl NotAcquired {
    /// Unless the lock was won.
    pub(super) fn of<S>(
        name: &LockName,
        patience: WaitPolicy,
        outcome: AcquireOutcome<S>,
    ) -> Result<Box<Acquired<S>>, Self> {
        let refusal = |event, line| Self {
            event,
            line,
            left_seconds: None,
            by: None,
        };
        Err(match outcome {
            AcquireOutcome::Acquired(won) => return Ok(won),
            AcquireOutcome::Busy(ahead) => {
                let still = match patience {
                    WaitPolicy::NoWait => "",
                    WaitPolicy::Timeout(_) | WaitPolicy::Forever => " still",
                };
                let line = format!(
                    "the lock '{name}' is{still} held by {}",
                    describe_holder(&ahead)
                );
                refusal(events::BUSY, line)
            }
            AcquireOutcome::Cooling(ahead, left) => Self {
                left_seconds: Some(seconds(left)),
                ..refusal(
                    events::COOLING,
                    format!(
                        "the lock '{name}' is cooling down, {} left: last held by {}",
                        format_duration(left),
                        describe_holder(&ahead)
                    ),
                )
            },
            AcquireOutcome::AlreadyRan(ran) => {
                let line = format!(
                    "'{name}' ran already: {}",
                    describe_earlier_run(ran.as_ref())
                );
                refusal(events::RAN, line)
            }
            AcquireOutcome::StopRequested(ask) => {
                let by = ask.describe();
                let how = match ask.to {
                    StopKind::Yield => "superseded",
                    StopKind::Stop => "sent away",
                };
                let line = format!("no longer waiting for '{name}', {how} by {by}");
                Self {
                    by: Some(by),
                    ..refusal(events::SUPERSEDED, line)
                }
            }
        })
    }

    /// Tells it, and how dlock ends.
    pub(super) fn report(&self, name: &LockName, options: &lock::Options) -> Exit {
        let (event, line) = (self.event, &self.line);
        let (lock, left_seconds, by) = (name.to_string(), self.left_seconds, self.by.as_ref());
        // Who calls that a success asks for no words: cron mails each of them.
        if options.conflict == 0 {
            info!(event, lock, left_seconds, by, "{line}");
        } else {
            warn!(event, lock, left_seconds, by, "{line}");
        }
        Exit::Busy(options.conflict)
    }
}

/// Who ran last, when, and how it ended.
fn describe_earlier_run(ran: Option<&Holder>) -> String {
    let Some(ran) = ran else {
        return "by another client".to_owned();
    };
    let result = ran
        .result
        .as_deref()
        .unwrap_or("not ended yet, or not told how");
    printable(&format!("{}; {result}", ran.sentence()))
}
