//! A usage error in dlock's own form: the error on one line, a hint on the next.
//! It must not know which options exist.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::anyhow;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Error, ValueHint};

use crate::output::exit::{Exit, Failure};

/// Turns clap's paragraphs into a failure with a hint.
pub(super) fn failure(error: &Error, definitions: &Command) -> Failure {
    // Only the ansi() form has colours.
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let what = paragraphs.next().unwrap_or_default().trim();
    let what = one_line(what.strip_prefix("error: ").unwrap_or(what));
    let tip = paragraphs
        .flat_map(str::lines)
        .find_map(|line| line.trim().strip_prefix("tip: "))
        .map(|tip| in_our_words(&one_line(tip)));
    let what = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing))
            if error.kind() == ErrorKind::MissingRequiredArgument =>
        {
            format!(
                "missing argument: {}",
                missing.join(", ").replace(['<', '>'], "")
            )
        }
        _ => what,
    };
    // The first usage line of the sub-command.
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let other = match error.kind() {
        ErrorKind::InvalidSubcommand => instead_of(error.get(ContextKind::InvalidSubcommand)),
        ErrorKind::MissingRequiredArgument => usage.unwrap_or("dlock --help lists what there is"),
        _ => "dlock --help and dlock run --help list the options",
    };
    Failure {
        exit: Exit::Failed,
        hint: Some(
            other_case(error, definitions)
                .or(tip)
                .unwrap_or_else(|| other.to_owned()),
        ),
        error: anyhow!(what),
    }
}

/// clap's tips on a misspelt word, and on an option before its sub-command, in the form of our own hints.
fn in_our_words(tip: &str) -> String {
    if let Some((_, similar)) = tip.split_once(" exists: ").or(tip.split_once(" exist: ")) {
        return format!("did you mean {similar}?");
    }
    let of_a_command = tip
        .strip_prefix('\'')
        .and_then(|tip| tip.strip_suffix("' exists"));
    of_a_command.map_or_else(
        || tip.to_owned(),
        |words| format!("write it after the sub-command: dlock {words}"),
    )
}

/// The command that a user of another tool wants by this word. Similar tools have no sub-command: `flock FILE COMMAND`.
fn instead_of(unknown: Option<&ContextValue>) -> &'static str {
    match unknown {
        Some(ContextValue::String(word)) if word == "lock" => {
            "dlock run NAME -- COMMAND [ARG...] runs a command under a lock; dlock hold NAME holds a lock without one"
        }
        Some(ContextValue::String(word)) if word == "unlock" => {
            "dlock run releases its lock by itself; dlock release ends a dlock hold --background; dlock break NAME asks another holder"
        }
        _ => "to run a command under a lock: dlock run NAME -- COMMAND [ARG...]",
    }
}

/// The option of one letter that differs from an unknown one by its case.
fn other_case(error: &Error, definitions: &Command) -> Option<String> {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let letter = unknown.strip_prefix('-')?.chars().next()?;
    let other = if letter.is_ascii_lowercase() {
        letter.to_ascii_uppercase()
    } else {
        letter.to_ascii_lowercase()
    };
    let mut options = definitions
        .get_subcommands()
        .flat_map(Command::get_arguments);
    let exists = options.any(|option| option.get_short() == Some(other) && other != letter);
    exists.then(|| format!("did you mean '-{other}'?"))
}

/// An option whose value may be absent takes it after `=` only: `--local /tmp/d` would be a lock of that name.
///
/// # Errors
/// The word after such an option is a value of it.
pub(super) fn refuse_detached_value(
    command: &mut Command,
    matches: &ArgMatches,
    argv: &[OsString],
) -> Result<(), Error> {
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(());
    };
    let Some(sub) = command.find_subcommand(name) else {
        return Ok(());
    };
    let positions: Vec<usize> = sub
        .get_positionals()
        .filter_map(|arg| matches.index_of(arg.get_id().as_str()))
        .collect();
    let optional = |arg: &&Arg| {
        let ids = arg.get_id().as_str();
        arg.is_require_equals_set()
            && matches.value_source(ids) == Some(ValueSource::CommandLine)
            && (matches.index_of(ids)).is_some_and(|index| positions.contains(&(index + 1)))
    };
    let detached = sub.get_arguments().filter(optional).find_map(|arg| {
        let option = format!("--{}", arg.get_long()?);
        let mut pairs = argv.windows(2).filter(|pair| pair[0] == *option);
        let word = pairs.next().map(|pair| pair[1].clone())?;
        is_value(arg, &word).then(|| (option, word.to_string_lossy().into_owned()))
    });
    let Some((option, word)) = detached else {
        return Ok(());
    };
    Err(command.error(
        ErrorKind::ValueValidation,
        format!(
            "'{option}' takes its value after '=', so '{word}' is not its value\n\n  tip: write {option}={word}, or '--' before '{word}' if it is not the value"
        ),
    ))
}

fn is_value(arg: &Arg, word: &OsStr) -> bool {
    let mut values = arg.get_possible_values().into_iter();
    match arg.get_value_hint() {
        ValueHint::DirPath => Path::new(word).is_absolute() || Path::new(word).is_dir(),
        _ => values.any(|value| word == value.get_name()),
    }
}

fn one_line(paragraph: &str) -> String {
    let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
    lines.join(" ")
}
