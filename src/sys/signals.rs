//! Signal masks, dispositions and descriptors: the system calls about signals that rustix does not offer.
//! It must not know the receiver of a signal, nor the reason.
#![expect(unsafe_code, reason = "raw system calls")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::{getpid, getuid};

/// The kernel's signal set, one bit per signal. libc's own calls hide two real-time signals from it.
pub(crate) type Set = u64;

/// `sizeof(sigset_t)` in the kernel.
const SET_SIZE: usize = size_of::<Set>();

pub(crate) const ALL: Set = !0;

/// Every signal that a [`Set`] can hold.
pub(crate) fn numbers() -> impl Iterator<Item = i32> {
    1..=64
}

/// The set of one signal; empty if the number is no signal.
pub(crate) fn set_of(signal: i32) -> Set {
    u32::try_from(signal.saturating_sub(1))
        .ok()
        .and_then(|bit| Set::checked_shl(1, bit))
        .unwrap_or(0)
}

/// The mask of this thread.
pub(crate) fn mask() -> Set {
    sigprocmask(libc::SIG_BLOCK, 0)
}

/// Replaces the mask of this thread and returns the old one. Async-signal-safe.
pub(crate) fn set_mask(mask: Set) -> Set {
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

pub(crate) fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the old one to a buffer of its type; zeroed is a valid value.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Async-signal-safe. A signal whose disposition cannot be changed keeps it.
pub(crate) fn set_ignored(signal: i32, ignored: bool) {
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

/// A write beyond the limit of a file's size (`RLIMIT_FSIZE`) fails from now on, and does not end this process.
pub(crate) fn ignore_file_size_limit() {
    set_ignored(libc::SIGXFSZ, true);
}

/// Blocks `signals`; from now on the returned descriptor delivers them.
pub(crate) fn receive(signals: impl Iterator<Item = i32>) -> io::Result<OwnedFd> {
    let set = signals.map(set_of).fold(0, |all, one| all | one);
    let descriptor = descriptor_of(set)?;
    set_mask(mask() | set);
    Ok(descriptor)
}

/// Stops this process by `signal` with its default action. Returns when it is continued, or at once if the signal does
/// not stop it.
pub(crate) fn stop_by(signal: i32) {
    let (ignored, mask) = (is_ignored(signal), mask());
    set_ignored(signal, false);
    // Before the signal is unblocked: one of the terminal's may be pending, too, and would stop this process first.
    // SIGCONT discards both (signal(7)), but not one that is raised after it.
    // SAFETY: without a handler, no code of ours runs.
    unsafe {
        libc::raise(signal);
    }
    set_mask(mask & !set_of(signal));
    set_mask(mask);
    set_ignored(signal, ignored);
}

/// Ends this process by `signal` with its default action. Returns if that does not end a process.
pub(crate) fn die_of(signal: i32) {
    set_ignored(signal, false);
    set_mask(mask() & !set_of(signal));
    // SAFETY: without a handler, no code of ours runs.
    unsafe {
        libc::raise(signal);
    }
}

/// A descriptor that is readable while `signal` is pending for the reading process. The signal must be blocked.
pub(crate) fn descriptor(signal: i32) -> io::Result<OwnedFd> {
    descriptor_of(set_of(signal))
}

fn descriptor_of(set: Set) -> io::Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is alive during the call and has the size given.
    let answer = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const set, SET_SIZE, flags) };
    match libc::c_int::try_from(answer) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends `signal` to the process of `handle`: a pidfd or an open `/proc/<pid>`, see `pidfd_send_signal(2)`. Neither ever
/// refers to another process.
pub(crate) fn send(handle: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send_with(handle, signal, ptr::null())
}

/// The same with a value, as `sigqueue(3)` does.
pub(crate) fn send_value(handle: BorrowedFd<'_>, signal: i32, value: u64) -> io::Result<()> {
    let info = queued(signal, value);
    send_with(handle, signal, (&raw const info).cast())
}

fn queued(signal: i32, value: u64) -> Info {
    let mut info = Info([0; size_of::<libc::siginfo_t>()]);
    let number = |number: i32| number.to_ne_bytes();
    let sender = [
        number(getpid().as_raw_nonzero().get()),
        getuid().as_raw().to_ne_bytes(),
    ]
    .concat();
    let value = value.to_ne_bytes();
    // si_signo and si_code; si_pid and si_uid; si_value.
    let fields = [
        (0, &number(signal)[..]),
        (8, &number(libc::SI_QUEUE)),
        (SENDER, &sender),
        (SENDER + 8, &value),
    ];
    for (at, bytes) in fields {
        for (to, from) in info.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    info
}

/// A buffer with the size and alignment of a `siginfo_t`.
#[repr(C, align(8))]
struct Info([u8; size_of::<libc::siginfo_t>()]);

/// Offset of the fields of a `siginfo_t` that depend on `si_code`: aligned as a pointer.
const SENDER: usize = 12_usize.next_multiple_of(size_of::<usize>());

fn send_with(handle: BorrowedFd<'_>, signal: i32, info: *const libc::siginfo_t) -> io::Result<()> {
    // SAFETY: the descriptor is open, the information is null or of the kernel's size.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            handle.as_raw_fd(),
            signal,
            info,
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
    fn a_queued_signal_has_its_value_where_the_c_library_reads_it() {
        let mut info = queued(libc::SIGUSR1, 4711);
        // SAFETY: it has the size, the alignment and the fields of one that was queued.
        let (info, pid, value) = unsafe {
            let info: libc::siginfo_t = ptr::read((&raw mut info).cast());
            (info, info.si_pid(), info.si_value())
        };
        assert_eq!(
            (info.si_signo, info.si_code),
            (libc::SIGUSR1, libc::SI_QUEUE)
        );
        assert_eq!(pid, getpid().as_raw_nonzero().get());
        assert_eq!(value.sival_ptr.addr(), 4711);
    }

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
