//! dlock's own processes fail, are stopped or get a stop signal: the command's tree ends in time, whole, and once.
//! It must not know about failing servers and networks.

use std::time::Duration;

use crate::support::{
    Dlock, Etcd, LIMIT, Oracle, PlainKill, Process, Running, Signal, Terminal, alive, boot_clock,
    child, dlock_program, eventually, hold, hold_open, holder_and_waiter, let_pass, since, unique,
};

/// A holder and a waiter behind it, both with this TTL, and the name of the lock.
#[track_caller]
fn pair(oracle: &Oracle, ttl: &str) -> (Running, Running, String) {
    let (etcd, name) = (Etcd::shared(), unique("guard"));
    let line = [&format!("--ttl={ttl}"), &*name, "--"];
    let [holder, waiter] = [(); 2].map(|()| Dlock::on(etcd).run(line));
    let (holder, waiter) = holder_and_waiter(etcd, oracle, &name, holder, waiter);
    (holder, waiter, name)
}

/// "dlock dead (SIGKILL, OOM, panic): the guard sees EOF, stops the tree at once, kills it at the deadline at the latest."
#[test]
fn a_killed_dlock_ends_its_tree() {
    let oracle = Oracle::new();
    let (holder, mut waiter, _) = pair(&oracle, "5");
    holder.signal(Signal::KILL);
    // The latest moment of the kill: nine tenths of the TTL of 5 s after the last proof, less half a second.
    let mut plain = PlainKill::after(Duration::from_secs(4));
    holder.tree_dies_before("when the lease may be over", || {
        plain.is_dead_for(Duration::from_secs(1))
    });
    waiter.wait_within(LIMIT * 2).expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
    eventually(LIMIT, "the guard is gone as well", || {
        holder.everything().is_empty()
    });
}

