//! The findings of `dlock doctor` on servers in every state, and that it leaves nothing behind.
//! It must not know the rules of the findings; `src/core/doctor` has the tests for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    BlackHole, Certificates, Cluster, Direction, Dlock, Etcd, LIMIT, Link, Mode, Scratch, Terminal,
    boot_clock, dlock_program, eventually, hold, search_path, since,
};

/// The output of one doctor.
pub(crate) struct Diagnosis {
    report: Value,
    text: String,
}

impl Diagnosis {
    /// Runs it with `--json` and these arguments: it prints nothing else, and its status agrees with its findings.
    #[track_caller]
    pub(crate) fn of(dlock: Dlock, words: &[&str]) -> Self {
        let outcome = dlock.args(["doctor", "--json"]).args(words).finish();
        let text = outcome.stdout.clone();
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{outcome:?}"));
        let code = match report["level"].as_str() {
            Some("ok") => 0,
            Some("warning") => 1,
            _ => 125,
        };
        outcome.expect_code(code).expect_silent();
        Self { report, text }
    }

    pub(crate) fn findings(&self, check: &str) -> Vec<&Value> {
        let all = self.report["findings"].as_array().expect("a list");
        let ours = all.iter().filter(|finding| finding["check"] == check);
        ours.collect()
    }

    /// Fails unless one finding of this check about `object` has this level, and all the words.
    #[track_caller]
    pub(crate) fn says(&self, check: &str, object: &str, level: &str, words: &[&str]) {
        let ours = self.findings(check);
        let found: Vec<&&Value> = ours
            .iter()
            .filter(|finding| finding["object"] == object && finding["level"] == level)
            .collect();
        assert_eq!(found.len(), 1, "{check} of {object}: {}", self.text);
        let says = found[0]["says"].as_str().expect("a text");
        let hint = found[0]["hint"].as_str().unwrap_or_default();
        for word in words {
            let there = says.contains(word) || hint.contains(word);
            assert!(there, "no {word:?} in {}", found[0]);
        }
    }

    /// Fails unless all findings of these checks are good, and there is at least one of each.
    #[track_caller]
    pub(crate) fn is_fine(&self, checks: &[&str]) {
        for check in checks {
            let found = self.findings(check);
            assert!(!found.is_empty(), "no {check} in {}", self.text);
            for finding in found {
                assert_eq!(finding["level"], "ok", "{finding}");
            }
        }
    }

    #[track_caller]
    pub(crate) fn is_unusable(&self) {
        assert_eq!(self.report["level"], "unusable", "{}", self.text);
    }

    /// Value and source of a setting.
    pub(crate) fn setting(&self, option: &str) -> Option<(&str, &str)> {
        let all = self.report["settings"].as_array().expect("a list");
        let setting = all.iter().find(|setting| setting["option"] == option)?;
        Some((setting["value"].as_str()?, setting["source"].as_str()?))
    }
}

/// "A key without a lease is a warning: no dlock writes one, it never expires, and it can keep a lock for ever. The hint deletes
/// it" (dlock-doctor(1)).
#[test]
fn keys_without_a_lease_are_named_with_the_line_that_deletes_them() {
    let etcd = Etcd::start();
    let _holder = hold(Dlock::on(&etcd), &["--slots=2"], "job");
    Diagnosis::of(Dlock::on(&etcd), &[]).is_fine(&["keys"]);
    let keys = [
        (
            "dlock/lock/nightly report/1f",
            "the lock 'nightly report' is taken for ever",
        ),
        ("dlock/notes", "no dlock has written it"),
        ("dlock/once/backup", "no run with --once-per starts"),
        ("dlock/slot/job/1", "a slot is taken for ever"),
    ];
    for (key, _) in keys {
        etcd.ctl(&["put", &key.replace(' ', "%20"), "x"]);
    }
    let found = Diagnosis::of(Dlock::on(&etcd), &[]);
    assert_eq!(found.findings("keys").len(), keys.len());
    for (key, says) in keys {
        let key = key.replace(' ', "%20");
        found.says("keys", &key, "warning", &[says, "has no lease"]);
    }
    for finding in found.findings("keys") {
        let hint = finding["hint"].as_str().expect("a hint");
        let (_, line) = hint.split_once(": ").expect("a line of shell");
        let line = line.replace("dlock break", &format!("{} break", dlock_program()));
        Dlock::program(["sh", "-c", &line])
            .env("PATH", search_path())
            .env("DLOCK_ENDPOINTS", etcd.endpoint())
            .env("ETCDCTL_ENDPOINTS", etcd.endpoint())
            .env("ETCDCTL_API", "3")
            .finish()
            .expect_code(0);
    }
    Diagnosis::of(Dlock::on(&etcd), &[]).is_fine(&["keys"]);
}

