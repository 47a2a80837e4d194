//! What one that gives its place back leaves for those behind it: whose commands may still run.
//! It must not know under which keys that is kept, nor how it is read.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lease::{FencingToken, Instant, LeaseId};

/// What a holder's tree may need beyond its grace when its key was taken from it: a second until the
/// news has reached it, and half a second for the kernel to kill.
const MARGIN: Duration = Duration::from_secs(2);

/// How long the command of one that has vanished may still run, before its successor may start. Somebody revoked its lease
/// or deleted its key, or its lease expired, and it may be stopping its command this moment; `grace` is what it announced.
///
/// The grace is counted by two clocks whose rates may both be 10 % off, hence a quarter more
/// (1.1 / 0.9 < 1.25, shown by `tests/model`). Who does not hear of its loss, being cut off or
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

/// Those before one that waits, by all that it has seen.
#[derive(Debug, Default)]
pub struct Predecessors {
    awaited: Vec<Predecessor>,
    vanished: Vec<Predecessor>,
    free_at: Option<Instant>,
}

impl Predecessors {
    /// Takes what a look at `now` has shown: for whom we wait, and who has vanished since the last one. Answers how long
    /// the commands of the latter may still run.
    pub fn see(
        &mut self,
        now: Instant,
        awaited: Vec<Predecessor>,
        vanished: &[Predecessor],
    ) -> Duration {
        self.awaited = awaited;
        if !self.is_handing_over(now) {
            self.vanished.clear();
        }
        self.vanished.extend(vanished);
        let longest = vanished.iter().map(|one| hand_over(one.grace())).max();
        self.free_at = self.free_at.max(longest.map(|longest| now + longest));
        longest.unwrap_or_default()
    }

    /// The end of the time that the commands of all who have vanished have.
    pub fn free_at(&self) -> Option<Instant> {
        self.free_at
    }

    /// Whether one of these commands may still run.
    pub fn is_handing_over(&self, now: Instant) -> bool {
        self.free_at.is_some_and(|at| now < at)
    }

    /// The longest grace of those whose commands may still run although they have vanished.
    pub fn longest_grace(&self, now: Instant) -> Option<Duration> {
        let vanished = self.vanished.iter().filter(|_| self.is_handing_over(now));
        vanished.map(Predecessor::grace).max()
    }

    /// All whose ends are to be seen to, by whoever follows us if we leave.
    pub fn all(&self, now: Instant) -> Vec<Predecessor> {
        let vanished = self.vanished.iter().filter(|_| self.is_handing_over(now));
        self.awaited.iter().chain(vanished).copied().collect()
    }
}

/// Left in the same transaction that deletes a place: of the command of the one that was there, nothing runs any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// It wanted the lock for itself and was the first, so there is nobody before those behind it. Its token is told, for
    /// a lease may have had an earlier place.
    Alone(FencingToken),
    /// It was its turn; others may have had the lock as well.
    Free,
    /// It was not its turn yet: one of these may have vanished before.
    Behind(Vec<Predecessor>),
}

