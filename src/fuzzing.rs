//! The rules that must hold for any bytes that dlock reads and others may have written: one function for each target of `fuzz/`.
//! It must not know where the bytes come from. It is compiled for fuzzing and for tests alone.
#![expect(clippy::missing_panics_doc, reason = "a panic is a finding")]

use std::path::PathBuf;
use std::time::Duration;

use crate::config::duration;
use crate::config::endpoint::parse_list;
use crate::config::file::File;
use crate::config::setting::Setting;
use crate::core::cluster_id::ClusterId;
use crate::core::doctor::certificate::check_certificate;
use crate::core::fence::HighestTokens;
use crate::core::history::LocalHold;
use crate::core::hold::{HoldEnd, hold_verdict};
use crate::core::holder::Holder;
use crate::core::keys::{LockKeys, lock_name_of};
use crate::core::local::{Cooldown, EntryName, cooled};
use crate::core::lock_delay::{DelaySearch, Predecessor, ReleaseRecord};
use crate::core::name::LockName;
use crate::core::proof::{FencingToken, LeaseId};
use crate::core::time::Instant;
use crate::etcd::doctor::certificates as pem;
use crate::guard::GuardReport;

/// Checks what must hold for these bytes.
pub type Target = fn(&[u8]);

/// The targets, by their names.
pub const TARGETS: &[(&str, Target)] = &[
    ("record", record),
    ("release_record", release_record),
    ("keys", keys),
    ("config", config),
    ("fence_file", fence_file),
    ("local_files", local_files),
    ("guard_report", guard_report),
    ("certificates", certificates),
];

/// A text that dlock shows has no character that controls a terminal.
fn is_shown(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// The value of an entry's key: the record of a holder or waiter.
pub fn record(bytes: &[u8]) {
    let Some(holder) = Holder::parse(bytes) else {
        return;
    };
    is_shown(&holder.sentence());
    for text in holder.descriptions() {
        is_shown(&text);
    }
    if let Some(asked) = &holder.asked {
        is_shown(&asked.describe());
    }
    let _ = (holder.mode(), holder.grace());
    let _ = holder.age(Duration::from_secs(u64::from(holder.pid)));
    let written = holder.to_json();
    assert!(written.len() <= 1024, "{} bytes", written.len());
    let again = Holder::parse(written.as_bytes()).expect("dlock reads what it writes");
    assert_eq!(again.to_json(), written);
}

/// The value of a release record's key.
pub fn release_record(bytes: &[u8]) {
    let Some(record) = ReleaseRecord::parse(bytes) else {
        return;
    };
    assert_eq!(
        ReleaseRecord::parse(record.to_json().as_bytes()).as_ref(),
        Some(&record)
    );
    // Whatever the records say, each entry is looked up once at most.
    let gone = Predecessor::new(LeaseId(1), FencingToken(1 << 40), Duration::from_secs(1));
    let mut search = DelaySearch::new(vec![gone]);
    let mut looked_up = 0;
    loop {
        let batch = search.next_batch(64);
        if batch.is_empty() {
            break;
        }
        for one in batch {
            looked_up += 1;
            assert!(looked_up <= 1 + bytes.len());
            search.add(one, Some(record.clone()), |token| token.0 % 7 == 0);
        }
    }
    let _ = search.vanished(|token| token.0 % 2 == 0);
}

/// A key below dlock's prefix.
pub fn keys(bytes: &[u8]) {
    if let Some(name) = lock_name_of("dlock/", bytes).and_then(LockName::decode) {
        let keys = LockKeys::new("dlock/", &name);
        is_shown(&name.to_string());
        if let Some(lease) = keys.parse_entry(bytes) {
            assert_eq!(keys.entry(lease).as_bytes(), bytes);
        }
        let _ = keys.slot_number(bytes);
    }
}

/// The configuration file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    match File::parse(PathBuf::from("config.toml"), text) {
        Ok(file) => {
            let entries = Setting::in_file().filter_map(|setting| file.entry(setting));
            for entry in entries {
                assert!((1..=bytes.len()).contains(&entry.line));
                let _ = parse_list(&entry.text, entry.line % 2 == 0);
                let _ = duration::parse(&entry.text);
                let _ = entry.text.parse::<ClusterId>();
                let _ = entry.text.parse::<LockName>();
            }
        }
        Err(failure) => assert!(failure.error.to_string().contains("'config.toml', line ")),
    }
}

