//! The result of `dlock release`: 0 only when the lock was held until then, else 121, and the reason.
//! It must not know how a hold ends otherwise; `sharing.rs` does.

use std::os::fd::AsRawFd as _;
use std::process::Stdio;

use crate::support::{
    Dlock, Etcd, LIMIT, Link, Mode, Running, Scratch, Signal, Terminal, as_user, dlock_program,
    eventually, unique,
};

/// A hold of the lock `name` by this dlock, and the name that it gave itself.
fn hold(dlock: Dlock, name: &str) -> (Running, String) {
    let mut holder = dlock
        .args(["hold", "--json", name])
        .stdin(Stdio::null())
        .start();
    holder.says("}\n");
    let line: serde_json::Value = serde_json::from_str(&holder.stdout()).expect("an object");
    let hold = line["hold"].as_str().expect("its name").to_owned();
    (holder, hold)
}

fn release(hold: &str) -> Running {
    Dlock::nowhere().args(["release", hold]).start()
}

/// Requests the end of the hold while it is stopped, and then continues it.
fn release_after(holder: &Running, hold: &str, meanwhile: impl FnOnce()) -> Running {
    holder.signal(Signal::STOP);
    meanwhile();
    let releasing = release(hold);
    eventually(LIMIT, "it has the signal", || {
        let pid = holder.process().0;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        pending.is_some_and(|mask| mask & 1 << (Signal::TERM.as_raw() - 1) != 0)
    });
    releasing
}

const NOT_HELD: &str = "dlock: the lock was not held until its release: ";

/// The value that `DLOCK_HOLD` has for a process.
fn name_of(process: &Running) -> String {
    let pid = process.process().0;
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, fields) = line.rsplit_once(") ").expect("its name");
    let start = fields.split(' ').nth(19).expect("its start");
    format!("{pid}:{start}")
}

/// "It is not certain that the lock was held until then: it was lost, or the dlock hold had ended before or was killed": a
/// process that exits has closed the file with its result a moment before it has ended.
#[test]
fn a_hold_that_is_about_to_end_has_ended() {
    let mut ending = Dlock::program(["sh", "-c", "echo on; exec sleep 0.3"]).start();
    ending.says("on");
    release(&name_of(&ending))
        .wait()
        .expect_code(121)
        .expect_stderr(&[NOT_HELD, "its dlock hold has ended before"]);
}

/// "A process that is no dlock hold is not ended": whatever `DLOCK_HOLD` names.
#[test]
fn no_other_process_is_ended_by_a_release() {
    let is_spared = |innocent: Dlock| {
        let mut innocent = innocent.start();
        innocent.says("on");
        release(&name_of(&innocent))
            .wait()
            .expect_code(125)
            .expect_stderr(&["it does not seem to be a dlock hold", "hint: "]);
        assert!(!innocent.is_over(), "{}", innocent.stderr());
    };
    let script = "echo on; exec sleep 600";
    is_spared(Dlock::program(["sh", "-c", script]));
    // Not even one that has the file of a hold of another user: a setuid program inherits it.
    if let Some(other) = as_user(65534, 65534) {
        let file = rustix::fs::memfd_create("dlock-outcome", rustix::fs::MemfdFlags::empty());
        let file = file.expect("a file in memory");
        let number = file.as_raw_fd();
        let open = format!("readlink /proc/self/fd/{number} | grep -q dlock-outcome && {script}");
        is_spared(Dlock::program(["sh", "-c", &open]).under(other));
    }
}

/// "0 when the lock was held until then and is released": by its name, with etcd and on this machine.
#[test]
fn a_hold_that_had_its_lock_is_released() {
    let (etcd, state, name) = (Etcd::shared(), Scratch::new(), unique("released"));
    let local = || Dlock::nowhere().env("DLOCK_LOCAL", state.file("state"));
    for dlock in [Dlock::on(etcd), local()] {
        let (mut holder, hold) = hold(dlock, &name);
        release(&hold).wait().expect_code(0).expect_silent();
        holder.wait().expect_code(0).expect_silent();
        release(&hold).wait().expect_code(121).expect_stderr(&[
            NOT_HELD,
            "has ended before",
            "hint: ",
        ]);
    }
    assert!(etcd.queue(&name).is_empty());
}

