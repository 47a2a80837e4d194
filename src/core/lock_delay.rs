//! What one that gives its place back leaves for those behind it: whose commands may still run.
//! It must not know under which keys that is kept, nor how it is read.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::heartbeat::NOTICE;
use super::proof::{FencingToken, LeaseId};
use super::request::Mode;
use super::time::{Instant, LeaseTimings};

/// The time that the kernel may need to run the guard, and to kill.
const KILLING: Duration = Duration::from_millis(500);
/// For the clocks, which count the other two as well, and the rest in reserve.
const RESERVE: Duration = Duration::from_millis(500);
/// The time that a holder's tree may need beyond its grace when its key was taken from it.
const MARGIN: Duration = NOTICE.saturating_add(KILLING).saturating_add(RESERVE);

/// The part of a second that etcd leaves out when it tells a lease's remaining time to live in whole seconds.
const KEPT_LONGER: Duration = Duration::from_secs(1);

/// How long the command of one that has vanished may still run, before its successor may start. Somebody revoked its lease
/// or deleted its key, or its lease expired, and it may be stopping its command this moment; `grace` is what it announced.
///
/// The grace is counted by two clocks whose rates may both be 10 % off, hence a quarter more
/// (1.1 / 0.9 < 1.25, shown by `tests/model`). A holder that does not hear of its loss within [`NOTICE`], being cut off or
/// stopped, is not covered: it ends at its own deadline.
///
/// It is added to a grace that was announced, never to a delay: one that waits announces the grace of those before it as
/// it stands in their records, see [`Predecessors::grace`], and so it is as long behind 200 waiters as behind one.
pub fn lock_delay(grace: Duration) -> Duration {
    grace + grace / 4 + MARGIN
}

/// One that stood before others in a queue and whose command may run, or may have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// The lease that it took its place with.
    pub lease: LeaseId,
    pub token: FencingToken,
    grace_ms: u64,
}

impl Predecessor {
    /// `grace` is what it announced for its command.
    pub fn new(lease: LeaseId, token: FencingToken, grace: Duration) -> Self {
        Self {
            lease,
            token,
            grace_ms: grace.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    /// How long its command may take to end when it is told to, or that of one before it: no longer than the longest lease
    /// allows, whatever is written there.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms).min(LeaseTimings::max_grace(LeaseTimings::LONGEST_TTL))
    }
}

/// A place that one which gave up during a hand-over has left taken for the rest of that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub token: FencingToken,
    /// For so much longer, by etcd's count in whole seconds, which leaves the rest of a second out.
    pub left: Duration,
    /// The grace for which it is kept.
    pub grace: Duration,
}

/// The queue before us, as one look has shown it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Those for whom we wait, as far as their commands count.
    pub awaited: Vec<Predecessor>,
    /// There was nobody.
    pub none: bool,
    /// The grace that the first in the queue announces.
    pub first: Duration,
    /// The longest grace of those who have vanished since the last look.
    pub vanished: Option<Duration>,
    /// Those of the awaited whose places are kept, as far as the last look has not shown that.
    pub kept: Vec<Kept>,
}

/// Left in the same transaction that deletes a place: of the command of the one that was there, nothing runs any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseRecord {
    /// It wanted the lock for itself and nobody was before it, so nobody is before the one behind it. The token is its own.
    Alone(FencingToken),
    /// It was its turn; others may have the lock as well.
    Free,
    /// Its place is kept for the command of one that vanished before it. If that is gone as well, all is as if it had left
    /// nothing: it announced the grace of that command.
    Kept,
    /// It was not its turn yet: it has waited for these, of whom one may have vanished in the meantime. Not named are
    /// those whose commands nobody waits for.
    Behind(Vec<Predecessor>),
}