/// A nested lock is not free while processes of its command live that ignore TERM, although the outer lock gives them hardly
/// any time.
#[test]
fn a_nested_lock_is_held_until_the_last_process_of_its_command_is_dead() {
    let (etcd, oracle) = (Etcd::shared(), Oracle::new());
    let (outer, inner) = (unique("outer"), unique("inner"));
    let children = "trap '' TERM; for i in $(seq 100); do sleep 600 & done; sleep 600";
    let dlock = env!("CARGO_BIN_EXE_dlock");
    let nested = Dlock::on(etcd)
        .run(["-k300ms", "--max-hold=3s", &outer, "--"])
        .args([dlock, "run", "-k3s", "--ttl=10", &inner, "--"])
        .args(oracle.command(&["sh", "-c", children]));
    let mut nested = nested.start();
    oracle.entered(1);
    let waiter = Dlock::on(etcd).run(["--ttl=10", &inner, "--"]);
    let mut waiter = waiter.args(oracle.command(&["true"])).start();
    etcd.queue_of(&inner, 2);
    nested.wait().expect_code(124);
    // At once, or when the lease of the nested dlock has ended.
    waiter.wait_within(LIMIT * 2).expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// A dlock killed while it waits leaves no process.
#[test]
fn a_killed_waiter_leaves_no_process() {
    let oracle = Oracle::new();
    let (_holder, waiter, _) = pair(&oracle, "5");
    waiter.signal(Signal::KILL);
    eventually(LIMIT, "its guard is gone", || {
        waiter.everything().is_empty()
    });
}

/// "dlock stopped: no new deadline arrives, the guard stops and kills the tree in time. Continued too late, dlock finds the
/// tree dead, renews nothing and exits `lost`."
#[test]
fn a_dlock_stopped_past_the_ttl_has_lost_its_lock() {
    let oracle = Oracle::new();
    let (mut holder, mut waiter, name) = pair(&oracle, "5");
    let place = Etcd::shared().queue(&name).remove(0);
    holder.signal(Signal::STOP);
    waiter.wait_within(LIMIT * 2).expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
    holder.assert_tree_dead();
    holder.signal(Signal::CONT);
    holder
        .wait()
        .expect_code(121)
        .expect_stderr(&["dlock: ", "lost"]);
    assert!(!Etcd::shared().leases().contains(&place.lease_hex()));
}

/// A stop for less than the slack has no effect.
#[test]
fn a_dlock_stopped_for_a_moment_keeps_its_lock() {
    let etcd = Etcd::shared();
    let name = unique("moment");
    let mut holder = hold_open(Dlock::on(etcd), &["--ttl=15"], &name);
    let place = etcd.queue(&name).remove(0);
    // Longer than the TTL in all: dlock must have renewed in between.
    for _ in 0..3 {
        holder.signal(Signal::STOP);
        let_pass(Duration::from_secs(2));
        holder.signal(Signal::CONT);
        let_pass(Duration::from_secs(4));
    }
    assert_eq!(etcd.queue(&name), [place]);
    holder.let_go();
}

/// "guard dead: the command dies with it, the rest re-parents to dlock, which kills it."
#[test]
fn a_killed_guard_ends_the_tree_and_the_lock_is_released_at_once() {
    let oracle = Oracle::new();
    let (mut holder, mut waiter, name) = pair(&oracle, "600");
    holder.guard().signal(Signal::KILL);
    let outcome = holder
        .wait()
        .expect_code(125)
        .expect_stderr(&["dlock: ", "guard"]);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    holder.assert_tree_dead();
    // Long before the lease expires.
    waiter.wait().expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
    assert!(Etcd::shared().queue(&name).is_empty());
}

/// "guard stopped: dlock notices that it does not answer and kills the tree itself."
#[test]
fn a_stopped_guard_ends_the_tree_in_time() {
    let oracle = Oracle::new();
    let (mut holder, mut waiter, _) = pair(&oracle, "10");
    holder.guard().signal(Signal::STOP);
    let outcome = holder.wait();
    assert!(matches!(outcome.code(), Some(121 | 125)), "{outcome:?}");
    holder.assert_tree_dead();
    assert!(holder.everything().is_empty(), "the guard is gone as well");
    waiter.wait_within(LIMIT * 2).expect_code(0);
    assert_eq!(oracle.tokens().len(), 2);
}

/// "If both are killed at once the direct child still dies": dlock cannot do anything here.
#[test]
fn the_command_dies_with_dlock_and_its_guard() {
    let name = unique("both");
    let holder = hold(Dlock::on(Etcd::shared()), &["--ttl=600"], &name);
    let guard = holder.guard();
    holder.signal(Signal::STOP);
    guard.signal(Signal::KILL);
    holder.tree_dies();
    holder.signal(Signal::KILL);
}

/// The guard of a waiter is killed: the command is never started without one.
#[test]
fn a_waiter_without_its_guard_starts_nothing() {
    let etcd = Etcd::shared();
    let name = unique("unguarded");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    let mut waiter = Dlock::on(etcd).run([&name, "echo", "never"]).start();
    etcd.queue_of(&name, 2);
    waiter.guard().signal(Signal::KILL);
    waiter
        .wait()
        .expect_code(125)
        .expect_stdout("")
        .expect_stderr(&["guard"]);
    assert_eq!(etcd.queue(&name).len(), 1);
}

/// "SIGTERM to all ... SIGKILL in a loop until none is left": after a loss, no process of any kind of tree is left.
#[test]
fn a_loss_ends_every_kind_of_tree() {
    let etcd = Etcd::shared();
    let stays = |script: &str| {
        vec![
            "sh".to_owned(),
            "-c".into(),
            format!("{script}; exec sleep 600"),
        ]
    };
    for (what, command) in [
        (
            "a command that ignores TERM",
            vec![child("ignores-term.sh")],
        ),
        ("daemonised grandchildren", stays(&child("daemonises.sh"))),
        ("a fork chain", vec![child("fork-chain.sh")]),
        ("a stopped command", stays("echo on; kill -STOP $$")),
        (
            "many children",
            stays("for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 600 & done; echo on"),
        ),
    ] {
        let name = unique("tree");
        let mut holder = Dlock::on(etcd)
            .run(["--ttl=10", "-k", "1", &name, "--"])
            .args(command)
            .start();
        holder.says("on\n");
        etcd.revoke(&etcd.queue(&name)[0].lease_hex());
        let outcome = holder.wait();
        assert_eq!(outcome.code(), Some(121), "{what}: {outcome:?}");
        holder.assert_tree_dead();
        eventually(LIMIT, "the guard is gone as well", || {
            holder.everything().is_empty()
        });
    }
}

/// "SIGCONT to all (a stopped process does not act on SIGTERM)": it can clean up.
#[test]
fn a_stopped_command_is_continued_to_act_on_term() {
    let name = unique("stopped");
    let script =
        "trap 'echo cleaned; exit' TERM; echo on; kill -STOP $$; while :; do sleep 0.05; done";
    let mut holder = Dlock::on(Etcd::shared())
        .run([&name, "sh", "-c", script])
        .start();
    holder.says("on\n");
    eventually(LIMIT, "it is stopped", || {
        holder.tree().iter().any(|it| it.state() == 'T')
    });
    holder.signal(Signal::KILL);
    holder.tree_dies();
    assert_eq!(holder.stdout(), "on\ncleaned\n");
}

/// "`-k/--kill-after`": a command that ignores SIGTERM is killed after that time, not earlier and not much later.
#[test]
fn the_time_between_term_and_kill_may_be_chosen() {
    let name = unique("grace");
    let line = ["--ttl=60", "-k", "2", &name, &child("ignores-term.sh")];
    let mut holder = Dlock::on(Etcd::shared()).run(line).start();
    holder.says("on\n");
    holder.signal(Signal::KILL);
    let killed_at = boot_clock();
    let mut plain = PlainKill::after(Duration::from_secs(2));
    // The default would be five seconds.
    holder.tree_dies_before("long after the time is over", || {
        plain.is_dead_for(Duration::from_secs(2))
    });
    let lived = since(killed_at);
    assert!(lived >= Duration::from_millis(1900), "{lived:?}");
}

/// "`--leftovers kill` (default: stop, grace, kill, *before* the release, with a warning line)", which `--quiet` keeps.
#[test]
fn leftovers_are_killed_before_the_release() {
    let etcd = Etcd::shared();
    for options in [&[][..], &["--leftovers", "kill"], &["--quiet"]] {
        let (oracle, name) = (Oracle::new(), unique("leftovers"));
        let command = oracle.command(&["sh", "-c", &format!("{}; exit 3", child("daemonises.sh"))]);
        let line = [options, &["-k", "1", &name, "--"]].concat();
        let mut holder = Dlock::on(etcd).run(line).args(command).start();
        let warning = "dlock: the command has ended, stopping ";
        let ended = holder.wait().expect_code(3).expect_stderr(&[warning]);
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        holder.assert_tree_dead();
        let next = Dlock::on(etcd)
            .run(["-n", &name, "--"])
            .args(oracle.command(&["true"]));
        next.finish().expect_code(0);
        assert_eq!(oracle.tokens().len(), 2);
    }
}

/// A descendant that ends by itself a moment after the command is no leftover: `cmd > >(tee log)` stays silent.
#[test]
fn a_descendant_that_ends_at_once_is_no_leftover() {
    // It ends at the end of its input, as after the end of a pipe, and needs no time but its turn.
    let script = r#"mkfifo "$HOME/pipe"; (read -r _ <"$HOME/pipe"; echo drained) & exec 3>"$HOME/pipe"; exit 0"#;
    let outcome = Dlock::on(Etcd::shared())
        .run([&unique("drain"), "sh", "-c", script])
        .finish();
    outcome
        .expect_code(0)
        .expect_stdout("drained\n")
        .expect_silent();
}

/// "`wait` (hold the lock until the last is gone, as flock does)"
#[test]
fn leftovers_may_be_waited_for() {
    let etcd = Etcd::shared();
    let name = unique("wait");
    let mut holder = Dlock::on(etcd)
        .run([
            "--ttl=10",
            "--leftovers=wait",
            &name,
            "sh",
            "-c",
            &format!("{} 13; exit 4", child("daemonises.sh")),
        ])
        .start();
    holder.says("on\n");
    // Beyond the TTL: dlock still renews for them.
    let_pass(Duration::from_secs(11));
    assert!(!holder.is_over());
    assert_eq!(etcd.queue(&name).len(), 1);
    holder.wait().expect_code(4);
    holder.assert_tree_dead();
}

/// During that wait, the promise holds for them too.
#[test]
fn leftovers_that_are_waited_for_die_with_the_lock() {
    let etcd = Etcd::shared();
    let name = unique("wait-lost");
    let mut holder = Dlock::on(etcd)
        .run(["--leftovers=wait", "-k1", &name, &child("daemonises.sh")])
        .start();
    holder.says("on\n");
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    holder.wait().expect_code(121);
    holder.assert_tree_dead();
}

/// "`leave`"
#[test]
fn leftovers_may_be_left() {
    let etcd = Etcd::shared();
    let name = unique("leave");
    let mut holder = Dlock::on(etcd)
        .run(["--leftovers", "leave", &name, &child("daemonises.sh")])
        .start();
    holder.wait().expect_code(0);
    assert!(etcd.queue(&name).is_empty());
    assert!(!holder.tree().is_empty(), "they live on");
}

/// "HUP INT QUIT TERM USR1 USR2 ALRM WINCH CONT are forwarded to the command when a process sent them to dlock"
#[test]
fn signals_while_holding_reach_the_command_once() {
    let etcd = Etcd::shared();
    let name = unique("forward");
    let mut holder = Dlock::on(etcd)
        .run([&name, &child("notes-signals.sh")])
        .start();
    holder.says("on\n");
    let mut expected = String::from("on\n");
    for (signal, word) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::ALARM, "ALRM"),
        (Signal::WINCH, "WINCH"),
        (Signal::TERM, "TERM"),
    ] {
        holder.signal(signal);
        expected.push_str(word);
        expected.push('\n');
        // A second signal would arrive before the next one.
        holder.says(&expected);
    }
    holder
        .wait()
        .expect_code(7)
        .expect_stdout(&expected)
        .expect_silent();
    assert!(etcd.queue(&name).is_empty());
}

