//! `dlock history`: past holders from the old revisions of a real etcd, and from the file of a local lock.
//! It must not know how a queue is followed; `core/history.rs` has those tests.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Dlock, Etcd, LIMIT, Link, Mode, Scratch, Signal, eventually, hold, hold_open, unique,
};

/// The history as JSON.
#[track_caller]
fn history(dlock: Dlock, words: &[&str]) -> Value {
    let shown = dlock.args(["history", "--json"]).args(words).finish();
    let shown = shown.expect_code(0);
    assert_eq!(shown.stderr, "");
    serde_json::from_str(&shown.stdout).expect("JSON")
}

/// The end of each hold, with its result; the newest is first.
fn ends(history: &Value) -> Vec<String> {
    let holds = history["holds"].as_array().expect("a list").iter();
    let end = |hold: &Value| {
        let text = |key: &str| hold[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("end"), text("result"))
            .trim_end()
            .to_owned()
    };
    holds.map(end).collect()
}

fn token(etcd: &Etcd, name: &str) -> String {
    etcd.queue_of(name, 1)[0].create_revision.to_string()
}

fn broken(etcd: &Etcd, name: &str, options: &[&str]) {
    let token = token(etcd, name);
    let broken = Dlock::on(etcd).args(["break", name, "--token", &token, "--yes"]);
    broken.args(options).finish().expect_code(0);
}

/// "lists the holders of the lock ... the newest first, with the beginning and the length of each hold, and its end"
/// (dlock-history(1)).
#[test]
fn every_end_is_told() {
    let (etcd, name) = (Etcd::shared(), unique("ends"));
    let run = |script| Dlock::on(etcd).run([&name, "-c", script]).finish();
    run("sleep 1");
    run("exit 3");
    run("kill -9 $$");
    let mut killed = hold(Dlock::on(etcd), &["--ttl=5s"], &name);
    killed.signal(Signal::KILL);
    killed.wait();
    let mut gives_up = Dlock::on(etcd);
    gives_up = gives_up.run(["--wait=100ms", &name, "echo", "never"]);
    gives_up.finish().expect_code(75);
    eventually(LIMIT, "the lease of the killed one ends", || {
        etcd.queue(&name).is_empty()
    });
    let mut lost = hold(Dlock::on(etcd), &[], &name);
    etcd.revoke(&etcd.queue_of(&name, 1)[0].lease_hex());
    lost.wait().expect_code(121);
    let mut asked = hold(Dlock::on(etcd), &[], &name);
    broken(etcd, &name, &["--reason=because"]);
    asked.wait().expect_code(121);
    // It does not end before its entry is removed.
    let stubborn = "trap '' TERM; echo on; while :; do sleep 1; done";
    let mut taken = Dlock::on(etcd).run([&name, "-c", stubborn]).start();
    taken.says("on\n");
    broken(etcd, &name, &["--now"]);
    taken.wait().expect_code(121);
    let mut cools = Dlock::on(etcd);
    cools = cools.run(["--min-hold=1s", "--note=a\u{1b}b", &name, "true"]);
    cools.finish().expect_code(0);
    eventually(LIMIT, "the cooldown ends", || etcd.queue(&name).is_empty());
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);

    let told = history(Dlock::on(etcd), &[&name]);
    let expected = [
        "holds",
        "released exit 0",
        "broken",
        "released asked to stop",
        "lost",
        "lost",
        "released signal 9",
        "released exit 3",
        "released exit 0",
    ];
    assert_eq!(ends(&told), expected, "{told:#}");
    let holds = told["holds"].as_array().expect("a list");
    for hold in holds {
        assert!(hold["began"].is_string(), "{hold:#}");
        assert_eq!(hold["holder"]["host"], holds[0]["holder"]["host"]);
    }
    let seconds = holds[8]["held_seconds"].as_f64().expect("a number");
    assert!((1.0..60.0).contains(&seconds), "{seconds}");
    for broken in [2, 3] {
        let by = holds[broken]["asked"]["by"].as_str().expect("a text");
        assert!(by.contains("dlock break"), "{by}");
    }
    assert_eq!(holds[3]["asked"]["why"], "because");
    let all = history(Dlock::on(etcd), &["--all", &name]);
    assert_eq!(ends(&all)[5..7], ["gave-up", "lost"], "{all:#}");
    assert_eq!(all["holds"][5]["held_lock"], false);

    let shown = Dlock::on(etcd).args(["history", &name]).finish();
    let shown = shown.expect_code(0).stdout;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("BEGAN "), "{shown}");
    for (line, words) in [
        (1, "holds the lock"),
        (2, r"a\u{1b}b"),
        (3, "broken by "),
        (4, "asked to stop by "),
        (5, "lost or killed"),
        (9, "exit 0"),
    ] {
        assert!(lines[line].contains(words), "{line}: {shown}");
    }
    assert_eq!(lines.len(), 11, "{shown}");
    holder.let_go().expect_code(0);
}

