//! Looking at all locks, without a place in any queue: read in pages, and watched for changes.
//! It must not know what is shown of them.

use std::time::Duration;

use etcd_client::{Client, GetOptions, WatchOptions};
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
    let page = |mut client: Client, from: Vec<u8>, revision: i64| async move {
        let options = GetOptions::new()
            .with_range(range.to.clone())
            .with_revision(revision)
            .with_limit(PAGE);
        Ok::<_, Trouble>(client.get(from, Some(options)).await?)
    };
    let first = cluster.call(limit, async |Connection { client }: Connection| {
        let first = page(client.clone(), range.from.clone(), 0).await?;
        Ok((client, first))
    });
    let (client, mut read) = first.await?;
    let revision = cluster.observe(read.header())?.revision;
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
            .iter()
            .map(|(name, places)| Lock::new(name, places.clone()));
        let locks = time_left(&client, locks.collect()).await;
        locks.into_iter().for_each(&mut take);
        match next {
            Some(next) => read = page(client.clone(), next, revision).await?,
            None => return Ok(revision),
        }
    }
}

/// Asks for the rest of the holders' leases.
async fn time_left(client: &Client, mut locks: Vec<Lock>) -> Vec<Lock> {
    let places = locks
        .iter_mut()
        .flat_map(|lock| &mut lock.places)
        .filter(|place| place.holds);
    let asking = places.map(|place| {
        let mut client = client.clone();
        async move {
            let LeaseId(lease) = place.standing.lease;
            // Not everybody may ask (etcd 3.5.28 on), and a lease may have ended: then nothing is said.
            if let Ok(answer) = client.lease_time_to_live(lease, None).await {
                place.left = u64::try_from(answer.ttl()).ok().map(Duration::from_secs);
            }
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
        .call(limit, async |connection: Connection| {
            let options = WatchOptions::new()
                .with_range(range.to.clone())
                .with_start_revision(revision + 1);
            let mut client = connection.client.clone();
            Ok(client.watch(range.from.clone(), Some(options)).await?)
        })
        .await?;
    while let Some(answer) = stream.message().await? {
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
