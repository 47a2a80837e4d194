//! Deadlocks of nested locks: the youngest waiter of a ring leaves and names it, and a wait that can end is no deadlock.
//! It must not know how a ring is found.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{
    Cluster, Dlock, Etcd, LIMIT, Running, Scratch, Signal, dlock_program, eventually, hold_open,
    let_pass, unique,
};

/// A script that holds one lock, and requests another one inside of it.
struct Script {
    running: Running,
    inner: String,
}

/// The words before the command of the inner lock.
fn inner(options: &[&str], name: &str) -> String {
    format!("{} run {} {name}", dlock_program(), options.join(" "))
}

impl Script {
    /// Starts it, and waits until it holds the outer lock.
    #[track_caller]
    fn start(dlock: Dlock, options: &[&str], outer: &str, inner: &str) -> Self {
        let script = format!("echo in; read go; {inner} echo ran; echo status $?; read end");
        let words = [options, &[outer, "--", "sh", "-c", &script]].concat();
        let mut running = dlock.run(words).stdin(Stdio::piped()).start();
        running.says("in\n");
        Self {
            running,
            inner: inner.to_owned(),
        }
    }

    /// Requests the inner lock.
    fn go(&mut self) {
        self.running.type_in("\n");
    }

    /// Waits for the end of the inner run, and then lets the script end.
    #[track_caller]
    fn ends(mut self, status: &str) -> String {
        self.running.says(&format!("status {status}\n"));
        self.running.type_in("\n");
        let outcome = self.running.wait().expect_code(0);
        let ran = outcome.stdout.contains("ran\n");
        assert_eq!(ran, status == "0", "{}: {outcome:?}", self.inner);
        outcome.stderr
    }
}

/// `HOST pid PID` of the youngest entry in a queue.
fn youngest(etcd: &Etcd, name: &str) -> String {
    let last = etcd.queue(name).pop().expect("a waiter");
    let record: serde_json::Value = serde_json::from_str(&last.value).expect("a record");
    let host = record["host"].as_str().expect("its host");
    format!("{host} pid {}", record["pid"])
}