/// If a command dies of the forwarded signal, dlock dies of it, too, after the release of the lock.
#[test]
fn a_forwarded_signal_that_ends_the_command_ends_dlock() {
    let etcd = Etcd::shared();
    for signal in [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
    ] {
        let name = unique("fatal");
        let dlock = Dlock::on(etcd).after("ulimit -c 0");
        let mut holder = hold(dlock, &[], &name);
        holder.signal(signal);
        holder.wait().expect_signal(signal);
        holder.assert_tree_dead();
        assert!(etcd.queue(&name).is_empty());
    }
}

/// A command that ignores the signal continues, and so does the lock.
#[test]
fn a_forwarded_signal_that_is_ignored_changes_nothing() {
    let etcd = Etcd::shared();
    let name = unique("stubborn");
    let mut holder = Dlock::on(etcd)
        .run(["--ttl=10", &name, &child("ignores-term.sh")])
        .start();
    holder.says("on\n");
    holder.signal(Signal::TERM);
    holder.signal(Signal::INT);
    let_pass(Duration::from_secs(11));
    assert!(!holder.is_over());
    assert_eq!(etcd.queue(&name).len(), 1);
}

/// "If the lock is lost, that process and all that descends from it are stopped and killed" (dlock-hold(1)): the lock
/// is not free before the last of them is dead, including those whose parent has died of the stop signal.
#[test]
fn every_descendant_of_the_process_of_a_hold_is_dead_before_the_lock_is_free() {
    let etcd = Etcd::shared();
    let dlock = dlock_program();
    for (what, rest) in [
        (
            "many children of a script that ignores TERM",
            "trap '' TERM; for n in $(seq 40); do (while :; do sleep 600; done) & done; echo on; wait",
        ),
        (
            "a child that ignores TERM, of a script that does not",
            r#"echo on; sh -c 'trap "" TERM; while :; do sleep 600; done'; exit"#,
        ),
        (
            "what a script starts when it is told to stop",
            r#"trap '(trap "" TERM; while :; do sleep 600; done) & sleep 0.3; exit' TERM
               echo on; while :; do sleep 0.1; done"#,
        ),
    ] {
        let (oracle, name) = (Oracle::new(), unique("pid"));
        let inside = oracle.command(&["sh", "-c", rest]);
        let script = format!(
            "eval \"$({dlock} hold --ttl=10 -k1 --max-hold=6s --background --pid $$ {name})\"; exec \"$@\""
        );
        let mut holder = Dlock::program(["sh", "-c", &script, "sh"])
            .args(inside)
            .env("DLOCK_ENDPOINTS", etcd.endpoint())
            .start();
        holder.says("on\n");
        let next = Dlock::on(etcd)
            .run([&name, "--"])
            .args(oracle.command(&["true"]))
            .finish();
        assert_eq!(next.code(), Some(0), "{what}: {next:?}");
        assert_eq!(oracle.tokens().len(), 2, "{what}");
        holder.assert_tree_dead();
    }
}

