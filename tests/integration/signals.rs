//! Signals and the terminal reach the command as without dlock.
//! It must not know the state of the lock, except that it is kept or released.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{
    Dlock, Etcd, LIMIT, Signal, Terminal, dlock_program, eventually, hold_open, in_namespaces,
    let_pass, unique,
};

/// dlock with a command on a terminal of its own; dlock leads its session, as with `ssh -t` and tmux.
fn leader(etcd: &Etcd, name: &str, script: &str) -> crate::support::Running {
    let dlock = dlock_program();
    let line = format!("exec {dlock} run {name} sh -c '{script}'");
    Dlock::program(["script", "-qfec", &line, "/dev/null"])
        .env("DLOCK_ENDPOINTS", etcd.endpoint())
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .start()
}

/// "When a terminal is closed whose session dlock leads, the kernel sends HUP to dlock alone, and dlock passes it on"
/// (dlock-run(1))
#[test]
fn the_end_of_a_terminal_reaches_a_command_below_the_leader() {
    let etcd = Etcd::shared();
    let name = unique("closed");
    let script = r#"trap "echo hup >>\$HOME/hups; exit 3" HUP; echo on-$((1+1)); while :; do sleep 0.05; done"#;
    let mut running = leader(etcd, &name, script);
    running.says("on-2");
    running.signal(Signal::KILL);
    eventually(LIMIT, "the command is told", || {
        !running.written("hups").is_empty()
    });
    eventually(LIMIT, "the lock is released", || {
        etcd.queue(&name).is_empty()
    });
    assert_eq!(running.written("hups"), "hup\n");
}

/// "A command in a process group of its own (timeout) gets those of the terminal from dlock."
#[test]
fn ctrl_c_reaches_a_command_in_a_group_of_its_own() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let name = unique("own-group");
    let mut terminal = Terminal::open(&etcd.endpoint());
    terminal.line(&format!(
        "{dlock} run {name} timeout 600 sh -c 'echo on-$((1+1)); exec sleep 600'"
    ));
    terminal.await_text("on-2");
    terminal.ctrl('C');
    terminal.prompts();
    terminal.line("echo code-$?");
    terminal.await_text("code-130");
    assert!(etcd.queue(&name).is_empty());
}

/// "If the command is stopped, dlock stops as well, and the shell has the terminal again", with the status that the shell
/// would see of the command itself; `fg` continues both.
#[test]
fn a_command_that_stops_itself_gives_the_terminal_back() {
    let dlock = dlock_program();
    let mut terminal = Terminal::open(&Etcd::shared().endpoint());
    for (signal, code) in [("STOP", 147), ("TSTP", 148)] {
        let name = unique("stops-itself");
        terminal.line(&format!(
            "{dlock} run --ttl 60 {name} sh -c 'kill -{signal} $$; echo back-$((1+1)); exit 4'; echo code-$?"
        ));
        terminal.await_text(&format!("code-{code}"));
        terminal.prompts();
        terminal.line(&format!("fg; echo {signal}-$?"));
        terminal.await_text("back-2");
        terminal.await_text(&format!("{signal}-4"));
        terminal.prompts();
    }
}

/// "dlock passes every signal on to the command that can be caught and that a process sends to dlock" (dlock-run(1)), also ABRT,
/// which the watchdog of systemd sends; and it ends dlock as it ends the command.
#[test]
fn abrt_reaches_the_command() {
    let (etcd, name) = (Etcd::shared(), unique("abort"));
    let script =
        "trap 'echo told; trap - ABRT' ABRT; ulimit -c 0; echo on; while :; do sleep 0.02; done";
    let mut running = Dlock::on(etcd).run([&*name, "sh", "-c", script]).start();
    running.says("on\n");
    running.signal(Signal::ABORT);
    running.says("told\n");
    running.signal(Signal::ABORT);
    running.wait().expect_signal(Signal::ABORT).expect_silent();
    assert!(etcd.queue(&name).is_empty());

    let _holder = hold_open(Dlock::on(etcd), &[], &name);
    let waiter = Dlock::on(etcd).run([&*name, "true"]).after("ulimit -c 0");
    let mut waiter = waiter.start();
    etcd.queue_of(&name, 2);
    waiter.signal(Signal::ABORT);
    waiter.wait().expect_signal(Signal::ABORT);
    assert_eq!(etcd.queue(&name).len(), 1);
}

