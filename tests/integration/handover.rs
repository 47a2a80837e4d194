//! The promise when a third party deletes the holder's key: the next waiter waits for the holder's command.
//! It must not know how release records are kept.

use rustix::process::Signal;

use crate::support::{
    Dlock, Etcd, LIMIT, Oracle, Running, eventually, hold, hold_open, holder_and_waiter, unique,
};

/// A holder, and a waiter that reports why it waits.
#[track_caller]
fn pair(etcd: &Etcd, oracle: &Oracle, name: &str) -> (Running, Running) {
    let line = ["--ttl=10", name, "--"];
    let waiter = Dlock::on(etcd).args(["-v"]).run(line);
    holder_and_waiter(etcd, oracle, name, Dlock::on(etcd).run(line), waiter)
}

/// A holder whose command needs 14 seconds to end, and a waiter with `options` whose own command would get none.
#[track_caller]
fn patient_pair(etcd: &Etcd, oracle: &Oracle, name: &str, options: &[&str]) -> (Running, Running) {
    let holder = Dlock::on(etcd).run(["--ttl=30", "-k14", name, "--"]);
    let waiter = Dlock::on(etcd).args(["-v"]).run(options);
    let waiter = waiter.args(["-k0", name, "--"]);
    let (holder, waiter) = holder_and_waiter(etcd, oracle, name, holder, waiter);
    eventually(LIMIT, "it knows for whom it waits", || {
        waiter.stderr().contains("next in line")
    });
    (holder, waiter)
}

/// The third entry of a queue, whose waiter reports why it waits.
#[track_caller]
fn last(etcd: &Etcd, oracle: &Oracle, name: &str) -> Running {
    let last = Dlock::on(etcd).args(["-v"]).run([name, "--"]);
    let last = last.args(oracle.command(&["true"])).start();
    // It has read the queue, not only joined it.
    eventually(LIMIT, "it knows for whom it waits", || {
        last.stderr().contains("2nd in line")
    });
    last
}

/// The holder has lost, the waiter ran after its report of the delay, and they never overlapped.
#[track_caller]
fn is_handed_over_late(oracle: &Oracle, mut holder: Running, mut waiter: Running) {
    holder.wait().expect_code(121).expect_stderr(&["lost"]);
    waiter
        .wait_within(LIMIT * 2)
        .expect_code(0)
        .expect_stderr(&["has vanished without a release"]);
    oracle.assert_no_overlap();
    assert_eq!(oracle.tokens().len(), 2);
}

/// "The waiters in the queue give the command that time" (dlock-run(1)): an operator revokes the lease.
#[test]
fn a_revoked_holder_is_waited_for() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("revoked"));
    let (holder, waiter) = pair(etcd, &oracle, &name);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    is_handed_over_late(&oracle, holder, waiter);
}

/// "The waiters in the queue give the command that time" (dlock-run(1)): an operator deletes the key.
#[test]
fn a_holder_without_its_key_is_waited_for() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("deleted"));
    let (holder, waiter) = pair(etcd, &oracle, &name);
    etcd.ctl(&["del", &etcd.queue(&name)[0].key]);
    is_handed_over_late(&oracle, holder, waiter);
}

/// "The waiters in the queue give the command that time" (dlock-run(1)), also when its own entry is deleted with the
/// holder's.
#[test]
fn a_waiter_that_lost_its_entry_waits_for_a_vanished_holder() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("both"));
    let (holder, waiter) = pair(etcd, &oracle, &name);
    etcd.ctl(&["del", "--prefix", &format!("dlock/lock/{name}/")]);
    is_handed_over_late(&oracle, holder, waiter);
}

/// "the command gets the signal of --signal, and dlock kills the tree after --kill-after" (dlock-run(1)): a loss by a
/// third party leaves the grace, too.
#[test]
fn a_command_without_its_key_may_clean_up() {
    let (etcd, name) = (Etcd::shared(), unique("clean-up"));
    let script = "trap 'echo cleaned up; exit 0' TERM; echo on; while :; do sleep 0.05; done";
    let mut holder = Dlock::on(etcd)
        .run(["--ttl=10", &name, "sh", "-c", script])
        .start();
    holder.says("on\n");
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    holder
        .wait()
        .expect_code(121)
        .expect_stdout("on\ncleaned up\n");
}

/// "There is no lock delay after a release" (dlock-run(1)), and the release record is gone with its lease.
#[test]
fn a_release_passes_the_lock_on_at_once_and_leaves_nothing_for_long() {
    let (etcd, oracle, name) = (Etcd::start(), Oracle::new(), "clean");
    let mut holder = hold(Dlock::on(&etcd), &["--ttl=5"], name);
    let mut waiters: Vec<Running> = Vec::new();
    for waiting in 2..=4 {
        let waiter = Dlock::on(&etcd)
            .args(["-v"])
            .run(["--ttl=5", name, "--"])
            .args(oracle.command(&["true"]))
            .start();
        etcd.queue_of(name, waiting);
        waiters.push(waiter);
    }
    holder.signal(Signal::TERM);
    holder.wait().expect_signal(Signal::TERM);
    for waiter in &mut waiters {
        let outcome = waiter.wait().expect_code(0);
        assert!(
            !outcome.stderr.contains("has vanished without a release"),
            "{}",
            outcome.stderr
        );
    }
    oracle.assert_no_overlap();
    eventually(LIMIT, "no key and no lease is left", || {
        etcd.entries("").is_empty() && etcd.leases().is_empty()
    });
}

