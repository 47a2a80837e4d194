//! The cost of an idle holder: memory, threads, wake-ups, requests.
//! It must not know why a tool wakes up.

use std::thread;
use std::time::Duration;

use crate::contenders::{Contenders, Kind};
use crate::handover::count;
use crate::report::{Goal, Table};
use crate::sample::Sample;
use crate::server::Counters;
use crate::support::{Etcd, Process, let_pass};
use crate::tool::{Tool, installed};

/// Five renewals of a default TTL.
const WATCHED: Duration = Duration::from_secs(30);
/// Number of holders, each of its own lock.
const HOLDERS: usize = 20;

pub(crate) fn measure(peers: &mut Table) {
    let mut cells: [Vec<Option<Sample>>; 4] = Default::default();
    // At once: each has a server of its own, and nothing of it is timed.
    let watched: Vec<Option<[f64; 4]>> = thread::scope(|scope| {
        let start = |tool: Tool| {
            let installed = installed(&tool.line("", "", "", "")[0]);
            installed.then(|| scope.spawn(move || watch(tool)))
        };
        let watching: Vec<_> = Tool::ALL.into_iter().map(start).collect();
        let join = |one: thread::ScopedJoinHandle<[f64; 4]>| one.join().expect("it was watched");
        watching.into_iter().map(|one| one.map(join)).collect()
    });
    for held in watched {
        for (index, cells) in cells.iter_mut().enumerate() {
            cells.push(held.map(|held| Sample::one(held[index])));
        }
    }
    let what = [
        (
            "memory of one of 20 holders, all its processes (PSS)",
            "MiB",
            Goal::AtMost(1.0),
        ),
        (
            "threads of a holder beside the main ones",
            "threads",
            Goal::AtMost(0.0),
        ),
        ("wake-ups of an idle holder in 30 s", "wake-ups", Goal::None),
        (
            "requests of a held lock in 30 s",
            "requests",
            Goal::AtMost(10.0),
        ),
    ];
    for ((what, unit, goal), cells) in what.into_iter().zip(cells) {
        peers.row(what, unit, cells, goal);
    }
}

fn watch(tool: Tool) -> [f64; 4] {
    let etcd = Etcd::start();
    let mut crowd = Contenders::new(Kind::Tool(tool), etcd.endpoint(), "30");
    for holder in 0..HOLDERS {
        crowd.join(&format!("held-{holder}"), true);
    }
    crowd.await_begun(HOLDERS);
    let_pass(Duration::from_secs(1));
    let processes: Vec<Process> = crowd.processes().into_iter().flatten().collect();
    let wake_ups = || {
        processes
            .iter()
            .map(|process| process.wake_ups())
            .sum::<u64>()
    };
    let threads: usize = processes.iter().map(|process| process.threads()).sum();
    let (woken, before) = (wake_ups(), Counters::of(&etcd));
    let_pass(WATCHED);
    let (woken, work) = (wake_ups() - woken, Counters::of(&etcd).work_since(&before));
    let memory = Sample::new(crowd.memory()).median();
    crowd.let_go();
    assert_eq!(crowd.finish().len(), HOLDERS);
    let of_one = |all: f64| all / count(HOLDERS);
    let woken = usize::try_from(woken).map_or(f64::INFINITY, count);
    let beside = count(threads - processes.len());
    [memory, of_one(beside), of_one(woken), of_one(work.requests)]
}
