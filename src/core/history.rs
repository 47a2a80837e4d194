//! The past holders of a lock, put together from the changes of its queue in the order of their revisions.
//! It must not know how the changes are read. Its wall-clock times are for people, and decide nothing about a lock.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::blockers::{QueueEntry, holders};
use super::holder::{Holder, StopKind, StopRequest};
use super::lock_delay::{Ended, ReleaseRecord};
use super::proof::{FencingToken, LeaseId};
use super::request::Mode;
use super::text::{format_age, json, printable, seconds, since_1970};

/// Version of the JSON of `dlock history`, and of the lines of a local history.
const VERSION: u32 = 1;

/// A change of one entry of the queue.
#[derive(Clone, Debug)]
pub enum Change {
    /// The entry was created or changed, in the revision of its latest change.
    Put(QueueEntry),
    Delete {
        key: String,
        revision: i64,
    },
}

impl Change {
    fn revision(&self) -> i64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// The beginning of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Acquired {
    /// Before the first revision that was read.
    Before,
    /// In this revision.
    At(i64),
}

/// The end of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It has not ended.
    Holds,
    /// The owner has released the lock after its command had ended with this result.
    Released(String),
    /// The owner has removed its entry, and no command has run.
    GaveUp,
    /// The entry has gone without its owner: the lease has ended, or another client has deleted the key.
    Lost,
    /// dlock break --now has removed the entry; by this client.
    Broken(String),
    /// The entry of a client that is not dlock is gone, and nothing says why.
    Unknown,
}

/// One request for the lock, which mostly has held it.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Its entry as it was at last.
    pub entry: QueueEntry,
    /// `None`: it never held the lock.
    pub acquired: Option<Acquired>,
    /// The revision in which its owner left the queue.
    pub left: Option<i64>,
    pub end: End,
    /// Wall clocks, for people: the time since 1970.
    pub began_at: Option<Duration>,
    pub ended_at: Option<Duration>,
    pub held: Option<Duration>,
}

impl Hold {
    /// A request that has left the queue, with the value of its release record, if there was one.
    #[must_use]
    pub fn released(self, record: Option<&[u8]>) -> Self {
        let is_record = record.is_some_and(|value| ReleaseRecord::parse(value).is_some());
        let ended = record.and_then(Ended::parse).filter(|_| is_record);
        let asked = self
            .entry
            .record
            .as_ref()
            .and_then(|record| record.asked.clone());
        let end = match (&ended, asked) {
            (Some(ended), _) => End::Released(ended.result.clone()),
            (None, _) if is_record => End::GaveUp,
            (None, Some(asked)) if asked.now => End::Broken(asked.by),
            _ if self.entry.record.is_none() => End::Unknown,
            _ => End::Lost,
        };
        let ended_at = ended.as_ref().and_then(|ended| since_1970(&ended.at));
        let held = ended.as_ref().map(Ended::held);
        Self {
            end,
            began_at: ended_at.zip(held).map(|(at, held)| at.saturating_sub(held)),
            ended_at,
            held,
            ..self
        }
    }

    /// Whether its owner was the holder, with a command that ran.
    pub fn has_held(&self) -> bool {
        self.acquired.is_some() && self.end != End::GaveUp
    }

    /// The request to its owner to stop.
    fn asked(&self) -> Option<&StopRequest> {
        let asked = self.entry.record.as_ref()?.asked.as_ref()?;
        (asked.to == StopKind::Stop).then_some(asked)
    }

    /// The latest time that is known of it, since 1970; `None` for clients that are not dlock.
    fn last_known(&self) -> Option<Duration> {
        let queued_at = || self.entry.record.as_ref().and_then(Holder::queued_at);
        self.ended_at.or(self.began_at).or_else(queued_at)
    }

    /// Whether it may belong to the time after `since`.
    pub fn is_after(&self, since: Duration) -> bool {
        self.end == End::Holds || self.last_known().is_none_or(|at| at >= since)
    }

