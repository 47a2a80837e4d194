//! The guard of a command: a process that dlock forks first. It starts the command, keeps its deadlines and kills its
//! whole tree, even if dlock dies. It must not know etcd, nor dlock's async runtime.
//!
//! This file is dlock's side. `protocol`: the messages; `backchannel`: their transport; `supervisor`: the guard's loop;
//! `termination`: when to stop and kill; `spawn`: find and start the command; `tree`: find and signal its processes;
//! `kill_loop`: kill them; `job`: job control.

mod backchannel;
mod job;
mod kill_loop;
mod protocol;
mod spawn;
mod supervisor;
mod termination;
mod tree;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, WaitId, WaitIdOptions, child_subreaper, getpid, pidfd_open,
    set_child_subreaper, waitid,
};
use rustix::stdio::{dup2_stdin, dup2_stdout};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use self::backchannel::Backchannel;
use self::kill_loop::{Children, KillLoop, reap};
use self::protocol::Order;
pub(crate) use self::protocol::{Cause, GuardReport, Sender, Signal, Survivor};
use self::spawn::Program;
pub(crate) use self::spawn::{Lookup, become_command, lookup};
use self::supervisor::Resources;
use self::tree::Tree;
use crate::core::request::Leftovers;
use crate::core::time::Deadlines;
use crate::sys::pidfd::ProcessHandle;
use crate::sys::{clock, descriptors, process, signals};

/// Interval between checks of a tree that is dying.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Time for a guard that has nothing left to do to exit, on a busy machine.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// Errors of a socket whose other end is gone.
const CLOSED_KINDS: [io::ErrorKind; 2] =
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];

/// The command to run.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// The file that [`spawn::lookup`] found.
    pub(crate) path: PathBuf,
    /// The arguments; the first is the program as the user named it.
    pub(crate) argv: Vec<OsString>,
}

/// How to end the tree of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// The stop signal.
    pub(crate) signal: i32,
    /// Time between the stop signal and the kill; the deadlines may shorten it.
    pub(crate) grace: Duration,
    pub(crate) leftovers: Leftovers,
}

/// Processes, descriptors and variables that the launch treats specially.
#[derive(Clone, Default)]
pub(crate) struct LaunchOptions<'a> {
    /// A process that is stopped and killed with the command.
    pub(crate) adopted: Option<&'a ProcessHandle>,
    /// Descriptors that stay open in dlock.
    pub(crate) kept: Vec<BorrowedFd<'a>>,
    /// Descriptors that stay open in dlock, and in the guard until no process of the command is left. The command does not
    /// get them.
    pub(crate) shared: Vec<BorrowedFd<'a>>,
    /// Variables that the command does not get, though the caller has them.
    pub(crate) cleared: Vec<String>,
}

/// dlock's handle of the guard. Dropping it ends the command, too.
pub(crate) struct Guard {
    pid: Pid,
    /// The guard's process, by pidfd.
    process: OwnedFd,
    backchannel: Backchannel,
    tree: Tree,
    /// Whether the start was ordered and the last report has not arrived.
    busy: bool,
}

/// Forks the guard of `command` and leaves it the inherited descriptors: dlock keeps stderr, its own and those of `options`.
/// Must be called while there is one thread and no child.
pub(crate) fn launch(
    command: Command,
    policy: Policy,
    options: &LaunchOptions,
) -> io::Result<Guard> {
    let guard = fork_guard(command, policy, options)?;
    guard.close_inherited(options)?;
    Ok(guard)
}

