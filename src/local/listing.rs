//! Reads the locks of this machine, without an entry in any queue.
//! It must not know what is shown of them.

use std::path::Path;

use super::lock_dir::LockDir;
use super::state_dir::StateDir;
use crate::core::blockers::holders;
use crate::core::listing::ListedLock;
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::output::exit::Failure;

/// A selection of locks.
pub(crate) enum Which<'a> {
    /// The locks whose names begin with this.
    BeginningWith(&'a str),
    One(&'a LockName),
}

/// The locks that are held or waited for, in the order of their directories' names. A directory that does not exist has
/// none.
pub(crate) fn read(directory: &Path, which: &Which) -> Result<Vec<ListedLock>, Failure> {
    let Some(root) = StateDir::find(directory)? else {
        return Ok(Vec::new());
    };
    let names = match which {
        Which::BeginningWith(prefix) => {
            let mut names = root.names()?;
            names.retain(|name| name.to_string().starts_with(prefix));
            names
        }
        Which::One(name) => vec![(*name).clone()],
    };
    let mut locks = Vec::new();
    for name in names {
        if let Some(lock_dir) = root.lock_dir(&name)? {
            locks.extend(lock(&name, &lock_dir)?);
        }
    }
    Ok(locks)
}

fn lock(name: &LockName, lock_dir: &LockDir) -> Result<Option<ListedLock>, Failure> {
    let present = lock_dir.present()?;
    let standings = present.iter().map(super::lock_dir::Present::queue_entry);
    let mut lock = ListedLock::new(&name.encoded(), standings.collect());
    for (entry, one) in lock.entries.iter_mut().zip(&present) {
        entry.left = one.cooling;
    }
    Ok((!present.is_empty()).then_some(lock))
}

/// Whether `token` is that of an entry which holds the lock now.
pub(crate) fn holds(
    directory: &Path,
    name: &LockName,
    token: FencingToken,
) -> Result<bool, Failure> {
    let lock_dir = match StateDir::find(directory)? {
        Some(root) => root.lock_dir(name)?,
        None => None,
    };
    let Some(lock_dir) = lock_dir else {
        return Ok(false);
    };
    let present = lock_dir.present()?;
    let standings: Vec<_> = present
        .iter()
        .map(super::lock_dir::Present::queue_entry)
        .collect();
    let holders = present.iter().zip(holders(&standings));
    Ok(holders
        .into_iter()
        .any(|(one, holds)| holds && one.cooling.is_none() && one.ticket.token == token))
}
