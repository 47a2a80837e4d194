//! A file that is only replaced as a whole: the lock beside it, and a replacement that survives a crash.
//! It must not know the content.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{
    Access, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, fchmod, fchown,
    flock, fstat, fsync, openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Gid, Uid, geteuid};

use crate::core::time::Instant;
use crate::sys::access::check_access;
use crate::sys::clock;
use crate::sys::random::random;
use crate::sys::trust::foreign_writer_by;

/// A file, which may not exist. All access is through its open directory, even if the path is changed meanwhile.
pub(crate) struct AtomicFile {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    /// Mode of new files; `None` means the umask decides.
    mode: Option<Mode>,
}

/// The path names a symbolic link, which a replacement would destroy.
#[derive(Debug)]
pub(crate) struct IsSymlink(PathBuf);

impl IsSymlink {
    /// The text for the `hint:` line.
    pub(crate) const HINT: &str = "name the file that the link points to: dlock replaces the file at each change, and would replace the link";
}

impl fmt::Display for IsSymlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot use '{}': it is a symbolic link",
            self.0.display()
        )
    }
}

impl std::error::Error for IsSymlink {}

impl AtomicFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| anyhow!("cannot use '{}': it names no file", path.display()))?;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            directory: rustix::fs::open(directory, flags, Mode::empty())
                .with_context(|| format!("cannot open the directory '{}'", directory.display()))?,
            name: name.to_owned(),
            mode: None,
        })
    }

    /// The file at `path`, whose directory is open already; new files have this mode.
    pub(crate) fn in_dir(directory: OwnedFd, path: &Path, mode: Mode) -> Self {
        Self {
            path: path.to_owned(),
            directory,
            name: path.file_name().unwrap_or_default().to_owned(),
            mode: Some(mode),
        }
    }

    /// The path as it was given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The content of the file, up to `limit` bytes and one; `None` if the file does not exist.
    pub(crate) fn read(&self, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file()? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read '{}'", self.path.display()))?;
        Ok(Some(bytes))
    }

    fn file(&self) -> Result<Option<File>> {
        // Without waiting: a pipe may have no writer yet.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.directory, &self.name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(IsSymlink(self.path.clone()).into());
            }
            Err(error) => {
                return Err(anyhow!("cannot open '{}': {error}", self.path.display()));
            }
        };
        let status =
            fstat(&file).with_context(|| format!("cannot read '{}'", self.path.display()))?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => Ok(Some(file.into())),
            FileType::Directory => Err(anyhow!(
                "cannot use '{}': it is a directory",
                self.path.display()
            )),
            _ => Err(anyhow!(
                "cannot use '{}': it is not a plain file",
                self.path.display()
            )),
        }
    }

    /// The lock for changes of the file, which lasts until the descriptor is closed. If another process holds it, `wait`
    /// is called with it and must return once it is acquired.
    ///
    /// The lock is on a file beside it, `FILE.lock`, because the file itself is replaced: a waiter for a lock on the old
    /// file would get it while others use the new one. It is never removed, for the same reason.
    pub(crate) fn lock(
        &self,
        mut wait: impl FnMut(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<OwnedFd> {
        let name = self.beside(".lock");
        let mut attempt = || -> Result<OwnedFd, Errno> {
            loop {
                let lock = self.open_lock(&name)?;
                match try_lock(&lock) {
                    Err(Errno::WOULDBLOCK) => wait(&lock)?,
                    locked => locked?,
                }
                // It may have been removed during the wait: then this lock excludes nobody.
                match statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(now) if same(&now, &fstat(&lock)?) => return Ok(lock),
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        };
        attempt().with_context(|| {
            format!(
                "cannot lock '{}'",
                self.path.with_file_name(&name).display()
            )
        })
    }

    /// Opens the lock file, and creates it if it does not exist.
    fn open_lock(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |access| openat(&self.directory, name, flags | access, Mode::empty());
        loop {
            // NFS needs write access for an exclusive lock; elsewhere, read access to another user's file is enough.
            let lock = match open(OFlags::RDWR) {
                Err(Errno::ACCESS) => open(OFlags::RDONLY),
                opened => opened,
            };
            if let Ok(lock) = &lock {
                self.mend_lock(lock)?;
            }
            if !matches!(lock, Err(Errno::NOENT)) {
                return lock;
            }
            match self.make_lock(name) {
                // Another process has created it, or swept ours.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets the mode of an existing lock file when that of the file has changed, or when a process was killed before it
    /// could. Where others may write to the directory, they can have put any file of ours there, so its mode stays.
    fn mend_lock(&self, lock: &OwnedFd) -> Result<(), Errno> {
        if self.mode.is_some() || foreign_writer_by(&fstat(&self.directory)?).is_some() {
            return Ok(());
        }
        let now = fstat(lock)?;
        // A file with content, or with another name, is not one that dlock has made.
        if now.st_size == 0 && now.st_nlink == 1 && now.st_uid == geteuid().as_raw() {
            self.set_lock_mode(lock)?;
        }
        Ok(())
    }

    /// Creates the lock file.
    fn make_lock(&self, name: &OsStr) -> Result<(), Errno> {
        // Where the umask decides who may write, nobody else may open the lock at any time.
        let mode = self.mode.unwrap_or(Mode::from_raw_mode(0o622));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = |name: &OsStr| openat(&self.directory, name, flags, mode);
        if self.mode.is_none() {
            return self.set_lock_mode(&create(name)?);
        }
        // It appears only with its mode set: the umask removes permissions, so a process killed in between would lock all
        // others out.
        let unfinished = self.beside(&format!(".lock.{:x}.new", random()?));
        let lock = create(&unfinished)?;
        let (directory, whole) = (&self.directory, RenameFlags::NOREPLACE);
        let finished = self
            .set_lock_mode(&lock)
            .and_then(|()| renameat_with(directory, &unfinished, directory, name, whole));
        if finished.is_err() {
            let _ = unlinkat(&self.directory, &unfinished, AtFlags::empty());
        }
        match finished {
            // Some FUSE file systems do not support this, and some filters of system calls refuse it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => self.set_lock_mode(&create(name)?),
            finished => finished,
        }
    }

    /// Lets only those open the lock file who may write the file: holding the lock keeps all others out.
    fn set_lock_mode(&self, lock: &OwnedFd) -> Result<(), Errno> {
        if let Some(mode) = self.mode {
            return fchmod(lock, mode);
        }
        let now = fstat(lock)?;
        let file = match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(file) => file,
            Err(Errno::NOENT) => now,
            Err(error) => return Err(error),
        };
        let mut writers = file.st_mode & 0o222;
        if file.st_gid != now.st_gid
            && fchown(lock, None, Some(Gid::from_raw(file.st_gid))).is_err()
        {
            writers &= !0o020;
        }
        let mode = 0o600 | writers | writers << 1;
        if now.st_mode & 0o7777 != mode {
            fchmod(lock, Mode::from_raw_mode(mode))?;
        }
        if file.st_uid != now.st_uid {
            // The owner may write the file, too; only root can give the lock file away.
            let _ = fchown(lock, Some(Uid::from_raw(file.st_uid)), None);
        }
        Ok(())
    }

    fn beside(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// Replaces the content with `bytes`, so that a reader sees the old or the new content as a whole, even after a
    /// crash. Only under the lock; [`Self::sync_dir`] makes it durable.
    ///
    /// # Errors
    /// The cause alone; the caller adds what was tried.
    pub(crate) fn replace_locked(&self, bytes: &[u8]) -> Result<()> {
        let new = self.beside(".new");
        // Under the lock, only a dead process can have left it.
        match unlinkat(&self.directory, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(anyhow!(error)),
        }
        self.replace(&new, bytes)
    }

    /// The same without the lock: of several concurrent calls, the last one wins.
    pub(crate) fn replace_unlocked(&self, bytes: &[u8]) -> Result<()> {
        self.replace(&self.new_name()?, bytes)
    }

    /// A name beside the file that no other process uses.
    fn new_name(&self) -> Result<OsString> {
        let random = random().context("cannot read random bytes")?;
        Ok(self.beside(&format!(".{random:x}.new")))
    }

    fn replace(&self, new: &OsStr, bytes: &[u8]) -> Result<()> {
        let before = self.file()?;
        let replace = || -> Result<(), Errno> {
            self.check_permission(before.is_some())?;
            let mut file = self.make(new)?;
            if let Some(before) = &before {
                self.copy_ownership(&file, before)?;
            }
            let written = file.write_all(bytes);
            written
                .and_then(|()| file.sync_all())
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            renameat(&self.directory, new, &self.directory, &self.name)
        };
        replace().map_err(|error| {
            let _ = unlinkat(&self.directory, new, AtFlags::empty());
            anyhow!(error)
        })
    }

    /// A rename needs no permission on the file that it replaces, but a read-only file is meant to stay.
    fn check_permission(&self, there: bool) -> Result<(), Errno> {
        if there {
            check_access(&self.directory, self.name.as_ref(), Access::WRITE_OK)?;
        }
        Ok(())
    }

    fn make(&self, new: &OsStr) -> Result<File, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = self.mode.unwrap_or(Mode::from_raw_mode(0o666));
        let file = openat(&self.directory, new, flags, mode)?;
        if let Some(mode) = self.mode {
            fchmod(&file, mode)?;
        }
        Ok(file.into())
    }

    /// Gives the new file the owner, the group and the permissions of the old one, as far as this process may, unless the
    /// old one is a stranger's: in a directory such as /tmp anybody can have put it there, and would then own ours.
    fn copy_ownership(&self, new: &File, old: &File) -> Result<(), Errno> {
        let (directory, old) = (fstat(&self.directory)?, fstat(old)?);
        let known = [0, geteuid().as_raw(), directory.st_uid].contains(&old.st_uid);
        let shared = directory.st_mode & 0o022 == 0o020 && directory.st_gid == old.st_gid;
        if !known && !shared {
            return Ok(());
        }
        let _ = fchown(new, None, Some(Gid::from_raw(old.st_gid)));
        let _ = fchown(new, Some(Uid::from_raw(old.st_uid)), None);
        // Without the setuid, setgid and sticky bits.
        fchmod(new.as_fd(), Mode::from_raw_mode(old.st_mode & 0o777))
    }

    /// Waits until the file's content survives a power cut: its writer may have been killed before that.
    pub(crate) fn sync_dir(&self) -> Result<(), Errno> {
        fsync(&self.directory)
    }

    /// Tries all that a replacement needs, and changes nothing.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let before = self.file()?;
        let new = self.new_name()?;
        let attempt = || -> Result<(), Errno> {
            self.check_permission(before.is_some())?;
            let directory = fstat(&self.directory)?;
            let us = geteuid();
            // unlink(2), EPERM: in a sticky directory such as /tmp only the owner may replace a file.
            let foreign = |owner: u32| owner != us.as_raw() && !us.is_root();
            if let Some(before) = &before
                && Mode::from_raw_mode(directory.st_mode).contains(Mode::SVTX)
                && foreign(directory.st_uid)
                && foreign(fstat(before)?.st_uid)
            {
                return Err(Errno::PERM);
            }
            let mut file = self.make(&new)?;
            let written = file.write_all(b"\n");
            unlinkat(&self.directory, &new, AtFlags::empty())?;
            written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        attempt().with_context(|| format!("cannot write '{}'", self.path.display()))
    }
}

/// Interval between two attempts of [`lock_until`].
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits for a lock, for [`AtomicFile::lock`]; after `give_up_at` the error is `WOULDBLOCK`.
pub(crate) fn lock_until(lock: &OwnedFd, give_up_at: Instant) -> Result<(), Errno> {
    loop {
        match try_lock(lock) {
            Err(Errno::WOULDBLOCK) if clock::now() < give_up_at => {
                std::thread::sleep(LOCK_POLL_INTERVAL);
            }
            locked => return locked,
        }
    }
}

/// Acquires the lock if it is free; else the error is `WOULDBLOCK`.
fn try_lock(lock: &OwnedFd) -> Result<(), Errno> {
    retry_on_intr(|| flock(lock, FlockOperation::NonBlockingLockExclusive))
}

/// Whether both are the same file.
pub(crate) fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    /// The mode of the lock file while FILE has this mode; `None` if FILE does not exist.
    fn lock_mode(directory: &Path, mode: Option<u32>) -> u32 {
        let path = directory.join("file");
        let _ = fs::remove_file(&path);
        if let Some(mode) = mode {
            fs::write(&path, "x").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let file = AtomicFile::open(&path).unwrap();
        drop(file.lock(|_| Err(Errno::WOULDBLOCK)).unwrap());
        fs::metadata(directory.join("file.lock")).unwrap().mode() & 0o7777
    }

    #[test]
    fn only_writers_of_the_file_may_open_its_lock() {
        let directory = std::env::temp_dir().join(format!("dlock-atomic-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let lock = directory.join("file.lock");
        for (mode, expected) in [
            (0o644, 0o600),
            (0o664, 0o660),
            (0o666, 0o666),
            (0o600, 0o600),
        ] {
            assert_eq!(lock_mode(&directory, Some(mode)), expected, "{mode:o}");
            fs::remove_file(&lock).unwrap();
        }
        let mode = lock_mode(&directory, None);
        assert!(
            mode & 0o400 != 0 && mode & 0o444 == (mode & 0o222) << 1,
            "{mode:o}"
        );
        // The directory is ours alone: the mode follows that of the file.
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(lock_mode(&directory, Some(0o666)), 0o666);
        // Here, others can have put it there.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(lock_mode(&directory, Some(0o666)), 0o640);
        fs::remove_file(&lock).unwrap();
        assert_eq!(lock_mode(&directory, Some(0o666)), 0o666, "a new one");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        fs::remove_dir_all(directory).unwrap();
    }
}
