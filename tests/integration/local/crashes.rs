//! Local locks when a process is killed, a file is removed or a disk is full: no overlap, no lower token, no dead holder
//! is shown.
//! It must not know which system calls dlock makes; it breaks each of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::State;
use crate::support::{
    Dlock, LIMIT, Oracle, Running, Scratch, Signal, as_root, as_user, dlock_program, eventually,
    hold, in_namespaces, let_pass, may_trace,
};

/// A holder whose command only SIGKILL ends, with a daemonised descendant of the same kind, and a waiter behind it.
fn holder_and_waiter(state: &State, oracle: &Oracle) -> (Running, Running) {
    let stubborn = "trap '' TERM; setsid -f sleep 600; sleep 600; sleep 600";
    let holder = state
        .run(&["-k2", "job", "--"])
        .args(oracle.command(&["sh", "-c", stubborn]))
        .start();
    oracle.entered(1);
    let waiter = state
        .run(&["job", "--"])
        .args(oracle.command(&["true"]))
        .start();
    state.queue_of(2);
    (holder, waiter)
}

/// "a dlock that is killed by SIGKILL does not free a lock whose command still runs, because the guard stops the
/// command first" (dlock-local(7))
#[test]
fn a_killed_dlock_keeps_the_lock_until_its_tree_is_dead() {
    let (state, oracle) = (State::new(), Oracle::new());
    let (mut holder, mut waiter) = holder_and_waiter(&state, &oracle);
    holder.signal(Signal::KILL);
    holder.wait().expect_signal(Signal::KILL);
    assert!(!holder.tree().is_empty(), "it has its grace");
    let busy = state.run(&["-n", "job", "echo", "never"]).finish();
    busy.expect_code(75).expect_stdout("");
    waiter.wait().expect_code(0).expect_silent();
    holder.assert_tree_dead();
    assert_eq!(oracle.tokens().len(), 2);
}

/// "guard dead: the command dies with it, the rest ... dlock kills"
#[test]
fn a_killed_guard_ends_the_tree_before_the_next_command_begins() {
    let (state, oracle) = (State::new(), Oracle::new());
    let (mut holder, mut waiter) = holder_and_waiter(&state, &oracle);
    holder.guard().signal(Signal::KILL);
    holder.wait().expect_code(125);
    waiter.wait().expect_code(0).expect_silent();
    holder.assert_tree_dead();
    assert_eq!(oracle.tokens().len(), 2);
}

/// The same for a lock inside another one, when the outer one ends its tree: "the locks that dlocks of the tree hold are
/// free when the rest of it is dead".
#[test]
fn a_nested_lock_is_taken_until_its_whole_tree_is_dead() {
    let dlock = dlock_program();
    // The result is the same whether the outer guard kills or, without it, the outer dlock.
    for guard in [false, true] {
        let (state, oracle) = (State::new(), Oracle::new());
        let many = "trap '' TERM; for n in $(seq 300); do sleep 600 & done; echo on; wait";
        let mut holder = state
            .run(&["-k300ms", "outer", dlock, "run", "-k30", "job", "--"])
            .args(oracle.command(&["sh", "-c", many]))
            .start();
        holder.says("on\n");
        let waiter = state.run(&["job", "--"]);
        let mut waiter = waiter.args(oracle.command(&["true"])).start();
        state.queue_of(2);
        if guard {
            holder.guard().signal(Signal::KILL);
        } else {
            holder.signal(Signal::KILL);
        }
        waiter.wait().expect_code(0).expect_silent();
        assert_eq!(oracle.tokens().len(), 2);
        holder.tree_dies();
    }
}

