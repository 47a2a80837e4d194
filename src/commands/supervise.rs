//! The holding of the lock: feeds the watchdog with what happens and carries out what it orders.
//! It must not know how the lock was won, nor how it is given back.

use std::time::Duration;

use tracing::{Level, debug, enabled, info, warn};

use super::post::Post;
use super::signals::Signals;
use crate::contest::{Keep, News};
use crate::core::holder::AskTo;
use crate::core::lease::{Doubt, Loss, Renewal};
use crate::core::ledger::Ledger;
use crate::core::leftovers::Leftovers;
use crate::core::name::LockName;
use crate::core::text::{printable, seconds, span};
use crate::core::watchdog::{Action, Cut, Event, Standing, Watchdog};
use crate::guard::{self, Cause, Detached, Report, Signal, Status, Survivor};
use crate::{clock, events, notify};

/// How long dlock itself tries to kill what a dead guard has left.
const KILLING: Duration = Duration::from_secs(2);

/// How the command ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Nothing of it is left.
    Dead {
        /// That of the command itself, if it was started.
        status: Option<Status>,
        /// Why it was stopped, if not because the lock was lost.
        cut: Option<Cut>,
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
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) post: &'a mut Post,
    pub(crate) signals: &'a mut Signals,
    /// What is done with processes that the command leaves behind.
    pub(crate) policy: Leftovers,
    /// The command itself has ended and left others behind.
    pub(crate) leftovers: Option<Status>,
    /// Who waits in the foreground until the command runs.
    pub(crate) background: Option<&'a Detached>,
}

/// What can happen while the lock is held.
enum Input {
    Report(Report),
    Due,
    News(News),
    Signal(Signal),
}

