//! Something that is done under a lock: take the lock, have the guard do it, give the lock back.
//! It must not know gRPC, nor how processes are killed.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use tracing::{error, info, warn};

use super::failed;
use super::post::Post;
use super::program::not_started;
use super::refusal::Refusal;
use super::signals::Signals;
use super::supervise::{End, Supervision};
use super::waiting::Voice;
use crate::cli::lock;
use crate::contest::{Contend, Outcome, Parting, Release, Waiting, Won};
use crate::core::lease::{FencingToken, Instant};
use crate::core::ledger::Ledger;
use crate::core::leftovers::Leftovers;
use crate::core::mode::Patience;
use crate::core::name::{Link, LockName};
use crate::core::text::{seconds, span};
use crate::core::watchdog::{Cut, Standing, Watchdog};
use crate::exit::{Exit, Failure};
use crate::guard::{self, Detached, Guard, Report, Status, Survivor};
use crate::trouble::Trouble;
use crate::{clock, events, whoami};

/// How long the release of a lock that was ours to the end may take.
const RELEASE: Duration = Duration::from_secs(5);
/// How long the removal of what may be left after a loss may take, and the release of a lock that is past its deadline.
const CLEAR: Duration = Duration::from_secs(1);
/// Between two looks at whether a lock is still wanted.
const LOOK: Duration = Duration::from_millis(500);

/// What is to be done, and under which lock.
pub(super) struct Errand<'a> {
    pub(super) name: &'a LockName,
    pub(super) lock: &'a lock::Options,
    /// What others see as the program.
    pub(super) program: &'a OsStr,
    pub(super) leftovers: Leftovers,
    /// What it gets beside the variables of the lock.
    pub(super) variables: Vec<(String, String)>,
    /// Whether nobody wants the lock any more, if that may be: looked at now and then while it is waited for.
    pub(super) unwanted: Option<&'a dyn Fn() -> bool>,
    /// Who waits in the foreground for the lock.
    pub(super) background: Option<&'a Detached>,
}

/// Has the guard do it under the lock and tells how it ended.
pub(super) fn carry_out(
    errand: &Errand,
    contender: impl Contend,
    guard: Guard,
    ledger: &mut Ledger,
) -> Result<Exit, Failure> {
    super::block_on(async {
        let post = Post::open(guard).context("cannot listen to the guard process")?;
        let signals = Signals::listen().context("cannot listen to signals")?;
        Runner::new(errand, contender, ledger, post, signals)
            .run()
            .await
    })
}

/// How acquiring went.
enum Acquired<S> {
    Won(Box<Won<S>>),
    Ended(Exit),
}

struct Runner<'a, C> {
    errand: &'a Errand<'a>,
    contender: C,
    post: Post,
    signals: Signals,
    began_at: Instant,
    ledger: &'a mut Ledger,
}

impl<'a, C: Contend> Runner<'a, C> {
    fn new(
        errand: &'a Errand,
        contender: C,
        ledger: &'a mut Ledger,
        post: Post,
        signals: Signals,
    ) -> Self {
        Self {
            errand,
            contender,
            post,
            signals,
            began_at: clock::now(),
            ledger,
        }
    }

    async fn run(&mut self) -> Result<Exit, Failure> {
        // Boxed, so that the room of one is free while the other runs.
        match self.acquire().boxed_local().await? {
            Acquired::Won(won) => self.hold(*won).boxed_local().await,
            Acquired::Ended(exit) => Ok(exit),
        }
    }

