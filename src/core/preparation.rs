//! The leases and keys that have to be in etcd before a command may start, and their greatest age when it starts.
//! It must not know how it is asked for.

use std::time::Duration;

use super::lease::{Instant, LeaseId, Terms};

/// A lease counts from its grant, and the times of `--once-per` and `--min-hold` from the start of the command: so much
/// of them may be lost in between. etcd counts in whole seconds.
const YOUNG: Duration = Duration::from_secs(1);

/// After so many attempts etcd is too far away for that.
const TRIES: u32 = 3;

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
    pub fn is_young(self, now: Instant, terms: Terms, tries: u32) -> bool {
        // A proof takes two round trips and counts for one heartbeat, the preparations take three: in three heartbeats both
        // are done, however slow an etcd is that proves a lock at all.
        let limit = if tries < TRIES {
            YOUNG
        } else {
            (terms.heartbeat() * 3).max(YOUNG)
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
    pub fn stands(self, now: Instant, terms: Terms, tries: u32) -> bool {
        self.made && self.grant.is_young(now, terms, tries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::at;
    use super::*;

    const LEASE: LeaseId = LeaseId(7);

    fn terms() -> Terms {
        Terms::new(Duration::from_secs(10), Duration::from_secs(2))
    }

    #[test]
    fn a_grant_counts_for_a_moment() {
        let grant = Grant {
            lease: LEASE,
            sent_at: at(5.0),
        };
        assert!(grant.is_young(at(5.9), terms(), 0));
        assert!(!grant.is_young(at(6.0), terms(), 2));
    }

    #[test]
    fn a_far_etcd_keeps_nobody_from_starting() {
        let grant = Grant {
            lease: LEASE,
            sent_at: at(5.0),
        };
        assert!(grant.is_young(at(10.9), terms(), 3));
        assert!(!grant.is_young(at(11.1), terms(), 3));
        let short = Terms::new(Duration::from_secs(1), Duration::ZERO);
        assert!(grant.is_young(at(5.9), short, 3));
    }

    #[test]
    fn a_mark_that_was_only_tried_does_not_count() {
        let grant = Grant {
            lease: LEASE,
            sent_at: at(5.0),
        };
        let mark = |made| Mark { grant, made };
        assert!(mark(true).stands(at(5.5), terms(), 0));
        assert!(!mark(false).stands(at(5.5), terms(), 0));
        assert!(!mark(true).stands(at(8.0), terms(), 0));
    }
}
