//! The search for deadlocks of nested local locks: reads the entries of several locks until they stand still.
//! It must not know which waiters form a ring, nor how a waiter leaves its queue.

use std::path::Path;

use super::state_dir::StateDir;
use crate::core::deadlock::{Aged, DeadlockSearch, NestedWait, Ring};
use crate::core::holder::OuterLock;
use crate::core::proof::FencingToken;
use crate::output::exit::Failure;
use crate::sys::proc::is_ancestor;

/// The program in the record of a `dlock hold`, whose lock is held for a process that it did not start.
const HOLD: &str = "dlock hold";

/// Those of `listed` that are locks of this directory: the variable with the list does not name the directory.
pub(super) fn held_here(root: &StateDir, listed: &[OuterLock]) -> Vec<OuterLock> {
    let is_here = |one: &&OuterLock| {
        let name = one.name.parse().ok();
        let lock_dir = name.and_then(|name| root.lock_dir(&name).ok().flatten());
        let present = lock_dir.and_then(|it| it.present().ok());
        present.unwrap_or_default().iter().any(|it| {
            let holder = it.record.as_ref().filter(|_| it.cooling.is_none());
            let is_outer = holder.is_some_and(|holder| {
                holder.program == HOLD || holder.pid.try_into().is_ok_and(is_ancestor)
            });
            is_outer && it.ticket.token == FencingToken(one.token)
        })
    };
    listed.iter().filter(is_here).cloned().collect()
}

/// The ring that we have to break, if our wait is part of a deadlock. An entry that two reads have found was there all the
/// time between them, since no token comes back: so all entries of a ring that was found twice existed at the same moment.
pub(super) fn deadlock(directory: &Path, ours: &NestedWait) -> Result<Option<Ring>, Failure> {
    let Some(root) = StateDir::find(directory)? else {
        return Ok(None);
    };
    let Some(ring) = search(&root, ours)? else {
        return Ok(None);
    };
    let again = search(&root, ours)?;
    Ok(again.filter(|again| again.is_ours_to_break && *again == ring))
}

fn search(root: &StateDir, ours: &NestedWait) -> Result<Option<Ring>, Failure> {
    let mut search = DeadlockSearch::new(ours);
    loop {
        let missing = search.missing();
        if missing.is_empty() {
            return Ok(search.ring());
        }
        for name in missing {
            let present = match root.lock_dir(&name)? {
                Some(lock_dir) => lock_dir.present()?,
                None => Vec::new(),
            };
            let aged = present.iter().map(|it| Aged {
                entry: it.queue_entry(),
                age: it.made_at,
            });
            search.push(name, aged.collect());
        }
    }
}
