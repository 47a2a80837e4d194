//! A fence whose dlock is killed at any time, or whose disk fails: the number is the old one or the new one.
//! It must not know which system calls dlock makes; it breaks each of them.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use super::{Fence, is_late};
use crate::support::{
    Dlock, Outcome, Scratch, Signal, dlock_program, in_namespaces, let_pass, may_trace, without,
};

/// The system calls on files.
const CALLS: &str = "%file,%desc";

/// dlock under strace(1), which injects this fault; the calls are logged to the file `calls` beside the fence.
fn traced(fence: &Fence, token: u32, tamper: &[&str]) -> Dlock {
    assert!(
        env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .any(|dir| dir.join("strace").exists()),
        "strace is not installed; install it with: apt-get install strace, or run make test"
    );
    let trace = format!("trace={CALLS}");
    let strace = [
        "strace",
        "-qqq",
        "-o",
        &fence.directory.file("calls"),
        "-e",
        &trace,
    ];
    fence
        .token(token)
        .args(["echo", "written"])
        .under(strace)
        .under(tamper)
}

/// Every call of a dlock before its command, in strace's form: its name, and its number among the calls of that name.
#[track_caller]
fn calls(fence: &Fence, token: u32) -> Vec<(String, usize)> {
    traced(fence, token, &[]).finish().expect_code(0);
    let log = fence.directory.read("calls");
    let mut calls: Vec<(String, usize)> = Vec::new();
    // The first one starts dlock itself, and does not count.
    for line in log.lines().skip(1) {
        let name = line.split('(').next().unwrap_or_default();
        let earlier = calls.iter().filter(|(earlier, _)| earlier == name).count();
        calls.push((name.to_owned(), earlier + 1));
        if name == "execve" {
            return calls;
        }
    }
    panic!("it does not become the command:\n{log}");
}

/// The fence works as if nothing had happened: the killed one's token is accepted, a lower one is not, and no file is
/// left behind.
#[track_caller]
fn continues(fence: &Fence, token: u32) {
    fence.token(token).finish().expect_code(0).expect_silent();
    is_late(fence.token(token - 1).finish(), token - 1, token);
    let mut files = fence.files();
    files.retain(|name| name != "calls");
    assert_eq!(files, ["fence", "fence.lock"]);
}

/// "Whatever happens at any point ... FILE has the old number or the new one, as a whole" (dlock-fence(1)): killed
/// before each call on files, both with an existing file and without one.
#[test]
fn a_kill_before_any_call_leaves_the_old_number_or_the_new_one() {
    if may_trace().is_none() {
        return;
    }
    for there in [true, false] {
        let first = Fence::new();
        if there {
            first.token(1).finish().expect_code(0);
        }
        let (mut old, mut new) = (0, 0);
        for (call, number) in calls(&first, 2) {
            let fence = Fence::new();
            let before = u32::from(there);
            if there {
                fence.token(1).finish().expect_code(0);
            }
            let kill = format!("inject={call}:signal=KILL:when={number}");
            let outcome = traced(&fence, 2, &["-e", &kill]).finish();
            outcome.expect_signal(Signal::KILL).expect_stdout("");
            match fence.highest() {
                2 => new += 1,
                seen => {
                    assert_eq!(seen, before);
                    assert_eq!(new, 0, "the new number was there before");
                    old += 1;
                }
            }
            continues(&fence, 2);
        }
        assert!(old > 5 && new > 1, "{old} {new}");
    }
}

/// "The number is on the disk before the command begins" (dlock-fence(1)): a power cut keeps what was synced, so first
/// the text, then its name in the directory, then the command.
#[test]
fn everything_is_synced_before_the_command_begins() {
    if may_trace().is_none() {
        return;
    }
    let fence = Fence::new();
    for token in [1, 2] {
        let steps = ["write", "fsync", "renameat", "fsync", "execve"];
        let mut made = calls(&fence, token);
        made.retain(|(name, _)| steps.contains(&&**name));
        let names: Vec<String> = made.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, steps);
    }
    // The writer may have been killed before it had synced the directory.
    let mut again = calls(&fence, 2);
    again.retain(|(name, _)| ["write", "fsync", "execve"].contains(&&**name));
    assert_eq!(again.first().map(|(name, _)| &**name), Some("fsync"));
}

