//! Core dumps of this process, which contain all that it has in memory.
//! It must not know what that is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// With this limit the kernel writes no file, and starts no program of `core_pattern` either, unlike with 0
/// (`fs/coredump.c`).
const NO_DUMP: u64 = 1;

/// The limit that the caller passed on.
static CALLERS: AtomicU64 = AtomicU64::new(0);
static FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// From now on, no core of this process and its children is dumped. A debugger, and those who read its /proc, are not
/// affected, as they would be by `PR_SET_DUMPABLE`: where `hidepid` is set, that hides a process from its own user.
pub(crate) fn forbid() {
    let limit = getrlimit(Resource::Core);
    CALLERS.store(limit.current.unwrap_or(u64::MAX), Relaxed);
    FORBIDDEN.store(true, Relaxed);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    set(NO_DUMP.min(maximum), limit);
}

/// Restores the limit of the caller, for a child that is about to exec. Async-signal-safe.
pub(crate) fn restore() {
    if FORBIDDEN.load(Relaxed) {
        set(CALLERS.load(Relaxed), getrlimit(Resource::Core));
    }
}

fn set(current: u64, limit: Rlimit) {
    // Lowering it and raising it again, up to the hard limit, is always allowed.
    let _ = setrlimit(
        Resource::Core,
        Rlimit {
            current: (current != u64::MAX).then_some(current),
            ..limit
        },
    );
}
