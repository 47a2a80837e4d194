//! Keeping a place in the queue: proven renewals of its lease, and a watch on the keys that matter.
//! It must not know whose turn it is, nor when a renewal is due.

use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    Client, LeaseKeepAliveStream, LeaseKeeper, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Cluster;
use super::trouble::{Kind, Trouble};
use crate::clock;
use crate::core::lease::{FencingToken, Header, LeaseId, Loss, Place, Renewal, Terms};

/// The pause before a broken watch is opened again.
const PAUSE: Duration = Duration::from_millis(250);

/// A holder's watch begins after this: a command that ends at once needs none.
const SETTLE: Duration = Duration::from_millis(100);

/// What a session has to tell.
#[derive(Debug)]
pub(crate) enum News {
    /// A renewal was answered; what it proves is for the core to judge.
    Renewed(Renewal),
    /// A renewal was refused or not answered in time by this endpoint.
    Failed { endpoint: String, cause: String },
    /// Our key is gone, or no longer ours.
    Lost(Loss),
    /// The key that we wait for is gone.
    PredecessorGone,
}

/// Renews and watches in the background until it is dropped.
pub(crate) struct Session {
    orders: mpsc::UnboundedSender<()>,
    news: mpsc::UnboundedReceiver<News>,
    predecessor: watch::Sender<Option<String>>,
    _tasks: JoinSet<()>,
}

