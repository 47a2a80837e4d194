//! The holder record: the value of a lock's key, which describes its owner. It is for people only, never trusted.
//! It must not know the source of the facts (`host/identity.rs`), nor where they are shown.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::name::LockName;
use super::proof::LeaseId;
use super::request::Mode;
use super::text::{elided, printable, since_1970, truncate};

/// The version of the record that this dlock writes and understands.
const VERSION: u32 = 1;

/// Maximum width of a note among other facts.
const MAX_NOTE_COLUMNS: usize = 60;

/// Maximum length of a record in bytes.
const MAX_RECORD_BYTES: usize = 1024;

/// Maximum length of the list of outer locks in a record, in bytes; the innermost one is there even if it is longer.
const MAX_HELD_BYTES: usize = 256;

/// The record. Texts may contain anything: show them through [`printable`] or [`Holder::sentence`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub v: u32,
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub pid: u32,
    #[serde(default)]
    pub user: String,
    /// The command's name without its arguments, which may contain secrets.
    #[serde(default)]
    pub program: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The page of the CI job that runs the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The mode of the request: `exclusive`, `shared` or `slots`.
    #[serde(default)]
    pub mode: String,
    /// Maximum number of holders at once.
    #[serde(default = "one")]
    pub slots: u16,
    /// The slot of its owner, from 0 on; `None` while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    /// RFC 3339, by the holder's wall clock.
    #[serde(default)]
    pub since: String,
    /// Time that the holder's command may take to end after the stop signal, or an earlier command that may still run.
    #[serde(default)]
    pub grace_ms: u64,
    /// Its turn has come and its command has not started: etcd has not confirmed the lease, or the command of a vanished
    /// holder may still run. Without it, the first in the queue holds the lock.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// The lock stays taken although the owner runs no command: for `--min-hold`, and then the grace is zero, or for the
    /// command of a vanished holder, which has that grace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cooling: bool,
    /// The result of the command, if it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The lease of the run's entry, in the mark of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<LeaseId>,
    /// A request to its owner to give the lock up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<StopRequest>,
    /// The locks around its owner, outermost first. The record in etcd has those of a long list that are innermost; the
    /// first of these lists the others in its own record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<OuterLock>,
    /// Its owner waits for a limited time, so it blocks nobody for ever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
}

/// A lock that is held around the owner of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OuterLock {
    pub name: String,
    pub token: i64,
}

/// A request to the owner of an entry, made by a change of its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    pub to: StopKind,
    /// The requester, for people.
    #[serde(default)]
    pub by: String,
    /// The reason, in the requester's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The requester removes the entry right afterwards, and does not wait: a client whose command has not started queues again
    /// then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
}

/// The kinds of [`StopRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopKind {
    /// Leave the queue because of a newer request; a holder ignores it.
    Yield,
    /// Stop the command and release the lock, or leave the queue.
    Stop,
}

impl StopRequest {
    /// For people: `alice@db1 pid 12, deploy.sh: "reason"`.
    pub fn describe(&self) -> String {
        let why = self
            .why
            .as_ref()
            .map(|why| format!(": \"{}\"", why.replace('"', "'")));
        printable(&format!("{}{}", self.by, why.unwrap_or_default()))
    }
}

fn one() -> u16 {
    1
}

impl Holder {
    /// A record of this version with nothing but mode and grace.
    pub fn new(mode: Mode, grace: Duration) -> Self {
        let record = Self {
            v: VERSION,
            mode: mode.word().to_owned(),
            slots: mode.slots(),
            ..Self::default()
        };
        record.with_grace(grace)
    }

