//! Waiting for the lock: the order, giving up, and the traces of a waiter.
//! It must not know what happens to a holder that loses the lock.

use std::time::Duration;

use crate::support::{
    Direction, Dlock, Etcd, LIMIT, Link, Mode, Oracle, Running, Signal, boot_clock, eventually,
    hold, hold_open, let_pass, since, unique,
};

fn run_guest(etcd: &Etcd, oracle: &Oracle, name: &str, who: &str) -> Running {
    Dlock::on(etcd)
        .run([name, "--"])
        .args(oracle.guest(who))
        .start()
}

/// "exclusive, FIFO": five waiters, the middle one gives up.
#[test]
fn waiters_are_served_in_order_also_when_one_leaves() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("fifo"));
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut waiters: Vec<Running> = (1..=5)
        .map(|place| {
            let waiter = run_guest(etcd, &oracle, &name, &place.to_string());
            etcd.queue_of(&name, place + 1);
            waiter
        })
        .collect();
    let mut third = waiters.remove(2);
    third.signal(Signal::INT);
    third.wait().expect_signal(Signal::INT).expect_stdout("");
    assert_eq!(etcd.queue(&name).len(), 5);
    for place in 1..=5 {
        oracle.exited(&place.to_string());
    }
    holder.let_go();
    for mut waiter in waiters {
        waiter.wait().expect_code(0).expect_silent();
    }
    assert_eq!(oracle.guests(), ["1", "2", "4", "5"]);
    assert_eq!(oracle.tokens().len(), 4);
    assert!(etcd.queue(&name).is_empty());
}

/// "Lowest `create_revision` holds": a waiter that died blocks later ones for as long as its lease, not longer.
#[test]
fn a_killed_waiter_in_the_middle_blocks_the_queue_for_its_lease_at_most() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("killed"));
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let killed = Dlock::on(etcd)
        .run(["--ttl=5", &name, "echo", "never"])
        .start();
    etcd.queue_of(&name, 2);
    let mut last = run_guest(etcd, &oracle, &name, "last");
    etcd.queue_of(&name, 3);
    oracle.exited("last");
    killed.signal(Signal::KILL);
    // The next waiter must not overtake the holder only because its predecessor is gone.
    eventually(LIMIT, "the lease of the killed waiter ends", || {
        etcd.queue(&name).len() == 2
    });
    assert!(oracle.guests().is_empty());
    holder.let_go();
    last.wait().expect_code(0);
    assert_eq!(killed.stdout(), "");
}

/// "A waiter that has no answer from etcd for one TTL sends no renewals until there is an answer, so it does not block the
/// entries behind it" (dlock-run(1)): here its requests arrive, and no answer comes back.
#[test]
fn a_waiter_without_an_answer_does_not_block_those_behind_it() {
    let (etcd, name) = (Etcd::start(), unique("deaf"));
    let link = Link::to(etcd.port());
    let mut holder = hold_open(Dlock::on(&etcd), &[], &name);
    let dlock = Dlock::at(&link.endpoint()).run(["--ttl=5", &name, "echo", "second"]);
    let mut deaf = dlock.start();
    let own = etcd.queue_of(&name, 2)[1].lease_hex();
    let mut next = Dlock::on(&etcd).run([&name, "echo", "ran"]).start();
    etcd.queue_of(&name, 3);
    link.set(Direction::ToClient, Mode::Drop);
    holder.let_go().expect_code(0);
    // Its attempts, a lease and the lock delay.
    next.wait_within(LIMIT * 2)
        .expect_code(0)
        .expect_stdout("ran\n");
    assert!(!etcd.leases().contains(&own), "the lease has ended");
    link.heal();
    deaf.wait().expect_code(0).expect_stdout("second\n");
}

/// "75: lock busy with `-n`", at once, with one line that names the lock; `-q` prints nothing.
#[test]
fn no_wait_gives_up_at_once() {
    let etcd = Etcd::shared();
    let name = unique("busy");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    for option in ["-n", "--no-wait", "--wait=0"] {
        let outcome = Dlock::on(etcd)
            .run([option, &name, "echo", "never"])
            .finish();
        let outcome = outcome
            .expect_code(75)
            .expect_stdout("")
            .expect_stderr(&["dlock: ", &name]);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert_eq!(etcd.queue(&name).len(), 1);
    }
    Dlock::on(etcd)
        .args(["-q"])
        .run(["-n", &name, "true"])
        .finish()
        .expect_code(75)
        .expect_silent();
}

