//! All descendants of this process, found through /proc and signalled without ever hitting a reused pid.
//! It must not know when or why a process is signalled.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, test_kill_process, waitid,
};

use super::Survivor;
use crate::core::time::Instant;
use crate::sys::clock;
use crate::sys::descriptors::named;
use crate::sys::proc::{self, ProcessId, Stat};
use crate::sys::signals;

/// Maximum number of processes from a descendant up to the root.
const DEEPEST: usize = 1 << 15;

/// Limit, from the first SIGSTOP, of the phase that only stops processes while new ones appear.
pub(super) const FREEZE_LIMIT: Duration = Duration::from_millis(100);

/// Pause between two searches for processes that have got SIGSTOP and have not stopped yet.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Maximum number of survivors in a report.
const MAX_SURVIVORS: usize = 64;

/// The state of a process that /proc hides.
pub(super) const UNKNOWN_STATE: char = '?';

/// A process as it was found. Once it is reaped, its directory is stale and never shows another process.
pub(super) struct Process {
    directory: OwnedFd,
    pub(super) identity: ProcessId,
    stat: Stat,
}

/// The processes below this one.
pub(super) struct Tree {
    /// /proc, kept open: it works even if /proc is unmounted later.
    proc: OwnedFd,
    root: i32,
    /// Whether the kernel lists children (`CONFIG_PROC_CHILDREN`); if not, the parent of every process is read.
    lists: bool,
    /// Children that dlock had from the start, after `exec dlock` in a shell: they are not of the tree.
    preexisting: Vec<ProcessId>,
    /// A process that must die with the tree though it is no descendant, and those found below it since: a descendant
    /// whose parent has died is a child of init, and only this set shows where it belongs.
    adopted: BTreeSet<ProcessId>,
    /// The process itself that was adopted.
    top: Option<Top>,
    /// Whether /proc hid one of the adopted processes in the last search (`hidepid` of `proc(5)`): it may live.
    hidden: bool,
    /// Processes that are never among the adopted: dlock and its guard.
    exempt: Vec<ProcessId>,
}

/// An adopted process. Its parent is not of the tree, and may take a stop of it for its own (su(1)) or a user's (a shell with
/// job control), so it is never stopped.
struct Top {
    identity: ProcessId,
    group: i32,
    session: i32,
    /// Its parent and so on up to init: one of them gets its children when it dies.
    ancestors: Vec<i32>,
    /// The begin of its end, in ticks as [`ProcessId::start`].
    ending_since: Option<u64>,
}

impl Tree {
    /// The tree of the calling process. Fails when the kernel or this /proc lacks something that killing needs.
    pub(super) fn open() -> io::Result<Self> {
        let mut tree = Self {
            proc: proc::open()?,
            root: proc::own_pid(),
            lists: true,
            preexisting: Vec::new(),
            adopted: BTreeSet::new(),
            top: None,
            hidden: false,
            exempt: Vec::new(),
        };
        let root = tree.find(tree.root)?;
        root.signal(0)
            .map_err(|error| named("pidfd_send_signal", error))?;
        tree.exempt.push(root.identity);
        let children = root.children();
        tree.lists = children.is_ok();
        // Most callers have none, and each read of /proc costs more than ten other system calls.
        if !children.is_ok_and(|children| children.is_empty()) {
            tree.preexisting = tree.below_except(None);
        }
        Ok(tree)
    }

    /// The tree of a process that has just been forked and so has no descendants yet.
    pub(super) fn rooted_here(self) -> Self {
        let mut tree = Self {
            root: proc::own_pid(),
            preexisting: Vec::new(),
            ..self
        };
        // dlock itself was first. Only below an adopted process could this process find itself.
        if tree.has_adopted() {
            let root = tree.find(tree.root).map(|process| process.identity);
            tree.exempt.extend(root);
        }
        tree
    }

    /// Adds another process and its descendants to the tree.
    pub(super) fn adopt(&mut self, adopted: ProcessId) {
        self.adopted.insert(adopted);
        let found = self.find(adopted.pid).ok();
        self.top = found
            .filter(|found| found.identity == adopted)
            .map(|found| Top {
                identity: adopted,
                group: found.stat.group,
                session: found.stat.session,
                ancestors: self.ancestors(found.stat.parent),
                ending_since: None,
            });
    }

    /// The process with this pid, its parent and so on.
    fn ancestors(&self, mut pid: i32) -> Vec<i32> {
        let mut ancestors = Vec::new();
        while pid > 0 && ancestors.len() < DEEPEST {
            ancestors.push(pid);
            pid = self.find(pid).map_or(0, |process| process.stat.parent);
        }
        ancestors
    }

    /// Whether an adopted process, or one found below it, has not been seen dead yet.
    pub(super) fn has_adopted(&self) -> bool {
        !self.adopted.is_empty()
    }

