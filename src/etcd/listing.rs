//! Looking at all locks, without a place in any queue: read in pages, and watched for changes.
//! It must not know what is shown of them.

use std::time::Duration;

use etcd_client::{Error, GetOptions, GetResponse, WatchOptions};
use futures_util::stream::{self, StreamExt as _};

use super::Cluster;
use super::connection::Connection;
use super::error::LockError;
use super::queue::queue_entry;
use crate::core::blockers::QueueEntry;
use crate::core::keys::{LockKeys, lock_name_of, locks_prefix};
use crate::core::listing::ListedLock;
use crate::core::proof::LeaseId;

/// Keys that are read at once.
const PAGE_SIZE: i64 = 1000;
/// Leases that are asked for at once.
const MAX_PARALLEL_READS: usize = 64;
/// What tonic says when an answer is longer than it reads: keys of a page may be long that nobody of us has written.
const TOO_LONG: &str = "message length too large";
/// Changes that come together are shown together.
const CHANGE_SETTLE_TIME: Duration = Duration::from_millis(50);

/// The locks whose names begin with some text, or one lock.
pub(crate) struct Range {
    namespace: String,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Range {
    /// Of the locks whose names begin with `prefix`, under dlock's own prefix `namespace`.
    pub(crate) fn beginning_with(namespace: &str, prefix: &str) -> Self {
        let from = locks_prefix(namespace, prefix).into_bytes();
        let mut to = from.clone();
        // Keys of dlock are ASCII, so there is a next byte.
        if let Some(last) = to.last_mut() {
            *last += 1;
        }
        Self {
            namespace: namespace.to_owned(),
            from,
            to,
        }
    }

    /// Of one lock.
    pub(crate) fn of(queue: &LockKeys) -> Self {
        Self {
            namespace: queue.namespace().to_owned(),
            from: queue.prefix().into(),
            to: queue.ended().into(),
        }
    }
}

/// Reads the locks in the order of their names in etcd, each handed to `take` when all of it is known; answers the
/// revision that was read.
pub(crate) async fn read(
    cluster: &Cluster,
    range: &Range,
    limit: Duration,
    mut take: impl FnMut(ListedLock),
) -> Result<i64, LockError> {
    let first = cluster.call(limit, async |etcd: Connection| {
        let first = page(&etcd, range, range.from.clone(), 0).await?;
        let revision = cluster.check_header(first.header())?.revision;
        Ok((etcd, first, revision))
    });
    let (etcd, mut read, revision) = first.await?;
    let mut open: Option<(String, Vec<QueueEntry>)> = None;
    loop {
        let mut locks = Vec::new();
        for key in read.kvs() {
            let Some(name) = lock_name_of(&range.namespace, key.key()) else {
                continue;
            };
            match &mut open {
                Some((known, entries)) if known == name => entries.push(queue_entry(key)),
                _ => locks.extend(open.replace((name.to_owned(), vec![queue_entry(key)]))),
            }
        }
        let last = read.kvs().last().filter(|_| read.more());
        let next = last.map(|last| [last.key(), &[0]].concat());
        if next.is_none() {
            locks.extend(open.take());
        }
        let locks = locks
            .into_iter()
            .map(|(name, entries)| ListedLock::new(&name, entries));
        let locks = time_left(&etcd, locks.collect()).await;
        locks.into_iter().for_each(&mut take);
        match next {
            Some(next) => read = page(&etcd, range, next, revision).await?,
            None => return Ok(revision),
        }
    }
}

/// Reads as many keys as an answer may be long.
async fn page(
    etcd: &Connection,
    range: &Range,
    from: Vec<u8>,
    revision: i64,
) -> Result<GetResponse, LockError> {
    let mut keys = PAGE_SIZE;
    loop {
        let options = GetOptions::new()
            .with_range(range.to.clone())
            .with_revision(revision)
            .with_limit(keys);
        match etcd.kv().get(from.clone(), Some(options)).await {
            Err(Error::GRpcStatus(status)) if keys > 1 && status.message().contains(TOO_LONG) => {
                keys /= 4;
                keys = keys.max(1);
            }
            answer => return Ok(answer?),
        }
    }
}

/// The names of the first `most` places, each once, as keys have them.
pub(crate) async fn names(
    cluster: &Cluster,
    range: &Range,
    most: i64,
    limit: Duration,
) -> Result<Vec<String>, LockError> {
    let read = cluster.call(limit, async |etcd: Connection| {
        let options = GetOptions::new()
            .with_range(range.to.clone())
            .with_limit(most)
            .with_keys_only();
        let read = etcd.kv().get(range.from.clone(), Some(options)).await?;
        cluster.check_header(read.header())?;
        Ok::<_, LockError>(read)
    });
    let read = read.await?;
    let names = read.kvs().iter();
    let names = names.filter_map(|key| lock_name_of(&range.namespace, key.key()));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.dedup();
    Ok(names)
}

/// Asks for the rest of the holders' leases.
async fn time_left(etcd: &Connection, mut locks: Vec<ListedLock>) -> Vec<ListedLock> {
    let entries = locks
        .iter_mut()
        .flat_map(|lock| &mut lock.entries)
        .filter(|entry| entry.holds);
    let asking = entries.map(|entry| async move {
        let LeaseId(lease) = entry.entry.lease;
        // Not everybody may ask (etcd 3.5.28 on), and a lease may have ended: then nothing is said.
        if let Ok(answer) = etcd.leases().time_to_live(lease, None).await {
            entry.left = u64::try_from(answer.ttl()).ok().map(Duration::from_secs);
        }
    });
    stream::iter(asking)
        .for_each_concurrent(MAX_PARALLEL_READS, |asked| asked)
        .await;
    locks
}

/// Waits for a change after `revision`.
pub(crate) async fn change(
    cluster: &Cluster,
    range: &Range,
    revision: i64,
    limit: Duration,
) -> Result<(), LockError> {
    let mut stream = cluster
        .call(limit, async |etcd: Connection| {
            let options = WatchOptions::new()
                .with_range(range.to.clone())
                .with_start_revision(revision + 1);
            Ok(etcd
                .watches()
                .watch(range.from.clone(), Some(options))
                .await?)
        })
        .await?;
    while let Some(answer) = stream.message().await? {
        cluster.check_header(answer.header())?;
        if answer.canceled() {
            // Compacted meanwhile: something has changed, surely.
            return Ok(());
        }
        if !answer.events().is_empty() {
            tokio::time::sleep(CHANGE_SETTLE_TIME).await;
            return Ok(());
        }
    }
    Err(LockError::retryable("the watch was closed"))
}
