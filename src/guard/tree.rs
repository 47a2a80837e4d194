//! All descendants of this process, found through /proc and signalled without ever hitting a reused pid.
//! It must not know when or why somebody is signalled.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::process::getpid;

use super::{Survivor, signals};
use crate::clock;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Processes from a descendant up to the root.
const DEEPEST: usize = 1 << 15;

/// Clock ticks per second in /proc (`USER_HZ`), the same on every architecture that Rust builds for.
const TICKS: u64 = 100;

/// More names than this are of no use to anybody.
const MOST_SURVIVORS: usize = 64;

/// One process for as long as the machine is up: a pid comes back, but not within the same tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    pub(super) pid: i32,
    /// Clock ticks since boot, field 22 of `proc_pid_stat(5)`.
    pub(super) start: u64,
}

impl Identity {
    #[cfg(test)]
    pub(super) fn pid(self) -> i32 {
        self.pid
    }
}

/// A process as it was found. Its directory goes stale when it has been reaped and never shows another.
pub(super) struct Process {
    directory: OwnedFd,
    identity: Identity,
    stat: Stat,
}

/// The processes below this one.
pub(super) struct Tree {
    /// Kept open: it serves even when /proc is unmounted later.
    proc: OwnedFd,
    root: i32,
    /// Whether the kernel lists children (`CONFIG_PROC_CHILDREN`); if not, every process is asked for its parent.
    lists: bool,
    /// Children that dlock had from the start, of a shell that said `exec dlock`: none of our business.
    strangers: Vec<Identity>,
    /// A process that has to die with the tree though it does not descend from us, and what was found below it since: a
    /// descendant whose parent has died is a child of init, and nothing but this tells that it is one of them.
    adopted: BTreeSet<Identity>,
    /// Processes that are never among the adopted: dlock and its guard.
    exempt: Vec<Identity>,
}

