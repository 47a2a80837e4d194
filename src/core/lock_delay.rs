//! The lock delay, and the release record by which an owner tells later entries which commands may still run.
//! It must not know under which keys the records are kept, nor how they are read.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::heartbeat::NOTICE;
use super::proof::{FencingToken, LeaseId};
use super::request::Mode;
use super::text::truncate;
use super::time::{Instant, LeaseTimings};

/// The time that the kernel may need to run the guard, and to kill.
const KILLING: Duration = Duration::from_millis(500);
/// Margin for the clocks, which also time the other two, and a reserve.
const RESERVE: Duration = Duration::from_millis(500);
/// Time that a holder's tree may need beyond its grace after the loss of its key.
const MARGIN: Duration = NOTICE.saturating_add(KILLING).saturating_add(RESERVE);

/// The part of a second that etcd leaves out when it reports a lease's remaining time in whole seconds.
const KEPT_LONGER: Duration = Duration::from_secs(1);

/// The time that the command of a vanished holder may still run, before its successor may start. Its lease was revoked or
/// expired, or its key was deleted, and it may be stopping its command now; `grace` is the grace that it announced.
///
/// Two clocks time the grace, and the rate of each may be 10 % off, hence a quarter more (1.1 / 0.9 < 1.25, shown by
/// `tests/model`). A holder that does not learn of its loss within [`NOTICE`], because it is cut off or stopped, is not
/// covered: it ends at its own deadline.
///
/// The margin is added to an announced grace, never to a delay: a waiter announces the grace in the records before it,
/// see [`Predecessors::grace`], so the delay is as long behind 200 waiters as behind one.
pub fn lock_delay(grace: Duration) -> Duration {
    grace + grace / 4 + MARGIN
}

/// An earlier entry of the queue whose command may run, or may have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// The lease of its entry.
    pub lease: LeaseId,
    pub token: FencingToken,
    grace_ms: u64,
}

impl Predecessor {
    /// `grace` is the grace that it announced for its command.
    pub fn new(lease: LeaseId, token: FencingToken, grace: Duration) -> Self {
        Self {
            lease,
            token,
            grace_ms: grace.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    /// Time that its command, or an earlier one, may take to end after the stop signal; never more than a dlock can have,
    /// for any value in the record. The lease's own TTL is no limit: a waiter announces the grace of a holder before it,
    /// whose lease may be longer.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms).min(LeaseTimings::longest_grace())
    }
}

/// Maximum length of a release record in bytes, ample for one behind thousands of entries. A longer one counts as no record.
const MAX_RECORD_BYTES: usize = 256 * 1024;

/// An entry that a waiter, which gave up during a lock delay, has left for the rest of that delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub token: FencingToken,
    /// Its remaining time by etcd's count in whole seconds, rounded down.
    pub left: Duration,
    /// The grace of the command that it is kept for.
    pub grace: Duration,
}

/// The entries before our own, as one read has shown them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// The blockers whose commands count.
    pub awaited: Vec<Predecessor>,
    /// Whether there was no entry before ours.
    pub none: bool,
    /// The grace that the first entry of the queue announces.
    pub first: Duration,
    /// The longest grace of the entries that have vanished since the last read.
    pub vanished: Option<Duration>,
    /// The kept entries among `awaited`, unless the last read has shown them already.
    pub kept: Vec<Kept>,
}

/// Written in the transaction that deletes an entry: no process of its owner's command runs any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseRecord {
    /// The request was exclusive and no entry was before it, so none is before the next one. The token is its own.
    Alone(FencingToken),
    /// It was the owner's turn; other clients may hold the lock as well.
    Free,
    /// The entry is kept for the command of a vanished holder. If the kept entry is gone as well, the record has no
    /// effect: the entry announced the grace of that command.
    Kept,
    /// The owner still waited, for these entries, and one of them may have vanished meanwhile. Entries whose commands do
    /// not count are left out.
    Behind(Vec<Predecessor>),
}

