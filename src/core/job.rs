//! Stopping dlock with its command, and continuing it with its command.
//! It must not know how a process is stopped.

/// The command and dlock as one job of the caller's shell.
#[derive(Debug, Default)]
pub struct JobState {
    /// The signal that stopped the command; `None` while it runs.
    stopped_by: Option<i32>,
    /// Whether dlock was ordered to stop and has not reported that it runs again.
    holds_dlock: bool,
    /// Whether the command has stopped since that order.
    has_stopped_again: bool,
}

impl JobState {
    /// The command was stopped. Returns the signal by which dlock must stop, if it must be ordered to.
    pub const fn stopped(&mut self, signal: i32) -> Option<i32> {
        self.stopped_by = Some(signal);
        if self.holds_dlock {
            // A second order would stop a dlock that the shell has continued for good.
            self.has_stopped_again = true;
            return None;
        }
        self.holds_dlock = true;
        Some(signal)
    }

    /// The command was continued, or has ended.
    pub const fn continued(&mut self) {
        self.stopped_by = None;
        self.has_stopped_again = false;
    }

    /// dlock runs again. Returns the signal by which it must stop once more, if the command has been stopped since.
    pub const fn resumed(&mut self) -> Option<i32> {
        self.holds_dlock = false;
        match self.stopped_by {
            Some(signal) if self.has_stopped_again => {
                self.has_stopped_again = false;
                self.stopped(signal)
            }
            _ => None,
        }
    }

    /// Whether dlock is stopped, or about to be, although the command runs again.
    pub const fn owes_continue(&self) -> bool {
        self.holds_dlock && self.stopped_by.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dlock_stops_and_continues_with_the_command() {
        let mut job = JobState::default();
        assert_eq!(job.stopped(20), Some(20));
        assert!(!job.owes_continue());
        job.continued();
        assert!(job.owes_continue(), "until dlock says that it runs");
        assert_eq!(job.resumed(), None);
        assert!(!job.owes_continue());
    }

    #[test]
    fn a_stopped_dlock_is_not_ordered_to_stop_twice() {
        let mut job = JobState::default();
        assert_eq!(job.stopped(19), Some(19));
        // Another process continued it, and it read from the terminal in the background.
        assert_eq!(job.stopped(21), None);
        job.continued();
        assert_eq!(job.resumed(), None);
        assert!(!job.owes_continue());
    }

    #[test]
    fn a_dlock_that_runs_is_ordered_to_stop_if_the_command_has_stopped_again() {
        let mut job = JobState::default();
        assert_eq!(job.stopped(19), Some(19));
        job.continued();
        assert_eq!(job.stopped(21), None);
        assert_eq!(job.resumed(), Some(21));
        assert_eq!(job.resumed(), None, "continued alone, it is left running");
    }
}
