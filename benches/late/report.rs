//! The delays as text: one Markdown table for people, all of them as JSON for programs.
//! It must not know how anything was measured.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::load::Load;
use crate::loss::{Late, User};

/// "None later than 0.5 s, p99 under 0.1 s."
const WORST: Duration = Duration::from_millis(500);
const NEARLY_ALL: Duration = Duration::from_millis(100);

/// The delays under one load, sorted.
pub(crate) struct Row {
    load: Load,
    user: User,
    late: Late,
}

impl Row {
    pub(crate) fn new(load: Load, user: User, mut late: Late) -> Self {
        late.killed.sort_unstable();
        late.dead.sort_unstable();
        late.plain.sort_unstable();
        Self { load, user, late }
    }

    /// One line of the table.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "| {} | {} | {} |",
            self.load.title(),
            self.user.title(),
            self.late.killed.len()
        );
        for percent in [0, 50, 90, 99, 100] {
            let _ = write!(
                line,
                " {} |",
                milliseconds(percentile(&self.late.killed, percent))
            );
        }
        for most in [&self.late.dead, &self.late.plain] {
            let _ = write!(line, " {} |", milliseconds(percentile(most, 100)));
        }
        line
    }

    /// The goal that was missed, if one was.
    pub(crate) fn broken_goal(&self) -> Option<String> {
        let (load, user) = (self.load.title(), self.user.title());
        let miss = |percent, goal| {
            let late = percentile(&self.late.killed, percent);
            let (late, goal) = (
                milliseconds(late),
                (late > goal).then(|| milliseconds(goal))?,
            );
            Some(format!(
                "{load}, {user}: p{percent} is {late}, the goal {goal}"
            ))
        };
        miss(100, WORST).or_else(|| miss(99, NEARLY_ALL))
    }
}

/// The least value that so many percent of the sorted values do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

fn milliseconds(late: Duration) -> String {
    format!("{:.1} ms", late.as_secs_f64() * 1000.0)
}

pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text =
        "| load | user | losses | least | p50 | p90 | p99 | most | dead, most | a plain kill, most |\n"
            .to_owned();
    let _ = writeln!(text, "|{}", "---|".repeat(10));
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
    text
}

#[derive(Serialize)]
struct Record<'a> {
    load: Load,
    user: User,
    of: &'a str,
    late_ms: Vec<f64>,
}

pub(crate) fn json(rows: &[Row], load: &str) -> String {
    let late_ms = |late: &[Duration]| {
        let late = late.iter().map(|late| late.as_secs_f64() * 1000.0);
        late.collect()
    };
    let records: Vec<Record> = rows
        .iter()
        .flat_map(|row| {
            let (load, user) = (row.load, row.user);
            let record = |of, late| Record {
                load,
                user,
                of,
                late_ms: late_ms(late),
            };
            [
                record("killed", &row.late.killed),
                record("dead", &row.late.dead),
                record("dead by a plain kill", &row.late.plain),
            ]
        })
        .collect();
    let whole = serde_json::json!({ "load": load, "late": records });
    serde_json::to_string_pretty(&whole).expect("plain data") + "\n"
}
