//! The end of a `dlock hold` as it reports it, and the outcome that `dlock release` derives from that.
//! It must not know how the report gets from one process to the other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Instant;

/// The end of a hold, as it writes it for `dlock release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldEnd {
    /// The exit status of the hold.
    pub exit_code: u8,
    /// The moment, since the boot of the machine, at which it learnt that the lock is not wanted any more. The lock was
    /// its own until then if the exit status is 0.
    pub held_until: Option<Duration>,
    /// Why it did not end as it should.
    pub reason: Option<String>,
}

/// What `dlock release` has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldVerdict {
    /// The lock was held until the release was asked for, and was given back then.
    Released,
    /// It cannot be shown that the lock was held until then.
    Lost(String),
    /// A process that should have been killed keeps the lock.
    Unkillable(String),
}

/// The exit status of a hold that could not kill a process.
const UNKILLABLE_STATUS: u8 = 122;

impl HoldEnd {
    pub fn to_json(&self) -> String {
        // Texts and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What [`HoldEnd::to_json`] made.
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// Judges a hold that has ended, and left these words or none, after its release was asked for at `asked_at`.
pub fn hold_verdict(end: Option<&HoldEnd>, asked_at: Instant) -> HoldVerdict {
    let Some(end) = end else {
        return HoldVerdict::Lost("the dlock that held it was killed".to_owned());
    };
    let reason = || {
        let status = || format!("it ended with status {}", end.exit_code);
        end.reason.clone().unwrap_or_else(status)
    };
    match end.exit_code {
        0 if end.held_until >= Some(asked_at.since_boot()) => HoldVerdict::Released,
        0 => HoldVerdict::Lost("the dlock that held it had given it back before".to_owned()),
        UNKILLABLE_STATUS => HoldVerdict::Unkillable(reason()),
        _ => HoldVerdict::Lost(reason()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit_code: u8, held_until: Option<u64>, reason: Option<&str>) -> HoldEnd {
        HoldEnd {
            exit_code,
            held_until: held_until.map(Duration::from_secs),
            reason: reason.map(str::to_owned),
        }
    }

    fn lost(words: &str) -> HoldVerdict {
        HoldVerdict::Lost(words.to_owned())
    }

    #[test]
    fn only_a_lock_that_was_held_until_the_release_is_released() {
        let asked_at = Instant::from_boot(Duration::from_secs(10));
        let judge = |end: HoldEnd| hold_verdict(Some(&end), asked_at);
        assert_eq!(judge(end(0, Some(10), None)), HoldVerdict::Released);
        assert_eq!(judge(end(0, Some(11), None)), HoldVerdict::Released);
        let before = lost("the dlock that held it had given it back before");
        assert_eq!(judge(end(0, Some(9), None)), before);
        assert_eq!(judge(end(0, None, None)), before);
        let gone = end(121, Some(11), Some("its key is gone"));
        assert_eq!(judge(gone), lost("its key is gone"));
        assert_eq!(
            judge(end(124, Some(11), None)),
            lost("it ended with status 124")
        );
        let stuck = end(122, None, Some("cannot kill process 7"));
        let words = HoldVerdict::Unkillable("cannot kill process 7".to_owned());
        assert_eq!(judge(stuck), words);
    }

    #[test]
    fn one_that_says_nothing_was_killed() {
        let asked_at = Instant::from_boot(Duration::from_secs(10));
        let killed = lost("the dlock that held it was killed");
        assert_eq!(hold_verdict(None, asked_at), killed);
        assert_eq!(HoldEnd::parse(b""), None);
        assert_eq!(HoldEnd::parse(b"{\"exit_code\":0"), None);
    }

    #[test]
    fn what_is_written_is_read() {
        let end = end(121, Some(7), Some("\"lost\"\nand gone"));
        assert_eq!(HoldEnd::parse(end.to_json().as_bytes()), Some(end));
    }
}
