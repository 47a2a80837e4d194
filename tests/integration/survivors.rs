//! A process of the command that dlock may not kill: it is named, and the lock is not released early.
//! It must not know how dlock kills, nor the fate of other processes.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use crate::support::{
    Dlock, Etcd, LIMIT, Process, Scratch, Signal, alive, as_root, as_user, eventually,
    in_namespaces, unique, without,
};

/// A prefix that starts a process as another user, as sudo(8) does.
const AS_ANOTHER: &str = "setpriv --reuid=65534 --clear-groups";

/// A dlock of a root user that may do everything but send signals to other users' processes.
///
/// `None` unless this process is root: no other user can start a process that it may not kill.
fn dlock_without_reach(etcd: &Etcd) -> Option<Dlock> {
    as_root()?;
    as_user(65534, 65534)?;
    Some(Dlock::on(etcd).under(without("-kill")?))
}

/// "dlock names it on standard error, and the exit status is 122. dlock does not release the lock then" (dlock-run(1))
/// It is an error, so `-q` does not hide it.
#[test]
fn a_survivor_is_named_and_keeps_the_lock_for_the_lease() {
    let (etcd, name) = (Etcd::shared(), unique("survivor"));
    let Some(dlock) = dlock_without_reach(etcd) else {
        return;
    };
    let script = format!("{AS_ANOTHER} sleep 600 & echo $!; read -r _; exit 3");
    let mut holder = dlock
        .args(["-q"])
        .run(["--ttl=10", "-k1", &name, "sh", "-c", &script])
        .stdin(Stdio::piped())
        .start();
    holder.says("\n");
    let survivor = Process(holder.stdout().trim().parse().expect("its process id"));
    eventually(LIMIT, "it runs as another user", || {
        survivor.name() == "sleep"
    });
    let place = etcd.queue_of(&name, 1);
    holder.type_in("\n");
    let outcome = holder.wait().expect_code(122);
    assert_eq!(etcd.queue(&name), place, "the lock is given away early");
    assert!(alive(survivor));
    let named = format!(
        "dlock: cannot kill process {} ('sleep', state S, uid 65534)\n",
        survivor.0
    );
    let kept = format!(
        "dlock: cannot release lock '{name}': etcd frees it within 10s although the command is not dead\n"
    );
    outcome.expect_stderr(&[&named, &kept]);
    eventually(LIMIT, "the lease ends", || etcd.queue(&name).is_empty());
    survivor.signal(Signal::KILL);
    eventually(LIMIT, "the guard follows", || {
        holder.everything().is_empty()
    });
}

/// The same when the lock is lost: then 122 takes precedence over 121.
#[test]
fn a_survivor_of_a_loss_is_named() {
    let (etcd, name) = (Etcd::shared(), unique("survivor"));
    let Some(dlock) = dlock_without_reach(etcd) else {
        return;
    };
    let line = [
        &["-k1", &name, "--"][..],
        &AS_ANOTHER.split(' ').collect::<Vec<_>>(),
    ]
    .concat();
    let mut holder = dlock
        .run(line)
        .args(["sh", "-c", "echo on; exec sleep 600"])
        .start();
    holder.says("on\n");
    etcd.revoke(&etcd.queue(&name)[0].lease_hex());
    let words = ["lost lock", "cannot kill process", "uid 65534"];
    holder.wait().expect_code(122).expect_stderr(&words);
}

/// The same for a local lock, which the guard keeps: "The lock is held until both have ended" (dlock-local(7)).
#[test]
fn a_survivor_keeps_a_local_lock_until_it_is_dead() {
    let (etcd, name) = (Etcd::shared(), unique("survivor"));
    let Some(dlock) = dlock_without_reach(etcd) else {
        return;
    };
    let state = Scratch::new();
    let local = format!("--local={}", state.file("state"));
    let script = format!("{AS_ANOTHER} sleep 600 & echo $!; read -r _; exit 3");
    let mut holder = dlock
        .run([&local, "-k1", &name, "sh", "-c", &script])
        .stdin(Stdio::piped())
        .start();
    holder.says("\n");
    let survivor = Process(holder.stdout().trim().parse().expect("its process id"));
    eventually(LIMIT, "it runs as another user", || {
        survivor.name() == "sleep"
    });
    holder.type_in("\n");
    let kept = format!(
        "dlock: cannot release lock '{name}': the guard holds it until that process is dead\n"
    );
    let words = ["cannot kill process ", "uid 65534", &kept];
    holder.wait().expect_code(122).expect_stderr(&words);
    let next = |wait: &str| {
        Dlock::nowhere()
            .run([&*local, wait, &name, "echo", "in"])
            .finish()
    };
    next("-n").expect_code(75).expect_stdout("");
    assert!(alive(survivor));
    survivor.signal(Signal::KILL);
    next("-w30").expect_code(0).expect_stdout("in\n");
}

/// A dlock of a plain user whose /proc hides processes, and the path of a program whose processes it hides: nobody may read
/// that file, so they are not dumpable.
fn dlock_with_hidden_processes(etcd: &Etcd, scratch: &Scratch) -> Option<(Dlock, String)> {
    as_root()?;
    let user = as_user(65534, 65534)?.join(" ");
    in_namespaces(&["--mount"])?;
    let setup = format!("mount -t proc -o hidepid=2 proc /proc && exec {user} \"$@\"");
    let hidden = scratch.file("sleep");
    std::fs::copy("/bin/sleep", &hidden).expect("a program");
    let mode = std::fs::Permissions::from_mode(0o111);
    std::fs::set_permissions(&hidden, mode).expect("our file");
    let dlock = Dlock::on(etcd).under(["unshare", "--mount", "sh", "-c", &setup, "sh"]);
    Some((dlock, hidden))
}

/// "A process that /proc hides ... gets the same signals ... and counts as living until dlock knows its end" (dlock-run(1)):
/// after the end of the command, and after the death of the guard, no such process outlives the lock.
#[test]
fn a_process_that_proc_hides_does_not_outlive_the_lock() {
    let (etcd, scratch) = (Etcd::shared(), Scratch::new());
    for guard_is_killed in [false, true] {
        let name = unique("hidden");
        let Some((dlock, hidden)) = dlock_with_hidden_processes(etcd, &scratch) else {
            return;
        };
        let script = format!("{hidden} 600 & echo $!; read -r _; [ -e /proc/$! ] || exit 3");
        let run = dlock.run(["-k1", &name, "sh", "-c", &script]);
        let mut holder = run.stdin(Stdio::piped()).start();
        holder.says("\n");
        let left = Process(holder.stdout().trim().parse().expect("its process id"));
        eventually(LIMIT, "it runs", || left.name() == "sleep");
        let code = if guard_is_killed {
            holder.guard().signal(Signal::KILL);
            125
        } else {
            holder.type_in("\n");
            3
        };
        let outcome = holder.wait().expect_code(code);
        assert!(!alive(left), "{outcome:?}");
        assert!(etcd.queue(&name).is_empty(), "{outcome:?}");
    }
}
