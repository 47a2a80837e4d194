//! The lock in etcd as `dlock run` uses it: acquire, leave the queue, release.
//! It must not know the command that runs under the lock.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::backend::{EtcdBackend, Leaving, RETRY_PAUSE};
use super::connection::Connection;
use super::error::{ErrorKind, LockError};
use super::requests::{Cooldown, Enqueued, LEAVE_TIMEOUT};
use super::session::EtcdSession;
use super::ttl_keys;
use super::wait::{Outcome, Waiter};
use crate::core::holder::OuterLock;
use crate::core::lock_delay::Ended;
use crate::core::name::Scope;
use crate::core::once::{Counting, counting};
use crate::core::preparation::Grant;
use crate::core::release::ReleaseAnswer;
use crate::core::request::WaitPolicy;
use crate::core::text::format_duration;
use crate::lock::backend::{LockBackend, QueuePosition, Release, ReleaseReason, WaitEvent};
use crate::sys::clock;

impl LockBackend for EtcdBackend {
    type Session = EtcdSession;

    fn scope(&self) -> Scope {
        Scope::Prefix(self.requests.queue.keys.namespace().to_owned())
    }

    async fn acquire(
        &self,
        taken: &[OuterLock],
        mut on_event: impl FnMut(WaitEvent),
    ) -> Result<Outcome, LockError> {
        self.requests.taken.replace(taken.to_vec());
        let limit = self.limit;
        let waits = self.request.wait_policy != WaitPolicy::NoWait;
        let mut give_up_at = None;
        let mut last_error = None;
        let mut on_event = |event: WaitEvent| {
            if let WaitEvent::Error(error) = &event {
                last_error = Some(error.clone());
            }
            on_event(event);
        };
        let mut retries = match self.request.wait_policy {
            WaitPolicy::NoWait => false,
            WaitPolicy::Timeout(_) => true,
            // For another lock of the same run etcd may have answered before.
            WaitPolicy::Forever => self.requests.queue.cluster.has_answered(),
        };
        loop {
            let entered = loop {
                match enqueue_unless_ran(self).await {
                    Err(error) if retries && error.kind == ErrorKind::Retryable => {
                        if let Some(refusal) = self.refused_for_good() {
                            return Err(refusal);
                        }
                        on_event(WaitEvent::Error(error));
                        sleep(RETRY_PAUSE).await;
                    }
                    other => break other?,
                }
            };
            retries = waits;
            // A request that does not wait ends at a silent etcd, too.
            give_up_at = give_up_at.or((!waits).then(|| clock::now() + limit));
            let entry = match entered {
                Ok(entry) => entry,
                Err(outcome) => return Ok(outcome),
            };
            let mut all_asked = true;
            let is_free = entry.view.blockers.entries.is_empty();
            let is_busy = !is_free || !self.lock_delay_left().is_zero();
            if is_busy && !waits {
                self.leave_queue().await;
                return busy(self, entry.view.position).await;
            }
            if !is_free {
                match self.supersede(entry.ownership.entry, limit).await {
                    Err(error) if error.kind == ErrorKind::Retryable => {
                        on_event(WaitEvent::Error(error));
                        all_asked = false;
                    }
                    all => all_asked = all?,
                }
            }
            let (entered_as, timings) = (entry.ownership.entry, entry.timings);
            let superseding = self.supersede_the_rest(all_asked, entered_as, timings);
            let deadlocked = async {
                // No entry comes before ours once we are the first.
                if is_free || !self.requests.record().is_nested() {
                    return std::future::pending().await;
                }
                self.deadlocked(entered_as, timings).boxed_local().await
            };
            let outcome = tokio::select! {
                biased;
                outcome = Waiter::new(self, entry).until_acquired(&mut on_event) => outcome?,
                error = superseding.boxed_local() => return Err(error),
                error = deadlocked => return Err(error),
                () = clock::until(give_up_at) => {
                    return Err(last_error.unwrap_or_else(|| self.unreachable(limit)));
                }
            };
            if let Some(outcome) = outcome {
                if matches!(outcome, Outcome::Acquired(_)) {
                    self.acquired_at.set(Some(clock::now()));
                } else {
                    self.leave_queue().await;
                }
                return Ok(outcome);
            }
            // Its lease may still have a slot.
            self.attempts
                .abandon(self.entry.take().map(|entry| entry.lease));
            self.preparation.revoke_unused(LEAVE_TIMEOUT).await;
            self.preparation.slot.set(None);
            on_event(WaitEvent::EntryLost);
        }
    }

    async fn position(&self) -> Option<QueuePosition> {
        let entry = self.entry.get()?;
        let reading = async |etcd: Connection| self.requests.queue.position(&etcd, entry).await;
        let ahead = self.requests.call(LEAVE_TIMEOUT, reading).await.ok()?;
        (ahead.count > 0).then_some(ahead)
    }

    fn unanswered_causes(&self) -> Option<(String, Duration)> {
        let causes = self.requests.queue.cluster.unanswered()?;
        Some((causes, self.limit))
    }

