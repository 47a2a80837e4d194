//! `--once-per` with `--retry-failed`: which earlier runs keep another one from starting.
//! It must not know how marks are written, nor what keeps a lock taken.

use crate::support::{
    Direction, Dlock, Etcd, LIMIT, Link, Mode, Outcome, Running, Signal, eventually, hold,
    hold_open, unique,
};

const RETRY: [&str; 3] = ["--ttl=5s", "--once-per=1h", "--retry-failed"];

fn start(etcd: &Etcd, options: &[&str], name: &str, script: &str) -> Running {
    let options = [&RETRY[..], options].concat();
    Dlock::on(etcd)
        .run(options)
        .args([name, "-c", script])
        .start()
}

fn run(etcd: &Etcd, name: &str, script: &str) -> Outcome {
    start(etcd, &[], name, script).wait_within(LIMIT * 2)
}

/// "a run without --retry-failed counts every earlier run" (dlock-run(1)).
#[track_caller]
fn is_refused_to_others(etcd: &Etcd, name: &str) {
    let strict = Dlock::on(etcd).run(["--once-per=1h", name, "echo", "never"]);
    strict.finish().expect_code(75).expect_stdout("");
}

/// "Only a run counts whose command has ended with status 0" (dlock-run(1)): a failed run says so, and the refusal of a
/// later one names the run that has succeeded.
#[test]
fn only_a_success_counts() {
    let (etcd, name) = (Etcd::shared(), unique("retry"));
    for (script, result, code) in [
        ("exit 3", "exit 3", Some(3)),
        ("kill -9 $$", "signal 9", None),
    ] {
        let failed = run(etcd, &name, script);
        assert_eq!(failed.code(), code);
        let says = format!("this run of '{name}' does not count ({result})");
        failed.expect_stderr(&[&says, "may start once the lock is free"]);
        is_refused_to_others(etcd, &name);
    }
    let limited = start(etcd, &["--max-hold=1s", "-k1s"], &name, "sleep 600");
    let limited = { limited }.wait().expect_code(124);
    limited.expect_stderr(&["does not count (stopped"]);
    run(etcd, &name, "echo ran")
        .expect_code(0)
        .expect_stdout("ran\n")
        .expect_silent();
    let late = run(etcd, &name, "echo never").expect_code(75);
    late.expect_stdout("")
        .expect_stderr(&["ran already", ", sh, ", "; exit 0"]);
    is_refused_to_others(etcd, &name);
}

/// "Each run decides for itself" (dlock-run(1)): the failed run need not have the option.
#[test]
fn the_later_run_decides_what_counts() {
    let (etcd, name) = (Etcd::shared(), unique("retry-reader"));
    let strict = Dlock::on(etcd).run(["--once-per=1h", &name, "false"]);
    strict.finish().expect_code(1).expect_silent();
    is_refused_to_others(etcd, &name);
    run(etcd, &name, "echo ran").expect_stdout("ran\n");
    run(etcd, &name, "echo never").expect_code(75);
}

/// "If the last one failed, lost the lock or was killed, this one starts as soon as the lock is free" (dlock-run(1)):
/// nobody has written the result of a dlock that was killed.
#[test]
fn a_run_that_was_killed_or_lost_does_not_count() {
    let (etcd, name) = (Etcd::shared(), unique("retry-killed"));
    let mut killed = hold(Dlock::on(etcd), &RETRY, &name);
    killed.signal(Signal::KILL);
    killed.wait();
    is_refused_to_others(etcd, &name);
    run(etcd, &name, "exit 3").expect_code(3);
    let mut lost = hold(Dlock::on(etcd), &RETRY, &name);
    let [entry] = &etcd.queue_of(&name, 1)[..] else {
        panic!("no holder");
    };
    etcd.revoke(&entry.lease_hex());
    let says = format!("this run of '{name}' does not count (lost the lock)");
    lost.wait().expect_code(121).expect_stderr(&[&says]);
    run(etcd, &name, "echo ran").expect_stdout("ran\n");
    run(etcd, &name, "echo never").expect_code(75);
}

