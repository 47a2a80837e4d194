//! The file of a fence: its lock, and its replacement that no crash can tear.
//! It must not know who is let in, nor why.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use rustix::fs::{
    Access, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, accessat, fchmod, fchown, flock,
    fstat, fsync, openat, renameat, statat, unlinkat,
};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, retry_on_intr};
use rustix::process::{Gid, Uid};

use crate::core::fence::{Seen, Unreadable};
use crate::exit::{Failure, OrFail as _};

/// Far more than all names of a fence can fill; keeps a wrong path from filling the memory.
const LONGEST: u64 = 16 * 1024 * 1024;

/// The first number for the lock's descriptor in the command: scripts open files of their own under lower ones, and
/// would close the lock by that.
const OUT_OF_THE_WAY: i32 = 40;

/// A file of tokens, there or not. All that is done to it goes through its folder, whatever its path comes to mean.
pub(crate) struct Fence {
    path: PathBuf,
    folder: OwnedFd,
    name: OsString,
}

/// The right to change the file. It ends with the last process that has the descriptor.
///
/// The lock is on a file beside it, `FILE.lock`, because the file itself is replaced: whoever waits for a lock on the old
/// one would get it while the command that replaced it still runs. It is never removed, for the same reason.
pub(crate) struct Locked<'a> {
    fence: &'a Fence,
    /// Not close-on-exec: the command holds the lock in dlock's place.
    _lock: OwnedFd,
}

impl Fence {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let name = path
            .file_name()
            .ok_or_else(|| anyhow!("cannot use '{}': it names no file", path.display()))?;
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            folder: rustix::fs::open(folder, flags, Mode::empty())
                .with_context(|| format!("cannot open the folder '{}'", folder.display()))?,
            name: name.to_owned(),
        })
    }

    /// What the file says at this moment; a file that is not there has seen nothing.
    pub(crate) fn read(&self) -> Result<Seen, Failure> {
        let Some(file) = self.file()? else {
            return Ok(Seen::default());
        };
        let mut bytes = Vec::new();
        let read = file.take(LONGEST + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read '{}'", self.path.display()))?;
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
                ..anyhow!("cannot use '{}': {why}", self.path.display()).into()
            }
        })
    }

    fn file(&self) -> Result<Option<File>, Failure> {
        // Without waiting: a pipe has no other end yet.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.folder, &self.name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(anyhow!("cannot use '{}': it is a symbolic link", self.path.display()))
                    .or_hint("name the file that it points to: the file is replaced at every change, and that would be the link");
            }
            Err(error) => {
                return Err(anyhow!("cannot open '{}': {error}", self.path.display()).into());
            }
        };
        let status =
            fstat(&file).with_context(|| format!("cannot read '{}'", self.path.display()))?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => Ok(Some(file.into())),
            FileType::Directory => {
                Err(anyhow!("cannot use '{}': it is a directory", self.path.display()).into())
            }
            _ => Err(anyhow!(
                "cannot use '{}': it is not a plain file",
                self.path.display()
            )
            .into()),
        }
    }

    /// Waits until nobody else has the lock; `tell` is called when that takes time.
    pub(crate) fn lock(&self, tell: impl Fn()) -> Result<Locked<'_>, Failure> {
        let name = self.beside(".lock");
        let attempt = || -> Result<OwnedFd, Errno> {
            loop {
                let lock = self.open_lock(&name)?;
                if let Err(Errno::WOULDBLOCK) =
                    flock(&lock, FlockOperation::NonBlockingLockExclusive)
                {
                    tell();
                }
                retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))?;
                // Somebody may have removed it while we waited: then this lock bars nobody.
                match statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(now) if same(&now, &fstat(&lock)?) => {
                        let kept = fcntl_dupfd_cloexec(&lock, OUT_OF_THE_WAY)?;
                        fcntl_setfd(&kept, FdFlags::empty())?;
                        return Ok(kept);
                    }
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        };
        let lock = attempt().with_context(|| {
            format!(
                "cannot lock '{}'",
                self.path.with_file_name(&name).display()
            )
        })?;
        Ok(Locked {
            fence: self,
            _lock: lock,
        })
    }

    fn open_lock(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |access| {
            openat(
                &self.folder,
                name,
                flags | access,
                Mode::from_raw_mode(0o666),
            )
        };
        // NFS wants to write where an exclusive lock is to be; elsewhere, reading another user's file is enough.
        match open(OFlags::RDWR) {
            Err(Errno::ACCESS) => open(OFlags::RDONLY),
            opened => opened,
        }
    }

    fn beside(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }
}

fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

impl Locked<'_> {
    /// Puts `seen` in the place of what the file says, so that whoever reads it at any moment, also after a crash, sees
    /// one or the other as a whole; and waits until it will be there after a power cut.
    pub(crate) fn record(&self, seen: &Seen) -> Result<(), Failure> {
        let Fence { path, folder, name } = self.fence;
        let new = self.fence.beside(".new");
        let before = self.fence.file()?;
        let replace = || -> Result<(), Errno> {
            // The rename below asks for no right to the file that it replaces, but who made it read-only meant that.
            if before.is_some() {
                accessat(folder, name, Access::WRITE_OK, AtFlags::EACCESS)?;
            }
            // Under the lock nobody but a dead one can have left it.
            match unlinkat(folder, &new, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut file = File::from(openat(folder, &new, flags, Mode::from_raw_mode(0o666))?);
            if let Some(before) = &before {
                resemble(&file, before)?;
            }
            let written = file.write_all(seen.to_string().as_bytes());
            written
                .and_then(|()| file.sync_all())
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            renameat(folder, &new, folder, name)
        };
        if let Err(error) = replace() {
            let _ = unlinkat(folder, &new, AtFlags::empty());
            return Err(anyhow!("cannot record the token in '{}': {error}", path.display()).into());
        }
        self.settle()
    }

    /// Waits until what the file says will be there after a power cut: who wrote it may have been killed before that.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        let path = &self.fence.path;
        Ok(fsync(&self.fence.folder)
            .with_context(|| format!("cannot record the token in '{}' for good", path.display()))?)
    }
}

/// Lets those use the new file who could use the old one, as far as we may.
fn resemble(new: &File, old: &File) -> Result<(), Errno> {
    let old = fstat(old)?;
    let _ = fchown(new, None, Some(Gid::from_raw(old.st_gid)));
    let _ = fchown(new, Some(Uid::from_raw(old.st_uid)), None);
    fchmod(new.as_fd(), Mode::from_raw_mode(old.st_mode))
}
