//! A run under a lock: acquire the lock, have the guard run the command, release the lock.
//! It must not know gRPC, nor how processes are killed.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use tracing::{error, info, warn};

use super::failed;
use super::guard_io::GuardIo;
use super::not_acquired::NotAcquired;
use super::program::{lock_variables, not_started};
use super::progress::WaitReporter;
use super::run_end::RunEnd;
use super::signals::Signals;
use super::supervise::{Supervision, SupervisionEnd};
use crate::cli::lock;
use crate::core::name::{HeldLock, LockName};
use crate::core::proof::FencingToken;
use crate::core::request::Leftovers;
use crate::core::request::WaitPolicy;
use crate::core::run_stats::{Outcome, RunStats};
use crate::core::text::{format_duration, seconds};
use crate::core::time::Instant;
use crate::core::watchdog::{LockState, Watchdog};
use crate::guard::{Guard, GuardReport, Survivor};
use crate::host::identity;
use crate::lock::backend::{
    AcquireOutcome, Acquired, LockBackend, Release, ReleaseReason, WaitEvent,
};
use crate::lock::error::LockError;
use crate::output::events;
use crate::output::exit::{Exit, Failure};
use crate::output::systemd;
use crate::sys::clock;
use crate::sys::daemonize::Background;

/// Timeout of the release of a lock that was held to the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the cleanup after a loss, and of the release of a lock that is past its deadline.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two checks whether the lock is still wanted.
const UNWANTED_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A run and its lock.
pub(super) struct LockedRun<'a> {
    pub(super) name: &'a LockName,
    pub(super) lock: &'a lock::Options,
    /// The program name that others see.
    pub(super) program: &'a OsStr,
    /// Whether the command is dlock itself, which only waits and answers no watchdog.
    pub(super) is_hold: bool,
    pub(super) leftovers: Leftovers,
    /// Variables of the command, beside those of the lock.
    pub(super) variables: Vec<(String, String)>,
    /// Whether nobody wants the lock any more; polled during the wait.
    pub(super) unwanted: Option<&'a dyn Fn() -> bool>,
    /// The link to the parent that waits in the foreground.
    pub(super) background: Option<&'a Background>,
}

/// Runs the command under the lock and returns its end.
pub(super) fn execute(
    run: &LockedRun,
    backend: impl LockBackend,
    guard: Guard,
    stats: &mut RunStats,
) -> Result<RunEnd, Failure> {
    super::block_on(async {
        let runs = Cell::new(false);
        let mut runner = LockedRunner {
            run,
            backend,
            guard_io: GuardIo::open(guard).context("cannot listen to the guard process")?,
            signals: Signals::listen().context("cannot listen to signals")?,
            began_at: clock::now(),
            runs: &runs,
            stats,
        };
        tokio::select! {
            biased;
            end = runner.run() => end,
            never = systemd::answer_watchdog(|| !runs.get()) => match never {},
        }
    })
}

/// The acquired lock, or the end of a run that did not acquire it.
type Acquisition<S> = Result<Box<Acquired<S>>, RunEnd>;

struct LockedRunner<'a, C> {
    run: &'a LockedRun<'a>,
    backend: C,
    guard_io: GuardIo,
    signals: Signals,
    began_at: Instant,
    /// Whether a command runs that has to answer the watchdog of the service manager.
    runs: &'a Cell<bool>,
    stats: &'a mut RunStats,
}

