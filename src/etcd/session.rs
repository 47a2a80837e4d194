//! The session of an entry: proven renewals of its lease, and a watch on the keys that matter.
//! It must not know which entry is next, nor when a renewal is due.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    GetOptions, KeyValue, ResponseHeader, Txn, TxnOp, WatchOptions, WatchResponse, WatchStream,
};
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Cluster;
use super::connection::{Connection, within};
use super::error::{ErrorKind, LockError};
use super::queue::{count_before, entry_id, reads_of};
use super::renewal::KeepAlive;
use crate::core::heartbeat::Watch;
use crate::core::holder::Holder;
use crate::core::keys::LockKeys;
use crate::core::proof::{EntryId, Header, LossReason, Renewal};
use crate::core::time::LeaseTimings;
use crate::lock::backend::{LockSession, SessionEvent};
use crate::sys::clock;

/// The pause before a watch that broke at once is opened again; one that has lived for longer is opened at once.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// A holder's watch begins after this delay: a command that ends at once needs none.
const WATCH_DELAY: Duration = Duration::from_millis(100);

/// The keys that a waiter waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum WatchTarget {
    #[default]
    Nobody,
    /// The end or a change of this entry, since this revision.
    One { key: String, changed: i64 },
    /// The end or a change of any of these entries.
    Any {
        queue: LockKeys,
        keys: BTreeSet<String>,
        /// The number of all keys before ours, as far as they are counted.
        count: usize,
        /// The revision as of which the entries are known.
        revision: i64,
    },
}

impl WatchTarget {
    /// Whether an event at `key` concerns the target.
    fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Nobody => false,
            Self::One { key: target, .. } => target.as_bytes() == key,
            Self::Any { keys, .. } => std::str::from_utf8(key).is_ok_and(|key| keys.contains(key)),
        }
    }
}

/// Renews and watches in the background until it is dropped.
pub(crate) struct EtcdSession {
    requests: mpsc::UnboundedSender<()>,
    events: mpsc::UnboundedReceiver<SessionEvent>,
    target: watch::Sender<WatchTarget>,
    tasks: JoinSet<()>,
}

