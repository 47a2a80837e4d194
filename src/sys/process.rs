//! A child process: its fork, and how it ended.
//! It must not know what the child does.
#![expect(unsafe_code, reason = "forks")]

use std::io;

use rustix::process::{Pid, WaitStatus};
use serde::{Deserialize, Serialize};

/// How a process ended: the status of exit(2), or the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExitStatus {
    Exited(u8),
    Signalled(i32),
}

impl From<WaitStatus> for ExitStatus {
    fn from(status: WaitStatus) -> Self {
        match status.terminating_signal() {
            Some(signal) => Self::Signalled(signal),
            // The value fits: exit(2) passes on eight bits.
            None => Self::Exited(
                status
                    .exit_status()
                    .and_then(|code| u8::try_from(code).ok())
                    .unwrap_or(u8::MAX),
            ),
        }
    }
}

/// `fork(2)`; `None` is the child.
///
/// # Safety
///
/// While the process has several threads, the child may only call async-signal-safe functions.
pub(crate) unsafe fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the caller keeps the promise.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}
