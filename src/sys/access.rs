//! The check of a permission before it is needed.
//! It must not know what the permission is for.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Access, AtFlags, accessat};
use rustix::io::Errno;

/// Whether this process may access the file, `faccessat(2)`.
///
/// # Errors
/// `EPERM`, beside those of the call: a filter of system calls refuses the check itself, and nothing is known.
pub(crate) fn check_access(directory: impl AsFd, path: &Path, access: Access) -> Result<(), Errno> {
    match accessat(&directory, path, access, AtFlags::EACCESS) {
        // Container runtimes from before Linux 5.8 do not know faccessat2 and refuse it. The older call has no flags, and
        // means the real user instead of the effective one: dlock has only one.
        Err(Errno::PERM) => accessat(&directory, path, access, AtFlags::empty()),
        checked => checked,
    }
}
