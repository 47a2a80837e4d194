//! What dlock and its guard say to each other.
//! It must not know how a message travels, nor what anybody does about it.

use serde::{Deserialize, Serialize};

use crate::core::time::Deadlines;
use crate::sys::process::ExitStatus;

/// From dlock to the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Run the command, with these variables set on top of what it inherits.
    Start {
        variables: Vec<(String, String)>,
        #[serde(with = "moments")]
        deadlines: Deadlines,
    },
    /// Answered by [`Report::Beat`], whether the deadlines are later ones or not.
    Extend {
        beat: u64,
        #[serde(with = "moments")]
        deadlines: Deadlines,
    },
    /// A signal that dlock received.
    Forward(Signal),
    /// dlock was stopped after [`Report::Stopped`], and runs again.
    Resumed,
    Stop,
    Kill,
}

/// From the guard to dlock, the last but one that dlock makes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum GuardReport {
    /// The command runs.
    Started,
    /// It could not be started after all. Nothing is left of the attempt.
    CannotStart { errno: i32 },
    /// The command was stopped by this signal, and dlock has a caller that controls it as a job: dlock is to stop, too.
    /// Answered by [`Order::Resumed`].
    Stopped(i32),
    /// The answer to the `extend` of the same number.
    Ack(u64),
    /// The command has ended, `count` processes of its tree have not; the policy on leftovers is being carried out.
    Leftovers { status: ExitStatus, count: usize },
    /// The last message: nothing of the tree is left, or only what the policy leaves. No status: it was never started.
    Ended {
        status: Option<ExitStatus>,
        cause: Cause,
    },
    /// These live on 2 s after the first SIGKILL. The guard goes on trying, also without dlock. Sent again when others are left;
    /// without names when /proc hides them (`hidepid`).
    Survivors(Vec<Survivor>),
    /// There is no guard any more.
    GuardDead,
}

/// A signal on its way to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signal {
    pub(crate) number: i32,
    pub(crate) sender: Sender,
    /// The value that `sigqueue(3)` sends along.
    pub(crate) value: Option<u64>,
}

/// The sender of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sender {
    /// The terminal, to every process of the foreground group.
    Terminal,
    /// The process of this id.
    Process(i32),
    /// The kernel, to dlock alone.
    Kernel,
}

impl Signal {
    /// Whether a process that does not care about it is ended by it (`signal(7)`).
    pub(crate) fn ends(&self) -> bool {
        let harmless = [libc::SIGWINCH, libc::SIGCONT, libc::SIGURG, libc::SIGCHLD];
        !self.stops() && !harmless.contains(&self.number)
    }

    /// Whether a process that does not care about it is stopped by it.
    pub(crate) fn stops(&self) -> bool {
        [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&self.number)
    }
}

/// Why the tree ended: the first that applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// The command ended by itself.
    Command,
    /// A deadline passed.
    Deadline,
    /// dlock said so, or was gone.
    Ordered,
}

/// A process that SIGKILL did not end, for people to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Survivor {
    pub(crate) pid: i32,
    /// As `ps` shows it: D is uninterruptible sleep.
    pub(crate) state: char,
    /// The real user.
    pub(crate) uid: u32,
    pub(crate) program: String,
    /// The process that traces it. It keeps a process that has ended from being collected (`ptrace(2)`).
    pub(crate) tracer: Option<i32>,
}

/// Moments travel as the time since boot: both ends see the same clock.
mod moments {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::core::time::{Deadlines, Instant};

    pub(super) fn serialize<S: Serializer>(
        deadlines: &Deadlines,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        (
            deadlines.stop_at.since_boot(),
            deadlines.kill_at.since_boot(),
        )
            .serialize(to)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Deadlines, D::Error> {
        let (stop, kill) = <(Duration, Duration)>::deserialize(from)?;
        Ok(Deadlines {
            stop_at: Instant::from_boot(stop),
            kill_at: Instant::from_boot(kill),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::time::Instant;

    #[test]
    fn a_moment_arrives_to_the_nanosecond() {
        let stop_at = Instant::from_boot(Duration::new(u64::MAX, 999_999_999));
        let kill_at = Instant::from_boot(Duration::new(0, 1));
        let order = Order::Extend {
            beat: u64::MAX,
            deadlines: Deadlines { stop_at, kill_at },
        };
        let line = serde_json::to_vec(&order).unwrap();
        assert_eq!(serde_json::from_slice::<Order>(&line).unwrap(), order);
    }
}
