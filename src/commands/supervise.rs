//! The time while the lock is held: passes events to the watchdog and performs its actions.
//! It must not know how the lock is acquired or released.

use std::io;
use std::time::Duration;

use tracing::{Level, debug, enabled, info, warn};

use super::guard_io::GuardIo;
use super::locked_run::LockedRun;
use super::run_end::RunEnd;
use super::signals::Signals;
use crate::core::holder::StopKind;
use crate::core::name::LockName;
use crate::core::proof::{Inconclusive, LossReason};
use crate::core::proven_lock::{LockEvent, LockIndex};
use crate::core::request::Leftovers;
use crate::core::run_stats::{Outcome, RunStats};
use crate::core::text::{format_duration, format_measured, printable, seconds};
use crate::core::watchdog::{Action, Event, LockState, Watchdog};
use crate::guard::{Cause, GuardReport, Signal, Survivor};
use crate::lock::backend::{LockSession, SessionEvent, next_event};
use crate::output::exit::Exit;
use crate::output::systemd;
use crate::output::{events, log};
use crate::sys::clock;
use crate::sys::daemonize::Background;
use crate::sys::process::ExitStatus;

/// Time that dlock itself tries to kill the tree of a dead guard.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// The end of the command.
#[derive(Debug)]
pub(crate) enum SupervisionEnd {
    /// The whole tree is dead; `None` if that says nothing about the command.
    Dead(Option<RunEnd>),
    /// The command could not start.
    NotStarted { errno: i32 },
    /// Processes that do not die.
    Survivors(Vec<Survivor>),
}

/// The state while the locks are held.
pub(crate) struct Supervision<'a, S> {
    pub(crate) run: &'a LockedRun<'a>,
    pub(crate) watchdog: Watchdog,
    /// One of each lock.
    pub(crate) sessions: &'a mut [S],
    pub(crate) stats: &'a mut RunStats,
    pub(crate) guard_io: &'a mut GuardIo,
    pub(crate) signals: &'a mut Signals,
    /// Policy for processes that the command leaves behind.
    pub(crate) policy: Leftovers,
    /// Exit status of the command, if it has ended and left others behind.
    pub(crate) leftovers: Option<ExitStatus>,
    /// Why the last renewal proved nothing; `None` after a proof.
    pub(crate) last_failure: Option<String>,
    /// The end of the run, since the command is stopped.
    pub(crate) stopped: Option<RunEnd>,
    /// The link to the parent that waits until the command runs.
    pub(crate) background: Option<&'a Background>,
}

/// Everything that can happen while the lock is held.
enum Input {
    Report(GuardReport),
    Due,
    SessionEvent(LockIndex, SessionEvent),
    Signal(Signal),
}

impl<'a, S: LockSession> Supervision<'a, S> {
    /// Runs until the whole tree is dead, or the rest cannot be killed.
    pub(crate) async fn run(&mut self) -> SupervisionEnd {
        loop {
            // The order matters: the guard's actions are done already, and a deadline is older than the answer that arrives with
            // it.
            let input = tokio::select! {
                biased;
                report = self.guard_io.report() => Input::Report(report),
                () = clock::until(self.watchdog.due_at()) => Input::Due,
                (lock, event) = next_event(self.sessions, |session| session) => Input::SessionEvent(lock, event),
                signal = self.signals.next() => Input::Signal(signal),
            };
            if let Some(end) = self.handle(input) {
                return end;
            }
        }
    }

    fn handle(&mut self, input: Input) -> Option<SupervisionEnd> {
        match input {
            Input::Due => self.step(&Event::Tick),
            Input::SessionEvent(lock, event) => self.on_session_event(lock, event),
            Input::Signal(signal) => {
                self.on_signal(signal);
                None
            }
            Input::Report(report) => self.on_report(report),
        }
    }

    fn step(&mut self, event: &Event) -> Option<SupervisionEnd> {
        let actions = self.watchdog.step(clock::now(), event);
        if enabled!(Level::DEBUG) {
            let actions: Vec<String> = actions.iter().map(ToString::to_string).collect();
            let all = actions.join(", ");
            debug!(
                "{event}: {}",
                if all.is_empty() {
                    "nothing to do"
                } else {
                    &all
                }
            );
        }
        let stops = actions
            .iter()
            .any(|action| matches!(action, Action::Stop | Action::Lost(..) | Action::Unguarded));
        // The processes may be dead a moment later, so they are listed now and logged after the signal.
        let living = (stops && enabled!(Level::INFO)).then(|| self.guard_io.guard.living());
        let mut end = None;
        for action in actions {
            end = end.or(self.perform(action));
        }
        if let Some(living) = living {
            self.log_stop(&living);
        }
        end
    }

