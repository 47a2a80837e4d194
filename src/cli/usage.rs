//! A usage error in dlock's own form: the error on one line, a hint on the next.
//! It must not know which options exist.

use anyhow::anyhow;
use clap::Error;
use clap::error::ErrorKind;

use crate::output::exit::{Exit, Failure};

/// Turns clap's paragraphs into a failure with a hint.
pub(super) fn failure(error: &Error) -> Failure {
    // Only the ansi() form has colours.
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let what = paragraphs.next().unwrap_or_default().trim();
    let what = one_line(what.strip_prefix("error: ").unwrap_or(what));
    let tip = paragraphs
        .flat_map(str::lines)
        .find_map(|line| line.trim().strip_prefix("tip: "))
        .map(one_line);
    // The first usage line of the sub-command.
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let other = match error.kind() {
        // Similar tools have no sub-command: `flock FILE COMMAND`.
        ErrorKind::InvalidSubcommand => {
            "to run a command under a lock: dlock run NAME -- COMMAND [ARG...]"
        }
        ErrorKind::MissingRequiredArgument => usage.unwrap_or("dlock --help lists what there is"),
        _ => "dlock --help and dlock run --help list the options",
    };
    Failure {
        exit: Exit::Failed,
        hint: Some(tip.unwrap_or_else(|| other.to_owned())),
        error: anyhow!(what),
    }
}

fn one_line(paragraph: &str) -> String {
    let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
    lines.join(" ")
}
