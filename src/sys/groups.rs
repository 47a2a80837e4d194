//! The process group and the session of a process, by number. It is 0 for one that was created outside of our pid
//! namespace (`pid_namespaces(7)`), usually that of PID 1; rustix does not allow that.
//! It must not know what they are used for.
#![expect(unsafe_code, reason = "rustix does not offer a number that may be 0")]

use std::io;

use rustix::process::Pid;

/// The process group of `process`, or of this one.
pub(crate) fn group_of(process: Option<Pid>) -> io::Result<i32> {
    // SAFETY: only returns a number.
    number(unsafe { libc::getpgid(raw(process)) })
}

/// The session of `process`, or of this one.
pub(crate) fn session_of(process: Option<Pid>) -> io::Result<i32> {
    // SAFETY: only returns a number.
    number(unsafe { libc::getsid(raw(process)) })
}

fn raw(process: Option<Pid>) -> i32 {
    process.map_or(0, Pid::as_raw_pid)
}

fn number(answer: i32) -> io::Result<i32> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}
