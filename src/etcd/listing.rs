//! The listing of all locks, without an entry in any queue: read in pages, and watched for changes.
//! It must not know what is shown.

use std::time::Duration;

use etcd_client::{GetOptions, GetResponse, Txn, TxnOp, WatchOptions};
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::timeout;

use super::Cluster;
use super::backend::command_variables;
use super::connection::{Connection, within};
use super::error::{ErrorKind, LockError};
use super::history;
use super::queue::{holder, queue_entry, read_page, reads_of};
use crate::config::Settings;
use crate::core::blockers::{OrphanSlot, QueueEntry};
use crate::core::history::{History, Request};
use crate::core::keys::{LockKeys, lock_name_of, locks_prefix};
use crate::core::listing::ListedLock;
use crate::core::name::LockName;
use crate::core::proof::{FencingToken, LeaseId};
use crate::lock::reader::{Held, LockReader, Reading, Selection, Snapshot, Take};

/// Keys per read.
const PAGE_SIZE: usize = 1000;
/// Leases that are queried at once.
const MAX_PARALLEL_READS: usize = 64;
/// Changes within this time are shown together.
const CHANGE_SETTLE_TIME: Duration = Duration::from_millis(50);

/// The locks in etcd.
pub(crate) struct EtcdReader<'a> {
    cluster: Cluster,
    settings: &'a Settings,
}

/// A range of keys.
struct Range {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl<'a> EtcdReader<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Self {
        let cluster = Cluster::new(settings);
        Self { cluster, settings }
    }

    fn range(&self, which: &Selection) -> Range {
        match which {
            Selection::BeginningWith(prefix) => {
                let from = locks_prefix(&self.settings.prefix, prefix).into_bytes();
                let mut to = from.clone();
                // Keys of dlock are ASCII, so there is a next byte.
                if let Some(last) = to.last_mut() {
                    *last += 1;
                }
                Range { from, to }
            }
            Selection::One(name) => {
                let keys = LockKeys::new(&self.settings.prefix, name);
                let (from, to) = (keys.prefix().into(), keys.ended().into());
                Range { from, to }
            }
        }
    }

    /// The names in the first `most` entries, each once, encoded as in keys.
    pub(crate) async fn names(
        &self,
        which: &Selection,
        most: i64,
        limit: Duration,
    ) -> Result<Vec<String>, LockError> {
        let range = self.range(which);
        let read = self.cluster.call(limit, async |etcd: Connection| {
            let options = GetOptions::new()
                .with_range(range.to.clone())
                .with_limit(most)
                .with_keys_only();
            let read = etcd.kv().get(range.from.clone(), Some(options)).await?;
            self.cluster.check_header(read.header())?;
            Ok(read)
        });
        let read = read.await?;
        let names = read.kvs().iter();
        let names = names.filter_map(|key| lock_name_of(&self.settings.prefix, key.key()));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.dedup();
        Ok(names)
    }

    /// Passes each lock to `take` when it is complete; returns the revision of the read.
    async fn read(
        &self,
        which: &Selection,
        take: &mut dyn FnMut(ListedLock),
    ) -> Result<Snapshot, LockError> {
        let range = &self.range(which);
        let limit = self.settings.connect_timeout();
        let first = self.cluster.call(limit, async |etcd: Connection| {
            let first = page(&etcd, range, range.from.clone(), 0).await?;
            let revision = self.cluster.check_header(first.header())?.revision;
            Ok((etcd, first, revision))
        });
        let (etcd, mut read, revision) = first.await?;
        let mut open: Option<(String, Vec<QueueEntry>)> = None;
        loop {
            let mut locks = Vec::new();
            for key in read.kvs() {
                let Some(name) = lock_name_of(&self.settings.prefix, key.key()) else {
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
            let locks = time_left(&etcd, locks.collect(), limit).await;
            locks.into_iter().for_each(&mut *take);
            match next {
                Some(next) => read = within(limit, page(&etcd, range, next, revision)).await?,
                None => return Ok(Snapshot(revision)),
            }
        }
    }

    /// A slot of the lock that is taken although its entry is gone.
    async fn orphan_slot(&self, name: &LockName) -> Result<Option<OrphanSlot>, LockError> {
        let keys = LockKeys::new(&self.settings.prefix, name);
        let all = |end| Some(GetOptions::new().with_range(end).with_keys_only());
        let slots = || TxnOp::get(keys.slots(), all(keys.slots_end()));
        let entries = || TxnOp::get(keys.prefix(), all(keys.ended()));
        let limit = self.settings.connect_timeout();
        let read = self.cluster.call(limit, async |etcd: Connection| {
            let mut kv = etcd.kv();
            let some = kv.txn(Txn::new().and_then([slots()])).await?;
            if reads_of(&some).iter().all(Vec::is_empty) {
                return Ok(some);
            }
            // Both at one revision: a slot may have been taken meanwhile.
            Ok(kv.txn(Txn::new().and_then([slots(), entries()])).await?)
        });
        let answer = match read.await {
            // A user who may only read the queue sees no slots.
            Err(error) if error.kind == ErrorKind::Refused => return Ok(None),
            answer => answer?,
        };
        self.cluster.check_header(answer.header())?;
        let mut reads = reads_of(&answer).into_iter();
        let mut next = || reads.next().unwrap_or_default().into_iter();
        let slots = next()
            .filter(|key| keys.slot_number(key.key()).is_some())
            .map(|key| {
                let lease = LeaseId(key.lease());
                (String::from_utf8_lossy(key.key()).into_owned(), lease)
            });
        let slots: Vec<_> = slots.collect();
        let entries = next().map(|entry| LeaseId(entry.lease())).collect();
        Ok(OrphanSlot::find(slots, &entries))
    }

    /// Waits for a change after `revision`.
    async fn change(&self, which: &Selection, revision: i64) -> Result<(), LockError> {
        let (cluster, range) = (&self.cluster, self.range(which));
        let mut stream = cluster
            .call(self.settings.connect_timeout(), async |etcd: Connection| {
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
                // Compacted meanwhile, so something has changed.
                return Ok(());
            }
            if !answer.events().is_empty() {
                tokio::time::sleep(CHANGE_SETTLE_TIME).await;
                return Ok(());
            }
        }
        Err(LockError::retryable("the watch was closed"))
    }
}

impl LockReader for EtcdReader<'_> {
    fn history<'a>(&'a self, name: &'a LockName, request: Request) -> Reading<'a, History> {
        let keys = LockKeys::new(&self.settings.prefix, name);
        let limit = self.settings.connect_timeout();
        async move { history::read(&self.cluster, &keys, request, limit).await }.boxed_local()
    }

    fn read<'a>(&'a self, which: &'a Selection, take: Take<'a>) -> Reading<'a, Snapshot> {
        self.read(which, take).boxed_local()
    }

    fn orphan_slot<'a>(&'a self, name: &'a LockName) -> Reading<'a, Option<OrphanSlot>> {
        self.orphan_slot(name).boxed_local()
    }

    fn change<'a>(&'a self, which: &'a Selection, before: Snapshot) -> Reading<'a, ()> {
        self.change(which, before.0).boxed_local()
    }

    fn held<'a>(&'a self, name: &'a LockName, token: FencingToken) -> Reading<'a, Held> {
        let keys = LockKeys::new(&self.settings.prefix, name);
        async move {
            let holder = holder(&self.cluster, &keys, token, self.settings.connect_timeout());
            let entry = holder.await?;
            Ok(entry.map(|entry| command_variables(&keys, entry)))
        }
        .boxed_local()
    }
}

