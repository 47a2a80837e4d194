//! The leases and keys that a command needs in etcd before it may start, and their removal when it does not start.
//! It must not know whose turn it is, nor what keeps the place.

use std::time::Duration;

use tracing::warn;

use super::acquire::{EtcdBackend, LEAVE_TIMEOUT};
use super::error::{ErrorKind, LockError, attempt_after};
use super::random_lease;
use super::ttl_keys::{Claimed, Marked};
use crate::core::abandoned::{AfterRevoke, Attempt};
use crate::core::holder::{Holder, StopRequest};
use crate::core::preparation::{Grant, Mark};
use crate::core::proof::{EntryId, LeaseId};
use crate::core::request::Mode;
use crate::core::text::format_duration;
use crate::core::time::{Instant, LeaseTimings};
use crate::output::events;
use crate::sys::clock;

/// How far the preparations went.
pub(super) enum Prepared {
    Ready,
    /// To be tried again.
    NotYet,
    EntryLost,
    AlreadyRan(Option<Holder>),
    StopRequested(StopRequest),
}

impl EtcdBackend {
    /// Whether all is done in etcd that a command needs which starts now. `tries` is how often all of it was done.
    pub(super) fn is_prepared(&self, now: Instant, timings: LeaseTimings, tries: u32) -> bool {
        let young = |grant: Grant| grant.is_young(now, timings, tries);
        let stands = |mark: Mark| mark.is_still_young(now, timings, tries);
        (self.slot.get().is_some() || !matches!(self.request.mode, Mode::Slots(_)))
            && (self.request.min_hold.is_none() || self.cooldown.get().is_some_and(young))
            && (self.request.once_per.is_none() || self.mark.get().is_some_and(stands))
    }

    /// Takes a slot, and makes what outlives the holding of the lock: as far as it is not done, or done too long ago.
    pub(super) async fn prepare(
        &self,
        entry: EntryId,
        timings: LeaseTimings,
        tries: u32,
    ) -> Result<Prepared, LockError> {
        let limit = timings.renew_timeout() * 2;
        let young = |grant: Grant| grant.is_young(clock::now(), timings, tries);
        if let (Mode::Slots(slots), None) = (self.request.mode, self.slot.get()) {
            let claimed = async |etcd| self.requests.claim_slot(etcd, entry, slots).await;
            match self.call(limit, claimed).await? {
                Claimed::Slot(slot) => self.slot.set(Some(slot)),
                Claimed::NoneFree => return Ok(Prepared::NotYet),
                Claimed::EntryLost => return Ok(Prepared::EntryLost),
                Claimed::Asked(ask) => return Ok(Prepared::StopRequested(ask)),
            }
        }
        if let Some(ttl) = self.request.min_hold
            && !self.cooldown.get().is_some_and(young)
        {
            let before = self.cooldown.replace(Some(self.grant(ttl, limit).await?));
            self.abandon(before.map(|before| before.lease));
        }
        if let Some(ttl) = self.request.once_per
            && !(self.mark.get())
                .is_some_and(|mark| mark.is_still_young(clock::now(), timings, tries))
        {
            let kept = self
                .mark
                .get()
                .map(|mark| mark.grant)
                .filter(|it| young(*it));
            let grant = match kept {
                Some(grant) => grant,
                None => self.grant(ttl, limit).await?,
            };
            let unmade = Mark { grant, made: false };
            let before = self.mark.replace(Some(unmade)).map(|mark| mark.grant.lease);
            self.abandon(before.filter(|before| *before != grant.lease));
            // An attempt whose answer was lost may have made the mark under a lease that was given up since.
            let ours = self.abandoned.borrow().clone();
            let marked = async |etcd| {
                self.requests
                    .mark_run(etcd, entry, grant.lease, &ours)
                    .await
            };
            match self.call(limit, marked).await? {
                Marked::Ours => self.mark.set(Some(Mark { grant, made: true })),
                Marked::AlreadyRan(ran) => return Ok(Prepared::AlreadyRan(ran)),
                Marked::EntryLost => return Ok(Prepared::EntryLost),
                Marked::LeaseGone => {
                    self.mark.set(None);
                    return Ok(Prepared::NotYet);
                }
            }
        }
        self.revoke_abandoned(LEAVE_TIMEOUT).await;
        Ok(Prepared::Ready)
    }

