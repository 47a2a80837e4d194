//! The queue in etcd: taking a place, waiting for the turn, leaving.
//! It must not know the command that runs under the lock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::connection::Connection;
use super::error::{ErrorKind, LockError};
use super::queue::{QueueReader, QueueView, read_entries};
use super::requests::{Cooldown, Enqueued, ReleaseRequest, Requests, Shown};
use super::session::EtcdSession;
use super::wait::{RETRY_PAUSE, Waiter};
use super::{Cluster, eviction, random_lease};
use crate::core::abandoned::Attempt;
use crate::core::blockers::{QueueEntry, superseded};
use crate::core::holder::{Holder, StopRequest};
use crate::core::keys::LockKeys;
use crate::core::lock_delay::Predecessors;
use crate::core::name::Scope;
use crate::core::preparation::{Grant, Mark};
use crate::core::proof::{EntryId, LeaseId};
use crate::core::release::ReleaseVerdict;
use crate::core::request::{LockRequest, Mode, WaitPolicy};
use crate::core::text::format_duration;
use crate::core::time::{Instant, LeaseTimings};
use crate::lock::backend::{self, LockBackend, QueuePosition, Release, ReleaseReason, WaitEvent};
use crate::sys::clock;

/// The variables that only the command of a lock in etcd gets: the key, the lease, the key and the token; `etcdctl lock` sets the last two.
pub(crate) fn command_variables(queue: &LockKeys, entry: EntryId) -> Vec<(&'static str, String)> {
    let (key, lease) = (queue.entry(entry.lease), entry.lease.to_string());
    vec![
        ("DLOCK_KEY", key.clone()),
        ("DLOCK_LEASE", lease),
        ("ETCD_LOCK_KEY", key),
        ("ETCD_LOCK_REV", entry.token.to_string()),
    ]
}

/// How asking for the lock went.
pub(super) type Outcome = backend::AcquireOutcome<EtcdSession>;

/// How long leaving may take: whoever gives up should not have to wait.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// One who wants the lock.
pub(crate) struct EtcdBackend {
    pub(super) requests: Requests,
    pub(super) request: LockRequest,
    /// How long etcd may be silent at first.
    limit: Duration,
    /// Our place, from the moment that we know of it until it is given up.
    entry: Cell<Option<EntryId>>,
    predecessors: RefCell<Predecessors>,
    /// Leases of attempts whose end we have not seen: each may hold a place that nobody uses.
    pub(super) abandoned: RefCell<Vec<LeaseId>>,
    /// Those among them that may take a place later.
    pub(super) late: RefCell<BTreeMap<LeaseId, Attempt>>,
    pub(super) slot: Cell<Option<u16>>,
    /// The lease that keeps the lock taken after the command.
    pub(super) cooldown: Cell<Option<Grant>>,
    /// The mark that keeps further runs from starting.
    pub(super) mark: Cell<Option<Mark>>,
}

impl LockBackend for EtcdBackend {
    type Session = EtcdSession;

    fn scope(&self) -> Scope {
        Scope::Prefix(self.requests.queue.keys.namespace().to_owned())
    }

