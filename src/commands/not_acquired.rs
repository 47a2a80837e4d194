//! The reason why a command does not run without an error: the lock is busy, or no run is due.
//! It must not know how the reason was found.

use tracing::{info, warn};

use super::run_end::RunEnd;
use crate::cli::lock;
use crate::core::holder::StopKind;
use crate::core::name::LockName;
use crate::core::proof::LeaseId;
use crate::core::request::WaitPolicy;
use crate::core::run_stats::Outcome;
use crate::core::text::{format_duration, seconds};
use crate::core::wait_status::{verb, who};
use crate::lock::backend::{AcquireOutcome, Acquired};
use crate::output::events;
use crate::output::exit::Exit;

/// The event and its fields.
pub(super) struct NotAcquired {
    event: &'static str,
    line: String,
    left_seconds: Option<f64>,
    by: Option<String>,
    /// It lasts until somebody deletes a key.
    is_lasting: bool,
}

impl NotAcquired {
    /// The reason; `Ok` if the lock was acquired.
    pub(super) fn of<S>(
        name: &LockName,
        wait_policy: WaitPolicy,
        outcome: AcquireOutcome<S>,
    ) -> Result<Box<Acquired<S>>, Self> {
        let not_acquired = |event, line| Self {
            event,
            line,
            left_seconds: None,
            by: None,
            is_lasting: false,
        };
        Err(match outcome {
            AcquireOutcome::Acquired(acquired) => return Ok(acquired),
            AcquireOutcome::Busy(ahead) => {
                let still = match wait_policy {
                    WaitPolicy::NoWait => "",
                    WaitPolicy::Timeout(_) | WaitPolicy::Forever => " still",
                };
                let is_lasting = ahead.permanent.is_some();
                let permanent = ahead.permanent.map(|key| format!("; {}", key.describe()));
                let holder = ahead.holder.as_ref();
                let line = format!(
                    "the lock '{name}' is{still} {} {}{}",
                    verb(holder),
                    who(holder),
                    permanent.unwrap_or_default()
                );
                Self {
                    is_lasting,
                    ..not_acquired(events::BUSY, line)
                }
            }
            AcquireOutcome::NoSlot(orphan) => {
                let line = format!(
                    "no slot of '{name}' is free: {} ({})",
                    orphan.describe(),
                    orphan.remedy()
                );
                Self {
                    is_lasting: orphan.lease == LeaseId::NONE,
                    ..not_acquired(events::BUSY, line)
                }
            }
            AcquireOutcome::Cooling(ahead, left) => Self {
                left_seconds: Some(seconds(left)),
                ..not_acquired(
                    events::COOLING,
                    format!(
                        "the lock '{name}' is cooling down, {} left: last held by {}",
                        format_duration(left),
                        who(ahead.holder.as_ref())
                    ),
                )
            },
            AcquireOutcome::AlreadyRan(earlier) => {
                let line = format!("'{name}' ran already: {}", earlier.describe());
                Self {
                    is_lasting: earlier.permanent.is_some(),
                    ..not_acquired(events::ALREADY_RAN, line)
                }
            }
            AcquireOutcome::StopRequested(request) => {
                let by = request.describe();
                let how = match request.to {
                    StopKind::Yield => "superseded",
                    StopKind::Stop => "asked to leave",
                };
                let line = format!("no longer waiting for '{name}', {how} by {by}");
                Self {
                    by: Some(by),
                    ..not_acquired(events::SUPERSEDED, line)
                }
            }
        })
    }

    /// Logs the reason and returns the end of the run.
    pub(super) fn report(self, name: &LockName, options: &lock::Options) -> RunEnd {
        let (event, line) = (self.event, self.line);
        let (lock, left_seconds, by) = (name.to_string(), self.left_seconds, self.by);
        // A user who makes it a success wants no line: cron mails every one.
        if options.conflict == 0 && !self.is_lasting {
            info!(event, lock, left_seconds, by, "{line}");
        } else {
            warn!(event, lock, left_seconds, by, "{line}");
        }
        RunEnd::new(Outcome::Busy, Exit::Busy(options.conflict), line)
    }
}
