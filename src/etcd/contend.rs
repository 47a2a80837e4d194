//! The queue in etcd: taking a place, waiting for the turn, leaving.
//! It must not know the command that runs under the lock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::Cluster;
use super::connection::Connection;
use super::places::{Ahead, Entry, Given, Look, Places};
use super::session::{News, Session};
use super::trouble::{Kind, Trouble};
use crate::clock;
use crate::core::heartbeat::Heartbeat;
use crate::core::lease::{Claim, Instant, LeaseId, Place, Terms, Verdict};
use crate::core::queue::{Queue, hand_over};

/// How long leaving may take: whoever gives up should not have to wait.
const LEAVE: Duration = Duration::from_secs(2);
/// The lock is ours.
pub(crate) struct Won {
    pub(crate) claim: Claim,
    pub(crate) terms: Terms,
    /// The moment from which the freshest proof counts.
    pub(crate) proven_at: Instant,
    pub(crate) session: Session,
}

/// What a waiter has to tell.
pub(crate) enum Waiting {
    /// Waiting begins, or somebody else holds the lock now.
    Behind(Ahead),
    /// It is our turn, but the command of the holder that vanished may still run for so long.
    HandOver(Duration),
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
    places: Places,
    /// Our place, from the moment that we know of it until it is given up.
    place: Cell<Option<Place>>,
    /// Until when the command of a vanished holder may run, once we are the first in its place.
    hand_over_at: Cell<Option<Instant>>,
    /// Leases of attempts whose end we have not seen: each may hold a place that nobody uses.
    abandoned: RefCell<Vec<LeaseId>>,
}

impl Contender {
    /// `record` is what others are shown of us.
    pub(crate) fn new(cluster: Rc<Cluster>, queue: Queue, record: String, terms: Terms) -> Self {
        Self {
            places: Places {
                cluster,
                queue,
                record,
                terms,
            },
            place: Cell::new(None),
            hand_over_at: Cell::new(None),
            abandoned: RefCell::default(),
        }
    }

