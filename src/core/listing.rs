//! Locks with their holders and waiters, as text for people and as JSON.
//! It must not know how the queues are read, nor where they are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::blockers::{OrphanSlot, QueueEntry, holders};
use super::holder::Holder;
use super::name::LockName;
use super::proof::LeaseId;
use super::request::Mode;
use super::text::{format_age, format_duration, json, printable, shown_name};

/// Version of the JSON of `dlock ls` and `dlock status`.
const VERSION: u32 = 1;

/// One lock with its queue.
#[derive(Clone, Debug)]
pub struct ListedLock {
    /// The name as its user wrote it, or as etcd has it if no user can have written it.
    pub name: String,
    /// The entries, the oldest first.
    pub entries: Vec<ListedEntry>,
    waiting: usize,
}

/// An entry of the queue.
#[derive(Clone, Debug)]
pub struct ListedEntry {
    pub entry: QueueEntry,
    pub holds: bool,
    /// Time until its lease expires without a further renewal, by the server's count; for a local lock, the rest of a
    /// cooldown.
    pub left: Option<Duration>,
    /// The other locks that its command waits for, as far as they were read.
    pub waits_for: Vec<String>,
}

/// The waits of commands that hold locks: for each held name and token, the names of the locks that are waited for.
#[derive(Debug, Default)]
pub struct NestedWaits(BTreeMap<(String, i64), BTreeSet<String>>);

impl NestedWaits {
    /// Adds the waiters of a lock.
    pub fn add(&mut self, lock: &ListedLock) {
        let waiters = lock.entries.iter().filter(|one| !one.holds);
        let records = waiters.filter_map(|one| one.entry.record.as_ref());
        for outer in records.flat_map(|record| &record.held) {
            let held = (outer.name.clone(), outer.token);
            let waits = self.0.entry(held).or_default();
            waits.insert(lock.name.clone());
        }
    }

    /// Shows with the holders of a lock what their commands wait for.
    pub fn show_in(&self, lock: &mut ListedLock) {
        let name = &lock.name;
        for one in lock.entries.iter_mut().filter(|one| one.holds) {
            let held = (name.clone(), one.entry.token.0);
            let waits = self.0.get(&held).into_iter().flatten();
            one.waits_for = waits.cloned().collect();
        }
    }
}

impl ListedLock {
    /// `encoded` is the name as keys have it; the entries may be in any order.
    pub fn new(encoded: &str, mut queue: Vec<QueueEntry>) -> Self {
        queue.sort_by_key(|entry| entry.token);
        let first = holders(&queue);
        let name = LockName::decode(encoded);
        let entries = queue.into_iter().zip(first);
        let entries = entries.map(|(entry, first)| ListedEntry {
            holds: first && !entry.is_pending(),
            entry,
            left: None,
            waits_for: Vec::new(),
        });
        let entries: Vec<ListedEntry> = entries.collect();
        Self {
            name: name.map_or_else(|| encoded.to_owned(), |name| name.to_string()),
            waiting: entries.iter().filter(|entry| !entry.holds).count(),
            entries,
        }
    }

    /// Removes the waiters, which still count: a list shows none of them.
    pub fn drop_waiters(&mut self) {
        self.entries.retain(|entry| entry.holds);
    }

    /// The entries that hold the lock.
    pub fn holders(&self) -> impl Iterator<Item = &ListedEntry> {
        self.entries.iter().filter(|entry| entry.holds)
    }

    /// Number of waiters.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// One line of JSON for `dlock ls`.
    pub fn summary(&self) -> String {
        #[derive(Serialize)]
        struct Summary<'a> {
            name: &'a str,
            holders: Vec<Entry<'a>>,
            waiting: usize,
        }
        json(
            VERSION,
            &Summary {
                name: &self.name,
                holders: self.holders().map(ListedEntry::entry).collect(),
                waiting: self.waiting(),
            },
        )
    }

    /// One line of JSON for `dlock status`.
    pub fn detail(&self, orphan: Option<&OrphanSlot>) -> String {
        #[derive(Serialize)]
        struct Detail<'a> {
            name: &'a str,
            held: bool,
            holders: Vec<Entry<'a>>,
            waiting: Vec<Entry<'a>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            orphan_slot: Option<&'a str>,
        }
        let waiting = self.entries.iter().filter(|entry| !entry.holds);
        json(
            VERSION,
            &Detail {
                name: &self.name,
                held: !self.entries.is_empty(),
                holders: self.holders().map(ListedEntry::entry).collect(),
                waiting: waiting.map(ListedEntry::entry).collect(),
                orphan_slot: orphan.map(|orphan| orphan.key.as_str()),
            },
        )
    }

    /// The name, safe for a terminal.
    pub fn shown_name(&self) -> String {
        shown_name(&self.name)
    }
}

