//! The leases and keys that a command needs in etcd before it may start, and their removal when it does not start.
//! It must not know whose turn it is, nor what keeps the place.

use std::time::Duration;

use tracing::warn;

use super::contend::{Contender, LEAVE};
use super::marks::{Claimed, Marked};
use super::random_lease;
use super::trouble::{Kind, Trouble, attempt_after};
use crate::clock;
use crate::core::abandoned::{Attempt, Next};
use crate::core::holder::{Ask, Holder};
use crate::core::lease::{Instant, LeaseId, Place, Terms};
use crate::core::mode::Mode;
use crate::core::preparation::{Grant, Mark};
use crate::core::text::span;
use crate::events;

/// How far the preparations went.
pub(super) enum Prepared {
    Ready,
    /// To be tried again.
    NotYet,
    PlaceLost,
    Ran(Option<Holder>),
    Asked(Ask),
}

impl Contender {
    /// Whether all is done in etcd that a command needs which starts now. `tries` is how often all of it was done.
    pub(super) fn is_prepared(&self, now: Instant, terms: Terms, tries: u32) -> bool {
        let young = |grant: Grant| grant.is_young(now, terms, tries);
        let stands = |mark: Mark| mark.stands(now, terms, tries);
        (self.slot.get().is_some() || !matches!(self.wish.mode, Mode::Slots(_)))
            && (self.wish.min_hold.is_none() || self.cooldown.get().is_some_and(young))
            && (self.wish.once_per.is_none() || self.mark.get().is_some_and(stands))
    }

    /// Takes a slot, and makes what outlives the holding of the lock: as far as it is not done, or done too long ago.
    pub(super) async fn prepare(
        &self,
        place: Place,
        terms: Terms,
        tries: u32,
    ) -> Result<Prepared, Trouble> {
        let limit = terms.attempt() * 2;
        let young = |grant: Grant| grant.is_young(clock::now(), terms, tries);
        if let (Mode::Slots(slots), None) = (self.wish.mode, self.slot.get()) {
            let claimed = async |etcd| self.places.claim(etcd, place, slots).await;
            match self.ask_etcd(limit, claimed).await? {
                Claimed::Slot(slot) => self.slot.set(Some(slot)),
                Claimed::NoneFree => return Ok(Prepared::NotYet),
                Claimed::PlaceLost => return Ok(Prepared::PlaceLost),
                Claimed::Asked(ask) => return Ok(Prepared::Asked(ask)),
            }
        }
        if let Some(ttl) = self.wish.min_hold
            && !self.cooldown.get().is_some_and(young)
        {
            let before = self.cooldown.replace(Some(self.grant(ttl, limit).await?));
            self.abandon(before.map(|before| before.lease));
        }
        if let Some(ttl) = self.wish.once_per
            && !(self.mark.get()).is_some_and(|mark| mark.stands(clock::now(), terms, tries))
        {
            let kept = self
                .mark
                .get()
                .map(|mark| mark.grant)
                .filter(|it| young(*it));
            let grant = match kept {
                Some(grant) => grant,
                None => self.grant(ttl, limit).await?,
            };
            let unmade = Mark { grant, made: false };
            let before = self.mark.replace(Some(unmade)).map(|mark| mark.grant.lease);
            self.abandon(before.filter(|before| *before != grant.lease));
            // An attempt whose answer was lost may have made the mark under a lease that was given up since.
            let ours = self.abandoned.borrow().clone();
            let marked = async |etcd| self.places.mark(etcd, place, grant.lease, &ours).await;
            match self.ask_etcd(limit, marked).await? {
                Marked::Ours => self.mark.set(Some(Mark { grant, made: true })),
                Marked::There(ran) => return Ok(Prepared::Ran(ran)),
                Marked::PlaceLost => return Ok(Prepared::PlaceLost),
                Marked::LeaseGone => {
                    self.mark.set(None);
                    return Ok(Prepared::NotYet);
                }
            }
        }
        self.clear_up(LEAVE).await;
        Ok(Prepared::Ready)
    }

