//! The cost of dlock and its etcd for a growing number of contenders.
//! It must not know how a lock is taken.

use std::time::Duration;

use crate::contenders::{Contenders, Kind};
use crate::handover::{count, in_order, latencies, rate};
use crate::report::{Goal, Table};
use crate::sample::Sample;
use crate::server::{self, Counters};
use crate::support::{Etcd, boot_clock, let_pass, since};
use crate::tool::Tool;

/// Two renewals of a default TTL.
const WATCHED: Duration = Duration::from_secs(12);
const TTL: &str = "30";
/// Number of waiters that come at once. Of 5000, most give up when etcd has not answered for 10 s: it loads the whole queue for
/// each of them.
const BATCH: usize = 1000;

/// The measurements of one number of contenders.
struct Seen {
    there_after: f64,
    requests: f64,
    cpu: f64,
    memory: f64,
    /// The growth of etcd's memory for each, in KiB.
    memory_for_each: f64,
    of_one: f64,
    drained: f64,
}

pub(crate) fn measure(crowds: &[usize], peers: &mut Table, table: &mut Table) {
    for crowd in crowds {
        table.column(crowd.to_string());
    }
    let (mut waiters, mut holders) = (Vec::new(), Vec::new());
    for &size in crowds {
        // Its waiters end here: they would slow dlock's.
        let theirs = queued(Tool::Etcdctl, size).memory_for_each();
        let seen = contend(size, true);
        let cells = [Some(seen.memory_for_each), Some(theirs), None, None];
        peers.row(
            format!("memory of etcd for each of {size} waiters"),
            "KiB",
            cells.map(|cell| Some(Sample::one(cell?))),
            Goal::AtMostOf(1.0),
        );
        waiters.push(seen);
        holders.push(contend(size, false));
    }
    for (seen, who) in [
        (waiters, "waiters on one lock"),
        (holders, "holders of a lock each"),
    ] {
        let mut row = |what: &str, unit, of: &dyn Fn(&Seen) -> f64| {
            let cells = seen.iter().map(|seen| Some(Sample::one(of(seen))));
            table.row(format!("{who}: {what}"), unit, cells, Goal::None);
        };
        row("all are there after", "s", &|seen| seen.there_after);
        row("requests at etcd", "per s", &|seen| seen.requests);
        row("processor time of etcd", "% of a core", &|seen| seen.cpu);
        row("memory of etcd (resident)", "MiB", &|seen| seen.memory);
        row("memory of one, all its processes (PSS)", "MiB", &|seen| {
            seen.of_one
        });
        row("all have had it and are gone", "per s", &|seen| {
            seen.drained
        });
    }
}

/// Drains a long queue in its order, with nobody lost.
pub(crate) fn measure_long_queue(size: usize, peers: &mut Table) {
    let seen = contend(size, true);
    let mut row = |what, unit, figure| {
        let cells = [Some(Sample::one(figure)), None, None, None];
        peers.row(what, unit, cells, Goal::None);
    };
    row(
        format!("{size} waiters: all are there after"),
        "s",
        seen.there_after,
    );
    row(
        format!("{size} waiters drained in their order"),
        "per s",
        seen.drained,
    );
    row(
        format!("memory of etcd for each of {size} waiters"),
        "KiB",
        seen.memory_for_each,
    );
}

/// Waiters behind a holder, and their server.
struct Queued {
    etcd: Etcd,
    crowd: Contenders,
    size: usize,
    /// Resident memory of the server before they came, in MiB.
    before: f64,
    /// The time from the first one's start until all were there.
    there_after: Duration,
}

impl Queued {
    fn memory_for_each(&self) -> f64 {
        (server::resident(self.etcd.process().0) - self.before) / count(self.size) * 1024.0
    }
}

fn queued(tool: Tool, size: usize) -> Queued {
    start(tool, size, |etcd, crowd| {
        crowd.join("crowded", true);
        crowd.await_begun(1);
        let mut queued = 1;
        while queued <= size {
            let batch = BATCH.min(size + 1 - queued);
            for _ in 0..batch {
                crowd.join("crowded", false);
            }
            queued += batch;
            crowd.await_queued(Some(etcd), "crowded", queued);
        }
    })
}

fn held(size: usize) -> Queued {
    start(Tool::Dlock, size, |_, crowd| {
        for number in 0..size {
            crowd.join(&format!("own-{number}"), true);
        }
        crowd.await_begun(size);
    })
}

/// Starts a server and the contenders that `join` adds.
fn start(tool: Tool, size: usize, join: impl FnOnce(&Etcd, &mut Contenders)) -> Queued {
    let etcd = Etcd::start();
    let before = server::resident(etcd.process().0);
    let began_at = boot_clock();
    let mut crowd = Contenders::new(Kind::Tool(tool), etcd.endpoint(), TTL);
    join(&etcd, &mut crowd);
    Queued {
        etcd,
        crowd,
        size,
        before,
        there_after: since(began_at),
    }
}

/// Starts all contenders, on one lock or on a lock each, measures and ends them. Fails if one is lost or the order of the
/// queue is wrong.
fn contend(size: usize, one_lock: bool) -> Seen {
    let queued = if one_lock {
        queued(Tool::Dlock, size)
    } else {
        held(size)
    };
    let there_after = queued.there_after.as_secs_f64();
    // The first renewals come when they are due, and not all at once.
    let_pass(Duration::from_secs(6));
    let before = Counters::of(&queued.etcd);
    let_pass(WATCHED);
    let work = Counters::of(&queued.etcd).work_since(&before);
    let of_one = Sample::new(queued.crowd.memory()).median();
    let memory = server::resident(queued.etcd.process().0);
    let memory_for_each = queued.memory_for_each();
    let released_at = queued.crowd.let_go().as_secs_f64();
    let stamps = queued.crowd.finish();
    let drained = if one_lock {
        assert_eq!(stamps.len(), size + 1, "nobody is lost");
        assert!(in_order(&stamps), "the order of the queue");
        assert_eq!(latencies(&stamps).count(), size);
        rate(&stamps, released_at)
    } else {
        assert_eq!(stamps.len(), size, "nobody is lost");
        count(size) / (boot_clock().as_secs_f64() - released_at)
    };
    Seen {
        there_after,
        requests: work.requests / work.seconds,
        cpu: work.cpu_percent,
        memory,
        memory_for_each,
        of_one,
        drained,
    }
}
