//! Local locks: the names of their files and directories, and the cooldown of a lock without a holder.
//! It must not know how files are read or locked, nor the current time.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::name::LockName;
use super::proof::FencingToken;
use super::time::Instant;

/// Maximum length of a directory's name in bytes (`NAME_MAX`).
pub const MAX_DIRECTORY_BYTES: usize = 255;

/// Network file systems, by their number in `statfs(2)` (`linux/magic.h`). A lock on them can be taken from a living
/// holder: NFS turns flock(2) into a lock of the server, which can lose it.
const NETWORK_FILESYSTEMS: [(u32, &str); 7] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x5346_414f, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
];

/// The name of a network file system with this number; `None` for a local one.
pub fn network_filesystem(number: i64) -> Option<&'static str> {
    let known = NETWORK_FILESYSTEMS
        .iter()
        .find(|(known, _)| i64::from(*known) == number & 0xffff_ffff);
    known.map(|(_, name)| *name)
}

/// Whether the file system with this number keeps its files in memory: tmpfs, ramfs.
pub fn is_in_memory(number: i64) -> bool {
    [0x0102_1994, 0x8584_58f6].contains(&(number & 0xffff_ffff))
}

/// The name of a lock's directory: the encoded name, which has no slash; a dot at its beginning is encoded too, because
/// `.` and `..` cannot name a directory.
pub fn directory_of(name: &LockName) -> String {
    let encoded = name.encoded();
    match encoded.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => encoded,
    }
}

/// The lock of the directory with this name, if [`directory_of`] gives such a name.
pub fn name_of(directory: &str) -> Option<LockName> {
    let encoded = match directory.strip_prefix("%2E") {
        Some(rest) => format!(".{rest}"),
        None => directory.to_owned(),
    };
    LockName::decode(&encoded).filter(|name| directory_of(name) == directory)
}

/// The name of an entry's file: `TOKEN`, or `TOKEN.SLOT` once it has a slot.
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
    /// Parses the name of an entry's file.
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

    /// The name of the file that keeps the lock taken after its holder has ended.
    pub fn cooling(self) -> String {
        format!("{}.cooling", self.token)
    }

    /// The name of that file until its holder has ended cleanly: a dlock that is killed leaves no cooldown.
    pub fn prepared_cooling(self) -> String {
        self.cooling() + ".ready"
    }
}

/// The token in a file name of [`EntryName::cooling`] or [`EntryName::prepared_cooling`].
pub fn cooled(file: &str) -> Option<FencingToken> {
    let file = file.strip_suffix(".new").unwrap_or(file);
    let file = file.strip_suffix(".ready").unwrap_or(file);
    let ticket = EntryName::parse(file.strip_suffix(".cooling")?)?;
    ticket.slot.is_none().then_some(ticket.token)
}

/// The name of the file of an entry that has no token yet.
pub fn unnumbered(random: u64) -> String {
    format!("new.{random:016x}")
}

/// Whether a file has such a name.
pub fn is_unnumbered(file: &str) -> bool {
    file.starts_with("new.")
}

/// The temporary name of a lock's directory until its mode is set. No lock name gives such a directory name, see
/// [`directory_of`].
pub fn unfinished_directory(random: u64) -> String {
    format!(".new.{random:016x}")
}

/// Whether a directory has such a name.
pub fn is_unfinished_directory(name: &str) -> bool {
    name.starts_with(".new.")
}

/// Whether a file was to become a lock file once its mode was set: `FILE.lock.RANDOM.new`.
pub fn is_unfinished_lock(file: &str) -> bool {
    let named = file
        .strip_suffix(".new")
        .and_then(|file| file.rsplit_once('.'));
    named.is_some_and(|(name, _)| name.strip_suffix(".lock").is_some())
}

/// The end of a cooldown, by the time since the machine's boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cooldown {
    /// The boot that the times count from: `/proc/sys/kernel/random/boot_id`.
    boot: String,
    /// Time since that boot.
    until: Duration,
    /// Length of the whole cooldown.
    hold: Duration,
}

impl Cooldown {
    /// The cooldown of a lock that was acquired at `taken_at`.
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

    /// Parses the text of [`Cooldown::to_json`].
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The rest of the cooldown. After a reboot nobody knows how long the machine was off: the whole time counts from the
    /// boot.
    pub fn left(&self, boot: &str, now: Instant) -> Duration {
        let until = if self.boot == boot {
            self.until
        } else {
            self.hold
        };
        let left = Instant::from_boot(until).since(now);
        // Never more than the whole cooldown, for any content of the file.
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
    fn every_name_has_a_directory_of_its_own() {
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
    fn network_file_systems_are_known() {
        assert_eq!(network_filesystem(0x6969), Some("NFS"));
        // On architectures where the number is signed, its 32 bits are sign-extended.
        assert_eq!(
            network_filesystem(i64::from(0xff53_4d42_u32.cast_signed())),
            Some("CIFS")
        );
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert_eq!(network_filesystem(local), None);
        }
        assert!(is_in_memory(0x0102_1994) && !is_in_memory(0xef53));
    }

    #[test]
    fn an_entry_name_survives_a_round_trip_and_other_files_are_no_entries() {
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
        assert!(is_unfinished_directory(&unfinished_directory(7)));
        assert_eq!(name_of(&unfinished_directory(7)), None);
        for name in [".new.7", "new.7"] {
            let name = name.parse::<LockName>().unwrap();
            assert!(!is_unfinished_directory(&directory_of(&name)), "{name}");
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
    fn a_lock_cools_down_for_the_given_time() {
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
    fn after_a_reboot_a_cooldown_counts_from_the_boot() {
        let cooling = Cooldown::new("a", at(90_000), Duration::from_secs(50));
        assert_eq!(cooling.left("b", at(20)), Duration::from_secs(30));
        assert_eq!(cooling.left("b", at(60)), Duration::ZERO);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_directory_name_gives_its_lock(text in "[.%]{0,2}\\PC{1,40}") {
            let name = name(&text);
            let directory = directory_of(&name);
            prop_assert!(!directory.starts_with('.') && !directory.contains('/'));
            prop_assert_eq!(name_of(&directory), Some(name));
        }

        #[test]
        fn any_file_name_is_parsed_without_a_panic(file in "\\PC{0,30}") {
            if let Some(ticket) = EntryName::parse(&file) {
                prop_assert_eq!(ticket.to_string(), file);
            }
        }
    }
}
