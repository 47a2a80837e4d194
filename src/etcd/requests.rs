//! The writes of one lock request, each as requests to one member: create an entry, announce, release.
//! It must not know when one of them is due, nor how a failed one is repeated.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use futures_util::FutureExt as _;
use rustix::thread::set_current_timer_slack;
use tokio::time::sleep;

use super::announced::{Announced, Shown};
use super::connection::Connection;
use super::error::{ErrorKind, LockError, attempt_after};
use super::queue::{QueueReader, QueueView, is_own, reads_of};
use crate::core::abandoned::Attempt;
use crate::core::holder::{Holder, OuterLock};
use crate::core::lock_delay::{Ended, ReleaseRecord};
use crate::core::proof::{EntryId, FencingToken, LeaseId, Ownership};
use crate::core::release::{ReleaseAnswer, ReleaseAnswers};
use crate::core::time::{Instant, LeaseTimings};
use crate::sys::clock;

/// The lead of the grant over the txn that needs it, up to twice as long, as tokio counts in whole milliseconds. A near
/// server has mostly answered by then, and to wait for that is as quick (measured); with a far one it saves a round
/// trip. With 0.3 ms, both requests on a new connection arrived together, and etcd executed the txn first (measured, at
/// 50 ms).
const GRANT_LEAD: Duration = Duration::from_millis(1);
/// The time that a near server needs to accept a request without an awaited answer: without it, one in seven was lost
/// when the connection closed (measured on loopback).
const SEND_PAUSE: Duration = Duration::from_micros(150);
/// Limit on leaving the queue, with all that has to be revoked: a user who interrupts dlock does not want to wait.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The number of times that the tasks between a request and the socket run, which is ample.
const FLUSH_YIELDS: usize = 16;

/// A new entry in the queue.
pub(super) struct Enqueued {
    pub(super) ownership: Ownership,
    pub(super) timings: LeaseTimings,
    /// The moment before the grant was sent: it is a proof as well.
    pub(super) sent_at: Instant,
    pub(super) view: QueueView,
}

/// The way in which an entry is given up, and what the answers have shown so far.
pub(super) struct ReleaseRequest {
    /// The release record for those behind us.
    pub(super) record: ReleaseRecord,
    /// The end of the command, if one has run.
    pub(super) ended: Option<Ended>,
    pub(super) slot: Option<u16>,
    /// The entry stays for as long as the lease of the cooldown.
    pub(super) cooldown: Option<Cooldown>,
    /// The answers to all attempts, of which two may be in flight at a time.
    pub(super) answers: Cell<ReleaseAnswers>,
}

impl ReleaseRequest {
    /// The value of the key of this record.
    fn value(&self, record: &ReleaseRecord) -> String {
        record.to_value(self.ended.as_ref())
    }

    /// Adds an answer. Must be called before any await that may end our lease, and our record with it.
    fn note_answer(&self, answer: ReleaseAnswer) {
        self.answers.set(self.answers.get().with(answer));
    }
}

/// The entry that keeps a lock taken after its command has ended.
#[derive(Clone)]
pub(crate) struct Cooldown {
    pub(super) lease: LeaseId,
    /// The end of the command, for people.
    pub(super) result: Option<String>,
    /// The time that a command may still need to stop; zero when none runs.
    pub(super) grace: Duration,
}

/// Lets pending requests leave, and then waits while a near server accepts them.
async fn flush_and_pause(moment: Duration) {
    for _ in 0..FLUSH_YIELDS {
        tokio::task::yield_now().await;
    }
    // tokio's timers count in whole milliseconds, in which a near server has answered; and the kernel's are 50 us late
    // unless the slack is lower. The command does not inherit the slack: its guard exists already.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    std::thread::sleep(moment);
}

/// Whether `read` has found a key under this lease.
fn is_under(read: &[KeyValue], lease: LeaseId) -> bool {
    read.first().is_some_and(|key| key.lease() == lease.0)
}

/// The requests of one lock request.
pub(super) struct Requests {
    pub(super) queue: QueueReader,
    /// Our record, which others read, without the locks that the run has taken already.
    pub(super) base: Holder,
    pub(super) taken: RefCell<Vec<OuterLock>>,
    /// The record as it was written last.
    pub(super) shown: RefCell<Shown>,
    pub(super) timings: LeaseTimings,
}

