//! Our place in the queue of a lock: gets its token, waits in the kernel for its turn, is given up.
//! It must not know how files tell who is there, nor who waits for us meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use rustix::fs::{FlockOperation, flock};

use super::lane::{Lane, Locked, Present};
use crate::contest::Ahead;
use crate::core::holder::Holder;
use crate::core::local::Ticket;
use crate::core::mode::{Mode, Patience, Wish};
use crate::core::turn::{Scan, Turn};
use crate::exit::{Failure, OrFail as _};

/// Between two looks for a free slot, by the one whose turn it is.
const FREE_SLOT: Duration = Duration::from_millis(50);
/// Between two looks at a lock that cools down: its time counts while the machine sleeps, ours does not.
const COOL: Duration = Duration::from_secs(1);

/// Our place, shared with the thread that waits.
pub(super) struct Place {
    lane: Lane,
    /// Its flock is the place; the guard has the same open file.
    file: OwnedFd,
    record: Holder,
    wish: Wish,
    own: Mutex<Own>,
}

/// What our place is called.
struct Own {
    file: String,
    ticket: Option<Ticket>,
    /// It is given up: nothing may be done with it any more.
    left: bool,
}

/// What the waiting led to.
pub(super) enum End {
    Won(Ticket),
    Busy(Ahead),
    Cooling(Ahead, Duration),
}

impl Place {
    /// A place that has no token yet; `record` is what others are shown of us.
    pub(super) fn make(lane: Lane, record: Holder, wish: Wish) -> Result<Self, Failure> {
        let (name, file) = lane.make_place(&record)?;
        let own = Own {
            file: name,
            ticket: None,
            left: false,
        };
        Ok(Self {
            lane,
            file,
            record,
            wish,
            own: Mutex::new(own),
        })
    }

