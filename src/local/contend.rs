//! One who wants a lock on this machine: waits in a thread, so that nothing else has to, keeps it, gives it back.
//! It must not know how a place in the queue gets its turn, nor the command that runs under the lock.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::folder::Root;
use super::place::{End, Place};
use crate::clock;
use crate::contest::{self, Ahead, Contend, Keep, News, Parting, Release, Waiting, Won};
use crate::core::holder::Holder;
use crate::core::lease::{Loss, Terms};
use crate::core::local::Ticket;
use crate::core::mode::Wish;
use crate::core::name::LockName;
use crate::core::name::Scope;
use crate::core::text::span;
use crate::core::watchdog::Watchdog;
use crate::exit::Failure;
use crate::trouble::Trouble;

type Outcome = contest::Outcome<Session>;

/// Between two looks at whether our place is still there.
const LOOK: Duration = Duration::from_secs(1);
/// The rhythm in which the guard is asked whether it lives: that of a lease with the default TTL.
const RHYTHM: Duration = Duration::from_secs(30);
/// Ample for a thread that reads a folder.
const STACK: usize = 256 * 1024;

/// One who wants the lock.
pub(crate) struct Contender {
    place: Arc<Place>,
}

/// How the thread goes on.
enum Told {
    Behind(Ahead),
    Ended(Result<End, Failure>),
}

impl Contender {
    /// Makes a place that has no token yet, in the folder of the lock, which is made when it is not there. `record` is
    /// what others are shown of us.
    pub(crate) fn come(
        folder: &Path,
        name: &LockName,
        record: Holder,
        wish: Wish,
    ) -> Result<Self, Failure> {
        let lane = Root::make(folder)?.make_lane(name)?;
        Ok(Self {
            place: Arc::new(Place::make(lane, record, wish)?),
        })
    }

    /// What has to stay open for as long as the lock is to be held.
    pub(crate) fn held(&self) -> BorrowedFd<'_> {
        self.place.held()
    }

    /// What has to stay open for this process.
    pub(crate) fn used(&self) -> BorrowedFd<'_> {
        self.place.lane().folder()
    }
}

impl Contend for Contender {
    type Session = Session;

    fn scope(&self) -> Scope {
        Scope::Machine
    }

    async fn acquire(&self, mut tell: impl FnMut(Waiting)) -> Result<Outcome, Trouble> {
        let (told, mut telling) = mpsc::unbounded_channel();
        let place = Arc::clone(&self.place);
        // Whatever waits in the kernel waits there, so that signals and time limits count here.
        let waiting = thread::Builder::new().stack_size(STACK).spawn(move || {
            let ended = place.queue(|ahead| drop(told.send(Told::Behind(ahead))));
            let _ = told.send(Told::Ended(ended));
        });
        waiting
            .map_err(|error| Trouble::refused(format!("cannot start a thread: {error}"), None))?;
        loop {
            match telling.recv().await {
                Some(Told::Behind(ahead)) => tell(Waiting::Behind(ahead)),
                Some(Told::Ended(ended)) => {
                    let outcome = self.outcome(ended?);
                    if !matches!(outcome, Outcome::Won(_)) {
                        self.place.leave(false);
                    }
                    return Ok(outcome);
                }
                None => return Err(Trouble::refused("the thread that waited has ended", None)),
            }
        }
    }

    async fn ahead(&self) -> Option<Ahead> {
        self.place.ahead()
    }

    fn unanswered(&self) -> Option<(String, Duration)> {
        None
    }

    fn unreachable(&self, limit: Duration) -> Trouble {
        let cause = format!(
            "{}: another process has changed its queue for more than {}",
            self.place.lane().cannot_use(),
            span(limit)
        );
        Trouble::refused(cause, Some("is one of them stopped?"))
    }

    async fn leave(&self) {
        self.place.leave(false);
    }

    async fn release(&self, _limit: Duration, parting: Parting<'_>) -> Release {
        let lost = self.place.is_lost();
        self.place.leave(matches!(parting, Parting::Done(_)));
        if lost {
            Release::NotOurs
        } else {
            Release::Confirmed
        }
    }

    fn unreleased(&self, guarded: bool) -> String {
        let how = if guarded {
            "it stays taken until that process is dead, by the guard"
        } else {
            "but it is free, although the command is not dead, since its guard is"
        };
        how.to_owned()
    }
}

impl Contender {
    fn outcome(&self, end: End) -> Outcome {
        match end {
            End::Busy(ahead) => Outcome::Busy(ahead),
            End::Cooling(ahead, left) => Outcome::Cooling(ahead, left),
            End::Won(Ticket { token, slot }) => {
                let terms = Terms::new(RHYTHM, self.place.record().grace());
                Outcome::Won(Box::new(Won {
                    token,
                    watchdog: Watchdog::unending(terms, clock::now(), token.0.unsigned_abs()),
                    session: Session {
                        place: Arc::clone(&self.place),
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
pub(crate) struct Session {
    place: Arc<Place>,
    asked: Notify,
}

impl Keep for Session {
    fn renew(&self) {
        self.asked.notify_one();
    }

    async fn news(&mut self) -> News {
        loop {
            let asked = tokio::select! {
                () = self.asked.notified() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            if self.place.is_lost() {
                return News::Lost(Loss::FileGone);
            }
            if asked {
                return News::Kept;
            }
        }
    }
}
