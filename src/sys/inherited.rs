//! What the caller handed on and Rust's runtime changes before `main`: dispositions, the mask, closed standard descriptors.
//! It must not know who will need it.
#![expect(
    unsafe_code,
    reason = "a constructor, and descriptors that nobody owns"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::sys::signals::{self, Set};

static IGNORED: AtomicU64 = AtomicU64::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);
/// Of descriptors 0, 1 and 2. The runtime puts /dev/null there.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// glibc and musl call what stands in this section before `main`, and so before the runtime.
#[used]
// SAFETY: the section holds pointers to functions of just this type.
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    let ignored: Set = signals::numbers()
        .filter(|&signal| signals::is_ignored(signal))
        .map(signals::set_of)
        .fold(0, |all, one| all | one);
    IGNORED.store(ignored, Relaxed);
    BLOCKED.store(signals::mask(), Relaxed);
    for (descriptor, closed) in (0..).zip(&CLOSED) {
        // SAFETY: asks for the flags of a number, whatever is behind it.
        closed.store(
            unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0,
            Relaxed,
        );
    }
}

/// Whether the caller had `signal` ignored, as `nohup` does with SIGHUP.
pub(crate) fn ignored_at_start(signal: i32) -> bool {
    IGNORED.load(Relaxed) & signals::set_of(signal) != 0
}

/// Whether the caller had `signal` blocked, as the command has it, too.
pub(crate) fn blocked_at_start(signal: i32) -> bool {
    BLOCKED.load(Relaxed) & signals::set_of(signal) != 0
}

/// Gives this process back what its caller handed on. For a child that is about to exec: async-signal-safe, and the
/// standard descriptors go without regard for owners. The mask comes last, a pending signal then meets its disposition.
pub(crate) fn restore() {
    for (descriptor, closed) in (0..).zip(&CLOSED) {
        if closed.load(Relaxed) {
            // SAFETY: exec replaces everything that could still use the descriptor.
            unsafe { libc::close(descriptor) };
        }
    }
    for signal in signals::numbers() {
        signals::set_ignored(signal, ignored_at_start(signal));
    }
    signals::set_mask(BLOCKED.load(Relaxed));
}
