//! The files of a run: `--report` and `--metrics`.
//! It must not know how they are written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::support::{
    Dlock, Etcd, LIMIT, Scratch, Signal, dlock_program, eventually, hold, hold_open, let_pass,
    unique,
};

fn report(dlock: Dlock, file: &str, words: &[&str], code: Option<i32>) -> Value {
    let option = format!("--report={file}");
    let words = [&["run", &option], words].concat();
    let outcome = dlock.args(words).finish();
    assert_eq!(outcome.code(), code, "{outcome:?}");
    read(file)
}

fn read(file: &str) -> Value {
    let text = fs::read_to_string(file).expect("a report");
    assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text}");
    serde_json::from_str(&text).expect(&text)
}

/// "--report FILE: name, token, waited, held, proofs counted, smallest slack, outcome, exit code, reason", for every way in
/// which a run ends.
#[test]
fn a_report_is_written_for_every_outcome() {
    let etcd = Etcd::shared();
    let name = unique("report");
    let home = Scratch::new();
    let file = home.file("r.json");
    let on = |words: &[&str], code| report(Dlock::on(etcd), &file, words, code);

    let done = on(
        &["--ttl=5", &name, "sh", "-c", "sleep 2.5; exit 7"],
        Some(7),
    );
    assert_eq!(
        (&done["name"], &done["outcome"]),
        (&name.as_str().into(), &"completed".into())
    );
    assert_eq!(
        (&done["exit_code"], &done["reason"]),
        (&7.into(), &Value::Null)
    );
    assert!(
        done["token"].as_i64().is_some_and(|token| token > 0),
        "{done}"
    );
    assert!(
        done["held_seconds"]
            .as_f64()
            .is_some_and(|held| (2.5..30.0).contains(&held)),
        "{done}"
    );
    // The acquisition, and at least one renewal after a second.
    assert!(
        done["proofs"].as_u64().is_some_and(|proofs| proofs >= 2),
        "{done}"
    );
    // A TTL of 5 s leaves 3 s until the command is stopped.
    let slack = done["smallest_slack_seconds"].as_f64();
    assert!(
        slack.is_some_and(|slack| slack > 0.0 && slack < 3.0),
        "{done}"
    );

    let killed = on(&[&name, "sh", "-c", "kill -TERM $$"], None);
    assert_eq!(
        (&killed["outcome"], &killed["signal"]),
        (&"completed".into(), &15.into())
    );
    assert_eq!(killed["exit_code"], 143);
    let absent = on(&[&name, "/nowhere/at/all"], Some(127));
    assert_eq!(
        (&absent["outcome"], &absent["token"]),
        (&"not-started".into(), &Value::Null)
    );
    let long = on(&["--max-hold=1", &name, "sleep", "600"], Some(124));
    assert_eq!(
        (&long["outcome"], &long["exit_code"]),
        (&"max-hold".into(), &124.into())
    );

    let holder = hold(Dlock::on(etcd), &[], &name);
    let busy = on(&["-n", "-E0", &name, "true"], Some(0));
    assert_eq!(
        (&busy["outcome"], &busy["exit_code"]),
        (&"busy".into(), &0.into())
    );
    assert!(
        busy["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("is held by")),
        "{busy}"
    );
    let option = format!("--report={file}");
    let mut waiter = Dlock::on(etcd).run([&option, &name, "true"]).start();
    etcd.queue_of(&name, 2);
    waiter.signal(Signal::INT);
    waiter.wait().expect_signal(Signal::INT);
    let interrupted = read(&file);
    assert_eq!(
        (&interrupted["outcome"], &interrupted["signal"]),
        (&"interrupted".into(), &2.into())
    );
    drop(holder);
}

/// "lost": also by a third party, and "asked" after a request.
#[test]
fn a_report_names_a_loss() {
    let etcd = Etcd::shared();
    let home = Scratch::new();
    let file = home.file("r.json");
    let option = format!("--report={file}");
    for (by, outcome) in [("revoke", "lost"), ("break", "asked")] {
        let name = unique(by);
        let mut holder = hold(Dlock::on(etcd), &[&option], &name);
        let place = &etcd.queue_of(&name, 1)[0];
        if by == "revoke" {
            etcd.revoke(&place.lease_hex());
        } else {
            let token = place.create_revision.to_string();
            let words = [
                "break",
                "--yes",
                "--reason=a freeze",
                "--token",
                &token,
                &name,
            ];
            Dlock::on(etcd).args(words).finish().expect_code(0);
        }
        holder.wait().expect_code(121);
        let lost = read(&file);
        assert_eq!(
            (&lost["outcome"], &lost["exit_code"]),
            (&outcome.into(), &121.into())
        );
        assert!(
            lost["token"].is_i64() && lost["reason"].is_string(),
            "{lost}"
        );
    }
    let etcd = Etcd::start();
    let name = unique("unproven");
    let mut holder = hold(Dlock::on(&etcd), &[&option, "--ttl=5"], &name);
    etcd.kill();
    holder.wait().expect_code(121);
    let lost = read(&file);
    assert_eq!(
        (&lost["outcome"], &lost["smallest_slack_seconds"]),
        (&"lost".into(), &0.0.into())
    );
}

/// "A file that cannot be written is an error before dlock asks for the lock" (dlock-report(5)); a file that must not
/// be replaced stays.
#[test]
fn a_file_that_cannot_be_written_is_refused_before_queueing() {
    let etcd = Etcd::shared();
    let name = unique("refused");
    let home = Scratch::new();
    symlink(home.file("other"), home.file("link")).expect("a link");
    home.write("foreign.prom", "up 1\n");
    fs::create_dir(home.file("directory")).expect("a directory");
    let nowhere = home.file("no/directory/r");
    let cases = [
        ("--report", nowhere.clone()),
        ("--metrics", nowhere),
        ("--report", home.file("link")),
        ("--report", home.file("directory")),
        ("--metrics", "/dev/null".to_owned()),
        ("--report", "/proc/r".to_owned()),
        ("--metrics", home.file("foreign.prom")),
        ("--report", "/".to_owned()),
    ];
    for command in ["run", "hold"] {
        for (option, file) in &cases {
            // This needs no etcd.
            let words = [command, option, file, &name];
            let told = Dlock::nowhere()
                .args(words)
                .args((command == "run").then_some("true"));
            let told = told.finish().expect_code(125);
            assert!(
                told.stderr.starts_with("dlock: cannot "),
                "{option} {file}: {told:?}"
            );
        }
    }
    assert_eq!(home.read("foreign.prom"), "up 1\n");
    assert!(etcd.queue(&name).is_empty());
    let left: Vec<_> = fs::read_dir(home.path())
        .expect("our own")
        .flatten()
        .collect();
    assert!(
        left.iter()
            .all(|entry| !entry.file_name().to_string_lossy().contains(".new"))
    );
}

/// "A report that cannot be written at the end is a warning, and changes no status"; and the old file stays whole.
#[test]
fn a_report_that_fails_at_the_end_changes_no_status() {
    let etcd = Etcd::shared();
    let home = Scratch::new();
    for option in ["--report", "--metrics"] {
        let directory = home.file(&unique("gone"));
        fs::create_dir(&directory).expect("a directory");
        let file = format!("{directory}/r");
        Dlock::on(etcd)
            .run([
                option,
                &file,
                &unique("gone"),
                "sh",
                "-c",
                &format!("rm -r '{directory}'; exit 3"),
            ])
            .finish()
            .expect_code(3)
            .expect_stderr(&["dlock: cannot write '", &directory]);
    }
    let file = home.write("kept.json", "");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("our own file");
    report(Dlock::on(etcd), &file, &[&unique("kept"), "true"], Some(0));
    assert_eq!(
        fs::metadata(&file).expect("a file").permissions().mode() & 0o777,
        0o640
    );
}

/// The samples of a metrics file.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (sample, value) = line.rsplit_once(' ').expect(line);
            (sample.to_owned(), value.parse().expect(line))
        })
        .collect()
}

