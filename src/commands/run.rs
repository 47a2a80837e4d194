//! `dlock run`: look the command up, take the lock, supervise the command, give the lock back.
//! It must not know gRPC, nor how processes are killed.

use std::io::{self, IsTerminal as _};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tracing::{info, warn};

use super::post::Post;
use super::signals::Signals;
use super::supervise::{End, Supervision};
use crate::cli::run::{Options, Patience};
use crate::clock;
use crate::config::Settings;
use crate::core::holder::Holder;
use crate::core::lease::{Instant, Place, Terms};
use crate::core::name::Chain;
use crate::core::queue::Queue;
use crate::core::text::span;
use crate::core::watchdog::{Standing, Watchdog};
use crate::etcd::contend::{Contender, Release, Waiting, Won};
use crate::etcd::{Ahead, Cluster, Trouble};
use crate::exit::{Exit, Failure, OrFail as _};
use crate::guard::{self, Lookup, Policy, Report, Status, Survivor};
use crate::whoami;

/// How long the release of a lock that was ours to the end may take.
const RELEASE: Duration = Duration::from_secs(5);
/// How long the removal of what may be left after a loss may take.
const CLEAR: Duration = Duration::from_secs(1);

/// Runs the command under the lock and tells how it ended.
pub(super) fn run(settings: &Settings, options: &Options) -> Result<Exit, Failure> {
    refuse_self_deadlock(options)?;
    let policy = Policy {
        signal: options.signal,
        grace: options.grace,
        leftovers: options.leftovers,
    };
    // Before any thread exists: see guard/mod.rs.
    let guard =
        guard::launch(command(options)?, policy).context("cannot start the guard process")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let tasks = tokio::task::LocalSet::new();
    let ended = tasks.block_on(&runtime, async {
        let post = Post::open(guard).context("cannot listen to the guard process")?;
        let signals = Signals::listen().context("cannot listen to signals")?;
        let mut runner = Runner::new(options, settings, post, signals);
        runner.run().await
    });
    // A name look-up that hangs must not keep us: nobody waits for what it finds.
    runtime.shutdown_background();
    ended
}

fn refuse_self_deadlock(options: &Options) -> Result<(), Failure> {
    let Some(token) = held().token(&options.name) else {
        return Ok(());
    };
    Err(anyhow!(
        "cannot lock '{}': this command runs under it already (token {token}) and would wait for itself",
        options.name
    ))
    .or_hint("take it once around both commands, or unset DLOCK_HELD if it is not held any more")
}

/// The locks under which dlock itself was started.
fn held() -> Chain {
    Chain::parse(&std::env::var("DLOCK_HELD").unwrap_or_default())
}

/// Finds the command before anybody queues for it.
fn command(options: &Options) -> Result<guard::Command, Failure> {
    let program = options.program();
    match guard::lookup(program) {
        Ok(path) => Ok(guard::Command {
            path,
            argv: options.command.clone(),
        }),
        Err(Lookup::NotFound) => Err(anyhow!(
            "cannot run '{}': command not found",
            program.display()
        ))
        .or_exit(Exit::NotFound),
        Err(Lookup::NotExecutable(error)) => {
            Err(anyhow!("cannot run '{}': {error}", program.display())).or_exit(Exit::NotExecutable)
        }
    }
}

/// How acquiring went.
enum Acquired {
    Won(Box<Won>),
    Busy(Ahead),
    Ended(Exit),
}

struct Runner<'a> {
    options: &'a Options,
    contender: Contender,
    connect_timeout: Duration,
    post: Post,
    signals: Signals,
    began_at: Instant,
}

impl<'a> Runner<'a> {
    fn new(options: &'a Options, settings: &Settings, post: Post, signals: Signals) -> Self {
        let terms = Terms::new(options.ttl, options.grace);
        let contender = Contender::new(
            Rc::new(Cluster::new(settings)),
            Queue::new(&settings.prefix, &options.name),
            whoami::holder(options.program(), options.note.as_deref(), options.grace).to_json(),
            terms,
        );
        Self {
            options,
            contender,
            connect_timeout: settings.connect_timeout,
            post,
            signals,
            began_at: clock::now(),
        }
    }