/// "The record of a process that crashed is never taken for a holder, since the kernel has released its file"
/// (dlock-local(7))
#[test]
fn a_crashed_holder_is_never_shown() {
    let state = State::new();
    let mut holder = hold(state.dlock(), &[], "job");
    let guard = holder.guard();
    holder.signal(Signal::STOP);
    guard.signal(Signal::KILL);
    holder.signal(Signal::KILL);
    holder.wait();
    holder.tree_dies();
    eventually(LIMIT, "the guard is dead", || {
        holder.everything().is_empty()
    });
    assert_eq!(state.places(), ["1"], "nobody has cleaned up");
    state.is_free();
    state
        .dlock()
        .args(["ls", "--json"])
        .finish()
        .expect_code(0)
        .expect_stdout("");
    state
        .dlock()
        .args(["status", "--held", "job"])
        .finish()
        .expect_code(1);
    let check = ["check", "--name=job", "--token=1"];
    state.dlock().args(check).finish().expect_code(121);
    assert_eq!(state.next_token(), 2);
    assert_eq!(
        state.files(),
        ["token", "token.lock"],
        "the next one has cleaned up"
    );
}

/// "guard stopped: dlock notices that it does not answer and kills the tree itself"
#[test]
fn a_stopped_guard_ends_the_tree_before_the_next_command_begins() {
    let (state, oracle) = (State::new(), Oracle::new());
    let (mut holder, mut waiter) = holder_and_waiter(&state, &oracle);
    holder.guard().signal(Signal::STOP);
    holder.wait_within(LIMIT * 2).expect_code(125);
    waiter.wait().expect_code(0).expect_silent();
    holder.assert_tree_dead();
    assert_eq!(oracle.tokens().len(), 2);
}

/// A waiter that is killed leaves the queue, with any others before and behind it.
#[test]
fn a_killed_waiter_does_not_block_the_queue() {
    let (state, oracle) = (State::new(), Oracle::new());
    let (holder, mut first) = holder_and_waiter(&state, &oracle);
    let mut last = state
        .run(&["job", "--"])
        .args(oracle.command(&["true"]))
        .start();
    state.queue_of(3);
    first.signal(Signal::KILL);
    first.wait();
    eventually(LIMIT, "its guard follows", || first.everything().is_empty());
    let shown = state.dlock().args(["status", "job"]).finish().stdout;
    assert!(shown.contains("1 holding, 1 waiting"), "{shown}");
    assert!(!last.is_over());
    holder.signal(Signal::KILL);
    last.wait().expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// Many at once, and half of them are killed at random times: never two at once, and tokens only grow.
#[test]
fn kills_among_many_contenders_cause_no_overlap() {
    let (state, oracle) = (State::new(), Oracle::new());
    thread::scope(|scope| {
        for caller in 0..4_u64 {
            let (state, oracle) = (&state, &oracle);
            scope.spawn(move || {
                for round in 0..12 {
                    let number = round * 4 + caller;
                    let command = oracle.command(&["sleep", "0.02"]);
                    let mut running = state.run(&["job", "--"]).args(command).start();
                    if number % 2 == 0 {
                        let_pass(Duration::from_micros(number * 7919 % 90_000));
                        if number % 4 == 0 {
                            running.signal(Signal::KILL);
                        } else {
                            running.signal(Signal::TERM);
                        }
                    }
                    running.wait();
                    // Killing both at once is another promise: here the guard, if it lives, sees the tree die.
                    eventually(LIMIT, "nothing is left", || running.everything().is_empty());
                }
            });
        }
    });
    assert!(oracle.tokens().len() >= 24, "{:?}", oracle.tokens());
    let last = i64::try_from(*oracle.tokens().last().expect("a token")).expect("small");
    assert!(state.next_token() > last);
    assert_eq!(state.files(), ["token", "token.lock"]);
}

/// dlock, its thread and its guard under strace(1), which injects this fault; the calls are logged to the file `calls`.
fn traced(state: &State, calls: &str, tamper: &[&str], words: &[&str]) -> Dlock {
    assert!(
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|dir| dir.join("strace").exists()),
        "strace is not installed; install it with: apt-get install strace, or run make test"
    );
    let log = state.directory.file("calls");
    let calls = format!("trace={calls}");
    state
        .run(words)
        .under(["strace", "-f", "-qqq", "-o", &log, "-e", &calls])
        .under(tamper)
}

