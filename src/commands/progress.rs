//! Progress of a wait: a live line on the terminal, or a log line now and then.
//! It must not know when the queue changes.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use tracing::{Level, enabled, info, warn};

use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::core::text::{format_duration, seconds};
use crate::core::time::Instant;
use crate::core::wait_status::WaitStatus;
use crate::host::identity;
use crate::lock::backend::{QueuePosition, WaitEvent};
use crate::output::events;
use crate::output::live_line::{LiveLine, Stderr, behind_stderr, columns};
use crate::output::log;
use crate::output::systemd;
use crate::sys::clock;

/// The live line counts seconds.
const LIVE_INTERVAL: Duration = Duration::from_secs(1);
/// The next waiter sees a release at once; all others poll their position, if it is shown.
const POSITION_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before dlock tells an interactive user that etcd is silent.
const UNANSWERED_DELAY: Duration = Duration::from_secs(1);
/// Interval at which the log repeats that the wait continues.
const REPEAT_INTERVAL: Duration = Duration::from_mins(1);

/// Logs as information, or as a warning if the level of a reader hides information.
macro_rules! tell {
    ($($what:tt)*) => {
        if enabled!(Level::INFO) {
            info!($($what)*);
        } else {
            warn!($($what)*);
        }
    };
}

/// Tells an interactive user that dlock waits for the lock of a fence's file.
pub(super) fn report_fence_wait(file: &Path) {
    if output_mode() != OutputMode::Silent {
        let file = file.display();
        tell!(
            event = events::FENCE_WAITING,
            %file,
            "waiting for '{file}': another command runs under this fence"
        );
    }
}

/// The form in which a wait is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputMode {
    Silent,
    Lines,
    Live,
}

/// The mode now; it changes when dlock moves to or from the foreground.
fn output_mode() -> OutputMode {
    choose_mode(
        behind_stderr(),
        log::speaks_json(),
        enabled!(Level::WARN),
        enabled!(Level::INFO) || identity::in_ci(),
    )
}

fn choose_mode(stderr: Stderr, json: bool, loud: bool, wanted: bool) -> OutputMode {
    match stderr {
        _ if !loud => OutputMode::Silent,
        Stderr::Screen if !json => OutputMode::Live,
        Stderr::Screen | Stderr::Paper => OutputMode::Lines,
        Stderr::Elsewhere if wanted => OutputMode::Lines,
        Stderr::Elsewhere => OutputMode::Silent,
    }
}

/// Reports one wait, from its beginning until this is dropped.
pub(super) struct WaitReporter<'a> {
    name: &'a LockName,
    state: RefCell<State>,
}

struct State {
    status: WaitStatus,
    live: Option<LiveLine>,
    /// Time of the last log line.
    logged_at: Option<Instant>,
    /// The key without a lease that was logged.
    last_permanent: Option<FencingToken>,
    /// The last error that was logged.
    last_error: Option<String>,
}

impl<'a> WaitReporter<'a> {
    pub(super) fn new(name: &'a LockName, began_at: Instant, give_up_at: Option<Instant>) -> Self {
        Self {
            name,
            state: RefCell::new(State {
                status: WaitStatus::new(name.clone(), began_at, give_up_at),
                live: None,
                logged_at: None,
                last_permanent: None,
                last_error: None,
            }),
        }
    }

    /// Records an event and reports it.
    pub(super) fn on_event(&self, waiting: &WaitEvent) {
        let now = clock::now();
        let state = &mut *self.state.borrow_mut();
        let (status, name) = (&mut state.status, self.name);
        let in_lines = output_mode() == OutputMode::Lines || enabled!(Level::INFO);
        // An event with a line of its own only redraws the live line.
        let mut due = false;
        match waiting {
            WaitEvent::Behind(ahead) => {
                if let Some(key) = ahead.permanent.as_ref()
                    && state.last_permanent != Some(key.token)
                {
                    state.last_permanent = Some(key.token);
                    let (what, hint) = (key.describe(), key.remedy(&name.to_string()));
                    warn!(
                        event = events::PERMANENT_KEY,
                        lock = %name,
                        token = key.token.0,
                        hint,
                        "the lock '{name}' is not free: {what}"
                    );
                }
                status.behind(now, ahead.holder.as_ref(), ahead.count);
                state.last_error = None;
                due = true;
            }
            WaitEvent::LockDelay(delay) => {
                status.lock_delay(now, *delay);
                if in_lines {
                    tell!(
                        event = events::LOCK_DELAY,
                        lock = %name,
                        delay_seconds = seconds(*delay),
                        "the holder of lock '{name}' has vanished without a release: waiting {} until its command has ended",
                        format_duration(*delay)
                    );
                }
            }
            WaitEvent::NoSlot(orphan) => {
                let what = orphan.describe();
                status.error(now, what.clone());
                // Every attempt repeats it.
                if state.last_error.as_ref() != Some(&what) {
                    let hint = orphan.remedy();
                    warn!(
                        event = events::ORPHAN_SLOT,
                        lock = %name,
                        key = orphan.key,
                        hint,
                        "no slot of '{name}' is free: {what}"
                    );
                    state.last_error = Some(what);
                }
            }
            WaitEvent::OurTurn => {
                status.our_turn();
                state.last_error = None;
            }
            WaitEvent::EntryLost => {
                status.entry_lost();
                warn!(
                    event = events::PLACE_LOST,
                    lock = %name,
                    "lost the entry in the queue of '{name}', since its lease has ended: queueing again"
                );
            }
            WaitEvent::Error(error) => {
                let cause = error.to_string();
                status.error(now, cause.clone());
                // Every attempt repeats the error.
                if in_lines && state.last_error.as_ref() != Some(&cause) {
                    tell!(
                        event = events::WAIT_ERROR,
                        lock = %name,
                        cause,
                        "still waiting for '{name}': {cause}"
                    );
                    state.last_error = Some(cause);
                }
            }
        }
        state.show(name, now, due);
    }

