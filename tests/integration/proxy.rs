//! Proxies between dlock and etcd: through some of them a lock can be proven, through others only requested.
//! It must not know how dlock proves a lock.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Cluster, Dlock, Etcd, LIMIT, Running, Scratch, etcd_program, eventually, free_port, hold_open,
    let_pass, search_path, unique,
};

/// A proxy in front of etcd, ended on drop.
struct Proxy {
    process: Child,
    endpoint: String,
    _files: Scratch,
}

impl Proxy {
    /// Runs a program that listens on this port of 127.0.0.1.
    fn start(program: &str, arguments: &[&str], port: u16, files: Scratch) -> Self {
        let process = Command::new(program)
            .args(arguments)
            .env("PATH", search_path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let endpoint = format!("http://127.0.0.1:{port}");
        let proxy = Self {
            process,
            endpoint,
            _files: files,
        };
        eventually(LIMIT, "the proxy answers", || {
            let ls = Dlock::at(&proxy.endpoint).args(["ls", "--connect-timeout=1"]);
            ls.finish().code() == Some(0)
        });
        proxy
    }

    /// `etcd grpc-proxy`, which answers by itself.
    fn grpc(etcd: &Etcd) -> Self {
        let port = free_port();
        let (members, listen) = (endpoints(std::slice::from_ref(etcd)), local(port));
        let words = [
            "grpc-proxy",
            "start",
            &format!("--endpoints={members}"),
            &format!("--listen-addr={listen}"),
            // etcd 3.5.30 ends after five seconds if nothing answers at the address that it advertises; 3.5.16 does not.
            &format!("--advertise-client-url={listen}"),
        ];
        Self::start(&etcd_program(), &words, port, Scratch::new())
    }

    /// `etcd gateway`, which passes connections on.
    fn gateway(members: &[Etcd]) -> Self {
        let port = free_port();
        let (members, listen) = (endpoints(members), local(port));
        let words = [
            "gateway",
            "start",
            &format!("--endpoints={members}"),
            &format!("--listen-addr={listen}"),
        ];
        Self::start(&etcd_program(), &words, port, Scratch::new())
    }

    /// `HAProxy` in this mode; `protocol` is that of its connections.
    fn haproxy(members: &[Etcd], mode: &str, protocol: &str) -> Self {
        let port = free_port();
        let servers: Vec<String> = members
            .iter()
            .map(|etcd| format!("    server m{0} 127.0.0.1:{0} {protocol}\n", etcd.port()))
            .collect();
        let servers = servers.concat();
        let configuration = format!(
            "defaults\n    mode {mode}\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n\
             frontend locks\n    bind 127.0.0.1:{port} {protocol}\n    default_backend etcd\n\
             backend etcd\n    balance roundrobin\n{servers}"
        );
        let files = Scratch::new();
        let file = files.write("haproxy.cfg", &configuration);
        Self::start("/usr/sbin/haproxy", &["-db", "-f", &file], port, files)
    }
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn endpoints(members: &[Etcd]) -> String {
    let members: Vec<String> = members.iter().map(|etcd| local(etcd.port())).collect();
    members.join(",")
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// "A proxy that passes whole TCP connections on lets proofs through" (dlock-etcd(7)).
fn lets_proofs_through(proxy: &Proxy) {
    let mut holder = hold_open(Dlock::at(&proxy.endpoint), &["--ttl=5"], "proven");
    // Longer than the TTL.
    let_pass(Duration::from_secs(7));
    holder.let_go().expect_code(0).expect_silent();
}

/// "etcd gateway" (dlock-etcd(7)).
#[test]
fn a_lock_is_proven_through_the_gateway_of_etcd() {
    let cluster = Cluster::start();
    lets_proofs_through(&Proxy::gateway(cluster.members()));
}

/// "a TCP load balancer, such as `HAProxy` with mode tcp" (dlock-etcd(7)).
#[test]
fn a_lock_is_proven_through_a_balancer_of_connections() {
    let cluster = Cluster::start();
    lets_proofs_through(&Proxy::haproxy(cluster.members(), "tcp", ""));
}

/// "A load balancer for HTTP/2 or gRPC ... spreads the requests of one connection over the members" (dlock-etcd(7)).
#[test]
fn a_balancer_of_requests_is_reported() {
    let cluster = Cluster::start();
    let proxy = Proxy::haproxy(cluster.members(), "http", "proto h2");
    let mut holder = hold_open(Dlock::at(&proxy.endpoint), &["-v"], "spread");
    eventually(LIMIT, "a renewal proves nothing", || {
        holder.stderr().contains("two members answered")
    });
    holder.let_go();
    let doctor = Dlock::at(&proxy.endpoint).args(["doctor"]).finish();
    assert!(matches!(doctor.code(), Some(1 | 125)), "{doctor:?}");
    for part in [
        "two members answered, as behind a proxy that divides requests",
        "name the members' own addresses",
    ] {
        assert!(doctor.stdout.contains(part), "{}", doctor.stdout);
    }
}

fn status(etcd: &Etcd, name: &str) -> Value {
    let status = Dlock::on(etcd).args(["status", "--json", name]).finish();
    serde_json::from_str(&status.stdout).expect(&status.stdout)
}

/// The last proof of this waiter is older than a renewal interval.
fn unproven(waiter: &Running) {
    eventually(LIMIT, "a renewal has failed", || {
        waiter.stderr().contains("still waiting for")
    });
}

/// "If no other client has the lock, and etcd answers but has confirmed no renewal for one TTL, dlock removes its entry
/// and ends with status 125 and the reason" (dlock-run(1)).
#[test]
fn a_waiter_that_cannot_prove_its_lease_leaves_the_queue() {
    let (etcd, name) = (Etcd::start(), unique("proxy"));
    let proxy = Proxy::grpc(&etcd);
    let mut holder = hold_open(Dlock::on(&etcd), &[], &name);
    let wait = |options: &[&str]| {
        let dlock = Dlock::at(&proxy.endpoint).run(["--ttl=5", "-v"]);
        dlock.args(options).args([&name, "echo", "never"]).start()
    };
    let (endless, limited) = (wait(&[]), wait(&["--wait=1h", "-E0"]));
    etcd.queue_of(&name, 3);
    unproven(&endless);
    unproven(&limited);
    holder.let_go().expect_code(0);
    for mut waiter in [endless, limited] {
        let outcome = waiter.wait().expect_code(125).expect_stdout("");
        assert!(!outcome.stderr.contains("still held by"), "{outcome:?}");
        outcome.expect_stderr(&[
            "waiting for",
            "still waiting for",
            "no other client has it, but etcd has confirmed no renewal of our lease for",
            &format!("'{}' is an etcd gRPC proxy", proxy.endpoint),
            "hint: ",
        ]);
    }
    eventually(LIMIT, "no entry is left", || {
        etcd.entries(&format!("dlock/lock/{name}/")).is_empty()
    });
}

/// "A waiter whose turn has come and whose command has not started is not called a holder" (dlock-status(1)).
#[test]
fn a_waiter_that_has_not_started_is_no_holder() {
    let (etcd, name) = (Etcd::start(), unique("proxy"));
    let proxy = Proxy::grpc(&etcd);
    let mut holder = hold_open(Dlock::on(&etcd), &[], &name);
    let line = ["--ttl=10", "-v", &name, "echo", "never"];
    let mut first = Dlock::at(&proxy.endpoint).run(line).start();
    etcd.queue_of(&name, 2);
    let mut second = Dlock::on(&etcd).run(["-v", &name, "echo", "ran"]).start();
    etcd.queue_of(&name, 3);
    let before = status(&etcd, &name);
    assert_eq!(before["holders"][0]["holder"]["pending"], Value::Null);
    unproven(&first);
    holder.let_go().expect_code(0);
    eventually(LIMIT, "the first one says that it has not started", || {
        let status = status(&etcd, &name);
        status["holders"] == json!([]) && status["waiting"][0]["holder"]["pending"] == true
    });
    let words = "taken by a waiter that has not started: ";
    let busy = Dlock::on(&etcd).run(["-n", &name, "true"]).finish();
    busy.expect_code(75).expect_stderr(&[words]);
    eventually(LIMIT, "the next one is told", || {
        second.stderr().contains(words)
    });
    first.wait().expect_code(125).expect_stdout("");
    second.wait().expect_code(0).expect_stdout("ran\n");
}

/// "If --wait passes in that state, the status is 125 as well, since nobody held the lock" (dlock-run(1)).
#[test]
fn a_wait_that_ends_while_a_lease_is_not_confirmed_is_an_error() {
    let (etcd, name) = (Etcd::start(), unique("proxy"));
    let proxy = Proxy::grpc(&etcd);
    let mut holder = hold_open(Dlock::on(&etcd), &[], &name);
    let dlock = Dlock::at(&proxy.endpoint).run(["-v", "--ttl=20", "--wait=15", "-E0"]);
    let mut waiter = dlock.args([&name, "echo", "never"]).start();
    etcd.queue_of(&name, 2);
    unproven(&waiter);
    holder.let_go().expect_code(0);
    let outcome = waiter.wait().expect_code(125).expect_stdout("");
    outcome.expect_stderr(&["no other client has it, but etcd has confirmed no renewal"]);
    eventually(LIMIT, "no entry is left", || {
        etcd.entries(&format!("dlock/lock/{name}/")).is_empty()
    });
}

/// "dlock doctor reports both" (dlock-etcd(7)).
#[test]
fn the_doctor_names_a_proxy_through_which_no_lock_can_be_proven() {
    let etcd = Etcd::start();
    let proxy = Proxy::grpc(&etcd);
    let doctor = Dlock::at(&proxy.endpoint).args(["doctor"]).finish();
    let found = doctor.expect_code(125);
    for part in [
        "this is an etcd gRPC proxy",
        "name the members' own addresses",
    ] {
        assert!(found.stdout.contains(part), "{}", found.stdout);
    }
}