impl Tree {
    /// Of the calling process. Fails when the kernel or this /proc lacks what killing will need.
    pub(super) fn open() -> io::Result<Self> {
        let unusable = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("/proc is needed to find its processes: {error}"),
            )
        };
        let proc = openat(CWD, "/proc", DIRECTORY, Mode::empty())
            .map_err(|error| unusable(error.into()))?;
        let mut tree = Self {
            proc,
            root: own_pid(),
            lists: true,
            strangers: Vec::new(),
            adopted: BTreeSet::new(),
            exempt: Vec::new(),
        };
        let itself = rustix::fs::readlinkat(&tree.proc, "self", Vec::new())
            .map_err(|error| unusable(error.into()))?;
        if itself.to_bytes() != tree.root.to_string().as_bytes() {
            return Err(io::Error::other("/proc belongs to another pid namespace"));
        }
        let root = tree.find(tree.root)?;
        root.signal(0)?;
        tree.exempt.push(root.identity);
        let children = root.children();
        tree.lists = children.is_ok();
        // Most have none, and every look into /proc costs more than ten other system calls.
        if !children.is_ok_and(|children| children.is_empty()) {
            let mut strangers = Vec::new();
            tree.walk_below(&root, &[], &mut |process| {
                strangers.push(process.identity);
                true
            });
            tree.strangers = strangers;
        }
        Ok(tree)
    }

    /// The same for a process that has just been forked and so has no descendants yet.
    pub(super) fn rooted_here(self) -> Self {
        let mut tree = Self {
            root: own_pid(),
            strangers: Vec::new(),
            ..self
        };
        // dlock itself was first. Only among those of an adopted process could we find ourselves.
        if tree.has_adopted() {
            let root = tree.find(tree.root).map(|process| process.identity);
            tree.exempt.extend(root);
        }
        tree
    }

    /// The process that has this pid now.
    pub(super) fn identify(pid: i32) -> io::Result<Identity> {
        Ok(Self::open()?.find(pid)?.identity)
    }

    /// Counts another process and its descendants in.
    pub(super) fn adopt(&mut self, adopted: Identity) {
        self.adopted.insert(adopted);
    }

    /// Whether a process was adopted that has not been seen dead together with all that was found below it.
    pub(super) fn has_adopted(&self) -> bool {
        !self.adopted.is_empty()
    }

    /// Whether any process of the adopted tree lives, those included that were found earlier and have lost their parent.
    /// The more often this is asked while the tree is ending, the fewer are missed.
    pub(super) fn adopted_lives(&mut self) -> bool {
        let mut lives = false;
        self.walk_adopted(|process| lives |= process.is_alive());
        lives
    }

    /// Whether the kernel lists children, which is quicker than asking everybody.
    pub(super) fn is_listed(&self) -> bool {
        self.lists
    }

    /// Whether there are children besides those of the tree.
    pub(super) fn has_strangers(&self) -> bool {
        !self.strangers.is_empty()
    }

    pub(super) fn is_root(&self, pid: i32) -> bool {
        pid == self.root
    }

    /// Whether the process that has this pid descends from the root.
    pub(super) fn has(&self, mut pid: i32) -> bool {
        // A chain of parents is no longer than this, and a pid that came back meanwhile could close it to a ring.
        for _ in 0..DEEPEST {
            let Ok(process) = self.find(pid) else {
                return false;
            };
            pid = process.stat.parent;
            if pid == self.root {
                return true;
            }
        }
        false
    }

    /// What must stay open for it.
    pub(super) fn descriptor(&self) -> RawFd {
        self.proc.as_raw_fd()
    }

    pub(super) fn find(&self, pid: i32) -> io::Result<Process> {
        let directory = openat(&self.proc, pid.to_string(), DIRECTORY, Mode::empty())?;
        let stat = Stat::parse(&read(&directory, "stat")?)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let identity = Identity {
            pid,
            start: stat.start,
        };
        Ok(Process {
            directory,
            identity,
            stat,
        })
    }

    /// Sends `signal` to this process, and to none that has got its pid since.
    pub(super) fn signal(&self, identity: Identity, signal: i32) -> io::Result<()> {
        let process = self.find(identity.pid)?;
        if process.identity != identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        process.signal(signal)
    }

    /// Visits every descendant, parents first, zombies too. One that appears or changes its parent meanwhile may be missed.
    pub(super) fn walk(&mut self, mut visit: impl FnMut(&Process)) {
        if let Ok(root) = self.find(self.root) {
            self.walk_below(&root, &self.strangers, &mut |process| {
                visit(process);
                true
            });
        }
        self.walk_adopted(visit);
    }

    /// Visits the adopted processes and their descendants, all of which are adopted from now on. Those whose parents died
    /// before they were found are not found any more.
    fn walk_adopted(&mut self, mut visit: impl FnMut(&Process)) {
        let mut met = BTreeSet::new();
        for identity in mem::take(&mut self.adopted) {
            let process = self.find(identity.pid);
            let Some(process) = process.ok().filter(|found| found.identity == identity) else {
                continue;
            };
            // The descendants of a process that was met before have been met with it.
            let mut note = |process: &Process| {
                let new = met.insert(process.identity);
                if new {
                    visit(process);
                }
                new
            };
            if note(&process) {
                self.walk_below(&process, &self.exempt, &mut note);
            }
        }
        self.adopted = met;
    }

    /// Visits every descendant of `top` but the `others` and theirs, and those below one for which `visit` answers no.
    fn walk_below(
        &self,
        top: &Process,
        others: &[Identity],
        visit: &mut impl FnMut(&Process) -> bool,
    ) {
        let all = if self.lists {
            Vec::new()
        } else {
            self.everybody()
        };
        let below = |process: &Process| {
            if self.lists {
                return process.children().unwrap_or_default();
            }
            let pid = process.identity.pid;
            all.iter()
                .filter(|(parent, _)| *parent == pid)
                .map(|(_, child)| *child)
                .collect()
        };
        let mut queue = VecDeque::new();
        let enqueue = |parent: &Process, queue: &mut VecDeque<(i32, i32, u64)>| {
            let children = below(parent);
            let listed = tick();
            queue.extend(
                children
                    .into_iter()
                    .map(|child| (parent.identity.pid, child, listed)),
            );
        };
        enqueue(top, &mut queue);
        while let Some((parent, child, listed)) = queue.pop_front() {
            let Ok(process) = self.find(child) else {
                continue;
            };
            // When its parent has died since, it is a child of ours, of init, or of another that collects orphans. Only
            // one that has started since is somebody else, who has got a dead one's pid.
            let same = [parent, self.root].contains(&process.stat.parent)
                || process.identity.start <= listed;
            if same && !others.contains(&process.identity) && visit(&process) {
                enqueue(&process, &mut queue);
            }
        }
    }

    /// Asks every descendant to stop: `signal` to all, then SIGCONT to all, for a stopped process does not act on it.
    /// Whoever is forked meanwhile is left alone: it may be what cleans up.
    pub(super) fn ask(&mut self, signal: i32) {
        let mut asked = Vec::new();
        self.walk(|process| asked.push(process.identity));
        for signal in [signal, libc::SIGCONT] {
            for &identity in &asked {
                // One that is gone needs no signal; one that is not ours to signal will be a survivor.
                let _ = self.signal(identity, signal);
            }
        }
    }

    /// The processes of the tree that are alive, or that have ended and are kept by the process that traces them.
    pub(super) fn survivors(&mut self) -> Vec<Survivor> {
        let mut survivors = Vec::new();
        self.walk(|process| {
            if survivors.len() >= MOST_SURVIVORS {
                return;
            }
            let survivor = process.survivor();
            if process.is_alive() || survivor.tracer.is_some() {
                survivors.push(survivor);
            }
        });
        survivors
    }

    /// How many of the tree are alive.
    pub(super) fn count(&mut self) -> usize {
        let mut count = 0;
        self.walk(|process| count += usize::from(process.is_alive()));
        count
    }

    /// Everybody on this machine, as parent and child.
    fn everybody(&self) -> Vec<(i32, i32)> {
        numbers_in(&self.proc, ".")
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pid| Some((self.find(pid).ok()?.stat.parent, pid)))
            .collect()
    }
}