/// "The guard's clock goes on" (dlock-run(1)): a command that stopped itself and stays so is killed in time for the
/// next holder.
#[test]
fn a_command_that_stopped_itself_past_the_ttl_is_lost() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let mut terminal = Terminal::open(&etcd.endpoint());
    let name = unique("stays-stopped");
    terminal.line(&format!(
        "{dlock} run --ttl 5 {name} sh -c 'kill -STOP $$; echo never'; echo code-$?"
    ));
    terminal.await_text("code-147");
    terminal.prompts();
    Dlock::on(etcd)
        .run(["--ttl=5", &name, "true"])
        .finish()
        .expect_code(0);
    terminal.line("fg; echo code-$?");
    terminal.await_text("code-121");
    assert!(!terminal.everything().contains("\nnever"));
}

/// "Continued by somebody else", the command continues dlock, which proves the lock again.
#[test]
fn a_command_that_is_continued_elsewhere_continues_dlock() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let mut terminal = Terminal::open(&etcd.endpoint());
    let name = unique("continued");
    terminal.line(&format!(
        "{dlock} run --ttl 60 {name} sh -c 'echo $$ >$HOME/pid; kill -STOP $$; read -r word; exit 4'; echo code-$?"
    ));
    terminal.await_text("code-147");
    terminal.prompts();
    terminal.line("kill -CONT $(cat $HOME/pid); wait; echo waited-$((1+1))");
    // In the background it may not read the terminal, and so stops again.
    terminal.await_text("waited-2");
    terminal.line("jobs -s; fg; echo code-$?");
    terminal.await_text(&format!("run --ttl 60 {name}"));
    let_pass(Duration::from_millis(300));
    terminal.line("word");
    terminal.await_text("code-4");
    assert!(etcd.queue(&name).is_empty());
}

/// "Ctrl-Z does not stop a command that ignores it": nor dlock.
#[test]
fn ctrl_z_stops_neither_a_command_that_ignores_it_nor_dlock() {
    let dlock = dlock_program();
    let mut terminal = Terminal::open(&Etcd::shared().endpoint());
    let name = unique("ignores-tstp");
    terminal.line(&format!(
        r#"{dlock} run {name} sh -c 'trap "" TSTP; echo on-$((1+1)); read -r word; echo "got-$word"'; echo code-$?"#
    ));
    terminal.await_text("on-2");
    terminal.ctrl('Z');
    terminal.line("word");
    terminal.await_text("got-word");
    terminal.await_text("code-0");
    assert!(!terminal.everything().contains("Stopped"));
}

/// Ctrl-Z stops a waiting dlock, and `fg` continues its wait.
#[test]
fn ctrl_z_stops_a_waiter() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let name = unique("waiter");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut terminal = Terminal::open(&etcd.endpoint());
    terminal.line(&format!(
        "{dlock} run --ttl 60 {name} echo won-$((1+1)); echo code-$?"
    ));
    etcd.queue_of(&name, 2);
    terminal.ctrl('Z');
    terminal.await_text("code-148");
    terminal.prompts();
    terminal.line("fg; echo code-$?");
    let waiter = terminal.process("dlock");
    eventually(LIMIT, "it waits on", || waiter.state() != 'T');
    holder.let_go();
    terminal.await_text("won-2");
    terminal.await_text("code-0");
}