impl ReleaseRecord {
    /// The value of its key.
    pub fn to_json(&self) -> String {
        // Words and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The same of one that leaves its place taken, to a cooldown: then nobody may follow on it as on one that was alone.
    /// `grace` is that of a command which may run meanwhile, or zero.
    #[must_use]
    pub fn with_place_kept(self, grace: Duration) -> Self {
        match self {
            _ if !grace.is_zero() => Self::Kept,
            Self::Alone(_) => Self::Free,
            other => other,
        }
    }

    /// What `value` says; nothing if that is not understood, which is as good as no evidence.
    pub fn parse(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

/// Those before one that waits, by all that it has seen.
#[derive(Debug, Default)]
pub struct Predecessors {
    awaited: Vec<Predecessor>,
    /// There was nobody at the last look.
    none: bool,
    first: Duration,
    kept: Vec<(Kept, Instant)>,
    /// Until when the commands of those who have vanished may run, and the longest grace of them.
    vanished: Option<(Instant, Duration)>,
}

impl Predecessors {
    /// Takes what a look at `now` has shown. The answer is for how long those commands may run of whose hand-over it tells
    /// for the first time.
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
        // A place that was kept protects until its time has passed, also if somebody has taken it away.
        let ended = ended.into_iter().map(|(one, until)| (until, one.grace));
        let vanished = vanished.map(|grace| (now + lock_delay(grace), grace));
        let mut longest = Duration::ZERO;
        for (until, grace) in ended.chain(vanished).filter(|(until, _)| now < *until) {
            longest = longest.max(until.since(now));
            let (latest, most) = self.running(now).unwrap_or((until, grace));
            self.vanished = Some((latest.max(until), most.max(grace)));
        }
        self.kept = there;
        let until = |one: &Kept| now + one.left + KEPT_LONGER;
        self.kept.extend(kept.iter().map(|one| (*one, until(one))));
        (self.awaited, self.none, self.first) = (awaited, none, first);
        // That one's time has come to its end by itself.
        if longest <= KEPT_LONGER {
            Duration::ZERO
        } else {
            longest
        }
    }

    /// Those who have vanished, as long as their commands may run.
    fn running(&self, now: Instant) -> Option<(Instant, Duration)> {
        self.vanished.filter(|(until, _)| now < *until)
    }

    /// The end of the time that the commands of all who have vanished have.
    pub fn free_at(&self) -> Option<Instant> {
        self.vanished.map(|(until, _)| until)
    }

    /// What is left of that time. Clocks that count parts of it are off by no more than one that counts it all.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.free_at().map_or(Duration::ZERO, |at| at.since(now))
    }

    /// The grace that we announce for others, if `own` is what our own command needs: the longest of all whose commands
    /// may run when we vanish. Those behind us know of nobody else, and our end may come together with theirs, or after.
    pub fn grace(&self, now: Instant, own: Duration) -> Duration {
        let awaited = self.awaited.iter().map(Predecessor::grace);
        let vanished = self.running(now).map(|(_, grace)| grace);
        let others = awaited.chain(vanished).chain([self.first]);
        others.fold(own, Duration::max)
    }

    /// What we leave when we give our place with this `token` back, when none of that time is left.
    pub fn release_record(&self, mode: Mode, token: FencingToken) -> ReleaseRecord {
        match mode {
            _ if !self.none => ReleaseRecord::Behind(self.awaited.clone()),
            Mode::Exclusive => ReleaseRecord::Alone(token),
            Mode::Shared | Mode::Slots(_) => ReleaseRecord::Free,
        }
    }
}

/// Finds out for how long commands may still run: of some that are gone, and of those that these have waited for.
#[derive(Debug, Default)]
pub struct DelaySearch {
    /// Whose evidence is still to be read.
    pending: Vec<Predecessor>,
    known: BTreeSet<FencingToken>,
    unclean: Vec<Predecessor>,
}

impl DelaySearch {
    /// Into the ends of those who are `gone`.
    pub fn new(gone: Vec<Predecessor>) -> Self {
        Self {
            known: gone.iter().map(|one| one.token).collect(),
            pending: gone,
            ..Self::default()
        }
    }

    /// Those whose evidence is to be read now, at most so many; nobody: all is known.
    pub fn next_batch(&mut self, most: usize) -> Vec<Predecessor> {
        self.pending.drain(..self.pending.len().min(most)).collect()
    }