/// "never goes back, even if dlock is killed at any moment" (dlock-local(7)): killed before each call that has to do
/// with files, dlock, its thread or its guard, the next one has a higher token than any command has seen, and finds the
/// lock free.
#[test]
fn a_kill_before_any_call_never_lowers_the_token() {
    if may_trace().is_none() {
        return;
    }
    let state = State::new();
    let seen = state.directory.file("seen");
    let script = format!("echo $DLOCK_FENCING_TOKEN >>{seen}");
    let words = ["job", "sh", "-c", &script];
    let mut killed = 0;
    for (call, most) in [
        ("openat", 40),
        ("flock", 4),
        ("fchmod", 4),
        ("write", 5),
        ("fsync", 4),
        ("renameat", 3),
        ("unlinkat", 3),
        ("getdents64", 6),
    ] {
        let before = killed;
        for number in 1..=most {
            let kill = format!("inject={call}:signal=KILL:when={number}");
            let mut victim = traced(&state, call, &["-e", &kill], &words).start();
            let outcome = victim.wait();
            killed += u32::from(outcome.signal().is_some());
            eventually(LIMIT, "nothing is left", || victim.everything().is_empty());
            let text = state.directory.read("seen");
            let highest = text
                .lines()
                .filter_map(|line| line.parse().ok())
                .max()
                .unwrap_or(0);
            let next = state.next_token();
            assert!(next > highest, "{call} {number}: {next} after {highest}");
            fs::write(&seen, format!("{next}\n")).expect("our own file");
        }
        assert!(killed > before, "{call} is never called");
    }
    // Without the calls of a dynamic linker.
    assert!(killed > 20, "{killed}");
    assert_eq!(state.files(), ["token", "token.lock"]);
}

/// "Make a state directory that the users of a group share" (dlock-local(7)): killed before each call that makes
/// something, whatever its umask, one member of the group bars no other, and removes what it has left when it makes a
/// lock again.
#[test]
fn a_kill_before_any_call_locks_no_member_of_the_group_out() {
    let (Some(()), Some(()), Some(first), Some(second)) = (
        as_root(),
        may_trace(),
        as_user(1001, 4242),
        as_user(1002, 4242),
    ) else {
        return;
    };
    let group = |state: &State, uid: u32, umask: &str, words: &[&str]| {
        let member = if uid == 1001 { &first } else { &second };
        let run = state.run(words).under(member);
        run.after(&format!("umask {umask}"))
    };
    let mut killed = 0;
    for (call, most) in [
        ("mkdirat", 1),
        ("openat", 24),
        ("fchmod", 5),
        ("flock", 5),
        ("write", 2),
        ("renameat2", 2),
        ("renameat", 2),
        ("unlinkat", 2),
        ("fsync", 3),
    ] {
        let before = killed;
        for number in 1..=most {
            let state = State::new();
            fs::create_dir(&state.path).expect("a new directory");
            let open = |path: &Path, mode| {
                fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own");
            };
            open(state.directory.path(), 0o755);
            chown(&state.path, None, Some(4242)).expect("root may");
            open(Path::new(&state.path), 0o2770);
            let kill = format!("inject={call}:signal=KILL:when={number}");
            let trace = format!("trace={call}");
            let strace = [
                "strace",
                "-f",
                "-qqq",
                "-o",
                "/dev/null",
                "-e",
                &trace,
                "-e",
                &kill,
            ];
            let words = ["job", "true"];
            let mut victim = group(&state, 1001, "077", &words).under(strace).start();
            killed += u32::from(victim.wait().signal().is_some());
            eventually(LIMIT, "nothing is left", || victim.everything().is_empty());
            let at = format!("killed before {call} {number}");
            let other = group(&state, 1002, "022", &["-w10", "job", "echo", &at]);
            other
                .finish()
                .expect_code(0)
                .expect_silent()
                .expect_stdout(&format!("{at}\n"));
            let again = group(&state, 1001, "077", &["other", "true"]);
            again.finish().expect_code(0);
            let mut directories: Vec<_> = fs::read_dir(&state.path)
                .expect("our own directory")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            directories.sort();
            assert_eq!(directories, ["job", "other"], "{at}");
        }
        assert!(killed > before, "{call} is never called");
    }
    assert!(killed > 20, "{killed}");
}

