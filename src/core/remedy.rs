//! The hint for a cause that the operating system gives, whatever dlock tried.
//! It must not know what was tried.

/// Parts of a cause in lower case, all of which must be in it, and the hint. Errors of the system are told by their number:
/// each C library has other words for them.
const REMEDIES: [(&[&str], &str); 6] = [
    (
        &["(os error 24)"],
        "raise the limit on open files: ulimit -n, LimitNOFILE in systemd, --ulimit nofile in docker",
    ),
    (
        &["cannot start", "(os error 11)"],
        "raise the limit on processes: ulimit -u, TasksMax in systemd, --pids-limit in docker",
    ),
    (
        &["cannot open /dev/null"],
        "dlock needs it, also in a chroot: mknod -m 666 /dev/null c 1 3",
    ),
    (
        &["/proc is needed"],
        "mount it, also in a chroot: mount -t proc proc /proc",
    ),
    (
        &["pidfd_"],
        "dlock needs Linux 5.4 or later; in a container, an old runtime or a seccomp filter may refuse this system call: update it, or try --security-opt seccomp=unconfined",
    ),
    (
        &["cannot start a thread", "(os error 1)"],
        "a container's runtime that does not know clone3 refuses it: update it (Docker 20.10.10 or later)",
    ),
];

/// The hint for this cause, if there is one.
pub(crate) fn remedy(cause: &str) -> Option<&'static str> {
    let cause = cause.to_ascii_lowercase();
    let found = REMEDIES
        .iter()
        .find(|(parts, _)| parts.iter().all(|part| cause.contains(part)));
    found.map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_of_the_operating_system_has_a_hint() {
        for (cause, part) in [
            ("x: Too many open files (os error 24)", "ulimit -n"),
            (
                "x: No file descriptors available (os error 24)",
                "ulimit -n",
            ),
            (
                "cannot start the guard process: Resource temporarily unavailable (os error 11)",
                "ulimit -u",
            ),
            ("cannot open /dev/null: No such file or directory", "mknod"),
            ("/proc is needed to find its processes: x", "mount -t proc"),
            ("pidfd_open: Operation not permitted", "seccomp"),
            (
                "cannot start a thread: Operation not permitted (os error 1)",
                "clone3",
            ),
        ] {
            let hint = remedy(cause);
            assert!(hint.is_some_and(|hint| hint.contains(part)), "{cause}");
        }
        for cause in [
            "Operation not permitted (os error 1)",
            "cannot lock 'x.lock': Resource temporarily unavailable (os error 11)",
            "cannot write '/dev/null'",
        ] {
            assert_eq!(remedy(cause), None, "{cause}");
        }
    }
}