impl Requests {
    /// Our record, with the locks that the run has taken already.
    pub(super) fn record(&self) -> Holder {
        let mut record = self.base.clone();
        record.held.extend(self.taken.borrow().iter().cloned());
        record
    }

    /// Our record as of now.
    pub(super) fn record_now(&self) -> Holder {
        Holder {
            since: clock::wall_clock(),
            ..self.record()
        }
    }

    /// Grants the lease `lease` and creates an entry with it. Each request is boxed: together they would be 28 KiB on a
    /// stack that nothing else needs as deep. `on_grant` gets the state of this attempt after the answer to the grant.
    pub(super) async fn enqueue(
        &self,
        etcd: &Connection,
        lease: LeaseId,
        on_grant: impl Fn(Attempt),
    ) -> Result<Enqueued, LockError> {
        let mut leases = etcd.leases();
        let seconds = i64::try_from(self.timings.ttl().as_secs()).unwrap_or(i64::MAX);
        let options = Some(LeaseGrantOptions::new().with_id(lease.0));
        let sent_at = clock::now();
        let mut grant = leases
            .grant(seconds, options)
            .map(|granted| {
                let granted = granted.map_err(LockError::from);
                on_grant(attempt_after(&granted));
                granted
            })
            .boxed_local();
        // Over a slow link the txn does not wait for the grant's answer, but follows close behind.
        let (granted, put) = tokio::select! {
            biased;
            granted = &mut grant => (granted, None),
            () = sleep(GRANT_LEAD) => {
                let (granted, put) = tokio::join!(grant, self.put(etcd, lease).boxed_local());
                (granted, Some(put))
            }
        };
        if let (Err(error), Some(Ok(put))) = (&granted, &put)
            && error.kind == ErrorKind::LeaseExists
            && let Ok(header) = self.queue.cluster.check_header(put.header())
        {
            // The key is under the lease of another client. We delete the key and leave the lease.
            let entry = EntryId {
                token: FencingToken(header.revision),
                lease,
            };
            let txn = Txn::new()
                .when(self.ownership_compares(entry))
                .and_then(self.removal_ops(entry, None));
            etcd.kv().txn(txn).await?;
        }
        let granted = granted?;
        if let Err(error) = self.queue.cluster.check_header(granted.header()) {
            // A member of another cluster has answered: it must keep nothing of ours.
            self.revoke_unawaited(etcd, lease).await;
            return Err(error);
        }
        let ttl = Duration::from_secs(granted.ttl().try_into().unwrap_or(0));
        let put = match put {
            // The txn overtook the grant after all, and has done nothing.
            Some(Err(error)) if error.kind == ErrorKind::LeaseNotFound => {
                tracing::debug!("the txn overtook the grant");
                None
            }
            Some(put) => Some(put?),
            None => None,
        };
        let put = match put {
            Some(put) => put,
            None => self.put(etcd, lease).boxed_local().await?,
        };
        self.entry(&put, lease, self.timings.granted(ttl), sent_at, etcd)
            .await
    }

    /// Puts our key, and counts the entries.
    async fn put(&self, etcd: &Connection, lease: LeaseId) -> Result<TxnResponse, LockError> {
        let key = self.queue.keys.entry(lease);
        let all = GetOptions::new()
            .with_range(self.queue.keys.ended())
            .with_count_only();
        let record = PutOptions::new().with_lease(lease.0);
        let txn = Txn::new()
            .when([
                Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
                // The attempt is not abandoned: see `core::abandoned`.
                Compare::create_revision(self.queue.keys.released(lease), CompareOp::Equal, 0),
            ])
            .and_then([
                TxnOp::put(key, self.shown.borrow().record.to_json(), Some(record)),
                TxnOp::get(self.queue.keys.prefix(), Some(all)),
            ]);
        Ok(etcd.kv().txn(txn).await?)
    }

