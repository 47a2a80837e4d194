//! A handle of a process that this one did not start: to wait for its end, or to stop it.
//! It must not know what the process has to do with a lock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::stdio::dup2_stdout;

use crate::sys::clock::timespec;
use crate::sys::descriptors;
use crate::sys::proc::{self, ProcessId};

/// The process, by pidfd.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    id: ProcessId,
    process: OwnedFd,
}

impl ProcessHandle {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub(crate) fn find(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(Errno::SRCH)?;
        let process = pidfd_open(number, PidfdFlags::empty())?;
        let id = ProcessId::of(pid)?;
        let other = Self { id, process };
        // Otherwise its pid may belong to the process that was read.
        if other.has_ended() {
            return Err(Errno::SRCH.into());
        }
        Ok(other)
    }

    /// The process with this identity, if it has not ended.
    pub(crate) fn open(name: ProcessId) -> io::Result<Self> {
        let other = Self::find(name.pid)?;
        if other.id == name {
            Ok(other)
        } else {
            Err(Errno::SRCH.into())
        }
    }

    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    /// Whether it leads a session with a terminal, as a login shell does.
    pub(crate) fn leads_terminal_session(&self) -> io::Result<bool> {
        let (_, stat) = proc::directory_of(&proc::open()?, self.id.pid)?;
        Ok(stat.session == self.id.pid && stat.has_terminal)
    }

    /// The descriptor that must stay open for it.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(crate) fn has_ended(&self) -> bool {
        is_now(&self.process, PollFlags::IN)
    }

    /// Sends SIGTERM and waits until the process has ended, for `limit` at most; returns whether it has.
    pub(crate) fn terminate(&self, limit: Duration) -> io::Result<bool> {
        match pidfd_send_signal(&self.process, Signal::TERM) {
            Err(Errno::SRCH) => return Ok(true),
            sent => sent?,
        }
        self.ends_within(limit)
    }

    /// Waits until the process has ended, for `limit` at most; returns whether it has.
    pub(crate) fn ends_within(&self, limit: Duration) -> io::Result<bool> {
        let mut end = [PollFd::new(&self.process, PollFlags::IN)];
        Ok(poll(&mut end, Some(&timespec(limit)))? > 0)
    }
}

/// Whether the other end of a pipe, socket or terminal is closed; unread input may be left.
pub(crate) fn is_hung_up(input: &impl AsFd) -> bool {
    is_now(input, PollFlags::HUP)
}

/// Whether all readers of a pipe are gone.
pub(crate) fn is_unread(output: &impl AsFd) -> bool {
    is_now(output, PollFlags::ERR)
}

fn is_now(descriptor: &impl AsFd, event: PollFlags) -> bool {
    // poll(2) reports a hang-up without a request for it.
    let mut polled = [PollFd::new(
        descriptor,
        event - PollFlags::HUP - PollFlags::ERR,
    )];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().intersects(event)
}

/// Closes stdout, and waits until stdin is at its end, with `until_eof`, or `other` has ended; without either, for ever.
pub(crate) fn wait_until_unwanted(
    until_eof: bool,
    other: Option<&ProcessHandle>,
) -> io::Result<()> {
    dup2_stdout(descriptors::null()?)?;
    let stdin = io::stdin();
    loop {
        let mut ends = Vec::new();
        if until_eof {
            ends.push(PollFd::new(&stdin, PollFlags::IN));
        }
        ends.extend(other.map(|other| PollFd::new(&other.process, PollFlags::IN)));
        if poll(&mut ends, None).is_err() {
            continue;
        }
        let mut ready = ends.iter().map(|end| !end.revents().is_empty());
        let stdin_ready = until_eof && ready.next().unwrap_or(false);
        if ready.next().unwrap_or(false) {
            return Ok(());
        }
        // Input means nothing; only its end matters.
        if stdin_ready
            && !matches!(
                rustix::io::read(stdin.as_fd(), &mut [0; 4096]),
                Ok(1..) | Err(Errno::INTR)
            )
        {
            return Ok(());
        }
    }
}
