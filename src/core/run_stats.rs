//! Statistics of one run, from the request for the lock until its release.
//! It must not know a clock, the readers of the report, nor the exit statuses.

use std::time::Duration;

use serde::Serialize;

use super::proof::FencingToken;
use super::text::json;
use super::time::Instant;

/// Version of the JSON of a report.
const VERSION: u32 = 1;

/// The statistics of a run that has not finished.
#[derive(Clone, Debug)]
pub struct RunStats {
    began_at: Instant,
    acquired: Option<(Instant, FencingToken)>,
    /// The time of the command's end.
    over_at: Option<Instant>,
    /// As in [`RunReport`].
    pub proofs: u64,
    pub smallest_slack: Option<Duration>,
    pub also: Vec<OtherLock>,
}

/// Another lock of the same run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherLock {
    pub name: String,
    pub token: i64,
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
            Self::Completed => "the command has ended under the lock, with any status",
            Self::Busy => {
                "the command did not run: the lock was busy, the command ran already, or a newer request superseded it"
            }
            Self::Interrupted => "a signal, or the end of the process of --pid, ended the wait",
            Self::Lost => "the lock was lost, and the command was stopped or had ended already",
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
    /// The other locks that the run held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<OtherLock>,
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
    /// Where the endpoints of etcd were set; `None` without etcd.
    pub endpoints_from: Option<String>,
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
            also: Vec::new(),
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

    /// The token, if the lock was ever acquired.
    pub fn token(&self) -> Option<FencingToken> {
        self.acquired.map(|(_, token)| token)
    }

    /// Time until the acquisition.
    pub fn waited(&self, now: Instant) -> Duration {
        self.acquired.map_or(now, |(at, _)| at).since(self.began_at)
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
}

impl RunReport {
    /// Whether `text` is a report, of this version or another one.
    pub fn is_one(text: &[u8]) -> bool {
        let object = serde_json::from_slice::<serde_json::Map<_, _>>(text);
        let keys = ["name", "outcome", "exit_code", "began", "ended"];
        object.is_ok_and(|object| keys.iter().all(|key| object.contains_key(*key)))
    }

    /// One JSON object on one line.
    pub fn to_json(&self) -> String {
        json(VERSION, self) + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::tests::at;
    use super::*;

    #[test]
    fn a_run_has_waited_and_held() {
        let mut stats = RunStats::new(at(10.0));
        stats.acquired(at(12.5), FencingToken(7));
        stats.proven(Duration::from_secs(5));
        stats.proven(Duration::from_millis(2500));
        stats.proven(Duration::from_secs(4));
        assert_eq!(stats.token(), Some(FencingToken(7)));
        assert_eq!(stats.waited(at(19.0)), Duration::from_millis(2500));
        assert_eq!(stats.held(at(19.0)), Duration::from_millis(6500));
        assert_eq!(stats.proofs, 4);
        assert_eq!(stats.smallest_slack, Some(Duration::from_millis(2500)));
    }

    #[test]
    fn without_the_lock_all_of_it_was_waiting() {
        let stats = RunStats::new(at(1.0));
        assert_eq!((stats.token(), stats.proofs), (None, 0));
        assert_eq!(stats.waited(at(3.0)), Duration::from_secs(2));
        assert_eq!(stats.held(at(3.0)), Duration::ZERO);
        assert_eq!(stats.smallest_slack, None);
    }

    #[test]
    fn a_lock_that_ran_out_had_no_slack() {
        let mut stats = RunStats::new(at(0.0));
        stats.acquired(at(0.0), FencingToken(1));
        stats.proven(Duration::from_secs(3));
        stats.unproven();
        assert_eq!(stats.smallest_slack, Some(Duration::ZERO));
        assert_eq!(stats.proofs, 2);
    }

    #[test]
    fn a_report_is_one_line_of_json() {
        let report = RunReport {
            name: "job".to_owned(),
            outcome: Outcome::Completed,
            exit_code: 0,
            signal: None,
            reason: None,
            token: Some(7),
            also: Vec::new(),
            began: "2026-11-23T10:00:00Z".to_owned(),
            ended: "2026-11-23T10:00:09Z".to_owned(),
            waited_seconds: 2.5,
            held_seconds: 6.5,
            proofs: 4,
            smallest_slack_seconds: Some(2.5),
            endpoints_from: Some("built-in default".to_owned()),
        };
        assert_eq!(
            report.to_json(),
            concat!(
                r#"{"version":1,"name":"job","outcome":"completed","exit_code":0,"signal":null,"reason":null,"token":7,"#,
                r#""began":"2026-11-23T10:00:00Z","ended":"2026-11-23T10:00:09Z","#,
                r#""waited_seconds":2.5,"held_seconds":6.5,"proofs":4,"smallest_slack_seconds":2.5,"#,
                r#""endpoints_from":"built-in default"}"#,
                "\n"
            )
        );
    }
}
