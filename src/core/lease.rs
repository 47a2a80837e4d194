//! How long we may believe that we hold the lock: moments, terms and deadlines.
//! It must not know which clock tells the moments, nor that etcd exists.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment on `CLOCK_BOOTTIME` (`clock_gettime(2)`), which goes on counting while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// The moment `since_boot` after the clock's zero.
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// Time since the clock's zero.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to `self`, zero when `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// The two moments that the guard enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From here on the command is asked to stop.
    pub stop_at: Instant,
    /// From here on nothing of the command may run.
    pub kill_at: Instant,
}
