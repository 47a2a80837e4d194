//! Two builds of dlock side by side in one queue, as while a fleet is upgraded: the one under test and a previous one.
//! It must not know what the builds write into their records.
//!
//! `DLOCK_TEST_PREVIOUS` names the previous release before a new one. Otherwise the previous build is the one that cargo built for
//! the tests, which is another one than `DLOCK_TEST_BIN` names.

use rustix::process::Signal;

use crate::support::{
    Dlock, Etcd, LIMIT, Oracle, Running, Scratch, dlock_program, eventually, hold_open,
    holder_and_waiter, previous_program, unique,
};

/// The holder's build and the waiter's, both ways.
fn both_ways() -> [[&'static str; 2]; 2] {
    let (this, previous) = (dlock_program(), previous_program());
    [[previous, this], [this, previous]]
}

fn on(etcd: &Etcd, program: &str) -> Dlock {
    Dlock::program([program]).env("DLOCK_ENDPOINTS", etcd.endpoint())
}

/// "Two versions can share a queue": a release, a loss with its delay, and a command that is asked to stop.
#[test]
fn another_version_waits_for_a_holder_and_for_one_that_vanished() {
    let etcd = Etcd::shared();
    for programs in both_ways() {
        let [holder, waiter] = programs.map(|program| on(etcd, program));
        let name = unique("released");
        let mut holder = hold_open(holder, &[], &name);
        let mut waiter = waiter.run([&name, "true"]).start();
        etcd.queue_of(&name, 2);
        holder.let_go();
        waiter.wait().expect_code(0);

        let (oracle, name) = (Oracle::new(), unique("vanished"));
        let line = ["--ttl=10", &name, "--"];
        let [holder, waiter] = programs.map(|program| on(etcd, program).args(["-v"]).run(line));
        let (mut holder, mut waiter) = holder_and_waiter(etcd, &oracle, &name, holder, waiter);
        eventually(LIMIT, "it knows for whom it waits", || {
            waiter.stderr().contains("waiting for")
        });
        etcd.revoke(&etcd.queue(&name)[0].lease_hex());
        holder.wait().expect_code(121);
        waiter.wait_within(LIMIT * 2).expect_code(0);
        oracle.assert_no_overlap();
        assert_eq!(oracle.tokens().len(), 2);
    }
}

/// "Two versions can share a queue": shared holders and slots, as many as there may be.
#[test]
fn another_version_shares_and_takes_slots() {
    let etcd = Etcd::shared();
    for programs in both_ways() {
        for (option, third) in [("--shared", "-n"), ("--slots=2", "-n --slots=2")] {
            let name = unique("shares");
            let both = programs.map(|program| hold_open(on(etcd, program), &[option], &name));
            on(etcd, programs[1])
                .run(third.split(' '))
                .args([&name, "true"])
                .finish()
                .expect_code(75);
            for mut holder in both {
                holder.let_go();
            }
        }
    }
}

/// "Two versions can share a queue": a request to give up the lock, a list of the holders, and a mark of `--once-per`.
#[test]
fn another_version_asks_lists_and_reads_marks() {
    let etcd = Etcd::shared();
    for programs in both_ways() {
        let [holder, other] = programs.map(|program| || on(etcd, program));
        let name = unique("asked");
        let mut held: Running = hold_open(holder(), &[], &name);
        let listed = other().args(["status", "--json", &name]).finish();
        assert!(listed.stdout.contains(&name), "{listed:?}");
        let token = etcd.queue(&name)[0].create_revision.to_string();
        let asked = other()
            .args(["break", "--yes", &name, "--token", &token])
            .finish();
        asked.expect_code(0);
        assert_ne!(held.wait().code(), Some(0));
        let once = ["--once-per=1h", &name, "echo", "ran"];
        holder().run(once).finish().expect_stdout("ran\n");
        other().run(once).finish().expect_stdout("");
    }
}

/// "Two versions can share a queue": the same for local locks and their tokens.
#[test]
fn another_version_shares_local_locks() {
    for programs in both_ways() {
        let state = Scratch::new();
        let local = format!("--local={}", state.file("locks"));
        let [holder, waiter] = programs.map(|program| Dlock::program([program]));
        let held = hold_open(holder, &[&local], "job");
        let line = [&*local, "job", "printenv", "DLOCK_FENCING_TOKEN"];
        let busy = Dlock::program([programs[1]])
            .run(["-n"])
            .args(line)
            .finish();
        busy.expect_code(75);
        let mut waiter = waiter.run(line).start();
        held.signal(Signal::TERM);
        waiter.wait().expect_code(0).expect_stdout("2\n");
    }
}