    /// Whether an adopted process lives, including those that were found earlier and have lost their parent. The more often
    /// this is called while the tree is ending, the fewer processes are missed.
    pub(super) fn adopted_lives(&mut self) -> bool {
        let mut lives = false;
        self.walk_adopted(|process| lives |= process.is_alive());
        lives || self.hidden
    }

    /// Whether a search that finds no process proves that there is none. Hidden descendants are found by the lists of
    /// children alone.
    pub(super) fn sees_all(&self) -> bool {
        // A /proc that hides anything hides the first process from a plain user.
        !self.hidden && (self.lists || self.find(1).is_ok())
    }

    /// Whether the kernel lists children, which is quicker than reading every process.
    pub(super) fn is_listed(&self) -> bool {
        self.lists
    }

    /// The processes below this one, except this child and those below it.
    pub(super) fn below_except(&self, child: Option<i32>) -> Vec<ProcessId> {
        let mut found = Vec::new();
        if let Ok(root) = self.find(self.root) {
            self.walk_below(&root, &[], &mut |process| {
                let is_other = Some(process.identity.pid) != child;
                if is_other {
                    found.push(process.identity);
                }
                is_other
            });
        }
        found
    }

    /// Spares these processes and those below them, too.
    pub(super) fn spare(&mut self, others: Vec<ProcessId>) {
        self.preexisting.extend(others);
        self.preexisting.sort_unstable();
        self.preexisting.dedup();
    }

    /// Whether there are children that are not of the tree.
    pub(super) fn has_preexisting(&self) -> bool {
        !self.preexisting.is_empty()
    }

    pub(super) fn is_root(&self, pid: i32) -> bool {
        pid == self.root
    }

    /// Whether the process that has this pid descends from the root.
    pub(super) fn has(&self, mut pid: i32) -> bool {
        // A chain of parents is no longer than this, and a reused pid could close it to a ring.
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

    /// The descriptor that must stay open for it.
    pub(super) fn descriptor(&self) -> RawFd {
        self.proc.as_raw_fd()
    }

    /// The process that has this pid now.
    pub(super) fn find(&self, pid: i32) -> io::Result<Process> {
        let found = proc::directory_of(&self.proc, pid);
        let (directory, stat) = found.or_else(|error| hidden_child(pid).ok_or(error))?;
        let identity = ProcessId {
            pid,
            start: stat.start,
        };
        Ok(Process {
            directory,
            identity,
            stat,
        })
    }

    /// Sends `signal` to this process, never to a later one with the same pid.
    pub(super) fn signal(&self, identity: ProcessId, signal: i32) -> io::Result<()> {
        let process = self.find(identity.pid)?;
        if process.identity != identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        process.signal(signal)
    }

    /// Visits every descendant, parents first, zombies too. A process that appears or changes its parent meanwhile may be missed.
    pub(super) fn walk(&mut self, mut visit: impl FnMut(&Process)) {
        if let Ok(root) = self.find(self.root) {
            self.walk_below(&root, &self.preexisting, &mut |process| {
                visit(process);
                true
            });
        }
        self.walk_adopted(visit);
    }

    /// Visits the adopted processes and their descendants, all of which are adopted from now on. A descendant whose parent
    /// died before it was found is never found.
    fn walk_adopted(&mut self, mut visit: impl FnMut(&Process)) {
        let mut met = BTreeSet::new();
        // The descendants of a process that was visited before have been visited with it.
        let mut note = |process: &Process| {
            let new = met.insert(process.identity);
            if new {
                visit(process);
            }
            new
        };
        let mut hidden = BTreeSet::new();
        for identity in mem::take(&mut self.adopted) {
            match self.find(identity.pid) {
                Ok(process) => {
                    if process.identity == identity && note(&process) {
                        self.walk_below(&process, &self.exempt, &mut note);
                    }
                }
                // It gets no signal: its pid may be that of another process by now.
                Err(_) if exists(identity.pid) => drop(hidden.insert(identity)),
                Err(_) => {}
            }
        }
        for orphan in self.orphans_of_top() {
            if note(&orphan) {
                self.walk_below(&orphan, &self.exempt, &mut note);
            }
        }
        self.hidden = !hidden.is_empty();
        met.append(&mut hidden);
        self.adopted = met;
    }

    /// The children that the adopted process forked after the last search, and left to an ancestor by its death: they are of
    /// its process group and session, this ancestor is not, and they are younger than the begin of the end.
    fn orphans_of_top(&self) -> Vec<Process> {
        let Some(Top {
            identity,
            group,
            session,
            ref ancestors,
            ending_since: Some(since),
        }) = self.top
        else {
            return Vec::new();
        };
        let lives = |top: &Process| top.identity == identity && top.is_alive();
        if self.find(identity.pid).is_ok_and(|top| lives(&top)) {
            return Vec::new();
        }
        let of_group =
            |process: &Process| (process.stat.group, process.stat.session) == (group, session);
        let is_orphan = |process: &Process| {
            of_group(process)
                && process.identity.start >= since
                && !self.exempt.contains(&process.identity)
                && ancestors.contains(&process.stat.parent)
                && !(self.find(process.stat.parent)).is_ok_and(|parent| of_group(&parent))
        };
        proc::numbers_in(&self.proc, ".")
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pid| self.find(pid).ok())
            .filter(is_orphan)
            .collect()
    }

