//! The end of a `dlock hold` as it reports it, and the result that `dlock release` derives from it.
//! It must not know how the report is passed between the processes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Instant;

/// The end of a hold, as the hold writes it for `dlock release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldEnd {
    /// The exit status of the hold.
    pub exit_code: u8,
    /// Time since boot at which it learnt that the lock is not wanted any more. If the exit status is 0, the lock was
    /// held until then.
    pub held_until: Option<Duration>,
    /// Why it failed.
    pub reason: Option<String>,
}

/// The result of `dlock release`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldVerdict {
    /// The lock was held until the release was requested, and was then released.
    Released,
    /// Nothing proves that the lock was held until then.
    Lost(String),
    /// A process that survived SIGKILL keeps the lock.
    Unkillable(String),
}

/// The exit status of a hold that could not kill a process.
const UNKILLABLE_STATUS: u8 = 122;

impl HoldEnd {
    pub fn to_json(&self) -> String {
        // Texts and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses the text of [`HoldEnd::to_json`].
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// The result for a hold that ended with `end`, if it reported one, and whose release was requested at `asked_at`.
pub fn hold_verdict(end: Option<&HoldEnd>, asked_at: Instant) -> HoldVerdict {
    let Some(end) = end else {
        return HoldVerdict::Lost("its dlock hold was killed".to_owned());
    };
    let reason = || {
        let status = || format!("it ended with status {}", end.exit_code);
        end.reason.clone().unwrap_or_else(status)
    };
    match end.exit_code {
        0 if end.held_until >= Some(asked_at.since_boot()) => HoldVerdict::Released,
        0 => HoldVerdict::Lost("its dlock hold had released it before".to_owned()),
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
        let before = lost("its dlock hold had released it before");
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
    fn a_hold_without_a_report_was_killed() {
        let asked_at = Instant::from_boot(Duration::from_secs(10));
        let killed = lost("its dlock hold was killed");
        assert_eq!(hold_verdict(None, asked_at), killed);
        assert_eq!(HoldEnd::parse(b""), None);
        assert_eq!(HoldEnd::parse(b"{\"exit_code\":0"), None);
    }

    #[test]
    fn a_written_hold_end_is_parsed() {
        let end = end(121, Some(7), Some("\"lost\"\nand gone"));
        assert_eq!(HoldEnd::parse(end.to_json().as_bytes()), Some(end));
    }
}
