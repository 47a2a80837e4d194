//! The guard's own process: one loop that starts the command, keeps its deadlines and sees its tree die.
//! It must not know the lock, the network, or why dlock gives an order.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, getpid, kill_process, kill_process_group, set_child_subreaper, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

use super::backchannel::Backchannel;
use super::job::CallerJob;
use super::kill_loop::{Children, KillLoop, reap};
use super::protocol::{self, Order, Signal};
use super::spawn::{self, Launched, Program};
use super::termination::{Step, Termination};
use super::tree::Tree;
use super::{Cause, GuardReport, Policy};
use crate::core::forwarding::{Recipient, Sender, recipient};
use crate::core::request::Leftovers;
use crate::core::time::{Deadlines, Instant};
use crate::sys::clock;
use crate::sys::descriptors;
use crate::sys::groups::group_of;
use crate::sys::process::ExitStatus;

/// Does not wait.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// How long we stay out of dlock's way when nothing is left to do: it wakes on this processor, and has the lock to give
/// back. The end of a process takes 80 us (perf sched), in which it would wait.
const EXIT_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000,
};

/// Between two looks at processes that are no children of ours, or that have to be continued.
const POLL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// What the guard works with. Made before the fork, so that dlock learns when something is missing.
pub(super) struct Resources {
    pub(super) tree: Tree,
    /// Readable when a child has ended.
    pub(super) deaths: OwnedFd,
    /// On `CLOCK_BOOTTIME`: a timeout of `poll(2)` stands still while the machine sleeps.
    pub(super) timer: OwnedFd,
    /// Of /dev/null.
    pub(super) null: OwnedFd,
    /// Open for as long as this process lives.
    pub(super) shared: Option<RawFd>,
    pub(super) program: Program,
    pub(super) policy: Policy,
}

/// The guard's life, with every signal blocked. The process has to end after it.
pub(super) fn run(link: Backchannel, equipment: Resources) -> rustix::io::Result<()> {
    // For those who look with ps(1).
    let _ = rustix::thread::set_name(c"dlock-guard");
    set_child_subreaper(Some(getpid()))?;
    let tree = equipment.tree.rooted_here();
    let mut process = Supervisor {
        backchannel: Some(link),
        resources: Resources { tree, ..equipment },
    };
    let last = match process.await_start() {
        Some((variables, deadlines)) => process.start(&variables, deadlines),
        None => GuardReport::Ended {
            status: None,
            cause: Cause::Ordered,
        },
    };
    process.report(&last);
    process.flush_reports();
    Ok(())
}

struct Supervisor {
    /// To dlock, for as long as it lives.
    backchannel: Option<Backchannel>,
    resources: Resources,
}

impl Supervisor {
    /// `None` when there is nothing to start any more.
    fn await_start(&mut self) -> Option<(Vec<(String, String)>, Deadlines)> {
        loop {
            match self.backchannel.as_mut()?.receive() {
                Ok(Some(Order::Start {
                    variables,
                    deadlines,
                })) => return Some((variables, deadlines)),
                Ok(Some(Order::Extend { beat, .. })) => self.ack(beat),
                Ok(Some(Order::Forward(_) | Order::Resumed)) => {}
                Ok(Some(Order::Stop | Order::Kill)) => return None,
                Ok(None) => wait(&mut self.backchannel, &[], None),
                Err(_) => self.backchannel = None,
            }
        }
    }

    /// Sees the command through from its start to the last report.
    fn start(&mut self, variables: &[(String, String)], deadlines: Deadlines) -> GuardReport {
        if clock::now() >= deadlines.stop_at.min(deadlines.kill_at) {
            return GuardReport::Ended {
                status: None,
                cause: Cause::Deadline,
            };
        }
        match self.resources.program.start(variables) {
            Ok(launched) => {
                let job = CallerJob::of_caller();
                // Whatever the terminal or a script sends to the caller's group passes us by from now on. A session, not
                // only a group: the command would tie the caller's group to it, and when the last tie goes the kernel
                // sends SIGHUP to a group in which anything is stopped (setpgid(2), orphaned process groups).
                let _ = setsid();
                self.close_inherited(&launched.outcome);
                Supervision::new(self, launched, deadlines, job).run()
            }
            Err(error) => GuardReport::CannotStart {
                errno: error.raw_os_error().unwrap_or(libc::EINVAL),
            },
        }
    }

