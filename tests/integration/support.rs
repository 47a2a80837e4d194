//! The base of every end-to-end test: servers, the program under test, and waiting with a limit.
//! It must not know which behaviour a test proves.

mod clock;
mod cluster;
mod dlock;
mod etcd;
mod fixtures;
pub(crate) mod json;
mod link;
mod metrics;
mod oracle;
mod permission;
mod processes;
mod scratch;
mod terminal;
mod tls;

use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub(crate) use clock::{WallClock, assert_time_namespaces};
pub(crate) use cluster::Cluster;
pub(crate) use dlock::{Dlock, Outcome, Running, dlock_program, previous_program};
pub(crate) use etcd::{Etcd, etcd_program, etcdctl_program, free_port, search_path};
pub(crate) use fixtures::{hold, hold_open, holder_and_waiter, is_followed};
pub(crate) use link::{Bait, BlackHole, Direction, Link, Lost, Mode, Trap};
pub(crate) use metrics::{Metrics, http_get};
pub(crate) use oracle::Oracle;
pub(crate) use permission::{as_root, as_user, in_namespaces, may_trace, not_run, without};
pub(crate) use processes::{PlainKill, Process, alive};
pub(crate) use rustix::process::Signal;
pub(crate) use scratch::Scratch;
pub(crate) use terminal::Terminal;
pub(crate) use tls::Certificates;

/// Time limit for anything that takes an instant on an idle machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Time since boot, which counts while the machine sleeps: the clock of leases and deadlines.
pub(crate) fn boot_clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec
            .try_into()
            .expect("the boot clock starts at zero"),
        now.tv_nsec.try_into().expect("less than a second"),
    )
}

/// Time since a moment of the boot clock.
pub(crate) fn since(moment: Duration) -> Duration {
    boot_clock().saturating_sub(moment)
}

/// The answer of a condition: `bool`, or an `Option` with the value found.
pub(crate) trait Answer {
    type Found;
    fn found(self) -> Option<Self::Found>;
}

impl Answer for bool {
    type Found = ();
    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Found = T;
    fn found(self) -> Option<T> {
        self
    }
}

/// Evaluates `condition` again and again until it holds; fails the test after `limit`.
#[track_caller]
pub(crate) fn eventually<A: Answer>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> A,
) -> A::Found {
    let until = boot_clock() + limit;
    loop {
        if let Some(found) = condition().found() {
            return found;
        }
        assert!(boot_clock() < until, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Lets a span of real time pass, for tests that are about exactly that span.
pub(crate) fn let_pass(span: Duration) {
    let until = boot_clock() + span;
    while boot_clock() < until {
        thread::sleep(until.saturating_sub(boot_clock()));
    }
}

/// Reports something that is shown even without the output of passing tests.
pub(crate) fn announce(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A word that no other test of this process, and no other test process, uses: a lock name, a mark.
pub(crate) fn unique(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{stem}-{}-{count}", std::process::id())
}

/// The path of a script in `tests/children`.
pub(crate) fn child(script: &str) -> String {
    format!("{}/tests/children/{script}", env!("CARGO_MANIFEST_DIR"))
}