/// Killed at random times, with the number growing all the time.
#[test]
fn a_kill_at_a_random_moment_never_lowers_the_number() {
    let fence = Fence::new();
    let mut before = 0;
    for token in 1..=60 {
        let running = fence.token(token).start();
        // From before its first to after its last call; that takes some two milliseconds.
        let_pass(Duration::from_micros(u64::from(token) * 997 % 5000));
        running.signal(Signal::KILL);
        drop(running);
        let seen = fence.highest();
        assert!(
            seen == before || seen == token,
            "{before} became {seen} with {token}"
        );
        before = seen;
    }
    continues(&fence, 61);
}

/// It failed: nothing was run, and the number is the old one or the new one.
#[track_caller]
fn has_failed(fence: &Fence, outcome: Outcome, numbers: [u32; 2]) {
    outcome
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(&["dlock: cannot ", "'"]);
    assert!(numbers.contains(&fence.highest()), "{}", fence.text());
}

/// "If the new number cannot be recorded, the command is not run, and the exit status is 125" (dlock-fence(1)): each
/// call that writes fails.
#[test]
fn a_disk_that_fails_keeps_the_command_from_running() {
    if may_trace().is_none() {
        return;
    }
    let fence = Fence::new();
    fence.token(1).finish().expect_code(0);
    let known = calls(&fence, 2);
    let mut token = 2;
    for (call, error) in [
        ("write", "ENOSPC"),
        ("write", "EIO"),
        ("fsync", "EIO"),
        ("fsync", "ENOSPC"),
        ("renameat", "EROFS"),
        ("renameat", "ENOSPC"),
        ("fchmod", "EPERM"),
    ] {
        let numbers = known.iter().filter(|(name, _)| name == call);
        assert!(numbers.clone().count() > 0, "no {call} in {known:?}");
        for (_, number) in numbers {
            token += 1;
            let fault = format!("inject={call}:error={error}:when={number}");
            let outcome = traced(&fence, token, &["-e", &fault]).finish();
            has_failed(&fence, outcome, [token - 1, token]);
            continues(&fence, token);
        }
    }
}

/// A short write is not the end, and an interrupted call is no failure.
#[test]
fn an_interrupted_call_is_made_again() {
    if may_trace().is_none() {
        return;
    }
    let fence = Fence::new();
    fence.token(1).finish().expect_code(0);
    for (token, call) in [(2, "flock"), (3, "write"), (4, "fsync")] {
        let fault = format!("inject={call}:error=EINTR:when=1");
        traced(&fence, token, &["-e", &fault])
            .finish()
            .expect_code(0)
            .expect_stdout("written\n");
        continues(&fence, token);
    }
}

/// "a full disk": a real one, that has room for the names but not for the content; and a limit on files.
#[test]
fn a_full_disk_keeps_the_number() {
    let disk = Scratch::new();
    let path = disk.path().display();
    let dlock = dlock_program();
    let script = format!(
        "mount -t tmpfs -o size=16k none {path} && cd {path} || exit 99
        {dlock} fence f --name job --token 33 || exit 98
        dd if=/dev/zero of=rest bs=1k 2>/dev/null
        {dlock} fence f --name job --token 34 echo written; echo $?
        {dlock} fence f --peek
        {dlock} fence f --name job --token 33 echo again; echo $?
        ls; rm rest
        {dlock} fence f --name job --token 34 echo written; echo $?"
    );
    let Some(script) = alone(&script) else { return };
    let outcome = script.finish().expect_code(0);
    assert_eq!(
        outcome.stdout, "125\njob 33\nagain\n0\nf\nf.lock\nrest\nwritten\n0\n",
        "{outcome:?}"
    );
    assert!(
        outcome.stderr.contains("No space left on device"),
        "{outcome:?}"
    );

    let fence = Fence::new();
    fence.token(33).finish().expect_code(0);
    let limited = || fence.token(34).args(["echo", "written"]);
    let outcome = limited().after("trap '' XFSZ; ulimit -f 0");
    // Its output was written into a file, too.
    outcome.finish().expect_code(125).expect_stdout("");
    let outcome = limited().after("ulimit -f 0");
    outcome.finish().expect_code(125).expect_stdout("");
    assert_eq!(fence.highest(), 33);
    continues(&fence, 34);
}

