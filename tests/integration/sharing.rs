//! The ways to share a lock, to keep it for a while, or to supersede others.
//! It must not know what happens when a lock is lost.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::support::{
    Dlock, Etcd, LIMIT, Oracle, Running, Scratch, Signal, alive, boot_clock, dlock_program,
    etcdctl_program, eventually, hold, hold_open, since, unique,
};

fn guest(etcd: &Etcd, oracle: &Oracle, options: &[&str], name: &str, who: &str) -> Running {
    let stay = oracle.guest(who);
    Dlock::on(etcd)
        .run(options)
        .args([name, "--"])
        // The oracle allows one at a time; readers only note their presence.
        .args(if options.contains(&"-s") {
            &stay[3..]
        } else {
            &stay[..]
        })
        .start()
}

/// "Such readers hold the lock together" (dlock-run(1)): in order, so that a waiting writer is not starved by later
/// readers.
#[test]
fn readers_share_and_a_writer_comes_in_its_turn() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("shared"));
    let mut first = guest(etcd, &oracle, &["-s"], &name, "r1");
    let mut second = guest(etcd, &oracle, &["-s"], &name, "r2");
    eventually(LIMIT, "both readers are in", || oracle.guests().len() == 2);
    let mut writer = guest(etcd, &oracle, &[], &name, "w");
    etcd.queue_of(&name, 3);
    let mut late = guest(etcd, &oracle, &["-s"], &name, "r3");
    etcd.queue_of(&name, 4);
    oracle.exited("r1");
    first.wait().expect_code(0);
    assert_eq!(oracle.guests().len(), 2);
    oracle.exited("r2");
    second.wait().expect_code(0);
    eventually(LIMIT, "the writer is in", || oracle.guests().len() == 3);
    assert_eq!(oracle.guests()[2], "w");
    oracle.exited("w");
    oracle.exited("r3");
    writer.wait().expect_code(0);
    late.wait().expect_code(0);
    assert_eq!(oracle.guests()[3], "r3");
}

/// "Clients that are not dlock want the lock for themselves": etcdctl waits for readers, and readers for it.
#[test]
fn etcdctl_counts_as_a_writer() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("etcdctl"));
    let mut reader = guest(etcd, &oracle, &["-s"], &name, "r1");
    eventually(LIMIT, "the reader is in", || oracle.guests().len() == 1);
    let mut writer = Dlock::etcdctl(etcd)
        .args(["lock", &format!("dlock/lock/{name}"), "--"])
        .args(oracle.guest("w"))
        .start();
    etcd.queue_of(&name, 2);
    let mut late = guest(etcd, &oracle, &["-s"], &name, "r2");
    etcd.queue_of(&name, 3);
    oracle.exited("r1");
    reader.wait().expect_code(0);
    eventually(LIMIT, "etcdctl is in", || oracle.guests().len() == 2);
    assert_eq!(oracle.guests()[1], "w");
    oracle.exited("w");
    oracle.exited("r2");
    writer.wait().expect_code(0);
    late.wait().expect_code(0);
}

/// "Let up to N runs hold the lock at once" (dlock-run(1)): never more, and each with a slot of its own.
#[test]
fn slots_are_never_taken_twice() {
    let etcd = Etcd::shared();
    let name = unique("slots");
    let probe = Dlock::on(etcd);
    let dir = probe
        .home()
        .path()
        .to_str()
        .expect("a plain path")
        .to_owned();
    // The kernel's lock detects two holders with the same slot.
    let command = format!(
        "exec flock -n -E 99 {dir}/slot$DLOCK_SLOT sh -c 'echo $DLOCK_SLOT >>{dir}/seen; sleep 0.1'"
    );
    let runs: Vec<Running> = (0..12)
        .map(|_| {
            Dlock::on(etcd)
                .run(["--slots=3", &name, "-c", &command])
                .start()
        })
        .collect();
    for mut run in runs {
        run.wait().expect_code(0).expect_silent();
    }
    let seen = std::fs::read_to_string(format!("{dir}/seen")).expect("a run");
    let mut slots: Vec<&str> = seen.lines().collect();
    assert_eq!(slots.len(), 12);
    slots.sort_unstable();
    slots.dedup();
    assert!(
        slots.iter().all(|slot| ["0", "1", "2"].contains(slot)),
        "{slots:?}"
    );
    assert!(etcd.queue(&name).is_empty());
    assert!(etcd.entries(&format!("dlock/slot/{name}/")).is_empty());
}

