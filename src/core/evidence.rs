//! What one that gives its place back leaves for those behind it: whose commands may still run.
//! It must not know under which keys that is kept, nor how it is read.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::heartbeat::NOTICE;
use super::lease::{FencingToken, Instant, LeaseId};
use super::mode::Mode;

/// What the kernel may need to run the guard, and to kill.
const KILLING: Duration = Duration::from_millis(500);
/// For the clocks, which count the other two as well, and the rest in reserve.
const RESERVE: Duration = Duration::from_millis(500);
/// What a holder's tree may need beyond its grace when its key was taken from it.
const MARGIN: Duration = NOTICE.saturating_add(KILLING).saturating_add(RESERVE);

/// How long the command of one that has vanished may still run, before its successor may start. Somebody revoked its lease
/// or deleted its key, or its lease expired, and it may be stopping its command this moment; `grace` is what it announced.
///
/// The grace is counted by two clocks whose rates may both be 10 % off, hence a quarter more
/// (1.1 / 0.9 < 1.25, shown by `tests/model`). A holder that does not hear of its loss within [`NOTICE`], being cut off or
/// stopped, is not covered: it ends at its own deadline.
pub fn hand_over(grace: Duration) -> Duration {
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

    /// How long its command may take to end when it is told to.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }
}

/// Left in the same transaction that deletes a place: of the command of the one that was there, nothing runs any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// It wanted the lock for itself and nobody was before it, so nobody is before the one behind it. The token is its own.
    Alone(FencingToken),
    /// It was its turn; others may have the lock as well.
    Free,
    /// It was not its turn yet: it has waited for these, of whom one may have vanished in the meantime. Not named are
    /// those whose commands nobody waits for.
    Behind(Vec<Predecessor>),
}

