//! Where a lock's queue lives among etcd's keys, and whose turn it is.
//! It must not know how keys are read or written.

use std::time::Duration;

use super::lease::{FencingToken, LeaseId};
use super::name::LockName;

/// What a holder's tree may need beyond its grace when its key was taken from it: a second until the
/// news has reached it, and half a second for the kernel to kill.
const MARGIN: Duration = Duration::from_secs(2);

/// The keys of one lock: `<namespace>lock/<name>/<lease id in hex>`, one per holder or waiter, the
/// oldest holds. It is the layout of etcd's own concurrency package (`client/v3/concurrency/mutex.go`),
/// so `etcdctl lock <namespace>lock/<name>` stands in the same queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    namespace: String,
    prefix: String,
    released: String,
}

impl Queue {
    /// `namespace` ends with a slash.
    pub fn new(namespace: &str, name: &LockName) -> Self {
        Self {
            namespace: namespace.to_owned(),
            prefix: format!("{namespace}lock/{}/", name.encoded()),
            released: format!("{namespace}released/{}", name.encoded()),
        }
    }

    /// What all keys of dlock begin with.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The first key after the namespace.
    pub fn namespace_end(&self) -> String {
        after(&self.namespace)
    }

    /// What the keys of this lock begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The first key after those of this lock.
    pub fn end(&self) -> String {
        after(&self.prefix)
    }

    /// The key of the place that belongs to a lease.
    pub fn key(&self, lease: LeaseId) -> String {
        format!("{}{lease}", self.prefix)
    }

    /// The key under which the last holder that gave the lock back itself leaves its token, for no
    /// longer than its lease lives.
    pub fn released(&self) -> &str {
        &self.released
    }

    /// The lease of the place that `key` is; `None` for keys that are no places of this lock.
    pub fn place(&self, key: &[u8]) -> Option<LeaseId> {
        let digits = key.strip_prefix(self.prefix.as_bytes())?;
        let hex = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
        if digits.is_empty() || digits.len() > 16 || digits[0] == b'0' || !digits.iter().all(hex) {
            return None;
        }
        let digits = std::str::from_utf8(digits).ok()?;
        // Ids are signed in the protocol and printed as unsigned (Go's %x of an int64 id).
        let id = u64::from_str_radix(digits, 16).ok()?;
        Some(LeaseId(id.cast_signed()))
    }
}

/// How long the command of a holder that has vanished may still run, before its successor may start.
///
/// Not at all when it has left its token: then it released the lock after the last of its processes
/// was dead. Else somebody revoked its lease or deleted its key, or its lease expired, and it may be
/// stopping its command this moment. `grace` is the longest that the vanished have announced; those
/// that are not dlock announce none and are not waited for.
///
/// The grace is counted by two clocks whose rates may both be 10 % off, hence a quarter more
/// (1.1 / 0.9 < 1.25, shown by `tests/model`). Who does not hear of its loss, being cut off or
/// stopped, is not covered: it ends at its own deadline.
pub fn hand_over(
    vanished: FencingToken,
    released: Option<FencingToken>,
    grace: Option<Duration>,
) -> Duration {
    match grace {
        Some(grace) if released != Some(vanished) => grace + grace / 4 + MARGIN,
        Some(_) | None => Duration::ZERO,
    }
}

/// The first key that does not begin with `prefix`, which ends with a slash.
fn after(prefix: &str) -> String {
    let stem = prefix.strip_suffix('/').unwrap_or(prefix);
    // '0' follows '/' in ASCII.
    format!("{stem}0")
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn queue(name: &str) -> Queue {
        Queue::new("dlock/", &name.parse::<LockName>().unwrap())
    }

    #[test]
    fn a_place_is_found_again_by_its_key() {
        let queue = queue("job");
        for lease in [LeaseId(1), LeaseId(i64::MAX), LeaseId(-7)] {
            let key = queue.key(lease);
            assert_eq!(queue.place(key.as_bytes()), Some(lease), "{key}");
        }
        assert_eq!(queue.key(LeaseId(0x1a2b)), "dlock/lock/job/1a2b");
    }

    #[test]
    fn other_keys_are_no_places() {
        let queue = queue("job");
        for key in [
            "dlock/lock/job/",
            "dlock/lock/job/README",
            "dlock/lock/job/1A",
            "dlock/lock/job/01",
            "dlock/lock/job/nightly/1a",
            "dlock/lock/jobs/1a",
            "dlock/lock/job/11111111111111111",
        ] {
            assert_eq!(queue.place(key.as_bytes()), None, "{key}");
        }
    }

    #[test]
    fn a_lock_with_a_longer_name_lies_outside() {
        let (short, long) = (queue("job"), queue("job/nightly"));
        let key = long.key(LeaseId(1));
        assert!(!(short.prefix()..short.end().as_str()).contains(&key.as_str()));
    }

    #[test]
    fn only_an_unclean_end_of_a_dlock_delays_the_next() {
        let (token, grace) = (FencingToken(7), Some(Duration::from_secs(5)));
        assert_eq!(hand_over(token, Some(token), grace), Duration::ZERO);
        assert_eq!(hand_over(token, None, None), Duration::ZERO);
        for released in [None, Some(FencingToken(6))] {
            assert_eq!(
                hand_over(token, released, grace),
                Duration::from_millis(8250)
            );
        }
    }

    #[test]
    fn the_namespace_ends_before_its_neighbour() {
        assert_eq!(queue("job").namespace_end(), "dlock0");
        assert_eq!(queue("job").end(), "dlock/lock/job0");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_place_comes_back(name in "\\PC{1,60}", lease in 1..i64::MAX) {
            let queue = queue(&name);
            prop_assert_eq!(queue.place(queue.key(LeaseId(lease)).as_bytes()), Some(LeaseId(lease)));
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let queue = queue("job");
            let _ = queue.place(&bytes);
            let _ = queue.place(&[queue.prefix().as_bytes(), &bytes].concat());
        }
    }
}