/// Makes and tries everything that may be missing before the fork: after an error, nothing has been started.
#[expect(unsafe_code, reason = "forks")]
fn fork_guard(command: Command, policy: Policy, options: &LaunchOptions) -> io::Result<Guard> {
    let program = Program::new(command, &options.cleared)?;
    let (ours, theirs) = Backchannel::pair()?;
    let mut tree = Tree::open()?;
    if let Some(other) = options.adopted {
        tree.adopt(other.id());
    }
    let deaths = signals::descriptor(libc::SIGCHLD)?;
    let timer = timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    let null = descriptors::null()?;
    check_pidfd()?;
    // With SIGCHLD ignored, both processes would lose the exit status of their children.
    signals::set_ignored(libc::SIGCHLD, false);
    // If the guard is killed, its tree becomes dlock's.
    set_child_subreaper(Some(getpid()))?;
    // The memory used to read the command line is free now, but scattered: each of its pages that either process used
    // again would be copied.
    #[cfg(target_env = "gnu")]
    // SAFETY: any program may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    let mask = signals::set_mask(signals::ALL);
    // SAFETY: dlock has one thread.
    let forked = unsafe { process::fork() };
    if !matches!(forked, Ok(None)) {
        signals::set_mask(mask);
    }
    let Some(pid) = forked? else {
        drop(ours);
        let resources = Resources {
            tree,
            deaths,
            timer,
            null,
            shared: options.shared.iter().map(AsRawFd::as_raw_fd).collect(),
            program,
            policy,
        };
        // No code of dlock's own may run here. When the guard ends for any reason, the command dies with it.
        let over = catch_unwind(AssertUnwindSafe(|| supervisor::run(theirs, resources)));
        let code = i32::from(!matches!(over, Ok(Ok(()))));
        // SAFETY: ends the process, and runs nothing of dlock's.
        unsafe { libc::_exit(code) }
    };
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Guard {
        pid,
        process,
        backchannel: ours,
        tree,
        busy: false,
    })
}

/// Tries everything that [`launch`] needs from the kernel, and starts nothing. Returns whether the kernel lists the children
/// of a process.
pub(crate) fn check_available() -> io::Result<bool> {
    let tree = Tree::open()?;
    signals::descriptor(libc::SIGCHLD)?;
    timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
    child_subreaper()?;
    check_pidfd()?;
    Ok(tree.is_listed())
}

fn check_pidfd() -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty());
    own.map(drop)
        .map_err(|error| descriptors::named("pidfd_open", error))
}

impl Guard {
    /// Closes the descriptors that the guard keeps for the command.
    fn close_inherited(&self, options: &LaunchOptions) -> io::Result<()> {
        let null = descriptors::null()?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        drop(null);
        let own = [
            self.process.as_raw_fd(),
            self.backchannel.as_fd().as_raw_fd(),
            self.tree.descriptor(),
        ];
        let adopted = options.adopted.map(ProcessHandle::descriptor);
        let others = options.kept.iter().chain(&options.shared).chain(&adopted);
        let others = others.map(AsRawFd::as_raw_fd);
        descriptors::close_all_but(&own.into_iter().chain(others).collect::<Vec<_>>())?;
        // A line on stderr must not stop dlock when it runs in the background of a terminal (`stty tostop`).
        signals::set_mask(signals::mask() | signals::set_of(libc::SIGTTOU));
        Ok(())
    }

    /// A socket to poll: once it is readable, [`report`](Self::report) returns a report.
    pub(crate) fn socket(&self) -> io::Result<UnixStream> {
        self.backchannel.socket().try_clone()
    }

    /// Spares what the children that dlock had before the guard have started since: an orphan of theirs becomes a child of
    /// dlock, as the orphans of the tree do when the guard dies. While it lives, those become its own children.
    fn spare_orphans(&mut self) {
        if !self.tree.has_preexisting() {
            return;
        }
        let others = self
            .tree
            .below_except(Some(self.pid.as_raw_nonzero().get()));
        let mut end = [PollFd::new(&self.process, PollFlags::IN)];
        if poll(&mut end, Some(&Timespec::default())) == Ok(0) {
            self.tree.spare(others);
        }
    }

    /// Runs the command with these variables added to those that it inherits, unless its deadline has passed.
    pub(crate) fn start(
        &mut self,
        env: &[(String, String)],
        deadlines: Deadlines,
    ) -> io::Result<()> {
        self.busy = true;
        self.spare_orphans();
        self.order(&Order::Start {
            variables: env.to_vec(),
            deadlines,
        })
    }