/// A waiter "queues again" when its entry is lost, also if it learns of that together with the end of the entry before
/// it.
#[test]
fn a_waiter_without_its_entry_does_not_acquire_the_lock() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("no-place"));
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    // Its last proof stays recent enough for a start, however busy the machine is: only the read of the queue shows the loss.
    let mut waiter = Dlock::on(etcd)
        .args(["-v"])
        .run(["-k0", "--ttl=10m", &name, "--"])
        .args(oracle.guest("waiter"))
        .start();
    let place = etcd.queue_of(&name, 2).remove(1);
    let mut next = Dlock::on(etcd)
        .run([&name, "--"])
        .args(oracle.guest("next"))
        .start();
    etcd.queue_of(&name, 3);
    waiter.signal(Signal::STOP);
    etcd.ctl(&["del", &place.key]);
    holder.let_go().expect_code(0);
    oracle.entered(1);
    waiter.signal(Signal::CONT);
    eventually(LIMIT, "the waiter queues again", || {
        waiter.stderr().contains("queueing again")
    });
    for (guest, running) in [("next", &mut next), ("waiter", &mut waiter)] {
        oracle.exited(guest);
        running.wait().expect_code(0);
    }
    oracle.assert_no_overlap();
    assert_eq!(oracle.guests(), ["next", "waiter"]);
}

/// "There is no lock delay after a release, nor after a holder that is not dlock" (dlock-run(1)): they do not announce
/// how long their command may run.
#[test]
fn a_vanished_etcdctl_causes_no_delay() {
    let (etcd, name) = (Etcd::shared(), unique("etcdctl"));
    let line = ["lock", "--ttl=600", &format!("dlock/lock/{name}")];
    let _holder = Dlock::etcdctl(etcd).args(line).start();
    etcd.queue_of(&name, 1);
    let mut waiter = Dlock::on(etcd).args(["-v"]).run([&name, "true"]).start();
    etcd.queue_of(&name, 2);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    let outcome = waiter.wait().expect_code(0);
    assert!(
        !outcome.stderr.contains("has vanished without a release"),
        "{}",
        outcome.stderr
    );
}

/// A waiter that gives up during that time "leaves its entry for the rest of that time" (dlock-run(1)): no waiter and
/// no newcomer gets the lock early.
#[test]
fn a_waiter_that_gives_up_during_a_lock_delay_does_not_shorten_it() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("gives-up"));
    let (mut holder, mut waiter) = patient_pair(etcd, &oracle, &name, &["--ttl=600"]);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    eventually(LIMIT, "the waiter knows of it", || {
        waiter.stderr().contains("has vanished without a release")
    });
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    let newcomer = Dlock::on(etcd).run([&name, "--"]);
    let mut newcomer = newcomer.args(oracle.command(&["true"])).start();
    holder.wait().expect_code(121);
    newcomer.wait_within(LIMIT * 2).expect_code(0);
    oracle.assert_no_overlap();
    assert_eq!(oracle.tokens().len(), 2);
}

/// "the lock delay is kept ... when a waiter crashes during the delay" (dlock-run(1)).
#[test]
fn a_waiter_that_is_killed_during_a_lock_delay_does_not_shorten_it() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("killed"));
    let (mut holder, mut waiter) = patient_pair(etcd, &oracle, &name, &["--ttl=5"]);
    let mut last = last(etcd, &oracle, &name);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    eventually(LIMIT, "the waiter announces it", || {
        let queue = etcd.queue(&name);
        queue.len() == 2 && !queue[0].value.contains(r#""grace_ms":0"#)
    });
    waiter.signal(Signal::KILL);
    waiter.wait().expect_signal(Signal::KILL);
    holder.wait_within(LIMIT * 2).expect_code(121);
    last.wait_within(LIMIT * 3).expect_code(0);
    oracle.assert_no_overlap();
}

/// A waiter that gives up "leaves word", also at the time at which the holder vanishes: it may not know of that yet.
#[test]
fn a_waiter_that_gives_up_hides_no_vanished_holder() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("hides"));
    let (mut holder, mut waiter) = patient_pair(etcd, &oracle, &name, &[]);
    let mut last = last(etcd, &oracle, &name);
    last.signal(Signal::STOP);
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    last.signal(Signal::CONT);
    holder.wait_within(LIMIT * 2).expect_code(121);
    last.wait_within(LIMIT * 2)
        .expect_code(0)
        .expect_stderr(&["has vanished without a release"]);
    oracle.assert_no_overlap();
}

