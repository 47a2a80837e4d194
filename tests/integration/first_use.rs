//! The first five minutes: every mistake of a new user, and every message of dlock to it.
//! It must not know why dlock prints a message. The expected texts are those that a user would like to read.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::{
    Certificates, Dlock, Etcd, Terminal, dlock_program, hold, in_namespaces, may_trace,
};

/// No process listens on port 1.
const NOBODY: &str = "http://127.0.0.1:1";

/// A static dlock has the words of musl for an error of the system; here are those of glibc.
const MUSL: [(&str, &str); 2] = [
    ("No file descriptors available", "Too many open files"),
    ("Name does not resolve", "Name or service not known"),
];

/// dlock ends with this status, and prints exactly this on stderr and nothing on stdout. `replaced` lists the parts that
/// differ from run to run.
#[track_caller]
fn says(dlock: Dlock, code: i32, replaced: &[(&str, &str)], wanted: &str) {
    let outcome = dlock.finish();
    let said = MUSL
        .iter()
        .chain(replaced)
        .fold(outcome.stderr.clone(), |said, (from, to)| {
            said.replace(from, to)
        });
    assert_eq!(said, wanted, "{outcome:?}");
    outcome.expect_code(code).expect_stdout("");
}

/// A run that does not start its command, for a reason in etcd.
#[track_caller]
fn fails(endpoint: &str, variables: &[(&str, &str)], wanted: &str) {
    let dlock = without_etcd(endpoint, variables);
    says(dlock, 125, &[(endpoint, "ETCD")], wanted);
}

/// The same where the first event is random: the end of the connection, or the server's message.
#[track_caller]
fn fails_somehow(endpoint: &str, variables: &[(&str, &str)], hint: &str) {
    let outcome = without_etcd(endpoint, variables).finish();
    let said = outcome.stderr.replace(endpoint, "ETCD");
    let begins = "dlock: cannot lock 'job': no endpoint answered within 2s: 'ETCD': ";
    let ends = format!("\nhint: {hint}\n");
    assert!(
        said.starts_with(begins) && said.ends_with(&ends) && said.lines().count() == 2,
        "{outcome:?}"
    );
    outcome.expect_code(125).expect_stdout("");
}

fn without_etcd(endpoint: &str, variables: &[(&str, &str)]) -> Dlock {
    let dlock = Dlock::at(endpoint)
        .args(["--connect-timeout=2s"])
        .run(["job", "true"]);
    variables
        .iter()
        .fold(dlock, |dlock, (name, value)| dlock.env(name, value))
}

/// "`dlock` without arguments is a short, friendly help with examples", of etcd and of a local lock.
#[test]
fn a_call_without_arguments_shows_the_welcome() {
    let wanted = include_str!("../../src/cli/welcome.txt");
    assert_eq!(wanted.matches("\n  dlock ").count(), 4);
    assert!(wanted.lines().count() < 12 && wanted.lines().all(|line| line.len() <= 120));
    says(Dlock::nowhere(), 125, &[], wanted);
}

#[test]
fn a_missing_etcd_is_explained() {
    fails(
        NOBODY,
        &[],
        "dlock: cannot lock 'job': no endpoint answered within 2s: 'ETCD': Connection refused (os error 111)\n\
         hint: is etcd running there? DLOCK_ENDPOINTS names this endpoint\n",
    );
    fails(
        "http://no-such-host.invalid:2379",
        &[],
        "dlock: cannot lock 'job': no endpoint answered within 2s: 'ETCD': failed to lookup address information: Name or service not known\n\
         hint: check the host name in --endpoints\n",
    );
}

/// "etcd has 3s for its first answer, unless --connect-timeout is set" (dlock-run(1), --no-wait).
#[test]
fn a_run_that_does_not_wait_gives_up_early() {
    says(
        Dlock::at(NOBODY).run(["-n", "job", "true"]),
        125,
        &[],
        "dlock: cannot lock 'job': no endpoint answered within 3s: 'http://127.0.0.1:1': Connection refused (os error 111)\n\
         hint: is etcd running there? DLOCK_ENDPOINTS names this endpoint\n",
    );
}