/// "`-E N` chooses another (0 = skip silently)"
#[test]
fn another_exit_code_for_busy_may_be_chosen() {
    let etcd = Etcd::shared();
    let name = unique("chosen");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    for code in [1, 9, 123, 255] {
        let outcome = Dlock::on(etcd)
            .run(["-n", "-E", &code.to_string(), &name, "true"])
            .finish();
        outcome.expect_code(code);
    }
    let skipped = Dlock::on(etcd)
        .run(["-n", "-E0", &name, "echo", "never"])
        .finish();
    skipped.expect_code(0).expect_stdout("").expect_silent();
    let late = Dlock::on(etcd)
        .run(["-w", "1", "-E", "5", &name, "true"])
        .finish();
    late.expect_code(5);
}

/// "75: ... or `--wait` passed"
#[test]
fn a_limited_wait_ends_and_leaves_the_queue() {
    let etcd = Etcd::shared();
    let name = unique("limited");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let started_at = boot_clock();
    let outcome = Dlock::on(etcd)
        .run(["-w", "1500ms", &name, "echo", "never"])
        .finish();
    outcome
        .expect_code(75)
        .expect_stdout("")
        .expect_stderr(&[&name]);
    let took = since(started_at);
    assert!(
        took >= Duration::from_millis(1500) && took < Duration::from_secs(15),
        "{took:?}"
    );
    assert_eq!(etcd.queue(&name).len(), 1);
    // Released in time, it runs.
    let mut waiter = Dlock::on(etcd)
        .run(["-w", "1m", &name, "echo", "ran"])
        .start();
    etcd.queue_of(&name, 2);
    holder.let_go();
    waiter.wait().expect_code(0).expect_stdout("ran\n");
}

/// A waiter whose time is over does not disturb the order of the others.
#[test]
fn a_timed_out_middle_waiter_keeps_the_order() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("middle"));
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut first = run_guest(etcd, &oracle, &name, "first");
    etcd.queue_of(&name, 2);
    let mut timed = Dlock::on(etcd).run(["-w", "1", &name, "true"]).start();
    etcd.queue_of(&name, 3);
    let mut last = run_guest(etcd, &oracle, &name, "last");
    timed.wait().expect_code(75);
    etcd.queue_of(&name, 3);
    oracle.exited("first");
    oracle.exited("last");
    holder.let_go();
    first.wait().expect_code(0);
    last.wait().expect_code(0);
    assert_eq!(oracle.guests(), ["first", "last"]);
}

/// "`TryLock`": of many at once exactly one wins.
#[test]
fn one_of_many_concurrent_attempts_wins() {
    let etcd = Etcd::shared();
    let name = unique("race");
    let mut all: Vec<Running> = (0..8)
        .map(|_| {
            Dlock::on(etcd)
                .run(["-n", &name, "sh", "-c", "echo on; exec sleep 600"])
                .start()
        })
        .collect();
    let mut lost = 0;
    eventually(LIMIT, "all but one give up", || {
        all.retain_mut(|one| {
            let over = one.is_over();
            if over {
                one.wait().expect_code(75).expect_stdout("");
                lost += 1;
            }
            !over
        });
        lost == 7
    });
    all[0].says("on\n");
}

/// Ten contenders, one at a time, each with a greater token than the one before.
#[test]
fn many_contenders_run_one_at_a_time() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("crowd"));
    let all: Vec<Running> = (0..10)
        .map(|_| {
            Dlock::on(etcd)
                .run([&name, "--"])
                .args(oracle.command(&["sleep", "0.05"]))
                .start()
        })
        .collect();
    for mut one in all {
        one.wait_within(LIMIT * 2).expect_code(0).expect_silent();
    }
    assert_eq!(oracle.tokens().len(), 10);
}

/// "`etcdctl lock dlock/lock/NAME` and `dlock run NAME` exclude each other, both ways round, in FIFO order."
#[test]
fn etcdctl_and_dlock_exclude_each_other_in_order() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("both"));
    let key = format!("dlock/lock/{name}");
    let places = ["etcdctl-1", "dlock-2", "etcdctl-3", "dlock-4"];
    let mut all = Vec::new();
    for (place, who) in places.iter().enumerate() {
        let guest = oracle.guest(who);
        all.push(if who.starts_with("etcdctl") {
            Dlock::etcdctl(etcd)
                .args(["lock", &key, "--"])
                .args(guest)
                .start()
        } else {
            Dlock::on(etcd).run([&name, "--"]).args(guest).start()
        });
        etcd.queue_of(&name, place + 1);
        eventually(LIMIT, "the first has entered", || {
            oracle.guests() == places[..1]
        });
    }
    for (place, who) in places.iter().enumerate() {
        eventually(LIMIT, who, || oracle.guests() == places[..=place]);
        oracle.assert_no_overlap();
        oracle.exited(who);
    }
    for mut one in all {
        one.wait().expect_code(0);
    }
    oracle.assert_no_overlap();
}

