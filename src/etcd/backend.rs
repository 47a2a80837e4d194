//! One lock request in etcd, from its entry in the queue to the removal of that entry.
//! It must not know how its turn is awaited, nor the command that runs under the lock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::announced::{Announced, Shown};
use super::attempts::Attempts;
use super::connection::Connection;
use super::error::{ErrorKind, LockError};
use super::prepare::Preparation;
use super::queue::{QueueReader, QueueView, read_entries};
use super::requests::{Cooldown, Enqueued, LEAVE_TIMEOUT, ReleaseRequest, Requests};
use super::{Cluster, eviction};
use crate::core::blockers::{QueueEntry, superseded};
use crate::core::holder::{Holder, StopRequest};
use crate::core::keys::LockKeys;
use crate::core::lock_delay::{Ended, Predecessors};
use crate::core::proof::EntryId;
use crate::core::release::{ReleaseAnswers, ReleaseVerdict};
use crate::core::request::{LockRequest, Mode, WaitPolicy};
use crate::core::time::{Instant, LeaseTimings};
use crate::lock::backend::{Release, WaitEvent};
use crate::lock::error::mode_conflict;
use crate::sys::clock;

/// The pause before a request to etcd that has failed, or a slot that is not free yet, is tried again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The variables that only the command of a lock in etcd gets: the key, the lease, the key and the token; `etcdctl
/// lock` sets the last two.
pub(crate) fn command_variables(queue: &LockKeys, entry: EntryId) -> Vec<(&'static str, String)> {
    let (key, lease) = (queue.entry(entry.lease), entry.lease.to_string());
    vec![
        ("DLOCK_KEY", key.clone()),
        ("DLOCK_LEASE", lease),
        ("ETCD_LOCK_KEY", key),
        ("ETCD_LOCK_REV", entry.token.to_string()),
    ]
}

/// The way in which an entry is given up.
#[derive(Default)]
pub(super) struct Leaving {
    pub(super) cooldown: Option<Cooldown>,
    /// The end of the command, if one has run.
    pub(super) ended: Option<Ended>,
    /// The answers of etcd since then.
    pub(super) seen: ReleaseAnswers,
}

/// One request for a lock, as a client of etcd.
pub(crate) struct EtcdBackend {
    pub(super) requests: Rc<Requests>,
    pub(super) request: LockRequest,
    /// The time that etcd has for its first answer.
    pub(super) limit: Duration,
    /// Our entry, from the moment that we know of it until it is given up.
    pub(super) entry: Cell<Option<EntryId>>,
    /// The time of the acquisition.
    pub(super) acquired_at: Cell<Option<Instant>>,
    pub(super) predecessors: RefCell<Predecessors>,
    pub(super) attempts: Rc<Attempts>,
    /// Told when the entries have changed that we wait for.
    pub(super) queue_changed: Notify,
    pub(super) preparation: Preparation,
}

impl EtcdBackend {
    /// `record` is what others are shown of us; `limit` is the time that etcd has for its first answer.
    pub(crate) fn new(
        cluster: Rc<Cluster>,
        queue: LockKeys,
        record: Holder,
        timings: LeaseTimings,
        request: LockRequest,
        limit: Duration,
    ) -> Self {
        let requests = Rc::new(Requests {
            queue: QueueReader {
                cluster,
                keys: queue,
                mode: request.mode,
            },
            shown: RefCell::new(Shown::new(record.clone())),
            base: record,
            taken: RefCell::default(),
            timings,
        });
        let attempts = Rc::new(Attempts::new(Rc::clone(&requests)));
        Self {
            preparation: Preparation::new(&requests, &attempts, request),
            requests,
            request,
            limit,
            entry: Cell::new(None),
            acquired_at: Cell::new(None),
            predecessors: RefCell::default(),
            queue_changed: Notify::new(),
            attempts,
        }
    }

