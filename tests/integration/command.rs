//! The command's environment and the result of its end: as if dlock did not exist.
//! It must not know about waiting, loss or the guard.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::support::{
    Dlock, Etcd, LIMIT, Scratch, Signal, child, dlock_program, eventually, hold, may_trace, unique,
};

/// Runs a line of shell under a lock of its own.
fn shell(script: &str) -> Dlock {
    Dlock::on(Etcd::shared()).run([&unique("command"), "--", "sh", "-c", script])
}

/// "the command's: unchanged"
#[test]
fn exit_codes_pass_unchanged() {
    let name = unique("codes");
    let edges = [
        0, 1, 2, 3, 63, 64, 69, 74, 75, 76, 77, 100, 101, 111, 119, 120, 121, 122, 123,
    ];
    let others = [
        124, 125, 126, 127, 128, 129, 130, 137, 143, 200, 253, 254, 255,
    ];
    for code in edges.into_iter().chain(others) {
        let exit = format!("exit {code}");
        let outcome = Dlock::on(Etcd::shared())
            .run([&name, "sh", "-c", &exit])
            .finish();
        outcome.expect_code(code).expect_silent();
    }
}

/// "killed by signal n: dlock ends by the same signal (128+n in a shell)"
#[test]
fn death_by_a_signal_passes() {
    let fatal = [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::ILL,
        Signal::ABORT,
        Signal::FPE,
        Signal::KILL,
        Signal::USR1,
        Signal::SEGV,
        Signal::USR2,
        Signal::PIPE,
        Signal::ALARM,
        Signal::TERM,
    ];
    for signal in fatal {
        let script = format!("ulimit -c 0; kill -{} $$; sleep 600", signal.as_raw());
        shell(&script)
            .finish()
            .expect_signal(signal)
            .expect_silent();
    }
    let real_time = shell("kill -40 $$; sleep 600").finish();
    assert_eq!(real_time.signal(), Some(40), "{real_time:?}");
    let in_a_shell = Dlock::program([
        "sh",
        "-c",
        "\"$0\" run shell sh -c 'kill -TERM $$'; exit $?",
    ])
    .args([dlock_program()])
    .env("DLOCK_ENDPOINTS", Etcd::shared().endpoint());
    in_a_shell.finish().expect_code(143);
}

/// "stdin, stdout and stderr are the command's"
#[test]
fn input_and_output_pass() {
    let mut cat = Dlock::on(Etcd::shared())
        .run([&unique("cat"), "cat"])
        .stdin(Stdio::piped())
        .start();
    cat.type_in("one\ntwo\n");
    drop(cat.take_stdin());
    cat.wait()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("one\ntwo\n");
    let outcome = shell("echo out; echo err >&2")
        .finish()
        .expect_code(0)
        .expect_stdout("out\n");
    assert_eq!(outcome.stderr, "err\n");
}

/// "It keeps no copy of the command's stdout (a pipeline's reader must see EOF)"
#[test]
fn a_reader_of_stdout_sees_its_end_when_the_command_closes_it() {
    let mut running = shell("echo last; exec >&-; exec sleep 600")
        .stdout(Stdio::piped())
        .start();
    let mut text = String::new();
    running
        .take_stdout()
        .read_to_string(&mut text)
        .expect("text");
    assert_eq!(text, "last\n");
    assert!(!running.is_over());
}

/// "A writer sees that its reader is gone": dlock keeps no copy of the command's stdin either.
#[test]
fn a_writer_to_stdin_sees_that_the_command_closed_it() {
    let mut running = shell("exec <&-; echo closed; exec sleep 600")
        .stdin(Stdio::piped())
        .start();
    running.says("closed\n");
    let mut stdin = running.take_stdin();
    eventually(LIMIT, "a write fails", || {
        use std::io::Write;
        stdin.write_all(b"x").is_err()
    });
}

