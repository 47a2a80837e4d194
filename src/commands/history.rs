//! `dlock history`: the past holders of a lock.
//! It must not know how the past is read, nor what a hold consists of.

use anyhow::Context as _;

use super::select_backend::reader;
use super::{block_on, failed};
use crate::cli::history::Options;
use crate::config::backend::BackendConfig;
use crate::core::history::History;
use crate::core::text::{fit, table};
use crate::output::exit::{Exit, Failure};
use crate::output::stdout;
use crate::sys::clock;

/// The columns that may be shortened to the width of a terminal: the owner and the end.
const ELASTIC: [usize; 2] = [2, 5];

/// Prints the past holders.
pub(super) fn execute(backend: &BackendConfig, options: &Options) -> Result<Exit, Failure> {
    let name = &options.name;
    let read = block_on(async {
        let read = reader(backend).history(name, options.request).await;
        read.map_err(|error| failed(format_args!("cannot read the history of '{name}'"), error))
    });
    let text = if options.json {
        read?.to_json(&name.to_string()) + "\n"
    } else {
        as_table(&read?, options)
    };
    stdout::print(&text).context("cannot write to the standard output")?;
    Ok(Exit::Done)
}

fn as_table(history: &History, options: &Options) -> String {
    let now = clock::since_1970();
    let heads = ["BEGAN", "HELD", "HOLDER", "TOKEN", "MODE", "END", "COMMAND"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(history.holds.iter().map(|hold| hold.row(now)));
    if let Some(columns) = stdout::columns() {
        fit(&mut rows, &ELASTIC, columns);
    }
    let rows = if history.holds.is_empty() {
        String::new()
    } else {
        table(&rows)
    };
    let name = options.name.to_string();
    rows + &history.describe_memory(&name, options.request, now)
}
