//! Tests of the harness itself, with etcdctl instead of dlock: a broken tool proves nothing.
//! It must not know dlock.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::{
    BlackHole, Certificates, Cluster, Direction, Dlock, Etcd, LIMIT, Link, Mode, Oracle, Running,
    Terminal, alive, boot_clock, etcdctl_program, eventually, let_pass, since, unique,
};

#[test]
fn a_server_serves_restarts_and_keeps_its_keys() {
    let etcd = Etcd::start();
    etcd.ctl(&["put", "some/key", "a \"quoted\" value"]);
    etcd.restart();
    let entries = etcd.entries("some/");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].value, "a \"quoted\" value");
    assert_eq!(entries[0].lease, 0);
}

#[test]
fn a_server_is_gone_with_its_owner() {
    let etcd = Etcd::start();
    let process = etcd.process();
    assert!(alive(process));
    drop(etcd);
    assert!(!alive(process));
}

#[test]
fn etcdctl_locks_exclude_each_other_under_the_oracle() {
    let etcd = Etcd::shared();
    let (oracle, name) = (Oracle::new(), unique("harness"));
    let holders: Vec<Running> = (0..3)
        .map(|_| {
            let command = oracle.command(&["true"]);
            Dlock::etcdctl(etcd)
                .args(["lock", &name, "--"])
                .args(command)
                .start()
        })
        .collect();
    for mut holder in holders {
        holder.wait().expect_code(0);
    }
    assert_eq!(oracle.tokens().len(), 3);
}

#[test]
#[should_panic(expected = "two holders at once")]
fn the_oracle_sees_an_overlap_with_a_daemonised_descendant() {
    let oracle = Oracle::new();
    let command = oracle.command(&["setsid", "-f", "sleep", "60"]);
    let mut first = Dlock::program(&command).env("ETCD_LOCK_REV", "1").start();
    first.wait().expect_code(0);
    assert_eq!(first.tree().len(), 1);
    Dlock::program(oracle.command(&["true"]))
        .env("ETCD_LOCK_REV", "2")
        .finish()
        .expect_code(99);
    oracle.tokens();
}

#[test]
fn a_link_passes_holds_and_refuses() {
    let etcd = Etcd::shared();
    let link = Link::to(etcd.port());
    let endpoint = format!("--endpoints={}", link.endpoint());
    let put = |value: &str| {
        Dlock::program([
            &etcdctl_program(),
            &endpoint,
            "--command-timeout=20s",
            "put",
            "link",
            value,
        ])
        .env("ETCDCTL_API", "3")
    };
    put("passed").finish().expect_code(0);

    link.set(Direction::ToServer, Mode::Hold);
    let mut held = put("held").start();
    let_pass(Duration::from_millis(500));
    assert!(!held.is_over());
    assert_eq!(etcd.entries("link")[0].value, "passed");
    link.both(Mode::Pass);
    held.wait().expect_code(0);

    link.both(Mode::Delay(Duration::from_millis(100)));
    let sent_at = boot_clock();
    put("late").finish().expect_code(0);
    assert!(since(sent_at) >= Duration::from_millis(200));

    link.refuse();
    let address = link
        .endpoint()
        .trim_start_matches("http://")
        .parse::<SocketAddr>()
        .expect("one");
    assert!(TcpStream::connect(address).is_err());
    link.heal();
    eventually(LIMIT, "the link is back", || {
        TcpStream::connect(address).is_ok()
    });
}

#[test]
fn a_far_link_charges_for_the_handshake_too() {
    let etcd = Etcd::shared();
    let link = Link::far(etcd.port(), Duration::from_millis(50));
    let port = link.endpoint().rsplit(':').next().expect("a port").parse();
    let began_at = boot_clock();
    let mut stream =
        TcpStream::connect(("127.0.0.1", port.expect("a number"))).expect("it listens");
    let mut ask = || {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")?;
        stream.read(&mut [0; 4096])
    };
    assert!(ask().expect("an answer") > 0);
    assert!(since(began_at) >= Duration::from_millis(200));
    let asked_at = boot_clock();
    assert!(ask().expect("an answer") > 0);
    assert!(since(asked_at) >= Duration::from_millis(100));
}

#[test]
fn a_black_hole_swallows_connection_attempts() {
    let hole = BlackHole::new();
    let address = hole
        .endpoint()
        .trim_start_matches("http://")
        .parse::<SocketAddr>()
        .expect("one");
    let error = TcpStream::connect_timeout(&address, Duration::from_millis(500)).expect_err("no");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_cluster_has_a_leader_and_elects_another() {
    let cluster = Cluster::start();
    let first = cluster.leader();
    cluster.members()[first].stop();
    let rest = &cluster.members()[(first + 1) % 3];
    eventually(LIMIT, "the others elect", || {
        let status = rest.ctl(&["endpoint", "status", "-w", "fields"]);
        !status.contains("\"Leader\" : 0\n") && rest.entries("").is_empty()
    });
    cluster.members()[first].cont();
    cluster.members()[first].restart();
    cluster.leader();
}

#[test]
fn a_terminal_runs_what_is_typed() {
    let mut terminal = Terminal::open("http://127.0.0.1:1");
    let waits = r#"sh -c 'trap "echo got-\$((20+3)); exit" INT; echo on-$((1+1)); while :; do sleep 0.1; done'"#;
    terminal.line(waits);
    terminal.await_text("on-2");
    terminal.ctrl('C');
    terminal.await_text("got-23");
}

#[test]
fn certificates_serve_a_server_and_a_client() {
    let made = Certificates::new();
    let etcd = Etcd::start_mutual_tls(&made);
    etcd.ctl(&["put", "k", "v"]);
}
