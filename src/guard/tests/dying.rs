//! Tests of the end of a tree that must die.
//! It must not know what the command is for.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use super::kill_loop::KillLoop;
use super::tree::{Tree, stop_sequence};
use super::*;
use crate::sys::proc::{self, ProcessId};
use crate::sys::process::ExitStatus;

#[test]
fn at_the_deadline_the_whole_tree_is_dead() {
    alone(|scratch| {
        let now = clock::now();
        // Before the kill, the whole tree must have started.
        let deadlines = Deadlines {
            stop_at: now + Duration::from_secs(7),
            kill_at: now + Duration::from_secs(8),
        };
        let script = format!(r#"trap "" TERM; {FAR} while :; do sleep 1000; done"#);
        let mut guard = scratch.start_until(&script, PATIENT, deadlines);
        let far = scratch.pid("far");
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Signalled(libc::SIGKILL), Cause::Deadline)
        );
        assert!(clock::now() >= deadlines.kill_at);
        assert!(!is_alive(far));
    });
}

#[test]
fn a_stopped_tree_gets_the_stop_signal_before_it_is_killed() {
    alone(|scratch| {
        let script = r#"trap 'exit 3' TERM; echo $$ > "$DIR/pid"; kill -STOP $$; while :; do sleep 0.1; done"#;
        let mut guard = scratch.start(script, PATIENT);
        let command = guard.tree.find(scratch.pid("pid")).unwrap().identity.pid;
        eventually(|| {
            fs::read_to_string(format!("/proc/{command}/status"))
                .unwrap()
                .contains("\nState:\tT")
        });
        guard.stop().unwrap();
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Exited(3), Cause::Ordered)
        );
    });
}

#[test]
fn the_whole_tree_gets_the_stop_signal() {
    alone(|scratch| {
        let child = r#"trap 'echo > "$DIR/asked"; exit' TERM; echo > "$DIR/up"; while :; do sleep 0.1; done"#;
        let script = format!("trap 'wait; exit 3' TERM; ({child}) & while :; do sleep 0.1; done");
        let mut guard = scratch.start(&script, PATIENT);
        scratch.line("up");
        guard.stop().unwrap();
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Exited(3), Cause::Ordered)
        );
        scratch.line("asked");
    });
}

#[test]
fn a_stopped_command_is_killed() {
    alone(|scratch| {
        let mut guard = scratch.start(r#"echo $$ > "$DIR/pid"; kill -STOP $$"#, PATIENT);
        let command = scratch.pid("pid");
        eventually(|| {
            fs::read_to_string(format!("/proc/{command}/status"))
                .unwrap()
                .contains("\nState:\tT")
        });
        guard.kill().unwrap();
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Signalled(libc::SIGKILL), Cause::Ordered)
        );
    });
}

