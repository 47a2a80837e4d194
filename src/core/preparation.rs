//! The leases and keys that have to be in etcd before a command may start, and their greatest age when it starts.
//! It must not know how it is asked for.

use std::time::Duration;

use super::proof::LeaseId;
use super::time::{Instant, LeaseTimings};

/// A lease counts from its grant, and the times of `--once-per` and `--min-hold` from the start of the command: so much
/// of them may be lost in between. etcd counts in whole seconds.
const MAX_AGE: Duration = Duration::from_secs(1);

/// After so many attempts etcd is too far away for that.
const MAX_TRIES: u32 = 3;

/// A lease that nobody renews, and that counts from the start of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub lease: LeaseId,
    /// The moment before the request left.
    pub sent_at: Instant,
}

impl Grant {
    /// Whether a command that starts now may count on the lease: neither a stall nor an outage has passed since the grant.
    /// `tries` is how often all has been made before.
    pub fn is_young(self, now: Instant, timings: LeaseTimings, tries: u32) -> bool {
        // A proof takes two round trips and counts for one heartbeat, the preparations take three: in three heartbeats both
        // are done, however slow an etcd is that proves a lock at all.
        let limit = if tries < MAX_TRIES {
            MAX_AGE
        } else {
            (timings.renew_interval() * 3).max(MAX_AGE)
        };
        now.since(self.sent_at) < limit
    }
}

/// The mark of a run, and the lease that it stands under or is to stand under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub grant: Grant,
    /// etcd has said that the mark is there. An attempt to make it says nothing.
    pub made: bool,
}

impl Mark {
    /// Whether a command may start under it.
    pub fn is_still_young(self, now: Instant, timings: LeaseTimings, tries: u32) -> bool {
        self.made && self.grant.is_young(now, timings, tries)
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
    fn a_far_etcd_keeps_nobody_from_starting() {
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
    fn a_mark_that_was_only_tried_does_not_count() {
        let grant = Grant {
            lease: LEASE,
            sent_at: at(5.0),
        };
        let mark = |made| Mark { grant, made };
        assert!(mark(true).is_still_young(at(5.5), timings(), 0));
        assert!(!mark(false).is_still_young(at(5.5), timings(), 0));
        assert!(!mark(true).is_still_young(at(8.0), timings(), 0));
    }
}