/// The same by the order of the calls, as strace(1) counts them for each thread: a file gets its mode before its name.
#[test]
fn no_file_appears_before_it_has_its_mode() {
    if may_trace().is_none() {
        return;
    }
    let state = State::new();
    fs::create_dir(&state.path).expect("a new directory");
    fs::set_permissions(&state.path, Permissions::from_mode(0o770)).expect("our own");
    let calls = "openat,mkdirat,fchmod,renameat,renameat2";
    let run = traced(&state, calls, &[], &["job", "true"]);
    run.finish().expect_code(0);
    let log = state.directory.read("calls");
    let lines: Vec<&str> = log.lines().collect();
    for name in ["job", "token.lock", "token"] {
        let quoted = format!("\"{name}\"");
        let first = lines
            .iter()
            .position(|line| line.contains(&quoted) && line.ends_with("= 0"));
        let first = first.unwrap_or_else(|| panic!("no {name} in {log}"));
        assert!(lines[first].contains("rename"), "{}", lines[first]);
        assert!(lines[first - 1].contains("fchmod("), "{log}");
        let made = |line: &&str| line.contains(&quoted) && line.contains("O_CREAT");
        assert!(!lines[..first].iter().any(made), "{log}");
    }
}

/// "It is on the disk before the command begins" (dlock-local(7)): the text, its name in the directory, then the
/// command.
#[test]
fn everything_is_synced_before_the_command_begins() {
    if may_trace().is_none() {
        return;
    }
    let state = State::new();
    for _ in 0..2 {
        let calls = "fsync,renameat,execve";
        let run = traced(&state, calls, &[], &["job", "/bin/true"]);
        run.finish().expect_code(0);
        let log = state.directory.read("calls");
        let position = |what: &str| log.lines().position(|line| line.contains(what));
        let renamed = position("\"token.new\"").expect("the token's file is replaced");
        let lines: Vec<&str> = log.lines().collect();
        assert!(
            lines[..renamed].iter().any(|line| line.contains("fsync(")),
            "{log}"
        );
        let settled = lines[renamed..]
            .iter()
            .position(|line| line.contains("fsync("));
        let settled = renamed + settled.expect("the directory is synced");
        let began = position("execve(\"/bin/true\"").expect("the command");
        assert!(settled < began, "{log}");
    }
}

/// "a state directory that cannot be used" (dlock-run(1)): 125, and the command is not run, when each call that writes
/// fails once.
#[test]
fn a_disk_that_fails_keeps_the_command_from_running() {
    if may_trace().is_none() {
        return;
    }
    let state = State::new();
    state.next_token();
    for (call, error) in [
        ("fsync", "EIO"),
        ("fsync", "ENOSPC"),
        ("renameat", "EROFS"),
        ("renameat", "ENOSPC"),
        ("flock", "ENOLCK"),
        ("fstatfs", "EIO"),
        ("mkdirat", "EACCES"),
    ] {
        let before = state.next_token();
        let fault = format!("inject={call}:error={error}:when=1");
        let name = if call == "mkdirat" { "other" } else { "job" };
        let outcome = traced(&state, call, &["-e", &fault], &[name, "echo", "never"]).finish();
        outcome
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&["dlock: cannot "]);
        assert!(state.next_token() > before, "{call} {error}");
    }
}

