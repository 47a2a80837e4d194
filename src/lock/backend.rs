//! What every kind of lock is to the one who wants it: asked for, waited for, won, kept, given back.
//! It must not know which kinds there are, nor the command that runs under the lock.

use std::time::Duration;

use crate::core::heartbeat::Watch;
use crate::core::holder::{Holder, StopRequest};
use crate::core::name::Scope;
use crate::core::proof::{FencingToken, LeaseId, LossReason, Renewal};
use crate::core::watchdog::Watchdog;
use crate::lock::error::LockError;

/// One who wants a lock, once.
pub(crate) trait LockBackend {
    type Session: LockSession;

    /// The range in which the lock's name stands for this lock.
    fn scope(&self) -> Scope;

    /// Queues up and waits for the turn, as patiently as is wished; without patience it leaves no trace
    /// when somebody else has the lock. May be dropped at any await; call [`Self::leave`] then.
    ///
    /// # Errors
    /// When nobody can tell whose turn it is, unless it was wished to wait for that too.
    async fn acquire(
        &self,
        tell: impl FnMut(WaitEvent),
    ) -> Result<AcquireOutcome<Self::Session>, LockError>;

    /// Whom we wait for at this moment, for people; `None` without a place, or without an answer.
    async fn position(&self) -> Option<QueuePosition>;

    /// What is in the way as long as nobody has answered at all, and how long an answer is waited for.
    fn unanswered_causes(&self) -> Option<(String, Duration)>;

    /// What to say when we have not even got a place in so long a time.
    fn unreachable(&self, limit: Duration) -> LockError;

    /// Gives up waiting, and what may have been won meanwhile.
    async fn leave_queue(&self);

    /// Gives the lock back, after the last process of the command is dead, and finds out whether it was
    /// ours to the end.
    async fn release(&self, limit: Duration, parting: ReleaseReason<'_>) -> Release;

    /// What becomes of a lock that is not given back because the command does not die; `guarded`: the
    /// guard lives and goes on trying.
    fn describe_unreleased(&self, guarded: bool) -> String;
}

/// Keeps a lock that was won, until it is dropped.
pub(crate) trait LockSession {
    /// Asks for one proof that the lock is ours; its end comes as a piece of news. Not to be called again
    /// before that.
    fn renew(&self);

    /// The next news; cancel-safe.
    async fn next_event(&mut self) -> SessionEvent;
}

/// How asking for the lock went.
pub(crate) enum AcquireOutcome<S> {
    Acquired(Box<Acquired<S>>),
    /// Somebody else has it, and we were not to wait.
    Busy(QueuePosition),
    /// The lock cools down for so long.
    Cooling(QueuePosition, Duration),
    /// A run has started not long ago.
    AlreadyRan(Option<Holder>),
    /// Somebody wants us to go.
    StopRequested(StopRequest),
}

/// The lock is ours.
pub(crate) struct Acquired<S> {
    pub(crate) token: FencingToken,
    /// Guards this holding.
    pub(crate) watchdog: Watchdog,
    pub(crate) session: S,
    pub(crate) slot: Option<u16>,
    /// What the command gets of this kind of lock alone.
    pub(crate) variables: Vec<(&'static str, String)>,
}

/// How a lock is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseReason<'a> {
    /// The command has ended like this, and everything was as it should be.
    Done(&'a str),
    /// The command has ended like this, and the lock is wanted at once.
    AtOnce(&'a str),
    /// No command has run.
    Unused,
}

/// What a waiter has to tell.
pub(crate) enum WaitEvent {
    /// Waiting begins, or somebody else holds the lock now.
    Behind(QueuePosition),
    /// It is our turn, but the command of the holder that vanished may still run for so long.
    LockDelay(Duration),
    /// Our own lease ended while waiting: the place is lost, and taken anew at the end.
    EntryLost,
    /// There is no answer for now; waiting goes on.
    Error(LockError),
}

/// What became of a release.
pub(crate) enum Release {
    /// Our place was there to the end, so nobody else held the lock in between.
    Confirmed,
    /// It was not our lock any more.
    NotOurs,
    /// There was no answer.
    Unconfirmed(LockError),
}

/// Whom we wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueuePosition {
    /// The record of the first in the queue; `None` when it is not one of ours.
    pub(crate) holder: Option<Holder>,
    /// How many are before us, the holder among them.
    pub(crate) count: usize,
    /// The lease of the first, where there are leases.
    pub(crate) lease: Option<LeaseId>,
}

/// What a session has to tell.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// A renewal was answered; what it proves is for the core to judge.
    Renewed(Renewal),
    /// A renewal was refused or not answered in time by this endpoint.
    Failed { endpoint: String, cause: String },
    /// A look has found the lock, which no time ends, to be ours.
    StillHeld,
    /// Our place is gone, or no longer ours.
    Lost(LossReason),
    /// Somebody asks something of us. Told again for as long as that stands there.
    StopRequested(StopRequest),
    /// Something has happened to those for whom we wait.
    QueueChanged,
    /// The watch on our key, and on those for whom we wait, was opened, or is not open any more.
    Watch(Watch),
}