    fn unreachable(&self, limit: Duration) -> LockError {
        self.requests.queue.cluster.unreachable(limit)
    }

    /// Removes our entry and everything that unfinished attempts may have left, within one limit.
    async fn leave_queue(&self) {
        let until = clock::now() + LEAVE_TIMEOUT;
        let rest = || until.since(clock::now());
        // The mark goes before the entry: the next holder must not take it for the mark of a run.
        let mark = self.preparation.mark.get().map(|mark| mark.grant.lease);
        if mark.is_some() {
            self.preparation.revoke_unused(LEAVE_TIMEOUT / 2).await;
        }
        let left = self.predecessors.borrow().remaining(clock::now());
        if left.is_zero() || self.entry.get().is_none() {
            let lease = self.entry.get().map(|entry| entry.lease);
            if !matches!(
                self.delete_entry(rest(), Leaving::default()).await,
                Release::Confirmed
            ) {
                // A later request of ours must not wait for this one.
                self.attempts.abandon(lease);
            }
        } else {
            // No other request may acquire the lock while the command of a vanished holder may run. If that lease
            // cannot be granted, our own keeps the entry, and those behind us wait for one more grace.
            if let Ok(Grant { lease, .. }) = self.attempts.grant(left, rest()).await {
                // Zero would mean that no command may run.
                let least = Duration::from_millis(1);
                let kept = Cooldown {
                    lease,
                    result: None,
                    grace: (self.predecessors.borrow()).grace(clock::now(), least),
                };
                let leaving = Leaving {
                    cooldown: Some(kept),
                    ..Leaving::default()
                };
                let _ = self.delete_entry(rest(), leaving).await;
            }
        }
        self.preparation.revoke_unused(rest()).await;
        self.preparation.slot.set(None);
        if let Some(lease) = mark {
            self.preparation.warn_of_mark(lease);
        }
    }

    /// Deletes our key if it is still the one that we acquired with, or leaves it to cool down. The success of that
    /// comparison proves, without any clock, that no other client held the lock in between.
    async fn release(&self, limit: Duration, reason: ReleaseReason<'_>) -> Release {
        let mut leaving = Leaving::default();
        if let ReleaseReason::Done(result) | ReleaseReason::AtOnce(result) = reason {
            let entry = self.entry.get();
            if self.preparation.mark_result(entry, result, limit).await {
                leaving.seen = leaving.seen.with(ReleaseAnswer::Present);
            }
            let held = |at| clock::now().since(at);
            let held = self.acquired_at.get().map(held).unwrap_or_default();
            leaving.ended = Some(Ended::new(clock::wall_clock_millis(), held, result));
        }
        leaving.cooldown = match reason {
            ReleaseReason::Done(result) => self.preparation.cooldown.take().map(|grant| Cooldown {
                lease: grant.lease,
                result: Some(result.to_owned()),
                grace: Duration::ZERO,
            }),
            ReleaseReason::AtOnce(_) | ReleaseReason::Unused => None,
        };
        let lease = self.entry.get().map(|entry| entry.lease);
        let release = self.delete_entry(limit, leaving).await;
        if matches!(release, Release::NotOurs) {
            // No process of the command runs any more: its slot is free, too.
            self.attempts.abandon(lease);
        }
        self.preparation.revoke_unused(LEAVE_TIMEOUT).await;
        self.preparation.slot.set(None);
        release
    }

    fn describe_unreleased(&self, _guarded: bool) -> String {
        let ttl = format_duration(self.requests.timings.ttl());
        format!("etcd frees it within {ttl} although the command is not dead")
    }
}

/// Enters the queue, unless a mark shows that no run may start now.
async fn enqueue_unless_ran(backend: &EtcdBackend) -> Result<Result<Enqueued, Outcome>, LockError> {
    let (requests, limit) = (&backend.requests, backend.limit);
    if backend.request.once_per.is_some() {
        // A mark of ours that is to be revoked is not that of a run.
        backend.attempts.revoke_all(LEAVE_TIMEOUT).await;
        let ran = async |etcd| ttl_keys::read_mark(requests, etcd).await;
        // The result of a run that has not ended may be a failure: our turn will show it.
        if let Some(ran) = requests.call(limit, ran).await?
            && counting(ran.record.as_ref(), backend.request.retry_failed) == Counting::Counts
        {
            return Ok(Err(Outcome::AlreadyRan(ran)));
        }
    }
    backend.enqueue(limit).await.map(Ok)
}

/// The outcome for a request that does not wait, if the lock is not free.
async fn busy(backend: &EtcdBackend, ahead: QueuePosition) -> Result<Outcome, LockError> {
    let cooling = ahead.holder.as_ref().is_some_and(|holder| holder.cooling);
    let Some(lease) = ahead.lease.filter(|_| cooling) else {
        return Ok(Outcome::Busy(ahead));
    };
    let requests = &backend.requests;
    let left = async |etcd| requests.queue.lease_time_left(etcd, lease).await;
    // The lease may have ended since.
    let left = requests.call(LEAVE_TIMEOUT, left).await.unwrap_or_default();
    Ok(Outcome::Cooling(ahead, left))
}