impl EtcdSession {
    /// Must be called inside a `tokio::task::LocalSet`.
    pub(super) fn open_keepalive(
        cluster: &Rc<Cluster>,
        key: &str,
        entry: EntryId,
        timings: LeaseTimings,
        target: WatchTarget,
    ) -> Self {
        let (requests, requested) = mpsc::unbounded_channel();
        let (emitted, events) = mpsc::unbounded_channel();
        let (target, watched) = watch::channel(target);
        let state = Rc::new(SessionState {
            cluster: Rc::clone(cluster),
            key: key.to_owned(),
            entry,
            timings,
            events: emitted,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_local(renew(Rc::clone(&state), requested, watched.clone()));
        tasks.spawn_local(watch_loop(state, watched));
        Self {
            requests,
            events,
            target,
            tasks,
        }
    }

    /// Runs a task for as long as the session lives.
    pub(super) fn run_beside(&mut self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(task);
    }

    /// Watches another target from now on.
    pub(super) fn watch_for(&self, target: WatchTarget) {
        self.target.send_replace(target);
    }
}

impl LockSession for EtcdSession {
    fn renew(&self) {
        // The task ends with the session, so the channel is open.
        let _ = self.requests.send(());
    }

    async fn next_event(&mut self) -> SessionEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

/// The state that both tasks share.
struct SessionState {
    cluster: Rc<Cluster>,
    key: String,
    entry: EntryId,
    timings: LeaseTimings,
    events: mpsc::UnboundedSender<SessionEvent>,
}

impl SessionState {
    fn emit(&self, event: SessionEvent) {
        let _ = self.events.send(event);
    }

    /// Reads our key and, while waiting, the target, linearizably.
    async fn read(
        &self,
        etcd: &Connection,
        target: &WatchTarget,
    ) -> Result<(Header, Option<EntryId>), LockError> {
        let mut reads = vec![TxnOp::get(self.key.as_str(), None)];
        reads.extend(self.read_target(target));
        // A transaction that only reads is linearizable (server/etcdserver/v3_server.go Txn).
        let answer = etcd.kv().txn(Txn::new().and_then(reads)).await?;
        let header = self.cluster.check_header(answer.header())?;
        let mut reads = reads_of(&answer).into_iter();
        let own = reads.next().and_then(|mut keys| keys.pop());
        if let Some(own) = &own {
            self.check_stop_request(own);
        }
        let moved = reads.next().is_some_and(|others| match target {
            WatchTarget::Nobody => false,
            WatchTarget::One { changed, .. } => {
                let latest = others.first().map(KeyValue::mod_revision);
                latest != Some(*changed)
            }
            WatchTarget::Any {
                count, revision, ..
            } => {
                let is_newer =
                    |key: &KeyValue| key.mod_revision() > *revision && target.contains(key.key());
                others.len() != *count || others.iter().any(is_newer)
            }
        });
        if moved {
            self.emit(SessionEvent::QueueChanged);
        }
        Ok((header, own.as_ref().map(entry_id)))
    }

    /// The read that shows whether the target has changed.
    fn read_target(&self, target: &WatchTarget) -> Option<TxnOp> {
        match target {
            WatchTarget::Nobody => None,
            WatchTarget::One { key, .. } => Some(TxnOp::get(
                key.as_str(),
                Some(GetOptions::new().with_keys_only()),
            )),
            WatchTarget::Any { queue, .. } => Some(count_before(queue, self.entry.token.0)),
        }
    }

    /// Emits the events of a watch answer.
    fn on_watch_response(
        &self,
        answer: &WatchResponse,
        target: &WatchTarget,
    ) -> Result<(), LockError> {
        if answer.canceled() {
            return Err(LockError::retryable(answer.cancel_reason()));
        }
        for event in answer.events() {
            let Some(key) = event.kv() else { continue };
            // `event_type()` panics at a type that it does not know. Deletion is the only event that leaves no version
            // (mvccpb/kv.proto).
            let deleted = key.version() == 0;
            if key.key() != self.key.as_bytes() {
                if target.contains(key.key()) {
                    self.emit(SessionEvent::QueueChanged);
                }
            } else if deleted {
                self.emit(SessionEvent::Lost(LossReason::KeyGone));
            } else if key.lease() != self.entry.lease.0 {
                self.emit(SessionEvent::Lost(LossReason::KeyTaken));
            } else {
                self.check_stop_request(key);
            }
        }
        Ok(())
    }

    /// Emits a stop request that is in our own record.
    fn check_stop_request(&self, own: &KeyValue) {
        let record = Holder::parse(own.value());
        if let Some(request) = record.and_then(|record| record.asked) {
            self.emit(SessionEvent::StopRequested(request));
        }
    }
}

async fn renew(
    state: Rc<SessionState>,
    mut requests: mpsc::UnboundedReceiver<()>,
    target: watch::Receiver<WatchTarget>,
) {
    let mut keepalive = None;
    while requests.recv().await.is_some() {
        let index = state.cluster.current();
        let target = target.borrow().clone();
        // Boxed, so that its memory is free between renewals, which is nearly always.
        let attempt = renew_once(&state, &mut keepalive, index, &target).boxed_local();
        match attempt.await {
            Ok(renewal) => state.emit(SessionEvent::Renewed(renewal)),
            Err(error) => {
                // Later answers of the old stream are dropped with it.
                keepalive = None;
                state.emit(SessionEvent::Failed {
                    endpoint: state.cluster.name(index),
                    cause: error.cause,
                });
            }
        }
    }
}

async fn renew_once(
    state: &SessionState,
    keepalive: &mut Option<KeepAlive>,
    index: usize,
    target: &WatchTarget,
) -> Result<Renewal, LockError> {
    let (cluster, limit) = (&state.cluster, state.timings.renew_timeout());
    let connecting = cluster.connection(index, limit).await;
    let etcd = connecting.inspect_err(|error| {
        if error.kind != ErrorKind::AuthExpired {
            cluster.advance(index);
        }
    })?;
    if keepalive.as_ref().is_some_and(|kept| !kept.is_on(&etcd)) {
        *keepalive = None;
    }
    let proof = prove(state, keepalive, &etcd, target).await;
    match &proof {
        Ok(_) => cluster.accept_credentials(),
        Err(error) => cluster.disconnect(&etcd, error),
    }
    proof
}

/// Makes one renewal over this connection.
async fn prove(
    state: &SessionState,
    keepalive: &mut Option<KeepAlive>,
    etcd: &Connection,
    target: &WatchTarget,
) -> Result<Renewal, LockError> {
    let limit = state.timings.renew_timeout();
    let read = state.read(etcd, target);
    let kept = match keepalive {
        Some(kept) => kept,
        None => match within(limit, KeepAlive::open(etcd, state.entry.lease)).await {
            Ok(opened) => keepalive.insert(opened),
            Err(error) if error.kind == ErrorKind::LeaseNotFound => {
                // Suspicion, not loss: a lagging or deposed leader says so too. The read decides.
                return Ok(Renewal {
                    sent_at: clock::now(),
                    keepalive: None,
                    read: within(limit, read).await?,
                });
            }
            Err(error) => return Err(error),
        },
    };
    let check = |header: Option<&ResponseHeader>| state.cluster.check_header(header);
    within(limit, kept.renew(check, read)).await
}

/// Watches our key and the target, and opens the watch again whenever anything is unclear.
async fn watch_loop(state: Rc<SessionState>, mut target: watch::Receiver<WatchTarget>) {
    if *target.borrow() == WatchTarget::Nobody {
        sleep(WATCH_DELAY).await;
    }
    loop {
        let others = target.borrow_and_update().clone();
        let opening_at = clock::now();
        let left = tokio::select! {
            left = watch_once(&state, &others) => left,
            () = target_changed(&mut target) => Ok(()),
        };
        let Err(error) = left else {
            state.emit(SessionEvent::Watch(Watch::Reopening));
            continue;
        };
        tracing::debug!("the watch broke: {error}");
        state.emit(SessionEvent::Watch(Watch::Broken));
        if clock::now().since(opening_at) < RETRY_PAUSE {
            sleep(RETRY_PAUSE).await;
        }
    }
}

/// Waits for another target. Without a target, the watch continues as it is: it has our key, and in a moving queue, one
/// more read and one more watch for each turn are etcd's main load.
async fn target_changed(target: &mut watch::Receiver<WatchTarget>) {
    while target.changed().await.is_ok() && *target.borrow() == WatchTarget::Nobody {}
}

/// Watches until requests take another connection, which the watch has to follow, or until the watch breaks.
async fn watch_once(state: &SessionState, target: &WatchTarget) -> Result<(), LockError> {
    let cluster = &state.cluster;
    let mut switches = cluster.switches();
    // Like any request, the watch tries another endpoint when the current one is slow.
    let opening = cluster.call(
        state.timings.renew_timeout() * 2,
        async |etcd: Connection| {
            let stream = open_watch(state, &etcd, target).await?;
            Ok((etcd, stream))
        },
    );
    let (etcd, mut stream) = opening.await?;
    state.emit(SessionEvent::Watch(Watch::Open));
    // Unbounded on purpose: a watch is silent while nothing happens. The renewals find out when the endpoint is dead,
    // and read the same keys.
    while cluster.uses(&etcd) {
        switches.borrow_and_update();
        let answer = tokio::select! {
            answer = stream.message() => answer,
            _ = switches.changed() => continue,
        };
        match answer.map_err(LockError::from).transpose() {
            Some(Ok(answer)) => state.on_watch_response(&answer, target)?,
            broken => {
                let closed = || LockError::retryable("the watch was closed");
                let error = broken.and_then(Result::err).unwrap_or_else(closed);
                // Requests over the same connection would fail as well, and the next watch.
                cluster.disconnect(&etcd, &error);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Opens a watch. It begins with a linearizable read, as a watch from a revision that a restored server has not reached
/// is silent for ever (etcd issue 20221). It is open when etcd has confirmed that.
async fn open_watch(
    state: &SessionState,
    etcd: &Connection,
    target: &WatchTarget,
) -> Result<WatchStream, LockError> {
    let (header, own) = state.read(etcd, target).await?;
    if header.revision >= state.entry.token.0 {
        match own {
            None => state.emit(SessionEvent::Lost(LossReason::KeyGone)),
            Some(entry) if entry != state.entry => {
                state.emit(SessionEvent::Lost(LossReason::KeyTaken));
            }
            Some(_) => {}
        }
    }
    let from = || Some(WatchOptions::new().with_start_revision(header.revision + 1));
    let mut stream = etcd.watches().watch(state.key.as_str(), from()).await?;
    let mut unopened = 1_u8;
    match target {
        WatchTarget::Nobody => {}
        WatchTarget::One { key, .. } => {
            stream.watch(key.as_str(), from()).await?;
            unopened += 1;
        }
        WatchTarget::Any { queue, .. } => {
            let all = from().map(|from| from.with_range(queue.ended()));
            stream.watch(queue.prefix(), all).await?;
            unopened += 1;
        }
    }
    while unopened > 0 {
        let answer = stream.message().await?;
        let answer = answer.ok_or_else(|| LockError::retryable("the watch was closed"))?;
        state.on_watch_response(&answer, target)?;
        unopened -= u8::from(answer.created());
    }
    Ok(stream)
}
