//! What one who waits for a lock sees: who has it, how many are before him, how long it takes.
//! It must not know a clock, nor where and how often it is shown.

use std::fmt::Write as _;
use std::time::Duration;

use super::holder::Holder;
use super::lease::Instant;
use super::name::LockName;
use super::text::{printable, span};

/// How long a piece of trouble stays in view; one that goes on is told again within this.
const TROUBLE: Duration = Duration::from_secs(10);

/// The scene, as far as it is known.
#[derive(Clone, Debug)]
pub struct Scene {
    name: LockName,
    began_at: Instant,
    /// When `--wait` has passed.
    give_up_at: Option<Instant>,
    front: Option<Front>,
    /// Until when the command of a holder that vanished may run.
    hand_over_at: Option<Instant>,
    trouble: Option<(Instant, String)>,
}

/// Who is before us.
#[derive(Clone, Debug)]
struct Front {
    holder: Option<Holder>,
    count: usize,
    /// Since when it is this one; `None` for whom we found when we came.
    since_at: Option<Instant>,
}

impl Scene {
    /// For one who asks for the lock now.
    pub const fn new(name: LockName, began_at: Instant, give_up_at: Option<Instant>) -> Self {
        Self {
            name,
            began_at,
            give_up_at,
            front: None,
            hand_over_at: None,
            trouble: None,
        }
    }

    /// So many are before us, the first of them with this record, if it is one of dlock's.
    pub fn behind(&mut self, now: Instant, holder: Option<&Holder>, count: usize) {
        let since_at = match &self.front {
            Some(front) if front.holder.as_ref() == holder => front.since_at,
            Some(_) => Some(now),
            None => None,
        };
        self.front = Some(Front {
            holder: holder.cloned(),
            count,
            since_at,
        });
        self.hand_over_at = None;
        self.trouble = None;
    }

    /// Whether that is what is known already, or something else is to be seen now.
    pub fn is_behind(&self, holder: Option<&Holder>, count: usize) -> bool {
        let same = |front: &Front| front.holder.as_ref() == holder && front.count == count;
        self.hand_over_at.is_some() || self.front.as_ref().is_none_or(same)
    }

    /// The holder has vanished, and its command may still run for so long.
    pub fn hand_over(&mut self, now: Instant, delay: Duration) {
        self.hand_over_at = Some(now + delay);
    }

    /// Our place is lost; another one is taken.
    pub fn place_lost(&mut self) {
        self.front = None;
        self.hand_over_at = None;
    }

    /// Something is in the way of waiting itself.
    pub fn trouble(&mut self, now: Instant, cause: String) {
        self.trouble = Some((now, cause));
    }

    /// Whether there is anything to wait for: a free lock has no scene.
    pub const fn is_set(&self) -> bool {
        self.front.is_some() || self.trouble.is_some() || self.hand_over_at.is_some()
    }

    /// How long it has taken.
    pub fn waited(&self, now: Instant) -> Duration {
        now.since(self.began_at)
    }

    /// What is left of `--wait`.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.give_up_at.map(|at| at.since(now))
    }

    /// Who has the lock, for a field of its own.
    pub fn holder(&self) -> Option<String> {
        self.front.as_ref().map(|front| who(front.holder.as_ref()))
    }

    /// How many are before us, the holder among them.
    pub fn ahead(&self) -> Option<usize> {
        self.front.as_ref().map(|front| front.count)
    }

    /// Once told, for a log: the moments in it are of the wall clock.
    pub fn told(&self, now: Instant) -> String {
        let waited = self.waited(now);
        let mut text = if waited < Duration::from_secs(1) {
            format!("waiting for '{}'", self.name)
        } else {
            format!("waiting for '{}' since {}", self.name, whole(waited))
        };
        if let Some(front) = &self.front {
            let verb = verb(front.holder.as_ref());
            let who = who(front.holder.as_ref());
            // Writing to a String cannot fail.
            let _ = write!(text, ", {verb} {who}; {}", front.place());
        }
        if let Some(left) = self.left(now) {
            let _ = write!(text, "; {} left of --wait", whole(left));
        }
        text
    }

    /// One line that is drawn again and again, the most important first: who sees it has little room. `since_1970` is the
    /// wall clock's time, for how long the holder says to be there.
    pub fn live(&self, now: Instant, since_1970: Duration) -> String {
        let mut text = format!("waiting {} for '{}'", whole(self.waited(now)), self.name);
        if let Some(left) = self.left(now) {
            let _ = write!(text, ", {} left", whole(left));
        }
        if let Some(delay) = self.hand_over_at.map(|at| at.since(now)) {
            let _ = write!(
                text,
                ": its holder vanished, whose command gets {} to end",
                whole(delay)
            );
        } else if let Some(front) = &self.front {
            let _ = write!(text, ": {}, ", front.place());
            match front.age(now, since_1970) {
                Some(age) => {
                    let _ = write!(text, "held for {} by ", whole(age));
                }
                None => {
                    let _ = write!(text, "{} ", verb(front.holder.as_ref()));
                }
            }
            let who = front.holder.as_ref().map_or_else(other, Holder::brief);
            text.push_str(&who);
        }
        if let Some((_, cause)) = self.trouble.as_ref().filter(|(at, _)| now < *at + TROUBLE) {
            let _ = write!(text, " ({})", printable(cause));
        }
        text
    }
}

impl Front {
    fn place(&self) -> String {
        format!("place {0} in the queue, {0} ahead", self.count)
    }

