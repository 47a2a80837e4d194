//! Whether another user could change, replace or rename the state directory or a lock's directory.
//! It must not know what the directories contain.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::anyhow;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Stat, readlinkat, statat};
use rustix::process::{getegid, geteuid};

use super::dir_util::{OTHER_DIR_HINT, cannot_use};
use crate::output::exit::{Failure, OrFail as _};
use crate::sys::trust::{foreign_writer_by, is_unmapped};

/// As in `path_resolution(7)`.
const MAX_LINKS: usize = 40;

/// Refuses a state directory in which another user could take our lock away. A group that may write to it shares its locks.
pub(super) fn check_state_dir(path: &Path, status: &Stat) -> Result<(), Failure> {
    let us = geteuid().as_raw();
    if ![0, us].contains(&status.st_uid) {
        return Err(anyhow!(
            "{}: it belongs to another user (uid {}, we are {us})",
            cannot_use(path),
            status.st_uid
        ))
        .or_hint("a directory for several users belongs to root and to their group: install -d -m 2770 -g GROUP DIR");
    }
    refuse_public(path, path, status)
}

/// Refuses the directory of a lock that another user could have made or can change: a member of the group that shares the
/// state directory, whose status is `above`, is none.
pub(super) fn check_lock_dir(
    state_dir: &Path,
    path: &Path,
    status: &Stat,
    above: &Stat,
) -> Result<(), Failure> {
    refuse_public(state_dir, path, status)?;
    let why = if is_shared(above) {
        let known = [0, above.st_gid, getegid().as_raw()].contains(&status.st_gid);
        let foreign = status.st_mode & 0o020 != 0 && !known;
        foreign.then(|| format!("group {} may write to it", status.st_gid))
    } else {
        foreign_writer_by(status)
    };
    let Some(why) = why else {
        return Ok(());
    };
    Err(anyhow!(
        "{}: '{}' is not safe: {why}",
        cannot_use(state_dir),
        path.display()
    ))
    .or_hint(
        "when the lock is free, remove that directory: dlock creates a new one, with tokens from 1 on",
    )
}

fn refuse_public(state_dir: &Path, path: &Path, status: &Stat) -> Result<(), Failure> {
    if status.st_mode & 0o002 == 0 {
        return Ok(());
    }
    let which = if state_dir == path {
        String::new()
    } else {
        format!("'{}' is not safe: ", path.display())
    };
    Err(anyhow!(
        "{}: {which}every user may write to it",
        cannot_use(state_dir)
    ))
    .or_hint(format!(
        "chmod o-w '{}', or name another directory",
        path.display()
    ))
}

/// Whether a group shares the locks of this state directory.
fn is_shared(state_dir: &Stat) -> bool {
    state_dir.st_mode & 0o020 != 0
}

/// Refuses a state directory that another user can replace, because one of the directories above it, or of the symbolic
/// links on the way, is not of root or of this user. `state_dir` is its status, if it exists: a group that shares it may
/// write above it, too.
pub(super) fn check_above(path: &Path, state_dir: Option<&Stat>) -> Result<(), Failure> {
    let Ok(whole) = std::path::absolute(path) else {
        // It cannot be opened either.
        return Ok(());
    };
    let group = state_dir.filter(|status| is_shared(status));
    let group = group.map(|status| Gid::from_raw(status.st_gid));
    let check = |directory: &Path, status: &Stat| match unsafe_above(status, group) {
        None => Ok(()),
        Some(why) => Err(anyhow!(
            "{}: other users can replace it, because of '{}': {why}",
            cannot_use(path),
            directory.display()
        ))
        .or_hint(OTHER_DIR_HINT),
    };
    let steps = |path: &Path| -> VecDeque<OsString> {
        let steps = path.components();
        let steps =
            steps.filter(|step| matches!(step, Component::Normal(_) | Component::ParentDir));
        steps.map(|step| step.as_os_str().to_owned()).collect()
    };
    let mut left = steps(whole.parent().unwrap_or(&whole));
    let (mut current, mut links) = (PathBuf::from("/"), 0);
    let root = statat(CWD, &current, AtFlags::empty());
    let Ok(mut above) = root else {
        return Ok(());
    };
    check(&current, &above)?;
    while let Some(step) = left.pop_front() {
        if step == ".." {
            current.pop();
            continue;
        }
        let next = current.join(&step);
        // A directory that does not exist is made by this process, and one that cannot be seen cannot be used.
        let Ok(status) = statat(CWD, &next, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(());
        };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                check(&next, &status)?;
                (current, above) = (next, status);
            }
            FileType::Symlink => {
                // Elsewhere only those can have made it who may write to the directory.
                if is_sticky(&above) && !is_known(status.st_uid) {
                    return check(&next, &status);
                }
                links += 1;
                let target = readlinkat(CWD, &next, Vec::new());
                let Some(target) = target.ok().filter(|_| links <= MAX_LINKS) else {
                    return Ok(());
                };
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    current = PathBuf::from("/");
                }
                let mut longer = steps(&target);
                longer.append(&mut left);
                left = longer;
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Why another user can rename what is in this directory; `None` if no other user can.
fn unsafe_above(status: &Stat, group: Option<Gid>) -> Option<String> {
    if !is_known(status.st_uid) {
        return Some(format!("it belongs to user {}", status.st_uid));
    }
    let shared = group.map(Gid::as_raw) == Some(status.st_gid) && status.st_mode & 0o002 == 0;
    if is_sticky(status) || shared {
        return None;
    }
    let mut status = *status;
    status.st_uid = geteuid().as_raw();
    foreign_writer_by(&status)
}

/// Whether users may rename only what is theirs there.
fn is_sticky(status: &Stat) -> bool {
    Mode::from_raw_mode(status.st_mode).contains(Mode::SVTX)
}

/// Whether this user is root or ours. In a user namespace, root of the host may have no number.
fn is_known(user: u32) -> bool {
    [0, geteuid().as_raw()].contains(&user) || is_unmapped(user)
}