    /// Takes what `one` has left, if anything. Who `is_there` yet has its own end before it.
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
                    // Nobody waits for a later one: so this ends, whatever stands there.
                    let before = other.token < one.token && !is_there(other.token);
                    if before && self.known.insert(other.token) {
                        self.pending.push(other);
                    }
                }
            }
        }
    }

    /// The longest grace of those who have vanished, if only those count among the silent who `may_have_held` the lock.
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

    /// How long commands may run by what was `left`, when `gone` are gone and `there` are not. The grace of each is as many
    /// seconds as its token says.
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

    /// That of one with this token.
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

    /// That of a look which shows those of `awaited`.
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
    fn who_leaves_tells_of_those_before_it_and_forgets_no_hand_over() {
        let mut before = Predecessors::default();
        // Who has not looked does not know whether it is the first.
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), behind(&[]));
        before.update(at(10), sight(&[2]));
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), behind(&[2]));
        let delay = before.update(at(11), vanished(&[1], 4));
        assert_eq!(delay, Duration::from_secs(7));
        assert_eq!(before.release_record(Mode::Exclusive, TOKEN), behind(&[1]));
        assert_eq!(before.remaining(at(12)), Duration::from_secs(6));
        // Another look, which shows nothing new.
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

    /// `etcdctl lock`, or one that cools down: nobody waits for its command, but it is there.
    #[test]
    fn who_waits_for_one_that_is_not_counted_is_not_the_first() {
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
        // The holder does not have to be the one right before us.
        let first = seconds(9);
        before.update(
            at(10),
            Sight {
                first,
                ..sight(&[2])
            },
        );
        assert_eq!(before.grace(at(10), seconds(3)), first);
        // One that vanished counts for as long as its command may run, and does not hide one that came to be known before.
        before.update(at(20), vanished(&[], 8));
        before.update(at(21), vanished(&[], 1));
        assert_eq!(before.free_at(), Some(at(32)));
        assert_eq!(before.grace(at(31), seconds(3)), seconds(8));
        assert_eq!(before.grace(at(32), seconds(3)), seconds(3));
        before.update(at(40), vanished(&[], 1));
        assert_eq!(before.grace(at(40), Duration::ZERO), seconds(1));
    }

    /// However many wait in a row: the grace that is announced, and so the delay, stays what it is.
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

    #[test]
    fn no_grace_is_longer_than_the_longest_lease_allows() {
        let forged = Predecessor::new(LeaseId(1), TOKEN, Duration::MAX);
        assert!(forged.grace() < Duration::from_hours(12));
    }

    #[test]
    fn a_place_that_was_kept_protects_until_its_time_has_passed() {
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
        // Taken away.
        let mut before = seen();
        assert!(before.update(at(11), sight(&[3])).is_zero());
        assert_eq!(before.update(at(12), sight(&[])), Duration::from_secs(8));
        assert_eq!(before.free_at(), Some(at(20)));
        assert_eq!(before.grace(at(13), Duration::ZERO), Duration::from_secs(7));
        // Ended by itself.
        let mut before = seen();
        assert!(before.update(at(19), sight(&[])).is_zero());
        assert!(before.remaining(at(20)).is_zero());
    }

    #[test]
    fn evidence_comes_back() {
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
    }

    #[test]
    fn whoever_leaves_no_evidence_may_run() {
        assert_eq!(delay(&[3], &[], &[]), grace(3));
        assert!(delay(&[3], &[(3, ReleaseRecord::Free)], &[]).is_zero());
        assert_eq!(delay(&[3], &[(3, ReleaseRecord::Kept)], &[]), grace(3));
        // Another's word.
        assert_eq!(
            delay(&[3], &[(3, ReleaseRecord::Alone(TOKEN))], &[]),
            grace(3)
        );
        let alone = ReleaseRecord::Alone(FencingToken(3));
        assert_eq!(delay(&[4, 3], &[(3, alone)], &[]), grace(4));
        assert!(delay(&[100], &[], &[]).is_zero(), "it never had the lock");
    }

    #[test]
    fn a_waiter_that_left_tells_whose_end_matters() {
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

        /// Whatever stands in the evidence, the inquiry comes to an end, and waits for nobody who is there.
        #[test]
        fn it_ends(left in proptest::collection::vec((0..9_i64, proptest::collection::vec(0..9_i64, 0..4)), 0..9)) {
            let left: Vec<_> = left.into_iter().map(|(token, more)| (token, behind(&more))).collect();
            prop_assert!(delay(&[4], &left, &[]) <= grace(4));
            prop_assert!(delay(&[4], &left, &[0, 1, 2, 3]) <= grace(4));
        }
    }
}
