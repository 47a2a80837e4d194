//! Local locks: the same command line without any server, and flock(1)'s own tests repeated with it.
//! It must not know what happens when something is killed or broken; `local/crashes.rs` and `local/state_dir.rs` do.

mod crashes;
mod state_dir;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{
    Dlock, Etcd, LIMIT, Oracle, Running, Scratch, Signal, boot_clock, dlock_program, eventually,
    hold, hold_open, let_pass, since,
};

/// A state directory for one test.
struct State {
    directory: Scratch,
    path: String,
}

impl State {
    fn new() -> Self {
        let directory = Scratch::new();
        let path = directory.file("state");
        Self { directory, path }
    }

    /// dlock with the locks of this directory, and without any endpoint.
    fn dlock(&self) -> Dlock {
        Dlock::nowhere().env("DLOCK_LOCAL", &self.path)
    }

    fn run(&self, words: &[&str]) -> Dlock {
        self.dlock().run(words)
    }

    /// The names in the directory of the lock `job`, without that of its history.
    fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(format!("{}/job", self.path)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("a plain name"))
            .collect();
        names.retain(|name| name != "history");
        names.sort();
        names
    }

    /// The entries of the queue of the lock `job`, those of dead owners included.
    fn places(&self) -> Vec<String> {
        let mut files = self.files();
        files.retain(|name| {
            name.bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
        });
        files
    }

    /// Waits until there are this many entries.
    #[track_caller]
    fn queue_of(&self, count: usize) {
        eventually(LIMIT, &format!("{count} places"), || {
            self.places().len() == count
        });
    }

    /// The token of a run that finds the lock free.
    #[track_caller]
    fn next_token(&self) -> i64 {
        let outcome = self
            .run(&["-n", "job", "printenv", "DLOCK_FENCING_TOKEN"])
            .finish();
        let outcome = outcome.expect_code(0).expect_silent();
        outcome.stdout.trim_end().parse().expect("a decimal token")
    }

    #[track_caller]
    fn is_free(&self) {
        self.dlock()
            .args(["status", "job"])
            .finish()
            .expect_code(0)
            .expect_stdout("job: free\n");
    }
}

/// A guest of the oracle, which allows one at a time, unless it shares the lock.
fn guest(state: &State, oracle: &Oracle, options: &[&str], who: &str) -> Running {
    let stay = oracle.guest(who);
    let skipped = if options.is_empty() { 0 } else { 3 };
    state
        .run(options)
        .args(["job", "--"])
        .args(&stay[skipped..])
        .start()
}

/// util-linux 36, `flock -n -E 123`: "-E: The exit status used when the -n option is in use, and the conflicting lock exists".
#[test]
fn a_busy_lock_has_the_chosen_exit_status() {
    let state = State::new();
    let mut holder = hold_open(state.dlock(), &[], "job");
    state
        .run(&["-n", "-E", "123", "job", "echo", "never"])
        .finish()
        .expect_code(123)
        .expect_stdout("")
        .expect_stderr(&["dlock: the lock 'job' is held by ", "pid "]);
    // util-linux 43: "A timeout of 0 ... nonblocking".
    for words in [["-n", "job"], ["--wait=0", "job"]] {
        let busy = state.run(&words).args(["echo", "never"]).finish();
        busy.expect_code(75).expect_stdout("");
    }
    state
        .run(&["-n", "-E0", "job", "echo", "never"])
        .finish()
        .expect_code(0)
        .expect_stdout("")
        .expect_silent();
    assert_eq!(state.places().len(), 1, "who does not wait takes no place");
    holder.let_go();
    state.is_free();
    assert_eq!(state.files(), ["token", "token.lock"]);
}

/// util-linux 38 and 39: shared beside shared runs, exclusive against shared does not, nor the other way round.
#[test]
fn readers_share_and_others_do_not() {
    let state = State::new();
    let mut reader = hold_open(state.dlock(), &["-s"], "job");
    let busy = state.run(&["-n", "-E123", "job", "echo", "never"]).finish();
    busy.expect_code(123).expect_stdout("");
    state
        .run(&["-s", "-n", "job", "echo", "beside"])
        .finish()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("beside\n");
    reader.let_go();
    let mut writer = hold_open(state.dlock(), &[], "job");
    let busy = state
        .run(&["-s", "-n", "-E123", "job", "echo", "never"])
        .finish();
    busy.expect_code(123).expect_stdout("");
    writer.let_go();
}

