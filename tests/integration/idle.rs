//! dlock's activity while nothing happens, which is nearly always.
//! It must not know how it waits.

use std::time::Duration;

use crate::support::{Dlock, Etcd, LIMIT, Process, eventually, hold_open, let_pass, unique};

/// "A holder and a waiter of a lock in etcd are two processes of one thread each ... which sleep from one renewal to
/// the next" (dlock-capacity(7))
#[test]
fn nothing_wakes_up_between_renewals() {
    let etcd = Etcd::shared();
    let name = unique("idle");
    // The renewals are two minutes apart.
    let mut holder = hold_open(Dlock::on(etcd), &["--ttl=600"], &name);
    let mut waiter = Dlock::on(etcd)
        .run(["--ttl=600", &name, "--", "true"])
        .start();
    etcd.queue_of(&name, 2);
    let processes = [
        holder.process(),
        holder.guard(),
        waiter.process(),
        waiter.guard(),
    ];
    assert_eq!(processes.map(Process::threads), [1; 4]);
    // Their watches may not be open yet.
    let mut before = processes.map(Process::wake_ups);
    eventually(LIMIT, "all of them sleep", || {
        let_pass(Duration::from_secs(1));
        let earlier = std::mem::replace(&mut before, processes.map(Process::wake_ups));
        earlier == before
    });
    let_pass(Duration::from_secs(3));
    assert_eq!(processes.map(Process::wake_ups), before);
    holder.let_go();
    waiter.wait().expect_code(0);
}
