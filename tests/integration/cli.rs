//! Errors of usage, configuration and connection: which input is refused, with which message, and that nothing is left in
//! etcd.
//! It must not know what happens once a command runs.

use std::time::Duration;

use crate::support::{
    BlackHole, Certificates, Dlock, Etcd, LIMIT, Link, Outcome, boot_clock, eventually, hold,
    hold_open, in_namespaces, since, unique, without,
};

/// No process listens on port 1: a refusal here comes before any request to etcd.
const NOBODY: &str = "http://127.0.0.1:1";

/// dlock refuses: exit 125, nothing on stdout, and a message with these words.
#[track_caller]
fn refused(dlock: Dlock, words: &[&str]) -> Outcome {
    let outcome = dlock
        .finish()
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(words);
    assert!(outcome.stderr.starts_with("dlock: "), "{}", outcome.stderr);
    outcome
}

/// "125: dlock itself failed: usage, configuration, ..."
#[test]
fn bad_usage_is_refused() {
    for (line, word) in [
        (&["run"][..], "NAME"),
        (&["run", "job"], "COMMAND"),
        (
            &["run", "--no-such-option", "job", "true"],
            "--no-such-option",
        ),
        (&["run", "-c", "true", "job", "true"], "-c"),
        (&["run", "--signal", "NOSUCH", "job", "true"], "NOSUCH"),
        (&["run", "--leftovers", "maybe", "job", "true"], "maybe"),
        (&["run", "-n", "-w", "1", "job", "true"], "--wait"),
        (&["run", "-E", "256", "job", "true"], "256"),
        (&["run", "-E", "-1", "job", "true"], "-1"),
        (&["run", "-E", "x", "job", "true"], "x"),
        (&["no-such-command"], "no-such-command"),
        (&["-v"], "subcommand"),
    ] {
        let outcome = Dlock::at(NOBODY).args(line).finish();
        assert_eq!(outcome.code(), Some(125), "{line:?}: {outcome:?}");
        assert!(
            outcome.stderr.contains(word),
            "{line:?}: no {word:?} in {}",
            outcome.stderr
        );
        assert_eq!(outcome.stdout, "", "{line:?}");
    }
}

/// "Durations: `30s`, `1m30s`, a bare number is seconds. Default TTL 30 s, least 5 s."
#[test]
fn a_bad_duration_is_refused() {
    for value in [
        "4",
        "0",
        "4999ms",
        "-5",
        "abc",
        "",
        "5 parsecs",
        "99999999999999999999s",
        "1e400",
    ] {
        for option in ["--ttl", "--wait", "--kill-after"] {
            // Short times are fine for anything but the TTL.
            if option != "--ttl" && ["4", "0", "4999ms"].contains(&value) {
                continue;
            }
            let option = format!("{option}={value}");
            let outcome = Dlock::at(NOBODY).run([&option, "job", "true"]).finish();
            assert_eq!(outcome.code(), Some(125), "{option}: {outcome:?}");
            assert!(!outcome.stderr.is_empty(), "{option}");
        }
    }
}

/// "Settings that contradict each other are refused."
#[test]
fn a_kill_after_that_leaves_no_time_is_refused() {
    for (ttl, kill_after) in [("5", "4"), ("5", "5s"), ("10", "9"), ("30", "5m")] {
        refused(
            Dlock::at(NOBODY).run(["--ttl", ttl, "--kill-after", kill_after, "job", "true"]),
            &["kill-after"],
        );
    }
}

/// "1 to 255 bytes before encoding, no control characters"
#[test]
fn a_bad_name_is_refused() {
    for name in ["", "a\nb", "a\tb", "\u{7f}", &"x".repeat(256)] {
        refused(Dlock::at(NOBODY).run([name, "true"]), &["name"]);
    }
}

/// "Name encoding is injective and contains no `/`"
#[test]
fn any_other_name_works_and_is_encoded() {
    let etcd = Etcd::shared();
    let long = "x".repeat(255);
    for (name, encoded) in [
        ("name test a/b", "name%20test%20a%2Fb"),
        ("name test 100%", "name%20test%20100%25"),
        ("name-._~@:+=,", "name-._~@:+=,"),
        ("..", ".."),
        ("-dash", "-dash"),
        ("näme", "n%C3%A4me"),
        (&long, &long),
    ] {
        let script = "echo \"$DLOCK_NAME\"; echo \"$DLOCK_KEY\"";
        let outcome = Dlock::on(etcd)
            .run(["--ttl=10", "--", name, "sh", "-c", script])
            .finish();
        let outcome = outcome.expect_code(0).expect_silent();
        let (shown, key) = outcome.stdout.split_once('\n').expect("two lines");
        assert_eq!(shown, name);
        let lease = key
            .trim_end()
            .strip_prefix(&format!("dlock/lock/{encoded}/"))
            .expect(key);
        assert!(
            i64::from_str_radix(lease, 16).is_ok(),
            "{lease:?} is hexadecimal"
        );
    }
}