    async fn acquire(&self, mut tell: impl FnMut(WaitEvent)) -> Result<Outcome, LockError> {
        let limit = self.limit;
        let mut at_first = !matches!(self.request.wait_policy, WaitPolicy::Timeout(_));
        loop {
            let entered = loop {
                match self.enqueue_unless_ran(limit).await {
                    Err(error) if !at_first && error.kind == ErrorKind::Retryable => {
                        tell(WaitEvent::Error(error));
                        sleep(RETRY_PAUSE).await;
                    }
                    other => break other?,
                }
            };
            at_first = false;
            let entry = match entered {
                Ok(entry) => entry,
                Err(outcome) => return Ok(outcome),
            };
            let mut all_asked = true;
            let is_free = entry.view.blockers.entries.is_empty();
            if self.request.wait_policy == WaitPolicy::NoWait
                && !(is_free && self.hand_over_left().is_zero())
            {
                self.leave_queue().await;
                return self.busy(entry.view.position).await;
            }
            if !is_free {
                match self.supersede(entry.ownership.entry, limit).await {
                    Err(error) if error.kind == ErrorKind::Retryable => {
                        tell(WaitEvent::Error(error));
                        all_asked = false;
                    }
                    asked => all_asked = asked?,
                }
            }
            let superseding =
                self.supersede_the_rest(all_asked, entry.ownership.entry, entry.timings);
            let outcome = tokio::select! {
                biased;
                outcome = Waiter::new(self, entry).until_acquired(&mut tell) => outcome?,
                error = superseding.boxed_local() => return Err(error),
            };
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
            // Its lease may have a slot still.
            self.abandon(self.entry.take().map(|entry| entry.lease));
            self.revoke_unused(LEAVE_TIMEOUT).await;
            self.slot.set(None);
            tell(WaitEvent::EntryLost);
        }
    }

    async fn position(&self) -> Option<QueuePosition> {
        let entry = self.entry.get()?;
        let asked = async |etcd: Connection| self.requests.queue.position(&etcd, entry).await;
        let ahead = self.call(LEAVE_TIMEOUT, asked).await.ok()?;
        (ahead.count > 0).then_some(ahead)
    }

    fn unanswered_causes(&self) -> Option<(String, Duration)> {
        let causes = self.requests.queue.cluster.unanswered()?;
        Some((causes, self.limit))
    }

    fn unreachable(&self, limit: Duration) -> LockError {
        self.requests.queue.cluster.unreachable(limit)
    }

    /// Removes our place and whatever unfinished attempts may have left, all of it within one limit.
    async fn leave_queue(&self) {
        let until = clock::now() + LEAVE_TIMEOUT;
        let rest = || until.since(clock::now());
        // The mark goes before the place: the next one is not to take it for that of a run.
        let mark = self.mark.get().map(|mark| mark.grant.lease);
        if mark.is_some() {
            self.revoke_unused(LEAVE_TIMEOUT / 2).await;
        }
        let left = self.predecessors.borrow().remaining(clock::now());
        if left.is_zero() || self.entry.get().is_none() {
            let _ = self.delete_entry(rest(), None).await;
        } else {
            // Nobody else may come in while the command of one that vanished may run. Without that lease, our own keeps
            // the place, and those behind us wait for a grace once more.
            if let Ok(Grant { lease, .. }) = self.grant(left, rest()).await {
                // Not zero, which would say that nobody is protected.
                let least = Duration::from_millis(1);
                let kept = Cooldown {
                    lease,
                    result: None,
                    grace: (self.predecessors.borrow()).grace(clock::now(), least),
                };
                let _ = self.delete_entry(rest(), Some(kept)).await;
            }
        }
        self.revoke_unused(rest()).await;
        self.slot.set(None);
        if let Some(lease) = mark {
            self.warn_of_mark(lease);
        }
    }

    /// Deletes our key if it is still the one that we won with, or leaves it to cool down. The success of that comparison
    /// proves, without any clock, that nobody else held the lock in between.
    async fn release(&self, limit: Duration, parting: ReleaseReason<'_>) -> Release {
        if let (Some(mark), ReleaseReason::Done(result) | ReleaseReason::AtOnce(result)) =
            (self.mark.get(), parting)
        {
            let (entries, lease) = (&self.requests, mark.grant.lease);
            let told = async |etcd| entries.mark_result(etcd, lease, result).await;
            if let Err(error) = self.call(limit, told).await {
                tracing::debug!("the result of the run cannot be kept: {error}");
            }
            self.mark.set(None);
        }
        let cooldown = match parting {
            ReleaseReason::Done(result) => self.cooldown.take().map(|grant| Cooldown {
                lease: grant.lease,
                result: Some(result.to_owned()),
                grace: Duration::ZERO,
            }),
            ReleaseReason::AtOnce(_) | ReleaseReason::Unused => None,
        };
        let lease = self.entry.get().map(|entry| entry.lease);
        let release = self.delete_entry(limit, cooldown).await;
        if matches!(release, Release::NotOurs) {
            // Nothing of the command runs any more: its slot is free, too.
            self.abandon(lease);
        }
        self.revoke_unused(LEAVE_TIMEOUT).await;
        self.slot.set(None);
        release
    }

