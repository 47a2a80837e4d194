//! Reading of /proc: the identity of a process and its state, by `proc(5)`.
//! It must not know which processes belong together, nor what is done to them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::process::getpid;

use crate::sys::clock;

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const FILE_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Clock ticks per second in /proc (`USER_HZ`), the same on every architecture that Rust builds for.
const TICKS: u64 = 100;

/// A process by its pid and its start: a pid comes back, but not within the same tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks since boot, field 22 of `proc_pid_stat(5)`.
    pub(crate) start: u64,
}

impl ProcessId {
    /// This process.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(crate) fn own() -> io::Result<Self> {
        Self::of(own_pid())
    }

    /// The process that has this pid now.
    ///
    /// # Errors
    /// There is none, or /proc cannot be used.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let (_, stat) = directory_of(&open()?, pid)?;
        Ok(Self {
            pid,
            start: stat.start,
        })
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pid, self.start)
    }
}

impl FromStr for ProcessId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pid, start) = text.split_once(':').ok_or(())?;
        Ok(Self {
            pid: pid.parse().map_err(drop)?,
            start: start.parse().map_err(drop)?,
        })
    }
}

/// The fields of `proc_pid_stat(5)` that dlock needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) program: String,
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    /// The pid of the leader of its session.
    pub(crate) session: i32,
    /// Whether its session has a terminal.
    pub(crate) has_terminal: bool,
    pub(crate) threads: u32,
    pub(crate) start: u64,
}

impl Stat {
    fn parse(line: &[u8]) -> Option<Self> {
        // The name is in brackets and may itself hold brackets, blanks and line feeds.
        let opens = line.iter().position(|&byte| byte == b'(')?;
        let closes = line.iter().rposition(|&byte| byte == b')')?;
        let program = String::from_utf8_lossy(line.get(opens + 1..closes)?).into_owned();
        let mut fields = line.get(closes + 2..)?.split(|&byte| byte == b' ');
        let state = char::from(*fields.next()?.first()?);
        let parent = parse(fields.next()?)?;
        // Fields 5, 6, 7, 20 and 22, counted from 1; the parent is field 4.
        let group = parse(fields.next()?)?;
        let session = parse(fields.next()?)?;
        let has_terminal = parse::<i32>(fields.next()?)? != 0;
        let threads = parse(fields.nth(12)?)?;
        let start = parse(fields.nth(1)?)?;
        Some(Self {
            program,
            state,
            parent,
            group,
            session,
            has_terminal,
            threads,
            start,
        })
    }
}

/// Opens /proc.
///
/// # Errors
/// It is not mounted, or belongs to another pid namespace.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let unusable = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("/proc is needed to find its processes: {error}"),
        )
    };
    let proc = openat(CWD, "/proc", DIRECTORY_FLAGS, Mode::empty())
        .map_err(|error| unusable(error.into()))?;
    let itself = rustix::fs::readlinkat(&proc, "self", Vec::new())
        .map_err(|error| unusable(error.into()))?;
    if itself.to_bytes() != own_pid().to_string().as_bytes() {
        return Err(io::Error::other("/proc belongs to another pid namespace"));
    }
    Ok(proc)
}

/// The directory of the process that has this pid now, and its state. The directory never shows another process.
pub(crate) fn directory_of(proc: &OwnedFd, pid: i32) -> io::Result<(OwnedFd, Stat)> {
    let directory = openat(proc, pid.to_string(), DIRECTORY_FLAGS, Mode::empty())?;
    let stat = stat(&directory, "stat")?;
    Ok((directory, stat))
}

/// The state of a process or thread from this file of its directory.
pub(crate) fn stat(directory: &OwnedFd, name: &str) -> io::Result<Stat> {
    Stat::parse(&read(directory, name)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The first number of this line of `proc_pid_status(5)`.
pub(crate) fn first_number<T: FromStr>(status: &[u8], name: &[u8]) -> Option<T> {
    status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(name))
        .and_then(|numbers| numbers.split(u8::is_ascii_whitespace).find_map(parse::<T>))
}

pub(crate) fn parse<T: FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

pub(crate) fn read(directory: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(512);
    File::from(openat(directory, name, FILE_FLAGS, Mode::empty())?).read_to_end(&mut content)?;
    Ok(content)
}

/// The clock that [`ProcessId::start`] is read from.
pub(crate) fn tick() -> u64 {
    let now = clock::now().since_boot();
    now.as_secs() * TICKS + u64::from(now.subsec_nanos()) * TICKS / 1_000_000_000
}

/// Whether the process with this pid is above this one in the tree of processes.
pub(crate) fn is_ancestor(pid: i32) -> bool {
    let parent_of = |child: i32| {
        let (directory, _) = directory_of(&open().ok()?, child).ok()?;
        first_number::<i32>(&read(&directory, "status").ok()?, b"PPid:")
    };
    let above = std::iter::successors(Some(own_pid()), |child| parent_of(*child));
    above
        .take_while(|one| *one > 0)
        .skip(1)
        .any(|one| one == pid)
}

pub(crate) fn own_pid() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// The entries of a directory whose names are numbers: processes or threads.
pub(crate) fn numbers_in(directory: &OwnedFd, name: &str) -> io::Result<Vec<i32>> {
    let entries = Dir::new(openat(directory, name, DIRECTORY_FLAGS, Mode::empty())?)?;
    Ok(entries
        .filter_map(|entry| parse(entry.ok()?.file_name().to_bytes()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_stat_line_whatever_the_program_is_called() {
        let line = b"42 (a) R 1 (b\n) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 123456 0 0\n";
        let expected = Stat {
            program: "a) R 1 (b\n".to_owned(),
            state: 'S',
            parent: 7,
            group: 42,
            session: 42,
            has_terminal: false,
            threads: 3,
            start: 123_456,
        };
        assert_eq!(Stat::parse(line), Some(expected));
    }

    #[test]
    fn refuses_anything_else() {
        for line in [
            "",
            "42",
            "42 (",
            "42 (sh)",
            "42 (sh) S",
            ") (",
            "42 (sh) S x 1",
            "42 (sh) S 1 2 3",
        ] {
            assert_eq!(Stat::parse(line.as_bytes()), None, "{line}");
        }
    }
}
