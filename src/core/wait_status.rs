//! The status that a waiter shows: the holder, the number of entries ahead, the time it takes.
//! It must not know a clock, nor where and how often it is shown.

use std::fmt::Write as _;
use std::time::Duration;

use super::holder::Holder;
use super::name::LockName;
use super::text::{format_duration, printable};
use super::time::Instant;

/// Time for which an error stays visible; a lasting error is reported again within this.
const ERROR_SHOWN_FOR: Duration = Duration::from_secs(10);

/// The known status.
#[derive(Clone, Debug)]
pub struct WaitStatus {
    name: LockName,
    began_at: Instant,
    /// The end of `--wait`.
    give_up_at: Option<Instant>,
    first: Option<FirstInQueue>,
    /// The time until which the command of a vanished holder may run.
    lock_delay_ends_at: Option<Instant>,
    error: Option<(Instant, String)>,
    is_our_turn: bool,
}

/// No other client has the lock, and it is not ours before etcd says so.
const UNCONFIRMED: &str = ", which no other client has; etcd has not confirmed our lease yet";

/// The entries before our own.
#[derive(Clone, Debug)]
struct FirstInQueue {
    holder: Option<Holder>,
    count: usize,
    /// The time of the last change of the first entry; `None` if it was there from the start.
    since_at: Option<Instant>,
}

impl WaitStatus {
    /// The status at the time of the request.
    pub const fn new(name: LockName, began_at: Instant, give_up_at: Option<Instant>) -> Self {
        Self {
            name,
            began_at,
            give_up_at,
            first: None,
            lock_delay_ends_at: None,
            error: None,
            is_our_turn: false,
        }
    }

    /// `count` entries are before ours; `holder` is the record of the first one, if it is one of dlock's.
    pub fn behind(&mut self, now: Instant, holder: Option<&Holder>, count: usize) {
        let since_at = match &self.first {
            Some(front) if front.holder.as_ref() == holder => front.since_at,
            Some(_) => Some(now),
            None => None,
        };
        self.first = Some(FirstInQueue {
            holder: holder.cloned(),
            count,
            since_at,
        });
        self.lock_delay_ends_at = None;
        self.error = None;
        self.is_our_turn = false;
    }

    /// Whether the status shows that already.
    pub fn is_behind(&self, holder: Option<&Holder>, count: usize) -> bool {
        let same = |front: &FirstInQueue| front.holder.as_ref() == holder && front.count == count;
        self.lock_delay_ends_at.is_some() || self.first.as_ref().is_none_or(same)
    }

    /// The holder has vanished, and its command may still run for `delay`.
    pub fn lock_delay(&mut self, now: Instant, delay: Duration) {
        self.lock_delay_ends_at = Some(now + delay);
    }

    /// No entry is before ours any more.
    pub fn our_turn(&mut self) {
        self.first = None;
        self.lock_delay_ends_at = None;
        self.error = None;
        self.is_our_turn = true;
    }

    /// Our entry was lost; dlock creates another one.
    pub fn entry_lost(&mut self) {
        self.is_our_turn = false;
        self.first = None;
        self.lock_delay_ends_at = None;
    }

    /// An error of waiting itself; dlock still waits.
    pub fn error(&mut self, now: Instant, cause: String) {
        self.error = Some((now, cause));
    }

    /// Whether there is anything to show: a free lock needs no wait.
    pub const fn is_visible(&self) -> bool {
        self.first.is_some()
            || self.error.is_some()
            || self.lock_delay_ends_at.is_some()
            || self.is_our_turn
    }

    /// Time since the start.
    pub fn waited(&self, now: Instant) -> Duration {
        now.since(self.began_at)
    }

