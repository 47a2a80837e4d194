//! Permissions that a test needs and the kernel may refuse: namespaces, other users, fewer capabilities, tracing. A test asks here for
//! the words that start its program so, and is noted as not run if there are none.
//! It must not know what a test does with its permission.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::geteuid;

use super::announce;

/// The words that start a program in new namespaces of these kinds: `--mount`, `--net`. As root they need no namespace of users,
/// which a chroot refuses; any other user needs one.
pub(crate) fn in_namespaces(kinds: &[&str]) -> Option<Vec<String>> {
    let of_root = [&["unshare"], kinds, &["--"]].concat();
    let of_a_user = [&["unshare", "--map-root-user"], kinds, &["--"]].concat();
    [of_root, of_a_user]
        .into_iter()
        .find(|words| works(words))
        .map(|words| words.into_iter().map(str::to_owned).collect())
        .or_else(|| not_run("CAP_SYS_ADMIN, or namespaces of users"))
}

/// The words that start a program as this user and group, without other groups.
pub(crate) fn as_user(user: u32, group: u32) -> Option<Vec<String>> {
    let words = [
        "setpriv".to_owned(),
        format!("--reuid={user}"),
        format!("--regid={group}"),
        "--clear-groups".to_owned(),
        "--".to_owned(),
    ];
    if works(&words) {
        return Some(words.to_vec());
    }
    not_run("CAP_SETUID and CAP_SETGID")
}

/// The words that start a program without these capabilities of root's, in the form of setpriv(1): `-kill`. Nobody else has them.
pub(crate) fn without(capabilities: &str) -> Option<Vec<String>> {
    let words = [
        "setpriv".to_owned(),
        format!("--bounding-set={capabilities}"),
        "--".to_owned(),
    ];
    if !geteuid().is_root() {
        return Some(Vec::new());
    }
    if works(&words) {
        return Some(words.to_vec());
    }
    not_run("CAP_SETPCAP")
}

/// Whether this process is root; the test is noted as not run if it is not.
pub(crate) fn as_root() -> Option<()> {
    if geteuid().is_root() {
        return Some(());
    }
    not_run("root")
}

/// Whether programs may be traced, for strace(1).
pub(crate) fn may_trace() -> Option<()> {
    let words = ["strace", "-qqq", "-o", "/dev/null", "--"];
    if works(&words) {
        return Some(());
    }
    not_run("CAP_SYS_PTRACE")
}

/// Whether a program that these words start does start.
fn works(words: &[impl AsRef<std::ffi::OsStr>]) -> bool {
    let (program, rest) = words.split_first().expect("a program");
    Command::new(program)
        .args(rest)
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Notes that this test is not run, as the kernel refuses what it needs: as a line on stderr, and in the file of
/// `DLOCK_TEST_NOT_RUN`, from which `make test` makes its last line.
pub(crate) fn not_run<T>(permission: &str) -> Option<T> {
    let current = thread::current();
    let test = current.name().unwrap_or("a test");
    announce(&format!("{test}: not run: this needs {permission}"));
    if let Some(path) = env::var_os("DLOCK_TEST_NOT_RUN") {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .expect("the file of DLOCK_TEST_NOT_RUN");
        // In one write: other tests do the same.
        file.write_all(format!("{permission}\t{test}\n").as_bytes())
            .expect("the file of DLOCK_TEST_NOT_RUN");
    }
    None
}