/// The file of `dlock fence` and of local locks.
pub fn fence_file(bytes: &[u8]) {
    match HighestTokens::parse(bytes) {
        // Only what dlock wrote is accepted, so no number is guessed.
        Ok(mut tokens) => {
            let name: LockName = "job".parse().expect("a name");
            let written = tokens.to_string();
            assert_eq!(HighestTokens::parse(written.as_bytes()), Ok(tokens.clone()));
            let highest = tokens.highest(&name);
            let lower = highest.map(|FencingToken(token)| FencingToken(token.saturating_sub(1)));
            if lower < highest {
                assert!(lower.is_none_or(|lower| tokens.admit(&name, lower).is_err()));
            }
        }
        Err(error) => is_shown(&error.to_string()),
    }
}

/// The names and the contents of files in the directory of a local lock, and the end that a hold leaves for
/// `dlock release`.
pub fn local_files(bytes: &[u8]) {
    for hold in LocalHold::parse_all(bytes) {
        let hold = hold.into_hold();
        is_shown(&hold.row(Duration::MAX).concat());
        is_shown(&hold.describe_end());
    }
    if let Ok(name) = str::from_utf8(bytes) {
        if let Some(entry) = EntryName::parse(name) {
            assert_eq!(entry.to_string(), name);
        }
        let _ = cooled(name);
    }
    let now = Instant::from_boot(Duration::from_secs(1000));
    if let Some(cooldown) = Cooldown::parse(bytes) {
        for boot in ["", "boot"] {
            let _ = cooldown.left(boot, now);
        }
        let again =
            Cooldown::parse(cooldown.to_json().as_bytes()).expect("dlock reads what it writes");
        assert_eq!(again.to_json(), cooldown.to_json());
    }
    let end = HoldEnd::parse(bytes);
    let _ = hold_verdict(end.as_ref(), now);
}

/// A line that the guard sends to dlock.
pub fn guard_report(bytes: &[u8]) {
    let Ok(report) = serde_json::from_slice::<GuardReport>(bytes) else {
        return;
    };
    let line = serde_json::to_vec(&report).expect("a message is written");
    assert!(!line.contains(&b'\n'));
    assert_eq!(
        serde_json::from_slice::<GuardReport>(&line).expect("dlock reads what the guard writes"),
        report
    );
}

/// A certificate of a server, and a PEM file.
pub fn certificates(bytes: &[u8]) {
    let now = Duration::from_hours(24 * 20_000);
    for certificate in pem::parse(bytes).into_iter().chain(pem::parse_pem(bytes)) {
        let finding = check_certificate("x", "server certificate", &certificate, now);
        is_shown(&finding.says);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn files(directory: &str) -> BTreeSet<PathBuf> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        let entries = fs::read_dir(&directory).unwrap_or_else(|_| panic!("no {directory:?}"));
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Inputs that a fuzzer has found stay there.
    #[test]
    fn every_target_has_seeds_and_they_hold() {
        for (name, target) in TARGETS {
            let seeds = files(&format!("fuzz/seeds/{name}"));
            assert!(!seeds.is_empty(), "no seeds for {name}");
            for seed in seeds {
                target(&fs::read(seed).unwrap());
            }
        }
    }

    #[test]
    fn every_target_has_a_program_and_every_program_a_target() {
        let manifest = include_str!("../fuzz/Cargo.toml");
        let programs = files("fuzz/fuzz_targets");
        assert_eq!(programs.len(), TARGETS.len());
        for (name, _) in TARGETS {
            let path = format!("fuzz_targets/{name}.rs");
            let program = programs.iter().find(|program| program.ends_with(&path));
            let program = program.unwrap_or_else(|| panic!("no fuzz/{path}"));
            let call = format!("|bytes: &[u8]| dlock::fuzzing::{name}(bytes)");
            assert!(
                fs::read_to_string(program).unwrap().contains(&call),
                "{path}"
            );
            assert!(manifest.contains(&format!("path = \"{path}\"\n")), "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_hold(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }
    }
}
