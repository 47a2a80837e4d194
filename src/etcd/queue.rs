//! The reads of a queue: which entries block ours, which owners have left and how, which slots are taken.
//! It must not know when to read, nor what follows from it.

use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use futures_util::FutureExt as _;

use super::Cluster;
use super::connection::Connection;
use super::error::{LockError, is_compacted, is_too_long};
use crate::core::blockers::{BlockerScan, Blockers, QueueEntry, holders};
use crate::core::holder::Holder;
use crate::core::keys::LockKeys;
use crate::core::lock_delay::{DelaySearch, Kept, Predecessor, ReleaseRecord, Sight, lock_delay};
use crate::core::proof::{EntryId, FencingToken, Header, LeaseId};
use crate::core::request::Mode;
use crate::lock::backend::QueuePosition;

/// Entries per read when more than the one before ours matter. etcd allows 128 operations in a request, so release
/// records are read in batches of this size, too.
const PAGE_SIZE: usize = 100;
/// Entries per request when a whole queue is read.
const ENTRY_PAGE_SIZE: usize = 500;
/// The most entries before ours that are counted.
const MAX_COUNTED: usize = 1000;

/// The result of one read of the queue.
pub(super) struct QueueView {
    /// Our own entry is there.
    pub(super) own: bool,
    /// The revision of what is shown.
    pub(super) revision: i64,
    pub(super) blockers: Blockers,
    /// The same, for the lock delay.
    pub(super) sight: Sight,
    pub(super) position: QueuePosition,
    /// The mode of the first entry, if it conflicts with ours.
    pub(super) mode_conflict: Option<Mode>,
    /// The number of keys before ours, as far as they are counted.
    pub(super) count: usize,
}

impl QueueView {
    /// The view of a queue that has only our entry.
    pub(super) fn empty(revision: i64) -> Self {
        Self {
            own: true,
            revision,
            blockers: Blockers::default(),
            sight: Sight {
                none: true,
                ..Sight::default()
            },
            position: QueuePosition::default(),
            mode_conflict: None,
            count: 0,
        }
    }
}

/// Runs a read of `most` keys, or of fewer if they do not fit into an answer: other clients may have written long values.
/// Returns the number of keys that it was run with, too.
pub(super) async fn read_page<T>(
    most: usize,
    read: impl AsyncFn(i64) -> Result<T, LockError>,
) -> Result<(T, usize), LockError> {
    let mut keys = most;
    loop {
        match read(i64::try_from(keys).unwrap_or(i64::MAX)).await {
            Err(error) if keys > 1 && is_too_long(&error) => keys = (keys / 4).max(1),
            page => return Ok((page?, keys)),
        }
    }
}

/// The read that shows whether a key is there, and under which lease.
fn read_entry(key: impl Into<Vec<u8>>) -> TxnOp {
    TxnOp::get(key, Some(GetOptions::new().with_keys_only()))
}

/// The read of the keys before a revision, as many as are counted. etcd's own count ignores revisions.
pub(super) fn count_before(queue: &LockKeys, token: i64) -> TxnOp {
    let options = GetOptions::new()
        .with_range(queue.ended())
        .with_max_create_revision(token - 1)
        .with_limit(i64::try_from(MAX_COUNTED).unwrap_or(i64::MAX))
        .with_keys_only();
    TxnOp::get(queue.prefix(), Some(options))
}

/// The entry of a key, if it belongs to this queue; other keys block no request.
pub(super) fn entry_in(queue: &LockKeys, key: &KeyValue) -> Option<QueueEntry> {
    queue.parse_entry(key.key())?;
    Some(queue_entry(key))
}

/// The entry of a key.
pub(super) fn queue_entry(key: &KeyValue) -> QueueEntry {
    QueueEntry {
        key: String::from_utf8_lossy(key.key()).into_owned(),
        token: FencingToken(key.create_revision()),
        lease: LeaseId(key.lease()),
        mod_revision: key.mod_revision(),
        record: Holder::parse(key.value()),
    }
}

/// The keys that each read of a transaction has found, in the order of its operations; none for a put or a delete.
pub(super) fn reads_of(answer: &TxnResponse) -> Vec<Vec<KeyValue>> {
    let reads = answer.op_responses().into_iter().map(|read| match read {
        TxnOpResponse::Get(mut read) => read.take_kvs(),
        _ => Vec::new(),
    });
    reads.collect()
}

