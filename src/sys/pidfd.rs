//! A process that is not of our making: whose end is awaited, or that is asked to end.
//! It must not know what it has to do with a lock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::stdio::dup2_stdout;

use crate::sys::descriptors;
use crate::sys::proc::ProcessId;

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
        // Else its pid may have gone to the one that was looked at.
        if other.has_ended() {
            return Err(Errno::SRCH.into());
        }
        Ok(other)
    }

    /// The process of this name, if it has not ended.
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

    /// What must stay open for it.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(crate) fn has_ended(&self) -> bool {
        is_now(&self.process, PollFlags::IN)
    }

    /// Asks it to end, and waits until it has, for as long as `limit`; answers whether it has.
    pub(crate) fn terminate(&self, limit: std::time::Duration) -> io::Result<bool> {
        match pidfd_send_signal(&self.process, Signal::TERM) {
            Err(Errno::SRCH) => return Ok(true),
            sent => sent?,
        }
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut end = [PollFd::new(&self.process, PollFlags::IN)];
        Ok(poll(&mut end, Some(&limit))? > 0)
    }
}

/// Whether nobody has the other end of a pipe, socket or terminal any more; what they wrote may still be there.
pub(crate) fn is_hung_up(input: &impl AsFd) -> bool {
    is_now(input, PollFlags::HUP)
}

/// Whether nobody reads what is written into a pipe any more.
pub(crate) fn is_unread(output: &impl AsFd) -> bool {
    is_now(output, PollFlags::ERR)
}

fn is_now(descriptor: &impl AsFd, event: PollFlags) -> bool {
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // That somebody has hung up is told unasked.
    let mut polled = [PollFd::new(
        descriptor,
        event - PollFlags::HUP - PollFlags::ERR,
    )];
    poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().intersects(event)
}

/// Lets go of stdout, and waits until stdin is at its end, if that is to be waited for, or `other` has ended; without
/// either, for ever.
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
        // What is written to us means nothing; that nobody writes any more does.
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
