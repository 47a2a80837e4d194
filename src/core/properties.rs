//! Properties of the watchdog, tested against a small model of etcd: a true leader whose clock runs at another rate,
//! deposed leaders that still answer, and a network that loses, delays, repeats and bunches.
//! It must not know anything that the watchdog itself does not.
//!
//! | promise | property, in [`Model::step`] and below |
//! |---|---|
//! | "No process of the command's tree runs after the first moment at which etcd could give the lock to somebody else" | `kill_at` is before the true leader's expiry, at every step, in every state |
//! | "clock rates of this host and of etcd's leader differ by less than 10 %" | the leader's clock runs at 0.9 to 1.1 of ours |
//! | "`kill_at = sent + 0.9 G - 0.5 s`" | no deadline goes beyond it, and G is never more than was asked |
//! | "`stop_at = kill_at - grace`" | the stop is never after the kill; no order to kill without a stop before it |
//! | "a renewal counts only if ..." | a deadline moves only by an answer of the true leader |
//! | "a deposed leader answers OK", "a member of another cluster is refused" | such answers, and late and repeated ones, move nothing and lose nothing |
//! | "TTL = 0 in an answer is suspicion, not loss" | it moves nothing and loses nothing |
//! | "A DELETE of our key, a linearizable read without it ... is loss" | the command is stopped at that step |
//! | "Continued too late, dlock finds the tree dead, renews nothing and exits `lost`" | a loss is final, even if the command succeeds; nothing is renewed |
//! | "killed at the deadline at the latest" | whenever a tick finds `kill_at` passed, the kill is ordered; `guard::termination` has the guard's half |
//! | "No guard, no renewals" | without an answer of the guard the tree is killed, once, and nothing is renewed |

use std::time::Duration;

use proptest::prelude::*;

use super::heartbeat::Heartbeat;
use super::proof::tests::{HEADER, PLACE, ownership, renewal};
use super::proof::{EntryId, Header, LeaseId, LossReason, Renewal};
use super::proven_lock::{LockEvent, LockIndex, ProvenLock};
use super::time::tests::at;
use super::time::{Instant, LeaseTimings};
use super::watchdog::{Action, Event, LockState, Watchdog};

/// A fault of an answer from any server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    /// No fault: an honest server.
    No,
    /// A deposed leader answers the keepalive, and the true leader has not received it.
    Deposed,
    /// Another member than that of the read answers the keepalive.
    OtherMember,
    /// A member of another cluster answers either request.
    OtherCluster,
    ForeignRead,
    /// The read is stale.
    OlderRevision,
    NoTimeLeft,
    UnknownLease,
    /// The TTL is longer than requested.
    Generous,
}

impl Odd {
    const ALL: [Self; 8] = [
        Self::Deposed,
        Self::OtherMember,
        Self::OtherCluster,
        Self::ForeignRead,
        Self::OlderRevision,
        Self::NoTimeLeft,
        Self::UnknownLease,
        Self::Generous,
    ];

    /// Whether it proves the lock: the true leader renewed the lease, and the key existed afterwards.
    fn proves(self) -> bool {
        matches!(self, Self::No | Self::Generous)
    }
}

/// An interference of another client with our key.
#[derive(Clone, Copy, Debug)]
enum Hand {
    Deletes,
    Replaces,
}

/// The course of one renewal.
#[derive(Clone, Copy, Debug)]
struct Fate {
    /// The request never arrives.
    lost: bool,
    odd: Odd,
    /// Travel time of the request; `back` is that of the answer.
    there: Duration,
    back: Duration,
    /// Answers arrive only at whole multiples of this, all together.
    bunch: Duration,
    /// The answer arrives twice.
    twice: bool,
    /// An interference with the key before the renewal arrives.
    taken: Option<Hand>,
    /// Delay of the next tick.
    late: Duration,
    /// The guard answers.
    guarded: bool,
}

impl Fate {
    const GOOD: Self = Self {
        lost: false,
        odd: Odd::No,
        there: Duration::ZERO,
        back: Duration::ZERO,
        bunch: Duration::ZERO,
        twice: false,
        taken: None,
        late: Duration::ZERO,
        guarded: true,
    };
}

fn millis(most: u64) -> impl Strategy<Value = Duration> {
    (0..=most).prop_map(Duration::from_millis)
}