#[test]
fn without_dlock_the_tree_dies() {
    alone(|scratch| {
        let guard = scratch.start(
            &format!(r#"trap "" TERM; echo $$ > "$DIR/pid"; {FAR} while :; do sleep 1; done"#),
            HASTY,
        );
        let (command, far) = (scratch.pid("pid"), scratch.pid("far"));
        drop(guard);
        eventually(|| !is_alive(command) && !is_alive(far));
    });
}

#[test]
fn a_panic_of_dlock_ends_dlock_and_the_tree() {
    alone(|scratch| {
        // SAFETY: the other thread of this process only waits for this one, as `alone` says.
        let Some(dlock) = unsafe { process::fork() }.unwrap() else {
            crate::output::log::on_panic(|| crate::output::exit::Exit::Failed.exit_process());
            let _guard = scratch.start(
                &format!(r#"trap "" TERM; echo $$ > "$DIR/pid"; {FAR} while :; do sleep 1; done"#),
                HASTY,
            );
            scratch.pid("pid");
            scratch.pid("far");
            panic!("as a bug would");
        };
        let (command, far) = (scratch.pid("pid"), scratch.pid("far"));
        eventually(|| !is_alive(command) && !is_alive(far));
        let status = rustix::process::waitpid(Some(dlock), rustix::process::WaitOptions::empty());
        let (_, status) = status.unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(125));
    });
}

#[test]
fn the_last_report_reaches_a_dlock_that_did_not_read() {
    alone(|scratch| {
        let mut guard = scratch.start("sleep 1000", PATIENT);
        for beat in 0..20_000 {
            while guard.extend(beat, far()).is_err() {
                thread::yield_now();
            }
        }
        guard.stop().unwrap();
        let mut beats = 0;
        let last = loop {
            match next(&mut guard) {
                GuardReport::Ack(_) => beats += 1,
                report => break report,
            }
        };
        assert!(beats < 20_000, "the socket was never full");
        assert_eq!(
            last,
            ended(ExitStatus::Signalled(libc::SIGTERM), Cause::Ordered)
        );
    });
}

#[test]
fn without_its_guard_the_command_dies_and_dlock_kills_the_rest() {
    alone(|scratch| {
        let mut guard = scratch.start(
            &format!(r#"echo $$ > "$DIR/pid"; {FAR} while :; do sleep 1; done"#),
            PATIENT,
        );
        let (command, far) = (scratch.pid("pid"), scratch.pid("far"));
        signals::send(guard.process.as_fd(), libc::SIGKILL).unwrap();
        assert_eq!(next(&mut guard), GuardReport::GuardDead);
        eventually(|| !is_alive(command));
        assert!(is_alive(far));
        assert_eq!(guard.kill_tree(LIMIT), []);
        assert!(!is_alive(far));
    });
}

#[test]
fn dlock_kills_a_stopped_guard_and_the_tree() {
    alone(|scratch| {
        let mut guard = scratch.start(
            &format!(r#"echo $$ > "$DIR/pid"; {FAR} while :; do sleep 1; done"#),
            PATIENT,
        );
        let (command, far) = (scratch.pid("pid"), scratch.pid("far"));
        signals::send(guard.process.as_fd(), libc::SIGSTOP).unwrap();
        assert_eq!(guard.kill_tree(LIMIT), []);
        assert!(!is_alive(command) && !is_alive(far));
    });
}

/// Forks and exits in a loop, as fast as possible. It ends by itself long after the test, so that a broken guard does not
/// use up the machine's process ids.
fn fork_chain() -> ! {
    let end_at = clock::now() + LIMIT * 2;
    loop {
        // SAFETY: parent and child only read the clock.
        unsafe {
            if libc::fork() > 0 || clock::now() > end_at {
                libc::_exit(0);
            }
        }
    }
}

#[test]
fn orphans_below_a_subreaper_are_killed_too() {
    if env::var_os("ADOPTS").is_some() {
        set_child_subreaper(Some(getpid())).unwrap();
        let far = std::process::Command::new("/bin/sh")
            .args(["-c", FAR])
            .status();
        assert!(far.unwrap().success());
        eventually(|| false);
    }
    alone(|scratch| {
        let variables = [("ADOPTS", "1"), ("DIR", scratch.0.to_str().unwrap())];
        let mut guard = launch(this_test(), PATIENT, &LaunchOptions::default()).unwrap();
        guard
            .start(
                &variables.map(|(name, value)| (name.to_owned(), value.to_owned())),
                far(),
            )
            .unwrap();
        assert_eq!(next(&mut guard), GuardReport::Started);
        let far = scratch.pid("far");
        guard.kill().unwrap();
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Signalled(libc::SIGKILL), Cause::Ordered)
        );
        assert!(!is_alive(far));
    });
}

#[test]
fn a_chain_of_forks_is_exhausted() {
    chains_are_exhausted(1);
}

#[test]
fn many_chains_of_forks_at_once_are_exhausted() {
    chains_are_exhausted(30);
}

fn chains_are_exhausted(count: usize) {
    if env::var_os("CHAIN").is_some() {
        for _ in 1..count {
            // SAFETY: as in `fork_chain`.
            if unsafe { libc::fork() } == 0 {
                fork_chain();
            }
        }
        fork_chain();
    }
    alone(|_| {
        let policy = Policy {
            leftovers: Leftovers::Wait,
            ..PATIENT
        };
        let mut guard = launch(this_test(), policy, &LaunchOptions::default()).unwrap();
        guard
            .start(&[("CHAIN".to_owned(), "1".to_owned())], far())
            .unwrap();
        assert_eq!(next(&mut guard), GuardReport::Started);
        assert!(matches!(next(&mut guard), GuardReport::Leftovers { .. }));
        guard.kill().unwrap();
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Exited(0), Cause::Ordered)
        );
        assert_eq!(next(&mut guard), GuardReport::GuardDead);
        eventually(|| reap(|_, _| ()) == Children::None);
    });
}

