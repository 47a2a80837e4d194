//! The guard of a command: forked first of all, it starts the command, keeps its deadlines and kills its whole tree,
//! whatever becomes of dlock. It must not know etcd, nor which runtime dlock waits in.
//!
//! *What does dlock ask for?* here · *what is said?* message · *how does it travel?* link · *when does what happen?* plan ·
//! *the guard's loop?* process · *start?* spawn · *what did the caller hand on?* inherited · *find and signal the tree?* tree ·
//! *which group, terminal and stop of the command?* job · *kill it?* hunt · *what of processes that are not ours?* other ·
//! *what does one leave behind?* outcome · *leave the caller's shell?* detach ·
//! *system calls?* signals, descriptors, groups

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

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    PidfdFlags, WaitId, WaitIdOptions, child_subreaper, getpid, pidfd_open, set_child_subreaper,
    waitid,
};
use rustix::stdio::{dup2_stdin, dup2_stdout};
use rustix::time::{TimerfdClockId, TimerfdFlags, Timespec, timerfd_create};

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

/// Between two looks at a tree that is dying.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// For a guard to end that has nothing left to do, on a busy machine.
const REAP_TIMEOUT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// How a socket says that the other end is gone.
const CLOSED_KINDS: [io::ErrorKind; 2] =
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// As [`spawn::lookup`] found it.
    pub(crate) path: PathBuf,
    /// The first one is the program as the user named it.
    pub(crate) argv: Vec<OsString>,
}

/// How the tree of a command is brought to an end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Asks it to stop.
    pub(crate) signal: i32,
    /// From asking to killing, which the deadlines may shorten.
    pub(crate) grace: Duration,
    pub(crate) leftovers: Leftovers,
}

/// What a guard has to do with others than dlock and the command.
#[derive(Clone, Default)]
pub(crate) struct LaunchOptions<'a> {
    /// A process that is stopped and killed with the command.
    pub(crate) adopted: Option<&'a ProcessHandle>,
    /// Descriptors that dlock goes on using.
    pub(crate) kept: Vec<BorrowedFd<'a>>,
    /// A descriptor that dlock goes on using, and that the guard keeps, too, until nothing of the command is left. The
    /// command does not get it.
    pub(crate) shared: Option<BorrowedFd<'a>>,
    /// Variables that the command does not get, though the caller has them.
    pub(crate) cleared: &'a [&'static str],
}

/// dlock's side. Dropping it is the end for the command too.
pub(crate) struct Guard {
    /// The guard's process, by pidfd.
    process: OwnedFd,
    backchannel: Backchannel,
    tree: Tree,
    /// Whether it has been told to start the command and has not yet said that all is over.
    busy: bool,
}

/// Makes the guard of `command` and leaves to it what the caller handed on: dlock keeps stderr alone, and no other
/// descriptor from 3 on but those that it is told. To be called while there is one thread and no child of ours exists.
pub(crate) fn launch(command: Command, policy: Policy, ties: &LaunchOptions) -> io::Result<Guard> {
    let guard = fork_guard(command, policy, ties)?;
    guard.close_inherited(ties)?;
    Ok(guard)
}

/// Everything that may be missing is made and tried before the fork: an error means that nothing has been started.
#[expect(unsafe_code, reason = "forks")]
fn fork_guard(command: Command, policy: Policy, ties: &LaunchOptions) -> io::Result<Guard> {
    let program = Program::new(command, ties.cleared)?;
    let (ours, theirs) = Backchannel::pair()?;
    let mut tree = Tree::open()?;
    if let Some(other) = ties.adopted {
        tree.adopt(other.id());
    }
    let deaths = signals::descriptor(libc::SIGCHLD)?;
    let timer = timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    let null = descriptors::null()?;
    // With SIGCHLD ignored, both would lose how their children ended.
    signals::set_ignored(libc::SIGCHLD, false);
    // The tree of a guard that is killed comes to us.
    set_child_subreaper(Some(getpid()))?;
    // What reading the command line took is free by now, but scattered, and each page of it that either process used
    // again would be copied for it.
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
        let equipment = Resources {
            tree,
            deaths,
            timer,
            null,
            shared: ties.shared.map(|shared| shared.as_raw_fd()),
            program,
            policy,
        };
        // Nothing of dlock's own may run here. When the guard ends, whatever made it, the command dies with it.
        let over = catch_unwind(AssertUnwindSafe(|| supervisor::run(theirs, equipment)));
        let code = i32::from(!matches!(over, Ok(Ok(()))));
        // SAFETY: ends the process, and runs nothing of dlock's.
        unsafe { libc::_exit(code) }
    };
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Guard {
        process,
        backchannel: ours,
        tree,
        busy: false,
    })
}

/// Tries all that [`launch`] will need of the kernel, and starts nothing. Says whether the kernel lists the children of
/// a process.
pub(crate) fn check_available() -> io::Result<bool> {
    let tree = Tree::open()?;
    signals::descriptor(libc::SIGCHLD)?;
    timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
    child_subreaper()?;
    pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(tree.is_listed())
}

