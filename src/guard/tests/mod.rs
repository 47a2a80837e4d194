//! Tests of the guard as dlock uses it, with real processes and no etcd.
//! It must not know the guard's inner workings.
#![expect(unsafe_code, reason = "odd callers and odd commands")]

mod caller;
mod dying;
mod ending;
mod surviving;

use std::env;
use std::fs;
use std::process::Stdio;

use super::*;
use crate::sys::process::ExitStatus;

/// Variable that marks the process that [`alone`] has made.
const ALONE: &str = "DLOCK_TEST_ALONE";
/// Exit code of that process, so that a run of no test is not taken for a success.
const DONE: i32 = 42;
/// Time limit of a test, ample even on a busy machine.
const LIMIT: Duration = Duration::from_mins(3);

const PATIENT: Policy = Policy {
    signal: libc::SIGTERM,
    grace: LIMIT,
    leftovers: Leftovers::Kill,
};
const HASTY: Policy = Policy {
    grace: Duration::from_millis(100),
    ..PATIENT
};

/// Runs `body` in a process of its own, because `launch` forks and changes descriptors and dispositions: the test binary
/// runs again for this one test. libtest's second thread there is harmless: it only waits for the thread that runs the
/// test, so it holds no lock that the forked guard could need. The command dies with the guard's only thread, not with
/// the thread that forked the guard.
fn alone(body: impl FnOnce(Scratch)) {
    alone_after(|_, _| (), body);
}

fn alone_after(
    prepare: impl FnOnce(&mut std::process::Command, &Scratch),
    body: impl FnOnce(Scratch),
) {
    if let Some(scratch) = env::var_os(ALONE) {
        // SAFETY: only sets a timer, which ends this process, and so the guard and its tree, when a test hangs.
        unsafe { libc::alarm(u32::try_from(LIMIT.as_secs()).unwrap()) };
        body(Scratch(scratch.into()));
        #[expect(
            clippy::exit,
            reason = "this process is over, and libtest's stdout is gone"
        )]
        std::process::exit(DONE);
    }
    let name = test_name();
    let scratch = Scratch::new(&name);
    let mut again = std::process::Command::new(env::current_exe().unwrap());
    again
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, &scratch.0)
        .stdout(Stdio::null());
    prepare(&mut again, &scratch);
    let status = again.status().unwrap();
    fs::remove_dir_all(&scratch.0).unwrap();
    assert_eq!(status.code(), Some(DONE), "{status}");
}

/// A directory to which the commands write.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let name = format!("dlock-{}-{}", test.replace("::", "-"), std::process::id());
        let directory = env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    /// Waits for one line in a file.
    fn line(&self, file: &str) -> String {
        let mut content = String::new();
        eventually(|| {
            content = fs::read_to_string(self.0.join(file)).unwrap_or_default();
            content.ends_with('\n')
        });
        content.trim_end().to_owned()
    }

    fn pid(&self, file: &str) -> i32 {
        self.line(file).parse().unwrap()
    }

    /// Starts `script`, which finds this directory in `$DIR`.
    fn start(&self, script: &str, policy: Policy) -> Guard {
        self.start_until(script, policy, far())
    }

    fn start_until(&self, script: &str, policy: Policy, deadlines: Deadlines) -> Guard {
        let mut guard = launch(shell(script), policy, &LaunchOptions::default()).unwrap();
        guard
            .start(
                &[("DIR".to_owned(), self.0.to_str().unwrap().to_owned())],
                deadlines,
            )
            .unwrap();
        assert_eq!(next(&mut guard), GuardReport::Started);
        guard
    }
}

fn shell(script: &str) -> Command {
    Command {
        path: "/bin/sh".into(),
        argv: ["sh", "-c", script].map(OsString::from).into(),
    }
}

/// A command that runs this test again.
fn this_test() -> Command {
    let argv = [
        "test",
        &test_name(),
        "--exact",
        "--nocapture",
        "--test-threads=1",
    ];
    Command {
        path: env::current_exe().unwrap(),
        argv: argv.map(OsString::from).into(),
    }
}

/// The name of the thread, which libtest sets.
fn test_name() -> String {
    thread::current().name().unwrap().to_owned()
}

fn far() -> Deadlines {
    let now = clock::now();
    Deadlines {
        stop_at: now + LIMIT * 2,
        kill_at: now + LIMIT * 3,
    }
}

fn eventually(mut condition: impl FnMut() -> bool) {
    // The alarm ends it.
    while !condition() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn is_alive(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn next(guard: &mut Guard) -> GuardReport {
    loop {
        if let Some(report) = guard.report().unwrap() {
            return report;
        }
        poll(&mut [PollFd::new(&guard.backchannel, PollFlags::IN)], None).unwrap();
    }
}

/// The last report after a kill. A busy machine may report survivors before, and again when their list changes: when the
/// processes end is the kernel's affair, that all of them end is the rule.
fn last(guard: &mut Guard) -> GuardReport {
    loop {
        let report = next(guard);
        if !matches!(report, GuardReport::Survivors(_)) {
            return report;
        }
    }
}

fn ended(status: ExitStatus, cause: Cause) -> GuardReport {
    GuardReport::Ended {
        status: Some(status),
        cause,
    }
}

/// Leaves a process behind that no signal but SIGKILL reaches, two forks and a session away; its pid is in `$DIR/far`.
const FAR: &str =
    r#"(setsid sh -c 'trap "" TERM; echo $$ > "$DIR/far"; while :; do sleep 1000; done' &); "#;
