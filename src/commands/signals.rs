//! The signals that dlock receives, as a stream.
//! It must not know the reaction to them.

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;

use libc::{
    SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGHUP, SIGILL, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSEGV,
    SIGSTOP, SIGSYS, SIGTRAP, SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH, SIGXCPU, SIGXFSZ,
};
use rustix::process::getpid;
use tokio::net::unix::pipe::Receiver;

use crate::guard::{Sender, Signal};

/// Signals that dlock does not forward: they cannot be caught, are faults of dlock itself, or concern its own child. TTOU
/// stays blocked: a line on stderr must not stop dlock in the background of a terminal (`stty tostop`). ABRT is handed on: the
/// watchdog of systemd sends it, and abort(3) unblocks its own.
const NOT_HANDED_ON: [i32; 10] = [
    SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGTRAP, SIGCHLD, SIGTTOU,
];

/// Signals that the kernel sends for the terminal, to every process of the foreground group.
const OF_TERMINAL: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGTTIN, SIGCONT, SIGWINCH];

/// Signals about dlock's own actions, if the kernel or dlock sends them.
const OF_OUR_OWN: [i32; 3] = [SIGPIPE, SIGXFSZ, SIGXCPU];

/// The real-time signals of signal(7). glibc keeps the two between for itself. musl keeps 34 as well, but only for calls that are
/// never made here, and a command has it where it has glibc.
const REAL_TIME: RangeInclusive<i32> = 34..=64;

/// `sizeof(struct signalfd_siginfo)`.
const RECORD: usize = size_of::<libc::signalfd_siginfo>();

/// Receives signals from its creation on.
pub(crate) struct Signals {
    /// A signalfd; like a pipe, it is only read.
    descriptor: Receiver,
    waiting: VecDeque<Signal>,
}

impl Signals {
    /// The caller must be inside a tokio runtime, after the launch of the guard: the command gets the caller's mask.
    /// A signal that was ignored when dlock started stays ignored (`nohup dlock ...`).
    pub(crate) fn listen() -> io::Result<Self> {
        let numbers = (1..=SIGSYS).chain(REAL_TIME);
        let wanted = numbers
            .filter(|number| !NOT_HANDED_ON.contains(number))
            .filter(|number| !crate::sys::inherited::ignored_at_start(*number));
        let descriptor = crate::sys::signals::receive(wanted)?;
        Ok(Self {
            descriptor: Receiver::from_owned_fd_unchecked(descriptor)?,
            waiting: VecDeque::new(),
        })
    }

    /// The next signal; cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        loop {
            if let Some(signal) = self.waiting.pop_front() {
                return signal;
            }
            let mut record = [0; RECORD];
            match self.descriptor.try_read(&mut record) {
                Ok(_) => self.waiting.extend(received(&record)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.descriptor.readable().await.is_err() {
                        // Only a shutdown of the runtime leads here.
                        std::future::pending::<()>().await;
                    }
                }
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Keeps signals for the command, which does not run yet.
    pub(crate) fn hold_back(&mut self, kept: Vec<Signal>) {
        for signal in kept.into_iter().rev() {
            self.waiting.push_front(signal);
        }
    }
}

/// The signal in a record of `signalfd(2)`, unless it is meant for dlock alone.
fn received(record: &[u8; RECORD]) -> Option<Signal> {
    let word = |at: usize| {
        let bytes = record.get(at..at + 4)?.try_into().ok()?;
        Some(i32::from_ne_bytes(bytes))
    };
    // ssi_signo, ssi_code, ssi_pid.
    let (number, code, pid) = (word(0)?, word(8)?, word(12)?);
    // ssi_ptr includes ssi_int.
    let value = || Some(u64::from_ne_bytes(record.get(48..56)?.try_into().ok()?));
    let sender = match code {
        libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL => Sender::Process(pid),
        libc::SI_KERNEL if OF_TERMINAL.contains(&number) && !is_hang_up_of_leader(number) => {
            Sender::Terminal
        }
        _ => Sender::Kernel,
    };
    let own = match sender {
        Sender::Process(pid) => pid == getpid().as_raw_nonzero().get(),
        Sender::Kernel => OF_OUR_OWN.contains(&number),
        Sender::Terminal => false,
    };
    (!own).then(|| Signal {
        number,
        sender,
        value: (code == libc::SI_QUEUE).then(value).flatten(),
    })
}

/// Whether the terminal was closed: the kernel signals only the leader of its session.
fn is_hang_up_of_leader(number: i32) -> bool {
    [SIGHUP, SIGCONT].contains(&number)
        && crate::sys::groups::session_of(None)
            .is_ok_and(|session| session == getpid().as_raw_pid())
}
