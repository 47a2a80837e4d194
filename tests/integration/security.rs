//! TLS, users and permissions: how dlock authenticates, and that its secrets stay secret.
//! It must not know the form of a refusal beyond its exit code; `cli.rs` does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::StatVfsMountFlags;

use crate::support::{
    Certificates, Dlock, Etcd, Link, Process, as_root, dlock_program, hold_open, is_followed,
    let_pass, not_run,
};

/// A server with the minimum that dlock needs: a user whose only role is readwrite on the prefix.
fn with_passwords(flags: &[&str]) -> Etcd {
    let etcd = Etcd::start_with(flags);
    etcd.add_user("team", "pass:word", "dlock/", "dlock0");
    etcd.enable_auth();
    etcd
}

/// dlock as that user.
fn as_team(etcd: &Etcd) -> Dlock {
    Dlock::on(etcd).env("ETCDCTL_USER", "team:pass:word")
}

/// "TLS (server only, ...)"
#[test]
fn tls_with_a_server_certificate_works() {
    let made = Certificates::new();
    let ca = made.file("ca.pem");
    let etcd = Etcd::start_tls(&made);
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
    // An unknown authority is refused.
    Dlock::on(&etcd)
        .args(["--connect-timeout=3"])
        .run(["tls", "true"])
        .finish()
        .expect_code(125);
    etcd.assert_empty();
}

/// "(... and client certificate)", held for longer than the TTL.
#[test]
fn tls_with_a_client_certificate_works() {
    let made = Certificates::new();
    let (ca, mine, my_key) = (
        made.file("ca.pem"),
        made.file("client.pem"),
        made.file("client.key"),
    );
    let etcd = Etcd::start_mutual_tls(&made);
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
    // Without a client certificate the server closes the connection.
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
    as_team(&etcd)
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();

    // Waiting, giving up, and being next.
    let holder = hold_open(as_team(&etcd), &[], "job");
    as_team(&etcd)
        .run(["-n", "job", "true"])
        .finish()
        .expect_code(75);
    let waiter = as_team(&etcd).run(["job", "echo", "ran"]).start();
    etcd.queue_of("job", 2);
    is_followed(holder, waiter, &etcd);
}

/// "dlock warns, and goes on": each file that other users can read or change, and a password on the command line.
#[test]
fn exposed_secrets_are_warned_about() {
    let made = Certificates::new();
    let etcd = Etcd::start_mutual_tls(&made);
    etcd.add_user("team", "pass:word", "dlock/", "dlock0");
    etcd.enable_auth();
    let [ca, mine, my_key] = ["ca.pem", "client.pem", "client.key"].map(|name| made.file(name));
    let tls = ["--cacert", &ca, "--cert", &mine, "--key", &my_key];
    let chmod = |file: &str, mode| {
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).expect("our own file");
    };
    let safe = Dlock::on(&etcd);
    let file = safe.home().write_private("password", "pass:word\n");
    chmod(&file, 0o640);
    let by_file = ["--user=team", "--password-file", &file];
    let safe = safe.args(tls).args(by_file);
    safe.run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();

    let exposed = Dlock::on(&etcd);
    let file = exposed.home().write("password", "pass:word\n");
    let by_file = ["--user=team", "--password-file", &file];
    chmod(&file, 0o644);
    chmod(&ca, 0o666);
    chmod(&my_key, 0o644);
    let (words, read) = (
        exposed.args(tls).args(by_file),
        "dlock: every user can read the ",
    );
    words
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_stderr(&[
            &format!("dlock: other users can change the CA file '{ca}'"),
            &format!("{read}private key '{my_key}'"),
            &format!("{read}password file '{file}'"),
        ]);
    chmod(&ca, 0o644);
    chmod(&my_key, 0o600);
    let shown = Dlock::on(&etcd).args(tls).args(["--user=team:pass:word"]);
    let outcome = shown.run(["job", "true"]).finish().expect_code(0);
    assert!(!outcome.stderr.contains("pass:word"), "{outcome:?}");
    outcome.expect_stderr(&["dlock: every user can read the password of --user"]);
}

/// "Re-authenticate when told "invalid auth token"": the token ends during a long hold and a long wait.
#[test]
fn a_token_that_expires_is_replaced() {
    let etcd = with_passwords(&["--auth-token-ttl=3"]);
    let holder = hold_open(as_team(&etcd), &["--ttl=30"], "long");
    let mut short = as_team(&etcd)
        .run(["--ttl=5", "short", "sh", "-c", "sleep 10; echo done"])
        .start();
    let waiter = as_team(&etcd).run(["long", "echo", "ran"]).start();
    etcd.queue_of("long", 2);
    let_pass(Duration::from_secs(10));
    short
        .wait()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("done\n");
    is_followed(holder, waiter, &etcd);
}