fn fate() -> impl Strategy<Value = Fate> {
    let years = Duration::from_hours(24 * 365 * 30);
    let travel = (
        prop_oneof![millis(5), millis(3000)],
        prop_oneof![millis(5), millis(8000)],
        prop_oneof![5 => Just(Duration::ZERO), 1 => millis(7000)],
    );
    (
        prop::bool::weighted(0.2),
        prop_oneof![1 => Just(Odd::No), 1 => prop::sample::select(&Odd::ALL[..])],
        travel,
        prop::bool::weighted(0.2),
        prop_oneof![40 => Just(None), 1 => prop::sample::select(&[Hand::Deletes, Hand::Replaces][..]).prop_map(Some)],
        prop_oneof![20 => millis(5), 4 => millis(60_000), 1 => Just(years)],
        prop::bool::weighted(0.98),
    )
        .prop_map(
            |(lost, odd, (there, back, bunch), twice, taken, late, guarded)| Fate {
                lost,
                odd,
                there,
                back,
                bunch,
                twice,
                taken,
                late,
                guarded,
            },
        )
}

/// A pending event, and the model's knowledge of it.
#[derive(Clone, Debug)]
struct Letter {
    at: Instant,
    event: Event,
    /// Whether it is a proof by the true leader, and not a second copy.
    proves: bool,
    /// Whether it shows that the key is gone or replaced.
    shows_loss: bool,
}

impl Letter {
    fn plain(at: Instant, event: Event) -> Self {
        Self {
            at,
            event,
            proves: false,
            shows_loss: false,
        }
    }
}

/// A lock that was proven at 0.
fn lock(timings: LeaseTimings, seed: u64) -> ProvenLock {
    let heartbeat = Heartbeat::new(timings, at(0.0), seed);
    ProvenLock::new(timings, ownership(), at(0.0), heartbeat)
}

/// An event of the only lock.
fn of(event: LockEvent) -> Event {
    Event::Lock(LockIndex(0), event)
}

/// A run of a holder against the model.
struct Model {
    watchdog: Watchdog,
    timings: LeaseTimings,
    /// Rate of the leader's clock, in thousandths of ours.
    rate: u32,
    /// The time, on our clock, at which the true leader lets the lease expire.
    expires_at: Instant,
    /// The true leader's revision.
    revision: i64,
    /// The interference with the key, if there was one.
    taken: Option<Hand>,
    /// Pending events.
    mail: Vec<Letter>,
    stops: usize,
    kills: usize,
    /// Announced losses.
    announced: usize,
    /// Whether the kill was ordered at all.
    killed: bool,
    was_lost: bool,
}

impl Model {
    fn new(ttl: Duration, grace: Duration, rate: u32) -> Self {
        let timings = LeaseTimings::new(ttl, grace);
        Self {
            watchdog: Watchdog::new(vec![lock(timings, u64::from(rate))]),
            timings,
            rate,
            expires_at: at(0.0) + ttl * 1000 / rate,
            revision: HEADER.revision,
            taken: None,
            mail: Vec::new(),
            stops: 0,
            kills: 0,
            announced: 0,
            killed: false,
            was_lost: false,
        }
    }

    /// The next event.
    fn next(&mut self, late: Duration) -> Option<Letter> {
        let tick = self.watchdog.due_at().map(|due_at| due_at + late);
        let earliest = (0..self.mail.len()).min_by_key(|letter| self.mail[*letter].at);
        match (tick, earliest) {
            (Some(tick_at), Some(letter)) if tick_at < self.mail[letter].at => {
                Some(Letter::plain(tick_at, Event::Tick))
            }
            (_, Some(letter)) => Some(self.mail.remove(letter)),
            (Some(tick_at), None) => Some(Letter::plain(tick_at, Event::Tick)),
            (None, None) => None,
        }
    }

    fn renew(&mut self, now: Instant, fate: Fate) {
        let given_up_at = now + self.timings.renew_timeout();
        self.mail
            .push(Letter::plain(given_up_at, of(LockEvent::RenewalFailed)));
        if fate.lost {
            return;
        }
        let heard_at = now + fate.there;
        if self.taken.is_none() && fate.taken.is_some() {
            self.revision += 1;
            self.taken = fate.taken;
        }
        let expired = self.expires_at <= heard_at;
        let key = match self.taken {
            Some(Hand::Deletes) => None,
            Some(Hand::Replaces) => Some(EntryId {
                lease: LeaseId(1),
                ..PLACE
            }),
            None => (!expired).then_some(PLACE),
        };
        if !expired && fate.odd.proves() {
            let renewed = heard_at + self.timings.ttl() * 1000 / self.rate;
            self.expires_at = self.expires_at.max(renewed);
        }
        let leader = Header {
            revision: self.revision,
            ..HEADER
        };
        let (mut kept_by, mut read_by) = (leader, leader);
        let mut ttl = self.timings.ttl();
        match fate.odd {
            Odd::No | Odd::UnknownLease => {}
            Odd::Deposed => kept_by.term -= 1,
            Odd::OtherMember => kept_by.member += 1,
            Odd::OtherCluster => kept_by.cluster += 1,
            Odd::ForeignRead => read_by.cluster += 1,
            Odd::OlderRevision => read_by.revision = HEADER.revision - 1,
            Odd::NoTimeLeft => ttl = Duration::ZERO,
            Odd::Generous => ttl *= 100,
        }
        let renewal = Renewal {
            sent_at: now,
            keepalive: (fate.odd != Odd::UnknownLease).then_some((kept_by, ttl)),
            read: (read_by, key),
        };
        let foreign = matches!(fate.odd, Odd::ForeignRead | Odd::OlderRevision);
        let mut answer_at = heard_at + fate.back;
        if !fate.bunch.is_zero() {
            let past = answer_at.since_boot().as_millis() % fate.bunch.as_millis();
            answer_at = answer_at + fate.bunch
                - Duration::from_millis(past.try_into().expect("less than the bunch"));
        }
        for copy in 0..=u32::from(fate.twice) {
            self.mail.push(Letter {
                at: answer_at + fate.back * copy,
                event: of(LockEvent::Renewed(renewal.clone())),
                proves: fate.odd.proves() && key == Some(PLACE) && copy == 0,
                shows_loss: key != Some(PLACE) && !foreign,
            });
        }
    }

