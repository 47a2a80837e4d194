//! The lock delay after a vanished holder, when later waiters need less for their own commands, or vanish with it.
//! It must not know how release records are kept.

use std::process::Stdio;

use crate::support::{
    Direction, Dlock, Etcd, LIMIT, Link, Mode, Oracle, Running, Signal, eventually, hold_open,
    unique,
};

/// A command that ignores everything but a kill.
const STUBBORN: &str = "trap '' TERM; sleep 600; sleep 600; sleep 600";

/// A holder under the oracle whose command needs its whole grace of 14 seconds.
#[track_caller]
fn patient(etcd: &Etcd, oracle: &Oracle, options: &[&str], name: &str) -> Running {
    let holder = Dlock::on(etcd).run(["--ttl=30", "-k14"]).args(options);
    let holder = holder.args([name, "--"]);
    let holder = holder.args(oracle.command(&["sh", "-c", STUBBORN])).start();
    oracle.entered(1);
    holder
}

/// One more waiter, whose own command needs hardly any time to end.
fn quick(etcd: &Etcd, oracle: &Oracle, options: &[&str], name: &str) -> Running {
    let waiter = Dlock::on(etcd).args(["-v"]).run(["-k1"]).args(options);
    let waiter = waiter.args([name, "--"]);
    waiter.args(oracle.command(&["true"])).start()
}

/// Waits until every entry from this one on announces this grace in milliseconds.
#[track_caller]
fn all_announce(etcd: &Etcd, name: &str, places: std::ops::Range<usize>, grace: u32) {
    let grace = format!(r#""grace_ms":{grace}"#);
    eventually(LIMIT, &format!("{places:?} announce {grace}"), || {
        let queue = etcd.queue(name);
        let all = queue.get(places.clone());
        all.is_some_and(|all| all.iter().all(|one| one.value.contains(&grace)))
    });
}

/// The holder has lost, and all of the others ran, each alone.
#[track_caller]
fn nobody_overlaps(oracle: &Oracle, mut holder: Running, others: Vec<Running>) {
    holder.wait_within(LIMIT * 2).expect_code(121);
    for mut one in others {
        one.wait_within(LIMIT * 3).expect_code(0);
    }
    oracle.assert_no_overlap();
}

/// "The waiters in the queue give the command that time" (dlock-run(1)), also if a whole queue is deleted, whose
/// waiters know only the entry before them.
#[test]
fn a_whole_queue_that_lost_its_entries_waits_for_the_holder() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("queue"));
    let holder = patient(etcd, &oracle, &[], &name);
    let mut waiters = Vec::new();
    for waiting in 2..=4 {
        waiters.push(quick(etcd, &oracle, &[], &name));
        etcd.queue_of(&name, waiting);
    }
    all_announce(etcd, &name, 0..4, 14000);
    etcd.ctl(&["del", "--prefix", &format!("dlock/lock/{name}/")]);
    nobody_overlaps(&oracle, holder, waiters);
}

/// "A waiter whose turn has come and whose command has not started is not called a holder" (dlock-status(1)), but a holder
/// is one once its command runs.
#[test]
fn a_waiter_is_no_holder_until_its_command_starts() {
    let (etcd, name) = (Etcd::shared(), unique("pending"));
    let holder = hold_open(Dlock::on(etcd), &["-k5"], &name);
    let dlock = Dlock::on(etcd).stdin(Stdio::piped());
    let mut waiter = dlock.run([&name, "sh", "-c", "echo on; exec cat"]).start();
    let lease = etcd.queue_of(&name, 2)[0].lease_hex();
    etcd.revoke(&lease);
    let status = || Dlock::on(etcd).args(["status", &name]).finish().stdout;
    eventually(LIMIT, "the waiter is not called a holder", || {
        let status = status();
        status.contains("0 holding, 1 waiting") && status.contains("exclusive, not started")
    });
    waiter.says("on\n");
    let status = status();
    assert!(status.contains("1 holding, 0 waiting"), "{status}");
    assert!(!status.contains("not started"), "{status}");
    waiter.let_go().expect_code(0);
    drop(holder);
}

/// The same if a waiter in between was killed before: it cannot write a record any more.
#[test]
fn a_holder_is_waited_for_behind_a_waiter_that_was_killed_before() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("killed-before"));
    let holder = patient(etcd, &oracle, &[], &name);
    let mut killed = quick(etcd, &oracle, &["--ttl=5"], &name);
    etcd.queue_of(&name, 2);
    let last = quick(etcd, &oracle, &[], &name);
    all_announce(etcd, &name, 0..3, 14000);
    killed.signal(Signal::KILL);
    killed.wait().expect_signal(Signal::KILL);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    nobody_overlaps(&oracle, holder, vec![last]);
}

