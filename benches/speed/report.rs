//! The figures as text: Markdown tables for people, the same as JSON for programs.
//! It must not know how anything was measured.

use std::fmt::Write as _;

use serde::Serialize;

use crate::machine;
use crate::sample::{Sample, Summary};
use crate::tool::Tool;

/// The goal of the first column.
#[derive(Clone, Copy, Serialize)]
pub(crate) enum Goal {
    None,
    AtMost(f64),
    /// As a multiple of the second column.
    AtMostOf(f64),
    AtLeastOf(f64),
}

impl Goal {
    /// Figures count as they are printed.
    fn is_missed(self, figure: f64, ratio: Option<f64>) -> bool {
        let printed = |value: f64| (value * 100.0).round() / 100.0;
        match (self, ratio.map(printed)) {
            (Self::AtMost(most), _) => printed(figure) > most,
            (Self::AtMostOf(most), Some(ratio)) => ratio > most,
            (Self::AtLeastOf(least), Some(ratio)) => ratio < least,
            (Self::None | Self::AtMostOf(_) | Self::AtLeastOf(_), _) => false,
        }
    }

    /// In words; `second` is the title of the second column.
    fn text(self, second: &str) -> String {
        match self {
            Self::None => String::new(),
            Self::AtMost(most) => format!("at most {}", number(most)),
            Self::AtMostOf(most) => format!("at most {} of {second}", number(most)),
            Self::AtLeastOf(least) => format!("at least {} of {second}", number(least)),
        }
    }
}

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
    /// The first column divided by the second, by turns where there were any.
    ratio: Option<f64>,
    goal: Goal,
    missed: bool,
}

impl Table {
    pub(crate) fn beside_peers() -> Self {
        Self::new("beside the peers", Tool::ALL.map(Tool::title), true)
    }

    pub(crate) fn beside_floor() -> Self {
        let clients = ["dlock run", "bare client", "sequential client"];
        Self::new("beside the least", clients, true)
    }

    pub(crate) fn beside_flock() -> Self {
        Self::new("on one machine", ["dlock run --local", "flock"], true)
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
        goal: Goal,
    ) {
        let cells: Vec<Option<Sample>> = cells.into_iter().collect();
        let ratio = match &cells[..] {
            [Some(first), Some(second), ..] if self.related => first
                .paired_ratio(second)
                .or_else(|| Some(first.median() / second.median()))
                .filter(|ratio| ratio.is_finite()),
            _ => None,
        };
        let first = cells.first().and_then(Option::as_ref);
        let missed = first.is_some_and(|first| goal.is_missed(first.median(), ratio));
        let row = Row {
            what: what.into(),
            unit,
            cells: cells
                .iter()
                .map(|it| Some(it.as_ref()?.summary()))
                .collect(),
            ratio,
            goal,
            missed,
        };
        crate::results::print_line(&format!("{}\n", self.line(&row)));
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
            let _ = writeln!(text, "{}", self.line(row));
        }
        text
    }

    fn line(&self, row: &Row) -> String {
        let mut words = vec![row.what.clone(), row.unit.to_owned()];
        words.extend(
            row.cells
                .iter()
                .map(|cell| cell.map_or("-".to_owned(), figure)),
        );
        if self.related {
            words.push(
                row.ratio
                    .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            );
            words.push(row.goal.text(&self.columns[1]));
        }
        format!("| {} |", words.join(" | "))
    }

    /// One item for each goal that was missed.
    fn missed(&self) -> impl Iterator<Item = String> {
        self.rows.iter().filter(|row| row.missed).map(|row| {
            let Row {
                what,
                unit,
                goal,
                ratio,
                ..
            } = row;
            let first = row.cells.first().copied().flatten();
            let figure = match (goal, ratio, first) {
                (Goal::AtMostOf(_) | Goal::AtLeastOf(_), Some(ratio), _) => format!("{ratio:.2}"),
                (_, _, Some(first)) => format!("{} {unit}", number(first.median)),
                _ => String::new(),
            };
            format!("- {what}: {figure} (goal: {})", goal.text(&self.columns[1]))
        })
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

/// All tables that have rows, with machine and date, and at last what fell short of a goal.
pub(crate) fn markdown(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables.iter().filter(|table| !table.rows.is_empty()) {
        let _ = writeln!(text, "{}", table.markdown());
    }
    let _ = writeln!(text, "{}\n", machine::description());
    let missed: Vec<String> = tables.iter().flat_map(Table::missed).collect();
    let _ = if missed.is_empty() {
        writeln!(text, "All goals are met.")
    } else {
        writeln!(text, "These goals are missed:\n\n{}", missed.join("\n"))
    };
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