/// "`1m30s`, a bare number is seconds"
#[test]
fn the_lease_has_the_requested_ttl() {
    let etcd = Etcd::shared();
    for (ttl, granted) in [("5", "5s"), ("1m30s", "90s"), ("2m", "120s")] {
        let name = unique("term");
        let _holder = hold(Dlock::on(etcd), &["--ttl", ttl], &name);
        let lease = etcd.queue(&name)[0].lease_hex();
        let answer = etcd.ctl(&["lease", "timetolive", &lease]);
        assert!(
            answer.contains(&format!("granted with TTL({granted})")),
            "{answer}"
        );
    }
}

/// "--help, --version"
#[test]
fn help_and_version_go_to_stdout() {
    for line in [&["--help"][..], &["run", "--help"]] {
        let outcome = Dlock::nowhere()
            .args(line)
            .finish()
            .expect_code(0)
            .expect_silent();
        assert!(outcome.stdout.contains("Usage"), "{}", outcome.stdout);
        assert!(!outcome.stdout.contains('\t'), "no tabs");
    }
    let outcome = Dlock::nowhere().args(["--version"]).finish().expect_code(0);
    assert!(outcome.stdout.starts_with("dlock "), "{}", outcome.stdout);
}

/// "Strict endpoint parser": nonsense gets an error that names it.
#[test]
fn a_nonsense_endpoint_is_named() {
    for (endpoints, named) in [
        ("http://127.0.0.1:99999", "127.0.0.1:99999"),
        ("http://user:secret@127.0.0.1:2379", "127.0.0.1:2379"),
        ("http://127.0.0.1:2379/v3", "127.0.0.1:2379/v3"),
        ("http://127.0.0.1:2379?x=1", "127.0.0.1:2379?x=1"),
        ("unix:///run/etcd.sock", "unix:///run/etcd.sock"),
        ("ftp://127.0.0.1:2379", "ftp://127.0.0.1:2379"),
        ("http://a:2379,https://b:2379", "https://b:2379"),
        ("http://", "http://"),
        ("http://[::1:2379", "[::1:2379"),
        ("a b:2379", "a b:2379"),
        ("127.0.0.1:0x7", "127.0.0.1:0x7"),
    ] {
        refused(Dlock::at(endpoints).run(["job", "true"]), &[named]);
    }
    let outcome = refused(
        Dlock::at("http://user:secret@h:1").run(["job", "true"]),
        &[],
    );
    assert!(!outcome.stderr.contains("secret"), "{}", outcome.stderr);
}

/// "IPv6 and DNS names work", and a list with blanks, without a scheme or with the default port's scheme.
#[test]
fn an_endpoint_may_be_written_in_several_ways() {
    let etcd = Etcd::shared();
    let port = etcd.port();
    for endpoints in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("http://localhost:{port}"),
        format!("http://127.0.0.1:{port}/"),
        format!("http://127.0.0.1:{port}, http://localhost:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
    ] {
        let name = unique("endpoint");
        let outcome = Dlock::at(&endpoints).run([&name, "true"]).finish();
        assert_eq!(outcome.code(), Some(0), "{endpoints}: {outcome:?}");
    }
}

/// "etcd not reachable within `--connect-timeout` (say which endpoint failed how, and hint)"
#[test]
fn an_unreachable_etcd_is_named_with_a_hint() {
    let (silent, hole) = (Link::silent(), BlackHole::new());
    for endpoint in [NOBODY.to_owned(), silent.endpoint(), hole.endpoint()] {
        let started_at = boot_clock();
        let address = endpoint.trim_start_matches("http://").to_owned();
        refused(
            Dlock::at(&endpoint)
                .args(["--connect-timeout", "2"])
                .run(["job", "true"]),
            &[&address, "hint: "],
        );
        // Bounded: two seconds, and room for a busy machine.
        assert!(since(started_at) < Duration::from_secs(12), "{endpoint}");
    }
    let all = [NOBODY, &silent.endpoint(), &hole.endpoint()].join(",");
    refused(
        Dlock::at(&all)
            .args(["--connect-timeout=2"])
            .run(["job", "true"]),
        &["127.0.0.1:1", &silent.endpoint(), &hole.endpoint()],
    );
}