/// "All signals that can be caught are passed on": also rare ones.
#[test]
fn rare_signals_reach_the_command() {
    let name = unique("rare");
    let numbers = [13, 16, 23, 24, 25, 26, 27, 29, 30, 34, 40, 64];
    let words = numbers.map(|number| number.to_string()).join(" ");
    let script = format!(
        "for n in {words}; do trap \"echo got-$n\" $n; done; trap 'exit 7' TERM; echo on; while :; do sleep 0.02; done"
    );
    let mut holder = Dlock::on(Etcd::shared())
        .run([&name, "bash", "-c", &script])
        .start();
    holder.says("on\n");
    let kill = |words: &[&str]| {
        let pid = holder.process().0.to_string();
        Dlock::program([words, &[&pid]].concat())
            .finish()
            .expect_code(0);
    };
    let mut expected = vec!["on".to_owned()];
    for number in numbers {
        kill(&["kill", &format!("-{number}")]);
        expected.push(format!("got-{number}"));
        eventually(LIMIT, &format!("signal {number} arrives"), || {
            holder.stdout().lines().eq(&expected)
        });
    }
    kill(&["kill", "-TERM"]);
    let outcome = holder.wait().expect_code(7);
    assert!(outcome.stdout.lines().eq(&expected), "{outcome:?}");
}

/// "A signal that the caller had blocked waits until the command unblocks it" (dlock-run(1)), at any time.
#[test]
fn a_blocked_signal_waits_for_the_command() {
    let etcd = Etcd::shared();
    let name = unique("blocked");
    let script = r#"use POSIX; $| = 1; $SIG{TERM} = sub { exit 5 }; print "on\n"; <STDIN>;
        POSIX::sigprocmask(SIG_UNBLOCK, POSIX::SigSet->new(SIGTERM)); sleep 600"#;
    let start = || {
        Dlock::on(etcd)
            .under(["env", "--block-signal=TERM"])
            .run([&name, "perl", "-e", script])
            .stdin(Stdio::piped())
            .start()
    };
    let mut first = start();
    first.says("on\n");
    let mut second = start();
    etcd.queue_of(&name, 2);
    second.signal(Signal::TERM);
    first.signal(Signal::TERM);
    first.type_in("\n");
    first.wait().expect_code(5);
    second.says("on\n");
    second.type_in("\n");
    second.wait().expect_code(5);
}

/// "One that the command sends to its own process group (kill 0) is not sent a second time."
#[test]
fn a_signal_of_the_command_to_its_group_arrives_once() {
    let script = "trap 'echo term >>$HOME/terms' TERM; kill -TERM 0; sleep 0.5; \
        sh -c 'trap : TERM; kill -TERM 0; sleep 0.3'; sleep 0.5; exit 7";
    let mut holder = Dlock::on(Etcd::shared())
        .under(["setsid", "-w"])
        .run([&unique("kill-0"), "sh", "-c", script])
        .start();
    holder.wait().expect_code(7);
    assert_eq!(holder.written("terms"), "term\nterm\n");
}

/// "`wait`": a signal that would end the command ends its leftovers, also right after the end of the command.
#[test]
fn a_signal_right_after_the_end_of_the_command_stops_its_leftovers() {
    let script = "(while kill -0 $$ 2>/dev/null; do :; done; kill -TERM $DLOCK_PID; exec sleep 600) & exit 3";
    Dlock::on(Etcd::shared())
        .after("export DLOCK_PID=$$")
        .run(["--leftovers", "wait", &unique("drain"), "sh", "-c", script])
        .finish()
        .expect_code(3);
}

/// A container often runs dlock as its first process, in a process group and a session from outside.
#[test]
fn dlock_runs_as_the_first_process_of_a_pid_namespace() {
    let (etcd, name) = (Etcd::shared(), unique("pid-1"));
    let Some(words) = in_namespaces(&["--pid", "--fork", "--mount-proc"]) else {
        return;
    };
    Dlock::on(etcd)
        .under(words)
        .run([&name, "sh", "-c", "exit 7"])
        .finish()
        .expect_code(7);
}
