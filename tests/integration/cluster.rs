//! Several members and several endpoints: which failures the holder survives, and which must end it.
//! It must not know how a single connection breaks; `loss.rs` does.

use std::time::Duration;

use crate::support::{
    BlackHole, Cluster, Dlock, Etcd, LIMIT, Link, Mode, Oracle, PlainKill, Running, Scratch,
    boot_clock, eventually, hold_open, let_pass, since, unique,
};

/// "several members": the leader dies, the command lives.
#[test]
fn a_killed_leader_is_survived() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let other = &cluster.members()[(leader + 1) % 3];
    let mut holder = hold_open(Dlock::at(&cluster.endpoints()), &["--ttl=20"], "leader");
    let place = other.queue("leader").remove(0);
    cluster.members()[leader].kill();
    // Longer than the TTL: dlock must have renewed after that.
    let_pass(Duration::from_secs(22));
    assert_eq!(other.queue("leader"), [place], "{}", holder.stderr());
    holder.let_go();
}

/// "A keepalive answer is no proof": a leader that was stopped and continues answers for leases that the cluster dropped.
#[test]
fn a_stopped_leader_that_returns_makes_no_two_holders() {
    let cluster = Cluster::start();
    let oracle = Oracle::new();
    let leader = cluster.leader();
    let other = &cluster.members()[(leader + 1) % 3];
    let mut contenders: Vec<Running> = (0..3)
        .map(|_| {
            Dlock::at(&cluster.endpoints())
                .run(["--ttl=5", "--connect-timeout=20", "stopped", "--"])
                .args(oracle.command(&["sleep", "4"]))
                .start()
        })
        .collect();
    oracle.entered(1);
    cluster.members()[leader].stop();
    let_pass(Duration::from_secs(8));
    cluster.members()[leader].cont();
    for contender in &mut contenders {
        let outcome = contender.wait_within(LIMIT * 2);
        assert!(matches!(outcome.code(), Some(0 | 121)), "{outcome:?}");
    }
    // The lock works afterwards, whichever holder lost it.
    let last = Dlock::at(&cluster.endpoints())
        .run(["stopped", "--"])
        .args(oracle.command(&["true"]));
    last.finish().expect_code(0);
    assert!(oracle.tokens().len() >= 2);
    assert!(other.queue("stopped").is_empty());
}

/// The holder's endpoint is the leader that gets stuck: its stale answers renew nothing, another member does.
#[test]
fn a_holder_leaves_a_stopped_leader_for_another_member() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let other = &cluster.members()[(leader + 1) % 3];
    let endpoints = [leader, (leader + 1) % 3, (leader + 2) % 3]
        .map(|member| cluster.members()[member].endpoint());
    let dlock = Dlock::at(&endpoints.join(","));
    let mut holder = hold_open(dlock, &["--ttl=20"], "leave");
    cluster.members()[leader].stop();
    let_pass(Duration::from_secs(8));
    cluster.members()[leader].cont();
    let_pass(Duration::from_secs(16));
    assert_eq!(other.queue("leave").len(), 1, "{}", holder.stderr());
    holder.let_go();
}

/// "quorum lost for less than the TTL survives"
#[test]
fn a_quorum_lost_for_a_moment_is_survived() {
    let cluster = Cluster::start();
    let [one, two, _] = cluster.members() else {
        panic!("three members")
    };
    let mut holder = hold_open(Dlock::at(&cluster.endpoints()), &["--ttl=20"], "moment");
    one.stop();
    two.stop();
    let_pass(Duration::from_secs(3));
    one.cont();
    two.cont();
    let_pass(Duration::from_secs(20));
    holder.let_go();
}

/// "... for more: 121", although the servers' lease clock stops as well.
#[test]
fn a_quorum_lost_for_long_ends_the_command() {
    let cluster = Cluster::start();
    let [one, two, three] = cluster.members() else {
        panic!("three members")
    };
    let mut holder = hold_open(Dlock::at(&cluster.endpoints()), &["--ttl=5"], "long");
    one.stop();
    two.stop();
    // The latest moment of the kill: nine tenths of the TTL after the last proof, less half a second.
    let mut plain = PlainKill::after(Duration::from_secs(4));
    holder.tree_dies_before("when the lease may be over", || {
        plain.is_dead_for(Duration::from_secs(1))
    });
    holder
        .wait()
        .expect_code(121)
        .expect_stderr(&["dlock: ", "lost"]);
    one.cont();
    two.cont();
    eventually(LIMIT * 2, "the lock is free again", || {
        three.queue("long").is_empty()
    });
}

/// "one refused, one silent, one black-holed from the start: acquires in < 3 s"
#[test]
fn dead_endpoints_beside_a_live_one_do_not_matter() {
    let etcd = Etcd::shared();
    let (silent, hole) = (Link::silent(), BlackHole::new());
    let dead = [
        "http://127.0.0.1:1".to_owned(),
        silent.endpoint(),
        hole.endpoint(),
    ];
    for place in 0..=dead.len() {
        let mut endpoints = dead.to_vec();
        endpoints.insert(place, etcd.endpoint());
        let started_at = boot_clock();
        let name = unique("dead");
        Dlock::at(&endpoints.join(","))
            .run([&name, "true"])
            .finish()
            .expect_code(0)
            .expect_silent();
        let took = since(started_at);
        // Three seconds on an idle machine.
        assert!(took < Duration::from_secs(10), "place {place}: {took:?}");
        assert!(etcd.queue(&name).is_empty());
    }
}

