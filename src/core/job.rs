//! Stopping dlock with its command, and continuing it with its command.
//! It must not know how a process is stopped.

/// The command and dlock as one job of the caller's shell.
#[derive(Debug, Default)]
pub struct JobState {
    /// The signal that the command is stopped by.
    stopped_by: Option<i32>,
    /// Whether dlock was told to stop and has not said that it runs again.
    holds_dlock: bool,
    /// Whether the command has stopped since dlock was told.
    has_stopped_again: bool,
}

impl JobState {
    /// The command was stopped. Answers the signal that dlock has to stop by, if it has to be told.
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

    /// dlock runs again. Answers the signal that it has to stop by once more, if the command has been stopped since.
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

    /// Whether dlock is stopped, or about to be, for a command that is not stopped any more.
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
    fn a_dlock_that_is_stopped_is_not_told_twice() {
        let mut job = JobState::default();
        assert_eq!(job.stopped(19), Some(19));
        // Continued by somebody, it read from the terminal in the background.
        assert_eq!(job.stopped(21), None);
        job.continued();
        assert_eq!(job.resumed(), None);
        assert!(!job.owes_continue());
    }

    #[test]
    fn a_dlock_that_runs_beside_a_command_that_stopped_again_is_told_again() {
        let mut job = JobState::default();
        assert_eq!(job.stopped(19), Some(19));
        job.continued();
        assert_eq!(job.stopped(21), None);
        assert_eq!(job.resumed(), Some(21));
        assert_eq!(job.resumed(), None, "continued alone, it is left running");
    }
}
