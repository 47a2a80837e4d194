//! The queue in etcd: taking a place, waiting for the turn, leaving.
//! It must not know the command that runs under the lock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::connection::Connection;
use super::look::Look;
use super::places::{Cooldown, Entry, Leaving, Places, Shown};
use super::session::Session;
use super::trouble::{Kind, Trouble};
use super::vigil::{AGAIN, Vigil};
use super::{Cluster, ask, random_lease};
use crate::clock;
use crate::contest::{self, Ahead, Contend, Parting, Release, Waiting};
use crate::core::abandoned::Attempt;
use crate::core::evidence::Predecessors;
use crate::core::holder::{Ask, Holder};
use crate::core::lease::{Instant, LeaseId, Place, Terms};
use crate::core::mode::{Mode, Patience, Wish};
use crate::core::name::Scope;
use crate::core::preparation::{Grant, Mark};
use crate::core::queue::Queue;
use crate::core::release::Conclusion;
use crate::core::text::span;
use crate::core::turn::{Standing, superseded};

/// What only the command of a lock in etcd gets: the key, the lease, the key and the token; `etcdctl lock` sets the last two.
pub(crate) fn variables(queue: &Queue, place: Place) -> Vec<(&'static str, String)> {
    let (key, lease) = (queue.key(place.lease), place.lease.to_string());
    vec![
        ("DLOCK_KEY", key.clone()),
        ("DLOCK_LEASE", lease),
        ("ETCD_LOCK_KEY", key),
        ("ETCD_LOCK_REV", place.token.to_string()),
    ]
}

/// How asking for the lock went.
pub(super) type Outcome = contest::Outcome<Session>;

/// How long leaving may take: whoever gives up should not have to wait.
pub(super) const LEAVE: Duration = Duration::from_secs(2);

/// One who wants the lock.
pub(crate) struct Contender {
    pub(super) places: Places,
    pub(super) wish: Wish,
    /// How long etcd may be silent at first.
    limit: Duration,
    /// Our place, from the moment that we know of it until it is given up.
    place: Cell<Option<Place>>,
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

impl Contend for Contender {
    type Session = Session;

    fn scope(&self) -> Scope {
        Scope::Prefix(self.places.queue.namespace().to_owned())
    }

