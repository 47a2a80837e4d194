//! The turn of a waiter that cannot prove its lease: when it gives up its entry, which blocks every other client.
//! It must not know how etcd is asked.

use std::time::Duration;

use super::time::Instant;

/// A waiter that has no other entry before its own, and that has not started its command.
///
/// An attempt at a renewal may renew the lease without proving it (behind a proxy that answers keepalives by itself), so the
/// entry would stay for ever. An outage is no reason to give it up: once etcd answers again, there is time for a proof. So
/// the entry is read again and again, and only an unbroken series of answers counts.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    ttl: Duration,
    /// The begin of the turn, or the last proof if that was later.
    unproven_since_at: Instant,
    series: Option<Series>,
    check_at: Instant,
}

/// An unbroken series of reads that have shown our entry.
#[derive(Clone, Copy, Debug)]
struct Series {
    first_at: Instant,
    last_at: Instant,
}

impl Turn {
    pub fn new(now: Instant, ttl: Duration) -> Self {
        Self {
            ttl,
            unproven_since_at: now,
            series: None,
            check_at: now + ttl / 10,
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
        // A longer gap may hide an outage, or a stall of ours. A read may take an eighth of a TTL.
        let max_gap = self.ttl / 4;
        let unbroken = self
            .series
            .filter(|series| now.since(series.last_at) <= max_gap);
        let first_at = unbroken.map_or(now, |series| series.first_at);
        self.series = Some(Series {
            first_at,
            last_at: now,
        });
        let give_up_at = (self.unproven_since_at + self.ttl).max(first_at + self.ttl / 2);
        self.check_at = give_up_at.min(now + self.read_interval());
        give_up_at <= now
    }

    /// A read failed.
    pub fn read_failed(&mut self, now: Instant) {
        self.series = None;
        self.check_at = now + self.read_interval();
    }

    fn read_interval(&self) -> Duration {
        self.ttl / 10
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::tests::at;
    use super::*;

    fn turn() -> Turn {
        Turn::new(at(100.0), Duration::from_secs(10))
    }

    /// Reads that show our entry, one each second: whether the last one gives it up.
    fn seen(turn: &mut Turn, seconds: std::ops::RangeInclusive<u32>) -> bool {
        let last = *seconds.end();
        seconds.fold(false, |_, second| {
            let gives_up = turn.entry_seen(at(second.into()));
            assert!(!gives_up || second == last, "too early: {second}");
            gives_up
        })
    }

    #[test]
    fn an_entry_is_given_up_when_etcd_answers_and_nothing_is_proven_for_one_ttl() {
        let mut turn = turn();
        assert_eq!(turn.check_at(), at(101.0));
        assert!(!seen(&mut turn, 101..=109));
        assert_eq!(turn.check_at(), at(110.0));
        assert!(!turn.entry_seen(at(109.9)));
        assert_eq!(turn.check_at(), at(110.0));
        assert!(turn.entry_seen(at(110.0)));
    }

    #[test]
    fn an_outage_is_no_reason_to_give_an_entry_up() {
        let mut turn = turn();
        assert!(!turn.entry_seen(at(105.0)));
        turn.read_failed(at(110.0));
        assert_eq!(turn.check_at(), at(111.0));
        turn.read_failed(at(200.0));
        // Once etcd is back, there is time for a proof, also after a short outage.
        assert!(!seen(&mut turn, 300..=303));
        turn.read_failed(at(304.0));
        assert!(!seen(&mut turn, 305..=309));
        assert_eq!(turn.check_at(), at(310.0));
        assert!(turn.entry_seen(at(310.0)));
    }

    #[test]
    fn only_an_unbroken_series_of_answers_counts() {
        let mut turn = turn();
        assert!(!seen(&mut turn, 105..=107));
        // The outage, or the stall, in between was not noticed.
        assert!(!seen(&mut turn, 120..=124));
        assert!(turn.entry_seen(at(125.0)));
    }

    #[test]
    fn a_proof_begins_the_time_anew() {
        let mut turn = turn();
        assert!(!turn.entry_seen(at(105.0)));
        turn.proven(at(107.0));
        assert!(!seen(&mut turn, 112..=116));
        assert!(turn.entry_seen(at(117.0)));
        // A proof from before the turn says nothing about it.
        let mut turn = self::turn();
        turn.proven(at(90.0));
        assert_eq!(turn.unproven_for(at(101.0)), Duration::from_secs(1));
    }
}
