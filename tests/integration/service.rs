//! dlock as a service of systemd(1); a test listens to the manager's socket instead.
//! It must not know systemd's units; `examples/formats.rs` checks them.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{
    Dlock, Etcd, LIMIT, Scratch, dlock_program, eventually, hold_open, let_pass, unique,
};

/// The socket of a service manager.
struct Manager {
    scratch: Scratch,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.file("notify")).expect("a socket");
        socket.set_nonblocking(true).expect("our own socket");
        Self { scratch, socket }
    }

    /// dlock as the process that the manager has started: an exec does not change the process.
    fn starts(&self, dlock: Dlock) -> Dlock {
        let dlock = dlock.env("NOTIFY_SOCKET", self.scratch.file("notify"));
        dlock.after("export SYSTEMD_EXEC_PID=$$")
    }

    /// The messages since the last call.
    fn heard(&self) -> String {
        let mut said = String::new();
        let mut message = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut message) {
            said += &String::from_utf8_lossy(&message[..length]);
            said.push('\n');
        }
        said
    }

    #[track_caller]
    fn hears(&self, words: &str) -> String {
        let mut said = String::new();
        eventually(LIMIT, words, || {
            said += &self.heard();
            said.contains(words)
        });
        said
    }
}

/// "The unit is active where it holds the lock and the daemon runs" (dlock-examples(7))
#[test]
fn a_service_is_ready_when_the_lock_is_held() {
    let etcd = Etcd::shared();
    let name = unique("service");
    let mut holder = hold_open(Dlock::on(etcd), &["--note=in the way"], &name);
    let manager = Manager::new();
    let service = Dlock::on(etcd).run([&*name, "sh", "-c", "echo on; exec sleep 600"]);
    let mut service = manager.starts(service).start();
    let said = manager.hears("STATUS=waiting for");
    assert!(
        said.contains("in the way") && !said.contains("READY"),
        "{said}"
    );
    holder.let_go();
    service.says("on\n");
    manager.hears(&format!("READY=1\nSTATUS=holding the lock '{name}'"));
}

/// "A lock can be a unit of its own" (dlock-examples(7))
#[test]
fn a_lock_is_a_service() {
    let etcd = Etcd::shared();
    let name = unique("service");
    let manager = Manager::new();
    let mut service = manager
        .starts(Dlock::on(etcd).args(["hold", &*name]))
        .start();
    manager.hears("READY=1\n");
    assert_eq!(etcd.queue(&name).len(), 1);
    service.signal(crate::support::Signal::TERM);
    service.wait().expect_code(0);
    assert!(etcd.queue(&name).is_empty());
}

/// "The command gets `NOTIFY_SOCKET` as it would without dlock" (dlock-examples(7)), and a dlock below the service does
/// not notify for it.
#[test]
fn only_the_process_that_the_manager_started_notifies_it() {
    let etcd = Etcd::shared();
    let (outer, inner) = (unique("outer"), unique("inner"));
    let manager = Manager::new();
    let dlock = dlock_program();
    let script = format!(
        "echo \"$NOTIFY_SOCKET\"; {dlock} run {inner} true; eval \"$({dlock} hold --background --pid $$ {inner}2)\"; {dlock} release"
    );
    let service = Dlock::on(etcd).run([&*outer, "sh", "-c", &script]);
    let outcome = manager
        .starts(service)
        .finish()
        .expect_code(0)
        .expect_silent();
    assert_eq!(outcome.stdout.trim(), manager.scratch.file("notify"));
    let said = manager.heard();
    assert_eq!(said.matches("READY=1").count(), 1, "{said}");
    assert!(said.contains(&outer), "{said}");

    // "To have the command alone say when it is ready, tell dlock that it is not the main process"
    let service = Dlock::on(etcd).env("NOTIFY_SOCKET", manager.scratch.file("notify"));
    let service = service.env("SYSTEMD_EXEC_PID", "0").run([&*outer, "true"]);
    service.finish().expect_code(0).expect_silent();
    assert_eq!(manager.heard(), "");
}

/// "If that is dlock, the command gets its own process id in them ... While no command runs, dlock answers the watchdog."
/// (dlock-run(1))
#[test]
fn the_watchdog_is_answered_by_dlock_and_then_by_the_command() {
    let etcd = Etcd::shared();
    let name = unique("watched");
    let mut holder = hold_open(Dlock::on(etcd), &[], &name);
    let manager = Manager::new();
    let script =
        "[ $WATCHDOG_PID = $$ ] && [ $LISTEN_PID = $$ ] && echo addressed; read line; echo over";
    let service = Dlock::on(etcd)
        .env("WATCHDOG_USEC", "400000")
        .stdin(Stdio::piped())
        .run([&*name, "sh", "-c", script]);
    let service = service.after("export WATCHDOG_PID=$$ LISTEN_PID=$$");
    let mut service = manager.starts(service).start();
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    holder.let_go();
    service.says("addressed\n");
    manager.heard();
    // Two periods.
    let_pass(Duration::from_millis(800));
    let said = manager.heard();
    assert!(!said.contains("WATCHDOG"), "{said}");
    service.let_go().expect_code(0).expect_silent();

    // A lock without a command.
    let hold = Dlock::on(etcd).env("WATCHDOG_USEC", "400000");
    let hold = hold.args(["hold", &*name]).after("export WATCHDOG_PID=$$");
    let _hold = manager.starts(hold).start();
    manager.hears("READY=1\n");
    manager.heard();
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
}

/// "A service manager names the process there": what is meant for another process than dlock stays as it is.
#[test]
fn a_variable_for_another_process_stays() {
    let script = "echo $WATCHDOG_PID $LISTEN_PID ${LISTEN_PIDFDID-none}";
    let service = |setup: &str| {
        let service = Dlock::on(Etcd::shared());
        let service = service.run([&*unique("service"), "sh", "-c", script]);
        service.after(setup).finish().expect_code(0)
    };
    service("export WATCHDOG_PID=1 LISTEN_PID=1 LISTEN_PIDFDID=7").expect_stdout("1 1 7\n");
    // The inode of dlock's pidfd is not the command's.
    let own = service("export WATCHDOG_PID=1 LISTEN_PID=$$ LISTEN_PIDFDID=7");
    assert!(own.stdout.ends_with(" none\n"), "{own:?}");
    service("true").expect_stdout("none\n");
}

/// A manager that does not read delays nothing: neither the command nor a renewal.
#[test]
fn a_manager_that_does_not_read_causes_no_delay() {
    let etcd = Etcd::shared();
    let manager = Manager::new();
    let own = UnixDatagram::unbound().expect("a socket");
    own.set_nonblocking(true).expect("our own socket");
    while own
        .send_to(b"STATUS=full", manager.scratch.file("notify"))
        .is_ok()
    {}
    let service = Dlock::on(etcd).run(["--ttl=5", &*unique("service"), "sleep", "7"]);
    let mut service = manager.starts(service).start();
    service
        .wait_within(LIMIT * 2)
        .expect_code(0)
        .expect_silent();
}
