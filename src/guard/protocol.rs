//! The messages between dlock and its guard.
//! It must not know how a message is sent, nor what its receiver does.

use serde::{Deserialize, Serialize};
use std::fmt;

use crate::core::time::Deadlines;
use crate::sys::process::ExitStatus;

/// A message from dlock to the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Run the command, with these variables added to those that it inherits.
    Start {
        variables: Vec<(String, String)>,
        #[serde(with = "moments")]
        deadlines: Deadlines,
    },
    /// New deadlines; answered by [`GuardReport::Ack`], whether they are later ones or not.
    Extend {
        beat: u64,
        #[serde(with = "moments")]
        deadlines: Deadlines,
    },
    /// A signal that dlock received.
    Forward(Signal),
    /// dlock was stopped after [`GuardReport::Stopped`], and runs again.
    Resumed,
    Stop,
    Kill,
}

/// A message from the guard to dlock; dlock itself makes `GuardDead`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum GuardReport {
    /// The command runs.
    Started,
    /// The command could not be started. No process is left.
    CannotStart { errno: i32 },
    /// The command was stopped by this signal, and dlock has a caller that controls it as a job: dlock must stop, too.
    /// Answered by [`Order::Resumed`].
    Stopped(i32),
    /// The answer to the `Extend` of the same number.
    Ack(u64),
    /// The command has ended, `count` processes of its tree have not; the guard applies the policy on leftovers.
    Leftovers { status: ExitStatus, count: usize },
    /// The last message: no process of the tree is left, or only those that the policy leaves. No status: never started.
    Ended {
        status: Option<ExitStatus>,
        cause: Cause,
    },
    /// These processes live 2 s after the first SIGKILL, and not only because they wait for a processor. The guard continues
    /// to kill, also without dlock. Sent again when the list changes, and never empty.
    Survivors(Vec<Survivor>),
    /// The guard's process has ended.
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

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sender {
            Sender::Terminal => write!(f, "signal {} from the terminal", self.number),
            Sender::Process(pid) => write!(f, "signal {} from process {pid}", self.number),
            Sender::Kernel => write!(f, "signal {} from the kernel", self.number),
        }
    }
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
    /// Whether its default action ends a process (`signal(7)`).
    pub(crate) fn ends(&self) -> bool {
        let harmless = [libc::SIGWINCH, libc::SIGCONT, libc::SIGURG, libc::SIGCHLD];
        !self.stops() && !harmless.contains(&self.number)
    }

    /// Whether its default action stops a process.
    pub(crate) fn stops(&self) -> bool {
        [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&self.number)
    }
}

/// The first reason for the end of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// The command ended by itself.
    Command,
    /// A deadline passed.
    Deadline,
    /// dlock ordered it, or was gone.
    Ordered,
}

/// A process that SIGKILL did not end, for people to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Survivor {
    pub(crate) pid: i32,
    /// State as `ps` shows it: D is uninterruptible sleep.
    pub(crate) state: char,
    /// Real user id.
    pub(crate) uid: u32,
    pub(crate) program: String,
    /// The process that traces it. It keeps a process that has ended from being collected (`ptrace(2)`).
    pub(crate) tracer: Option<i32>,
}

impl Survivor {
    /// A process that is there and cannot be seen: /proc hides it (`hidepid` of `proc(5)`).
    pub(crate) const UNSEEN: Self = Self {
        pid: 0,
        state: '?',
        uid: 0,
        program: String::new(),
        tracer: None,
    };
}

/// Times are sent as the time since boot: both ends read the same clock.
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