    fn describe_unreleased(&self, _guarded: bool) -> String {
        let ttl = format_duration(self.requests.timings.ttl());
        format!("it frees itself within {ttl} although the command is not dead")
    }
}

impl EtcdBackend {
    /// `record` is what others are shown of us; `connect_timeout` is how long etcd may be silent at first.
    pub(crate) fn new(
        cluster: Rc<Cluster>,
        queue: LockKeys,
        record: Holder,
        timings: LeaseTimings,
        request: LockRequest,
        connect_timeout: Duration,
    ) -> Self {
        let limit = match request.wait_policy {
            WaitPolicy::Timeout(wait) => wait.min(connect_timeout),
            WaitPolicy::NoWait | WaitPolicy::Forever => connect_timeout,
        };
        Self {
            requests: Requests {
                queue: QueueReader {
                    cluster,
                    keys: queue,
                    mode: request.mode,
                },
                shown: RefCell::new(Shown::new(record.clone())),
                record,
                timings,
            },
            request,
            limit,
            entry: Cell::new(None),
            predecessors: RefCell::default(),
            abandoned: RefCell::default(),
            late: RefCell::default(),
            slot: Cell::new(None),
            cooldown: Cell::new(None),
            mark: Cell::new(None),
        }
    }

    /// The key of our place.
    pub(super) fn key(&self, lease: LeaseId) -> String {
        self.requests.queue.keys.entry(lease)
    }

    /// Takes a place, unless it is clear that no command of ours is to run now.
    async fn enqueue_unless_ran(
        &self,
        limit: Duration,
    ) -> Result<Result<Enqueued, Outcome>, LockError> {
        if self.request.once_per.is_some() {
            // A mark of our own that could not be taken back is not that of a run.
            self.revoke_abandoned(LEAVE_TIMEOUT).await;
            let ran = self.call(limit, async |etcd| self.requests.read_mark(etcd).await);
            if let Some(ran) = ran.await? {
                return Ok(Err(Outcome::AlreadyRan(ran)));
            }
        }
        self.enqueue(limit).await.map(Ok)
    }

    async fn busy(&self, ahead: QueuePosition) -> Result<Outcome, LockError> {
        let cooling = ahead.holder.as_ref().is_some_and(|holder| holder.cooling);
        if let Some(lease) = ahead.lease.filter(|_| cooling) {
            let left = self.call(LEAVE_TIMEOUT, async |etcd| {
                self.requests.queue.lease_time_left(etcd, lease).await
            });
            // It may have ended since.
            let left = left.await.unwrap_or_default();
            return Ok(Outcome::Cooling(ahead, left));
        }
        Ok(Outcome::Busy(ahead))
    }

    /// Asks any endpoint.
    pub(super) async fn call<T>(
        &self,
        limit: Duration,
        ask: impl AsyncFn(Connection) -> Result<T, LockError>,
    ) -> Result<T, LockError> {
        let answer = self.requests.queue.cluster.call(limit, ask).await;
        answer.map_err(|error| self.explain(error))
    }

