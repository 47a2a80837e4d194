//! `dlock run`: look the command up, see which locks are held around it, and have it run under its own.
//! It must not know how a lock is taken, nor how processes are killed.

use anyhow::{Context as _, anyhow};

use super::errand::{self, Errand};
use super::program::{find, not_started};
use super::report::Books;
use super::{block_on, failed};
use crate::cli::run::Options;
use crate::config::Settings;
use crate::core::lease::FencingToken;
use crate::core::ledger::Ledger;
use crate::core::mode::Mode;
use crate::core::name::{Link, LockName};
use crate::core::queue::Queue;
use crate::etcd::Cluster;
use crate::etcd::look::holds;
use crate::exit::{Exit, Failure, OrFail as _};
use crate::guard::{self, Policy, Ties};
use crate::whoami;

/// Runs the command under the lock and tells how it ended.
pub(super) fn run(settings: &Settings, options: &Options) -> Result<Exit, Failure> {
    let books = Books::open(&options.name, &options.lock)?;
    books.keep(|ledger| carry_out(settings, options, ledger))
}

fn carry_out(settings: &Settings, options: &Options, ledger: &mut Ledger) -> Result<Exit, Failure> {
    let command = find(&options.command)?;
    if let Some(link) = whoami::held().link(&options.name) {
        return within(settings, options, link, command);
    }
    let policy = Policy {
        signal: options.lock.signal,
        grace: options.lock.grace,
        leftovers: options.leftovers,
    };
    // Before any thread exists: see guard/mod.rs.
    let guard = guard::launch(command, policy, Ties::default())
        .context("cannot start the guard process")?;
    let errand = Errand {
        name: &options.name,
        lock: &options.lock,
        program: options.program(),
        leftovers: options.leftovers,
        variables: Vec::new(),
        owner: None,
        background: None,
    };
    errand::carry_out(errand, settings, guard, ledger)
}

/// Runs the command under the lock that is held around us, or says why not.
fn within(
    settings: &Settings,
    options: &Options,
    link: &Link,
    command: guard::Command,
) -> Result<Exit, Failure> {
    let (name, token) = (&options.name, link.token);
    if !options.reentrant {
        refuse_self_deadlock(name, "give --reentrant, ")?;
    }
    if link.mode != Mode::Exclusive {
        return Err(anyhow!(
            "cannot lock '{name}' again: this command shares it with others (token {token}, {})",
            link.mode
        ))
        .or_hint("only a lock that is held exclusively can be taken again");
    }
    let queue = Queue::new(&settings.prefix, name);
    let holds = block_on(async {
        let cluster = Cluster::new(settings);
        let holds = holds(
            &cluster,
            &queue,
            FencingToken(token),
            settings.connect_timeout,
        );
        let tried = format_args!("cannot see whether '{name}' is still held");
        holds.await.map_err(|trouble| failed(tried, trouble))
    })?;
    if !holds {
        return Err(anyhow!(
            "the lock '{name}' is not held any more by the command around us (token {token})"
        ))
        .or_exit(Exit::Lost);
    }
    // The guard around us guards this command too.
    let error = guard::become_command(command, &[]);
    Err(not_started(options.program(), &error))
}

/// Refuses to wait for a lock that is held around us.
pub(super) fn refuse_self_deadlock(name: &LockName, or: &str) -> Result<(), Failure> {
    let held = whoami::held();
    let Some(Link { token, .. }) = held.link(name) else {
        return Ok(());
    };
    Err(anyhow!(
        "cannot lock '{name}': this command runs under it already (token {token}) and would wait for itself"
    ))
    .or_hint(format!(
        "take it once around both commands, {or}or unset DLOCK_HELD if it is not held any more"
    ))
}
