//! The guard's process: one loop that starts the command, keeps its deadlines and kills its tree.
//! It must not know the lock, the network, or why dlock gives an order.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, getpid, kill_process, kill_process_group, set_child_subreaper, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

use super::backchannel::Backchannel;
use super::job::CallerJob;
use super::kill_loop::{Children, KillLoop, reap};
use super::protocol::{self, Order, Signal};
use super::spawn::{self, Program};
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
use crate::sys::scheduling;

/// Pause before the guard exits: dlock wakes on this processor and has the lock to release. The exit of a process takes
/// 80 us (perf sched), during which dlock would wait.
const EXIT_PAUSE: Duration = Duration::from_micros(200);

/// Interval between checks of processes that are not children of the guard, or that must be continued.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The guard's resources. They are made before the fork, so that dlock can report a missing one.
pub(super) struct Resources {
    pub(super) tree: Tree,
    /// Readable when a child has ended.
    pub(super) deaths: OwnedFd,
    /// On `CLOCK_BOOTTIME`: a timeout of `poll(2)` stops while the machine sleeps.
    pub(super) timer: OwnedFd,
    /// /dev/null.
    pub(super) null: OwnedFd,
    /// Descriptors that stay open until this process ends.
    pub(super) shared: Vec<RawFd>,
    pub(super) program: Program,
    pub(super) policy: Policy,
}

/// Runs the guard, with every signal blocked. The process must exit afterwards.
pub(super) fn run(channel: Backchannel, resources: Resources) -> rustix::io::Result<()> {
    // The name that ps(1) shows.
    let _ = rustix::thread::set_name(c"dlock-guard");
    set_child_subreaper(Some(getpid()))?;
    let tree = resources.tree.rooted_here();
    let mut supervisor = Supervisor {
        backchannel: Some(channel),
        resources: Resources { tree, ..resources },
    };
    let last = match supervisor.await_start() {
        Some((variables, deadlines)) => supervisor.start(&variables, deadlines),
        None => GuardReport::Ended {
            status: None,
            cause: Cause::Ordered,
        },
    };
    supervisor.report(&last);
    supervisor.flush_reports();
    Ok(())
}

struct Supervisor {
    /// The channel to dlock; `None` once dlock is gone.
    backchannel: Option<Backchannel>,
    resources: Resources,
}

impl Supervisor {
    /// Waits for the order to start; `None` if dlock is gone or cancels.
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

    /// Starts the command and supervises it; returns the last report.
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
                // From now on the guard gets no signal that the terminal or a script sends to the caller's group. It needs
                // a session, not only a group: the guard's death could else orphan the caller's group, and the kernel
                // sends SIGHUP to an orphaned group with a stopped member (setpgid(2)).
                let _ = setsid();
                // On a busy machine, other processes would else keep it from its deadlines, for seconds (measured); and among a
                // thousand processes that fork for ever, it would get a thousandth of the processor. Not before the fork: the
                // command has its caller's priority.
                scheduling::raise_priority();
                self.close_inherited(&launched.outcome);
                let supervision = Supervision {
                    command: launched.pid,
                    job,
                    termination: Termination::new(deadlines, self.resources.policy.grace),
                    exec_result: Some(launched.outcome),
                    failure: None,
                    status: None,
                    kill_loop: None,
                    reported: None,
                    supervisor: self,
                };
                supervision.run()
            }
            Err(error) => GuardReport::CannotStart {
                errno: error.raw_os_error().unwrap_or(libc::EINVAL),
            },
        }
    }

    /// Closes the guard's copies of inherited descriptors: the command has them, and a copy would keep a reader waiting.
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
        let channel = self
            .backchannel
            .as_ref()
            .map(|channel| channel.as_fd().as_raw_fd());
        let others = [channel.as_slice(), shared.as_slice()].concat();
        let _ = descriptors::close_all_but(&[&own[..], &[tree.descriptor()], &others].concat());
        let _ = rustix::process::chdir("/");
    }

    /// Sends a report to dlock. If dlock is gone, [`Backchannel::receive`] fails later.
    fn report(&mut self, report: &GuardReport) {
        if let Some(channel) = &mut self.backchannel {
            let _ = channel.send(report);
        }
    }

    /// Answers a ping, unless dlock has not read earlier messages.
    fn ack(&mut self, beat: u64) {
        if let Some(channel) = &mut self.backchannel {
            let _ = channel.try_send(&GuardReport::Ack(beat));
        }
    }

    /// Sends all unsent reports while dlock lives, then gives it a moment to exit first.
    fn flush_reports(mut self) {
        while let Some(channel) = &mut self.backchannel
            && channel.flush().is_ok()
            && channel.has_unsent()
        {
            let _ = poll(&mut [PollFd::new(channel, PollFlags::OUT)], None);
        }
        if let Some(channel) = &self.backchannel {
            let _ = poll(
                &mut [PollFd::new(channel, PollFlags::IN)],
                Some(&clock::timespec(EXIT_PAUSE)),
            );
        }
    }
}

/// Waits until one of `sources` or the backchannel is ready, or `timeout` is over. An error counts as an event: the caller
/// checks every source anyway.
fn wait(channel: &mut Option<Backchannel>, sources: &[&OwnedFd], timeout: Option<Duration>) {
    let mut polled: Vec<_> = sources
        .iter()
        .map(|source| PollFd::new(*source, PollFlags::IN))
        .collect();
    if let Some(channel) = channel {
        let sending = if channel.has_unsent() {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        };
        polled.push(PollFd::new(channel, PollFlags::IN | sending));
    }
    let _ = poll(&mut polled, timeout.map(clock::timespec).as_ref());
    if let Some(channel) = channel {
        // The next read reports this error.
        let _ = channel.flush();
    }
}

