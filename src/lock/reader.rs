//! The interface to the locks of every kind, without an entry in any queue: read, watched, checked.
//! It must not know which kinds there are, nor what is shown.

use futures_util::future::LocalBoxFuture;

use crate::core::blockers::OrphanSlot;
use crate::core::history::{History, Request};
use crate::core::listing::ListedLock;
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::lock::error::LockError;

/// A selection of locks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// The locks whose names begin with this.
    BeginningWith(String),
    One(LockName),
}

/// Identity of a snapshot, for comparison with later ones: a revision of etcd, or a hash of the local locks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot(pub(crate) i64);

/// The variables that a command gets from one kind of lock, beside those of every lock; `None` if it is not held.
pub(crate) type Held = Option<Vec<(&'static str, String)>>;

/// An answer that is awaited.
pub(crate) type Reading<'a, T> = LocalBoxFuture<'a, Result<T, LockError>>;

/// The receiver of locks.
pub(crate) type Take<'a> = &'a mut dyn FnMut(ListedLock);

/// The locks of one kind.
pub(crate) trait LockReader {
    /// Passes every selected lock with a holder or waiter to `take`, in the order of their names.
    fn read<'a>(&'a self, which: &'a Selection, take: Take<'a>) -> Reading<'a, Snapshot>;

    /// A slot of the lock that is taken although its entry is gone.
    fn orphan_slot<'a>(&'a self, name: &'a LockName) -> Reading<'a, Option<OrphanSlot>>;

    /// Waits for the next change of the selected locks.
    fn change<'a>(&'a self, which: &'a Selection, before: Snapshot) -> Reading<'a, ()>;

    /// The past holders of the lock `name`.
    fn history<'a>(&'a self, name: &'a LockName, request: Request) -> Reading<'a, History>;

    /// Whether `token` holds the lock `name` now.
    fn held<'a>(&'a self, name: &'a LockName, token: FencingToken) -> Reading<'a, Held>;
}
