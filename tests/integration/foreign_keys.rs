//! Keys that other clients write under the prefix: what they cannot do to a dlock.
//! It must not know how dlock reads them.

use std::time::Duration;

use serde_json::json;

use crate::listing::feed;
use crate::support::{Dlock, Etcd, LIMIT, eventually, hold, hold_open, let_pass, unique};

/// Puts an entry with this record into the queue of a lock, without a lease, and returns its token.
fn forge(etcd: &Etcd, name: &str, id: &str, value: &str, options: &[&str]) -> String {
    let key = format!("dlock/lock/{name}/{id}");
    feed(etcd, &[&["put", &key], options].concat(), value);
    let queue = etcd.queue(name);
    let entry = queue.iter().find(|entry| entry.key == key);
    entry.expect("our key").create_revision.to_string()
}

/// "dlock break --now deletes the key ... the lease stays, which may be that of another lock".
#[test]
fn a_lock_that_is_broken_takes_no_other_lock_with_it() {
    let etcd = Etcd::shared();
    let (victim, broken) = (unique("victim"), unique("broken"));
    let mut holder = hold_open(Dlock::on(etcd), &[], &victim);
    let lease = etcd.queue(&victim)[0].lease_hex();
    // Under a name of its own, and under that of the lease.
    for id in ["1a", lease.as_str()] {
        let lease = format!("--lease={lease}");
        let token = forge(etcd, &broken, id, "x", &[&lease]);
        Dlock::on(etcd)
            .args(["break", &broken, "--token", &token, "--yes", "--now"])
            .finish()
            .expect_code(0);
        assert!(etcd.queue(&broken).is_empty(), "{id}");
    }
    holder.let_go();
}

/// The slot of an entry that is taken away is free, and the slot of another one is not.
#[test]
fn a_slot_is_taken_away_with_its_entry() {
    let etcd = Etcd::shared();
    let (name, slots) = (unique("slots"), "--slots=2");
    let run = [slots, "--min-hold=1h", &name, "true"];
    Dlock::on(etcd).run(run).finish().expect_code(0);
    let _holder = hold(Dlock::on(etcd), &[slots], &name);
    let slot_keys = || etcd.entries(&format!("dlock/slot/{name}/")).len();
    assert_eq!(slot_keys(), 2);
    let break_now = |token: &str| {
        let line = ["break", &name, "--token", token, "--yes", "--now"];
        Dlock::on(etcd).args(line).finish().expect_code(0);
    };
    // Its record names the slot of the holder.
    let liar = json!({"v": 1, "mode": "slots", "slots": 2, "slot": 1}).to_string();
    break_now(&forge(etcd, &name, "1a", &liar, &[]));
    assert_eq!(slot_keys(), 2);
    break_now(&etcd.queue(&name)[0].create_revision.to_string());
    assert_eq!((slot_keys(), etcd.queue(&name).len()), (1, 1));
}

/// "A key without a lease ... keeps the lock until somebody deletes it": a waiter names it, and how to delete it.
#[test]
fn a_key_that_never_expires_is_named() {
    let (etcd, name) = (Etcd::shared(), unique("permanent"));
    let token = forge(etcd, &name, "1a", "x", &[]);
    let hint = format!("dlock break '{name}' --token {token} --now --yes");
    let key = format!("'dlock/lock/{name}/1a' has no lease");
    let mut waiter = Dlock::on(etcd).run([&name, "true"]).start();
    eventually(LIMIT, "a hint", || waiter.stderr().contains(&hint));
    assert!(waiter.stderr().contains(&key), "{}", waiter.stderr());
    let busy = Dlock::on(etcd).run(["-n", &name, "true"]).finish();
    let busy = busy.expect_code(75);
    assert!(busy.stderr.contains(&key), "{busy:?}");
    let status = Dlock::on(etcd).args(["status", &name]).finish().stdout;
    assert!(
        status.contains(&hint) && status.contains(&key) && status.contains("never ends"),
        "{status}"
    );
    let words: Vec<&str> = hint
        .split(' ')
        .map(|word| word.trim_matches('\''))
        .collect();
    Dlock::on(etcd).args(&words[1..]).finish().expect_code(0);
    waiter.wait().expect_code(0);
}