/// All checks of etcd, except the version, which the tests do not choose.
const ETCD: [&str; 5] = ["endpoint", "cluster", "alarm", "permission", "latency"];

/// "0 clean"; "leaves nothing".
#[test]
fn a_healthy_server_is_clean() {
    let etcd = Etcd::start();
    let found = Diagnosis::of(Dlock::on(&etcd), &[]);
    found.is_fine(&ETCD);
    found.is_fine(&["user", "guard", "limits"]);
    found.says(
        "endpoint",
        &etcd.endpoint(),
        "ok",
        &["etcd 3.", "the leader", "raft term"],
    );
    found.says(
        "latency",
        &etcd.endpoint(),
        "ok",
        &["a proof takes", "in a row without an answer"],
    );
    assert!(!found.findings("version").is_empty());
    assert!(!found.findings("clock").is_empty());
    assert!(etcd.entries("").is_empty());
    assert!(etcd.leases().is_empty());
}

/// For people: one line each in columns, the hint below, then the settings, then the result.
#[test]
fn the_table_is_aligned() {
    let etcd = Etcd::shared();
    let nowhere = "http://127.0.0.1:1";
    let both = format!("{},{nowhere}", etcd.endpoint());
    let outcome = Dlock::at(&both).args(["doctor"]).finish().expect_code(1);
    let outcome = outcome.expect_silent();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let row = |begin: &str, words: &str| {
        let mut found = lines.iter().filter(|line| line.starts_with(begin));
        let found = found.find(|line| line.contains(words));
        *found.unwrap_or_else(|| panic!("no {words:?} in {}", outcome.stdout))
    };
    let column = |line: &str, word: &str| line.find(word).expect("the word is there");
    let good = row("ok ", &etcd.endpoint());
    let down = row("warning ", nowhere);
    assert_eq!(column(good, "endpoint"), column(down, "endpoint"));
    assert_eq!(column(good, "http://"), column(down, "http://"));
    assert_eq!(column(good, "etcd 3."), column(down, "Connection refused"));
    assert!(row("         hint: ", "is etcd running there?").len() > 20);
    assert!(row("endpoints ", nowhere).ends_with("DLOCK_ENDPOINTS"));
    assert!(lines.last().unwrap().starts_with("locks work; warnings: "));
    assert!(
        !outcome.stdout.contains('\u{1b}'),
        "no terminal, no colours"
    );
}

/// "On a terminal the levels have colours, unless `NO_COLOR` is set, or TERM is unset or dumb" (dlock-doctor(1))
#[test]
fn levels_have_colours_on_a_terminal() {
    const GREEN: &str = "\u{1b}[32mok\u{1b}[m       ";
    const YELLOW: &str = "\u{1b}[33mwarning\u{1b}[m  ";
    const RED: &str = "\u{1b}[31munusable\u{1b}[m ";
    let etcd = Etcd::shared();
    let nowhere = "http://127.0.0.1:1";
    let mut terminal = Terminal::of_kind(&format!("{},{nowhere}", etcd.endpoint()), "xterm");
    let mut shown = |variables: &str, words: &str| {
        terminal.line("stty cols 200");
        terminal.prompts();
        let before = terminal.everything().len();
        terminal.line(&format!(
            "{variables} {} doctor {words}; echo ended-$((40+2))",
            dlock_program()
        ));
        let output = || terminal.everything()[before..].to_owned();
        eventually(LIMIT, "the doctor has ended", || {
            Some(output()).filter(|output| output.contains("ended-42"))
        })
    };
    let output = shown("", "");
    for coloured in [GREEN, YELLOW] {
        assert!(output.contains(coloured), "{output:?}");
    }
    let output = shown("", &format!("--endpoints={nowhere}"));
    assert!(output.contains(RED), "{output:?}");
    // A program that reads the objects wants no colours in them.
    let output = shown("", "--json");
    assert!(!output.contains("\u{1b}[3"), "{output:?}");
    for variables in ["NO_COLOR=1", "TERM=dumb", "env -u TERM"] {
        let output = shown(variables, "");
        assert!(output.contains("\nwarning  "), "{output:?}");
        assert!(!output.contains("\u{1b}[3"), "{output:?}");
    }
}