    /// The adopted process itself.
    pub(super) fn top(&self) -> Option<ProcessId> {
        self.top.as_ref().map(|top| top.identity)
    }

    /// Visits every descendant of `top`, except `others`, their descendants, and those below a process for which `visit`
    /// returns false.
    fn walk_below(
        &self,
        top: &Process,
        others: &[ProcessId],
        visit: &mut impl FnMut(&Process) -> bool,
    ) {
        let all = if self.lists {
            Vec::new()
        } else {
            self.all_processes()
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
            let listed = proc::tick();
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
            // If its parent has died since, it is now a child of this process, of init, or of another subreaper. Only a
            // process that has started since is another one, with the pid of a dead one.
            let same = [parent, self.root].contains(&process.stat.parent)
                || process.identity.start <= listed;
            if same && !others.contains(&process.identity) && visit(&process) {
                enqueue(&process, &mut queue);
            }
        }
    }

    /// Asks every descendant to stop: sends `signal` to all, then SIGCONT to all, because a stopped process does not act on
    /// a signal. A process that is forked meanwhile gets none: it may be the one that cleans up.
    pub(super) fn send_stop_signal(&mut self, signal: i32) {
        self.freeze_adopted(clock::now() + FREEZE_LIMIT);
        let mut asked = Vec::new();
        self.walk(|process| asked.push(process.identity));
        for (process, signal) in stop_sequence(&asked, self.top(), signal) {
            // A process that is gone needs no signal; one that cannot be signalled will be a survivor.
            let _ = self.signal(process, signal);
        }
    }

    /// SIGSTOP to the adopted processes until all of them are stopped and no new one appears, or until `limit_at`. A child
    /// that is forked between the search and the death of its parent would become a child of init, which nothing connects
    /// with the tree; the other descendants become children of this process.
    pub(super) fn freeze_adopted(&mut self, limit_at: Instant) {
        let top = self.top.as_mut().map(|top| {
            top.ending_since.get_or_insert_with(proc::tick);
            top.identity
        });
        let mut sent = BTreeSet::new();
        // A fork that had begun when the signal came is completed before the parent stops, and its child is in a list of
        // children that is read later: the search after the last stop counts.
        let mut quiet_searches = 0;
        while self.has_adopted() && quiet_searches < 2 && clock::now() < limit_at {
            let (mut grows, mut runs) = (false, false);
            self.walk_adopted(|process| {
                if Some(process.identity) == top {
                    return;
                }
                // A process that may not be signalled is named as a survivor later.
                if sent.contains(&process.identity) {
                    runs |= process.may_fork();
                } else if process.is_alive() && process.signal(libc::SIGSTOP).is_ok() {
                    grows |= sent.insert(process.identity);
                }
            });
            if grows || runs {
                quiet_searches = 0;
            } else {
                quiet_searches += 1;
            }
            if runs && !grows {
                thread::sleep(STOP_POLL_INTERVAL);
            }
        }
    }

    /// The processes of the tree that are alive, or that have ended and are kept by the process that traces them.
    pub(super) fn survivors(&mut self) -> Vec<Survivor> {
        self.survivors_except(|_| false)
    }

    /// The same without those for which `except` returns true.
    pub(super) fn survivors_except(&mut self, except: impl Fn(&Process) -> bool) -> Vec<Survivor> {
        let mut survivors = Vec::new();
        self.walk(|process| {
            if survivors.len() >= MAX_SURVIVORS || except(process) {
                return;
            }
            let survivor = process.survivor();
            if process.is_alive() || survivor.tracer.is_some() {
                survivors.push(survivor);
            }
        });
        survivors
    }

    /// Number of living processes of the tree.
    pub(super) fn count(&mut self) -> usize {
        let mut count = 0;
        self.walk(|process| count += usize::from(process.is_alive()));
        count
    }

    /// All processes of this machine, as parent and child.
    fn all_processes(&self) -> Vec<(i32, i32)> {
        proc::numbers_in(&self.proc, ".")
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pid| Some((self.find(pid).ok()?.stat.parent, pid)))
            .collect()
    }
}

