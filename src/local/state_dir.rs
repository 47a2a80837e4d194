//! The state directory: found or created, and checked before anything in it is trusted.
//! It must not know what a lock's own directory contains.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, fchmod, flock, fstat,
    fstatfs, fsync, mkdirat, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::dir_util::{DIRECTORY_FLAGS, Modes, OTHER_DIR_HINT, cannot_use, list, not_written};
use super::lock_dir::LockDir;
use super::trusted::{check_above, check_lock_dir, check_state_dir};
use crate::core::local::{
    MAX_DIRECTORY_BYTES, directory_of, is_in_memory, is_unfinished_directory, name_of,
    network_filesystem, unfinished_directory,
};
use crate::core::name::LockName;
use crate::output::exit::{Failure, OrFail as _};
use crate::sys::clock;
use crate::sys::random::random;

/// The open state directory.
pub(super) struct StateDir {
    path: PathBuf,
    directory: OwnedFd,
    rights: Modes,
    /// Its owner, group and mode as they were checked.
    status: Stat,
}

impl StateDir {
    /// Opens the directory, if it exists.
    pub(super) fn find(path: &Path) -> Result<Option<Self>, Failure> {
        // With a slash at the end, open(2) would follow a link.
        let path: PathBuf = path.components().collect();
        let directory = match openat(CWD, &path, DIRECTORY_FLAGS, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => {
                check_above(&path, None)?;
                return Ok(None);
            }
            Err(error) => return Err(not_opened(&path, error)),
        };
        let status = fstat(&directory).with_context(|| cannot_use(&path))?;
        check_state_dir(&path, &status)?;
        check_above(&path, Some(&status))?;
        let file_system = fstatfs(&directory).with_context(|| cannot_use(&path))?;
        if let Some(kind) = network_filesystem(file_system.f_type) {
            return Err(anyhow!(
                "{}: it is on {kind}, where a lock can vanish unnoticed while its command runs (the server restarts, or loses contact with this machine)",
                cannot_use(&path)
            ))
            .or_hint("--local=DIR names a directory on a disk of this machine; locks between machines are in etcd");
        }
        Ok(Some(Self {
            path,
            directory,
            rights: Modes::of(status.st_mode),
            status,
        }))
    }

