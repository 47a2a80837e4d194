//! Completion at TAB: sub-commands, options, names of locks, signals, units of time.
//! It must not know the shells' scripts (`completions/`), nor how etcd is read.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueHint;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};

use super::block_on;
use crate::cli;
use crate::core::name::LockName;
use crate::core::text::is_hostile;
use crate::etcd::listing::EtcdReader;
use crate::lock::reader::Selection;

/// The first argument of a request for candidates. A variable could stay exported, and then no command would run.
const REQUEST: &str = "__complete";

/// Units of time, the most frequent first.
const UNITS: [(&str, &str); 5] = [
    ("s", "seconds"),
    ("m", "minutes"),
    ("h", "hours"),
    ("d", "days"),
    ("ms", "milliseconds"),
];
/// Signals; those that end commands are first.
const SIGNALS: [&str; 9] = [
    "TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "KILL", "ALRM", "ABRT",
];

/// The user waits at TAB: a later answer is dropped.
const READ_TIMEOUT: Duration = Duration::from_millis(300);
/// A longer list does not help.
const MAX_NAMES: i64 = 500;

/// The answer to `dlock __complete POSITION WORD...`, as the scripts in `completions/` ask: the words of the line behind
/// `dlock`, and the position of the word to complete among them, from 1 on. `None` for any other command line.
pub(crate) fn requested(argv: &[OsString]) -> Option<String> {
    let [program, request, position, words @ ..] = argv else {
        return None;
    };
    let position = position.to_str().filter(|_| request == REQUEST)?;
    let words = [std::slice::from_ref(program), words].concat();
    Some(answer(position.parse().ok()?, &words))
}

/// One candidate per line, with its description behind a tab. A line that begins with a tab is an order to the shell:
/// `command` and the position of the command's first word, to complete as if dlock were absent, or `files`. Errors are
/// silent: they must not disturb the user's prompt.
fn answer(position: usize, words: &[OsString]) -> String {
    if position > words.len() {
        return String::new();
    }
    let mut words = words.to_vec();
    // Shells omit an empty last word.
    words.resize(words.len().max(position + 1), OsString::new());
    words.truncate(position + 1);
    if let Some(first) = cli::partial::command_before(position, &words) {
        // The shell knows the options of the command.
        return format!("\tcommand {first}\n");
    }
    let begun = words[position].clone();
    if is_for_the_shell(&begun) {
        return "\tfiles\n".to_owned();
    }
    let mut command = with_completers(cli::command(), &words);
    let directory = std::env::current_dir().ok();
    let mut found =
        complete(&mut command, words, position, directory.as_deref()).unwrap_or_default();
    let is_option = |candidate: &CompletionCandidate| {
        candidate.get_value().as_encoded_bytes().starts_with(b"-")
    };
    if begun.is_empty() && !found.iter().all(is_option) {
        // Options are offered only after a dash; here they would hide the names.
        found.retain(|candidate| !is_option(candidate));
    }
    let mut lines = String::new();
    for candidate in found {
        let value = candidate.get_value().to_string_lossy();
        // A control character would break the line, and one that changes the direction of text would show another name.
        if value.contains(is_hostile) {
            continue;
        }
        let help = candidate.get_help().map(ToString::to_string);
        let help = help.unwrap_or_default().replace(is_hostile, " ");
        let _ = writeln!(lines, "{value}\t{help}");
    }
    lines
}

/// Whether only the shell can expand the word: `~`, a variable or a quote, alone or after `--option=`.
fn is_for_the_shell(word: &OsStr) -> bool {
    let word = word.to_string_lossy();
    let value = match word.split_once('=') {
        Some((option, value)) if option.starts_with("--") => value,
        _ => &word,
    };
    value.starts_with(['~', '$', '"', '\''])
}

/// The definitions, with a completer for each kind of value.
fn with_completers(command: clap::Command, words: &[OsString]) -> clap::Command {
    let own = command.get_name().to_owned();
    let command = command.mut_args(|arg| {
        let value = arg.get_value_names().and_then(<[_]>::first);
        let value = value.map(ToString::to_string);
        match value.as_deref() {
            Some("DURATION") => arg.add(ArgValueCompleter::new(of_text(durations))),
            Some("SIGNAL") => arg.add(ArgValueCompleter::new(of_text(signals))),
            _ if arg.get_value_hint() == ValueHint::CommandWithArguments => {
                arg.add(ArgValueCompleter::new(of_text(programs)))
            }
            Some("NAME" | "PREFIX") if is_lock(&own, arg.get_id().as_str()) => {
                let words = words.to_vec();
                arg.add(ArgValueCompleter::new(of_text(move |begun| {
                    names(begun, &words)
                })))
            }
            _ => arg,
        }
    });
    command.mut_subcommands(|sub| with_completers(sub, words))
}