/// "restart of a member": its tokens, which it kept in memory, are gone.
#[test]
fn a_restart_that_forgets_tokens_is_survived() {
    let etcd = with_passwords(&[]);
    let mut holder = hold_open(as_team(&etcd), &["--ttl=10"], "restart");
    etcd.restart();
    let_pass(Duration::from_secs(12));
    holder.let_go();
    etcd.assert_empty();
}

/// "Passwords never need argv": it cannot be read anywhere, neither in the process list, nor in etcd, nor in the
/// messages.
#[test]
fn the_password_appears_nowhere() {
    let etcd = with_passwords(&[]);
    // A broken connection makes it print messages about it.
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

/// "dlock erases a password from its own environment": a command could read that of its parent's parent.
#[test]
fn no_process_shows_a_password_in_its_environment() {
    let etcd = with_passwords(&[]);
    for (user, password) in [("team:pass:word", ""), ("team", "pass:word")] {
        let dlock = Dlock::on(&etcd)
            .env("DLOCK_USER", user)
            .env("ETCDCTL_PASSWORD", password);
        let mut holder = hold_open(dlock, &[], "job");
        let everything = holder.everything();
        assert!(everything.len() > 2, "dlock, its guard, and the command");
        for process in everything {
            let shown = fs::read(format!("/proc/{}/environ", process.0)).unwrap_or_default();
            let shown = String::from_utf8_lossy(&shown);
            assert!(shown.contains("DLOCK_USER=team\0"), "{}", process.name());
            assert!(!shown.contains(":word"), "{}", process.name());
        }
        holder.let_go().expect_silent();
    }
}

/// "No core is dumped of a dlock that has a password or a private key": but the command has its caller's limit.
#[test]
fn a_dlock_with_a_password_dumps_no_core() {
    let limit_of = |process: Process| {
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.0)).expect("it runs");
        let line = limits
            .lines()
            .find(|it| it.starts_with("Max core file size"));
        let soft = line.and_then(|line| line.split_whitespace().nth(4));
        soft.expect("a limit").to_owned()
    };
    // As high as the limit may be, so that it differs, unless it is 0.
    let raise = "ulimit -S -c \"$(ulimit -H -c)\"";
    let limits = |dlock: Dlock| {
        let mut holder = hold_open(dlock.after(raise), &[], "limits");
        let own = [holder.process(), holder.guard()].map(limit_of);
        let commands: Vec<String> = holder.tree().into_iter().map(limit_of).collect();
        holder.let_go().expect_silent();
        assert!(!commands.is_empty());
        (own, commands)
    };
    let etcd = with_passwords(&[]);
    let (own, commands) = limits(as_team(&etcd));
    let (callers, without_password) = limits(Dlock::on(Etcd::shared()));
    assert_eq!(callers[0], callers[1]);
    for limit in commands.iter().chain(&without_password) {
        assert_eq!(*limit, callers[0]);
    }
    for limit in own {
        assert!(["0", "1"].contains(&&*limit), "{limit}");
    }
}

/// "The command gets neither variable, and of NAME:PASSWORD the name alone" (dlock(1))
#[test]
fn the_command_gets_no_password() {
    let dlock = Dlock::nowhere();
    let local = format!("--local={}", dlock.home().file("locks"));
    let dlock = dlock
        .env("DLOCK_PASSWORD", "XYZ")
        .env("ETCDCTL_PASSWORD", "XYZ")
        .env("DLOCK_USER", "ci:XYZ")
        .env("ETCDCTL_USER", "ctl:XYZ:XYZ");
    let outcome = dlock.run([&local, "job", "env"]).finish();
    let outcome = outcome.expect_code(0).expect_silent();
    let has = |entry| outcome.stdout.lines().any(|line| line == entry);
    assert!(has("DLOCK_USER=ci") && has("ETCDCTL_USER=ctl"));
    assert!(!outcome.stdout.contains("XYZ") && !outcome.stdout.contains("PASSWORD"));
}

/// "An executable with a setuid or setgid bit, or with file capabilities, refuses to run" (dlock-security(7)): without
/// a lock and a command.
#[test]
fn a_setuid_dlock_refuses_to_run() {
    let owner = Dlock::nowhere();
    let copy = owner.home().file("dlock");
    let flags = rustix::fs::statvfs(owner.home().path())
        .expect("our own directory")
        .f_flag;
    if as_root().is_none() {
        return;
    }
    if flags.contains(StatVfsMountFlags::NOSUID) {
        not_run::<()>("a temporary directory without the mount option nosuid");
        return;
    }
    fs::copy(dlock_program(), &copy).expect("our own directory");
    // Changing the owner removes the bit.
    chown(&copy, Some(65534), None).expect("root may");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).expect("root may");
    let outcome = Dlock::program([&copy])
        .run(["--local", "job", "echo", "ran"])
        .finish();
    outcome
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(&["more rights than its caller", "hint: "]);
}