/// util-linux 40: a lock whose name is a number, or like an option's value, does not name a file elsewhere.
#[test]
fn a_lock_name_is_not_a_path() {
    let state = State::new();
    for name in ["9", "..", ".", "a/b", "../../x", "ä b", "token"] {
        state
            .run(&["-n", name, "true"])
            .finish()
            .expect_code(0)
            .expect_silent();
    }
    let mut directories: Vec<String> = fs::read_dir(&state.path)
        .expect("the state directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("ASCII")
        })
        .collect();
    directories.sort();
    let expected = [
        "%2E",
        "%2E.",
        "%2E.%2F..%2Fx",
        "%C3%A4%20b",
        "9",
        "a%2Fb",
        "token",
    ];
    assert_eq!(directories, expected);
    let long = "ä".repeat(50);
    let outcome = state.run(&[&long, "echo", "never"]).finish();
    outcome.expect_code(125).expect_stdout("").expect_stderr(&[
        &long,
        "at most 255 bytes",
        "hint: ",
    ]);
    state
        .run(&[&"x".repeat(255), "true"])
        .finish()
        .expect_code(0);
}

/// util-linux 41: a waiter with enough time gets the lock; 43: `-v` reports how long that took.
#[test]
fn a_wait_that_is_long_enough_ends_with_the_lock() {
    let state = State::new();
    let mut holder = hold_open(state.dlock(), &["--note=a freeze"], "job");
    let began_at = boot_clock();
    let late = state
        .run(&["-w", "1", "-E", "5", "job", "echo", "never"])
        .finish();
    late.expect_code(5).expect_stdout("").expect_stderr(&[
        "dlock: the lock 'job' is still held by ",
        "note \"a freeze\"",
    ]);
    assert!(since(began_at) >= Duration::from_secs(1));
    let mut waiter = state
        .dlock()
        .args(["-v"])
        .run(["-w20", "job", "echo", "in"])
        .start();
    state.queue_of(2);
    holder.let_go();
    waiter
        .wait()
        .expect_code(0)
        .expect_stdout("in\n")
        .expect_stderr(&[
            "waiting for 'job' (next in line; held by ",
            "acquired 'job' with token ",
        ]);
}

/// util-linux 42, `--close`: "The command does not get" the descriptor, so that a daemon that it leaves behind does not
/// keep the lock.
#[test]
fn the_command_does_not_inherit_the_lock() {
    let state = State::new();
    let look = "ls -l /proc/$$/fd; setsid -f sleep 600; exec true";
    let outcome = state
        .run(&["--leftovers=leave", "job", "sh", "-c", look])
        .start()
        .wait();
    let outcome = outcome.expect_code(0);
    assert!(!outcome.stdout.contains(&state.path), "{}", outcome.stdout);
    state.next_token();
}

/// util-linux 44: the kernel's list shows the lock.
#[test]
fn the_kernel_shows_the_lock() {
    let state = State::new();
    let mut holder = hold_open(state.dlock(), &[], "job");
    let place = format!("{}/job/{}", state.path, state.places()[0]);
    let inode = format!(":{} ", fs::metadata(place).expect("the entry").ino());
    let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
    let ours = locks.lines().find(|line| line.contains(&inode));
    let ours = ours.unwrap_or_else(|| panic!("{inode}: {locks}"));
    assert!(ours.contains("FLOCK") && ours.contains("WRITE"), "{ours}");
    holder.let_go();
}

/// "Clients get the lock in the order of their entries in the queue" (dlock-run(1)), never two at once, and every later
/// one has a higher token.
#[test]
fn the_queue_is_in_order() {
    let (state, oracle) = (State::new(), Oracle::new());
    let mut holder = hold_open(state.dlock(), &[], "job");
    let mut waiters = Vec::new();
    for who in 0..12 {
        waiters.push(guest(&state, &oracle, &[], &who.to_string()));
        oracle.exited(&who.to_string());
        state.queue_of(waiters.len() + 1);
    }
    holder.let_go();
    for waiter in &mut waiters {
        waiter.wait().expect_code(0).expect_silent();
    }
    let everybody: Vec<String> = (0..12).map(|who| who.to_string()).collect();
    assert_eq!(oracle.guests(), everybody);
    assert_eq!(oracle.tokens().len(), 12);
}