/// "several dlocks may add to one file at the same time" (dlock-report(5)): nothing is lost, and the counters grow.
#[test]
fn metrics_of_many_runs_add_up() {
    const RUNS: usize = 12;
    let etcd = Etcd::shared();
    let home = Scratch::new();
    let file = home.file("dlock.prom");
    let option = format!("--metrics={file}");
    let (odd, busy) = (unique("a \"quoted\\ name"), unique("busy"));
    // All of them end at the same time.
    let gate = home.file("gate");
    let wait = format!("echo on; until [ -e '{gate}' ]; do sleep 0.01; done");
    let mut running: Vec<_> = (0..RUNS)
        .map(|_| {
            let words = [&option, "-s", &odd, "-c", &wait];
            Dlock::on(etcd).run(words).start()
        })
        .collect();
    for one in &mut running {
        one.says("on\n");
    }
    home.write("gate", "");
    for one in &mut running {
        one.wait().expect_code(0).expect_silent();
    }
    let mut holder = hold_open(Dlock::on(etcd), &[&option], &busy);
    Dlock::on(etcd)
        .run(["-n", &option, &busy, "true"])
        .finish()
        .expect_code(75);
    Dlock::on(etcd)
        .run([&option, &busy, "/nowhere/at/all"])
        .finish()
        .expect_code(127);
    let_pass(Duration::from_millis(200));
    holder.let_go();
    let found = samples(&home.read("dlock.prom"));
    let value = |metric: &str, lock: &str| {
        let lock = lock.replace('\\', "\\\\").replace('"', "\\\"");
        let sample = format!("{metric}{{lock=\"{lock}\"}}");
        found
            .get(&sample)
            .copied()
            .unwrap_or_else(|| panic!("no {sample} in {found:#?}"))
    };
    let counts = |lock: &str| {
        let families = ["runs", "conflicts", "losses", "failures"];
        families.map(|family| value(&format!("dlock_{family}_total"), lock).to_string())
    };
    assert_eq!(counts(&odd), [&RUNS.to_string(), "0", "0", "0"]);
    assert_eq!(counts(&busy), ["1", "1", "0", "1"]);
    assert!(value("dlock_hold_seconds_total", &busy) >= 0.2);
    assert!(value("dlock_wait_seconds_total", &odd) > 0.0);
    assert!(value("dlock_last_success_timestamp_seconds", &odd) > 1.7e9);
    assert_eq!(
        fs::metadata(&file).expect("a file").permissions().mode() & 0o444,
        0o444
    );
}

