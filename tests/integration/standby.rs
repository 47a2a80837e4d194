//! A daemon that is active on one of three hosts under systemd(1), with the unit that the project ships: systemd is the first
//! process of each host, in namespaces of its own. It must not know how a service notifies its manager; `service.rs` tests that.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{
    Etcd, LIMIT, Process, Scratch, announce, as_root, boot_clock, child, dlock_program, eventually,
    in_namespaces, let_pass, since,
};

const UNIT: &str = include_str!("../../contrib/systemd/active-standby.service");
const SERVICE: &str = "active-standby.service";

/// The TTL of the unit.
const TTL: Duration = Duration::from_secs(10);
/// The lock delay after a holder that vanished: a fifth of the TTL for its command to stop, a quarter of the TTL, and 2 s.
const LOCK_DELAY: Duration = Duration::from_millis(2000 + 2500 + 2000);
/// Period of the watchdog here: shorter than the unit's, and longer than any pause of a daemon on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(10);
/// The time that a busy machine may add to any of these times. A lock that nobody releases is free after four fifths of the TTL at least,
/// and the lock delay: 14.5 s.
const BUSY: Duration = Duration::from_secs(12);

/// A host with systemd as its first process; drop is a power failure.
struct Host {
    name: &'static str,
    process: Child,
    files: Scratch,
}

impl Host {
    /// Boots a host whose units are the shipped one and the targets that it names.
    fn boot(name: &'static str, etcd: &Etcd, shared: &Scratch) -> Self {
        let files = Scratch::new();
        let path = files.path();
        let wants = path.join("units/multi-user.target.wants");
        let overrides = path.join(format!("units/{SERVICE}.d"));
        for directory in [&wants, &overrides] {
            fs::create_dir_all(directory).expect("a directory");
        }
        for target in [
            "sysinit",
            "basic",
            "shutdown",
            "network-online",
            "multi-user",
        ] {
            let text = format!("[Unit]\nDescription={target}\n");
            files.write(&format!("units/{target}.target"), &text);
        }
        let daemon = format!("{} {}", child("daemon.py"), shared.path().display());
        let unit = replaced(UNIT, "/usr/bin/dlock", dlock_program());
        let unit = replaced(&unit, "/usr/bin/scheduler", &daemon);
        files.write(&format!("units/{SERVICE}"), &unit);
        symlink(format!("../{SERVICE}"), wants.join(SERVICE)).expect("a link");
        let endpoints = etcd.endpoint();
        // A daemon that hangs leaves no core here.
        let overriding = format!(
            "[Service]\nEnvironment=DLOCK_ENDPOINTS={endpoints}\nWatchdogSec={}s\nLimitCORE=0\n",
            WATCHDOG.as_secs()
        );
        files.write(&format!("units/{SERVICE}.d/test.conf"), &overriding);
        let log = fs::File::create(path.join("log")).expect("a file");
        let process = Command::new("unshare")
            .args(["--mount", "--", &child("host.sh"), name])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("our own file"))
            .stderr(log)
            .spawn()
            .expect("unshare");
        Self {
            name,
            process,
            files,
        }
    }

    /// systemctl(1) on this host.
    fn systemctl(&self, words: &[&str]) -> Option<String> {
        let own = Process(self.process.id().try_into().expect("a process id"));
        let first = own.children().first()?.0.to_string();
        let output = Command::new("nsenter")
            .args(["--mount", "--pid", "--uts", "--target", &first, "--"])
            .arg("systemctl")
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("nsenter");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    /// Whether systemd has started here at all; a machine may refuse that even to root.
    fn boots(&mut self) -> bool {
        let mut is_over = false;
        eventually(LIMIT, "systemd answers or ends", || {
            is_over = self.process.try_wait().expect("our own child").is_some()
                || self.files.read("log").contains("Freezing execution");
            is_over || self.systemctl(&["show", "--property=Version"]).is_some()
        });
        !is_over
    }

    #[track_caller]
    fn shows(&self, property: &str, value: &str) {
        eventually(LIMIT, value, || {
            self.systemctl(&["show", "--property", property, SERVICE])
                .is_some_and(|text| text.contains(value))
        });
    }

    fn service(&self, words: &[&str]) {
        let words = [words, &[SERVICE]].concat();
        let done = self.systemctl(&words);
        assert!(done.is_some(), "{words:?}: {}", self.files.read("log"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Every process of the host dies with its first one.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let remove = "mount -t cgroup2 none \"$0\" && cd \"$0/dlock-test-$1\" || exit 0
            find \"$PWD\" -depth -type d -exec rmdir {} +";
        let group = self.process.id().to_string();
        eventually(LIMIT, "the control groups of the host are empty", || {
            let removed = Command::new("unshare")
                .args(["--mount", "--", "sh", "-c", remove])
                .arg(self.files.path())
                .arg(&group)
                .stderr(Stdio::null())
                .status();
            removed.is_ok_and(|status| status.success())
        });
    }
}

/// The text with the only `from` in it replaced.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
    text.replace(from, to)
}

/// The lines that the daemon has written: a host and an event in each.
fn events(shared: &Scratch) -> Vec<String> {
    let text = shared.read("log");
    assert!(!text.contains("OVERLAP"), "{text}");
    text.lines().map(str::to_owned).collect()
}

/// The host that the daemon is active on, once it has been started `count` times.
#[track_caller]
fn active<'a>(hosts: &'a [Host], shared: &Scratch, count: usize, limit: Duration) -> &'a Host {
    let name = eventually(limit, "the daemon is active", || {
        let events = events(shared);
        let starts = events.iter().filter(|line| line.ends_with(" active"));
        let starts: Vec<&String> = starts.collect();
        assert!(starts.len() <= count, "{events:?}");
        starts.get(count - 1).map(|line| (*line).to_owned())
    });
    let on = |host: &&Host| name.starts_with(&format!("{} ", host.name));
    hosts.iter().find(on).expect("one of the hosts")
}