    /// Grants a lease that nobody renews. Those of attempts whose answers are lost are taken back later.
    pub(super) async fn grant(&self, ttl: Duration, limit: Duration) -> Result<Grant, LockError> {
        let granted = self.call(limit, async |etcd| {
            let lease = random_lease()?;
            self.abandoned.borrow_mut().push(lease);
            let sent_at = clock::now();
            let granted = self.requests.grant(etcd, lease, ttl).await;
            let exists = matches!(&granted, Err(error) if error.kind == ErrorKind::LeaseExists);
            if exists || attempt_after(&granted) == Attempt::Refused {
                // Somebody else's, or nobody's.
                self.forget(lease);
            }
            granted.map(|()| Grant { lease, sent_at })
        });
        let grant = granted.await?;
        self.forget(grant.lease);
        Ok(grant)
    }

    /// Has a lease revoked with the next that are cleared up.
    pub(super) fn abandon(&self, lease: Option<LeaseId>) {
        self.abandoned.borrow_mut().extend(lease);
    }

    /// Strikes an attempt from those that are cleared up: its lease is in use, is not ours, or was never granted.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.abandoned.borrow_mut().retain(|id| *id != lease);
        self.late.borrow_mut().remove(&lease);
    }

    /// Takes back what was done for a command that does not start: first of all the mark, for those behind us are not to
    /// find it once the lock is free.
    pub(super) async fn revoke_unused(&self, limit: Duration) {
        let mark = self.mark.take().map(|mark| mark.grant);
        for grant in [self.cooldown.take(), mark].into_iter().flatten() {
            self.abandon(Some(grant.lease));
        }
        // The newest first: the older ones have no keys, as a rule.
        self.abandoned.borrow_mut().reverse();
        self.revoke_abandoned(limit).await;
    }

    /// Says so if a mark may still stand although no run has started.
    pub(super) fn warn_of_mark(&self, lease: LeaseId) {
        let Some(once_per) = self.request.once_per else {
            return;
        };
        if !self.abandoned.borrow().contains(&lease) {
            return;
        }
        let name = self.requests.queue.keys.lock();
        warn!(
            event = events::MARK_LEFT,
            lock = %name,
            within_seconds = once_per.as_secs(),
            "etcd did not confirm that the mark of this run is taken back: no run of '{name}' may start within {}, although none has",
            format_duration(once_per)
        );
    }

    /// Sees to it that attempts whose end was not seen leave nothing behind, neither now nor later, as
    /// [`core::abandoned`](crate::core::abandoned) says. What etcd does not confirm is kept for the next time. Says whether
    /// there were any.
    pub(super) async fn revoke_abandoned(&self, limit: Duration) -> bool {
        let until = clock::now() + limit;
        let rest = || until.since(clock::now());
        let leases = self.abandoned.borrow().clone();
        if leases.is_empty() {
            return false;
        }
        let to_bar = self.revoke(&leases, rest()).await;
        if to_bar.is_empty() {
            return true;
        }
        let barring = async |etcd| self.requests.bar(etcd, &to_bar).await;
        match self.call(rest(), barring).await {
            Ok(()) => {
                let barred = to_bar.iter().map(|lease| (*lease, Attempt::Barred));
                self.late.borrow_mut().extend(barred);
                self.revoke(&to_bar, rest()).await;
            }
            Err(error) => tracing::debug!("what comes late cannot be barred: {error}"),
        }
        true
    }

    /// Revokes leases, and forgets those under which nothing can come any more; gives those that are to be barred.
    async fn revoke(&self, leases: &[LeaseId], limit: Duration) -> Vec<LeaseId> {
        let gone = self.requests.revoke(leases, limit).await;
        let mut late = self.late.borrow_mut();
        let (mut to_bar, mut done) = (Vec::new(), Vec::new());
        for (lease, found) in gone {
            let attempt = late.get(&lease).copied().unwrap_or(Attempt::Answered);
            match attempt.after_revoke(found) {
                AfterRevoke::Bar => to_bar.push(lease),
                AfterRevoke::Done => done.push(lease),
            }
        }
        self.abandoned
            .borrow_mut()
            .retain(|lease| !done.contains(lease));
        late.retain(|lease, _| !done.contains(lease));
        to_bar
    }
}
