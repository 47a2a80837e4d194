//! The file of a fence: read and written as what its tokens are, and the lock that a command keeps.
//! It must not know who is let in, nor why, nor how a file is replaced.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, retry_on_intr};

use crate::core::fence::{Seen, Unreadable};
use crate::exit::Failure;
use crate::whole::Whole;

/// Far more than all names of a fence can fill; keeps a wrong path from filling the memory.
const LONGEST: u64 = 16 * 1024 * 1024;

/// The first number for the lock's descriptor in the command: scripts open files of their own under lower ones, and
/// would close the lock by that.
const OUT_OF_THE_WAY: i32 = 40;

/// A file of tokens, there or not.
pub(crate) struct Fence(Whole);

/// The right to change the file. It ends with the last process that has the descriptor.
pub(crate) struct Locked<'a> {
    fence: &'a Fence,
    /// Not close-on-exec: the command holds the lock in dlock's place.
    _lock: OwnedFd,
}

impl Fence {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        Ok(Self(Whole::open(path)?))
    }

    /// What the file says at this moment; a file that is not there has seen nothing.
    pub(crate) fn read(&self) -> Result<Seen, Failure> {
        let Some(bytes) = self.0.read(LONGEST)? else {
            return Ok(Seen::default());
        };
        let parsed = if bytes.len() as u64 > LONGEST {
            Err(Unreadable::Foreign)
        } else {
            Seen::parse(&bytes)
        };
        parsed.map_err(|why| {
            let hint = match why {
                Unreadable::Foreign => "dlock fence makes the file itself: name one that is not there yet",
                Unreadable::Version(_) => "use the newer dlock that wrote it",
                Unreadable::Line(_) | Unreadable::Cut => {
                    "restore it; or move it away and let every lock's next token in, which is higher than all before: dlock run NAME -- dlock fence FILE"
                }
            };
            Failure {
                hint: Some(hint.to_owned()),
                ..anyhow!("cannot use '{}': {why}", self.0.path().display()).into()
            }
        })
    }

    /// Waits until nobody else has the lock; `tell` is called when that takes time.
    pub(crate) fn lock(&self, tell: impl Fn()) -> Result<Locked<'_>, Failure> {
        let lock = self.0.lock(|lock| {
            tell();
            retry_on_intr(|| flock(lock, FlockOperation::LockExclusive))
        })?;
        let keep = || {
            let kept = fcntl_dupfd_cloexec(&lock, OUT_OF_THE_WAY)?;
            fcntl_setfd(&kept, FdFlags::empty())?;
            Ok::<_, rustix::io::Errno>(kept)
        };
        let kept =
            keep().with_context(|| format!("cannot keep '{}' locked", self.0.path().display()))?;
        Ok(Locked {
            fence: self,
            _lock: kept,
        })
    }
}

impl Locked<'_> {
    /// Puts `seen` in the place of what the file says, and waits until it will be there after a power cut.
    pub(crate) fn record(&self, seen: &Seen) -> Result<(), Failure> {
        let Fence(file) = self.fence;
        let replaced = file.replace_locked(seen.to_string().as_bytes());
        replaced.map_err(|failure| {
            let tried = format!("cannot record the token in '{}'", file.path().display());
            Failure {
                error: failure.error.context(tried),
                ..failure
            }
        })?;
        self.settle()
    }

    /// Waits until what the file says will be there after a power cut: who wrote it may have been killed before that.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        let Fence(file) = self.fence;
        let settled = file.settle();
        let path = file.path().display();
        Ok(settled.with_context(|| format!("cannot record the token in '{path}' for good"))?)
    }
}