/// "a member stopped or dead": it is named, and the doctor waits for it for `--connect-timeout` at most.
#[test]
fn a_member_that_is_down_is_named() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let follower = &cluster.members()[(leader + 1) % 3];
    let dlock = || Dlock::at(&cluster.endpoints());
    let found = Diagnosis::of(dlock(), &[]);
    found.is_fine(&ETCD);
    let members = "3 voting members, 1 may fail; 3 endpoints are named";
    assert_eq!(found.findings("cluster")[0]["says"], members);
    follower.stop();
    let found = Diagnosis::of(dlock(), &["--connect-timeout=2"]);
    follower.cont();
    let down = follower.endpoint();
    found.says("endpoint", &down, "warning", &["within 2s"]);
    found.is_fine(&["cluster", "permission", "latency"]);
    follower.kill();
    let found = Diagnosis::of(dlock(), &[]);
    found.says("endpoint", &down, "warning", &["Connection refused"]);
    found.is_fine(&["cluster", "permission", "latency"]);
    let other = &cluster.members()[leader];
    assert!(other.entries("").is_empty());
    // A cluster without a majority has no leader, and cannot take a lock.
    cluster.members()[(leader + 2) % 3].kill();
    let found = Diagnosis::of(Dlock::on(other), &["--connect-timeout=3"]);
    found.is_unusable();
    let words = ["most members of the cluster are down"];
    found.says("endpoint", &other.endpoint(), "unusable", &words);
}

/// A client that names one member of three has no cluster when that one is down.
#[test]
fn a_cluster_of_which_one_member_is_named_is_a_warning() {
    let cluster = Cluster::start();
    let found = Diagnosis::of(Dlock::on(&cluster.members()[0]), &[]);
    let id = found.findings("cluster")[0]["object"].clone();
    let words = ["3 voting members", "--endpoints http://127.0.0.1:"];
    found.says("cluster", id.as_str().unwrap(), "warning", &words);
    found.is_fine(&["endpoint", "permission", "latency"]);
}

/// "and says the line for it": the printed configuration refuses every other cluster, but not its own.
#[test]
fn the_cluster_is_printed_for_the_configuration() {
    let (mine, other) = (
        Etcd::start_with(&["--initial-cluster-token=mine"]),
        Etcd::start(),
    );
    let found = Diagnosis::of(Dlock::on(&mine), &[]);
    found.is_fine(&ETCD);
    let hint = found.findings("cluster")[0]["hint"]
        .as_str()
        .expect("a hint");
    let line = hint
        .split(": ")
        .nth(1)
        .expect("a line of the configuration");
    let home = Scratch::new();
    let file = home.write("dlock.toml", line);
    let words = ["--config", &*file];
    let found = Diagnosis::of(Dlock::on(&mine), &words);
    found.is_fine(&ETCD);
    assert_eq!(found.findings("cluster")[0]["hint"], Value::Null);
    assert!(found.setting("cluster-id").is_some());
    let both = format!("{},{}", mine.endpoint(), other.endpoint());
    let found = Diagnosis::of(Dlock::at(&both), &words);
    found.says(
        "cluster",
        &other.endpoint(),
        "warning",
        &["another cluster"],
    );
    let found = Diagnosis::of(Dlock::on(&other), &words);
    found.is_unusable();
    let words = ["another cluster", "dlock does not use it", "cluster-id = "];
    found.says("cluster", &other.endpoint(), "unusable", &words);
}

/// "same cluster"
#[test]
fn endpoints_of_different_clusters_are_unusable() {
    let (one, other) = (Etcd::start(), Etcd::start());
    let both = format!("{},{}", one.endpoint(), other.endpoint());
    let found = Diagnosis::of(Dlock::at(&both), &[]);
    found.is_unusable();
    let words = ["different clusters", &one.endpoint(), &other.endpoint()];
    found.says("cluster", "--endpoints", "unusable", &words);
    found.is_fine(&["endpoint", "latency"]);
}

/// "Unreachable endpoints must not make it wait long": all are asked at once.
#[test]
fn unreachable_endpoints_are_waited_for_together() {
    let hole = BlackHole::new();
    let silent: Vec<Link> = (0..3).map(|_| Link::silent()).collect();
    let mut endpoints = vec!["http://127.0.0.1:1".to_owned(), hole.endpoint()];
    endpoints.extend(silent.iter().map(Link::endpoint));
    let began_at = boot_clock();
    let found = Diagnosis::of(Dlock::at(&endpoints.join(",")), &["--connect-timeout=4"]);
    assert!(since(began_at) < Duration::from_secs(12));
    found.is_unusable();
    found.says(
        "endpoint",
        &endpoints[0],
        "unusable",
        &["refused", "is etcd running there?"],
    );
    for endpoint in &endpoints[1..] {
        found.says("endpoint", endpoint, "unusable", &["firewall"]);
    }
}

