//! Inspects processes from outside, through `/proc`, and sends them signals.
//! It must not know which program they run.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{boot_clock, since};

/// The variable that marks every descendant of one started program, also one that left its parent and session.
pub(crate) const MARK: &str = "TEST_TREE";

/// A process by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(pub(crate) i32);

impl Process {
    /// Sends a signal; a process that has just ended is no failure.
    pub(crate) fn signal(self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.0) {
            let _ = kill_process(pid, signal);
        }
    }

    /// The `comm` of the process, empty when it is gone.
    pub(crate) fn name(self) -> String {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.0)).unwrap_or_default();
        name.trim_end().to_owned()
    }

    /// One letter as in ps(1); `X` when the process is gone.
    pub(crate) fn state(self) -> char {
        fs::read_to_string(format!("/proc/{}/stat", self.0))
            .ok()
            .and_then(|stat| {
                stat.rsplit_once(") ")
                    .and_then(|(_, rest)| rest.chars().next())
            })
            .unwrap_or('X')
    }

    /// The processor time that it has used so far, in user and kernel mode.
    pub(crate) fn processor_time(self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        // utime and stime of proc_pid_stat(5), in ticks of 10 ms.
        let ticks = after_name.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Its number, parent and command line, for people.
    pub(crate) fn line(self) -> String {
        let words = fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let parent = after.split(' ').nth(1).unwrap_or("?");
        let (name, state) = (self.name(), self.state());
        format!(
            "{} {name} {state} of {parent} ({})",
            self.0,
            words.trim_end()
        )
    }

    /// Number of its open descriptors.
    pub(crate) fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).map_or(0, Iterator::count)
    }

    /// A file of each of its threads.
    fn of_threads(self, file: &str) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0));
        let tasks = tasks.into_iter().flatten().flatten();
        tasks
            .filter_map(|task| fs::read_to_string(task.path().join(file)).ok())
            .collect()
    }

    /// Number of its threads.
    pub(crate) fn threads(self) -> usize {
        self.of_threads("status").len()
    }

    /// Number of its voluntary context switches, each of which ended in a wake-up.
    pub(crate) fn wake_ups(self) -> u64 {
        let of_one = |status: String| {
            let mut lines = status.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            count.and_then(|count| count.trim().parse::<u64>().ok())
        };
        let threads = self.of_threads("status").into_iter();
        threads.filter_map(of_one).sum()
    }

    /// The direct children.
    pub(crate) fn children(self) -> Vec<Process> {
        self.of_threads("children")
            .into_iter()
            .flat_map(|list| {
                list.split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .map(Process)
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

/// A process that timeout(1) kills: the measure of how late a process that does not know dlock dies on this machine now.
pub(crate) struct PlainKill {
    child: Child,
    dead_at: Option<Duration>,
}

impl PlainKill {
    /// A process that is killed when this time is over.
    pub(crate) fn after(span: Duration) -> Self {
        let span = span.as_secs_f64().to_string();
        let child = Command::new("timeout")
            .args(["-s", "KILL", &span, "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .expect("timeout(1) is part of every Linux");
        Self {
            child,
            dead_at: None,
        }
    }

    /// Whether it was seen dead as long as this ago.
    pub(crate) fn is_dead_for(&mut self, span: Duration) -> bool {
        if self.dead_at.is_none() && self.child.try_wait().expect("our own child").is_some() {
            self.dead_at = Some(boot_clock());
        }
        self.dead_at.is_some_and(|dead_at| since(dead_at) >= span)
    }
}

impl Drop for PlainKill {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // timeout(1) passes it on.
            Process(self.child.id().try_into().expect("a process id")).signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// Whether the process runs or could run again; a zombie does neither.
pub(crate) fn alive(process: Process) -> bool {
    !matches!(process.state(), 'Z' | 'X' | 'x')
}

/// Every live process that carries this mark in the environment it was started with.
pub(crate) fn marked(mark: &str) -> Vec<Process> {
    let wanted = format!("{MARK}={mark}");
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    all.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Process)
        .filter(|process| {
            let environment = fs::read(format!("/proc/{}/environ", process.0)).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == wanted.as_bytes())
        })
        .filter(|process| alive(*process))
        .collect()
}

/// Kills all processes that carry this mark, until none is left.
pub(crate) fn kill_marked(mark: &str) {
    // A fork chain may outrun one pass, but not a hundred.
    for _ in 0..100 {
        let left = marked(mark);
        if left.is_empty() {
            return;
        }
        for process in left {
            process.signal(Signal::KILL);
        }
    }
}