/// "121 when that cannot be shown": a lock that was lost in the meantime, whether the hold knew of it or not.
#[test]
fn a_hold_that_had_lost_its_lock_is_no_success() {
    let (etcd, name) = (Etcd::shared(), unique("gone"));
    let (mut holder, hold_name) = hold(Dlock::on(etcd), &name);
    let mut releasing = release_after(&holder, &hold_name, || {
        etcd.revoke(&etcd.queue(&name).remove(0).lease_hex());
    });
    holder.signal(Signal::CONT);
    releasing
        .wait()
        .expect_code(121)
        .expect_stderr(&[NOT_HELD, "its key"]);
    holder.wait().expect_code(121);
    // A local lock.
    let state = Scratch::new();
    let local = Dlock::nowhere().env("DLOCK_LOCAL", state.file("state"));
    let (mut holder, hold_name) = hold(local, &name);
    let mut releasing = release_after(&holder, &hold_name, || {
        std::fs::remove_file(state.file(&format!("state/{name}/1"))).expect("its entry");
    });
    holder.signal(Signal::CONT);
    releasing.wait().expect_code(121).expect_stderr(&[NOT_HELD]);
    holder.wait().expect_code(121);
}

/// The same for a hold that is killed before it could release the lock.
#[test]
fn a_hold_that_was_killed_is_no_success() {
    let (etcd, name) = (Etcd::shared(), unique("killed"));
    let (mut holder, hold) = hold(Dlock::on(etcd), &name);
    let mut releasing = release_after(&holder, &hold, || {});
    holder.signal(Signal::KILL);
    holder.wait();
    releasing
        .wait()
        .expect_code(121)
        .expect_stderr(&[NOT_HELD, "was killed"]);
}

/// The same for a hold that was ended before, and that is still about to release the lock.
#[test]
fn a_hold_that_ended_before_its_release_is_no_success() {
    let (etcd, name) = (Etcd::shared(), unique("ended"));
    let link = Link::to(etcd.port());
    let (mut holder, hold) = hold(Dlock::at(&link.endpoint()), &name);
    link.both(Mode::Hold);
    holder.signal(Signal::TERM);
    holder.tree_dies();
    let mut releasing = release(&hold);
    eventually(LIMIT, "it waits for the end of the hold", || {
        let directory = format!("/proc/{}/fd", releasing.process().0);
        let open = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links
            .into_iter()
            .any(|link| link.to_string_lossy().contains("memfd"))
    });
    link.both(Mode::Pass);
    releasing
        .wait()
        .expect_code(121)
        .expect_stderr(&[NOT_HELD, "had released it before"]);
    holder.wait().expect_code(0);
}

/// "or frees itself with its TTL because etcd does not answer, which is warned of": the lock was held until then.
#[test]
fn a_hold_whose_release_is_unconfirmed_gets_a_warning() {
    let (etcd, name) = (Etcd::shared(), unique("unconfirmed"));
    let link = Link::to(etcd.port());
    let dlock = Dlock::at(&link.endpoint()).env("DLOCK_TTL", "10");
    let (mut holder, hold) = hold(dlock, &name);
    link.both(Mode::Drop);
    release(&hold).wait().expect_code(0);
    holder
        .wait()
        .expect_code(0)
        .expect_stderr(&["cannot confirm the release"]);
}

