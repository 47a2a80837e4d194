//! Proxies between dlock and etcd through which a lock can be requested, and not proven.
//! It must not know how dlock proves a lock.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{
    Dlock, Etcd, LIMIT, Running, etcd_program, eventually, free_port, hold_open, unique,
};

/// `etcd grpc-proxy` in front of an etcd.
struct GrpcProxy {
    process: Child,
    endpoint: String,
}

impl GrpcProxy {
    fn to(etcd: &Etcd) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let process = Command::new(etcd_program())
            .args(["grpc-proxy", "start"])
            .arg(format!("--endpoints=127.0.0.1:{}", etcd.port()))
            .arg(format!("--listen-addr={listen}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let endpoint = format!("http://{listen}");
        let proxy = Self { process, endpoint };
        eventually(LIMIT, "the proxy answers", || {
            let ls = Dlock::at(&proxy.endpoint).args(["ls", "--connect-timeout=1"]);
            ls.finish().code() == Some(0)
        });
        proxy
    }
}

impl Drop for GrpcProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
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

/// "If no other client has the lock, and etcd answers, but has confirmed no renewal for one TTL, dlock gives its place up and ends
/// with status 125 and the reason" (dlock-run(1)).
#[test]
fn a_waiter_that_cannot_prove_its_lease_leaves_the_queue() {
    let (etcd, name) = (Etcd::start(), unique("proxy"));
    let proxy = GrpcProxy::to(&etcd);
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
    let proxy = GrpcProxy::to(&etcd);
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

/// "Where --wait passes in that state, the status is 125 as well: nobody held the lock" (dlock-run(1)).
#[test]
fn a_wait_that_ends_while_a_lease_is_not_confirmed_is_an_error() {
    let (etcd, name) = (Etcd::start(), unique("proxy"));
    let proxy = GrpcProxy::to(&etcd);
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

/// "dlock doctor names such a proxy" (dlock-etcd(7)).
#[test]
fn the_doctor_names_a_proxy_through_which_no_lock_can_be_proven() {
    let etcd = Etcd::start();
    let proxy = GrpcProxy::to(&etcd);
    let doctor = Dlock::at(&proxy.endpoint).args(["doctor"]).finish();
    let found = doctor.expect_code(125);
    for part in [
        "this is an etcd gRPC proxy",
        "name the members' own addresses",
    ] {
        assert!(found.stdout.contains(part), "{}", found.stdout);
    }
}
