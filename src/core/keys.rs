//! The key layout of a lock's queue in etcd.
//! It must not know how keys are read or written.

use super::name::{LockName, encode};
use super::proof::LeaseId;

/// The keys of one lock: `<namespace>lock/<name>/<lease id in hex>`, one per holder or waiter; the oldest key holds the
/// lock. It is the layout of etcd's own concurrency package (`client/v3/concurrency/mutex.go`), so `etcdctl lock
/// <namespace>lock/<name>` joins the same queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockKeys {
    namespace: String,
    lock: LockName,
    /// The lock's name as it is encoded in keys.
    name: String,
    prefix: String,
}

impl LockKeys {
    /// `namespace` ends with a slash.
    pub fn new(namespace: &str, name: &LockName) -> Self {
        Self {
            namespace: namespace.to_owned(),
            lock: name.clone(),
            name: name.encoded(),
            prefix: format!("{namespace}lock/{}/", name.encoded()),
        }
    }

    /// The lock's name.
    pub fn lock(&self) -> &LockName {
        &self.lock
    }

    /// The prefix of all keys of dlock.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The first key after the namespace.
    pub fn namespace_end(&self) -> String {
        end_of_prefix(&self.namespace)
    }

    /// The prefix of this lock's entries.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The first key after those of this lock's entries.
    pub fn ended(&self) -> String {
        end_of_prefix(&self.prefix)
    }

    /// The key of the entry that belongs to a lease.
    pub fn entry(&self, lease: LeaseId) -> String {
        format!("{}{lease}", self.prefix)
    }

    /// The key of the [`ReleaseRecord`](super::lock_delay::ReleaseRecord) that an owner writes when it deletes its own
    /// entry; it lives no longer than the owner's lease. While it exists, no entry of that lease is created: see
    /// [`abandoned`](super::abandoned).
    pub fn released(&self, lease: LeaseId) -> String {
        format!("{}released/{}/{lease}", self.namespace, self.name)
    }

    /// The key of a slot, which one holder at most can have.
    pub fn slot(&self, slot: u16) -> String {
        format!("{}{slot}", self.slots())
    }

    /// The prefix of the slots' keys.
    pub fn slots(&self) -> String {
        format!("{}slot/{}/", self.namespace, self.name)
    }

    /// The first key after those of the slots.
    pub fn slots_end(&self) -> String {
        end_of_prefix(&self.slots())
    }

    /// The number of the slot whose key is `key`.
    pub fn slot_number(&self, key: &[u8]) -> Option<u16> {
        let digits = key.strip_prefix(self.slots().as_bytes())?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// The key that exists as long as no further run may start (`--once-per`).
    pub fn once(&self) -> String {
        format!("{}once/{}", self.namespace, self.name)
    }

    /// The lease of the entry whose key is `key`; `None` for keys that are no entries of this lock.
    pub fn parse_entry(&self, key: &[u8]) -> Option<LeaseId> {
        lease(key.strip_prefix(self.prefix.as_bytes())?)
    }
}

/// The kinds of keys: the part of the key after the namespace.
const KINDS: [&str; 4] = ["lock", "once", "released", "slot"];

/// The namespace and the kind that the keys below `namespace` would belong to; then it cannot be a namespace itself. With
/// `a/lock/`, the mark of a run of `abc` would be an entry of the lock `once` in the namespace `a/`.
pub fn kind_of(namespace: &str) -> Option<(&str, &str)> {
    let stem = namespace.strip_suffix('/')?;
    KINDS.iter().find_map(|kind| {
        let outer = stem.strip_suffix(kind)?;
        let is_whole = outer.ends_with('/');
        is_whole.then_some((outer, *kind))
    })
}

/// The prefix of the keys of all locks whose names begin with `prefix`.
pub fn locks_prefix(namespace: &str, prefix: &str) -> String {
    format!("{namespace}lock/{}", encode(prefix))
}

/// The encoded name of the lock of which `key` is an entry.
pub fn lock_name_of<'a>(namespace: &str, key: &'a [u8]) -> Option<&'a str> {
    let rest = key.strip_prefix(namespace.as_bytes())?;
    let rest = std::str::from_utf8(rest.strip_prefix(b"lock/")?).ok()?;
    let (name, digits) = rest.split_once('/')?;
    lease(digits.as_bytes())?;
    Some(name)
}

/// Parses a lease id as etcd's tools write it.
fn lease(digits: &[u8]) -> Option<LeaseId> {
    let hex = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
    if digits.is_empty() || digits.len() > 16 || digits[0] == b'0' || !digits.iter().all(hex) {
        return None;
    }
    let digits = std::str::from_utf8(digits).ok()?;
    // Ids are signed in the protocol and printed as unsigned (Go's %x of an int64 id).
    let id = u64::from_str_radix(digits, 16).ok()?;
    Some(LeaseId(id.cast_signed()))
}

