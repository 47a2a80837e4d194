//! `dlock run`: look the command up, see which locks are held around it, and have it run under its own.
//! It must not know how a lock is taken, nor how processes are killed.

use anyhow::anyhow;

use super::check::held;
use super::program::{find, not_started};
use super::report::ReportFiles;
use super::run_locked::LockedRun;
use super::select_backend::{self, KIND_SPECIFIC_VARIABLES};
use crate::cli::run::Options;
use crate::config::site::BackendConfig;
use crate::core::name::{HeldLock, LockName};
use crate::core::proof::FencingToken;
use crate::core::request::Mode;
use crate::core::run_stats::RunStats;
use crate::guard::{self, LaunchOptions};
use crate::host::identity;
use crate::output::exit::{Exit, Failure, OrFail as _};

/// Runs the command under the lock and tells how it ended.
pub(super) fn run(site: &BackendConfig, options: &Options) -> Result<Exit, Failure> {
    let books = ReportFiles::open(&options.name, &options.lock)?;
    books.record(|stats| execute(site, options, stats))
}

fn execute(site: &BackendConfig, options: &Options, stats: &mut RunStats) -> Result<Exit, Failure> {
    let command = find(&options.command)?;
    if let Some(link) = identity::held().find(&options.name, &site.scope()) {
        return run_reentrant(site, options, link, command);
    }
    let run = LockedRun {
        name: &options.name,
        lock: &options.lock,
        program: options.program(),
        leftovers: options.leftovers,
        variables: Vec::new(),
        unwanted: None,
        background: None,
    };
    select_backend::execute(&run, site, command, LaunchOptions::default(), stats)
}

/// Runs the command under the lock that is held around us, or says why not.
fn run_reentrant(
    site: &BackendConfig,
    options: &Options,
    link: &HeldLock,
    command: guard::Command,
) -> Result<Exit, Failure> {
    let (name, token) = (&options.name, link.token);
    if !options.reentrant {
        refuse_self_deadlock(name, site, "give --reentrant, ")?;
    }
    if link.mode != Mode::Exclusive {
        return Err(anyhow!(
            "cannot lock '{name}' again: this command holds it as '{}' (token {token})",
            link.mode
        ))
        .or_hint("only a lock that is held exclusively can be taken again");
    }
    let tried = format_args!("cannot see whether '{name}' is still held");
    let variables = held(site, name, FencingToken(token), tried)?;
    let variables = variables.ok_or_else(|| {
        anyhow!("the lock '{name}' is not held any more by the command around us (token {token})")
    });
    // Those in the environment may be of another lock, between that one and us.
    let variables: Vec<(String, String)> = variables
        .or_exit(Exit::Lost)?
        .into_iter()
        .chain([
            ("DLOCK_FENCING_TOKEN", token.to_string()),
            ("DLOCK_NAME", name.to_string()),
        ])
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    // The guard around us guards this command too.
    let error = guard::become_command(command, &variables, &KIND_SPECIFIC_VARIABLES);
    Err(not_started(options.program(), &error))
}

/// Refuses to wait for a lock that is held around us.
pub(super) fn refuse_self_deadlock(
    name: &LockName,
    site: &BackendConfig,
    or: &str,
) -> Result<(), Failure> {
    let held = identity::held();
    let Some(HeldLock { token, .. }) = held.find(name, &site.scope()) else {
        return Ok(());
    };
    Err(anyhow!(
        "cannot lock '{name}': this command runs under it already (token {token}) and would wait for itself"
    ))
    .or_hint(format!(
        "take it once around both commands, {or}or unset DLOCK_HELD if it is not held any more"
    ))
}