impl Guard {
    /// Lets go of what the guard keeps for the command.
    fn close_inherited(&self, ties: &LaunchOptions) -> io::Result<()> {
        let null = descriptors::null()?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        drop(null);
        let own = [
            self.process.as_raw_fd(),
            self.backchannel.as_fd().as_raw_fd(),
            self.tree.descriptor(),
        ];
        let adopted = ties.adopted.map(ProcessHandle::descriptor);
        let others = ties.kept.iter().chain(&ties.shared).chain(&adopted);
        let others = others.map(AsRawFd::as_raw_fd);
        descriptors::close_all_but(&own.into_iter().chain(others).collect::<Vec<_>>())?;
        // A line on stderr must not stop dlock when it runs in the background of a terminal (`stty tostop`).
        signals::set_mask(signals::mask() | signals::set_of(libc::SIGTTOU));
        Ok(())
    }

    /// For its readiness only: readable means that [`report`](Self::report) has something to say.
    pub(crate) fn socket(&self) -> io::Result<UnixStream> {
        self.backchannel.socket().try_clone()
    }

    /// Runs the command with these variables on top of what it inherits, unless its deadline has passed.
    pub(crate) fn start(
        &mut self,
        env: &[(String, String)],
        deadlines: Deadlines,
    ) -> io::Result<()> {
        self.busy = true;
        self.order(&Order::Start {
            variables: env.to_vec(),
            deadlines,
        })
    }

    /// Later deadlines, and a ping that is answered by [`Report::Beat`]. Earlier ones are no error and change nothing.
    pub(crate) fn extend(&mut self, beat: u64, deadlines: Deadlines) -> io::Result<()> {
        // An extension that a stopped guard does not take is not missed: the next one has the newest deadlines.
        if self
            .backchannel
            .try_send(&Order::Extend { beat, deadlines })?
            && !self.backchannel.has_unsent()
        {
            return Ok(());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Hands `signal` on to the command, unless it has reached it already. After the end of the command, one that ends a process
    /// stops what is waited for.
    pub(crate) fn forward(&mut self, signal: Signal) -> io::Result<()> {
        self.order(&Order::Forward(signal))
    }

    /// The answer to [`Report::Stopped`], when this process runs again.
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

    /// Never waits. What a guard that is stopped does not take is kept until [`flush`](Self::flush) can send it.
    fn order(&mut self, order: &Order) -> io::Result<()> {
        self.backchannel.send(order)
    }

    /// Whether [`flush`](Self::flush) has something to send as soon as the socket is writable.
    pub(crate) fn owes(&self) -> bool {
        self.backchannel.has_unsent()
    }

    /// Sends on the orders that have been kept, as far as there is room.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.backchannel.flush()
    }

    /// What the guard has to say; `None` if nothing yet. Never waits.
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

    /// Who lives below us but the guard itself, for people.
    pub(crate) fn living(&mut self) -> Vec<Survivor> {
        let mut living = self.tree.survivors();
        living.retain(|process| process.program != "dlock-guard");
        living
    }

    /// Without the guard, which is dead or stopped: kills it and every descendant of this process until none is left,
    /// or for as long as `limit`. Answers who is left. Blocks.
    pub(crate) fn kill_tree(&mut self, limit: Duration) -> Vec<Survivor> {
        let begun_at = clock::now();
        let mut kill_loop = KillLoop::new(begun_at);
        // First, and without /proc: the command dies with it.
        let _ = signals::send(self.process.as_fd(), libc::SIGKILL);
        loop {
            let now = clock::now();
            let again_at = kill_loop.round(&mut self.tree, now);
            let children = reap(|_, _| ());
            let nothing_new = again_at > now;
            // Only a round that met nobody, not even a zombie, says as much as no children: the orphans of somebody who
            // died during the round have not been met.
            let none =
                children == Children::None || self.tree.has_preexisting() && kill_loop.met_nobody();
            if none && !self.tree.adopted_lives() {
                return Vec::new();
            }
            if now.since(begun_at) >= limit {
                return self.tree.survivors();
            }
            if nothing_new && children != Children::More {
                thread::sleep(POLL_INTERVAL);
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Closing is not enough while somebody holds what `socket` gave him.
        let _ = self.backchannel.socket().shutdown(Shutdown::Both);
        if !self.busy {
            // It ends at once. Where init collects nobody, a zombie of every run would stay.
            let mut end = [PollFd::new(&self.process, PollFlags::IN)];
            if poll(&mut end, Some(&REAP_TIMEOUT)) == Ok(0) {
                // A guard that was stopped would stay for ever, with what it has open. It guards nothing.
                let _ = signals::send(self.process.as_fd(), libc::SIGKILL);
                let _ = poll(&mut end, Some(&REAP_TIMEOUT));
            }
        }
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(self.process.as_fd()), ended);
    }
}