    /// The command has what the caller handed on: our copies go. Those that do not only keep a reader waiting.
    fn close_inherited(&self, outcome: &OwnedFd) {
        let Resources {
            tree,
            deaths,
            timer,
            null,
            shared,
            ..
        } = &self.resources;
        let _ = dup2_stdin(null)
            .and(dup2_stdout(null))
            .and(dup2_stderr(null));
        let own = [deaths, timer, null, outcome].map(AsRawFd::as_raw_fd);
        let link = self
            .backchannel
            .as_ref()
            .map(|link| link.as_fd().as_raw_fd());
        let others = [link.as_slice(), shared.as_slice()].concat();
        let _ = descriptors::close_all_but(&[&own[..], &[tree.descriptor()], &others].concat());
        let _ = rustix::process::chdir("/");
    }

    /// Says what dlock has to know. When it is gone, [`Link::receive`] tells.
    fn report(&mut self, report: &GuardReport) {
        if let Some(link) = &mut self.backchannel {
            let _ = link.send(report);
        }
    }

    /// Answers a ping, unless dlock is far behind in reading.
    fn ack(&mut self, beat: u64) {
        if let Some(link) = &mut self.backchannel {
            let _ = link.try_send(&GuardReport::Ack(beat));
        }
    }

    /// Sends on what is owed to a dlock that does not read, for as long as it lives, and mostly lets it go first.
    fn flush_reports(mut self) {
        while let Some(link) = &mut self.backchannel
            && link.flush().is_ok()
            && link.has_unsent()
        {
            let _ = poll(&mut [PollFd::new(link, PollFlags::OUT)], None);
        }
        if let Some(link) = &self.backchannel {
            let _ = poll(&mut [PollFd::new(link, PollFlags::IN)], Some(&EXIT_PAUSE));
        }
    }
}

/// Waits until one of `sources` or the link has something for us, or `timeout` is over. An error is as good as an event:
/// whoever waits looks for himself what has happened.
fn wait(link: &mut Option<Backchannel>, sources: &[&OwnedFd], timeout: Option<&Timespec>) {
    let mut polled: Vec<_> = sources
        .iter()
        .map(|source| PollFd::new(*source, PollFlags::IN))
        .collect();
    if let Some(link) = link {
        let sending = if link.has_unsent() {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        };
        polled.push(PollFd::new(link, PollFlags::IN | sending));
    }
    let _ = poll(&mut polled, timeout);
    if let Some(link) = link {
        // What goes wrong here is met again by who reads.
        let _ = link.flush();
    }
}

/// A command and its tree, from the start to the end.
struct Supervision<'a> {
    supervisor: &'a mut Supervisor,
    command: Pid,
    job: CallerJob,
    termination: Termination,
    /// Until it is known whether the command runs.
    exec_result: Option<OwnedFd>,
    /// Why it does not.
    failure: Option<i32>,
    /// Once the command itself has ended.
    status: Option<ExitStatus>,
    /// Once killing has begun.
    kill_loop: Option<KillLoop>,
    /// The survivors that dlock knows of.
    reported: Option<Vec<i32>>,
}

impl<'a> Supervision<'a> {
    fn new(
        process: &'a mut Supervisor,
        launched: Launched,
        deadlines: Deadlines,
        job: CallerJob,
    ) -> Self {
        let termination = Termination::new(deadlines, process.resources.policy.grace);
        Self {
            supervisor: process,
            command: launched.pid,
            job,
            termination,
            exec_result: Some(launched.outcome),
            failure: None,
            status: None,
            kill_loop: None,
            reported: None,
        }
    }

    /// Orders first, for an extension that was sent in time counts, then the dead, then the clock.
    fn run(mut self) -> GuardReport {
        loop {
            let had_ended = self.status.is_some();
            self.read_orders();
            let children = self.reap_children();
            self.read_exec_result();
            self.follow_job();
            let has_still_to_end = self.awaits_adopted() || self.wakes_dlock();
            if children == Children::None && !has_still_to_end {
                return self.verdict();
            }
            if self.status.is_some() && !had_ended && self.termination.is_running() {
                if self.supervisor.resources.policy.leftovers == Leftovers::Leave {
                    return self.verdict();
                }
                self.termination.drain(clock::now());
            }
            self.act(clock::now());
            self.sleep(children);
        }
    }

