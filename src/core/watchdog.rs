//! The holder's decisions: an [`Event`] in, [`Action`]s out.
//! It must not know a clock, etcd, a process id or a signal's meaning.

use std::fmt;
use std::mem;
use std::time::Duration;

use super::heartbeat::Watch;
use super::proof::{Inconclusive, LossReason};
use super::proven_lock::{Finding, LockEvent, LockIndex, ProvenLock};
use super::text::format_duration;
use super::time::{Deadlines, Instant};

/// After an order to kill, a guard that sends no answer within this is taken as dead.
const GUARD_ACK_TIMEOUT: Duration = Duration::from_millis(250);

/// An input of the watchdog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time that [`Watchdog::due_at`] returned has come.
    Tick,
    /// An event of one of the locks.
    Lock(LockIndex, LockEvent),
    /// The guard answered the message with this number.
    Ack(u64),
    /// The guard is dead.
    GuardDead,
    /// An authorised user requested that the lock be given up.
    ReleaseRequested,
    /// No process of the command is left; `in_time` when no deadline ended it.
    TreeDead { in_time: bool },
}

/// An order of the watchdog, or the announcement of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a renewal of this lock; its result comes back as `Renewed` or `RenewalFailed`.
    Renew(LockIndex),
    /// Send the deadlines to the guard; it answers with the same number.
    Extend { beat: u64, deadlines: Deadlines },
    /// The guard must stop everything, and kill it when the grace or the deadline has passed.
    Stop,
    /// The guard must kill everything now.
    Kill,
    /// The guard does not do its work: kill it and the whole tree.
    KillTree,
    /// The state is [`LockState::Lost`] from now on, since this lock is lost.
    Lost(LockIndex, LossReason),
    /// The state is [`LockState::Unguarded`] from now on.
    Unguarded,
    /// The command has run for its maximum time, and is stopped.
    MaxHold,
    /// A renewal moved the deadlines when this was left until the old `stop_at`.
    Proven { slack: Duration },
    /// A renewal was answered but does not count.
    Inconclusive(LockIndex, Inconclusive),
}

/// For the log of -vv.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("the timer has expired"),
            Self::Lock(_, event) => event.fmt(f),
            Self::Ack(beat) => write!(f, "the guard has confirmed deadline {beat}"),
            Self::GuardDead => f.write_str("the guard is dead"),
            Self::ReleaseRequested => f.write_str("a release was requested"),
            Self::TreeDead { in_time: true } => f.write_str("no process of the command is left"),
            Self::TreeDead { in_time: false } => {
                f.write_str("the command was killed at its deadline")
            }
        }
    }
}

/// For the log of -vv.
impl fmt::Display for LockEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renewed(_) => f.write_str("a renewal was answered"),
            Self::RenewalFailed => f.write_str("a renewal failed"),
            Self::StillHeld => f.write_str("the lock is still held"),
            Self::Lost(reason) => write!(f, "the lock is lost: {}", reason.describe()),
            Self::Watch(Watch::Open) => f.write_str("the watch is open"),
            Self::Watch(Watch::Reopening) => f.write_str("the watch is being reopened"),
            Self::Watch(Watch::Broken) => f.write_str("the watch is broken"),
        }
    }
}

/// For the log of -vv.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renew(_) => f.write_str("renew the lease"),
            Self::Extend { beat, .. } => write!(f, "send deadline {beat} to the guard"),
            Self::Stop => f.write_str("stop the command"),
            Self::Kill => f.write_str("kill the command"),
            Self::KillTree => f.write_str("kill the command and its guard"),
            Self::Lost(..) => f.write_str("report the loss"),
            Self::Unguarded => f.write_str("report that no guard is left"),
            Self::MaxHold => f.write_str("report the end of --max-hold"),
            Self::Proven { slack } => {
                write!(
                    f,
                    "the lock is proven, {} before the stop",
                    format_duration(*slack)
                )
            }
            Self::Inconclusive(_, doubt) => write!(f, "no proof: {}", doubt.describe()),
        }
    }
}

