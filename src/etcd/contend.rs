//! The queue in etcd: taking a place, waiting for the turn, leaving.
//! It must not know the command that runs under the lock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::time::{sleep, timeout};

use super::Cluster;
use super::connection::Connection;
use super::session::{News, Session};
use super::trouble::{Kind, Trouble};
use crate::clock;
use crate::core::heartbeat::Heartbeat;
use crate::core::holder::Holder;
use crate::core::lease::{Claim, FencingToken, Header, Instant, LeaseId, Place, Terms, Verdict};
use crate::core::queue::Queue;

/// The lead of the grant over the txn that needs it, on an established connection: enough for the
/// server to handle them in order, and much less than the round trip that it saves.
const LEAD: Duration = Duration::from_micros(1500);
/// How long leaving may take: whoever gives up should not have to wait.
const LEAVE: Duration = Duration::from_secs(2);
/// How long a request that nobody waits for has to reach the socket.
const FLUSH: Duration = Duration::from_millis(1);

/// The lock is ours.
pub(crate) struct Won {
    pub(crate) claim: Claim,
    pub(crate) terms: Terms,
    /// The moment from which the freshest proof counts.
    pub(crate) proven_at: Instant,
    pub(crate) session: Session,
}

/// Whom we wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// The holder's record; `None` when it is not one of ours.
    pub(crate) holder: Option<Holder>,
    /// How many are before us, the holder among them.
    pub(crate) count: usize,
}

/// What a waiter has to tell.
pub(crate) enum Waiting {
    /// Waiting begins, or somebody else holds the lock now.
    Behind(Ahead),
    /// Our own lease ended while waiting: the place is lost, and taken anew at the end.
    PlaceLost,
    /// etcd does not answer; waiting goes on.
    Trouble(Trouble),
}

/// What became of a release.
pub(crate) enum Release {
    /// Our key was there to the end, so nobody else held the lock in between.
    Confirmed,
    /// It was not our lock any more.
    NotOurs,
    /// etcd did not answer.
    Unconfirmed(Trouble),
}

/// One who wants the lock.
pub(crate) struct Contender {
    cluster: Rc<Cluster>,
    queue: Queue,
    record: String,
    terms: Terms,
    /// Our place, from the moment that we know of it until it is given up.
    place: Cell<Option<Place>>,
    /// Leases of attempts whose end we have not seen: each may hold a place that nobody uses.
    abandoned: RefCell<Vec<LeaseId>>,
}

/// A place in the queue, just taken.
struct Entry {
    claim: Claim,
    terms: Terms,
    sent_at: Instant,
    look: Look,
}

impl Contender {
    /// `record` is what others are shown of us.
    pub(crate) fn new(cluster: Rc<Cluster>, queue: Queue, record: String, terms: Terms) -> Self {
        Self {
            cluster,
            queue,
            record,
            terms,
            place: Cell::new(None),
            abandoned: RefCell::default(),
        }
    }

    /// The key of our place.
    pub(crate) fn key(&self, lease: LeaseId) -> String {
        self.queue.key(lease)
    }

    /// Takes the lock if it is free, else leaves no trace and says who holds it.
    pub(crate) async fn try_acquire(&self, limit: Duration) -> Result<Result<Won, Ahead>, Trouble> {
        loop {
            let entry = self.enter(limit).await?;
            if entry.look.predecessor.is_some() {
                self.leave().await;
                return Ok(Err(entry.look.ahead));
            }
            if let Some(won) = self.wait(entry, &mut |_| {}).await? {
                return Ok(Ok(won));
            }
        }
    }

    /// Queues up and waits for the turn. May be dropped at any await; call [`Self::leave`] then.
    ///
    /// # Errors
    /// When etcd does not answer within `limit` at first, or refuses.
    pub(crate) async fn acquire(
        &self,
        limit: Duration,
        mut tell: impl FnMut(Waiting),
    ) -> Result<Won, Trouble> {
        let mut entry = self.enter(limit).await?;
        loop {
            if let Some(won) = self.wait(entry, &mut tell).await? {
                return Ok(won);
            }
            tell(Waiting::PlaceLost);
            entry = loop {
                match self.enter(limit).await {
                    Err(trouble) if trouble.kind == Kind::Elsewhere => {
                        tell(Waiting::Trouble(trouble));
                    }
                    other => break other?,
                }
            };
        }
    }