/// "Where it reports waiting, it also reports, after a second, that etcd has not answered yet ... Elsewhere it is silent
/// until then" (dlock-run(1)): the tests above are elsewhere.
#[test]
fn a_log_has_an_early_notice() {
    let run = || Dlock::at(NOBODY);
    for dlock in [run().args(["-v"]), run().env("CI", "true")] {
        says(
            dlock.run(["-n", "job", "true"]),
            125,
            &[],
            "dlock: no answer from etcd yet, trying for 2s more: 'http://127.0.0.1:1': Connection refused (os error 111)\n\
             dlock: cannot lock 'job': no endpoint answered within 3s: 'http://127.0.0.1:1': Connection refused (os error 111)\n\
             hint: is etcd running there? DLOCK_ENDPOINTS names this endpoint\n",
        );
    }
}

/// The same on a terminal.
#[test]
fn a_terminal_shows_an_early_notice() {
    let mut terminal = Terminal::open(NOBODY);
    terminal.line(&format!(
        "{} --connect-timeout 5s run job true",
        dlock_program()
    ));
    terminal.await_text("dlock: no answer from etcd yet, trying for 4s more: 'http://127.0.0.1:1': Connection refused (os error 111)");
    terminal.await_text("dlock: cannot lock 'job': no endpoint answered within 5s");
}

/// The port of a web server, for example.
#[test]
fn the_port_of_another_server_is_explained() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("a bound socket"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    fails_somehow(
        &endpoint,
        &[],
        "if that is etcd, it speaks TLS there: use https:// with --cacert; else it is another server's port",
    );
}

#[test]
fn https_to_an_http_port_and_the_reverse_are_explained() {
    let made = Certificates::new();
    let plain = Etcd::shared().endpoint().replace("http:", "https:");
    fails_somehow(
        &plain,
        &[("DLOCK_CACERT", &made.file("ca.pem"))],
        "the server does not speak TLS there: use http:// and no --cacert, --cert or --key",
    );
    let etcd = Etcd::start_tls(&made);
    fails_somehow(
        &etcd.endpoint().replace("https:", "http:"),
        &[],
        "if that is etcd, it speaks TLS there: use https:// with --cacert; else it is another server's port",
    );
}

#[test]
fn wrong_certificates_are_explained() {
    const UNKNOWN: &str = "dlock: cannot lock 'job': no endpoint answered within 2s: 'ETCD': invalid peer certificate: UnknownIssuer\n\
         hint: give the certificate authority that signed the server's certificate with --cacert\n";
    let (made, strangers) = (Certificates::new(), Certificates::new());
    let etcd = Etcd::start_tls(&made);
    fails(&etcd.endpoint(), &[], UNKNOWN);
    let outcome = Dlock::on(&etcd)
        .args([
            "--connect-timeout=2s",
            "--cacert",
            &strangers.file("ca.pem"),
        ])
        .run(["job", "true"])
        .finish();
    // Both authorities have the same name, so the message depends on which is tried.
    outcome.expect_code(125).expect_stderr(&[
        "'job': no endpoint answered within 2s: '",
        "': invalid peer certificate: ",
        "\nhint: give the certificate authority that signed the server's certificate with --cacert\n",
    ]);
    fails(
        &etcd.endpoint(),
        &[("DLOCK_CACERT", "/no/such/ca.pem")],
        "dlock: cannot read DLOCK_CACERT '/no/such/ca.pem': No such file or directory (os error 2)\n",
    );
    let etcd = Etcd::start_mutual_tls(&made);
    let mutual = &[("DLOCK_CACERT", &*made.file("ca.pem"))];
    let outcome = without_etcd(&etcd.endpoint(), mutual).finish();
    // The server reports it, or closes the connection: then the cause is only likely.
    outcome.expect_code(125).expect_stderr(&[
        "'job': no endpoint answered within 2s: '",
        "\nhint: the server ",
        " a client certificate: give --cert and --key\n",
    ]);
}

