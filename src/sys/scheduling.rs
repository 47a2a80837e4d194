//! The priority of this process on the processor.
//! It must not know what the process has to do in time.
#![expect(unsafe_code, reason = "no other way to this system call")]

/// Raises this process to a real-time priority, as root or where `RLIMIT_RTPRIO` allows it. A process that it forks
/// afterwards has the default priority, and not the nice value of its caller.
pub(crate) fn raise_priority() {
    // The kernel's `sched_param`. musl's function of this name always fails, and its structure has more fields.
    let priority: libc::c_int = 1;
    // SAFETY: the parameter is alive during the call. Without the permission nothing changes.
    unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_RR | libc::SCHED_RESET_ON_FORK,
            &raw const priority,
        );
    }
}