/// The creation and the lease of a key.
pub(super) fn entry_id(key: &KeyValue) -> EntryId {
    EntryId {
        token: FencingToken(key.create_revision()),
        lease: LeaseId(key.lease()),
    }
}

/// Whether our key was `read` as we put it.
pub(super) fn is_own(read: &[KeyValue], entry: EntryId) -> bool {
    read.first().map(entry_id) == Some(entry)
}

/// The release record in `read`, if there is one.
fn release_record(read: &[KeyValue]) -> Option<ReleaseRecord> {
    ReleaseRecord::parse(read.first()?.value())
}

/// Reads all entries of a queue, or those before a token, from the oldest on.
pub(super) async fn read_entries(
    cluster: &Cluster,
    queue: &LockKeys,
    etcd: &Connection,
    before: Option<FencingToken>,
) -> Result<Vec<QueueEntry>, LockError> {
    let (mut entries, mut from) = (Vec::new(), 0);
    loop {
        let page = read_page(ENTRY_PAGE_SIZE, async |keys| {
            let mut options = GetOptions::new()
                .with_range(queue.ended())
                .with_sort(SortTarget::Create, SortOrder::Ascend)
                .with_min_create_revision(from)
                .with_limit(keys);
            if let Some(before) = before {
                options = options.with_max_create_revision(before.0 - 1);
            }
            Ok(etcd.kv().get(queue.prefix(), Some(options)).await?)
        });
        let (answer, _) = page.await?;
        cluster.check_header(answer.header())?;
        entries.extend(answer.kvs().iter().filter_map(|key| entry_in(queue, key)));
        match answer.kvs().last().filter(|_| answer.more()) {
            Some(last) => from = last.create_revision() + 1,
            None => return Ok(entries),
        }
    }
}

/// The entry that has `token`, if it holds the lock now and its command has not ended, by a linearizable read.
pub(crate) async fn holder(
    cluster: &Cluster,
    queue: &LockKeys,
    token: FencingToken,
    limit: Duration,
) -> Result<Option<EntryId>, LockError> {
    let answer = cluster
        .call(limit, async |connection: Connection| {
            let until = Some(FencingToken(token.0 + 1));
            read_entries(cluster, queue, &connection, until).await
        })
        .await?;
    let mut holders = answer.iter().zip(holders(&answer));
    // A holder whose key another client has overwritten has lost the lock, though the key is there.
    let own = |one: &QueueEntry| queue.parse_entry(one.key.as_bytes()) == Some(one.lease);
    let found = holders.find(|(one, holds)| *holds && one.token == token && own(one));
    let found = found.filter(|(one, _)| !one.is_cooling());
    Ok(found.map(|(one, _)| EntryId {
        token,
        lease: one.lease,
    }))
}

/// The result of the reads of a queue.
struct Seen {
    own: bool,
    revision: i64,
    /// The number of keys before ours, as far as they are counted.
    count: usize,
    /// The number of entries among them, for people.
    waiting: usize,
    blockers: Blockers,
    oldest: Option<QueueEntry>,
    vanished: Option<Duration>,
}

fn position(count: usize, oldest: Option<QueueEntry>) -> QueuePosition {
    QueuePosition {
        count,
        lease: oldest.as_ref().map(|oldest| oldest.lease),
        permanent: oldest.as_ref().and_then(QueueEntry::permanent),
        holder: oldest.and_then(|oldest| oldest.record),
    }
}

/// The reads of one queue.
pub(super) struct QueueReader {
    pub(super) cluster: Rc<Cluster>,
    pub(super) keys: LockKeys,
    /// The mode that we request: it decides which entries block ours.
    pub(super) mode: Mode,
}

impl QueueReader {
    /// The read of entries before a revision, from the nearest on or from the oldest; as of revision `at`, or now.
    fn before(&self, token: i64, order: SortOrder, limit: i64, at: Option<i64>) -> TxnOp {
        let options = GetOptions::new()
            .with_range(self.keys.ended())
            .with_sort(SortTarget::Create, order)
            .with_max_create_revision(token - 1)
            .with_limit(limit)
            .with_revision(at.unwrap_or(0));
        TxnOp::get(self.keys.prefix(), Some(options))
    }

