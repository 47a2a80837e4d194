//! Keeping a place in the queue: proven renewals of its lease, and a watch on the keys that matter.
//! It must not know whose turn it is, nor when a renewal is due.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    GetOptions, KeyValue, LeaseKeepAliveStream, LeaseKeeper, Txn, TxnOp, TxnOpResponse,
    WatchOptions, WatchResponse, WatchStream,
};
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Cluster;
use super::connection::Connection;
use super::look::counted;
use super::trouble::{Kind, Trouble};
use crate::clock;
use crate::contest::{Keep, News};
use crate::core::heartbeat::Watch;
use crate::core::holder::Holder;
use crate::core::lease::{FencingToken, Header, LeaseId, Loss, Place, Renewal, Terms};
use crate::core::queue::Queue;

/// The pause before a watch that broke at once is opened again; one that has lived for longer is opened at once.
const PAUSE: Duration = Duration::from_millis(250);

/// A holder's watch begins after this: a command that ends at once needs none.
const SETTLE: Duration = Duration::from_millis(100);

/// For whom a waiter waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Awaited {
    #[default]
    Nobody,
    /// That this place ends or is changed, as it was at this revision.
    One { key: String, changed: i64 },
    /// That any of these ends or is changed.
    Any {
        queue: Queue,
        keys: BTreeSet<String>,
        /// How many stood before us, whoever they were, as far as they are counted.
        count: usize,
    },
}

impl Awaited {
    /// Whether an event at `key` is about one of those who are awaited.
    fn concerns(&self, key: &[u8]) -> bool {
        match self {
            Self::Nobody => false,
            Self::One { key: awaited, .. } => awaited.as_bytes() == key,
            Self::Any { keys, .. } => std::str::from_utf8(key).is_ok_and(|key| keys.contains(key)),
        }
    }
}

/// Renews and watches in the background until it is dropped.
pub(crate) struct Session {
    orders: mpsc::UnboundedSender<()>,
    news: mpsc::UnboundedReceiver<News>,
    awaited: watch::Sender<Awaited>,
    _tasks: JoinSet<()>,
}

