//! The matrix as text: one Markdown table for people, the same as JSON for programs.
//! It must not know how anything was measured.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::contenders::{Exit, Measured};
use crate::fault::{Demand, Fault};
use crate::tool::Tool;
use crate::{Cell, Row};

/// One line of the table.
pub(crate) fn row(row: &Row) -> String {
    let mut line = format!("| {} |", row.fault.name);
    for cell in &row.cells {
        let text = match cell {
            Cell::Measured(measured) => measured_text(measured, row.fault),
            Cell::Not(why) => (*why).to_owned(),
            Cell::Failed => "measurement failed".to_owned(),
        };
        let _ = write!(line, " {text} |");
    }
    line
}

/// `overlap, left, exit, take-over`; results that a lock must never have are bold.
fn measured_text(measured: &Measured, fault: &Fault) -> String {
    let bold = |text: String, bad: bool| if bad { format!("**{text}**") } else { text };
    let overlap = bold(milliseconds(measured.overlap), measured.overlaps());
    let left = bold(format!("{} left", measured.left), measured.left > 0);
    let exit = match fault.demand {
        Demand::Survive if !measured.ran_to_end => bold(exit(measured.exit), true),
        Demand::Survive if !measured.survived(fault) => {
            format!("{} instead of {}", exit(measured.exit), fault.code())
        }
        Demand::Survive | Demand::HandOver => exit(measured.exit),
    };
    let take_over = measured.take_over.map_or("never".to_owned(), |span| {
        if span < Duration::from_secs(1) {
            milliseconds(span)
        } else {
            format!("{:.1} s", span.as_secs_f64())
        }
    });
    format!("{overlap}, {left}, {exit}, {take_over}")
}

fn milliseconds(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}

fn exit(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit {code}"),
        Exit::Signal(9) => "killed".to_owned(),
        Exit::Signal(signal) => format!("signal {signal}"),
        Exit::Hangs => "does not end".to_owned(),
    }
}

/// The table: first the faults that the lock must pass on under, then those that the command must survive.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = String::new();
    for (demand, title) in [
        (Demand::HandOver, "must hand over without overlap"),
        (Demand::Survive, "must survive, and exit 7"),
    ] {
        if text.is_empty() {
            let tools = Tool::ALL.map(Tool::title).join(" | ");
            let rule = "---|".repeat(Tool::ALL.len() + 1);
            let _ = writeln!(text, "| fault | {tools} |\n|{rule}");
        }
        let _ = writeln!(text, "| **{title}** |{}", " |".repeat(Tool::ALL.len()));
        for one in rows.iter().filter(|row| row.fault.demand == demand) {
            let _ = writeln!(text, "{}", row(one));
        }
    }
    text
}

#[derive(Serialize)]
struct Record<'a> {
    fault: &'a str,
    must: &'a str,
    ttl: &'a str,
    tool: &'a str,
    /// Why there are no numbers.
    not: Option<&'a str>,
    overlap_ms: Option<u128>,
    kernel_saw_overlap: Option<bool>,
    left: Option<usize>,
    exit: Option<String>,
    take_over_ms: Option<u128>,
    ran_to_end: Option<bool>,
}

pub(crate) fn json(rows: &[Row]) -> String {
    let records: Vec<Record> = rows
        .iter()
        .flat_map(|row| {
            row.cells
                .iter()
                .zip(Tool::ALL)
                .map(|(cell, tool)| record(row, cell, tool))
        })
        .collect();
    serde_json::to_string_pretty(&records).expect("plain data") + "\n"
}

fn record<'a>(row: &'a Row, cell: &'a Cell, tool: Tool) -> Record<'a> {
    let measured = match cell {
        Cell::Measured(measured) => Some(measured),
        Cell::Not(_) | Cell::Failed => None,
    };
    Record {
        fault: row.fault.name,
        must: match row.fault.demand {
            Demand::HandOver => "hand over",
            Demand::Survive => "survive",
        },
        ttl: row.fault.ttl(),
        tool: tool.title(),
        not: match cell {
            Cell::Measured(_) => None,
            Cell::Not(why) => Some(why),
            Cell::Failed => Some("measurement failed"),
        },
        overlap_ms: measured.map(|it| it.overlap.as_millis()),
        kernel_saw_overlap: measured.map(|it| it.refused),
        left: measured.map(|it| it.left),
        exit: measured.map(|it| exit(it.exit)),
        take_over_ms: measured
            .and_then(|it| it.take_over)
            .map(|it| it.as_millis()),
        ran_to_end: measured.map(|it| it.ran_to_end),
    }
}