    /// Sends later deadlines, and a ping that [`GuardReport::Ack`] answers. Earlier deadlines change nothing.
    pub(crate) fn extend(&mut self, beat: u64, deadlines: Deadlines) -> io::Result<()> {
        self.spare_orphans();
        // An extension may be lost while the guard is stopped: the next one has newer deadlines.
        if self
            .backchannel
            .try_send(&Order::Extend { beat, deadlines })?
            && !self.backchannel.has_unsent()
        {
            return Ok(());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Forwards `signal` to the command, unless the command has got it already. After the command's end, a signal that ends a
    /// process stops the leftovers that dlock waits for.
    pub(crate) fn forward(&mut self, signal: Signal) -> io::Result<()> {
        self.order(&Order::Forward(signal))
    }

    /// Answers [`GuardReport::Stopped`] when this process runs again.
    pub(crate) fn resumed(&mut self) -> io::Result<()> {
        self.order(&Order::Resumed)
    }

    /// Asks the whole tree to stop, and kills it after the grace or at the deadline.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        self.order(&Order::Stop)
    }

    /// Kills the whole tree.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.order(&Order::Kill)
    }

    /// Never waits. If the guard is stopped, the order is kept until [`flush`](Self::flush) can send it.
    fn order(&mut self, order: &Order) -> io::Result<()> {
        self.backchannel.send(order)
    }

    /// Whether [`flush`](Self::flush) has something to send as soon as the socket is writable.
    pub(crate) fn owes(&self) -> bool {
        self.backchannel.has_unsent()
    }

    /// Sends the orders that were kept, as far as there is room.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.backchannel.flush()
    }

    /// The guard's next report; `None` if there is none yet. Never waits.
    pub(crate) fn report(&mut self) -> io::Result<Option<GuardReport>> {
        let report = match self.backchannel.receive() {
            Ok(report) => report,
            Err(error) if CLOSED_KINDS.contains(&error.kind()) => Some(GuardReport::GuardDead),
            Err(error) => return Err(error),
        };
        if matches!(
            report,
            Some(
                GuardReport::Ended { .. }
                    | GuardReport::CannotStart { .. }
                    | GuardReport::GuardDead
            )
        ) {
            self.busy = false;
        }
        Ok(report)
    }

    /// The living descendants except the guard, for people.
    pub(crate) fn living(&mut self) -> Vec<Survivor> {
        let mut living = self.tree.survivors();
        living.retain(|process| process.program != "dlock-guard");
        living
    }

    /// Kills the guard, if it is dead or stopped, and every descendant of this process until none is left, or for `limit`
    /// if some do not die. Returns the survivors. Blocks.
    pub(crate) fn kill_tree(&mut self, limit: Duration) -> Vec<Survivor> {
        let begun_at = clock::now();
        // The guard may be stopped.
        self.spare_orphans();
        let mut kill_loop = KillLoop::new(begun_at);
        // This comes first and needs no /proc: the command dies with the guard.
        let _ = signals::send(self.process.as_fd(), libc::SIGKILL);
        loop {
            let now = clock::now();
            let again_at = kill_loop.round(&mut self.tree, now);
            let children = reap(|_, _| ());
            let nothing_new = again_at > now;
            // With preexisting children, only a round that found no process, not even a zombie, proves that none is left: the
            // round may have missed the orphans of a process that died meanwhile.
            let found_none = kill_loop.met_nobody() && self.tree.sees_all();
            let none = children == Children::None || self.tree.has_preexisting() && found_none;
            if none && !self.tree.adopted_lives() {
                return Vec::new();
            }
            if now.since(begun_at) >= limit
                && let Some(survivors) = kill_loop.survivors(&mut self.tree, now)
            {
                return survivors;
            }
            if nothing_new && children != Children::More {
                thread::sleep(POLL_INTERVAL);
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Closing is not enough while a clone from `socket` is open.
        let _ = self.backchannel.socket().shutdown(Shutdown::Both);
        if !self.busy {
            // The guard ends at once. Where init reaps nothing, each run would leave a zombie.
            let mut end = [PollFd::new(&self.process, PollFlags::IN)];
            let limit = clock::timespec(REAP_TIMEOUT);
            if poll(&mut end, Some(&limit)) == Ok(0) {
                // A stopped guard would stay for ever, with its descriptors. It guards nothing any more.
                let _ = signals::send(self.process.as_fd(), libc::SIGKILL);
                let _ = poll(&mut end, Some(&limit));
            }
        }
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(self.process.as_fd()), ended);
    }
}
