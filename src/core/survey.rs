//! What is shown of locks to those who look: who has them, who waits, in people's words and as JSON.
//! It must not know how the queues are read, nor where it is shown.

use std::time::Duration;

use serde::Serialize;

use super::holder::Holder;
use super::lease::LeaseId;
use super::mode::Mode;
use super::name::LockName;
use super::text::{json, printable, span};
use super::turn::{Standing, holders};

/// One lock with its queue.
#[derive(Clone, Debug)]
pub struct Lock {
    /// As its user wrote it, or as it stands in etcd if nobody can have written it.
    pub name: String,
    /// From the oldest on.
    pub places: Vec<Place>,
}

/// One place in the queue.
#[derive(Clone, Debug)]
pub struct Place {
    pub standing: Standing,
    pub holds: bool,
    /// How long its lease lives without a further renewal, by the server's count; where there are no leases, how long it
    /// still cools down.
    pub left: Option<Duration>,
}

impl Lock {
    /// `encoded` is the name as keys have it; the places may come in any order.
    pub fn new(encoded: &str, mut queue: Vec<Standing>) -> Self {
        queue.sort_by_key(|standing| standing.token);
        let holds = holders(&queue);
        let name = LockName::decode(encoded);
        Self {
            name: name.map_or_else(|| encoded.to_owned(), |name| name.to_string()),
            places: queue
                .into_iter()
                .zip(holds)
                .map(|(standing, holds)| Place {
                    standing,
                    holds,
                    left: None,
                })
                .collect(),
        }
    }

    /// Those who have the lock.
    pub fn holders(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.holds)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.places.len() - self.holders().count()
    }

    /// One line of JSON: what `dlock ls` says of a lock.
    pub fn summary(&self) -> String {
        #[derive(Serialize)]
        struct Summary<'a> {
            name: &'a str,
            holders: Vec<Entry<'a>>,
            waiting: usize,
        }
        json(&Summary {
            name: &self.name,
            holders: self.holders().map(Place::entry).collect(),
            waiting: self.waiting(),
        })
    }

    /// One line of JSON: what `dlock status` says of a lock.
    pub fn detail(&self) -> String {
        #[derive(Serialize)]
        struct Detail<'a> {
            name: &'a str,
            held: bool,
            holders: Vec<Entry<'a>>,
            waiting: Vec<Entry<'a>>,
        }
        let waiting = self.places.iter().filter(|place| !place.holds);
        json(&Detail {
            name: &self.name,
            held: !self.places.is_empty(),
            holders: self.holders().map(Place::entry).collect(),
            waiting: waiting.map(Place::entry).collect(),
        })
    }

    /// The name, fit for a terminal.
    pub fn shown_name(&self) -> String {
        printable(&self.name)
    }
}

/// What JSON says of a place.
#[derive(Serialize)]
struct Entry<'a> {
    token: i64,
    /// Absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    /// Whole seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_left: Option<u64>,
    mode: &'static str,
    slots: u16,
    /// Absent for clients that are not dlock.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<&'a Holder>,
}