#[test]
fn wrong_users_and_permissions_are_explained() {
    let etcd = Etcd::start();
    etcd.add_user("elsewhere", "secret", "other/", "other0");
    etcd.enable_auth();
    let endpoint = &etcd.endpoint();
    fails(
        endpoint,
        &[],
        "dlock: cannot lock 'job': etcd at 'ETCD': user name is empty\n\
         hint: this etcd requires a user: give --user and --password-file\n",
    );
    fails(
        endpoint,
        &[("DLOCK_USER", "elsewhere")],
        "dlock: cannot use the user 'elsewhere' of DLOCK_USER: no password is given\n\
         hint: give it with --password-file or DLOCK_PASSWORD\n",
    );
    fails(
        endpoint,
        &[("DLOCK_USER", "elsewhere"), ("DLOCK_PASSWORD", "guess")],
        "dlock: cannot lock 'job': etcd at 'ETCD': cannot log in as 'elsewhere': authentication failed, invalid user ID or password\n\
         hint: check --user and --password-file, or DLOCK_USER and DLOCK_PASSWORD\n",
    );
    fails(
        endpoint,
        &[("DLOCK_USER", "elsewhere"), ("DLOCK_PASSWORD", "secret")],
        "dlock: cannot lock 'job': etcd at 'ETCD': permission denied\n\
         hint: the role of 'elsewhere' needs readwrite on the range ['dlock/', 'dlock0'): etcdctl role grant-permission ROLE readwrite --prefix dlock/\n",
    );
}

#[test]
fn misplaced_arguments_are_explained() {
    for (words, code, wanted) in [
        (
            &["job", "true"][..],
            125,
            "dlock: unrecognized subcommand 'job'\n\
             hint: to run a command under a lock: dlock run NAME -- COMMAND [ARG...]\n",
        ),
        (
            &["run"],
            125,
            "dlock: missing argument: NAME\n\
             hint: dlock run [OPTIONS] NAME [--] COMMAND [ARG]...\n",
        ),
        (
            &["--ttl", "5", "run", "job", "true"],
            125,
            "dlock: unexpected argument '--ttl' found\n\
             hint: write it after the sub-command: dlock run --ttl\n",
        ),
        (
            &["stauts", "job"],
            125,
            "dlock: unrecognized subcommand 'stauts'\n\
             hint: did you mean 'status'?\n",
        ),
        (
            &["run", "job"],
            125,
            "dlock: no command to run\n\
             hint: dlock run NAME -- COMMAND [ARG...], or dlock run NAME -c 'SHELL STRING'\n",
        ),
        (
            &["run", "--no-wiat", "job", "true"],
            125,
            "dlock: unexpected argument '--no-wiat' found\n\
             hint: did you mean '--no-wait'?\n",
        ),
        (
            &["run", "--wait", "5 minuts", "job", "true"],
            125,
            "dlock: cannot use --wait '5 minuts': expected a duration such as 30s, 1m30s, 500ms or a number of seconds\n",
        ),
        (
            &["run", "", "true"],
            125,
            "dlock: cannot use the lock name \"\": a lock's name must not be empty\n",
        ),
        (
            &["run", "job", "no-such-program"],
            127,
            "dlock: cannot run 'no-such-program': command not found\n",
        ),
        (
            &["run", "job", "/etc/passwd"],
            126,
            "dlock: cannot run '/etc/passwd': Permission denied (os error 13)\n",
        ),
        (
            &["--endpoints", "localhost:port", "run", "job", "true"],
            125,
            "dlock: cannot use --endpoints: endpoint 'localhost:port': 'port' is not a port: expected 1 to 65535\n",
        ),
    ] {
        says(Dlock::at(NOBODY).args(words), code, &[], wanted);
    }
}

/// A name is not declared anywhere: a misspelt one is another lock. `dlock status` shows that.
#[test]
fn a_misspelt_lock_name_is_shown_as_free() {
    let etcd = Etcd::start();
    let _holder = hold(Dlock::on(&etcd), &[], "deploy");
    let look = |words: &[&str]| {
        Dlock::on(&etcd)
            .args(words)
            .finish()
            .expect_code(0)
            .expect_silent()
    };
    look(&["status", "depoly"]).expect_stdout("depoly: free\n");
    assert!(look(&["ls", "dep"]).stdout.contains("\ndeploy "));
}

