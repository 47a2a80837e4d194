//! How fast a lock passes to the next waiter when many wait, and which processes that wakes.
//! It must not know how a tool learns that it has the lock.

use crate::contenders::{Contenders, Kind};
use crate::report::{Goal, Table};
use crate::sample::Sample;
use crate::server::Counters;
use crate::stamp::Stamp;
use crate::support::Etcd;
use crate::tool::{Tool, installed};

/// A TTL so long that no renewal falls into the measurement.
const TTL: &str = "600";
/// Number of measurements of each tool, in turn.
const DRAINS: usize = 3;

/// The measurements of one tool.
#[derive(Default)]
struct Seen {
    rates: Vec<f64>,
    /// The time from the end of a command to the next one's begin in each drain, in ms: median and 99th percentile.
    p50: Vec<f64>,
    p99: Vec<f64>,
    events: Vec<f64>,
    reads: Vec<f64>,
    memory: Vec<f64>,
}

pub(crate) fn measure(waiters: usize, peers: &mut Table, beside_floor: &mut Table) {
    let kinds = Tool::ALL.map(Kind::Tool).into_iter().chain([Kind::Bare]);
    let kinds: Vec<Kind> = kinds.collect();
    let mut seen: Vec<Seen> = kinds.iter().map(|_| Seen::default()).collect();
    for _ in 0..DRAINS {
        for (kind, seen) in kinds.iter().zip(&mut seen) {
            if installed(&kind.line("", "", "", "")[0]) {
                drain(*kind, waiters, seen);
            }
        }
    }
    let (tools, bare) = seen.split_at(Tool::ALL.len());
    let cell = |seen: &Seen, of: &dyn Fn(&Seen) -> Vec<f64>| {
        Some(of(seen)).filter(|of| !of.is_empty()).map(Sample::new)
    };
    let mut row = |what: &str, unit, goal, of_bare, of: &dyn Fn(&Seen) -> Vec<f64>| {
        peers.row(what, unit, tools.iter().map(|seen| cell(seen, of)), goal);
        let cells = [cell(&tools[0], of), cell(&bare[0], of), None];
        beside_floor.row(what, unit, cells, of_bare);
    };
    let each = format!("{waiters} waiters drained");
    row(&each, "per s", Goal::AtLeastOf(1.5), Goal::None, &|seen| {
        seen.rates.clone()
    });
    let from_end = "from the end of a command to the next one's begin, p50";
    row(from_end, "ms", Goal::None, Goal::AtMostOf(1.35), &|seen| {
        seen.p50.clone()
    });
    row("the same, p99", "ms", Goal::None, Goal::None, &|seen| {
        seen.p99.clone()
    });
    let mut row = |what: &str, unit, goal, of: &dyn Fn(&Seen) -> Vec<f64>| {
        peers.row(what, unit, tools.iter().map(|seen| cell(seen, of)), goal);
    };
    row(
        "watch events for each: its own key, and the one before it",
        "events",
        Goal::AtMost(2.0),
        &|seen| seen.events.clone(),
    );
    row(
        "reads and transactions for each",
        "requests",
        Goal::None,
        &|seen| seen.reads.clone(),
    );
    row(
        "memory of one waiter, all its processes (PSS)",
        "MiB",
        Goal::AtMost(0.6),
        &|seen| seen.memory.clone(),
    );
}

fn drain(kind: Kind, waiters: usize, seen: &mut Seen) {
    let etcd = Etcd::start();
    let mut crowd = Contenders::new(kind, etcd.endpoint(), TTL);
    crowd.join("drained", true);
    crowd.await_begun(1);
    for _ in 0..waiters {
        crowd.join("drained", false);
    }
    crowd.await_queued(Some(&etcd), "drained", waiters + 1);
    // By then each of them has opened its watch.
    crate::support::let_pass(std::time::Duration::from_secs(2));
    let memory = crowd.memory();
    let before = Counters::of(&etcd);
    let released_at = crowd.let_go().as_secs_f64();
    let stamps = crowd.finish();
    let work = Counters::of(&etcd).work_since(&before);
    assert_eq!(stamps.len(), waiters + 1, "{kind:?}: nobody is lost");
    let latencies = Sample::new(latencies(&stamps).collect());
    seen.p50.push(latencies.percentile(50));
    seen.p99.push(latencies.percentile(99));
    seen.rates.push(rate(&stamps, released_at));
    let count = count(waiters);
    if kind.keys("").is_some() {
        seen.events.push(work.events / count);
        seen.reads.push(work.reads / count);
        seen.memory.extend(&memory[1..]);
    }
}

/// Commands in a second, from the first one's release to the last one's end.
pub(crate) fn rate(stamps: &[Stamp], released_at: f64) -> f64 {
    let last = stamps
        .iter()
        .map(|stamp| stamp.ended_at)
        .max()
        .unwrap_or_default();
    count(stamps.len() - 1) / (seconds(last) - released_at)
}

/// Time from the end of one command to the beginning of the next, in ms; fails when they overlap.
pub(crate) fn latencies(stamps: &[Stamp]) -> impl Iterator<Item = f64> {
    stamps.windows(2).map(|pair| {
        let (before, after) = (pair[0], pair[1]);
        assert!(after.began_at >= before.ended_at, "two at once: {pair:?}");
        seconds(after.began_at - before.ended_at) * 1000.0
    })
}

/// Whether all waiters had the lock in the order of the queue.
pub(crate) fn in_order(stamps: &[Stamp]) -> bool {
    stamps.is_sorted_by_key(|stamp| stamp.token)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "less than a day in ns is exact enough"
)]
fn seconds(nanoseconds: u128) -> f64 {
    nanoseconds as f64 / 1e9
}

pub(crate) fn count(of: usize) -> f64 {
    u32::try_from(of).map_or(f64::INFINITY, f64::from)
}
