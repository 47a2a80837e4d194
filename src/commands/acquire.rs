//! The locks of a run: acquired one after the other, each kept until all are held, or given back.
//! It must not know the command that runs under them, nor how they are released after it.
//!
//! No command overlaps with another holder of any of its locks, for the same reasons as with one lock. Each lock is acquired
//! and renewed as if it were alone, with its own queue, lease and lock delay. The command starts while each is proven, and its
//! deadline is the earliest of theirs ([`Watchdog`](crate::core::watchdog::Watchdog)), so no later than each lock's own. A
//! lock is given back before the command starts, or released after its last process is dead.
//!
//! No two runs wait for each other: a run that waits for a lock holds only locks that come before it in the one order of all
//! runs ([`in_order`](crate::core::name::in_order)), so the run that holds or awaits the last lock of any ring waits for none
//! in it.

use std::time::Duration;

use anyhow::anyhow;
use futures_util::future::join_all;
use tracing::{debug, info, warn};

use super::failed;
use super::guard_io::GuardIo;
use super::locked_run::LockedRun;
use super::not_acquired::NotAcquired;
use super::progress::WaitReporter;
use super::run_end::RunEnd;
use super::signals::Signals;
use crate::core::blockers::OrphanSlot;
use crate::core::holder::{OuterLock, StopRequest};
use crate::core::name::LockName;
use crate::core::proof::LossReason;
use crate::core::proven_lock::{Finding, LockEvent, LockIndex};
use crate::core::request::WaitPolicy;
use crate::core::run_stats::Outcome;
use crate::core::text::{format_duration, seconds};
use crate::core::time::Instant;
use crate::guard::GuardReport;
use crate::lock::backend::{
    AcquireOutcome, Acquired, LockBackend, LockSession, QueuePosition, SessionEvent, WaitEvent,
    next_event,
};
use crate::lock::error::LockError;
use crate::output::events;
use crate::output::exit::{Exit, Failure};
use crate::sys::clock;

/// Pause between two checks whether the lock is still wanted.
const UNWANTED_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The acquired locks, or the end of a run that did not acquire them.
pub(super) type Acquisition<S> = Result<Vec<Acquired<S>>, RunEnd>;

/// The acquisition of the locks of one run.
pub(super) struct Acquirer<'a, B> {
    pub(super) run: &'a LockedRun<'a>,
    /// One for each of the run's names, in their order.
    pub(super) backends: &'a [B],
    pub(super) guard_io: &'a mut GuardIo,
    pub(super) signals: &'a mut Signals,
    pub(super) began_at: Instant,
}

/// The result of one step.
enum Progress {
    Continue,
    /// A lock was lost before all were held.
    StartAgain,
    Ended(RunEnd),
}

/// Why the locks that are held already are not just kept any more.
enum Kept {
    /// All of them are proven so recently that a command may start.
    Fresh,
    Lost(LockIndex, LossReason),
    /// Another client requested that this one be given up.
    StopRequested(LockIndex, StopRequest),
}

/// The end of one wait.
enum Event<S> {
    Acquired(Result<AcquireOutcome<S>, LockError>),
    Kept(Kept),
    WaitPassed,
    Signal(i32),
    GuardDead,
    Unwanted,
}

/// The state of a wait when its time has passed.
struct Seen {
    began_at: Instant,
    ahead: Option<QueuePosition>,
    our_turn_at: Option<Instant>,
    last_error: Option<String>,
    no_slot: Option<OrphanSlot>,
}

impl Seen {
    const fn new(began_at: Instant) -> Self {
        Self {
            began_at,
            ahead: None,
            our_turn_at: None,
            last_error: None,
            no_slot: None,
        }
    }

    fn note(&mut self, waiting: WaitEvent) {
        match waiting {
            WaitEvent::Behind(now) => {
                (self.ahead, self.our_turn_at, self.no_slot) = (Some(now), None, None);
            }
            WaitEvent::OurTurn => {
                (self.our_turn_at, self.last_error) = (Some(clock::now()), None);
                self.no_slot = None;
            }
            WaitEvent::NoSlot(orphan) => (self.no_slot, self.our_turn_at) = (Some(orphan), None),
            WaitEvent::EntryLost => self.our_turn_at = None,
            WaitEvent::Error(error) => self.last_error = Some(error.cause),
            WaitEvent::LockDelay(_) => {}
        }
    }
}