impl Process {
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        signals::send(self.directory.as_fd(), signal)
    }

    /// The same with the value that `sigqueue(3)` sends along.
    pub(super) fn queue(&self, signal: i32, value: u64) -> io::Result<()> {
        signals::send_value(self.directory.as_fd(), signal, value)
    }

    /// Whether it goes by the name of a dlock or of a guard.
    pub(super) fn is_dlock(&self) -> bool {
        ["dlock", "dlock-guard"].contains(&&*self.stat.program)
    }

    /// A zombie may only be the first of several threads.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.stat.state, 'Z' | 'X') || self.stat.threads > 1
    }

    /// Of all its threads: the kernel keeps one list for each.
    fn children(&self) -> io::Result<Vec<i32>> {
        let threads = if self.stat.threads > 1 {
            numbers_in(&self.directory, "task")?
        } else {
            vec![self.identity.pid]
        };
        let mut children = Vec::new();
        for thread in threads {
            let list = match read(&self.directory, &format!("task/{thread}/children")) {
                Err(_) if thread != self.identity.pid => continue, // a thread that has ended meanwhile
                list => list?,
            };
            children.extend(list.split(|&byte| byte == b' ').filter_map(parse::<i32>));
        }
        Ok(children)
    }

    fn survivor(&self) -> Survivor {
        let status = read(&self.directory, "status").unwrap_or_default();
        let uid = first_number(&status, b"Uid:");
        let tracer = first_number(&status, b"TracerPid:");
        Survivor {
            pid: self.identity.pid,
            state: self.stat.state,
            // Shown to people, and only a process that has died since has none.
            uid: uid.unwrap_or_default(),
            program: self.stat.program.clone(),
            tracer: tracer.filter(|&tracer| tracer != 0),
        }
    }
}

/// What we need of `proc_pid_stat(5)`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    program: String,
    state: char,
    parent: i32,
    threads: u32,
    start: u64,
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
        // Fields 20 and 22, counted from 1; the parent is field 4.
        let threads = parse(fields.nth(15)?)?;
        let start = parse(fields.nth(1)?)?;
        Some(Self {
            program,
            state,
            parent,
            threads,
            start,
        })
    }
}

/// The first number of this line of `proc_pid_status(5)`.
fn first_number<T: std::str::FromStr>(status: &[u8], name: &[u8]) -> Option<T> {
    status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(name))
        .and_then(|numbers| numbers.split(u8::is_ascii_whitespace).find_map(parse::<T>))
}

fn parse<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

fn read(directory: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(512);
    File::from(openat(directory, name, FILE, Mode::empty())?).read_to_end(&mut content)?;
    Ok(content)
}

/// The clock that [`Identity::start`] is read from.
fn tick() -> u64 {
    let now = clock::now().since_boot();
    now.as_secs() * TICKS + u64::from(now.subsec_nanos()) * TICKS / 1_000_000_000
}

fn own_pid() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// The entries of a directory whose names are numbers: processes or threads.
fn numbers_in(directory: &OwnedFd, name: &str) -> io::Result<Vec<i32>> {
    let entries = Dir::new(openat(directory, name, DIRECTORY, Mode::empty())?)?;
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

    #[test]
    fn lists_and_the_scan_for_parents_agree() {
        let mut tree = Tree::open().unwrap();
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 1000 & sleep 1000 & wait"])
            .spawn()
            .unwrap();
        let id = i32::try_from(child.id()).unwrap();
        let below = |tree: &mut Tree| {
            let mut found = Vec::new();
            tree.walk(|process| {
                if process.identity.pid == id || process.stat.parent == id {
                    found.push(process.identity);
                }
            });
            found.sort();
            found
        };
        while below(&mut tree).len() < 3 {
            std::thread::yield_now();
        }
        let listed = below(&mut tree);
        tree.lists = false;
        assert_eq!(below(&mut tree), listed);
        for identity in listed {
            tree.find(identity.pid)
                .unwrap()
                .signal(libc::SIGKILL)
                .unwrap();
        }
        child.wait().unwrap();
    }
}