    async fn acquire(&mut self) -> Result<Acquired<C::Session>, Failure> {
        enum Event<S> {
            Acquired(Result<Outcome<S>, Trouble>),
            WaitPassed,
            Signal(i32),
            GuardDead,
            Unwanted,
        }
        let give_up_at = match self.errand.lock.wish.patience {
            Patience::For(wait) => Some(self.began_at + wait),
            Patience::None | Patience::Endless => None,
        };
        let mut ahead = None;
        let mut kept = Vec::new();
        let contender = &self.contender;
        let event = {
            let voice = Voice::new(self.errand.name, self.began_at, give_up_at);
            let tell = |waiting: Waiting| {
                voice.hear(&waiting);
                if let Waiting::Behind(now) = waiting {
                    ahead = Some(now);
                }
            };
            let ending = async {
                loop {
                    let signal = self.signals.next().await;
                    if guard::blocked_at_start(signal.number) {
                        // The command gets it when it is ready for it.
                        kept.push(signal);
                    } else if signal.ends() {
                        break signal.number;
                    } else if signal.stops() {
                        guard::stop_by(signal.number);
                    }
                }
            };
            tokio::select! {
                biased;
                signal = ending => Event::Signal(signal),
                () = guard_dead(&mut self.post) => Event::GuardDead,
                outcome = contender.acquire(tell) => Event::Acquired(outcome),
                () = clock::until(give_up_at) => Event::WaitPassed,
                () = unwanted(self.errand.unwanted) => Event::Unwanted,
                never = voice.go_on(async || contender.ahead().await) => match never {},
                never = voice.wonder(|| contender.unanswered()) => match never {},
            }
        };
        self.signals.keep(kept);
        if !matches!(event, Event::Acquired(Ok(_))) {
            contender.leave().await;
        }
        match event {
            Event::Acquired(outcome) => {
                let outcome = outcome.map_err(|trouble| self.cannot_lock(trouble))?;
                Ok(self.judge(outcome))
            }
            Event::WaitPassed => {
                if let Some(ahead) = ahead {
                    return Ok(self.judge(Outcome::Busy(ahead)));
                }
                // Whether it is busy nobody knows.
                let waited = give_up_at.unwrap_or(clock::now()).since(self.began_at);
                Err(self.cannot_lock(contender.unreachable(waited)))
            }
            Event::Signal(signal) => Ok(Acquired::Ended(Exit::Signalled(signal))),
            Event::GuardDead => Err(anyhow!("cannot go on: the guard process is dead").into()),
            Event::Unwanted => {
                self.ledger.because("nobody wanted the lock any more");
                Ok(Acquired::Ended(Exit::Done))
            }
        }
    }

    fn cannot_lock(&self, trouble: Trouble) -> Failure {
        failed(format_args!("cannot lock '{}'", self.errand.name), trouble)
    }

    /// What it means that the lock was won, or who was in the way.
    fn judge(&mut self, outcome: Outcome<C::Session>) -> Acquired<C::Session> {
        let Errand { name, lock, .. } = self.errand;
        match Refusal::of(name, lock.wish.patience, outcome) {
            Ok(won) => Acquired::Won(won),
            Err(refusal) => {
                self.ledger.because(&refusal.line);
                Acquired::Ended(refusal.tell(name, lock))
            }
        }
    }

    async fn hold(&mut self, won: Won<C::Session>) -> Result<Exit, Failure> {
        let environment = self.environment(&won);
        let errand = self.errand;
        let (now, token) = (clock::now(), won.token);
        self.ledger.acquired(now, token);
        let waited = now.since(self.began_at);
        info!(
            event = events::ACQUIRED,
            lock = %errand.name,
            token = token.0,
            waited_seconds = seconds(waited),
            "acquired '{}' with token {token} after {}",
            errand.name,
            span(waited)
        );
        let limit_at = errand.lock.max_hold.map(|limit| clock::now() + limit);
        let watchdog = won.watchdog.limited(limit_at);
        if let Err(error) = self.post.guard.start(&environment, watchdog.deadlines()) {
            let _ = self.contender.release(RELEASE, Parting::Unused).await;
            return Err(
                anyhow!("cannot tell the guard process to start the command: {error}").into(),
            );
        }
        let mut supervision = Supervision {
            name: errand.name,
            watchdog,
            session: won.session,
            ledger: self.ledger,
            post: &mut self.post,
            signals: &mut self.signals,
            policy: errand.leftovers,
            leftovers: None,
            background: errand.background,
        };
        let end = supervision.run().await;
        let watchdog = supervision.watchdog;
        self.ledger.over(clock::now());
        match end {
            End::Survivors(survivors) => Ok(self.unkillable(&survivors, watchdog.standing())),
            End::Dead { status, cut } => self.finish(token, &watchdog, status, cut).await,
            End::NotStarted { errno } => {
                let _ = self.contender.release(RELEASE, Parting::Unused).await;
                let error = io::Error::from_raw_os_error(errno);
                Err(not_started(errand.program, &error))
            }
        }
    }