/// "DNS names ... every await under a timeout (connect, DNS, streams)"
#[test]
fn a_name_that_does_not_resolve_is_named() {
    refused(
        Dlock::at("http://no-such-host.invalid:2379")
            .args(["--connect-timeout=2"])
            .run(["job", "true"]),
        &["no-such-host.invalid"],
    );
}

/// "Flag > variable > file > default", with etcdctl's variables behind dlock's own.
#[test]
fn settings_come_from_flag_variable_and_file_in_that_order() {
    let etcd = Etcd::shared();
    let right = etcd.endpoint();
    let works = |what: &str, dlock: Dlock| {
        let outcome = dlock.run([&unique("setting"), "true"]).finish();
        assert_eq!(outcome.code(), Some(0), "{what}: {outcome:?}");
    };
    let file = |endpoint: &str| format!("endpoints = [\"{endpoint}\"]\n");

    works(
        "flag before variable",
        Dlock::at(NOBODY).args(["--endpoints", &right]),
    );
    works(
        "own variable before etcdctl's",
        Dlock::at(&right).env("ETCDCTL_ENDPOINTS", NOBODY),
    );
    works(
        "etcdctl's variable",
        Dlock::nowhere().env("ETCDCTL_ENDPOINTS", &right),
    );

    let home = Dlock::nowhere();
    std::fs::create_dir_all(home.home().file("config/dlock")).expect("a directory");
    home.home().write("config/dlock/config.toml", &file(&right));
    works("file in XDG_CONFIG_HOME", home);

    let named = Dlock::nowhere();
    let path = named.home().write("named.toml", &file(&right));
    works("file named by --config", named.args(["--config", &path]));

    let both = Dlock::at(&right);
    let path = both.home().write("named.toml", &file(NOBODY));
    works("variable before file", both.args(["--config", &path]));
}

/// "A file that cannot be read, or whose directory cannot be searched, does not count as missing: it is an error
/// (status 125)" (dlock.toml(5)).
#[test]
fn an_unreadable_configuration_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let owner = Dlock::nowhere();
    let directory = owner.home().file("config/dlock");
    let set_mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&directory, permissions).expect("our own directory");
    };
    std::fs::create_dir_all(&directory).expect("a directory");
    set_mode(0o000);
    // Root may search every directory unless it has dropped these capabilities.
    let Some(humble) = without("-dac_override,-dac_read_search") else {
        return;
    };
    let words = ["config.toml", "Permission denied", "hint: "];
    let dlock = Dlock::nowhere().env("XDG_CONFIG_HOME", owner.home().file("config"));
    refused(dlock.under(humble).run(["job", "true"]), &words);
    set_mode(0o700);
}