/// The end of a command that has run under the lock, in its owner's release record. For people only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// RFC 3339, by the owner's wall clock.
    pub at: String,
    held_ms: u64,
    pub result: String,
}

/// Maximum length of the result in bytes: `exit 0`, or a reason.
const MAX_RESULT_BYTES: usize = 200;

impl Ended {
    pub fn new(at: String, held: Duration, result: &str) -> Self {
        Self {
            at,
            held_ms: held.as_millis().try_into().unwrap_or(u64::MAX),
            result: truncate(result, MAX_RESULT_BYTES).to_owned(),
        }
    }

    /// The time from the acquisition of the lock until then.
    pub fn held(&self) -> Duration {
        Duration::from_millis(self.held_ms)
    }

    /// Parses the end in the value of a release record.
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.len() > MAX_RECORD_BYTES {
            return None;
        }
        let written: Written = serde_json::from_slice(value).ok()?;
        written.ended
    }
}

/// The value of a release record's key when a command has run.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(flatten)]
    record: ReleaseRecord,
    ended: Option<Ended>,
}

impl ReleaseRecord {
    /// The value of the record's key if no command has run.
    pub fn to_json(&self) -> String {
        // Words and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The value of the record's key.
    pub fn to_value(&self, ended: Option<&Ended>) -> String {
        if ended.is_none() {
            return self.to_json();
        }
        let written = Written {
            record: self.clone(),
            ended: ended.cloned(),
        };
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// The record of an owner that leaves its entry to a cooldown: the next client must not take it as `Alone`. `grace`
    /// is that of a command which may run meanwhile, or zero.
    #[must_use]
    pub fn with_place_kept(self, grace: Duration) -> Self {
        match self {
            _ if !grace.is_zero() => Self::Kept,
            Self::Alone(_) => Self::Free,
            other => other,
        }
    }

    /// Parses `value`. `None` if it is not understood or far too long, which counts as no record.
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.len() > MAX_RECORD_BYTES {
            return None;
        }
        let plain = serde_json::from_slice(value);
        let written = || serde_json::from_slice::<Written>(value).map(|it| it.record);
        plain.or_else(|_| written()).ok()
    }
}

/// The entries before a waiter, from all its reads.
#[derive(Debug, Default)]
pub struct Predecessors {
    awaited: Vec<Predecessor>,
    /// Whether the last read showed no entry.
    none: bool,
    first: Duration,
    kept: Vec<(Kept, Instant)>,
    /// The time until which commands of vanished owners may run, and the longest grace of them.
    vanished: Option<(Instant, Duration)>,
}

impl Predecessors {
    /// Adds the result of a read at `now`. Returns the longest lock delay that the read shows for the first time.
    pub fn update(&mut self, now: Instant, sight: Sight) -> Duration {
        let Sight {
            awaited,
            none,
            first,
            vanished,
            kept,
        } = sight;
        let is_there = |token| awaited.iter().any(|one| one.token == token);
        let (there, ended) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition::<Vec<_>, _>(|(one, _)| is_there(one.token));
        // A kept entry protects until its time has passed, even if it was deleted.
        let ended = ended.into_iter().map(|(one, until)| (until, one.grace));
        let vanished = vanished.map(|grace| (now + lock_delay(grace), grace));
        let mut longest = Duration::ZERO;
        for (until, grace) in ended.chain(vanished).filter(|(until, _)| now < *until) {
            longest = longest.max(until.since(now));
            let (latest, most) = self.running(now).unwrap_or((until, grace));
            self.vanished = Some((latest.max(until), most.max(grace)));
        }
        self.kept = there;
        // A lease may be longer than its writer needs.
        let until = |one: &Kept| now + one.left.min(lock_delay(one.grace)) + KEPT_LONGER;
        self.kept.extend(kept.iter().map(|one| (*one, until(one))));
        (self.awaited, self.none, self.first) = (awaited, none, first);
        // The kept entry has expired.
        if longest <= KEPT_LONGER {
            Duration::ZERO
        } else {
            longest
        }
    }

