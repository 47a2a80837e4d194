//! The duration of a run without contention, measured by hyperfine.
//! It must not know what the tools do in that time.

use std::process::Command;

use serde_json::Value;

use crate::baseline;
use crate::report::{Goal, Table};
use crate::sample::Sample;
use crate::support::{Etcd, Scratch, dlock_program};
use crate::tool::{Tool, installed};

/// Number of runs of one tool before the next one's: a disturbance of the machine then affects all tools.
const TURN: usize = 20;

pub(crate) fn measure(runs: usize, peers: &mut Table, beside_floor: &mut Table) {
    let etcd = Etcd::start();
    let dir = Scratch::new();
    let file = dir.write("lock", "");
    let mut lines: Vec<Vec<String>> = Tool::ALL
        .iter()
        .map(|tool| tool.line(&etcd.endpoint(), &file, "uncontended", "30"))
        .collect();
    lines.extend(
        [baseline::PIPELINED, baseline::SEQUENTIAL]
            .map(|way| baseline::line(way, &etcd.endpoint(), baseline::PLAIN, "floor")),
    );
    let mut samples = in_turn(runs, &lines, &dir).into_iter();
    let tools: Vec<Option<Sample>> = samples.by_ref().take(Tool::ALL.len()).collect();
    let floors: Vec<Option<Sample>> = [tools[0].clone()].into_iter().chain(samples).collect();
    peers.row("`x true`, uncontended", "ms", tools, Goal::AtMostOf(0.25));
    beside_floor.row("`x true`, uncontended", "ms", floors, Goal::None);
    let program = std::fs::metadata(dlock_program()).expect("it was built");
    #[expect(clippy::cast_precision_loss, reason = "a few MiB")]
    let size = program.len() as f64 / 1024.0 / 1024.0;
    peers.row(
        "the program",
        "MiB",
        [Some(Sample::one(size)), None, None, None],
        Goal::AtMost(4.3),
    );
}

/// The wall times of `true` under each of these, in ms; `None` for a tool that is not installed.
pub(crate) fn in_turn(runs: usize, lines: &[Vec<String>], dir: &Scratch) -> Vec<Option<Sample>> {
    let mut walls: Vec<Vec<f64>> = vec![Vec::new(); lines.len()];
    for turn in 0..runs.div_ceil(TURN) {
        for (line, walls) in lines.iter().zip(&mut walls) {
            if installed(&line[0]) {
                walls.extend(hyperfine(line, turn == 0, dir));
            }
        }
    }
    let sample = |walls: Vec<f64>| (!walls.is_empty()).then(|| Sample::new(walls));
    walls.into_iter().map(sample).collect()
}

/// The wall time of each run, in ms.
fn hyperfine(line: &[String], warm_up: bool, dir: &Scratch) -> Vec<f64> {
    let json = dir.file("hyperfine.json");
    let command: Vec<&str> = line.iter().map(String::as_str).chain(["true"]).collect();
    let output = Command::new("hyperfine")
        .args(["--shell=none", "--style=none", "--export-json", &json])
        .args(["--warmup", if warm_up { "5" } else { "1" }])
        .args(["--runs", &TURN.to_string()])
        .arg(command.join(" "))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(Tool::VARIABLES)
        .output()
        .expect("hyperfine starts; install it with: apt-get install hyperfine, or run make bench");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    let text = std::fs::read(&json).expect("hyperfine wrote it");
    let parsed: Value = serde_json::from_slice(&text).expect("hyperfine writes JSON");
    let times = parsed["results"][0]["times"].as_array().expect("the times");
    times
        .iter()
        .filter_map(|time| Some(time.as_f64()? * 1000.0))
        .collect()
}