/// "All users of the lock need the same number" (dlock-run(1)): else 125, with both numbers named.
#[test]
fn another_number_of_slots_is_refused() {
    let etcd = Etcd::shared();
    let name = unique("numbers");
    let _holder = hold(Dlock::on(etcd), &["--slots=2"], &name);
    for (options, says) in [
        (&["--slots=5"][..], "5 slots"),
        (&[], "exclusive"),
        (&["-s"], "shared"),
    ] {
        let outcome = Dlock::on(etcd)
            .run(options)
            .args([&name, "echo", "never"])
            .finish();
        let outcome = outcome.expect_code(125).expect_stdout("");
        assert!(
            outcome.stderr.contains(says) && outcome.stderr.contains("2 slots"),
            "{outcome:?}"
        );
    }
    assert_eq!(etcd.queue(&name).len(), 1);
}

/// "Keep the lock for at least this long" (dlock-run(1)): one tick of a cron job on several hosts with skewed clocks
/// runs once.
#[test]
fn a_lock_cools_down_by_the_count_of_etcd() {
    let etcd = Etcd::shared();
    let name = unique("cool");
    let began_at = boot_clock();
    Dlock::on(etcd)
        .run(["--min-hold=12s", &name, "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    for _ in 0..2 {
        Dlock::on(etcd)
            .run(["--min-hold=12s", "-n", "-E0", &name, "echo", "never"])
            .finish()
            .expect_code(0)
            .expect_stdout("")
            .expect_silent();
    }
    let busy = Dlock::on(etcd).run(["-n", &name, "true"]).finish();
    let busy = busy.expect_code(75);
    assert!(busy.stderr.contains("is cooling down"), "{busy:?}");
    // "A lock that cools down is not held": no process can be asked.
    let token = etcd.queue(&name)[0].create_revision.to_string();
    let on = |words: &[&str]| {
        let line = [words, &["--token", &token]].concat();
        Dlock::on(etcd).args(line).finish()
    };
    on(&["check", "--name", &name]).expect_code(121);
    on(&["break", &name, "--yes"])
        .expect_code(125)
        .expect_stderr(&["its command has ended", "hint: --now"]);
    let next = Dlock::on(etcd).args(["-v"]).run([&name, "true"]).finish();
    let next = next.expect_code(0);
    assert!(since(began_at) >= Duration::from_secs(12));
    assert!(
        !next.stderr.contains("has vanished without a release"),
        "{next:?}"
    );
    assert!(etcd.queue(&name).is_empty());
}

/// "whether a token is still that of a holder of its lock" (dlock-check(1)): not of one whose key another client has
/// overwritten, because it exits with 121.
#[test]
fn an_overwritten_key_has_no_holder() {
    let etcd = Etcd::shared();
    let name = unique("overwritten");
    let mut holder = hold(Dlock::on(etcd), &[], &name);
    let entry = &etcd.queue(&name)[0];
    let token = entry.create_revision.to_string();
    let check = || {
        let line = ["check", "--name", &name, "--token", &token];
        Dlock::on(etcd).args(line).finish()
    };
    check().expect_code(0);
    etcd.ctl(&["put", &entry.key, &entry.value]);
    check().expect_code(121);
    holder.wait().expect_code(121);
    check().expect_code(121);
}

/// "The lock is free earlier ... if dlock was killed" (dlock-run(1)): it is free when its lease has ended.
#[test]
fn the_lock_of_a_killed_dlock_does_not_cool_down() {
    let etcd = Etcd::shared();
    let name = unique("cool");
    let mut killed = hold(Dlock::on(etcd), &["--ttl=5s", "--min-hold=1h"], &name);
    killed.signal(Signal::KILL);
    killed.wait();
    let next = Dlock::on(etcd).run(["--wait=60s", &name, "true"]);
    next.start().wait_within(LIMIT * 2).expect_code(0);
    assert!(etcd.queue(&name).is_empty());
}

/// "Start at most once in this time on all hosts" (dlock-run(1)): of ten that start together one runs, the others
/// report which one and its result.
#[test]
fn once_per_starts_once() {
    let etcd = Etcd::shared();
    let name = unique("once");
    let runs: Vec<Running> = (0..10)
        .map(|_| {
            Dlock::on(etcd)
                .run(["--once-per=1h", "-E7", &name, "-c", "echo ran; exit 3"])
                .start()
        })
        .collect();
    let ends: Vec<_> = runs.into_iter().map(|mut run| run.wait()).collect();
    let codes = |code| ends.iter().filter(|end| end.code() == Some(code)).count();
    assert_eq!((codes(3), codes(7)), (1, 9), "{ends:?}");
    let late = Dlock::on(etcd)
        .run(["--once-per=1h", &name, "echo", "never"])
        .finish();
    let late = late.expect_code(75).expect_stdout("");
    assert!(
        late.stderr.contains("ran already") && late.stderr.contains("exit 3"),
        "{late:?}"
    );
}

/// "Stop the command after this time (status 124)" (dlock-run(1)): also a command that ignores the signal.
#[test]
fn a_command_is_stopped_at_its_limit() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("limit"));
    let stubborn = "trap '' TERM; setsid -f sleep 600; while :; do sleep 0.1; done";
    let mut limited = Dlock::on(etcd)
        .run(["--max-hold=1s", "-k1s", &name, "--"])
        .args(oracle.command(&["sh", "-c", stubborn]))
        .start();
    oracle.entered(1);
    let mut next = Dlock::on(etcd)
        .run([&name, "--"])
        .args(oracle.command(&["true"]))
        .start();
    let end = limited.wait();
    let end = end.expect_code(124);
    assert!(end.stderr.contains("--max-hold"), "{end:?}");
    next.wait().expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// "Ask earlier waiters to leave: the newest wins"; the holder only with `holder`.