#[test]
fn children_that_dlock_had_before_are_spared() {
    alone(|scratch| {
        let mut stranger = std::process::Command::new("/bin/sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let mut guard = scratch.start(&format!("{FAR} while :; do sleep 1; done"), PATIENT);
        let far = scratch.pid("far");
        assert_eq!(guard.kill_tree(LIMIT), []);
        assert!(!is_alive(far));
        assert_eq!(stranger.try_wait().unwrap(), None);
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    });
}

/// An orphan of a child that dlock had before becomes a child of dlock, as those of the tree do when the guard dies.
#[test]
fn orphans_of_children_that_dlock_had_before_are_spared() {
    alone(|scratch| {
        let started = scratch.0.join("orphan").display().to_string();
        let script = "until [ -e $0.go ]; do sleep 0.01; done; setsid sleep 1000 >/dev/null 2>&1 & echo $! >$0";
        let mut job = std::process::Command::new("/bin/sh")
            .args(["-c", script, &started])
            .spawn()
            .unwrap();
        let mut guard = scratch.start(&format!("{FAR} while :; do sleep 1; done"), PATIENT);
        let far_away = scratch.pid("far");
        fs::write(started + ".go", "").unwrap();
        let orphan = scratch.pid("orphan");
        job.wait().unwrap();
        guard.extend(1, far()).unwrap();
        signals::send(guard.process.as_fd(), libc::SIGKILL).unwrap();
        while next(&mut guard) != GuardReport::GuardDead {}
        assert_eq!(guard.kill_tree(LIMIT), []);
        assert!(!is_alive(far_away) && is_alive(orphan));
        // SAFETY: our own child, which has not been waited for.
        unsafe { libc::kill(orphan, libc::SIGKILL) };
    });
}

/// Runs a command with `adopted` as its adopted process, and stops both. The guard lives on for the caller's checks.
fn stop_with(adopted: &std::process::Child, policy: Policy) -> Guard {
    stop_with_pid(i32::try_from(adopted.id()).unwrap(), policy)
}

fn stop_with_pid(adopted: i32, policy: Policy) -> Guard {
    let other = ProcessHandle::find(adopted).unwrap();
    let options = LaunchOptions {
        adopted: Some(&other),
        ..LaunchOptions::default()
    };
    let mut guard = launch(shell("sleep 1000"), policy, &options).unwrap();
    guard.start(&[], far()).unwrap();
    assert_eq!(next(&mut guard), GuardReport::Started);
    guard.stop().unwrap();
    let last = last(&mut guard);
    // On a busy machine, the grace of a hasty policy can be over first.
    let by = |signal| ended(ExitStatus::Signalled(signal), Cause::Ordered);
    assert!(
        [libc::SIGTERM, libc::SIGKILL].map(by).contains(&last),
        "{last:?}"
    );
    guard
}

/// "that process and all that descends from it are stopped and killed" (dlock-hold(1)).
#[test]
fn no_process_that_the_adopted_one_forks_during_the_stop_is_lost() {
    alone(|_| {
        // Every run of this test has an argument of its own, by which its processes are found.
        let argument = format!("1000.{}", std::process::id());
        let script = r#"sh -c 'while :; do sleep "$ARGUMENT" & done' & wait"#;
        let mut adopted = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .env("ARGUMENT", &argument)
            .spawn()
            .unwrap();
        // The search then takes some time, in which more are forked.
        eventually(|| processes_with(&argument).len() > 300);
        let _guard = stop_with(&adopted, PATIENT);
        adopted.wait().unwrap();
        let left = processes_with(&argument);
        for &pid in &left {
            // SAFETY: sends a signal to a process that this test started.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        assert_eq!(left, Vec::<i32>::new());
    });
}

/// The rules behind the test above: what is below the adopted process is stopped while it is searched, and a child that this
/// one forks after the search is found by its group and session.
#[test]
fn a_child_that_the_adopted_process_forks_at_its_death_is_found() {
    alone(|scratch| {
        let mut tree = Tree::open().unwrap();
        // The kernel sends SIGHUP to stopped children of a process that dies.
        let script = r#"trap "" HUP; sleep 1000 & echo $! > "$DIR/child"
            until [ -e "$DIR/go" ]; do :; done
            sleep 1000 & echo $! > "$DIR/orphan""#;
        let mut top = std::process::Command::new("/bin/bash")
            .args(["-c", script])
            .env("DIR", &scratch.0)
            .process_group(0)
            .spawn()
            .unwrap();
        let (child, pid) = (scratch.pid("child"), i32::try_from(top.id()).unwrap());
        tree.adopt(ProcessId::of(pid).unwrap());
        tree.freeze_adopted(clock::now() + LIMIT);
        let state = |pid| {
            proc::directory_of(&proc::open().unwrap(), pid)
                .unwrap()
                .1
                .state
        };
        let states = (state(child), state(pid));
        fs::write(scratch.0.join("go"), "").unwrap();
        let orphan = scratch.pid("orphan");
        top.wait().unwrap();
        let mut met = BTreeSet::new();
        tree.walk(|process| {
            met.insert(process.identity.pid);
        });
        for pid in [child, orphan] {
            // SAFETY: sends a signal to a process that this test started.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        assert_eq!(met, BTreeSet::from([child, orphan]));
        assert!(states.0 == 'T' && states.1 != 'T', "{states:?}");
    });
}

/// The same without odds: whether the kernel sends SIGHUP depends on how fast the adopted process dies.
#[test]
fn the_adopted_process_gets_the_stop_signal_after_its_children_are_continued() {
    let [top, child, grandchild] = [1, 2, 3].map(|pid| ProcessId { pid, start: 0 });
    let (stop, resume) = (libc::SIGTERM, libc::SIGCONT);
    assert_eq!(
        stop_sequence(&[top, child, grandchild], Some(top), stop),
        [
            (child, stop),
            (grandchild, stop),
            (grandchild, resume),
            (child, resume),
            (top, stop),
            (top, resume),
        ]
    );
}

/// The processes below an adopted one are stopped for a moment. The kernel sends SIGHUP to a stopped process when its parent
/// dies and no process of its session outside its process group is left as a parent, as for a job of an interactive shell.
#[test]
fn children_of_an_adopted_process_that_dies_at_once_get_the_stop_signal_and_no_other() {
    const COUNT: usize = 50;
    let job = r#"for child in "$@"; do
            sh -c 'trap "echo TERM >> \"$DIR/ends\"; exit" TERM; trap "echo HUP >> \"$DIR/ends\"; exit" HUP
                echo >> "$DIR/ready"; while :; do sleep 0.05; done' &
        done; echo $$ > "$DIR/job"; wait"#;
    if env::var_os("SHELL_OF_JOBS").is_some() {
        rustix::process::setsid().unwrap();
        // A shell cannot trap a signal that it was started to ignore, as below nohup(1).
        let _killed = std::process::Command::new("env")
            .args(["--default-signal", "sh", "-c", job, "sh"])
            .args((0..COUNT).map(|child| child.to_string()))
            .process_group(0)
            .status();
        return;
    }
    alone(|scratch| {
        let Command { path, argv } = this_test();
        let mut shell = std::process::Command::new(path)
            .args(&argv[1..])
            .env("SHELL_OF_JOBS", "1")
            .env("DIR", &scratch.0)
            .spawn()
            .unwrap();
        let lines = |file| {
            let text = fs::read_to_string(scratch.0.join(file)).unwrap_or_default();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        eventually(|| lines("ready").len() == COUNT);
        let _guard = stop_with_pid(scratch.pid("job"), PATIENT);
        eventually(|| lines("ends").len() == COUNT);
        assert_eq!(lines("ends"), vec!["TERM"; COUNT]);
        shell.wait().unwrap();
    });
}

/// su(1) and shells with job control take a stop of their child for a user's.
#[test]
fn the_parent_of_an_adopted_process_sees_no_stop_before_its_death_by_term() {
    never_seen_stopped("while :; do sleep 0.1; done", PATIENT);
}

#[test]
fn the_parent_of_an_adopted_process_sees_no_stop_before_its_death_by_kill() {
    never_seen_stopped(r#"trap "" TERM; while :; do sleep 0.1; done"#, HASTY);
}

fn never_seen_stopped(script: &str, policy: Policy) {
    use rustix::process::WaitOptions;
    alone(|_| {
        #[expect(clippy::zombie_processes, reason = "the observer collects it")]
        let adopted = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&adopted);
        let observer = thread::spawn(move || {
            let options = WaitOptions::UNTRACED | WaitOptions::CONTINUED;
            let status = rustix::process::waitpid(Some(pid), options).unwrap();
            status.unwrap().1
        });
        let _guard = stop_with(&adopted, policy);
        let status = observer.join().unwrap();
        assert!(status.signaled(), "{status:?}");
    });
}

/// "When dlocks of the tree hold locks, those are released when the other processes are dead" (dlock-run(1)).
#[test]
fn no_dlock_of_the_tree_is_killed_while_others_of_it_live() {
    alone(|scratch| {
        let mut tree = Tree::open().unwrap();
        // The kernel names a process after the file that it executes.
        let program = scratch.0.join("dlock");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let start = |program: &Path| std::process::Command::new(program).arg("1000").spawn();
        let mut dlock = start(&program).unwrap();
        let mut other = start(Path::new("/bin/sleep")).unwrap();
        let now = clock::now();
        let mut kill_loop = KillLoop::new(now);
        while kill_loop.round(&mut tree, now) == now {}
        other.wait().unwrap();
        let alive = is_alive(i32::try_from(dlock.id()).unwrap());
        let status = fs::read_to_string(format!("/proc/{}/status", dlock.id())).unwrap();
        let pending = status
            .lines()
            .filter(|line| line.contains("Pnd:"))
            .map(|line| u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap())
            .fold(0, |all, some| all | some);
        eventually(|| {
            kill_loop.round(&mut tree, clock::now());
            dlock.try_wait().unwrap().is_some()
        });
        assert!(alive, "{status}");
        assert_eq!(pending & 1 << (libc::SIGKILL - 1), 0, "{status}");
    });
}

/// The processes that have this argument on their command line.
fn processes_with(argument: &str) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|&byte| byte == 0)
                .any(|word| word == argument.as_bytes())
        })
        .collect()
}