impl<B: LockBackend> Acquirer<'_, B> {
    /// Acquires the locks in their order. On return either all of them are held, by recent proofs, or none.
    pub(super) async fn acquire(mut self) -> Result<Acquisition<B::Session>, Failure> {
        let mut taken = Vec::with_capacity(self.backends.len());
        loop {
            let ended = match self.advance(&mut taken).await {
                Ok(Progress::Continue) if self.is_complete(&taken) => return Ok(Ok(taken)),
                Ok(Progress::Continue) => continue,
                Ok(Progress::StartAgain) => None,
                Ok(Progress::Ended(end)) => Some(Ok(Err(end))),
                Err(failure) => Some(Err(failure)),
            };
            self.give_back(&mut taken).await;
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Whether the command may start. The backend has just proven a lock that is the only one.
    fn is_complete(&self, taken: &[Acquired<B::Session>]) -> bool {
        let now = clock::now();
        taken.len() == self.backends.len()
            && (taken.len() == 1 || taken.iter().all(|one| one.lock.is_fresh(now)))
    }

    /// Gives back the locks that were acquired, the last one first.
    async fn give_back(&self, taken: &mut Vec<Acquired<B::Session>>) {
        let backends = &self.backends[..taken.len()];
        for (name, Acquired { token, .. }) in self.run.names.iter().zip(&*taken).rev() {
            debug!("releasing lock '{name}' with token {token}");
        }
        // Without their sessions, nothing renews them.
        taken.clear();
        // All at once: an etcd that does not answer is waited for only once.
        join_all(backends.iter().rev().map(B::leave_queue)).await;
    }

    /// Acquires the next lock, or waits for a recent proof of all of them.
    async fn advance(
        &mut self,
        taken: &mut Vec<Acquired<B::Session>>,
    ) -> Result<Progress, Failure> {
        let next = self.backends.get(taken.len());
        let name = self.run.names.get(taken.len()).unwrap_or(self.run.name);
        let mut seen = Seen::new(clock::now());
        let event = self.wait(taken, next, name, &mut seen).await;
        if let Some(backend) = next
            && !matches!(event, Event::Acquired(Ok(_)))
        {
            backend.leave_queue().await;
        }
        match event {
            Event::Acquired(outcome) => {
                let outcome = outcome.map_err(|error| cannot_lock(name, error))?;
                match NotAcquired::of(name, self.run.lock.request.wait_policy, outcome) {
                    Ok(acquired) => {
                        self.report_acquired(name, &acquired);
                        taken.push(*acquired);
                        Ok(Progress::Continue)
                    }
                    Err(refused) => Ok(self.refused(name, refused)),
                }
            }
            Event::Kept(kept) => self.on_kept(kept),
            Event::WaitPassed => self.wait_passed(name, next, seen),
            Event::Signal(signal) => {
                let reason = format!("ended by signal {signal} while waiting");
                let exit = Exit::Signalled(signal);
                let end = RunEnd::new(Outcome::Interrupted, exit, reason);
                Ok(Progress::Ended(end))
            }
            Event::GuardDead => {
                Err(anyhow!("cannot wait for lock '{name}': the guard process is dead").into())
            }
            Event::Unwanted => Ok(Progress::Ended(RunEnd::new(
                Outcome::Interrupted,
                Exit::Done,
                RunEnd::UNWANTED,
            ))),
        }
    }

    /// Waits for the next lock, and keeps those that are held.
    async fn wait(
        &mut self,
        taken: &mut [Acquired<B::Session>],
        next: Option<&B>,
        name: &LockName,
        seen: &mut Seen,
    ) -> Event<B::Session> {
        let give_up_at = match (self.give_up_at(), next, &taken) {
            // A run that does not wait ends at a silent etcd, too.
            (None, None, [one, ..]) if self.run.lock.request.wait_policy == WaitPolicy::NoWait => {
                Some(clock::now() + one.lock.timings().renew_interval())
            }
            (limit, ..) => limit,
        };
        let mut held_back = Vec::new();
        let names = self.run.names.iter();
        let held = names.zip(&*taken).map(|(name, one)| OuterLock {
            name: name.to_string(),
            token: one.token.0,
        });
        let held: Vec<OuterLock> = held.collect();
        let event = {
            let reporter = WaitReporter::new(name, self.began_at, give_up_at);
            let on_event = |waiting: WaitEvent| {
                reporter.on_event(&waiting);
                seen.note(waiting);
            };
            let acquiring = async {
                match next {
                    Some(backend) => backend.acquire(&held, on_event).await,
                    None => std::future::pending().await,
                }
            };
            let position = async || match next {
                Some(backend) => backend.position().await,
                None => None,
            };
            let unanswered = || next.and_then(LockBackend::unanswered_causes);
            let ending = async {
                loop {
                    let signal = self.signals.next().await;
                    if crate::sys::inherited::blocked_at_start(signal.number) {
                        // The command gets the signal when it unblocks it.
                        held_back.push(signal);
                    } else if signal.ends() {
                        break signal.number;
                    } else if signal.stops() {
                        crate::sys::signals::stop_by(signal.number);
                    }
                }
            };
            tokio::select! {
                biased;
                signal = ending => Event::Signal(signal),
                () = guard_dead(self.guard_io) => Event::GuardDead,
                kept = keep(taken, next.is_none()) => Event::Kept(kept),
                outcome = acquiring => Event::Acquired(outcome),
                () = clock::until(give_up_at) => Event::WaitPassed,
                () = unwanted(self.run.unwanted) => Event::Unwanted,
                never = reporter.refresh(position) => match never {},
                never = reporter.warn_unanswered(unanswered) => match never {},
            }
        };
        self.signals.hold_back(held_back);
        event
    }

    /// The end of `--wait`, which is for all locks together.
    fn give_up_at(&self) -> Option<Instant> {
        match self.run.lock.request.wait_policy {
            WaitPolicy::Timeout(wait) => Some(self.began_at + wait),
            WaitPolicy::NoWait | WaitPolicy::Forever => None,
        }
    }

    /// The end of the run when the time of `--wait` has passed.
    fn wait_passed(
        &self,
        name: &LockName,
        next: Option<&B>,
        seen: Seen,
    ) -> Result<Progress, Failure> {
        let now = clock::now();
        let unproven = |since_at, cause| {
            let error = LockError::unproven(now.since(since_at), cause);
            Err(cannot_lock(name, error))
        };
        let Some(backend) = next else {
            return unproven(seen.began_at, None);
        };
        if let (Some(our_turn_at), Some(error)) = (seen.our_turn_at, &seen.last_error) {
            return unproven(our_turn_at, Some(error.as_str()));
        }
        let outcome = match (seen.no_slot, seen.ahead) {
            (Some(orphan), _) => AcquireOutcome::NoSlot(orphan),
            (None, Some(ahead)) => AcquireOutcome::Busy(ahead),
            (None, None) => {
                // Nobody knows whether the lock is busy.
                let waited = self.give_up_at().unwrap_or(now).since(self.began_at);
                return Err(cannot_lock(name, backend.unreachable(waited)));
            }
        };
        Ok(self.not_acquired(name, outcome))
    }

    /// The end of the time in which the locks that are held were only kept.
    fn on_kept(&self, kept: Kept) -> Result<Progress, Failure> {
        match kept {
            Kept::Fresh => Ok(Progress::Continue),
            Kept::StopRequested(lock, request) => {
                let outcome = AcquireOutcome::StopRequested(request);
                Ok(self.not_acquired(self.name_of(lock), outcome))
            }
            Kept::Lost(lock, LossReason::FileGone) => {
                let gone = LockError::refused(LossReason::FileGone.describe(), None);
                Err(cannot_lock(self.name_of(lock), gone))
            }
            Kept::Lost(lock, loss) => {
                let (name, cause) = (self.name_of(lock), loss.describe());
                warn!(
                    event = events::PLACE_LOST,
                    lock = %name,
                    "lost lock '{name}' before the others were held: {cause}; queueing again for all of them"
                );
                Ok(Progress::StartAgain)
            }
        }
    }

    fn name_of(&self, lock: LockIndex) -> &LockName {
        &self.run.names[lock.0]
    }

    fn not_acquired(&self, name: &LockName, outcome: AcquireOutcome<B::Session>) -> Progress {
        match NotAcquired::of(name, self.run.lock.request.wait_policy, outcome) {
            Ok(_) => Progress::Continue,
            Err(refused) => self.refused(name, refused),
        }
    }

    fn refused(&self, name: &LockName, refused: NotAcquired) -> Progress {
        Progress::Ended(refused.report(name, self.run.lock))
    }

    fn report_acquired(&self, name: &LockName, acquired: &Acquired<B::Session>) {
        let waited = clock::now().since(self.began_at);
        let token = acquired.token;
        info!(
            event = events::ACQUIRED,
            lock = %name,
            token = token.0,
            waited_seconds = seconds(waited),
            "acquired '{name}' with token {token} after {}",
            format_duration(waited)
        );
    }
}

/// Renews and watches the locks that are held while the next one is awaited, or, with `until_fresh`, until a command may
/// start. Cancel-safe.
async fn keep<S: LockSession>(taken: &mut [Acquired<S>], until_fresh: bool) -> Kept {
    loop {
        let now = clock::now();
        if until_fresh && taken.iter().all(|one| one.lock.is_fresh(now)) {
            return Kept::Fresh;
        }
        let mut due_at = None;
        for (index, Acquired { lock, session, .. }) in taken.iter_mut().enumerate() {
            if let Some(loss) = lock.overdue(now) {
                return Kept::Lost(LockIndex(index), loss);
            }
            if until_fresh && !lock.is_fresh(now) {
                lock.renew_now(now);
            }
            if lock.start_renewal(now) {
                session.renew();
            }
            let moments = [due_at, lock.due_at(), Some(lock.deadlines().kill_at)];
            due_at = moments.into_iter().flatten().min();
        }
        let (index, event) = tokio::select! {
            event = next_event(taken, |one| &mut one.session) => event,
            () = clock::until(due_at) => continue,
        };
        let event = match event {
            SessionEvent::Renewed(renewal) => LockEvent::Renewed(renewal),
            SessionEvent::Failed { endpoint, cause } => {
                debug!("a lock that is held cannot be renewed at '{endpoint}': {cause}");
                LockEvent::RenewalFailed
            }
            SessionEvent::StillHeld => LockEvent::StillHeld,
            SessionEvent::Lost(loss) => LockEvent::Lost(loss),
            SessionEvent::Watch(watch) => LockEvent::Watch(watch),
            SessionEvent::StopRequested(request) if !request.now => {
                return Kept::StopRequested(index, request);
            }
            // The removal of the entry follows, as another event.
            SessionEvent::StopRequested(_) | SessionEvent::QueueChanged => continue,
        };
        match taken[index.0].lock.on_event(clock::now(), &event) {
            Some(Finding::Lost(loss)) => return Kept::Lost(index, loss),
            Some(Finding::Inconclusive(doubt)) => {
                debug!(
                    "a renewal of a lock that is held proved nothing: {}",
                    doubt.describe()
                );
            }
            Some(Finding::Proven) | None => {}
        }
    }
}

fn cannot_lock(name: &LockName, error: LockError) -> Failure {
    failed(format_args!("cannot lock '{name}'"), error)
}

/// Waits until the lock is not wanted any more.
async fn unwanted(unwanted: Option<&dyn Fn() -> bool>) {
    let Some(unwanted) = unwanted else {
        return std::future::pending().await;
    };
    while !unwanted() {
        tokio::time::sleep(UNWANTED_POLL_INTERVAL).await;
    }
}

/// Waits for the guard's death, its only report before the start of the command.
async fn guard_dead(guard_io: &mut GuardIo) {
    while !matches!(guard_io.report().await, GuardReport::GuardDead) {}
}