/// A script in a mount namespace of its own.
fn alone(script: &str) -> Option<Dlock> {
    let alone = in_namespaces(&["--mount"])?;
    Some(Dlock::program(alone).args(["sh", "-c", script]))
}

/// A full disk, and a read-only one: the command is not run, and the tokens continue where they were.
#[test]
fn a_full_disk_keeps_the_token() {
    let disk = Scratch::new();
    let path = disk.path().display();
    let run = format!("{} run --local={path} job", dlock_program());
    let script = format!(
        "mount -t tmpfs -o size=32k,mode=700 none {path} || exit 99
        {run} printenv DLOCK_FENCING_TOKEN
        dd if=/dev/zero of={path}/rest bs=1k 2>/dev/null
        {run} echo never; echo $?
        rm {path}/rest
        {run} printenv DLOCK_FENCING_TOKEN
        mount -o remount,ro {path} || exit 99
        {run} echo never; echo $?
        mount -o remount,rw {path} || exit 99
        {run} printenv DLOCK_FENCING_TOKEN
        ls {path}/job"
    );
    let Some(script) = alone(&script) else { return };
    let outcome = script.finish().expect_code(0);
    assert_eq!(
        outcome.stdout, "1\n125\n2\n125\n3\nhistory\ntoken\ntoken.lock\n",
        "{outcome:?}"
    );
    outcome.expect_stderr(&["No space left on device", "Read-only file system"]);
}

/// A token file that cannot be parsed: a guessed number could be too low.
#[test]
fn a_damaged_token_is_no_token() {
    let state = State::new();
    state.next_token();
    let file = format!("{}/job/token", state.path);
    for text in [
        "",
        "dlock-fence 1\njob 1",
        "dlock-fence 9\njob 1\nend\n",
        "1\n",
    ] {
        fs::write(&file, text).expect("our own file");
        let outcome = state.run(&["job", "echo", "never"]).finish();
        outcome
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&["/job/token'", "hint: "]);
    }
    // As the hint says.
    fs::remove_file(&file).expect("our own file");
    let repair = ["fence", &file, "--name=job", "--token=41"];
    Dlock::nowhere().args(repair).finish().expect_code(0);
    assert_eq!(state.next_token(), 42);
}

/// "A user with write permission for the state directory can remove files in it, and that frees the lock. Its holder
/// notices that within a second and stops its command, and the status is 121" (dlock-local(7))
#[test]
fn a_removed_entry_is_a_loss() {
    let state = State::new();
    let away = state.directory.file("away");
    for (number, damage) in [
        "rm \"$DLOCK_LOCAL\"/job/$DLOCK_FENCING_TOKEN",
        "rm -r \"$DLOCK_LOCAL\"",
        &format!("mv \"$DLOCK_LOCAL\" {away}"),
        "cp \"$DLOCK_LOCAL\"/job/$DLOCK_FENCING_TOKEN x; mv x \"$DLOCK_LOCAL\"/job/$DLOCK_FENCING_TOKEN",
    ]
    .iter()
    .enumerate()
    {
        let script = format!("cd; echo on; {damage}; sleep 600");
        let mut holder = state.run(&["job", "sh", "-c", &script]).start();
        holder.says("on");
        let outcome = holder.wait().expect_code(121);
        outcome.expect_stderr(&["lost lock 'job'", "removed or replaced"]);
        holder.assert_tree_dead();
        assert!(state.next_token() > 0, "{number}");
    }
    // If it ends before the check, the release finds out.
    let script = "rm \"$DLOCK_LOCAL\"/job/$DLOCK_FENCING_TOKEN";
    let outcome = state.run(&["job", "sh", "-c", script]).finish();
    outcome
        .expect_code(121)
        .expect_stderr(&["lost lock 'job' while the command ran"]);
}
