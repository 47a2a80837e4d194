//! Parsing of an incomplete command line, for completion: the connection settings, and the start of the command.
//! It must not know which shell asks.

use std::ffi::OsString;

use super::{flags, with_subcommands};
use crate::config::layers::Layers;
use crate::config::{self, Settings};
use crate::output::exit::Failure;

fn lenient() -> clap::Command {
    with_subcommands(|_| true).ignore_errors(true)
}

fn matches(words: &[OsString]) -> Option<clap::ArgMatches> {
    lenient().try_get_matches_from(words).ok()
}

/// The settings from the arguments, the variables and the file.
pub(crate) fn connection_of(words: &[OsString]) -> Result<Settings, Failure> {
    let flags = matches(words).as_ref().map(flags).unwrap_or_default();
    let variables = |name: &str| std::env::var_os(name);
    config::resolve(&Layers::load(flags, &variables)?, &mut Vec::new())
}

/// The sub-command of a line that asks for help.
pub(super) fn sub_command(words: &[OsString]) -> Option<String> {
    let lenient = lenient().mut_subcommands(|sub| sub.disable_help_flag(true));
    let matches = lenient.disable_help_flag(true).try_get_matches_from(words);
    matches.ok()?.subcommand_name().map(str::to_owned)
}

/// The position of the command's first word, if it is before `position`.
pub(crate) fn command_before(position: usize, words: &[OsString]) -> Option<usize> {
    let before = words.get(..position)?;
    let matches = matches(before)?;
    let (_, sub) = matches.subcommand()?;
    let command = sub.try_get_many::<OsString>("command").ok()??;
    // The command takes every argument up to the end.
    position
        .checked_sub(command.len())
        .filter(|first| *first < position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(words: &[&str]) -> Option<usize> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        command_before(words.len() - 1, &words)
    }

    #[test]
    fn the_command_is_found_in_an_incomplete_line() {
        assert_eq!(before(&["dlock", "run", "job", "git", "che"]), Some(3));
        assert_eq!(
            before(&["dlock", "run", "-w", "5m", "job", "--", "git", "-c", "x"]),
            Some(6)
        );
        assert_eq!(before(&["dlock", "run", "job", "gi"]), None);
        assert_eq!(before(&["dlock", "run", "job", "--", "gi"]), None);
        assert_eq!(before(&["dlock", "run", "jo"]), None);
        assert_eq!(before(&["dlock", "ls", "jo"]), None);
        assert_eq!(
            before(&["dlock", "fence", "file", "--", "cp", "a"]),
            Some(4)
        );
    }

    #[test]
    fn an_incomplete_line_chooses_the_connection() {
        let words = [
            "dlock",
            "run",
            "--endpoints",
            "http://h:1",
            "--prefix=x",
            "jo",
        ];
        let settings = connection_of(&words.map(OsString::from)).unwrap();
        assert_eq!(settings.prefix, "x/");
        assert_eq!(settings.endpoints[0].to_string(), "http://h:1");
    }
}