    /// The vanished owners, as long as their commands may run.
    fn running(&self, now: Instant) -> Option<(Instant, Duration)> {
        self.vanished.filter(|(until, _)| now < *until)
    }

    /// The end of the lock delay of all vanished owners.
    pub fn free_at(&self) -> Option<Instant> {
        self.vanished.map(|(until, _)| until)
    }

    /// The rest of that delay. Clocks that time parts of it are off by no more than one that times all of it.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.free_at().map_or(Duration::ZERO, |at| at.since(now))
    }

    /// The grace to announce, if `own` is that of our own command: the longest of all commands that may run when our
    /// entry vanishes. Later waiters know of no others, and our end may come together with theirs, or after it.
    pub fn grace(&self, now: Instant, own: Duration) -> Duration {
        let awaited = self.awaited.iter().map(Predecessor::grace);
        let vanished = self.running(now).map(|(_, grace)| grace);
        let others = awaited.chain(vanished).chain([self.first]);
        others.fold(own, Duration::max)
    }

    /// The record to write when the entry with this `token` is released after that delay.
    pub fn release_record(&self, mode: Mode, token: FencingToken) -> ReleaseRecord {
        match mode {
            _ if !self.none => ReleaseRecord::Behind(self.awaited.clone()),
            Mode::Exclusive => ReleaseRecord::Alone(token),
            Mode::Shared | Mode::Slots(_) => ReleaseRecord::Free,
        }
    }
}

/// Finds out how long commands may still run: those of entries that are gone, and of the entries that these waited for.
#[derive(Debug, Default)]
pub struct DelaySearch {
    /// The entries whose release records are still to be read.
    pending: Vec<Predecessor>,
    known: BTreeSet<FencingToken>,
    unclean: Vec<Predecessor>,
}

impl DelaySearch {
    /// A search for the ends of the entries that are `gone`.
    pub fn new(gone: Vec<Predecessor>) -> Self {
        Self {
            known: gone.iter().map(|one| one.token).collect(),
            pending: gone,
            ..Self::default()
        }
    }

    /// The entries whose records are to be read now, `most` at most. Empty: the search is complete.
    pub fn next_batch(&mut self, most: usize) -> Vec<Predecessor> {
        self.pending.drain(..self.pending.len().min(most)).collect()
    }

    /// Adds the record of `one`, if there is one. An entry that `is_there` still has its own end to come.
    pub fn add(
        &mut self,
        one: Predecessor,
        record: Option<ReleaseRecord>,
        is_there: impl Fn(FencingToken) -> bool,
    ) {
        match record {
            Some(ReleaseRecord::Alone(token)) if token == one.token => {}
            Some(ReleaseRecord::Free) => {}
            None | Some(ReleaseRecord::Alone(_) | ReleaseRecord::Kept) => self.unclean.push(one),
            Some(ReleaseRecord::Behind(awaited)) => {
                for other in awaited {
                    // An entry never waits for a later one, so the search ends for any content of the records.
                    let before = other.token < one.token && !is_there(other.token);
                    if before && self.known.insert(other.token) {
                        self.pending.push(other);
                    }
                }
            }
        }
    }