#[test]
fn the_newest_request_supersedes() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("newest"));
    let mut holder = Dlock::on(etcd)
        .run([&name, "--"])
        .args(oracle.command(&["sleep", "600"]))
        .start();
    oracle.entered(1);
    let mut older = Dlock::on(etcd).run([&name, "echo", "never"]).start();
    etcd.queue_of(&name, 2);
    let mut newer = Dlock::on(etcd)
        .run(["--supersede", &name, "echo", "never"])
        .start();
    let gone = older.wait();
    let gone = gone.expect_code(75).expect_stdout("");
    assert!(
        gone.stderr.contains("superseded by a newer request"),
        "{gone:?}"
    );
    assert!(!holder.is_over());
    let mut newest = Dlock::on(etcd)
        .run(["--supersede=holder", &name, "--"])
        .args(oracle.command(&["true"]))
        .start();
    newer.wait().expect_code(75).expect_stdout("");
    let stopped = holder.wait();
    let stopped = stopped.expect_code(121);
    assert!(
        stopped.stderr.contains("asked to release lock"),
        "{stopped:?}"
    );
    newest.wait().expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// "Run at once if a parent dlock holds the lock" (dlock-run(1)).
#[test]
fn an_outer_lock_counts_if_requested() {
    let etcd = Etcd::shared();
    let name = unique("nested");
    let dlock = dlock_program();
    let inner = format!("{dlock} run --reentrant {name} -- printenv DLOCK_FENCING_TOKEN");
    let outer = format!("printenv DLOCK_FENCING_TOKEN; {inner}");
    let outcome = Dlock::on(etcd).run([&name, "-c", &outer]).finish();
    let outcome = outcome.expect_code(0).expect_silent();
    let tokens: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((tokens.len(), tokens[0]), (2, tokens[1]));
    // A lock in between has a higher token, which this one's resource must not get.
    let (other, third) = (unique("between"), unique("between"));
    let inside =
        "printenv DLOCK_NAME DLOCK_FENCING_TOKEN DLOCK_KEY ETCD_LOCK_REV; printenv DLOCK_SLOT";
    let nested = format!(
        "{inside}; {dlock} run --slots=2 {other} {dlock} run {third} {dlock} run --reentrant {name} sh -c '{inside}'"
    );
    let outcome = Dlock::on(etcd).run([&name, "-c", &nested]).finish();
    let outcome = outcome.expect_code(1);
    let (outer, within) = outcome.stdout.split_at(outcome.stdout.len() / 2);
    assert_eq!(outer, within);
    assert!(outer.starts_with(&format!("{name}\n")), "{outer}");
    let line = format!("{dlock} run {third} printenv DLOCK_SLOT; echo $DLOCK_SLOT");
    let slot = Dlock::on(etcd).run(["--slots=2", &other, "-c", &line]);
    slot.finish().expect_code(0).expect_stdout("0\n");
    let shared = Dlock::on(etcd).run(["-s", &name, "-c", &inner]).finish();
    shared.expect_code(125).expect_stdout("");
    let lost = format!(
        "{} --endpoints=$DLOCK_ENDPOINTS del $DLOCK_KEY >/dev/null; {inner}",
        etcdctl_program()
    );
    Dlock::on(etcd)
        .env("ETCDCTL_API", "3")
        .run([&name, "-c", &lost])
        .finish()
        .expect_code(121)
        .expect_stdout("");
}

