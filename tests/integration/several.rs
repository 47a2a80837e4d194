//! Several locks of one run: all or none, in one order, each as safe as if it were alone.
//! It must not know how one lock is acquired.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{
    Dlock, Etcd, LIMIT, Link, Mode, Running, Scratch, Signal, dlock_program, eventually, hold,
    hold_open, let_pass, unique,
};

/// The shortest TTL that dlock allows.
const TTL: Duration = Duration::from_secs(5);

/// Two names, in the order in which dlock takes the locks.
fn two_names(stem: &str) -> (String, String) {
    let stem = unique(stem);
    (format!("{stem}-a"), format!("{stem}-b"))
}

/// A run of `echo ran` under both locks that waits for the second one, which `hold_open` holds, and has the first one.
fn waits_for_the_second(etcd: &Etcd, options: &[&str], (a, b): (&str, &str)) -> (Running, Running) {
    let holder = hold_open(Dlock::on(etcd), &[], b);
    let words = [options, &["--also", b, a, "echo", "ran"]].concat();
    let waiter = Dlock::on(etcd).run(words).start();
    etcd.queue_of(b, 2);
    assert_eq!(etcd.queue(a).len(), 1);
    (holder, waiter)
}

/// "dlock takes all locks in the order of the bytes of their names, so that two runs never wait for each other": runs that
/// name them in any order, and runs of one lock, all end, and no two are under one lock at a time.
#[test]
fn runs_that_name_the_locks_in_any_order_all_end_and_never_overlap() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("order");
    let inside = Scratch::new();
    let enter = |names: &str| {
        format!(
            "cd '{}'; for i in {names}; do mkdir $i || echo OVERLAP >>log; done; echo in >>log; sleep 0.01; rmdir {names}",
            inside.path().display()
        )
    };
    let both = enter("a b");
    let lines = [
        (vec!["--also", &a, &b], &both),
        (vec!["--also", &b, &a], &both),
        (vec![&*a], &enter("a")),
        (vec![&*b], &enter("b")),
    ];
    let rounds = 10;
    let mut all = Vec::new();
    for (names, script) in &lines {
        let loops = format!("for i in $(seq {rounds}); do \"$@\" || exit; done");
        let line = ["sh", "-c", &loops, "sh", dlock_program(), "run", "-w60"];
        let line = [&line[..], names, &["sh", "-c", script]].concat();
        let endpoint = etcd.endpoint();
        all.push(
            Dlock::program(line)
                .env("DLOCK_ENDPOINTS", endpoint)
                .start(),
        );
    }
    for mut runs in all {
        runs.wait_within(LIMIT * 4).expect_code(0).expect_silent();
    }
    let log = inside.read("log");
    assert!(!log.contains("OVERLAP"), "{log}");
    assert_eq!(log.lines().count(), rounds * lines.len());
}

/// "The loss of any lock stops the command": the status is 121, the message names the lock, and the others are free.
#[test]
fn the_loss_of_any_lock_stops_the_command() {
    let etcd = Etcd::shared();
    for second in [true, false] {
        let (a, b) = two_names("loss");
        let mut holder = hold(Dlock::on(etcd), &["--also", &b], &a);
        let (lost, other) = if second { (&b, &a) } else { (&a, &b) };
        etcd.revoke(&etcd.queue(lost)[0].lease_hex());
        let words = format!("lost lock '{lost}': ");
        holder.wait().expect_code(121).expect_stderr(&[&words]);
        holder.assert_tree_dead();
        etcd.queue_of(other, 0);
    }
}

/// "-n, -w and -E are for all locks together": a run that does not get one of them gives the others back.
#[test]
fn what_was_taken_is_given_back_when_the_rest_is_not_free_in_time() {
    let etcd = Etcd::shared();
    for (option, status) in [("-n", 75), ("-w1", 75), ("-E7", 7)] {
        let (a, b) = two_names("rest");
        let _holder = hold(Dlock::on(etcd), &[], &b);
        let wait = if option == "-E7" { "-n" } else { "-v" };
        let words = format!("the lock '{b}' is ");
        let run = Dlock::on(etcd).run([option, wait, "--also", &b, &a, "echo", "ran"]);
        let outcome = run.finish().expect_code(status).expect_stderr(&[&words]);
        outcome.expect_stdout("");
        assert!(etcd.queue(&a).is_empty(), "{option}");
        assert_eq!(etcd.queue(&b).len(), 1, "{option}");
    }
}

