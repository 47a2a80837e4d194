//! The session of an entry: proven renewals of its lease, and a watch on the keys that matter.
//! It must not know which entry is next, nor when a renewal is due.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    GetOptions, KeyValue, ResponseHeader, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse,
    WatchStream,
};
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Cluster;
use super::connection::{Connection, within};
use super::error::{ErrorKind, LockError};
use super::queue::{count_before, entry_id};
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
    },
}

impl WatchTarget {
    /// Whether an event at `key` concerns the target.
    fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Nobody => false,
            Self::One { key: awaited, .. } => awaited.as_bytes() == key,
            Self::Any { keys, .. } => std::str::from_utf8(key).is_ok_and(|key| keys.contains(key)),
        }
    }
}

/// Renews and watches in the background until it is dropped.
pub(crate) struct EtcdSession {
    requests: mpsc::UnboundedSender<()>,
    events: mpsc::UnboundedReceiver<SessionEvent>,
    target: watch::Sender<WatchTarget>,
    _tasks: JoinSet<()>,
}

impl EtcdSession {
    /// Must be called inside a `tokio::task::LocalSet`.
    pub(super) fn open_keepalive(
        cluster: &Rc<Cluster>,
        key: &str,
        entry: EntryId,
        timings: LeaseTimings,
        awaited: WatchTarget,
    ) -> Self {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (tell, event) = mpsc::unbounded_channel();
        let (follow, awaited) = watch::channel(awaited);
        let subject = Rc::new(SessionState {
            cluster: Rc::clone(cluster),
            key: key.to_owned(),
            entry,
            timings,
            events: tell,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_local(renew(Rc::clone(&subject), ordered, awaited.clone()));
        tasks.spawn_local(watch_loop(subject, awaited));
        Self {
            requests: orders,
            events: event,
            target: follow,
            _tasks: tasks,
        }
    }

    /// Watches another target from now on.
    pub(super) fn watch_for(&self, awaited: WatchTarget) {
        self.target.send_replace(awaited);
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
        awaited: &WatchTarget,
    ) -> Result<(Header, Option<EntryId>), LockError> {
        let mut reads = vec![TxnOp::get(self.key.as_str(), None)];
        reads.extend(self.read_target(awaited));
        // A transaction that only reads is linearizable (server/etcdserver/v3_server.go Txn).
        let answer = etcd.kv().txn(Txn::new().and_then(reads)).await?;
        let header = self.cluster.check_header(answer.header())?;
        let mut reads = answer.op_responses().into_iter().map(|read| match read {
            TxnOpResponse::Get(read) => Some(read),
            _ => None,
        });
        let own = reads
            .next()
            .flatten()
            .and_then(|mut read| read.take_kvs().pop());
        if let Some(own) = &own {
            self.check_stop_request(own);
        }
        let others = reads.next().flatten();
        let moved = others.is_some_and(|others| match awaited {
            WatchTarget::Nobody => false,
            WatchTarget::One { changed, .. } => {
                let latest = others.kvs().first().map(KeyValue::mod_revision);
                latest != Some(*changed)
            }
            WatchTarget::Any { count, .. } => others.kvs().len() != *count,
        });
        if moved {
            self.emit(SessionEvent::QueueChanged);
        }
        Ok((header, own.as_ref().map(entry_id)))
    }

    /// The read that shows whether the target has changed.
    fn read_target(&self, awaited: &WatchTarget) -> Option<TxnOp> {
        match awaited {
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
        awaited: &WatchTarget,
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
                if awaited.contains(key.key()) {
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
        if let Some(ask) = record.and_then(|record| record.asked) {
            self.emit(SessionEvent::StopRequested(ask));
        }
    }
}

async fn renew(
    subject: Rc<SessionState>,
    mut ordered: mpsc::UnboundedReceiver<()>,
    awaited: watch::Receiver<WatchTarget>,
) {
    let mut keeping = None;
    while ordered.recv().await.is_some() {
        let index = subject.cluster.current();
        let awaited = awaited.borrow().clone();
        // Boxed, so that its memory is free between renewals, which is nearly always.
        let attempt = renew_once(&subject, &mut keeping, index, &awaited).boxed_local();
        match attempt.await {
            Ok(renewal) => subject.emit(SessionEvent::Renewed(renewal)),
            Err(error) => {
                // Later answers of the old stream are dropped with it.
                keeping = None;
                subject.emit(SessionEvent::Failed {
                    endpoint: subject.cluster.name(index),
                    cause: error.cause,
                });
            }
        }
    }
}

async fn renew_once(
    subject: &SessionState,
    keeping: &mut Option<KeepAlive>,
    index: usize,
    awaited: &WatchTarget,
) -> Result<Renewal, LockError> {
    let (cluster, limit) = (&subject.cluster, subject.timings.renew_timeout());
    let connecting = cluster.connection(index, limit).await;
    let etcd = connecting.inspect_err(|error| {
        if error.kind != ErrorKind::AuthExpired {
            cluster.advance(index);
        }
    })?;
    if keeping.as_ref().is_some_and(|kept| !kept.is_on(&etcd)) {
        *keeping = None;
    }
    let proof = prove(subject, keeping, &etcd, awaited).await;
    proof.inspect_err(|error| cluster.disconnect(&etcd, error))
}

/// Makes one renewal over this connection.
async fn prove(
    subject: &SessionState,
    keeping: &mut Option<KeepAlive>,
    etcd: &Connection,
    awaited: &WatchTarget,
) -> Result<Renewal, LockError> {
    let limit = subject.timings.renew_timeout();
    let read = subject.read(etcd, awaited);
    let kept = match keeping {
        Some(kept) => kept,
        None => match within(limit, KeepAlive::open(etcd, subject.entry.lease)).await {
            Ok(opened) => keeping.insert(opened),
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
    let check = |header: Option<&ResponseHeader>| subject.cluster.check_header(header);
    within(limit, kept.renew(check, read)).await
}

/// Watches our key and the target, and opens the watch again whenever anything is unclear.
async fn watch_loop(subject: Rc<SessionState>, mut awaited: watch::Receiver<WatchTarget>) {
    if *awaited.borrow() == WatchTarget::Nobody {
        sleep(WATCH_DELAY).await;
    }
    loop {
        let others = awaited.borrow_and_update().clone();
        let opening_at = clock::now();
        let left = tokio::select! {
            left = watch_once(&subject, &others) => left,
            () = target_changed(&mut awaited) => Ok(()),
        };
        let Err(error) = left else {
            subject.emit(SessionEvent::Watch(Watch::Reopening));
            continue;
        };
        tracing::debug!("the watch broke: {error}");
        subject.emit(SessionEvent::Watch(Watch::Broken));
        if clock::now().since(opening_at) < RETRY_PAUSE {
            sleep(RETRY_PAUSE).await;
        }
    }
}

/// Waits for another target. Without a target, the watch continues as it is: it has our key, and in a moving queue, one
/// more read and one more watch for each turn are etcd's main load.
async fn target_changed(awaited: &mut watch::Receiver<WatchTarget>) {
    while awaited.changed().await.is_ok() && *awaited.borrow() == WatchTarget::Nobody {}
}

/// Watches until requests take another connection, which the watch has to follow, or until the watch breaks.
async fn watch_once(subject: &SessionState, awaited: &WatchTarget) -> Result<(), LockError> {
    let cluster = &subject.cluster;
    let mut turns = cluster.turns();
    // Like any request, the watch tries another endpoint when the current one is slow.
    let opening = cluster.call(
        subject.timings.renew_timeout() * 2,
        async |etcd: Connection| {
            let stream = open_watch(subject, &etcd, awaited).await?;
            Ok((etcd, stream))
        },
    );
    let (etcd, mut stream) = opening.await?;
    subject.emit(SessionEvent::Watch(Watch::Open));
    // Unbounded on purpose: a watch is silent while nothing happens. The renewals find out when the endpoint is dead,
    // and read the same keys.
    while cluster.uses(&etcd) {
        turns.borrow_and_update();
        let answer = tokio::select! {
            answer = stream.message() => answer,
            _ = turns.changed() => continue,
        };
        match answer.map_err(LockError::from).transpose() {
            Some(Ok(answer)) => subject.on_watch_response(&answer, awaited)?,
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
    subject: &SessionState,
    etcd: &Connection,
    awaited: &WatchTarget,
) -> Result<WatchStream, LockError> {
    let (header, own) = subject.read(etcd, awaited).await?;
    if header.revision >= subject.entry.token.0 {
        match own {
            None => subject.emit(SessionEvent::Lost(LossReason::KeyGone)),
            Some(entry) if entry != subject.entry => {
                subject.emit(SessionEvent::Lost(LossReason::KeyTaken));
            }
            Some(_) => {}
        }
    }
    let from = || Some(WatchOptions::new().with_start_revision(header.revision + 1));
    let mut stream = etcd.watches().watch(subject.key.as_str(), from()).await?;
    let mut unopened = 1_u8;
    match awaited {
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
        subject.on_watch_response(&answer, awaited)?;
        unopened -= u8::from(answer.created());
    }
    Ok(stream)
}