    async fn entry(
        &self,
        put: &TxnResponse,
        lease: LeaseId,
        timings: LeaseTimings,
        sent_at: Instant,
        etcd: &Connection,
    ) -> Result<Enqueued, LockError> {
        let header = self.queue.cluster.check_header(put.header())?;
        if !put.succeeded() {
            return Err(LockError::retryable(
                "the entry was created or given up before",
            ));
        }
        self.shown.borrow_mut().changed = header.revision;
        // The txn itself made this revision, so it is our key's create revision.
        let entry = EntryId {
            token: FencingToken(header.revision),
            lease,
        };
        let others = put.op_responses().iter().find_map(|read| match read {
            TxnOpResponse::Get(read) => usize::try_from(read.count() - 1).ok(),
            _ => None,
        });
        let others = others.unwrap_or(0);
        let view = if others == 0 {
            QueueView::empty(header.revision)
        } else {
            self.queue
                .read_as_created(etcd, entry, others)
                .boxed_local()
                .await?
        };
        Ok(Enqueued {
            ownership: Ownership {
                entry,
                cluster: header.cluster,
                highest_revision: header.revision,
            },
            timings,
            sent_at,
            view,
        })
    }

    /// Deletes our key if it is still the one that we created, or finds out who deleted it.
    ///
    /// The release record is written under our lease in the same request: it shows a later attempt that the deletion
    /// was ours.
    pub(super) async fn delete_entry(
        &self,
        etcd: &Connection,
        entry: EntryId,
        release: &ReleaseRequest,
    ) -> Result<(), LockError> {
        if let Some(cooldown) = &release.cooldown {
            match self.transfer_to_cooldown(etcd, entry, release).await {
                // It has lasted long enough, by etcd's count.
                Err(error) if error.kind == ErrorKind::LeaseNotFound => {}
                // etcd may refuse what needs space before it looks at the lease.
                Err(error) if error.kind == ErrorKind::Refused => {
                    let ReleaseAnswer::Present = self.read_ownership(etcd, entry, release).await?
                    else {
                        return Ok(());
                    };
                    let left = self.queue.lease_time_left(etcd.clone(), cooldown.lease);
                    return if left.await?.is_zero() {
                        // etcd leaves out the fraction of a second.
                        sleep(Duration::from_secs(1)).await;
                        self.delete(etcd, entry, release).await
                    } else {
                        // The lock stays taken until our lease ends.
                        Err(error)
                    };
                }
                cooled => return cooled,
            }
        }
        let mut waiting = GetOptions::new()
            .with_range(self.queue.keys.ended())
            .with_keys_only()
            .with_limit(1);
        if let ReleaseRecord::Behind(_) = release.record {
            // Entries before ours do not need the record.
            waiting = waiting.with_min_create_revision(entry.token.0 + 1);
        }
        let mut removal = self.removal_ops(entry, release.slot);
        removal.push(self.record_release(entry, release.value(&release.record)));
        removal.push(TxnOp::get(self.queue.keys.prefix(), Some(waiting)));
        let answer = match self.leave_queue(etcd, entry, release, removal).await {
            // We release without the record, then, and the next holder has to wait: etcd is out of space, or our role
            // is narrower than it should be. etcd refuses the first request that does not fit and executes it all the
            // same (server/etcdserver/apply/quota.go).
            Err(error) if error.kind == ErrorKind::Refused => {
                // A retry cannot recognise a delete without a record, so the key is read first.
                return match self.read_ownership(etcd, entry, release).await? {
                    ReleaseAnswer::Present => self.delete(etcd, entry, release).await,
                    _ => Ok(()),
                };
            }
            answer => answer?,
        };
        let Some(answer) = answer else {
            return Ok(());
        };
        let is_next = |read| matches!(read, TxnOpResponse::Get(read) if !read.kvs().is_empty());
        if !answer.op_responses().into_iter().any(is_next) {
            // No waiter needs the record.
            self.revoke_unawaited(etcd, entry.lease).await;
        }
        Ok(())
    }

    /// The put of the record that only our release writes, under our lease.
    fn record_release(&self, entry: EntryId, value: String) -> TxnOp {
        let lease = PutOptions::new().with_lease(entry.lease.0);
        let key = self.queue.keys.released(entry.lease);
        TxnOp::put(key, value, Some(lease))
    }

