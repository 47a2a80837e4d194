//! One who stands in the queue: waits for its turn, prepares what the command needs, and proves itself.
//! It must not know how a place is taken, nor how it is given up.

use std::time::Duration;

use super::contend::{Contender, Outcome, variables};
use super::look::Look;
use super::places::Entry;
use super::prepare::Prepared;
use super::session::{Awaited, Session};
use super::trouble::{Kind, Trouble};
use crate::clock;
use crate::contest::{Contend as _, Keep as _, News, Waiting, Won};
use crate::core::heartbeat::{Heartbeat, Watch};
use crate::core::lease::{Claim, Instant, Terms, Verdict};
use crate::core::watchdog::Watchdog;

/// What cannot be had of etcd yet, when it is our turn, is tried again after this: a slot whose owner's
/// place is gone frees itself with its lease.
pub(super) const AGAIN: Duration = Duration::from_millis(250);

/// A place in the queue from its taking until the lock is won, or the place lost.
pub(super) struct Vigil<'a> {
    contender: &'a Contender,
    claim: Claim,
    terms: Terms,
    /// The moment from which the freshest proof counts.
    proven_at: Instant,
    look: Look,
    /// From when on the lock may be used, once nobody is before us.
    free_at: Option<Instant>,
    session: Session,
    heartbeat: Heartbeat,
    /// How often all was done that the command needs.
    prepared: u32,
}

/// How the preparations, or a piece of news, leave us.
enum Step {
    On,
    PlaceLost,
    Gone(Box<Outcome>),
}

impl<'a> Vigil<'a> {
    pub(super) fn new(contender: &'a Contender, entry: Entry) -> Self {
        let Entry {
            claim,
            terms,
            sent_at: proven_at,
            look,
        } = entry;
        let place = claim.place;
        let session = Session::open(
            &contender.places.cluster,
            &contender.key(place.lease),
            place,
            terms,
            awaited(contender, &look),
        );
        let seed = place.lease.0.unsigned_abs();
        let mut heartbeat = Heartbeat::new(terms, proven_at, seed);
        heartbeat.watch(clock::now(), Watch::Reopening);
        Self {
            contender,
            claim,
            terms,
            proven_at,
            free_at: None,
            look,
            session,
            heartbeat,
            prepared: 0,
        }
    }

    /// Until it is our turn and that is proven; `None` when our own place is lost.
    pub(super) async fn keep(
        mut self,
        tell: &mut impl FnMut(Waiting),
    ) -> Result<Option<Outcome>, Trouble> {
        self.see(self.proven_at);
        let left = self.contender.hand_over_left();
        if self.free_at.is_none() {
            tell(Waiting::Behind(self.look.ahead.clone()));
        } else if !left.is_zero() {
            tell(Waiting::HandOver(left));
        }
        loop {
            let now = clock::now();
            let free = self.free_at.is_some_and(|free_at| free_at <= now);
            // The command starts on a young proof only: after a slow entry or a long wait we take
            // another one.
            let young = now.since(self.proven_at) < self.terms.heartbeat();
            let prepared = || (self.contender).is_prepared(now, self.terms, self.prepared);
            let step = if free && young && prepared() {
                return Ok(Some(self.won()));
            } else if free && young {
                self.prepare(tell).await?
            } else {
                if free {
                    self.heartbeat.hurry(now);
                }
                if self.heartbeat.ask(now) {
                    self.session.renew();
                }
                let news = tokio::select! {
                    news = self.session.news() => Some(news),
                    () = clock::until(self.heartbeat.due_at()) => None,
                    () = clock::until(self.free_at.filter(|free_at| now < *free_at)) => None,
                };
                match news {
                    Some(news) => self.hear(news, tell).await?,
                    None => Step::On,
                }
            };
            match step {
                Step::On => {}
                Step::PlaceLost => return Ok(None),
                Step::Gone(outcome) => {
                    self.contender.leave().await;
                    return Ok(Some(*outcome));
                }
            }
        }
    }

    fn won(self) -> Outcome {
        let place = self.claim.place;
        Outcome::Won(Box::new(Won {
            token: place.token,
            watchdog: Watchdog::new(self.terms, self.claim, self.proven_at, self.heartbeat),
            session: self.session,
            slot: self.contender.slot.get(),
            variables: variables(&self.contender.places.queue, place),
        }))
    }

    /// Draws the conclusion from a look of this moment.
    fn see(&mut self, now: Instant) {
        if self.look.turn.blockers.is_empty() {
            self.free_at = self.contender.handed_over_at().max(Some(now));
        }
    }