/// "the one in use goes silent while holding: the command survives at TTL 10 s"
#[test]
fn an_endpoint_that_goes_silent_is_left_for_another() {
    let etcd = Etcd::shared();
    let name = unique("silent");
    let links = [Link::to(etcd.port()), Link::to(etcd.port())];
    let endpoints = [links[0].endpoint(), links[1].endpoint()].join(",");
    let mut holder = hold_open(Dlock::at(&endpoints), &["--ttl=10"], &name);
    let place = etcd.queue(&name).remove(0);
    // Whichever is in use: first one goes silent, then it answers again and the other one is silent.
    for link in &links {
        link.both(Mode::Drop);
        let_pass(Duration::from_secs(11));
        link.cut();
        link.heal();
        let_pass(Duration::from_secs(3));
    }
    assert_eq!(etcd.queue(&name), [place], "{}", holder.stderr());
    holder.let_go();
}

/// "Pin the cluster id: a member of another cluster is refused."
#[test]
fn a_member_of_another_cluster_is_refused() {
    let (mine, stranger) = (
        Etcd::start_with(&["--initial-cluster-token=mine"]),
        Etcd::start(),
    );
    let link = Link::to(mine.port());
    let endpoints = [link.endpoint(), stranger.endpoint()].join(",");
    let mut holder = Dlock::at(&endpoints)
        .run(["--ttl=5", "pinned", "sh", "-c", "echo on; exec sleep 600"])
        .start();
    holder.says("on\n");
    let (used, other) = if mine.queue("pinned").is_empty() {
        (&stranger, &mine)
    } else {
        (&mine, &stranger)
    };
    used.stop();
    let outcome = holder.wait().expect_code(121);
    let warning = "dlock: one of the endpoints belongs to another cluster (";
    assert_eq!(outcome.stderr.matches(warning).count(), 1, "{outcome:?}");
    holder.assert_tree_dead();
    assert!(
        other.entries("").is_empty(),
        "nothing was written into the other cluster"
    );
    used.cont();
}

/// "5 / N waiters, one member and three members: exactly one holder at a time, all served"
#[test]
fn contenders_on_three_members_run_one_at_a_time() {
    let cluster = Cluster::start();
    let oracle = Oracle::new();
    let all: Vec<Running> = (0..6)
        .map(|count: usize| {
            Dlock::on(&cluster.members()[count % 3])
                .run(["crowd", "--"])
                .args(oracle.command(&["sleep", "0.05"]))
                .start()
        })
        .collect();
    for mut one in all {
        one.wait_within(LIMIT * 2).expect_code(0);
    }
    assert_eq!(oracle.tokens().len(), 6);
    assert!(cluster.members()[0].queue("crowd").is_empty());
}

/// "Use no endpoint of another etcd cluster than this one": however long the right one is silent, nothing is locked, or
/// left, in another one, and dlock waits for the lock in the right one.
#[test]
fn only_the_cluster_of_the_settings_is_used() {
    let (mine, stranger, oracle) = (
        Etcd::start_with(&["--initial-cluster-token=mine"]),
        Etcd::start(),
        Oracle::new(),
    );
    let holder = Dlock::on(&mine).run(["pinned", "--"]);
    let mut holder = holder.args(oracle.guest("holder")).start();
    oracle.entered(1);
    let link = Link::to(mine.port());
    link.both(Mode::Hold);
    let endpoints = [link.endpoint(), stranger.endpoint()].join(",");
    let home = Scratch::new();
    // In the form that etcdctl prints.
    let file = home.write(
        "dlock.toml",
        &format!("cluster-id = {}\n", mine.cluster_id()),
    );
    let mut waiter = Dlock::at(&endpoints)
        .run(["--config", &file, "--connect-timeout=20s", "--ttl=10s"])
        .args(["pinned", "--"])
        .args(oracle.guest("waiter"))
        .start();
    eventually(LIMIT, "the other cluster has answered", || {
        waiter.stderr().contains("it is not used")
    });
    assert!(stranger.entries("").is_empty());
    link.both(Mode::Pass);
    mine.queue_of("pinned", 2);
    assert_eq!(oracle.guests(), ["holder"]);
    oracle.exited("holder");
    oracle.exited("waiter");
    holder.wait().expect_code(0).expect_silent();
    let outcome = waiter.wait().expect_code(0);
    let warning = "belongs to another cluster";
    assert_eq!(outcome.stderr.matches(warning).count(), 1, "{outcome:?}");
    assert!(stranger.entries("").is_empty());
    // A lease whose grant was answered late ends by itself.
    eventually(LIMIT, "no lease is left in the other cluster", || {
        stranger.leases().is_empty()
    });
}

/// The message names the id of an endpoint's cluster that is not the one of the settings, and the expected one.
#[test]
fn both_ids_are_named_when_no_endpoint_is_of_the_right_cluster() {
    let etcd = Etcd::shared();
    let id: u64 = etcd.cluster_id().parse().expect("a decimal id");
    let dlock = |words: &[&str]| Dlock::on(etcd).env("DLOCK_CLUSTER_ID", "abc").args(words);
    let both = format!("belongs to another cluster ({id:x}, not abc of cluster-id)");
    let words = ["--connect-timeout=1s", "run", "job", "echo", "never"];
    dlock(&words)
        .finish()
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(&[&both, "hint: "]);
    for words in [
        &["ls"][..],
        &["status", "job"],
        &["check", "--name=job", "--token=1"],
    ] {
        let words = [&["--connect-timeout=1s"], words].concat();
        let outcome = dlock(&words).finish();
        outcome
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&[&both]);
    }
}