/// "--wait limits the whole time until the command starts" (dlock-run(1)): etcd may become available within that time;
/// if it does not, dlock reports that instead of "busy".
#[test]
fn a_wait_includes_the_wait_for_etcd() {
    let outcome = Dlock::at("127.0.0.1:1")
        .run(["-w1s", "x", "echo", "never"])
        .finish();
    let outcome = outcome.expect_code(125).expect_stdout("");
    assert!(outcome.stderr.contains("127.0.0.1:1"), "{outcome:?}");
    let etcd = Etcd::start();
    etcd.kill();
    let mut patient = Dlock::on(&etcd)
        .run(["-w60s", "x", "echo", "got it"])
        .start();
    eventually(LIMIT, "it waits", || !patient.everything().is_empty());
    etcd.revive();
    patient.wait().expect_code(0).expect_stdout("got it\n");
}

/// "until the process PID has ended ... If the lock is lost, that process and all that descends from it are stopped and
/// killed" (dlock-hold(1)); `dlock release` ends it early.
#[test]
fn a_script_holds_a_lock_for_the_rest_of_its_life() {
    let etcd = Etcd::shared();
    let name = unique("script");
    let dlock = dlock_program();
    let script = |rest: &str| {
        let text = format!(
            "eval \"$({dlock} hold --ttl=5 -n --background --pid $$ {name})\"; echo $DLOCK_NAME; {rest}"
        );
        Dlock::program(["sh", "-c", &text]).env("DLOCK_ENDPOINTS", etcd.endpoint())
    };
    let free = || eventually(LIMIT, "the lock is free", || etcd.queue(&name).is_empty());
    script("exit 4")
        .finish()
        .expect_code(4)
        .expect_stdout(&format!("{name}\n"));
    free();
    let released = format!("{dlock} release && {dlock} status --held {name}; echo $?");
    script(&released)
        .finish()
        .expect_stdout(&format!("{name}\n1\n"));
    let mut holder = script("exec sleep 600").start();
    holder.says(&name);
    let busy = script("echo never").finish();
    busy.expect_code(75).expect_stdout("");
    let key = etcd.queue(&name).remove(0).key;
    etcd.ctl(&["del", &key]);
    holder.wait().expect_signal(Signal::TERM);
    let mut killed = script("exec sleep 600");
    killed = killed.env("LATE", "1");
    eventually(LIMIT, "the place is free", || etcd.queue(&name).is_empty());
    let mut holder = killed.start();
    holder.says(&name);
    let background = eventually(LIMIT, "the dlock in the background", || {
        holder
            .everything()
            .into_iter()
            .find(|process| process.name() == "dlock")
    });
    let shell = holder.process();
    background.signal(Signal::KILL);
    holder.wait().expect_signal(Signal::TERM);
    assert!(!alive(shell));
}

/// "When there is no lock to be had, it prints `exit` and its status", for any status, and for any end of the wait.
#[test]
fn a_script_without_the_lock_ends() {
    let etcd = Etcd::shared();
    let name = unique("without");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    for words in [&["-n", "-E0"][..], &["-n", "-E0", "--note=run"]] {
        let line = [&["hold", "--background"], words, &[&name]].concat();
        let busy = Dlock::on(etcd).args(line).finish();
        busy.expect_code(0).expect_stdout("exit 0\n");
    }
    let mut wrong = Dlock::on(etcd).args(["hold", "-n", "run", "--background", "--bogus"]);
    wrong = wrong.env("LATE", "1");
    wrong.finish().expect_code(125).expect_stdout("exit 125\n");
    let waiting = || {
        let waiter = Dlock::on(etcd)
            .args(["hold", "--background", &name])
            .start();
        etcd.queue_of(&name, 2);
        waiter
    };
    let mut ended = waiting();
    ended.signal(Signal::TERM);
    let ended = ended.wait().expect_signal(Signal::TERM);
    ended.expect_stdout("exit 143\n");
    etcd.queue_of(&name, 1);
    let mut killed = waiting();
    killed.signal(Signal::KILL);
    killed.wait().expect_signal(Signal::KILL);
    etcd.queue_of(&name, 1);
}

