//! One who wants a lock on this machine: waits in a thread, so that nothing else has to, keeps it, gives it back.
//! It must not know how a place in the queue gets its turn, nor the command that runs under the lock.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::entry::{Entry, QueueOutcome};
use super::state_dir::StateDir;
use crate::core::holder::Holder;
use crate::core::local::EntryName;
use crate::core::name::LockName;
use crate::core::name::Scope;
use crate::core::proof::LossReason;
use crate::core::request::LockRequest;
use crate::core::text::format_duration;
use crate::core::time::LeaseTimings;
use crate::core::watchdog::Watchdog;
use crate::lock::backend::{
    self, Acquired, LockBackend, LockSession, QueuePosition, Release, ReleaseReason, SessionEvent,
    WaitEvent,
};
use crate::lock::error::LockError;
use crate::output::exit::Failure;
use crate::sys::clock;

type Outcome = backend::AcquireOutcome<LocalSession>;

/// Between two looks at whether our place is still there.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The rhythm in which the guard is asked whether it lives: that of a lease with the default TTL.
const RENEWAL_TTL: Duration = Duration::from_secs(30);
/// Ample for a thread that reads a folder.
const STACK_BYTES: usize = 256 * 1024;

/// One who wants the lock.
pub(crate) struct LocalBackend {
    entry: Arc<Entry>,
}

/// How the thread goes on.
enum Told {
    Behind(QueuePosition),
    Ended(Result<QueueOutcome, Failure>),
}

impl LocalBackend {
    /// Makes a place that has no token yet, in the folder of the lock, which is made when it is not there. `record` is
    /// what others are shown of us.
    pub(crate) fn new(
        directory: &Path,
        name: &LockName,
        record: Holder,
        request: LockRequest,
    ) -> Result<Self, Failure> {
        let lock_dir = StateDir::create(directory)?.make_lock_dir(name)?;
        Ok(Self {
            entry: Arc::new(Entry::create(lock_dir, record, request)?),
        })
    }

    /// What has to stay open for as long as the lock is to be held.
    pub(crate) fn held(&self) -> BorrowedFd<'_> {
        self.entry.held()
    }

    /// What has to stay open for this process.
    pub(crate) fn used(&self) -> BorrowedFd<'_> {
        self.entry.lock_dir().directory()
    }
}

impl LockBackend for LocalBackend {
    type Session = LocalSession;

    fn scope(&self) -> Scope {
        Scope::Machine
    }

    async fn acquire(&self, mut tell: impl FnMut(WaitEvent)) -> Result<Outcome, LockError> {
        let (told, mut telling) = mpsc::unbounded_channel();
        let entry = Arc::clone(&self.entry);
        // Whatever waits in the kernel waits there, so that signals and time limits count here.
        let waiting = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let ended = entry.queue(|ahead| drop(told.send(Told::Behind(ahead))));
                let _ = told.send(Told::Ended(ended));
            });
        waiting
            .map_err(|error| LockError::refused(format!("cannot start a thread: {error}"), None))?;
        loop {
            match telling.recv().await {
                Some(Told::Behind(ahead)) => tell(WaitEvent::Behind(ahead)),
                Some(Told::Ended(ended)) => {
                    let outcome = self.outcome(ended?);
                    if !matches!(outcome, Outcome::Acquired(_)) {
                        self.entry.remove(false);
                    }
                    return Ok(outcome);
                }
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
        let cause = format!(
            "{}: another process has changed its queue for more than {}",
            self.entry.lock_dir().cannot_use(),
            format_duration(limit)
        );
        LockError::refused(cause, Some("is one of them stopped?"))
    }

    async fn leave_queue(&self) {
        self.entry.remove(false);
    }

    async fn release(&self, _limit: Duration, parting: ReleaseReason<'_>) -> Release {
        let lost = self.entry.is_lost();
        self.entry.remove(matches!(parting, ReleaseReason::Done(_)));
        if lost {
            Release::NotOurs
        } else {
            Release::Confirmed
        }
    }

    fn describe_unreleased(&self, guarded: bool) -> String {
        let how = if guarded {
            "it stays taken until that process is dead, by the guard"
        } else {
            "but it is free, although the command is not dead, since its guard is"
        };
        how.to_owned()
    }
}

impl LocalBackend {
    fn outcome(&self, end: QueueOutcome) -> Outcome {
        match end {
            QueueOutcome::Busy(ahead) => Outcome::Busy(ahead),
            QueueOutcome::Cooling(ahead, left) => Outcome::Cooling(ahead, left),
            QueueOutcome::Acquired(EntryName { token, slot }) => {
                let timings = LeaseTimings::new(RENEWAL_TTL, self.entry.record().grace());
                Outcome::Acquired(Box::new(Acquired {
                    token,
                    watchdog: Watchdog::without_lease(
                        timings,
                        clock::now(),
                        token.0.unsigned_abs(),
                    ),
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

/// The lock as we have it.
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