#[test]
fn an_orphan_of_the_adopted_process_is_killed_and_awaited() {
    alone(|scratch| {
        let script =
            r#"sh -c 'trap "" TERM; echo $$ > "$DIR/orphan"; while :; do sleep 1000; done' & wait"#;
        let mut adopted = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .env("DIR", &scratch.0)
            .spawn()
            .unwrap();
        let orphan = scratch.pid("orphan");
        let _guard = stop_with(&adopted, HASTY);
        assert!(!is_alive(orphan));
        adopted.wait().unwrap();
    });
}

#[test]
fn an_order_that_does_not_fit_is_sent_when_the_guard_reads_again() {
    alone(|scratch| {
        let mut guard = scratch.start("sleep 1000", PATIENT);
        signals::send(guard.process.as_fd(), libc::SIGSTOP).unwrap();
        let mut beat = 0;
        while guard.extend(beat, far()).is_ok() {
            beat += 1;
        }
        guard.stop().unwrap();
        assert!(guard.owes());
        signals::send(guard.process.as_fd(), libc::SIGCONT).unwrap();
        let last = loop {
            guard.flush().unwrap();
            match guard.report().unwrap() {
                Some(GuardReport::Ack(_)) => {}
                Some(report) => break report,
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        assert_eq!(
            last,
            ended(ExitStatus::Signalled(libc::SIGTERM), Cause::Ordered)
        );
    });
}
