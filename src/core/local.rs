//! The locks of one machine as files: what they are called, and how long a lock stays taken without a holder.
//! It must not know how files are read or locked, nor what time it is.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::name::LockName;
use super::proof::FencingToken;
use super::time::Instant;

/// In bytes: what file systems take as a name (`NAME_MAX`).
pub const MAX_DIRECTORY_BYTES: usize = 255;

/// The file systems of other machines, by the number that `statfs(2)` gives them (`linux/magic.h`), on which a lock can be
/// taken from one who lives: NFS turns flock(2) into a lock of the server, which it forgets.
const NETWORK_FILESYSTEMS: [(u32, &str); 7] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x5346_414f, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
];

/// What a file system of this number is called if it is one of other machines.
pub fn network_filesystem(number: i64) -> Option<&'static str> {
    let known = NETWORK_FILESYSTEMS
        .iter()
        .find(|(known, _)| i64::from(*known) == number & 0xffff_ffff);
    known.map(|(_, name)| *name)
}

/// What the folder of a lock is called: the encoded name, which has no slash; a dot at its beginning is encoded too,
/// since `.` and `..` are no names for a folder.
pub fn directory_of(name: &LockName) -> String {
    let encoded = name.encoded();
    match encoded.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => encoded,
    }
}

/// The lock whose folder is called so, if [`folder_of`] gives such a name.
pub fn name_of(directory: &str) -> Option<LockName> {
    let encoded = match directory.strip_prefix("%2E") {
        Some(rest) => format!(".{rest}"),
        None => directory.to_owned(),
    };
    LockName::decode(&encoded).filter(|name| directory_of(name) == directory)
}

/// What the file of a place in the queue is called: `TOKEN`, or `TOKEN.SLOT` once it has a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryName {
    pub token: FencingToken,
    pub slot: Option<u16>,
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, slot } = self;
        match slot {
            Some(slot) => write!(f, "{token}.{slot}"),
            None => write!(f, "{token}"),
        }
    }
}

impl EntryName {
    /// The ticket whose file is called so, if it is one.
    pub fn parse(file: &str) -> Option<Self> {
        let (token, slot) = match file.split_once('.') {
            Some((token, slot)) => (token, Some(slot.parse().ok()?)),
            None => (file, None),
        };
        let token = token.parse().ok().filter(|token| *token > 0)?;
        let ticket = Self {
            token: FencingToken(token),
            slot,
        };
        (ticket.to_string() == file).then_some(ticket)
    }

    /// What the file is called that keeps the lock taken after its holder has ended.
    pub fn cooling(self) -> String {
        format!("{}.cooling", self.token)
    }

    /// The name of that file until its holder has ended as it should: a dlock that is killed leaves no lock that cools
    /// down.
    pub fn prepared_cooling(self) -> String {
        self.cooling() + ".ready"
    }
}

/// The token in the name of a file that [`Ticket::cooling`] gave, or of one that was to become it.
pub fn cooled(file: &str) -> Option<FencingToken> {
    let file = file.strip_suffix(".new").unwrap_or(file);
    let file = file.strip_suffix(".ready").unwrap_or(file);
    let ticket = EntryName::parse(file.strip_suffix(".cooling")?)?;
    ticket.slot.is_none().then_some(ticket.token)
}

/// What the file of a place is called that has no token yet.
pub fn unnumbered(random: u64) -> String {
    format!("new.{random:016x}")
}

/// Whether a file is called so.
pub fn is_unnumbered(file: &str) -> bool {
    file.starts_with("new.")
}

/// The name of a folder that becomes the folder of a lock once it has its mode: no name of a lock gives such a
/// one, see [`folder_of`].
pub fn unfinished_folder(random: u64) -> String {
    format!(".new.{random:016x}")
}

/// Whether a folder is called so.
pub fn is_unfinished_folder(name: &str) -> bool {
    name.starts_with(".new.")
}

/// Whether a file was to become one that is locked, once it had its mode: `FILE.lock.RANDOM.new`.
pub fn is_unfinished_lock(file: &str) -> bool {
    let named = file
        .strip_suffix(".new")
        .and_then(|file| file.rsplit_once('.'));
    named.is_some_and(|(name, _)| name.strip_suffix(".lock").is_some())
}

/// Until when a lock stays taken, by the clock that counts from the start of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cooldown {
    /// Of the start that is counted from: `/proc/sys/kernel/random/boot_id`.
    boot: String,
    /// Since that start.
    until: Duration,
    /// For how long in all.
    hold: Duration,
}

impl Cooldown {
    /// For a lock that was taken at `taken_at`.
    pub fn new(boot: &str, taken_at: Instant, hold: Duration) -> Self {
        Self {
            boot: boot.to_owned(),
            until: (taken_at + hold).since_boot(),
            hold,
        }
    }

