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
/// Of every lock: the least possible one.
const TTL: &str = "--ttl=5";
/// Time from the request to stop to the kill, as the promise has it.
const GRACE: Duration = Duration::from_secs(1);
/// Pause between two looks at a timer.
const PACE: Duration = Duration::from_millis(5);
/// No machine is as late as this.
const GIVE_UP: Duration = Duration::from_mins(1);

/// Whose locks they are. Only root's guard has a real-time priority.
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
    /// Of dlock's guard: from the moment that was promised to the death of the last process.
    pub(crate) guard: Vec<Duration>,
    /// Of a plain process that waits for the same moment, and kills one process.
    pub(crate) plain: Vec<Duration>,
}

/// A command, until all of its processes are dead.
struct Tree {
    /// The guard's timer, as a file; `None` for a plain process, whose time is known.
    timer: Option<String>,
    /// The end of the timer, once it was seen.
    ends_at: Option<Duration>,
    alive: Vec<OwnedFd>,
    dead_at: Option<Duration>,
}

/// Loses `count` locks.
pub(crate) fn suffer(machine: &Machine, user: User, count: usize) -> Late {
    let etcd = Etcd::start();
    let mut late = Late::default();
    while late.guard.len() < count {
        lose(
            machine,
            user,
            &etcd,
            AT_ONCE.min(count - late.guard.len()),
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
    etcd.stop();
    let mut trees: Vec<Tree> = holders.iter().map(Tree::of).collect();
    let stop_at = boot_clock() + Duration::from_secs(3);
    let plain_at = stop_at + GRACE;
    let myself = std::env::current_exe().expect("a Linux with /proc");
    let plain = Dlock::program([myself])
        .args([WORD, &plain_at.as_micros().to_string()])
        .under(&launcher)
        .start();
    let child = eventually(LIMIT, "the plain process has a child", || {
        plain.process().children().pop()
    });
    trees.push(Tree {
        timer: None,
        ends_at: Some(stop_at),
        alive: vec![pidfd(child)],
        dead_at: None,
    });
    observe(&mut trees);
    etcd.cont();
    for holder in &mut holders {
        let outcome = holder.wait();
        assert!(matches!(outcome.code(), Some(121 | 122)), "{outcome:?}");
    }
    let mut late_ones = trees.iter().map(Tree::late);
    late.plain.extend(late_ones.next_back());
    late.guard.extend(late_ones);
}

/// Waits until all are dead, with a priority over everything that it observes.
fn observe(trees: &mut [Tree]) {
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
    });
}

impl Tree {
    fn of(holder: &Running) -> Self {
        let guard = holder.guard();
        Self {
            timer: Some(timer(guard).expect("the guard has a timer")),
            ends_at: None,
            alive: holder.tree().into_iter().map(pidfd).collect(),
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
        if self.alive.is_empty() && self.dead_at.is_none() {
            self.dead_at = Some(boot_clock());
        }
    }

    /// Zero if it was killed in time.
    fn late(&self) -> Duration {
        let promised_at = self.ends_at.expect("a timer that runs") + GRACE;
        let dead_at = self.dead_at.expect("it is dead");
        dead_at.saturating_sub(promised_at)
    }
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

/// What is left until this timer ends; zero when it is over.
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