impl Session {
    /// Must be called inside a `tokio::task::LocalSet`.
    pub(super) fn open(
        cluster: &Rc<Cluster>,
        key: &str,
        place: Place,
        terms: Terms,
        awaited: Awaited,
    ) -> Self {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (tell, news) = mpsc::unbounded_channel();
        let (follow, awaited) = watch::channel(awaited);
        let subject = Rc::new(Subject {
            cluster: Rc::clone(cluster),
            key: key.to_owned(),
            place,
            terms,
            tell,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_local(renew(Rc::clone(&subject), ordered, awaited.clone()));
        tasks.spawn_local(observe(subject, awaited));
        Self {
            orders,
            news,
            awaited: follow,
            _tasks: tasks,
        }
    }

    /// Waits for others from now on.
    pub(super) fn follow(&self, awaited: Awaited) {
        self.awaited.send_replace(awaited);
    }
}

impl Keep for Session {
    fn renew(&self) {
        // The task ends with the session, so there is always somebody to hear it.
        let _ = self.orders.send(());
    }

    async fn news(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

/// What both tasks work for.
struct Subject {
    cluster: Rc<Cluster>,
    key: String,
    place: Place,
    terms: Terms,
    tell: mpsc::UnboundedSender<News>,
}

impl Subject {
    fn tell(&self, news: News) {
        let _ = self.tell.send(news);
    }

    /// One linearizable read of our key and, while waiting, of those who are awaited.
    async fn read(
        &self,
        etcd: &Connection,
        awaited: &Awaited,
    ) -> Result<(Header, Option<Place>), Trouble> {
        let mut reads = vec![TxnOp::get(self.key.as_str(), None)];
        reads.extend(self.others(awaited));
        // A transaction that only reads is linearizable (server/etcdserver/v3_server.go Txn).
        let answer = etcd.kv().txn(Txn::new().and_then(reads)).await?;
        let header = self.cluster.observe(answer.header())?;
        let mut reads = answer.op_responses().into_iter().map(|read| match read {
            TxnOpResponse::Get(read) => Some(read),
            _ => None,
        });
        let own = reads
            .next()
            .flatten()
            .and_then(|mut read| read.take_kvs().pop());
        if let Some(own) = &own {
            self.listen(own);
        }
        let others = reads.next().flatten();
        let moved = others.is_some_and(|others| match awaited {
            Awaited::Nobody => false,
            Awaited::One { changed, .. } => {
                let latest = others.kvs().first().map(KeyValue::mod_revision);
                latest != Some(*changed)
            }
            Awaited::Any { count, .. } => others.kvs().len() != *count,
        });
        if moved {
            self.tell(News::Moved);
        }
        let place = own.map(|own| Place {
            token: FencingToken(own.create_revision()),
            lease: LeaseId(own.lease()),
        });
        Ok((header, place))
    }

    /// The read that shows whether those who are awaited have moved.
    fn others(&self, awaited: &Awaited) -> Option<TxnOp> {
        match awaited {
            Awaited::Nobody => None,
            Awaited::One { key, .. } => Some(TxnOp::get(
                key.as_str(),
                Some(GetOptions::new().with_keys_only()),
            )),
            Awaited::Any { queue, .. } => Some(counted(queue, self.place.token.0)),
        }
    }

    /// Tells what a watch has seen.
    fn hear(&self, answer: &WatchResponse, awaited: &Awaited) -> Result<(), Trouble> {
        if answer.canceled() {
            return Err(Trouble::elsewhere(answer.cancel_reason()));
        }
        for event in answer.events() {
            let Some(key) = event.kv() else { continue };
            // Not `event_type()`, which panics at a type that it does not know. Deletion is the only
            // event that leaves no version (mvccpb/kv.proto).
            let deleted = key.version() == 0;
            if key.key() != self.key.as_bytes() {
                if awaited.concerns(key.key()) {
                    self.tell(News::Moved);
                }
            } else if deleted {
                self.tell(News::Lost(Loss::KeyGone));
            } else if key.lease() != self.place.lease.0 {
                self.tell(News::Lost(Loss::KeyTaken));
            } else {
                self.listen(key);
            }
        }
        Ok(())
    }

    /// Reads what our own key has to say to us.
    fn listen(&self, own: &KeyValue) {
        let record = Holder::parse(own.value());
        if let Some(ask) = record.and_then(|record| record.asked) {
            self.tell(News::Asked(ask));
        }
    }
}

/// A keepalive stream on one connection, with at most one question unanswered: answers carry no
/// number, so a second question would make them ambiguous (measured: after a stall all come at once).
struct Keeping {
    etcd: Connection,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

async fn renew(
    subject: Rc<Subject>,
    mut ordered: mpsc::UnboundedReceiver<()>,
    awaited: watch::Receiver<Awaited>,
) {
    let mut keeping = None;
    while ordered.recv().await.is_some() {
        let index = subject.cluster.current();
        let awaited = awaited.borrow().clone();
        // Boxed, so that its room is free between renewals, which is nearly always.
        let attempt = attempt(&subject, &mut keeping, index, &awaited).boxed_local();
        match attempt.await {
            Ok(renewal) => subject.tell(News::Renewed(renewal)),
            Err(trouble) => {
                // Whatever the old stream still says is dropped with it.
                keeping = None;
                subject.tell(News::Failed {
                    endpoint: subject.cluster.name(index),
                    cause: trouble.cause,
                });
            }
        }
    }
}

async fn attempt(
    subject: &Subject,
    keeping: &mut Option<Keeping>,
    index: usize,
    awaited: &Awaited,
) -> Result<Renewal, Trouble> {
    let (cluster, limit) = (&subject.cluster, subject.terms.attempt());
    let connecting = cluster.connection(index, limit).await;
    let etcd = connecting.inspect_err(|trouble| {
        if trouble.kind != Kind::Token {
            cluster.advance(index);
        }
    })?;
    if keeping.as_ref().is_some_and(|kept| !kept.etcd.is(&etcd)) {
        *keeping = None;
    }
    let proof = prove(subject, keeping, &etcd, awaited).await;
    proof.inspect_err(|trouble| cluster.leave(&etcd, trouble))
}

/// One exchange over this connection.
async fn prove(
    subject: &Subject,
    keeping: &mut Option<Keeping>,
    etcd: &Connection,
    awaited: &Awaited,
) -> Result<Renewal, Trouble> {
    let limit = subject.terms.attempt();
    if keeping.is_none() {
        let opened = within(limit, open(subject.place.lease, etcd)).await?;
        let Some(opened) = opened else {
            // Suspicion, not loss: a lagging or deposed leader says so too. The read decides.
            let sent_at = clock::now();
            let read = within(limit, subject.read(etcd, awaited)).await?;
            return Ok(Renewal {
                sent_at,
                keepalive: None,
                read,
            });
        };
        *keeping = Some(opened);
    }
    let Some(kept) = keeping else {
        return Err(Trouble::elsewhere("no keepalive stream"));
    };
    within(limit, ask(subject, kept, awaited)).await
}

/// Bounds a request; who has not answered by then is given up.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    timeout(limit, answer.boxed_local())
        .await
        .unwrap_or_else(|_| Err(Trouble::silence(limit)))
}

/// Opens a keepalive stream; `None` when the server does not know the lease. The client library keeps
/// the first answer of a new stream to itself.
async fn open(lease: LeaseId, etcd: &Connection) -> Result<Option<Keeping>, Trouble> {
    let opened = etcd.leases().keep_alive(lease.0).await;
    match opened.map_err(Trouble::from) {
        Ok((keeper, answers)) => Ok(Some(Keeping {
            etcd: etcd.clone(),
            keeper,
            answers,
        })),
        Err(trouble) if trouble.kind == Kind::LeaseNotFound => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

/// The keepalive, and only after its answer the read: see `core::lease::Claim::judge`.
async fn ask(subject: &Subject, kept: &mut Keeping, awaited: &Awaited) -> Result<Renewal, Trouble> {
    let sent_at = clock::now();
    kept.keeper.keep_alive().await?;
    let answer = kept.answers.message().await?;
    let answer = answer.ok_or_else(|| Trouble::elsewhere("the keepalive stream was closed"))?;
    if answer.id() != subject.place.lease.0 {
        return Err(Trouble::elsewhere("a keepalive answer for another lease"));
    }
    let header = subject.cluster.observe(answer.header())?;
    let left = Duration::from_secs(answer.ttl().try_into().unwrap_or(0));
    let read = subject.read(&kept.etcd, awaited).await?;
    Ok(Renewal {
        sent_at,
        keepalive: Some((header, left)),
        read,
    })
}

/// Watches our key and those who are awaited, and opens the watch again whenever anything is unclear.
async fn observe(subject: Rc<Subject>, mut awaited: watch::Receiver<Awaited>) {
    if *awaited.borrow() == Awaited::Nobody {
        sleep(SETTLE).await;
    }
    loop {
        let others = awaited.borrow_and_update().clone();
        let opening_at = clock::now();
        let left = tokio::select! {
            left = watch_once(&subject, &others) => left,
            () = others_awaited(&mut awaited) => Ok(()),
        };
        let Err(trouble) = left else {
            subject.tell(News::Watch(Watch::Reopening));
            continue;
        };
        tracing::debug!("the watch broke: {trouble}");
        subject.tell(News::Watch(Watch::Broken));
        if clock::now().since(opening_at) < PAUSE {
            sleep(PAUSE).await;
        }
    }
}

/// Until others are awaited than before. When it is nobody any more, the watch goes on as it is: it has our key, and in
/// a queue that moves on, one more read and one more watch for each turn are what etcd has most to do with.
async fn others_awaited(awaited: &mut watch::Receiver<Awaited>) {
    while awaited.changed().await.is_ok() && *awaited.borrow() == Awaited::Nobody {}
}

/// Until requests go another way, where the watch is to follow, or the watch breaks.
async fn watch_once(subject: &Subject, awaited: &Awaited) -> Result<(), Trouble> {
    let cluster = &subject.cluster;
    let mut turns = cluster.turns();
    // Like any request: at another endpoint as well when the one in use is slow.
    let opening = cluster.call(subject.terms.attempt() * 2, async |etcd: Connection| {
        let stream = open_watch(subject, &etcd, awaited).await?;
        Ok((etcd, stream))
    });
    let (etcd, mut stream) = opening.await?;
    subject.tell(News::Watch(Watch::Open));
    // Unbounded on purpose: silence is what a watch says while nothing happens. The renewals
    // find out when the endpoint is dead, and read the same keys.
    while cluster.uses(&etcd) {
        turns.borrow_and_update();
        let answer = tokio::select! {
            answer = stream.message() => answer,
            _ = turns.changed() => continue,
        };
        match answer.map_err(Trouble::from).transpose() {
            Some(Ok(answer)) => subject.hear(&answer, awaited)?,
            broken => {
                let closed = || Trouble::elsewhere("the watch was closed");
                let trouble = broken.and_then(Result::err).unwrap_or_else(closed);
                // Requests over the same connection would fail as well, and the next watch.
                cluster.leave(&etcd, &trouble);
                return Err(trouble);
            }
        }
    }
    Ok(())
}

/// Every watch begins with a linearizable read, as one from a revision that a restored server
/// has not reached says nothing for ever (etcd issue 20221). It is open when etcd has said so.
async fn open_watch(
    subject: &Subject,
    etcd: &Connection,
    awaited: &Awaited,
) -> Result<WatchStream, Trouble> {
    let (header, own) = subject.read(etcd, awaited).await?;
    if header.revision >= subject.place.token.0 {
        match own {
            None => subject.tell(News::Lost(Loss::KeyGone)),
            Some(place) if place != subject.place => subject.tell(News::Lost(Loss::KeyTaken)),
            Some(_) => {}
        }
    }
    let from = || Some(WatchOptions::new().with_start_revision(header.revision + 1));
    let mut stream = etcd.watches().watch(subject.key.as_str(), from()).await?;
    let mut unopened = 1_u8;
    match awaited {
        Awaited::Nobody => {}
        Awaited::One { key, .. } => {
            stream.watch(key.as_str(), from()).await?;
            unopened += 1;
        }
        Awaited::Any { queue, .. } => {
            let all = from().map(|from| from.with_range(queue.end()));
            stream.watch(queue.prefix(), all).await?;
            unopened += 1;
        }
    }
    while unopened > 0 {
        let answer = stream.message().await?;
        let answer = answer.ok_or_else(|| Trouble::elsewhere("the watch was closed"))?;
        subject.hear(&answer, awaited)?;
        unopened -= u8::from(answer.created());
    }
    Ok(stream)
}
