//! The number of dlock's requests, as etcd counts them: the figures of "Capacity".
//! It must not know what the requests are for.

use std::process::Stdio;

use crate::support::{Dlock, Etcd, LIMIT, Link, Metrics, Running, eventually, hold_open};

/// No renewal is due during a test: they are two minutes apart.
const TTL: &str = "--ttl=600";

const ANSWERED: &str = "grpc_server_handled_total";
/// Excludes requests for an entry that a busy server refuses now and then because it does not know the lease yet.
const UNARY: &[&str] = &["grpc_type=\"unary\"", "grpc_code=\"OK\""];
const TRANSACTIONS: &[&str] = &["grpc_method=\"Txn\"", "grpc_code=\"OK\""];
const READS: &str = "etcd_mvcc_range_total";

/// The counters of an etcd for one test, since some time.
struct Load<'a> {
    etcd: &'a Etcd,
    before: Metrics,
}

impl<'a> Load<'a> {
    fn from_now_on(etcd: &'a Etcd) -> Self {
        Self {
            etcd,
            before: Metrics::of(etcd),
        }
    }

    fn of(&self, counter: &str, labels: &[&str]) -> u64 {
        let grown = Metrics::of(self.etcd).grown(&self.before, counter, labels);
        format!("{grown:.0}").parse().expect("a counter only grows")
    }

    /// Waits until this many requests have arrived, and fails if there are more.
    #[track_caller]
    fn becomes(&self, count: u64, counter: &str, labels: &[&str]) {
        eventually(LIMIT, &format!("{count} of {counter}"), || {
            self.of(counter, labels) >= count
        });
        assert_eq!(self.of(counter, labels), count, "{counter} {labels:?}");
    }

    /// These were all requests, except the last, which ends the lease: dlock does not wait for its answer, and it may get
    /// lost.
    #[track_caller]
    fn ends_with(&self, count: u64) {
        let answered = self.of(ANSWERED, UNARY);
        assert!((count - 1..=count).contains(&answered), "{answered}");
    }
}

/// Holds the lock once it has it, until it is ended.
fn next(dlock: Dlock, name: &str) -> Running {
    let waiter = dlock.run([TTL, name, "--", "sh", "-c", "echo on; exec cat"]);
    waiter.stdin(Stdio::piped()).start()
}

/// "An acquisition and a release cost five more requests together" (dlock-capacity(7))
#[test]
fn a_run_costs_five_requests() {
    let etcd = Etcd::start();
    let load = Load::from_now_on(&etcd);
    let mut holder = hold_open(Dlock::on(&etcd), &[TTL], "five");
    // The grant, the entry, and the read with which the watch begins.
    load.becomes(3, ANSWERED, UNARY);
    holder.let_go().expect_code(0);
    load.ends_with(5);
}

/// "and two more if dlock has to wait" (dlock-capacity(7)): a read of the earlier entries, and one when they are gone.
#[test]
fn a_wait_costs_two_reads_of_the_queue() {
    let (etcd, name) = (Etcd::start(), "seven");
    let load = Load::from_now_on(&etcd);
    let mut holder = hold_open(Dlock::on(&etcd), &[TTL], name);
    load.becomes(3, ANSWERED, UNARY);
    let load = Load::from_now_on(&etcd);
    let mut waiter = next(Dlock::on(&etcd), name);
    load.becomes(4, ANSWERED, UNARY);
    holder.let_go().expect_code(0);
    waiter.says("on\n");
    // The holder's release is among them; its release record ends with its lease.
    load.becomes(4 + 1 + 1, ANSWERED, UNARY);
    waiter.let_go().expect_code(0);
    load.ends_with(4 + 1 + 3);
}

/// "A release wakes up one waiter, however many wait" (dlock-capacity(7)), and "A waiter that follows an exclusive
/// holder which released the lock reads three keys, however many wait" (dlock-capacity(7)).
#[test]
fn a_release_costs_the_next_waiter_one_read_of_three_keys() {
    let (etcd, name) = (Etcd::start(), "two");
    let load = Load::from_now_on(&etcd);
    let mut holder = hold_open(Dlock::on(&etcd), &[TTL], name);
    load.becomes(2, ANSWERED, TRANSACTIONS);
    let mut waiters: Vec<Running> = Vec::new();
    let link = Link::to(etcd.port());
    for waiting in 1..=4 {
        let dlock = if waiting == 1 {
            Dlock::at(&link.endpoint())
        } else {
            Dlock::on(&etcd)
        };
        waiters.push(next(dlock, name));
        load.becomes(2 + 3 * waiting, ANSWERED, TRANSACTIONS);
    }
    // The end of the range in which all keys of the queue are; a read of single keys has no such end.
    link.snare(&[&format!("dlock/lock/{name}0")], &[]);
    let load = Load::from_now_on(&etcd);
    holder.let_go().expect_code(0);
    waiters[0].says("on\n");
    assert!(!link.sprung(), "the whole queue was read");
    load.becomes(2, ANSWERED, TRANSACTIONS);
    // The release compares twice, and checks whether a waiter exists.
    load.becomes(3 + 3, READS, &[]);
    for mut waiter in waiters {
        waiter.let_go().expect_code(0);
    }
}
