//! Credentials in files that change during a run: passwords and certificates.
//! It must not know how a login is made; it counts them at etcd.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Certificates, Direction, Dlock, Etcd, LIMIT, Link, Metrics, Scratch, boot_clock, dlock_program,
    eventually, hold_open, is_followed, let_pass, since,
};

/// A server with root and a user whose only role is readwrite on the prefix.
fn with_passwords() -> Etcd {
    let etcd = Etcd::start();
    etcd.add_user("team", "first", "dlock/", "dlock0");
    etcd.enable_auth();
    etcd
}

fn as_root(etcd: &Etcd) -> Dlock {
    Dlock::on(etcd).env("ETCDCTL_USER", "root:root")
}

/// dlock as that user, with the password in a file.
fn as_team(etcd: &Etcd, file: &str) -> Dlock {
    Dlock::on(etcd).args(["--user=team", "--password-file", file])
}

/// The number of logins at etcd from a moment on; etcdctl makes some, too.
struct Logins<'a> {
    etcd: &'a Etcd,
    before: Metrics,
    began: Duration,
}

impl<'a> Logins<'a> {
    fn at(etcd: &'a Etcd) -> Self {
        Self {
            etcd,
            before: Metrics::of(etcd),
            began: boot_clock(),
        }
    }

    fn count(&self) -> f64 {
        Metrics::of(self.etcd).grown(
            &self.before,
            "grpc_server_handled_total",
            &["grpc_method=\"Authenticate\""],
        )
    }

    /// "never more than one login in 2 s per dlock": for so many dlocks, and one more for each, which the moment of the
    /// beginning may hit.
    #[track_caller]
    fn are_rare(&self, dlocks: f64) {
        let count = self.count();
        let allowed = dlocks * (since(self.began).as_secs_f64() / 2.0 + 1.0);
        assert!(count <= allowed, "{count} logins, {allowed:.1} allowed");
    }
}

/// "a holder whose file is right again keeps its lock"
#[test]
fn a_holder_and_a_waiter_go_on_when_the_password_file_is_right_again() {
    let etcd = with_passwords();
    let home = Scratch::new();
    let file = home.write_private("password", "first\n");
    let holder = hold_open(as_team(&etcd, &file), &["--ttl=20"], "rotated");
    let waiter = as_team(&etcd, &file)
        .run(["--ttl=20", "rotated", "echo", "ran"])
        .start();
    etcd.queue_of("rotated", 2);
    etcd.set_password("team", "second");
    let logins = Logins::at(&etcd);
    eventually(LIMIT, "a login is refused", || logins.count() >= 1.0);
    let_pass(Duration::from_secs(3));
    logins.are_rare(2.0);
    home.write_private("password", "second\n");
    // Longer than the lock lives without a proof.
    let_pass(Duration::from_secs(18));
    logins.are_rare(2.0);
    is_followed(holder, waiter, &etcd);
}

/// "end a waiter with 125 when its place is surely gone"
#[test]
fn a_waiter_whose_password_stays_wrong_ends_when_its_entry_is_gone() {
    let etcd = with_passwords();
    let home = Scratch::new();
    let file = home.write_private("password", "first\n");
    let mut holder = hold_open(as_root(&etcd), &["--ttl=30"], "refused");
    let mut waiter = as_team(&etcd, &file)
        .run(["--ttl=5", "refused", "echo", "ran"])
        .start();
    etcd.queue_of("refused", 2);
    etcd.set_password("team", "second");
    let logins = Logins::at(&etcd);
    let began = boot_clock();
    waiter.wait().expect_code(125).expect_stdout("").expect_stderr(&[
        "cannot lock 'refused': the entry in the queue has expired: cannot log in as 'team': authentication failed",
        "\nhint: check --user and --password-file",
    ]);
    assert!(since(began) >= Duration::from_secs(5), "{:?}", since(began));
    // The new password makes every token invalid: the holder logs in again, too.
    logins.are_rare(2.0);
    etcd.queue_of("refused", 1);
    holder.let_go().expect_silent();
    etcd.assert_empty();
}