/// "A signal that arrives during the wait ends it": all locks are free.
#[test]
fn a_signal_during_the_wait_gives_all_back() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("signal");
    let (_holder, mut waiter) = waits_for_the_second(etcd, &[], (&a, &b));
    waiter.signal(Signal::TERM);
    waiter.wait().expect_signal(Signal::TERM).expect_stdout("");
    assert!(etcd.queue(&a).is_empty());
    assert_eq!(etcd.queue(&b).len(), 1);
}

/// "The command runs when dlock holds all of them", however long the last one took.
#[test]
fn the_first_lock_is_kept_while_the_second_is_awaited() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("kept");
    let (mut holder, mut waiter) = waits_for_the_second(etcd, &["--ttl=5"], (&a, &b));
    let first = etcd.queue(&a).remove(0);
    let_pass(TTL * 2);
    assert_eq!(etcd.queue(&a), [first]);
    holder.let_go();
    waiter
        .wait()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("ran\n");
    assert!(etcd.queue(&a).is_empty() && etcd.queue(&b).is_empty());
}

/// "They are released in the reverse order."
#[test]
fn the_last_lock_is_released_first() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("reverse");
    let prefix = format!("dlock/lock/{}", a.trim_end_matches('a'));
    let mut watch = Dlock::etcdctl(etcd)
        .args(["watch", "--prefix", &prefix])
        .start();
    eventually(LIMIT, "the watch is open", || {
        etcd.ctl(&["put", &format!("{prefix}ready"), "x"]);
        watch.stdout().contains("ready")
    });
    let mut holder = hold_open(Dlock::on(etcd), &["--also", &b], &a);
    let keys = [&b, &a].map(|name| etcd.queue(name).remove(0).key);
    holder.let_go();
    for key in &keys {
        watch.says(&format!("DELETE\n{key}\n"));
    }
    let deleted = keys.map(|key| watch.stdout().find(&format!("DELETE\n{key}\n")));
    assert!(deleted.is_sorted(), "{}", watch.stdout());
    etcd.ctl(&["del", &format!("{prefix}ready")]);
}

/// "`DLOCK_HELD` has all of them; the other variables are those of NAME", and dlock check and dlock fence find the token
/// of another one by its name.
#[test]
fn the_command_has_the_tokens_of_all_locks() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("tokens");
    for (named, also) in [(&a, &b), (&b, &a)] {
        let dlock = dlock_program();
        let script = format!(
            "echo $DLOCK_NAME:$DLOCK_FENCING_TOKEN; echo $DLOCK_HELD; '{dlock}' check && '{dlock}' check --name {also} && \
             '{dlock}' fence fence && '{dlock}' fence fence --name {also} && grep -e '-[ab] ' fence"
        );
        let run = Dlock::on(etcd);
        let home = run.home().path().to_owned();
        let run = run.after(&format!("cd '{}'", home.display()));
        let outcome = run
            .run(["--also", also, named, "sh", "-c", &script])
            .finish();
        let stdout = outcome.expect_code(0).expect_silent().stdout;
        let lines: Vec<&str> = stdout.lines().collect();
        let held: Vec<&str> = lines[1].split(' ').collect();
        assert!(held[0].starts_with(&format!("{a}:")), "{stdout}");
        assert!(held[1].starts_with(&format!("{b}:")), "{stdout}");
        assert!(held.contains(&lines[0]), "{stdout}");
        assert!(lines[0].starts_with(&format!("{named}:")), "{stdout}");
        let mut peeked: Vec<String> = held.iter().map(|one| one.replace(':', " ")).collect();
        peeked.sort();
        let mut seen = lines[2..].to_vec();
        seen.sort_unstable();
        assert_eq!(seen, peeked);
    }
}