impl Session {
    /// Must be called inside a `tokio::task::LocalSet`. `predecessor` is the key whose end is
    /// awaited, if any.
    pub(crate) fn open(
        cluster: &Rc<Cluster>,
        key: &str,
        place: Place,
        terms: Terms,
        predecessor: Option<String>,
    ) -> Self {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (tell, news) = mpsc::unbounded_channel();
        let (predecessor, awaited) = watch::channel(predecessor);
        let subject = Rc::new(Subject {
            cluster: Rc::clone(cluster),
            key: key.to_owned(),
            place,
            terms,
            tell,
            moved: watch::channel(()).0,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_local(renew(Rc::clone(&subject), ordered, awaited.clone()));
        tasks.spawn_local(observe(subject, awaited));
        Self {
            orders,
            news,
            predecessor,
            _tasks: tasks,
        }
    }

    /// Sends one renewal; its end comes as [`News::Renewed`] or [`News::Failed`]. Not to be called
    /// again before that.
    pub(crate) fn renew(&self) {
        // The task ends with the session, so there is always somebody to hear it.
        let _ = self.orders.send(());
    }

    /// Waits for the end of another key from now on, or of none.
    pub(crate) fn follow(&self, predecessor: Option<String>) {
        self.predecessor.send_replace(predecessor);
    }

    /// The next news; cancel-safe.
    pub(crate) async fn news(&mut self) -> News {
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
    /// Told when a renewal has found the endpoint in use dead, so that the watch moves along.
    moved: watch::Sender<()>,
}

impl Subject {
    fn tell(&self, news: News) {
        let _ = self.tell.send(news);
    }

    /// Gives an endpoint up after a failure. A token that ran out is no reason to leave.
    async fn leave(&self, index: usize, trouble: &Trouble) {
        self.cluster.forget(index).await;
        if trouble.kind != Kind::Token {
            self.cluster.advance(index);
        }
        self.moved.send_replace(());
    }

    /// One linearizable read of our key and, while waiting, of the predecessor's.
    async fn read(
        &self,
        client: &mut Client,
        predecessor: Option<&str>,
    ) -> Result<(Header, Option<Place>), Trouble> {
        let mut keys = vec![TxnOp::get(self.key.as_str(), None)];
        keys.extend(predecessor.map(|key| TxnOp::get(key, None)));
        // A transaction that only reads is linearizable (server/etcdserver/v3_server.go Txn).
        let answer = client.txn(Txn::new().and_then(keys)).await?;
        let header = self.cluster.observe(answer.header())?;
        let mut reads = answer.op_responses().into_iter().map(|read| match read {
            TxnOpResponse::Get(read) => read.kvs().first().map(|key| Place {
                token: FencingToken(key.create_revision()),
                lease: LeaseId(key.lease()),
            }),
            _ => None,
        });
        let own = reads.next().flatten();
        if predecessor.is_some() && reads.next().flatten().is_none() {
            self.tell(News::PredecessorGone);
        }
        Ok((header, own))
    }
}

/// A keepalive stream on one connection, with at most one question unanswered: answers carry no
/// number, so a second question would make them ambiguous (measured: after a stall all come at once).
struct Keeping {
    index: usize,
    client: Client,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

async fn renew(
    subject: Rc<Subject>,
    mut ordered: mpsc::UnboundedReceiver<()>,
    awaited: watch::Receiver<Option<String>>,
) {
    let mut keeping = None;
    while ordered.recv().await.is_some() {
        let index = subject.cluster.current();
        let predecessor = awaited.borrow().clone();
        let attempt = attempt(&subject, &mut keeping, index, predecessor.as_deref()).await;
        match attempt {
            Ok(renewal) => subject.tell(News::Renewed(renewal)),
            Err(trouble) => {
                // Whatever the old stream still says is dropped with it.
                keeping = None;
                subject.leave(index, &trouble).await;
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
    predecessor: Option<&str>,
) -> Result<Renewal, Trouble> {
    let limit = subject.terms.attempt();
    let connection = subject.cluster.connection(index, limit).await?;
    if keeping
        .as_ref()
        .is_some_and(|keeping| keeping.index != index)
    {
        *keeping = None;
    }
    let mut client = connection.client;
    if keeping.is_none() {
        let opened = within(limit, open(subject.place.lease, index, client.clone())).await?;
        let Some(opened) = opened else {
            // Suspicion, not loss: a lagging or deposed leader says so too. The read decides.
            let sent_at = clock::now();
            let read = within(limit, subject.read(&mut client, predecessor)).await?;
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
    within(limit, ask(subject, kept, predecessor)).await
}

/// Bounds a request; who has not answered by then is given up.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    timeout(limit, answer)
        .await
        .unwrap_or_else(|_| Err(Trouble::silence(limit)))
}

/// Opens a keepalive stream; `None` when the server does not know the lease. The client library keeps
/// the first answer of a new stream to itself.
async fn open(
    lease: LeaseId,
    index: usize,
    mut client: Client,
) -> Result<Option<Keeping>, Trouble> {
    let opened = client.lease_keep_alive(lease.0).await;
    match opened.map_err(Trouble::from) {
        Ok((keeper, answers)) => Ok(Some(Keeping {
            index,
            client,
            keeper,
            answers,
        })),
        Err(trouble) if trouble.kind == Kind::LeaseNotFound => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

/// The keepalive, and only after its answer the read: see `core::lease::Claim::judge`.
async fn ask(
    subject: &Subject,
    kept: &mut Keeping,
    predecessor: Option<&str>,
) -> Result<Renewal, Trouble> {
    let sent_at = clock::now();
    kept.keeper.keep_alive().await?;
    let answer = kept.answers.message().await?;
    let answer = answer.ok_or_else(|| Trouble::elsewhere("the keepalive stream was closed"))?;
    if answer.id() != subject.place.lease.0 {
        return Err(Trouble::elsewhere("a keepalive answer for another lease"));
    }
    let header = subject.cluster.observe(answer.header())?;
    let left = Duration::from_secs(answer.ttl().try_into().unwrap_or(0));
    let read = subject.read(&mut kept.client, predecessor).await?;
    Ok(Renewal {
        sent_at,
        keepalive: Some((header, left)),
        read,
    })
}

/// Watches our key and the predecessor's, and opens the watch again whenever anything is unclear.
async fn observe(subject: Rc<Subject>, mut awaited: watch::Receiver<Option<String>>) {
    let mut moved = subject.moved.subscribe();
    if awaited.borrow().is_none() {
        sleep(SETTLE).await;
    }
    loop {
        let predecessor = awaited.borrow_and_update().clone();
        let _ = moved.borrow_and_update();
        tokio::select! {
            watched = watch_once(&subject, predecessor.as_deref()) => {
                if let Err(trouble) = watched {
                    tracing::debug!("the watch broke: {trouble}");
                }
                sleep(PAUSE).await;
            }
            _ = awaited.changed() => {}
            _ = moved.changed() => {}
        }
    }
}

async fn watch_once(subject: &Subject, predecessor: Option<&str>) -> Result<(), Trouble> {
    let index = subject.cluster.current();
    let limit = subject.terms.attempt();
    let connection = subject.cluster.connection(index, limit).await?;
    let opening = open_watch(subject, connection.client, predecessor);
    let mut stream = within(limit, opening).await?;
    // Unbounded on purpose: silence is what a watch says while nothing happens. The renewals
    // find out when the endpoint is dead, and read the same keys.
    while let Some(answer) = stream.message().await? {
        if answer.canceled() {
            return Err(Trouble::elsewhere(answer.cancel_reason()));
        }
        for event in answer.events() {
            let Some(key) = event.kv() else { continue };
            // Not `event_type()`, which panics at a type that it does not know. Deletion is the only
            // event that leaves no version (mvccpb/kv.proto).
            let deleted = key.version() == 0;
            if key.key() != subject.key.as_bytes() {
                if deleted {
                    subject.tell(News::PredecessorGone);
                }
            } else if deleted {
                subject.tell(News::Lost(Loss::KeyGone));
            } else if key.lease() != subject.place.lease.0 {
                subject.tell(News::Lost(Loss::KeyTaken));
            }
        }
    }
    Err(Trouble::elsewhere("the watch was closed"))
}

/// Every watch begins with a linearizable read, as one from a revision that a restored server
/// has not reached says nothing for ever (etcd issue 20221).
async fn open_watch(
    subject: &Subject,
    mut client: Client,
    predecessor: Option<&str>,
) -> Result<WatchStream, Trouble> {
    let (header, own) = subject.read(&mut client, predecessor).await?;
    if header.revision >= subject.place.token.0 {
        match own {
            None => subject.tell(News::Lost(Loss::KeyGone)),
            Some(place) if place != subject.place => subject.tell(News::Lost(Loss::KeyTaken)),
            Some(_) => {}
        }
    }
    let from = || Some(WatchOptions::new().with_start_revision(header.revision + 1));
    let mut stream = client.watch(subject.key.as_str(), from()).await?;
    if let Some(predecessor) = predecessor {
        stream.watch(predecessor, from()).await?;
    }
    Ok(stream)
}
