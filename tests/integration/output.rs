//! The messages of dlock: to a user at a terminal, in a log, and to programs.
//! It must not know how lines are written.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Dlock, Etcd, LIMIT, Outcome, Signal, Terminal, dlock_program, eventually, hold, hold_open,
    let_pass, unique,
};

/// A shell on a terminal that can erase.
fn xterm(etcd: &Etcd) -> Terminal {
    Terminal::of_kind(&etcd.endpoint(), "xterm")
}

/// "On a terminal one line shows all the time who has the lock ... It is erased when the waiting is over."
#[test]
fn the_live_line_shows_the_wait_for_a_lock() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let name = unique("live");
    let mut holder = hold_open(Dlock::on(etcd), &["--note=ticket 7"], &name);
    let mut terminal = xterm(etcd);
    terminal.line("stty cols 200");
    terminal.prompts();
    terminal.line(&format!("{dlock} run -w 10m {name} echo won-$((3+4))"));
    for text in [
        format!("dlock: waiting for '{name}' 0s, 10m left (next in line; held "),
        format!(": sh, note \"ticket 7\", pid {})", holder.process().0),
        // It continues.
        format!("\r\u{1b}[Kdlock: waiting for '{name}' 2s, 9m 58s left ("),
    ] {
        terminal.await_text(&text);
    }
    let screen = terminal.screen();
    let waiting = screen.iter().filter(|line| line.contains("waiting"));
    assert_eq!(waiting.count(), 1, "{screen:#?}");
    // The event loop draws it: a second thread would be in the way of the next fork.
    assert_eq!(terminal.process("dlock").threads(), 1);
    holder.let_go();
    terminal.await_text("won-7");
    terminal.prompts();
    let screen = terminal.screen();
    assert!(screen.iter().any(|line| line == "won-7"), "{screen:#?}");
    assert!(
        !screen.iter().any(|line| line.contains("waiting")),
        "{screen:#?}"
    );
}

/// "On a narrow terminal the line leaves out what matters less" (dlock-run(1)), and is erased as well when Ctrl-C or
/// a timeout ends the wait.
#[test]
fn the_line_is_cut_and_leaves_nothing() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let name = unique("narrow");
    let note = format!("--note={}", "漢字".repeat(40));
    let _holder = hold(Dlock::on(etcd), &[&note], &name);
    let mut terminal = xterm(etcd);
    terminal.line("stty cols 60");
    terminal.prompts();
    terminal.line(&format!("{dlock} run {name} echo never"));
    terminal.await_text("' 1s (");
    terminal.ctrl('C');
    terminal.prompts();
    terminal.line(&format!("{dlock} run -w 1 {name} echo never; echo code-$?"));
    terminal.await_text("code-75");
    let everything = terminal.everything();
    let drawn: Vec<&str> = everything
        .split(['\r', '\n'])
        .filter(|line| line.contains("waiting "))
        .collect();
    assert!(drawn.len() >= 3, "{everything:?}");
    for line in drawn {
        let plain = &line[line.find("dlock: ").expect(line)..];
        let wide = plain.chars().filter(|c| !c.is_ascii()).count();
        assert!(plain.chars().count() + wide <= 58, "{plain:?}");
    }
    let screen = terminal.screen();
    assert!(
        !screen.iter().any(|line| line.contains("waiting ")),
        "{screen:#?}"
    );
    assert!(
        screen.iter().any(|line| line.contains("is still held by")),
        "{screen:#?}"
    );
}

