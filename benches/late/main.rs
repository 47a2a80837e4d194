//! Measures how late the processes of a lost lock are killed on a machine that has more work than it can do.
//! It must not know dlock's inner workings: it sees processes, and the guard's timer as the kernel shows it.
//!
//! `make late`, or `cargo bench --bench late -- --only idle --json late.json`. It needs root, for a priority over the load.

mod command;
mod load;
mod loss;
mod report;
#[path = "../shared/results.rs"]
mod results;

/// The support code of the end-to-end tests.
#[path = "../../tests/integration"]
mod integration {
    #[expect(dead_code, unused_imports, reason = "the tests need more of it")]
    pub(crate) mod support;
}

use std::process::ExitCode;

use clap::Parser;

use integration::support;
use load::{Load, Machine};
use loss::User;
use report::Row;
use results::{Results, print_line};

/// Takes etcd away from holders whose commands ignore SIGTERM, and measures how late each of these is dead
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    results: Results,
    /// How many locks are lost for each line of the table
    #[arg(long, value_name = "COUNT", default_value_t = 24)]
    losses: usize,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = words.strip_prefix(&[command::WORD.to_owned()]) {
        return command::run(role);
    }
    let arguments = Arguments::parse();
    let machine = Machine::prepare();
    let mut rows = Vec::new();
    for load in Load::ALL {
        for user in User::ALL {
            let name = format!("{}, {}", load.title(), user.title());
            if !arguments.results.wants(&name) {
                continue;
            }
            let running = machine.start(load);
            let late = loss::suffer(&machine, user, arguments.losses);
            drop(running);
            let row = Row::new(load, user, late);
            print_line(&format!("{}\n", row.line()));
            rows.push(row);
        }
    }
    let words = machine.description();
    arguments.results.write(
        "late",
        &report::markdown(&rows),
        &report::json(&rows, &words),
    );
    let mut code = ExitCode::SUCCESS;
    for broken in rows.iter().filter_map(Row::broken_goal) {
        print_line(&format!("{broken}\n"));
        code = ExitCode::FAILURE;
    }
    code
}
