//! The duration of a run without contention, and of hand-overs in a row, without a server.
//! It must not know what the tools do in that time.

use std::path::PathBuf;

use crate::contenders::{Contenders, Kind, local_line};
use crate::handover::{count, in_order, rate};
use crate::report::{Goal, Table};
use crate::sample::Sample;
use crate::support::Scratch;
use crate::tool::Tool;
use crate::uncontended::in_turn;

/// Number of waiters behind a holder.
const WAITERS: usize = 20;
/// Number of measurements of each tool, in turn.
const DRAINS: usize = 5;
/// A directory without a disk behind it.
const MEMORY: &str = "/dev/shm";

pub(crate) fn measure(runs: usize, table: &mut Table) {
    let dir = Scratch::new();
    let memory = PathBuf::from(MEMORY).join(format!("dlock-speed-{}", std::process::id()));
    let in_memory = memory.to_str().expect("a plain path");
    let flock = Tool::Flock.line("", &dir.write("lock", ""), "", "");
    let goal = Goal::AtMostOf(2.0);
    let lines = [local_line(&dir.file("state"), "x"), flock.clone()];
    table.row(
        "`x true`, the state directory in TMPDIR",
        "ms",
        in_turn(runs, &lines, &dir),
        goal,
    );
    let lines = [local_line(in_memory, "x"), flock];
    let what = "the same in memory, where fsync takes no time";
    table.row(what, "ms", in_turn(runs, &lines, &dir), Goal::None);
    let _ = std::fs::remove_dir_all(&memory);

    let kinds = [Kind::Local, Kind::Tool(Tool::Flock)];
    let mut drains = kinds.map(|_| Vec::new());
    for _ in 0..DRAINS {
        for (kind, drains) in kinds.into_iter().zip(&mut drains) {
            drains.push(drain(kind));
        }
    }
    let what = format!("{WAITERS} hand-overs in a row");
    table.row(
        what,
        "ms",
        drains.map(|drains| Some(Sample::new(drains))),
        goal,
    );
}

/// The time from the release to the end of the last command, in ms.
fn drain(kind: Kind) -> f64 {
    let mut crowd = Contenders::new(kind, String::new(), "30");
    crowd.join("row", true);
    crowd.await_begun(1);
    for _ in 0..WAITERS {
        crowd.join("row", false);
    }
    crowd.await_queued(None, "row", WAITERS + 1);
    let released_at = crowd.let_go().as_secs_f64();
    let stamps = crowd.finish();
    assert_eq!(stamps.len(), WAITERS + 1, "{kind:?}: nobody is lost");
    assert!(
        kind != Kind::Local || in_order(&stamps),
        "the order of the queue"
    );
    count(WAITERS) / rate(&stamps, released_at) * 1000.0
}
