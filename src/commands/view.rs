//! The locks as they are now, and the waiting for a change: in etcd, or on this machine.
//! It must not know what is shown of them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::Duration;

use crate::cli::look::ListRequest;
use crate::config::Settings;
use crate::config::site::BackendConfig;
use crate::core::keys::LockKeys;
use crate::core::listing::ListedLock;
use crate::etcd::Cluster;
use crate::etcd::listing::{self, Range};
use crate::local::{self, Which};
use crate::lock::error::LockError;

/// Between two looks at the state folder.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Where it is looked, and for what.
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

/// What was seen, so that it can be told from what comes later: a revision of etcd, or a number made of everything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Snapshot(i64);

impl<'a> View<'a> {
    pub(super) fn new(site: &'a BackendConfig, look: &'a ListRequest) -> Self {
        match site {
            BackendConfig::Etcd(settings) => Self::Etcd {
                cluster: Cluster::new(settings),
                range: range(settings, look),
                limit: settings.connect_timeout,
            },
            BackendConfig::Local(directory) => Self::Local {
                directory,
                which: match look {
                    ListRequest::List(prefix, _) => Which::BeginningWith(prefix),
                    ListRequest::Status(name, _) | ListRequest::Held(name) => Which::One(name),
                },
            },
        }
    }

    /// Hands every lock that somebody has or waits for to `take`.
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

    /// Waits until there is something else to be seen.
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

fn range(settings: &Settings, look: &ListRequest) -> Range {
    let namespace = &settings.prefix;
    match look {
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
            // That time goes by is no change.
            entry.entry.key.hash(&mut hasher);
            entry.left.is_some().hash(&mut hasher);
        }
    }
    Snapshot(hasher.finish().cast_signed())
}
