//! The signals that dlock receives, as a stream.
//! It must not know what they lead to.

use std::io;
use std::mem::ManuallyDrop;

use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Origin;
use signal_hook::low_level::siginfo::Cause;
use tokio::net::UnixStream;

use crate::guard;

/// What is handed on to the command. The others are either not for it (CHLD, PIPE), or cannot be
/// caught, or stop dlock itself as the terminal's user wants it (TSTP, TTIN, TTOU).
const FORWARDED: [i32; 9] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCONT,
];

/// A signal that somebody sent to dlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal {
    pub(crate) number: i32,
    /// The terminal sent it, and so to every process of the foreground group itself.
    pub(crate) from_terminal: bool,
}

impl Signal {
    /// Whether a process that does not care about it is ended by it (`signal(7)`).
    pub(crate) fn ends(self) -> bool {
        !matches!(self.number, SIGWINCH | SIGCONT)
    }
}

/// Receives signals from its making on.
pub(crate) struct Signals {
    /// To the end of the process: taking the handlers back one by one would serve nobody.
    delivery: ManuallyDrop<SignalDelivery<UnixStream, WithOrigin>>,
    waiting: Vec<Signal>,
}

impl Signals {
    /// Must be called inside a runtime, after the guard was launched: the handlers are dlock's own.
    /// What was ignored when dlock started stays ignored (`nohup dlock ...`).
    pub(crate) fn listen() -> io::Result<Self> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let read = UnixStream::from_std(read)?;
        let wanted = FORWARDED
            .iter()
            .filter(|signal| !guard::ignored_at_start(**signal));
        Ok(Self {
            delivery: ManuallyDrop::new(SignalDelivery::with_pipe(
                read,
                write,
                WithOrigin::default(),
                wanted,
            )?),
            waiting: Vec::new(),
        })
    }

    /// The next signal; cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        loop {
            if let Some(signal) = self.waiting.pop() {
                return signal;
            }
            let pipe = self.delivery.get_read();
            if pipe.readable().await.is_err() {
                // Only when the runtime shuts down.
                std::future::pending::<()>().await;
            }
            // Until it would block: that is what tells tokio to wait for more.
            while pipe.try_read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
            self.waiting
                .extend(self.delivery.pending().map(|origin| received(&origin)));
            self.waiting.reverse();
        }
    }
}

fn received(origin: &Origin) -> Signal {
    // alarm(2), which outlives exec, is the kernel's too, but nobody else gets it.
    let from_terminal = origin.cause == Cause::Kernel && origin.signal != SIGALRM;
    Signal {
        number: origin.signal,
        from_terminal,
    }
}
