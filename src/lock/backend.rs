//! The interface of every kind of lock: request, wait, hold, release.
//! It must not know which kinds there are, nor the command that runs under the lock.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::select_all;

use crate::core::blockers::OrphanSlot;
use crate::core::blockers::PermanentKey;
use crate::core::heartbeat::Watch;
use crate::core::holder::{Holder, OuterLock, StopRequest};
use crate::core::name::Scope;
use crate::core::once::EarlierRun;
use crate::core::proof::{FencingToken, LeaseId, LossReason, Renewal};
use crate::core::proven_lock::{LockIndex, ProvenLock};
use crate::lock::error::LockError;

/// One request for a lock.
pub(crate) trait LockBackend {
    type Session: LockSession;

    /// The scope in which the lock's name stands for this lock.
    fn scope(&self) -> Scope;

    /// Joins the queue and waits for the lock, per `WaitPolicy`; `NoWait` removes its entry if the lock is taken. May be
    /// dropped at any await; call [`Self::leave_queue`] then. `taken`: the locks that the same run holds already.
    ///
    /// # Errors
    /// When the queue cannot be read, unless the request waits for that, too.
    async fn acquire(
        &self,
        taken: &[OuterLock],
        tell: impl FnMut(WaitEvent),
    ) -> Result<AcquireOutcome<Self::Session>, LockError>;

    /// The current position in the queue, for people; `None` without an entry, or without an answer.
    async fn position(&self) -> Option<QueuePosition>;

    /// The cause of the silence while no server has answered at all, and the time limit of an answer.
    fn unanswered_causes(&self) -> Option<(String, Duration)>;

    /// The error when not even an entry could be created within `limit`.
    fn unreachable(&self, limit: Duration) -> LockError;

    /// Stops waiting, and releases a lock that was acquired meanwhile.
    async fn leave_queue(&self);

    /// Releases the lock, after the last process of the command is dead, and finds out whether it was ours to the end.
    async fn release(&self, limit: Duration, parting: ReleaseReason<'_>) -> Release;

    /// The state of a lock that is not released because the command does not die; `guarded`: the guard lives and
    /// continues.
    fn describe_unreleased(&self, guarded: bool) -> String;
}

/// A held lock, until it is dropped.
pub(crate) trait LockSession {
    /// Requests one proof that the lock is ours; the result arrives as an event. Must not be called again before that.
    fn renew(&self);

    /// The next event; cancel-safe.
    async fn next_event(&mut self) -> SessionEvent;
}

/// The next event of any of `locks`, each of which has a session; cancel-safe.
pub(crate) async fn next_event<T, S: LockSession>(
    locks: &mut [T],
    session: impl Fn(&mut T) -> &mut S,
) -> (LockIndex, SessionEvent) {
    match locks {
        [] => std::future::pending().await,
        [only] => (LockIndex(0), session(only).next_event().await),
        several => {
            let events = several.iter_mut().map(|one| session(one).next_event());
            let (event, index, _) = select_all(events.map(FutureExt::boxed_local)).await;
            (LockIndex(index), event)
        }
    }
}

/// The result of a request for the lock.
pub(crate) enum AcquireOutcome<S> {
    Acquired(Box<Acquired<S>>),
    /// Another client holds it, and the request does not wait.
    Busy(QueuePosition),
    /// All slots are taken, one of them without an entry in the queue.
    NoSlot(OrphanSlot),
    /// The lock cools down for this time.
    Cooling(QueuePosition, Duration),
    /// A run has started recently.
    AlreadyRan(EarlierRun),
    /// Another client requested that this one give up.
    StopRequested(StopRequest),
}

/// An acquired lock.
pub(crate) struct Acquired<S> {
    pub(crate) token: FencingToken,
    /// The state of its proof.
    pub(crate) lock: ProvenLock,
    pub(crate) session: S,
    pub(crate) slot: Option<u16>,
    /// Variables that the command gets from this kind of lock.
    pub(crate) variables: Vec<(&'static str, String)>,
}

/// The reason of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseReason<'a> {
    /// The command has ended with this result, and nothing was wrong.
    Done(&'a str),
    /// The command has ended with this result, and the lock must be released without a cooldown.
    AtOnce(&'a str),
    /// No command has run.
    Unused,
}

/// An event for a waiter.
pub(crate) enum WaitEvent {
    /// Waiting begins, or another client holds the lock now.
    Behind(QueuePosition),
    /// No entry is before ours any more; the lock is ours once etcd confirms our lease.
    OurTurn,
    /// The lock is free, but the command of the vanished holder may still run for this time.
    LockDelay(Duration),
    /// No entry is before ours, and yet no slot is free; dlock tries again and again.
    NoSlot(OrphanSlot),
    /// Our own lease ended while waiting: the entry is lost, and a new one is created at the end of the queue.
    EntryLost,
    /// There is no answer for now; dlock still waits.
    Error(LockError),
}

/// The result of a release.
pub(crate) enum Release {
    /// Our entry existed to the end, so no other client held the lock in between.
    Confirmed,
    /// The lock was not ours any more.
    NotOurs,
    /// There was no answer.
    Unconfirmed(LockError),
}

/// The position in the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueuePosition {
    /// The record of the first entry; `None` if it is not one of dlock's.
    pub(crate) holder: Option<Holder>,
    /// Number of entries before ours, that of the holder included.
    pub(crate) count: usize,
    /// The lease of the first entry, in etcd.
    pub(crate) lease: Option<LeaseId>,
    /// The first entry's key, if it never expires.
    pub(crate) permanent: Option<PermanentKey>,
}

/// An event of a session.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// A renewal was answered; the core decides what it proves.
    Renewed(Renewal),
    /// A renewal was refused, or this endpoint did not answer it in time.
    Failed { endpoint: String, cause: String },
    /// A check found that the lock, which does not expire, is still ours.
    StillHeld,
    /// Our entry is gone, or no longer ours.
    Lost(LossReason),
    /// Another client requested that the lock be given up. Repeated until the request is withdrawn.
    StopRequested(StopRequest),
    /// An entry that a waiter waits for has changed.
    QueueChanged,
    /// The watch on our key, and on those that a waiter waits for, was opened or is closed.
    Watch(Watch),
}
