//! The random plan of one run: its lock, the way it takes it, for how long, and with which options.
//! It must not know how a run is started, nor its result.

use std::time::Duration;

use super::rng::Rng;

/// Minimum time between two starts of the lock with `--once-per`.
pub(super) const ONCE_PER: Duration = Duration::from_secs(6);

/// Number of slots.
pub(super) const SLOTS: usize = 2;

/// The locks, by their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// Exclusive, with a queue: the main lock.
    Main,
    OncePer,
    Slots,
    Shared,
    /// Held by `dlock hold` without a process, so that nothing is stopped when it is lost.
    Borrowed,
}

impl Lock {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Main => "chaos",
            Self::OncePer => "once",
            Self::Slots => "slots",
            Self::Shared => "shared",
            Self::Borrowed => "borrowed",
        }
    }
}

/// The way a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Run,
    /// `dlock hold --pid` of a script with this many children, which ends with `dlock release` or by itself.
    Hold {
        children: usize,
        releases: bool,
    },
    /// `dlock hold` without a process, and `dlock release`.
    Borrow,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) lock: Lock,
    pub(super) form: Form,
    pub(super) ttl: Duration,
    pub(super) grace: Duration,
    /// All processes of the command ignore SIGTERM.
    pub(super) deaf: bool,
    pub(super) stay: Duration,
    /// The exit status of the command.
    pub(super) code: i32,
    pub(super) min_hold: Option<Duration>,
    /// The request is shared.
    pub(super) shares: bool,
    pub(super) options: Vec<String>,
    /// It may end because others supersede it, or because its wait is limited.
    pub(super) may_be_busy: bool,
}

impl Plan {
    /// A plan for the main lock.
    pub(super) fn main(dice: &mut Rng) -> Self {
        let children = dice.one_of(&[1, 40]);
        let releases = dice.one_in(2);
        let form = if dice.one_in(4) {
            Form::Hold { children, releases }
        } else {
            Form::Run
        };
        let ttl = dice.one_of(&[5, 5, 5, 10, 30]);
        let mut plan = Self::of(Lock::Main, form, ttl, dice);
        // From much less to more than the TTL.
        plan.stay = dice.span(10, 7000);
        match dice.below(16) {
            0 => plan.options.push("--supersede".to_owned()),
            1 => plan.options.push("--supersede=holder".to_owned()),
            2 => plan.options.push("--wait=8s".to_owned()),
            3 => plan.min_hold = Some(Duration::from_secs(3)),
            _ => {}
        }
        plan.finished()
    }

    /// A plan for a lock with another use.
    pub(super) fn of_side(lock: Lock, dice: &mut Rng) -> Self {
        let form = if lock == Lock::Borrowed {
            Form::Borrow
        } else {
            Form::Run
        };
        let mut plan = Self::of(lock, form, 5, dice);
        plan.stay = dice.span(10, 3000);
        match lock {
            Lock::OncePer => {
                let span = ONCE_PER.as_secs();
                plan.options.push(format!("--once-per={span}s"));
                let min_hold = Duration::from_secs(3);
                plan.min_hold = dice.one_in(2).then_some(min_hold);
            }
            Lock::Slots => plan.options.push(format!("--slots={SLOTS}")),
            Lock::Shared => {
                plan.shares = !dice.one_in(3);
                plan.options
                    .extend(plan.shares.then(|| "--shared".to_owned()));
            }
            Lock::Main | Lock::Borrowed => {}
        }
        plan.finished()
    }

    fn of(lock: Lock, form: Form, ttl: usize, dice: &mut Rng) -> Self {
        // At most half of the TTL less half a second.
        let most = (ttl * 500 - 500).min(6000);
        let grace = if dice.one_in(2) {
            dice.span(200, most)
        } else {
            Duration::from_secs((ttl / 5).try_into().expect("64 bits"))
        };
        Self {
            lock,
            form,
            ttl: Duration::from_secs(ttl.try_into().expect("64 bits")),
            grace,
            deaf: dice.one_in(2),
            stay: Duration::ZERO,
            code: dice.one_of(&[0, 0, 0, 7]),
            min_hold: None,
            shares: false,
            options: Vec::new(),
            may_be_busy: false,
        }
    }

    fn finished(mut self) -> Self {
        let (ttl, grace) = (self.ttl.as_secs(), self.grace.as_millis());
        self.options.push(format!("--ttl={ttl}s"));
        self.options.push(format!("--kill-after={grace}ms"));
        if let Some(span) = self.min_hold {
            self.options.push(format!("--min-hold={}s", span.as_secs()));
        }
        // Any waiter may be superseded.
        self.may_be_busy = matches!(self.lock, Lock::Main | Lock::OncePer);
        self
    }
}