    /// Reads the entries before ours that matter, as of the moment at which ours was created. Ours was the last of `others`
    /// keys and itself then. Whatever has changed since is found when the watch opens, so no end of an entry is missed.
    ///
    /// A filter by revision makes etcd load the whole queue, for each read: where many come at once, that is most of its
    /// work and memory.
    pub(super) async fn read_as_created(
        &self,
        etcd: &Connection,
        entry: EntryId,
        others: usize,
    ) -> Result<QueueView, LockError> {
        match self.as_created(etcd, entry, others).boxed_local().await {
            Err(error) if is_compacted(&error) => self.read_queue(etcd, entry, &[]).await,
            view => view,
        }
    }

    async fn as_created(
        &self,
        etcd: &Connection,
        entry: EntryId,
        others: usize,
    ) -> Result<QueueView, LockError> {
        let (token, created) = (entry.token.0, Some(entry.token.0));
        let mut reads = vec![self.before(token, SortOrder::Descend, 1, created)];
        if others > 1 {
            reads.push(self.before(token, SortOrder::Ascend, 1, created));
        }
        let (_, mut reads) = self.read(etcd, reads).await?;
        let oldest = reads.pop().unwrap_or_default();
        let newest = reads.pop().unwrap_or_else(|| oldest.clone());
        let blockers = self.scan(etcd, newest, created).await?;
        let seen = Seen {
            own: true,
            revision: token,
            count: others.min(MAX_COUNTED),
            waiting: others,
            blockers,
            oldest: self.first_entry(&oldest),
            vanished: None,
        };
        Ok(self.view(etcd, seen, &[]).await)
    }

    /// Reads our key and the entries before it that matter, linearizably. `before` is the entries that we have waited for
    /// until now.
    ///
    /// An exclusive request first tries [`Self::fast_path`], which is enough after most releases; and the details of the
    /// entries before ours are read only if there may be any.
    pub(super) async fn read_queue(
        &self,
        etcd: &Connection,
        entry: EntryId,
        before: &[QueueEntry],
    ) -> Result<QueueView, LockError> {
        let token = entry.token.0;
        let single = match before {
            [one] if self.mode == Mode::Exclusive => Some(one),
            _ => None,
        };
        if let Some(one) = single
            && let Some(view) = self.fast_path(etcd, entry, one).await?
        {
            return Ok(view);
        }
        // The entry that we have waited for is probably gone, or the nearest of them.
        let nearest = &before[..before.len().min(1)];
        let decisive = || {
            let mut reads = vec![
                read_entry(self.keys.entry(entry.lease)),
                self.before(token, SortOrder::Descend, 1, None),
            ];
            reads.extend(
                nearest
                    .iter()
                    .map(|one| self.read_release_record(one.lease)),
            );
            reads
        };
        let everything = || {
            let mut reads = decisive();
            reads.push(count_before(&self.keys, token));
            reads.push(self.before(token, SortOrder::Ascend, 1, None));
            reads
        };
        let (header, reads) = if before.is_empty() || single.is_some() {
            self.read(etcd, everything()).await?
        } else {
            let (header, reads) = self.read(etcd, decisive()).await?;
            let alone = reads.get(1).is_some_and(Vec::is_empty);
            if alone {
                (header, reads)
            } else {
                // All reads again at one revision: an owner may have left in between.
                self.read(etcd, everything()).await?
            }
        };
        let mut reads = reads.into_iter();
        let mut next = || reads.next().unwrap_or_default();
        let (own, newest) = (next(), next());
        let record = nearest
            .first()
            .map(|one| (one.token, release_record(&next())));
        let (counted, oldest) = (next(), next());
        let blockers = self.scan(etcd, newest, None).await?;
        let vanished = self.vanished(etcd, before, &blockers, record).await?;
        let seen = Seen {
            own: is_own(&own, entry),
            revision: header.revision,
            count: counted.len(),
            waiting: self.entries_in(&counted),
            blockers,
            oldest: self.first_entry(&oldest),
            vanished,
        };
        Ok(self.view(etcd, seen, before).await)
    }

