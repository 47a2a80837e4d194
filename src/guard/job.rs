//! The command as a job of the caller's shell: its process group, and whether it is stopped.
//! It must not know deadlines, nor how a tree is killed.

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process, waitid};

use crate::core;
use crate::core::forwarding::CommandGroup;
use crate::sys::groups::{group_of, session_of};

/// The terminal that controls this session.
const TERMINAL_PATH: &str = "/dev/tty";

/// The job that dlock and the command form for dlock's caller.
pub(super) struct CallerJob {
    dlock: Option<Pid>,
    /// The process group that dlock and the command were started in.
    group: Option<i32>,
    /// Whether there is a terminal, and above dlock a process that can continue what has stopped.
    is_controlled: bool,
    pub(super) state: core::job::JobState,
}

impl CallerJob {
    /// Must be called while this process is in the caller's group.
    pub(super) fn of_caller() -> Self {
        let dlock = getppid();
        let leads_session = session_of(None).is_ok_and(|session| Pid::from_raw(session) == dlock);
        Self {
            dlock,
            group: group_of(None).ok(),
            is_controlled: !leads_session && has_terminal(),
            state: core::job::JobState::default(),
        }
    }

    /// The group of the command, which must not have been reaped.
    pub(super) fn command_group(&self, command: Pid) -> CommandGroup {
        if group_of(Some(command)).ok() == self.group {
            return CommandGroup::Shared;
        }
        match (
            session_of(Some(command)),
            self.dlock.map(|dlock| session_of(Some(dlock))),
        ) {
            (Ok(session), Some(Ok(ours))) if session == ours => CommandGroup::Own,
            _ => CommandGroup::OtherSession,
        }
    }

    /// Reads stops and continues of the command, which must not have been reaped. Returns the signal by which dlock must stop.
    pub(super) fn read_stop(&mut self, command: Pid) -> Option<i32> {
        let changes = WaitIdOptions::STOPPED | WaitIdOptions::CONTINUED | WaitIdOptions::NOHANG;
        let mut stop = None;
        while let Ok(Some(status)) = waitid(WaitId::Pid(command), changes) {
            match status.stopping_signal() {
                Some(signal) if self.is_controlled => stop = self.state.stopped(signal).or(stop),
                Some(_) => {}
                None => self.state.continued(),
            }
        }
        stop
    }

    /// Continues dlock. It may not have stopped yet, so this is repeated until dlock says that it runs.
    pub(super) fn continue_dlock(&self) {
        // A parent that has changed is not dlock any more.
        if let Some(dlock) = self.dlock.filter(|_| getppid() == self.dlock) {
            let _ = kill_process(dlock, Signal::CONT);
        }
    }
}

fn has_terminal() -> bool {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(TERMINAL_PATH, flags, Mode::empty()).is_ok()
}
