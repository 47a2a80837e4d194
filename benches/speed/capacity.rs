//! The cost of dlock and its etcd for a growing number of contenders.
//! It must not know how a lock is taken.

use std::time::Duration;

use crate::contenders::{Contenders, Kind};
use crate::handover::{count, in_order, latencies, rate};
use crate::report::Table;
use crate::sample::Sample;
use crate::server::{self, Counters};
use crate::support::{Etcd, boot_clock, let_pass, since};
use crate::tool::Tool;

/// Three renewals of a default TTL.
const WATCHED: Duration = Duration::from_secs(18);

/// The measurements of one number of contenders.
struct Seen {
    there_after: f64,
    requests: f64,
    cpu: f64,
    memory: f64,
    of_one: f64,
    drained: f64,
}

pub(crate) fn measure(crowds: &[usize], table: &mut Table) {
    for crowd in crowds {
        table.column(crowd.to_string());
    }
    let waiters: Vec<Seen> = crowds.iter().map(|size| contend(*size, true)).collect();
    let holders: Vec<Seen> = crowds.iter().map(|size| contend(*size, false)).collect();
    for (seen, who) in [
        (waiters, "waiters on one lock"),
        (holders, "holders of a lock each"),
    ] {
        let mut row = |what: &str, unit, of: &dyn Fn(&Seen) -> f64| {
            let cells = seen.iter().map(|seen| Some(Sample::one(of(seen))));
            table.row(format!("{who}: {what}"), unit, cells, "");
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

/// Starts all contenders, on one lock or on a lock each, measures and ends them. Fails if one is lost or the order of the
/// queue is wrong.
fn contend(size: usize, one_lock: bool) -> Seen {
    let etcd = Etcd::start();
    let mut crowd = Contenders::new(Kind::Tool(Tool::Dlock), &etcd, "30");
    let began_at = boot_clock();
    if one_lock {
        crowd.join("crowded", true);
        crowd.await_begun(1);
        for _ in 0..size {
            crowd.join("crowded", false);
        }
        crowd.await_queued(&etcd, "crowded", size + 1);
    } else {
        for number in 0..size {
            crowd.join(&format!("own-{number}"), true);
        }
        crowd.await_begun(size);
    }
    let there_after = since(began_at).as_secs_f64();
    // The first renewals come when they are due, and not all at once.
    let_pass(Duration::from_secs(6));
    let before = Counters::of(&etcd);
    let_pass(WATCHED);
    let work = Counters::of(&etcd).work_since(&before);
    let of_one = Sample::new(crowd.memory()).median();
    let memory = server::resident(etcd.process().0);
    let released_at = crowd.let_go().as_secs_f64();
    let stamps = crowd.finish();
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
        of_one,
        drained,
    }
}
