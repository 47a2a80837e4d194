//! Moments, and the durations that a lease leads to: when to renew, to stop and to kill.
//! It must not know which clock measures the moments, nor what proves that the lock is held.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment on `CLOCK_BOOTTIME` (`clock_gettime(2)`), which counts while the machine sleeps.
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
    /// The time at which the command is asked to stop.
    pub stop_at: Instant,
    /// The time from which no process of the command may run.
    pub kill_at: Instant,
}

impl Deadlines {
    /// The deadlines of a lock that does not expire.
    pub const NEVER: Self = Self {
        stop_at: Instant::from_boot(Duration::MAX),
        kill_at: Instant::from_boot(Duration::MAX),
    };

    /// The earlier moments of both.
    #[must_use]
    pub fn earliest(self, other: Self) -> Self {
        Self {
            stop_at: self.stop_at.min(other.stop_at),
            kill_at: self.kill_at.min(other.kill_at),
        }
    }
}

/// The durations that follow from a lease's time to live and the command's grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimings {
    ttl: Duration,
    grace: Duration,
}

impl LeaseTimings {
    /// Maximum time to live of a lease.
    pub const LONGEST_TTL: Duration = Duration::from_hours(24);
    /// The share of the TTL that allows for clocks of different rates: chrony slews by up to 8.3 %.
    const CLOCK_DRIFT_SHARE: u32 = 10;
    /// The time that the kernel may need to run the guard and to end the tree.
    const SCHEDULING_MARGIN: Duration = Duration::from_millis(500);

    /// `ttl` is the lease's, `grace` the time between the stop and the kill of the command.
    pub const fn new(ttl: Duration, grace: Duration) -> Self {
        Self { ttl, grace }
    }

    /// The same with the TTL that the server granted, but never more than was requested: a wrong answer must not extend a
    /// deadline.
    #[must_use]
    pub fn granted(self, ttl: Duration) -> Self {
        Self {
            ttl: self.ttl.min(ttl),
            ..self
        }
    }

    /// The lease's time to live.
    pub const fn ttl(self) -> Duration {
        self.ttl
    }

    /// Time between the stop signal and the kill of the command.
    pub const fn grace(self) -> Duration {
        self.grace
    }

    /// The default grace: five seconds, less with a short lease.
    pub fn default_grace(ttl: Duration) -> Duration {
        (ttl / 5).min(Duration::from_secs(5))
    }

    /// The longest grace that leaves time for two renewals before the stop deadline.
    pub fn max_grace(ttl: Duration) -> Duration {
        Self::safe_lifetime(ttl).saturating_sub(ttl / 5 * 2)
    }

    /// The longest grace that any dlock can have. A record that announces more is not from a dlock.
    pub fn longest_grace() -> Duration {
        Self::max_grace(Self::LONGEST_TTL)
    }

    /// Time from the sending of a proof's keepalive in which the lock is certainly held.
    fn safe_lifetime(ttl: Duration) -> Duration {
        (ttl / Self::CLOCK_DRIFT_SHARE * (Self::CLOCK_DRIFT_SHARE - 1))
            .saturating_sub(Self::SCHEDULING_MARGIN)
    }

    /// The time between two renewals.
    pub fn renew_interval(self) -> Duration {
        self.ttl / 5
    }

    /// Time limit of one renewal, after which another endpoint is tried.
    pub fn renew_timeout(self) -> Duration {
        (self.ttl / 8).clamp(Duration::from_millis(500), Duration::from_secs(2))
    }

    /// The deadlines that follow from a proof whose keepalive was sent at `sent_at`.
    pub fn deadlines(self, sent_at: Instant) -> Deadlines {
        let kill_at = sent_at + Self::safe_lifetime(self.ttl);
        Deadlines {
            stop_at: kill_at - self.grace,
            kill_at,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(seconds: f64) -> Instant {
        Instant::from_boot(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn the_deadlines_are_those_of_the_manual() {
        for (ttl, grace, stop, kill) in [
            (10, 2.0, 6.5, 8.5),
            (30, 5.0, 21.5, 26.5),
            (60, 5.0, 48.5, 53.5),
        ] {
            let ttl = Duration::from_secs(ttl);
            assert_eq!(
                LeaseTimings::default_grace(ttl),
                Duration::from_secs_f64(grace)
            );
            let timings = LeaseTimings::new(ttl, LeaseTimings::default_grace(ttl));
            assert_eq!(
                timings.deadlines(at(100.0)),
                Deadlines {
                    stop_at: at(100.0 + stop),
                    kill_at: at(100.0 + kill)
                }
            );
        }
    }

    #[test]
    fn a_generous_server_does_not_lengthen_the_lease() {
        let timings = LeaseTimings::new(Duration::from_secs(10), Duration::from_secs(2));
        assert_eq!(timings.granted(Duration::from_mins(1)), timings);
        assert_eq!(
            timings.granted(Duration::from_secs(8)).ttl(),
            Duration::from_secs(8)
        );
    }
}
