//! The promise: the command is dead before any other client can get the lock, and survives while the lock is safe.
//! It must not know about failures of dlock's own processes.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{
    Direction, Dlock, Etcd, LIMIT, Link, Mode, Oracle, PlainKill, Running, WallClock, boot_clock,
    child, eventually, hold, hold_open, holder_and_waiter, let_pass, since, unique,
};

/// The shortest TTL that dlock allows.
const TTL: Duration = Duration::from_secs(5);

/// dlock exits as one that lost the lock, and no process of its command lives at that time.
#[track_caller]
fn is_lost(mut running: Running) {
    let outcome = running
        .wait()
        .expect_code(121)
        .expect_stderr(&["dlock: ", "lost"]);
    running.assert_tree_dead();
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

/// A holder that reaches etcd through `link`, and a waiter with a direct connection. The waiter is not dlock: it takes
/// the lock at the moment that etcd frees it, and so detects any process of the holder that lives too long.
#[track_caller]
fn behind_a_link(etcd: &Etcd, link: &Link, oracle: &Oracle) -> (Running, Running) {
    let name = unique("behind-a-link");
    let holder = Dlock::at(&link.endpoint()).run(["--ttl=5", &name, "--"]);
    let key = format!("dlock/lock/{name}");
    let waiter = Dlock::etcdctl(etcd).args(["lock", "--ttl=60", &key, "--"]);
    holder_and_waiter(etcd, oracle, &name, holder, waiter)
}

/// The waiter gets the lock, and the oracle has seen no overlap.
#[track_caller]
fn is_handed_over(oracle: &Oracle, mut waiter: Running) {
    waiter.wait_within(LIMIT * 2).expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// "121: lock lost: the command was killed": the operator revokes the lease.
#[test]
fn a_revoked_lease_ends_the_command() {
    let etcd = Etcd::shared();
    let name = unique("revoked");
    let holder = hold(Dlock::on(etcd), &[], &name);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    is_lost(holder);
    assert!(etcd.queue(&name).is_empty());
}

/// "A DELETE of our key ... is loss."
#[test]
fn a_deleted_key_ends_the_command() {
    let etcd = Etcd::shared();
    let name = unique("deleted");
    let holder = hold(Dlock::on(etcd), &[], &name);
    etcd.ctl(&["del", &etcd.queue(&name)[0].key]);
    is_lost(holder);
}

/// "... or our key under another lease is loss."
#[test]
fn a_key_under_another_lease_or_none_ends_the_command() {
    let etcd = Etcd::shared();
    for other in [true, false] {
        let name = unique("overwritten");
        let holder = hold(Dlock::on(etcd), &["--ttl=5"], &name);
        let key = &etcd.queue(&name)[0].key;
        if other {
            let granted = etcd.ctl(&["lease", "grant", "600"]);
            let lease = granted
                .split(' ')
                .nth(1)
                .expect("lease ID granted with TTL");
            etcd.ctl(&["put", &format!("--lease={lease}"), key, "stolen"]);
        } else {
            etcd.ctl(&["put", key, "stolen"]);
        }
        is_lost(holder);
        etcd.ctl(&["del", key]);
    }
}

/// "`stop_at = kill_at - grace`": without a proof there is a time to clean up, which does not turn a loss into a success.
#[test]
fn a_command_may_clean_up_and_the_loss_still_shows() {
    let etcd = Etcd::shared();
    for (option, signal) in [(&[][..], "TERM"), (&["--signal", "INT"], "INT")] {
        let (name, link) = (unique("cleanup"), Link::to(etcd.port()));
        let script = format!(
            "trap 'echo cleaned up; exit 0' {signal}; echo on; while :; do sleep 0.05; done"
        );
        let words = [option, &["--ttl=5", &name, "sh", "-c", &script]].concat();
        let mut holder = Dlock::at(&link.endpoint()).run(words).start();
        holder.says("on\n");
        link.both(Mode::Drop);
        holder
            .wait()
            .expect_code(121)
            .expect_stdout("on\ncleaned up\n");
    }
}

/// A deleted key leaves the time between the stop and the kill, and no more.
#[test]
fn a_key_that_is_gone_leaves_the_grace_and_no_more() {
    let etcd = Etcd::shared();
    let name = unique("at-once");
    // No renewal would notice it in time.
    let line = ["--ttl=600", "-k=1", &name, &child("ignores-term.sh")];
    let mut holder = Dlock::on(etcd).run(line).start();
    holder.says("on\n");
    // Before that the watch would begin with a read of a deleted key.
    let_pass(Duration::from_secs(1));
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    let revoked_at = boot_clock();
    is_lost(holder);
    let lived = since(revoked_at);
    assert!(
        lived < Duration::from_secs(20),
        "the command lived on for {lived:?}"
    );
}

/// "`kill_at = sent + 0.9 G - 0.5 s`": etcd is gone, and the command is dead before the lease could expire.
#[test]
fn a_killed_etcd_ends_the_command_within_the_ttl() {
    let etcd = Etcd::start();
    let holder = hold(Dlock::on(&etcd), &["--ttl=5"], "killed");
    etcd.kill();
    // The latest moment of the kill: nine tenths of the TTL of 5 s after the last proof, less half a second.
    let mut plain = PlainKill::after(Duration::from_secs(4));
    holder.tree_dies_before("when the lease may be over", || {
        plain.is_dead_for(Duration::from_secs(1))
    });
    is_lost(holder);
}

/// The server is frozen: its lease clock runs on, and it frees the lock at the moment it continues.
#[test]
fn a_frozen_etcd_ends_the_command_in_time() {
    let etcd = Etcd::start();
    let (oracle, link) = (Oracle::new(), Link::to(etcd.port()));
    let (holder, waiter) = behind_a_link(&etcd, &link, &oracle);
    etcd.stop();
    let_pass(TTL + Duration::from_secs(1));
    etcd.cont();
    is_lost(holder);
    is_handed_over(&oracle, waiter);
}

/// "restart of a member": shorter than the slack, the command survives.
#[test]
fn a_restarted_etcd_is_survived() {
    let etcd = Etcd::start();
    let mut holder = hold_open(Dlock::on(&etcd), &["--ttl=20"], "restart");
    etcd.restart();
    let_pass(Duration::from_secs(22));
    holder.let_go();
    etcd.assert_empty();
}

/// "No process of the command's tree runs after the first moment at which etcd could give the lock to somebody else"
/// (dlock-run(1)): the network drops everything, or only the answers.
#[test]
fn a_black_holed_network_ends_the_command_in_time() {
    let etcd = Etcd::shared();
    for answers_only in [false, true] {
        let (oracle, link) = (Oracle::new(), Link::to(etcd.port()));
        let (holder, waiter) = behind_a_link(etcd, &link, &oracle);
        if answers_only {
            link.set(Direction::ToClient, Mode::Drop);
        } else {
            link.both(Mode::Drop);
        }
        is_lost(holder);
        is_handed_over(&oracle, waiter);
    }
}

/// "It then counts from the keepalive's `sent`": answers that come late, in one burst, prove nothing about now.
#[test]
fn answers_in_a_late_burst_extend_nothing() {
    let etcd = Etcd::shared();
    let (oracle, link) = (Oracle::new(), Link::to(etcd.port()));
    let (holder, waiter) = behind_a_link(etcd, &link, &oracle);
    link.both(Mode::Hold);
    let_pass(Duration::from_secs(3));
    // The answers of the last three seconds arrive now; from here on no new ones do.
    link.both(Mode::Pass);
    let_pass(Duration::from_millis(50));
    link.both(Mode::Hold);
    let_pass(TTL);
    link.both(Mode::Pass);
    is_lost(holder);
    is_handed_over(&oracle, waiter);
}

/// The same burst within a long TTL is survived.
#[test]
fn a_burst_within_the_ttl_is_survived() {
    let etcd = Etcd::shared();
    let (name, link) = (unique("burst"), Link::to(etcd.port()));
    let mut holder = hold_open(Dlock::at(&link.endpoint()), &["--ttl=30"], &name);
    let place = etcd.queue(&name).remove(0);
    link.set(Direction::ToClient, Mode::Hold);
    let_pass(Duration::from_secs(5));
    link.both(Mode::Pass);
    let_pass(Duration::from_secs(7));
    link.set(Direction::ToClient, Mode::Hold);
    let_pass(Duration::from_secs(5));
    link.both(Mode::Pass);
    assert_eq!(etcd.queue(&name), [place]);
    holder.let_go();
}

/// "connection refused": a second or two within the TTL is survived.
#[test]
fn a_refused_connection_is_survived() {
    let etcd = Etcd::shared();
    let (name, link) = (unique("refused"), Link::to(etcd.port()));
    let mut holder = hold_open(Dlock::at(&link.endpoint()), &["--ttl=10"], &name);
    let place = etcd.queue(&name).remove(0);
    link.refuse();
    let_pass(Duration::from_millis(1500));
    link.heal();
    // Longer than the TTL: dlock must have renewed after that.
    let_pass(Duration::from_secs(11));
    assert_eq!(etcd.queue(&name), [place]);
    holder.let_go();
}

/// A link that is slow all the time is no fault.
#[test]
fn a_slow_link_loses_no_lock() {
    let etcd = Etcd::shared();
    let (name, link) = (unique("slow"), Link::to(etcd.port()));
    link.both(Mode::Delay(Duration::from_millis(50)));
    let outcome = Dlock::at(&link.endpoint())
        .run(["--ttl=10", &name, "sh", "-c", "sleep 12; echo done"])
        .finish();
    outcome
        .expect_code(0)
        .expect_silent()
        .expect_stdout("done\n");
    assert!(etcd.queue(&name).is_empty());
}

/// "Comparison fails: the lock was lost; exit 121 even if the command returned 0."
#[test]
fn a_release_that_finds_the_lock_gone_is_a_loss() {
    let etcd = Etcd::shared();
    let (name, link) = (unique("too-late"), Link::to(etcd.port()));
    let mut holder = hold_open(Dlock::at(&link.endpoint()), &["--ttl=30"], &name);
    let lease = etcd.queue(&name)[0].lease_hex();
    link.both(Mode::Hold);
    etcd.revoke(&lease);
    drop(holder.take_stdin());
    holder.tree_dies();
    link.both(Mode::Pass);
    is_lost(holder);
}

/// "Unconfirmed (etcd unreachable): warn that it frees itself within N s; the command's own status stands if the deadline was
/// never passed."
#[test]
fn an_unconfirmed_release_keeps_the_commands_status_and_warns() {
    let etcd = Etcd::shared();
    for code in [0, 3] {
        let (name, link) = (unique("unconfirmed"), Link::to(etcd.port()));
        let script = format!("cat; exit {code}");
        let mut holder = Dlock::at(&link.endpoint())
            .run(["--ttl=10", &name, "sh", "-c", &script])
            .stdin(Stdio::piped())
            .start();
        etcd.queue_of(&name, 1);
        link.both(Mode::Drop);
        drop(holder.take_stdin());
        holder.wait().expect_code(code).expect_stderr(&[
            "dlock: ",
            "release",
            "which etcd frees within",
        ]);
        eventually(LIMIT, "it frees itself", || etcd.queue(&name).is_empty());
    }
}

/// "Wall clocks play no part in it": the clock jumps an hour back and five seconds ahead with a lease of ten seconds.
#[test]
fn a_jump_of_the_wall_clock_has_no_effect() {
    let etcd = Etcd::shared();
    let jumps = ["-1h", "+5"];
    let runs: Vec<_> = jumps
        .map(|jump| {
            let (name, clock) = (unique("jump"), WallClock::new());
            let holder = hold_open(clock.wind(Dlock::on(etcd)), &["--ttl=10"], &name);
            let place = etcd.queue(&name).remove(0);
            (name, clock, holder, place, jump)
        })
        .into_iter()
        .collect();
    let_pass(Duration::from_secs(3));
    for (_, clock, _, _, jump) in &runs {
        clock.jump(jump);
    }
    let_pass(Duration::from_secs(13));
    for (name, _clock, mut holder, place, jump) in runs {
        assert_eq!(etcd.queue(&name), [place], "{jump}");
        holder.let_go().expect_silent();
    }
}

/// "A blocked or closed stderr never delays a renewal or the guard."
#[test]
fn no_stderr_of_any_kind_delays_a_renewal_or_the_end() {
    let etcd = Etcd::shared();
    let (_reader, mut writer) = std::io::pipe().expect("a pipe");
    let room = rustix::pipe::fcntl_getpipe_size(&writer).expect("a pipe has a size");
    writer
        .write_all(&vec![b'x'; room])
        .expect("the pipe has that much room");
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("a Linux");
    let verbose = |name: &str| {
        let command = [name, "sh", "-c", "sleep 12; echo done"];
        Dlock::on(etcd).args(["-v"]).run(["--ttl=10"]).args(command)
    };
    let names = [unique("closed"), unique("full"), unique("blocked")];
    let mut runs = [
        verbose(&names[0]).after("exec 2>&-").start(),
        verbose(&names[1]).stderr(full).start(),
        verbose(&names[2]).stderr(writer).start(),
    ];
    for run in &mut runs {
        run.wait().expect_code(0).expect_stdout("done\n");
    }
    for name in names {
        assert!(etcd.queue(&name).is_empty());
    }
}

/// The same when the lock is lost: the blocked message about it delays nothing.
#[test]
fn a_blocked_stderr_does_not_delay_the_end_of_a_lost_command() {
    let etcd = Etcd::shared();
    let (_reader, mut writer) = std::io::pipe().expect("a pipe");
    let room = rustix::pipe::fcntl_getpipe_size(&writer).expect("a pipe has a size");
    writer
        .write_all(&vec![b'x'; room])
        .expect("the pipe has that much room");
    let name = unique("blocked");
    let mut holder = hold(Dlock::on(etcd).args(["-v"]).stderr(writer), &[], &name);
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    holder.wait().expect_code(121);
    holder.assert_tree_dead();
}

/// A reader of the command's output that stops reading, or exits, affects only the command.
#[test]
fn a_stdout_without_a_reader_affects_only_the_command() {
    let etcd = Etcd::shared();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut run = Dlock::on(etcd)
        .run([&unique("reader"), "sh", "-c", "echo x; echo $? >&2"])
        .stdout(writer)
        .start();
    // For any result of sh: dlock passes it on silently.
    let outcome = run.wait();
    assert!(!outcome.stderr.contains("dlock: "), "{outcome:?}");
}