/// "`--limit` and `--since` spare a busy etcd work" (dlock-history(1)), and choose the newest holds.
#[test]
fn the_newest_holds_are_chosen() {
    let (etcd, name) = (Etcd::shared(), unique("limit"));
    for status in 1..=5 {
        let command = ["-c", &format!("exit {status}")];
        Dlock::on(etcd).run([&name]).args(command).finish();
    }
    let last = history(Dlock::on(etcd), &["-n2", &name]);
    assert_eq!(ends(&last), ["released exit 5", "released exit 4"]);
    assert_eq!(last["from_revision"], Value::Null);
    let late = history(Dlock::on(etcd), &["--since=1h", &name]);
    assert_eq!(ends(&late).len(), 5);
    let none = history(Dlock::on(etcd), &["--since=2999-01-01", &name]);
    assert_eq!(ends(&none), [""; 0]);
    let shown = Dlock::on(etcd).args(["history", "-n2", &name]).finish();
    assert!(shown.stdout.contains("--limit shows older"), "{shown:?}");
    let none = Dlock::on(etcd).args(["history", &unique("none")]).finish();
    let none = none.expect_code(0);
    assert!(none.stdout.starts_with("no hold of "), "{none:?}");
}

/// "the list comes from the old revisions of the keys, which etcd keeps until its next compaction; the last line names
/// the first revision that is left" (dlock-history(1)).
#[test]
fn a_compaction_ends_what_is_known() {
    let etcd = &Etcd::start();
    let shown = || {
        let shown = Dlock::on(etcd).args(["history", "job"]).finish();
        shown.expect_code(0).stdout
    };
    for status in [1, 2] {
        let command = ["job", "-c", &format!("exit {status}")];
        Dlock::on(etcd).run(command).finish();
    }
    assert!(shown().contains("etcd was never compacted"), "{}", shown());
    // In the middle of a hold.
    let mut holder = hold_open(Dlock::on(etcd), &[], "job");
    let before = token(etcd, "job");
    etcd.ctl(&["compact", &before]);
    holder.let_go().expect_code(0);
    let told = history(Dlock::on(etcd), &["job"]);
    assert_eq!(ends(&told), ["released exit 0"], "{told:#}");
    let from = before.parse::<i64>().expect("a number") + 1;
    assert_eq!(told["from_revision"], from);
    assert!(told["holds"][0]["began"].is_string(), "{told:#}");
    let last = format!("etcd keeps revisions from {from} on; the oldest");
    assert!(shown().contains(&last), "{}", shown());
    etcd.ctl(&["put", "other", "1"]);
    let now = etcd.entries("other")[0].create_revision.to_string();
    etcd.ctl(&["compact", &now]);
    assert!(
        shown().starts_with("no hold of 'job' is known\n"),
        "{}",
        shown()
    );
}

