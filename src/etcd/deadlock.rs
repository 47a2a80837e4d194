//! The search for deadlocks of nested locks in etcd: reads queues at one revision, again and again while we wait.
//! It must not know which waiters form a ring, nor how a waiter leaves its queue.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{GetOptions, SortOrder, SortTarget, TxnOp};
use tokio::time::sleep;

use super::backend::EtcdBackend;
use super::connection::Connection;
use super::error::LockError;
use super::queue::{QueueReader, entry_in, read_page};
use crate::core::deadlock::{Aged, DeadlockSearch, NestedWait, Ring};
use crate::core::keys::LockKeys;
use crate::core::name::LockName;
use crate::core::proof::{EntryId, LeaseId};
use crate::core::time::{Instant, LeaseTimings};
use crate::sys::clock;

/// The most queues that one search reads; etcd allows 128 operations in a request.
const MAX_QUEUES: usize = 64;
/// The most entries of one queue that a search reads, from the oldest on.
const MAX_ENTRIES: usize = 500;
/// The pause before the next search while a ring exists that we have to break.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// A search, and the queues that it read.
struct Found {
    ring: Option<Ring>,
    names: Vec<LockName>,
}

impl EtcdBackend {
    /// Returns when our nested wait is in a deadlock that we have to break.
    ///
    /// A ring is a deadlock when all entries in it were renewed while it existed, and it exists after that: the owner of
    /// an entry may have died without a trace, and then the entry expires.
    pub(super) async fn deadlocked(&self, entry: EntryId, timings: LeaseTimings) -> LockError {
        let ours = NestedWait {
            name: self.requests.queue.keys.lock().clone(),
            token: entry.token,
            held: self.requests.record().held,
        };
        let limit = timings.renew_timeout() * 2;
        let mut known: Option<(Ring, Instant)> = None;
        let mut first = Vec::new();
        loop {
            let searching = async |etcd: Connection| self.search(&etcd, &ours, &first).await;
            let searched = self.requests.call(limit, searching).await;
            let mut pause = timings.renew_interval();
            match searched {
                Ok(Found {
                    ring: Some(ring),
                    names,
                }) if ring.is_ours_to_break => {
                    // All of them in one transaction from now on.
                    first = names;
                    pause = CONFIRM_INTERVAL;
                    let since = known.take().filter(|(before, _)| *before == ring);
                    let since = since.map_or_else(clock::now, |(_, since)| since);
                    if self.renewed_since(&ring, since, limit).await {
                        let again =
                            async |etcd: Connection| self.search(&etcd, &ours, &first).await;
                        let again = self.requests.call(limit, again).await;
                        if again.is_ok_and(|again| again.ring.as_ref() == Some(&ring)) {
                            return LockError::refused(ring.describe(), Some(Ring::HINT));
                        }
                    }
                    known = Some((ring, since));
                }
                Ok(_) => (known, first) = (None, Vec::new()),
                Err(error) => tracing::debug!("cannot search for a deadlock: {error}"),
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.queue_changed.notified() => {}
            }
        }
    }

    /// Reads `first`, or the queues of the locks that we hold, and then the others that matter, at the same revision.
    async fn search(
        &self,
        etcd: &Connection,
        ours: &NestedWait,
        first: &[LockName],
    ) -> Result<Found, LockError> {
        let mut search = DeadlockSearch::new(ours);
        let mut names: BTreeSet<LockName> = first.iter().cloned().collect();
        if names.is_empty() {
            names = search.missing();
        }
        let mut revision = 0;
        loop {
            let read = search.names();
            let next = names.into_iter().take(MAX_QUEUES - read.len());
            let queues: Vec<LockKeys> = next
                .map(|name| LockKeys::new(self.requests.queue.keys.namespace(), &name))
                .collect();
            if queues.is_empty() {
                let ring = search.ring();
                return Ok(Found { ring, names: read });
            }
            let reader = &self.requests.queue;
            let (at, pages) = read_queues(reader, etcd, &queues, revision).await?;
            revision = at;
            for (queue, entries) in queues.iter().zip(pages) {
                search.push(queue.lock().clone(), entries);
            }
            names = search.missing();
        }
    }

    /// Whether all leases of a ring were renewed after `since`, by the server's count.
    async fn renewed_since(&self, ring: &Ring, since: Instant, limit: Duration) -> bool {
        for lease in &ring.leases {
            let sent_at = clock::now();
            let asking = async |etcd| lease_age(&self.requests.queue, etcd, *lease).await;
            let renewed = match self.requests.call(limit, asking).await {
                Ok(age) => age.is_some_and(|age| age < sent_at.since(since)),
                Err(error) => {
                    tracing::debug!("cannot read the lease {lease} of a ring: {error}");
                    false
                }
            };
            if !renewed {
                return false;
            }
        }
        true
    }
}

/// Reads the oldest entries of these queues at one revision; zero is the latest.
async fn read_queues(
    reader: &QueueReader,
    etcd: &Connection,
    queues: &[LockKeys],
    revision: i64,
) -> Result<(i64, Vec<Vec<Aged>>), LockError> {
    let page = read_page(MAX_ENTRIES, async |most| {
        let read = |queue: &LockKeys| {
            let options = GetOptions::new()
                .with_range(queue.ended())
                .with_sort(SortTarget::Create, SortOrder::Ascend)
                .with_limit(most)
                .with_revision(revision);
            TxnOp::get(queue.prefix(), Some(options))
        };
        reader.read(etcd, queues.iter().map(read).collect()).await
    });
    let ((header, reads), _) = page.await?;
    let entries = queues.iter().zip(reads).map(|(queue, keys)| {
        let entries = keys.iter().filter_map(|key| entry_in(queue, key));
        let aged = entries.map(|entry| Aged {
            age: entry.token.0,
            entry,
        });
        aged.collect()
    });
    let at = if revision == 0 {
        header.revision
    } else {
        revision
    };
    Ok((at, entries.collect()))
}

/// The time since the last renewal of a lease, at most a second more than that; `None` if it has ended.
async fn lease_age(
    reader: &QueueReader,
    etcd: Connection,
    lease: LeaseId,
) -> Result<Option<Duration>, LockError> {
    if lease == LeaseId::NONE {
        // The key of another client, which never expires.
        return Ok(Some(Duration::ZERO));
    }
    let answer = etcd.leases().time_to_live(lease.0, None).await?;
    reader.cluster.check_header(answer.header())?;
    let age = answer.granted_ttl() - answer.ttl();
    let age = u64::try_from(age).ok().filter(|_| answer.ttl() > 0);
    Ok(age.map(Duration::from_secs))
}
