//! stub
use crate::core::lease::Deadlines;
use std::{
    ffi::{OsStr, OsString},
    io,
    path::PathBuf,
    time::Duration,
};
pub(crate) struct Command {
    pub path: PathBuf,
    pub argv: Vec<OsString>,
}
#[derive(Clone, Copy)]
pub(crate) struct Policy {
    pub signal: i32,
    pub grace: Duration,
    pub leftovers: Leftovers,
}
use crate::core::leftovers::Leftovers;
pub(crate) struct Guard;
pub(crate) fn launch(_command: Command, _policy: Policy) -> io::Result<Guard> {
    todo!()
}
impl Guard {
    pub(crate) fn socket(&self) -> io::Result<std::os::unix::net::UnixStream> {
        todo!()
    }
    pub(crate) fn start(
        &mut self,
        _env: &[(String, String)],
        _deadlines: Deadlines,
    ) -> io::Result<()> {
        todo!()
    }
    pub(crate) fn extend(&mut self, _beat: u64, _deadlines: Deadlines) -> io::Result<()> {
        todo!()
    }
    pub(crate) fn forward(&mut self, _signal: i32) -> io::Result<()> {
        todo!()
    }
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        todo!()
    }
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        todo!()
    }
    pub(crate) fn report(&mut self) -> io::Result<Option<Report>> {
        todo!()
    }
    pub(crate) fn kill_tree(&mut self, _limit: Duration) -> Vec<Survivor> {
        todo!()
    }
}
pub(crate) enum Report {
    Started,
    CannotStart {
        errno: i32,
    },
    Beat(u64),
    Leftovers {
        status: Status,
        count: usize,
    },
    Ended {
        status: Option<Status>,
        cause: Cause,
    },
    Survivors(Vec<Survivor>),
    GuardDead,
}
#[derive(Debug)]
pub(crate) enum Status {
    Exited(u8),
    Signalled(i32),
}
#[derive(PartialEq)]
pub(crate) enum Cause {
    Command,
    Deadline,
    Ordered,
}
#[derive(Debug)]
pub(crate) struct Survivor {
    pub pid: i32,
    pub state: char,
    pub uid: u32,
    pub program: String,
}
pub(crate) enum Lookup {
    NotFound,
    NotExecutable(io::Error),
}
pub(crate) fn lookup(_program: &OsStr) -> Result<PathBuf, Lookup> {
    todo!()
}
pub(crate) fn ignored_at_start(_signal: i32) -> bool {
    false
}