/// The supervision of a command and its tree, from the start to the end.
struct Supervision<'a> {
    supervisor: &'a mut Supervisor,
    command: Pid,
    job: CallerJob,
    termination: Termination,
    /// `None` once it is known whether the command runs.
    exec_result: Option<OwnedFd>,
    /// The errno of a failed exec.
    failure: Option<i32>,
    /// Set once the command itself has ended.
    status: Option<ExitStatus>,
    /// Set once killing has begun.
    kill_loop: Option<KillLoop>,
    /// Pids of the survivors last reported to dlock.
    reported: Option<Vec<i32>>,
}

impl Supervision<'_> {
    /// Handles orders first, as an extension that was sent in time counts; then ended children; then the clock.
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

    /// Whether adopted processes live after the stop. Called in every round, because each call finds their new children.
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
        while let Some(channel) = &mut self.supervisor.backchannel {
            match channel.receive() {
                Ok(Some(Order::Extend { beat, deadlines })) => {
                    self.termination.extend(deadlines);
                    self.supervisor.ack(beat);
                }
                Ok(Some(Order::Forward(signal))) => self.forward(&signal),
                Ok(Some(Order::Resumed)) => {
                    // The process that continued dlock has most likely continued the command as well.
                    self.follow_job();
                    let again = self.job.state.resumed();
                    self.stop_dlock(again);
                }
                Ok(Some(Order::Stop)) => self.stop(Cause::Ordered, clock::now()),
                Ok(Some(Order::Kill)) => self.termination.kill(Cause::Ordered, clock::now()),
                Ok(None) => return,
                // dlock is gone or sends nonsense: without it, nothing proves that the lock is held.
                Ok(Some(Order::Start { .. })) | Err(_) => {
                    self.supervisor.backchannel = None;
                    self.stop(Cause::Ordered, clock::now());
                }
            }
        }
    }

    fn forward(&mut self, signal: &Signal) {
        // Else the signal could be sent to a command that has just ended.
        self.reap_children();
        if self.status.is_some() {
            let waits = self.supervisor.resources.policy.leftovers == Leftovers::Wait;
            if waits && signal.ends() {
                self.stop(Cause::Ordered, clock::now());
            }
            return;
        }
        // The pid is the command's until it is reaped.
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
            // The guard continues dlock only when the command runs.
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
            // Without dlock, a command that has ended or cannot be signalled would not get it either.
            let _ = match signal.value {
                Some(value) => command.queue(signal.number, value),
                None => command.signal(signal.number),
            };
        }
    }

    /// Stops and continues dlock with the command. The guard itself never stops.
    fn follow_job(&mut self) {
        if self.status.is_some() {
            self.job.state.continued();
        } else {
            let stop = self.job.read_stop(self.command);
            self.stop_dlock(stop);
        }
        if self.wakes_dlock() {
            self.job.continue_dlock();
        }
    }

    fn stop_dlock(&mut self, signal: Option<i32>) {
        // While the tree is ending, dlock must not stop.
        if let Some(signal) = signal.filter(|_| !self.termination.is_ending()) {
            self.supervisor.report(&GuardReport::Stopped(signal));
        }
    }

    /// Whether dlock must be continued. While the tree is ending, that is left to dlock's caller.
    fn wakes_dlock(&self) -> bool {
        self.supervisor.backchannel.is_some()
            && !self.termination.is_ending()
            && self.job.state.owes_continue()
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
        // The descriptor is emptied before the wait, so that no death is missed.
        let _ = rustix::io::read(
            &self.supervisor.resources.deaths,
            &mut [0; size_of::<libc::signalfd_siginfo>()],
        );
        let (command, status) = (self.command, &mut self.status);
        reap(|pid, ended| {
            // After that, a descendant may reuse its pid.
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
            // This works without /proc. The pid is the command's until it is reaped.
            let _ = kill_process(self.command, rustix::process::Signal::KILL);
        }
        if !kill_loop.is_overdue(now) {
            return;
        }
        let Some(survivors) = kill_loop.survivors(tree, now) else {
            return;
        };
        let pids = Some(survivors.iter().map(|survivor| survivor.pid).collect());
        if pids != self.reported
            && let Some(channel) = &mut self.supervisor.backchannel
            && let Ok(true) = channel.try_send(&GuardReport::Survivors(survivors))
        {
            self.reported = pids;
        }
    }

    /// Waits for an event or for the next step.
    fn sleep(&mut self, children: Children) {
        let waking = self.wakes_dlock();
        let Supervisor {
            backchannel: channel,
            resources,
        } = &mut *self.supervisor;
        let now = clock::now();
        let due = self.termination.due_at().since_boot();
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: clock::timespec(due),
        };
        // A time in the past makes the timer readable at once. Setting it also clears an earlier expiry.
        let armed = timerfd_settime(&resources.timer, TimerfdTimerFlags::ABSTIME, &once).is_ok();
        let overdue = self
            .kill_loop
            .as_ref()
            .is_some_and(|kill_loop| kill_loop.is_overdue(now));
        let timeout = match children {
            Children::More => Some(Duration::ZERO),
            _ if !armed => Some(Duration::ZERO),
            _ if waking => Some(POLL_INTERVAL),
            // No event reports the end of an adopted process, so it is polled. Survivors wait for the next round.
            _ if self.termination.is_ending() && resources.tree.has_adopted() && !overdue => {
                Some(POLL_INTERVAL)
            }
            Children::None | Children::Alive => None,
        };
        let sources = [&resources.deaths, &resources.timer]
            .into_iter()
            .chain(&self.exec_result);
        wait(channel, &sources.collect::<Vec<_>>(), timeout);
    }
}