    /// The same with another grace, which a waiter uses if the entry vanishes.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self {
            grace_ms: grace.as_millis().try_into().unwrap_or(u64::MAX),
            ..self
        }
    }

    /// The requested mode; `None` for a mode of a later version.
    pub fn mode(&self) -> Option<Mode> {
        match self.mode.as_str() {
            "exclusive" if self.slots == 1 => Some(Mode::Exclusive),
            "shared" => Some(Mode::Shared),
            "slots" if (1..=Mode::MAX_SLOTS).contains(&self.slots) => Some(Mode::Slots(self.slots)),
            _ => None,
        }
    }

    /// Time that the holder's command, or an earlier one, may take to end after the stop signal.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// Whether its owner holds other locks and waits without limit.
    pub fn is_nested(&self) -> bool {
        !self.held.is_empty() && !self.limited
    }

    /// The value of the key: at most 1 KiB; the longest texts are truncated to reach that.
    pub fn to_json(&self) -> String {
        let mut record = self.clone();
        record.shorten_held();
        loop {
            // A struct of texts and numbers always serialises.
            let json = serde_json::to_string(&record).unwrap_or_default();
            let Some(excess) = json.len().checked_sub(MAX_RECORD_BYTES + 1) else {
                return json;
            };
            record.shorten(excess + 1);
        }
    }

    /// Removes outer locks until the list fits, and those whose names no lock can have.
    fn shorten_held(&mut self) {
        self.held.retain(|one| one.name.parse::<LockName>().is_ok());
        let mut room = MAX_HELD_BYTES;
        let fitting = self.held.iter().rev().take_while(|one| {
            let is_first = room == MAX_HELD_BYTES;
            let length = serde_json::to_string(one).unwrap_or_default().len() + 1;
            let left = room.checked_sub(length);
            room = left.unwrap_or(0);
            left.is_some() || is_first
        });
        let removed = self.held.len() - fitting.count();
        self.held.drain(..removed);
    }

    /// Removes `excess` bytes from the longest text, or all of it.
    fn shorten(&mut self, excess: usize) {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        // A truncated link is useless.
        if length(&self.url) > MAX_RECORD_BYTES / 2 {
            self.url = None;
            return;
        }
        let (by, why) = match &mut self.asked {
            Some(StopRequest { by, why, .. }) => (Some(by), why.as_mut()),
            None => (None, None),
        };
        let texts = [
            by,
            why,
            self.result.as_mut(),
            self.note.as_mut(),
            Some(&mut self.program),
            Some(&mut self.host),
            Some(&mut self.user),
            Some(&mut self.since),
        ];
        match texts.into_iter().flatten().max_by_key(|text| text.len()) {
            Some(longest) if !longest.is_empty() => {
                let end = truncate(longest, longest.len().saturating_sub(excess)).len();
                longest.truncate(end);
            }
            // Escapes alone can make a short link long.
            _ if self.url.is_some() => self.url = None,
            // No mode of dlock is long; an unknown one counts as exclusive, as an empty one does.
            _ => self.mode.clear(),
        }
    }

    /// Parses `value`. `None` means another client: another version, garbage, a value that is far too long, or an empty
    /// one, which `etcdctl lock` writes.
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.len() > 4 * MAX_RECORD_BYTES {
            return None;
        }
        let holder = serde_json::from_slice::<Self>(value).ok()?;
        (holder.v == VERSION).then_some(holder)
    }

    /// For people: `alice@host pid 12, deploy.sh, since 2026-11-23T10:00:00Z, note "..."`.
    pub fn sentence(&self) -> String {
        let mut text = format!("{}@{} pid {}", self.user, self.host, self.pid);
        let mut add = |what: &str, value: &str| {
            if !value.is_empty() {
                // Writing to a String cannot fail.
                let _ = write!(text, ", {what}{value}");
            }
        };
        add("", &self.program);
        add("since ", &self.since);
        if let Some(note) = &self.note {
            add("", &quoted_note(note));
        }
        if let Some(url) = &self.url {
            add("", url);
        }
        printable(&text)
    }

    /// For people, from the longest text to the shortest: `alice@db1.example.org: deploy.sh, note "...", pid 12, URL` to
    /// `alice@db1`.
    pub fn descriptions(&self) -> Vec<String> {
        let program = Some(&self.program).filter(|program| !program.is_empty());
        let program = program.map_or_else(String::new, |program| format!(": {program}"));
        let mut text = format!("{}@{}{program}", self.user, self.host);
        let more = [
            self.note
                .as_ref()
                .map(|note| quoted_note(&elided(&printable(note), MAX_NOTE_COLUMNS))),
            Some(format!("pid {}", self.pid)),
            self.url.clone(),
        ];
        let mut all = vec![text.clone()];
        for part in more.into_iter().flatten() {
            text = format!("{text}, {part}");
            all.insert(0, text.clone());
        }
        let owner = format!("{}@{}", self.user, self.host_without_domain());
        all.extend([format!("{owner}{program}"), owner]);
        all.iter().map(|text| printable(text)).collect()
    }

    fn host_without_domain(&self) -> &str {
        let is_address = self.host.chars().all(|c| c.is_ascii_digit() || c == '.');
        match self.host.split_once('.') {
            Some((first, _)) if !is_address => first,
            _ => &self.host,
        }
    }

    /// The age of the record, by two wall clocks; `None` if they contradict each other.
    pub fn age(&self, since_1970: Duration) -> Option<Duration> {
        since_1970.checked_sub(self.queued_at()?)
    }

    /// The time since 1970 at which it was made, by its own wall clock.
    pub fn queued_at(&self) -> Option<Duration> {
        since_1970(&self.since)
    }
}