/// The same if two vanish one after the other, and the waiter that saw both is killed: it announced the second one, too.
#[test]
fn a_second_vanished_holder_is_waited_for_behind_a_killed_waiter() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("second"));
    let command = ["--", "sh", "-c", STUBBORN];
    let first = Dlock::on(etcd).run(["-s", "--ttl=10", "-k2", &name]);
    let mut first = first.args(command).start();
    etcd.queue_of(&name, 1);
    let second = patient(etcd, &oracle, &["-s"], &name);
    let mut killed = quick(etcd, &oracle, &["--ttl=5"], &name);
    etcd.queue_of(&name, 3);
    let last = quick(etcd, &oracle, &[], &name);
    etcd.queue_of(&name, 4);
    eventually(LIMIT, "the last one has looked", || {
        last.stderr().contains("3rd in line")
    });
    for one in &etcd.queue(&name)[..2] {
        etcd.revoke(&one.lease_hex());
        eventually(LIMIT, "the waiter knows of it", || {
            killed.stderr().contains("has vanished without a release")
        });
    }
    killed.signal(Signal::KILL);
    killed.wait().expect_signal(Signal::KILL);
    first.wait().expect_code(121);
    nobody_overlaps(&oracle, second, vec![last]);
}

/// The same if the entry in between is not of dlock and announces nothing.
#[test]
fn a_holder_is_waited_for_behind_etcdctl() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("between"));
    let holder = patient(etcd, &oracle, &[], &name);
    let line = ["lock", "--ttl=600", &format!("dlock/lock/{name}")];
    let _other = Dlock::etcdctl(etcd).args(line).start();
    etcd.queue_of(&name, 2);
    let last = quick(etcd, &oracle, &[], &name);
    all_announce(etcd, &name, 2..3, 14000);
    for one in &etcd.queue(&name)[..2] {
        etcd.revoke(&one.lease_hex());
    }
    nobody_overlaps(&oracle, holder, vec![last]);
}