impl Evidence {
    /// The value of its key.
    pub fn to_json(&self) -> String {
        // Words and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The same of one that leaves its place taken, to a cooldown: then nobody may follow on it as on one that was alone.
    #[must_use]
    pub fn with_place_kept(self) -> Self {
        match self {
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
    free_at: Option<Instant>,
}

impl Predecessors {
    /// Takes what a look at `now` has shown: those for whom we wait, as far as their commands count, whether there was
    /// nobody, and for how long the commands of those may run who have vanished since the last look.
    pub fn see(
        &mut self,
        now: Instant,
        awaited: Vec<Predecessor>,
        none: bool,
        hand_over: Duration,
    ) {
        self.awaited = awaited;
        self.none = none;
        if !hand_over.is_zero() {
            self.free_at = self.free_at.max(Some(now + hand_over));
        }
    }

    /// The end of the time that the commands of all who have vanished have.
    pub fn free_at(&self) -> Option<Instant> {
        self.free_at
    }

    /// What is left of that time. Clocks that count parts of it are off by no more than one that counts it all.
    pub fn left(&self, now: Instant) -> Duration {
        self.free_at.map_or(Duration::ZERO, |at| at.since(now))
    }

    /// What we leave when we give our place with this `token` back, when none of that time is left.
    pub fn evidence(&self, mode: Mode, token: FencingToken) -> Evidence {
        match mode {
            _ if !self.none => Evidence::Behind(self.awaited.clone()),
            Mode::Exclusive => Evidence::Alone(token),
            Mode::Shared | Mode::Slots(_) => Evidence::Free,
        }
    }
}

/// Finds out for how long commands may still run: of some that are gone, and of those that these have waited for.
#[derive(Debug, Default)]
pub struct Inquiry {
    /// Whose evidence is still to be read.
    open: Vec<Predecessor>,
    known: BTreeSet<FencingToken>,
    silent: Vec<Predecessor>,
}

impl Inquiry {
    /// Into the ends of those who are `gone`.
    pub fn new(gone: Vec<Predecessor>) -> Self {
        Self {
            known: gone.iter().map(|one| one.token).collect(),
            open: gone,
            ..Self::default()
        }
    }

    /// Those whose evidence is to be read now, at most so many; nobody: all is known.
    pub fn next(&mut self, most: usize) -> Vec<Predecessor> {
        self.open.drain(..self.open.len().min(most)).collect()
    }

    /// Takes what `one` has left, if anything. Who `is_there` yet has its own end before it.
    pub fn hear(
        &mut self,
        one: Predecessor,
        evidence: Option<Evidence>,
        is_there: impl Fn(FencingToken) -> bool,
    ) {
        match evidence {
            None => self.silent.push(one),
            Some(Evidence::Alone(_) | Evidence::Free) => {}
            Some(Evidence::Behind(awaited)) => {
                for other in awaited {
                    // Nobody waits for a later one: so this ends, whatever stands there.
                    let before = other.token < one.token && !is_there(other.token);
                    if before && self.known.insert(other.token) {
                        self.open.push(other);
                    }
                }
            }
        }
    }

    /// How long that is, if only those count among the silent who `may_have_held` the lock.
    pub fn hand_over(&self, may_have_held: impl Fn(FencingToken) -> bool) -> Duration {
        let silent = self.silent.iter().filter(|one| may_have_held(one.token));
        let longest = silent.map(|one| hand_over(one.grace())).max();
        longest.unwrap_or_default()
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
    fn delay(gone: &[i64], left: &[(i64, Evidence)], there: &[i64]) -> Duration {
        let left: BTreeMap<i64, Evidence> = left.iter().cloned().collect();
        let mut inquiry = Inquiry::new(gone.iter().map(|token| one(*token)).collect());
        loop {
            let some = inquiry.next(2);
            if some.is_empty() {
                return inquiry.hand_over(|token| token.0 < 100);
            }
            for one in some {
                let evidence = left.get(&one.token.0).cloned();
                inquiry.hear(one, evidence, |token| there.contains(&token.0));
            }
        }
    }

    /// That of one with this token.
    fn grace(token: i64) -> Duration {
        hand_over(one(token).grace())
    }

    fn behind(tokens: &[i64]) -> Evidence {
        Evidence::Behind(tokens.iter().map(|token| one(*token)).collect())
    }

    #[test]
    fn a_grace_is_counted_by_two_clocks() {
        let grace = Duration::from_secs(5);
        assert_eq!(hand_over(grace), Duration::from_millis(8250));
    }

    const TOKEN: FencingToken = FencingToken(9);

    #[test]
    fn who_leaves_tells_of_those_before_it_and_forgets_no_hand_over() {
        let at = |seconds| Instant::from_boot(Duration::from_secs(seconds));
        let mut before = Predecessors::default();
        // Who has not looked does not know whether it is the first.
        assert_eq!(before.evidence(Mode::Exclusive, TOKEN), behind(&[]));
        before.see(at(10), vec![one(2)], false, Duration::ZERO);
        assert_eq!(before.evidence(Mode::Exclusive, TOKEN), behind(&[2]));
        before.see(at(11), vec![one(1)], false, Duration::from_secs(8));
        assert_eq!(before.evidence(Mode::Exclusive, TOKEN), behind(&[1]));
        assert_eq!(before.left(at(12)), Duration::from_secs(7));
        // Another look, which shows nothing new.
        before.see(at(13), Vec::new(), true, Duration::ZERO);
        assert_eq!(before.left(at(13)), Duration::from_secs(6));
        assert!(before.left(at(19)).is_zero());
        let alone = Evidence::Alone(TOKEN);
        assert_eq!(before.evidence(Mode::Exclusive, TOKEN), alone);
        assert_eq!(before.evidence(Mode::Shared, TOKEN), Evidence::Free);
    }

    /// `etcdctl lock`, or one that cools down: nobody waits for its command, but it is there.
    #[test]
    fn who_waits_for_one_that_is_not_counted_is_not_the_first() {
        let mut before = Predecessors::default();
        let now = Instant::from_boot(Duration::ZERO);
        before.see(now, Vec::new(), false, Duration::ZERO);
        assert_eq!(before.evidence(Mode::Exclusive, TOKEN), behind(&[]));
    }

    #[test]
    fn evidence_comes_back() {
        for (evidence, text) in [
            (Evidence::Alone(FencingToken(7)), r#"{"alone":7}"#),
            (Evidence::Free, r#""free""#),
            (
                behind(&[3]),
                r#"{"behind":[{"lease":103,"token":3,"grace_ms":3000}]}"#,
            ),
        ] {
            assert_eq!(evidence.to_json(), text);
            assert_eq!(Evidence::parse(text.as_bytes()), Some(evidence));
        }
        for value in ["", "x", r#"{"later":1}"#, r#"{"behind":7}"#] {
            assert_eq!(Evidence::parse(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn whoever_leaves_no_evidence_may_run() {
        assert_eq!(delay(&[3], &[], &[]), grace(3));
        assert!(delay(&[3], &[(3, Evidence::Free)], &[]).is_zero());
        let alone = Evidence::Alone(FencingToken(3));
        assert_eq!(delay(&[4, 3], &[(3, alone)], &[]), grace(4));
        assert!(delay(&[100], &[], &[]).is_zero(), "it never had the lock");
    }

    #[test]
    fn a_waiter_that_left_tells_whose_end_matters() {
        assert_eq!(delay(&[3], &[(3, behind(&[2]))], &[]), grace(2));
        assert!(delay(&[3], &[(3, behind(&[2]))], &[2]).is_zero());
        let left = [(3, behind(&[2])), (2, behind(&[1]))];
        assert_eq!(delay(&[3], &left, &[]), grace(1));
        let left = [(3, behind(&[2])), (2, Evidence::Free)];
        assert!(delay(&[3], &left, &[]).is_zero());
        let left = [(5, behind(&[2, 1])), (4, behind(&[2])), (1, Evidence::Free)];
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