    /// The rest of `--wait`.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.give_up_at.map(|at| at.since(now))
    }

    /// The holder, for a field of its own.
    pub fn holder(&self) -> Option<String> {
        let holds = |front: &&FirstInQueue| !is_pending(front.holder.as_ref());
        let first = self.first.as_ref().filter(holds);
        first.map(|front| who(front.holder.as_ref()))
    }

    /// The number of entries ahead, that of the holder included.
    pub fn ahead(&self) -> Option<usize> {
        self.first.as_ref().map(|front| front.count)
    }

    /// One message for a log: its times are of the wall clock.
    pub fn log_line(&self, now: Instant) -> String {
        let waited = self.waited(now);
        let mut text = if waited < Duration::from_secs(1) {
            format!("waiting for '{}'", self.name)
        } else {
            format!(
                "waiting for '{}' since {}",
                self.name,
                whole_seconds(waited)
            )
        };
        if let Some(front) = &self.first {
            let verb = verb(front.holder.as_ref());
            let who = who(front.holder.as_ref());
            // Writing to a String cannot fail.
            let _ = write!(text, ", {verb} {who}; {}", front.position());
        } else if self.is_our_turn {
            text.push_str(UNCONFIRMED);
        }
        if let Some(left) = self.left(now) {
            let _ = write!(text, "; {} left of --wait", whole_seconds(left));
        }
        text
    }

    /// One line that is redrawn again and again, the most important part first, as the terminal may be narrow.
    /// `since_1970` is the wall clock's time, by which the holder's age is computed.
    pub fn live_line(&self, now: Instant, since_1970: Duration) -> String {
        let mut text = format!(
            "waiting {} for '{}'",
            whole_seconds(self.waited(now)),
            self.name
        );
        if let Some(left) = self.left(now) {
            let _ = write!(text, ", {} left", whole_seconds(left));
        }
        if let Some(delay) = self.lock_delay_ends_at.map(|at| at.since(now)) {
            let _ = write!(
                text,
                ": its holder is gone without a release record, and its command gets {} to end",
                whole_seconds(delay)
            );
        } else if let Some(front) = &self.first {
            let _ = write!(text, ": {}, ", front.position());
            match front.age(now, since_1970) {
                Some(age) => {
                    let _ = write!(text, "held for {} by ", whole_seconds(age));
                }
                None => {
                    let _ = write!(text, "{} ", verb(front.holder.as_ref()));
                }
            }
            let who = front
                .holder
                .as_ref()
                .map_or_else(other, Holder::describe_briefly);
            text.push_str(&who);
        } else if self.is_our_turn {
            text.push_str(UNCONFIRMED);
        }
        if let Some((_, cause)) = self
            .error
            .as_ref()
            .filter(|(at, _)| now < *at + ERROR_SHOWN_FOR)
        {
            let _ = write!(text, " ({})", printable(cause));
        }
        text
    }
}

impl FirstInQueue {
    fn position(&self) -> String {
        format!("place {0} in the queue, {0} ahead", self.count)
    }

    /// The age of the first entry, as far as it is known: the record's time is of its host's wall clock, and that of its
    /// entry into the queue.
    fn age(&self, now: Instant, since_1970: Duration) -> Option<Duration> {
        if is_cooling(self.holder.as_ref()) || is_pending(self.holder.as_ref()) {
            return None;
        }
        let told = self.holder.as_ref().and_then(|it| it.age(since_1970));
        let seen = self.since_at.map(|at| now.since(at));
        told.into_iter().chain(seen).min()
    }
}

fn is_cooling(holder: Option<&Holder>) -> bool {
    holder.is_some_and(|holder| holder.cooling)
}

fn is_pending(holder: Option<&Holder>) -> bool {
    holder.is_some_and(|holder| holder.pending)
}

/// The words before the first in the queue.
pub fn verb(holder: Option<&Holder>) -> &'static str {
    if is_cooling(holder) {
        "cooling down, last held by"
    } else if is_pending(holder) {
        "taken by a waiter that has not started:"
    } else {
        "held by"
    }
}

/// The holder of a lock, for people.
pub fn who(holder: Option<&Holder>) -> String {
    holder.map_or_else(other, Holder::sentence)
}

fn other() -> String {
    "another client".to_owned()
}