/// "a later reader does not overtake a waiting writer" (dlock-run(1)).
#[test]
fn a_writer_comes_in_its_turn() {
    let (state, oracle) = (State::new(), Oracle::new());
    let mut first = guest(&state, &oracle, &["-s"], "r1");
    let mut second = guest(&state, &oracle, &["-s"], "r2");
    eventually(LIMIT, "both readers are in", || oracle.guests().len() == 2);
    let mut writer = guest(&state, &oracle, &[], "w");
    state.queue_of(3);
    let mut late = guest(&state, &oracle, &["-s"], "r3");
    state.queue_of(4);
    oracle.exited("r2");
    second.wait().expect_code(0);
    assert_eq!(oracle.guests().len(), 2);
    oracle.exited("r1");
    first.wait().expect_code(0);
    eventually(LIMIT, "the writer is in", || oracle.guests().len() == 3);
    oracle.exited("w");
    oracle.exited("r3");
    writer.wait().expect_code(0);
    late.wait().expect_code(0);
    assert_eq!(oracle.guests()[2..], ["w", "r3"]);
}

/// "Let up to N runs hold the lock at once" (dlock-run(1)): never more, and each with a slot of its own.
#[test]
fn slots_are_never_taken_twice() {
    let state = State::new();
    let dir = state.directory.path().display();
    // The kernel's lock detects two holders with the same slot.
    let command = format!(
        "exec flock -n -E 99 {dir}/slot$DLOCK_SLOT sh -c 'echo $DLOCK_SLOT >>{dir}/seen; sleep 0.1'"
    );
    let runs: Vec<Running> = (0..12)
        .map(|_| state.run(&["--slots=3", "job", "-c", &command]).start())
        .collect();
    for mut run in runs {
        run.wait().expect_code(0).expect_silent();
    }
    let seen = state.directory.read("seen");
    let mut slots: Vec<&str> = seen.lines().collect();
    assert_eq!(slots.len(), 12);
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots, ["0", "1", "2"]);
    assert!(state.places().is_empty());
}

/// "All users of the lock need the same number" (dlock-run(1)): else 125, with both named.
#[test]
fn another_number_of_slots_is_refused() {
    let state = State::new();
    let mut holder = hold_open(state.dlock(), &["--slots=2"], "job");
    for (options, says) in [
        (&["--slots=5"][..], "5 slots"),
        (&[], "exclusive"),
        (&["-s"], "shared"),
    ] {
        let outcome = state.run(options).args(["job", "echo", "never"]).finish();
        outcome.expect_code(125).expect_stdout("").expect_stderr(&[
            "dlock: cannot lock 'job': ",
            says,
            "2 slots",
            "hint: ",
        ]);
    }
    holder.let_go();
    // One slot is an exclusive lock, together with others that request it so.
    let mut holder = hold_open(state.dlock(), &[], "job");
    let mut waiter = state
        .run(&["--slots=1", "job", "printenv", "DLOCK_SLOT"])
        .start();
    state.queue_of(2);
    holder.let_go();
    waiter.wait().expect_code(0).expect_stdout("0\n");
}

