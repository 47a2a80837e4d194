//! Functions that the state directory and the lock directories share: flags and modes, listing, errors.
//! It must not know what a directory holds.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::anyhow;
use rustix::fs::{Dir, Mode, OFlags, RawMode};
use rustix::io::Errno;

use crate::output::exit::Failure;

/// Flags to open a directory, never through a symbolic link.
pub(super) const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Hint for an error that another state directory may avoid.
pub(super) const OTHER_DIR_HINT: &str = "--local=DIR names another directory";

/// Modes of new files in the state directory: for its owner, and for its group if that may write to the directory. A user
/// who may only read gets none: a process that can open a file can flock it, and so block all others.
#[derive(Clone, Copy)]
pub(super) struct Modes {
    pub(super) directory: Mode,
    pub(super) file: Mode,
}

impl Modes {
    pub(super) fn of(directory: RawMode) -> Self {
        let (group, file) = if directory & 0o020 == 0 {
            (0, 0o600)
        } else {
            // The setgid bit gives new files the directory's group.
            (directory & 0o2000 | 0o070, 0o660)
        };
        Self {
            directory: Mode::from_raw_mode(0o700 | group),
            file: Mode::from_raw_mode(file),
        }
    }
}

pub(super) fn cannot_use(path: &Path) -> String {
    format!("cannot use the state directory '{}'", path.display())
}

/// The names in a directory that are valid UTF-8.
pub(super) fn list(directory: &OwnedFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        names.extend(entry.file_name().to_str().ok().map(str::to_owned));
    }
    Ok(names)
}

/// The error of a file that cannot be created or changed, with a hint if another directory may help.
pub(super) fn not_written(tried: &str, error: Errno) -> Failure {
    let helps = [Errno::ACCESS, Errno::PERM, Errno::ROFS].contains(&error);
    Failure {
        hint: helps.then(|| OTHER_DIR_HINT.to_owned()),
        ..anyhow!("{tried}: {error}").into()
    }
}