/// A waiter that gives up behind a holder that is not dlock does not vouch for that holder's end: the next one waits for
/// it.
#[test]
fn a_waiter_that_gives_up_behind_etcdctl_does_not_free_the_lock() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("behind-etcdctl"));
    let mut other = Dlock::etcdctl(etcd)
        .args(["lock", &format!("dlock/lock/{name}"), "--"])
        .args(oracle.guest("other"))
        .start();
    oracle.entered(1);
    is_kept_out(etcd, &oracle, &name);
    oracle.exited("other");
    other.wait().expect_code(0);
}

/// "Keep the lock for at least this long" (dlock-run(1)), although a waiter gives up behind it.
#[test]
fn a_waiter_that_gives_up_during_a_cooldown_does_not_free_the_lock() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("behind-cooling"));
    let line = ["--min-hold=1h", &name, "true"];
    Dlock::on(etcd).run(line).finish().expect_code(0);
    is_kept_out(etcd, &oracle, &name);
}

/// The second waiter does not get the lock when the first gives up.
#[track_caller]
fn is_kept_out(etcd: &Etcd, oracle: &Oracle, name: &str) {
    let mut waiter = Dlock::on(etcd).run([name, "true"]).start();
    let place = etcd.queue_of(name, 2).remove(1);
    let mut next = Dlock::on(etcd)
        .args(["-v"])
        .run([name, "--"])
        .args(oracle.command(&["true"]))
        .start();
    etcd.queue_of(name, 3);
    eventually(LIMIT, "the last one waits", || {
        next.stderr().contains("2nd in line")
    });
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    let left = etcd.entries(&place.key.replace("/lock/", "/released/"));
    assert!(left[0].value.contains("behind"), "{}", left[0].value);
    eventually(LIMIT, "it knows", || next.stderr().contains("next in line"));
    next.signal(Signal::INT);
    next.wait().expect_signal(Signal::INT);
    oracle.assert_no_overlap();
}

/// The same with readers: a writer leaves, one of the readers vanishes, and the next writer finds both gone and a reader
/// present.
#[test]
fn a_vanished_reader_is_waited_for_behind_a_waiter_that_gave_up() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("reader"));
    let stubborn = "trap '' TERM; echo on; sleep 600; sleep 600";
    let mut vanished = Dlock::on(etcd)
        .run(["-s", "--ttl=20", "-k9", &name, "--"])
        .args(oracle.command(&["sh", "-c", stubborn]))
        .start();
    vanished.says("on\n");
    let mut reader = hold_open(Dlock::on(etcd), &["-s"], &name);
    let line = ["-v", "run", "-k0", &name, "true"];
    let mut waiter = Dlock::on(etcd).args(line).start();
    etcd.queue_of(&name, 3);
    let mut last = Dlock::on(etcd)
        .args(["-v"])
        .run([&name, "--"])
        .args(oracle.command(&["true"]))
        .start();
    eventually(LIMIT, "it knows for whom it waits", || {
        last.stderr().contains("3rd in line")
    });
    last.signal(Signal::STOP);
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    last.signal(Signal::CONT);
    eventually(LIMIT, "the last one knows of it", || {
        last.stderr().contains("has vanished without a release")
    });
    reader.let_go().expect_code(0);
    vanished.wait_within(LIMIT * 2).expect_code(121);
    last.wait_within(LIMIT * 2).expect_code(0);
    oracle.assert_no_overlap();
}

/// A waiter that gives up meanwhile does not restart the delay: otherwise a lock could stay free for ever.
#[test]
fn a_lock_delay_ends_although_many_waiters_give_up() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("many"));
    let (mut holder, mut waiter) = pair(etcd, &oracle, &name);
    let mut last = last(etcd, &oracle, &name);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    eventually(LIMIT, "the waiter knows of it", || {
        waiter.stderr().contains("has vanished without a release")
    });
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    holder.wait().expect_code(121);
    let place = etcd.queue(&name).remove(0);
    assert!(place.value.contains(r#""cooling":true"#), "{}", place.value);
    let outcome = last.wait_within(LIMIT * 2).expect_code(0);
    assert!(
        !outcome.stderr.contains("has vanished without a release"),
        "{}",
        outcome.stderr
    );
    oracle.assert_no_overlap();
}

/// "There is no lock delay after a release" (dlock-run(1)), also if other waiters have left meanwhile.
#[test]
fn a_waiter_that_gives_up_causes_no_delay() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("delays"));
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut waiter = Dlock::on(etcd).run([&name, "true"]).start();
    etcd.queue_of(&name, 2);
    let mut last = last(etcd, &oracle, &name);
    last.signal(Signal::STOP);
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    holder.let_go().expect_code(0);
    last.signal(Signal::CONT);
    let outcome = last.wait().expect_code(0);
    assert!(
        !outcome.stderr.contains("has vanished without a release"),
        "{}",
        outcome.stderr
    );
}
