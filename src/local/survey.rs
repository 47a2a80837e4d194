//! Looking at the locks of this machine, without a place in any queue.
//! It must not know what is shown of them.

use std::path::Path;

use super::folder::Root;
use super::lane::Lane;
use crate::core::lease::FencingToken;
use crate::core::name::LockName;
use crate::core::survey::Lock;
use crate::core::turn::holders;
use crate::exit::Failure;

/// Which locks.
pub(crate) enum Which<'a> {
    /// Those whose names begin so.
    BeginningWith(&'a str),
    One(&'a LockName),
}

/// The locks that somebody has or waits for, in the order of their folders' names. A folder that is not there has none.
pub(crate) fn read(folder: &Path, which: &Which) -> Result<Vec<Lock>, Failure> {
    let Some(root) = Root::find(folder)? else {
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
        if let Some(lane) = root.lane(&name)? {
            locks.extend(lock(&name, &lane)?);
        }
    }
    Ok(locks)
}

fn lock(name: &LockName, lane: &Lane) -> Result<Option<Lock>, Failure> {
    let present = lane.present()?;
    let standings = present.iter().map(super::lane::Present::standing);
    let mut lock = Lock::new(&name.encoded(), standings.collect());
    for (place, one) in lock.places.iter_mut().zip(&present) {
        place.left = one.cooling;
    }
    Ok((!present.is_empty()).then_some(lock))
}

/// Whether `token` is that of a place which has the lock now.
pub(crate) fn holds(folder: &Path, name: &LockName, token: FencingToken) -> Result<bool, Failure> {
    let lane = match Root::find(folder)? {
        Some(root) => root.lane(name)?,
        None => None,
    };
    let Some(lane) = lane else {
        return Ok(false);
    };
    let present = lane.present()?;
    let standings: Vec<_> = present.iter().map(super::lane::Present::standing).collect();
    let holders = present.iter().zip(holders(&standings));
    Ok(holders
        .into_iter()
        .any(|(one, holds)| holds && one.cooling.is_none() && one.ticket.token == token))
}
