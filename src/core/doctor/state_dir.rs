//! The findings on the state directory of local locks.
//! It must not know how the facts are read.

use std::time::Duration;

use super::{Finding, counted};
use crate::core::text::format_duration;

/// Warning threshold: every run waits until the disk has its token.
const SLOW_DISK: Duration = Duration::from_secs(1);

/// The facts about the directory.
#[derive(Clone, Debug)]
pub struct StateDirFacts {
    pub path: String,
    /// The cause and the hint if no lock can be taken there.
    pub state: Result<StateDirState, (String, Option<String>)>,
}

#[derive(Clone, Copy, Debug)]
pub enum StateDirState {
    /// The first lock makes it.
    Missing,
    Usable {
        /// Number of names that were ever locked.
        locks: usize,
        /// Time until a written token is on the disk.
        recorded_in: Duration,
        /// Whether it ends with the machine, and the tokens with it.
        in_memory: bool,
    },
}

/// The finding on the directory.
pub fn check_state_dir(facts: &StateDirFacts) -> Finding {
    const CHECK: &str = "state";
    let path = &facts.path;
    let (locks, recorded_in, in_memory) = match &facts.state {
        Err((cause, hint)) => {
            return Finding::unusable(CHECK, path, cause).maybe_hinting(hint.as_deref());
        }
        Ok(StateDirState::Missing) => {
            return Finding::ok(CHECK, path, "does not exist yet; the first lock creates it");
        }
        Ok(StateDirState::Usable {
            locks,
            recorded_in,
            in_memory,
        }) => (*locks, *recorded_in, *in_memory),
    };
    let memory = if in_memory {
        "; on a file system in memory: after a restart of the machine, tokens start from 1 again"
    } else {
        ""
    };
    let says = format!(
        "{} so far, a token is on the disk after {}{memory}",
        counted(locks, "lock", "locks"),
        format_duration(recorded_in.max(Duration::from_millis(1)))
    );
    if recorded_in < SLOW_DISK {
        return Finding::ok(CHECK, path, &says);
    }
    Finding::warning(CHECK, path, &says)
        .hinting("every run waits for the disk: name a directory on a faster one")
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn only_a_directory_that_cannot_be_used_or_is_slow_is_bad() {
        let check = |state| {
            let path = "/v".to_owned();
            check_state_dir(&StateDirFacts { path, state })
        };
        let usable = |millis, in_memory| {
            Ok(StateDirState::Usable {
                locks: 1,
                recorded_in: Duration::from_millis(millis),
                in_memory,
            })
        };
        let missing = check(Ok(StateDirState::Missing));
        assert_eq!(missing.level, Level::Ok);
        let quick = check(usable(0, false));
        assert_eq!(quick.level, Level::Ok);
        assert_eq!(
            quick.says,
            "1 lock so far, a token is on the disk after 1ms"
        );
        let memory = check(usable(2, true));
        assert_eq!(memory.level, Level::Ok);
        assert!(memory.says.contains("in memory"));
        assert_eq!(check(usable(1000, false)).level, Level::Warning);
        let refused = check(Err(("it is on NFS".to_owned(), Some("x".to_owned()))));
        assert_eq!(refused.level, Level::Unusable);
        assert_eq!(refused.hint.as_deref(), Some("x"));
    }
}
