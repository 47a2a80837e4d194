//! Signal masks, dispositions and descriptors: the system calls about signals that rustix does not offer.
//! It must not know who is signalled, nor why.
#![expect(unsafe_code, reason = "raw system calls")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// The kernel's signal set, one bit per signal. libc's own calls hide two real-time signals from it.
pub(super) type Set = u64;

/// `sizeof(sigset_t)` as the kernel wants to hear it.
const SET_SIZE: usize = size_of::<Set>();

pub(super) const ALL: Set = !0;

/// Every signal that a [`Set`] can hold.
pub(super) fn numbers() -> impl Iterator<Item = i32> {
    1..=64
}

/// The set of this one signal, empty for a number that is none.
pub(super) fn set_of(signal: i32) -> Set {
    u32::try_from(signal.saturating_sub(1))
        .ok()
        .and_then(|bit| Set::checked_shl(1, bit))
        .unwrap_or(0)
}

/// The mask of this thread.
pub(super) fn mask() -> Set {
    sigprocmask(libc::SIG_BLOCK, 0)
}

/// Replaces the mask of this thread and answers the old one. Async-signal-safe.
pub(super) fn set_mask(mask: Set) -> Set {
    sigprocmask(libc::SIG_SETMASK, mask)
}

fn sigprocmask(how: libc::c_int, set: Set) -> Set {
    let mut old: Set = 0;
    // SAFETY: both pointers are to sets of the size given, alive during the call. It cannot fail with these arguments.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            &raw const set,
            &raw mut old,
            SET_SIZE,
        );
    }
    old
}

pub(super) fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the old one to a buffer of its type; zeroed is a valid value.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Async-signal-safe. A signal whose disposition cannot be changed keeps it.
pub(super) fn set_ignored(signal: i32, ignored: bool) {
    let disposition = if ignored {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    // SAFETY: neither disposition is a function that could be called.
    unsafe {
        libc::signal(signal, disposition);
    }
}

/// Ends this process by `signal`, as if nobody had ever cared about it. Comes back if that does not end a process.
pub(crate) fn die_of(signal: i32) {
    set_ignored(signal, false);
    set_mask(mask() & !set_of(signal));
    // SAFETY: without a handler, no code of ours runs.
    unsafe {
        libc::raise(signal);
    }
}

/// A descriptor that is readable while `signal` is pending for the process that looks. The signal has to be blocked.
pub(super) fn descriptor(signal: i32) -> io::Result<OwnedFd> {
    let set = set_of(signal);
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is alive during the call and has the size given.
    let answer = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const set, SET_SIZE, flags) };
    match libc::c_int::try_from(answer) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends `signal` to the process that `handle` stands for: a pidfd or an open `/proc/<pid>`, see
/// `pidfd_send_signal(2)`. Neither ever comes to mean another process.
pub(super) fn send(handle: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, the information may be null.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            handle.as_raw_fd(),
            signal,
            no_info,
            0,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_a_bit_for_every_signal_and_none_for_anything_else() {
        assert_eq!(set_of(1), 1);
        assert_eq!(set_of(64), 1 << 63);
        assert_eq!(numbers().map(set_of).fold(0, |all, one| all | one), ALL);
        for nonsense in [i32::MIN, -1, 0, 65, i32::MAX] {
            assert_eq!(set_of(nonsense), 0, "{nonsense}");
        }
    }
}