/// "prints one line when acquired, holds until TERM/INT or stdin closes".
#[test]
fn a_lock_without_a_command_ends_with_its_input_or_a_signal() {
    let etcd = Etcd::shared();
    let name = unique("hold");
    for signal in [Signal::TERM, Signal::INT] {
        let mut holder = Dlock::on(etcd).args(["hold", &name]).start();
        holder.says("export DLOCK_FENCING_TOKEN='");
        holder.signal(signal);
        holder.wait().expect_code(0).expect_silent();
        assert!(etcd.queue(&name).is_empty());
    }
    let mut holder = Dlock::on(etcd)
        .args(["hold", "--json", "--until-eof", &name])
        .stdin(std::process::Stdio::piped())
        .start();
    holder.says("\"fencing_token\":");
    assert_eq!(etcd.queue(&name).len(), 1);
    // The lock for which this one still waits is not wanted any more.
    let mut waiter = Dlock::on(etcd)
        .args(["hold", "--until-eof", &name])
        .stdin(std::process::Stdio::piped())
        .start();
    etcd.queue_of(&name, 2);
    drop(waiter.take_stdin());
    waiter
        .wait()
        .expect_code(0)
        .expect_stdout("")
        .expect_silent();
    assert_eq!(etcd.queue(&name).len(), 1);
    drop(holder.take_stdin());
    holder.wait().expect_code(0).expect_silent();
    assert!(etcd.queue(&name).is_empty());
}

/// "These options can be combined" (dlock-run(1)): readers and slots cool down, too, and each of several limits counts.
#[test]
fn the_ways_to_share_a_lock_go_together() {
    let etcd = Etcd::shared();
    let run = |options: &[&str], name: &str, script: &str| {
        let dlock = Dlock::on(etcd).run(options);
        dlock.args([name, "-c", script]).finish()
    };
    let busy = |options: &[&str], name: &str, says: &str| {
        let end = run(options, name, "echo never").expect_code(75);
        let end = end.expect_stdout("");
        assert!(end.stderr.contains(says), "{end:?}");
    };

    // One slot of two cools down: the other one is free, and after that both are busy.
    let name = unique("cool-slot");
    run(&["--slots=2", "--min-hold=600s"], &name, "exit 0").expect_code(0);
    let other = run(&["--slots=2", "-n", "--min-hold=600s"], &name, "echo in");
    other.expect_code(0).expect_stdout("in\n");
    busy(&["--slots=2", "-n"], &name, "is cooling down");

    // A reader cools down: other readers get the lock, but no writer.
    let name = unique("cool-reader");
    run(&["-s", "--min-hold=600s"], &name, "exit 0").expect_code(0);
    run(&["-s", "-n"], &name, "echo in").expect_stdout("in\n");
    busy(&["-n"], &name, "is cooling down");

    // All three times: stopped by one, kept by another, and not started again by the third.
    let name = unique("times");
    let all = ["--max-hold=1s", "-k1s", "--min-hold=600s", "--once-per=1h"];
    run(&all, &name, "sleep 600").expect_code(124);
    busy(&["-n", "--once-per=1h"], &name, "--max-hold");
    busy(&["-n"], &name, "is cooling down");

    // Newer requests for slots supersede waiters, not holders.
    let name = unique("newest-slot");
    let mut holder = hold_open(Dlock::on(etcd), &["--slots=1"], &name);
    let mut older = Dlock::on(etcd)
        .run(["--slots=1", &name, "echo", "never"])
        .start();
    etcd.queue_of(&name, 2);
    let mut newer = Dlock::on(etcd)
        .run(["--slots=1", "--supersede", &name, "echo", "in"])
        .start();
    let gone = older.wait().expect_code(75).expect_stdout("");
    assert!(gone.stderr.contains("superseded by"), "{gone:?}");
    holder.let_go().expect_code(0);
    newer.wait().expect_code(0).expect_stdout("in\n");
}