    /// Goes on asking while we wait, until all that stand before us have been asked; then there is nothing more to say.
    async fn supersede_the_rest(
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

    /// Asks those before us to go, as far as that is wished and not done; answers whether all of them have been asked.
    async fn supersede(&self, entry: EntryId, limit: Duration) -> Result<bool, LockError> {
        let Some(request) = self.request.supersede else {
            return Ok(true);
        };
        let QueueReader { cluster, keys, .. } = &self.requests.queue;
        let by = self.requests.record.sentence();
        self.call(limit, async |connection: Connection| {
            let before = read_entries(cluster, keys, &connection, Some(entry.token)).await?;
            let mut all_asked = true;
            for (entry, to) in superseded(&before, request) {
                let ask = StopRequest {
                    to,
                    by: by.clone(),
                    why: Some("superseded by a newer request".to_owned()),
                };
                // A record that has changed meanwhile is looked at again.
                all_asked &=
                    eviction::write_stop_request(cluster, &connection, entry, &ask).await?;
            }
            Ok(all_asked)
        })
        .await
    }

    /// Takes a place at the end of the queue.
    async fn enqueue(&self, limit: Duration) -> Result<Enqueued, LockError> {
        self.requests.shown.replace(Shown::new(self.announced()));
        let entered = self
            .requests
            .queue
            .cluster
            .call(limit, async |connection: Connection| {
                // An id of its own for every attempt: what became of an unanswered one is not known.
                let lease = random_lease()?;
                self.abandoned.borrow_mut().push(lease);
                self.late.borrow_mut().insert(lease, Attempt::Open);
                let hear = |attempt| match attempt {
                    Attempt::Open => {}
                    Attempt::Refused => self.forget(lease),
                    Attempt::Answered | Attempt::Barred => {
                        self.late.borrow_mut().remove(&lease);
                    }
                };
                let entry = self.requests.enqueue(&connection, lease, hear).await;
                if matches!(&entry, Err(error) if error.kind == ErrorKind::LeaseExists) {
                    // Somebody else's. Never adopt it, never revoke it.
                    self.forget(lease);
                }
                entry
            });
        let entered = entered.await.map_err(|error| self.explain(error));
        let mut enqueued = match entered {
            Ok(enqueued) => enqueued,
            Err(error) => {
                if error.kind == ErrorKind::Refused {
                    self.revoke_abandoned(LEAVE_TIMEOUT).await;
                }
                return Err(error);
            }
        };
        let entry = enqueued.ownership.entry;
        self.forget(entry.lease);
        self.entry.set(Some(entry));
        self.update_predecessors(&enqueued.view);
        // An entry before ours may be an abandoned attempt of our own.
        let own = self.abandoned.borrow().clone();
        if self.revoke_abandoned(LEAVE_TIMEOUT).await && !enqueued.view.blockers.entries.is_empty()
        {
            let mut before = std::mem::take(&mut enqueued.view.blockers.entries);
            before.retain(|one| !own.contains(&one.lease));
            enqueued.view = self
                .read_queue(entry, enqueued.timings, &before, &mut |_| {})
                .await?;
            self.update_predecessors(&enqueued.view);
        }
        self.announce(entry, enqueued.timings).await;
        self.check_mode(&enqueued.view)?;
        Ok(enqueued)
    }

    /// Whether the lock is used in the way in which we ask for it.
    pub(super) fn check_mode(&self, view: &QueueView) -> Result<(), LockError> {
        let Some(theirs) = view.mode_conflict else {
            return Ok(());
        };
        let who = view.position.holder.as_ref().map(Holder::sentence);
        let cause = format!(
            "it is used as '{theirs}' by {}, not as '{}'",
            who.unwrap_or_default(),
            self.request.mode,
        );
        Err(LockError::refused(
            cause,
            Some("all who use a lock have to give the same --slots"),
        ))
    }

    /// The read that decides, tried for as long as we wait at all.
    pub(super) async fn read_queue(
        &self,
        entry: EntryId,
        timings: LeaseTimings,
        before: &[QueueEntry],
        tell: &mut impl FnMut(WaitEvent),
    ) -> Result<QueueView, LockError> {
        loop {
            let view = self.requests.queue.cluster.call(
                timings.renew_timeout() * 2,
                async |connection: Connection| {
                    self.requests
                        .queue
                        .read_queue(&connection, entry, Some(before))
                        .await
                },
            );
            let view = view.await;
            match view {
                Err(error) if error.kind == ErrorKind::Retryable => tell(WaitEvent::Error(error)),
                other => return other.map_err(|error| self.explain(error)),
            }
        }
    }

    /// Takes note of whom a look has shown before us, and answers for how long the commands may run of those whose
    /// hand-over is news. To be called before anything is awaited, for we may have to leave.
    pub(super) fn update_predecessors(&self, view: &QueueView) -> Duration {
        let mut predecessors = self.predecessors.borrow_mut();
        predecessors.update(clock::now(), view.sight.clone())
    }

    /// When the commands of those who have vanished before us have had their time.
    pub(super) fn lock_delay_ends_at(&self) -> Option<Instant> {
        self.predecessors.borrow().free_at()
    }

    /// Our record with the grace that those behind us have to know of.
    fn announced(&self) -> Holder {
        let record = self.requests.record.clone();
        // A waiter for a slot takes each change of the entry before it for the taking of a slot.
        if matches!(self.request.mode, Mode::Slots(_)) {
            return record;
        }
        let own = record.grace();
        record.with_grace(self.predecessors.borrow().grace(clock::now(), own))
    }

    /// For how long that still is.
    pub(super) fn hand_over_left(&self) -> Duration {
        self.predecessors.borrow().remaining(clock::now())
    }

    /// Lets others know for how long commands may run if we vanish, unless they do. What cannot be announced is announced
    /// at the next occasion.
    pub(super) async fn announce(&self, entry: EntryId, timings: LeaseTimings) {
        let grace = self.announced().grace();
        if grace == self.requests.shown.borrow().record.grace() {
            return;
        }
        let announcing = async |etcd| self.requests.announce(etcd, entry, grace).await;
        if let Err(error) = self.call(timings.renew_timeout() * 2, announcing).await {
            tracing::debug!("the grace of those before us cannot be announced: {error}");
        }
    }

    async fn delete_entry(&self, limit: Duration, cooldown: Option<Cooldown>) -> Release {
        let Some(entry) = self.entry.take() else {
            return Release::Confirmed;
        };
        let record = (self.predecessors.borrow()).release_record(self.request.mode, entry.token);
        let leaving = ReleaseRequest {
            record,
            slot: self.slot.get(),
            cooldown,
            findings: Cell::default(),
        };
        let giving_up = self
            .requests
            .queue
            .cluster
            .call(limit, async |connection: Connection| {
                self.requests
                    .delete_entry(&connection, entry, &leaving)
                    .await
            });
        let answered = giving_up.await;
        match (leaving.findings.get().verdict(), answered) {
            (ReleaseVerdict::Released, _) => Release::Confirmed,
            (ReleaseVerdict::Lost, _) => Release::NotOurs,
            (ReleaseVerdict::Open, Err(error)) => Release::Unconfirmed(error),
            (ReleaseVerdict::Open, Ok(())) => {
                Release::Unconfirmed(LockError::retryable("an answer of etcd was lost"))
            }
        }
    }

    /// Says what a refusal means here.
    pub(super) fn explain(&self, error: LockError) -> LockError {
        if !error.cause.contains("permission denied") {
            return error;
        }
        let user = self
            .requests
            .queue
            .cluster
            .user()
            .unwrap_or("the certificate's user");
        let hint = format!(
            "the role of '{user}' needs readwrite on the range ['{0}', '{1}'): etcdctl role grant-permission ROLE readwrite --prefix {0}",
            self.requests.queue.keys.namespace(),
            self.requests.queue.keys.namespace_end(),
        );
        error.with_hint(Some(&hint))
    }
}