#[test]
fn a_busy_lock_is_explained() {
    let etcd = Etcd::start();
    let holder = hold(
        Dlock::on(&etcd).env("USER", "alice"),
        &["--note=release 7"],
        "deploy",
    );
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let since = etcd.queue("deploy")[0].value.clone();
    let since = since
        .split("\"since\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let pid = format!("pid {}", holder.process().0);
    let host = format!("@{host} ");
    let replaced = [
        (&*host, "@HOST "),
        (&*pid, "pid PID"),
        (since.expect("a time"), "TIME"),
    ];
    let busy = |words: &[&str]| Dlock::on(&etcd).run([words, &["deploy", "true"]].concat());
    says(
        busy(&["-n"]),
        75,
        &replaced,
        "dlock: the lock 'deploy' is held by alice@HOST pid PID, sh, since TIME, note \"release 7\"\n",
    );
    says(
        busy(&["-w", "1"]),
        75,
        &replaced,
        "dlock: the lock 'deploy' is still held by alice@HOST pid PID, sh, since TIME, note \"release 7\"\n",
    );
    says(busy(&["-n", "-E", "0"]), 0, &replaced, "");
}

/// A run that does not start its command, for a reason on this machine.
#[track_caller]
fn fails_here(dlock: Dlock, words: &[&str], code: i32, wanted: &str) {
    let state = dlock.home().file("state");
    let home = dlock
        .home()
        .path()
        .to_str()
        .expect("a plain path")
        .to_owned();
    let dlock = dlock.env("DLOCK_LOCAL", state).run(words);
    says(dlock, code, &[(&home, "HOME")], wanted);
}

#[test]
fn a_shell_string_as_a_command_is_explained() {
    for string in [
        "sleep 1; echo done",
        "cmd|less",
        "./job.sh --fast",
        "$HOME/x",
    ] {
        let wanted = format!(
            "dlock: cannot run '{string}': command not found\n\
             hint: dlock takes it for the name of a program: dlock run NAME -c STRING runs a shell command\n"
        );
        fails_here(Dlock::nowhere(), &["job", string], 127, &wanted);
    }
    let wanted = "dlock: cannot run 'no-such-program': command not found\n";
    fails_here(Dlock::nowhere(), &["job", "no-such-program"], 127, wanted);
}

#[test]
fn a_script_without_its_interpreter_is_explained() {
    for (script, wanted) in [
        (
            "#! /no/such/shell -e\n",
            "dlock: cannot run 'HOME/script': its interpreter '/no/such/shell': No such file or directory (os error 2)\n",
        ),
        (
            "#!/bin/sh\r\ntrue\r\n",
            "dlock: cannot run 'HOME/script': its interpreter '/bin/sh\\r': No such file or directory (os error 2)\n\
             hint: the lines of the file end as on Windows (CR LF): sed -i 's/\\r$//' 'HOME/script'\n",
        ),
        (
            "#!/etc/passwd",
            "dlock: cannot run 'HOME/script': its interpreter '/etc/passwd': Permission denied (os error 13)\n",
        ),
    ] {
        let dlock = Dlock::nowhere();
        let file = dlock.home().write("script", script);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("our own file");
        fails_here(dlock, &["job", &file], 126, wanted);
    }
}

/// "`dlock help`" is the help, as in other tools, and an option in the wrong case is named.
#[test]
fn help_and_a_wrong_case_are_understood() {
    for (words, as_option) in [
        (&["help"][..], &["--help"][..]),
        (&["help", "run"], &["run", "--help"]),
    ] {
        let wanted = Dlock::nowhere().args(as_option).finish().expect_code(0);
        let outcome = Dlock::nowhere().args(words).finish().expect_code(0);
        outcome.expect_stdout(&wanted.stdout).expect_silent();
    }
    let wrong = Dlock::nowhere().run(["-W", "5", "job", "true"]);
    says(
        wrong,
        125,
        &[],
        "dlock: unexpected argument '-W' found\nhint: did you mean '-w'?\n",
    );
}

#[test]
fn a_limit_or_a_refusal_of_this_machine_is_explained() {
    let words = ["job", "true"];
    fails_here(
        Dlock::nowhere().after("ulimit -n 6"),
        &words,
        125,
        "dlock: cannot start the guard process: Too many open files (os error 24)\n\
         hint: raise the limit on open files: ulimit -n, LimitNOFILE in systemd, --ulimit nofile in docker\n",
    );
    if may_trace().is_none() {
        return;
    }
    for call in ["pidfd_open", "pidfd_send_signal"] {
        let inject = format!("inject={call}:error=EPERM");
        let refused = Dlock::nowhere().under(["strace", "-Dfqq", "-o", "/dev/null", "-e", &inject]);
        let wanted = format!(
            "dlock: cannot start the guard process: {call}: Operation not permitted (os error 1)\n\
             hint: dlock needs Linux 5.4 or later; in a container, an old runtime or a seccomp filter may refuse this system call: update it, or try --security-opt seccomp=unconfined\n"
        );
        fails_here(refused, &words, 125, &wanted);
    }
    let bare = "mount -t tmpfs tmpfs /dev && exec \"$@\"";
    let Some(alone) = in_namespaces(&["--mount"]) else {
        return;
    };
    fails_here(
        Dlock::nowhere()
            .under(alone)
            .under(["sh", "-c", bare, "sh"]),
        &words,
        125,
        "dlock: cannot start the guard process: cannot open /dev/null: No such file or directory (os error 2)\n\
         hint: dlock needs it, also in a chroot: mknod -m 666 /dev/null c 1 3\n",
    );
}

/// A name server on the machine of the test that takes questions and never answers; `then` runs the words in `sys.argv`.
fn silent_name_server(then: &str) -> String {
    format!(
        r#"
import fcntl, os, socket, struct, subprocess, sys
questions = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(questions, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
questions.bind(("127.0.0.1", 53))
{then}
"#
    )
}

/// dlock on a machine whose only name server is this one; `None` where a test may not have a network of its own.
fn asks_a_name_server(server: &str) -> Option<Dlock> {
    let dlock = without_etcd("http://etcd.example.org:2379", &[]);
    let file = dlock.home().write("resolv.conf", "nameserver 127.0.0.1\n");
    let resolves = dlock.home().write("nsswitch.conf", "hosts: dns\n");
    let bind = format!(
        "mount --bind {file} /etc/resolv.conf && mount --bind {resolves} /etc/nsswitch.conf && exec \"$@\""
    );
    let alone = in_namespaces(&["--mount", "--net"])?;
    let python = ["/usr/bin/python3", "-c", server];
    let dlock = dlock.under(alone).under(["sh", "-c", &bind, "sh"]);
    Some(dlock.under(python))
}

#[test]
fn a_silent_name_server_is_explained() {
    let then = "questions.set_inheritable(True)\nos.execvp(sys.argv[1], sys.argv[1:])";
    let Some(dlock) = asks_a_name_server(&silent_name_server(then)) else {
        return;
    };
    dlock.finish().expect_code(125).expect_stderr(&[
        "dlock: cannot lock 'job': no endpoint answered within 2s: 'http://etcd.example.org:2379': the name was not looked up within ",
        "\nhint: check the name server in /etc/resolv.conf, or give an IP address\n",
    ]);
}

/// "dlock does not look up SRV records in DNS" (dlock(1)): the name server sees questions about the address alone.
#[test]
fn the_name_server_is_asked_for_addresses_alone() {
    let then = r#"
ended = subprocess.run(sys.argv[1:]).returncode
questions.setblocking(False)
try:
    while True:
        question, labels = questions.recv(512)[12:], []
        while question[0]:
            labels.append(question[1:question[0] + 1].decode())
            question = question[question[0] + 1:]
        print(".".join(labels), int.from_bytes(question[1:3], "big"))
except BlockingIOError:
    sys.exit(ended)
"#;
    let Some(dlock) = asks_a_name_server(&silent_name_server(then)) else {
        return;
    };
    let asked = dlock.finish().expect_code(125).stdout;
    // The types A and AAAA (RFC 1035, RFC 3596); SRV would be 33.
    let addresses = ["etcd.example.org 1", "etcd.example.org 28"];
    assert!(asked.contains(addresses[0]), "{asked:?}");
    for question in asked.lines() {
        assert!(addresses.contains(&question), "{question}");
    }
}
