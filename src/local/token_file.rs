//! The file of a fence: reads and writes its tokens, and holds the lock that a command inherits.
//! It must not know which tokens are accepted, nor how a file is replaced.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, retry_on_intr};

use crate::core::fence::{HighestTokens, Unreadable};
use crate::output::exit::Failure;
use crate::sys::atomic_file::AtomicFile;

/// Maximum length: far more than a fence needs; keeps a wrong path from filling the memory.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Lowest number for the lock's descriptor in the command: scripts open files of their own under lower numbers, which
/// would close the lock.
const MIN_DESCRIPTOR: i32 = 40;

/// A file of tokens, which may not exist yet.
pub(crate) struct TokenFile(AtomicFile);

/// The lock for changes of the file. It ends with the last process that has the descriptor.
pub(crate) struct Locked<'a> {
    fence: &'a TokenFile,
    /// Not close-on-exec: the command holds the lock in dlock's place.
    _lock: OwnedFd,
}

impl TokenFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        Ok(Self(AtomicFile::open(path)?))
    }

    /// The current content of the file; a file that does not exist has no tokens.
    pub(crate) fn read(&self) -> Result<HighestTokens, Failure> {
        read(&self.0, |why| match why {
            Unreadable::Foreign => {
                "dlock fence creates its file: name a file that does not exist yet"
            }
            Unreadable::Version(_) => "use the newer dlock that wrote it",
            Unreadable::Line(_) | Unreadable::Cut => {
                "restore it; or move it away, and give the new file the next token of each lock: dlock run NAME -- dlock fence FILE"
            }
        })
    }

    /// Waits for the lock; calls `tell` if that takes time.
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

/// The current content of a file of tokens; `hint` is shown if it cannot be parsed.
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

/// Replaces the content of a file of tokens with `seen`, under its lock, and waits until the change survives a power cut.
pub(crate) fn record(file: &AtomicFile, seen: &HighestTokens) -> Result<(), Failure> {
    let replaced = file.replace_locked(seen.to_string().as_bytes());
    replaced.with_context(|| format!("cannot record the token in '{}'", file.path().display()))?;
    settle(file)
}

/// Waits until the file's content survives a power cut: its writer may have been killed before that.
fn settle(file: &AtomicFile) -> Result<(), Failure> {
    let settled = file.sync_dir();
    let path = file.path().display();
    Ok(settled.with_context(|| format!("cannot record the token in '{path}' permanently"))?)
}
