//! One lock that we hold: until when it is proven to be ours, and when its next renewal is due.
//! It must not know the other locks of a run, the guard, nor how a renewal is sent.

use super::heartbeat::{Heartbeat, Watch};
use super::proof::{Inconclusive, LossReason, Ownership, Renewal, Verdict};
use super::time::{Deadlines, Instant, LeaseTimings};

/// The position of a lock among those of its run, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockIndex(pub usize);

/// An event of one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockEvent {
    /// A renewal was answered.
    Renewed(Renewal),
    /// A renewal was refused or not answered in time.
    RenewalFailed,
    /// A check showed that the lock, which does not expire, is still held.
    StillHeld,
    /// A watch reported that our key was deleted or replaced.
    Lost(LossReason),
    /// The watch on our key was opened, or is closed.
    Watch(Watch),
}

/// The conclusion from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The deadlines have moved.
    Proven,
    /// A renewal was answered but does not count.
    Inconclusive(Inconclusive),
    /// The lock is lost for ever.
    Lost(LossReason),
}

/// A lock that we hold. Its deadlines move only by a proof, and only to the result of [`LeaseTimings::deadlines`] for the
/// time of its sending.
#[derive(Clone, Debug)]
pub struct ProvenLock {
    timings: LeaseTimings,
    /// The entry and cluster that a renewal must match, if there is a lease.
    ownership: Option<Ownership>,
    deadlines: Deadlines,
    /// The send time of the last proof.
    proven_at: Instant,
    heartbeat: Heartbeat,
}

impl ProvenLock {
    /// The lock of `ownership`, by the proof sent at `proven_at`. `heartbeat` is that of the wait until now: it knows
    /// whether the watch is open.
    pub fn new(
        timings: LeaseTimings,
        ownership: Ownership,
        proven_at: Instant,
        heartbeat: Heartbeat,
    ) -> Self {
        Self {
            timings,
            ownership: Some(ownership),
            deadlines: timings.deadlines(proven_at),
            proven_at,
            heartbeat,
        }
    }

    /// The same for a lock that does not expire, acquired at `won_at`. The TTL of `timings` only sets the interval of the
    /// checks of the lock and of the guard.
    pub fn without_lease(timings: LeaseTimings, won_at: Instant, seed: u64) -> Self {
        Self {
            timings,
            ownership: None,
            deadlines: Deadlines::NEVER,
            proven_at: won_at,
            heartbeat: Heartbeat::new(timings, won_at, seed),
        }
    }

    /// The durations of the lease.
    pub const fn timings(&self) -> LeaseTimings {
        self.timings
    }

    /// The deadlines in force.
    pub const fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// The send time of the last proof.
    pub const fn proven_at(&self) -> Instant {
        self.proven_at
    }

    /// Whether a command may start by the last proof.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.ownership.is_none() || now.since(self.proven_at) < self.timings.renew_interval()
    }

    /// The loss, if the time of the last proof is over.
    pub fn overdue(&self, now: Instant) -> Option<LossReason> {
        (self.deadlines.kill_at <= now).then_some(LossReason::Unproven)
    }

    /// The time of the next renewal, if one is due.
    pub fn due_at(&self) -> Option<Instant> {
        self.heartbeat.due_at()
    }

    /// Makes the next renewal due now, or after the pause that follows a failure.
    pub fn renew_now(&mut self, now: Instant) {
        self.heartbeat.renew_now(now);
    }

    /// Whether to send a renewal now; if so, its answer is pending from then on.
    pub fn start_renewal(&mut self, now: Instant) -> bool {
        self.heartbeat.start_renewal(now)
    }

    /// Notes an event, and returns the conclusion, if there is one.
    pub fn on_event(&mut self, now: Instant, event: &LockEvent) -> Option<Finding> {
        match event {
            LockEvent::Renewed(renewal) => return self.on_renewal(now, renewal),
            LockEvent::RenewalFailed => self.heartbeat.failed(now),
            LockEvent::StillHeld => self.heartbeat.proven(now),
            LockEvent::Lost(loss) => return Some(Finding::Lost(*loss)),
            LockEvent::Watch(watch) => self.heartbeat.watch(now, *watch),
        }
        None
    }

    fn on_renewal(&mut self, now: Instant, renewal: &Renewal) -> Option<Finding> {
        match self.ownership.as_mut()?.verify(renewal) {
            Verdict::Proven(ttl) => {
                self.heartbeat.proven(renewal.sent_at);
                let proven = self.timings.granted(ttl).deadlines(renewal.sent_at);
                if proven.kill_at <= self.deadlines.kill_at {
                    return None;
                }
                self.deadlines = proven;
                self.proven_at = renewal.sent_at;
                Some(Finding::Proven)
            }
            Verdict::Inconclusive(doubt) => {
                self.heartbeat.failed(now);
                Some(Finding::Inconclusive(doubt))
            }
            Verdict::Lost(loss) => Some(Finding::Lost(loss)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::proof::tests::{ownership, renewal};
    use super::super::time::tests::at;
    use super::*;

    /// TTL 10 s, grace 2 s: no command may run from 8.5 s on.
    fn timings() -> LeaseTimings {
        LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2))
    }

    fn lock() -> ProvenLock {
        let heartbeat = Heartbeat::new(timings(), at(0.0), 1);
        ProvenLock::new(timings(), ownership(), at(0.0), heartbeat)
    }

    #[test]
    fn a_command_may_start_within_a_fifth_of_the_ttl_after_the_last_proof() {
        let mut lock = lock();
        assert!(lock.is_fresh(at(1.9)));
        assert!(!lock.is_fresh(at(2.0)));
        lock.renew_now(at(2.0));
        assert!(lock.start_renewal(at(2.0)));
        let proof = LockEvent::Renewed(renewal(at(2.0)));
        assert_eq!(lock.on_event(at(3.5), &proof), Some(Finding::Proven));
        assert!(lock.is_fresh(at(3.9)), "from its sending on");
        assert!(!lock.is_fresh(at(4.0)));
        let local = ProvenLock::without_lease(timings(), at(0.0), 1);
        assert!(local.is_fresh(at(9999.0)));
    }

    #[test]
    fn a_lock_is_ours_until_no_command_may_run_any_more() {
        let mut lock = lock();
        assert_eq!(lock.overdue(at(8.4)), None);
        assert_eq!(lock.overdue(at(8.5)), Some(LossReason::Unproven));
        let proof = LockEvent::Renewed(renewal(at(2.0)));
        lock.on_event(at(2.1), &proof);
        assert_eq!(lock.overdue(at(10.4)), None);
        assert_eq!(lock.overdue(at(10.5)), Some(LossReason::Unproven));
        let local = ProvenLock::without_lease(timings(), at(0.0), 1);
        assert_eq!(local.overdue(at(9999.0)), None);
    }
}
