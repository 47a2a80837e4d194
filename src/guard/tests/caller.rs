//! Tests that the command and the caller's other processes notice nothing of dlock.
//! It must not know how the tree ends.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::*;
use crate::sys::process::ExitStatus;
use crate::sys::signals::{receive, stop_by};

/// Prints nearly everything that a command can see of itself. A shell would change the signals of the programs it starts.
const MIRROR: &str = r#"
    exec > "$1"
    ls /proc/self/fd
    readlink /proc/self/cwd
    cut -d ' ' -f 5,18,19,40,41 /proc/self/stat
    env
    umask
    ulimit -a
    nice
"#;

/// Sets up a caller with unusual settings.
fn odd(command: &mut std::process::Command) {
    let arrange = || {
        for signal in [libc::SIGHUP, libc::SIGPIPE, libc::SIGCHLD, libc::SIGTTOU] {
            signals::set_ignored(signal, true);
        }
        signals::set_mask(signals::set_of(libc::SIGUSR2) | signals::set_of(50));
        // SAFETY: this process is about to exec; 0 is closed for the command, 9 is passed on.
        unsafe {
            libc::dup2(2, 9);
            libc::close(0);
            libc::umask(0o27);
            libc::setpriority(libc::PRIO_PROCESS, 0, 7);
        }
        Ok(())
    };
    // SAFETY: everything in it is async-signal-safe.
    unsafe { command.pre_exec(arrange) };
}

/// Runs `argv` with a file name, once by this `caller` and once through dlock, and compares the files.
fn compare(
    caller: impl Fn(&mut std::process::Command),
    argv: &[&str],
    lines: impl Fn(&str) -> bool,
) {
    let program = lookup(argv[0].as_ref()).unwrap();
    alone_after(
        |again, scratch| {
            let mut plain = std::process::Command::new(&program);
            plain
                .arg0(argv[0])
                .args(&argv[1..])
                .arg(scratch.0.join("plain"))
                .env(ALONE, &scratch.0);
            caller(&mut plain);
            assert!(plain.status().unwrap().success());
            caller(again);
        },
        |scratch| {
            let mut argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
            argv.push(scratch.0.join("guarded").into());
            let mut guard = launch(
                Command {
                    path: program.clone(),
                    argv,
                },
                PATIENT,
                &LaunchOptions::default(),
            )
            .unwrap();
            guard.start(&[], far()).unwrap();
            assert_eq!(next(&mut guard), GuardReport::Started);
            assert_eq!(
                next(&mut guard),
                ended(ExitStatus::Exited(0), Cause::Command)
            );
            let [plain, guarded] = ["plain", "guarded"].map(|file| {
                let content = fs::read_to_string(scratch.0.join(file)).unwrap();
                content
                    .lines()
                    .filter(|line| lines(line))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            });
            assert!(plain.len() > 3);
            assert_eq!(plain, guarded);
        },
    );
}

fn is_about_signals(line: &str) -> bool {
    ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"]
        .iter()
        .any(|name| line.starts_with(name))
}

#[test]
fn the_command_finds_everything_as_it_would_without_dlock() {
    compare(odd, &["sh", "-c", MIRROR, "sh"], |_| true);
}

/// "The guard of root ... takes its turn before other processes" (dlock-run(1)): it has a priority that this process may have, too.
#[test]
fn the_guard_has_a_real_time_priority_where_it_may() {
    alone(|scratch| {
        let script = r#"echo $PPID > "$DIR/guard"; exec sleep 1000"#;
        let _guard = scratch.start(script, PATIENT);
        let pid = scratch.pid("guard");
        // SAFETY: it only asks the kernel.
        let policy = |pid| unsafe { libc::sched_getscheduler(pid) };
        crate::sys::scheduling::raise_priority();
        let own = policy(0);
        eventually(|| policy(pid) == own);
    });
}

#[test]
fn the_command_finds_odd_signals_as_it_would_without_dlock() {
    compare(odd, &["cp", "/proc/self/status"], is_about_signals);
}

#[test]
fn the_command_finds_usual_signals_as_it_would_without_dlock() {
    // With nothing to arrange std would use posix_spawn(3), which leaves glibc's own signals ignored.
    let usual = |command: &mut std::process::Command| {
        // SAFETY: it does nothing.
        unsafe { command.pre_exec(|| Ok(())) };
    };
    compare(usual, &["cp", "/proc/self/status"], is_about_signals);
}

#[test]
fn a_reader_of_the_output_sees_its_end_when_the_command_ends() {
    alone(|scratch| {
        let fifo = scratch.0.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        // The caller passes on two descriptors, but not this one.
        let writer = fs::File::options()
            .read(true)
            .write(true)
            .open(&fifo)
            .unwrap();
        dup2_stdout(&writer).unwrap();
        // SAFETY: nothing of this process uses number 9.
        unsafe { libc::dup2(writer.as_raw_fd(), 9) };
        drop(writer);
        let _guard = scratch.start(r#"exec >&- 9>&-; echo > "$DIR/up"; sleep 1000"#, PATIENT);
        scratch.line("up");
        let reader =
            rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        eventually(|| rustix::io::read(&reader, &mut [0]) == Ok(0));
    });
}

#[test]
fn a_script_that_names_no_interpreter_is_run_by_the_shell() {
    alone(|scratch| {
        let path = scratch.0.join("script");
        fs::write(&path, "echo \"$# $1 $DIR\" > \"$2\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let argv = vec![
            "as typed".into(),
            "a b".into(),
            scratch.0.join("said").into(),
        ];
        let mut guard = launch(Command { path, argv }, PATIENT, &LaunchOptions::default()).unwrap();
        guard
            .start(&[("DIR".to_owned(), "ours".to_owned())], far())
            .unwrap();
        assert_eq!(next(&mut guard), GuardReport::Started);
        assert_eq!(
            next(&mut guard),
            ended(ExitStatus::Exited(0), Cause::Command)
        );
        assert_eq!(scratch.line("said"), "2 a b ours");
    });
}

/// A signal from the terminal stops dlock once, although it arrives in two ways.
#[test]
fn a_stop_that_is_already_pending_stops_dlock_once() {
    alone(|_| {
        // SAFETY: the other thread of this process only waits for this one, as `alone` says.
        let Some(dlock) = unsafe { process::fork() }.unwrap() else {
            // The group must have a parent outside that can continue it: the kernel does not stop an orphaned group.
            rustix::process::setpgid(None, None).unwrap();
            let _received = receive([libc::SIGTSTP].into_iter()).unwrap();
            rustix::process::kill_process(getpid(), rustix::process::Signal::TSTP).unwrap();
            stop_by(libc::SIGTSTP);
            // SAFETY: ends this process and runs none of the test's code.
            unsafe { libc::_exit(7) }
        };
        let wait = || {
            let changes = rustix::process::WaitOptions::UNTRACED;
            rustix::process::waitpid(Some(dlock), changes)
                .unwrap()
                .unwrap()
                .1
        };
        assert_eq!(wait().stopping_signal(), Some(libc::SIGTSTP));
        rustix::process::kill_process(dlock, rustix::process::Signal::CONT).unwrap();
        assert_eq!(wait().exit_status(), Some(7));
    });
}