    /// The key of our place.
    pub(crate) fn key(&self, lease: LeaseId) -> String {
        self.places.queue.key(lease)
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
            .places
            .cluster
            .call(limit, async |connection: Connection| {
                // An id of its own for every attempt: what became of an unanswered one is not known.
                let lease = random_lease()?;
                self.abandoned.borrow_mut().push(lease);
                let entry = self.places.take(connection, lease).await;
                if matches!(&entry, Err(trouble) if trouble.kind == Kind::LeaseExists) {
                    // Somebody else's. Never adopt it, never revoke it.
                    self.abandoned.borrow_mut().retain(|id| *id != lease);
                }
                entry
            });
        let entered = entered.await.map_err(|trouble| self.explain(trouble));
        let mut entry = match entered {
            Ok(entry) => entry,
            Err(trouble) => {
                if trouble.kind == Kind::Refused {
                    self.clear_up().await;
                }
                return Err(trouble);
            }
        };
        let place = entry.claim.place;
        self.abandoned.borrow_mut().retain(|id| *id != place.lease);
        self.place.set(Some(place));
        // What looked like somebody before us may have been an attempt of our own.
        if self.clear_up().await && entry.look.predecessor.is_some() {
            entry.look = self.look_again(place, entry.terms, &mut |_| {}).await?;
        }
        Ok(entry)
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
            mut look,
        } = entry;
        // From when on the lock may be used, once nobody is before us.
        let mut free_at = look.predecessor.is_none().then(|| self.free_at(proven_at));
        if free_at.is_none() {
            tell(Waiting::Behind(look.ahead.clone()));
        }
        let key = self.places.queue.key(claim.place.lease);
        let mut session = Session::open(
            &self.places.cluster,
            &key,
            claim.place,
            terms,
            look.predecessor.clone().map(|(key, _)| key),
        );
        let seed = claim.place.lease.0.unsigned_abs();
        let mut heartbeat = Heartbeat::new(terms, proven_at, seed);
        loop {
            let now = clock::now();
            if free_at.is_some_and(|free_at| free_at <= now) {
                // The command starts on a young proof only: after a slow entry or a long wait we
                // take another one.
                if now.since(proven_at) < terms.heartbeat() {
                    session.follow(None);
                    return Ok(Some(Won {
                        claim,
                        terms,
                        proven_at,
                        session,
                    }));
                }
                heartbeat.hurry(now);
            }
            if heartbeat.ask(now) {
                session.renew();
            }
            let news = tokio::select! {
                news = session.news() => Some(news),
                () = clock::until(heartbeat.due_at()) => None,
                () = clock::until(free_at.filter(|free_at| now < *free_at)) => None,
            };
            match news {
                None => continue,
                Some(News::Failed { endpoint, cause }) => {
                    heartbeat.failed(clock::now());
                    tell(Waiting::Trouble(Trouble::elsewhere(format!(
                        "'{endpoint}': {cause}"
                    ))));
                    continue;
                }
                Some(News::Renewed(renewal)) => match claim.judge(&renewal) {
                    Verdict::Proven(_) => {
                        proven_at = renewal.sent_at;
                        heartbeat.proven(proven_at);
                        continue;
                    }
                    Verdict::Doubtful(_) => {
                        heartbeat.failed(clock::now());
                        continue;
                    }
                    Verdict::Lost(_) => {}
                },
                // One that is told again after it was seen to.
                Some(News::PredecessorGone) if free_at.is_some() => continue,
                Some(News::PredecessorGone | News::Lost(_)) => {}
            }
            // Somebody's key is gone, maybe ours.
            let before = look;
            look = self.look_again(claim.place, terms, tell).await?;
            if let (Some((_, vanished)), None) = (&before.predecessor, &look.predecessor) {
                let delay = hand_over(*vanished, look.released, before.grace);
                if !delay.is_zero() {
                    self.hand_over_at.set(Some(clock::now() + delay));
                    tell(Waiting::HandOver(delay));
                }
                free_at = Some(self.free_at(clock::now()));
            }
            if !look.own {
                return Ok(None);
            }
            claim.highest_revision = claim.highest_revision.max(look.revision);
            if look.predecessor.is_some() && look.ahead != before.ahead {
                tell(Waiting::Behind(look.ahead.clone()));
            }
            look.grace = look.grace.max(before.grace);
            session.follow(look.predecessor.clone().map(|(key, _)| key));
        }
    }

    /// From when on a lock may be used that is free `at` this moment.
    fn free_at(&self, at: Instant) -> Instant {
        self.hand_over_at
            .get()
            .map_or(at, |free_at| free_at.max(at))
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
                .places
                .cluster
                .call(terms.attempt() * 2, async |connection: Connection| {
                    self.places.look(connection.client, place).await
                });
            let look = look.await;
            match look {
                Err(trouble) if trouble.kind == Kind::Elsewhere => tell(Waiting::Trouble(trouble)),
                other => return other.map_err(|trouble| self.explain(trouble)),
            }
        }
    }

    /// Gives the lock back, after the last process of the command is dead: deletes our key if it is
    /// still the one that we won with. The success of that comparison proves, without any clock,
    /// that nobody else held the lock in between.
    pub(crate) async fn release(&self, limit: Duration) -> Release {
        self.give_up(limit, true).await
    }

    /// Gives up waiting: removes our place and whatever unfinished attempts may have left.
    pub(crate) async fn leave(&self) {
        // Who comes after us knows nothing of the command that may still run: our place keeps him
        // waiting until our lease ends.
        let handing_over = self.hand_over_at.get().is_some_and(|at| clock::now() < at);
        if !handing_over {
            let _ = self.give_up(LEAVE, false).await;
        }
        self.clear_up().await;
    }

    async fn give_up(&self, limit: Duration, held: bool) -> Release {
        let Some(place) = self.place.take() else {
            return Release::Confirmed;
        };
        let attempts = Cell::new(0_u32);
        let giving_up = self
            .places
            .cluster
            .call(limit, async |connection: Connection| {
                attempts.set(attempts.get() + 1);
                self.places.give_up(connection, place, held).await
            });
        let unclear = || Release::Unconfirmed(Trouble::elsewhere("an answer of etcd was lost"));
        match giving_up.await {
            Ok(Given::Deleted) => Release::Confirmed,
            // An earlier attempt, whose answer we did not get, may have deleted it.
            Ok(Given::NotOurs) if attempts.get() > 1 => unclear(),
            Ok(Given::NotOurs) => Release::NotOurs,
            Ok(Given::Unclear) => unclear(),
            Err(trouble) => Release::Unconfirmed(trouble),
        }
    }

    /// Revokes the leases of attempts whose end was not seen, in one go and without insisting. Says
    /// whether there were any.
    async fn clear_up(&self) -> bool {
        let leases = self.abandoned.take();
        if !leases.is_empty() {
            self.places.revoke(&leases, LEAVE).await;
        }
        !leases.is_empty()
    }

    /// Says what a refusal means here.
    fn explain(&self, trouble: Trouble) -> Trouble {
        if !trouble.cause.contains("permission denied") {
            return trouble;
        }
        let user = self
            .places
            .cluster
            .user()
            .unwrap_or("the certificate's user");
        trouble.hinting(&format!(
            "the role of '{user}' needs readwrite on the range ['{0}', '{1}'): etcdctl role grant-permission ROLE readwrite --prefix {0}",
            self.places.queue.namespace(),
            self.places.queue.namespace_end(),
        ))
    }
}

/// A random positive id: one that the server picks would be lost with the answer.
fn random_lease() -> Result<LeaseId, Trouble> {
    let mut bytes = [0_u8; 8];
    // Eight bytes come whole, and without waiting once the system is up (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Trouble::refused(format!("no random lease id: {error}"), None))?;
    Ok(LeaseId((i64::from_ne_bytes(bytes) & i64::MAX).max(1)))
}