/// "That includes a file that grows beyond the limit of `ulimit -f`; SIGXFSZ ends the command only" (dlock-report(5))
#[test]
fn a_limit_of_a_files_size_ends_only_the_command() {
    let home = Scratch::new();
    fs::create_dir_all(home.file("dir")).expect("our own directory");
    // The output goes through a pipe, as a file would be limited as well.
    let script =
        r#"limit=$1; shift; { (ulimit -f "$limit"; exec "$@"); echo "status $?"; } 2>&1 | cat"#;
    let run = |blocks: &str, option: &str, command: &[&str]| {
        let local = format!("--local={}", home.file("state"));
        let file = format!("--{option}={}", home.file("dir/file"));
        let outcome = Dlock::program(["sh", "-c", script, "sh", blocks])
            .args([dlock_program(), "run", &local, &file, "job"])
            .args(command)
            .finish();
        let left = fs::read_dir(home.file("dir")).expect("it is there");
        (outcome.stdout, left.count())
    };
    let (refused, left) = run("0", "report", &["true"]);
    assert!(refused.contains("/dir/file': File too large"), "{refused}");
    assert!(refused.ends_with("status 125\n"), "{refused}");
    assert_eq!(left, 0);
    // A block has 512 bytes, which is enough for the report and not for the metrics.
    let (warned, left) = run("1", "metrics", &["true"]);
    assert!(warned.contains("/dir/file': File too large"), "{warned}");
    assert!(warned.ends_with("status 0\n"), "{warned}");
    assert_eq!(left, 1, "file.lock");
    let big = format!("of={}", home.file("big"));
    let (killed, left) = run(
        "1",
        "report",
        &["dd", "if=/dev/zero", &big, "bs=9999", "count=2"],
    );
    assert!(killed.ends_with("status 153\n"), "{killed}");
    assert_eq!(left, 2);
}

/// "If another process keeps it locked for five seconds at the end of the run, dlock writes a warning instead of the
/// metrics" (dlock-report(5))
#[test]
fn busy_metrics_cost_no_job() {
    let dlock = Dlock::nowhere();
    let (file, locks) = (dlock.home().file("metrics"), dlock.home().file("locks"));
    let lock = File::create(format!("{file}.lock")).expect("our own directory");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("nobody else has it");
    let words = [
        &format!("--local={locks}"),
        &format!("--metrics={file}"),
        "job",
        "echo",
        "ran",
    ];
    let outcome = dlock.run(words).finish();
    outcome
        .expect_code(0)
        .expect_stdout("ran\n")
        .expect_stderr(&["cannot write", &file]);
}