    /// Takes a place at the end of the queue.
    async fn enter(&self, limit: Duration) -> Result<Entry, Trouble> {
        let entered = self
            .cluster
            .call(limit, async |connection: Connection| {
                self.enter_at(connection).await
            })
            .await
            .map_err(|trouble| self.explain(trouble));
        match &entered {
            Ok(entry) => {
                let lease = entry.claim.place.lease;
                self.abandoned.borrow_mut().retain(|id| *id != lease);
                self.place.set(Some(entry.claim.place));
                self.clear_up().await;
            }
            Err(trouble) if trouble.kind == Kind::Refused => self.clear_up().await,
            // Nobody is there to be told.
            Err(_) => {}
        }
        entered
    }

    async fn enter_at(&self, connection: Connection) -> Result<Entry, Trouble> {
        // An id of its own for every attempt: what became of an unanswered one is not known.
        let lease = random_lease();
        let mut granting = connection.client.clone();
        let seconds = i64::try_from(self.terms.ttl().as_secs()).unwrap_or(i64::MAX);
        let sent_at = clock::now();
        self.abandoned.borrow_mut().push(lease);
        let mut grant = std::pin::pin!(
            granting.lease_grant(seconds, Some(LeaseGrantOptions::new().with_id(lease.0)))
        );
        let early = tokio::select! {
            biased;
            granted = &mut grant => Err(granted),
            () = sleep(LEAD) => Ok(()),
        };
        let (granted, placed) = match early {
            Err(granted) => (granted, None),
            Ok(()) => {
                let (granted, placed) =
                    tokio::join!(grant, self.put(connection.client.clone(), lease));
                (granted, Some(placed))
            }
        };
        let granted = granted.map_err(|error| {
            let trouble = Trouble::from(error);
            if trouble.kind == Kind::LeaseExists {
                // Somebody else's. Never adopt it, never revoke it.
                self.abandoned.borrow_mut().retain(|id| *id != lease);
            }
            trouble
        })?;
        let ttl = Duration::from_secs(granted.ttl().try_into().unwrap_or(0));
        let placed = match placed {
            Some(Err(trouble)) if trouble.kind == Kind::LeaseNotFound => None,
            Some(placed) => Some(placed?),
            None => None,
        };
        let placed = match placed {
            Some(placed) => placed,
            None => self.put(connection.client.clone(), lease).await?,
        };
        self.entry(&placed, lease, self.terms.granted(ttl), sent_at, connection)
            .await
    }

