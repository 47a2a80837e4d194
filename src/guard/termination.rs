//! The times at which the tree is stopped and killed: orders and the clock in, steps out.
//! It must not know processes, signals or descriptors.

use std::time::Duration;

use super::Cause;
use crate::core::time::{Deadlines, Instant};

/// Time that the rest of the tree gets to end by itself after the command, as process substitutions do.
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the whole tree to stop.
    Stop,
    /// The command has left processes behind: apply the policy on leftovers.
    Leftovers,
    /// Run one round of the kill loop.
    Kill,
}

/// Moves only forwards, except from `Draining` back to `Running` when dlock waits for leftovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Draining { until_at: Instant },
    Stopping { since_at: Instant },
    Killing { again_at: Instant },
}

/// The end of a started command's tree.
#[derive(Debug)]
pub(super) struct Termination {
    phase: Phase,
    deadlines: Deadlines,
    /// Time between the stop signal and the kill.
    grace: Duration,
    cause: Cause,
}

impl Termination {
    pub(super) fn new(deadlines: Deadlines, grace: Duration) -> Self {
        Self {
            phase: Phase::Running,
            deadlines,
            grace,
            cause: Cause::Command,
        }
    }

    /// The cause of the end; `Command` until there is another.
    pub(super) fn cause(&self) -> Cause {
        self.cause
    }