/// "A slot whose entry in the queue is gone stays taken until its key is gone" (dlock-run(1)): no request for a slot hangs, and each
/// is told the key.
#[test]
fn a_slot_without_an_entry_is_named() {
    let (etcd, name) = (Etcd::shared(), unique("orphan"));
    let run = |options: &[&str]| {
        let options = [&["--slots=2", "--ttl=5"], options, &[&name, "echo", "in"]].concat();
        Dlock::on(etcd).run(options)
    };
    let key = format!("dlock/slot/{name}/1");
    let _holder = hold(Dlock::on(etcd), &["--slots=2"], &name);
    etcd.ctl(&["put", &key, "x"]);
    let named = format!("the slot '{key}' is taken and its entry in the queue is gone");
    for limit in ["-n", "--wait=1"] {
        let outcome = run(&[limit]).finish().expect_code(75).expect_stdout("");
        outcome.expect_stderr(&[&named, "it has no lease, so it never expires"]);
    }
    let mut waiter = run(&[]).start();
    eventually(LIMIT, "a hint", || {
        let stderr = waiter.stderr();
        stderr.contains(&named) && stderr.contains(&format!("etcdctl del '{key}'"))
    });
    // Four renewals are proven meanwhile; the warning is not repeated.
    let_pass(Duration::from_secs(4));
    etcd.ctl(&["del", &key]);
    let outcome = waiter.wait().expect_code(0).expect_stdout("in\n");
    assert_eq!(outcome.stderr.matches(&named).count(), 1, "{outcome:?}");
    // One that expires is awaited.
    let granted = etcd.ctl(&["lease", "grant", "3"]);
    let lease = granted.split(' ').nth(1).expect(&granted);
    etcd.ctl(&["put", &key, "x", &format!("--lease={lease}")]);
    let outcome = run(&["-v"]).finish().expect_code(0);
    let end = format!("it ends with the lease {}", lease.trim_start_matches('0'));
    outcome.expect_stderr(&[&named, &end]);
}

/// "A slot whose entry is gone ... dlock status names it" (dlock-status(1)), also for a lock without any entry.
#[test]
fn a_lock_with_an_orphaned_slot_is_not_called_free() {
    let (etcd, name) = (Etcd::shared(), unique("orphan"));
    let status = |options: &[&str]| {
        let line = [&["status"], options, &[&name]].concat();
        Dlock::on(etcd).args(line).finish().expect_code(0).stdout
    };
    let holder = hold(Dlock::on(etcd), &["--slots=2"], &name);
    let healthy = status(&[]);
    assert!(!healthy.contains("is gone"), "{healthy}");
    let key = format!("dlock/slot/{name}/1");
    etcd.ctl(&["put", &key, "x"]);
    drop(holder);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    let said = status(&[]);
    let named = format!(
        "{name}: 0 holding, 0 waiting\nthe slot '{key}' is taken and its entry in the queue is gone: it has no lease"
    );
    assert!(said.starts_with(&named), "{said}");
    assert!(said.contains(&format!("etcdctl del '{key}'")), "{said}");
    assert!(status(&["--json"]).contains(&format!("\"orphan_slot\":\"{key}\"")));
    etcd.ctl(&["del", &key]);
    assert_eq!(status(&[]), format!("{name}: free\n"));
}

/// "A mark without a lease ... keeps every run from starting until somebody deletes it" (dlock-run(1)): it is named, also
/// where a busy lock is no failure.
#[test]
fn a_mark_that_never_expires_is_named() {
    let (etcd, name) = (Etcd::shared(), unique("mark"));
    let key = format!("dlock/once/{name}");
    etcd.ctl(&["put", &key, "x"]);
    let run = || {
        let options = ["-n", "-E0", "--once-per=1h", &name, "echo", "in"];
        Dlock::on(etcd).run(options).finish().expect_code(0)
    };
    let skipped = run().expect_stdout("");
    let named = format!("its mark '{key}' has no lease, so it never expires");
    skipped.expect_stderr(&[
        "ran already: by another client",
        &named,
        &format!("etcdctl del '{key}'"),
    ]);
    etcd.ctl(&["del", &key]);
    run().expect_stdout("in\n");
    run().expect_stdout("").expect_silent();
}

