//! `dlock hold` and `dlock release`: a lock without a command.
//! It must not know how a lock is taken, nor how processes are watched or killed.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::locked_run::LockedRun;
use super::report::ReportFiles;
use super::run::refuse_self_deadlock;
use super::run_end::RunEnd;
use super::select_backend;
use crate::cli::hold::Options;
use crate::config::backend::BackendConfig;
use crate::core::hold::{HoldEnd, HoldVerdict, hold_verdict};
use crate::core::request::Leftovers;
use crate::core::run_stats::{Outcome, RunStats};
use crate::core::text::{self, format_duration};
use crate::core::time::Instant;
use crate::guard::{self, LaunchOptions};
use crate::output::exit::{Exit, Failure, OrFail as _};
use crate::sys::clock;
use crate::sys::daemonize::{Background, Link, Side};
use crate::sys::outcome::OutcomeFile;
use crate::sys::pidfd::ProcessHandle;

/// The argv[0] of the child that waits: see [`hold_child`].
pub(crate) const HOLD_CHILD: &str = "dlock-linger";

/// Time that `dlock release` waits for the other dlock to release the lock.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of the end of a process that has no open file, far longer than an exit takes.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Holds the lock, in the foreground or in the background.
pub(super) fn hold(backend: &BackendConfig, options: &Options) -> Result<Exit, Failure> {
    refuse_self_deadlock(&options.names, backend, "")?;
    let owner = options.pid.map(|pid| owner(pid, options.session_leader));
    let owner = owner.transpose()?;
    let log_file = options.background.then_some(options.log_file.as_deref());
    let log_file = log_file.flatten().map(open_log).transpose()?;
    let report_files = ReportFiles::open(&options.name, &options.lock, !options.background)?;
    let hold_lock = |background| {
        let outcome =
            OutcomeFile::create().context("cannot make a file for dlock release to read")?;
        report_files.record(backend, |stats| {
            let ended = hold_lock(
                backend,
                options,
                owner.as_ref(),
                background,
                &[Some(outcome.descriptor()), report_files.stream()],
                stats,
            );
            // Without this file dlock release reports the lock as lost.
            let _ = outcome.write(hold_end(&ended, stats).to_json().as_bytes());
            ended
        })
    };
    if !options.background {
        return hold_lock(None);
    }
    match crate::sys::daemonize::daemonize(log_file).context("cannot go to the background")? {
        Side::Background(background) => hold_lock(Some(&background)),
        Side::Foreground(None) => Ok(Exit::Done),
        Side::Foreground(Some(status)) => Ok(status.into()),
    }
}

/// The end of the hold as `dlock release` reads it.
fn hold_end(ended: &Result<RunEnd, Failure>, stats: &RunStats) -> HoldEnd {
    let RunEnd { exit, reason, .. } = RunEnd::of(ended);
    HoldEnd {
        exit_code: exit.code(),
        held_until: stats.over_at().map(Instant::since_boot),
        reason,
    }
}

fn open_log(path: &Path) -> Result<OwnedFd, Failure> {
    let opened = crate::sys::daemonize::open_log(path);
    Ok(opened.with_context(|| format!("cannot write the log file '{}'", path.display()))?)
}

fn owner(pid: i32, session_leader: bool) -> Result<ProcessHandle, Failure> {
    let attempt = || format!("cannot hold a lock for process '{pid}'");
    let other = ProcessHandle::find(pid).with_context(attempt)?;
    if !session_leader && other.leads_terminal_session().with_context(attempt)? {
        return Err(anyhow!("{}: it leads the session of a terminal", attempt())).or_hint(
            "when the lock is lost, that shell and all that runs in the terminal are killed: start a script or another shell for the lock, or give --session-leader",
        );
    }
    Ok(other)
}

fn hold_lock(
    backend: &BackendConfig,
    options: &Options,
    owner: Option<&ProcessHandle>,
    background: Option<&Background>,
    kept: &[Option<BorrowedFd>],
    stats: &mut RunStats,
) -> Result<RunEnd, Failure> {
    // The guard gets dlock's own stdin. A hold in the background has none to wait for.
    let input = options
        .until_eof
        .then(|| io::stdin().as_fd().try_clone_to_owned());
    let input = input.transpose().context("cannot keep standard input")?;
    let launch = LaunchOptions {
        adopted: owner,
        kept: input
            .iter()
            .map(AsFd::as_fd)
            .chain(kept.iter().copied().flatten())
            .collect(),
        ..LaunchOptions::default()
    };
    let hold = crate::sys::proc::ProcessId::own()
        .context("cannot read our own process's entry in /proc")?;
    let unwanted = || {
        owner.is_some_and(ProcessHandle::has_ended)
            || input.as_ref().is_some_and(crate::sys::pidfd::is_hung_up)
            // The parent that waits for us may have been killed.
            || background.is_some_and(Background::parent_gone)
    };
    let run = LockedRun {
        name: &options.name,
        names: &options.names,
        lock: &options.lock,
        program: OsStr::new("dlock hold"),
        is_hold: true,
        leftovers: Leftovers::Kill,
        variables: vec![("DLOCK_HOLD".to_owned(), hold.to_string())],
        unwanted: (owner.is_some() || input.is_some() || background.is_some()).then_some(&unwanted),
        background,
    };
    let command = hold_command(options, owner, background);
    let end = select_backend::execute(&run, backend, command, launch, stats)?;
    Ok(match end.exit {
        _ if end.outcome != Outcome::Completed => end,
        Exit::Command(0) | Exit::Signalled(_) => RunEnd {
            exit: Exit::Done,
            ..end
        },
        // The child has written the cause to stderr.
        _ => RunEnd {
            exit: Exit::Failed,
            outcome: Outcome::Failed,
            ..end
        },
    })
}

