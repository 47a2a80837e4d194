//! How much slower etcd may become before locks are lost, for given lease timings.
//! It must not know how the proofs were measured.

use std::time::Duration;

use super::{Finding, Level, counted};
use crate::core::text::format_duration;
use crate::core::time::{Instant, LeaseTimings};

const CHECK: &str = "latency";

/// The intervals of `core::heartbeat` vary by a tenth; the longest one counts here.
const JITTER: u32 = 10;

/// The reason of a proof whose two requests different members answered.
pub const DIVIDED: &str = "two members answered, as behind a proxy that divides requests";

/// Hint for a proxy through which no lock can be proven.
pub const USE_MEMBERS: &str =
    "name the members' own addresses, or a TCP balancer: see PROXIES in dlock-etcd(7)";

/// One proof as a renewal of `dlock run` makes it: its duration, or why it did not count.
pub type Proof = Result<Duration, String>;

/// Number of renewals in a row without an answer after which the command is stopped although the next one is answered,
/// when a proof takes `latency`.
pub fn fatal_losses(timings: LeaseTimings, latency: Duration) -> u32 {
    let start = Instant::from_boot(Duration::ZERO);
    let room = timings.deadlines(start).stop_at.since(start);
    let first = timings.renew_interval() / JITTER * (JITTER + 1);
    let spare = room.saturating_sub(first + latency);
    let survived = spare.as_nanos() / timings.renew_timeout().as_nanos().max(1);
    1 + u32::try_from(survived).unwrap_or(u32::MAX - 1)
}

/// The median of `times`.
fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Whether renewals through an endpoint with these proofs would keep a lock.
pub fn can_hold_lock(proofs: &[Proof]) -> bool {
    proofs.iter().any(Result::is_ok)
}

/// The finding on the proofs through one endpoint; `bad` is its level if no proof counts.
pub fn check_latency(
    endpoint: &str,
    proofs: &[Proof],
    timings: LeaseTimings,
    bad: Level,
) -> Finding {
    let times: Vec<Duration> = proofs.iter().flatten().copied().collect();
    let failed = proofs.iter().find_map(|proof| proof.as_ref().err());
    let limit = timings.renew_timeout();
    let slow = match failed.map(String::as_str) {
        Some(DIVIDED) => USE_MEMBERS.to_owned(),
        _ => slow_hint(timings),
    };
    let Some(worst) = times.iter().max().copied() else {
        let cause = failed.map_or("none was tried", String::as_str);
        let says = format!(
            "no renewal would count: a proof has to take less than {}, and {cause}",
            format_duration(limit)
        );
        return Finding::new(CHECK, endpoint, bad, &says).hinting(&slow);
    };
    let measured = format!(
        "a proof takes {}, at worst {} of {}",
        short(median(&times)),
        short(worst),
        format_duration(limit)
    );
    if let Some(cause) = failed {
        let says = format!(
            "{} of {} did not count: {cause}; {measured}",
            proofs.len() - times.len(),
            counted(proofs.len(), "proof", "proofs")
        );
        return Finding::warning(CHECK, endpoint, &says).hinting(&slow);
    }
    let count = fatal_losses(timings, worst);
    let says = format!(
        "{measured}; with a TTL of {} {} in a row without an answer would lose the lock",
        format_duration(timings.ttl()),
        counted(
            count.try_into().unwrap_or(usize::MAX),
            "renewal",
            "renewals"
        )
    );
    if worst > limit / 2 {
        return Finding::warning(CHECK, endpoint, &says).hinting(&slow);
    }
    Finding::ok(CHECK, endpoint, &says)
}

/// At least one millisecond.
fn short(time: Duration) -> String {
    format_duration(time.max(Duration::from_millis(1))).to_string()
}