impl Evidence {
    /// The value of its key.
    pub fn to_json(&self) -> String {
        // Words and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What `value` says; nothing if that is not understood, which is as good as no evidence.
    pub fn parse(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

/// Finds out whose commands may still run, of some that are gone and of those that these have waited for.
#[derive(Debug, Default)]
pub struct Inquiry {
    /// Whose evidence is still to be read.
    open: Vec<Predecessor>,
    known: BTreeSet<FencingToken>,
    running: Vec<Predecessor>,
}

impl Inquiry {
    /// Into the ends of those who are `gone`.
    pub fn new(gone: Vec<Predecessor>) -> Self {
        Self {
            known: gone.iter().map(|one| one.token).collect(),
            open: gone,
            running: Vec::new(),
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
            None => self.running.push(one),
            Some(Evidence::Alone(_) | Evidence::Free) => {}
            Some(Evidence::Behind(more)) => {
                for other in more {
                    // Nobody waits for a later one: so this ends, whatever stands there.
                    let before = other.token < one.token && !is_there(other.token);
                    if before && self.known.insert(other.token) {
                        self.open.push(other);
                    }
                }
            }
        }
    }

    /// Those that have left no evidence.
    pub fn running(self) -> Vec<Predecessor> {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn one(token: i64) -> Predecessor {
        Predecessor::new(
            LeaseId(token + 100),
            FencingToken(token),
            Duration::from_secs(5),
        )
    }

    /// The tokens of those who may run by `left`, when `gone` are gone and `there` are not.
    fn running(gone: &[i64], left: &[(i64, Evidence)], there: &[i64]) -> Vec<i64> {
        let left: BTreeMap<i64, Evidence> = left.iter().cloned().collect();
        let mut inquiry = Inquiry::new(gone.iter().map(|token| one(*token)).collect());
        loop {
            let some = inquiry.next(2);
            if some.is_empty() {
                let running = inquiry.running();
                return running.iter().map(|one| one.token.0).collect();
            }
            for one in some {
                let evidence = left.get(&one.token.0).cloned();
                inquiry.hear(one, evidence, |token| there.contains(&token.0));
            }
        }
    }

    fn behind(tokens: &[i64]) -> Evidence {
        Evidence::Behind(tokens.iter().map(|token| one(*token)).collect())
    }

    #[test]
    fn a_grace_is_counted_by_two_clocks() {
        let grace = Duration::from_secs(5);
        assert_eq!(hand_over(grace), Duration::from_millis(8250));
    }

    #[test]
    fn who_leaves_tells_of_those_before_it_and_of_the_vanished_while_their_time_runs() {
        let at = |seconds| Instant::from_boot(Duration::from_secs(seconds));
        let mut before = Predecessors::default();
        assert_eq!(before.see(at(10), vec![one(2)], &[]), Duration::ZERO);
        assert_eq!(before.all(at(10)), [one(2)]);
        assert_eq!(
            before.see(at(11), vec![one(1)], &[one(2)]),
            Duration::from_millis(8250)
        );
        assert_eq!(before.all(at(12)), [one(1), one(2)]);
        // Another look, which shows nothing new, forgets nobody.
        assert_eq!(before.see(at(12), Vec::new(), &[]), Duration::ZERO);
        assert_eq!(before.all(at(12)), [one(2)]);
        assert_eq!(before.longest_grace(at(12)), Some(Duration::from_secs(5)));
        assert!(before.is_handing_over(at(19)) && !before.is_handing_over(at(20)));
        assert_eq!(before.longest_grace(at(20)), None);
        assert!(before.all(at(20)).is_empty());
        // One that vanishes later has its own time.
        before.see(at(30), Vec::new(), &[one(3)]);
        assert_eq!(before.all(at(31)), [one(3)]);
    }

    #[test]
    fn evidence_comes_back() {
        for (evidence, text) in [
            (Evidence::Alone(FencingToken(7)), r#"{"alone":7}"#),
            (Evidence::Free, r#""free""#),
            (
                behind(&[3]),
                r#"{"behind":[{"lease":103,"token":3,"grace_ms":5000}]}"#,
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
        assert_eq!(running(&[3], &[], &[]), [3]);
        assert!(running(&[3], &[(3, Evidence::Free)], &[]).is_empty());
        let alone = Evidence::Alone(FencingToken(3));
        assert_eq!(running(&[4, 3], &[(3, alone)], &[]), [4]);
    }

    #[test]
    fn a_waiter_that_left_tells_whose_end_matters() {
        assert_eq!(running(&[3], &[(3, behind(&[2]))], &[]), [2]);
        assert!(running(&[3], &[(3, behind(&[2]))], &[2]).is_empty());
        let left = [(3, behind(&[2])), (2, behind(&[1]))];
        assert_eq!(running(&[3], &left, &[]), [1]);
        let left = [(3, behind(&[2])), (2, Evidence::Free)];
        assert!(running(&[3], &left, &[]).is_empty());
        let left = [(5, behind(&[2, 1])), (4, behind(&[2])), (1, Evidence::Free)];
        assert_eq!(running(&[5, 4], &left, &[]), [2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever stands in the evidence, the inquiry comes to an end and names nobody twice.
        #[test]
        fn it_ends(left in proptest::collection::vec((0..9_i64, proptest::collection::vec(0..9_i64, 0..4)), 0..9)) {
            let left: Vec<_> = left.into_iter().map(|(token, more)| (token, behind(&more))).collect();
            let mut found = running(&[8, 7], &left, &[5]);
            let count = found.len();
            found.sort_unstable();
            found.dedup();
            prop_assert_eq!(found.len(), count);
            prop_assert!(!found.contains(&5));
        }
    }
}