    /// Whether the tree is being stopped or killed.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. } | Phase::Killing { .. })
    }

    pub(super) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Moves the deadlines later. Earlier ones change nothing, nor do any after a deadline has passed or a stop was ordered.
    pub(super) fn extend(&mut self, deadlines: Deadlines) {
        if self.cause == Cause::Command && deadlines.kill_at > self.deadlines.kill_at {
            self.deadlines = deadlines;
        }
    }

    /// Called when the command has ended and other processes of its tree have not.
    pub(super) fn drain(&mut self, now: Instant) {
        if self.phase == Phase::Running {
            self.phase = Phase::Draining {
                until_at: now + DRAIN_TIME,
            };
        }
    }

    /// Called when dlock waits for leftovers: from now on only the deadlines count.
    pub(super) fn wait(&mut self) {
        if matches!(self.phase, Phase::Draining { .. }) {
            self.phase = Phase::Running;
        }
    }

    /// Begins the stop; the first cause is kept. Returns whether the stop signal must still be sent.
    pub(super) fn stop(&mut self, cause: Cause, now: Instant) -> bool {
        self.set_cause(cause);
        let first = matches!(self.phase, Phase::Running | Phase::Draining { .. });
        if first {
            self.phase = Phase::Stopping { since_at: now };
        }
        first
    }

    /// Begins to kill: from now on [`Step::Kill`] is due.
    pub(super) fn kill(&mut self, cause: Cause, now: Instant) {
        self.set_cause(cause);
        if !matches!(self.phase, Phase::Killing { .. }) {
            self.phase = Phase::Killing { again_at: now };
        }
    }

    /// Sets the time of the next round.
    pub(super) fn kill_again(&mut self, at: Instant) {
        self.phase = Phase::Killing { again_at: at };
    }

    /// The next time at which [`step`](Self::step) returns a step, if no order comes.
    pub(super) fn due_at(&self) -> Instant {
        let Deadlines { stop_at, kill_at } = self.deadlines;
        match self.phase {
            Phase::Running => stop_at.min(kill_at),
            Phase::Draining { until_at } => until_at.min(stop_at).min(kill_at),
            Phase::Stopping { since_at } => kill_at.min(since_at + self.grace),
            Phase::Killing { again_at } => again_at,
        }
    }

    /// The step that is due at `now`. While killing, every call returns a round, as each wake-up may have a cause.
    pub(super) fn step(&mut self, now: Instant) -> Option<Step> {
        match self.phase {
            Phase::Killing { .. } => {}
            _ if now >= self.deadlines.kill_at => self.kill(Cause::Deadline, now),
            Phase::Running | Phase::Draining { .. } if now >= self.deadlines.stop_at => {
                self.stop(Cause::Deadline, now);
                return Some(Step::Stop);
            }
            Phase::Draining { until_at } if now >= until_at => return Some(Step::Leftovers),
            Phase::Stopping { since_at } if now >= since_at + self.grace => {
                self.kill(self.cause, now);
            }
            _ => return None,
        }
        Some(Step::Kill)
    }

    fn set_cause(&mut self, cause: Cause) {
        if self.cause == Cause::Command {
            self.cause = cause;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    fn until(stop: u64, kill: u64) -> Deadlines {
        Deadlines {
            stop_at: at(stop),
            kill_at: at(kill),
        }
    }

    fn termination() -> Termination {
        Termination::new(until(20, 25), GRACE)
    }

    #[test]
    fn asks_at_the_first_deadline_and_kills_at_the_second() {
        let mut termination = termination();
        assert_eq!(
            (termination.due_at(), termination.step(at(19))),
            (at(20), None)
        );
        assert_eq!(termination.step(at(20)), Some(Step::Stop));
        assert_eq!(
            (termination.due_at(), termination.step(at(24))),
            (at(25), None)
        );
        assert_eq!(termination.step(at(25)), Some(Step::Kill));
        assert_eq!(termination.cause(), Cause::Deadline);
    }

    #[test]
    fn kills_at_once_when_it_wakes_too_late_to_ask() {
        let mut termination = termination();
        assert_eq!(termination.step(at(1000)), Some(Step::Kill));
        assert_eq!(termination.cause(), Cause::Deadline);
    }

    #[test]
    fn deadlines_only_move_later_and_not_at_all_once_it_stops() {
        let mut termination = termination();
        termination.extend(until(10, 15));
        assert_eq!(termination.due_at(), at(20));
        termination.extend(until(30, 35));
        assert_eq!(termination.due_at(), at(30));
        assert_eq!(termination.step(at(30)), Some(Step::Stop));
        termination.extend(until(90, 95));
        assert_eq!(termination.due_at(), at(35));
    }

    #[test]
    fn an_order_gives_the_grace_but_never_past_the_second_deadline() {
        let mut early = termination();
        assert!(early.stop(Cause::Ordered, at(10)));
        assert!(!early.stop(Cause::Ordered, at(12)), "asked once only");
        assert_eq!(early.due_at(), at(15));
        assert_eq!(early.step(at(15)), Some(Step::Kill));
        assert_eq!(early.cause(), Cause::Ordered);

        let mut late = termination();
        assert!(late.stop(Cause::Ordered, at(23)));
        late.extend(until(90, 95));
        assert_eq!(late.due_at(), at(25));
    }

    #[test]
    fn killing_continues_whatever_else_is_ordered() {
        let mut termination = termination();
        termination.kill(Cause::Ordered, at(3));
        assert_eq!(
            (termination.due_at(), termination.step(at(3))),
            (at(3), Some(Step::Kill))
        );
        termination.kill_again(at(4));
        assert!(!termination.stop(Cause::Deadline, at(3)));
        assert_eq!(
            (termination.due_at(), termination.step(at(3))),
            (at(4), Some(Step::Kill)),
            "at every wake-up"
        );
        assert_eq!(termination.cause(), Cause::Ordered);
    }

    #[test]
    fn leftovers_get_a_moment_of_their_own() {
        let mut termination = termination();
        termination.drain(at(10));
        assert_eq!(
            (termination.due_at(), termination.step(at(10))),
            (at(10) + DRAIN_TIME, None)
        );
        assert_eq!(termination.step(at(11)), Some(Step::Leftovers));
        termination.wait();
        assert_eq!(
            (termination.due_at(), termination.step(at(11))),
            (at(20), None)
        );
        assert_eq!(termination.step(at(20)), Some(Step::Stop));
        assert_eq!(termination.cause(), Cause::Deadline);
    }

    #[test]
    fn stopping_leftovers_is_no_reason_to_refuse_later_deadlines() {
        let mut termination = termination();
        termination.drain(at(18));
        assert_eq!(termination.step(at(19)), Some(Step::Leftovers));
        assert!(termination.stop(Cause::Command, at(19)));
        termination.extend(until(21, 26));
        assert_eq!(
            (termination.due_at(), termination.step(at(22))),
            (at(24), None)
        );
        assert_eq!(termination.step(at(24)), Some(Step::Kill));
        assert_eq!(termination.cause(), Cause::Command);
    }

    /// An order or an event of the guard's own.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Tick,
        /// Deadlines: milliseconds from now to the kill, and from the stop to the kill.
        Extend(u64, u64),
        Order,
        Kill,
        /// dlock is dead.
        Orphan,
        Drain,
        Wait,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => Just(Event::Tick),
            3 => (0..60_000_u64, 0..20_000_u64).prop_map(|(kill, grace)| Event::Extend(kill, grace)),
            1 => Just(Event::Order),
            1 => Just(Event::Kill),
            1 => Just(Event::Orphan),
            1 => Just(Event::Drain),
            1 => Just(Event::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// "Killed at the deadline at the latest", whatever the order of events and however late the guard wakes.
        #[test]
        fn a_kill_is_due_at_the_deadline_and_a_stop_precedes_it(
            grace in 0..20_000_u64,
            events in vec((event(), prop_oneof![8 => 0..3000_u64, 1 => 0..100_000_u64, 1 => Just(10_u64.pow(12))]), 1..80),
        ) {
            let grace = Duration::from_millis(grace);
            let mut termination = Termination::new(until(20, 25), grace);
            let (mut now, mut latest) = (at(0), until(20, 25));
            let (mut asked, mut killing) = (false, false);
            for (event, later) in events {
                now = now + Duration::from_millis(later);
                let was = (termination.is_ending(), termination.cause());
                match event {
                    Event::Tick => {}
                    Event::Extend(kill, before) => {
                        let kill_at = now + Duration::from_millis(kill);
                        let sent = Deadlines { stop_at: kill_at - Duration::from_millis(before), kill_at };
                        termination.extend(sent);
                        if sent.kill_at > latest.kill_at && was.1 == Cause::Command {
                            latest = sent;
                        }
                    }
                    Event::Order => asked |= termination.stop(Cause::Ordered, now),
                    Event::Orphan => asked |= termination.stop(Cause::Deadline, now),
                    Event::Kill => {
                        killing = true;
                        termination.kill(Cause::Ordered, now);
                    }
                    Event::Drain => termination.drain(now),
                    Event::Wait => termination.wait(),
                }
                prop_assert!(killing || termination.due_at() <= latest.kill_at, "it wakes in time");
                let step = termination.step(now);
                asked |= step == Some(Step::Stop);
                if step == Some(Step::Kill) {
                    prop_assert!(
                        killing || asked || latest.kill_at <= now,
                        "a kill follows a stop, an order to kill, or a late wake-up"
                    );
                    killing = true;
                }
                prop_assert!(!killing || step == Some(Step::Kill), "a kill is never taken back");
                prop_assert!(killing || now < latest.kill_at, "at the deadline it kills");
                prop_assert!(
                    killing || termination.is_ending() || now < latest.stop_at,
                    "at the first deadline it asks"
                );
                prop_assert!(!was.0 || termination.is_ending(), "an end is never taken back");
                if killing {
                    termination.kill_again(now);
                }
            }
        }
    }
}