/// "Options stop at the command: everything after it is the command's."
#[test]
fn arguments_pass_untouched() {
    let words = [
        "a b", "", "-n", "--", "--ttl", "4", "é", "*", "$HOME", "a\nb", "-",
    ];
    let printed = words.map(|word| format!("<{word}>")).concat();
    let name = unique("words");
    for separator in [&["--"][..], &[]] {
        let line = [&[&*name], separator, &["printf", "<%s>"], &words].concat();
        Dlock::on(Etcd::shared())
            .run(line)
            .finish()
            .expect_code(0)
            .expect_stdout(&printed);
    }
    let outcome = Dlock::on(Etcd::shared())
        .run([&name, "sh", "-c", "exit 3"])
        .finish();
    outcome.expect_code(3);
}

/// "`run NAME -c 'shell string'`"
#[test]
fn a_shell_string_runs() {
    let name = unique("string");
    let outcome = Dlock::on(Etcd::shared())
        .run([&name, "-c", "echo a  'b  c' | cat; exit 4"])
        .finish();
    outcome.expect_code(4).expect_stdout("a b  c\n");
}

/// "`DLOCK_FENCING_TOKEN` (decimal), `DLOCK_NAME`, `DLOCK_KEY`, `DLOCK_LEASE` (hex), `DLOCK_HELD`; also `ETCD_LOCK_KEY` and
/// `ETCD_LOCK_REV`. Always set last. Nothing is removed."
#[test]
fn the_command_gets_its_variables() {
    let etcd = Etcd::shared();
    let name = unique("variables");
    let mut running = Dlock::on(etcd)
        .run([&name, "sh", "-c", "env; echo end; exec sleep 600"])
        .env("DLOCK_FENCING_TOKEN", "1")
        .env("DLOCK_LEASE", "preset")
        .env("ETCD_LOCK_REV", "2")
        .env("OTHER", "kept")
        .start();
    running.says("end\n");
    let place = &etcd.queue(&name)[0];
    let token = place.create_revision.to_string();
    let output = running.stdout();
    for (variable, value) in [
        ("DLOCK_FENCING_TOKEN", &token),
        ("DLOCK_NAME", &name),
        ("DLOCK_KEY", &place.key),
        ("DLOCK_LEASE", &place.lease_hex()),
        ("DLOCK_HELD", &format!("{name}:{token}")),
        ("ETCD_LOCK_KEY", &place.key),
        ("ETCD_LOCK_REV", &token),
        ("OTHER", &"kept".to_owned()),
        ("DLOCK_ENDPOINTS", &etcd.endpoint()),
    ] {
        let values: Vec<&str> = output
            .lines()
            .filter_map(|line| line.strip_prefix(variable)?.strip_prefix('='))
            .collect();
        assert_eq!(values, [value], "{variable}");
    }
}

/// "`etcdctl txn` can compare `create("$DLOCK_KEY") = "$DLOCK_FENCING_TOKEN"`"
#[test]
fn etcdctl_can_check_the_token() {
    let etcd = Etcd::shared();
    let script = r#"printf 'create("%s") = "%s"\n\nput proven yes\n\n\n' "$DLOCK_KEY" "$DLOCK_FENCING_TOKEN" | "$@" txn"#;
    let line = ["sh".to_owned(), "-c".into(), script.into(), "sh".into()];
    let outcome = Dlock::on(etcd)
        .run(
            [unique("txn"), "--".into()]
                .into_iter()
                .chain(line)
                .chain(etcd.ctl_command()),
        )
        .env("ETCDCTL_API", "3")
        .finish()
        .expect_code(0);
    assert!(outcome.stdout.contains("SUCCESS"), "{}", outcome.stdout);
}