    async fn acquire(&self, mut tell: impl FnMut(Waiting)) -> Result<Outcome, Trouble> {
        let limit = self.limit;
        let mut at_first = !matches!(self.wish.patience, Patience::For(_));
        loop {
            let entered = loop {
                match self.begin(limit).await {
                    Err(trouble) if !at_first && trouble.kind == Kind::Elsewhere => {
                        tell(Waiting::Trouble(trouble));
                        sleep(AGAIN).await;
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
            let is_free = entry.look.turn.blockers.is_empty();
            if self.wish.patience == Patience::None && !(is_free && self.hand_over_left().is_zero())
            {
                self.leave().await;
                return self.busy(entry.look.ahead).await;
            }
            if !is_free {
                match self.supersede(entry.claim.place, limit).await {
                    Err(trouble) if trouble.kind == Kind::Elsewhere => {
                        tell(Waiting::Trouble(trouble));
                        all_asked = false;
                    }
                    asked => all_asked = asked?,
                }
            }
            let superseding = self.supersede_the_rest(all_asked, entry.claim.place, entry.terms);
            let outcome = tokio::select! {
                biased;
                outcome = Vigil::new(self, entry).keep(&mut tell) => outcome?,
                trouble = superseding.boxed_local() => return Err(trouble),
            };
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
            // Its lease may have a slot still.
            self.abandon(self.place.take().map(|place| place.lease));
            self.undo(LEAVE).await;
            self.slot.set(None);
            tell(Waiting::PlaceLost);
        }
    }

    async fn ahead(&self) -> Option<Ahead> {
        let place = self.place.get()?;
        let asked = async |etcd: Connection| self.places.ahead(&etcd, place).await;
        let ahead = self.ask_etcd(LEAVE, asked).await.ok()?;
        (ahead.count > 0).then_some(ahead)
    }

    fn unanswered(&self) -> Option<(String, Duration)> {
        let causes = self.places.cluster.unanswered()?;
        Some((causes, self.limit))
    }

    fn unreachable(&self, limit: Duration) -> Trouble {
        self.places.cluster.unreachable(limit)
    }

    /// Removes our place and whatever unfinished attempts may have left, all of it within one limit.
    async fn leave(&self) {
        let until = clock::now() + LEAVE;
        let rest = || until.since(clock::now());
        // The mark goes before the place: the next one is not to take it for that of a run.
        let mark = self.mark.get().map(|mark| mark.grant.lease);
        if mark.is_some() {
            self.undo(LEAVE / 2).await;
        }
        let left = self.predecessors.borrow().left(clock::now());
        if left.is_zero() || self.place.get().is_none() {
            let _ = self.give_up(rest(), None).await;
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
                let _ = self.give_up(rest(), Some(kept)).await;
            }
        }
        self.undo(rest()).await;
        self.slot.set(None);
        if let Some(lease) = mark {
            self.warn_of_mark(lease);
        }
    }

    /// Deletes our key if it is still the one that we won with, or leaves it to cool down. The success of that comparison
    /// proves, without any clock, that nobody else held the lock in between.
    async fn release(&self, limit: Duration, parting: Parting<'_>) -> Release {
        if let (Some(mark), Parting::Done(result) | Parting::AtOnce(result)) =
            (self.mark.get(), parting)
        {
            let (places, lease) = (&self.places, mark.grant.lease);
            let told = async |etcd| places.mark_result(etcd, lease, result).await;
            if let Err(trouble) = self.ask_etcd(limit, told).await {
                tracing::debug!("the result of the run cannot be kept: {trouble}");
            }
            self.mark.set(None);
        }
        let cooldown = match parting {
            Parting::Done(result) => self.cooldown.take().map(|grant| Cooldown {
                lease: grant.lease,
                result: Some(result.to_owned()),
                grace: Duration::ZERO,
            }),
            Parting::AtOnce(_) | Parting::Unused => None,
        };
        let lease = self.place.get().map(|place| place.lease);
        let release = self.give_up(limit, cooldown).await;
        if matches!(release, Release::NotOurs) {
            // Nothing of the command runs any more: its slot is free, too.
            self.abandon(lease);
        }
        self.undo(LEAVE).await;
        self.slot.set(None);
        release
    }

    fn unreleased(&self, _guarded: bool) -> String {
        let ttl = span(self.places.terms.ttl());
        format!("it frees itself within {ttl} although the command is not dead")
    }
}

impl Contender {
    /// `record` is what others are shown of us; `connect_timeout` is how long etcd may be silent at first.
    pub(crate) fn new(
        cluster: Rc<Cluster>,
        queue: Queue,
        record: Holder,
        terms: Terms,
        wish: Wish,
        connect_timeout: Duration,
    ) -> Self {
        let limit = match wish.patience {
            Patience::For(wait) => wait.min(connect_timeout),
            Patience::None | Patience::Endless => connect_timeout,
        };
        Self {
            places: Places {
                cluster,
                queue,
                mode: wish.mode,
                shown: RefCell::new(Shown::new(record.clone())),
                record,
                terms,
            },
            wish,
            limit,
            place: Cell::new(None),
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
        self.places.queue.key(lease)
    }

    /// Takes a place, unless it is clear that no command of ours is to run now.
    async fn begin(&self, limit: Duration) -> Result<Result<Entry, Outcome>, Trouble> {
        if self.wish.once_per.is_some() {
            // A mark of our own that could not be taken back is not that of a run.
            self.clear_up(LEAVE).await;
            let ran = self.ask_etcd(limit, async |etcd| self.places.ran(etcd).await);
            if let Some(ran) = ran.await? {
                return Ok(Err(Outcome::Ran(ran)));
            }
        }
        self.enter(limit).await.map(Ok)
    }

    async fn busy(&self, ahead: Ahead) -> Result<Outcome, Trouble> {
        let cooling = ahead.holder.as_ref().is_some_and(|holder| holder.cooling);
        if let Some(lease) = ahead.lease.filter(|_| cooling) {
            let left = self.ask_etcd(LEAVE, async |etcd| self.places.left(etcd, lease).await);
            // It may have ended since.
            let left = left.await.unwrap_or_default();
            return Ok(Outcome::Cooling(ahead, left));
        }
        Ok(Outcome::Busy(ahead))
    }

    /// Asks any endpoint.
    pub(super) async fn ask_etcd<T>(
        &self,
        limit: Duration,
        ask: impl AsyncFn(Connection) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let answer = self.places.cluster.call(limit, ask).await;
        answer.map_err(|trouble| self.explain(trouble))
    }

    /// Goes on asking while we wait, until all that stand before us have been asked; then there is nothing more to say.
    async fn supersede_the_rest(&self, mut all_asked: bool, place: Place, terms: Terms) -> Trouble {
        while !all_asked {
            sleep(AGAIN).await;
            match self.supersede(place, terms.attempt() * 2).await {
                Err(trouble) if trouble.kind == Kind::Elsewhere => {
                    tracing::debug!("those before us cannot be asked to go: {trouble}");
                }
                Err(trouble) => return trouble,
                Ok(all) => all_asked = all,
            }
        }
        std::future::pending().await
    }

    /// Asks those before us to go, as far as that is wished and not done; answers whether all of them have been asked.
    async fn supersede(&self, place: Place, limit: Duration) -> Result<bool, Trouble> {
        let Some(wish) = self.wish.supersede else {
            return Ok(true);
        };
        let Places {
            cluster,
            queue,
            record,
            ..
        } = &self.places;
        let by = record.sentence();
        self.ask_etcd(limit, async |connection: Connection| {
            let before = ask::places(cluster, queue, &connection, Some(place.token)).await?;
            let mut all_asked = true;
            for (standing, to) in superseded(&before, wish) {
                let ask = Ask {
                    to,
                    by: by.clone(),
                    why: Some("superseded by a newer request".to_owned()),
                };
                // A record that has changed meanwhile is looked at again.
                all_asked &= ask::ask_one(cluster, &connection, standing, &ask).await?;
            }
            Ok(all_asked)
        })
        .await
    }

    /// Takes a place at the end of the queue.
    async fn enter(&self, limit: Duration) -> Result<Entry, Trouble> {
        self.places.shown.replace(Shown::new(self.announced()));
        let entered = self
            .places
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
                let entry = self.places.take(&connection, lease, hear).await;
                if matches!(&entry, Err(trouble) if trouble.kind == Kind::LeaseExists) {
                    // Somebody else's. Never adopt it, never revoke it.
                    self.forget(lease);
                }
                entry
            });
        let entered = entered.await.map_err(|trouble| self.explain(trouble));
        let mut entry = match entered {
            Ok(entry) => entry,
            Err(trouble) => {
                if trouble.kind == Kind::Refused {
                    self.clear_up(LEAVE).await;
                }
                return Err(trouble);
            }
        };
        let place = entry.claim.place;
        self.forget(place.lease);
        self.place.set(Some(place));
        self.note(&entry.look);
        // What looked like somebody before us may have been an attempt of our own.
        let own = self.abandoned.borrow().clone();
        if self.clear_up(LEAVE).await && !entry.look.turn.blockers.is_empty() {
            let mut before = std::mem::take(&mut entry.look.turn.blockers);
            before.retain(|one| !own.contains(&one.lease));
            entry.look = self
                .look_again(place, entry.terms, &before, &mut |_| {})
                .await?;
            self.note(&entry.look);
        }
        self.announce(place, entry.terms).await;
        self.check(&entry.look)?;
        Ok(entry)
    }

    /// Whether the lock is used in the way in which we ask for it.
    pub(super) fn check(&self, look: &Look) -> Result<(), Trouble> {
        let Some(theirs) = look.misfit else {
            return Ok(());
        };
        let who = look.ahead.holder.as_ref().map(Holder::sentence);
        let cause = format!(
            "it is used as '{theirs}' by {}, not as '{}'",
            who.unwrap_or_default(),
            self.wish.mode,
        );
        Err(Trouble::refused(
            cause,
            Some("all who use a lock have to give the same --slots"),
        ))
    }

    /// The read that decides, tried for as long as we wait at all.
    pub(super) async fn look_again(
        &self,
        place: Place,
        terms: Terms,
        before: &[Standing],
        tell: &mut impl FnMut(Waiting),
    ) -> Result<Look, Trouble> {
        loop {
            let look =
                self.places
                    .cluster
                    .call(terms.attempt() * 2, async |connection: Connection| {
                        self.places.look(&connection, place, Some(before)).await
                    });
            let look = look.await;
            match look {
                Err(trouble) if trouble.kind == Kind::Elsewhere => tell(Waiting::Trouble(trouble)),
                other => return other.map_err(|trouble| self.explain(trouble)),
            }
        }
    }

    /// Takes note of whom a look has shown before us, and answers for how long the commands may run of those whose
    /// hand-over is news. To be called before anything is awaited, for we may have to leave.
    pub(super) fn note(&self, look: &Look) -> Duration {
        let mut predecessors = self.predecessors.borrow_mut();
        predecessors.see(clock::now(), look.sight.clone())
    }

    /// When the commands of those who have vanished before us have had their time.
    pub(super) fn handed_over_at(&self) -> Option<Instant> {
        self.predecessors.borrow().free_at()
    }

    /// Our record with the grace that those behind us have to know of.
    fn announced(&self) -> Holder {
        let record = self.places.record.clone();
        // Who waits for a slot takes each change of the one before it for the taking of one.
        if matches!(self.wish.mode, Mode::Slots(_)) {
            return record;
        }
        let own = record.grace();
        record.announcing(self.predecessors.borrow().grace(clock::now(), own))
    }

    /// For how long that still is.
    pub(super) fn hand_over_left(&self) -> Duration {
        self.predecessors.borrow().left(clock::now())
    }

    /// Lets others know for how long commands may run if we vanish, unless they do. What cannot be announced is announced
    /// at the next occasion.
    pub(super) async fn announce(&self, place: Place, terms: Terms) {
        let grace = self.announced().grace();
        if grace == self.places.shown.borrow().record.grace() {
            return;
        }
        let announcing = async |etcd| self.places.announce(etcd, place, grace).await;
        if let Err(trouble) = self.ask_etcd(terms.attempt() * 2, announcing).await {
            tracing::debug!("the grace of those before us cannot be announced: {trouble}");
        }
    }

    async fn give_up(&self, limit: Duration, cooldown: Option<Cooldown>) -> Release {
        let Some(place) = self.place.take() else {
            return Release::Confirmed;
        };
        let evidence = (self.predecessors.borrow()).evidence(self.wish.mode, place.token);
        let leaving = Leaving {
            evidence,
            slot: self.slot.get(),
            cooldown,
            findings: Cell::default(),
        };
        let giving_up = self
            .places
            .cluster
            .call(limit, async |connection: Connection| {
                self.places.give_up(&connection, place, &leaving).await
            });
        let answered = giving_up.await;
        match (leaving.findings.get().conclusion(), answered) {
            (Conclusion::Released, _) => Release::Confirmed,
            (Conclusion::Lost, _) => Release::NotOurs,
            (Conclusion::Open, Err(trouble)) => Release::Unconfirmed(trouble),
            (Conclusion::Open, Ok(())) => {
                Release::Unconfirmed(Trouble::elsewhere("an answer of etcd was lost"))
            }
        }
    }

    /// Says what a refusal means here.
    pub(super) fn explain(&self, trouble: Trouble) -> Trouble {
        if !trouble.cause.contains("permission denied") {
            return trouble;
        }
        let user = self
            .places
            .cluster
            .user()
            .unwrap_or("the certificate's user");
        let hint = format!(
            "the role of '{user}' needs readwrite on the range ['{0}', '{1}'): etcdctl role grant-permission ROLE readwrite --prefix {0}",
            self.places.queue.namespace(),
            self.places.queue.namespace_end(),
        );
        trouble.hinting(Some(&hint))
    }
}
