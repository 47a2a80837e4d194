//! `dlock check`: whether a token still is that of a holder of its lock.
//! It must not know how etcd or the state folder is asked.

use std::fmt::Display;

use anyhow::anyhow;

use super::{block_on, failed};
use crate::cli::look::Check;
use crate::config::site::BackendConfig;
use crate::core::keys::LockKeys;
use crate::core::name::{LockName, Scope};
use crate::core::proof::FencingToken;
use crate::core::text::printable;
use crate::etcd::acquire::command_variables;
use crate::etcd::{self, Cluster};
use crate::host::identity;
use crate::local;
use crate::output::exit::{Exit, Failure, OrFail as _};

/// Says nothing when it is; else that it is not.
pub(super) fn check(site: &BackendConfig, check: &Check) -> Result<Exit, Failure> {
    let Check { name, token } = check;
    let tried = format!("cannot tell whether token {token} still has the lock '{name}'");
    ask_the_right_ones(site, check, &tried)?;
    if held(site, name, *token, tried)?.is_some() {
        return Ok(Exit::Done);
    }
    Err(anyhow!("token {token} does not hold the lock '{name}'")).or_exit(Exit::Lost)
}

/// Refuses to ask etcd about a token that was given out on this machine, or under another prefix, and the other way round.
fn ask_the_right_ones(site: &BackendConfig, check: &Check, tried: &str) -> Result<(), Failure> {
    let (held, scope) = (identity::held(), site.scope());
    let token = check.token.0;
    let here = held.find(&check.name, &scope);
    if here.is_some_and(|link| link.token == token) {
        return Ok(());
    }
    let Some(elsewhere) = held.with_token(&check.name, token) else {
        return Ok(());
    };
    let (from, hint) = match (&elsewhere.scope, &scope) {
        (Scope::Machine, _) => (
            "on this machine alone".to_owned(),
            "give --local, as it was given to dlock run",
        ),
        (Scope::Prefix(_), Scope::Machine) => ("in etcd".to_owned(), "leave --local out"),
        (Scope::Prefix(prefix), Scope::Prefix(_)) => (
            format!("under the prefix '{}'", printable(prefix)),
            "give --prefix, as it was given to dlock run",
        ),
    };
    Err(anyhow!("{tried}: it was given out {from}")).or_hint(hint)
}

/// What a command gets of the lock that `token` has now, beside name and token; nothing if it has not got it.
pub(super) fn held(
    site: &BackendConfig,
    name: &LockName,
    token: FencingToken,
    tried: impl Display,
) -> Result<Option<Vec<(&'static str, String)>>, Failure> {
    match site {
        BackendConfig::Etcd(settings) => block_on(async {
            let queue = LockKeys::new(&settings.prefix, name);
            let cluster = Cluster::new(settings);
            let holder = etcd::queue::holder(&cluster, &queue, token, settings.connect_timeout);
            let holder = holder.await.map_err(|error| failed(tried, error))?;
            Ok(holder.map(|entry| command_variables(&queue, entry)))
        }),
        BackendConfig::Local(directory) => {
            let holds = local::holds(directory, name, token);
            let holds = holds.map_err(|failure| failed(tried, failure.into()))?;
            Ok(holds.then(Vec::new))
        }
    }
}
