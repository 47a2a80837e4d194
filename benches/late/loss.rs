//! Losses: holders whose etcd falls silent, and the moments at which their processes are dead.
//! It must not know what else the machine does.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::command::{STUBBORN, WORD};
use crate::load::Machine;
use crate::support::{Dlock, Etcd, LIMIT, Process, Running, boot_clock, eventually, unique};

/// Number of locks that are lost at about the same time.
const AT_ONCE: usize = 4;
/// The TTL of every lock, long enough that under each load all holders of a round have begun before the first one is
/// stopped.
const TTL: &str = "--ttl=10";
/// Time from the request to stop to the kill, as the promise has it.
const GRACE: Duration = Duration::from_secs(1);
/// Time from the start of the plain process to its kill.
const PLAIN: Duration = Duration::from_secs(9);
/// Pause between two looks at a timer.
const PACE: Duration = Duration::from_millis(5);
/// No machine is as late as this.
const GIVE_UP: Duration = Duration::from_mins(1);

/// The owner of the locks. Only root's guard has a real-time priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum User {
    Root,
    Nobody,
}

impl User {
    pub(crate) const ALL: [Self; 2] = [Self::Root, Self::Nobody];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Nobody => "another user",
        }
    }

    /// The prefix that starts a program as this user.
    fn launcher(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Root => &[],
            Self::Nobody => &[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ],
        };
        words.iter().map(ToString::to_string).collect()
    }
}

/// How late the kills of some losses were.
#[derive(Default)]
pub(crate) struct Late {
    /// From the moment that was promised to the one from which no process executes anything: each is dead, or has a SIGKILL
    /// and waits for a processor to end.
    pub(crate) killed: Vec<Duration>,
    /// From the same moment to the death of the last process.
    pub(crate) dead: Vec<Duration>,
    /// The latter of a plain process that waits for a moment and kills one other.
    pub(crate) plain: Vec<Duration>,
}

/// A command, until all of its processes are dead.
struct Tree {
    /// The guard's timer, as a file; `None` for a plain process, whose time is known.
    timer: Option<String>,
    /// The end of the timer, once it was seen.
    ends_at: Option<Duration>,
    /// Those that may execute something.
    running: Vec<i32>,
    alive: Vec<OwnedFd>,
    killed_at: Option<Duration>,
    dead_at: Option<Duration>,
}

/// Loses `count` locks.
pub(crate) fn suffer(machine: &Machine, user: User, count: usize) -> Late {
    let etcd = Etcd::start();
    let mut late = Late::default();
    while late.killed.len() < count {
        lose(
            machine,
            user,
            &etcd,
            AT_ONCE.min(count - late.killed.len()),
            &mut late,
        );
    }
    late
}

fn lose(machine: &Machine, user: User, etcd: &Etcd, count: usize, late: &mut Late) {
    let launcher = [machine.launcher(), user.launcher()].concat();
    let mut holders: Vec<Running> = (0..count)
        .map(|_| {
            let name = unique("late");
            let line = [&machine.dlock(), "run", TTL, "-k1", &name, "--"].map(str::to_owned);
            Dlock::program(line)
                .args(STUBBORN)
                .env("DLOCK_ENDPOINTS", etcd.endpoint())
                .under(&launcher)
                .start()
        })
        .collect();
    for holder in &mut holders {
        holder.says("on\n");
    }
    let mut trees: Vec<Tree> = holders.iter().map(Tree::of).collect();
    let kill_at = boot_clock() + PLAIN;
    let myself = std::env::current_exe().expect("a Linux with /proc");
    let plain = Dlock::program([myself])
        .args([WORD, &kill_at.as_micros().to_string()])
        .under(&launcher)
        .start();
    let child = eventually(LIMIT, "the plain process has a child", || {
        plain.process().children().pop()
    });
    trees.push(Tree::known(child, kill_at));
    observe(&mut trees, || etcd.stop());
    etcd.cont();
    for holder in &mut holders {
        let outcome = holder.wait();
        assert!(matches!(outcome.code(), Some(121 | 122)), "{outcome:?}");
    }
    let (plain, trees) = trees.split_last().expect("the plain one");
    late.plain.push(plain.late(plain.dead_at));
    for tree in trees {
        late.killed.push(tree.late(tree.killed_at));
        late.dead.push(tree.late(tree.dead_at));
    }
}