/// "nothing when the lock is free"; and with `TERM=dumb` or `--log-format json` plain lines.
#[test]
fn a_free_lock_is_taken_silently_and_a_dumb_terminal_is_not_erased() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let (free, name) = (unique("free"), unique("paper"));
    let mut terminal = xterm(etcd);
    terminal.line(&format!("{dlock} run {free} echo won-$((3+4))"));
    terminal.await_text("won-7");
    terminal.prompts();
    assert!(
        !terminal.everything().contains("dlock: "),
        "{}",
        terminal.everything()
    );

    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut terminal = Terminal::open(&etcd.endpoint());
    terminal.line(&format!("{dlock} run {name} echo won-$((3+4))"));
    terminal.await_text(&format!(
        "dlock: waiting for '{name}' (next in line; held by "
    ));
    let_pass(Duration::from_millis(2500));
    holder.let_go();
    terminal.await_text("won-7");
    let everything = terminal.everything();
    assert_eq!(everything.matches("waiting").count(), 1, "{everything}");
    assert!(!everything.contains('\u{1b}'), "{everything:?}");
}

/// A background job "is not stopped by `stty tostop`", draws nothing over its user's input, and draws again in the
/// foreground.
#[test]
fn a_waiter_in_the_background_is_silent_and_not_stopped() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let name = unique("background");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut terminal = xterm(etcd);
    terminal.line(&format!(
        "stty tostop; {dlock} -v run {name} sh -c 'echo won >$HOME/won' &"
    ));
    etcd.queue_of(&name, 2);
    // With -v it writes; with `tostop` that would stop a job.
    terminal.await_text(&format!(
        "dlock: waiting for '{name}' (next in line; held by"
    ));
    let_pass(Duration::from_millis(1500));
    assert!(
        !terminal.everything().contains("' 1s ("),
        "{}",
        terminal.everything()
    );
    terminal.line("jobs");
    terminal.await_text("Running");
    terminal.line("fg");
    terminal.await_text("s (next in line; held ");
    holder.let_go();
    terminal.await_text(&format!("acquired '{name}' with token"));
    eventually(LIMIT, "the command runs", || {
        terminal.written("won") == "won\n"
    });
}

/// "A terminal that takes nothing never delays dlock": neither its renewals nor its wait for the lock.
#[test]
fn a_stopped_terminal_costs_no_renewal() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let name = unique("stuck");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let mut terminal = xterm(etcd);
    terminal.line(&format!(
        "{dlock} run --ttl 5 {name} sh -c 'echo won >$HOME/won'"
    ));
    let before = etcd.queue_of(&name, 2);
    terminal.ctrl('S');
    let_pass(Duration::from_secs(9));
    let after = etcd.queue(&name);
    assert_eq!(after[1].key, before[1].key, "the place was lost");
    holder.let_go();
    eventually(LIMIT, "the command runs", || {
        terminal.written("won") == "won\n"
    });
    terminal.ctrl('Q');
    terminal.prompts();
}

/// "Elsewhere it says so once with -v or in a CI ... and never under cron".
#[test]
fn a_log_gets_each_change_once() {
    let etcd = Etcd::shared();
    let name = unique("log");
    let mut holder = hold_open(Dlock::on(etcd), &["--note=first"], &name);
    let mut second = Dlock::on(etcd)
        .stdin(std::process::Stdio::piped())
        .run(["--note=second", &name, "cat"])
        .start();
    etcd.queue_of(&name, 2);
    let waiter = |words: &[&str], ci: Option<&str>| {
        let dlock = Dlock::on(etcd).args(words).run([&name, "true"]);
        match ci {
            Some(variable) => dlock.env(variable, "true").start(),
            None => dlock.start(),
        }
    };
    let mut third = waiter(&[], Some("CI"));
    etcd.queue_of(&name, 3);
    let mut fourth = waiter(&["-v"], None);
    etcd.queue_of(&name, 4);
    let mut cron = waiter(&[], None);
    etcd.queue_of(&name, 5);
    let mut quiet = waiter(&["-q"], Some("GITHUB_ACTIONS"));
    etcd.queue_of(&name, 6);
    holder.let_go();
    eventually(LIMIT, "the holder changes", || {
        third.stderr().contains("second")
    });
    drop(second.take_stdin());
    second.wait().expect_code(0);
    let third = third.wait().expect_code(0);
    let lines: Vec<&str> = third.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{third:?}");
    assert!(
        lines[0].contains(&format!("waiting for '{name}' (2nd in line; held by")),
        "{third:?}"
    );
    assert!(lines[0].contains("note \"first\")"), "{third:?}");
    assert!(
        lines[1].contains("(next in line; held by") && lines[1].contains("note \"second\")"),
        "{third:?}"
    );
    let fourth = fourth.wait().expect_code(0);
    assert!(
        fourth.stderr.contains("(3rd in line; held by"),
        "{fourth:?}"
    );
    assert!(
        fourth.stderr.contains(&format!("released '{name}' after")),
        "{fourth:?}"
    );
    cron.wait().expect_code(0).expect_silent();
    quiet.wait().expect_code(0).expect_silent();
}

