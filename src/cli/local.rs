//! The option for local locks, and the options that conflict with it.
//! It must not know how such locks work.

use std::ffi::OsString;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::Resolver;
use crate::config::backend::{self, BackendConfig};
use crate::config::layers::Layers;
use crate::config::setting::{Group, Setting};
use crate::output::exit::{Failure, OrFail as _};

#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct LocalArgs {
    /// Use the locks of this machine, without etcd
    ///
    /// The locks are files in DIR [default: /var/lib/dlock for root, else ~/.local/state/dlock]. dlock never chooses
    /// them by itself: without this option an etcd that cannot be reached is an error.
    #[arg(long, help_heading = "Lock store", value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_hint = ValueHint::DirPath)]
    local: Option<OsString>,
}

/// The backend that the layers choose.
pub(super) fn resolve(resolver: &mut Resolver) -> Result<BackendConfig, Failure> {
    let Some((local, directory)) = backend::local(&resolver.layers)? else {
        return resolver.settings().map(BackendConfig::Etcd);
    };
    // Connection flags are meant for a lock in etcd. Variables and the file apply to all locks.
    let connection = |flag: &&Setting| flag.group() == Group::Connection;
    match resolver.layers.flags().find(connection) {
        Some(flag) => Err(anyhow!(
            "cannot use --{flag} together with {}: a local lock has no etcd",
            local.source
        ))
        .or_hint("--local=false takes the lock in etcd"),
        None => Ok(BackendConfig::Local(directory)),
    }
}

/// Refuses `tried`, which only etcd can do, if the locks are local.
pub(super) fn refuse(layers: &Layers, tried: &str, hint: &str) -> Result<(), Failure> {
    match backend::local(layers)? {
        Some((found, _)) => Err(anyhow!("cannot {tried} with {}", found.source)).or_hint(hint),
        None => Ok(()),
    }
}