/// "Keep the lock for at least this long ... The lock is free earlier if it was lost, if somebody asked for it, or if
/// dlock was killed" (dlock-run(1)); a command that did not start does not count.
#[test]
fn a_lock_cools_down() {
    let state = State::new();
    let began_at = boot_clock();
    state
        .run(&["--min-hold=6s", "job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    let busy = state.run(&["-n", "job", "echo", "never"]).finish();
    busy.expect_code(75)
        .expect_stdout("")
        .expect_stderr(&["is cooling down, ", "left: last held by"]);
    let shown = state.dlock().args(["status", "job"]).finish();
    assert!(shown.stdout.contains("cooling down"), "{shown:?}");
    state
        .run(&["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    assert!(since(began_at) >= Duration::from_secs(6));
    state.next_token();
    assert_eq!(state.files(), ["token", "token.lock"]);
    let mut killed = hold(state.dlock(), &["--min-hold=1h"], "job");
    killed.signal(Signal::KILL);
    killed.wait();
    state.run(&["job", "true"]).finish().expect_code(0);
    let mut killed = hold(state.dlock(), &["--min-hold=1h"], "job");
    killed.guard().signal(Signal::KILL);
    killed.signal(Signal::KILL);
    killed.wait();
    state.run(&["job", "true"]).finish().expect_code(0);
    state.next_token();
    assert_eq!(state.files(), ["token", "token.lock"]);
    // Its own interpreter: only the start shows that there is none.
    let broken = state.directory.file("broken");
    state.directory.write("broken", &format!("#!{broken}\n"));
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("our own file");
    let outcome = state.run(&["--min-hold=1h", "job", &broken]).finish();
    outcome.expect_code(126);
    state.next_token();
}

/// "Stop the command after this time (status 124)" (dlock-run(1)): also a command that ignores the signal.
#[test]
fn a_command_is_stopped_at_its_limit() {
    let (state, oracle) = (State::new(), Oracle::new());
    let stubborn = "trap '' TERM; setsid -f sleep 600; while :; do sleep 0.1; done";
    let mut limited = state
        .run(&["--max-hold=1s", "-k1s", "job", "--"])
        .args(oracle.command(&["sh", "-c", stubborn]))
        .start();
    oracle.entered(1);
    let mut next = state
        .run(&["job", "--"])
        .args(oracle.command(&["true"]))
        .start();
    limited
        .wait()
        .expect_code(124)
        .expect_stderr(&["--max-hold"]);
    next.wait().expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// "kill: stop them, then release the lock. wait: hold the lock until the last one has ended" (dlock-run(1))
#[test]
fn leftovers_are_killed_or_waited_for_before_the_release() {
    let (state, oracle) = (State::new(), Oracle::new());
    for policy in ["kill", "wait"] {
        let daemon = format!(
            "setsid -f sleep {}; true",
            if policy == "kill" { 600 } else { 1 }
        );
        let policy = format!("--leftovers={policy}");
        let mut first = state
            .run(&[&policy, "job", "--"])
            .args(oracle.command(&["sh", "-c", &daemon]))
            .start();
        oracle.entered(1);
        let mut next = state
            .run(&["job", "--"])
            .args(oracle.command(&["true"]))
            .start();
        first.wait().expect_code(0);
        next.wait().expect_code(0);
    }
    assert_eq!(oracle.tokens().len(), 4);
}

/// "A signal during the wait ... removes the entry ... and ends dlock by the same signal" (dlock-run(1)); a signal to a
/// holder is forwarded to the command.
#[test]
fn signals_end_the_waiting_and_reach_the_command() {
    let state = State::new();
    let script = "trap 'echo heard; exit 3' TERM; echo on; while :; do sleep 0.1; done";
    let mut holder = state.run(&["job", "sh", "-c", script]).start();
    holder.says("on");
    let mut waiter = state.run(&["job", "echo", "never"]).start();
    state.queue_of(2);
    let mut behind = state.run(&["job", "echo", "next"]).start();
    state.queue_of(3);
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT).expect_stdout("");
    state.queue_of(2);
    assert!(!behind.is_over(), "the holder is still there");
    holder.signal(Signal::TERM);
    holder.wait().expect_code(3).expect_stdout("on\nheard\n");
    behind.wait().expect_code(0).expect_stdout("next\n");
}

/// "No time ends the lock, so nothing is renewed, and a dlock that is stopped for an hour still holds its lock"
/// (dlock-local(7))
#[test]
fn a_stopped_dlock_keeps_its_lock() {
    let (state, oracle) = (State::new(), Oracle::new());
    let mut holder = guest(&state, &oracle, &[], "one");
    oracle.entered(1);
    let mut waiter = guest(&state, &oracle, &[], "two");
    state.queue_of(2);
    holder.signal(Signal::STOP);
    oracle.exited("one");
    oracle.exited("two");
    let_pass(Duration::from_secs(2));
    assert_eq!(oracle.guests(), ["one"]);
    holder.signal(Signal::CONT);
    holder.wait().expect_code(0).expect_silent();
    waiter.wait().expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// "--wait limits the whole time until the command starts" (dlock-run(1)), also a queue that cannot be joined because a
/// process is stopped while it holds the directory's lock.
#[test]
fn a_queue_that_cannot_be_joined_is_reported() {
    let state = State::new();
    state.next_token();
    let queue = format!("{}/job/token.lock", state.path);
    let stuck = Dlock::program(["flock", &queue, "sh", "-c", "echo on; sleep 600"]);
    let mut stuck = stuck.start();
    stuck.says("on");
    let late = state.run(&["-w1", "job", "echo", "never"]).finish();
    late.expect_code(125)
        .expect_stdout("")
        .expect_stderr(&["another process has changed its queue for more than 1s"]);
    // Nobody knows whether the lock is busy, and -n waits for no one.
    let at_once = state.run(&["-n", "job", "echo", "never"]).finish();
    at_once.expect_code(125).expect_stdout("").expect_stderr(&[
        "another process has changed its queue for more than 5s",
        "hint: ",
    ]);
    let mut waiter = state.run(&["job", "echo", "never"]).start();
    eventually(LIMIT, "it waits", || !state.files().is_empty());
    waiter.guard();
    waiter.signal(Signal::TERM);
    waiter.wait().expect_signal(Signal::TERM);
}

/// "`DLOCK_KEY`, `DLOCK_LEASE`, `ETCD_LOCK_KEY` and `ETCD_LOCK_REV` are not set, even if a lock in etcd is held around
/// the command" (dlock-local(7))
#[test]
fn the_command_gets_its_variables_and_no_false_ones() {
    let (state, etcd) = (State::new(), Etcd::shared());
    let dlock = dlock_program();
    let name = crate::support::unique("job");
    let local = format!("--local={}", state.path);
    let show = "env | grep -E '^(DLOCK|ETCD)_' | grep -v -e ENDPOINTS | sort";
    let outcome = Dlock::on(etcd)
        .run([&name, dlock, "run", &local, &name, "sh", "-c", show])
        .finish()
        .expect_code(0)
        .expect_silent();
    let outer = outcome
        .stdout
        .split(&format!("{name}:"))
        .nth(1)
        .expect("the outer lock");
    let outer = outer.split(' ').next().expect("its token");
    assert_eq!(
        outcome.stdout,
        format!(
            "DLOCK_FENCING_TOKEN=1\nDLOCK_HELD={name}:{outer} {name}:1/local\nDLOCK_NAME={name}\n"
        )
    );
    // A token is checked in the state directory that gave it out.
    let check = |asked: &[&str], given: &[&str]| {
        let line = [&["run"][..], given, &[&name, dlock, "check"], asked].concat();
        Dlock::on(etcd).args(line).finish()
    };
    check(&[&local], &[&local]).expect_code(0).expect_silent();
    check(&[], &[]).expect_code(0).expect_silent();
    check(&[], &[&local])
        .expect_code(125)
        .expect_stderr(&["on this machine alone", "hint: give --local"]);
    check(&[&local], &[])
        .expect_code(125)
        .expect_stderr(&["in etcd", "hint: leave --local out"]);
}

/// "If the token in `DLOCK_HELD` does not hold the lock any more, ... dlock ignores that lock and asks for it as usual"
/// (dlock-run(1)).
#[test]
fn a_lock_that_was_held_around_the_command_can_be_taken_again() {
    let state = State::new();
    let printed = state.run(&["job", "printenv", "DLOCK_HELD"]).finish();
    let held = printed.expect_code(0).stdout;
    let again = state.run(&["job", "echo", "again"]);
    let again = again.env("DLOCK_HELD", held.trim_end()).finish();
    again.expect_code(0).expect_stdout("again\n");
}

/// "refuses such a request with status 125, unless --reentrant is given" (dlock-run(1))
#[test]
fn a_lock_inside_itself() {
    let state = State::new();
    let dlock = dlock_program();
    state
        .run(&[
            "job", dlock, "run", "other", dlock, "run", "job", "echo", "never",
        ])
        .finish()
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(&["would wait for itself", "hint: "]);
    let inner = format!("{dlock} run --reentrant job -- printenv DLOCK_FENCING_TOKEN");
    let outcome = state
        .run(&["job", "-c", &inner])
        .finish()
        .expect_code(0)
        .expect_silent();
    assert_eq!(outcome.stdout, "2\n");
    let lost = format!("rm $DLOCK_LOCAL/job/3; {inner}");
    state
        .run(&["job", "-c", &lost])
        .finish()
        .expect_code(121)
        .expect_stdout("");
}

/// `dlock ls`, `dlock status` and `dlock check` show and check local locks.
#[test]
fn a_lock_is_seen_and_checked() {
    let state = State::new();
    let on = |words: &[&str]| state.dlock().args(words).finish();
    for words in [
        &["ls"][..],
        &["ls", "--json"],
        &["status", "--held", "job"],
        &["check", "--name=job", "--token=1"],
    ] {
        assert!(on(words).stdout.lines().count() <= 1);
    }
    assert!(
        !fs::exists(&state.path).expect("its directory"),
        "who looks makes nothing"
    );
    let mut holder = hold_open(state.dlock(), &["--note=a \u{1b}[2J note"], "job");
    let mut waiter = state.run(&["-s", "job", "true"]).start();
    state.queue_of(2);
    on(&["status", "--held", "job"])
        .expect_code(0)
        .expect_silent();
    on(&["status", "--held", "jo"])
        .expect_code(1)
        .expect_silent();
    let seen = on(&["ls", "--json", "jo"]).expect_code(0);
    let lock: serde_json::Value = serde_json::from_str(&seen.stdout).expect("one object");
    assert_eq!(
        (&lock["name"], &lock["waiting"]),
        (&"job".into(), &1.into())
    );
    let first = &lock["holders"][0];
    assert_eq!(first["token"], 1);
    assert_eq!(first["holder"]["pid"], holder.process().0);
    assert_eq!(
        (first.get("lease"), first.get("ttl_left_seconds")),
        (None, None)
    );
    let shown = on(&["status", "job"]).stdout;
    assert!(
        shown.contains("1 holding, 1 waiting") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    on(&["check", "--name=job", "--token=1"])
        .expect_code(0)
        .expect_silent();
    for token in ["2", "3"] {
        on(&["check", "--name=job", "--token", token]).expect_code(121);
    }
    let refused = on(&["break", "job", "--token=1", "--yes"]).expect_code(125);
    refused.expect_stderr(&["cannot break a lock with DLOCK_LOCAL", "kill PID"]);
    holder.let_go();
    waiter.wait().expect_code(0);
    on(&["check", "--name=job", "--token=1"]).expect_code(121);
    on(&["ls", "--json"]).expect_code(0).expect_stdout("");
}

/// "--watch continues, and prints the list again after every change" (dlock-ls(1))
#[test]
fn a_change_is_shown() {
    let state = State::new();
    let mut watch = state.dlock().args(["ls", "--watch"]).start();
    watch.says("NAME");
    let mut holder = hold_open(state.dlock(), &[], "job");
    watch.says("\njob ");
    holder.let_go();
    eventually(LIMIT, "it is shown as free", || {
        watch.stdout().matches("NAME").count() >= 3
    });
}

/// `dlock hold` for the rest of a script, and `dlock release`.
#[test]
fn a_lock_is_held_without_a_command() {
    let state = State::new();
    let dlock = dlock_program();
    let script = |rest: &str| {
        let text =
            format!("eval \"$({dlock} hold -n --background --pid $$ job)\"; echo in; {rest}");
        Dlock::program(["sh", "-c", &text]).env("DLOCK_LOCAL", &state.path)
    };
    script("exit 4")
        .finish()
        .expect_code(4)
        .expect_stdout("in\n");
    let is_free = || {
        let status = state.dlock().args(["status", "--held", "job"]).finish();
        status.code() == Some(1)
    };
    eventually(LIMIT, "the lock is free", is_free);
    script(&format!(
        "{dlock} release && {dlock} status --held job; echo $?"
    ))
    .finish()
    .expect_stdout("in\n1\n");
    let mut holder = script("exec sleep 600").start();
    holder.says("in");
    script("echo never")
        .finish()
        .expect_code(75)
        .expect_stdout("");
    fs::remove_dir_all(format!("{}/job", state.path)).expect("the entries");
    holder.wait().expect_signal(Signal::TERM);
    let mut piped = state
        .dlock()
        .args(["hold", "--json", "--until-eof", "job"])
        .stdin(Stdio::piped())
        .start();
    piped.says("\"fencing_token\":");
    assert!(!piped.stdout().contains("\"key\"") && !piped.stdout().contains("\"lease\""));
    drop(piped.take_stdin());
    piped.wait().expect_code(0).expect_silent();
    state.next_token();
}
