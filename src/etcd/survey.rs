//! Looking at all locks, without a place in any queue: read in pages, and watched for changes.
//! It must not know what is shown of them.

use std::time::Duration;

use etcd_client::{Error, GetOptions, GetResponse, WatchOptions};
use futures_util::stream::{self, StreamExt as _};

use super::Cluster;
use super::connection::Connection;
use super::look::seen;
use super::trouble::Trouble;
use crate::core::lease::LeaseId;
use crate::core::queue::{Queue, lock_of, locks};
use crate::core::survey::Lock;
use crate::core::turn::Standing;

/// Keys that are read at once.
const PAGE: i64 = 1000;
/// Leases that are asked for at once.
const ASKED: usize = 64;
/// What tonic says when an answer is longer than it reads: keys of a page may be long that nobody of us has written.
const TOO_LONG: &str = "message length too large";
/// Changes that come together are shown together.
const SETTLE: Duration = Duration::from_millis(50);

/// The locks whose names begin with some text, or one lock.
pub(crate) struct Range {
    namespace: String,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Range {
    /// Of the locks whose names begin with `prefix`, under dlock's own prefix `namespace`.
    pub(crate) fn beginning_with(namespace: &str, prefix: &str) -> Self {
        let from = locks(namespace, prefix).into_bytes();
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
    pub(crate) fn of(queue: &Queue) -> Self {
        Self {
            namespace: queue.namespace().to_owned(),
            from: queue.prefix().into(),
            to: queue.end().into(),
        }
    }
}

/// Reads the locks in the order of their names in etcd, each handed to `take` when all of it is known; answers the
/// revision that was read.
pub(crate) async fn read(
    cluster: &Cluster,
    range: &Range,
    limit: Duration,
    mut take: impl FnMut(Lock),
) -> Result<i64, Trouble> {
    let first = cluster.call(limit, async |etcd: Connection| {
        let first = page(&etcd, range, range.from.clone(), 0).await?;
        let revision = cluster.observe(first.header())?.revision;
        Ok((etcd, first, revision))
    });
    let (etcd, mut read, revision) = first.await?;
    let mut open: Option<(String, Vec<Standing>)> = None;
    loop {
        let mut locks = Vec::new();
        for key in read.kvs() {
            let Some(name) = lock_of(&range.namespace, key.key()) else {
                continue;
            };
            match &mut open {
                Some((known, places)) if known == name => places.push(seen(key)),
                _ => locks.extend(open.replace((name.to_owned(), vec![seen(key)]))),
            }
        }
        let last = read.kvs().last().filter(|_| read.more());
        let next = last.map(|last| [last.key(), &[0]].concat());
        if next.is_none() {
            locks.extend(open.take());
        }
        let locks = locks
            .into_iter()
            .map(|(name, places)| Lock::new(&name, places));
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
) -> Result<GetResponse, Trouble> {
    let mut keys = PAGE;
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
) -> Result<Vec<String>, Trouble> {
    let read = cluster.call(limit, async |etcd: Connection| {
        let options = GetOptions::new()
            .with_range(range.to.clone())
            .with_limit(most)
            .with_keys_only();
        let read = etcd.kv().get(range.from.clone(), Some(options)).await?;
        cluster.observe(read.header())?;
        Ok::<_, Trouble>(read)
    });
    let read = read.await?;
    let names = read.kvs().iter();
    let names = names.filter_map(|key| lock_of(&range.namespace, key.key()));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.dedup();
    Ok(names)
}

/// Asks for the rest of the holders' leases.
async fn time_left(etcd: &Connection, mut locks: Vec<Lock>) -> Vec<Lock> {
    let places = locks
        .iter_mut()
        .flat_map(|lock| &mut lock.places)
        .filter(|place| place.holds);
    let asking = places.map(|place| async move {
        let LeaseId(lease) = place.standing.lease;
        // Not everybody may ask (etcd 3.5.28 on), and a lease may have ended: then nothing is said.
        if let Ok(answer) = etcd.leases().time_to_live(lease, None).await {
            place.left = u64::try_from(answer.ttl()).ok().map(Duration::from_secs);
        }
    });
    stream::iter(asking)
        .for_each_concurrent(ASKED, |asked| asked)
        .await;
    locks
}

/// Waits for a change after `revision`.
pub(crate) async fn change(
    cluster: &Cluster,
    range: &Range,
    revision: i64,
    limit: Duration,
) -> Result<(), Trouble> {
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
        cluster.observe(answer.header())?;
        if answer.canceled() {
            // Compacted meanwhile: something has changed, surely.
            return Ok(());
        }
        if !answer.events().is_empty() {
            tokio::time::sleep(SETTLE).await;
            return Ok(());
        }
    }
    Err(Trouble::elsewhere("the watch was closed"))
}