/// The state of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// As far as dlock can prove, it holds the lock.
    Held,
    /// The lock is lost for ever.
    Lost(LossReason),
    /// dlock may still hold the lock, but no guard is left: the command is being killed.
    Unguarded,
}

/// Watches one hold of the locks of a run, from the start of the command until its last process is dead.
///
/// Its rules:
/// 1. a deadline is the earliest of those of the locks, each of which moves only by a proof: see [`ProvenLock`];
/// 2. the loss of any lock is final, and nothing is renewed after it;
/// 3. a guard that sends no answer is replaced by [`Action::KillTree`], once, and renewals end;
/// 4. after a `Tick` at [`Watchdog::due_at`], that time moves on or becomes `None`.
#[derive(Clone, Debug)]
pub struct Watchdog {
    /// The locks, in the order in which they were taken.
    locks: Vec<ProvenLock>,
    state: LockState,
    /// The last number sent to the guard, and the last that it answered.
    sent: u64,
    acked: u64,
    /// The time since which an answer of the guard is due.
    silent_since: Option<Instant>,
    /// The time of the check on the guard, while an order to kill is pending.
    check_guard_at: Option<Instant>,
    tree_dead: bool,
    /// The end of the command's maximum time, until the command is stopped.
    max_hold_at: Option<Instant>,
    /// The command is stopped although the lock is held.
    stopped: bool,
    /// The result of the step so far.
    actions: Vec<Action>,
}

impl Watchdog {
    /// Called when the command starts under all of `locks`.
    pub fn new(locks: Vec<ProvenLock>) -> Self {
        Self {
            locks,
            state: LockState::Held,
            sent: 0,
            acked: 0,
            silent_since: None,
            check_guard_at: None,
            tree_dead: false,
            max_hold_at: None,
            stopped: false,
            actions: Vec::new(),
        }
    }

    /// The same for a command that may run until `limit_at` at most.
    #[must_use]
    pub fn with_max_hold(self, limit_at: Option<Instant>) -> Self {
        Self {
            max_hold_at: limit_at,
            ..self
        }
    }

    /// The send time of the last proof of a lock.
    pub fn proven_at(&self, lock: LockIndex) -> Option<Instant> {
        Some(self.locks.get(lock.0)?.proven_at())
    }

    /// The deadlines in force: the earliest of all locks.
    pub fn deadlines(&self) -> Deadlines {
        let all = self.locks.iter().map(ProvenLock::deadlines);
        all.reduce(Deadlines::earliest).unwrap_or(Deadlines::NEVER)
    }

    /// The lock whose deadlines are the earliest.
    fn most_urgent(&self) -> LockIndex {
        let urgent = (0..self.locks.len()).min_by_key(|lock| self.locks[*lock].deadlines().stop_at);
        LockIndex(urgent.unwrap_or_default())
    }

    /// The state of the lock.
    pub const fn state(&self) -> LockState {
        self.state
    }

    /// The latest time for the next call with [`Event::Tick`].
    pub fn due_at(&self) -> Option<Instant> {
        if self.tree_dead {
            return None;
        }
        if let LockState::Held = self.state {
            let renewals = self.locks.iter().filter_map(ProvenLock::due_at);
            let limits = [self.max_hold_at, Some(self.deadlines().stop_at)];
            return renewals.chain(limits.into_iter().flatten()).min();
        }
        self.check_guard_at
    }

    /// Decides the actions that follow from `event`, in this order; an announcement precedes its orders.
    pub fn step(&mut self, now: Instant, event: &Event) -> Vec<Action> {
        if !self.tree_dead {
            // A renewal that arrives at or after the stop deadline is too late.
            if self.state == LockState::Held && self.deadlines().stop_at <= now {
                self.lose(self.most_urgent(), LossReason::Unproven, now);
            }
            self.decide(now, event);
        }
        mem::take(&mut self.actions)
    }

