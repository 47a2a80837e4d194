//! Something that is done under a lock: take the lock, have the guard do it, give the lock back.
//! It must not know gRPC, nor how processes are killed.

use std::ffi::OsStr;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use tracing::{info, warn};

use super::failed;
use super::post::Post;
use super::program::not_started;
use super::signals::Signals;
use super::supervise::{End, Supervision};
use super::waiting::{narrate, who};
use crate::cli::lock;
use crate::clock;
use crate::config::Settings;
use crate::core::holder::{Ask, Holder};
use crate::core::lease::{Instant, Place, Terms};
use crate::core::leftovers::Leftovers;
use crate::core::mode::Patience;
use crate::core::name::{Link, LockName};
use crate::core::queue::Queue;
use crate::core::text::{printable, span};
use crate::core::watchdog::{Cut, Standing, Watchdog};
use crate::etcd::contend::{Contender, Outcome, Parting, Release, Waiting, Won};
use crate::etcd::{Cluster, Trouble};
use crate::exit::{Exit, Failure};
use crate::guard::{Detached, Guard, Other, Report, Status, Survivor};
use crate::whoami;

/// How long the release of a lock that was ours to the end may take.
const RELEASE: Duration = Duration::from_secs(5);
/// How long the removal of what may be left after a loss may take.
const CLEAR: Duration = Duration::from_secs(1);
/// Between two looks at the process that a lock is for, while it waits.
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
    /// With whose end the lock is not wanted any more.
    pub(super) owner: Option<&'a Other>,
    /// Who waits in the foreground for the lock.
    pub(super) background: Option<Detached>,
}

/// Has the guard do it under the lock and tells how it ended.
pub(super) fn carry_out(
    mut errand: Errand,
    settings: &Settings,
    guard: Guard,
) -> Result<Exit, Failure> {
    super::block_on(async {
        let post = Post::open(guard).context("cannot listen to the guard process")?;
        let signals = Signals::listen().context("cannot listen to signals")?;
        let background = errand.background.take();
        let mut runner = Runner::new(&errand, settings, post, signals);
        runner.background = background;
        runner.run().await
    })
}

/// How acquiring went.
enum Acquired {
    Won(Box<Won>),
    Ended(Exit),
}

struct Runner<'a> {
    errand: &'a Errand<'a>,
    contender: Contender,
    connect_timeout: Duration,
    post: Post,
    signals: Signals,
    began_at: Instant,
    background: Option<Detached>,
}

impl<'a> Runner<'a> {
    fn new(errand: &'a Errand, settings: &Settings, post: Post, signals: Signals) -> Self {
        let lock = errand.lock;
        let record = whoami::holder(
            errand.program,
            lock.note.as_deref(),
            lock.wish.mode,
            lock.grace,
        );
        let contender = Contender::new(
            Rc::new(Cluster::new(settings)),
            Queue::new(&settings.prefix, errand.name),
            record,
            Terms::new(lock.ttl, lock.grace),
            lock.wish,
        );
        Self {
            errand,
            contender,
            connect_timeout: settings.connect_timeout,
            post,
            signals,
            began_at: clock::now(),
            background: None,
        }
    }

    async fn run(&mut self) -> Result<Exit, Failure> {
        // Boxed, so that the room of one is free while the other runs.
        match self.acquire().boxed_local().await? {
            Acquired::Won(won) => self.hold(*won).boxed_local().await,
            Acquired::Ended(exit) => Ok(exit),
        }
    }

