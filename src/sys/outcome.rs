//! A report from a process to one that is not its parent: a file in memory (`memfd_create(2)`), which the reader opens
//! through /proc while the process lives, and reads when it has ended. Only its own user, and root, may open it.
//! It must not know the content of the file.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use crate::sys::pidfd::ProcessHandle;

/// The name of the file, as /proc shows it.
const NAME: &str = "dlock-outcome";
/// The link's text in /proc/PID/fd.
const LINK_TEXT: &str = "/memfd:dlock-outcome (deleted)";
/// Maximum length in bytes, far more than is ever written.
const MAX_OUTCOME_BYTES: u64 = 64 * 1024;

/// The file of this process, empty until it ends.
pub(crate) struct OutcomeFile(File);

impl OutcomeFile {
    pub(crate) fn create() -> io::Result<Self> {
        // Where vm.memfd_noexec is 2, a file that might be executed is refused; kernels before 6.3 do not know the flag.
        let made = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL);
        let made = match made {
            Err(Errno::INVAL) => memfd_create(NAME, MemfdFlags::CLOEXEC),
            made => made,
        };
        Ok(Self(made?.into()))
    }

    /// The descriptor that must stay open for it.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn write(&self, text: &[u8]) -> io::Result<()> {
        (&self.0).write_all(text)
    }
}

/// The file of another process, open independently of that process.
pub(crate) struct OtherOutcome(File);

impl OtherOutcome {
    /// Must be called while the process lives: its descriptors end with it.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        let directory = format!("/proc/{pid}/fd");
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            // A descriptor that was closed meanwhile is not the file.
            if std::fs::read_link(&path).is_ok_and(|link| link == Path::new(LINK_TEXT)) {
                return Ok(Self(File::open(path)?));
            }
        }
        Err(Errno::NOENT.into())
    }

    /// The content of the file, complete once the process has ended.
    pub(crate) fn read(self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.0.take(MAX_OUTCOME_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }
}

impl ProcessHandle {
    /// The report that the process leaves when it ends.
    pub(crate) fn outcome(&self) -> io::Result<OtherOutcome> {
        let theirs = OtherOutcome::open(self.id().pid)?;
        // Otherwise its pid may belong to another process by now.
        if self.has_ended() {
            return Err(Errno::SRCH.into());
        }
        Ok(theirs)
    }
}
