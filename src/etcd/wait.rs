//! A waiter: waits for the lock, prepares what the command needs, and proves that its entry is there.
//! It must not know how an entry is created, nor how it is removed.

use std::rc::Rc;

use tokio::time::sleep;

use super::announced::Announced;
use super::backend::{EtcdBackend, RETRY_PAUSE, command_variables};
use super::connection::{answers_as_proxy, within};
use super::error::{ErrorKind, LockError};
use super::prepare::Prepared;
use super::queue::QueueView;
use super::requests::{Enqueued, Requests};
use super::session::{EtcdSession, WatchTarget};
use crate::core::heartbeat::{Heartbeat, Watch};
use crate::core::proof::{EntryId, Ownership, Verdict};
use crate::core::proven_lock::ProvenLock;
use crate::core::request::WaitPolicy;
use crate::core::time::{Instant, LeaseTimings};
use crate::core::turn::Turn;
use crate::lock::backend::{AcquireOutcome, Acquired, LockSession as _, SessionEvent, WaitEvent};
use crate::sys::clock;

/// The outcome of one request for the lock.
pub(super) type Outcome = AcquireOutcome<EtcdSession>;

/// An entry in the queue from its creation until the lock is acquired or the entry lost.
pub(super) struct Waiter<'a> {
    backend: &'a EtcdBackend,
    ownership: Ownership,
    timings: LeaseTimings,
    /// The moment from which the latest proof counts.
    proven_at: Instant,
    view: QueueView,
    /// The time from which the lock may be used, once no entry blocks us.
    free_at: Option<Instant>,
    session: EtcdSession,
    heartbeat: Heartbeat,
    /// The number of complete preparations.
    prepared: u32,
    /// Our turn, while it is not proven.
    turn: Option<Turn>,
    /// Our turn has come, and it takes long enough for people to be told that our command has not started.
    pending: bool,
    /// One attempt to take that back has failed: the start does not wait for another.
    shown_in_vain: bool,
    /// The last preparation found no free slot, which is told instead of our turn.
    no_slot: bool,
    /// The cause of the last renewal that proved nothing, for people.
    unproven: Option<String>,
}

/// The result of a preparation, or of an event.
enum Step {
    Continue,
    EntryLost,
    Ended(Box<Outcome>),
}

/// The end of one wait for an event.
enum Event {
    Session(SessionEvent),
    /// A renewal is due, or the lock delay is over.
    Due,
    /// The lock has been free for long, without a proof.
    Unproven,
}

impl<'a> Waiter<'a> {
    pub(super) fn new(backend: &'a EtcdBackend, entry: Enqueued) -> Self {
        let Enqueued {
            ownership,
            timings,
            sent_at: proven_at,
            view,
        } = entry;
        let entry = ownership.entry;
        let session = EtcdSession::open_keepalive(
            &backend.requests.queue.cluster,
            &backend.requests.queue.keys.entry(entry.lease),
            entry,
            timings,
            watch_target(backend, &view),
        );
        let seed = entry.lease.0.unsigned_abs();
        let mut heartbeat = Heartbeat::new(timings, proven_at, seed);
        heartbeat.watch(clock::now(), Watch::Reopening);
        Self {
            backend,
            ownership,
            timings,
            proven_at,
            free_at: None,
            view,
            session,
            heartbeat,
            prepared: 0,
            turn: None,
            pending: false,
            shown_in_vain: false,
            no_slot: false,
            unproven: None,
        }
    }

