//! TLS, users and permissions: how dlock proves who it is, and that its secrets stay secret.
//! It must not know what a refusal looks like beyond its exit code; `cli.rs` does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Certificates, Dlock, Etcd, Link, let_pass};

/// A server with the least that dlock needs: a user whose only role is readwrite on the prefix.
fn with_passwords(flags: &[&str]) -> Etcd {
    let etcd = Etcd::start_with(flags);
    etcd.add_user("team", "pass:word", "dlock/", "dlock0");
    etcd.enable_auth();
    etcd
}

/// "TLS (server only, ...)"
#[test]
fn tls_with_a_server_certificate_works() {
    let made = Certificates::new();
    let (ca, cert, key) = (
        made.file("ca.pem"),
        made.file("server.pem"),
        made.file("server.key"),
    );
    let etcd = Etcd::start_tls(
        &["--cert-file", &cert, "--key-file", &key],
        &[format!("--cacert={ca}")],
    );
    Dlock::on(&etcd)
        .args(["--cacert", &ca])
        .run(["tls", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    for variable in ["DLOCK_CACERT", "ETCDCTL_CACERT"] {
        Dlock::on(&etcd)
            .env(variable, &ca)
            .run(["tls", "true"])
            .finish()
            .expect_code(0);
    }
    let by_name = etcd.endpoint().replace("127.0.0.1", "localhost");
    Dlock::at(&by_name)
        .args(["--cacert", &ca])
        .run(["tls", "true"])
        .finish()
        .expect_code(0);
    // An authority of nobody's knowledge is refused.
    Dlock::on(&etcd)
        .args(["--connect-timeout=3"])
        .run(["tls", "true"])
        .finish()
        .expect_code(125);
    etcd.assert_empty();
}

/// "(... and client certificate)", held for longer than the term.
#[test]
fn tls_with_a_client_certificate_works() {
    let made = Certificates::new();
    let (ca, cert, key) = (
        made.file("ca.pem"),
        made.file("server.pem"),
        made.file("server.key"),
    );
    let (mine, my_key) = (made.file("client.pem"), made.file("client.key"));
    let etcd = Etcd::start_tls(
        &[
            "--cert-file",
            &cert,
            "--key-file",
            &key,
            "--trusted-ca-file",
            &ca,
            "--client-cert-auth",
        ],
        &[
            format!("--cacert={ca}"),
            format!("--cert={mine}"),
            format!("--key={my_key}"),
        ],
    );
    let outcome = Dlock::on(&etcd)
        .args(["--cacert", &ca, "--cert", &mine, "--key", &my_key])
        .run(["--ttl=5", "tls", "sh", "-c", "sleep 7; echo done"])
        .finish();
    outcome
        .expect_code(0)
        .expect_silent()
        .expect_stdout("done\n");
    let by_variable = Dlock::on(&etcd)
        .env("ETCDCTL_CACERT", &ca)
        .env("ETCDCTL_CERT", &mine)
        .env("ETCDCTL_KEY", &my_key);
    by_variable.run(["tls", "true"]).finish().expect_code(0);
    // Without one's own certificate the server hangs up.
    let without = Dlock::on(&etcd).args(["--connect-timeout=3", "--cacert", &ca]);
    without.run(["tls", "true"]).finish().expect_code(125);
    etcd.assert_empty();
}

/// "user and password (file or variable)"; "Least privilege works: a role with readwrite on the prefix and nothing else."
#[test]
fn a_user_with_the_least_role_can_do_everything() {
    let etcd = with_passwords(&[]);
    let dlock = Dlock::on(&etcd);
    let file = dlock.home().write_private("password", "pass:word\n");
    dlock
        .args(["--user=team", "--password-file", &file])
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    let dlock = Dlock::on(&etcd);
    let file = dlock.home().write_private("password", "pass:word");
    dlock
        .env("DLOCK_USER", "team")
        .env("DLOCK_PASSWORD_FILE", &file)
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    let etcdctls = Dlock::on(&etcd)
        .env("ETCDCTL_USER", "team")
        .env("ETCDCTL_PASSWORD", "pass:word");
    etcdctls
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    let both = || Dlock::on(&etcd).env("ETCDCTL_USER", "team:pass:word");
    both()
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();

    // Waiting, giving up, and being next.
    let mut holder = both().run(["job", "cat"]).stdin(Stdio::piped()).start();
    etcd.queue_of("job", 1);
    both().run(["-n", "job", "true"]).finish().expect_code(75);
    let mut waiter = both().run(["job", "echo", "ran"]).start();
    etcd.queue_of("job", 2);
    drop(holder.take_stdin());
    holder.wait().expect_code(0).expect_silent();
    waiter
        .wait()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("ran\n");
    etcd.assert_empty();
}

/// A password that others can read works, with a warning: ssh(1) has taught everybody to expect one.
#[test]
fn a_password_file_that_others_can_read_is_warned_about() {
    let etcd = with_passwords(&[]);
    let dlock = Dlock::on(&etcd);
    let file = dlock.home().write("open", "pass:word\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("our own file");
    let outcome = dlock
        .args(["--user=team", "--password-file", &file])
        .run(["job", "true"])
        .finish();
    outcome.expect_code(0).expect_stderr(&["dlock: ", &file]);
}

/// "Re-authenticate when told "invalid auth token"": the token ends during a long hold and a long wait.
#[test]
fn a_token_that_expires_is_replaced() {
    let etcd = with_passwords(&["--auth-token-ttl=3"]);
    let dlock = || Dlock::on(&etcd).env("ETCDCTL_USER", "team:pass:word");
    let mut holder = dlock()
        .run(["--ttl=30", "long", "sh", "-c", "echo on; cat"])
        .stdin(Stdio::piped())
        .start();
    holder.says("on\n");
    let mut short = dlock()
        .run(["--ttl=5", "short", "sh", "-c", "sleep 10; echo done"])
        .start();
    let mut waiter = dlock().run(["long", "echo", "ran"]).start();
    etcd.queue_of("long", 2);
    let_pass(Duration::from_secs(10));
    short
        .wait()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("done\n");
    drop(holder.take_stdin());
    holder.wait().expect_code(0).expect_silent();
    waiter
        .wait()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("ran\n");
    etcd.assert_empty();
}

/// "restart of a member": its tokens, which it kept in memory, are gone.
#[test]
fn a_restart_that_forgets_tokens_is_survived() {
    let etcd = with_passwords(&[]);
    let dlock = Dlock::on(&etcd).env("ETCDCTL_USER", "team:pass:word");
    let mut holder = dlock
        .run(["--ttl=10", "restart", "cat"])
        .stdin(Stdio::piped())
        .start();
    etcd.queue_of("restart", 1);
    etcd.restart();
    let_pass(Duration::from_secs(12));
    drop(holder.take_stdin());
    holder.wait().expect_code(0);
    etcd.assert_empty();
}

/// "Passwords never need argv": it is nowhere to be read, neither in the process list, in etcd, nor in the messages.
#[test]
fn the_password_shows_nowhere() {
    let etcd = with_passwords(&[]);
    // A relay that breaks makes it talk about its connection.
    let link = Link::to(etcd.port());
    let dlock = Dlock::at(&link.endpoint());
    let file = dlock.home().write_private("password", "pass:word");
    let mut holder = dlock
        .args(["-v", "--user=team", "--password-file", &file])
        .run(["--ttl=5", "secret", "cat"])
        .stdin(Stdio::piped())
        .start();
    let place = etcd.queue_of("secret", 1).remove(0);
    assert!(!place.value.contains("pass:word"));
    for process in holder.everything() {
        let arguments = fs::read(format!("/proc/{}/cmdline", process.0)).unwrap_or_default();
        let environment = fs::read(format!("/proc/{}/environ", process.0)).unwrap_or_default();
        for text in [arguments, environment] {
            assert!(
                !String::from_utf8_lossy(&text).contains("pass:word"),
                "{}",
                process.name()
            );
        }
    }
    link.refuse();
    let outcome = holder.wait().expect_code(121);
    assert!(!outcome.stderr.contains("pass:word"), "{}", outcome.stderr);
}