/// The first key that does not begin with `prefix`, which ends with a slash.
pub fn end_of_prefix(prefix: &str) -> String {
    let stem = prefix.strip_suffix('/').unwrap_or(prefix);
    // '0' follows '/' in ASCII.
    format!("{stem}0")
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn queue(name: &str) -> LockKeys {
        LockKeys::new("dlock/", &name.parse::<LockName>().unwrap())
    }

    #[test]
    fn an_entry_is_found_by_its_key() {
        let queue = queue("job");
        for lease in [LeaseId(1), LeaseId(i64::MAX), LeaseId(-7)] {
            let key = queue.entry(lease);
            assert_eq!(queue.parse_entry(key.as_bytes()), Some(lease), "{key}");
        }
        assert_eq!(queue.entry(LeaseId(0x1a2b)), "dlock/lock/job/1a2b");
    }

    #[test]
    fn a_key_gives_the_name_of_its_lock() {
        let queue = queue("a/b");
        let key = queue.entry(LeaseId(0x1a));
        assert_eq!(lock_name_of("dlock/", key.as_bytes()), Some("a%2Fb"));
        assert!(key.starts_with(&locks_prefix("dlock/", "a/")));
        for key in [
            "dlock/lock/a/b/1a",
            "dlock/lock/a/x",
            "dlock/slot/a/1",
            "other/lock/a/1a",
        ] {
            assert_eq!(lock_name_of("dlock/", key.as_bytes()), None, "{key}");
        }
    }

    #[test]
    fn other_keys_are_no_entries() {
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
            assert_eq!(queue.parse_entry(key.as_bytes()), None, "{key}");
        }
    }

    #[test]
    fn a_lock_with_a_longer_name_lies_outside() {
        let (short, long) = (queue("job"), queue("job/nightly"));
        let key = long.entry(LeaseId(1));
        assert!(!(short.prefix()..short.ended().as_str()).contains(&key.as_str()));
    }

    #[test]
    fn the_keys_beside_the_queue_are_a_lock_s_own() {
        let (one, other) = (queue("job"), queue("job/1"));
        assert_eq!(one.slot(12), "dlock/slot/job/12");
        assert_eq!(one.slot_number(b"dlock/slot/job/12"), Some(12));
        assert_eq!(one.slot_number(other.slot(3).as_bytes()), None);
        assert_eq!(one.released(LeaseId(0x1a)), "dlock/released/job/1a");
        assert_ne!(one.once(), other.once());
    }

    #[test]
    fn the_namespace_ends_before_its_neighbour() {
        assert_eq!(queue("job").namespace_end(), "dlock0");
        assert_eq!(queue("job").ended(), "dlock/lock/job0");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_entry_survives_a_round_trip(name in "\\PC{1,60}", lease in 1..i64::MAX) {
            let queue = queue(&name);
            prop_assert_eq!(queue.parse_entry(queue.entry(LeaseId(lease)).as_bytes()), Some(LeaseId(lease)));
        }

        /// Names and prefixes consist of the characters of keys.
        #[test]
        fn no_key_is_that_of_another_lock_or_kind(
            parts in proptest::collection::vec("lock|once|slot|released|[1-9a-f]", 1..4),
            shorter in 1..3_usize, one in "lock|once|slot|released|[1-9]", other in "lock|once|slot|released|[1-9]",
        ) {
            let namespace = |parts: &[String]| format!("x/{}/", parts.join("/"));
            let spaces = [namespace(&parts), namespace(&parts[..shorter.min(parts.len())]), "x/".to_owned()];
            let fit = spaces.iter().filter(|space| kind_of(space).is_none());
            let queues: Vec<LockKeys> = fit
                .flat_map(|space| [&one, &other].map(|name| LockKeys::new(space, &name.parse().unwrap())))
                .collect();
            for (one, other) in queues.iter().flat_map(|one| queues.iter().map(move |other| (one, other))) {
                let keys = [one.entry(LeaseId(0xa)), one.once(), one.released(LeaseId(0xa)), one.slot(1)];
                let same = one == other;
                for (index, key) in keys.iter().enumerate() {
                    prop_assert_eq!(other.parse_entry(key.as_bytes()).is_some(), same && index == 0, "{}", key);
                    prop_assert_eq!(*key == other.once(), same && index == 1, "{}", key);
                    prop_assert_eq!(*key == other.released(LeaseId(0xa)), same && index == 2, "{}", key);
                    prop_assert_eq!(other.slot_number(key.as_bytes()).is_some(), same && index == 3, "{}", key);
                }
            }
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let queue = queue("job");
            let _ = queue.parse_entry(&bytes);
            let _ = queue.parse_entry(&[queue.prefix().as_bytes(), &bytes].concat());
        }
    }
}
