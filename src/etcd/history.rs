//! The past of a lock's queue, from the revisions that etcd still keeps: a watch that begins in the past.
//! It must not know who held the lock, nor what is shown.

use std::time::Duration;

use etcd_client::{EventType, GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use futures_util::stream::{self, StreamExt as _};

use super::Cluster;
use super::connection::{Connection, within};
use super::error::{ErrorKind, LockError, is_compacted};
use super::queue::{entry_in, read_page};
use crate::core::blockers::QueueEntry;
use crate::core::doctor::version::reports_progress_in_order;
use crate::core::history::{Change, Follower, History, Hold, Memory, Request};
use crate::core::keys::LockKeys;
use crate::core::time::Instant;
use crate::sys::clock;

/// Number of revisions that are read at first. etcd reads all keys of the revisions that a watch asks for, so the newest
/// are read first, and more only if they are needed.
const FIRST_REVISIONS: i64 = 10_000;
/// Factor by which each further read is longer.
const GROWTH: i64 = 10;
/// Keys per read.
const PAGE_SIZE: usize = 1000;
/// Release records that are read at once.
const MAX_PARALLEL_READS: usize = 64;
/// Ended requests that are kept beyond the wanted ones: some of them may have run no command.
const MARGIN: usize = 100;
/// Pause between two requests for the progress of the watch.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Time without a change after which a watch of an etcd whose reports of progress may be early counts as read. Such an etcd
/// reads on every 100 ms.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// Number of attempts: compactions and broken connections end one.
const MAX_TRIES: u32 = 3;

/// Reads the history of a lock.
pub(super) async fn read(
    cluster: &Cluster,
    keys: &LockKeys,
    request: Request,
    limit: Duration,
) -> Result<History, LockError> {
    let mut revisions = FIRST_REVISIONS;
    let mut tries = 1;
    loop {
        match (Reader {
            cluster,
            keys,
            limit,
        })
        .read(request, revisions)
        .await
        {
            Ok(history) if history.is_enough(request) => return Ok(history),
            Ok(_) => revisions = revisions.saturating_mul(GROWTH),
            Err(error) if tries < MAX_TRIES && error.kind == ErrorKind::Retryable => {
                tracing::debug!("the history is read again: {error}");
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A read through one connection.
struct Reader<'a> {
    cluster: &'a Cluster,
    keys: &'a LockKeys,
    /// Time for each answer.
    limit: Duration,
}

impl Reader<'_> {
    /// Reads the last `revisions` revisions, or all that are left.
    async fn read(&self, request: Request, revisions: i64) -> Result<History, LockError> {
        let opening = async |etcd: Connection| {
            let count = GetOptions::new()
                .with_range(self.keys.ended())
                .with_count_only();
            let read = etcd.kv().get(self.keys.prefix(), Some(count)).await?;
            let now = self.cluster.check_header(read.header())?.revision;
            let forgotten = self.forgotten(&etcd).await?;
            Ok((etcd, now, forgotten))
        };
        let (etcd, now, forgotten) = self.cluster.call(self.limit, opening).await?;
        let read = self.read_through(&etcd, request, revisions, now, forgotten);
        let read = read.await;
        read.inspect_err(|error| {
            if error.kind == ErrorKind::Retryable {
                self.cluster.disconnect(&etcd, error);
            }
        })
    }

    async fn read_through(
        &self,
        etcd: &Connection,
        request: Request,
        revisions: i64,
        now: i64,
        forgotten: i64,
    ) -> Result<History, LockError> {
        let before = now.saturating_sub(revisions).max(forgotten).max(0);
        let queue = self.queue_at(etcd, before).await?;
        let most = request.limit.saturating_add(MARGIN);
        let mut follower = Follower::new(queue, most, request.all);
        self.follow(etcd, before + 1, now, &mut follower).await?;
        let (ended, mut holds) = follower.finish();
        let ended = stream::iter(ended)
            .map(|hold| self.released(etcd, hold))
            .buffered(MAX_PARALLEL_READS);
        let ended: Vec<Result<Hold, LockError>> = ended.collect().await;
        for hold in ended {
            holds.push(hold?);
        }
        let memory = if before == forgotten {
            let from = if forgotten == 0 { 0 } else { forgotten + 1 };
            Memory::Revisions { from }
        } else {
            Memory::Unread
        };
        Ok(History::new(holds, memory, request))
    }

    /// The revision up to which etcd has compacted its memory, of which only the state is left; zero if it never has.
    async fn forgotten(&self, etcd: &Connection) -> Result<i64, LockError> {
        let options = GetOptions::new()
            .with_range(self.keys.ended())
            .with_count_only()
            .with_revision(1);
        match etcd.kv().get(self.keys.prefix(), Some(options)).await {
            Ok(_) => return Ok(0),
            Err(error) => {
                let error = LockError::from(error);
                if !is_compacted(&error) {
                    return Err(error);
                }
            }
        }
        // Only the answer to a watch has the number.
        let mut stream = self.watch(etcd, 1).await?;
        loop {
            let answer = self.message(&mut stream).await?;
            if answer.compact_revision() > 0 {
                return Ok(answer.compact_revision());
            }
            if !answer.created() {
                return Err(canceled(&answer));
            }
        }
    }

    /// The queue as it was at `revision`.
    async fn queue_at(
        &self,
        etcd: &Connection,
        revision: i64,
    ) -> Result<Vec<QueueEntry>, LockError> {
        let mut queue = Vec::new();
        // For etcd, zero is the current revision.
        let mut from = (revision > 0).then(|| self.keys.prefix().as_bytes().to_vec());
        while let Some(begin) = from.take() {
            let page = read_page(PAGE_SIZE, async |keys| {
                let options = GetOptions::new()
                    .with_range(self.keys.ended())
                    .with_revision(revision)
                    .with_limit(keys);
                let mut client = etcd.kv();
                let page = client.get(begin.clone(), Some(options));
                within(self.limit, page).await.map_err(forgotten_meanwhile)
            });
            let (page, _) = page.await?;
            self.cluster.check_header(page.header())?;
            queue.extend(page.kvs().iter().filter_map(|key| entry_in(self.keys, key)));
            let last = page.kvs().last().filter(|_| page.more());
            from = last.map(|last| [last.key(), &[0]].concat());
        }
        Ok(queue)
    }

    /// Passes the changes in the revisions from `from` to `until` on.
    async fn follow(
        &self,
        etcd: &Connection,
        from: i64,
        until: i64,
        follower: &mut Follower,
    ) -> Result<(), LockError> {
        if from > until {
            return Ok(());
        }
        let status = within(self.limit, etcd.client().maintenance_client().status()).await;
        let in_order = status.is_ok_and(|status| reports_progress_in_order(status.version()));
        let mut stream = self.watch(etcd, from).await?;
        let mut changed_at = clock::now();
        let mut asking = tokio::time::interval(PROGRESS_INTERVAL);
        let mut answered_at: Instant = clock::now();
        loop {
            let answer = tokio::select! {
                biased;
                answer = stream.message() => answer?.ok_or_else(closed)?,
                _ = asking.tick() => {
                    if clock::now().since(answered_at) > self.limit {
                        return Err(LockError::no_answer(self.limit));
                    }
                    within(self.limit, stream.request_progress()).await?;
                    continue;
                }
            };
            let now = clock::now();
            answered_at = now;
            if answer.canceled() {
                return Err(canceled(&answer));
            }
            let header = self.cluster.check_header(answer.header())?;
            for event in answer.events() {
                changed_at = now;
                let Some(key) = event.kv() else { continue };
                if key.mod_revision() > until {
                    return Ok(());
                }
                if let Some(change) = self.change(event.event_type(), key) {
                    follower.push(change);
                }
            }
            let reports_progress = answer.events().is_empty() && !answer.created();
            let is_quiet = in_order || now.since(changed_at) >= QUIET_TIME;
            if reports_progress && header.revision >= until && is_quiet {
                return Ok(());
            }
        }
    }

    /// The change of an entry; other keys below the lock are none.
    fn change(&self, kind: EventType, key: &KeyValue) -> Option<Change> {
        Some(match kind {
            EventType::Put => Change::Put(entry_in(self.keys, key)?),
            EventType::Delete => {
                self.keys.parse_entry(key.key())?;
                Change::Delete {
                    key: String::from_utf8_lossy(key.key()).into_owned(),
                    revision: key.mod_revision(),
                }
            }
        })
    }

    /// A request that has left the queue, with its release record.
    async fn released(&self, etcd: &Connection, hold: Hold) -> Result<Hold, LockError> {
        let revision = hold.left.unwrap_or_default();
        let Some(lease) = self.keys.parse_entry(hold.entry.key.as_bytes()) else {
            return Ok(hold);
        };
        let options = GetOptions::new().with_revision(revision);
        let mut client = etcd.kv();
        let reading = client.get(self.keys.released(lease), Some(options));
        let read = within(self.limit, reading)
            .await
            .map_err(forgotten_meanwhile)?;
        Ok(hold.released(read.kvs().first().map(KeyValue::value)))
    }

    async fn watch(&self, etcd: &Connection, from: i64) -> Result<WatchStream, LockError> {
        // A long answer arrives in parts.
        let options = WatchOptions::new()
            .with_range(self.keys.ended())
            .with_start_revision(from)
            .with_fragment();
        let mut watches = etcd.watches();
        within(self.limit, watches.watch(self.keys.prefix(), Some(options))).await
    }

    async fn message(&self, stream: &mut WatchStream) -> Result<WatchResponse, LockError> {
        within(self.limit, stream.message())
            .await?
            .ok_or_else(closed)
    }
}

fn closed() -> LockError {
    LockError::retryable("the watch was closed")
}

fn canceled(answer: &WatchResponse) -> LockError {
    if answer.compact_revision() > 0 {
        return LockError::retryable("etcd has compacted its memory meanwhile");
    }
    match answer.cancel_reason() {
        reason if reason.contains("permission denied") => LockError::refused(reason, None),
        reason => LockError::retryable(format!("etcd has ended the watch: {reason}")),
    }
}

/// A revision that was there a moment ago is read again from the start.
fn forgotten_meanwhile(error: LockError) -> LockError {
    if is_compacted(&error) {
        return LockError::retryable(error.cause);
    }
    error
}
