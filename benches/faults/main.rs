//! Runs one matrix of faults on dlock and its peers and prints what each of them did, as one table.
//! It must not know how dlock is built inside: it sees processes, servers and the command's own beats.
//!
//! `make faults`, or `cargo bench --bench faults -- --only revoked --json table.json`.

mod command;
mod contest;
mod fault;
mod report;
#[path = "../shared/section.rs"]
mod section;
mod stage;
#[path = "../shared/tool.rs"]
mod tool;

/// What the end-to-end tests stand on.
#[path = "../../tests/integration"]
mod integration {
    #[expect(dead_code, unused_imports, reason = "the tests need more of it")]
    pub(crate) mod support;
}

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use contest::Measured;
use fault::{FAULTS, Fault};
use integration::support;
use stage::Stage;
use tool::Tool;

/// Runs the faults on dlock, `etcdctl lock` and flock; has a column for `consul lock`.
#[derive(Parser)]
struct Arguments {
    /// Also write the table as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also put the table between the marker lines of this file
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Run only the faults whose name contains this
    #[arg(long, value_name = "WORDS", default_value = "")]
    only: String,
    /// cargo's
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one tool did under one fault.
enum Cell {
    Measured(Measured),
    /// The fault cannot befall this tool, or it was not to be had; why.
    Not(&'static str),
    /// The measurement itself failed.
    Failed,
}

/// One fault and what each tool did, in the order of `Tool::ALL`.
struct Row {
    fault: &'static Fault,
    cells: Vec<Cell>,
}

impl Row {
    /// What dlock did that it must not do.
    fn broken_promise(&self) -> Option<String> {
        let Cell::Measured(dlock) = &self.cells[0] else {
            return Some("nothing was measured".to_owned());
        };
        dlock.broken_promise(self.fault)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = words.strip_prefix(&[command::WORD.to_owned()]) {
        return command::run(role);
    }
    let arguments = Arguments::parse();
    let mut rows = Vec::new();
    for fault in FAULTS {
        if fault.name.contains(&arguments.only) {
            let row = suffer(fault);
            say(&format!("{}\n", report::row(&row)));
            rows.push(row);
        }
    }
    say(&format!("\n{}", report::markdown(&rows)));
    if let Some(path) = &arguments.json {
        std::fs::write(path, report::json(&rows)).expect("the file for the JSON can be written");
    }
    if let Some(path) = &arguments.readme {
        section::insert(path, "faults", &report::markdown(&rows));
    }
    let mut code = ExitCode::SUCCESS;
    for row in &rows {
        if let Some(why) = row.broken_promise() {
            say(&format!("dlock, {}: {why}\n", row.fault.name));
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// Sets the stage for one fault and lets all tools that it can befall suffer it at the same time, each on a lock of its
/// own: they share the fault to the millisecond, and the matrix is done in a third of the time.
fn suffer(fault: &'static Fault) -> Row {
    let able = Tool::ALL.map(|tool| fault.spares(tool));
    let tools: Vec<Tool> = Tool::ALL
        .into_iter()
        .filter(|tool| fault.spares(*tool).is_none())
        .collect();
    let measured = catch_unwind(AssertUnwindSafe(|| Stage::set(fault, &tools).measure()));
    let mut measured = measured.ok().map(Vec::into_iter);
    let cells = able
        .into_iter()
        .map(|spared| match (spared, &mut measured) {
            (Some(why), _) => Cell::Not(why),
            (None, Some(results)) => results.next().map_or(Cell::Failed, Cell::Measured),
            (None, None) => Cell::Failed,
        })
        .collect();
    Row { fault, cells }
}

/// Writes to standard output; nobody there is no failure.
fn say(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}