/// A completer for values that are text: others have no candidates.
fn of_text(
    candidates: impl Fn(&str) -> Vec<CompletionCandidate>,
) -> impl Fn(&OsStr) -> Vec<CompletionCandidate> {
    move |begun| begun.to_str().map(&candidates).unwrap_or_default()
}

/// Whether the argument names a lock, and not a user or a key prefix.
fn is_lock(command: &str, argument: &str) -> bool {
    match argument {
        "name" => [
            "run", "hold", "status", "history", "break", "check", "fence",
        ]
        .contains(&command),
        "also" => true,
        "beginning" => command == "ls",
        _ => false,
    }
}

fn beginning_with<'a>(
    begun: &str,
    all: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<CompletionCandidate> {
    let fitting = all
        .into_iter()
        .filter(|(value, _)| value.starts_with(begun));
    fitting
        .map(|(value, help)| {
            CompletionCandidate::new(value).help((!help.is_empty()).then(|| help.to_owned().into()))
        })
        .collect()
}

fn signals(begun: &str) -> Vec<CompletionCandidate> {
    let begun = begun.to_ascii_uppercase();
    beginning_with(&begun, SIGNALS.map(|name| (name, "")))
}

/// The units after the number in `begun`.
fn durations(begun: &str) -> Vec<CompletionCandidate> {
    let number = begun.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let numeric = |character: char| character.is_ascii_digit() || character == '.';
    if !number.ends_with(numeric) {
        return Vec::new();
    }
    let all = UNITS.map(|(unit, meaning)| (format!("{number}{unit}"), meaning));
    beginning_with(
        begun,
        all.iter().map(|(text, meaning)| (text.as_str(), *meaning)),
    )
}

/// Programs of PATH, or files if there is a slash.
fn programs(begun: &str) -> Vec<CompletionCandidate> {
    let (directories, stem, shown) = if let Some((directory, stem)) = begun.rsplit_once('/') {
        let directory = format!("{directory}/");
        (vec![PathBuf::from(&directory)], stem, directory)
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        (std::env::split_paths(&path).collect(), begun, String::new())
    };
    let mut found: Vec<String> = directories
        .iter()
        .flat_map(|directory| executables(directory, stem, begun.contains('/')))
        .map(|name| format!("{shown}{name}"))
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().map(CompletionCandidate::new).collect()
}

/// The executables of a directory whose names begin with `stem`; with `directories` also its directories, with a slash.
fn executables(directory: &Path, stem: &str, directories: bool) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let wanted = name.starts_with(stem) && (stem.starts_with('.') || !name.starts_with('.'));
        let status = wanted.then(|| fs::metadata(entry.path()).ok()).flatten()?;
        if status.is_dir() {
            return directories.then(|| format!("{name}/"));
        }
        (status.permissions().mode() & 0o111 != 0).then_some(name)
    });
    names.collect()
}

/// The names of the existing locks, by the settings from the arguments, the variables and the file.
fn names(begun: &str, words: &[OsString]) -> Vec<CompletionCandidate> {
    let Ok(settings) = cli::partial::connection_of(words) else {
        return Vec::new();
    };
    let found = block_on(async {
        let reader = EtcdReader::new(&settings);
        let which = Selection::BeginningWith(begun.to_owned());
        let reading = reader.names(&which, MAX_NAMES, READ_TIMEOUT);
        let found = tokio::time::timeout(READ_TIMEOUT, reading).await;
        Ok(found.ok().and_then(Result::ok).unwrap_or_default())
    });
    let names = found.unwrap_or_default();
    let names = names.iter().filter_map(|name| LockName::decode(name));
    let names = names.map(|name| name.to_string());
    let fitting = names.filter(|name| is_argument(name, words));
    fitting.map(CompletionCandidate::new).collect()
}

