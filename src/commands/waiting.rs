//! What is told of the queue: to those who wait, as a line that lives on their terminal or as one now and then.
//! It must not know when something happens in the queue.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use tracing::{Level, enabled, info, warn};

use crate::contest::{Ahead, Waiting};
use crate::core::lease::Instant;
use crate::core::name::LockName;
use crate::core::scene::{self, Scene};
use crate::core::text::{seconds, span};
use crate::terminal::{LiveLine, Stderr, behind_stderr};
use crate::{clock, events, log, notify, whoami};

/// A line that lives counts seconds.
const MOVE: Duration = Duration::from_secs(1);
/// The next in the queue hears of a release at once; all others look for themselves, if anybody looks at them.
const LOOK: Duration = Duration::from_secs(5);
/// Who sits there wonders after so long why nothing happens.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Who reads a log is told again that it goes on.
const AGAIN: Duration = Duration::from_mins(1);

/// Says something as information, or loudly if somebody is there to read it who has not asked for information.
macro_rules! tell {
    ($($what:tt)*) => {
        if enabled!(Level::INFO) {
            info!($($what)*);
        } else {
            warn!($($what)*);
        }
    };
}

/// Tells that a file's lock is waited for, to somebody who sits there and wonders.
pub(super) fn tell_of_fence(file: &Path) {
    if manner() != Manner::Silent {
        let file = file.display();
        tell!(
            event = events::FENCE_WAITING,
            %file,
            "waiting for '{file}': a command runs under its lock"
        );
    }
}

/// How somebody who waits is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Silent,
    Lines,
    Live,
}

/// At this moment.
fn manner() -> Manner {
    judge(
        behind_stderr(),
        log::speaks_json(),
        enabled!(Level::WARN),
        enabled!(Level::INFO) || whoami::in_ci(),
    )
}

fn judge(stderr: Stderr, json: bool, loud: bool, wanted: bool) -> Manner {
    match stderr {
        _ if !loud => Manner::Silent,
        Stderr::Screen if !json => Manner::Live,
        Stderr::Screen | Stderr::Paper => Manner::Lines,
        Stderr::Elsewhere if wanted => Manner::Lines,
        Stderr::Elsewhere => Manner::Silent,
    }
}

/// Tells of one's waiting for a lock, from its beginning until this is dropped.
pub(super) struct Voice<'a> {
    name: &'a LockName,
    state: RefCell<State>,
}

struct State {
    scene: Scene,
    live: Option<LiveLine>,
    /// When a line was told last.
    told_at: Option<Instant>,
    /// The last that was told.
    trouble: Option<String>,
}

impl<'a> Voice<'a> {
    pub(super) fn new(name: &'a LockName, began_at: Instant, give_up_at: Option<Instant>) -> Self {
        Self {
            name,
            state: RefCell::new(State {
                scene: Scene::new(name.clone(), began_at, give_up_at),
                live: None,
                told_at: None,
                trouble: None,
            }),
        }
    }

    /// Takes note of what has happened, and tells it.
    pub(super) fn hear(&self, waiting: &Waiting) {
        let now = clock::now();
        let mut state = self.state.borrow_mut();
        let (scene, name) = (&mut state.scene, self.name);
        let told = manner() == Manner::Lines || enabled!(Level::INFO);
        // What has words of its own leaves only the line that lives to be drawn.
        let mut due = false;
        match waiting {
            Waiting::Behind(ahead) => {
                scene.behind(now, ahead.holder.as_ref(), ahead.count);
                state.trouble = None;
                due = true;
            }
            Waiting::HandOver(delay) => {
                scene.hand_over(now, *delay);
                if told {
                    tell!(
                        event = events::HAND_OVER,
                        lock = %name,
                        delay_seconds = seconds(*delay),
                        "the holder of '{name}' vanished without releasing it: waiting {} for its command to end",
                        span(*delay)
                    );
                }
            }
            Waiting::PlaceLost => {
                scene.place_lost();
                warn!(
                    event = events::PLACE_LOST,
                    lock = %name,
                    "our own lease ended while waiting: queueing again for '{name}'"
                );
            }
            Waiting::Trouble(trouble) => {
                let cause = trouble.to_string();
                scene.trouble(now, cause.clone());
                // It is met again with every attempt.
                if told && state.trouble.as_ref() != Some(&cause) {
                    tell!(
                        event = events::WAITING_TROUBLE,
                        lock = %name,
                        cause,
                        "waiting for '{name}' goes on, though {cause}"
                    );
                    state.trouble = Some(cause);
                }
            }
        }
        state.show(name, now, due);
    }

