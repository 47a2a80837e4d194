//! `dlock ls` and `dlock status` with many keys, and with keys of other clients.
//! It must not know how they are read.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Dlock, Etcd, Terminal, hold};

/// etcdctl with `input` on its stdin: text that does not fit on a command line.
pub(crate) fn feed(etcd: &Etcd, args: &[&str], input: &str) {
    let line = etcd.ctl_command();
    let mut child = Command::new(&line[0])
        .args(&line[1..])
        .args(args)
        .env("ETCDCTL_API", "3")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("etcdctl starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("etcdctl reads");
    drop(stdin);
    assert!(child.wait().expect("our own child").success());
}

fn listed(etcd: &Etcd, prefix: &str) -> Vec<Value> {
    let told = Dlock::on(etcd).args(["ls", "--json", prefix]).finish();
    let told = told.expect_code(0).expect_silent();
    let lines = told.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// "10,000 keys list ... (paged reads)": more than one page, each lock once and in order, with all of its entries.
#[test]
fn many_locks_are_listed_page_by_page() {
    const LOCKS: usize = 1100;
    let etcd = Etcd::start();
    for first in (0..LOCKS).step_by(50) {
        let mut puts = "\n".to_owned();
        for number in first..first + 50 {
            for place in ["1", "2"] {
                writeln!(puts, "put dlock/lock/job-{number:04}/{place} x").expect("a String");
            }
        }
        feed(&etcd, &["txn"], &format!("{puts}\n\n"));
    }
    let locks = listed(&etcd, "");
    assert_eq!(locks.len(), LOCKS);
    for (number, lock) in locks.iter().enumerate() {
        assert_eq!(lock["name"], format!("job-{number:04}"));
        let holders = lock["holders"].as_array().expect("a list");
        assert_eq!((holders.len(), &lock["waiting"]), (1, &1.into()), "{lock}");
        assert!(holders[0].get("holder").is_none() && holders[0].get("ttl_left_seconds").is_none());
    }
    let table = Dlock::on(&etcd).args(["ls"]).finish().expect_code(0).stdout;
    assert_eq!(table.lines().count(), 1 + LOCKS);
    assert_eq!(listed(&etcd, "job-007").len(), 10);
}

/// "On a terminal the table fits its width" (dlock-ls(1)): one long name costs the other lines nothing, and a name that could
/// deceive is in quotes.
#[test]
fn a_list_fits_the_terminal() {
    let etcd = Etcd::start();
    for name in [
        "n".repeat(255),
        "a%20b".to_owned(),
        "d%D0%B5ploy".to_owned(),
    ] {
        etcd.ctl(&["put", &format!("dlock/lock/{name}/1"), "x"]);
    }
    let _holder = hold(Dlock::on(&etcd), &["--note=release 7"], "job");
    let dlock = env!("CARGO_BIN_EXE_dlock");
    let mut terminal = Terminal::of_kind(&etcd.endpoint(), "xterm");
    terminal.line("stty cols 80");
    terminal.prompts();
    terminal.line(&format!("{dlock} ls; echo done-$((3+4))"));
    terminal.await_text("done-7");
    let screen = terminal.everything();
    let table: Vec<&str> = screen
        .lines()
        .skip_while(|line| !line.contains("NAME "))
        .take(5)
        .collect();
    assert!(
        table[0].contains("NAME") && table[0].contains("HOLDER"),
        "{table:#?}"
    );
    for line in &table {
        // The prompt is before the head.
        let shown = &line[line.find("NAME ").unwrap_or(0)..];
        assert!(shown.trim_end().len() <= 80, "{table:#?}");
    }
    let piped = Dlock::on(&etcd).args(["ls"]).finish().expect_code(0).stdout;
    for (begins, ends) in [
        ("'a b' ", ""),
        (r"'d\u{435}ploy' ", ""),
        (&format!("{}  another client", "n".repeat(255)), ""),
        ("job ", "sh \"release 7\""),
    ] {
        let found = |line: &str| line.starts_with(begins) && line.ends_with(ends);
        assert!(piped.lines().any(found), "{begins}: {piped}");
    }
    assert!(
        piped.starts_with("NAME ") && piped.find("HOLDER") < piped.find("WAITING"),
        "{piped}"
    );
    let shortest = piped.lines().map(str::len).min();
    assert!(shortest.is_some_and(|length| length < 140), "{piped}");
}

/// "tolerant of foreign or broken records": values that are far too long, control characters in names and records.
#[test]
fn records_of_other_clients_do_not_break_the_list() {
    let etcd = Etcd::start();
    let long = "x".repeat(1_000_000);
    for place in 1..=15 {
        feed(&etcd, &["put", &format!("dlock/lock/long/{place}")], &long);
    }
    let hostile =
        serde_json::json!({"v": 1, "host": "h\u{1b}[2J\u{202e}\u{85}", "user": "u"}).to_string();
    etcd.ctl(&["put", "dlock/lock/odd\u{1b}[2J\u{202e}/1", &hostile]);
    let locks = listed(&etcd, "");
    assert_eq!(
        (&locks[0]["name"], &locks[0]["waiting"]),
        (&"long".into(), &14.into())
    );
    assert_eq!(
        locks[1]["holders"][0]["holder"]["host"],
        "h\u{1b}[2J\u{202e}\u{85}"
    );
    for words in [
        &["ls"][..],
        &["ls", "--json"],
        &["status", "long"],
        &["status", "--json", "long"],
    ] {
        let shown = Dlock::on(&etcd).args(words).finish().expect_code(0).stdout;
        let hostile = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!shown.chars().any(hostile), "{words:?}: {shown:?}");
        assert!(shown.len() < 10_000, "{words:?}");
    }
}