    /// The end, for people.
    pub fn describe_end(&self) -> String {
        let text = match &self.end {
            End::Holds if self.entry.is_pending() => "not started".to_owned(),
            End::Holds => "holds the lock".to_owned(),
            End::Released(result) => match self.asked() {
                Some(asked) => format!("{result} by {}", short_name(&asked.by)),
                None => result.clone(),
            },
            End::GaveUp => "gave up".to_owned(),
            End::Lost if self.acquired.is_none() => "lost while it waited".to_owned(),
            End::Lost => "lost or killed".to_owned(),
            End::Broken(by) => format!("broken by {}", short_name(by)),
            End::Unknown => "-".to_owned(),
        };
        printable(&text)
    }

    /// The name of the end in JSON.
    fn end_word(&self) -> &'static str {
        match self.end {
            End::Holds => "holds",
            End::Released(_) => "released",
            End::GaveUp => "gave-up",
            End::Lost => "lost",
            End::Broken(_) => "broken",
            End::Unknown => "unknown",
        }
    }

    /// The row of a table; `now` is the time since 1970.
    pub fn row(&self, now: Duration) -> Vec<String> {
        let record = self.entry.record.as_ref();
        let who = record.map_or_else(
            || "another client".to_owned(),
            |record| format!("{}@{} pid {}", record.user, record.host, record.pid),
        );
        let mut words: Vec<String> = Vec::new();
        if let Some(record) = record {
            words.push(record.program.clone());
            words.extend(record.note.as_ref().map(|note| format!("\"{note}\"")));
            words.extend(record.url.clone());
        }
        let slot = record.and_then(|record| record.slot);
        let mode = match (self.entry.mode(), slot) {
            (Mode::Slots(slots), Some(slot)) => format!("slot {slot} of {slots}"),
            (mode, _) => mode.to_string(),
        };
        let still = || Some(now.saturating_sub(self.began_at?)).filter(|_| self.end == End::Holds);
        let held = self.held.or_else(still);
        vec![
            self.began_at.map_or_else(|| "-".to_owned(), rfc3339),
            held.map_or_else(|| "-".to_owned(), format_held),
            printable(&who),
            self.entry.token.to_string(),
            mode,
            self.describe_end(),
            printable(&words.join(" ")),
        ]
    }

    fn to_json(&self) -> HoldJson<'_> {
        let result = match &self.end {
            End::Released(result) => Some(result.as_str()),
            _ => None,
        };
        HoldJson {
            token: self.entry.token.0,
            held_lock: self.has_held(),
            mode: self.entry.mode().word(),
            slots: self.entry.mode().slots(),
            began: self.began_at.map(rfc3339),
            ended: self.ended_at.map(rfc3339),
            held_seconds: self.held.map(seconds),
            end: self.end_word(),
            result,
            asked: self.asked(),
            holder: self.entry.record.as_ref(),
        }
    }
}

/// Tenths of a second for a short hold, and a longer one at a glance.
fn format_held(held: Duration) -> String {
    if held < Duration::from_secs(10) {
        format!("{}.{}s", held.as_secs(), held.subsec_millis() / 100)
    } else {
        format_age(held).to_string()
    }
}

/// The process of a client, without the rest of its sentence.
fn short_name(by: &str) -> &str {
    by.split(',').next().unwrap_or(by)
}

fn rfc3339(since_1970: Duration) -> String {
    // Later than the year 9999, which no record can have, would be an error.
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since_1970).to_string()
}

/// A hold as JSON.
#[derive(Serialize)]
struct HoldJson<'a> {
    token: i64,
    held_lock: bool,
    mode: &'static str,
    slots: u16,
    began: Option<String>,
    ended: Option<String>,
    held_seconds: Option<f64>,
    end: &'static str,
    result: Option<&'a str>,
    /// The request to stop: by whom, and why.
    asked: Option<&'a StopRequest>,
    holder: Option<&'a Holder>,
}

/// How far back the store remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// There may be more, which was not asked for.
    Unread,
    /// etcd has forgotten what was before this revision; zero: it has never forgotten anything.
    Revisions { from: i64 },
    /// A local lock keeps this many.
    Last(usize),
}

/// The history of one lock, the newest hold first.
#[derive(Clone, Debug)]
pub struct History {
    pub holds: Vec<Hold>,
    pub memory: Memory,
    /// The oldest time that is known of all that was read.
    oldest: Option<Duration>,
}

