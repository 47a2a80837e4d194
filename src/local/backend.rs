//! The backend of local locks: takes a free lock at once, else waits in a thread of its own; holds the lock, releases it.
//! It must not know the order of the queue, nor the command that runs under the lock.

use std::cell::Cell;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::deadlock;
use super::entry::{Entered, Entry, QueueOutcome};
use super::state_dir::StateDir;
use crate::core::deadlock::Ring;
use crate::core::holder::{Holder, OuterLock};
use crate::core::local::EntryName;
use crate::core::lock_delay::Ended;
use crate::core::name::LockName;
use crate::core::name::Scope;
use crate::core::proof::LossReason;
use crate::core::proven_lock::ProvenLock;
use crate::core::remedy::remedy;
use crate::core::request::LockRequest;
use crate::core::time::{Instant, LeaseTimings};
use crate::lock::backend::{
    self, Acquired, LockBackend, LockSession, QueuePosition, Release, ReleaseReason, SessionEvent,
    WaitEvent,
};
use crate::lock::error::LockError;
use crate::output::exit::Failure;
use crate::sys::clock;

type Outcome = backend::AcquireOutcome<LocalSession>;

/// Interval between checks whether our entry still exists.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// TTL that sets the interval of the guard's pings: the default one.
const RENEWAL_TTL: Duration = Duration::from_secs(30);
/// Ample for a thread that reads a directory.
const STACK_BYTES: usize = 256 * 1024;

/// A request for a local lock.
pub(crate) struct LocalBackend {
    directory: PathBuf,
    entry: Arc<Entry>,
    acquired_at: Cell<Option<Instant>>,
}

/// A message of the waiting thread.
enum Told {
    Behind(QueuePosition),
    Ended(Result<QueueOutcome, Failure>),
}

impl LocalBackend {
    /// Creates an entry without a token in the lock's directory, which is created if it does not exist. `record` is the
    /// holder record that others see.
    pub(crate) fn new(
        directory: &Path,
        name: &LockName,
        record: Holder,
        request: LockRequest,
    ) -> Result<Self, Failure> {
        let root = StateDir::create(directory)?;
        let record = Holder {
            held: deadlock::held_here(&root, &record.held),
            ..record
        };
        let lock_dir = root.make_lock_dir(name)?;
        Ok(Self {
            directory: directory.to_owned(),
            entry: Arc::new(Entry::create(lock_dir, record, request)?),
            acquired_at: Cell::new(None),
        })
    }

    /// The descriptor that must stay open for as long as the lock is held.
    pub(crate) fn held(&self) -> BorrowedFd<'_> {
        self.entry.file.as_fd()
    }

    /// The descriptor that must stay open in this process.
    pub(crate) fn used(&self) -> BorrowedFd<'_> {
        self.entry.lock_dir.directory.as_fd()
    }
}

impl LockBackend for LocalBackend {
    type Session = LocalSession;

    fn scope(&self) -> Scope {
        Scope::Machine
    }

