//! Detects without any clock whether two holders ever overlapped: the kernel's own flock, held by each whole tree.
//! It must not know dlock.

use std::fs;
use std::path::Path;

use super::{LIMIT, Process, Scratch, child, eventually};

/// A section that holders enter one after the other.
pub(crate) struct Oracle(Scratch);

impl Oracle {
    pub(crate) fn new() -> Self {
        Self(Scratch::new())
    }

    /// The command line that enters and then becomes `command`.
    pub(crate) fn command(&self, command: &[&str]) -> Vec<String> {
        let dir = self.0.path().to_str().expect("a plain path").to_owned();
        let mut line = vec!["sh".to_owned(), child("exclusive.sh"), dir];
        line.extend(command.iter().map(ToString::to_string));
        line
    }

    /// The directory that `exclusive.sh` needs.
    pub(crate) fn dir(&self) -> &str {
        self.0.path().to_str().expect("a plain path")
    }

    /// The tokens of the holders that overlapped with another.
    pub(crate) fn overlaps(&self) -> Vec<u64> {
        let text = self.0.read("tokens");
        let lines = text.lines();
        let tokens = lines.filter_map(|line| line.strip_prefix("OVERLAP "));
        tokens
            .map(|token| token.parse().unwrap_or_default())
            .collect()
    }

    /// The tokens of all that have entered so far, in that order, overlapping or not.
    pub(crate) fn tokens_now(&self) -> Vec<u64> {
        let text = self.0.read("tokens");
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The last entries and attempts, for people.
    pub(crate) fn last_tokens(&self) -> String {
        let text = self.0.read("tokens");
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(6)..].join(", ")
    }

    /// The processes that are inside now.
    pub(crate) fn inside(&self) -> Vec<Process> {
        let lock = self.0.file("oracle.lock");
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let has_it = |process: &Process| {
            let open = fs::read_dir(format!("/proc/{}/fd", process.0));
            let mut open = open.into_iter().flatten().flatten();
            open.any(|file| fs::read_link(file.path()).is_ok_and(|path| path == Path::new(&lock)))
        };
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .map(Process)
            .filter(has_it)
            .collect()
    }

    /// Fails if two holders were ever inside at once.
    #[track_caller]
    pub(crate) fn assert_no_overlap(&self) {
        let text = self.0.read("tokens");
        assert!(!text.contains("OVERLAP"), "two holders at once:\n{text}");
    }

    /// The fencing tokens of all that entered so far, in that order; fails on an overlap and on a token that does not
    /// grow.
    #[track_caller]
    pub(crate) fn tokens(&self) -> Vec<u64> {
        self.assert_no_overlap();
        let text = self.0.read("tokens");
        let tokens: Vec<u64> = text
            .lines()
            .map(|line| line.parse().expect("a decimal token"))
            .collect();
        assert!(
            tokens.is_sorted_by(|a, b| a < b),
            "tokens do not grow: {tokens:?}"
        );
        tokens
    }

    /// Waits until `count` holders have entered.
    #[track_caller]
    pub(crate) fn entered(&self, count: usize) {
        eventually(LIMIT, &format!("{count} holders have entered"), || {
            self.assert_no_overlap();
            self.0.read("tokens").lines().count() >= count
        });
    }

    /// The command line that enters, notes `who`, and stays until `exited` is called with the same word.
    pub(crate) fn guest(&self, who: &str) -> Vec<String> {
        let dir = self.0.path().to_str().expect("a plain path");
        let stay = format!(
            "echo {who} >>{dir}/guests; until [ -e {dir}/leave-{who} ]; do sleep 0.05; done"
        );
        self.command(&["sh", "-c", &stay])
    }

    /// Ends a guest, also one that has not entered yet.
    pub(crate) fn exited(&self, who: &str) {
        self.0.write(&format!("leave-{who}"), "");
    }

    /// All guests that have entered, in that order.
    pub(crate) fn guests(&self) -> Vec<String> {
        self.0.read("guests").lines().map(str::to_owned).collect()
    }
}