    fn perform(&mut self, action: Action) -> Option<SupervisionEnd> {
        let guard = &mut self.guard_io.guard;
        match action {
            Action::Renew(lock) => self.sessions[lock.0].renew(),
            Action::Extend { beat, deadlines } => check_sent(guard.extend(beat, deadlines)),
            Action::Stop => check_sent(guard.stop()),
            Action::Kill => check_sent(guard.kill()),
            Action::KillTree => return Some(self.kill_tree()),
            Action::Lost(lock, loss) => self.log_loss(lock, loss),
            // Reported at the end, as an error.
            Action::Unguarded => {}
            Action::MaxHold => {
                let end = RunEnd::new(Outcome::MaxHold, Exit::TimedOut, "stopped at --max-hold");
                self.stopped = Some(end);
                warn!(
                    event = events::MAX_HOLD,
                    lock = %self.run.name,
                    "the command has run for the time of --max-hold under lock '{}': stopping the command",
                    self.run.name
                );
            }
            Action::Proven { slack } => {
                self.last_failure = None;
                self.stats.proven(slack);
            }
            Action::Inconclusive(lock, doubt) => self.log_inconclusive(lock, doubt),
        }
        None
    }

    fn kill_tree(&mut self) -> SupervisionEnd {
        let survivors = self.guard_io.guard.kill_tree(KILL_TIMEOUT);
        if survivors.is_empty() {
            SupervisionEnd::Dead(self.stopped.take())
        } else {
            SupervisionEnd::Survivors(survivors)
        }
    }

    fn on_session_event(&mut self, lock: LockIndex, event: SessionEvent) -> Option<SupervisionEnd> {
        let name = self.name_of(lock);
        let event = match event {
            SessionEvent::Renewed(renewal) => LockEvent::Renewed(renewal),
            SessionEvent::Failed { endpoint, cause } => {
                info!(
                    event = events::RENEWAL_FAILED,
                    lock = %name,
                    endpoint,
                    cause,
                    left_seconds = seconds(self.left()),
                    "cannot renew at '{endpoint}', {} left: {cause}",
                    format_duration(self.left())
                );
                self.last_failure = Some(format!("'{endpoint}': {cause}"));
                LockEvent::RenewalFailed
            }
            SessionEvent::StillHeld => LockEvent::StillHeld,
            SessionEvent::Lost(loss) => LockEvent::Lost(loss),
            SessionEvent::Watch(watch) => LockEvent::Watch(watch),
            SessionEvent::StopRequested(request)
                if request.to == StopKind::Stop && self.stopped.is_none() =>
            {
                let by = request.describe();
                let reason = self.run.reason(name, &format!("asked by {by}"));
                self.stopped = Some(RunEnd::new(Outcome::Asked, Exit::Lost, reason));
                warn!(
                    event = events::RELEASE_REQUESTED,
                    lock = %name,
                    by,
                    "asked to release lock '{name}' by {by}: stopping the command",
                );
                return self.step(&Event::ReleaseRequested);
            }
            // A repeated request, or an event for waiters.
            SessionEvent::StopRequested(_) | SessionEvent::QueueChanged => return None,
        };
        self.step(&Event::Lock(lock, event))
    }