/// "`job` and `job/nightly` are different locks and do not block each other."
#[test]
fn a_name_below_another_is_another_lock() {
    let etcd = Etcd::shared();
    let upper = unique("job");
    let lower = format!("{upper}/nightly");
    for (held, free) in [(&upper, &lower), (&lower, &upper)] {
        let mut holder = hold_open(Dlock::on(etcd), &[], held);
        Dlock::on(etcd)
            .run(["-n", free, "true"])
            .finish()
            .expect_code(0);
        holder.let_go();
    }
}

/// "Keys under the lock that are not `<hex>` are not ours."
#[test]
fn a_foreign_key_under_the_lock_is_ignored() {
    let etcd = Etcd::shared();
    let name = unique("foreign");
    let beside = [
        format!("dlock/lock/{name}"),
        format!("dlock/lock/{name}/note"),
        format!("dlock/lock/{name}/12/34"),
        format!("dlock/lock/{name}0/1"),
    ];
    for key in &beside {
        etcd.ctl(&["put", key, "not a place in the queue"]);
    }
    Dlock::on(etcd)
        .run(["-n", &name, "true"])
        .finish()
        .expect_code(0);
    for key in &beside {
        assert_eq!(
            etcd.entries(key)
                .iter()
                .filter(|entry| entry.key == *key)
                .count(),
            1,
            "{key}"
        );
    }
}

/// "The waiter's own lease lost: queue again, say so" with `-v`.
#[test]
fn a_waiter_whose_lease_is_revoked_queues_again() {
    let etcd = Etcd::shared();
    let name = unique("revoked");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut waiter = Dlock::on(etcd)
        .args(["-v"])
        .run([&name, "echo", "ran"])
        .start();
    let first = etcd.queue_of(&name, 2).remove(1);
    etcd.revoke(&first.lease_hex());
    eventually(LIMIT, "it is back in the queue", || {
        etcd.queue(&name)
            .get(1)
            .is_some_and(|place| place.key != first.key)
    });
    eventually(LIMIT, "it says so", || waiter.stderr().contains("queue"));
    holder.let_go();
    waiter.wait().expect_code(0).expect_stdout("ran\n");
}

/// A waiter whose key alone was deleted queues again as well, and does not acquire the lock without one.
#[test]
fn a_waiter_whose_key_is_deleted_queues_again() {
    let etcd = Etcd::shared();
    let name = unique("deleted");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut waiter = Dlock::on(etcd).run([&name, "echo", "ran"]).start();
    let first = etcd.queue_of(&name, 2).remove(1);
    etcd.ctl(&["del", &first.key]);
    eventually(LIMIT, "it is back in the queue", || {
        etcd.queue(&name)
            .get(1)
            .is_some_and(|place| place.create_revision > first.create_revision)
    });
    holder.let_go();
    waiter.wait().expect_code(0).expect_stdout("ran\n");
}

/// "While waiting for the lock a signal leaves the queue at once and ends dlock by that signal."
#[test]
fn a_signal_ends_a_waiter_by_that_signal_and_leaves_no_key() {
    let etcd = Etcd::shared();
    let name = unique("signal");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    for signal in [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
    ] {
        let mut waiter = Dlock::on(etcd)
            .run([&name, "echo", "never"])
            .under([
                "env",
                "-C",
                "/",
                "sh",
                "-c",
                "ulimit -c 0; exec \"$@\"",
                "sh",
            ])
            .start();
        etcd.queue_of(&name, 2);
        waiter.signal(signal);
        waiter
            .wait()
            .expect_signal(signal)
            .expect_stdout("")
            .expect_silent();
        assert_eq!(etcd.queue(&name).len(), 1, "{signal:?}");
    }
}

/// Many waiters get a signal at the same time: all exit, and the holder keeps the lock.
#[test]
fn parallel_waiters_can_all_be_cancelled() {
    let etcd = Etcd::shared();
    let name = unique("cancel");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut waiters: Vec<Running> = (0..6)
        .map(|_| Dlock::on(etcd).run([&name, "echo", "never"]).start())
        .collect();
    etcd.queue_of(&name, 7);
    for waiter in &waiters {
        waiter.signal(Signal::TERM);
    }
    for waiter in &mut waiters {
        waiter.wait().expect_signal(Signal::TERM).expect_stdout("");
    }
    assert_eq!(etcd.queue(&name).len(), 1);
    holder.let_go();
}