    /// Runs `removal`, which removes our entry or transfers it, if the entry is ours, and returns the answer. Otherwise
    /// our record is read at the same revision.
    async fn leave_queue(
        &self,
        etcd: &Connection,
        entry: EntryId,
        release: &ReleaseRequest,
        removal: Vec<TxnOp>,
    ) -> Result<Option<TxnResponse>, LockError> {
        let record = TxnOp::get(self.queue.keys.released(entry.lease), None);
        let txn = Txn::new()
            .when(self.ownership_compares(entry))
            .and_then(removal)
            .or_else([record]);
        let answer = etcd.kv().txn(txn).await?;
        self.queue.cluster.check_header(answer.header())?;
        if answer.succeeded() {
            release.note_answer(ReleaseAnswer::Deleted);
            return Ok(Some(answer));
        }
        let is_there =
            |read| matches!(read, TxnOpResponse::Get(read) if is_under(read.kvs(), entry.lease));
        let record = answer.op_responses().into_iter().any(is_there);
        release.note_answer(ReleaseAnswer::Absent { record });
        Ok(None)
    }

    /// Reads our key and our record.
    async fn read_ownership(
        &self,
        etcd: &Connection,
        entry: EntryId,
        release: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, LockError> {
        let key = || TxnOp::get(self.queue.keys.entry(entry.lease), None);
        let record = TxnOp::get(self.queue.keys.released(entry.lease), None);
        let (_, reads) = match self.queue.read(etcd, vec![key(), record]).await {
            // A role that may not read the record could not write it either.
            Err(error) if error.kind == ErrorKind::Refused => {
                self.queue.read(etcd, vec![key()]).await?
            }
            read => read?,
        };
        let read = |index: usize| reads.get(index).map(Vec::as_slice).unwrap_or_default();
        let answer = if is_own(read(0), entry) {
            ReleaseAnswer::Present
        } else {
            ReleaseAnswer::Absent {
                record: is_under(read(1), entry.lease),
            }
        };
        release.note_answer(answer);
        Ok(answer)
    }

    /// Changes our record in etcd, as often as necessary: a stop request that others have written there meanwhile has to
    /// stay.
    pub(super) async fn announce(
        &self,
        etcd: Connection,
        entry: EntryId,
        announced: Announced,
    ) -> Result<(), LockError> {
        let key = self.queue.keys.entry(entry.lease);
        loop {
            let (record, changed) = {
                let shown = self.shown.borrow();
                (announced.in_record(shown.record.clone()), shown.changed)
            };
            let mut unchanged = Vec::from(self.ownership_compares(entry));
            unchanged.push(Compare::mod_revision(
                key.as_str(),
                CompareOp::Equal,
                changed,
            ));
            let keep = PutOptions::new().with_lease(entry.lease.0);
            let txn = Txn::new()
                .when(unchanged)
                .and_then([TxnOp::put(key.as_str(), record.to_json(), Some(keep))])
                .or_else([TxnOp::get(key.as_str(), None)]);
            let answer = etcd.kv().txn(txn).await?;
            let header = self.queue.cluster.check_header(answer.header())?;
            if answer.succeeded() {
                let changed = header.revision;
                self.shown.replace(Shown { record, changed });
                return Ok(());
            }
            let read = reads_of(&answer).into_iter().next().unwrap_or_default();
            // Without our entry there is nothing to announce; the watch reports the loss.
            let Some(there) = read.first().filter(|_| is_own(&read, entry)) else {
                return Ok(());
            };
            let record = Holder::parse(there.value()).unwrap_or(record);
            let changed = there.mod_revision();
            let is_announced = Announced::of(&record) == announced;
            self.shown.replace(Shown { record, changed });
            if is_announced {
                // An attempt whose answer was lost has announced it.
                return Ok(());
            }
        }
    }

    /// Transfers our entry, and our slot, to a lease that is never renewed.
    async fn transfer_to_cooldown(
        &self,
        etcd: &Connection,
        entry: EntryId,
        release: &ReleaseRequest,
    ) -> Result<(), LockError> {
        let Some(cooldown) = &release.cooldown else {
            return Ok(());
        };
        let slot = release.slot;
        let under = || Some(PutOptions::new().with_lease(cooldown.lease.0));
        let record = Holder {
            slot,
            cooling: true,
            result: cooldown.result.clone(),
            ..self.record_now().with_grace(cooldown.grace)
        };
        let key = self.queue.keys.entry(entry.lease);
        let kept = release.record.clone().with_place_kept(cooldown.grace);
        let mut puts = vec![
            TxnOp::put(key, record.to_json(), under()),
            self.record_release(entry, release.value(&kept)),
        ];
        puts.extend(
            slot.map(|slot| {
                TxnOp::put(self.queue.keys.slot(slot), entry.token.to_string(), under())
            }),
        );
        if self
            .leave_queue(etcd, entry, release, puts)
            .await?
            .is_some()
        {
            self.revoke_unawaited(etcd, entry.lease).await;
        }
        Ok(())
    }

    /// Deletes without a put, and reads nothing that a narrow role may not read.
    async fn delete(
        &self,
        etcd: &Connection,
        entry: EntryId,
        release: &ReleaseRequest,
    ) -> Result<(), LockError> {
        let txn = Txn::new()
            .when(self.ownership_compares(entry))
            .and_then(self.removal_ops(entry, release.slot));
        let answer = etcd.kv().txn(txn).await?;
        self.queue.cluster.check_header(answer.header())?;
        release.note_answer(if answer.succeeded() {
            ReleaseAnswer::Deleted
        } else {
            ReleaseAnswer::Absent { record: false }
        });
        self.revoke_unawaited(etcd, entry.lease).await;
        Ok(())
    }

    /// The deletion of our entry and our slot.
    fn removal_ops(&self, entry: EntryId, slot: Option<u16>) -> Vec<TxnOp> {
        let keys = [
            Some(self.queue.keys.entry(entry.lease)),
            slot.map(|slot| self.queue.keys.slot(slot)),
        ];
        let delete = |key| TxnOp::delete(key, None);
        keys.into_iter().flatten().map(delete).collect()
    }

    pub(super) fn ownership_compares(&self, entry: EntryId) -> [Compare; 2] {
        let key = self.queue.keys.entry(entry.lease);
        [
            Compare::create_revision(key.as_str(), CompareOp::Equal, entry.token.0),
            Compare::lease(key, CompareOp::Equal, entry.lease.0),
        ]
    }

    /// Revokes a lease whose entries are gone, without waiting for the answer: the lock is free, and a lease without
    /// keys ends by itself. But a near server, whose acknowledgements then meet a closed socket, would drop the request
    /// if it had no time to accept it.
    async fn revoke_unawaited(&self, etcd: &Connection, lease: LeaseId) {
        let mut leases = etcd.leases();
        tokio::select! {
            biased;
            _ = leases.revoke(lease.0) => {}
            () = flush_and_pause(SEND_PAUSE) => {}
        }
    }

    /// Grants a lease that ends by itself after `ttl`, in whole seconds and never earlier.
    pub(super) async fn grant(
        &self,
        etcd: Connection,
        lease: LeaseId,
        ttl: Duration,
    ) -> Result<(), LockError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let options = LeaseGrantOptions::new().with_id(lease.0);
        let granted = etcd.leases().grant(seconds, Some(options)).await?;
        self.queue.cluster.check_header(granted.header())?;
        Ok(())
    }

    /// Runs `ask` on an endpoint that answers, for `limit` at most.
    pub(super) async fn call<T>(
        &self,
        limit: Duration,
        ask: impl AsyncFn(Connection) -> Result<T, LockError>,
    ) -> Result<T, LockError> {
        let answer = self.queue.cluster.call(limit, ask).await;
        answer.map_err(|error| self.explain(error))
    }

    /// Adds a hint to a refusal: the permissions that dlock needs.
    fn explain(&self, error: LockError) -> LockError {
        if !error.cause.contains("permission denied") {
            return error;
        }
        let user = self
            .queue
            .cluster
            .user()
            .unwrap_or("the certificate's user");
        let hint = format!(
            "the role of '{user}' needs readwrite on the range ['{0}', '{1}'): etcdctl role grant-permission ROLE readwrite --prefix {0}",
            self.queue.keys.namespace(),
            self.queue.keys.namespace_end(),
        );
        error.with_hint(Some(&hint))
    }
}