/// "the youngest waiter in it leaves with 125 and names the ring"
#[test]
fn the_youngest_waiter_of_a_ring_leaves_and_names_it() {
    let (etcd, a, b) = (Etcd::shared(), unique("a"), unique("b"));
    let mut one = Script::start(Dlock::on(etcd), &[], &a, &inner(&[], &b));
    let mut other = Script::start(Dlock::on(etcd), &[], &b, &inner(&[], &a));
    one.go();
    etcd.queue_of(&b, 2);
    let elder = youngest(etcd, &b);
    let record = etcd.queue(&b).pop().expect("a waiter").value;
    let token = etcd.queue(&a)[0].create_revision;
    let held = format!(r#""held":[{{"name":"{a}","token":{token}}}]"#);
    assert!(record.contains(&held), "{record}");
    let status = Dlock::on(etcd).args(["status", &b]).finish();
    let shown = format!("(holds '{a}')");
    assert!(status.stdout.contains(&shown), "{status:?}");
    let list = Dlock::on(etcd).args(["ls", &a]).finish();
    assert!(!list.stdout.contains("waits for"), "{list:?}");
    let list = Dlock::on(etcd).args(["ls"]).finish();
    let shown = format!("(waits for '{b}')");
    assert!(list.stdout.contains(&shown), "{list:?}");
    other.go();
    etcd.queue_of(&a, 2);
    let leaver = youngest(etcd, &a);
    assert_eq!(
        other.ends("125"),
        format!(
            "dlock: cannot lock '{a}': deadlock: {leaver} holds '{b}' and waits for '{a}', {elder} holds '{a}' and waits for '{b}'\n\
             hint: take these locks in one order everywhere, or all at once with --also\n"
        )
    );
    assert_eq!(one.ends("0"), "");
}

/// "two and three in a ring on etcd, on a 3-node cluster once": each member uses another endpoint.
#[test]
fn one_of_three_in_a_ring_leaves_a_cluster_s_queue() {
    let cluster = Cluster::start();
    let on = |member: usize| Dlock::on(&cluster.members()[member]);
    let ttl = ["--ttl=10"];
    let mut scripts = [("a", "b"), ("b", "c"), ("c", "a")]
        .iter()
        .enumerate()
        .map(|(at, (outer, name))| Script::start(on(at), &ttl, outer, &inner(&ttl, name)))
        .collect::<Vec<_>>();
    let etcd = &cluster.members()[0];
    for (script, name) in scripts.iter_mut().zip(["b", "c", "a"]) {
        script.go();
        etcd.queue_of(name, 2);
    }
    let [one, two, three] = <[Script; 3]>::try_from(scripts).ok().expect("three");
    let named = three.ends("125");
    for words in [
        " holds 'c' and waits for 'a', ",
        " holds 'a' and waits for 'b', ",
        " holds 'b' and waits for 'c'\n",
    ] {
        assert!(named.contains(words), "{named}");
    }
    assert_eq!(two.ends("0"), "");
    assert_eq!(one.ends("0"), "");
}

/// "Local locks likewise."
#[test]
fn local_locks_form_rings_too() {
    let state = Scratch::new();
    let dlock = || Dlock::nowhere().env("DLOCK_LOCAL", state.file("state"));
    let queue_of = |name: &str| {
        eventually(LIMIT, "a waiter", || {
            let list = dlock().args(["status", name]).finish().stdout;
            list.contains("1 waiting").then_some(list)
        })
    };
    let mut one = Script::start(dlock(), &[], "a", &inner(&[], "b"));
    let mut other = Script::start(dlock(), &[], "b", &inner(&[], "a"));
    one.go();
    let status = queue_of("b");
    assert!(status.contains("(holds 'a')"), "{status}");
    other.go();
    let named = other.ends("125");
    assert!(
        named.contains("dlock: cannot lock 'a': deadlock: "),
        "{named}"
    );
    assert!(named.contains(" holds 'b' and waits for 'a', "), "{named}");
    assert!(named.contains(" holds 'a' and waits for 'b'\n"), "{named}");
    assert_eq!(one.ends("0"), "");
}

/// "several locks for one run": one that holds the first and waits for the second is a member of a ring, with etcd and on
/// this machine.
#[test]
fn locks_that_a_run_takes_together_are_part_of_a_ring() {
    let (etcd, state) = (Etcd::shared(), Scratch::new());
    let local = || Dlock::nowhere().env("DLOCK_LOCAL", state.file("state"));
    let remote = || Dlock::on(etcd);
    for dlock in [&remote as &dyn Fn() -> Dlock, &local] {
        let (a, b) = (unique("a"), unique("b"));
        let mut one = Script::start(dlock(), &[], &b, &inner(&[], &a));
        let mut both = dlock().run(["--also", &b, &a, "echo", "ran"]).start();
        let holds = format!("(holds '{a}')");
        eventually(LIMIT, "the run with both waits", || {
            let status = dlock().args(["status", &b]).finish();
            status.stdout.contains(&holds)
        });
        one.go();
        let named = one.ends("125");
        let words = [
            format!(" holds '{b}' and waits for '{a}', "),
            format!(" holds '{a}' and waits for '{b}'\n"),
        ];
        assert!(words.iter().all(|words| named.contains(words)), "{named}");
        both.wait().expect_code(0).expect_stdout("ran\n");
    }
}

/// A list of another state directory names no lock of this one, although the tokens are the same.
#[test]
fn locks_of_another_state_directory_form_no_ring() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let at = |state: &Scratch| Dlock::nowhere().env("DLOCK_LOCAL", state.file("state"));
    let elsewhere = format!("env DLOCK_LOCAL={} {}", here.file("state"), inner(&[], "b"));
    let mut holders = ["a", "b"].map(|name| hold_open(at(&here), &[], name));
    let mut other = Script::start(at(&there), &[], "a", &elsewhere);
    other.go();
    let status = eventually(LIMIT, "a waiter", || {
        let status = at(&here).args(["status", "b"]).finish();
        status.stdout.contains("1 waiting").then_some(status.stdout)
    });
    assert!(!status.contains("holds 'a'"), "{status}");
    for holder in &mut holders {
        holder.let_go();
    }
    assert_eq!(other.ends("0"), "");
}

