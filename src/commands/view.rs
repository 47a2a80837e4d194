//! A snapshot of the locks, and the wait for a change: in etcd, or on this machine.
//! It must not know how they are shown.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::Duration;

use crate::cli::look::ListRequest;
use crate::config::Settings;
use crate::config::backend::BackendConfig;
use crate::core::keys::LockKeys;
use crate::core::listing::ListedLock;
use crate::etcd::Cluster;
use crate::etcd::listing::{self, Range};
use crate::local::{self, Which};
use crate::lock::error::LockError;

/// Pause between two reads of the state directory.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The backend that is read, and the locks to read.
pub(super) enum View<'a> {
    Etcd {
        cluster: Cluster,
        range: Range,
        limit: Duration,
    },
    Local {
        directory: &'a Path,
        which: Which<'a>,
    },
}

/// Identity of a snapshot, for comparison with later ones: a revision of etcd, or a hash of the local locks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Snapshot(i64);

impl<'a> View<'a> {
    pub(super) fn new(backend: &'a BackendConfig, request: &'a ListRequest) -> Self {
        match backend {
            BackendConfig::Etcd(settings) => Self::Etcd {
                cluster: Cluster::new(settings),
                range: range(settings, request),
                limit: settings.connect_timeout,
            },
            BackendConfig::Local(directory) => Self::Local {
                directory,
                which: match request {
                    ListRequest::List(prefix, _) => Which::BeginningWith(prefix),
                    ListRequest::Status(name, _) | ListRequest::Held(name) => Which::One(name),
                },
            },
        }
    }

    /// Passes every lock with a holder or waiter to `take`.
    pub(super) async fn read(
        &self,
        mut take: impl FnMut(ListedLock),
    ) -> Result<Snapshot, LockError> {
        match self {
            Self::Etcd {
                cluster,
                range,
                limit,
            } => listing::read(cluster, range, *limit, take)
                .await
                .map(Snapshot),
            Self::Local { directory, which } => {
                let locks = local::read(directory, which)?;
                let snapshot = snapshot(&locks);
                locks.into_iter().for_each(&mut take);
                Ok(snapshot)
            }
        }
    }

    /// Waits for the next change.
    pub(super) async fn change(&self, Snapshot(before): Snapshot) -> Result<(), LockError> {
        match self {
            Self::Etcd {
                cluster,
                range,
                limit,
            } => listing::change(cluster, range, before, *limit).await,
            Self::Local { directory, which } => loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                if snapshot(&local::read(directory, which)?) != Snapshot(before) {
                    return Ok(());
                }
            },
        }
    }
}

fn range(settings: &Settings, request: &ListRequest) -> Range {
    let namespace = &settings.prefix;
    match request {
        ListRequest::List(prefix, _) => Range::beginning_with(namespace, prefix),
        ListRequest::Status(name, _) | ListRequest::Held(name) => {
            Range::of(&LockKeys::new(namespace, name))
        }
    }
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