/// "terminal left to the command": it reads from it.
#[test]
fn the_command_reads_the_terminal() {
    let mut terminal = Terminal::open(&Etcd::shared().endpoint());
    let dlock = dlock_program();
    let name = unique("tty");
    terminal.line(&format!(r#"{dlock} run {name} sh -c 'echo ask-$((1+1)); read -r word; echo "got-$word"'; echo code-$?"#));
    terminal.await_text("ask-2");
    terminal.line("word");
    terminal.await_text("got-word");
    terminal.await_text("code-0");
}

/// "those that the terminal sent to the whole foreground group are not sent twice"
#[test]
fn ctrl_c_reaches_the_command_once() {
    let mut terminal = Terminal::open(&Etcd::shared().endpoint());
    let dlock = dlock_program();
    let name = unique("ctrl-c");
    let script =
        r#"$| = 1; $SIG{INT} = sub { print "int\n" }; print "on-", 1 + 1, "\n"; <STDIN>; exit 7"#;
    terminal.line(&format!(
        "{dlock} run {name} perl -e '{script}'; echo code-$?"
    ));
    terminal.await_text("on-2");
    // Two signals that arrive at the same time are one.
    for count in 1..=10 {
        terminal.ctrl('C');
        eventually(LIMIT, "it arrives", || {
            terminal.everything().matches("int\r\n").count() >= count
        });
    }
    terminal.line("");
    terminal.await_text("code-7");
    assert_eq!(terminal.everything().matches("int\r\n").count(), 10);
}

/// If a command dies of Ctrl-C, dlock dies of SIGINT, so that the shell's loop ends too.
#[test]
fn ctrl_c_ends_dlock_by_the_signal() {
    let etcd = Etcd::shared();
    let mut terminal = Terminal::open(&etcd.endpoint());
    let dlock = dlock_program();
    let name = unique("ctrl-c");
    terminal.line(&format!(
        "for n in 1 2 3; do {dlock} run {name} sh -c 'echo on-$((1+1)); exec sleep 600'; done"
    ));
    terminal.await_text("on-2");
    terminal.ctrl('C');
    terminal.prompts();
    terminal.line("echo code-$?");
    terminal.await_text("code-130");
    assert!(etcd.queue(&name).is_empty());
}

/// Ctrl-C while waiting leaves the queue.
#[test]
fn ctrl_c_leaves_the_queue() {
    let etcd = Etcd::shared();
    let name = unique("ctrl-c-wait");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    let mut terminal = Terminal::open(&etcd.endpoint());
    terminal.line(&format!("{} run {name} echo never", dlock_program()));
    etcd.queue_of(&name, 2);
    terminal.ctrl('C');
    terminal.prompts();
    terminal.line("echo code-$?");
    terminal.await_text("code-130");
    assert_eq!(etcd.queue(&name).len(), 1);
}

/// Ctrl-Z stops the job, `fg` continues it, and the command still has the terminal.
#[test]
fn ctrl_z_stops_and_fg_continues() {
    let mut terminal = Terminal::open(&Etcd::shared().endpoint());
    let dlock = dlock_program();
    let name = unique("ctrl-z");
    terminal.line(&format!(
        r#"{dlock} run --ttl 60 {name} sh -c 'echo ask-$((1+1)); read -r word; echo "got-$word"'"#
    ));
    terminal.await_text("ask-2");
    terminal.ctrl('Z');
    terminal.await_text("Stopped");
    terminal.prompts();
    terminal.line("echo shell-$((3+4))");
    terminal.await_text("shell-7");
    terminal.line("fg; echo code-$?");
    terminal.await_text(&format!("run --ttl 60 {name}"));
    let_pass(Duration::from_millis(300));
    terminal.line("word");
    terminal.await_text("got-word");
    terminal.await_text("code-0");
}

/// A job that stays stopped beyond its TTL is killed, like a stopped dlock.
#[test]
fn a_job_stopped_past_the_ttl_is_lost() {
    let etcd = Etcd::shared();
    let mut terminal = Terminal::open(&etcd.endpoint());
    let name = unique("job");
    let dlock = dlock_program();
    terminal.line(&format!(
        "{dlock} run --ttl 5 {name} sh -c 'echo on-$((1+1)); exec sleep 600'"
    ));
    terminal.await_text("on-2");
    terminal.ctrl('Z');
    terminal.await_text("Stopped");
    terminal.prompts();
    Dlock::on(etcd)
        .run(["--ttl=5", &name, "true"])
        .finish()
        .expect_code(0);
    terminal.line("fg; echo code-$?");
    terminal.await_text("code-121");
}

/// "Everything else is as it would be without dlock": a caller without a terminal that has a stopped job gets no SIGHUP
/// when the command ends.
#[test]
fn a_caller_with_a_stopped_job_is_not_hung_up() {
    let (etcd, name) = (Etcd::shared(), unique("stopped-job"));
    let script = "sleep 600 & kill -STOP $!; \"$@\"; echo survived; kill -KILL $!";
    let line = ["setsid", "-w", "sh", "-c", script, "sh"];
    Dlock::on(etcd)
        .under(line)
        .run([&name, "true"])
        .finish()
        .expect_code(0)
        .expect_stdout("survived\n");
}

/// "those jobs and their processes are not of the tree" (dlock-run(1)): an orphan of one lives when dlock kills the tree in the
/// place of its guard.
#[test]
fn a_job_of_the_shell_before_exec_outlives_the_tree() {
    let (etcd, name) = (Etcd::shared(), unique("job"));
    let script = "echo $$ >$HOME/orphan; exec sleep 600";
    let job = format!("(until [ -e $HOME/go ]; do sleep 0.1; done; sh -c '{script}' &) & true");
    let dlock = Dlock::on(etcd)
        .run(["--ttl=5", &name, "sh", "-c", "echo on; exec sleep 600"])
        .after(&job);
    let go = dlock.home().file("go");
    let mut holder = dlock.start();
    holder.says("on");
    std::fs::write(go, "").expect("our own directory");
    let orphan = eventually(LIMIT, "the job has started it", || {
        holder.written("orphan").trim().parse().ok().map(Process)
    });
    eventually(LIMIT, "it is an orphan", || {
        holder.process().children().contains(&orphan)
    });
    holder.guard().signal(Signal::STOP);
    let outcome = holder.wait();
    assert!(matches!(outcome.code(), Some(121 | 125)), "{outcome:?}");
    assert!(alive(orphan), "{outcome:?}");
    let mut left = holder.tree();
    left.retain(|process| *process != orphan);
    assert!(left.is_empty(), "{left:?}");
}
