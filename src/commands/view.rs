//! The locks as they are now, and the waiting for a change: in etcd, or on this machine.
//! It must not know what is shown of them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::Duration;

use crate::cli::look::Look;
use crate::config::Settings;
use crate::config::site::Site;
use crate::core::queue::Queue;
use crate::core::survey::Lock;
use crate::etcd::Cluster;
use crate::etcd::survey::{self, Range};
use crate::local::{self, Which};
use crate::trouble::Trouble;

/// Between two looks at the state folder.
const AGAIN: Duration = Duration::from_millis(500);

/// Where it is looked, and for what.
pub(super) enum View<'a> {
    Etcd {
        cluster: Cluster,
        range: Range,
        limit: Duration,
    },
    Local {
        folder: &'a Path,
        which: Which<'a>,
    },
}

/// What was seen, so that it can be told from what comes later: a revision of etcd, or a number made of everything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Picture(i64);

impl<'a> View<'a> {
    pub(super) fn new(site: &'a Site, look: &'a Look) -> Self {
        match site {
            Site::Etcd(settings) => Self::Etcd {
                cluster: Cluster::new(settings),
                range: range(settings, look),
                limit: settings.connect_timeout,
            },
            Site::Local(folder) => Self::Local {
                folder,
                which: match look {
                    Look::List(prefix, _) => Which::BeginningWith(prefix),
                    Look::Status(name, _) | Look::Held(name) => Which::One(name),
                },
            },
        }
    }

    /// Hands every lock that somebody has or waits for to `take`.
    pub(super) async fn read(&self, mut take: impl FnMut(Lock)) -> Result<Picture, Trouble> {
        match self {
            Self::Etcd {
                cluster,
                range,
                limit,
            } => survey::read(cluster, range, *limit, take)
                .await
                .map(Picture),
            Self::Local { folder, which } => {
                let locks = local::read(folder, which)?;
                let picture = picture(&locks);
                locks.into_iter().for_each(&mut take);
                Ok(picture)
            }
        }
    }

    /// Waits until there is something else to be seen.
    pub(super) async fn change(&self, Picture(before): Picture) -> Result<(), Trouble> {
        match self {
            Self::Etcd {
                cluster,
                range,
                limit,
            } => survey::change(cluster, range, before, *limit).await,
            Self::Local { folder, which } => loop {
                tokio::time::sleep(AGAIN).await;
                if picture(&local::read(folder, which)?) != Picture(before) {
                    return Ok(());
                }
            },
        }
    }
}

fn range(settings: &Settings, look: &Look) -> Range {
    let namespace = &settings.prefix;
    match look {
        Look::List(prefix, _) => Range::beginning_with(namespace, prefix),
        Look::Status(name, _) | Look::Held(name) => Range::of(&Queue::new(namespace, name)),
    }
}

fn picture(locks: &[Lock]) -> Picture {
    let mut hasher = DefaultHasher::new();
    for lock in locks {
        lock.name.hash(&mut hasher);
        for place in &lock.places {
            // That time goes by is no change.
            place.standing.key.hash(&mut hasher);
            place.left.is_some().hash(&mut hasher);
        }
    }
    Picture(hasher.finish().cast_signed())
}