/// "A run that still holds the lock is awaited" (dlock-run(1)): it may fail. A run in another slot counts at once.
#[test]
fn a_run_that_has_not_ended_is_awaited() {
    let (etcd, name) = (Etcd::shared(), unique("retry-wait"));
    let times = ["--ttl=60s", "--once-per=1h", "--retry-failed"];
    for fails in [true, false] {
        let mut holder = hold_open(Dlock::on(etcd), &times, &name);
        let at_once = start(etcd, &["-n"], &name, "echo never").wait();
        at_once.expect_code(75).expect_stderr(&["is held by"]);
        let mut waiter = start(etcd, &[], &name, "exit 3");
        etcd.queue_of(&name, 2);
        if fails {
            holder.signal(Signal::TERM);
            holder.wait();
        } else {
            holder.let_go().expect_code(0);
        }
        waiter.wait().expect_code(if fails { 3 } else { 75 });
    }
    let slots = unique("retry-slots");
    let with_slots = [&RETRY[..], &["--slots=2"]].concat();
    let _holder = hold(Dlock::on(etcd), &with_slots, &slots);
    let other = start(etcd, &["--slots=2"], &slots, "echo never").wait();
    other
        .expect_code(75)
        .expect_stderr(&["ran already", "not ended yet"]);
}

/// "Start at most once in this time on all hosts" (dlock-run(1)): of ten that start together, as many run as fail, and
/// one that succeeds.
#[test]
fn one_of_many_that_retry_succeeds() {
    let (etcd, name) = (Etcd::shared(), unique("retry-many"));
    let runs: Vec<Running> = (0..10)
        .map(|number| {
            // Three of them can only fail.
            let script = if number % 3 == 2 {
                "exit 3"
            } else {
                "echo ran"
            };
            start(etcd, &[], &name, script)
        })
        .collect();
    let ends: Vec<_> = runs.into_iter().map(|mut run| run.wait()).collect();
    let codes = |code| ends.iter().filter(|end| end.code() == Some(code)).count();
    assert_eq!(codes(0), 1, "{ends:?}");
    assert_eq!(codes(0) + codes(3) + codes(75), 10, "{ends:?}");
}

/// "If etcd does not confirm the result of a success, dlock warns" (dlock-run(1)): once, and that run does not count.
#[test]
fn a_success_that_etcd_does_not_confirm_is_reported() {
    let (etcd, name) = (Etcd::shared(), unique("retry-silent"));
    let link = Link::to(etcd.port());
    let silent = [
        (Direction::ToServer, Mode::Drop),
        (Direction::ToClient, Mode::Drop),
    ];
    let words = [format!("dlock/once/{name}"), "\"exit 0\"".to_owned()];
    link.snare(&[&words[0], &words[1]], &silent);
    let mut unheard = Dlock::at(&link.endpoint())
        .run(RETRY)
        .args([&name, "true"])
        .start();
    let end = unheard.wait().expect_code(0);
    let told = end.stderr.matches("has succeeded, so the next one").count();
    assert_eq!(told, 1, "{end:?}");
    run(etcd, &name, "echo ran").expect_stdout("ran\n");
    // The answer alone is lost: the run has succeeded, and counts.
    let (name, link) = (unique("retry-unheard"), Link::to(etcd.port()));
    let words = [format!("dlock/once/{name}"), "\"exit 0\"".to_owned()];
    let answer = [(Direction::ToClient, Mode::Drop)];
    link.snare(&[&words[0], &words[1]], &answer);
    let mut unheard = Dlock::at(&link.endpoint())
        .run(RETRY)
        .args([&name, "true"])
        .start();
    eventually(LIMIT, "the answer is lost", || link.sprung());
    link.heal();
    unheard.wait().expect_code(0);
    run(etcd, &name, "echo never").expect_code(75);
}
