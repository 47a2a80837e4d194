//! The file of a fence: read and written as what its tokens are, and the lock that a command keeps.
//! It must not know who is let in, nor why, nor how a file is replaced.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, retry_on_intr};

use crate::core::fence::{HighestTokens, Unreadable};
use crate::output::exit::Failure;
use crate::sys::atomic_file::AtomicFile;

/// Far more than all names of a fence can fill; keeps a wrong path from filling the memory.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// The first number for the lock's descriptor in the command: scripts open files of their own under lower ones, and
/// would close the lock by that.
const MIN_DESCRIPTOR: i32 = 40;

/// A file of tokens, there or not.
pub(crate) struct TokenFile(AtomicFile);

/// The right to change the file. It ends with the last process that has the descriptor.
pub(crate) struct Locked<'a> {
    fence: &'a TokenFile,
    /// Not close-on-exec: the command holds the lock in dlock's place.
    _lock: OwnedFd,
}

impl TokenFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        Ok(Self(AtomicFile::open(path)?))
    }

    /// What the file says at this moment; a file that is not there has seen nothing.
    pub(crate) fn read(&self) -> Result<HighestTokens, Failure> {
        read(&self.0, |why| match why {
            Unreadable::Foreign => {
                "dlock fence makes the file itself: name one that is not there yet"
            }
            Unreadable::Version(_) => "use the newer dlock that wrote it",
            Unreadable::Line(_) | Unreadable::Cut => {
                "restore it; or move it away and let every lock's next token in, which is higher than all before: dlock run NAME -- dlock fence FILE"
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
            let kept = fcntl_dupfd_cloexec(&lock, MIN_DESCRIPTOR)?;
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
    pub(crate) fn record(&self, seen: &HighestTokens) -> Result<(), Failure> {
        record(&self.fence.0, seen)
    }

    pub(crate) fn settle(&self) -> Result<(), Failure> {
        settle(&self.fence.0)
    }
}

/// What a file of tokens says at this moment; `hint` is what may help when it cannot be understood.
pub(crate) fn read(
    file: &AtomicFile,
    hint: impl Fn(&Unreadable) -> &'static str,
) -> Result<HighestTokens, Failure> {
    let Some(bytes) = file.read(MAX_FILE_BYTES)? else {
        return Ok(HighestTokens::default());
    };
    let parsed = if bytes.len() as u64 > MAX_FILE_BYTES {
        Err(Unreadable::Foreign)
    } else {
        HighestTokens::parse(&bytes)
    };
    parsed.map_err(|why| Failure {
        hint: Some(hint(&why).to_owned()),
        ..anyhow!("cannot use '{}': {why}", file.path().display()).into()
    })
}

/// Puts `seen` in the place of what a file of tokens says, under its lock, and waits until it will be there after a power
/// cut.
pub(crate) fn record(file: &AtomicFile, seen: &HighestTokens) -> Result<(), Failure> {
    let replaced = file.replace_locked(seen.to_string().as_bytes());
    replaced.with_context(|| format!("cannot record the token in '{}'", file.path().display()))?;
    settle(file)
}

/// Waits until what the file says will be there after a power cut: who wrote it may have been killed before that.
fn settle(file: &AtomicFile) -> Result<(), Failure> {
    let settled = file.sync_dir();
    let path = file.path().display();
    Ok(settled.with_context(|| format!("cannot record the token in '{path}' for good"))?)
}