    /// Whether the adopted have been told to end, and live. Asked all the time, for their children are found on the way.
    fn awaits_adopted(&mut self) -> bool {
        self.termination.is_ending() && self.supervisor.resources.tree.adopted_lives()
    }

    fn verdict(&self) -> GuardReport {
        match self.failure {
            Some(errno) => GuardReport::CannotStart { errno },
            None => GuardReport::Ended {
                status: self.status,
                cause: self.termination.cause(),
            },
        }
    }

    fn read_orders(&mut self) {
        while let Some(link) = &mut self.supervisor.backchannel {
            match link.receive() {
                Ok(Some(Order::Extend { beat, deadlines })) => {
                    self.termination.extend(deadlines);
                    self.supervisor.ack(beat);
                }
                Ok(Some(Order::Forward(signal))) => self.forward(&signal),
                Ok(Some(Order::Resumed)) => {
                    // The process that continued dlock has most likely continued the command as well.
                    self.follow_job();
                    let again = self.job.resumed();
                    self.stop_dlock(again);
                }
                Ok(Some(Order::Stop)) => self.stop(Cause::Ordered, clock::now()),
                Ok(Some(Order::Kill)) => self.termination.kill(Cause::Ordered, clock::now()),
                Ok(None) => return,
                // Gone, or not to be understood: without dlock nobody proves that we hold the lock.
                Ok(Some(Order::Start { .. })) | Err(_) => {
                    self.supervisor.backchannel = None;
                    self.stop(Cause::Ordered, clock::now());
                }
            }
        }
    }

    fn forward(&mut self, signal: &Signal) {
        // Else a command that has just ended would be the one that gets it.
        self.reap_children();
        if self.status.is_some() {
            let waits = self.supervisor.resources.policy.leftovers == Leftovers::Wait;
            if waits && signal.ends() {
                self.stop(Cause::Ordered, clock::now());
            }
            return;
        }
        // The pid is the command's for as long as we have not collected it.
        let group = self.job.command_group(self.command);
        let continues = signal.number == libc::SIGCONT;
        match recipient(self.sender(signal), group, continues) {
            Recipient::Nobody => {}
            Recipient::Command => self.signal_command(signal),
            Recipient::Group => {
                let group = group_of(Some(self.command)).ok();
                if let (Some(group), Some(signal)) = (
                    group.and_then(Pid::from_raw),
                    rustix::process::Signal::from_named_raw(signal.number),
                ) {
                    let _ = kill_process_group(group, signal);
                }
            }
        }
    }

    fn sender(&self, signal: &Signal) -> Sender {
        let tree = &self.supervisor.resources.tree;
        match signal.sender {
            protocol::Sender::Terminal => Sender::Terminal,
            // We continue dlock only when the command runs.
            protocol::Sender::Process(pid) if tree.is_root(pid) || tree.has(pid) => {
                Sender::Descendant
            }
            protocol::Sender::Process(_) | protocol::Sender::Kernel => Sender::Other,
        }
    }

    fn signal_command(&self, signal: &Signal) {
        if let Ok(command) = self
            .supervisor
            .resources
            .tree
            .find(self.command.as_raw_pid())
        {
            // One that has ended, or that is not ours to signal, does not hear it without dlock either.
            let _ = match signal.value {
                Some(value) => command.queue(signal.number, value),
                None => command.signal(signal.number),
            };
        }
    }

    /// Stops dlock with the command, and continues it with the command. Our own clock goes on.
    fn follow_job(&mut self) {
        if self.status.is_some() {
            self.job.ended();
        } else {
            let stop = self.job.read_stop(self.command);
            self.stop_dlock(stop);
        }
        if self.wakes_dlock() {
            self.job.continue_dlock();
        }
    }

    fn stop_dlock(&mut self, signal: Option<i32>) {
        // One that has to see the end must not stop.
        if let Some(signal) = signal.filter(|_| !self.termination.is_ending()) {
            self.supervisor.report(&GuardReport::Stopped(signal));
        }
    }

    /// Whether dlock has to be continued. One whose time is over finds that out when its caller continues it.
    fn wakes_dlock(&self) -> bool {
        self.supervisor.backchannel.is_some()
            && !self.termination.is_ending()
            && self.job.owes_continue()
    }

    fn stop(&mut self, cause: Cause, now: Instant) {
        if self.termination.stop(cause, now) {
            self.send_stop_signal();
        }
    }