    async fn acquire(&mut self) -> Result<Acquired, Failure> {
        enum Event {
            Acquired(Result<Outcome, Trouble>),
            WaitPassed,
            Signal(i32),
            GuardDead,
            OwnerGone,
        }
        let (limit, give_up_at) = match self.errand.lock.wish.patience {
            Patience::For(wait) => (wait.min(self.connect_timeout), Some(self.began_at + wait)),
            Patience::None | Patience::Endless => (self.connect_timeout, None),
        };
        let mut ahead = None;
        let contender = &self.contender;
        let tell = |waiting: Waiting| {
            narrate(self.errand.name, &waiting);
            if let Waiting::Behind(now) = waiting {
                ahead = Some(now);
            }
        };
        let event = {
            let ending = async {
                loop {
                    let signal = self.signals.next().await;
                    if signal.ends() {
                        break signal.number;
                    }
                }
            };
            tokio::select! {
                biased;
                signal = ending => Event::Signal(signal),
                () = guard_dead(&mut self.post) => Event::GuardDead,
                outcome = contender.acquire(limit, tell) => Event::Acquired(outcome),
                () = clock::until(give_up_at) => Event::WaitPassed,
                () = gone(self.errand.owner) => Event::OwnerGone,
            }
        };
        if !matches!(event, Event::Acquired(Ok(_))) {
            contender.leave().await;
        }
        match event {
            Event::Acquired(outcome) => {
                let outcome = outcome.map_err(|trouble| self.cannot_lock(trouble))?;
                Ok(self.judge(outcome))
            }
            Event::WaitPassed => match ahead {
                Some(ahead) => Ok(self.judge(Outcome::Busy(ahead))),
                // Whether it is busy nobody knows.
                None => {
                    Err(self.cannot_lock(contender.unreachable(clock::now().since(self.began_at))))
                }
            },
            Event::Signal(signal) => Ok(Acquired::Ended(Exit::Signalled(signal))),
            Event::GuardDead => Err(anyhow!("cannot go on: the guard process is dead").into()),
            Event::OwnerGone => Ok(Acquired::Ended(Exit::Done)),
        }
    }

    fn cannot_lock(&self, trouble: Trouble) -> Failure {
        failed(format_args!("cannot lock '{}'", self.errand.name), trouble)
    }

    /// What it means that the lock was won, or who was in the way.
    fn judge(&self, outcome: Outcome) -> Acquired {
        let name = self.errand.name;
        let line = match outcome {
            Outcome::Won(won) => return Acquired::Won(won),
            Outcome::Busy(ahead) => {
                let still = match self.errand.lock.wish.patience {
                    Patience::None => "",
                    Patience::For(_) | Patience::Endless => " still",
                };
                format!("the lock '{name}' is{still} held by {}", who(&ahead))
            }
            Outcome::Cooling(ahead, left) => format!(
                "the lock '{name}' is cooling down, {} left: last held by {}",
                span(left),
                who(&ahead)
            ),
            Outcome::Ran(ran) => format!("'{name}' ran already: {}", told(ran.as_ref())),
            Outcome::Asked(ask) => sent_away(name, &ask),
        };
        let conflict = self.errand.lock.conflict;
        // Who calls that a success asks for no words: cron mails each of them.
        if conflict == 0 {
            info!("{line}");
        } else {
            warn!("{line}");
        }
        Acquired::Ended(Exit::Busy(conflict))
    }

    async fn hold(&mut self, won: Won) -> Result<Exit, Failure> {
        let Won {
            claim,
            terms,
            proven_at,
            session,
            slot,
        } = won;
        let errand = self.errand;
        info!(
            "acquired '{}' with token {} after {}",
            errand.name,
            claim.place.token,
            span(clock::now().since(self.began_at))
        );
        let seed = claim.place.lease.0.unsigned_abs();
        let limit_at = errand.lock.max_hold.map(|limit| clock::now() + limit);
        let watchdog = Watchdog::new(terms, claim, proven_at, seed).limited(limit_at);
        let environment = self.environment(claim.place, slot);
        if let Err(error) = self.post.guard.start(&environment, watchdog.deadlines()) {
            let _ = self.contender.release(RELEASE, Parting::Unused).await;
            return Err(
                anyhow!("cannot tell the guard process to start the command: {error}").into(),
            );
        }
        let mut supervision = Supervision {
            name: errand.name,
            watchdog,
            session,
            post: &mut self.post,
            signals: &mut self.signals,
            policy: errand.leftovers,
            leftovers: None,
            background: self.background.take(),
        };
        let end = supervision.run().await;
        let watchdog = supervision.watchdog;
        match end {
            End::Survivors(survivors) => Ok(self.unkillable(&survivors)),
            End::Dead { status, cut } => self.finish(&watchdog, status, cut).await,
            End::NotStarted { errno } => {
                let _ = self.contender.release(RELEASE, Parting::Unused).await;
                let error = io::Error::from_raw_os_error(errno);
                Err(not_started(errand.program, &error))
            }
        }
    }

