//! `dlock hold --background`: what it keeps of its caller, when it comes back, and where its messages are.
//! It must not know how a hold ends otherwise; `holds.rs` and `sharing.rs` do.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::support::{
    Dlock, LIMIT, Running, Scratch, dlock_program, eventually, in_namespaces, let_pass,
};

/// A shell script, with the local locks of this directory.
fn script(state: &Scratch, text: &str) -> Dlock {
    Dlock::program(["sh", "-c", text]).env("DLOCK_LOCAL", state.file("state"))
}

/// Breaks the lock `job`.
fn lose(state: &Scratch) {
    fs::remove_file(state.file("state/job/1")).expect("the entry of the holder");
}

/// Waits until nothing of the hold runs.
#[track_caller]
fn ends(running: &Running) {
    eventually(LIMIT, "the hold has ended", || {
        running.everything().is_empty()
    });
}

/// "It then has none of its caller's descriptors": neither an output that the script captures, nor a lock of flock(1).
#[test]
fn a_hold_in_the_background_keeps_no_descriptor_of_its_caller() {
    let dlock = dlock_program();
    let state = Scratch::new();
    let text = format!(
        "exec 9>\"$HOME/mine\"; flock 9; all=$({dlock} hold --background job 2>&1) || exit
        exec 9>&-; flock -n \"$HOME/mine\" echo \"free: $all\"; exec cat"
    );
    let mut running = script(&state, &text).stdin(Stdio::piped()).start();
    running.says("free: export DLOCK_FENCING_TOKEN='1'");
    let of_hold = running.everything();
    let of_hold = of_hold.iter().filter(|one| **one != running.process());
    let mut count = 0;
    for process in of_hold {
        let link = |number| fs::read_link(format!("/proc/{}/fd/{number}", process.0));
        for number in [0, 1, 2] {
            let link = link(number).expect("an open descriptor");
            assert_eq!(link.to_str(), Some("/dev/null"), "{}", process.line());
        }
        count += 1;
    }
    assert_eq!(count, 3, "dlock, its guard and its child");
    lose(&state);
    running.let_go().expect_silent();
    ends(&running);
}

/// "dlock comes back when the line is written": not before its reader has room for it.
#[test]
fn the_foreground_waits_until_the_line_is_written() {
    let state = Scratch::new();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let mut full = fs::File::from(writer);
    let set = |flags| rustix::fs::fcntl_setfl(&full, flags).expect("our own pipe");
    set(OFlags::NONBLOCK);
    while (&full).write(&[b'\n'; 4096]).is_ok() {}
    set(OFlags::empty());
    full.flush().expect("nothing is buffered");
    let dlock = Dlock::nowhere().env("DLOCK_LOCAL", state.file("state"));
    let mut running = dlock
        .args(["hold", "--background", "job"])
        .stdout(full)
        .start();
    eventually(LIMIT, "the child of the hold runs", || {
        let all = running.everything();
        all.iter().any(|one| one.line().contains("dlock-linger"))
    });
    let_pass(Duration::from_millis(300));
    assert!(!running.is_over());
    let lines = BufReader::new(fs::File::from(reader)).lines();
    let mut lines = lines.map(|line| line.expect("text"));
    let line = lines.find(|line| !line.is_empty()).expect("the line");
    assert!(
        line.starts_with("export DLOCK_FENCING_TOKEN='1' "),
        "{line}"
    );
    running.wait().expect_code(0).expect_silent();
    lose(&state);
    ends(&running);
}

/// "If the line cannot be written, the lock is released and the status is 125" (dlock-hold(1))
#[test]
fn a_line_that_cannot_be_written_is_no_success() {
    let dlock = dlock_program();
    let state = Scratch::new();
    let text = format!("{dlock} hold --background job >/dev/full");
    let mut running = script(&state, &text).start();
    running
        .wait()
        .expect_code(125)
        .expect_stderr(&["dlock: cannot write the variables of the lock", "No space"]);
    ends(&running);
    let mut free = script(&state, &format!("{dlock} run -n job true")).start();
    free.wait().expect_code(0).expect_silent();
}

/// "Messages of the hold in the background are appended to this file."
#[test]
fn later_messages_are_in_the_log_file() {
    let dlock = dlock_program();
    let state = Scratch::new();
    let hold = |words: &str| script(&state, &format!("{dlock} hold {words} job"));
    let log = state.write("log", "before\n");
    let mut running = hold(&format!("--background --log-file {log}")).start();
    running.wait().expect_code(0).expect_silent();
    lose(&state);
    ends(&running);
    let text = state.read("log");
    assert!(text.starts_with("before\ndlock: lost lock 'job'"), "{text}");
    assert_eq!(running.stderr(), "");
    hold("--background --log-file /nowhere/log")
        .finish()
        .expect_code(125)
        .expect_stdout("exit 125\n")
        .expect_stderr(&["cannot write the log file '/nowhere/log'", "No such file"]);
    hold(&format!("--log-file {log}"))
        .finish()
        .expect_code(125)
        .expect_stderr(&["--background"]);
}

/// "Without it they are sent to syslog."
#[test]
fn later_messages_are_in_syslog() {
    let dlock = dlock_program();
    let state = Scratch::new();
    let daemon = UnixDatagram::bind(state.path().join("socket")).expect("a socket");
    let devices = state.file("dev");
    let text = format!(
        "mkdir {devices} && mount --rbind /dev {devices} && mount -t tmpfs tmpfs /dev && touch /dev/null || exit
        mount --bind {devices}/null /dev/null && ln -s {} /dev/log && {dlock} hold --background job",
        state.file("socket")
    );
    let Some(alone) = in_namespaces(&["--mount"]) else {
        return;
    };
    let dlock = Dlock::program(alone)
        .args(["sh", "-c", &text])
        .env("DLOCK_LOCAL", state.file("state"));
    let mut running = dlock.start();
    running.wait().expect_code(0).expect_silent();
    lose(&state);
    daemon
        .set_read_timeout(Some(LIMIT))
        .expect("our own socket");
    let mut line = [0; 4096];
    let length = daemon.recv(&mut line).expect("a message");
    let line = String::from_utf8_lossy(&line[..length]);
    assert!(line.starts_with("<12>dlock["), "{line}");
    assert!(line.contains("]: lost lock 'job'"), "{line}");
    ends(&running);
}