    fn send_stop_signal(&mut self) {
        let Resources { tree, policy, .. } = &mut self.supervisor.resources;
        tree.send_stop_signal(policy.signal);
    }

    fn reap_children(&mut self) -> Children {
        // Emptied before we look, so that no death is missed.
        let _ = rustix::io::read(
            &self.supervisor.resources.deaths,
            &mut [0; size_of::<libc::signalfd_siginfo>()],
        );
        let (command, status) = (self.command, &mut self.status);
        reap(|pid, ended| {
            // Afterwards its pid may come back as that of any descendant.
            if pid == command && status.is_none() {
                *status = Some(ExitStatus::from(ended));
            }
        })
    }

    fn read_exec_result(&mut self) {
        if let Some(outcome) = &self.exec_result
            && let Ok(failure) = spawn::failure(outcome)
        {
            self.exec_result = None;
            self.failure = failure;
            if failure.is_none() {
                self.supervisor.report(&GuardReport::Started);
            }
        }
    }

    fn act(&mut self, now: Instant) {
        match self.termination.step(now) {
            Some(Step::Stop) => self.send_stop_signal(),
            Some(Step::Leftovers) => self.leftovers(now),
            Some(Step::Kill) => self.kill(now),
            None => {}
        }
    }

    fn leftovers(&mut self, now: Instant) {
        if let Some(status) = self.status {
            let count = self.supervisor.resources.tree.count();
            self.supervisor
                .report(&GuardReport::Leftovers { status, count });
        }
        match self.supervisor.resources.policy.leftovers {
            Leftovers::Wait => self.termination.wait(),
            Leftovers::Kill | Leftovers::Leave => self.stop(Cause::Command, now),
        }
    }

    fn kill(&mut self, now: Instant) {
        let tree = &mut self.supervisor.resources.tree;
        let kill_loop = self.kill_loop.get_or_insert_with(|| KillLoop::new(now));
        self.termination.kill_again(kill_loop.round(tree, now));
        if self.status.is_none() && !kill_loop.has_killed(self.command.as_raw_pid()) {
            // Without /proc, whatever is wrong with it. The pid is the command's until we collect it.
            let _ = kill_process(self.command, rustix::process::Signal::KILL);
        }
        if !kill_loop.is_overdue(now) {
            return;
        }
        let survivors = tree.survivors();
        if survivors.is_empty() && !kill_loop.met_nobody() {
            // All of them are zombies that are about to be collected.
            return;
        }
        let pids = Some(survivors.iter().map(|survivor| survivor.pid).collect());
        if pids != self.reported
            && let Some(link) = &mut self.supervisor.backchannel
            && let Ok(true) = link.try_send(&GuardReport::Survivors(survivors))
        {
            self.reported = pids;
        }
    }

    /// Until there is news or the next step is due.
    fn sleep(&mut self, children: Children) {
        let waking = self.wakes_dlock();
        let Supervisor {
            backchannel: link,
            resources: equipment,
        } = &mut *self.supervisor;
        let now = clock::now();
        let due = self.termination.due_at().since_boot();
        let value = Timespec {
            tv_sec: i64::try_from(due.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: due.subsec_nanos().into(),
        };
        let once = Itimerspec {
            it_interval: NO_WAIT,
            it_value: value,
        };
        // A moment that has passed makes it readable at once. Setting it also takes back that it was readable.
        let armed = timerfd_settime(&equipment.timer, TimerfdTimerFlags::ABSTIME, &once).is_ok();
        let overdue = self
            .kill_loop
            .as_ref()
            .is_some_and(|kill_loop| kill_loop.is_overdue(now));
        let timeout = match children {
            Children::More => Some(&NO_WAIT),
            _ if !armed => Some(&NO_WAIT),
            _ if waking => Some(&POLL_INTERVAL),
            // Nobody tells us what those do who are not ours. A survivor is looked at when the next round is due.
            _ if self.termination.is_ending() && equipment.tree.has_adopted() && !overdue => {
                Some(&POLL_INTERVAL)
            }
            Children::None | Children::Alive => None,
        };
        let sources = [&equipment.deaths, &equipment.timer]
            .into_iter()
            .chain(&self.exec_result);
        wait(link, &sources.collect::<Vec<_>>(), timeout);
    }
}