/// The same beside a slot that cools down: its entry is under another lease than its name says.
#[test]
fn a_slot_that_cools_down_is_not_taken_for_one_without_an_entry() {
    let (etcd, name) = (Etcd::shared(), unique("cooling"));
    let run = |options: &[&str]| {
        let options = [&["--slots=2", "--ttl=5"], options, &[&name, "true"]].concat();
        Dlock::on(etcd).run(options).finish()
    };
    run(&["--min-hold=60"]).expect_code(0);
    let key = format!("dlock/slot/{name}/1");
    etcd.ctl(&["put", &key, "x"]);
    let named = format!("the slot '{key}' is taken and its entry in the queue is gone");
    run(&["-n"]).expect_code(75).expect_stderr(&[&named]);
}

/// "tolerant of foreign or broken records": values of a megabyte fill no answer of etcd, for a request of any kind.
#[test]
fn long_records_stop_no_request() {
    let (etcd, name) = (Etcd::start(), unique("long"));
    let long = "x".repeat(1_400_000);
    let count = 9;
    for id in 1..=count {
        forge(&etcd, &name, &format!("{id}"), &long, &[]);
    }
    let dlock = || Dlock::on(&etcd).args(["-v"]);
    let waiter = |options: &[&str]| {
        let waiter = dlock().run([options, &[&name, "true"]].concat()).start();
        eventually(LIMIT, "it waits", || waiter.stderr().contains("in line"));
        waiter
    };
    let mut older = waiter(&[]);
    let mut newer = waiter(&["--supersede"]);
    older.wait().expect_code(75);
    let mut shared = waiter(&["--shared"]);
    let queue = etcd.queue_of(&name, count + 2);
    let token = |place: usize| queue[place].create_revision.to_string();
    let on = |words: &[&str]| Dlock::on(&etcd).args(words).finish();
    on(&["check", "--name", &name, "--token", &token(count)]).expect_code(121);
    on(&["break", &name, "--token", &token(count), "--yes"]).expect_code(0);
    newer.wait().expect_code(75);
    for place in 0..count {
        on(&["break", &name, "--token", &token(place), "--yes", "--now"]).expect_code(0);
    }
    shared.wait().expect_code(0);
    // Slots, which an exclusive entry keeps back.
    let slotted = unique("slots");
    for id in 1..=count {
        forge(&etcd, &slotted, &format!("{id}"), &long, &[]);
    }
    let outcome = dlock().run(["-n", "--slots=20", &slotted, "true"]).finish();
    assert!(!outcome.stderr.contains("too large"), "{outcome:?}");
}

/// "A record that announces more than any dlock can have": nobody waits for years, nor ends by a panic.
#[test]
fn no_record_delays_for_ever() {
    let (etcd, name) = (Etcd::shared(), unique("grace"));
    let record = |cooling: bool| {
        let grace = u64::MAX;
        json!({"v": 1, "mode": "exclusive", "slots": 1, "grace_ms": grace, "cooling": cooling})
    };
    let granted = etcd.ctl(&["lease", "grant", "1000000000"]);
    let lease = granted.split(' ').nth(1).expect("an id");
    let lease = format!("--lease={lease}");
    for cooling in [false, true] {
        let token = forge(etcd, &name, "1a", &record(cooling).to_string(), &[&lease]);
        let waiter = Dlock::on(etcd).args(["-v"]).run([&name, "true"]).start();
        eventually(LIMIT, "it waits", || waiter.stderr().contains("in line"));
        let broken = Dlock::on(etcd)
            .args(["break", &name, "--token", &token, "--yes", "--now"])
            .finish();
        let broken = broken.expect_code(0);
        assert!(
            broken.stderr.contains("may run on for 11h 59m"),
            "{broken:?}"
        );
        eventually(LIMIT, "it knows the delay", || {
            waiter.stderr().contains("waiting 15h")
        });
        drop(waiter);
        eventually(LIMIT, "the queue is empty", || {
            for entry in etcd.queue(&name) {
                etcd.ctl(&["del", &entry.key]);
            }
            etcd.queue(&name).is_empty()
        });
    }
}

/// A request is added to any record, and the texts of others are cut.
#[test]
fn a_stop_request_fits_into_any_record() {
    let (etcd, name) = (Etcd::shared(), unique("asked"));
    let record = json!({"v": 1, "mode": "m".repeat(3000), "slots": 1});
    let token = forge(etcd, &name, "1a", &record.to_string(), &[]);
    let line = ["break", &name, "--token", &token, "--yes", "--wait=1s"];
    Dlock::on(etcd).args(line).finish().expect_code(75);
    assert!(etcd.queue(&name)[0].value.contains("asked"));
    etcd.ctl(&["del", "--prefix", &format!("dlock/lock/{name}/")]);
}