/// "--shared and --slots are for all locks": readers hold both together, and a writer of either waits for them.
#[test]
fn readers_and_slots_share_all_locks() {
    let etcd = Etcd::shared();
    for option in ["--shared", "--slots=2"] {
        let (a, b) = two_names("shared");
        let mut one = hold_open(Dlock::on(etcd), &[option, "--also", &b], &a);
        let mut other = hold_open(Dlock::on(etcd), &[option, "--also", &a], &b);
        let third = if option == "--shared" { "-v" } else { option };
        let writer = |name| Dlock::on(etcd).run(["-n", third, name, "echo", "ran"]);
        for name in [&a, &b] {
            writer(name).finish().expect_code(75);
        }
        one.let_go();
        other.let_go();
        for name in [&a, &b] {
            writer(name).finish().expect_code(0);
        }
    }
}

/// A dlock that is killed while it waits for the second lock leaves the first one to its lease.
#[test]
fn a_killed_waiter_frees_its_first_lock_after_its_ttl() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("killed");
    let (mut holder, waiter) = waits_for_the_second(etcd, &["--ttl=5"], (&a, &b));
    waiter.signal(Signal::KILL);
    let mut next = Dlock::on(etcd).run([&*a, "echo", "next"]).start();
    next.wait_within(LIMIT * 2)
        .expect_code(0)
        .expect_stdout("next\n");
    etcd.queue_of(&b, 1);
    holder.let_go();
    assert_eq!(waiter.stdout(), "");
}

/// "dlock break asks a holder or waiter to give up": one that holds the first lock and waits for the second ends its wait.
#[test]
fn a_request_to_give_up_the_first_lock_ends_the_wait() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("asked");
    let (_holder, mut waiter) = waits_for_the_second(etcd, &[], (&a, &b));
    let token = etcd.queue(&a)[0].create_revision.to_string();
    let order = ["break", "--yes", "--token", &token, &a];
    Dlock::on(etcd).args(order).finish().expect_code(0);
    let words = format!("no longer waiting for '{a}', asked to leave by");
    waiter
        .wait()
        .expect_code(75)
        .expect_stderr(&[&words])
        .expect_stdout("");
    assert!(etcd.queue(&a).is_empty());
    etcd.queue_of(&b, 1);
}

/// "A lock that is lost before all are held is awaited again, with all others": no command runs under the rest.
#[test]
fn a_lock_that_is_lost_during_the_wait_is_awaited_again() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("again");
    // No renewal would notice the loss in time.
    let (mut holder, mut waiter) = waits_for_the_second(etcd, &["--ttl=600"], (&a, &b));
    let mut next = Dlock::on(etcd)
        .stdin(Stdio::piped())
        .run([&*a, "sh", "-c", "echo on; exec cat"])
        .start();
    etcd.queue_of(&a, 2);
    let first = etcd.queue(&a).remove(0);
    let token = first.create_revision.to_string();
    let order = ["break", "--now", "--yes", "--token", &token, &a];
    Dlock::on(etcd).args(order).finish();
    next.says("on\n");
    // It waits for the first lock again, and not for the second.
    etcd.queue_of(&a, 2);
    etcd.queue_of(&b, 1);
    holder.let_go();
    assert_eq!(waiter.stdout(), "");
    next.let_go();
    let words = format!("lost lock '{a}' before the others were held");
    waiter
        .wait()
        .expect_code(0)
        .expect_stderr(&[&words])
        .expect_stdout("ran\n");
    assert!(etcd.queue(&a).is_empty() && etcd.queue(&b).is_empty());
}

/// "If one of them is lost during the wait, dlock gives back all others and queues again for all locks": also after an outage
/// that both entries did not survive. The command runs only when both are held again.
#[test]
fn an_outage_longer_than_the_lease_starts_the_wait_again() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("outage");
    let link = Link::to(etcd.port());
    let mut holder = hold_open(Dlock::on(etcd), &[], &b);
    let mut waiter = Dlock::at(&link.endpoint())
        .run(["--ttl=5", "--also", &b, &a, "echo", "ran"])
        .start();
    etcd.queue_of(&b, 2);
    link.both(Mode::Drop);
    let mut next = hold_open(Dlock::on(etcd), &[], &a);
    etcd.queue_of(&b, 1);
    link.both(Mode::Pass);
    etcd.queue_of(&a, 2);
    holder.let_go();
    assert_eq!(waiter.stdout(), "");
    next.let_go();
    let words = format!("lost lock '{a}' before the others were held");
    waiter
        .wait_within(LIMIT * 2)
        .expect_code(0)
        .expect_stderr(&[&words])
        .expect_stdout("ran\n");
    etcd.queue_of(&a, 0);
    etcd.queue_of(&b, 0);
}

