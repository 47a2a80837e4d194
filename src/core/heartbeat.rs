//! When the next renewal is due, whoever needs it: a holder or a waiter.
//! It must not know what a renewal proves, nor how it is sent.

use std::time::Duration;

use super::lease::{Instant, Terms};

/// A renewal that failed at once is not tried again before this, so that a dead etcd is not stormed.
const PAUSE: Duration = Duration::from_millis(250);

/// The rhythm of renewals: one in five of the TTL, one at a time, and a failed one again at once.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    period: Duration,
    due_at: Instant,
    asked_at: Option<Instant>,
    /// State of a small generator (`SplitMix64`); it spreads the load of many clients, no more.
    noise: u64,
}

impl Heartbeat {
    /// The first renewal is due one period after `proven_at`; `seed` makes hosts differ.
    pub fn new(terms: Terms, proven_at: Instant, seed: u64) -> Self {
        let mut heartbeat = Self {
            period: terms.heartbeat(),
            due_at: proven_at,
            asked_at: None,
            noise: seed,
        };
        heartbeat.due_at = proven_at + heartbeat.jittered();
        heartbeat
    }

    /// The period ± 10 %.
    fn jittered(&mut self) -> Duration {
        self.noise = self.noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.noise;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = u32::try_from((bits ^ (bits >> 31)) % 201).unwrap_or(100);
        self.period * (900 + share) / 1000
    }

    /// When to look again, unless an answer is awaited.
    pub fn due_at(&self) -> Option<Instant> {
        self.asked_at.is_none().then_some(self.due_at)
    }

    /// Whether to send a renewal now; the answer is awaited from then on.
    pub fn ask(&mut self, now: Instant) -> bool {
        let ask = self.asked_at.is_none() && self.due_at <= now;
        if ask {
            self.asked_at = Some(now);
        }
        ask
    }

    /// A renewal sent at `sent_at` was proven.
    pub fn proven(&mut self, sent_at: Instant) {
        self.asked_at = None;
        self.due_at = sent_at + self.jittered();
    }

    /// A renewal failed or proved nothing.
    pub fn failed(&mut self, now: Instant) {
        let asked_at = self.asked_at.take().unwrap_or(now);
        self.due_at = now.max(asked_at + PAUSE);
    }

    /// The next renewal is due now.
    pub fn hurry(&mut self, now: Instant) {
        self.due_at = self.due_at.min(now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::at;
    use super::*;

    fn heartbeat() -> Heartbeat {
        let terms = Terms::new(Duration::from_secs(10), Duration::from_secs(2));
        Heartbeat::new(terms, at(0.0), 1)
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
        assert!(!heartbeat.ask(at(1.0)));
        assert!(heartbeat.ask(at(3.0)));
        assert!(!heartbeat.ask(at(9.0)));
        assert_eq!(heartbeat.due_at(), None);
    }

    #[test]
    fn a_slow_failure_is_tried_again_at_once_and_a_quick_one_after_a_pause() {
        let mut heartbeat = heartbeat();
        assert!(heartbeat.ask(at(3.0)));
        heartbeat.failed(at(4.25));
        assert!(heartbeat.ask(at(4.25)));
        heartbeat.failed(at(4.26));
        assert!(!heartbeat.ask(at(4.26)));
        assert!(heartbeat.ask(at(4.5)));
    }
}