/// "The last cause (authentication failed, ...) and the time since the last proof belong in that line, the report, and
/// JSON"
#[test]
fn a_loss_names_the_refused_login_and_the_time_since_the_last_proof() {
    let etcd = with_passwords();
    let home = Scratch::new();
    let file = home.write_private("password", "first\n");
    let report = home.file("report.json");
    let dlock = as_team(&etcd, &file).args(["--log-format=json"]);
    let option = format!("--report={report}");
    // etcd computes a hash for each login, which a busy machine does not finish in the 0.6 s of a TTL of 5 s.
    let mut holder = hold_open(dlock, &["--ttl=16", &option], "unproven");
    etcd.set_password("team", "second");
    let lost = holder.wait().expect_code(121);
    let events = lost
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect(line));
    let events: Vec<Value> = events.collect();
    let lost = events.iter().find(|event| event["event"] == "lost");
    let fields = &lost.expect("a loss")["fields"];
    let failure = fields["failure"].as_str().unwrap_or_default();
    let refusal = format!(
        "'{}': cannot log in as 'team': authentication failed",
        etcd.endpoint()
    );
    assert!(failure.starts_with(&refusal), "{fields}");
    // A TTL of 16 s leaves 10.7 s until the command is stopped.
    let unproven = fields["unproven_seconds"].as_f64();
    assert!(
        unproven.is_some_and(|unproven| unproven >= 10.0),
        "{fields}"
    );
    let report = fs::read_to_string(report).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(
        reason.starts_with("no proof from etcd for ") && reason.contains(&refusal),
        "{report}"
    );
}

#[test]
fn a_wrong_password_is_tried_once_at_the_start() {
    let etcd = with_passwords();
    let home = Scratch::new();
    let file = home.write_private("password", "wrong\n");
    let logins = Logins::at(&etcd);
    as_team(&etcd, &file)
        .run(["job", "true"])
        .finish()
        .expect_code(125)
        .expect_stderr(&["cannot log in as 'team'", "\nhint: check --user"]);
    let count = logins.count();
    assert!((count - 1.0).abs() < 0.5, "{count} logins");
}

/// A pipe is empty after it was read: what it had is the password to the end.
#[test]
fn a_password_from_a_pipe_is_read_once() {
    let etcd = Etcd::start_with(&["--auth-token-ttl=3"]);
    etcd.add_user("team", "first", "dlock/", "dlock0");
    etcd.enable_auth();
    let line = format!(
        "'{}' --user=team --password-file <(echo first) run --ttl=10 piped sh -c 'sleep 12; echo done'",
        dlock_program()
    );
    let outcome = Dlock::program(["bash", "-c", &line])
        .env("DLOCK_ENDPOINTS", etcd.endpoint())
        .finish();
    outcome
        .expect_code(0)
        .expect_silent()
        .expect_stdout("done\n");
}

/// "(and certificates: every credential in a file)": a key that is replaced before its certificate is.
#[test]
fn a_holder_continues_when_its_certificate_files_match_again() {
    let made = Certificates::new();
    let etcd = Etcd::start_mutual_tls(&made);
    let link = Link::to(etcd.port());
    let key = made.file("mine.key");
    let copy = |name: &str| fs::copy(made.file(name), &key).expect("our own directory");
    copy("client.key");
    let dlock = Dlock::at(&link.endpoint().replace("http:", "https:"))
        .args(["--cacert", &made.file("ca.pem")])
        .args(["--cert", &made.file("client.pem"), "--key", &key]);
    let mut holder = hold_open(dlock, &["--ttl=20"], "renewed");
    copy("server.key");
    link.reset(Direction::ToClient);
    let_pass(Duration::from_secs(3));
    assert!(!holder.is_over());
    copy("client.key");
    let_pass(Duration::from_secs(18));
    holder.let_go().expect_silent();
    etcd.assert_empty();
}
