//! Tests of processes that a kill does not end, or not soon.
//! It must not know why the tree must die.

use std::collections::BTreeSet;

use super::kill_loop::KillLoop;
use super::tree::Tree;
use super::*;
use crate::sys::proc;
use crate::sys::process::ExitStatus;

/// A process that SIGKILL does not end, as in uninterruptible sleep: it waits in its exit until this tracer lets it go.
struct Undead(i32);

impl Undead {
    fn new(pid: i32) -> Self {
        assert_eq!(
            Self::ptrace(pid, libc::PTRACE_SEIZE, libc::PTRACE_O_TRACEEXIT),
            0
        );
        Self(pid)
    }

    /// Starts one as the command of a guard.
    fn command(scratch: &Scratch) -> (Guard, Self) {
        let script = r#"echo $$ > "$DIR/pid"; while :; do sleep 1; done"#;
        let guard = scratch.start(script, PATIENT);
        (guard, Self::new(scratch.pid("pid")))
    }

    fn let_go(self) {
        assert_eq!(Self::ptrace(self.0, libc::PTRACE_DETACH, 0), 0);
    }

    fn ptrace(pid: i32, request: libc::c_uint, data: libc::c_int) -> libc::c_long {
        // SAFETY: these requests take no address, and data by value.
        unsafe { libc::ptrace(request, pid, 0, data) }
    }
}

#[test]
fn a_process_that_does_not_die_is_named_and_awaited() {
    alone(|scratch| {
        let (mut guard, undead) = Undead::command(&scratch);
        guard.kill().unwrap();
        let GuardReport::Survivors(survivors) = next(&mut guard) else {
            panic!("no survivors");
        };
        assert!(
            survivors
                .iter()
                .any(|survivor| survivor.pid == undead.0 && survivor.program == "sh"),
            "{survivors:?}"
        );
        guard.extend(1, far()).unwrap();
        assert_eq!(last(&mut guard), GuardReport::Ack(1));
        undead.let_go();
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Signalled(libc::SIGKILL), Cause::Ordered)
        );
    });
}

#[test]
fn the_guard_stays_until_all_are_dead_though_dlock_is_gone() {
    alone(|scratch| {
        let mut guard = scratch.start(
            r#"trap "" TERM; echo $$ > "$DIR/pid"; while :; do sleep 1; done"#,
            HASTY,
        );
        let undead = Undead::new(scratch.pid("pid"));
        guard.backchannel.socket().shutdown(Shutdown::Both).unwrap();
        let far = clock::now() + Duration::from_millis(2500);
        eventually(|| clock::now() >= far);
        let mut over = [PollFd::new(&guard.process, PollFlags::IN)];
        assert_eq!(
            poll(&mut over, Some(&clock::timespec(Duration::ZERO))),
            Ok(0)
        );
        undead.let_go();
        assert_eq!(poll(&mut over, None), Ok(1));
        assert_eq!(guard.kill_tree(LIMIT), []);
    });
}

#[test]
fn dlock_names_the_processes_that_it_could_not_kill_in_time() {
    alone(|scratch| {
        let (mut guard, undead) = Undead::command(&scratch);
        // Its guard and its child are dead soon, but not within a certain time.
        eventually(|| {
            let left = guard.kill_tree(Duration::from_millis(200));
            let left: Vec<_> = left.iter().map(|survivor| survivor.pid).collect();
            assert!(left.contains(&undead.0), "{left:?}");
            left == [undead.0]
        });
        undead.let_go();
        assert_eq!(guard.kill_tree(LIMIT), []);
    });
}

/// "A killed process that only waits for a processor executes nothing of its program any more; dlock waits for its end"
/// (dlock-run(1)). A program that computes is always ready to run, and stays so after a SIGKILL until it gets a processor.
#[test]
fn a_process_that_waits_for_a_processor_is_no_survivor_yet() {
    alone(|_| {
        let mut tree = Tree::open().unwrap();
        let start = |script| {
            let mut child = std::process::Command::new("/bin/sh");
            child.args(["-c", script]).spawn().unwrap()
        };
        let mut both = ["while :; do :; done", "exec sleep 1000"].map(start);
        let pids = both
            .each_ref()
            .map(|child| i32::try_from(child.id()).unwrap());
        let state = |pid| proc::directory_of(&proc::open().unwrap(), pid).unwrap().1;
        eventually(|| state(pids[1]).program == "sleep" && state(pids[1]).state == 'S');
        let now = clock::now();
        let kill_loop = KillLoop::new(now);
        let mut named = |after| {
            let survivors = kill_loop.survivors(&mut tree, now + Duration::from_secs(after));
            let pids = survivors.unwrap_or_default().into_iter();
            pids.map(|survivor| survivor.pid).collect::<Vec<_>>()
        };
        assert_eq!(named(2), [pids[1]]);
        // It is not awaited for ever.
        assert_eq!(BTreeSet::from_iter(named(30)), BTreeSet::from(pids));
        for child in &mut both {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    });
}

#[test]
fn a_zombie_that_its_tracer_keeps_is_named() {
    alone(|scratch| {
        let script = r#"echo $$ > "$DIR/pid"; while :; do sleep 1; done"#;
        let mut guard = scratch.start(script, PATIENT);
        let pid = scratch.pid("pid");
        assert_eq!(Undead::ptrace(pid, libc::PTRACE_SEIZE, 0), 0);
        guard.kill().unwrap();
        let GuardReport::Survivors(survivors) = next(&mut guard) else {
            panic!("no survivors");
        };
        let named = survivors.iter().find(|survivor| survivor.pid == pid);
        let named = named.expect("the zombie");
        assert!(named.state == 'Z' && named.tracer.is_some(), "{named:?}");
        // SAFETY: no status is asked for.
        eventually(|| unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } == pid);
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Signalled(libc::SIGKILL), Cause::Ordered)
        );
    });
}