/// "Not with --once-per, --min-hold, --supersede or --reentrant", nor with one name twice.
#[test]
fn what_is_for_one_lock_is_refused_with_several() {
    for options in [
        &["--once-per=1h", "--also=b"][..],
        &["--min-hold=1s", "--also=b"],
        &["--supersede", "--also=b"],
        &["--reentrant", "--also=b"],
        &["--also=b", "--also=b"],
        &["--also=a"],
        &["--also="],
    ] {
        let outcome = Dlock::nowhere()
            .run([options, &["a", "true"]].concat())
            .finish();
        outcome
            .expect_code(125)
            .expect_stderr(&["dlock: cannot use"]);
    }
}

/// A command under several locks may not ask for any of them again.
#[test]
fn each_of_the_locks_is_known_to_be_held() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("nested");
    let inner = [dlock_program(), "run", "-w5", &b, "true"];
    let line = [&["--also", &b, &a][..], &inner].concat();
    let outcome = Dlock::on(etcd).run(line).finish().expect_code(125);
    outcome.expect_stderr(&[&format!("cannot lock '{b}': this command runs under it")]);
}

/// "hold --also": the shell gets the variables, and the release frees all.
#[test]
fn a_hold_has_several_locks_too() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("hold");
    let script = format!(
        "h=$('{0}' hold --background --pid $$ --also {b} {a}) || exit; eval \"$h\"; echo $DLOCK_HELD; '{0}' check --name {b} && '{0}' release",
        dlock_program()
    );
    let run = Dlock::program(["sh", "-c", &script]).env("DLOCK_ENDPOINTS", etcd.endpoint());
    let outcome = run.finish().expect_code(0);
    assert!(outcome.stdout.starts_with(&format!("{a}:")), "{outcome:?}");
    assert!(outcome.stdout.contains(&format!(" {b}:")), "{outcome:?}");
    assert!(etcd.queue(&a).is_empty() && etcd.queue(&b).is_empty());
}

/// "--report: also has the other locks and their tokens."
#[test]
fn the_report_has_the_tokens_of_all_locks() {
    let etcd = Etcd::shared();
    let (a, b) = two_names("report");
    let line = ["--report=-", "--also", &a, &b, "true"];
    let outcome = Dlock::on(etcd).run(line).finish().expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(report["name"], *b);
    assert_eq!(report["also"][0]["name"], *a);
    let (first, second) = (&report["also"][0]["token"], &report["token"]);
    assert!(first.as_i64() < second.as_i64(), "{report}");
}

/// The same without etcd: all or none, the loss of any, and a killed waiter.
#[test]
fn local_locks_are_taken_together_as_well() {
    let state = Scratch::new();
    let path = state.file("state");
    let dlock = || Dlock::nowhere().env("DLOCK_LOCAL", &path);
    let free = |name: &str| {
        let run = dlock().run(["-n", name, "true"]).finish();
        run.code() == Some(0)
    };
    let outcome = dlock().run(["--also=b", "a", "printenv", "DLOCK_HELD"]);
    outcome
        .finish()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("a:1/local b:1/local\n");

    let mut holder = hold_open(dlock(), &[], "b");
    dlock()
        .run(["-n", "--also=b", "a", "true"])
        .finish()
        .expect_code(75);
    assert!(free("a"));
    let waiting = || {
        let waiter = dlock().run(["--also=b", "a", "echo", "ran"]).start();
        eventually(LIMIT, "it has the first lock", || !free("a"));
        waiter
    };
    let killed = waiting();
    killed.signal(Signal::KILL);
    eventually(LIMIT, "a killed waiter frees its first lock", || free("a"));
    let mut waiter = waiting();
    holder.let_go();
    waiter.wait().expect_code(0).expect_stdout("ran\n");
    assert!(free("a") && free("b"));

    let mut holder = hold(dlock(), &["--also=b"], "a");
    let entries = fs::read_dir(format!("{path}/b")).expect("the directory of the lock");
    for entry in entries {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a plain name");
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            fs::remove_file(entry.path()).expect("our own file");
        }
    }
    holder
        .wait()
        .expect_code(121)
        .expect_stderr(&["lost lock 'b'"]);
    assert!(free("a") && free("b"));
}