    /// Tells, as long as it is polled, that etcd has not answered at all: for which causes, and how long it may take.
    pub(super) async fn wonder(
        &self,
        unanswered: impl Fn() -> Option<(String, Duration)>,
    ) -> Infallible {
        tokio::time::sleep(FIRST_WORD).await;
        if let Some((cause, limit)) = unanswered() {
            let (name, left) = (self.name, limit.saturating_sub(FIRST_WORD));
            let line = format!(
                "no answer from etcd yet, trying for {} more: {cause}",
                span(left)
            );
            notify::status(&line);
            if manner() != Manner::Silent {
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

    /// Keeps what is shown fresh for as long as it is polled; `look` sees who is ahead.
    pub(super) async fn go_on(&self, look: impl AsyncFn() -> Option<Ahead>) -> Infallible {
        let moving = async {
            loop {
                clock::until(due_at(MOVE)).await;
                let mut state = self.state.borrow_mut();
                let now = clock::now();
                let due = state.told_at.is_some_and(|at| now.since(at) >= AGAIN);
                state.show(self.name, now, due);
            }
        };
        let looking = async {
            loop {
                clock::until(due_at(LOOK)).await;
                if manner() == Manner::Silent || !self.state.borrow().scene.is_set() {
                    continue;
                }
                let Some(Ahead { holder, count, .. }) = look().await else {
                    continue;
                };
                let mut state = self.state.borrow_mut();
                let (now, holder) = (clock::now(), holder.as_ref());
                if !state.scene.is_behind(holder, count) {
                    state.scene.behind(now, holder, count);
                    state.show(self.name, now, true);
                }
            }
        };
        tokio::select! {
            never = moving => never,
            never = looking => never,
        }
    }
}

/// When to look again whether there is something to show; a wait that nobody sees needs no clock.
fn due_at(pause: Duration) -> Option<Instant> {
    // On a terminal we may yet come to the foreground.
    let seen = io::stderr().is_terminal() || manner() == Manner::Lines;
    (enabled!(Level::WARN) && seen).then(|| clock::now() + pause)
}

impl State {
    /// Draws what is known, or tells it where lines are told and it is `due`.
    fn show(&mut self, name: &LockName, now: Instant, due: bool) {
        if due {
            notify::status(&self.scene.told(now));
        }
        match manner() {
            Manner::Live if self.scene.is_set() => {
                let text = self.scene.live(now, whoami::since_1970());
                self.live.get_or_insert_with(LiveLine::new).show(text);
            }
            Manner::Lines if due => self.tell(name, now),
            Manner::Silent | Manner::Lines | Manner::Live => {}
        }
    }

    fn tell(&mut self, name: &LockName, now: Instant) {
        self.told_at = Some(now);
        let scene = &self.scene;
        let text = scene.told(now);
        tell!(
            event = events::WAITING,
            lock = %name,
            holder = scene.holder(),
            ahead = scene.ahead(),
            waited_seconds = seconds(scene.waited(now)),
            left_seconds = scene.left(now).map(seconds),
            "{text}"
        );
    }
}

/// Whoever holds the lock, for people.
pub(super) fn who(ahead: &Ahead) -> String {
    scene::who(ahead.holder.as_ref())
}

#[cfg(test)]
mod tests {
    use super::Manner as M;
    use super::Stderr as S;
    use super::*;

    #[test]
    fn who_is_told_of_waiting_and_how() {
        // Under cron, and wherever nobody looks: not a word.
        assert_eq!(judge(S::Elsewhere, false, true, false), M::Silent);
        assert_eq!(judge(S::Elsewhere, false, true, true), M::Lines);
        assert_eq!(judge(S::Screen, false, true, false), M::Live);
        assert_eq!(judge(S::Screen, false, true, true), M::Live);
        assert_eq!(judge(S::Screen, true, true, false), M::Lines);
        assert_eq!(judge(S::Paper, false, true, false), M::Lines);
        for stderr in [S::Screen, S::Paper, S::Elsewhere] {
            assert_eq!(judge(stderr, false, false, true), M::Silent);
        }
    }
}
