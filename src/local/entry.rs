//! Our entry in the queue of a lock: it gets a token, waits in the kernel for its turn, and is removed.
//! It must not know how files show the other entries, nor who waits meanwhile.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::pwrite;

use super::history::HELD;
use super::lock_dir::{LockDir, Locked, Present};
use crate::core::blockers::{BlockerScan, Blockers};
use crate::core::deadlock::NestedWait;
use crate::core::history::LocalHold;
use crate::core::holder::{Holder, OuterLock};
use crate::core::local::EntryName;
use crate::core::lock_delay::Ended;
use crate::core::request::{LockRequest, Mode, WaitPolicy};
use crate::lock::backend::QueuePosition;
use crate::lock::error::mode_conflict;
use crate::output::exit::Failure;

/// Interval between checks for a free slot, by the first waiter.
const SLOT_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Interval between checks of a cooldown, whose time counts while the machine sleeps, unlike that of a timeout.
const COOLDOWN_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time that a request without a wait gives other processes to change the queue; they need some milliseconds.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Our entry, shared with the waiting thread.
pub(super) struct Entry {
    pub(super) lock_dir: LockDir,
    /// The entry's file, whose flock is the entry; the guard has the same open file.
    pub(super) file: OwnedFd,
    pub(super) record: Holder,
    /// The locks that the run has taken already.
    taken: Mutex<Vec<OuterLock>>,
    request: LockRequest,
    own: Mutex<Own>,
}

/// The current file name of our entry.
struct Own {
    file: String,
    ticket: Option<EntryName>,
    /// The entry is removed: nothing may use it any more.
    left: bool,
}

/// The result of waiting.
pub(super) enum QueueOutcome {
    Acquired(EntryName),
    Busy(QueuePosition),
    Cooling(QueuePosition, Duration),
}

impl Entry {
    /// Creates an entry without a token; `record` is the holder record that others see.
    pub(super) fn create(
        lock_dir: LockDir,
        record: Holder,
        request: LockRequest,
    ) -> Result<Self, Failure> {
        let (name, file) = lock_dir.make_entry(&record)?;
        let own = Own {
            file: name,
            ticket: None,
            left: false,
        };
        Ok(Self {
            lock_dir,
            file,
            record,
            taken: Mutex::default(),
            request,
            own: Mutex::new(own),
        })
    }

