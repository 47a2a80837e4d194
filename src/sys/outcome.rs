//! A report from a process to one that is not its parent: a file in memory (`memfd_create(2)`), which the reader opens
//! through /proc while the process lives, and reads when it has ended. Only its own user, and root, may open it.
//! It must not know the content of the file.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
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
    ///
    /// # Errors
    /// `ENOENT` if the process has no such file of its own. One of another user was made elsewhere: a program that got it by
    /// inheritance, as a setuid one does, or over a socket has not written it.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        let status = std::fs::read(format!("/proc/{pid}/status"))?;
        let directory = format!("/proc/{pid}/fd");
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            // A descriptor that was closed meanwhile is not the file.
            if std::fs::read_link(&path).is_ok_and(|link| link == Path::new(LINK_TEXT)) {
                let file = File::open(path)?;
                if has_only_user(&status, file.metadata()?.uid()) {
                    return Ok(Self(file));
                }
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

/// Whether the real, effective, saved and file system user are all this one, by `proc_pid_status(5)`.
fn has_only_user(status: &[u8], user: u32) -> bool {
    let line = status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Uid:"));
    let line = line.map(String::from_utf8_lossy).unwrap_or_default();
    let mut users = line.split_whitespace().peekable();
    users.peek().is_some() && users.all(|one| one.parse() == Ok(user))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_the_rights_of_two_users_has_not_made_the_file() {
        let status = |users: &str| format!("Name:\tdlock\nUid:\t{users}\nGid:\t7\t7\t7\t7\n");
        let only = |users: &str, user| has_only_user(status(users).as_bytes(), user);
        assert!(only("7\t7\t7\t7", 7) && only("0\t0\t0\t0", 0));
        for users in ["7\t0\t0\t0", "0\t7\t0\t0", "0\t0\t0\t0", ""] {
            assert!(!only(users, 7), "{users}");
        }
        assert!(!has_only_user(b"", 0));
    }
}