/// Whether dlock takes the name of a lock as a name behind `words`, the last of which is completed: other users choose the
/// names, and one such as `--command=...` is an option unless it is behind `--`.
fn is_argument(name: &str, words: &[OsString]) -> bool {
    let before = words.split_last().map_or(words, |(_, before)| before);
    !name.starts_with('-') || before.iter().any(|word| word == "--")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(words: &[&str]) -> Vec<String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let lines = answer(words.len() - 1, &words);
        let values = lines.lines().map(|line| line.split('\t').next().unwrap());
        values.map(str::to_owned).collect()
    }

    #[test]
    fn words_of_dlock_are_offered() {
        assert!(offered(&["dlock", ""]).contains(&"run".to_owned()));
        assert_eq!(offered(&["dlock", "doc"]), ["doctor"]);
        assert_eq!(
            offered(&["dlock", "run", "--conflict"]),
            ["--conflict-exit-code"]
        );
        assert_eq!(
            offered(&["dlock", "run", "--leftovers", ""]),
            ["kill", "wait", "leave"]
        );
        assert_eq!(offered(&["dlock", "completions", "z"]), ["zsh"]);
    }

    #[test]
    fn signals_are_offered() {
        assert_eq!(offered(&["dlock", "run", "--signal", "t"]), ["TERM"]);
        assert_eq!(
            offered(&["dlock", "hold", "--signal=US"]),
            ["--signal=USR1", "--signal=USR2"]
        );
    }

    #[test]
    fn units_are_offered_behind_a_number() {
        assert_eq!(
            offered(&["dlock", "run", "--ttl", "30"]),
            ["30s", "30m", "30h", "30d", "30ms"]
        );
        assert_eq!(offered(&["dlock", "run", "-w", "1m"]), ["1m", "1ms"]);
        assert_eq!(
            offered(&["dlock", "run", "-w", "1m30"]),
            ["1m30s", "1m30m", "1m30h", "1m30d", "1m30ms"]
        );
        assert!(offered(&["dlock", "run", "-w", ""]).is_empty());
    }

    #[test]
    fn programs_are_offered_where_the_command_begins() {
        assert!(offered(&["dlock", "run", "job", "--", "ech"]).contains(&"echo".to_owned()));
        let below = format!("{}/tests/children/ignores", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(
            offered(&["dlock", "run", "job", "--", &below]),
            [format!("{below}-term.sh")]
        );
    }

    #[test]
    fn behind_the_command_the_shell_completes() {
        let answer = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            answer(words.len() - 1, &words)
        };
        assert_eq!(
            answer(&["dlock", "run", "job", "git", "--ver"]),
            "\tcommand 3\n"
        );
        assert_eq!(
            answer(&["dlock", "run", "job", "--", "git", ""]),
            "\tcommand 4\n"
        );
    }

    #[test]
    fn what_only_the_shell_understands_is_left_to_it() {
        let answer = |word: &str| {
            let words = ["dlock", "--cacert", word].map(OsString::from);
            answer(2, &words)
        };
        for word in ["~/ca", "$HOME/ca", "\"my ca"] {
            assert_eq!(answer(word), "\tfiles\n", "{word}");
        }
        assert_eq!(answer("no-such-file"), "");
    }

    #[test]
    fn the_name_of_a_lock_is_never_offered_as_an_option() {
        let is_offered = |name: &str, words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            is_argument(name, &words)
        };
        let hostile = "--command=touch x";
        assert!(!is_offered(hostile, &["dlock", "run", "--c"]));
        assert!(!is_offered(hostile, &["dlock", "run", ""]));
        assert!(!is_offered("-x", &["dlock", "status", "--"]));
        assert!(is_offered(hostile, &["dlock", "run", "--", "--c"]));
        assert!(is_offered("job", &["dlock", "run", "j"]));
    }

    #[test]
    fn options_are_offered_after_a_dash() {
        assert!(
            offered(&["dlock", ""])
                .iter()
                .all(|word| !word.starts_with('-'))
        );
        assert!(offered(&["dlock", "-"]).contains(&"--endpoints".to_owned()));
    }

    #[test]
    fn nonsense_is_answered_with_nothing() {
        assert_eq!(answer(usize::MAX, &[]), "");
        let _ = answer(0, &[]);
        let _ = answer(3, &["dlock".into()]);
        let broken = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
        let _ = answer(2, &["dlock".into(), "run".into(), OsStr::to_owned(broken)]);
    }
}
