//! `dlock hold` and `dlock release`: a lock without a command.
//! It must not know how a lock is taken, nor how processes are watched or killed.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::report::ReportFiles;
use super::run::refuse_self_deadlock;
use super::run_locked::LockedRun;
use super::select_backend;
use crate::cli::hold::Options;
use crate::config::backend::BackendConfig;
use crate::core::hold::{HoldEnd, HoldVerdict, hold_verdict};
use crate::core::request::Leftovers;
use crate::core::run_stats::RunStats;
use crate::core::text::format_duration;
use crate::core::time::Instant;
use crate::guard::{self, LaunchOptions};
use crate::output::exit::{Exit, Failure, OrFail as _};
use crate::sys::clock;
use crate::sys::daemonize::{Background, Side};
use crate::sys::outcome::{OtherOutcome, OutcomeFile};
use crate::sys::pidfd::ProcessHandle;
use crate::sys::process::ExitStatus;

/// The argv[0] of the child that waits: see [`hold_child`].
pub(crate) const HOLD_CHILD: &str = "dlock-linger";

/// Time that `dlock release` waits for the other dlock to release the lock.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Holds the lock, in the foreground or in the background.
pub(super) fn hold(backend: &BackendConfig, options: &Options) -> Result<Exit, Failure> {
    refuse_self_deadlock(&options.name, backend, "")?;
    let owner = options.pid.map(owner).transpose()?;
    let report_files = ReportFiles::open(&options.name, &options.lock)?;
    let hold_lock = |background| {
        let outcome =
            OutcomeFile::create().context("cannot make a file for dlock release to read")?;
        report_files.record(|stats| {
            let ended = hold_lock(
                backend,
                options,
                owner.as_ref(),
                background,
                &outcome,
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
    match crate::sys::daemonize::daemonize().context("cannot go to the background")? {
        Side::Background(background) => hold_lock(Some(&background)),
        Side::Foreground(None) => Ok(Exit::Done),
        Side::Foreground(Some(status)) => Ok(match status {
            ExitStatus::Exited(code) => Exit::Command(code),
            ExitStatus::Signalled(signal) => Exit::Signalled(signal),
        }),
    }
}

/// The end of the hold as `dlock release` reads it.
fn hold_end(ended: &Result<Exit, Failure>, stats: &RunStats) -> HoldEnd {
    let (exit, failed) = match ended {
        Ok(exit) => (*exit, None),
        Err(failure) => (failure.exit, Some(format!("{:#}", failure.error))),
    };
    HoldEnd {
        exit_code: exit.code(),
        held_until: stats.over_at().map(Instant::since_boot),
        reason: failed.or_else(|| stats.reason().map(str::to_owned)),
    }
}

fn owner(pid: i32) -> Result<ProcessHandle, Failure> {
    let other = ProcessHandle::find(pid);
    Ok(other.with_context(|| format!("cannot hold a lock for process '{pid}'"))?)
}

fn hold_lock(
    backend: &BackendConfig,
    options: &Options,
    owner: Option<&ProcessHandle>,
    background: Option<&Background>,
    outcome: &OutcomeFile,
    stats: &mut RunStats,
) -> Result<Exit, Failure> {
    // The guard gets dlock's own stdin. A hold in the background has none to wait for.
    let input = options
        .until_eof
        .then(|| io::stdin().as_fd().try_clone_to_owned());
    let input = input.transpose().context("cannot keep standard input")?;
    let ties = LaunchOptions {
        adopted: owner,
        kept: input
            .iter()
            .map(AsFd::as_fd)
            .chain([outcome.descriptor()])
            .collect(),
        ..LaunchOptions::default()
    };
    let hold = crate::sys::proc::ProcessId::own().context("cannot find our own process")?;
    let unwanted = || {
        owner.is_some_and(ProcessHandle::has_ended)
            || input.as_ref().is_some_and(crate::sys::pidfd::is_hung_up)
            // The parent that waits for us may have been killed.
            || background.is_some_and(Background::parent_gone)
    };
    let run = LockedRun {
        name: &options.name,
        lock: &options.lock,
        program: OsStr::new("dlock hold"),
        leftovers: Leftovers::Kill,
        variables: vec![("DLOCK_HOLD".to_owned(), hold.to_string())],
        unwanted: (owner.is_some() || input.is_some() || background.is_some()).then_some(&unwanted),
        background,
    };
    match select_backend::execute(&run, backend, hold_command(options, owner), ties, stats)? {
        // The child only waits; its exit status does not matter.
        Exit::Command(_) | Exit::Signalled(_) if stats.was_held() => Ok(Exit::Done),
        exit => Ok(exit),
    }
}

/// dlock itself, as a command that only waits.
fn hold_command(options: &Options, owner: Option<&ProcessHandle>) -> guard::Command {
    let format = if options.json { "json" } else { "shell" };
    let until = if options.until_eof { "eof" } else { "" };
    let owner = owner.map(|owner| owner.id().to_string());
    let argv = [HOLD_CHILD, format, until, &owner.unwrap_or_default()];
    guard::Command {
        path: "/proc/self/exe".into(),
        argv: argv.map(OsString::from).into(),
    }
}

/// The child of `dlock hold`, with the caller's stdin and stdout: prints the variables of the lock, and ends when the lock is
/// not wanted any more. Signals end it like any command.
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
    // The output may be closed.
    let _ = writeln!(io::stdout(), "{line}");
    let owner = arg(2)
        .and_then(|name| name.parse().ok())
        .map(ProcessHandle::open);
    // An owner that has ended in the meantime needs no lock.
    let Ok(owner) = owner.transpose() else {
        return Ok(Exit::Done);
    };
    crate::sys::pidfd::wait_until_unwanted(arg(1) == Some("eof"), owner.as_ref())
        .context("cannot wait")?;
    Ok(Exit::Done)
}

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
    let quoted =
        variables.map(|(name, value)| format!("{name}='{}'", value.replace('\'', r"'\''")));
    format!("export {}", quoted.collect::<Vec<_>>().join(" "))
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
    serde_json::Value::from(object).to_string()
}

/// Ends a `dlock hold`, waits until it has released the lock, and checks that the lock was held until then.
pub(super) fn release(hold: &str) -> Result<Exit, Failure> {
    let name = hold.parse::<crate::sys::proc::ProcessId>();
    let name = name.map_err(|()| anyhow!("cannot use DLOCK_HOLD '{hold}': it names no process"))?;
    let requested_at = clock::now();
    let other = ProcessHandle::open(name)
        .map_err(|_| not_held("the dlock that held it has ended before"))
        .or_exit(Exit::Lost)
        .or_hint("that dlock has said on its stderr how it ended")?;
    let outcome = other.outcome();
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
    let end = outcome.and_then(OtherOutcome::read).map_err(|error| {
        let why = format!("what became of it cannot be read from process '{hold}': {error}");
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

fn not_held(why: &str) -> anyhow::Error {
    anyhow!("the lock was not held until its release: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> impl Iterator<Item = (&'static str, String)> {
        [("DLOCK_FENCING_TOKEN", "12"), ("DLOCK_NAME", "it's 1")]
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()))
    }

    #[test]
    fn a_shell_reads_what_it_is_told() {
        assert_eq!(
            shell(variables()),
            r"export DLOCK_FENCING_TOKEN='12' DLOCK_NAME='it'\''s 1'"
        );
        assert_eq!(json(variables()), r#"{"fencing_token":12,"name":"it's 1"}"#);
    }
}