/// A signal that was ignored at the start does not end a waiter.
#[test]
fn an_ignored_signal_does_not_end_a_waiter() {
    let etcd = Etcd::shared();
    let name = unique("ignored");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut waiter = Dlock::on(etcd)
        .run([&name, "echo", "ran"])
        .under(["nohup"])
        .start();
    etcd.queue_of(&name, 2);
    waiter.signal(Signal::HUP);
    let_pass(Duration::from_millis(500));
    assert_eq!(etcd.queue(&name).len(), 2);
    holder.let_go();
    waiter.wait().expect_code(0).expect_stdout("ran\n");
}

/// A signal before etcd has answered ends dlock as well.
#[test]
fn a_signal_while_connecting_ends_dlock() {
    let silent = Link::silent();
    let mut waiter = Dlock::at(&silent.endpoint()).run(["job", "true"]).start();
    eventually(LIMIT, "it connects", || silent.accepted() > 0);
    waiter.signal(Signal::TERM);
    waiter.wait().expect_signal(Signal::TERM);
}

/// "waiting with etcd restarted"
#[test]
fn a_waiter_outlives_a_restart_of_etcd() {
    let etcd = Etcd::start();
    let (oracle, name) = (Oracle::new(), "restart");
    let mut holder = run_guest(&etcd, &oracle, name, "holder");
    oracle.entered(1);
    let mut waiter = run_guest(&etcd, &oracle, name, "waiter");
    etcd.queue_of(name, 2);
    etcd.restart();
    let_pass(Duration::from_secs(2));
    assert_eq!(oracle.guests(), ["holder"]);
    assert_eq!(etcd.queue(name).len(), 2);
    oracle.exited("holder");
    holder.wait().expect_code(0);
    oracle.exited("waiter");
    waiter.wait().expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// "Compaction, cancelled watch, future revision: re-read, re-watch"
#[test]
fn a_waiter_outlives_a_compaction() {
    let etcd = Etcd::start();
    let mut holder = hold_open(Dlock::on(&etcd), &[], "compact");
    let mut waiter = Dlock::on(&etcd).run(["compact", "echo", "ran"]).start();
    let revision = etcd.queue_of("compact", 2)[1].create_revision;
    for count in 0..5 {
        etcd.ctl(&["put", "other", &count.to_string()]);
    }
    etcd.ctl(&["compact", &(revision + 4).to_string()]);
    holder.let_go();
    waiter.wait().expect_code(0).expect_stdout("ran\n");
}

/// "Release: ... delete. Then revoke the lease": the lock is free at once, without a wait for a TTL.
#[test]
fn nothing_is_left_in_etcd_after_a_run() {
    let etcd = Etcd::start();
    let run = || Dlock::on(&etcd).run(["--ttl=10m", "-n", "clean", "true"]);
    let mut holder = hold_open(Dlock::on(&etcd), &["--ttl=10m"], "clean");
    run().finish().expect_code(75);
    holder.let_go();
    for _ in 0..10 {
        run().finish().expect_code(0);
        assert!(etcd.queue("clean").is_empty());
    }
    // "Nobody waits for that revoke": on a busy machine one in five did not arrive.
    eventually(LIMIT, "most leases are gone", || etcd.leases().len() <= 6);
    for lease in etcd.leases() {
        etcd.revoke(&lease);
    }
    etcd.assert_empty();
}

/// "It says what it waits for (holder, host, pid, ...) with `-v`, once and on change"
#[test]
fn a_verbose_waiter_names_the_holder() {
    let etcd = Etcd::shared();
    let name = unique("whom");
    let holder = hold(Dlock::on(etcd), &[], &name);
    let waiter = Dlock::on(etcd).args(["-v"]).run([&name, "true"]).start();
    let pid = holder.process().0.to_string();
    eventually(LIMIT, "it names the holder's pid", || {
        waiter.stderr().contains(&pid)
    });
    let silent = Dlock::on(etcd).run([&name, "true"]).start();
    etcd.queue_of(&name, 3);
    assert_eq!(silent.stderr(), "");
}

/// "the holder record: ... `program` is the command's name, not its arguments (they hold secrets)"
#[test]
fn the_record_shows_the_program_and_no_arguments() {
    let etcd = Etcd::shared();
    let name = unique("record");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    let value = &etcd.queue(&name)[0].value;
    let record: serde_json::Value = serde_json::from_str(value).expect(value);
    assert_eq!(record["v"], 1);
    assert_eq!(record["program"], "sh");
    assert!(record["pid"].is_number() && record["host"].is_string() && record["since"].is_string());
    assert!(!value.contains("sleep"), "{value}");
}