    pub fn to_json(&self) -> String {
        // Texts and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What [`Cooling::to_json`] made.
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// How much longer. After a restart of the machine nobody knows how long it was off: the time counts anew from the
    /// start.
    pub fn left(&self, boot: &str, now: Instant) -> Duration {
        let until = if self.boot == boot {
            self.until
        } else {
            self.hold
        };
        let left = Instant::from_boot(until).since(now);
        // Never more than was asked for, whatever the file says.
        left.min(self.hold)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> LockName {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn every_name_has_a_folder_of_its_own() {
        for (text, directory) in [
            ("job", "job"),
            ("a/b", "a%2Fb"),
            (".", "%2E"),
            ("..", "%2E."),
            (".hidden", "%2Ehidden"),
            ("%2E", "%252E"),
        ] {
            assert_eq!(directory_of(&name(text)), directory);
            assert_eq!(name_of(directory), Some(name(text)));
        }
        for foreign in ["", ".", "..", ".x", "a b", "%2e", "%2Ejob%", "a/b"] {
            assert_eq!(name_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn file_systems_of_other_machines_are_known() {
        assert_eq!(network_filesystem(0x6969), Some("NFS"));
        // Where the number has a sign, 32 bits are spread.
        assert_eq!(
            network_filesystem(i64::from(0xff53_4d42_u32.cast_signed())),
            Some("CIFS")
        );
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert_eq!(network_filesystem(local), None);
        }
    }

    #[test]
    fn a_ticket_comes_back_and_other_files_are_none() {
        let token = FencingToken(34);
        for (slot, file) in [(None, "34"), (Some(0), "34.0"), (Some(12), "34.12")] {
            let ticket = EntryName { token, slot };
            assert_eq!(ticket.to_string(), file);
            assert_eq!(EntryName::parse(file), Some(ticket));
            assert_eq!(cooled(&ticket.cooling()), Some(token));
            assert_eq!(cooled(&(ticket.cooling() + ".new")), Some(token));
            let prepared = ticket.prepared_cooling();
            assert_eq!(cooled(&prepared), Some(token));
            assert_eq!(cooled(&(prepared + ".new")), Some(token));
        }
        for file in [
            "",
            "0",
            "-1",
            "+1",
            "01",
            "1.",
            "1.01",
            "1.+1",
            "1.2.3",
            "1.70000",
            "token",
            "token.lock",
            "new.1",
            "34.cooling",
            " 1",
            "99999999999999999999",
        ] {
            assert_eq!(EntryName::parse(file), None, "{file}");
        }
        for file in [
            "34",
            "34.0.cooling",
            "x.cooling",
            ".cooling",
            "34.cooling.lock",
        ] {
            assert_eq!(cooled(file), None, "{file}");
        }
        assert!(is_unnumbered(&unnumbered(7)));
        assert!(is_unfinished_folder(&unfinished_folder(7)));
        assert_eq!(name_of(&unfinished_folder(7)), None);
        for name in [".new.7", "new.7"] {
            let name = name.parse::<LockName>().unwrap();
            assert!(!is_unfinished_folder(&directory_of(&name)), "{name}");
        }
        assert!(is_unfinished_lock("token.lock.7f.new"));
        assert!(is_unfinished_lock("slots.lock.7f.new"));
        for file in [
            "token",
            "token.lock",
            "token.new",
            "token.lock.new",
            "7",
            "7.cooling.new",
            "new.7",
        ] {
            assert!(!is_unfinished_lock(file), "{file}");
        }
        assert_eq!(unnumbered(7), "new.0000000000000007");
    }

    #[test]
    fn a_lock_cools_down_for_as_long_as_was_said() {
        let cooling = Cooldown::new("a", at(100), Duration::from_secs(50));
        assert_eq!(
            Cooldown::parse(cooling.to_json().as_bytes()),
            Some(cooling.clone())
        );
        assert_eq!(cooling.left("a", at(110)), Duration::from_secs(40));
        assert_eq!(cooling.left("a", at(150)), Duration::ZERO);
        assert_eq!(cooling.left("a", at(1)), Duration::from_secs(50));
        assert_eq!(Cooldown::parse(b"{"), None);
    }

    #[test]
    fn after_a_restart_it_counts_from_the_start() {
        let cooling = Cooldown::new("a", at(90_000), Duration::from_secs(50));
        assert_eq!(cooling.left("b", at(20)), Duration::from_secs(30));
        assert_eq!(cooling.left("b", at(60)), Duration::ZERO);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_folder_tells_its_lock(text in "[.%]{0,2}\\PC{1,40}") {
            let name = name(&text);
            let directory = directory_of(&name);
            prop_assert!(!directory.starts_with('.') && !directory.contains('/'));
            prop_assert_eq!(name_of(&directory), Some(name));
        }

        #[test]
        fn any_file_name_is_understood_or_not(file in "\\PC{0,30}") {
            if let Some(ticket) = EntryName::parse(&file) {
                prop_assert_eq!(ticket.to_string(), file);
            }
        }
    }
}
