//! The status that a waiter shows: the holder, the number of entries ahead, the time it takes.
//! It must not know a clock, nor where and how often it is shown.

use std::fmt::Write as _;
use std::time::Duration;

use unicode_width::UnicodeWidthStr as _;

use super::holder::Holder;
use super::name::LockName;
use super::text::{elided, format_age, format_duration, printable};
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
const UNCONFIRMED: &str = "no other client holds it; etcd has not confirmed our lease yet";

/// Least columns of a lock's name beside the rest of the line.
const MIN_NAME_COLUMNS: usize = 12;

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
        let mut text = format!("waiting for '{}'", self.name);
        let waited = self.waited(now);
        // Writing to a String cannot fail.
        if waited >= Duration::from_secs(1) {
            let _ = write!(text, " {}", whole_seconds(waited));
        }
        if let Some(front) = &self.first {
            let verb = verb(front.holder.as_ref());
            let who = who(front.holder.as_ref());
            let _ = write!(text, " ({}; {verb} {who})", front.position());
        } else if self.is_our_turn {
            let _ = write!(text, " ({UNCONFIRMED})");
        }
        if let Some(left) = self.left(now) {
            let _ = write!(text, "; {} left of --wait", seconds_left(left));
        }
        text
    }

    /// One line that is redrawn again and again, in `columns` if that is possible: whatever matters less than the holder is
    /// left out. `since_1970` is the wall clock's time, by which the holder's age is computed.
    pub fn live_line(&self, now: Instant, since_1970: Duration, columns: usize) -> String {
        let base = self.base_lines(now, since_1970, columns);
        let fits = |line: &&String| line.width() <= columns;
        let error = self.error.as_ref();
        let error = error.filter(|(at, _)| now < *at + ERROR_SHOWN_FOR);
        let with_error: Vec<String> = error.map_or_else(Vec::new, |(_, cause)| {
            let cause = printable(cause);
            base.iter().map(|line| format!("{line}; {cause}")).collect()
        });
        // An error that has no room at all is cut; the shortest line leaves most of it.
        let all = with_error.iter().chain(&base);
        let shown = all.clone().find(fits).or(with_error.last()).or(base.last());
        shown.cloned().unwrap_or_default()
    }

    /// The line without an error, from the longest to the shortest; the last ones have an elided name.
    fn base_lines(&self, now: Instant, since_1970: Duration, columns: usize) -> Vec<String> {
        let name = self.name.to_string();
        let waited = whole_seconds(self.waited(now));
        let left = self.left(now);
        let left = left.map_or_else(String::new, |left| format!(", {} left", seconds_left(left)));
        let line = |name: &str, left: &str, state: &str| {
            format!("waiting for '{name}' {waited}{left}{state}")
        };
        let (states, shortest) = self.states(now, since_1970);
        let mut lines: Vec<String> = states
            .iter()
            .map(|state| line(&name, &left, state))
            .collect();
        for state in states.iter().rev().take(2).rev().chain(&shortest) {
            let room = columns.saturating_sub(line("", "", state).width());
            lines.push(line(&name, "", state));
            lines.push(line(&elided(&name, room.max(MIN_NAME_COLUMNS)), "", state));
        }
        lines.push(line(&elided(&name, MIN_NAME_COLUMNS), "", ""));
        lines
    }

    /// The state in parentheses, from the longest text to the shortest, and the holder alone.
    fn states(&self, now: Instant, since_1970: Duration) -> (Vec<String>, Option<String>) {
        if let Some(delay) = self.lock_delay_ends_at.map(|at| at.since(now)) {
            let delay = seconds_left(delay);
            let vanished = format!(" (the holder has vanished; its command has {delay} to end)");
            return (vec![vanished], None);
        }
        let Some(front) = &self.first else {
            let unconfirmed = format!(" ({UNCONFIRMED})");
            let state = if self.is_our_turn {
                unconfirmed
            } else {
                String::new()
            };
            return (vec![state], None);
        };
        let verb = verb(front.holder.as_ref());
        let held = match front.age(now, since_1970) {
            Some(age) => format!("held {} by", format_age(age)),
            None => verb.to_owned(),
        };
        let holders = front.holder.as_ref();
        let holders = holders.map_or_else(|| vec![other()], Holder::descriptions);
        let position = front.position();
        let states = holders.iter();
        let states = states.map(|holder| format!(" ({position}; {held} {holder})"));
        let shortest = holders.last().map(|holder| format!(" ({verb} {holder})"));
        (states.collect(), shortest)
    }
}

impl FirstInQueue {
    /// The place of our entry: the holder is not in the line.
    fn position(&self) -> String {
        // English has 11th, 12th and 13th, but 21st, 22nd and 23rd.
        let suffix = match (self.count % 100, self.count % 10) {
            (11..=13, _) => "th",
            (_, 1) => "st",
            (_, 2) => "nd",
            (_, 3) => "rd",
            _ => "th",
        };
        match self.count {
            1 => "next in line".to_owned(),
            count => format!("{count}{suffix} in line"),
        }
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

/// A time that counts up, in whole seconds: a line that is redrawn needs no more.
fn whole_seconds(duration: Duration) -> humantime::FormattedDuration {
    format_duration(Duration::from_secs(duration.as_secs()))
}

/// A time that counts down: rounded up, so that 0 is the end.
fn seconds_left(duration: Duration) -> humantime::FormattedDuration {
    let begun = u64::from(duration.subsec_nanos() > 0);
    format_duration(Duration::from_secs(
        duration.as_secs().saturating_add(begun),
    ))
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
            status.live_line(at(112.9), TEN + Duration::from_secs(192), 200),
            "waiting for 'deploy' 12s, 4m 48s left (2nd in line; held 3m 12s by alice@db1: deploy.sh, \
             note \"ticket 7\", pid 12, https://ci/7)"
        );
        assert_eq!(
            status.log_line(at(160.0)),
            "waiting for 'deploy' 1m (2nd in line; held by alice@db1 pid 12, deploy.sh, since 2026-11-23T10:00:00Z, \
             note \"ticket 7\", https://ci/7); 4m left of --wait"
        );
    }

