//! Faults of etcd that a real one shows only by chance: a scripted fake takes its place.
//! It must not know dlock's inner workings; it checks only a fake's keys, dlock's exit status and its processes.

mod condition;
mod doctor;
mod entry;
mod member;
mod proof;
mod script;
mod server;
mod store;
mod transport;
mod watches;
mod watching;
mod wire;

use std::fmt::Debug;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::support::{Dlock, LIMIT, Outcome, Running, boot_clock, eventually, let_pass};
use script::Point;
use server::Fake;

/// With `--ttl=5` a command without a proof younger than 3 s is stopped (0.9 TTL less 0.5 s, less the grace of a fifth):
/// a command that lives longer than this has another proof.
const BEYOND_STOP: Duration = Duration::from_millis(3500);

/// A command that prints a line at its start, and exits with 7 when it gets one.
const COMMAND: [&str; 5] = ["job", "--", "sh", "-c", "echo on; read -r _; exit 7"];

/// A dlock for that command, before it is started.
fn dlock(endpoints: &str) -> Dlock {
    Dlock::at(endpoints)
        .run(["--ttl=5"])
        .args(COMMAND)
        .stdin(Stdio::piped())
}

/// A dlock that holds the lock; its command runs.
#[track_caller]
fn holder(endpoints: &str) -> Running {
    let mut holder = dlock(endpoints).start();
    holder.says("on\n");
    holder
}

/// A dlock that has held the lock long enough for its watch to be open.
#[track_caller]
fn settled_holder(endpoints: &str, fake: &Fake) -> Running {
    let holder = holder(endpoints);
    eventually(LIMIT, "the holder watches its key", || {
        fake.script.seen(Point::Watch) > 0
    });
    holder
}

/// A dlock that waits behind another client, whose key is returned, too.
#[track_caller]
fn waiter(endpoints: &str, fake: &Fake) -> (Running, String) {
    let predecessor = fake.occupy("job");
    let waiter = dlock(endpoints).start();
    fake.keys_of(2);
    (waiter, predecessor)
}

/// The command survives a fault that began at `since`, and ends normally and silently.
#[track_caller]
fn survives(running: Running, fake: &Fake, since: Duration) {
    lives_on(running, fake, since).expect_silent();
}

/// The same with any messages of dlock.
#[track_caller]
fn lives_on(mut running: Running, fake: &Fake, since: Duration) -> Outcome {
    let_pass((since + BEYOND_STOP).saturating_sub(boot_clock()));
    let stderr = running.stderr();
    assert!(!running.tree().is_empty(), "the command died: {stderr}");
    ends_well(&mut running, fake)
}

/// The command ends, dlock ends as it did, and the lock is free at that time.
#[track_caller]
fn ends_well(running: &mut Running, fake: &Fake) -> Outcome {
    running.says("on\n");
    running.type_in("\n");
    let outcome = running.wait().expect_code(7);
    assert_eq!(fake.keys(), [""; 0], "{outcome:?}");
    assert_eq!(fake.expired(), [0_i64; 0], "a lease of ours ran out");
    no_process(running);
    outcome
}

/// The command dies while the lease still lives, and dlock reports that the lock is lost.
#[track_caller]
fn is_lost(mut running: Running, fake: &Fake) -> Outcome {
    running.tree_dies_before("when somebody else could have the lock", || {
        !fake.expired().is_empty()
    });
    let outcome = running.wait().expect_code(121);
    let outcome = outcome.expect_stderr(&["dlock: lost lock 'job'"]);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    no_leak(&running, fake);
    outcome
}

/// dlock gives up without having run anything, with `words` in its message.
#[track_caller]
fn fails(mut running: Running, fake: &Fake, words: &[&str]) {
    let outcome = running.wait().expect_code(125).expect_stdout("");
    let all = [&["dlock: cannot lock 'job': "], words].concat();
    let outcome = outcome.expect_stderr(&all);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    no_leak(&running, fake);
}

/// No process is left, and no key that would outlive its lease: no process renews that.
#[track_caller]
fn no_leak(running: &Running, fake: &Fake) {
    no_process(running);
    assert_eq!(fake.lasting_keys(), [""; 0]);
}

#[track_caller]
fn no_process(running: &Running) {
    eventually(LIMIT, "no process is left", || {
        running.everything().is_empty()
    });
}

/// Runs similar cases at the same time, as they mostly wait; a failing case is named by its thread.
#[track_caller]
fn at_once<T: Debug + Send>(cases: impl IntoIterator<Item = T>, case: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for each in cases {
            let case = &case;
            let thread = thread::Builder::new().name(format!("{each:?}"));
            let started = thread.spawn_scoped(scope, move || case(each));
            started.expect("a thread starts");
        }
    });
}