    /// The view of what was `seen`, after we have waited for the entries `before`.
    async fn view(&self, etcd: &Connection, seen: Seen, before: &[QueueEntry]) -> QueueView {
        let Seen {
            blockers, oldest, ..
        } = seen;
        let sight = Sight {
            awaited: blockers.predecessors(),
            none: blockers.entries.is_empty(),
            first: oldest
                .as_ref()
                .and_then(QueueEntry::predecessor)
                .map_or(Duration::ZERO, |first| first.grace()),
            vanished: seen.vanished,
            kept: self.kept_entries(etcd, before, &blockers).await,
        };
        let mode = oldest
            .as_ref()
            .filter(|oldest| oldest.record.is_some())
            .map(QueueEntry::mode);
        QueueView {
            own: seen.own,
            revision: seen.revision,
            blockers,
            sight,
            mode_conflict: mode.filter(|mode| !mode.is_compatible_with(self.mode)),
            count: seen.count,
            position: position(seen.waiting, oldest),
        }
    }

    /// The view of a waiter behind a holder that held the lock alone and released it. No entry was before that holder,
    /// so none is before ours, which was next: a new entry never comes before an older one. This takes three keys,
    /// however long the queue is; in all other cases the result is `None`. A release record counts for nothing while
    /// the key is there: any client may have written it.
    async fn fast_path(
        &self,
        etcd: &Connection,
        entry: EntryId,
        one: &QueueEntry,
    ) -> Result<Option<QueueView>, LockError> {
        let reads = vec![
            read_entry(self.keys.entry(entry.lease)),
            self.read_release_record(one.lease),
            read_entry(one.key.as_str()),
        ];
        let (header, reads) = self.read(etcd, reads).await?;
        let [own, record, theirs] = &reads[..] else {
            return Ok(None);
        };
        let alone =
            release_record(record) == Some(ReleaseRecord::Alone(one.token)) && theirs.is_empty();
        Ok(alone.then(|| QueueView {
            own: is_own(own, entry),
            ..QueueView::empty(header.revision)
        }))
    }

    /// Whether our entry is there, by a linearizable read.
    pub(super) async fn is_there(
        &self,
        etcd: &Connection,
        entry: EntryId,
    ) -> Result<bool, LockError> {
        let key = read_entry(self.keys.entry(entry.lease));
        let (_, reads) = self.read(etcd, vec![key]).await?;
        Ok(reads.first().is_some_and(|own| is_own(own, entry)))
    }

    /// Several reads at one revision.
    pub(super) async fn read(
        &self,
        etcd: &Connection,
        reads: Vec<TxnOp>,
    ) -> Result<(Header, Vec<Vec<KeyValue>>), LockError> {
        let answer = etcd.kv().txn(Txn::new().and_then(reads)).await?;
        let header = self.cluster.check_header(answer.header())?;
        Ok((header, reads_of(&answer)))
    }

    /// The entry in a read of one key, if it belongs to this queue.
    fn first_entry(&self, read: &[KeyValue]) -> Option<QueueEntry> {
        read.first().and_then(|key| entry_in(&self.keys, key))
    }

    /// The number of entries of this queue among `keys`.
    fn entries_in(&self, keys: &[KeyValue]) -> usize {
        let entries = keys
            .iter()
            .filter(|key| self.keys.parse_entry(key.key()).is_some());
        entries.count()
    }

    /// The position of `entry` now, for people: nothing is decided by it.
    pub(super) async fn position(
        &self,
        etcd: &Connection,
        entry: EntryId,
    ) -> Result<QueuePosition, LockError> {
        let token = entry.token.0;
        let reads = [
            count_before(&self.keys, token),
            self.before(token, SortOrder::Ascend, 1, None),
        ];
        let (_, reads) = self.read(etcd, reads.into()).await?;
        let mut reads = reads.into_iter();
        let (counted, oldest) = (reads.next().unwrap_or_default(), reads.next());
        let oldest = self.first_entry(&oldest.unwrap_or_default());
        Ok(position(self.entries_in(&counted), oldest))
    }