    fn decide(&mut self, now: Instant, event: &Event) {
        match (event, self.state) {
            (Event::TreeDead { in_time }, state) => {
                self.tree_dead = true;
                if !in_time && state == LockState::Held {
                    self.set_lost(self.most_urgent(), LossReason::Unproven);
                }
            }
            (Event::Ack(beat), _) => {
                self.acked = self.acked.max(*beat);
                if self.acked == self.sent {
                    self.silent_since = None;
                }
            }
            (Event::GuardDead, LockState::Held) => self.lose_guard(),
            (Event::GuardDead, _) => self.kill_tree(),
            (Event::Lock(lock, event), LockState::Held) => self.on_lock_event(now, *lock, event),
            (Event::Tick, LockState::Held) => {
                if self.max_hold_at.is_some_and(|at| at <= now) {
                    self.actions.push(Action::MaxHold);
                    self.stop_early();
                }
                self.renew(now);
            }
            (Event::ReleaseRequested, LockState::Held) if !self.stopped => self.stop_early(),
            (Event::Tick, LockState::Lost(_)) => self.check_guard(now),
            (Event::Tick | Event::Lock(..) | Event::ReleaseRequested, _) => {}
        }
    }

    fn on_lock_event(&mut self, now: Instant, lock: LockIndex, event: &LockEvent) {
        let before = self.deadlines();
        let Some(proven) = self.locks.get_mut(lock.0) else {
            return;
        };
        match proven.on_event(now, event) {
            Some(Finding::Proven) if before != self.deadlines() => {
                let slack = before.stop_at.since(now);
                self.actions.push(Action::Proven { slack });
                self.extend();
            }
            // Another lock still has the earlier deadlines.
            Some(Finding::Proven) | None => {}
            Some(Finding::Inconclusive(doubt)) => {
                self.actions.push(Action::Inconclusive(lock, doubt));
            }
            Some(Finding::Lost(loss)) => self.lose(lock, loss, now),
        }
    }

    /// Stops the command; renewals continue until it is dead.
    fn stop_early(&mut self) {
        self.stopped = true;
        self.max_hold_at = None;
        self.actions.push(Action::Stop);
    }

    /// Without a guard there are no renewals: a guard without an answer for two intervals does not run. The wait is that
    /// long because a busy disk may delay the guard, and dlock replaces it in time.
    fn renew(&mut self, now: Instant) {
        let locks = self.locks.iter_mut().enumerate();
        let due = locks.filter_map(|(index, lock)| lock.start_renewal(now).then_some(index));
        let due: Vec<LockIndex> = due.map(LockIndex).collect();
        if due.is_empty() {
            return;
        }
        let intervals = self
            .locks
            .iter()
            .map(|lock| lock.timings().renew_interval());
        let limit = intervals.min().unwrap_or_default() * 2;
        if self
            .silent_since
            .is_some_and(|since| now.since(since) >= limit)
        {
            return self.lose_guard();
        }
        self.silent_since.get_or_insert(now);
        self.extend();
        self.actions.extend(due.into_iter().map(Action::Renew));
    }

    fn extend(&mut self) {
        self.sent += 1;
        self.actions.push(Action::Extend {
            beat: self.sent,
            deadlines: self.deadlines(),
        });
    }

    fn set_lost(&mut self, lock: LockIndex, loss: LossReason) {
        self.state = LockState::Lost(loss);
        self.actions.push(Action::Lost(lock, loss));
    }

    fn lose(&mut self, lock: LockIndex, loss: LossReason, now: Instant) {
        self.set_lost(lock, loss);
        self.extend();
        let mut kill_at = self.deadlines().kill_at;
        // An unproven lock's command is stopped by the guard itself, which has until `kill_at` for it.
        if loss != LossReason::Unproven {
            // Another client took the lock. The next waiter allows for the grace (`core::lock_delay::lock_delay`).
            let graces = self.locks.iter().map(|lock| lock.timings().grace());
            kill_at = kill_at.min(now + graces.min().unwrap_or_default());
            self.actions.push(Action::Stop);
        }
        self.check_guard_at = Some(kill_at.max(now));
    }