/// "A command that could not be started does not count" (dlock-run(1)): nor does it keep the lock for --min-hold.
#[test]
fn a_command_that_cannot_start_leaves_no_times() {
    let etcd = Etcd::shared();
    let (name, scratch) = (unique("no-start"), Scratch::new());
    let broken = scratch.file("broken");
    // Its own interpreter: only the start shows that there is none.
    scratch.write("broken", &format!("#!{broken}\n"));
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).expect("our file");
    let end = Dlock::on(etcd)
        .run(["--once-per=1h", "--min-hold=600s", &name, "--", &broken])
        .finish();
    end.expect_code(126);
    let next = Dlock::on(etcd)
        .run(["--once-per=1h", "-n", &name, "echo", "in"])
        .finish();
    next.expect_code(0).expect_stdout("in\n");
}

/// "Those who look and step in": the queue, a check of a token, and a request to a holder.
#[test]
fn a_lock_is_seen_checked_and_broken() {
    let etcd = Etcd::shared();
    let name = unique("seen");
    let on = |words: &[&str]| Dlock::on(etcd).args(words).finish();
    on(&["status", "--held", &name])
        .expect_code(1)
        .expect_silent();
    on(&["status", &name])
        .expect_code(0)
        .expect_stdout(&format!("{name}: free\n"));
    let mut holder = Dlock::on(etcd)
        .run(["--note=a \u{1b}[2J note", &name, "-c", "echo in; sleep 600"])
        .start();
    holder.says("in");
    let mut waiter = hold_waiting(etcd, &name);
    on(&["status", "--held", &name])
        .expect_code(0)
        .expect_silent();
    let seen = on(&["ls", "--json", &name]);
    let lock: serde_json::Value = serde_json::from_str(&seen.stdout).expect("one object");
    assert_eq!(
        (&lock["name"], &lock["waiting"]),
        (&name.as_str().into(), &1.into())
    );
    let shown = on(&["status", &name]).stdout;
    assert!(
        shown.contains("1 holding, 1 waiting") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    let token = lock["holders"][0]["token"].to_string();
    on(&["check", "--name", &name, "--token", &token])
        .expect_code(0)
        .expect_silent();
    on(&["check", "--name", &name, "--token", "1"]).expect_code(121);
    let other = on(&["break", &name, "--token", "1", "--yes"]).expect_code(121);
    other.expect_stderr(&[
        &format!("token 1 is not in the queue of '{name}': its holder is "),
        &format!(", token {token}\n"),
    ]);
    let without = on(&["break", &name]).expect_code(125);
    without.expect_stderr(&[
        &format!("cannot break '{name}' without --token: its holder is "),
        &format!("\nhint: dlock break {name} --token {token}\n"),
    ]);
    let unasked = on(&["break", &name, "--token", &token]);
    let unasked = unasked.expect_code(125);
    assert!(unasked.stderr.contains("--yes"), "{unasked:?}");
    let order = ["break", &name, "--token", &token, "--yes"];
    let broken = on(&[&order[..], &["--reason=a freeze"]].concat()).expect_code(0);
    assert!(
        broken.stderr.contains("asking the holder")
            && broken.stderr.contains(&format!("token {token}")),
        "{broken:?}"
    );
    let gone = holder.wait();
    let gone = gone.expect_code(121);
    assert!(gone.stderr.contains("a freeze"), "{gone:?}");
    waiter.wait().expect_code(0);
}

fn hold_waiting(etcd: &Etcd, name: &str) -> Running {
    let waiter = Dlock::on(etcd).run([name, "true"]).start();
    etcd.queue_of(name, 2);
    waiter
}

/// "Take the lock away at once": the warning names what may still run.
#[test]
fn a_lock_is_broken_at_once() {
    let etcd = Etcd::shared();
    let name = unique("taken");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let token = etcd.queue(&name)[0].create_revision.to_string();
    let broken = Dlock::on(etcd)
        .args(["break", &name, "--token", &token, "--yes", "--now"])
        .finish();
    let broken = broken.expect_code(0);
    assert!(broken.stderr.contains("may run on"), "{broken:?}");
    holder.wait().expect_code(121);
}