impl History {
    /// The history from holds in any order: at most `limit` of them, with those that never held the lock if `all`.
    pub fn new(mut holds: Vec<Hold>, memory: Memory, request: Request) -> Self {
        // Requests get the lock in the order of their tokens.
        holds.sort_by_key(|hold| std::cmp::Reverse(hold.entry.token));
        fill_in_beginnings(&mut holds);
        let oldest = holds.iter().filter_map(Hold::last_known).min();
        holds.retain(|hold| request.wants(hold));
        let most = request.limit;
        let memory = if holds.len() > most {
            Memory::Unread
        } else {
            memory
        };
        holds.truncate(most);
        Self {
            holds,
            memory,
            oldest,
        }
    }

    /// Whether no older holds need to be read.
    pub fn is_enough(&self, request: Request) -> bool {
        let is_older = |since| self.oldest.is_some_and(|at| at < since);
        self.memory != Memory::Unread
            || self.holds.len() >= request.limit
            || request.since.is_some_and(is_older)
    }

    /// One line of JSON.
    pub fn to_json(&self, name: &str) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            name: &'a str,
            /// The first revision that etcd remembers, if the history goes back to it.
            from_revision: Option<i64>,
            holds: Vec<HoldJson<'a>>,
        }
        let line = Line {
            name,
            from_revision: match self.memory {
                Memory::Revisions { from } => Some(from),
                Memory::Unread | Memory::Last(_) => None,
            },
            holds: self.holds.iter().map(Hold::to_json).collect(),
        };
        json(VERSION, &line)
    }

    /// The end of the table: how far back the list goes.
    pub fn describe_memory(&self, name: &str, request: Request, now: Duration) -> String {
        let name = printable(name);
        let none = match (self.holds.is_empty(), request.since) {
            (false, _) => String::new(),
            (true, None) => format!("no hold of '{name}' is known\n"),
            (true, Some(_)) => format!("no hold of '{name}' is known in that time\n"),
        };
        let age = self.oldest.map(|at| {
            let age = format_age(now.saturating_sub(at));
            format!("; the oldest of '{name}' there is {age} old")
        });
        let age = age.unwrap_or_default();
        let memory = match self.memory {
            Memory::Unread if self.holds.len() >= request.limit => {
                "there may be more: --limit shows older holds\n".to_owned()
            }
            Memory::Unread => String::new(),
            Memory::Revisions { from: 0 } => {
                format!("etcd was never compacted, and keeps every revision{age}\n")
            }
            Memory::Revisions { from } => {
                format!("etcd keeps revisions from {from} on{age}\n")
            }
            Memory::Last(most) => format!("a local lock keeps its last {most} holds\n"),
        };
        none + &memory
    }
}

/// The part of the history that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub limit: usize,
    /// The time since 1970 from which on holds are wanted.
    pub since: Option<Duration>,
    /// Also requests that never held the lock.
    pub all: bool,
}

impl Request {
    fn wants(&self, hold: &Hold) -> bool {
        (self.all || hold.has_held()) && self.since.is_none_or(|since| hold.is_after(since))
    }
}

/// Finds the beginnings that no release record tells: of holds that were lost, or go on. They are those of
/// the records, or the ends of the holds before.
fn fill_in_beginnings(holds: &mut [Hold]) {
    let ends: BTreeMap<i64, Duration> = holds
        .iter()
        .filter_map(|hold| Some((hold.left?, hold.ended_at?)))
        .collect();
    for hold in holds {
        let (None, Some(Acquired::At(revision))) = (hold.began_at, hold.acquired) else {
            continue;
        };
        let record = hold.entry.record.as_ref();
        // The record of a slot is from the claim.
        let is_from_then = revision == hold.entry.token.0 || hold.entry.has_slot();
        hold.began_at = if is_from_then {
            record.and_then(Holder::queued_at)
        } else {
            ends.get(&revision).copied()
        };
    }
}

/// An entry that is in the queue.
#[derive(Debug)]
struct Queued {
    entry: QueueEntry,
    acquired: Option<Acquired>,
    /// Its owner has left, and the entry stays for a while.
    left: bool,
}

/// Follows a queue through its revisions.
#[derive(Debug)]
pub struct Follower {
    queue: BTreeMap<FencingToken, Queued>,
    revision: i64,
    ended: VecDeque<Hold>,
    most: usize,
    all: bool,
}