    /// Opens the directory; creates it if it does not exist.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        if let Some(root) = Self::find(path)? {
            return Ok(root);
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("cannot make the state directory '{}'", path.display()))
            .or_hint(OTHER_DIR_HINT)?;
        // Otherwise a power cut could remove the directory, and the tokens with it. The directories above it are
        // permanent, or not ours.
        if let Ok(above) = openat(CWD, path.join(".."), DIRECTORY_FLAGS, Mode::empty()) {
            let _ = fsync(&above);
        }
        let root = Self::find(path)?;
        Ok(root.ok_or_else(|| anyhow!("{}: another process removed it", cannot_use(path)))?)
    }

    /// Records a text as a lock does its token, without a trace; returns the time until the disk had it.
    pub(super) fn try_record(&self) -> Result<Duration, Failure> {
        let attempt = || -> Result<Duration, Errno> {
            let name = unfinished_directory(random()?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat(&self.directory, &name, flags, self.rights.file)?;
            unlinkat(&self.directory, &name, AtFlags::empty())?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let begun_at = clock::now();
            rustix::io::write(&file, b"1\n")?;
            fsync(&file)?;
            Ok(clock::now().since(begun_at))
        };
        let tried = format!("cannot write in '{}'", self.path.display());
        attempt().map_err(|error| not_written(&tried, error))
    }

    /// Whether the content ends with the machine.
    pub(super) fn is_in_memory(&self) -> Result<bool, Failure> {
        let file_system = fstatfs(&self.directory).with_context(|| cannot_use(&self.path))?;
        Ok(is_in_memory(file_system.f_type))
    }

    /// The directory of a lock, if it exists.
    pub(super) fn lock_dir(&self, name: &LockName) -> Result<Option<LockDir>, Failure> {
        let Some(lock_dir) = self.open_lock_dir(name)? else {
            return Ok(None);
        };
        self.check(&lock_dir)?;
        Ok(Some(lock_dir))
    }

    fn check(&self, lock_dir: &LockDir) -> Result<(), Failure> {
        let status = fstat(&lock_dir.directory).with_context(|| lock_dir.cannot_use())?;
        check_lock_dir(&self.path, &lock_dir.path, &status, &self.status)
    }

    fn open_lock_dir(&self, name: &LockName) -> Result<Option<LockDir>, Failure> {
        let directory = directory_name(name)?;
        let path = self.path.join(&directory);
        match openat(&self.directory, &directory, DIRECTORY_FLAGS, Mode::empty()) {
            Ok(directory) => Ok(Some(LockDir {
                path,
                directory,
                rights: self.rights,
                name: name.clone(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(not_opened(&path, error)),
        }
    }

    /// The directory of a lock, created if it does not exist.
    pub(super) fn make_lock_dir(&self, name: &LockName) -> Result<LockDir, Failure> {
        if let Some(lock_dir) = self.open_lock_dir(name)? {
            self.mend(&lock_dir);
            self.check(&lock_dir)?;
            return Ok(lock_dir);
        }
        let directory = directory_name(name)?;
        let tried = || {
            format!(
                "cannot make the directory '{}'",
                self.path.join(&directory).display()
            )
        };
        self.sweep().with_context(tried)?;
        match self.make_directory(&directory) {
            Err(Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error).with_context(tried).or_hint(OTHER_DIR_HINT),
        }
        fsync(&self.directory).with_context(tried)?;
        let lock_dir = self.open_lock_dir(name)?;
        let lock_dir =
            lock_dir.ok_or_else(|| anyhow!("{}: another process removed it", tried()))?;
        self.mend(&lock_dir);
        self.check(&lock_dir)?;
        Ok(lock_dir)
    }

    /// Creates a directory that appears under its name only with its mode set: the umask removes permissions, so a
    /// process killed in between would lock all others out.
    fn make_directory(&self, name: &str) -> Result<(), Errno> {
        loop {
            let unfinished = unfinished_directory(random()?);
            mkdirat(&self.directory, &unfinished, self.rights.directory)?;
            let finish = || {
                let directory =
                    openat(&self.directory, &unfinished, DIRECTORY_FLAGS, Mode::empty())?;
                // The flock lasts for as long as this process lives: see `sweep`.
                flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
                fchmod(&directory, self.rights.directory)?;
                // An existing directory must not be replaced, not even an empty one: another process may have opened it.
                let whole = RenameFlags::NOREPLACE;
                renameat_with(&self.directory, &unfinished, &self.directory, name, whole)
            };
            let finished = finish();
            if finished.is_err() {
                let _ = unlinkat(&self.directory, &unfinished, AtFlags::REMOVEDIR);
            }
            match finished {
                // Another process swept it before it was locked.
                Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
                // Some FUSE file systems do not support this, and some filters of system calls refuse it; `mend` sets the
                // mode unless this process dies.
                Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                    return mkdirat(&self.directory, name, self.rights.directory);
                }
                finished => return finished,
            }
        }
    }

    /// Removes unfinished directories of killed processes of this user. Those of others block nobody, and others remove
    /// them.
    fn sweep(&self) -> Result<(), Errno> {
        let names = list(&self.directory)?;
        for name in names.iter().filter(|name| is_unfinished_directory(name)) {
            if let Ok(directory) = openat(&self.directory, name, DIRECTORY_FLAGS, Mode::empty())
                && fstat(&directory).is_ok_and(|status| status.st_uid == geteuid().as_raw())
                && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let _ = unlinkat(&self.directory, name, AtFlags::REMOVEDIR);
            }
        }
        Ok(())
    }

    /// Sets the mode of a directory of our own, unless everybody could write to it and may have done so.
    fn mend(&self, lock_dir: &LockDir) {
        let is_wrong = |status: Stat| {
            status.st_uid == geteuid().as_raw()
                && status.st_mode & 0o002 == 0
                && Mode::from_raw_mode(status.st_mode) != self.rights.directory
        };
        if fstat(&lock_dir.directory).is_ok_and(is_wrong) {
            let _ = fchmod(&lock_dir.directory, self.rights.directory);
        }
    }

    /// The locks that have a directory, in the order of the directories' names.
    pub(super) fn names(&self) -> Result<Vec<LockName>, Failure> {
        let mut directories = list(&self.directory).with_context(|| cannot_use(&self.path))?;
        directories.sort_unstable();
        Ok(directories
            .iter()
            .filter_map(|name| name_of(name))
            .collect())
    }
}

fn directory_name(name: &LockName) -> Result<String, Failure> {
    let directory = directory_of(name);
    if directory.len() > MAX_DIRECTORY_BYTES {
        return Err(anyhow!(
            "cannot use the lock name '{name}' on this machine: a file's name has at most {MAX_DIRECTORY_BYTES} bytes, and this one would have {}",
            directory.len()
        ))
        .or_hint("each byte takes three, except ASCII letters, digits and ._~@:+=,-");
    }
    Ok(directory)
}

fn not_opened(path: &Path, error: Errno) -> Failure {
    let now = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    let kind = now.map(|status| FileType::from_raw_mode(status.st_mode));
    let (why, hint) = match (error, kind) {
        (Errno::NOTDIR | Errno::LOOP, Ok(FileType::Symlink)) => (
            "it is a symbolic link".to_owned(),
            "name the directory that it points to",
        ),
        _ => (error.to_string(), OTHER_DIR_HINT),
    };
    Failure {
        hint: Some(hint.to_owned()),
        ..anyhow!("{}: {why}", cannot_use(path)).into()
    }
}