    /// The guard's time to kill is over; an answer shows whether it still runs.
    fn check_guard(&mut self, now: Instant) {
        let Some(overdue_at) = self.check_guard_at.filter(|at| *at <= now) else {
            return;
        };
        if self.acked < self.sent {
            return self.kill_tree();
        }
        // It ran a moment ago. Ask again for as long as it takes: it reports survivors.
        self.check_guard_at = Some(overdue_at.max(now) + GUARD_ACK_TIMEOUT);
        self.extend();
        self.actions.push(Action::Kill);
    }

    fn lose_guard(&mut self) {
        self.state = LockState::Unguarded;
        self.actions.push(Action::Unguarded);
        self.kill_tree();
    }

    fn kill_tree(&mut self) {
        self.check_guard_at = None;
        self.actions.push(Action::KillTree);
    }
}

#[cfg(test)]
mod tests {
    use super::super::heartbeat::Heartbeat;
    use super::super::proof::tests::{ownership, renewal};
    use super::super::proof::{Header, tests::HEADER};
    use super::super::time::LeaseTimings;
    use super::super::time::tests::at;
    use super::*;

    const FIRST: LockIndex = LockIndex(0);
    const SECOND: LockIndex = LockIndex(1);

    /// An event of the first lock.
    fn of(event: LockEvent) -> Event {
        Event::Lock(FIRST, event)
    }

    /// TTL 10 s, grace 2 s, proven at 0: renewals from 1.8 s, stop at 6.5 s, kill at 8.5 s.
    fn watchdog() -> Watchdog {
        Watchdog::new(vec![lock(at(0.0))])
    }

    fn lock(proven_at: Instant) -> ProvenLock {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        let heartbeat = Heartbeat::new(timings, proven_at, 1);
        ProvenLock::new(timings, ownership(), proven_at, heartbeat)
    }

    /// Lets the guard answer every message.
    fn answer(watchdog: &mut Watchdog, now: Instant, actions: &[Action]) {
        for action in actions {
            if let Action::Extend { beat, .. } = action {
                assert!(watchdog.step(now, &Event::Ack(*beat)).is_empty());
            }
        }
    }

    fn renew_once(watchdog: &mut Watchdog) -> Instant {
        let due_at = watchdog.due_at().unwrap();
        let actions = watchdog.step(due_at, &Event::Tick);
        assert_eq!(actions.last(), Some(&Action::Renew(FIRST)));
        answer(watchdog, due_at, &actions);
        due_at
    }