    /// Reads on from the nearest entry, while further entries matter; as of revision `at`, or now.
    async fn scan(
        &self,
        etcd: &Connection,
        nearest: Vec<KeyValue>,
        at: Option<i64>,
    ) -> Result<Blockers, LockError> {
        let mut scan = BlockerScan::new(self.mode);
        let (mut page, mut full) = (nearest, 1);
        loop {
            for key in &page {
                if entry_in(&self.keys, key).is_some_and(|entry| !scan.push(entry)) {
                    return Ok(scan.finish());
                }
            }
            let Some(last) = page.last().filter(|_| page.len() >= full) else {
                return Ok(scan.finish());
            };
            let nearest = last.create_revision();
            let rest = read_page(PAGE_SIZE, async |keys| {
                let rest = self.before(nearest, SortOrder::Descend, keys, at);
                self.read(etcd, vec![rest]).await
            });
            let ((_, pages), keys) = rest.await?;
            page = pages.into_iter().next().unwrap_or_default();
            full = keys;
        }
    }

    /// The entries that we wait for, kept for a command, that were not kept in `before`.
    async fn kept_entries(
        &self,
        etcd: &Connection,
        before: &[QueueEntry],
        blockers: &Blockers,
    ) -> Vec<Kept> {
        let is_new = |one: &&QueueEntry| {
            let was_kept = |it: &QueueEntry| it.token == one.token && it.is_kept();
            one.is_kept() && !before.iter().any(was_kept)
        };
        let mut kept = Vec::new();
        for one in blockers.entries.iter().filter(is_new) {
            let Some(predecessor) = one.predecessor() else {
                continue;
            };
            let grace = predecessor.grace();
            // Without an answer, the longest possible time counts.
            let left = self.lease_time_left(etcd.clone(), one.lease).await;
            kept.push(Kept {
                token: one.token,
                left: left.unwrap_or_else(|_| lock_delay(grace)),
                grace,
            });
        }
        kept
    }

    /// The time that a lease without renewals has left, by the server's count.
    pub(super) async fn lease_time_left(
        &self,
        etcd: Connection,
        lease: LeaseId,
    ) -> Result<Duration, LockError> {
        let answer = etcd.leases().time_to_live(lease.0, None).await?;
        self.cluster.check_header(answer.header())?;
        Ok(Duration::from_secs(answer.ttl().try_into().unwrap_or(0)))
    }

    /// The longest grace of entries in `before` that are gone without a release by their owner, or that vanished before
    /// one that was released. `record` is the release record of one of them, which was read together with the queue.
    async fn vanished(
        &self,
        etcd: &Connection,
        before: &[QueueEntry],
        blockers: &Blockers,
        record: Option<(FencingToken, Option<ReleaseRecord>)>,
    ) -> Result<Option<Duration>, LockError> {
        let is_first = |one: &Predecessor| {
            record
                .as_ref()
                .is_some_and(|(token, _)| *token == one.token)
        };
        let is_there = |token| blockers.contains(token);
        let may_have_held = |token| {
            let one = before.iter().find(|one| one.token == token);
            one.is_none_or(|one| blockers.may_have_held(one))
        };
        let mut search = DelaySearch::new(blockers.gone(before));
        loop {
            let some = search.next_batch(PAGE_SIZE);
            if some.is_empty() {
                return Ok(search.vanished(may_have_held));
            }
            let (first, others): (Vec<_>, Vec<_>) = some.into_iter().partition(is_first);
            for one in first {
                let left = record.as_ref().and_then(|(_, left)| left.clone());
                search.add(one, left, is_there);
            }
            let mut others = &others[..];
            while !others.is_empty() {
                let page = read_page(others.len(), async |keys| {
                    let few = usize::try_from(keys).unwrap_or(usize::MAX);
                    let reads = others.iter().take(few);
                    let reads = reads.map(|one| self.read_release_record(one.lease));
                    self.read(etcd, reads.collect()).await
                });
                let ((_, left), count) = page.await?;
                let (read, rest) = others.split_at(count);
                for (one, left) in read.iter().zip(left) {
                    search.add(*one, release_record(&left), is_there);
                }
                others = rest;
            }
        }
    }

    /// The read that shows whether the owner of an entry released it.
    fn read_release_record(&self, lease: LeaseId) -> TxnOp {
        TxnOp::get(self.keys.released(lease), None)
    }
}