impl Place {
    fn entry(&self) -> Entry<'_> {
        let mode = self.standing.mode();
        Entry {
            token: self.standing.token.0,
            lease: self.lease().map(|lease| lease.to_string()),
            ttl_left: self.left.map(|left| left.as_secs()),
            mode: mode.word(),
            slots: mode.slots(),
            holder: self.standing.record.as_ref(),
        }
    }

    fn lease(&self) -> Option<LeaseId> {
        let lease = self.standing.lease;
        (lease != LeaseId::NONE).then_some(lease)
    }

    /// Who it is, for people.
    pub fn who(&self) -> String {
        let Some(record) = &self.standing.record else {
            return "another client".to_owned();
        };
        printable(&format!(
            "{}@{} pid {}",
            record.user, record.host, record.pid
        ))
    }

    /// What it runs and says, for people.
    pub fn what(&self) -> String {
        let Some(record) = &self.standing.record else {
            return String::new();
        };
        let mut words = vec![record.program.clone()];
        words.extend(record.note.as_ref().map(|note| format!("\"{note}\"")));
        words.extend(record.url.clone());
        words.extend(record.result.as_ref().map(|result| format!("({result})")));
        let asked = record.asked.as_ref();
        words.extend(asked.map(|ask| format!("(asked to leave by {})", ask.sentence())));
        printable(&words.join(" "))
    }

    /// How it has the lock, or wants it.
    pub fn how(&self) -> String {
        let record = self.standing.record.as_ref();
        if record.is_some_and(|record| record.cooling) {
            return "cooling down".to_owned();
        }
        match (self.standing.mode(), record.and_then(|record| record.slot)) {
            (Mode::Slots(slots), Some(slot)) => format!("slot {slot} of {slots}"),
            (mode, _) => mode.to_string(),
        }
    }

    /// Since when it is there, by its own wall clock.
    pub fn since(&self) -> String {
        let record = self.standing.record.as_ref();
        printable(record.map_or("", |record| record.since.as_str()))
    }

    /// How long its lease lives, or how long it still cools down, for people.
    pub fn left(&self) -> String {
        match (self.left, self.lease()) {
            (Some(left), _) => span(left).to_string(),
            (None, Some(_)) => "?".to_owned(),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Lines in aligned columns; the first one is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    use unicode_width::UnicodeWidthStr as _;

    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell: &String| cell.width())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| widest(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let blanks = width + 2 - cell.width();
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', blanks));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::lease::FencingToken;
    use super::*;

    fn standing(token: i64, record: Option<Holder>) -> Standing {
        Standing {
            key: format!("dlock/lock/x/{token:x}"),
            token: FencingToken(token),
            lease: LeaseId(token),
            changed: token,
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
        let mut lock = Lock::new(
            "a%2Fb",
            vec![standing(9, None), standing(4, Some(bob(Mode::Exclusive)))],
        );
        lock.places[0].left = Some(Duration::from_secs(12));
        assert_eq!((lock.name.as_str(), lock.waiting()), ("a/b", 1));
        let holder = lock.holders().next().unwrap();
        assert_eq!(holder.who(), r"bob\u{1b}[2J@db1 pid 7");
        assert_eq!(holder.what(), "sh \"a b\"");
        assert_eq!(
            (holder.how(), holder.left()),
            ("exclusive".into(), "12s".into())
        );
        let summary: serde_json::Value = serde_json::from_str(&lock.summary()).unwrap();
        assert_eq!(summary["waiting"], 1);
        assert_eq!(summary["holders"][0]["token"], 4);
        assert_eq!(summary["holders"][0]["ttl_left"], 12);
        assert_eq!(summary["holders"][0]["holder"]["pid"], 7);
        let detail: serde_json::Value = serde_json::from_str(&lock.detail()).unwrap();
        assert_eq!(detail["held"], true);
        assert_eq!(
            detail["waiting"][0],
            serde_json::json!({"token": 9, "lease": "9", "mode": "exclusive", "slots": 1})
        );
    }

    #[test]
    fn a_free_lock_and_a_name_that_nobody_wrote() {
        let lock = Lock::new("%zz\u{7}", Vec::new());
        assert_eq!(lock.shown_name(), r"%zz\u{7}");
        assert!(lock.detail().contains("\"held\":false"));
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let rows = [["NAME", "WHO"], ["漢", "x"], ["abc", "y"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "NAME  WHO\n漢    x\nabc   y\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever others have written into their keys, and however they have named them.
        #[test]
        fn any_queue_is_fit_to_show(
            name in "(?s).{0,60}", value in proptest::collection::vec(any::<u8>(), 0..300),
            host in "(?s).{0,60}", note in "(?s).{0,2000}", mode in ".{0,9}", result in "(?s).{0,60}",
        ) {
            let record = Holder { host, note: Some(note), mode, result: Some(result), ..bob(Mode::Shared) };
            let lock = Lock::new(&name, vec![standing(1, Holder::parse(&value)), standing(2, Some(record))]);
            let mut shown = vec![lock.shown_name(), lock.summary(), lock.detail()];
            for place in &lock.places {
                shown.extend([place.who(), place.what(), place.how(), place.since(), place.left()]);
            }
            for text in shown {
                prop_assert!(!text.chars().any(super::super::text::is_hostile), "{text:?}");
            }
        }
    }
}