/// Rounded to the second: a line that is redrawn needs no more.
fn whole_seconds(duration: Duration) -> humantime::FormattedDuration {
    format_duration(Duration::from_secs(duration.as_secs()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::Mode;
    use super::super::time::tests::at;
    use super::*;

    /// 2026-11-23T10:00:00Z.
    const TEN: Duration = Duration::from_hours(498_730);

    fn alice() -> Holder {
        Holder {
            user: "alice".into(),
            host: "db1".into(),
            pid: 12,
            program: "deploy.sh".into(),
            note: Some("ticket 7".into()),
            url: Some("https://ci/7".into()),
            since: "2026-11-23T10:00:00Z".into(),
            ..Holder::new(Mode::Exclusive, Duration::from_secs(5))
        }
    }

    fn status(give_up_at: Option<Instant>) -> WaitStatus {
        WaitStatus::new("deploy".parse().unwrap(), at(100.0), give_up_at)
    }

    #[test]
    fn a_free_lock_shows_no_status() {
        assert!(!status(None).is_visible());
    }

    #[test]
    fn one_line_shows_all_that_is_known() {
        let mut status = status(Some(at(400.0)));
        status.behind(at(100.0), Some(&alice()), 2);
        assert!(status.is_visible());
        assert_eq!(
            status.live_line(at(112.9), TEN + Duration::from_secs(192)),
            "waiting 12s for 'deploy', 4m 47s left: place 2 in the queue, 2 ahead, held for 3m 12s by \
             alice@db1 pid 12, deploy.sh, note \"ticket 7\", https://ci/7"
        );
        assert_eq!(
            status.log_line(at(160.0)),
            "waiting for 'deploy' since 1m, held by alice@db1 pid 12, deploy.sh, since 2026-11-23T10:00:00Z, \
             note \"ticket 7\", https://ci/7; place 2 in the queue, 2 ahead; 4m left of --wait"
        );
    }

    #[test]
    fn a_hold_is_shown_no_longer_than_it_was_observed() {
        let mut status = status(None);
        status.behind(at(100.0), None, 2);
        assert_eq!(
            status.live_line(at(101.0), TEN),
            "waiting 1s for 'deploy': place 2 in the queue, 2 ahead, held by another client"
        );
        // Its record is as old as its entry in the queue.
        status.behind(at(105.0), Some(&alice()), 1);
        let line = status.live_line(at(108.0), TEN + Duration::from_hours(1));
        assert!(
            line.contains(" 1 ahead, held for 3s by alice@db1"),
            "{line}"
        );
        // A wall clock that is behind the other one gives no age.
        let early = status.live_line(at(108.0), TEN.saturating_sub(Duration::from_secs(5)));
        assert!(early.contains("held for 3s by"), "{early}");
    }

    #[test]
    fn a_cooldown_shows_no_holder() {
        let mut status = status(None);
        let cooling = Holder {
            cooling: true,
            ..alice()
        };
        status.behind(at(100.0), Some(&cooling), 1);
        let line = status.live_line(at(101.0), TEN);
        assert!(
            line.contains("1 ahead, cooling down, last held by alice@db1"),
            "{line}"
        );
    }

    #[test]
    fn a_waiter_that_has_not_started_is_no_holder() {
        let mut status = status(None);
        let pending = Holder {
            pending: true,
            ..alice()
        };
        status.behind(at(100.0), Some(&pending), 1);
        let line = status.live_line(at(101.0), TEN);
        assert!(
            line.contains("1 ahead, taken by a waiter that has not started: alice@db1"),
            "{line}"
        );
        assert_eq!(status.holder(), None);
        // It starts.
        status.behind(at(105.0), Some(&alice()), 1);
        assert!(status.holder().is_some());
    }

    #[test]
    fn an_error_stays_visible_for_a_while() {
        let mut status = status(None);
        status.error(at(101.0), "'e1': no\u{1b}[2J answer".to_owned());
        assert!(status.is_visible());
        let line = |now| status.live_line(at(now), TEN);
        assert_eq!(
            line(103.0),
            r"waiting 3s for 'deploy' ('e1': no\u{1b}[2J answer)"
        );
        assert_eq!(line(112.0), "waiting 12s for 'deploy'");
    }

    #[test]
    fn the_status_shows_the_delay_after_a_vanished_holder() {
        let mut status = status(None);
        status.behind(at(100.0), Some(&alice()), 1);
        status.lock_delay(at(101.0), Duration::from_secs(8));
        let line = status.live_line(at(104.0), TEN);
        assert!(
            line.ends_with(
                ": its holder is gone without a release record, and its command gets 5s to end"
            ),
            "{line}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// For any content of a record, the status is one line of limited length, safe for a terminal.
        #[test]
        fn any_record_is_fit_to_show(
            host in "\\PC{0,99}|.{0,2000}", user in ".{0,99}", program in ".{0,99}", note in ".{0,3000}",
            url in ".{0,99}", since in "(?s).{0,40}", cause in "(?s).{0,3000}", count in 0_usize..10_000,
        ) {
            let holder = Holder { host, user, program, note: Some(note), url: Some(url), since, ..alice() };
            let mut status = status(Some(at(200.0)));
            status.behind(at(100.0), Some(&holder), count);
            status.error(at(100.0), cause);
            for text in [status.live_line(at(101.0), TEN), status.log_line(at(101.0))] {
                prop_assert!(text.len() < 16 * 1024);
                prop_assert!(!text.chars().any(super::super::text::is_hostile), "{text:?}");
            }
        }
    }
}
