//! The holder's decisions: an [`Event`] in, [`Action`]s out.
//! It must not know a clock, etcd, a process id or a signal's meaning.

use std::fmt;
use std::mem;
use std::time::Duration;

use super::heartbeat::{Heartbeat, Watch};
use super::proof::{Inconclusive, LossReason, Ownership, Renewal, Verdict};
use super::text::format_duration;
use super::time::{Deadlines, Instant, LeaseTimings};

/// After an order to kill, a guard that sends no answer within this is taken as dead.
const GUARD_ACK_TIMEOUT: Duration = Duration::from_millis(250);

/// An input of the watchdog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time that [`Watchdog::due_at`] returned has come.
    Tick,
    /// A renewal was answered.
    Renewed(Renewal),
    /// A renewal was refused or not answered in time.
    RenewalFailed,
    /// A check showed that the lock, which does not expire, is still held.
    StillHeld,
    /// A watch reported that our key was deleted or replaced.
    Lost(LossReason),
    /// The watch on our key was opened, or is closed.
    Watch(Watch),
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
    /// Send a renewal; its result comes back as `Renewed` or `RenewalFailed`.
    Renew,
    /// Send the deadlines to the guard; it answers with the same number.
    Extend { beat: u64, deadlines: Deadlines },
    /// The guard must stop everything, and kill it when the grace or the deadline has passed.
    Stop,
    /// The guard must kill everything now.
    Kill,
    /// The guard does not do its work: kill it and the whole tree.
    KillTree,
    /// The state is [`LockState::Lost`] from now on.
    Lost(LossReason),
    /// The state is [`LockState::Unguarded`] from now on.
    Unguarded,
    /// The command has run for its maximum time, and is stopped.
    MaxHold,
    /// A renewal moved the deadlines when this was left until the old `stop_at`.
    Proven { slack: Duration },
    /// A renewal was answered but does not count.
    Inconclusive(Inconclusive),
}

/// For the log of -vv.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("a moment has come"),
            Self::Renewed(_) => f.write_str("a renewal was answered"),
            Self::RenewalFailed => f.write_str("a renewal failed"),
            Self::StillHeld => f.write_str("the lock is still held"),
            Self::Lost(reason) => write!(f, "the lock is lost: {}", reason.describe()),
            Self::Watch(Watch::Open) => f.write_str("the watch is open"),
            Self::Watch(Watch::Reopening) => f.write_str("the watch is being reopened"),
            Self::Watch(Watch::Broken) => f.write_str("the watch is broken"),
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
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renew => f.write_str("renew the lease"),
            Self::Extend { beat, .. } => write!(f, "send deadline {beat} to the guard"),
            Self::Stop => f.write_str("stop the command"),
            Self::Kill => f.write_str("kill the command"),
            Self::KillTree => f.write_str("kill the command and its guard"),
            Self::Lost(_) => f.write_str("report the loss"),
            Self::Unguarded => f.write_str("report that no guard is left"),
            Self::MaxHold => f.write_str("report the end of --max-hold"),
            Self::Proven { slack } => {
                write!(f, "the lock is proven, {} early", format_duration(*slack))
            }
            Self::Inconclusive(doubt) => write!(f, "no proof: {}", doubt.describe()),
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

/// Watches one hold of the lock, from the start of the command until its last process is dead.
///
/// Its rules:
/// 1. a deadline moves only by a proof, and only to the result of [`LeaseTimings::deadlines`] for the time of its
///    sending;
/// 2. a loss is final, and nothing is renewed after it;
/// 3. a guard that sends no answer is replaced by [`Action::KillTree`], once, and renewals end;
/// 4. after a `Tick` at [`Watchdog::due_at`], that time moves on or becomes `None`.
#[derive(Clone, Debug)]
pub struct Watchdog {
    timings: LeaseTimings,
    /// The entry and cluster that a renewal must match, if there is a lease.
    ownership: Option<Ownership>,
    deadlines: Deadlines,
    /// The send time of the last proof.
    proven_at: Instant,
    heartbeat: Heartbeat,
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
    /// Called when the command starts at `deadlines`, which follow from the proof sent at `proven_at`. `heartbeat` is
    /// that of the wait until now: it knows whether the watch is open.
    pub fn new(
        timings: LeaseTimings,
        ownership: Ownership,
        proven_at: Instant,
        heartbeat: Heartbeat,
    ) -> Self {
        Self {
            ownership: Some(ownership),
            deadlines: timings.deadlines(proven_at),
            heartbeat,
            ..Self::without_lease(timings, proven_at, 0)
        }
    }