/// "a read-only disk" (dlock-fence(1))
#[test]
fn a_read_only_disk_keeps_the_number() {
    let disk = Scratch::new();
    let path = disk.path().display();
    let dlock = dlock_program();
    let script = format!(
        "mount -t tmpfs none {path} && cd {path} && mkdir new || exit 99
        {dlock} fence f --name job --token 33 || exit 98
        mount -o remount,ro {path} || exit 99
        cd {path}
        {dlock} fence f --name job --token 34 echo written; echo $?
        {dlock} fence new/f --name job --token 34 echo written; echo $?
        {dlock} fence f --name job --token 32 echo written; echo $?
        {dlock} fence f --peek"
    );
    let Some(script) = alone(&script) else { return };
    let outcome = script.finish().expect_code(0);
    assert_eq!(outcome.stdout, "125\n125\n121\njob 33\n", "{outcome:?}");
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
}

/// "a FILE that the caller may not write" (dlock-fence(1)): the permissions of its directory do not count for it.
#[test]
fn a_read_only_file_keeps_the_number() {
    let fence = Fence::new();
    fence.token(33).finish().expect_code(0);
    // Root may write a read-only file, unless it has dropped that capability.
    let Some(humble) = without("-dac_override") else {
        return;
    };
    let dlock = |words: &[&str]| fence.dlock(words).under(&humble);
    let before = fence.text();
    let read_only = |mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(&fence.file, permissions).expect("our own file");
    };
    read_only(0o444);
    for words in [
        &["--name=job", "--token=34", "echo", "written"][..],
        &["--name=job", "--reset=0"],
    ] {
        let outcome = dlock(words).finish();
        outcome.expect_code(125).expect_stdout("").expect_stderr(&[
            "dlock: cannot record",
            &fence.file,
            "Permission denied",
        ]);
    }
    assert_eq!((fence.text(), fence.highest()), (before, 33));
    // These need no write.
    let known = dlock(&["--name=job", "--token=33", "echo", "again"]).finish();
    known.expect_code(0).expect_stdout("again\n");
    is_late(dlock(&["--name=job", "--token=32"]).finish(), 32, 33);
    read_only(0o644);
    dlock(&["--name=job", "--token=34"]).finish().expect_code(0);
    continues(&fence, 34);
}

/// A script in a mount namespace of its own.
fn alone(script: &str) -> Option<Dlock> {
    let alone = in_namespaces(&["--mount"])?;
    Some(Dlock::program(alone).args(["sh", "-c", script]))
}

/// Killed while others wait, it lets the next one continue, which finds a whole file.
#[test]
fn a_kill_among_many_writers_stops_no_other() {
    let fence = Fence::new();
    thread::scope(|scope| {
        for caller in 0..4 {
            let fence = &fence;
            scope.spawn(move || {
                for round in 0..15 {
                    let token = round * 4 + caller + 1;
                    let mut running = fence.token(token).args(["true"]).start();
                    if token % 3 == 0 {
                        let_pass(Duration::from_micros(u64::from(token) * 613 % 4000));
                        running.signal(Signal::KILL);
                    }
                    let outcome = running.wait();
                    let fine = [Some(0), Some(121)].contains(&outcome.code())
                        || outcome.signal() == Some(Signal::KILL.as_raw());
                    assert!(fine, "{outcome:?}");
                }
            });
        }
    });
    continues(&fence, 100);
}
