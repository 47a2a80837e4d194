//! `dlock run`: look up the command, check the locks that are held around it, and run it under its own lock.
//! It must not know how a lock is acquired, nor how processes are killed.

use anyhow::anyhow;

use super::check::held;
use super::locked_run::LockedRun;
use super::program::{find, lock_variables, not_started};
use super::report::ReportFiles;
use super::run_end::RunEnd;
use super::select_backend::{self, cleared_variables};
use crate::cli::run::Options;
use crate::config::backend::BackendConfig;
use crate::core::name::{HeldLock, LockName};
use crate::core::proof::FencingToken;
use crate::core::request::Mode;
use crate::core::run_stats::RunStats;
use crate::guard::{self, LaunchOptions};
use crate::host::identity;
use crate::lock::reader::Held;
use crate::output::exit::{Exit, Failure, OrFail as _};

/// Runs the command under the lock and returns its end.
pub(super) fn run(backend: &BackendConfig, options: &Options) -> Result<Exit, Failure> {
    let report_files = ReportFiles::open(&options.name, &options.lock, true)?;
    let launch_options = LaunchOptions {
        kept: report_files.stream().into_iter().collect(),
        ..LaunchOptions::default()
    };
    report_files.record(backend, |stats| {
        execute(backend, options, launch_options, stats)
    })
}

fn execute(
    backend: &BackendConfig,
    options: &Options,
    launch_options: LaunchOptions,
    stats: &mut RunStats,
) -> Result<RunEnd, Failure> {
    let command = find(&options.command)?;
    if options.reentrant
        && let Some(held_lock) = identity::held().find(&options.name, &backend.scope())
    {
        return run_reentrant(backend, options, held_lock, command);
    }
    refuse_self_deadlock(&options.names, backend, "give --reentrant, or ")?;
    let run = LockedRun {
        name: &options.name,
        names: &options.names,
        lock: &options.lock,
        program: options.program(),
        is_hold: false,
        leftovers: options.leftovers,
        variables: Vec::new(),
        unwanted: None,
        background: None,
    };
    select_backend::execute(&run, backend, command, launch_options, stats)
}

/// Runs the command under the lock that is held around us; the error says why that is refused.
fn run_reentrant(
    backend: &BackendConfig,
    options: &Options,
    held_lock: &HeldLock,
    command: guard::Command,
) -> Result<RunEnd, Failure> {
    let (name, token) = (&options.name, held_lock.token);
    if held_lock.mode != Mode::Exclusive {
        return Err(anyhow!(
            "cannot lock '{name}' again: this command holds it as '{}' (token {token})",
            held_lock.mode
        ))
        .or_hint("only a lock that is held exclusively can be taken again");
    }
    let variables = variables_if_held(backend, name, token)?.ok_or_else(|| {
        anyhow!("the lock '{name}' is not held any more by the command around us (token {token})")
    });
    // The environment may have the variables of another lock, nested between that one and us.
    let variables = lock_variables(name, FencingToken(token), variables.or_exit(Exit::Lost)?);
    // The guard around us guards this command too.
    let error = guard::become_command(command, &variables, &cleared_variables());
    Err(not_started(options.program(), &error))
}

/// Refuses to wait for locks that are held around us. The environment of a daemon, or of a script that has released its lock,
/// may name a lock that nobody holds any more.
pub(super) fn refuse_self_deadlock(
    names: &[LockName],
    backend: &BackendConfig,
    or: &str,
) -> Result<(), Failure> {
    let held = identity::held();
    for name in names {
        if let Some(HeldLock { token, .. }) = held.find(name, &backend.scope())
            && variables_if_held(backend, name, *token)?.is_some()
        {
            return Err(anyhow!(
                "cannot lock '{name}': this command runs under it already (token {token}) and would wait for itself"
            ))
            .or_hint(format!(
                "take it once around both commands, {or}run this one without DLOCK_HELD if it is independent of the lock"
            ));
        }
    }
    Ok(())
}

/// The variables of the lock that a command around us acquired; `None` if its token does not hold it any more.
fn variables_if_held(
    backend: &BackendConfig,
    name: &LockName,
    token: i64,
) -> Result<Held, Failure> {
    let tried = format_args!("cannot see whether '{name}' is still held");
    held(backend, name, FencingToken(token), tried)
}