    /// Waits until the lock is ours, by a recent proof; `None` when our entry is lost.
    pub(super) async fn until_acquired(
        mut self,
        on_event: &mut impl FnMut(WaitEvent),
    ) -> Result<Option<Outcome>, LockError> {
        self.update_free_at(self.proven_at);
        self.announce().await;
        let left = self.backend.lock_delay_left();
        if self.free_at.is_none() {
            on_event(WaitEvent::Behind(self.view.position.clone()));
        } else if !left.is_zero() {
            on_event(WaitEvent::LockDelay(left));
        }
        loop {
            if let Some(refusal) = self.backend.refused_for_good() {
                return Err(refusal);
            }
            let now = clock::now();
            let free = self.free_at.is_some_and(|free_at| free_at <= now);
            // The command starts on a young proof only: after a slow entry or a long wait we need another one.
            let young = now.since(self.proven_at) < self.timings.renew_interval();
            let prepared =
                || (self.backend.preparation).is_complete(now, self.timings, self.prepared);
            let step = if free && young && prepared() {
                if !self.backend.shows_pending() || self.shown_in_vain {
                    return Ok(Some(self.acquired()));
                }
                self.show_start().await
            } else if free && young {
                self.prepare(on_event).await?
            } else {
                if free {
                    self.heartbeat.renew_now(now);
                    if self.turn.is_none() {
                        self.turn = Some(Turn::new(now, self.timings.ttl()));
                        self.report_turn(on_event);
                    }
                }
                let check_at = self.turn.filter(|_| free).map(|turn| turn.check_at());
                if self.heartbeat.start_renewal(now) {
                    self.session.renew();
                }
                let event = tokio::select! {
                    event = self.session.next_event() => Event::Session(event),
                    () = clock::until(self.heartbeat.due_at()) => Event::Due,
                    () = clock::until(self.free_at.filter(|free_at| now < *free_at)) => Event::Due,
                    () = clock::until(check_at) => Event::Unproven,
                };
                match event {
                    Event::Session(event) => self.handle(event, on_event).await?,
                    Event::Due => Step::Continue,
                    Event::Unproven => self.check_turn(on_event).await?,
                }
            };
            match step {
                Step::Continue => {}
                Step::EntryLost => return Ok(None),
                Step::Ended(outcome) => return Ok(Some(*outcome)),
            }
        }
    }

    fn acquired(mut self) -> Outcome {
        let entry = self.ownership.entry;
        if self.backend.shows_pending() {
            let showing = show_start_later(&self.backend.requests, entry, self.timings);
            self.session.run_beside(showing);
        }
        Outcome::Acquired(Box::new(Acquired {
            token: entry.token,
            lock: ProvenLock::new(self.timings, self.ownership, self.proven_at, self.heartbeat),
            session: self.session,
            slot: self.backend.preparation.slot.get(),
            variables: command_variables(&self.backend.requests.queue.keys, entry),
        }))
    }

    /// Sets the time from which the lock is free, if the current view has no blockers.
    fn update_free_at(&mut self, now: Instant) {
        if self.view.blockers.entries.is_empty() {
            self.free_at = self.backend.lock_delay_ends_at().max(Some(now));
            self.pending |= self.free_at > Some(now);
        }
    }

    /// Brings our record up to date; mostly, it is. A failure is repaired at the next call.
    async fn announce(&self) {
        let (entry, timings) = (self.ownership.entry, self.timings);
        let _ = self.backend.announce(entry, timings, self.pending).await;
    }

    /// Takes back that our command has not started: a record that calls the holder a waiter misleads people. If it fails, the
    /// session does it later: nothing but the display depends on it.
    async fn show_start(&mut self) -> Step {
        self.pending = false;
        let (entry, timings) = (self.ownership.entry, self.timings);
        let shown = self.backend.announce(entry, timings, false).await;
        self.shown_in_vain = shown.is_err();
        Step::Continue
    }

