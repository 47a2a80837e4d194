//! Attempts to enter a queue that were given up without an answer, and what keeps them from taking a place later.
//! It must not know how leases are revoked or keys written.
//!
//! An attempt grants a lease with an id of its own and puts a key under it, in two requests of which the second does not
//! wait for the first one's answer. If no answer comes, another attempt is made elsewhere, and the first two requests may
//! lie in a socket, or between a member and its leader, for any time. When etcd carries them out after all, the queue has
//! a key that nobody uses, and that blocks the lock until its lease ends. Revoking the lease prevents that only if etcd
//! knows the lease: "lease not found" may mean "not yet".
//!
//! etcd carries out requests in one order, that of its raft log. In that order:
//!
//! 1. The key is put only while the lease exists, and the lease is granted by one request only, which is never repeated.
//!    So after a revoke that has ended the lease, and after one that has not found it once the grant was answered, the key
//!    cannot be put any more.
//! 2. The put compares that the *bar* of the lease, a key beside the queue, does not exist. So it fails after the bar. The
//!    bar is put under the key of the lease's release record: that needs no further permission.
//! 3. A revoke after the bar ends the lease, and with it a key that was put before the bar, if there is one. If it does not
//!    find the lease, the grant comes later and the put with it, after the bar.
//!
//! 4. A member that has no leader, or that applies too slowly, refuses a grant before it passes it on (`newUnaryInterceptor` and
//!    `processInternalRaftRequestOnce` in etcd). Such an attempt never was: there is nothing to revoke, nor to bar. In an outage
//!    there may be thousands.
//!
//! Hence: revoke; if the lease is not found although its grant is open, bar it and revoke again. A grant that comes after
//! that leaves a lease without a key, which is in nobody's way. The bar has a lease that nobody renews, much longer than
//! any network keeps a request. Nothing of this is needed by an attempt that is answered.

use std::time::Duration;

/// How long the bar of an attempt stays. A kernel gives a connection up after a quarter of an hour without an answer (15
/// retries, tcp(7)), and etcd its own requests after some seconds.
pub const BAR_TTL: Duration = Duration::from_hours(1);

/// Whether etcd may still carry out the grant of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attempt {
    /// At any moment: there is no answer.
    #[default]
    Open,
    /// It may, but its key cannot be put any more.
    Barred,
    /// No: it was answered.
    Answered,
    /// No, and it never did: a member refused the grant before the cluster knew of it.
    Refused,
}

/// The next step to make an abandoned attempt harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRevoke {
    /// Put its bar, then revoke its lease again.
    Bar,
    /// Nothing: its key is not there and will not be.
    Done,
}

impl Attempt {
    /// The step that follows from the answer to a revoke of its lease. The attempt has to be as it was when the revoke was *sent*.
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

    /// Goes on in every order in which etcd may carry out the late requests and ours, and gives the number of ends.
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
            // An answer may be lost as well: then the same is done once more.
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