    /// The same for a lock that does not expire, acquired at `won_at`. The TTL of `timings` only sets the interval of the
    /// checks of the lock and of the guard.
    pub fn without_lease(timings: LeaseTimings, won_at: Instant, seed: u64) -> Self {
        Self {
            timings,
            ownership: None,
            deadlines: Deadlines::NEVER,
            proven_at: won_at,
            heartbeat: Heartbeat::new(timings, won_at, seed),
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

    /// The send time of the last proof.
    pub const fn proven_at(&self) -> Instant {
        self.proven_at
    }

    /// The deadlines in force.
    pub const fn deadlines(&self) -> Deadlines {
        self.deadlines
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
            let all = [
                self.heartbeat.due_at(),
                self.max_hold_at,
                Some(self.deadlines.stop_at),
            ];
            return all.into_iter().flatten().min();
        }
        self.check_guard_at
    }

    /// Decides the actions that follow from `event`, in this order; an announcement precedes its orders.
    pub fn step(&mut self, now: Instant, event: &Event) -> Vec<Action> {
        if !self.tree_dead {
            // A renewal that arrives at or after the stop deadline is too late.
            if self.state == LockState::Held && self.deadlines.stop_at <= now {
                self.lose(LossReason::Unproven, now);
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
                    self.set_lost(LossReason::Unproven);
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
            (Event::Renewed(renewal), LockState::Held) => self.on_renewal(now, renewal),
            (Event::RenewalFailed, LockState::Held) => self.heartbeat.failed(now),
            (Event::StillHeld, LockState::Held) => self.heartbeat.proven(now),
            (Event::Lost(loss), LockState::Held) => self.lose(*loss, now),
            (Event::Watch(watch), LockState::Held) => self.heartbeat.watch(now, *watch),
            (Event::Tick, LockState::Held) => {
                if self.max_hold_at.is_some_and(|at| at <= now) {
                    self.actions.push(Action::MaxHold);
                    self.stop_early();
                }
                self.renew(now);
            }
            (Event::ReleaseRequested, LockState::Held) if !self.stopped => self.stop_early(),
            (Event::Tick, LockState::Lost(_)) => self.check_guard(now),
            (
                Event::Tick
                | Event::Renewed(_)
                | Event::RenewalFailed
                | Event::StillHeld
                | Event::Lost(_)
                | Event::Watch(_)
                | Event::ReleaseRequested,
                _,
            ) => {}
        }
    }

    fn on_renewal(&mut self, now: Instant, renewal: &Renewal) {
        let Some(ownership) = &mut self.ownership else {
            return;
        };
        match ownership.verify(renewal) {
            Verdict::Proven(ttl) => {
                self.heartbeat.proven(renewal.sent_at);
                let proven = self.timings.granted(ttl).deadlines(renewal.sent_at);
                if proven.kill_at > self.deadlines.kill_at {
                    let slack = self.deadlines.stop_at.since(now);
                    self.actions.push(Action::Proven { slack });
                    self.deadlines = proven;
                    self.proven_at = renewal.sent_at;
                    self.extend();
                }
            }
            Verdict::Inconclusive(doubt) => {
                self.heartbeat.failed(now);
                self.actions.push(Action::Inconclusive(doubt));
            }
            Verdict::Lost(loss) => self.lose(loss, now),
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
        if !self.heartbeat.start_renewal(now) {
            return;
        }
        let limit = self.timings.renew_interval() * 2;
        if self
            .silent_since
            .is_some_and(|since| now.since(since) >= limit)
        {
            return self.lose_guard();
        }
        self.silent_since.get_or_insert(now);
        self.extend();
        self.actions.push(Action::Renew);
    }

    fn extend(&mut self) {
        self.sent += 1;
        self.actions.push(Action::Extend {
            beat: self.sent,
            deadlines: self.deadlines,
        });
    }

    fn set_lost(&mut self, loss: LossReason) {
        self.state = LockState::Lost(loss);
        self.actions.push(Action::Lost(loss));
    }

    fn lose(&mut self, loss: LossReason, now: Instant) {
        self.set_lost(loss);
        self.extend();
        let mut kill_at = self.deadlines.kill_at;
        // An unproven lock's command is stopped by the guard itself, which has until `kill_at` for it.
        if loss != LossReason::Unproven {
            // Another client took the lock. The next waiter allows for the grace (`core::lock_delay::lock_delay`).
            kill_at = kill_at.min(now + self.timings.grace());
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
    use super::super::proof::tests::{ownership, renewal};
    use super::super::proof::{Header, tests::HEADER};
    use super::super::time::tests::at;
    use super::*;

    /// TTL 10 s, grace 2 s, proven at 0: renewals from 1.8 s, stop at 6.5 s, kill at 8.5 s.
    fn watchdog() -> Watchdog {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        let heartbeat = Heartbeat::new(timings, at(0.0), 1);
        Watchdog::new(timings, ownership(), at(0.0), heartbeat)
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
        assert_eq!(actions.last(), Some(&Action::Renew));
        answer(watchdog, due_at, &actions);
        due_at
    }

    #[test]
    fn a_proof_moves_the_deadline_from_the_time_of_its_sending() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        let actions = watchdog.step(
            sent_at + Duration::from_secs(3),
            &Event::Renewed(renewal(sent_at)),
        );
        let deadlines = watchdog.deadlines();
        assert_eq!(watchdog.proven_at(), sent_at);
        assert_eq!(deadlines.kill_at, sent_at + Duration::from_millis(8500));
        assert_eq!(deadlines.stop_at, sent_at + Duration::from_millis(6500));
        let slack = at(3.5).since(sent_at);
        let extend = Action::Extend { beat: 2, deadlines };
        assert_eq!(actions, [Action::Proven { slack }, extend]);
    }

    #[test]
    fn without_a_lease_only_a_third_party_ends_the_lock() {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        let mut watchdog = Watchdog::without_lease(timings, at(0.0), 1);
        assert_eq!(watchdog.deadlines(), Deadlines::NEVER);
        for _ in 0..1000 {
            let due_at = renew_once(&mut watchdog);
            assert_eq!(watchdog.step(due_at, &Event::StillHeld), []);
        }
        let late = watchdog.due_at().unwrap();
        assert!(late > at(1800.0));
        // A dlock that was stopped for a day checks again once.
        let after = late + Duration::from_hours(24);
        let actions = watchdog.step(after, &Event::Tick);
        assert!(matches!(
            actions[..],
            [Action::Extend { .. }, Action::Renew]
        ));
        answer(&mut watchdog, after, &actions);
        assert_eq!(watchdog.state(), LockState::Held);
        let actions = watchdog.step(after, &Event::Lost(LossReason::FileGone));
        assert!(matches!(
            actions[..],
            [
                Action::Lost(LossReason::FileGone),
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
        watchdog.step(sent_at, &Event::Renewed(shorter));
        let kill_at = watchdog.deadlines().kill_at;
        assert_eq!(kill_at, sent_at + Duration::from_millis(7600));
    }

    #[test]
    fn a_late_answer_to_an_early_request_moves_nothing_back() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        watchdog.step(sent_at, &Event::Renewed(renewal(sent_at)));
        let before = watchdog.deadlines();
        assert!(
            watchdog
                .step(at(3.0), &Event::Renewed(renewal(at(0.5))))
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
            watchdog.step(sent_at + Duration::from_secs(1), &Event::Renewed(doubtful)),
            [Action::Inconclusive(Inconclusive::OtherTerm)]
        );
        assert_eq!(watchdog.deadlines(), before);
        assert!(watchdog.due_at().unwrap() <= sent_at + Duration::from_secs(1));
    }

    #[test]
    fn without_a_proof_the_lock_is_lost_at_the_stop_and_a_proof_at_that_moment_is_too_late() {
        let mut watchdog = watchdog();
        let sent_at = renew_once(&mut watchdog);
        let actions = watchdog.step(at(6.5), &Event::Renewed(renewal(sent_at)));
        assert!(matches!(
            actions[..],
            [Action::Lost(LossReason::Unproven), Action::Extend { .. }]
        ));
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::Unproven));
        assert_eq!(watchdog.deadlines().kill_at, at(8.5));
    }

    #[test]
    fn a_huge_jump_of_time_is_a_loss_and_not_a_renewal() {
        let mut watchdog = watchdog();
        let actions = watchdog.step(at(9999.0), &Event::Tick);
        assert!(!actions.contains(&Action::Renew));
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::Unproven));
    }

    #[test]
    fn a_key_that_is_gone_stops_and_kills_after_the_grace() {
        let mut watchdog = watchdog();
        let actions = watchdog.step(at(1.0), &Event::Lost(LossReason::KeyGone));
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
        let broken = Event::Watch(Watch::Broken);
        assert!(watchdog.step(at(1.0), &broken).is_empty());
        assert!(watchdog.due_at().is_some_and(|due_at| due_at <= at(1.0)));
        let actions = watchdog.step(at(1.0), &Event::Tick);
        assert_eq!(actions.last(), Some(&Action::Renew));
        watchdog.step(at(1.1), &Event::Renewed(renewal(at(1.0))));
        assert!(watchdog.due_at().is_some_and(|due_at| due_at < at(2.0)));
        watchdog.step(at(1.2), &Event::Watch(Watch::Open));
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
        watchdog.step(sent_at, &Event::Renewed(renewal(sent_at)));
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
        lost.step(at(1.0), &Event::Lost(LossReason::KeyGone));
        assert!(lost.step(at(1.0), &Event::ReleaseRequested).is_empty());
    }

    #[test]
    fn nothing_is_renewed_after_a_loss() {
        let mut watchdog = watchdog();
        watchdog.step(at(1.0), &Event::Lost(LossReason::KeyTaken));
        for seconds in 1..100 {
            let now = at(f64::from(seconds));
            let mut actions = watchdog.step(now, &Event::Tick);
            actions.extend(watchdog.step(now, &Event::Renewed(renewal(now))));
            assert!(!actions.contains(&Action::Renew));
        }
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::KeyTaken));
    }

    #[test]
    fn a_guard_that_does_not_answer_an_order_is_replaced_once() {
        let mut watchdog = watchdog();
        watchdog.step(at(1.0), &Event::Lost(LossReason::KeyGone));
        let due_at = watchdog.due_at().unwrap();
        assert_eq!(due_at, at(3.0));
        assert_eq!(watchdog.step(due_at, &Event::Tick), [Action::KillTree]);
        assert_eq!(watchdog.due_at(), None);
    }

    #[test]
    fn a_guard_that_answers_is_left_to_its_work() {
        let mut watchdog = watchdog();
        let actions = watchdog.step(at(1.0), &Event::Lost(LossReason::KeyGone));
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
            assert!(actions.contains(&Action::Renew));
            watchdog.step(due_at, &Event::Renewed(renewal(due_at)));
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
            [Action::Lost(LossReason::Unproven)]
        );
        assert_eq!(watchdog.state(), LockState::Lost(LossReason::Unproven));
        let mut watchdog = self::watchdog();
        watchdog.step(at(1.0), &Event::TreeDead { in_time: true });
        assert_eq!(watchdog.state(), LockState::Held);
        assert_eq!(watchdog.due_at(), None);
    }
}