    async fn hear(&mut self, news: News, tell: &mut impl FnMut(Waiting)) -> Result<Step, Trouble> {
        match news {
            News::Failed { endpoint, cause } => {
                self.heartbeat.failed(clock::now());
                let cause = format!("'{endpoint}': {cause}");
                tell(Waiting::Trouble(Trouble::elsewhere(cause)));
                Ok(Step::On)
            }
            News::Renewed(renewal) => match self.claim.judge(&renewal) {
                Verdict::Proven(_) => {
                    self.proven_at = renewal.sent_at;
                    self.heartbeat.proven(renewal.sent_at);
                    // As a rule, that is done.
                    self.contender.announce(self.claim.place, self.terms).await;
                    Ok(Step::On)
                }
                Verdict::Doubtful(_) => {
                    self.heartbeat.failed(clock::now());
                    Ok(Step::On)
                }
                Verdict::Lost(_) => {
                    self.heartbeat.failed(clock::now());
                    self.look_again(tell).await
                }
            },
            News::Asked(ask) => Ok(Step::Gone(Box::new(Outcome::Asked(ask)))),
            News::Watch(watch) => {
                self.heartbeat.watch(clock::now(), watch);
                Ok(Step::On)
            }
            // Of locks that no time ends.
            News::Kept => Ok(Step::On),
            // One that is told again after it was seen to.
            News::Moved if self.free_at.is_some() => Ok(Step::On),
            News::Moved | News::Lost(_) => self.look_again(tell).await,
        }
    }

    /// Somebody's key has changed, maybe ours.
    async fn look_again(&mut self, tell: &mut impl FnMut(Waiting)) -> Result<Step, Trouble> {
        let (contender, place) = (self.contender, self.claim.place);
        let blockers = &self.look.turn.blockers;
        let look = contender
            .look_again(place, self.terms, blockers, tell)
            .await?;
        let before = std::mem::replace(&mut self.look, look);
        let Look {
            own,
            revision,
            ahead,
            ..
        } = &self.look;
        let hand_over = contender.note(&self.look);
        if !hand_over.is_zero() {
            tell(Waiting::HandOver(hand_over));
        }
        if !own {
            return Ok(Step::PlaceLost);
        }
        contender.announce(place, self.terms).await;
        contender.check(&self.look)?;
        self.claim.highest_revision = self.claim.highest_revision.max(*revision);
        if !self.look.turn.blockers.is_empty() && *ahead != before.ahead {
            tell(Waiting::Behind(ahead.clone()));
        }
        self.session.follow(awaited(contender, &self.look));
        self.see(clock::now());
        Ok(Step::On)
    }

    /// Does what has to be done in etcd before the command may start, and again later what cannot be
    /// done yet.
    async fn prepare(&mut self, tell: &mut impl FnMut(Waiting)) -> Result<Step, Trouble> {
        let again_at = |now: Instant| Some(now + AGAIN);
        let (place, tries) = (self.claim.place, self.prepared);
        match self.contender.prepare(place, self.terms, tries).await {
            Ok(Prepared::Ready) => {
                // Nothing runs any more of those before us: the next ones are not to wait for it.
                self.contender.announce(place, self.terms).await;
                self.prepared = tries.saturating_add(1);
            }
            Ok(Prepared::NotYet) => self.free_at = again_at(clock::now()),
            Ok(Prepared::PlaceLost) => return Ok(Step::PlaceLost),
            Ok(Prepared::Asked(ask)) => return Ok(Step::Gone(Box::new(Outcome::Asked(ask)))),
            Ok(Prepared::Ran(ran)) => return Ok(Step::Gone(Box::new(Outcome::Ran(ran)))),
            Err(trouble) if trouble.kind == Kind::Elsewhere => {
                tell(Waiting::Trouble(trouble));
                self.free_at = again_at(clock::now());
            }
            Err(trouble) => return Err(trouble),
        }
        Ok(Step::On)
    }
}

/// What the session has to look out for.
fn awaited(contender: &Contender, look: &Look) -> Awaited {
    let queue = &contender.places.queue;
    match &look.turn.blockers[..] {
        [] => Awaited::Nobody,
        [one] => Awaited::One {
            key: one.key.clone(),
            changed: one.changed,
        },
        several => Awaited::Any {
            queue: queue.clone(),
            keys: several.iter().map(|one| one.key.clone()).collect(),
            count: look.count,
        },
    }
}
