//! The times at which renewals are due, for a holder or a waiter.
//! It must not know what a renewal proves, nor how it is sent.

use std::time::Duration;

use super::time::{Instant, LeaseTimings};

/// Limit within which a holder learns that its key was deleted or replaced, as long as any endpoint answers: at once with
/// an open watch, else by its renewals. The lock delay of a vanished holder depends on it
/// (`core::lock_delay::lock_delay`).
pub const NOTICE: Duration = Duration::from_secs(1);

/// Renewals are sent this far apart without an open watch; the other half of the time is for the answer.
const UNWATCHED: Duration = Duration::from_millis(500);

/// Pause after a renewal that failed at once, so that requests do not flood a dead etcd.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The state of the watch on our key, and on those that a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// It is open, and began with a read.
    Open,
    /// It is being reopened, and has missed nothing so far.
    Reopening,
    /// It broke, at an unknown time.
    Broken,
}

/// The schedule of renewals: one per fifth of the TTL, one at a time, and again at once after a failure. While no watch
/// is open, they are frequent enough to replace it.
///
/// After one TTL without any answer of etcd, none is due until there is one: where the network carries requests and no
/// answers, each attempt renews the lease, and an entry whose owner hears nothing would block its lock for ever.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    ttl: Duration,
    period: Duration,
    /// The send time of the last proven renewal.
    proven_at: Instant,
    due_at: Instant,
    /// The time at which a renewal is due because no watch is open.
    unwatched_at: Option<Instant>,
    /// The end of the pause after a failure.
    paused_until: Option<Instant>,
    asked_at: Option<Instant>,
    /// The time of the first renewal since the last answer.
    unanswered_since_at: Option<Instant>,
    is_silenced: bool,
    /// State of a small generator (`SplitMix64`), which only spreads the load of many clients.
    noise: u64,
}

impl Heartbeat {
    /// The first renewal is due one interval after `proven_at`; `seed` makes hosts differ.
    pub fn new(timings: LeaseTimings, proven_at: Instant, seed: u64) -> Self {
        let mut heartbeat = Self {
            ttl: timings.ttl(),
            period: timings.renew_interval(),
            proven_at,
            due_at: proven_at,
            unwatched_at: None,
            paused_until: None,
            asked_at: None,
            unanswered_since_at: None,
            is_silenced: false,
            noise: seed,
        };
        heartbeat.due_at = proven_at + heartbeat.jittered();
        heartbeat
    }

    /// The interval ± 10 %.
    fn jittered(&mut self) -> Duration {
        self.noise = self.noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.noise;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = u32::try_from((bits ^ (bits >> 31)) % 201).unwrap_or(100);
        self.period * (900 + share) / 1000
    }

    /// The time of the next renewal; `None` while an answer is pending, and while etcd must answer something else first.
    pub fn due_at(&self) -> Option<Instant> {
        if self.asked_at.is_some() || self.is_silenced {
            return None;
        }
        let due_at = self.unwatched_at.into_iter().fold(self.due_at, Ord::min);
        Some(self.paused_until.into_iter().fold(due_at, Ord::max))
    }

    /// Whether to send a renewal now; if so, its answer is pending from then on.
    pub fn start_renewal(&mut self, now: Instant) -> bool {
        let silent = |since_at| self.ttl <= now.since(since_at);
        self.is_silenced |= self.unanswered_since_at.is_some_and(silent);
        let ask = self.due_at().is_some_and(|due_at| due_at <= now);
        if ask {
            self.asked_at = Some(now);
            self.paused_until = None;
            self.unanswered_since_at.get_or_insert(now);
        }
        ask
    }

    /// etcd has answered, whatever the request was.
    pub fn answered(&mut self) {
        self.unanswered_since_at = None;
        self.is_silenced = false;
    }

    /// A renewal sent at `sent_at` was proven.
    pub fn proven(&mut self, sent_at: Instant) {
        self.answered();
        self.asked_at = None;
        self.proven_at = sent_at;
        self.due_at = sent_at + self.jittered();
        if let Some(unwatched_at) = &mut self.unwatched_at {
            *unwatched_at = sent_at + UNWATCHED;
        }
    }

    /// A renewal failed or proved nothing.
    pub fn failed(&mut self, now: Instant) {
        let asked_at = self.asked_at.take().unwrap_or(now);
        self.due_at = now.max(asked_at + RETRY_PAUSE);
        self.paused_until = Some(self.due_at);
    }

    /// Makes the next renewal due now, or after the pause that follows a failure.
    pub fn renew_now(&mut self, now: Instant) {
        self.due_at = self.due_at.min(now);
    }

