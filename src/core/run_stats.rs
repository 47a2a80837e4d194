//! Statistics of one run, from the request for the lock until its release.
//! It must not know a clock, the readers of the report, nor the exit statuses.

use std::time::Duration;

use serde::Serialize;

use super::name::LockName;
use super::proof::FencingToken;
use super::text::{json, seconds};
use super::time::Instant;

/// The statistics of a run that has not finished.
#[derive(Clone, Debug)]
pub struct RunStats {
    began_at: Instant,
    acquired: Option<(Instant, FencingToken)>,
    /// The time of the command's end.
    over_at: Option<Instant>,
    proofs: u64,
    smallest_slack: Option<Duration>,
    asked: bool,
    reason: Option<String>,
}

/// The result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum Outcome {
    Completed,
    Busy,
    Interrupted,
    Lost,
    Asked,
    MaxHold,
    Unkillable,
    NotStarted,
    Failed,
}

impl Outcome {
    pub const ALL: [Self; 9] = [
        Self::Completed,
        Self::Busy,
        Self::Interrupted,
        Self::Lost,
        Self::Asked,
        Self::MaxHold,
        Self::Unkillable,
        Self::NotStarted,
        Self::Failed,
    ];

    /// The name in the report.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Busy => "busy",
            Self::Interrupted => "interrupted",
            Self::Lost => "lost",
            Self::Asked => "asked",
            Self::MaxHold => "max-hold",
            Self::Unkillable => "unkillable",
            Self::NotStarted => "not-started",
            Self::Failed => "failed",
        }
    }

    /// The description in the manual page.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Completed => "the command ran under the lock to its end, whatever its status",
            Self::Busy => {
                "it did not run: others had the lock, it had run already, or somebody sent it away"
            }
            Self::Interrupted => {
                "a signal, or the end of the process that the lock was for, ended the wait"
            }
            Self::Lost => "the lock was lost, and the command was stopped or had ended by then",
            Self::Asked => "somebody asked for the lock, and the command was stopped",
            Self::MaxHold => "the command was stopped because --max-hold had passed",
            Self::Unkillable => "a process of the command could not be killed",
            Self::NotStarted => "the command could not be started",
            Self::Failed => "dlock itself failed",
        }
    }
}

impl From<Outcome> for &'static str {
    fn from(outcome: Outcome) -> Self {
        outcome.word()
    }
}

/// The end of dlock as its caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    pub outcome: Outcome,
    /// The exit status as a shell sees it.
    pub exit_code: u8,
    pub signal: Option<i32>,
    /// A reason that is used if the statistics have none.
    pub reason: Option<String>,
    /// The time by the wall clock, in RFC 3339.
    pub began: String,
    pub ended: String,
}

/// The report of a run, which `--report` writes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    pub name: String,
    pub outcome: Outcome,
    pub exit_code: u8,
    /// The signal that ended the command, or dlock while it waited.
    pub signal: Option<i32>,
    /// Why the run failed, in a few words.
    pub reason: Option<String>,
    /// `None` if the lock was never acquired.
    pub token: Option<i64>,
    /// Wall clock, RFC 3339, for people.
    pub began: String,
    pub ended: String,
    pub waited_seconds: f64,
    pub held_seconds: f64,
    /// The number of proofs, that of the acquisition included.
    pub proofs: u64,
    /// The shortest time that was left until the stop deadline when a proof arrived; `None` without a renewal, zero when
    /// none arrived in time.
    pub smallest_slack_seconds: Option<f64>,
}

impl RunStats {
    /// Called when the lock is requested.
    pub const fn new(began_at: Instant) -> Self {
        Self {
            began_at,
            acquired: None,
            over_at: None,
            proofs: 0,
            smallest_slack: None,
            asked: false,
            reason: None,
        }
    }

    /// The lock is acquired, which is the first proof.
    pub fn acquired(&mut self, now: Instant, token: FencingToken) {
        self.acquired = Some((now, token));
        self.proofs = 1;
    }

    /// The command has ended, so the lock is not needed any more.
    pub fn over(&mut self, now: Instant) {
        self.over_at = Some(now);
    }

    /// The time of the command's end.
    pub const fn over_at(&self) -> Option<Instant> {
        self.over_at
    }

    /// The reason of the end, if one was set.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether the lock was ever acquired.
    pub const fn was_held(&self) -> bool {
        self.acquired.is_some()
    }

    /// Time since the acquisition.
    pub fn held(&self, now: Instant) -> Duration {
        self.acquired
            .map_or(Duration::ZERO, |(at, _)| now.since(at))
    }

