//! `--once-per`: whether the mark of an earlier run keeps another run from starting.
//! It must not know where marks are, nor how they are read or replaced.

use super::holder::Holder;
use super::proof::LeaseId;
use super::text::printable;

/// The result of a run that has succeeded, in its mark.
const SUCCESS: &str = "exit 0";

/// Whether a run with this result has succeeded.
pub fn has_succeeded(result: &str) -> bool {
    result == SUCCESS
}

/// An earlier run, whose mark keeps another run from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierRun {
    /// `None` for the mark of another client.
    pub record: Option<Holder>,
    /// The key of the mark, if it has no lease, which no dlock creates: it counts until somebody deletes it.
    pub permanent: Option<String>,
}

impl EarlierRun {
    /// For people: the run, its result, and how to end a mark that does not end by itself.
    pub fn describe(&self) -> String {
        let run = match &self.record {
            None => "by another client".to_owned(),
            Some(run) => {
                let result = run.result.as_deref();
                let result = result.unwrap_or("not ended yet, or its result is unknown");
                format!("{}; {result}", run.sentence())
            }
        };
        let Some(key) = &self.permanent else {
            return printable(&run);
        };
        printable(&format!(
            "{run}; its mark '{key}' has no lease, so it never expires (etcdctl del '{key}')"
        ))
    }
}

/// Whether an earlier run counts for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    Counts,
    /// The run has failed, and the later one asks for successes only.
    Failed,
    /// Nobody has written the result: the run counts as long as the entry with this lease exists. Without that entry, its
    /// dlock or its host was killed, or lost the lock.
    WhileQueued(LeaseId),
}

/// Whether the run of this mark counts for a later run; `retry_failed` is the option of the later one. `None` is a mark of
/// another client, which says nothing of a result, and so counts. A mark of a dlock without that option has the same
/// content, so each run decides for itself, and one that does not ask to retry never starts twice within its time.
pub fn counting(mark: Option<&Holder>, retry_failed: bool) -> Counting {
    let Some(run) = mark.filter(|_| retry_failed) else {
        return Counting::Counts;
    };
    match (run.result.as_deref(), run.entry) {
        (Some(result), _) if has_succeeded(result) => Counting::Counts,
        (Some(_), _) => Counting::Failed,
        (None, Some(entry)) => Counting::WhileQueued(entry),
        // An earlier version of dlock has written it.
        (None, None) => Counting::Counts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(result: Option<&str>, entry: Option<LeaseId>) -> Holder {
        Holder {
            result: result.map(str::to_owned),
            entry,
            ..Holder::default()
        }
    }

    #[test]
    fn only_a_success_counts_for_a_run_that_retries() {
        let entry = Some(LeaseId(7));
        for (result, entry, expected) in [
            (Some("exit 0"), entry, Counting::Counts),
            (Some("exit 0"), None, Counting::Counts),
            (Some("exit 1"), entry, Counting::Failed),
            (Some("exit 00"), entry, Counting::Failed),
            (Some("signal 9"), None, Counting::Failed),
            (Some("lost the lock"), entry, Counting::Failed),
            (Some(""), entry, Counting::Failed),
            (None, entry, Counting::WhileQueued(LeaseId(7))),
            (None, None, Counting::Counts),
        ] {
            let mark = mark(result, entry);
            assert_eq!(counting(Some(&mark), true), expected, "{mark:?}");
        }
        assert_eq!(counting(None, true), Counting::Counts);
    }

    #[test]
    fn every_run_counts_for_a_run_that_does_not_retry() {
        for result in [None, Some("exit 0"), Some("exit 1"), Some("lost the lock")] {
            let mark = mark(result, Some(LeaseId(7)));
            assert_eq!(counting(Some(&mark), false), Counting::Counts, "{mark:?}");
        }
        assert_eq!(counting(None, false), Counting::Counts);
    }
}