    /// The longest grace of the vanished owners. An entry without a record counts only if it `may_have_held` the lock.
    pub fn vanished(&self, may_have_held: impl Fn(FencingToken) -> bool) -> Option<Duration> {
        let silent = self.unclean.iter().filter(|one| may_have_held(one.token));
        silent.map(Predecessor::grace).max()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn one(token: i64) -> Predecessor {
        let grace = Duration::from_secs(token.unsigned_abs());
        Predecessor::new(LeaseId(token + 100), FencingToken(token), grace)
    }

    /// The longest grace for these records in `left`, when the entries `gone` are gone and `there` are not. The grace of
    /// each is as many seconds as its token says.
    fn delay(gone: &[i64], left: &[(i64, ReleaseRecord)], there: &[i64]) -> Duration {
        let left: BTreeMap<i64, ReleaseRecord> = left.iter().cloned().collect();
        let mut inquiry = DelaySearch::new(gone.iter().map(|token| one(*token)).collect());
        loop {
            let some = inquiry.next_batch(2);
            if some.is_empty() {
                return inquiry
                    .vanished(|token| token.0 < 100)
                    .map_or(Duration::ZERO, lock_delay);
            }
            for one in some {
                let record = left.get(&one.token.0).cloned();
                inquiry.add(one, record, |token| there.contains(&token.0));
            }
        }
    }

    /// The predecessor with this token.
    fn grace(token: i64) -> Duration {
        lock_delay(one(token).grace())
    }

    fn behind(tokens: &[i64]) -> ReleaseRecord {
        ReleaseRecord::Behind(tokens.iter().map(|token| one(*token)).collect())
    }

    #[test]
    fn a_grace_is_counted_by_two_clocks() {
        let grace = Duration::from_secs(5);
        assert_eq!(lock_delay(grace), Duration::from_millis(8250));
    }

    const TOKEN: FencingToken = FencingToken(9);

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    /// A read that shows those of `awaited`.
    fn sight(awaited: &[i64]) -> Sight {
        Sight {
            awaited: awaited.iter().map(|token| one(*token)).collect(),
            none: awaited.is_empty(),
            ..Sight::default()
        }
    }

    fn vanished(awaited: &[i64], grace: u64) -> Sight {
        Sight {
            vanished: Some(Duration::from_secs(grace)),
            ..sight(awaited)
        }
    }

    #[test]
    fn a_release_record_names_the_entries_before_it_and_keeps_every_delay() {
        let mut before = Predecessors::default();
        // Without a read it is not known whether this entry is the first.
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), behind(&[]));
        before.update(at(10), sight(&[2]));
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), behind(&[2]));
        let delay = before.update(at(11), vanished(&[1], 4));
        assert_eq!(delay, Duration::from_secs(7));
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), behind(&[1]));
        assert_eq!(before.remaining(at(12)), Duration::from_secs(6));
        // Another read, which shows nothing new.
        assert!(before.update(at(13), sight(&[])).is_zero());
        assert_eq!(before.remaining(at(13)), Duration::from_secs(5));
        assert!(before.remaining(at(18)).is_zero());
        let alone = ReleaseRecord::Alone(TOKEN);
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), alone);
        assert_eq!(
            before.release_record(Mode::Shared, TOKEN),
            ReleaseRecord::Free
        );
    }

    /// `etcdctl lock`, or a cooldown: its entry exists, but no command of it counts.
    #[test]
    fn a_waiter_behind_an_uncounted_entry_is_not_the_first() {
        let mut before = Predecessors::default();
        let sight = Sight {
            none: false,
            ..sight(&[])
        };
        before.update(at(0), sight);
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), behind(&[]));
    }

    #[test]
    fn a_waiter_announces_the_longest_grace_of_those_whose_commands_may_run() {
        let (mut before, seconds) = (Predecessors::default(), Duration::from_secs);
        assert_eq!(before.grace(at(10), seconds(3)), seconds(3));
        before.update(at(10), sight(&[2, 4]));
        assert_eq!(before.grace(at(10), seconds(3)), seconds(4));
        // The holder need not be the entry right before ours.
        let first = seconds(9);
        before.update(
            at(10),
            Sight {
                first,
                ..sight(&[2])
            },
        );
        assert_eq!(before.grace(at(10), seconds(3)), first);
        // A vanished owner counts for as long as its command may run, and does not hide an earlier known one.
        before.update(at(20), vanished(&[], 8));
        before.update(at(21), vanished(&[], 1));
        assert_eq!(before.free_at(), Some(at(32)));
        assert_eq!(before.grace(at(31), seconds(3)), seconds(8));
        assert_eq!(before.grace(at(32), seconds(3)), seconds(3));
        before.update(at(40), vanished(&[], 1));
        assert_eq!(before.grace(at(40), Duration::ZERO), seconds(1));
    }

    /// For any number of waiters in a row, the announced grace, and so the delay, stays the same.
    #[test]
    fn a_grace_does_not_grow_from_one_waiter_to_the_next() {
        let holder = Duration::from_secs(14);
        let mut announced = holder;
        for _ in 0..200 {
            let mut before = Predecessors::default();
            let nearest = Predecessor::new(LeaseId(1), TOKEN, announced);
            before.update(
                at(0),
                Sight {
                    awaited: vec![nearest],
                    ..Sight::default()
                },
            );
            before.update(at(1), vanished(&[], announced.as_secs()));
            announced = before.grace(at(1), Duration::from_secs(1));
            assert_eq!(announced, holder);
        }
    }

    /// A dlock with the longest TTL may have the longest grace, so that one is never shortened.
    #[test]
    fn a_grace_is_limited_to_the_longest_that_a_dlock_can_have() {
        let longest = LeaseTimings::max_grace(LeaseTimings::LONGEST_TTL);
        for (announced, counts) in [
            (Duration::MAX, longest),
            (longest + Duration::from_millis(1), longest),
            (longest, longest),
            (Duration::from_secs(7), Duration::from_secs(7)),
        ] {
            let one = Predecessor::new(LeaseId(1), TOKEN, announced);
            assert_eq!(one.grace(), counts);
        }
    }

    /// Any client can put such an entry under a lease of years and delete it.
    #[test]
    fn a_kept_entry_delays_no_longer_than_its_command_may_run() {
        let mut before = Predecessors::default();
        let kept = Kept {
            token: FencingToken(3),
            left: Duration::MAX,
            grace: Duration::from_secs(4),
        };
        let kept = vec![kept];
        before.update(
            at(10),
            Sight {
                kept,
                ..sight(&[3])
            },
        );
        before.update(at(10), sight(&[]));
        assert_eq!(
            before.free_at(),
            Some(at(10) + lock_delay(Duration::from_secs(4)) + KEPT_LONGER)
        );
    }

    #[test]
    fn a_kept_entry_protects_until_its_time_has_passed() {
        let kept = |token| Kept {
            token: FencingToken(token),
            left: Duration::from_secs(9),
            grace: Duration::from_secs(7),
        };
        let seen = || {
            let mut before = Predecessors::default();
            let sight = Sight {
                kept: vec![kept(3)],
                ..sight(&[3])
            };
            assert!(before.update(at(10), sight).is_zero());
            assert_eq!(before.free_at(), None, "it is there");
            before
        };
        // The kept entry is deleted.
        let mut before = seen();
        assert!(before.update(at(11), sight(&[3])).is_zero());
        assert_eq!(before.update(at(12), sight(&[])), Duration::from_secs(8));
        assert_eq!(before.free_at(), Some(at(20)));
        assert_eq!(before.grace(at(13), Duration::ZERO), Duration::from_secs(7));
        // The kept entry expires.
        let mut before = seen();
        assert!(before.update(at(19), sight(&[])).is_zero());
        assert!(before.remaining(at(20)).is_zero());
    }

    #[test]
    fn a_release_record_survives_a_round_trip() {
        for (record, text) in [
            (ReleaseRecord::Alone(FencingToken(7)), r#"{"alone":7}"#),
            (ReleaseRecord::Free, r#""free""#),
            (
                behind(&[3]),
                r#"{"behind":[{"lease":103,"token":3,"grace_ms":3000}]}"#,
            ),
        ] {
            assert_eq!(record.to_json(), text);
            assert_eq!(ReleaseRecord::parse(text.as_bytes()), Some(record));
        }
        for value in ["", "x", r#"{"later":1}"#, r#"{"behind":7}"#] {
            assert_eq!(ReleaseRecord::parse(value.as_bytes()), None, "{value}");
        }
        let ended = Ended::new(
            "2026-11-29T03:30:00Z".to_owned(),
            Duration::from_secs(3),
            "exit 0",
        );
        for (record, begin) in [
            (ReleaseRecord::Alone(FencingToken(7)), r#"{"alone":7,"#),
            (ReleaseRecord::Free, r#"{"free":null,"#),
            (ReleaseRecord::Kept, r#"{"kept":null,"#),
            (behind(&[3]), r#"{"behind":["#),
        ] {
            let value = record.to_value(Some(&ended));
            assert!(value.starts_with(begin), "{value}");
            let end = r#""ended":{"at":"2026-11-29T03:30:00Z","held_ms":3000,"result":"exit 0"}}"#;
            assert!(value.ends_with(end), "{value}");
            assert_eq!(Ended::parse(value.as_bytes()), Some(ended.clone()));
            assert_eq!(ReleaseRecord::parse(value.as_bytes()), Some(record.clone()));
            let later = value.replacen('{', r#"{"later":{"x":[1]},"#, 1);
            assert_eq!(ReleaseRecord::parse(later.as_bytes()), Some(record.clone()));
            assert_eq!(record.to_value(None), record.to_json());
            assert_eq!(Ended::parse(record.to_json().as_bytes()), None);
        }
        let readers = |count: i64| behind(&(1..count).collect::<Vec<_>>()).to_json();
        assert!(ReleaseRecord::parse(readers(2_000).as_bytes()).is_some());
        assert_eq!(ReleaseRecord::parse(readers(20_000).as_bytes()), None);
    }

    #[test]
    fn a_command_may_run_if_its_owner_left_no_record() {
        assert_eq!(delay(&[3], &[], &[]), grace(3));
        assert!(delay(&[3], &[(3, ReleaseRecord::Free)], &[]).is_zero());
        assert_eq!(delay(&[3], &[(3, ReleaseRecord::Kept)], &[]), grace(3));
        // The record of another entry.
        assert_eq!(
            delay(&[3], &[(3, ReleaseRecord::Alone(TOKEN))], &[]),
            grace(3)
        );
        let alone = ReleaseRecord::Alone(FencingToken(3));
        assert_eq!(delay(&[4, 3], &[(3, alone)], &[]), grace(4));
        assert!(delay(&[100], &[], &[]).is_zero(), "it never had the lock");
    }

    #[test]
    fn the_record_of_a_waiter_names_the_entries_that_matter() {
        assert_eq!(delay(&[3], &[(3, behind(&[2]))], &[]), grace(2));
        assert!(delay(&[3], &[(3, behind(&[2]))], &[2]).is_zero());
        let left = [(3, behind(&[2])), (2, behind(&[1]))];
        assert_eq!(delay(&[3], &left, &[]), grace(1));
        let left = [(3, behind(&[2])), (2, ReleaseRecord::Free)];
        assert!(delay(&[3], &left, &[]).is_zero());
        let left = [
            (5, behind(&[2, 1])),
            (4, behind(&[2])),
            (1, ReleaseRecord::Free),
        ];
        assert_eq!(delay(&[5, 4], &left, &[]), grace(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// For any content of the records, the search ends, and never counts an entry that still exists.
        #[test]
        fn the_search_ends(left in proptest::collection::vec((0..9_i64, proptest::collection::vec(0..9_i64, 0..4)), 0..9)) {
            let left: Vec<_> = left.into_iter().map(|(token, more)| (token, behind(&more))).collect();
            prop_assert!(delay(&[4], &left, &[]) <= grace(4));
            prop_assert!(delay(&[4], &left, &[0, 1, 2, 3]) <= grace(4));
        }
    }
}