    /// Repeats the stop requests while we wait, until all entries before ours have one. Returns only an error after which
    /// waiting ends.
    pub(super) async fn supersede_the_rest(
        &self,
        mut all_asked: bool,
        entry: EntryId,
        timings: LeaseTimings,
    ) -> LockError {
        while !all_asked {
            sleep(RETRY_PAUSE).await;
            match self.supersede(entry, timings.renew_timeout() * 2).await {
                Err(error) if error.kind == ErrorKind::Retryable => {
                    tracing::debug!("those before us cannot be asked to go: {error}");
                }
                Err(error) => return error,
                Ok(all) => all_asked = all,
            }
        }
        std::future::pending().await
    }

    /// Asks the entries before ours to stop if our request supersedes them; returns whether all of them have a stop
    /// request.
    pub(super) async fn supersede(
        &self,
        entry: EntryId,
        limit: Duration,
    ) -> Result<bool, LockError> {
        let Some(request) = self.request.supersede else {
            return Ok(true);
        };
        let QueueReader { cluster, keys, .. } = &self.requests.queue;
        let by = self.requests.base.sentence();
        self.requests
            .call(limit, async |connection: Connection| {
                let before = read_entries(cluster, keys, &connection, Some(entry.token)).await?;
                let mut all_asked = true;
                for (entry, to) in superseded(&before, request) {
                    let stop = StopRequest {
                        to,
                        by: by.clone(),
                        why: Some("superseded by a newer request".to_owned()),
                        now: false,
                    };
                    // A record that has changed meanwhile is read again.
                    all_asked &=
                        eviction::write_stop_request(cluster, &connection, entry, &stop).await?;
                }
                Ok(all_asked)
            })
            .await
    }

    /// Creates an entry at the end of the queue.
    pub(super) async fn enqueue(&self, limit: Duration) -> Result<Enqueued, LockError> {
        self.requests
            .shown
            .replace(Shown::new(self.record_to_announce()));
        let entering = self.requests.call(limit, async |connection: Connection| {
            let lease = self.attempts.begin()?;
            let on_grant = |attempt| self.attempts.update(lease, attempt);
            let entry = self.requests.enqueue(&connection, lease, on_grant).await;
            if matches!(&entry, Err(error) if error.kind == ErrorKind::LeaseExists) {
                // The lease belongs to another client: it must be neither adopted nor revoked.
                self.attempts.forget(lease);
            }
            entry
        });
        let mut enqueued = match entering.await {
            Ok(enqueued) => enqueued,
            Err(error) => {
                if error.kind == ErrorKind::Refused {
                    self.attempts.revoke_all(LEAVE_TIMEOUT).await;
                }
                return Err(error);
            }
        };
        let entry = enqueued.ownership.entry;
        self.attempts.forget(entry.lease);
        self.entry.set(Some(entry));
        self.update_predecessors(&enqueued.view);
        // An entry before ours may be an abandoned attempt of our own.
        let own = self.attempts.leases();
        if self.attempts.revoke_all(LEAVE_TIMEOUT).await
            && !enqueued.view.blockers.entries.is_empty()
        {
            let mut before = std::mem::take(&mut enqueued.view.blockers.entries);
            before.retain(|one| !own.contains(&one.lease));
            enqueued.view = self
                .read_queue(entry, enqueued.timings, &before, &mut |_| {})
                .await?;
            self.update_predecessors(&enqueued.view);
        }
        let _ = self.announce(entry, enqueued.timings, false).await;
        self.check_mode(&enqueued.view)?;
        Ok(enqueued)
    }

    /// Checks that the lock is used in the mode that we request.
    pub(super) fn check_mode(&self, view: &QueueView) -> Result<(), LockError> {
        let by = view.position.holder.as_ref();
        match view.mode_conflict {
            Some(theirs) => Err(mode_conflict(theirs, by, self.request.mode).into()),
            None => Ok(()),
        }
    }

    /// Reads the queue, and retries if we wait.
    pub(super) async fn read_queue(
        &self,
        entry: EntryId,
        timings: LeaseTimings,
        before: &[QueueEntry],
        on_event: &mut impl FnMut(WaitEvent),
    ) -> Result<QueueView, LockError> {
        let (requests, limit) = (&self.requests, timings.renew_timeout() * 2);
        let reading = async |etcd| requests.queue.read_queue(&etcd, entry, before).await;
        loop {
            match requests.call(limit, reading).await {
                Err(error)
                    if error.kind == ErrorKind::Retryable
                        && self.request.wait_policy != WaitPolicy::NoWait =>
                {
                    if let Some(refusal) = self.refused_for_good() {
                        return Err(refusal);
                    }
                    on_event(WaitEvent::Error(error));
                }
                view => return view,
            }
        }
    }