/// "A pipe, a device or a descriptor of the caller is written", after all that the command writes, and the command does not
/// get it.
#[test]
fn a_stream_is_written_and_not_replaced() {
    let home = Scratch::new();
    let local = |dlock: Dlock| dlock.env("DLOCK_LOCAL", home.file("state"));
    let completed = |text: &str| {
        let report: Value = serde_json::from_str(text).expect(text);
        assert_eq!(report["outcome"], "completed", "{report}");
    };
    let run = |target: &str| {
        let option = format!("--report={target}");
        let words = [&option, "job", "sh", "-c", "ls /proc/$$/fd; echo out"];
        local(Dlock::nowhere()).run(words)
    };
    let plain = run(&home.file("r")).finish().expect_code(0).stdout;
    for target in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let outcome = run(target).finish().expect_code(0).expect_silent();
        completed(outcome.stdout.strip_prefix(&*plain).expect(&plain));
    }
    let outcome = run("/dev/stderr").finish().expect_code(0);
    completed(&outcome.stderr);
    let third = run("/dev/fd/3").after(&format!("exec 3>{}", home.file("third")));
    third.finish().expect_code(0).expect_silent();
    completed(&home.read("third"));
    run("/dev/null").finish().expect_code(0).expect_silent();

    let (pipe, read) = (home.file("pipe"), home.file("read"));
    let make = |setup: &str| run(&pipe).after(&format!("{setup} cat {pipe} >{read} & sleep 0.2"));
    let unread = run(&pipe).after(&format!("mkfifo {pipe}")).finish();
    unread.expect_code(125).expect_stdout("").expect_stderr(&[
        &format!("cannot write '{pipe}'"),
        "hint: no process reads that pipe",
    ]);
    make("").finish().expect_code(0).expect_silent();
    eventually(LIMIT, "the reader is at its end", || {
        home.read("read").ends_with("}\n")
    });
    completed(&home.read("read"));

    for closed in ["/dev/fd/77", "/dev/fd/0"] {
        run(closed)
            .finish()
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&["cannot write '/dev/fd/"]);
    }
    let gone = run("-").after("exec >&-").finish();
    gone.expect_code(125).expect_stderr(&["cannot write '-'"]);
    local(Dlock::nowhere())
        .args(["hold", "--background", "--report", "-", "job"])
        .finish()
        .expect_code(125)
        .expect_stderr(&["keeps no descriptor of its caller"]);
}

/// dlock with local locks in this directory.
fn local_in(home: &Scratch) -> Dlock {
    Dlock::nowhere().env("DLOCK_LOCAL", home.file("locks"))
}

/// "A file that is no report is not replaced": before the run an error, after it a warning.
#[test]
fn a_report_replaces_only_a_report() {
    let home = Scratch::new();
    let file = home.file("file");
    let run = |script: &str| {
        let option = format!("--report={file}");
        let words = [&option, "job", "sh", "-c", script];
        local_in(&home).run(words).finish()
    };
    for text in ["secret\n", "{}", "[1]", r#"{"name":"x","exit_code":0}"#] {
        home.write("file", text);
        run("echo never")
            .expect_code(125)
            .expect_stdout("")
            .expect_stderr(&["the file there is not a report", "hint: "]);
        assert_eq!(home.read("file"), text);
    }
    home.write("file", "");
    for _ in 0..2 {
        run("true").expect_code(0).expect_silent();
        assert_eq!(read(&file)["outcome"], "completed");
    }
    run(&format!("rm {file}; echo mine >{file}"))
        .expect_code(0)
        .expect_stderr(&["cannot write", "the file there is not a report"]);
    assert_eq!(home.read("file"), "mine\n");
}

/// "A new file has the owner, the group and the permissions of the old one ... but no setuid bit, and nothing of a file that
/// another user has put into a directory such as /tmp."
#[test]
fn a_report_takes_no_rights_from_a_file_that_was_planted() {
    let home = Scratch::new();
    let directory = home.file("open");
    fs::create_dir(&directory).expect("a directory");
    let file = format!("{directory}/r.json");
    let write = |mode: u32, owner: u32| {
        let option = format!("--report={file}");
        let run = local_in(&home).run([&option, "job", "true"]);
        run.finish().expect_code(0).expect_silent();
        chown(&file, Some(owner), Some(owner)).expect("root may");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("ours");
        let run = local_in(&home).run([&option, "job", "true"]);
        run.finish().expect_code(0).expect_silent();
        let now = fs::metadata(&file).expect("a report");
        fs::remove_file(&file).expect("ours");
        (now.uid(), now.gid(), now.permissions().mode() & 0o7777)
    };
    let us = fs::metadata(&directory).expect("ours").uid();
    let nobody = 65534;
    // In a user namespace there may be no other user.
    if us != 0 || chown(home.write("other", ""), Some(nobody), None).is_err() {
        let (_, _, mode) = write(0o6755, us);
        assert_eq!(mode, 0o755);
        return;
    }
    assert_eq!(write(0o6755, 0), (0, 0, 0o755));
    // A user's own directory: root leaves the file to the user.
    chown(&directory, Some(nobody), Some(nobody)).expect("root may");
    assert_eq!(write(0o4640, nobody), (nobody, nobody, 0o640));
    // One that is shared with a group.
    chown(&directory, Some(0), Some(nobody)).expect("root may");
    let shared = |mode| fs::set_permissions(&directory, fs::Permissions::from_mode(mode));
    shared(0o2770).expect("ours");
    assert_eq!(write(0o664, nobody), (nobody, nobody, 0o664));
    // One like /tmp: the file is root's alone.
    shared(0o1777).expect("ours");
    let (owner, group, mode) = write(0o6666, nobody);
    assert_eq!((owner, mode & 0o7022), (0, 0), "{mode:o}");
    assert_ne!((group, mode & 0o020), (nobody, 0o020));
}
