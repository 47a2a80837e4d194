//! A request for a lock: its mode, how long it waits, and which others it supersedes.
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

/// The mode of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// No other holder at the same time.
    #[default]
    Exclusive,
    /// Together with other shared holders.
    Shared,
    /// One of this many slots, 1 to [`Mode::MAX_SLOTS`].
    Slots(u16),
}

impl Mode {
    /// Maximum number of slots of one lock.
    pub const MAX_SLOTS: u16 = 1000;

    /// Whether requests of both modes may share the lock: all clients that use slots must give the same number, and an
    /// exclusive lock has one.
    pub fn is_compatible_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Slots(one), Self::Slots(other)) => one == other,
            (Self::Slots(slots), other) | (other, Self::Slots(slots)) => {
                slots == 1 && other == Self::Exclusive
            }
            (Self::Exclusive | Self::Shared, Self::Exclusive | Self::Shared) => true,
        }
    }

    /// The mode's name in records.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::Slots(_) => "slots",
        }
    }

    /// The number of holders in records.
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

/// A request for a lock, with all its options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockRequest {
    pub mode: Mode,
    pub wait_policy: WaitPolicy,
    /// Minimum time that the lock stays taken, from its acquisition on.
    pub min_hold: Option<Duration>,
    /// Time after the start of our run in which no other run may start.
    pub once_per: Option<Duration>,
    /// Whether only a run that has succeeded keeps ours from starting.
    pub retry_failed: bool,
    /// The clients that this request supersedes.
    pub supersede: Option<Supersede>,
}

/// How long to wait for a busy lock, or for an etcd that does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitPolicy {
    NoWait,
    Timeout(Duration),
    /// Waits for the lock without limit; etcd must answer at the start.
    #[default]
    Forever,
}

/// The clients that a newer request supersedes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supersede {
    /// Waiters.
    Waiters,
    /// Waiters and the holder.
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
