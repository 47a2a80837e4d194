//! The leases and keys that must exist in etcd before a command may start, and their maximum age at its start.
//! It must not know how they are requested.

use std::time::Duration;

use super::proof::LeaseId;
use super::time::{Instant, LeaseTimings};

/// Maximum age. A lease counts from its grant, and the times of `--once-per` and `--min-hold` from the start of the
/// command: this much of them may be lost in between. etcd counts in whole seconds.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Number of attempts after which etcd is too slow for that age.
const MAX_TRIES: u32 = 3;

/// A lease that nobody renews, and that counts from the start of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub lease: LeaseId,
    /// The time before the request was sent.
    pub sent_at: Instant,
}

impl Grant {
    /// Whether a command that starts now may count on the lease: neither a stall nor an outage has passed since the
    /// grant. `tries` is the number of earlier preparations.
    pub fn is_young(self, now: Instant, timings: LeaseTimings, tries: u32) -> bool {
        // A proof takes two round trips and counts for one renewal interval, the preparations take three: three intervals
        // are enough for both with any etcd that is fast enough to prove a lock.
        let limit = if tries < MAX_TRIES {
            MAX_AGE
        } else {
            (timings.renew_interval() * 3).max(MAX_AGE)
        };
        now.since(self.sent_at) < limit
    }
}

/// The mark of a run, and its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub grant: Grant,
    /// Whether etcd has answered that the mark is there. An attempt to make it proves nothing.
    confirmed: bool,
}

impl Mark {
    /// The mark that is about to be requested under this lease.
    pub fn requested(grant: Grant) -> Self {
        let confirmed = false;
        Self { grant, confirmed }
    }

    /// The mark of which etcd has answered that it is there.
    pub fn confirmed(grant: Grant) -> Self {
        let confirmed = true;
        Self { grant, confirmed }
    }

    /// Whether a command may start under it.
    pub fn is_still_young(self, now: Instant, timings: LeaseTimings, tries: u32) -> bool {
        self.confirmed && self.grant.is_young(now, timings, tries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::tests::at;
    use super::*;

    const LEASE: LeaseId = LeaseId(7);

    fn timings() -> LeaseTimings {
        LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2))
    }

    #[test]
    fn a_grant_counts_for_a_moment() {
        let grant = Grant {
            lease: LEASE,
            sent_at: at(5.0),
        };
        assert!(grant.is_young(at(5.9), timings(), 0));
        assert!(!grant.is_young(at(6.0), timings(), 2));
    }

    #[test]
    fn a_far_etcd_prevents_no_start() {
        let grant = Grant {
            lease: LEASE,
            sent_at: at(5.0),
        };
        assert!(grant.is_young(at(10.9), timings(), 3));
        assert!(!grant.is_young(at(11.1), timings(), 3));
        let short = LeaseTimings::new(Duration::from_secs(1), Duration::ZERO);
        assert!(grant.is_young(at(5.9), short, 3));
    }

    #[test]
    fn a_mark_counts_only_once_etcd_has_confirmed_it() {
        let grant = Grant {
            lease: LEASE,
            sent_at: at(5.0),
        };
        let (requested, confirmed) = (Mark::requested(grant), Mark::confirmed(grant));
        assert!(confirmed.is_still_young(at(5.5), timings(), 0));
        assert!(!requested.is_still_young(at(5.5), timings(), 0));
        assert!(!confirmed.is_still_young(at(8.0), timings(), 0));
    }
}