/// dlock itself, as a command that only waits.
fn hold_command(
    options: &Options,
    owner: Option<&ProcessHandle>,
    background: Option<&Background>,
) -> guard::Command {
    let format = if options.json { "json" } else { "shell" };
    let until = if options.until_eof { "eof" } else { "" };
    let owner = owner.map_or_else(String::new, |owner| owner.id().to_string());
    let link = background.map_or_else(String::new, |it| it.number().to_string());
    let argv = [HOLD_CHILD, format, until, &owner, &link];
    guard::Command {
        path: "/proc/self/exe".into(),
        argv: argv.map(OsString::from).into(),
    }
}

/// The child of `dlock hold`, with the caller's stdin and stdout: prints the variables of the lock, and ends when the lock is
/// not wanted any more. In the background it then closes the caller's descriptors and ends the wait of the foreground.
/// Signals end it like any command.
pub(crate) fn hold_child(args: &[OsString]) -> Result<Exit, Failure> {
    let arg = |position: usize| args.get(position).and_then(|arg| arg.to_str());
    let variables = VARIABLES.into_iter().filter_map(|name| {
        let value = std::env::var(name).ok()?;
        Some((name, value))
    });
    let line = if arg(0) == Some("json") {
        json(variables)
    } else {
        shell(variables)
    };
    let written = writeln!(io::stdout(), "{line}");
    let owner = arg(2)
        .and_then(|name| name.parse().ok())
        .map(ProcessHandle::open);
    // An owner that has ended in the meantime needs no lock.
    let Ok(owner) = owner.transpose() else {
        return Ok(Exit::Done);
    };
    // In the foreground, nobody has to read the output.
    if let Some(number) = arg(3).and_then(|number| number.parse().ok()) {
        written.context("cannot write the variables of the lock")?;
        let kept = owner.as_ref().map(|owner| owner.descriptor().as_raw_fd());
        let wanted = Link::inherited(number).and_then(|link| link.ready(kept.as_slice()));
        if !wanted.context("cannot go to the background")? {
            return Ok(Exit::Done);
        }
    }
    crate::sys::pidfd::wait_until_unwanted(arg(1) == Some("eof"), owner.as_ref())
        .context("cannot wait")?;
    Ok(Exit::Done)
}

/// Version of the object that `--json` prints.
const JSON_VERSION: u32 = 1;

/// The variables that are printed; the key in JSON is the lower-case part after `DLOCK_`.
const VARIABLES: [&str; 9] = [
    "DLOCK_FENCING_TOKEN",
    "DLOCK_NAME",
    "DLOCK_KEY",
    "DLOCK_LEASE",
    "DLOCK_HELD",
    "DLOCK_SLOT",
    "DLOCK_HOLD",
    "ETCD_LOCK_KEY",
    "ETCD_LOCK_REV",
];