    #[test]
    fn a_proof_moves_the_deadline_from_the_time_of_its_sending() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        let actions = watchdog.step(
            sent_at + Duration::from_secs(3),
            &of(LockEvent::Renewed(renewal(sent_at))),
        );
        let deadlines = watchdog.deadlines();
        assert_eq!(watchdog.proven_at(FIRST), Some(sent_at));
        assert_eq!(deadlines.kill_at, sent_at + Duration::from_millis(8500));
        assert_eq!(deadlines.stop_at, sent_at + Duration::from_millis(6500));
        let slack = at(3.5).since(sent_at);
        let extend = Action::Extend { beat: 2, deadlines };
        assert_eq!(actions, [Action::Proven { slack }, extend]);
    }

    #[test]
    fn without_a_lease_only_a_third_party_ends_the_lock() {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        let mut watchdog = Watchdog::new(vec![ProvenLock::without_lease(timings, at(0.0), 1)]);
        assert_eq!(watchdog.deadlines(), Deadlines::NEVER);
        for _ in 0..1000 {
            let due_at = renew_once(&mut watchdog);
            assert_eq!(watchdog.step(due_at, &of(LockEvent::StillHeld)), []);
        }
        let late = watchdog.due_at().unwrap();
        assert!(late > at(1800.0));
        // A dlock that was stopped for a day checks again once.
        let after = late + Duration::from_hours(24);
        let actions = watchdog.step(after, &Event::Tick);
        assert!(matches!(
            actions[..],
            [Action::Extend { .. }, Action::Renew(FIRST)]
        ));
        answer(&mut watchdog, after, &actions);
        assert_eq!(watchdog.state(), LockState::Held);
        let actions = watchdog.step(after, &of(LockEvent::Lost(LossReason::FileGone)));
        assert!(matches!(
            actions[..],
            [
                Action::Lost(FIRST, LossReason::FileGone),
                Action::Extend { .. },
                Action::Stop
            ]
        ));
        assert_eq!(watchdog.due_at(), Some(after + Duration::from_secs(2)));
        let actions = watchdog.step(after + Duration::from_secs(2), &Event::Tick);
        assert_eq!(actions, [Action::KillTree], "the guard has not answered");
    }

    #[test]
    fn a_shorter_lease_has_earlier_deadlines() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        let mut shorter = renewal(sent_at);
        shorter.keepalive = Some((HEADER, Duration::from_secs(9)));
        watchdog.step(sent_at, &of(LockEvent::Renewed(shorter)));
        let kill_at = watchdog.deadlines().kill_at;
        assert_eq!(kill_at, sent_at + Duration::from_millis(7600));
    }

    #[test]
    fn a_late_answer_to_an_early_request_moves_nothing_back() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        watchdog.step(sent_at, &of(LockEvent::Renewed(renewal(sent_at))));
        let before = watchdog.deadlines();
        assert!(
            watchdog
                .step(at(3.0), &of(LockEvent::Renewed(renewal(at(0.5)))))
                .is_empty()
        );
        assert_eq!(watchdog.deadlines(), before);
    }

    #[test]
    fn an_inconclusive_answer_moves_nothing_and_is_repeated() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        let before = watchdog.deadlines();
        let mut doubtful = renewal(sent_at);
        doubtful.read.0 = Header { term: 4, ..HEADER };
        assert_eq!(
            watchdog.step(
                sent_at + Duration::from_secs(1),
                &of(LockEvent::Renewed(doubtful))
            ),
            [Action::Inconclusive(FIRST, Inconclusive::OtherTerm)]
        );
        assert_eq!(watchdog.deadlines(), before);
        assert!(watchdog.due_at().unwrap() <= sent_at + Duration::from_secs(1));
    }

    #[test]
    fn without_a_proof_the_lock_is_lost_at_the_stop_and_a_proof_at_that_moment_is_too_late() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        let actions = watchdog.step(at(6.5), &of(LockEvent::Renewed(renewal(sent_at))));
        assert!(matches!(
            actions[..],
            [
                Action::Lost(FIRST, LossReason::Unproven),
                Action::Extend { .. }
            ]
        ));
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::Unproven));
        assert_eq!(watchdog.deadlines().kill_at, at(8.5));
    }

    #[test]
    fn a_huge_jump_of_time_is_a_loss_and_not_a_renewal() {
        let mut watchdog = watchdog();
        let actions = watchdog.step(at(9999.0), &Event::Tick);
        assert!(!actions.contains(&Action::Renew(FIRST)));
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::Unproven));
    }

    #[test]
    fn a_key_that_is_gone_stops_and_kills_after_the_grace() {
        let mut watchdog = watchdog();
        let actions = watchdog.step(at(1.0), &of(LockEvent::Lost(LossReason::KeyGone)));
        assert_eq!(actions.last(), Some(&Action::Stop));
        answer(&mut watchdog, at(1.0), &actions);
        assert_eq!(watchdog.due_at(), Some(at(3.0)));
        let actions = watchdog.step(at(3.0), &Event::Tick);
        assert_eq!(actions.last(), Some(&Action::Kill));
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::KeyGone));
    }

    #[test]
    fn a_broken_watch_makes_a_renewal_due_and_an_open_one_does_not() {
        let mut watchdog = watchdog();
        let broken = of(LockEvent::Watch(Watch::Broken));
        assert!(watchdog.step(at(1.0), &broken).is_empty());
        assert!(watchdog.due_at().is_some_and(|due_at| due_at <= at(1.0)));
        let actions = watchdog.step(at(1.0), &Event::Tick);
        assert_eq!(actions.last(), Some(&Action::Renew(FIRST)));
        watchdog.step(at(1.1), &of(LockEvent::Renewed(renewal(at(1.0)))));
        assert!(watchdog.due_at().is_some_and(|due_at| due_at < at(2.0)));
        watchdog.step(at(1.2), &of(LockEvent::Watch(Watch::Open)));
        assert!(watchdog.due_at().is_some_and(|due_at| due_at > at(2.0)));
    }

    #[test]
    fn a_command_at_its_limit_is_stopped_once_and_the_lock_is_kept() {
        let mut watchdog = watchdog().with_max_hold(Some(at(1.0)));
        assert_eq!(watchdog.due_at(), Some(at(1.0)));
        assert_eq!(
            watchdog.step(at(1.0), &Event::Tick),
            [Action::MaxHold, Action::Stop]
        );
        assert!(watchdog.step(at(1.1), &Event::ReleaseRequested).is_empty());
        let sent_at = renew_once(&mut watchdog);
        watchdog.step(sent_at, &of(LockEvent::Renewed(renewal(sent_at))));
        assert!(watchdog.deadlines().kill_at > at(8.5));
        assert_eq!(watchdog.state(), LockState::Held);
    }

    #[test]
    fn a_release_request_stops_the_command_and_is_ignored_after_a_loss() {
        let mut asked = watchdog();
        assert_eq!(
            asked.step(at(1.0), &Event::ReleaseRequested),
            [Action::Stop]
        );
        assert!(asked.step(at(1.1), &Event::ReleaseRequested).is_empty());
        let mut lost = watchdog();
        lost.step(at(1.0), &of(LockEvent::Lost(LossReason::KeyGone)));
        assert!(lost.step(at(1.0), &Event::ReleaseRequested).is_empty());
    }

    #[test]
    fn nothing_is_renewed_after_a_loss() {
        let mut watchdog = watchdog();
        watchdog.step(at(1.0), &of(LockEvent::Lost(LossReason::KeyTaken)));
        for seconds in 1..100 {
            let now = at(f64::from(seconds));
            let mut actions = watchdog.step(now, &Event::Tick);
            actions.extend(watchdog.step(now, &of(LockEvent::Renewed(renewal(now)))));
            assert!(!actions.contains(&Action::Renew(FIRST)));
        }
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::KeyTaken));
    }

    #[test]
    fn a_guard_that_does_not_answer_an_order_is_replaced_once() {
        let mut watchdog = watchdog();
        watchdog.step(at(1.0), &of(LockEvent::Lost(LossReason::KeyGone)));
        let due_at = watchdog.due_at().unwrap();
        assert_eq!(due_at, at(3.0));
        assert_eq!(watchdog.step(due_at, &Event::Tick), [Action::KillTree]);
        assert_eq!(watchdog.due_at(), None);
    }

    #[test]
    fn a_guard_that_answers_is_left_to_its_work() {
        let mut watchdog = watchdog();
        let actions = watchdog.step(at(1.0), &of(LockEvent::Lost(LossReason::KeyGone)));
        answer(&mut watchdog, at(1.01), &actions);
        let due_at = watchdog.due_at().unwrap();
        assert!(
            !watchdog
                .step(due_at, &Event::Tick)
                .contains(&Action::KillTree)
        );
        assert!(watchdog.due_at().unwrap() > due_at);
    }

    #[test]
    fn a_guard_that_is_silent_for_two_intervals_is_taken_as_dead() {
        let mut watchdog = watchdog();
        let mut silent_since = None;
        for _ in 0..10 {
            let due_at = watchdog.due_at().unwrap();
            let actions = watchdog.step(due_at, &Event::Tick);
            let since = *silent_since.get_or_insert(due_at);
            if actions == [Action::Unguarded, Action::KillTree] {
                assert!(due_at.since(since) >= Duration::from_secs(4));
                assert!(due_at.since(since) <= Duration::from_secs(7));
                break;
            }
            assert!(actions.contains(&Action::Renew(FIRST)));
            watchdog.step(due_at, &of(LockEvent::Renewed(renewal(due_at))));
        }
        assert_eq!(watchdog.state(), LockState::Unguarded);
    }

    #[test]
    fn a_dead_guard_ends_the_tree_and_the_renewals() {
        let mut watchdog = watchdog();
        assert_eq!(
            watchdog.step(at(1.0), &Event::GuardDead),
            [Action::Unguarded, Action::KillTree]
        );
        assert_eq!(watchdog.due_at(), None);
        assert!(watchdog.step(at(3.0), &Event::Tick).is_empty());
    }

    #[test]
    fn a_guard_that_stopped_the_command_at_a_deadline_means_a_loss() {
        let mut watchdog = watchdog();
        assert_eq!(
            watchdog.step(at(1.0), &Event::TreeDead { in_time: false }),
            [Action::Lost(FIRST, LossReason::Unproven)]
        );
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::Unproven));
        let mut watchdog = self::watchdog();
        watchdog.step(at(1.0), &Event::TreeDead { in_time: true });
        assert_eq!(watchdog.state(), LockState::Held);
        assert_eq!(watchdog.due_at(), None);
    }
    /// "The command is stopped in time for the lock whose proof is the oldest, and when any of the locks is lost."
    #[test]
    fn the_oldest_proof_of_several_locks_sets_the_deadlines() {
        let mut watchdog = Watchdog::new(vec![lock(at(1.0)), lock(at(0.0))]);
        assert_eq!(watchdog.deadlines().kill_at, at(8.5), "of the second");
        let proof = |lock, sent_at| Event::Lock(lock, LockEvent::Renewed(renewal(sent_at)));
        let actions = watchdog.step(at(2.1), &proof(FIRST, at(2.0)));
        assert_eq!(actions, [], "the second has the earlier deadlines");
        let actions = watchdog.step(at(3.1), &proof(SECOND, at(3.0)));
        let slack = Duration::from_millis(3400);
        let deadlines = watchdog.deadlines();
        assert_eq!(deadlines.kill_at, at(10.5), "of the first");
        let extend = Action::Extend { beat: 1, deadlines };
        assert_eq!(actions, [Action::Proven { slack }, extend]);
        let actions = watchdog.step(at(8.5), &proof(SECOND, at(8.0)));
        let lost = Action::Lost(FIRST, LossReason::Unproven);
        assert_eq!(actions.first(), Some(&lost));
    }

    #[test]
    fn the_loss_of_any_lock_stops_the_command_and_is_named() {
        let mut watchdog = Watchdog::new(vec![lock(at(0.0)), lock(at(0.0))]);
        let gone = Event::Lock(SECOND, LockEvent::Lost(LossReason::KeyGone));
        let actions = watchdog.step(at(1.0), &gone);
        let lost = Action::Lost(SECOND, LossReason::KeyGone);
        assert_eq!(actions.first(), Some(&lost));
        assert_eq!(actions.last(), Some(&Action::Stop));
        let proof = Event::Lock(FIRST, LockEvent::Renewed(renewal(at(1.0))));
        assert_eq!(watchdog.step(at(1.1), &proof), []);
        assert_eq!(
            watchdog.state(),
            LockState::Lost(LossReason::KeyGone),
            "a loss is final"
        );
    }

    #[test]
    fn each_of_several_locks_is_renewed_and_the_guard_hears_of_it_once() {
        let mut watchdog = Watchdog::new(vec![lock(at(0.0)), lock(at(0.0))]);
        let actions = watchdog.step(at(2.2), &Event::Tick);
        assert!(matches!(
            actions[..],
            [
                Action::Extend { .. },
                Action::Renew(FIRST),
                Action::Renew(SECOND)
            ]
        ));
    }
}