/// "the ring in which a member uses `hold`"
#[test]
fn a_lock_that_a_script_holds_is_part_of_a_ring() {
    let (etcd, a, b) = (Etcd::shared(), unique("a"), unique("b"));
    let program = dlock_program();
    let script = format!(
        "h=$({program} hold --background --pid $$ {a}) || exit; eval \"$h\"; echo in; read go
         {} echo ran; echo status $?; read end",
        inner(&["--ttl=10"], &b)
    );
    let mut script = Dlock::program(["sh", "-c", &script])
        .env("DLOCK_ENDPOINTS", etcd.endpoint())
        .stdin(Stdio::piped())
        .start();
    script.says("in\n");
    let mut other = Script::start(Dlock::on(etcd), &[], &b, &inner(&["--ttl=10"], &a));
    other.go();
    etcd.queue_of(&a, 2);
    script.type_in("\n");
    script.says("status 125\n");
    let named = script.stderr();
    let words = format!(" holds '{a}' and waits for '{b}', ");
    assert!(named.contains(&words), "{named}");
    script.type_in("\n");
    script.wait().expect_code(0);
    assert_eq!(other.ends("0"), "");
}

/// "no false alarm with ... `--wait` that ends": the wait of the elder ends, and the younger goes on.
#[test]
fn a_wait_with_a_limit_is_no_deadlock() {
    let (etcd, a, b) = (Etcd::shared(), unique("a"), unique("b"));
    let limited = inner(&["--ttl=10", "--wait=8"], &b);
    let mut one = Script::start(Dlock::on(etcd), &[], &a, &limited);
    let mut other = Script::start(Dlock::on(etcd), &[], &b, &inner(&["--ttl=10"], &a));
    one.go();
    etcd.queue_of(&b, 2);
    other.go();
    etcd.queue_of(&a, 2);
    let still = one.ends("75");
    assert!(
        still.contains(&format!("the lock '{b}' is still held by ")),
        "{still}"
    );
    assert_eq!(other.ends("0"), "");
}

/// "no false alarm with shared locks, slots": a reader does not wait for readers, and a slot becomes free when any holder ends.
#[test]
fn readers_and_slots_that_others_free_are_no_deadlock() {
    let (etcd, a, b, s) = (Etcd::shared(), unique("a"), unique("b"), unique("s"));
    let (ttl, slots) = ("--ttl=10", "--slots=2");
    // Both hold a slot; one of them waits for what the waiter for a slot holds.
    let mut free = hold_open(Dlock::on(etcd), &[slots], &s);
    let mut one = Script::start(Dlock::on(etcd), &[slots], &s, &inner(&[ttl], &b));
    let mut other = Script::start(Dlock::on(etcd), &[], &b, &inner(&[ttl, slots], &s));
    one.go();
    etcd.queue_of(&b, 2);
    other.go();
    etcd.queue_of(&s, 3);
    // Several searches.
    let_pass(Duration::from_secs(6));
    etcd.queue_of(&s, 3);
    free.let_go();
    assert_eq!(other.ends("0"), "");
    assert_eq!(one.ends("0"), "");
    // Each of two readers waits for what the other one holds.
    let shared = ["--shared"];
    let mut one = Script::start(Dlock::on(etcd), &shared, &a, &inner(&["--shared", ttl], &b));
    let mut other = Script::start(Dlock::on(etcd), &shared, &b, &inner(&["--shared", ttl], &a));
    one.go();
    other.go();
    assert_eq!(
        (one.ends("0"), other.ends("0")),
        (String::new(), String::new())
    );
}

/// "one of them killed": the entries of the dead expire, and the ring with them.
#[test]
fn a_ring_with_a_dead_member_is_no_deadlock() {
    let (etcd, a, b) = (Etcd::shared(), unique("a"), unique("b"));
    let ttl = ["--ttl=10"];
    let mut dead = Script::start(Dlock::on(etcd), &ttl, &a, &inner(&ttl, &b));
    let mut other = Script::start(Dlock::on(etcd), &ttl, &b, &inner(&ttl, &a));
    dead.go();
    etcd.queue_of(&b, 2);
    let all = dead.running.everything();
    for signal in [Signal::STOP, Signal::KILL] {
        for process in &all {
            process.signal(signal);
        }
    }
    eventually(LIMIT, "all of them are dead", || {
        dead.running.everything().is_empty()
    });
    other.go();
    assert_eq!(other.ends("0"), "");
}