    /// A renewal was proven when `slack` was left until the stop deadline.
    pub fn proven(&mut self, slack: Duration) {
        self.proofs += 1;
        self.slack(slack);
    }

    /// No proof arrived in time.
    pub fn unproven(&mut self) {
        self.slack(Duration::ZERO);
    }

    fn slack(&mut self, slack: Duration) {
        let smallest = self.smallest_slack.get_or_insert(slack);
        *smallest = slack.min(*smallest);
    }

    /// Another user requested that the lock be given up.
    pub fn stop_requested(&mut self, by: &str) {
        self.asked = true;
        self.set_reason(by);
    }

    /// Sets the reason of the end, unless there is one already.
    pub fn set_reason(&mut self, why: &str) {
        self.reason.get_or_insert_with(|| why.to_owned());
    }

    /// Sets the reason of the end in any case, for a state that an administrator must fix.
    pub fn override_reason(&mut self, why: &str) {
        self.reason = Some(why.to_owned());
    }

    /// Whether the command was stopped at another user's request.
    pub const fn was_stop_requested(&self) -> bool {
        self.asked
    }

    /// The report of the run.
    pub fn finish(&self, name: &LockName, now: Instant, ending: RunEnd) -> RunReport {
        let waited_until = self.acquired.map_or(now, |(at, _)| at);
        let RunEnd {
            outcome,
            exit_code,
            signal,
            reason,
            began,
            ended,
        } = ending;
        let known = self
            .reason
            .clone()
            .filter(|_| outcome != Outcome::Completed);
        RunReport {
            name: name.to_string(),
            outcome,
            exit_code,
            signal,
            reason: known.or(reason),
            token: self.acquired.map(|(_, token)| token.0),
            began,
            ended,
            waited_seconds: seconds(waited_until.since(self.began_at)),
            held_seconds: seconds(self.held(now)),
            proofs: self.proofs,
            smallest_slack_seconds: self.smallest_slack.map(seconds),
        }
    }
}

impl RunReport {
    /// One JSON object on one line.
    pub fn to_json(&self) -> String {
        json(self) + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::tests::at;
    use super::*;

    fn ending(outcome: Outcome) -> RunEnd {
        RunEnd {
            outcome,
            exit_code: 0,
            signal: None,
            reason: None,
            began: "2026-11-23T10:00:00Z".to_owned(),
            ended: "2026-11-23T10:00:09Z".to_owned(),
        }
    }

    fn name() -> LockName {
        "job".parse().unwrap()
    }

    #[test]
    fn a_run_has_waited_and_held() {
        let mut stats = RunStats::new(at(10.0));
        stats.acquired(at(12.5), FencingToken(7));
        stats.proven(Duration::from_secs(5));
        stats.proven(Duration::from_millis(2500));
        stats.proven(Duration::from_secs(4));
        let account = stats.finish(&name(), at(19.0), ending(Outcome::Completed));
        assert_eq!(
            account.to_json(),
            concat!(
                r#"{"name":"job","outcome":"completed","exit_code":0,"signal":null,"reason":null,"token":7,"#,
                r#""began":"2026-11-23T10:00:00Z","ended":"2026-11-23T10:00:09Z","#,
                r#""waited_seconds":2.5,"held_seconds":6.5,"proofs":4,"smallest_slack_seconds":2.5}"#,
                "\n"
            )
        );
    }

    #[test]
    fn without_the_lock_all_of_it_was_waiting() {
        let mut stats = RunStats::new(at(1.0));
        stats.set_reason("busy");
        stats.set_reason("and something else");
        let account = stats.finish(&name(), at(3.0), ending(Outcome::Busy));
        assert_eq!((account.token, account.proofs), (None, 0));
        assert!((account.waited_seconds - 2.0).abs() < 1e-9);
        assert!(account.held_seconds.abs() < 1e-9);
        assert_eq!(account.reason.as_deref(), Some("busy"));
        assert_eq!(account.smallest_slack_seconds, None);
    }

    #[test]
    fn a_lock_that_ran_out_had_no_slack() {
        let mut stats = RunStats::new(at(0.0));
        stats.acquired(at(0.0), FencingToken(1));
        stats.proven(Duration::from_secs(3));
        stats.unproven();
        let account = stats.finish(&name(), at(9.0), ending(Outcome::Lost));
        assert_eq!(account.smallest_slack_seconds, Some(0.0));
        assert_eq!(account.proofs, 2);
    }
}