/// Writes `count` revisions through etcd's gateway for JSON, on one connection.
fn fill(etcd: &Etcd, count: u32) {
    let mut stream = TcpStream::connect(("127.0.0.1", etcd.port())).expect("a connection");
    let mut answers = BufReader::new(stream.try_clone().expect("a copy"));
    let body = r#"{"key":"Zg==","value":"Zg=="}"#;
    let length = body.len();
    for _ in 0..count {
        let put = format!(
            "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(put.as_bytes()).expect("a request");
        let mut left = 0;
        loop {
            let mut line = String::new();
            answers.read_line(&mut line).expect("an answer");
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(length) = line.strip_prefix("content-length: ") {
                left = length.parse().expect("a number");
            }
            if line.is_empty() {
                break;
            }
        }
        answers.read_exact(&mut vec![0; left]).expect("an answer");
    }
}

/// "dlock reads the newest 10,000 revisions of etcd first, and older ones only until it has found enough"
/// (dlock-history(1)).
#[test]
fn older_revisions_are_read_when_they_are_needed() {
    let etcd = &Etcd::start();
    Dlock::on(etcd).run(["job", "false"]).finish();
    let mut holder = hold_open(Dlock::on(etcd), &["--ttl=60s"], "job");
    // etcd commits the requests of several clients together.
    thread::scope(|clients| {
        for _ in 0..20 {
            clients.spawn(|| fill(etcd, 510));
        }
    });
    holder.let_go().expect_code(0);
    let newest = history(Dlock::on(etcd), &["-n1", "job"]);
    assert_eq!(ends(&newest), ["released exit 0"]);
    assert_eq!(newest["from_revision"], Value::Null);
    let all = history(Dlock::on(etcd), &["job"]);
    assert_eq!(ends(&all), ["released exit 0", "released exit 1"]);
    assert_eq!(all["from_revision"], 0);
}

/// "Read permission for the prefix is enough" (dlock-history(1)).
#[test]
fn a_reader_sees_the_history() {
    let etcd = &Etcd::start();
    Dlock::on(etcd).run(["job", "false"]).finish();
    for (user, from) in [("reader", "dlock/"), ("stranger", "other/")] {
        etcd.ctl(&["role", "add", user]);
        etcd.ctl(&[
            "role",
            "grant-permission",
            "--prefix=true",
            user,
            "read",
            from,
        ]);
        etcd.ctl(&["user", "add", &format!("{user}:secret")]);
        etcd.ctl(&["user", "grant-role", user, user]);
    }
    etcd.enable_auth();
    let with = |user: &str| {
        let dlock = Dlock::on(etcd).env("DLOCK_USER", user);
        dlock.env("DLOCK_PASSWORD", "secret")
    };
    let mut shown = with("reader").args(["history", "--json", "job"]).finish();
    shown = shown.expect_code(0);
    let told: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(ends(&told), ["released exit 1"]);
    let refused = with("stranger").args(["history", "job"]).finish();
    let says = ["cannot read the history of 'job'", "permission denied"];
    refused.expect_code(125).expect_stderr(&says);
}

/// An etcd that falls silent ends the command within its limits.
#[test]
fn a_silent_etcd_is_an_error() {
    let etcd = Etcd::shared();
    let link = Link::to(etcd.port());
    link.snare(
        &["dlock/lock/"],
        &[(crate::support::Direction::ToClient, Mode::Drop)],
    );
    let asking = Dlock::at(&link.endpoint()).args(["--connect-timeout=2s", "history", "job"]);
    let end = asking.start().wait_within(LIMIT * 2).expect_code(125);
    end.expect_stderr(&["cannot read the history of 'job'"]);
}

/// "the directory of the lock has a file with its last 100 holds" (dlock-history(1)).
#[test]
fn a_local_lock_keeps_its_last_holds() {
    let directory = Scratch::new();
    let state = directory.file("state");
    let dlock = || Dlock::nowhere().env("DLOCK_LOCAL", &state);
    let run = |script: &str| {
        let note = "x".repeat(700);
        let run = dlock().run(["--note", &note, "job", "-c", script]);
        run.finish()
    };
    assert_eq!(
        history(dlock(), &["job"])["holds"],
        Value::Array(Vec::new())
    );
    run("exit 3").expect_code(3);
    let mut killed = hold(dlock(), &["--also=other"], "job");
    killed.signal(Signal::KILL);
    killed.wait();
    killed.tree_dies();
    dlock().run(["other", "true"]).finish().expect_code(0);
    let told = history(dlock(), &["other"]);
    assert_eq!(ends(&told), ["released exit 0", "lost"], "{told:#}");
    // A waiter that is killed has held nothing.
    let mut holder = hold_open(dlock(), &[], "job");
    let mut waiter = dlock().run(["job", "true"]).start();
    eventually(LIMIT, "it waits", || {
        dlock()
            .args(["status", "job"])
            .finish()
            .stdout
            .contains("1 waiting")
    });
    waiter.signal(Signal::KILL);
    waiter.wait();
    let told = history(dlock(), &["job"]);
    assert_eq!(
        ends(&told),
        ["holds", "lost", "released exit 3"],
        "{told:#}"
    );
    holder.let_go().expect_code(0);
    let told = history(dlock(), &["job"]);
    let expected = ["released exit 0", "lost", "released exit 3"];
    assert_eq!(ends(&told), expected, "{told:#}");
    assert_eq!(told["holds"][2]["holder"]["program"], "sh");
    // It grows for a while before the older ones are removed.
    let file = format!("{state}/job/history");
    let lines = fs::read_to_string(&file).expect("the history");
    let last = lines.lines().last().expect("a line").to_owned() + "\n";
    fs::write(&file, last.repeat(2000)).expect("a long history");
    let count = || {
        fs::read_to_string(&file)
            .expect("the history")
            .lines()
            .count()
    };
    assert_eq!(count(), 2000);
    run("exit 4").expect_code(4);
    let all = history(dlock(), &["-n200", "job"]);
    assert_eq!(ends(&all)[..2], ["released exit 4", "released exit 0"]);
    assert_eq!((ends(&all).len(), count()), (100, 100));
    let shown = dlock().args(["history", "job"]).finish().stdout;
    assert!(shown.ends_with("--limit shows older holds\n"), "{shown}");
}

/// "goes on if the file cannot be written" (dlock-local(7)).
#[test]
fn a_local_history_that_cannot_be_written_is_no_error() {
    let directory = Scratch::new();
    let state = directory.file("state");
    let dlock = || Dlock::nowhere().env("DLOCK_LOCAL", &state);
    dlock().run(["job", "true"]).finish().expect_silent();
    let file = format!("{state}/job/history");
    fs::remove_file(&file).expect("the history");
    fs::create_dir(&file).expect("a directory in its place");
    let run = dlock().run(["job", "true"]).finish();
    run.expect_code(0).expect_silent();
    fs::remove_dir(&file).expect("the directory");
    // A process that keeps it locked delays nobody for long.
    dlock().run(["job", "true"]).finish().expect_silent();
    let locked = fs::File::open(&file).expect("the history");
    locked.lock().expect("a lock");
    let mut run = dlock().run(["job", "true"]).start();
    run.wait_within(LIMIT + Duration::from_secs(1))
        .expect_silent();
}