    /// While polled, warns if etcd has not answered at all: with the causes and the time left.
    pub(super) async fn warn_unanswered(
        &self,
        unanswered: impl Fn() -> Option<(String, Duration)>,
    ) -> Infallible {
        tokio::time::sleep(UNANSWERED_DELAY).await;
        if let Some((cause, limit)) = unanswered() {
            let (name, left) = (self.name, limit.saturating_sub(UNANSWERED_DELAY));
            let line = format!(
                "no answer from etcd yet, trying for {} more: {cause}",
                format_duration(left)
            );
            systemd::status(&line);
            if output_mode() != OutputMode::Silent {
                tell!(
                    event = events::UNANSWERED,
                    lock = %name,
                    cause,
                    left_seconds = seconds(left),
                    "{line}"
                );
            }
        }
        std::future::pending().await
    }

    /// While polled, keeps the output fresh; `position` reads the queue.
    pub(super) async fn refresh(
        &self,
        position: impl AsyncFn() -> Option<QueuePosition>,
    ) -> Infallible {
        let redrawing = async {
            loop {
                clock::until(due_at(LIVE_INTERVAL)).await;
                let mut state = self.state.borrow_mut();
                let now = clock::now();
                let due = state
                    .logged_at
                    .is_some_and(|at| now.since(at) >= REPEAT_INTERVAL);
                state.show(self.name, now, due);
            }
        };
        let polling = async {
            loop {
                clock::until(due_at(POSITION_INTERVAL)).await;
                if output_mode() == OutputMode::Silent || !self.state.borrow().status.is_visible() {
                    continue;
                }
                let Some(QueuePosition { holder, count, .. }) = position().await else {
                    continue;
                };
                let mut state = self.state.borrow_mut();
                let (now, holder) = (clock::now(), holder.as_ref());
                if !state.status.is_behind(holder, count) {
                    state.status.behind(now, holder, count);
                    state.show(self.name, now, true);
                }
            }
        };
        tokio::select! {
            never = redrawing => never,
            never = polling => never,
        }
    }
}

/// Time of the next refresh; a wait that nobody sees needs none.
fn due_at(pause: Duration) -> Option<Instant> {
    // On a terminal dlock may move to the foreground later.
    let seen = io::stderr().is_terminal() || output_mode() == OutputMode::Lines;
    (enabled!(Level::WARN) && seen).then(|| clock::now() + pause)
}

impl State {
    /// Draws the live line, or logs a line if one is `due`.
    fn show(&mut self, name: &LockName, now: Instant, due: bool) {
        if due {
            systemd::status(&self.status.log_line(now));
        }
        match output_mode() {
            OutputMode::Live if self.status.is_visible() => {
                let text = self.status.live_line(now, clock::since_1970(), columns());
                self.live.get_or_insert_with(LiveLine::new).show(text);
            }
            OutputMode::Lines if due => self.log(name, now),
            OutputMode::Silent | OutputMode::Lines | OutputMode::Live => {}
        }
    }

    fn log(&mut self, name: &LockName, now: Instant) {
        self.logged_at = Some(now);
        let status = &self.status;
        let text = status.log_line(now);
        tell!(
            event = events::WAITING,
            lock = %name,
            holder = status.holder(),
            ahead = status.ahead(),
            waited_seconds = seconds(status.waited(now)),
            left_seconds = status.left(now).map(seconds),
            "{text}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::OutputMode as M;
    use super::Stderr as S;
    use super::*;

    #[test]
    fn the_form_of_a_wait_follows_from_its_reader() {
        // Under cron, and wherever nobody reads: no output.
        assert_eq!(choose_mode(S::Elsewhere, false, true, false), M::Silent);
        assert_eq!(choose_mode(S::Elsewhere, false, true, true), M::Lines);
        assert_eq!(choose_mode(S::Screen, false, true, false), M::Live);
        assert_eq!(choose_mode(S::Screen, false, true, true), M::Live);
        assert_eq!(choose_mode(S::Screen, true, true, false), M::Lines);
        assert_eq!(choose_mode(S::Paper, false, true, false), M::Lines);
        for stderr in [S::Screen, S::Paper, S::Elsewhere] {
            assert_eq!(choose_mode(stderr, false, false, true), M::Silent);
        }
    }
}