fn shell(variables: impl Iterator<Item = (&'static str, String)>) -> String {
    let quoted = variables.map(|(name, value)| format!("{name}={}", quoted(&value)));
    format!("export {}", quoted.collect::<Vec<_>>().join(" "))
}

/// The value as one word that bash, dash, zsh and fish read in the same way. Within single quotes fish alone gives a
/// backslash a meaning, so both kinds of character are outside of them.
fn quoted(value: &str) -> String {
    let mut word = "'".to_owned();
    for character in value.chars() {
        match character {
            '\\' | '\'' => word.extend(['\'', '\\', character, '\'']),
            _ => word.push(character),
        }
    }
    word + "'"
}

fn json(variables: impl Iterator<Item = (&'static str, String)>) -> String {
    let object: serde_json::Map<_, _> = variables
        .filter_map(|(name, value)| {
            let key = name.strip_prefix("DLOCK_")?.to_ascii_lowercase();
            let number = ["fencing_token", "slot"].contains(&key.as_str());
            let value = match value.parse::<i64>() {
                Ok(value) if number => value.into(),
                _ => value.into(),
            };
            Some((key, value))
        })
        .collect();
    text::json(JSON_VERSION, &object)
}

/// Ends a `dlock hold`, waits until it has released the lock, and checks that the lock was held until then.
pub(super) fn release(hold: &str) -> Result<Exit, Failure> {
    let name = hold.parse::<crate::sys::proc::ProcessId>();
    let name =
        name.map_err(|()| anyhow!("cannot use DLOCK_HOLD '{hold}': it does not name a process"))?;
    let requested_at = clock::now();
    let other = ProcessHandle::open(name).map_err(|_| ended_before())?;
    let outcome = match other.outcome() {
        Ok(outcome) => outcome,
        // A process that exits has closed its files a moment before its end.
        Err(_) if other.ends_within(EXIT_TIMEOUT).unwrap_or(false) => return Err(ended_before()),
        // The variable may name any process of this user, and any at all for root.
        Err(error) => {
            return Err(anyhow!(
                "cannot release the lock of process '{hold}': it does not seem to be a dlock hold: {error}"
            ))
            .or_hint("use the DLOCK_HOLD that dlock hold has printed, as the same user or root");
        }
    };
    let ended = other
        .terminate(RELEASE_TIMEOUT)
        .with_context(|| format!("cannot ask process '{hold}' to release its lock"))?;
    if !ended {
        return Err(anyhow!(
            "process '{hold}' has not released its lock within {}",
            format_duration(RELEASE_TIMEOUT)
        )
        .into());
    }
    let end = outcome.read().map_err(|error| {
        let why = format!("cannot read the result of process '{hold}': {error}");
        not_held(&why)
    });
    let end = HoldEnd::parse(&end.or_exit(Exit::Lost)?);
    match hold_verdict(end.as_ref(), requested_at) {
        HoldVerdict::Released => Ok(Exit::Done),
        HoldVerdict::Lost(reason) => Err(not_held(&reason)).or_exit(Exit::Lost),
        HoldVerdict::Unkillable(reason) => {
            Err(anyhow!("the lock is not released: {reason}")).or_exit(Exit::Unkillable)
        }
    }
}

fn ended_before() -> Failure {
    Failure {
        exit: Exit::Lost,
        hint: Some(
            "it wrote the reason to its stderr or, in the background, to syslog or --log-file"
                .to_owned(),
        ),
        ..not_held("its dlock hold has ended before").into()
    }
}

fn not_held(why: &str) -> anyhow::Error {
    anyhow!("the lock was not held until its release: {why}")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn variables(name: &str) -> impl Iterator<Item = (&'static str, String)> {
        [("DLOCK_FENCING_TOKEN", "12"), ("DLOCK_NAME", name)]
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()))
    }

    #[test]
    fn the_line_has_a_word_for_each_variable() {
        assert_eq!(
            shell(variables(r"it's a\b")),
            r"export DLOCK_FENCING_TOKEN='12' DLOCK_NAME='it'\''s a'\\'b'"
        );
        assert_eq!(
            json(variables("it's 1")),
            r#"{"version":1,"fencing_token":12,"name":"it's 1"}"#
        );
    }

    /// "bash, dash, zsh and fish read the line in the same way, whatever the name of the lock is."
    #[test]
    fn every_shell_reads_every_printable_byte() {
        let shells = [
            ("bash", r#"eval "$1"; printf %s "$DLOCK_NAME""#),
            ("dash", r#"eval "$1"; printf %s "$DLOCK_NAME""#),
            ("zsh", r#"eval "$1"; printf %s "$DLOCK_NAME""#),
            (
                "zsh",
                r#"setopt rc_quotes; eval "$1"; printf %s "$DLOCK_NAME""#,
            ),
            ("fish", r#"eval $argv[1]; printf %s "$DLOCK_NAME""#),
        ];
        let ascii: String = (b' '..=b'~').map(char::from).collect();
        let backwards = ascii.chars().rev().collect();
        let pairs = ascii.chars().flat_map(|one| ['\\', one, '\'', one, one]);
        // The second bytes of these are special inside of some shells.
        let others = "ÁÂÃÄÅÆÇÈ 鍵\u{10ffff}";
        let names = [
            &ascii,
            &backwards,
            &pairs.collect(),
            others,
            r"\'; touch x; '\",
            "''",
            r"\\",
            " ",
            "",
            "-n",
            "~",
            "=ls",
        ];
        for (program, script) in shells {
            for name in names {
                let mut shell_command = Command::new(program);
                if program == "fish" {
                    shell_command.args(["--no-config", "-c", script]);
                } else {
                    shell_command.args(["-c", script, program]);
                }
                let line = shell(variables(name));
                let output = shell_command.arg(&line).output();
                let output = output.expect("the shell is installed: make tools-test");
                let read = String::from_utf8_lossy(&output.stdout);
                assert_eq!(read, name, "{program}: {line}\n{output:?}");
                assert!(output.stderr.is_empty(), "{program}: {line}\n{output:?}");
            }
        }
    }
}
