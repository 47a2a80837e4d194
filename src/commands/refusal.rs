//! Why a command does not run though nothing went wrong: somebody else has the lock, or there is to be no run now.
//! It must not know how that was found out.

use tracing::{info, warn};

use super::waiting::who;
use crate::cli::lock;
use crate::contest::{Outcome, Won};
use crate::core::holder::{AskTo, Holder};
use crate::core::mode::Patience;
use crate::core::name::LockName;
use crate::core::text::{printable, seconds, span};
use crate::events;
use crate::exit::Exit;

/// What is told of it.
pub(super) struct Refusal {
    event: &'static str,
    pub(super) line: String,
    left_seconds: Option<f64>,
    by: Option<String>,
}

impl Refusal {
    /// Unless the lock was won.
    pub(super) fn of<S>(
        name: &LockName,
        patience: Patience,
        outcome: Outcome<S>,
    ) -> Result<Box<Won<S>>, Self> {
        let refusal = |event, line| Self {
            event,
            line,
            left_seconds: None,
            by: None,
        };
        Err(match outcome {
            Outcome::Won(won) => return Ok(won),
            Outcome::Busy(ahead) => {
                let still = match patience {
                    Patience::None => "",
                    Patience::For(_) | Patience::Endless => " still",
                };
                let line = format!("the lock '{name}' is{still} held by {}", who(&ahead));
                refusal(events::BUSY, line)
            }
            Outcome::Cooling(ahead, left) => Self {
                left_seconds: Some(seconds(left)),
                ..refusal(
                    events::COOLING,
                    format!(
                        "the lock '{name}' is cooling down, {} left: last held by {}",
                        span(left),
                        who(&ahead)
                    ),
                )
            },
            Outcome::Ran(ran) => {
                let line = format!("'{name}' ran already: {}", told(ran.as_ref()));
                refusal(events::RAN, line)
            }
            Outcome::Asked(ask) => {
                let by = ask.sentence();
                let how = match ask.to {
                    AskTo::Yield => "superseded",
                    AskTo::Stop => "sent away",
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
    pub(super) fn tell(&self, name: &LockName, options: &lock::Options) -> Exit {
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
fn told(ran: Option<&Holder>) -> String {
    let Some(ran) = ran else {
        return "by another client".to_owned();
    };
    let result = ran
        .result
        .as_deref()
        .unwrap_or("not ended yet, or not told how");
    printable(&format!("{}; {result}", ran.sentence()))
}