    fn step(&mut self, fate: Fate) -> Result<bool, TestCaseError> {
        let Some(letter) = self.next(fate.late) else {
            return Ok(false);
        };
        let (now, event) = (letter.at, &letter.event);
        let before = self.watchdog.deadlines();
        let actions = self.watchdog.step(now, event);
        let after = self.watchdog.deadlines();

        prop_assert!(after.stop_at <= after.kill_at, "stop precedes kill");
        prop_assert!(
            before.kill_at <= after.kill_at,
            "a deadline never moves back"
        );
        prop_assert!(
            after.kill_at < self.expires_at,
            "the command is dead before the server may give the lock away"
        );
        if before != after {
            prop_assert!(letter.proves, "only a proof moves a deadline");
            let Event::Lock(_, LockEvent::Renewed(renewal)) = event else {
                return Err(TestCaseError::fail("only a renewal is a proof"));
            };
            // Computed independently of the code.
            let ttl = self.timings.ttl().as_millis();
            let most = Duration::from_millis(u64::try_from(ttl * 9 / 10 - 500).expect("short"));
            prop_assert_eq!(after.kill_at, renewal.sent_at + most);
            prop_assert_eq!(after.stop_at, after.kill_at - self.timings.grace());
            prop_assert!(now < before.stop_at, "a proof after the stop is too late");
        }
        self.check_loss(&letter, before.stop_at)?;
        let stopped = self.stops > 0 || before.stop_at <= now;
        let slack = before.stop_at.since(now);
        let proven = actions.contains(&Action::Proven { slack });
        prop_assert_eq!(proven, before != after, "a moved deadline is announced");
        for action in actions {
            match action {
                Action::Renew(_) => {
                    prop_assert!(!self.was_lost, "what is lost is not renewed");
                    self.renew(now, fate);
                }
                Action::Extend { beat, deadlines } => {
                    prop_assert_eq!(deadlines, after, "the guard is told what holds");
                    if fate.guarded {
                        self.mail.push(Letter::plain(now, Event::Ack(beat)));
                    }
                }
                Action::Stop => self.stops += 1,
                Action::Kill => {
                    prop_assert!(stopped, "no kill without a stop before it");
                    self.killed = true;
                }
                Action::KillTree => {
                    self.kills += 1;
                    self.killed = true;
                }
                Action::Lost(..) | Action::Unguarded => self.announced += 1,
                Action::Proven { .. } | Action::Inconclusive(..) => {}
                Action::MaxHold => return Err(TestCaseError::fail("there is no limit")),
            }
        }
        prop_assert!(self.kills <= 1, "a guard is replaced once");
        prop_assert_eq!(
            self.announced,
            usize::from(self.was_lost),
            "a loss is announced once"
        );
        if *event == Event::Tick {
            let due_at = self.watchdog.due_at();
            prop_assert!(due_at.is_none_or(|due_at| now < due_at), "a tick moves on");
            prop_assert!(
                self.killed || now < after.kill_at,
                "a tick that finds the end passed orders the kill"
            );
        }
        Ok(true)
    }

    /// Checks when the lock must be lost, when it must not be, and that a loss is final.
    fn check_loss(&mut self, letter: &Letter, stop_at: Instant) -> Result<(), TestCaseError> {
        let held = self.watchdog.state() == LockState::Held;
        if self.was_lost {
            prop_assert!(!held, "lost is lost");
        }
        if matches!(letter.event, Event::Lock(_, LockEvent::Renewed(_)))
            && letter.at < stop_at
            && !self.was_lost
        {
            prop_assert_eq!(
                held,
                !letter.shows_loss,
                "an answer is a loss only if it shows that the key is not ours"
            );
        }
        self.was_lost |= !held;
        prop_assert!(
            self.was_lost || letter.at < stop_at,
            "whatever the ticks, nothing is held past the stop"
        );
        Ok(())
    }