fn slow_hint(timings: LeaseTimings) -> String {
    /// The TTL from which an attempt takes no longer, see [`LeaseTimings::renew_timeout`].
    const PATIENT: Duration = Duration::from_secs(16);
    let server = "check etcd's disks and the network";
    if timings.ttl() < PATIENT {
        return format!(
            "--ttl {} or more gives each renewal more time; or {server}",
            format_duration(PATIENT)
        );
    }
    server.to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::heartbeat::Heartbeat;

    fn timings(seconds: u64) -> LeaseTimings {
        let ttl = Duration::from_secs(seconds);
        LeaseTimings::new(ttl, LeaseTimings::default_grace(ttl))
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_proxy_that_divides_requests_gets_a_hint_of_its_own() {
        let divided = || Err(DIVIDED.to_owned());
        for proofs in [vec![divided()], vec![Ok(ms(2)), divided(), Ok(ms(2))]] {
            let finding = check_latency("a", &proofs, timings(30), Level::Unusable);
            assert_eq!(finding.hint.as_deref(), Some(USE_MEMBERS));
        }
        let late = [Err("no answer in time".to_owned())];
        let finding = check_latency("a", &late, timings(30), Level::Unusable);
        assert_ne!(finding.hint.as_deref(), Some(USE_MEMBERS));
    }

    #[test]
    fn the_count_for_usual_timings() {
        for (ttl, count) in [(5, 4), (10, 4), (30, 8), (60, 18)] {
            assert_eq!(fatal_losses(timings(ttl), ms(2)), count, "TTL {ttl}");
        }
        let ttl = Duration::from_secs(30);
        let tight = LeaseTimings::new(ttl, LeaseTimings::max_grace(ttl));
        assert_eq!(fatal_losses(tight, ms(2)), 3);
    }

    /// Whether a holder with a proof at zero gets another one in time after `silences` unanswered renewals, by the
    /// heartbeat that `dlock run` uses.
    fn survives(timings: LeaseTimings, silences: u32, latency: Duration, seed: u64) -> bool {
        let start = Instant::from_boot(Duration::from_secs(1000));
        let mut heartbeat = Heartbeat::new(timings, start, seed);
        let mut now = start;
        for _ in 0..silences {
            now = heartbeat.due_at().unwrap();
            assert!(heartbeat.start_renewal(now));
            now = now + timings.renew_timeout();
            heartbeat.failed(now);
        }
        now = now.max(heartbeat.due_at().unwrap()) + latency;
        now < timings.deadlines(start).stop_at
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_count_is_what_the_heartbeat_does(
            ttl in 5..3600_u64, grace in 0..100_u64, latency in 0..2000_u64, seed in any::<u64>(),
        ) {
            let ttl = Duration::from_secs(ttl);
            let grace = LeaseTimings::max_grace(ttl) / 100 * u32::try_from(grace).unwrap();
            let timings = LeaseTimings::new(ttl, grace);
            let latency = ms(latency).min(timings.renew_timeout());
            let count = fatal_losses(timings, latency);
            // The jitter of the real heartbeat is never longer, so it survives at least as many.
            prop_assert!(survives(timings, count - 1, latency, seed) || count == 1);
        }
    }

    #[test]
    fn quick_proofs_are_fine() {
        let proofs = [Ok(ms(3)), Ok(ms(1)), Ok(Duration::from_micros(200))];
        let found = check_latency("e", &proofs, timings(30), Level::Unusable);
        assert_eq!(found.level, Level::Ok);
        assert_eq!(
            found.says,
            "a proof takes 1ms, at worst 3ms of 2s; with a TTL of 30s 8 renewals in a row without an answer would lose the lock"
        );
    }

    #[test]
    fn slow_proofs_and_a_few_failed_ones_are_a_warning() {
        let slow = [Ok(ms(10)), Ok(ms(400))];
        let found = check_latency("e", &slow, timings(5), Level::Unusable);
        assert_eq!(found.level, Level::Warning, "{found:?}");
        assert!(found.hint.unwrap().starts_with("--ttl 16s"));
        assert_eq!(
            check_latency("e", &slow, timings(30), Level::Unusable).level,
            Level::Ok
        );
        let some = [Ok(ms(10)), Err("no answer within 2s".to_owned())];
        let found = check_latency("e", &some, timings(30), Level::Unusable);
        assert_eq!(found.level, Level::Warning);
        assert!(
            found
                .says
                .starts_with("1 of 2 proofs did not count: no answer")
        );
        assert!(can_hold_lock(&some) && can_hold_lock(&slow));
    }

    #[test]
    fn the_level_without_a_proof_depends_on_the_other_endpoints() {
        let none = [Err("no answer within 2s".to_owned())];
        for bad in [Level::Warning, Level::Unusable] {
            assert_eq!(check_latency("e", &none, timings(30), bad).level, bad);
        }
        assert!(!can_hold_lock(&none) && !can_hold_lock(&[]));
    }
}