    /// How long this one has been there, as far as anybody can tell: the record's time is of its host's wall clock, and
    /// that of its entry into the queue.
    fn age(&self, now: Instant, since_1970: Duration) -> Option<Duration> {
        if is_cooling(self.holder.as_ref()) {
            return None;
        }
        let told = self.holder.as_ref().and_then(|it| it.age(since_1970));
        let seen = self.since_at.map(|at| now.since(at));
        told.into_iter().chain(seen).min()
    }
}

fn is_cooling(holder: Option<&Holder>) -> bool {
    holder.is_some_and(|holder| holder.cooling)
}

fn verb(holder: Option<&Holder>) -> &'static str {
    if is_cooling(holder) {
        "cooling down, last held by"
    } else {
        "held by"
    }
}

/// Whoever has a lock, for people.
pub fn who(holder: Option<&Holder>) -> String {
    holder.map_or_else(other, Holder::sentence)
}

fn other() -> String {
    "another client".to_owned()
}

/// To the second, as nobody reads more in a line that moves.
fn whole(duration: Duration) -> humantime::FormattedDuration {
    span(Duration::from_secs(duration.as_secs()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::lease::tests::at;
    use super::super::mode::Mode;
    use super::*;

    /// 2026-11-23T10:00:00Z.
    const TEN: Duration = Duration::from_hours(498_730);

    fn alice() -> Holder {
        Holder {
            user: "alice".into(),
            host: "db1".into(),
            pid: 12,
            program: "deploy.sh".into(),
            note: Some("ticket 7".into()),
            url: Some("https://ci/7".into()),
            since: "2026-11-23T10:00:00Z".into(),
            ..Holder::new(Mode::Exclusive, Duration::from_secs(5))
        }
    }

    fn scene(give_up_at: Option<Instant>) -> Scene {
        Scene::new("deploy".parse().unwrap(), at(100.0), give_up_at)
    }

    #[test]
    fn a_free_lock_has_no_scene() {
        assert!(!scene(None).is_set());
    }

    #[test]
    fn everything_that_is_known_stands_in_one_line() {
        let mut scene = scene(Some(at(400.0)));
        scene.behind(at(100.0), Some(&alice()), 2);
        assert!(scene.is_set());
        assert_eq!(
            scene.live(at(112.9), TEN + Duration::from_secs(192)),
            "waiting 12s for 'deploy', 4m 47s left: place 2 in the queue, 2 ahead, held for 3m 12s by \
             alice@db1 pid 12, deploy.sh, note \"ticket 7\", https://ci/7"
        );
        assert_eq!(
            scene.told(at(160.0)),
            "waiting for 'deploy' since 1m, held by alice@db1 pid 12, deploy.sh, since 2026-11-23T10:00:00Z, \
             note \"ticket 7\", https://ci/7; place 2 in the queue, 2 ahead; 4m left of --wait"
        );
    }

    #[test]
    fn nobody_holds_a_lock_for_longer_than_we_have_seen() {
        let mut scene = scene(None);
        scene.behind(at(100.0), None, 2);
        assert_eq!(
            scene.live(at(101.0), TEN),
            "waiting 1s for 'deploy': place 2 in the queue, 2 ahead, held by another client"
        );
        // Its record is as old as its place in the queue.
        scene.behind(at(105.0), Some(&alice()), 1);
        let line = scene.live(at(108.0), TEN + Duration::from_hours(1));
        assert!(
            line.contains(" 1 ahead, held for 3s by alice@db1"),
            "{line}"
        );
        // A wall clock that is behind the other one says nothing.
        let early = scene.live(at(108.0), TEN.saturating_sub(Duration::from_secs(5)));
        assert!(early.contains("held for 3s by"), "{early}");
    }

    #[test]
    fn a_lock_that_cools_down_is_held_by_nobody() {
        let mut scene = scene(None);
        let cooling = Holder {
            cooling: true,
            ..alice()
        };
        scene.behind(at(100.0), Some(&cooling), 1);
        let line = scene.live(at(101.0), TEN);
        assert!(
            line.contains("1 ahead, cooling down, last held by alice@db1"),
            "{line}"
        );
    }

    #[test]
    fn trouble_stays_in_view_for_a_while() {
        let mut scene = scene(None);
        scene.trouble(at(101.0), "'e1': no\u{1b}[2J answer".to_owned());
        assert!(scene.is_set());
        let line = |now| scene.live(at(now), TEN);
        assert_eq!(
            line(103.0),
            r"waiting 3s for 'deploy' ('e1': no\u{1b}[2J answer)"
        );
        assert_eq!(line(112.0), "waiting 12s for 'deploy'");
    }

    #[test]
    fn the_command_of_a_vanished_holder_has_its_time() {
        let mut scene = scene(None);
        scene.behind(at(100.0), Some(&alice()), 1);
        scene.hand_over(at(101.0), Duration::from_secs(8));
        let line = scene.live(at(104.0), TEN);
        assert!(
            line.ends_with(": its holder vanished, whose command gets 5s to end"),
            "{line}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever stands in a record: it is one line, without power over a terminal, and not endless.
        #[test]
        fn any_record_is_fit_to_show(
            host in "\\PC{0,99}|.{0,2000}", user in ".{0,99}", program in ".{0,99}", note in ".{0,3000}",
            url in ".{0,99}", since in "(?s).{0,40}", cause in "(?s).{0,3000}", count in 0_usize..10_000,
        ) {
            let holder = Holder { host, user, program, note: Some(note), url: Some(url), since, ..alice() };
            let mut scene = scene(Some(at(200.0)));
            scene.behind(at(100.0), Some(&holder), count);
            scene.trouble(at(100.0), cause);
            for text in [scene.live(at(101.0), TEN), scene.told(at(101.0))] {
                prop_assert!(text.len() < 16 * 1024);
                prop_assert!(!text.chars().any(super::super::text::is_hostile), "{text:?}");
            }
        }
    }
}