impl<S: Keep> Supervision<'_, S> {
    /// Until nothing of the command is left, or what is left cannot be killed.
    pub(crate) async fn run(&mut self) -> End {
        loop {
            // In this order: what the guard has done is done, and a deadline is older than the
            // answer that arrives with it.
            let input = tokio::select! {
                biased;
                report = self.post.report() => Input::Report(report),
                () = clock::until(self.watchdog.due_at()) => Input::Due,
                news = self.session.news() => Input::News(news),
                signal = self.signals.next() => Input::Signal(signal),
            };
            if let Some(end) = self.take(input) {
                return end;
            }
        }
    }

    fn take(&mut self, input: Input) -> Option<End> {
        match input {
            Input::Due => self.step(&Event::Tick),
            Input::News(news) => self.hear(news),
            Input::Signal(signal) => {
                self.receive(signal);
                None
            }
            Input::Report(report) => self.read(report),
        }
    }

    fn step(&mut self, event: &Event) -> Option<End> {
        let (standing, cut) = (self.watchdog.standing(), self.watchdog.cut());
        let actions = self.watchdog.step(clock::now(), event);
        debug!("{event:?} -> {actions:?}");
        if standing == Standing::Held {
            self.tell_loss();
        }
        if cut.is_none() && self.watchdog.cut() == Some(Cut::MaxHold) {
            self.ledger.because("stopped at --max-hold");
            warn!(
                event = events::MAX_HOLD,
                lock = %self.name,
                "the command under '{}' has run for as long as --max-hold allows: it is stopped",
                self.name
            );
        }
        let stops = standing != self.watchdog.standing() || cut != self.watchdog.cut();
        // Those who are to be named may be dead a moment later. The telling waits until they are told.
        let living = (stops && enabled!(Level::INFO)).then(|| self.post.guard.living());
        let mut end = None;
        for action in actions {
            end = end.or(self.act(&action));
        }
        if let Some(living) = living {
            self.tell_stop(&living);
        }
        end
    }

    fn act(&mut self, action: &Action) -> Option<End> {
        let guard = &mut self.post.guard;
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

    fn kill_tree(&mut self) -> End {
        let survivors = self.post.guard.kill_tree(KILLING);
        if !survivors.is_empty() {
            return End::Survivors(survivors);
        }
        self.watchdog
            .step(clock::now(), &Event::TreeDead { in_time: true });
        End::Dead {
            status: None,
            cut: None,
        }
    }

    fn hear(&mut self, news: News) -> Option<End> {
        match news {
            News::Renewed(renewal) => {
                self.tell_doubt(&renewal);
                let before = self.watchdog.deadlines();
                let slack = before.stop_at.since(clock::now());
                let end = self.step(&Event::Renewed(renewal));
                if self.watchdog.deadlines() != before {
                    self.ledger.proven(slack);
                }
                end
            }
            News::Failed { endpoint, cause } => {
                info!(
                    event = events::RENEWAL_FAILED,
                    lock = %self.name,
                    endpoint,
                    cause,
                    left_seconds = seconds(self.left()),
                    "cannot renew at '{endpoint}', {} left: {cause}",
                    span(self.left())
                );
                self.step(&Event::RenewalFailed)
            }
            News::Kept => self.step(&Event::Kept),
            News::Lost(loss) => self.step(&Event::Lost(loss)),
            News::Watch(watch) => self.step(&Event::Watch(watch)),
            News::Asked(ask) if ask.to == AskTo::Stop && self.watchdog.cut().is_none() => {
                let by = ask.sentence();
                self.ledger.asked(&format!("asked by {by}"));
                warn!(
                    event = events::ASKED,
                    lock = %self.name,
                    by,
                    "asked to give up the lock '{}' by {by}: the command is stopped",
                    self.name,
                );
                self.step(&Event::GiveUp)
            }
            // Told again, or meant for those who still wait.
            News::Asked(_) | News::Moved => None,
        }
    }

    fn receive(&mut self, signal: Signal) {
        debug!("received {signal:?}");
        let guard = &mut self.post.guard;
        let told = match self.leftovers {
            None => guard.forward(signal),
            // There is no command any more that could act on it; what it left is to go.
            Some(_) if signal.ends() => guard.stop(),
            Some(_) if signal.stops() => {
                guard::stop_by(signal.number);
                Ok(())
            }
            Some(_) => Ok(()),
        };
        if let Err(error) = told {
            debug!("the guard cannot be told: {error}");
        }
    }

    fn read(&mut self, report: Report) -> Option<End> {
        match report {
            Report::Started => match self.background.take() {
                Some(background) if background.ready() => None,
                Some(_) => {
                    self.ledger.because("nobody wanted the lock any more");
                    self.step(&Event::GiveUp)
                }
                None => {
                    notify::ready(&format!("holding the lock '{}'", self.name));
                    None
                }
            },
            Report::Stopped(signal) => {
                guard::stop_by(signal);
                if let Err(error) = self.post.guard.resumed() {
                    debug!("the guard cannot be told: {error}");
                }
                None
            }
            Report::Beat(beat) => self.step(&Event::Beat(beat)),
            Report::Leftovers { status, count } => {
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
            Report::Ended { status, cause } => {
                let in_time = cause != Cause::Deadline;
                let end = self.step(&Event::TreeDead { in_time });
                let cut = self.watchdog.cut().filter(|_| cause == Cause::Ordered);
                if cause != Cause::Command {
                    self.tell_killed(status);
                }
                end.or(Some(End::Dead { status, cut }))
            }
            Report::CannotStart { errno } => {
                let end = self.step(&Event::TreeDead { in_time: true });
                end.or(Some(End::NotStarted { errno }))
            }
            Report::Survivors(survivors) => Some(End::Survivors(survivors)),
            Report::GuardDead => self.step(&Event::GuardDead),
        }
    }

    /// The time in which a proof still helps.
    fn left(&self) -> Duration {
        self.watchdog.deadlines().stop_at.since(clock::now())
    }

    fn tell_loss(&mut self) {
        // That nobody guards the command is told at the end, as the error that it is.
        if let Standing::Lost(loss) = self.watchdog.standing() {
            let (name, cause) = (self.name, explain(loss));
            if loss == Loss::Unproven {
                self.ledger.unproven();
            }
            self.ledger.because(cause);
            warn!(
                event = events::LOST,
                lock = %name,
                cause,
                "the lock '{name}' is lost, the command is killed: {cause}"
            );
        }
    }

    /// Who it is that has to end now.
    fn tell_stop(&self, living: &[Survivor]) {
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

    fn tell_killed(&self, status: Option<Status>) {
        let result = match status {
            Some(Status::Exited(code)) => format!("exit {code}"),
            Some(Status::Signalled(signal)) => format!("signal {signal}"),
            None => "never started".to_owned(),
        };
        info!(
            event = events::KILLED,
            lock = %self.name,
            result,
            "the command has ended, and all of its processes with it: {result}"
        );
    }

    fn tell_doubt(&self, renewal: &Renewal) {
        if let Some(doubt) = self.watchdog.doubt(renewal) {
            let cause = match doubt {
                Doubt::OtherCluster => "the answer came from another cluster",
                Doubt::OtherMember => "two members answered",
                Doubt::OtherTerm => "a leader was being elected",
                Doubt::OlderRevision => "the server went back in time",
                Doubt::NoTimeLeft => "the server does not know the lease's time",
            };
            info!(
                event = events::RENEWAL_DOUBTFUL,
                lock = %self.name,
                cause,
                left_seconds = seconds(self.left()),
                "a renewal proved nothing, {} left: {cause}",
                span(self.left())
            );
        }
    }
}

/// The cause of a loss in plain words.
fn explain(loss: Loss) -> &'static str {
    match loss {
        Loss::Unproven => "etcd did not prove in time that it is still ours",
        Loss::KeyGone => "its key is gone (lease expired or revoked, or key deleted)",
        Loss::KeyTaken => "its key was overwritten",
        Loss::FileGone => "its file in the state folder was removed or replaced",
    }
}