impl Follower {
    /// Begins with the queue as it was before the first change. It keeps the `most` requests that have ended last; `all`
    /// counts those that never held the lock.
    pub fn new(queue: Vec<QueueEntry>, most: usize, all: bool) -> Self {
        let mut follower = Self {
            queue: BTreeMap::new(),
            revision: 0,
            ended: VecDeque::new(),
            most,
            all,
        };
        for entry in queue {
            follower.put(entry);
        }
        follower.note_holders(Acquired::Before);
        follower
    }

    /// The next change; revisions never decrease.
    pub fn push(&mut self, change: Change) {
        if change.revision() != self.revision {
            self.end_revision();
            self.revision = change.revision();
        }
        match change {
            Change::Put(entry) => self.put(entry),
            Change::Delete { key, .. } => self.delete(&key),
        }
    }

    /// All changes were given: the requests that have ended, whose release records are still to be read, and the current
    /// holders.
    pub fn finish(mut self) -> (Vec<Hold>, Vec<Hold>) {
        self.end_revision();
        let holds = self.queue.into_values().filter(|one| !one.left);
        let holds = holds.filter(|one| one.acquired.is_some());
        let holds = holds.map(|one| hold(one, None)).collect();
        (self.ended.into(), holds)
    }

    fn put(&mut self, entry: QueueEntry) {
        let (token, cools) = (entry.token, entry.is_cooling());
        let queued = self.queue.entry(token).or_insert_with(|| Queued {
            entry: entry.clone(),
            acquired: None,
            // A cooldown that was there already.
            left: cools,
        });
        // The record of a cooldown has the result, and the one before it a request to stop.
        if cools && !queued.left {
            queued.left = true;
            let left = Queued {
                entry: queued.entry.clone(),
                ..*queued
            };
            queued.entry = entry;
            self.keep(left);
        } else {
            queued.entry = entry;
        }
    }

    fn delete(&mut self, key: &str) {
        let found = self.queue.iter().find(|(_, one)| one.entry.key == key);
        let Some(token) = found.map(|(token, _)| *token) else {
            return;
        };
        if let Some(one) = self.queue.remove(&token)
            && !one.left
        {
            self.keep(one);
        }
    }

    fn keep(&mut self, one: Queued) {
        if one.acquired.is_none() && !self.all {
            return;
        }
        self.ended.push_back(hold(one, Some(self.revision)));
        if self.ended.len() > self.most {
            self.ended.pop_front();
        }
    }

    fn end_revision(&mut self) {
        self.note_holders(Acquired::At(self.revision));
    }

    fn note_holders(&mut self, acquired: Acquired) {
        let entries: Vec<QueueEntry> = self.queue.values().map(|one| one.entry.clone()).collect();
        for (one, holds) in self.queue.values_mut().zip(holders(&entries)) {
            if holds && one.acquired.is_none() && !one.left && !one.entry.is_pending() {
                one.acquired = Some(acquired);
            }
        }
    }
}

fn hold(one: Queued, left: Option<i64>) -> Hold {
    Hold {
        entry: one.entry,
        acquired: one.acquired,
        left,
        end: End::Holds,
        began_at: None,
        ended_at: None,
        held: None,
    }
}

/// A hold of a local lock, as its history file has it: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct LocalHold {
    pub token: FencingToken,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    pub holder: Holder,
    /// `None`: the owner did not live to write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

impl LocalHold {
    /// One line.
    pub fn to_line(&self) -> String {
        json(VERSION, self) + "\n"
    }

    /// The holds in the text of a history file, the oldest first. Lines that are not understood are left out: a power
    /// failure may have cut them.
    pub fn parse_all(text: &[u8]) -> Vec<Self> {
        let lines = text.split(|byte| *byte == b'\n');
        lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }

    /// The same as a hold.
    pub fn into_hold(self) -> Hold {
        let ended_at = self.ended.as_ref().and_then(|ended| since_1970(&ended.at));
        let held = self.ended.as_ref().map(Ended::held);
        Hold {
            entry: QueueEntry {
                key: self.token.to_string(),
                token: self.token,
                lease: LeaseId::NONE,
                mod_revision: 0,
                record: Some(Holder {
                    slot: self.slot,
                    ..self.holder
                }),
            },
            acquired: Some(Acquired::Before),
            left: None,
            end: self
                .ended
                .map_or(End::Lost, |ended| End::Released(ended.result)),
            began_at: ended_at.zip(held).map(|(at, held)| at.saturating_sub(held)),
            ended_at,
            held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_mins(29_932_050);

    const ALL: Request = Request {
        limit: 100,
        since: None,
        all: true,
    };

    fn at(seconds: u64) -> Duration {
        NOW + Duration::from_secs(seconds)
    }

    /// An entry of this mode, which its owner has created after so many seconds.
    fn entry(token: i64, mode: Mode) -> QueueEntry {
        let seconds = u64::try_from(token).unwrap();
        QueueEntry {
            key: format!("k{token}"),
            token: FencingToken(token),
            lease: LeaseId(token),
            mod_revision: token,
            record: Some(Holder {
                user: "ann".to_owned(),
                host: "web1".to_owned(),
                since: rfc3339(at(seconds)),
                ..Holder::new(mode, Duration::from_secs(5))
            }),
        }
    }

    fn changed(entry: &QueueEntry, revision: i64, change: impl FnOnce(&mut Holder)) -> Change {
        let mut entry = entry.clone();
        entry.mod_revision = revision;
        change(entry.record.as_mut().unwrap());
        Change::Put(entry)
    }

    fn deleted(token: i64, revision: i64) -> Change {
        let key = format!("k{token}");
        Change::Delete { key, revision }
    }

    fn record(ended_at: u64, held: u64, result: &str) -> String {
        let (at, held) = (rfc3339(at(ended_at)), Duration::from_secs(held));
        ReleaseRecord::Free.to_value(Some(&Ended::new(at, held, result)))
    }

    /// The history after these changes, with the release records of the requests that left in these revisions.
    fn history(queue: Vec<QueueEntry>, changes: Vec<Change>, records: &[(i64, String)]) -> History {
        let mut follower = Follower::new(queue, 100, true);
        for change in changes {
            follower.push(change);
        }
        let (ended, mut holds) = follower.finish();
        holds.extend(ended.into_iter().map(|hold| {
            let record = records.iter().find(|(left, _)| Some(*left) == hold.left);
            hold.released(record.map(|(_, record)| record.as_bytes()))
        }));
        History::new(holds, Memory::Revisions { from: 0 }, ALL)
    }

    /// Token, whether it held the lock, beginning and end in seconds, and the words for the end.
    type Row = (i64, bool, Option<u64>, Option<u64>, String);

    fn rows(history: &History) -> Vec<Row> {
        let seconds = |time: Option<Duration>| time.map(|time| time.saturating_sub(NOW).as_secs());
        let row = |hold: &Hold| {
            let (began, ended) = (seconds(hold.began_at), seconds(hold.ended_at));
            let end = hold.describe_end();
            (hold.entry.token.0, hold.has_held(), began, ended, end)
        };
        history.holds.iter().map(row).collect()
    }

    fn row(
        token: i64,
        held: bool,
        began: impl Into<Option<u64>>,
        ended: impl Into<Option<u64>>,
        end: &str,
    ) -> Row {
        (token, held, began.into(), ended.into(), end.to_owned())
    }

    #[test]
    fn each_holder_has_a_beginning_and_an_end() {
        let (one, two) = (entry(1, Mode::Exclusive), entry(2, Mode::Exclusive));
        let changes = vec![
            Change::Put(one),
            Change::Put(two),
            deleted(1, 7),
            deleted(2, 9),
            Change::Put(entry(10, Mode::Exclusive)),
        ];
        let records = [(7, record(7, 6, "exit 0")), (9, record(9, 2, "signal 9"))];
        let history = history(Vec::new(), changes, &records);
        assert_eq!(
            rows(&history),
            [
                row(10, true, 10, None, "holds the lock"),
                row(2, true, 7, 9, "signal 9"),
                row(1, true, 1, 7, "exit 0"),
            ]
        );
    }

    /// The lease ends, or the key is deleted, and nobody writes a record.
    #[test]
    fn a_holder_whose_entry_vanishes_was_lost() {
        let changes = vec![
            Change::Put(entry(1, Mode::Exclusive)),
            Change::Put(entry(2, Mode::Exclusive)),
            Change::Put(entry(3, Mode::Exclusive)),
            deleted(2, 5),
            deleted(1, 6),
            deleted(3, 8),
        ];
        let history = history(Vec::new(), changes, &[(8, record(9, 1, "exit 0"))]);
        assert_eq!(
            rows(&history),
            [
                row(3, true, 8, 9, "exit 0"),
                row(2, false, None, None, "lost while it waited"),
                row(1, true, 1, None, "lost or killed"),
            ]
        );
    }

    #[test]
    fn a_waiter_that_gives_up_has_held_nothing() {
        let left = || ReleaseRecord::Behind(Vec::new()).to_json();
        let unstarted = || ReleaseRecord::Alone(FencingToken(3)).to_json();
        let changes = vec![
            Change::Put(entry(1, Mode::Exclusive)),
            Change::Put(entry(2, Mode::Exclusive)),
            Change::Put(entry(3, Mode::Exclusive)),
            deleted(2, 4),
            deleted(1, 5),
            // Its turn came, and it ran nothing.
            deleted(3, 6),
        ];
        let records = [(4, left()), (5, record(5, 4, "exit 1")), (6, unstarted())];
        let history = history(Vec::new(), changes, &records);
        assert_eq!(
            rows(&history),
            [
                row(3, false, 5, None, "gave up"),
                row(2, false, None, None, "gave up"),
                row(1, true, 1, 5, "exit 1"),
            ]
        );
        let held = Request { all: false, ..ALL };
        let held = History::new(history.holds, Memory::Unread, held);
        assert_eq!(rows(&held), [row(1, true, 1, 5, "exit 1")]);
    }

    #[test]
    fn a_broken_lock_names_the_client_that_broke_it() {
        let stop = |now| StopRequest {
            to: StopKind::Stop,
            by: "bob@adm pid 7, dlock break".to_owned(),
            why: None,
            now,
        };
        let ask = |token, now| {
            let asked = Some(stop(now));
            changed(&entry(token, Mode::Exclusive), token + 1, |record| {
                record.asked = asked;
            })
        };
        let changes = vec![
            Change::Put(entry(1, Mode::Exclusive)),
            ask(1, false),
            deleted(1, 3),
            Change::Put(entry(4, Mode::Exclusive)),
            ask(4, true),
            deleted(4, 6),
            // Its owner was asked, and then killed.
            Change::Put(entry(7, Mode::Exclusive)),
            ask(7, false),
            deleted(7, 9),
        ];
        let history = history(Vec::new(), changes, &[(3, record(3, 2, "asked to stop"))]);
        assert_eq!(
            rows(&history),
            [
                row(7, true, 7, None, "lost or killed"),
                row(4, true, 4, None, "broken by bob@adm pid 7"),
                row(1, true, 1, 3, "asked to stop by bob@adm pid 7"),
            ]
        );
    }

    /// The entry stays after the end of its command, under another lease.
    #[test]
    fn a_cooldown_is_no_part_of_the_hold() {
        let one = entry(1, Mode::Exclusive);
        let changes = vec![
            Change::Put(one.clone()),
            changed(&one, 3, |record| record.cooling = true),
            deleted(1, 50),
        ];
        let history = history(Vec::new(), changes, &[(3, record(4, 3, "exit 0"))]);
        assert_eq!(rows(&history), [row(1, true, 1, 4, "exit 0")]);
        // It is there already when the memory of etcd begins.
        let mut cooling = one;
        cooling.record.as_mut().unwrap().cooling = true;
        let history = self::history(vec![cooling], vec![deleted(1, 50)], &[]);
        assert_eq!(rows(&history), []);
    }

    #[test]
    fn after_a_compaction_the_beginning_is_known_from_the_record_alone() {
        let queue = || vec![entry(1, Mode::Exclusive), entry(2, Mode::Exclusive)];
        let changes = vec![deleted(1, 70), deleted(2, 80)];
        let told = history(queue(), changes.clone(), &[(70, record(70, 65, "exit 0"))]);
        assert_eq!(
            rows(&told),
            [
                row(2, true, 70, None, "lost or killed"),
                row(1, true, 5, 70, "exit 0"),
            ]
        );
        let untold = history(queue(), changes, &[]);
        assert_eq!(
            rows(&untold),
            [
                row(2, true, None, None, "lost or killed"),
                row(1, true, None, None, "lost or killed"),
            ]
        );
        // A change of an entry that is not known, and the end of one: etcd has forgotten the rest.
        let late = history(Vec::new(), vec![deleted(1, 70)], &[]);
        assert_eq!(rows(&late), []);
    }

    #[test]
    fn readers_and_slots_hold_the_lock_together() {
        let slots = |token, slot| {
            let mut entry = entry(token, Mode::Slots(2));
            entry.record.as_mut().unwrap().slot = slot;
            entry
        };
        let waiter = slots(13, None);
        let changes = vec![
            Change::Put(entry(1, Mode::Shared)),
            Change::Put(entry(2, Mode::Shared)),
            Change::Put(entry(3, Mode::Exclusive)),
            deleted(1, 4),
            deleted(2, 5),
            deleted(3, 6),
            Change::Put(slots(11, Some(0))),
            Change::Put(slots(12, Some(1))),
            Change::Put(waiter.clone()),
            deleted(12, 14),
            changed(&waiter, 15, |record| {
                record.slot = Some(1);
                record.since = rfc3339(at(15));
            }),
        ];
        let records = [
            (4, record(4, 3, "exit 0")),
            (5, record(5, 3, "exit 2")),
            (6, record(6, 1, "exit 3")),
            (14, record(14, 2, "exit 4")),
        ];
        let history = history(Vec::new(), changes, &records);
        assert_eq!(
            rows(&history),
            [
                row(13, true, 15, None, "holds the lock"),
                row(12, true, 12, 14, "exit 4"),
                row(11, true, 11, None, "holds the lock"),
                row(3, true, 5, 6, "exit 3"),
                row(2, true, 2, 5, "exit 2"),
                row(1, true, 1, 4, "exit 0"),
            ]
        );
    }

    /// Its turn has come, and its command may not start yet.
    #[test]
    fn a_hold_begins_with_the_command() {
        let two = entry(2, Mode::Exclusive);
        let changes = vec![
            Change::Put(entry(1, Mode::Exclusive)),
            Change::Put(two.clone()),
            changed(&two, 3, |record| record.pending = true),
            deleted(1, 4),
        ];
        let waiting = history(Vec::new(), changes.clone(), &[]);
        assert_eq!(rows(&waiting), [row(1, true, 1, None, "lost or killed")]);
        let started = [changes, vec![changed(&two, 9, |_| {})]].concat();
        let started = history(Vec::new(), started, &[]);
        assert_eq!(
            rows(&started)[0],
            row(2, true, None, None, "holds the lock")
        );
    }

    /// `etcdctl lock` tells nothing of its end, and a hostile text reaches no terminal.
    #[test]
    fn other_clients_and_hostile_texts_are_shown() {
        let mut stranger = entry(1, Mode::Exclusive);
        stranger.record = None;
        let mut hostile = entry(3, Mode::Exclusive);
        let text = "\u{1b}[2J".to_owned();
        let holder = hostile.record.as_mut().unwrap();
        (holder.program, holder.note) = (text.clone(), Some(text.clone()));
        (holder.user, holder.url) = (text.clone(), Some(text.clone()));
        let changes = vec![
            Change::Put(stranger),
            deleted(1, 2),
            Change::Put(hostile),
            deleted(3, 4),
        ];
        let history = history(Vec::new(), changes, &[(4, record(4, 1, &text))]);
        assert_eq!(rows(&history)[1], row(1, true, None, None, "-"));
        for hold in &history.holds {
            let row = hold.row(NOW);
            assert!(!row.concat().contains('\u{1b}'), "{row:?}");
        }
        assert!(!history.to_json("x").contains('\u{1b}'));
        assert_eq!(history.holds[1].row(NOW)[2], "another client");
    }

    #[test]
    fn the_request_decides_what_is_shown() {
        let holds: Vec<Change> = (1..=9)
            .flat_map(|n| {
                [
                    Change::Put(entry(n * 10, Mode::Exclusive)),
                    deleted(n * 10, n * 10 + 5),
                ]
            })
            .collect();
        let records: Vec<_> = (1..=9)
            .map(|n: i64| (n * 10 + 5, record(n.unsigned_abs() * 10 + 5, 5, "exit 0")))
            .collect();
        let all = history(Vec::new(), holds, &records);
        assert_eq!(all.holds.len(), 9);
        let newest = Request { limit: 3, ..ALL };
        let newest = History::new(all.holds.clone(), all.memory, newest);
        assert_eq!(newest.memory, Memory::Unread);
        let tokens = |history: &History| -> Vec<i64> {
            let tokens = history.holds.iter().map(|hold| hold.entry.token.0);
            tokens.collect()
        };
        assert_eq!(tokens(&newest), [90, 80, 70]);
        let since = Some(at(75));
        let late = Request { since, ..ALL };
        let late = History::new(all.holds.clone(), Memory::Unread, late);
        assert_eq!(tokens(&late), [90, 80, 70]);
        // Older revisions are read as long as they may have wanted holds.
        for (request, is_enough) in [
            (ALL, false),
            (Request { limit: 9, ..ALL }, true),
            (Request { since, ..ALL }, true),
            (
                Request {
                    since: Some(at(1)),
                    ..ALL
                },
                false,
            ),
        ] {
            let history = History::new(all.holds.clone(), Memory::Unread, request);
            assert_eq!(history.is_enough(request), is_enough, "{request:?}");
            let whole = Memory::Revisions { from: 4 };
            let whole = History::new(all.holds.clone(), whole, request);
            assert!(whole.is_enough(request), "{request:?}");
        }
    }

    #[test]
    fn the_list_tells_how_far_back_it_goes() {
        let holds = || {
            let changes = vec![Change::Put(entry(1, Mode::Exclusive)), deleted(1, 2)];
            history(Vec::new(), changes, &[(2, record(2, 1, "exit 0"))]).holds
        };
        let says = |holds, memory, request| {
            let history = History::new(holds, memory, request);
            history.describe_memory("a\u{1b}", request, at(3602))
        };
        let from = Memory::Revisions { from: 71 };
        assert_eq!(
            says(holds(), from, ALL),
            "etcd keeps revisions from 71 on; the oldest of 'a\\u{1b}' there is 1h old\n"
        );
        assert_eq!(
            says(Vec::new(), from, ALL),
            "no hold of 'a\\u{1b}' is known\netcd keeps revisions from 71 on\n"
        );
        let never = says(holds(), Memory::Revisions { from: 0 }, ALL);
        assert!(never.starts_with("etcd was never compacted"), "{never}");
        let one = Request { limit: 1, ..ALL };
        let more = says(holds(), Memory::Unread, one);
        assert!(more.contains("--limit shows older holds"), "{more}");
        let since = Request {
            since: Some(at(9)),
            ..ALL
        };
        assert_eq!(
            says(holds(), Memory::Unread, since),
            "no hold of 'a\\u{1b}' is known in that time\n"
        );
    }

    #[test]
    fn a_follower_keeps_the_last_ones() {
        let mut follower = Follower::new(Vec::new(), 2, false);
        for token in [10, 20, 30] {
            follower.push(Change::Put(entry(token, Mode::Exclusive)));
            follower.push(Change::Put(entry(token + 1, Mode::Exclusive)));
            follower.push(deleted(token + 1, token + 2));
            follower.push(deleted(token, token + 3));
        }
        let (ended, holds) = follower.finish();
        let tokens: Vec<i64> = ended.iter().map(|hold| hold.entry.token.0).collect();
        assert_eq!((tokens, holds.len()), (vec![20, 30], 0));
    }

    #[test]
    fn a_local_history_survives_a_cut() {
        let hold = |token, ended| LocalHold {
            token: FencingToken(token),
            slot: None,
            holder: entry(token, Mode::Exclusive).record.unwrap(),
            ended,
        };
        let ended = Ended::new(rfc3339(at(9)), Duration::from_secs(4), "exit 0");
        let text = hold(1, Some(ended)).to_line() + "{\"tok\n" + &hold(2, None).to_line();
        let holds = LocalHold::parse_all(text.as_bytes()).into_iter();
        let holds = holds.map(LocalHold::into_hold).collect();
        let history = History::new(holds, Memory::Last(100), ALL);
        assert_eq!(
            rows(&history),
            [
                row(2, true, None, None, "lost or killed"),
                row(1, true, 5, 9, "exit 0"),
            ]
        );
    }
}