/// "A script checks the status before it evaluates the line, as in EXAMPLES" (dlock-hold(1)): no shell goes on without the lock.
#[test]
fn a_script_that_checks_the_status_never_continues_without_the_lock() {
    let (etcd, dlock) = (Etcd::shared(), dlock_program());
    let (name, busy) = (unique("checked"), unique("busy"));
    let (mut holder, _) = hold(Dlock::on(etcd), &busy);
    for shell in ["bash", "dash", "zsh", "fish"] {
        let run = |hold: &str| {
            // With the lines of dlock-hold(1) and dlock-release(1).
            let script = if shell == "fish" {
                format!(
                    "set h ({hold} --pid $fish_pid); or exit; eval $h; echo in $DLOCK_NAME
                    {dlock} release; and set -e DLOCK_HELD DLOCK_HOLD; set -q DLOCK_HELD; or echo gone"
                )
            } else {
                format!(
                    "h=$({hold} --pid $$) || exit; eval \"$h\"; echo in $DLOCK_NAME
                    {dlock} release && unset DLOCK_HELD DLOCK_HOLD; echo \"${{DLOCK_HELD-gone}}\""
                )
            };
            let run = Dlock::program([shell, "-c", &script]);
            run.env("DLOCK_ENDPOINTS", etcd.endpoint()).finish()
        };
        let held = run(&format!("{dlock} hold --background {name}"));
        let in_turn = format!("in {name}\ngone\n");
        held.expect_code(0).expect_stdout(&in_turn);
        for (hold, code) in [
            (format!("{dlock} hold --bakground {name}"), 125),
            (format!("{dlock} hold --background -n {busy}"), 75),
            (format!("/no/such/dlock hold --background {name}"), 127),
            // Killed while it waits: it prints nothing.
            (
                format!("timeout -s KILL 0.3 {dlock} hold --background {busy}"),
                137,
            ),
        ] {
            let outcome = run(&hold);
            assert_eq!(outcome.code(), Some(code), "{shell}: {hold}: {outcome:?}");
            outcome.expect_stdout("");
        }
    }
    holder.signal(Signal::TERM);
    holder.wait().expect_code(0);
}

/// "--pid refuses a process that leads the session of a terminal, as a login shell does ... --session-leader permits
/// it" (dlock-hold(1)).
#[test]
fn a_lock_for_the_shell_of_a_terminal_is_refused() {
    let (etcd, name, dlock) = (Etcd::shared(), unique("login"), dlock_program());
    // The parent of the shell leads the session.
    let mut terminal = Terminal::open(&etcd.endpoint());
    terminal.line(&format!("{dlock} hold --background --pid $PPID {name}"));
    terminal.await_text("it leads the session of a terminal");
    terminal.prompts();
    let hold = format!("{dlock} hold --background --session-leader --pid $PPID {name}");
    terminal.line(&format!("h=$({hold}) && eval \"$h\"; echo status-$?"));
    terminal.await_text("status-0");
    terminal.prompts();
    terminal.line(&format!("{dlock} release; echo released-$?"));
    terminal.await_text("released-0");
}

/// In a script, in the background, with `--pid` and without: `dlock release` reports that the lock was lost; without
/// `--pid` nothing else does.
#[test]
fn a_script_learns_that_its_lock_was_lost() {
    let (etcd, name) = (Etcd::shared(), unique("script"));
    let dlock = dlock_program();
    let script = |pid: &str, rest: &str| {
        let text = format!(
            "eval \"$({dlock} hold --background {pid} {name} 2>/dev/null)\"; {rest}; {dlock} release; echo \"status $?\""
        );
        let run = Dlock::program(["sh", "-c", &text]).env("DLOCK_ENDPOINTS", etcd.endpoint());
        run.env("ETCDCTL_API", "3")
    };
    for pid in ["", "--pid $$"] {
        script(pid, ":")
            .finish()
            .expect_code(0)
            .expect_silent()
            .expect_stdout("status 0\n");
    }
    let ctl = etcd.ctl_command().join(" ");
    let lose = format!("{ctl} del $DLOCK_KEY >/dev/null");
    script("", &lose)
        .finish()
        .expect_stdout("status 121\n")
        .expect_stderr(&[NOT_HELD]);
}
