//! `dlock run`: look the command up, see which locks are held around it, and have it run under its own.
//! It must not know how a lock is taken, nor how processes are killed.

use anyhow::anyhow;

use super::check::held;
use super::errand::Errand;
use super::lock::{self, NOT_OF_ALL};
use super::program::{find, not_started};
use super::report::Books;
use crate::cli::run::Options;
use crate::config::site::Site;
use crate::core::lease::FencingToken;
use crate::core::ledger::Ledger;
use crate::core::mode::Mode;
use crate::core::name::{Link, LockName};
use crate::exit::{Exit, Failure, OrFail as _};
use crate::guard::{self, Ties};
use crate::whoami;

/// Runs the command under the lock and tells how it ended.
pub(super) fn run(site: &Site, options: &Options) -> Result<Exit, Failure> {
    let books = Books::open(&options.name, &options.lock)?;
    books.keep(|ledger| carry_out(site, options, ledger))
}

fn carry_out(site: &Site, options: &Options, ledger: &mut Ledger) -> Result<Exit, Failure> {
    let command = find(&options.command)?;
    if let Some(link) = whoami::held().link(&options.name, &site.scope()) {
        return within(site, options, link, command);
    }
    let errand = Errand {
        name: &options.name,
        lock: &options.lock,
        program: options.program(),
        leftovers: options.leftovers,
        variables: Vec::new(),
        unwanted: None,
        background: None,
    };
    lock::carry_out(&errand, site, command, Ties::default(), ledger)
}

/// Runs the command under the lock that is held around us, or says why not.
fn within(
    site: &Site,
    options: &Options,
    link: &Link,
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
    let error = guard::become_command(command, &variables, &NOT_OF_ALL);
    Err(not_started(options.program(), &error))
}

/// Refuses to wait for a lock that is held around us.
pub(super) fn refuse_self_deadlock(name: &LockName, site: &Site, or: &str) -> Result<(), Failure> {
    let held = whoami::held();
    let Some(Link { token, .. }) = held.link(name, &site.scope()) else {
        return Ok(());
    };
    Err(anyhow!(
        "cannot lock '{name}': this command runs under it already (token {token}) and would wait for itself"
    ))
    .or_hint(format!(
        "take it once around both commands, {or}or unset DLOCK_HELD if it is not held any more"
    ))
}