/// "`DLOCK_HELD` (`outer:123 inner:130`, the chain of nested locks) ... a nested lock shows its own"
#[test]
fn nested_locks_show_their_own_variables_and_the_chain() {
    let (outer, inner) = (unique("outer"), unique("inner"));
    let script = r#"echo "$DLOCK_NAME $DLOCK_FENCING_TOKEN $ETCD_LOCK_REV $ETCD_LOCK_KEY"; "$1" run "$2" sh -c 'echo "$DLOCK_NAME $DLOCK_FENCING_TOKEN $ETCD_LOCK_REV $ETCD_LOCK_KEY"; echo "$DLOCK_HELD"'"#;
    let outcome = Dlock::on(Etcd::shared())
        .run([&outer, "sh", "-c", script, "sh", dlock_program(), &inner])
        .finish()
        .expect_code(0)
        .expect_silent();
    let lines: Vec<Vec<&str>> = outcome
        .stdout
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    let [first, second, held] = &lines[..] else {
        panic!("{outcome:?}")
    };
    assert_eq!((first[0], second[0]), (&*outer, &*inner));
    let number = |text: &str| text.parse::<u64>().expect("decimal");
    assert!(number(first[1]) < number(second[1]));
    assert_eq!((first[1], second[1]), (first[2], second[2]));
    assert!(second[3].starts_with(&format!("dlock/lock/{inner}/")));
    assert_eq!(
        held,
        &[
            format!("{outer}:{}", first[1]),
            format!("{inner}:{}", second[1])
        ]
    );
}

/// "Locking a name that the chain already holds would wait for itself for ever: refused with 125."
#[test]
fn a_lock_inside_itself_is_refused() {
    let (outer, inner) = (unique("self"), unique("between"));
    let dlock = dlock_program();
    let outcome = Dlock::on(Etcd::shared())
        .run([
            &outer, dlock, "run", &inner, dlock, "run", &outer, "echo", "never",
        ])
        .finish()
        .expect_code(125)
        .expect_stdout("");
    outcome.expect_stderr(&[&outer, "hint: "]);
}

/// "If the token in `DLOCK_HELD` does not hold the lock any more, ... dlock ignores that lock and asks for it as usual"
/// (dlock-run(1)).
#[test]
fn a_lock_that_was_held_around_the_command_can_be_taken_again() {
    let (etcd, name) = (Etcd::shared(), unique("stale"));
    let printed = Dlock::on(etcd)
        .run([&name, "printenv", "DLOCK_HELD"])
        .finish();
    let held = printed.expect_code(0).stdout;
    let again = |name: &str| {
        let dlock = Dlock::on(etcd).env("DLOCK_HELD", held.trim_end());
        dlock.run(["-n", name, "echo", "again"]).finish()
    };
    again(&name).expect_code(0).expect_stdout("again\n");
    // A lock that another client holds by now is busy.
    let _other = hold(Dlock::on(etcd), &[], &name);
    again(&name).expect_code(75).expect_stdout("");
}

/// "A lock of the same name under another prefix is another lock" (dlock-run(1)): it is acquired inside, and refused
/// where it is held itself.
#[test]
fn a_lock_of_one_name_under_another_prefix_is_another_lock() {
    let (name, prefix) = (unique("prefix"), unique("team 1"));
    let dlock = dlock_program();
    let other = format!("--prefix={prefix}");
    let innermost = format!("echo \"$DLOCK_HELD\"; exec {dlock} run '{other}' {name} echo never");
    let refused = Dlock::on(Etcd::shared())
        .run([&name, dlock, "run", &other, &name, "-c", &innermost])
        .finish()
        .expect_code(125);
    let held: Vec<&str> = refused.stdout.split_whitespace().collect();
    let [outer, inner] = held[..] else {
        panic!("{refused:?}");
    };
    assert!(outer.starts_with(&format!("{name}:")) && !outer.contains('/'));
    let encoded = prefix.replace(' ', "%20");
    assert!(inner.ends_with(&format!("/prefix={encoded}%2F")), "{inner}");
    refused.expect_stderr(&["would wait for itself", "hint: "]);
}

