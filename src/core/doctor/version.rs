//! Versions of etcd with faults that break a guarantee dlock needs.
//! It must not know which server runs which version.

use std::fmt;

use super::{Finding, Level};

/// The version of a server: its first three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version([u32; 3]);

const fn version(major: u32, minor: u32, patch: u32) -> Version {
    Version([major, minor, patch])
}

impl Version {
    /// Parses `3.5.30`, `3.6.0-rc.1` and the like.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().splitn(3, '.').map(|word| {
            let end = word.find(|character: char| !character.is_ascii_digit());
            word[..end.unwrap_or(word.len())].parse().ok()
        });
        let mut next = || numbers.next().flatten();
        Some(Self([next()?, next()?, next()?]))
    }
}

/// Whether a server of this version reports the progress of a watch only after all changes before it. Others may report it
/// while older changes are still to come (etcd issue 15220, repaired in April 2023).
pub fn reports_progress_in_order(text: &str) -> bool {
    Version::parse(text).is_some_and(|it| {
        it >= version(3, 5, 9) || (version(3, 4, 26)..version(3, 5, 0)).contains(&it)
    })
}

/// A fault of some versions.
struct Fault {
    /// The first version that has it.
    since: Version,
    /// The first version of each minor release without it. Later minor releases never had it; those that are missing here
    /// have it to the end.
    fixed: &'static [Version],
    breaks: &'static str,
    /// The fault needs users: without authentication every client may do everything anyway.
    with_users: bool,
    reference: &'static str,
}

const FIRST: Version = version(0, 0, 0);

/// The first release line that the tests of dlock do not run on; they run on those before it.
const FIRST_UNTESTED: Version = version(3, 6, 0);

/// All known faults, the worst first.
const FAULTS: &[Fault] = &[
    Fault {
        since: FIRST,
        fixed: &[version(3, 4, 0)],
        breaks: "dlock is not tested with it, and locks are known to be unsafe on it",
        with_users: false,
        reference: "etcd issue 11456",
    },
    Fault {
        since: version(3, 5, 0),
        fixed: &[version(3, 5, 3)],
        breaks: "a crash under load may leave members with different data, so that two clients hold one lock",
        with_users: false,
        reference: "etcd issue 13766",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 4, 21), version(3, 5, 5), version(3, 6, 0)],
        breaks: "a cluster of one member may forget what it has confirmed when it crashes, and with it a lock that is held",
        with_users: false,
        reference: "etcd issue 14370",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 4, 31), version(3, 5, 13), version(3, 6, 0)],
        breaks: "a leader whose disk hung may delete the key of a lock that is held: the command is then stopped while the next one may start",
        with_users: false,
        reference: "etcd issues 12528 and 15247",
    },
    Fault {
        since: version(3, 4, 20),
        fixed: &[version(3, 4, 42), version(3, 5, 28), version(3, 6, 9)],
        breaks: "a member that was paused may answer a read with old data, and dlock proves a lock by reads",
        with_users: false,
        reference: "etcd issue 20418",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 4, 36), version(3, 5, 18), version(3, 6, 0)],
        breaks: "a watch may miss the end of a key: a loss or a release is noticed late",
        with_users: false,
        reference: "etcd issue 17529 and the changelogs of 3.4.36 and 3.5.18",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 5, 0)],
        breaks: "when the server's wall clock goes back, the lock of a dead holder stays taken for as long",
        with_users: false,
        reference: "etcd issue 12291",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 4, 42), version(3, 5, 28), version(3, 6, 9)],
        breaks: "a client without a user may still renew leases, and so keep a dead holder's lock taken",
        with_users: true,
        reference: "CVE-2026-33413",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 4, 44), version(3, 5, 30), version(3, 6, 11)],
        breaks: "a user may put keys under another user's lease by a nested transaction",
        with_users: true,
        reference: "etcd changelog",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 4, 26), version(3, 5, 9), version(3, 6, 0)],
        breaks: "every user can read the names of all keys that have a lease",
        with_users: true,
        reference: "CVE-2023-32082",
    },
    Fault {
        since: FIRST,
        fixed: &[version(3, 5, 33), version(3, 6, 14), version(3, 7, 1)],
        breaks: "a user who may read one key can watch all keys that sort after it",
        with_users: true,
        reference: "GHSA-xg4h-6gfc-h4m8",
    },
];

/// A fault for people: the versions that have it, what they break, and where it is described.
pub struct Known {
    pub versions: String,
    pub breaks: &'static str,
    pub reference: &'static str,
}