/// "TLS (issuer, days left)"
#[test]
fn certificates_are_shown_with_their_end() {
    for (days, level) in [(5, "warning"), (90, "ok")] {
        let made = Certificates::lasting(days);
        let etcd = Etcd::start_mutual_tls(&made);
        let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|name| made.file(name));
        let words = ["--cacert", &ca, "--cert", &cert, "--key", &key];
        let found = Diagnosis::of(Dlock::on(&etcd), &words);
        found.is_fine(&ETCD);
        let left = format!("expires in {} days", days - 1);
        for (object, subject) in [
            (etcd.endpoint(), "server certificate for 'CN=server'"),
            (cert.clone(), "client certificate for 'CN=client'"),
            (ca.clone(), "authority for 'CN=test authority'"),
        ] {
            let words = [subject, "issued by 'CN=test authority'", &left];
            found.says("certificate", &object, level, &words);
        }
        // Without a client certificate the server closes the connection, but shows its own certificate.
        let words = ["--cacert", &ca, "--connect-timeout=3"];
        let found = Diagnosis::of(Dlock::on(&etcd), &words);
        found.is_unusable();
        found.says(
            "endpoint",
            &etcd.endpoint(),
            "unusable",
            &["--cert and --key"],
        );
    }
}

/// The certificate of another authority is not trusted, and reported.
#[test]
fn a_server_of_an_unknown_authority_is_unusable() {
    let (made, stranger) = (Certificates::new(), Certificates::new());
    let etcd = Etcd::start_tls(&made);
    let words = ["--connect-timeout=3", "--cacert", &stranger.file("ca.pem")];
    let found = Diagnosis::of(Dlock::on(&etcd), &words);
    found.is_unusable();
    found.says("endpoint", &etcd.endpoint(), "unusable", &["certificate"]);
    let found = Diagnosis::of(Dlock::on(&etcd), &["--cacert", &made.file("ca.pem")]);
    found.is_fine(&ETCD);
    found.is_fine(&["certificate"]);
}

/// "permissions on the prefix by trying", "user"
#[test]
fn permissions_are_tried() {
    let etcd = Etcd::start();
    etcd.add_user("team", "pass:word", "dlock/", "dlock0");
    etcd.add_user("other", "pass:word", "other/", "other0");
    etcd.add_user("half", "pass:word", "dlock/lock/", "dlock/released0");
    let reader = ["role", "add", "reader"];
    etcd.ctl(&reader);
    etcd.ctl(&[
        "role",
        "grant-permission",
        "reader",
        "read",
        "dlock/",
        "dlock0",
    ]);
    etcd.ctl(&["user", "add", "reader:pass:word"]);
    etcd.ctl(&["user", "grant-role", "reader", "reader"]);
    etcd.enable_auth();
    let asked_by = |user: &str| {
        let dlock = Dlock::on(&etcd).env("ETCDCTL_USER", user);
        let found = Diagnosis::of(dlock.env("DLOCK_PASSWORD", "pass:word"), &[]);
        assert!(!found.text.contains("pass:word"), "{}", found.text);
        found
    };
    let found = asked_by("team");
    found.is_fine(&["endpoint", "permission", "user", "latency"]);
    found.says("user", "team", "ok", &["logged in"]);
    // They have another prefix.
    let dlock = Dlock::on(&etcd).env("ETCDCTL_USER", "other:pass:word");
    Diagnosis::of(dlock, &["--prefix=other"]).is_fine(&["permission", "latency"]);
    for user in ["other", "reader"] {
        let found = asked_by(user);
        found.is_unusable();
        let role = format!("the role of '{user}'");
        found.says(
            "permission",
            "dlock/",
            "unusable",
            &["permission denied", &role],
        );
    }
    // No more than `dlock run` needs.
    let half = asked_by("half");
    half.says("permission", "dlock/", "warning", &["locks are allowed"]);
    half.is_fine(&["endpoint", "user"]);
    let wrong = Dlock::on(&etcd).env("ETCDCTL_USER", "team:wrong");
    let found = Diagnosis::of(wrong, &[]);
    found.is_unusable();
    let words = ["cannot log in as 'team'", "--password-file"];
    found.says("endpoint", &etcd.endpoint(), "unusable", &words);
    let found = Diagnosis::of(Dlock::on(&etcd), &[]);
    found.is_unusable();
    found.says(
        "permission",
        "dlock/",
        "unusable",
        &["this etcd requires a user"],
    );
    assert!(etcd.entries("").is_empty());
}