    /// What has to stay open for as long as the lock is to be held.
    pub(super) fn held(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    pub(super) fn record(&self) -> &Holder {
        &self.record
    }

    /// How the queue is stood in: a lock with one slot is an exclusive one.
    fn mode(&self) -> Mode {
        match self.wish.mode {
            Mode::Slots(1) => Mode::Exclusive,
            mode => mode,
        }
    }

    /// Takes a token and waits for the turn. Blocks.
    pub(super) fn queue(&self, mut tell: impl FnMut(Ahead)) -> Result<End, Failure> {
        let (ticket, ahead) = match self.enter()? {
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
        ticket: Ticket,
        mut told: Ahead,
        mut tell: impl FnMut(Ahead),
    ) -> Result<End, Failure> {
        loop {
            let mut before = self.lane.present()?;
            before.retain(|one| one.ticket.token < ticket.token);
            let turn = self.turn(&before);
            let Some(blocker) = turn.blockers.first() else {
                // Names may have changed while they were read. Under the lock nobody's does.
                let locked = self.lane.lock()?;
                let present = locked.swept()?;
                match self.take(&locked, ticket, &present)? {
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
                Some((_, Some(left))) => thread::sleep(COOL.min(left)),
                Some((ticket, None)) => self.lane.await_end(ticket)?,
                None => {}
            }
        }
    }

    fn await_slot(&self, ticket: Ticket, slots: u16) -> Result<End, Failure> {
        let _next = self.lane.await_slots()?;
        loop {
            let present = self.lane.present()?;
            let taken = present.iter().filter(|one| one.ticket.slot.is_some());
            if taken.count() < slots.into() {
                let locked = self.lane.lock()?;
                let present = locked.swept()?;
                if let Some(end) = self.take(&locked, ticket, &present)? {
                    return Ok(end);
                }
            }
            thread::sleep(FREE_SLOT);
        }
    }

    /// Takes the lock, if it is ours by what is `present` now.
    fn take(
        &self,
        locked: &Locked,
        ticket: Ticket,
        present: &[Present],
    ) -> Result<Option<End>, Failure> {
        let before = present.iter().filter(|one| one.ticket.token < ticket.token);
        let before: Vec<Present> = before.cloned().collect();
        let many = matches!(self.mode(), Mode::Slots(_));
        if !many && !self.turn(&before).blockers.is_empty() {
            return Ok(None);
        }
        let Mode::Slots(slots) = self.wish.mode else {
            return self.won(ticket).map(Some);
        };
        let mut own = self.own()?;
        let Some(taken) = locked.slot(ticket, slots, present)? else {
            return Ok(None);
        };
        own.called(taken);
        drop(own);
        self.won(taken).map(Some)
    }

    /// Takes a token, unless it is clear that no command of ours is to run now.
    fn enter(&self) -> Result<Entered, Failure> {
        let locked = self.lane.lock()?;
        let present = locked.swept()?;
        let others: Vec<Mode> = present.iter().map(|one| one.standing().mode()).collect();
        if let Some(theirs) = others.iter().find(|theirs| !theirs.fits(self.wish.mode)) {
            return Err(anyhow!(
                "it is used as '{theirs}' by {}, not as '{}'",
                ahead(&present)
                    .holder
                    .map(|holder| holder.sentence())
                    .unwrap_or_default(),
                self.wish.mode
            ))
            .or_hint("all who use a lock have to give the same --slots");
        }
        let free = self.turn(&present).blockers.is_empty();
        if !free && self.wish.patience == Patience::None {
            let left = present.iter().filter_map(|one| one.cooling).max();
            let all_cool = present.iter().all(|one| one.cooling.is_some());
            return Ok(Entered::Ended(match left.filter(|_| all_cool) {
                Some(left) => End::Cooling(ahead(&present), left),
                None => End::Busy(ahead(&present)),
            }));
        }
        let mut own = self.own()?;
        let ticket = locked.number(&own.file, &present)?;
        own.called(ticket);
        drop(own);
        let won = if free {
            self.take(&locked, ticket, &present)?
        } else {
            None
        };
        Ok(won.map_or_else(|| Entered::Behind(ticket, ahead(&present)), Entered::Ended))
    }

    /// Who of those before us is waited for.
    fn turn(&self, before: &[Present]) -> Turn {
        let mut scan = Scan::new(self.mode());
        for one in before.iter().rev() {
            if !scan.see(one.standing()) {
                break;
            }
        }
        scan.turn()
    }

    /// It is our turn: everything that has to be there before the command starts.
    fn won(&self, ticket: Ticket) -> Result<End, Failure> {
        if let Some(hold) = self.wish.min_hold {
            let _own = self.own()?;
            self.lane.prepare_cooling(ticket, hold)?;
        }
        if self.is_lost() {
            return Err(anyhow!("our place in the queue was removed by somebody").into());
        }
        Ok(End::Won(ticket))
    }

    /// Who is before us at this moment, for people; `None` without a token.
    pub(super) fn ahead(&self) -> Option<Ahead> {
        let token = self.names().ticket?.token;
        let mut before = self.lane.present().ok()?;
        before.retain(|one| one.ticket.token < token);
        (!before.is_empty()).then(|| ahead(&before))
    }

    /// Whether somebody has removed it, or put another file there.
    pub(super) fn is_lost(&self) -> bool {
        let own = self.names();
        self.lane.has_lost(&own.file, &self.file)
    }

    fn names(&self) -> MutexGuard<'_, Own> {
        // It is whole at any moment.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our place, as long as it is not given up.
    fn own(&self) -> Result<MutexGuard<'_, Own>, Failure> {
        let own = self.names();
        if own.left {
            return Err(anyhow!("nobody waits any more").into());
        }
        Ok(own)
    }

    /// Gives the place up, at once for all who wait. `cools`: it stays taken for as long as was wished.
    pub(super) fn leave(&self, cools: bool) {
        let mut own = self.names();
        own.left = true;
        let lost = self.lane.has_lost(&own.file, &self.file);
        let stays = own
            .ticket
            .is_some_and(|ticket| cools && !lost && self.lane.cool(ticket));
        if !stays && !lost {
            if let Some(ticket) = own.ticket {
                self.lane.remove(&ticket.cooling());
                self.lane.remove(&ticket.prepared_cooling());
            }
            self.lane.remove(&own.file);
        }
        // Of the guard's descriptor, too: the file is open once.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Own {
    fn called(&mut self, ticket: Ticket) {
        self.file = ticket.to_string();
        self.ticket = Some(ticket);
    }
}

/// How taking a token went.
enum Entered {
    Ended(End),
    Behind(Ticket, Ahead),
}

fn ahead(before: &[Present]) -> Ahead {
    Ahead {
        holder: before.first().and_then(|first| first.standing().record),
        count: before.len(),
        lease: None,
    }
}