    /// The command succeeds; the exit status follows from the state.
    fn end(&mut self) -> Result<(), TestCaseError> {
        let standing = self.watchdog.state();
        let ended_at = self.watchdog.deadlines().kill_at;
        let actions = self
            .watchdog
            .step(ended_at, &Event::TreeDead { in_time: true });
        if standing == LockState::Held {
            // It ended at the deadline itself: too late to be sure.
            prop_assert_eq!(self.watchdog.state(), LockState::Lost(LossReason::Unproven));
        } else {
            prop_assert_eq!(self.watchdog.state(), standing, "no success after a loss");
            prop_assert!(actions.is_empty());
        }
        prop_assert_eq!(self.watchdog.due_at(), None);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_lets_the_command_outlive_the_lease(
        ttl in 5_u64..=60,
        grace in 0_u64..=10,
        rate in 900_u32..=1100,
        fates in prop::collection::vec(fate(), 1..120),
    ) {
        let ttl = Duration::from_secs(ttl);
        let grace = Duration::from_secs(grace).min(LeaseTimings::max_grace(ttl));
        let mut model = Model::new(ttl, grace, rate);
        for fate in fates {
            if !model.step(fate)? {
                break;
            }
        }
        model.end()?;
    }

    #[test]
    fn with_answers_in_time_the_command_is_never_stopped(
        ttl in 5_u64..=60,
        travel in prop::collection::vec(0_u64..=200, 1..200),
    ) {
        let ttl = Duration::from_secs(ttl);
        let mut model = Model::new(ttl, LeaseTimings::default_grace(ttl), 1000);
        for travel in travel {
            let travel = Duration::from_millis(travel);
            model.step(Fate { there: travel, back: travel, late: travel, ..Fate::GOOD })?;
            prop_assert_eq!(model.watchdog.state(), LockState::Held);
        }
    }

    #[test]
    fn a_loss_by_a_third_hand_is_final_and_stops_at_once(
        seconds in 0.0_f64..6.0,
        taken in any::<bool>(),
    ) {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        let mut watchdog = Watchdog::new(vec![lock(timings, 1)]);
        let loss = if taken { LossReason::KeyTaken } else { LossReason::KeyGone };
        let actions = watchdog.step(at(seconds), &of(LockEvent::Lost(loss)));
        prop_assert!(actions.contains(&Action::Stop));
        watchdog.step(at(seconds), &Event::TreeDead { in_time: true });
        prop_assert_eq!(watchdog.state(), LockState::Lost(loss));
    }

    /// "The command is stopped in time for the lock whose proof is the oldest, and when any of the locks is lost": one
    /// watchdog over several locks decides what the most urgent of as many watchdogs over one lock decides.
    #[test]
    fn several_locks_are_as_safe_as_the_most_urgent_of_them(
        events in prop::collection::vec((0_usize..3, 0_u64..1500, 0_u64..3000, 0_u8..40), 1..80),
    ) {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        let locks = || (0..3).map(|seed| lock(timings, seed));
        let mut all = Watchdog::new(locks().collect());
        let mut alone: Vec<Watchdog> = locks().map(|lock| Watchdog::new(vec![lock])).collect();
        let mut now = at(0.0);
        for (index, pause, travel, kind) in events {
            now = now + Duration::from_millis(pause);
            let event = match kind {
                0 => LockEvent::Lost(LossReason::KeyGone),
                1..10 => LockEvent::RenewalFailed,
                _ => {
                    let sent_at = (now - Duration::from_millis(travel)).max(at(0.0));
                    LockEvent::Renewed(renewal(sent_at))
                }
            };
            let actions = all.step(now, &Event::Lock(LockIndex(index), event.clone()));
            for (other, watchdog) in alone.iter_mut().enumerate() {
                // An answer of the guard that changes nothing: only the time passes.
                let its_event = if other == index { of(event.clone()) } else { Event::Ack(0) };
                watchdog.step(now, &its_event);
            }
            let lost: Vec<usize> = (0..3).filter(|one| alone[*one].state() != LockState::Held).collect();
            for action in actions {
                if let Action::Lost(LockIndex(named), _) = action {
                    prop_assert!(lost.contains(&named), "a lock is named that is not lost");
                }
            }
            prop_assert_eq!(all.state() == LockState::Held, lost.is_empty(), "each loss counts");
            if !lost.is_empty() {
                break;
            }
            let earliest = |of: fn(&Watchdog) -> Instant| alone.iter().map(of).min();
            prop_assert_eq!(Some(all.deadlines().kill_at), earliest(|one| one.deadlines().kill_at));
            prop_assert_eq!(Some(all.deadlines().stop_at), earliest(|one| one.deadlines().stop_at));
        }
    }
}
