//! The holding of the lock: feeds the watchdog with what happens and carries out what it orders.
//! It must not know how the lock was won, nor how it is given back.

use std::time::Duration;

use tracing::{Level, debug, enabled, info, warn};

use super::guard_io::GuardIo;
use super::signals::Signals;
use crate::core::holder::StopKind;
use crate::core::name::LockName;
use crate::core::proof::{Inconclusive, LossReason, Renewal};
use crate::core::request::Leftovers;
use crate::core::run_stats::RunStats;
use crate::core::text::{format_duration, printable, seconds};
use crate::core::watchdog::{Action, Event, LockState, StopReason, Watchdog};
use crate::guard::{Cause, GuardReport, Signal, Survivor};
use crate::lock::backend::{LockSession, SessionEvent};
use crate::output::events;
use crate::output::systemd;
use crate::sys::clock;
use crate::sys::daemonize::Background;
use crate::sys::process::ExitStatus;

/// How long dlock itself tries to kill what a dead guard has left.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How the command ended.
#[derive(Debug)]
pub(crate) enum SupervisionEnd {
    /// Nothing of it is left.
    Dead {
        /// That of the command itself, if it was started.
        status: Option<ExitStatus>,
        /// Why it was stopped, if not because the lock was lost.
        cut: Option<StopReason>,
    },
    /// It could not be started, for this reason.
    NotStarted { errno: i32 },
    /// These processes do not die.
    Survivors(Vec<Survivor>),
}

/// One holding of the lock.
pub(crate) struct Supervision<'a, S> {
    pub(crate) name: &'a LockName,
    pub(crate) watchdog: Watchdog,
    pub(crate) session: S,
    pub(crate) stats: &'a mut RunStats,
    pub(crate) guard_io: &'a mut GuardIo,
    pub(crate) signals: &'a mut Signals,
    /// What is done with processes that the command leaves behind.
    pub(crate) policy: Leftovers,
    /// The command itself has ended and left others behind.
    pub(crate) leftovers: Option<ExitStatus>,
    /// Who waits in the foreground until the command runs.
    pub(crate) background: Option<&'a Background>,
}

/// What can happen while the lock is held.
enum Input {
    Report(GuardReport),
    Due,
    News(SessionEvent),
    Signal(Signal),
}