/// "Everything shown that came from etcd is escaped, cut and tolerant of foreign or broken records."
#[test]
fn a_hostile_record_is_safe_for_the_terminal() {
    let dlock = dlock_program();
    let etcd = Etcd::shared();
    let name = unique("hostile");
    let record = serde_json::json!({
        "v": 1, "host": "h\u{1b}[2J", "user": "\u{202e}root", "pid": 7, "program": "a\r\nb",
        "note": "\u{7}".repeat(300), "since": "yesterday\n", "url": "\u{2066}x", "mode": "exclusive", "slots": 1,
    });
    let key = format!("dlock/lock/{name}/1f");
    etcd.ctl(&["put", &key, &record.to_string()]);
    let mut terminal = xterm(etcd);
    terminal.line("stty cols 300");
    terminal.prompts();
    terminal.line(&format!("{dlock} run {name} echo won-$((3+4))"));
    terminal.await_text(r"held by \u{202e}root@h\u{1b}[2J: a\r\nb, note");
    let mut log = Dlock::on(etcd).args(["-v"]).run([&name, "true"]).start();
    eventually(LIMIT, "it says whom it waits for", || {
        log.stderr().contains("waiting for") && log.stderr().ends_with('\n')
    });
    let told = log.stderr();
    let waiting = told.lines().filter(|line| line.contains("waiting for"));
    assert!(told.len() < 4096 && waiting.count() == 1, "{told:?}");
    for (shown, where_) in [(told, "log"), (terminal.everything(), "terminal")] {
        let hostile = ['\u{7}', '\u{202e}', '\u{2066}'];
        assert!(
            !shown.contains(hostile) && !shown.contains("\u{1b}[2J"),
            "{where_}: {shown:?}"
        );
    }
    // Half a record, and no valid one.
    for broken in [r#"{"v":1,"host"#, "", r#"{"v":9,"host":"x"}"#] {
        etcd.ctl(&["put", &key, "--", broken]);
        Dlock::on(etcd)
            .run(["-n", &name, "true"])
            .finish()
            .expect_code(75)
            .expect_stderr(&["held by another client"]);
    }
    etcd.ctl(&["del", &key]);
    terminal.await_text("won-7");
    log.wait().expect_code(0);
}

/// Parses each line of `outcome` as an object.
fn events(outcome: &Outcome) -> Vec<Value> {
    let lines = outcome.stderr.lines();
    lines
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// The fields of the one event of this name.
#[track_caller]
fn fields<'a>(events: &'a [Value], name: &str) -> &'a Value {
    let found = events.iter().find(|event| event["event"] == name);
    &found.unwrap_or_else(|| panic!("no {name} in {events:#?}"))["fields"]
}

