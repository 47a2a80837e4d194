//! The state folder: found or made, and looked at before anything in it is trusted.
//! It must not know what a lock's own folder holds.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RawMode, RenameFlags, Stat, fchmod,
    flock, fstat, fstatfs, fsync, mkdirat, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::lane::{Lane, random};
use crate::core::local::{
    LONGEST, folder_of, is_unfinished_folder, name_of, network, unfinished_folder,
};
use crate::core::name::LockName;
use crate::exit::{Failure, OrFail as _};

/// How a folder is opened that nobody may have put a link in the place of.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What may help when nothing can be written.
const ELSEWHERE: &str = "--local=DIR names another folder";

/// The state folder, open.
pub(super) struct Root {
    path: PathBuf,
    folder: OwnedFd,
    rights: Rights,
}

/// Who may use what is made in the folder: its owner, and the group if it may write to the folder. Nobody who may only
/// look: whoever can open a file can put a flock on it, and bar everybody by that.
#[derive(Clone, Copy)]
pub(super) struct Rights {
    pub(super) folder: Mode,
    pub(super) file: Mode,
}

impl Rights {
    fn of(folder: RawMode) -> Self {
        let (group, file) = if folder & 0o020 == 0 {
            (0, 0o600)
        } else {
            // The group's bit (setgid) makes what is in a folder its group's.
            (folder & 0o2000 | 0o070, 0o660)
        };
        Self {
            folder: Mode::from_raw_mode(0o700 | group),
            file: Mode::from_raw_mode(file),
        }
    }
}

impl Root {
    /// The folder, if it is there.
    pub(super) fn find(path: &Path) -> Result<Option<Self>, Failure> {
        // A slash at the end would follow a link.
        let path: PathBuf = path.components().collect();
        let folder = match openat(CWD, &path, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(not_opened(&path, error)),
        };
        let status = fstat(&folder).with_context(|| cannot_use(&path))?;
        trust(&path, &status)?;
        let file_system = fstatfs(&folder).with_context(|| cannot_use(&path))?;
        if let Some(kind) = network(file_system.f_type) {
            return Err(anyhow!(
                "{}: it is on {kind}, where a lock can vanish while its command runs (the server is restarted, or does not hear of this machine for a while), and nobody would know",
                cannot_use(&path)
            ))
            .or_hint("--local=DIR names a folder on a disk of this machine; for locks between machines there is etcd");
        }
        Ok(Some(Self {
            path,
            folder,
            rights: Rights::of(status.st_mode),
        }))
    }

    /// The folder, made when it is not there.
    pub(super) fn make(path: &Path) -> Result<Self, Failure> {
        if let Some(root) = Self::find(path)? {
            return Ok(root);
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("cannot make the state folder '{}'", path.display()))
            .or_hint(ELSEWHERE)?;
        // Else a power cut could take the folder, and the tokens with it. The folders above are there for good, or not ours.
        if let Ok(above) = openat(CWD, path.join(".."), FOLDER, Mode::empty()) {
            let _ = fsync(&above);
        }
        let root = Self::find(path)?;
        Ok(root.ok_or_else(|| anyhow!("{}: it was removed again", cannot_use(path)))?)
    }

    /// The folder of a lock, if it is there.
    pub(super) fn lane(&self, name: &LockName) -> Result<Option<Lane>, Failure> {
        let folder = folder_name(name)?;
        let path = self.path.join(&folder);
        match openat(&self.folder, &folder, FOLDER, Mode::empty()) {
            Ok(folder) => Ok(Some(Lane::new(path, folder, self.rights, name))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(not_opened(&path, error)),
        }
    }

    /// The folder of a lock, made when it is not there.
    pub(super) fn make_lane(&self, name: &LockName) -> Result<Lane, Failure> {
        if let Some(lane) = self.lane(name)? {
            self.mend(&lane);
            return Ok(lane);
        }
        let folder = folder_name(name)?;
        let tried = || {
            format!(
                "cannot make the folder '{}'",
                self.path.join(&folder).display()
            )
        };
        self.sweep().with_context(tried)?;
        match self.make_folder(&folder) {
            Err(Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error).with_context(tried).or_hint(ELSEWHERE),
        }
        fsync(&self.folder).with_context(tried)?;
        let lane = self.lane(name)?;
        let lane = lane.ok_or_else(|| anyhow!("{}: it was removed again", tried()))?;
        self.mend(&lane);
        Ok(lane)
    }

    /// Makes a folder that nobody sees before it has its mode: one that is killed in between would else bar all others
    /// from it, as the umask takes rights away.
    fn make_folder(&self, name: &str) -> Result<(), Errno> {
        loop {
            let unfinished = unfinished_folder(random()?);
            mkdirat(&self.folder, &unfinished, self.rights.folder)?;
            let finish = || {
                let folder = openat(&self.folder, &unfinished, FOLDER, Mode::empty())?;
                // For as long as we live: see `sweep`.
                flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
                fchmod(&folder, self.rights.folder)?;
                // One that is there must not be replaced, not even an empty one: somebody may have opened it.
                let whole = RenameFlags::NOREPLACE;
                renameat_with(&self.folder, &unfinished, &self.folder, name, whole)
            };
            let finished = finish();
            if finished.is_err() {
                let _ = unlinkat(&self.folder, &unfinished, AtFlags::REMOVEDIR);
            }
            match finished {
                // Somebody has swept it before it was locked.
                Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
                // The file system cannot do that, as some of FUSE; `mend` makes up for it where we live on.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    return mkdirat(&self.folder, name, self.rights.folder);
                }
                finished => return finished,
            }
        }
    }

