//! Applies one matrix of faults to dlock and its peers and prints the results as one table.
//! It must not know dlock's inner workings: it sees processes, servers and the command's own beats.
//!
//! `make faults`, or `cargo bench --bench faults -- --only revoked --json table.json`.

mod command;
mod consul;
mod contenders;
mod fault;
mod report;
#[path = "../shared/results.rs"]
mod results;
mod server;
mod testbed;
#[path = "../shared/tool.rs"]
mod tool;

/// The support code of the end-to-end tests.
#[path = "../../tests/integration"]
mod integration {
    #[expect(dead_code, unused_imports, reason = "the tests need more of it")]
    pub(crate) mod support;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use clap::Parser;

use contenders::Measured;
use fault::{FAULTS, Fault};
use integration::support;
use results::{Results, print_line};
use testbed::Testbed;
use tool::Tool;

/// Runs the faults on dlock, `etcdctl lock`, flock and, where it is installed, `consul lock`.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    results: Results,
}

/// Number of faults that consul is exposed to at once.
const SEVERAL: usize = 8;

/// The result of one tool under one fault.
enum Cell {
    Measured(Measured),
    /// The fault cannot be applied to this tool, or could not be caused; the text says why.
    Not(&'static str),
    /// The measurement itself failed.
    Failed,
}

/// One fault and the result of each tool, in the order of `Tool::ALL`.
struct Row {
    fault: &'static Fault,
    cells: Vec<Cell>,
}

impl Row {
    /// The promise that dlock broke, if it broke one.
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
        if arguments.results.wants(fault.name) {
            let row = suffer(fault);
            print_line(&format!("{}\n", report::row(&row)));
            rows.push(row);
        }
    }
    suffer_slowly(&mut rows);
    arguments
        .results
        .write("faults", &report::markdown(&rows), &report::json(&rows));
    let mut code = ExitCode::SUCCESS;
    for row in &rows {
        if let Some(why) = row.broken_promise() {
            print_line(&format!("dlock, {}: {why}\n", row.fault.name));
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// Prepares one fault and applies it to all tools at once, each with a lock of its own: the fault has the same time for
/// all, and the matrix takes a third of the time.
fn suffer(fault: &'static Fault) -> Row {
    let at_once = Tool::ALL.map(|tool| match tool {
        Tool::Consul => Some(fault.spares(tool).unwrap_or("comes later")),
        Tool::Dlock | Tool::Etcdctl | Tool::Flock => fault.spares(tool),
    });
    let able = Tool::ALL.into_iter().zip(at_once);
    let tools: Vec<Tool> = able
        .filter_map(|(tool, spared)| spared.is_none().then_some(tool))
        .collect();
    let mut measured = measure(fault, &tools).map(Vec::into_iter);
    let cells = at_once
        .into_iter()
        .map(|spared| match (spared, &mut measured) {
            (Some(why), _) => Cell::Not(why),
            (None, Some(results)) => results.next().map_or(Cell::Failed, Cell::Measured),
            (None, None) => Cell::Failed,
        })
        .collect();
    Row { fault, cells }
}

/// Fills in the column of consul, whose servers are others and whose TTL is four times as long: several faults at once,
/// each with servers of its own, and after the measurements of the other tools.
fn suffer_slowly(rows: &mut [Row]) {
    let column = Tool::ALL.iter().position(|tool| *tool == Tool::Consul);
    let column = column.expect("an element");
    let able = rows
        .iter_mut()
        .filter(|row| row.fault.spares(Tool::Consul).is_none());
    let left = Mutex::new(able.collect::<Vec<_>>());
    thread::scope(|scope| {
        for _ in 0..SEVERAL {
            scope.spawn(|| {
                loop {
                    let next = left.lock().expect("no panic while locked").pop();
                    let Some(row) = next else { return };
                    let measured =
                        measure(row.fault, &[Tool::Consul]).and_then(|mut one| one.pop());
                    row.cells[column] = measured.map_or(Cell::Failed, Cell::Measured);
                    print_line(&format!("{}\n", report::row(row)));
                }
            });
        }
    });
}

fn measure(fault: &'static Fault, tools: &[Tool]) -> Option<Vec<Measured>> {
    catch_unwind(AssertUnwindSafe(|| Testbed::set(fault, tools).measure())).ok()
}
