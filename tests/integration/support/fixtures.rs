//! The start of most tests: a holder, and maybe a waiter behind it.
//! It must not know what happens then.

use std::process::Stdio;

use super::{Dlock, Etcd, Oracle, Running};

/// A dlock that holds the lock for ten minutes.
#[track_caller]
pub(crate) fn hold(dlock: Dlock, options: &[&str], name: &str) -> Running {
    runs(dlock, options, name, "echo on; exec sleep 600")
}

/// A dlock that holds the lock until [`Running::let_go`].
#[track_caller]
pub(crate) fn hold_open(dlock: Dlock, options: &[&str], name: &str) -> Running {
    let dlock = dlock.stdin(Stdio::piped());
    runs(dlock, options, name, "echo on; exec cat")
}

#[track_caller]
fn runs(dlock: Dlock, options: &[&str], name: &str, script: &str) -> Running {
    let command = ["--", "sh", "-c", script];
    let mut holder = dlock.run([options, &[name], &command].concat()).start();
    holder.says("on\n");
    holder
}

/// A holder of the lock `name` whose command only SIGKILL ends, with a daemonised descendant of the same kind, and a
/// waiter behind it, both under the oracle. The arguments are the command lines before their commands.
#[track_caller]
pub(crate) fn holder_and_waiter(
    etcd: &Etcd,
    oracle: &Oracle,
    name: &str,
    holder: Dlock,
    waiter: Dlock,
) -> (Running, Running) {
    let stubborn = "trap '' TERM; setsid -f sleep 600; sleep 600; sleep 600";
    let command = oracle.command(&["sh", "-c", stubborn]);
    let holder = holder.args(command).start();
    oracle.entered(1);
    let waiter = waiter.args(oracle.command(&["true"])).start();
    etcd.queue_of(name, 2);
    (holder, waiter)
}

/// The holder ends, and the waiter behind it, whose command is `echo ran`, gets the lock.
#[track_caller]
pub(crate) fn is_followed(mut holder: Running, mut waiter: Running, etcd: &Etcd) {
    holder.let_go().expect_silent();
    waiter
        .wait()
        .expect_code(0)
        .expect_silent()
        .expect_stdout("ran\n");
    etcd.assert_empty();
}
