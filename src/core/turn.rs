//! The turn of a waiter that cannot prove its lease: when it gives up its entry, which blocks every other client.
//! It must not know how etcd is asked.

use std::time::Duration;

use super::time::Instant;

/// A waiter that has no other entry before its own, and that has not started its command.
///
/// An attempt at a renewal may renew the lease without proving it (behind a proxy that answers keepalives by itself), so the
/// entry would stay for ever. An outage is no reason to give it up: while etcd is silent, no other client gets the lock.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    ttl: Duration,
    /// The begin of the turn, or the last proof if that was later.
    unproven_since_at: Instant,
    /// When etcd first showed our entry since then, without a failed read in between.
    entry_seen_at: Option<Instant>,
    check_at: Instant,
}

impl Turn {
    pub fn new(now: Instant, ttl: Duration) -> Self {
        Self {
            ttl,
            unproven_since_at: now,
            entry_seen_at: None,
            check_at: now + ttl / 2,
        }
    }

    /// A renewal sent at `sent_at` was proven.
    pub fn proven(&mut self, sent_at: Instant) {
        *self = Self::new(self.unproven_since_at.max(sent_at), self.ttl);
    }

    /// The time at which the entry is to be read.
    pub fn check_at(&self) -> Instant {
        self.check_at
    }

    /// The time since the last proof, or since the begin of the turn.
    pub fn unproven_for(&self, now: Instant) -> Duration {
        now.since(self.unproven_since_at)
    }

    /// A read has shown our entry. Whether to give it up: etcd has answered for half a TTL, and in a whole one nothing was
    /// proven.
    pub fn entry_seen(&mut self, now: Instant) -> bool {
        let seen_at = *self.entry_seen_at.get_or_insert(now);
        let half = self.ttl / 2;
        let give_up_at = (self.unproven_since_at + self.ttl).max(seen_at + half);
        self.check_at = give_up_at.max(now);
        now >= give_up_at
    }

    /// A read failed.
    pub fn read_failed(&mut self, now: Instant) {
        self.entry_seen_at = None;
        self.check_at = now + self.ttl / 10;
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::tests::at;
    use super::*;

    fn turn() -> Turn {
        Turn::new(at(100.0), Duration::from_secs(10))
    }

    #[test]
    fn an_entry_is_given_up_when_etcd_answers_and_nothing_is_proven_for_one_ttl() {
        let mut turn = turn();
        assert_eq!(turn.check_at(), at(105.0));
        assert!(!turn.entry_seen(at(105.0)));
        assert_eq!(turn.check_at(), at(110.0));
        assert!(!turn.entry_seen(at(109.9)));
        assert!(turn.entry_seen(at(110.0)));
    }

    #[test]
    fn an_outage_is_no_reason_to_give_an_entry_up() {
        let mut turn = turn();
        assert!(!turn.entry_seen(at(105.0)));
        turn.read_failed(at(110.0));
        assert_eq!(turn.check_at(), at(111.0));
        turn.read_failed(at(200.0));
        // Once etcd is back, there is time for a proof.
        assert!(!turn.entry_seen(at(300.0)));
        assert_eq!(turn.check_at(), at(305.0));
        assert!(!turn.entry_seen(at(304.9)));
        assert!(turn.entry_seen(at(305.0)));
    }

    #[test]
    fn a_proof_begins_the_time_anew() {
        let mut turn = turn();
        assert!(!turn.entry_seen(at(105.0)));
        turn.proven(at(107.0));
        assert!(!turn.entry_seen(at(112.0)));
        assert!(!turn.entry_seen(at(116.9)));
        assert!(turn.entry_seen(at(117.0)));
        // A proof from before the turn says nothing about it.
        let mut turn = self::turn();
        turn.proven(at(90.0));
        assert_eq!(turn.unproven_for(at(101.0)), Duration::from_secs(1));
    }
}