    fn name_of(&self, lock: LockIndex) -> &'a LockName {
        &self.run.names[lock.0]
    }

    fn on_signal(&mut self, signal: Signal) {
        debug!("received {signal}");
        let guard = &mut self.guard_io.guard;
        match self.leftovers {
            None => check_sent(guard.forward(signal)),
            // The command has ended and cannot react; the processes that it left have to end.
            Some(_) if signal.ends() => check_sent(guard.stop()),
            Some(_) if signal.stops() => crate::sys::signals::stop_by(signal.number),
            Some(_) => {}
        }
    }

    fn on_report(&mut self, report: GuardReport) -> Option<SupervisionEnd> {
        match report {
            GuardReport::Started => {
                if let Some(background) = self.background.take() {
                    return self.detach(background);
                }
                systemd::ready(&format!("holding the lock {}", self.run.shown()));
                None
            }
            GuardReport::Stopped(signal) => {
                crate::sys::signals::stop_by(signal);
                check_sent(self.guard_io.guard.resumed());
                None
            }
            GuardReport::Ack(beat) => self.step(&Event::Ack(beat)),
            GuardReport::Leftovers { status, count } => {
                let (policy, what) = match self.policy {
                    Leftovers::Kill => ("kill", "stopping"),
                    Leftovers::Wait => ("wait", "waiting for"),
                    Leftovers::Leave => ("leave", "leaving"),
                };
                let line = format!(
                    "the command has ended, {what} {count} process(es) that it left behind"
                );
                let lock = self.run.name.to_string();
                if self.policy == Leftovers::Kill {
                    // The command itself has seen no error: only this says that the rest of its work is missing.
                    warn!(target: log::KEPT, event = events::LEFTOVERS, lock, count, policy, "{line}");
                } else {
                    info!(event = events::LEFTOVERS, lock, count, policy, "{line}");
                }
                self.leftovers = Some(status);
                None
            }
            GuardReport::Ended { status, cause } => {
                let in_time = cause != Cause::Deadline;
                self.step(&Event::TreeDead { in_time });
                if cause != Cause::Command {
                    self.log_killed(status);
                }
                if cause == Cause::Command && self.watchdog.state() == LockState::Held {
                    self.stopped = None;
                }
                let end = self.stopped.take();
                let end = end.or_else(|| status.map(RunEnd::completed));
                Some(SupervisionEnd::Dead(end))
            }
            GuardReport::CannotStart { errno } => {
                self.step(&Event::TreeDead { in_time: true });
                Some(SupervisionEnd::NotStarted { errno })
            }
            GuardReport::Survivors(survivors) => Some(SupervisionEnd::Survivors(survivors)),
            GuardReport::GuardDead => self.step(&Event::GuardDead),
        }
    }

    /// Leaves the caller's stderr, and reports to the foreground that the lock is held.
    fn detach(&mut self, background: &Background) -> Option<SupervisionEnd> {
        if !background.has_log() {
            log::use_syslog();
        }
        if background.ready() {
            return None;
        }
        let unwanted = || RunEnd::new(Outcome::Lost, Exit::Lost, RunEnd::UNWANTED);
        self.stopped.get_or_insert_with(unwanted);
        self.step(&Event::ReleaseRequested)
    }

    /// The time left for a proof.
    fn left(&self) -> Duration {
        self.watchdog.deadlines().stop_at.since(clock::now())
    }

    fn log_loss(&mut self, lock: LockIndex, loss: LossReason) {
        let (name, cause) = (self.name_of(lock), loss.describe());
        let (mut reason, mut failure, mut unproven_seconds) = (cause.to_owned(), None, None);
        if loss == LossReason::Unproven {
            self.stats.unproven();
            let now = clock::now();
            let unproven = now.since(self.watchdog.proven_at(lock).unwrap_or(now));
            let last = self.last_failure.as_deref();
            let shown =
                last.map_or_else(|| "no answer".to_owned(), |it| format!("last error: {it}"));
            reason = format!(
                "no proof from etcd for {} ({shown})",
                format_measured(unproven)
            );
            (failure, unproven_seconds) = (last, Some(seconds(unproven)));
        }
        let told = self.run.reason(name, &reason);
        self.stopped = Some(RunEnd::lost(self.stopped.take(), &told));
        warn!(
            event = events::LOST,
            lock = %name,
            cause,
            failure,
            unproven_seconds,
            "lost lock '{name}': {reason}; stopping the command"
        );
    }

    /// Logs the processes that have to end now.
    fn log_stop(&self, living: &[Survivor]) {
        let processes: Vec<String> = living
            .iter()
            .map(|process| format!("{} ({})", process.pid, process.program))
            .collect();
        let processes = printable(&processes.join(", "));
        info!(
            event = events::STOPPING,
            lock = %self.run.name,
            processes,
            "stopping the processes {processes}"
        );
    }

    fn log_killed(&self, status: Option<ExitStatus>) {
        let result = status.map(|status| RunEnd::completed(status).result());
        let result = result.unwrap_or_else(|| "never started".to_owned());
        info!(
            event = events::KILLED,
            lock = %self.run.name,
            result,
            "the command and all its processes have ended: {result}"
        );
    }

    fn log_inconclusive(&mut self, lock: LockIndex, doubt: Inconclusive) {
        let cause = doubt.describe();
        info!(
            event = events::RENEWAL_DOUBTFUL,
            lock = %self.name_of(lock),
            cause,
            left_seconds = seconds(self.left()),
            "a renewal proved nothing, {} left: {cause}",
            format_duration(self.left())
        );
        self.last_failure = Some(cause.to_owned());
    }
}

/// Logs that a message could not be sent: the guard is dead or stopped, and its silence leads to `KillTree`.
fn check_sent(sent: io::Result<()>) {
    if let Err(error) = sent {
        debug!("cannot send to the guard: {error}");
    }
}