    /// The error that ends the wait when etcd has refused our credentials for so long that our entry is surely gone: every
    /// keepalive needs a connection, and no connection was made.
    pub(super) fn refused_for_good(&self) -> Option<LockError> {
        let (refusal, used_at) = self.requests.queue.cluster.refusal()?;
        let timings = self.requests.timings;
        // A clock of etcd may be a tenth slower.
        let gone_at = used_at + timings.renew_timeout() + timings.ttl() * 11 / 10;
        let gone = gone_at <= clock::now();
        gone.then(|| LockError {
            cause: format!("the entry in the queue has expired: {}", refusal.cause),
            ..refusal.into_refused()
        })
    }

    /// Updates the predecessors from a view of the queue; returns the lock delay of those that have newly vanished.
    /// Must be called before any await, as we may have to leave the queue.
    pub(super) fn update_predecessors(&self, view: &QueueView) -> Duration {
        let mut predecessors = self.predecessors.borrow_mut();
        predecessors.update(clock::now(), view.sight.clone())
    }

    /// The end of the lock delay: the commands of vanished predecessors have ended by then.
    pub(super) fn lock_delay_ends_at(&self) -> Option<Instant> {
        self.predecessors.borrow().free_at()
    }

    /// Our record with the grace that those behind us have to know.
    fn record_to_announce(&self) -> Holder {
        let record = self.requests.record();
        // A waiter for a slot takes each change of the entry before it for the taking of a slot.
        if matches!(self.request.mode, Mode::Slots(_)) {
            return record;
        }
        let own = record.grace();
        record.with_grace(self.predecessors.borrow().grace(clock::now(), own))
    }

    /// The rest of the lock delay.
    pub(super) fn lock_delay_left(&self) -> Duration {
        self.predecessors.borrow().remaining(clock::now())
    }

    /// Whether our record says that our command has not started although our turn has come.
    pub(super) fn shows_pending(&self) -> bool {
        self.requests.shown.borrow().record.pending
    }

    /// Writes into our record how long commands may run if we vanish, and whether our turn is pending, unless it is there.
    /// A failure is repaired at the next call.
    pub(super) async fn announce(
        &self,
        entry: EntryId,
        timings: LeaseTimings,
        pending: bool,
    ) -> Result<(), LockError> {
        let announced = Announced {
            grace: self.record_to_announce().grace(),
            pending,
        };
        if announced == Announced::of(&self.requests.shown.borrow().record) {
            return Ok(());
        }
        let (requests, limit) = (&self.requests, timings.renew_timeout() * 2);
        let announcing = async |etcd| requests.announce(etcd, entry, announced).await;
        let written = requests.call(limit, announcing).await;
        written.inspect_err(|error| tracing::debug!("our record cannot be changed: {error}"))
    }

    /// Deletes our entry, or leaves it to a cooldown.
    pub(super) async fn delete_entry(&self, limit: Duration, leaving: Leaving) -> Release {
        let Some(entry) = self.entry.take() else {
            return Release::Confirmed;
        };
        let record = (self.predecessors.borrow()).release_record(self.request.mode, entry.token);
        let release = ReleaseRequest {
            record,
            ended: leaving.ended,
            slot: self.preparation.slot.get(),
            cooldown: leaving.cooldown,
            answers: Cell::new(leaving.seen),
        };
        let deleting = async |etcd| self.requests.delete_entry(&etcd, entry, &release).await;
        let answered = self.requests.queue.cluster.call(limit, deleting).await;
        match (release.answers.get().verdict(), answered) {
            (ReleaseVerdict::Released, _) => Release::Confirmed,
            (ReleaseVerdict::Lost, _) => Release::NotOurs,
            (ReleaseVerdict::Open, Err(error)) => Release::Unconfirmed(error),
            (ReleaseVerdict::Open, Ok(())) => {
                Release::Unconfirmed(LockError::retryable("an answer of etcd was lost"))
            }
        }
    }
}
