//! A holder and a waiter of one tool: started, watched from outside, and judged by the beats of their commands.
//! It must not know how a fault is caused.

use std::time::Duration;

use crate::command::{Shape, as_job, in_session, line};
use crate::fault::{Demand, Fault, Strike};
use crate::server::{LockHandle, Server};
use crate::support::{
    Dlock, LIMIT, Running, Scratch, Signal, boot_clock, eventually, since, unique,
};
use crate::tool::Tool;

/// Time in which processes are counted after the waiter's command has begun: one pass over `/proc` may miss a link of a
/// chain.
const COUNTING: Duration = Duration::from_millis(200);

pub(crate) struct Contest {
    pub(crate) holder: Running,
    waiter: Running,
    pub(crate) handle: LockHandle,
    pub(crate) struck_at: Duration,
    dir: Scratch,
    taken_over_at: Option<Duration>,
    left: usize,
}

/// The end of the tool that held the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    Hangs,
}

/// The result of a fault.
pub(crate) struct Measured {
    /// Time between the first beat of the new holder and the last one of the old.
    pub(crate) overlap: Duration,
    /// Whether the kernel refused the new holder the flock that the old tree has.
    pub(crate) refused: bool,
    /// Number of the old command's processes that lived when the new command had begun.
    pub(crate) left: usize,
    pub(crate) exit: Exit,
    /// Time from the fault, or from the command's own end if it survives, to the first beat of the new holder.
    pub(crate) take_over: Option<Duration>,
    /// Whether the command ran to its own end.
    pub(crate) ran_to_end: bool,
}

impl Contest {
    /// Starts a holder and, once it holds, a waiter, and waits until that one waits.
    pub(crate) fn start(
        tool: Tool,
        fault: &Fault,
        holder_at: &str,
        waiter_at: &str,
        witness: Server<'_>,
        wind: impl Fn(Dlock) -> Dlock,
    ) -> Self {
        let (dir, name) = (Scratch::new(), unique("fault"));
        let file = dir.file("flock");
        let enter = |shape, who, span, code| line(shape, dir.path(), who, span, code);
        let mut command = ["env", "-u", "LD_PRELOAD"].map(str::to_owned).to_vec();
        command.extend(enter(fault.shape, "holder", fault.span(tool), fault.code()));
        let run = |at, command| {
            let launcher = if fault.strike == Strike::StopHolder {
                as_job()
            } else {
                in_session()
            };
            tool.run(at, &file, &name, fault.ttl(), command)
                .under(launcher)
        };
        let holder = wind(run(holder_at, command)).start();
        eventually(LIMIT, "the holder is in", || {
            beats(&dir, "holder").is_some()
        });
        let command = enter(Shape::Plain, "waiter", Duration::from_secs(1), 0);
        let waiter = run(waiter_at, command).start();
        let handle = eventually(LIMIT, "the waiter waits", || match tool {
            Tool::Flock => waits_for_flock(waiter.process().0).then(LockHandle::default),
            _ => witness.contended(tool, &name),
        });
        Self {
            holder,
            waiter,
            handle,
            struck_at: boot_clock(),
            dir,
            taken_over_at: None,
            left: 0,
        }
    }

    /// Stops every process of the holder's command.
    pub(crate) fn stop_command(&self) {
        for process in self.holder.tree() {
            process.signal(Signal::STOP);
            eventually(LIMIT, "it is stopped", || process.state() == 'T');
        }
    }

    /// Continues the rest of the holder's command.
    pub(crate) fn continue_command(&self) {
        for process in self.holder.tree() {
            process.signal(Signal::CONT);
        }
    }

    /// Checks whether the waiter's command has begun; if so, counts the rest of the old holder's command.
    pub(crate) fn watch(&mut self) {
        if self.taken_over_at.is_none() && beats(&self.dir, "waiter").is_some() {
            self.taken_over_at = Some(boot_clock());
        }
        if self.taken_over_at.is_some_and(|at| since(at) < COUNTING) {
            self.left = self.left.max(self.holder.tree().len());
        }
    }

    /// Whether holder and waiter have ended, with all processes that they started.
    pub(crate) fn is_over(&mut self) -> bool {
        self.holder.is_over()
            && self.waiter.is_over()
            && self.holder.everything().is_empty()
            && self.waiter.everything().is_empty()
    }

    pub(crate) fn measured(mut self, fault: &Fault) -> Measured {
        let exit = if self.holder.is_over() {
            let outcome = self.holder.wait();
            match (outcome.code(), outcome.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or_default()),
            }
        } else {
            Exit::Hangs
        };
        let at_the_end = self.holder.everything().len() + self.waiter.everything().len();
        let (_, last) = beats(&self.dir, "holder").expect("the holder entered");
        let first = beats(&self.dir, "waiter").map(|(first, _)| first);
        let ended_at = moments(&self.dir, "ended-holder").first().copied();
        let from = match (fault.demand, fault.strike, ended_at) {
            (Demand::Survive, _, Some(ended_at)) | (_, Strike::Leave, Some(ended_at)) => ended_at,
            _ => self.struck_at,
        };
        Measured {
            overlap: first.map_or(Duration::ZERO, |first| last.saturating_sub(first)),
            refused: !moments(&self.dir, "refused-waiter").is_empty(),
            left: self.left.max(at_the_end),
            exit,
            take_over: first.map(|first| first.saturating_sub(from)),
            ran_to_end: ended_at.is_some(),
        }
    }
}

impl Measured {
    pub(crate) fn overlaps(&self) -> bool {
        self.refused || self.overlap > Duration::ZERO
    }

    /// Whether the command ended by itself, and its exit code was passed on.
    pub(crate) fn survived(&self, fault: &Fault) -> bool {
        self.ran_to_end && self.exit == Exit::Code(fault.code().into())
    }

    /// The promise that the result breaks, if it breaks one.
    pub(crate) fn broken_promise(&self, fault: &Fault) -> Option<String> {
        if self.overlaps() {
            return Some(format!("two commands at once for {:?}", self.overlap));
        }
        if self.left > 0 {
            return Some(format!("{} processes left", self.left));
        }
        if self.exit == Exit::Hangs {
            return Some("the holder does not end".to_owned());
        }
        if self.take_over.is_none() {
            return Some("nobody got the lock".to_owned());
        }
        (fault.demand == Demand::Survive && !self.survived(fault))
            .then(|| format!("the command did not survive: {:?}", self.exit))
    }
}

/// The first and the last beat of a command's tree.
fn beats(dir: &Scratch, who: &str) -> Option<(Duration, Duration)> {
    let moments = moments(dir, &format!("beats-{who}"));
    Some((*moments.iter().min()?, *moments.iter().max()?))
}

fn moments(dir: &Scratch, file: &str) -> Vec<Duration> {
    let text = dir.read(file);
    text.lines()
        .filter_map(|line| line.parse().ok())
        .map(Duration::from_micros)
        .collect()
}

/// Whether the kernel lets this process wait for a file's lock.
fn waits_for_flock(pid: i32) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").expect("a Linux");
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.contains(&"->") && words.contains(&pid.to_string().as_str())
    })
}