    /// The variables that the command gets beside those it has; `etcdctl lock` sets two of them.
    fn environment(&self, place: Place, slot: Option<u16>) -> Vec<(String, String)> {
        let token = place.token.to_string();
        let key = self.contender.key(place.lease);
        let held = whoami::held().with(Link {
            name: self.errand.name.clone(),
            token: place.token.0,
            mode: self.errand.lock.wish.mode,
        });
        let always = [
            ("DLOCK_FENCING_TOKEN", token.clone()),
            ("DLOCK_NAME", self.errand.name.to_string()),
            ("DLOCK_KEY", key.clone()),
            ("DLOCK_LEASE", place.lease.to_string()),
            ("DLOCK_HELD", held.to_string()),
            ("ETCD_LOCK_KEY", key),
            ("ETCD_LOCK_REV", token),
        ];
        let slot = slot.map(|slot| ("DLOCK_SLOT", slot.to_string()));
        let lock = always.into_iter().chain(slot);
        lock.map(|(name, value)| (name.to_owned(), value))
            .chain(self.errand.variables.iter().cloned())
            .collect()
    }

    /// Everything of the command is dead: give the lock back, and see whether it was ours to the end.
    async fn finish(
        &self,
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
        match self.contender.release(left.min(RELEASE), parting).await {
            Release::Confirmed => {}
            Release::Unconfirmed(trouble) => warn!(
                "cannot confirm the release of '{name}', it frees itself within {}: {trouble}",
                span(self.errand.lock.ttl)
            ),
            Release::NotOurs => {
                warn!(
                    "the lock '{name}' was lost while the command ran: its key is gone or another's"
                );
                return Ok(Exit::Lost);
            }
        }
        Ok(exit)
    }

    fn unkillable(&self, survivors: &[Survivor]) -> Exit {
        for Survivor {
            pid,
            state,
            uid,
            program,
        } in survivors
        {
            warn!("cannot kill process {pid} ('{program}', state {state}, uid {uid})");
        }
        warn!(
            "the lock '{}' is not released: it frees itself within {} although the command is not dead",
            self.errand.name,
            span(self.errand.lock.ttl)
        );
        Exit::Unkillable
    }
}

/// Until the process that the lock is for has ended, if there is one.
async fn gone(owner: Option<&Other>) {
    match owner {
        Some(owner) => {
            while !owner.has_ended() {
                tokio::time::sleep(LOOK).await;
            }
        }
        None => std::future::pending().await,
    }
}

/// While nothing was started, the guard has nothing to report but its death.
async fn guard_dead(post: &mut Post) {
    while !matches!(post.report().await, Report::GuardDead) {}
}

/// Who ran last, when, and how it ended.
fn told(ran: Option<&Holder>) -> String {
    let Some(ran) = ran else {
        return "by another client".to_owned();
    };
    let result = ran
        .result
        .as_deref()
        .unwrap_or("not ended yet, or not told how");
    printable(&format!("{}; {result}", ran.sentence()))
}

fn sent_away(name: &LockName, ask: &Ask) -> String {
    format!(
        "no longer waiting for '{name}', sent away by {}",
        ask.sentence()
    )
}