    /// Records a change of the watch.
    pub fn watch(&mut self, now: Instant, watch: Watch) {
        let since = match watch {
            Watch::Open => {
                self.answered();
                self.unwatched_at = None;
                return;
            }
            Watch::Reopening => now,
            // The time since the last proof is uncovered.
            Watch::Broken => self.proven_at,
        };
        let due_at = since + UNWATCHED;
        self.unwatched_at = Some(self.unwatched_at.map_or(due_at, |at| at.min(due_at)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::time::tests::at;
    use super::*;

    fn heartbeat() -> Heartbeat {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        Heartbeat::new(timings, at(0.0), 1)
    }

    #[test]
    fn the_period_is_a_fifth_of_the_ttl_give_or_take_a_tenth() {
        let mut heartbeat = heartbeat();
        for _ in 0..1000 {
            let period = heartbeat.jittered();
            assert!((1800..=2200).contains(&period.as_millis()), "{period:?}");
        }
    }

    #[test]
    fn one_renewal_at_a_time() {
        let mut heartbeat = heartbeat();
        assert!(!heartbeat.start_renewal(at(1.0)));
        assert!(heartbeat.start_renewal(at(3.0)));
        assert!(!heartbeat.start_renewal(at(9.0)));
        assert_eq!(heartbeat.due_at(), None);
    }

    #[test]
    fn a_slow_failure_is_tried_again_at_once_and_a_quick_one_after_a_pause() {
        let mut heartbeat = heartbeat();
        assert!(heartbeat.start_renewal(at(3.0)));
        heartbeat.failed(at(4.25));
        assert!(heartbeat.start_renewal(at(4.25)));
        heartbeat.failed(at(4.26));
        assert!(!heartbeat.start_renewal(at(4.26)));
        assert!(heartbeat.start_renewal(at(4.5)));
    }

    #[test]
    fn no_hurry_shortens_the_pause_after_a_failure() {
        let mut heartbeat = heartbeat();
        heartbeat.renew_now(at(1.0));
        assert!(heartbeat.start_renewal(at(1.0)));
        heartbeat.failed(at(1.01));
        heartbeat.renew_now(at(1.02));
        heartbeat.watch(at(1.03), Watch::Broken);
        assert!(!heartbeat.start_renewal(at(1.04)));
        assert_eq!(heartbeat.due_at(), Some(at(1.25)));
    }

    #[test]
    fn a_broken_watch_hurries_a_proof_and_one_that_opens_ends_the_hurry() {
        let mut heartbeat = heartbeat();
        let usual = heartbeat.due_at();
        heartbeat.watch(at(1.0), Watch::Reopening);
        assert_eq!(heartbeat.due_at(), Some(at(1.5)));
        heartbeat.watch(at(1.1), Watch::Open);
        assert_eq!(heartbeat.due_at(), usual);
        heartbeat.watch(at(1.2), Watch::Broken);
        assert!(heartbeat.start_renewal(at(1.2)));
        heartbeat.proven(at(1.2));
        assert_eq!(heartbeat.due_at(), Some(at(1.7)));
        // A watch that breaks again and again must not make dlock flood etcd.
        heartbeat.watch(at(1.3), Watch::Broken);
        assert_eq!(heartbeat.due_at(), Some(at(1.7)));
    }

    #[test]
    fn after_one_ttl_without_an_answer_no_renewal_is_due() {
        let mut heartbeat = heartbeat();
        let mut now = at(2.0);
        for _ in 0..10 {
            assert!(heartbeat.start_renewal(now));
            now = now + Duration::from_secs(1);
            heartbeat.failed(now);
        }
        assert!(!heartbeat.start_renewal(now));
        heartbeat.renew_now(now);
        heartbeat.watch(now, Watch::Broken);
        assert_eq!(heartbeat.due_at(), None);
        heartbeat.answered();
        assert!(heartbeat.start_renewal(now));
        // The machine slept: nothing was sent in that time.
        heartbeat.proven(now);
        assert!(heartbeat.start_renewal(at(1000.0)));
    }

    /// An event of a heartbeat at one time.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Ask,
        Proven,
        Failed,
        Hurry,
        Watch(Watch),
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let event = prop_oneof![
            4 => Just(Event::Ask),
            2 => Just(Event::Proven),
            1 => Just(Event::Failed),
            1 => Just(Event::Hurry),
            2 => prop::sample::select(&[Watch::Open, Watch::Reopening, Watch::Broken][..]).prop_map(Event::Watch),
        ];
        prop::collection::vec((0..700_u64, event), 1..100)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Without an open watch, dlock renews, and renews again after an answer, early enough to learn of a loss within
        /// `NOTICE`; and nothing shortens the pause after a failure.
        #[test]
        fn renewals_replace_a_broken_watch(ttl in 5..3600_u64, events in events()) {
            let ttl = Duration::from_secs(ttl);
            let timings = LeaseTimings::new(ttl, LeaseTimings::default_grace(ttl));
            let mut now = at(100.0);
            let mut heartbeat = Heartbeat::new(timings, now, ttl.as_secs());
            // The time until which nothing was missed; `None` while the watch is open.
            let (mut known_at, mut paused_until, mut asked_at) = (None, now, None);
            let mut proven_at = now;
            for (pause, event) in events {
                now = now + Duration::from_millis(pause);
                match event {
                    Event::Ask if heartbeat.start_renewal(now) => {
                        prop_assert!(asked_at.is_none() && paused_until <= now);
                        asked_at = Some(now);
                    }
                    Event::Proven => if let Some(sent_at) = asked_at.take() {
                        heartbeat.proven(sent_at);
                        proven_at = sent_at;
                        known_at = known_at.map(|_| sent_at);
                    }
                    Event::Failed => if let Some(sent_at) = asked_at.take() {
                        heartbeat.failed(now);
                        paused_until = sent_at + RETRY_PAUSE;
                    }
                    Event::Ask => {}
                    Event::Hurry => heartbeat.renew_now(now),
                    Event::Watch(watch) => {
                        heartbeat.watch(now, watch);
                        known_at = match watch {
                            Watch::Open => None,
                            Watch::Reopening => known_at.or(Some(now)),
                            Watch::Broken => Some(proven_at),
                        };
                    }
                }
                if let (Some(known_at), Some(due_at)) = (known_at, heartbeat.due_at()) {
                    // Not before the last answer or its timeout.
                    prop_assert!(due_at <= paused_until.max(known_at + NOTICE / 2).max(now));
                }
            }
        }
    }
}
