//! Abandoned attempts to join a queue, and how to prevent that they create an entry later.
//! It must not know how leases are revoked or keys written.
//!
//! An attempt grants a lease with an id that dlock chose and puts a key under it, in two requests; the second does not
//! wait for the answer to the first. If no answer comes, dlock makes another attempt through another endpoint, and the
//! first two requests may stay in a socket, or between a member and its leader, for any time. If etcd executes them after
//! all, the queue has a key that nobody uses, which blocks the lock until its lease expires. Revoking the lease prevents
//! that only if etcd knows the lease: "lease not found" may mean "not yet".
//!
//! etcd executes requests in one order, that of its raft log. In that order:
//!
//! 1. The key is put only while the lease exists, and only one request, which is never repeated, grants the lease. So the
//!    key can no longer be put after a revoke that ended the lease, nor after one that did not find it once the grant was
//!    answered.
//! 2. The put requires that the *bar* of the lease, a key beside the queue, does not exist, so it fails after the bar.
//!    The bar has the key of the lease's release record: it needs no further permission.
//! 3. A revoke after the bar ends the lease, and with it a key that was put before the bar. If it does not find the
//!    lease, the grant comes later and the put with it, after the bar.
//!
//! 4. A member that has no leader, or that applies too slowly, refuses a grant before it forwards it
//!    (`newUnaryInterceptor` and `processInternalRaftRequestOnce` in etcd). Such an attempt needs neither a revoke nor a
//!    bar. In an outage there may be thousands.
//!
//! Hence: revoke; if the lease is not found while its grant is unanswered, put the bar and revoke again. A grant that
//! comes after that leaves a lease without a key, which blocks nothing. The bar has a lease that nobody renews, much
//! longer than any network keeps a request. An attempt that is answered needs none of this.

use std::time::Duration;

/// TTL of a bar. A kernel closes a connection after a quarter of an hour without an answer (15 retries, tcp(7)), and etcd
/// drops its own requests after some seconds.
pub const BAR_TTL: Duration = Duration::from_hours(1);

/// Whether etcd may still execute the grant of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attempt {
    /// It may, at any time: there is no answer.
    #[default]
    Open,
    /// It may, but the key can no longer be put.
    Barred,
    /// It cannot: the grant was answered.
    Answered,
    /// It cannot: a member refused the grant before the cluster saw it.
    Refused,
}

/// The next step to make an abandoned attempt harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRevoke {
    /// Put its bar, then revoke its lease again.
    Bar,
    /// Nothing: its key does not exist and cannot be put.
    Done,
}

impl Attempt {
    /// The step after the answer to a revoke of its lease. `self` is the state at the time when the revoke was *sent*.
    pub fn after_revoke(self, found: bool) -> AfterRevoke {
        match self {
            Self::Open if !found => AfterRevoke::Bar,
            Self::Open | Self::Barred | Self::Answered | Self::Refused => AfterRevoke::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state of one attempt in etcd.
    #[derive(Clone, Copy, Debug, Default)]
    struct Etcd {
        lease: bool,
        key: bool,
        bar: bool,
    }

    impl Etcd {
        fn grant(&mut self) {
            self.lease = true;
        }

        fn put(&mut self) {
            self.key |= self.lease && !self.bar;
        }

        fn revoke(&mut self) -> bool {
            self.key = false;
            std::mem::take(&mut self.lease)
        }
    }

    /// Explores every order in which etcd may execute the late requests and the cleanup, and returns the number of final
    /// states.
    fn explore(
        etcd: Etcd,
        late: &[fn(&mut Etcd)],
        attempt: Attempt,
        next: Option<AfterRevoke>,
    ) -> usize {
        let mut ends = 0;
        for (index, request) in late.iter().enumerate() {
            let mut etcd = etcd;
            request(&mut etcd);
            let mut rest = late.to_vec();
            rest.remove(index);
            ends += explore(etcd, &rest, attempt, next);
        }
        let mut after = etcd;
        match next {
            // An answer may be lost as well: then the step is repeated.
            None => {
                let found = after.revoke();
                ends += explore(after, late, attempt, Some(attempt.after_revoke(found)));
                if found {
                    ends += explore(after, late, attempt, None);
                }
            }
            Some(AfterRevoke::Bar) => {
                after.bar = true;
                ends += explore(after, late, Attempt::Barred, None);
            }
            Some(AfterRevoke::Done) if late.is_empty() => {
                assert!(!etcd.key, "a key that nobody uses: {etcd:?}");
                ends += 1;
            }
            Some(AfterRevoke::Done) => {}
        }
        ends
    }

    #[test]
    fn an_attempt_that_was_given_up_leaves_no_key_in_any_order() {
        let late: [fn(&mut Etcd); 2] = [Etcd::grant, Etcd::put];
        assert!(explore(Etcd::default(), &late, Attempt::Open, None) > 20);
    }

    #[test]
    fn an_attempt_whose_grant_was_answered_needs_one_revoke() {
        let granted = Etcd {
            lease: true,
            ..Etcd::default()
        };
        for etcd in [granted, Etcd::default()] {
            assert!(explore(etcd, &[Etcd::put], Attempt::Answered, None) > 1);
        }
        assert_eq!(Attempt::Answered.after_revoke(false), AfterRevoke::Done);
    }

    #[test]
    #[should_panic(expected = "a key that nobody uses")]
    fn without_the_bar_a_key_may_come_later() {
        let late: [fn(&mut Etcd); 2] = [Etcd::grant, Etcd::put];
        explore(Etcd::default(), &late, Attempt::Answered, None);
    }
}
