//! A run under a lock: acquire the lock, have the guard run the command, release the lock.
//! It must not know gRPC, nor how processes are killed.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use tracing::{error, info, warn};

use super::acquire::Acquirer;
use super::guard_io::GuardIo;
use super::locked_run::LockedRun;
use super::program::{lock_variables, not_started};
use super::run_end::RunEnd;
use super::signals::Signals;
use super::supervise::{Supervision, SupervisionEnd};
use crate::core::name::HeldLock;
use crate::core::proof::FencingToken;
use crate::core::run_stats::{OtherLock, Outcome, RunStats};
use crate::core::text::{format_duration, seconds};
use crate::core::time::Instant;
use crate::core::watchdog::{LockState, Watchdog};
use crate::guard::{Guard, Survivor};
use crate::host::identity;
use crate::lock::backend::{Acquired, LockBackend, Release, ReleaseReason};
use crate::output::events;
use crate::output::exit::{Exit, Failure};
use crate::output::systemd;
use crate::sys::clock;

/// Timeout of the release of a lock that was held to the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the cleanup after a loss, and of the release of a lock that is past its deadline.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the command under its locks and returns its end; there is a backend for each name of the run.
pub(super) fn execute(
    run: &LockedRun,
    backends: &[impl LockBackend],
    guard: Guard,
    stats: &mut RunStats,
) -> Result<RunEnd, Failure> {
    super::block_on(async {
        let runs = Cell::new(false);
        let mut runner = LockedRunner {
            run,
            backends,
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

struct LockedRunner<'a, B> {
    run: &'a LockedRun<'a>,
    backends: &'a [B],
    guard_io: GuardIo,
    signals: Signals,
    began_at: Instant,
    /// Whether a command runs that has to answer the watchdog of the service manager.
    runs: &'a Cell<bool>,
    stats: &'a mut RunStats,
}

impl<B: LockBackend> LockedRunner<'_, B> {
    async fn run(&mut self) -> Result<RunEnd, Failure> {
        let acquisition = Acquirer {
            run: self.run,
            backends: self.backends,
            guard_io: &mut self.guard_io,
            signals: &mut self.signals,
            began_at: self.began_at,
        };
        // Boxed: the memory of one future is free while the other runs.
        match acquisition.acquire().boxed_local().await? {
            Ok(locks) => {
                let ended = self.hold(locks).boxed_local().await;
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

    async fn hold(&mut self, acquired: Vec<Acquired<B::Session>>) -> Result<RunEnd, Failure> {
        let run = self.run;
        let environment = self.environment(&acquired);
        let tokens: Vec<FencingToken> = acquired.iter().map(|one| one.token).collect();
        if let Some(token) = self.named(&tokens) {
            self.stats.acquired(clock::now(), *token);
        }
        let others = run.names.iter().zip(&tokens);
        let others = others.filter(|(name, _)| *name != run.name);
        self.stats.also = others
            .map(|(name, token)| OtherLock {
                name: name.to_string(),
                token: token.0,
            })
            .collect();
        let (locks, mut sessions): (Vec<_>, Vec<_>) =
            (acquired.into_iter().map(|one| (one.lock, one.session))).unzip();
        let limit_at = run.lock.max_hold.map(|limit| clock::now() + limit);
        let watchdog = Watchdog::new(locks).with_max_hold(limit_at);
        if let Err(error) = self
            .guard_io
            .guard
            .start(&environment, watchdog.deadlines())
        {
            self.release_unused().await;
            return Err(
                anyhow!("cannot send the guard process the start of the command: {error}").into(),
            );
        }
        let mut supervision = Supervision {
            run,
            watchdog,
            sessions: &mut sessions,
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
            SupervisionEnd::Dead(end) => self.finish(&tokens, &watchdog, end).await,
            SupervisionEnd::NotStarted { errno } => {
                self.release_unused().await;
                let error = io::Error::from_raw_os_error(errno);
                Err(not_started(run.program, &error))
            }
        }
    }

    /// The element of the lock whose token the command gets, of a list with one for each lock.
    fn named<'t, T>(&self, list: &'t [T]) -> Option<&'t T> {
        let names = self.run.names.iter();
        names
            .zip(list)
            .find_map(|(name, one)| (name == self.run.name).then_some(one))
    }

    /// The variables that dlock adds to the command's environment.
    fn environment(&self, acquired: &[Acquired<B::Session>]) -> Vec<(String, String)> {
        let run = self.run;
        let locks = run.names.iter().zip(self.backends).zip(acquired);
        let held = locks.fold(identity::held(), |held, ((name, backend), one)| {
            held.with(HeldLock {
                name: name.clone(),
                token: one.token.0,
                mode: run.lock.request.mode,
                scope: backend.scope(),
            })
        });
        let Some(named) = self.named(acquired) else {
            return Vec::new();
        };
        let slot = named.slot.map(|slot| ("DLOCK_SLOT", slot.to_string()));
        let more = [("DLOCK_HELD", held.to_string())].into_iter().chain(slot);
        let more = more.chain(named.variables.iter().cloned());
        let variables = lock_variables(run.name, named.token, more);
        [variables, run.variables.clone()].concat()
    }

    /// Releases all locks, the last one first: no command has run under them.
    async fn release_unused(&self) {
        for backend in self.backends.iter().rev() {
            let _ = backend
                .release(RELEASE_TIMEOUT, ReleaseReason::Unused)
                .await;
        }
    }

    /// The whole tree is dead: releases the locks, the last one first, and checks that each was held to the end.
    async fn finish(
        &mut self,
        tokens: &[FencingToken],
        watchdog: &Watchdog,
        end: Option<RunEnd>,
    ) -> Result<RunEnd, Failure> {
        let end = match (watchdog.state(), end) {
            (LockState::Held, Some(end)) => end,
            (LockState::Lost(_), Some(end)) => {
                let lost = ReleaseReason::AtOnce("lost the lock");
                for backend in self.backends.iter().rev() {
                    let _ = backend.release(CLEANUP_TIMEOUT, lost).await;
                }
                return Ok(end);
            }
            (_, None) | (LockState::Unguarded, _) => {
                let killed = ReleaseReason::AtOnce("killed, its guard was dead");
                for backend in self.backends.iter().rev() {
                    let _ = backend.release(RELEASE_TIMEOUT, killed).await;
                }
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
        let mut limit = left.clamp(CLEANUP_TIMEOUT, RELEASE_TIMEOUT);
        let mut end = end;
        let locks = self.run.names.iter().zip(self.backends).zip(tokens);
        for ((name, backend), token) in locks.rev() {
            match backend.release(limit, reason).await {
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
                Release::Unconfirmed(error) => {
                    warn!(
                        event = events::RELEASE_UNCONFIRMED,
                        lock = %name,
                        cause = %error,
                        within_seconds = seconds(self.run.lock.ttl),
                        "cannot confirm the release of lock '{name}', which etcd frees within {}: {error}",
                        format_duration(self.run.lock.ttl)
                    );
                    // The next one has probably no answer either.
                    limit = CLEANUP_TIMEOUT;
                }
                Release::NotOurs => {
                    let cause = "its key is gone, or another client has replaced it";
                    warn!(
                        event = events::LOST,
                        lock = %name,
                        cause,
                        "lost lock '{name}' while the command ran: {cause}"
                    );
                    end = RunEnd::lost(Some(end), &self.run.reason(name, cause));
                }
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
            let mut line = match (pid, state) {
                (0, _) => "cannot kill a process that /proc hides (hidepid)".to_owned(),
                (_, '?') => format!("cannot kill process {pid}, which /proc hides (hidepid)"),
                _ => format!("cannot kill process {pid} ('{program}', state {state}, uid {uid})"),
            };
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
        for (name, backend) in self.run.names.iter().zip(self.backends) {
            let fate = backend.describe_unreleased(state != LockState::Unguarded);
            error!(
                event = events::UNKILLABLE,
                lock = %name,
                "cannot release lock '{name}': {fate}",
            );
        }
        RunEnd {
            outcome: Outcome::Unkillable,
            exit: Exit::Unkillable,
            reason,
        }
    }
}