/// All known faults of a version, the worst first.
pub fn known() -> Vec<Known> {
    let known = FAULTS.iter().map(|fault| {
        let fixed = fault.fixed.iter().map(ToString::to_string);
        let fixed = fixed.collect::<Vec<_>>().join(", ");
        let since = match fault.since {
            FIRST => String::new(),
            since => format!("from {since} on, "),
        };
        Known {
            versions: format!("{since}before {fixed}"),
            breaks: fault.breaks,
            reference: fault.reference,
        }
    });
    known.collect()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl Fault {
    /// The fixed version of the same minor release.
    fn fixed_in_line_of(&self, version: Version) -> Option<&Version> {
        self.fixed.iter().find(|one| one.0[..2] == version.0[..2])
    }

    fn concerns(&self, version: Version) -> bool {
        let fixed = match self.fixed_in_line_of(version) {
            Some(fixed) => version >= *fixed,
            None => self.fixed.last().is_some_and(|last| version > *last),
        };
        version >= self.since && !fixed
    }

    fn hint(&self, version: Version) -> String {
        let first = self.fixed_in_line_of(version).or(self.fixed.first());
        let version = first.copied().unwrap_or(FIRST);
        format!("upgrade etcd to {version} or later ({})", self.reference)
    }
}

/// The findings on a version. `where_it_runs` names the endpoints; `users` says that etcd has users.
pub fn check_version(text: &str, where_it_runs: &str, users: bool) -> Vec<Finding> {
    const CHECK: &str = "version";
    let Some(version) = Version::parse(text) else {
        let says = format!("this dlock does not know this version, at {where_it_runs}");
        return vec![Finding::warning(CHECK, text, &says)];
    };
    let faults = FAULTS.iter().filter(|fault| fault.concerns(version));
    let findings: Vec<Finding> = faults
        .filter(|fault| users || !fault.with_users)
        .map(|fault| {
            let says = format!("{}, at {where_it_runs}", fault.breaks);
            Finding::new(CHECK, text, Level::Warning, &says).hinting(&fault.hint(version))
        })
        .collect();
    if findings.is_empty() {
        let untested = if version >= FIRST_UNTESTED {
            "untested with dlock, "
        } else {
            ""
        };
        let says = format!("{untested}no known fault that breaks locks, at {where_it_runs}");
        return vec![Finding::ok(CHECK, text, &says)];
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(text: &str, users: bool) -> Vec<String> {
        let hints = check_version(text, "x", users)
            .into_iter()
            .map(|found| found.hint);
        hints.flatten().collect()
    }

    fn names(text: &str, users: bool, reference: &str) -> bool {
        let found = references(text, users);
        found.iter().any(|hint| hint.contains(reference))
    }

    #[test]
    fn versions_of_servers_are_parsed() {
        for (text, version) in [
            ("3.5.30", Some(version(3, 5, 30))),
            ("3.6.0-rc.1", Some(version(3, 6, 0))),
            ("3.5.1+git", Some(version(3, 5, 1))),
            ("4.0.0", Some(version(4, 0, 0))),
            ("3.5", None),
            ("", None),
            ("3.x.1", None),
            ("99999999999.1.1", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text}");
        }
    }

    #[test]
    fn the_newest_are_clean() {
        for text in ["3.5.33", "3.6.14", "3.7.1", "4.0.0"] {
            let found = check_version(text, "x", true);
            let clean = found.iter().all(|finding| finding.level == Level::Ok);
            assert!(clean, "{text}: {found:?}");
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
        // 3.4 is affected by a change of the wall clock in every release.
        assert!(names("3.4.45", false, "12291"));
        assert_eq!(references("3.4.45", false).len(), 1);
    }

    #[test]
    fn a_line_that_the_tests_do_not_run_on_is_untested() {
        for (text, untested) in [("3.5.33", false), ("3.6.14", true), ("4.0.0", true)] {
            let found = check_version(text, "x", false);
            assert_eq!(found[0].level, Level::Ok, "{text}");
            let says = found[0].says.starts_with("untested with dlock, ");
            assert_eq!(says, untested, "{text}");
        }
    }

    #[test]
    fn each_minor_version_has_its_own_fix() {
        for (reference, bad, good) in [
            ("15247", ["3.4.30", "3.5.12"], ["3.4.31", "3.5.13"]),
            ("20418", ["3.4.20", "3.6.8"], ["3.4.19", "3.6.9"]),
            ("20418", ["3.4.41", "3.5.27"], ["3.4.42", "3.5.28"]),
            ("17529", ["3.4.35", "3.5.17"], ["3.4.36", "3.6.0"]),
            ("14370", ["3.4.20", "3.5.4"], ["3.4.21", "3.5.5"]),
            ("13766", ["3.5.0", "3.5.2"], ["3.4.23", "3.5.3"]),
            ("12291", ["3.4.0", "3.4.44"], ["3.5.0", "3.6.0"]),
            ("CVE-2026-33413", ["3.4.41", "3.6.8"], ["3.4.42", "3.6.9"]),
            ("CVE-2023-32082", ["3.4.25", "3.5.8"], ["3.4.26", "3.6.0"]),
            ("GHSA-xg4h", ["3.4.45", "3.7.0"], ["3.5.33", "3.6.14"]),
            ("11456", ["3.3.27", "2.3.8"], ["3.4.0", "3.5.0"]),
        ] {
            for text in bad {
                assert!(names(text, true, reference), "{text} {reference}");
            }
            for text in good {
                assert!(!names(text, true, reference), "{text} {reference}");
            }
        }
    }

    #[test]
    fn faults_of_users_do_not_matter_where_there_are_none() {
        assert!(names("3.5.16", true, "CVE-2026-33413"));
        assert!(!names("3.5.16", false, "CVE-2026-33413"));
        assert!(names("3.5.16", false, "20418"));
    }

    #[test]
    fn the_hint_stays_within_the_minor_version_where_it_can() {
        assert!(names("3.5.1", false, "upgrade etcd to 3.5.13 or later"));
        assert!(names("3.4.23", false, "upgrade etcd to 3.5.0 or later"));
        assert!(names("3.6.1", false, "upgrade etcd to 3.6.9 or later"));
        assert!(names("3.3.1", false, "upgrade etcd to 3.4.31 or later"));
    }

    #[test]
    fn a_text_that_is_no_version_is_reported() {
        let found = check_version("fork\u{7}", "x", false);
        assert_eq!(found[0].level, Level::Warning);
        assert_eq!(found[0].object, "fork\\u{7}");
    }
}
