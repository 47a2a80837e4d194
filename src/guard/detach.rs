//! Going on in the background, while the caller's shell waits for word of how it began.
//! It must not know what is done in the background.
#![expect(unsafe_code, reason = "forks")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, setsid, waitpid};
use rustix::stdio::dup2_stdin;

use super::{Status, descriptors, spawn};

/// In the background; whoever waits in the foreground hears of our end, or that we are ready.
pub(crate) struct Detached(OwnedFd);

impl Detached {
    /// Lets the foreground go.
    pub(crate) fn ready(self) {
        // When it is not there any more, nobody waits.
        let _ = rustix::io::write(&self.0, &[0]);
    }

    /// What must stay open for it.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Which of the two processes this is.
pub(crate) enum Side {
    Background(Detached),
    /// The background is ready, or it has ended like this before.
    Foreground(Option<Status>),
}

/// Goes on twice: in a session of its own and without the caller's stdin, and in the caller's until that is ready or has
/// ended. To be called while there is one thread.
pub(crate) fn detach() -> io::Result<Side> {
    let null = descriptors::null()?;
    let (word, ready) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: dlock has one thread.
    let Some(background) = (unsafe { spawn::fork() })? else {
        drop(word);
        let _ = setsid();
        dup2_stdin(&null)?;
        return Ok(Side::Background(Detached(ready)));
    };
    drop(ready);
    if rustix::io::retry_on_intr(|| rustix::io::read(&word, &mut [0; 1]))? > 0 {
        return Ok(Side::Foreground(None));
    }
    let ended = rustix::io::retry_on_intr(|| waitpid(Some(background), WaitOptions::empty()))?;
    Ok(Side::Foreground(ended.map(|(_, status)| status.into())))
}
