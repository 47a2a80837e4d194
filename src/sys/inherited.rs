//! State that the caller passes on and Rust's runtime changes before `main`: dispositions, the mask, closed standard
//! descriptors.
//! It must not know what uses it.
#![expect(
    unsafe_code,
    reason = "a constructor, and descriptors that nobody owns"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::sys::core_dump;
use crate::sys::signals::{self, Set};

static IGNORED: AtomicU64 = AtomicU64::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);
/// Whether descriptors 0, 1 and 2 were closed. The runtime opens /dev/null there.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// glibc and musl call the functions in this section before `main`, and so before the runtime.
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
        // SAFETY: reads the flags of a number, valid or not.
        closed.store(
            unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0,
            Relaxed,
        );
    }
}

/// Whether the caller ignored `signal`, as `nohup` does with SIGHUP.
pub(crate) fn ignored_at_start(signal: i32) -> bool {
    IGNORED.load(Relaxed) & signals::set_of(signal) != 0
}

/// Whether the caller had closed this standard descriptor.
pub(crate) fn closed_at_start(number: i32) -> bool {
    let standard = usize::try_from(number)
        .ok()
        .and_then(|number| CLOSED.get(number));
    standard.is_some_and(|closed| closed.load(Relaxed))
}

/// Whether the caller blocked `signal`; the command inherits that, too.
pub(crate) fn blocked_at_start(signal: i32) -> bool {
    BLOCKED.load(Relaxed) & signals::set_of(signal) != 0
}

/// Restores the state that the caller passed on, for a child that is about to exec. Async-signal-safe; closes standard
/// descriptors whatever still owns them. The mask comes last, so that a pending signal meets its disposition.
pub(crate) fn restore() {
    core_dump::restore();
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
