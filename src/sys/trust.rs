//! The rights of this process, and those of other users on a file that it reads.
//! It must not know what depends on them.
#![expect(
    unsafe_code,
    reason = "rustix offers the auxiliary vector only to programs without a C library"
)]

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::Stat;
use rustix::process::{getegid, geteuid};

/// Whether the executable gave this process rights that its caller does not have: `AT_SECURE` of `getauxval(3)`, set for
/// setuid and setgid bits and for file capabilities.
pub(crate) fn is_secure_execution() -> bool {
    // SAFETY: only returns a number; 0 if the kernel does not provide it.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether this is the number of all users that have none in our user namespace (`user_namespaces(7)`), as root of the host
/// has in a sandbox of another user.
pub(crate) fn is_unmapped(user: u32) -> bool {
    let number = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let map = number("/proc/self/uid_map");
    let mut map = map.split_whitespace();
    let all = ["0", "0", "4294967295"];
    let is_initial = all.iter().all(|one| map.next() == Some(one));
    !is_initial && number("/proc/sys/kernel/overflowuid").trim().parse() == Ok(user)
}

/// Whether every user can read this file. A group that may read it was chosen by its owner.
pub(crate) fn is_public(file: &Metadata) -> bool {
    file.mode() & 0o004 != 0
}

/// The reason why another user than root can change this file, for people; `None` if no other user can.
pub(crate) fn foreign_writer(file: &Metadata) -> Option<String> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    writer(file.uid(), file.gid(), file.mode(), user, group)
}

/// The same for a file or directory by the answer of stat(2).
pub(crate) fn foreign_writer_by(status: &Stat) -> Option<String> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    writer(status.st_uid, status.st_gid, status.st_mode, user, group)
}

/// The same for these owners and this mode, judged by `user` with `group`. A umask of 002 makes the user's own group a
/// writer, and usually nobody else is in it.
fn writer(owner: u32, owning_group: u32, mode: u32, user: u32, group: u32) -> Option<String> {
    if ![0, user].contains(&owner) {
        return Some(format!("it belongs to user {owner}"));
    }
    if mode & 0o002 != 0 {
        return Some("every user may write to it".to_owned());
    }
    let foreign = ![0, group].contains(&owning_group);
    (mode & 0o020 != 0 && foreign).then(|| format!("group {owning_group} may write to it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_caller_and_root_may_write() {
        let refused = |owner, group, mode| writer(owner, group, mode, 1000, 100);
        for (owner, group) in [(1000, 100), (0, 0), (0, 100), (1000, 0)] {
            assert_eq!(refused(owner, group, 0o100_664), None, "{owner} {group}");
            let says = refused(owner, group, 0o100_646).unwrap();
            assert!(says.contains("every user"), "{says}");
        }
        assert_eq!(refused(1000, 7, 0o100_644), None);
        assert!(refused(0, 7, 0o100_664).unwrap().contains("group 7"));
        assert!(refused(1001, 100, 0o100_600).unwrap().contains("user 1001"));
        // A caller who is root obeys no other user.
        assert!(writer(1000, 0, 0o100_600, 0, 0).is_some());
    }
}