    #[test]
    fn a_hold_is_shown_no_longer_than_it_was_observed() {
        let mut status = status(None);
        status.behind(at(100.0), None, 2);
        assert_eq!(
            status.live_line(at(101.0), TEN, 200),
            "waiting for 'deploy' 1s (2nd in line; held by another client)"
        );
        // Its record is as old as its entry in the queue.
        status.behind(at(105.0), Some(&alice()), 1);
        let line = status.live_line(at(108.0), TEN + Duration::from_hours(1), 200);
        assert!(
            line.contains("(next in line; held 3s by alice@db1"),
            "{line}"
        );
        // A wall clock that is behind the other one gives no age.
        let early = status.live_line(at(108.0), TEN.saturating_sub(Duration::from_secs(5)), 200);
        assert!(early.contains("held 3s by"), "{early}");
    }

    /// The width of a terminal of 80 columns without the prefix of the line and two columns that stay free.
    const OF_80: usize = 71;

    #[test]
    fn a_narrow_line_leaves_out_all_but_the_holder() {
        let mut status = status(Some(at(700.0)));
        status.behind(at(100.0), Some(&alice()), 2);
        let line = |columns| status.live_line(at(112.0), TEN + Duration::from_secs(192), columns);
        for (columns, wanted) in [
            (
                110,
                "waiting for 'deploy' 12s, 9m 48s left (2nd in line; held 3m 12s by alice@db1: deploy.sh, note \"ticket 7\")",
            ),
            (
                90,
                "waiting for 'deploy' 12s, 9m 48s left (2nd in line; held 3m 12s by alice@db1: deploy.sh)",
            ),
            (
                OF_80,
                "waiting for 'deploy' 12s (2nd in line; held 3m 12s by alice@db1)",
            ),
            (51, "waiting for 'deploy' 12s (held by alice@db1)"),
            (24, "waiting for 'deploy' 12s"),
        ] {
            assert_eq!(line(columns), wanted, "{columns}");
        }
    }

    #[test]
    fn a_long_name_of_the_lock_or_the_host_leaves_room_for_the_holder() {
        let name = "deploy/production/eu-central-1/frontend".parse().unwrap();
        let mut status = WaitStatus::new(name, at(100.0), None);
        let runner = Holder {
            user: "ci".into(),
            host: "runner4.internal.example.org".into(),
            ..alice()
        };
        status.behind(at(100.0), Some(&runner), 12);
        assert_eq!(
            status.live_line(at(112.0), TEN + Duration::from_mins(30), OF_80),
            "waiting for 'deploy...ntend' 12s (12th in line; held 30m by ci@runner4)"
        );
        let text = status.live_line(at(112.0), TEN + Duration::from_mins(30), 90);
        assert!(
            text.ends_with("held 30m by ci@runner4: deploy.sh)"),
            "{text}"
        );
    }

    #[test]
    fn a_position_in_the_queue_is_an_ordinal() {
        let place = |count| {
            let mut status = status(None);
            status.behind(at(100.0), None, count);
            let line = status.live_line(at(100.0), TEN, 200);
            line.split(['(', ';']).nth(1).unwrap().to_owned()
        };
        let places = [1, 2, 3, 4, 11, 12, 21, 111, 122].map(place);
        let wanted = [
            "next", "2nd", "3rd", "4th", "11th", "12th", "21st", "111th", "122nd",
        ];
        assert_eq!(places, wanted.map(|which| format!("{which} in line")));
    }

    #[test]
    fn a_cooldown_shows_no_holder() {
        let mut status = status(None);
        let cooling = Holder {
            cooling: true,
            ..alice()
        };
        status.behind(at(100.0), Some(&cooling), 1);
        let line = status.live_line(at(101.0), TEN, 200);
        assert!(
            line.contains("next in line; cooling down, last held by alice@db1"),
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
        let line = status.live_line(at(101.0), TEN, 200);
        assert!(
            line.contains("(next in line; taken by a waiter that has not started: alice@db1"),
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
        let line = |now| status.live_line(at(now), TEN, 200);
        assert_eq!(
            line(103.0),
            r"waiting for 'deploy' 3s; 'e1': no\u{1b}[2J answer"
        );
        assert_eq!(line(112.0), "waiting for 'deploy' 12s");
    }

    #[test]
    fn the_status_shows_the_delay_after_a_vanished_holder() {
        let mut status = status(None);
        status.behind(at(100.0), Some(&alice()), 1);
        status.lock_delay(at(101.0), Duration::from_secs(8));
        let line = status.live_line(at(104.0), TEN, 200);
        assert!(
            line.ends_with(" (the holder has vanished; its command has 5s to end)"),
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
            for text in [status.live_line(at(101.0), TEN, 200), status.log_line(at(101.0))] {
                prop_assert!(text.len() < 16 * 1024);
                prop_assert!(!text.chars().any(super::super::text::is_hostile), "{text:?}");
            }
        }
    }
}
