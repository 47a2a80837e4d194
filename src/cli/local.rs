//! The option for local locks, and the options that conflict with it.
//! It must not know how such locks work.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::Resolver;
use super::connection::Connection;
use crate::config::backend::{self, BackendConfig};
use crate::config::layers::SettingValue;
use crate::output::exit::{Failure, OrFail as _};

#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct LocalArgs {
    /// Use the locks of this machine alone, in files instead of etcd
    ///
    /// In DIR, else in /var/lib/dlock for root and in ~/.local/state/dlock for others. Without it an etcd that cannot be
    /// reached is an error.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_hint = ValueHint::DirPath)]
    local: Option<OsString>,
}

impl LocalArgs {
    /// The backend that the layers choose.
    pub(super) fn resolve(&self, resolver: &mut Resolver) -> Result<BackendConfig, Failure> {
        match chosen(resolver, self.local.as_deref())? {
            Some((found, directory)) => {
                no_connection(&found, resolver.connection)?;
                Ok(BackendConfig::Local(directory))
            }
            None => resolver.settings().map(BackendConfig::Etcd),
        }
    }
}

/// The setting that chooses local locks, and their directory; `None` if the locks are in etcd.
fn chosen(
    resolver: &Resolver,
    flag: Option<&OsStr>,
) -> Result<Option<(SettingValue, PathBuf)>, Failure> {
    let Some(found) = resolver.layers.find(flag, "local") else {
        return Ok(None);
    };
    let directory = backend::state_dir(&resolver.layers, &found)?;
    Ok(directory.map(|directory| (found, directory)))
}

/// Refuses `tried`, which only etcd can do, if the locks are local.
pub(super) fn refuse(
    resolver: &Resolver,
    flag: Option<&OsStr>,
    tried: &str,
    hint: &str,
) -> Result<(), Failure> {
    match chosen(resolver, flag)? {
        Some((found, _)) => {
            Err(anyhow!("cannot {tried} with {}", found.origin_text())).or_hint(hint)
        }
        None => Ok(()),
    }
}

/// Refuses connection flags, which are meant for a lock in etcd. Variables and the file apply to all locks.
fn no_connection(local: &SettingValue, flags: &Connection) -> Result<(), Failure> {
    let given = [
        ("endpoints", !flags.endpoints.is_empty()),
        ("cacert", flags.cacert.is_some()),
        ("cert", flags.cert.is_some()),
        ("key", flags.key.is_some()),
        ("user", flags.user.is_some()),
        ("password-file", flags.password_file.is_some()),
        ("prefix", flags.prefix.is_some()),
        ("cluster-id", flags.cluster_id.is_some()),
        ("connect-timeout", flags.connect_timeout.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(anyhow!(
            "cannot use --{option} together with {}: a local lock has no etcd",
            local.origin_text()
        ))
        .or_hint("--local=false takes the lock in etcd"),
        None => Ok(()),
    }
}
