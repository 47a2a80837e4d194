//! The laws of the watchdog, shown against a small model of etcd: a true leader whose clock runs at
//! another rate, deposed leaders that still answer, and a network that loses, delays and repeats.
//! It must not know anything that the watchdog itself does not.

use std::time::Duration;

use proptest::prelude::*;

use super::lease::tests::{HEADER, PLACE, at, claim};
use super::lease::{Header, Instant, Loss, Renewal, Terms};
use super::watchdog::{Action, Event, Standing, Watchdog};

/// What becomes of one renewal.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
struct Fate {
    /// The request never arrives.
    lost: bool,
    /// A deposed leader answers the keepalive; the true one has not heard of it.
    deposed: bool,
    /// The travel of the request, and that of the answer.
    there: Duration,
    back: Duration,
    /// The answer comes twice.
    twice: bool,
    /// By how much the tick that follows comes late.
    late: Duration,
    /// The guard answers.
    guarded: bool,
}

fn millis(most: u64) -> impl Strategy<Value = Duration> {
    (0..=most).prop_map(Duration::from_millis)
}

fn fate() -> impl Strategy<Value = Fate> {
    (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.3),
        prop_oneof![millis(5), millis(3000)],
        prop_oneof![millis(5), millis(8000)],
        prop::bool::weighted(0.2),
        prop_oneof![4 => millis(5), 1 => millis(60_000)],
        prop::bool::weighted(0.98),
    )
        .prop_map(|(lost, deposed, there, back, twice, late, guarded)| Fate {
            lost,
            deposed,
            there,
            back,
            twice,
            late,
            guarded,
        })
}

/// One run of a holder against the model.
struct Model {
    watchdog: Watchdog,
    terms: Terms,
    /// How fast the leader's clock runs, in thousandths of ours.
    rate: u32,
    /// When the true leader gives the lock away, on our clock.
    expires_at: Instant,
    /// What is on its way to us.
    mail: Vec<(Instant, Event)>,
    kills: usize,
    was_lost: bool,
}

impl Model {
    fn new(ttl: Duration, grace: Duration, rate: u32) -> Self {
        let terms = Terms::new(ttl, grace);
        Self {
            watchdog: Watchdog::new(terms, claim(), at(0.0), u64::from(rate)),
            terms,
            rate,
            expires_at: at(0.0) + ttl * 1000 / rate,
            mail: Vec::new(),
            kills: 0,
            was_lost: false,
        }
    }

    /// The moment of the next event, and the event.
    fn next(&mut self, late: Duration) -> Option<(Instant, Event)> {
        let tick = self.watchdog.due_at().map(|due_at| due_at + late);
        let earliest = (0..self.mail.len()).min_by_key(|letter| self.mail[*letter].0);
        match (tick, earliest) {
            (Some(tick_at), Some(letter)) if tick_at < self.mail[letter].0 => {
                Some((tick_at, Event::Tick))
            }
            (_, Some(letter)) => Some(self.mail.swap_remove(letter)),
            (Some(tick_at), None) => Some((tick_at, Event::Tick)),
            (None, None) => None,
        }
    }

    fn renew(&mut self, now: Instant, fate: Fate) {
        self.mail
            .push((now + self.terms.attempt(), Event::RenewalFailed));
        if fate.lost {
            return;
        }
        let heard_at = now + fate.there;
        let alive = heard_at < self.expires_at;
        if alive && !fate.deposed {
            let renewed = heard_at + self.terms.ttl() * 1000 / self.rate;
            self.expires_at = self.expires_at.max(renewed);
        }
        let kept_by = Header {
            term: HEADER.term - u64::from(fate.deposed),
            ..HEADER
        };
        let renewal = Renewal {
            sent_at: now,
            keepalive: Some((kept_by, self.terms.ttl())),
            read: (HEADER, alive.then_some(PLACE)),
        };
        let answer_at = heard_at + fate.back;
        for copy in 0..=u32::from(fate.twice) {
            let copy_at = answer_at + fate.back * copy;
            self.mail.push((copy_at, Event::Renewed(renewal.clone())));
        }
    }

    fn step(&mut self, fate: Fate) -> Result<bool, TestCaseError> {
        let Some((now, event)) = self.next(fate.late) else {
            return Ok(false);
        };
        let before = self.watchdog.deadlines();
        let actions = self.watchdog.step(now, &event);
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
            let Event::Renewed(renewal) = &event else {
                return Err(TestCaseError::fail("only a proof moves a deadline"));
            };
            prop_assert_eq!(after, self.terms.deadlines(renewal.sent_at));
            prop_assert!(now < before.stop_at, "a proof after the stop is too late");
        }
        if self.was_lost {
            prop_assert!(self.watchdog.standing() != Standing::Held, "lost is lost");
            prop_assert!(
                !actions.contains(&Action::Renew),
                "what is lost is not renewed"
            );
        }
        self.was_lost |= self.watchdog.standing() != Standing::Held;
        prop_assert!(
            self.was_lost || now < before.stop_at,
            "whatever the ticks, nothing is held past the stop"
        );
        if event == Event::Tick {
            let due_at = self.watchdog.due_at();
            prop_assert!(due_at.is_none_or(|due_at| now < due_at), "a tick moves on");
        }
        for action in actions {
            match action {
                Action::Renew => self.renew(now, fate),
                Action::Extend { beat, .. } if fate.guarded => {
                    self.mail.push((now, Event::Beat(beat)));
                }
                Action::KillTree => self.kills += 1,
                Action::Extend { .. } | Action::Forward(_) | Action::Stop | Action::Kill => {}
            }
        }
        prop_assert!(self.kills <= 1, "a guard is replaced once");
        Ok(true)
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
        let grace = Duration::from_secs(grace).min(Terms::longest_grace(ttl));
        let mut model = Model::new(ttl, grace, rate);
        for fate in fates {
            if !model.step(fate)? {
                break;
            }
        }
    }

    #[test]
    fn with_answers_in_time_the_command_is_never_stopped(
        ttl in 5_u64..=60,
        travel in prop::collection::vec(0_u64..=200, 1..200),
    ) {
        let ttl = Duration::from_secs(ttl);
        let mut model = Model::new(ttl, Terms::default_grace(ttl), 1000);
        for travel in travel {
            let travel = Duration::from_millis(travel);
            model.step(Fate {
                lost: false,
                deposed: false,
                there: travel,
                back: travel,
                twice: false,
                late: travel,
                guarded: true,
            })?;
            prop_assert_eq!(model.watchdog.standing(), Standing::Held);
        }
    }

    #[test]
    fn a_loss_by_a_third_hand_is_final_and_stops_at_once(
        seconds in 0.0_f64..6.0,
        taken in any::<bool>(),
    ) {
        let terms = Terms::new(Duration::from_secs(10), Duration::from_secs(2));
        let mut watchdog = Watchdog::new(terms, claim(), at(0.0), 1);
        let loss = if taken { Loss::KeyTaken } else { Loss::KeyGone };
        let actions = watchdog.step(at(seconds), &Event::Lost(loss));
        prop_assert!(actions.contains(&Action::Stop));
        watchdog.step(at(seconds), &Event::TreeDead { in_time: true });
        prop_assert_eq!(watchdog.standing(), Standing::Lost(loss));
    }
}
