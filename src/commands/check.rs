//! `dlock check`: whether a token still is that of a holder of its lock.
//! It must not know how etcd or the state folder is asked.

use std::fmt::Display;

use anyhow::anyhow;

use super::{block_on, failed};
use crate::cli::look::Check;
use crate::config::site::Site;
use crate::core::lease::FencingToken;
use crate::core::name::{LockName, Scope};
use crate::core::queue::Queue;
use crate::core::text::printable;
use crate::etcd::contend::variables;
use crate::etcd::{self, Cluster};
use crate::exit::{Exit, Failure, OrFail as _};
use crate::{local, whoami};

/// Says nothing when it is; else that it is not.
pub(super) fn check(site: &Site, check: &Check) -> Result<Exit, Failure> {
    let Check { name, token } = check;
    let tried = format!("cannot tell whether token {token} still has the lock '{name}'");
    ask_the_right_ones(site, check, &tried)?;
    if held(site, name, *token, tried)?.is_some() {
        return Ok(Exit::Done);
    }
    Err(anyhow!("token {token} does not hold the lock '{name}'")).or_exit(Exit::Lost)
}

/// Refuses to ask etcd about a token that was given out on this machine, or under another prefix, and the other way round.
fn ask_the_right_ones(site: &Site, check: &Check, tried: &str) -> Result<(), Failure> {
    let (held, scope) = (whoami::held(), site.scope());
    let token = check.token.0;
    let here = held.link(&check.name, &scope);
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
    site: &Site,
    name: &LockName,
    token: FencingToken,
    tried: impl Display,
) -> Result<Option<Vec<(&'static str, String)>>, Failure> {
    match site {
        Site::Etcd(settings) => block_on(async {
            let queue = Queue::new(&settings.prefix, name);
            let cluster = Cluster::new(settings);
            let holder = etcd::look::holder(&cluster, &queue, token, settings.connect_timeout);
            let holder = holder.await.map_err(|trouble| failed(tried, trouble))?;
            Ok(holder.map(|place| variables(&queue, place)))
        }),
        Site::Local(folder) => {
            let holds = local::holds(folder, name, token);
            let holds = holds.map_err(|failure| failed(tried, failure.into()))?;
            Ok(holds.then(Vec::new))
        }
    }
}