/// The signals that stop these processes, given parents first, in their order.
///
/// SIGCONT is sent to children first, and the adopted process `top` is the last of all: when a parent dies whose children are
/// stopped, the kernel sends them SIGHUP before they can act on `signal` (setpgid(2), "orphaned process group").
pub(super) fn stop_sequence(
    processes: &[ProcessId],
    top: Option<ProcessId>,
    signal: i32,
) -> Vec<(ProcessId, i32)> {
    let (top, others): (Vec<_>, Vec<_>) = processes
        .iter()
        .copied()
        .partition(|&process| Some(process) == top);
    let stop = others.iter().map(|&process| (process, signal));
    let resume = others.iter().rev().map(|&process| (process, libc::SIGCONT));
    let last = top
        .iter()
        .flat_map(|&process| [(process, signal), (process, libc::SIGCONT)]);
    stop.chain(resume).chain(last).collect()
}

/// A child of this process that /proc hides, as `hidepid` does with the processes of other users and those that are not
/// dumpable: its pidfd takes the place of its directory. Its pid is its own until it is waited for.
fn hidden_child(pid: i32) -> Option<(OwnedFd, Stat)> {
    let pid = Pid::from_raw(pid)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Fails for a process that is no child.
    let ended = waitid(WaitId::PidFd(process.as_fd()), options).ok()?;
    let stat = Stat {
        program: String::new(),
        state: if ended.is_some() { 'Z' } else { UNKNOWN_STATE },
        parent: proc::own_pid(),
        group: 0,
        session: 0,
        has_terminal: false,
        threads: 1,
        start: 0,
    };
    Some((process, stat))
}

/// Whether any process has this pid, also one that /proc hides.
fn exists(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

impl Process {
    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        signals::send(self.directory.as_fd(), signal)
    }

    /// Sends `signal` with a value, as `sigqueue(3)` does.
    pub(super) fn queue(&self, signal: i32, value: u64) -> io::Result<()> {
        signals::send_value(self.directory.as_fd(), signal, value)
    }

    /// Whether its program name is that of dlock or of a guard.
    pub(super) fn is_dlock(&self) -> bool {
        ["dlock", "dlock-guard"].contains(&&*self.stat.program)
    }

    /// Whether it lives. A zombie may be only the first of several threads.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.stat.state, 'Z' | 'X') || self.stat.threads > 1
    }

    /// Whether one of its threads is neither stopped nor dead.
    fn may_fork(&self) -> bool {
        let runs = |state| !matches!(state, 'T' | 't' | 'Z' | 'X');
        self.thread_states().into_iter().any(runs)
    }

    /// Whether it only waits for a processor, as far as can be seen, and the kernel takes a signal for it. After a SIGKILL, such a process executes
    /// no instruction of its program any more: it ends as soon as it gets a processor.
    pub(super) fn is_ready(&self) -> bool {
        let is_ready = |state| matches!(state, 'R' | 'Z' | 'X' | UNKNOWN_STATE);
        self.is_alive() && self.thread_states().into_iter().all(is_ready) && self.signal(0).is_ok()
    }

    fn thread_states(&self) -> Vec<char> {
        if self.stat.threads <= 1 {
            return vec![self.stat.state];
        }
        // A thread without a readable state has ended meanwhile.
        let threads = proc::numbers_in(&self.directory, "task").unwrap_or_default();
        threads
            .into_iter()
            .filter_map(|thread| proc::stat(&self.directory, &format!("task/{thread}/stat")).ok())
            .map(|stat| stat.state)
            .collect()
    }

    /// The children of all its threads: the kernel keeps one list for each.
    fn children(&self) -> io::Result<Vec<i32>> {
        let threads = if self.stat.threads > 1 {
            proc::numbers_in(&self.directory, "task")?
        } else {
            vec![self.identity.pid]
        };
        let mut children = Vec::new();
        for thread in threads {
            let list = match proc::read(&self.directory, &format!("task/{thread}/children")) {
                Err(_) if thread != self.identity.pid => continue, // a thread that has ended meanwhile
                list => list?,
            };
            children.extend(
                list.split(|&byte| byte == b' ')
                    .filter_map(proc::parse::<i32>),
            );
        }
        Ok(children)
    }

    fn survivor(&self) -> Survivor {
        let status = proc::read(&self.directory, "status").unwrap_or_default();
        let uid = proc::first_number(&status, b"Uid:");
        let tracer = proc::first_number(&status, b"TracerPid:");
        Survivor {
            pid: self.identity.pid,
            state: self.stat.state,
            // This is only shown, and only a process that has died since has none.
            uid: uid.unwrap_or_default(),
            program: self.stat.program.clone(),
            tracer: tracer.filter(|&tracer| tracer != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            thread::yield_now();
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
