//! The figures as text: Markdown tables for people, the same as JSON for programs.
//! It must not know how anything was measured.

use std::fmt::Write as _;

use serde::Serialize;

use crate::machine;
use crate::sample::{Sample, Summary};
use crate::tool::Tool;

/// A table of related figures.
#[derive(Serialize)]
pub(crate) struct Table {
    name: &'static str,
    columns: Vec<String>,
    /// Whether the first column is divided by the second.
    related: bool,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    /// The cells, one for each column.
    cells: Vec<Option<Summary>>,
    /// The target of the first column, in words.
    goal: &'static str,
}

impl Table {
    pub(crate) fn beside_peers() -> Self {
        Self::new("beside the peers", Tool::ALL.map(Tool::title), true)
    }

    pub(crate) fn beside_floor() -> Self {
        let clients = ["dlock run", "bare client", "sequential client"];
        Self::new("beside the least", clients, true)
    }

    pub(crate) fn capacity() -> Self {
        Self::new("growth", [], false)
    }

    fn new<const N: usize>(name: &'static str, columns: [&str; N], related: bool) -> Self {
        Self {
            name,
            columns: columns.map(str::to_owned).to_vec(),
            related,
            rows: Vec::new(),
        }
    }

    /// Adds a column, for later rows.
    pub(crate) fn column(&mut self, title: String) {
        self.columns.push(title);
    }

    /// Adds a row, from the first column on.
    pub(crate) fn row(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        cells: impl IntoIterator<Item = Option<Sample>>,
        goal: &'static str,
    ) {
        let cells = cells.into_iter().map(|cell| Some(cell?.summary()));
        let row = Row {
            what: what.into(),
            unit,
            cells: cells.collect(),
            goal,
        };
        crate::results::print_line(&format!("{}\n", row.markdown(self.related)));
        self.rows.push(row);
    }

    fn markdown(&self) -> String {
        let mut titles = vec![self.name.to_owned(), "unit".to_owned()];
        titles.extend(self.columns.iter().cloned());
        if self.related {
            titles.push(format!("{} / {}", self.columns[0], self.columns[1]));
            titles.push("goal".to_owned());
        }
        let mut text = format!(
            "| {} |\n|{}\n",
            titles.join(" | "),
            "---|".repeat(titles.len())
        );
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.markdown(self.related));
        }
        text
    }
}

impl Row {
    fn markdown(&self, related: bool) -> String {
        let mut words = vec![self.what.clone(), self.unit.to_owned()];
        words.extend(
            self.cells
                .iter()
                .map(|cell| cell.map_or("-".to_owned(), figure)),
        );
        if related {
            let ratio = match (&self.cells[0], self.cells.get(1)) {
                (Some(first), Some(Some(second))) if second.median > 0.0 => {
                    format!("{:.2}", first.median / second.median)
                }
                _ => String::new(),
            };
            words.push(ratio);
            words.push(self.goal.to_owned());
        }
        format!("| {} |", words.join(" | "))
    }
}

/// The median, with the quartiles in brackets.
fn figure(of: Summary) -> String {
    if of.count == 1 {
        return number(of.median);
    }
    format!(
        "{} ({}-{})",
        number(of.median),
        number(of.lower),
        number(of.upper)
    )
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// All tables that have rows, with machine and date.
pub(crate) fn markdown(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables.iter().filter(|table| !table.rows.is_empty()) {
        let _ = writeln!(text, "{}", table.markdown());
    }
    let _ = writeln!(text, "{}", machine::description());
    text
}

pub(crate) fn json(tables: &[Table]) -> String {
    #[derive(Serialize)]
    struct Whole<'a> {
        machine: String,
        tables: &'a [Table],
    }
    let machine = machine::description();
    let whole = Whole { machine, tables };
    serde_json::to_string_pretty(&whole).expect("plain data") + "\n"
}