    async fn handle(
        &mut self,
        event: SessionEvent,
        on_event: &mut impl FnMut(WaitEvent),
    ) -> Result<Step, LockError> {
        match event {
            SessionEvent::Failed { endpoint, cause } => {
                self.unproven(format!("'{endpoint}': {cause}"), on_event);
                Ok(Step::Continue)
            }
            SessionEvent::Renewed(renewal) => match self.ownership.verify(&renewal) {
                Verdict::Proven(_) => {
                    self.proven_at = renewal.sent_at;
                    self.heartbeat.proven(renewal.sent_at);
                    if let Some(turn) = &mut self.turn {
                        turn.proven(renewal.sent_at);
                        self.report_turn(on_event);
                    }
                    self.announce().await;
                    Ok(Step::Continue)
                }
                Verdict::Inconclusive(inconclusive) => {
                    self.heartbeat.answered();
                    let cause = inconclusive.describe();
                    self.unproven(format!("a renewal proved nothing: {cause}"), on_event);
                    Ok(Step::Continue)
                }
                Verdict::Lost(_) => {
                    self.heartbeat.failed(clock::now());
                    self.refresh(on_event).await
                }
            },
            // The removal of our entry follows, as another event.
            SessionEvent::StopRequested(request) if request.now => Ok(Step::Continue),
            SessionEvent::StopRequested(request) => {
                Ok(Step::Ended(Box::new(Outcome::StopRequested(request))))
            }
            SessionEvent::Watch(watch) => {
                self.heartbeat.watch(clock::now(), watch);
                Ok(Step::Continue)
            }
            // Only locks without a lease have this event.
            SessionEvent::StillHeld => Ok(Step::Continue),
            // The event was handled before.
            SessionEvent::QueueChanged if self.free_at.is_some() => Ok(Step::Continue),
            SessionEvent::QueueChanged | SessionEvent::Lost(_) => self.refresh(on_event).await,
        }
    }

    fn report_turn(&self, on_event: &mut impl FnMut(WaitEvent)) {
        if !self.no_slot {
            on_event(WaitEvent::OurTurn);
        }
    }

    fn unproven(&mut self, cause: String, on_event: &mut impl FnMut(WaitEvent)) {
        self.heartbeat.failed(clock::now());
        on_event(WaitEvent::Error(LockError::retryable(cause.clone())));
        self.unproven = Some(cause);
    }

    /// Reads our entry, and gives it up when it cannot be proven.
    async fn check_turn(
        &mut self,
        on_event: &mut impl FnMut(WaitEvent),
    ) -> Result<Step, LockError> {
        let (requests, entry) = (&self.backend.requests, self.ownership.entry);
        let reading = async |etcd| requests.queue.is_there(&etcd, entry).await;
        let read = requests.call(self.timings.renew_timeout(), reading).await;
        let now = clock::now();
        if read.is_ok() {
            self.heartbeat.answered();
        }
        let Some(turn) = &mut self.turn else {
            return Ok(Step::Continue);
        };
        match read {
            Ok(true) if turn.entry_seen(now) => {
                let unproven = turn.unproven_for(now);
                if let Some(proxy) = self.grpc_proxy().await {
                    self.unproven = Some(proxy);
                }
                Err(LockError::unproven(unproven, self.unproven.as_deref()))
            }
            Ok(true) => {
                self.pending = true;
                self.announce().await;
                Ok(Step::Continue)
            }
            Ok(false) => Ok(Step::EntryLost),
            Err(error) if error.kind == ErrorKind::Retryable => {
                turn.read_failed(now);
                on_event(WaitEvent::Error(error));
                Ok(Step::Continue)
            }
            Err(error) => Err(error),
        }
    }

    /// The reason why nothing can be proven, if an etcd gRPC proxy is in between.
    async fn grpc_proxy(&self) -> Option<String> {
        let (cluster, limit) = (
            &self.backend.requests.queue.cluster,
            self.timings.renew_timeout(),
        );
        let asked = cluster.call(limit, async |etcd| Ok(answers_as_proxy(&etcd, limit).await));
        let proxy = cluster.name(cluster.current());
        matches!(asked.await, Ok(true)).then(|| {
            format!("'{proxy}' is an etcd gRPC proxy, which answers renewals by itself: name the members' own addresses or a TCP balancer")
        })
    }

