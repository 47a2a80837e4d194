//! Where most tests begin: somebody holds a lock, and maybe somebody waits behind him.
//! It must not know what happens then.

use std::process::Stdio;

use super::{Dlock, Etcd, Oracle, Running};

/// dlock that has the lock and keeps it for ten minutes.
#[track_caller]
pub(crate) fn hold(dlock: Dlock, options: &[&str], name: &str) -> Running {
    runs(dlock, options, name, "echo on; exec sleep 600")
}

/// dlock that has the lock and keeps it until it is let go: [`Running::let_go`].
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

/// A holder of the lock `name` whose command only SIGKILL ends, with a daemonised descendant that counts as much, and
/// a waiter behind it, both under the oracle. Of each is given what stands before its command.
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