/// "With --log-format json each message is one JSON object ... event names its kind": a complete run, one that loses its
/// lock, and one that finds it busy.
#[test]
fn json_events_have_names() {
    let etcd = Etcd::shared();
    let name = unique("events");
    let dlock = || Dlock::on(etcd).args(["-v", "--log-format=json"]);
    let told = events(&dlock().run([&name, "true"]).finish().expect_code(0));
    let acquired = fields(&told, "acquired");
    assert_eq!(acquired["lock"], name.as_str());
    assert!(acquired["waited_seconds"].is_f64(), "{acquired}");
    assert_eq!(fields(&told, "released")["token"], acquired["token"]);
    assert_eq!(fields(&told, "released")["result"], "exit 0");

    let mut holder = hold(dlock(), &[], &name);
    let busy = dlock().run(["-n", &name, "true"]).finish().expect_code(75);
    assert_eq!(fields(&events(&busy), "busy")["lock"], name.as_str());
    let waiting = dlock().run(["-w1", &name, "true"]).finish().expect_code(75);
    let waiting = events(&waiting);
    assert_eq!(fields(&waiting, "waiting")["ahead"], 1);
    assert!(fields(&waiting, "waiting")["left_seconds"].is_f64());
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    let lost = events(&holder.wait().expect_code(121));
    assert!(
        fields(&lost, "lost")["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("revoked"))
    );
    let stopped = fields(&lost, "stopping")["processes"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(stopped.contains("(sleep)"), "{stopped}");
    assert_eq!(fields(&lost, "killed")["result"], "signal 15");

    let failed = events(
        &dlock()
            .run([&name, "/nowhere/at/all"])
            .finish()
            .expect_code(127),
    );
    assert_eq!(fields(&failed, "failed")["exit_code"], 127);
}

/// "-v ... each failed renewal with the seconds left, each failover".
#[test]
fn failed_renewals_and_failovers_are_reported() {
    let etcd = Etcd::start();
    let name = unique("narrated");
    let mut holder = hold(Dlock::on(&etcd).args(["-v"]), &["--ttl=5"], &name);
    etcd.kill();
    let lost = holder.wait().expect_code(121);
    let lost = lost.expect_stderr(&[
        " left: ",
        &format!("dlock: lost lock '{name}': no proof from etcd for "),
        "s (last error: 'http://127.0.0.1:",
        "); stopping the command\n",
    ]);
    let failed = lost
        .stderr
        .lines()
        .filter(|line| line.starts_with("dlock: cannot renew at '"));
    assert!(failed.count() >= 2, "{lost:?}");

    let etcd = Etcd::shared();
    let both = format!("127.0.0.1:1,{}", etcd.endpoint());
    let moved = Dlock::at(&both).args(["-v"]).run([&name, "true"]).finish();
    moved.expect_code(0).expect_stderr(&["using endpoint '"]);
}

/// "A signal during the wait ... ends dlock by the same signal" (dlock-run(1)), also a `dlock hold` without a command.
#[test]
fn a_hold_that_is_ended_while_it_waits_is_no_success() {
    let etcd = Etcd::shared();
    let name = unique("impatient");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    let mut waiter = Dlock::on(etcd).args(["hold", &name]).start();
    etcd.queue_of(&name, 2);
    waiter.signal(Signal::TERM);
    waiter.wait().expect_signal(Signal::TERM).expect_stdout("");
    // A shell that evaluates nothing would continue without the lock.
    let mut waiter = Dlock::on(etcd)
        .args(["hold", "--background", &name])
        .start();
    etcd.queue_of(&name, 2);
    let background = eventually(LIMIT, "the dlock in the background", || {
        let all = waiter.everything();
        let mut others = all.into_iter().filter(|process| process.name() == "dlock");
        others.find(|process| *process != waiter.process())
    });
    background.signal(Signal::TERM);
    waiter
        .wait()
        .expect_signal(Signal::TERM)
        .expect_stdout("exit 143\n");
}

/// "`DLOCK_LOG=etcd=debug,info` writes every message about the requests to etcd, and those of -v about the rest"
/// (dlock-events(7)): the probe of `dlock doctor` is a request, the steps of a run are none.
#[test]
fn directives_choose_the_messages_of_each_part() {
    let etcd = Etcd::shared();
    let dlock = |directives| {
        let dlock = Dlock::on(etcd).args(["--log-format=json"]);
        dlock.env("DLOCK_LOG", directives)
    };
    let messages = |outcome: &Outcome| -> Vec<String> {
        let events = events(outcome);
        let of = |event: &Value| format!("{} {}", event["level"], event["event"]).replace('"', "");
        events.iter().map(of).collect()
    };
    let doctor = |directives| messages(&dlock(directives).args(["doctor"]).finish());
    assert!(doctor("etcd=debug,info").contains(&"debug debug".to_owned()));
    assert!(doctor("commands=debug,info").is_empty());

    let run = |dlock: Dlock| dlock.run([&unique("directives"), "true"]).finish();
    let output = messages(&run(dlock("etcd=debug,info")).expect_code(0));
    assert!(output.contains(&"info acquired".to_owned()), "{output:?}");
    let output = messages(&run(dlock("commands=debug")).expect_code(0));
    assert!(output.contains(&"debug debug".to_owned()), "{output:?}");

    // "which write nothing unless a directive names them"
    let named = events(&run(dlock("off,h2=debug")).expect_code(0));
    assert!(!named.is_empty());
    for event in &named {
        assert_eq!(event["event"], "library");
        let target = event["fields"]["target"].as_str().unwrap_or_default();
        assert!(target.starts_with("h2::"), "{event}");
    }
}

/// "`DLOCK_LOG` wins over -v and -q, wherever they are set ... The error that ends dlock is always written. An invalid
/// directive is an error (status 125)" (dlock-events(7))
#[test]
fn directives_win_and_must_be_valid() {
    let etcd = Etcd::shared();
    let run = |directives, option| {
        let dlock = Dlock::on(etcd).env("DLOCK_LOG", directives).args([option]);
        dlock.run([&unique("directives"), "true"]).finish()
    };
    let output = run("info", "-q").expect_code(0).stderr;
    assert!(output.contains("dlock: acquired "), "{output}");
    assert_eq!(run("warn", "-vv").expect_code(0).stderr, "");
    let output = run("tower=debug", "-v").expect_code(0).stderr;
    assert!(output.contains("dlock: acquired "), "{output}");
    let output = run("off", "--cluster-id=1").expect_code(125).stderr;
    assert!(output.starts_with("dlock: "), "{output}");
    let output = run("etcd=loud", "-v").expect_code(125).stderr;
    assert!(
        output.starts_with("dlock: cannot use DLOCK_LOG 'etcd=loud': ")
            && output.contains("\nhint: "),
        "{output}"
    );
}

/// "-vv ... details": they are words, for a person, and not the debug form of Rust's values.
#[test]
fn details_are_words() {
    let etcd = Etcd::start();
    let long = ["--ttl=5s", "job", "sleep", "60"];
    let mut lost = Dlock::on(&etcd).args(["-vv"]).run(long).start();
    let proven = "dlock: a renewal was answered: the lock is proven, ";
    eventually(LIMIT, "a renewal", || lost.stderr().contains(proven));
    etcd.stop();
    let lost = lost.wait().expect_code(121).stderr;
    etcd.cont();
    let state = Dlock::nowhere().args(["-vv"]);
    let local = state.home().file("state");
    let local = state
        .env("DLOCK_LOCAL", local)
        .run(["job", "true"])
        .finish();
    let local = local.expect_code(0).stderr;
    let probed = Dlock::on(&etcd).args(["-vv", "doctor"]).finish().stderr;
    for detail in [
        "dlock: the watch is open: nothing to do\n",
        "dlock: a renewal failed: nothing to do\n",
        "dlock: the timer has expired: send deadline ",
        ": report the loss",
    ] {
        assert!(lost.contains(detail), "no {detail:?} in {lost}");
    }
    assert!(
        local.contains("dlock: no process of the command is left"),
        "{local}"
    );
    assert!(probed.contains(" has answered the probe\n"), "{probed}");
    let forms = [
        "Some(", "None", "Ok(", "Err(", "{ ", "::", "Instant", "Duration",
    ];
    for line in [&lost, &local, &probed]
        .into_iter()
        .flat_map(|it| it.lines())
    {
        let found = forms.into_iter().find(|form| line.contains(form));
        assert_eq!(found, None, "{line}");
    }
}