/// "keys of different kinds must not collide whatever the prefix": a prefix whose keys would be those of locks under another one is
/// refused, and the locks under that one stay free.
#[test]
fn a_prefix_whose_keys_are_those_of_other_locks_is_refused() {
    let etcd = Etcd::start();
    for kind in ["lock", "once", "released", "slot"] {
        for prefix in [format!("dlock/{kind}"), format!("dlock/{kind}/")] {
            let line = ["--prefix", &prefix, "--once-per=1h", "abc", "true"];
            let refused = Dlock::on(&etcd).run(line).finish().expect_code(125);
            refused.expect_stderr(&[&prefix, "are those of locks with the prefix 'dlock/'"]);
        }
        let free = Dlock::on(&etcd).run(["-n", kind, "true"]).finish();
        free.expect_code(0).expect_silent();
    }
    etcd.assert_empty();
}

/// "126 / 127: command not executable / not found: found out before queueing"
#[test]
fn an_impossible_command_is_refused_before_queueing() {
    let etcd = Etcd::shared();
    let name = unique("lookup");
    let _holder = hold(Dlock::on(etcd), &[], &name);
    let plain = Dlock::nowhere();
    let file = plain.home().write("plain", "echo never\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("our own file");
    for (command, code) in [
        ("no-such-program", 127),
        ("/no/such/program", 127),
        ("./no-such-program", 127),
        ("", 127),
        (&*file, 126),
        ("/", 126),
        ("/etc", 126),
    ] {
        // With a holder, without any etcd, and with one that never answers: the command is looked up first.
        for dlock in [Dlock::on(etcd), Dlock::at("http://127.0.0.1:1")] {
            let outcome = dlock.run([&name, "--", command]).finish();
            assert_eq!(outcome.code(), Some(code), "{command:?}: {outcome:?}");
            assert!(outcome.stderr.contains(command), "{}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        }
    }
    assert_eq!(etcd.queue(&name).len(), 1);
}

/// "126": if only the start shows that a file is no program, the lock is released.
#[test]
fn a_command_that_cannot_start_releases_the_lock() {
    let etcd = Etcd::shared();
    let name = unique("interpreter");
    let dlock = Dlock::on(etcd);
    // The kernel finds no end of interpreters.
    let file = dlock.home().file("script");
    dlock.home().write("script", &format!("#!{file}\n"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("our own file");
    let outcome = dlock.run([&name, &file]).finish();
    let outcome = outcome.expect_code(126).expect_stderr(&[&file]);
    assert_eq!(outcome.stdout, "");
    assert!(etcd.queue(&name).is_empty());
}

/// "126": arguments that fit with the caller's variables, but not with those of dlock, are an error that says so.
#[test]
fn too_many_arguments_for_the_variables_of_dlock_say_so() {
    let etcd = Etcd::shared();
    // It is in four variables, so that these are longer than the beginning of dlock's own command line.
    let name = unique(&"long".repeat(40));
    let variables = 100; // bytes, less than what dlock adds
    let run = |bytes: usize| {
        let script =
            r#"exec "$0" run "$1" /bin/true $(head -c "$2" /dev/zero | tr '\0' x | fold -w 99999)"#;
        Dlock::program(["bash", "-c", script, dlock_program(), &name])
            .args([bytes.to_string()])
            .env("DLOCK_ENDPOINTS", etcd.endpoint())
            .finish()
    };
    // The longest arguments that the shell can pass to dlock at all, to the required precision.
    let (mut fits, mut too_much) = (1_usize << 20, 1_usize << 23);
    let mut refused = None;
    while refused.is_none() && too_much - fits > variables {
        let middle = fits.midpoint(too_much);
        let outcome = run(middle);
        match outcome.code() {
            Some(0) => fits = middle,
            Some(126) if outcome.stderr.starts_with("dlock: ") => refused = Some(outcome),
            _ => too_much = middle,
        }
    }
    let refused = refused.expect("there is a length in between");
    refused.expect_stderr(&["Argument list too long", "variables", "hint: "]);
    assert!(etcd.queue(&name).is_empty());
}

/// "as execvp(3)": sh runs a script without an interpreter line.
#[test]
fn a_script_without_an_interpreter_line_runs() {
    let outcome = Dlock::on(Etcd::shared())
        .run([&unique("sh"), &child("no-shebang"), "a b"])
        .finish();
    outcome.expect_code(0).expect_stdout("run by sh: a b\n");
}

/// "its dispositions, mask, fds, cwd, umask and limits are exactly those it would have without dlock"
#[test]
fn the_command_inherits_as_without_dlock() {
    let look = "grep -E '^(Sig(Blk|Ign|Cgt)|CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
        ls /proc/self/fd; umask; pwd; ulimit -a; nice; cat /proc/self/oom_score_adj; \
        cut -d' ' -f5,6 /proc/self/stat | wc -w";
    for setup in [
        "true",
        "trap '' HUP PIPE USR1 CHLD INT TERM",
        "umask 027; cd /; ulimit -n 200 -c 0; exec 7</dev/null 12>/dev/null",
        "exec <&-",
        "exec 2>&-",
        "exec <&- 2>&-",
        "exec nice -n 3 \"$@\"",
        "exec env --block-signal=USR2,TERM --default-signal=PIPE \"$@\"",
    ] {
        let command = ["sh", "-c", look];
        let without = Dlock::program(command).after(setup).finish();
        let with = Dlock::on(Etcd::shared())
            .run([&unique("inherit"), "--"])
            .args(command)
            .after(setup)
            .finish();
        assert_eq!(with.code(), without.code(), "{setup}: {with:?}");
        assert_eq!(with.stdout, without.stdout, "after {setup:?}");
    }
}

/// "dlock itself failed": with too few descriptors or processes it fails cleanly, and starts nothing without a guard.
#[test]
fn a_lack_of_descriptors_is_a_clean_failure_or_none() {
    let etcd = Etcd::shared();
    let name = unique("scarce");
    for limit in 3..=20 {
        let run = Dlock::on(etcd)
            .args(["--connect-timeout=2"])
            .run(["--ttl=5", &name, "echo", "ran"]);
        let outcome = run.after(&format!("ulimit -n {limit}")).finish();
        let whole = match outcome.code() {
            Some(0) => outcome.stdout == "ran\n",
            // The shell or the loader itself may fail first.
            Some(125..=127) => outcome.stdout.is_empty() && !outcome.stderr.is_empty(),
            _ => false,
        };
        assert!(
            whole && !outcome.stderr.contains("panicked"),
            "{limit}: {outcome:?}"
        );
    }
    eventually(LIMIT, "nothing is left", || etcd.queue(&name).is_empty());
}

/// "COMMAND in the caller's process group and terminal"
#[test]
fn the_command_is_in_the_callers_process_group_and_session() {
    let script = r#"group() { cut -d" " -f5,6 "/proc/$1/stat"; }; group $$; "$1" run "$2" sh -c 'cut -d" " -f5,6 /proc/$$/stat'"#;
    let outcome = Dlock::program(["sh", "-c", script, "sh", dlock_program(), &unique("group")])
        .env("DLOCK_ENDPOINTS", Etcd::shared().endpoint())
        .finish()
        .expect_code(0);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], lines[1]);
}

/// "stay ignored for the command (`nohup dlock ...`)"
#[test]
fn nohup_holds_for_dlock_and_the_command() {
    let name = unique("nohup");
    let mut running = Dlock::on(Etcd::shared())
        .run([
            &name,
            "sh",
            "-c",
            "kill -HUP $$; echo survived; read -r line; echo \"$line\"",
        ])
        .under(["nohup"])
        .stdin(Stdio::piped())
        .start();
    running.says("survived\n");
    running.signal(Signal::HUP);
    running.type_in("after the hangup\n");
    running
        .wait()
        .expect_code(0)
        .expect_stdout("survived\nafter the hangup\n");
}

/// "silent when all is well", and `-v` is not.
#[test]
fn without_verbose_a_successful_run_is_silent() {
    let name = unique("silent");
    Dlock::on(Etcd::shared())
        .run([&name, "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    let outcome = Dlock::on(Etcd::shared())
        .args(["-v"])
        .run([&name, "true"])
        .finish()
        .expect_code(0);
    assert!(outcome.stderr.contains(&name), "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .lines()
            .all(|line| line.starts_with("dlock: ")),
        "{}",
        outcome.stderr
    );
    let outcome = Dlock::on(Etcd::shared())
        .args(["-v", "--log-format=json"])
        .run([&name, "true"])
        .finish()
        .expect_code(0);
    for line in outcome.stderr.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
    assert_ne!(outcome.stderr, "");
}

/// "A container runtime that is older than its kernel may refuse newer system calls (EPERM); dlock then uses older
/// ones" (dlock-doctor(1))
#[test]
fn a_refused_system_call_is_replaced_by_an_older_one() {
    if may_trace().is_none() {
        return;
    }
    let state = Scratch::new();
    let newer = "clone3,close_range,copy_file_range,faccessat2,openat2,renameat2,statx";
    let refused = |dlock: Dlock| {
        let inject = format!("inject={newer}:error=EPERM");
        let trace = format!("trace={newer}");
        dlock.under([
            "strace",
            "-Dfqq",
            "-o",
            "/dev/null",
            "-e",
            &trace,
            "-e",
            &inject,
        ])
    };
    let endpoint = Etcd::shared().endpoint();
    let named = endpoint.replace("127.0.0.1", "localhost");
    assert_ne!(named, endpoint);
    let report = state.write("report", "");
    for _ in 0..2 {
        let words = [
            "--report",
            &report,
            &unique("refused"),
            "printenv",
            "DLOCK_NAME",
        ];
        let outcome = refused(Dlock::at(&named)).run(words).finish();
        outcome.expect_code(0).expect_silent();
    }
    assert!(state.read("report").contains("\"completed\""));
    refused(Dlock::at(&named))
        .run([&unique("refused"), "no-such-program"])
        .finish()
        .expect_code(127);
    refused(Dlock::at(&named))
        .run([&unique("refused"), "/etc"])
        .finish()
        .expect_code(126);
    let hold = format!(
        "{} hold --background {}",
        dlock_program(),
        unique("refused")
    );
    let text = format!("eval \"$({hold})\" && {} release", dlock_program());
    let script = Dlock::program(["sh", "-c", &text]).env("DLOCK_ENDPOINTS", &named);
    refused(script).finish().expect_code(0).expect_silent();
}

/// "The variables of the options of this page are for one run: the command does not get them" (dlock-run(1))
#[test]
fn a_commands_environment_has_no_option_of_its_run() {
    let state = Scratch::new();
    let dlock = dlock_program();
    let own = [
        ("DLOCK_WAIT", "5"),
        ("DLOCK_CONFLICT_EXIT_CODE", "3"),
        ("DLOCK_TTL", "10"),
        ("DLOCK_KILL_AFTER", "1"),
        ("DLOCK_SIGNAL", "INT"),
        ("DLOCK_MIN_HOLD", "10"),
        ("DLOCK_MAX_HOLD", "60"),
        ("DLOCK_NOTE", "text"),
        ("DLOCK_REPORT", &state.file("report")),
        ("DLOCK_METRICS", &state.file("metrics")),
        ("DLOCK_LEFTOVERS", "wait"),
        ("DLOCK_REENTRANT", "1"),
    ];
    // The last one runs straight through, in place of dlock.
    let text = format!(
        "env; {dlock} run -n inner true && {dlock} run -n inner true && DLOCK_WAIT=7 {dlock} run --reentrant outer env"
    );
    let outer = Dlock::nowhere().run(["outer", "sh", "-c", &text]);
    let outer = outer.env("DLOCK_LOCAL", state.file("state"));
    let outer = own
        .iter()
        .fold(outer, |outer, (name, value)| outer.env(name, value));
    let outcome = outer.finish().expect_code(0).expect_silent();
    for (name, _) in own {
        let assigned = format!("{name}=");
        assert!(!outcome.stdout.contains(&assigned), "{name}: {outcome:?}");
    }
    assert_eq!(outcome.stdout.matches("DLOCK_LOCAL=/").count(), 2);
}