    /// Grants a lease that nobody renews. Those of attempts whose answers are lost are taken back later.
    pub(super) async fn grant(&self, ttl: Duration, limit: Duration) -> Result<Grant, Trouble> {
        let granted = self.ask_etcd(limit, async |etcd| {
            let lease = random_lease()?;
            self.abandoned.borrow_mut().push(lease);
            let sent_at = clock::now();
            let granted = self.places.grant(etcd, lease, ttl).await;
            let exists = matches!(&granted, Err(trouble) if trouble.kind == Kind::LeaseExists);
            if exists || attempt_after(&granted) == Attempt::Refused {
                // Somebody else's, or nobody's.
                self.forget(lease);
            }
            granted.map(|()| Grant { lease, sent_at })
        });
        let grant = granted.await?;
        self.forget(grant.lease);
        Ok(grant)
    }

    /// Has a lease revoked with the next that are cleared up.
    pub(super) fn abandon(&self, lease: Option<LeaseId>) {
        self.abandoned.borrow_mut().extend(lease);
    }

    /// Strikes an attempt from those that are cleared up: its lease is in use, is not ours, or was never granted.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.abandoned.borrow_mut().retain(|id| *id != lease);
        self.late.borrow_mut().remove(&lease);
    }

    /// Takes back what was done for a command that does not start: first of all the mark, for those behind us are not to
    /// find it once the lock is free.
    pub(super) async fn undo(&self, limit: Duration) {
        let mark = self.mark.take().map(|mark| mark.grant);
        for grant in [self.cooldown.take(), mark].into_iter().flatten() {
            self.abandon(Some(grant.lease));
        }
        // The newest first: the older ones have no keys, as a rule.
        self.abandoned.borrow_mut().reverse();
        self.clear_up(limit).await;
    }

    /// Says so if a mark may still stand although no run has started.
    pub(super) fn warn_of_mark(&self, lease: LeaseId) {
        let Some(once_per) = self.wish.once_per else {
            return;
        };
        if !self.abandoned.borrow().contains(&lease) {
            return;
        }
        let name = self.places.queue.lock();
        warn!(
            event = events::MARK_LEFT,
            lock = %name,
            within_seconds = once_per.as_secs(),
            "etcd did not confirm that the mark of this run is taken back: no run of '{name}' may start within {}, although none has",
            span(once_per)
        );
    }

    /// Sees to it that attempts whose end was not seen leave nothing behind, neither now nor later, as
    /// [`core::abandoned`](crate::core::abandoned) says. What etcd does not confirm is kept for the next time. Says whether
    /// there were any.
    pub(super) async fn clear_up(&self, limit: Duration) -> bool {
        let until = clock::now() + limit;
        let rest = || until.since(clock::now());
        let leases = self.abandoned.borrow().clone();
        if leases.is_empty() {
            return false;
        }
        let to_bar = self.revoke(&leases, rest()).await;
        if to_bar.is_empty() {
            return true;
        }
        let barring = async |etcd| self.places.bar(etcd, &to_bar).await;
        match self.ask_etcd(rest(), barring).await {
            Ok(()) => {
                let barred = to_bar.iter().map(|lease| (*lease, Attempt::Barred));
                self.late.borrow_mut().extend(barred);
                self.revoke(&to_bar, rest()).await;
            }
            Err(trouble) => tracing::debug!("what comes late cannot be barred: {trouble}"),
        }
        true
    }

    /// Revokes leases, and forgets those under which nothing can come any more; gives those that are to be barred.
    async fn revoke(&self, leases: &[LeaseId], limit: Duration) -> Vec<LeaseId> {
        let gone = self.places.revoke(leases, limit).await;
        let mut late = self.late.borrow_mut();
        let (mut to_bar, mut done) = (Vec::new(), Vec::new());
        for (lease, found) in gone {
            let attempt = late.get(&lease).copied().unwrap_or(Attempt::Answered);
            match attempt.after_revoke(found) {
                Next::Bar => to_bar.push(lease),
                Next::Done => done.push(lease),
            }
        }
        self.abandoned
            .borrow_mut()
            .retain(|lease| !done.contains(lease));
        late.retain(|lease, _| !done.contains(lease));
        to_bar
    }
}