    async fn run(&mut self) -> Result<Exit, Failure> {
        match self.acquire().await? {
            Acquired::Won(won) => self.hold(*won).await,
            Acquired::Busy(ahead) => Ok(self.busy(&ahead)),
            Acquired::Ended(exit) => Ok(exit),
        }
    }

    async fn acquire(&mut self) -> Result<Acquired, Failure> {
        enum Event {
            Won(Result<Won, Trouble>),
            Tried(Result<Result<Won, Ahead>, Trouble>),
            WaitPassed,
            Signal(i32),
            GuardDead,
        }
        let give_up_at = match self.options.patience {
            Patience::For(wait) => Some(self.began_at + wait),
            Patience::None | Patience::Endless => None,
        };
        let mut ahead = Ahead::default();
        let contender = &self.contender;
        let limit = self.connect_timeout;
        let tell = |waiting: Waiting| narrate(self.options, waiting, &mut ahead);
        let event = {
            let acquiring = async {
                if self.options.patience == Patience::None {
                    Event::Tried(contender.try_acquire(limit).await)
                } else {
                    Event::Won(contender.acquire(limit, tell).await)
                }
            };
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
                event = acquiring => event,
                () = clock::until(give_up_at) => Event::WaitPassed,
            }
        };
        if let Event::Won(Err(_)) | Event::Tried(Err(_)) = event {
            contender.leave().await;
        }
        match event {
            Event::Won(won) => Ok(Acquired::Won(Box::new(
                won.map_err(|trouble| self.cannot_lock(&trouble))?,
            ))),
            Event::Tried(tried) => {
                Ok(match tried.map_err(|trouble| self.cannot_lock(&trouble))? {
                    Ok(won) => Acquired::Won(Box::new(won)),
                    Err(ahead) => Acquired::Busy(ahead),
                })
            }
            Event::WaitPassed => {
                contender.leave().await;
                Ok(Acquired::Busy(ahead))
            }
            Event::Signal(signal) => {
                contender.leave().await;
                Ok(Acquired::Ended(Exit::Signalled(signal)))
            }
            Event::GuardDead => {
                contender.leave().await;
                Err(anyhow!("cannot go on: the guard process is dead").into())
            }
        }
    }

    fn cannot_lock(&self, trouble: &Trouble) -> Failure {
        Failure {
            hint: trouble.hint.clone(),
            ..anyhow!("cannot lock '{}': {}", self.options.name, trouble.cause).into()
        }
    }

    fn busy(&self, ahead: &Ahead) -> Exit {
        let name = &self.options.name;
        let how = match self.options.patience {
            Patience::None => "",
            Patience::For(_) | Patience::Endless => " still",
        };
        let line = format!("the lock '{name}' is{how} held by {}", who(ahead));
        // Who calls that a success asks for no words: cron mails each of them.
        if self.options.conflict == 0 {
            info!("{line}");
        } else {
            warn!("{line}");
        }
        Exit::Busy(self.options.conflict)
    }

    async fn hold(&mut self, won: Won) -> Result<Exit, Failure> {
        let Won {
            claim,
            terms,
            proven_at,
            session,
        } = won;
        info!(
            "acquired '{}' with token {} after {}",
            self.options.name,
            claim.place.token,
            span(clock::now().since(self.began_at))
        );
        let seed = claim.place.lease.0.unsigned_abs();
        let watchdog = Watchdog::new(terms, claim, proven_at, seed);
        let environment = self.environment(claim.place);
        if let Err(error) = self.post.guard.start(&environment, watchdog.deadlines()) {
            let _ = self.contender.release(RELEASE).await;
            return Err(
                anyhow!("cannot tell the guard process to start the command: {error}").into(),
            );
        }
        let mut supervision = Supervision {
            name: &self.options.name,
            watchdog,
            session,
            post: &mut self.post,
            signals: &mut self.signals,
            policy: self.options.leftovers,
            leftovers: None,
        };
        let end = supervision.run().await;
        let watchdog = supervision.watchdog;
        match end {
            End::Survivors(survivors) => Ok(self.unkillable(&survivors)),
            End::Dead(status) => self.finish(&watchdog, status).await,
            End::NotStarted { errno } => {
                let _ = self.contender.release(RELEASE).await;
                self.not_started(errno)
            }
        }
    }

    /// The variables that the command gets beside those it has; `etcdctl lock` sets the last two.
    fn environment(&self, place: Place) -> Vec<(String, String)> {
        let token = place.token.to_string();
        let key = self.contender.key(place.lease);
        let held = held().with(self.options.name.clone(), place.token.0);
        [
            ("DLOCK_FENCING_TOKEN", token.clone()),
            ("DLOCK_NAME", self.options.name.to_string()),
            ("DLOCK_KEY", key.clone()),
            ("DLOCK_LEASE", place.lease.to_string()),
            ("DLOCK_HELD", held.to_string()),
            ("ETCD_LOCK_KEY", key),
            ("ETCD_LOCK_REV", token),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Everything of the command is dead: give the lock back, and see whether it was ours to the end.
    async fn finish(&self, watchdog: &Watchdog, status: Option<Status>) -> Result<Exit, Failure> {
        let name = &self.options.name;
        match (watchdog.standing(), status) {
            (Standing::Held, Some(status)) => {
                let left = watchdog.deadlines().kill_at.since(clock::now());
                match self.contender.release(left.min(RELEASE)).await {
                    Release::Confirmed => {}
                    Release::Unconfirmed(trouble) => warn!(
                        "cannot confirm the release of '{name}', it frees itself within {}: {trouble}",
                        span(self.options.ttl)
                    ),
                    Release::NotOurs => {
                        warn!(
                            "the lock '{name}' was lost while the command ran: its key is gone or another's"
                        );
                        return Ok(Exit::Lost);
                    }
                }
                Ok(match status {
                    Status::Exited(code) => Exit::Command(code),
                    Status::Signalled(signal) => Exit::Signalled(signal),
                })
            }
            (Standing::Lost(_), _) => {
                let _ = self.contender.release(CLEAR).await;
                Ok(Exit::Lost)
            }
            (Standing::Held | Standing::Unguarded, _) => {
                let _ = self.contender.release(RELEASE).await;
                Err(anyhow!("cannot guard the command any more, so it was killed: the guard process was killed or stopped").into())
            }
        }
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
            self.options.name,
            span(self.options.ttl)
        );
        Exit::Unkillable
    }

    fn not_started(&self, errno: i32) -> Result<Exit, Failure> {
        let error = io::Error::from_raw_os_error(errno);
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::NotExecutable,
        };
        Err(anyhow!(
            "cannot run '{}': {error}",
            self.options.program().display()
        ))
        .or_exit(exit)
    }
}

