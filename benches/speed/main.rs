//! Measures the cost of dlock, of its peers and of a minimal client, and prints it as tables.
//! It must not know dlock's inner workings: it sees processes, servers and clocks.
//!
//! `make bench`, or `cargo bench --bench speed -- --only hand-over --json figures.json`.

mod baseline;
mod capacity;
mod contenders;
mod footprint;
mod handover;
mod local;
mod machine;
mod report;
#[path = "../shared/results.rs"]
mod results;
mod round_trips;
mod sample;
mod server;
mod stamp;
#[path = "../shared/tool.rs"]
mod tool;
mod uncontended;

/// The support code of the end-to-end tests.
#[path = "../../tests/integration"]
mod integration {
    #[expect(dead_code, unused_imports, reason = "the tests need more of it")]
    pub(crate) mod support;
}

use std::process::ExitCode;

use clap::Parser;

use integration::support;
use report::Table;
use results::Results;

/// Measures dlock, `etcdctl lock`, flock, `consul lock` where there is one, and a bare client
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    results: Results,
    /// How often each tool runs where one run is short
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    runs: usize,
    /// How many wait for one lock where the hand-over and the memory are measured
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    waiters: usize,
    /// How many contend where growth is measured
    #[arg(
        long,
        value_name = "COUNTS",
        value_delimiter = ',',
        default_value = "10,100,1000"
    )]
    crowds: Vec<usize>,
    /// How many wait for one lock in one more measurement
    #[arg(long, value_name = "COUNT")]
    long_queue: Option<usize>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = words.strip_prefix(&[baseline::WORD.to_owned()]) {
        return baseline::run(role);
    }
    if let Some(role) = words.strip_prefix(&[stamp::WORD.to_owned()]) {
        return stamp::run(role);
    }
    let arguments = Arguments::parse();
    let wanted = |name: &str| arguments.results.wants(name);
    let (mut peers, mut floor) = (Table::beside_peers(), Table::beside_floor());
    let (mut alone, mut capacity) = (Table::beside_flock(), Table::capacity());
    if wanted("uncontended") {
        uncontended::measure(arguments.runs, &mut peers, &mut floor);
    }
    if wanted("local") {
        local::measure(arguments.runs, &mut alone);
    }
    if wanted("distance") {
        round_trips::measure(arguments.runs, &mut peers, &mut floor);
    }
    if wanted("hand-over") {
        handover::measure(arguments.waiters, &mut peers, &mut floor);
    }
    if wanted("footprint") {
        footprint::measure(&mut peers);
    }
    if wanted("capacity") {
        capacity::measure(&arguments.crowds, &mut peers, &mut capacity);
    }
    if let Some(size) = arguments.long_queue {
        capacity::measure_long_queue(size, &mut peers);
    }
    let tables = [peers, floor, alone, capacity];
    let text = report::markdown(&tables);
    arguments
        .results
        .write("speed", &text, &report::json(&tables));
    ExitCode::SUCCESS
}
