//! The leases and keys that a command needs in etcd before it may start, and their removal when it does not start.
//! It must not know the queue, nor how an entry is kept.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tracing::warn;

use super::attempts::Attempts;
use super::error::LockError;
use super::requests::{LEAVE_TIMEOUT, Requests};
use super::ttl_keys::{self, Claimed, Marked};
use crate::core::blockers::OrphanSlot;
use crate::core::holder::StopRequest;
use crate::core::once::EarlierRun;
use crate::core::once::has_succeeded;
use crate::core::preparation::{Grant, Mark};
use crate::core::proof::{EntryId, LeaseId};
use crate::core::request::{LockRequest, Mode};
use crate::core::text::format_duration;
use crate::core::time::{Instant, LeaseTimings};
use crate::output::events;
use crate::sys::clock;

/// The result of one try to prepare.
pub(super) enum Prepared {
    Ready,
    /// The caller has to try again.
    NotYet,
    NoSlot(OrphanSlot),
    EntryLost,
    AlreadyRan(EarlierRun),
    StopRequested(StopRequest),
}

/// The state of the preparations of one lock request.
pub(super) struct Preparation {
    requests: Rc<Requests>,
    attempts: Rc<Attempts>,
    request: LockRequest,
    pub(super) slot: Cell<Option<u16>>,
    /// The lease that keeps the lock taken after the command.
    pub(super) cooldown: Cell<Option<Grant>>,
    /// The mark that keeps further runs from starting.
    pub(super) mark: Cell<Option<Mark>>,
}

impl Preparation {
    pub(super) fn new(
        requests: &Rc<Requests>,
        attempts: &Rc<Attempts>,
        request: LockRequest,
    ) -> Self {
        Self {
            requests: Rc::clone(requests),
            attempts: Rc::clone(attempts),
            request,
            slot: Cell::default(),
            cooldown: Cell::default(),
            mark: Cell::default(),
        }
    }

    /// Whether etcd has all that a command needs which starts now. `tries` is the number of earlier preparations.
    pub(super) fn is_complete(&self, now: Instant, timings: LeaseTimings, tries: u32) -> bool {
        let young = |grant: Grant| grant.is_young(now, timings, tries);
        let valid = |mark: Mark| mark.is_still_young(now, timings, tries);
        (self.slot.get().is_some() || !matches!(self.request.mode, Mode::Slots(_)))
            && (self.request.min_hold.is_none() || self.cooldown.get().is_some_and(young))
            && (self.request.once_per.is_none() || self.mark.get().is_some_and(valid))
    }

    /// Takes a slot, and makes the leases and the mark that outlive the lock: those that are missing or too old.
    pub(super) async fn run(
        &self,
        entry: EntryId,
        timings: LeaseTimings,
        tries: u32,
    ) -> Result<Prepared, LockError> {
        let limit = timings.renew_timeout() * 2;
        let young = |grant: Grant| grant.is_young(clock::now(), timings, tries);
        if let (Mode::Slots(slots), None) = (self.request.mode, self.slot.get()) {
            let claim = async |etcd| ttl_keys::claim_slot(&self.requests, etcd, entry, slots).await;
            match self.requests.call(limit, claim).await? {
                Claimed::Slot(slot) => self.slot.set(Some(slot)),
                Claimed::NoneFree(orphan) => {
                    return Ok(orphan.map_or(Prepared::NotYet, Prepared::NoSlot));
                }
                Claimed::EntryLost => return Ok(Prepared::EntryLost),
                Claimed::StopRequested(request) => {
                    return Ok(Prepared::StopRequested(request));
                }
            }
        }
        if let Some(ttl) = self.request.min_hold
            && !self.cooldown.get().is_some_and(young)
        {
            let grant = self.attempts.grant(ttl, limit).await?;
            let before = self.cooldown.replace(Some(grant));
            self.attempts.abandon(before.map(|before| before.lease));
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
                None => self.attempts.grant(ttl, limit).await?,
            };
            let requested = Some(Mark::requested(grant));
            let before = self.mark.replace(requested).map(|mark| mark.grant.lease);
            let replaced = before.filter(|before| *before != grant.lease);
            self.attempts.abandon(replaced);
            // An attempt whose answer was lost may have made the mark under a lease that was given up since.
            let ours = self.attempts.leases();
            let marking = async |etcd| {
                let retry = self.request.retry_failed;
                ttl_keys::mark_run(&self.requests, etcd, entry, grant.lease, &ours, retry).await
            };
            match self.requests.call(limit, marking).await? {
                Marked::Ours => self.mark.set(Some(Mark::confirmed(grant))),
                Marked::AlreadyRan(ran) => return Ok(Prepared::AlreadyRan(ran)),
                Marked::EntryLost => return Ok(Prepared::EntryLost),
                Marked::LeaseGone => {
                    self.mark.set(None);
                    return Ok(Prepared::NotYet);
                }
            }
        }
        self.attempts.revoke_all(LEAVE_TIMEOUT).await;
        Ok(Prepared::Ready)
    }

    /// Revokes the leases made for a command that does not start. The mark is first: it has to be gone before the lock is
    /// free.
    pub(super) async fn revoke_unused(&self, limit: Duration) {
        let mark = self.mark.take().map(|mark| mark.grant);
        for grant in [self.cooldown.take(), mark].into_iter().flatten() {
            self.attempts.abandon(Some(grant.lease));
        }
        self.attempts.newest_first();
        self.attempts.revoke_all(limit).await;
    }

    /// Writes the result of the run into its mark; returns whether etcd has confirmed a success under our entry.
    pub(super) async fn mark_result(
        &self,
        entry: Option<EntryId>,
        result: &str,
        limit: Duration,
    ) -> bool {
        let (Some(Mark { grant, .. }), Some(entry)) = (self.mark.take(), entry) else {
            return false;
        };
        let marking = async |etcd| {
            ttl_keys::mark_result(&self.requests, etcd, entry, grant.lease, result).await
        };
        let marked = self.requests.call(limit, marking).await;
        marked.unwrap_or_else(|error| {
            if self.request.retry_failed && has_succeeded(result) {
                let name = self.requests.queue.keys.lock();
                warn!(
                    event = events::RESULT_UNCONFIRMED,
                    lock = %name,
                    cause = %error,
                    "etcd did not confirm that this run of '{name}' has succeeded, so the next one with --retry-failed may start: {error}"
                );
            } else {
                // A run without a result does not count once its entry is gone.
                tracing::debug!("the result of the run cannot be kept: {error}");
            }
            false
        })
    }

    /// Warns if a mark may still be there although no run has started.
    pub(super) fn warn_of_mark(&self, lease: LeaseId) {
        let Some(once_per) = self.request.once_per else {
            return;
        };
        if !self.attempts.leases().contains(&lease) {
            return;
        }
        let name = self.requests.queue.keys.lock();
        warn!(
            event = events::MARK_LEFT,
            lock = %name,
            within_seconds = once_per.as_secs(),
            "etcd did not confirm that the mark of this run is removed: no run of '{name}' may start within {}, although this one did not start",
            format_duration(once_per)
        );
    }
}