    /// The locks that its owner holds.
    fn held(&self) -> Vec<OuterLock> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        [&self.record.held[..], &taken[..]].concat()
    }

    /// Adds the locks that the run has taken already to the record, before the entry has a token: no other process reads
    /// it until then.
    pub(super) fn list_taken(&self, taken: &[OuterLock]) -> Result<(), Failure> {
        if taken.is_empty() {
            return Ok(());
        }
        let own = self.own()?;
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = taken.to_vec();
        let record = Holder {
            held: self.held(),
            ..self.record.clone()
        };
        self.lock_dir.rewrite_entry(&own.file, &self.file, &record)
    }

    /// Whether it waits without limit while its owner holds other locks.
    pub(super) fn is_nested(&self) -> bool {
        !self.held().is_empty() && !self.record.limited
    }

    /// The mode in the queue: a lock with one slot is an exclusive one.
    fn mode(&self) -> Mode {
        match self.request.mode {
            Mode::Slots(1) => Mode::Exclusive,
            mode => mode,
        }
    }

    /// Gets a token, and the lock if it is free; `None` while another process changes the queue. Never waits for one.
    pub(super) fn try_enter(&self) -> Result<Option<Entered>, Failure> {
        let locked = self.lock_dir.try_lock()?;
        locked.map(|locked| self.enter(&locked)).transpose()
    }

    /// Waits for the lock, after it has got a token unless it has `entered` already. Blocks.
    pub(super) fn queue(
        &self,
        entered: Option<Entered>,
        mut tell: impl FnMut(QueuePosition),
    ) -> Result<QueueOutcome, Failure> {
        let entered = match entered {
            Some(entered) => entered,
            None => self.enter(&match self.request.wait_policy {
                WaitPolicy::NoWait => self.lock_dir.lock_within(QUEUE_TIMEOUT)?,
                WaitPolicy::Timeout(_) | WaitPolicy::Forever => self.lock_dir.lock()?,
            })?,
        };
        let (ticket, ahead) = match entered {
            Entered::Ended(end) => return Ok(end),
            Entered::Behind(ticket, ahead) => (ticket, ahead),
        };
        tell(ahead.clone());
        match self.mode() {
            Mode::Slots(slots) => self.await_slot(ticket, slots),
            Mode::Exclusive | Mode::Shared => self.await_turn(ticket, ahead, tell),
        }
    }

    fn await_turn(
        &self,
        ticket: EntryName,
        mut told: QueuePosition,
        mut tell: impl FnMut(QueuePosition),
    ) -> Result<QueueOutcome, Failure> {
        loop {
            let mut before = self.lock_dir.present()?;
            before.retain(|one| one.ticket.token < ticket.token);
            let turn = self.turn(&before);
            let Some(blocker) = turn.entries.first() else {
                // Names may have changed during the read. Under the lock none does.
                let locked = self.lock_dir.lock()?;
                let present = locked.swept()?;
                match self.try_acquire(&locked, ticket, &present)? {
                    Some(end) => return Ok(end),
                    None => continue,
                }
            };
            let ahead = ahead(&before);
            if ahead != told {
                tell(ahead.clone());
                told = ahead;
            }
            let blocker = before.iter().find(|one| one.ticket.token == blocker.token);
            match blocker.map(|one| (one.ticket, one.cooling)) {
                Some((_, Some(left))) => thread::sleep(COOLDOWN_POLL_INTERVAL.min(left)),
                Some((ticket, None)) => self.lock_dir.await_end(ticket)?,
                None => {}
            }
        }
    }

    fn await_slot(&self, ticket: EntryName, slots: u16) -> Result<QueueOutcome, Failure> {
        let _next = self.lock_dir.await_slots()?;
        loop {
            let present = self.lock_dir.present()?;
            let taken = present.iter().filter(|one| one.ticket.slot.is_some());
            if taken.count() < slots.into() {
                let locked = self.lock_dir.lock()?;
                let present = locked.swept()?;
                if let Some(end) = self.try_acquire(&locked, ticket, &present)? {
                    return Ok(end);
                }
            }
            thread::sleep(SLOT_POLL_INTERVAL);
        }
    }

    /// Acquires the lock, if the entries in `present` allow it.
    fn try_acquire(
        &self,
        locked: &Locked,
        ticket: EntryName,
        present: &[Present],
    ) -> Result<Option<QueueOutcome>, Failure> {
        let before = present.iter().filter(|one| one.ticket.token < ticket.token);
        let before: Vec<Present> = before.cloned().collect();
        let many = matches!(self.mode(), Mode::Slots(_));
        if !many && !self.turn(&before).entries.is_empty() {
            return Ok(None);
        }
        let Mode::Slots(slots) = self.request.mode else {
            return self.acquired(ticket).map(Some);
        };
        let mut own = self.own()?;
        let Some(taken) = locked.slot(ticket, slots, present)? else {
            return Ok(None);
        };
        own.set_name(taken);
        drop(own);
        self.acquired(taken).map(Some)
    }

    /// Gets a token, unless the request already fails without one.
    fn enter(&self, locked: &Locked) -> Result<Entered, Failure> {
        let present = locked.swept()?;
        let mut others = present.iter().map(|one| one.queue_entry().mode());
        if let Some(theirs) = others.find(|theirs| !theirs.is_compatible_with(self.request.mode)) {
            let by = ahead(&present).holder;
            return Err(mode_conflict(theirs, by.as_ref(), self.request.mode));
        }
        let free = self.turn(&present).entries.is_empty();
        if !free && self.request.wait_policy == WaitPolicy::NoWait {
            let left = present.iter().filter_map(|one| one.cooling).max();
            let all_cool = present.iter().all(|one| one.cooling.is_some());
            return Ok(Entered::Ended(match left.filter(|_| all_cool) {
                Some(left) => QueueOutcome::Cooling(ahead(&present), left),
                None => QueueOutcome::Busy(ahead(&present)),
            }));
        }
        let mut own = self.own()?;
        let ticket = locked.number(&own.file, &present)?;
        own.set_name(ticket);
        drop(own);
        let won = if free {
            self.try_acquire(locked, ticket, &present)?
        } else {
            None
        };
        Ok(won.map_or_else(|| Entered::Behind(ticket, ahead(&present)), Entered::Ended))
    }

    /// The entries of `before` that block ours.
    fn turn(&self, before: &[Present]) -> Blockers {
        let mut scan = BlockerScan::new(self.mode());
        for one in before.iter().rev() {
            if !scan.push(one.queue_entry()) {
                break;
            }
        }
        scan.finish()
    }

    /// The lock is acquired: creates all that must exist before the command starts.
    fn acquired(&self, ticket: EntryName) -> Result<QueueOutcome, Failure> {
        if let Some(hold) = self.request.min_hold {
            let _own = self.own()?;
            self.lock_dir.prepare_cooling(ticket, hold)?;
        }
        if self.is_lost() {
            return Err(anyhow!("the entry in the queue was removed by another process").into());
        }
        // For the history alone, if we die. The record may have been replaced by a longer one.
        if let Ok(status) = fstat(&self.file) {
            let end = u64::try_from(status.st_size).unwrap_or_default();
            let _ = pwrite(&self.file, HELD, end);
        }
        Ok(QueueOutcome::Acquired(ticket))
    }

    /// Our wait inside of other locks, once it has a token.
    pub(super) fn nested_wait(&self) -> Option<NestedWait> {
        let ticket = self.names().ticket?;
        Some(NestedWait {
            name: self.lock_dir.name.clone(),
            token: ticket.token,
            held: self.held(),
        })
    }

    /// The current position in the queue, for people; `None` without a token.
    pub(super) fn position(&self) -> Option<QueuePosition> {
        let token = self.names().ticket?.token;
        let mut before = self.lock_dir.present().ok()?;
        before.retain(|one| one.ticket.token < token);
        (!before.is_empty()).then(|| ahead(&before))
    }

    /// Whether our file was removed or replaced.
    pub(super) fn is_lost(&self) -> bool {
        let own = self.names();
        self.lock_dir.is_lost(&own.file, &self.file)
    }

    fn names(&self) -> MutexGuard<'_, Own> {
        // Its value is valid at any time.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our entry, as long as it is not removed.
    fn own(&self) -> Result<MutexGuard<'_, Own>, Failure> {
        let own = self.names();
        if own.left {
            return Err(anyhow!("the wait is over").into());
        }
        Ok(own)
    }

    /// Adds our hold to the history of the lock.
    pub(super) fn remember(&self, ended: Ended) {
        let ticket = self.names().ticket;
        if let Some(EntryName { token, slot }) = ticket {
            self.lock_dir.add_to_history(&LocalHold {
                token,
                slot,
                holder: self.record.clone(),
                ended: Some(ended),
            });
        }
    }

    /// Removes the entry, at once for all waiters. `cools`: it keeps the lock taken for the requested time.
    pub(super) fn remove(&self, cools: bool) {
        let mut own = self.names();
        own.left = true;
        let lost = self.lock_dir.is_lost(&own.file, &self.file);
        let stays = own
            .ticket
            .is_some_and(|ticket| cools && !lost && self.lock_dir.cool(ticket));
        if !stays && !lost {
            if let Some(ticket) = own.ticket {
                self.lock_dir.remove(&ticket.cooling());
                self.lock_dir.remove(&ticket.prepared_cooling());
            }
            self.lock_dir.remove(&own.file);
        }
        // This unlocks the guard's descriptor, too: both share one open file.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Own {
    fn set_name(&mut self, ticket: EntryName) {
        self.file = ticket.to_string();
        self.ticket = Some(ticket);
    }
}

/// The result of a try to get a token.
pub(super) enum Entered {
    Ended(QueueOutcome),
    Behind(EntryName, QueuePosition),
}

fn ahead(before: &[Present]) -> QueuePosition {
    QueuePosition {
        holder: before.first().and_then(|first| first.queue_entry().record),
        count: before.len(),
        lease: None,
        permanent: None,
    }
}