    /// Puts our key, and reads the two newest places and the oldest.
    async fn put(&self, mut client: Client, lease: LeaseId) -> Result<TxnResponse, Trouble> {
        let key = self.queue.key(lease);
        let places = |order, limit| {
            let options = GetOptions::new()
                .with_range(self.queue.end())
                .with_sort(SortTarget::Create, order)
                .with_limit(limit);
            TxnOp::get(self.queue.prefix(), Some(options))
        };
        let record = PutOptions::new().with_lease(lease.0);
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key, self.record.as_str(), Some(record)),
                places(SortOrder::Descend, 2),
                places(SortOrder::Ascend, 1),
            ]);
        Ok(client.txn(txn).await?)
    }

    async fn entry(
        &self,
        placed: &TxnResponse,
        lease: LeaseId,
        terms: Terms,
        sent_at: Instant,
        connection: Connection,
    ) -> Result<Entry, Trouble> {
        let header = self.cluster.observe(placed.header())?;
        if !placed.succeeded() {
            return Err(Trouble::elsewhere("the place was taken"));
        }
        // The txn itself made this revision, so it is our key's create revision.
        let place = Place {
            token: FencingToken(header.revision),
            lease,
        };
        let claim = Claim {
            place,
            cluster: header.cluster,
            highest_revision: header.revision,
        };
        let alone = placed
            .op_responses()
            .iter()
            .all(|read| !matches!(read, TxnOpResponse::Get(read) if read.count() > 1));
        let look = if alone {
            Look::default()
        } else {
            self.look(connection.client.clone(), place).await?
        };
        Ok(Entry {
            claim,
            terms,
            sent_at,
            look,
        })
    }

    /// Waits until it is our turn and that is proven; `None` when our own place is lost.
    async fn wait(
        &self,
        entry: Entry,
        tell: &mut impl FnMut(Waiting),
    ) -> Result<Option<Won>, Trouble> {
        let Entry {
            mut claim,
            terms,
            sent_at: mut proven_at,
            look,
        } = entry;
        let mut ahead = look.ahead;
        // Nobody is before us. The command starts on a young proof only: after a slow entry or a
        // long wait it takes another one.
        let mut ours = look.predecessor.is_none();
        if !ours {
            tell(Waiting::Behind(ahead.clone()));
        }
        let key = self.queue.key(claim.place.lease);
        let mut session = Session::open(&self.cluster, &key, claim.place, terms, look.predecessor);
        let seed = claim.place.lease.0.unsigned_abs();
        let mut heartbeat = Heartbeat::new(terms, proven_at, seed);
        loop {
            if ours && clock::now().since(proven_at) < terms.heartbeat() {
                session.follow(None);
                return Ok(Some(Won {
                    claim,
                    terms,
                    proven_at,
                    session,
                }));
            }
            if ours {
                heartbeat.hurry(clock::now());
            }
            if heartbeat.ask(clock::now()) {
                session.renew();
            }
            let news = tokio::select! {
                news = session.news() => Some(news),
                () = clock::until(heartbeat.due_at()) => None,
            };
            match news {
                None => {}
                Some(News::Renewed(renewal)) => match claim.judge(&renewal) {
                    Verdict::Proven(_) => {
                        proven_at = renewal.sent_at;
                        heartbeat.proven(proven_at);
                    }
                    Verdict::Doubtful(_) => heartbeat.failed(clock::now()),
                    Verdict::Lost(_) => return Ok(None),
                },
                Some(News::Failed { endpoint, cause }) => {
                    heartbeat.failed(clock::now());
                    tell(Waiting::Trouble(Trouble::elsewhere(format!(
                        "'{endpoint}': {cause}"
                    ))));
                }
                Some(News::Lost(_)) => return Ok(None),
                Some(News::PredecessorGone) if ours => {}
                Some(News::PredecessorGone) => {
                    let look = self.look_again(claim.place, terms, tell).await?;
                    if !look.own {
                        return Ok(None);
                    }
                    claim.highest_revision = claim.highest_revision.max(look.revision);
                    ours = look.predecessor.is_none();
                    if !ours && look.ahead != ahead {
                        ahead = look.ahead;
                        tell(Waiting::Behind(ahead.clone()));
                    }
                    session.follow(look.predecessor);
                }
            }
        }
    }

    /// The read that decides, tried for as long as we wait at all.
    async fn look_again(
        &self,
        place: Place,
        terms: Terms,
        tell: &mut impl FnMut(Waiting),
    ) -> Result<Look, Trouble> {
        loop {
            let look = self
                .cluster
                .call(terms.ttl(), async |connection: Connection| {
                    self.look(connection.client, place).await
                })
                .await;
            match look {
                Err(trouble) if trouble.kind == Kind::Elsewhere => tell(Waiting::Trouble(trouble)),
                other => return other.map_err(|trouble| self.explain(trouble)),
            }
        }
    }

    /// One linearizable read of our key, of all places before it, and of the holder's record.
    async fn look(&self, mut client: Client, place: Place) -> Result<Look, Trouble> {
        let before = GetOptions::new()
            .with_range(self.queue.end())
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_max_create_revision(place.token.0 - 1);
        let txn = Txn::new().and_then([
            TxnOp::get(self.queue.key(place.lease), None),
            TxnOp::get(self.queue.prefix(), Some(before.clone().with_keys_only())),
            TxnOp::get(self.queue.prefix(), Some(before.with_limit(1))),
        ]);
        let answer = client.txn(txn).await?;
        let header: Header = self.cluster.observe(answer.header())?;
        let mut reads = answer.op_responses().into_iter().map(|read| match read {
            TxnOpResponse::Get(mut read) => read.take_kvs(),
            _ => Vec::new(),
        });
        let own = reads.next().unwrap_or_default().first().is_some_and(|key| {
            key.create_revision() == place.token.0 && key.lease() == place.lease.0
        });
        let earlier = reads.next().unwrap_or_default();
        let mut places = self.queue.places(earlier.iter().map(KeyValue::key));
        let oldest = reads.next().unwrap_or_default();
        let holder = oldest
            .first()
            .filter(|key| {
                places
                    .first()
                    .is_some_and(|oldest| oldest.as_bytes() == key.key())
            })
            .and_then(|key| Holder::parse(key.value()));
        let count = places.len();
        Ok(Look {
            own,
            revision: header.revision,
            predecessor: places.pop(),
            ahead: Ahead { holder, count },
        })
    }

    /// Gives the lock back: deletes our key if it is still the one that we won with. The success of
    /// that comparison proves, without any clock, that nobody else held the lock in between.
    pub(crate) async fn release(&self, limit: Duration) -> Release {
        let Some(place) = self.place.take() else {
            return Release::Confirmed;
        };
        let attempts = Cell::new(0_u32);
        let deleted = self
            .cluster
            .call(limit, async |connection: Connection| {
                attempts.set(attempts.get() + 1);
                self.delete(connection, place).await
            })
            .await;
        match deleted {
            Ok(true) => Release::Confirmed,
            // An earlier attempt, whose answer we did not get, may have deleted it.
            Ok(false) if attempts.get() > 1 => Release::Unconfirmed(Trouble::elsewhere(
                "the answer to the first attempt was lost",
            )),
            Ok(false) => Release::NotOurs,
            Err(trouble) => Release::Unconfirmed(trouble),
        }
    }

    async fn delete(&self, connection: Connection, place: Place) -> Result<bool, Trouble> {
        let key = self.queue.key(place.lease);
        let ours = [
            Compare::create_revision(key.as_str(), CompareOp::Equal, place.token.0),
            Compare::lease(key.as_str(), CompareOp::Equal, place.lease.0),
        ];
        // No put: etcd refuses those when it is out of space.
        let txn = Txn::new().when(ours).and_then([TxnOp::delete(key, None)]);
        let mut client = connection.client;
        let answer = client.txn(txn).await?;
        self.cluster.observe(answer.header())?;
        // Nobody waits for the revoke: the lock is free, and a lease without keys ends by itself.
        let _ = timeout(FLUSH, client.lease_revoke(place.lease.0)).await;
        Ok(answer.succeeded())
    }

    /// Gives up: removes our place and whatever unfinished attempts may have left.
    pub(crate) async fn leave(&self) {
        let _ = self.release(LEAVE).await;
        self.clear_up().await;
    }

    /// Revokes the leases of attempts whose end was not seen, in one go and without insisting.
    async fn clear_up(&self) {
        let leases = self.abandoned.take();
        if leases.is_empty() {
            return;
        }
        let index = self.cluster.current();
        let clearing = async {
            let connection = self.cluster.connection(index, LEAVE).await?;
            let mut client = connection.client;
            for lease in leases {
                let _ = client.lease_revoke(lease.0).await;
            }
            Ok::<(), Trouble>(())
        };
        let _ = timeout(LEAVE, clearing).await;
    }

    /// Says what a refusal means here.
    fn explain(&self, trouble: Trouble) -> Trouble {
        if !trouble.cause.contains("permission denied") {
            return trouble;
        }
        let user = self.cluster.user().unwrap_or("the certificate's user");
        trouble.hinting(&format!(
            "the role of '{user}' needs readwrite on the range ['{0}', '{1}'): etcdctl role grant-permission ROLE readwrite --prefix {0}",
            self.queue.namespace(),
            self.queue.namespace_end(),
        ))
    }
}

/// What one look at the queue has shown.
#[derive(Default)]
struct Look {
    /// Our own place is there.
    own: bool,
    revision: i64,
    predecessor: Option<String>,
    ahead: Ahead,
}

/// A random positive id: one that the server picks would be lost with the answer.
fn random_lease() -> LeaseId {
    let mut bytes = [0_u8; 8];
    // The urandom source neither fails nor blocks once the system is up (getrandom(2)).
    while rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(8) {}
    LeaseId((i64::from_ne_bytes(bytes) & i64::MAX).max(1))
}