/// "Without endpoints from an option, a variable or a file, dlock uses 127.0.0.1:2379", and `-v` tells so, as does the report.
#[test]
fn the_built_in_default_endpoint_is_reported() {
    // Nothing listens there in a network of its own.
    let Some(alone) = in_namespaces(&["--net"]) else {
        return;
    };
    let dlock = || {
        let dlock = Dlock::nowhere().under(&alone);
        dlock.env("DLOCK_CONNECT_TIMEOUT", "100ms")
    };
    let outcome = dlock().args(["-v"]).run(["job", "true"]).finish();
    outcome.expect_code(125).expect_stderr(&[
        "no endpoints are set: using the built-in default 'http://127.0.0.1:2379'",
    ]);
    for (options, source) in [
        (&[][..], r#""endpoints_from":"built-in default""#),
        (
            &["--endpoints=127.0.0.1:1"],
            r#""endpoints_from":"--endpoints""#,
        ),
        (&["--local"], r#""endpoints_from":null"#),
    ] {
        let line = [options, &["--report=-", "job", "true"]].concat();
        let outcome = dlock().run(line).finish();
        assert!(outcome.stdout.contains(source), "{outcome:?}");
    }
}

/// "A named pipe is refused: without a writer, dlock would wait for it" (dlock.toml(5)), also in the place of the default file.
#[test]
fn a_pipe_as_configuration_is_refused_at_once() {
    let dlock = || {
        let dlock = Dlock::nowhere();
        let directory = dlock.home().file("config/dlock");
        let pipe = format!("{directory}/config.toml");
        let setup = format!("mkdir -p '{directory}' && mkfifo '{pipe}'");
        (dlock.after(&setup), pipe)
    };
    let words = [
        "config.toml': it is a pipe, not a file",
        "hint: write the settings",
    ];
    refused(dlock().0.run(["job", "true"]), &words);
    let (named, pipe) = dlock();
    refused(named.args(["--config", &pipe]).run(["job", "true"]), &words);
}

/// "Unknown key in the file: error with the line."
#[test]
fn a_bad_file_is_refused_with_the_line() {
    for (text, words) in [
        (
            "endpoints = [\"http://127.0.0.1:1\"]\nendpiont = 3\n",
            &["endpiont", "2"][..],
        ),
        ("ttl = \n", &["1"]),
        ("endpoints = 7\n", &["endpoints", "1"]),
    ] {
        let dlock = Dlock::nowhere();
        let path = dlock.home().write("bad.toml", text);
        let outcome = refused(dlock.args(["--config", &path]).run(["job", "true"]), words);
        assert!(outcome.stderr.contains("bad.toml"), "{}", outcome.stderr);
    }
    refused(
        Dlock::nowhere()
            .args(["--config", "/no/such/file.toml"])
            .run(["job", "true"]),
        &["/no/such/file.toml"],
    );
}

/// "Bad input, each with a clear message: ... unreadable certificate or password file"
#[test]
fn an_unreadable_file_is_named() {
    let https = || Dlock::at("https://127.0.0.1:1");
    refused(
        https()
            .args(["--cacert", "/no/such/ca.pem"])
            .run(["job", "true"]),
        &["/no/such/ca.pem"],
    );
    refused(
        https()
            .args(["--cert=/no/such/c.pem", "--key=/no/such/c.key"])
            .run(["job", "true"]),
        &["/no/such/c."],
    );
    refused(
        https()
            .args(["--user=me", "--password-file=/no/such/pw"])
            .run(["job", "true"]),
        &["/no/such/pw"],
    );
}

/// "wrong password, missing permission (name the role and range needed)"
#[test]
fn a_wrong_password_and_a_missing_permission_are_explained() {
    let etcd = Etcd::start();
    etcd.add_user("elsewhere", "secret", "other/", "other0");
    etcd.enable_auth();
    let login = |user: &str, password: &str| {
        let dlock = Dlock::on(&etcd);
        let file = dlock
            .home()
            .write_private("password", &format!("{password}\n"));
        dlock.args([
            "--connect-timeout=5",
            "--user",
            user,
            "--password-file",
            &file,
        ])
    };
    for (user, password) in [("elsewhere", "guess"), ("nobody", "secret")] {
        let outcome = refused(
            login(user, password).run(["job", "true"]),
            &["password", user],
        );
        assert!(!outcome.stderr.contains(password), "{}", outcome.stderr);
    }
    // The needed permission: readwrite on the prefix, in the form of etcdctl's role grant-permission.
    refused(
        login("elsewhere", "secret").run(["job", "true"]),
        &["permission", "hint: ", "readwrite", "dlock/", "dlock0"],
    );
    refused(
        Dlock::on(&etcd)
            .args(["--connect-timeout=5"])
            .run(["job", "true"]),
        &["user"],
    );
    assert!(etcd.entries("").is_empty());
    eventually(LIMIT, "no lease is left", || etcd.leases().is_empty());
}

/// "NOSPACE alarm": a new lock is refused, and a holder still releases, as a release needs no put.
#[test]
fn an_etcd_out_of_space_is_explained_and_a_holder_still_releases() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
    let mut holder = hold_open(Dlock::on(&etcd), &[], "held");
    etcd.fill();

    refused(
        Dlock::on(&etcd).run(["--", "other", "true"]),
        &["space", "hint: "],
    );
    holder.let_go().expect_silent();
    assert!(etcd.queue("held").is_empty());
    assert!(etcd.queue("other").is_empty());
}

/// "TLS spoken to a plain port and the reverse"
#[test]
fn tls_to_a_plain_port_and_the_reverse_are_explained() {
    let made = Certificates::new();
    let ca = made.file("ca.pem");
    let plain = Etcd::shared();
    refused(
        Dlock::at(&plain.endpoint().replace("http:", "https:"))
            .args(["--connect-timeout=3", "--cacert", &ca])
            .run(["job", "true"]),
        &["https://127.0.0.1", "hint: ", "http://"],
    );
    let tls = Etcd::start_tls(&made);
    refused(
        Dlock::at(&tls.endpoint().replace("https:", "http:"))
            .args(["--connect-timeout=3"])
            .run(["job", "true"]),
        &["http://127.0.0.1", "hint: ", "https://"],
    );
    // An authority that did not sign the server's certificate.
    let stranger = Certificates::new();
    refused(
        Dlock::on(&tls)
            .args(["--connect-timeout=3", "--cacert", &stranger.file("ca.pem")])
            .run(["job", "true"]),
        &["certificate"],
    );
    tls.assert_empty();
}
