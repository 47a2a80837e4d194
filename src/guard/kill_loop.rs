//! The kill loop: kills until nothing of the tree is left, and reaps children.
//! It must not know why the tree must die, nor where that is reported.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::Survivor;
use super::tree::{FREEZE_LIMIT, Tree};
use crate::core::time::Instant;
use crate::sys::clock;
use crate::sys::proc::ProcessId;
use crate::sys::scheduling;

/// A process that lives this long after the first SIGKILL is a survivor, except one that only waits for a processor.
const SURVIVOR_AFTER: Duration = Duration::from_secs(2);
/// The same for every process. On a busy machine a killed process may wait some seconds for the processor on which it ends.
const STARVED_AFTER: Duration = Duration::from_secs(30);
/// Pause between rounds while killed processes are dying, in case no SIGCHLD arrives.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// Pause between rounds once only survivors are left.
const SURVIVOR_ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Limit of one call of [`reap`]: a fork bomb makes zombies as fast as they are reaped. Every zombie that is left makes the
/// next walk of the tree longer.
const COLLECTION_LIMIT: Duration = Duration::from_millis(50);

/// Rounds of SIGSTOP until no new process appears, then of SIGKILL. A stopped process neither forks nor exits, so no child
/// is missed and none loses its parent before it was found.
pub(super) struct KillLoop {
    since_at: Instant,
    /// The processes that the last round found.
    met: BTreeSet<ProcessId>,
}

impl KillLoop {
    pub(super) fn new(now: Instant) -> Self {
        scheduling::raise_priority();
        Self {
            since_at: now,
            met: BTreeSet::new(),
        }
    }

    /// Sends SIGSTOP to every descendant that the last round did not find; once there is no new one, or stopping takes too
    /// long, SIGKILL to all of them, children before parents. Returns the time of the next round: now if a new process was
    /// found, dead or alive, because then the tree still forks.
    ///
    /// A dlock in the tree and its guard hold a lock for other processes of the tree: they are killed when all of those are
    /// dead, or when some do not die. Another program with that name is stopped at once, too, and only dies a little later.
    pub(super) fn round(&mut self, tree: &mut Tree, now: Instant) -> Instant {
        let mut met = BTreeSet::new();
        let (mut others, mut dlocks) = (Vec::new(), Vec::new());
        let mut event = false;
        let top = tree.top();
        tree.walk(|process| {
            let identity = process.identity;
            let new = !self.met.contains(&identity);
            event |= new;
            met.insert(identity);
            // A dead process needs no signal; one that cannot be signalled is found again until it dies.
            if process.is_alive() {
                let living = if process.is_dlock() {
                    &mut dlocks
                } else {
                    &mut others
                };
                living.push(identity);
                if new && Some(identity) != top {
                    let _ = process.signal(libc::SIGSTOP);
                }
            }
        });
        self.met = met;
        let freeze_limit_at = self.since_at + FREEZE_LIMIT;
        if event && now < freeze_limit_at {
            return now;
        }
        tree.freeze_adopted(freeze_limit_at);
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

    /// Whether the last round found a process with this pid.
    pub(super) fn has_killed(&self, pid: i32) -> bool {
        let mut same = self.met.range(ProcessId { pid, start: 0 }..);
        same.next().is_some_and(|identity| identity.pid == pid)
    }

    /// Whether the last round found no process, dead or alive. If there are children all the same, they cannot be seen.
    pub(super) fn met_nobody(&self) -> bool {
        self.met.is_empty()
    }

    /// The processes that SIGKILL has not ended by `now`, when it [is overdue](Self::is_overdue); `None` if all that are left
    /// are about to end. Never empty: what cannot be seen is not dead.
    pub(super) fn survivors(&self, tree: &mut Tree, now: Instant) -> Option<Vec<Survivor>> {
        let waits = now < self.since_at + STARVED_AFTER;
        let survivors = tree.survivors_except(|process| waits && process.is_ready());
        if survivors.is_empty() && self.met_nobody() {
            return Some(vec![Survivor::UNSEEN]);
        }
        (!survivors.is_empty()).then_some(survivors)
    }

    /// Whether processes that are left at `now` can be survivors.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.since_at + SURVIVOR_AFTER
    }
}

/// The state of the children after [`reap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Children {
    /// There are no children and so no descendants: orphans become children of this process.
    None,
    /// None of them has ended.
    Alive,
    /// More children may have ended.
    More,
}

/// Reaps the children that have ended, without waiting.
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
