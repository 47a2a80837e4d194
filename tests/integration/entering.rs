//! Joining the queue when etcd is late: one entry for each dlock, and none when it has ended.
//! It must not know the requests of dlock.

use std::time::Duration;

use crate::support::{
    Cluster, Dlock, LIMIT, Running, etcdctl_program, eventually, hold_open, let_pass,
};

/// Two endpoints; the first is a member that can be held back.
struct Held<'a> {
    cluster: &'a Cluster,
    member: usize,
    leader: usize,
}

impl<'a> Held<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let leader = cluster.leader();
        let member = (leader + 1) % 3;
        Self {
            cluster,
            member,
            leader,
        }
    }

    fn dlock(&self) -> Dlock {
        let endpoints = [self.member, self.leader];
        let endpoints = endpoints.map(|member| self.cluster.members()[member].endpoint());
        Dlock::at(&endpoints.join(","))
    }

    /// Delivers the requests to the member, and waits until the cluster has executed them: the last request is executed
    /// last.
    #[track_caller]
    fn catches_up(&self) {
        let endpoint = format!(
            "--endpoints={}",
            self.cluster.members()[self.member].endpoint()
        );
        let put = [
            &etcdctl_program(),
            &endpoint,
            "--command-timeout=20s",
            "put",
            "last",
            "word",
        ];
        let mut last: Running = Dlock::program(put).env("ETCDCTL_API", "3").start();
        self.cluster.let_through(self.member);
        last.wait().expect_code(0);
    }

    fn queue(&self, name: &str) -> usize {
        self.cluster.members()[self.leader].queue(name).len()
    }
}

/// "A dlock that has ended leaves nothing behind that blocks the lock": nor does a request for an entry that etcd
/// executes later.
#[test]
fn a_late_request_creates_no_entry_of_a_dlock_that_has_ended() {
    let cluster = Cluster::start();
    let held = Held::new(&cluster);
    cluster.hold_back(held.member);
    let run = held.dlock().run(["--ttl=60", "late", "true"]);
    run.finish().expect_code(0).expect_silent();
    held.catches_up();
    assert_eq!(held.queue("late"), 0);
}

/// The same while it still holds the lock: it has one entry in the queue.
#[test]
fn a_late_request_creates_no_second_entry() {
    let cluster = Cluster::start();
    let held = Held::new(&cluster);
    cluster.hold_back(held.member);
    let mut holder = hold_open(held.dlock(), &["--ttl=60"], "twice");
    held.catches_up();
    assert_eq!(held.queue("twice"), 1);
    let status = Dlock::on(&cluster.members()[held.leader]).args(["status", "twice"]);
    let shown = status.finish().expect_code(0).stdout;
    assert!(shown.contains("1 holding, 0 waiting"), "{shown}");
    holder.let_go().expect_silent();
    assert_eq!(held.queue("twice"), 0);
}

/// The same after a lost quorum: a member without a leader refuses several attempts a second before any other member
/// knows of them, and none of them leaves anything in etcd.
#[test]
fn attempts_that_a_member_without_a_leader_refuses_leave_nothing_in_etcd() {
    let cluster = Cluster::start();
    let [one, two, three] = cluster.members() else {
        panic!("three members")
    };
    one.stop();
    two.stop();
    eventually(LIMIT, "the third gives its leader up", || {
        let status = three.status().unwrap_or_default();
        status.contains("\"Leader\" : 0")
    });
    let mut run = Dlock::on(three)
        .run(["--wait=60", "refused", "true"])
        .start();
    let_pass(Duration::from_secs(4));
    one.cont();
    two.cont();
    run.wait().expect_code(0);
    let kept = three.entries("dlock/released/");
    let bars = kept.iter().filter(|entry| entry.value.is_empty()).count();
    // A request that is pending when the leader comes back may get no answer.
    assert!(bars <= 3, "{bars} attempts are barred");
}