/// "This daemon is active on one host, and another host takes over when that one fails" (dlock-examples(7)), sentence by sentence.
#[test]
fn a_daemon_is_active_on_one_of_three_hosts() {
    if as_root()
        .and_then(|()| in_namespaces(&["--mount"]))
        .is_none()
    {
        return;
    }
    let (etcd, shared) = (Etcd::start(), Scratch::new());
    let boot = |name| Host::boot(name, &etcd, &shared);
    let mut hosts = ["web1", "web2", "web3"]
        .map(boot)
        .into_iter()
        .collect::<Vec<_>>();
    if !hosts.iter_mut().all(Host::boots) {
        // Some containers give root no control groups. service.rs tests what dlock does, without systemd.
        announce(&format!(
            "standby: not run: systemd does not start here: {}",
            hosts[0].files.read("log")
        ));
        return;
    }
    let first = active(&hosts, &shared, 1, LIMIT);
    for host in &hosts {
        let is_first = host.name == first.name;
        // "It is activating where it waits, without a limit; systemctl status shows the holder of the lock there"
        host.shows(
            "ActiveState",
            if is_first { "=active" } else { "=activating" },
        );
        let status = if is_first {
            "holding the lock"
        } else {
            "held by root@"
        };
        host.shows("StatusText", status);
        // "The boot does not wait for it"
        eventually(LIMIT, "the boot reaches its target", || {
            host.systemctl(&["is-active", "multi-user.target"])
        });
    }

    // "The daemon gets SIGHUP through dlock"
    first.service(&["reload"]);
    eventually(LIMIT, "the daemon is reloaded", || {
        events(&shared).contains(&format!("{} reloaded", first.name))
    });

    // "The daemon answers the watchdog as it would without dlock", for longer than its period.
    let_pass(WATCHDOG + Duration::from_secs(2));
    assert_eq!(active(&hosts, &shared, 1, LIMIT).name, first.name);
    first.service(&["kill", "--kill-who=main", "--signal=USR1"]);
    let hung_at = boot_clock();
    let second = active(&hosts, &shared, 2, LIMIT);
    assert_ne!(second.name, first.name);
    // "When the daemon hangs, systemd sends SIGABRT, which dlock passes on; the daemon ends, dlock releases the lock, and
    // another host takes over at once": after the period, and without the TTL.
    let taken_over = since(hung_at);
    assert!(taken_over < WATCHDOG + BUSY, "{taken_over:?}");
    first.shows("NRestarts", "=1");
    first.shows("StatusText", "held by root@");

    // "the lock is released when it has ended, and another host takes over at once"
    let stopped_at = boot_clock();
    second.service(&["stop"]);
    assert!(events(&shared).contains(&format!("{} stopped", second.name)));
    let third = active(&hosts, &shared, 3, LIMIT);
    let taken_over = since(stopped_at);
    assert!(taken_over < BUSY, "{taken_over:?}");
    second.shows("ActiveState", "=inactive");

    // "systemctl start --no-block starts it by hand"
    second.service(&["start", "--no-block"]);
    second.shows("ActiveState", "=activating");

    // "Another host takes over within the TTL and the lock delay", when the host fails
    let name = third.name;
    let at = hosts.iter().position(|host| host.name == name);
    let crashed_at = boot_clock();
    drop(hosts.swap_remove(at.expect("one of the hosts")));
    let fourth = active(&hosts, &shared, 4, TTL + LOCK_DELAY + BUSY);
    let taken_over = since(crashed_at);
    assert!(taken_over > TTL / 2, "{taken_over:?}");

    // and when dlock is killed: no daemon of the service survives it.
    fourth.service(&["kill", "--kill-who=main", "--signal=KILL"]);
    let fifth = active(&hosts, &shared, 5, TTL + LOCK_DELAY + BUSY);
    assert_ne!(fifth.name, fourth.name);
}
