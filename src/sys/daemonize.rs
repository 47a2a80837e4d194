//! Continues dlock in the background, while the caller's shell waits until it is ready.
//! It must not know what is done in the background.
#![expect(unsafe_code, reason = "forks")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::{io, thread};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, setsid, waitpid,
};
use rustix::stdio::dup2_stdin;
use signal_hook::iterator::Signals;

use crate::sys::descriptors;
use crate::sys::pidfd::is_unread;
use crate::sys::process::{ExitStatus, fork};
use crate::sys::signals;

/// Signals that end a process waiting in a shell.
const ENDING_SIGNALS: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// The background process's side of the pipe to the foreground, which waits for readiness or the end.
pub(crate) struct Background(OwnedFd);

impl Background {
    /// Ends the foreground's wait; returns whether the foreground still existed.
    pub(crate) fn ready(&self) -> bool {
        rustix::io::write(&self.0, &[0]).is_ok()
    }

    /// Whether the foreground process is gone.
    pub(crate) fn parent_gone(&self) -> bool {
        is_unread(&self.0)
    }

    /// The descriptor that must stay open for it.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The side of the fork that this process is on.
pub(crate) enum Side {
    Background(Background),
    /// The background is ready (`None`), or has ended before that with this status.
    Foreground(Option<ExitStatus>),
}

/// Forks into the background, with a session of its own and without the caller's stdin; the foreground waits until that
/// is ready or has ended. Must be called while there is one thread.
pub(crate) fn daemonize() -> io::Result<Side> {
    let null = descriptors::null()?;
    let (word, ready) = pipe_with(PipeFlags::CLOEXEC)?;
    // With SIGCHLD ignored, the kernel would discard the exit status of the background.
    signals::set_ignored(libc::SIGCHLD, false);
    // SAFETY: dlock has one thread.
    let Some(background) = (unsafe { fork() })? else {
        drop(word);
        let _ = setsid();
        dup2_stdin(&null)?;
        return Ok(Side::Background(Background(ready)));
    };
    drop(ready);
    let handed_on = forward_signals(background)?;
    let ready = rustix::io::retry_on_intr(|| rustix::io::read(&word, &mut [0; 1]))? > 0;
    let ended = if ready {
        None
    } else {
        rustix::io::retry_on_intr(|| waitpid(Some(background), WaitOptions::empty()))?
    };
    // The background was signalled, whatever its result, and ends.
    Ok(Side::Foreground(match handed_on.load(Ordering::SeqCst) {
        0 => ended.map(|(_, status)| status.into()),
        signal => Some(ExitStatus::Signalled(signal)),
    }))
}

/// Forwards signals that end the foreground, as timeout(1) and Ctrl-C send them: they are meant for the background as
/// well. Returns the last signal forwarded, 0 for none. Must be called before the background is waited for.
fn forward_signals(background: Pid) -> io::Result<Arc<AtomicI32>> {
    let background = pidfd_open(background, PidfdFlags::empty())?;
    let wanted = ENDING_SIGNALS
        .into_iter()
        .filter(|signal| !crate::sys::inherited::ignored_at_start(signal.as_raw()));
    let mut signals = Signals::new(wanted.map(Signal::as_raw))?;
    let handed_on = Arc::new(AtomicI32::new(0));
    let noted = Arc::clone(&handed_on);
    let forward = move || {
        for number in signals.forever() {
            noted.store(number, Ordering::SeqCst);
            if let Some(signal) = ENDING_SIGNALS
                .into_iter()
                .find(|one| one.as_raw() == number)
            {
                // It may have ended by itself.
                let _ = pidfd_send_signal(&background, signal);
            }
        }
    };
    thread::Builder::new().spawn(forward)?;
    Ok(handed_on)
}