/// While nothing was started, the guard has nothing to report but its death.
async fn guard_dead(post: &mut Post) {
    while !matches!(post.report().await, Report::GuardDead) {}
}

/// Tells what is waited for: always to somebody who sits there and wonders.
fn say(line: &str) {
    if io::stderr().is_terminal() {
        warn!("{line}");
    } else {
        info!("{line}");
    }
}

fn narrate(options: &Options, waiting: Waiting, ahead: &mut Ahead) {
    match waiting {
        Waiting::Behind(now) => {
            let line = format!("waiting for '{}', held by {}", options.name, who(&now));
            let place = format!("place {} in the queue", now.count);
            *ahead = now;
            say(&format!("{line}; {place}"));
        }
        Waiting::HandOver(delay) => say(&format!(
            "the holder of '{}' vanished without releasing it: waiting {} for its command to end",
            options.name,
            span(delay)
        )),
        Waiting::PlaceLost => warn!(
            "our own lease ended while waiting: queueing again for '{}'",
            options.name
        ),
        Waiting::Trouble(trouble) => {
            info!("waiting for '{}' goes on, though {trouble}", options.name);
        }
    }
}

/// Whoever holds the lock, for people.
fn who(ahead: &Ahead) -> String {
    ahead
        .holder
        .as_ref()
        .map_or_else(|| "another client".to_owned(), Holder::sentence)
}