    /// The variables that the command gets beside those it has.
    fn environment(&self, won: &Won<C::Session>) -> Vec<(String, String)> {
        let held = whoami::held().with(Link {
            name: self.errand.name.clone(),
            token: won.token.0,
            mode: self.errand.lock.wish.mode,
            scope: self.contender.scope(),
        });
        let always = [
            ("DLOCK_FENCING_TOKEN", won.token.to_string()),
            ("DLOCK_NAME", self.errand.name.to_string()),
            ("DLOCK_HELD", held.to_string()),
        ];
        let slot = won.slot.map(|slot| ("DLOCK_SLOT", slot.to_string()));
        let lock = always
            .into_iter()
            .chain(slot)
            .chain(won.variables.iter().cloned());
        lock.map(|(name, value)| (name.to_owned(), value))
            .chain(self.errand.variables.iter().cloned())
            .collect()
    }

    /// Everything of the command is dead: give the lock back, and see whether it was ours to the end.
    async fn finish(
        &mut self,
        token: FencingToken,
        watchdog: &Watchdog,
        status: Option<Status>,
        cut: Option<Cut>,
    ) -> Result<Exit, Failure> {
        let name = self.errand.name;
        let (exit, result) = match (watchdog.standing(), status) {
            (Standing::Held, Some(status)) => match (cut, status) {
                (None, Status::Exited(code)) => (Exit::Command(code), format!("exit {code}")),
                (None, Status::Signalled(signal)) => {
                    (Exit::Signalled(signal), format!("signal {signal}"))
                }
                (Some(Cut::MaxHold), _) => (Exit::TimedOut, "stopped at --max-hold".to_owned()),
                (Some(Cut::Asked), _) => (Exit::Lost, "asked to stop".to_owned()),
            },
            (Standing::Lost(_), _) => {
                let lost = Parting::AtOnce("lost the lock");
                let _ = self.contender.release(CLEAR, lost).await;
                return Ok(Exit::Lost);
            }
            (Standing::Held | Standing::Unguarded, _) => {
                let killed = Parting::AtOnce("killed, its guard was dead");
                let _ = self.contender.release(RELEASE, killed).await;
                return Err(anyhow!("cannot guard the command any more, so it was killed: the guard process was killed or stopped").into());
            }
        };
        let parting = if exit == Exit::Lost {
            Parting::AtOnce(&result)
        } else {
            Parting::Done(&result)
        };
        let left = watchdog.deadlines().kill_at.since(clock::now());
        // After its deadline the lock may be another's, which only the answer can tell.
        let limit = left.clamp(CLEAR, RELEASE);
        match self.contender.release(limit, parting).await {
            Release::Confirmed => {
                let held = self.ledger.held(clock::now());
                info!(
                    event = events::RELEASED,
                    lock = %name,
                    token = token.0,
                    held_seconds = seconds(held),
                    result,
                    "released '{name}' after {}: {result}",
                    span(held)
                );
            }
            Release::Unconfirmed(trouble) => warn!(
                event = events::RELEASE_UNCONFIRMED,
                lock = %name,
                cause = %trouble,
                within_seconds = seconds(self.errand.lock.ttl),
                "cannot confirm the release of '{name}', it frees itself within {}: {trouble}",
                span(self.errand.lock.ttl)
            ),
            Release::NotOurs => {
                let cause = "its key is gone or another's";
                self.ledger.because(cause);
                warn!(
                    event = events::LOST,
                    lock = %name,
                    cause,
                    "the lock '{name}' was lost while the command ran: {cause}"
                );
                return Ok(Exit::Lost);
            }
        }
        Ok(exit)
    }

    fn unkillable(&mut self, survivors: &[Survivor], standing: Standing) -> Exit {
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
            self.ledger.insist(&line);
            error!(
                event = events::SURVIVOR,
                pid,
                program,
                state = %state,
                uid,
                "{line}"
            );
        }
        let fate = self.contender.unreleased(standing != Standing::Unguarded);
        error!(
            event = events::UNKILLABLE,
            lock = %self.errand.name,
            "the lock '{}' is not released: {fate}",
            self.errand.name,
        );
        Exit::Unkillable
    }
}

/// Until the lock is not wanted any more.
async fn unwanted(unwanted: Option<&dyn Fn() -> bool>) {
    let Some(unwanted) = unwanted else {
        return std::future::pending().await;
    };
    while !unwanted() {
        tokio::time::sleep(LOOK).await;
    }
}

/// While nothing was started, the guard has nothing to report but its death.
async fn guard_dead(post: &mut Post) {
    while !matches!(post.report().await, Report::GuardDead) {}
}
