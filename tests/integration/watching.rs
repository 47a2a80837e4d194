//! A watch that breaks, or stays behind when requests take another endpoint: holder and waiter learn of changes at once
//! all the same.
//! It must not know what a holder does after a loss.

use std::time::Duration;

use crate::support::{
    Direction, Dlock, Etcd, LIMIT, Link, Mode, Oracle, Running, eventually, hold_open,
    holder_and_waiter, let_pass, unique,
};

/// Waits until the watch of a process that has just started is open; it begins with a read, which would see the change.
fn watch_opens() {
    let_pass(Duration::from_secs(1));
}

/// "dlock notices it by a watch on its key, within a second" (dlock-run(1)), after any fault of the connection.
#[test]
fn a_holder_whose_connection_was_reset_learns_of_a_revoke() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("reset"));
    let link = Link::to(etcd.port());
    // The next renewal would be sent after a whole minute, and the waiter starts after eight seconds.
    let holder = Dlock::at(&link.endpoint()).run(["--ttl=300", &name, "--"]);
    let waiter = Dlock::on(etcd).run(["--ttl=300", &name, "--"]);
    let (mut holder, mut waiter) = holder_and_waiter(etcd, &oracle, &name, holder, waiter);
    watch_opens();
    let lease = etcd.queue(&name)[0].lease_hex();
    link.reset(Direction::ToClient);
    etcd.revoke(&lease);
    holder.wait().expect_code(121).expect_stderr(&["lost"]);
    waiter.wait_within(LIMIT * 2).expect_code(0);
    oracle.assert_no_overlap();
}

/// The same when etcd itself was killed and restarted.
#[test]
fn a_holder_whose_etcd_was_restarted_learns_of_a_revoke() {
    let (etcd, oracle, name) = (Etcd::start(), Oracle::new(), unique("restarted"));
    let line = ["--ttl=300", &name, "--"];
    let (holder, waiter) = (Dlock::on(&etcd).run(line), Dlock::on(&etcd).run(line));
    let (mut holder, mut waiter) = holder_and_waiter(&etcd, &oracle, &name, holder, waiter);
    watch_opens();
    let lease = etcd.queue(&name)[0].lease_hex();
    etcd.restart();
    etcd.revoke(&lease);
    holder.wait().expect_code(121).expect_stderr(&["lost"]);
    waiter.wait_within(LIMIT * 2).expect_code(0);
    oracle.assert_no_overlap();
}

/// A holder, and a waiter behind it whose renewals are two minutes apart.
#[track_caller]
fn patient_waiter(etcd: &Etcd, waiter: Dlock, name: &str) -> (Running, Running) {
    let holder = hold_open(Dlock::on(etcd), &[], name);
    let waiter = waiter.run(["--ttl=600", name, "true"]).start();
    etcd.queue_of(name, 2);
    watch_opens();
    (holder, waiter)
}

/// "Whoever waits is next": also after its connection was reset.
#[test]
fn a_waiter_whose_connection_was_reset_acquires_the_lock() {
    let (etcd, name) = (Etcd::shared(), unique("waits"));
    let link = Link::to(etcd.port());
    // With -q it does not check now and then how many are ahead, which would reopen the connection.
    let waiter = Dlock::at(&link.endpoint()).args(["-q"]);
    let (mut holder, mut waiter) = patient_waiter(etcd, waiter, &name);
    let connections = link.accepted();
    link.reset(Direction::ToClient);
    eventually(LIMIT, "the connection is made anew", || {
        link.accepted() > connections
    });
    holder.let_go().expect_code(0);
    waiter.wait().expect_code(0);
}

/// When requests fail over to another endpoint, the watch follows.
#[test]
fn a_watch_follows_requests_to_another_endpoint() {
    let (etcd, name) = (Etcd::shared(), unique("follows"));
    let links = [Link::to(etcd.port()), Link::to(etcd.port())];
    let endpoints = [links[0].endpoint(), links[1].endpoint()].join(",");
    // With -v it checks now and then how many are ahead.
    let waiter = Dlock::at(&endpoints).args(["-v"]);
    let (mut holder, mut waiter) = patient_waiter(etcd, waiter, &name);
    links[0].both(Mode::Drop);
    eventually(LIMIT, "another endpoint is asked", || {
        waiter.stderr().contains("using endpoint '")
    });
    watch_opens();
    holder.let_go().expect_code(0);
    waiter.wait().expect_code(0);
}

/// A waiter sleeps nearly all the time while etcd is gone, also when it is first in the queue; and with `-v` it does not
/// print the same message again and again.
#[test]
fn a_waiter_without_etcd_uses_little_processor_time() {
    let (etcd, name) = (Etcd::start(), "burden");
    let mut holder = hold_open(Dlock::on(&etcd), &["--ttl=20", "-k3"], name);
    let mut waiter = Dlock::on(&etcd)
        .args(["-v"])
        .run(["--ttl=20", name, "true"])
        .start();
    let places = etcd.queue_of(name, 2);
    etcd.revoke(&places[0].lease_hex());
    eventually(LIMIT, "it waits for the command that vanished", || {
        waiter.stderr().contains("has vanished without a release")
    });
    etcd.kill();
    let before = waiter.process().processor_time();
    // After six seconds it would be first, if it were proven anew.
    let_pass(Duration::from_secs(11));
    let spent = (waiter.process().processor_time()).saturating_sub(before);
    assert!(spent < Duration::from_secs(1), "{spent:?}");
    let lines = waiter.stderr().lines().count();
    assert!(lines < 60, "{lines} lines");
    holder.wait();
    etcd.revive();
    waiter.wait_within(LIMIT * 2).expect_code(0);
}
