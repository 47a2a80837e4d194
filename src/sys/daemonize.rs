//! Continues dlock in the background, as `daemon(3)` does, while the caller's shell waits until it is ready.
//! It must not know what is done in the background.
#![expect(
    unsafe_code,
    reason = "forks, and takes an inherited descriptor by its number"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, setsid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::sys::descriptors;
use crate::sys::inherited;
use crate::sys::pidfd::is_unread;
use crate::sys::process::{ExitStatus, fork};
use crate::sys::signals;

/// Signals that end a process waiting in a shell.
const ENDING_SIGNALS: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// Number of processes that must be ready: the background and its child.
const READY_COUNT: usize = 2;

/// `sizeof(struct signalfd_siginfo)`, `signalfd(2)`.
const SIGNAL_RECORD_BYTES: usize = size_of::<libc::signalfd_siginfo>();

/// Opens a file that messages are appended to. Never waits, even if it is a pipe.
pub(crate) fn open_log(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o666))?)
}

/// The background process's side of the pipe to the foreground, which waits for readiness or the end.
pub(crate) struct Background {
    link: OwnedFd,
    /// Replaces the caller's stderr: the log, if there is one, else /dev/null.
    stderr: OwnedFd,
    has_log: bool,
}

impl Background {
    /// Replaces the caller's stderr and reports that this process is ready; returns whether the foreground still exists.
    pub(crate) fn ready(&self) -> bool {
        // It fails only for a number that is no descriptor.
        let _ = dup2_stderr(&self.stderr);
        is_sent(&self.link)
    }

    /// Whether messages on stderr are kept once this process is ready.
    pub(crate) fn has_log(&self) -> bool {
        self.has_log
    }

    /// Whether the foreground process is gone.
    pub(crate) fn parent_gone(&self) -> bool {
        is_unread(&self.link)
    }

    /// The descriptors that must stay open for it.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.link.as_fd(), self.stderr.as_fd()]
    }

    /// The number by which a child inherits the [`Link`].
    pub(crate) fn number(&self) -> RawFd {
        self.link.as_raw_fd()
    }
}

/// A child's side of the pipe to the foreground.
pub(crate) struct Link(OwnedFd);

impl Link {
    /// The descriptor that [`Background::number`] named in the parent.
    ///
    /// # Errors
    /// `EBADF`: the parent passed on no such descriptor.
    pub(crate) fn inherited(number: RawFd) -> io::Result<Self> {
        // SAFETY: only borrowed to read its flags, valid or not.
        let passed_on = (number > 2)
            .then(|| fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }))
            .ok_or(Errno::BADF)?;
        passed_on?;
        // SAFETY: the parent leaves the descriptor to this process, and nothing else here knows its number.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Closes every descriptor of the caller except `kept` and reports that this process is ready; returns whether the
    /// foreground still exists.
    pub(crate) fn ready(self, kept: &[RawFd]) -> io::Result<bool> {
        let null = descriptors::null()?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        drop(null);
        descriptors::close_all_but(&[kept, &[self.0.as_raw_fd()]].concat())?;
        Ok(is_sent(&self.0))
    }
}

fn is_sent(link: &OwnedFd) -> bool {
    rustix::io::write(link, &[0]).is_ok()
}

/// The side of the fork that this process is on.
pub(crate) enum Side {
    Background(Background),
    /// The background and its child are ready (`None`), or the background has ended before that with this status.
    Foreground(Option<ExitStatus>),
}

/// Forks into the background, with a session of its own and without the caller's stdin; the foreground waits until that
/// is ready or has ended. `log` replaces the stderr of the background once it is ready; `None` means /dev/null. Must be
/// called while there is one thread.
pub(crate) fn daemonize(log: Option<OwnedFd>) -> io::Result<Side> {
    let null = descriptors::null()?;
    let (word, link) = pipe_with(PipeFlags::CLOEXEC)?;
    // With SIGCHLD ignored, the kernel would discard the exit status of the background.
    signals::set_ignored(libc::SIGCHLD, false);
    // SAFETY: dlock has one thread.
    let Some(background) = (unsafe { fork() })? else {
        drop(word);
        let _ = setsid();
        dup2_stdin(&null)?;
        fcntl_setfd(&link, FdFlags::empty())?;
        return Ok(Side::Background(Background {
            link,
            has_log: log.is_some(),
            stderr: log.unwrap_or(null),
        }));
    };
    drop(link);
    wait_in_foreground(background, &word).map(Side::Foreground)
}

/// Waits until both processes are ready (`None`) or the background has ended. Passes on to it signals that end the
/// foreground, as timeout(1) and Ctrl-C send them: they are meant for the background as well, which then ends.
fn wait_in_foreground(background: Pid, word: &OwnedFd) -> io::Result<Option<ExitStatus>> {
    let wanted = ENDING_SIGNALS.map(Signal::as_raw).into_iter();
    let received = signals::receive(wanted.filter(|&one| !inherited::ignored_at_start(one)))?;
    let mut passed_on = None;
    let mut ready = 0;
    while ready < READY_COUNT {
        let mut sources = [
            PollFd::new(word, PollFlags::IN),
            PollFd::new(&received, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut sources, None))?;
        let [has_word, has_signal] = sources.map(|source| !source.revents().is_empty());
        if has_signal && let Some(signal) = next_signal(&received) {
            passed_on = Some(signal);
            // The pid is its own until it is waited for.
            let _ = kill_process(background, signal);
        }
        if has_word {
            match retry_on_intr(|| rustix::io::read(word, &mut [0; READY_COUNT]))? {
                0 => break,
                more => ready += more,
            }
        }
    }
    let ended = if ready == READY_COUNT {
        None
    } else {
        retry_on_intr(|| waitpid(Some(background), WaitOptions::empty()))?
    };
    Ok(match passed_on {
        Some(signal) => Some(ExitStatus::Signalled(signal.as_raw())),
        None => ended.map(|(_, status)| status.into()),
    })
}

/// The next signal of a signalfd.
fn next_signal(received: &OwnedFd) -> Option<Signal> {
    let mut record = [0; SIGNAL_RECORD_BYTES];
    rustix::io::read(received, &mut record).ok()?;
    let number = i32::from_ne_bytes(*record.first_chunk()?);
    ENDING_SIGNALS
        .into_iter()
        .find(|one| one.as_raw() == number)
}