    async fn acquire(
        &self,
        taken: &[OuterLock],
        mut tell: impl FnMut(WaitEvent),
    ) -> Result<Outcome, LockError> {
        self.entry.list_taken(taken)?;
        // A thread takes as long as all else that a free lock needs. Only the disk can keep this thread waiting here, and it
        // would keep [`Entry::remove`] waiting as well.
        let entered = match self.entry.try_enter()? {
            Some(Entered::Ended(ended)) => {
                // A signal that came meanwhile ends the wait: once the lock is acquired, it is the command's.
                tokio::task::yield_now().await;
                return Ok(self.outcome(ended));
            }
            entered => entered,
        };
        let (told, mut telling) = mpsc::unbounded_channel();
        let entry = Arc::clone(&self.entry);
        // The wait in the kernel blocks only that thread, so signals and time limits work in this one.
        let waiting = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let ended = entry.queue(entered, |ahead| drop(told.send(Told::Behind(ahead))));
                let _ = told.send(Told::Ended(ended));
            });
        waiting.map_err(|error| {
            let cause = format!("cannot start a thread: {error}");
            let hint = remedy(&cause);
            LockError::refused(cause, hint)
        })?;
        loop {
            let told = tokio::select! {
                told = telling.recv() => told,
                error = self.deadlocked() => return Err(error),
            };
            match told {
                Some(Told::Behind(ahead)) => tell(WaitEvent::Behind(ahead)),
                Some(Told::Ended(ended)) => return Ok(self.outcome(ended?)),
                None => return Err(LockError::refused("the thread that waited has ended", None)),
            }
        }
    }

    async fn position(&self) -> Option<QueuePosition> {
        self.entry.position()
    }

    fn unanswered_causes(&self) -> Option<(String, Duration)> {
        None
    }

    fn unreachable(&self, limit: Duration) -> LockError {
        self.entry.lock_dir.queue_busy(limit).into()
    }

    async fn leave_queue(&self) {
        self.entry.remove(false);
    }

    async fn release(&self, _limit: Duration, parting: ReleaseReason<'_>) -> Release {
        let lost = self.entry.is_lost();
        if let ReleaseReason::Done(result) | ReleaseReason::AtOnce(result) = parting {
            let held = |at| clock::now().since(at);
            let held = self.acquired_at.get().map(held).unwrap_or_default();
            self.entry
                .remember(Ended::new(clock::wall_clock_millis(), held, result));
        }
        self.entry.remove(matches!(parting, ReleaseReason::Done(_)));
        if lost {
            Release::NotOurs
        } else {
            Release::Confirmed
        }
    }

    fn describe_unreleased(&self, guarded: bool) -> String {
        let how = if guarded {
            "the guard holds it until that process is dead"
        } else {
            "but it is free, although the command is alive, because its guard is dead"
        };
        how.to_owned()
    }
}

impl LocalBackend {
    /// Returns when our wait is in a deadlock that we have to break.
    async fn deadlocked(&self) -> LockError {
        if !self.entry.is_nested() {
            return std::future::pending().await;
        }
        loop {
            if let Some(ours) = self.entry.nested_wait()
                // Directories that cannot be read show no deadlock, and the wait goes on.
                && let Ok(Some(ring)) = deadlock::deadlock(&self.directory, &ours)
            {
                return LockError::refused(ring.describe(), Some(Ring::HINT));
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    /// The outcome of the wait; removes the entry if that is not the lock.
    fn outcome(&self, end: QueueOutcome) -> Outcome {
        if !matches!(end, QueueOutcome::Acquired(_)) {
            self.entry.remove(false);
        }
        match end {
            QueueOutcome::Busy(ahead) => Outcome::Busy(ahead),
            QueueOutcome::Cooling(ahead, left) => Outcome::Cooling(ahead, left),
            QueueOutcome::Acquired(EntryName { token, slot }) => {
                self.acquired_at.set(Some(clock::now()));
                let timings = LeaseTimings::new(RENEWAL_TTL, self.entry.record.grace());
                Outcome::Acquired(Box::new(Acquired {
                    token,
                    lock: ProvenLock::without_lease(timings, clock::now(), token.0.unsigned_abs()),
                    session: LocalSession {
                        entry: Arc::clone(&self.entry),
                        asked: Notify::new(),
                    },
                    slot,
                    variables: Vec::new(),
                }))
            }
        }
    }
}

/// A held local lock.
pub(crate) struct LocalSession {
    entry: Arc<Entry>,
    asked: Notify,
}

impl LockSession for LocalSession {
    fn renew(&self) {
        self.asked.notify_one();
    }

    async fn next_event(&mut self) -> SessionEvent {
        loop {
            let asked = tokio::select! {
                () = self.asked.notified() => true,
                () = tokio::time::sleep(CHECK_INTERVAL) => false,
            };
            if self.entry.is_lost() {
                return SessionEvent::Lost(LossReason::FileGone);
            }
            if asked {
                return SessionEvent::StillHeld;
            }
        }
    }
}
