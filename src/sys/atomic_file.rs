//! A file that is only ever seen whole: the lock beside it, and its replacement that no crash can tear.
//! It must not know what stands in it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{
    Access, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, accessat, fchmod,
    fchown, flock, fstat, fsync, openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Gid, Uid, geteuid};

use crate::sys::random::random;

/// A file that is there or not. All that is done to it goes through its folder, whatever its path comes to mean.
pub(crate) struct AtomicFile {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    /// Of what is made anew, whatever the umask says; else as the umask has it.
    mode: Option<Mode>,
}

/// The path names a symbolic link, which a replacement would destroy.
#[derive(Debug)]
pub(crate) struct IsSymlink(PathBuf);

impl IsSymlink {
    /// A way out, for the `hint:` line.
    pub(crate) const HINT: &str = "name the file that it points to: the file is replaced at every change, and that would be the link";
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
                .with_context(|| format!("cannot open the folder '{}'", directory.display()))?,
            name: name.to_owned(),
            mode: None,
        })
    }

    /// The file at `path`, whose folder is open already; what is made anew has this mode.
    pub(crate) fn in_dir(directory: OwnedFd, path: &Path, mode: Mode) -> Self {
        Self {
            path: path.to_owned(),
            directory,
            name: path.file_name().unwrap_or_default().to_owned(),
            mode: Some(mode),
        }
    }

    /// As it was given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds at this moment, up to `limit` bytes and one; `None` when it is not there.
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
        // Without waiting: a pipe has no other end yet.
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

    /// The right to change the file, for as long as anybody has the descriptor. `wait` is called with it when somebody else
    /// has the right, and comes back when it is ours.
    ///
    /// The lock is on a file beside it, `FILE.lock`, because the file itself is replaced: whoever waits for a lock on the
    /// old one would get it while others use the new one already. It is never removed, for the same reason.
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
                // Somebody may have removed it while we waited: then this lock bars nobody.
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

    fn open_lock(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        if let Some(mode) = self.mode {
            self.make_lock(name, mode)?;
        }
        let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |access| self.create(name, flags | access);
        // NFS wants to write where an exclusive lock is to be; elsewhere, reading another user's file is enough.
        match open(OFlags::RDWR) {
            Err(Errno::ACCESS) => open(OFlags::RDONLY),
            opened => opened,
        }
    }

    /// Makes the file that is locked, if it is not there, so that nobody sees it before it has its mode: one that is killed
    /// in between would else bar all others from it, as the umask takes rights away.
    fn make_lock(&self, name: &OsStr, mode: Mode) -> Result<(), Errno> {
        while let Err(Errno::NOENT) = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            let unfinished = self.beside(&format!(".lock.{:x}.new", random()?));
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat(&self.directory, &unfinished, flags, mode)?;
            let (directory, whole) = (&self.directory, RenameFlags::NOREPLACE);
            let finished = fchmod(&file, mode)
                .and_then(|()| renameat_with(directory, &unfinished, directory, name, whole));
            if finished.is_err() {
                let _ = unlinkat(&self.directory, &unfinished, AtFlags::empty());
            }
            match finished {
                // Somebody else has made it, or swept ours.
                Err(Errno::EXIST | Errno::NOENT) => {}
                // The file system cannot do that, as some of FUSE.
                Err(Errno::INVAL | Errno::NOSYS) => return Ok(()),
                finished => return finished,
            }
        }
        Ok(())
    }

    /// Opens a file that may be made by that.
    fn create(&self, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mode = self.mode.unwrap_or(Mode::from_raw_mode(0o666));
        let file = openat(&self.directory, name, flags, mode)?;
        if let Some(mode) = self.mode {
            // Another user's has its mode already.
            let _ = fchmod(&file, mode);
        }
        Ok(file)
    }

    fn beside(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// Puts `bytes` in the place of what the file holds, so that whoever reads it at any moment, also after a crash, sees
    /// one or the other as a whole. Under the lock only; [`Self::settle`] makes it last.
    ///
    /// # Errors
    /// With the cause alone, for the caller to say what was tried.
    pub(crate) fn replace_locked(&self, bytes: &[u8]) -> Result<()> {
        let new = self.beside(".new");
        // Under the lock nobody but a dead one can have left it.
        match unlinkat(&self.directory, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(anyhow!(error)),
        }
        self.replace(&new, bytes)
    }

    /// The same without the lock: of several at the same time, the last one stays.
    pub(crate) fn replace_unlocked(&self, bytes: &[u8]) -> Result<()> {
        self.replace(&self.new_name()?, bytes)
    }

    /// A name beside the file that nobody else uses.
    fn new_name(&self) -> Result<OsString> {
        let random = random().context("no random number")?;
        Ok(self.beside(&format!(".{random:x}.new")))
    }

    fn replace(&self, new: &OsStr, bytes: &[u8]) -> Result<()> {
        let before = self.file()?;
        let replace = || -> Result<(), Errno> {
            self.check_permission(before.is_some())?;
            let mut file = self.make(new)?;
            if let Some(before) = &before {
                copy_ownership(&file, before)?;
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

    /// A rename asks for no right to the file that it replaces, but who made it read-only meant that.
    fn check_permission(&self, there: bool) -> Result<(), Errno> {
        if there {
            accessat(
                &self.directory,
                &self.name,
                Access::WRITE_OK,
                AtFlags::EACCESS,
            )?;
        }
        Ok(())
    }

    fn make(&self, new: &OsStr) -> Result<File, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        self.create(new, flags).map(File::from)
    }

    /// Waits until what the file holds will be there after a power cut: who wrote it may have been killed before that.
    pub(crate) fn sync_dir(&self) -> Result<(), Errno> {
        fsync(&self.directory)
    }

    /// Tries what a replacement needs, and changes nothing.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let before = self.file()?;
        let new = self.new_name()?;
        let attempt = || -> Result<(), Errno> {
            self.check_permission(before.is_some())?;
            let directory = fstat(&self.directory)?;
            let us = geteuid();
            // unlink(2), EPERM: in a folder such as /tmp nobody but its owner replaces a file.
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

/// Takes the lock if nobody has it; else that is `WOULDBLOCK`.
pub(crate) fn try_lock(lock: &OwnedFd) -> Result<(), Errno> {
    retry_on_intr(|| flock(lock, FlockOperation::NonBlockingLockExclusive))
}

/// Whether both are the same file.
pub(crate) fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Lets those use the new file who could use the old one, as far as we may.
fn copy_ownership(new: &File, old: &File) -> Result<(), Errno> {
    let old = fstat(old)?;
    let _ = fchown(new, None, Some(Gid::from_raw(old.st_gid)));
    let _ = fchown(new, Some(Uid::from_raw(old.st_uid)), None);
    fchmod(new.as_fd(), Mode::from_raw_mode(old.st_mode))
}