/// Causes the loss and waits until all are dead, with a priority over everything that is observed.
fn observe(trees: &mut [Tree], cause: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            raise_priority();
            let until = boot_clock() + GIVE_UP;
            while trees.iter().any(|tree| tree.dead_at.is_none()) {
                assert!(boot_clock() < until, "a command lives on");
                trees.iter_mut().for_each(Tree::look);
                let mut ends: Vec<PollFd> = trees
                    .iter()
                    .flat_map(|tree| &tree.alive)
                    .map(|process| PollFd::new(process, PollFlags::IN))
                    .collect();
                let pace = PACE.try_into().expect("a short time");
                let _ = poll(&mut ends, Some(&pace));
            }
        });
        cause();
    });
}

impl Tree {
    /// A process that is killed at this time.
    fn known(process: Process, kill_at: Duration) -> Self {
        Self {
            timer: None,
            ends_at: Some(kill_at.saturating_sub(GRACE)),
            running: vec![process.0],
            alive: vec![pidfd(process)],
            killed_at: None,
            dead_at: None,
        }
    }

    fn of(holder: &Running) -> Self {
        let (guard, tree) = (holder.guard(), holder.tree());
        Self {
            timer: Some(timer(guard).expect("the guard has a timer")),
            ends_at: None,
            running: tree.iter().map(|process| process.0).collect(),
            alive: tree.into_iter().map(pidfd).collect(),
            killed_at: None,
            dead_at: None,
        }
    }

    /// Reads the timer, which shows the time of the request to stop until that has come, and forgets the dead.
    fn look(&mut self) {
        let now = boot_clock();
        if let Some(timer) = &self.timer
            && self.ends_at.is_none_or(|ends_at| now < ends_at)
            && let Some(left) = time_left(timer)
        {
            self.ends_at = Some(boot_clock() + left);
        }
        self.alive.retain(|process| {
            let mut end = [PollFd::new(process, PollFlags::IN)];
            poll(&mut end, Some(&Duration::ZERO.try_into().expect("zero"))) == Ok(0)
        });
        if self.ends_at.is_some_and(|ends_at| ends_at <= now) {
            self.running.retain(|pid| !is_killed(*pid));
        }
        let done = |list_is_empty: bool| list_is_empty.then(boot_clock);
        self.killed_at = self.killed_at.or_else(|| done(self.running.is_empty()));
        self.dead_at = self.dead_at.or_else(|| done(self.alive.is_empty()));
    }

    /// Zero if it was in time.
    fn late(&self, at: Option<Duration>) -> Duration {
        let promised_at = self.ends_at.expect("a timer that runs") + GRACE;
        at.expect("it has come").saturating_sub(promised_at)
    }
}

/// Whether the process is dead, or has a SIGKILL that it has not acted on.
fn is_killed(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |line: &str| {
        let set = ["SigPnd:", "ShdPnd:"]
            .iter()
            .find_map(|name| line.strip_prefix(name));
        let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        set.is_some_and(|set| set & 1 << (libc::SIGKILL - 1) != 0)
    };
    status.is_empty() || status.contains("\nState:\tZ") || status.lines().any(pending)
}

fn pidfd(process: Process) -> OwnedFd {
    let pid = Pid::from_raw(process.0).expect("a process id");
    pidfd_open(pid, PidfdFlags::empty()).expect("a live process")
}

/// The file about the timer of this process (`proc_pid_fdinfo(5)`).
fn timer(process: Process) -> Option<String> {
    let all = fs::read_dir(format!("/proc/{}/fdinfo", process.0)).ok()?;
    all.flatten()
        .map(|file| file.path().to_str().expect("a plain path").to_owned())
        .find(|path| time_left(path).is_some())
}

/// The time until this timer ends; zero when it is over.
fn time_left(timer: &str) -> Option<Duration> {
    let text = fs::read_to_string(timer).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("it_value: ("))?;
    let (seconds, nanos) = value.trim_end_matches(')').split_once(", ")?;
    Some(Duration::new(seconds.parse().ok()?, nanos.parse().ok()?))
}

/// Gives this thread a real-time priority above that of a guard.
#[expect(unsafe_code, reason = "no other way to this system call")]
fn raise_priority() {
    let priority = libc::sched_param { sched_priority: 2 };
    // SAFETY: the parameter is alive during the call.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    assert_eq!(done, 0, "root may have a real-time priority");
}