    /// Reads the queue again: a key has changed, maybe ours.
    async fn refresh(&mut self, on_event: &mut impl FnMut(WaitEvent)) -> Result<Step, LockError> {
        let (backend, entry) = (self.backend, self.ownership.entry);
        let blockers = &self.view.blockers.entries;
        let view = backend
            .read_queue(entry, self.timings, blockers, on_event)
            .await?;
        self.heartbeat.answered();
        let before = std::mem::replace(&mut self.view, view);
        let QueueView {
            own,
            revision,
            position: ahead,
            ..
        } = &self.view;
        let delay = backend.update_predecessors(&self.view);
        if !delay.is_zero() {
            on_event(WaitEvent::LockDelay(delay));
        }
        if !own {
            return Ok(Step::EntryLost);
        }
        self.ownership.highest_revision = self.ownership.highest_revision.max(*revision);
        backend.queue_changed.notify_one();
        let is_new = !self.view.blockers.entries.is_empty() && *ahead != before.position;
        let behind = is_new.then(|| WaitEvent::Behind(ahead.clone()));
        self.update_free_at(clock::now());
        self.announce().await;
        backend.check_mode(&self.view)?;
        behind.into_iter().for_each(on_event);
        self.session.watch_for(watch_target(backend, &self.view));
        Ok(Step::Continue)
    }

    /// Prepares in etcd what the command needs; a part that is not available yet is tried again later.
    async fn prepare(&mut self, on_event: &mut impl FnMut(WaitEvent)) -> Result<Step, LockError> {
        let again_at = |now: Instant| Some(now + RETRY_PAUSE);
        let (entry, tries) = (self.ownership.entry, self.prepared);
        let prepared = (self.backend.preparation)
            .run(entry, self.timings, tries)
            .await;
        self.no_slot = matches!(prepared, Ok(Prepared::NoSlot(_)));
        match prepared {
            Ok(Prepared::Ready) => {
                // No command before ours runs any more: later requests must not wait for one.
                self.announce().await;
                self.prepared = tries.saturating_add(1);
            }
            Ok(Prepared::NotYet) => self.free_at = again_at(clock::now()),
            Ok(Prepared::NoSlot(orphan)) => {
                if self.backend.request.wait_policy == WaitPolicy::NoWait {
                    return Ok(Step::Ended(Box::new(Outcome::NoSlot(orphan))));
                }
                on_event(WaitEvent::NoSlot(orphan));
                self.free_at = again_at(clock::now());
            }
            Ok(Prepared::EntryLost) => return Ok(Step::EntryLost),
            Ok(Prepared::StopRequested(request)) => {
                return Ok(Step::Ended(Box::new(Outcome::StopRequested(request))));
            }
            Ok(Prepared::AlreadyRan(ran)) => {
                return Ok(Step::Ended(Box::new(Outcome::AlreadyRan(ran))));
            }
            Err(error) if error.kind == ErrorKind::Retryable => {
                on_event(WaitEvent::Error(error));
                self.free_at = again_at(clock::now());
            }
            Err(error) => return Err(error),
        }
        Ok(Step::Continue)
    }
}

/// Takes back, as often as necessary, that our command has not started.
fn show_start_later(
    requests: &Rc<Requests>,
    entry: EntryId,
    timings: LeaseTimings,
) -> impl Future<Output = ()> + 'static {
    let requests = Rc::clone(requests);
    async move {
        let (cluster, limit) = (&requests.queue.cluster, timings.renew_timeout());
        loop {
            sleep(timings.renew_interval()).await;
            let announced = Announced {
                pending: false,
                ..Announced::of(&requests.shown.borrow().record)
            };
            // A failure must not take the connection from the renewals.
            if let Ok(etcd) = cluster.connection(cluster.current(), limit).await
                && (within(limit, requests.announce(etcd, entry, announced)).await).is_ok()
            {
                return;
            }
        }
    }
}

/// The keys that the session has to watch.
fn watch_target(backend: &EtcdBackend, view: &QueueView) -> WatchTarget {
    let queue = &backend.requests.queue.keys;
    match &view.blockers.entries[..] {
        [] => WatchTarget::Nobody,
        [one] => WatchTarget::One {
            key: one.key.clone(),
            changed: one.mod_revision,
        },
        several => WatchTarget::Any {
            queue: queue.clone(),
            keys: several.iter().map(|one| one.key.clone()).collect(),
            count: view.count,
            revision: view.revision,
        },
    }
}
