//! `dlock check`: whether a token still belongs to a holder of its lock.
//! It must not know how etcd or the state directory is read.

use std::fmt::Display;

use anyhow::anyhow;

use super::select_backend::reader;
use super::{block_on_and_end_threads, failed};
use crate::cli::inspect::Check;
use crate::config::backend::BackendConfig;
use crate::core::name::{LockName, Scope};
use crate::core::proof::FencingToken;
use crate::core::text::printable;
use crate::host::identity;
use crate::lock::reader::Held;
use crate::output::exit::{Exit, Failure, OrFail as _};

/// Prints nothing if the token holds the lock; else the error says so.
pub(super) fn check(backend: &BackendConfig, check: &Check) -> Result<Exit, Failure> {
    let Check { name, token } = check;
    let attempt = format!("cannot check whether token {token} still holds the lock '{name}'");
    refuse_other_backend(backend, check, &attempt)?;
    if held(backend, name, *token, attempt)?.is_some() {
        return Ok(Exit::Done);
    }
    Err(anyhow!("token {token} does not hold the lock '{name}'")).or_exit(Exit::Lost)
}

/// Refuses a token that another backend or another prefix has issued.
fn refuse_other_backend(
    backend: &BackendConfig,
    check: &Check,
    attempt: &str,
) -> Result<(), Failure> {
    let (held, scope) = (identity::held(), backend.scope());
    let token = check.token.0;
    let here = held.find(&check.name, &scope);
    if here.is_some_and(|held_lock| held_lock.token == token) {
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
    Err(anyhow!("{attempt}: it was given out {from}")).or_hint(hint)
}

/// The variables, beside name and token, that a command gets of the lock; `None` if `token` does not hold it.
pub(super) fn held(
    backend: &BackendConfig,
    name: &LockName,
    token: FencingToken,
    attempt: impl Display,
) -> Result<Held, Failure> {
    block_on_and_end_threads(async {
        let reader = reader(backend);
        let held = reader.held(name, token).await;
        held.map_err(|error| failed(attempt, error))
    })
}