/// An entry as JSON.
#[derive(Serialize)]
struct Entry<'a> {
    token: i64,
    /// Absent for local locks.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    /// Whole seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_left_seconds: Option<u64>,
    mode: &'static str,
    slots: u16,
    /// Absent for clients that are not dlock.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<&'a Holder>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    waits_for: &'a [String],
}

impl ListedEntry {
    fn entry(&self) -> Entry<'_> {
        let mode = self.entry.mode();
        Entry {
            token: self.entry.token.0,
            lease: self.lease().map(|lease| lease.to_string()),
            ttl_left_seconds: self.left.map(|left| left.as_secs()),
            mode: mode.word(),
            slots: mode.slots(),
            holder: self.entry.record.as_ref(),
            waits_for: &self.waits_for,
        }
    }

    fn lease(&self) -> Option<LeaseId> {
        let lease = self.entry.lease;
        (lease != LeaseId::NONE).then_some(lease)
    }

    /// The owner without its process, for people.
    pub fn owner_account(&self) -> String {
        let record = self.entry.record.as_ref();
        record.map_or_else(other_client, |record| {
            printable(&format!("{}@{}", record.user, record.host))
        })
    }

    /// The owner, for people.
    pub fn owner(&self) -> String {
        let Some(record) = &self.entry.record else {
            return other_client();
        };
        printable(&format!(
            "{}@{} pid {}",
            record.user, record.host, record.pid
        ))
    }

    /// Its command and note, for people.
    pub fn note(&self) -> String {
        let Some(record) = &self.entry.record else {
            return String::new();
        };
        let mut words = vec![record.program.clone()];
        words.extend(record.note.as_ref().map(|note| format!("\"{note}\"")));
        words.extend(record.url.clone());
        words.extend(record.result.as_ref().map(|result| format!("({result})")));
        let asked = record.asked.as_ref();
        words.extend(asked.map(|ask| format!("(asked to leave by {})", ask.describe())));
        if !self.waits_for.is_empty() {
            words.push(format!("(waits for {})", quoted(&self.waits_for)));
        }
        if !self.holds && !record.held.is_empty() {
            let held = record.held.iter().map(|outer| &outer.name);
            words.push(format!("(holds {})", quoted(held)));
        }
        printable(&words.join(" "))
    }

    /// The mode in which it holds the lock or requests it.
    pub fn state(&self) -> String {
        let record = self.entry.record.as_ref();
        if record.is_some_and(|record| record.cooling) {
            return "cooling down".to_owned();
        }
        let mode = match (self.entry.mode(), record.and_then(|record| record.slot)) {
            (Mode::Slots(slots), Some(slot)) => format!("slot {slot} of {slots}"),
            (mode, _) => mode.to_string(),
        };
        if self.entry.is_pending() {
            return format!("{mode}, not started");
        }
        mode
    }

    /// The time since its record was made, by two wall clocks: `since_1970` is that of this machine.
    pub fn age(&self, since_1970: Duration) -> String {
        let Some(record) = &self.entry.record else {
            return "-".to_owned();
        };
        let age = record.queued_at().map(|at| since_1970.saturating_sub(at));
        age.map_or_else(|| "?".to_owned(), |age| format_age(age).to_string())
    }

    /// The time of its record, by its own wall clock.
    pub fn since(&self) -> String {
        let record = self.entry.record.as_ref();
        printable(record.map_or("", |record| record.since.as_str()))
    }

    /// The rest of its lease or cooldown, for people.
    pub fn left(&self) -> String {
        match (self.left, self.lease()) {
            (Some(left), _) => format_duration(left).to_string(),
            (None, Some(_)) => "?".to_owned(),
            (None, None) if self.entry.permanent().is_some() => "never ends".to_owned(),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Names in quotes: `'A', 'B'`.
fn quoted<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let quoted = names.into_iter().map(|name| format!("'{name}'"));
    quoted.collect::<Vec<_>>().join(", ")
}

fn other_client() -> String {
    "another client".to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::holder::OuterLock;
    use super::super::proof::FencingToken;
    use super::*;

    fn entry(token: i64, record: Option<Holder>) -> QueueEntry {
        QueueEntry {
            key: format!("dlock/lock/x/{token:x}"),
            token: FencingToken(token),
            lease: LeaseId(token),
            mod_revision: token,
            record,
        }
    }

    fn bob(mode: Mode) -> Holder {
        Holder {
            user: "bob\u{1b}[2J".into(),
            host: "db1".into(),
            pid: 7,
            program: "sh".into(),
            note: Some("a b".into()),
            since: "2026-11-23T10:00:00Z".into(),
            ..Holder::new(mode, Duration::from_secs(5))
        }
    }

    #[test]
    fn a_lock_has_holders_and_waiters_in_order() {
        let mut lock = ListedLock::new(
            "a%2Fb",
            vec![entry(9, None), entry(4, Some(bob(Mode::Exclusive)))],
        );
        lock.entries[0].left = Some(Duration::from_secs(12));
        assert_eq!((lock.name.as_str(), lock.waiting()), ("a/b", 1));
        let holder = lock.holders().next().unwrap();
        assert_eq!(holder.owner(), r"bob\u{1b}[2J@db1 pid 7");
        assert_eq!(holder.note(), "sh \"a b\"");
        assert_eq!(
            (holder.state(), holder.left()),
            ("exclusive".into(), "12s".into())
        );
        let summary: serde_json::Value = serde_json::from_str(&lock.summary()).unwrap();
        assert_eq!(summary["waiting"], 1);
        assert_eq!(summary["holders"][0]["token"], 4);
        assert_eq!(summary["holders"][0]["ttl_left_seconds"], 12);
        assert_eq!(summary["holders"][0]["holder"]["pid"], 7);
        let detail: serde_json::Value = serde_json::from_str(&lock.detail(None)).unwrap();
        assert_eq!(detail["held"], true);
        assert_eq!(
            detail["waiting"][0],
            serde_json::json!({"token": 9, "lease": "9", "mode": "exclusive", "slots": 1})
        );
    }

    #[test]
    fn a_waiter_that_has_not_started_is_no_holder() {
        let pending = Holder {
            pending: true,
            ..bob(Mode::Exclusive)
        };
        let lock = ListedLock::new("x", vec![entry(4, Some(pending)), entry(9, None)]);
        assert_eq!((lock.holders().count(), lock.waiting()), (0, 2));
        assert_eq!(lock.entries[0].state(), "exclusive, not started");
        let detail: serde_json::Value = serde_json::from_str(&lock.detail(None)).unwrap();
        assert_eq!(detail["waiting"][0]["holder"]["pending"], true);
    }

    /// "`status` shows who waits for what while holding what", and a list what the command of a holder waits for.
    #[test]
    fn nested_waits_are_shown() {
        let nested = Holder {
            held: vec![OuterLock {
                name: "a b".to_owned(),
                token: 4,
            }],
            ..bob(Mode::Exclusive)
        };
        let inner = ListedLock::new("b", vec![entry(5, None), entry(6, Some(nested))]);
        assert_eq!(inner.entries[1].note(), "sh \"a b\" (holds 'a b')");
        let mut waits = NestedWaits::default();
        waits.add(&inner);
        let queue = vec![entry(4, Some(bob(Mode::Exclusive))), entry(7, None)];
        let mut outer = ListedLock::new("a%20b", queue);
        outer.drop_waiters();
        waits.show_in(&mut outer);
        assert_eq!((outer.entries.len(), outer.waiting()), (1, 1));
        assert_eq!(outer.entries[0].note(), "sh \"a b\" (waits for 'b')");
        let summary: serde_json::Value = serde_json::from_str(&outer.summary()).unwrap();
        assert_eq!(summary["holders"][0]["waits_for"], serde_json::json!(["b"]));
        let detail: serde_json::Value = serde_json::from_str(&inner.detail(None)).unwrap();
        let held = serde_json::json!([{"name": "a b", "token": 4}]);
        assert_eq!(detail["waiting"][0]["holder"]["held"], held);
    }

    #[test]
    fn a_free_lock_and_an_invalid_name_are_listed() {
        let lock = ListedLock::new("%zz\u{7}", Vec::new());
        assert_eq!(lock.shown_name(), r"'%zz\u{7}'");
        assert!(lock.detail(None).contains("\"held\":false"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// For any content and any names of other clients' keys.
        #[test]
        fn any_queue_is_fit_to_show(
            name in "(?s).{0,60}", value in proptest::collection::vec(any::<u8>(), 0..300),
            host in "(?s).{0,60}", note in "(?s).{0,2000}", mode in ".{0,9}", result in "(?s).{0,60}",
        ) {
            let record = Holder { host, note: Some(note), mode, result: Some(result), ..bob(Mode::Shared) };
            let lock = ListedLock::new(&name, vec![entry(1, Holder::parse(&value)), entry(2, Some(record))]);
            let mut shown = vec![lock.shown_name(), lock.summary(), lock.detail(None)];
            for entry in &lock.entries {
                shown.extend([entry.owner(), entry.note(), entry.state(), entry.since(), entry.left()]);
            }
            for text in shown {
                prop_assert!(!text.chars().any(super::super::text::is_hostile), "{text:?}");
            }
        }
    }
}
