//! The clock of every decision, `CLOCK_BOOTTIME`, which counts suspend as etcd's own clock does; and the wall clock, for people.
//! It must not know what the moments are for.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::core::time::Instant;

/// The current time.
pub(crate) fn now() -> Instant {
    Instant::from_boot(time_of(ClockId::Boottime))
}

/// The time of a clock that starts at zero on boot.
pub(crate) fn time_of(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    // Neither field is ever negative.
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}

/// A duration as system calls take it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Waits until `at`, or for ever if it is `None`.
///
/// tokio's timers stop while the machine sleeps, so this may end late by that time: nothing that must be in time may
/// depend on it. The guard has a timer of its own that does not stop.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(now())).await,
        None => std::future::pending().await,
    }
}

/// The wall clock as RFC 3339 text in UTC, for people's eyes only.
pub(crate) fn wall_clock() -> String {
    humantime::format_rfc3339_seconds(wall_time()).to_string()
}

/// The same with milliseconds.
pub(crate) fn wall_clock_millis() -> String {
    humantime::format_rfc3339_millis(wall_time()).to_string()
}

/// The wall clock's time since 1970, which only certificates depend on.
pub(crate) fn since_1970() -> Duration {
    let since = wall_time().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

#[expect(
    clippy::disallowed_methods,
    reason = "only ever shown; no decision about a lock is made from it"
)]
fn wall_time() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_from_boot() {
        let uptime = || {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            Duration::from_secs_f64(text.split(' ').next().unwrap().parse().unwrap())
        };
        // /proc/uptime shows hundredths, rounded down.
        let (earlier, now, later) = (uptime(), now().since_boot(), uptime());
        assert!(earlier <= now && now <= later + Duration::from_millis(10));
    }
}