impl<S: LockSession> Supervision<'_, S> {
    /// Until nothing of the command is left, or what is left cannot be killed.
    pub(crate) async fn run(&mut self) -> SupervisionEnd {
        loop {
            // In this order: what the guard has done is done, and a deadline is older than the
            // answer that arrives with it.
            let input = tokio::select! {
                biased;
                report = self.guard_io.report() => Input::Report(report),
                () = clock::until(self.watchdog.due_at()) => Input::Due,
                event = self.session.next_event() => Input::News(event),
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
            Input::News(event) => self.on_session_event(event),
            Input::Signal(signal) => {
                self.on_signal(signal);
                None
            }
            Input::Report(report) => self.on_report(report),
        }
    }

    fn step(&mut self, event: &Event) -> Option<SupervisionEnd> {
        let (standing, cut) = (self.watchdog.state(), self.watchdog.stop_reason());
        let actions = self.watchdog.step(clock::now(), event);
        debug!("{event:?} -> {actions:?}");
        if standing == LockState::Held {
            self.log_loss();
        }
        if cut.is_none() && self.watchdog.stop_reason() == Some(StopReason::MaxHold) {
            self.stats.set_reason("stopped at --max-hold");
            warn!(
                event = events::MAX_HOLD,
                lock = %self.name,
                "the command under '{}' has run for as long as --max-hold allows: it is stopped",
                self.name
            );
        }
        let stops = standing != self.watchdog.state() || cut != self.watchdog.stop_reason();
        // Those who are to be named may be dead a moment later. The telling waits until they are told.
        let living = (stops && enabled!(Level::INFO)).then(|| self.guard_io.guard.living());
        let mut end = None;
        for action in actions {
            end = end.or(self.perform(&action));
        }
        if let Some(living) = living {
            self.log_stop(&living);
        }
        end
    }

    fn perform(&mut self, action: &Action) -> Option<SupervisionEnd> {
        let guard = &mut self.guard_io.guard;
        // A guard that cannot be told is dead or stopped; its silence leads to `KillTree`.
        let told = match *action {
            Action::Renew => {
                self.session.renew();
                Ok(())
            }
            Action::Extend { beat, deadlines } => guard.extend(beat, deadlines),
            Action::Stop => guard.stop(),
            Action::Kill => guard.kill(),
            Action::KillTree => return Some(self.kill_tree()),
        };
        if let Err(error) = told {
            debug!("the guard cannot be told: {error}");
        }
        None
    }

    fn kill_tree(&mut self) -> SupervisionEnd {
        let survivors = self.guard_io.guard.kill_tree(KILL_TIMEOUT);
        if !survivors.is_empty() {
            return SupervisionEnd::Survivors(survivors);
        }
        self.watchdog
            .step(clock::now(), &Event::TreeDead { in_time: true });
        SupervisionEnd::Dead {
            status: None,
            cut: None,
        }
    }

    fn on_session_event(&mut self, event: SessionEvent) -> Option<SupervisionEnd> {
        match event {
            SessionEvent::Renewed(renewal) => {
                self.log_inconclusive(&renewal);
                let before = self.watchdog.deadlines();
                let slack = before.stop_at.since(clock::now());
                let end = self.step(&Event::Renewed(renewal));
                if self.watchdog.deadlines() != before {
                    self.stats.proven(slack);
                }
                end
            }
            SessionEvent::Failed { endpoint, cause } => {
                info!(
                    event = events::RENEWAL_FAILED,
                    lock = %self.name,
                    endpoint,
                    cause,
                    left_seconds = seconds(self.left()),
                    "cannot renew at '{endpoint}', {} left: {cause}",
                    format_duration(self.left())
                );
                self.step(&Event::RenewalFailed)
            }
            SessionEvent::StillHeld => self.step(&Event::StillHeld),
            SessionEvent::Lost(loss) => self.step(&Event::Lost(loss)),
            SessionEvent::Watch(watch) => self.step(&Event::Watch(watch)),
            SessionEvent::StopRequested(ask)
                if ask.to == StopKind::Stop && self.watchdog.stop_reason().is_none() =>
            {
                let by = ask.describe();
                self.stats.stop_requested(&format!("asked by {by}"));
                warn!(
                    event = events::ASKED,
                    lock = %self.name,
                    by,
                    "asked to give up the lock '{}' by {by}: the command is stopped",
                    self.name,
                );
                self.step(&Event::ReleaseRequested)
            }
            // Told again, or meant for those who still wait.
            SessionEvent::StopRequested(_) | SessionEvent::QueueChanged => None,
        }
    }

    fn on_signal(&mut self, signal: Signal) {
        debug!("received {signal:?}");
        let guard = &mut self.guard_io.guard;
        let told = match self.leftovers {
            None => guard.forward(signal),
            // There is no command any more that could act on it; what it left is to go.
            Some(_) if signal.ends() => guard.stop(),
            Some(_) if signal.stops() => {
                crate::sys::signals::stop_by(signal.number);
                Ok(())
            }
            Some(_) => Ok(()),
        };
        if let Err(error) = told {
            debug!("the guard cannot be told: {error}");
        }
    }

    fn on_report(&mut self, report: GuardReport) -> Option<SupervisionEnd> {
        match report {
            GuardReport::Started => match self.background.take() {
                Some(background) if background.ready() => None,
                Some(_) => {
                    self.stats.set_reason("nobody wanted the lock any more");
                    self.step(&Event::ReleaseRequested)
                }
                None => {
                    systemd::ready(&format!("holding the lock '{}'", self.name));
                    None
                }
            },
            GuardReport::Stopped(signal) => {
                crate::sys::signals::stop_by(signal);
                if let Err(error) = self.guard_io.guard.resumed() {
                    debug!("the guard cannot be told: {error}");
                }
                None
            }
            GuardReport::Ack(beat) => self.step(&Event::Ack(beat)),
            GuardReport::Leftovers { status, count } => {
                let (policy, what) = match self.policy {
                    Leftovers::Kill => ("kill", ": stopping them"),
                    Leftovers::Wait => ("wait", ": waiting for them"),
                    Leftovers::Leave => ("leave", ""),
                };
                let line =
                    format!("the command has ended and left {count} process(es) behind{what}");
                let lock = self.name.to_string();
                if self.policy == Leftovers::Kill {
                    warn!(event = events::LEFTOVERS, lock, count, policy, "{line}");
                } else {
                    info!(event = events::LEFTOVERS, lock, count, policy, "{line}");
                }
                self.leftovers = Some(status);
                None
            }
            GuardReport::Ended { status, cause } => {
                let in_time = cause != Cause::Deadline;
                let end = self.step(&Event::TreeDead { in_time });
                let cut = self
                    .watchdog
                    .stop_reason()
                    .filter(|_| cause == Cause::Ordered);
                if cause != Cause::Command {
                    self.log_killed(status);
                }
                end.or(Some(SupervisionEnd::Dead { status, cut }))
            }
            GuardReport::CannotStart { errno } => {
                let end = self.step(&Event::TreeDead { in_time: true });
                end.or(Some(SupervisionEnd::NotStarted { errno }))
            }
            GuardReport::Survivors(survivors) => Some(SupervisionEnd::Survivors(survivors)),
            GuardReport::GuardDead => self.step(&Event::GuardDead),
        }
    }

    /// The time in which a proof still helps.
    fn left(&self) -> Duration {
        self.watchdog.deadlines().stop_at.since(clock::now())
    }

    fn log_loss(&mut self) {
        // That nobody guards the command is told at the end, as the error that it is.
        if let LockState::Lost(loss) = self.watchdog.state() {
            let (name, cause) = (self.name, explain(loss));
            if loss == LossReason::Unproven {
                self.stats.unproven();
            }
            self.stats.set_reason(cause);
            warn!(
                event = events::LOST,
                lock = %name,
                cause,
                "the lock '{name}' is lost, the command is killed: {cause}"
            );
        }
    }

    /// Who it is that has to end now.
    fn log_stop(&self, living: &[Survivor]) {
        let processes: Vec<String> = living
            .iter()
            .map(|process| format!("{} ({})", process.pid, process.program))
            .collect();
        let processes = printable(&processes.join(", "));
        info!(
            event = events::STOPPING,
            lock = %self.name,
            processes,
            "stopping the processes {processes}"
        );
    }

    fn log_killed(&self, status: Option<ExitStatus>) {
        let result = match status {
            Some(ExitStatus::Exited(code)) => format!("exit {code}"),
            Some(ExitStatus::Signalled(signal)) => format!("signal {signal}"),
            None => "never started".to_owned(),
        };
        info!(
            event = events::KILLED,
            lock = %self.name,
            result,
            "the command has ended, and all of its processes with it: {result}"
        );
    }

    fn log_inconclusive(&self, renewal: &Renewal) {
        if let Some(doubt) = self.watchdog.inconclusive(renewal) {
            let cause = match doubt {
                Inconclusive::OtherCluster => "the answer came from another cluster",
                Inconclusive::OtherMember => "two members answered",
                Inconclusive::OtherTerm => "a leader was being elected",
                Inconclusive::OlderRevision => "the server went back in time",
                Inconclusive::NoTimeLeft => "the server does not know the lease's time",
            };
            info!(
                event = events::RENEWAL_DOUBTFUL,
                lock = %self.name,
                cause,
                left_seconds = seconds(self.left()),
                "a renewal proved nothing, {} left: {cause}",
                format_duration(self.left())
            );
        }
    }
}

/// The cause of a loss in plain words.
fn explain(loss: LossReason) -> &'static str {
    match loss {
        LossReason::Unproven => "etcd did not prove in time that it is still ours",
        LossReason::KeyGone => "its key is gone (lease expired or revoked, or key deleted)",
        LossReason::KeyTaken => "its key was overwritten",
        LossReason::FileGone => "its file in the state folder was removed or replaced",
    }
}
