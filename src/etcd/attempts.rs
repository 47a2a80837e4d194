//! The attempts whose end etcd has not confirmed: their leases are kept until nothing can be put under them any more.
//! It must not know what an attempt was made for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{PutOptions, Txn, TxnOp};

use super::connection::Connection;
use super::error::{ErrorKind, LockError, attempt_after};
use super::random_lease;
use super::requests::Requests;
use crate::core::abandoned::{AfterRevoke, Attempt, BAR_TTL};
use crate::core::preparation::Grant;
use crate::core::proof::LeaseId;
use crate::sys::clock;

/// Bars per request: etcd allows 128 operations.
const MAX_BARS: usize = 100;

/// The leases to revoke, each with the state of its attempt. Each may have an unused entry.
pub(super) struct Attempts {
    requests: Rc<Requests>,
    leases: RefCell<Vec<(LeaseId, Attempt)>>,
}

impl Attempts {
    pub(super) fn new(requests: Rc<Requests>) -> Self {
        Self {
            requests,
            leases: RefCell::default(),
        }
    }

    pub(super) fn leases(&self) -> Vec<LeaseId> {
        let leases = self.leases.borrow();
        leases.iter().map(|(lease, _)| *lease).collect()
    }

    /// Begins an attempt to enter the queue. It gets a new lease id, as the outcome of an unanswered one is unknown.
    pub(super) fn begin(&self) -> Result<LeaseId, LockError> {
        let lease = random_lease()?;
        self.leases.borrow_mut().push((lease, Attempt::Open));
        Ok(lease)
    }

    /// Notes what the answer to its grant says of an attempt.
    pub(super) fn update(&self, lease: LeaseId, attempt: Attempt) {
        if attempt == Attempt::Refused {
            return self.forget(lease);
        }
        for (id, known) in self.leases.borrow_mut().iter_mut() {
            if *id == lease {
                *known = attempt;
            }
        }
    }

    /// Keeps a lease to be revoked with the others. Its grant was answered, or no key is put before that.
    pub(super) fn abandon(&self, lease: Option<LeaseId>) {
        let answered = lease.map(|lease| (lease, Attempt::Answered));
        self.leases.borrow_mut().extend(answered);
    }

    /// Drops an attempt from the list: its lease is in use, is not ours, or was never granted.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.leases.borrow_mut().retain(|(id, _)| *id != lease);
    }

    /// Grants a lease that is never renewed. Leases of attempts without an answer are revoked later.
    pub(super) async fn grant(&self, ttl: Duration, limit: Duration) -> Result<Grant, LockError> {
        let granted = self.requests.call(limit, async |etcd| {
            let lease = random_lease()?;
            self.abandon(Some(lease));
            let sent_at = clock::now();
            let granted = self.requests.grant(etcd, lease, ttl).await;
            let exists = matches!(&granted, Err(error) if error.kind == ErrorKind::LeaseExists);
            if exists || attempt_after(&granted) == Attempt::Refused {
                // It belongs to another client, or was never granted.
                self.forget(lease);
            }
            granted.map(|()| Grant { lease, sent_at })
        });
        let grant = granted.await?;
        self.forget(grant.lease);
        Ok(grant)
    }

    /// Revokes the newest leases first from now on: the older ones mostly have no keys.
    pub(super) fn newest_first(&self) {
        self.leases.borrow_mut().reverse();
    }

    /// Revokes all leases, so that their attempts leave nothing behind, neither now nor later: see
    /// [`core::abandoned`](crate::core::abandoned). Those that etcd does not confirm stay for the next call. The result
    /// says whether there were any.
    pub(super) async fn revoke_all(&self, limit: Duration) -> bool {
        let until = clock::now() + limit;
        let rest = || until.since(clock::now());
        let leases = self.leases();
        if leases.is_empty() {
            return false;
        }
        let to_bar = self.revoke(&leases, rest()).await;
        if to_bar.is_empty() {
            return true;
        }
        let barring = async |etcd| self.bar(etcd, &to_bar).await;
        match self.requests.call(rest(), barring).await {
            Ok(()) => {
                for lease in &to_bar {
                    self.update(*lease, Attempt::Barred);
                }
                self.revoke(&to_bar, rest()).await;
            }
            Err(error) => tracing::debug!("late requests cannot be barred: {error}"),
        }
        true
    }

    /// Revokes leases once, and drops those under which nothing can be put any more. Returns those to bar.
    async fn revoke(&self, leases: &[LeaseId], limit: Duration) -> Vec<LeaseId> {
        // Whether etcd has found each of those that are gone.
        let gone = RefCell::new(BTreeMap::new());
        let revoking = async |etcd: Connection| {
            for lease in leases {
                let known = gone.borrow().contains_key(lease);
                if known {
                    continue;
                }
                let revoked = etcd.leases().revoke(lease.0).await;
                match revoked.map_err(LockError::from) {
                    Err(error) if error.kind == ErrorKind::Retryable => return Err(error),
                    Err(error) if error.kind == ErrorKind::AuthExpired => return Err(error),
                    revoked => {
                        let found = !matches!(&revoked, Err(error) if error.kind == ErrorKind::LeaseNotFound);
                        gone.borrow_mut().entry(*lease).or_insert(found);
                    }
                }
            }
            Ok(())
        };
        if let Err(error) = self.requests.call(limit, revoking).await {
            tracing::debug!("unused leases cannot be revoked: {error}");
        }
        let gone = gone.into_inner();
        let mut to_bar = Vec::new();
        self.leases.borrow_mut().retain(|(lease, attempt)| {
            match gone.get(lease).map(|found| attempt.after_revoke(*found)) {
                Some(AfterRevoke::Done) => return false,
                Some(AfterRevoke::Bar) => to_bar.push(*lease),
                None => {}
            }
            true
        });
        to_bar
    }

    /// Keeps abandoned attempts from putting their keys later. A bar is no release record: it says nothing of those
    /// before the attempt.
    async fn bar(&self, etcd: Connection, leases: &[LeaseId]) -> Result<(), LockError> {
        let under = random_lease()?;
        self.requests.grant(etcd.clone(), under, BAR_TTL).await?;
        let queue = &self.requests.queue;
        for some in leases.chunks(MAX_BARS) {
            let bars = some.iter().map(|lease| {
                let under = PutOptions::new().with_lease(under.0);
                TxnOp::put(queue.keys.released(*lease), "", Some(under))
            });
            let txn = Txn::new().and_then(bars.collect::<Vec<_>>());
            let answer = etcd.kv().txn(txn).await?;
            queue.cluster.check_header(answer.header())?;
        }
        Ok(())
    }
}
