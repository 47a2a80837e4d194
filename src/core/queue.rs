//! Where a lock's queue lives among etcd's keys, and whose turn it is.
//! It must not know how keys are read or written.

use super::lease::LeaseId;
use super::name::LockName;

/// The keys of one lock: `<namespace>lock/<name>/<lease id in hex>`, one per holder or waiter, the
/// oldest holds. It is the layout of etcd's own concurrency package (`client/v3/concurrency/mutex.go`),
/// so `etcdctl lock <namespace>lock/<name>` stands in the same queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    namespace: String,
    prefix: String,
}

impl Queue {
    /// `namespace` ends with a slash.
    pub fn new(namespace: &str, name: &LockName) -> Self {
        Self {
            namespace: namespace.to_owned(),
            prefix: format!("{namespace}lock/{}/", name.encoded()),
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

    /// The places among `keys`, in their order. Other keys stand in nobody's way.
    pub fn places<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
        keys.filter_map(|key| self.place(key))
            .map(|lease| self.key(lease))
            .collect()
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