/// A quote inside could end a note early and pass as dlock's own words.
fn quoted_note(note: &str) -> String {
    format!("note \"{}\"", note.replace('"', "'"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alice() -> Holder {
        Holder {
            host: "db1".into(),
            pid: 12,
            user: "alice".into(),
            program: "deploy.sh".into(),
            note: Some("ticket 7".into()),
            since: "2026-11-23T10:00:00Z".into(),
            ..Holder::new(Mode::Exclusive, Duration::from_secs(5))
        }
    }

    #[test]
    fn a_record_survives_a_round_trip() {
        assert_eq!(Holder::parse(alice().to_json().as_bytes()), Some(alice()));
        assert_eq!(alice().grace(), Duration::from_secs(5));
        assert_eq!(
            alice().to_json(),
            r#"{"v":1,"host":"db1","pid":12,"user":"alice","program":"deploy.sh","note":"ticket 7","mode":"exclusive","slots":1,"since":"2026-11-23T10:00:00Z","grace_ms":5000}"#
        );
    }

    #[test]
    fn a_sentence_for_people() {
        assert_eq!(
            alice().sentence(),
            "alice@db1 pid 12, deploy.sh, since 2026-11-23T10:00:00Z, note \"ticket 7\""
        );
        let liar = Holder {
            note: Some("x\", since 1970\u{202e}\n".into()),
            ..alice()
        };
        assert!(
            liar.sentence()
                .ends_with(r#"note "x', since 1970\u{202e}\n""#)
        );
    }

    #[test]
    fn a_description_leaves_out_the_less_important_first() {
        let holder = Holder {
            host: "db1.example.org".into(),
            url: Some("https://ci/7".into()),
            ..alice()
        };
        let shorter = [
            "alice@db1.example.org: deploy.sh, note \"ticket 7\", pid 12, https://ci/7",
            "alice@db1.example.org: deploy.sh, note \"ticket 7\", pid 12",
            "alice@db1.example.org: deploy.sh, note \"ticket 7\"",
            "alice@db1.example.org: deploy.sh",
            "alice@db1: deploy.sh",
            "alice@db1",
        ];
        assert_eq!(holder.descriptions(), shorter);
        let host = "10.0.0.1".to_owned();
        let by_address = Holder { host, ..alice() }.descriptions();
        assert_eq!(by_address.last().unwrap(), "alice@10.0.0.1");
    }

    #[test]
    fn a_mode_survives_a_round_trip() {
        for mode in [
            Mode::Exclusive,
            Mode::Shared,
            Mode::Slots(1),
            Mode::Slots(7),
        ] {
            assert_eq!(Holder::new(mode, Duration::ZERO).mode(), Some(mode));
        }
        for (mode, slots) in [
            ("exclusive", 2),
            ("slots", 0),
            ("slots", 1001),
            ("", 1),
            ("?", 1),
        ] {
            let mode = mode.to_owned();
            assert_eq!(
                Holder {
                    mode,
                    slots,
                    ..alice()
                }
                .mode(),
                None
            );
        }
    }

    #[test]
    fn a_request_is_part_of_the_record() {
        let asked = StopRequest {
            to: StopKind::Yield,
            by: "bob@db2".into(),
            why: Some("a \"newer\" one\u{1b}".into()),
            now: false,
        };
        assert_eq!(asked.describe(), r#"bob@db2: "a 'newer' one\u{1b}""#);
        let record = Holder {
            asked: Some(asked),
            ..alice()
        };
        assert!(
            record.to_json().ends_with(
                r#","asked":{"to":"yield","by":"bob@db2","why":"a \"newer\" one\u001b"}}"#
            )
        );
        assert_eq!(Holder::parse(record.to_json().as_bytes()), Some(record));
    }

    #[test]
    fn other_clients_have_no_record() {
        for value in [
            &b""[..],
            b"x",
            b"{}",
            b"[]",
            br#"{"v":2,"host":"x"}"#,
            b"\xff",
            b"null",
            b"1",
        ] {
            assert_eq!(Holder::parse(value), None, "{value:?}");
        }
        assert!(Holder::parse(br#"{"v":1,"later":[1]}"#).is_some());
        let long = format!(r#"{{"v":1,"host":"{}"}}"#, "x".repeat(5000));
        assert_eq!(Holder::parse(long.as_bytes()), None);
    }

    #[test]
    fn a_long_record_is_cut() {
        let long = Holder {
            note: Some("\u{1}".repeat(5000)),
            url: Some("u".repeat(3000)),
            program: "ä".repeat(2000),
            host: "h".repeat(900),
            ..alice()
        };
        let json = long.to_json();
        assert!(json.len() <= MAX_RECORD_BYTES, "{}", json.len());
        let cut = Holder::parse(json.as_bytes()).unwrap();
        assert_eq!((cut.user.as_str(), cut.pid, cut.url), ("alice", 12, None));
    }

    /// "the record stays small": fifty locks around a waiter are listed as far as they fit, the innermost ones.
    #[test]
    fn a_long_list_of_outer_locks_is_cut_from_the_outside() {
        let outer = |name: String, token| OuterLock { name, token };
        let held: Vec<OuterLock> = (1..=50)
            .map(|token| outer(format!("lock {token}"), token))
            .collect();
        let written = |held: &[OuterLock]| {
            let record = Holder {
                held: held.to_vec(),
                ..alice()
            };
            let json = record.to_json();
            assert!(json.len() <= MAX_RECORD_BYTES, "{}", json.len());
            Holder::parse(json.as_bytes()).unwrap().held
        };
        let kept = written(&held);
        assert_eq!(kept, held[held.len() - kept.len()..]);
        assert!((5..50).contains(&kept.len()), "{kept:?}");
        let long = [
            outer("x".repeat(200), 1),
            outer("\"".repeat(255), 2),
            outer("y".repeat(256), 3),
        ];
        assert_eq!(written(&long), long[1..2]);
        assert_eq!(written(&held[..2]), held[..2]);
    }

    /// dlock adds a request to a record that another client has written.
    #[test]
    fn a_long_mode_is_cut() {
        let long = Holder {
            mode: "m".repeat(3000),
            ..alice()
        };
        let cut = Holder::parse(long.to_json().as_bytes()).unwrap();
        assert_eq!((cut.mode.as_str(), cut.mode()), ("", None));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_value_is_fit_to_show(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let sentence = Holder::parse(&bytes).map(|holder| holder.sentence());
            prop_assert!(!sentence.unwrap_or_default().chars().any(char::is_control));
        }

        #[test]
        fn any_record_of_our_version_is_fit_to_show(
            host in "(?s).{0,99}", user in "(?s).{0,99}", note in "(?s).{0,2000}", since in "(?s).{0,40}",
            url in "(?s).{0,99}", by in "(?s).{0,99}", seconds in any::<u64>(),
        ) {
            let asked = Some(StopRequest { to: StopKind::Stop, by, why: Some(note.clone()), now: false });
            let holder = Holder { host, user, note: Some(note), since, url: Some(url), asked: asked.clone(), ..alice() };
            let asked = asked.map(|ask| ask.describe()).unwrap_or_default();
            for text in [vec![holder.sentence(), asked], holder.descriptions()].concat() {
                prop_assert!(!text.chars().any(super::super::text::is_hostile), "{text:?}");
                prop_assert!(text.len() <= 10 * MAX_RECORD_BYTES + 3);
            }
            // No time may cause a panic.
            let _ = holder.age(Duration::from_secs(seconds));
        }

        #[test]
        fn any_record_fits(note in ".{0,2000}", program in ".{0,2000}", host in ".{0,500}", url in ".{0,1500}", why in ".{0,900}", mode in ".{0,900}",
            names in proptest::collection::vec(".{0,300}", 0..20)) {
            let held = names.into_iter().map(|name| OuterLock { name, token: i64::MAX }).collect();
            let asked = Some(StopRequest { to: StopKind::Stop, by: host.clone(), why: Some(why), now: false });
            let holder = Holder { note: Some(note), program, host, url: Some(url), asked, mode, held, ..alice() };
            let json = holder.to_json();
            prop_assert!(json.len() <= MAX_RECORD_BYTES);
            prop_assert!(Holder::parse(json.as_bytes()).is_some());
        }
    }
}
