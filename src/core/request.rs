//! How a lock can be asked for: how many may hold it at once, beside whom, and who has to go.
//! It must not know keys, nor the words of the command line.

use std::fmt;
use std::time::Duration;

/// The choices of `--leftovers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Stop them, then kill them, before the lock is released.
    Kill,
    /// Hold the lock until the last of them has ended, as flock(1) does.
    Wait,
    /// Release the lock and let them run.
    Leave,
}

/// How a lock is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Alone.
    #[default]
    Exclusive,
    /// Beside others that share it.
    Shared,
    /// As one of at most so many, 1 to [`Mode::MOST_SLOTS`].
    Slots(u16),
}

impl Mode {
    /// The most that may hold one lock by slots.
    pub const MAX_SLOTS: u16 = 1000;

    /// Whether a lock may be asked for in both ways: all who use slots have to mean the same number, and
    /// an exclusive lock has one.
    pub fn is_compatible_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Slots(one), Self::Slots(other)) => one == other,
            (Self::Slots(slots), other) | (other, Self::Slots(slots)) => {
                slots == 1 && other == Self::Exclusive
            }
            (Self::Exclusive | Self::Shared, Self::Exclusive | Self::Shared) => true,
        }
    }

    /// As records have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::Slots(_) => "slots",
        }
    }

    /// The number of holders that it allows, as records have it.
    pub fn slots(self) -> u16 {
        match self {
            Self::Exclusive | Self::Shared => 1,
            Self::Slots(slots) => slots,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => write!(f, "exclusive"),
            Self::Shared => write!(f, "shared"),
            Self::Slots(1) => write!(f, "1 slot"),
            Self::Slots(slots) => write!(f, "{slots} slots"),
        }
    }
}

/// What somebody wants of a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockRequest {
    pub mode: Mode,
    pub wait_policy: WaitPolicy,
    /// How long the lock stays taken at least, from the moment that we get it.
    pub min_hold: Option<Duration>,
    /// How long after the start of our run no other one may start.
    pub once_per: Option<Duration>,
    /// Who has to go for us.
    pub supersede: Option<Supersede>,
}

/// How long to wait for a busy lock, or for an etcd that does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitPolicy {
    NoWait,
    Timeout(Duration),
    /// For the lock; etcd has to be there at the start.
    #[default]
    Forever,
}

/// Who has to go when a newer request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supersede {
    /// Those who wait.
    Waiters,
    /// The holder, too.
    Holder,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_of_slots_for_all() {
        let (one, two) = (Mode::Slots(1), Mode::Slots(2));
        for (mode, other, fits) in [
            (Mode::Exclusive, Mode::Shared, true),
            (Mode::Shared, Mode::Shared, true),
            (two, two, true),
            (two, Mode::Slots(3), false),
            (two, Mode::Exclusive, false),
            (two, Mode::Shared, false),
            (one, Mode::Exclusive, true),
            (one, Mode::Shared, false),
        ] {
            assert_eq!(mode.is_compatible_with(other), fits, "{mode} {other}");
            assert_eq!(other.is_compatible_with(mode), fits, "{other} {mode}");
        }
    }
}