/// Writes a grace into the record of a holder.
fn rewrite(etcd: &Etcd, name: &str, from: u32, to: u32) {
    let holder = etcd.queue(name).remove(0);
    let [from, to] = [from, to].map(|grace| format!(r#""grace_ms":{grace}"#));
    assert!(holder.value.contains(&from), "{}", holder.value);
    let value = holder.value.replace(&from, &to);
    etcd.ctl(&["put", "--ignore-lease", &holder.key, &value]);
}

/// Each waiter announces to the next one what it has learnt, whenever that changes, and its own grace once it holds the
/// lock.
#[test]
fn a_grace_is_announced_as_often_as_it_changes() {
    let (etcd, name) = (Etcd::shared(), unique("often"));
    let mut holder = hold_open(Dlock::on(etcd), &["-k0"], &name);
    let mut waiters = Vec::new();
    for waiting in 2..=3 {
        let waiter = Dlock::on(etcd).run(["-k1", &name, "--", "sh", "-c", "echo on; exec cat"]);
        waiters.push(waiter.stdin(Stdio::piped()).start());
        etcd.queue_of(&name, waiting);
    }
    all_announce(etcd, &name, 1..3, 1000);
    let mut before = 0;
    for grace in [5000, 9000, 3000, 4000] {
        rewrite(etcd, &name, before, grace);
        all_announce(etcd, &name, 1..3, grace);
        before = grace;
    }
    holder.let_go().expect_code(0);
    waiters[0].says("on\n");
    all_announce(etcd, &name, 0..2, 1000);
    for mut waiter in waiters {
        waiter.let_go().expect_code(0);
    }
}

/// "A stop request ... has to stay" in a record that its owner changes at the same time.
#[test]
fn a_stop_request_survives_an_announcement() {
    let (etcd, name) = (Etcd::start(), unique("announced"));
    let link = Link::to(etcd.port());
    let mut holder = hold_open(Dlock::on(&etcd), &["-k0"], &name);
    let waiter = Dlock::at(&link.endpoint()).run(["-k1", "--ttl=60", &name]);
    let mut waiter = waiter.args(["echo", "never"]).start();
    let own = etcd.queue_of(&name, 2).remove(1);
    // Its announcement is on its way when the request is written.
    let words = [own.key.as_str(), r#""grace_ms":5000"#];
    link.snare(&words, &[(Direction::ToServer, Mode::Hold)]);
    rewrite(&etcd, &name, 0, 5000);
    eventually(LIMIT, "it announces", || link.sprung());
    let token = own.create_revision.to_string();
    let asking = ["break", &name, "--token", &token, "--yes", "--wait=1s"];
    Dlock::on(&etcd).args(asking).finish().expect_code(75);
    link.both(Mode::Pass);
    waiter.wait().expect_code(75).expect_stdout("");
    let words = |revision: u64| {
        let revision = format!("--rev={revision}");
        ["get", &own.key, "--print-value-only", &revision].map(str::to_owned)
    };
    let exists = |revision: &u64| {
        let words = words(*revision);
        etcd.try_ctl(&words.each_ref().map(String::as_str))
    };
    let revisions = (own.create_revision..).take_while(exists);
    let versions = revisions.map(|revision| {
        let words = words(revision);
        etcd.ctl(&words.each_ref().map(String::as_str))
    });
    let versions: Vec<String> = versions
        .filter(|value| value.contains("grace_ms"))
        .collect();
    let last = versions.last().expect("it was there");
    assert!(last.contains(r#""asked":"#), "{versions:#?}");
    holder.let_go().expect_code(0);
}

/// "A waiter starts only when the key of the one before it is gone": a release record does not count before that.
#[test]
fn a_holder_with_a_forged_release_record_keeps_the_lock() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("forged"));
    let holder = Dlock::on(etcd).run([&name, "--"]);
    let mut holder = holder.args(oracle.guest("holder")).start();
    oracle.entered(1);
    let mut waiter = quick(etcd, &oracle, &[], &name);
    eventually(LIMIT, "it knows for whom it waits", || {
        waiter.stderr().contains("next in line")
    });
    let place = etcd.queue(&name).remove(0);
    let told = format!(r#"{{"alone":{}}}"#, place.create_revision);
    etcd.ctl(&["put", &place.key.replace("/lock/", "/released/"), &told]);
    rewrite(etcd, &name, 5000, 6000);
    // It has read the record.
    all_announce(etcd, &name, 1..2, 6000);
    oracle.exited("holder");
    holder.wait().expect_code(0);
    waiter.wait().expect_code(0);
    oracle.assert_no_overlap();
    assert_eq!(oracle.tokens().len(), 2);
}

/// A waiter that gives up "leaves its entry for the rest of that time" (dlock-run(1)), and dlock break, which deletes
/// that entry, warns of the command that it is kept for. The other waiters give the command its time all the same.
#[track_caller]
fn is_kept_out_by_an_entry_that_is_removed(comes_before: bool) {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("taken-away"));
    let holder = patient(etcd, &oracle, &[], &name);
    let mut waiter = quick(etcd, &oracle, &[], &name);
    etcd.queue_of(&name, 2);
    let early = comes_before.then(|| {
        let early = quick(etcd, &oracle, &[], &name);
        etcd.queue_of(&name, 3);
        early
    });
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    eventually(LIMIT, "the waiter knows of it", || {
        waiter.stderr().contains("has vanished without a release")
    });
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    let last = early.unwrap_or_else(|| quick(etcd, &oracle, &[], &name));
    eventually(LIMIT, "the last one knows for whom it waits", || {
        let kept = etcd.queue(&name).remove(0);
        kept.value.contains("cooling") && last.stderr().contains("next in line")
    });
    let token = etcd.queue(&name)[0].create_revision.to_string();
    let line = ["break", &name, "--token", &token, "--yes"];
    let asked = Dlock::on(etcd).args(line).finish().expect_code(125);
    asked.expect_stderr(&["a vanished holder", "--now"]);
    let outcome = Dlock::on(etcd).args(line).args(["--now"]).finish();
    let outcome = outcome.expect_code(0);
    assert!(outcome.stderr.contains("may run on for 14s"), "{outcome:?}");
    nobody_overlaps(&oracle, holder, vec![last]);
}

#[test]
fn a_kept_entry_protects_although_it_is_deleted() {
    is_kept_out_by_an_entry_that_is_removed(true);
}

#[test]
fn a_kept_entry_protects_against_a_newcomer_although_it_is_deleted() {
    is_kept_out_by_an_entry_that_is_removed(false);
}

/// "A place that cools down for --min-hold protects nobody": its deletion causes neither a warning nor a delay.
#[test]
fn a_deleted_cooldown_causes_no_delay() {
    let (etcd, name) = (Etcd::shared(), unique("cools"));
    let line = ["--min-hold=1h", &name, "true"];
    Dlock::on(etcd).run(line).finish().expect_code(0);
    let token = etcd.queue(&name)[0].create_revision.to_string();
    let mut next = Dlock::on(etcd).args(["-v"]).run([&name, "true"]).start();
    eventually(LIMIT, "it waits", || next.stderr().contains("next in line"));
    let line = ["break", &name, "--token", &token, "--yes", "--now"];
    let outcome = Dlock::on(etcd).args(line).finish().expect_code(0);
    assert!(!outcome.stderr.contains("may run on"), "{outcome:?}");
    let next = next.wait().expect_code(0);
    assert!(
        !next.stderr.contains("has vanished without a release"),
        "{next:?}"
    );
}
