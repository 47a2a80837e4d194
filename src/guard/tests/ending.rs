//! Tests of runs that end by themselves.
//! It must not know deadlines.

use super::*;
use crate::sys::process::ExitStatus;

#[test]
fn leftovers_are_killed_before_the_end() {
    alone(|scratch| {
        let mut guard = scratch.start(
            &format!(r#"{FAR} while ! [ -s "$DIR/far" ]; do sleep 0.01; done; exit 7"#),
            HASTY,
        );
        let GuardReport::Leftovers {
            status: ExitStatus::Exited(7),
            count: 1..,
        } = next(&mut guard)
        else {
            panic!("no leftovers");
        };
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Exited(7), Cause::Command)
        );
        assert!(!is_alive(scratch.pid("far")));
    });
}

#[test]
fn leftovers_are_waited_for() {
    alone(|scratch| {
        let policy = Policy {
            leftovers: Leftovers::Wait,
            ..HASTY
        };
        let mut guard = scratch.start(
            r#"mkfifo "$DIR/gate"; (read line < "$DIR/gate") & exit 7"#,
            policy,
        );
        let status = ExitStatus::Exited(7);
        assert_eq!(
            next(&mut guard),
            GuardReport::Leftovers { status, count: 1 }
        );
        guard.extend(1, far()).unwrap();
        assert_eq!(next(&mut guard), GuardReport::Ack(1));
        fs::write(scratch.0.join("gate"), "go\n").unwrap();
        assert_eq!(last(&mut guard), ended(status, Cause::Command));
    });
}

#[test]
fn leftovers_are_left() {
    alone(|scratch| {
        let policy = Policy {
            leftovers: Leftovers::Leave,
            ..HASTY
        };
        let mut guard = scratch.start(
            &format!(r#"{FAR} while ! [ -s "$DIR/far" ]; do sleep 0.01; done; exit 7"#),
            policy,
        );
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Exited(7), Cause::Command)
        );
        assert_eq!(next(&mut guard), GuardReport::GuardDead);
        assert!(is_alive(scratch.pid("far")));
        assert_eq!(guard.kill_tree(LIMIT), []);
        assert!(!is_alive(scratch.pid("far")));
    });
}

#[test]
fn the_status_is_the_commands() {
    alone(|scratch| {
        for (script, status) in [
            ("exit 0", ExitStatus::Exited(0)),
            ("exit 255", ExitStatus::Exited(255)),
            ("kill -USR1 $$", ExitStatus::Signalled(libc::SIGUSR1)),
            ("kill -KILL $$", ExitStatus::Signalled(libc::SIGKILL)),
        ] {
            let mut guard = scratch.start(script, PATIENT);
            assert_eq!(last(&mut guard), ended(status, Cause::Command));
        }
    });
}

#[test]
fn a_command_that_cannot_be_started_is_reported() {
    alone(|_| {
        let command = Command {
            path: "/nonexistent/program".into(),
            argv: vec!["program".into()],
        };
        let mut guard = launch(command, PATIENT, &LaunchOptions::default()).unwrap();
        guard.start(&[], far()).unwrap();
        assert_eq!(
            next(&mut guard),
            GuardReport::CannotStart {
                errno: libc::ENOENT
            }
        );
        assert_eq!(next(&mut guard), GuardReport::GuardDead);
    });
}

#[test]
fn nothing_is_started_too_late() {
    alone(|scratch| {
        let mut guard = launch(
            shell("echo > \"$DIR/ran\""),
            PATIENT,
            &LaunchOptions::default(),
        )
        .unwrap();
        guard.extend(1, far()).unwrap();
        assert_eq!(next(&mut guard), GuardReport::Ack(1));
        guard
            .start(
                &[],
                Deadlines {
                    stop_at: clock::now(),
                    ..far()
                },
            )
            .unwrap();
        assert_eq!(
            next(&mut guard),
            GuardReport::Ended {
                status: None,
                cause: Cause::Deadline
            }
        );
        assert!(!scratch.0.join("ran").exists());
    });
}

#[test]
fn nothing_is_started_after_a_stop() {
    alone(|_| {
        let mut guard = launch(shell("exit"), PATIENT, &LaunchOptions::default()).unwrap();
        guard.stop().unwrap();
        assert_eq!(
            next(&mut guard),
            GuardReport::Ended {
                status: None,
                cause: Cause::Ordered
            }
        );
    });
}

#[test]
fn a_signal_is_passed_on_to_the_command() {
    alone(|scratch| {
        let script = r#"trap 'exit 5' USR1; echo > "$DIR/up"; while :; do sleep 0.1; done"#;
        let mut guard = scratch.start(script, PATIENT);
        scratch.line("up");
        let signal = Signal {
            number: libc::SIGUSR1,
            sender: Sender::Kernel,
            value: None,
        };
        guard.forward(signal).unwrap();
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Exited(5), Cause::Command)
        );
    });
}

#[test]
fn the_guard_itself_leaves_no_zombie() {
    alone(|scratch| {
        let mut guard = scratch.start("exit", PATIENT);
        assert_eq!(
            last(&mut guard),
            ended(ExitStatus::Exited(0), Cause::Command)
        );
        drop(guard);
        drop(launch(shell("exit"), PATIENT, &LaunchOptions::default()).unwrap());
        assert_eq!(reap(|_, _| ()), Children::None);
    });
}

#[test]
fn a_stopped_guard_without_a_command_ends_with_dlock() {
    alone(|_| {
        let guard = launch(shell("exit"), PATIENT, &LaunchOptions::default()).unwrap();
        signals::send(guard.process.as_fd(), libc::SIGSTOP).unwrap();
        drop(guard);
        assert_eq!(reap(|_, _| ()), Children::None);
    });
}
