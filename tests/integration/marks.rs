//! The keys and leases that must be in etcd before a command may start: its mark, its slot, the lease that keeps the lock afterwards.
//! It must not know how a lock is lost, nor who else waits for it.

use std::time::Duration;

use crate::support::{
    Direction, Dlock, Etcd, LIMIT, Link, Mode, Signal, boot_clock, eventually, hold, let_pass,
    since, unique,
};

const SILENT: [(Direction, Mode); 2] = [
    (Direction::ToServer, Mode::Drop),
    (Direction::ToClient, Mode::Drop),
];

/// The bytes of the request that creates the mark of a run.
fn marking(name: &str) -> [String; 2] {
    [format!("dlock/once/{name}"), "\"v\":1".to_owned()]
}

fn snare(link: &Link, words: &[String], orders: &[(Direction, Mode)]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    link.snare(&words, orders);
}

/// The remaining time of the lease of the key `key`, in whole seconds.
fn left(etcd: &Etcd, key: &str) -> u64 {
    let [entry] = &etcd.entries(key)[..] else {
        panic!("not one key {key}");
    };
    let told = etcd.ctl(&["lease", "timetolive", &entry.lease_hex(), "-w", "json"]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    told["ttl"].as_u64().expect("a number")
}

/// "Start at most once in this time on all hosts" (dlock-run(1)): a key that must be in etcd before the start does not
/// count because of an attempt to create it, whether the request or only its answer was lost.
#[test]
fn no_run_starts_before_its_mark_is_made() {
    let etcd = &Etcd::start();
    let answer_lost = [(Direction::ToClient, Mode::Drop)];
    for (stem, orders) in [("unasked", &SILENT[..]), ("unanswered", &answer_lost)] {
        let (name, link) = (unique(stem), Link::to(etcd.port()));
        snare(&link, &marking(&name), orders);
        let once = ["-v", "--ttl=20s", "--once-per=1h", &name];
        let mut first = Dlock::at(&link.endpoint())
            .run(once)
            .args(["-c", "echo ran"])
            .start();
        eventually(LIMIT, "etcd does not answer", || {
            link.sprung() && first.stderr().contains("still waiting for")
        });
        link.heal();
        first.wait().expect_code(0).expect_stdout("ran\n");
        assert_eq!(
            etcd.entries(&format!("dlock/once/{name}")).len(),
            1,
            "{stem}"
        );
        let second = Dlock::on(etcd).run(once).args(["-c", "echo ran"]).finish();
        second.expect_code(75).expect_stdout("");
    }
    // Nor is anything left of the attempts.
    eventually(LIMIT, "the leases of the two marks are left", || {
        etcd.leases().len() == 2
    });
}

/// "A signal during the wait ... removes the entry, within two seconds even where etcd is silent" (dlock-run(1)): all
/// cleanup shares one time limit, and keys that may be left are reported.
#[test]
fn a_mark_does_not_prolong_the_exit_with_a_silent_etcd() {
    let etcd = Etcd::shared();
    let leaving = |options: &[&str]| {
        let (name, link) = (unique("leaving"), Link::to(etcd.port()));
        let _holder = options
            .is_empty()
            .then(|| hold(Dlock::on(etcd), &[], &name));
        snare(&link, &marking(&name), &SILENT);
        let dlock = Dlock::at(&link.endpoint()).run(["--ttl=60s"]).args(options);
        let mut waiter = dlock.args([&name, "echo", "never"]).start();
        if options.is_empty() {
            etcd.queue_of(&name, 2);
            link.both(Mode::Drop);
        } else {
            eventually(LIMIT, "etcd is silent", || link.sprung());
        }
        let asked_at = boot_clock();
        waiter.signal(Signal::TERM);
        let end = waiter.wait().expect_signal(Signal::TERM).expect_stdout("");
        (since(asked_at), end.stderr)
    };
    let (plain, said) = leaving(&[]);
    assert_eq!(said, "");
    let (marked, said) = leaving(&["--once-per=1h"]);
    let extra = marked.saturating_sub(plain);
    // A time limit of its own would be two seconds more.
    assert!(
        extra < Duration::from_millis(1700),
        "{marked:?}, not {plain:?}"
    );
    assert!(
        said.contains("may start within 1h, although this one did not start"),
        "{said}"
    );
}

/// "etcd has 3s for its first answer and 3s for the rest" (dlock-run(1)): a request that does not wait ends with an error
/// at an etcd that falls silent between its entry and its start, and leaves the queue.
#[test]
fn a_request_that_does_not_wait_ends_at_an_etcd_that_falls_silent() {
    let etcd = Etcd::shared();
    let ends = |options: &[&str], words: fn(&str) -> [String; 2]| {
        let (name, link) = (unique("silent"), Link::to(etcd.port()));
        // Requests are executed, and no answer arrives.
        snare(&link, &words(&name), &[(Direction::ToClient, Mode::Hold)]);
        let dlock = Dlock::at(&link.endpoint()).run(["-n", "-E0", "--ttl=600s"]);
        let began_at = boot_clock();
        let mut run = dlock.args(options).args([&name, "echo", "never"]).start();
        let outcome = run.wait().expect_code(125).expect_stdout("");
        assert!(link.sprung(), "etcd fell silent");
        let error = format!("cannot lock '{name}': no endpoint answered within");
        outcome.expect_stderr(&[&error]);
        // The lease lives for ten minutes, and so did a request without a limit.
        assert!(since(began_at) < LIMIT, "{options:?}");
        eventually(LIMIT, "no entry is left", || etcd.queue(&name).is_empty());
    };
    let slot = |name: &str| [format!("dlock/slot/{name}/"), "dlock/lock/".to_owned()];
    ends(&["--slots=2"], slot);
    ends(&["--slots=2", "--min-hold=1h"], slot);
    ends(&["--once-per=1h"], marking);
}

/// "it ends the waits of earlier clients of dlock" (dlock-run(1)): also a waiter that is about to take its slot.
#[test]
fn a_stop_request_survives_the_claim_of_a_slot() {
    let etcd = Etcd::shared();
    let (name, link) = (unique("claim"), Link::to(etcd.port()));
    let slots = format!("dlock/slot/{name}/");
    link.snare(&[&slots], &[(Direction::ToClient, Mode::Hold)]);
    let mut older = Dlock::at(&link.endpoint())
        .run(["--ttl=60s", "--slots=1", &name, "echo", "never"])
        .start();
    eventually(LIMIT, "it looks for a slot", || link.sprung());
    let mut newer = Dlock::on(etcd)
        .run(["--slots=1", "--supersede", &name, "echo", "in"])
        .start();
    eventually(LIMIT, "it is asked to leave", || {
        etcd.queue(&name)[0].value.contains("superseded")
    });
    link.both(Mode::Pass);
    older.wait().expect_code(75).expect_stdout("");
    newer.wait().expect_code(0).expect_stdout("in\n");
}

/// "The slots are keys PREFIXslot/NAME/NUMBER" (dlock-run(1)): the slot of a holder that has lost the lock is free when
/// its command is dead.
#[test]
fn a_holder_without_its_key_gives_its_slot_back() {
    let etcd = Etcd::shared();
    let name = unique("slot-lost");
    let mut holder = hold(Dlock::on(etcd), &["--ttl=600s", "--slots=1"], &name);
    etcd.ctl(&["del", "--prefix", &format!("dlock/lock/{name}/")]);
    holder.wait().expect_code(121);
    assert!(etcd.entries(&format!("dlock/slot/{name}/")).is_empty());
    let next = Dlock::on(etcd).run(["--slots=1", "-n", &name, "true"]);
    next.finish().expect_code(0);
}

/// "etcd counts the time, from the moment at which the lock was taken" (dlock-run(1)): a stall before the start does
/// not count.
#[test]
fn a_stall_before_the_start_shortens_neither_time() {
    let etcd = Etcd::shared();
    let (name, link) = (unique("stalled"), Link::to(etcd.port()));
    snare(&link, &marking(&name), &[(Direction::ToClient, Mode::Hold)]);
    let options = ["--ttl=60s", "--once-per=1000s", "--min-hold=1000s", &name];
    let mut run = Dlock::at(&link.endpoint())
        .run(options)
        .args(["-c", "echo on; cat"])
        .stdin(std::process::Stdio::piped())
        .start();
    let once = format!("dlock/once/{name}");
    eventually(LIMIT, "the mark is made", || etcd.entries(&once).len() == 1);
    run.signal(Signal::STOP);
    link.both(Mode::Pass);
    let_pass(Duration::from_secs(5));
    let went_on_at = boot_clock();
    run.signal(Signal::CONT);
    run.says("on\n");
    run.let_go().expect_code(0);
    for key in [once, format!("dlock/lock/{name}/")] {
        let left = left(etcd, &key);
        let since = since(went_on_at).as_secs();
        assert!(left + since >= 997, "{key}: {left} s left after {since} s");
    }
}

/// "So a line in the crontabs of several hosts runs once, if their clocks differ by less than that time"
/// (dlock-run(1)): the line of the README, on hosts that are 1 s and 20 s late.
#[test]
fn the_crontab_line_runs_once_on_hosts_whose_clocks_differ() {
    let (etcd, name) = (Etcd::shared(), unique("nightly"));
    let started_at = boot_clock();
    let run = || {
        let line = [
            "-n",
            "-E",
            "0",
            "--min-hold",
            "50s",
            &name,
            "--",
            "echo",
            "ran",
        ];
        Dlock::on(etcd).run(line).finish()
    };
    run().expect_code(0).expect_stdout("ran\n");
    for late in [1, 20] {
        eventually(LIMIT, "the clock of the other host", || {
            since(started_at) >= Duration::from_secs(late)
        });
        run().expect_code(0).expect_silent();
    }
}
