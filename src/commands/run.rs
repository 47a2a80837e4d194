//! `dlock run`: look the command up, see which locks are held around it, and have it run under its own.
//! It must not know how a lock is taken, nor how processes are killed.

use anyhow::{Context as _, anyhow};

use super::errand::{self, Errand};
use crate::cli::run::Options;
use crate::config::Settings;
use crate::exit::{Exit, Failure, OrFail as _};
use crate::guard::{self, Lookup, Policy};
use crate::whoami;

/// Runs the command under the lock and tells how it ended.
pub(super) fn run(settings: &Settings, options: &Options) -> Result<Exit, Failure> {
    refuse_self_deadlock(options)?;
    let policy = Policy {
        signal: options.lock.signal,
        grace: options.lock.grace,
        leftovers: options.leftovers,
    };
    // Before any thread exists: see guard/mod.rs.
    let guard =
        guard::launch(command(options)?, policy).context("cannot start the guard process")?;
    let errand = Errand {
        name: &options.name,
        lock: &options.lock,
        program: options.program(),
        leftovers: options.leftovers,
    };
    errand::carry_out(&errand, settings, guard)
}

fn refuse_self_deadlock(options: &Options) -> Result<(), Failure> {
    let held = whoami::held();
    let Some(link) = held.link(&options.name) else {
        return Ok(());
    };
    Err(anyhow!(
        "cannot lock '{}': this command runs under it already (token {}) and would wait for itself",
        options.name,
        link.token
    ))
    .or_hint("take it once around both commands, or unset DLOCK_HELD if it is not held any more")
}

/// Finds the command before anybody queues for it.
fn command(options: &Options) -> Result<guard::Command, Failure> {
    let program = options.program();
    match guard::lookup(program) {
        Ok(path) => Ok(guard::Command {
            path,
            argv: options.command.clone(),
        }),
        Err(Lookup::NotFound) => Err(anyhow!(
            "cannot run '{}': command not found",
            program.display()
        ))
        .or_exit(Exit::NotFound),
        Err(Lookup::NotExecutable(error)) => {
            Err(anyhow!("cannot run '{}': {error}", program.display())).or_exit(Exit::NotExecutable)
        }
    }
}