    /// Removes what we have left unfinished when we were killed. Of others it bars nobody, and they remove it themselves.
    fn sweep(&self) -> Result<(), Errno> {
        let names = list(&self.folder)?;
        for name in names.iter().filter(|name| is_unfinished_folder(name)) {
            if let Ok(folder) = openat(&self.folder, name, FOLDER, Mode::empty())
                && fstat(&folder).is_ok_and(|status| status.st_uid == geteuid().as_raw())
                && flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let _ = unlinkat(&self.folder, name, AtFlags::REMOVEDIR);
            }
        }
        Ok(())
    }

    /// Gives a folder of our own the mode that it should have.
    fn mend(&self, lane: &Lane) {
        let is_wrong = |status: Stat| {
            status.st_uid == geteuid().as_raw()
                && Mode::from_raw_mode(status.st_mode) != self.rights.folder
        };
        if fstat(lane.folder()).is_ok_and(is_wrong) {
            let _ = fchmod(lane.folder(), self.rights.folder);
        }
    }

    /// The locks that have a folder, in the order of their names there.
    pub(super) fn names(&self) -> Result<Vec<LockName>, Failure> {
        let mut folders = list(&self.folder).with_context(|| cannot_use(&self.path))?;
        folders.sort_unstable();
        Ok(folders.iter().filter_map(|name| name_of(name)).collect())
    }
}

/// The names in a folder, those that are text.
pub(super) fn list(folder: &OwnedFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        names.extend(entry.file_name().to_str().ok().map(str::to_owned));
    }
    Ok(names)
}

fn folder_name(name: &LockName) -> Result<String, Failure> {
    let folder = folder_of(name);
    if folder.len() > LONGEST {
        return Err(anyhow!(
            "cannot use the lock name '{name}' on this machine: a file's name has at most {LONGEST} bytes, and this one would have {}",
            folder.len()
        ))
        .or_hint("everything but ASCII letters, digits and ._~@:+=,- takes three bytes for each of its own");
    }
    Ok(folder)
}

fn cannot_use(path: &Path) -> String {
    format!("cannot use the state folder '{}'", path.display())
}

fn not_opened(path: &Path, error: Errno) -> Failure {
    let now = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    let kind = now.map(|status| FileType::from_raw_mode(status.st_mode));
    let (why, hint) = match (error, kind) {
        (Errno::NOTDIR | Errno::LOOP, Ok(FileType::Symlink)) => (
            "it is a symbolic link".to_owned(),
            "name the folder that it points to",
        ),
        _ => (error.to_string(), ELSEWHERE),
    };
    Failure {
        hint: Some(hint.to_owned()),
        ..anyhow!("{}: {why}", cannot_use(path)).into()
    }
}

/// Refuses a folder in which somebody else could give our lock away.
fn trust(path: &Path, status: &Stat) -> Result<(), Failure> {
    let us = geteuid().as_raw();
    if ![0, us].contains(&status.st_uid) {
        return Err(anyhow!(
            "{}: it belongs to another user (uid {}, we are {us})",
            cannot_use(path),
            status.st_uid
        ))
        .or_hint("a folder for several users belongs to root and to their group: install -d -m 2770 -g GROUP DIR");
    }
    if status.st_mode & 0o002 != 0 {
        return Err(anyhow!("{}: everybody may write to it", cannot_use(path))).or_hint(format!(
            "chmod o-w '{}', or name another folder",
            path.display()
        ));
    }
    Ok(())
}

/// What keeps a file from being made or changed, and what may help.
pub(super) fn not_written(tried: &str, error: Errno) -> Failure {
    let helps = [Errno::ACCESS, Errno::PERM, Errno::ROFS].contains(&error);
    Failure {
        hint: helps.then(|| ELSEWHERE.to_owned()),
        ..anyhow!("{tried}: {error}").into()
    }
}