/// Reads as many keys as fit into an answer.
async fn page(
    etcd: &Connection,
    range: &Range,
    from: Vec<u8>,
    revision: i64,
) -> Result<GetResponse, LockError> {
    let page = read_page(PAGE_SIZE, async |keys| {
        let options = GetOptions::new()
            .with_range(range.to.clone())
            .with_revision(revision)
            .with_limit(keys);
        Ok(etcd.kv().get(from.clone(), Some(options)).await?)
    });
    Ok(page.await?.0)
}

/// Adds the remaining time of the holders' leases, as far as etcd answers within `limit`.
async fn time_left(
    etcd: &Connection,
    mut locks: Vec<ListedLock>,
    limit: Duration,
) -> Vec<ListedLock> {
    let entries = locks
        .iter_mut()
        .flat_map(|lock| &mut lock.entries)
        .filter(|entry| entry.holds);
    let reading = entries.map(|entry| async move {
        let LeaseId(lease) = entry.entry.lease;
        // Some users may not ask (since etcd 3.5.28), and a lease may have ended: then the time stays unknown.
        if let Ok(answer) = etcd.leases().time_to_live(lease, None).await {
            entry.left = u64::try_from(answer.ttl()).ok().map(Duration::from_secs);
        }
    });
    let reading = stream::iter(reading).for_each_concurrent(MAX_PARALLEL_READS, |read| read);
    let _ = timeout(limit, reading).await;
    locks
}