/// A user on a server without authentication is no problem.
#[test]
fn a_user_without_authentication_is_reported() {
    let dlock = Dlock::on(Etcd::shared()).env("ETCDCTL_USER", "team:secret");
    let found = Diagnosis::of(dlock, &[]);
    found.is_fine(&["permission"]);
    found.says("user", "team", "ok", &["authentication is not enabled"]);
}

/// "alarms"
#[test]
fn an_etcd_out_of_space_is_unusable() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
    etcd.fill();
    let found = Diagnosis::of(Dlock::on(&etcd), &[]);
    found.is_unusable();
    let words = ["out of space", "etcdctl alarm disarm"];
    found.says("alarm", "NOSPACE", "unusable", &words);
    assert!(found.findings("permission").is_empty());
    assert!(etcd.leases().is_empty());
}

/// "latency of a keepalive proof against the TTL: would N slow answers lose the lock"
#[test]
fn a_slow_network_is_measured_against_the_ttl() {
    let etcd = Etcd::start();
    let link = Link::to(etcd.port());
    let slowed_by = |millis| {
        let late = Mode::Delay(Duration::from_millis(millis));
        link.set(Direction::ToClient, late);
    };
    let dlock = || Dlock::at(&link.endpoint());
    // A proof is two answers; with a TTL of 5s one is given up after 625ms.
    slowed_by(180);
    let found = Diagnosis::of(dlock(), &["--ttl=5"]);
    found.says("latency", &link.endpoint(), "warning", &["--ttl 16s"]);
    let found = Diagnosis::of(dlock(), &[]);
    let words = ["of 2s", "TTL of 30s"];
    found.says("latency", &link.endpoint(), "ok", &words);
    slowed_by(400);
    let found = Diagnosis::of(dlock(), &["--ttl=5"]);
    found.is_unusable();
    let words = ["no renewal would count", "no answer within 625ms"];
    found.says("latency", &link.endpoint(), "unusable", &words);
    link.both(Mode::Pass);
    assert!(etcd.entries("").is_empty());
    assert!(etcd.leases().is_empty());
}

/// "effective settings and where each came from"; passwords are never shown.
#[test]
fn every_setting_says_where_it_came_from() {
    let etcd = Etcd::shared();
    let dlock = Dlock::on(etcd);
    let secret = dlock.home().write("secret", "pass:word\n");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("our own file");
    let file = dlock.home().write(
        "dlock.toml",
        "ttl = '1m'\nuser = 'cron'\nwait = '5m'\nprefix = 'file'\n\npassword-file = 'secret'\n",
    );
    let dlock = dlock.env("DLOCK_PREFIX", "team").env("DLOCK_NOTE", "x");
    let words = ["--config", &file, "--connect-timeout=7s"];
    let found = Diagnosis::of(dlock, &words);
    let line = |option: &str, line: u32| format!("{option} in line {line} of '{file}'");
    for (option, value, source) in [
        ("endpoints", etcd.endpoint(), "DLOCK_ENDPOINTS".to_owned()),
        (
            "connect-timeout",
            "7s".to_owned(),
            "--connect-timeout".to_owned(),
        ),
        ("prefix", "team/".to_owned(), "DLOCK_PREFIX".to_owned()),
        ("ttl", "1m".to_owned(), line("ttl", 1)),
        ("kill-after", "5s".to_owned(), "default".to_owned()),
        ("user", "cron".to_owned(), line("user", 2)),
        (
            "password",
            "(not shown)".to_owned(),
            line("password-file", 6),
        ),
        ("wait", "5m".to_owned(), line("wait", 3)),
        ("note", "x".to_owned(), "DLOCK_NOTE".to_owned()),
        ("config", file.clone(), "--config".to_owned()),
    ] {
        let wanted = Some((value.as_str(), source.as_str()));
        assert_eq!(found.setting(option), wanted, "{option}");
    }
    assert_eq!(found.setting("cacert"), None);
    assert!(!found.text.contains("pass:word"), "{}", found.text);
    // A warning on stderr elsewhere is a finding here.
    found.says(
        "settings",
        "password-file",
        "warning",
        &["every user can read"],
    );
}

/// Settings that cannot be used are an error before anything is asked.
#[test]
fn unusable_settings_are_an_error() {
    let outcome = Dlock::nowhere()
        .args(["doctor", "--json", "--ttl=1s"])
        .finish();
    let outcome = outcome.expect_code(125).expect_stdout("");
    outcome.expect_stderr(&["dlock: cannot use --ttl '1s'"]);
}
