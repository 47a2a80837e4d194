//! Measures the cost of dlock, of its peers and of a minimal client, and prints it as tables.
//! It must not know dlock's inner workings: it sees processes, servers and clocks.
//!
//! `make bench`, or `cargo bench --bench speed -- --only hand-over --json figures.json`.

mod baseline;
mod capacity;
mod contenders;
mod footprint;
mod handover;
mod machine;
mod report;
mod round_trips;
mod sample;
#[path = "../shared/section.rs"]
mod section;
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

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use integration::support;
use report::Table;

/// Measures dlock, `etcdctl lock`, flock, `consul lock` where there is one, and a bare client
#[derive(Parser)]
struct Arguments {
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also put the tables between the marker lines of this file
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Take only the measurements whose name contains this
    #[arg(long, value_name = "WORDS", default_value = "")]
    only: String,
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
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
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
    let wanted = |name: &str| name.contains(&arguments.only);
    let (mut peers, mut floor) = (Table::beside_peers(), Table::beside_floor());
    let mut capacity = Table::capacity();
    if wanted("uncontended") {
        uncontended::measure(arguments.runs, &mut peers, &mut floor);
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
        capacity::measure(&arguments.crowds, &mut capacity);
    }
    let tables = [peers, floor, capacity];
    let text = report::markdown(&tables);
    print_line(&format!("\n{text}"));
    if let Some(path) = &arguments.json {
        std::fs::write(path, report::json(&tables)).expect("the file for the JSON can be written");
    }
    if let Some(path) = &arguments.readme {
        section::insert(path, "speed", &text);
    }
    ExitCode::SUCCESS
}

/// Writes to standard output; a closed output is no failure.
fn print_line(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

/// A command line that runs this program in the given role.
fn myself(role: &str) -> Vec<String> {
    let path = std::env::current_exe().expect("a Linux with /proc");
    let path = path.to_str().expect("a plain path").to_owned();
    vec![path, role.to_owned()]
}
