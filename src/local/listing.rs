//! Reads the locks of this machine, without an entry in any queue.
//! It must not know what is shown of them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::history::HISTORY_LENGTH;
use super::lock_dir::{LockDir, Present};
use super::state_dir::StateDir;
use crate::core::blockers::OrphanSlot;
use crate::core::blockers::holders;
use crate::core::history::{History, Memory, Request};
use crate::core::listing::ListedLock;
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::lock::reader::{Held, LockReader, Reading, Selection, Snapshot, Take};
use crate::output::exit::Failure;

/// Pause between two reads of the state directory.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The locks in this state directory. A directory that does not exist has none.
pub(crate) struct LocalReader<'a>(pub(crate) &'a Path);

impl LocalReader<'_> {
    /// The locks that are held or waited for, in the order of their directories' names.
    fn locks(&self, which: &Selection) -> Result<Vec<ListedLock>, Failure> {
        let Some(root) = StateDir::find(self.0)? else {
            return Ok(Vec::new());
        };
        let names = match which {
            Selection::BeginningWith(prefix) => {
                let mut names = root.names()?;
                names.retain(|name| name.to_string().starts_with(prefix));
                names
            }
            Selection::One(name) => vec![name.clone()],
        };
        let mut locks = Vec::new();
        for name in names {
            if let Some(lock_dir) = root.lock_dir(&name)? {
                locks.extend(lock(&name, &lock_dir)?);
            }
        }
        Ok(locks)
    }

    /// Whether `token` is that of an entry which holds the lock now.
    fn holds(&self, name: &LockName, token: FencingToken) -> Result<bool, Failure> {
        let Some(root) = StateDir::find(self.0)? else {
            return Ok(false);
        };
        let Some(lock_dir) = root.lock_dir(name)? else {
            return Ok(false);
        };
        let present = lock_dir.present()?;
        let entries: Vec<_> = present.iter().map(Present::queue_entry).collect();
        let mut entries = present.iter().zip(holders(&entries));
        Ok(entries.any(|(one, holds)| holds && one.cooling.is_none() && one.ticket.token == token))
    }
}

impl LockReader for LocalReader<'_> {
    fn history<'a>(&'a self, name: &'a LockName, request: Request) -> Reading<'a, History> {
        async move {
            let lock_dir = match StateDir::find(self.0)? {
                Some(root) => root.lock_dir(name)?,
                None => None,
            };
            let holds = lock_dir
                .map(|lock_dir| lock_dir.past_and_current())
                .transpose()?;
            let memory = Memory::Last(HISTORY_LENGTH);
            Ok(History::new(holds.unwrap_or_default(), memory, request))
        }
        .boxed_local()
    }

    fn read<'a>(&'a self, which: &'a Selection, take: Take<'a>) -> Reading<'a, Snapshot> {
        async move {
            let locks = self.locks(which)?;
            let snapshot = snapshot(&locks);
            locks.into_iter().for_each(take);
            Ok(snapshot)
        }
        .boxed_local()
    }

    fn orphan_slot<'a>(&'a self, _: &'a LockName) -> Reading<'a, Option<OrphanSlot>> {
        // A slot is a part of the name of its entry.
        std::future::ready(Ok(None)).boxed_local()
    }

    fn change<'a>(&'a self, which: &'a Selection, before: Snapshot) -> Reading<'a, ()> {
        async move {
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                if snapshot(&self.locks(which)?) != before {
                    return Ok(());
                }
            }
        }
        .boxed_local()
    }

    fn held<'a>(&'a self, name: &'a LockName, token: FencingToken) -> Reading<'a, Held> {
        async move { Ok(self.holds(name, token)?.then(Vec::new)) }.boxed_local()
    }
}

fn lock(name: &LockName, lock_dir: &LockDir) -> Result<Option<ListedLock>, Failure> {
    let present = lock_dir.present()?;
    let entries = present.iter().map(Present::queue_entry);
    let mut lock = ListedLock::new(&name.encoded(), entries.collect());
    for (entry, one) in lock.entries.iter_mut().zip(&present) {
        entry.left = one.cooling;
    }
    Ok((!present.is_empty()).then_some(lock))
}

fn snapshot(locks: &[ListedLock]) -> Snapshot {
    let mut hasher = DefaultHasher::new();
    for lock in locks {
        lock.name.hash(&mut hasher);
        for entry in &lock.entries {
            // Elapsed time is no change.
            entry.entry.key.hash(&mut hasher);
            entry.left.is_some().hash(&mut hasher);
        }
    }
    Snapshot(hasher.finish().cast_signed())
}
