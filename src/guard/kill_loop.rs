//! Killing until nothing of the tree is left, and collecting the dead.
//! It must not know why the tree has to die, nor who is told.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::tree::{FREEZE_LIMIT, Tree};
use crate::core::time::Instant;
use crate::sys::clock;
use crate::sys::proc::ProcessId;

/// Who lives this long after the first SIGKILL does not obey it.
const SURVIVOR_AFTER: Duration = Duration::from_secs(2);
/// Between rounds while the killed are dying, in case that no SIGCHLD tells of it.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// Between rounds once only those are left that do not die.
const SURVIVOR_ROUND_PAUSE: Duration = Duration::from_secs(1);

/// For how long the dead are collected at once: a fork bomb makes them as fast as we collect. Every look at the tree meets
/// all those who have not been collected, so that is the longer the fewer are collected.
const COLLECTION_LIMIT: Duration = Duration::from_millis(50);

/// Successive rounds of SIGSTOP, until nothing new appears, and then of SIGKILL. A stopped process neither forks nor ends,
/// so none is born unseen, and none loses its parent before it was seen.
pub(super) struct KillLoop {
    since_at: Instant,
    /// Whom the last round met.
    met: BTreeSet<ProcessId>,
}

impl KillLoop {
    pub(super) fn new(now: Instant) -> Self {
        raise_priority();
        Self {
            since_at: now,
            met: BTreeSet::new(),
        }
    }

    /// SIGSTOP to every descendant that the last round did not meet; SIGKILL to all of them, children before their
    /// parents, when there is no such, or when stopping takes too long. Answers when the next round should be: at once
    /// if it met somebody new, dead or alive, for then something is still forking.
    ///
    /// A dlock of the tree and its guard hold a lock for others of the tree: they are killed when all of those are dead, or
    /// when some do not die. An ordinary process that calls itself so only dies a little later, and runs no longer.
    pub(super) fn round(&mut self, tree: &mut Tree, now: Instant) -> Instant {
        let mut met = BTreeSet::new();
        let (mut others, mut dlocks) = (Vec::new(), Vec::new());
        let mut event = false;
        tree.walk(|process| {
            let identity = process.identity();
            let new = !self.met.contains(&identity);
            event |= new;
            met.insert(identity);
            // A dead process needs no signal; one that we may not signal is met again until it dies.
            if process.is_alive() {
                let living = if process.is_dlock() {
                    &mut dlocks
                } else {
                    &mut others
                };
                living.push(identity);
                if new {
                    let _ = process.signal(libc::SIGSTOP);
                }
            }
        });
        self.met = met;
        if event && now < self.since_at + FREEZE_LIMIT {
            return now;
        }
        let all_others_dead = others.is_empty() && !event;
        let locks = if all_others_dead || self.is_overdue(now) {
            &*dlocks
        } else {
            &[]
        };
        for &identity in others.iter().rev().chain(locks.iter().rev()) {
            let _ = tree.signal(identity, libc::SIGKILL);
        }
        match (event, self.is_overdue(now)) {
            (true, _) => now,
            (false, false) => now + ROUND_PAUSE,
            (false, true) => now + SURVIVOR_ROUND_PAUSE,
        }
    }

    /// Whether the last round met the process of this pid.
    pub(super) fn has_killed(&self, pid: i32) -> bool {
        let mut same = self.met.range(ProcessId { pid, start: 0 }..);
        same.next().is_some_and(|identity| identity.pid == pid)
    }

    /// Whether the last round met nobody, dead or alive. As long as there are children, /proc hides them from us.
    pub(super) fn met_nobody(&self) -> bool {
        self.met.is_empty()
    }

    /// Whether those who are left now are survivors.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.since_at + SURVIVOR_AFTER
    }
}

/// Among a thousand processes that fork for ever, an ordinary one gets a thousandth of the processor, with seconds between its
/// turns. As root, or where `RLIMIT_RTPRIO` allows it, this process takes its turn before all of them from now on.
#[expect(unsafe_code, reason = "no other way to this system call")]
fn raise_priority() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is alive during the call. Without the permission nothing changes.
    unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_RR | libc::SCHED_RESET_ON_FORK,
            &raw const priority,
        );
    }
}

/// What is left after [`reap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Children {
    /// And so no descendants: those of the dead become ours.
    None,
    /// None of them has ended.
    Alive,
    /// There may be more to collect.
    More,
}

/// Collects the children that have ended, without waiting.
pub(super) fn reap(mut ended: impl FnMut(Pid, WaitStatus)) -> Children {
    let until_at = clock::now() + COLLECTION_LIMIT;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended(pid, status),
            Ok(None) => return Children::Alive,
            Err(Errno::CHILD) => return Children::None,
            Err(_) => return Children::More,
        }
        if clock::now() >= until_at {
            return Children::More;
        }
    }
}