impl<C: LockBackend> LockedRunner<'_, C> {
    async fn run(&mut self) -> Result<RunEnd, Failure> {
        // Boxed: the memory of one future is free while the other runs.
        match self.acquire().boxed_local().await? {
            Ok(acquired) => {
                let ended = self.hold(*acquired).boxed_local().await;
                self.say_uncounted(&RunEnd::of(&ended));
                ended
            }
            Err(end) => Ok(end),
        }
    }

    /// Says that a run which did not succeed keeps no other one from starting.
    fn say_uncounted(&self, end: &RunEnd) {
        let (name, request) = (self.run.name, self.run.lock.request);
        if !request.retry_failed || request.once_per.is_none() {
            return;
        }
        if end.exit == Exit::Command(0) || end.outcome == Outcome::NotStarted {
            return;
        }
        let result = match end.outcome {
            Outcome::Lost => "lost the lock".to_owned(),
            _ => end.result(),
        };
        warn!(
            event = events::NOT_COUNTED,
            lock = %name,
            result,
            "this run of '{name}' does not count ({result}): the next one with --retry-failed may start once the lock is free"
        );
    }

    async fn acquire(&mut self) -> Result<Acquisition<C::Session>, Failure> {
        enum Event<S> {
            Acquired(Result<AcquireOutcome<S>, LockError>),
            WaitPassed,
            Signal(i32),
            GuardDead,
            Unwanted,
        }
        let give_up_at = match self.run.lock.request.wait_policy {
            WaitPolicy::Timeout(wait) => Some(self.began_at + wait),
            WaitPolicy::NoWait | WaitPolicy::Forever => None,
        };
        let mut ahead = None;
        let (mut our_turn_at, mut last_error) = (None, None);
        let mut no_slot = None;
        let mut held_back = Vec::new();
        let backend = &self.backend;
        let event = {
            let reporter = WaitReporter::new(self.run.name, self.began_at, give_up_at);
            let on_event = |waiting: WaitEvent| {
                reporter.on_event(&waiting);
                match waiting {
                    WaitEvent::Behind(now) => {
                        (ahead, our_turn_at, no_slot) = (Some(now), None, None);
                    }
                    WaitEvent::OurTurn => {
                        (our_turn_at, last_error, no_slot) = (Some(clock::now()), None, None);
                    }
                    WaitEvent::NoSlot(orphan) => (no_slot, our_turn_at) = (Some(orphan), None),
                    WaitEvent::EntryLost => our_turn_at = None,
                    WaitEvent::Error(error) => last_error = Some(error.cause),
                    WaitEvent::LockDelay(_) => {}
                }
            };
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
                () = guard_dead(&mut self.guard_io) => Event::GuardDead,
                outcome = backend.acquire(on_event) => Event::Acquired(outcome),
                () = clock::until(give_up_at) => Event::WaitPassed,
                () = unwanted(self.run.unwanted) => Event::Unwanted,
                never = reporter.refresh(async || backend.position().await) => match never {},
                never = reporter.warn_unanswered(|| backend.unanswered_causes()) => match never {},
            }
        };
        self.signals.hold_back(held_back);
        if !matches!(event, Event::Acquired(Ok(_))) {
            backend.leave_queue().await;
        }
        match event {
            Event::Acquired(outcome) => {
                let outcome = outcome.map_err(|error| self.cannot_lock(error))?;
                Ok(self.interpret(outcome))
            }
            Event::WaitPassed => {
                if let (Some(our_turn_at), Some(error)) = (our_turn_at, last_error) {
                    let unproven = clock::now().since(our_turn_at);
                    let error = LockError::unproven(unproven, Some(&error));
                    return Err(self.cannot_lock(error));
                }
                if let Some(orphan) = no_slot {
                    return Ok(self.interpret(AcquireOutcome::NoSlot(orphan)));
                }
                if let Some(ahead) = ahead {
                    return Ok(self.interpret(AcquireOutcome::Busy(ahead)));
                }
                // Nobody knows whether the lock is busy.
                let waited = give_up_at.unwrap_or(clock::now()).since(self.began_at);
                Err(self.cannot_lock(backend.unreachable(waited)))
            }
            Event::Signal(signal) => {
                let reason = format!("ended by signal {signal} while waiting");
                let exit = Exit::Signalled(signal);
                Ok(Err(RunEnd::new(Outcome::Interrupted, exit, reason)))
            }
            Event::GuardDead => Err(anyhow!(
                "cannot wait for lock '{}': the guard process is dead",
                self.run.name
            )
            .into()),
            Event::Unwanted => Ok(Err(RunEnd::new(
                Outcome::Interrupted,
                Exit::Done,
                RunEnd::UNWANTED,
            ))),
        }
    }

    fn cannot_lock(&self, error: LockError) -> Failure {
        failed(format_args!("cannot lock '{}'", self.run.name), error)
    }

    fn interpret(&self, outcome: AcquireOutcome<C::Session>) -> Acquisition<C::Session> {
        let LockedRun { name, lock, .. } = self.run;
        NotAcquired::of(name, lock.request.wait_policy, outcome)
            .map_err(|refused| refused.report(name, lock))
    }

    async fn hold(&mut self, acquired: Acquired<C::Session>) -> Result<RunEnd, Failure> {
        let environment = self.environment(&acquired);
        let run = self.run;
        let (now, token) = (clock::now(), acquired.token);
        self.stats.acquired(now, token);
        let waited = now.since(self.began_at);
        info!(
            event = events::ACQUIRED,
            lock = %run.name,
            token = token.0,
            waited_seconds = seconds(waited),
            "acquired '{}' with token {token} after {}",
            run.name,
            format_duration(waited)
        );
        let limit_at = run.lock.max_hold.map(|limit| clock::now() + limit);
        let watchdog = acquired.watchdog.with_max_hold(limit_at);
        if let Err(error) = self
            .guard_io
            .guard
            .start(&environment, watchdog.deadlines())
        {
            let _ = self
                .backend
                .release(RELEASE_TIMEOUT, ReleaseReason::Unused)
                .await;
            return Err(
                anyhow!("cannot send the guard process the start of the command: {error}").into(),
            );
        }
        let mut supervision = Supervision {
            name: run.name,
            watchdog,
            session: acquired.session,
            stats: self.stats,
            guard_io: &mut self.guard_io,
            signals: &mut self.signals,
            policy: run.leftovers,
            leftovers: None,
            last_failure: None,
            stopped: None,
            background: run.background,
        };
        self.runs.set(!run.is_hold);
        let end = supervision.run().await;
        self.runs.set(false);
        let watchdog = supervision.watchdog;
        self.stats.over(clock::now());
        match end {
            SupervisionEnd::Survivors(survivors) => {
                Ok(self.unkillable(&survivors, watchdog.state()))
            }
            SupervisionEnd::Dead(end) => self.finish(token, &watchdog, end).await,
            SupervisionEnd::NotStarted { errno } => {
                let _ = self
                    .backend
                    .release(RELEASE_TIMEOUT, ReleaseReason::Unused)
                    .await;
                let error = io::Error::from_raw_os_error(errno);
                Err(not_started(run.program, &error))
            }
        }
    }

    /// The variables that dlock adds to the command's environment.
    fn environment(&self, acquired: &Acquired<C::Session>) -> Vec<(String, String)> {
        let held = identity::held().with(HeldLock {
            name: self.run.name.clone(),
            token: acquired.token.0,
            mode: self.run.lock.request.mode,
            scope: self.backend.scope(),
        });
        let slot = acquired.slot.map(|slot| ("DLOCK_SLOT", slot.to_string()));
        let more = [("DLOCK_HELD", held.to_string())].into_iter().chain(slot);
        let more = more.chain(acquired.variables.iter().cloned());
        let variables = lock_variables(self.run.name, acquired.token, more);
        [variables, self.run.variables.clone()].concat()
    }

    /// The whole tree is dead: releases the lock, and checks that it was held to the end.
    async fn finish(
        &mut self,
        token: FencingToken,
        watchdog: &Watchdog,
        end: Option<RunEnd>,
    ) -> Result<RunEnd, Failure> {
        let name = self.run.name;
        let end = match (watchdog.state(), end) {
            (LockState::Held, Some(end)) => end,
            (LockState::Lost(_), Some(end)) => {
                let lost = ReleaseReason::AtOnce("lost the lock");
                let _ = self.backend.release(CLEANUP_TIMEOUT, lost).await;
                return Ok(end);
            }
            (_, None) | (LockState::Unguarded, _) => {
                let killed = ReleaseReason::AtOnce("killed, its guard was dead");
                let _ = self.backend.release(RELEASE_TIMEOUT, killed).await;
                return Err(anyhow!(
                    "the command was killed: its guard process was killed or stopped"
                )
                .into());
            }
        };
        let result = end.result();
        let reason = if end.exit == Exit::Lost {
            ReleaseReason::AtOnce(&result)
        } else {
            ReleaseReason::Done(&result)
        };
        let left = watchdog.deadlines().kill_at.since(clock::now());
        // After its deadline the lock may belong to another holder; only the answer shows that.
        let limit = left.clamp(CLEANUP_TIMEOUT, RELEASE_TIMEOUT);
        match self.backend.release(limit, reason).await {
            Release::Confirmed => {
                let held = self.stats.held(clock::now());
                info!(
                    event = events::RELEASED,
                    lock = %name,
                    token = token.0,
                    held_seconds = seconds(held),
                    result,
                    "released '{name}' after {}: {result}",
                    format_duration(held)
                );
            }
            Release::Unconfirmed(error) => warn!(
                event = events::RELEASE_UNCONFIRMED,
                lock = %name,
                cause = %error,
                within_seconds = seconds(self.run.lock.ttl),
                "cannot confirm the release of lock '{name}', which etcd frees within {}: {error}",
                format_duration(self.run.lock.ttl)
            ),
            Release::NotOurs => {
                let cause = "its key is gone, or another client has replaced it";
                warn!(
                    event = events::LOST,
                    lock = %name,
                    cause,
                    "lost lock '{name}' while the command ran: {cause}"
                );
                return Ok(RunEnd::lost(Some(end), cause));
            }
        }
        Ok(end)
    }

    fn unkillable(&self, survivors: &[Survivor], state: LockState) -> RunEnd {
        let mut reason = None;
        for Survivor {
            pid,
            state,
            uid,
            program,
            tracer,
        } in survivors
        {
            let mut line =
                format!("cannot kill process {pid} ('{program}', state {state}, uid {uid})");
            if let Some(tracer) = tracer {
                let _ = write!(line, ": process {tracer} traces it");
            }
            error!(
                event = events::SURVIVOR,
                pid,
                program,
                state = %state,
                uid,
                "{line}"
            );
            reason = Some(line);
        }
        let fate = self
            .backend
            .describe_unreleased(state != LockState::Unguarded);
        error!(
            event = events::UNKILLABLE,
            lock = %self.run.name,
            "cannot release lock '{}': {fate}",
            self.run.name,
        );
        RunEnd {
            outcome: Outcome::Unkillable,
            exit: Exit::Unkillable,
            reason,
        }
    }
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
